//! Where the process gets its configuration: flags and environment for what never changes, a JSON file for what may.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use parovoz_dataplane_core::budget::MIN_WINDOW;
use parovoz_dataplane_core::lease::LeaseKeeper;
use serde::{Deserialize, Serialize};

/// The value of `--lease` that says that there is none.
pub const NO_LEASE: &str = "none";
/// A client that is silent for so long is asked by TCP whether it is still there, on every port; as Redis does.
pub(crate) const TCP_KEEPALIVE: Duration = Duration::from_secs(300);

/// Command line of `parovoz-dataplane run`; every flag is an environment variable too.
#[derive(Debug, Clone, clap::Args)]
pub struct RunArgs {
    /// Folder of the volume.
    #[arg(long, env = "PAROVOZ_DATA_DIR", default_value = "/data")]
    pub data_dir: PathBuf,
    /// uid of the `ReplicatedStore` object.
    #[arg(long, env = "PAROVOZ_STORE_UID")]
    pub store_uid: String,
    /// uid of the volume claim; another one than at the last start means a copied volume.
    #[arg(long, env = "PAROVOZ_CLAIM_UID", default_value = "")]
    pub claim_uid: String,
    /// This member's name, for people.
    #[arg(long, env = "POD_NAME", default_value = "member")]
    pub pod_name: String,
    /// Host name under which the other members and clients reach this one.
    #[arg(long, env = "PAROVOZ_ADVERTISE_HOST", default_value = "127.0.0.1")]
    pub advertise_host: String,
    /// JSON file with [`Settings`]; defaults if absent. Read again when it changes.
    #[arg(long, env = "PAROVOZ_CONFIG")]
    pub config: Option<PathBuf>,
    /// Address that all ports listen on.
    #[arg(long, env = "PAROVOZ_LISTEN", default_value = "0.0.0.0")]
    pub listen: IpAddr,
    /// gRPC for clients.
    #[arg(long, env = "PAROVOZ_CLIENT_PORT", default_value_t = 7000)]
    pub client_port: u16,
    /// Redis protocol.
    #[arg(long, env = "PAROVOZ_RESP_PORT", default_value_t = 6379)]
    pub resp_port: u16,
    /// gRPC for batch jobs.
    #[arg(long, env = "PAROVOZ_BULK_PORT", default_value_t = 7001)]
    pub bulk_port: u16,
    /// Followers.
    #[arg(long, env = "PAROVOZ_REPLICATION_PORT", default_value_t = 7002)]
    pub replication_port: u16,
    /// The operator and the command line.
    #[arg(long, env = "PAROVOZ_ADMIN_PORT", default_value_t = 7003)]
    pub admin_port: u16,
    /// Metrics and probes.
    #[arg(long, env = "PAROVOZ_HTTP_PORT", default_value_t = 9090)]
    pub http_port: u16,
    /// Event loops; 0 = one a core, at most four.
    #[arg(long, env = "PAROVOZ_EVENT_LOOPS", default_value_t = 0)]
    pub event_loops: usize,
    /// Largest number of client connections on the Redis port.
    #[arg(long, env = "PAROVOZ_MAX_CONNECTIONS", default_value_t = 10_000)]
    pub max_connections: usize,
    /// Bytes of the latest batches kept in memory for followers, all prefixes together.
    #[arg(long, env = "PAROVOZ_RING_BYTES", default_value_t = 64 << 20)]
    pub ring_bytes: usize,
    /// Bytes of the object cache, all event loops together.
    #[arg(long, env = "PAROVOZ_OBJECT_CACHE_BYTES", default_value_t = 256 << 20)]
    pub object_cache_bytes: usize,
    /// Bytes of RocksDB's block cache.
    #[arg(long, env = "PAROVOZ_BLOCK_CACHE_BYTES", default_value_t = 128 << 20)]
    pub block_cache_bytes: usize,
    /// Bytes of all memtables together.
    #[arg(long, env = "PAROVOZ_WRITE_BUFFER_BYTES", default_value_t = 512 << 20)]
    pub write_buffer_bytes: usize,
    /// Name of this store's primary Lease in the pod's namespace, which a primary without required replicas must hold to serve;
    /// `none` = there is no cluster around, and nobody who could make another primary.
    #[arg(long, env = "PAROVOZ_LEASE", default_value = NO_LEASE)]
    pub lease: String,
    /// Where the container's termination message goes; the process writes its identity there at its start, by which its end is
    /// proved. Ignored where the folder does not exist.
    #[arg(long, env = "PAROVOZ_TERMINATION_LOG", default_value = "/dev/termination-log")]
    pub termination_log: PathBuf,
    /// Log filter, e.g. `info,parovoz_dataplane::replication=debug`.
    #[arg(long, env = "PAROVOZ_LOG", default_value = "info")]
    pub log: String,
}

impl RunArgs {
    /// Who keeps the Lease of a primary without required replicas.
    #[must_use]
    pub fn lease_keeper(&self) -> LeaseKeeper {
        if self.lease == NO_LEASE { LeaseKeeper::Nobody } else { LeaseKeeper::Kubernetes }
    }
}

/// When a write counts as durable on a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Durability {
    /// One fsync a group of writes.
    Sync,
    /// Left to the operating system.
    Os,
}

