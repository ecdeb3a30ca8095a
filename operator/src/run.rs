//! Putting the process together, and taking it apart.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use kube::{Api, Client, Config};
use parovoz_operator_core::names;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tracing_subscriber::EnvFilter;

use crate::caches::Watches;
use crate::cli::RunOptions;
use crate::controller::{Context, run as work};
use crate::http::{Health, serve};
use crate::leader::Election;
use crate::member::Members;
use crate::metrics::Metrics;
use crate::steps::lease::Leases;
use crate::steps::report::Reporter;

/// Stores that may wait to be looked at. Watches wait when it is full; members' news are dropped then.
const QUEUE: usize = 4096;
/// How long passes under way may take to end at a shutdown.
const DRAIN_WITHIN: Duration = Duration::from_secs(20);

/// Run until told to stop.
#[must_use]
pub fn main(options: RunOptions) -> ExitCode {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().json().flatten_event(true).with_env_filter(filter).init();
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "start runtime");
            return ExitCode::FAILURE;
        }
    };
    let code = match runtime.block_on(Box::pin(run(options))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error, "operator ends");
            ExitCode::FAILURE
        }
    };
    runtime.shutdown_timeout(Duration::from_secs(1));
    code
}

async fn run(options: RunOptions) -> Result<(), String> {
    let mut terminate = signal(SignalKind::terminate()).map_err(|error| format!("listen for signals: {error}"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(|error| format!("listen for signals: {error}"))?;
    let stop = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    let mut stop = std::pin::pin!(stop);
    let mut config = Config::infer().await.map_err(|error| format!("find API server: {error}"))?;
    config.connect_timeout = Some(Duration::from_secs(5));
    let namespace = options.pod_namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
    let client = Client::try_from(config).map_err(|error| format!("make client: {error}"))?;
    let (metrics, health) = (Arc::new(Metrics::default()), Arc::new(Health::default()));
    let listener = TcpListener::bind(options.http_address)
        .await
        .map_err(|error| format!("listen on {}: {error}", options.http_address))?;
    let server = tokio::spawn(serve(listener, health.clone(), metrics.clone()));

    let identity = format!("{}_{}", options.pod_name, uuid::Uuid::new_v4());
    let leases = Api::namespaced(client.clone(), &namespace);
    let mut election = Election::new(leases, options.lease_name.clone(), identity.clone());
    tracing::info!(identity, namespace, lease = options.lease_name, "waiting for the lease");
    tokio::select! {
        () = election.acquire(&health, &metrics) => {}
        () = &mut stop => return Ok(()),
    }
    tracing::info!(identity, "lease held");
    metrics.leads(true);
    let result = lead(&options, client, &mut election, &health, &metrics, stop.as_mut()).await;
    metrics.leads(false);
    server.abort();
    result
}

/// Work as the holder of the Lease, until told to stop or until it is lost.
async fn lead(
    options: &RunOptions,
    client: Client,
    election: &mut Election,
    health: &Arc<Health>,
    metrics: &Arc<Metrics>,
    stop: impl Future<Output = ()>,
) -> Result<(), String> {
    let (sender, queue) = mpsc::channel(QUEUE);
    let watch_namespace = options.watch_namespace.clone().filter(|namespace| !namespace.is_empty());
    let (caches, watches) =
        Watches::start(client.clone(), watch_namespace, options.watch_nodes, sender.clone(), metrics.clone());
    let admin = u16::try_from(names::PORT_ADMIN).unwrap_or(7003);
    let context = Arc::new(Context {
        reporter: Reporter::new(client.clone(), options.pod_name.clone()),
        members: Arc::new(Members::new(admin, sender, metrics.clone())),
        leases: Leases::default(),
        client,
        caches: caches.clone(),
        metrics: metrics.clone(),
        default_image: options.dataplane_image.clone(),
    });
    let (stop_work, stopped) = oneshot::channel::<()>();
    let concurrency = options.concurrency;
    let worker = async {
        // Plans are made on full caches only: half a picture would look like missing objects.
        if caches.filled().await.is_err() {
            return;
        }
        tracing::info!("caches are filled");
        let stopped = async move { drop(stopped.await) };
        work(context, queue, concurrency, health, stopped).await;
    };
    let mut worker = std::pin::pin!(worker);
    let outcome = tokio::select! {
        // Losing the Lease ends the process at once: passes under way are dropped where they are.
        lost = election.keep(health, metrics) => Err(lost.to_string()),
        () = &mut worker => Err("the watches ended".to_owned()),
        () = stop => {
            tracing::info!("told to stop");
            drop(stop_work);
            tokio::select! {
                ended = tokio::time::timeout(DRAIN_WITHIN, &mut worker) => if ended.is_err() {
                    tracing::warn!("passes under way did not end in time");
                },
                lost = election.keep(health, metrics) => tracing::warn!(%lost, "lease lost while stopping"),
            }
            election.release().await;
            Ok(())
        }
    };
    drop(watches);
    outcome
}
