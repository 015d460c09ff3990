//! A command with an engine as a process: fault points, logging, an actix system, the exit code.

use std::future::Future;
use std::io::{IsTerminal as _, Write as _};
use std::path::Path;
use std::process::ExitCode;

use logweir::config::Config;
use logweir::{Error, server};
use logweir_engine::fault;
use tracing_subscriber::EnvFilter;

use crate::terminal::wants_color;

/// Version and build, as printed by `--version`.
pub const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (", env!("LOGWEIR_BUILD"), ")");

/// actix_http logs each malformed request as an error: a client could fill the log. `log.level` can override this.
const SILENT: &str = "actix_http=off";
/// Libraries whose `info` lines only concern themselves; `log.level` can override this.
const QUIET: &str = "actix_server=warn,refinery_core=warn,fred=warn";

/// Runs the server until a signal, the end of standard input, a drain request or a failure; returns the exit code.
#[must_use]
pub fn run(config: Config) -> ExitCode {
    process(&config.clone(), server::serve(config, VERSION))
}

/// Flushes the journal in `dir` to the database and seals it; returns the exit code.
#[must_use]
pub fn drain_journal(config: Config, dir: &Path, adopt: bool) -> ExitCode {
    let dir = dir.to_owned();
    process(&config.clone(), async move {
        let stopped = logweir::drain_journal(config, dir, adopt).await?;
        server::print_report(&stopped);
        stopped.failure.map_or(Ok(()), Err)
    })
}

/// Runs `work` with everything that a command with an engine needs: faults, logging, an actix system, the exit code.
fn process(config: &Config, work: impl Future<Output = Result<(), Error>>) -> ExitCode {
    let _armed = fault::arm_from_environment();
    log_to_stderr(config);
    let system = actix_rt::System::new();
    let outcome = system.block_on(work);
    // Dropping the runtime would wait for a read of standard input that may never end.
    std::mem::forget(system);
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Not through the log: its filter must not hide why the process ends.
            let _ = writeln!(std::io::stderr(), "logweir: {error}");
            ExitCode::from(error.code())
        }
    }
}

fn log_to_stderr(config: &Config) {
    let filter = EnvFilter::try_new(log_filter(&config.log.level)).unwrap_or_else(|_| EnvFilter::new("info"));
    let ansi = wants_color(std::io::stderr().is_terminal());
    // Internal errors are not logged: that would panic once the reader of standard error is gone.
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(ansi)
        .with_writer(std::io::stderr)
        .log_internal_errors(false);
    // An error means that the embedding program has its own subscriber.
    let _ = if config.log.json { log.json().try_init() } else { log.try_init() };
}

/// The filter of a validated `log.level`: [`SILENT`] and [`QUIET`] lower the level of libraries, and never raise it.
fn log_filter(level: &str) -> String {
    let bare = level.split(',').find(|directive| !directive.contains('='));
    let is_quieter = bare.is_some_and(|bare| ["error", "off"].iter().any(|quiet| quiet.eq_ignore_ascii_case(bare)));
    if is_quieter { format!("{SILENT},{level}") } else { format!("{SILENT},{QUIET},{level}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_quieter_than_the_program_and_never_louder() {
        assert_eq!(log_filter("info"), format!("{SILENT},{QUIET},info"));
        assert_eq!(log_filter("info,actix_server=debug"), format!("{SILENT},{QUIET},info,actix_server=debug"));
        for level in ["off", "ERROR", "error,logweir=debug"] {
            assert_eq!(log_filter(level), format!("{SILENT},{level}"));
        }
    }
}
