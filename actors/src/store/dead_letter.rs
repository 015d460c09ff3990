//! A dead letter's record as text, and back, mended.

use std::borrow::Cow;

use logweir_engine::record::{Record, Severity};
use serde::{Deserialize, Serialize};

use super::{StoreError, time};

/// What [`DeadLetter::raw`](super::DeadLetter::raw) holds. `attributes` is text, since it may be what was wrong with the record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadLetterRecord<'a> {
    /// RFC 3339.
    pub ts: Cow<'a, str>,
    /// OpenTelemetry's number.
    pub severity: u8,
    /// Service.
    pub service: Cow<'a, str>,
    /// Host.
    pub host: Cow<'a, str>,
    /// Message.
    pub message: Cow<'a, str>,
    /// The text of the attributes; empty for none.
    pub attributes: Cow<'a, str>,
}

/// The record as one JSON object.
pub(crate) fn raw(record: &Record<'_>) -> String {
    let letter = DeadLetterRecord {
        ts: time::text(record.ts_us).into(),
        severity: record.severity.number(),
        service: record.service.into(),
        host: record.host.into(),
        message: record.message.into(),
        attributes: record.attributes.into(),
    };
    serde_json::to_string(&letter).expect("a struct of strings and a number is always JSON")
}

/// A record read back from a letter, with what no database takes replaced by U+FFFD.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Mended {
    pub(crate) ts_us: i64,
    pub(crate) severity: Severity,
    pub(crate) service: String,
    pub(crate) host: String,
    pub(crate) message: String,
    pub(crate) attributes: Option<String>,
}

/// Reads `raw` (as it was written, or as a person has mended it).
pub(crate) fn mend(raw: &str) -> Result<Mended, StoreError> {
    let wrong = |what: String| StoreError::Systemic(format!("the dead letter cannot be read: {what}"));
    let letter: DeadLetterRecord<'_> = serde_json::from_str(raw).map_err(|error| wrong(error.to_string()))?;
    let ts_us = time::parse(&letter.ts).ok_or_else(|| wrong(format!("`{}` is no RFC 3339 time", letter.ts)))?;
    let severity = Severity::from_number(letter.severity)
        .ok_or_else(|| wrong(format!("severity {} is above 24", letter.severity)))?;
    let text = |text: Cow<'_, str>| text.replace('\0', "\u{fffd}");
    let attributes = match text(letter.attributes) {
        empty if empty.is_empty() => None,
        attributes => Some(mend_escapes(&attributes)),
    };
    Ok(Mended {
        ts_us: time::clamp(ts_us),
        severity,
        service: text(letter.service),
        host: text(letter.host),
        message: text(letter.message),
        attributes,
    })
}

/// Replaces `\u0000` and surrogates that stand alone in JSON text by `\ufffd`.
fn mend_escapes(json: &str) -> String {
    let mut mended = String::with_capacity(json.len());
    let mut rest = json;
    while let Some(at) = rest.find('\\') {
        mended.push_str(&rest[..at]);
        rest = &rest[at..];
        let taken = match (escaped(rest), rest.get(6..).and_then(escaped)) {
            (Some(0xd800..=0xdbff), Some(0xdc00..=0xdfff)) => 12,
            (Some(0 | 0xd800..=0xdfff), _) => {
                mended.push_str("\\ufffd");
                rest = &rest[6..];
                continue;
            }
            (Some(_), _) => 6,
            // A short escape: the backslash and the character after it, whatever that is (`\\` above all).
            (None, _) => 1 + rest[1..].chars().next().map_or(0, char::len_utf8),
        };
        mended.push_str(&rest[..taken]);
        rest = &rest[taken..];
    }
    mended.push_str(rest);
    mended
}

/// The code unit of the `\uXXXX` that `text` begins with.
fn escaped(text: &str) -> Option<u16> {
    let hex = text.strip_prefix("\\u")?.get(..4)?;
    if !hex.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    u16::from_str_radix(hex, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_letter_comes_back_as_it_was_but_for_what_no_database_takes() {
        let record = Record {
            ts_us: -5,
            severity: Severity::WARN,
            service: "a\0b",
            host: "",
            message: "quote \" and NUL \0",
            attributes: r#"{"a":"\u0000","b":"\ud83d\ude00","c":"\ud83dx","d":"\\u0000"}"#,
        };
        let mended = mend(&raw(&record)).unwrap();
        assert_eq!(mended.ts_us, -5);
        assert_eq!(mended.service, "a\u{fffd}b");
        assert_eq!(mended.message, "quote \" and NUL \u{fffd}");
        assert_eq!(
            mended.attributes.as_deref(),
            Some(r#"{"a":"\ufffd","b":"\ud83d\ude00","c":"\ufffdx","d":"\\u0000"}"#)
        );
    }

    #[test]
    fn broken_escapes_are_left_for_the_database_to_refuse() {
        for text in ["\\", "\\u00", "\\u+123", "x\\ä", "\\ud800", ""] {
            let mended = mend_escapes(text);
            assert_eq!(mended, if text == "\\ud800" { "\\ufffd" } else { text });
        }
    }

    #[test]
    fn a_letter_that_is_no_record_says_why() {
        assert!(mend("{}").unwrap_err().to_string().contains("missing field"));
        let bad = r#"{"ts":"yesterday","severity":1,"service":"","host":"","message":"","attributes":""}"#;
        assert!(mend(bad).unwrap_err().to_string().contains("yesterday"));
    }
}
