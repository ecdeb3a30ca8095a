//! The whole process: wires the parts, runs them until SIGTERM, stops them in the reverse order.

mod parked;
mod view;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use parovoz_dataplane_core::types::PrefixUuid;
use parovoz_proto::v1;
use parovoz_proto::v1::admin_server::AdminServer;
use parovoz_proto::v1::store_server::StoreServer;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;

use crate::admin::AdminService;
use crate::config::{RunArgs, Settings, TCP_KEEPALIVE};
use crate::disk::watermarks::{NOTED_EVERY, Watermarks};
use crate::grpc::{Paced, StoreService};
use crate::logging::LogControl;
use crate::member::Member;
use crate::member::following::Following;
use crate::member::hooks::Hooks;
use crate::member::keeper::{self, pulse};
use crate::member::lease;
use crate::member::report::Reporter;
use crate::member::state::MemberState;
use crate::replication::ReplicationCtx;
use crate::run::{
    FatalSwitch, RunError, STOP_DEADLINE, limits, listen, open_engine, open_volume, raise_descriptor_limit,
};
use crate::shard::Shards;
use crate::store::catalogue::Catalogue;
use crate::store::{Endpoint, Store, retention};

/// How long a stopping primary waits for its followers to have everything.
const HAND_OVER: Duration = Duration::from_secs(3);
/// Between two pings that a gRPC client must answer, and how long it may take.
const PING_EVERY: Duration = Duration::from_secs(30);
const PING_PATIENCE: Duration = Duration::from_secs(20);
/// Between two looks at the settings file, and between two passes of the pruner.
const HOUSEKEEPING: Duration = Duration::from_secs(5);
/// Passes of housekeeping between two looks at `detached/`.
const DETACHED_PASSES: u64 = 12;
/// Batches older than this leave the ring: followers that are so far behind read the WAL.
const RING_AGE_MS: u64 = 60_000;

/// Runs the member until SIGTERM or SIGINT.
///
/// # Errors
/// If a part can't be started. What a person must repair does not end the process but parks it, up and saying why.
pub fn run(args: &RunArgs, logs: LogControl) -> Result<(), RunError> {
    let mut args = args.clone();
    let memory_limit = crate::memory::container_limit();
    crate::memory::fit(&mut args, memory_limit);
    let args = &args;
    let main = runtime("main", 0)?;
    let descriptors = raise_descriptor_limit()?;
    tracing::info!(version = env!("CARGO_PKG_VERSION"), pod = %args.pod_name, descriptors, memory_limit, "starting");
    let process_id = crate::member::process_id(&args.data_dir);
    crate::run::announce(args, &process_id);
    match Parts::start(args, logs, process_id.clone()) {
        Ok(parts) => main.block_on(parts.serve(args)),
        Err(error) if parked::needs_a_person(&error) => main.block_on(parked::serve(args, &error, process_id)),
        Err(error) => Err(error),
    }
}

/// A runtime with one thread of its own; `niceness` above 0 lowers its priority.
fn runtime(name: &'static str, niceness: i32) -> Result<Runtime, RunError> {
    Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name(name)
        .enable_all()
        .on_thread_start(move || {
            if niceness > 0 {
                // Not allowed here means normal priority, which is fine.
                let _ = rustix::process::nice(niceness);
            }
        })
        .build()
        .map_err(|cause| RunError::Thread { name, cause })
}

/// Everything that runs.
struct Parts {
    store: Arc<Store>,
    member: Arc<Member>,
    shards: Shards,
    ctx: Arc<ReplicationCtx>,
    admin: AdminService,
    engine: Arc<dyn parovoz_engine::Engine>,
    layout: crate::disk::layout::Layout,
    client: Runtime,
    bulk: Runtime,
    replication: Runtime,
    replication_stop: CancellationToken,
    acked: Arc<Notify>,
    fatal: FatalSwitch,
    watermarks: Arc<Mutex<Watermarks>>,
    _volume_lock: std::fs::File,
}

fn event_loops(args: &RunArgs) -> usize {
    match args.event_loops {
        0 => std::thread::available_parallelism().map_or(2, usize::from).clamp(1, 4),
        n => n,
    }
}

