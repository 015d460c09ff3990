#![doc = include_str!("../README.md")]
//!
//! # Code map
//!
//! Each module uses only those above it in this list; so do the files of a folder.
//!
//! ```text
//! format            what a caller says about a body: its format, and defaults for what its records leave out
//! report            what a caller is told about it: counts and errors of lines, or why none of it is usable
//! catalog           the formats that have a name
//! custom_format     a format that is a regular expression
//! rules             the configured rules: custom formats, and the zone of times without one
//! level             severities in words, letters and syslog's codes
//! text              turns bytes and JSON escapes into text; replaces what databases reject, and counts it
//! json/             JSON as text, without a tree
//!   write           strings and members
//!   check           rejects what serde_json accepts and a store may not; errors with a column
//!   members         the members of an object in one pass
//!   walk            elements and members, one after the other
//! time/             times as programs write them
//!   event_time      a time within the years that stores hold
//!   calendar        days and months
//!   epoch           numbers
//!   stamp           a time at the start of a line
//!   text            a text that is nothing but a time
//! sink              the chunk and the report under construction, and the envelope around the current record
//! object/           a JSON object is a record
//!   field           names of members that denote a field of the record
//!   member          the members, and which of them are duplicates
//!   scratch         buffers that the records of a body share
//!   nested          merged and flattened objects, and the sender's mapping of fields
//!   value           values of members as time, severity, service, host and message
//!   parse           one object
//! lines/            a line is a record
//!   line_format     how the lines of one format are parsed
//!   attributes      writes attributes; `name=value` pairs
//!   application, access_log, web_error, syslog, glog, logcat, logfmt, database, supercomputer, plain
//!                   one format, or one family of formats
//!   container       envelopes of container runtimes
//!   custom          lines of a custom format
//!   table           the formats, and which of them a line may have
//!   parser          one line in a specified or a detected format
//! bodies/           a body is records
//!   lines           lines of text
//!   document        a JSON document
//!   protobuf        the fields of a protobuf message
//!   loki, otlp, elastic, splunk
//!                   one protocol
//! parse             a whole body
//! explain           a single line, for display
//! ```
//!
//! # Invariants
//!
//! - Each non-empty line becomes one record, in order, whether it could be parsed or not: an unparsed line is kept
//!   whole as the message, counted and reported. Only a line above the limit is discarded, which is counted too.
//! - A truncated or malformed JSON document is rejected as a whole: its record boundaries are unknown.
//! - A chunk that does not fit into a journal frame is rejected as a whole, before it has taken more memory than that.
//! - The records hold nothing that PostgreSQL rejects: no NUL, no lone surrogate, and no number that does not fit into
//!   a double. Attributes are a valid JSON object.
//! - The usual record needs no heap allocation: texts are borrowed from the body or unescaped into buffers that the
//!   body's records share. Escapes in an envelope, structured data and custom formats need some.
//! - The format that parsed the previous line is tried first, which never changes the result.
//!
//! # Adding a line format
//!
//! One file in `lines/` with `looks_like` (a cheap check of one line) and `parse` (one line into one record, or an error
//! message), one line in its `table`, a place in `table::candidates` before the formats that are more general, and one
//! line in `catalog`.
//!
//! # Adding a protocol
//!
//! One file in `bodies/` that reads the protocol's bodies, stores in `sink::Envelope` what the protocol says about a
//! record, and passes each line to `lines::parser::LineParser`; a variant of [`Format`], and its line in `parse`.

mod format;
mod report;
mod catalog;
mod custom_format;
mod rules;
mod level;
mod text;
mod json;
mod time;
mod sink;
mod object;
mod lines;
mod bodies;
mod parse;
mod explain;

pub use catalog::{FORMATS, FormatInfo, format_named, format_names};
pub use custom_format::{CustomFormat, PatternError};
pub use explain::{Explained, explain};
pub use format::{Defaults, FieldMap, Format, RECORD_END};
pub use json::write::{push_json_string, push_member};
pub use lines::parser::Memory;
pub use parse::{Parsed, parse, parse_by};
pub use report::{BulkItem, ItemOutcome, LineError, ParseError, ParseErrorKind, ParseReport};
pub use rules::Rules;
pub use sink::NAME_BYTES_MAX;
pub use text::Sanitized;

#[cfg(test)]
mod format_tests;
#[cfg(test)]
mod protocol_tests;
#[cfg(test)]
mod tests;
