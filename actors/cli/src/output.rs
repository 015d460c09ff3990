//! Output formats and colors, the same for every command.

use std::io::{self, IsTerminal as _, Write};

use clap::ValueEnum;
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use serde::{Deserialize, Serialize};

use crate::exit;
use crate::failure::Failure;
use crate::print;
use crate::terminal::wants_color;

/// How results are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Output {
    /// For people.
    #[default]
    Text,
    /// One document: an array of records, or one object.
    Json,
    /// One object per line.
    Ndjson,
    /// With a header line.
    Csv,
}

const NAMES: [(Output, &str, &str); 4] = [
    (Output::Text, "text", "Human-readable text"),
    (Output::Json, "json", "One JSON document"),
    (Output::Ndjson, "ndjson", "One JSON object per line"),
    (Output::Csv, "csv", "Comma-separated values with a header line (RFC 4180)"),
];

/// A parser of `--output` for a command that supports `formats`.
pub(super) fn among<const N: usize>(formats: [Output; N]) -> impl TypedValueParser<Value = Output> {
    let values = NAMES.into_iter().filter(move |(output, ..)| formats.contains(output));
    let values = values.map(|(_, name, help)| PossibleValue::new(name).help(help));
    PossibleValuesParser::new(values.collect::<Vec<_>>()).map(|name| {
        let known = NAMES.into_iter().find(|(_, known, _)| *known == name);
        known.map_or(Output::Text, |(output, ..)| output)
    })
}

/// When output is colored.
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub(super) enum Color {
    /// On a terminal; honors $NO_COLOR, $CLICOLOR_FORCE and TERM=dumb
    #[default]
    Auto,
    /// Always
    Always,
    /// Never
    Never,
}

impl Color {
    /// Whether standard output is colored.
    pub(super) fn is_on(self) -> bool {
        match self {
            Self::Auto => wants_color(io::stdout().is_terminal()),
            Self::Always => true,
            Self::Never => false,
        }
    }
}

/// Writes records, each of which comes as one line of JSON (or of CSV).
pub(super) struct Records<W> {
    out: W,
    output: Output,
    colors: bool,
    written: u64,
}

impl<W: Write> Records<W> {
    pub(super) fn new(out: W, output: Output, colors: bool) -> Self {
        Self { out, output, colors, written: 0 }
    }

    /// Writes one record.
    pub(super) fn write(&mut self, line: &str) -> Result<(), Failure> {
        match self.output {
            Output::Text => {
                let record = serde_json::from_str(line).map_err(|error| {
                    Failure::new(exit::FAILED, format!("unexpected response: not a record ({error}): {line:.200}"))
                })?;
                let mut text = String::new();
                print::record(&mut text, &record, self.colors);
                self.out.write_all(text.as_bytes())?;
            }
            Output::Json => write!(self.out, "{}{line}", if self.written == 0 { "[\n" } else { ",\n" })?,
            Output::Ndjson | Output::Csv => writeln!(self.out, "{line}")?,
        }
        self.written += 1;
        Ok(())
    }

    /// Writes one record that is not JSON yet.
    pub(super) fn serialize(&mut self, record: &impl Serialize) -> Result<(), Failure> {
        self.write(&serde_json::to_string(record).map_err(io::Error::other)?)
    }

    /// Makes what was written so far visible.
    pub(super) fn flush(&mut self) -> Result<(), Failure> {
        Ok(self.out.flush()?)
    }

    /// Ends the document.
    pub(super) fn finish(mut self) -> Result<(), Failure> {
        if self.output == Output::Json {
            self.out.write_all(if self.written == 0 { b"[]\n" } else { b"\n]\n" })?;
        }
        self.flush()
    }
}

/// Writes `value` as one JSON document, on one line.
pub(super) fn json(out: &mut impl Write, value: &impl Serialize) -> io::Result<()> {
    writeln!(out, "{}", serde_json::to_string(value).map_err(io::Error::other)?)?;
    out.flush()
}

/// `1 run`, `2 runs`.
pub(super) fn count(number: u64, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

/// The id of a record, as one line of NDJSON.
pub(super) fn record_id(line: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct Identified {
        id: Option<String>,
    }
    serde_json::from_str::<Identified>(line).ok()?.id
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_become_one_array_or_lines() {
        let written = |output, lines: &[&str]| {
            let mut out = Vec::new();
            let mut records = Records::new(&mut out, output, false);
            lines.iter().for_each(|line| records.write(line).unwrap());
            records.finish().unwrap();
            String::from_utf8(out).unwrap()
        };
        assert_eq!(written(Output::Json, &[]), "[]\n");
        assert_eq!(written(Output::Json, &["{}", "{}"]), "[\n{},\n{}\n]\n");
        assert_eq!(written(Output::Ndjson, &["{}", "{}"]), "{}\n{}\n");
        assert_eq!([0, 1, 2].map(|number| count(number, "run")), ["0 runs", "1 run", "2 runs"]);
    }
}
