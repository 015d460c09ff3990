//! Parses one JSON object into one record.
//!
//! - The usual case is read by [`members`] in one pass; the rest by serde_json, which has precise error messages.
//! - Nothing is owned: names are borrowed, values stay raw JSON text, and the attributes are written, in source order,
//!   as one JSON text into a buffer that lives as long as the body.
//! - A member that was *used* as time, severity, service, host or message is not an attribute; every other one is,
//!   unchanged, whatever its name. So an unknown level, an invalid time and the second of two messages are kept.
//! - Among the names of a field, the first in the list with a usable value wins, regardless of its position.
//! - An object `attributes` or `fields` is merged flat. A `fields.message` is used as the message if there is no other.
//! - Members of other nested objects get dotted names: `{"a":{"b":1}}` is the attribute `a.b`. Arrays stay JSON, and so
//!   does anything nested deeper than [`FLAT_DEPTH_MAX`] or with a name above [`FLAT_NAME_BYTES_MAX`].
//! - Of duplicate names the last one wins, as in `jsonb`; the others are counted as `duplicate_key`.
//! - Nesting is limited, so that readers of the attributes cannot overflow their stack.

use std::borrow::Cow;
use std::fmt;

use logweir_record::record::{Record, Severity};
use serde::de::{DeserializeSeed, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::level;
use super::members::{RawMember, members};
use super::sink::{NAME_BYTES_MAX, Sink};
use super::text::{Sanitized, push_json_string, sanitize_escapes, unescape};
use super::time;
use crate::FieldMap;

/// Deeper values are rejected; the same limit as serde_json's.
const DEPTH_MAX: usize = 127;

/// Objects nested deeper than this are not flattened: each level needs another pass.
const FLAT_DEPTH_MAX: usize = 6;

/// Objects with longer names are not flattened: the name is repeated for each member.
pub const FLAT_NAME_BYTES_MAX: usize = 96;

/// A longer number exceeds the precision of `numeric`.
const NUMBER_BYTES_MAX: usize = 1000;

/// Above this number of members, duplicates are found by sorting: 40,000 names in one line must not take seconds.
const LINEAR_MAX: usize = 32;

/// Buffers shared by the objects of one body.
#[derive(Default)]
pub struct Scratch<'a> {
    members: Members<'a>,
    nested: Members<'a>,
    /// Attributes of the current record.
    pub attributes: String,
    /// Message with escapes, unescaped.
    pub message: String,
    service: String,
    host: String,
}

impl Scratch<'_> {
    /// Returns the same buffers for texts of another lifetime.
    pub fn recycle<'b>(self) -> Scratch<'b> {
        let Self { members, nested, attributes, message, service, host } = self;
        Scratch { members: members.recycle(), nested: nested.recycle(), attributes, message, service, host }
    }
}

/// A member of an object.
struct Member<'a> {
    /// Borrowed if it contains no escape, so that it can be written back unchanged.
    name: Cow<'a, str>,
    /// Raw JSON.
    value: &'a str,
    /// The value may contain an escape.
    escaped: bool,
    /// See [`slot`].
    slot: u8,
    /// The field that it may be used for, and its rank among the names of that field.
    role: Option<(Field, u8)>,
    /// Used, superseded by a later duplicate, or merged: not written.
    consumed: bool,
}

/// The fields that a member's name may denote.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Field {
    Time,
    Level,
    Message,
    Service,
    Host,
    /// An object of further attributes.
    Attributes,
}

/// The members of one object.
#[derive(Default)]
struct Members<'a> {
    list: Vec<Member<'a>>,
    /// For each field, a bit for each member that may be used for it, as far as the bits go.
    of_field: [u64; 6],
    /// A bit for each name that denotes a field, one for the hash of each other name, and whether two names shared a
    /// bit: only then can a name be a duplicate.
    names: [u64; 2],
    alike: bool,
    /// Whether a value is an object or an array.
    has_nested: bool,
}

impl Members<'_> {
    fn recycle<'b>(mut self) -> Members<'b> {
        self.list.clear();
        // Nothing is moved: an empty vector is collected into its own allocation.
        let list = self.list.into_iter().map(|_| unreachable!("it was cleared")).collect();
        Members { list, ..Members::default() }
    }
}

impl<'a> Members<'a> {
    fn clear(&mut self) {
        self.list.clear();
        self.of_field = [0; 6];
        self.names = [0; 2];
        self.alike = false;
        self.has_nested = false;
    }

