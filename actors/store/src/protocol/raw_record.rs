//! Converts a dead letter's record to text and back, sanitized.

use std::borrow::Cow;
use std::fmt::Write as _;

use logweir_record::record::{Record, Severity};
use serde::Deserialize;
use serde_json::value::RawValue;

use logweir_record::json::RecordJson;
use logweir_record::timestamp;

use crate::error::StoreError;

/// The JSON in [`DeadLetter::raw`](crate::DeadLetter::raw) as it is read: a record's [one shape](logweir_record::json),
/// where an operator may have edited it. Unknown members are ignored, so a record from any endpoint can be pasted.
#[derive(Deserialize)]
struct StoredRecord<'a> {
    #[serde(borrow)]
    ts: Cow<'a, str>,
    severity: u8,
    #[serde(borrow)]
    service: Cow<'a, str>,
    #[serde(borrow)]
    host: Cow<'a, str>,
    #[serde(borrow)]
    message: Cow<'a, str>,
    #[serde(borrow)]
    attributes: Option<&'a RawValue>,
    /// Attributes that were not a valid JSON object, and may be what the database rejected.
    #[serde(borrow)]
    attributes_text: Option<Cow<'a, str>>,
}

impl StoredRecord<'_> {
    /// The attributes as JSON text; empty if there are none, `None` if they are not an object.
    fn attributes(&mut self) -> Option<String> {
        match self.attributes.map_or("{}", RawValue::get) {
            "{}" | "null" => Some(self.attributes_text.take().unwrap_or_default().into_owned()),
            object => object.starts_with('{').then(|| object.to_owned()),
        }
    }
}

/// Returns the record as a JSON object.
pub(crate) fn raw(record: &Record<'_>) -> String {
    serde_json::to_string(&RecordJson::from(*record)).expect("a struct of strings, numbers and JSON is always JSON")
}

/// Escapes what is not ASCII as `\uXXXX`, for databases whose encoding lacks characters. JSON keeps its meaning: there,
/// such characters occur in strings alone.
#[cfg_attr(not(feature = "postgres"), allow(dead_code))] // only PostgreSQL has it
pub(crate) fn ascii(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_ascii() {
            escaped.push(character);
            continue;
        }
        for unit in character.encode_utf16(&mut [0; 2]) {
            // Writing to a string does not fail.
            let _ = write!(escaped, "\\u{unit:04x}");
        }
    }
    escaped
}

/// A dead letter's record, with characters that no database accepts replaced by U+FFFD.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct SanitizedRecord {
    pub(crate) ts_us: i64,
    pub(crate) severity: Severity,
    pub(crate) service: String,
    pub(crate) host: String,
    pub(crate) message: String,
    pub(crate) attributes: Option<String>,
}

/// Parses `raw`, as written by [`raw`] or as edited by an operator.
pub(crate) fn parse_raw(raw: &str) -> Result<SanitizedRecord, StoreError> {
    let wrong = |what: String| StoreError::Systemic(format!("invalid dead letter: {what}"));
    let mut letter: StoredRecord<'_> = serde_json::from_str(raw).map_err(|error| wrong(error.to_string()))?;
    let ts_us = timestamp::parse(&letter.ts)
        .ok_or_else(|| wrong(format!("invalid ts \"{}\": expected an RFC 3339 time", letter.ts)))?;
    let severity = Severity::from_number(letter.severity)
        .ok_or_else(|| wrong(format!("invalid severity {}: expected 0 to 24", letter.severity)))?;
    let text = |text: Cow<'_, str>| text.replace('\0', "\u{fffd}");
    let attributes =
        letter.attributes().ok_or_else(|| wrong("invalid attributes: expected a JSON object".to_owned()))?;
    let attributes = match text(attributes.into()) {
        empty if empty.is_empty() => None,
        attributes => Some(replace_invalid_escapes(&attributes)),
    };
    Ok(SanitizedRecord {
        ts_us: timestamp::clamp(ts_us),
        severity,
        service: text(letter.service),
        host: text(letter.host),
        message: text(letter.message),
        attributes,
    })
}

