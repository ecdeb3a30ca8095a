//! What runs in the cluster for every user of it: the name server and the volume provisioner.

use std::time::Duration;

use serde_json::json;

use super::containers::{BUSYBOX_IMAGE, coredns_image, provisioner_image};
use super::layout::{DNS_ADDRESS, Layout, STORAGE_CLASS, nodes};
use crate::error::Result;
use crate::kube::Kube;

const LIMIT: Duration = Duration::from_secs(150);

/// Installs both, or what changed of them.
pub fn ensure(kube: &Kube, layout: &Layout, count: u8) -> Result<()> {
    let coredns =
        include_str!("manifests/coredns.yaml").replace("@COREDNS@", &coredns_image()).replace("@DNS@", DNS_ADDRESS);
    kube.apply(&coredns)?;
    let paths: Vec<_> = nodes(count).map(|n| json!({"node": n.name(), "paths": [layout.volumes(n)]})).collect();
    let config = json!({"nodePathMap": paths}).to_string();
    let volumes = include_str!("manifests/volumes.yaml")
        .replace("@CLASS@", STORAGE_CLASS)
        .replace("@CONFIG@", &config)
        .replace("@HELPER@", BUSYBOX_IMAGE)
        .replace("@PROVISIONER@", &provisioner_image());
    kube.apply(&volumes)
}

/// Waits until both serve.
pub fn await_ready(kube: &Kube) -> Result<()> {
    kube.rolled_out("kube-system", "coredns", LIMIT)?;
    kube.rolled_out("local-volumes", "provisioner", LIMIT)
}
