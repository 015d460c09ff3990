//! Logs of database servers: Redis `7:M 12 Dec 2020 10:00:00.123 * …` and
//! PostgreSQL `2020-12-12 10:00:00.123 UTC [7] user@db LOG:  …`.

use logweir_record::record::{Record, Severity};

use super::attributes::Attributes;
use crate::object::Scratch;
use crate::sink::Sink;
use crate::time::stamp;

/// Whether it begins with a process id and its role, or a process id in brackets.
pub fn looks_like_redis(line: &str) -> bool {
    let bytes = line.as_bytes();
    if bytes.first() == Some(&b'[') {
        let digits = bytes[1..].iter().take_while(|byte| byte.is_ascii_digit()).count();
        return digits > 0 && matches!(bytes[1 + digits..], [b']', b' ', b'0'..=b'9', ..]);
    }
    let digits = bytes.iter().take(8).take_while(|byte| byte.is_ascii_digit()).count();
    digits > 0 && matches!(bytes[digits..], [b':', b'M' | b'S' | b'C' | b'X', b' ', ..])
}

/// Parses a line of Redis.
///
/// # Errors
/// The field that is missing or malformed. Nothing was pushed then.
pub fn parse_redis<'a>(line: &'a str, scratch: &mut Scratch<'a>, sink: &mut Sink<'_>) -> Result<(), String> {
    let malformed = |part: &str| format!("not a Redis log line: {part} is missing or malformed");
    let process = match line.strip_prefix('[') {
        Some(rest) => rest.split_once("] ").map(|(pid, rest)| (pid, "", rest)),
        None => line.split_once(' ').and_then(|(process, rest)| {
            let (pid, role) = process.split_once(':')?;
            Some((pid, role, rest))
        }),
    };
    let (pid, role, rest) = process.ok_or_else(|| malformed("the process"))?;
    let (time, rest) = stamp::leading(rest, sink.ts_us()).ok_or_else(|| malformed("the time"))?;
    let (severity, message) = match rest.as_bytes() {
        [b' ', b'.', b' ', ..] => (Severity::DEBUG, &rest[3..]),
        [b' ', b'-', b' ', ..] => (Severity::INFO, &rest[3..]),
        [b' ', b'*', b' ', ..] => (Severity::from_text("notice").unwrap_or_default(), &rest[3..]),
        [b' ', b'#', b' ', ..] => (Severity::WARN, &rest[3..]),
        _ => return Err(malformed("the level")),
    };
    let mut attributes = Attributes::new(&mut scratch.attributes);
    attributes.number("pid", pid);
    attributes.text("role", role);
    let message = message.trim_ascii_end();
    let ts_us = sink.instant(time);
    sink.push(Record { ts_us, severity, service: "", host: "", message, attributes: attributes.finish() });
    Ok(())
}

/// Whether a process id in brackets follows a time.
pub fn looks_like_postgres(line: &str) -> bool {
    let head = &line.as_bytes()[..line.len().min(40)];
    matches!(head, [_, _, _, _, b'-', _, _, b'-', _, _, b' ', _, _, b':', _, _, b':', _, _, b'.' | b' ', ..])
        && memchr::memchr(b'[', &head[20..]).is_some_and(|at| head.get(21 + at).is_some_and(u8::is_ascii_digit))
}

/// Parses a line of PostgreSQL, with the prefix of Debian or the default one.
///
/// # Errors
/// The field that is missing or malformed. Nothing was pushed then.
pub fn parse_postgres<'a>(line: &'a str, scratch: &mut Scratch<'a>, sink: &mut Sink<'_>) -> Result<(), String> {
    let malformed = |part: &str| format!("not a PostgreSQL log line: {part} is missing or malformed");
    let (time, rest) = stamp::leading(line, sink.ts_us()).ok_or_else(|| malformed("the time"))?;
    let (head, message) = rest.split_once(":  ").ok_or_else(|| malformed("the level"))?;
    let (context, level) = head.rsplit_once([' ', ':']).unwrap_or(("", head));
    let severity = match level {
        // Belongs to an earlier message.
        "DETAIL" | "HINT" | "QUERY" | "CONTEXT" | "STATEMENT" | "LOCATION" => Severity::INFO,
        "LOG" | "INFO" | "NOTICE" | "WARNING" | "ERROR" | "FATAL" | "PANIC" | "DEBUG" | "DEBUG1" | "DEBUG2"
        | "DEBUG3" | "DEBUG4" | "DEBUG5" => Severity::from_text(level).unwrap_or_default(),
        _ => return Err(malformed("the level")),
    };
    let mut attributes = Attributes::new(&mut scratch.attributes);
    attributes.text("kind", if severity == Severity::INFO && !matches!(level, "LOG" | "INFO") { level } else { "" });
    for word in context.split_ascii_whitespace() {
        if let Some(process) = word.strip_prefix('[').and_then(|word| word.split_once(']')).map(|(process, _)| process)
        {
            attributes.number("pid", process.split_once('-').map_or(process, |(pid, _)| pid));
        } else if let Some((user, database)) = word.split_once('@') {
            attributes.text("user", user);
            attributes.text("database", database);
        }
    }
    let message = message.trim_ascii();
    let ts_us = sink.instant(time);
    sink.push(Record { ts_us, severity, service: "", host: "", message, attributes: attributes.finish() });
    Ok(())
}
