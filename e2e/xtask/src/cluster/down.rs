//! Taking the cluster down: nothing that it started, mounted, made or linked stays.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::layout::{Layout, Node, State, nodes};
use super::net;
use super::node::cgroup_mounts;
use super::process::{self, Recorded};
use crate::error::{Context, Error, Result, read};
use crate::exec::run;
use crate::poll;
use crate::ui::{Step, Ui};

/// Where network plug-ins note what they made for each container, whatever their settings.
const CNI_RESULTS: &str = "/var/lib/cni/results";

/// Removes the cluster. Without one it only checks that nothing is left.
pub fn down(ui: &Ui, layout: &Layout) -> Result<()> {
    if let Some(state) = layout.load_state()? {
        ui.step("end the cluster's processes", |step| end_processes(step, layout, &state))?;
        ui.step("remove mounts, control groups and the network", |step| {
            step.note("mounts");
            unmount(layout)?;
            step.note("control groups");
            remove_cgroups(&state)?;
            step.note("network");
            let failed = net::remove(&state);
            if !failed.is_empty() {
                return Err(Error::failed(format!("remove the network: {}", failed.join("; "))));
            }
            remove_traces(layout, &state)?;
            std::fs::remove_dir_all(&layout.root).doing(|| format!("remove {}", layout.root.display()))
        })?;
    }
    let left = leftovers(layout);
    if left.is_empty() { Ok(()) } else { Err(Error::failed(format!("left behind: {}", left.join("; ")))) }
}

fn end_processes(step: &Step, layout: &Layout, state: &State) -> Result<()> {
    // Kubelets first: they would start again what ends. The runtimes of the nodes come last of the recorded ones.
    let (runtimes, others): (Vec<_>, Vec<_>) =
        process::names(layout).into_iter().partition(|n| n.ends_with("-containerd"));
    let (kubelets, others): (Vec<_>, Vec<_>) = others.into_iter().partition(|n| n.ends_with("-kubelet"));
    for name in kubelets.iter().chain(&others).chain(&runtimes) {
        step.note(name);
        if let Some(found) = process::find(layout, name) {
            found.kill()?;
        }
    }
    step.note("containers");
    for group in all_groups(state)? {
        for recorded in members(&group) {
            recorded.kill()?;
        }
    }
    step.note("containers' supervisors");
    for shim in shims(layout) {
        shim.kill()?;
    }
    Ok(())
}

/// The supervisors of our containers, known by the socket of ours that they were started with.
fn shims(layout: &Layout) -> Vec<Recorded> {
    let prefix = layout.root.join("node");
    let prefix = prefix.as_os_str().as_encoded_bytes();
    pids()
        .filter(|pid| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let mut args = line.split(|b| *b == 0);
            args.next().is_some_and(|program| program.ends_with(b"containerd-shim-runc-v2"))
                && args.any(|a| a.starts_with(prefix))
        })
        .filter_map(Recorded::of)
        .collect()
}

fn pids() -> impl Iterator<Item = i32> {
    std::fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(|e| e.file_name().to_str()?.parse().ok())
}

fn all_groups(state: &State) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for mount in cgroup_mounts()? {
        for node in nodes(state.nodes) {
            collect(&mount.join(node.name()), &mut found);
        }
    }
    Ok(found)
}

/// The group and all below it, the innermost first.
fn collect(group: &Path, found: &mut Vec<PathBuf>) {
    let Ok(entries) = std::fs::read_dir(group) else { return };
    for entry in entries.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir())) {
        collect(&entry.path(), found);
    }
    found.push(group.to_owned());
}

fn members(group: &Path) -> Vec<Recorded> {
    let text = read(&group.join("cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|line| Recorded::of(line.parse().ok()?)).collect()
}

fn remove_cgroups(state: &State) -> Result<()> {
    // A group can only be removed a moment after its last process ended.
    poll::until("the end of the control groups", Duration::from_secs(30), Duration::from_millis(50), || {
        let groups = all_groups(state).map_err(|e| e.to_string())?;
        let left: Vec<_> =
            groups.iter().filter(|g| std::fs::remove_dir(g).is_err()).map(|g| g.display().to_string()).collect();
        poll::ready(left.is_empty(), || left.join(" "))
    })
}

fn mounts(layout: &Layout) -> Vec<PathBuf> {
    let text = read(Path::new("/proc/mounts")).unwrap_or_default();
    let mut found: Vec<PathBuf> = text
        .lines()
        .filter_map(|line| line.split(' ').nth(1))
        .map(|point| PathBuf::from(point.replace("\\040", " ")))
        .filter(|point| point.starts_with(&layout.root))
        .collect();
    found.sort();
    found.reverse();
    found
}

fn unmount(layout: &Layout) -> Result<()> {
    for point in mounts(layout) {
        run("umount").arg("--lazy").arg(&point).done()?;
    }
    Ok(())
}

/// What the nodes' programs keep at fixed places, outside the root.
fn remove_traces(layout: &Layout, state: &State) -> Result<()> {
    let remove = |file: PathBuf| std::fs::remove_file(&file).doing(|| format!("remove {}", file.display()));
    let entries = |dir: &str| std::fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path());
    for node in nodes(state.nodes) {
        let network = format!("parovoz-{}-", node.name());
        for file in entries(CNI_RESULTS) {
            let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let Some(container) = name.strip_prefix(&network).and_then(|rest| rest.strip_suffix("-eth0")) else {
                continue;
            };
            let loopback = Path::new(CNI_RESULTS).join(format!("cni-loopback-{container}-lo"));
            if loopback.exists() {
                remove(loopback)?;
            }
            remove(file)?;
        }
    }
    for file in entries("/var/log/containers") {
        if std::fs::read_link(&file).is_ok_and(|target| target.starts_with(&layout.root)) {
            remove(file)?;
        }
    }
    Ok(())
}

/// Everything of the cluster that is still on the machine, in words; empty once it is down.
pub fn leftovers(layout: &Layout) -> Vec<String> {
    let mut left: Vec<String> = process::names(layout)
        .iter()
        .filter_map(|name| process::find(layout, name).map(|p| format!("process {} ({name})", p.pid())))
        .collect();
    left.extend(shims(layout).iter().map(|p| format!("process {} (container supervisor)", p.pid())));
    left.extend(mounts(layout).iter().map(|m| format!("mount {}", m.display())));
    left.extend(net::present());
    for mount in cgroup_mounts().unwrap_or_default() {
        for node in (1..=super::layout::MAX_NODES).map(Node) {
            let group = mount.join(node.name());
            if group.exists() {
                left.push(format!("control group {}", group.display()));
            }
        }
    }
    if layout.root.exists() {
        left.push(format!("directory {}", layout.root.display()));
    }
    left
}
