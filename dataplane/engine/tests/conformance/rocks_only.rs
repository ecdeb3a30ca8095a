//! What only RocksDB can show: files, options, damage, threads.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use parovoz_dataplane_core::types::Sequence;
use parovoz_engine::rocks::RocksSettings;
use parovoz_engine::{Database, Engine, EngineError, Family, OpenSpec};

use crate::bench::{Bench, RocksBench, assert_same, batch, drain, eventually, files_named, follow, get, puts, rows};

const MIB: usize = 1 << 20;

/// Writes about `mib` MiB of values that don't compress, 1 MiB a batch, under keys from `from` on.
fn fill(database: &dyn Database, from: u32, mib: u32) {
    let mut state = u64::from(from) | 1;
    for n in from..from + mib {
        let mut values = vec![0u8; MIB];
        for chunk in values.chunks_exact_mut(8) {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            chunk.copy_from_slice(&state.to_le_bytes());
        }
        let bytes = batch(|b| {
            for (i, value) in values.chunks_exact(4096).enumerate() {
                b.put_value(format!("{n:06}/{i:03}").as_bytes(), value, None);
            }
        });
        database.write(&bytes, false).unwrap();
    }
}

#[test]
fn a_checkpoint_of_300_mib_in_memtables_restores_the_exact_position() {
    let bench = RocksBench::with(&RocksSettings { memtable_bytes: 1 << 30, ..RocksSettings::default() });
    let a = bench.create("a");
    fill(&*a, 0, 300);
    a.write(&puts(0, 7), false).unwrap();
    a.checkpoint(&bench.dir("copy")).unwrap();
    let copy = bench.reopen("copy");
    assert_eq!(copy.latest(), Sequence(300 * 256 + 7));
    assert_eq!(copy.latest(), a.latest());
    assert_eq!(get(&*copy, Family::Data, b"000299/255"), get(&*a, Family::Data, b"000299/255"));
    assert!(get(&*copy, Family::Data, b"key000006").is_some());
    a.write(&puts(7, 1), false).unwrap();
    follow(&*a, &*copy);
    assert_eq!(copy.latest(), a.latest());
}

#[test]
fn a_small_checkpoint_does_not_flush() {
    let bench = RocksBench::new();
    let a = bench.create("a");
    a.write(&puts(0, 100), false).unwrap();
    a.checkpoint(&bench.dir("copy")).unwrap();
    assert_eq!(files_named(&bench.dir("a"), "sst").len(), 0);
    assert_same(&*a, &*bench.reopen("copy"));
}

/// Writes four WAL files, cuts the second one short, and answers the database opened again, with the position it had.
fn after_losing_the_middle(bench: &RocksBench, cut: impl Fn(u64) -> u64) -> (Arc<dyn Database>, Sequence) {
    let a = bench.create("a");
    fill(&*a, 0, 30);
    let lost = a.latest();
    drop(a);
    let wals = files_named(&bench.dir("a"), "log");
    assert!(wals.len() >= 3, "{wals:?}");
    // As if the machine had gone down before the second file was written out.
    let len = fs::metadata(&wals[1]).unwrap().len();
    OpenOptions::new().write(true).open(&wals[1]).unwrap().set_len(cut(len)).unwrap();
    (bench.reopen("a"), lost)
}

#[test]
fn wal_files_behind_a_damaged_one_are_not_streamed() {
    let bench = RocksBench::new();
    let (a, lost) = after_losing_the_middle(&bench, |len| len / 2 - 1_000);
    let kept = a.latest();
    assert!(Sequence(0) < kept && kept < lost, "{kept} of {lost}");
    assert_eq!(drain(&*a, kept.0).len(), 0);
    assert!(a.wal_files().unwrap().iter().all(|file| file.first <= kept.next()));
    // The same sequences again, with other contents.
    while a.latest() < lost {
        a.write(&batch(|b| b.put(b"new", b"\0history")), false).unwrap();
    }
    for after in (kept.0..lost.0).step_by(97) {
        let mut updates = a.updates_after(Sequence(after)).unwrap();
        let next = updates.next_batch().unwrap().unwrap();
        assert_eq!((next.first, next.count), (Sequence(after + 1), 1));
    }
    let follower = bench.create("follower");
    follow(&*a, &*follower);
    assert_same(&*a, &*follower);
}

#[test]
fn a_wal_file_that_lost_its_end_at_a_record_is_no_hole() {
    let bench = RocksBench::new();
    // Batches are equally long: half of eight is four whole ones.
    let (a, lost) = after_losing_the_middle(&bench, |len| len / 2);
    assert!(a.latest() < lost, "{} of {lost}", a.latest());
    assert_eq!(rows(&*a, Family::Data).len() as u64, a.latest().0, "every record up to the position is there");
    let follower = bench.create("follower");
    follow(&*a, &*follower);
    assert_same(&*a, &*follower);
}

