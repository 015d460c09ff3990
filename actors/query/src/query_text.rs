//! A query as text, in one of the languages.

use crate::filter::Filter;
use crate::syntax::QueryError;
use crate::{language, logql};

/// A query for records, as text.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
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
            Self::Query(text) => language::parse(text),
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
