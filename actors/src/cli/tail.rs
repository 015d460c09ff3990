//! `logweir tail`: records as they come, through lost connections and restarts of the server.
//!
//! - A connection that is lost is made again, and goes on where it was: the token of the last record says where.
//! - What was dropped, or cannot be given any more, is said on standard error; nothing is left out silently.
//! - A server that is gone without a word (its machine lost power) is noticed by its silence: it says something every few
//!   seconds. A thread reads, so that the silence can be measured.

use std::io::{self, BufRead as _, BufReader, IsTerminal as _, Write as _};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread;
use std::time::Duration;

use clap::Args;
use serde_json::Value;

use super::events::{Event, Events};
use super::print::{Colour, Output};
use super::query::written;
use super::remote::{Remote, RemoteArgs, Trouble};
use super::{Failure, Outcome, exit};

/// Silence after which a connection is taken for lost.
const SILENCE_MAX: Duration = Duration::from_secs(30);
/// Lines that wait to be written.
const LINES_MAX: usize = 1000;
const PAUSE_FIRST: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);

#[derive(Debug, Args)]
pub(super) struct TailArgs {
    /// Which records, such as 'service:cart severity>=warn'; all if it is left out
    #[arg(default_value = "")]
    query: String,
    #[command(flatten)]
    remote: RemoteArgs,
    /// Stop after so many
    #[arg(long)]
    records: Option<u64>,
    /// Go on after this token of an earlier stream (its `id:`)
    #[arg(long, value_name = "TOKEN")]
    after: Option<String>,
    /// How they are written: text or ndjson
    #[arg(long, short, value_enum, default_value_t)]
    output: Output,
    /// Colours by severity
    #[arg(long, value_enum, default_value_t)]
    color: Colour,
}

/// How a connection ended.
enum End {
    /// There were as many records as were asked for.
    Enough,
    /// It was lost.
    Lost(String),
}

pub(super) fn tail(args: &TailArgs) -> Outcome {
    if args.output == Output::Csv {
        return Err(Failure::told(exit::USAGE, "a tail is written as text or ndjson"));
    }
    let remote = args.remote.remote();
    let mut tailing = Tailing {
        args,
        colours: args.color.is_on(),
        token: args.after.clone(),
        left: args.records.unwrap_or(u64::MAX),
        answered: false,
    };
    let mut pause = PAUSE_FIRST;
    loop {
        tailing.answered = false;
        let why = match tailing.connection(&remote) {
            Ok(End::Enough) => return Ok(exit::OK.into()),
            Ok(End::Lost(why)) | Err(Stop::Trouble(Trouble::Away(why))) => why,
            Err(Stop::Trouble(refused)) => return Err(refused.into()),
            Err(Stop::Failure(failure)) => return Err(failure),
        };
        if tailing.answered {
            pause = PAUSE_FIRST;
        }
        say(&format!("{why}: trying again"));
        thread::sleep(pause);
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// Why there will be no other connection.
enum Stop {
    Trouble(Trouble),
    Failure(Failure),
}

struct Tailing<'a> {
    args: &'a TailArgs,
    colours: bool,
    token: Option<String>,
    left: u64,
    answered: bool,
}

impl Tailing<'_> {
    fn connection(&mut self, remote: &Remote) -> Result<End, Stop> {
        let token = self.token.clone();
        let headers: Vec<(&str, &str)> = token.iter().map(|token| ("last-event-id", token.as_str())).collect();
        let response = remote.get("/api/v1/tail", &[("query", &self.args.query)], &headers).map_err(Stop::Trouble)?;
        self.answered = true;
        let lines = read(response.into_body().into_reader());
        let mut events = Events::default();
        loop {
            let line = match lines.recv_timeout(SILENCE_MAX) {
                Ok(Ok(line)) => line,
                Ok(Err(error)) => return Ok(End::Lost(format!("the connection was lost ({error})"))),
                Err(RecvTimeoutError::Disconnected) => {
                    return Ok(End::Lost("the server has ended the stream".to_owned()));
                }
                Err(RecvTimeoutError::Timeout) => return Ok(End::Lost("the server is silent".to_owned())),
            };
            let Some(event) = events.line(&line) else { continue };
            self.take(&event).map_err(Stop::Failure)?;
            if self.left == 0 {
                return Ok(End::Enough);
            }
        }
    }

    fn take(&mut self, event: &Event) -> Result<(), Failure> {
        match event.name.as_str() {
            "record" => {
                let text = written(&event.data, self.args.output, self.colours)?;
                let mut out = io::stdout().lock();
                out.write_all(text.as_bytes())?;
                out.flush()?;
                self.token = Some(event.id.clone());
                self.left -= 1;
            }
            "dropped" => say(&format!("{} records went past unseen: too many, or too quick", number(event, "dropped"))),
            "gap" => say(&format!(
                "{} records are missing: the server has them in its journal no more",
                number(event, "missing")
            )),
            _ => {}
        }
        Ok(())
    }
}

/// A number of an event's data; how many nobody knows is said too.
fn number(event: &Event, name: &str) -> String {
    let data: Value = serde_json::from_str(&event.data).unwrap_or_default();
    data[name].as_u64().map_or("some".to_owned(), |number| number.to_string())
}

fn read(body: impl io::Read + Send + 'static) -> Receiver<io::Result<String>> {
    let (sender, lines) = sync_channel(LINES_MAX);
    thread::spawn(move || {
        for line in BufReader::new(body).lines() {
            let ended = line.is_err();
            if sender.send(line).is_err() || ended {
                return;
            }
        }
    });
    lines
}

/// Between the records, and not among them.
fn say(what: &str) {
    let dim = io::stderr().is_terminal();
    let (on, off) = if dim { ("\x1b[2m", "\x1b[0m") } else { ("", "") };
    let _ = writeln!(io::stderr(), "{on}logweir: {what}{off}");
}
