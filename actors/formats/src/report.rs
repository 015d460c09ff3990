//! The result of parsing a body: the report for its sender, or why none of it is usable.

use std::sync::Arc;

/// Result of parsing one body.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct ParseReport {
    /// Lines parsed into records.
    pub accepted: u32,
    /// Discarded lines; `errors` has the first ten causes.
    pub rejected: u32,
    /// Records stored as plain text because they could not be parsed.
    pub parse_errors: u32,
    /// Records so old that the database deletes them at its next maintenance. The parser does not know; the pipeline
    /// sets it.
    pub beyond_retention: u32,
    /// The first errors.
    pub errors: Vec<LineError>,
    /// Result of each item of a bulk request; empty for every other format.
    #[serde(skip)]
    pub items: Vec<BulkItem>,
}

/// One item of an Elasticsearch bulk request.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BulkItem {
    /// `create`, `index`, `update` or `delete`.
    pub action: &'static str,
    /// Its index; empty if neither the item nor the path has one.
    pub index: Arc<str>,
    /// Its result.
    pub outcome: ItemOutcome,
}

/// Result of one item of a bulk request. It is not `non_exhaustive`: the response to such a request must handle every
/// result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ItemOutcome {
    /// Stored as a record.
    Stored,
    /// An update or a deletion, which a log does not support.
    Unsupported,
    /// The document exceeds the line length limit.
    TooLong,
}

/// An error in one line.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct LineError {
    /// Line number in the body, from 1 (in a JSON array: the element's number).
    pub line: u32,
    /// What is wrong with it, and how it was handled.
    pub error: String,
}

/// Why a whole body is rejected. None of its records are returned.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}: {detail}")]
#[non_exhaustive]
pub struct ParseError {
    /// Kind of error.
    pub kind: ParseErrorKind,
    /// Reason in snake case, such as `malformed_json`.
    pub reason: &'static str,
    /// A sentence for people.
    pub detail: String,
}

/// Kind of [`ParseError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ParseErrorKind {
    /// Its records do not fit into one chunk.
    TooLarge,
    /// The body is malformed.
    Malformed,
    /// This item of the body is malformed; they are counted from 0.
    MalformedItem(u32),
}
