//! The bootstraps that wait, and how often each prefix may begin one.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;
use parovoz_dataplane_core::budget::{AttemptBudget, Backoff};
use parovoz_dataplane_core::follower::BootstrapCause;
use parovoz_dataplane_core::types::{DataUuid, PrefixUuid};
use tokio::sync::Notify;

use super::{BACKOFF, BootstrapError, HOUR_MS, PER_HOUR};
use crate::clock;
use crate::replication::client::jitter;
use crate::replication::progress::{BootstrapProgress, Meter};
use crate::store::Endpoint;

#[derive(Debug)]
struct Task {
    prefix: PrefixUuid,
    cause: BootstrapCause,
    meter: Arc<Meter>,
    backoff: Backoff,
    not_before_ms: u64,
    failures: u32,
    distrusted: Vec<DataUuid>,
}

/// A bootstrap that may be tried now.
#[derive(Debug)]
pub(super) struct Due {
    pub prefix: PrefixUuid,
    pub cause: BootstrapCause,
    pub meter: Arc<Meter>,
    /// Attempts at it that failed.
    pub failures: u32,
    /// Members whose copies were damaged.
    pub distrusted: Vec<DataUuid>,
}

/// The bootstraps that wait or are under way; at most one per prefix.
#[derive(Debug, Default)]
pub(in crate::replication) struct Bootstraps {
    tasks: Mutex<VecDeque<Task>>,
    budgets: Mutex<HashMap<PrefixUuid, AttemptBudget>>,
    /// Members that could not be reached, by address: each is asked again for all prefixes together, not for each of hundreds.
    resting: Mutex<HashMap<String, Rest>>,
    /// Whom the orders named last.
    upstream: Mutex<Option<Endpoint>>,
    pub(super) wake: Notify,
}

#[derive(Debug)]
struct Rest {
    backoff: Backoff,
    until_ms: u64,
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
                distrusted: Vec::new(),
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

    /// Whether one more copy of a prefix may begin; that takes nothing.
    pub(super) fn check_budget(&self, prefix: PrefixUuid) -> Result<(), BootstrapError> {
        let mut budgets = self.budgets.lock();
        let Some(budget) = budgets.get_mut(&prefix) else { return Ok(()) };
        budget.check(clock::boot_ms()).map_err(|wait_ms| BootstrapError::Budget { wait_ms })
    }

    /// A copy ended, well or for good.
    pub(super) fn charge(&self, prefix: PrefixUuid) {
        let mut budgets = self.budgets.lock();
        let budget = budgets.entry(prefix).or_insert_with(|| AttemptBudget::new(PER_HOUR, HOUR_MS));
        // A copy that went on was not asked whether there is one left.
        let _ = budget.take(clock::boot_ms());
    }

    /// Another upstream is another matter: nothing that concerned the old one makes its copies wait.
    pub(super) fn follow_orders(&self, upstream: Option<&Endpoint>) {
        let mut known = self.upstream.lock();
        if known.as_ref() == upstream {
            return;
        }
        let member = |endpoint: Option<&Endpoint>| endpoint.and_then(|e| e.data_uuid);
        let same_member = member(upstream).is_some() && member(known.as_ref()) == member(upstream);
        *known = upstream.cloned();
        if !same_member {
            self.budgets.lock().clear();
        }
        self.resting.lock().clear();
        for task in self.tasks.lock().iter_mut() {
            task.backoff.reset();
            (task.not_before_ms, task.failures) = (0, 0);
            task.distrusted.clear();
        }
    }

    /// Whether a member that could not be reached is left alone for now.
    pub(super) fn check_rest(&self, address: &str) -> Result<(), BootstrapError> {
        let until_ms = self.resting.lock().get(address).map_or(0, |rest| rest.until_ms);
        match until_ms.saturating_sub(clock::boot_ms()) {
            0 => Ok(()),
            wait_ms => Err(BootstrapError::Rests { address: address.to_owned(), wait_ms }),
        }
    }

