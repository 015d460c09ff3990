//! Parses a single line, and reports how it was parsed.

use logweir_record::chunk::Chunk;

use crate::format::{Defaults, Format};
use crate::lines::parser::{LineParser, Memory};
use crate::lines::table::PLAIN;
use crate::object::Scratch;
use crate::rules::Rules;
use crate::sink::Sink;
use crate::text;

/// The outcome for one line, for display.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Explained {
    /// Its record: a chunk of one.
    pub chunk: Chunk,
    /// The format that parsed it.
    pub format: String,
    /// Why the format that it resembles could not parse it.
    pub parse_error: Option<String>,
}

/// Parses one line, which may be empty, as part of a body. `received_us` is the time of arrival in microseconds since the
/// Unix epoch, which a record without a time gets.
#[must_use]
pub fn explain(rules: &Rules, memory: &mut Memory, line: &[u8], format: Format, received_us: i64) -> Explained {
    let defaults = Defaults::default();
    let mut sink = Sink::new(received_us, &defaults, 1, line.len());
    let text = text::clean(line, &mut sink.sanitized);
    sink.rules = rules;
    sink.bad_escapes = text::has_bad_escapes(&text);
    let line = text.strip_suffix('\r').unwrap_or(&text);
    let mut lines = LineParser::new(format).with_memory(*memory);
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
