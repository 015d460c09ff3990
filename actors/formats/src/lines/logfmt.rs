//! logfmt: only `name=value` pairs, as written by Go's slog, logrus, Grafana's and Heroku's programs.
//!
//! Pairs with the usual names of time, level, message, service and host become the record's fields; every other pair is
//! an attribute.

use logweir_record::record::{Record, Severity};

use super::attributes::{Attributes, Pair, pair};
use crate::object::Scratch;
use crate::sink::{NAME_BYTES_MAX, Sink};
use crate::text::{Sanitized, unescape};
use crate::time;

/// Whether it begins with a name and `=`, and has a second pair.
pub fn looks_like(line: &str) -> bool {
    let bytes = line.as_bytes();
    let name = bytes.iter().take(64).take_while(|byte| byte.is_ascii_alphanumeric() || b"_.-@".contains(byte)).count();
    name > 0 && bytes.get(name) == Some(&b'=') && memchr::memchr(b'=', &bytes[name + 1..]).is_some()
}

/// Parses the line.
///
/// # Errors
/// The first word that is not a pair. Nothing was pushed then.
pub fn parse<'a>(line: &'a str, scratch: &mut Scratch<'a>, sink: &mut Sink<'_>) -> Result<(), String> {
    let Scratch { attributes, message: unescaped, .. } = scratch;
    let mut attributes = Attributes::new(attributes);
    let (mut ts_us, mut severity, mut service, mut host, mut message) = (None, None, "", "", None);
    let mut rest = line.trim_ascii();
    while !rest.is_empty() {
        let Some((pair, after)) = pair(rest) else {
            let word = rest.split(' ').next().unwrap_or_default();
            return Err(format!(
                "not logfmt: {:?} is not a name=value pair",
                word.chars().take(40).collect::<String>()
            ));
        };
        rest = after.trim_ascii_start();
        let Pair { name, value, .. } = pair;
        let is_name = !value.is_empty() && value.len() <= NAME_BYTES_MAX && !value.contains('\\');
        match name {
            "ts" | "time" | "timestamp" | "t" | "@timestamp" if ts_us.is_none() => {
                ts_us = time::from_text(value).map(|time| sink.instant(time));
                if ts_us.is_some() {
                    continue;
                }
            }
            "level" | "lvl" | "severity" | "loglevel" | "at" if severity.is_none() => {
                severity = Severity::from_text(value);
                if severity.is_some() {
                    continue;
                }
            }
            "msg" | "message" if message.is_none() => {
                message = Some(pair);
                continue;
            }
            "service" | "service.name" | "service_name" | "app" | "application" if service.is_empty() && is_name => {
                service = value;
                continue;
            }
            "host" | "hostname" | "host.name" if host.is_empty() && is_name => {
                host = value;
                continue;
            }
            _ => {}
        }
        attributes.pair(pair);
    }
    let message = match message {
        Some(Pair { value, quoted: true, .. }) if value.contains('\\') => {
            unescaped.clear();
            unescape(value, unescaped, &mut Sanitized::default());
            &**unescaped
        }
        Some(Pair { value, .. }) => value,
        None => line.trim_ascii(),
    };
    let (ts_us, severity) = (ts_us.unwrap_or_else(|| sink.ts_us()), severity.unwrap_or_default());
    sink.push(Record { ts_us, severity, service, host, message, attributes: attributes.finish() });
    Ok(())
}

/// Whether the last word is a pair.
pub fn may_have_tail(line: &str) -> bool {
    let bytes = line.as_bytes();
    line.ends_with('"') || {
        let last = memchr::memrchr(b' ', bytes).map_or(0, |at| at + 1);
        memchr::memchr(b'=', &bytes[last..]).is_some()
    }
}

/// Parses a sentence followed by pairs: `order placed user=7 total=9.99`. The line is the message.
///
/// # Errors
/// Fewer than two pairs: a single `=` does not make a format. Nothing was pushed then.
pub fn parse_tail<'a>(line: &'a str, scratch: &mut Scratch<'a>, sink: &mut Sink<'_>) -> Result<(), String> {
    let mut attributes = Attributes::new(&mut scratch.attributes);
    if attributes.tail(line) < 2 {
        return Err("no trailing key=value pairs: expected at least two".into());
    }
    let (ts_us, severity) = (sink.ts_us(), Severity::UNSPECIFIED);
    sink.push(Record { ts_us, severity, service: "", host: "", message: line, attributes: attributes.finish() });
    Ok(())
}
