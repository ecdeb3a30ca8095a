//! For how long a primary may answer reads and, under W = 0, acknowledge writes. All times are milliseconds of the primary's
//! own clock, one that counts suspension; no other member's clock is ever compared with it.
//!
//! * A replica that is sealed by nobody echoes the primary's beats. An echo is a promise that it will not seal on mere silence
//!   for [`HEARD_MS`](crate::member::HEARD_MS) from then; it counts here for [`PROMISE_MS`] from the *sending* of the beat.
//! * The Lease object is renewed by the primary itself; a renewal counts from the moment before it was sent. It counts here
//!   for a twentieth less than its duration, which is what whoever takes it over waits for by another clock: the two may
//!   each be off by 2.5 %.

use std::collections::BTreeMap;

use crate::types::{DataUuid, Reign};

/// For so long after the sending of a beat its echo counts.
pub const PROMISE_MS: u64 = 2_000;

/// Part of the Lease's duration by which the primary stops before anybody may take it over.
pub const LEASE_MARGIN: u64 = 20;

/// The promises that replicas gave to the primary of one reign.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Promises {
    /// By member: when the newest beat that it echoed was sent.
    echoed: BTreeMap<DataUuid, u64>,
}

impl Promises {
    /// A member echoed the beat that was sent at `sent_at_ms`.
    pub fn echo(&mut self, member: DataUuid, sent_at_ms: u64) {
        let newest = self.echoed.entry(member).or_default();
        *newest = (*newest).max(sent_at_ms);
    }

    /// Until when `required` distinct replicas of the reign promised; `None` if too few ever did. `required` must not be 0.
    #[must_use]
    pub fn until(&self, reign: &Reign, required: u32) -> Option<u64> {
        let rank = usize::try_from(required).ok()?.checked_sub(1)?;
        let mut sent: Vec<u64> = reign.replicas().filter_map(|member| self.echoed.get(&member).copied()).collect();
        sent.sort_unstable_by(|a, b| b.cmp(a));
        sent.get(rank).map(|at| at + PROMISE_MS)
    }

    /// Until when every replica of the reign promised; `None` if one never did. A reign without replicas has nobody who
    /// could be sealed without its primary, so nothing ends it: [`u64::MAX`].
    #[must_use]
    pub fn until_by_all(&self, reign: &Reign) -> Option<u64> {
        match u32::try_from(reign.replicas().count()) {
            Ok(0) => Some(u64::MAX),
            Ok(all) => self.until(reign, if parovoz_mutant::on("one-promise-suffices") { 1 } else { all }),
            Err(_) => None,
        }
    }
}

/// Where the Lease of a W = 0 primary is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeaseKeeper {
    /// In the API server.
    Kubernetes,
    /// Nowhere: there is nobody who could make another primary. For a process without a cluster around it.
    Nobody,
}

/// The primary's hold on its Lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseHold {
    keeper: LeaseKeeper,
    duration_ms: u64,
    /// When the newest successful renewal was sent.
    renewed_ms: Option<u64>,
    /// When the newest renewal was asked for.
    asked_ms: Option<u64>,
    lost: bool,
}

impl LeaseHold {
    /// A hold that was not taken yet.
    #[must_use]
    pub fn new(keeper: LeaseKeeper, duration_ms: u64) -> Self {
        Self { keeper, duration_ms, renewed_ms: None, asked_ms: None, lost: false }
    }

    /// Until when the Lease is surely held, by whatever clock; `None` = it never was.
    #[must_use]
    pub fn until(&self) -> Option<u64> {
        let margin =
            if parovoz_mutant::on("lease-without-margin") { 0 } else { self.duration_ms.div_ceil(LEASE_MARGIN) };
        let held_ms = self.duration_ms.saturating_sub(margin);
        match self.keeper {
            LeaseKeeper::Nobody => Some(u64::MAX),
            LeaseKeeper::Kubernetes => self.renewed_ms.map(|at| at.saturating_add(held_ms)),
        }
    }

