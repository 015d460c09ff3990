//! Error logs of web servers:
//! - nginx: `2015/05/17 10:05:03 [error] 7#0: *1 …, client: …`
//! - Apache: `[Sun Dec 04 04:47:44 2005] [error] …`
//! - Apache 2.4: `[Fri Sep 09 10:42:29.902022 2011] [core:error] [pid 7:tid 9] [client 10.0.0.1:80] AH00124: …`
//!
//! The message is the text after level and process; the client, the request and so on in it are added as attributes.

use logweir_record::record::{Record, Severity};

use super::application::bracketed;
use super::attributes::Attributes;
use crate::object::Scratch;
use crate::sink::Sink;
use crate::time::stamp;

/// Whether it begins with a date with slashes, followed by a bracket.
pub fn looks_like_nginx(line: &str) -> bool {
    matches!(line.as_bytes(), [_, _, _, _, b'/', _, _, b'/', _, _, b' ', _, _, b':', _, _, b':', _, _, b' ', b'[', ..])
}

/// Parses a line of nginx.
///
/// # Errors
/// The field that is missing or malformed. Nothing was pushed then.
pub fn parse_nginx<'a>(line: &'a str, scratch: &mut Scratch<'a>, sink: &mut Sink<'_>) -> Result<(), String> {
    let malformed = |part: &str| format!("not an nginx error log line: {part} is missing or malformed");
    let (time, rest) = stamp::leading(line, sink.ts_us()).ok_or_else(|| malformed("the time"))?;
    let (level, rest) = bracketed(rest.trim_ascii_start()).ok_or_else(|| malformed("the level"))?;
    let severity = Severity::from_text(level).ok_or_else(|| malformed("the level"))?;
    let (process, rest) = rest.trim_ascii_start().split_once(':').ok_or_else(|| malformed("the process"))?;
    let (pid, tid) = process.split_once('#').ok_or_else(|| malformed("the process"))?;
    let rest = rest.trim_ascii();
    let (connection, message) = match rest.strip_prefix('*').and_then(|rest| rest.split_once(' ')) {
        Some((connection, message)) if connection.bytes().all(|byte| byte.is_ascii_digit()) => (connection, message),
        _ => ("", rest),
    };
    let mut attributes = Attributes::new(&mut scratch.attributes);
    attributes.number("pid", pid);
    attributes.number("tid", tid);
    attributes.number("connection", connection);
    for name in ["client", "server", "request", "upstream", "host", "referrer"] {
        attributes.text(name, field_value(message, name).unwrap_or_default());
    }
    let ts_us = sink.instant(time);
    sink.push(Record { ts_us, severity, service: "", host: "", message, attributes: attributes.finish() });
    Ok(())
}

/// The value after `, name: `, without quotes.
fn field_value<'a>(message: &'a str, name: &str) -> Option<&'a str> {
    let mut rest = message;
    loop {
        let (_, after) = rest.split_once(", ")?;
        rest = after;
        if let Some(value) = rest.strip_prefix(name).and_then(|rest| rest.strip_prefix(": ")) {
            return match value.strip_prefix('"') {
                Some(quoted) => quoted.split('"').next(),
                None => value.split(", ").next(),
            };
        }
    }
}

/// Whether a weekday follows a bracket.
pub fn looks_like_apache(line: &str) -> bool {
    matches!(line.as_bytes(), [b'[', b'A'..=b'Z', b'a'..=b'z', b'a'..=b'z', b' ', b'A'..=b'Z', _, _, b' ', ..])
}

/// Parses a line of Apache.
///
/// # Errors
/// The field that is missing or malformed. Nothing was pushed then.
pub fn parse_apache<'a>(line: &'a str, scratch: &mut Scratch<'a>, sink: &mut Sink<'_>) -> Result<(), String> {
    let malformed = |part: &str| format!("not an Apache error log line: {part} is missing or malformed");
    let (time, rest) = line
        .strip_prefix('[')
        .and_then(|rest| stamp::leading(rest, sink.ts_us()))
        .and_then(|(time, rest)| Some((time, rest.strip_prefix(']')?)))
        .ok_or_else(|| malformed("the time"))?;
    let (level, mut rest) = bracketed(rest.trim_ascii_start()).ok_or_else(|| malformed("the level"))?;
    let (module, level) = level.rsplit_once(':').unwrap_or(("", level));
    // 2.4 has the levels trace1 to trace8.
    let level = if level.starts_with("trace") { "trace" } else { level };
    let severity = Severity::from_text(level).ok_or_else(|| malformed("the level"))?;
    let mut attributes = Attributes::new(&mut scratch.attributes);
    attributes.text("module", module);
    if let Some((process, after)) = bracketed(rest.trim_ascii_start())
        && let Some(process) = process.strip_prefix("pid ")
    {
        let (pid, tid) = process.split_once(":tid ").unwrap_or((process, ""));
        attributes.number("pid", pid);
        attributes.number("tid", tid);
        rest = after;
    }
    let message = rest.trim_ascii();
    let client = bracketed(message).and_then(|(inner, _)| inner.strip_prefix("client "));
    attributes.text("client", client.unwrap_or_default());
    let ts_us = sink.instant(time);
    sink.push(Record { ts_us, severity, service: "", host: "", message, attributes: attributes.finish() });
    Ok(())
}
