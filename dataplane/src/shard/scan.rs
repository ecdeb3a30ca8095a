//! `SCAN`, `DBSIZE` and the counts that `INFO` shows, on a thread of their own: iterators would hold up a loop.
//!
//! A scan walks the prefixes in the order of their names and each in the order of its keys. A cursor is the number of an entry
//! in a table: which prefix, after which key. So every key that is there from the first step to the last is answered, once.
//! The table forgets its oldest entries; a forgotten cursor is an error, not a silent restart.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use parovoz_dataplane_core::command::glob::{self, Scope};
use parovoz_dataplane_core::command::key;
use parovoz_dataplane_core::resp::{Proto, Reply};
use parovoz_dataplane_core::types::Sequence;
use parovoz_dataplane_core::value;
use parovoz_engine::{Direction, Family};

use super::Shared;
use super::message::{Message, ReplyTo, Scanned};
use crate::clock;
use crate::store::prefix::Prefix;

/// Scans that may wait for the thread.
const TASKS_MAX: usize = 1024;
/// Cursors that are remembered.
const CURSORS_MAX: usize = 10_000;
/// Keys that one step looks at, whatever `COUNT` says.
const STEP_KEYS_MAX: u64 = 10_000;
/// Prefixes that one step looks into.
const STEP_PREFIXES_MAX: usize = 200;
/// Between two rounds in which prefixes are counted for `INFO`, and keys that one round looks at, about.
const ROUND: Duration = Duration::from_secs(10);
const ROUND_KEYS: u64 = 1_000_000;
/// How long after `INFO` asked a round may begin.
const ROUND_SOON: Duration = Duration::from_secs(1);

/// What is to be scanned.
#[derive(Debug)]
pub(super) enum Scanning {
    /// `DBSIZE`.
    Count,
    /// One step of `SCAN`.
    Keys {
        cursor: u64,
        pattern: Option<Vec<u8>>,
        count: u64,
        /// False if no key can be of the asked type.
        any: bool,
    },
}

/// One scan.
#[derive(Debug)]
pub(super) struct ScanTask {
    pub(super) to: ReplyTo,
    pub(super) proto: Proto,
    pub(super) now_ms: u64,
    pub(super) scanning: Scanning,
}

/// Where a scan goes on: at this key of this prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Cursor {
    prefix: Box<[u8]>,
    from: Vec<u8>,
}

/// Remembers cursors by number.
#[derive(Debug)]
struct Cursors {
    next: u64,
    known: HashMap<u64, Cursor>,
    order: VecDeque<u64>,
}

impl Cursors {
    /// Numbers begin at a random place, so that those of an earlier process are not mistaken, and stay below 2^53, so that
    /// every client can read them.
    fn new() -> Self {
        let start = u64::from(rand::random::<u32>() >> 12) << 32;
        Self { next: start + 1, known: HashMap::new(), order: VecDeque::new() }
    }

    fn keep(&mut self, cursor: Cursor) -> u64 {
        if self.order.len() >= CURSORS_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
        let id = self.next;
        self.next += 1;
        self.order.push_back(id);
        self.known.insert(id, cursor);
        id
    }
}

/// Takes scans.
#[derive(Debug, Clone)]
pub(super) struct Scanner {
    tasks: SyncSender<ScanTask>,
}

impl Scanner {
    /// Starts the thread; it ends when nobody can send tasks any more.
    pub(super) fn start(shared: Arc<Shared>) -> io::Result<Self> {
        let (tasks, queue) = sync_channel(TASKS_MAX);
        std::thread::Builder::new().name("scan".to_owned()).spawn(move || run(&shared, &queue))?;
        Ok(Self { tasks })
    }

    /// Hands over a scan; gives it back if too many wait.
    pub(super) fn submit(&self, task: ScanTask) -> Result<(), ReplyTo> {
        self.tasks.try_send(task).map_err(|e| match e {
            std::sync::mpsc::TrySendError::Full(task) | std::sync::mpsc::TrySendError::Disconnected(task) => task.to,
        })
    }
}

