//! How long opening many small databases takes: `open DIR DATABASES THREADS`. Makes them, with a few records each, if `DIR`
//! is empty.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use parovoz_dataplane_core::batch::BatchBuilder;
use parovoz_engine::rocks::{RocksEngine, RocksSettings};
use parovoz_engine::{Database, Engine, OpenSpec};

fn each(dirs: &[PathBuf], threads: usize, work: impl Fn(&Path) -> Arc<dyn Database> + Sync) -> Vec<Arc<dyn Database>> {
    let next = AtomicUsize::new(0);
    let opened = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(dir) = dirs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let db = work(dir);
                    opened.lock().unwrap().push(db);
                }
            });
        }
    });
    opened.into_inner().unwrap()
}

fn status(field: &str) -> String {
    let text = std::fs::read_to_string("/proc/self/status").unwrap();
    text.lines().find(|line| line.starts_with(field)).unwrap_or_default().to_owned()
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let (root, count, threads) =
        (Path::new(&arguments[1]), arguments[2].parse().unwrap(), arguments[3].parse().unwrap());
    let engine = RocksEngine::new(&RocksSettings::default()).unwrap();
    let dirs: Vec<PathBuf> = (0..count).map(|n: usize| root.join(format!("{n}"))).collect();
    if !dirs[0].exists() {
        std::fs::create_dir_all(root).unwrap();
        let begin = Instant::now();
        let made = each(&dirs, threads, |dir| {
            let db = engine.open(dir, &OpenSpec { sequence_offset: 0, create: true }).unwrap();
            let mut batch = BatchBuilder::new();
            batch.put_meta(b"epoch", b"one");
            for n in 0..10u32 {
                batch.put(&n.to_be_bytes(), &[7; 100]);
            }
            db.write(&batch.finish(), true).unwrap();
            db
        });
        println!("made {} in {} ms", made.len(), begin.elapsed().as_millis());
        // Like a kill: nothing is closed.
        std::process::exit(0);
    }
    let begin = Instant::now();
    let opened = each(&dirs, threads, |dir| engine.open(dir, &OpenSpec::default()).unwrap());
    println!("opened {} in {} ms, {}", opened.len(), begin.elapsed().as_millis(), status("VmRSS"));
    assert!(opened.iter().all(|db| db.latest().0 == 11));
    if let Ok(seconds) = std::env::var("STAY_SECONDS") {
        std::thread::sleep(std::time::Duration::from_secs(seconds.parse().unwrap()));
    }
    let begin = Instant::now();
    drop(opened);
    println!("closed in {} ms", begin.elapsed().as_millis());
}
