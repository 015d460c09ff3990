//! The pure core of reading: what is asked for, without a store, a socket or a clock.
//!
//! - `filter` says which records are wanted, and decides it for one record; `text` is how texts are compared, `attribute`
//!   how a value is found among the attributes. `language` reads a filter from what somebody typed.
//! - `moment` and `hits` read times and steps; `page` is a place between records, `facets` counts values.
//! - A filter means the same here, in `PostgreSQL` and in `SQLite`; what the three cannot do alike is not offered. So case
//!   is ignored for the letters A to Z only, and a regular expression is that of the crate `regex` everywhere.

pub mod filter;
pub mod text;
mod pattern;
pub(crate) mod attribute;
pub mod language;
pub mod logql;
pub mod moment;
pub mod hits;
pub mod facets;
pub mod page;
pub mod windows;

pub use self::filter::{Comparison, Field, Filter, SeverityRange, Test};
pub use self::language::{BadQuery, parse};
pub use self::text::{BadPattern, Text, TextKind};

/// Which records are wanted, as somebody has written it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// In our own language.
    Query(String),
    /// In LogQL.
    LogQl(String),
}

impl Wanted {
    /// What it means.
    ///
    /// # Errors
    /// Says what is wrong, and at which column.
    pub fn filter(&self) -> Result<Filter, BadQuery> {
        match self {
            Self::Query(text) => parse(text),
            Self::LogQl(text) => logql::parse_selector(text),
        }
    }

    /// The parameter that it is given by, and its text.
    #[must_use]
    pub fn parameter(&self) -> (&'static str, &str) {
        match self {
            Self::Query(text) => ("query", text),
            Self::LogQl(text) => ("logql", text),
        }
    }
}
