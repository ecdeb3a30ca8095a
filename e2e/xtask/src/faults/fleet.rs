//! Stores under test, several at a time, made when they are needed and kept for the next kind as long as they are well.

use super::env::{Env, Subject};
use super::gather;
use super::kinds::{Kind, Mode, Scope};
use super::load::history::History;
use super::round::{self, Round, Size, parallel_owned};
use super::summary::{Apart, Sum};
use crate::error::{Error, Result};

/// Kinds of answers to reads that are told of at most.
const REASONS: usize = 5;

/// How rounds are run.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// How the stores acknowledge.
    pub mode: Mode,
    /// Stores at a time.
    pub stores: usize,
    /// The loads.
    pub size: Size,
    /// Whether different kinds run at once, each on a store of its own, where a fault concerns only one store.
    pub mixed: bool,
}

/// So many rounds of one kind.
#[derive(Clone, Copy, Debug)]
pub struct Job {
    /// The fault.
    pub kind: Kind,
    /// How often, over all stores.
    pub rounds: usize,
}

/// The stores of one mode.
pub struct Fleets<'a> {
    env: &'a Env<'a>,
    setup: Setup,
    plain: Vec<Subject>,
    disks: Vec<Subject>,
    /// Numbers the stores, so that no name is used twice.
    made: usize,
}

/// What the rounds of one kind left on one store.
#[derive(Default)]
struct Past {
    store: String,
    histories: Vec<History>,
    lost: Vec<String>,
}

impl<'a> Fleets<'a> {
    /// None made yet.
    pub fn new(env: &'a Env<'a>, setup: Setup) -> Self {
        Self { env, setup, plain: Vec::new(), disks: Vec::new(), made: 0 }
    }

    /// Runs the jobs, whatever becomes of one of them; `done` hears of each.
    pub fn run(&mut self, jobs: &[Job], mut done: impl FnMut(Sum, Vec<Round>)) {
        let mixed = |job: &&Job| self.setup.mixed && job.kind.scope() == Scope::Store && job.rounds == 1;
        let (together, alone): (Vec<&Job>, Vec<&Job>) = jobs.iter().partition(mixed);
        for disks in [false, true] {
            let kinds: Vec<Kind> = together.iter().map(|j| j.kind).filter(|k| k.needs_disks() == disks).collect();
            for kinds in kinds.chunks(self.setup.stores.max(1)) {
                for (kind, result) in self.batch(kinds, 0) {
                    let (mut rounds, mut apart) = (Vec::new(), Vec::new());
                    self.sort(kind, result, &mut rounds, &mut apart);
                    done(Sum::of(kind, self.setup.mode, &rounds, &apart), rounds);
                }
            }
        }
        alone.into_iter().for_each(|job| self.job(job, &mut done));
    }

    fn job(&mut self, job: &Job, done: &mut impl FnMut(Sum, Vec<Round>)) {
        let (mut rounds, mut apart) = (Vec::new(), Vec::new());
        let mut past: Vec<Past> = Vec::new();
        let mut round = 0;
        while rounds.len() + apart.len() < job.rounds.max(1) {
            let left = job.rounds.max(1) - rounds.len() - apart.len();
            let stores = if job.kind.needs_one_store() { 1 } else { self.setup.stores.max(1) };
            let kinds = vec![job.kind; left.min(stores)];
            let before = rounds.len();
            for (kind, result) in self.batch(&kinds, round) {
                self.sort(kind, result, &mut rounds, &mut apart);
            }
            rounds[before..].iter_mut().for_each(|found| keep(found, &mut past));
            round += 1;
        }
        apart.extend(self.look_again(&past, job.kind));
        done(Sum::of(job.kind, self.setup.mode, &rounds, &apart), rounds);
    }

    fn sort(&self, kind: Kind, result: Result<Round>, rounds: &mut Vec<Round>, apart: &mut Vec<Apart>) {
        match result {
            Ok(found) => {
                self.tell(&found);
                rounds.push(found);
            }
            Err(e) => {
                self.env.ui.line(&format!("FAILED {} {}: {e}", kind.name(), self.setup.mode.name()));
                apart.push(Apart::unjudged(e.to_string()));
            }
        }
    }

    fn tell(&self, found: &Round) {
        let mark = if found.problems.is_empty() { "ok    " } else { "BAD   " };
        let phases: String = found.receipt.phases.iter().map(|(phase, ms)| format!(" {phase} {ms}")).collect();
        self.env.ui.line(&format!(
            "{mark} {} {} {}: gap {:.0} ms, {} acknowledged, {} unknown, {} lost, {} reads judged, {} failed, receipt {}{phases} ({:.0} s of load)",
            found.kind.name(),
            found.mode.name(),
            found.store,
            found.seen.gap.ms(),
            found.acked,
            found.unknown,
            found.lost,
            found.seen.reads,
            found.seen.failed_reads.values().sum::<usize>(),
            found.receipt.word,
            found.timeline.len() as f64 * round::BAR.as_secs_f64(),
        ));
        for (why, reads) in found.seen.failed_reads.iter().take(REASONS) {
            self.env.ui.line(&format!("       {reads} reads: {why}"));
        }
        found.problems.iter().for_each(|p| self.env.ui.line(&format!("       {p}")));
    }

