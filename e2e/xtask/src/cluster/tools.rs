//! The programs of the cluster, each upstream's own, built once from its Go module and kept by version.

use std::path::{Path, PathBuf};

use crate::error::{Context, Error, Result, make_dir, read, write};
use crate::exec::{exists, run};
use crate::paths;
use crate::ui::{Step, Ui};

const KUBERNETES: &str = "1.35.4";
const KUBERNETES_PARTS: [&str; 6] =
    ["kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "kubectl"];
const ETCD: &str = "3.6.5";
const HELM: &str = "3.21.4";
/// Also the image's tag.
pub const COREDNS: &str = "1.14.7";
/// Also the image's tag.
pub const PROVISIONER: &str = "0.0.30";

/// Where the programs are.
#[derive(Clone, Debug)]
pub struct Tools {
    base: PathBuf,
}

impl Tools {
    fn at(&self, tool: &str, version: &str, program: &str) -> PathBuf {
        self.base.join(format!("{tool}-{version}")).join(program)
    }

    /// A program of Kubernetes itself.
    pub fn kubernetes(&self, part: &str) -> PathBuf {
        self.at("kubernetes", KUBERNETES, part)
    }

    /// The cluster's database.
    pub fn etcd(&self) -> PathBuf {
        self.at("etcd", ETCD, "etcd")
    }

    /// The chart installer.
    pub fn helm(&self) -> PathBuf {
        self.at("helm", HELM, "helm")
    }

    /// The name server.
    pub fn coredns(&self) -> PathBuf {
        self.at("coredns", COREDNS, "coredns")
    }

    /// The volume provisioner.
    pub fn provisioner(&self) -> PathBuf {
        self.at("local-path-provisioner", PROVISIONER, "local-path-provisioner")
    }

    /// A directory for `PATH` with the programs that people use.
    pub fn bin(&self) -> PathBuf {
        paths::cache().join("bin")
    }

    /// Builds what is missing of everything that the cluster needs.
    pub fn ensure(ui: &Ui) -> Result<Self> {
        let tools = Self::locate();
        let all = [
            (tools.kubernetes("kubelet"), Recipe::Kubernetes),
            (tools.etcd(), Recipe::Etcd),
            (tools.helm(), Recipe::Install("helm.sh/helm/v3/cmd/helm", HELM)),
            (tools.coredns(), Recipe::Install("github.com/coredns/coredns", COREDNS)),
            (tools.provisioner(), Recipe::Install("github.com/rancher/local-path-provisioner", PROVISIONER)),
        ];
        for (program, recipe) in all {
            build_missing(ui, &program, recipe)?;
        }
        for (name, target) in [("kubectl", tools.kubernetes("kubectl")), ("helm", tools.helm())] {
            link(&tools.bin().join(name), &target)?;
        }
        Ok(tools)
    }

    /// Builds kubectl and helm if they are missing, which is enough to work with any cluster.
    pub fn ensure_clients(ui: &Ui) -> Result<Self> {
        let tools = Self::locate();
        build_missing(ui, &tools.kubernetes("kubelet"), Recipe::Kubernetes)?;
        build_missing(ui, &tools.helm(), Recipe::Install("helm.sh/helm/v3/cmd/helm", HELM))?;
        Ok(tools)
    }

    /// The places, whether anything is there or not.
    pub fn locate() -> Self {
        Self { base: paths::cache().join("tools") }
    }
}

/// How a program is built.
#[derive(Clone, Copy)]
enum Recipe {
    /// Its staging modules are replaced by their released versions, which `go install` does not allow.
    Kubernetes,
    /// Its go.mod has replacements too.
    Etcd,
    /// `go install PACKAGE@vVERSION`.
    Install(&'static str, &'static str),
}

fn build_missing(ui: &Ui, program: &Path, recipe: Recipe) -> Result<()> {
    if program.exists() {
        return Ok(());
    }
    let Some(dir) = program.parent() else { return Err(Error::failed("build tools: no directory")) };
    let name = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
    if !exists("go") {
        return Err(Error::failed(format!(
            "build {name}: no `go` on the search path; install Go 1.26 or newer (https://go.dev/dl)"
        )));
    }
    ui.step(&format!("build {name}"), |step| {
        make_dir(&paths::cache())?;
        let work = tempfile::Builder::new()
            .prefix("build-")
            .tempdir_in(paths::cache())
            .doing(|| format!("make a build directory in {}", paths::cache().display()))?;
        let out = work.path().join("out");
        make_dir(&out)?;
        match recipe {
            Recipe::Kubernetes => kubernetes(step, work.path(), &out)?,
            Recipe::Etcd => etcd(step, work.path(), &out)?,
            Recipe::Install(package, version) => {
                step.announce(&format!("go install {package}@v{version}"));
                go().env("GOBIN", &out)
                    .words("install -ldflags")
                    .arg("-s -w")
                    .arg(format!("{package}@v{version}"))
                    .done()?;
            }
        }
        // What an interrupted move or a pruned cache left.
        if dir.exists() {
            std::fs::remove_dir_all(dir).doing(|| format!("remove {}", dir.display()))?;
        }
        if let Some(parent) = dir.parent() {
            make_dir(parent)?;
        }
        std::fs::rename(&out, dir).doing(|| format!("move {name} into {}", dir.display()))
    })
}

fn go() -> crate::exec::Run {
    run("go").env("CGO_ENABLED", "0").env("GOFLAGS", "-buildvcs=false").env("GOWORK", "off")
}

fn kubernetes(step: &Step, work: &Path, out: &Path) -> Result<()> {
    step.announce("download modules");
    go().dir(work).words("mod download").arg(format!("k8s.io/kubernetes@v{KUBERNETES}")).done()?;
    let cache = run("go").words("env GOMODCACHE").text()?;
    let upstream = read(&Path::new(cache.trim()).join(format!("k8s.io/kubernetes@v{KUBERNETES}/go.mod")))?;
    let staging = KUBERNETES.replacen("1.", "0.", 1);
    let mut module =
        format!("module clustertools\n\ngo 1.26\n\nrequire k8s.io/kubernetes v{KUBERNETES}\n\nreplace (\n");
    for line in upstream.lines() {
        if let Some((name, target)) = line.trim().split_once(" => ")
            && target.starts_with("./staging")
        {
            let name = name.trim_start_matches("replace ");
            module.push_str(&format!("\t{name} => {name} v{staging}\n"));
        }
    }
    module.push_str(")\n\ntool (\n");
    let packages: Vec<String> = KUBERNETES_PARTS.iter().map(|part| format!("k8s.io/kubernetes/cmd/{part}")).collect();
    for package in &packages {
        module.push_str(&format!("\t{package}\n"));
    }
    module.push_str(")\n");
    write(&work.join("go.mod"), module)?;
    go().dir(work).words("mod tidy").done()?;
    step.announce("compile (about 4 minutes on two cores)");
    let stamp = "k8s.io/component-base/version";
    let flags =
        format!("-s -w -X {stamp}.gitVersion=v{KUBERNETES} -X {stamp}.gitMajor=1 -X {stamp}.gitMinor={}", minor());
    go().dir(work)
        .words("build -ldflags")
        .arg(flags)
        .arg("-o")
        .arg(format!("{}/", out.display()))
        .args(&packages)
        .done()
}

fn minor() -> &'static str {
    KUBERNETES.split('.').nth(1).unwrap_or_default()
}

fn etcd(step: &Step, work: &Path, out: &Path) -> Result<()> {
    let package = "go.etcd.io/etcd/server/v3";
    write(
        &work.join("go.mod"),
        format!("module etcdtool\n\ngo 1.26\n\ntool {package}\n\nrequire {package} v{ETCD}\n"),
    )?;
    step.announce("download modules");
    go().dir(work).words("mod tidy").done()?;
    step.announce("compile");
    go().dir(work).words("build -ldflags").arg("-s -w").arg("-o").arg(out.join("etcd")).arg(package).done()
}

fn link(link: &Path, target: &Path) -> Result<()> {
    if std::fs::read_link(link).is_ok_and(|present| present == target) {
        return Ok(());
    }
    if let Some(parent) = link.parent() {
        make_dir(parent)?;
    }
    if link.symlink_metadata().is_ok() {
        std::fs::remove_file(link).doing(|| format!("replace {}", link.display()))?;
    }
    std::os::unix::fs::symlink(target, link).doing(|| format!("link {}", link.display()))
}
