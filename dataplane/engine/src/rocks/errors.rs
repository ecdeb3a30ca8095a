//! From RocksDB's errors to ours.
//!
//! RocksDB's C API hands over an error as text alone; the crate reads the status code back from the text's beginning. Where
//! this module calls the C API itself it does the same, and out-of-space, which has no code of its own, is read from the
//! operating system's words.

use rocksdb::{Error, ErrorKind};

use crate::EngineError;

/// An error of a write, a sync or a flush: what is in memory and on disk may differ, unless it was only busy.
pub(super) fn write_error(action: &str, error: Error) -> EngineError {
    // Corruption: the batch was checked before, so this is what a background job found and RocksDB now answers to every
    // write. Busy: refused before anything was written.
    match other_error(action, error) {
        EngineError::Io { action, cause } => EngineError::WriteFailed { action, cause },
        known => known,
    }
}

/// An error of anything else.
pub(super) fn other_error(action: &str, error: Error) -> EngineError {
    let kind = error.kind();
    of_kind(action, kind, error.into_string())
}

/// An error that came as text from the C API.
pub(super) fn text_error(action: &str, cause: String) -> EngineError {
    let kind = kind_of(&cause);
    of_kind(action, kind, cause)
}

fn of_kind(action: &str, kind: ErrorKind, cause: String) -> EngineError {
    let action = action.to_owned();
    if is_no_space(&cause) {
        return EngineError::NoSpace { action };
    }
    match kind {
        ErrorKind::Corruption => EngineError::Corruption { action, cause },
        ErrorKind::Busy | ErrorKind::TimedOut | ErrorKind::TryAgain | ErrorKind::Incomplete => {
            EngineError::Busy { action, cause }
        }
        ErrorKind::NotFound
        | ErrorKind::NotSupported
        | ErrorKind::InvalidArgument
        | ErrorKind::IOError
        | ErrorKind::MergeInProgress
        | ErrorKind::ShutdownInProgress
        | ErrorKind::Aborted
        | ErrorKind::Expired
        | ErrorKind::CompactionTooLarge
        | ErrorKind::ColumnFamilyDropped
        | ErrorKind::Unknown => EngineError::Io { action, cause },
    }
}

/// Whether a WAL read failed in a way that only says "these records can't be had", as opposed to a disk that does not answer.
pub(super) fn is_hole(text: &str) -> bool {
    matches!(kind_of(text), ErrorKind::Corruption | ErrorKind::NotFound | ErrorKind::TryAgain)
        || text.contains("No such file or directory")
}

/// The status code at the beginning of a text; codes that are not told apart here are `Unknown`.
fn kind_of(text: &str) -> ErrorKind {
    match text.split(':').next().unwrap_or_default() {
        "Corruption" => ErrorKind::Corruption,
        "NotFound" => ErrorKind::NotFound,
        "IO error" => ErrorKind::IOError,
        "Resource busy" => ErrorKind::Busy,
        "Operation failed. Try again." => ErrorKind::TryAgain,
        _ => ErrorKind::Unknown,
    }
}

fn is_no_space(text: &str) -> bool {
    text.contains("No space left on device")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Severity;

    #[test]
    fn a_full_volume_is_told_from_other_failures() {
        let full = text_error("flush", "IO error: No space left on device: While appending to file".to_owned());
        assert!(matches!(full, EngineError::NoSpace { .. }));
        let broken = text_error("flush", "IO error: Input/output error".to_owned());
        assert!(matches!(broken, EngineError::Io { .. }));
    }

    #[test]
    fn codes_at_the_beginning_of_texts_are_read() {
        assert!(matches!(text_error("x", "Corruption: block checksum".to_owned()), EngineError::Corruption { .. }));
        assert_eq!(text_error("x", "Resource busy: later".to_owned()).severity(), Severity::Retryable);
        assert!(is_hole("Operation failed. Try again.: Create a new iterator to fetch the new tail."));
        assert!(is_hole("NotFound: Requested sequence not yet written in the db"));
        assert!(!is_hole("IO error: Input/output error"));
    }
}
