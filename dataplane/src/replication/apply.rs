//! The threads that apply batches from the upstream. A prefix always goes to the same thread, so its order is kept.
//!
//! One pass drains what waits, then syncs each touched prefix once, then says so: fsyncs are shared, batches are not merged.
//! The queues are bounded by the session's credit, which the core checks for every frame.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use parovoz_dataplane_core::batch::{self, META_FAMILY, Record};
use parovoz_dataplane_core::follower::ReceivedBatch;
use parovoz_dataplane_core::history::EpochRecord;
use parovoz_dataplane_core::types::{Position, PrefixUuid};
use parovoz_engine::{EngineError, Severity};
use tokio::sync::{mpsc, oneshot};

use super::ReplicationCtx;
use super::ack_client::AckBoard;
use crate::store::prefix::{ApplyError, Prefix};
use crate::store::ring::RingEntry;

/// Apply threads: one is enough for one fast prefix, two keep a slow fsync from stopping everything.
const THREADS: usize = 2;
/// A pass ends after so many bytes or so long, so that acknowledgements do not wait for an endless stream.
const PASS_BYTES: u64 = 4 << 20;
const PASS_TIME: Duration = Duration::from_millis(5);

/// What the threads tell the session.
#[derive(Debug)]
pub(super) enum Report {
    Applied { prefix: PrefixUuid, cost: u64, busy_us: u64, pass_us: u64 },
    Failed { prefix: PrefixUuid, attempt: u64, at: Position, cost: u64 },
}

/// Ties batches to the session that they came from.
#[derive(Debug)]
pub(super) struct SessionLink {
    live: AtomicBool,
    reports: mpsc::UnboundedSender<Report>,
}

impl SessionLink {
    pub fn new() -> (Arc<Self>, mpsc::UnboundedReceiver<Report>) {
        let (reports, receiver) = mpsc::unbounded_channel();
        (Arc::new(Self { live: AtomicBool::new(true), reports }), receiver)
    }

    /// What still waits of this session is thrown away.
    pub fn end(&self) {
        self.live.store(false, Ordering::Release);
    }
}

#[derive(Debug)]
enum Job {
    /// Batches that came together; never empty.
    Apply {
        link: Arc<SessionLink>,
        prefix: Arc<Prefix>,
        batches: Vec<ReceivedBatch>,
    },
    Barrier(oneshot::Sender<()>),
}

/// See the module.
#[derive(Debug)]
pub(super) struct Appliers {
    queues: Mutex<Vec<Sender<Job>>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    /// How long each thread worked since its start, in microseconds.
    busy_us: Vec<Arc<AtomicU64>>,
}

impl Appliers {
    /// Starts the threads.
    ///
    /// # Errors
    /// The system refuses a thread.
    pub fn start(ctx: &Arc<ReplicationCtx>, acks: &Arc<AckBoard>) -> std::io::Result<Self> {
        let busy_us: Vec<Arc<AtomicU64>> = (0..THREADS).map(|_| Arc::default()).collect();
        let (mut queues, mut threads) = (Vec::new(), Vec::new());
        for (n, busy_us) in busy_us.iter().enumerate() {
            let (queue, jobs) = channel();
            let (ctx, acks, busy_us) = (ctx.clone(), acks.clone(), busy_us.clone());
            let thread = std::thread::Builder::new().name(format!("apply-{n}"));
            threads.push(thread.spawn(move || run(&ctx, &acks, &jobs, &busy_us))?);
            queues.push(queue);
        }
        Ok(Self { queues: Mutex::new(queues), threads: Mutex::new(threads), busy_us })
    }

    /// How long each thread worked since the start, in microseconds.
    pub fn busy_us(&self) -> Vec<u64> {
        self.busy_us.iter().map(|us| us.load(Ordering::Relaxed)).collect()
    }

