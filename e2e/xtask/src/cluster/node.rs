//! One node: a container runtime, a kubelet and a proxy in the node's network namespace, below its own control group.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::containers::{BUSYBOX_IMAGE, ctr, import};
use super::layout::{DNS_ADDRESS, Layout, Node};
use super::process::{self, Daemon};
use super::tools::Tools;
use crate::error::{Result, make_dir, read, write};

/// Where each kind of control group is mounted: one directory of version 2, or one for each controller of version 1.
pub fn cgroup_mounts() -> Result<Vec<PathBuf>> {
    let mounts = read(Path::new("/proc/mounts"))?;
    Ok(mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ');
            let (_, point, kind) = (fields.next()?, fields.next()?, fields.next()?);
            matches!(kind, "cgroup" | "cgroup2").then(|| PathBuf::from(point))
        })
        .collect())
}

fn ensure_cgroups(node: Node) -> Result<()> {
    for mount in cgroup_mounts()? {
        let group = mount.join(node.name());
        // In a mixed set-up version 2 carries no controllers, and the runtimes use version 1 alone.
        if mount.ends_with("unified") {
            continue;
        }
        make_dir(&group)?;
        if mount.join("cgroup.controllers").exists() {
            let all = read(&mount.join("cgroup.controllers"))?;
            let enable: Vec<String> = all.split_whitespace().map(|c| format!("+{c}")).collect();
            write(&mount.join("cgroup.subtree_control"), enable.join(" "))?;
        }
        for file in ["cpuset.cpus", "cpuset.mems"] {
            let own = group.join(file);
            if mount.ends_with("cpuset") && own.exists() && read(&own)?.trim().is_empty() {
                write(&own, read(&mount.join(file))?)?;
            }
        }
    }
    Ok(())
}

/// Starts the node's programs that do not run; images come before the kubelet, which would ask a registry for them.
pub fn ensure(layout: &Layout, tools: &Tools, node: Node, images: &[PathBuf]) -> Result<()> {
    let name = node.name();
    let dir = layout.node(node);
    for sub in ["cni", "kubelet", "pod-logs", "volumes"] {
        make_dir(&dir.join(sub))?;
    }
    ensure_cgroups(node)?;
    write(&dir.join("containerd.toml"), containerd_config(layout, node))?;
    write(&dir.join("cni/10-pods.conflist"), network_config(layout, node))?;
    write(&dir.join("kubelet.yaml"), kubelet_config(layout, node))?;

    let runtime = format!("{name}-containerd");
    let started = Daemon::new(&runtime, "containerd", &format!("--config {}/containerd.toml", dir.display()))
        .in_namespace(node.namespace_file())
        .ensure(layout)?;
    process::await_ready(layout, &runtime, Duration::from_secs(60), || ctr(layout, node).arg("version").succeeds())?;
    if started {
        for archive in images {
            import(layout, node, archive)?;
        }
    }
    let kubelet = format!(
        "--config={dir}/kubelet.yaml --kubeconfig={conf} --root-dir={dir}/kubelet --cert-dir={dir}/kubelet/pki \
         --hostname-override={name} --node-ip={address}",
        dir = dir.display(),
        conf = layout.kubeconfig(&name).display(),
        address = node.address(),
    );
    Daemon::new(format!("{name}-kubelet"), tools.kubernetes("kubelet"), &kubelet)
        .in_namespace(node.namespace_file())
        .ensure(layout)?;
    let proxy = format!(
        "--kubeconfig={} --hostname-override={name} --conntrack-max-per-core=0 --conntrack-tcp-timeout-established=0 \
         --conntrack-tcp-timeout-close-wait=0",
        layout.kubeconfig("proxy").display(),
    );
    Daemon::new(format!("{name}-proxy"), tools.kubernetes("kube-proxy"), &proxy)
        .in_namespace(node.namespace_file())
        .ensure(layout)?;
    Ok(())
}

fn containerd_config(layout: &Layout, node: Node) -> String {
    let dir = layout.node(node);
    let dir = dir.display();
    let socket = layout.socket(node);
    let socket = socket.display();
    // Without CAP_SYS_RESOURCE a sandbox can only be started with its OOM score restricted.
    format!(
        r#"version = 2
root = "{dir}/containerd"
state = "{dir}/state"
[grpc]
  address = "{socket}"
[plugins."io.containerd.internal.v1.opt"]
  path = "{dir}/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{BUSYBOX_IMAGE}"
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{dir}/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
"#
    )
}

fn network_config(layout: &Layout, node: Node) -> String {
    serde_json::json!({
        "cniVersion": "1.0.0",
        "name": format!("parovoz-{}", node.name()),
        "plugins": [{
            "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false, "hairpinMode": true,
            "ipam": {
                "type": "host-local", "dataDir": layout.node(node).join("addresses"),
                "ranges": [[{"subnet": node.pod_subnet()}]], "routes": [{"dst": "0.0.0.0/0"}],
            },
        }],
    })
    .to_string()
}

fn kubelet_config(layout: &Layout, node: Node) -> String {
    let name = node.name();
    let dir = layout.node(node);
    serde_json::json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": node.address(),
        "authentication": {
            "anonymous": {"enabled": false}, "webhook": {"enabled": true}, "x509": {"clientCAFile": layout.pki("ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "clusterDomain": "cluster.local",
        "clusterDNS": [DNS_ADDRESS],
        "containerRuntimeEndpoint": format!("unix://{}", layout.socket(node).display()),
        "failSwapOn": false,
        "failCgroupV1": false,
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": format!("/{name}"),
        "tlsCertFile": layout.pki(&format!("{name}.crt")),
        "tlsPrivateKeyFile": layout.pki(&format!("{name}.key")),
        "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
        "localStorageCapacityIsolation": false,
        // An image that was removed could not be pulled again.
        "imageGCHighThresholdPercent": 100,
        // A kubelet removes the logs of pods that it does not know, so they must not share a directory.
        "podLogsDir": dir.join("pod-logs"),
        // Tests end processes again and again; five minutes between two starts would be their time.
        "featureGates": {"KubeletCrashLoopBackOffMax": true},
        "crashLoopBackOff": {"maxContainerRestartPeriod": "5s"},
        "resolvConf": layout.root.join("resolv.conf"),
    })
    .to_string()
}
