//! One round: a load on a store, a fault, its end, and what is left of what was acknowledged.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::effect::{self, After};
use super::env::{Before, Env, MEMBERS, NAMESPACE, Problem, Subject, Target};
use super::kinds::{Kind, Mode};
use super::lag::{Sample, Sampler};
use super::load::client::Route;
use super::load::history::{History, Outcome, violation};
use super::load::{Load, Plan, Registers, micros};
use super::receipt::{self, Receipt};
use super::scripts::{self, recovers};
use super::seen::Seen;
use super::verify::{self, Missing};
use super::watch::ReignEvent;
use crate::cluster::layout::nodes;
use crate::error::{Error, Result};
use crate::kube::text;
use crate::poll;

/// How large the load of a round is.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Writes a second.
    pub rate: u32,
    /// Writes acknowledged at least.
    pub least: u64,
}

/// Numbers the rounds of this process, so that no key is used twice.
static ROUNDS: AtomicU64 = AtomicU64::new(1);
const WARM_LIMIT: Duration = Duration::from_secs(30);
const WARM: Duration = Duration::from_millis(1500);
const RECOVERY_LIMIT: Duration = Duration::from_secs(90);
/// What a fault still does after its command returned shows within this.
const SETTLE: Duration = Duration::from_secs(5);
/// A load that does not reach the least by then is too slow for it.
const LOAD_LIMIT: Duration = Duration::from_secs(180);
/// Width of a bar of the timeline.
pub const BAR: Duration = Duration::from_millis(100);

/// What is known of one round.
pub struct Round {
    /// The fault.
    pub kind: Kind,
    /// How the store acknowledged.
    pub mode: Mode,
    /// Which store.
    pub store: String,
    /// Writes acknowledged.
    pub acked: usize,
    /// Writes that were not answered.
    pub unknown: usize,
    /// Acknowledged and not there any more.
    pub lost: usize,
    /// Not answered, and not there.
    pub unanswered: usize,
    /// What clients saw.
    pub seen: Seen,
    /// Whether another primary leads now.
    pub moved: bool,
    /// What the store says of it.
    pub receipt: Receipt,
    /// Everything that is wrong.
    pub problems: Vec<Problem>,
    /// Acknowledgements in each tenth of a second.
    pub timeline: Vec<u32>,
    /// Seconds since the beginning, and what happened.
    pub marks: Vec<(f64, String)>,
    /// All that the loads saw, to be looked up again later.
    pub histories: Vec<History>,
    /// Keys that are known to be lost.
    pub lost_keys: Vec<String>,
}

/// A round under way.
struct Running<'a> {
    target: Target<'a>,
    sampler: Sampler,
}

/// Runs one round on each of these stores: all with the same fault.
pub fn run(env: &Env<'_>, kind: Kind, subjects: &[&Subject], round: usize, size: Size) -> Vec<Result<Round>> {
    let started: Vec<Result<Running<'_>>> = parallel(subjects, |s| start(env, s, round, size.rate));
    let (running, failed): (Vec<_>, Vec<_>) = started.into_iter().partition(Result::is_ok);
    let mut results: Vec<Result<Round>> = failed.into_iter().filter_map(Result::err).map(Err).collect();
    let running: Vec<Running<'_>> = running.into_iter().filter_map(Result::ok).collect();
    let targets: Vec<&Target<'_>> = running.iter().map(|r| &r.target).collect();
    if targets.is_empty() {
        return results;
    }
    let performed = scripts::perform(kind, env, &targets).map_err(|e| e.to_string());
    results.extend(parallel_owned(running, |r| finish(env, kind, r, &performed, size.least)));
    results
}

/// The same work for each, at once.
fn parallel<'a, T: Send>(subjects: &[&'a Subject], work: impl Fn(&'a Subject) -> Result<T> + Sync) -> Vec<Result<T>> {
    parallel_owned(subjects.to_vec(), work)
}

/// The same work for each, at once.
pub fn parallel_owned<I: Send, T: Send>(inputs: Vec<I>, work: impl Fn(I) -> Result<T> + Sync) -> Vec<Result<T>> {
    std::thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> = inputs.into_iter().map(|input| scope.spawn(move || work(input))).collect();
        threads.into_iter().map(|t| t.join().unwrap_or_else(|_| Err(Error::failed("a round panicked")))).collect()
    })
}

