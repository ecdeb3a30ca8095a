//! The admin port: orders and reports.

pub(crate) mod convert;

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::Stream;
use parovoz_dataplane_core::role::Event;
use parovoz_dataplane_core::types::{PrefixName, StoreUid};
use parovoz_proto::v1;
use parovoz_proto::v1::admin_server::Admin;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::logging::LogControl;
use crate::member::following::Following;
use crate::member::report::Reporter;
use crate::member::{Member, MemberError};
use crate::replication::ReplicationCtx;
use crate::replication::wire::position_to;
use crate::store::catalogue::Catalogue;
use crate::store::{CreateError, Store};

/// Two reports at most a second.
const REPORT_PAUSE: Duration = Duration::from_millis(500);
/// How soon a report follows when nothing but positions moved.
const MOVED_PAUSE: Duration = Duration::from_secs(1);
/// A report at least this often.
const REPORT_INTERVAL: Duration = Duration::from_secs(5);

/// See the module.
#[derive(Debug, Clone)]
pub struct AdminService {
    /// All prefixes.
    pub store: Arc<Store>,
    /// Takes orders.
    pub member: Arc<Member>,
    /// Builds reports.
    pub reporter: Arc<Reporter>,
    /// Creates and drops prefixes.
    pub catalogue: Arc<Catalogue>,
    /// Reseeds.
    pub follower: Arc<Following>,
    /// Holds on WAL and acknowledgements.
    pub replication: Arc<ReplicationCtx>,
    /// Log filter.
    pub logs: LogControl,
}

fn refuse(error: &MemberError) -> Status {
    match error {
        MemberError::Refused(_) => Status::failed_precondition(error.to_string()),
        MemberError::Slots(_)
        | MemberError::Sync { .. }
        | MemberError::Catalogue(_)
        | MemberError::Begin { .. }
        | MemberError::Follower(_) => Status::internal(error.to_string()),
    }
}

fn bad(error: impl std::fmt::Display) -> Status {
    Status::invalid_argument(error.to_string())
}

/// Runs what blocks on the disk off the runtime's thread.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Status> {
    tokio::task::spawn_blocking(work).await.map_err(|e| Status::internal(format!("run order: {e}")))
}

impl AdminService {
    async fn report(&self) -> Result<Response<v1::MemberReport>, Status> {
        let reporter = self.reporter.clone();
        Ok(Response::new(blocking(move || reporter.report()).await?))
    }

    /// Carries an order out off the runtime's thread and answers with the report after it.
    async fn order(
        &self,
        order: impl FnOnce(&Member) -> Result<(), MemberError> + Send + 'static,
    ) -> Result<Response<v1::MemberReport>, Status> {
        let member = self.member.clone();
        blocking(move || order(&member)).await?.map_err(|e| refuse(&e))?;
        self.store.note_change();
        self.report().await
    }

    fn named(&self, name: &str) -> Result<PrefixName, Status> {
        PrefixName::new(name).map_err(bad)
    }
}

#[tonic::async_trait]
impl Admin for AdminService {
    type WatchStatusStream = Pin<Box<dyn Stream<Item = Result<v1::MemberReport, Status>> + Send>>;

    async fn status(&self, _: Request<v1::StatusRequest>) -> Result<Response<v1::MemberReport>, Status> {
        self.report().await
    }