    /// Whether another reign took the Lease: this one never serves again.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.lost
    }

    /// A renewal that was sent at `sent_at_ms` succeeded.
    pub fn renewed(&mut self, sent_at_ms: u64) {
        self.renewed_ms = Some(self.renewed_ms.map_or(sent_at_ms, |at| at.max(sent_at_ms)));
    }

    /// The Lease names another reign.
    pub fn lose(&mut self) {
        self.lost = true;
    }

    /// Whether a renewal is due; notes that it is asked for. Renewed every third of its duration; one that was not answered
    /// is asked for again after a tenth.
    pub fn ask(&mut self, now_ms: u64) -> bool {
        let renewed_at = self.renewed_ms.map_or(0, |at| at + self.duration_ms / 3);
        let again_at = self.asked_ms.map_or(0, |at| at + self.duration_ms / 10);
        let due = self.keeper == LeaseKeeper::Kubernetes && !self.lost && now_ms >= renewed_at && now_ms >= again_at;
        if due {
            self.asked_ms = Some(now_ms);
        }
        due
    }
}

/// Until when a primary may do what; exclusive, and 0 = not at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Serving {
    /// Answer reads.
    pub read_until_ms: u64,
    /// Acknowledge writes that W replicas (or, under W = 0, nobody else) have.
    pub acknowledge_until_ms: u64,
}

impl Serving {
    /// What promises and Lease allow the primary of `reign`.
    #[must_use]
    pub fn of(reign: &Reign, promises: &Promises, lease: &LeaseHold) -> Self {
        match reign.required() {
            // The replicas' own acknowledgements are the proof that nobody sealed them before the write was durable there.
            required @ 1.. => {
                let required = if parovoz_mutant::on("one-promise-suffices") { 1 } else { required };
                let promised = promises.until(reign, required).unwrap_or(0);
                let read_until_ms = if parovoz_mutant::on("reads-without-promises") { u64::MAX } else { promised };
                Self { read_until_ms, acknowledge_until_ms: u64::MAX }
            }
            0 if lease.is_lost() => Self::default(),
            0 if parovoz_mutant::on("lease-not-checked") => {
                Self { read_until_ms: u64::MAX, acknowledge_until_ms: u64::MAX }
            }
            0 => {
                let until = lease.until().max(promises.until_by_all(reign)).unwrap_or(0);
                Self { read_until_ms: until, acknowledge_until_ms: until }
            }
        }
    }

    /// Whether a write may be acknowledged now; asked *after* its commit.
    #[must_use]
    pub fn may_acknowledge(self, now_ms: u64) -> bool {
        now_ms < self.acknowledge_until_ms
    }

    /// Whether a read may be answered now; asked *after* the data was read.
    #[must_use]
    pub fn may_read(self, now_ms: u64) -> bool {
        now_ms < self.read_until_ms
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Epoch, Mode, ReignId};
    use proptest::prelude::*;
    use uuid::Uuid;

    fn who(n: u128) -> DataUuid {
        DataUuid(Uuid::from_u128(n))
    }

    fn reign(members: u128, w: u32) -> Reign {
        Reign {
            epoch: Epoch(5),
            reign_id: ReignId(Uuid::from_u128(1)),
            primary: who(1),
            members: (1..=members).map(who).collect(),
            mode: if w > 0 { Mode::Quorum } else { Mode::Async },
            min_sync_replicas: w,
            lease_duration_ms: 10_000,
        }
    }

