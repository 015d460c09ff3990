//! Lines of application loggers: a time, a few header fields in any order, the message.
//!
//! The patterns of log4j, logback, java.util.logging, Hadoop, Spark, ZooKeeper, HDFS, Spring, Kafka, Elasticsearch,
//! Python's logging, loguru and oslo.log, Go's log, zap's and zerolog's consoles, logrus, NLog, Ruby, Windows CBS and
//! MySQL differ in the order of a few elements. One scan parses them all:
//! - Between the time and the message there are a level, process numbers, thread names in brackets, a logger name and
//!   lone separators (`-`, `--`, `|`). The level is decisive: without one, everything after the time is the message.
//! - After the level, a word is the logger name only if its punctuation says so: `name: …`, `name - …`,
//!   `name [context] …`.
//! - Without a time, a level must be in capitals or brackets: `INFO:root:…`, `[INFO] …`. Prose and stack traces stay
//!   text.

use logweir_record::record::{Record, Severity};

use super::attributes::Attributes;
use crate::level::{bare_level, delimited_level, is_level};
use crate::object::Scratch;
use crate::sink::Sink;
use crate::text::sanitize_escapes;
use crate::time::EventTime;
use crate::time::stamp;

/// Maximum number of header fields before the level.
const FIELDS_MAX: usize = 5;
/// Maximum length of a logger, thread or file name, in bytes.
const NAME_BYTES_MAX: usize = 256;

/// Whether a line begins with a digit, a bracket, a day or month name, a level, or a file name before a time.
pub fn looks_like(line: &str) -> bool {
    match line.as_bytes() {
        [b'[', ..] | [b'0'..=b'9', b'0'..=b'9' | b':' | b'/' | b'.', ..] | [b'A'..=b'Z', b',', b' ', b'[', ..] => true,
        [b'A'..=b'Z', b'A'..=b'Z', ..] => {
            let len = line.bytes().take(16).take_while(u8::is_ascii_uppercase).count();
            is_level(&line[..len])
        }
        [b'A'..=b'Z', b'a'..=b'z', b'a'..=b'z', b' ' | b',', ..] => stamp::is_day_or_month(&line.as_bytes()[..3]),
        [b'a'..=b'z', ..] => file_before_time(line).is_some(),
        _ => false,
    }
}

/// Parses the line.
///
/// # Errors
/// The line has neither a time nor a level. Nothing was pushed then.
pub fn parse<'a>(line: &'a str, scratch: &mut Scratch<'a>, sink: &mut Sink<'_>) -> Result<(), String> {
    let now_us = sink.ts_us();
    let (file, text) = file_before_time(line).unwrap_or(("", line));
    let Opening { time, pid, rest, style } = open(text, now_us);
    let mut header = Header { pid, ..Header::default() };
    let message = match (style, time) {
        (Style::Piped, _) => Some(header.piped(rest)),
        (_, Some(_)) => header.read(rest, style),
        (_, None) => header.without_time(rest),
    };
    if time.is_none() && message.is_none() {
        return Err("not an application log line: it begins with neither a time nor a level".into());
    }
    let message = message.unwrap_or_else(|| header.no_level(rest));
    let message = message.trim_ascii();
    let mut attributes = Attributes::new(&mut scratch.attributes);
    for (name, value) in
        [("logger", header.logger), ("thread", header.thread), ("context", header.context), ("caller", header.caller)]
    {
        attributes.text(name, value);
    }
    attributes.number("pid", header.pid);
    attributes.number("tid", header.tid);
    attributes.text("file", file);
    if is_object(header.fields) {
        attributes.raw("fields", header.fields);
    } else {
        attributes.text("fields", header.fields);
    }
    attributes.tail(message);
    attributes.finish();
    if sink.bad_escapes {
        sanitize_escapes(&mut scratch.attributes, &mut sink.sanitized);
    }
    let (ts_us, attributes) = (time.map_or(now_us, |time| sink.instant(time)), &*scratch.attributes);
    sink.push(Record { ts_us, severity: header.severity, service: "", host: "", message, attributes });
    Ok(())
}

