//! What there is of the cluster, for people and, as JSON, for programs.

use serde_json::{Value, json};

use super::layout::{Layout, nodes};
use super::process;
use super::readiness::ready_nodes;
use crate::error::{Error, Result};
use crate::kube::{Kube, items, text};

/// Prints the state; an error if the cluster is not wholly up.
pub fn print(layout: &Layout, kube: &Kube, as_json: bool) -> Result<()> {
    let Some(state) = layout.load_state()? else {
        if as_json {
            println!("{}", json!({"up": false}));
        }
        return Err(Error::failed("cluster: down (start it with `cargo xtask cluster up`)"));
    };
    let mut expected: Vec<String> =
        ["etcd", "apiserver", "controller-manager", "scheduler"].map(str::to_owned).to_vec();
    for node in nodes(state.nodes) {
        expected.extend(["containerd", "kubelet", "proxy"].map(|part| format!("{}-{part}", node.name())));
    }
    let processes: Vec<(String, Option<i32>)> = expected
        .into_iter()
        .map(|name| {
            let pid = process::find(layout, &name).map(process::Recorded::pid);
            (name, pid)
        })
        .collect();
    let ready = kube.json("get nodes --request-timeout=5s").map(|list| ready_nodes(&list)).unwrap_or_default();
    let pods = kube.json("get pods -A --request-timeout=5s").unwrap_or(Value::Null);
    let waiting: Vec<String> = items(&pods, "/items")
        .iter()
        .filter(|p| !matches!(text(p, "/status/phase"), "Running" | "Succeeded"))
        .map(|p| {
            format!("{}/{} {}", text(p, "/metadata/namespace"), text(p, "/metadata/name"), text(p, "/status/phase"))
        })
        .collect();
    let dead: Vec<&str> = processes.iter().filter(|(_, pid)| pid.is_none()).map(|(name, _)| name.as_str()).collect();
    let up = dead.is_empty() && ready.len() >= usize::from(state.nodes);
    if as_json {
        let processes: serde_json::Map<String, Value> =
            processes.iter().map(|(n, pid)| (n.clone(), json!(pid))).collect();
        println!(
            "{}",
            json!({
                "up": up, "nodes": state.nodes, "ready": ready, "processes": processes, "podsNotRunning": waiting,
                "kubeconfig": layout.kubeconfig("admin"),
            })
        );
    } else {
        println!("nodes ready:       {} of {}: {}", ready.len(), state.nodes, ready.join(" "));
        println!("processes running: {} of {}", processes.len() - dead.len(), processes.len());
        for name in &dead {
            println!("  not running: {name} (log: {})", layout.log(name).display());
        }
        println!("pods:              {}, {} not running", items(&pods, "/items").len(), waiting.len());
        for pod in &waiting {
            println!("  {pod}");
        }
        println!("export KUBECONFIG={}", layout.kubeconfig("admin").display());
    }
    if up { Ok(()) } else { Err(Error::failed("cluster: incomplete (`cargo xtask cluster up` repairs it)")) }
}