#[test]
fn a_torn_end_of_the_wal_loses_only_the_end() {
    let bench = RocksBench::new();
    let a = bench.create("a");
    for n in 0..50 {
        a.write(&puts(n, 2), false).unwrap();
    }
    drop(a);
    let wal = files_named(&bench.dir("a"), "log").pop().unwrap();
    let len = fs::metadata(&wal).unwrap().len();
    OpenOptions::new().write(true).open(&wal).unwrap().set_len(len - 5).unwrap();
    let a = bench.reopen("a");
    assert_eq!(a.latest(), Sequence(98), "a whole batch, never a part of one");
    a.write(&puts(7, 3), false).unwrap();
    assert_eq!(drain(&*a, 0).len(), 50);
    let follower = bench.create("follower");
    follow(&*a, &*follower);
    assert_same(&*a, &*follower);
}

#[test]
fn a_database_whose_meta_has_another_number_is_refused() {
    let bench = RocksBench::new();
    let dir = bench.dir("foreign");
    let mut options = rocksdb::Options::default();
    options.create_if_missing(true);
    let mut db = rocksdb::DB::open(&options, &dir).unwrap();
    db.create_cf("other", &options).unwrap();
    db.create_cf("meta", &options).unwrap();
    db.drop_cf("other").unwrap();
    drop(db);
    let error = bench.engine.open(&dir, &OpenSpec::default()).err().unwrap();
    assert!(matches!(error, EngineError::Corruption { .. }), "{error}");
}

#[test]
fn an_idle_database_takes_no_room_for_wal() {
    let bench = RocksBench::new();
    let a = bench.create("a");
    a.write(&puts(0, 1), true).unwrap();
    let wal = a.wal_files().unwrap().remove(0);
    let allocated = fs::metadata(&wal.path).unwrap().blocks() * 512;
    assert!(allocated <= 64 << 10, "{allocated} bytes for {} of WAL", wal.bytes);
}

#[test]
fn compaction_drops_what_expired_over_an_hour_ago() {
    let bench = RocksBench::new();
    let a = bench.create("a");
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64;
    let minutes = |n: u64| n * 60_000;
    let bytes = batch(|b| {
        b.put_value(b"forever", b"v", None);
        b.put_value(b"later", b"v", Some(now + minutes(60)));
        b.put_value(b"just now", b"v", Some(now - minutes(50)));
        b.put_value(b"long ago", b"v", Some(now - minutes(61)));
        b.put(b"undecodable", b"\xFF");
        b.put_meta(b"long ago", &[1, 0, 0, 0, 0, 0, 0, 0, 0]);
    });
    a.write(&bytes, false).unwrap();
    a.flush().unwrap();
    let before = a.latest();
    a.compact().unwrap();
    let left: Vec<_> = rows(&*a, Family::Data).into_iter().map(|(key, _)| key).collect();
    assert_eq!(left, [&b"forever"[..], b"just now", b"later", b"undecodable"]);
    assert_eq!(rows(&*a, Family::Meta).len(), 1, "epoch records are no values");
    assert_eq!(a.latest(), before);
}

#[test]
fn memtables_of_idle_databases_give_way_to_the_budget() {
    let settings = RocksSettings { memtable_bytes: 48 * MIB, block_cache_bytes: MIB, ..RocksSettings::default() };
    let bench = RocksBench::with(&settings);
    let idle: Vec<_> = (0..4).map(|n| bench.create(&format!("idle{n}"))).collect();
    // 12 MiB each is far below what a database alone would flush at.
    idle.iter().for_each(|database| fill(&**database, 0, 12));
    let busy = bench.create("busy");
    let mut n = 0;
    eventually("memory falls below the budget", || {
        fill(&*busy, n, 2);
        n += 2;
        bench.engine.memory_bytes() <= 50 * MIB as u64
    });
    assert!(idle.iter().any(|database| database.disk_bytes() > 0));
    assert!(idle.iter().all(|database| drain(&**database, 0).len() == 12), "the WAL keeps all of it");
}

#[test]
fn a_record_in_meta_does_not_hold_back_the_wal() {
    let bench = RocksBench::new();
    let a = bench.create("a");
    a.write(&batch(|b| b.put_meta(b"epoch/1", b"reign")), true).unwrap();
    // Enough for the data to be flushed by itself, not enough for the limit on the whole WAL.
    fill(&*a, 0, 200);
    let first = |archived: bool| {
        a.wal_files().unwrap().iter().any(|file| file.archived == archived && file.first == Sequence(1))
    };
    eventually("the WAL file with the epoch record is archived", || first(true));
    assert!(!first(false));
}

#[test]
fn a_follower_keeps_up_while_files_are_switched_under_it() {
    let bench = RocksBench::new();
    let (a, b) = (bench.create("a"), bench.create("b"));
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for n in 0..3_000u32 {
                a.write(&puts(n, 1 + n % 7), false).unwrap();
                if n % 250 == 0 {
                    a.flush().unwrap();
                }
            }
            done.store(true, Ordering::Release);
        });
        loop {
            let last_round = done.load(Ordering::Acquire);
            follow(&*a, &*b);
            if last_round {
                break;
            }
        }
    });
    assert_same(&*a, &*b);
}

#[test]
fn a_database_closes_when_dropped_even_while_the_keeper_works_on_it() {
    let settings = RocksSettings { memtable_bytes: 2 * MIB, ..RocksSettings::default() };
    let bench = RocksBench::with(&settings);
    for round in 0..5 {
        let a = bench.create("a");
        fill(&*a, round * 8, 8);
        drop(a);
        assert_eq!(bench.reopen("a").latest(), Sequence(u64::from(round + 1) * 8 * 256));
    }
}
