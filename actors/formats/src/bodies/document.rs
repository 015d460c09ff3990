//! A body that is one JSON text: an array of records, or objects spread over several lines.
//!
//! - Elements are processed one by one; no tree of the whole is built.
//! - A malformed body is rejected as a whole, with line and column: otherwise the sender of a truncated body would have
//!   to guess which records are stored.
//! - An element that is not an object is kept: a string as the message, anything else as its JSON text, which is
//!   reported.

use std::fmt;

use serde::de::{Deserializer, Error as _, SeqAccess, Visitor};
use serde_json::value::RawValue;

use crate::object::{self, Scratch};
use crate::report::{ParseError, ParseErrorKind};
use crate::sink::Sink;

/// What a document begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `[{`, possibly with whitespace between.
    Array,
    /// A lone brace on the first line.
    Object,
}

/// Whether a body looks like one JSON text rather than lines.
pub fn looks_like(text: &str) -> Option<Kind> {
    let text = text.trim_ascii_start();
    if let Some(rest) = text.strip_prefix('[') {
        // `[INFO] …` and `[2015-05-17 …` are lines.
        let rest = rest.trim_ascii_start();
        return (rest.starts_with('{') || rest.trim_ascii_end() == "]").then_some(Kind::Array);
    }
    let first = text.strip_prefix('{')?.split('\n').next()?;
    first.trim_ascii().is_empty().then_some(Kind::Object)
}

/// Parses the body: one array, or any number of objects one after the other.
///
/// # Errors
/// [`ParseErrorKind::Malformed`], with line and column.
pub fn parse(text: &str, element_bytes_max: usize, sink: &mut Sink<'_>) -> Result<(), ParseError> {
    let mut elements = Elements { sink, scratch: Scratch::default(), element_bytes_max };
    let mut json = serde_json::Deserializer::from_str(text);
    let outcome = if text.trim_ascii_start().starts_with('[') {
        json.deserialize_seq(&mut elements).and_then(|()| json.end())
    } else {
        let mut values = json.into_iter::<&RawValue>();
        values.try_for_each(|value| value.map(|value| elements.take(value.get())))
    };
    match outcome {
        Err(error) if !elements.sink.is_full() => Err(ParseError {
            kind: ParseErrorKind::Malformed,
            reason: "malformed_json",
            detail: format!(
                "the body is neither a valid JSON array nor valid JSON objects: {error}; none of it was stored"
            ),
        }),
        _ => Ok(()),
    }
}

struct Elements<'s, 'd, 'a> {
    sink: &'s mut Sink<'d>,
    scratch: Scratch<'a>,
    element_bytes_max: usize,
}

impl<'a> Elements<'_, '_, 'a> {
    fn take(&mut self, element: &'a str) {
        self.sink.line += 1;
        if element.len() > self.element_bytes_max {
            self.sink.discard_too_long(element.len(), self.element_bytes_max);
        } else if let Err(error) = object::parse_value(element, &mut self.scratch, self.sink) {
            self.sink.push_unparsed(element, "json", error);
        }
    }
}

impl<'a> Visitor<'a> for &mut Elements<'_, '_, 'a> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON array")
    }

    fn visit_seq<A: SeqAccess<'a>>(self, mut seq: A) -> Result<(), A::Error> {
        while let Some(element) = seq.next_element::<&'a RawValue>()? {
            self.take(element.get());
            if self.sink.is_full() {
                return Err(A::Error::custom("the chunk is full"));
            }
        }
        Ok(())
    }
}
