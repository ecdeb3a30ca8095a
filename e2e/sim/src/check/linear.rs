//! Whether what the clients of one key saw could have happened one after the other, each operation at some moment between
//! its begin and its end.
//!
//! Registers: every write puts a value of its own, so who read from whom is known, and the test of Gibbons and Korach
//! decides exactly, in n log n: all operations of one value form a zone; no two zones that must each be whole in time may
//! overlap, and none that fits into one moment may lie within such a zone.
//!
//! Counters: every increment answers the sum, so values order the operations; time must not contradict that order, and a
//! value that nobody was told needs an increment of unknown outcome.

use std::collections::BTreeMap;

/// An operation never ended: its outcome is unknown.
pub const NEVER: u64 = u64::MAX;

/// What an operation did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Did {
    /// Put this value. With an end of [`NEVER`] it may have happened at any time after its begin, or not at all.
    Put(u64),
    /// Saw this value; 0 = there was none.
    Saw(u64),
    /// Added one and was told the sum; `None` = the outcome is unknown.
    Added(Option<u64>),
}

/// One operation on a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Op {
    /// When it was begun.
    pub begin: u64,
    /// When it was answered; [`NEVER`] if it was not.
    pub end: u64,
    /// What it did.
    pub did: Did,
}

#[derive(Debug, Clone, Copy)]
struct Zone {
    value: u64,
    /// Earliest end of any of its operations.
    first_end: u64,
    /// Latest begin of any.
    last_begin: u64,
    /// When its write was begun; `None` = there was none.
    written: Option<u64>,
    earliest_read_end: u64,
}

/// Why a register's history is impossible; `None` = it is fine.
#[must_use]
pub fn register(ops: &[Op]) -> Option<String> {
    let mut zones: BTreeMap<u64, Zone> = BTreeMap::new();
    let blank = |value| Zone { value, first_end: NEVER, last_begin: 0, written: None, earliest_read_end: NEVER };
    // There was no value before the beginning.
    zones.insert(0, Zone { written: Some(0), first_end: 0, ..blank(0) });
    let mut read: std::collections::BTreeSet<u64> = std::collections::BTreeSet::new();
    for op in ops {
        match op.did {
            Did::Put(value) => {
                let zone = zones.entry(value).or_insert_with(|| blank(value));
                zone.written = Some(op.begin);
                zone.first_end = zone.first_end.min(op.end);
                zone.last_begin = zone.last_begin.max(op.begin);
            }
            Did::Saw(value) if op.end != NEVER => {
                let zone = zones.entry(value).or_insert_with(|| blank(value));
                zone.first_end = zone.first_end.min(op.end);
                zone.last_begin = zone.last_begin.max(op.begin);
                zone.earliest_read_end = zone.earliest_read_end.min(op.end);
                read.insert(value);
            }
            Did::Saw(_) | Did::Added(_) => {}
        }
    }
    for zone in zones.values() {
        match zone.written {
            None => return Some(format!("value {} was read and never written", zone.value)),
            Some(begin) if zone.earliest_read_end < begin => {
                return Some(format!("value {} was read before it was written", zone.value));
            }
            Some(_) => {}
        }
    }
    // A write of unknown outcome that nobody saw may just not have happened.
    let zones: Vec<Zone> = zones.into_values().filter(|z| z.first_end != NEVER || read.contains(&z.value)).collect();
    let mut long: Vec<Zone> = zones.iter().copied().filter(|z| z.first_end < z.last_begin).collect();
    long.sort_unstable_by_key(|z| z.first_end);
    for pair in long.windows(2) {
        if let [a, b] = pair
            && b.first_end < a.last_begin
        {
            return Some(format!(
                "value {} was still read at {} though value {} was there by {} and value {} at {}",
                a.value, a.last_begin, b.value, b.first_end, a.value, a.first_end
            ));
        }
    }
    for zone in zones.iter().filter(|z| z.first_end >= z.last_begin) {
        let before = long.partition_point(|l| l.first_end < zone.last_begin);
        if let Some(around) = before.checked_sub(1).and_then(|i| long.get(i))
            && zone.first_end < around.last_begin
        {
            return Some(format!(
                "value {} came and went while value {} was there: {} to {} within {} to {}",
                zone.value, around.value, zone.last_begin, zone.first_end, around.first_end, around.last_begin
            ));
        }
    }
    None
}

