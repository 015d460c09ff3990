//! The query language: from what somebody typed to a [`Filter`].
//!
//! ```text
//! timeout                       the message has this word, in any case; 'Timeout' as it is written here
//! "connection reset"            the message has these words beside each other
//! time*  *out  *meou*           a word that begins so; one that ends so; anywhere
//! ~"time(d )?out"               the message matches this regular expression
//! service:cart                  the field is exactly this: service, host, severity, message, or an attribute's name
//! service:cart*  path:*.php     it begins, or ends, with this;  path:*admin*  has it;  user:*  is there at all
//! service:(cart, shop)          it is one of these
//! service:~"^(cart|shop)$"      it matches
//! severity>=warn  status>499    numbers, and severities by word or number, are compared with < <= > >=
//! service!=cart  service!~"^c"  not equal, does not match
//! a b   a AND b   a OR b        both, both, one of them; AND binds stronger than OR
//! -a   !a   NOT a   (a OR b)    not; grouping
//! ```
//! - AND, OR and NOT are operators in capitals only: `not found` is looked for more often than meant.
//! - In quotes, `\` lets `"` and `\` stand for themselves; `\n` and `\t` are newline and tab. In those of a regular
//!   expression and in `` ` ` `` it is left alone (but for `\"`).
//! - `level` means severity and `msg` the message; a name in quotes is always an attribute's.
//! - A name begins with a letter, `_` or `@`; so `12:30` and `10.0.0.1:80` are words.

use winnow::ModalResult;
use winnow::Parser;
use winnow::ascii::multispace0;
use winnow::combinator::{alt, cut_err, eof, opt, peek, preceded};
use winnow::error::{ErrMode, ParserError};
use winnow::stream::{Offset, Stream};
use winnow::token::{any, one_of, take_while};

use super::filter::{Comparison, Field, Filter, SeverityRange, Test};
use super::text::{Text, TextKind, number};

/// Longest query in bytes.
pub const QUERY_BYTES_MAX: usize = 16 * 1024;

/// Most tests in a query: each is a part of the statement that a database plans.
pub(super) const TESTS_MAX: usize = 256;

/// Parentheses and negations inside of each other.
pub(super) const DEPTH_MAX: usize = 32;

/// What is wrong with a query, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("at column {column}: {detail}")]
pub struct BadQuery {
    /// The character where it goes wrong, from 1.
    pub column: usize,
    /// What is wrong, and what to do.
    pub detail: String,
}

/// Reads a query; an empty one wants every record.
///
/// # Errors
/// Says what is wrong, and at which column.
pub fn parse(query: &str) -> Result<Filter, BadQuery> {
    read(query, whole)
}

/// Reads all of `query` by `whole`.
pub(super) fn read<'q, T>(
    query: &'q str,
    whole: impl FnOnce(&mut Input<'q>) -> ModalResult<T, Wrong>,
) -> Result<T, BadQuery> {
    let bad = |at: usize, detail: String| {
        let column = query[..query.floor_char_boundary(at)].chars().count() + 1;
        BadQuery { column, detail }
    };
    if query.len() > QUERY_BYTES_MAX {
        return Err(bad(QUERY_BYTES_MAX, format!("a query has at most {QUERY_BYTES_MAX} bytes")));
    }
    if let Some(at) = query.find('\0') {
        return Err(bad(at, "a NUL cannot stand in a record, nor in a query".to_owned()));
    }
    let mut input = Input { input: query, state: Nesting::default() };
    let start = input.checkpoint();
    let meaning = whole(&mut input).map_err(|error| {
        let Wrong { left, detail } = error.into_inner().unwrap_or_default();
        bad(query.len() - left.min(query.len()), detail)
    })?;
    debug_assert_eq!(input.offset_from(&start), query.len(), "all of it was read");
    Ok(meaning)
}

/// The rest of the query.
pub(super) type Input<'q> = winnow::stream::Stateful<&'q str, Nesting>;

/// How deep, and how much.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Nesting {
    pub(super) depth: usize,
    pub(super) tests: usize,
}

/// A mistake, and how many bytes are left where it is.
#[derive(Clone, Debug, Default)]
pub(super) struct Wrong {
    left: usize,
    detail: String,
}

impl<'q> ParserError<Input<'q>> for Wrong {
    type Inner = Self;

