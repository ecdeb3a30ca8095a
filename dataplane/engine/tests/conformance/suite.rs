//! What holds on every engine. Each case gets a fresh bench.

use std::path::Path;

use parovoz_dataplane_core::batch::{self, Record};
use parovoz_dataplane_core::types::Sequence;
use parovoz_engine::{Direction, EngineError, Family, OpenSpec, Severity};

use crate::bench::{Bench, assert_same, batch, drain, follow, get, prune, puts, rows, scan};

pub fn raw_batches_replayed_in_order_give_equal_sequences(bench: &dyn Bench) {
    let (a, b) = (bench.create("a"), bench.create("b"));
    assert_eq!(a.latest(), Sequence(0));
    let batches = [puts(0, 5), puts(3, 1), batch(|b| b.delete(b"key000001")), puts(100, 50)];
    let mut expected = 1;
    for bytes in &batches {
        assert_eq!(a.write(bytes, false).unwrap(), Sequence(expected));
        assert_eq!(b.write(bytes, true).unwrap(), Sequence(expected));
        expected += u64::from(batch::header(bytes).unwrap().count);
        assert_eq!(a.latest(), Sequence(expected - 1));
    }
    assert_same(&*a, &*b);
    assert_eq!(get(&*a, Family::Data, b"key000001"), None);
    assert_eq!(get(&*a, Family::Data, b"key000149").unwrap(), b"\0value");
}

pub fn log_data_takes_no_sequence_and_travels(bench: &dyn Bench) {
    let (a, b) = (bench.create("a"), bench.create("b"));
    let bytes = batch(|b| {
        b.put_log_data(b"a note");
        b.put(b"k", b"\0v");
    });
    a.write(&bytes, false).unwrap();
    assert_eq!(a.latest(), Sequence(1));
    let logged = drain(&*a, 0);
    let first = batch::records(&logged[0].bytes).unwrap().next().unwrap().unwrap();
    assert_eq!(first, Record::LogData(b"a note"));
    follow(&*a, &*b);
    assert_same(&*a, &*b);
}

pub fn batches_without_records_are_left_out_of_the_stream(bench: &dyn Bench) {
    let a = bench.create("a");
    let note = batch(|b| b.put_log_data(b"only a note"));
    assert_eq!(a.write(&note, false).unwrap(), Sequence(1));
    assert_eq!(a.latest(), Sequence(0));
    a.write(&puts(0, 2), false).unwrap();
    a.write(&note, true).unwrap();
    a.write(&puts(2, 1), false).unwrap();
    a.write(&note, false).unwrap();
    let firsts: Vec<_> = drain(&*a, 0).iter().map(|batch| (batch.first.0, batch.count)).collect();
    assert_eq!(firsts, [(1, 2), (3, 1)]);
    assert_eq!(drain(&*a, 2).len(), 1);
    assert_eq!(drain(&*a, 3).len(), 0);
}

pub fn epoch_records_in_meta_travel(bench: &dyn Bench) {
    let (a, b) = (bench.create("a"), bench.create("b"));
    a.write(&batch(|b| b.put_meta(b"epoch/1", b"reign")), true).unwrap();
    a.write(
        &batch(|b| {
            b.put(b"epoch/1", b"\0data");
            b.put_meta(b"epoch/2", b"other");
        }),
        false,
    )
    .unwrap();
    follow(&*a, &*b);
    assert_same(&*a, &*b);
    assert_eq!(get(&*b, Family::Meta, b"epoch/1").unwrap(), b"reign");
    assert_eq!(get(&*b, Family::Data, b"epoch/1").unwrap(), b"\0data");
    assert_eq!(rows(&*b, Family::Meta).len(), 2);
}

