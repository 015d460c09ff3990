//! A line of a configured format.

use logweir_record::record::{Record, Severity};

use super::attributes::Attributes;
use crate::custom_format::{CustomFormat, Group};
use crate::object::Scratch;
use crate::sink::{NAME_BYTES_MAX, Sink};
use crate::time::{self, stamp};

/// Parses the line.
///
/// # Errors
/// It does not match. Nothing was pushed then.
pub fn parse(format: &CustomFormat, line: &str, scratch: &mut Scratch<'_>, sink: &mut Sink<'_>) -> Result<(), String> {
    let found =
        format.pattern.captures(line).ok_or_else(|| format!("does not match formats.{}.pattern", format.name))?;
    let mut attributes = Attributes::new(&mut scratch.attributes);
    let (service, host) = ("", "");
    let mut record =
        Record { ts_us: sink.ts_us(), severity: Severity::UNSPECIFIED, service, host, message: line, attributes: "" };
    for (group, part) in &format.groups {
        let Some(text) = found.get(*group).map(|group| group.as_str()) else { continue };
        match part {
            Group::Time => match event_time(text, sink) {
                Some(ts_us) => record.ts_us = ts_us,
                None => attributes.text("time", text),
            },
            Group::Level => match Severity::from_text(text) {
                Some(severity) => record.severity = severity,
                None => attributes.text("level", text),
            },
            Group::Service if text.len() <= NAME_BYTES_MAX => record.service = text,
            Group::Host if text.len() <= NAME_BYTES_MAX => record.host = text,
            Group::Service => attributes.text("service", text),
            Group::Host => attributes.text("host", text),
            Group::Message => record.message = text,
            Group::Attribute(name) => attributes.number(name, text),
        }
    }
    sink.push(Record { attributes: attributes.finish(), ..record });
    Ok(())
}

/// Parses a time in any form, including those without a year.
fn event_time(text: &str, sink: &Sink<'_>) -> Option<i64> {
    let text = text.trim_ascii();
    let leading = || stamp::leading(text, sink.ts_us()).filter(|(_, rest)| rest.is_empty()).map(|(time, _)| time);
    time::from_text(text).or_else(leading).map(|time| sink.instant(time))
}
