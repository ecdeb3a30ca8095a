//! Tests of the whole on the local cluster, run by a small runner of our own: each by name, with its time and its own
//! namespace, and with the state of the cluster kept where one fails.

mod clients;
mod installs;
mod members;
mod refusals;
mod runner;

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::Value;

use crate::error::{Error, Result};
use crate::install;
use crate::kube::Kube;
use crate::packages::{self, Need};
use crate::resp::{self, Contents};
use crate::store::Store;
use crate::ui::Ui;

pub use runner::Counts;

/// What a test gets.
pub struct Context {
    /// The cluster.
    pub kube: Kube,
    /// A namespace of its own.
    pub namespace: String,
    /// Identifies the images under test.
    pub inputs: String,
    /// Numbers the records that the test writes, so that none is written twice.
    written: AtomicUsize,
}

/// One test.
pub struct Test {
    /// Says what it proves.
    pub name: &'static str,
    /// Whether it changes the operator or the cluster, so that no other may run beside it.
    pub alone: bool,
    /// The test.
    pub run: fn(&Context) -> Result<()>,
}

/// All tests, in the order that they run in.
const TESTS: &[Test] = &[
    Test { name: "helm_installs_an_operator_that_serves_a_store", alone: true, run: installs::by_helm },
    Test { name: "bad_specifications_are_refused_with_advice", alone: false, run: refusals::bad_specifications },
    Test { name: "every_field_is_explained_and_columns_are_printed", alone: false, run: refusals::explained },
    Test { name: "redis_cli_and_redis_py_work_unmodified", alone: false, run: clients::unmodified },
    Test { name: "a_store_scales_from_1_to_3_to_2_without_loss", alone: false, run: members::scale },
    Test { name: "a_deleted_replica_pod_comes_back_with_its_volume", alone: false, run: members::replica_pod_deleted },
    Test { name: "a_deleted_primary_pod_comes_back_at_a_new_epoch", alone: false, run: members::primary_pod_deleted },
    Test { name: "a_lost_volume_is_rebuilt_with_equal_contents", alone: false, run: members::volume_lost },
    Test { name: "an_operator_restarted_in_the_middle_carries_on", alone: true, run: installs::operator_restarted },
    Test { name: "helm_uninstall_keeps_crds_pods_and_data", alone: true, run: installs::uninstall_keeps },
    Test { name: "plain_manifests_install_an_operator_that_serves_a_store", alone: true, run: installs::by_manifests },
];

/// Runs the tests whose names contain `filter` on the local cluster.
pub fn run(ui: &Ui, filter: Option<&str>) -> Result<Counts> {
    let chosen: Vec<&Test> = TESTS.iter().filter(|t| filter.is_none_or(|f| t.name.contains(f))).collect();
    if chosen.is_empty() {
        let names: Vec<&str> = TESTS.iter().map(|t| t.name).collect();
        return Err(Error::failed(format!(
            "run e2e tests: no name contains that; there are\n  {}",
            names.join("\n  ")
        )));
    }
    packages::ensure(ui, &[Need::Clients])?;
    let (kube, inputs) = install::local_cluster(ui)?;
    runner::run(ui, &kube, &inputs, &chosen)
}

impl Context {
    fn new(kube: &Kube, namespace: String, inputs: &str) -> Self {
        Self { kube: kube.clone(), namespace, inputs: inputs.to_owned(), written: AtomicUsize::new(0) }
    }

    /// A store of the test's namespace; `create` makes it.
    pub fn store(&self, name: &str) -> Store {
        Store { kube: self.kube.clone(), namespace: self.namespace.clone(), name: name.to_owned() }
    }

    /// Makes a store and waits until it is healthy.
    pub fn healthy_store(&self, name: &str, replicas: u32, spec: Value) -> Result<Store> {
        let store = self.store(name);
        store.create(replicas, spec)?;
        store.await_healthy(replicas as usize)?;
        Ok(store)
    }

    /// Writes `count` new records, over three prefixes, to the primary; adds them to `expected`.
    pub fn write(&self, store: &Store, count: usize, expected: &mut Contents) -> Result<()> {
        let first = self.written.fetch_add(count, Ordering::SeqCst);
        let records: Vec<(Vec<u8>, Vec<u8>)> = (first..first + count)
            .map(|n| (format!("p{}:key/{n}", n % 3).into_bytes(), format!("value {n} {:x<80}", "").into_bytes()))
            .collect();
        let mut client = store.connect(&store.primary()?)?;
        client.write(records.iter().map(|(k, v)| (k.as_slice(), v.as_slice())), |_| {})?;
        expected.extend(records.into_iter().map(|(key, value)| (key, sha2::Digest::finalize(hash(&value)).into())));
        Ok(())
    }
}

fn hash(value: &[u8]) -> sha2::Sha256 {
    let mut hash = <sha2::Sha256 as sha2::Digest>::new();
    sha2::Digest::update(&mut hash, value);
    hash
}

/// Waits until all members are at the primary's position, and compares what each holds with `expected`.
pub fn assert_equal_everywhere(store: &Store, replicas: usize, expected: &Contents) -> Result<()> {
    for member in store.await_equal_positions(replicas)? {
        let found = store.connect(&member.name)?.contents(|_| {})?;
        resp::compare(&member.name, expected, &found)?;
    }
    Ok(())
}

/// Fails with this text unless the condition holds.
pub fn ensure(condition: bool, otherwise: impl FnOnce() -> String) -> Result<()> {
    if condition { Ok(()) } else { Err(Error::Failed(otherwise())) }
}

/// Where the state of the cluster is kept when a test fails.
pub fn failures() -> PathBuf {
    crate::paths::cache().join("failures")
}