/// Replaces `\u0000` and lone surrogates in JSON text by `\ufffd`.
fn replace_invalid_escapes(json: &str) -> String {
    let mut sanitized = String::with_capacity(json.len());
    let mut rest = json;
    while let Some(at) = rest.find('\\') {
        sanitized.push_str(&rest[..at]);
        rest = &rest[at..];
        let taken = match (escaped(rest), rest.get(6..).and_then(escaped)) {
            (Some(0xd800..=0xdbff), Some(0xdc00..=0xdfff)) => 12,
            (Some(0 | 0xd800..=0xdfff), _) => {
                sanitized.push_str("\\ufffd");
                rest = &rest[6..];
                continue;
            }
            (Some(_), _) => 6,
            // A short escape: the backslash and the character after it, whatever that is (`\\` above all).
            (None, _) => 1 + rest[1..].chars().next().map_or(0, char::len_utf8),
        };
        sanitized.push_str(&rest[..taken]);
        rest = &rest[taken..];
    }
    sanitized.push_str(rest);
    sanitized
}

/// Returns the code unit of the `\uXXXX` at the start of `text`.
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
    fn a_dead_letter_round_trips_except_for_characters_that_no_database_accepts() {
        let record = Record {
            ts_us: -5,
            severity: Severity::WARN,
            service: "a\0b",
            host: "",
            message: "quote \" and NUL \0",
            attributes: r#"{"a":"\u0000","b":"\ud83d\ude00","c":"\ud83dx","d":"\\u0000"}"#,
        };
        let sanitized = parse_raw(&raw(&record)).unwrap();
        assert_eq!(sanitized.ts_us, -5);
        assert_eq!(sanitized.service, "a\u{fffd}b");
        assert_eq!(sanitized.message, "quote \" and NUL \u{fffd}");
        assert_eq!(
            sanitized.attributes.as_deref(),
            Some(r#"{"a":"\ufffd","b":"\ud83d\ude00","c":"\ufffdx","d":"\\u0000"}"#)
        );
    }

    #[test]
    fn a_record_in_ascii_is_the_same_record() {
        let record = Record {
            ts_us: 5,
            severity: Severity::WARN,
            service: "zwölf",
            host: "日本語",
            message: "𝕦 \" \u{7f}\u{80}\u{fffd}",
            attributes: r#"{"é":"\u00e9 🎉"}"#,
        };
        let text = raw(&record);
        let escaped = ascii(&text);
        assert!(escaped.is_ascii() && escaped.contains(r"\ud835\udd66"), "{escaped}");
        let (plain, read) = (parse_raw(&text).unwrap(), parse_raw(&escaped).unwrap());
        assert_eq!((&plain.host, &plain.message, &plain.service), (&read.host, &read.message, &read.service));
        let json = |text: Option<String>| serde_json::from_str::<serde_json::Value>(&text.unwrap()).unwrap();
        assert_eq!(json(plain.attributes), json(read.attributes));
    }

    #[test]
    fn invalid_escapes_are_left_for_the_database_to_reject() {
        for text in ["\\", "\\u00", "\\u+123", "x\\ä", "\\ud800", ""] {
            let sanitized = replace_invalid_escapes(text);
            assert_eq!(sanitized, if text == "\\ud800" { "\\ufffd" } else { text });
        }
    }

    #[test]
    fn an_invalid_dead_letter_is_reported_with_its_cause() {
        assert!(parse_raw("{}").unwrap_err().to_string().contains("missing field"));
        let bad = r#"{"ts":"yesterday","severity":1,"service":"","host":"","message":"","attributes":{}}"#;
        assert!(parse_raw(bad).unwrap_err().to_string().contains("yesterday"));
    }
}
