//! `logweir journal`: inspects, repairs and drains any journal directory, also an orphaned one, without the process that
//! wrote it.

use std::io::{self, BufWriter, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use jiff::Timestamp;
use logweir_engine::journal::{self, Damage, Frame, LaneId, OpenError, Report};
use logweir_record::codec;
use logweir_record::record::Record;
use serde::Serialize;
use uuid::Uuid;

use crate::args::{ConfigArgs, StoreArgs};
use crate::exit;
use crate::failure::{Failure, Outcome};
use crate::output::{self, Color, Output, Records, count};
use logweir::config::{Unit, show_number};
use logweir_record::json::RecordJson;

#[derive(Debug, Subcommand)]
pub(super) enum JournalCommand {
    /// Verify every byte of a journal
    ///
    /// Changes nothing; can be used while a server is running. Exits with 1 if the journal is damaged, and with 66 if the directory
    /// contains no journal.
    Check(CheckArgs),
    /// Print the records of a journal
    ///
    /// Changes nothing; can be used while a server is running. Each record has its lane, the sequence number of its frame and its
    /// row in that frame. What cannot be read is skipped and named on standard error, and the exit code is 1.
    Dump(DumpArgs),
    /// Truncate a torn tail and move damaged bytes to quarantine/, as the server does when it starts
    ///
    /// Stop the server that uses the journal first.
    Repair(CheckArgs),
    /// Write everything in a journal to the database, then seal the journal
    ///
    /// For a journal whose server will not run again. Stop that server first.
    Drain(DrainArgs),
    /// Let a journal that the database does not recognize continue
    ///
    /// For the message that the journal does not contain the run that last acquired its lease, if no other copy of the
    /// journal has ever been used. Stop the server that uses the journal first, and start it afterwards: it continues
    /// where the database ends. Nothing is changed while any process with this journal's identity is connected to
    /// PostgreSQL. For a restored or cloned volume use `journal drain --adopt`.
    Adopt(AdoptArgs),
}

/// Which journal.
#[derive(Debug, Args)]
pub(super) struct DirArgs {
    /// Journal directory, or the data directory that contains it [default: the configured data_dir]
    #[arg(long, short, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Data directory; short for --set data_dir=DIR
    #[arg(long, value_name = "DIR", conflicts_with = "dir", help_heading = "Configuration")]
    data_dir: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(super) struct CheckArgs {
    #[command(flatten)]
    dir: DirArgs,
    /// Output format
    #[arg(long, short, value_name = "FORMAT", default_value = "text", value_parser = output::among([Output::Text, Output::Json]))]
    output: Output,
    #[command(flatten)]
    config: ConfigArgs,
}

#[derive(Debug, Args)]
pub(super) struct DumpArgs {
    #[command(flatten)]
    dir: DirArgs,
    /// Print records of this lane only
    #[arg(long, value_name = "LANE")]
    lane: Option<LaneId>,
    /// Start at the frame with this sequence number
    #[arg(long, value_name = "SEQ", default_value_t = 0)]
    from_seq: u64,
    /// Print at most N records
    #[arg(long, short = 'n', value_name = "N")]
    limit: Option<u64>,
    /// Output format
    #[arg(long, short, value_name = "FORMAT", default_value = "ndjson",
        value_parser = output::among([Output::Text, Output::Json, Output::Ndjson]))]
    output: Output,
    /// Color the text output by severity
    #[arg(long, value_name = "WHEN", value_enum, default_value_t)]
    color: Color,
    #[command(flatten)]
    config: ConfigArgs,
}

#[derive(Debug, Args)]
pub(super) struct DrainArgs {
    /// Journal directory, or the data directory that contains it [default: the configured data_dir]
    #[arg(long, short, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Fork a copy of a journal that has fallen behind the original: write only the records that this copy alone has
    ///
    /// Use it for a volume that was restored or cloned while the original remained in use. The copy gets a new identity.
    #[arg(long)]
    adopt: bool,
    #[command(flatten)]
    store: StoreArgs,
}

#[derive(Debug, Args)]
pub(super) struct AdoptArgs {
    /// Journal directory, or the data directory that contains it [default: the configured data_dir]
    #[arg(long, short, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// State that no other copy of this journal has been used, or ever will be
    ///
    /// Another copy cannot store any more then. Records that were accepted by both copies under the same numbers
    /// would be taken for stored.
    #[arg(long, required = true)]
    only_copy: bool,
    #[command(flatten)]
    store: StoreArgs,
}

