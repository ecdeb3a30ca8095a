//! Exports what a diverged copy has and its upstream does not, so that a person or a program can read it: one JSON object a line.
//!
//! `{"sequence":12,"epoch":3,"operation":"put","family":"data","key":"k","value":"v","expiresAtMs":1700000000000}`. Keys and
//! values are text in which bytes that are not printable ASCII stand as `\\xNN`, `\\n` and so on, and a backslash as `\\\\`.

use std::io::{self, Write};

use parovoz_dataplane_core::batch::{self, DATA_FAMILY, Record};
use parovoz_dataplane_core::history::EpochHistory;
use parovoz_dataplane_core::types::{Position, Sequence};
use parovoz_dataplane_core::value;
use parovoz_engine::{Database, EngineError};
use serde::Serialize;

use super::dirs::PrefixDirs;
use crate::disk::detached::ExportedTail;
use crate::store::prefix::Prefix;

/// Bytes of one export at most; the whole copy is kept besides.
const MAX_BYTES: u64 = 64 << 20;

/// One record.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Line<'a> {
    sequence: u64,
    epoch: u64,
    operation: &'static str,
    family: &'static str,
    key: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<String>,
    /// First key that stays, of a deleted range.
    #[serde(skip_serializing_if = "Option::is_none")]
    to: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at_ms: Option<u64>,
    /// Why the value is shown as it is stored.
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<&'a str>,
}

/// Exports the records of a copy after `fork`. Blocks. What can't be read any more is missing in it, and the copy is set aside as a
/// whole anyway, so a failure is only told.
pub(crate) fn export(dirs: &dyn PrefixDirs, prefix: &Prefix, fork: Position) {
    let Some(copy) = prefix.copy() else { return };
    let last = prefix.position_at(copy.db.latest());
    if last.sequence <= fork.sequence {
        return;
    }
    let tail = ExportedTail {
        prefix: prefix.name.clone(),
        prefix_uuid: prefix.uuid,
        epoch: last.epoch,
        first: fork.sequence.next(),
        last: last.sequence,
        records: 0,
        file: String::new(),
    };
    let history = prefix.history();
    let done = dirs.export_tail(&tail, &mut |out| {
        write_tail(&*copy.db, &history, fork.sequence, MAX_BYTES, out).map_err(io::Error::other)
    });
    match done {
        Ok(()) => {
            tracing::warn!(prefix = %prefix.name, first = %tail.first, last = %last, "exported the diverged tail")
        }
        Err(error) => tracing::error!(prefix = %prefix.name, %error, "the diverged tail is not exported"),
    }
}

