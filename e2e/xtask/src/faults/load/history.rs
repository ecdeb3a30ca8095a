//! What a load saw, and what follows from it: gaps, and counts over time.

use std::collections::BTreeMap;
use std::time::Instant;

use super::super::linear;

/// Unique values go to so many prefixes in turn: a reign serves each on its own.
pub const PREFIXES: usize = 4;

/// How a write ended, as its client knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Acknowledged.
    Acked,
    /// Not answered: it may be there or not.
    Unknown,
}

/// One write; times are microseconds since the load began.
#[derive(Clone, Copy, Debug)]
pub struct Write {
    /// Its number on its connection.
    pub n: u32,
    /// When it was answered or given up.
    pub ended: u64,
    /// How it ended.
    pub outcome: Outcome,
}

/// The key of a write.
pub fn key(tag: &str, connection: usize, n: u32) -> String {
    format!("w{}:{tag}/{connection}/{n}", n as usize % PREFIXES)
}

/// Its value, which no other write has.
pub fn value(tag: &str, connection: usize, n: u32) -> String {
    format!("{tag}/{connection}/{n}{:.<40}", "")
}

/// The key of a register.
pub fn register(tag: &str, index: u64) -> String {
    format!("reg:{tag}/{index}")
}

/// What was done to a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// This value was written.
    Write(u64),
    /// This value was read; `None` = there was none.
    Read(Option<u64>),
}

/// One operation on a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operation {
    /// Which one.
    pub register: u64,
    /// When it was sent.
    pub begun: u64,
    /// When it was answered; `None` = never.
    pub ended: Option<u64>,
    /// What it was.
    pub access: Access,
}

/// A read that brought no value.
#[derive(Clone, Debug)]
pub struct FailedRead {
    /// When it failed.
    pub ended: u64,
    /// What was answered instead.
    pub why: String,
}

/// What was seen of the registers.
#[derive(Default)]
pub struct Registers {
    /// All that was or may have been done.
    pub operations: Vec<Operation>,
    /// Reads that brought no value.
    pub failed_reads: Vec<FailedRead>,
    /// When a replica answered a read, which promises less.
    pub at_replicas: Vec<u64>,
}

impl Registers {
    /// Adds what another connection saw.
    pub fn extend(&mut self, other: Self) {
        self.operations.extend(other.operations);
        self.failed_reads.extend(other.failed_reads);
        self.at_replicas.extend(other.at_replicas);
    }
}

/// What is wrong with the reads of loads on the same registers, if anything is. The first load is the oldest.
pub fn violation(histories: &[History]) -> Option<String> {
    let begun = histories.first()?.begun;
    let all = histories.iter().flat_map(|h| {
        let later = super::micros(h.begun.saturating_duration_since(begun));
        let shifted =
            move |o: &Operation| Operation { begun: o.begun + later, ended: o.ended.map(|ended| ended + later), ..*o };
        h.registers.operations.iter().map(shifted)
    });
    let mut by_register: BTreeMap<u64, Vec<Operation>> = BTreeMap::new();
    all.for_each(|o| by_register.entry(o.register).or_default().push(o));
    by_register.iter().find_map(|(key, of_key)| linear::violation(of_key).map(|what| format!("register {key}: {what}")))
}

/// Everything that one load saw.
pub struct History {
    /// Of its keys.
    pub tag: String,
    /// The zero of its times.
    pub begun: Instant,
    /// By connection.
    pub writes: Vec<Vec<Write>>,
    /// The registers.
    pub registers: Registers,
}

impl History {
    /// Nothing seen yet.
    pub fn new(tag: String, begun: Instant) -> Self {
        Self { tag, begun, writes: Vec::new(), registers: Registers::default() }
    }

