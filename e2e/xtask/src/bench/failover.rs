//! How long writes stand still when the primary or its node fails, and at a switchover, beside the limits of the design. A limit
//! that is missed fails the command. Where a node fails, the leading operator is on another one.
//! Ratios are ours to the limit: lower is better here.

use std::path::PathBuf;

use super::report::{Figure, save, table};
use crate::error::{Error, Result};
use crate::faults::kinds::{Kind, Mode};
use crate::faults::{self, Measured, Measurement};
use crate::ui::{Ui, seconds};

const LIMIT: &str = "the design's limit";

/// What P10 does not say by itself.
const OPERATOR: &str = "P10: the node goes dark while the operator leads from another one; with the leading operator on it, its \
                        Lease runs out first (e2e faults --kind node-and-operator-blackout)\n";

/// What is measured and how.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Rounds of each figure.
    #[arg(long, default_value_t = 50)]
    rounds: usize,
    /// Stores at a time.
    #[arg(long, default_value_t = 2)]
    stores: usize,
    /// Writes a second on each store.
    #[arg(long, default_value_t = 500)]
    rate: u32,
    /// Only figures whose id contains this, such as `P9`.
    #[arg(long)]
    only: Option<String>,
    /// Use the cluster, the images and the operator as they are.
    #[arg(long)]
    as_is: bool,
    /// A file for the figures as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    /// A directory for the report, with a picture of each round [default: $PAROVOZ_CACHE/failover].
    #[arg(long)]
    report: Option<PathBuf>,
}

/// A figure of one kind of rounds.
struct Goal {
    id: &'static str,
    mode: Mode,
    kind: Kind,
    /// Milliseconds, or reads.
    limit: f64,
    unit: &'static str,
    of: fn(&Measured) -> f64,
}

const GOALS: [Goal; 6] = [
    Goal { id: "P9-p50", mode: Mode::Quorum, kind: Kind::Kill, limit: 2_000.0, unit: "ms", of: |m| m.sum.gap_ms.p50 },
    Goal { id: "P9-p99", mode: Mode::Quorum, kind: Kind::Kill, limit: 5_000.0, unit: "ms", of: |m| m.sum.gap_ms.p99 },
    Goal {
        id: "P10-quorum-p99",
        mode: Mode::Quorum,
        kind: Kind::NodeBlackout,
        limit: 5_000.0,
        unit: "ms",
        of: |m| m.sum.gap_ms.p99,
    },
    Goal {
        id: "P11-p99",
        mode: Mode::Quorum,
        kind: Kind::Switchover,
        limit: 500.0,
        unit: "ms",
        of: |m| m.sum.gap_ms.p99,
    },
    Goal {
        id: "P11-failed-reads",
        mode: Mode::Quorum,
        kind: Kind::Switchover,
        limit: 0.0,
        unit: "reads",
        of: |m| m.sum.failed_reads as f64,
    },
    Goal {
        id: "P10-async-p99",
        mode: Mode::Async,
        kind: Kind::NodeBlackout,
        limit: 15_000.0,
        unit: "ms",
        of: |m| m.sum.gap_ms.p99,
    },
];

/// Runs the benchmark; answers the table.
pub fn run(ui: &Ui, options: &Options) -> Result<String> {
    let wanted: Vec<&Goal> =
        GOALS.iter().filter(|g| options.only.as_deref().is_none_or(|only| g.id.contains(only))).collect();
    if wanted.is_empty() {
        let ids: Vec<&str> = GOALS.iter().map(|g| g.id).collect();
        return Err(Error::failed(format!("no figure is called so; there are {}", ids.join(", "))));
    }
    let mut kinds: Vec<(Mode, Kind)> = wanted.iter().map(|g| (g.mode, g.kind)).collect();
    kinds.dedup();
    let report = options.report.clone().unwrap_or_else(|| crate::paths::cache().join("failover"));
    let measurement = Measurement {
        kinds: &kinds,
        rounds: options.rounds,
        stores: options.stores,
        rate: options.rate,
        as_is: options.as_is,
        report: &report,
    };
    let (measured, trouble) = faults::measure(ui, &measurement)?;
    let figure = |goal: &&Goal| {
        let found = measured.iter().find(|m| m.sum.kind == goal.kind && m.sum.mode == goal.mode)?;
        (found.sum.rounds > 0).then(|| of(goal, (goal.of)(found)))
    };
    let figures: Vec<Figure> = wanted.iter().filter_map(figure).collect();
    if let Some(path) = &options.json {
        save(&figures, path)?;
    }
    let missed = figures.iter().filter(|f| !f.ok).count();
    let bad: usize = measured.iter().map(|m| m.sum.bad).sum();
    let line = format!(
        "{}{OPERATOR}bench failover: {} figures, {missed} missed, {} rounds, {bad} of them bad, in {}\nreport: {}",
        table(&figures),
        figures.len(),
        measured.iter().map(|m| m.sum.rounds).sum::<usize>(),
        seconds(ui.elapsed()),
        report.join("index.html").display(),
    );
    let trouble: String = trouble.iter().map(|t| format!("\n{t}")).collect();
    let reached = figures.len() == wanted.len() && figures.iter().all(|f| f.ok);
    let good = bad == 0 && reached && trouble.is_empty();
    if good { Ok(line) } else { Err(Error::Failed(line + &trouble)) }
}

fn of(goal: &Goal, ours: f64) -> Figure {
    // Where nothing is allowed, the ratio is the number itself, and only none will do.
    let (ratio, mark) = if goal.limit > 0.0 { (ours / goal.limit, 1.0) } else { (ours, 0.0) };
    Figure {
        id: goal.id.to_owned(),
        ours,
        reference: goal.limit,
        reference_name: LIMIT,
        unit: goal.unit,
        ratio: (ratio * 1000.0).round() / 1000.0,
        mark,
        ok: ratio <= mark,
    }
}

#[cfg(test)]
mod tests {
    use super::{GOALS, of};

    #[test]
    fn shorter_than_the_limit_is_reached() {
        let figure = of(&GOALS[0], 1_900.0);
        assert!(figure.ok && (figure.ratio - 0.95).abs() < 1e-9);
        assert!(!of(&GOALS[0], 2_100.0).ok);
        assert!(of(&GOALS[4], 0.0).ok && !of(&GOALS[4], 1.0).ok);
    }
}
