//! `logweir produce`: sends files, standard input or generated records, and measures the acknowledgments.
//!
//! ```text
//!  file, stdin, demo ─> bodies ─> [ one queue ] ─┬─> connection 1 ─┐
//!                                                ├─> connection 2 ─┼─> tally
//!                                                └─> connection N ─┘
//! ```
//! - Each connection is a thread with one request in flight, so that order is kept within a connection.
//! - With `--rate` the load is an open loop: the latency of a body counts from the time at which it was due, so that a
//!   stalled server cannot hide the delay of the bodies behind it.
//! - A signal ends the command within a second, whatever a thread waits for: it wakes every wait for the queue, for
//!   time and for input (`stop`), and a thread that is blocked in the system (an unresponsive server, a slow file
//!   system) is not waited for.

mod bodies;
mod queue;
mod send;
mod stop;
mod tally;

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, IsTerminal as _, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use indicatif::{HumanCount, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
use logweir_record::codec::PAYLOAD_BYTES_MAX;
use uuid::Uuid;

use self::bodies::{Limits, Splitter};
use self::queue::Queue;
use self::stop::{Reason, Signals, Stop};
use self::tally::Tally;
use super::output::{self, Output};
use super::remote::{Access, Remote, RemoteArgs};
use super::{Failure, Outcome, exit};
use logweir::config::{Unit, quantity};
use logweir::producer::demo::Demo;

/// With a rate, a body holds the records that are due within this fraction of a second, so that the load is even.
const BODIES_PER_SECOND: u64 = 10;

#[derive(Debug, Args)]
pub(super) struct ProduceArgs {
    /// Files to send, one after another; `-` is standard input, which is also the default
    files: Vec<PathBuf>,
    /// Generate sample records of several services, until interrupted or up to --records
    #[arg(long, conflicts_with = "files")]
    demo: bool,
    /// Acknowledgment level to wait for: received (in memory), journal (on disk) or committed (in the database)
    ///
    /// Default: the server's setting `ack`.
    #[arg(long, value_name = "LEVEL", value_parser = ["received", "journal", "committed"], hide_possible_values = true)]
    ack: Option<String>,
    /// Format of the lines, by name
    #[arg(long, value_name = "FORMAT", help = format_help())]
    format: Option<String>,
    /// Service name of records that have none
    #[arg(long, value_name = "NAME")]
    service: Option<String>,
    /// Host name of records that have none
    #[arg(long, value_name = "NAME")]
    host: Option<String>,
    /// Maximum size of a request body, unless a single line is longer
    #[arg(long, default_value = "64KiB", value_name = "SIZE", value_parser = body_bytes)]
    batch_bytes: usize,
    /// Number of connections, each with one request in flight
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    connections: u16,
    /// Records to send per second over all connections [default: as many as possible]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    rate: Option<u64>,
    /// Stop after this many records
    #[arg(long, short = 'n', value_name = "N")]
    records: Option<u64>,
    /// Compression of the request bodies
    #[arg(long, value_enum, default_value_t, value_name = "METHOD")]
    compress: Compression,
    /// How long a body is retried while the server is unreachable or busy
    #[arg(long, default_value = "60s", value_name = "TIME", value_parser = duration)]
    retry_for: Duration,
    /// Output format of the summary
    #[arg(long, short, value_name = "FORMAT", default_value = "text", value_parser = output::among([Output::Text, Output::Json]))]
    output: Output,
    #[command(flatten)]
    pub(super) remote: RemoteArgs,
}

fn format_help() -> String {
    let names = logweir_formats::format_names();
    format!(
        "Format of the lines: {names}, or a format configured on the server; a json file is sent as one document \
         [default: auto]"
    )
}

fn body_bytes(text: &str) -> Result<usize, String> {
    let bytes = quantity(text, Unit::Bytes).and_then(|bytes| usize::try_from(bytes).ok());
    bytes
        .filter(|bytes| (1..=PAYLOAD_BYTES_MAX).contains(bytes))
        .ok_or("expected a size from 1 to 16MiB, such as 64KiB".into())
}

fn duration(text: &str) -> Result<Duration, String> {
    quantity(text, Unit::Millis)
        .map(Duration::from_millis)
        .ok_or("expected a whole number with a unit, such as 500ms, 60s or 5m".into())
}

/// Compression of a body.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Compression {
    #[default]
    None,
    Gzip,
    Zstd,
    Deflate,
    Snappy,
}

