//! What the store says of its last failover, beside what is really missing.

use std::time::Duration;

use serde_json::Value;

use super::env::{Env, Subject};
use super::kinds::{Kind, Mode};
use super::tail::{self, Range, Tail};
use super::verify::Missing;
use super::volume;
use crate::error::Result;
use crate::kube::text;
use crate::poll;

/// An old primary that is there again is compared within this.
const LIMIT: Duration = Duration::from_secs(60);
/// It exports its tail when it follows, a little after it was compared.
const EXPORT_LIMIT: Duration = Duration::from_secs(15);

/// The word for a round that left no receipt.
pub const NO_RECEIPT: &str = "-";

/// The receipt of one round.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Receipt {
    /// `-` without a failover, else none, ranges or unknown.
    pub word: String,
    /// Records that it names as lost.
    pub records: u64,
    /// Records of the load in the exports that it names: each is accounted for, unless there is a problem.
    pub exported: usize,
    /// Milliseconds per phase, as it tells them.
    pub phases: Vec<(String, i64)>,
    /// What is wrong with it.
    pub problem: Option<String>,
}

/// Reads the receipt of a failover above the epoch `since`, once it is complete, and compares it with what is missing. `bound`
/// is how much may be lost at most in Async mode.
pub fn judge(
    env: &Env<'_>,
    kind: Kind,
    subject: &Subject,
    since: i64,
    missing: &Missing,
    bound: u64,
) -> Result<Receipt> {
    let fresh = |object: &Value| {
        object.pointer("/status/lastFailover").filter(|r| epoch(r).is_some_and(|e| e > since)).cloned()
    };
    let Some(first) = fresh(&subject.store.get()?) else {
        let problem = (!missing.acked.is_empty()).then(|| "records are missing, and there is no receipt".to_owned());
        return Ok(Receipt { word: NO_RECEIPT.into(), problem, ..Receipt::default() });
    };
    let found = if kind.loses_volume() {
        first
    } else {
        let known = |object: &Value| fresh(object).filter(|r| text(r, "/outcome") != "Unknown");
        let asked = subject.store.kube.until(
            "the receipt to say what was lost",
            LIMIT,
            &format!("get rstore {} -n {}", subject.store.name, subject.store.namespace),
            |object| known(object).ok_or_else(|| "unknown".to_owned()),
        );
        asked.unwrap_or(first)
    };
    let ranges = tail::ranges(&found);
    let tails = if ranges.is_empty() { Ok(Vec::new()) } else { exports(env, text(&found, "/from"), &ranges) };
    Ok(of(&found, kind, subject.mode, missing, bound, tails))
}

/// What the old primary exported, from its volume.
fn exports(env: &Env<'_>, from: &str, ranges: &[Range]) -> Result<Vec<Tail>> {
    let volume = volume::directory(env, from)?;
    poll::until("the old primary to export its records", EXPORT_LIMIT, Duration::from_millis(300), || {
        tail::of_volume(&volume, ranges).map_err(|e| e.to_string())
    })
}

fn epoch(receipt: &Value) -> Option<i64> {
    receipt.pointer("/epoch").and_then(Value::as_i64)
}

fn of(receipt: &Value, kind: Kind, mode: Mode, missing: &Missing, bound: u64, tails: Result<Vec<Tail>>) -> Receipt {
    let lost = missing.acked.len() as u64;
    let word = text(receipt, "/outcome").to_lowercase();
    let said = text(receipt, "/lost");
    let problem = match word.as_str() {
        "none" if lost > 0 => Some(format!("it says none, and {lost} acknowledged records are missing")),
        "ranges" => match &tails {
            Ok(tails) => tail::inexact(tails, missing).map(|what| format!("{what} ({said})")),
            Err(e) => Some(format!("{e} ({said})")),
        },
        "none" => None,
        _ if kind.loses_volume() => None,
        _ => Some(format!("the old primary is back, and it still says {said:?}")),
    };
    let beyond = (mode == Mode::Async && lost > bound)
        .then(|| format!("{lost} acknowledged records are missing, and the replicas lagged by {bound} at most"));
    let phases = ["suspect", "seal", "promote", "total"].iter().filter_map(|phase| {
        let ms = receipt.pointer(&format!("/phases/{phase}")).and_then(Value::as_i64)?;
        Some(((*phase).to_owned(), ms))
    });
    Receipt {
        word,
        records: tail::ranges(receipt).iter().map(Range::records).sum(),
        exported: tails.iter().flatten().map(|tail| tail.keys.len()).sum(),
        phases: phases.collect(),
        problem: problem.or(beyond),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{Receipt, tail};
    use crate::error::{Error, Result};
    use crate::faults::kinds::{Kind, Mode};
    use crate::faults::tail::Tail;
    use crate::faults::verify::Missing;

    fn keys(count: usize) -> impl Iterator<Item = String> {
        (0..count).map(|n| format!("a/{n}"))
    }

    /// The first `count` keys are missing, and one was never answered.
    fn missing(count: usize) -> Missing {
        let acked = keys(count).map(|key| (format!("w0:{key}"), String::new())).collect();
        Missing { acked, unknown: [("w0:u/0".to_owned(), String::new())].into(), ..Missing::default() }
    }

    fn of(receipt: &Value, kind: Kind, missing: usize, bound: u64, tails: Result<Vec<Tail>>) -> Receipt {
        super::of(receipt, kind, Mode::Async, &self::missing(missing), bound, tails)
    }

    #[test]
    fn a_receipt_that_conceals_a_loss_is_a_problem() {
        let none = json!({"outcome": "None", "lost": "none"});
        assert_eq!(of(&none, Kind::Kill, 0, 0, Ok(Vec::new())).problem, None);
        assert!(of(&none, Kind::Kill, 1, 9, Ok(Vec::new())).problem.is_some());
        let unknown = json!({"outcome": "Unknown", "lost": "unknown after (3, 10)"});
        assert!(of(&unknown, Kind::Kill, 0, 0, Ok(Vec::new())).problem.is_some());
        assert_eq!(of(&unknown, Kind::VolumeLost, 0, 0, Ok(Vec::new())).problem, None);
    }

    #[test]
    fn ranges_are_as_good_as_what_was_exported() {
        let receipt = json!({"outcome": "Ranges", "lost": "", "ranges": [{"prefix": "w0", "first": 5, "last": 9}]});
        let range = tail::ranges(&receipt).remove(0);
        let tails = || Ok(vec![Tail { range: range.clone(), sequences: (5..=9).collect(), keys: keys(5).collect() }]);
        let good = of(&receipt, Kind::Kill, 5, 9, tails());
        assert_eq!((good.problem, good.records, good.exported), (None, 5, 5));
        assert!(of(&receipt, Kind::Kill, 5, 4, tails()).problem.is_some());
        assert!(of(&receipt, Kind::Kill, 4, 9, tails()).problem.is_some());
        assert!(of(&receipt, Kind::Kill, 6, 9, tails()).problem.is_some());
        assert!(of(&receipt, Kind::Kill, 5, 9, Err(Error::failed("no export"))).problem.is_some());
    }
}