/// Whether it is a JSON object that readers of the attributes can parse too.
fn is_object(text: &str) -> bool {
    text.starts_with('{') && serde_json::from_str::<&serde_json::value::RawValue>(text).is_ok()
}

/// How the time is written, which determines what follows.
#[derive(Clone, Copy, PartialEq)]
enum Style {
    /// `2015-10-18 18:01:47 …`
    Bare,
    /// `[2015-10-18 18:01:47] …`
    Bracketed,
    /// `2015-10-18 18:01:47|…`
    Piped,
    /// `2016-09-28 04:30:30, Info                  CBS    …`
    Columns,
}

/// The beginning of a line.
struct Opening<'a> {
    time: Option<EventTime>,
    pid: &'a str,
    rest: &'a str,
    style: Style,
}

fn open(text: &str, now_us: i64) -> Opening<'_> {
    let none = Opening { time: None, pid: "", rest: text, style: Style::Bare };
    // Ruby: `I, [2015-05-17T10:05:03.123456 #1234]  INFO -- name: …`
    let body = match text.as_bytes() {
        [b'A'..=b'Z', b',', b' ', b'[', ..] => &text[3..],
        _ => text,
    };
    let Some(inner) = body.strip_prefix('[') else {
        let Some((time, rest)) = stamp::may_begin_with_time(body).then(|| stamp::leading(body, now_us)).flatten()
        else {
            return none;
        };
        return match rest.as_bytes() {
            [b'|', ..] => Opening { time: Some(time), rest: &rest[1..], style: Style::Piped, ..none },
            [b',', b' ', ..] => Opening { time: Some(time), rest: &rest[2..], style: Style::Columns, ..none },
            [] | [b' ' | b'\t' | b':' | b'[', ..] => Opening { time: Some(time), rest, style: Style::Bare, ..none },
            _ => none,
        };
    };
    let Some((time, rest)) = stamp::leading(inner, now_us) else { return none };
    let (pid, rest) = match rest.strip_prefix(" #").and_then(|rest| rest.split_once(']')) {
        Some((pid, rest)) => (pid, rest),
        None => match rest.strip_prefix(']') {
            Some(rest) => ("", rest),
            None => return none,
        },
    };
    Opening { time: Some(time), pid, rest, style: Style::Bracketed }
}

/// Splits `nova-api.log.1.2017-05-16_13:53:08 2017-05-16 …`: a log file name, and the line from that file.
fn file_before_time(line: &str) -> Option<(&str, &str)> {
    if !line.as_bytes().first()?.is_ascii_lowercase() {
        return None;
    }
    let head = &line.as_bytes()[..line.len().min(NAME_BYTES_MAX)];
    let (file, rest) = line.split_at(memchr::memchr(b' ', head)?);
    let rest = &rest[1..];
    (rest.as_bytes().first()?.is_ascii_digit() && file.contains(".log")).then_some((file, rest))
}

/// The fields between time and message.
#[derive(Default)]
struct Header<'a> {
    severity: Severity,
    logger: &'a str,
    thread: &'a str,
    context: &'a str,
    caller: &'a str,
    pid: &'a str,
    tid: &'a str,
    /// A JSON object after the message, as written by zap's console.
    fields: &'a str,
}