    fn push(&mut self, member: Member<'a>) {
        if let Some((field, _)) = member.role {
            self.of_field[field as usize] |= 1_u64.checked_shl(self.list.len() as u32).unwrap_or(0);
        }
        let bit = 1 << (member.slot % 64);
        let names = &mut self.names[usize::from(member.slot / 64)];
        self.alike |= *names & bit != 0;
        *names |= bit;
        self.has_nested |= member.escaped && matches!(member.value.as_bytes(), [b'{' | b'[', ..]);
        self.list.push(member);
    }

    /// The members that may be used for `field`, in order.
    fn of(&self, field: Field) -> impl Iterator<Item = (usize, &Member<'a>)> {
        let mut bits = self.of_field[field as usize];
        let mut rest = 64..self.list.len();
        let next = move || {
            if bits != 0 {
                let at = bits.trailing_zeros() as usize;
                bits &= bits - 1;
                return Some(at);
            }
            rest.find(|&at| self.list[at].role.is_some_and(|(of, _)| of == field))
        };
        std::iter::from_fn(next).map(|at| (at, &self.list[at]))
    }
}

/// Rank of `fields` among the names for attributes: a message in it is used if there is no other.
const FIELDS: u8 = 1;

/// Returns the field that `name` denotes and its rank among the names of that field (the lowest usable one wins).
fn field(name: &str) -> Option<(Field, u8)> {
    use Field::{Attributes, Host, Level, Message, Service, Time};
    // By length first: most names are attributes and should be dismissed with few comparisons.
    let found = match name.len() {
        1 => match name {
            "t" => (Time, 7),
            "s" => (Level, 11), // MongoDB
            _ => return None,
        },
        2 => match name {
            "ts" => (Time, 0),
            "@t" => (Time, 8), // Serilog
            "@l" => (Level, 12),
            "@m" => (Message, 5),
            _ => return None,
        },
        3 => match name {
            "msg" => (Message, 1),
            "lvl" => (Level, 2),
            "log" => (Message, 2),
            "app" => (Service, 3),
            "pod" => (Host, 3),
            "@mt" => (Message, 6),
            _ => return None,
        },
        4 => match name {
            "time" => (Time, 1),
            "date" => (Time, 5),
            "body" => (Message, 3),
            "host" => (Host, 0),
            _ => return None,
        },
        5 => match name {
            "level" => (Level, 0),
            "event" => (Message, 4),
            _ => return None,
        },
        6 => match name {
            "fields" => (Attributes, FIELDS),
            _ => return None,
        },
        7 => match name {
            "message" => (Message, 0),
            "service" => (Service, 0),
            "program" => (Service, 5),
            "MESSAGE" => (Message, 7), // journald
            _ => return None,
        },
        8 => match name {
            "severity" => (Level, 1),
            "loglevel" => (Level, 3),
            "datetime" => (Time, 4),
            "hostname" => (Host, 1),
            "PRIORITY" => (Level, 10),
            _ => return None,
        },
        9 => match name {
            "timestamp" => (Time, 2),
            "eventTime" => (Time, 6),
            "levelname" => (Level, 8),
            "log.level" => (Level, 9),
            "host.name" => (Host, 2),
            "_HOSTNAME" => (Host, 4),
            _ => return None,
        },
        _ => match name {
            "attributes" => (Attributes, 0),
            "@timestamp" => (Time, 3),
            "application" => (Service, 4),
            "service.name" => (Service, 1),
            "service_name" => (Service, 2),
            "severity_number" => (Level, 4),
            "severityNumber" => (Level, 5),
            "severity_text" => (Level, 6),
            "severityText" => (Level, 7),
            "short_message" => (Message, 8), // GELF
            "textPayload" => (Message, 9),   // Google Cloud
            "SYSLOG_IDENTIFIER" => (Service, 6),
            "__REALTIME_TIMESTAMP" => (Time, 9),
            _ => return None,
        },
    };
    Some(found)
}

/// Returns a number below 128 for a name: unique and below 64 if it denotes a field, otherwise shared by several names.
fn slot(name: &str, role: Option<(Field, u8)>) -> u8 {
    match role {
        Some((field, rank)) => (field as u8 * 10 + rank) % 64,
        None => {
            let end = |byte: Option<&u8>| byte.map_or(0, |&byte| usize::from(byte));
            let name = name.as_bytes();
            let mix = name.len() * 7 + end(name.first()) * 3 + end(name.last());
            64 + u8::try_from(mix % 64).expect("below 64")
        }
    }
}

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

