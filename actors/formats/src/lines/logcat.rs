//! Android's logcat in the `threadtime` format: `03-17 16:13:38.811  1702  2395 D WindowManager: …`.

use logweir_record::record::{Record, Severity};

use super::attributes::Attributes;
use crate::object::Scratch;
use crate::sink::Sink;
use crate::time::stamp;

/// Whether it begins with a date without a year and a time with milliseconds.
pub fn looks_like(line: &str) -> bool {
    matches!(
        line.as_bytes(),
        [b'0'..=b'1', b'0'..=b'9', b'-', b'0'..=b'3', _, b' ', _, _, b':', _, _, b':', _, _, b'.', _, _, _, b' ', ..]
    )
}

/// Parses the line.
///
/// # Errors
/// The field that is missing or malformed. Nothing was pushed then.
pub fn parse<'a>(line: &'a str, scratch: &mut Scratch<'a>, sink: &mut Sink<'_>) -> Result<(), String> {
    let malformed = |part: &str| format!("not a logcat line: {part} is missing or malformed");
    let (time, mut rest) = stamp::leading(line, sink.ts_us()).ok_or_else(|| malformed("the time"))?;
    let mut next = || {
        let (word, after) = rest.trim_ascii_start().split_once(' ')?;
        rest = after;
        Some(word)
    };
    let (pid, tid) = (next().ok_or_else(|| malformed("the process"))?, next().ok_or_else(|| malformed("the thread"))?);
    let severity = match next() {
        Some("V") => Severity::TRACE,
        Some("D") => Severity::DEBUG,
        Some("I") => Severity::INFO,
        Some("W") => Severity::WARN,
        Some("E") => Severity::ERROR,
        Some("F" | "A") => Severity::FATAL,
        _ => return Err(malformed("the level")),
    };
    // A tag may contain a colon, but not one followed by a space.
    let ends = || rest.strip_suffix(':').map(|tag| (tag, ""));
    let (tag, message) = rest.split_once(": ").or_else(ends).ok_or_else(|| malformed("the tag"))?;
    let mut attributes = Attributes::new(&mut scratch.attributes);
    attributes.number("pid", pid);
    attributes.number("tid", tid);
    attributes.text("logger", tag.trim_ascii());
    let (ts_us, message) = (sink.instant(time), message.trim_ascii());
    sink.push(Record { ts_us, severity, service: "", host: "", message, attributes: attributes.finish() });
    Ok(())
}
