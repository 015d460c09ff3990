//! Parses the subset of LogQL that Grafana's Loki data source uses into a [`Filter`] and what to count.
//!
//! ```text
//! {service_name="cart", level=~"error|warn"}       labels: = != =~ !~; a regular expression matches the whole value
//!   |= "timeout" != "retry" |~ "time[ds]? ?out"    contains, does not contain, matches, does not match; |= "a" or "b"
//!   | json | logfmt | drop a | keep b              no effect: attributes were parsed when the record was stored
//!   | status >= 500 and path != "/health"          attributes: = != =~ !~, numbers also == > >= < <=; and, or, ","
//! count_over_time({…} [5m])   rate({…} [5m])       by service;  sum(…), sum by (level) (…), sum by (service_name) (…)
//! vector(1)+vector(1)                              health check
//! ```
//! - Labels are `service_name` (or `service`), `host` and `level` (or `detected_level`, `severity`: fatal, error, warn,
//!   info, debug, trace, unknown); every other name is an attribute. Prometheus allows no dots in names: `k8s_pod_name`
//!   also means `k8s.pod.name`. A missing attribute is empty and therefore matches `!="x"` and `=""`.
//! - The line is the message of the record.
//! - The rest of LogQL is rejected by name: a query with a different meaning is worse than none.

use regex::Regex;
use winnow::ModalResult;
use winnow::Parser;
use winnow::combinator::{alt, eof, opt, peek};
use winnow::token::{one_of, take_while};

use crate::filter::{Comparison, Field, Filter, SeverityRange, Test};
use crate::syntax::{DEPTH_MAX, Input, QueryError, SyntaxError, TESTS_MAX, quoted, read, syntax_error};
use crate::text::{Text, TextKind};

/// The values of the label `level`, from the highest severity.
pub const LEVELS: [&str; 7] = ["fatal", "error", "warn", "info", "debug", "trace", "unknown"];

/// Maximum number of underscores that are tried individually as dots: each doubles the number of tests.
const DOTS_MAX: usize = 3;

/// A parsed query. Like [`Filter`], it is not `non_exhaustive`: an evaluation must be complete.
#[derive(Clone, Debug, PartialEq)]
pub enum Expression {
    /// Returns records.
    Log(Filter),
    /// Counts records.
    Metric(Metric),
    /// A constant at every point in time.
    Constant(f64),
}

/// A count of records over time windows.
#[derive(Clone, Debug, PartialEq)]
pub struct Metric {
    /// The records to count.
    pub filter: Filter,
    /// Length of a window in milliseconds.
    pub window_ms: i64,
    /// Whether the count is per second.
    pub per_second: bool,
    /// The series that are returned.
    pub group: Group,
}

/// The series that are returned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Group {
    /// A single series.
    Nothing,
    /// One series per level, with these label names.
    Level(Vec<String>),
    /// One series per service, with these label names.
    Service(Vec<String>),
}

/// Parses a query.
///
/// # Errors
/// The query is invalid or unsupported; the error has the column.
pub fn parse(query: &str) -> Result<Expression, QueryError> {
    read(query, |input| {
        blank(input)?;
        let expression = match input.input.chars().next() {
            Some('{') => Expression::Log(log(input)?),
            _ => sum(input)?,
        };
        blank(input)?;
        eof.parse_next(input)?;
        Ok(expression)
    })
}

/// Parses a stream selector, as in `match[]`.
///
/// # Errors
/// As [`parse`].
pub fn parse_selector(query: &str) -> Result<Filter, QueryError> {
    match parse(query)? {
        Expression::Log(filter) => Ok(filter),
        _ => Err(QueryError { column: 1, detail: "expected a selector such as {service_name=\"cart\"}".to_owned() }),
    }
}

/// What a label name refers to.
#[derive(Clone, Debug, PartialEq)]
pub enum Label {
    /// The severity, as a level.
    Level,
    /// The service, the host, or an attribute with any of these names.
    Fields(Vec<Field>),
    /// A label internal to Loki, such as `__error__`: never present.
    Absent,
}

