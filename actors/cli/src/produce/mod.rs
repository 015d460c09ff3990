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

mod stop;
mod queue;
mod bodies;
mod tally;
mod target;
mod shared;
mod feed;
mod send;

use std::fmt::Write as _;
use std::io::{self, IsTerminal as _};
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use indicatif::{HumanCount, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
use logweir_record::codec::PAYLOAD_BYTES_MAX;
use uuid::Uuid;

use self::feed::{Feed, Input};
use self::queue::Queue;
use self::shared::Shared;
use self::stop::{Reason, Stop, on_first_signal};
use self::tally::Tally;
use self::target::{Compression, Target};
use crate::exit;
use crate::failure::{Failure, Outcome};
use crate::output::{self, Output};
use crate::remote::{Access, RemoteArgs};
use logweir::config::{Unit, quantity};

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

pub(super) fn produce(args: &ProduceArgs) -> Outcome {
    let target = Arc::new(target(args)?);
    let no_pipe = |error| Failure::new(exit::UNAVAILABLE, format!("cannot create a pipe: {error}"));
    let stop = Stop::new().map_err(no_pipe)?;
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
    on_first_signal(move || stopped.stop(Reason::Signal)).map_err(no_pipe)?;
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
        Feed::new(input, shared, start).run();
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
            shared.fail(exit::SOFTWARE, "a thread panicked".into());
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
