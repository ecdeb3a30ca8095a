//! The driver: observe -> plan -> apply -> report, for each store that the queue names.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::{Stream, StreamExt};
use kube::runtime::controller::{Action, Config, Error as RuntimeError, applier};
use kube::{Client, Resource};
use parovoz_api::{ReplicatedStore, ReplicatedStoreStatus};
use parovoz_operator_core::observed::Observed;
use parovoz_operator_core::plan::{Plan, RoleLabels, SOON, plan};
use parovoz_operator_core::status::Failure;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::caches::{Caches, GuardedStore};
use crate::error::{Error, StoreRef};
use crate::http::Health;
use crate::member::Members;
use crate::metrics::{Metrics, PassResult};
use crate::steps::apply::{Applied, Tools, apply};
use crate::steps::lease::Leases;
use crate::steps::observe::{Sources, observe, store_facts};
use crate::steps::report::Reporter;

/// Longest pass over one store: its own requests are bounded, this bounds their sum.
const PASS_WITHIN: Duration = Duration::from_secs(90);

/// Passes over one store that may follow each other at once: as many as a reign needs, with some to spare.
const AT_ONCE: usize = 16;

/// How often the loop over all stores shows that it goes round.
const SIGN_OF_LIFE: Duration = Duration::from_secs(5);

/// Changes that come together are looked at together. No longer: a failover waits for it.
const TOGETHER: Duration = Duration::from_millis(5);

/// How soon something that the API server refused is tried again unchanged.
const AFTER_REFUSAL: Duration = Duration::from_secs(10);

/// What every pass works with.
pub struct Context {
    /// The API server.
    pub client: Client,
    /// What is watched.
    pub caches: Caches,
    /// Who is talked to.
    pub members: Arc<Members>,
    /// The Leases of the primaries.
    pub leases: Leases,
    /// What is told.
    pub reporter: Reporter,
    /// Metrics.
    pub metrics: Arc<Metrics>,
    /// Image for stores that name none.
    pub default_image: String,
}

/// One pass over a store.
///
/// # Errors
/// Something that the pass rests on failed; what was done until then stands, and the next pass observes anew.
pub async fn reconcile(store: &GuardedStore, context: &Context) -> Result<(Action, PassResult), Error> {
    let store = store.0.as_ref().map_err(|invalid| Error::Unreadable(invalid.error.clone()))?;
    let mut changed = false;
    let mut done = Done::default();
    let mut left = AT_ONCE;
    loop {
        let (observed, plan, mut applied) = match Box::pin(pass(store, context, &mut done)).await {
            Ok(done) => done,
            Err(error) => {
                if let Ok(facts) = store_facts(store, last_status(store, context)) {
                    context.reporter.failed(&context.metrics, &facts, &error).await;
                }
                return Err(error);
            }
        };
        if observed.store.deleting {
            return Ok((Action::requeue(Duration::from_secs(30)), PassResult::Settled));
        }
        left -= 1;
        changed |= !plan.changes_nothing();
        let answered = plan.orders.is_empty() || applied.ordered > 0;
        // What was refused does not hold the reign up; it is told by the last of these passes.
        let urgent = plan.urgent && answered;
        done.collect(&mut applied);
        if urgent && left > 0 {
            context.reporter.told(&observed, &plan).await;
            continue;
        }
        context.reporter.report(&context.metrics, &observed, &plan, &applied).await?;
        let result = if changed { PassResult::Changed } else { PassResult::Settled };
        return Ok((Action::requeue(pause(&observed, &plan, &applied, urgent)), result));
    }
}

/// When to look again.
fn pause(observed: &Observed, plan: &Plan, applied: &Applied, urgent: bool) -> Duration {
    if urgent {
        // It goes on at once all the same, after others had their turn.
        return Duration::from_millis(1);
    }
    if applied.again || plan.reign_write.is_some() || !plan.orders.is_empty() {
        return plan.requeue_after.min(SOON);
    }
    // What was refused for what it is will be refused again.
    let refused = !applied.failures.is_empty() && plan.can_rest(observed);
    if refused { plan.requeue_after.max(AFTER_REFUSAL) } else { plan.requeue_after }
}

/// What passes that followed each other at once have done already: the watches may not have told of it yet.
#[derive(Default)]
struct Done {
    objects: bool,
    labels: Vec<RoleLabels>,
    /// What could not be done in any of them.
    failures: Vec<Failure>,
    again: bool,
}

