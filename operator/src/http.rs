//! /metrics, /healthz and /readyz.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use parking_lot::Mutex;
use tokio::net::TcpListener;

use crate::metrics::Metrics;

/// After this long without a sign of life from the Lease loop, or from the loop over the stores, the process is hung.
const HUNG_AFTER: Duration = Duration::from_secs(60);

/// Signs of life of the process.
pub struct Health {
    alive: Mutex<Instant>,
    /// None while this process does not lead: it works on nothing then.
    works: Mutex<Option<Instant>>,
    ready: Mutex<bool>,
}

impl Default for Health {
    fn default() -> Self {
        Self { alive: Mutex::new(Instant::now()), works: Mutex::new(None), ready: Mutex::new(false) }
    }
}

impl Health {
    /// The Lease loop went round.
    pub fn alive(&self) {
        *self.alive.lock() = Instant::now();
    }

    /// The loop over the stores went round.
    pub fn works(&self) {
        *self.works.lock() = Some(Instant::now());
    }

    /// The process may take over, or has: it reaches the API server.
    pub fn ready(&self, ready: bool) {
        *self.ready.lock() = ready;
    }

    /// What hangs, if anything does.
    fn hangs(&self) -> Option<&'static str> {
        if self.alive.lock().elapsed() >= HUNG_AFTER {
            return Some("the Lease loop has not gone round for a minute\n");
        }
        let stuck = self.works.lock().is_some_and(|worked| worked.elapsed() >= HUNG_AFTER);
        stuck.then_some("the loop over the stores has not gone round for a minute\n")
    }
}

#[derive(Clone)]
struct Shared {
    health: Arc<Health>,
    metrics: Arc<Metrics>,
}

/// Serve until the listener fails.
///
/// # Errors
/// The listener failed.
pub async fn serve(listener: TcpListener, health: Arc<Health>, metrics: Arc<Metrics>) -> std::io::Result<()> {
    let router = Router::new()
        .route("/metrics", get(scrape))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .with_state(Shared { health, metrics });
    axum::serve(listener, router).await
}

async fn scrape(State(shared): State<Shared>) -> Response {
    const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    match shared.metrics.encode() {
        Ok(text) => ([(header::CONTENT_TYPE, OPEN_METRICS)], text).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

async fn healthz(State(shared): State<Shared>) -> (StatusCode, &'static str) {
    match shared.health.hangs() {
        None => (StatusCode::OK, "ok\n"),
        Some(what) => (StatusCode::SERVICE_UNAVAILABLE, what),
    }
}

async fn readyz(State(shared): State<Shared>) -> (StatusCode, &'static str) {
    if *shared.health.ready.lock() {
        (StatusCode::OK, "ok\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "the API server was not reached yet\n")
    }
}
