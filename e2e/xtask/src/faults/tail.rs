//! The tails that an old primary exported: record by record what the receipt says in ranges.

use std::collections::BTreeSet;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use super::load::history::PREFIXES;
use super::verify::Missing;
use crate::error::{Context, Error, Result, read};
use crate::kube::{items, text};

/// Keys that scripts write beside the loads.
const SCRIPTS: &str = "seen/";

/// A range of a receipt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Range {
    /// The prefix.
    pub prefix: String,
    /// Epoch, first and last sequence.
    pub span: (u64, u64, u64),
    /// What the names of its exports begin with.
    pub exported: String,
}

/// The ranges that a receipt lists.
pub fn ranges(receipt: &Value) -> Vec<Range> {
    let at = |range: &Value, field: &str| range.pointer(field).and_then(Value::as_u64).unwrap_or(0);
    let one = |range: &Value| Range {
        prefix: text(range, "/prefix").to_owned(),
        span: (at(range, "/epoch"), at(range, "/first"), at(range, "/last")),
        exported: text(range, "/exported").to_owned(),
    };
    items(receipt, "/ranges").iter().map(one).collect()
}

impl Range {
    /// How many records it names.
    pub fn records(&self) -> u64 {
        (self.span.2 + 1).saturating_sub(self.span.1)
    }
}

/// The exported tail of one range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tail {
    /// Of which range.
    pub range: Range,
    /// The sequences of its records, in order.
    pub sequences: Vec<u64>,
    /// The keys that were written, without the prefix.
    pub keys: BTreeSet<String>,
}

#[derive(Deserialize)]
struct About {
    epoch: u64,
    first: u64,
    last: u64,
}

#[derive(Deserialize)]
struct Line {
    sequence: u64,
    operation: String,
    family: String,
    key: String,
}

/// The tail of each range, from the volume of the member that exported them.
pub fn of_volume(volume: &Path, ranges: &[Range]) -> Result<Vec<Tail>> {
    ranges.iter().map(|range| find(&volume.join("detached"), range)).collect()
}

fn find(detached: &Path, range: &Range) -> Result<Tail> {
    let action = || format!("find the exported records of {}", range.prefix);
    let mut others = Vec::new();
    for entry in std::fs::read_dir(detached).doing(action)? {
        let path = entry.doing(action)?.path();
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        if range.exported.is_empty() || !name.starts_with(&range.exported) || !path.join("tail.json").exists() {
            continue;
        }
        let about: About = parse(&read(&path.join("tail.json"))?, &name)?;
        if (about.epoch, about.first, about.last) != range.span {
            others.push(name);
            continue;
        }
        let text = read(&path.join("records.jsonl"))?;
        let lines = text.lines().map(|line| parse(line, &name)).collect::<Result<Vec<Line>>>()?;
        let written = |l: &Line| l.operation == "put" && l.family == "data";
        let keys = lines.iter().filter(|l| written(l)).map(|l| l.key.clone()).collect();
        return Ok(Tail { range: range.clone(), sequences: lines.iter().map(|l| l.sequence).collect(), keys });
    }
    let (epoch, first, last) = range.span;
    let others = if others.is_empty() { "there is no export".to_owned() } else { others.join(" ") };
    Err(Error::failed(format!("{}: sequences {first} to {last} of epoch {epoch}: {others}", action())))
}

fn parse<T: for<'a> Deserialize<'a>>(text: &str, of: &str) -> Result<T> {
    serde_json::from_str(text).map_err(|e| Error::parse(format!("read the export {of}"), e))
}

/// Where exports are not exactly what is missing: all of what was acknowledged, and beside that only what was not answered.
/// Prefixes that loads write unique values to have no other records.
pub fn inexact(tails: &[Tail], missing: &Missing) -> Option<String> {
    let holes = |tail: &Tail| {
        let (_, first, last) = tail.range.span;
        let whole = tail.sequences.iter().copied().eq(first..=last);
        (!whole).then(|| {
            let (prefix, found) = (&tail.range.prefix, tail.sequences.len());
            format!("of {prefix} sequences {first} to {last} are named, and {found} records exported")
        })
    };
    tails.iter().find_map(holes).or_else(|| (0..PREFIXES).find_map(|n| of_prefix(&format!("w{n}"), tails, missing)))
}

