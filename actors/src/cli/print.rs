//! A record on a terminal. Pure.
//!
//! What a record says is somebody else's text: whatever a terminal would take for a command is shown instead of sent.

use std::fmt::Write as _;
use std::io::IsTerminal as _;

use clap::ValueEnum;
use serde::Deserialize;
use serde_json::{Map, Value};

/// A record as the API gives it.
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
}

/// Whether there are colours.
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub(super) enum Colour {
    /// On a terminal, unless $NO_COLOR is set
    #[default]
    Auto,
    /// Always
    Always,
    /// Never
    Never,
}

/// How records are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Output {
    /// For people
    #[default]
    Text,
    /// One JSON object per line
    Ndjson,
    /// With a header line
    Csv,
}

impl Colour {
    /// Whether there are any on standard output.
    pub(super) fn is_on(self) -> bool {
        let terminal =
            || std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|no| no.is_empty());
        match self {
            Self::Auto => terminal(),
            Self::Always => true,
            Self::Never => false,
        }
    }
}

const DIM: &str = "\x1b[2m";
const BOLD: &str = "\x1b[1m";
const RESET: &str = "\x1b[0m";

/// The colour of a severity number.
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

/// Appends one record; lines after its first are indented.
pub(super) fn record(out: &mut String, record: &RecordLine, colours: bool) {
    let put = |out: &mut String, style: &str, text: &str| {
        let text = shown(text);
        match (colours, style) {
            (false, _) | (_, "") => out.push_str(&text),
            (true, style) => write!(out, "{style}{text}{RESET}").expect("a String takes all"),
        }
    };
    // Milliseconds are enough to read.
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
    out.push('\n');
}

/// `text` with every control character but the tab written out.
fn shown(text: &str) -> String {
    let is_command = |c: char| c.is_control() && c != '\t';
    if !text.contains(is_command) {
        return text.to_owned();
    }
    text.chars().fold(String::with_capacity(text.len()), |mut shown, c| {
        if is_command(c) {
            shown.extend(c.escape_default());
        } else {
            shown.push(c);
        }
        shown
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECORD: &str = r#"{"id":"1","ts":"2026-11-21T10:15:00.123456Z","severity":17,"severity_text":"ERROR",
        "service":"cart","host":"web-1","message":"it broke\n  at line 5\u001b[2J","attributes":{"n":5,"user":"a b","x":"y"}}"#;

    fn printed(json: &str, colours: bool) -> String {
        let mut out = String::new();
        record(&mut out, &serde_json::from_str(json).unwrap(), colours);
        out
    }

    #[test]
    fn a_record_is_a_line_and_what_it_says_commands_nothing() {
        let text =
            "2026-11-21T10:15:00.123Z ERROR cart web-1  it broke\n      at line 5\\u{1b}[2J n=5 user=\"a b\" x=y\n";
        assert_eq!(printed(RECORD, false), text);
        let bare = r#"{"ts":"?","severity":0,"severity_text":"UNSPECIFIED","service":"","host":"","message":""}"#;
        assert_eq!(printed(bare, false), "? -    \n");
    }

    #[test]
    fn colours_go_by_severity() {
        assert!(printed(RECORD, true).contains("\x1b[1;31mERROR\x1b[0m"));
        let paints: std::collections::BTreeSet<_> = [1, 5, 9, 13, 17, 21].map(paint).into();
        assert_eq!(paints.len(), 6);
    }
}