pub fn updates_start_anywhere_from_zero_to_the_latest(bench: &dyn Bench) {
    let a = bench.create("a");
    assert_eq!(drain(&*a, 0).len(), 0);
    let batches = [puts(0, 3), puts(3, 1), puts(4, 4)];
    for bytes in &batches {
        a.write(bytes, false).unwrap();
    }
    for (after, left) in [(0, 3), (3, 2), (4, 1), (8, 0)] {
        let logged = drain(&*a, after);
        assert_eq!(logged.len(), left, "after {after}");
        let mut next = after + 1;
        for (batch, written) in logged.iter().zip(&batches[3 - left..]) {
            assert_eq!(batch.first, Sequence(next));
            let header = batch::header(&batch.bytes).unwrap();
            assert_eq!((header.sequence, header.count), (next, batch.count));
            assert_eq!(batch.bytes[8..], written[8..], "the bytes are those that were written");
            next += u64::from(batch.count);
        }
    }
}

pub fn a_position_past_the_latest_is_refused(bench: &dyn Bench) {
    let a = bench.create("a");
    a.write(&puts(0, 3), false).unwrap();
    let error = a.updates_after(Sequence(4)).err().unwrap();
    assert!(matches!(error, EngineError::Ahead { after: Sequence(4), latest: Sequence(3) }), "{error}");
}

pub fn a_position_within_a_batch_is_a_gap(bench: &dyn Bench) {
    let a = bench.create("a");
    a.write(&puts(0, 2), false).unwrap();
    a.write(&puts(0, 5), false).unwrap();
    a.write(&puts(0, 1), false).unwrap();
    for after in [1, 3, 6] {
        let error = a.updates_after(Sequence(after)).err().unwrap();
        let oldest = if after == 1 { 3 } else { 8 };
        assert!(
            matches!(error, EngineError::Gap { after: at, oldest: old } if at.0 == after && old.0 == oldest),
            "{error}"
        );
    }
}

pub fn pruned_wal_is_a_gap_that_names_the_oldest(bench: &dyn Bench) {
    let a = bench.create("a");
    assert_eq!(a.oldest_in_wal().unwrap(), Sequence(1));
    for n in 0..6 {
        a.write(&puts(n * 10, 10), false).unwrap();
        a.flush().unwrap();
    }
    assert_eq!(a.oldest_in_wal().unwrap(), Sequence(1));
    prune(&*a, 30);
    assert_eq!(a.oldest_in_wal().unwrap(), Sequence(31));
    for after in [0, 10, 20] {
        let error = a.updates_after(Sequence(after)).err().unwrap();
        assert_eq!(error.severity(), Severity::Terminal);
        assert!(matches!(error, EngineError::Gap { after: at, oldest: Sequence(31) } if at.0 == after), "{error}");
    }
    assert_eq!(drain(&*a, 30).len(), 3, "right before the oldest is no gap");
    prune(&*a, 60);
    assert_eq!(a.oldest_in_wal().unwrap(), Sequence(61));
    assert_eq!(drain(&*a, 60).len(), 0);
    assert!(matches!(a.updates_after(Sequence(50)).err().unwrap(), EngineError::Gap { oldest: Sequence(61), .. }));
    a.write(&puts(0, 1), false).unwrap();
    assert_eq!(drain(&*a, 60).len(), 1);
}

pub fn a_reader_at_the_end_sees_what_is_written_later(bench: &dyn Bench) {
    let a = bench.create("a");
    a.write(&puts(0, 1), false).unwrap();
    let mut updates = a.updates_after(Sequence(0)).unwrap();
    assert_eq!(updates.next_batch().unwrap().unwrap().first, Sequence(1));
    assert_eq!(updates.next_batch().unwrap(), None);
    a.write(&puts(1, 2), false).unwrap();
    assert_eq!(updates.next_batch().unwrap().unwrap().first, Sequence(2));
    a.flush().unwrap();
    assert_eq!(updates.next_batch().unwrap(), None);
    a.write(&puts(3, 1), false).unwrap();
    assert_eq!(updates.next_batch().unwrap().unwrap().first, Sequence(4));
    assert_eq!(updates.next_batch().unwrap(), None);
}

