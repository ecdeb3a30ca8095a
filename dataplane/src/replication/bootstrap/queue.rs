//! The bootstraps that wait, and how often each prefix may begin one.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;
use parovoz_dataplane_core::budget::{AttemptBudget, Backoff};
use parovoz_dataplane_core::follower::BootstrapCause;
use parovoz_dataplane_core::types::PrefixUuid;
use tokio::sync::Notify;

use super::{BACKOFF, BootstrapError, HOUR_MS, PER_HOUR};
use crate::clock;
use crate::replication::progress::{BootstrapProgress, Meter};

#[derive(Debug)]
struct Task {
    prefix: PrefixUuid,
    cause: BootstrapCause,
    meter: Arc<Meter>,
    backoff: Backoff,
    not_before_ms: u64,
    failures: u32,
}

/// A bootstrap that may be tried now.
#[derive(Debug)]
pub(super) struct Due {
    pub prefix: PrefixUuid,
    pub cause: BootstrapCause,
    pub meter: Arc<Meter>,
    /// Attempts at it that failed.
    pub failures: u32,
}

/// The bootstraps that wait or are under way; at most one per prefix.
#[derive(Debug, Default)]
pub(in crate::replication) struct Bootstraps {
    tasks: Mutex<VecDeque<Task>>,
    budgets: Mutex<HashMap<PrefixUuid, AttemptBudget>>,
    pub(super) wake: Notify,
}

impl Bootstraps {
    /// Asks for one; a prefix that waits already keeps its place, but a divergence is never forgotten.
    pub fn enqueue(&self, prefix: PrefixUuid, cause: BootstrapCause) {
        let mut tasks = self.tasks.lock();
        match tasks.iter_mut().find(|t| t.prefix == prefix) {
            Some(task) => {
                if !matches!(task.cause, BootstrapCause::Diverged { .. }) {
                    task.cause = cause;
                }
                task.not_before_ms = 0;
            }
            None => tasks.push_back(Task {
                prefix,
                cause,
                meter: Arc::new(Meter::default()),
                backoff: BACKOFF,
                not_before_ms: 0,
                failures: 0,
            }),
        }
        self.wake.notify_one();
    }

    pub fn contains(&self, prefix: PrefixUuid) -> bool {
        self.tasks.lock().iter().any(|t| t.prefix == prefix)
    }

    pub fn reset_budget(&self, prefix: PrefixUuid) {
        self.budgets.lock().remove(&prefix);
    }

    pub fn progress(&self) -> HashMap<PrefixUuid, BootstrapProgress> {
        self.tasks.lock().iter().map(|t| (t.prefix, t.meter.read())).collect()
    }

    pub(super) fn take_budget(&self, prefix: PrefixUuid) -> Result<(), BootstrapError> {
        let mut budgets = self.budgets.lock();
        let budget = budgets.entry(prefix).or_insert_with(|| AttemptBudget::new(PER_HOUR, HOUR_MS));
        budget.take(clock::boot_ms()).map_err(|wait_ms| BootstrapError::Budget { wait_ms })
    }

    /// The first that may be tried now, or how long until there is one. The catalogue goes first: it says what else is due.
    pub(super) fn next(&self, first: PrefixUuid, now_ms: u64) -> Result<Due, Option<u64>> {
        let tasks = self.tasks.lock();
        let due = tasks.iter().filter(|t| t.not_before_ms <= now_ms);
        if let Some(task) = due.min_by_key(|t| t.prefix != first) {
            let (prefix, cause, meter, failures) = (task.prefix, task.cause, task.meter.clone(), task.failures);
            return Ok(Due { prefix, cause, meter, failures });
        }
        Err(tasks.iter().map(|t| t.not_before_ms - now_ms).min())
    }

    pub(super) fn done(&self, prefix: PrefixUuid) {
        self.tasks.lock().retain(|t| t.prefix != prefix);
    }

    /// Puts a failed one behind the others.
    pub(super) fn failed(&self, prefix: PrefixUuid, error: &BootstrapError) {
        let mut tasks = self.tasks.lock();
        if let Some(at) = tasks.iter().position(|t| t.prefix == prefix)
            && let Some(mut task) = tasks.remove(at)
        {
            task.failures = task.failures.saturating_add(1);
            task.not_before_ms = clock::boot_ms() + error.pause_ms(&mut task.backoff);
            tasks.push_back(task);
        }
    }
}
