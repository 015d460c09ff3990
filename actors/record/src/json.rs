//! The JSON object of a record: one shape for every endpoint, command and cache entry.
//!
//! ```json
//! {"ts":"2026-01-31T12:00:00.000000Z","severity":13,"severity_text":"WARN","service":"cart","host":"web-1",
//!  "message":"card declined","attributes":{"order":7}}
//! ```
//! - `ts` is RFC 3339 in UTC with six digits; times outside the years 1 to 9999 are clamped, as in the database.
//! - `severity` is OpenTelemetry's number, `severity_text` its name.
//! - `attributes` is always an object, `{}` for none. A dead letter or a damaged journal may hold text that is not a
//!   valid object: it is then in `attributes_text`.
//! - Endpoints add members (`id`, `lane`, `seq`, …), but neither omit nor rename one of these.

use std::borrow::Cow;
use std::fmt;
use std::io::{self, Write};

use serde::Serialize;
use serde_json::value::RawValue;

use crate::record::Record;
use crate::timestamp;

/// A record as JSON.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(as = RecordMembers))]
pub struct RecordJson<'a> {
    /// RFC 3339, UTC.
    ts: String,
    /// OpenTelemetry's severity number, 0 for unspecified.
    severity: u8,
    /// The severity's name.
    severity_text: &'static str,
    service: &'a str,
    /// Empty where unknown.
    host: &'a str,
    message: &'a str,
    /// `{}` for none.
    #[cfg_attr(feature = "openapi", schema(value_type = Object))]
    attributes: Cow<'a, RawValue>,
    /// The attributes as received; only if they are not a valid JSON object.
    #[serde(skip_serializing_if = "Option::is_none")]
    attributes_text: Option<&'a str>,
}

impl<'a> From<Record<'a>> for RecordJson<'a> {
    fn from(record: Record<'a>) -> Self {
        Self::new(record, strict_object(record.attributes))
    }
}

impl<'a> RecordJson<'a> {
    /// Of a record that a store returned, whose attributes were checked when they were inserted.
    #[must_use]
    pub fn stored(record: Record<'a>) -> Self {
        Self::new(record, object(record.attributes))
    }

    fn new(record: Record<'a>, object: Option<Cow<'a, RawValue>>) -> Self {
        Self {
            ts: timestamp::text(record.ts_us),
            severity: record.severity.number(),
            severity_text: record.severity.name(),
            service: record.service,
            host: record.host,
            message: record.message,
            attributes_text: object.is_none().then_some(record.attributes),
            attributes: object.unwrap_or_else(|| Cow::Owned(raw("{}".to_owned()))),
        }
    }
}

/// `text` as a JSON object without line breaks, `{}` where it is empty; `None` where it is anything else.
fn object(text: &str) -> Option<Cow<'_, RawValue>> {
    let text = if text.trim().is_empty() { "{}" } else { text };
    let value = serde_json::from_str::<&RawValue>(text).ok().filter(|value| value.get().starts_with('{'))?;
    // A line break would end a line of NDJSON; in JSON it can only be between two tokens.
    if text.contains(['\n', '\r']) {
        return Some(Cow::Owned(raw(text.replace(['\n', '\r'], " "))));
    }
    Some(Cow::Borrowed(value))
}

/// `text` as a JSON object without line breaks, `{}` if it is empty. `None` if it is anything else, or contains
/// something, such as a lone surrogate, for which many clients reject the whole document.
#[must_use]
pub fn strict_object(text: &str) -> Option<Cow<'_, RawValue>> {
    let readable = text.is_empty() || serde_json::from_str::<serde_json::Value>(text).is_ok();
    object(text).filter(|_| readable)
}

fn raw(json: String) -> Box<RawValue> {
    RawValue::from_string(json).expect("the text was parsed as JSON before")
}

/// The members of a record's object as text, without braces: `"ts":…,…,"attributes":{…}`. For hot paths: makes no copies,
/// and relies on the attributes being empty or a JSON object, as those of `logweir-formats` are.
#[derive(Clone, Copy, Debug)]
pub struct Members<'a>(pub Record<'a>);

impl fmt::Display for Members<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Record { ts_us, severity, service, host, message, attributes } = self.0;
        let (ts, number, name) = (timestamp::text(ts_us), severity.number(), severity.name());
        write!(f, r#""ts":"{ts}","severity":{number},"severity_text":"{name}""#)?;
        for (key, text) in [("service", service), ("host", host), ("message", message)] {
            write!(f, r#","{key}":"#)?;
            serde_json::to_writer(&mut Bytes(f), text).map_err(|_| fmt::Error)?;
        }
        f.write_str(r#","attributes":"#)?;
        match attributes {
            "" => f.write_str("{}"),
            text if text.contains(['\n', '\r']) => f.write_str(&text.replace(['\n', '\r'], " ")),
            text => f.write_str(text),
        }
    }
}

/// Passes what serde_json writes on to a formatter. It writes whole fragments of text.
struct Bytes<'a, 'f>(&'a mut fmt::Formatter<'f>);

impl Write for Bytes<'_, '_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let text = std::str::from_utf8(bytes).map_err(io::Error::other)?;
        self.0.write_str(text).map_err(io::Error::other)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use crate::record::Severity;

    use super::*;

    const RECORD: Record<'_> = Record {
        ts_us: 1_700_000_000_000_500,
        severity: Severity::ERROR,
        service: "api",
        host: "",
        message: "two\nlines \"quoted\" \u{1}✓\r",
        attributes: "{\"a\":[1,\n2],\"b\":null}",
    };

    fn members(record: Record<'_>) -> String {
        format!("{{{}}}", Members(record))
    }

    fn value(record: Record<'_>) -> String {
        serde_json::to_string(&RecordJson::from(record)).unwrap()
    }

    #[test]
    fn text_and_value_have_one_shape_on_one_line() {
        assert_eq!(
            members(RECORD),
            concat!(
                r#"{"ts":"2023-11-14T22:13:20.000500Z","severity":17,"severity_text":"ERROR","service":"api","host":"","#,
                r#""message":"two\nlines \"quoted\" \u0001✓\r","attributes":{"a":[1, 2],"b":null}}"#
            )
        );
        for (ts_us, attributes) in [(0, ""), (i64::MIN, "{}"), (i64::MAX, r#"{"n":1.50,"n":"twice"}"#), (1, "{\r\n}")] {
            let record = Record { ts_us, attributes, service: "\u{7f}\"\\", ..RECORD };
            assert_eq!(members(record), value(record));
            assert!(!members(record).contains('\n'));
        }
        assert!(value(Record { attributes: "", ..RECORD }).ends_with(r#""attributes":{}}"#));
    }

    #[test]
    fn attributes_that_are_not_an_object_are_kept_as_text() {
        for text in ["not json", "[1]", "null", r#"{"a":"\ud83dx"}"#] {
            let value: serde_json::Value = serde_json::from_str(&value(Record { attributes: text, ..RECORD })).unwrap();
            assert_eq!((&value["attributes"], &value["attributes_text"]), (&serde_json::json!({}), &text.into()));
        }
    }
}
