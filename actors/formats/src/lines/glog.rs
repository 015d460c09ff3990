//! Google's glog and Kubernetes' klog: `I0115 10:00:00.123456   1234 file.go:123] message`, with structured messages
//! `"message" name="value"`. The C++ library also writes the year: `I20210115 …`.

use logweir_record::record::Record;

use super::attributes::{Attributes, pair};
use crate::level;
use crate::object::Scratch;
use crate::sink::Sink;
use crate::time::stamp;

/// Whether it begins with a letter, four or eight digits and a time of day.
pub fn looks_like(line: &str) -> bool {
    matches!(
        line.as_bytes(),
        [b'I' | b'W' | b'E' | b'F', b'0'..=b'9', _, _, b'0'..=b'9', b' ', ..]
            | [b'I' | b'W' | b'E' | b'F', b'0'..=b'9', _, _, _, _, _, _, b'0'..=b'9', b' ', ..]
    )
}

/// Parses the line.
///
/// # Errors
/// The field that is missing or malformed. Nothing was pushed then.
pub fn parse<'a>(line: &'a str, scratch: &mut Scratch<'a>, sink: &mut Sink<'_>) -> Result<(), String> {
    let malformed = |part: &str| format!("not a glog line: {part} is missing or malformed");
    let severity = line.bytes().next().and_then(level::of_letter).ok_or_else(|| malformed("the level"))?;
    let (time, rest) = stamp::leading_packed(&line[1..], sink.ts_us()).ok_or_else(|| malformed("the time"))?;
    let (thread, rest) = rest.trim_ascii_start().split_once(' ').ok_or_else(|| malformed("the thread"))?;
    let (caller, message) = rest.split_once(']').ok_or_else(|| malformed("the source location"))?;
    let message = message.trim_ascii();
    let mut attributes = Attributes::new(&mut scratch.attributes);
    attributes.number("tid", thread);
    attributes.text("caller", caller);
    attributes.tail(message);
    let message = structured(message).unwrap_or(message);
    let ts_us = sink.instant(time);
    sink.push(Record { ts_us, severity, service: "", host: "", message, attributes: attributes.finish() });
    Ok(())
}

/// The text in the quotes, if only pairs follow.
fn structured(message: &str) -> Option<&str> {
    let (quoted, mut rest) = message.strip_prefix('"')?.split_once('"')?;
    while !rest.trim_ascii_start().is_empty() {
        (_, rest) = pair(rest.trim_ascii_start())?;
    }
    (!quoted.contains('\\')).then_some(quoted)
}
