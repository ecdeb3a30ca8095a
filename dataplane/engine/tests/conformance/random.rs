//! Random histories: a follower that is fed from the WAL ends up equal, whatever happens on the way.

use std::sync::Arc;

use parovoz_dataplane_core::batch::BatchBuilder;
use parovoz_dataplane_core::types::Sequence;
use parovoz_engine::{Database, EngineError};
use proptest::prelude::*;

use crate::bench::{Bench, MemoryBench, RocksBench, assert_same, batch, drain, follow, puts, rows};

#[derive(Debug, Clone)]
enum Write {
    Put(u8, Vec<u8>, Option<u64>),
    Delete(u8),
    DeleteRange(u8, u8),
    Meta(u8, Vec<u8>),
    Note,
}

#[derive(Debug, Clone)]
enum Step {
    Write(Vec<Write>, bool),
    Flush,
    ReopenLeader,
    ReopenFollower,
    Follow,
    Bootstrap,
}

fn write() -> impl Strategy<Value = Write> {
    let value = || proptest::collection::vec(any::<u8>(), 0..40);
    prop_oneof![
        6 => (any::<u8>(), value(), any::<Option<u64>>()).prop_map(|(key, value, at)| Write::Put(key, value, at)),
        2 => any::<u8>().prop_map(Write::Delete),
        1 => (any::<u8>(), any::<u8>()).prop_map(|(from, to)| Write::DeleteRange(from.min(to), from.max(to))),
        1 => (any::<u8>(), value()).prop_map(|(key, value)| Write::Meta(key, value)),
        1 => Just(Write::Note),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => (proptest::collection::vec(write(), 0..8), any::<bool>()).prop_map(|(writes, sync)| Step::Write(writes, sync)),
        2 => Just(Step::Flush),
        1 => Just(Step::ReopenLeader),
        1 => Just(Step::ReopenFollower),
        2 => Just(Step::Follow),
        1 => Just(Step::Bootstrap),
    ]
}

fn build(writes: &[Write]) -> bytes::Bytes {
    let add = |b: &mut BatchBuilder, write: &Write| match write {
        Write::Put(key, value, at) => b.put_value(&[*key], value, *at),
        Write::Delete(key) => b.delete(&[*key]),
        Write::DeleteRange(from, to) => b.delete_range(&[*from], &[*to]),
        Write::Meta(key, value) => b.put_meta(&[*key], value),
        Write::Note => b.put_log_data(b"note"),
    };
    batch(|b| writes.iter().for_each(|write| add(b, write)))
}

fn run(bench: &dyn Bench, steps: &[Step]) {
    let mut leader = bench.create("leader");
    let mut follower = (0, bench.create("follower-0"));
    for step in steps {
        match step {
            Step::Write(writes, sync) => {
                let expected = leader.latest().next();
                assert_eq!(leader.write(&build(writes), *sync).unwrap(), expected);
            }
            Step::Flush => leader.flush().unwrap(),
            Step::ReopenLeader => leader = reopen(bench, leader, "leader"),
            Step::ReopenFollower => follower.1 = reopen(bench, follower.1, &format!("follower-{}", follower.0)),
            Step::Follow => follow(&*leader, &*follower.1),
            Step::Bootstrap => {
                let name = format!("follower-{}", follower.0 + 1);
                leader.checkpoint(&bench.dir(&name)).unwrap();
                follower = (follower.0 + 1, bench.reopen(&name));
            }
        }
    }
    follow(&*leader, &*follower.1);
    assert_same(&*leader, &*follower.1);
    // From the very beginning too: nothing was pruned.
    let fresh = bench.create("fresh");
    follow(&*leader, &*fresh);
    assert_same(&*leader, &*fresh);
}

fn reopen(bench: &dyn Bench, database: Arc<dyn Database>, name: &str) -> Arc<dyn Database> {
    let position = database.latest();
    drop(database);
    let database = bench.reopen(name);
    assert_eq!(database.latest(), position);
    database
}

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config(300))]
    #[test]
    fn followers_in_memory_end_up_equal(steps in proptest::collection::vec(step(), 1..60)) {
        run(&MemoryBench::new(), &steps);
    }

    /// Power loss takes only what was not synced, and takes it from the end.
    #[test]
    fn a_crash_in_memory_keeps_what_was_synced(sizes in proptest::collection::vec((1u32..5, 0u8..6), 1..30)) {
        let bench = MemoryBench::new();
        let mut database = bench.create("a");
        let mut durable = (Sequence(0), Vec::new());
        for (n, (count, what)) in sizes.iter().enumerate() {
            database.write(&puts(n as u32 * 3, *count), *what == 0).unwrap();
            match what {
                0 => {}
                1 => database.sync().unwrap(),
                2 => database.flush().unwrap(),
                3 => {
                    bench.engine.crash(&bench.dir("a")).unwrap();
                    prop_assert!(database.write(&puts(0, 1), false).is_err(), "handles from before the crash are dead");
                    database = bench.reopen("a");
                    let now = (database.latest(), rows(&*database, parovoz_engine::Family::Data));
                    prop_assert_eq!(&now, &durable);
                }
                _ => continue,
            }
            durable = (database.latest(), rows(&*database, parovoz_engine::Family::Data));
        }
        bench.engine.crash_all(&bench.dir(""));
        drop(database);
        let database = bench.reopen("a");
        prop_assert_eq!(&(database.latest(), rows(&*database, parovoz_engine::Family::Data)), &durable);
        let logged: u64 = drain(&*database, 0).iter().map(|batch| u64::from(batch.count)).sum();
        prop_assert_eq!(logged, durable.0.0);
    }
}

#[test]
fn what_a_killed_process_left_is_durable_once_it_is_seen_again() {
    let bench = MemoryBench::new();
    let database = bench.create("a");
    database.write(&puts(0, 3), true).unwrap();
    database.write(&puts(10, 4), false).unwrap();
    drop(database);
    let database = bench.reopen("a");
    assert_eq!(database.latest(), Sequence(7));
    bench.engine.crash(&bench.dir("a")).unwrap();
    drop(database);
    assert_eq!(bench.reopen("a").latest(), Sequence(7), "the machine lost what was shown as recovered");
}

proptest! {
    #![proptest_config(config(12))]
    #[test]
    fn followers_on_rocksdb_end_up_equal(steps in proptest::collection::vec(step(), 1..60)) {
        run(&RocksBench::new(), &steps);
    }
}

#[test]
fn pruned_memory_makes_a_gap() {
    let bench = MemoryBench::new();
    let a = bench.create("a");
    for n in 0..5 {
        a.write(&puts(n, 2), false).unwrap();
    }
    bench.engine.prune_wal(&bench.dir("a"), Sequence(4)).unwrap();
    assert!(matches!(a.updates_after(Sequence(2)).err().unwrap(), EngineError::Gap { oldest: Sequence(5), .. }));
    assert_eq!(drain(&*a, 4).len(), 3);
}
