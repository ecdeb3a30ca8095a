//! What faults are made on: the cluster, the stores under test, and the load on each.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::inject::{Armed, Journal, disk, process};
use super::kinds::Mode;
use super::load::Load;
use super::watch::Watch;
use crate::cluster::layout::{Layout, Node, nodes};
use crate::cluster::process::Recorded;
use crate::error::{Error, Result, make_dir};
use crate::generate::NAMESPACE as OPERATOR_NAMESPACE;
use crate::install::DEPLOYMENT;
use crate::kube::{Kube, items, text};
use crate::poll;
use crate::store::{Member, Store, members};
use crate::ui::Ui;

/// Where all stores under test are.
pub const NAMESPACE: &str = "faults";
/// Members of each.
pub const MEMBERS: usize = 3;
const LABEL: &str = "parovoz.dev/faults=true";
const GONE_LIMIT: Duration = Duration::from_secs(120);
/// Of a volume with a file system of its own.
const DISK_MEBIBYTES: u64 = 512;

/// The cluster and what is noted of it.
pub struct Env<'a> {
    /// For progress.
    pub ui: &'a Ui,
    /// How to reach the cluster.
    pub kube: Kube,
    /// Where its processes are.
    pub layout: Layout,
    /// Faults in place.
    pub journal: Arc<Journal>,
    /// Reigns and addresses.
    pub watch: Watch,
    /// How long faults last that would otherwise last minutes.
    pub holds: Holds,
}

/// How long some faults last.
#[derive(Clone, Copy, Debug)]
pub struct Holds {
    /// The API server is away.
    pub api: Duration,
    /// The operator is away.
    pub operator: Duration,
    /// A killed primary must wait for the operator.
    pub waiting: Duration,
    /// A partition that must change nothing.
    pub partition: Duration,
}

/// A store under test.
pub struct Subject {
    /// The store.
    pub store: Store,
    /// Quorum or Async.
    pub mode: Mode,
    /// Mount points of its volumes by node, where they are file systems of their own.
    pub disks: Vec<(Node, PathBuf)>,
    /// Undoes the volumes; last, as pods use them.
    _volumes: Vec<Armed>,
}

/// Mount points by node, and what undoes them.
type Volumes = (Vec<(Node, PathBuf)>, Vec<Armed>);

/// A store with a load on it, about to suffer a fault.
pub struct Target<'a> {
    /// The store.
    pub subject: &'a Subject,
    /// The load.
    pub load: Load,
    /// Who was what before the fault.
    pub before: Before,
    /// Which round of this kind it is, from 0.
    pub round: usize,
    /// What happened when; the first is the fault.
    pub marks: Mutex<Vec<(Instant, String)>>,
    /// Loads on the primary's side of a partition, once they are over.
    pub isolated: Mutex<Vec<super::load::history::History>>,
    /// What a script found wrong.
    pub problems: Mutex<Vec<Problem>>,
    /// What clients see before is meant to be; otherwise they are judged from the fault on.
    pub judged_from: Mutex<Option<Instant>>,
    /// What comes later is no gap of this kind: it is meant to last.
    pub judged_until: Mutex<Option<Instant>>,
}

/// A store as it was before a fault.
#[derive(Clone, Debug)]
pub struct Before {
    /// The primary's pod.
    pub primary: String,
    /// Its node.
    pub node: Node,
    /// The first process of its container.
    pub process: Recorded,
    /// Holds its network.
    pub sandbox: Recorded,
    /// The reign.
    pub epoch: i64,
    /// All members.
    pub members: Vec<Member>,
}

impl Before {
    /// The identity on the primary's volume; empty if the status did not say.
    pub fn data_uuid(&self) -> &str {
        self.members.iter().find(|m| m.name == self.primary).map_or("", |m| m.data_uuid.as_str())
    }
}

/// What is wrong in a round.
#[derive(Clone, Debug)]
pub enum Problem {
    /// Something is lost, untrue, or was done by somebody who must not.
    Broken(String),
    /// Nothing of it, and yet it took too long or changed without need: a busy machine may do that.
    Late(String),
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Broken(what) | Self::Late(what)) = self;
        f.write_str(what)
    }
}