impl JournalCommand {
    pub(super) fn config_mut(&mut self) -> &mut ConfigArgs {
        match self {
            Self::Check(args) | Self::Repair(args) => &mut args.config,
            Self::Dump(args) => &mut args.config,
            Self::Drain(args) => &mut args.store.config,
            Self::Adopt(args) => &mut args.store.config,
        }
    }
}

/// The journal in `dir`, which is a journal directory or a `data_dir`.
///
/// # Errors
/// Exit code 66 without a journal: a check must not succeed because of a typo, and must not create a directory.
pub(super) fn journal_dir(dir: &Path) -> Result<PathBuf, Failure> {
    let inner = dir.join("journal");
    let journal = if inner.is_dir() { inner } else { dir.to_owned() };
    let entries = std::fs::read_dir(&journal)
        .map_err(|error| Failure::new(exit::NO_INPUT, format!("no journal in {}: {error}", dir.display())))?;
    let is_segment = |entry: std::fs::DirEntry| entry.path().extension().is_some_and(|extension| extension == "wal");
    if entries.flatten().any(is_segment) {
        return Ok(journal);
    }
    let message = format!(
        "no journal in {}: expected a journal directory with segments (*.wal), or a data directory that contains journal/",
        dir.display()
    );
    Err(Failure::new(exit::NO_INPUT, message))
}

impl DirArgs {
    /// The specified journal, else the configured one.
    fn journal(&self, config: &ConfigArgs) -> Result<PathBuf, Failure> {
        match self.dir.as_ref().or(self.data_dir.as_ref()) {
            Some(dir) => journal_dir(dir),
            None => journal_dir(&config.load()?.config.data_dir),
        }
    }
}

/// The exit code of an error of the engine.
pub(super) fn open_failure(error: OpenError) -> Failure {
    let code = match error {
        OpenError::InvalidConfig { .. } => exit::CONFIG,
        OpenError::Locked { .. } | OpenError::TooNew { .. } | OpenError::TooOld { .. } => exit::UNAVAILABLE,
        _ => exit::DISK,
    };
    Failure::new(code, error)
}

pub(super) fn journal(command: &JournalCommand) -> Outcome {
    match command {
        JournalCommand::Check(args) => {
            let report = journal::check(&args.dir.journal(&args.config)?).map_err(open_failure)?;
            print(&report, args.output)?;
            Ok(if report.damage.is_empty() { exit::OK } else { exit::FAILED }.into())
        }
        JournalCommand::Repair(args) => {
            let report = journal::repair(&args.dir.journal(&args.config)?).map_err(open_failure)?;
            print(&report, args.output)?;
            Ok(exit::OK.into())
        }
        JournalCommand::Dump(args) => dump(args),
        JournalCommand::Drain(args) => {
            let config = args.store.load()?.config;
            let dir = journal_dir(args.dir.as_deref().unwrap_or(&config.data_dir))?;
            Ok(crate::process::drain_journal(config, &dir, args.adopt))
        }
        JournalCommand::Adopt(args) => {
            let config = args.store.load()?.config;
            let dir = journal_dir(args.dir.as_deref().unwrap_or(&config.data_dir))?;
            Ok(crate::process::adopt_journal(config, &dir))
        }
    }
}

fn print(report: &Report, format: Output) -> io::Result<()> {
    let mut out = BufWriter::new(io::stdout().lock());
    if format == Output::Json {
        return output::json(&mut out, report);
    }
    let bytes = |number| show_number(number, Unit::Bytes);
    match report.writer {
        Some(writer) => {
            writeln!(out, "writer {writer}, {}", count(report.runs.len() as u64 + 1, "run"))?;
            let run = |run: Option<Uuid>| run.map_or("none is known".to_owned(), |run| run.to_string());
            writeln!(out, "last run {}", run(report.run))?;
            writeln!(out, "last run that the database has confirmed: {}", run(report.confirmed))?;
        }
        None => writeln!(out, "writer unknown: no segment is readable")?,
    }
    let state = match (report.locked, report.clean) {
        (true, _) => "open in a running process: its latest frames may not be visible yet",
        (_, true) => "sealed: the last run shut down cleanly",
        _ => "not sealed: the last run did not shut down cleanly",
    };
    writeln!(out, "{state}")?;
    for segment in &report.segments {
        let (number, size, frames) = (segment.number, bytes(segment.bytes), count(segment.frames, "frame"));
        let (first, last) = (segment.seq_first, segment.seq_last);
        writeln!(out, "segment {number:>8}  {size:>8}  {frames:>15}  seq {first}..{last}")?;
    }
    for (lane, tail) in &report.lanes {
        let records = count(tail.records, "record");
        writeln!(out, "lane {lane}: up to seq {}, {records} since the journal was created", tail.seq)?;
    }
    if report.torn_bytes > 0 {
        writeln!(out, "torn tail: {} that were never acknowledged", count(report.torn_bytes, "byte"))?;
    }
    if report.quarantine_bytes > 0 {
        writeln!(out, "in quarantine/: {}", bytes(report.quarantine_bytes))?;
    }
    for damage in &report.damage {
        writeln!(out, "damage: {}", described(damage))?;
    }
    if report.damage.is_empty() {
        writeln!(out, "no damage")?;
    }
    out.flush()
}

