//! The cluster's network: one namespace a node, cables to one bridge, routes between pods; nothing leaves the machine.

use std::path::Path;

use super::layout::{BRIDGE, BRIDGE_ADDRESS, NAMESPACES, Node, POD_RANGE, SERVICE_RANGE, State, nodes};
use crate::error::{Error, Result, read, write};
use crate::exec::{Run, run};

/// Kernel settings that the cluster needs at least.
const SETTINGS: [(&str, u64); 3] =
    [("net/ipv4/ip_forward", 1), ("fs/inotify/max_user_instances", 1024), ("fs/inotify/max_user_watches", 262_144)];

fn ip(words: &str) -> Run {
    run("ip").words(words)
}

fn link_exists(name: &str) -> bool {
    Path::new("/sys/class/net").join(name).exists()
}

fn has_blackhole(range: &str) -> bool {
    ip("route show type blackhole").text().is_ok_and(|t| t.lines().any(|l| l.split_whitespace().any(|w| w == range)))
}

fn guard(action: &str) -> Run {
    run("iptables").words(&format!("-w 5 {action} FORWARD -i {BRIDGE} ! -o {BRIDGE} -j DROP"))
}

/// Everything of the cluster's names that exists on the machine.
pub fn present() -> Vec<String> {
    let mut found = Vec::new();
    if link_exists(BRIDGE) {
        found.push(format!("link {BRIDGE}"));
        if guard("-C").succeeds() {
            found.push(format!("iptables rule for {BRIDGE}"));
        }
    }
    for node in nodes(super::layout::MAX_NODES) {
        if node.namespace_file().exists() {
            found.push(format!("network namespace {}", node.name()));
        }
        if link_exists(&node.link()) {
            found.push(format!("link {}", node.link()));
        }
    }
    for range in [POD_RANGE, SERVICE_RANGE] {
        if has_blackhole(range) {
            found.push(format!("blackhole route {range}"));
        }
    }
    found
}

/// Fails if something else on the machine uses the names or ports that the cluster would take.
pub fn refuse_foreign() -> Result<()> {
    let found = present();
    if !found.is_empty() {
        return Err(Error::failed(format!(
            "start a cluster: the machine already has {}, not made by this cluster (its root has no state). If it is another \
             cluster of this tool, take it down with `cargo xtask cluster down --root ITS_ROOT`; otherwise remove these",
            found.join(", ")
        )));
    }
    for port in [2379_u16, 2380, 6443, 10257, 10259] {
        if let Err(e) = std::net::TcpListener::bind(("127.0.0.1", port)) {
            return Err(Error::failed(format!("start a cluster: port {port} on 127.0.0.1 is needed: {e}")));
        }
    }
    Ok(())
}

/// The settings that must be raised, with their present values.
pub fn settings_to_change() -> Result<Vec<(String, String)>> {
    let mut changed = Vec::new();
    for (name, least) in SETTINGS {
        let present = read(&Path::new("/proc/sys").join(name))?.trim().to_owned();
        if present.parse::<u64>().is_ok_and(|v| v < least) {
            changed.push((name.to_owned(), present));
        }
    }
    Ok(changed)
}

/// Whether the directory of network namespaces is a mount of its own.
pub fn namespaces_mounted() -> Result<bool> {
    let mounts = read(Path::new("/proc/self/mounts"))?;
    Ok(mounts.lines().any(|line| line.split(' ').nth(1) == Some(NAMESPACES)))
}

/// Undoes the mount that the first namespace brought with it, unless somebody else's namespaces are there by now.
fn unmount_namespaces() -> Result<()> {
    let empty = std::fs::read_dir(NAMESPACES).map_or(true, |mut entries| entries.next().is_none());
    while empty && namespaces_mounted()? {
        run("umount").arg(NAMESPACES).done()?;
    }
    Ok(())
}

fn raise_settings() -> Result<()> {
    for (name, _) in settings_to_change()? {
        let least = SETTINGS.iter().find(|(n, _)| *n == name).map_or(0, |(_, least)| *least);
        write(&Path::new("/proc/sys").join(&name), least.to_string())?;
    }
    Ok(())
}

/// Makes the bridge, the fence around it and the nodes' namespaces, or what is missing of them.
pub fn ensure(count: u8) -> Result<()> {
    raise_settings()?;
    if !link_exists(BRIDGE) {
        ip(&format!("link add {BRIDGE} type bridge")).done()?;
    }
    ip(&format!("address replace {BRIDGE_ADDRESS}/24 dev {BRIDGE}")).done()?;
    ip(&format!("link set {BRIDGE} up")).done()?;
    for range in [SERVICE_RANGE, POD_RANGE] {
        ip(&format!("route replace blackhole {range}")).done()?;
    }
    if !guard("-C").succeeds() {
        guard("-I").done()?;
    }
    for node in nodes(count) {
        ensure_node(node)?;
    }
    for node in nodes(count) {
        for other in nodes(count).filter(|other| *other != node) {
            ip(&format!("-n {} route replace {} via {}", node.name(), other.pod_subnet(), other.address())).done()?;
        }
    }
    Ok(())
}

fn ensure_node(node: Node) -> Result<()> {
    let (name, link) = (node.name(), node.link());
    if !node.namespace_file().exists() {
        ip(&format!("netns add {name}")).done()?;
    }
    if !link_exists(&link) {
        ip(&format!("link add {link} type veth peer name eth0 netns {name}")).done()?;
    }
    ip(&format!("link set {link} master {BRIDGE} up")).done()?;
    ip(&format!("-n {name} address replace {}/24 dev eth0", node.address())).done()?;
    ip(&format!("-n {name} link set eth0 up")).done()?;
    ip(&format!("-n {name} link set lo up")).done()?;
    ip(&format!("-n {name} route replace default via {BRIDGE_ADDRESS}")).done()?;
    run("nsenter")
        .arg(format!("--net={}", node.namespace_file().display()))
        .words("sysctl -qw net.ipv4.ip_forward=1")
        .done()?;
    ip(&format!("route replace {} via {}", node.pod_subnet(), node.address())).done()
}

/// Removes all of it and restores the kernel settings. Returns what could not be removed.
pub fn remove(state: &State) -> Vec<String> {
    let mut failed = Vec::new();
    let mut attempt = |needed: bool, command: Run| {
        if needed && let Err(e) = command.done() {
            failed.push(e.to_string());
        }
    };
    for node in nodes(state.nodes) {
        let (name, link) = (node.name(), node.link());
        attempt(link_exists(&link), ip(&format!("link delete {link}")));
        attempt(node.namespace_file().exists(), ip(&format!("netns delete {name}")));
    }
    if !state.namespaces_mounted
        && let Err(e) = unmount_namespaces()
    {
        failed.push(e.to_string());
    }
    while guard("-C").succeeds() {
        if guard("-D").done().is_err() {
            failed.push(format!("iptables rule for {BRIDGE}"));
            break;
        }
    }
    let mut attempt = |needed: bool, command: Run| {
        if needed && let Err(e) = command.done() {
            failed.push(e.to_string());
        }
    };
    for range in [SERVICE_RANGE, POD_RANGE] {
        attempt(has_blackhole(range), ip(&format!("route delete blackhole {range}")));
    }
    // Its routes to the nodes' pods go with it.
    attempt(link_exists(BRIDGE), ip(&format!("link delete {BRIDGE}")));
    for (name, former) in &state.settings {
        if let Err(e) = write(&Path::new("/proc/sys").join(name), former) {
            failed.push(e.to_string());
        }
    }
    failed
}
