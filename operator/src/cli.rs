//! The command line and the environment.

use std::io::Write;
use std::net::SocketAddr;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

/// The operator of Parovoz, replicated RocksDB stores on Kubernetes.
#[derive(Debug, Parser)]
#[command(version, about)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the controller until it is told to stop.
    Run(RunOptions),
    /// Print the custom resource definitions as YAML.
    Crd,
}

/// Options of `run`.
#[derive(Clone, Debug, Args)]
pub struct RunOptions {
    /// Image of the data plane for stores that name none.
    #[arg(long, env = "DATAPLANE_IMAGE", default_value = "parovoz/dataplane:latest")]
    pub dataplane_image: String,
    /// Watch this namespace only; all namespaces unless given.
    #[arg(long, env = "WATCH_NAMESPACE")]
    pub watch_namespace: Option<String>,
    /// Watch nodes, so that the primary leaves one that is about to be drained. Needs the right to see them.
    #[arg(long, env = "WATCH_NODES", default_value_t = false, action = clap::ArgAction::Set)]
    pub watch_nodes: bool,
    /// Address for /metrics, /healthz and /readyz.
    #[arg(long, env = "HTTP_ADDRESS", default_value = "0.0.0.0:9090")]
    pub http_address: SocketAddr,
    /// This process, as the holder of the Lease.
    #[arg(long, env = "POD_NAME", default_value = "parovoz-operator")]
    pub pod_name: String,
    /// Namespace of the Lease; the client's own unless given.
    #[arg(long, env = "POD_NAMESPACE")]
    pub pod_namespace: Option<String>,
    /// Name of the Lease.
    #[arg(long, env = "LEASE_NAME", default_value = "parovoz-operator")]
    pub lease_name: String,
    /// How many stores are worked on at once.
    #[arg(long, env = "CONCURRENCY", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub concurrency: u16,
}

/// Print every custom resource definition as one YAML stream.
#[must_use]
pub fn print_crds() -> ExitCode {
    let mut out = std::io::stdout().lock();
    for crd in parovoz_api::crds() {
        let written = match serde_saphyr::to_string(&crd) {
            Ok(yaml) => writeln!(out, "---\n{}", yaml.trim_end()).map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        if let Err(cause) = written {
            let _ = writeln!(std::io::stderr(), "print custom resource definitions: {cause}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}