    #[test]
    fn reads_need_promises_of_enough_distinct_replicas_counted_from_their_sending() {
        let mut p = Promises::default();
        let lease = LeaseHold::new(LeaseKeeper::Kubernetes, 10_000);
        p.echo(who(2), 1_000);
        p.echo(who(2), 1_500);
        assert_eq!(p.until(&reign(3, 2), 2), None, "one member counts once");
        p.echo(who(1), 9_000);
        p.echo(who(9), 9_000);
        assert_eq!(p.until(&reign(3, 2), 2), None, "neither the primary nor a stranger counts");
        p.echo(who(3), 1_200);
        p.echo(who(3), 900);
        assert_eq!(p.until(&reign(3, 2), 2), Some(3_200));
        let serving = Serving::of(&reign(3, 2), &p, &lease);
        assert!(serving.may_read(3_199) && !serving.may_read(3_200));
        assert!(serving.may_acknowledge(u64::MAX - 1), "acknowledgements prove themselves");
    }

    #[test]
    fn without_replicas_in_the_quorum_the_lease_or_all_promises_are_needed() {
        let mut p = Promises::default();
        let mut lease = LeaseHold::new(LeaseKeeper::Kubernetes, 10_000);
        assert_eq!(Serving::of(&reign(3, 0), &p, &lease), Serving::default());
        lease.renewed(5_000);
        let serving = Serving::of(&reign(3, 0), &p, &lease);
        assert!(serving.may_acknowledge(14_499) && !serving.may_acknowledge(14_500) && !serving.may_read(14_500));
        p.echo(who(2), 20_000);
        assert!(!Serving::of(&reign(3, 0), &p, &lease).may_acknowledge(20_001), "all members are needed");
        p.echo(who(3), 20_500);
        assert!(Serving::of(&reign(3, 0), &p, &lease).may_acknowledge(21_999));
        lease.lose();
        assert_eq!(Serving::of(&reign(3, 0), &p, &lease), Serving::default(), "a lost Lease ends it");
    }

    #[test]
    fn the_primary_stops_before_the_lease_may_be_taken_over_though_its_clock_is_slow_and_the_other_fast() {
        for duration in [1_000, 3_001, 10_000, 60_000] {
            let mut lease = LeaseHold::new(LeaseKeeper::Kubernetes, duration);
            lease.renewed(0);
            let held = lease.until().unwrap_or(u64::MAX);
            // True time, in thousandths: the primary's clock runs 2.5 % slow, the one that waits 2.5 % fast.
            assert!(held * 1_000_000 / 975 <= duration * 1_000_000 / 1_025, "{duration}");
        }
    }

    #[test]
    fn a_process_without_a_cluster_needs_no_lease() {
        let lease = LeaseHold::new(LeaseKeeper::Nobody, 10_000);
        assert!(Serving::of(&reign(3, 0), &Promises::default(), &lease).may_acknowledge(u64::MAX - 1));
    }

    #[test]
    fn the_lease_is_renewed_every_third_and_asked_for_again_when_nobody_answers() {
        let mut lease = LeaseHold::new(LeaseKeeper::Kubernetes, 9_000);
        assert!(lease.ask(100) && !lease.ask(500) && lease.ask(1_000));
        lease.renewed(1_000);
        assert!(!lease.ask(3_999) && lease.ask(4_000));
        lease.lose();
        assert!(!lease.ask(90_000));
    }

    proptest! {
        #[test]
        fn a_read_is_never_allowed_longer_than_w_replicas_stand_by_their_word(
            echoes in prop::collection::vec((1u128..6, 0u64..10_000), 0..40), w in 1u32..4, now in 0u64..15_000,
        ) {
            let reign = reign(4, w);
            let mut promises = Promises::default();
            for (member, at) in &echoes {
                promises.echo(who(*member), *at);
            }
            let lease = LeaseHold::new(LeaseKeeper::Kubernetes, 10_000);
            if Serving::of(&reign, &promises, &lease).may_read(now) {
                // Whoever echoed a beat sent at `at` refuses to seal on silence until at least HEARD_MS after it.
                let bound: std::collections::BTreeSet<u128> = echoes
                    .iter()
                    .filter(|(m, at)| (2..=4).contains(m) && at + crate::member::HEARD_MS > now)
                    .map(|(m, _)| *m)
                    .collect();
                prop_assert!(bound.len() >= w as usize);
            }
        }
    }
}
