//! A configured format: a regular expression whose named groups are the parts of a record.
//!
//! - `ts` or `time`, `level` or `severity`, `service`, `host` and `message` are the record's fields; every other group
//!   is an attribute. Without a `message` group the line is the message.
//! - The expressions are those of the `regex` crate: matching takes linear time in the length of the line.
//! - A time or level that cannot be parsed is kept as an attribute under the name of its group.

use regex::{Regex, RegexBuilder};

/// Maximum size of a compiled pattern, in bytes.
const PATTERN_BYTES_MAX: usize = 1 << 20;

/// A configured format; see [`CustomFormat::new`].
#[derive(Clone, Debug)]
pub struct CustomFormat {
    /// Name in `?format=`.
    pub name: String,
    pub(crate) pattern: Regex,
    pub(crate) groups: Vec<(usize, Group)>,
}

/// Meaning of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Group {
    Time,
    Level,
    Service,
    Host,
    Message,
    Attribute(String),
}

/// Why a pattern cannot be a format, and what is accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct PatternError(String);

impl PartialEq for CustomFormat {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name && self.pattern.as_str() == other.pattern.as_str()
    }
}

impl CustomFormat {
    /// The format called `name` for lines that match `pattern`, an expression of the crate `regex` with named groups: `ts`
    /// or `time`, `level` or `severity`, `service`, `host`, `message`, and others, which become attributes.
    ///
    /// # Errors
    /// The pattern is invalid or too large, has no named group, or has two for one field.
    pub fn new(name: &str, pattern: &str) -> Result<Self, PatternError> {
        let compiled =
            RegexBuilder::new(pattern).size_limit(PATTERN_BYTES_MAX).dfa_size_limit(PATTERN_BYTES_MAX).build();
        let compiled = compiled
            .map_err(|error| PatternError(format!("invalid regular expression: {}", one_line(&error.to_string()))))?;
        let part = |name: &str| match name {
            "ts" | "time" => Group::Time,
            "level" | "severity" => Group::Level,
            "service" => Group::Service,
            "host" => Group::Host,
            "message" => Group::Message,
            other => Group::Attribute(other.to_owned()),
        };
        let groups: Vec<_> = compiled
            .capture_names()
            .enumerate()
            .filter_map(|(group, name)| name.map(|name| (group, part(name))))
            .collect();
        if groups.is_empty() {
            let error = "no named group: expected (?<message>.*), and ts, level, service, host or other names";
            return Err(PatternError(error.to_owned()));
        }
        let twice =
            groups.iter().enumerate().find(|(at, (_, part))| groups[..*at].iter().any(|(_, other)| other == part));
        if let Some((_, (_, part))) = twice {
            let part = format!("{part:?}").to_lowercase();
            return Err(PatternError(format!("two groups for the {part}: expected one")));
        }
        Ok(Self { name: name.to_owned(), pattern: compiled, groups })
    }

    /// The pattern as configured.
    #[must_use]
    pub fn pattern(&self) -> &str {
        self.pattern.as_str()
    }
}

/// The error of the crate `regex`, which marks the position on a line below the pattern, as a single line.
fn one_line(error: &str) -> String {
    let words: Vec<_> = error.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    words.join(" ")
}
