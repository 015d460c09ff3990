//! `logweir parse`: what would become of these lines?
//!
//! Lines in, as many JSON objects out, blank ones too; one line is held at a time. What is stored differs in nothing but the blank
//! lines, which a server skips, and documents that go over many lines.

use std::io::{self, BufRead, Write};

use clap::Args;
use logweir_engine::clock::wall_us;
use serde::Serialize;
use serde_json::value::RawValue;

use super::{ConfigArgs, Failure, Outcome, exit};
use crate::message::Format;
use crate::parser::{Explained, Memory, Rules, explain};

#[derive(Debug, Args)]
pub(super) struct ParseArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// How the lines are read: auto, a format's name, or that of one of the configuration's formats
    #[arg(long, value_name = "NAME", default_value = "auto")]
    format: String,
}

pub(super) fn parse(args: &ParseArgs) -> Outcome {
    let config = args.config.load()?.config;
    let format = config.parse.format_named(&args.format).ok_or_else(|| {
        let names = config.parse.format_names();
        Failure::told(exit::USAGE, format!("--format={:?} is not understood; there are {names}", args.format))
    })?;
    let mut out = io::BufWriter::new(io::stdout().lock());
    let line_bytes_max = config.http.line_bytes_max;
    explain_lines(&mut io::stdin().lock(), &mut out, &config.parse, format, line_bytes_max)?;
    out.flush()?;
    Ok(exit::OK.into())
}

/// One object, in the order in which people read it.
#[derive(Serialize)]
struct Line<'a> {
    ts: String,
    severity: u8,
    severity_text: &'a str,
    service: &'a str,
    host: &'a str,
    message: &'a str,
    attributes: &'a RawValue,
    format: &'a str,
    parse_error: Option<&'a str>,
}

fn explain_lines(
    input: &mut impl BufRead,
    out: &mut impl Write,
    rules: &Rules,
    format: Format,
    line_bytes_max: usize,
) -> Result<(), Failure> {
    let (mut memory, mut line) = (Memory::default(), Vec::new());
    while let Some(bytes) = next_line(input, &mut line, line_bytes_max).map_err(unread)? {
        if bytes > line_bytes_max {
            let why = format!("would be discarded: {bytes} bytes, above http.line_bytes_max of {line_bytes_max}");
            let mut explained = explain(rules, &mut Memory::default(), &line, Format::Plain, wall_us());
            explained.parse_error = Some(why);
            write_line(out, &explained)?;
        } else {
            write_line(out, &explain(rules, &mut memory, &line, format, wall_us()))?;
        }
    }
    Ok(())
}

fn unread(error: io::Error) -> Failure {
    Failure::told(exit::NO_INPUT, format!("standard input: {error}"))
}

/// Reads up to the next line feed and keeps no more than `kept_max` bytes. Returns the line's length; `None` at the end.
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

fn write_line(out: &mut impl Write, explained: &Explained) -> Result<(), Failure> {
    let record = explained.chunk.get(0).expect("a line becomes a record");
    let attributes = if record.attributes.is_empty() { "{}" } else { record.attributes };
    let attributes: &RawValue = serde_json::from_str(attributes)
        .map_err(|error| Failure::told(exit::FAILED, format!("attributes: {error}")))?;
    let line = Line {
        ts: instant(record.ts_us),
        severity: record.severity.number(),
        severity_text: record.severity.name(),
        service: record.service,
        host: record.host,
        message: record.message,
        attributes,
        format: &explained.format,
        parse_error: explained.parse_error.as_deref(),
    };
    serde_json::to_writer(&mut *out, &line).map_err(io::Error::from)?;
    Ok(out.write_all(b"\n")?)
}

/// RFC 3339 in UTC, with as many digits as it needs.
fn instant(ts_us: i64) -> String {
    jiff::Timestamp::from_microsecond(ts_us).map_or_else(|_| ts_us.to_string(), |at| at.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn explained(input: &[u8], line_bytes_max: usize) -> Vec<serde_json::Value> {
        let mut out = Vec::new();
        explain_lines(
            &mut io::BufReader::with_capacity(7, input),
            &mut out,
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
    fn each_line_has_its_object() {
        let lines =
            explained(b"2015-10-18 18:01:47,978 WARN [main] a.B: hot\r\n\n{\"msg\":\"x\",\"n\":1}\n{broken", 1000);
        assert_eq!(
            lines[0],
            serde_json::json!({
                "ts": "2015-10-18T18:01:47.978Z", "severity": 13, "severity_text": "WARN", "service": "unknown_service",
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
    fn a_line_above_the_limit_is_cut_and_says_so() {
        let lines = explained(format!("{}\nshort", "x".repeat(5000)).as_bytes(), 100);
        assert_eq!((lines.len(), lines[0]["message"].as_str().unwrap().len()), (2, 100));
        assert!(lines[0]["parse_error"].as_str().unwrap().contains("5000 bytes, above http.line_bytes_max of 100"));
    }

    proptest! {
        #[test]
        fn as_many_objects_come_out_as_lines_go_in(input in prop::collection::vec(any::<u8>(), 0..300)) {
            let ends = input.iter().filter(|&&byte| byte == b'\n').count();
            let open = usize::from(!input.is_empty() && !input.ends_with(b"\n"));
            prop_assert_eq!(explained(&input, 64).len(), ends + open);
        }
    }
}