impl Compression {
    /// Value of `Content-Encoding`.
    fn name(self) -> Option<&'static str> {
        match self {
            Self::None => None,
            Self::Gzip => Some("gzip"),
            Self::Zstd => Some("zstd"),
            Self::Deflate => Some("deflate"),
            Self::Snappy => Some("snappy"),
        }
    }
}

/// The request that each body is sent with; the same for all connections.
struct Target {
    remote: Remote,
    /// With the parameters.
    url: String,
    content_type: &'static str,
    compression: Compression,
    retry_for: Duration,
    /// Distinguishes the bodies of this run from those of any other.
    run: Uuid,
}

/// The lines of one request.
#[derive(Debug)]
struct Body {
    /// From 1.
    number: u64,
    bytes: Vec<u8>,
    /// `None` for a document: only the server knows how many records it holds.
    records: Option<u64>,
    /// When it is to be sent, at a given rate.
    due: Option<Instant>,
}

/// State shared by the connections and the feed.
struct Shared {
    queue: Queue<Body>,
    stop: Arc<Stop>,
    /// Exit code and message of the first failure.
    failure: Mutex<Option<(u8, String)>>,
    warned: AtomicBool,
    quiet: bool,
    progress: ProgressBar,
}

impl Shared {
    fn stop(&self, reason: Reason) {
        self.stop.set(reason);
        self.queue.stop();
    }

    fn fail(&self, code: u8, why: String) {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert((code, why));
        self.stop(Reason::Failure);
    }

    /// Prints a line to standard error, above the progress bar.
    fn note(&self, line: &str) {
        if !self.quiet {
            self.progress.suspend(|| drop(writeln!(io::stderr(), "logweir: {line}")));
        }
    }
}

pub(super) fn produce(args: &ProduceArgs) -> Outcome {
    let target = Arc::new(target(args)?);
    let signals = Signals::block();
    let stop =
        Stop::new().map_err(|error| Failure::new(exit::UNAVAILABLE, format!("cannot create a pipe: {error}")))?;
    let connections = usize::from(args.connections);
    let shared = Arc::new(Shared {
        queue: Queue::new(connections),
        stop: Arc::new(stop),
        failure: Mutex::new(None),
        warned: AtomicBool::new(false),
        quiet: args.remote.config.quiet,
        progress: progress(args),
    });
    let stopped = Arc::clone(&shared);
    signals.on_first(move || stopped.stop(Reason::Signal));
    let start = Instant::now();
    let tallies: Vec<Arc<Mutex<Tally>>> = (0..connections).map(|_| Arc::default()).collect();
    for tally in &tallies {
        let (target, tally) = (Arc::clone(&target), Arc::clone(tally));
        spawn(&shared, move |shared| send::connection(&target, shared, &tally));
    }
    let input = Input {
        files: if args.files.is_empty() { vec![PathBuf::from("-")] } else { args.files.clone() },
        demo: args.demo,
        document: args.format.as_deref() == Some("json"),
        batch_bytes: args.batch_bytes,
        rate: args.rate,
        records_max: args.records,
    };
    spawn(&shared, move |shared| {
        Feed { input, shared, start, bodies: 0, records: 0 }.run();
        shared.queue.close();
    });
    shared.stop.wait_for_threads();
    shared.progress.finish_and_clear();
    let mut tally = Tally::default();
    for one in &tallies {
        tally.add(&one.lock().unwrap_or_else(PoisonError::into_inner));
    }
    let failure = shared.failure.lock().unwrap_or_else(PoisonError::into_inner).take();
    let interrupted = shared.stop.reason() == Some(Reason::Signal);
    report(args, &tally, start.elapsed(), failure, interrupted)
}

