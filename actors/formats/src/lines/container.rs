//! Envelopes of container runtimes around each line: CRI `2016-10-06T00:17:09.669794202Z stdout F …` and Docker's
//! json-file `{"log":"…\n","stream":"stdout","time":"…"}`.
//!
//! The format of the inner line is detected; the envelope supplies what the line lacks, above all its time. A line that
//! the runtime split (`P`) keeps that tag: joining is up to the source that reads the file.

use super::line_format::ParseInner;
use crate::sink::Sink;
use crate::text::unescape;
use crate::time::{self, stamp};

/// Whether a stream name follows an RFC 3339 time.
pub fn looks_like_cri(line: &str) -> bool {
    let head = &line.as_bytes()[..line.len().min(36)];
    matches!(head, [_, _, _, _, b'-', _, _, b'-', _, _, b'T', ..])
        && memchr::memchr(b' ', head).is_some_and(|at| {
            let rest = &line.as_bytes()[at + 1..];
            rest.starts_with(b"stdout ") || rest.starts_with(b"stderr ")
        })
}

/// Parses a line of a CRI runtime, and the line in it.
///
/// # Errors
/// The field that is missing or malformed. Nothing was pushed then.
pub fn parse_cri(line: &str, sink: &mut Sink<'_>, parse_inner: ParseInner) -> Result<(), String> {
    let malformed = |part: &str| format!("not a CRI log line: {part} is missing or malformed");
    let (time, rest) = stamp::leading(line, sink.ts_us()).ok_or_else(|| malformed("the time"))?;
    let mut words = rest.trim_ascii_start().splitn(3, ' ');
    let stream = words.next().filter(|stream| is_stream(stream)).ok_or_else(|| malformed("the stream"))?;
    let tags = words.next().ok_or_else(|| malformed("the tag"))?;
    let inner = words.next().unwrap_or_default();
    match tags.split(':').next() {
        Some("F") => read_inner(inner, sink.instant(time), &[("stream", stream)], sink, parse_inner),
        Some("P") => read_inner(inner, sink.instant(time), &[("stream", stream), ("logtag", "P")], sink, parse_inner),
        _ => return Err(malformed("the tag")),
    }
    Ok(())
}

fn is_stream(word: &str) -> bool {
    matches!(word, "stdout" | "stderr")
}

/// Whether it begins like the lines of Docker's json-file driver.
pub fn looks_like_docker(line: &str) -> bool {
    line.starts_with("{\"log\":\"")
}

/// A line of Docker's json-file driver.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Docker<'a> {
    #[serde(borrow)]
    log: &'a serde_json::value::RawValue,
    stream: &'a str,
    time: &'a str,
}

/// Parses a line of Docker's json-file driver, and the line in it.
///
/// # Errors
/// It has other members. Nothing was pushed then.
pub fn parse_docker(line: &str, sink: &mut Sink<'_>, parse_inner: ParseInner) -> Result<(), String> {
    let malformed = || "not a line of Docker's json-file driver".to_owned();
    let Docker { log, stream, time } = serde_json::from_str(line).map_err(|_| malformed())?;
    let log = log.get().strip_prefix('"').and_then(|log| log.strip_suffix('"')).ok_or_else(malformed)?;
    let time = time::from_text(time).filter(|_| is_stream(stream)).ok_or_else(malformed)?;
    let whole = log.strip_suffix("\\n");
    let inner = whole.unwrap_or(log);
    let mut unescaped = String::new();
    let inner = if memchr::memchr(b'\\', inner.as_bytes()).is_some() {
        unescape(inner, &mut unescaped, &mut sink.sanitized);
        &*unescaped
    } else {
        inner
    };
    let attributes = [("stream", stream), ("logtag", "P")];
    read_inner(
        inner,
        sink.instant(time),
        if whole.is_some() { &attributes[..1] } else { &attributes },
        sink,
        parse_inner,
    );
    Ok(())
}

/// Passes `inner` to `parse_inner`, in an envelope added to the one that may already exist.
fn read_inner(inner: &str, ts_us: i64, attributes: &[(&str, &str)], sink: &mut Sink<'_>, parse_inner: ParseInner) {
    let inner = inner.trim_end_matches(['\r', '\n']);
    let (outer_bytes, outer_ts_us) = (sink.envelope.attributes.len(), sink.envelope.ts_us);
    sink.envelope.ts_us = outer_ts_us.or(Some(ts_us));
    for (name, value) in attributes {
        let members = &mut sink.envelope.attributes;
        for part in [if members.is_empty() { "\"" } else { ",\"" }, name, "\":\"", value, "\""] {
            members.push_str(part);
        }
    }
    if inner.is_empty() {
        sink.push_plain(inner);
    } else {
        parse_inner(inner, sink);
    }
    sink.envelope.attributes.truncate(outer_bytes);
    sink.envelope.ts_us = outer_ts_us;
}
