//! `logweir tail`: prints records as they arrive, across lost connections and restarts of the server.
//!
//! - A lost connection is reopened and resumes after the last token received, which the server sends before the first record
//!   as well. Only the first connection has a limited number of attempts, so that a script with a wrong address ends.
//! - Dropped or no longer available records are reported on standard error; none is omitted silently.
//! - A server that disappears without closing the connection (power loss) is detected by its silence: it sends something
//!   every few seconds. A thread reads, so that silence can be measured.

use std::collections::HashSet;
use std::io::{self, IsTerminal as _, Stdout, Write as _};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread;
use std::time::Duration;

use clap::Args;
use serde_json::Value;

use crate::exit;
use crate::failure::{Failure, Outcome};
use crate::output::{self, Color, Output, Records, record_id};
use crate::query_words::QueryWords;
use crate::remote::{Access, Remote, RemoteArgs, RemoteError};
use crate::terminal::wants_color;
use logweir::internal::{Backoff, Event, Events};

/// Silence after which a connection is considered lost.
const SILENCE_MAX: Duration = Duration::from_secs(30);
/// Size of a read, and number of reads that are buffered.
const READ_BYTES: usize = 16 << 10;
const READS_MAX: usize = 64;
/// Attempts after the first that fails, until a connection was open once.
pub(super) const RETRIES: u32 = 5;
/// Delays before the next connection.
const RECONNECT: Backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));

#[derive(Debug, Args)]
pub(super) struct TailArgs {
    #[command(flatten)]
    query: QueryWords,
    /// Exit after N records
    #[arg(long, short = 'n', alias = "records", value_name = "N")]
    limit: Option<u64>,
    /// Resume after the event with this ID from an earlier stream
    #[arg(long, value_name = "ID")]
    after: Option<String>,
    /// Give up after N retries (exit code 69) if the server has never responded
    ///
    /// The pause between retries grows from 0.1 to 5 seconds; 5 retries take about 3 seconds. After the first connection,
    /// tail reconnects without limit.
    #[arg(long, value_name = "N", default_value_t = RETRIES)]
    retries: u32,
    /// Output format; json is the same as ndjson, because a stream has no end
    #[arg(long, short, value_name = "FORMAT", default_value = "text",
        value_parser = output::among([Output::Text, Output::Json, Output::Ndjson]))]
    output: Output,
    /// Color the text output by severity
    #[arg(long, value_name = "WHEN", value_enum, default_value_t)]
    color: Color,
    /// Accepted for habit: this command always follows
    #[arg(long, short, hide = true)]
    follow: bool,
    #[command(flatten)]
    pub(super) remote: RemoteArgs,
}

/// What is written before the first record of a stream. Returns the ids of the records.
type Before<'a> = Box<dyn FnOnce(&mut Records<Stdout>) -> Result<HashSet<String>, Failure> + 'a>;

/// What to follow, and how to write it.
pub(super) struct Follow<'a> {
    pub(super) query: String,
    pub(super) output: Output,
    pub(super) colors: bool,
    pub(super) after: Option<String>,
    pub(super) limit: u64,
    pub(super) retries: u32,
    pub(super) quiet: bool,
    pub(super) before: Option<Before<'a>>,
}

/// How a connection ended.
enum End {
    /// The limit is reached.
    Limit,
    /// It was lost.
    Lost(String),
}

pub(super) fn tail(args: &TailArgs) -> Outcome {
    let remote = args.remote.remote(Access::Query)?;
    let output = if args.output == Output::Json { Output::Ndjson } else { args.output };
    follow(
        &remote,
        Follow {
            query: args.query.query(),
            output,
            colors: args.color.is_on(),
            after: args.after.clone(),
            limit: args.limit.unwrap_or(u64::MAX),
            retries: args.retries,
            quiet: args.remote.config.quiet,
            before: None,
        },
    )
}

/// Writes records until the limit is reached.
pub(super) fn follow(remote: &Remote, follow: Follow<'_>) -> Outcome {
    let Follow { query, output, colors, after, limit, retries, quiet, before } = follow;
    if limit == 0 {
        return Ok(exit::OK.into());
    }
    let records = Records::new(io::stdout(), output, colors);
    let mut tail =
        Tail { query, records, token: after, left: limit, quiet, before, printed: HashSet::new(), connected: false };
    let (mut delays, mut left, mut ever) = (RECONNECT.delays(), retries, false);
    loop {
        tail.connected = false;
        let why = match tail.connection(remote) {
            Ok(End::Limit) => return Ok(exit::OK.into()),
            Ok(End::Lost(why)) | Err(Stop::Remote(RemoteError::Unavailable(why))) => why,
            Err(Stop::Remote(rejected)) => return Err(rejected.into()),
            Err(Stop::Failure(failure)) => return Err(failure),
        };
        ever |= tail.connected;
        if tail.connected {
            delays = RECONNECT.delays();
        }
        if !ever && left == 0 {
            let attempts = output::count(u64::from(retries) + 1, "attempt");
            return Err(Failure::new(exit::UNAVAILABLE, format!("{why}; gave up after {attempts} (--retries)")));
        }
        left = left.saturating_sub(1);
        tail.note(&format!("{why}: reconnecting"));
        thread::sleep(delays.next_delay());
    }
}

