//! How every database is set up, and why. Measured choices, see `ARCHITECTURE.md`.

use std::path::Path;

use rocksdb::{
    BlockBasedOptions, Cache, ColumnFamilyDescriptor, DBCompressionType, DBRecoveryMode, Env, InfoLogger, LogLevel,
    Options, WriteBufferManager,
};

use super::{expiry, ffi};
use crate::{EngineError, Result};

const MIB: usize = 1 << 20;

/// Bytes written to a database after which it counts as busy and its memtables get a bloom filter: 400 KiB each, touched
/// at once, is too much for a thousand idle prefixes.
pub(super) const BUSY_AFTER: u64 = 4 << 20;
/// The option that is then set.
pub(super) const BUSY_OPTIONS: [(&str, &str); 2] =
    [("memtable_prefix_bloom_size_ratio", "0.05"), ("memtable_whole_key_filtering", "true")];

/// Bytes written after a record in `meta` until that family is flushed: its memtable would else hold back the WAL, which
/// is archived only once both families let it go.
pub(super) const FLUSH_META_AFTER: u64 = 16 << 20;

/// Live WAL from which on a checkpoint flushes rather than copies it, in bytes: below, a checkpoint costs milliseconds and
/// its opener replays the WAL (about a second at most); above, replaying would cost the opener more than a flush costs here.
pub(super) const CHECKPOINT_FLUSH_FROM: u64 = 64 << 20;

/// Sizes that all databases of the process share.
#[derive(Debug, Clone)]
pub struct RocksSettings {
    /// Of the block cache, in bytes; index and filter blocks are in it.
    pub block_cache_bytes: usize,
    /// Of all memtables together, in bytes; above it the largest are flushed. Writers are not stopped by it.
    pub memtable_bytes: usize,
    /// Threads for compactions; there are half as many (at least one) for flushes.
    pub background_threads: i32,
    /// What flushes and compactions may write together, in bytes a second.
    pub background_bytes_per_second: i64,
    /// Table files that one database keeps open. Files are 64 MiB and more, so this serves 16 GiB without re-opening any;
    /// descriptors in all are bounded by the volume's size over 64 MiB plus about six a database.
    pub open_files_per_database: i32,
}

impl Default for RocksSettings {
    fn default() -> Self {
        Self {
            block_cache_bytes: 256 * MIB,
            memtable_bytes: 512 * MIB,
            background_threads: 2,
            background_bytes_per_second: 400 << 20,
            open_files_per_database: 256,
        }
    }
}

/// What databases share, and the options made of it.
pub(super) struct Shared {
    pub(super) cache: Cache,
    pub(super) memtables: WriteBufferManager,
    database: Options,
    data: Options,
    meta: Options,
}

impl Shared {
    pub(super) fn new(settings: &RocksSettings) -> Result<Self> {
        let cache = Cache::new_lru_cache(settings.block_cache_bytes);
        let memtables = WriteBufferManager::new_write_buffer_manager(settings.memtable_bytes, false);
        let mut env = Env::new()
            .map_err(|error| EngineError::Io { action: "make environment".to_owned(), cause: error.into_string() })?;
        env.set_background_threads(settings.background_threads.max(1));
        env.set_high_priority_background_threads((settings.background_threads / 2).max(1));
        Ok(Self {
            database: database_options(settings, &env, &memtables),
            data: data_options(&cache),
            meta: meta_options(&cache),
            cache,
            memtables,
        })
    }

    /// Options of one database. Copies share rate limiter, environment, cache and write-buffer manager.
    pub(super) fn database(&self, create: bool) -> Options {
        let mut options = self.database.clone();
        options.create_if_missing(create);
        options
    }

    /// Its families, in the order that gives `meta` the number 1.
    pub(super) fn families(&self) -> [ColumnFamilyDescriptor; 2] {
        [
            ColumnFamilyDescriptor::new(super::DATA, self.data.clone()),
            ColumnFamilyDescriptor::new(super::META, self.meta.clone()),
        ]
    }

    /// Removes the files of a database that is closed.
    pub(super) fn destroy(&self, dir: &Path) -> std::result::Result<(), rocksdb::Error> {
        rocksdb::DB::destroy(&self.database, dir)
    }
}

