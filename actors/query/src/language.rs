//! The query language: parses text into a [`Filter`].
//!
//! ```text
//! timeout                       the message contains this word, ignoring case; 'Timeout' is case-sensitive
//! "connection reset"            the message contains this phrase
//! time*  *out  *meou*           a word with this prefix, with this suffix; this text anywhere
//! ~"time(d )?out"               the message matches this regular expression
//! service:cart                  the field equals this: service, host, severity, message, or an attribute
//! service:cart*  path:*.php     prefix, suffix;  path:*admin*  contains;  user:*  exists
//! service:(cart, shop)          the field equals one of these
//! service:~"^(cart|shop)$"      the field matches this regular expression
//! severity>=warn  status>499    < <= > >= compare numbers, and severities by word or number
//! service!=cart  service!~"^c"  not equal, does not match
//! a b   a AND b   a OR b        both, both, either; AND binds tighter than OR
//! -a   !a   NOT a   (a OR b)    negation; grouping
//! ```
//! - AND, OR and NOT are operators only in upper case: `not found` is usually meant as text to search for.
//! - In quotes, `\` escapes `"` and `\`; `\n` and `\t` are newline and tab. In a regular expression and in `` ` ` `` a
//!   backslash is literal (except for `\"`).
//! - `level` is an alias of severity and `msg` of message; a name in quotes is always an attribute.
//! - A name starts with a letter, `_` or `@`, so `12:30` and `10.0.0.1:80` are words.

use winnow::ModalResult;
use winnow::Parser;
use winnow::ascii::multispace0;
use winnow::combinator::{alt, cut_err, eof, opt, peek, preceded};
use winnow::error::ErrMode;
use winnow::token::{any, one_of, take_while};

use crate::filter::{Comparison, Field, Filter, SeverityRange, Test};
use crate::syntax::{
    DEPTH_MAX, Input, QueryError, Quoted, SyntaxError, TESTS_MAX, quoted, read, syntax_error, unclosed,
};
use crate::text::{Text, TextKind, number};

/// Parses a query; an empty one matches every record.
///
/// # Errors
/// The query is invalid; the error has the column.
pub fn parse(query: &str) -> Result<Filter, QueryError> {
    read(query, whole)
}

fn whole(input: &mut Input<'_>) -> ModalResult<Filter, SyntaxError> {
    multispace0.parse_next(input)?;
    if input.input.is_empty() {
        return Ok(Filter::All);
    }
    let filter = disjunction(input)?;
    if input.input.starts_with(')') {
        return syntax_error(input.input.len(), "unmatched )");
    }
    eof.parse_next(input)?;
    Ok(filter)
}

/// `a OR b`
fn disjunction(input: &mut Input<'_>) -> ModalResult<Filter, SyntaxError> {
    let mut filters = vec![conjunction(input)?];
    while opt(operator("OR")).parse_next(input)?.is_some() {
        filters.push(cut_err(conjunction).parse_next(input)?);
    }
    Ok(if filters.len() == 1 { filters.remove(0) } else { Filter::Or(filters) })
}

/// `a b`, `a AND b`
fn conjunction(input: &mut Input<'_>) -> ModalResult<Filter, SyntaxError> {
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

fn negation(input: &mut Input<'_>) -> ModalResult<Filter, SyntaxError> {
    if opt(alt((operator("NOT"), one_of(['-', '!']).void()))).parse_next(input)?.is_none() {
        return group(input);
    }
    multispace0.parse_next(input)?;
    Ok(Filter::negated(nested(input, negation)?))
}

fn group(input: &mut Input<'_>) -> ModalResult<Filter, SyntaxError> {
    let open_left = input.input.len();
    if opt('(').parse_next(input)?.is_none() {
        return test(input);
    }
    multispace0.parse_next(input)?;
    let filter = nested(input, disjunction)?;
    if opt(')').parse_next(input)?.is_none() {
        return syntax_error(open_left, "unclosed (");
    }
    multispace0.parse_next(input)?;
    Ok(filter)
}

fn nested(
    input: &mut Input<'_>,
    parse: fn(&mut Input<'_>) -> ModalResult<Filter, SyntaxError>,
) -> ModalResult<Filter, SyntaxError> {
    if input.state.depth == DEPTH_MAX {
        return syntax_error(input.input.len(), format!("nested too deeply: expected at most {DEPTH_MAX} levels"));
    }
    input.state.depth += 1;
    let filter = parse(input)?;
    input.state.depth -= 1;
    Ok(filter)
}

/// AND, OR or NOT as a separate word.
fn operator<'q>(word: &'static str) -> impl Parser<Input<'q>, (), ErrMode<SyntaxError>> {
    (word, peek(alt((one_of((' ', '\t', '\r', '\n', '(', ')')).void(), eof.void()))), multispace0).void()
}