    fn from_input(input: &Input<'q>) -> Self {
        let detail = match input.input.chars().next() {
            None => "something is missing at the end".to_owned(),
            Some(letter) => {
                format!("{letter:?} is not understood here; put quotes around what is to be looked for as it is")
            }
        };
        Self { left: input.input.len(), detail }
    }

    fn into_inner(self) -> Result<Self::Inner, Self> {
        Ok(self)
    }
}

/// The mistake begins where `left` bytes are left.
pub(super) fn wrong<T>(left: usize, detail: impl Into<String>) -> ModalResult<T, Wrong> {
    Err(ErrMode::Cut(Wrong { left, detail: detail.into() }))
}

fn whole(input: &mut Input<'_>) -> ModalResult<Filter, Wrong> {
    multispace0.parse_next(input)?;
    if input.input.is_empty() {
        return Ok(Filter::All);
    }
    let filter = either(input)?;
    if input.input.starts_with(')') {
        return wrong(input.input.len(), "this ) closes nothing");
    }
    eof.parse_next(input)?;
    Ok(filter)
}

/// `a OR b`
fn either(input: &mut Input<'_>) -> ModalResult<Filter, Wrong> {
    let mut filters = vec![both(input)?];
    while opt(operator("OR")).parse_next(input)?.is_some() {
        filters.push(cut_err(both).parse_next(input)?);
    }
    Ok(if filters.len() == 1 { filters.remove(0) } else { Filter::Or(filters) })
}

/// `a b`, `a AND b`
fn both(input: &mut Input<'_>) -> ModalResult<Filter, Wrong> {
    let mut filter = negation(input)?;
    loop {
        if opt(operator("AND")).parse_next(input)?.is_some() {
            filter = filter.and(cut_err(negation).parse_next(input)?);
        } else if input.input.is_empty()
            || input.input.starts_with(')')
            || peek(opt(operator("OR"))).parse_next(input)?.is_some()
        {
            return Ok(filter);
        } else {
            filter = filter.and(negation(input)?);
        }
    }
}

fn negation(input: &mut Input<'_>) -> ModalResult<Filter, Wrong> {
    if opt(alt((operator("NOT"), one_of(['-', '!']).void()))).parse_next(input)?.is_none() {
        return group(input);
    }
    multispace0.parse_next(input)?;
    Ok(Filter::negated(deeper(input, negation)?))
}

fn group(input: &mut Input<'_>) -> ModalResult<Filter, Wrong> {
    let opened = input.input.len();
    if opt('(').parse_next(input)?.is_none() {
        return test(input);
    }
    multispace0.parse_next(input)?;
    let filter = deeper(input, either)?;
    if opt(')').parse_next(input)?.is_none() {
        return wrong(opened, "this ( is never closed");
    }
    multispace0.parse_next(input)?;
    Ok(filter)
}

fn deeper(
    input: &mut Input<'_>,
    parse: fn(&mut Input<'_>) -> ModalResult<Filter, Wrong>,
) -> ModalResult<Filter, Wrong> {
    if input.state.depth == DEPTH_MAX {
        return wrong(input.input.len(), format!("more than {DEPTH_MAX} levels inside of each other"));
    }
    input.state.depth += 1;
    let filter = parse(input)?;
    input.state.depth -= 1;
    Ok(filter)
}

/// AND, OR or NOT as a word of its own.
fn operator<'q>(word: &'static str) -> impl Parser<Input<'q>, (), ErrMode<Wrong>> {
    (word, peek(alt((one_of((' ', '\t', '\r', '\n', '(', ')')).void(), eof.void()))), multispace0).void()
}

/// One test, and the blanks behind it.
fn test(input: &mut Input<'_>) -> ModalResult<Filter, Wrong> {
    input.state.tests += 1;
    if input.state.tests > TESTS_MAX {
        return wrong(input.input.len(), format!("a query has at most {TESTS_MAX} tests"));
    }
    let filter = alt((regex_of_message, field_test, message_test)).parse_next(input)?;
    multispace0.parse_next(input)?;
    Ok(filter)
}

fn regex_of_message(input: &mut Input<'_>) -> ModalResult<Filter, Wrong> {
    '~'.parse_next(input)?;
    Ok(Filter::message(regex(input)?))
}

