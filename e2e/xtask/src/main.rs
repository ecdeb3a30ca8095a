//! `cargo xtask`: set-up, the local cluster, images, generated files, the demonstration and every test.

mod bench;
mod ci;
mod cluster;
mod demo;
mod e2e;
mod error;
mod exec;
mod faults;
mod generate;
mod image;
mod install;
mod kube;
mod model;
mod packages;
mod paths;
mod poll;
mod resp;
mod sim;
mod store;
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
    /// Builds both binaries and their container images, as docker-archives.
    Image {
        /// Where the archives go [default: $PAROVOZ_CACHE/images].
        #[arg(long)]
        output: Option<PathBuf>,
    },
    /// Writes CRDs and manifests from the types and the chart.
    Generate {
        /// Only compare; fail on a difference.
        #[arg(long)]
        check: bool,
    },
    /// The main job: cluster, operator, store, real data, a volume lost under writes, three equal members.
    Demo {
        /// A cluster to use instead of the local one; it must be able to fetch the images. An operator that is there is
        /// used as it is, and a store `demo` that no demonstration made is never touched.
        #[arg(long)]
        kubeconfig: Option<PathBuf>,
        /// Registry of the images for the operator that is installed there [default: the chart's].
        #[arg(long, requires = "kubeconfig")]
        registry: Option<String>,
        /// Records instead of this machine's Debian package index: such an index, or lines of `key<TAB>value`.
        #[arg(long)]
        data: Option<PathBuf>,
        /// Keep the store and its data at the end (the default; overrides an earlier --clean).
        #[arg(long, overrides_with = "clean")]
        keep: bool,
        /// Remove the store and its data at the end.
        #[arg(long, overrides_with = "keep")]
        clean: bool,
    },
    /// The end-to-end tests, on the local cluster.
    #[command(args_conflicts_with_subcommands = true)]
    E2e {
        /// Only those whose name contains this.
        filter: Option<String>,
        #[command(subcommand)]
        command: Option<E2eCommand>,
    },
    /// Benchmarks: our figures beside a reference in the same run.
    #[command(subcommand)]
    Bench(BenchCommand),
    /// Searches every interleaving of reigns and votes within bounds, then removes each rule in turn; `--list`, `--quick`,
    /// `--bounds B`, `--without RULE`, `--trace`, `--json FILE`.
    Model {
        /// For the model.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Simulates whole stores under faults, each from a seed: `--seeds N`, `--seed S` (one, with its trace), `--first S`,
    /// `--faults A,B`, `--mutants`, `--mutant NAME`, `--json`, `--jobs N`.
    Sim {
        /// For the simulator.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Everything that CI runs, on a cluster of its own.
    Test,
}

#[derive(Subcommand)]
enum E2eCommand {
    /// Fault tests: processes, disks, nodes and operators fail under a load; every acknowledged write is looked for.
    Faults(faults::Options),
}

#[derive(Subcommand)]
enum BenchCommand {
    /// The Redis port, with one replica attached, beside Redis itself.
    Redis(bench::Options),
    /// How long writes stand still when the primary or its node fails, and at a switchover.
    Failover(bench::failover::Options),
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
        Command::Image { output } => {
            let images = image::build(ui, output.as_deref())?;
            let files: Vec<String> = images.iter().map(|i| format!("\n  {}", i.archive.display())).collect();
            Ok(Some(format!("image: {} images in {}{}", images.len(), seconds(ui.elapsed()), files.concat())))
        }
        Command::Generate { check } => {
            let count = generate::generate(ui, check)?;
            let verb = if check { "up to date" } else { "written" };
            Ok(Some(format!("generate: {count} files {verb} in {}", seconds(ui.elapsed()))))
        }
        Command::Demo { kubeconfig, registry, data, keep: _, clean } => {
            demo::run(ui, &demo::Options { kubeconfig, registry, data, clean }).map(Some)
        }
        Command::E2e { command: Some(E2eCommand::Faults(options)), .. } => {
            let found = faults::run(ui, &options)?;
            faults::verdict(ui, &found).map(Some)
        }
        Command::E2e { filter, command: None } => {
            let counts = e2e::run(ui, filter.as_deref())?;
            let line = format!("e2e: {counts} in {}", seconds(ui.elapsed()));
            if counts.failed + counts.skipped == 0 { Ok(Some(line)) } else { Err(error::Error::Failed(line)) }
        }
        Command::Bench(BenchCommand::Redis(options)) => bench::run(ui, &options).map(Some),
        Command::Bench(BenchCommand::Failover(options)) => bench::failover::run(ui, &options).map(Some),
        Command::Sim { arguments } => sim::run(&arguments).map(|()| None),
        Command::Model { arguments } => model::run(&arguments).map(|()| None),
        Command::Test => ci::test(ui).map(Some),
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
