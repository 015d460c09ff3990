//! `logweir verify`: do journal and database agree? What is missing is named by lane and sequence range.
//!
//! - Per lane: **accepted = rows + dead + lost + backlog**, where accepted is what the journal's newest frame says, rows, dead
//!   and lost are the database's counters, and the backlog is counted frame by frame behind the cursor, not subtracted.
//! - And the counters are compared with what the table really holds: every id of the lane, each once.
//! - A server may run meanwhile. The cursor is read before the journal and after the table: what moved in between lies
//!   between the two, and is not held against anybody.

use std::collections::BTreeMap;
use std::io::{self, BufWriter, Write as _};
use std::path::{Path, PathBuf};

use clap::Args;
use logweir_engine::journal::{self, Damage, LaneId, LaneTail, OpenError, Report};
use serde::Serialize;
use uuid::Uuid;

use super::journal::{journal_dir, refused, told};
use super::{ConfigArgs, Failure, Outcome, block_on, exit, open_store};
use crate::config::Database;
use crate::message::Gap;
use crate::store::{LaneRow, StoredCount};

/// How often a journal is read again because a running server removed a settled segment under the reader.
const READS_MAX: u32 = 5;

#[derive(Debug, Args)]
pub(super) struct VerifyArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// The journal, or the data_dir that it lies in [default: the configured one]
    #[arg(long)]
    dir: Option<PathBuf>,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

/// Frames of one lane that follow on each other, behind the cursor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameSeen {
    /// Sequence number.
    pub seq: u64,
    /// Records of the lane up to and including it.
    pub lane_records: u64,
    /// Records in it.
    pub records: u64,
}

/// What can be read of a lane behind a cursor, without keeping its frames.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backlog {
    seq: u64,
    lane_records: u64,
    readable: u64,
    gaps: Vec<Gap>,
}

impl Backlog {
    /// Nothing read yet behind the cursor `seq`, where the lane had `settled` records.
    #[must_use]
    pub fn behind(seq: u64, settled: u64) -> Self {
        Self { seq, lane_records: settled, readable: 0, gaps: Vec::new() }
    }

    /// The lane's next frame.
    pub fn see(&mut self, frame: FrameSeen) {
        if frame.seq <= self.seq {
            return;
        }
        self.expect(frame.lane_records.saturating_sub(frame.records), frame.seq - 1);
        self.readable += frame.records;
        (self.seq, self.lane_records) = (frame.seq, self.lane_records.max(frame.lane_records));
    }

    /// All frames have been seen; the newest one is `tail`.
    pub fn end(&mut self, tail: LaneTail) {
        self.expect(tail.records, tail.seq);
    }

    /// The lane must have had `lane_records` by now; what is missing lies up to `seq_last`.
    fn expect(&mut self, lane_records: u64, seq_last: u64) {
        let records = lane_records.saturating_sub(self.lane_records);
        if records > 0 {
            self.gaps.push(Gap { seq_first: self.seq + 1, seq_last, records });
            self.lane_records = lane_records;
        }
    }
}

/// A lane's account.
#[derive(Clone, Debug, Serialize)]
pub struct LaneAccount {
    /// The lane.
    pub lane: LaneId,
    /// Records of the journal, up to its newest frame.
    pub accepted: u64,
    /// Records that belong to another writer, of whose journal this one is a copy.
    pub inherited: u64,
    /// Inserted, by the database's counters.
    pub rows: u64,
    /// Dead-lettered, by the counters.
    pub dead: u64,
    /// No longer in the journal when the database needed them: found and named then.
    pub lost: u64,
    /// Records behind the cursor that can be read from the journal.
    pub backlog: u64,
    /// The database's cursor.
    pub cursor_seq: u64,
    /// The journal's newest frame.
    pub journal_seq: u64,
    /// What the table holds.
    pub stored: StoredCount,
    /// Records of the backlog that are missing.
    pub gaps: Vec<Gap>,
    /// What does not hold.
    pub wrong: Vec<String>,
    /// What explains itself, and is worth knowing.
    pub notes: Vec<String>,
}