    /// Key and value of every write that ended so.
    pub fn records(&self, outcome: Outcome) -> impl Iterator<Item = (String, String)> + '_ {
        self.writes.iter().enumerate().flat_map(move |(connection, writes)| {
            let of = move |w: &Write| (key(&self.tag, connection, w.n), value(&self.tag, connection, w.n));
            writes.iter().filter(move |w| w.outcome == outcome).map(of)
        })
    }

    /// Writes that ended so.
    pub fn count(&self, outcome: Outcome) -> usize {
        self.writes.iter().flatten().filter(|w| w.outcome == outcome).count()
    }

    /// The times of all acknowledgements, in order; of one prefix, or of all.
    pub fn acknowledgements(&self, prefix: Option<usize>) -> Vec<u64> {
        let of_prefix = |w: &&Write| prefix.is_none_or(|p| w.n as usize % PREFIXES == p);
        let all = self.writes.iter().flatten().filter(|w| w.outcome == Outcome::Acked);
        let mut times: Vec<u64> = all.filter(of_prefix).map(|w| w.ended).collect();
        times.sort_unstable();
        times
    }

    /// The longest time without an acknowledgement that ended after `from` and began before `until`, in milliseconds, in
    /// the prefix that waited longest; with its beginning and end.
    pub fn gap(&self, from: u64, until: u64) -> Gap {
        (0..PREFIXES)
            .map(|prefix| longest(&self.acknowledgements(Some(prefix)), from, until))
            .max_by_key(|gap| gap.end - gap.begin)
            .unwrap_or_default()
    }
}

impl History {
    /// The last acknowledgement, in any prefix, before the longest time without any: the old primary's last.
    pub fn last_before_gap(&self, from: u64, until: u64) -> u64 {
        longest(&self.acknowledgements(None), from, until).begin
    }
}

/// A time without acknowledgements, in microseconds since the load began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gap {
    /// The last acknowledgement before it.
    pub begin: u64,
    /// The first one after it.
    pub end: u64,
}

impl Gap {
    /// Its length in milliseconds.
    pub fn ms(self) -> f64 {
        (self.end - self.begin) as f64 / 1000.0
    }
}

/// The longest pause in ordered times, as far as it lies before `until`.
fn longest(times: &[u64], from: u64, until: u64) -> Gap {
    let pairs = times.windows(2).filter(|w| w[0] < until).map(|w| Gap { begin: w[0], end: w[1].min(until) });
    pairs.filter(|g| g.end > from).max_by_key(|g| g.end - g.begin).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::{Access, Gap, History, Operation, Outcome, Write, longest, violation};

    #[test]
    fn a_stale_read_of_another_load_is_found() {
        let begun = Instant::now();
        let (mut outside, mut inside) = (History::new("o".into(), begun), History::new("i".into(), begun));
        let access = |begun, access| Operation { register: 0, begun, ended: Some(begun + 5), access };
        outside.registers.operations.extend([access(10, Access::Write(1)), access(3_000, Access::Write(2))]);
        inside.registers.operations.push(access(1_000, Access::Read(Some(1))));
        assert_eq!(violation(&[outside, inside]), None);
        let (mut outside, mut inside) = (History::new("o".into(), begun), History::new("i".into(), begun));
        inside.begun += Duration::from_millis(5);
        outside.registers.operations.extend([access(10, Access::Write(1)), access(3_000, Access::Write(2))]);
        inside.registers.operations.push(access(1_000, Access::Read(Some(1))));
        assert!(violation(&[outside, inside]).is_some());
    }

    #[test]
    fn the_gap_is_the_longest_pause_that_touches_the_span() {
        let times = [0, 10, 500, 510, 800, 810, 5000];
        assert_eq!(longest(&times, 505, 5000), Gap { begin: 810, end: 5000 });
        assert_eq!(longest(&times, 505, 900), Gap { begin: 510, end: 800 });
        assert_eq!(longest(&times, 505, 809), Gap { begin: 510, end: 800 });
        assert_eq!(longest(&times, 0, 505), Gap { begin: 10, end: 500 });
        assert_eq!(longest(&[], 0, 1), Gap::default());
    }

    #[test]
    fn the_prefix_that_waits_longest_counts() {
        let mut history = History::new("t".into(), Instant::now());
        let write = |n, ended| Write { n, ended, outcome: Outcome::Acked };
        history.writes.push(vec![write(0, 10), write(1, 20), write(4, 30), write(5, 900), write(8, 950)]);
        assert_eq!(history.gap(0, 1000), Gap { begin: 30, end: 950 });
        assert_eq!(history.records(Outcome::Acked).next(), Some(("w0:t/0/0".into(), super::value("t", 0, 0))));
    }
}