impl Done {
    /// Add what earlier passes could not do, for objects are tried in the first only.
    fn collect(&mut self, applied: &mut Applied) {
        let new = applied.failures.drain(..).filter(|failure| !self.failures.contains(failure)).collect::<Vec<_>>();
        self.failures.extend(new);
        self.again |= applied.again;
        (applied.failures, applied.again) = (self.failures.clone(), self.again);
    }

    fn leave_out(&mut self, plan: &mut Plan) {
        if std::mem::replace(&mut self.objects, true) {
            plan.objects.clear();
            plan.deletes.clear();
        }
        plan.labels.retain(|labels| !self.labels.contains(labels));
        for labels in &plan.labels {
            self.labels.retain(|before| before.pod != labels.pod);
            self.labels.push(labels.clone());
        }
    }
}

/// What this process wrote last about a store.
fn last_status(store: &ReplicatedStore, context: &Context) -> Option<ReplicatedStoreStatus> {
    store.metadata.uid.as_deref().and_then(|uid| context.reporter.last(uid))
}

/// Observe, plan, carry out.
async fn pass(store: &ReplicatedStore, context: &Context, done: &mut Done) -> Result<(Observed, Plan, Applied), Error> {
    let sources = Sources {
        client: &context.client,
        caches: &context.caches,
        members: &context.members,
        leases: &context.leases,
        default_image: &context.default_image,
    };
    let observed = observe(&sources, store, last_status(store, context)).await?;
    let mut plan = plan(&observed);
    done.leave_out(&mut plan);
    let tools = Tools { client: &context.client, members: &context.members, metrics: &context.metrics };
    let applied = apply(&tools, &observed, &plan).await?;
    Ok((observed, plan, applied))
}

async fn timed(store: Arc<GuardedStore>, context: Arc<Context>) -> Result<Action, Error> {
    let began = Instant::now();
    let done = match tokio::time::timeout(PASS_WITHIN, Box::pin(reconcile(&store, &context))).await {
        Ok(done) => done,
        Err(_) => Err(Error::Timeout(PASS_WITHIN)),
    };
    let seconds = began.elapsed().as_secs_f64();
    match done {
        Ok((action, result)) => {
            context.metrics.pass(result, seconds);
            Ok(action)
        }
        Err(error) => {
            context.metrics.pass(error.class().into(), seconds);
            let name = store.meta().name.as_deref().unwrap_or_default();
            let namespace = store.meta().namespace.as_deref().unwrap_or_default();
            tracing::warn!(store = name, namespace, class = ?error.class(), %error, "pass failed");
            Err(error)
        }
    }
}

/// Work on what the queue names until it is closed and the passes under way have ended.
pub async fn run(
    context: Arc<Context>,
    queue: mpsc::Receiver<StoreRef>,
    concurrency: u16,
    health: &Health,
    stop: impl Future<Output = ()>,
) {
    let requests = ReceiverStream::new(queue).take_until(stop).map(Ok::<_, std::convert::Infallible>);
    let config = Config::default().debounce(TOGETHER).concurrency(concurrency);
    let stores = context.caches.stores.clone();
    let passes = applier(
        |store, context| Box::pin(timed(store, context)),
        |_, error, _| Action::requeue(error.pause()),
        context.clone(),
        stores,
        requests,
        config,
    );
    drain(&context, health, passes).await;
}

async fn drain<E>(
    context: &Context,
    health: &Health,
    passes: impl Stream<Item = Result<(StoreRef, Action), RuntimeError<Error, E>>>,
) where
    E: std::error::Error + 'static,
{
    let mut passes = std::pin::pin!(passes);
    let mut tick = tokio::time::interval(SIGN_OF_LIFE);
    loop {
        // Passes go on only while they are polled here, and so does this sign of life.
        health.works();
        let pass = tokio::select! {
            pass = passes.next() => match pass {
                Some(pass) => pass,
                None => return,
            },
            _ = tick.tick() => continue,
        };
        // Failed passes were logged where they failed.
        if let Err(RuntimeError::ObjectNotFound(store)) = pass {
            gone(context, &store.name, store.namespace.as_deref().unwrap_or_default());
        }
    }
}

/// A store is gone: stop talking to its members.
fn gone(context: &Context, name: &str, namespace: &str) {
    context.members.forget(&StoreRef::new(name).within(namespace));
    context.metrics.store(format!("{namespace}/{name}"), None);
    let alive = context.caches.stores.state();
    let known = |uid: &str| alive.iter().any(|store| store.meta().uid.as_deref() == Some(uid));
    context.reporter.retain(&known);
    context.leases.retain(&known);
}
