//! A fake API server and a fake member, both in process.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::Stream;
use http::{Method, Request, Response, StatusCode};
use kube::Client;
use kube::client::Body;
use parking_lot::Mutex;
use parovoz_proto::v1::admin_server::{Admin, AdminServer};
use parovoz_proto::v1::{self, MemberReport, StatusRequest};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::{TcpListenerStream, WatchStream};
use tower_test::mock;

/// One request that the operator made.
#[derive(Clone, Debug, PartialEq)]
pub struct Asked {
    pub method: Method,
    pub path: String,
    pub query: String,
    pub body: Value,
}

impl Asked {
    pub fn short(&self) -> String {
        format!("{} {}", self.method, self.path)
    }
}

type Answer = Box<dyn FnMut(&Asked) -> Option<(StatusCode, Value)> + Send>;

/// Objects by path, and everything that was asked.
#[derive(Default)]
pub struct ApiState {
    pub objects: BTreeMap<String, Value>,
    pub asked: Vec<Asked>,
    pub versions: u64,
    /// Looked at before the objects: to refuse or to interfere.
    pub first: Option<Answer>,
}

/// A fake API server: keeps objects, checks resource versions and uids, applies by merging.
#[derive(Clone, Default)]
pub struct FakeApi(pub Arc<Mutex<ApiState>>);

impl FakeApi {
    pub fn client(&self) -> Client {
        let (service, mut handle) = mock::pair::<Request<Body>, Response<Body>>();
        let state = self.clone();
        tokio::spawn(async move {
            while let Some((request, respond)) = handle.next_request().await {
                let (parts, body) = request.into_parts();
                let bytes = body.collect_bytes().await.unwrap();
                let asked = Asked {
                    method: parts.method,
                    path: parts.uri.path().to_owned(),
                    query: parts.uri.query().unwrap_or_default().to_owned(),
                    body: serde_json::from_slice(&bytes).unwrap_or(Value::Null),
                };
                let (code, value) = state.answer(asked);
                let body = Body::from(serde_json::to_vec(&value).unwrap());
                respond.send_response(Response::builder().status(code).body(body).unwrap());
            }
        });
        Client::new(service, "prod")
    }

    pub fn put(&self, path: &str, mut object: Value) {
        let mut state = self.0.lock();
        state.versions += 1;
        object["metadata"]["resourceVersion"] = json!(state.versions.to_string());
        if object["metadata"]["uid"].is_null() {
            object["metadata"]["uid"] = json!(format!("uid-{}", state.versions));
        }
        state.objects.insert(path.to_owned(), object);
    }

    pub fn get(&self, path: &str) -> Option<Value> {
        self.0.lock().objects.get(path).cloned()
    }

    /// Every request that changes something, in order.
    pub fn writes(&self) -> Vec<String> {
        let state = self.0.lock();
        state.asked.iter().filter(|asked| asked.method != Method::GET).map(Asked::short).collect()
    }

    pub fn clear(&self) {
        self.0.lock().asked.clear();
    }

    pub fn interfere(&self, answer: impl FnMut(&Asked) -> Option<(StatusCode, Value)> + Send + 'static) {
        self.0.lock().first = Some(Box::new(answer));
    }

