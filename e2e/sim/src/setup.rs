//! What kind of store a seed has, and how fast its clocks run.

use parovoz_operator_core::observed::StoreFacts;
use serde_json::{Value, json};

use crate::faults::Fault;
use crate::rng::Rng;

/// How far off a clock may be, in millionths: nearly the 2.5 % that the Lease's margin allows for.
const WORST_PPM: u64 = 24_000;

/// See the module.
#[derive(Debug, Clone)]
pub struct Setup {
    pub replicas: i32,
    pub quorum: bool,
    pub w: i32,
    pub syncs: bool,
    pub degrade: bool,
    pub chain: bool,
    pub lease_s: u64,
    /// The most by which a clock is off.
    pub drift_ppm: u64,
    /// Longest pause between a client's operations.
    pub think_us: u64,
    /// Settings may change on the way, so that not all of a run is under a quorum.
    pub changes_mode: bool,
    /// Kinds of faults.
    pub faults: Vec<Fault>,
    /// Mean pause between faults.
    pub fault_every_us: u64,
}

impl Setup {
    /// The setup of a seed.
    #[must_use]
    pub fn draw(rng: &mut Rng) -> Self {
        let replicas = [1, 2, 3, 3, 3, 3, 3, 4, 5, 5][rng.index(10)];
        let quorum = replicas > 1 && rng.permille(700);
        let w = if quorum {
            i32::try_from(rng.range(1, u64::try_from((replicas - 1).min(2)).unwrap_or(1))).unwrap_or(1)
        } else {
            0
        };
        Self {
            replicas,
            quorum,
            w,
            syncs: quorum || rng.permille(700),
            degrade: quorum && rng.permille(150),
            chain: rng.permille(200),
            lease_s: if rng.permille(800) { rng.range(3, 8) } else { rng.range(8, 20) },
            drift_ppm: [500, 500, WORST_PPM][rng.index(3)],
            think_us: 900_000,
            changes_mode: rng.permille(150),
            faults: Vec::new(),
            fault_every_us: rng.range(1_500_000, 6_000_000),
        }
    }

    /// By how much a clock of this setup is off. Bad ones are off by the most, either way: what lies between shows nothing more.
    #[must_use]
    pub fn drift(&self, rng: &mut Rng) -> i64 {
        let most = i64::try_from(self.drift_ppm).unwrap_or(0);
        match self.drift_ppm {
            WORST_PPM => [-most, most][rng.index(2)],
            _ => i64::try_from(rng.below(self.drift_ppm * 2 + 1)).unwrap_or(0) - most,
        }
    }

    /// What a reign leaves to another kind of reign shows only where several follow each other while replicas come and go.
    pub fn lean(&mut self) {
        if !self.changes_mode && !self.degrade {
            return;
        }
        for (fault, times) in [(Fault::Settings, 4), (Fault::Relieve, 4)] {
            if self.faults.contains(&fault) {
                self.faults.extend([fault].repeat(times));
            }
        }
    }

    /// Whether every acknowledged write must stay for ever.
    #[must_use]
    pub fn never_loses(&self) -> bool {
        self.quorum && !self.degrade && !self.changes_mode
    }

    /// The specification.
    #[must_use]
    pub fn spec(&self) -> Value {
        let mut replication = json!({
            "mode": if self.quorum { "Quorum" } else { "Async" },
            "minSyncReplicas": self.w,
            "durability": if self.syncs { "Sync" } else { "Os" },
            "topology": if self.chain { "Chain" } else { "Star" },
        });
        if self.degrade {
            replication["onQuorumLoss"] = json!("Degrade");
        }
        json!({
            "replicas": self.replicas,
            "storage": {"size": "1Gi"},
            "deletionPolicy": "Delete",
            "replication": replication,
            "failover": {"leaseDuration": format!("{}s", self.lease_s), "cooldown": "0s", "maxPerHour": 60},
        })
    }

    /// The store, as the API server has it at the beginning.
    ///
    /// # Panics
    /// If the specification is not one: the setups are fixed, so every run would show it.
    #[must_use]
    #[expect(clippy::expect_used, reason = "a specification of this module that is none is a mistake in it")]
    pub fn store(&self) -> StoreFacts {
        StoreFacts {
            name: "s".into(),
            namespace: "n".into(),
            uid: "store-uid".into(),
            generation: 1,
            deleting: false,
            spec: serde_json::from_value(self.spec()).expect("read the specification of a setup"),
            status: None,
        }
    }
}