pub fn updates_cross_the_seams_between_wal_files(bench: &dyn Bench) {
    let (a, b) = (bench.create("a"), bench.create("b"));
    let mut updates = None;
    for n in 0..40 {
        a.write(&puts(n, 3), false).unwrap();
        if n % 4 == 0 {
            a.flush().unwrap();
        }
        if n == 10 {
            // This one knows only the files that there are now.
            updates = Some(a.updates_after(Sequence(0)).unwrap());
        }
    }
    let mut updates = updates.unwrap();
    while let Some(batch) = updates.next_batch().unwrap() {
        assert_eq!(b.write(&batch.bytes, false).unwrap(), batch.first);
    }
    assert_same(&*a, &*b);
    assert_eq!(b.latest(), Sequence(120));
}

pub fn a_checkpoint_has_equal_contents_and_position(bench: &dyn Bench) {
    let a = bench.create("a");
    a.write(&batch(|b| b.put_meta(b"epoch/1", b"reign")), true).unwrap();
    a.write(&puts(0, 100), false).unwrap();
    a.flush().unwrap();
    a.write(&puts(50, 100), false).unwrap();
    let before = (a.latest(), rows(&*a, Family::Data));
    a.checkpoint(&bench.dir("copy")).unwrap();
    // What comes later does not leak into it.
    a.write(&puts(900, 10), false).unwrap();
    a.flush().unwrap();
    let copy = bench.reopen("copy");
    assert_eq!((copy.latest(), rows(&*copy, Family::Data)), before);
    assert_eq!(get(&*copy, Family::Meta, b"epoch/1").unwrap(), b"reign");
    follow(&*a, &*copy);
    assert_same(&*a, &*copy);
}

pub fn a_checkpoint_never_overwrites(bench: &dyn Bench) {
    let a = bench.create("a");
    a.write(&puts(0, 1), false).unwrap();
    a.checkpoint(&bench.dir("copy")).unwrap();
    assert!(matches!(a.checkpoint(&bench.dir("copy")), Err(EngineError::Io { .. })));
    assert_eq!(bench.reopen("copy").latest(), Sequence(1));
}

pub fn logical_sequences_are_mapped_everywhere(bench: &dyn Bench) {
    let spec = OpenSpec { create: true, sequence_offset: 1_000 };
    let a = bench.engine().open(&bench.dir("a"), &spec).unwrap();
    assert_eq!(a.latest(), Sequence(1_000));
    assert_eq!(a.oldest_in_wal().unwrap(), Sequence(1_001));
    assert_eq!(a.write(&puts(0, 3), false).unwrap(), Sequence(1_001));
    assert_eq!(a.write(&puts(3, 1), false).unwrap(), Sequence(1_004));
    assert_eq!(a.snapshot().sequence(), Sequence(1_004));
    assert_eq!(a.wal_files().unwrap()[0].first, Sequence(1_001));
    let logged = drain(&*a, 1_003);
    assert_eq!(logged[0].first, Sequence(1_004));
    assert_eq!(batch::header(&logged[0].bytes).unwrap().sequence, 1_004);
    assert!(matches!(
        a.updates_after(Sequence(999)).err().unwrap(),
        EngineError::Gap { after: Sequence(999), oldest: Sequence(1_001) }
    ));
    assert!(matches!(
        a.updates_after(Sequence(1_005)).err().unwrap(),
        EngineError::Ahead { latest: Sequence(1_004), .. }
    ));
    drop(a);
    let a = bench.engine().open(&bench.dir("a"), &spec).unwrap();
    assert_eq!(a.latest(), Sequence(1_004));
    assert_eq!(drain(&*a, 1_000).len(), 2);
}

pub fn range_deletes_delete_and_travel(bench: &dyn Bench) {
    let (a, b) = (bench.create("a"), bench.create("b"));
    a.write(&puts(0, 100), false).unwrap();
    a.write(&batch(|b| b.put_meta(b"key000020", b"stays")), false).unwrap();
    let first = a.write(&batch(|b| b.delete_range(b"key000010", b"key000090")), false).unwrap();
    assert_eq!((first, a.latest()), (Sequence(102), Sequence(102)));
    assert_eq!(rows(&*a, Family::Data).len(), 20);
    assert_eq!(get(&*a, Family::Data, b"key000010"), None);
    assert!(get(&*a, Family::Data, b"key000090").is_some());
    follow(&*a, &*b);
    assert_same(&*a, &*b);
    a.write(&batch(|b| b.delete_range(b"x", b"x")), false).unwrap();
    assert_eq!(rows(&*a, Family::Data).len(), 20);
}

