//! Stage parser: bodies become columnar chunks.
//!
//! - The core ([`parse`]) is a pure function of the body; the stage adds mailboxes and metrics.
//! - Each line that is not empty becomes one record, in order, whether it was understood or not: what a format cannot read
//!   is kept whole as the message, counted and reported. Only a line above `http.line_bytes_max` is discarded, counted too.
//! - A JSON document that is cut off or malformed is refused as a whole: nobody can say where its records end.
//! - A chunk that a journal frame could not hold is refused as a whole, before it has taken more memory than that.
//! - No heap allocation per record: texts are borrowed from the body or unescaped into buffers that the body's records share.
//!
//! # To add a protocol
//! One file that walks through its bodies, says in `sink::Envelope` what stands around a record, and hands each line on to
//! `LineParser`; a variant of [`Format`]; and one file in `http/` that gives receipts and refusals its shape.
//!
//! # To add a format
//! One file with `looks_like` (a cheap look at one line) and `parse` (one line into one record, or an error in words), and
//! one line in `LINE_FORMATS`, before those that it is more special than. Its name in `?format=` needs a variant of
//! [`Format`], too.

use logweir_engine::chunk::Chunk;
use logweir_engine::fault::kill_point;
use logweir_engine::mailbox::{Closed, Mailbox};
use logweir_engine::observe::Counter;
use logweir_engine::stage::{Exit, Stage, StageContext};

use crate::message::{Defaults, Format, ItemOutcome, ParseReport, ParsedChunk, RawChunk, Refusal, RefusalKind};

mod access_log;
mod document;
mod elastic;
mod json;
mod loki;
mod members;
mod otlp;
mod plain;
mod sink;
mod splunk;
mod text;
pub mod time;
mod walk;
mod wire;

use json::Scratch;
pub use sink::NAME_BYTES_MAX;
use sink::Sink;
pub use text::Sanitised;
pub(crate) use text::{push_json_string, push_member};

/// The service of records for which nobody names one.
pub const SERVICE_UNKNOWN: &str = "unknown_service";

/// How one line is read.
struct LineFormat {
    format: Format,
    /// Its name in `?format=` and in metrics.
    name: &'static str,
    /// Whether a line is worth a try when nobody has named its format.
    looks_like: fn(&str) -> bool,
    /// Pushes one record, or says in words what is wrong and pushes nothing.
    parse: for<'a> fn(&'a str, &mut Scratch<'a>, &mut Sink<'_>) -> Result<(), String>,
}

/// Every line format; `auto` takes the first that a line looks like.
const LINE_FORMATS: [LineFormat; 3] = [
    LineFormat { format: Format::Ndjson, name: "ndjson", looks_like: json::looks_like, parse: json::parse },
    LineFormat {
        format: Format::AccessLog,
        name: "access_log",
        looks_like: access_log::looks_like,
        parse: access_log::parse,
    },
    LineFormat { format: Format::Plain, name: "plain", looks_like: plain::looks_like, parse: plain::parse },
];

/// The format called `name`.
#[must_use]
pub fn format_named(name: &str) -> Option<Format> {
    match name {
        "auto" => Some(Format::Auto),
        "json" => Some(Format::Json),
        "lines" => Some(Format::Lines),
        _ => LINE_FORMATS.iter().find(|known| known.name == name).map(|known| known.format),
    }
}

/// The names that [`format_named`] knows, for people.
#[must_use]
pub fn format_names() -> String {
    let names: Vec<_> =
        ["auto", "json", "lines"].into_iter().chain(LINE_FORMATS.iter().map(|known| known.name)).collect();
    names.join(", ")
}

/// A body that was parsed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parsed {
    /// Its records.
    pub chunk: Chunk,
    /// What its sender is told.
    pub report: ParseReport,
    /// What was mended on the way.
    pub sanitised: Sanitised,
    /// Lines that were discarded because they are too long.
    pub too_long: u64,
    /// Records that were kept whole, by the format that could not read them.
    pub parse_errors: Vec<(&'static str, u64)>,
}

