#![doc = include_str!("../README.md")]

mod bodies;
mod catalog;
mod custom_format;
mod explain;
mod format;
mod json;
mod level;
mod lines;
mod object;
mod parse;
mod report;
mod rules;
mod sink;
mod text;
mod time;

pub use catalog::{FORMATS, FormatInfo, format_named, format_names};
pub use custom_format::CustomFormat;
pub use explain::{Explained, explain};
pub use format::{Defaults, FieldMap, Format, RECORD_END};
pub use json::write::{push_json_string, push_member};
pub use lines::parser::Memory;
pub use parse::{Parsed, parse, parse_by};
pub use report::{BulkItem, ItemOutcome, LineError, ParseError, ParseErrorKind, ParseReport};
pub use rules::{CUSTOM_MAX, Rules};
pub use sink::NAME_BYTES_MAX;
pub use text::Sanitized;

#[cfg(test)]
mod format_tests;
#[cfg(test)]
mod protocol_tests;
#[cfg(test)]
mod tests;
