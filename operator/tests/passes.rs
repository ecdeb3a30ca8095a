//! Whole passes over a store: real steps and planner, a fake API server, a fake member over a real socket.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod fake;

use std::sync::Arc;

use fake::{FakeApi, FakeMember, failure, until};
use http::{Method, StatusCode};
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, Pod, Service, ServiceAccount};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use kube::runtime::reflector::store::Writer;
use kube::runtime::watcher::Event;
use parovoz_api::StoreOperation;
use parovoz_operator::caches::{Caches, GuardedStore};
use parovoz_operator::controller::{Context, reconcile};
use parovoz_operator::error::{Class, Error};
use parovoz_operator::member::Members;
use parovoz_operator::metrics::{Metrics, PassResult};
use parovoz_operator::steps::lease::Leases;
use parovoz_operator::steps::report::Reporter;
use parovoz_proto::v1::{self, MemberReport};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::mpsc;

const STORE: &str = "/apis/parovoz.dev/v1alpha1/namespaces/prod/replicatedstores/cache";
const REIGN: &str = "/apis/parovoz.dev/v1alpha1/namespaces/prod/storereigns/cache";
const LEASE: &str = "/apis/coordination.k8s.io/v1/namespaces/prod/leases/cache-primary";
const POD: &str = "/api/v1/namespaces/prod/pods/cache-1";
const CLAIM: &str = "/api/v1/namespaces/prod/persistentvolumeclaims/data-cache-1";

