//! What all rounds of a kind say together.

use std::path::Path;

use serde::Serialize;

use super::env::Problem;
use super::kinds::{Kind, Mode};
use super::round::Round;
use crate::error::{Error, Result, write};

/// Milliseconds without an acknowledgement.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Gaps {
    /// Half of the rounds were not above it.
    pub p50: f64,
    /// 99 of 100 were not.
    pub p99: f64,
    /// None was.
    pub max: f64,
}

impl Gaps {
    /// Of these lengths; nearest rank.
    pub fn of(mut lengths: Vec<f64>) -> Self {
        lengths.sort_by(f64::total_cmp);
        let rank = |share: f64| {
            let at = (share * lengths.len() as f64).ceil().max(1.0) as usize - 1;
            lengths.get(at).copied().unwrap_or(0.0).round()
        };
        Self { p50: rank(0.5), p99: rank(0.99), max: rank(1.0) }
    }
}

/// What is wrong with a kind beside its rounds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Apart {
    /// In words.
    pub what: String,
    /// Acknowledged writes that it lost.
    pub lost: usize,
}

impl Apart {
    /// A round that could not be judged: nobody knows what it lost.
    pub fn unjudged(what: String) -> Self {
        Self { what, lost: 0 }
    }
}

/// One kind in one mode.
#[derive(Clone, Debug, Serialize)]
pub struct Sum {
    /// The fault.
    pub kind: Kind,
    /// How the store acknowledged.
    pub mode: Mode,
    /// Rounds that were judged.
    pub rounds: usize,
    /// Writes acknowledged in all of them.
    pub acked: usize,
    /// Of these, not there any more.
    pub lost: usize,
    /// What the stores said of it: how many rounds ended with which word.
    pub receipt: String,
    /// Times without writes.
    pub gap_ms: Gaps,
    /// Rounds after which another member led.
    pub moved: usize,
    /// Reads after the faults that a primary answered; in mode quorum they are judged.
    pub reads: usize,
    /// Reads that failed meanwhile.
    pub failed_reads: usize,
    /// Rounds with something wrong, rounds that could not be judged, and stores that lost what earlier rounds wrote.
    pub bad: usize,
    /// Of these, all but the rounds that only took too long or changed without need: a promise was broken, or nobody knows.
    pub broken: usize,
    /// What was wrong.
    pub problems: Vec<String>,
}

impl Sum {
    /// Adds rounds up, and what is wrong beside them.
    pub fn of(kind: Kind, mode: Mode, rounds: &[Round], apart: &[Apart]) -> Self {
        let mut words: Vec<(String, usize)> = Vec::new();
        for round in rounds {
            match words.iter_mut().find(|(word, _)| *word == round.receipt.word) {
                Some((_, count)) => *count += 1,
                None => words.push((round.receipt.word.clone(), 1)),
            }
        }
        words.sort();
        let mut problems: Vec<String> = apart.iter().map(|a| a.what.clone()).collect();
        let broken = |r: &&Round| r.problems.iter().any(|p| matches!(p, Problem::Broken(_)));
        problems.extend(rounds.iter().flat_map(|r| r.problems.iter().map(|p| format!("{}: {p}", r.store))));
        Self {
            kind,
            mode,
            rounds: rounds.len(),
            acked: rounds.iter().map(|r| r.acked).sum(),
            lost: rounds.iter().map(|r| r.lost).chain(apart.iter().map(|a| a.lost)).sum(),
            receipt: words.iter().map(|(word, count)| format!("{word} {count}")).collect::<Vec<_>>().join(", "),
            gap_ms: Gaps::of(rounds.iter().map(|r| r.seen.gap.ms()).collect()),
            moved: rounds.iter().filter(|r| r.moved).count(),
            reads: rounds.iter().map(|r| r.seen.reads).sum(),
            failed_reads: rounds.iter().flat_map(|r| r.seen.failed_reads.values()).sum(),
            bad: apart.len() + rounds.iter().filter(|r| !r.problems.is_empty()).count(),
            broken: apart.len() + rounds.iter().filter(broken).count(),
            problems,
        }
    }
}

/// A table.
pub fn table(sums: &[Sum]) -> String {
    let mut text = format!(
        "{:<26} {:<7} {:>6} {:>9} {:>5} {:>9} {:>9} {:>9} {:>6} {:>7} {:>6}  {}\n",
        "kind", "mode", "rounds", "acked", "lost", "gap p50", "p99", "max ms", "moved", "reads", "failed", "receipt"
    );
    for s in sums {
        text += &format!(
            "{:<26} {:<7} {:>6} {:>9} {:>5} {:>9.0} {:>9.0} {:>9.0} {:>6} {:>7} {:>6}  {}{}\n",
            s.kind.name(),
            s.mode.name(),
            s.rounds,
            s.acked,
            s.lost,
            s.gap_ms.p50,
            s.gap_ms.p99,
            s.gap_ms.max,
            s.moved,
            s.reads,
            s.failed_reads,
            s.receipt,
            if s.bad > 0 { format!("  BAD: {}", s.bad) } else { String::new() },
        );
    }
    text
}

/// Writes them as JSON.
pub fn save(sums: &[&Sum], path: &Path) -> Result<()> {
    let text = serde_json::to_string_pretty(sums).map_err(|e| Error::parse("write the rounds' sums", e))?;
    write(path, text + "\n")
}

#[cfg(test)]
mod tests {
    use super::{Apart, Gaps, Sum};
    use crate::faults::kinds::{Kind, Mode};

    #[test]
    fn percentiles_are_lengths_that_were_seen() {
        let gaps = Gaps::of((1..=100).map(f64::from).collect());
        assert_eq!(gaps, Gaps { p50: 50.0, p99: 99.0, max: 100.0 });
        assert_eq!(Gaps::of(vec![7.0, 3.0]), Gaps { p50: 3.0, p99: 7.0, max: 7.0 });
        assert_eq!(Gaps::of(Vec::new()), Gaps::default());
    }

    #[test]
    fn what_could_not_be_judged_counts_as_broken() {
        let apart = [Apart::unjudged("look up".into()), Apart { what: "lost later".into(), lost: 7 }];
        let sum = Sum::of(Kind::Kill, Mode::Quorum, &[], &apart);
        assert_eq!((sum.rounds, sum.bad, sum.broken, sum.lost), (0, 2, 2, 7));
        assert_eq!(sum.problems.len(), 2);
    }
}