/// The judgement over one lane: `before` and `after` are its row before the journal and after the table was read.
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
        inherited: before.inherited,
        rows: before.rows,
        dead: before.dead,
        lost: before.lost,
        backlog: backlog.readable,
        cursor_seq: before.last_seq,
        journal_seq: tail.seq,
        stored,
        gaps: backlog.gaps,
        wrong: Vec::new(),
        notes: Vec::new(),
    };
    // Segments that were settled while we read may be gone: the cursor has passed what was in them.
    account.gaps.retain(|gap| gap.seq_last > after.last_seq);
    for Gap { seq_first, seq_last, records } in &account.gaps {
        account.wrong.push(format!(
            "seq {seq_first}..{seq_last}: {records} records are neither in the journal nor in the database"
        ));
    }
    if before.settled() > tail.records {
        let (settled, records) = (before.settled(), tail.records);
        account.wrong.push(format!(
            "the database has settled {settled} records, the journal knows {records}: it is older than the database (a restored copy?)"
        ));
    }
    if before != after {
        let moved = after.settled().saturating_sub(before.settled());
        account.notes.push(format!("moving: {moved} records were settled meanwhile"));
    }
    if account.lost > 0 {
        account.notes.push(format!("{} records were no longer in the journal (damaged, or not kept long enough): named in the log when they were missed", account.lost));
    }
    table(&mut account, before, after, retention_days);
    account
}

/// The counters against the table itself.
fn table(account: &mut LaneAccount, before: &LaneRow, after: &LaneRow, retention_days: u32) {
    let StoredCount { rows, distinct, dead_letters, replayed } = account.stored;
    if distinct != rows {
        account.wrong.push(format!("{} rows are in the table more than once", rows.saturating_sub(distinct)));
    }
    let (least, most) = (before.rows + replayed, after.rows + replayed);
    if rows > most {
        account
            .wrong
            .push(format!("the table holds {rows} rows, {most} were inserted: {} are not accounted for", rows - most));
    }
    if rows < least {
        let missing = least - rows;
        if retention_days > 0 {
            account.notes.push(format!(
                "{missing} of {least} rows are no longer in the table: retention ({retention_days} days) removes old ones, so their \
                 number cannot be proved"
            ));
        } else {
            account.wrong.push(format!(
                "the table holds {rows} rows, {least} were inserted: {missing} are missing (no retention is configured)"
            ));
        }
    }
    let kept = dead_letters + replayed;
    if kept > after.dead {
        account.wrong.push(format!("there are {kept} dead letters, {} were made", after.dead));
    }
    if kept < before.dead {
        account.notes.push(format!("{} dead letters have been purged", before.dead - kept));
    }
}

/// Everything that was found.
#[derive(Debug, Serialize)]
struct Verdict {
    writer: Option<Uuid>,
    store: String,
    lanes: Vec<LaneAccount>,
    damage: Vec<Damage>,
    /// What does not hold and is of no one lane.
    wrong: Vec<String>,
    locked: bool,
    proved: bool,
}

/// Damage is harmless to a lane that has passed it, and shows as a gap of a lane that goes on behind it. A lane that ends
/// before it may have lost its newest frames there, and nobody can tell.
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
        format!("seq {first}..{last} is damaged and may hold the newest records of lane {}", lanes.join(", "))
    };
    damage.iter().filter(open).map(name).collect()
}

pub(super) fn verify(args: &VerifyArgs) -> Outcome {
    let config = args.config.load()?.config;
    let dir = journal_dir(args.dir.as_deref().unwrap_or(&config.data_dir))?;
    let verdict = block_on(compare(&config.database, &dir))??;
    let mut out = BufWriter::new(io::stdout().lock());
    if args.json {
        writeln!(out, "{}", serde_json::to_string(&verdict).map_err(io::Error::other)?)?;
    } else {
        print(&verdict, &mut out)?;
    }
    out.flush()?;
    Ok(if verdict.proved { exit::OK } else { exit::FAILED }.into())
}

