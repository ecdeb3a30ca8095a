//! Many seeds, on all processors, each thread with seeds of its own; and the planted bugs, one after the other.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::json;

use crate::coverage::{Coverage, WANTED};
use crate::faults::Fault;
use crate::run::{Outcome, RESTLESS, run as run_seed};

/// From so many seeds on everything wanted must have been seen.
const COVERED_BY: u64 = 20_000;
/// Within so many seeds a planted bug must be found.
#[cfg(feature = "mutants")]
const FOUND_BY: u64 = 10_000;

/// What is asked for.
#[derive(Debug, Clone, Default)]
pub struct Options {
    pub seeds: u64,
    pub seed: Option<u64>,
    pub first: Option<u64>,
    pub faults: Vec<String>,
    pub mutant: Option<String>,
    pub json: bool,
    pub jobs: Option<usize>,
}

#[derive(Debug, Default)]
struct Sum {
    seeds: u64,
    operations: u64,
    acknowledged: u64,
    faults: u64,
    events: u64,
    reigns: u64,
    coverage: Coverage,
    /// Seed and violation of each failure, at most a few.
    failures: BTreeMap<u64, String>,
    /// Seed and reason of each that told too little.
    thin: BTreeMap<u64, String>,
}

impl Sum {
    fn add(&mut self, outcome: Outcome) {
        self.seeds += 1;
        self.operations += outcome.operations;
        self.acknowledged += outcome.acknowledged;
        self.faults += outcome.faults;
        self.events += outcome.events;
        self.reigns += outcome.reigns;
        self.coverage.add(&outcome.coverage);
        if let Some(violation) = outcome.violation {
            self.failures.insert(outcome.seed, violation);
        } else if let Some(why) = outcome.thin {
            self.thin.insert(outcome.seed, why);
        }
    }
}

/// The kinds of faults to run with.
fn kinds(names: &[String]) -> Result<Vec<Fault>, String> {
    if names.is_empty() {
        return Ok(Fault::ALL.to_vec());
    }
    let known = || Fault::ALL.iter().map(|f| f.name()).collect::<Vec<_>>().join(", ");
    let parse = |name: &String| Fault::parse(name).ok_or_else(|| format!("no fault {name:?}; there are {}", known()));
    names.iter().map(parse).collect()
}

/// Runs seeds until `seeds` are done or, if asked to, one fails.
fn many(first: u64, seeds: u64, faults: &[Fault], jobs: usize, stop_at_failure: bool, progress: bool) -> Sum {
    let (next, stop, sum) = (AtomicU64::new(0), AtomicBool::new(false), Mutex::new(Sum::default()));
    let told = Mutex::new(Instant::now());
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                loop {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    if i >= seeds || stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let outcome = run_seed(first.wrapping_add(i), faults, false);
                    let failed = outcome.violation.is_some();
                    if let (Some(violation), true) = (&outcome.violation, progress) {
                        let seed = outcome.seed;
                        eprintln!(
                            "seed {seed}: {violation}\n  again, with all that happens: cargo xtask sim --seed {seed}"
                        );
                    }
                    let mut sum = sum.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                    sum.add(outcome);
                    if failed && (stop_at_failure || sum.failures.len() >= 20) {
                        stop.store(true, Ordering::Relaxed);
                    }
                    let done = sum.seeds;
                    let failures = sum.failures.len();
                    drop(sum);
                    let mut told = told.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                    if progress && told.elapsed() > Duration::from_secs(10) {
                        *told = Instant::now();
                        eprintln!("{done} of {seeds} seeds, {failures} with a violation");
                    }
                }
            });
        }
    });
    sum.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn jobs(options: &Options) -> usize {
    options.jobs.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from)).max(1)
}

fn first(options: &Options) -> u64 {
    let clock = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |since| since.as_secs() * 1_000_000);
    options.first.unwrap_or_else(clock)
}