impl Target<'_> {
    /// Notes that this happened now.
    pub fn mark(&self, what: &str) {
        if let Ok(mut marks) = self.marks.lock() {
            marks.push((Instant::now(), what.to_owned()));
        }
    }

    /// Notes that a promise was broken.
    pub fn problem(&self, what: String) {
        self.note(Problem::Broken(what));
    }

    /// Notes what took too long, or changed without need.
    pub fn late(&self, what: String) {
        self.note(Problem::Late(what));
    }

    fn note(&self, problem: Problem) {
        if let Ok(mut problems) = self.problems.lock() {
            problems.push(problem);
        }
    }

    /// What clients see is judged from now on only.
    pub fn judge_from_now(&self) {
        if let Ok(mut from) = self.judged_from.lock() {
            *from = Some(Instant::now());
        }
    }

    /// The gap is looked for up to now only.
    pub fn judge_until_now(&self) {
        if let Ok(mut until) = self.judged_until.lock() {
            *until = Some(Instant::now());
        }
    }

    /// The name of the store.
    pub fn name(&self) -> &str {
        &self.subject.store.name
    }
}

impl Subject {
    /// Who is what in the store now.
    pub fn before(&self, env: &Env<'_>) -> Result<Before> {
        let object = self.store.get()?;
        let (primary, members) = (text(&object, "/status/primary").to_owned(), members(&object));
        let pod = env.kube.json(&format!("get pod {primary} -n {NAMESPACE}"))?;
        let node = process::node(&env.layout, text(&pod, "/spec/nodeName"))?;
        let process = process::of_pod_object(&env.layout, &pod)?;
        let sandbox = process::sandbox_of(&env.layout, node, process)?;
        let epoch = object.pointer("/status/epoch").and_then(Value::as_i64).unwrap_or(0);
        Ok(Before { primary, node, process, sandbox, epoch, members })
    }

    /// The mount point of the volume on a node.
    pub fn disk(&self, node: Node) -> Result<&PathBuf> {
        let found = self.disks.iter().find(|(n, _)| *n == node).map(|(_, mount)| mount);
        found.ok_or_else(|| Error::failed(format!("find the volume of {} on {}: none", self.store.name, node.name())))
    }

    /// Removes it.
    pub fn remove(self) -> Result<()> {
        self.store.remove()?;
        let kubectl = |words: &str| self.store.kube.kubectl(words).done();
        let label = format!("-l parovoz.dev/faults-store={} --ignore-not-found", self.store.name);
        kubectl(&format!("delete pv,storageclass {label} --timeout=60s"))
    }
}

