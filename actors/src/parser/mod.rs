//! Stage parser: bodies become columnar chunks.
//!
//! - The core ([`parse`]) is a pure function of the body; the stage adds mailboxes and metrics.
//! - Each line that is not empty becomes one record, in order, whether it was understood or not: what a format cannot read
//!   is kept whole as the message, counted and reported. Only a line above `http.line_bytes_max` is discarded, counted too.
//! - A JSON document that is cut off or malformed is refused as a whole: nobody can say where its records end.
//! - A chunk that a journal frame could not hold is refused as a whole, before it has taken more memory than that.
//! - No heap allocation per record where it is usual: texts are borrowed from the body or unescaped into buffers that the
//!   body's records share. Escapes in an envelope, structured data and patterns of the configuration take some.
//! - A text line's format is found by its first byte and a few cheap looks (`candidates`); the one that could read the last
//!   line is tried first, per lane.
//!
//! # To add a protocol
//! One file that walks through its bodies, says in `sink::Envelope` what stands around a record, and hands each line on to
//! `LineParser`; a variant of [`Format`]; and one file in `http/` that gives receipts and refusals its shape.
//!
//! # To add a format
//! One file with `looks_like` (a cheap look at one line) and `parse` (one line into one record, or an error in words), one
//! line in `LINE_FORMATS`, and a place in `candidates`, before those that it is more special than.

use std::sync::Arc;

use logweir_engine::chunk::Chunk;
use logweir_engine::fault::kill_point;
use logweir_engine::mailbox::{Closed, Mailbox};
use logweir_engine::observe::Counter;
use logweir_engine::stage::{Exit, Stage, StageContext};

use crate::message::{
    Defaults, Format, ItemOutcome, ParseReport, ParsedChunk, RECORD_END, RawChunk, Rejection, RejectionKind,
};

mod access_log;
mod application;
mod attributes;
mod container;
mod custom;
mod database;
mod document;
mod elastic;
mod glog;
mod json;
mod logcat;
mod logfmt;
mod loki;
mod members;
mod otlp;
mod plain;
mod rules;
mod sink;
mod splunk;
mod stamp;
mod supercomputer;
mod syslog;
mod text;
pub mod time;
mod walk;
mod web_error;
mod wire;

pub use custom::CustomFormat;
use json::Scratch;
pub use rules::{CUSTOM_MAX, Rules};
pub use sink::NAME_BYTES_MAX;
use sink::Sink;
pub use text::Sanitised;
pub(crate) use text::{push_json_string, push_member};

/// The service of records for which nobody names one.
pub const SERVICE_UNKNOWN: &str = "unknown_service";

/// How one line is read.
struct LineFormat {
    /// Its name in `?format=` and in metrics.
    name: &'static str,
    /// Whether a line is worth a try when nobody has named its format.
    looks_like: Look,
    /// Pushes one record, or says in words what is wrong and pushes nothing.
    parse: Read,
    /// What looks like it is meant to be it: then it is an error if it cannot be read. Otherwise the next format is tried.
    is_meant: bool,
}

type Look = fn(&str) -> bool;
type Read = for<'a> fn(&'a str, &mut Scratch<'a>, &mut Sink<'_>) -> Result<(), String>;

/// What is meant by whoever writes it so.
const fn meant(name: &'static str, looks_like: Look, parse: Read) -> LineFormat {
    LineFormat { name, looks_like, parse, is_meant: true }
}

/// What other lines may resemble.
const fn likely(name: &'static str, looks_like: Look, parse: Read) -> LineFormat {
    LineFormat { is_meant: false, ..meant(name, looks_like, parse) }
}

