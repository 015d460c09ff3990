//! Access logs of Apache and nginx, common and combined:
//! `client ident user [time] "request" status bytes "referer" "user agent"`.
//!
//! - The message is the whole line, so that text after the known fields is kept.
//! - A field that is `-` is absent and yields no attribute. A request that is not `METHOD path protocol` (a TLS
//!   handshake on a plain port) is kept as `request`.
//! - A quoted field ends at the first quote without a backslash; its escapes are kept unchanged.

use std::fmt::Write as _;

use logweir_record::record::{Record, Severity};

use super::attributes::closing_quote;
use crate::json::write::push_json_string;
use crate::object::Scratch;
use crate::sink::Sink;
use crate::time;

/// The time must start within this many bytes for a line to be tried.
const TIME_OFFSET_MAX: usize = 256;

/// Whether a `[17/May/2015:…` is near the start.
pub fn looks_like(line: &str) -> bool {
    let head = &line.as_bytes()[..line.len().min(TIME_OFFSET_MAX)];
    memchr::memchr(b'[', head).is_some_and(|at| {
        at > 0 && matches!(line.as_bytes()[at..], [_, _, _, b'/', _, _, _, b'/', _, _, _, _, b':', ..])
    })
}

/// Parses the line.
///
/// # Errors
/// The field that is missing or malformed. Nothing was pushed then.
pub fn parse<'a>(line: &'a str, scratch: &mut Scratch<'a>, sink: &mut Sink<'_>) -> Result<(), String> {
    let entry = Entry::read(line).map_err(|part| format!("not an access log entry: {part} is missing or malformed"))?;
    entry.write_attributes(&mut scratch.attributes);
    let severity = match entry.status {
        500.. => Severity::ERROR,
        400.. => Severity::WARN,
        _ => Severity::INFO,
    };
    let (ts_us, attributes) = (entry.time.us, &*scratch.attributes);
    sink.push(Record { ts_us, severity, service: "", host: "", message: line, attributes });
    Ok(())
}

/// The fields of one entry; `-` becomes empty.
struct Entry<'a> {
    client: &'a str,
    ident: &'a str,
    user: &'a str,
    time: time::EventTime,
    request: &'a str,
    status: u16,
    bytes: Option<u64>,
    referer: &'a str,
    user_agent: &'a str,
}

impl<'a> Entry<'a> {
    /// Parses an entry, or returns the name of the field that does not fit.
    fn read(line: &'a str) -> Result<Self, &'static str> {
        let (client, rest) = line.split_once(' ').ok_or("the client")?;
        let (ident, rest) = rest.split_once(' ').ok_or("the ident")?;
        // A user name may contain spaces.
        let (user, rest) = rest.split_once(" [").ok_or("the time")?;
        let (time, rest) = rest.split_once("] \"").ok_or("the request")?;
        let time = time::from_access_log(time).ok_or("the time")?;
        let (request, rest) = quoted(rest).ok_or("the request")?;
        let mut words = rest.trim_start().splitn(3, ' ');
        let status = words.next().filter(|status| status.len() == 3).and_then(|status| status.parse().ok());
        let status = status.filter(|status| (100..600).contains(status)).ok_or("the status")?;
        let bytes = match words.next() {
            None | Some("-") => None,
            Some(bytes) => Some(bytes.parse().map_err(|_| "the number of bytes")?),
        };
        let mut tail = words.next().unwrap_or_default();
        let mut next_quoted = || {
            let (part, rest) = tail.trim_start().strip_prefix('"').and_then(quoted)?;
            tail = rest;
            Some(part)
        };
        let referer = next_quoted().unwrap_or_default();
        let user_agent = next_quoted().unwrap_or_default();
        let dash_as_empty = |part: &'a str| if part == "-" { "" } else { part };
        Ok(Self {
            client: dash_as_empty(client),
            ident: dash_as_empty(ident),
            user: dash_as_empty(user),
            time,
            request: dash_as_empty(request),
            status,
            bytes,
            referer: dash_as_empty(referer),
            user_agent: dash_as_empty(user_agent),
        })
    }

    fn write_attributes(&self, out: &mut String) {
        out.clear();
        out.push('{');
        let mut text = |name: &str, value: &str| push_text(out, name, value);
        text("client", self.client);
        text("ident", self.ident);
        text("user", self.user);
        match request_line(self.request) {
            Some((method, path, protocol)) => {
                text("method", method);
                text("path", path);
                text("protocol", protocol);
            }
            None => text("request", self.request),
        }
        text("referer", self.referer);
        text("user_agent", self.user_agent);
        let _ = write!(out, "\"status\":{}", self.status);
        if let Some(bytes) = self.bytes {
            let _ = write!(out, ",\"bytes\":{bytes}");
        }
        out.push('}');
    }
}

/// Appends a member and a comma, unless the value is empty.
#[inline(always)] // the names are then copied as constants: 4 % of the parser's instructions
fn push_text(out: &mut String, name: &str, value: &str) {
    if !value.is_empty() {
        out.push('"');
        out.push_str(name);
        out.push_str("\":");
        push_json_string(out, value);
        out.push(',');
    }
}

/// Splits at the next quote that is not preceded by a backslash.
fn quoted(text: &str) -> Option<(&str, &str)> {
    let end = closing_quote(text)?;
    Some((&text[..end], &text[end + 1..]))
}

/// Splits `GET /path HTTP/1.1`; HTTP/0.9 has no third part.
fn request_line(request: &str) -> Option<(&str, &str, &str)> {
    let (method, rest) = request.split_once(' ')?;
    let (path, protocol) = rest.rsplit_once(' ').unwrap_or((rest, ""));
    let plausible = !method.is_empty() && method.bytes().all(|byte| byte.is_ascii_uppercase());
    (plausible && (protocol.is_empty() || protocol.starts_with("HTTP/"))).then_some((method, path, protocol))
}