/// Parses a whole body.
///
/// # Errors
/// [`RefusalKind::Malformed`] for a broken JSON document, [`RefusalKind::TooLarge`] if no journal frame could hold it.
pub fn parse(
    body: &[u8],
    format: Format,
    defaults: &Defaults,
    received_us: i64,
    line_bytes_max: usize,
) -> Result<Parsed, Refusal> {
    let protobuf: Option<Protocol> = match format {
        Format::LokiProtobuf => Some(loki::parse_protobuf),
        Format::OtlpProtobuf => Some(otlp::parse_protobuf),
        _ => None,
    };
    if let Some(parse) = protobuf {
        let mut sink = Sink::new(received_us, defaults, body.len() / RECORD_BYTES, body.len());
        sink.bad_escapes = true; // what a line holds is not known yet
        let outcome = parse(body, line_bytes_max, &mut sink);
        return finish(sink, outcome.map_err(|error| malformed("malformed_protobuf", &error)));
    }
    let mut sanitised = Sanitised::default();
    let text = text::clean(body, &mut sanitised);
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    let lines = memchr::memchr_iter(b'\n', text.as_bytes()).count() + 1;
    let new_sink = || {
        let mut sink = Sink::new(received_us, defaults, lines, text.len());
        sink.sanitised = sanitised;
        sink.bad_escapes = text::has_bad_escapes(text);
        sink
    };
    let mut sink = new_sink();
    let outcome = match format {
        Format::LokiJson => loki::parse_json(text, line_bytes_max, &mut sink).map_err(|error| malformed_json(&error)),
        Format::OtlpJson => otlp::parse_json(text, line_bytes_max, &mut sink).map_err(|error| malformed_json(&error)),
        Format::ElasticBulk => {
            elastic::parse(text, line_bytes_max, &mut sink).map_err(|error| malformed("malformed_bulk", &error))
        }
        Format::SplunkEvents => splunk::parse(text, line_bytes_max, &mut sink),
        _ => match (format, document::looks_like(text)) {
            (Format::Json, _) | (Format::Auto, Some(document::Kind::Array)) => {
                document::parse(text, line_bytes_max, &mut sink)
            }
            // Text may begin with a lone brace and still be no JSON: then its lines are kept as lines.
            (Format::Auto, Some(document::Kind::Object)) => {
                if document::parse(text, line_bytes_max, &mut sink).is_err() {
                    sink = new_sink();
                    parse_lines(text, format, line_bytes_max, &mut sink);
                }
                Ok(())
            }
            _ => {
                parse_lines(text, format, line_bytes_max, &mut sink);
                Ok(())
            }
        },
    };
    finish(sink, outcome)
}

/// Parses a whole body of a protocol.
type Protocol = for<'d> fn(&[u8], usize, &mut Sink<'d>) -> Result<(), String>;

/// A guess at the bytes of one record in protobuf.
const RECORD_BYTES: usize = 128;

/// What was parsed, unless it is too large (which ends the parsing, whatever the outcome was called there) or refused.
fn finish(mut sink: Sink<'_>, outcome: Result<(), Refusal>) -> Result<Parsed, Refusal> {
    if sink.is_full() {
        return Err(too_large());
    }
    outcome?;
    let Sink { sanitised, too_long, .. } = sink;
    let parse_errors = std::mem::take(&mut sink.parse_errors);
    let (chunk, report) = sink.into_chunk();
    Ok(Parsed { chunk, report, sanitised, too_long, parse_errors })
}

fn malformed_json(error: &str) -> Refusal {
    malformed("malformed_json", error)
}

fn malformed(reason: &'static str, error: &str) -> Refusal {
    let detail = format!("the body cannot be read: {error}; nothing of it was stored");
    Refusal { kind: RefusalKind::Malformed, reason, detail }
}

fn too_large() -> Refusal {
    Refusal {
        kind: RefusalKind::TooLarge,
        reason: "chunk_too_large",
        detail: format!(
            "the records of this body take more than {} bytes in the journal: send them in smaller bodies",
            logweir_engine::codec::PAYLOAD_BYTES_MAX
        ),
    }
}

/// Each line that is not empty becomes one record.
fn parse_lines(text: &str, format: Format, line_bytes_max: usize, sink: &mut Sink<'_>) {
    let mut scratch = Scratch::default();
    let mut lines = LineParser::new(format);
    let mut start = 0;
    for end in memchr::memchr_iter(b'\n', text.as_bytes()).chain([text.len()]) {
        let line = &text[start..end];
        start = end + 1;
        sink.line += 1;
        let line = line.strip_suffix('\r').unwrap_or(line);
        if line.trim_ascii().is_empty() {
            continue;
        }
        if line.len() > line_bytes_max {
            sink.discard_too_long(line.len(), line_bytes_max);
            continue;
        }
        lines.parse(line, &mut scratch, sink);
        if sink.is_full() {
            return;
        }
    }
}

