//! The life of the process.

use std::path::Path;
use std::process::ExitCode;

use crate::cli::exit;
use crate::config::Config;

/// Runs the pipeline until it has drained.
#[must_use]
pub fn run(config: Config) -> ExitCode {
    let _ = config;
    exit::UNAVAILABLE.into()
}

/// Takes the journal in `dir` over, flushes everything in it and seals it.
#[must_use]
pub fn drain_journal(config: Config, dir: &Path, adopt: bool) -> ExitCode {
    let _ = (config, dir, adopt);
    exit::UNAVAILABLE.into()
}
