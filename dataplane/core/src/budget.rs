//! Arithmetic of limits: credit, rates, pauses between attempts, attempts an hour. Time comes in as milliseconds.

use std::collections::VecDeque;

/// What a frame costs in credit besides its payload, so that tiny frames are bounded too. Both sides count it.
pub const FRAME_COST: u64 = 64;

/// Smallest credit window: one read-ahead of small batches.
pub const MIN_WINDOW: u64 = 64 << 10;

/// A batch that waited longer than this between receipt and apply says that the window is too large.
const LONG_QUEUE_MS: u64 = 200;

/// The credit that a follower grants: how many bytes may be under way to it or wait to be applied.
///
/// Invariant: bytes granted and not yet consumed never exceed the window. The window grows while the link keeps the applier
/// waiting and shrinks while batches queue for long.
#[derive(Debug, Clone)]
pub struct CreditWindow {
    min: u64,
    max: u64,
    window: u64,
    /// Granted and neither consumed nor returned; negative by at most one batch, which may be larger than what was left.
    open: i64,
    /// Consumed and not yet given back by the applier.
    in_flight: u64,
}

/// The upstream sent more than it was granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("count credit: the upstream sent {over} bytes more than it was granted")]
pub struct CreditOverrun {
    /// Bytes beyond the grant and the one batch that may exceed it.
    pub over: u64,
}

