//! Parses one line, in a specified or a detected format.

use std::fmt;

use super::custom;
use super::line_format::{LineFormat, Parser};
use super::table::{ACCESS_LOG, LINE_FORMATS, NDJSON, PLAIN, candidates};
use crate::format::Format;
use crate::object::Scratch;
use crate::sink::Sink;

/// Remembers the format that parsed the last line, since the next line most likely has the same.
///
/// This only saves checks and never changes the result: a format that would also accept lines of other formats is not
/// remembered, and neither is a custom one.
#[derive(Clone, Copy, Default)]
pub struct Memory {
    built_in: Option<&'static LineFormat>,
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Memory").field(&self.built_in.map(|format| format.name)).finish()
    }
}

/// Parses one line at a time, in a specified or a detected format.
pub struct LineParser {
    named: Option<&'static LineFormat>,
    custom: Option<u16>,
    /// The state after the last line.
    pub memory: Memory,
    /// Whether a line may be an envelope that contains a line.
    opens_envelopes: bool,
}

impl LineParser {
    /// For lines of `format`; if that is not a line format, the format of each line is detected.
    pub fn new(format: Format) -> Self {
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

    /// Continues where another parser of lines ended.
    pub fn with_memory(self, memory: Memory) -> Self {
        Self { memory, ..self }
    }

    /// For lines inside an envelope. They are not envelopes themselves, so nesting is bounded.
    fn inner() -> Self {
        Self { opens_envelopes: false, ..Self::new(Format::Lines) }
    }

    /// Pushes exactly one record: the parsed line, or the line as it is. Returns the name of the format.
    pub fn parse<'a, 'd>(&mut self, line: &'a str, scratch: &mut Scratch<'a>, sink: &mut Sink<'d>) -> &'d str {
        let rules = sink.rules;
        let custom = self.custom.and_then(|number| rules.custom.get(usize::from(number)));
        let (name, label, outcome) = match (self.named, custom) {
            (Some(named), _) => (named.name, named.name, named.parse(line, scratch, sink, parse_inner)),
            (None, Some(custom)) => (&*custom.name, "custom", custom::parse(custom, line, scratch, sink)),
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
        if let Some(custom) = rules.custom.iter().find(|custom| custom::parse(custom, line, scratch, sink).is_ok()) {
            return &custom.name;
        }
        let last = self.memory.built_in;
        if let Some(last) = last.filter(|last| (last.looks_like)(line))
            && last.parse(line, scratch, sink, parse_inner).is_ok()
        {
            return last.name;
        }
        for format in
            candidates(line).iter().filter(|format| self.opens_envelopes || matches!(format.parser, Parser::Line(_)))
        {
            if !(format.looks_like)(line) {
                continue;
            }
            match format.parse(line, scratch, sink, parse_inner) {
                Ok(()) => {
                    self.memory.built_in = Some(*format).filter(|format| !format.is_general);
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

/// Parses the line in an envelope, in a detected format.
fn parse_inner(line: &str, sink: &mut Sink<'_>) {
    LineParser::inner().parse(line, &mut Scratch::default(), sink);
}
