#![doc = include_str!("../README.md")]
//!
//! # Code map
//!
//! - `filter` selects records and decides for a single one; `text` compares text, `attribute` finds attribute values,
//!   `pattern` checks regular expressions, and `language` and `logql` parse a filter.
//! - `time`, `hits` and `windows` parse times and steps; `page` has positions between records, and `facets` counts
//!   values.
//!
//! A filter means the same here, in `PostgreSQL` and in `SQLite`; features that these cannot implement alike are not
//! offered. Therefore case is ignored only for the letters A to Z, and regular expressions follow the crate `regex`
//! everywhere.

pub mod filter;
pub mod text;
mod pattern;
pub mod attribute;
pub mod language;
pub mod logql;
pub mod time;
pub mod hits;
pub mod facets;
pub mod page;
pub mod windows;

pub use self::filter::{Comparison, Field, Filter, SeverityRange, Test};
pub use self::language::{QueryError, parse};
pub use self::text::{PatternError, Text, TextKind};

/// A query for records, as text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum QueryText {
    /// In the query language of logweir.
    Query(String),
    /// In LogQL.
    LogQl(String),
}

impl QueryText {
    /// Parses the query.
    ///
    /// # Errors
    /// The query is invalid; the error has the column.
    pub fn filter(&self) -> Result<Filter, QueryError> {
        match self {
            Self::Query(text) => parse(text),
            Self::LogQl(text) => logql::parse_selector(text),
        }
    }

    /// The query parameter that carries the text, and the text.
    #[must_use]
    pub fn parameter(&self) -> (&'static str, &str) {
        match self {
            Self::Query(text) => ("query", text),
            Self::LogQl(text) => ("logql", text),
        }
    }
}
