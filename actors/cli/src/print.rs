//! A record on a terminal. Pure.
//!
//! The text of a record is untrusted: control characters that a terminal would interpret are escaped.

use std::fmt::Write as _;

use serde::Deserialize;
use serde_json::{Map, Value};

/// A record as the API returns it.
#[derive(Debug, Deserialize)]
pub(super) struct RecordLine {
    ts: String,
    severity: u8,
    severity_text: String,
    service: String,
    host: String,
    message: String,
    #[serde(default)]
    attributes: Map<String, Value>,
    /// Attributes that are not a JSON object.
    attributes_text: Option<String>,
    /// The format that was recognized, and why it could not be parsed: `logweir parse`.
    format: Option<String>,
    parse_error: Option<String>,
}

const DIM: &str = "\x1b[2m";
const BOLD: &str = "\x1b[1m";
const RESET: &str = "\x1b[0m";

/// The style of a severity number.
fn paint(severity: u8) -> &'static str {
    match severity {
        21.. => "\x1b[1;97;41m",
        17.. => "\x1b[1;31m",
        13.. => "\x1b[33m",
        9.. => "\x1b[32m",
        5.. => "\x1b[36m",
        _ => DIM,
    }
}

/// Appends one record; lines after the first are indented.
pub(super) fn record(out: &mut String, record: &RecordLine, colors: bool) {
    let put = |out: &mut String, style: &str, text: &str| {
        let text = escaped(text);
        match (colors, style) {
            (false, _) | (_, "") => out.push_str(&text),
            (true, style) => write!(out, "{style}{text}{RESET}").expect("writing to a String does not fail"),
        }
    };
    // Milliseconds are enough for people.
    let ts = record.ts.get(..23).map_or_else(|| record.ts.clone(), |ts| format!("{ts}Z"));
    let level = if record.severity == 0 { "-" } else { &record.severity_text };
    put(out, DIM, &ts);
    out.push(' ');
    put(out, paint(record.severity), &format!("{level:<5}"));
    for (style, text) in [(BOLD, &record.service), (DIM, &record.host)] {
        if !text.is_empty() {
            out.push(' ');
            put(out, style, text);
        }
    }
    for (nth, line) in record.message.lines().enumerate() {
        out.push_str(if nth == 0 { "  " } else { "\n    " });
        put(out, "", line);
    }
    for (name, value) in &record.attributes {
        out.push(' ');
        let value = match value {
            Value::String(text) if !text.is_empty() && !text.contains([' ', '"', '=', '\n']) => text.clone(),
            value => value.to_string(),
        };
        put(out, DIM, &format!("{name}={value}"));
    }
    for (name, text) in [("attributes_text", &record.attributes_text), ("format", &record.format)] {
        if let Some(text) = text {
            put(out, DIM, &format!(" [{name}: {text}]"));
        }
    }
    if let Some(error) = &record.parse_error {
        put(out, paint(13), &format!(" [parse error: {error}]"));
    }
    out.push('\n');
}

/// `text` with every control character except the tab escaped.
pub(super) fn escaped(text: &str) -> String {
    let is_control = |c: char| c.is_control() && c != '\t';
    if !text.contains(is_control) {
        return text.to_owned();
    }
    text.chars().fold(String::with_capacity(text.len()), |mut escaped, c| {
        if is_control(c) {
            escaped.extend(c.escape_default());
        } else {
            escaped.push(c);
        }
        escaped
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECORD: &str = r#"{"id":"1","ts":"2026-11-21T10:15:00.123456Z","severity":17,"severity_text":"ERROR",
        "service":"cart","host":"web-1","message":"it broke\n  at line 5\u001b[2J","attributes":{"n":5,"user":"a b","x":"y"}}"#;

    fn printed(json: &str, colors: bool) -> String {
        let mut out = String::new();
        record(&mut out, &serde_json::from_str(json).unwrap(), colors);
        out
    }

    #[test]
    fn a_record_is_one_line_with_control_characters_escaped() {
        let text =
            "2026-11-21T10:15:00.123Z ERROR cart web-1  it broke\n      at line 5\\u{1b}[2J n=5 user=\"a b\" x=y\n";
        assert_eq!(printed(RECORD, false), text);
        let bare = r#"{"ts":"?","severity":0,"severity_text":"UNSPECIFIED","service":"","host":"","message":""}"#;
        assert_eq!(printed(bare, false), "? -    \n");
    }

    #[test]
    fn severities_have_different_styles() {
        assert!(printed(RECORD, true).contains("\x1b[1;31mERROR\x1b[0m"));
        let paints: std::collections::BTreeSet<_> = [1, 5, 9, 13, 17, 21].map(paint).into();
        assert_eq!(paints.len(), 6);
    }
}
