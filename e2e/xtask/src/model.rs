//! The exhaustive model, built with the rules that can be removed.

use crate::error::Result;
use crate::exec::cargo;
use crate::paths;

/// Runs `e2e/model` with these arguments; it prints its own last line.
pub fn run(arguments: &[String]) -> Result<()> {
    let build = "run --quiet --release --locked --package parovoz-model --features parovoz-model/mutants --";
    cargo().dir(&paths::repository()).words(build).args(arguments).shown()
}