static DOCKER: LineFormat = likely("docker", container::looks_like_docker, container::parse_docker);
static NDJSON: LineFormat = meant("ndjson", json::looks_like, json::parse);
static ACCESS_LOG: LineFormat = meant("access_log", access_log::looks_like, access_log::parse);
static CRI: LineFormat = likely("cri", container::looks_like_cri, container::parse_cri);
static SYSLOG: LineFormat = likely("syslog", syslog::looks_like, syslog::parse);
static NGINX_ERROR: LineFormat = likely("nginx_error", web_error::looks_like_nginx, web_error::parse_nginx);
static APACHE_ERROR: LineFormat = likely("apache_error", web_error::looks_like_apache, web_error::parse_apache);
static GLOG: LineFormat = likely("glog", glog::looks_like, glog::parse);
static REDIS: LineFormat = likely("redis", database::looks_like_redis, database::parse_redis);
static POSTGRES: LineFormat = likely("postgres", database::looks_like_postgres, database::parse_postgres);
static SUPERCOMPUTER: LineFormat = likely("supercomputer", supercomputer::looks_like, supercomputer::parse);
static LOGCAT: LineFormat = likely("logcat", logcat::looks_like, logcat::parse);
static LOGFMT: LineFormat = likely("logfmt", logfmt::looks_like, logfmt::parse);
static KEY_VALUE: LineFormat = likely("key_value", logfmt::may_have_tail, logfmt::parse_tail);
static APPLICATION: LineFormat = likely("application", application::looks_like, application::parse);
static PLAIN: LineFormat = likely("plain", plain::looks_like, plain::parse);

/// Every line format.
static LINE_FORMATS: [&LineFormat; 16] = [
    &NDJSON,
    &ACCESS_LOG,
    &SYSLOG,
    &NGINX_ERROR,
    &APACHE_ERROR,
    &LOGFMT,
    &KEY_VALUE,
    &APPLICATION,
    &GLOG,
    &REDIS,
    &POSTGRES,
    &CRI,
    &DOCKER,
    &LOGCAT,
    &SUPERCOMPUTER,
    &PLAIN,
];

/// The formats that a line may have, told by its first bytes: the special before the general, since the first that can read
/// the line is taken. Text that begins with a space belongs to a line before it, such as a stack trace.
///
/// A look costs little, and nine of them a fifth of what reading the line does: so lines that begin with a date, which are
/// most of what programs write, are told apart by where its signs stand. A test looks for lines that the tree sends away.
fn candidates(line: &str) -> &'static [&'static LineFormat] {
    static BRACE: [&LineFormat; 2] = [&DOCKER, &NDJSON];
    static DATE_T: [&LineFormat; 3] = [&CRI, &SYSLOG, &APPLICATION]; // 2015-10-18T
    static DATE: [&LineFormat; 2] = [&POSTGRES, &APPLICATION]; // 2015-10-18 18:01
    static DATE_SLASHED: [&LineFormat; 2] = [&NGINX_ERROR, &APPLICATION]; // 2015/10/18, 17/06/09
    static NUMBER: [&LineFormat; 6] = [&REDIS, &LOGCAT, &SUPERCOMPUTER, &ACCESS_LOG, &SYSLOG, &APPLICATION];
    static CAPITAL: [&LineFormat; 7] = [&SYSLOG, &GLOG, &APPLICATION, &LOGFMT, &SUPERCOMPUTER, &ACCESS_LOG, &KEY_VALUE];
    static SMALL: [&LineFormat; 4] = [&LOGFMT, &ACCESS_LOG, &APPLICATION, &KEY_VALUE];
    // Without a pair and a bracket, as in prose.
    static CAPITAL_PROSE: [&LineFormat; 4] = [&SYSLOG, &GLOG, &APPLICATION, &SUPERCOMPUTER];
    static SMALL_PROSE: [&LineFormat; 1] = [&APPLICATION];
    let is_prose = || memchr::memchr2(b'=', b'[', line.as_bytes()).is_none();
    static BRACKET: [&LineFormat; 3] = [&APACHE_ERROR, &REDIS, &APPLICATION];
    static ANGLE: [&LineFormat; 1] = [&SYSLOG];
    static DASH: [&LineFormat; 2] = [&SUPERCOMPUTER, &ACCESS_LOG];
    static SPACE: [&LineFormat; 1] = [&NDJSON];
    static OTHER: [&LineFormat; 2] = [&LOGFMT, &ACCESS_LOG];
    match line.as_bytes() {
        [b'{', ..] => &BRACE,
        [b'0'..=b'9', _, _, _, b'-', _, _, b'-', _, _, b'T', ..] => &DATE_T,
        [b'0'..=b'9', _, _, _, b'-', _, _, b'-', _, _, b' ', ..] => &DATE,
        [b'0'..=b'9', _, b'/', ..] | [b'0'..=b'9', _, _, _, b'/', ..] => &DATE_SLASHED,
        [b'0'..=b'9', ..] => &NUMBER,
        [b'A'..=b'Z', ..] if is_prose() => &CAPITAL_PROSE,
        [b'A'..=b'Z', ..] => &CAPITAL,
        [b'a'..=b'z', ..] if is_prose() => &SMALL_PROSE,
        [b'a'..=b'z', ..] => &SMALL,
        [b'[', ..] => &BRACKET,
        [b'<', ..] => &ANGLE,
        [b'-', ..] => &DASH,
        [b' ' | b'\t', ..] => &SPACE,
        _ => &OTHER,
    }
}

