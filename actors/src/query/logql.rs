//! The part of LogQL that Grafana's Loki data source speaks with us, read into a [`Filter`] and what is to be counted.
//!
//! ```text
//! {service_name="cart", level=~"error|warn"}       labels: = != =~ !~; an expression is about the whole value
//!   |= "timeout" != "retry" |~ "time[ds]? ?out"    the line has, has not, matches, does not match; |= "a" or "b"
//!   | json | logfmt | drop a | keep b              nothing: attributes were read when the record was stored
//!   | status >= 500 and path != "/health"          attributes: = != =~ !~, numbers also == > >= < <=; and, or, ","
//! count_over_time({…} [5m])   rate({…} [5m])       by service;  sum(…), sum by (level) (…), sum by (service_name) (…)
//! vector(1)+vector(1)                              what a health check asks
//! ```
//! - Labels are `service_name` (or `service`), `host` and `level` (or `detected_level`, `severity`: fatal, error, warn, info,
//!   debug, trace, unknown); every other name is an attribute's. Prometheus knows no dots in names: `k8s_pod_name` is also
//!   `k8s.pod.name`. What is not there is empty, so `!="x"` and `=""` find it.
//! - The line is the record's message.
//! - Whatever else LogQL has is refused by its name: a query that means something else than it says is worse than none.

use regex::Regex;
use winnow::ModalResult;
use winnow::Parser;
use winnow::combinator::{alt, eof, opt, peek};
use winnow::token::{one_of, take_while};

use super::filter::{Comparison, Field, Filter, SeverityRange, Test};
use super::language::{BadQuery, DEPTH_MAX, Input, TESTS_MAX, Wrong, quoted, read, wrong};
use super::text::{Text, TextKind};

/// The words of the label `level`, from the worst.
pub const LEVELS: [&str; 7] = ["fatal", "error", "warn", "info", "debug", "trace", "unknown"];

/// Underscores that are tried as dots, each by itself: every one doubles the tests.
const DOTS_TRIED: usize = 3;

/// What a query asks for.
#[derive(Clone, Debug, PartialEq)]
pub enum Expression {
    /// Records.
    Log(Filter),
    /// Counts of records.
    Metric(Metric),
    /// A number, the same at every time.
    Constant(f64),
}

/// Counts of records over windows of time.
#[derive(Clone, Debug, PartialEq)]
pub struct Metric {
    /// Of which records.
    pub filter: Filter,
    /// How long each window is, in milliseconds.
    pub window_ms: i64,
    /// Whether the count is per second.
    pub per_second: bool,
    /// What there is a series of.
    pub group: Group,
}

/// What there is a series of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Group {
    /// Everything together.
    Nothing,
    /// Each level, under these names of labels.
    Level(Vec<String>),
    /// Each service, under these.
    Service(Vec<String>),
}

