//! The follower: keeps a session with its upstream, acknowledges, copies prefixes. Tries for ever, outside any budget.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use parking_lot::Mutex;
use parovoz_dataplane_core::budget::Backoff;
use parovoz_dataplane_core::follower::{BootstrapCause, HelloError, SessionError};
use parovoz_dataplane_core::types::{PrefixUuid, ReignRef};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint as Address};

use super::ack_client::{self, AckBoard};
use super::apply::Appliers;
use super::bootstrap::{self, Bootstraps};
use super::progress::{Board, FollowerStatus, SessionPhase};
use super::wire::WireError;
use super::{ReplicationCtx, session};
use crate::clock;
use crate::store::{Endpoint, RoleView};

/// Bytes that may be under way on a connection, and on one stream of it.
const CONNECTION_WINDOW: u32 = 16 << 20;
const STREAM_WINDOW: u32 = 8 << 20;
/// How long a name is tried before the address is tried beside it.
const NAME_ALONE: Duration = Duration::from_millis(150);
/// A session that lasted so long was a success: the next pause is short again.
const GOOD_SESSION_MS: u64 = 10_000;

/// Why a link to another member failed. All are tried again, with backoff.
#[derive(Debug, thiserror::Error)]
pub(super) enum LinkError {
    #[error("connect: {address:?} is not host:port")]
    BadAddress { address: String },
    #[error("connect to {address}: {cause}")]
    Connect { address: String, cause: String },
    #[error("call peer: {}", .0.message())]
    Call(#[from] tonic::Status),
    #[error("connect: no answer in time")]
    Silent,
    #[error("the peer said nothing for {0:?}")]
    Quiet(Duration),
    #[error("the peer closed the stream")]
    Closed,
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error(transparent)]
    Hello(#[from] HelloError),
    #[error(transparent)]
    Session(#[from] SessionError),
    #[error("promise the upstream's reign: {0}")]
    Promise(String),
    #[error("follow upstream: it is sealed and leads nothing yet")]
    OnlySealed,
    #[error("too many messages wait for the upstream")]
    Overflow,
}

impl LinkError {
    /// Whether somebody must change something before it can work.
    fn is_refusal(&self) -> bool {
        match self {
            Self::BadAddress { .. } => true,
            Self::Hello(error) => !error.is_transient(),
            Self::Call(status) => status.code() == tonic::Code::FailedPrecondition,
            Self::Connect { .. }
            | Self::Silent
            | Self::Quiet(_)
            | Self::Closed
            | Self::Wire(_)
            | Self::Session(_)
            | Self::Promise(_)
            | Self::OnlySealed
            | Self::Overflow => false,
        }
    }
}

/// Connects to a member's replication port.
pub(super) async fn connect(ctx: &ReplicationCtx, to: &Endpoint) -> Result<Channel, LinkError> {
    by_name_or_ip(&to.replication, &to.ip, |address| async move { dial(ctx, &address).await }).await
}

/// Dials a port of a member by its name (`name:port`); where that takes long, by its IP address too, if one is known, and
/// whichever answers first will do. The name server may be on the very node that failed, and the address may be outdated.
pub(crate) async fn by_name_or_ip<T, E, F>(named: &str, ip: &str, dial: impl Fn(String) -> F) -> Result<T, E>
where
    F: Future<Output = Result<T, E>> + Send,
{
    let by_name = dial(named.to_owned());
    let port = named.rsplit_once(':').map_or("", |(_, port)| port);
    let Some(ip) = ip.parse::<std::net::IpAddr>().ok().filter(|_| !port.is_empty()) else { return by_name.await };
    let by_ip = dial(if ip.is_ipv6() { format!("[{ip}]:{port}") } else { format!("{ip}:{port}") });
    let by_ip = async {
        tokio::time::sleep(NAME_ALONE).await;
        by_ip.await
    };
    futures::future::select_ok([by_name.boxed(), by_ip.boxed()]).await.map(|(reached, _)| reached)
}

async fn dial(ctx: &ReplicationCtx, address: &str) -> Result<Channel, LinkError> {
    let bad = || LinkError::BadAddress { address: address.to_owned() };
    let port = address.rsplit_once(':').filter(|(host, _)| !host.is_empty()).and_then(|(_, p)| p.parse::<u16>().ok());
    port.ok_or_else(bad)?;
    let endpoint = Address::from_shared(format!("http://{address}")).map_err(|_| bad())?;
    endpoint
        .connect_timeout(ctx.tuning.connect)
        .tcp_nodelay(true)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .initial_stream_window_size(STREAM_WINDOW)
        .http2_keep_alive_interval(Duration::from_secs(10))
        .keep_alive_timeout(Duration::from_secs(10))
        .connect()
        .await
        .map_err(|e| LinkError::Connect { address: address.to_owned(), cause: root_cause(&e) })
}

/// The innermost reason: tonic's own words are only "transport error".
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

/// Between 0 and 1, for pauses.
pub(super) fn jitter() -> f64 {
    rand::random::<f64>()
}

/// What the parts of the follower share.
#[derive(Debug)]
pub(super) struct Shared {
    pub ctx: Arc<ReplicationCtx>,
    pub stop: CancellationToken,
    pub board: Board,
    pub appliers: Appliers,
    pub acks: Arc<AckBoard>,
    pub bootstraps: Bootstraps,
    /// Something changed that the session must look at: a bootstrap began or ended.
    pub look: Notify,
    hint: Mutex<Option<(ReignRef, String)>>,
}

impl Shared {
    /// The primary's replication address, as the upstream told it under this reign.
    pub fn primary_hint(&self, reign: ReignRef) -> Option<String> {
        self.hint.lock().as_ref().filter(|(of, _)| *of == reign).map(|(_, address)| address.clone())
    }

    /// Where the primary of the promised reign is reached. A newer reign that was met at the upstream may have another primary
    /// than the last order named.
    pub fn primary_endpoint(&self, role: &RoleView) -> Option<Endpoint> {
        let reign = role.reign.as_ref()?;
        let ordered = role.primary.as_ref().filter(|p| p.data_uuid.is_none_or(|who| who == reign.primary));
        let hinted = || {
            let replication = self.primary_hint(reign.to_ref())?;
            Some(Endpoint { replication, ..Endpoint::default() })
        };
        let found = ordered.filter(|p| !p.replication.is_empty()).cloned().or_else(hinted)?;
        Some(Endpoint { data_uuid: Some(reign.primary), ..found })
    }

    pub fn set_primary_hint(&self, reign: ReignRef, address: &str) {
        let mut hint = self.hint.lock();
        if !address.is_empty() && hint.as_ref().is_none_or(|(of, a)| *of != reign || a != address) {
            *hint = Some((reign, address.to_owned()));
        }
    }
}

/// The running follower. It follows whatever [`crate::store::Store::role`] names, and nothing while that is nothing.
#[derive(Debug)]
pub struct Follower {
    shared: Arc<Shared>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

impl Follower {
    /// Starts following on `runtime`.
    ///
    /// # Errors
    /// The system refuses a thread.
    pub fn start(ctx: Arc<ReplicationCtx>, runtime: &tokio::runtime::Handle) -> std::io::Result<Self> {
        let acks = Arc::new(AckBoard::default());
        let appliers = Appliers::start(&ctx, &acks)?;
        let shared = Arc::new(Shared {
            ctx,
            stop: CancellationToken::new(),
            board: Board::default(),
            appliers,
            acks,
            bootstraps: Bootstraps::default(),
            look: Notify::new(),
            hint: Mutex::default(),
        });
        let tasks = vec![
            runtime.spawn(run(shared.clone())),
            runtime.spawn(ack_client::run(shared.clone())),
            runtime.spawn(bootstrap::run(shared.clone())),
        ];
        Ok(Self { shared, tasks: Mutex::new(tasks) })
    }

    /// Stops for good: once it returned, nothing is applied, acknowledged or replaced any more. A bootstrap under way goes on
    /// from its staging with the next follower.
    pub async fn stop(&self) {
        self.shared.stop.cancel();
        let tasks = std::mem::take(&mut *self.tasks.lock());
        for task in tasks {
            // A panic in it was reported where it happened.
            let _ = task.await;
        }
        let shared = self.shared.clone();
        let _ = tokio::task::spawn_blocking(move || shared.appliers.join()).await;
    }

    /// Copies a prefix anew, whatever its state and budget; its present copy stays until the new one is verified.
    pub fn reseed(&self, prefix: PrefixUuid) {
        self.shared.bootstraps.reset_budget(prefix);
        self.shared.bootstraps.enqueue(prefix, BootstrapCause::Missing);
        self.shared.look.notify_one();
    }

    /// What it is doing.
    #[must_use]
    pub fn status(&self) -> FollowerStatus {
        let mut status = self.shared.board.read();
        status.bootstraps = self.shared.bootstraps.progress();
        status
    }
}

/// Keeps a session with whoever is the upstream.
async fn run(shared: Arc<Shared>) {
    let (base, cap) = shared.ctx.tuning.backoff_ms;
    let mut backoff = Backoff::new(base, cap);
    let mut changes = shared.ctx.store.changes();
    let mut last: Option<Endpoint> = None;
    while !shared.stop.is_cancelled() {
        let role = shared.ctx.store.role();
        let Some(upstream) = role.upstream.clone().filter(|u| !role.is_primary && !u.replication.is_empty()) else {
            shared.board.update(|s| *s = FollowerStatus::default());
            tokio::select! {
                () = shared.stop.cancelled() => return,
                _ = changes.changed() => {}
            }
            continue;
        };
        if last.as_ref() != Some(&upstream) {
            backoff.reset();
            last = Some(upstream.clone());
        }
        shared.board.update(|s| {
            s.address.clone_from(&upstream.replication);
            if s.phase == SessionPhase::Idle {
                s.phase = SessionPhase::Connecting;
            }
        });
        let started = clock::boot_ms();
        let ended = session::run(&shared, &upstream).await;
        if clock::boot_ms() - started > GOOD_SESSION_MS {
            backoff.reset();
        }
        let Err(error) = ended else { continue };
        shared.ctx.stats.session_failures.inc();
        tracing::info!(upstream = %upstream.replication, %error, failures = backoff.failures(), "follow upstream");
        shared.board.update(|s| {
            s.phase = if error.is_refusal() { SessionPhase::Refused } else { SessionPhase::Connecting };
            s.reason = error.to_string();
        });
        shared.ctx.store.note_change();
        pause(&shared, backoff.next_ms(jitter()), &upstream).await;
    }
}

/// Waits, but not when the orders change meanwhile.
async fn pause(shared: &Shared, ms: u64, upstream: &Endpoint) {
    let mut changes = shared.ctx.store.changes();
    let over = tokio::time::sleep(Duration::from_millis(ms));
    tokio::pin!(over);
    loop {
        tokio::select! {
            () = shared.stop.cancelled() => return,
            () = &mut over => return,
            _ = changes.changed() => {
                if shared.ctx.store.role().upstream.as_ref() != Some(upstream) {
                    return;
                }
            }
        }
    }
}
