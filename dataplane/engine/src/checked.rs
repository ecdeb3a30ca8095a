//! What a batch must be before an engine takes it. RocksDB itself finds out only after the WAL has it.

use parovoz_dataplane_core::batch::{self, BatchError, DATA_FAMILY, META_FAMILY, Record};

use crate::{EngineError, Family, Result};

/// A batch that an engine may take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Checked {
    /// Records that take a sequence.
    pub(crate) count: u32,
    /// Whether one of them is for [`Family::Meta`].
    pub(crate) meta: bool,
}

/// The family of a number that stands in a batch.
pub(crate) fn family(number: u32) -> Result<Family> {
    match number {
        DATA_FAMILY => Ok(Family::Data),
        META_FAMILY => Ok(Family::Meta),
        _ => Err(EngineError::BadBatch { cause: format!("unknown column family {number}") }),
    }
}

/// Checks structure, count, families, and that every record can be applied.
pub(crate) fn check(bytes: &[u8]) -> Result<Checked> {
    let records = batch::records(bytes).map_err(bad)?;
    let mut checked = Checked { count: records.header().count, meta: false };
    for record in records {
        match record.map_err(bad)? {
            Record::Put { family: number, .. }
            | Record::Delete { family: number, .. }
            | Record::SingleDelete { family: number, .. } => {
                checked.meta |= family(number)? == Family::Meta;
            }
            Record::DeleteRange { family: number, from, to } => {
                checked.meta |= family(number)? == Family::Meta;
                if from > to {
                    return Err(EngineError::BadBatch { cause: "range deletion ends before it begins".to_owned() });
                }
            }
            Record::Merge { .. } => {
                return Err(EngineError::BadBatch { cause: "merge records are not used here".to_owned() });
            }
            Record::LogData(_) | Record::Noop => {}
        }
    }
    Ok(checked)
}

/// A batch's error as the engine's.
pub(crate) fn bad(error: BatchError) -> EngineError {
    EngineError::BadBatch { cause: error.to_string() }
}
