//! Replication and the event loops, as reports, probes and metrics see them.

use std::sync::Arc;

use parovoz_dataplane_core::types::{PrefixUuid, Sequence};
use parovoz_proto::v1;
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;

use crate::http::Health;
use crate::http::metrics::{MemberCollector, registry};
use crate::http::traffic::TrafficCollector;
use crate::member::following::Following;
use crate::member::report::{ReplicationView, Reporter, UpstreamView};
use crate::replication::{BootstrapProgress, ReplicationCtx};
use crate::shard::{FollowerCount, ShardsHandle};

/// See the module.
#[derive(Debug)]
pub struct View {
    /// Acknowledgements.
    pub ctx: Arc<ReplicationCtx>,
    /// The session with the upstream.
    pub follower: Arc<Following>,
}

/// The followers' progress as it stands on the wire.
pub fn follower_reports(ctx: &ReplicationCtx) -> Vec<v1::FollowerReport> {
    let one = |p: parovoz_dataplane_core::acks::FollowerProgress| v1::FollowerReport {
        data_uuid: p.data_uuid.to_string(),
        connected: p.connected,
        lag_sequences: p.lag_sequences,
        lag_bytes: p.lag_bytes,
        lag_ms: p.lag_ms,
        window_left_seconds: p.window_left_seconds,
        bytes_per_second: p.bytes_per_second,
    };
    ctx.follower_reports().into_iter().map(one).collect()
}

impl ReplicationView for View {
    fn upstream(&self) -> UpstreamView {
        let status = self.follower.status();
        let on_wire = |p: &BootstrapProgress| v1::BootstrapProgress {
            method: "Snapshot".to_owned(),
            bytes_done: p.bytes_done,
            bytes_total: p.bytes_total,
            bytes_per_second: p.bytes_per_second,
            eta_seconds: p.eta_seconds,
            attempts: p.attempts,
        };
        UpstreamView {
            connected: status.connected(),
            bootstraps: status.bootstraps.iter().map(|(prefix, p)| (*prefix, on_wire(p))).collect(),
        }
    }

    fn followers(&self) -> Vec<v1::FollowerReport> {
        follower_reports(&self.ctx)
    }
}

impl FollowerCount for View {
    fn acked(&self, prefix: PrefixUuid, sequence: Sequence) -> usize {
        self.ctx.acks.lock().members_at(prefix, sequence)
    }

    fn connected(&self) -> usize {
        if self.ctx.store.role().is_primary { self.ctx.acks.lock().connected() } else { 0 }
    }
}

/// The HTTP port's view.
pub struct Probe {
    reporter: Arc<Reporter>,
    registry: Registry,
    loops: ShardsHandle,
}

impl Probe {
    /// Everything in one registry.
    pub fn new(
        reporter: Arc<Reporter>,
        engine: Arc<dyn parovoz_engine::Engine>,
        ctx: Arc<ReplicationCtx>,
        loops: ShardsHandle,
    ) -> Self {
        let member = MemberCollector { reporter: reporter.clone(), engine };
        let traffic = TrafficCollector { ctx, loops: loops.clone() };
        Self { reporter, registry: registry(vec![Box::new(member), Box::new(traffic)]), loops }
    }
}

impl Health for Probe {
    fn not_ready(&self) -> Option<String> {
        self.unhealthy().or_else(|| self.reporter.not_ready())
    }

    /// A sync that does not end, or an event loop that runs no pass: both hang on the disk, most likely.
    fn unhealthy(&self) -> Option<String> {
        let stuck = || self.loops.stuck().map(|(number, ms)| format!("event loop {number} has not run for {ms} ms"));
        self.reporter.store.disk_trouble().or_else(stuck)
    }

    fn metrics(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}
