//! A primary without required replicas and its Lease, in an API server of which only Leases are there.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use parking_lot::Mutex;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::node::{Node, follow, promote, reign, within};

/// Leases by name; `None` = the server answers nothing but errors.
type Leases = Arc<Mutex<Option<BTreeMap<String, Value>>>>;

fn unavailable() -> (StatusCode, Json<Value>) {
    refusal(503)
}

fn refusal(code: u16) -> (StatusCode, Json<Value>) {
    let reason = match code {
        404 => "NotFound",
        409 => "Conflict",
        _ => "ServiceUnavailable",
    };
    let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "code": code});
    (StatusCode::from_u16(code).unwrap(), Json(status))
}

async fn read(State(leases): State<Leases>, Path(name): Path<String>) -> (StatusCode, Json<Value>) {
    match leases.lock().as_ref() {
        None => unavailable(),
        Some(leases) => leases.get(&name).map_or_else(|| refusal(404), |l| (StatusCode::OK, Json(l.clone()))),
    }
}

fn store(leases: &mut BTreeMap<String, Value>, name: String, mut lease: Value) -> (StatusCode, Json<Value>) {
    let version = |l: &Value| l["metadata"]["resourceVersion"].as_str().map(str::to_owned);
    let now = leases.get(&name).and_then(version);
    if version(&lease) != now {
        return refusal(409);
    }
    let next = now.map_or(1, |v| v.parse::<u64>().unwrap() + 1);
    lease["metadata"]["resourceVersion"] = json!(next.to_string());
    leases.insert(name, lease.clone());
    (StatusCode::OK, Json(lease))
}

async fn replace(
    State(leases): State<Leases>,
    Path(name): Path<String>,
    Json(lease): Json<Value>,
) -> (StatusCode, Json<Value>) {
    leases.lock().as_mut().map_or_else(unavailable, |leases| store(leases, name, lease))
}

async fn create(State(leases): State<Leases>, Json(lease): Json<Value>) -> (StatusCode, Json<Value>) {
    let name = lease["metadata"]["name"].as_str().unwrap().to_owned();
    leases.lock().as_mut().map_or_else(unavailable, |leases| store(leases, name, lease))
}

/// An API server, and the configuration by which it is found.
async fn api_server() -> (Leases, tempfile::TempDir) {
    let leases: Leases = Arc::new(Mutex::new(Some(BTreeMap::new())));
    let path = "/apis/coordination.k8s.io/v1/namespaces/default/leases";
    let router = Router::new()
        .route(path, axum::routing::post(create))
        .route(&format!("{path}/{{name}}"), get(read).put(replace))
        .with_state(leases.clone());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await });
    let dir = tempfile::tempdir().unwrap();
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": format!("http://{address}")}}],
        "users": [{"name": "u", "user": {}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u", "namespace": "default"}}],
    });
    std::fs::write(dir.path().join("config"), config.to_string()).unwrap();
    (leases, dir)
}

fn node(name: &str, config: &tempfile::TempDir) -> Node {
    let mut node = Node::new(name, json!({}));
    node.extra = vec!["--lease".into(), "s-primary".into()];
    node.env = vec![("KUBECONFIG".into(), config.path().join("config").display().to_string())];
    node.spawn();
    node
}

fn set(connection: &mut redis::Connection) -> Result<(), String> {
    redis::cmd("SET").arg("p:k").arg("v").query::<()>(connection).map_err(|e| e.to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_primary_alone_serves_by_its_lease_and_never_again_once_another_epoch_took_it() {
    let (leases, config) = api_server().await;
    let a = node("a", &config);
    let mut first = reign(3, &[&a]).await;
    first.lease_duration_ms = 1_500;
    promote(&a, &first).await.unwrap();
    let mut connection = a.redis();
    within("it serves", async || set(&mut connection).ok()).await;
    let found = async || leases.lock().as_ref().unwrap().get("s-primary").cloned();
    let lease = within("it takes its lease", found).await;
    assert_eq!(lease["metadata"]["annotations"]["parovoz.dev/epoch"], "3");
    assert_eq!(lease["spec"]["holderIdentity"], first.primary.as_str());
    within("it renews", async || {
        let now = leases.lock().as_ref().unwrap()["s-primary"].clone();
        (now["spec"]["renewTime"] != lease["spec"]["renewTime"]).then_some(())
    })
    .await;
    {
        let mut leases = leases.lock();
        let lease = leases.as_mut().unwrap().get_mut("s-primary").unwrap();
        lease["metadata"]["annotations"]["parovoz.dev/epoch"] = json!("4");
        lease["metadata"]["resourceVersion"] = json!("1000");
    }
    let refused = within("it stops", async || set(&mut connection).err()).await;
    assert!(refused.contains("LOADING") || refused.contains("can't be sure"), "{refused}");
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(set(&mut connection).is_err());
    assert_eq!(leases.lock().as_ref().unwrap()["s-primary"]["metadata"]["resourceVersion"], "1000", "it is left alone");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_api_server_a_primary_serves_while_all_members_promise() {
    let (leases, config) = api_server().await;
    let (a, b) = (node("a", &config), node("b", &config));
    let mut first = reign(1, &[&a, &b]).await;
    first.lease_duration_ms = 1_500;
    promote(&a, &first).await.unwrap();
    follow(&b, &first, &a, &a).await;
    let mut connection = a.redis();
    within("it serves", async || set(&mut connection).ok()).await;
    within("the replica promises", async || (a.report().await.followers.len() == 1).then_some(())).await;
    let all = leases.lock().take();
    tokio::time::sleep(Duration::from_secs(3)).await;
    set(&mut connection).unwrap();
    b.signal(Signal::STOP);
    within("it stops when one member is silent", async || set(&mut connection).err()).await;
    *leases.lock() = all;
    within("it serves again by its lease alone", async || set(&mut connection).ok()).await;
    b.signal(Signal::CONT);
}
