//! `cargo xtask model`: searches every interleaving within bounds, then removes each rule in turn.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use parovoz_model::bounds::{self, Bounds};
use parovoz_model::rules::RULES;
use parovoz_model::run::{self, LIMITS, Plan};
use parovoz_model::search::Limits;

/// Searches every interleaving of reigns and votes within bounds; then removes each rule to see that it matters.
#[derive(Parser)]
#[command(name = "cargo xtask model")]
struct Options {
    /// Only this configuration: a name (see --list) or `epochs=3,writes=2,w=1,clocks=0,crashes=1,...`. May be repeated; no
    /// rule is removed then but those of --without, here instead of where they are known to matter.
    #[arg(long, value_parser = bounds::parse)]
    bounds: Vec<Bounds>,
    /// Remove only this rule, and print the shortest way to the violation.
    #[arg(long, value_parser = rule)]
    without: Vec<&'static str>,
    /// Print the shortest way to the violation for each removed rule.
    #[arg(long)]
    trace: bool,
    /// The small configurations only, and every rule.
    #[arg(long)]
    quick: bool,
    /// Seconds for each search at most.
    #[arg(long, default_value_t = LIMITS.time.as_secs())]
    seconds: u64,
    /// Write all results here.
    #[arg(long)]
    json: Option<PathBuf>,
    /// List configurations and rules.
    #[arg(long)]
    list: bool,
}

fn rule(name: &str) -> Result<&'static str, String> {
    run::rule(name).map(|rule| rule.name()).ok_or_else(|| format!("no rule is called {name:?}; see --list"))
}

fn plan(options: &Options) -> Plan {
    let all = options.bounds.is_empty() && options.without.is_empty();
    let (mut bounds, mut elsewhere) = (options.bounds.clone(), Vec::new());
    if all {
        bounds = bounds::ALL.iter().copied().filter(|bounds| bounds.quick || !options.quick).collect();
    } else if !options.without.is_empty() {
        elsewhere = std::mem::take(&mut bounds);
    }
    let asked = options.without.iter().filter_map(|name| run::rule(name));
    let rules = if all { RULES.iter().collect() } else { asked.collect() };
    let limits = Limits { time: Duration::from_secs(options.seconds), ..LIMITS };
    Plan { bounds, rules, elsewhere, traces: options.trace || !options.without.is_empty(), limits }
}

fn list() {
    bounds::ALL.iter().for_each(|bounds| println!("{bounds:?}"));
    RULES.iter().for_each(|rule| println!("{:<34} {} (seen in {})", rule.name(), rule.says, rule.seen_in));
}

fn main() -> ExitCode {
    let options = Options::parse();
    if options.list {
        list();
        return ExitCode::SUCCESS;
    }
    let plan = plan(&options);
    if !run::CAN_REMOVE && !plan.rules.is_empty() {
        eprintln!("remove rules: built without the feature `mutants`; use `cargo xtask model`");
        return ExitCode::FAILURE;
    }
    let report = run::all(&plan);
    if let Some(path) = &options.json {
        let written = serde_json::to_vec_pretty(&report).map_err(|e| e.to_string());
        let written = written.and_then(|bytes| std::fs::write(path, bytes).map_err(|e| e.to_string()));
        if let Err(cause) = written {
            eprintln!("write {}: {cause}", path.display());
            return ExitCode::FAILURE;
        }
    }
    println!("{}", report.summary());
    if report.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