/// One test and the whitespace after it.
fn test(input: &mut Input<'_>) -> ModalResult<Filter, SyntaxError> {
    input.state.tests += 1;
    if input.state.tests > TESTS_MAX {
        return syntax_error(input.input.len(), format!("too many conditions: expected at most {TESTS_MAX}"));
    }
    let filter = alt((regex_of_message, field_test, message_test)).parse_next(input)?;
    multispace0.parse_next(input)?;
    Ok(filter)
}

fn regex_of_message(input: &mut Input<'_>) -> ModalResult<Filter, SyntaxError> {
    '~'.parse_next(input)?;
    Ok(Filter::message(regex(input)?))
}

fn field_test(input: &mut Input<'_>) -> ModalResult<Filter, SyntaxError> {
    let name_left = input.input.len();
    let (name, sign) = (name, sign).parse_next(input)?;
    let value_left = input.input.len();
    let negated = matches!(sign, Sign::Not | Sign::MatchesNot);
    let filter = if let Name::Severity = name {
        severity_test(input, sign)?
    } else {
        let Name::Field(field) = name else { return syntax_error(name_left, "empty field name") };
        match sign {
            Sign::Matches | Sign::MatchesNot => Filter::Field { field, test: Test::Text(regex(input)?) },
            Sign::Compare(comparison) => {
                let value = literal(input)?;
                let Some(than) = number(&value) else {
                    return syntax_error(
                        value_left,
                        format!("invalid number {value:?}: {} compares numbers", comparison.sign()),
                    );
                };
                Filter::Field { field, test: Test::Compare(comparison, than) }
            }
            // A message is searched for words; equality refers to the whole message.
            Sign::Has if field == Field::Message => values(input, |input| message_test(input))?,
            Sign::Has | Sign::Is | Sign::Not => values(input, |input| Ok(field_value(&field, value(input)?)))?,
        }
    };
    Ok(if negated { filter.negated() } else { filter })
}

/// A field name.
enum Name {
    Severity,
    Field(Field),
    Empty,
}

fn name(input: &mut Input<'_>) -> ModalResult<Name, SyntaxError> {
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

/// The operator between a name and a value.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sign {
    Has,
    Is,
    Not,
    Matches,
    MatchesNot,
    Compare(Comparison),
}

fn sign(input: &mut Input<'_>) -> ModalResult<Sign, SyntaxError> {
    // A colon directly follows its name; other operators may be surrounded by whitespace.
    if opt(':').parse_next(input)?.is_some() {
        let narrower = alt(("~".value(Sign::Matches), comparison));
        let sign = opt(narrower).parse_next(input)?.unwrap_or(Sign::Has);
        multispace0.parse_next(input)?;
        return Ok(sign);
    }
    let equal =
        alt(("!=".value(Sign::Not), "!~".value(Sign::MatchesNot), "=~".value(Sign::Matches), "=".value(Sign::Is)));
    let sign = preceded(multispace0, alt((equal, comparison))).parse_next(input)?;
    multispace0.parse_next(input)?;
    Ok(sign)
}

fn comparison(input: &mut Input<'_>) -> ModalResult<Sign, SyntaxError> {
    alt((
        "<=".value(Comparison::LessOrEqual),
        ">=".value(Comparison::GreaterOrEqual),
        "<".value(Comparison::Less),
        ">".value(Comparison::Greater),
    ))
    .map(Sign::Compare)
    .parse_next(input)
}

