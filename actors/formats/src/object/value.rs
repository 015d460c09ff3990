//! The values of members that are used as time, severity, service, host or message.

use logweir_record::record::Severity;

use super::field::Field;
use super::member::{Member, Members, read_members};
use crate::level;
use crate::sink::is_name;
use crate::text::{Sanitized, unescape};
use crate::time::{self, EventTime};

/// Returns the first usable value of `field`, in the order of its names. Its member is consumed, unless `read` reports
/// that it holds more than was used.
#[inline] // its callers are in other modules: 3 % of the instructions without link-time optimization
pub fn take<'a, T>(
    members: &mut Members<'a>,
    field: Field,
    mut read: impl FnMut(&Member<'a>) -> Option<(T, Used)>,
) -> Option<T> {
    let mut from = 0;
    loop {
        let (mut at, mut lowest) = (None, u8::MAX);
        for (index, member) in members.of(field) {
            if let Some((_, rank)) = member.role
                && (from..lowest).contains(&rank)
                && !member.consumed
            {
                (at, lowest) = (Some(index), rank);
            }
        }
        let member = &mut members.list[at?];
        if let Some((value, used)) = read(member) {
            member.consumed = used == Used::Fully;
            return Some(value);
        }
        from = lowest + 1;
    }
}

/// Whether a member holds more than the value that was taken from it.
#[derive(PartialEq, Eq)]
pub enum Used {
    Fully,
    Partly,
}

pub fn event_time(member: &Member<'_>) -> Option<(EventTime, Used)> {
    // MongoDB's {"$date": "…"}
    let dated = member.value.strip_prefix("{\"$date\":").and_then(|value| value.strip_suffix('}'));
    let value = dated.unwrap_or(member.value);
    let time = match string(value) {
        Some(text) => time::from_text(text)?,
        None => time::from_number(value)?,
    };
    Some((time, if time.clamped { Used::Partly } else { Used::Fully }))
}

pub fn severity(member: &Member<'_>) -> Option<(Severity, Used)> {
    let text = string(member.value).unwrap_or(member.value);
    let severity = match text.as_bytes() {
        // Most are words, and a failed parse costs more than skipping the attempt.
        [b'+' | b'0'..=b'9', ..] => numeric_severity(&member.name, text.parse().ok()?),
        [_] | [b'D', b'1'..=b'5'] if member.name == "s" => level::of_letter(text.as_bytes()[0]),
        _ => Severity::from_text(text),
    };
    Some((severity?, Used::Fully))
}

/// OpenTelemetry's numbers under its own names, syslog's under journald's; elsewhere those of pino and bunyan, 10
/// (trace) to 60 (fatal). No other scale is safe: `"level": 3` is an error to one program and a trace to another.
fn numeric_severity(name: &str, number: u8) -> Option<Severity> {
    if matches!(name, "severity_number" | "severityNumber") {
        return Severity::from_number(number).filter(|&severity| severity != Severity::UNSPECIFIED);
    }
    if name == "PRIORITY" {
        return level::of_syslog(number);
    }
    let levels = [Severity::TRACE, Severity::DEBUG, Severity::INFO, Severity::WARN, Severity::ERROR, Severity::FATAL];
    (10..=60).contains(&number).then(|| levels[usize::from(number / 10 - 1)])
}

/// Elastic's `"log": {"level": "info"}`.
pub fn ecs_level<'a>(members: &mut Members<'a>, nested: &mut Members<'a>) -> Option<Severity> {
    let log = members
        .list
        .iter_mut()
        .find(|member| !member.consumed && member.name == "log" && member.value.starts_with('{'))?;
    read_members(log.value, nested).ok()?;
    let level = nested.list.iter().rfind(|inner| inner.name == "level")?;
    let (severity, _) = severity(level)?;
    log.consumed = nested.list.len() == 1;
    Some(severity)
}

/// The raw text of a service or host: a string, or Elastic's `{"name": "…"}`. A name too long for an index stays an
/// attribute.
pub fn name<'a>(member: &Member<'a>, nested: &mut Members<'a>) -> Option<(Raw<'a>, Used)> {
    let (name, used) = if member.value.starts_with('{') {
        read_members(member.value, nested).ok()?;
        let name = nested.list.iter().rfind(|inner| inner.name == "name")?;
        (raw(name)?, if nested.list.len() == 1 { Used::Fully } else { Used::Partly })
    } else {
        (raw(member)?, Used::Fully)
    };
    is_name(name.text).then_some((name, used))
}

/// The text between the quotes of a JSON string, and whether it may contain an escape.
#[derive(Clone, Copy)]
pub struct Raw<'a> {
    pub text: &'a str,
    /// It may contain an escape.
    pub escaped: bool,
}

fn raw<'a>(member: &Member<'a>) -> Option<Raw<'a>> {
    Some(Raw { text: string(member.value)?, escaped: member.escaped })
}

/// The message of a record.
pub enum MessageValue<'a> {
    /// A JSON string.
    Text(Raw<'a>),
    /// JSON other than a string.
    Json(&'a str),
}

pub fn text_or_json<'a>(member: &Member<'a>) -> Option<(MessageValue<'a>, Used)> {
    let message_value = match (raw(member), &*member.name, member.value.as_bytes()) {
        (Some(raw), ..) => MessageValue::Text(raw),
        (None, _, b"null") | (None, "log", [b'{', ..]) => return None,
        (None, ..) => MessageValue::Json(member.value),
    };
    Some((message_value, Used::Fully))
}

/// The text between the quotes, if `value` is a string.
pub fn string(value: &str) -> Option<&str> {
    value.strip_prefix('"')?.strip_suffix('"')
}

/// Returns the text of `raw`: borrowed, or unescaped into `buffer`.
pub fn resolve<'s>(raw: Raw<'s>, buffer: &'s mut String, counts: &mut Sanitized) -> &'s str {
    if !raw.escaped || memchr::memchr(b'\\', raw.text.as_bytes()).is_none() {
        return raw.text;
    }
    buffer.clear();
    unescape(raw.text, buffer, counts);
    buffer
}