/// Reads a query.
///
/// # Errors
/// Says what is wrong or left out of the subset, and at which column.
pub fn parse(query: &str) -> Result<Expression, BadQuery> {
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

/// Reads a selector of streams, as `match[]` has it.
///
/// # Errors
/// As [`parse`].
pub fn parse_selector(query: &str) -> Result<Filter, BadQuery> {
    match parse(query)? {
        Expression::Log(filter) => Ok(filter),
        _ => Err(BadQuery { column: 1, detail: "this must be a selector such as {service_name=\"cart\"}".to_owned() }),
    }
}

/// The field, or what else, that a label's name means.
#[derive(Clone, Debug, PartialEq)]
pub enum Label {
    /// The severity's word.
    Level,
    /// Service, host, or attributes of any of these names.
    Fields(Vec<Field>),
    /// Loki's own, such as `__error__`: never there.
    Never,
}

impl Label {
    /// What `name` means.
    #[must_use]
    pub fn named(name: &str) -> Self {
        match name {
            "level" | "detected_level" | "severity" => Self::Level,
            "service_name" | "service" => Self::Fields(vec![Field::Service]),
            "host" => Self::Fields(vec![Field::Host]),
            _ if name.starts_with("__") => Self::Never,
            _ => Self::Fields(with_dots(name).into_iter().map(Field::Attribute).collect()),
        }
    }
}

/// An attribute's name as a label has it.
#[must_use]
pub fn label_name(attribute: &str) -> String {
    let usual = |letter: char| if letter.is_ascii_alphanumeric() { letter } else { '_' };
    let name: String = attribute.chars().map(usual).collect();
    if name.starts_with(|first: char| first.is_ascii_digit()) { format!("_{name}") } else { name }
}

/// The names that may have become this one by [`label_name`], as far as dots go.
fn with_dots(name: &str) -> Vec<String> {
    let places: Vec<usize> = name.match_indices('_').map(|(at, _)| at).collect();
    if places.len() > DOTS_TRIED {
        return vec![name.to_owned(), name.replace('_', ".")];
    }
    let chosen = |choice: usize| {
        let mut name = name.to_owned();
        for (bit, at) in places.iter().enumerate().filter(|(bit, _)| choice >> bit & 1 == 1) {
            debug_assert!(bit < DOTS_TRIED);
            name.replace_range(at..&(at + 1), ".");
        }
        name
    };
    (0..1_usize << places.len()).map(chosen).collect()
}

/// Blanks and comments.
fn blank(input: &mut Input<'_>) -> ModalResult<(), Wrong> {
    loop {
        take_while(0.., char::is_whitespace).parse_next(input)?;
        if opt('#').parse_next(input)?.is_none() {
            return Ok(());
        }
        take_while(0.., |letter| letter != '\n').parse_next(input)?;
    }
}

/// `sign`, and the blanks behind it; whether it was there.
fn taken(input: &mut Input<'_>, sign: &'static str) -> ModalResult<bool, Wrong> {
    let there = opt(sign).parse_next(input)?.is_some();
    if there {
        blank(input)?;
    }
    Ok(there)
}

fn expected(input: &mut Input<'_>, sign: &'static str) -> ModalResult<(), Wrong> {
    if taken(input, sign)? { Ok(()) } else { wrong(input.input.len(), format!("here must be `{sign}`")) }
}

fn left_out<T>(left: usize, what: &str) -> ModalResult<T, Wrong> {
    wrong(left, format!("{what} is not in the subset of LogQL that is understood here: see the README, \"Grafana\""))
}

/// A name, and the blanks behind it; empty where there is none.
fn name<'q>(input: &mut Input<'q>) -> ModalResult<&'q str, Wrong> {
    let first = one_of(|letter: char| letter.is_ascii_alphabetic() || letter == '_');
    // Dots are ours: an attribute's name may be written as it is.
    let rest = take_while(0.., |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '_' | '.'));
    let name = opt((first, rest).take()).parse_next(input)?.unwrap_or_default();
    blank(input)?;
    Ok(name)
}

fn names(input: &mut Input<'_>) -> ModalResult<Vec<String>, Wrong> {
    let mut names = Vec::new();
    loop {
        let left = input.input.len();
        let name = name(input)?;
        if name.is_empty() {
            return wrong(left, "here must be a label's name");
        }
        names.push(name.to_owned());
        if !taken(input, ",")? {
            return Ok(names);
        }
    }
}

fn string(input: &mut Input<'_>) -> ModalResult<String, Wrong> {
    if !input.input.starts_with(['"', '`']) {
        return wrong(input.input.len(), "here must be a text in quotes");
    }
    let text = quoted(input)?.text;
    blank(input)?;
    Ok(text)
}

fn counted(input: &mut Input<'_>) -> ModalResult<(), Wrong> {
    input.state.tests += 1;
    if input.state.tests > TESTS_MAX {
        return wrong(input.input.len(), format!("a query has at most {TESTS_MAX} tests"));
    }
    Ok(())
}

// ---- counting

