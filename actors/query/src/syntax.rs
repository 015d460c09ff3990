//! What the query languages share: the input and its limits, errors with a column, and text in quotes.

use winnow::ModalResult;
use winnow::Parser;
use winnow::error::{ErrMode, ParserError};
use winnow::stream::{Offset, Stream};
use winnow::token::{any, one_of};

/// Maximum length of a query in bytes.
pub const QUERY_BYTES_MAX: usize = 16 * 1024;

/// Maximum number of tests in a query: each becomes a part of the statement that a database plans.
pub(crate) const TESTS_MAX: usize = 256;

/// Maximum nesting of parentheses and negations.
pub(crate) const DEPTH_MAX: usize = 32;

/// An invalid query, and where the error is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("at column {column}: {detail}")]
#[non_exhaustive]
pub struct QueryError {
    /// Position of the error in the query, in characters, from 1.
    pub column: usize,
    /// What is wrong, and what is expected.
    pub detail: String,
}

/// Parses all of `query` with `whole`.
pub(crate) fn read<'q, T>(
    query: &'q str,
    whole: impl FnOnce(&mut Input<'q>) -> ModalResult<T, SyntaxError>,
) -> Result<T, QueryError> {
    let bad = |at: usize, detail: String| {
        let column = query[..query.floor_char_boundary(at)].chars().count() + 1;
        QueryError { column, detail }
    };
    if query.len() > QUERY_BYTES_MAX {
        return Err(bad(QUERY_BYTES_MAX, format!("query too long: expected at most {QUERY_BYTES_MAX} bytes")));
    }
    if let Some(at) = query.find('\0') {
        return Err(bad(at, "invalid character NUL: records cannot contain it".to_owned()));
    }
    let mut input = Input { input: query, state: Nesting::default() };
    let start = input.checkpoint();
    let parsed = whole(&mut input).map_err(|error| {
        let SyntaxError { left, detail } = error.into_inner().unwrap_or_default();
        bad(query.len() - left.min(query.len()), detail)
    })?;
    debug_assert_eq!(input.offset_from(&start), query.len(), "the whole query was parsed");
    Ok(parsed)
}

/// The rest of the query.
pub(crate) type Input<'q> = winnow::stream::Stateful<&'q str, Nesting>;

/// Nesting depth and number of tests so far.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Nesting {
    pub(crate) depth: usize,
    pub(crate) tests: usize,
}

/// An error, and the number of bytes left where it occurred.
#[derive(Clone, Debug, Default)]
pub(crate) struct SyntaxError {
    left: usize,
    detail: String,
}

impl<'q> ParserError<Input<'q>> for SyntaxError {
    type Inner = Self;

    fn from_input(input: &Input<'q>) -> Self {
        let detail = match input.input.chars().next() {
            None => "unexpected end of the query".to_owned(),
            Some(letter) => {
                format!("unexpected {letter:?}: to search for it literally, put the text in quotes")
            }
        };
        Self { left: input.input.len(), detail }
    }

    fn into_inner(self) -> Result<Self::Inner, Self> {
        Ok(self)
    }
}

/// An error where `left` bytes are left.
pub(crate) fn syntax_error<T>(left: usize, detail: impl Into<String>) -> ModalResult<T, SyntaxError> {
    Err(ErrMode::Cut(SyntaxError { left, detail: detail.into() }))
}

/// Text in quotes, and the kind of quotes.
pub(crate) struct Quoted {
    pub(crate) text: String,
    pub(crate) quotes: Option<char>,
}

pub(crate) fn quoted(input: &mut Input<'_>) -> ModalResult<Quoted, SyntaxError> {
    let left = input.input.len();
    let mark = one_of(['"', '\'', '`']).parse_next(input)?;
    let mut text = String::new();
    loop {
        match any.parse_next(input).map_err(|_: ErrMode<SyntaxError>| unclosed(left))? {
            letter if letter == mark => return Ok(Quoted { text, quotes: Some(mark) }),
            '\\' if mark != '`' => match any.parse_next(input).map_err(|_: ErrMode<SyntaxError>| unclosed(left))? {
                'n' => text.push('\n'),
                't' => text.push('\t'),
                'r' => text.push('\r'),
                letter @ ('"' | '\'' | '\\' | '`') => text.push(letter),
                letter => text.extend(['\\', letter]),
            },
            letter => text.push(letter),
        }
    }
}

/// The error for a quote that is not closed; `left` bytes follow it.
pub(crate) fn unclosed(left: usize) -> ErrMode<SyntaxError> {
    ErrMode::Cut(SyntaxError { left, detail: "unclosed quote".to_owned() })
}
