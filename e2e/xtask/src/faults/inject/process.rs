//! Processes of pods: found by their container's id, ended, stopped and continued.

use std::path::Path;
use std::sync::Arc;

use rustix::process::Signal;
use serde_json::Value;

use super::{Armed, Journal, Undo};
use crate::cluster::containers::ctr;
use crate::cluster::layout::{Layout, Node, nodes};
use crate::cluster::process::Recorded;
use crate::error::{Error, Result};
use crate::kube::{Kube, items, text};

/// The node of that name.
pub fn node(layout: &Layout, name: &str) -> Result<Node> {
    let count = layout.load_state()?.map_or(0, |state| state.nodes);
    nodes(count).find(|n| n.name() == name).ok_or_else(|| Error::failed(format!("find node {name:?}: no such node")))
}

/// The first process of a pod's only container, by the container's id.
pub fn of_pod(kube: &Kube, layout: &Layout, namespace: &str, pod: &str) -> Result<Recorded> {
    of_pod_object(layout, &kube.json(&format!("get pod {pod} -n {namespace}"))?)
}

/// The same for a pod that was read already.
pub fn of_pod_object(layout: &Layout, pod: &Value) -> Result<Recorded> {
    let name = text(pod, "/metadata/name");
    let id = items(pod, "/status/containerStatuses").first().map_or("", |c| text(c, "/containerID"));
    let id = id.strip_prefix("containerd://").filter(|id| id.len() >= 32);
    let id = id.ok_or_else(|| Error::failed(format!("find the process of {name}: it has no container")))?;
    of_container(layout, node(layout, text(pod, "/spec/nodeName"))?, id)
}

/// The process that holds a pod's network as long as the pod is there, whatever becomes of its container.
pub fn sandbox_of(layout: &Layout, node: Node, process: Recorded) -> Result<Recorded> {
    let network = |pid: i32| std::fs::read_link(format!("/proc/{pid}/ns/net")).ok();
    let wanted = network(process.pid());
    let other = |pid: &i32| *pid != process.pid() && wanted.is_some() && network(*pid) == wanted;
    let found = tasks(layout, node)?.into_iter().map(|(_, pid)| pid).find(other).and_then(Recorded::of);
    found.ok_or_else(|| Error::failed(format!("find the sandbox of process {}: it has ended", process.pid())))
}

/// The containers that run on a node, by id, with the first process of each.
fn tasks(layout: &Layout, node: Node) -> Result<Vec<(String, i32)>> {
    let list = ctr(layout, node).words("tasks ls").text()?;
    let task = |line: &str| {
        let mut fields = line.split_whitespace();
        Some((fields.next()?.to_owned(), fields.next()?.parse().ok()?))
    };
    Ok(list.lines().filter_map(task).collect())
}

fn of_container(layout: &Layout, node: Node, id: &str) -> Result<Recorded> {
    let pid = tasks(layout, node)?.into_iter().find(|(other, _)| other == id).map(|(_, pid)| pid);
    let process = pid.and_then(Recorded::of);
    let process = process.ok_or_else(|| Error::failed(format!("find the process of container {id}: it has ended")))?;
    // An id could have been given away between the two looks; the control group names the container.
    let groups = std::fs::read_to_string(Path::new("/proc").join(process.pid().to_string()).join("cgroup"));
    if groups.is_ok_and(|text| text.contains(id)) {
        return Ok(process);
    }
    Err(Error::failed(format!("find the process of container {id}: process {} is another", process.pid())))
}

/// Ends a process as a crash would. One that hangs in its disk ends later; one that has ended already is an error.
pub fn kill(process: Recorded) -> Result<()> {
    process.signal(Signal::KILL)
}

/// Stops a process as a suspended machine would.
pub fn stop(journal: &Arc<Journal>, process: Recorded) -> Result<Armed> {
    let armed = journal.arm(Undo::Continue(process))?;
    process.signal(Signal::STOP)?;
    Ok(armed)
}