/// The format called `name`, or the one that reads the lines of a logger of this name.
#[must_use]
pub fn format_named(name: &str) -> Option<Format> {
    let name = match name {
        "auto" => return Some(Format::Auto),
        "json" => return Some(Format::Json),
        "lines" => return Some(Format::Lines),
        "ndjson" => return Some(Format::Ndjson),
        "plain" => return Some(Format::Plain),
        "access_log" => return Some(Format::AccessLog),
        "log4j" | "logback" | "hadoop" | "spark" | "zookeeper" | "python" | "go" | "zap" | "zerolog" => "application",
        "klog" => "glog",
        "clf" | "combined" => return Some(Format::AccessLog),
        other => other,
    };
    LINE_FORMATS.iter().find(|known| known.name == name).map(|known| Format::Line(known.name))
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

/// Parses a whole body by the built-in rules, knowing nothing of those before it.
///
/// # Errors
/// As [`parse_by`].
pub fn parse(
    body: &[u8],
    format: Format,
    defaults: &Defaults,
    received_us: i64,
    line_bytes_max: usize,
) -> Result<Parsed, Rejection> {
    parse_by(Rules::built_in(), &mut Memory::default(), body, format, defaults, received_us, line_bytes_max)
}

/// Parses a whole body by `rules`; `memory` is that of the bodies before it.
///
/// # Errors
/// [`RejectionKind::Malformed`] for a broken JSON document, [`RejectionKind::TooLarge`] if no journal frame could hold it.
pub fn parse_by(
    rules: &Rules,
    memory: &mut Memory,
    body: &[u8],
    format: Format,
    defaults: &Defaults,
    received_us: i64,
    line_bytes_max: usize,
) -> Result<Parsed, Rejection> {
    let protobuf: Option<Protocol> = match format {
        Format::LokiProtobuf => Some(loki::parse_protobuf),
        Format::OtlpProtobuf => Some(otlp::parse_protobuf),
        _ => None,
    };
    if let Some(parse) = protobuf {
        let mut sink = Sink::new(received_us, defaults, body.len() / RECORD_BYTES, body.len());
        sink.rules = rules;
        sink.bad_escapes = true; // what a line holds is not known yet
        let outcome = parse(body, line_bytes_max, &mut sink);
        return finish(sink, outcome.map_err(|error| malformed("malformed_protobuf", &error)));
    }
    let mut sanitised = Sanitised::default();
    let text = text::clean(body, &mut sanitised);
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    let lines = memchr::memchr_iter(line_end(format), text.as_bytes()).count() + 1;
    let new_sink = || {
        let mut sink = Sink::new(received_us, defaults, lines, text.len());
        sink.sanitised = sanitised;
        sink.rules = rules;
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
                    parse_lines(text, format, line_bytes_max, memory, &mut sink);
                }
                Ok(())
            }
            _ => {
                parse_lines(text, format, line_bytes_max, memory, &mut sink);
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
fn finish(mut sink: Sink<'_>, outcome: Result<(), Rejection>) -> Result<Parsed, Rejection> {
    if sink.is_full() {
        return Err(too_large());
    }
    outcome?;
    let Sink { sanitised, too_long, .. } = sink;
    let parse_errors = std::mem::take(&mut sink.parse_errors);
    let (chunk, report) = sink.into_chunk();
    Ok(Parsed { chunk, report, sanitised, too_long, parse_errors })
}

fn malformed_json(error: &str) -> Rejection {
    malformed("malformed_json", error)
}

fn malformed(reason: &'static str, error: &str) -> Rejection {
    let detail = format!("the body cannot be read: {error}; nothing of it was stored");
    Rejection { kind: RejectionKind::Malformed, reason, detail }
}

fn too_large() -> Rejection {
    Rejection {
        kind: RejectionKind::TooLarge,
        reason: "chunk_too_large",
        detail: format!(
            "the records of this body take more than {} bytes in the journal: send them in smaller bodies",
            logweir_engine::codec::PAYLOAD_BYTES_MAX
        ),
    }
}

/// The byte that ends a line.
fn line_end(format: Format) -> u8 {
    if format == Format::Records { RECORD_END } else { b'\n' }
}

/// Each line that is not empty becomes one record.
fn parse_lines(text: &str, format: Format, line_bytes_max: usize, memory: &mut Memory, sink: &mut Sink<'_>) {
    let mut scratch = Scratch::default();
    let mut lines = LineParser { memory: *memory, ..LineParser::new(format) };
    let mut start = 0;
    for end in memchr::memchr_iter(line_end(format), text.as_bytes()).chain([text.len()]) {
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
            break;
        }
    }
    *memory = lines.memory;
}

/// Which format could read the last line: the next one is most likely of the same.
///
/// It makes looking cheaper and decides nothing: a format that would also read the lines of others is not remembered.
#[derive(Clone, Copy, Default)]
pub struct Memory {
    built_in: Option<&'static LineFormat>,
    custom: usize,
}

/// Reads one line at a time, in a format that is named or found by looking.
struct LineParser {
    named: Option<&'static LineFormat>,
    custom: Option<u16>,
    memory: Memory,
    /// Whether a line may be an envelope with a line in it.
    opens_envelopes: bool,
}

impl LineParser {
    /// For lines of `format`; one that names no line format means looking at each line.
    fn new(format: Format) -> Self {
        let named = match format {
            Format::Ndjson => Some(&NDJSON),
            Format::Plain => Some(&PLAIN),
            Format::AccessLog => Some(&ACCESS_LOG),
            Format::Line(name) => LINE_FORMATS.iter().find(|known| known.name == name).copied(),
            _ => None,
        };
        let custom = if let Format::Custom(number) = format { Some(number) } else { None };
        Self { named, custom, memory: Memory::default(), opens_envelopes: true }
    }

    /// For what stands in an envelope: that is none itself, so that nobody can nest them without end.
    fn inner() -> Self {
        Self { opens_envelopes: false, ..Self::new(Format::Lines) }
    }

    /// Pushes exactly one record: what the line's format understood, or the line as it is. Returns the format's name.
    fn parse<'a, 'd>(&mut self, line: &'a str, scratch: &mut Scratch<'a>, sink: &mut Sink<'d>) -> &'d str {
        let rules = sink.rules;
        let custom = self.custom.and_then(|number| rules.custom.get(usize::from(number)));
        let (name, label, read) = match (self.named, custom) {
            (Some(named), _) => (named.name, named.name, (named.parse)(line, scratch, sink)),
            (None, Some(custom)) => (&*custom.name, "custom", custom.parse(line, scratch, sink)),
            (None, None) => return self.look(line, scratch, sink),
        };
        if let Err(error) = read {
            sink.push_not_understood(line, label, error);
        }
        name
    }

    /// The first format that can read the line: one's own, the last one, those that begin like this, plain text.
    fn look<'a, 'd>(&mut self, line: &'a str, scratch: &mut Scratch<'a>, sink: &mut Sink<'d>) -> &'d str {
        let rules = sink.rules;
        for number in 0..rules.custom.len() {
            let number = (self.memory.custom + number) % rules.custom.len();
            if rules.custom[number].parse(line, scratch, sink).is_ok() {
                self.memory.custom = number;
                return &rules.custom[number].name;
            }
        }
        let last = self.memory.built_in;
        if let Some(last) = last.filter(|last| (last.looks_like)(line))
            && (last.parse)(line, scratch, sink).is_ok()
        {
            return last.name;
        }
        for format in candidates(line).iter().filter(|format| self.opens_envelopes || !format.is_envelope()) {
            if !(format.looks_like)(line) {
                continue;
            }
            match (format.parse)(line, scratch, sink) {
                Ok(()) => {
                    self.memory.built_in = Some(*format).filter(|format| !format.is_general());
                    return format.name;
                }
                Err(error) if format.is_meant => {
                    sink.push_not_understood(line, format.name, error);
                    return format.name;
                }
                Err(_) => {}
            }
        }
        sink.push_plain(line);
        PLAIN.name
    }
}

impl LineFormat {
    fn is_envelope(&self) -> bool {
        [&CRI, &DOCKER].iter().any(|envelope| std::ptr::eq(self, *envelope))
    }

    /// Whether it can read lines that others can read better.
    fn is_general(&self) -> bool {
        [&APPLICATION, &NDJSON, &KEY_VALUE].iter().any(|general| std::ptr::eq(self, *general))
    }
}

/// What became of one line, for people who want to see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explained {
    /// Its record: a chunk of one.
    pub chunk: Chunk,
    /// The format that read it.
    pub format: String,
    /// Why the format that it looks like could not.
    pub parse_error: Option<String>,
}

/// Reads one line, which may be empty, as a part of a body would be read.
#[must_use]
pub fn explain(rules: &Rules, memory: &mut Memory, line: &[u8], format: Format, received_us: i64) -> Explained {
    let defaults = Defaults::default();
    let mut sink = Sink::new(received_us, &defaults, 1, line.len());
    let text = text::clean(line, &mut sink.sanitised);
    sink.rules = rules;
    sink.bad_escapes = text::has_bad_escapes(&text);
    let line = text.strip_suffix('\r').unwrap_or(&text);
    let mut lines = LineParser { memory: *memory, ..LineParser::new(format) };
    let name = match format {
        _ if line.trim_ascii().is_empty() => {
            sink.push_plain(line);
            PLAIN.name
        }
        Format::Json => LineParser::new(Format::Ndjson).parse(line, &mut Scratch::default(), &mut sink),
        _ => lines.parse(line, &mut Scratch::default(), &mut sink),
    };
    let format = name.to_owned();
    *memory = lines.memory;
    let (chunk, mut report) = sink.into_chunk();
    let parse_error = report.errors.pop().map(|error| error.error);
    Explained { chunk, format, parse_error }
}

/// The stage.
pub struct Parser {
    context: StageContext,
    batcher: Mailbox<ParsedChunk>,
    line_bytes_max: usize,
    rules: Arc<Rules>,
    memory: Memory,
    records: u64,
    parse_errors: u64,
    discarded: u64,
}

impl Parser {
    /// A parser that sends chunks to `batcher`, and discards lines above `line_bytes_max`.
    #[must_use]
    pub fn new(context: StageContext, batcher: Mailbox<ParsedChunk>, line_bytes_max: usize) -> Self {
        let (rules, memory) = (Arc::default(), Memory::default());
        Self { context, batcher, line_bytes_max, rules, memory, records: 0, parse_errors: 0, discarded: 0 }
    }

    /// With these rules of the configuration.
    #[must_use]
    pub fn with_rules(self, rules: Arc<Rules>) -> Self {
        Self { rules, ..self }
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
        let Sanitised { invalid_utf8, nul, lone_surrogate, duplicate_key, timestamp, name_too_long } = parsed.sanitised;
        for (what, count) in [
            ("invalid_utf8", invalid_utf8),
            ("nul", nul),
            ("lone_surrogate", lone_surrogate),
            ("duplicate_key", duplicate_key),
            ("timestamp", timestamp),
            ("name_too_long", name_too_long),
        ] {
            if count > 0 {
                metrics::counter!("logweir_sanitized_values_total", "what" => what).increment(count);
            }
        }
    }
}

impl Stage for Parser {
    type Message = RawChunk;

    async fn receive(&mut self, raw: RawChunk) -> Result<(), Exit> {
        kill_point("stage.parser");
        let RawChunk { body, format, defaults, received_us, dedup_key, ack, reply } = raw;
        let Self { rules, memory, line_bytes_max, .. } = self;
        let parsed = match parse_by(rules, memory, &body, format, &defaults, received_us, *line_bytes_max) {
            Ok(parsed) => parsed,
            Err(refusal) => {
                let _ = reply.send(Err(refusal));
                return Ok(());
            }
        };
        drop(body);
        self.count(&parsed);
        let Parsed { chunk, report, .. } = parsed;
        let message = ParsedChunk { chunk, report, dedup_key, ack, reply };
        if let Err(Closed(message)) = self.context.waiting(self.batcher.send(message)).await {
            let _ = message.reply.send(Err(Rejection::draining()));
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
mod format_tests;
#[cfg(test)]
mod protocol_tests;
#[cfg(test)]
mod tests;
