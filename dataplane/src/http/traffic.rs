//! Metrics of the event loops and of replication: their counters, summed over loops.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parovoz_dataplane_core::command::table;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use crate::replication::{ReplicationCtx, ReplicationStats};
use crate::shard::ShardsHandle;
use crate::shard::stats::{BUCKETS, Histogram, ShardStats};

/// See the module.
#[derive(Debug)]
pub struct TrafficCollector {
    /// Counters of replication.
    pub ctx: Arc<ReplicationCtx>,
    /// Counters of the event loops.
    pub loops: ShardsHandle,
}

type Of<S> = (&'static str, &'static str, fn(&S) -> u64);

fn get(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

const LOOP_COUNTERS: &[Of<ShardStats>] = &[
    ("client_errors", "Replies that were errors", |s| get(&s.errors)),
    ("client_received_bytes", "Bytes read from Redis clients", |s| get(&s.bytes_in)),
    ("client_sent_bytes", "Bytes written to Redis clients", |s| get(&s.bytes_out)),
    ("client_connections_accepted", "Redis connections accepted", |s| get(&s.accepted)),
    ("client_connections_refused", "Redis connections refused for their number", |s| get(&s.refused)),
    (
        "client_connections_relayed",
        "Redis connections handed to the next primary when this member stopped leading",
        |s| get(&s.relayed),
    ),
    ("client_connections_stuck", "Redis connections closed since the client did not read", |s| get(&s.stuck_closed)),
    ("forwarded_requests", "Requests handed to the event loop of their prefix", |s| get(&s.forwarded)),
    ("grpc_requests", "Requests from the gRPC ports", |s| get(&s.calls)),
    ("commits", "Batches committed", |s| get(&s.commits)),
    ("commit_failures", "Batches that could not be committed", |s| get(&s.commit_failures)),
    ("commit_bytes", "Bytes of committed batches", |s| get(&s.commit_bytes)),
    ("read_hits", "Reads that found their key", |s| get(&s.hits)),
    ("read_misses", "Reads that did not", |s| get(&s.misses)),
    ("object_cache_hits", "Reads answered by the object cache", |s| get(&s.cache_hits)),
    ("object_cache_misses", "Reads that went to the database", |s| get(&s.cache_misses)),
    ("write_timeouts", "Replies that waited in vain: replicas or the disk did not confirm in time", |s| {
        get(&s.parked_timeouts)
    }),
];

const LOOP_GAUGES: &[Of<ShardStats>] = &[
    ("client_connections", "Redis connections now", |s| get(&s.connections)),
    ("writes_waiting_for_replicas", "Replies that wait for replicas now", |s| get(&s.parked)),
    ("writes_waiting_for_disk", "Replies that wait for the disk now", |s| get(&s.held)),
];

const REPLICATION_COUNTERS: &[Of<ReplicationStats>] = &[
    ("stream_frames_sent", "Frames and bundles sent to followers", |s| s.frames_sent.get()),
    ("stream_sent_bytes", "Bytes of batches sent to followers", |s| s.bytes_sent.get()),
    ("stream_wire_bytes", "Bytes of batches on the wire to followers, compressed or not", |s| s.wire_bytes_sent.get()),
    ("stream_wal_bytes", "Bytes of batches read back from the WAL for followers", |s| s.catchup_bytes.get()),
    ("stream_frames_received", "Frames and bundles taken from the upstream", |s| s.frames_received.get()),
    ("stream_received_bytes", "Bytes of batches taken from the upstream", |s| s.bytes_received.get()),
    ("stream_records_applied", "Records applied from the upstream", |s| s.records_applied.get()),
    ("stream_gaps", "Batches that did not follow the one before", |s| s.gaps.get()),
    ("stream_checksum_errors", "Batches and chunks with a wrong checksum", |s| s.crc_errors.get()),
    ("stream_malformed", "Batches that were malformed", |s| s.malformed.get()),
    ("stream_too_old", "Followers told that their position is out of the WAL", |s| s.too_old_sent.get()),
    ("stream_diverged", "Followers told that their history differs", |s| s.diverged_sent.get()),
    ("upstream_sessions", "Sessions with the upstream that were established", |s| s.sessions.get()),
    ("upstream_session_failures", "Sessions with the upstream that failed", |s| s.session_failures.get()),
    ("slow_followers_cut", "Followers cut because they took nothing for too long", |s| s.slow_followers_cut.get()),
    ("acknowledgements_received", "Acknowledgement messages taken", |s| s.acks_received.get()),
    ("bootstraps_started", "Bootstraps begun from nothing", |s| s.bootstraps_started.get()),
    ("bootstraps_resumed", "Bootstraps that went on with what an earlier attempt had", |s| s.bootstraps_resumed.get()),
    ("bootstraps_completed", "Bootstraps that ended with a new copy", |s| s.bootstraps_completed.get()),
    ("bootstrap_failures", "Attempts of bootstraps that failed", |s| s.bootstrap_failures.get()),
    ("damaged_copies", "Copies refused because tables of their source are damaged", |s| s.damaged_copies.get()),
    ("bootstrap_received_bytes", "Bytes of files taken for bootstraps", |s| s.bootstrap_bytes_received.get()),
    ("snapshot_sent_bytes", "Bytes of files sent for bootstraps of others", |s| s.snapshot_bytes_sent.get()),
];

const REPLICATION_GAUGES: &[Of<ReplicationStats>] = &[
    ("followers_streaming", "Followers that stream from here now", |s| s.followers.get()),
    ("snapshots_open", "Snapshots open for others now", |s| s.snapshots_open.get()),
];

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct CommandLabel {
    command: &'static str,
}

fn counter(e: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: u64) -> fmt::Result {
    let metric = ConstCounter::new(value);
    metric.encode(e.encode_descriptor(name, help, None, metric.metric_type())?)
}

fn gauge(e: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: u64) -> fmt::Result {
    let metric = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
    metric.encode(e.encode_descriptor(name, help, None, metric.metric_type())?)
}

/// Adds up one histogram of all loops; bounds are multiplied by `scale` (a unit's size).
fn histogram(
    e: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    scale: f64,
    of: impl Iterator<Item = ([u64; BUCKETS], u64)>,
) -> fmt::Result {
    let (mut counts, mut sum) = ([0u64; BUCKETS], 0u64);
    for (buckets, s) in of {
        for (total, n) in counts.iter_mut().zip(buckets) {
            *total += n;
        }
        sum += s;
    }
    let bound = |i: usize| if i + 1 == BUCKETS { f64::MAX } else { scale * f64::from(1u32 << i) };
    let buckets: Vec<(f64, u64)> = counts.iter().enumerate().map(|(i, n)| (bound(i), *n)).collect();
    let mut metric = e.encode_descriptor(name, help, None, MetricType::Histogram)?;
    #[allow(clippy::cast_precision_loss)]
    metric.encode_histogram::<CommandLabel>(sum as f64 * scale, counts.iter().sum(), &buckets, None)
}

fn read(of: &Histogram) -> ([u64; BUCKETS], u64) {
    (of.buckets(), of.sum())
}

impl Collector for TrafficCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let e = &mut encoder;
        let loops = self.loops.stats();
        let sum = |of: fn(&ShardStats) -> u64| loops.iter().map(of).sum::<u64>();
        for (name, help, of) in LOOP_COUNTERS {
            counter(e, name, help, sum(*of))?;
        }
        for (name, help, of) in LOOP_GAUGES {
            gauge(e, name, help, sum(*of))?;
        }
        let mut family = e.encode_descriptor("commands", "Redis commands executed", None, MetricType::Counter)?;
        for (number, spec) in table::COMMANDS.iter().enumerate() {
            let total: u64 = loops.iter().map(|s| get(&s.commands[number])).sum();
            let label = CommandLabel { command: spec.name };
            ConstCounter::new(total).encode(family.encode_family(&label)?)?;
        }
        let micros = loops.iter().map(|s| read(&s.commit_micros));
        histogram(e, "commit_seconds", "Time of one commit, its sync left out", 1e-6, micros)?;
        let micros = loops.iter().map(|s| read(&s.sync_micros));
        histogram(e, "sync_seconds", "Time of one sync of what was committed to a prefix", 1e-6, micros)?;
        let records = loops.iter().map(|s| read(&s.group_records));
        histogram(e, "commit_records", "Records in one commit", 1.0, records)?;
        for (name, help, of) in REPLICATION_COUNTERS {
            counter(e, name, help, of(&self.ctx.stats))?;
        }
        for (name, help, of) in REPLICATION_GAUGES {
            gauge(e, name, help, of(&self.ctx.stats))?;
        }
        Ok(())
    }
}