/// Why a counter's history is impossible; `None` = it is fine.
#[must_use]
pub fn counter(ops: &[Op]) -> Option<String> {
    // (value, is an increment, begin, end)
    let mut told: Vec<(u64, bool, u64, u64)> = Vec::new();
    let mut unknown: Vec<u64> = Vec::new();
    for op in ops {
        match op.did {
            Did::Added(Some(value)) => told.push((value, true, op.begin, op.end)),
            Did::Added(None) => unknown.push(op.begin),
            Did::Saw(value) if op.end != NEVER => told.push((value, false, op.begin, op.end)),
            Did::Saw(_) | Did::Put(_) => {}
        }
    }
    told.sort_unstable();
    let mut known: Vec<u64> = told.iter().filter(|t| t.1).map(|t| t.0).collect();
    let count = known.len();
    known.dedup();
    if known.len() != count {
        return Some("two increments were answered by the same sum".to_owned());
    }
    // From the highest value down: nothing of a lower value may begin after something of a higher one ended.
    let mut earliest_end = (NEVER, 0);
    let mut i = told.len();
    while i > 0 {
        let value = told[i - 1].0;
        let from = told[..i].partition_point(|t| t.0 < value);
        let same = &told[from..i];
        let increment = same.iter().find(|t| t.1);
        for &(_, is_increment, begin, end) in same {
            if earliest_end.0 < begin {
                return Some(format!(
                    "sum {value} was seen at {begin}, after sum {} was at {}",
                    earliest_end.1, earliest_end.0
                ));
            }
            if let Some(&(_, _, added, _)) = increment
                && !is_increment
                && end < added
            {
                return Some(format!("sum {value} was seen at {end}, before it was made at {added}"));
            }
        }
        // A read of this value that ended before the increment that made it began was caught above; the increment itself
        // must not begin after a read of it ended.
        for &(_, _, _, end) in same {
            if end < earliest_end.0 {
                earliest_end = (end, value);
            }
        }
        i = from;
    }
    unknown.sort_unstable();
    enough_unknown(&told, &known, &unknown)
}

/// Every value up to the highest one told was made by somebody: by one who was told so, or by one whose outcome is unknown
/// and who had begun when a sum that includes it was answered.
fn enough_unknown(told: &[(u64, bool, u64, u64)], known: &[u64], unknown: &[u64]) -> Option<String> {
    for &(value, _, _, end) in told {
        let by_known = known.partition_point(|k| *k <= value) as u64;
        let begun = unknown.partition_point(|begin| *begin <= end) as u64;
        if value > by_known + begun {
            return Some(format!(
                "sum {value} was told at {end}, but at most {by_known} known and {begun} unknown increments could be in it"
            ));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;

    fn op(begin: u64, end: u64, did: Did) -> Op {
        Op { begin, end, did }
    }

    /// Wing and Gong's search: all orders that time allows.
    fn possible(ops: &[Op], value: u64, done: u32) -> bool {
        let open = |i: usize| done & (1 << i) == 0;
        let must = (0..ops.len()).filter(|i| open(*i) && ops[*i].end != NEVER).map(|i| ops[i].end).min();
        let Some(must) = must else { return true };
        (0..ops.len()).filter(|i| open(*i) && ops[*i].begin <= must).any(|i| {
            let next = match ops[i].did {
                Did::Put(v) => Some(v),
                Did::Saw(v) => (v == value).then_some(value),
                Did::Added(Some(v)) => (v == value + 1).then_some(v),
                Did::Added(None) => Some(value + 1),
            };
            next.is_some_and(|next| possible(ops, next, done | (1 << i)))
        })
    }

    #[test]
    fn registers_are_judged_as_by_a_search_of_all_orders() {
        let mut rng = Rng::new(1);
        let (mut good, mut bad) = (0, 0);
        for _ in 0..40_000 {
            let n = rng.range(1, 7);
            let mut written = Vec::new();
            let ops: Vec<Op> = (1..=n)
                .map(|i| {
                    let begin = rng.below(12) * 2 + 1;
                    let end = begin + 2 * rng.below(6) + 1;
                    if rng.permille(450) {
                        written.push(i);
                        op(begin, if rng.permille(200) { NEVER } else { end }, Did::Put(i))
                    } else {
                        op(begin, end, Did::Saw(if rng.permille(200) { 0 } else { rng.range(1, n) }))
                    }
                })
                .collect();
            // Equal moments would need a tie rule: make all of them distinct.
            let mut ops = ops;
            for (i, op) in ops.iter_mut().enumerate() {
                op.begin = op.begin * 20 + i as u64;
                op.end = if op.end == NEVER { NEVER } else { op.end * 20 + i as u64 };
            }
            let search = possible(&ops, 0, 0);
            assert_eq!(register(&ops).is_none(), search, "{ops:?}: {:?}", register(&ops));
            *(if search { &mut good } else { &mut bad }) += 1;
        }
        assert!(good > 1_000 && bad > 1_000, "{good} {bad}");
    }

    #[test]
    fn a_counter_that_a_search_finds_possible_is_never_refused_and_most_impossible_ones_are() {
        let mut rng = Rng::new(2);
        let (mut bad, mut missed) = (0, 0);
        for _ in 0..40_000 {
            let n = rng.range(1, 6);
            let ops: Vec<Op> = (0..n)
                .map(|i| {
                    let begin = (rng.below(10) * 2 + 1) * 20 + i;
                    let end = begin + (2 * rng.below(5) + 1) * 20;
                    match rng.below(10) {
                        0 => op(begin, NEVER, Did::Added(None)),
                        1..=5 => op(begin, end, Did::Added(Some(rng.range(1, n)))),
                        _ => op(begin, end, Did::Saw(rng.range(0, n))),
                    }
                })
                .collect();
            let search = possible(&ops, 0, 0);
            let judged = counter(&ops).is_none();
            assert!(judged || !search, "{ops:?}: {:?}", counter(&ops));
            if !search {
                bad += 1;
                missed += u32::from(judged);
            }
        }
        assert!(missed * 20 < bad, "{missed} of {bad} missed");
    }
}