/// Starts a thread that is waited for, but not joined.
fn spawn(shared: &Arc<Shared>, work: impl FnOnce(&Shared) + Send + 'static) {
    let (shared, running) = (Arc::clone(shared), shared.stop.running());
    thread::spawn(move || {
        let work = std::panic::AssertUnwindSafe(|| work(&shared));
        if std::panic::catch_unwind(work).is_err() {
            shared.fail(exit::RESTARTS, "a thread panicked".into());
        }
        drop(running);
    });
}

/// Prints the summary, and returns the exit code.
fn report(
    args: &ProduceArgs,
    tally: &Tally,
    elapsed: Duration,
    failure: Option<(u8, String)>,
    interrupted: bool,
) -> Outcome {
    // Unlimited load ends by being interrupted; an interrupted file was not sent completely.
    let endless = args.demo && args.records.is_none();
    let failure = failure.or_else(|| {
        (interrupted && !endless).then(|| (exit::FAILED, "interrupted before the end of the input".to_owned()))
    });
    let failure = failure.or_else(|| {
        let message = || format!("not all records were accepted: {} of {}", tally.accepted, tally.sent);
        (!tally.all_accepted()).then(|| (exit::FAILED, message()))
    });
    let mut out = io::stdout().lock();
    match args.output {
        Output::Json => {
            output::json(&mut out, &tally.json(elapsed, failure.as_ref().map(|(_, why)| why.as_str())))?;
        }
        _ => tally.print(&mut out, elapsed, args.rate.is_some())?,
    }
    match failure {
        None => Ok(exit::OK.into()),
        Some((code, why)) => {
            let (sent, accepted, rejected) = (tally.sent, tally.accepted, tally.rejected);
            Err(Failure::new(code, format!("{why} (sent {sent}, accepted {accepted}, rejected {rejected})")))
        }
    }
}

fn target(args: &ProduceArgs) -> Result<Target, Failure> {
    let remote = args.remote.remote(Access::Ingest)?;
    let mut url = format!("{}/ingest", remote.url());
    let parameters = [("ack", &args.ack), ("format", &args.format), ("service", &args.service), ("host", &args.host)];
    for (name, value) in parameters {
        if let Some(value) = value {
            url.push(if url.contains('?') { '&' } else { '?' });
            let _ = write!(url, "{name}={}", percent_encoded(value));
        }
    }
    let content_type = match args.format.as_deref() {
        Some("json") => "application/json",
        Some("ndjson") => "application/x-ndjson",
        None if args.demo => "application/x-ndjson",
        _ => "text/plain; charset=utf-8",
    };
    Ok(Target { remote, url, content_type, compression: args.compress, retry_for: args.retry_for, run: Uuid::now_v7() })
}

fn percent_encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

fn progress(args: &ProduceArgs) -> ProgressBar {
    if args.remote.config.quiet || !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let template = "{spinner} {human_pos} records  {rate}  {elapsed}";
    let bounded = "{bar:40} {human_pos}/{human_len} records  {rate}  {eta}";
    let bar = ProgressBar::with_draw_target(args.records, ProgressDrawTarget::stderr());
    let style = ProgressStyle::with_template(if args.records.is_some() { bounded } else { template });
    let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
    bar.set_style(style.with_key("rate", |state: &ProgressState, out: &mut dyn std::fmt::Write| {
        let _ = out.write_str(&rate(state.per_sec()));
    }));
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

/// A rate without decimals: `529,389/s`.
fn rate(per_second: f64) -> String {
    format!("{}/s", HumanCount(per_second.round() as u64))
}

/// What to send.
struct Input {
    files: Vec<PathBuf>,
    demo: bool,
    /// Whether a file is one JSON document.
    document: bool,
    batch_bytes: usize,
    rate: Option<u64>,
    records_max: Option<u64>,
}

/// The reading end: splits the input into bodies, schedules them, and waits while the connections are busy.
struct Feed<'a> {
    input: Input,
    shared: &'a Shared,
    start: Instant,
    bodies: u64,
    records: u64,
}

