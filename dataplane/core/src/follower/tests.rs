#![allow(clippy::unwrap_used)]

use std::collections::HashMap;

use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::batch::BatchBuilder;
use crate::types::{DataUuid, ReignId, StoreUid};

const LARGEST: u64 = 1 << 20;

fn reign(epoch: u64) -> ReignRef {
    ReignRef { epoch: Epoch(epoch), reign_id: ReignId(Uuid::from_u128(u128::from(epoch))) }
}

fn prefix(n: u128) -> PrefixUuid {
    PrefixUuid(Uuid::from_u128(n))
}

fn member(n: u128) -> DataUuid {
    DataUuid(Uuid::from_u128(n))
}

/// A batch of `count` records, each with `len` bytes.
fn payload(count: u32, len: usize) -> Bytes {
    let mut builder = BatchBuilder::new();
    for i in 0..count {
        builder.put(&i.to_be_bytes(), &vec![7; len]);
    }
    builder.finish()
}

fn frame(attempt: u64, first: u64, count: u32) -> FrameIn {
    let payload = payload(count, 10);
    FrameIn {
        prefix: prefix(1),
        attempt,
        reign: reign(1),
        epoch: Epoch(1),
        first: Sequence(first),
        count,
        crc32c: crc32c::crc32c(&payload),
        total: payload.len() as u64,
        payload,
        offset: 0,
        committed_at_ms: 0,
    }
}

fn session() -> Session {
    Session::new(reign(1), 0, 8 << 20, LARGEST)
}

fn step(session: &mut Session, now: u64, event: Event) -> Vec<Effect> {
    let mut effects = Vec::new();
    session.step(now, event, &mut effects).unwrap();
    effects.retain(|e| !matches!(e, Effect::Grant(_)));
    effects
}

fn following(session: &mut Session, after: u64) -> u64 {
    let effects =
        step(session, 0, Event::Follow { prefix: prefix(1), after: Position::new(u64::from(after > 0), after) });
    let [Effect::Resume { attempt, .. }] = effects[..] else { panic!("{effects:?}") };
    attempt
}

fn applied(effects: &[Effect]) -> Vec<(u64, u32)> {
    effects
        .iter()
        .filter_map(|e| match e {
            Effect::Apply { batch, .. } => Some((batch.first.0, batch.count)),
            _ => None,
        })
        .collect()
}

#[test]
fn frames_that_follow_are_applied_and_late_ones_of_an_earlier_attempt_are_not() {
    let mut s = session();
    let first = following(&mut s, 0);
    assert_eq!(applied(&step(&mut s, 0, Event::Frame(frame(first, 1, 2)))), [(1, 2)]);
    let second = following(&mut s, 2);
    assert!(applied(&step(&mut s, 0, Event::Frame(frame(first, 3, 1)))).is_empty());
    assert_eq!(applied(&step(&mut s, 0, Event::Frame(frame(second, 3, 1)))), [(3, 1)]);
    assert_eq!(s.state(prefix(1)), Some(StreamState::Streaming));
}

#[test]
fn a_wrong_checksum_is_refused_and_asked_for_again() {
    let mut s = session();
    let attempt = following(&mut s, 0);
    let mut bad = frame(attempt, 1, 1);
    bad.crc32c ^= 1;
    let effects = step(&mut s, 0, Event::Frame(bad));
    assert!(effects.contains(&Effect::Missed { prefix: prefix(1), miss: Miss::Crc }));
    assert!(applied(&effects).is_empty());
    let effects = step(&mut s, 10_000, Event::Tick);
    assert!(matches!(effects[..], [Effect::Resume { after: Position::ZERO, attempt: again, .. }] if again > attempt));
}

#[test]
fn a_count_or_epoch_that_does_not_fit_is_refused() {
    let spoil: [fn(&mut FrameIn); 3] = [|f| f.count = 2, |f| f.epoch = Epoch(2), |f| f.count = 0];
    for change in spoil {
        let mut s = session();
        let attempt = following(&mut s, 0);
        let mut bad = frame(attempt, 1, 1);
        change(&mut bad);
        assert!(applied(&step(&mut s, 0, Event::Frame(bad))).is_empty());
    }
}