/// Reads the members of the object `text`, in order, into `into`.
fn read_members<'a>(text: &'a str, into: &mut Members<'a>) -> Result<(), String> {
    into.clear();
    let mut push = |member: RawMember<'a>| {
        let RawMember { name, value, escaped } = member;
        let role = field(name);
        let slot = slot(name, role);
        into.push(Member { name: Cow::Borrowed(name), value, escaped, slot, role, consumed: false });
    };
    if members(text, &mut push) {
        return Ok(());
    }
    read_by_serde(text, into)
}

#[cold]
fn read_by_serde<'a>(text: &'a str, into: &mut Members<'a>) -> Result<(), String> {
    into.clear();
    let mut json = serde_json::Deserializer::from_str(text);
    AnyMembers(into).deserialize(&mut json).and_then(|()| json.end()).map_err(|error| in_column(&error))
}

/// Formats a serde_json error without its line number, which the caller supplies. For a text within a text the outer
/// column is used, since that is what the sender sees.
pub fn in_column(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let what = text.rsplit_once(" at line ").map_or(&*text, |(what, _)| what);
    let what = what.rsplit_once(" in column ").map_or(what, |(what, _)| what);
    format!("{what} in column {}", error.column())
}

struct AnyMembers<'s, 'a>(&'s mut Members<'a>);

impl<'a> DeserializeSeed<'a> for AnyMembers<'_, 'a> {
    type Value = ();

    fn deserialize<D: Deserializer<'a>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'a> Visitor<'a> for AnyMembers<'_, 'a> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'a>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(name) = map.next_key_seed(Name)? {
            let value = map.next_value::<&'a RawValue>()?.get();
            if let Some(number) = out_of_range(value) {
                return Err(serde::de::Error::custom(format_args!("number out of range: {number}")));
            }
            let role = field(&name);
            let slot = slot(&name, role);
            self.0.push(Member { name, value, escaped: true, slot, role, consumed: false });
        }
        Ok(())
    }
}

/// A name, borrowed if possible; NUL becomes U+FFFD.
pub struct Name;

impl<'a> DeserializeSeed<'a> for Name {
    type Value = Cow<'a, str>;

    fn deserialize<D: Deserializer<'a>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'a> Visitor<'a> for Name {
    type Value = Cow<'a, str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_borrowed_str<E>(self, name: &'a str) -> Result<Self::Value, E> {
        Ok(Cow::Borrowed(name))
    }

    fn visit_str<E>(self, name: &str) -> Result<Self::Value, E> {
        Ok(Cow::Owned(name.replace('\0', "\u{fffd}")))
    }
}

/// Applies the sender's field mapping, which takes precedence over the usual names. It may refer to members of nested
/// objects; returns whether there were any.
#[cold]
fn map_fields<'a>(members: &mut Members<'a>, nested: &mut Members<'a>, fields: &FieldMap) -> bool {
    let lists = [
        (Field::Time, &fields.time),
        (Field::Level, &fields.level),
        (Field::Message, &fields.message),
        (Field::Service, &fields.service),
        (Field::Host, &fields.host),
    ];
    let map = |member: &mut Member<'_>| {
        member.role = member.role.map(|(field, rank)| (field, rank + USUAL_RANK));
        for (field, names) in lists {
            if let Some(rank) = names.iter().position(|name| *name == member.name) {
                member.role = Some((field, u8::try_from(rank).unwrap_or(USUAL_RANK).min(USUAL_RANK)));
            }
        }
        member.consumed |= fields.ignore.iter().any(|name| is_ignored(&member.name, name));
    };
    members.list.iter_mut().for_each(map);
    // A message may be an object, unless a mapped name is inside it; the others are flattened.
    let has_mapped = |outer: &str| {
        let inner = |name: &String| name.strip_prefix(outer).is_some_and(|rest| rest.starts_with('.'));
        lists.iter().any(|(_, names)| names.iter().any(inner))
    };
    let is_message = |member: &Member<'_>| {
        matches!(member.role, Some((Field::Message, _))) && member.name != "log" && !has_mapped(&member.name)
    };
    let top = members.list.len();
    let flattened = flatten(members, nested, |member| !is_message(member));
    members.list[top..].iter_mut().for_each(map);
    members.of_field = [0; 6];
    for (at, member) in members.list.iter().enumerate() {
        if let Some((field, _)) = member.role {
            members.of_field[field as usize] |= 1_u64.checked_shl(at as u32).unwrap_or(0);
        }
    }
    flattened
}

