//! Who has what, on the primary: acknowledgements, the position up to which writes may be answered, and lag. Pure.
//!
//! Invariants: a member's position in a prefix moves backwards only with a new session of that member; only distinct members
//! of the reign other than its primary count, and only with a durable position in the reign's own epoch.

use std::collections::{BTreeMap, HashMap, VecDeque};

use crate::types::{DataUuid, Position, PrefixUuid, Reign, Sequence};

/// Samples kept per prefix: ten minutes at one a second.
const MAX_SAMPLES: usize = 600;

/// How far a member is in one prefix; received >= applied >= durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AckPositions {
    /// Received in whole batches.
    pub received: Position,
    /// Shown by its reads.
    pub applied: Position,
    /// Survives a crash.
    pub durable: Position,
}

/// Names one session of one member. Later sessions are greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct SessionId(u64);

/// Why an acknowledgement was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AckError {
    /// A later session of the member began.
    #[error("take acknowledgement of {0}: a later session of this member began")]
    OldSession(DataUuid),
    /// received >= applied >= durable does not hold.
    #[error(
        "take acknowledgement of {member} for {prefix}: received {received}, applied {applied}, durable {durable} are out of order"
    )]
    Disordered {
        /// Who.
        member: DataUuid,
        /// Of what.
        prefix: PrefixUuid,
        /// Received.
        received: Sequence,
        /// Applied.
        applied: Sequence,
        /// Durable.
        durable: Sequence,
    },
}

/// What this primary has written by some time.
#[derive(Debug, Clone, Copy)]
struct Sample {
    at_ms: u64,
    sequence: Sequence,
    bytes_total: u64,
}

#[derive(Debug)]
struct Member {
    session: SessionId,
    connected: bool,
    bytes_per_second: u64,
    acks: HashMap<PrefixUuid, AckPositions>,
}

/// One member's progress, for reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FollowerProgress {
    /// Who.
    pub data_uuid: DataUuid,
    /// Whether its session is up.
    pub connected: bool,
    /// Summed over all prefixes.
    pub lag_sequences: u64,
    /// Summed over all prefixes.
    pub lag_bytes: u64,
    /// Of the prefix that is furthest behind.
    pub lag_ms: u64,
    /// Seconds until it falls out of the WAL window; `None` = nothing threatens.
    pub window_left_seconds: Option<u64>,
    /// Bytes of batches a second that it applied lately, as it says itself; 0 while its session is down.
    pub bytes_per_second: u64,
}

/// Where the primary is in a prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Present {
    /// The prefix.
    pub prefix: PrefixUuid,
    /// Its last record.
    pub sequence: Sequence,
    /// Bytes written so far, as in [`AckTable::sample`].
    pub bytes_total: u64,
}

/// How long and how much WAL is kept.
#[derive(Debug, Clone, Copy)]
pub struct Retention {
    /// By time, in seconds.
    pub seconds: u64,
    /// By size over all prefixes, in bytes; `None` = unlimited.
    pub bytes: Option<u64>,
}

/// See the module.
#[derive(Debug, Default)]
pub struct AckTable {
    members: BTreeMap<DataUuid, Member>,
    samples: HashMap<PrefixUuid, VecDeque<Sample>>,
    last_session: u64,
}

impl AckTable {
    /// A member's session begins: it will say anew where it is in every prefix.
    pub fn begin_session(&mut self, member: DataUuid) -> SessionId {
        self.last_session += 1;
        let session = SessionId(self.last_session);
        self.members.insert(member, Member { session, connected: true, bytes_per_second: 0, acks: HashMap::new() });
        session
    }

    /// A session ended. What the member acknowledged stays: it is on its disk.
    pub fn end_session(&mut self, member: DataUuid, session: SessionId) {
        if let Some(m) = self.members.get_mut(&member)
            && m.session == session
        {
            m.connected = false;
            m.bytes_per_second = 0;
        }
    }

    /// A member says how many bytes of batches a second it applied lately.
    pub fn note_rate(&mut self, session: SessionId, member: DataUuid, bytes_per_second: u64) {
        if let Some(m) = self.members.get_mut(&member)
            && m.session == session
        {
            m.bytes_per_second = bytes_per_second;
        }
    }

    /// Forgets everyone: this member leads no more.
    pub fn clear(&mut self) {
        self.members.clear();
        self.samples.clear();
    }

    /// Forgets members that are not connected and not in `reign`.
    pub fn retain_members(&mut self, reign: &Reign) {
        self.members.retain(|who, m| m.connected || reign.members.contains(who));
    }