    /// Hands batches to their prefix's thread.
    pub fn apply(&self, link: &Arc<SessionLink>, prefix: &Arc<Prefix>, batches: Vec<ReceivedBatch>) {
        let queues = self.queues.lock();
        let index = usize::from(prefix.uuid.0.as_bytes()[15]) % queues.len().max(1);
        if let Some(queue) = queues.get(index) {
            let (link, prefix) = (link.clone(), prefix.clone());
            // A thread ends only with the whole follower.
            let _ = queue.send(Job::Apply { link, prefix, batches });
        }
    }

    /// Waits until everything that was handed over before is applied or thrown away.
    pub async fn barrier(&self) {
        let waits: Vec<oneshot::Receiver<()>> = {
            let queues = self.queues.lock();
            queues
                .iter()
                .filter_map(|queue| {
                    let (tx, rx) = oneshot::channel();
                    queue.send(Job::Barrier(tx)).ok().map(|()| rx)
                })
                .collect()
        };
        for wait in waits {
            // An error means that the thread is gone, and with it everything that waited.
            let _ = wait.await;
        }
    }

    /// Ends the threads once their queues are empty; blocks.
    pub fn join(&self) {
        self.queues.lock().clear();
        for thread in self.threads.lock().drain(..) {
            // A panic in it was reported where it happened.
            let _ = thread.join();
        }
    }
}

fn run(ctx: &ReplicationCtx, acks: &AckBoard, jobs: &Receiver<Job>, busy_us: &AtomicU64) {
    while let Ok(job) = jobs.recv() {
        let started = Instant::now();
        let mut pass = Pass { ctx, bytes: 0, waited: Duration::ZERO, touched: HashMap::new(), barriers: Vec::new() };
        pass.take(job);
        while pass.bytes < PASS_BYTES && started.elapsed() < PASS_TIME {
            match jobs.try_recv() {
                Ok(job) => pass.take(job),
                Err(_) if pass.more_is_coming() => {
                    let since = Instant::now();
                    let next = jobs.recv_timeout(PASS_TIME.saturating_sub(started.elapsed()));
                    pass.waited += since.elapsed();
                    match next {
                        Ok(job) => pass.take(job),
                        Err(_) => break,
                    }
                }
                Err(_) => break,
            }
        }
        let waited_us = pass.finish(acks, started);
        busy_us.fetch_add(micros(started).saturating_sub(waited_us), Ordering::Relaxed);
    }
}

fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}

#[derive(Debug)]
struct Touched {
    prefix: Arc<Prefix>,
    link: Arc<SessionLink>,
    cost: u64,
    /// The attempt that failed, and the credit of what was thrown away since.
    failed: Option<(u64, u64)>,
}

/// One drain of a queue.
#[derive(Debug)]
struct Pass<'a> {
    ctx: &'a ReplicationCtx,
    bytes: u64,
    /// For jobs, while it had none.
    waited: Duration,
    touched: HashMap<PrefixUuid, Touched>,
    barriers: Vec<oneshot::Sender<()>>,
}

