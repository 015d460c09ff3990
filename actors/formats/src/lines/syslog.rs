//! Syslog lines: RFC 5424, and RFC 3164 as it occurs on the wire and in files, with and without `<PRI>`.
//!
//! - The program is the service, the host the host; severity and facility come from `<PRI>`, if present.
//! - Structured data becomes one object per id.
//! - RFC 3164 describes observed practice, not requirements: after a `<PRI>`, the host, the process id, the tag and
//!   even the time may be missing. Without a `<PRI>`, time, host and tag are required for a line to be syslog.

use logweir_record::record::{Record, Severity};

use super::attributes::Attributes;
use crate::json::write::push_json_string;
use crate::level;
use crate::object::Scratch;
use crate::sink::{NAME_BYTES_MAX, Sink, is_name};
use crate::time;
use crate::time::stamp;

const FACILITIES: [&str; 24] = [
    "kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "authpriv", "ftp", "ntp",
    "audit", "alert", "clock", "local0", "local1", "local2", "local3", "local4", "local5", "local6", "local7",
];

/// Contents of `<PRI>`; empty if absent.
#[derive(Clone, Copy, Default)]
struct Priority {
    severity: Severity,
    facility: &'static str,
}

/// Whether it begins with `<PRI>`, or with a time as in the files of a syslog daemon.
pub fn looks_like(line: &str) -> bool {
    match line.as_bytes() {
        [b'<', b'0'..=b'9', ..] => true,
        [b'1', b' ', b'0'..=b'9', ..] => true,
        [b'A'..=b'Z', b'a'..=b'z', b'a'..=b'z', b' ', b' ' | b'0'..=b'9', _, b' ', ..] => true,
        [b'A'..=b'Z', b'a'..=b'z', b'a'..=b'z', b' ', b'1'..=b'9', b' ', ..] => true,
        [b'0'..=b'9', _, _, _, _, _, _, _, _, _, b'T', ..] => has_tag(line.as_bytes()),
        _ => false,
    }
}

/// 2015-10-18T18:01:02: its colons do not end a tag.
const TIME_BYTES_MIN: usize = 19;
/// A fraction, a zone and the space after them.
const TIME_BYTES_MORE: usize = 17;

/// Whether a process id in brackets, or the kernel, is where a tag may be.
fn has_tag(line: &[u8]) -> bool {
    let head = line.get(TIME_BYTES_MIN..line.len().min(20 + Tag::BYTES_MAX)).unwrap_or_default();
    let host_follows = memchr::memchr(b' ', &head[..head.len().min(TIME_BYTES_MORE)]).is_some();
    host_follows
        && memchr::memchr_iter(b':', head).any(|at| head[..at].ends_with(b"]") || head[..at].ends_with(b" kernel"))
}

/// Parses the line.
///
/// # Errors
/// The field that is missing or malformed. Nothing was pushed then.
pub fn parse<'a>(line: &'a str, scratch: &mut Scratch<'a>, sink: &mut Sink<'_>) -> Result<(), String> {
    let (priority, rest) = match line.strip_prefix('<') {
        Some(rest) => priority(rest).ok_or("not syslog: <PRI> is not a number from 0 to 191")?,
        None => (Priority::default(), line),
    };
    if let Some(rest) = rest.strip_prefix("1 ") {
        let entry = Rfc5424::read(rest).ok_or("not syslog: a field of RFC 5424 is missing or malformed")?;
        entry.push(priority, scratch, sink);
        return Ok(());
    }
    let has_priority = rest.len() < line.len();
    let entry = Rfc3164::read(rest, has_priority, sink).ok_or("not syslog: time, host or tag is missing")?;
    entry.push(priority, scratch, sink);
    Ok(())
}

fn priority(text: &str) -> Option<(Priority, &str)> {
    let end = text.bytes().take(4).position(|byte| byte == b'>')?;
    let code: u8 = text[..end].parse().ok()?;
    let facility = FACILITIES.get(usize::from(code / 8))?;
    let severity = level::of_syslog(code % 8)?;
    Some((Priority { severity, facility }, &text[end + 1..]))
}

/// An absent field is written `-`.
fn dash_as_empty(text: &str) -> &str {
    if text == "-" { "" } else { text }
}

struct Rfc5424<'a> {
    time: Option<time::EventTime>,
    host: &'a str,
    app: &'a str,
    process: &'a str,
    message_id: &'a str,
    data: &'a str,
    message: &'a str,
}