    /// Forgets the prefixes that `keep` does not know: they were dropped.
    pub fn retain_prefixes(&mut self, keep: impl Fn(PrefixUuid) -> bool) {
        self.samples.retain(|prefix, _| keep(*prefix));
        for member in self.members.values_mut() {
            member.acks.retain(|prefix, _| keep(*prefix));
        }
    }

    /// Takes one acknowledgement; answers whether the durable position is news.
    ///
    /// # Errors
    /// See [`AckError`]; nothing changed then.
    pub fn record(
        &mut self,
        session: SessionId,
        member: DataUuid,
        prefix: PrefixUuid,
        ack: AckPositions,
    ) -> Result<bool, AckError> {
        let known =
            self.members.get_mut(&member).filter(|m| m.session == session).ok_or(AckError::OldSession(member))?;
        if ack.received.sequence < ack.applied.sequence || ack.applied.sequence < ack.durable.sequence {
            let (received, applied, durable) = (ack.received.sequence, ack.applied.sequence, ack.durable.sequence);
            return Err(AckError::Disordered { member, prefix, received, applied, durable });
        }
        let now = known.acks.entry(prefix).or_default();
        let news = ack.durable > now.durable;
        now.received = now.received.max(ack.received);
        now.applied = now.applied.max(ack.applied);
        now.durable = now.durable.max(ack.durable);
        Ok(news)
    }

    /// Whether a member ever began a session with this primary.
    #[must_use]
    pub fn knows(&self, member: DataUuid) -> bool {
        self.members.contains_key(&member)
    }

    /// Where a member is in a prefix.
    #[must_use]
    pub fn position(&self, member: DataUuid, prefix: PrefixUuid) -> Option<AckPositions> {
        self.members.get(&member)?.acks.get(&prefix).copied()
    }

    /// How many members have applied `sequence` of a prefix, in whatever epoch (`WAIT`).
    #[must_use]
    pub fn members_at(&self, prefix: PrefixUuid, sequence: Sequence) -> usize {
        let has =
            |member: &&DataUuid| self.position(**member, prefix).is_some_and(|at| at.applied.sequence >= sequence);
        self.members.keys().filter(has).count()
    }

    /// How many members have a session that is up.
    #[must_use]
    pub fn connected(&self) -> usize {
        self.members.values().filter(|m| m.connected).count()
    }

    /// The last sequence that at least `required` replicas of `reign` have durably in its epoch; `None` if there is none, and
    /// if `required` is 0, since nobody is asked then.
    #[must_use]
    pub fn released(&self, prefix: PrefixUuid, reign: &Reign, required: u32) -> Option<Sequence> {
        let rank = usize::try_from(required).ok()?.checked_sub(1)?;
        let mut durable: Vec<Sequence> = self
            .members
            .iter()
            .filter(|(who, _)| **who != reign.primary && reign.members.contains(who))
            .filter_map(|(_, m)| m.acks.get(&prefix))
            .filter(|ack| ack.durable.epoch == reign.epoch || parovoz_mutant::on("ack-of-any-epoch"))
            .map(|ack| ack.durable.sequence)
            .collect();
        if parovoz_mutant::on("intermediate-ack-counted") {
            // As if whoever streams from a member had what that one acknowledges.
            durable.extend(durable.clone());
        }
        durable.sort_unstable_by(|a, b| b.cmp(a));
        let rank = if parovoz_mutant::on("one-ack-suffices") { 0 } else { rank };
        durable.get(rank).copied()
    }

    /// Notes where the primary itself is in a prefix; the caller does it about once a second.
    pub fn sample(&mut self, prefix: PrefixUuid, now_ms: u64, sequence: Sequence, bytes_total: u64) {
        let samples = self.samples.entry(prefix).or_default();
        // An idle prefix needs no more than its last change: lag is measured from the first sample beyond a position.
        if samples.back().is_some_and(|s| s.sequence == sequence) {
            return;
        }
        if samples.len() == MAX_SAMPLES {
            samples.pop_front();
        }
        samples.push_back(Sample { at_ms: now_ms, sequence, bytes_total });
    }

    /// All members' progress, measured from where the primary is at present: samples say only since when it is ahead.
    #[must_use]
    pub fn follower_reports(&self, now_ms: u64, retention: Retention, present: &[Present]) -> Vec<FollowerProgress> {
        let rate = self.bytes_per_second(now_ms);
        self.members.iter().map(|(who, m)| self.progress(*who, m, now_ms, retention, rate, present)).collect()
    }

