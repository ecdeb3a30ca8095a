//! The report stream of one member, kept up for as long as its pod is there.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parovoz_operator_core::observed::{Contact, Position, Report};
use parovoz_operator_core::quorum::Vote;
use parovoz_proto::v1::StatusRequest;
use parovoz_proto::v1::admin_client::AdminClient;
use tonic::transport::Channel;

use super::convert::report;
use super::pool::Notify;
use crate::metrics::{Metrics, OrderName};

/// A stream that is silent for this long is given up: reports come at least every five seconds.
const SILENT_AFTER: Duration = Duration::from_secs(12);
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// A member that was started anew must not be overlooked for long: it may be the primary that everybody waits for.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// How often reports that differ only in figures cause a pass over the store.
const FIGURES_EVERY: Duration = Duration::from_secs(5);

/// What is known of a member, with the times at which it was learnt.
#[derive(Debug)]
pub(super) struct State {
    report: Option<Report>,
    reported: Instant,
    /// None while connected.
    unreachable_since: Option<Instant>,
    notified: Instant,
    /// Orders that are not answered yet.
    under_way: HashSet<OrderName>,
}

impl State {
    pub(super) fn new() -> Self {
        let now = Instant::now();
        Self { report: None, reported: now, unreachable_since: Some(now), notified: now, under_way: HashSet::new() }
    }

    /// An order is about to be sent. False if the same is still under way.
    pub(super) fn begin(&mut self, order: OrderName) -> bool {
        self.under_way.insert(order)
    }

    /// An order was answered, or given up.
    pub(super) fn end(&mut self, order: OrderName) {
        self.under_way.remove(&order);
    }

    pub(super) fn contact(&self) -> Contact {
        let unreachable_for =
            self.unreachable_since.map_or(Duration::ZERO, |since| since.elapsed().max(Duration::from_millis(1)));
        Contact { report: self.report.clone(), age: self.reported.elapsed(), unreachable_for }
    }

    /// Take a report over. True if a pass over the store is due.
    pub(super) fn heard(&mut self, report: Report) -> bool {
        let moved = self.report.as_ref() != Some(&report);
        let turned = self.unreachable_since.is_some() || self.report.as_ref().map(steady) != Some(steady(&report));
        self.report = Some(report);
        self.reported = Instant::now();
        self.unreachable_since = None;
        let due = turned || (moved && self.notified.elapsed() >= FIGURES_EVERY);
        if due {
            self.notified = Instant::now();
        }
        due
    }

    /// The stream broke. True if it stood until now.
    fn lost(&mut self) -> bool {
        let first = self.unreachable_since.is_none();
        self.unreachable_since.get_or_insert_with(Instant::now);
        first
    }
}

/// The parts of a report that a decision or a word in the status rests on, without figures that always move.
fn steady(report: &Report) -> Report {
    let mut steady = report.clone();
    let level = |known: Option<Duration>, steps: &[u64]| {
        known.map(|known| {
            steps.iter().copied().map(Duration::from_secs).filter(|step| known >= *step).max().unwrap_or_default()
        })
    };
    steady.prefixes.iter_mut().for_each(|prefix| {
        prefix.applied = Position { epoch: prefix.applied.epoch, sequence: 0 };
        prefix.upstream_latest = Position::default();
        // A sealed member's votes move only by what it fetches, and that is waited for.
        if let (Vote::Known(at), None) = (&mut prefix.vote, &report.sealed) {
            at.sequence = 0;
        }
        if let Some(copy) = &mut prefix.bootstrap {
            copy.bytes_done = 0;
            copy.bytes_total = 0;
            copy.bytes_per_second = 0;
        }
    });
    steady.followers.iter_mut().for_each(|follower| {
        follower.lag_sequences = 0;
        follower.lag_bytes = 0;
        follower.lag_ms = 0;
        follower.window_left_seconds = None;
    });
    steady.disk_free_bytes = 0;
    steady.uptime = Duration::ZERO;
    steady.primary_silence = level(report.primary_silence, &[1, 3]);
    steady.stalled_fsync = level(report.stalled_fsync, &[5]);
    steady.oldest_wait = level(Some(report.oldest_wait), &[3]).unwrap_or_default();
    steady.frozen = if report.frozen.is_zero() { Duration::ZERO } else { Duration::from_secs(1) };
    steady
}

/// Keep the stream of one member up. Ends only by being dropped.
pub(super) async fn watch(
    channel: Channel,
    state: Arc<parking_lot::Mutex<State>>,
    notify: Notify,
    metrics: Arc<Metrics>,
) {
    let mut pause = FIRST_PAUSE;
    loop {
        let mut connected = Connected { metrics: &metrics, up: false };
        let cause = follow(&channel, &state, &notify, &mut connected).await;
        if connected.up {
            pause = FIRST_PAUSE;
        }
        drop(connected);
        if state.lock().lost() {
            tracing::info!(store = %notify.store, pod = notify.pod, cause, "member does not report any more");
            notify.send();
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Counts a standing stream, also when its task is dropped in the middle.
struct Connected<'a> {
    metrics: &'a Metrics,
    up: bool,
}

impl Connected<'_> {
    fn up(&mut self) {
        if !self.up {
            self.up = true;
            self.metrics.member_connected(true);
        }
    }
}

impl Drop for Connected<'_> {
    fn drop(&mut self) {
        if self.up {
            self.metrics.member_connected(false);
        }
    }
}

async fn follow(
    channel: &Channel,
    state: &parking_lot::Mutex<State>,
    notify: &Notify,
    connected: &mut Connected<'_>,
) -> String {
    let mut client = AdminClient::new(channel.clone());
    let mut stream = match tokio::time::timeout(SILENT_AFTER, client.watch_status(StatusRequest {})).await {
        Ok(Ok(stream)) => stream.into_inner(),
        Ok(Err(status)) => return status.message().to_owned(),
        Err(_) => return format!("no answer within {SILENT_AFTER:?}"),
    };
    loop {
        match tokio::time::timeout(SILENT_AFTER, stream.message()).await {
            Ok(Ok(Some(message))) => {
                connected.up();
                let due = state.lock().heard(report(message));
                if due {
                    notify.send();
                }
            }
            Ok(Ok(None)) => return "the member ended the stream".to_owned(),
            Ok(Err(status)) => return status.message().to_owned(),
            Err(_) => return format!("no report within {SILENT_AFTER:?}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parovoz_api::MemberPhase;
    use parovoz_operator_core::observed::{Position, PrefixReport};

    fn at(sequence: u64) -> Report {
        let applied = Position { epoch: 1, sequence };
        Report { prefixes: vec![PrefixReport { applied, ..PrefixReport::default() }], ..Report::default() }
    }

    #[test]
    fn a_turn_is_told_at_once_and_moving_figures_are_not() {
        let mut state = State::new();
        assert!(state.heard(at(1)), "the first report");
        assert!(!state.heard(at(2)), "only a position moved");
        assert!(state.heard(Report { phase: MemberPhase::Parked, ..at(2) }));
        assert!(state.lost() && !state.lost());
        assert!(!state.contact().unreachable_for.is_zero());
        assert!(state.heard(Report { phase: MemberPhase::Parked, ..at(2) }), "it is back");
        assert!(state.contact().unreachable_for.is_zero());
    }
}
