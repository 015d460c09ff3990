//! Stage parser: turns bodies into columnar chunks.
//!
//! - The core ([`parse`]) is a pure function of the body; the stage adds mailboxes and metrics.
//! - Each non-empty line becomes one record, in order, whether it could be parsed or not: an unparsed line is kept
//!   whole as the message, counted and reported. Only a line above `http.line_bytes_max` is discarded, which is counted
//!   too.
//! - A truncated or malformed JSON document is rejected as a whole: its record boundaries are unknown.
//! - A chunk that does not fit into a journal frame is rejected as a whole, before it has taken more memory than that.
//! - The usual record needs no heap allocation: texts are borrowed from the body or unescaped into buffers that the
//!   body's records share. Escapes in an envelope, structured data and configured patterns need some.
//! - The format of a text line is detected from its first byte and a few cheap checks (`candidates`); the format that
//!   parsed the lane's previous line is tried first.
//!
//! # Adding a protocol
//! One file that walks through its bodies, stores what applies to a record from outside in `sink::Envelope`, and passes
//! each line to `LineParser`; a variant of [`Format`]; and one file in `http/` that renders receipts and rejections in
//! the protocol's form.
//!
//! # Adding a format
//! One file with `looks_like` (a cheap check of one line) and `parse` (one line into one record, or an error message),
//! one line in `LINE_FORMATS`, and a place in `candidates` before the formats that are more general.

use logweir_record::chunk::Chunk;

mod access_log;
mod application;
mod attributes;
mod catalog;
mod container;
mod custom;
mod database;
mod document;
mod elastic;
mod format;
mod glog;
mod json;
mod level;
mod logcat;
mod logfmt;
mod loki;
mod object;
mod otlp;
mod plain;
mod report;
mod rules;
mod sink;
mod splunk;
mod supercomputer;
mod syslog;
mod text;
mod time;
mod web_error;
mod wire;

pub use catalog::{FORMATS, FormatInfo, format_named, format_names};
pub use custom::CustomFormat;
pub use format::{Defaults, FieldMap, Format, RECORD_END};
pub use json::write::{push_json_string, push_member};
use object::Scratch;
pub use report::{BulkItem, ItemOutcome, LineError, ParseError, ParseErrorKind, ParseReport};
pub use rules::{CUSTOM_MAX, Rules};
pub use sink::NAME_BYTES_MAX;
use sink::Sink;
pub use text::Sanitized;

/// Service of records that have none.
pub const SERVICE_UNKNOWN: &str = "unknown_service";

/// How one line is parsed.
struct LineFormat {
    /// Name in `?format=` and in metrics.
    name: &'static str,
    /// Whether a line is worth trying when its format was not specified.
    looks_like: LooksLike,
    /// Pushes one record, or returns an error message and pushes nothing.
    parse: ParseLine,
    /// `looks_like` is conclusive: a line that passes it but cannot be parsed is an error. Otherwise the next format is
    /// tried.
    is_conclusive: bool,
}

type LooksLike = fn(&str) -> bool;
type ParseLine = for<'a> fn(&'a str, &mut Scratch<'a>, &mut Sink<'_>) -> Result<(), String>;

/// A format whose `looks_like` is conclusive.
const fn conclusive(name: &'static str, looks_like: LooksLike, parse: ParseLine) -> LineFormat {
    LineFormat { name, looks_like, parse, is_conclusive: true }
}

/// A format that lines of other formats may resemble.
const fn tentative(name: &'static str, looks_like: LooksLike, parse: ParseLine) -> LineFormat {
    LineFormat { is_conclusive: false, ..conclusive(name, looks_like, parse) }
}

static DOCKER: LineFormat = tentative("docker", container::looks_like_docker, container::parse_docker);
static NDJSON: LineFormat = conclusive("ndjson", object::looks_like, object::parse);
static ACCESS_LOG: LineFormat = conclusive("access_log", access_log::looks_like, access_log::parse);
static CRI: LineFormat = tentative("cri", container::looks_like_cri, container::parse_cri);
static SYSLOG: LineFormat = tentative("syslog", syslog::looks_like, syslog::parse);
static NGINX_ERROR: LineFormat = tentative("nginx_error", web_error::looks_like_nginx, web_error::parse_nginx);
static APACHE_ERROR: LineFormat = tentative("apache_error", web_error::looks_like_apache, web_error::parse_apache);
static GLOG: LineFormat = tentative("glog", glog::looks_like, glog::parse);
static REDIS: LineFormat = tentative("redis", database::looks_like_redis, database::parse_redis);
static POSTGRES: LineFormat = tentative("postgres", database::looks_like_postgres, database::parse_postgres);
static SUPERCOMPUTER: LineFormat = tentative("supercomputer", supercomputer::looks_like, supercomputer::parse);
static LOGCAT: LineFormat = tentative("logcat", logcat::looks_like, logcat::parse);
static LOGFMT: LineFormat = tentative("logfmt", logfmt::looks_like, logfmt::parse);
static KEY_VALUE: LineFormat = tentative("key_value", logfmt::may_have_tail, logfmt::parse_tail);
static APPLICATION: LineFormat = tentative("application", application::looks_like, application::parse);
static PLAIN: LineFormat = tentative("plain", plain::looks_like, plain::parse);

