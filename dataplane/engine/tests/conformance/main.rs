//! One suite that both engines must pass, and what only RocksDB can show.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod bench;
mod random;
mod rocks_only;
mod suite;

use bench::{MemoryBench, RocksBench};

/// Runs each case on both engines.
macro_rules! on_both {
    ($($case:ident)*) => {
        mod memory {
            $(#[test] fn $case() { crate::suite::$case(&crate::MemoryBench::new()); })*
        }
        mod rocks {
            $(#[test] fn $case() { crate::suite::$case(&crate::RocksBench::new()); })*
        }
    };
}

on_both! {
    raw_batches_replayed_in_order_give_equal_sequences
    log_data_takes_no_sequence_and_travels
    batches_without_records_are_left_out_of_the_stream
    epoch_records_in_meta_travel
    updates_start_anywhere_from_zero_to_the_latest
    a_position_past_the_latest_is_refused
    a_position_within_a_batch_is_a_gap
    pruned_wal_is_a_gap_that_names_the_oldest
    a_reader_at_the_end_sees_what_is_written_later
    updates_cross_the_seams_between_wal_files
    a_checkpoint_has_equal_contents_and_position
    a_checkpoint_never_overwrites
    logical_sequences_are_mapped_everywhere
    range_deletes_delete_and_travel
    reopening_keeps_position_contents_and_wal
    what_was_written_survives_the_end_of_the_process
    scans_go_both_ways_within_bounds
    snapshots_do_not_move
    bad_batches_are_refused_and_leave_no_trace
    damage_on_disk_is_reported
    a_missing_database_is_an_error_and_a_second_opening_too
    a_destroyed_database_is_gone
    wal_files_say_where_each_begins
}