pub fn reopening_keeps_position_contents_and_wal(bench: &dyn Bench) {
    let a = bench.create("a");
    a.write(&batch(|b| b.put_meta(b"epoch/1", b"reign")), true).unwrap();
    for n in 0..20 {
        a.write(&puts(n, 2), n % 5 == 0).unwrap();
        if n == 7 {
            a.flush().unwrap();
        }
    }
    let before = (a.latest(), rows(&*a, Family::Data), rows(&*a, Family::Meta), drain(&*a, 0));
    drop(a);
    let a = bench.reopen("a");
    assert_eq!((a.latest(), rows(&*a, Family::Data), rows(&*a, Family::Meta), drain(&*a, 0)), before);
    assert_eq!(a.write(&puts(0, 1), false).unwrap(), before.0.next());
    assert_eq!(drain(&*a, before.0.0).len(), 1);
    assert_eq!(drain(&*a, 0).len(), before.3.len() + 1);
}

pub fn what_was_written_survives_the_end_of_the_process(bench: &dyn Bench) {
    let a = bench.create("a");
    for n in 0..30 {
        a.write(&puts(n, 3), false).unwrap();
    }
    let before = (a.latest(), rows(&*a, Family::Data));
    let left = bench.as_killed(a, &bench.dir("a"));
    let a = bench.engine().open(&left, &OpenSpec::default()).unwrap();
    assert_eq!((a.latest(), rows(&*a, Family::Data)), before);
    assert_eq!(drain(&*a, 0).len(), 30);
}

