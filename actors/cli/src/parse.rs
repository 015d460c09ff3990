//! `logweir parse`: shows how lines would be parsed, without storing anything.
//!
//! Writes one record per line of input, also for blank lines; one line is held in memory at a time. Storing differs only in
//! blank lines, which a server skips, and in documents that span lines.

use std::io::{self, BufRead, Write};

use clap::Args;
use logweir_engine::clock::wall_us;
use serde::Serialize;

use crate::args::ConfigArgs;
use crate::exit;
use crate::failure::{Failure, Outcome};
use crate::output::{self, Color, Output, Records};
use logweir_formats::Format;
use logweir_formats::{Explained, Memory, Rules, explain};
use logweir_record::json::RecordJson;

#[derive(Debug, Args)]
pub(super) struct ParseArgs {
    /// Format of the lines: auto, a built-in format, or a [formats.NAME] of the configuration
    ///
    /// `logweir help formats` lists the built-in formats.
    #[arg(long, value_name = "NAME", default_value = "auto")]
    format: String,
    /// Output format
    #[arg(long, short, value_name = "FORMAT", default_value = "ndjson",
        value_parser = output::among([Output::Text, Output::Json, Output::Ndjson]))]
    output: Output,
    /// Color the text output by severity
    #[arg(long, value_name = "WHEN", value_enum, default_value_t)]
    color: Color,
    #[command(flatten)]
    pub(super) config: ConfigArgs,
}

pub(super) fn parse(args: &ParseArgs) -> Outcome {
    let config = args.config.load()?.config;
    let format = config.parse.format_named(&args.format).ok_or_else(|| {
        let names = config.parse.format_names();
        Failure::new(exit::USAGE, format!("unknown --format {:?}: expected one of {names}", args.format))
    })?;
    let out = io::BufWriter::new(io::stdout().lock());
    let mut records = Records::new(out, args.output, args.color.is_on());
    let line_bytes_max = config.http.line_bytes_max;
    explain_lines(&mut io::stdin().lock(), &mut records, &config.parse, format, line_bytes_max)?;
    records.finish()?;
    Ok(exit::OK.into())
}

/// The record of a line, and how it was parsed.
#[derive(Serialize)]
struct Line<'a> {
    #[serde(flatten)]
    record: RecordJson<'a>,
    format: &'a str,
    parse_error: Option<&'a str>,
}

fn explain_lines(
    input: &mut impl BufRead,
    records: &mut Records<impl Write>,
    rules: &Rules,
    format: Format,
    line_bytes_max: usize,
) -> Result<(), Failure> {
    let (mut memory, mut line) = (Memory::default(), Vec::new());
    while let Some(bytes) = next_line(input, &mut line, line_bytes_max).map_err(unreadable)? {
        if bytes > line_bytes_max {
            let why = format!("would be rejected: {bytes} bytes exceed http.line_bytes_max ({line_bytes_max} bytes)");
            let mut explained = explain(rules, &mut Memory::default(), &line, Format::Plain, wall_us());
            explained.parse_error = Some(why);
            write_line(records, &explained)?;
        } else {
            write_line(records, &explain(rules, &mut memory, &line, format, wall_us()))?;
        }
    }
    Ok(())
}

fn unreadable(error: io::Error) -> Failure {
    Failure::new(exit::NO_INPUT, format!("standard input: {error}"))
}

/// Reads up to the next line feed and keeps at most `kept_max` bytes. Returns the line's length, `None` at the end.
fn next_line(input: &mut impl BufRead, line: &mut Vec<u8>, kept_max: usize) -> io::Result<Option<usize>> {
    line.clear();
    let mut bytes = 0;
    loop {
        let piece = match input.fill_buf() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            piece => piece?,
        };
        if piece.is_empty() {
            return Ok((bytes > 0).then_some(bytes));
        }
        let end = memchr::memchr(b'\n', piece);
        let part = &piece[..end.unwrap_or(piece.len())];
        line.extend_from_slice(&part[..part.len().min(kept_max.saturating_sub(line.len()))]);
        bytes += part.len();
        let used = part.len() + usize::from(end.is_some());
        input.consume(used);
        if end.is_some() {
            return Ok(Some(bytes));
        }
    }
}

fn write_line(records: &mut Records<impl Write>, explained: &Explained) -> Result<(), Failure> {
    let record = explained.chunk.get(0).expect("explain() returns one record");
    let (format, parse_error) = (&*explained.format, explained.parse_error.as_deref());
    records.serialize(&Line { record: record.into(), format, parse_error })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn explained(input: &[u8], line_bytes_max: usize) -> Vec<serde_json::Value> {
        let mut out = Vec::new();
        let mut records = Records::new(&mut out, Output::Ndjson, false);
        explain_lines(
            &mut io::BufReader::with_capacity(7, input),
            &mut records,
            Rules::built_in(),
            Format::Auto,
            line_bytes_max,
        )
        .unwrap();
        out.split(|&byte| byte == b'\n')
            .filter(|line| !line.is_empty())
            .map(|line| serde_json::from_slice(line).unwrap())
            .collect()
    }

    #[test]
    fn each_line_becomes_one_object() {
        let lines =
            explained(b"2015-10-18 18:01:47,978 WARN [main] a.B: hot\r\n\n{\"msg\":\"x\",\"n\":1}\n{broken", 1000);
        assert_eq!(
            lines[0],
            serde_json::json!({
                "ts": "2015-10-18T18:01:47.978000Z", "severity": 13, "severity_text": "WARN", "service": "unknown_service",
                "host": "", "message": "hot", "attributes": {"logger": "a.B", "thread": "main"}, "format": "application",
                "parse_error": null,
            })
        );
        assert_eq!((lines[1]["message"].as_str(), lines[1]["format"].as_str()), (Some(""), Some("plain")));
        assert_eq!(
            (&lines[2]["attributes"], lines[2]["format"].as_str()),
            (&serde_json::json!({"n": 1}), Some("ndjson"))
        );
        assert_eq!(lines[3]["message"], "{broken");
        assert!(lines[3]["parse_error"].as_str().unwrap().contains("column"), "{}", lines[3]);
        assert_eq!(lines.len(), 4);
    }

    #[test]
    fn a_line_above_the_limit_is_truncated_and_reported() {
        let lines = explained(format!("{}\nshort", "x".repeat(5000)).as_bytes(), 100);
        assert_eq!((lines.len(), lines[0]["message"].as_str().unwrap().len()), (2, 100));
        assert!(
            lines[0]["parse_error"].as_str().unwrap().contains("5000 bytes exceed http.line_bytes_max (100 bytes)")
        );
    }

    proptest! {
        #[test]
        fn there_are_as_many_objects_as_lines(input in prop::collection::vec(any::<u8>(), 0..300)) {
            let ends = input.iter().filter(|&&byte| byte == b'\n').count();
            let open = usize::from(!input.is_empty() && !input.ends_with(b"\n"));
            prop_assert_eq!(explained(&input, 64).len(), ends + open);
        }
    }
}
