//! The operator's binary: `run` and `crd`.

use std::process::ExitCode;

use clap::Parser;
use parovoz_operator::cli::{Cli, Command};

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Crd => parovoz_operator::cli::print_crds(),
        Command::Run(options) => parovoz_operator::run::main(options),
    }
}