    pub(super) fn unreachable(&self, address: &str) {
        let mut resting = self.resting.lock();
        let rest = resting.entry(address.to_owned()).or_insert_with(|| Rest { backoff: BACKOFF, until_ms: 0 });
        rest.until_ms = clock::boot_ms() + rest.backoff.next_ms(jitter());
    }

    pub(super) fn reached(&self, address: &str) {
        self.resting.lock().remove(address);
    }

    /// The first that may be tried now, or how long until there is one. The catalogue goes first: it says what else is due.
    /// Without the upstream none can be copied, from wherever: its hold is needed.
    pub(super) fn next(&self, first: PrefixUuid, upstream: Option<&Endpoint>, now_ms: u64) -> Result<Due, Option<u64>> {
        let rests_until = upstream.and_then(|u| self.resting.lock().get(&u.replication).map(|rest| rest.until_ms));
        let rests_ms = rests_until.unwrap_or(0).saturating_sub(now_ms);
        let tasks = self.tasks.lock();
        let due = tasks.iter().filter(|t| t.not_before_ms <= now_ms && rests_ms == 0);
        if let Some(task) = due.min_by_key(|t| t.prefix != first) {
            return Ok(Due {
                prefix: task.prefix,
                cause: task.cause,
                meter: task.meter.clone(),
                failures: task.failures,
                distrusted: task.distrusted.clone(),
            });
        }
        Err(tasks.iter().map(|t| t.not_before_ms.saturating_sub(now_ms).max(rests_ms)).min())
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
            if let BootstrapError::Damaged { source_member, .. } = error
                && !task.distrusted.contains(source_member)
            {
                task.distrusted.push(*source_member);
            }
            task.not_before_ms = clock::boot_ms() + error.pause_ms(&mut task.backoff);
            tasks.push_back(task);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use uuid::Uuid;

    const P: PrefixUuid = PrefixUuid(Uuid::from_u128(1));
    const Q: PrefixUuid = PrefixUuid(Uuid::from_u128(2));

    fn endpoint(address: &str) -> Endpoint {
        Endpoint { replication: address.into(), ..Endpoint::default() }
    }

    #[test]
    fn an_upstream_that_can_not_be_reached_is_not_tried_for_each_prefix() {
        let queue = Bootstraps::default();
        let upstream = endpoint("a:1");
        queue.follow_orders(Some(&upstream));
        queue.enqueue(P, BootstrapCause::Missing);
        queue.enqueue(Q, BootstrapCause::Missing);
        assert_eq!(queue.next(P, Some(&upstream), clock::boot_ms()).unwrap().prefix, P);
        for _ in 0..5 {
            queue.unreachable("a:1");
        }
        let wait = queue.next(P, Some(&upstream), clock::boot_ms()).unwrap_err().unwrap();
        assert!((1_000..=15_000).contains(&wait), "{wait}");
        assert!(matches!(queue.check_rest("a:1"), Err(BootstrapError::Rests { .. })));
        assert!(queue.check_rest("b:1").is_ok(), "another is asked");
        queue.reached("a:1");
        assert!(queue.next(P, Some(&upstream), clock::boot_ms()).is_ok());
    }

    #[test]
    fn another_upstream_owes_nothing_to_the_failures_of_the_old_one() {
        let queue = Bootstraps::default();
        let (old, new) = (endpoint("a:1"), endpoint("b:1"));
        queue.follow_orders(Some(&old));
        queue.enqueue(P, BootstrapCause::Missing);
        for _ in 0..PER_HOUR {
            assert!(queue.check_budget(P).is_ok());
            queue.charge(P);
        }
        let over = queue.check_budget(P).unwrap_err();
        queue.failed(P, &over);
        assert!(queue.next(P, Some(&old), clock::boot_ms()).is_err());
        queue.follow_orders(Some(&new));
        assert_eq!(queue.next(P, Some(&new), clock::boot_ms()).unwrap().failures, 0);
        assert!(queue.check_budget(P).is_ok());
    }
}