impl<'a> Rfc5424<'a> {
    fn read(text: &'a str) -> Option<Self> {
        let mut words = text.splitn(6, ' ');
        let mut next = || words.next();
        let (time, host, app, process, message_id) = (next()?, next()?, next()?, next()?, next()?);
        let rest = next()?;
        let time = match time {
            "-" => None,
            time => Some(time::from_text(time)?),
        };
        let (data, message) = match rest.strip_prefix('-') {
            Some(message) => ("", message),
            None => rest.split_at(data_end(rest)?),
        };
        let message = message.strip_prefix(' ').unwrap_or(message);
        let message = message.strip_prefix('\u{feff}').unwrap_or(message);
        let [host, app, process, message_id] = [host, app, process, message_id].map(dash_as_empty);
        Some(Self { time, host, app, process, message_id, data, message })
    }

    fn push(&self, priority: Priority, scratch: &mut Scratch<'a>, sink: &mut Sink<'_>) {
        let Scratch { attributes, .. } = scratch;
        let mut attributes = Attributes::new(attributes);
        attributes.text("facility", priority.facility);
        attributes.number("pid", self.process);
        attributes.text("msgid", self.message_id);
        let names = [("service", self.app), ("host", self.host)]
            .map(|(name, value)| name_or_attribute(name, value, &mut attributes));
        let mut rest = self.data;
        while let Some(after) = element(rest, &mut attributes) {
            rest = after;
        }
        let ts_us = self.time.map_or_else(|| sink.ts_us(), |time| sink.instant(time));
        let [service, host] = names;
        let (message, attributes) = (self.message, attributes.finish());
        sink.push(Record { ts_us, severity: priority.severity, service, host, message, attributes });
    }
}

/// A name too long for an index becomes an attribute.
fn name_or_attribute<'a>(name: &str, value: &'a str, attributes: &mut Attributes<'_>) -> &'a str {
    if value.len() <= NAME_BYTES_MAX {
        return value;
    }
    attributes.text(name, value);
    ""
}

/// The length of the structured data that `text` begins with.
fn data_end(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    let mut at = 0;
    while bytes.get(at) == Some(&b'[') {
        let mut in_value = false;
        loop {
            match bytes.get(at)? {
                b'\\' if in_value => at += 1,
                b'"' => in_value = !in_value,
                b']' if !in_value => break,
                _ => {}
            }
            at += 1;
        }
        at += 1;
    }
    (at > 0 && matches!(bytes.get(at), None | Some(b' '))).then_some(at)
}

/// Adds the element that `data` begins with as an object; returns the rest.
fn element<'a>(data: &'a str, attributes: &mut Attributes<'_>) -> Option<&'a str> {
    let inner = data.strip_prefix('[')?;
    let id_end = inner.find([' ', ']'])?;
    let (id, mut rest) = inner.split_at(id_end);
    let mut object = String::from("{");
    loop {
        rest = rest.trim_ascii_start();
        if let Some(after) = rest.strip_prefix(']') {
            object.push('}');
            attributes.raw(id, &object);
            return Some(after);
        }
        let (name, value) = rest.split_once("=\"")?;
        let end = value_end(value)?;
        if object.len() > 1 {
            object.push(',');
        }
        push_json_string(&mut object, name);
        object.push(':');
        push_json_string(&mut object, &plain(&value[..end]));
        rest = &value[end + 1..];
    }
}

fn value_end(text: &str) -> Option<usize> {
    let mut escaped = false;
    text.bytes().position(|byte| {
        let ends = byte == b'"' && !escaped;
        escaped = byte == b'\\' && !escaped;
        ends
    })
}

/// Removes the backslash before `"`, `\` and `]`, the only characters that must be escaped.
fn plain(value: &str) -> String {
    value.replace("\\\"", "\"").replace("\\]", "]").replace("\\\\", "\\")
}

struct Rfc3164<'a> {
    ts_us: i64,
    host: &'a str,
    tag: Option<Tag<'a>>,
    message: &'a str,
}

