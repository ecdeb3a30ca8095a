//! JSON logs, one line an event, with a filter that can be changed at run time.

use tracing_subscriber::filter::ParseError;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::reload;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};
use tracing_subscriber::{EnvFilter, Registry};

/// Changes the filter of the running process.
#[derive(Clone, Debug)]
pub struct LogControl {
    handle: reload::Handle<EnvFilter, Registry>,
}

/// Why logging can't be set up or changed.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The filter is not one.
    #[error("parse log filter {filter:?}: {cause}; e.g. \"info,parovoz_dataplane::replication=debug\"")]
    Filter {
        /// As given.
        filter: String,
        /// What is wrong.
        cause: ParseError,
    },
    /// Set up twice.
    #[error("start logging: {0}")]
    Start(#[from] TryInitError),
    /// The subscriber is gone.
    #[error("change log filter: {0}")]
    Reload(#[from] reload::Error),
}

fn parse(filter: &str) -> Result<EnvFilter, LogError> {
    EnvFilter::builder().parse(filter).map_err(|cause| LogError::Filter { filter: filter.to_owned(), cause })
}

/// Starts logging to standard output; once a process.
///
/// # Errors
/// See [`LogError`].
pub fn start(filter: &str) -> Result<LogControl, LogError> {
    let (layer, handle) = reload::Layer::new(parse(filter)?);
    tracing_subscriber::registry()
        .with(layer)
        .with(tracing_subscriber::fmt::layer().json().flatten_event(true))
        .try_init()?;
    Ok(LogControl { handle })
}

impl LogControl {
    /// Replaces the filter and answers the one before.
    ///
    /// # Errors
    /// See [`LogError`]; the present filter stays.
    pub fn set(&self, filter: &str) -> Result<String, LogError> {
        let fresh = parse(filter)?;
        let before = self.handle.with_current(ToString::to_string)?;
        self.handle.reload(fresh)?;
        Ok(before)
    }
}
