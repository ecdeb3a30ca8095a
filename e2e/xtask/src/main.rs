//! `cargo xtask`: set-up, the local cluster, images, generated files, the demonstration and every test.

mod cluster;
mod error;
mod exec;
mod kube;
mod packages;
mod paths;
mod poll;
mod ui;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use error::Result;
use ui::{Ui, seconds};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Set-up, local cluster, images, generated files, demonstration and tests.")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// The local cluster: a real Kubernetes of several nodes on this machine.
    #[command(subcommand)]
    Cluster(ClusterCommand),
}

#[derive(Args)]
struct Root {
    /// The directory of the cluster's state [default: $PAROVOZ_CACHE/cluster].
    #[arg(long)]
    root: Option<PathBuf>,
}

impl Root {
    fn path(&self) -> PathBuf {
        self.root.clone().unwrap_or_else(paths::cluster)
    }
}

#[derive(Subcommand)]
enum ClusterCommand {
    /// Starts it, or what is missing of it.
    Up {
        /// How many nodes.
        #[arg(long, default_value_t = 3)]
        nodes: u8,
        #[command(flatten)]
        root: Root,
    },
    /// Removes it, and checks that nothing is left.
    Down {
        #[command(flatten)]
        root: Root,
    },
    /// Shows its nodes and processes; fails unless all run.
    Status {
        /// For programs.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        root: Root,
    },
    /// Imports an image archive into every node.
    Load {
        /// A docker-archive.
        archive: PathBuf,
        #[command(flatten)]
        root: Root,
    },
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let ui = Ui::new();
    match dispatch(&ui, cli.command) {
        Ok(Some(end)) => {
            println!("{end}");
            ExitCode::SUCCESS
        }
        Ok(None) => ExitCode::SUCCESS,
        Err(e) => {
            ui.line(&format!("error: {e}\nfailed after {}", seconds(ui.elapsed())));
            ExitCode::FAILURE
        }
    }
}

/// Runs a command; its end line, where it has not printed one.
fn dispatch(ui: &Ui, command: Command) -> Result<Option<String>> {
    match command {
        Command::Cluster(command) => cluster_command(ui, &command),
    }
}

fn cluster_command(ui: &Ui, command: &ClusterCommand) -> Result<Option<String>> {
    match command {
        ClusterCommand::Up { nodes, root } => {
            let kube = cluster::up(ui, &root.path(), *nodes)?;
            Ok(Some(format!("cluster up: {nodes} nodes ready in {}\n{}", seconds(ui.elapsed()), cluster::usage(&kube))))
        }
        ClusterCommand::Down { root } => {
            cluster::down(ui, &root.path())?;
            Ok(Some(format!("cluster down: nothing left, in {}", seconds(ui.elapsed()))))
        }
        ClusterCommand::Status { json, root } => cluster::status(&root.path(), *json).map(|()| None),
        ClusterCommand::Load { archive, root } => {
            cluster::load(ui, &root.path(), archive)?;
            Ok(Some(format!("cluster load: done in {}", seconds(ui.elapsed()))))
        }
    }
}
