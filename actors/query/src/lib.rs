#![doc = include_str!("../README.md")]
//!
//! # Code map
//!
//! Each module uses only those above it in this list.
//!
//! ```text
//! pattern           translates a regular expression for PostgreSQL
//! text              compares text; numbers in text
//! attribute         values of attributes, without a tree
//! filter            selects records, and decides for a single one
//! syntax            what the languages share: input, limits, errors with a column, quoted text
//! language          logweir's own language
//! logql             LogQL
//! query_text        a query as text, in one of the languages
//! time              times and durations in parameters
//! page              ranges, positions between records, and cursors
//! hits, windows     counts per step, and over overlapping windows
//! facets            counts of values
//! ```
//!
//! # Invariants
//!
//! - A filter means the same here, in PostgreSQL and in SQLite; features that these cannot implement alike are not
//!   offered. Therefore case is ignored only for the letters A to Z, and regular expressions follow the crate `regex`
//!   everywhere.
//! - A test is true or false, never unknown.
//! - Every query is bounded: in bytes, tests and depth, and in the size of compiled expressions.

mod pattern;
pub mod text;
pub mod attribute;
pub mod filter;
mod syntax;
mod language;
pub mod logql;
mod query_text;
pub mod time;
pub mod page;
pub mod hits;
pub mod windows;
pub mod facets;

pub use filter::{Comparison, Field, Filter, SeverityRange, Test};
pub use language::parse;
pub use query_text::QueryText;
pub use syntax::{QUERY_BYTES_MAX, QueryError};
pub use text::{PatternError, Text, TextKind};