impl Label {
    /// Resolves `name`.
    #[must_use]
    pub fn named(name: &str) -> Self {
        match name {
            "level" | "detected_level" | "severity" => Self::Level,
            "service_name" | "service" => Self::Fields(vec![Field::Service]),
            "host" => Self::Fields(vec![Field::Host]),
            _ if name.starts_with("__") => Self::Absent,
            _ => Self::Fields(with_dots(name).into_iter().map(Field::Attribute).collect()),
        }
    }
}

/// The label name for an attribute name.
#[must_use]
pub fn label_name(attribute: &str) -> String {
    let usual = |letter: char| if letter.is_ascii_alphanumeric() { letter } else { '_' };
    let name: String = attribute.chars().map(usual).collect();
    if name.starts_with(|first: char| first.is_ascii_digit()) { format!("_{name}") } else { name }
}

/// The attribute names that [`label_name`] maps to this label name, as far as dots are concerned.
fn with_dots(name: &str) -> Vec<String> {
    let places: Vec<usize> = name.match_indices('_').map(|(at, _)| at).collect();
    if places.len() > DOTS_MAX {
        return vec![name.to_owned(), name.replace('_', ".")];
    }
    let chosen = |choice: usize| {
        let mut name = name.to_owned();
        for (bit, at) in places.iter().enumerate().filter(|(bit, _)| choice >> bit & 1 == 1) {
            debug_assert!(bit < DOTS_MAX);
            name.replace_range(at..&(at + 1), ".");
        }
        name
    };
    (0..1_usize << places.len()).map(chosen).collect()
}

/// Skips whitespace and comments.
fn blank(input: &mut Input<'_>) -> ModalResult<(), SyntaxError> {
    loop {
        take_while(0.., char::is_whitespace).parse_next(input)?;
        if opt('#').parse_next(input)?.is_none() {
            return Ok(());
        }
        take_while(0.., |letter| letter != '\n').parse_next(input)?;
    }
}

/// Consumes `sign` and the whitespace after it; returns whether it was present.
fn consume(input: &mut Input<'_>, sign: &'static str) -> ModalResult<bool, SyntaxError> {
    let found = opt(sign).parse_next(input)?.is_some();
    if found {
        blank(input)?;
    }
    Ok(found)
}

fn expect_sign(input: &mut Input<'_>, sign: &'static str) -> ModalResult<(), SyntaxError> {
    if consume(input, sign)? { Ok(()) } else { syntax_error(input.input.len(), format!("expected `{sign}`")) }
}

fn unsupported<T>(left: usize, what: &str) -> ModalResult<T, SyntaxError> {
    let supported =
        "a selector, line and label filters, json, logfmt, drop, keep, rate, count_over_time, sum by and vector";
    syntax_error(left, format!("unsupported LogQL: {what}; supported are {supported}"))
}

/// Consumes a name and the whitespace after it; empty if there is none.
fn name<'q>(input: &mut Input<'q>) -> ModalResult<&'q str, SyntaxError> {
    let first = one_of(|letter: char| letter.is_ascii_alphabetic() || letter == '_');
    // Dots are an extension: an attribute name may be written as it is.
    let rest = take_while(0.., |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '_' | '.'));
    let name = opt((first, rest).take()).parse_next(input)?.unwrap_or_default();
    blank(input)?;
    Ok(name)
}

fn names(input: &mut Input<'_>) -> ModalResult<Vec<String>, SyntaxError> {
    let mut names = Vec::new();
    loop {
        let left = input.input.len();
        let name = name(input)?;
        if name.is_empty() {
            return syntax_error(left, "expected a label name");
        }
        names.push(name.to_owned());
        if !consume(input, ",")? {
            return Ok(names);
        }
    }
}

fn string(input: &mut Input<'_>) -> ModalResult<String, SyntaxError> {
    if !input.input.starts_with(['"', '`']) {
        return syntax_error(input.input.len(), "expected a quoted string");
    }
    let text = quoted(input)?.text;
    blank(input)?;
    Ok(text)
}

fn count_test(input: &mut Input<'_>) -> ModalResult<(), SyntaxError> {
    input.state.tests += 1;
    if input.state.tests > TESTS_MAX {
        return syntax_error(input.input.len(), format!("too many conditions: expected at most {TESTS_MAX}"));
    }
    Ok(())
}