fn database_options(settings: &RocksSettings, env: &Env, memtables: &WriteBufferManager) -> Options {
    let mut options = Options::default();
    // A crash between making the database and its second family must not leave it unusable; numbers are checked after.
    options.create_missing_column_families(true);
    options.set_env(env);
    options.set_write_buffer_manager(memtables);
    options.set_ratelimiter(settings.background_bytes_per_second, 100_000, 10);
    options.set_max_background_jobs(settings.background_threads.max(1) + (settings.background_threads / 2).max(1));
    options.set_max_open_files(settings.open_files_per_database);
    options.set_max_file_opening_threads(1);
    options.set_skip_stats_update_on_db_open(true);

    // The WAL is the stream: never recycled, archived instead of deleted, and pruned by us alone (ten years; a size limit
    // would be taken as a count of files).
    options.set_wal_recovery_mode(DBRecoveryMode::PointInTime);
    options.set_recycle_log_file_num(0);
    options.set_wal_ttl_seconds(10 * 365 * 24 * 3600);
    options.set_wal_size_limit_mb(0);
    options.set_manual_wal_flush(false);
    options.set_max_total_wal_size(256 << 20);
    ffi::verify_wal_order(&mut options);
    ffi::disable_preallocation(&mut options);

    // One thread writes to a database at a time, in order.
    options.set_allow_concurrent_memtable_write(false);
    options.set_enable_pipelined_write(false);
    options.set_unordered_write(false);
    options.set_avoid_unnecessary_blocking_io(true);
    options.set_bytes_per_sync(1 << 20);

    options.set_paranoid_checks(true);
    // Into our log: a file of its own costs each database a descriptor, 110 KiB and a rename at each open.
    options.set_info_logger(InfoLogger::new_callback_logger(LogLevel::Warn, |level, text| match level {
        LogLevel::Error | LogLevel::Fatal => tracing::error!(target: "rocksdb", "{}", text.trim_end()),
        LogLevel::Warn => tracing::warn!(target: "rocksdb", "{}", text.trim_end()),
        // Headers come whatever the level is: the options, hundreds of lines for each open.
        LogLevel::Debug | LogLevel::Info | LogLevel::Header => {}
    }));
    options.set_log_level(LogLevel::Warn);
    // One shard rather than 64: few table files, and a thousand databases.
    options.set_table_cache_num_shard_bits(0);
    options.set_stats_dump_period_sec(0);
    options.set_stats_persist_period_sec(0);
    options.set_max_manifest_file_size(8 * MIB);
    options
}

fn data_options(cache: &Cache) -> Options {
    let mut options = Options::default();
    // Small memtables stay in the CPU's cache; merged before a flush, so that what was overwritten is not written out.
    options.set_write_buffer_size(8 * MIB);
    options.set_max_write_buffer_number(40);
    options.set_min_write_buffer_number_to_merge(16);
    options.set_level_compaction_dynamic_level_bytes(true);
    options.set_target_file_size_base(64 << 20);
    options.set_max_bytes_for_level_base(256 << 20);
    options.set_compression_type(DBCompressionType::Lz4);
    options.set_bottommost_compression_type(DBCompressionType::Zstd);
    options.set_compaction_filter("parovoz.expiry", expiry::keep_or_drop);
    options.set_block_based_table_factory(&table_options(cache));
    options
}

fn meta_options(cache: &Cache) -> Options {
    let mut options = Options::default();
    // A few records in a database's life.
    options.set_write_buffer_size(64 << 10);
    options.set_max_write_buffer_number(4);
    options.set_block_based_table_factory(&table_options(cache));
    options
}

fn table_options(cache: &Cache) -> BlockBasedOptions {
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(cache);
    table.set_block_size(8 << 10);
    table.set_bloom_filter(10.0, false);
    table.set_whole_key_filtering(true);
    // In the cache, so that their memory is bounded too; level 0 is asked by every read.
    table.set_cache_index_and_filter_blocks(true);
    table.set_cache_index_and_filter_blocks_with_high_priority(true);
    table.set_pin_l0_filter_and_index_blocks_in_cache(true);
    table
}