impl Parts {
    fn start(args: &RunArgs, logs: LogControl, process_id: String) -> Result<Self, RunError> {
        let settings = args.config.as_deref().map_or_else(|| Ok(Settings::default()), Settings::read)?;
        let volume = open_volume(args, &settings)?;
        let fatal = FatalSwitch::abort();
        let engine = open_engine(args)?;
        let record = volume.record;
        let store = Arc::new(Store::new(record.store.clone(), record.data_uuid, limits(), settings, args.ring_bytes));
        let loops = event_loops(args);
        let catalogue = open_prefixes(&store, &engine, &volume.layout, loops, &fatal)?;

        let state = Arc::new(MemberState::new(volume.slots, record, store.clone(), args.lease_keeper()));
        let watermarks = raise_floors(&store, &state, Watermarks::open(&args.data_dir))?;
        let acked = Arc::new(Notify::new());
        let hooks = Arc::new(Hooks::new(&state, &store, &acked, &fatal));
        let ctx = Arc::new(ReplicationCtx::new(
            store.clone(),
            engine.clone(),
            Arc::new(volume.layout.clone()),
            hooks,
            catalogue.clone(),
            advertise(args, &store),
        ));
        let replication = runtime("replication", 0)?;
        let follower = Arc::new(Following::new(ctx.clone(), replication.handle().clone()));
        let renewals = keep_lease(args, &replication, state.clone());
        let member =
            Arc::new(Member::new(store.clone(), catalogue.clone(), follower.clone(), state, renewals, fatal.clone()));
        let shards =
            Shards::start(store.clone(), args, loops, fatal.clone()).map_err(|e| RunError::Loops(e.to_string()))?;
        let view = Arc::new(view::View { ctx: ctx.clone(), follower: follower.clone() });
        shards.handle().set_followers(view.clone());
        let reporter = Arc::new(Reporter {
            store: store.clone(),
            member: member.clone(),
            layout: volume.layout.clone(),
            replication: view,
            pod_name: args.pod_name.clone(),
            process_id,
            loops: shards.handle(),
        });
        let admin = AdminService {
            store: store.clone(),
            member: member.clone(),
            reporter,
            catalogue,
            follower,
            replication: ctx.clone(),
            logs,
        };
        Ok(Self {
            store,
            member,
            shards,
            ctx,
            admin,
            engine,
            layout: volume.layout,
            client: runtime("client", 0)?,
            bulk: runtime("bulk", 10)?,
            replication,
            replication_stop: CancellationToken::new(),
            acked,
            fatal,
            watermarks: Arc::new(Mutex::new(watermarks)),
            _volume_lock: volume.lock,
        })
    }

    async fn serve(mut self, args: &RunArgs) -> Result<(), RunError> {
        let (stop, stopping) = watch::channel(false);
        let result = self.serve_until_signal(args, &stopping).await;
        tracing::info!("stopping");
        // Blocking from here on: nothing else runs on this thread any more.
        let parts = tokio::task::spawn_blocking(move || {
            self.shards.stop(STOP_DEADLINE);
            hand_over(&self.ctx);
            self.member.stop(&self.admin.reporter.process_id);
            note_watermarks(&self.store, &self.watermarks, &mut HashMap::new());
            self
        });
        let parts = parts.await.map_err(|e| RunError::Loops(e.to_string()))?;
        let _ = stop.send(true);
        parts.replication_stop.cancel();
        for runtime in [parts.client, parts.bulk, parts.replication] {
            runtime.shutdown_background();
        }
        tracing::info!("stopped");
        result
    }

    async fn serve_until_signal(&self, args: &RunArgs, stopping: &watch::Receiver<bool>) -> Result<(), RunError> {
        for (runtime, port) in [(&self.client, args.client_port), (&self.bulk, args.bulk_port)] {
            let listener = listen(args, port).await?;
            let service = StoreService::new(self.store.clone(), self.shards.handle());
            let server = StoreServer::new(service).max_decoding_message_size(self.store.limits.batch * 2);
            let router = Server::builder()
                .http2_keepalive_interval(Some(PING_EVERY))
                .http2_keepalive_timeout(Some(PING_PATIENCE))
                .add_service(Paced(server));
            serve_router(runtime.handle(), router, listener, stopping.clone());
        }
        let listener = listen(args, args.replication_port).await?;
        let (ctx, token) = (self.ctx.clone(), self.replication_stop.clone());
        self.replication.spawn(async move {
            if let Err(error) = crate::replication::serve(ctx, listener, token).await {
                tracing::error!(%error, "the replication port ended");
            }
        });
        let listener = listen(args, args.admin_port).await?;
        let router = Server::builder().add_service(AdminServer::new(self.admin.clone()));
        serve_router(&Handle::current(), router, listener, stopping.clone());
        let listener = listen(args, args.http_port).await?;
        let health = Arc::new(view::Probe::new(
            self.admin.reporter.clone(),
            self.engine.clone(),
            self.ctx.clone(),
            self.shards.handle(),
        ));
        tokio::spawn(async move { axum::serve(listener, crate::http::router(health)).await });

        let stop = self.replication_stop.child_token();
        pulse(&args.data_dir, self.member.state().clone(), self.fatal.clone(), stop.clone())
            .map_err(|cause| RunError::Thread { name: "pulse", cause })?;
        tokio::spawn(keeper::keep(self.member.clone(), self.acked.clone(), stop));
        let member = self.member.clone();
        let resumed = tokio::task::spawn_blocking(move || member.resume_orders()).await;
        resumed.map_err(|e| RunError::Loops(e.to_string()))?.map_err(|e| RunError::Loops(e.to_string()))?;
        tracing::info!(resp = args.resp_port, client = args.client_port, "listening");
        let housekeeping = tokio::spawn(housekeeping(
            args.config.clone(),
            self.store.clone(),
            self.ctx.clone(),
            self.layout.clone(),
            self.member.clone(),
            self.admin.catalogue.clone(),
        ));
        keep_watermarks(self.store.clone(), self.watermarks.clone())?;
        wait_for_signal().await;
        housekeeping.abort();
        Ok(())
    }
}