impl Feed<'_> {
    fn run(mut self) {
        if self.input.demo {
            return self.demo();
        }
        for path in std::mem::take(&mut self.input.files) {
            if let Err(error) = self.file(&path) {
                return self.shared.fail(exit::NO_INPUT, format!("{}: {error}", path.display()));
            }
        }
    }

    fn demo(&mut self) {
        let mut demo = Demo::new(rand::random());
        while let Some(limits) = self.limits() {
            let (mut body, mut records) = (Vec::with_capacity(limits.bytes_max + 1024), 0);
            while records < limits.records_max && body.len() < limits.bytes_max {
                body.extend_from_slice(demo.next_line(logweir_engine::clock::wall_us()).as_bytes());
                body.push(b'\n');
                records += 1;
            }
            if !self.emit(body, Some(records)) {
                return;
            }
        }
    }

    fn file(&mut self, path: &Path) -> io::Result<()> {
        let stdin = path == Path::new("-");
        // Not `io::stdin().lock()`: its buffer would make small bodies of large writes.
        let file = if stdin { io::stdin().as_fd().try_clone_to_owned()?.into() } else { File::open(path)? };
        let regular = file.metadata()?.is_file();
        let input = Interruptible { file, stop: &self.shared.stop };
        if self.input.document {
            return self.document(input);
        }
        // Both closures need the feed, one after the other.
        let feed = std::cell::RefCell::new(self);
        Splitter::default().read(
            input,
            !regular,
            || feed.borrow().limits(),
            |body, records| feed.borrow_mut().emit(body, Some(records)),
        )
    }

    /// Sends a JSON document, which has no line ends to split at.
    fn document(&mut self, input: impl io::Read) -> io::Result<()> {
        let (mut input, mut body) = (input.take(PAYLOAD_BYTES_MAX as u64 + 1), Vec::new());
        // Not `read_to_end`, which retries an interrupted read without end.
        let mut buffer = vec![0; 64 << 10];
        loop {
            match input.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => body.extend_from_slice(&buffer[..read]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted && self.shared.stop.is_set() => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        if body.len() > PAYLOAD_BYTES_MAX {
            let why = format!("the document is longer than {PAYLOAD_BYTES_MAX} bytes: convert it to ndjson");
            return Err(io::Error::other(why));
        }
        self.emit(body, None);
        Ok(())
    }

    /// Returns the limits of the next body, or `None` after the last one.
    fn limits(&self) -> Option<Limits> {
        let left = self.input.records_max.map_or(u64::MAX, |records| records.saturating_sub(self.records));
        if left == 0 || self.shared.stop.is_set() {
            return None;
        }
        let even = self.input.rate.map_or(u64::MAX, |rate| (rate / BODIES_PER_SECOND).max(1));
        Some(Limits { bytes_max: self.input.batch_bytes, records_max: left.min(even) })
    }

    /// Queues a body; false if the command was stopped.
    fn emit(&mut self, bytes: Vec<u8>, records: Option<u64>) -> bool {
        let due = self.input.rate.map(|rate| self.start + Duration::from_secs_f64(self.records as f64 / rate as f64));
        self.bodies += 1;
        self.records += records.unwrap_or(0);
        let body = Body { number: self.bodies, bytes, records, due };
        self.shared.queue.push(body)
    }
}

/// A file whose reads end when the command is stopped.
struct Interruptible<'a> {
    file: File,
    stop: &'a Stop,
}

impl io::Read for Interruptible<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.stop.wait_readable(self.file.as_fd())? {
            true => self.file.read(buffer),
            false => Err(io::ErrorKind::Interrupted.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_has_no_decimals() {
        assert_eq!(rate(529_388.927_2), "529,389/s");
        assert_eq!(rate(0.0), "0/s");
    }

    #[test]
    fn sizes_and_times_are_whole_numbers_with_a_unit() {
        assert_eq!(body_bytes("64KiB"), Ok(65_536));
        assert!(body_bytes("17MiB").unwrap_err().contains("from 1 to 16MiB"));
        assert!(body_bytes("1.5KiB").is_err());
        assert_eq!(duration("5m"), Ok(Duration::from_secs(300)));
        assert!(duration("5").is_ok() && duration("soon").is_err());
    }
}