    /// One round on each of so many stores, with a kind each; all the same where it concerns the cluster. What cannot even
    /// begin is a round that failed.
    fn batch(&mut self, kinds: &[Kind], round: usize) -> Vec<(Kind, Result<Round>)> {
        let Some(first) = kinds.first() else { return Vec::new() };
        let (disks, count) = (first.needs_disks(), kinds.len());
        let filled = self.fill(disks, count);
        let results = match filled.and_then(|()| self.perform(kinds, round)) {
            Ok(results) => results,
            Err(e) => {
                let told = e.to_string();
                kinds.iter().map(|kind| (*kind, Err(Error::failed(told.clone())))).collect()
            }
        };
        self.discard(disks, count, &results);
        results
    }

    fn perform(&self, kinds: &[Kind], round: usize) -> Result<Vec<(Kind, Result<Round>)>> {
        let Some(first) = kinds.first().copied() else { return Ok(Vec::new()) };
        let subjects: Vec<&Subject> = self.fleet(first.needs_disks()).iter().take(kinds.len()).collect();
        let (env, size) = (self.env, self.setup.size);
        match first.scope() {
            Scope::Cluster => {
                if first.needs_one_node() {
                    gather::primaries(env, first, &subjects, round)?;
                }
                Ok(round::run(env, first, &subjects, round, size).into_iter().map(|r| (first, r)).collect())
            }
            Scope::Store => {
                let one = |(kind, subject): (Kind, &Subject)| {
                    round::run(env, kind, &[subject], round, size).into_iter().next()
                };
                let all = parallel_owned(kinds.iter().copied().zip(subjects).collect(), |pair| Ok(one(pair)));
                let told = |(kind, result): (&Kind, Result<Option<Result<Round>>>)| match result {
                    Ok(Some(result)) => (*kind, result),
                    Ok(None) => (*kind, Err(Error::failed("the round did not begin"))),
                    Err(e) => (*kind, Err(e)),
                };
                Ok(kinds.iter().zip(all).map(told).collect())
            }
        }
    }

    /// Removes those of the first `count` stores that had trouble: they are no ground for the next round.
    fn discard(&mut self, disks: bool, count: usize, results: &[(Kind, Result<Round>)]) {
        let well: Vec<String> = results
            .iter()
            .filter_map(|(_, r)| r.as_ref().ok().filter(|r| r.problems.is_empty()).map(|r| r.store.clone()))
            .collect();
        let fleet = if disks { &mut self.disks } else { &mut self.plain };
        let (good, bad): (Vec<_>, Vec<_>) = std::mem::take(fleet)
            .into_iter()
            .enumerate()
            .partition(|(index, s)| *index >= count || well.contains(&s.store.name));
        *fleet = good.into_iter().map(|(_, s)| s).collect();
        for (_, subject) in bad {
            let name = subject.store.name.clone();
            if let Err(e) = subject.remove() {
                self.env.ui.line(&format!("       remove {name}: {e}"));
            }
        }
    }

    fn fleet(&self, disks: bool) -> &[Subject] {
        if disks { &self.disks } else { &self.plain }
    }

    fn fill(&mut self, disks: bool, count: usize) -> Result<()> {
        let missing = count.saturating_sub(self.fleet(disks).len());
        let names: Vec<String> = (0..missing)
            .map(|_| {
                self.made += 1;
                format!("{}{}{}", self.setup.mode.name(), if disks { "d" } else { "" }, self.made)
            })
            .collect();
        if names.is_empty() {
            return Ok(());
        }
        let (env, mode) = (self.env, self.setup.mode);
        let made = env.ui.step(&format!("make stores {}", names.join(" ")), |_| {
            Ok(parallel_owned(names.clone(), |name| env.subject(&name, mode, disks)))
        })?;
        let (made, failed): (Vec<_>, Vec<_>) = made.into_iter().partition(Result::is_ok);
        let fleet = if disks { &mut self.disks } else { &mut self.plain };
        fleet.extend(made.into_iter().flatten());
        failed.into_iter().find_map(Result::err).map_or(Ok(()), Err)
    }

    /// Looks everything up once more that the rounds of one kind wrote: a later round must not lose what an earlier left.
    fn look_again(&self, past: &[Past], kind: Kind) -> Vec<Apart> {
        let subjects = self.fleet(kind.needs_disks());
        let pairs = past.iter().filter_map(|p| Some((p, subjects.iter().find(|s| s.store.name == p.store)?)));
        let results = parallel_owned(pairs.filter(|(p, _)| p.histories.len() > 1).collect(), |(past, subject)| {
            let missing = super::verify::lookup(self.env, subject, &past.histories.iter().collect::<Vec<_>>())?;
            let new = missing.acked.keys().filter(|key| !past.lost.contains(key)).count();
            let what = format!("{}: {new} writes of earlier rounds are lost", past.store);
            Ok((new > 0).then_some(Apart { what, lost: new }))
        });
        let found = |r: Result<Option<Apart>>| r.unwrap_or_else(|e| Some(Apart::unjudged(e.to_string())));
        results.into_iter().filter_map(found).collect()
    }

    /// Removes all stores; what could not be removed.
    pub fn remove(self) -> Vec<Error> {
        let all: Vec<Subject> = self.plain.into_iter().chain(self.disks).collect();
        parallel_owned(all, Subject::remove).into_iter().filter_map(Result::err).collect()
    }
}

/// Moves what must be looked up again out of a round.
fn keep(found: &mut Round, past: &mut Vec<Past>) {
    if !past.iter().any(|p| p.store == found.store) {
        past.push(Past { store: found.store.clone(), ..Past::default() });
    }
    if let Some(of_store) = past.iter_mut().find(|p| p.store == found.store) {
        of_store.histories.append(&mut found.histories);
        of_store.lost.append(&mut found.lost_keys);
    }
}