// ---- metric queries

fn sum(input: &mut Input<'_>) -> ModalResult<Expression, SyntaxError> {
    let left = input.input.len();
    match name(input)? {
        "sum" => {
            let before = grouping(input)?;
            expect_sign(input, "(")?;
            let inner_left = input.input.len();
            let inner = name(input)?;
            let mut metric = over_time(input, inner, inner_left)?;
            expect_sign(input, ")")?;
            metric.group = match before {
                Some(group) => group,
                None => grouping(input)?.unwrap_or(Group::Nothing),
            };
            Ok(Expression::Metric(metric))
        }
        "vector" => {
            let mut value = vector(input)?;
            while consume(input, "+")? {
                let left = input.input.len();
                if name(input)? != "vector" {
                    return unsupported(left, "arithmetic");
                }
                value += vector(input)?;
            }
            Ok(Expression::Constant(value))
        }
        "" => {
            syntax_error(left, "expected a selector such as {service_name=\"cart\"}, or sum, rate or count_over_time")
        }
        function => over_time(input, function, left).map(Expression::Metric),
    }
}

fn vector(input: &mut Input<'_>) -> ModalResult<f64, SyntaxError> {
    expect_sign(input, "(")?;
    let value = number(input)?;
    expect_sign(input, ")")?;
    Ok(value)
}

/// `by (a, b)`
fn grouping(input: &mut Input<'_>) -> ModalResult<Option<Group>, SyntaxError> {
    let left = input.input.len();
    match peek(opt(alt(("by", "without")))).parse_next(input)? {
        None => return Ok(None),
        Some("without") => return unsupported(left, "`without`"),
        Some(_) => _ = name(input)?,
    }
    expect_sign(input, "(")?;
    if consume(input, ")")? {
        return Ok(Some(Group::Nothing));
    }
    let names = names(input)?;
    expect_sign(input, ")")?;
    let all = |label: &Label| names.iter().all(|name| Label::named(name) == *label);
    if all(&Label::Level) {
        Ok(Some(Group::Level(names)))
    } else if all(&Label::Fields(vec![Field::Service])) {
        Ok(Some(Group::Service(names)))
    } else {
        unsupported(left, "sum by labels other than level (detected_level, severity) or service_name (service)")
    }
}

/// `count_over_time({…} [5m])`, starting at its parenthesis.
fn over_time(input: &mut Input<'_>, function: &str, left: usize) -> ModalResult<Metric, SyntaxError> {
    let per_second = match function {
        "count_over_time" => false,
        "rate" => true,
        other => return unsupported(left, &format!("`{other}`")),
    };
    expect_sign(input, "(")?;
    let filter = log(input)?;
    expect_sign(input, "[")?;
    let window_ms = duration_ms(input)?;
    expect_sign(input, "]")?;
    if input.input.starts_with("offset") {
        return unsupported(input.input.len(), "`offset`");
    }
    expect_sign(input, ")")?;
    Ok(Metric { filter, window_ms, per_second, group: Group::Service(vec!["service_name".to_owned()]) })
}

/// `5m`, `1h30m`, `500ms`
fn duration_ms(input: &mut Input<'_>) -> ModalResult<i64, SyntaxError> {
    let left = input.input.len();
    let text: &str = take_while(0.., |letter: char| letter.is_alphanumeric() || letter == '.').parse_next(input)?;
    blank(input)?;
    match window_ms(text) {
        Some(window_ms) => Ok(window_ms),
        None => syntax_error(left, "expected a duration of at least 1ms, such as 5m or 1h30m"),
    }
}

