//! The data plane's binary.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use parovoz_dataplane::config::RunArgs;
use parovoz_dataplane::logging;

#[derive(Parser)]
#[command(name = "parovoz-dataplane", version, about = "Runs the RocksDB prefixes of one member of a Parovoz store")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the member until SIGTERM.
    Run(Box<RunArgs>),
}

fn main() -> ExitCode {
    let Command::Run(args) = Cli::parse().command;
    let logs = match logging::start(&args.log) {
        Ok(logs) => logs,
        Err(error) => {
            eprintln!("parovoz-dataplane: {error}");
            return ExitCode::from(2);
        }
    };
    match parovoz_dataplane::process::run(&args, logs) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "the process ends");
            ExitCode::FAILURE
        }
    }
}
