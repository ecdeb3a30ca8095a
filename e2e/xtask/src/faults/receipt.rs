//! What the store says of its last failover, beside what is really missing.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;

use super::env::Subject;
use super::kinds::{Kind, Mode};
use super::load::history::PREFIXES;
use super::verify::Missing;
use crate::error::Result;
use crate::kube::{items, text};

/// An old primary that is there again is compared within this.
const LIMIT: Duration = Duration::from_secs(60);

/// The word for a round that left no receipt.
pub const NO_RECEIPT: &str = "-";

/// The receipt of one round.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Receipt {
    /// `-` without a failover, else none, ranges or unknown.
    pub word: String,
    /// Records that it names as lost.
    pub records: u64,
    /// Milliseconds per phase, as it tells them.
    pub phases: Vec<(String, i64)>,
    /// What is wrong with it.
    pub problem: Option<String>,
}

/// Reads the receipt of a failover above the epoch `since`, once it is complete, and compares. `bound` is how much may be lost at most in Async mode.
pub fn judge(kind: Kind, subject: &Subject, since: i64, missing: &Missing, bound: u64) -> Result<Receipt> {
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
    Ok(of(&found, kind, subject.mode, missing, bound))
}

fn epoch(receipt: &Value) -> Option<i64> {
    receipt.pointer("/epoch").and_then(Value::as_i64)
}

fn of(receipt: &Value, kind: Kind, mode: Mode, missing: &Missing, bound: u64) -> Receipt {
    let named = named(receipt);
    let lost = missing.acked.len() as u64;
    let word = text(receipt, "/outcome").to_lowercase();
    let said = text(receipt, "/lost");
    let problem = match word.as_str() {
        "none" if lost > 0 => Some(format!("it says none, and {lost} acknowledged records are missing")),
        "ranges" => inexact(&named, missing).map(|what| format!("{what} ({said})")),
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
    Receipt { word, records: named.values().sum(), phases: phases.collect(), problem: problem.or(beyond) }
}

/// How many records of each prefix a receipt names.
fn named(receipt: &Value) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    for range in items(receipt, "/ranges") {
        let at = |end: &str| range.pointer(end).and_then(Value::as_u64).unwrap_or(0);
        *counts.entry(text(range, "/prefix").to_owned()).or_default() += (at("/last") + 1).saturating_sub(at("/first"));
    }
    counts
}

/// Where a receipt names other records than those that are missing: each acknowledged one, and of those that were never
/// answered some. Prefixes that loads write unique values to have no other records.
fn inexact(named: &BTreeMap<String, u64>, missing: &Missing) -> Option<String> {
    (0..PREFIXES).map(|n| format!("w{n}")).find_map(|prefix| {
        let of = |records: &BTreeMap<String, String>| {
            records.keys().filter(|key| key.split(':').next() == Some(prefix.as_str())).count() as u64
        };
        let (lost, unknown) = (of(&missing.acked), of(&missing.unknown));
        let said = named.get(&prefix).copied().unwrap_or(0);
        let fits = (lost..=lost + unknown).contains(&said);
        (!fits).then(|| {
            format!("it names {said} records of {prefix}; missing are {lost}, and {unknown} that were not answered")
        })
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::of;
    use crate::faults::kinds::{Kind, Mode};
    use crate::faults::verify::Missing;

    fn missing(count: usize) -> Missing {
        let records = |tag: &str, count: usize| (0..count).map(|n| (format!("w0:{tag}/{n}"), String::new())).collect();
        Missing { acked: records("a", count), unknown: records("u", 1), ..Missing::default() }
    }

    #[test]
    fn a_receipt_that_conceals_a_loss_is_a_problem() {
        let none = json!({"outcome": "None", "lost": "none"});
        assert_eq!(of(&none, Kind::Kill, Mode::Async, &missing(0), 0).problem, None);
        assert!(of(&none, Kind::Kill, Mode::Async, &missing(1), 9).problem.is_some());
        let ranges = json!({"outcome": "Ranges", "lost": "", "ranges": [{"prefix": "w0", "first": 5, "last": 9}]});
        assert_eq!(of(&ranges, Kind::Kill, Mode::Async, &missing(5), 9).problem, None);
        assert_eq!(of(&ranges, Kind::Kill, Mode::Async, &missing(5), 9).records, 5);
        assert!(of(&ranges, Kind::Kill, Mode::Async, &missing(6), 9).problem.is_some());
        assert!(of(&ranges, Kind::Kill, Mode::Async, &missing(5), 4).problem.is_some());
        // The one without an answer may be among those lost; more cannot.
        assert_eq!(of(&ranges, Kind::Kill, Mode::Async, &missing(4), 9).problem, None);
        assert!(of(&ranges, Kind::Kill, Mode::Async, &missing(3), 9).problem.is_some());
        let unknown = json!({"outcome": "Unknown", "lost": "unknown after (3, 10)"});
        assert!(of(&unknown, Kind::Kill, Mode::Async, &missing(0), 0).problem.is_some());
        assert_eq!(of(&unknown, Kind::VolumeLost, Mode::Async, &missing(0), 0).problem, None);
    }
}