/// Who makes prefixes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum PrefixCreate {
    /// The first write.
    OnWrite,
    /// The admin port only.
    Declared,
}

/// Restart budget (section "Restart budget" of the design).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Recovery {
    /// Starts allowed in the window.
    pub max_attempts: u32,
    /// The window, in seconds.
    pub window_seconds: u64,
    /// Pause before a start that is not the first, in seconds.
    pub backoff_seconds: u64,
}

impl Default for Recovery {
    fn default() -> Self {
        Self { max_attempts: 5, window_seconds: 300, backoff_seconds: 15 }
    }
}

/// What may change while the process runs: the operator's ConfigMap.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Settings {
    /// When a write counts as durable.
    pub durability: Durability,
    /// How long WAL is kept that nobody needs.
    pub wal_retention_seconds: u64,
    /// Bytes of WAL at most; a quarter of the volume if absent.
    pub wal_retention_max_bytes: Option<u64>,
    /// Bytes a follower asks for ahead at least, per stream.
    pub min_batch_bytes: u64,
    /// Bytes a follower asks for ahead at most, per stream.
    pub max_batch_bytes: u64,
    /// Bytes a second per follower; 0 = unlimited.
    pub max_bytes_per_second: u64,
    /// Bytes a second to all followers of a member together; 0 = unlimited.
    pub max_total_bytes_per_second: u64,
    /// Bytes a second of a bootstrap; 0 = unlimited.
    pub bootstrap_max_bytes_per_second: u64,
    /// How long an unrenewed hold lives, in seconds.
    pub hold_timeout_seconds: u64,
    /// Who makes prefixes.
    pub prefix_create: PrefixCreate,
    /// How many prefixes there may be.
    pub max_prefixes: usize,
    /// Lag in sequences from which it is warned.
    pub lag_warning_sequences: u64,
    /// How long data is kept that was dropped, replaced by a diverged member's new copy, or exported, in seconds.
    pub detached_retention_seconds: u64,
    /// Bytes of such data at most; a tenth of the volume if absent. The oldest goes first.
    pub detached_max_bytes: Option<u64>,
    /// Restart budget.
    pub recovery: Recovery,
    /// CRC-32C of the file's bytes, by which the operator sees which of its files is in effect; empty without a file.
    #[serde(skip)]
    pub fingerprint: String,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            durability: Durability::Sync,
            wal_retention_seconds: 7200,
            wal_retention_max_bytes: None,
            min_batch_bytes: 64 << 10,
            max_batch_bytes: 8 << 20,
            max_bytes_per_second: 0,
            max_total_bytes_per_second: 0,
            bootstrap_max_bytes_per_second: 0,
            hold_timeout_seconds: 600,
            prefix_create: PrefixCreate::OnWrite,
            max_prefixes: 1000,
            lag_warning_sequences: 10_000,
            detached_retention_seconds: 7 * 24 * 3600,
            detached_max_bytes: None,
            recovery: Recovery::default(),
            fingerprint: String::new(),
        }
    }
}

/// Why settings can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("read settings {path}: {cause}")]
    Read {
        /// The file.
        path: String,
        /// Why.
        cause: std::io::Error,
    },
    /// The file is not valid settings.
    #[error("parse settings {path}: {cause}")]
    Parse {
        /// The file.
        path: String,
        /// Why.
        cause: serde_json::Error,
    },
    /// Settings that contradict each other.
    #[error("check settings: {0}")]
    Invalid(&'static str),
}

impl Settings {
    /// Reads and checks a settings file.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let name = path.display().to_string();
        let text = std::fs::read(path).map_err(|cause| ConfigError::Read { path: name.clone(), cause })?;
        let settings: Self = serde_json::from_slice(&text).map_err(|cause| ConfigError::Parse { path: name, cause })?;
        settings.check()?;
        Ok(Self { fingerprint: format!("{:08x}", crc32c::crc32c(&text)), ..settings })
    }

    fn check(&self) -> Result<(), ConfigError> {
        let r = self.recovery;
        if r.window_seconds <= u64::from(r.max_attempts) * r.backoff_seconds {
            return Err(ConfigError::Invalid("recovery.windowSeconds must exceed maxAttempts x backoffSeconds"));
        }
        if self.max_prefixes == 0 || self.min_batch_bytes < MIN_WINDOW {
            return Err(ConfigError::Invalid("maxPrefixes must be at least 1 and minBatchBytes at least 65536"));
        }
        if self.max_batch_bytes < self.min_batch_bytes {
            return Err(ConfigError::Invalid("maxBatchBytes must be at least minBatchBytes"));
        }
        if self.hold_timeout_seconds == 0 {
            return Err(ConfigError::Invalid("holdTimeoutSeconds must be at least 1: a bootstrap needs its hold"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fingerprint_is_that_of_the_file_however_it_is_laid_out_and_empty_without_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        for text in ["{}\n", "{ \"maxPrefixes\" : 7 }"] {
            std::fs::write(&path, text).unwrap();
            let read = Settings::read(&path).unwrap();
            assert_eq!(read.fingerprint, format!("{:08x}", crc32c::crc32c(text.as_bytes())));
        }
        assert_eq!(Settings::default().fingerprint, "");
    }
}
