//! Arithmetic of limits: credit, rates, pauses between attempts, attempts an hour. Time comes in as milliseconds.

use std::collections::VecDeque;

mod compression;
mod window;

pub use compression::CompressionChoice;
pub use window::{CreditOverrun, CreditWindow, FRAME_COST, MIN_WINDOW};

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

    /// Milliseconds until what was taken is paid for at this rate, which holds from now on. Who waits long asks again meanwhile:
    /// the rate may change.
    pub fn wait_at(&mut self, per_second: u64, now_ms: u64) -> u64 {
        self.set_rate(per_second, now_ms);
        self.wait_ms(now_ms)
    }

    fn set_rate(&mut self, per_second: u64, now_ms: u64) {
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
        self.debt_ms()
    }

    fn wait_ms(&mut self, now_ms: u64) -> u64 {
        self.take(0, now_ms)
    }

    fn debt_ms(&self) -> u64 {
        let rate = i128::from(self.per_second);
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
        self.check(now_ms)?;
        self.taken.push_back(now_ms);
        Ok(())
    }

    /// Whether there is one, without taking it.
    ///
    /// # Errors
    /// As [`AttemptBudget::take`].
    pub fn check(&mut self, now_ms: u64) -> Result<(), u64> {
        while self.taken.front().is_some_and(|at| at + self.window_ms <= now_ms) {
            self.taken.pop_front();
        }
        if self.taken.len() < self.max {
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

    proptest! {
        #[test]
        fn a_changed_rate_ends_a_long_wait(bytes in 1u64..1 << 30) {
            let mut bucket = TokenBucket::new(1, 0);
            bucket.take(bytes + 1, 0);
            let before = bucket.wait_ms(10);
            prop_assert!(before > 0 && bucket.wait_ms(10) == before, "asking takes nothing");
            bucket.set_rate(0, 10);
            prop_assert_eq!(bucket.wait_ms(10), 0);
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
    fn two_buckets_let_through_no_more_than_the_slower() {
        let (mut one, mut all) = (TokenBucket::new(4_000_000, 0), TokenBucket::new(1_000_000, 0));
        let (mut now, mut sent) = (0, 0);
        for _ in 0..50 {
            sent += 100_000;
            now += one.take(100_000, now).max(all.take(100_000, now));
        }
        assert!(sent <= 250_000 + now * 1000, "{sent} bytes in {now} ms");
        assert!(now <= 5_000, "{now}");
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