/// A duration such as `5m`, `1h30m` or `500ms`, in whole milliseconds; at least one.
#[must_use]
pub fn window_ms(text: &str) -> Option<i64> {
    let (mut rest, mut sum_ms) = (text, 0.0);
    while !rest.is_empty() {
        let digits = rest.find(|letter: char| !letter.is_ascii_digit() && letter != '.')?;
        let value: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let unit = rest.find(|letter: char| letter.is_ascii_digit()).unwrap_or(rest.len());
        let unit_ms = match &rest[..unit] {
            "ns" => 1e-6,
            "us" | "µs" => 1e-3,
            "ms" => 1.0,
            "s" => 1e3,
            "m" => 60e3,
            "h" => 3600e3,
            "d" => 86_400e3,
            "w" => 7.0 * 86_400e3,
            "y" => 365.0 * 86_400e3,
            _ => return None,
        };
        rest = &rest[unit..];
        sum_ms += value * unit_ms;
    }
    // Ten thousand years: far below the range of the type.
    #[allow(clippy::cast_possible_truncation)]
    (1.0..3e14).contains(&sum_ms).then_some(sum_ms as i64)
}

fn number(input: &mut Input<'_>) -> ModalResult<f64, SyntaxError> {
    let left = input.input.len();
    let sign = opt('-').parse_next(input)?.is_some();
    let word: &str = take_while(0.., |letter: char| letter.is_alphanumeric() || letter == '.').parse_next(input)?;
    blank(input)?;
    match word.parse::<f64>() {
        Ok(value) if word.starts_with(|first: char| first.is_ascii_digit()) => Ok(if sign { -value } else { value }),
        _ if word.starts_with(|first: char| first.is_ascii_digit()) => {
            unsupported(left, "comparison with a duration or size")
        }
        _ => syntax_error(left, "expected a number"),
    }
}

// ---- log queries

/// A selector and its pipeline.
fn log(input: &mut Input<'_>) -> ModalResult<Filter, SyntaxError> {
    let mut filter = selector(input)?;
    loop {
        let next = if let Some(line) = line_filter(input)? {
            line
        } else if consume(input, "|")? {
            stage(input)?
        } else {
            return Ok(filter);
        };
        filter = filter.and(next);
    }
}