#[test]
fn a_hole_that_stays_becomes_a_bootstrap_and_nothing_is_skipped() {
    let mut s = session();
    let mut now = 0;
    let mut attempt = following(&mut s, 5);
    for round in 0..MAX_MISSES {
        let effects = step(&mut s, now, Event::Frame(frame(attempt, 7, 1)));
        assert!(applied(&effects).is_empty());
        if round + 1 == MAX_MISSES {
            assert!(
                effects.iter().any(|e| matches!(e, Effect::StartBootstrap { cause: BootstrapCause::Gap { .. }, .. }))
            );
            return;
        }
        now += 10_000;
        let effects = step(&mut s, now, Event::Tick);
        let [Effect::Resume { attempt: again, .. }] = effects[..] else { panic!("{effects:?}") };
        attempt = again;
    }
}

#[test]
fn refusals_lead_to_a_bootstrap_or_to_another_try() {
    let cases = [
        (RefusalReason::TooOld { oldest: Sequence(9) }, true),
        (RefusalReason::Diverged { fork: Position::new(1, 2) }, true),
        (RefusalReason::Unknown, false),
        (RefusalReason::Busy, false),
    ];
    for (reason, bootstraps) in cases {
        let mut s = session();
        let attempt = following(&mut s, 5);
        let effects = step(&mut s, 0, Event::Refusal { prefix: prefix(1), attempt, reason });
        assert_eq!(effects.iter().any(|e| matches!(e, Effect::StartBootstrap { .. })), bootstraps, "{reason:?}");
        assert_eq!(step(&mut s, 60_000, Event::Tick).iter().any(|e| matches!(e, Effect::Resume { .. })), !bootstraps);
    }
}

#[test]
fn while_a_prefix_is_copied_its_frames_are_thrown_away() {
    let mut s = session();
    let attempt = following(&mut s, 0);
    assert_eq!(step(&mut s, 0, Event::BootstrapStarted(prefix(1))), [Effect::Cancel(prefix(1))]);
    assert!(applied(&step(&mut s, 0, Event::Frame(frame(attempt, 1, 1)))).is_empty());
    assert_eq!(s.in_flight(), 0, "their credit came back");
    let attempt = following(&mut s, 100);
    assert_eq!(applied(&step(&mut s, 0, Event::Frame(frame(attempt, 101, 1)))), [(101, 1)]);
}

#[test]
fn another_reign_ends_the_session() {
    let mut s = session();
    let attempt = following(&mut s, 0);
    let mut foreign = frame(attempt, 1, 1);
    foreign.reign = reign(2);
    assert!(matches!(s.step(0, Event::Frame(foreign), &mut Vec::new()), Err(SessionError::ReignChanged { .. })));
    let beat = Event::Beat { reign: reign(2), latest: vec![] };
    assert!(s.step(0, beat, &mut Vec::new()).is_err());
}

#[test]
fn a_batch_over_the_limit_is_not_collected() {
    let mut s = session();
    let attempt = following(&mut s, 0);
    let mut big = frame(attempt, 1, 1);
    big.total = LARGEST + 1;
    assert!(matches!(s.step(0, Event::Frame(big), &mut Vec::new()), Err(SessionError::BatchTooBig { .. })));
}

#[test]
fn a_failed_apply_is_tried_again_from_where_the_copy_is_and_then_copied_anew() {
    let mut s = session();
    let mut attempt = following(&mut s, 0);
    let mut now = 0;
    for round in 0..MAX_MISSES {
        step(&mut s, now, Event::Frame(frame(attempt, 1, 1)));
        let failed = Event::ApplyFailed { prefix: prefix(1), attempt, at: Position::ZERO, cost: 0 };
        let effects = step(&mut s, now, failed);
        let last = round + 1 == MAX_MISSES;
        assert_eq!(effects.iter().any(|e| matches!(e, Effect::StartBootstrap { .. })), last);
        now += 60_000;
        if let [Effect::Resume { attempt: again, after, .. }] = step(&mut s, now, Event::Tick)[..] {
            assert_eq!(after, Position::ZERO);
            attempt = again;
        }
    }
}

