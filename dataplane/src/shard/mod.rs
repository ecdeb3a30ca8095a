//! The Redis port, and the writers of all prefixes: few event loops, each of which owns connections and prefixes.
//!
//! A pass of a loop: take messages, read every ready connection, execute all that arrived, commit one batch a touched prefix,
//! then write all replies. What another loop owns is forwarded and answered back; the order of replies per connection is kept
//! by holes in its output. A connection whose requests all belong to another loop moves there.
//!
//! Files: `event_loop` (passes and sockets), `dispatch` (from a request to who executes it), `session` (commands that concern
//! no key), `exec` (the prefixes), `conn` and `message` (what is passed around), `scan` (long reads, on a thread of their own).

mod cache;
mod clients;
mod conn;
mod counts;
mod dispatch;
mod event_loop;
mod exec;
mod info;
mod message;
mod pending;
mod relay;
mod scan;
mod session;
pub mod stats;
mod syncer;

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use parovoz_dataplane_core::types::{PrefixUuid, Sequence};
use tokio::sync::{Semaphore, oneshot};

use self::clients::Clients;
use self::event_loop::{EventLoop, Listening};
use self::message::{CALLS_MAX, Call, CallReply, Inbox, Message};
use self::stats::ShardStats;
use crate::clock;
use crate::config::RunArgs;
use crate::run::FatalSwitch;
use crate::store::prefix::Prefix;
use crate::store::{Store, Wake};

pub use self::message::{Answer, BatchOp, CallError, Request, Value};

/// Between two looks of a call at whether writes are still frozen.
pub(crate) const FROZEN_LOOK: Duration = Duration::from_millis(2);
/// A loop that has run no pass for so long hangs.
const STUCK_MS: u64 = 10_000;

/// Counts followers, for `WAIT`, `ROLE` and `INFO`.
pub trait FollowerCount: Send + Sync {
    /// How many followers have acknowledged `sequence` of a prefix.
    fn acked(&self, prefix: PrefixUuid, sequence: Sequence) -> usize;
    /// How many followers are connected.
    fn connected(&self) -> usize;
}

/// What all loops share.
pub(crate) struct Shared {
    store: Arc<Store>,
    stats: Box<[ShardStats]>,
    inboxes: Box<[Arc<Inbox>]>,
    clients: Clients,
    followers: OnceLock<Arc<dyn FollowerCount>>,
    fatal: FatalSwitch,
    max_connections: usize,
    /// Budget of one loop's object cache.
    cache_bytes: usize,
    port: u16,
    started_ms: u64,
    /// Bytes that connections hold of requests that have not arrived whole.
    input_bytes: AtomicUsize,
    /// Bytes of replies that connections hold, or that are on their way between loops.
    output_bytes: AtomicUsize,
    stopping: AtomicBool,
    /// Per loop: it owes nobody anything; only said while stopping.
    drained: Box<[AtomicBool]>,
    /// Per loop: `boot_ms` of its last pass.
    beats: Box<[AtomicU64]>,
    /// Per loop: `boot_ms` since which its oldest reply has been waiting for replicas; 0 = none waits.
    waiting_since: Box<[AtomicU64]>,
    calls: Arc<Semaphore>,
    counts: counts::Counts,
    relays: relay::Relays,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("loops", &self.inboxes.len()).finish_non_exhaustive()
    }
}

/// Why the loops can't be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The port can't be listened on.
    #[error("listen on {address}: {cause}")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// Why.
        cause: io::Error,
    },
    /// A loop's poll or thread.
    #[error("start event loop {number}: {cause}")]
    Loop {
        /// Which.
        number: usize,
        /// Why.
        cause: io::Error,
    },
}

/// The running loops.
#[derive(Debug)]
pub struct Shards {
    shared: Arc<Shared>,
    address: SocketAddr,
    ended: Receiver<usize>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

/// What other threads use the loops by.
#[derive(Debug, Clone)]
pub struct ShardsHandle {
    shared: Arc<Shared>,
}

impl Shards {
    /// Starts `loops` loops (at least one) and listens on the Redis port. `Prefix::shard` must be below `loops`.
    ///
    /// # Errors
    /// See [`StartError`].
    pub fn start(store: Arc<Store>, args: &RunArgs, loops: usize, fatal: FatalSwitch) -> Result<Self, StartError> {
        let loops = loops.max(1);
        let address = SocketAddr::new(args.listen, args.resp_port);
        let listener = listen(address).map_err(|cause| StartError::Listen { address, cause })?;
        let address = listener.local_addr().map_err(|cause| StartError::Listen { address, cause })?;
        let mut polls = Vec::with_capacity(loops);
        let mut inboxes = Vec::with_capacity(loops);
        for number in 0..loops {
            let (poll, inbox) = event_loop::poll().map_err(|cause| StartError::Loop { number, cause })?;
            polls.push(poll);
            inboxes.push(Arc::new(inbox));
        }
        store.set_loops(inboxes.iter().map(|i| i.clone() as Arc<dyn Wake>).collect());
        let now = clock::boot_ms();
        let relays = relay::Relays::new(store.clone(), args.max_connections);
        let shared = Arc::new(Shared {
            store,
            stats: (0..loops).map(|_| ShardStats::default()).collect(),
            inboxes: inboxes.into(),
            clients: Clients::default(),
            followers: OnceLock::new(),
            fatal,
            max_connections: args.max_connections,
            cache_bytes: args.object_cache_bytes / loops,
            port: address.port(),
            started_ms: now,
            input_bytes: AtomicUsize::new(0),
            output_bytes: AtomicUsize::new(0),
            stopping: AtomicBool::new(false),
            drained: (0..loops).map(|_| AtomicBool::new(false)).collect(),
            waiting_since: (0..loops).map(|_| AtomicU64::new(0)).collect(),
            beats: (0..loops).map(|_| AtomicU64::new(now)).collect(),
            calls: Arc::new(Semaphore::new(CALLS_MAX)),
            counts: counts::Counts::default(),
            relays,
        });
        let scanner = scan::Scanner::start(shared.clone()).map_err(|cause| StartError::Loop { number: 0, cause })?;
        let (ends, ended) = mpsc::channel();
        let mut listener = Some(listener);
        let mut threads = Vec::with_capacity(loops);
        for (number, poll) in polls.into_iter().enumerate() {
            // One loop accepts and hands out in turn: the kernel's own distribution leaves loops idle.
            let listening = listener.take().map(Listening::new);
            let event_loop = EventLoop::new(shared.clone(), number, poll, listening, scanner.clone())
                .map_err(|cause| StartError::Loop { number, cause })?;
            threads.push(spawn(event_loop, number, ends.clone()).map_err(|cause| StartError::Loop { number, cause })?);
        }
        Ok(Self { shared, address, ended, threads })
    }

