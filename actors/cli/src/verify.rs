//! `logweir verify`: checks that journal and database agree, and reports missing records by lane and sequence range.
//!
//! - Per lane: **accepted = rows + dead-lettered + lost + backlog**. Accepted comes from the journal's latest frame; rows,
//!   dead-lettered and lost are the database's counters; the backlog is counted frame by frame after the cursor, not derived
//!   by subtraction.
//! - The counters are compared with the content of the table as well: every id of the lane, each once.
//! - A server may be running. The cursor is read before the journal and after the table; records between the two values moved
//!   meanwhile and are not reported as missing.

use std::collections::BTreeMap;
use std::io::{self, BufWriter, Write as _};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use clap::Args;
use logweir_engine::journal::{self, Damage, LaneId, LaneTail, OpenError, Report};
use serde::Serialize;
use uuid::Uuid;

use crate::args::StoreArgs;
use crate::exit;
use crate::failure::{Failure, Outcome};
use crate::journal::{described, journal_dir, open_failure};
use crate::output::{self, Output, count};
use crate::store::{block_on, open_store};
use logweir_store::Database;
use logweir_store::Gap;
use logweir_store::{LaneRow, StoredCount};

/// Attempts to read a journal from which a running server removes committed segments.
const READS_MAX: u32 = 5;

#[derive(Debug, Args)]
pub(super) struct VerifyArgs {
    /// Journal directory, or the data directory that contains it [default: the configured data_dir]
    #[arg(long, short, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Output format
    #[arg(long, short, value_name = "FORMAT", default_value = "text", value_parser = output::among([Output::Text, Output::Json]))]
    output: Output,
    #[command(flatten)]
    pub(super) store: StoreArgs,
}

/// One frame of a lane, after the cursor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameSeen {
    /// Sequence number.
    pub seq: u64,
    /// Records of the lane up to and including this frame.
    pub lane_records: u64,
    /// Records in this frame.
    pub records: u64,
}

/// Readable records of a lane after a cursor, and the gaps between them. Does not store frames.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backlog {
    seq: u64,
    lane_records: u64,
    readable: u64,
    gaps: Vec<Gap>,
}

impl Backlog {
    /// An empty backlog after the cursor `seq`, up to which the lane had `accounted` records.
    #[must_use]
    pub fn behind(seq: u64, accounted: u64) -> Self {
        Self { seq, lane_records: accounted, readable: 0, gaps: Vec::new() }
    }

    /// Adds the lane's next frame.
    pub fn see(&mut self, frame: FrameSeen) {
        if frame.seq <= self.seq {
            return;
        }
        self.expect(frame.lane_records.saturating_sub(frame.records), frame.seq - 1);
        // Not `frame.records`: the first records of the first frame can be committed already.
        self.readable += frame.lane_records.saturating_sub(self.lane_records);
        (self.seq, self.lane_records) = (frame.seq, self.lane_records.max(frame.lane_records));
    }

    /// Ends the backlog; the latest frame is `tail`.
    pub fn end(&mut self, tail: LaneTail) {
        self.expect(tail.records, tail.seq);
    }

    /// Records a gap up to `seq_last` unless the lane has `lane_records` by now.
    fn expect(&mut self, lane_records: u64, seq_last: u64) {
        let records = lane_records.saturating_sub(self.lane_records);
        if records > 0 {
            self.gaps.push(Gap { seq_first: self.seq + 1, seq_last, records });
            self.lane_records = lane_records;
        }
    }
}

/// The accounting of one lane.
#[derive(Clone, Debug, Serialize)]
pub struct LaneAccount {
    /// The lane.
    pub lane: LaneId,
    /// Records in the journal, up to its latest frame.
    pub accepted: u64,
    /// Records of another writer, if this journal is an adopted copy of its journal.
    pub inherited: u64,
    /// Records that another frame had stored, since a request was repeated.
    pub repeated: u64,
    /// Inserted rows, by the database's counters.
    pub rows: u64,
    /// Dead-lettered records, by the database's counters.
    pub dead_lettered: u64,
    /// Records that were no longer in the journal when they were to be inserted, logged at that time.
    pub lost: u64,
    /// Records after the cursor that are readable in the journal.
    pub backlog: u64,
    /// The database's cursor: the last committed sequence number.
    pub cursor_seq: u64,
    /// The journal's last sequence number of the lane.
    pub journal_seq: u64,
    /// Contents of the table.
    pub stored: StoredCount,
    /// Missing records of the backlog.
    pub gaps: Vec<Gap>,
    /// Failed checks.
    pub wrong: Vec<String>,
    /// Differences that have an explanation.
    pub notes: Vec<String>,
}

