//! Makes what a loop committed durable, on a few threads beside it: the loop goes on reading, executing and answering meanwhile.
//!
//! A pass hands over what it committed as a group, with a number that grows. Each prefix is synced by itself: what waits for
//! it is told as soon as it is durable, however long other disks or prefixes take. A prefix is in the hands of one thread at a
//! time, and what is committed to it meanwhile is one sync more: one fsync covers all that was committed before it, however
//! many passes and clients wait.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::{Condvar, Mutex};
use parovoz_dataplane_core::types::Sequence;

use super::Shared;
use crate::store::Wake as _;
use crate::store::prefix::Prefix;

/// Threads of one loop: a disk works on several fsyncs at once, but a few have nearly all of what there is to gain.
const THREADS: usize = 4;

/// What was committed to a prefix.
#[derive(Debug)]
pub(super) struct Part {
    /// The loop's number of the prefix.
    pub(super) index: usize,
    pub(super) prefix: Arc<Prefix>,
    /// Up to where replies wait for nothing else: they may go then.
    pub(super) release: Option<Sequence>,
}

/// What was handed over and not yet begun: one part a prefix.
#[derive(Debug, Default)]
struct Waiting {
    parts: HashMap<usize, Part>,
    /// Who came first is synced first.
    order: VecDeque<usize>,
    /// Prefixes that are being synced.
    in_hand: Vec<usize>,
    /// The last group handed over.
    number: u64,
    closed: bool,
}

impl Waiting {
    /// Adds a part; answers whether a thread may begin with it.
    fn add(&mut self, part: Part) -> bool {
        let index = part.index;
        match self.parts.get_mut(&index) {
            Some(known) => {
                known.release = known.release.max(part.release);
                false
            }
            None => {
                self.parts.insert(index, part);
                self.order.push_back(index);
                !self.in_hand.contains(&index)
            }
        }
    }

    /// The next prefix that nobody has in hand, and the group up to which its sync makes everything durable.
    fn take(&mut self) -> Option<(Part, u64)> {
        let place = self.order.iter().position(|index| !self.in_hand.contains(index))?;
        let part = self.parts.remove(&self.order.remove(place)?)?;
        self.in_hand.push(part.index);
        Some((part, self.number))
    }
}

#[derive(Debug, Default)]
struct Desk {
    waiting: Mutex<Waiting>,
    bell: Condvar,
    /// Prefixes and the groups up to which they became durable, since the loop looked last.
    done: Mutex<Vec<(usize, u64)>>,
}

/// Hands groups to the threads, which end with it.
#[derive(Debug)]
pub(super) struct Syncer {
    desk: Arc<Desk>,
}

impl Syncer {
    /// Starts the threads of a loop.
    pub(super) fn start(shared: &Arc<Shared>, shard: usize) -> io::Result<Self> {
        let syncer = Self { desk: Arc::new(Desk::default()) };
        for thread in 0..THREADS {
            let (shared, desk) = (shared.clone(), syncer.desk.clone());
            std::thread::Builder::new()
                .name(format!("sync-{shard}-{thread}"))
                .spawn(move || run(&shared, shard, &desk))?;
        }
        Ok(syncer)
    }

    /// Hands a group over. Numbers grow.
    pub(super) fn hand_over(&self, number: u64, parts: &mut Vec<Part>) {
        let mut waiting = self.desk.waiting.lock();
        waiting.number = number;
        let ready = parts.drain(..).filter_map(|part| waiting.add(part).then_some(())).count();
        drop(waiting);
        for _ in 0..ready.min(THREADS) {
            self.desk.bell.notify_one();
        }
    }

    /// Prefixes and the groups up to which they became durable since the last call.
    pub(super) fn take_done(&self) -> Vec<(usize, u64)> {
        std::mem::take(&mut *self.desk.done.lock())
    }
}

impl Drop for Syncer {
    fn drop(&mut self) {
        self.desk.waiting.lock().closed = true;
        self.desk.bell.notify_all();
    }
}

/// The next part, or `None` once there will be none any more.
fn next(desk: &Desk) -> Option<(Part, u64)> {
    let mut waiting = desk.waiting.lock();
    loop {
        if let Some(next) = waiting.take() {
            return Some(next);
        }
        if waiting.closed {
            return None;
        }
        desk.bell.wait(&mut waiting);
    }
}

fn run(shared: &Shared, shard: usize, desk: &Desk) {
    while let Some((part, number)) = next(desk) {
        let started = Instant::now();
        if let Err(error) = part.prefix.sync() {
            // Nothing of the group is answered: nobody knows what is on disk.
            shared.fatal.end(&format!("sync prefix {}: {error}", part.prefix.name));
            return;
        }
        let micros = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
        shared.stats[shard].sync_micros.observe(micros);
        if let Some(last) = part.release {
            part.prefix.release(last);
        }
        desk.done.lock().push((part.index, number));
        desk.waiting.lock().in_hand.retain(|index| *index != part.index);
        shared.inboxes[shard].wake();
    }
}