fn start<'a>(env: &Env<'_>, subject: &'a Subject, round: usize, rate: u32) -> Result<Running<'a>> {
    let before = subject.before(env)?;
    let name = &subject.store.name;
    let service = env.kube.json(&format!("get service {name}-rw -n {NAMESPACE}"))?;
    // Clients are where the primary is not, so that they stay in reach of the others.
    let node = nodes(env.count()?).find(|n| *n != before.node).unwrap_or(before.node);
    let load = Load::start(Plan {
        tag: format!("r{}", ROUNDS.fetch_add(1, Ordering::SeqCst)),
        node,
        route: Route { address: text(&service, "/spec/clusterIP").to_owned(), addresses: env.watch.addresses.clone() },
        rate,
        registers: Registers::Own,
    });
    warm(name, &load)?;
    // The first writes make prefixes. A replica that still copies one is no witness of what was acknowledged.
    subject.store.await_healthy(MEMBERS)?;
    warm(name, &load)?;
    let address = env.watch.addresses.of(&before.primary);
    let address = address.ok_or_else(|| Error::failed(format!("find {}: no address", before.primary)))?;
    let sampler = Sampler::start(node, address)?;
    Ok(Running { target: target(subject, load, before, round), sampler })
}

/// Waits until every prefix acknowledges, and has done so for a while.
fn warm(name: &str, load: &Load) -> Result<()> {
    let warm = Instant::now() + WARM;
    poll::until(&format!("writes to {name}"), WARM_LIMIT, Duration::from_millis(20), || {
        poll::ready(Instant::now() > warm && load.acknowledged_since(warm), || format!("{} so far", load.acked()))
    })
}

fn target(subject: &Subject, load: Load, before: Before, round: usize) -> Target<'_> {
    Target {
        subject,
        load,
        before,
        round,
        marks: Default::default(),
        isolated: Default::default(),
        problems: Default::default(),
        judged_from: Default::default(),
        judged_until: Default::default(),
    }
}

/// Lets the load go on until the store recovered and enough was acknowledged; says what did not come true.
fn await_recovery(target: &Target<'_>, least: u64) -> Vec<Problem> {
    let mut problems = Vec::new();
    if !recovers(target, Instant::now(), RECOVERY_LIMIT) {
        problems.push(Problem::Late(format!("no writes for {} s after the fault was over", RECOVERY_LIMIT.as_secs())));
    }
    std::thread::sleep(SETTLE);
    if !recovers(target, Instant::now(), RECOVERY_LIMIT) {
        problems.push(Problem::Late("writes ended again after the fault was over".into()));
    }
    let what = format!("{least} writes to {}", target.name());
    let enough = poll::until(&what, LOAD_LIMIT, Duration::from_millis(50), || {
        let acked = target.load.acked();
        poll::ready(acked >= least, || format!("{acked} acknowledged"))
    });
    problems.extend(enough.err().map(|e| Problem::Late(e.to_string())));
    problems
}