/// Whether `ignore` is `name`, an object that contains it, or a prefix (`tmp_*`).
fn is_ignored(name: &str, ignore: &str) -> bool {
    match ignore.strip_suffix('*') {
        Some(start) => name.starts_with(start),
        None => name.strip_prefix(ignore).is_some_and(|rest| rest.is_empty() || rest.starts_with('.')),
    }
}

/// Rank of the first usual name where the sender mapped others: above every rank of those.
const USUAL_RANK: u8 = 50;

/// Marks each member whose name occurs again later as consumed.
fn drop_duplicates(members: &mut Members<'_>, counts: &mut Sanitized) {
    if members.alike {
        drop_duplicates_pairwise(&mut members.list, counts);
    }
}

#[cold]
fn drop_duplicates_pairwise(members: &mut [Member<'_>], counts: &mut Sanitized) {
    if members.len() > LINEAR_MAX {
        return drop_duplicates_by_sorting(members, counts);
    }
    for index in 0..members.len() {
        let (member, later) = members[index..].split_first_mut().expect("index is below len");
        if !member.consumed && later.iter().any(|other| !other.consumed && other.name == member.name) {
            member.consumed = true;
            counts.duplicate_key += 1;
        }
    }
}

fn drop_duplicates_by_sorting(members: &mut [Member<'_>], counts: &mut Sanitized) {
    let mut order: Vec<usize> = (0..members.len()).filter(|&index| !members[index].consumed).collect();
    order.sort_by(|&a, &b| members[a].name.cmp(&members[b].name)); // stable: equal names stay in order
    for pair in order.windows(2) {
        if members[pair[0]].name == members[pair[1]].name {
            members[pair[0]].consumed = true;
            counts.duplicate_key += 1;
        }
    }
}

/// Appends the members of the objects `attributes` and `fields` in place of these; returns whether there were any.
fn merge<'a>(members: &mut Members<'a>, nested: &mut Members<'a>) -> Result<bool, String> {
    let is_object = |member: &Member<'a>| !member.consumed && member.value.starts_with('{');
    let mut merged = false;
    // The appended members never denote attributes themselves, so they are not visited again.
    let next =
        |members: &Members<'a>| members.of(Field::Attributes).find(|(_, member)| is_object(member)).map(|(at, _)| at);
    while let Some(at) = next(members) {
        merged = true;
        let member = &mut members.list[at];
        member.consumed = true;
        let from_fields = member.role == Some((Field::Attributes, FIELDS));
        read_members(member.value, nested)?;
        for mut member in nested.list.drain(..) {
            member.role = match member.role {
                Some((Field::Message, rank)) if from_fields => Some((Field::Message, rank + 100)),
                _ => None,
            };
            members.push(member);
        }
    }
    Ok(merged)
}

/// Replaces the nested objects selected by `wanted` by their members, under dotted names; returns whether there were
/// any.
fn flatten<'a>(members: &mut Members<'a>, nested: &mut Members<'a>, wanted: impl Fn(&Member<'a>) -> bool) -> bool {
    let (mut level, mut flattened) = (0, false);
    for _ in 0..FLAT_DEPTH_MAX {
        let end = members.list.len();
        for at in level..end {
            let outer = &members.list[at];
            if !outer.value.starts_with('{')
                || outer.consumed
                || outer.name.len() > FLAT_NAME_BYTES_MAX
                || !wanted(outer)
            {
                continue;
            }
            if read_members(outer.value, nested).is_err() || nested.list.is_empty() {
                continue;
            }
            flattened = true;
            members.list[at].consumed = true;
            for inner in nested.list.drain(..) {
                let name = format!("{}.{}", members.list[at].name, inner.name);
                let role = field(&name);
                let slot = slot(&name, role);
                members.push(Member { name: Cow::Owned(name), slot, role, ..inner });
            }
        }
        if members.list.len() == end {
            break;
        }
        level = end;
    }
    flattened
}

/// Returns the first usable value of `field`, in the order of its names. Its member is consumed, unless `read` reports
/// that it holds more than was used.
fn take<'a, T>(
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
enum Used {
    Fully,
    Partly,
}

fn event_time(member: &Member<'_>) -> Option<(time::EventTime, Used)> {
    // MongoDB's {"$date": "…"}
    let dated = member.value.strip_prefix("{\"$date\":").and_then(|value| value.strip_suffix('}'));
    let value = dated.unwrap_or(member.value);
    let time = match string(value) {
        Some(text) => time::from_text(text)?,
        None => time::from_number(value)?,
    };
    Some((time, if time.clamped { Used::Partly } else { Used::Fully }))
}