    /// What other threads use the loops by.
    #[must_use]
    pub fn handle(&self) -> ShardsHandle {
        ShardsHandle { shared: self.shared.clone() }
    }

    /// Where the Redis port listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends the loops: no new connections or requests, what was executed is answered as far as clients take it. Answers
    /// whether all loops ended within `deadline`.
    pub fn stop(&mut self, deadline: Duration) -> bool {
        self.shared.stopping.store(true, Ordering::Release);
        self.shared.relays.end();
        for inbox in &self.shared.inboxes {
            inbox.wake();
        }
        let until = Instant::now() + deadline;
        let mut left = self.threads.len();
        while left > 0 {
            match self.ended.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(_) => left -= 1,
                Err(_) => {
                    tracing::warn!(left, "event loops did not end in time");
                    return false;
                }
            }
        }
        self.shared.relays.stop();
        for thread in self.threads.drain(..) {
            // A panic was logged by the hook; there is nothing more to end.
            let _ = thread.join();
        }
        true
    }
}

fn listen(address: SocketAddr) -> io::Result<mio::net::TcpListener> {
    let socket = socket2::Socket::new(socket2::Domain::for_address(address), socket2::Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(1024)?;
    Ok(mio::net::TcpListener::from_std(socket.into()))
}

fn spawn(event_loop: EventLoop, number: usize, ended: Sender<usize>) -> io::Result<std::thread::JoinHandle<()>> {
    std::thread::Builder::new().name(format!("loop-{number}")).spawn(move || {
        event_loop.run();
        // Nobody listens if the process is ending already.
        let _ = ended.send(number);
    })
}

impl ShardsHandle {
    /// Counters, one per loop.
    #[must_use]
    pub fn stats(&self) -> &[ShardStats] {
        &self.shared.stats
    }

    /// A loop that has run no pass for too long, and for how many milliseconds.
    #[must_use]
    pub fn stuck(&self) -> Option<(usize, u64)> {
        let now = clock::boot_ms();
        let silence = self.shared.beats.iter().map(|b| now.saturating_sub(b.load(Ordering::Acquire)));
        silence.enumerate().max_by_key(|(_, ms)| *ms).filter(|(_, ms)| *ms > STUCK_MS)
    }

    /// For how many milliseconds the oldest write has been waiting for replicas; 0 = none waits.
    #[must_use]
    pub fn oldest_wait_ms(&self) -> u64 {
        let since = self.shared.waiting_since.iter().map(|since| since.load(Ordering::Acquire));
        since.filter(|since| *since > 0).min().map_or(0, |since| clock::boot_ms().saturating_sub(since))
    }

    /// Sets who counts followers; once, at start.
    pub fn set_followers(&self, followers: Arc<dyn FollowerCount>) {
        let _ = self.shared.followers.set(followers);
    }

    fn must_wait(&self, request: &Request) -> bool {
        let gate = &self.shared.store.gate;
        let now = clock::boot_ms();
        let reads = matches!(request, Request::Get { .. } | Request::Has { .. });
        let open = if reads { gate.may_read(now) } else { gate.may_acknowledge(now) };
        if !reads && now < gate.frozen_until_ms() {
            return true;
        }
        let role = self.shared.store.role();
        ((role.is_primary || role.fenced) && gate.is_ending(now))
            || (now < gate.held_until_ms() && (role.fenced || (role.is_primary && !open)))
    }

    /// Has a prefix's loop execute a request. Waits while too many are under way.
    ///
    /// # Errors
    /// See [`CallError`]. Dropping the future leaves a write's outcome unknown.
    pub async fn call(&self, prefix: &Prefix, request: Request) -> Result<Answer, CallError> {
        let stopped = || CallError::Unavailable("the member is stopping".to_owned());
        let permit = self.shared.calls.clone().acquire_owned().await.map_err(|_| stopped())?;
        if self.shared.stopping.load(Ordering::Acquire) {
            return Err(stopped());
        }
        let inbox = self.shared.inboxes.get(prefix.shard).ok_or_else(stopped)?;
        // Frozen writes wait, in no loop's way, and so does everything while the reign changes.
        while self.must_wait(&request) {
            tokio::time::sleep(FROZEN_LOOK).await;
        }
        let (sender, answer) = oneshot::channel();
        inbox.push(Message::Call(Box::new(Call {
            prefix: prefix.uuid,
            request,
            reply: CallReply::new(sender, permit),
        })));
        // A dropped sender means that the loop ended with the request in its inbox or executed.
        answer.await.unwrap_or(Err(CallError::Unknown("the member stopped before it answered")))
    }
}

#[cfg(test)]
mod tests;
