//! What the API server refuses, and what it explains.

use serde_json::{Value, json};

use super::{Context, ensure};
use crate::error::Result;
use crate::kube::items;
use crate::store::Store;

/// Applies without storing; the answer of the API server if it refuses.
fn refusal(store: &Store, spec: Value) -> Result<String> {
    let output = store.kube.kubectl("apply --dry-run=server -f -").input(store.document(spec).to_string()).output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    Ok(if output.status.success() { "accepted".to_owned() } else { said })
}

fn expect(store: &Store, spec: Value, message: &str) -> Result<()> {
    let shown = spec.to_string();
    let answer = refusal(store, spec)?;
    ensure(answer.contains(message), || format!("{shown}: wanted a refusal that says {message:?}, got: {answer}"))
}

/// Every contradiction is refused before anything runs, with the advice that helps.
pub fn bad_specifications(context: &Context) -> Result<()> {
    let store = context.store("cache");
    let with = |field: &str, value: Value| {
        let mut spec = json!({"replicas": 3, "storage": {"size": "1Gi"}});
        spec[field] = value;
        spec
    };
    ensure(refusal(&store, json!({"storage": {"size": "1Gi"}}))? == "accepted", || {
        "the smallest store is refused".into()
    })?;
    expect(&store, json!({"replicas": 3}), "spec.storage: Required value")?;
    expect(&store, with("replicas", json!(0)), "should be greater than or equal to 1")?;
    expect(&store, with("replicaz", json!(3)), "unknown field \"spec.replicaz\"")?;
    expect(&store, with("replication", json!({"mode": "Quorum"})), "set replication.minSyncReplicas to 1 or more")?;
    expect(&store, with("replication", json!({"mode": "Quorum", "minSyncReplicas": 3})), "must be below replicas")?;
    let unsynced = json!({"mode": "Quorum", "minSyncReplicas": 1, "durability": "Os"});
    expect(&store, with("replication", unsynced), "set replication.durability to Sync")?;
    let window = json!({"maxAttempts": 5, "window": "60s", "backoff": "15s"});
    expect(&store, with("recovery", window), "recovery.window must be longer")?;
    expect(&store, with("replication", json!({"walRetention": {"maxSize": "2Gi"}})), "must be below storage.size")?;
    let long = context.store(&"a".repeat(41));
    expect(&long, with("replicas", json!(1)), "at most 40 characters")?;

    // What may not change needs a store that exists; a paused one makes no pods.
    store.create(1, json!({"paused": true, "storage": {"size": "2Gi"}}))?;
    let smaller = json!({"replicas": 1, "paused": true, "storage": {"size": "1Gi"}});
    expect(&store, smaller, "storage.size cannot shrink")?;
    let class = json!({"replicas": 1, "paused": true, "storage": {"size": "2Gi", "storageClassName": "other"}});
    expect(&store, class, "storageClassName cannot change")
}

/// `kubectl explain` has a text for every setting, and `kubectl get` prints the promised columns.
pub fn explained(context: &Context) -> Result<()> {
    let all = context.kube.kubectl("explain rstore.spec --recursive").text()?;
    for field in ["minSyncReplicas", "walRetention", "storageClassName", "maxPrefixes", "deletionPolicy", "backoff"] {
        ensure(all.contains(field), || format!("kubectl explain rstore.spec --recursive does not name {field}"))?;
    }
    let one = context.kube.kubectl("explain rstore.spec.replication.minSyncReplicas").text()?;
    ensure(!one.contains("<no description>"), || format!("minSyncReplicas has no description: {one}"))?;
    let crd = context.kube.json("get crd replicatedstores.parovoz.dev")?;
    let columns: Vec<&str> = items(&crd, "/spec/versions/0/additionalPrinterColumns")
        .iter()
        .filter_map(|c| c.get("name").and_then(Value::as_str))
        .collect();
    let wanted = ["Primary", "Ready", "Replicas", "Lag", "Phase", "Age"];
    ensure(columns == wanted, || format!("columns are {columns:?}"))
}
