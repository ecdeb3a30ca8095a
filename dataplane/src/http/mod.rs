//! The HTTP port: `/metrics`, `/healthz`, `/readyz`.

pub mod metrics;
pub mod traffic;

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

/// What the probes ask.
pub trait Health: Send + Sync {
    /// `None` if the member may take clients, else why not.
    fn not_ready(&self) -> Option<String>;
    /// `None` if the process works, else why it should be restarted.
    fn unhealthy(&self) -> Option<String>;
    /// All metrics in OpenMetrics text.
    fn metrics(&self) -> Result<String, std::fmt::Error>;
}

/// The routes.
pub fn router(health: Arc<dyn Health>) -> Router {
    Router::new()
        .route("/healthz", get(|State(h): State<Arc<dyn Health>>| async move { probe(h.unhealthy()) }))
        .route("/readyz", get(|State(h): State<Arc<dyn Health>>| async move { probe(h.not_ready()) }))
        .route("/metrics", get(|State(h): State<Arc<dyn Health>>| async move { metrics(&*h) }))
        .with_state(health)
}

fn probe(problem: Option<String>) -> Response {
    match problem {
        None => (StatusCode::OK, "ok\n".to_owned()).into_response(),
        Some(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response(),
    }
}

fn metrics(health: &dyn Health) -> Response {
    match health.metrics() {
        Ok(text) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, kind)], text).into_response()
        }
        Err(_) => (StatusCode::INTERNAL_SERVER_ERROR, "encode metrics: failed\n").into_response(),
    }
}