/// Why a tail can't be written.
#[derive(Debug, thiserror::Error)]
enum TailError {
    #[error("export tail: {0}")]
    Engine(#[from] EngineError),
    #[error("export tail: {0}")]
    Batch(#[from] batch::BatchError),
    #[error("export tail: {0}")]
    Json(#[from] serde_json::Error),
    #[error("export tail: {0}")]
    Disk(#[from] io::Error),
}

/// Writes the records after `fork` that the WAL still has, up to `max_bytes`; answers how many.
fn write_tail(
    db: &dyn Database,
    history: &EpochHistory,
    fork: Sequence,
    max_bytes: u64,
    out: &mut dyn Write,
) -> Result<u64, TailError> {
    let mut updates = match db.updates_after(fork) {
        Err(EngineError::Gap { oldest, .. }) => db.updates_after(Sequence(oldest.0.saturating_sub(1)))?,
        found => found?,
    };
    let (mut records, mut bytes) = (0, 0);
    while let Some(logged) = updates.next_batch()? {
        let mut sequence = logged.first;
        for record in batch::records(&logged.bytes)? {
            let record = record?;
            let Some(line) = line(&record, sequence, history) else { continue };
            let mut json = serde_json::to_vec(&line)?;
            json.push(b'\n');
            bytes += json.len() as u64;
            if bytes > max_bytes {
                return Ok(records);
            }
            out.write_all(&json)?;
            records += 1;
            sequence = sequence.next();
        }
    }
    Ok(records)
}

/// `None` if the record takes no sequence.
fn line<'a>(record: &Record<'_>, sequence: Sequence, history: &EpochHistory) -> Option<Line<'a>> {
    let text = |bytes: &[u8]| bytes.escape_ascii().to_string();
    let (operation, family, key) = match record {
        Record::Put { family, key, .. } => ("put", *family, *key),
        Record::Delete { family, key } | Record::SingleDelete { family, key } => ("delete", *family, *key),
        Record::DeleteRange { family, from, .. } => ("deleteRange", *family, *from),
        Record::Merge { family, key, .. } => ("merge", *family, *key),
        Record::LogData(_) | Record::Noop => return None,
    };
    let mut line = Line {
        sequence: sequence.0,
        epoch: history.epoch_at(sequence).0,
        operation,
        family: if family == DATA_FAMILY { "data" } else { "meta" },
        key: text(key),
        value: None,
        to: None,
        expires_at_ms: None,
        note: None,
    };
    match record {
        Record::Put { family: DATA_FAMILY, value, .. } => match value::decode(value) {
            Ok(stored) => {
                line.value = Some(text(stored.value));
                line.expires_at_ms = stored.expires_at_ms;
            }
            Err(_) => {
                line.value = Some(text(value));
                line.note = Some("the value's header is not known");
            }
        },
        Record::Put { value, .. } | Record::Merge { operand: value, .. } => line.value = Some(text(value)),
        Record::DeleteRange { to, .. } => line.to = Some(text(to)),
        Record::Delete { .. } | Record::SingleDelete { .. } | Record::LogData(_) | Record::Noop => {}
    }
    Some(line)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use parovoz_dataplane_core::batch::BatchBuilder;
    use parovoz_dataplane_core::history::EpochRecord;
    use parovoz_dataplane_core::types::{Epoch, ReignId};
    use parovoz_engine::memory::MemoryEngine;
    use parovoz_engine::{Engine, OpenSpec};
    use uuid::Uuid;

    fn tail(max_bytes: u64) -> (u64, Vec<serde_json::Value>) {
        let db = MemoryEngine::default()
            .open(std::path::Path::new("tail"), &OpenSpec { sequence_offset: 0, create: true })
            .unwrap();
        let mut first = BatchBuilder::new();
        first.put_meta(b"epoch", b"one");
        first.put_value(b"common", b"x", None);
        db.write(&first.finish(), true).unwrap();
        let mut second = BatchBuilder::new();
        second.put_value(b"k\n\xff", b"v\"\\", Some(77));
        second.delete(b"gone");
        db.write(&second.finish(), true).unwrap();
        let record = EpochRecord { epoch: Epoch(4), reign_id: ReignId(Uuid::from_u128(1)), start: Sequence(1) };
        let history = EpochHistory::new(vec![record]).unwrap();
        let mut out = Vec::new();
        let records = write_tail(&*db, &history, Sequence(2), max_bytes, &mut out).unwrap();
        let lines = String::from_utf8(out).unwrap();
        (records, lines.lines().map(|l| serde_json::from_str(l).unwrap()).collect())
    }

    #[test]
    fn records_after_the_fork_can_be_read_byte_by_byte() {
        let (records, lines) = tail(u64::MAX);
        assert_eq!(records, 2);
        let put = serde_json::json!({"sequence": 3, "epoch": 4, "operation": "put", "family": "data",
            "key": "k\\n\\xff", "value": "v\\\"\\\\", "expiresAtMs": 77});
        let delete =
            serde_json::json!({"sequence": 4, "epoch": 4, "operation": "delete", "family": "data", "key": "gone"});
        assert_eq!(lines, [put, delete]);
    }

    #[test]
    fn an_export_is_bounded() {
        let (records, lines) = tail(150);
        assert_eq!((records, lines.len()), (1, 1));
    }
}
