//! Which WAL files may go.
//!
//! A file goes when it is old enough *and* nobody needs it. Only the size limit takes a file that is young or needed, oldest
//! first, and says so: somebody will be cut off.

use crate::types::Sequence;

/// An archived WAL file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ArchivedWal {
    /// Which prefix, as the caller numbers them.
    pub prefix: usize,
    /// Sequence of the first record of the file after it: this file holds only what is before.
    pub end: Sequence,
    /// Its length.
    pub bytes: u64,
    /// Since it was last written.
    pub age_ms: u64,
    /// Records after this are needed by somebody; `None` = nobody is known to need any.
    pub needed_after: Option<Sequence>,
}

impl ArchivedWal {
    fn is_needed(&self) -> bool {
        self.needed_after.is_some_and(|after| self.end > after.next())
    }
}

/// How long and how much WAL is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Kept at least so long.
    pub min_age_ms: u64,
    /// Kept at most so much, all prefixes together, live files included.
    pub max_bytes: u64,
}

/// A file that goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Removal {
    /// Its place in the input.
    pub index: usize,
    /// Taken by the size limit though somebody needs it.
    pub cuts_off: bool,
}

/// Which of `files` go; `live_bytes` are the WAL files that can't go because RocksDB still writes or needs them.
#[must_use]
pub fn plan(files: &[ArchivedWal], live_bytes: u64, policy: Policy) -> Vec<Removal> {
    let mut removals = Vec::new();
    let mut kept: Vec<usize> = Vec::new();
    let mut total = live_bytes;
    for (index, file) in files.iter().enumerate() {
        if file.age_ms >= policy.min_age_ms && !file.is_needed() {
            removals.push(Removal { index, cuts_off: false });
        } else {
            kept.push(index);
            total += file.bytes;
        }
    }
    // Within a prefix a later file is never older, so taking the oldest first leaves no hole.
    kept.sort_by_key(|&i| (std::cmp::Reverse(files[i].age_ms), files[i].prefix, files[i].end));
    for index in kept {
        if total <= policy.max_bytes {
            break;
        }
        total -= files[index].bytes;
        removals.push(Removal { index, cuts_off: files[index].is_needed() });
    }
    removals
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: Policy = Policy { min_age_ms: 1000, max_bytes: 1000 };

    fn file(end: u64, bytes: u64, age_ms: u64, needed_after: Option<u64>) -> ArchivedWal {
        ArchivedWal { prefix: 0, end: Sequence(end), bytes, age_ms, needed_after: needed_after.map(Sequence) }
    }

    #[test]
    fn an_old_file_that_nobody_needs_goes() {
        let files = [file(10, 1, 2000, None), file(20, 1, 500, None)];
        assert_eq!(plan(&files, 0, POLICY), [Removal { index: 0, cuts_off: false }]);
    }

    #[test]
    fn a_needed_file_stays_however_old() {
        // Records 1-9 are in the file; a follower at 8 needs 9, one at 9 needs nothing of it.
        assert_eq!(plan(&[file(10, 1, 9000, Some(8))], 0, POLICY), []);
        assert_eq!(plan(&[file(10, 1, 9000, Some(9))], 0, POLICY).len(), 1);
    }

    #[test]
    fn the_size_limit_takes_the_oldest_and_says_whom_it_cuts_off() {
        let files = [file(10, 600, 900, Some(3)), file(20, 600, 800, Some(3)), file(30, 100, 700, Some(3))];
        assert_eq!(plan(&files, 100, POLICY), [Removal { index: 0, cuts_off: true }]);
        assert_eq!(plan(&files, 500, POLICY).len(), 2);
    }
}