fn own() -> Own {
    Own {
        version: 1,
        min_version: 1,
        store: StoreUid("s".into()),
        data_uuid: member(1),
        reign: Some(reign(3)),
        wanted: Some(member(2)),
        path: vec![member(1), member(9)],
    }
}

fn peer() -> PeerHello {
    PeerHello {
        version: 1,
        min_version: 1,
        store: StoreUid("s".into()),
        data_uuid: member(2),
        expected: Some(member(1)),
        reign: Some(reign(3)),
        path: vec![member(2)],
    }
}

#[test]
fn strangers_cycles_and_older_reigns_are_refused() {
    assert_eq!(check_upstream(&own(), &peer()), Ok(None));
    let newer = PeerHello { reign: Some(reign(4)), ..peer() };
    assert_eq!(check_upstream(&own(), &newer), Ok(Some(reign(4))));
    let foreign = ReignRef { epoch: Epoch(3), reign_id: ReignId(Uuid::from_u128(99)) };
    let refused = [
        PeerHello { store: StoreUid("t".into()), ..peer() },
        PeerHello { data_uuid: member(3), ..peer() },
        PeerHello { data_uuid: member(1), ..peer() },
        PeerHello { expected: Some(member(3)), ..peer() },
        PeerHello { path: vec![member(2), member(1)], ..peer() },
        PeerHello { reign: Some(reign(2)), ..peer() },
        PeerHello { reign: Some(foreign), ..peer() },
        PeerHello { reign: None, ..peer() },
        PeerHello { version: 9, min_version: 2, ..peer() },
    ];
    for bad in refused {
        assert!(check_upstream(&own(), &bad).is_err(), "{bad:?}");
    }
}

#[test]
fn an_upstream_refuses_a_follower_of_a_newer_reign_and_whom_it_streams_from() {
    let own = Own { wanted: None, ..own() };
    assert_eq!(check_follower(&own, &peer()), Ok(reign(3)));
    assert!(check_follower(&own, &PeerHello { reign: Some(reign(4)), ..peer() }).is_err());
    assert!(check_follower(&own, &PeerHello { data_uuid: member(9), ..peer() }).is_err());
    assert!(check_follower(&own, &PeerHello { reign: None, ..peer() }).is_ok());
}

/// Batches that follow `first - 1`, with so many records each, in one bundle.
fn bundle(attempt: u64, first: u64, counts: &[u32]) -> BundleIn {
    let batches: Vec<Bytes> = counts.iter().map(|&count| payload(count, 10)).collect();
    let all = Bytes::from(batches.concat());
    let lengths: Vec<u32> = batches.iter().map(|b| u32::try_from(b.len()).unwrap()).collect();
    BundleIn {
        prefix: prefix(1),
        attempt,
        reign: reign(1),
        epoch: Epoch(1),
        first: Sequence(first),
        crc32c: bundle_crc(&all, &lengths),
        lengths,
        payload: all,
        committed_at_ms: 0,
    }
}

/// Other lengths, with a checksum that fits.
fn resum(bundle: &mut BundleIn, lengths: Vec<u32>) {
    bundle.lengths = lengths;
    bundle.crc32c = bundle_crc(&bundle.payload, &bundle.lengths);
}

#[test]
fn the_batches_of_a_bundle_are_applied_one_by_one_and_their_credit_comes_back() {
    let mut s = session();
    let attempt = following(&mut s, 0);
    let effects = step(&mut s, 0, Event::Bundle(bundle(attempt, 1, &[2, 1, 3])));
    assert_eq!(applied(&effects), [(1, 2), (3, 1), (4, 3)]);
    for effect in effects {
        if let Effect::Apply { prefix, batch } = effect {
            step(&mut s, 0, Event::Applied { prefix, cost: batch.cost, busy_us: 1, pass_us: 1 });
        }
    }
    assert_eq!(s.in_flight(), 0);
    assert_eq!(applied(&step(&mut s, 0, Event::Frame(frame(attempt, 7, 1)))), [(7, 1)]);
}

