//! `logweir produce`: sends a file, standard input or generated load, and measures how it is taken.
//!
//! ```text
//!  file, stdin, demo ─> bodies ─> [ one queue ] ─┬─> connection 1 ─┐
//!                                                ├─> connection 2 ─┼─> tally
//!                                                └─> connection N ─┘
//! ```
//! - Each connection is a thread with one request in flight, so the order inside a connection is kept.
//! - With `--rate` the load is an open loop: a body's latency counts from when it was due, so a server that stalls cannot
//!   hide the waiting of those behind.

mod bodies;
mod send;
mod tally;

use std::fs::File;
use std::io::{self, IsTerminal as _, Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use logweir_engine::codec::PAYLOAD_BYTES_MAX;
use uuid::Uuid;

use self::bodies::{Limits, Splitter};
use self::tally::Tally;
use super::{Failure, Outcome, exit};
use crate::config::keys::Unit;
use crate::config::value::quantity;
use crate::producer::demo::Demo;

/// With a rate, a body holds what is due within this part of a second, so that the load is even.
const BODIES_PER_SECOND: u64 = 10;

#[derive(Debug, Args)]
pub(super) struct ProduceArgs {
    /// Files to send, one after another; - is standard input, also if none is named
    files: Vec<PathBuf>,
    /// Send made-up records of a few services instead; until interrupted, or --records
    #[arg(long, conflicts_with = "files")]
    demo: bool,
    /// Where to
    #[arg(long, default_value = "http://127.0.0.1:8080/ingest")]
    url: String,
    /// Bearer token; better in $LOGWEIR_TOKEN, where the process list does not show it
    #[arg(long)]
    token: Option<String>,
    /// When a body counts as acknowledged [default: what the server is set to]
    #[arg(long, value_name = "LEVEL", value_parser = ["received", "journal", "committed"])]
    ack: Option<String>,
    /// How lines are to be understood; a json file is sent whole
    #[arg(long, value_parser = ["auto", "ndjson", "json", "plain", "lines", "access_log"])]
    format: Option<String>,
    /// Service name for records that do not say theirs
    #[arg(long)]
    service: Option<String>,
    /// Host name for records that do not say theirs
    #[arg(long)]
    host: Option<String>,
    /// Size of a body, unless one line is longer
    #[arg(long, default_value = "64KiB", value_name = "SIZE", value_parser = body_bytes)]
    batch_bytes: usize,
    /// Connections, each with one request in flight
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024))]
    connections: u16,
    /// Records per second, all connections together [default: as fast as they are taken]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    rate: Option<u64>,
    /// Stop after so many records
    #[arg(long)]
    records: Option<u64>,
    /// Compress bodies with gzip
    #[arg(long, conflicts_with = "zstd")]
    gzip: bool,
    /// Compress bodies with zstd
    #[arg(long)]
    zstd: bool,
    /// How long one body is tried again when the server is away or busy
    #[arg(long, default_value = "60s", value_name = "TIME", value_parser = duration)]
    retry_for: Duration,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

fn body_bytes(text: &str) -> Result<usize, String> {
    let bytes = quantity(text, Unit::Bytes).and_then(|bytes| usize::try_from(bytes).ok());
    bytes
        .filter(|bytes| (1..=PAYLOAD_BYTES_MAX).contains(bytes))
        .ok_or("write a size such as 64KiB, up to 16MiB".into())
}

fn duration(text: &str) -> Result<Duration, String> {
    quantity(text, Unit::Millis).map(Duration::from_millis).ok_or("write a time such as 500ms, 60s or 5m".into())
}

/// How a body is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Compression {
    None,
    Gzip,
    Zstd,
}

impl Compression {
    fn name(self) -> Option<&'static str> {
        match self {
            Self::None => None,
            Self::Gzip => Some("gzip"),
            Self::Zstd => Some("zstd"),
        }
    }
}

/// Where bodies go and how; the same for all connections.
struct Target {
    url: String,
    token: Option<String>,
    content_type: &'static str,
    compression: Compression,
    retry_for: Duration,
    /// Tells this run's bodies from any other's.
    run: Uuid,
}

/// One request's worth of lines.
#[derive(Debug)]
struct Body {
    /// From 1.
    number: u64,
    bytes: Vec<u8>,
    /// `None` for a document that only the server takes apart.
    records: Option<u64>,
    /// When it is to be sent, at a given rate.
    due: Option<Instant>,
}