/// Runs what is asked for; the last line, good or bad.
///
/// # Errors
/// The last line if anything was violated or missed.
pub fn run(options: &Options) -> Result<String, String> {
    let faults = kinds(&options.faults)?;
    if let Some(seed) = options.seed {
        return one(seed, &faults);
    }
    let begun = Instant::now();
    let first = first(options);
    let sum = many(first, options.seeds, &faults, jobs(options), false, !options.json);
    let took = begun.elapsed();
    let all = options.faults.is_empty();
    let missing = if all { missing(&sum.coverage) } else { Vec::new() };
    let wanted = WANTED.len() + Fault::ALL.len();
    let restless = sum.failures.values().filter(|what| what.starts_with(RESTLESS)).count();
    let line = format!(
        "sim: {} seeds, {} operations, {} faults, {} violations ({} did not come to rest), {} of {wanted} covered in {:.1} s",
        sum.seeds,
        sum.operations,
        sum.faults,
        sum.failures.len(),
        restless,
        wanted - missing.len(),
        took.as_secs_f64()
    );
    // Whoever chooses the faults may choose some that break little.
    let thin = if all { sum.thin.len() } else { 0 };
    if !options.json {
        for (seed, why) in sum.thin.iter().filter(|_| thin > 0) {
            eprintln!("seed {seed} tells too little: {why}");
        }
        eprintln!(
            "first seed {first}; {} acknowledged, {} reigns, {} events, {:.0} seeds a second",
            sum.acknowledged,
            sum.reigns,
            sum.events,
            sum.seeds as f64 / took.as_secs_f64().max(0.001)
        );
        if !missing.is_empty() {
            eprintln!("never seen: {}", missing.join(", "));
        }
    }
    let uncovered = options.seeds >= COVERED_BY && !missing.is_empty();
    let bad = !sum.failures.is_empty() || uncovered || thin > 0;
    let last = if options.json { as_json(&sum, first, took, &missing).to_string() } else { line };
    if bad { Err(last) } else { Ok(last) }
}

fn missing(coverage: &Coverage) -> Vec<&'static str> {
    let faults = Fault::ALL.iter().map(|f| f.name()).filter(|name| coverage.count(name) == 0);
    coverage.missing().into_iter().chain(faults).collect()
}

fn as_json(sum: &Sum, first: u64, took: Duration, missing: &[&str]) -> serde_json::Value {
    json!({
        "seeds": sum.seeds,
        "first": first,
        "operations": sum.operations,
        "acknowledged": sum.acknowledged,
        "faults": sum.faults,
        "reigns": sum.reigns,
        "events": sum.events,
        "seconds": took.as_secs_f64(),
        "violations": sum.failures.iter().map(|(seed, what)| json!({"seed": seed, "what": what})).collect::<Vec<_>>(),
        "thin": sum.thin.iter().map(|(seed, why)| json!({"seed": seed, "why": why})).collect::<Vec<_>>(),
        "missing": missing,
        "coverage": sum.coverage.iter().collect::<BTreeMap<_, _>>(),
    })
}

/// One seed with its trace.
fn one(seed: u64, faults: &[Fault]) -> Result<String, String> {
    let begun = Instant::now();
    let outcome = run_seed(seed, faults, true);
    for line in &outcome.trace {
        println!("{line}");
    }
    let line = format!(
        "sim: seed {seed}, {} operations, {} faults, {} violations in {:.2} s",
        outcome.operations,
        outcome.faults,
        u32::from(outcome.violation.is_some()),
        begun.elapsed().as_secs_f64()
    );
    match outcome.violation {
        None => Ok(line),
        Some(violation) => Err(format!("{violation}\n{line}")),
    }
}

/// Plants each bug in turn and runs until it is found.
///
/// # Errors
/// The last line if one is not found, or if this build has none.
#[cfg(feature = "mutants")]
pub fn mutants(options: &Options) -> Result<String, String> {
    use crate::mutants::MUTANTS;
    let faults = kinds(&options.faults)?;
    let (first, jobs) = (options.first.unwrap_or(1), jobs(options));
    let wanted = |name: &str| options.mutant.as_deref().is_none_or(|filter| name.contains(filter));
    let (mut found, mut tried) = (0, 0);
    let mut rows = Vec::new();
    for mutant in MUTANTS.iter().filter(|m| wanted(m.name)) {
        tried += 1;
        let begun = Instant::now();
        let limit = FOUND_BY.min(options.seeds.max(1));
        let (mut done, mut seen) = (0, None);
        while done < limit && seen.is_none() {
            parovoz_mutant::plant(Some(mutant.name));
            let sum = many(first + done, limit - done, &faults, jobs, true, false);
            done += sum.seeds;
            // What also fails without the bug is no proof of it.
            parovoz_mutant::plant(None);
            seen = sum.failures.into_iter().find(|(seed, _)| run_seed(*seed, &faults, false).violation.is_none());
        }
        found += u64::from(seen.is_some());
        let how = seen.as_ref().map_or("NOT FOUND".to_owned(), |(seed, what)| format!("seed {seed}: {what}"));
        println!("{:<28} {done:>6} seeds {:>6.1} s  {how}", mutant.name, begun.elapsed().as_secs_f64());
        rows.push(json!({"name": mutant.name, "breaks": mutant.breaks, "seeds": done, "found": seen.is_some()}));
    }
    if options.json {
        println!("{}", serde_json::Value::from(rows));
    }
    let line = format!("mutants: {found} of {tried} found");
    if found == tried { Ok(line) } else { Err(line) }
}

/// There are none in this build.
///
/// # Errors
/// Always.
#[cfg(not(feature = "mutants"))]
pub fn mutants(_options: &Options) -> Result<String, String> {
    Err("plant bugs: this build has none; build with --features mutants".to_owned())
}
