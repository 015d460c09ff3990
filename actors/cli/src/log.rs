//! The log and the messages of a server: lines on standard error, through a bounded queue.
//!
//! A thread of its own writes them, because the reader of standard error may stop reading: a log collector that
//! hangs, a terminal that was stopped. If a stage, the watchdog or the shutdown wrote directly, it would wait for that
//! reader. While nobody reads, lines that do not fit into the queue are dropped and counted.
//!
//! A panic is written directly if that does not wait: it may be about to abort the process, with what is queued.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::fmt::Write as _;
use std::io::{self, IsTerminal as _, Write as _};
use std::os::fd::AsFd;
use std::thread;
use std::time::Duration;

use logweir::config::Config;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::EnvFilter;

use crate::last_message;
use crate::terminal::wants_color;

/// actix_http logs each malformed request as an error: a client could fill the log. `log.level` can override this.
const SILENT: &str = "actix_http=off";
/// Libraries whose `info` lines only concern themselves; `log.level` can override this.
const QUIET: &str = "actix_server=warn,fred=warn";

/// Lines that wait for the reader: one or two MiB.
const LINES_MAX: usize = 8192;
/// Bytes that a pipe accepts without waiting if `poll` says that it can be written (PIPE_BUF of Linux).
const PIECE: usize = 4096;
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
        // The guard itself prints, to standard output, where it cannot empty the queue.
        last_message::write(move || drop(worker), last);
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

/// Writes panics without waiting for the reader, since a stage that panics is restarted: directly what can be written
/// now, the rest through the queue. Not all of it through the queue, since a panic during another one aborts the
/// process before the thread writes.
fn print_panics(lines: NonBlocking) {
    std::panic::set_hook(Box::new(move |panic| {
        let thread = thread::current();
        let mut text = format!("thread '{}' {panic}\n", thread.name().unwrap_or("<unnamed>"));
        let trace = Backtrace::capture();
        if trace.status() == BacktraceStatus::Captured {
            let _ = writeln!(text, "stack backtrace:\n{trace}");
        }
        // The descriptor itself: the thread may hold the lock of `io::stderr` while it waits for the reader.
        let rest = write_now(io::stderr(), text.as_bytes());
        if !rest.is_empty() {
            let _ = lines.clone().write_all(rest);
        }
    }));
}

/// Writes as much of `text` as the descriptor accepts without waiting, and returns the rest.
///
/// Another thread can write between the question and the answer; then the write waits like any other. A non-blocking
/// descriptor was rejected: the mode would hold for all processes that share it, such as the shell.
fn write_now(to: impl AsFd, mut text: &[u8]) -> &[u8] {
    while !text.is_empty() && is_writable(&to) {
        match rustix::io::write(&to, &text[..text.len().min(PIECE)]) {
            Ok(written) if written > 0 => text = &text[written..],
            _ => break,
        }
    }
    text
}

fn is_writable(to: impl AsFd) -> bool {
    let mut polled = [PollFd::new(&to, PollFlags::OUT)];
    poll(&mut polled, Some(&Timespec::default())).is_ok() && polled[0].revents().contains(PollFlags::OUT)
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

    #[test]
    fn a_panic_is_written_directly_as_far_as_nobody_has_to_read() {
        let (mut reader, writer) = io::pipe().unwrap();
        assert_eq!(write_now(&writer, b"thread 'a' panicked\n"), b"");
        let mut line = [0; 20];
        io::Read::read_exact(&mut reader, &mut line).unwrap();
        assert_eq!(&line, b"thread 'a' panicked\n");

        // More than a pipe holds.
        let long = vec![b'x'; 1 << 20];
        let rest = write_now(&writer, &long);
        assert!((1..long.len()).contains(&rest.len()), "{} bytes are left", rest.len());
        assert_eq!(write_now(&writer, b"next"), b"next");
        drop(reader);
        assert_eq!(write_now(&writer, b"gone"), b"gone");
    }
}