/// Checks one lane. `before` and `after` are its row before the journal and after the table was read.
#[must_use]
pub fn judge(
    before: &LaneRow,
    after: &LaneRow,
    tail: LaneTail,
    backlog: Backlog,
    stored: StoredCount,
    retention_days: u32,
) -> LaneAccount {
    let mut account = LaneAccount {
        lane: before.lane,
        accepted: tail.records,
        inherited: before.inherited.saturating_sub(before.repeated),
        repeated: before.repeated,
        rows: before.rows,
        dead_lettered: before.dead_lettered,
        lost: before.lost,
        backlog: backlog.readable,
        cursor_seq: before.last_seq,
        journal_seq: tail.seq,
        stored,
        gaps: backlog.gaps,
        wrong: Vec::new(),
        notes: Vec::new(),
    };
    // Segments that were committed while the journal was read may have been removed: the cursor is past their frames.
    account.gaps.retain(|gap| gap.seq_last > after.last_seq);
    for Gap { seq_first, seq_last, records } in &account.gaps {
        account.wrong.push(format!(
            "seq {seq_first}..{seq_last}: {records} records are neither in the journal nor in the database"
        ));
    }
    if before.accounted() > tail.records {
        let (accounted, records) = (before.accounted(), tail.records);
        account.wrong.push(format!(
            "the database accounts for {accounted} records, but the journal contains {records}: the journal is older than the database (was it restored from a copy?)"
        ));
    }
    if before != after {
        let moved = after.accounted().saturating_sub(before.accounted());
        account.notes.push(format!("in progress: {} committed during the check", count(moved, "record")));
    }
    if account.lost > 0 {
        account.notes.push(format!(
            "{} lost: damaged, or no longer in the journal when they were to be inserted; the server logged each range",
            count(account.lost, "record")
        ));
    }
    table(&mut account, before, after, retention_days);
    account
}

/// Compares the counters with the contents of the table.
fn table(account: &mut LaneAccount, before: &LaneRow, after: &LaneRow, retention_days: u32) {
    let StoredCount { rows, distinct, dead_letters, replayed } = account.stored;
    if distinct != rows {
        account.wrong.push(format!("{} duplicate rows in the table", rows.saturating_sub(distinct)));
    }
    let (least, most) = (before.rows + replayed, after.rows + replayed);
    if rows > most {
        account
            .wrong
            .push(format!("the table contains {rows} rows, but {most} were inserted: {} unaccounted for", rows - most));
    }
    if rows < least {
        let missing = least - rows;
        if retention_days > 0 {
            account.notes.push(format!(
                "{missing} of {least} rows are no longer in the table: retention ({retention_days} days) deletes old rows, so their \
                 number cannot be verified"
            ));
        } else {
            account.wrong.push(format!(
                "the table contains {rows} rows, but {least} were inserted: {missing} missing (retention is not configured)"
            ));
        }
    }
    let kept = dead_letters + replayed;
    if kept > after.dead_lettered {
        account
            .wrong
            .push(format!("the database contains {kept} dead letters, but {} were created", after.dead_lettered));
    }
    if kept < before.dead_lettered {
        account.notes.push(format!("{} purged", count(before.dead_lettered - kept, "dead letter")));
    }
}

/// The result.
#[derive(Debug, Serialize)]
struct Verdict {
    writer: Option<Uuid>,
    store: String,
    lanes: Vec<LaneAccount>,
    damage: Vec<Damage>,
    /// Failed checks that belong to no single lane.
    wrong: Vec<String>,
    locked: bool,
    verified: bool,
}

/// Damage after which a lane may be incomplete. A lane whose cursor is past the damage has lost nothing, and a lane that
/// continues after it shows a gap; a lane that ends before it may have lost its latest frames there, which cannot be determined.
fn open_ends(damage: &[Damage], lanes: &[LaneAccount]) -> Vec<String> {
    let ends_before = |seq| move |lane: &&LaneAccount| lane.journal_seq.max(lane.cursor_seq) < seq;
    let open = |damage: &&Damage| {
        let lost = damage.seq_first <= damage.seq_last;
        lost && (lanes.is_empty() || lanes.iter().any(|lane| ends_before(damage.seq_last)(&lane)))
    };
    let name = |damage: &Damage| {
        let lanes: Vec<String> =
            lanes.iter().filter(ends_before(damage.seq_last)).map(|lane| lane.lane.to_string()).collect();
        let (first, last) = (damage.seq_first, damage.seq_last);
        format!("seq {first}..{last} is damaged and may have contained the latest records of lane {}", lanes.join(", "))
    };
    damage.iter().filter(open).map(name).collect()
}