pub fn scans_go_both_ways_within_bounds(bench: &dyn Bench) {
    let a = bench.create("a");
    a.write(&batch(|b| [b"a", b"b", b"c", b"d", b"e"].iter().for_each(|key| b.put(*key, b"\0"))), false).unwrap();
    a.flush().unwrap();
    a.write(&batch(|b| b.put(b"cc", b"\0")), false).unwrap();
    let snapshot = a.snapshot();
    let keys = |from: &[u8], to: &[u8], way| -> String {
        let rows = scan(&*snapshot, Family::Data, from, to, way);
        rows.into_iter().map(|(key, _)| String::from_utf8(key).unwrap()).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(keys(b"", b"", Direction::Forward), "a b c cc d e");
    assert_eq!(keys(b"", b"", Direction::Reverse), "e d cc c b a");
    assert_eq!(keys(b"b", b"d", Direction::Forward), "b c cc");
    assert_eq!(keys(b"b", b"d", Direction::Reverse), "cc c b");
    assert_eq!(keys(b"ca", b"", Direction::Forward), "cc d e");
    assert_eq!(keys(b"", b"ca", Direction::Reverse), "c b a");
    assert_eq!(keys(b"d", b"b", Direction::Forward), "");
    assert_eq!(keys(b"b", b"b", Direction::Reverse), "");
    let mut seen = 0;
    let mut two = |_: &[u8], _: &[u8]| {
        seen += 1;
        seen < 2
    };
    snapshot.scan(Family::Data, b"", b"", Direction::Forward, &mut two).unwrap();
    assert_eq!(seen, 2, "a scan stops when told to");
}

pub fn snapshots_do_not_move(bench: &dyn Bench) {
    let a = bench.create("a");
    a.write(&puts(0, 5), false).unwrap();
    let snapshot = a.snapshot();
    a.write(&batch(|b| b.delete_range(b"", b"z")), false).unwrap();
    a.write(&puts(100, 5), false).unwrap();
    a.flush().unwrap();
    assert_eq!(snapshot.sequence(), Sequence(5));
    assert_eq!(scan(&*snapshot, Family::Data, b"", b"", Direction::Forward).len(), 5);
    assert!(snapshot.get_with(Family::Data, b"key000004", &mut |_| {}).unwrap());
    assert!(!snapshot.get_with(Family::Data, b"key000100", &mut |_| {}).unwrap());
    assert!(!snapshot.get_with(Family::Meta, b"key000004", &mut |_| {}).unwrap());
}

pub fn bad_batches_are_refused_and_leave_no_trace(bench: &dyn Bench) {
    let a = bench.create("a");
    a.write(&puts(0, 2), false).unwrap();
    let mut wrong_count = puts(5, 2).to_vec();
    wrong_count[8] = 3;
    let mut unknown_family = batch(|b| b.put_meta(b"k", b"v")).to_vec();
    unknown_family[13] = 7;
    let mut merge = puts(5, 1).to_vec();
    merge[12] = 2;
    let cut = puts(5, 2);
    let backwards = batch(|b| b.delete_range(b"b", b"a"));
    for bad in [&wrong_count[..], &unknown_family, &merge, &cut[..cut.len() - 1], &backwards, b"short"] {
        let error = a.write(bad, true).unwrap_err();
        assert!(matches!(error, EngineError::BadBatch { .. }), "{error}");
    }
    assert_eq!(a.latest(), Sequence(2));
    assert_eq!(drain(&*a, 0).len(), 1);
    assert_eq!(a.write(&puts(2, 1), false).unwrap(), Sequence(3));
}

pub fn damage_on_disk_is_reported(bench: &dyn Bench) {
    let a = bench.create("a");
    a.write(&puts(0, 1_000), false).unwrap();
    a.flush().unwrap();
    a.verify_checksums().unwrap();
    assert_eq!(a.estimated_keys(), 1_000);
    assert!(a.disk_bytes() > 1_000);
    drop(a);
    bench.corrupt(&bench.dir("a"));
    let a = bench.reopen("a");
    let error = a.verify_checksums().unwrap_err();
    assert!(matches!(error, EngineError::Corruption { .. }), "{error}");
    assert_eq!(error.severity(), Severity::Terminal);
}

pub fn a_missing_database_is_an_error_and_a_second_opening_too(bench: &dyn Bench) {
    let open = |name: &str| bench.engine().open(&bench.dir(name), &OpenSpec::default());
    assert!(matches!(open("none"), Err(EngineError::Missing { .. })));
    let a = bench.create("a");
    assert!(matches!(open("a"), Err(EngineError::Io { .. })));
    drop(a);
    drop(open("a").unwrap());
}

pub fn a_destroyed_database_is_gone(bench: &dyn Bench) {
    let a = bench.create("a");
    a.write(&puts(0, 10), false).unwrap();
    a.flush().unwrap();
    assert!(bench.engine().destroy(&bench.dir("a")).is_err(), "it is open");
    assert_eq!(rows(&*a, Family::Data).len(), 10);
    drop(a);
    bench.engine().destroy(&bench.dir("a")).unwrap();
    bench.engine().destroy(&bench.dir("a")).unwrap();
    assert!(!Path::new(&bench.dir("a")).exists());
    assert!(matches!(bench.engine().open(&bench.dir("a"), &OpenSpec::default()), Err(EngineError::Missing { .. })));
    assert_eq!(bench.create("a").latest(), Sequence(0));
}

pub fn wal_files_say_where_each_begins(bench: &dyn Bench) {
    let a = bench.create("a");
    assert_eq!(a.wal_files().unwrap().len(), 0);
    for n in 0..3 {
        a.write(&puts(n, 4), false).unwrap();
        a.flush().unwrap();
    }
    a.write(&puts(0, 1), false).unwrap();
    let files = a.wal_files().unwrap();
    let firsts: Vec<_> = files.iter().map(|file| (file.first.0, file.archived)).collect();
    assert_eq!(firsts, [(1, true), (5, true), (9, true), (13, false)]);
    assert!(files.iter().all(|file| file.bytes > 12));
    a.remove_archived(&files[0]).unwrap();
    a.remove_archived(&files[0]).unwrap();
    assert!(a.remove_archived(&files[3]).is_err(), "a live file is not the pruner's");
    assert_eq!(a.wal_files().unwrap().len(), 3);
}
