//! The log and the messages of a server: lines on standard error, through a bounded queue.
//!
//! A thread of its own writes them, because the reader of standard error may stop reading: a log collector that
//! hangs, a terminal that was stopped. If a stage, the watchdog or the shutdown wrote directly, it would wait for that
//! reader. While nobody reads, lines that do not fit into the queue are dropped and counted.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::fmt::Write as _;
use std::io::{self, IsTerminal as _, Write as _};
use std::sync::mpsc::sync_channel;
use std::thread;
use std::time::Duration;

use logweir::config::Config;
use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::EnvFilter;

use crate::terminal::wants_color;

/// actix_http logs each malformed request as an error: a client could fill the log. `log.level` can override this.
const SILENT: &str = "actix_http=off";
/// Libraries whose `info` lines only concern themselves; `log.level` can override this.
const QUIET: &str = "actix_server=warn,fred=warn";

/// Lines that wait for the reader: one or two MiB.
const LINES_MAX: usize = 8192;
/// Time limit for writing the lines that are left at the end.
const LAST_LINES: Duration = Duration::from_secs(2);
/// Interval at which the metric is updated.
const COUNT: Duration = Duration::from_secs(1);

/// Standard error, while a server runs.
pub(super) struct Log {
    lines: NonBlocking,
    worker: WorkerGuard,
}

impl Log {
    /// Starts the thread. From now on, it writes what is logged, and panics.
    pub(super) fn start(config: &Config) -> Self {
        let queue = NonBlockingBuilder::default().buffered_lines_limit(LINES_MAX).thread_name("log");
        let (lines, worker) = queue.finish(io::stderr());
        let filter = EnvFilter::try_new(filter(&config.log.level)).unwrap_or_else(|_| EnvFilter::new("info"));
        // Internal errors are not logged: that would panic once the reader of standard error is gone.
        let log = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_ansi(wants_color(io::stderr().is_terminal()))
            .with_writer(lines.clone())
            .log_internal_errors(false);
        // The only subscriber of this process.
        let _ = if config.log.json { log.json().try_init() } else { log.try_init() };
        print_panics(lines.clone());
        Self { lines, worker }
    }

    /// Queues a message that no filter hides.
    pub(super) fn print(&self, text: &str) {
        put(&self.lines, text);
    }

    /// The number of lines that were dropped.
    pub(super) fn dropped(&self) -> ErrorCounter {
        self.lines.error_counter()
    }

    /// Writes what is queued and then `last`, unless nobody reads.
    pub(super) fn finish(self, last: &str) {
        let Self { lines, worker } = self;
        let mut last = last.to_owned();
        let dropped = lines.error_counter().dropped_lines();
        if dropped > 0 {
            let _ = writeln!(last, "logweir: {dropped} lines of the log were dropped: nobody read standard error");
        }
        // Not on this thread, which must not wait for the reader. The guard itself prints, to standard output, where it
        // cannot empty the queue.
        let (done, finished) = sync_channel(1);
        let write = move || {
            drop(worker);
            let _ = io::stderr().write_all(last.as_bytes());
            let _ = done.send(());
        };
        if thread::Builder::new().spawn(write).is_ok() {
            let _ = finished.recv_timeout(LAST_LINES);
        }
    }
}

/// Keeps the metric of the dropped lines up to date.
pub(super) async fn count(dropped: ErrorCounter) {
    let mut interval = tokio::time::interval(COUNT);
    loop {
        interval.tick().await;
        metrics::counter!("logweir_log_lines_dropped_total").absolute(dropped.dropped_lines() as u64);
    }
}

fn put(lines: &NonBlocking, text: &str) {
    // It is one line of the queue, and it never fails.
    let _ = lines.clone().write_all(format!("{text}\n").as_bytes());
}

/// Writes panics through the queue: a stage that panics is restarted, and must not wait for the reader either.
fn print_panics(lines: NonBlocking) {
    std::panic::set_hook(Box::new(move |panic| {
        let thread = thread::current();
        let mut text = format!("thread '{}' {panic}", thread.name().unwrap_or("<unnamed>"));
        let trace = Backtrace::capture();
        if trace.status() == BacktraceStatus::Captured {
            let _ = write!(text, "\nstack backtrace:\n{trace}");
        }
        put(&lines, &text);
    }));
}

/// The filter of a validated `log.level`: [`SILENT`] and [`QUIET`] lower the level of libraries, and never raise it.
fn filter(level: &str) -> String {
    let bare = level.split(',').find(|directive| !directive.contains('='));
    let is_quieter = bare.is_some_and(|bare| ["error", "off"].iter().any(|quiet| quiet.eq_ignore_ascii_case(bare)));
    if is_quieter { format!("{SILENT},{level}") } else { format!("{SILENT},{QUIET},{level}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_quieter_than_the_program_and_never_louder() {
        assert_eq!(filter("info"), format!("{SILENT},{QUIET},info"));
        assert_eq!(filter("info,actix_server=debug"), format!("{SILENT},{QUIET},info,actix_server=debug"));
        for level in ["off", "ERROR", "error,logweir=debug"] {
            assert_eq!(filter(level), format!("{SILENT},{level}"));
        }
    }
}
