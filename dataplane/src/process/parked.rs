//! A member that a person must look at: up, not ready, its data closed, saying why. A restart would not cure it, so there
//! is none.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::Stream;
use parovoz_proto::v1;
use parovoz_proto::v1::admin_server::{Admin, AdminServer};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::{IntervalStream, TcpListenerStream};
use tonic::transport::Server;
use tonic::{Request, Response, Status};

use crate::config::RunArgs;
use crate::disk::reserve;
use crate::http::Health;
use crate::run::{RunError, listen};

/// Whether an error parks the process rather than ending it.
pub fn needs_a_person(error: &RunError) -> bool {
    match error {
        RunError::Slots(_)
        | RunError::OtherStore { .. }
        | RunError::SlotsMissing
        | RunError::OverBudget { .. }
        | RunError::Catalogue(_)
        | RunError::Config(_)
        | RunError::Layout(_) => true,
        RunError::Engine(_)
        | RunError::Loops(_)
        | RunError::Thread { .. }
        | RunError::Listen { .. }
        | RunError::Lock { .. }
        | RunError::Descriptors { .. } => false,
    }
}

#[derive(Debug, Clone)]
struct Parked {
    report: v1::MemberReport,
}

impl Parked {
    fn refuse<T>(&self) -> Result<T, Status> {
        Err(Status::failed_precondition(format!("this member is parked: {}", self.report.reason)))
    }
}

/// Serves reports and probes until SIGTERM.
///
/// # Errors
/// If a port is taken.
pub async fn serve(args: &RunArgs, why: &RunError) -> Result<(), RunError> {
    tracing::error!(%why, "parked: the data is closed until a person has looked");
    let report = v1::MemberReport {
        store_uid: args.store_uid.clone(),
        pod_name: args.pod_name.clone(),
        process_id: uuid::Uuid::new_v4().to_string(),
        role: v1::MemberRole::Replica.into(),
        phase: v1::MemberPhase::Parked.into(),
        reason: why.to_string(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        at_ms: crate::clock::wall_ms(),
        ..v1::MemberReport::default()
    };
    let parked = Parked { report };
    let http = listen(args, args.http_port).await?;
    let health: Arc<dyn Health> = Arc::new(parked.clone());
    tokio::spawn(async move { axum::serve(http, crate::http::router(health)).await });
    let admin = listen(args, args.admin_port).await?;
    let server = Server::builder().add_service(AdminServer::new(parked));
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(admin)));
    tokio::select! {
        () = super::wait_for_signal() => {}
        () = settings_changed(args) => tracing::info!("settings changed: ending, to be started with them"),
        () = room_again(args, why) => tracing::info!("there is room on the volume again: ending, to be started"),
    }
    if matches!(why, RunError::OverBudget { .. }) {
        crate::run::forgive_restarts(args)?;
    }
    Ok(())
}

/// Returns once the settings file holds something else than now.
async fn settings_changed(args: &RunArgs) {
    let Some(path) = args.config.as_deref() else { return std::future::pending().await };
    let before = std::fs::read(path).ok();
    let mut every = tokio::time::interval(super::HOUSEKEEPING);
    loop {
        every.tick().await;
        if std::fs::read(path).ok() != before {
            return;
        }
    }
}

/// Returns once there is room on a volume whose being full is why the process is parked.
async fn room_again(args: &RunArgs, why: &RunError) {
    if !why.is_full() {
        return std::future::pending().await;
    }
    let mut every = tokio::time::interval(super::HOUSEKEEPING);
    loop {
        every.tick().await;
        if reserve::space(&args.data_dir).is_ok_and(|(free, _)| free >= reserve::ROOM_BYTES) {
            return;
        }
    }
}

impl Health for Parked {
    fn not_ready(&self) -> Option<String> {
        Some(self.report.reason.clone())
    }
    fn unhealthy(&self) -> Option<String> {
        None
    }
    fn metrics(&self) -> Result<String, std::fmt::Error> {
        Ok("# HELP parovoz_dataplane_parked 1 if a person must look\n# TYPE parovoz_dataplane_parked gauge\n\
            parovoz_dataplane_parked 1\n# EOF\n"
            .to_owned())
    }
}

#[tonic::async_trait]
impl Admin for Parked {
    type WatchStatusStream = Pin<Box<dyn Stream<Item = Result<v1::MemberReport, Status>> + Send>>;

    async fn status(&self, _: Request<v1::StatusRequest>) -> Result<Response<v1::MemberReport>, Status> {
        Ok(Response::new(self.report.clone()))
    }
    async fn watch_status(&self, _: Request<v1::StatusRequest>) -> Result<Response<Self::WatchStatusStream>, Status> {
        let report = self.report.clone();
        let every = IntervalStream::new(tokio::time::interval(Duration::from_secs(5)));
        Ok(Response::new(Box::pin(every.map(move |_| Ok(report.clone())))))
    }
    async fn promote(&self, _: Request<v1::PromoteRequest>) -> Result<Response<v1::MemberReport>, Status> {
        self.refuse()
    }
    async fn follow(&self, _: Request<v1::FollowRequest>) -> Result<Response<v1::MemberReport>, Status> {
        self.refuse()
    }
    async fn reseed(&self, _: Request<v1::ReseedRequest>) -> Result<Response<v1::MemberReport>, Status> {
        self.refuse()
    }
    async fn hold(&self, _: Request<v1::HoldRequest>) -> Result<Response<v1::HoldResponse>, Status> {
        self.refuse()
    }
    async fn r#continue(&self, _: Request<v1::ContinueRequest>) -> Result<Response<v1::HoldResponse>, Status> {
        self.refuse()
    }
    async fn create_prefix(&self, _: Request<v1::PrefixRequest>) -> Result<Response<v1::PrefixResponse>, Status> {
        self.refuse()
    }
    async fn drop_prefix(&self, _: Request<v1::PrefixRequest>) -> Result<Response<v1::PrefixResponse>, Status> {
        self.refuse()
    }
    async fn set_log_filter(
        &self,
        _: Request<v1::SetLogFilterRequest>,
    ) -> Result<Response<v1::SetLogFilterResponse>, Status> {
        self.refuse()
    }
}
