//! Writes that go on while a replica is rebuilt: a known series of records, at a bounded rate, every one acknowledged.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::resp::Client;

use super::data::Records;

const BATCH: usize = 250;
/// One batch in this time at most: 10,000 records a second.
const PACE: Duration = Duration::from_millis(25);
const MOST: usize = 2_000_000;

/// A thread that writes record 0, 1, 2 ... until it is stopped.
pub struct Writer {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicUsize>,
    thread: JoinHandle<Result<()>>,
    prefixes: Arc<Vec<String>>,
}

impl Writer {
    /// Starts it on a connection of its own to the primary.
    pub fn start(client: Client, prefixes: Vec<String>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let acknowledged = Arc::new(AtomicUsize::new(0));
        let prefixes = Arc::new(prefixes);
        let thread = {
            let (stop, acknowledged, prefixes) = (stop.clone(), acknowledged.clone(), prefixes.clone());
            std::thread::spawn(move || write(client, &stop, &acknowledged, &prefixes))
        };
        Self { stop, acknowledged, thread, prefixes }
    }

    /// How many are acknowledged so far; an error if writing stopped by itself.
    pub fn acknowledged(&self) -> Result<usize> {
        let count = self.acknowledged.load(Ordering::SeqCst);
        if self.thread.is_finished() && !self.stop.load(Ordering::SeqCst) {
            return Err(Error::failed(format!("the writes that should go on ended after {count} records")));
        }
        Ok(count)
    }

    /// Stops, and returns every record that was acknowledged.
    pub fn finish(self) -> Result<Records> {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.join().map_err(|_| Error::failed("the writing thread panicked"))??;
        Ok((0..self.acknowledged.load(Ordering::SeqCst)).map(|n| record(&self.prefixes, n)).collect())
    }
}

fn write(mut client: Client, stop: &AtomicBool, acknowledged: &AtomicUsize, prefixes: &[String]) -> Result<()> {
    let mut next = 0;
    while !stop.load(Ordering::SeqCst) {
        if next >= MOST {
            return Err(Error::failed(format!("write while a replica is rebuilt: {MOST} records, and it is not done")));
        }
        let begun = Instant::now();
        let batch: Vec<(String, Vec<u8>)> = (next..next + BATCH).map(|n| record(prefixes, n)).collect();
        client.write(batch.iter().map(|(k, v)| (k.as_bytes(), v.as_slice())), |_| {})?;
        next += BATCH;
        acknowledged.store(next, Ordering::SeqCst);
        std::thread::sleep(PACE.saturating_sub(begun.elapsed()));
    }
    Ok(())
}

fn record(prefixes: &[String], n: usize) -> (String, Vec<u8>) {
    let prefix = &prefixes[n % prefixes.len()];
    (format!("{prefix}:live/{n:08}"), format!("record {n} of those written during the copy; {:-<48}", "").into_bytes())
}
