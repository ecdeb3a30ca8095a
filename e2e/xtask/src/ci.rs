//! Everything that CI runs, in order, with one sum at the end.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Instant;

use crate::cluster;
use crate::demo;
use crate::e2e::{self, Counts};
use crate::error::{Context, Error, Result};
use crate::exec::{cargo, without_cargo_run};
use crate::faults;
use crate::generate;
use crate::model;
use crate::packages::{self, Need};
use crate::paths;
use crate::sim;
use crate::ui::{Ui, seconds};

/// Runs all of it on a cluster of its own. Returns the last line.
pub fn test(ui: &Ui) -> Result<String> {
    packages::require_root("test")?;
    packages::ensure(ui, &[Need::Cluster, Need::Image, Need::Clients, Need::Index, Need::Faults])?;
    let mut counts = Counts::default();
    let mut times = Vec::new();
    let outcome = stages(ui, &mut counts, &mut times);
    if outcome.is_err() || counts.failed > 0 {
        let kept = e2e::failures().join("cluster-logs");
        match cluster::keep_logs(&paths::cluster(), &kept) {
            Ok(()) => ui.line(&format!("the logs of the cluster's programs are in {}", kept.display())),
            Err(e) => ui.line(&e.to_string()),
        }
    }
    let begun = Instant::now();
    let down = cluster::down(ui, &paths::cluster());
    times.push(("cluster down", begun.elapsed()));
    ui.line("");
    for (stage, time) in &times {
        ui.line(&format!("{:>14}  {stage}", seconds(*time)));
    }
    let summary = format!("{counts} in {}", seconds(ui.elapsed()));
    match outcome.and(down) {
        Err(e) => Err(Error::failed(format!("{e}\ntest: {summary}"))),
        Ok(()) if counts.failed > 0 || counts.skipped > 0 => {
            Err(Error::failed(format!("test: {summary}; none may fail or be skipped")))
        }
        Ok(()) => Ok(format!("test: {summary}")),
    }
}

/// Seeds that nobody has run before, for each change.
const FRESH_SEEDS: u64 = 2_500;

type Times = Vec<(&'static str, std::time::Duration)>;

fn timed<T>(ui: &Ui, times: &mut Times, stage: &'static str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    ui.line(&format!("\n== {stage}"));
    let begun = Instant::now();
    let result = work();
    times.push((stage, begun.elapsed()));
    result
}

fn stages(ui: &Ui, counts: &mut Counts, times: &mut Times) -> Result<()> {
    let root = paths::cluster();
    let cargo = |words: &str| cargo().dir(&paths::repository()).words(words);
    timed(ui, times, "format", || cargo("fmt --all --check").shown())?;
    timed(ui, times, "clippy", || cargo("clippy --release --locked --workspace --all-targets -- -D warnings").shown())?;
    timed(ui, times, "unit and integration tests", || cargo_test(counts))?;
    timed(ui, times, "simulation", || checked(counts, || sim::run(&words(&format!("--seeds {FRESH_SEEDS}")))))?;
    timed(ui, times, "model", || checked(counts, || model::run(&words("--quick"))))?;
    timed(ui, times, "generated files", || generate::generate(ui, true).map(drop))?;
    // What another run left must not be able to hide a fault of the set-up.
    timed(ui, times, "cluster down", || cluster::down(ui, &root))?;
    timed(ui, times, "cluster, images and end-to-end tests", || {
        let result = e2e::run(ui, None)?;
        *counts += result;
        if result.failed > 0 { Err(Error::failed(format!("end-to-end tests: {result}"))) } else { Ok(()) }
    })?;
    timed(ui, times, "fault tests, one round of each kind", || fault_tests(ui, counts))?;
    timed(ui, times, "demonstration", || {
        let line = demo::run(ui, &demo::Options { clean: true, ..demo::Options::default() })?;
        ui.line(&line);
        counts.passed += 1;
        Ok(())
    })
}

/// One round of each kind. A round that was only late is done once more, alone: on a busy machine it may be; one in which
/// a promise was broken, or that could not be judged, never is.
fn fault_tests(ui: &Ui, counts: &mut Counts) -> Result<()> {
    let options = || faults::Options::short(e2e::failures().join("faults"));
    let mut found = faults::run(ui, &options())?;
    for sum in found.sums.iter_mut().filter(|sum| sum.bad > 0 && sum.broken == 0) {
        ui.line(&format!("       once more: {} {} was late, and nothing was lost", sum.kind.name(), sum.mode.name()));
        let mut again = faults::run(ui, &options().only(sum.kind, sum.mode))?;
        ui.line(&format!("       its report: {}", again.report.display()));
        found.trouble.append(&mut again.trouble);
        if let Some(again) = again.sums.pop() {
            *sum = again;
        }
    }
    counts.passed += found.sums.iter().filter(|s| s.bad == 0).count();
    counts.failed += found.sums.iter().filter(|s| s.bad > 0).count();
    ui.line(&faults::verdict(ui, &found)?);
    Ok(())
}

fn words(line: &str) -> Vec<String> {
    line.split_whitespace().map(str::to_owned).collect()
}

/// Counts what is one test as a whole.
fn checked(counts: &mut Counts, work: impl FnOnce() -> Result<()>) -> Result<()> {
    let result = work();
    let count = if result.is_ok() { &mut counts.passed } else { &mut counts.failed };
    *count += 1;
    result
}

/// Runs all cargo tests, shows what they print, and adds up what they report.
fn cargo_test(counts: &mut Counts) -> Result<()> {
    let action = || "run cargo test".to_owned();
    let mut command = Command::new("cargo");
    without_cargo_run(&mut command);
    let mut child = command
        .current_dir(paths::repository())
        .args(["test", "--release", "--locked", "--workspace", "--no-fail-fast"])
        // Else snapshots are looked for where the test was compiled, which may be another checkout.
        .env("INSTA_WORKSPACE_ROOT", paths::repository())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .doing(action)?;
    let out = child.stdout.take().ok_or_else(|| Error::failed(action()))?;
    let mut found = Counts::default();
    for line in BufReader::new(out).lines() {
        let line = line.doing(action)?;
        println!("{line}");
        if let Some(result) = counts_of(&line) {
            found += result;
        }
    }
    let status = child.wait().doing(action)?;
    *counts += found;
    if status.success() { Ok(()) } else { Err(Error::failed(format!("cargo test: {found}"))) }
}

/// What a line such as `test result: ok. 3 passed; 0 failed; 1 ignored; ...` says.
fn counts_of(line: &str) -> Option<Counts> {
    let rest = line.strip_prefix("test result: ")?.split_once(". ")?.1;
    let number = |kind: &str| -> Option<usize> {
        rest.split("; ").find_map(|part| part.strip_suffix(kind)?.trim().parse().ok())
    };
    Some(Counts { passed: number("passed")?, failed: number("failed")?, skipped: number("ignored")? })
}

#[cfg(test)]
mod tests {
    use super::{Counts, counts_of};

    #[test]
    fn ignored_tests_count_as_skipped() {
        let line = "test result: FAILED. 12 passed; 2 failed; 3 ignored; 0 measured; 0 filtered out; finished in 0.10s";
        assert_eq!(counts_of(line), Some(Counts { passed: 12, failed: 2, skipped: 3 }));
        assert_eq!(counts_of("test result: ok"), None);
        assert_eq!(counts_of("running 3 tests"), None);
    }
}