/// Reads one line at a time, in a format that is named or found by looking.
struct LineParser {
    named: Option<&'static LineFormat>,
}

impl LineParser {
    /// For lines of `format`; one that names no line format means looking at each line.
    fn new(format: Format) -> Self {
        Self { named: LINE_FORMATS.iter().find(|known| known.format == format) }
    }

    /// Pushes exactly one record: what the line's format understood, or the line as it is.
    fn parse<'a>(&mut self, line: &'a str, scratch: &mut Scratch<'a>, sink: &mut Sink<'_>) {
        let looked = || LINE_FORMATS.iter().find(|known| (known.looks_like)(line));
        let chosen = self.named.or_else(looked).expect("any line looks like plain text");
        if let Err(error) = (chosen.parse)(line, scratch, sink) {
            sink.push_not_understood(line, chosen.name, error);
        }
    }
}

/// The stage.
pub struct Parser {
    context: StageContext,
    batcher: Mailbox<ParsedChunk>,
    line_bytes_max: usize,
    records: u64,
    parse_errors: u64,
    discarded: u64,
}

impl Parser {
    /// A parser that sends chunks to `batcher`, and discards lines above `line_bytes_max`.
    #[must_use]
    pub fn new(context: StageContext, batcher: Mailbox<ParsedChunk>, line_bytes_max: usize) -> Self {
        Self { context, batcher, line_bytes_max, records: 0, parse_errors: 0, discarded: 0 }
    }

    /// Counts once per body, never per record.
    fn count(&mut self, parsed: &Parsed) {
        self.records += u64::from(parsed.report.accepted);
        self.parse_errors += u64::from(parsed.report.parse_errors);
        self.discarded += parsed.too_long;
        metrics::counter!("logweir_received_records_total").increment(parsed.report.accepted.into());
        for &(format, count) in &parsed.parse_errors {
            metrics::counter!("logweir_parse_errors_total", "format" => format).increment(count);
        }
        if parsed.too_long > 0 {
            let labels = [("component", "parser"), ("reason", "line_too_long"), ("intentional", "false")];
            metrics::counter!("logweir_discarded_records_total", &labels).increment(parsed.too_long);
        }
        let unsupported = parsed.report.items.iter().filter(|item| item.outcome == ItemOutcome::Unsupported).count();
        if unsupported > 0 {
            let labels = [("component", "parser"), ("reason", "unsupported_action"), ("intentional", "true")];
            metrics::counter!("logweir_discarded_records_total", &labels).increment(unsupported as u64);
        }
        let Sanitised { invalid_utf8, nul, lone_surrogate, duplicate_key, timestamp } = parsed.sanitised;
        for (what, count) in [
            ("invalid_utf8", invalid_utf8),
            ("nul", nul),
            ("lone_surrogate", lone_surrogate),
            ("duplicate_key", duplicate_key),
            ("timestamp", timestamp),
        ] {
            if count > 0 {
                metrics::counter!("logweir_sanitised_total", "what" => what).increment(count);
            }
        }
    }
}

impl Stage for Parser {
    type Message = RawChunk;

    async fn receive(&mut self, raw: RawChunk) -> Result<(), Exit> {
        kill_point("stage.parser");
        let RawChunk { body, format, defaults, received_us, ack, reply } = raw;
        let parsed = match parse(&body, format, &defaults, received_us, self.line_bytes_max) {
            Ok(parsed) => parsed,
            Err(refusal) => {
                let _ = reply.send(Err(refusal));
                return Ok(());
            }
        };
        drop(body);
        self.count(&parsed);
        let Parsed { chunk, report, .. } = parsed;
        let message = ParsedChunk { chunk, report, ack, reply };
        if let Err(Closed(message)) = self.context.waiting(self.batcher.send(message)).await {
            let _ = message.reply.send(Err(Refusal::draining()));
        }
        Ok(())
    }

    fn observe(&self) -> Vec<Counter> {
        vec![
            Counter { name: "records", value: self.records },
            Counter { name: "parse_errors", value: self.parse_errors },
            Counter { name: "discarded", value: self.discarded },
        ]
    }
}

#[cfg(test)]
mod protocol_tests;
#[cfg(test)]
mod tests;
