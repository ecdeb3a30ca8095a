//! What the store says of its last failover, beside what is really missing.

use std::time::Duration;

use serde_json::Value;

use super::env::{MEMBERS, Subject};
use super::kinds::{Kind, Mode};
use super::verify::Missing;
use crate::error::Result;
use crate::kube::{items, text};

/// An old primary that is there again is compared within this.
const LIMIT: Duration = Duration::from_secs(60);

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
        return Ok(Receipt { word: "-".into(), problem, ..Receipt::default() });
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
    let records: u64 = items(receipt, "/ranges")
        .iter()
        .filter_map(|r| {
            Some(u64::try_from(r.pointer("/last")?.as_i64()? - r.pointer("/first")?.as_i64()? + 1).unwrap_or(0))
        })
        .sum();
    let lost = missing.acked.len() as u64;
    let possible = lost + missing.unknown.len() as u64;
    let word = text(receipt, "/outcome").to_lowercase();
    let said = text(receipt, "/lost");
    let problem = match word.as_str() {
        "none" if lost > 0 => Some(format!("it says none, and {lost} acknowledged records are missing")),
        "none" => None,
        "ranges" if records < lost => Some(format!("it names {records} records, and {lost} are missing ({said})")),
        // Registers and epoch records are beside what is looked up.
        "ranges" if mode == Mode::Async && records > possible + others(kind) => {
            Some(format!("it names {records} records, and only {possible} can be missing ({said})"))
        }
        "ranges" if mode == Mode::Async && lost > bound => {
            Some(format!("{lost} acknowledged records are missing, and the replicas lagged by {bound} at most"))
        }
        "ranges" => None,
        _ if kind.loses_volume() => None,
        _ => Some(format!("the old primary is back, and it still says {said:?}")),
    };
    let phases = ["suspect", "seal", "promote", "total"].iter().filter_map(|phase| {
        let ms = receipt.pointer(&format!("/phases/{phase}")).and_then(Value::as_i64)?;
        Some(((*phase).to_owned(), ms))
    });
    Receipt { word, records, phases: phases.collect(), problem }
}

/// Records that a lost tail may hold beside those of the loads: writes to registers, and one that begins each epoch in each
/// prefix.
fn others(kind: Kind) -> u64 {
    let seconds = if kind == Kind::IsolatedPrimary { 12 } else { 2 };
    super::load::history::PREFIXES as u64 + MEMBERS as u64 + seconds * super::load::REGISTER_WRITES
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::of;
    use crate::faults::kinds::{Kind, Mode};
    use crate::faults::verify::Missing;

    fn missing(count: usize) -> Missing {
        let acked = (0..count).map(|n| (format!("w0:{n}"), String::new())).collect();
        Missing { acked, ..Missing::default() }
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
        let unknown = json!({"outcome": "Unknown", "lost": "unknown after (3, 10)"});
        assert!(of(&unknown, Kind::Kill, Mode::Async, &missing(0), 0).problem.is_some());
        assert_eq!(of(&unknown, Kind::VolumeLost, Mode::Async, &missing(0), 0).problem, None);
    }
}
