//! Parses one JSON object into one record.
//!
//! - The usual case is read by `json::members` in one pass; the rest by serde_json, which has precise error messages.
//! - Nothing is owned: names are borrowed, values stay raw JSON text, and the attributes are written, in source order,
//!   as one JSON text into a buffer that lives as long as the body.
//! - A member that was *used* as time, severity, service, host or message is not an attribute; every other one is,
//!   unchanged, whatever its name. So an unknown level, an invalid time and the second of two messages are kept.
//! - Among the names of a field, the first in the list with a usable value wins, regardless of its position.
//! - An object `attributes` or `fields` is merged flat. `fields.message` becomes the
//!   message only if the record has no other.
//! - Members of other nested objects get dotted names: `{"a":{"b":1}}` is the attribute `a.b`. Arrays stay JSON, and so
//!   does anything nested too deep or with a name too long (see `nested`).
//! - Of duplicate names the last one wins, as in `jsonb`; the others are counted as `duplicate_key`.
//! - Nesting is limited, so that readers of the attributes cannot overflow their stack.

use std::borrow::Cow;

use logweir_record::record::Record;

use super::field::Field;
use super::member::{Member, drop_duplicates, read_members};
use super::nested::{flatten, map_fields, merge};
use super::scratch::Scratch;
use super::value::{MessageValue, Raw, ecs_level, event_time, name, resolve, severity, string, take, text_or_json};
use crate::json::check::{DEPTH_MAX, too_deep};
use crate::json::write::push_json_string;
use crate::sink::Sink;
use crate::text::sanitize_escapes;

/// Whether a line begins like an object.
pub fn looks_like(line: &str) -> bool {
    line.trim_ascii_start().starts_with('{')
}

/// Parses an element of a document: an object, or a string that is a message.
///
/// # Errors
/// As [`parse`].
pub fn parse_value<'a>(value: &'a str, scratch: &mut Scratch<'a>, sink: &mut Sink<'_>) -> Result<(), String> {
    match string(value) {
        Some(text) => {
            let raw = Raw { text, escaped: true };
            let message = resolve(raw, &mut scratch.message, &mut sink.sanitized);
            sink.push_plain(message);
            Ok(())
        }
        None => parse(value, scratch, sink),
    }
}

/// Parses `text`, one object, into one record.
///
/// # Errors
/// What is wrong with it, and in which column. Nothing was pushed then.
pub fn parse<'a>(text: &'a str, scratch: &mut Scratch<'a>, sink: &mut Sink<'_>) -> Result<(), String> {
    let Scratch { members, nested, attributes, message, service, host } = scratch;
    read_members(text, members)?;
    if members.has_nested && members.list.iter().any(|member| too_deep(member.value)) {
        return Err(format!("nested deeper than {DEPTH_MAX}"));
    }
    drop_duplicates(members, &mut sink.sanitized);
    let mut more = merge(members, nested)?;
    if let Some(fields) = sink.fields {
        more |= map_fields(members, nested, fields);
    }

    let ts = take(members, Field::Time, event_time);
    let ts_us = ts.map_or_else(|| sink.ts_us(), |time| sink.instant(time));
    let counts = &mut sink.sanitized;
    counts.timestamp += u64::from(ts.is_some_and(|time| time.clamped));
    let severity = take(members, Field::Level, severity).or_else(|| ecs_level(members, nested));
    let own_service = take(members, Field::Service, |member| name(member, nested));
    let own_host = take(members, Field::Host, |member| name(member, nested));
    let message_value = take(members, Field::Message, text_or_json);
    more |= members.has_nested && flatten(members, nested, |_| true);
    if more {
        drop_duplicates(members, counts);
    }
    write_attributes(&members.list, text.len(), attributes);
    if sink.bad_escapes {
        sanitize_escapes(attributes, counts);
    }
    let record = Record {
        ts_us,
        severity: severity.unwrap_or_default(),
        service: own_service.map_or("", |raw| resolve(raw, service, counts)),
        host: own_host.map_or("", |raw| resolve(raw, host, counts)),
        message: match message_value {
            Some(MessageValue::Text(raw)) => resolve(raw, message, counts),
            Some(MessageValue::Json(json)) => json,
            None => text,
        },
        attributes,
    };
    sink.push(record);
    Ok(())
}

/// Writes the unused members as one JSON object, or nothing if all members are used.
fn write_attributes(members: &[Member<'_>], text_bytes: usize, attributes: &mut String) {
    attributes.clear();
    attributes.reserve(text_bytes);
    for member in members.iter().filter(|member| !member.consumed) {
        attributes.push(if attributes.is_empty() { '{' } else { ',' });
        match &member.name {
            Cow::Borrowed(name) => {
                attributes.push('"');
                attributes.push_str(name);
                attributes.push('"');
            }
            Cow::Owned(name) => push_json_string(attributes, name),
        }
        attributes.push(':');
        attributes.push_str(member.value);
    }
    if !attributes.is_empty() {
        attributes.push('}');
    }
}