fn of_prefix(prefix: &str, tails: &[Tail], missing: &Missing) -> Option<String> {
    let exported = tails.iter().filter(|t| t.range.prefix == prefix).flat_map(|t| &t.keys);
    let exported: BTreeSet<String> =
        exported.filter(|key| !key.starts_with(SCRIPTS)).map(|key| format!("{prefix}:{key}")).collect();
    let of = |key: &&String| key.split(':').next() == Some(prefix);
    let concealed: Vec<&String> = missing.acked.keys().filter(of).filter(|key| !exported.contains(*key)).collect();
    if let Some(key) = concealed.first() {
        let count = concealed.len();
        return Some(format!("{count} acknowledged records of {prefix} are missing and not in its export: {key} ..."));
    }
    let known = |key: &&String| missing.acked.contains_key(*key) || missing.unknown.contains_key(*key);
    let other: Vec<&String> = exported.iter().filter(|key| !known(key)).collect();
    other.first().map(|key| {
        let count = other.len();
        format!("{count} records in the export of {prefix} are still there, or were refused: {key} ...")
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{Range, inexact, of_volume, ranges};
    use crate::faults::verify::Missing;

    fn range(first: u64, last: u64) -> Vec<Range> {
        let receipt =
            json!({"ranges": [{"prefix": "w0", "epoch": 3, "first": first, "last": last, "exported": "w0-u-"}]});
        ranges(&receipt)
    }

    /// A volume with the records 5 to 6 exported: an epoch's beginning, and one write.
    fn volume() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let tail = dir.path().join("detached/w0-u-tail-5-6-1700");
        std::fs::create_dir_all(&tail).unwrap();
        std::fs::create_dir_all(dir.path().join("detached/w0-u-1699")).unwrap();
        let about = json!({"prefix": "w0", "epoch": 3, "first": 5, "last": 6, "records": 2, "file": ""});
        std::fs::write(tail.join("tail.json"), about.to_string()).unwrap();
        let line = |sequence: u64, family: &str, key: &str| {
            json!({"sequence": sequence, "epoch": 3, "operation": "put", "family": family, "key": key}).to_string()
        };
        let lines = format!("{}\n{}\n", line(5, "meta", "epoch"), line(6, "data", "r1/0/8"));
        std::fs::write(tail.join("records.jsonl"), lines).unwrap();
        dir
    }

    fn missing(acked: &[&str], unknown: &[&str]) -> Missing {
        let records = |keys: &[&str]| keys.iter().map(|k| ((*k).to_owned(), String::new())).collect();
        Missing { acked: records(acked), unknown: records(unknown), ..Missing::default() }
    }

    #[test]
    fn an_export_must_hold_what_is_missing_and_nothing_else() {
        let dir = volume();
        let tails = of_volume(dir.path(), &range(5, 6)).unwrap();
        assert_eq!(tails[0].range.records(), 2);
        assert_eq!(inexact(&tails, &missing(&["w0:r1/0/8"], &[])), None);
        assert_eq!(inexact(&tails, &missing(&[], &["w0:r1/0/8", "w0:r1/0/12"])), None);
        assert!(inexact(&tails, &missing(&["w0:r1/0/4"], &["w0:r1/0/8"])).is_some());
        assert!(inexact(&tails, &missing(&["w1:r1/0/1"], &["w0:r1/0/8"])).is_some());
        assert!(inexact(&tails, &missing(&[], &[])).is_some());
        let holed: Vec<_> = tails.into_iter().map(|t| super::Tail { sequences: vec![6], ..t }).collect();
        assert!(inexact(&holed, &missing(&["w0:r1/0/8"], &[])).is_some());
    }

    #[test]
    fn the_export_of_another_range_does_not_count() {
        let dir = volume();
        assert!(of_volume(dir.path(), &range(5, 7)).is_err());
        assert!(of_volume(dir.path(), &range(4, 6)).is_err());
        assert!(of_volume(tempfile::tempdir().unwrap().path(), &range(5, 6)).is_err());
    }
}