impl CreditWindow {
    /// A window between [`MIN_WINDOW`] and `max` (raised to the minimum). Nothing is granted yet: see [`CreditWindow::grant`].
    #[must_use]
    pub fn new(max: u64) -> Self {
        let max = max.max(MIN_WINDOW);
        Self { min: MIN_WINDOW, max, window: (max / 4).max(MIN_WINDOW), open: 0, in_flight: 0 }
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

    /// A frame of `cost` bytes came.
    ///
    /// # Errors
    /// [`CreditOverrun`] if it exceeds the grant by more than `largest_batch`.
    pub fn consume(&mut self, cost: u64, largest_batch: u64) -> Result<(), CreditOverrun> {
        self.open = self.open.saturating_sub(i64::try_from(cost).unwrap_or(i64::MAX));
        self.in_flight = self.in_flight.saturating_add(cost);
        let over = if self.open < 0 { self.open.unsigned_abs() } else { 0 };
        if over > largest_batch { Err(CreditOverrun { over }) } else { Ok(()) }
    }

    /// `cost` bytes were applied or thrown away after `queued_ms`; `ran_dry` = the applier has nothing left to do.
    pub fn give_back(&mut self, cost: u64, queued_ms: u64, ran_dry: bool) {
        self.in_flight = self.in_flight.saturating_sub(cost);
        if queued_ms > LONG_QUEUE_MS {
            self.window = (self.window - self.window / 4).max(self.min);
        } else if ran_dry && cost >= self.window / 8 {
            self.window = self.window.saturating_mul(2).min(self.max);
        }
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

/// Bytes a second, with a burst of a quarter of a second.
#[derive(Debug, Clone)]
pub struct TokenBucket {
    per_second: u64,
    /// Thousandths of a byte, so that slow rates lose nothing to rounding; negative after a large take.
    milli_tokens: i128,
    at_ms: u64,
}

impl TokenBucket {
    /// A full bucket; `per_second` 0 = unlimited.
    #[must_use]
    pub fn new(per_second: u64, now_ms: u64) -> Self {
        Self { per_second, milli_tokens: i128::from(per_second) * 250, at_ms: now_ms }
    }

    /// Changes the rate from now on.
    pub fn set_rate(&mut self, per_second: u64, now_ms: u64) {
        if per_second != self.per_second {
            *self = Self { milli_tokens: 0, ..Self::new(per_second, now_ms) };
        }
    }

    /// Takes `bytes` and answers how many milliseconds the caller must wait before it goes on.
    pub fn take(&mut self, bytes: u64, now_ms: u64) -> u64 {
        if self.per_second == 0 {
            return 0;
        }
        let rate = i128::from(self.per_second);
        let passed = i128::from(now_ms.saturating_sub(self.at_ms));
        self.at_ms = self.at_ms.max(now_ms);
        self.milli_tokens = (self.milli_tokens + passed * rate).min(rate * 250) - i128::from(bytes) * 1000;
        if self.milli_tokens >= 0 {
            0
        } else {
            u64::try_from((-self.milli_tokens + rate - 1) / rate).unwrap_or(u64::MAX)
        }
    }
}

/// Pauses between attempts that double up to a cap.
#[derive(Debug, Clone)]
pub struct Backoff {
    base_ms: u64,
    cap_ms: u64,
    failures: u32,
}

impl Backoff {
    /// Starts at `base_ms`, never above `cap_ms`.
    #[must_use]
    pub const fn new(base_ms: u64, cap_ms: u64) -> Self {
        Self { base_ms, cap_ms, failures: 0 }
    }

    /// One more failure: how long to wait, half of it fixed and half scaled by `jitter` (0 to 1).
    pub fn next_ms(&mut self, jitter: f64) -> u64 {
        let full = self.base_ms.saturating_mul(1 << self.failures.min(20)).min(self.cap_ms);
        self.failures = self.failures.saturating_add(1);
        #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let scaled = (full as f64 / 2.0 * jitter.clamp(0.0, 1.0)) as u64;
        full / 2 + scaled
    }

    /// It worked: the next pause is the shortest again.
    pub fn reset(&mut self) {
        self.failures = 0;
    }

    /// Failures since the last success.
    #[must_use]
    pub fn failures(&self) -> u32 {
        self.failures
    }
}

/// At most so many attempts in a sliding window.
#[derive(Debug, Clone)]
pub struct AttemptBudget {
    max: usize,
    window_ms: u64,
    taken: VecDeque<u64>,
}

impl AttemptBudget {
    /// `max` attempts in `window_ms`.
    #[must_use]
    pub fn new(max: usize, window_ms: u64) -> Self {
        Self { max, window_ms, taken: VecDeque::with_capacity(max) }
    }

    /// Takes one attempt.
    ///
    /// # Errors
    /// Milliseconds until there will be one.
    pub fn take(&mut self, now_ms: u64) -> Result<(), u64> {
        while self.taken.front().is_some_and(|at| at + self.window_ms <= now_ms) {
            self.taken.pop_front();
        }
        if self.taken.len() < self.max {
            self.taken.push_back(now_ms);
            return Ok(());
        }
        Err(self.taken.front().map_or(self.window_ms, |at| (at + self.window_ms).saturating_sub(now_ms)))
    }

    /// Forgets all attempts: a person asked for one more.
    pub fn reset(&mut self) {
        self.taken.clear();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_batch_larger_than_the_window_passes_and_the_window_reopens() {
        let mut credit = CreditWindow::new(MIN_WINDOW);
        assert_eq!(credit.grant(), Some(MIN_WINDOW));
        credit.consume(MIN_WINDOW * 3, MIN_WINDOW * 4).unwrap();
        assert_eq!(credit.grant(), None, "nothing is granted while it waits to be applied");
        credit.give_back(MIN_WINDOW * 3, 1, false);
        assert_eq!(credit.grant(), Some(MIN_WINDOW * 3), "the debt of two windows and a window on top");
    }

    #[test]
    fn an_upstream_that_ignores_credit_is_found_out() {
        let mut credit = CreditWindow::new(MIN_WINDOW);
        credit.grant();
        assert!(credit.consume(MIN_WINDOW * 4, MIN_WINDOW).is_err());
    }

    #[test]
    fn the_window_grows_when_the_applier_waits_and_shrinks_when_batches_queue() {
        let mut credit = CreditWindow::new(8 << 20);
        let start = credit.window();
        for _ in 0..10 {
            credit.give_back(start, 1, true);
        }
        assert_eq!(credit.window(), 8 << 20);
        for _ in 0..100 {
            credit.give_back(1, 1000, false);
        }
        assert_eq!(credit.window(), MIN_WINDOW);
    }

    proptest! {
        #[test]
        fn credit_never_stalls_and_stays_bounded(costs in proptest::collection::vec(1u64..200_000, 1..200)) {
            let mut credit = CreditWindow::new(1 << 20);
            let mut balance = i64::try_from(credit.grant().unwrap()).unwrap();
            for cost in costs {
                prop_assert!(balance > 0, "a sender whose bytes were all given back may go on");
                balance -= i64::try_from(cost).unwrap();
                credit.consume(cost, 200_000).unwrap();
                prop_assert!(credit.in_flight() <= (1 << 20) + 200_000);
                credit.give_back(cost, 1, true);
                while let Some(more) = credit.grant() {
                    balance += i64::try_from(more).unwrap();
                }
            }
        }

        #[test]
        fn a_bucket_lets_through_no_more_than_its_rate(takes in proptest::collection::vec(1u64..100_000, 1..100)) {
            let mut bucket = TokenBucket::new(1_000_000, 0);
            let (mut now, mut sent) = (0u64, 0u64);
            for bytes in takes {
                sent += bytes;
                now += bucket.take(bytes, now);
                prop_assert!(sent <= 250_000 + now * 1000);
            }
        }
    }

    #[test]
    fn pauses_double_up_to_the_cap() {
        let mut backoff = Backoff::new(100, 1000);
        let pauses: Vec<u64> = (0..6).map(|_| backoff.next_ms(1.0)).collect();
        assert_eq!(pauses, [100, 200, 400, 800, 1000, 1000]);
        backoff.reset();
        assert_eq!(backoff.next_ms(0.0), 50);
    }

    #[test]
    fn the_fourth_attempt_in_an_hour_waits_for_the_first_to_expire() {
        let mut budget = AttemptBudget::new(3, 3_600_000);
        for at in [0, 10, 20] {
            budget.take(at).unwrap();
        }
        assert_eq!(budget.take(600_000), Err(3_000_000));
        budget.take(3_600_000).unwrap();
        assert!(budget.take(3_600_001).is_err());
    }
}