    fn progress(
        &self,
        who: DataUuid,
        member: &Member,
        now_ms: u64,
        retention: Retention,
        rate: u64,
        present: &[Present],
    ) -> FollowerProgress {
        let mut report = FollowerProgress {
            data_uuid: who,
            connected: member.connected,
            lag_sequences: 0,
            lag_bytes: 0,
            lag_ms: 0,
            window_left_seconds: None,
            bytes_per_second: member.bytes_per_second,
        };
        let none = VecDeque::new();
        for latest in present {
            let at = member.acks.get(&latest.prefix).map_or(Sequence(0), |a| a.applied.sequence);
            if at >= latest.sequence {
                continue;
            }
            let samples = self.samples.get(&latest.prefix).unwrap_or(&none);
            report.lag_sequences += latest.sequence.0 - at.0;
            let beyond = samples.partition_point(|s| s.sequence <= at);
            let since = samples.get(beyond).map_or(now_ms, |s| s.at_ms);
            report.lag_ms = report.lag_ms.max(now_ms.saturating_sub(since));
            report.lag_bytes += latest.bytes_total.saturating_sub(bytes_at(samples, beyond, at));
        }
        if report.lag_sequences > 0 {
            let by_time = retention.seconds.saturating_sub(report.lag_ms / 1000);
            let by_size = retention.bytes.and_then(|limit| limit.saturating_sub(report.lag_bytes).checked_div(rate));
            report.window_left_seconds = Some(by_size.map_or(by_time, |s| s.min(by_time)));
        }
        report
    }

    /// Bytes a second written lately, over all prefixes.
    fn bytes_per_second(&self, now_ms: u64) -> u64 {
        let from = now_ms.saturating_sub(60_000);
        let written: u64 = self
            .samples
            .values()
            .filter_map(|samples| {
                let first = samples.get(samples.partition_point(|s| s.at_ms < from))?;
                Some(samples.back()?.bytes_total.saturating_sub(first.bytes_total))
            })
            .sum();
        written / 60
    }
}