impl<'a> Header<'a> {
    /// Parses the fields after a time. Returns the message; `None` if there is no level.
    fn read(&mut self, text: &'a str, style: Style) -> Option<&'a str> {
        let mut rest = text;
        for _ in 0..FIELDS_MAX {
            rest = skip_separators(rest);
            if let Some((inner, after)) = bracketed(rest) {
                rest = after;
                if let Some(severity) = delimited_level(inner.trim_ascii()) {
                    self.severity = severity;
                    return Some(self.after_bracketed_level(rest));
                }
                self.bracket(inner);
                continue;
            }
            let (word, after) = word(rest);
            if let Some((severity, after)) = level(word, after) {
                self.severity = severity;
                return Some(self.after_level(after, style));
            }
            if let Some((channel, severity)) = channel_level(word) {
                (self.logger, self.severity) = (channel, severity);
                return Some(after);
            }
            match word {
                "" => break,
                number if number.bytes().all(|byte| byte.is_ascii_digit()) => self.number(number),
                name if self.logger.is_empty() && is_name(name) => self.logger = name,
                _ => break,
            }
            rest = after;
        }
        *self = Self { pid: if style == Style::Bracketed { self.pid } else { "" }, ..Self::default() };
        None
    }

    fn number(&mut self, number: &'a str) {
        if self.pid.is_empty() { self.pid = number } else { self.tid = number }
    }

    fn bracket(&mut self, inner: &'a str) {
        let inner = inner.trim_ascii();
        if !inner.is_empty() && inner.bytes().all(|byte| byte.is_ascii_digit()) {
            self.number(inner);
        } else if self.logger.is_empty() && inner.contains('.') && !inner.contains([':', '@']) && is_name(inner) {
            self.logger = inner;
        } else if self.thread.is_empty() {
            self.thread = inner;
        } else {
            self.context = inner;
        }
    }

    /// `[INFO] …`: further brackets are fields too.
    fn after_bracketed_level(&mut self, text: &'a str) -> &'a str {
        let mut rest = text;
        for _ in 0..2 {
            let Some((inner, after)) = bracketed(rest.trim_ascii_start()) else { break };
            self.bracket(inner);
            rest = after;
        }
        let rest = rest.strip_prefix(':').unwrap_or(rest);
        self.name_before_message(rest.trim_ascii_start())
    }

    fn after_level(&mut self, text: &'a str, style: Style) -> &'a str {
        if let Some(message) = text.strip_prefix([':', ']']) {
            return message;
        }
        if let Some(fields) = text.strip_prefix('\t') {
            return self.tabbed(fields);
        }
        if style == Style::Columns {
            return self.column(text);
        }
        let mut rest = text.trim_ascii_start();
        // Spring: `INFO 12345 --- [main] c.e.Foo   : …`
        if let Some((number, after)) = rest.split_once(" --- ")
            && number.bytes().all(|byte| byte.is_ascii_digit())
        {
            self.pid = number;
            rest = after;
            while let Some((inner, after)) = bracketed(rest) {
                self.bracket(inner);
                rest = after.trim_ascii_start();
            }
            return self.name_before_message(rest);
        }
        // Ruby: `INFO -- name: …`
        if let Some((name, message)) = rest.strip_prefix("-- ").and_then(|rest| rest.split_once(':')) {
            self.logger = name;
            return message;
        }
        let bare = style == Style::Bare;
        if let Some((inner, after)) = bracketed(rest).filter(|_| bare) {
            self.bracket(inner);
            rest = after.strip_prefix(':').unwrap_or(after).trim_ascii_start();
        }
        match rest.strip_prefix("- ").or_else(|| rest.strip_prefix("| ")) {
            // `INFO - name - …`, unless the name came before the level.
            Some(rest) if self.logger.is_empty() && self.thread.is_empty() => self.name_before_dash(rest),
            Some(message) => message,
            None => self.name_before_message(rest),
        }
    }

    /// `name: …`, `name - …`, `name   : …`, `name [context] …`, `file.go:12 > …`.
    fn name_before_message(&mut self, text: &'a str) -> &'a str {
        let rest = text.strip_prefix("- ").unwrap_or(text);
        let (word, after) = word(rest);
        if let Some(name) = word.strip_suffix(':') {
            return if is_logger(name) {
                self.logger = name;
                after
            } else {
                rest
            };
        }
        if !is_name(word) {
            return rest;
        }
        let next = after.trim_ascii_start();
        if let Some(message) = next.strip_prefix("> ") {
            self.caller = word;
            return message;
        }
        if let Some(message) = next.strip_prefix(": ").or_else(|| next.strip_prefix("- ")) {
            self.logger = word;
            return message;
        }
        match bracketed(next).filter(|_| is_dotted(word)) {
            Some((inner, message)) => {
                (self.logger, self.context) = (word, inner.trim_ascii());
                message
            }
            None => rest,
        }
    }

    fn name_before_dash(&mut self, text: &'a str) -> &'a str {
        match text.split_once(" - ") {
            Some((name, message)) if is_name(name.trim_ascii_end()) => {
                self.logger = name.trim_ascii_end();
                message
            }
            _ => text,
        }
    }

    /// zap's console: `logger`, `file.go:12`, message and fields, between tabs.
    fn tabbed(&mut self, text: &'a str) -> &'a str {
        let mut rest = text;
        while let Some((field, after)) = rest.split_once('\t') {
            if field.contains(".go:") && !field.contains(' ') {
                self.caller = field;
            } else if self.logger.is_empty() && self.caller.is_empty() && is_name(field) {
                self.logger = field;
            } else {
                if after.starts_with('{') && after.ends_with('}') {
                    self.fields = after;
                    return field;
                }
                break;
            }
            rest = after;
        }
        rest
    }

    /// Windows CBS: the component is padded to a column.
    fn column(&mut self, text: &'a str) -> &'a str {
        let text = text.trim_ascii_start();
        match text.split_once("  ") {
            Some((name, message)) if is_name(name) => {
                self.logger = name;
                message
            }
            _ => text,
        }
    }

    /// `…|INFO|name|message`, `…|name|30002312|message`.
    fn piped(&mut self, text: &'a str) -> &'a str {
        let mut rest = text;
        for _ in 0..FIELDS_MAX {
            let Some((field, after)) = rest.split_once('|') else { break };
            let field = field.trim_ascii();
            if let Some(severity) = delimited_level(field).filter(|_| self.severity == Severity::UNSPECIFIED) {
                self.severity = severity;
            } else if !field.is_empty() && field.bytes().all(|byte| byte.is_ascii_digit()) {
                self.number(field);
            } else if self.logger.is_empty() && is_name(field) {
                self.logger = field;
            } else {
                break;
            }
            rest = after;
        }
        rest
    }

    /// A level at the very start: `INFO:root:…`, `[INFO] …`, `INFO[0000] …`, `ERROR …`.
    fn without_time(&mut self, text: &'a str) -> Option<&'a str> {
        if let Some((inner, after)) = bracketed(text) {
            self.severity = delimited_level(inner.trim_ascii())?;
            return Some(self.after_bracketed_level(after));
        }
        let len = text.bytes().take(16).take_while(u8::is_ascii_uppercase).count();
        let (word, after) = text.split_at(len);
        self.severity = bare_level(word)?;
        match after.as_bytes() {
            [b':', b' ' | b'\t', ..] => Some(&after[1..]),
            [b':', ..] => match after[1..].split_once(':') {
                Some((name, message)) if is_name(name) => {
                    self.logger = name;
                    Some(message)
                }
                _ => Some(&after[1..]),
            },
            [b'[', b'0'..=b'9', ..] => after.split_once(']').map(|(_, message)| message),
            [b' ' | b'\t', ..] => Some(self.after_level(after, Style::Bare)),
            _ => None,
        }
    }

    /// After a time without a level: Go's `main.go:12: …`, a program named by a proxy, or just the message.
    fn no_level(&mut self, text: &'a str) -> &'a str {
        let rest = skip_separators(text.strip_prefix(':').unwrap_or(text));
        let (word, after) = word(rest);
        if let Some(caller) = word.strip_suffix(':').filter(|word| word.contains(".go:")) {
            self.caller = caller;
            return after;
        }
        match rest.split_once(" - ") {
            Some((program, message)) if program.trim_end_matches(" *64").ends_with(".exe") => {
                self.logger = program;
                message
            }
            _ => rest,
        }
    }
}

/// Skips separators that stand alone.
fn skip_separators(text: &str) -> &str {
    let mut rest = text.trim_ascii_start();
    for separator in ["- ", "| ", "-- ", "--- ", ": "] {
        if let Some(after) = rest.strip_prefix(separator) {
            rest = after.trim_ascii_start();
        }
    }
    rest
}

/// Splits at the next space or tab.
fn word(text: &str) -> (&str, &str) {
    text.split_at(memchr::memchr2(b' ', b'\t', text.as_bytes()).unwrap_or(text.len()))
}

/// Splits into the text in the brackets at the start and the rest. Nested brackets are balanced.
pub(super) fn bracketed(text: &str) -> Option<(&str, &str)> {
    let inner = text.strip_prefix('[')?;
    let (mut depth, mut from) = (1_usize, 0);
    loop {
        let at = from + memchr::memchr2(b'[', b']', inner.as_bytes().get(from..)?)?;
        depth = if inner.as_bytes()[at] == b'[' { depth + 1 } else { depth - 1 };
        if depth == 0 {
            return (at <= NAME_BYTES_MAX).then(|| (&inner[..at], &inner[at + 1..]));
        }
        from = at + 1;
    }
}

/// Returns the level that a word begins with and the rest; in capitals it only needs to be followed by a space.
fn level<'a>(word: &'a str, after: &'a str) -> Option<(Severity, &'a str)> {
    let len = word.bytes().take(16).take_while(u8::is_ascii_alphabetic).count();
    let (name, tail) = word.split_at(len);
    let marked = match tail.as_bytes() {
        [] => after.starts_with("  ") || after.starts_with('\t') || after.starts_with(" |"),
        [b':' | b',' | b']'] => true,
        _ => return None,
    };
    let severity = bare_level(name).or_else(|| marked.then(|| delimited_level(name)).flatten())?;
    let after = if tail.starts_with(',') { after } else { skip_delimited_space(tail, after) };
    Some((severity, after))
}

/// Skips one space after a level with a delimiter (`:` or `]`) in `tail`; without one, the header may continue.
fn skip_delimited_space<'a>(tail: &'a str, after: &'a str) -> &'a str {
    if tail.is_empty() {
        return after;
    }
    after.strip_prefix(' ').unwrap_or(after)
}

/// Monolog: `channel.ERROR:`.
fn channel_level(word: &str) -> Option<(&str, Severity)> {
    let (channel, level) = word.strip_suffix(':')?.rsplit_once('.')?;
    Some((channel, bare_level(level)?))
}

/// Whether it may be the name of a logger or class, or a file with a line number.
fn is_name(word: &str) -> bool {
    let bytes = word.as_bytes();
    let name_byte = |byte: &u8| byte.is_ascii_alphanumeric() || b"_.$-/@:<>#()*\\[]=".contains(byte);
    (1..=NAME_BYTES_MAX).contains(&bytes.len())
        && matches!(bytes[0], b'A'..=b'Z' | b'a'..=b'z' | b'_' | b'/' | b'<')
        && bytes.iter().all(name_byte)
}

fn is_dotted(word: &str) -> bool {
    word.contains(['.', '$', '@', '/', '_', ':'])
}

/// Whether a word before a colon is a logger rather than prose: `org.apache.Foo`, `BlockManager`, `root`, but not
/// `Failed` or `FooException`.
fn is_logger(name: &str) -> bool {
    if !is_name(name) || name.contains("//") {
        return false;
    }
    let camel = name.as_bytes().windows(2).any(|pair| pair[0].is_ascii_lowercase() && pair[1].is_ascii_uppercase());
    let lower = name.bytes().all(|byte| !byte.is_ascii_uppercase());
    let thrown = name.ends_with("Exception") || name.ends_with("Error");
    (is_dotted(name) || camel || lower) && !thrown
}
