//! A format of the configuration: a regular expression whose named groups are the parts of a record.
//!
//! - `ts` or `time`, `level` or `severity`, `service`, `host` and `message` are the record's own; every other group is an
//!   attribute. Without a `message` the line is the message.
//! - The expressions are those of the `regex` crate: no line takes more than time in proportion to its length.
//! - A time or a level that nobody understands is kept as an attribute under its group's name.

use logweir_engine::record::{Record, Severity};
use regex::{Regex, RegexBuilder};

use super::attributes::Attributes;
use super::json::Scratch;
use super::sink::{NAME_BYTES_MAX, Sink};
use super::{stamp, time};

/// A compiled pattern takes at most this much memory.
const PATTERN_BYTES_MAX: usize = 1 << 20;

/// One configured format.
#[derive(Clone, Debug)]
pub struct CustomFormat {
    /// Its name in `?format=`.
    pub name: String,
    pattern: Regex,
    groups: Vec<(usize, Part)>,
}

/// What a group holds.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Time,
    Level,
    Service,
    Host,
    Message,
    Attribute(String),
}

impl PartialEq for CustomFormat {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name && self.pattern.as_str() == other.pattern.as_str()
    }
}

impl CustomFormat {
    /// The format called `name` of lines that match `pattern`.
    ///
    /// # Errors
    /// What is wrong with the pattern, and what is allowed.
    pub fn new(name: &str, pattern: &str) -> Result<Self, String> {
        let compiled =
            RegexBuilder::new(pattern).size_limit(PATTERN_BYTES_MAX).dfa_size_limit(PATTERN_BYTES_MAX).build();
        let compiled =
            compiled.map_err(|error| format!("is no regular expression: {}", one_line(&error.to_string())))?;
        let part = |name: &str| match name {
            "ts" | "time" => Part::Time,
            "level" | "severity" => Part::Level,
            "service" => Part::Service,
            "host" => Part::Host,
            "message" => Part::Message,
            other => Part::Attribute(other.to_owned()),
        };
        let groups: Vec<_> = compiled
            .capture_names()
            .enumerate()
            .filter_map(|(group, name)| name.map(|name| (group, part(name))))
            .collect();
        if groups.is_empty() {
            return Err("has no named group: write (?<message>.*), and ts, level, service, host or other names".into());
        }
        let twice =
            groups.iter().enumerate().find(|(at, (_, part))| groups[..*at].iter().any(|(_, other)| other == part));
        if let Some((_, (_, part))) = twice {
            return Err(format!("has two groups for the {}", format!("{part:?}").to_lowercase()));
        }
        Ok(Self { name: name.to_owned(), pattern: compiled, groups })
    }

    /// The pattern as it was written.
    #[must_use]
    pub fn pattern(&self) -> &str {
        self.pattern.as_str()
    }

    /// Pushes one record, or says why not and pushes nothing.
    pub(super) fn parse(&self, line: &str, scratch: &mut Scratch<'_>, sink: &mut Sink<'_>) -> Result<(), String> {
        let found =
            self.pattern.captures(line).ok_or_else(|| format!("does not match formats.{}.pattern", self.name))?;
        let mut attributes = Attributes::new(&mut scratch.attributes);
        let (service, host) = ("", "");
        let mut record = Record {
            ts_us: sink.ts_us(),
            severity: Severity::UNSPECIFIED,
            service,
            host,
            message: line,
            attributes: "",
        };
        for (group, part) in &self.groups {
            let Some(text) = found.get(*group).map(|group| group.as_str()) else { continue };
            match part {
                Part::Time => match event_time(text, sink) {
                    Some(ts_us) => record.ts_us = ts_us,
                    None => attributes.text("time", text),
                },
                Part::Level => match Severity::from_text(text) {
                    Some(severity) => record.severity = severity,
                    None => attributes.text("level", text),
                },
                Part::Service if text.len() <= NAME_BYTES_MAX => record.service = text,
                Part::Host if text.len() <= NAME_BYTES_MAX => record.host = text,
                Part::Service => attributes.text("service", text),
                Part::Host => attributes.text("host", text),
                Part::Message => record.message = text,
                Part::Attribute(name) => attributes.number(name, text),
            }
        }
        sink.push(Record { attributes: attributes.finish(), ..record });
        Ok(())
    }
}

/// A time in any shape, also one without a year.
fn event_time(text: &str, sink: &Sink<'_>) -> Option<i64> {
    let text = text.trim_ascii();
    let leading = || stamp::leading(text, sink.ts_us()).filter(|(_, rest)| rest.is_empty()).map(|(time, _)| time);
    time::from_text(text).or_else(leading).map(|time| sink.instant(time))
}

/// The last line of regex's drawing of the place, and what is wrong with it.
fn one_line(error: &str) -> String {
    let words: Vec<_> = error.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    words.join(" ")
}