fn sum(input: &mut Input<'_>) -> ModalResult<Expression, Wrong> {
    let left = input.input.len();
    match name(input)? {
        "sum" => {
            let before = grouping(input)?;
            expected(input, "(")?;
            let inner_left = input.input.len();
            let inner = name(input)?;
            let mut metric = over_time(input, inner, inner_left)?;
            expected(input, ")")?;
            metric.group = match before {
                Some(group) => group,
                None => grouping(input)?.unwrap_or(Group::Nothing),
            };
            Ok(Expression::Metric(metric))
        }
        "vector" => {
            let mut value = vector(input)?;
            while taken(input, "+")? {
                let left = input.input.len();
                if name(input)? != "vector" {
                    return left_out(left, "arithmetic");
                }
                value += vector(input)?;
            }
            Ok(Expression::Constant(value))
        }
        "" => wrong(
            left,
            "a query begins with a selector such as {service_name=\"cart\"}, or with sum, rate or count_over_time",
        ),
        function => over_time(input, function, left).map(Expression::Metric),
    }
}

fn vector(input: &mut Input<'_>) -> ModalResult<f64, Wrong> {
    expected(input, "(")?;
    let value = number(input)?;
    expected(input, ")")?;
    Ok(value)
}

/// `by (a, b)`
fn grouping(input: &mut Input<'_>) -> ModalResult<Option<Group>, Wrong> {
    let left = input.input.len();
    match peek(opt(alt(("by", "without")))).parse_next(input)? {
        None => return Ok(None),
        Some("without") => return left_out(left, "`without`"),
        Some(_) => _ = name(input)?,
    }
    expected(input, "(")?;
    if taken(input, ")")? {
        return Ok(Some(Group::Nothing));
    }
    let names = names(input)?;
    expected(input, ")")?;
    let all = |label: &Label| names.iter().all(|name| Label::named(name) == *label);
    if all(&Label::Level) {
        Ok(Some(Group::Level(names)))
    } else if all(&Label::Fields(vec![Field::Service])) {
        Ok(Some(Group::Service(names)))
    } else {
        left_out(left, "a sum by anything but level (detected_level, severity) or service_name (service)")
    }
}

/// `count_over_time({…} [5m])`, from its parenthesis on.
fn over_time(input: &mut Input<'_>, function: &str, left: usize) -> ModalResult<Metric, Wrong> {
    let per_second = match function {
        "count_over_time" => false,
        "rate" => true,
        other => return left_out(left, &format!("`{other}`")),
    };
    expected(input, "(")?;
    let filter = log(input)?;
    expected(input, "[")?;
    let window_ms = duration_ms(input)?;
    expected(input, "]")?;
    if input.input.starts_with("offset") {
        return left_out(input.input.len(), "`offset`");
    }
    expected(input, ")")?;
    Ok(Metric { filter, window_ms, per_second, group: Group::Service(vec!["service_name".to_owned()]) })
}

/// `5m`, `1h30m`, `500ms`
fn duration_ms(input: &mut Input<'_>) -> ModalResult<i64, Wrong> {
    let left = input.input.len();
    let text: &str = take_while(0.., |letter: char| letter.is_alphanumeric() || letter == '.').parse_next(input)?;
    blank(input)?;
    match window_ms(text) {
        Some(window_ms) => Ok(window_ms),
        None => wrong(left, "here must be a time such as 5m or 1h30m, of at least 1ms"),
    }
}

/// A time such as `5m`, `1h30m` or `500ms`, in whole milliseconds and at least one.
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
    // Ten thousand years: far below what the number can hold.
    #[allow(clippy::cast_possible_truncation)]
    (1.0..3e14).contains(&sum_ms).then_some(sum_ms as i64)
}

fn number(input: &mut Input<'_>) -> ModalResult<f64, Wrong> {
    let left = input.input.len();
    let sign = opt('-').parse_next(input)?.is_some();
    let word: &str = take_while(0.., |letter: char| letter.is_alphanumeric() || letter == '.').parse_next(input)?;
    blank(input)?;
    match word.parse::<f64>() {
        Ok(value) if word.starts_with(|first: char| first.is_ascii_digit()) => Ok(if sign { -value } else { value }),
        _ if word.starts_with(|first: char| first.is_ascii_digit()) => left_out(left, "a time or size to compare with"),
        _ => wrong(left, "here must be a number"),
    }
}