/// Starts the task that renews the primary's Lease; answers by what it is asked to.
fn keep_lease(args: &RunArgs, on: &Runtime, state: Arc<MemberState>) -> mpsc::Sender<lease::Renewal> {
    // One renewal waits at most; a later one takes its place by being asked for again.
    let (renewals, due) = mpsc::channel(1);
    on.spawn(lease::keep(args.lease.clone(), state, due));
    renewals
}

/// Starts the thread of the catalogue and opens every prefix that is on the volume.
fn open_prefixes(
    store: &Arc<Store>,
    engine: &Arc<dyn parovoz_engine::Engine>,
    layout: &crate::disk::layout::Layout,
    loops: usize,
    fatal: &FatalSwitch,
) -> Result<Arc<Catalogue>, RunError> {
    let catalogue = Catalogue::start(store.clone(), engine.clone(), layout.clone(), loops, fatal.clone())
        .map_err(|cause| RunError::Thread { name: "catalogue", cause })?;
    let begin = Instant::now();
    let known = catalogue.open_all()?;
    if known {
        layout.forget_stagings(|prefix| store.prefix_by_uuid(prefix).is_some())?;
    }
    let prefixes = store.prefixes().by_uuid.len();
    tracing::info!(prefixes, ms = begin.elapsed().as_millis(), data_uuid = %store.data_uuid, "volume opened");
    store.set_creator(catalogue.clone());
    Ok(catalogue)
}

/// A database that came back below its watermark lost records that it had acknowledged: it must reach them again before it
/// counts.
fn raise_floors(store: &Store, state: &MemberState, watermarks: Watermarks) -> Result<Watermarks, RunError> {
    for (uuid, noted) in watermarks.marks() {
        let Some(prefix) = store.prefix_by_uuid(uuid) else { continue };
        let recovered = prefix.position_at(prefix.applied());
        if recovered >= noted {
            continue;
        }
        // What could not be opened for want of room may have everything: its floor tells once it is open.
        if !prefix.lacks_room() {
            tracing::error!(prefix = %prefix.name, %recovered, %noted,
                "the database came back without records that were durable: its log is damaged");
            if prefix.copy().is_none() && state.floor(uuid).is_none_or(|floor| floor < noted) {
                // It may have acknowledged more than was noted, so this must not become what counts as its floor.
                prefix.set_lost_its_end(true);
                continue;
            }
        }
        state.raise_floors(&[(uuid, noted)])?;
    }
    Ok(watermarks)
}

/// Notes how far each prefix is durable, on a thread of its own: the disk may let it wait. It ends with the store.
fn keep_watermarks(store: Arc<Store>, watermarks: Arc<Mutex<Watermarks>>) -> Result<(), RunError> {
    let weak = Arc::downgrade(&store);
    let noting = std::thread::Builder::new().name("watermarks".into()).spawn(move || {
        let mut seen = HashMap::new();
        while let Some(store) = weak.upgrade() {
            note_watermarks(&store, &watermarks, &mut seen);
            drop(store);
            std::thread::sleep(NOTED_EVERY);
        }
    });
    noting.map(drop).map_err(|cause| RunError::Thread { name: "watermarks", cause })
}

/// `seen` is what was durable at the last call: what did not move costs nothing.
fn note_watermarks(store: &Store, watermarks: &Mutex<Watermarks>, seen: &mut HashMap<PrefixUuid, u64>) {
    let prefixes = store.prefixes();
    let mut watermarks = watermarks.lock();
    let mut noted = Ok(());
    for prefix in prefixes.by_uuid.values() {
        let durable = prefix.durable();
        if prefix.copy().is_none() || seen.get(&prefix.uuid) == Some(&durable.0) {
            continue;
        }
        match watermarks.note(prefix.uuid, prefix.position_at(durable)) {
            Ok(()) => drop(seen.insert(prefix.uuid, durable.0)),
            Err(error) => noted = Err(error),
        }
    }
    if watermarks.len() > prefixes.by_uuid.len() && !store.is_loading() {
        seen.retain(|prefix, _| prefixes.by_uuid.contains_key(prefix));
        noted = noted.and(watermarks.retain(|prefix| prefixes.by_uuid.contains_key(&prefix)));
    }
    if let Err(error) = noted {
        tracing::warn!(%error, "watermarks not noted");
    }
}

