//! How far a follower reads ahead: enough that the next batch of bytes is on the way while one is applied, and no more.

use std::collections::VecDeque;

/// What a batch costs in credit besides its bytes, so that tiny ones are bounded too. Both sides count it.
pub const FRAME_COST: u64 = 64;

/// Smallest window that makes sense: one read-ahead of small batches.
pub const MIN_WINDOW: u64 = 64 << 10;

/// What is read at once lasts the applier at least so long: less would leave it without work whenever a thread wakes late.
const MIN_BATCH_US: u64 = 20_000;
/// What is read at once lasts for so many passes of the applier, so that the fixed cost of a pass (its fsync) is shared.
const PASSES: u64 = 4;
/// Busy time over which the applier's rate is averaged.
const RATE_US: u64 = 200_000;
/// Busy time from which on the rate is trusted.
const TRUSTED_US: u64 = 1_000;
/// Round trips of which the shortest counts: the others waited behind data.
const ROUND_TRIPS: usize = 16;

/// The credit that a follower grants: how many bytes may be under way to it or wait to be applied.
///
/// Two batches fit: the one that is applied and the next, which is on the way meanwhile. A batch lasts the applier as long as
/// a round trip takes, or a few of its passes, whichever is longer; its size follows from the rate at which the applier
/// works while it works.
///
/// Invariant: bytes granted and not yet consumed never exceed the largest window.
#[derive(Debug, Clone)]
pub struct CreditWindow {
    min: u64,
    max: u64,
    window: u64,
    /// Granted and neither consumed nor returned; negative by at most one batch, which may be larger than what was left.
    open: i64,
    /// Consumed and not yet given back by the applier.
    in_flight: u64,
    /// What the applier did lately, and the time that it worked for that.
    applied_bytes: u64,
    busy_us: u64,
    /// Mean time of a pass.
    pass_us: u64,
    round_trips_ms: VecDeque<u64>,
}

/// The upstream sent more than it was granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("count credit: the upstream sent {over} bytes more than it was granted")]
pub struct CreditOverrun {
    /// Bytes beyond the grant and the one batch that may exceed it.
    pub over: u64,
}

impl CreditWindow {
    /// Room for two batches of `min` to `max` bytes together (both raised to [`MIN_WINDOW`]); begins with a quarter of `max`.
    /// Nothing is granted yet: see [`CreditWindow::grant`].
    #[must_use]
    pub fn new(min: u64, max: u64) -> Self {
        let min = min.max(MIN_WINDOW);
        let max = max.max(min);
        Self {
            min,
            max,
            window: (max / 4).max(min),
            open: 0,
            in_flight: 0,
            applied_bytes: 0,
            busy_us: 0,
            pass_us: 0,
            round_trips_ms: VecDeque::with_capacity(ROUND_TRIPS),
        }
    }

    /// Bytes to grant now; `None` while it is too little to be worth a message. Never stalls: when all was consumed and given
    /// back, the whole window is open.
    pub fn grant(&mut self) -> Option<u64> {
        let used = i64::try_from(self.in_flight).unwrap_or(i64::MAX).saturating_add(self.open.max(0));
        let room = i64::try_from(self.window).unwrap_or(i64::MAX).saturating_sub(used);
        // A negative balance must be covered as well, or the sender would stay below zero.
        let debt = if self.open < 0 { -self.open } else { 0 };
        if room <= 0 || room.cast_unsigned() < self.window / 4 {
            return None;
        }
        let bytes = room.saturating_add(debt);
        self.open = self.open.saturating_add(bytes);
        Some(bytes.cast_unsigned())
    }

    /// A message of `cost` bytes came.
    ///
    /// # Errors
    /// [`CreditOverrun`] if it exceeds the grant by more than `largest_batch`.
    pub fn consume(&mut self, cost: u64, largest_batch: u64) -> Result<(), CreditOverrun> {
        self.open = self.open.saturating_sub(i64::try_from(cost).unwrap_or(i64::MAX));
        self.in_flight = self.in_flight.saturating_add(cost);
        let over = if self.open < 0 { self.open.unsigned_abs() } else { 0 };
        if over > largest_batch { Err(CreditOverrun { over }) } else { Ok(()) }
    }

    /// `cost` bytes were thrown away.
    pub fn give_back(&mut self, cost: u64) {
        self.in_flight = self.in_flight.saturating_sub(cost);
    }

    /// `cost` bytes were applied (and synced where that counts), which took the applier `busy_us` of a pass of `pass_us`.
    pub fn applied(&mut self, cost: u64, busy_us: u64, pass_us: u64) {
        self.give_back(cost);
        self.applied_bytes = self.applied_bytes.saturating_add(cost);
        self.busy_us = self.busy_us.saturating_add(busy_us);
        while self.busy_us > RATE_US {
            self.busy_us /= 2;
            self.applied_bytes /= 2;
        }
        self.pass_us = if self.pass_us == 0 { pass_us } else { self.pass_us - self.pass_us / 8 + pass_us / 8 };
        self.fit();
    }

    /// A question to the upstream was answered after `ms`.
    pub fn round_trip(&mut self, ms: u64) {
        if self.round_trips_ms.len() == ROUND_TRIPS {
            self.round_trips_ms.pop_front();
        }
        self.round_trips_ms.push_back(ms);
        self.fit();
    }

