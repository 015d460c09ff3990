//! Filters on records.
//!
//! A test is true or false, never unknown: a missing field passes no test, and `Not` of that test is true.

use std::borrow::Cow;

use logweir_record::record::{Record, Severity};

use crate::attribute;
use crate::text::{Text, number};

/// A filter on records. Construct it directly, or from text with [`parse`](crate::parse).
///
/// It is not `non_exhaustive`, and neither are its parts: a translation of filters, such as to SQL, must be complete, or
/// it selects other records. A new kind of filter is a new major version.
#[derive(Clone, Debug, PartialEq)]
pub enum Filter {
    /// Every record.
    All,
    /// Records that match all filters; every record if there are none.
    And(Vec<Filter>),
    /// Records that match any filter; no record if there are none.
    Or(Vec<Filter>),
    /// Records that do not match the filter.
    Not(Box<Filter>),
    /// Records with a severity in the range.
    Severity(SeverityRange),
    /// Records with a field that passes the test.
    Field {
        /// The tested field.
        field: Field,
        /// The test.
        test: Test,
    },
}

/// Severity numbers from `min` to `max`, inclusive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeverityRange {
    /// Lowest severity number.
    pub min: u8,
    /// Highest severity number.
    pub max: u8,
}

/// A field of a record.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Field {
    /// The program that logged the record.
    Service,
    /// The host that it was logged on.
    Host,
    /// The log message.
    Message,
    /// An attribute: the member with that name or, if the name has dots, the member whose name is the longest possible
    /// prefix before a dot, and within it the rest of the name.
    Attribute(String),
}

/// A test on the value of a field. Its text is the content of a string, the digits of a number, `true` or `false`;
/// objects and arrays exist, but have no text.
#[derive(Clone, Debug, PartialEq)]
pub enum Test {
    /// The field is present: not empty for service, host and message, not null for an attribute.
    Exists,
    /// The text equals one of these.
    OneOf(Vec<String>),
    /// The text matches.
    Text(Text),
    /// The value is a number, or a text that is a number, and the comparison holds.
    Compare(Comparison, f64),
}

/// Comparison of numbers.
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
    /// Whether `record` matches.
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

    /// Matches records whose `field` equals `value`.
    #[must_use]
    pub fn equals(field: Field, value: impl Into<String>) -> Self {
        Self::Field { field, test: Test::OneOf(vec![value.into()]) }
    }

    /// Matches records whose message matches `text`.
    #[must_use]
    pub fn message(text: Text) -> Self {
        Self::Field { field: Field::Message, test: Test::Text(text) }
    }

    /// Matches records that match both filters.
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

    /// Matches records that do not match the filter.
    #[must_use]
    pub fn negated(self) -> Self {
        match self {
            Self::Not(filter) => *filter,
            filter => Self::Not(Box::new(filter)),
        }
    }

    /// Whether the filter tests only severities and services, by which the per-minute counters are broken down.
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
    /// Every severity, including unspecified.
    pub const ALL: Self = Self { min: 0, max: 24 };

    /// The severities that a word or a number stands for: `error` is 17 to 20, `crit` and `18` are 18.
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

    /// Whether `number` is in the range.
    #[must_use]
    pub fn holds(&self, number: u8) -> bool {
        (self.min..=self.max).contains(&number)
    }
}

impl Field {
    /// The field that `name` refers to: a field of the record itself, or an attribute.
    #[must_use]
    pub fn named(name: &str) -> Self {
        match name {
            "service" => Self::Service,
            "host" => Self::Host,
            "message" | "msg" => Self::Message,
            _ => Self::Attribute(name.to_owned()),
        }
    }

    /// The text of the field in `record`; `None` if it has none.
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
            Self::Text(expected) => expected.matches(&text),
            Self::Compare(comparison, than) => number(&text).is_some_and(|value| comparison.holds(value, *than)),
        }
    }
}

impl Comparison {
    /// Whether the comparison holds between `value` and `than`.
    #[must_use]
    pub fn holds(self, value: f64, than: f64) -> bool {
        match self {
            Self::Less => value < than,
            Self::LessOrEqual => value <= than,
            Self::Greater => value > than,
            Self::GreaterOrEqual => value >= than,
        }
    }

    /// The operator.
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