/// All line formats.
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

/// The formats that a line may have, judged by its first bytes. Specific formats precede general ones, since the first
/// that can parse the line wins. Text that begins with a space continues an earlier line, such as a stack trace.
///
/// One check costs little, but nine of them cost a fifth of parsing the line. So lines that begin with a date, which
/// are most of what programs write, are distinguished by the positions of their punctuation. A test searches for lines
/// that this tree wrongly excludes.
fn candidates(line: &str) -> &'static [&'static LineFormat] {
    static BRACE: [&LineFormat; 2] = [&DOCKER, &NDJSON];
    static DATE_T: [&LineFormat; 3] = [&CRI, &SYSLOG, &APPLICATION]; // 2015-10-18T
    static DATE: [&LineFormat; 2] = [&POSTGRES, &APPLICATION]; // 2015-10-18 18:01
    static DATE_SLASHED: [&LineFormat; 2] = [&NGINX_ERROR, &APPLICATION]; // 2015/10/18, 17/06/09
    static NUMBER: [&LineFormat; 6] = [&REDIS, &LOGCAT, &SUPERCOMPUTER, &ACCESS_LOG, &SYSLOG, &APPLICATION];
    static CAPITAL: [&LineFormat; 7] = [&SYSLOG, &GLOG, &APPLICATION, &LOGFMT, &SUPERCOMPUTER, &ACCESS_LOG, &KEY_VALUE];
    static SMALL: [&LineFormat; 4] = [&LOGFMT, &ACCESS_LOG, &APPLICATION, &KEY_VALUE];
    // Prose: neither a pair nor a bracket.
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

/// A parsed body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parsed {
    /// Its records.
    pub chunk: Chunk,
    /// The report for its sender.
    pub report: ParseReport,
    /// What was sanitized.
    pub sanitized: Sanitized,
    /// Lines that were discarded because they are too long.
    pub too_long: u64,
    /// Unparsed records, by the format that could not parse them.
    pub parse_errors: Vec<(&'static str, u64)>,
}

/// Parses a whole body by the built-in rules, without the memory of earlier bodies.
///
/// # Errors
/// As [`parse_by`].
pub fn parse(
    body: &[u8],
    format: Format,
    defaults: &Defaults,
    received_us: i64,
    line_bytes_max: usize,
) -> Result<Parsed, ParseError> {
    parse_by(Rules::built_in(), &mut Memory::default(), body, format, defaults, received_us, line_bytes_max)
}

/// Parses a whole body by `rules`; `memory` holds the state of the lane's earlier bodies.
///
/// # Errors
/// [`ParseErrorKind::Malformed`] for a broken JSON document, [`ParseErrorKind::TooLarge`] if it does not fit into a
/// journal frame.
pub fn parse_by(
    rules: &Rules,
    memory: &mut Memory,
    body: &[u8],
    format: Format,
    defaults: &Defaults,
    received_us: i64,
    line_bytes_max: usize,
) -> Result<Parsed, ParseError> {
    let protobuf: Option<Protocol> = match format {
        Format::LokiProtobuf => Some(loki::parse_protobuf),
        Format::OtlpProtobuf => Some(otlp::parse_protobuf),
        _ => None,
    };
    if let Some(parse) = protobuf {
        let mut sink = Sink::new(received_us, defaults, body.len() / RECORD_BYTES, body.len());
        sink.rules = rules;
        sink.bad_escapes = true; // whether a line contains escapes is not known yet
        let outcome = parse(body, line_bytes_max, &mut sink);
        return finish(sink, outcome.map_err(|error| malformed("malformed_protobuf", &error)));
    }
    let mut sanitized = Sanitized::default();
    let text = text::clean(body, &mut sanitized);
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    let lines = memchr::memchr_iter(line_end(format), text.as_bytes()).count() + 1;
    let new_sink = || {
        let mut sink = Sink::new(received_us, defaults, lines, text.len());
        sink.sanitized = sanitized;
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
            // Text may begin with a lone brace and still not be JSON: its lines are then kept as lines.
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

/// Estimated size of one record in protobuf, in bytes.
const RECORD_BYTES: usize = 128;

/// Returns what was parsed, unless it is too large (which ends the parsing, whatever the reported outcome) or rejected.
fn finish(mut sink: Sink<'_>, outcome: Result<(), ParseError>) -> Result<Parsed, ParseError> {
    if sink.is_full() {
        return Err(too_large());
    }
    outcome?;
    let Sink { sanitized, too_long, .. } = sink;
    let parse_errors = std::mem::take(&mut sink.parse_errors);
    let (chunk, report) = sink.into_chunk();
    Ok(Parsed { chunk, report, sanitized, too_long, parse_errors })
}

fn malformed_json(error: &str) -> ParseError {
    malformed("malformed_json", error)
}

fn malformed(reason: &'static str, error: &str) -> ParseError {
    let detail = format!("the body cannot be parsed: {error}; none of it was stored");
    ParseError { kind: ParseErrorKind::Malformed, reason, detail }
}

fn too_large() -> ParseError {
    ParseError {
        kind: ParseErrorKind::TooLarge,
        reason: "chunk_too_large",
        detail: format!(
            "the records of this body take more than {} bytes in the journal: send them in smaller bodies",
            logweir_record::codec::PAYLOAD_BYTES_MAX
        ),
    }
}

/// The byte that ends a line.
fn line_end(format: Format) -> u8 {
    if format == Format::Records { RECORD_END } else { b'\n' }
}

/// Each non-empty line becomes one record.
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

/// Remembers the format that parsed the last line, since the next line most likely has the same.
///
/// This only saves checks and never changes the result: a format that would also accept lines of other formats is not
/// remembered, and neither is a custom one.
#[derive(Clone, Copy, Default)]
pub struct Memory {
    built_in: Option<&'static LineFormat>,
}

/// Parses one line at a time, in a specified or a detected format.
struct LineParser {
    named: Option<&'static LineFormat>,
    custom: Option<u16>,
    memory: Memory,
    /// Whether a line may be an envelope that contains a line.
    opens_envelopes: bool,
}

impl LineParser {
    /// For lines of `format`; if that is not a line format, the format of each line is detected.
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

    /// For lines inside an envelope. They are not envelopes themselves, so nesting is bounded.
    fn inner() -> Self {
        Self { opens_envelopes: false, ..Self::new(Format::Lines) }
    }

    /// Pushes exactly one record: the parsed line, or the line as it is. Returns the name of the format.
    fn parse<'a, 'd>(&mut self, line: &'a str, scratch: &mut Scratch<'a>, sink: &mut Sink<'d>) -> &'d str {
        let rules = sink.rules;
        let custom = self.custom.and_then(|number| rules.custom.get(usize::from(number)));
        let (name, label, outcome) = match (self.named, custom) {
            (Some(named), _) => (named.name, named.name, (named.parse)(line, scratch, sink)),
            (None, Some(custom)) => (&*custom.name, "custom", custom.parse(line, scratch, sink)),
            (None, None) => return self.detect(line, scratch, sink),
        };
        if let Err(error) = outcome {
            sink.push_unparsed(line, label, error);
        }
        name
    }

    /// Tries the custom formats in order, the built-in one that matched last, those that begin like this line, and plain
    /// text.
    fn detect<'a, 'd>(&mut self, line: &'a str, scratch: &mut Scratch<'a>, sink: &mut Sink<'d>) -> &'d str {
        let rules = sink.rules;
        if let Some(custom) = rules.custom.iter().find(|custom| custom.parse(line, scratch, sink).is_ok()) {
            return &custom.name;
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
                Err(error) if format.is_conclusive => {
                    sink.push_unparsed(line, format.name, error);
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

    /// Whether it accepts lines that other formats parse better.
    fn is_general(&self) -> bool {
        [&APPLICATION, &NDJSON, &KEY_VALUE].iter().any(|general| std::ptr::eq(self, *general))
    }
}

/// The outcome for one line, for display.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explained {
    /// Its record: a chunk of one.
    pub chunk: Chunk,
    /// The format that parsed it.
    pub format: String,
    /// Why the format that it resembles could not parse it.
    pub parse_error: Option<String>,
}

/// Parses one line, which may be empty, as part of a body.
#[must_use]
pub fn explain(rules: &Rules, memory: &mut Memory, line: &[u8], format: Format, received_us: i64) -> Explained {
    let defaults = Defaults::default();
    let mut sink = Sink::new(received_us, &defaults, 1, line.len());
    let text = text::clean(line, &mut sink.sanitized);
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

#[cfg(test)]
mod format_tests;
#[cfg(test)]
mod protocol_tests;
#[cfg(test)]
mod tests;