/// Ends the load once the store recovered, and looks all it wrote up.
fn finish(
    env: &Env<'_>,
    kind: Kind,
    running: Running<'_>,
    performed: &std::result::Result<(), String>,
    least: u64,
) -> Result<Round> {
    let Running { target, sampler } = running;
    let mut problems: Vec<Problem> = performed.as_ref().err().cloned().map(Problem::Late).into_iter().collect();
    problems.extend(await_recovery(&target, least));
    let Target { subject, load, before, marks, isolated, problems: noted, judged_from, judged_until, .. } = target;
    let samples = sampler.finish()?;
    let (begun, last) = (load.begun(), Instant::now());
    let mut histories = vec![load.finish()?];
    histories.extend(isolated.into_inner().unwrap_or_default());
    let marks = marks.into_inner().unwrap_or_default();
    problems.extend(noted.into_inner().unwrap_or_default());
    let since = |moment: Instant| micros(moment.saturating_duration_since(begun));
    let until = since(judged_until.into_inner().ok().flatten().unwrap_or(last));
    let from = judged_from.into_inner().ok().flatten().or_else(|| marks.first().map(|(at, _)| *at));
    let fault = since(from.unwrap_or(last));
    let seen = Seen::of(&histories[0], fault, until);
    problems.extend(seen.judge(kind, subject.mode));
    if let Some(what) = violation(&histories).filter(|_| subject.mode == Mode::Quorum) {
        problems.push(Problem::Broken(format!("reads at the primary are not linearizable: {what}")));
    }
    let missing = verify::lookup(env, subject, &histories.iter().collect::<Vec<_>>())?;
    let last_answer = begun + Duration::from_micros(histories[0].last_before_gap(fault, until));
    let bound = bound(&samples, &histories, last_answer);
    let receipt = receipt::judge(env, kind, subject, before.epoch, &missing, bound)?;
    problems.extend(receipt.problem.clone().map(|p| Problem::Broken(format!("receipt: {p}"))));
    problems.extend(wrong(subject.mode, &missing).into_iter().map(Problem::Broken));
    let (primary, epoch) = (subject.store.primary()?, subject.store.epoch()?);
    let name = subject.store.name.clone();
    let events = env.watch.since(&name, begun);
    let after = After { epoch, events: &events, receipt: &receipt.word };
    problems.extend(effect::judge(kind, subject.mode, &before, after));
    Ok(Round {
        kind,
        mode: subject.mode,
        acked: histories.iter().map(|h| h.count(Outcome::Acked)).sum(),
        unknown: histories.iter().map(|h| h.count(Outcome::Unknown)).sum(),
        lost: missing.acked.len(),
        unanswered: missing.unknown.len(),
        seen,
        moved: primary != before.primary,
        receipt,
        problems,
        timeline: timeline(&histories[0]),
        marks: story(marks, events, begun),
        store: name,
        histories,
        lost_keys: missing.acked.into_keys().collect(),
    })
}

/// What of the records is not as promised.
fn wrong(mode: Mode, missing: &Missing) -> Vec<String> {
    let some = |keys: &mut dyn Iterator<Item = &String>| keys.take(5).cloned().collect::<Vec<_>>().join(" ");
    let mut found = Vec::new();
    if mode == Mode::Quorum && !missing.acked.is_empty() {
        let keys = some(&mut missing.acked.keys());
        found.push(format!("{} acknowledged writes are lost: {keys} ...", missing.acked.len()));
    }
    if !missing.unequal.is_empty() {
        let keys = some(&mut missing.unequal.iter());
        found.push(format!("{} records differ between members: {keys} ...", missing.unequal.len()));
    }
    found
}

/// Everything that happened, in order, in seconds since the load began.
fn story(marks: Vec<(Instant, String)>, events: Vec<ReignEvent>, begun: Instant) -> Vec<(f64, String)> {
    let told = events.into_iter().map(|e| (e.at, format!("epoch {} {} ({})", e.epoch, e.phase, e.cause)));
    let mut all: Vec<(f64, String)> =
        marks.into_iter().chain(told).map(|(at, what)| (seconds(at, begun), what)).collect();
    all.sort_by(|a, b| a.0.total_cmp(&b.0));
    all
}

fn seconds(at: Instant, begun: Instant) -> f64 {
    at.saturating_duration_since(begun).as_secs_f64()
}

/// The lag last sampled while the old primary acknowledged, and what was acknowledged since: nothing older can be lost.
fn bound(samples: &[Sample], histories: &[History], last_answer: Instant) -> u64 {
    let Some(last) = samples.iter().rfind(|s| s.at < last_answer) else { return 0 };
    let (alone, inside) = histories.split_at(1.min(histories.len()));
    let between = |h: &History, end: u64| {
        let from = micros(last.at.saturating_duration_since(h.begun));
        h.acknowledgements(None).into_iter().filter(|t| (from..=end).contains(t)).count() as u64
    };
    let until = |h: &History| micros(last_answer.saturating_duration_since(h.begun));
    last.sequences
        + alone.iter().map(|h| between(h, until(h))).sum::<u64>()
        + inside.iter().map(|h| between(h, u64::MAX)).sum::<u64>()
}

fn timeline(history: &History) -> Vec<u32> {
    let width = micros(BAR).max(1);
    let times = history.acknowledgements(None);
    let mut bars = vec![0; usize::try_from(times.last().map_or(0, |t| t / width + 1)).unwrap_or(0)];
    for time in times {
        if let Some(bar) = usize::try_from(time / width).ok().and_then(|i| bars.get_mut(i)) {
            *bar += 1;
        }
    }
    bars
}
