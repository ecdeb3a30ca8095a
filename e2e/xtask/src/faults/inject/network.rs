//! Nodes without a cable, pods that don't hear each other, and sockets inside the cluster's network.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::{Armed, Journal, Undo};
use crate::cluster::layout::Node;
use crate::cluster::process::Recorded;
use crate::error::{Context, Result};
use crate::exec::{Run, run};

/// From now on this thread's sockets belong to a node's network.
pub fn enter(node: Node) -> Result<()> {
    let file = node.namespace_file();
    let action = || format!("enter the network of {}", node.name());
    let open = File::open(&file).doing(action)?;
    move_into_link_name_space(open.as_fd(), Some(LinkNameSpaceType::Network)).doing(action)
}

/// Unplugs a node's cable: what runs there goes on, unheard.
pub fn unplug(journal: &Arc<Journal>, node: Node) -> Result<Armed> {
    let armed = journal.arm(Undo::LinkUp(node.link()))?;
    run("ip").words(&format!("link set {} down", node.link())).done()?;
    Ok(armed)
}

/// Drops packets by these rules (a chain and a match each, such as `INPUT -s 10.88.1.4`) in the network namespace of a
/// process.
pub fn drop_packets(journal: &Arc<Journal>, of: Recorded, rules: Vec<String>) -> Result<Armed> {
    let armed = journal.arm(Undo::Rules { of, rules: rules.clone() })?;
    for rule in &rules {
        iptables(of, &format!("-I {rule} -j DROP")).done()?;
    }
    Ok(armed)
}

/// Rules that part a pod from these addresses, in both directions.
pub fn from_addresses(addresses: &[String]) -> Vec<String> {
    addresses.iter().flat_map(|a| [format!("INPUT -s {a}"), format!("OUTPUT -d {a}")]).collect()
}

/// Rules that close a port of a pod.
pub fn from_port(port: u16) -> Vec<String> {
    vec![format!("INPUT -p tcp --dport {port}"), format!("OUTPUT -p tcp --sport {port}")]
}

/// Takes rules back. They go by themselves with the pod.
pub fn remove_rules(of: Recorded, rules: &[String]) -> Result<()> {
    for rule in rules {
        while of.runs() && iptables(of, &format!("-C {rule} -j DROP")).succeeds() {
            iptables(of, &format!("-D {rule} -j DROP")).done()?;
        }
    }
    Ok(())
}

fn iptables(of: Recorded, words: &str) -> Run {
    let namespace = Path::new("/proc").join(of.pid().to_string()).join("ns/net");
    run("nsenter").arg(format!("--net={}", namespace.display())).words("iptables -w 5").words(words)
}