impl<'a> Rfc3164<'a> {
    fn read(text: &'a str, has_priority: bool, sink: &Sink<'_>) -> Option<Self> {
        let arrival = sink.ts_us();
        let text = text.trim_ascii_start();
        let time = stamp::leading(text, arrival);
        if time.is_none() && !has_priority {
            return None;
        }
        let (ts_us, rest) = time.map_or((arrival, text), |(time, rest)| (sink.instant(time), rest));
        // Cisco writes a colon after the time.
        let rest = rest.strip_prefix(':').unwrap_or(rest).trim_ascii_start();
        if has_priority && let Some(tag) = Tag::read(rest).filter(|tag| !tag.name.contains(' ')) {
            return Some(Self { ts_us, host: "", tag: Some(tag), message: tag.message });
        }
        let (host, after) = rest.split_once(' ').unwrap_or((rest, ""));
        let is_host = time.is_some() && is_name(host) && !host.contains(['[', '=', '"']) && !level::is_level(host);
        if !is_host || host.ends_with(':') {
            return has_priority.then_some(Self { ts_us, host: "", tag: None, message: rest });
        }
        let after = after.trim_ascii_start();
        let tag = Tag::read(after);
        // A line from a file whose time has a zone may come from any program: only a tag with a process id identifies
        // it as syslog.
        let from_file = !has_priority && text.as_bytes()[0].is_ascii_digit();
        let sure = match &tag {
            Some(tag) => !from_file || !tag.pid.is_empty() || tag.name == "kernel",
            None => has_priority || (!from_file && is_repetition(after)),
        };
        sure.then(|| Self { ts_us, host, message: tag.as_ref().map_or(after, |tag| tag.message), tag })
    }

    fn push(&self, priority: Priority, scratch: &mut Scratch<'a>, sink: &mut Sink<'_>) {
        let mut attributes = Attributes::new(&mut scratch.attributes);
        attributes.text("facility", priority.facility);
        let (mut service, mut address) = ("", "");
        if let Some(tag) = &self.tag {
            attributes.number("pid", tag.pid);
            service = name_or_attribute("service", tag.name, &mut attributes);
            address = tag.address;
        }
        attributes.text("address", address);
        let message = self.message.trim_ascii_end();
        attributes.tail(message);
        let (ts_us, severity, host) = (self.ts_us, priority.severity, self.host);
        sink.push(Record { ts_us, severity, service, host, message, attributes: attributes.finish() });
    }
}

/// `last message repeated 3 times`: written by the daemon itself, without a tag.
fn is_repetition(text: &str) -> bool {
    ["last message", "message repeated", "--- last message"].iter().any(|words| text.starts_with(words))
}

/// The program, process id and message of a line that begins with a tag.
pub(super) fn tag(text: &str) -> Option<(&str, &str, &str)> {
    Tag::read(text).map(|tag| (tag.name, tag.pid, tag.message))
}

/// `program[pid]: message`, `program: message`, `Two Words[pid]: message`, `program[1] (address): message`.
#[derive(Clone, Copy)]
struct Tag<'a> {
    name: &'a str,
    pid: &'a str,
    address: &'a str,
    message: &'a str,
}

impl<'a> Tag<'a> {
    /// Maximum length of a tag, in bytes.
    const BYTES_MAX: usize = 128;

    fn read(text: &'a str) -> Option<Self> {
        let head = &text.as_bytes()[..text.len().min(Self::BYTES_MAX)];
        let end = head.iter().position(|byte| matches!(byte, b'[' | b':'))?;
        let name = &text[..end];
        if name.is_empty() || name.contains(['"', '=', ',']) {
            return None;
        }
        if head[end] == b':' {
            let rest = &text[end + 1..];
            let named = match name.split_once(' ') {
                None => true,
                Some((_, version)) => version.starts_with(|first: char| first.is_ascii_digit()), // `syslogd 1.4.1: `
            };
            let ends = rest.is_empty() || rest.starts_with(' ') || rest.starts_with('\t');
            return (named && ends).then(|| Self { name, pid: "", address: "", message: rest.trim_ascii_start() });
        }
        let (pid, rest) = text[end + 1..].split_once(']')?;
        let is_pid = !pid.is_empty() && pid.len() <= 20 && !pid.contains(' ');
        if !is_pid || name.split(' ').count() > 3 {
            return None;
        }
        if let Some(message) = rest.strip_prefix(':') {
            return Some(Self { name, pid, address: "", message: message.trim_ascii_start() });
        }
        let (address, message) = rest.strip_prefix(" (")?.split_once("): ")?;
        Some(Self { name, pid, address, message })
    }
}