fn field_test(input: &mut Input<'_>) -> ModalResult<Filter, Wrong> {
    let name_left = input.input.len();
    let (name, sign) = (name, sign).parse_next(input)?;
    let value_left = input.input.len();
    let negated = matches!(sign, Sign::Not | Sign::NotLike);
    let filter = if let Name::Severity = name {
        severity_test(input, sign)?
    } else {
        let Name::Field(field) = name else { return wrong(name_left, "a name cannot be empty") };
        match sign {
            Sign::Like | Sign::NotLike => Filter::Field { field, test: Test::Text(regex(input)?) },
            Sign::Compare(comparison) => {
                let value = plain(input)?;
                let Some(than) = number(&value) else {
                    return wrong(value_left, format!("{} compares numbers, and {value:?} is none", comparison.sign()));
                };
                Filter::Field { field, test: Test::Compare(comparison, than) }
            }
            // What is searched for in the message is words; what is said to be equal is the whole.
            Sign::Has if field == Field::Message => values(input, |input| message_test(input))?,
            Sign::Has | Sign::Is | Sign::Not => values(input, |input| Ok(field_value(&field, value(input)?)))?,
        }
    };
    Ok(if negated { filter.negated() } else { filter })
}

/// A field's name, and what it means.
enum Name {
    Severity,
    Field(Field),
    Empty,
}

fn name(input: &mut Input<'_>) -> ModalResult<Name, Wrong> {
    if input.input.starts_with(['"', '`']) {
        let name = quoted(input)?.text;
        return Ok(if name.is_empty() { Name::Empty } else { Name::Field(Field::Attribute(name)) });
    }
    let first = one_of(|c: char| c.is_alphabetic() || c == '_' || c == '@');
    let rest = take_while(0.., |c: char| c.is_alphanumeric() || "_.-/@".contains(c));
    Ok(match (first, rest).take().parse_next(input)? {
        "severity" | "level" => Name::Severity,
        name => Name::Field(Field::named(name)),
    })
}

/// What stands between a name and a value.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sign {
    Has,
    Is,
    Not,
    Like,
    NotLike,
    Compare(Comparison),
}

fn sign(input: &mut Input<'_>) -> ModalResult<Sign, Wrong> {
    // A colon stands at its name; blanks around the others are as usual.
    if opt(':').parse_next(input)?.is_some() {
        let narrower = alt(("~".value(Sign::Like), comparison));
        let sign = opt(narrower).parse_next(input)?.unwrap_or(Sign::Has);
        multispace0.parse_next(input)?;
        return Ok(sign);
    }
    let equal = alt(("!=".value(Sign::Not), "!~".value(Sign::NotLike), "=~".value(Sign::Like), "=".value(Sign::Is)));
    let sign = preceded(multispace0, alt((equal, comparison))).parse_next(input)?;
    multispace0.parse_next(input)?;
    Ok(sign)
}

fn comparison(input: &mut Input<'_>) -> ModalResult<Sign, Wrong> {
    alt((
        "<=".value(Comparison::LessOrEqual),
        ">=".value(Comparison::GreaterOrEqual),
        "<".value(Comparison::Less),
        ">".value(Comparison::Greater),
    ))
    .map(Sign::Compare)
    .parse_next(input)
}

/// One value, or some in parentheses with commas, OR or blanks between.
fn values<'q>(
    input: &mut Input<'q>,
    mut one: impl FnMut(&mut Input<'q>) -> ModalResult<Filter, Wrong>,
) -> ModalResult<Filter, Wrong> {
    let opened = input.input.len();
    if opt('(').parse_next(input)?.is_none() {
        return one(input);
    }
    let mut filters = Vec::new();
    loop {
        take_while(0.., [' ', '\t', '\r', '\n', ',']).parse_next(input)?;
        if !filters.is_empty() {
            while opt(operator("OR")).parse_next(input)?.is_some() {}
        }
        if input.input.is_empty() {
            return wrong(opened, "this ( is never closed");
        }
        if opt(')').parse_next(input)?.is_some() {
            break;
        }
        input.state.tests += 1;
        if input.state.tests > TESTS_MAX {
            return wrong(input.input.len(), format!("a query has at most {TESTS_MAX} tests"));
        }
        filters.push(one(input)?);
    }
    if filters.is_empty() {
        return wrong(opened, "there is nothing between these parentheses");
    }
    Ok(any_of(filters))
}

