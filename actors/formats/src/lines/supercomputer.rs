//! Logs of supercomputers, as published by researchers:
//! - BlueGene/L: `- 1117838570 2005.06.03 R02-M1 2005-06-03-15.42.50.675872 R02-M1 RAS KERNEL INFO …`
//! - Thunderbird: `- 1131566461 2005.11.09 dn228 Nov 9 12:01:01 dn228/dn228 crond(pam_unix)[2915]: …`
//! - numbered: `134681 node-246 unix.hw state_change.unavailable 1077804742 1 …`
//!
//! The epoch time is the instant; the local time beside it has no zone and supplies the fraction of the second. The
//! first word is `-` or the category of an alert.

use logweir_record::record::{Record, Severity};

use super::attributes::Attributes;
use super::syslog;
use crate::object::Scratch;
use crate::sink::Sink;
use crate::{level, time};

/// Whether an epoch time is where one of these formats has it.
pub fn looks_like(line: &str) -> bool {
    let head = &line.as_bytes()[..line.len().min(96)];
    let digits = head.iter().take_while(|byte| byte.is_ascii_digit()).count();
    if digits > 0 {
        return head.get(digits) == Some(&b' ')
            && line.get(..head.len()).unwrap_or_default().split(' ').nth(4).is_some_and(is_epoch);
    }
    memchr::memchr(b' ', head).is_some_and(|at| {
        matches!(
            head[at + 1..],
            [b'0'..=b'9', _, _, _, _, _, _, _, _, b'0'..=b'9', b' ', _, _, _, _, b'.', _, _, b'.', _, _, b' ', ..]
        )
    })
}

fn is_epoch(word: &str) -> bool {
    matches!(word.len(), 9 | 10) && word.bytes().all(|byte| byte.is_ascii_digit())
}

/// Parses the line.
///
/// # Errors
/// It has none of the three formats. Nothing was pushed then.
pub fn parse<'a>(line: &'a str, scratch: &mut Scratch<'a>, sink: &mut Sink<'_>) -> Result<(), String> {
    let read = if line.as_bytes().first().is_some_and(u8::is_ascii_digit) { by_number } else { by_alert };
    read(line, scratch, sink).ok_or_else(|| "not a supercomputer log line: a field is missing or malformed".to_owned())
}

fn by_alert<'a>(line: &'a str, scratch: &mut Scratch<'a>, sink: &mut Sink<'_>) -> Option<()> {
    let mut rest = line;
    let mut next = || {
        let (word, after) = rest.split_once(' ').unwrap_or((rest, ""));
        rest = after;
        word
    };
    let (alert, epoch, _date, node, second) = (next(), next(), next(), next(), next());
    let ts_us = time::from_number(epoch).filter(|_| is_epoch(epoch))?.us;
    let mut attributes = Attributes::new(&mut scratch.attributes);
    attributes.text("alert", if alert == "-" { "" } else { alert });
    if second.len() < 10 {
        // `Nov 9 12:01:01 dn228/dn228 crond[7]: …`
        let (_day, _clock, location) = (next(), next(), next());
        attributes.text("location", location);
        let text = rest.trim_ascii_end();
        let (service, pid, message) = syslog::tag(text).unwrap_or(("", "", text));
        attributes.number("pid", pid);
        let severity = Severity::UNSPECIFIED;
        sink.push(Record { ts_us, severity, service, host: node, message, attributes: attributes.finish() });
        return Some(());
    }
    let micros: i64 = second.rsplit_once('.').filter(|(_, micros)| micros.len() == 6)?.1.parse().ok()?;
    let (_node_again, kind, component, level) = (next(), next(), next(), next());
    let severity = level::delimited_level(level)?;
    attributes.text("type", kind);
    attributes.text("component", component);
    attributes.text("local_time", second);
    let (ts_us, message) = (ts_us + micros, rest.trim_ascii());
    sink.push(Record { ts_us, severity, service: "", host: node, message, attributes: attributes.finish() });
    Some(())
}

fn by_number<'a>(line: &'a str, scratch: &mut Scratch<'a>, sink: &mut Sink<'_>) -> Option<()> {
    let mut words = line.splitn(7, ' ');
    let mut next = || words.next();
    let (id, node, component, state, epoch, flag) = (next()?, next()?, next()?, next()?, next()?, next()?);
    let message = next().unwrap_or_default().trim_ascii();
    let digits = |word: &str| word.bytes().all(|byte| byte.is_ascii_digit());
    let ts_us = time::from_number(epoch).filter(|_| is_epoch(epoch) && digits(id) && digits(flag))?.us;
    let mut attributes = Attributes::new(&mut scratch.attributes);
    attributes.number("id", id);
    attributes.text("component", component);
    attributes.text("state", state);
    attributes.number("flag", flag);
    let severity = Severity::UNSPECIFIED;
    sink.push(Record { ts_us, severity, service: "", host: node, message, attributes: attributes.finish() });
    Some(())
}