#[test]
fn a_bundle_that_does_not_fit_is_refused_and_nothing_is_skipped() {
    type Spoil = fn(&mut BundleIn);
    let spoil: [(Spoil, Miss); 6] = [
        (|b| b.crc32c ^= 1, Miss::Crc),
        (|b| b.first = Sequence(2), Miss::Gap),
        (|b| b.epoch = Epoch(2), Miss::NewerEpoch),
        (|b| b.lengths.swap(0, 1), Miss::Crc),
        (|b| resum(b, vec![]), Miss::Malformed),
        (|b| resum(b, vec![1]), Miss::Malformed),
    ];
    for (change, miss) in spoil {
        let mut s = session();
        let attempt = following(&mut s, 0);
        let mut bad = bundle(attempt, 1, &[1, 2]);
        change(&mut bad);
        let effects = step(&mut s, 0, Event::Bundle(bad));
        assert!(effects.contains(&Effect::Missed { prefix: prefix(1), miss }), "{miss:?}: {effects:?}");
        let given: u64 = effects.iter().map(|e| if let Effect::Apply { batch, .. } = e { batch.cost } else { 0 }).sum();
        assert_eq!(s.in_flight(), given, "what was thrown away gave its credit back");
    }
}

#[test]
fn a_late_bundle_of_an_earlier_attempt_is_thrown_away() {
    let mut s = session();
    let old = following(&mut s, 0);
    following(&mut s, 0);
    assert!(step(&mut s, 0, Event::Bundle(bundle(old, 1, &[1, 1]))).is_empty());
    assert_eq!(s.in_flight(), 0);
}

#[test]
fn a_bundle_between_the_parts_of_a_batch_cuts_that_batch() {
    let mut s = session();
    let attempt = following(&mut s, 0);
    let mut part = frame(attempt, 1, 2);
    part.payload.truncate(10);
    step(&mut s, 0, Event::Frame(part));
    let effects = step(&mut s, 0, Event::Bundle(bundle(attempt, 1, &[1])));
    assert!(effects.contains(&Effect::Missed { prefix: prefix(1), miss: Miss::Malformed }));
    assert!(applied(&effects).is_empty());
    assert_eq!(s.in_flight(), 0);
}

#[test]
fn only_peers_of_the_second_protocol_version_take_bundles() {
    assert!(!peer().takes_bundles());
    assert!(PeerHello { version: 2, ..peer() }.takes_bundles());
}

/// How the wire treats one message.
#[derive(Debug, Clone, Copy)]
enum Fate {
    Deliver,
    Twice,
    Lose,
    SwapWithNext,
    Corrupt,
}

fn fate() -> impl Strategy<Value = Fate> {
    prop_oneof![
        8 => Just(Fate::Deliver),
        1 => Just(Fate::Twice),
        1 => Just(Fate::Lose),
        1 => Just(Fate::SwapWithNext),
        1 => Just(Fate::Corrupt),
    ]
}

/// The frames of a resume after `after`: each batch of the upstream whole or in parts of `part` bytes.
fn upstream_frames(batches: &[(u64, u32)], who: PrefixUuid, attempt: u64, after: u64, part: usize) -> Vec<FrameIn> {
    let mut out = Vec::new();
    for &(first, count) in batches.iter().filter(|b| b.0 > after) {
        let whole = payload(count, 30);
        for (i, chunk) in whole.chunks(part).enumerate() {
            let mut f = frame(attempt, first, count);
            f.prefix = who;
            f.crc32c = crc32c::crc32c(&whole);
            f.total = whole.len() as u64;
            f.offset = (i * part) as u64;
            f.payload = whole.slice_ref(chunk);
            out.push(f);
        }
    }
    out
}