/// One of them; equal tests of one field become one.
fn any_of(filters: Vec<Filter>) -> Filter {
    let mut alternatives: Vec<Filter> = Vec::new();
    for filter in filters {
        if let Filter::Field { field, test: Test::OneOf(more) } = &filter
            && let Some(Filter::Field { field: same, test: Test::OneOf(values) }) = alternatives.last_mut()
            && field == same
        {
            values.extend(more.iter().cloned());
            continue;
        }
        alternatives.push(filter);
    }
    if alternatives.len() == 1 { alternatives.remove(0) } else { Filter::Or(alternatives) }
}

fn severity_test(input: &mut Input<'_>, sign: Sign) -> ModalResult<Filter, Wrong> {
    let left = input.input.len();
    let range = |input: &mut Input<'_>| {
        let left = input.input.len();
        let word = plain(input)?;
        SeverityRange::from_text(&word).map_or_else(
            || {
                wrong(
                    left,
                    format!("{word:?} is no severity; there are trace, debug, info, warn, error, fatal and 0 to 24"),
                )
            },
            Ok,
        )
    };
    Ok(Filter::Severity(match sign {
        Sign::Like | Sign::NotLike => return wrong(left, "a severity is a word or a number, not a regular expression"),
        Sign::Has | Sign::Is | Sign::Not => {
            if opt('*').parse_next(input)?.is_some() {
                return Ok(Filter::Severity(SeverityRange { min: 1, max: SeverityRange::ALL.max }));
            }
            return values(input, |input| range(input).map(Filter::Severity));
        }
        Sign::Compare(Comparison::GreaterOrEqual) => SeverityRange { min: range(input)?.min, ..SeverityRange::ALL },
        Sign::Compare(Comparison::LessOrEqual) => SeverityRange { max: range(input)?.max, ..SeverityRange::ALL },
        // Nothing is above 24 or below 0: the range is then empty.
        Sign::Compare(Comparison::Greater) => SeverityRange { min: range(input)?.max + 1, ..SeverityRange::ALL },
        Sign::Compare(Comparison::Less) => match range(input)?.min.checked_sub(1) {
            Some(max) => SeverityRange { max, ..SeverityRange::ALL },
            None => SeverityRange { min: 1, max: 0 },
        },
    }))
}

/// What is looked for, and whether `*` stands before and behind it.
struct Value {
    text: String,
    quotes: Option<char>,
    open_start: bool,
    open_end: bool,
}

fn field_value(field: &Field, value: ReadyValue) -> Filter {
    let field = field.clone();
    match value {
        ReadyValue::Any => Filter::Field { field, test: Test::Exists },
        ReadyValue::Exactly(text) => Filter::equals(field, text),
        ReadyValue::Like(text) => Filter::Field { field, test: Test::Text(text) },
    }
}

/// A field's value as a test.
enum ReadyValue {
    Any,
    Exactly(String),
    Like(Text),
}

fn value(input: &mut Input<'_>) -> ModalResult<ReadyValue, Wrong> {
    let left = input.input.len();
    let value = starred(input, bare_value)?;
    let kind = match (value.open_start, value.open_end) {
        (false, false) => return Ok(ReadyValue::Exactly(value.text)),
        _ if value.text.is_empty() => return Ok(ReadyValue::Any),
        (true, true) => TextKind::Substring,
        (false, true) => TextKind::Prefix,
        (true, false) => TextKind::Suffix,
    };
    text(left, kind, value.text, true).map(ReadyValue::Like)
}

/// Words, or parts of words, of the message.
fn message_test(input: &mut Input<'_>) -> ModalResult<Filter, Wrong> {
    let left = input.input.len();
    let value = starred(input, bare_word)?;
    if value.text.is_empty() {
        if value.open_start {
            return Ok(Filter::All);
        }
        return wrong(left, "there is nothing between these quotes");
    }
    let kind = match (value.open_start, value.open_end) {
        (false, false) => TextKind::Words,
        (true, true) => TextKind::Substring,
        (false, true) => TextKind::WordsFrom,
        (true, false) => TextKind::WordsTo,
    };
    text(left, kind, value.text, value.quotes == Some('\'')).map(Filter::message)
}

