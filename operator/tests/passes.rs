//! Whole passes over a store: real steps and planner, a fake API server, a fake member over a real socket.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod fake;

use std::sync::Arc;

use fake::{FakeApi, FakeMember, failure, until};
use http::{Method, StatusCode};
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, Pod, Service, ServiceAccount};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::runtime::reflector::store::Writer;
use kube::runtime::watcher::Event;
use parovoz_operator::caches::{Caches, GuardedStore};
use parovoz_operator::controller::{Context, reconcile};
use parovoz_operator::error::{Class, Error};
use parovoz_operator::member::Members;
use parovoz_operator::metrics::{Metrics, PassResult};
use parovoz_operator::steps::report::Reporter;
use parovoz_proto::v1::{self, MemberReport};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::mpsc;

const STORE: &str = "/apis/parovoz.dev/v1alpha1/namespaces/prod/replicatedstores/cache";
const REIGN: &str = "/apis/parovoz.dev/v1alpha1/namespaces/prod/storereigns/cache";
const POD: &str = "/api/v1/namespaces/prod/pods/cache-1";
const CLAIM: &str = "/api/v1/namespaces/prod/persistentvolumeclaims/data-cache-1";

struct Writers {
    pods: Writer<Pod>,
    claims: Writer<PersistentVolumeClaim>,
    services: Writer<Service>,
    configs: Writer<ConfigMap>,
    accounts: Writer<ServiceAccount>,
    budgets: Writer<PodDisruptionBudget>,
}

struct Harness {
    api: FakeApi,
    member: FakeMember,
    context: Context,
    writers: Writers,
    _queue: mpsc::Receiver<parovoz_operator::error::StoreRef>,
}

fn fill<K>(api: &FakeApi, writer: &mut Writer<K>, part: &str)
where
    K: kube::runtime::reflector::Lookup<DynamicType = ()> + Clone + DeserializeOwned + 'static,
{
    writer.apply_watcher_event(&Event::Init);
    for (path, object) in &api.0.lock().objects {
        if path.contains(part) {
            writer.apply_watcher_event(&Event::InitApply(serde_json::from_value(object.clone()).unwrap()));
        }
    }
    writer.apply_watcher_event(&Event::InitDone);
}

impl Harness {
    fn new() -> Self {
        let mut report = MemberReport {
            store_uid: "store-uid".into(),
            data_uuid: "data-1".into(),
            process_id: "process-1".into(),
            disk_free_bytes: 5,
            disk_total_bytes: 10,
            ..MemberReport::default()
        };
        report.set_phase(v1::MemberPhase::Blank);
        report.set_role(v1::MemberRole::Replica);
        let member = FakeMember::start(report);
        let api = FakeApi::default();
        api.put(
            STORE,
            json!({
                "apiVersion": "parovoz.dev/v1alpha1", "kind": "ReplicatedStore",
                "metadata": {"name": "cache", "namespace": "prod", "uid": "store-uid", "generation": 1},
                "spec": {"replicas": 1, "storage": {"size": "1Gi"}},
            }),
        );
        let writers = Writers {
            pods: Writer::default(),
            claims: Writer::default(),
            services: Writer::default(),
            configs: Writer::default(),
            accounts: Writer::default(),
            budgets: Writer::default(),
        };
        let caches = Caches {
            stores: Writer::<GuardedStore>::default().as_reader(),
            pods: writers.pods.as_reader(),
            claims: writers.claims.as_reader(),
            services: writers.services.as_reader(),
            configs: writers.configs.as_reader(),
            accounts: writers.accounts.as_reader(),
            budgets: writers.budgets.as_reader(),
        };
        let metrics = Arc::new(Metrics::default());
        let (sender, queue) = mpsc::channel(64);
        let context = Context {
            client: api.client(),
            caches,
            members: Arc::new(Members::new(member.address.port(), sender, metrics.clone())),
            reporter: Reporter::new(api.client(), "operator".into()),
            metrics,
            default_image: "dataplane:test".into(),
        };
        Self { api, member, context, writers, _queue: queue }
    }

    /// The caches see what the API server has.
    fn watch(&mut self) {
        let Writers { pods, claims, services, configs, accounts, budgets } = &mut self.writers;
        fill(&self.api, pods, "/pods/");
        fill(&self.api, claims, "/persistentvolumeclaims/");
        fill(&self.api, services, "/services/");
        fill(&self.api, configs, "/configmaps/");
        fill(&self.api, accounts, "/serviceaccounts/");
        fill(&self.api, budgets, "/poddisruptionbudgets/");
    }