/// What the connections and the reader share.
struct Shared {
    queue: Mutex<Receiver<Body>>,
    stop: AtomicBool,
    /// Why it was stopped: exit code and words. The first one counts.
    why: Mutex<Option<(u8, String)>>,
    warned: AtomicBool,
    progress: ProgressBar,
}

/// Set by SIGINT and SIGTERM; a second one ends the process.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

impl Shared {
    fn next_body(&self) -> Option<Body> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).recv().ok()
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed) || INTERRUPTED.load(Ordering::Relaxed)
    }

    fn stop(&self, code: u8, why: String) {
        self.why.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert((code, why));
        self.stop.store(true, Ordering::Relaxed);
        // A reader that waits for room in the queue must come back to see it.
        // If another connection holds the queue it is about to take from it, which makes room as well.
        if let Ok(queue) = self.queue.try_lock() {
            while queue.try_recv().is_ok() {}
        }
    }
}

pub(super) fn produce(args: &ProduceArgs) -> Outcome {
    let target = target(args)?;
    stop_on_signals();
    let (sender, receiver) = sync_channel(usize::from(args.connections));
    let shared = Shared {
        queue: Mutex::new(receiver),
        stop: AtomicBool::new(false),
        why: Mutex::new(None),
        warned: AtomicBool::new(false),
        progress: progress(args),
    };
    let start = Instant::now();
    let tally = thread::scope(|scope| {
        let connections: Vec<_> =
            (0..args.connections).map(|_| scope.spawn(|| send::connection(&target, &shared))).collect();
        // The feed owns the queue's sending end: when it ends, the connections do.
        Feed { args, sender, shared: &shared, start, bodies: 0, records: 0 }.run();
        let mut tally = Tally::default();
        for connection in connections {
            match connection.join() {
                Ok(one) => tally.add(one),
                Err(_) => shared.stop(exit::RESTARTS, "a connection's thread panicked".into()),
            }
        }
        tally
    });
    shared.progress.finish_and_clear();
    let why = shared.why.into_inner().unwrap_or_else(PoisonError::into_inner);
    report(args, &tally, start.elapsed(), why)
}

/// Prints what became of it, and says by exit code whether all is well.
fn report(args: &ProduceArgs, tally: &Tally, elapsed: Duration, why: Option<(u8, String)>) -> Outcome {
    // Load that nobody bounded ends by being interrupted; a file that was interrupted is not all sent.
    let endless = args.demo && args.records.is_none();
    let why = why.or_else(|| {
        let interrupted = INTERRUPTED.load(Ordering::Relaxed) && !endless;
        interrupted.then(|| (exit::FAILED, "interrupted before the end of the input".to_owned()))
    });
    let why = why.or_else(|| {
        let words = || format!("not everything was accepted: {} of {} records", tally.accepted, tally.sent);
        (!tally.all_accepted()).then(|| (exit::FAILED, words()))
    });
    let mut out = io::stdout().lock();
    if args.json {
        writeln!(out, "{}", tally.json(elapsed, why.as_ref().map(|(_, why)| why.as_str())))?;
    } else {
        tally.print(&mut out, elapsed, args.rate.is_some())?;
    }
    match why {
        None => Ok(exit::OK.into()),
        Some((code, why)) => Err(Failure::Told(
            code,
            format!("{why} (sent {}, accepted {}, rejected {})", tally.sent, tally.accepted, tally.rejected),
        )),
    }
}

fn target(args: &ProduceArgs) -> Result<Target, Failure> {
    let uri: ureq::http::Uri =
        args.url.parse().map_err(|error| Failure::told(exit::USAGE, format!("--url: {error}")))?;
    if !matches!(uri.scheme_str(), Some("http" | "https")) || uri.host().is_none() {
        return Err(Failure::told(exit::USAGE, "--url: write http://HOST:PORT/ingest"));
    }
    let token = args.token.clone().or_else(|| std::env::var("LOGWEIR_TOKEN").ok()).filter(|token| !token.is_empty());
    if token.as_ref().is_some_and(|token| !token.bytes().all(|byte| byte.is_ascii_graphic())) {
        return Err(Failure::told(exit::USAGE, "the token holds a character that no header can carry"));
    }
    let mut url = args.url.clone();
    let parameters = [("ack", &args.ack), ("format", &args.format), ("service", &args.service), ("host", &args.host)];
    for (name, value) in parameters {
        if let Some(value) = value {
            url.push(if url.contains('?') { '&' } else { '?' });
            url.push_str(&format!("{name}={}", percent_encoded(value)));
        }
    }
    let content_type = match args.format.as_deref() {
        Some("json") => "application/json",
        Some("ndjson") => "application/x-ndjson",
        None if args.demo => "application/x-ndjson",
        _ => "text/plain; charset=utf-8",
    };
    let compression = match (args.gzip, args.zstd) {
        (true, _) => Compression::Gzip,
        (_, true) => Compression::Zstd,
        _ => Compression::None,
    };
    Ok(Target { url, token, content_type, compression, retry_for: args.retry_for, run: Uuid::now_v7() })
}

