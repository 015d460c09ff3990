//! How the lines of one format are parsed.

use crate::object::Scratch;
use crate::sink::Sink;

/// How one line is parsed.
pub struct LineFormat {
    /// Name in `?format=` and in metrics.
    pub name: &'static str,
    /// Whether a line is worth trying when its format was not specified.
    pub looks_like: fn(&str) -> bool,
    /// Pushes one record, or returns an error message and pushes nothing.
    pub parser: Parser,
    /// `looks_like` is conclusive: a line that passes it but cannot be parsed is an error. Otherwise the next format is
    /// tried.
    pub is_conclusive: bool,
    /// It accepts lines that other formats parse better, so that it must not be tried first.
    pub is_general: bool,
}

/// The parser of a line.
#[derive(Clone, Copy)]
pub enum Parser {
    /// Of a line that is the record.
    Line(ParseLine),
    /// Of an envelope, which passes the line in it to another parser. Envelopes do not contain envelopes, so nesting is
    /// bounded.
    Envelope(ParseEnvelope),
}

/// Parses a line.
pub type ParseLine = for<'a> fn(&'a str, &mut Scratch<'a>, &mut Sink<'_>) -> Result<(), String>;
/// Parses an envelope.
pub type ParseEnvelope = fn(&str, &mut Sink<'_>, ParseInner) -> Result<(), String>;
/// Parses the line in an envelope into exactly one record.
pub type ParseInner = fn(&str, &mut Sink<'_>);

impl LineFormat {
    /// A format that lines of other formats may resemble.
    pub const fn new(name: &'static str, looks_like: fn(&str) -> bool, parse: ParseLine) -> Self {
        Self { name, looks_like, parser: Parser::Line(parse), is_conclusive: false, is_general: false }
    }

    /// An envelope that lines of other formats may resemble.
    pub const fn envelope(name: &'static str, looks_like: fn(&str) -> bool, parse: ParseEnvelope) -> Self {
        Self { name, looks_like, parser: Parser::Envelope(parse), is_conclusive: false, is_general: false }
    }

    /// Pushes one record, or returns an error message and pushes nothing. The line in an envelope is passed to
    /// `parse_inner`.
    pub fn parse<'a>(
        &self,
        line: &'a str,
        scratch: &mut Scratch<'a>,
        sink: &mut Sink<'_>,
        parse_inner: ParseInner,
    ) -> Result<(), String> {
        match self.parser {
            Parser::Line(parse) => parse(line, scratch, sink),
            Parser::Envelope(parse) => parse(line, sink, parse_inner),
        }
    }

    /// The same format, whose `looks_like` is conclusive.
    pub const fn conclusive(self) -> Self {
        Self { is_conclusive: true, ..self }
    }

    /// The same format, which accepts lines that other formats parse better.
    pub const fn general(self) -> Self {
        Self { is_general: true, ..self }
    }
}