/// One value, or several in parentheses, separated by commas, OR or whitespace.
fn values<'q>(
    input: &mut Input<'q>,
    mut one: impl FnMut(&mut Input<'q>) -> ModalResult<Filter, SyntaxError>,
) -> ModalResult<Filter, SyntaxError> {
    let open_left = input.input.len();
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
            return syntax_error(open_left, "unclosed (");
        }
        if opt(')').parse_next(input)?.is_some() {
            break;
        }
        input.state.tests += 1;
        if input.state.tests > TESTS_MAX {
            return syntax_error(input.input.len(), format!("too many conditions: expected at most {TESTS_MAX}"));
        }
        filters.push(one(input)?);
    }
    if filters.is_empty() {
        return syntax_error(open_left, "empty parentheses: expected at least one value");
    }
    Ok(any_of(filters))
}

/// Any of the filters; equality tests on the same field are combined.
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

fn severity_test(input: &mut Input<'_>, sign: Sign) -> ModalResult<Filter, SyntaxError> {
    let left = input.input.len();
    let range = |input: &mut Input<'_>| {
        let left = input.input.len();
        let word = literal(input)?;
        SeverityRange::from_text(&word).map_or_else(
            || {
                syntax_error(
                    left,
                    format!(
                        "invalid severity {word:?}: expected one of trace, debug, info, warn, error, fatal, \
                         or a number from 0 to 24"
                    ),
                )
            },
            Ok,
        )
    };
    Ok(Filter::Severity(match sign {
        Sign::Matches | Sign::MatchesNot => {
            return syntax_error(
                left,
                "severity does not support regular expressions: expected a severity such as warn",
            );
        }
        Sign::Has | Sign::Is | Sign::Not => {
            if opt('*').parse_next(input)?.is_some() {
                return Ok(Filter::Severity(SeverityRange { min: 1, max: SeverityRange::ALL.max }));
            }
            return values(input, |input| range(input).map(Filter::Severity));
        }
        Sign::Compare(Comparison::GreaterOrEqual) => SeverityRange { min: range(input)?.min, ..SeverityRange::ALL },
        Sign::Compare(Comparison::LessOrEqual) => SeverityRange { max: range(input)?.max, ..SeverityRange::ALL },
        // No number is above 24 or below 0: the range is empty then.
        Sign::Compare(Comparison::Greater) => SeverityRange { min: range(input)?.max + 1, ..SeverityRange::ALL },
        Sign::Compare(Comparison::Less) => match range(input)?.min.checked_sub(1) {
            Some(max) => SeverityRange { max, ..SeverityRange::ALL },
            None => SeverityRange { min: 1, max: 0 },
        },
    }))
}

/// A value, and whether it has a `*` before and after it.
struct Value {
    text: String,
    quotes: Option<char>,
    open_start: bool,
    open_end: bool,
}

fn field_value(field: &Field, value: ValueTest) -> Filter {
    let field = field.clone();
    match value {
        ValueTest::Exists => Filter::Field { field, test: Test::Exists },
        ValueTest::Equals(text) => Filter::equals(field, text),
        ValueTest::Matches(text) => Filter::Field { field, test: Test::Text(text) },
    }
}

/// The value of a field, as a test.
enum ValueTest {
    Exists,
    Equals(String),
    Matches(Text),
}

fn value(input: &mut Input<'_>) -> ModalResult<ValueTest, SyntaxError> {
    let left = input.input.len();
    let value = with_stars(input, bare_value)?;
    let kind = match (value.open_start, value.open_end) {
        (false, false) => return Ok(ValueTest::Equals(value.text)),
        _ if value.text.is_empty() => return Ok(ValueTest::Exists),
        (true, true) => TextKind::Substring,
        (false, true) => TextKind::Prefix,
        (true, false) => TextKind::Suffix,
    };
    text(left, kind, value.text, true).map(ValueTest::Matches)
}

