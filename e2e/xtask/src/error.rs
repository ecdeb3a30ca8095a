//! The one error type of the tooling: it ends a command, so it carries text for a person rather than cases to match.

use std::path::Path;
use std::process::ExitStatus;
use std::time::Duration;

/// What every fallible function here returns.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a command could not do its work.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused something.
    #[error("{action}: {source}")]
    Io { action: String, source: std::io::Error },
    /// A program ran and reported failure.
    #[error("run {command}: {status}{detail}")]
    Command { command: String, status: ExitStatus, detail: String },
    /// Something did not come true in time.
    #[error("wait for {what}: not within {} s; last seen: {last}", limit.as_secs())]
    Timeout { what: String, limit: Duration, last: String },
    /// A client of the store got an error.
    #[error("{action}: {source}")]
    Redis { action: String, source: redis::RedisError },
    /// A document is not what it should be.
    #[error("{action}: {cause}")]
    Parse { action: String, cause: String },
    /// A check of this tool found something wrong, or a precondition is not met.
    #[error("{0}")]
    Failed(String),
}

impl Error {
    /// A failed check or precondition, in words.
    pub fn failed(text: impl Into<String>) -> Self {
        Self::Failed(text.into())
    }

    /// A document or answer that could not be understood.
    pub fn parse(action: impl Into<String>, cause: impl std::fmt::Display) -> Self {
        Self::Parse { action: action.into(), cause: cause.to_string() }
    }
}

/// Adds what was being done to an operating system error.
pub trait Context<T> {
    /// `action` is worded "verb object".
    fn doing(self, action: impl FnOnce() -> String) -> Result<T>;
}

impl<T> Context<T> for std::io::Result<T> {
    fn doing(self, action: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|source| Error::Io { action: action(), source })
    }
}

impl<T> Context<T> for rustix::io::Result<T> {
    fn doing(self, action: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|e| Error::Io { action: action(), source: e.into() })
    }
}

impl<T> Context<T> for redis::RedisResult<T> {
    fn doing(self, action: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|source| Error::Redis { action: action(), source })
    }
}

/// Reads a whole text file, naming it on failure.
pub fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).doing(|| format!("read {}", path.display()))
}

/// Writes a whole file, making its directory, naming it on failure.
pub fn write(path: &Path, content: impl AsRef<[u8]>) -> Result<()> {
    if let Some(parent) = path.parent() {
        make_dir(parent)?;
    }
    std::fs::write(path, content).doing(|| format!("write {}", path.display()))
}

/// Makes a directory and its parents.
pub fn make_dir(path: &Path) -> Result<()> {
    std::fs::create_dir_all(path).doing(|| format!("make directory {}", path.display()))
}
