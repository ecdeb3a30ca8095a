//! Debian packages that a command needs: installed where we may, named precisely where we may not.

use std::path::Path;

use crate::error::{Error, Result};
use crate::exec::{exists, run};
use crate::ui::Ui;

/// A Debian package and the file or program that shows it is there.
struct Package {
    name: &'static str,
    shown_by: &'static str,
}

const fn package(name: &'static str, shown_by: &'static str) -> Package {
    Package { name, shown_by }
}

/// What a group of commands needs.
#[derive(Clone, Copy)]
pub enum Need {
    /// The local cluster.
    Cluster,
    /// Building images, and the binaries in them.
    Image,
    /// File systems of their own for the volumes that faults are made on.
    Faults,
    /// Redis clients, unmodified.
    Clients,
    /// Redis and its load generator, as a reference.
    Bench,
    /// The package index that the demonstration loads.
    Index,
}

const CLUSTER: &[Package] = &[
    package("containerd", "containerd"),
    package("runc", "runc"),
    package("containernetworking-plugins", "/usr/lib/cni/bridge"),
    package("iptables", "iptables"),
    package("conntrack", "conntrack"),
    package("iproute2", "ip"),
    package("procps", "sysctl"),
    package("util-linux", "nsenter"),
    package("busybox-static", "/bin/busybox"),
    package("buildah", "buildah"),
];
const IMAGE: &[Package] = &[
    package("buildah", "buildah"),
    package("clang", "clang"),
    package("libclang-dev", "/usr/share/doc/libclang-dev"),
    package("binutils", "strip"),
];
const FAULTS: &[Package] = &[package("e2fsprogs", "mkfs.ext4"), package("util-linux", "fsfreeze")];
const CLIENTS: &[Package] =
    &[package("redis-tools", "redis-cli"), package("python3-redis", "/usr/lib/python3/dist-packages/redis")];
const BENCH: &[Package] = &[package("redis-server", "redis-server"), package("redis-tools", "redis-benchmark")];
const INDEX: &[Package] = &[package("apt", "apt-cache")];

/// Makes sure that the packages of `needs` are installed.
///
/// # Errors
/// Without root, or where apt-get fails: the missing packages and the command that installs them.
pub fn ensure(ui: &Ui, needs: &[Need]) -> Result<()> {
    let mut missing: Vec<&str> = needs
        .iter()
        .flat_map(|need| match need {
            Need::Cluster => CLUSTER,
            Need::Image => IMAGE,
            Need::Faults => FAULTS,
            Need::Clients => CLIENTS,
            Need::Bench => BENCH,
            Need::Index => INDEX,
        })
        .filter(|p| !exists(p.shown_by))
        .map(|p| p.name)
        .collect();
    missing.sort_unstable();
    missing.dedup();
    if missing.is_empty() {
        return Ok(());
    }
    let command = format!("apt-get update && apt-get install --yes --no-install-recommends {}", missing.join(" "));
    if !rustix::process::geteuid().is_root() || !exists("apt-get") {
        return Err(Error::failed(format!("missing: {}; install them as root: {command}", missing.join(", "))));
    }
    ui.step(&format!("install packages: {}", missing.join(" ")), |step| {
        step.announce("apt-get update");
        apt(&["update"])?;
        step.announce("apt-get install");
        let mut args = vec!["install", "--yes", "--no-install-recommends"];
        args.extend(&missing);
        apt(&args)
    })
}

fn apt(args: &[&str]) -> Result<()> {
    // Packages must not start their services: the cluster runs its own containerd.
    let policy = Path::new("/usr/sbin/policy-rc.d");
    let ours = !policy.exists();
    if ours {
        crate::error::write(policy, "#!/bin/sh\nexit 101\n")?;
        run("chmod").args(["0755"]).arg(policy).done()?;
    }
    let result = run("apt-get")
        .env("DEBIAN_FRONTEND", "noninteractive")
        .args(["-o", "Dpkg::Use-Pty=0", "-qq"])
        .args(args)
        .done();
    if ours {
        // Left behind, it would only keep later services from starting by themselves.
        drop(std::fs::remove_file(policy));
    }
    result
}

/// Says why a command that needs root cannot run.
pub fn require_root(what: &str) -> Result<()> {
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    Err(Error::failed(format!("{what} needs root: it makes network namespaces and starts container runtimes")))
}
