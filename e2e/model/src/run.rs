//! Searches, one after the other, and what they came to.

use std::fmt::Write as _;
use std::time::Duration;

use serde::Serialize;

use crate::bounds::{self, Bounds};
use crate::clocks::{Clocks, What, lease_margin, promise_margin};
use crate::rules::{Kept, RULES, Rule};
use crate::search::{Found, Limits, search};
use crate::state::State;
use crate::steps::{Step, World};

/// One search, for people and programs.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// The configuration.
    pub bounds: String,
    /// The rule that was removed.
    pub without: Option<&'static str>,
    /// Distinct states.
    pub states: usize,
    /// Steps taken.
    pub steps: u64,
    /// Steps to the last of them.
    pub depth: u32,
    /// How long.
    pub milliseconds: u128,
    /// Whether all states within the bounds were seen.
    pub complete: bool,
    /// What was violated.
    pub violation: Option<&'static str>,
    /// The shortest way there.
    pub trace: Vec<String>,
}

/// Everything that was searched.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Report {
    /// With all rules.
    pub searches: Vec<Row>,
    /// With one removed each.
    pub rules: Vec<Row>,
}

/// What to do.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Configurations to search with all rules.
    pub bounds: Vec<Bounds>,
    /// Rules to remove, one after the other.
    pub rules: Vec<&'static Rule>,
    /// Where to remove them, instead of where each is known to be seen.
    pub elsewhere: Vec<Bounds>,
    /// Whether to print traces.
    pub traces: bool,
    /// For each search.
    pub limits: Limits,
}

/// At most 6 GB: 16 bytes a place, doubled when three quarters are used, and the states of two levels.
pub const LIMITS: Limits = Limits { states: 90_000_000, time: Duration::from_secs(1_800) };

/// Without the feature no rule of a core can be removed.
pub const CAN_REMOVE: bool = cfg!(feature = "mutants");

#[cfg(feature = "mutants")]
fn plant(rule: Option<&Rule>) -> Option<&'static str> {
    parovoz_mutant::plant(None);
    match rule?.kept {
        Kept::DataPlane(name) | Kept::Operator(name) => {
            parovoz_mutant::plant(Some(name));
            None
        }
        Kept::Shell(name) => Some(name),
    }
}

#[cfg(not(feature = "mutants"))]
fn plant(rule: Option<&Rule>) -> Option<&'static str> {
    match rule?.kept {
        Kept::Shell(name) => Some(name),
        Kept::DataPlane(_) | Kept::Operator(_) => None,
    }
}

/// Searches one configuration, with all rules or without one.
#[must_use]
pub fn one(bounds: Bounds, rule: Option<&Rule>, limits: Limits) -> Row {
    let mut world = World::new(bounds, plant(rule));
    let found = search(&mut world, limits);
    plant(None);
    row(bounds.name.to_owned(), rule.map(Rule::name), found, describe)
}

fn row<T, S>(bounds: String, without: Option<&'static str>, found: Found<T, S>, name: fn(&T, &S) -> String) -> Row {
    let (violation, trace) = found.violation.map_or((None, Vec::new()), |(what, trace)| (Some(what), trace));
    Row {
        bounds,
        without,
        states: found.states,
        steps: found.steps,
        depth: found.depth,
        milliseconds: found.time.as_millis(),
        complete: found.complete,
        violation,
        trace: trace.iter().map(|(step, state)| name(step, state)).collect(),
    }
}

fn describe(step: &Step, state: &State) -> String {
    let mut text = format!("{step:?}");
    let pad = 46_usize.saturating_sub(text.len());
    text.push_str(&" ".repeat(pad));
    for (i, pod) in state.pods.iter().enumerate() {
        let records: Vec<String> = (1..=pod.log.len())
            .map(|at| match pod.log.record(at) {
                r if r & 15 < 2 => format!("e{}", r >> 4),
                r => format!("{}w{}", r >> 4, (r & 15) - 2),
            })
            .collect();
        // Writing to a String cannot fail.
        let _ = write!(
            text,
            "  {i}:[{}] {}{}",
            records.join(" "),
            state.epoch(pod.promised),
            if pod.sealed == crate::state::NONE {
                String::new()
            } else {
                format!(" sealed {}", state.epoch(pod.sealed))
            }
        );
    }
    let _ = write!(text, "  acked {:b}", state.acked);
    text
}

