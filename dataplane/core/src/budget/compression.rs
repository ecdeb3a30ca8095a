//! Whether a stream that catches up is worth compressing: only where the link, and neither side's processor, is what it waits
//! for, and only if it then really gets faster.

/// How often it is judged at most, and at least.
const PERIOD_MS: (u64, u64) = (1_000, 10_000);
/// Raw bytes that a period needs before it is judged by them; what sends less in the longest one is not far behind.
const MIN_BYTES: u64 = 256 << 10;
/// Raw bytes sent after a change before it is judged: those under way when it came say nothing about it.
const SETTLE_BYTES: u64 = 8 << 20;
/// Raw bytes after which data that does not shrink is known.
const SAMPLE_BYTES: u64 = 1 << 20;
/// After so long without compression being asked again, the link is measured anew.
const RECHECK_MS: u64 = 60_000;
/// First and longest pause after a try that did not pay.
const PAUSE_MS: (u64, u64) = (30_000, 600_000);

/// What was measured since a point in time.
#[derive(Debug, Clone, Copy, Default)]
struct Measured {
    since_ms: u64,
    raw: u64,
    wire: u64,
    compress_us: u64,
    waited_ms: u64,
}

impl Measured {
    fn since(now_ms: u64) -> Self {
        Self { since_ms: now_ms, ..Self::default() }
    }

    fn passed_ms(&self, now_ms: u64) -> u64 {
        now_ms.saturating_sub(self.since_ms).max(1)
    }

    /// Raw bytes a second.
    fn rate(&self, now_ms: u64) -> u64 {
        self.raw.saturating_mul(1000) / self.passed_ms(now_ms)
    }
}

#[derive(Debug, Clone, Copy)]
enum State {
    Off,
    /// On since `since`, on trial: it was `before` bytes a second without.
    Trial {
        before: u64,
        since: Measured,
    },
    On {
        since_ms: u64,
    },
}

/// See the module. One for each stream; only what catches up is counted.
#[derive(Debug, Clone)]
pub struct CompressionChoice {
    state: State,
    period: Measured,
    /// How much of its time the follower's applier had nothing to do, in thousandths; `None` = it did not say.
    follower_idle: Option<u32>,
    next_trial_ms: u64,
    pause_ms: u64,
}

impl CompressionChoice {
    /// Begins without compression.
    #[must_use]
    pub fn new(now_ms: u64) -> Self {
        Self {
            state: State::Off,
            period: Measured::since(now_ms),
            follower_idle: None,
            next_trial_ms: 0,
            pause_ms: PAUSE_MS.0,
        }
    }

    /// Whether to compress what is read next.
    #[must_use]
    pub fn is_on(&self) -> bool {
        !matches!(self.state, State::Off)
    }

    /// `raw` bytes were sent as `wire` bytes; compressing them took `compress_us`.
    pub fn sent(&mut self, raw: u64, wire: u64, compress_us: u64) {
        let add = |m: &mut Measured| {
            m.raw += raw;
            m.wire += wire;
            m.compress_us += compress_us;
        };
        add(&mut self.period);
        if let State::Trial { since, .. } = &mut self.state {
            add(since);
        }
    }

    /// There was something to send, and for `ms` neither credit nor room in the socket for it.
    pub fn waited(&mut self, ms: u64) {
        self.period.waited_ms += ms;
    }

    /// The follower says how much of its time its applier had nothing to do, in thousandths.
    pub fn follower_idle(&mut self, permille: u32) {
        self.follower_idle = Some(permille);
    }

    /// Judges, if it is time to; answers [`CompressionChoice::is_on`].
    pub fn judge(&mut self, now_ms: u64) -> bool {
        let passed = now_ms.saturating_sub(self.period.since_ms);
        if passed >= PERIOD_MS.1 || (passed >= PERIOD_MS.0 && self.period.raw >= MIN_BYTES) {
            let period = std::mem::replace(&mut self.period, Measured::since(now_ms));
            self.state = self.next(&period, now_ms);
        }
        self.is_on()
    }

    fn next(&mut self, period: &Measured, now_ms: u64) -> State {
        match self.state {
            // It has caught up: what was learnt says little about the next time.
            _ if period.raw < MIN_BYTES => State::Off,
            State::Off if now_ms >= self.next_trial_ms && self.link_is_the_limit(period, now_ms) => {
                State::Trial { before: period.rate(now_ms), since: Measured::since(now_ms) }
            }
            State::Off => State::Off,
            State::Trial { before, since } => {
                let shrinks = since.wire < since.raw / 10 * 9;
                if since.raw >= SAMPLE_BYTES && !shrinks {
                    self.give_up(now_ms)
                } else if since.raw < SETTLE_BYTES {
                    self.state
                } else if period.rate(now_ms) > before + before / 10 {
                    self.pause_ms = PAUSE_MS.0;
                    State::On { since_ms: now_ms }
                } else {
                    self.give_up(now_ms)
                }
            }
            State::On { since_ms } => {
                let shrinks = period.wire < period.raw / 10 * 9;
                // Its thread does little else: without, it would be faster.
                let busy = period.compress_us / 1000 > period.passed_ms(now_ms) / 10 * 8;
                if !shrinks || busy {
                    self.give_up(now_ms)
                } else if now_ms.saturating_sub(since_ms) > RECHECK_MS {
                    State::Off
                } else {
                    self.state
                }
            }
        }
    }