fn advertise(args: &RunArgs, store: &Store) -> Endpoint {
    let at = |port: u16| format!("{}:{port}", args.advertise_host);
    Endpoint {
        data_uuid: Some(store.data_uuid),
        replication: at(args.replication_port),
        client: at(args.client_port),
        resp: at(args.resp_port),
        ip: String::new(),
    }
}

fn serve_router(
    on: &Handle,
    router: tonic::transport::server::Router,
    listener: tokio::net::TcpListener,
    mut stopping: watch::Receiver<bool>,
) {
    on.spawn(async move {
        let stopped = async move {
            let _ = stopping.wait_for(|stop| *stop).await;
        };
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true)).with_keepalive(Some(TCP_KEEPALIVE));
        if let Err(error) = router.serve_with_incoming_shutdown(incoming, stopped).await {
            tracing::error!(%error, "a server ended");
        }
    });
}

/// Waits, not for long, until every connected follower has everything: a planned stop then loses nothing.
fn hand_over(ctx: &ReplicationCtx) {
    let begin = Instant::now();
    let behind = || view::follower_reports(ctx).iter().any(|f: &v1::FollowerReport| f.connected && f.lag_sequences > 0);
    while behind() && begin.elapsed() < HAND_OVER {
        std::thread::sleep(Duration::from_millis(10));
    }
}

async fn wait_for_signal() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut term), Ok(mut int)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) else {
        tracing::error!("signals can't be watched: only SIGKILL ends this process");
        return std::future::pending().await;
    };
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
}

/// Reads changed settings, prunes WAL and trims rings, now and then.
async fn housekeeping(
    config: Option<std::path::PathBuf>,
    store: Arc<Store>,
    ctx: Arc<ReplicationCtx>,
    layout: crate::disk::layout::Layout,
    member: Arc<Member>,
    catalogue: Arc<Catalogue>,
) {
    let mut every = tokio::time::interval(HOUSEKEEPING);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let pruner = Arc::new(Mutex::new(retention::Pruner::default()));
    for pass in 0_u64.. {
        every.tick().await;
        let (config, store, ctx, layout, member, pruner) =
            (config.clone(), store.clone(), ctx.clone(), layout.clone(), member.clone(), pruner.clone());
        let catalogue = catalogue.clone();
        let work = tokio::task::spawn_blocking(move || {
            reread_settings(config.as_deref(), &store);
            member.forget_reached_floors();
            prune(&mut pruner.lock(), &store, &ctx, &layout);
            layout.keep_reserve();
            catalogue.open_waiting();
            if pass % DETACHED_PASSES == 0 {
                prune_detached(&store, &layout);
            }
            let before = crate::clock::wall_ms().saturating_sub(RING_AGE_MS);
            for prefix in store.prefixes().by_uuid.values() {
                prefix.ring().trim(before);
            }
        });
        if work.await.is_err() {
            return;
        }
    }
}

fn reread_settings(config: Option<&std::path::Path>, store: &Store) {
    let Some(path) = config else { return };
    match Settings::read(path) {
        Ok(fresh) if **store.settings.load() != fresh => {
            tracing::info!(fingerprint = fresh.fingerprint, "settings changed");
            store.settings.store(Arc::new(fresh));
            store.note_change();
        }
        Ok(_) => {}
        Err(error) => tracing::error!(%error, "settings not taken, the ones before stay in effect"),
    }
}

fn prune_detached(store: &Store, layout: &crate::disk::layout::Layout) {
    let settings = store.settings.load();
    let pruned = layout.space().and_then(|(_, total)| {
        let max_bytes = settings.detached_max_bytes.unwrap_or(total / 10);
        layout.prune_detached(crate::clock::wall_ms(), settings.detached_retention_seconds * 1000, max_bytes)
    });
    if let Err(error) = pruned {
        tracing::error!(%error, "detached data not pruned");
    }
}

fn prune(pruner: &mut retention::Pruner, store: &Store, ctx: &ReplicationCtx, layout: &crate::disk::layout::Layout) {
    let total = match layout.space() {
        Ok((_, total)) => total,
        Err(error) => return tracing::error!(%error, "WAL not pruned"),
    };
    match pruner.pass(store, total, ctx) {
        Ok(pruned) if pruned.files > 0 => {
            tracing::info!(files = pruned.files, bytes = pruned.bytes, cut_off = pruned.cut_off, "WAL pruned");
        }
        Ok(_) => {}
        Err(error) => tracing::error!(%error, "WAL not pruned"),
    }
}
