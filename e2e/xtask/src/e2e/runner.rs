//! Runs tests: those that may, a few at a time; the others alone. Counts, times, and keeps what explains a failure.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::error::{Error, Result, write};
use crate::generate::NAMESPACE;
use crate::install;
use crate::kube::{Kube, items, text};
use crate::poll;
use crate::ui::{Ui, seconds};

use super::{Context, Test, failures};

/// Tests at a time: two cores hold no more without slowing each other into time limits.
const PARALLEL: usize = 3;
const NAMESPACE_GONE: Duration = Duration::from_secs(120);

/// How tests ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Held.
    pub passed: usize,
    /// Did not hold.
    pub failed: usize,
    /// Were not run.
    pub skipped: usize,
}

impl std::fmt::Display for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

/// Runs the tests in order. Namespaces that they used are gone at the end.
pub fn run(ui: &Ui, kube: &Kube, inputs: &str, tests: &[&Test]) -> Result<Counts> {
    remove_namespaces(ui, kube, "remove what a former run left")?;
    // The tests that need an operator find one, whichever of them are chosen.
    ui.step("install the operator", |_| install::helm(kube, inputs))?;
    let mut counts = Counts::default();
    for group in tests.chunk_by(|a, b| !a.alone && !b.alone) {
        let queue = Mutex::new(group.iter().copied().collect::<VecDeque<_>>());
        let results = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for _ in 0..PARALLEL.min(group.len()) {
                scope.spawn(|| {
                    while let Some(test) = queue.lock().ok().and_then(|mut q| q.pop_front()) {
                        let passed = one(ui, kube, inputs, test);
                        if let Ok(mut all) = results.lock() {
                            all.push(passed);
                        }
                    }
                });
            }
        });
        let results = results.into_inner().map_err(|_| Error::failed("run tests: a thread panicked"))?;
        counts.passed += results.iter().filter(|passed| **passed).count();
        counts.failed += results.iter().filter(|passed| !**passed).count();
    }
    counts.skipped = tests.len() - counts.passed - counts.failed;
    remove_namespaces(ui, kube, "await the end of the tests' namespaces")?;
    Ok(counts)
}

/// Runs one test in a namespace of its own; whether it passed.
fn one(ui: &Ui, kube: &Kube, inputs: &str, test: &Test) -> bool {
    let begun = Instant::now();
    let namespace = format!("e2e-{}", test.name.replace('_', "-"));
    let context = Context::new(kube, namespace[..namespace.len().min(63)].trim_end_matches('-').to_owned(), inputs);
    let namespace = &context.namespace;
    let outcome = kube.kubectl(&format!("create namespace {namespace}")).done().and_then(|()| {
        kube.kubectl(&format!("label namespace {namespace} parovoz.dev/e2e=true")).done()?;
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| (test.run)(&context)))
            .unwrap_or_else(|_| Err(Error::failed("the test panicked")))
    });
    match &outcome {
        Ok(()) => ui.line(&format!("ok     {} ({})", test.name, seconds(begun.elapsed()))),
        Err(e) => {
            let kept = keep_state(kube, namespace, test.name);
            ui.line(&format!("FAILED {} ({}): {e}\n       state: {kept}", test.name, seconds(begun.elapsed())));
        }
    }
    if let Err(e) = kube.kubectl(&format!("delete namespace {namespace} --wait=false")).done() {
        ui.line(&format!("       {e}"));
    }
    outcome.is_ok()
}

fn remove_namespaces(ui: &Ui, kube: &Kube, step: &str) -> Result<()> {
    ui.step(step, |_| {
        kube.kubectl("delete namespaces -l parovoz.dev/e2e=true --ignore-not-found --wait=false").done()?;
        poll::until("the tests' namespaces to be gone", NAMESPACE_GONE, Duration::from_millis(500), || {
            let list = kube.json("get namespaces -l parovoz.dev/e2e=true").map_err(|e| e.to_string())?;
            let left: Vec<&str> = items(&list, "/items").iter().map(|n| text(n, "/metadata/name")).collect();
            poll::ready(left.is_empty(), || left.join(" "))
        })
    })
}

/// Stores what explains a failure; where.
fn keep_state(kube: &Kube, namespace: &str, test: &str) -> String {
    let dir = failures().join(test);
    // What is left of an earlier failure would mislead; where there is none, nothing is to be removed.
    drop(std::fs::remove_dir_all(&dir));
    let keep = |file: &str, query: &str| {
        let answer = kube.kubectl(query).text().unwrap_or_else(|e| e.to_string());
        if let Err(e) = write(&dir.join(file), answer) {
            eprintln!("{e}");
        }
    };
    for space in [namespace, NAMESPACE] {
        keep(
            &format!("{space}-objects.yaml"),
            &format!("get pods,pvc,services,events,leases,configmaps -n {space} -o yaml"),
        );
        keep(&format!("{space}-pods.txt"), &format!("describe pods,pvc -n {space}"));
        let pods = kube.json(&format!("get pods -n {space}")).unwrap_or_default();
        for pod in items(&pods, "/items").iter().map(|p| text(p, "/metadata/name")) {
            keep(&format!("{space}-{pod}.log"), &format!("logs {pod} -n {space} --all-containers --tail=5000"));
            keep(
                &format!("{space}-{pod}-previous.log"),
                &format!("logs {pod} -n {space} --all-containers --previous --tail=5000"),
            );
        }
    }
    keep("stores.yaml", &format!("get replicatedstores,storereigns -n {namespace} -o yaml"));
    keep("nodes.txt", "describe nodes");
    dir.display().to_string()
}