    fn answer(&self, asked: Asked) -> (StatusCode, Value) {
        let first = self.0.lock().first.take();
        self.0.lock().asked.push(asked.clone());
        if let Some(mut first) = first {
            let answer = first(&asked);
            self.0.lock().first.get_or_insert(first);
            if let Some(answer) = answer {
                return answer;
            }
        }
        let present = self.get(asked.path.trim_end_matches("/status"));
        match (asked.method.clone(), present) {
            (Method::GET | Method::DELETE, None) => failure(StatusCode::NOT_FOUND, "NotFound"),
            (Method::GET, Some(object)) => (StatusCode::OK, object),
            (Method::DELETE, Some(object)) => self.delete(&asked, object),
            (Method::POST, _) => self.create(&asked),
            (Method::PUT, None) => failure(StatusCode::NOT_FOUND, "NotFound"),
            (Method::PUT, Some(object)) => {
                if object["metadata"]["resourceVersion"] != asked.body["metadata"]["resourceVersion"] {
                    return failure(StatusCode::CONFLICT, "Conflict");
                }
                self.put(&asked.path, asked.body.clone());
                (StatusCode::OK, self.get(&asked.path).unwrap())
            }
            (Method::PATCH, present) => self.patch(&asked, present),
            _ => failure(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed"),
        }
    }

    fn delete(&self, asked: &Asked, object: Value) -> (StatusCode, Value) {
        let wanted = &asked.body["preconditions"]["uid"];
        if !wanted.is_null() && *wanted != object["metadata"]["uid"] {
            return failure(StatusCode::CONFLICT, "Conflict");
        }
        self.0.lock().objects.remove(&asked.path);
        (StatusCode::OK, object)
    }

    fn create(&self, asked: &Asked) -> (StatusCode, Value) {
        let path = format!("{}/{}", asked.path, asked.body["metadata"]["name"].as_str().unwrap());
        if self.get(&path).is_some() {
            return failure(StatusCode::CONFLICT, "AlreadyExists");
        }
        self.put(&path, asked.body.clone());
        (StatusCode::CREATED, self.get(&path).unwrap())
    }

    fn patch(&self, asked: &Asked, present: Option<Value>) -> (StatusCode, Value) {
        let apply = asked.query.contains("force=true");
        let mut object = match present {
            Some(object) => object,
            None if apply && !asked.path.ends_with("/status") => json!({}),
            None => return failure(StatusCode::NOT_FOUND, "NotFound"),
        };
        let wanted = &asked.body["metadata"]["uid"];
        if !wanted.is_null() && *wanted != object["metadata"]["uid"] {
            return failure(StatusCode::CONFLICT, "Conflict");
        }
        merge(&mut object, &asked.body);
        let path = asked.path.trim_end_matches("/status");
        self.put(path, object);
        (StatusCode::OK, self.get(path).unwrap())
    }
}

fn merge(target: &mut Value, patch: &Value) {
    match (target, patch) {
        (Value::Object(target), Value::Object(patch)) => {
            for (key, value) in patch {
                if value.is_null() {
                    target.remove(key);
                } else {
                    merge(target.entry(key.clone()).or_insert(Value::Null), value);
                }
            }
        }
        (target, patch) => *target = patch.clone(),
    }
}

pub fn failure(code: StatusCode, reason: &str) -> (StatusCode, Value) {
    let body = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "message": reason, "code": code.as_u16()});
    (code, body)
}

/// A member that reports what it is told to, and notes the orders that it gets.
pub struct FakeMember {
    pub address: SocketAddr,
    pub report: watch::Sender<MemberReport>,
    pub orders: Arc<Mutex<Vec<String>>>,
    pub refuse: Arc<Mutex<bool>>,
    /// Its own runtime, so that its end takes its connections along as the end of a process does.
    runtime: Option<tokio::runtime::Runtime>,
}

impl Drop for FakeMember {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl FakeMember {
    pub fn start(report: MemberReport) -> Self {
        Self::on(std::net::TcpListener::bind("127.0.0.1:0").unwrap(), report)
    }

    pub fn on(listener: std::net::TcpListener, report: MemberReport) -> Self {
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let (report, reports) = watch::channel(report);
        let (orders, refuse) = (Arc::default(), Arc::default());
        let service =
            Service { reports, report: report.clone(), orders: Arc::clone(&orders), refuse: Arc::clone(&refuse) };
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.spawn(async move {
            let listener = TcpListener::from_std(listener).unwrap();
            let server = tonic::transport::Server::builder().add_service(AdminServer::new(service));
            server.serve_with_incoming(TcpListenerStream::new(listener)).await.unwrap();
        });
        Self { address, report, orders, refuse, runtime: Some(runtime) }
    }
}

struct Service {
    reports: watch::Receiver<MemberReport>,
    report: watch::Sender<MemberReport>,
    orders: Arc<Mutex<Vec<String>>>,
    refuse: Arc<Mutex<bool>>,
}

impl Service {
    fn order(
        &self,
        what: String,
        change: impl FnOnce(&mut MemberReport),
    ) -> Result<tonic::Response<MemberReport>, tonic::Status> {
        self.orders.lock().push(what);
        if *self.refuse.lock() {
            return Err(tonic::Status::failed_precondition("promised a later reign"));
        }
        self.report.send_modify(change);
        Ok(tonic::Response::new(self.report.borrow().clone()))
    }
}

type Out<T> = Result<tonic::Response<T>, tonic::Status>;

#[tonic::async_trait]
impl Admin for Service {
    type WatchStatusStream = Pin<Box<dyn Stream<Item = Result<MemberReport, tonic::Status>> + Send>>;