/// Words, or parts of words, in the message.
fn message_test(input: &mut Input<'_>) -> ModalResult<Filter, SyntaxError> {
    let left = input.input.len();
    let value = with_stars(input, bare_word)?;
    if value.text.is_empty() {
        if value.open_start {
            return Ok(Filter::All);
        }
        return syntax_error(left, "empty quotes: expected text to search for");
    }
    let kind = match (value.open_start, value.open_end) {
        (false, false) => TextKind::Words,
        (true, true) => TextKind::Substring,
        (false, true) => TextKind::WordsFrom,
        (true, false) => TextKind::WordsTo,
    };
    text(left, kind, value.text, value.quotes == Some('\'')).map(Filter::message)
}

/// Text in quotes or bare, with stars around it.
fn with_stars<'q>(
    input: &mut Input<'q>,
    bare: fn(&mut Input<'q>) -> ModalResult<&'q str, SyntaxError>,
) -> ModalResult<Value, SyntaxError> {
    let open_start = opt('*').parse_next(input)?.is_some();
    let Quoted { text, quotes } = if input.input.starts_with(['"', '\'', '`']) {
        quoted(input)?
    } else {
        let left = input.input.len();
        let text = if open_start && ends(input.input) { "" } else { bare(input)? };
        if let "AND" | "OR" | "NOT" = text {
            return syntax_error(
                left,
                format!("{text} is an operator and lacks an operand; to search for the word, put it in quotes"),
            );
        }
        Quoted { text: text.to_owned(), quotes: None }
    };
    let open_end = take_while(0.., '*').parse_next(input)?.len();
    let left = input.input.len();
    if open_end > 0 && !ends(input.input) {
        return syntax_error(
            left,
            "* is supported only at the start or the end: use a regular expression such as ~\"a.*b\"",
        );
    }
    Ok(Value { text, quotes, open_start, open_end: open_end > 0 })
}

/// Whether a value ends here.
fn ends(rest: &str) -> bool {
    rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n', ',', ')'])
}

/// A bare word in a message.
fn bare_word<'q>(input: &mut Input<'q>) -> ModalResult<&'q str, SyntaxError> {
    let numeric = input.input.starts_with(|c: char| c.is_ascii_digit());
    take_while(1.., move |c: char| !c.is_whitespace() && !"()\"'`*,=<>!~".contains(c) && (c != ':' || numeric))
        .parse_next(input)
}

/// A bare value after an operator.
fn bare_value<'q>(input: &mut Input<'q>) -> ModalResult<&'q str, SyntaxError> {
    if input.input.starts_with(|c: char| c.is_whitespace() || c == ')') || input.input.is_empty() {
        return syntax_error(input.input.len(), "missing value: expected text, \"\" for an empty value, or * for any");
    }
    take_while(1.., |c: char| !c.is_whitespace() && !"()\"'`*,".contains(c)).parse_next(input)
}

/// A value that is not a pattern.
fn literal(input: &mut Input<'_>) -> ModalResult<String, SyntaxError> {
    if input.input.starts_with(['"', '\'', '`']) {
        Ok(quoted(input)?.text)
    } else {
        bare_value(input).map(str::to_owned)
    }
}

/// A regular expression in quotes.
fn regex(input: &mut Input<'_>) -> ModalResult<Text, SyntaxError> {
    let left = input.input.len();
    let Ok(mark) = one_of::<_, _, ErrMode<SyntaxError>>(['"', '\'', '`']).parse_next(input) else {
        return syntax_error(left, "expected a regular expression in quotes, such as ~\"time(d )?out\"");
    };
    let mut pattern = String::new();
    loop {
        match any.parse_next(input).map_err(|_: ErrMode<SyntaxError>| unclosed(left))? {
            letter if letter == mark => break,
            '\\' if mark != '`' => {
                let next = any.parse_next(input).map_err(|_: ErrMode<SyntaxError>| unclosed(left))?;
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

fn text(left: usize, kind: TextKind, pattern: String, case_sensitive: bool) -> ModalResult<Text, SyntaxError> {
    Text::new(kind, pattern, case_sensitive).or_else(|error| syntax_error(left, error.to_string()))
}

#[cfg(test)]
#[path = "language_tests.rs"]
mod tests;
