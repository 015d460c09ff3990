//! Parses a whole body.

use logweir_record::chunk::Chunk;
use logweir_record::codec::PAYLOAD_BYTES_MAX;

use crate::bodies::{document, elastic, lines, loki, otlp, splunk};
use crate::format::{Defaults, Format};
use crate::lines::parser::Memory;
use crate::report::{ParseError, ParseErrorKind, ParseReport};
use crate::rules::Rules;
use crate::sink::Sink;
use crate::text::{self, Sanitized};

/// A parsed body.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Parsed {
    /// Its records.
    pub chunk: Chunk,
    /// The report for its sender.
    pub report: ParseReport,
    /// What was sanitized.
    pub sanitized: Sanitized,
    /// Lines that were discarded because they are too long.
    pub too_long: u64,
    /// Numbers of unparsed records, by the format that could not parse them; `custom` for every custom format.
    pub parse_errors: Vec<(&'static str, u64)>,
}

/// Parses a whole body by the built-in rules, without the memory of earlier bodies.
///
/// `received_us` is the time of arrival in microseconds since the Unix epoch, which records without a time get. A line or
/// record above `line_bytes_max` bytes is discarded and reported.
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

/// Like [`parse`], with `rules`; `memory` is that of earlier bodies of the same origin, which most likely have the same
/// format.
///
/// # Errors
/// [`ParseErrorKind::Malformed`] or [`ParseErrorKind::MalformedItem`] for a JSON document or a request that is broken as
/// a whole, [`ParseErrorKind::TooLarge`] if its records do not fit into one payload
/// ([`PAYLOAD_BYTES_MAX`]).
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
    let lines = memchr::memchr_iter(lines::line_end(format), text.as_bytes()).count() + 1;
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
                    lines::parse(text, format, line_bytes_max, memory, &mut sink);
                }
                Ok(())
            }
            _ => {
                lines::parse(text, format, line_bytes_max, memory, &mut sink);
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
            PAYLOAD_BYTES_MAX
        ),
    }
}