    async fn pass(&mut self) -> Result<PassResult, Error> {
        self.watch();
        let store = serde_json::from_value::<GuardedStore>(self.api.get(STORE).unwrap()).unwrap();
        Box::pin(reconcile(&store, &self.context)).await.map(|(_, result)| result)
    }

    /// The kubelet runs the pod and binds the claim.
    fn run_pod(&self) {
        let mut claim = self.api.get(CLAIM).unwrap();
        claim["status"] = json!({"phase": "Bound"});
        self.api.put(CLAIM, claim);
        let mut pod = self.api.get(POD).unwrap();
        pod["spec"]["nodeName"] = json!("node-1");
        pod["status"] = json!({"phase": "Running", "podIP": "127.0.0.1"});
        self.api.put(POD, pod);
    }

    /// Pass over the store until it says this of the record, for at most ten seconds.
    async fn until_phase(&mut self, phase: &str) {
        let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(10);
        while self.api.get(REIGN).is_none_or(|reign| reign["spec"]["current"]["phase"] != phase) {
            assert!(tokio::time::Instant::now() < deadline, "the record does not become {phase}");
            self.pass().await.unwrap();
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }

    async fn serving() -> Self {
        let mut harness = Self::new();
        harness.pass().await.unwrap();
        harness.pass().await.unwrap();
        harness.run_pod();
        harness.until_phase("Serving").await;
        for _ in 0..3 {
            harness.pass().await.unwrap();
        }
        harness
    }

    fn status(&self) -> Value {
        self.api.get(STORE).unwrap()["status"].clone()
    }
}

#[tokio::test]
async fn a_store_goes_from_nothing_to_serving_and_then_nothing_more_is_written() {
    let mut harness = Harness::serving().await;
    assert_eq!(*harness.member.orders.lock(), ["promote data-1 to 1"]);
    assert_eq!(harness.status()["phase"], "Healthy");
    assert_eq!(harness.status()["primary"], "cache-1");
    assert_eq!(harness.api.get(POD).unwrap()["metadata"]["labels"]["parovoz.dev/role"], "primary");
    harness.api.clear();
    for _ in 0..5 {
        assert_eq!(harness.pass().await.unwrap(), PassResult::Settled);
    }
    assert_eq!(harness.api.writes(), Vec::<String>::new(), "a settled store costs no writes");
}

#[tokio::test]
async fn the_claim_comes_before_the_pod_and_the_record_before_the_order() {
    let mut harness = Harness::new();
    harness.pass().await.unwrap();
    assert!(harness.api.get(CLAIM).is_some() && harness.api.get(POD).is_none());
    harness.pass().await.unwrap();
    let pod = harness.api.get(POD).unwrap();
    assert_eq!(
        pod["metadata"]["annotations"]["parovoz.dev/claim-uid"],
        harness.api.get(CLAIM).unwrap()["metadata"]["uid"]
    );
    harness.run_pod();
    harness.until_phase("Forming").await;
    assert!(harness.member.orders.lock().is_empty());
    harness.until_phase("Promoting").await;
    assert_eq!(harness.member.orders.lock().len(), 1);
}

#[tokio::test]
async fn a_lost_swap_sends_no_order_and_is_observed_again() {
    let mut harness = Harness::new();
    harness.pass().await.unwrap();
    harness.pass().await.unwrap();
    harness.run_pod();
    harness.until_phase("Forming").await;
    harness.api.clear();
    harness.api.interfere(|asked| {
        let swap = asked.method == Method::PUT && asked.path == REIGN;
        swap.then(|| failure(StatusCode::CONFLICT, "Conflict"))
    });
    let error = harness.pass().await.unwrap_err();
    assert!(matches!(error, Error::Conflict));
    assert_eq!(error.class(), Class::Conflict);
    assert!(harness.member.orders.lock().is_empty(), "an order was sent under a record that was not written");
    assert_eq!(harness.api.writes(), [format!("PUT {REIGN}")], "nothing else was done either");
    harness.api.interfere(|_| None);
    harness.until_phase("Promoting").await;
    assert_eq!(harness.member.orders.lock().len(), 1);
}

#[tokio::test]
async fn a_record_that_cannot_be_read_stops_the_pass() {
    let mut harness = Harness::serving().await;
    harness.api.clear();
    harness
        .api
        .interfere(|asked| (asked.path == REIGN).then(|| failure(StatusCode::INTERNAL_SERVER_ERROR, "InternalError")));
    let error = harness.pass().await.unwrap_err();
    assert_eq!(error.class(), Class::Retryable);
    assert!(harness.api.writes().is_empty());
}

#[tokio::test]
async fn an_object_of_somebody_else_is_left_alone_and_told() {
    let mut harness = Harness::new();
    let path = "/api/v1/namespaces/prod/services/cache-rw";
    harness
        .api
        .put(path, json!({"metadata": {"name": "cache-rw", "namespace": "prod"}, "spec": {"selector": {"a": "b"}}}));
    harness.pass().await.unwrap();
    assert_eq!(harness.api.get(path).unwrap()["spec"], json!({"selector": {"a": "b"}}));
    assert!(harness.api.get(CLAIM).is_some(), "the rest was done");
    let waiting = harness.status()["waiting"].clone();
    assert!(waiting.as_array().unwrap().iter().any(|waiting| waiting["reason"] == "ForeignObject"), "{waiting}");
}

#[tokio::test]
async fn a_refused_object_is_in_the_status_and_does_not_keep_the_rest() {
    let mut harness = Harness::new();
    harness.api.interfere(|asked| {
        let budget = asked.method == Method::PATCH && asked.path.contains("poddisruptionbudgets");
        budget.then(|| failure(StatusCode::FORBIDDEN, "Forbidden"))
    });
    harness.pass().await.unwrap();
    assert!(harness.api.get(CLAIM).is_some());
    let told = harness.status().to_string();
    assert!(told.contains("\"Refused\"") && told.contains("apply cache: Forbidden"), "{told}");
}

#[tokio::test]
async fn a_status_is_patched_only_when_it_changed() {
    let mut harness = Harness::serving().await;
    harness.api.clear();
    harness.member.report.send_modify(|report| report.disk_free_bytes = 0);
    let contacts = || {
        let uid = harness.api.get(POD).unwrap()["metadata"]["uid"].as_str().unwrap().to_owned();
        let pod =
            parovoz_operator::member::MemberPod { name: "cache-1".into(), uid, ip: Some("127.0.0.1".parse().unwrap()) };
        let store = parovoz_operator::error::StoreRef::new("cache").within("prod");
        harness.context.members.sync(&store, &[pod])
    };
    until("the report arrived", || contacts()["cache-1"].report.as_ref().is_some_and(|r| r.disk_free_bytes == 0)).await;
    harness.pass().await.unwrap();
    harness.pass().await.unwrap();
    let writes = harness.api.writes();
    assert_eq!(writes.iter().filter(|write| **write == format!("PATCH {STORE}/status")).count(), 1, "{writes:?}");
    assert!(harness.status().to_string().contains("DiskAlmostFull"));
    assert!(writes.iter().any(|write| write.contains("/events")), "{writes:?}");
}

#[tokio::test]
async fn an_unreadable_store_is_terminal_for_itself_alone() {
    let harness = Harness::new();
    let mut object = harness.api.get(STORE).unwrap();
    object["spec"]["replication"] = json!({"topology": "Ring"});
    let store = serde_json::from_value::<GuardedStore>(object).unwrap();
    let error = Box::pin(reconcile(&store, &harness.context)).await.map(|_| ()).unwrap_err();
    assert_eq!(error.class(), Class::Terminal);
    assert!(harness.api.writes().is_empty());
}

#[tokio::test]
async fn a_store_that_is_being_deleted_is_not_touched() {
    let mut harness = Harness::serving().await;
    let mut object = harness.api.get(STORE).unwrap();
    object["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    harness.api.put(STORE, object);
    harness.api.clear();
    harness.pass().await.unwrap();
    assert!(harness.api.writes().is_empty());
}

#[tokio::test]
async fn deletions_name_the_pod_that_was_seen_by_its_uid() {
    let mut harness = Harness::serving().await;
    let mut pod = harness.api.get(POD).unwrap();
    pod["status"]["phase"] = json!("Failed");
    pod["status"]["podIP"] = json!("127.0.0.1");
    harness.api.put(POD, pod.clone());
    harness.api.clear();
    harness.pass().await.unwrap();
    let asked = harness.api.0.lock().asked.iter().find(|asked| asked.method == Method::DELETE).cloned().unwrap();
    assert_eq!(asked.path, POD);
    assert_eq!(asked.body["preconditions"]["uid"], pod["metadata"]["uid"]);
}
