//! Makes what a loop committed durable, on a thread beside it: the loop goes on reading, executing and answering meanwhile.
//!
//! A pass hands over what it committed as a group, with a number that grows. The thread syncs all that was handed over since
//! it looked last, so there is one fsync a prefix however many passes and clients wait. What waits for a group waits for all
//! before it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use parking_lot::{Condvar, Mutex};
use parovoz_dataplane_core::types::Sequence;

use super::Shared;
use crate::store::Wake as _;
use crate::store::prefix::Prefix;

/// What was committed to a prefix.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) prefix: Arc<Prefix>,
    pub(super) last: Sequence,
    /// Nothing else is waited for: its replies may go then.
    pub(super) release: bool,
}

/// Adds a part; those of one prefix become one.
pub(super) fn add_part(parts: &mut Vec<Part>, part: Part) {
    let same = |p: &&mut Part| p.release == part.release && Arc::ptr_eq(&p.prefix, &part.prefix);
    match parts.iter_mut().rev().find(same) {
        Some(known) => known.last = part.last,
        None => parts.push(part),
    }
}

/// What was handed over and not yet begun: at most two parts a prefix.
#[derive(Debug, Default)]
struct Waiting {
    parts: Vec<Part>,
    /// The last group handed over.
    number: u64,
    closed: bool,
}

#[derive(Debug, Default)]
struct Desk {
    waiting: Mutex<Waiting>,
    bell: Condvar,
    /// The last group that is durable.
    done: AtomicU64,
}

/// Hands groups to the thread, which ends with it.
#[derive(Debug)]
pub(super) struct Syncer {
    desk: Arc<Desk>,
}

impl Syncer {
    /// Starts the thread of a loop.
    pub(super) fn start(shared: Arc<Shared>, shard: usize) -> io::Result<Self> {
        let desk = Arc::new(Desk::default());
        let seen = desk.clone();
        std::thread::Builder::new().name(format!("sync-{shard}")).spawn(move || run(&shared, shard, &seen))?;
        Ok(Self { desk })
    }

    /// Hands a group over. Numbers grow.
    pub(super) fn hand_over(&self, number: u64, parts: &mut Vec<Part>) {
        let mut waiting = self.desk.waiting.lock();
        waiting.number = number;
        for part in parts.drain(..) {
            add_part(&mut waiting.parts, part);
        }
        drop(waiting);
        self.desk.bell.notify_one();
    }

    /// The last group that is durable.
    pub(super) fn done(&self) -> u64 {
        self.desk.done.load(Ordering::Acquire)
    }
}

impl Drop for Syncer {
    fn drop(&mut self) {
        self.desk.waiting.lock().closed = true;
        self.desk.bell.notify_one();
    }
}

fn run(shared: &Shared, shard: usize, desk: &Desk) {
    loop {
        let (number, parts) = {
            let mut waiting = desk.waiting.lock();
            while waiting.number == desk.done.load(Ordering::Relaxed) {
                if waiting.closed {
                    return;
                }
                desk.bell.wait(&mut waiting);
            }
            (waiting.number, std::mem::take(&mut waiting.parts))
        };
        for part in &parts {
            let started = Instant::now();
            if let Err(error) = part.prefix.sync() {
                // Nothing of the group is answered: nobody knows what is on disk.
                shared.fatal.end(&format!("sync prefix {}: {error}", part.prefix.name));
                return;
            }
            let micros = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
            shared.stats[shard].sync_micros.observe(micros);
            if part.release {
                part.prefix.release(part.last);
            }
        }
        desk.done.store(number, Ordering::Release);
        shared.inboxes[shard].wake();
    }
}
