//! Rates of the engine on this machine, in one line: what streaming and bootstrap are compared with in the same run.
//!
//! `cargo run --release -p parovoz-engine --example apply -- [records, default 3000000] [folder, default the temporary one]`
//!
//! put: building and writing groups of 50 records of 100 B; apply: writing the raw batches of the first database into a
//! second; wal: reading them from the first one's WAL; both: reading and applying in one loop.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::path::PathBuf;
use std::time::Instant;

use parovoz_dataplane_core::batch::BatchBuilder;
use parovoz_dataplane_core::types::Sequence;
use parovoz_engine::rocks::{RocksEngine, RocksSettings};
use parovoz_engine::{Database, Engine, LoggedBatch, OpenSpec};

const GROUP: u64 = 50;

fn main() {
    let mut args = std::env::args().skip(1);
    let records: u64 = args.next().map_or(3_000_000, |text| text.parse().unwrap());
    let parent = args.next().map_or_else(std::env::temp_dir, PathBuf::from);
    let dir = tempfile::tempdir_in(parent).unwrap();
    let engine = RocksEngine::new(&RocksSettings::default()).unwrap();
    let open =
        |name: &str| engine.open(&dir.path().join(name), &OpenSpec { create: true, sequence_offset: 0 }).unwrap();

    let a = open("a");
    let put = rate(records, || put_groups(&*a, records));
    let mut batches: Vec<LoggedBatch> = Vec::new();
    let mut bytes = 0;
    let wal = rate(records, || {
        let mut updates = a.updates_after(Sequence(0)).unwrap();
        while let Some(batch) = updates.next_batch().unwrap() {
            bytes += batch.bytes.len();
            batches.push(batch);
        }
    });
    let b = open("b");
    let apply = rate(records, || {
        for batch in &batches {
            b.write(&batch.bytes, false).unwrap();
        }
    });
    drop(batches);
    let c = open("c");
    let both = rate(records, || {
        let mut updates = a.updates_after(Sequence(0)).unwrap();
        while let Some(batch) = updates.next_batch().unwrap() {
            c.write(&batch.bytes, false).unwrap();
        }
    });
    assert_eq!((a.latest(), b.latest()), (c.latest(), c.latest()));
    let megabytes = wal * bytes as f64 / records as f64 / 1e6;
    println!(
        "records {records}: put {put:.0}/s, apply {apply:.0}/s, wal read {wal:.0}/s ({megabytes:.0} MB/s), \
         read and apply {both:.0}/s; apply/put {:.2}, wal/apply {:.2}, both/apply {:.2}",
        apply / put,
        wal / apply,
        both / apply
    );
}

/// Writes `records` of 100 B under keys that jump about, as hashed ones do.
fn put_groups(database: &dyn Database, records: u64) {
    let mut builder = BatchBuilder::new();
    let mut value = [0u8; 84];
    for group in 0..records / GROUP {
        for n in 0..GROUP {
            let number = (group * GROUP + n).wrapping_mul(0x9E37_79B9_7F4A_7C15);
            value[..8].copy_from_slice(&number.to_le_bytes());
            builder.put_value(format!("{number:016x}").as_bytes(), &value, None);
        }
        database.write(&builder.finish(), false).unwrap();
    }
}

/// Records a second.
fn rate(records: u64, work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    records as f64 / start.elapsed().as_secs_f64()
}
