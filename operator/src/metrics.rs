//! The operator's metrics. Label values come from closed enums only.

use std::collections::HashMap;
use std::sync::atomic::AtomicU64;

use parking_lot::Mutex;
use parovoz_api::StorePhase;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use crate::error::Class;

/// How a pass over a store ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum PassResult {
    /// Nothing was to be done.
    Settled,
    /// Something was changed.
    Changed,
    /// It failed and is tried again.
    Retryable,
    /// Somebody else was first.
    Conflict,
    /// It failed for what the object is.
    Terminal,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PassLabels {
    result: PassResult,
}

/// What an order says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum OrderName {
    /// Promise, and say what there is.
    Seal,
    /// Fetch what is missing.
    Pull,
    /// Hold writes.
    Freeze,
    /// Lead.
    Promote,
    /// Follow.
    Follow,
}

/// What became of an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum OrderResult {
    /// The member did it.
    Done,
    /// The member refused it.
    Refused,
    /// The member was not reached.
    Unreachable,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OrderLabels {
    order: OrderName,
    result: OrderResult,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
enum Phase {
    Pending,
    Promoting,
    Healthy,
    Degraded,
    Unavailable,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PhaseLabels {
    phase: Phase,
}

/// All metrics of the process.
pub struct Metrics {
    registry: Registry,
    passes: Family<PassLabels, Counter>,
    pass_seconds: Histogram,
    orders: Family<OrderLabels, Counter>,
    reign_writes: Counter,
    status_writes: Counter,
    member_connections: Gauge,
    leader: Gauge,
    stores: Family<PhaseLabels, Gauge>,
    queue_errors: Counter,
    heartbeat: Gauge<f64, AtomicU64>,
    phases: Mutex<HashMap<String, StorePhase>>,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("parovoz_operator");
        let metrics = Self {
            passes: Family::default(),
            pass_seconds: Histogram::new(exponential_buckets(0.001, 2.0, 14)),
            orders: Family::default(),
            reign_writes: Counter::default(),
            status_writes: Counter::default(),
            member_connections: Gauge::default(),
            leader: Gauge::default(),
            stores: Family::default(),
            queue_errors: Counter::default(),
            heartbeat: Gauge::default(),
            phases: Mutex::default(),
            registry: Registry::default(),
        };
        registry.register("reconciles", "Passes over a store, by how they ended", metrics.passes.clone());
        registry.register_with_unit(
            "reconcile_duration",
            "Time that one pass over a store took",
            Unit::Seconds,
            metrics.pass_seconds.clone(),
        );
        registry.register("orders", "Orders to members, by what became of them", metrics.orders.clone());
        registry.register("reign_writes", "Swaps of decision records", metrics.reign_writes.clone());
        registry.register("status_writes", "Writes of a store's status", metrics.status_writes.clone());
        registry.register("member_connections", "Members that are reporting now", metrics.member_connections.clone());
        registry.register("leader", "1 while this process holds the Lease", metrics.leader.clone());
        registry.register("stores", "Stores, by phase", metrics.stores.clone());
        registry.register("watch_errors", "Errors of watches on the API server", metrics.queue_errors.clone());
        registry.register_with_unit(
            "last_lease_renewal_timestamp",
            "When the Lease was last read or renewed, as Unix time",
            Unit::Seconds,
            metrics.heartbeat.clone(),
        );
        Self { registry, ..metrics }
    }
}

impl Metrics {
    /// The text for a scrape, in OpenMetrics.
    ///
    /// # Errors
    /// Formatting fails, which writing into a string does not.
    pub fn encode(&self) -> Result<String, std::fmt::Error> {
        let mut counts: HashMap<Phase, i64> = HashMap::new();
        for phase in self.phases.lock().values() {
            *counts.entry(Phase::from(*phase)).or_default() += 1;
        }
        for phase in [Phase::Pending, Phase::Promoting, Phase::Healthy, Phase::Degraded, Phase::Unavailable] {
            self.stores.get_or_create(&PhaseLabels { phase }).set(counts.get(&phase).copied().unwrap_or(0));
        }
        let mut out = String::new();
        text::encode(&mut out, &self.registry)?;
        Ok(out)
    }

    /// A pass ended.
    pub fn pass(&self, result: PassResult, seconds: f64) {
        self.passes.get_or_create(&PassLabels { result }).inc();
        self.pass_seconds.observe(seconds);
    }

    /// An order was sent.
    pub fn order(&self, order: OrderName, result: OrderResult) {
        self.orders.get_or_create(&OrderLabels { order, result }).inc();
    }

    /// A decision record was swapped.
    pub fn reign_written(&self) {
        self.reign_writes.inc();
    }

    /// A status was written.
    pub fn status_written(&self) {
        self.status_writes.inc();
    }

    /// A watch failed.
    pub fn watch_failed(&self) {
        self.queue_errors.inc();
    }

    /// A member began or ceased to report.
    pub fn member_connected(&self, connected: bool) {
        if connected {
            self.member_connections.inc()
        } else {
            self.member_connections.dec()
        };
    }

    /// This process holds the Lease, or does not.
    pub fn leads(&self, leads: bool) {
        self.leader.set(i64::from(leads));
    }

    /// The Lease was read or renewed.
    pub fn heartbeat(&self, unix_seconds: f64) {
        self.heartbeat.set(unix_seconds);
    }

    /// The phase of a store; None once it is gone.
    pub fn store(&self, store: String, phase: Option<StorePhase>) {
        let mut phases = self.phases.lock();
        match phase {
            Some(phase) => drop(phases.insert(store, phase)),
            None => drop(phases.remove(&store)),
        }
    }
}

impl From<StorePhase> for Phase {
    fn from(phase: StorePhase) -> Self {
        match phase {
            StorePhase::Pending | StorePhase::Unknown => Self::Pending,
            StorePhase::Promoting => Self::Promoting,
            StorePhase::Healthy => Self::Healthy,
            StorePhase::Degraded => Self::Degraded,
            StorePhase::Unavailable => Self::Unavailable,
        }
    }
}

impl From<Class> for PassResult {
    fn from(class: Class) -> Self {
        match class {
            Class::Retryable | Class::Gone => Self::Retryable,
            Class::Conflict => Self::Conflict,
            Class::Terminal => Self::Terminal,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scrape_counts_stores_by_phase_and_forgets_those_that_are_gone() {
        let metrics = Metrics::default();
        metrics.store("a/b".into(), Some(StorePhase::Healthy));
        metrics.store("a/c".into(), Some(StorePhase::Healthy));
        metrics.store("a/b".into(), None);
        metrics.pass(PassResult::Settled, 0.01);
        let text = metrics.encode().unwrap();
        assert!(text.contains("parovoz_operator_stores{phase=\"Healthy\"} 1"), "{text}");
        assert!(text.contains("parovoz_operator_reconciles_total{result=\"Settled\"} 1"), "{text}");
        assert!(text.ends_with("# EOF\n"));
    }
}