/// A text in quotes or bare, with stars beside it.
fn starred<'q>(
    input: &mut Input<'q>,
    bare: fn(&mut Input<'q>) -> ModalResult<&'q str, Wrong>,
) -> ModalResult<Value, Wrong> {
    let open_start = opt('*').parse_next(input)?.is_some();
    let Quoted { text, quotes } = if input.input.starts_with(['"', '\'', '`']) {
        quoted(input)?
    } else {
        let left = input.input.len();
        let text = if open_start && ends(input.input) { "" } else { bare(input)? };
        if let "AND" | "OR" | "NOT" = text {
            return wrong(
                left,
                format!("{text} is an operator, and something is missing beside it; the word itself goes in quotes"),
            );
        }
        Quoted { text: text.to_owned(), quotes: None }
    };
    let open_end = take_while(0.., '*').parse_next(input)?.len();
    let left = input.input.len();
    if open_end > 0 && !ends(input.input) {
        return wrong(
            left,
            "a * stands at the beginning or at the end; for more there are regular expressions: ~\"a.*b\"",
        );
    }
    Ok(Value { text, quotes, open_start, open_end: open_end > 0 })
}

/// Whether a value is over here.
fn ends(rest: &str) -> bool {
    rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n', ',', ')'])
}

/// A word as it stands in a message.
fn bare_word<'q>(input: &mut Input<'q>) -> ModalResult<&'q str, Wrong> {
    let numeric = input.input.starts_with(|c: char| c.is_ascii_digit());
    take_while(1.., move |c: char| !c.is_whitespace() && !"()\"'`*,=<>!~".contains(c) && (c != ':' || numeric))
        .parse_next(input)
}

/// A value as it stands behind a sign.
fn bare_value<'q>(input: &mut Input<'q>) -> ModalResult<&'q str, Wrong> {
    if input.input.starts_with(|c: char| c.is_whitespace() || c == ')') || input.input.is_empty() {
        return wrong(input.input.len(), "a value is missing; an empty one is \"\", and * is any");
    }
    take_while(1.., |c: char| !c.is_whitespace() && !"()\"'`*,".contains(c)).parse_next(input)
}

/// A value that is no pattern.
fn plain(input: &mut Input<'_>) -> ModalResult<String, Wrong> {
    if input.input.starts_with(['"', '\'', '`']) {
        Ok(quoted(input)?.text)
    } else {
        bare_value(input).map(str::to_owned)
    }
}

/// A regular expression in quotes.
fn regex(input: &mut Input<'_>) -> ModalResult<Text, Wrong> {
    let left = input.input.len();
    let Ok(mark) = one_of::<_, _, ErrMode<Wrong>>(['"', '\'', '`']).parse_next(input) else {
        return wrong(left, "a regular expression stands in quotes, such as ~\"time(d )?out\"");
    };
    let mut pattern = String::new();
    loop {
        match any.parse_next(input).map_err(|_: ErrMode<Wrong>| unclosed(left))? {
            letter if letter == mark => break,
            '\\' if mark != '`' => {
                let next = any.parse_next(input).map_err(|_: ErrMode<Wrong>| unclosed(left))?;
                if next != mark {
                    pattern.push('\\');
                }
                pattern.push(next);
            }
            letter => pattern.push(letter),
        }
    }
    text(left, TextKind::Regex, pattern, true)
}

fn text(left: usize, kind: TextKind, pattern: String, case_sensitive: bool) -> ModalResult<Text, Wrong> {
    Text::new(kind, pattern, case_sensitive).or_else(|error| wrong(left, error.to_string()))
}

/// What stood in quotes, and in which.
pub(super) struct Quoted {
    pub(super) text: String,
    quotes: Option<char>,
}

pub(super) fn quoted(input: &mut Input<'_>) -> ModalResult<Quoted, Wrong> {
    let left = input.input.len();
    let mark = one_of(['"', '\'', '`']).parse_next(input)?;
    let mut text = String::new();
    loop {
        match any.parse_next(input).map_err(|_: ErrMode<Wrong>| unclosed(left))? {
            letter if letter == mark => return Ok(Quoted { text, quotes: Some(mark) }),
            '\\' if mark != '`' => match any.parse_next(input).map_err(|_: ErrMode<Wrong>| unclosed(left))? {
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

fn unclosed(left: usize) -> ErrMode<Wrong> {
    ErrMode::Cut(Wrong { left, detail: "this quote is never closed".to_owned() })
}

#[cfg(test)]
#[path = "language_tests.rs"]
mod tests;