/// The drifting clocks: how much drift each of the two rests on.
fn clocks() -> Vec<Row> {
    let drifts =
        [(What::Promise, 0), (What::Promise, promise_margin()), (What::Lease, 0), (What::Lease, lease_margin())];
    drifts
        .into_iter()
        .map(|(what, drift)| {
            let mut machine = Clocks::new(what, u32::try_from(drift).unwrap_or(0));
            let found = search(&mut machine, LIMITS);
            row(format!("clock {what:?} {}%", drift / 10).to_lowercase(), None, found, |step, state| {
                format!("{step:?}  {state:?}")
            })
        })
        .collect()
}

fn print(row: &Row, traces: bool) {
    let outcome = match (row.violation, row.complete) {
        (Some(what), _) => format!("{what}, in {} steps", row.trace.len()),
        (None, true) => "complete".to_owned(),
        (None, false) => "cut".to_owned(),
    };
    let name = row.without.map_or_else(|| row.bounds.clone(), |rule| format!("without {rule} ({})", row.bounds));
    println!(
        "{name:<52} {:>10} states  depth {:>2}  {:>7.1} s  {outcome}",
        row.states,
        row.depth,
        Duration::from_millis(u64::try_from(row.milliseconds).unwrap_or(0)).as_secs_f64()
    );
    if traces {
        row.trace.iter().enumerate().for_each(|(i, step)| println!("  {:>3} {step}", i + 1));
    }
}

/// Does it all, printing as it goes.
#[must_use]
pub fn all(plan: &Plan) -> Report {
    let mut report = Report::default();
    for bounds in &plan.bounds {
        let row = one(*bounds, None, plan.limits);
        print(&row, true);
        report.searches.push(row);
    }
    if !plan.bounds.is_empty() {
        let complete = plan.bounds.iter().zip(&report.searches).filter(|(_, row)| row.complete);
        let complete: Vec<Bounds> = complete.map(|(bounds, _)| *bounds).collect();
        bounds::together(&complete).iter().for_each(|line| println!("{line}"));
        for row in clocks() {
            print(&row, true);
            report.searches.push(row);
        }
    }
    for rule in &plan.rules {
        let known = bounds::parse(rule.seen_in).ok().filter(|_| plan.elsewhere.is_empty());
        for bounds in known.into_iter().chain(plan.elsewhere.iter().copied()) {
            let row = one(bounds, Some(rule), plan.limits);
            print(&row, plan.traces);
            report.rules.push(row);
        }
    }
    report
}

impl Report {
    /// Whether every state within the bounds was seen and nothing violated with all rules, and something without each.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.searches.iter().all(|row| row.complete && row.violation.is_none())
            && self.rules.iter().all(|row| row.violation.is_some())
    }

    /// The last line.
    #[must_use]
    pub fn summary(&self) -> String {
        let states: usize = self.searches.iter().map(|row| row.states).sum();
        let cut = self.searches.iter().filter(|row| !row.complete).count();
        let complete = if cut == 0 { "complete".to_owned() } else { format!("{cut} cut") };
        let violations = self.searches.iter().filter(|row| row.violation.is_some()).count();
        let matter = self.rules.iter().filter(|row| row.violation.is_some()).count();
        format!(
            "model: {states} states, {complete}, {violations} violations; {matter} of {} rules matter",
            self.rules.len()
        )
    }
}

/// The rule of this name.
#[must_use]
pub fn rule(name: &str) -> Option<&'static Rule> {
    RULES.iter().find(|rule| rule.name() == name)
}