/// Why no other connection is opened.
enum Stop {
    Remote(RemoteError),
    Failure(Failure),
}

struct Tail<'a> {
    query: String,
    records: Records<Stdout>,
    token: Option<String>,
    left: u64,
    quiet: bool,
    before: Option<Before<'a>>,
    /// Ids of records that were written before the first connection's.
    printed: HashSet<String>,
    connected: bool,
}

impl Tail<'_> {
    fn connection(&mut self, remote: &Remote) -> Result<End, Stop> {
        let token = self.token.clone();
        let headers: Vec<(&str, &str)> = token.iter().map(|token| ("last-event-id", token.as_str())).collect();
        let response = remote.get("/api/v1/tail", &[("query", &self.query)], &headers).map_err(Stop::Remote)?;
        self.connected = true;
        let reads = read(response.into_body().into_reader());
        if let Some(before) = self.before.take() {
            self.printed = before(&mut self.records).map_err(Stop::Failure)?;
        }
        let mut events = Events::default();
        loop {
            let bytes = match reads.recv_timeout(SILENCE_MAX) {
                Ok(Ok(bytes)) => bytes,
                Ok(Err(error)) => return Ok(End::Lost(format!("connection lost ({error})"))),
                Err(RecvTimeoutError::Disconnected) => return Ok(End::Lost("the server closed the stream".to_owned())),
                Err(RecvTimeoutError::Timeout) => {
                    return Ok(End::Lost(format!("no data from the server for {} s", SILENCE_MAX.as_secs())));
                }
            };
            let complete = match events.push(&bytes) {
                Ok(complete) => complete,
                Err(too_long) => return Ok(End::Lost(too_long.to_string())),
            };
            for event in complete {
                self.event(&event).map_err(Stop::Failure)?;
                if self.left == 0 {
                    return Ok(End::Limit);
                }
            }
        }
    }

    fn event(&mut self, event: &Event) -> Result<(), Failure> {
        match event.name.as_str() {
            "record" if self.was_printed(&event.data) => {}
            "record" => {
                self.records.write(&event.data)?;
                self.records.flush()?;
                self.left -= 1;
            }
            "dropped" => {
                self.note(&format!(
                    "dropped {}: they arrived faster than they could be sent",
                    records(event, "dropped")
                ));
            }
            "gap" => {
                let skipped = records(event, "missing");
                self.note(&format!("skipped {skipped}: the server's journal no longer contains them"));
            }
            _ => {}
        }
        if event.id.is_some() {
            self.token.clone_from(&event.id);
        }
        Ok(())
    }

    fn was_printed(&self, record: &str) -> bool {
        !self.printed.is_empty() && record_id(record).is_some_and(|id| self.printed.contains(&id))
    }

    /// Writes a status message between the records, to standard error.
    fn note(&self, what: &str) {
        if self.quiet {
            return;
        }
        let dim = wants_color(io::stderr().is_terminal());
        let (on, off) = if dim { ("\x1b[2m", "\x1b[0m") } else { ("", "") };
        let _ = writeln!(io::stderr(), "{on}logweir: {what}{off}");
    }
}

/// A number of records in an event's data, which may be unknown.
fn records(event: &Event, name: &str) -> String {
    let data: Value = serde_json::from_str(&event.data).unwrap_or_default();
    data[name].as_u64().map_or("an unknown number of records".to_owned(), |number| output::count(number, "record"))
}

fn read(mut body: impl io::Read + Send + 'static) -> Receiver<io::Result<Vec<u8>>> {
    let (sender, reads) = sync_channel(READS_MAX);
    thread::spawn(move || {
        loop {
            let mut bytes = vec![0; READ_BYTES];
            let read = body.read(&mut bytes);
            let ended = read.is_err() || matches!(read, Ok(0));
            let bytes = read.map(|len| {
                bytes.truncate(len);
                bytes
            });
            // The end of the stream is reported by disconnecting the channel.
            if matches!(&bytes, Ok(bytes) if bytes.is_empty()) || sender.send(bytes).is_err() || ended {
                return;
            }
        }
    });
    reads
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_can_be_resumed_before_its_first_record() {
        let records = Records::new(io::stdout(), Output::Ndjson, false);
        let (query, printed) = (String::new(), HashSet::from(["7".to_owned()]));
        let mut tail =
            Tail { query, records, token: None, left: 9, quiet: true, before: None, printed, connected: true };
        let stream = b"id: a.1\n\nevent: dropped\ndata: {\"dropped\":1}\n\nevent: record\ndata: {\"id\":\"7\"}\n\n";
        for event in Events::default().push(stream).unwrap() {
            assert!(tail.event(&event).is_ok());
        }
        assert_eq!(tail.token.as_deref(), Some("a.1"));
        assert_eq!(tail.left, 9, "a record that was already printed is not printed again");
    }
}