    /// Both sides waited most of the time, so the processors were not what it took.
    fn link_is_the_limit(&self, period: &Measured, now_ms: u64) -> bool {
        period.waited_ms >= period.passed_ms(now_ms) / 2 && self.follower_idle.is_some_and(|idle| idle >= 500)
    }

    fn give_up(&mut self, now_ms: u64) -> State {
        self.next_trial_ms = now_ms + self.pause_ms;
        self.pause_ms = (self.pause_ms * 2).min(PAUSE_MS.1);
        State::Off
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One second of a stream over a link of `link` bytes a second, whose compressor makes `ratio` percent of the bytes and
    /// whose sides could do `cpu` bytes a second (`cpu_compressing` while they compress).
    struct World {
        link: u64,
        ratio: u64,
        cpu: u64,
        cpu_compressing: u64,
    }

    impl World {
        fn second(&self, choice: &mut CompressionChoice, now_ms: u64) -> u64 {
            let on = choice.is_on();
            let ratio = if on { self.ratio } else { 100 };
            let cpu = if on { self.cpu_compressing } else { self.cpu };
            let raw = cpu.min(self.link * 100 / ratio);
            let idle_ms = 1000 - 1000 * raw / cpu;
            choice.sent(raw, raw * ratio / 100, if on { raw / 300 } else { 0 });
            choice.waited(idle_ms);
            choice.follower_idle(u32::try_from(idle_ms).unwrap_or(1000));
            choice.judge(now_ms);
            raw
        }

        /// Seconds of a minute in which it compressed.
        fn minute(&self) -> (usize, CompressionChoice) {
            let mut choice = CompressionChoice::new(0);
            let on = (1..=60).filter(|s| {
                self.second(&mut choice, s * 1000);
                choice.is_on()
            });
            (on.count(), choice)
        }
    }

    #[test]
    fn a_slow_link_is_relieved_and_stays_so() {
        let slow = World { link: 5 << 20, ratio: 40, cpu: 60 << 20, cpu_compressing: 50 << 20 };
        let (on, choice) = slow.minute();
        assert!(on >= 58 && choice.is_on(), "{on}");
    }

    #[test]
    fn a_fast_link_is_never_tried() {
        let loopback = World { link: 2 << 30, ratio: 20, cpu: 60 << 20, cpu_compressing: 40 << 20 };
        assert_eq!(loopback.minute().0, 0);
    }

    #[test]
    fn data_that_does_not_shrink_is_tried_once_in_a_while() {
        let random = World { link: 5 << 20, ratio: 100, cpu: 60 << 20, cpu_compressing: 50 << 20 };
        let (on, choice) = random.minute();
        assert!(on <= 4 && !choice.is_on(), "{on}");
    }

    #[test]
    fn a_try_that_makes_nothing_faster_ends() {
        // Both sides wait for something that is not the link, e.g. for a third thread.
        let mut choice = CompressionChoice::new(0);
        let mut on = 0;
        for second in 1..=60 {
            choice.sent(10 << 20, if choice.is_on() { 3 << 20 } else { 10 << 20 }, 0);
            choice.waited(900);
            choice.follower_idle(900);
            on += usize::from(choice.judge(second * 1000));
        }
        assert!(on <= 4, "{on}");
    }

    #[test]
    fn a_follower_that_says_nothing_or_is_busy_is_not_compressed_for() {
        for idle in [None, Some(100)] {
            let mut choice = CompressionChoice::new(0);
            for second in 1..=10 {
                choice.sent(10 << 20, 10 << 20, 0);
                choice.waited(900);
                idle.inspect(|permille| choice.follower_idle(*permille));
                assert!(!choice.judge(second * 1000));
            }
        }
    }

    #[test]
    fn a_very_slow_link_is_relieved_too() {
        let slow = World { link: 100 << 10, ratio: 40, cpu: 60 << 20, cpu_compressing: 50 << 20 };
        let (on, choice) = slow.minute();
        assert!(on >= 50 && choice.is_on(), "{on}");
    }

    #[test]
    fn after_a_quiet_time_it_is_tried_again_without_a_pause() {
        let slow = World { link: 5 << 20, ratio: 40, cpu: 60 << 20, cpu_compressing: 50 << 20 };
        let (_, mut choice) = slow.minute();
        for second in 61..=80 {
            choice.judge(second * 1000);
        }
        assert!(!choice.is_on(), "nothing catches up");
        for second in 81..=90 {
            slow.second(&mut choice, second * 1000);
        }
        assert!(choice.is_on());
    }

    #[test]
    fn a_link_that_became_fast_is_noticed() {
        let mut world = World { link: 5 << 20, ratio: 40, cpu: 60 << 20, cpu_compressing: 30 << 20 };
        let mut choice = CompressionChoice::new(0);
        for second in 1..=10 {
            world.second(&mut choice, second * 1000);
        }
        assert!(choice.is_on());
        world.link = 1 << 30;
        for second in 11..=80 {
            world.second(&mut choice, second * 1000);
        }
        assert!(!choice.is_on());
    }
}
