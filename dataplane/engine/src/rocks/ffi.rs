//! The few calls of RocksDB's C API that its crate does not wrap. All of this workspace's `unsafe` is here.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::marker::PhantomData;
use std::ptr;

use libc::c_char;
use librocksdb_sys as c;
use rocksdb::{AsColumnFamilyRef, AsRawPtr, ColumnFamily, DB, Options};

/// Stops RocksDB from preallocating files: 1.1 x write_buffer_size of WAL for each of 1,000 prefixes fills a disk.
pub(super) fn disable_preallocation(options: &mut Options) {
    // SAFETY: the pointer is that of a live `Options`, held by `&mut`; the call sets one flag in it.
    unsafe { c::rocksdb_options_set_allow_fallocate(options.as_raw_ptr(), 0) }
}

/// Makes each WAL file name its predecessor's number, length and last sequence, and recovery check them. Without, a file
/// that lost its end exactly at a record is taken for whole, and its successor is applied over the hole.
pub(super) fn verify_wal_order(options: &mut Options) {
    // SAFETY: as above.
    unsafe { c::rocksdb_options_set_track_and_verify_wals(options.as_raw_ptr(), 1) }
}

/// The number by which batches name the family.
pub(super) fn family_number(family: &ColumnFamily) -> u32 {
    // SAFETY: the handle lives as long as the `ColumnFamily` that is borrowed; the call only reads it.
    unsafe { c::rocksdb_column_family_handle_get_id(family.inner()) }
}

/// Reads every block of every table and compares checksums. The error is RocksDB's text: its C API gives nothing else.
pub(super) fn verify_checksum(db: &DB) -> Result<(), String> {
    let mut error = ptr::null_mut();
    // SAFETY: `db` is open while borrowed; `error` is a null pointer that the call may set.
    unsafe { c::rocksdb_verify_checksum(db.as_raw_ptr(), &raw mut error) };
    take_error(error)
}

/// A WAL file as RocksDB lists it.
pub(super) struct ListedWal {
    /// Relative to the database's folder, beginning with a slash.
    pub(super) path: String,
    pub(super) archived: bool,
    /// The database's own sequence of the first record.
    pub(super) first: u64,
    pub(super) bytes: u64,
}

/// WAL files that hold records, by number, archived ones first. The error is RocksDB's text.
pub(super) fn sorted_wal_files(db: &DB) -> Result<Vec<ListedWal>, String> {
    let mut error = ptr::null_mut();
    // SAFETY: `db` is open while borrowed; `error` is a null pointer that the call may set.
    let files = unsafe { c::rocksdb_get_sorted_wal_files(db.as_raw_ptr(), &raw mut error) };
    take_error(error)?;
    if files.is_null() {
        return Err("no list of WAL files".to_owned());
    }
    // SAFETY: `files` is a list that this function owns until `destroy`. Its elements and their path (a C string) live as
    // long as the list, the index is below the count, and everything is copied before the list goes.
    unsafe {
        let listed = (0..c::rocksdb_wal_files_count(files))
            .map(|index| {
                let file = c::rocksdb_wal_files_get_wal_file(files, index);
                ListedWal {
                    path: CStr::from_ptr(c::rocksdb_wal_file_path_name(file)).to_string_lossy().into_owned(),
                    archived: c::rocksdb_wal_file_type(file) == c::rocksdb_wal_file_type_archived_log as libc::c_int,
                    first: c::rocksdb_wal_file_start_sequence(file),
                    bytes: c::rocksdb_wal_file_size_file_bytes(file),
                }
            })
            .collect();
        c::rocksdb_wal_files_destroy(files);
        Ok(listed)
    }
}

/// A read of the WAL. The crate's own iterator skips the batch at its start and hides errors behind `None`.
///
/// Invariant: `inner` is a live iterator of the database that `'a` borrows.
pub(super) struct WalReader<'a> {
    inner: *mut c::rocksdb_wal_iterator_t,
    db: PhantomData<&'a DB>,
}

impl<'a> WalReader<'a> {
    /// Opens the WAL at the batch that holds `sequence` (the database's own), or at the next one there is.
    pub(super) fn open(db: &'a DB, sequence: u64) -> Result<Self, String> {
        let mut error = ptr::null_mut();
        // SAFETY: `db` is open while borrowed; null options are the defaults, checksums verified; `error` as above.
        let inner = unsafe { c::rocksdb_get_updates_since(db.as_raw_ptr(), sequence, ptr::null(), &raw mut error) };
        take_error(error)?;
        if inner.is_null() {
            return Err("no WAL iterator".to_owned());
        }
        Ok(Self { inner, db: PhantomData })
    }

    /// The present batch's bytes; the reader then stands on the next. `None` at the end, or an error's text.
    pub(super) fn next(&mut self) -> Result<Option<Vec<u8>>, String> {
        let mut error = ptr::null_mut();
        // SAFETY: `inner` is live. A batch may be taken, once, only from a valid iterator, and the iterator may be advanced
        // only while valid: both are behind the check. The batch is ours; its bytes are copied before it is destroyed.
        unsafe {
            if c::rocksdb_wal_iter_valid(self.inner) == 0 {
                c::rocksdb_wal_iter_status(self.inner, &raw mut error);
                return take_error(error).map(|()| None);
            }
            let batch = c::rocksdb_wal_iter_get_batch(self.inner, ptr::null_mut());
            let mut len = 0;
            let data = c::rocksdb_writebatch_data(batch, &raw mut len);
            let bytes = std::slice::from_raw_parts(data.cast::<u8>(), len).to_vec();
            c::rocksdb_writebatch_destroy(batch);
            c::rocksdb_wal_iter_next(self.inner);
            Ok(Some(bytes))
        }
    }
}

impl Drop for WalReader<'_> {
    fn drop(&mut self) {
        // SAFETY: `inner` is live and not used after this.
        unsafe { c::rocksdb_wal_iter_destroy(self.inner) }
    }
}

/// Takes an error's text and frees it.
fn take_error(error: *mut c_char) -> Result<(), String> {
    if error.is_null() {
        return Ok(());
    }
    // SAFETY: a non-null error is a C string that RocksDB allocated and left to us; it is copied, then freed once.
    let text = unsafe {
        let text = CStr::from_ptr(error).to_string_lossy().into_owned();
        c::rocksdb_free(error.cast());
        text
    };
    Err(text)
}
