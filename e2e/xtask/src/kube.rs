//! A cluster as its users see it: kubectl with JSON, helm, and port-forwards.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use serde_json::Value;

use crate::cluster::tools::Tools;
use crate::error::{Context, Error, Result};
use crate::exec::{Run, run};
use crate::poll;

/// A port-forward that is not up after this long never will be.
const FORWARD_LIMIT: Duration = Duration::from_secs(20);
const INTERVAL: Duration = Duration::from_millis(300);

/// How to reach one cluster.
#[derive(Clone, Debug)]
pub struct Kube {
    kubectl: PathBuf,
    helm: PathBuf,
    /// The client settings in use.
    pub kubeconfig: PathBuf,
}

impl Kube {
    /// The cluster that `kubeconfig` leads to, with our own kubectl and helm.
    pub fn new(tools: &Tools, kubeconfig: &Path) -> Self {
        Self { kubectl: tools.kubernetes("kubectl"), helm: tools.helm(), kubeconfig: kubeconfig.to_owned() }
    }

    /// kubectl with the words of `text`.
    pub fn kubectl(&self, text: &str) -> Run {
        run(&self.kubectl).arg("--kubeconfig").arg(&self.kubeconfig).words(text)
    }

    /// Starts kubectl to read `path` of the API server for as long as it lasts; what it says is piped.
    pub fn stream(&self, path: &str) -> Result<Child> {
        Command::new(&self.kubectl)
            .arg("--kubeconfig")
            .arg(&self.kubeconfig)
            .args(["get", "--raw", path])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .doing(|| format!("start kubectl get --raw {path}"))
    }

    /// helm with the words of `text`.
    pub fn helm(&self, text: &str) -> Run {
        run(&self.helm).env("KUBECONFIG", &self.kubeconfig).words(text)
    }

    /// An object, or a list of them.
    pub fn json(&self, text: &str) -> Result<Value> {
        let answer = self.kubectl(text).words("--output json").text()?;
        serde_json::from_str(&answer).map_err(|e| Error::parse(format!("read the answer to kubectl {text}"), e))
    }

    /// An object, or `None` where there is none of that name.
    pub fn find(&self, text: &str) -> Result<Option<Value>> {
        let answer = self.kubectl(text).words("--ignore-not-found --output json").text()?;
        if answer.trim().is_empty() {
            return Ok(None);
        }
        serde_json::from_str(&answer)
            .map(Some)
            .map_err(|e| Error::parse(format!("read the answer to kubectl {text}"), e))
    }

    /// Applies documents.
    pub fn apply(&self, yaml: &str) -> Result<()> {
        self.kubectl("apply -f -").input(yaml).done()
    }

    /// Waits until a Deployment's wish is reality.
    pub fn rolled_out(&self, namespace: &str, deployment: &str, limit: Duration) -> Result<()> {
        self.kubectl(&format!("rollout status deployment/{deployment} -n {namespace} --timeout={}s", limit.as_secs()))
            .done()
    }

    /// Reads `what` until `accept` yields a value; its `Err` says what is still missing.
    pub fn until<T>(
        &self,
        what: &str,
        limit: Duration,
        query: &str,
        mut accept: impl FnMut(&Value) -> std::result::Result<T, String>,
    ) -> Result<T> {
        poll::until(what, limit, INTERVAL, || {
            let value = self.json(query).map_err(|e| e.to_string())?;
            accept(&value)
        })
    }

    /// Forwards a free local port to a pod's or service's.
    pub fn forward(&self, namespace: &str, target: &str, port: u16) -> Result<Forward> {
        // A pod that just became ready may refuse the first attempt.
        poll::until(&format!("a port-forward to {target}"), FORWARD_LIMIT, INTERVAL, || {
            Forward::start(self, namespace, target, port).map_err(|e| e.to_string())
        })
    }
}

/// A running port-forward; ends with the value.
#[derive(Debug)]
pub struct Forward {
    child: Child,
    /// The local end, on 127.0.0.1.
    pub port: u16,
}

impl Forward {
    fn start(kube: &Kube, namespace: &str, target: &str, port: u16) -> Result<Self> {
        let action = || format!("forward to {target} in {namespace}");
        let child = Command::new(&kube.kubectl)
            .arg("--kubeconfig")
            .arg(&kube.kubeconfig)
            .args(["port-forward", "--address", "127.0.0.1", "-n", namespace, target, &format!(":{port}")])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .doing(action)?;
        let mut forward = Self { child, port: 0 };
        let out = forward.child.stdout.take().ok_or_else(|| Error::failed(action()))?;
        let (sender, receiver) = mpsc::channel();
        // Reads to the end, so that the program never blocks on what it prints for each connection.
        std::thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(std::io::Result::ok) {
                let local = line.strip_prefix("Forwarding from 127.0.0.1:").and_then(|rest| rest.split(' ').next());
                if let Some(local) = local.and_then(|p| p.parse::<u16>().ok()) {
                    // Only the first is waited for.
                    let _ = sender.send(local);
                }
            }
        });
        forward.port = receiver
            .recv_timeout(FORWARD_LIMIT)
            .map_err(|_| Error::failed(format!("{}: it did not start", action())))?;
        Ok(forward)
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        // It has ended already if its target did.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// The text at a JSON pointer, or "".
pub fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or("")
}

/// The members of a JSON array at a pointer; none if it is absent.
pub fn items<'a>(value: &'a Value, pointer: &str) -> &'a [Value] {
    value.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}