    async fn watch_status(&self, _: Request<v1::StatusRequest>) -> Result<Response<Self::WatchStatusStream>, Status> {
        let (sender, receiver) = mpsc::channel(1);
        let service = self.clone();
        tokio::spawn(async move {
            let mut changes = service.store.changes();
            loop {
                changes.borrow_and_update();
                let marks = service.reporter.marks();
                let report = service.report().await.map(Response::into_inner);
                if sender.send(report).await.is_err() {
                    return;
                }
                tokio::select! {
                    () = sender.closed() => return,
                    () = tokio::time::sleep(REPORT_PAUSE) => {}
                }
                tokio::select! {
                    () = sender.closed() => return,
                    () = tokio::time::sleep(REPORT_INTERVAL - REPORT_PAUSE) => {}
                    () = service.reporter.moved(marks, MOVED_PAUSE) => {}
                    changed = changes.changed() => if changed.is_err() { return },
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn promote(&self, request: Request<v1::PromoteRequest>) -> Result<Response<v1::MemberReport>, Status> {
        let order = request.into_inner();
        if !order.process_id.is_empty() && order.process_id != self.reporter.process_id {
            return Err(Status::failed_precondition("promote: the order is for a process that has ended"));
        }
        let order = convert::promotion(order).map_err(bad)?;
        self.order(move |member| member.promote(order)).await
    }

    async fn seal(&self, request: Request<v1::SealRequest>) -> Result<Response<v1::MemberReport>, Status> {
        let order = convert::seal(&request.into_inner()).map_err(bad)?;
        self.order(move |member| member.seal(order)).await
    }

    async fn pull(&self, request: Request<v1::PullRequest>) -> Result<Response<v1::MemberReport>, Status> {
        let order = convert::pull(&request.into_inner()).map_err(bad)?;
        self.order(move |member| member.take(order)).await
    }

    async fn freeze(&self, request: Request<v1::FreezeRequest>) -> Result<Response<v1::MemberReport>, Status> {
        let order = convert::freeze(&request.into_inner()).map_err(bad)?;
        self.order(move |member| member.take(order)).await
    }

    async fn follow(&self, request: Request<v1::FollowRequest>) -> Result<Response<v1::MemberReport>, Status> {
        let order = request.into_inner();
        let (member, reign) = convert::order(&order.data_uuid, order.reign.as_ref()).map_err(bad)?;
        let upstream = convert::endpoint(order.upstream.as_ref()).map_err(bad)?;
        let primary = convert::endpoint(order.primary.as_ref()).map_err(bad)?;
        let source = order.bootstrap_source.as_ref();
        let source = source.map(|s| convert::endpoint(Some(s))).transpose().map_err(bad)?;
        let store = StoreUid(order.store_uid);
        self.order(move |owner| owner.follow(Event::Follow { store, member, reign, upstream, primary }, source)).await
    }

    async fn reseed(&self, request: Request<v1::ReseedRequest>) -> Result<Response<v1::MemberReport>, Status> {
        let order = request.into_inner();
        if order.data_uuid != self.store.data_uuid.to_string() {
            return Err(Status::failed_precondition("reseed: the order is for another member"));
        }
        if self.store.role().upstream.is_none() {
            return Err(Status::failed_precondition(
                "reseed: this member follows nobody, so there is no source to copy from",
            ));
        }
        let prefixes: Vec<_> = if order.prefix.is_empty() {
            self.store.prefixes().by_uuid.keys().copied().collect()
        } else {
            let found = self.store.prefix(order.prefix.as_bytes());
            vec![found.ok_or_else(|| Status::not_found(format!("reseed: there is no prefix {}", order.prefix)))?.uuid]
        };
        for prefix in prefixes {
            self.follower.reseed(prefix);
        }
        self.report().await
    }

    async fn hold(&self, request: Request<v1::HoldRequest>) -> Result<Response<v1::HoldResponse>, Status> {
        let order = request.into_inner();
        convert::hold(&self.store, &self.replication, &order).map(Response::new)
    }

    async fn r#continue(&self, request: Request<v1::ContinueRequest>) -> Result<Response<v1::HoldResponse>, Status> {
        convert::release(&self.store, &self.replication, &request.into_inner().prefix).map(Response::new)
    }

    async fn create_prefix(&self, request: Request<v1::PrefixRequest>) -> Result<Response<v1::PrefixResponse>, Status> {
        let name = self.named(&request.into_inner().name)?;
        let (sender, receiver) = oneshot::channel();
        self.catalogue.declare(name, Box::new(move |result| drop(sender.send(result))));
        let prefix = receiver.await.map_err(|_| Status::unavailable("create prefix: the member stops"))?;
        let prefix = prefix.map_err(|e| match &e {
            CreateError::NotPrimary | CreateError::NotOnWrite(_) => Status::failed_precondition(e.to_string()),
            CreateError::TooMany { .. } => Status::resource_exhausted(e.to_string()),
            CreateError::Busy(_) => Status::unavailable(e.to_string()),
            CreateError::Failed { .. } => Status::internal(e.to_string()),
        })?;
        let at = prefix.position_at(prefix.applied());
        Ok(Response::new(v1::PrefixResponse { prefix_uuid: prefix.uuid.to_string(), position: Some(position_to(at)) }))
    }

    async fn drop_prefix(&self, request: Request<v1::PrefixRequest>) -> Result<Response<v1::PrefixResponse>, Status> {
        let name = self.named(&request.into_inner().name)?;
        let (sender, receiver) = oneshot::channel();
        self.catalogue.drop_prefix(name, Box::new(move |result| drop(sender.send(result))));
        let (uuid, at) = receiver
            .await
            .map_err(|_| Status::unavailable("drop prefix: the member stops"))?
            .map_err(|e| Status::failed_precondition(e.to_string()))?;
        Ok(Response::new(v1::PrefixResponse { prefix_uuid: uuid.to_string(), position: Some(position_to(at)) }))
    }

    async fn set_log_filter(
        &self,
        request: Request<v1::SetLogFilterRequest>,
    ) -> Result<Response<v1::SetLogFilterResponse>, Status> {
        let previous = self.logs.set(&request.into_inner().filter).map_err(bad)?;
        Ok(Response::new(v1::SetLogFilterResponse { previous }))
    }
}
