//! The simulator's command line; see `cargo xtask sim`.

use std::process::ExitCode;

use clap::Parser;
use parovoz_sim::batch::{self, Options};

#[derive(Parser)]
#[command(
    name = "parovoz-sim",
    about = "Simulates whole stores under faults, each from a seed, and checks that nothing is lost."
)]
struct Cli {
    /// How many seeds; with --mutants at most so many for each [default: 2000, with --mutants 10000].
    #[arg(long)]
    seeds: Option<u64>,
    /// One seed alone, with everything that happens.
    #[arg(long)]
    seed: Option<u64>,
    /// The first seed [default: from the clock].
    #[arg(long)]
    first: Option<u64>,
    /// Only these kinds of faults, by name, separated by commas.
    #[arg(long, value_delimiter = ',')]
    faults: Vec<String>,
    /// Plants each known bug in turn and runs until it is found.
    #[arg(long)]
    mutants: bool,
    /// Only the planted bugs whose name contains this.
    #[arg(long, requires = "mutants")]
    mutant: Option<String>,
    /// The result as JSON on the last line.
    #[arg(long)]
    json: bool,
    /// Threads [default: all processors].
    #[arg(long)]
    jobs: Option<usize>,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let options = Options {
        seeds: cli.seeds.unwrap_or(if cli.mutants { 10_000 } else { 2_000 }),
        seed: cli.seed,
        first: cli.first,
        faults: cli.faults,
        mutant: cli.mutant,
        json: cli.json,
        jobs: cli.jobs,
    };
    let done = if cli.mutants { batch::mutants(&options) } else { batch::run(&options) };
    match done {
        Ok(line) => {
            println!("{line}");
            ExitCode::SUCCESS
        }
        Err(line) => {
            eprintln!("{line}");
            ExitCode::FAILURE
        }
    }
}