fn selector(input: &mut Input<'_>) -> ModalResult<Filter, SyntaxError> {
    let open_left = input.input.len();
    expect_sign(input, "{")?;
    let mut filter = Filter::All;
    while !consume(input, "}")? {
        if input.input.is_empty() {
            return syntax_error(open_left, "unclosed {");
        }
        let left = input.input.len();
        let name = name(input)?;
        if name.is_empty() {
            return syntax_error(left, "expected a label name");
        }
        let matcher = matcher(input)?;
        let at = input.input.len();
        let value = string(input)?;
        filter = filter.and(matcher.filter(&Label::named(name), &value, at)?);
        count_test(input)?;
        if !consume(input, ",")? && !input.input.starts_with('}') {
            return syntax_error(input.input.len(), "expected `,` or `}`");
        }
    }
    Ok(filter)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Matcher {
    Is,
    IsNot,
    Matches,
    MatchesNot,
}

fn matcher(input: &mut Input<'_>) -> ModalResult<Matcher, SyntaxError> {
    let one = alt((
        "=~".value(Matcher::Matches),
        "!~".value(Matcher::MatchesNot),
        "!=".value(Matcher::IsNot),
        "=".value(Matcher::Is),
    ));
    let Some(matcher) = opt(one).parse_next(input)? else {
        return syntax_error(input.input.len(), "expected one of = != =~ !~");
    };
    blank(input)?;
    Ok(matcher)
}

impl Matcher {
    /// The filter on `label`; `left` is the position of `value`, for errors.
    fn filter(self, label: &Label, value: &str, left: usize) -> ModalResult<Filter, SyntaxError> {
        let filter = match self {
            Self::Is | Self::IsNot => equal(label, value),
            Self::Matches | Self::MatchesNot => matching(label, value, left)?,
        };
        Ok(if matches!(self, Self::IsNot | Self::MatchesNot) { filter.negated() } else { filter })
    }
}

fn equal(label: &Label, value: &str) -> Filter {
    match label {
        _ if value.is_empty() => exists(label).negated(),
        Label::Level if value == "unknown" => Filter::Severity(SeverityRange { min: 0, max: 0 }),
        Label::Level => SeverityRange::from_text(value).map_or(Filter::Or(vec![]), Filter::Severity),
        Label::Fields(fields) => any(fields, |field| Filter::equals(field, value)),
        Label::Absent => Filter::Or(vec![]),
    }
}

/// The whole value matches, as in Prometheus.
fn matching(label: &Label, pattern: &str, left: usize) -> ModalResult<Filter, SyntaxError> {
    match pattern {
        ".*" => return Ok(Filter::All),
        ".+" => return Ok(exists(label)),
        _ => {}
    }
    let whole = format!("^(?:{pattern})$");
    let text = match Text::new(TextKind::Regex, whole.clone(), true) {
        Ok(text) => text,
        Err(error) => return syntax_error(left, error.to_string()),
    };
    let literal = |letter: char| letter.is_alphanumeric() || matches!(letter, '_' | '-' | '/' | ':' | '@' | ' ' | '|');
    let filter = match label {
        Label::Level => {
            let levels = LEVELS.iter().filter(|level| text.matches(level));
            Filter::Or(levels.map(|level| equal(label, level)).collect())
        }
        Label::Fields(fields) if pattern.chars().all(literal) && !pattern.split('|').any(str::is_empty) => {
            let values: Vec<String> = pattern.split('|').map(ToOwned::to_owned).collect();
            any(fields, |field| Filter::Field { field, test: Test::OneOf(values.clone()) })
        }
        Label::Fields(fields) => any(fields, |field| Filter::Field { field, test: Test::Text(text.clone()) }),
        Label::Absent => Filter::Or(vec![]),
    };
    // A missing value is empty, and may match as well.
    let empty = Regex::new(&whole).is_ok_and(|regex| regex.is_match(""));
    Ok(if empty { Filter::Or(vec![filter, exists(label).negated()]) } else { filter })
}

fn exists(label: &Label) -> Filter {
    match label {
        // Every record has a level.
        Label::Level => Filter::All,
        Label::Fields(fields) => any(fields, |field| Filter::Field { field, test: Test::Exists }),
        Label::Absent => Filter::Or(vec![]),
    }
}

fn any(fields: &[Field], test: impl Fn(Field) -> Filter) -> Filter {
    match fields {
        [field] => test(field.clone()),
        _ => Filter::Or(fields.iter().cloned().map(test).collect()),
    }
}

/// `|= "a" or "b"`; `None` at anything else.
fn line_filter(input: &mut Input<'_>) -> ModalResult<Option<Filter>, SyntaxError> {
    let left = input.input.len();
    let signs = alt((
        "|=".value((TextKind::Substring, false)),
        "!=".value((TextKind::Substring, true)),
        "|~".value((TextKind::Regex, false)),
        "!~".value((TextKind::Regex, true)),
    ));
    if input.input.starts_with("|>") || input.input.starts_with("!>") {
        return unsupported(left, "pattern filters");
    }
    let Some((kind, negated)) = opt(signs).parse_next(input)? else { return Ok(None) };
    blank(input)?;
    let mut alternatives = Vec::new();
    loop {
        let left = input.input.len();
        if input.input.starts_with("ip") {
            return unsupported(left, "`ip(…)`");
        }
        let pattern = string(input)?;
        count_test(input)?;
        alternatives.push(match Text::new(kind, pattern.clone(), true) {
            _ if pattern.is_empty() => Filter::All,
            Ok(text) => Filter::message(text),
            Err(error) => return syntax_error(left, error.to_string()),
        });
        if !word(input, "or")? {
            break;
        }
    }
    let filter = if alternatives.len() == 1 { alternatives.remove(0) } else { Filter::Or(alternatives) };
    Ok(Some(if negated { filter.negated() } else { filter }))
}

/// Consumes `expected` if it is a separate word.
fn word(input: &mut Input<'_>, expected: &'static str) -> ModalResult<bool, SyntaxError> {
    let ends = |rest: &str| !rest.starts_with(|next: char| next.is_ascii_alphanumeric() || matches!(next, '_' | '.'));
    if input.input.strip_prefix(expected).is_some_and(ends) { consume(input, expected) } else { Ok(false) }
}

/// A pipeline stage, after the `|`.
fn stage(input: &mut Input<'_>) -> ModalResult<Filter, SyntaxError> {
    let left = input.input.len();
    for stage in ["json", "logfmt"] {
        if word(input, stage)? {
            while consume(input, "--strict")? || consume(input, "--keep-empty")? {}
            if !(input.input.is_empty() || input.input.starts_with(['|', '!', '[', ')'])) {
                return unsupported(input.input.len(), &format!("`{stage}` with parameters"));
            }
            return Ok(Filter::All);
        }
    }
    if word(input, "drop")? || word(input, "keep")? {
        names(input)?;
        return Ok(Filter::All);
    }
    for stage in ["line_format", "label_format", "pattern", "regexp", "unpack", "unwrap", "decolorize"] {
        if word(input, stage)? {
            return unsupported(left, &format!("`{stage}`"));
        }
    }
    label_or(input)
}

fn label_or(input: &mut Input<'_>) -> ModalResult<Filter, SyntaxError> {
    let mut filters = vec![label_and(input)?];
    while word(input, "or")? {
        filters.push(label_and(input)?);
    }
    Ok(if filters.len() == 1 { filters.remove(0) } else { Filter::Or(filters) })
}

fn label_and(input: &mut Input<'_>) -> ModalResult<Filter, SyntaxError> {
    let mut filter = label_test(input)?;
    while word(input, "and")? || consume(input, ",")? {
        filter = filter.and(label_test(input)?);
    }
    Ok(filter)
}

fn label_test(input: &mut Input<'_>) -> ModalResult<Filter, SyntaxError> {
    let left = input.input.len();
    if consume(input, "(")? {
        if input.state.depth == DEPTH_MAX {
            return syntax_error(left, format!("nested too deeply: expected at most {DEPTH_MAX} levels"));
        }
        input.state.depth += 1;
        let filter = label_or(input)?;
        input.state.depth -= 1;
        if !consume(input, ")")? {
            return syntax_error(left, "unclosed (");
        }
        return Ok(filter);
    }
    count_test(input)?;
    let name = name(input)?;
    if name.is_empty() {
        return syntax_error(left, "expected json, logfmt, drop, keep or a label name");
    }
    let label = Label::named(name);
    if let Some(compare) = comparison(input)? {
        let value = number(input)?;
        let Label::Fields(fields) = label else {
            return syntax_error(left, "invalid comparison: expected level = or != with a value such as \"error\"");
        };
        return Ok(compare.filter(&fields, value));
    }
    let matcher = matcher(input)?;
    let at = input.input.len();
    let value = string(input)?;
    matcher.filter(&label, &value, at)
}

#[derive(Clone, Copy)]
enum Compare {
    By(Comparison),
    Equal,
    NotEqual,
}

/// An operator that compares numbers: `=` and `!=` do so only before a number.
fn comparison(input: &mut Input<'_>) -> ModalResult<Option<Compare>, SyntaxError> {
    let sign = alt((
        ">=".value(Compare::By(Comparison::GreaterOrEqual)),
        "<=".value(Compare::By(Comparison::LessOrEqual)),
        ">".value(Compare::By(Comparison::Greater)),
        "<".value(Compare::By(Comparison::Less)),
        "==".value(Compare::Equal),
    ));
    if let Some(sign) = opt(sign).parse_next(input)? {
        blank(input)?;
        return Ok(Some(sign));
    }
    for (sign, meaning) in [("=", Compare::Equal), ("!=", Compare::NotEqual)] {
        let value = input.input.strip_prefix(sign).map(str::trim_start);
        if value.is_some_and(|value| value.starts_with(|first: char| first.is_ascii_digit() || first == '-')) {
            consume(input, sign)?;
            return Ok(Some(meaning));
        }
    }
    Ok(None)
}

impl Compare {
    fn filter(self, fields: &[Field], value: f64) -> Filter {
        let one = |field: Field, comparison| Filter::Field { field, test: Test::Compare(comparison, value) };
        any(fields, |field| match self {
            Self::By(comparison) => one(field, comparison),
            Self::Equal => one(field.clone(), Comparison::GreaterOrEqual).and(one(field, Comparison::LessOrEqual)),
            Self::NotEqual => Filter::Or(vec![one(field.clone(), Comparison::Less), one(field, Comparison::Greater)]),
        })
    }
}

#[cfg(test)]
#[path = "logql_tests.rs"]
mod tests;