fn severity(member: &Member<'_>) -> Option<(Severity, Used)> {
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
fn ecs_level<'a>(members: &mut Members<'a>, nested: &mut Members<'a>) -> Option<Severity> {
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
fn name<'a>(member: &Member<'a>, nested: &mut Members<'a>) -> Option<(Raw<'a>, Used)> {
    let (name, used) = if member.value.starts_with('{') {
        read_members(member.value, nested).ok()?;
        let name = nested.list.iter().rfind(|inner| inner.name == "name")?;
        (raw(name)?, if nested.list.len() == 1 { Used::Fully } else { Used::Partly })
    } else {
        (raw(member)?, Used::Fully)
    };
    (1..=NAME_BYTES_MAX).contains(&name.text.len()).then_some((name, used))
}

/// The text between the quotes of a JSON string, and whether it may contain an escape.
#[derive(Clone, Copy)]
struct Raw<'a> {
    text: &'a str,
    escaped: bool,
}

fn raw<'a>(member: &Member<'a>) -> Option<Raw<'a>> {
    Some(Raw { text: string(member.value)?, escaped: member.escaped })
}

/// The message of a record.
enum MessageValue<'a> {
    /// A JSON string.
    Text(Raw<'a>),
    /// JSON other than a string.
    Json(&'a str),
}

fn text_or_json<'a>(member: &Member<'a>) -> Option<(MessageValue<'a>, Used)> {
    let message_value = match (raw(member), &*member.name, member.value.as_bytes()) {
        (Some(raw), ..) => MessageValue::Text(raw),
        (None, _, b"null") | (None, "log", [b'{', ..]) => return None,
        (None, ..) => MessageValue::Json(member.value),
    };
    Some((message_value, Used::Fully))
}

/// The text between the quotes, if `value` is a string.
fn string(value: &str) -> Option<&str> {
    value.strip_prefix('"')?.strip_suffix('"')
}

/// Returns the text of `raw`: borrowed, or unescaped into `buffer`.
fn resolve<'s>(raw: Raw<'s>, buffer: &'s mut String, counts: &mut Sanitized) -> &'s str {
    if !raw.escaped || memchr::memchr(b'\\', raw.text.as_bytes()).is_none() {
        return raw.text;
    }
    buffer.clear();
    unescape(raw.text, buffer, counts);
    buffer
}

/// Writes the unused members as one JSON object; nothing if there are none.
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

/// Returns the first number in the JSON `value` that does not fit into a double: PostgreSQL or a reader would reject
/// the record.
pub fn out_of_range(value: &str) -> Option<&str> {
    let bytes = value.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        let is_number = |byte: &u8| byte.is_ascii_digit() || b"+-.eE".contains(byte);
        match bytes[at] {
            b'"' => at = string_end(bytes, at + 1),
            b'-' | b'0'..=b'9' => {
                let len = bytes[at..].iter().take_while(|byte| is_number(byte)).count();
                let number = &value[at..at + len];
                if !is_double(number) {
                    return Some(&number[..number.len().min(40)]);
                }
                at += len;
            }
            _ => at += 1,
        }
    }
    None
}

/// Whether it neither overflows nor, being nonzero, underflows to zero, and does not have thousands of digits.
fn is_double(number: &str) -> bool {
    let mantissa = number.split(['e', 'E']).next().unwrap_or_default();
    let is_nonzero = mantissa.bytes().any(|byte| matches!(byte, b'1'..=b'9'));
    number.len() <= NUMBER_BYTES_MAX
        && number.parse().is_ok_and(|value: f64| value.is_finite() && (value != 0.0) == is_nonzero)
}

/// The index after the string whose remainder starts at `at`.
fn string_end(bytes: &[u8], mut at: usize) -> usize {
    while let Some(&byte) = bytes.get(at) {
        match byte {
            b'"' => return at + 1,
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    bytes.len()
}

/// Whether a value is nested deeper than [`DEPTH_MAX`].
pub fn too_deep(value: &str) -> bool {
    // A value that deep has at least two brackets per level.
    if value.len() <= 2 * DEPTH_MAX || !value.starts_with(['{', '[']) {
        return false;
    }
    let (mut depth, mut in_string) = (0_usize, false);
    let mut bytes = value.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'"' => in_string = !in_string,
            b'\\' => _ = bytes.next(),
            b'{' | b'[' if !in_string => depth += 1,
            b'}' | b']' if !in_string => depth -= 1,
            _ => {}
        }
        if depth > DEPTH_MAX {
            return true;
        }
    }
    false
}