impl Pass<'_> {
    fn take(&mut self, job: Job) {
        match job {
            Job::Barrier(done) => self.barriers.push(done),
            Job::Apply { link, prefix, batches } => {
                if link.live.load(Ordering::Acquire) {
                    self.apply(&link, &prefix, batches);
                }
            }
        }
    }

    fn apply(&mut self, link: &Arc<SessionLink>, prefix: &Arc<Prefix>, batches: Vec<ReceivedBatch>) {
        let touched = self.touched.entry(prefix.uuid).or_insert_with(|| Touched {
            prefix: prefix.clone(),
            link: link.clone(),
            cost: 0,
            failed: None,
        });
        touched.link = link.clone();
        for batch in batches {
            if let Some((attempt, thrown)) = &mut touched.failed
                && *attempt == batch.attempt
            {
                *thrown += batch.cost;
                continue;
            }
            self.bytes += batch.bytes.len() as u64;
            let (attempt, cost) = (batch.attempt, batch.cost);
            match apply_one(self.ctx, prefix, batch) {
                Ok(()) => touched.cost += cost,
                Err(error) => {
                    tracing::warn!(prefix = %prefix.name, %error, "apply batch");
                    touched.failed = Some((attempt, cost));
                }
            }
        }
    }

    /// Whether an fsync now would be followed by another one right away: the upstream has more of what this pass touched.
    fn more_is_coming(&self) -> bool {
        self.barriers.is_empty()
            && self.ctx.syncs()
            && self
                .touched
                .values()
                .any(|t| t.failed.is_none() && t.prefix.upstream_latest().sequence > t.prefix.applied())
    }

    /// Syncs and says so; answers how long the pass waited, in microseconds.
    fn finish(self, acks: &AckBoard, started: Instant) -> u64 {
        let waited_us = u64::try_from(self.waited.as_micros()).unwrap_or(u64::MAX);
        let syncs = self.ctx.syncs();
        let mut synced = Vec::with_capacity(self.touched.len());
        for (uuid, touched) in self.touched {
            if syncs && let Err(error) = touched.prefix.sync() {
                self.ctx.member.fatal(&format!("sync prefix {}: {error}", touched.prefix.name));
                continue;
            }
            acks.mark(uuid);
            synced.push((uuid, touched));
        }
        let pass_us = micros(started).saturating_sub(waited_us);
        let total: u64 = synced.iter().map(|(_, touched)| touched.cost).sum();
        for (uuid, touched) in synced {
            // The session may be over; its successor asks the prefix itself where it is.
            if touched.cost > 0 {
                let share = u128::from(pass_us) * u128::from(touched.cost) / u128::from(total.max(1));
                let busy_us = u64::try_from(share).unwrap_or(pass_us);
                let report = Report::Applied { prefix: uuid, cost: touched.cost, busy_us, pass_us };
                let _ = touched.link.reports.send(report);
            }
            if let Some((attempt, cost)) = touched.failed {
                let at = touched.prefix.position_at(touched.prefix.applied());
                let _ = touched.link.reports.send(Report::Failed { prefix: uuid, attempt, at, cost });
            }
        }
        for barrier in self.barriers {
            // Whoever waited may have been cancelled.
            let _ = barrier.send(());
        }
        waited_us
    }
}

fn apply_one(ctx: &ReplicationCtx, prefix: &Prefix, batch: ReceivedBatch) -> Result<(), ApplyError> {
    // Only the first batch of an epoch carries an epoch record: others need not be searched.
    let record = if batch.epoch == prefix.newest_epoch() { None } else { epoch_record(&batch)? };
    let count = batch.count;
    let entry = RingEntry {
        epoch: batch.epoch,
        first: batch.first,
        count,
        bytes: batch.bytes,
        committed_at_ms: batch.committed_at_ms,
    };
    let applied = prefix.apply(entry.clone(), record).inspect_err(|error| {
        if let ApplyError::Engine(engine) = error
            && engine.severity() == Severity::Fatal
        {
            ctx.member.fatal(&format!("apply to prefix {}: {engine}", prefix.name));
        }
    });
    applied?;
    ctx.stats.records_applied.add(u64::from(count));
    ctx.stats.bytes_applied.add(entry.bytes.len() as u64);
    if prefix.name.is_catalogue()
        && let Err(cause) = ctx.catalogue.applied(prefix, &entry)
    {
        ctx.member.fatal(&format!("carry out catalogue records from {}: {cause}", entry.first));
    }
    Ok(())
}

/// The epoch record in a batch, if it has one.
fn epoch_record(batch: &ReceivedBatch) -> Result<Option<EpochRecord>, ApplyError> {
    let bad = |cause: String| ApplyError::Engine(EngineError::BadBatch { cause });
    for record in batch::records(&batch.bytes).map_err(|e| bad(e.to_string()))? {
        if let Record::Put { family: META_FAMILY, key, value } = record.map_err(|e| bad(e.to_string()))?
            && EpochRecord::is_key(key)
        {
            return EpochRecord::decode(key, value).map(Some).map_err(|e| bad(e.to_string()));
        }
    }
    Ok(None)
}
