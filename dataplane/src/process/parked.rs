//! A member that a person must look at: up, not ready, its data closed, saying why. A restart would not cure it, so there
//! is none. It still seals, as long as its slots can be read and written, and votes as far as it can with its data closed:
//! unknown, of everything that it has.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::Stream;
use parking_lot::Mutex;
use parovoz_dataplane_core::member::{Hearing, MemberRecord, Sealing};
use parovoz_dataplane_core::types::{PrefixName, PrefixUuid, catalogue_uuid};
use parovoz_proto::v1;
use parovoz_proto::v1::admin_server::{Admin, AdminServer};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::{IntervalStream, TcpListenerStream};
use tonic::transport::Server;
use tonic::{Request, Response, Status};

use crate::admin::convert;
use crate::clock;
use crate::config::RunArgs;
use crate::disk::layout::Layout;
use crate::disk::reserve;
use crate::disk::slots::Slots;
use crate::http::Health;
use crate::replication::wire::{reign_ref_to, reign_to};
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

/// What of a parked member is not closed.
#[derive(Debug)]
struct Promises {
    slots: Slots,
    record: MemberRecord,
}

#[derive(Debug, Clone)]
struct Parked {
    /// Without what the slots hold.
    report: v1::MemberReport,
    /// `None` if no slot can be read, or they are another store's.
    promises: Option<Arc<Mutex<Promises>>>,
    started_ms: u64,
}

/// An unknown vote for everything that the volume has a folder of. A floor says nothing here: the copy may be far above it.
fn unknown_votes(args: &RunArgs, record: &MemberRecord) -> Vec<v1::PrefixReport> {
    let unknown = |name: &PrefixName, uuid: PrefixUuid| v1::PrefixReport {
        name: name.to_string(),
        prefix_uuid: uuid.to_string(),
        state: v1::PrefixState::Stopped.into(),
        system: name.is_catalogue(),
        vote: Some(v1::Vote { prefix_uuid: uuid.to_string(), name: name.to_string(), known: None, floor: None }),
        ..v1::PrefixReport::default()
    };
    let (catalogue, of) = (PrefixName::catalogue(), catalogue_uuid(&record.store));
    let mut votes = vec![unknown(&catalogue, of)];
    match Layout::untouched(&args.data_dir).prefixes() {
        Ok(found) => {
            votes.extend(found.iter().filter(|(_, uuid)| *uuid != of).map(|(name, uuid)| unknown(name, *uuid)))
        }
        Err(error) => tracing::warn!(%error, "prefixes of the parked volume are not known"),
    }
    votes
}

impl Parked {
    fn new(args: &RunArgs, why: &RunError, process_id: String) -> Self {
        let promises = match Slots::open(&args.data_dir) {
            Ok((slots, Some(record))) if record.store.0 == args.store_uid => Some(Promises { slots, record }),
            _ => None,
        };
        let known = promises.as_ref().filter(|p| !p.record.is_blank());
        let report = v1::MemberReport {
            store_uid: args.store_uid.clone(),
            data_uuid: promises.as_ref().map(|p| p.record.data_uuid.to_string()).unwrap_or_default(),
            pod_name: args.pod_name.clone(),
            process_id,
            role: v1::MemberRole::Replica.into(),
            phase: v1::MemberPhase::Parked.into(),
            reason: why.to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            prefixes: known.map(|p| unknown_votes(args, &p.record)).unwrap_or_default(),
            ..v1::MemberReport::default()
        };
        Self { report, promises: promises.map(|p| Arc::new(Mutex::new(p))), started_ms: clock::boot_ms() }
    }

    fn report(&self) -> v1::MemberReport {
        let mut report = self.report.clone();
        report.at_ms = clock::wall_ms();
        report.uptime_ms = clock::boot_ms().saturating_sub(self.started_ms);
        if let Some(promises) = &self.promises {
            let promises = promises.lock();
            report.reign = promises.record.promised.as_ref().map(reign_to);
            report.started_epoch = promises.record.started.0;
            report.sealed = promises.record.sealed.map(reign_ref_to);
        }
        report
    }

    /// Nothing is open that could be synced: what this answers is that nothing of a lower epoch will be taken.
    fn take_seal(&self, from: &v1::SealRequest) -> Result<(), Status> {
        let Some(promises) = &self.promises else { return self.refuse() };
        let order = convert::seal(from).map_err(|e| Status::invalid_argument(e.to_string()))?;
        let hearing = Hearing { silence_ms: None, uptime_ms: clock::boot_ms().saturating_sub(self.started_ms) };
        let mut promises = promises.lock();
        match promises.record.seal(&order, hearing) {
            Ok(Sealing::Already) => Ok(()),
            Ok(Sealing::Start(next)) => {
                promises.slots.write_both(&next).map_err(|e| Status::internal(e.to_string()))?;
                promises.record = *next;
                tracing::info!(epoch = %order.reign.epoch, "sealed while parked");
                Ok(())
            }
            Err(refusal) => Err(Status::failed_precondition(refusal.to_string())),
        }
    }

    fn refuse<T>(&self) -> Result<T, Status> {
        Err(Status::failed_precondition(format!("this member is parked: {}", self.report.reason)))
    }
}

/// Serves reports and probes until SIGTERM.
///
/// # Errors
/// If a port is taken.
pub async fn serve(args: &RunArgs, why: &RunError, process_id: String) -> Result<(), RunError> {
    tracing::error!(%why, "parked: the data is closed until a person has looked");
    let parked = Parked::new(args, why, process_id);
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

/// Returns once there is room on a volume whose being full is why the process is parked, or why it ended too often.
async fn room_again(args: &RunArgs, why: &RunError) {
    let has_room = || reserve::space(&args.data_dir).is_ok_and(|(free, _)| free >= reserve::ROOM_BYTES);
    if !why.is_full() && (!matches!(why, RunError::OverBudget { .. }) || has_room()) {
        return std::future::pending().await;
    }
    let mut every = tokio::time::interval(super::HOUSEKEEPING);
    loop {
        every.tick().await;
        if has_room() {
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
        Ok(Response::new(self.report()))
    }
    async fn watch_status(&self, _: Request<v1::StatusRequest>) -> Result<Response<Self::WatchStatusStream>, Status> {
        let parked = self.clone();
        let every = IntervalStream::new(tokio::time::interval(Duration::from_secs(1)));
        Ok(Response::new(Box::pin(every.map(move |_| Ok(parked.report())))))
    }
    async fn seal(&self, request: Request<v1::SealRequest>) -> Result<Response<v1::MemberReport>, Status> {
        let parked = self.clone();
        let sealed = tokio::task::spawn_blocking(move || parked.take_seal(&request.into_inner())).await;
        sealed.map_err(|e| Status::internal(format!("run order: {e}")))??;
        Ok(Response::new(self.report()))
    }
    async fn pull(&self, _: Request<v1::PullRequest>) -> Result<Response<v1::MemberReport>, Status> {
        self.refuse()
    }
    async fn freeze(&self, _: Request<v1::FreezeRequest>) -> Result<Response<v1::MemberReport>, Status> {
        self.refuse()
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
