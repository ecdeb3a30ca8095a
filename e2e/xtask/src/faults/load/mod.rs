//! The load: unique values written through the store's service on several connections, every acknowledgement with its time,
//! and registers that several connections read and write, whose history can be judged.

pub mod client;
pub mod history;
mod registers;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::cluster::layout::Node;
use crate::error::{Error, Result};

use super::inject::network;
use client::{Client, Failure, Route};
use history::{History, Outcome, PREFIXES, Write, key, value};

/// Connections that write unique values.
const WRITERS: usize = 10;
/// Writes of one connection in one round at most.
const MOST: u32 = 200_000;
/// Pause after a failure, so that a store without a primary is not flooded.
const AFTER_REFUSAL: Duration = Duration::from_millis(15);

/// What a load does with registers.
#[derive(Clone, Debug)]
pub enum Registers {
    /// It writes and reads its own.
    Own,
    /// It reads those that the load with this tag writes.
    ReadOf(String),
}

/// How a load is made.
#[derive(Clone)]
pub struct Plan {
    /// Tells its keys from those of every other load on the store.
    pub tag: String,
    /// In whose network its connections are.
    pub node: Node,
    /// Where the store is.
    pub route: Route,
    /// Writes a second, of all connections together.
    pub rate: u32,
    /// What is done with registers besides.
    pub registers: Registers,
}

/// What all threads of a load share.
pub struct Shared {
    stop: AtomicBool,
    begun: Instant,
    acked: AtomicU64,
    /// When each prefix last acknowledged a write, in microseconds since the load began; 0 = never.
    last: [AtomicU64; PREFIXES],
}

impl Shared {
    fn now(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }
}

/// A load that goes on until it is finished.
pub struct Load {
    plan: Plan,
    shared: Arc<Shared>,
    writers: Vec<JoinHandle<Result<Vec<Write>>>>,
    registers: Vec<JoinHandle<Result<registers::Part>>>,
}

impl Load {
    /// Starts it.
    pub fn start(plan: Plan) -> Self {
        let shared = Arc::new(Shared {
            stop: AtomicBool::new(false),
            begun: Instant::now(),
            acked: AtomicU64::new(0),
            last: std::array::from_fn(|_| AtomicU64::new(0)),
        });
        let writers = (0..WRITERS)
            .map(|connection| {
                let (plan, shared) = (plan.clone(), shared.clone());
                std::thread::spawn(move || write(&plan, &shared, connection))
            })
            .collect();
        let registers = registers::start(&plan, &shared);
        Self { plan, shared, writers, registers }
    }

    /// Tells its keys from others.
    pub fn tag(&self) -> &str {
        &self.plan.tag
    }

    /// Writes acknowledged so far.
    pub fn acked(&self) -> u64 {
        self.shared.acked.load(Ordering::SeqCst)
    }

    /// The beginning of its clock.
    pub fn begun(&self) -> Instant {
        self.shared.begun
    }

    /// Whether every prefix acknowledged a write after that moment.
    pub fn acknowledged_since(&self, moment: Instant) -> bool {
        let since = micros(moment.saturating_duration_since(self.shared.begun));
        self.shared.last.iter().all(|last| last.load(Ordering::SeqCst) > since)
    }

    /// Whether no prefix acknowledged a write after that moment.
    pub fn silent_since(&self, moment: Instant) -> bool {
        let since = micros(moment.saturating_duration_since(self.shared.begun));
        self.shared.last.iter().all(|last| last.load(Ordering::SeqCst) <= since)
    }

    /// Stops it. Returns what every connection saw.
    pub fn finish(mut self) -> Result<History> {
        self.shared.stop.store(true, Ordering::SeqCst);
        let mut history = History::new(self.plan.tag.clone(), self.shared.begun);
        for thread in self.writers.drain(..) {
            history.writes.push(join(thread)?);
        }
        for thread in self.registers.drain(..) {
            history.registers.extend(join(thread)?);
        }
        Ok(history)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
    }
}

fn join<T>(thread: JoinHandle<Result<T>>) -> Result<T> {
    thread.join().map_err(|_| Error::failed("a thread of the load panicked"))?
}

/// A span in microseconds.
pub fn micros(span: Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX)
}

/// Keeps to a rate; what was missed is not made up for.
struct Pace {
    interval: Duration,
    next: Instant,
}

impl Pace {
    fn new(rate: f64) -> Self {
        Self { interval: Duration::from_secs_f64(1.0 / rate.max(0.1)), next: Instant::now() }
    }

    fn wait(&mut self) {
        let now = Instant::now();
        if self.next > now {
            std::thread::sleep(self.next - now);
        }
        self.next = self.next.max(now) + self.interval;
    }
}

fn write(plan: &Plan, shared: &Shared, connection: usize) -> Result<Vec<Write>> {
    network::enter(plan.node)?;
    let mut client = Client::new(plan.route.clone());
    let mut pace = Pace::new(f64::from(plan.rate) / WRITERS as f64);
    let mut writes = Vec::new();
    for n in 0..MOST {
        pace.wait();
        if shared.stopped() {
            break;
        }
        let (key, value) = (key(&plan.tag, connection, n), value(&plan.tag, connection, n));
        let answer = client.call(|c| redis::cmd("SET").arg(&key).arg(&value).exec(c));
        let ended = shared.now();
        let outcome = match answer {
            Ok(()) => {
                shared.acked.fetch_add(1, Ordering::SeqCst);
                shared.last[n as usize % PREFIXES].fetch_max(ended, Ordering::SeqCst);
                Outcome::Acked
            }
            Err(failure) => {
                std::thread::sleep(AFTER_REFUSAL);
                if failure == Failure::Refused {
                    continue;
                }
                Outcome::Unknown
            }
        };
        writes.push(Write { n, ended, outcome });
    }
    Ok(writes)
}
