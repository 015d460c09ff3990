//! A body of lines.

use crate::format::{Format, RECORD_END};
use crate::lines::parser::{LineParser, Memory};
use crate::object::Scratch;
use crate::sink::Sink;

/// The byte that ends a line.
pub fn line_end(format: Format) -> u8 {
    if format == Format::Records { RECORD_END } else { b'\n' }
}

/// Parses the body: each non-empty line becomes one record.
pub fn parse(text: &str, format: Format, line_bytes_max: usize, memory: &mut Memory, sink: &mut Sink<'_>) {
    let mut scratch = Scratch::default();
    let mut lines = LineParser::new(format).with_memory(*memory);
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
