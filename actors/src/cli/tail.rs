//! `logweir tail`: records as they come, through lost connections and restarts of the server.
//!
//! - A connection that is lost is made again, and goes on where it was: the last token says where, which may have come
//!   before the first record.
//! - What was dropped, or cannot be given any more, is said on standard error; nothing is left out silently.
//! - A server that is gone without a word (its machine lost power) is noticed by its silence: it says something every few
//!   seconds. A thread reads, so that the silence can be measured.

use std::io::{self, IsTerminal as _, Write as _};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread;
use std::time::Duration;

use clap::Args;
use serde_json::Value;

use super::print::{Colour, Output};
use super::query::written;
use super::remote::{Remote, RemoteArgs, Trouble};
use super::{Failure, Outcome, exit};
use crate::sse::{Event, Events};

/// Silence after which a connection is taken for lost.
const SILENCE_MAX: Duration = Duration::from_secs(30);
/// A piece of the stream, and how many of them wait to be written.
const PIECE_BYTES: usize = 16 << 10;
const PIECES_MAX: usize = 64;
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
        let pieces = read(response.into_body().into_reader());
        let mut events = Events::default();
        loop {
            let piece = match pieces.recv_timeout(SILENCE_MAX) {
                Ok(Ok(piece)) => piece,
                Ok(Err(error)) => return Ok(End::Lost(format!("the connection was lost ({error})"))),
                Err(RecvTimeoutError::Disconnected) => {
                    return Ok(End::Lost("the server has ended the stream".to_owned()));
                }
                Err(RecvTimeoutError::Timeout) => return Ok(End::Lost("the server is silent".to_owned())),
            };
            let whole = match events.push(&piece) {
                Ok(whole) => whole,
                Err(too_long) => return Ok(End::Lost(too_long.to_string())),
            };
            for event in whole {
                self.take(&event).map_err(Stop::Failure)?;
                if self.left == 0 {
                    return Ok(End::Enough);
                }
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
                self.left -= 1;
            }
            "dropped" => say(&format!("{} records went past unseen: too many, or too quick", number(event, "dropped"))),
            "gap" => say(&format!(
                "{} records are missing: the server has them in its journal no more",
                number(event, "missing")
            )),
            _ => {}
        }
        if event.id.is_some() {
            self.token.clone_from(&event.id);
        }
        Ok(())
    }
}

/// A number of an event's data; how many nobody knows is said too.
fn number(event: &Event, name: &str) -> String {
    let data: Value = serde_json::from_str(&event.data).unwrap_or_default();
    data[name].as_u64().map_or("some".to_owned(), |number| number.to_string())
}

fn read(mut body: impl io::Read + Send + 'static) -> Receiver<io::Result<Vec<u8>>> {
    let (sender, pieces) = sync_channel(PIECES_MAX);
    thread::spawn(move || {
        loop {
            let mut piece = vec![0; PIECE_BYTES];
            let read = body.read(&mut piece);
            let ended = read.is_err() || matches!(read, Ok(0));
            let piece = read.map(|len| {
                piece.truncate(len);
                piece
            });
            // Nothing more comes behind the end: that is said by hanging up.
            if matches!(&piece, Ok(piece) if piece.is_empty()) || sender.send(piece).is_err() || ended {
                return;
            }
        }
    });
    pieces
}

/// Between the records, and not among them.
fn say(what: &str) {
    let dim = io::stderr().is_terminal();
    let (on, off) = if dim { ("\x1b[2m", "\x1b[0m") } else { ("", "") };
    let _ = writeln!(io::stderr(), "{on}logweir: {what}{off}");
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        tail: TailArgs,
    }

    #[test]
    fn the_place_where_a_stream_begins_is_one_to_go_on_from() {
        let Line { tail: args } = Line::parse_from(["tail"]);
        let mut tailing = Tailing { args: &args, colours: false, token: None, left: 9, answered: true };
        let stream = b"id: a.1\n\nevent: dropped\ndata: {\"dropped\":1}\n\n";
        for event in Events::default().push(stream).unwrap() {
            assert!(tailing.take(&event).is_ok());
        }
        assert_eq!(tailing.token.as_deref(), Some("a.1"), "no record had come");
    }
}
