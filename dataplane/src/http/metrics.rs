//! Metrics of one member. Values are read when they are asked for; nothing is counted twice.
//!
//! Names of prefixes are no label values: there may be a thousand. Sums and the worst are exported instead; `Status` on the
//! admin port has every prefix.

use std::fmt;
use std::sync::Arc;

use parovoz_proto::v1;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};

use crate::member::report::Reporter;

/// Collects from the member's report and from the store.
#[derive(Debug)]
pub struct MemberCollector {
    /// Where the numbers come from.
    pub reporter: Arc<Reporter>,
    /// Memory of the databases.
    pub engine: Arc<dyn parovoz_engine::Engine>,
}

struct Encoder<'a>(DescriptorEncoder<'a>);

impl Encoder<'_> {
    fn gauge(&mut self, name: &str, help: &str, unit: Option<&Unit>, value: u64) -> fmt::Result {
        let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
        gauge.encode(self.0.encode_descriptor(name, help, unit, gauge.metric_type())?)
    }

    fn counter(&mut self, name: &str, help: &str, unit: Option<&Unit>, value: u64) -> fmt::Result {
        let counter = ConstCounter::new(value);
        counter.encode(self.0.encode_descriptor(name, help, unit, counter.metric_type())?)
    }
}

fn sequence(position: Option<&v1::Position>) -> u64 {
    position.map_or(0, |p| p.sequence)
}

impl Collector for MemberCollector {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let report = self.reporter.report();
        let mut e = Encoder(encoder);
        role(&mut e, &report)?;
        prefixes(&mut e, &report)?;
        followers(&mut e, &report)?;
        let bytes = Some(&Unit::Bytes);
        e.gauge("volume_free", "Free bytes of the volume", bytes, report.disk_free_bytes)?;
        e.gauge("volume_size", "Size of the volume", bytes, report.disk_total_bytes)?;
        e.gauge("engine_memory", "Block cache and memtables of all databases", bytes, self.engine.memory_bytes())?;
        let ring = self.reporter.store.ring_budget.used() as u64;
        e.gauge("ring", "Latest batches kept in memory for followers", bytes, ring)?;
        e.gauge("restarts_in_window", "Unclean restarts within the recovery window", None, u64::from(report.restarts))
    }
}

fn role(e: &mut Encoder<'_>, report: &v1::MemberReport) -> fmt::Result {
    e.gauge("primary", "1 if this member is the primary", None, u64::from(report.role() == v1::MemberRole::Primary))?;
    e.gauge("complete", "1 if every prefix of the catalogue is here and whole", None, u64::from(report.complete))?;
    e.gauge("promised_epoch", "Epoch of the promised reign", None, report.reign.as_ref().map_or(0, |r| r.epoch))?;
    e.gauge("started_epoch", "Highest epoch led by this member", None, report.started_epoch)?;
    e.gauge(
        "upstream_connected",
        "1 if the stream from the upstream is up",
        None,
        u64::from(report.upstream_connected),
    )?;
    if let Some(ms) = report.primary_silence_ms {
        e.gauge("primary_silence_milliseconds", "Since something was heard from the primary", None, ms)?;
    }
    Ok(())
}

fn prefixes(e: &mut Encoder<'_>, report: &v1::MemberReport) -> fmt::Result {
    let count = |state: v1::PrefixState| report.prefixes.iter().filter(|p| p.state() == state).count() as u64;
    e.gauge("prefixes", "Prefixes on this member, the catalogue included", None, report.prefixes.len() as u64)?;
    e.gauge("prefixes_bootstrapping", "Prefixes being copied", None, count(v1::PrefixState::Bootstrapping))?;
    e.gauge(
        "prefixes_stopped",
        "Prefixes stopped by a gap, divergence or corruption",
        None,
        count(v1::PrefixState::Stopped),
    )?;
    let applied: u64 = report.prefixes.iter().map(|p| sequence(p.applied.as_ref())).sum();
    e.counter("applied_records", "Last sequences of all prefixes, summed", None, applied)?;
    let lag = report
        .prefixes
        .iter()
        .map(|p| sequence(p.upstream_latest.as_ref()).saturating_sub(sequence(p.applied.as_ref())));
    e.gauge("lag_sequences", "Behind the upstream, all prefixes summed", None, lag.clone().sum())?;
    e.gauge("lag_sequences_worst", "Behind the upstream, the worst prefix", None, lag.max().unwrap_or(0))
}

fn followers(e: &mut Encoder<'_>, report: &v1::MemberReport) -> fmt::Result {
    let followers = &report.followers;
    let connected = followers.iter().filter(|f| f.connected).count() as u64;
    e.gauge("followers_connected", "Members that acknowledge to this primary", None, connected)?;
    let worst = |of: fn(&v1::FollowerReport) -> u64| followers.iter().map(of).max().unwrap_or(0);
    e.gauge("follower_lag_sequences_worst", "Of the follower furthest behind", None, worst(|f| f.lag_sequences))?;
    e.gauge("follower_lag_bytes_worst", "Of the follower furthest behind", None, worst(|f| f.lag_bytes))?;
    e.gauge("follower_lag_milliseconds_worst", "Of the follower furthest behind", None, worst(|f| f.lag_ms))?;
    if let Some(left) = followers.iter().filter_map(|f| f.window_left_seconds).min() {
        e.gauge(
            "follower_window_left_seconds_least",
            "Until the first follower falls out of the WAL window",
            None,
            left,
        )?;
    }
    Ok(())
}

/// A registry with everything in it, under the name `parovoz_dataplane`.
#[must_use]
pub fn registry(collectors: Vec<Box<dyn Collector>>) -> Registry {
    let mut registry = Registry::with_prefix("parovoz_dataplane");
    for collector in collectors {
        registry.register_collector(collector);
    }
    registry
}