async fn compare(database: &Database, dir: &Path) -> Result<Verdict, Failure> {
    let report = reading(|| journal::check(dir))?;
    let store = open_store(database)?;
    let Some(writer) = report.writer else {
        // No journal has accepted anything here.
        let wrong = open_ends(&report.damage, &[]);
        let (damage, proved) = (report.damage, wrong.is_empty());
        return Ok(Verdict { writer: None, store: store.name(), lanes: vec![], damage, wrong, locked: false, proved });
    };
    let before = store.lanes(writer).await.map_err(Failure::store)?;
    // Read again, now behind the cursor: the journal must not be older than it.
    let (report, backlogs) = reading(|| backlogs(dir, &before))?;
    let mut stored = BTreeMap::new();
    for row in &before {
        stored.insert(row.lane, store.count_stored(row).await.map_err(Failure::store)?);
    }
    let after = store.lanes(writer).await.map_err(Failure::store)?;
    let lanes = accounts(&report, backlogs, &before, &after, &stored, database.retention_days);
    let Report { damage, locked, .. } = report;
    let wrong = open_ends(&damage, &lanes);
    let proved = wrong.is_empty() && lanes.iter().all(|lane| lane.wrong.is_empty());
    Ok(Verdict { writer: Some(writer), store: store.name(), lanes, damage, wrong, locked, proved })
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
        let backlog = backlogs.remove(&lane).unwrap_or_else(|| Backlog::behind(before.last_seq, before.settled()));
        judge(&before, &after, tail, backlog, stored.get(&lane).copied().unwrap_or_default(), retention_days)
    };
    lanes.into_iter().map(account).collect()
}

/// The journal's tails, and what lies in it behind each lane's cursor.
fn backlogs(dir: &Path, rows: &[LaneRow]) -> Result<(Report, BTreeMap<LaneId, Backlog>), OpenError> {
    let report = journal::check(dir)?;
    let mut backlogs: BTreeMap<LaneId, Backlog> =
        rows.iter().map(|row| (row.lane, Backlog::behind(row.last_seq, row.settled()))).collect();
    for lane in report.lanes.keys() {
        backlogs.entry(*lane).or_insert_with(|| Backlog::behind(0, 0));
    }
    let from_seq = backlogs.values().map(|backlog| backlog.seq + 1).min().unwrap_or(0);
    journal::dump(dir, None, from_seq, &mut |frame, _, _| {
        // What came after `check` has no place in its account.
        let tail = report.lanes.get(&frame.lane).copied().unwrap_or_default();
        if let Some(backlog) = backlogs.get_mut(&frame.lane).filter(|_| frame.seq <= tail.seq) {
            let (seq, lane_records, records) = (frame.seq, frame.lane_records, u64::from(frame.records));
            backlog.see(FrameSeen { seq, lane_records, records });
        }
    })?;
    for (lane, backlog) in &mut backlogs {
        backlog.end(report.lanes.get(lane).copied().unwrap_or_default());
    }
    Ok((report, backlogs))
}