    fn fit(&mut self) {
        if self.busy_us < TRUSTED_US {
            return;
        }
        let round_trip_us = self.round_trips_ms.iter().min().map_or(0, |ms| ms.saturating_mul(1000));
        let batch_us = MIN_BATCH_US.max(round_trip_us).max(self.pass_us.saturating_mul(PASSES));
        let two = u128::from(self.applied_bytes) * u128::from(batch_us) * 2 / u128::from(self.busy_us);
        self.window = u64::try_from(two).unwrap_or(u64::MAX).clamp(self.min, self.max);
    }

    /// Bytes received and not yet given back.
    #[must_use]
    pub fn in_flight(&self) -> u64 {
        self.in_flight
    }

    /// Its present size in bytes.
    #[must_use]
    pub fn window(&self) -> u64 {
        self.window
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    /// A window whose applier works at `rate` bytes a microsecond, in passes of `pass_us`.
    fn measured(rate: u64, pass_us: u64, round_trip_ms: u64) -> u64 {
        let mut credit = CreditWindow::new(MIN_WINDOW, 64 << 20);
        credit.round_trip(round_trip_ms);
        for _ in 0..100 {
            credit.applied(rate * pass_us, pass_us, pass_us);
        }
        credit.window()
    }

    #[test]
    fn a_batch_larger_than_the_window_passes_and_the_window_reopens() {
        let mut credit = CreditWindow::new(0, MIN_WINDOW);
        assert_eq!(credit.grant(), Some(MIN_WINDOW));
        credit.consume(MIN_WINDOW * 3, MIN_WINDOW * 4).unwrap();
        assert_eq!(credit.grant(), None, "nothing is granted while it waits to be applied");
        credit.give_back(MIN_WINDOW * 3);
        assert_eq!(credit.grant(), Some(MIN_WINDOW * 3), "the debt of two windows and a window on top");
    }

    #[test]
    fn an_upstream_that_ignores_credit_is_found_out() {
        let mut credit = CreditWindow::new(0, MIN_WINDOW);
        credit.grant();
        assert!(credit.consume(MIN_WINDOW * 4, MIN_WINDOW).is_err());
    }

    #[test]
    fn the_window_holds_two_batches_that_each_last_a_round_trip() {
        assert_eq!(measured(60, 1_000, 0), 2 * 60 * 20_000, "near: as long as a thread may sleep");
        assert_eq!(measured(60, 1_000, 100), 2 * 60 * 100_000, "far: as long as a round trip");
        assert_eq!(measured(60, 32_000, 5) / 1000, 2 * 60 * 128, "a slow fsync is shared by more");
        assert_eq!(measured(1, 1_000, 0), MIN_WINDOW);
        assert_eq!(measured(600, 1_000, 400), 64 << 20);
    }

    #[test]
    fn the_shortest_of_the_late_round_trips_counts() {
        let mut credit = CreditWindow::new(MIN_WINDOW, 64 << 20);
        credit.applied(60_000, 1_000, 1_000);
        for ms in [90, 50, 400] {
            credit.round_trip(ms);
        }
        assert_eq!(credit.window(), 2 * 60 * 50_000);
        for _ in 0..ROUND_TRIPS {
            credit.round_trip(200);
        }
        assert_eq!(credit.window(), 2 * 60 * 200_000, "a path that became longer is noticed");
    }

    #[test]
    fn an_applier_that_became_slow_gets_less() {
        let mut credit = CreditWindow::new(MIN_WINDOW, 8 << 20);
        for _ in 0..100 {
            credit.applied(100_000, 1_000, 1_000);
        }
        let before = credit.window();
        for _ in 0..100 {
            credit.applied(10_000, 10_000, 10_000);
        }
        assert!(credit.window() < before / 5, "{} of {before}", credit.window());
    }

    /// A pass costs a fixed time and a time by size, and what a pass finds is bounded by the window.
    #[test]
    fn a_window_that_became_small_grows_again_whatever_an_fsync_costs() {
        for fsync_us in [100, 1_000, 10_000, 50_000, 200_000] {
            let mut credit = CreditWindow::new(MIN_WINDOW, 8 << 20);
            for _ in 0..1000 {
                credit.applied(200, fsync_us, fsync_us);
            }
            let small = credit.window();
            for _ in 0..200 {
                let bytes = credit.window() / 2;
                let pass_us = fsync_us + bytes / 60;
                credit.applied(bytes, pass_us, pass_us);
            }
            assert!(credit.window() > 2_000_000, "fsync of {fsync_us} us: from {small} to {}", credit.window());
        }
    }

    proptest! {
        #[test]
        fn credit_never_stalls_and_stays_bounded(
            steps in proptest::collection::vec((1u64..200_000, 1u64..50_000, 0u64..300), 1..200),
        ) {
            let mut credit = CreditWindow::new(MIN_WINDOW, 1 << 20);
            let mut balance = i64::try_from(credit.grant().unwrap()).unwrap();
            for (cost, busy_us, round_trip_ms) in steps {
                prop_assert!(balance > 0, "a sender whose bytes were all given back may go on");
                balance -= i64::try_from(cost).unwrap();
                credit.consume(cost, 200_000).unwrap();
                prop_assert!(credit.in_flight() <= (1 << 20) + 200_000);
                credit.applied(cost, busy_us, busy_us);
                credit.round_trip(round_trip_ms);
                prop_assert!((MIN_WINDOW..=1 << 20).contains(&credit.window()));
                while let Some(more) = credit.grant() {
                    balance += i64::try_from(more).unwrap();
                }
            }
        }
    }
}
