//! Waiting for the nodes, and mending one whose kubelet or runtime ended or never reported itself ready.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::layout::{Layout, Node, nodes};
use super::tools::Tools;
use super::{node, process};
use crate::error::{Error, Result};
use crate::kube::{Kube, items, text};
use crate::poll;
use crate::ui::Ui;

const LIMIT: Duration = Duration::from_secs(240);
/// A node is ready seconds after its kubelet was started; one that is not after this long is started anew.
const PATIENCE: Duration = Duration::from_secs(45);
/// How often each node is started anew before the wait is left to run out.
const RESTARTS: u32 = 3;

/// One node while it is waited for.
struct Awaited {
    node: Node,
    since: Instant,
    restarts: u32,
}

/// Waits until all nodes are ready. A node that stays away is started anew a few times, each said with its log's end; the
/// error at last says what each missing node's condition and log were.
pub fn await_nodes(ui: &Ui, kube: &Kube, layout: &Layout, tools: &Tools, images: &[PathBuf], count: u8) -> Result<()> {
    let mut awaited: Vec<Awaited> =
        nodes(count).map(|node| Awaited { node, since: Instant::now(), restarts: 0 }).collect();
    let outcome = poll::until("all nodes to be ready", LIMIT, Duration::from_millis(300), || {
        let list = kube.json("get nodes --request-timeout=5s").map_err(|e| e.to_string())?;
        let ready = ready_nodes(&list);
        let missing = awaited.iter_mut().filter(|a| !ready.contains(&a.node.name()));
        let mut names = Vec::new();
        for one in missing {
            names.push(one.node.name());
            mend(ui, layout, tools, images, &list, one);
        }
        poll::ready(names.is_empty(), || format!("not ready: {}", names.join(" ")))
    });
    outcome.map_err(|e| {
        let list = kube.json("get nodes --request-timeout=5s").unwrap_or_default();
        let ready = ready_nodes(&list);
        let why: String = awaited
            .iter()
            .filter(|a| !ready.contains(&a.node.name()))
            .map(|a| format!("\n  {}", explain(layout, &list, a.node)))
            .collect();
        Error::failed(format!("{e}{why}"))
    })
}

/// Starts what ended, and anew what runs without effect.
fn mend(ui: &Ui, layout: &Layout, tools: &Tools, images: &[PathBuf], list: &Value, one: &mut Awaited) {
    let name = one.node.name();
    let programs = ["containerd", "kubelet"].map(|program| format!("{name}-{program}"));
    let ended = programs.iter().any(|program| process::find(layout, program).is_none());
    if one.restarts >= RESTARTS || !(ended || one.since.elapsed() >= PATIENCE) {
        return;
    }
    one.restarts += 1;
    ui.line(&format!("       {}; starting it anew", explain(layout, list, one.node)));
    let stopped = process::find(layout, &format!("{name}-kubelet")).map_or(Ok(()), process::Recorded::kill);
    // What fails now is tried again, and at last told by the wait that this belongs to.
    if let Err(e) = stopped.and_then(|()| node::ensure(layout, tools, one.node, images)) {
        ui.line(&format!("       {e}"));
    }
    one.since = Instant::now();
}

/// What is known of a node that is not ready, in a few lines.
fn explain(layout: &Layout, list: &Value, node: Node) -> String {
    let name = node.name();
    let condition = items(list, "/items")
        .iter()
        .find(|item| text(item, "/metadata/name") == name)
        .and_then(|item| items(item, "/status/conditions").iter().find(|c| text(c, "/type") == "Ready"))
        .map_or_else(
            || "is not registered".to_owned(),
            |c| format!("is not ready ({}: {})", text(c, "/reason"), text(c, "/message")),
        );
    // The runtime's log tells nothing as long as it runs.
    let runtime = format!("{name}-containerd");
    let ended = process::find(layout, &runtime).is_none().then(|| process::log_tail(&layout.log(&runtime)));
    let runtime = ended.map_or_else(String::new, |tail| format!("; {runtime} ended{tail}"));
    let kubelet = format!("{name}-kubelet");
    let state = if process::find(layout, &kubelet).is_some() { "runs" } else { "ended" };
    format!("{name} {condition}{runtime}; {kubelet} {state}{}", process::log_tail(&layout.log(&kubelet)))
}

/// The names of the nodes of a list that are ready.
pub fn ready_nodes(list: &Value) -> Vec<String> {
    items(list, "/items")
        .iter()
        .filter(|node| {
            items(node, "/status/conditions")
                .iter()
                .any(|c| text(c, "/type") == "Ready" && text(c, "/status") == "True")
        })
        .map(|node| text(node, "/metadata/name").to_owned())
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    #[test]
    fn only_nodes_whose_ready_condition_is_true_count() {
        let node = |name: &str, status: &str| {
            json!({"metadata": {"name": name}, "status": {"conditions": [
                {"type": "DiskPressure", "status": "True"}, {"type": "Ready", "status": status}]}})
        };
        let list = json!({"items": [node("a", "True"), node("b", "False"), {"metadata": {"name": "c"}}]});
        assert_eq!(super::ready_nodes(&list), ["a"]);
    }
}