struct Writers {
    pods: Writer<Pod>,
    claims: Writer<PersistentVolumeClaim>,
    services: Writer<Service>,
    configs: Writer<ConfigMap>,
    accounts: Writer<ServiceAccount>,
    budgets: Writer<PodDisruptionBudget>,
    roles: Writer<Role>,
    bindings: Writer<RoleBinding>,
    operations: Writer<StoreOperation>,
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
            roles: Writer::default(),
            bindings: Writer::default(),
            operations: Writer::default(),
        };
        let caches = Caches {
            stores: Writer::<GuardedStore>::default().as_reader(),
            pods: writers.pods.as_reader(),
            claims: writers.claims.as_reader(),
            services: writers.services.as_reader(),
            configs: writers.configs.as_reader(),
            accounts: writers.accounts.as_reader(),
            budgets: writers.budgets.as_reader(),
            roles: writers.roles.as_reader(),
            bindings: writers.bindings.as_reader(),
            operations: writers.operations.as_reader(),
            nodes: None,
        };
        let metrics = Arc::new(Metrics::default());
        let (sender, queue) = mpsc::channel(64);
        let context = Context {
            client: api.client(),
            caches,
            members: Arc::new(Members::new(member.address.port(), sender, metrics.clone())),
            reporter: Reporter::new(api.client(), "operator".into()),
            leases: Leases::default(),
            metrics,
            default_image: "dataplane:test".into(),
        };
        Self { api, member, context, writers, _queue: queue }
    }

    /// The caches see what the API server has.
    fn watch(&mut self) {
        let Writers { pods, claims, services, configs, accounts, budgets, roles, bindings, operations } =
            &mut self.writers;
        fill(&self.api, pods, "/pods/");
        fill(&self.api, claims, "/persistentvolumeclaims/");
        fill(&self.api, services, "/services/");
        fill(&self.api, configs, "/configmaps/");
        fill(&self.api, accounts, "/serviceaccounts/");
        fill(&self.api, budgets, "/poddisruptionbudgets/");
        fill(&self.api, roles, "/roles/");
        fill(&self.api, bindings, "/rolebindings/");
        fill(&self.api, operations, "/storeoperations/");
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

    /// The restarted primary leads again, by the first pass that does anything.
    async fn until_led_again(&mut self) {
        let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(10);
        while self.member.orders.lock().is_empty() {
            assert!(tokio::time::Instant::now() < deadline, "nothing is done about it");
            self.pass().await.unwrap();
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        assert_eq!(*self.member.orders.lock(), ["seal data-1 for 2", "promote data-1 to 2"], "one pass does it all");
    }

    /// The primary's process is started anew: it follows nobody, with all that it had.
    fn restart(&self) {
        self.member.report.send_modify(|report| {
            report.process_id = "process-2".into();
            report.set_role(v1::MemberRole::Replica);
            report.set_phase(v1::MemberPhase::Waiting);
            report.prefixes = vec![v1::PrefixReport {
                name: "$catalogue".into(),
                prefix_uuid: "c".into(),
                system: true,
                served: true,
                vote: Some(v1::Vote { known: Some(v1::Position { epoch: 1, sequence: 1 }), ..v1::Vote::default() }),
                ..v1::PrefixReport::default()
            }];
        });
    }

    fn status(&self) -> Value {
        self.api.get(STORE).unwrap()["status"].clone()
    }
}

#[tokio::test]
async fn a_store_goes_from_nothing_to_serving_and_then_nothing_more_is_written() {
    let mut harness = Harness::serving().await;
    assert_eq!(*harness.member.orders.lock(), ["seal data-1 for 1", "promote data-1 to 1"]);
    let lease = harness.api.get(LEASE).unwrap();
    assert_eq!(
        lease["metadata"]["annotations"]["parovoz.dev/epoch"], "1",
        "the Lease that the primary renews is there"
    );
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
    harness.api.clear();
    harness.until_phase("Serving").await;
    let record = |write: &String| write.contains("/storereigns") || write.contains("/leases");
    let writes: Vec<_> = harness.api.writes().into_iter().filter(record).collect();
    let expected =
        ["POST storereigns", "PUT storereigns", "PUT storereigns", "POST leases", "PUT storereigns"].map(|text| {
            let (method, kind) = text.split_once(' ').unwrap();
            (method.to_owned(), kind.to_owned())
        });
    assert_eq!(writes.len(), expected.len(), "{writes:?}");
    for (write, (method, kind)) in writes.iter().zip(&expected) {
        assert!(write.starts_with(method.as_str()) && write.contains(kind.as_str()), "{writes:?}");
    }
}

#[tokio::test]
async fn a_lost_swap_sends_no_order_and_is_observed_again() {
    let mut harness = Harness::new();
    harness.pass().await.unwrap();
    harness.pass().await.unwrap();
    harness.api.interfere(|asked| {
        let swap = asked.method == Method::PUT && asked.path == REIGN;
        swap.then(|| failure(StatusCode::CONFLICT, "Conflict"))
    });
    harness.run_pod();
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(10);
    let error = loop {
        match harness.pass().await {
            Ok(_) => assert!(tokio::time::Instant::now() < deadline, "nothing is swapped"),
            Err(error) => break error,
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    };
    assert!(matches!(error, Error::Conflict));
    assert_eq!(error.class(), Class::Conflict);
    assert!(harness.member.orders.lock().is_empty(), "an order was sent under a record that was not written");
    harness.api.interfere(|_| None);
    harness.until_phase("Serving").await;
    assert_eq!(harness.member.orders.lock().len(), 2);
}

#[tokio::test]
async fn a_lease_that_moved_meanwhile_is_looked_at_again_before_any_order() {
    let mut harness = Harness::new();
    harness.pass().await.unwrap();
    harness.pass().await.unwrap();
    let raises = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counted = raises.clone();
    harness.api.interfere(move |asked| {
        let raise = asked.method == Method::POST && asked.path.ends_with("/leases");
        let first = raise && counted.fetch_add(1, std::sync::atomic::Ordering::SeqCst) == 0;
        first.then(|| failure(StatusCode::CONFLICT, "AlreadyExists"))
    });
    harness.run_pod();
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(10);
    while raises.load(std::sync::atomic::Ordering::SeqCst) == 0 {
        assert!(tokio::time::Instant::now() < deadline, "the Lease is not made");
        if let Err(error) = harness.pass().await {
            assert_eq!(error.class(), Class::Conflict);
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    let sent = harness.member.orders.lock().clone();
    assert!(!sent.iter().any(|order| order.starts_with("promote")), "{sent:?}");
    harness.until_phase("Serving").await;
}

#[tokio::test]
async fn a_restarted_primary_leads_again_within_one_pass() {
    let mut harness = Harness::serving().await;
    harness.member.orders.lock().clear();
    harness.restart();
    harness.until_led_again().await;
    assert_eq!(harness.api.get(REIGN).unwrap()["spec"]["current"]["phase"], "Serving");
    assert_eq!(harness.api.get(LEASE).unwrap()["metadata"]["annotations"]["parovoz.dev/epoch"], "2");
}

#[tokio::test]
async fn a_refused_object_does_not_hold_a_reign_up_and_is_told_at_its_end() {
    let mut harness = Harness::serving().await;
    harness.member.orders.lock().clear();
    harness.api.0.lock().objects.retain(|path, _| !path.contains("poddisruptionbudgets"));
    harness.api.interfere(|asked| {
        let budget = asked.method == Method::PATCH && asked.path.contains("poddisruptionbudgets");
        budget.then(|| failure(StatusCode::FORBIDDEN, "Forbidden"))
    });
    harness.restart();
    harness.until_led_again().await;
    assert!(harness.status().to_string().contains("apply cache: Forbidden"), "{}", harness.status());
}

#[tokio::test]
async fn a_record_that_may_not_be_written_is_told_in_the_status() {
    let mut harness = Harness::serving().await;
    harness.api.interfere(|asked| {
        let swap = asked.method == Method::PUT && asked.path == REIGN;
        swap.then(|| failure(StatusCode::FORBIDDEN, "Forbidden"))
    });
    harness.restart();
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(10);
    while harness.pass().await.is_ok() {
        assert!(tokio::time::Instant::now() < deadline, "nothing is swapped");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    let status = harness.status();
    assert_eq!((&status["phase"], &status["primary"]), (&json!("Degraded"), &json!("cache-1")));
    let conditions = status["conditions"].as_array().unwrap();
    let degraded = conditions.iter().find(|condition| condition["type"] == "Degraded").unwrap();
    assert_eq!(degraded["status"], "True");
    assert!(degraded["message"].as_str().unwrap().starts_with("swap decision record: "), "{degraded}");
}

#[tokio::test]
async fn an_operation_is_answered_in_its_status() {
    let mut harness = Harness::serving().await;
    let path = "/apis/parovoz.dev/v1alpha1/namespaces/prod/storeoperations/move";
    harness.api.put(
        path,
        json!({
            "apiVersion": "parovoz.dev/v1alpha1", "kind": "StoreOperation",
            "metadata": {"name": "move", "namespace": "prod", "creationTimestamp": jiff::Timestamp::now().to_string()},
            "spec": {"store": "cache", "type": "Switchover", "member": "cache-7"},
        }),
    );
    harness.pass().await.unwrap();
    let status = harness.api.get(path).unwrap()["status"].clone();
    assert_eq!(
        (status["phase"].as_str(), status["message"].as_str()),
        (Some("Failed"), Some("cache-7 is no member of the store"))
    );
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

#[tokio::test]
async fn nothing_is_deleted_by_a_plan_whose_record_was_changed_meanwhile() {
    let mut harness = Harness::serving().await;
    let mut pod = harness.api.get(POD).unwrap();
    pod["status"]["phase"] = json!("Failed");
    pod["status"]["podIP"] = json!("127.0.0.1");
    harness.api.put(POD, pod);
    harness.api.clear();
    let mut changed = harness.api.get(REIGN).unwrap();
    changed["metadata"]["resourceVersion"] = json!("another");
    let mut reads = 0;
    harness.api.interfere(move |asked| {
        reads += usize::from(asked.method == Method::GET && asked.path == REIGN);
        // The first is the observation.
        (reads == 2 && asked.path == REIGN).then(|| (StatusCode::OK, changed.clone()))
    });
    harness.pass().await.unwrap();
    let deleted = |harness: &Harness| harness.api.writes().iter().any(|write| write.starts_with("DELETE"));
    assert!(!deleted(&harness), "{:?}", harness.api.writes());
    harness.pass().await.unwrap();
    assert!(deleted(&harness));
}
