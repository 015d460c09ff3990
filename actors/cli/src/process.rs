//! Runs a command that needs an engine: fault points, the log, an actix system, the exit code.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use logweir::config::Config;
use logweir::{Error, server};
use logweir_engine::fault;
use logweir_store::Lease;
use rustix::process::Signal;

use crate::log::{self, Log};

/// Version and build, as printed by `--version`.
pub(super) const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (", env!("LOGWEIR_BUILD"), ")");

/// Runs the server until a signal, the end of standard input, a drain request or a failure; returns the exit code.
#[must_use]
pub(super) fn run(config: Config) -> ExitCode {
    process(&config.clone(), async |print| server::serve(config, VERSION, print).await)
}

/// Flushes the journal in `dir` to the database and seals it; returns the exit code.
#[must_use]
pub(super) fn drain_journal(config: Config, dir: &Path, adopt: bool) -> ExitCode {
    process(&config.clone(), async |print| {
        let stopped = logweir::drain_journal(config, dir.to_owned(), adopt).await?;
        server::print_report(&stopped, print);
        stopped.failure.map_or(Ok(()), Err)
    })
}

/// Lets the journal in `dir` continue, as the only copy; returns the exit code.
#[must_use]
pub(super) fn adopt_journal(config: Config, dir: &Path) -> ExitCode {
    process(&config.clone(), async |print| {
        let Lease { writer, epoch } = logweir::adopt_journal(config, dir.to_owned()).await?;
        print(&format!("journal {writer} has the lease in epoch {epoch}: start the server that uses it\n"));
        Ok(())
    })
}

/// Runs `work` with everything that such a command needs: faults, the log, an actix system, the exit code.
fn process(config: &Config, work: impl AsyncFnOnce(&dyn Fn(&str)) -> Result<(), Error>) -> ExitCode {
    let _armed = fault::arm_from_environment();
    let log = Log::start(config);
    if let Err(error) = survive_file_size_limit() {
        log.print(&format!("logweir: cannot handle SIGXFSZ, so a file-size limit would end the process: {error}"));
    }
    let system = actix_rt::System::new();
    let outcome = system.block_on(async {
        actix_rt::spawn(log::count(log.dropped()));
        work(&|text| log.print(text)).await
    });
    // Dropping the runtime would wait for a read of standard input that may never end.
    std::mem::forget(system);
    // Not through the log: its filter must not hide why the process ends.
    let (code, last) = match outcome {
        Ok(()) => (ExitCode::SUCCESS, String::new()),
        Err(error) => (ExitCode::from(error.code()), format!("logweir: {error}\n")),
    };
    log.finish(&last);
    code
}

/// Makes a write beyond the file-size limit fail like one on a full disk, instead of killing the process. Handled and not
/// ignored: a child process would inherit that.
fn survive_file_size_limit() -> std::io::Result<()> {
    signal_hook::flag::register(Signal::XFSZ.as_raw(), Arc::default()).map(|_| ())
}