pub(super) fn verify(args: &VerifyArgs) -> Outcome {
    let config = args.store.load()?.config;
    let dir = journal_dir(args.dir.as_deref().unwrap_or(&config.data_dir))?;
    let verdict = block_on(compare(&config.database, &dir))??;
    let mut out = BufWriter::new(io::stdout().lock());
    if args.output == Output::Json {
        output::json(&mut out, &verdict)?;
    } else {
        print(&verdict, &mut out)?;
    }
    out.flush()?;
    Ok(if verdict.verified { exit::OK } else { exit::FAILED }.into())
}

async fn compare(database: &Database, dir: &Path) -> Result<Verdict, Failure> {
    let report = reading(|| journal::check(dir))?;
    let store = open_store(database)?;
    let Some(writer) = report.writer else {
        // Nothing was accepted here, or no segment header is readable.
        let wrong = open_ends(&report.damage, &[]);
        let (damage, verified) = (report.damage, wrong.is_empty());
        return Ok(Verdict {
            writer: None,
            store: store.name(),
            lanes: vec![],
            damage,
            wrong,
            locked: false,
            verified,
        });
    };
    let before = store.lanes(writer).await.map_err(Failure::store)?;
    // Read again after the cursor was read, so that the journal is not older than the cursor.
    let (report, backlogs) = reading(|| backlogs(dir, &before))?;
    let mut stored = BTreeMap::new();
    for row in &before {
        stored.insert(row.lane, store.count_stored(row).await.map_err(Failure::store)?);
    }
    let after = store.lanes(writer).await.map_err(Failure::store)?;
    let lanes = accounts(&report, backlogs, &before, &after, &stored, database.retention_days);
    let Report { damage, locked, .. } = report;
    let wrong = open_ends(&damage, &lanes);
    let verified = wrong.is_empty() && lanes.iter().all(|lane| lane.wrong.is_empty());
    Ok(Verdict { writer: Some(writer), store: store.name(), lanes, damage, wrong, locked, verified })
}

fn accounts(
    report: &Report,
    mut backlogs: BTreeMap<LaneId, Backlog>,
    before: &[LaneRow],
    after: &[LaneRow],
    stored: &BTreeMap<LaneId, StoredCount>,
    retention_days: u32,
) -> Vec<LaneAccount> {
    let row = |rows: &[LaneRow], lane| rows.iter().find(|row| row.lane == lane).cloned();
    let mut lanes: Vec<LaneId> = report.lanes.keys().copied().chain(before.iter().map(|row| row.lane)).collect();
    lanes.sort_unstable();
    lanes.dedup();
    let account = |lane| {
        let before = row(before, lane).unwrap_or(LaneRow { lane, ..LaneRow::default() });
        let after = row(after, lane).unwrap_or_else(|| before.clone());
        let tail = report.lanes.get(&lane).copied().unwrap_or_default();
        let backlog = backlogs.remove(&lane).unwrap_or_else(|| Backlog::behind(before.last_seq, before.accounted()));
        judge(&before, &after, tail, backlog, stored.get(&lane).copied().unwrap_or_default(), retention_days)
    };
    lanes.into_iter().map(account).collect()
}

/// The latest frame of each lane, and the backlog after each lane's cursor.
fn backlogs(dir: &Path, rows: &[LaneRow]) -> Result<(Report, BTreeMap<LaneId, Backlog>), OpenError> {
    let report = journal::check(dir)?;
    let mut backlogs: BTreeMap<LaneId, Backlog> =
        rows.iter().map(|row| (row.lane, Backlog::behind(row.last_seq, row.accounted()))).collect();
    for lane in report.lanes.keys() {
        backlogs.entry(*lane).or_insert_with(|| Backlog::behind(0, 0));
    }
    let from_seq = backlogs.values().map(|backlog| backlog.seq + 1).min().unwrap_or(0);
    journal::dump(dir, None, from_seq, &mut |frame, _, _| {
        // Frames appended after `check` are not part of this account.
        let tail = report.lanes.get(&frame.lane).copied().unwrap_or_default();
        if let Some(backlog) = backlogs.get_mut(&frame.lane).filter(|_| frame.seq <= tail.seq) {
            let (seq, lane_records, records) = (frame.seq, frame.lane_records, u64::from(frame.records));
            backlog.see(FrameSeen { seq, lane_records, records });
        }
        ControlFlow::Continue(())
    })?;
    for (lane, backlog) in &mut backlogs {
        backlog.end(report.lanes.get(lane).copied().unwrap_or_default());
    }
    Ok((report, backlogs))
}

