//! `logweir journal`: any journal's directory, also an orphaned one, without the process that wrote it.

use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use jiff::Timestamp;
use logweir_engine::codec;
use logweir_engine::journal::{self, Damage, Frame, LaneId, OpenError, Report};
use logweir_engine::record::Record;
use serde::Serialize;
use serde_json::value::RawValue;

use super::{ConfigArgs, Failure, Outcome, exit};
use crate::config::keys::Unit;
use crate::config::value::show_number;

#[derive(Debug, Subcommand)]
pub(super) enum JournalCommand {
    /// Read every byte and say how it stands; changes nothing, also while a server runs. Exit code 1 if there is damage.
    Check(CheckArgs),
    /// Print the records in it, one JSON object per line.
    Dump(DumpArgs),
    /// Keep aside what is torn or damaged, as a start would. No server may run.
    Repair(CheckArgs),
    /// Bring everything in it into the database, then seal it. No server may run.
    Drain(DrainArgs),
}

#[derive(Debug, Args)]
pub(super) struct CheckArgs {
    /// The journal, or the data_dir that it lies in
    #[arg(long)]
    dir: PathBuf,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct DumpArgs {
    /// The journal, or the data_dir that it lies in
    #[arg(long)]
    dir: PathBuf,
    /// Only this lane
    #[arg(long)]
    lane: Option<LaneId>,
    /// From this sequence number on
    #[arg(long, default_value_t = 0)]
    from_seq: u64,
}

#[derive(Debug, Args)]
pub(super) struct DrainArgs {
    /// The journal, or the data_dir that it lies in
    #[arg(long)]
    dir: PathBuf,
    /// Of a copy that another copy has overtaken: save what only this one has
    #[arg(long)]
    adopt: bool,
    #[command(flatten)]
    config: ConfigArgs,
}

/// `dir` itself, or the journal in it if it is a `data_dir`.
///
/// # Errors
/// There is no such directory: looking must not make one.
pub(super) fn journal_dir(dir: &Path) -> Result<PathBuf, Failure> {
    let inner = dir.join("journal");
    match (inner.is_dir(), dir.is_dir()) {
        (true, _) => Ok(inner),
        (_, true) => Ok(dir.to_owned()),
        _ => Err(Failure::told(exit::NO_INPUT, format!("there is no directory {}", dir.display()))),
    }
}

/// What an engine's refusal means to a script.
pub(super) fn refused(error: OpenError) -> Failure {
    let code = match error {
        OpenError::Io { .. } => exit::DISK,
        OpenError::Locked { .. } | OpenError::TooNew { .. } => exit::UNAVAILABLE,
    };
    Failure::told(code, error)
}

pub(super) fn journal(command: &JournalCommand) -> Outcome {
    match command {
        JournalCommand::Check(args) => {
            let report = journal::check(&journal_dir(&args.dir)?).map_err(refused)?;
            print(&report, args.json)?;
            Ok(if report.damage.is_empty() { exit::OK } else { exit::FAILED }.into())
        }
        JournalCommand::Repair(args) => {
            let report = journal::repair(&journal_dir(&args.dir)?).map_err(refused)?;
            print(&report, args.json)?;
            Ok(exit::OK.into())
        }
        JournalCommand::Dump(args) => dump(args),
        JournalCommand::Drain(args) => {
            let dir = journal_dir(&args.dir)?;
            Ok(crate::run::drain_journal(args.config.load()?.config, &dir, args.adopt))
        }
    }
}

fn print(report: &Report, json: bool) -> io::Result<()> {
    let mut out = BufWriter::new(io::stdout().lock());
    if json {
        writeln!(out, "{}", serde_json::to_string(report).map_err(io::Error::other)?)?;
        return out.flush();
    }
    let bytes = |number| show_number(number, Unit::Bytes);
    match report.writer {
        Some(writer) => writeln!(out, "writer {writer}, {} runs", report.runs.len() + 1)?,
        None => writeln!(out, "no segment of a journal is here")?,
    }
    let state = match (report.locked, report.clean) {
        (true, _) => "a process has it open; its newest frames may still be on their way",
        (_, true) => "sealed: the last run ended in order",
        _ => "not sealed: the last run ended on the way",
    };
    writeln!(out, "{state}")?;
    for segment in &report.segments {
        let (number, size, frames) = (segment.number, bytes(segment.bytes), segment.frames);
        writeln!(
            out,
            "segment {number:>8}  {size:>8}  {frames:>8} frames  seq {}..{}",
            segment.seq_first, segment.seq_last
        )?;
    }
    for (lane, tail) in &report.lanes {
        writeln!(out, "lane {lane}: up to seq {}, {} records since the journal was made", tail.seq, tail.records)?;
    }
    if report.torn_bytes > 0 {
        writeln!(out, "torn: {} bytes at the end that nobody was promised", report.torn_bytes)?;
    }
    if report.quarantine_bytes > 0 {
        writeln!(out, "kept aside in quarantine/: {}", bytes(report.quarantine_bytes))?;
    }
    for damage in &report.damage {
        writeln!(out, "damage: {}", told(damage))?;
    }
    if report.damage.is_empty() {
        writeln!(out, "no damage")?;
    }
    out.flush()
}

/// One damage in a line.
pub(super) fn told(damage: &Damage) -> String {
    let Damage { segment, offset, bytes, seq_first, seq_last, what } = damage;
    let lost = if seq_first <= seq_last { format!("seq {seq_first}..{seq_last} lost") } else { "no frame lost".into() };
    format!("segment {segment} at {offset}, {bytes} bytes, {lost}: {what}")
}

/// One record as `dump` prints it.
#[derive(Serialize)]
struct Line<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    ts: Option<String>,
    /// For times that no calendar has.
    #[serde(skip_serializing_if = "Option::is_none")]
    ts_us: Option<i64>,
    severity: &'static str,
    severity_number: u8,
    service: &'a str,
    host: &'a str,
    message: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    attributes: Option<Attributes<'a>>,
    lane: LaneId,
    seq: u64,
    row: usize,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Attributes<'a> {
    Json(&'a RawValue),
    Text(&'a str),
}

impl<'a> Line<'a> {
    fn new(record: Record<'a>, frame: &Frame, row: usize) -> Self {
        let ts = Timestamp::from_microsecond(record.ts_us).ok().map(|ts| ts.to_string());
        // A line feed inside would end the NDJSON line.
        let json = || serde_json::from_str(record.attributes).ok().filter(|_| !record.attributes.contains('\n'));
        let attributes = (!record.attributes.is_empty())
            .then(|| json().map_or(Attributes::Text(record.attributes), Attributes::Json));
        Self {
            ts_us: ts.is_none().then_some(record.ts_us),
            ts,
            severity: record.severity.name(),
            severity_number: record.severity.number(),
            service: record.service,
            host: record.host,
            message: record.message,
            attributes,
            lane: frame.lane,
            seq: frame.seq,
            row,
        }
    }
}

fn dump(args: &DumpArgs) -> Outcome {
    let dir = journal_dir(&args.dir)?;
    let mut out = BufWriter::new(io::stdout().lock());
    let mut written = Ok(());
    let mut undecoded: u64 = 0;
    journal::dump(&dir, args.lane, args.from_seq, &mut |frame, segment, offset| {
        if written.is_err() {
            return;
        }
        match codec::decode(frame.codec, &frame.payload) {
            Ok(chunk) => {
                written = chunk.iter().enumerate().try_for_each(|(row, record)| {
                    serde_json::to_writer(&mut out, &Line::new(record, &frame, row))?;
                    out.write_all(b"\n")
                });
            }
            Err(error) => {
                undecoded += 1;
                let _ = writeln!(
                    io::stderr(),
                    "logweir: lane {} seq {} (segment {segment} at {offset}): {error}",
                    frame.lane,
                    frame.seq
                );
            }
        }
    })
    .map_err(refused)?;
    written?;
    out.flush()?;
    Ok(if undecoded == 0 { exit::OK } else { exit::FAILED }.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use logweir_engine::record::Severity;

    fn line(ts_us: i64, attributes: &str) -> serde_json::Value {
        let frame = Frame {
            seq: 7,
            lane: 1,
            lane_prev_seq: 0,
            lane_records: 1,
            records: 1,
            codec: 1,
            payload_crc: 0,
            payload: vec![],
        };
        let record = Record { ts_us, severity: Severity::WARN, service: "s", host: "", message: "a\nb", attributes };
        let text = serde_json::to_string(&Line::new(record, &frame, 3)).unwrap();
        assert!(!text.contains('\n'));
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn a_record_is_one_line_whatever_is_in_it() {
        let one = line(1_700_000_000_000_001, r#"{"a":[1]}"#);
        assert_eq!(one["ts"], "2023-11-14T22:13:20.000001Z");
        assert_eq!(one["attributes"]["a"][0], 1);
        assert_eq!((&one["seq"], &one["row"], &one["severity"]), (&7.into(), &3.into(), &"WARN".into()));
        assert_eq!(line(0, "{\n}")["attributes"], "{\n}");
        assert_eq!(line(0, "not json")["attributes"], "not json");
        assert_eq!(line(0, "").get("attributes"), None);
        assert_eq!(line(i64::MAX, "")["ts_us"], i64::MAX);
    }
}