/// A running server removes settled segments; whoever was about to read one starts again.
fn reading<T>(mut read: impl FnMut() -> Result<T, OpenError>) -> Result<T, Failure> {
    for _ in 1..READS_MAX {
        match read() {
            Err(OpenError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
            done => return done.map_err(refused),
        }
    }
    read().map_err(refused)
}

fn print(verdict: &Verdict, out: &mut impl io::Write) -> io::Result<()> {
    match verdict.writer {
        Some(writer) => writeln!(out, "journal of writer {writer}, {}", verdict.store)?,
        None => writeln!(out, "there is no journal here: nothing was accepted")?,
    }
    if verdict.locked {
        writeln!(out, "a server is running: numbers are of the moment they were read at")?;
    }
    if !verdict.lanes.is_empty() {
        writeln!(out, "lane     accepted =       rows +     dead +     lost +    backlog   in the table")?;
    }
    for lane in &verdict.lanes {
        let LaneAccount { lane: id, accepted, rows, dead, lost, backlog, stored, .. } = lane;
        writeln!(out, "{id:>4} {accepted:>12} {rows:>12} {dead:>10} {lost:>10} {backlog:>12} {:>14}", stored.rows)?;
    }
    for lane in &verdict.lanes {
        if lane.inherited > 0 {
            writeln!(
                out,
                "lane {}: {} of the accepted are another writer's (adopted copy)",
                lane.lane, lane.inherited
            )?;
        }
        lane.notes.iter().try_for_each(|note| writeln!(out, "lane {}: {note}", lane.lane))?;
        lane.wrong.iter().try_for_each(|wrong| writeln!(out, "lane {}: WRONG: {wrong}", lane.lane))?;
    }
    verdict.damage.iter().try_for_each(|damage| writeln!(out, "damage in the journal: {}", told(damage)))?;
    verdict.wrong.iter().try_for_each(|wrong| writeln!(out, "WRONG: {wrong}"))?;
    writeln!(
        out,
        "{}",
        if verdict.proved { "proved: every accepted record is accounted for" } else { "NOT proved: see above" }
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(last_seq: u64, rows: u64, dead: u64) -> LaneRow {
        LaneRow { lane: 1, last_seq, rows, dead, ..LaneRow::default() }
    }

    fn stored(rows: u64) -> StoredCount {
        StoredCount { rows, distinct: rows, ..StoredCount::default() }
    }

    /// Frames of ten records each at these numbers, of which those in `gone` cannot be read.
    fn backlog(after: &LaneRow, seqs: &[u64], gone: &[u64]) -> (Backlog, LaneTail) {
        let mut backlog = Backlog::behind(after.last_seq, after.settled());
        let mut tail = LaneTail { seq: after.last_seq, records: after.settled() };
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
    fn what_is_all_there_is_proved() {
        let row = row(10, 98, 2);
        let account = verdict(&row, &row, &[], StoredCount { dead_letters: 2, ..stored(98) }, 0);
        assert!(account.wrong.is_empty() && account.notes.is_empty(), "{account:?}");
        assert_eq!(account.accepted, account.rows + account.dead + account.lost + account.backlog);
    }

    #[test]
    fn missing_frames_are_named_by_range() {
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
    fn what_a_running_server_settled_meanwhile_is_not_missing() {
        let (before, after) = (row(10, 100, 0), row(15, 120, 0));
        let account = verdict(&before, &after, &[12], stored(110), 0);
        assert!(account.wrong.is_empty(), "{account:?}");
        assert_eq!(account.notes.len(), 1);
        // But the frame behind the cursor is.
        assert_eq!(verdict(&before, &after, &[20], stored(110), 0).wrong.len(), 1);
    }

    #[test]
    fn rows_that_are_missing_doubled_or_foreign_are_found() {
        let row = row(10, 100, 3);
        assert!(verdict(&row, &row, &[], stored(99), 0).wrong[0].contains("1 are missing"));
        assert!(verdict(&row, &row, &[], stored(101), 0).wrong[0].contains("1 are not accounted for"));
        let doubled = StoredCount { rows: 100, distinct: 99, ..StoredCount::default() };
        assert!(verdict(&row, &row, &[], doubled, 0).wrong[0].contains("more than once"));
        let replayed = StoredCount { rows: 102, distinct: 102, dead_letters: 1, replayed: 2 };
        assert!(verdict(&row, &row, &[], replayed, 0).wrong.is_empty());
        let letters = StoredCount { dead_letters: 4, ..stored(100) };
        assert!(verdict(&row, &row, &[], letters, 0).wrong[0].contains("4 dead letters, 3 were made"));
    }

    #[test]
    fn what_retention_removed_is_said_and_not_held_against_anybody() {
        let row = row(10, 100, 0);
        let account = verdict(&row, &row, &[], stored(40), 30);
        assert!(account.wrong.is_empty() && account.notes[0].contains("60 of 100 rows"), "{account:?}");
    }

    #[test]
    fn a_journal_that_is_older_than_the_database_is_wrong() {
        let row = row(50, 500, 0);
        let mut backlog = Backlog::behind(row.last_seq, row.settled());
        let tail = LaneTail { seq: 20, records: 140 };
        backlog.end(tail);
        assert!(judge(&row, &row, tail, backlog, stored(500), 0).wrong[0].contains("older than the database"));
    }

    #[test]
    fn damage_behind_the_end_of_a_lane_is_not_proved_away() {
        let damage = |seq_first, seq_last| {
            [Damage { segment: 1, offset: 0, bytes: 1, seq_first, seq_last, what: "bits".into() }]
        };
        let row = row(10, 100, 0);
        let lanes = [verdict(&row, &row, &[], stored(100), 0)];
        assert_eq!(open_ends(&damage(3, 4), &lanes), [""; 0]);
        assert_eq!(open_ends(&damage(1, 0), &[]), [""; 0]);
        assert!(open_ends(&damage(21, 21), &lanes)[0].contains("newest records of lane 1"));
        assert_eq!(open_ends(&damage(3, 4), &[]).len(), 1);
    }
}
