//! The simulator, built without RocksDB; with the planted bugs only where they are asked for.

use crate::error::Result;
use crate::exec::cargo;
use crate::paths;

/// Its allocations are small and many: a larger cache for each thread saves a fifth of the time.
const MALLOC: &str = "glibc.malloc.tcache_count=2000";

/// Runs `e2e/sim` with these arguments; it prints its own last line.
pub fn run(arguments: &[String]) -> Result<()> {
    let mutants = arguments.iter().any(|argument| argument == "--mutants");
    let features = if mutants { " --features parovoz-sim/mutants" } else { "" };
    let build = format!("run --quiet --release --locked --package parovoz-sim{features} --");
    cargo().dir(&paths::repository()).words(&build).args(arguments).env("GLIBC_TUNABLES", MALLOC).shown()
}