/// Bytes written when `at` was the last sequence: between the samples around it, in proportion.
fn bytes_at(samples: &VecDeque<Sample>, beyond: usize, at: Sequence) -> u64 {
    let Some(after) = samples.get(beyond) else { return samples.back().map_or(0, |s| s.bytes_total) };
    let Some(before) = beyond.checked_sub(1).and_then(|i| samples.get(i)) else {
        return 0;
    };
    let (span, done) = (after.sequence.0 - before.sequence.0, at.0 - before.sequence.0);
    let bytes = u128::from(after.bytes_total.saturating_sub(before.bytes_total));
    before.bytes_total + u64::try_from(bytes * u128::from(done) / u128::from(span.max(1))).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::types::{Epoch, Mode, ReignId};
    use uuid::Uuid;

    const P: PrefixUuid = PrefixUuid(Uuid::from_u128(77));
    const KEEP: Retention = Retention { seconds: 100, bytes: None };

    fn who(n: u128) -> DataUuid {
        DataUuid(Uuid::from_u128(n))
    }

    fn reign(members: u128) -> Reign {
        Reign {
            epoch: Epoch(5),
            reign_id: ReignId(Uuid::from_u128(1)),
            primary: who(1),
            members: (1..=members).map(who).collect(),
            mode: Mode::Quorum,
            min_sync_replicas: 1,
            lease_duration_ms: 5000,
        }
    }

    fn at(sequence: u64, bytes_total: u64) -> Present {
        Present { prefix: P, sequence: Sequence(sequence), bytes_total }
    }

    fn durable(table: &mut AckTable, session: SessionId, member: u128, epoch: u64, sequence: u64) {
        let p = Position::new(epoch, sequence);
        table.record(session, who(member), P, AckPositions { received: p, applied: p, durable: p }).unwrap();
    }

    #[test]
    fn writes_are_released_by_distinct_members_of_the_reign_in_its_own_epoch() {
        let mut t = AckTable::default();
        let sessions: Vec<SessionId> = (1..=5).map(|n| t.begin_session(who(n))).collect();
        let reign = reign(4);
        durable(&mut t, sessions[1], 2, 5, 100);
        durable(&mut t, sessions[1], 2, 5, 110);
        assert_eq!(t.released(P, &reign, 1), Some(Sequence(110)));
        assert_eq!(t.released(P, &reign, 2), None, "one member counts once");
        durable(&mut t, sessions[0], 1, 5, 500);
        durable(&mut t, sessions[4], 5, 5, 500);
        assert_eq!(t.released(P, &reign, 2), None, "neither the primary nor a learner counts");
        durable(&mut t, sessions[2], 3, 4, 900);
        assert_eq!(t.released(P, &reign, 2), None, "a position of another epoch does not count");
        durable(&mut t, sessions[3], 4, 5, 90);
        assert_eq!(t.released(P, &reign, 2), Some(Sequence(90)));
        assert_eq!(t.released(P, &reign, 0), None);
    }

    #[test]
    fn positions_move_back_only_with_a_new_session() {
        let mut t = AckTable::default();
        let old = t.begin_session(who(2));
        durable(&mut t, old, 2, 5, 100);
        durable(&mut t, old, 2, 5, 50);
        assert_eq!(t.position(who(2), P).unwrap().durable, Position::new(5, 100));
        let new = t.begin_session(who(2));
        assert_eq!(t.released(P, &reign(3), 1), None);
        let late = t.record(old, who(2), P, AckPositions::default());
        assert_eq!(late, Err(AckError::OldSession(who(2))));
        durable(&mut t, new, 2, 5, 60);
        assert_eq!(t.released(P, &reign(3), 1), Some(Sequence(60)));
        t.end_session(who(2), old);
        assert!(t.follower_reports(0, KEEP, &[])[0].connected);
        assert_eq!(t.connected(), 1, "the end of an old session is not the end of the new one");
        t.end_session(who(2), new);
        assert_eq!(t.connected(), 0);
    }

    #[test]
    fn durable_beyond_applied_is_refused() {
        let mut t = AckTable::default();
        let s = t.begin_session(who(2));
        let ack = AckPositions { durable: Position::new(5, 2), ..AckPositions::default() };
        assert!(matches!(t.record(s, who(2), P, ack), Err(AckError::Disordered { .. })));
    }

    #[test]
    fn lag_is_measured_in_sequences_bytes_and_time() {
        let mut t = AckTable::default();
        let s = t.begin_session(who(2));
        t.sample(P, 1_000, Sequence(100), 1_000);
        t.sample(P, 2_000, Sequence(200), 3_000);
        t.sample(P, 3_000, Sequence(300), 5_000);
        durable(&mut t, s, 2, 5, 150);
        let report = &t.follower_reports(5_000, KEEP, &[at(300, 5_000)])[0];
        assert_eq!((report.lag_sequences, report.lag_bytes, report.lag_ms), (150, 3_000, 3_000));
        assert_eq!(report.window_left_seconds, Some(97));
        durable(&mut t, s, 2, 5, 300);
        let report = &t.follower_reports(9_000, KEEP, &[at(300, 5_000)])[0];
        assert_eq!((report.lag_sequences, report.lag_bytes, report.lag_ms), (0, 0, 0));
        assert_eq!(report.window_left_seconds, None);
    }

    #[test]
    fn what_was_written_since_the_last_sample_counts_as_lag() {
        let mut t = AckTable::default();
        let s = t.begin_session(who(2));
        t.sample(P, 1_000, Sequence(100), 1_000);
        durable(&mut t, s, 2, 5, 100);
        let report = &t.follower_reports(1_900, KEEP, &[at(140, 1_800)])[0];
        assert_eq!((report.lag_sequences, report.lag_bytes, report.lag_ms), (40, 800, 0));
        let new = PrefixUuid(Uuid::from_u128(78));
        let created = Present { prefix: new, sequence: Sequence(3), bytes_total: 50 };
        assert_eq!(t.follower_reports(1_900, KEEP, &[created])[0].lag_sequences, 3);
    }

    #[test]
    fn the_rate_is_that_of_the_present_session() {
        let mut t = AckTable::default();
        let old = t.begin_session(who(2));
        t.note_rate(old, who(2), 1000);
        assert_eq!(t.follower_reports(0, KEEP, &[])[0].bytes_per_second, 1000);
        let new = t.begin_session(who(2));
        t.note_rate(old, who(2), 2000);
        assert_eq!(t.follower_reports(0, KEEP, &[])[0].bytes_per_second, 0);
        t.note_rate(new, who(2), 3000);
        t.end_session(who(2), new);
        assert_eq!(t.follower_reports(0, KEEP, &[])[0].bytes_per_second, 0);
    }

    #[test]
    fn a_limit_by_size_shortens_the_window() {
        let mut t = AckTable::default();
        t.begin_session(who(2));
        t.sample(P, 0, Sequence(1), 0);
        t.sample(P, 60_000, Sequence(2), 60_000);
        let keep = Retention { seconds: 7200, bytes: Some(70_000) };
        let report = &t.follower_reports(60_000, keep, &[at(2, 60_000)])[0];
        assert_eq!(report.window_left_seconds, Some(10));
    }

    #[test]
    fn samples_stay_bounded() {
        let mut t = AckTable::default();
        for i in 0..2_000 {
            t.sample(P, i, Sequence(i), i);
        }
        assert_eq!(t.samples[&P].len(), MAX_SAMPLES);
    }
}