/// Damage on one line.
pub(super) fn described(damage: &Damage) -> String {
    let Damage { segment, offset, bytes, seq_first, seq_last, reason } = damage;
    let lost = if seq_first <= seq_last { format!("seq {seq_first}..{seq_last} lost") } else { "no frame lost".into() };
    format!("segment {segment} at offset {offset}, {}, {lost}: {reason}", count(*bytes, "byte"))
}

/// A record and its place in the journal.
#[derive(Serialize)]
struct Line<'a> {
    #[serde(flatten)]
    record: RecordJson<'a>,
    /// The journaled time in microseconds since 1970, where it is outside the calendar and `ts` therefore clamped.
    #[serde(skip_serializing_if = "Option::is_none")]
    ts_us: Option<i64>,
    lane: LaneId,
    seq: u64,
    row: usize,
}

impl<'a> Line<'a> {
    fn new(record: Record<'a>, frame: &Frame, row: usize) -> Self {
        let ts_us = Timestamp::from_microsecond(record.ts_us).is_err().then_some(record.ts_us);
        Self { ts_us, record: record.into(), lane: frame.lane, seq: frame.seq, row }
    }
}

fn dump(args: &DumpArgs) -> Outcome {
    let dir = args.dir.journal(&args.config)?;
    let out = BufWriter::new(io::stdout().lock());
    let mut records = Records::new(out, args.output, args.color.is_on());
    let mut written = Ok(());
    let (mut undecoded, mut left): (u64, _) = (0, args.limit.unwrap_or(u64::MAX));
    let damage = journal::dump(&dir, args.lane, args.from_seq, &mut |frame, segment, offset| {
        match codec::decode(frame.codec, &frame.payload) {
            Ok(chunk) => {
                let rows = usize::try_from(left).unwrap_or(usize::MAX);
                written = chunk.iter().enumerate().take(rows).try_for_each(|(row, record)| {
                    left -= 1;
                    records.serialize(&Line::new(record, &frame, row))
                });
            }
            Err(error) => {
                undecoded += 1;
                let (lane, seq) = (frame.lane, frame.seq);
                let _ = writeln!(
                    io::stderr(),
                    "logweir: cannot decode lane {lane} seq {seq} (segment {segment} at offset {offset}): {error}"
                );
            }
        }
        // A reader that has closed the pipe ends it as well: the rest of the journal may be gigabytes.
        if written.is_err() || left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })
    .map_err(open_failure)?;
    written?;
    records.finish()?;
    for damage in &damage {
        let _ = writeln!(io::stderr(), "logweir: skipped {}", described(damage));
    }
    Ok(if undecoded == 0 && damage.is_empty() { exit::OK } else { exit::FAILED }.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use logweir_record::record::Severity;

    fn line(ts_us: i64, attributes: &str) -> serde_json::Value {
        let frame = Frame {
            seq: 7,
            lane: 1,
            lane_prev_seq: 0,
            lane_records: 1,
            records: 1,
            codec: 1,
            payload_crc: 0,
            dedup_key: None,
            payload: vec![],
        };
        let record = Record { ts_us, severity: Severity::WARN, service: "s", host: "", message: "a\nb", attributes };
        let text = serde_json::to_string(&Line::new(record, &frame, 3)).unwrap();
        assert!(!text.contains('\n'));
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn a_record_is_one_line_with_its_place() {
        let one = line(1_700_000_000_000_001, r#"{"a":[1]}"#);
        assert_eq!((&one["ts"], one.get("ts_us")), (&"2023-11-14T22:13:20.000001Z".into(), None));
        assert_eq!((&one["seq"], &one["row"], &one["severity"]), (&7.into(), &3.into(), &13.into()));
        assert_eq!((&one["severity_text"], &one["attributes"]["a"][0]), (&"WARN".into(), &1.into()));
        assert_eq!(line(0, "not json")["attributes_text"], "not json");
        assert_eq!(line(i64::MAX, "")["ts_us"], i64::MAX);
    }
}