fn percent_encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

fn progress(args: &ProduceArgs) -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let template = "{spinner} {human_pos} records  {per_sec}  {elapsed}";
    let bounded = "{bar:40} {human_pos}/{human_len} records  {per_sec}  {eta}";
    let bar = match args.records {
        Some(records) => ProgressBar::with_draw_target(Some(records), ProgressDrawTarget::stderr()),
        None => ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr()),
    };
    let style = ProgressStyle::with_template(if args.records.is_some() { bounded } else { template });
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

/// The reading end: cuts input into bodies, gives them their time, and waits while the connections are busy.
struct Feed<'a> {
    args: &'a ProduceArgs,
    sender: SyncSender<Body>,
    shared: &'a Shared,
    start: Instant,
    bodies: u64,
    records: u64,
}

impl Feed<'_> {
    fn run(mut self) {
        if self.args.demo {
            return self.demo();
        }
        let stdin = [PathBuf::from("-")];
        let files = if self.args.files.is_empty() { &stdin[..] } else { &self.args.files[..] };
        for file in files {
            if let Err(error) = self.file(file) {
                return self.shared.stop(exit::NO_INPUT, format!("{}: {error}", file.display()));
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
        let input = Patient { file, shared: self.shared };
        if self.args.format.as_deref() == Some("json") {
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

    /// A JSON document has no line ends to split at.
    fn document(&mut self, input: impl io::Read) -> io::Result<()> {
        let mut body = Vec::new();
        input.take(PAYLOAD_BYTES_MAX as u64 + 1).read_to_end(&mut body)?;
        if body.len() > PAYLOAD_BYTES_MAX {
            return Err(io::Error::other(format!("is longer than {PAYLOAD_BYTES_MAX} bytes: send it as ndjson")));
        }
        self.emit(body, None);
        Ok(())
    }

    /// What the next body may hold; `None` when there shall be no more.
    fn limits(&self) -> Option<Limits> {
        let left = self.args.records.map_or(u64::MAX, |records| records.saturating_sub(self.records));
        if left == 0 || self.shared.stopped() {
            return None;
        }
        let even = self.args.rate.map_or(u64::MAX, |rate| (rate / BODIES_PER_SECOND).max(1));
        Some(Limits { bytes_max: self.args.batch_bytes, records_max: left.min(even) })
    }

    /// Queues a body; false when nobody takes any more.
    fn emit(&mut self, bytes: Vec<u8>, records: Option<u64>) -> bool {
        let due = self.args.rate.map(|rate| self.start + Duration::from_secs_f64(self.records as f64 / rate as f64));
        self.bodies += 1;
        self.records += records.unwrap_or(0);
        self.sender.send(Body { number: self.bodies, bytes, records, due }).is_ok() && !self.shared.stopped()
    }
}

/// Reads what comes, and notices meanwhile that nobody wants it any more.
struct Patient<'a> {
    file: File,
    shared: &'a Shared,
}

impl io::Read for Patient<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        const LOOK_EVERY_MS: libc::c_int = 100;
        let mut ready = libc::pollfd { fd: self.file.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one pollfd, which lives across the call; the descriptor is ours.
        while unsafe { libc::poll(&raw mut ready, 1, LOOK_EVERY_MS) } <= 0 {
            if self.shared.stopped() {
                return Err(io::ErrorKind::Interrupted.into());
            }
        }
        self.file.read(buffer)
    }
}

fn stop_on_signals() {
    extern "C" fn interrupted(_: libc::c_int) {
        INTERRUPTED.store(true, Ordering::Relaxed);
    }
    // SAFETY: the handler only stores to an atomic, which is allowed in a signal handler; SA_RESETHAND gives the second
    // signal its usual effect, and without SA_RESTART a blocked read comes back.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = interrupted as *const () as libc::sighandler_t;
        action.sa_flags = libc::SA_RESETHAND;
        for signal in [libc::SIGINT, libc::SIGTERM] {
            libc::sigaction(signal, &raw const action, std::ptr::null_mut());
        }
    }
}