impl Env<'_> {
    /// The number of nodes.
    pub fn count(&self) -> Result<u8> {
        Ok(self.layout.load_state()?.map_or(0, |state| state.nodes))
    }

    /// Removes what an earlier run left, and makes the namespace.
    pub fn clear(&self) -> Result<()> {
        let kubectl = |words: &str| self.kube.kubectl(words).done();
        kubectl(&format!("delete rstore --all -n {NAMESPACE} --ignore-not-found --timeout=60s")).or_else(|e| {
            if self.kube.find("get crd replicatedstores.parovoz.dev")?.is_none() { Ok(()) } else { Err(e) }
        })?;
        kubectl(&format!("delete namespaces -l {LABEL} --ignore-not-found --timeout={}s", GONE_LIMIT.as_secs()))?;
        kubectl(&format!("delete pv,storageclass -l {LABEL} --ignore-not-found --timeout=60s"))?;
        kubectl(&format!("create namespace {NAMESPACE}"))?;
        kubectl(&format!("label namespace {NAMESPACE} {LABEL}"))
    }

    /// Removes the namespace.
    pub fn remove(&self) -> Result<()> {
        self.kube
            .kubectl(&format!("delete namespace {NAMESPACE} --ignore-not-found --timeout={}s", GONE_LIMIT.as_secs()))
            .done()
    }

    /// Makes a store and waits until it is healthy.
    pub fn subject(&self, name: &str, mode: Mode, disks: bool) -> Result<Subject> {
        let store = Store { kube: self.kube.clone(), namespace: NAMESPACE.into(), name: name.to_owned() };
        let (mounts, volumes) = if disks { self.volumes(name)? } else { (Vec::new(), Vec::new()) };
        let replication = match mode {
            Mode::Quorum => json!({"mode": "Quorum", "minSyncReplicas": 1, "durability": "Sync"}),
            Mode::Async => json!({"mode": "Async"}),
        };
        let storage = match disks {
            true => json!({"size": "256Mi", "storageClassName": class(name)}),
            false => json!({"size": "1Gi"}),
        };
        // Faults follow each other faster here than budgets for accidents allow.
        let spec = json!({
            "storage": storage, "replication": replication,
            "failover": {"cooldown": "0s", "maxPerHour": 60},
            "recovery": {"maxAttempts": 100, "window": "300s", "backoff": "1s"},
        });
        let created = store.create(u32::try_from(MEMBERS).unwrap_or(3), spec);
        let healthy = created.and_then(|()| store.await_healthy(MEMBERS));
        let subject = Subject { store, mode, disks: mounts, _volumes: volumes };
        match healthy {
            Ok(_) => Ok(subject),
            Err(e) => Err(match subject.remove() {
                Ok(()) => e,
                Err(left) => Error::failed(format!("{e}; {left}")),
            }),
        }
    }

    /// A volume on each node that is a file system of its own, for one store.
    fn volumes(&self, store: &str) -> Result<Volumes> {
        let dir = self.layout.root.join("faults");
        make_dir(&dir)?;
        let labels = json!({"parovoz.dev/faults": "true", "parovoz.dev/faults-store": store});
        let mut documents = vec![json!({
            "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass",
            "metadata": {"name": class(store), "labels": labels},
            "provisioner": "kubernetes.io/no-provisioner", "volumeBindingMode": "WaitForFirstConsumer",
        })];
        let (mut mounts, mut armed) = (Vec::new(), Vec::new());
        for node in nodes(self.count()?) {
            let (mount, guard) = disk::make(&self.journal, &dir, &format!("{store}-{}", node.name()), DISK_MEBIBYTES)?;
            let path = mount.join("volume");
            make_dir(&path)?;
            crate::exec::run("chmod").arg("0777").arg(&path).done()?;
            documents.push(json!({
                "apiVersion": "v1", "kind": "PersistentVolume",
                "metadata": {"name": format!("faults-{store}-{}", node.name()), "labels": labels},
                "spec": {
                    "capacity": {"storage": "256Mi"}, "accessModes": ["ReadWriteOnce"], "storageClassName": class(store),
                    "persistentVolumeReclaimPolicy": "Retain", "local": {"path": path},
                    "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
                        {"key": "kubernetes.io/hostname", "operator": "In", "values": [node.name()]},
                    ]}]}},
                },
            }));
            mounts.push((node, mount));
            armed.push(guard);
        }
        let text: Vec<String> = documents.iter().map(Value::to_string).collect();
        self.kube.apply(&text.join("\n---\n"))?;
        Ok((mounts, armed))
    }

    /// The operator's pods.
    pub fn operators(&self) -> Result<Vec<Value>> {
        let list =
            self.kube.json(&format!("get pods -n {OPERATOR_NAMESPACE} -l app.kubernetes.io/component=operator"))?;
        Ok(items(&list, "/items").to_vec())
    }

    /// The pod whose process holds the operator's Lease.
    pub fn leader(&self) -> Result<Value> {
        let holder = self.holder()?;
        let found = self.operators()?.into_iter().find(|pod| {
            let name = text(pod, "/metadata/name");
            !name.is_empty() && holder.starts_with(name)
        });
        found.ok_or_else(|| Error::failed(format!("find the leading operator: {holder:?} is none of its pods")))
    }

    /// Who holds the operator's Lease.
    pub fn holder(&self) -> Result<String> {
        let lease = self.kube.json(&format!("get lease {DEPLOYMENT} -n {OPERATOR_NAMESPACE}"))?;
        Ok(text(&lease, "/spec/holderIdentity").to_owned())
    }

    /// Waits until some operator pod that runs holds the Lease.
    pub fn await_leader(&self) -> Result<()> {
        poll::until("an operator to lead", Duration::from_secs(90), Duration::from_millis(300), || {
            let leader = self.leader().map_err(|e| e.to_string())?;
            process::of_pod_object(&self.layout, &leader).map(drop).map_err(|e| e.to_string())
        })
    }

    /// The arguments of kubectl that scale the operator.
    pub fn scale_operator(&self, replicas: u8) -> Vec<String> {
        let kubectl = crate::cluster::tools::Tools::locate().kubernetes("kubectl");
        let words = format!(
            "{} --kubeconfig {} scale deployment {DEPLOYMENT} -n {OPERATOR_NAMESPACE} --replicas={replicas}",
            kubectl.display(),
            self.kube.kubeconfig.display()
        );
        words.split_whitespace().map(str::to_owned).collect()
    }
}

fn class(store: &str) -> String {
    format!("faults-{store}")
}
