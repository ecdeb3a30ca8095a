//! The control plane: etcd, API server, controller manager and scheduler in the root namespace, on local addresses.

use std::time::Duration;

use super::layout::{BRIDGE_ADDRESS, Layout, SERVICE_RANGE};
use super::process::{self, Daemon};
use super::tools::Tools;
use crate::error::{Result, write};
use crate::exec::run;

/// Starts what does not run and waits until the API server is ready.
pub fn ensure(layout: &Layout, tools: &Tools) -> Result<()> {
    // Pods that ask for the machine's resolver get one that answers nothing.
    write(&layout.root.join("resolv.conf"), "nameserver 127.0.0.1\n")?;
    let root = layout.root.display();
    let etcd = format!(
        "--data-dir {root}/etcd --unsafe-no-fsync --listen-client-urls http://127.0.0.1:2379 \
         --advertise-client-urls http://127.0.0.1:2379 --listen-peer-urls http://127.0.0.1:2380 --log-level warn"
    );
    Daemon::new("etcd", tools.etcd(), &etcd).ensure(layout)?;
    Daemon::new("apiserver", tools.kubernetes("kube-apiserver"), &apiserver_arguments(layout)).ensure(layout)?;
    process::await_ready(layout, "apiserver", Duration::from_secs(120), || {
        run(tools.kubernetes("kubectl"))
            .arg("--kubeconfig")
            .arg(layout.kubeconfig("admin"))
            .words("get --raw /readyz --request-timeout=5s")
            .succeeds()
    })?;
    let manager = format!(
        "--kubeconfig={root}/controller-manager.conf --root-ca-file={root}/pki/ca.crt --cluster-signing-cert-file={root}/pki/ca.crt \
         --cluster-signing-key-file={root}/pki/ca.key --service-account-private-key-file={root}/pki/sa.key \
         --use-service-account-credentials --leader-elect=false --allocate-node-cidrs=false --bind-address=127.0.0.1"
    );
    Daemon::new("controller-manager", tools.kubernetes("kube-controller-manager"), &manager).ensure(layout)?;
    let scheduler = format!("--kubeconfig={root}/scheduler.conf --leader-elect=false --bind-address=127.0.0.1");
    Daemon::new("scheduler", tools.kubernetes("kube-scheduler"), &scheduler).ensure(layout)?;
    Ok(())
}

fn apiserver_arguments(layout: &Layout) -> String {
    let pki = layout.root.join("pki");
    let pki = pki.display();
    format!(
        "--bind-address={BRIDGE_ADDRESS} --advertise-address={BRIDGE_ADDRESS} --etcd-servers=http://127.0.0.1:2379 \
         --service-cluster-ip-range={SERVICE_RANGE} --client-ca-file={pki}/ca.crt --tls-cert-file={pki}/apiserver.crt \
         --tls-private-key-file={pki}/apiserver.key --service-account-key-file={pki}/sa.pub \
         --service-account-signing-key-file={pki}/sa.key --service-account-issuer=https://kubernetes.default.svc \
         --authorization-mode=Node,RBAC --allow-privileged --endpoint-reconciler-type=lease \
         --kubelet-preferred-address-types=InternalIP --kubelet-client-certificate={pki}/admin.crt \
         --kubelet-client-key={pki}/admin.key --kubelet-certificate-authority={pki}/ca.crt"
    )
}