    async fn status(&self, _: tonic::Request<StatusRequest>) -> Out<MemberReport> {
        Ok(tonic::Response::new(self.report.borrow().clone()))
    }

    async fn watch_status(&self, _: tonic::Request<StatusRequest>) -> Out<Self::WatchStatusStream> {
        Ok(tonic::Response::new(Box::pin(WatchStream::new(self.reports.clone()).map(Ok))))
    }

    async fn promote(&self, request: tonic::Request<v1::PromoteRequest>) -> Out<MemberReport> {
        let request = request.into_inner();
        let reign = request.reign.unwrap();
        self.order(format!("promote {} to {}", request.data_uuid, reign.epoch), |report| {
            report.started_epoch = reign.epoch;
            report.set_role(v1::MemberRole::Primary);
            report.set_phase(v1::MemberPhase::Serving);
            report.complete = true;
            report.can_acknowledge = true;
            report.sealed = None;
            report.frozen_ms = 0;
            report.reign = Some(reign);
        })
    }

    async fn seal(&self, request: tonic::Request<v1::SealRequest>) -> Out<MemberReport> {
        let request = request.into_inner();
        let reign = request.reign.unwrap();
        self.order(format!("seal {} for {}", request.data_uuid, reign.epoch), |report| report.sealed = Some(reign))
    }

    async fn pull(&self, request: tonic::Request<v1::PullRequest>) -> Out<MemberReport> {
        let request = request.into_inner();
        let source = request.source.unwrap().data_uuid;
        self.order(format!("{} pulls from {source}", request.data_uuid), |_| {})
    }

    async fn freeze(&self, request: tonic::Request<v1::FreezeRequest>) -> Out<MemberReport> {
        let request = request.into_inner();
        self.order(format!("freeze {}", request.data_uuid), |report| report.frozen_ms = request.for_ms)
    }

    async fn follow(&self, request: tonic::Request<v1::FollowRequest>) -> Out<MemberReport> {
        let request = request.into_inner();
        let upstream = request.upstream.unwrap();
        self.order(format!("{} follows {}", request.data_uuid, upstream.data_uuid), |report| {
            report.set_phase(v1::MemberPhase::Streaming);
            report.upstream_data_uuid = upstream.data_uuid;
            report.upstream_address = upstream.replication_address;
            report.primary_data_uuid = request.primary.unwrap().data_uuid;
            report.upstream_connected = true;
            report.complete = true;
            report.sealed = None;
            report.reign = request.reign;
        })
    }

    async fn reseed(&self, _: tonic::Request<v1::ReseedRequest>) -> Out<MemberReport> {
        Err(tonic::Status::unimplemented("not part of this member"))
    }

    async fn hold(&self, _: tonic::Request<v1::HoldRequest>) -> Out<v1::HoldResponse> {
        Err(tonic::Status::unimplemented("not part of this member"))
    }

    async fn r#continue(&self, _: tonic::Request<v1::ContinueRequest>) -> Out<v1::HoldResponse> {
        Err(tonic::Status::unimplemented("not part of this member"))
    }

    async fn create_prefix(&self, _: tonic::Request<v1::PrefixRequest>) -> Out<v1::PrefixResponse> {
        Err(tonic::Status::unimplemented("not part of this member"))
    }

    async fn drop_prefix(&self, _: tonic::Request<v1::PrefixRequest>) -> Out<v1::PrefixResponse> {
        Err(tonic::Status::unimplemented("not part of this member"))
    }

    async fn set_log_filter(&self, _: tonic::Request<v1::SetLogFilterRequest>) -> Out<v1::SetLogFilterResponse> {
        Err(tonic::Status::unimplemented("not part of this member"))
    }
}

/// Wait until something holds; panic after ten seconds.
pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(tokio::time::Instant::now() < deadline, "not within ten seconds: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