proptest! {
    /// Whatever stands in a bundle, what is applied follows, and all credit is accounted for.
    #[test]
    fn a_bundle_of_arbitrary_contents_never_applies_out_of_order(
        counts in proptest::collection::vec(1u32..4, 1..6),
        first in 0u64..4,
        lengths in proptest::option::of(proptest::collection::vec(any::<u32>(), 0..6)),
        flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3),
    ) {
        let mut s = session();
        let attempt = following(&mut s, 0);
        let mut odd = bundle(attempt, first, &counts);
        let mut bytes = odd.payload.to_vec();
        flips.iter().for_each(|(at, with)| bytes[at.index(odd.payload.len())] ^= with);
        odd.payload = bytes.into();
        let lengths = lengths.unwrap_or_else(|| odd.lengths.clone());
        resum(&mut odd, lengths);
        let mut effects = Vec::new();
        s.step(0, Event::Bundle(odd), &mut effects).unwrap();
        let (mut at, mut cost) = (0, 0);
        for effect in &effects {
            if let Effect::Apply { batch, .. } = effect {
                prop_assert_eq!(batch.first.0, at + 1);
                at = batch.first.last_of(batch.count).0;
                cost += batch.cost;
            }
        }
        prop_assert_eq!(s.in_flight(), cost);
    }

    /// Whatever the wire does, each prefix's applied batches are the upstream's, in order and without a hole; and all credit
    /// comes back.
    #[test]
    fn duplicated_lost_and_reordered_frames_never_apply_out_of_order(
        counts in proptest::collection::vec(1u32..5, 1..20),
        fates in proptest::collection::vec(fate(), 1..400),
        part in 20usize..200,
    ) {
        let mut next = 1;
        let batches: Vec<(u64, u32)> = counts.iter().map(|&c| { let b = (next, c); next += u64::from(c); b }).collect();
        let mut s = session();
        let mut last = HashMap::from([(prefix(1), 0u64), (prefix(2), 0)]);
        let mut wire: std::collections::VecDeque<FrameIn> = std::collections::VecDeque::new();
        let mut todo = Vec::new();
        for who in [prefix(1), prefix(2)] {
            todo.extend(step(&mut s, 0, Event::Follow { prefix: who, after: Position::ZERO }));
        }
        let mut fates = fates.into_iter();
        let mut now = 0;
        for _ in 0..2000 {
            for effect in std::mem::take(&mut todo) {
                match effect {
                    Effect::Resume { prefix, after, attempt } => {
                        wire.extend(upstream_frames(&batches, prefix, attempt, after.sequence.0, part));
                    }
                    Effect::Apply { prefix, batch } => {
                        let at = last.get_mut(&prefix).unwrap();
                        prop_assert_eq!(batch.first.0, *at + 1);
                        prop_assert!(batches.contains(&(batch.first.0, batch.count)));
                        *at = batch.first.last_of(batch.count).0;
                        let applied = Event::Applied { prefix, cost: batch.cost, busy_us: 10, pass_us: 10 };
                        todo.extend(step(&mut s, now, applied));
                    }
                    _ => {}
                }
            }
            let Some(mut f) = wire.pop_front() else {
                now += 10_000;
                todo.extend(step(&mut s, now, Event::Tick));
                if todo.is_empty() { break; }
                continue;
            };
            match fates.next().unwrap_or(Fate::Deliver) {
                Fate::Deliver => {}
                Fate::Twice => wire.push_front(f.clone()),
                Fate::Lose => continue,
                Fate::SwapWithNext => if let Some(next) = wire.pop_front() { wire.push_front(f); f = next; },
                Fate::Corrupt => f.crc32c ^= 4,
            }
            todo.extend(step(&mut s, now, Event::Frame(f)));
        }
        // Everything arrived, or the prefix says why it can't go on.
        for (who, at) in last {
            let ended = matches!(s.state(who), Some(StreamState::Stopped(_)));
            let complete = at == next - 1;
            prop_assert!(complete || ended || matches!(s.state(who), Some(StreamState::Streaming | StreamState::Resuming)), "{:?}", s.state(who));
        }
        if s.partial.is_none() {
            prop_assert_eq!(s.in_flight(), 0);
        }
    }
}