// ---- which records

/// A selector and what follows it.
fn log(input: &mut Input<'_>) -> ModalResult<Filter, Wrong> {
    let mut filter = selector(input)?;
    loop {
        let next = if let Some(line) = line_filter(input)? {
            line
        } else if taken(input, "|")? {
            stage(input)?
        } else {
            return Ok(filter);
        };
        filter = filter.and(next);
    }
}

fn selector(input: &mut Input<'_>) -> ModalResult<Filter, Wrong> {
    let opened = input.input.len();
    expected(input, "{")?;
    let mut filter = Filter::All;
    while !taken(input, "}")? {
        if input.input.is_empty() {
            return wrong(opened, "this { is never closed");
        }
        let left = input.input.len();
        let name = name(input)?;
        if name.is_empty() {
            return wrong(left, "here must be a label's name");
        }
        let matcher = matcher(input)?;
        let at = input.input.len();
        let value = string(input)?;
        filter = filter.and(matcher.filter(&Label::named(name), &value, at)?);
        counted(input)?;
        if !taken(input, ",")? && !input.input.starts_with('}') {
            return wrong(input.input.len(), "here must be `,` or `}`");
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

fn matcher(input: &mut Input<'_>) -> ModalResult<Matcher, Wrong> {
    let one = alt((
        "=~".value(Matcher::Matches),
        "!~".value(Matcher::MatchesNot),
        "!=".value(Matcher::IsNot),
        "=".value(Matcher::Is),
    ));
    let Some(matcher) = opt(one).parse_next(input)? else {
        return wrong(input.input.len(), "here must be one of = != =~ !~");
    };
    blank(input)?;
    Ok(matcher)
}

impl Matcher {
    /// The records whose `label` is so; `left` is where `value` stands.
    fn filter(self, label: &Label, value: &str, left: usize) -> ModalResult<Filter, Wrong> {
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
        Label::Never => Filter::Or(vec![]),
    }
}

/// The whole value matches, as Prometheus has it.
fn matching(label: &Label, pattern: &str, left: usize) -> ModalResult<Filter, Wrong> {
    match pattern {
        ".*" => return Ok(Filter::All),
        ".+" => return Ok(exists(label)),
        _ => {}
    }
    let whole = format!("^(?:{pattern})$");
    let text = match Text::new(TextKind::Regex, whole.clone(), true) {
        Ok(text) => text,
        Err(error) => return wrong(left, error.to_string()),
    };
    let plain = |letter: char| letter.is_alphanumeric() || matches!(letter, '_' | '-' | '/' | ':' | '@' | ' ' | '|');
    let filter = match label {
        Label::Level => {
            let levels = LEVELS.iter().filter(|level| text.matches(level));
            Filter::Or(levels.map(|level| equal(label, level)).collect())
        }
        Label::Fields(fields) if pattern.chars().all(plain) && !pattern.split('|').any(str::is_empty) => {
            let values: Vec<String> = pattern.split('|').map(ToOwned::to_owned).collect();
            any(fields, |field| Filter::Field { field, test: Test::OneOf(values.clone()) })
        }
        Label::Fields(fields) => any(fields, |field| Filter::Field { field, test: Test::Text(text.clone()) }),
        Label::Never => Filter::Or(vec![]),
    };
    // What is not there is empty, and may match, too.
    let empty = Regex::new(&whole).is_ok_and(|regex| regex.is_match(""));
    Ok(if empty { Filter::Or(vec![filter, exists(label).negated()]) } else { filter })
}

fn exists(label: &Label) -> Filter {
    match label {
        // There is always a word for it.
        Label::Level => Filter::All,
        Label::Fields(fields) => any(fields, |field| Filter::Field { field, test: Test::Exists }),
        Label::Never => Filter::Or(vec![]),
    }
}

fn any(fields: &[Field], test: impl Fn(Field) -> Filter) -> Filter {
    match fields {
        [field] => test(field.clone()),
        _ => Filter::Or(fields.iter().cloned().map(test).collect()),
    }
}

/// `|= "a" or "b"`; none where something else stands.
fn line_filter(input: &mut Input<'_>) -> ModalResult<Option<Filter>, Wrong> {
    let left = input.input.len();
    let signs = alt((
        "|=".value((TextKind::Substring, false)),
        "!=".value((TextKind::Substring, true)),
        "|~".value((TextKind::Regex, false)),
        "!~".value((TextKind::Regex, true)),
    ));
    if input.input.starts_with("|>") || input.input.starts_with("!>") {
        return left_out(left, "a filter by pattern");
    }
    let Some((kind, negated)) = opt(signs).parse_next(input)? else { return Ok(None) };
    blank(input)?;
    let mut alternatives = Vec::new();
    loop {
        let left = input.input.len();
        if input.input.starts_with("ip") {
            return left_out(left, "`ip(…)`");
        }
        let pattern = string(input)?;
        counted(input)?;
        alternatives.push(match Text::new(kind, pattern.clone(), true) {
            _ if pattern.is_empty() => Filter::All,
            Ok(text) => Filter::message(text),
            Err(error) => return wrong(left, error.to_string()),
        });
        if !word(input, "or")? {
            break;
        }
    }
    let filter = if alternatives.len() == 1 { alternatives.remove(0) } else { Filter::Or(alternatives) };
    Ok(Some(if negated { filter.negated() } else { filter }))
}

/// `wanted` as a word of its own; nothing is taken where it is not.
fn word(input: &mut Input<'_>, wanted: &'static str) -> ModalResult<bool, Wrong> {
    let ends = |rest: &str| !rest.starts_with(|next: char| next.is_ascii_alphanumeric() || matches!(next, '_' | '.'));
    if input.input.strip_prefix(wanted).is_some_and(ends) { taken(input, wanted) } else { Ok(false) }
}

/// What stands behind a `|`.
fn stage(input: &mut Input<'_>) -> ModalResult<Filter, Wrong> {
    let left = input.input.len();
    for stage in ["json", "logfmt"] {
        if word(input, stage)? {
            while taken(input, "--strict")? || taken(input, "--keep-empty")? {}
            if !(input.input.is_empty() || input.input.starts_with(['|', '!', '[', ')'])) {
                return left_out(input.input.len(), &format!("`{stage}` with parameters"));
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
            return left_out(left, &format!("`{stage}`"));
        }
    }
    label_or(input)
}

fn label_or(input: &mut Input<'_>) -> ModalResult<Filter, Wrong> {
    let mut filters = vec![label_and(input)?];
    while word(input, "or")? {
        filters.push(label_and(input)?);
    }
    Ok(if filters.len() == 1 { filters.remove(0) } else { Filter::Or(filters) })
}

fn label_and(input: &mut Input<'_>) -> ModalResult<Filter, Wrong> {
    let mut filter = label_test(input)?;
    while word(input, "and")? || taken(input, ",")? {
        filter = filter.and(label_test(input)?);
    }
    Ok(filter)
}

fn label_test(input: &mut Input<'_>) -> ModalResult<Filter, Wrong> {
    let left = input.input.len();
    if taken(input, "(")? {
        if input.state.depth == DEPTH_MAX {
            return wrong(left, format!("more than {DEPTH_MAX} levels inside of each other"));
        }
        input.state.depth += 1;
        let filter = label_or(input)?;
        input.state.depth -= 1;
        if !taken(input, ")")? {
            return wrong(left, "this ( is never closed");
        }
        return Ok(filter);
    }
    counted(input)?;
    let name = name(input)?;
    if name.is_empty() {
        return wrong(left, "here must be json, logfmt, drop, keep or a label's name");
    }
    let label = Label::named(name);
    if let Some(compare) = comparison(input)? {
        let value = number(input)?;
        let Label::Fields(fields) = label else {
            return wrong(left, "a level is compared with = and !=, by its word");
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

/// A sign that compares numbers: `=` and `!=` do so only before one.
fn comparison(input: &mut Input<'_>) -> ModalResult<Option<Compare>, Wrong> {
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
            taken(input, sign)?;
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