/// Retries `read` when a running server has removed a committed segment that was about to be read.
fn reading<T>(mut read: impl FnMut() -> Result<T, OpenError>) -> Result<T, Failure> {
    for _ in 1..READS_MAX {
        match read() {
            Err(OpenError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
            done => return done.map_err(open_failure),
        }
    }
    read().map_err(open_failure)
}

fn print(verdict: &Verdict, out: &mut impl io::Write) -> io::Result<()> {
    match verdict.writer {
        Some(writer) => writeln!(out, "journal of writer {writer}, {}", verdict.store)?,
        None => writeln!(out, "no segment of the journal is readable")?,
    }
    if verdict.locked {
        writeln!(out, "a server is running: the numbers change while they are read")?;
    }
    if !verdict.lanes.is_empty() {
        writeln!(out, "lane     accepted =       rows + dead-lettered +     lost +    backlog   in the table")?;
    }
    for lane in &verdict.lanes {
        let LaneAccount { lane: id, accepted, rows, dead_lettered, lost, backlog, stored, .. } = lane;
        writeln!(
            out,
            "{id:>4} {accepted:>12} {rows:>12} {dead_lettered:>15} {lost:>10} {backlog:>12} {:>14}",
            stored.rows
        )?;
    }
    for lane in &verdict.lanes {
        if lane.inherited > 0 {
            writeln!(
                out,
                "lane {}: {} of the accepted records belong to another writer (adopted copy)",
                lane.lane, lane.inherited
            )?;
        }
        if lane.repeated > 0 {
            let repeated = count(lane.repeated, "accepted record");
            writeln!(
                out,
                "lane {}: {repeated} of repeated requests are stored once, as the first request's",
                lane.lane
            )?;
        }
        lane.notes.iter().try_for_each(|note| writeln!(out, "lane {}: {note}", lane.lane))?;
        lane.wrong.iter().try_for_each(|wrong| writeln!(out, "lane {}: WRONG: {wrong}", lane.lane))?;
    }
    verdict.damage.iter().try_for_each(|damage| writeln!(out, "damage in the journal: {}", described(damage)))?;
    verdict.wrong.iter().try_for_each(|wrong| writeln!(out, "WRONG: {wrong}"))?;
    writeln!(
        out,
        "{}",
        if verdict.verified { "verified: every accepted record is accounted for" } else { "FAILED: see above" }
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(last_seq: u64, rows: u64, dead: u64) -> LaneRow {
        LaneRow { lane: 1, last_seq, rows, dead_lettered: dead, ..LaneRow::default() }
    }

    fn stored(rows: u64) -> StoredCount {
        StoredCount { rows, distinct: rows, ..StoredCount::default() }
    }

    /// Frames of ten records each with these sequence numbers; those in `gone` are unreadable.
    fn backlog(after: &LaneRow, seqs: &[u64], gone: &[u64]) -> (Backlog, LaneTail) {
        let mut backlog = Backlog::behind(after.last_seq, after.accounted());
        let mut tail = LaneTail { seq: after.last_seq, records: after.accounted() };
        for &seq in seqs {
            tail = LaneTail { seq, records: tail.records + 10 };
            if !gone.contains(&seq) {
                backlog.see(FrameSeen { seq, lane_records: tail.records, records: 10 });
            }
        }
        backlog.end(tail);
        (backlog, tail)
    }

    fn verdict(
        before: &LaneRow,
        after: &LaneRow,
        gone: &[u64],
        stored: StoredCount,
        retention_days: u32,
    ) -> LaneAccount {
        let (backlog, tail) = backlog(before, &[12, 15, 19, 20], gone);
        judge(before, after, tail, backlog, stored, retention_days)
    }

    #[test]
    fn a_complete_lane_passes() {
        let row = row(10, 98, 2);
        let account = verdict(&row, &row, &[], StoredCount { dead_letters: 2, ..stored(98) }, 0);
        assert!(account.wrong.is_empty() && account.notes.is_empty(), "{account:?}");
        assert_eq!(account.accepted, account.rows + account.dead_lettered + account.lost + account.backlog);
    }

    #[test]
    fn missing_frames_are_reported_by_range() {
        let row = row(10, 100, 0);
        for (gone, gaps) in [
            (&[12][..], vec![(11, 14, 10)]),
            (&[15, 19], vec![(13, 19, 20)]),
            (&[20], vec![(20, 20, 10)]),
            (&[12, 20], vec![(11, 14, 10), (20, 20, 10)]),
            (&[12, 15, 19, 20], vec![(11, 20, 40)]),
        ] {
            let account = verdict(&row, &row, gone, stored(100), 0);
            let found: Vec<_> = account.gaps.iter().map(|gap| (gap.seq_first, gap.seq_last, gap.records)).collect();
            assert_eq!(found, gaps);
            assert_eq!(account.wrong.len(), gaps.len());
            let missing: u64 = account.gaps.iter().map(|gap| gap.records).sum();
            assert_eq!(account.backlog + missing, 40);
        }
    }

    #[test]
    fn records_of_a_frame_that_is_committed_in_part_count_once() {
        // Three records of frame 12 are committed.
        let row = row(10, 100, 0);
        let begun = LaneRow { rows: 103, ..row.clone() };
        let (_, tail) = backlog(&row, &[12, 15], &[]);
        let mut rest = Backlog::behind(begun.last_seq, begun.accounted());
        rest.see(FrameSeen { seq: 12, lane_records: 110, records: 10 });
        rest.see(FrameSeen { seq: 15, lane_records: 120, records: 10 });
        rest.end(tail);
        let account = judge(&begun, &begun, tail, rest, stored(103), 0);
        assert!(account.wrong.is_empty(), "{account:?}");
        assert_eq!((account.accepted, account.backlog), (120, 17));
    }

    #[test]
    fn records_committed_during_the_check_are_not_missing() {
        let (before, after) = (row(10, 100, 0), row(15, 120, 0));
        let account = verdict(&before, &after, &[12], stored(110), 0);
        assert!(account.wrong.is_empty(), "{account:?}");
        assert_eq!(account.notes.len(), 1);
        // The frame after the cursor is.
        assert_eq!(verdict(&before, &after, &[20], stored(110), 0).wrong.len(), 1);
    }

    #[test]
    fn missing_duplicate_and_foreign_rows_are_found() {
        let row = row(10, 100, 3);
        assert!(verdict(&row, &row, &[], stored(99), 0).wrong[0].contains("1 missing"));
        assert!(verdict(&row, &row, &[], stored(101), 0).wrong[0].contains("1 unaccounted for"));
        let doubled = StoredCount { rows: 100, distinct: 99, ..StoredCount::default() };
        assert!(verdict(&row, &row, &[], doubled, 0).wrong[0].contains("1 duplicate"));
        let replayed = StoredCount { rows: 102, distinct: 102, dead_letters: 1, replayed: 2 };
        assert!(verdict(&row, &row, &[], replayed, 0).wrong.is_empty());
        let letters = StoredCount { dead_letters: 4, ..stored(100) };
        assert!(verdict(&row, &row, &[], letters, 0).wrong[0].contains("4 dead letters, but 3 were created"));
    }

    #[test]
    fn rows_deleted_by_retention_are_noted_only() {
        let row = row(10, 100, 0);
        let account = verdict(&row, &row, &[], stored(40), 30);
        assert!(account.wrong.is_empty() && account.notes[0].contains("60 of 100 rows"), "{account:?}");
    }

    #[test]
    fn a_journal_older_than_the_database_fails() {
        let row = row(50, 500, 0);
        let mut backlog = Backlog::behind(row.last_seq, row.accounted());
        let tail = LaneTail { seq: 20, records: 140 };
        backlog.end(tail);
        assert!(judge(&row, &row, tail, backlog, stored(500), 0).wrong[0].contains("older than the database"));
    }

    #[test]
    fn damage_after_the_end_of_a_lane_fails() {
        let damage = |seq_first, seq_last| {
            [Damage { segment: 1, offset: 0, bytes: 1, seq_first, seq_last, reason: "bits".into() }]
        };
        let row = row(10, 100, 0);
        let lanes = [verdict(&row, &row, &[], stored(100), 0)];
        assert_eq!(open_ends(&damage(3, 4), &lanes), [""; 0]);
        assert_eq!(open_ends(&damage(1, 0), &[]), [""; 0]);
        assert!(open_ends(&damage(21, 21), &lanes)[0].contains("latest records of lane 1"));
        assert_eq!(open_ends(&damage(3, 4), &[]).len(), 1);
    }
}