fn run(shared: &Shared, queue: &Receiver<ScanTask>) {
    let mut cursors = Cursors::new();
    let mut round = Round::default();
    loop {
        let pause = if round.is_under_way() { Duration::ZERO } else { ROUND_SOON };
        match queue.recv_timeout(pause) {
            Ok(task) => answer(shared, &mut cursors, task),
            Err(RecvTimeoutError::Timeout) => round.step(shared),
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

fn answer(shared: &Shared, cursors: &mut Cursors, task: ScanTask) {
    let mut bytes = Vec::new();
    let mut seen = Vec::new();
    let mut reply = Reply::new(&mut bytes, task.proto);
    let done = match &task.scanning {
        Scanning::Count => count_all(shared, task.now_ms, &mut seen).map(|n| reply.count(n)),
        Scanning::Keys { any: false, .. } => {
            page(&mut reply, 0, &[]);
            Ok(())
        }
        Scanning::Keys { cursor, pattern, count, .. } => {
            let mut step = Step::new(shared, pattern.as_deref(), *count, task.now_ms, &mut seen);
            step.run(cursors, *cursor).map(|next| page(&mut reply, next, &step.found))
        }
    };
    if let Err(error) = done {
        bytes.clear();
        Reply::new(&mut bytes, task.proto).error(&error);
    }
    shared.inboxes[task.to.shard].push(Message::Scanned(Box::new(Scanned { to: task.to, bytes, seen })));
}

/// Counts what changed since the last count, a prefix at a time while nobody wants to scan.
#[derive(Debug, Default)]
struct Round {
    left: Vec<Arc<Prefix>>,
    keys: u64,
    began: Option<Instant>,
}

impl Round {
    fn is_under_way(&self) -> bool {
        !self.left.is_empty() && self.keys < ROUND_KEYS
    }

    fn step(&mut self, shared: &Shared) {
        let now_ms = clock::wall_ms();
        if !self.is_under_way() {
            if self.began.is_some_and(|began| began.elapsed() < ROUND) {
                return;
            }
            // What the last round did not come to is first.
            if self.left.is_empty() {
                if !shared.counts.take_wanted() {
                    return;
                }
                let map = shared.store.prefixes();
                shared.counts.retain(|prefix| map.by_uuid.contains_key(&prefix));
                self.left = map.by_name.values().filter(|p| shared.counts.is_stale(p, now_ms)).cloned().collect();
            }
            (self.began, self.keys) = (Some(Instant::now()), 0);
        }
        if let Some(prefix) = self.left.pop() {
            match shared.counts.count(&prefix, now_ms, &mut Vec::new()) {
                Ok((_, looked_at)) => self.keys += looked_at,
                Err(error) => tracing::debug!(prefix = %prefix.name, error, "keys not counted"),
            }
        }
    }
}

fn page(reply: &mut Reply<'_>, next: u64, keys: &[Vec<u8>]) {
    reply.array(2);
    reply.bulk(next.to_string().as_bytes());
    reply.array(keys.len());
    for key in keys {
        reply.bulk(key);
    }
}

pub(super) type Seen = Vec<(Arc<Prefix>, Sequence)>;

/// Counts keys that have not expired, in all prefixes.
fn count_all(shared: &Shared, now_ms: u64, seen: &mut Seen) -> Result<u64, String> {
    let map = shared.store.prefixes();
    map.by_name.values().map(|prefix| Ok(shared.counts.count(prefix, now_ms, seen)?.0.keys)).sum()
}

/// One step of `SCAN`.
struct Step<'a> {
    shared: &'a Shared,
    pattern: Option<&'a [u8]>,
    scope: Scope,
    now_ms: u64,
    /// Keys that may still be looked at.
    left: u64,
    found: Vec<Vec<u8>>,
    seen: &'a mut Seen,
}

impl<'a> Step<'a> {
    fn new(shared: &'a Shared, pattern: Option<&'a [u8]>, count: u64, now_ms: u64, seen: &'a mut Seen) -> Self {
        let scope = pattern.map_or(Scope { prefix: None, start: Vec::new() }, glob::scope);
        Self { shared, pattern, scope, now_ms, left: count.clamp(1, STEP_KEYS_MAX), found: Vec::new(), seen }
    }

    /// Answers the cursor of the next step, 0 at the end.
    fn run(&mut self, cursors: &mut Cursors, cursor: u64) -> Result<u64, String> {
        let mut start = match cursor {
            0 => None,
            id => match cursors.known.get(&id) {
                Some(known) => Some(known.clone()),
                None => {
                    return Err(
                        "ERR unknown cursor: it is too old, or of another member; begin again with 0".to_owned()
                    );
                }
            },
        };
        let map = self.shared.store.prefixes();
        let mut names: Vec<_> =
            map.by_name.keys().filter(|n| self.scope.prefix.as_deref().is_none_or(|p| p == &***n)).collect();
        names.sort();
        let first = start.as_ref().map_or(0, |c| names.partition_point(|n| ***n < *c.prefix));
        for (looked_into, name) in names[first..].iter().enumerate() {
            let from = start.take().filter(|c| c.prefix == **name).map_or_else(|| self.scope.start.clone(), |c| c.from);
            if self.left == 0 || looked_into >= STEP_PREFIXES_MAX {
                return Ok(cursors.keep(Cursor { prefix: (**name).clone(), from }));
            }
            if let Some(from) = self.prefix(&map.by_name[*name], &from)? {
                return Ok(cursors.keep(Cursor { prefix: (**name).clone(), from }));
            }
        }
        Ok(0)
    }

    /// Looks into one prefix; answers the key to go on at if there may be more.
    fn prefix(&mut self, prefix: &Arc<Prefix>, from: &[u8]) -> Result<Option<Vec<u8>>, String> {
        // Skipping a prefix without an open copy would answer less than there is.
        let Some(copy) = prefix.copy() else {
            return Err(format!("LOADING prefix '{}' is being loaded on this member", prefix.name));
        };
        let snapshot = copy.db.snapshot();
        let name = prefix.name.as_str().as_bytes();
        let full = self.scope.prefix.is_some();
        let end = end_of(&self.scope.start);
        let mut next = None;
        let mut each = |rest: &[u8], stored: &[u8]| {
            if self.left == 0 {
                next = Some(rest.to_vec());
                return false;
            }
            self.left -= 1;
            if value::decode(stored).is_ok_and(|v| !v.is_expired(self.now_ms)) {
                let mut spelled = Vec::with_capacity(name.len() + rest.len() + 1);
                key::spell(name, rest, full, &mut spelled);
                if self.pattern.is_none_or(|p| glob::matches(p, &spelled)) {
                    self.found.push(spelled);
                }
            }
            true
        };
        snapshot.scan(Family::Data, from, &end, Direction::Forward, &mut each).map_err(|e| format!("ERR {e}"))?;
        self.seen.push((prefix.clone(), snapshot.sequence()));
        Ok(next)
    }
}

/// The smallest key above all that begin with `start`; empty = there is none.
fn end_of(start: &[u8]) -> Vec<u8> {
    let mut end = start.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return end;
        }
    }
    end
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_range_is_above_everything_in_it() {
        assert_eq!(end_of(b"ab"), b"ac");
        assert_eq!(end_of(b"a\xFF"), b"b");
        assert_eq!(end_of(b"\xFF"), b"");
        assert_eq!(end_of(b""), b"");
    }

    #[test]
    fn old_cursors_are_forgotten_and_never_another_ones() {
        let mut cursors = Cursors::new();
        let entry = |n: usize| Cursor { prefix: Box::default(), from: n.to_string().into_bytes() };
        let ids: Vec<u64> = (0..=CURSORS_MAX).map(|n| cursors.keep(entry(n))).collect();
        assert!(!cursors.known.contains_key(&ids[0]));
        assert_eq!(cursors.known[&ids[1]], entry(1));
        assert!(ids.iter().all(|id| *id > 0 && *id < 1 << 53));
        assert_eq!(cursors.known.len(), CURSORS_MAX);
    }
}
