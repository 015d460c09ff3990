//! Which records are wanted.
//!
//! A test is true or false, never unknown: a field that is not there passes no test, and `Not` of that test is true.

use std::borrow::Cow;

use logweir_engine::record::{Record, Severity};

use super::attribute;
use super::text::{Text, number};

/// Which records are wanted. Build it by hand, or from text with [`parse`](super::parse).
#[derive(Clone, Debug, PartialEq)]
pub enum Filter {
    /// Every record.
    All,
    /// Those that all of them want; every record, if there are none.
    And(Vec<Filter>),
    /// Those that one of them wants; no record, if there are none.
    Or(Vec<Filter>),
    /// Those that it does not want.
    Not(Box<Filter>),
    /// Those with a severity in the range.
    Severity(SeverityRange),
    /// Those with a field that passes the test.
    Field {
        /// What is looked at.
        field: Field,
        /// What it must pass.
        test: Test,
    },
}

/// Severity numbers from `min` to `max`, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeverityRange {
    /// The lowest.
    pub min: u8,
    /// The highest.
    pub max: u8,
}

/// What of a record is looked at.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Field {
    /// The program that wrote it.
    Service,
    /// The machine it came from.
    Host,
    /// What it says.
    Message,
    /// A value among the attributes: the member of that name; else, where the name has dots, the member of the longest
    /// part before one of them, and inside of it what the rest names.
    Attribute(String),
}

/// What a field's value must pass. Its text is a string's content, a number's digits, `true` or `false`; an object or an
/// array exists, but has no text.
#[derive(Clone, Debug, PartialEq)]
pub enum Test {
    /// It is there: not empty for service, host and message, not null for an attribute.
    Exists,
    /// Its text is exactly one of these.
    OneOf(Vec<String>),
    /// Its text is like this.
    Text(Text),
    /// It is a number, or a text that is one, and compares so.
    Compare(Comparison, f64),
}

/// How numbers are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Comparison {
    /// `<`
    Less,
    /// `<=`
    LessOrEqual,
    /// `>`
    Greater,
    /// `>=`
    GreaterOrEqual,
}

impl Filter {
    /// Whether `record` is wanted.
    #[must_use]
    pub fn matches(&self, record: &Record<'_>) -> bool {
        match self {
            Self::All => true,
            Self::And(filters) => filters.iter().all(|filter| filter.matches(record)),
            Self::Or(filters) => filters.iter().any(|filter| filter.matches(record)),
            Self::Not(filter) => !filter.matches(record),
            Self::Severity(range) => range.holds(record.severity.number()),
            Self::Field { field, test } => test.passes(field, record),
        }
    }

    /// Records whose `field` is exactly `value`.
    #[must_use]
    pub fn equals(field: Field, value: impl Into<String>) -> Self {
        Self::Field { field, test: Test::OneOf(vec![value.into()]) }
    }

    /// Records whose message is like `text`.
    #[must_use]
    pub fn message(text: Text) -> Self {
        Self::Field { field: Field::Message, test: Test::Text(text) }
    }

    /// Records that are at least so bad.
    #[must_use]
    pub fn severity_at_least(severity: Severity) -> Self {
        Self::Severity(SeverityRange { min: severity.number(), max: SeverityRange::ALL.max })
    }

    /// Records that both want.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::All, filter) | (filter, Self::All) => filter,
            (Self::And(mut filters), Self::And(others)) => {
                filters.extend(others);
                Self::And(filters)
            }
            (Self::And(mut filters), other) => {
                filters.push(other);
                Self::And(filters)
            }
            (filter, other) => Self::And(vec![filter, other]),
        }
    }

    /// Records that it does not want.
    #[must_use]
    pub fn negated(self) -> Self {
        match self {
            Self::Not(filter) => *filter,
            filter => Self::Not(Box::new(filter)),
        }
    }

    /// Whether it looks at nothing but severities and services, which the minute counters tell apart.
    #[must_use]
    pub fn is_counted(&self) -> bool {
        match self {
            Self::All | Self::Severity(_) => true,
            Self::And(filters) | Self::Or(filters) => filters.iter().all(Self::is_counted),
            Self::Not(filter) => filter.is_counted(),
            Self::Field { field, .. } => *field == Field::Service,
        }
    }
}

impl SeverityRange {
    /// Every severity, also none.
    pub const ALL: Self = Self { min: 0, max: 24 };

    /// The severities that a word or a number means: `error` is 17 to 20, `crit` and `18` are 18.
    #[must_use]
    pub fn from_text(text: &str) -> Option<Self> {
        if let Ok(number) = text.parse::<u8>() {
            return Severity::from_number(number).map(|_| Self { min: number, max: number });
        }
        if text.eq_ignore_ascii_case(Severity::UNSPECIFIED.name()) {
            return Some(Self { min: 0, max: 0 });
        }
        let min = Severity::from_text(text)?.number();
        Some(Self { min, max: if min % 4 == 1 { min + 3 } else { min } })
    }

    /// Whether `number` is among them.
    #[must_use]
    pub fn holds(&self, number: u8) -> bool {
        (self.min..=self.max).contains(&number)
    }
}

impl Field {
    /// The field that `name` means: one of the record's own, or an attribute.
    #[must_use]
    pub fn named(name: &str) -> Self {
        match name {
            "service" => Self::Service,
            "host" => Self::Host,
            "message" | "msg" => Self::Message,
            _ => Self::Attribute(name.to_owned()),
        }
    }

    /// Its text in `record`; `None` where it has none.
    #[must_use]
    pub fn text<'r>(&self, record: &Record<'r>) -> Option<Cow<'r, str>> {
        match self {
            Self::Service => Some(record.service.into()),
            Self::Host => Some(record.host.into()),
            Self::Message => Some(record.message.into()),
            Self::Attribute(name) => attribute::text(attribute::find(record.attributes, name)?),
        }
    }

    fn exists(&self, record: &Record<'_>) -> bool {
        match self {
            Self::Attribute(name) => attribute::find(record.attributes, name).is_some_and(|value| value != "null"),
            own => own.text(record).is_some_and(|text| !text.is_empty()),
        }
    }
}

impl Test {
    fn passes(&self, field: &Field, record: &Record<'_>) -> bool {
        if *self == Self::Exists {
            return field.exists(record);
        }
        let Some(text) = field.text(record) else { return false };
        match self {
            Self::Exists => true,
            Self::OneOf(values) => values.iter().any(|value| *value == text),
            Self::Text(wanted) => wanted.matches(&text),
            Self::Compare(comparison, than) => number(&text).is_some_and(|value| comparison.holds(value, *than)),
        }
    }
}

impl Comparison {
    /// Whether `value` compares so with `than`.
    #[must_use]
    pub fn holds(self, value: f64, than: f64) -> bool {
        match self {
            Self::Less => value < than,
            Self::LessOrEqual => value <= than,
            Self::Greater => value > than,
            Self::GreaterOrEqual => value >= than,
        }
    }

    /// As it is written.
    #[must_use]
    pub fn sign(self) -> &'static str {
        match self {
            Self::Less => "<",
            Self::LessOrEqual => "<=",
            Self::Greater => ">",
            Self::GreaterOrEqual => ">=",
        }
    }
}
