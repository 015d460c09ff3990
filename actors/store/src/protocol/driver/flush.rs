//! One lane's flush: rows, cursor, counters and dead letters in one transaction, exactly once.
//!
//! - The cursor moves first, by a compare-and-set on epoch, cursor, accounted records and `lane_id`. Its row lock makes a
//!   retry wait for a zombie transaction of the same batch, so that what the retry reads is final. A check without the
//!   lock would not.
//! - Records that repeat a request are found next, in the same transaction. If they are others than was known, it begins
//!   again: they are accounted for, but neither inserted nor dead-lettered.
//! - The last statement before the commit reads the lane back: COMMIT of an aborted transaction returns ROLLBACK without
//!   an error, whereas a SELECT in it fails. It also proves that the counters match the journal.
//! - A row is dead-lettered only if it was refused alone (or as the last row of the shortest refused prefix), then the
//!   table took another record in its place, then it was refused again. What concerns every row can begin or end at any
//!   moment, so one refusal beside one acceptance shows nothing. If the table takes no other record, the lane waits.
//! - The number of statements is bounded: locating a bad row takes about two attempts. After [`LOCATED_MAX`] of them
//!   each row is tried alone, which finds all that fail alone. Rows that violate a constraint only together are located up to
//!   [`TOGETHER_MAX`]; beyond that the flusher divides the batch.

use std::collections::{BTreeMap, BTreeSet};
use std::mem;
use std::ops::Range;

use logweir_engine::clock::wall_us;
use logweir_engine::fault::{armed, kill_point};
use logweir_record::record::Record;
use logweir_record::timestamp::DAY_US;
use uuid::Uuid;

use super::statements::{FILTERED, FlushStatements, How, LeftOut, Letter, Purpose, Refused, Step};
use crate::batch::Batch;
use crate::error::{Rejection, StoreError};
use crate::lane::{Flushed, LaneRow};
use crate::protocol::cursor::{CursorMismatch, on_cursor_mismatch};
use crate::protocol::requests::{decide, new_rows, requests};
use crate::protocol::rows::{Row, Rows, rows, rows_without};
use crate::protocol::sample::{LastTaken, Sample};
use crate::protocol::volume_counter::Counter;

/// Number of rows of a batch that are located one by one before each of its rows is tried alone, which is cheaper from
/// then on.
const LOCATED_MAX: usize = 8;
/// Number of rows of a batch that are located one by one although none of them fails alone.
const TOGETHER_MAX: usize = 100;
/// Number of times that a batch is sent again because what was refused is taken now. More are left to the flusher.
const ENDED_MAX: u32 = 3;
/// Number of flushes that insert exactly after one of which rows were dropped: cheaper than a COPY that is rolled back.
const EXACT_FLUSHES: u32 = 100;
/// Number of a batch's dead letters that are logged individually. All are in the table.
const LOGGED_MAX: usize = 8;

/// A lane as its flushes know it.
#[derive(Debug)]
pub(crate) struct Lane {
    pub(crate) writer: Uuid,
    pub(crate) epoch: i64,
    /// The lane's row as of the last commit or read.
    pub(crate) row: LaneRow,
    /// The last record that the table took.
    last_taken: LastTaken,
    /// Number of flushes that insert exactly.
    exact: u32,
}

impl Lane {
    /// The lane with the row `row`, under a lease of `epoch`.
    pub(crate) fn new(writer: Uuid, epoch: i64, row: LaneRow, last_taken: LastTaken) -> Self {
        Self { writer, epoch, row, last_taken, exact: 0 }
    }
}

/// Commits `batch`, dead-lettering the rows that the database does not take.
///
/// # Errors
/// As [`LaneWriter::flush`](crate::LaneWriter::flush).
pub(crate) async fn flush<S: FlushStatements>(
    lane: &mut Lane,
    session: &mut S,
    batch: &Batch,
) -> Result<Flushed, StoreError> {
    Flush::new(lane, session, batch).run().await
}

/// Dead-letters all records of `batch`, if the table takes another record.
///
/// # Errors
/// As [`LaneWriter::dead_letter`](crate::LaneWriter::dead_letter).
pub(crate) async fn dead_letter<S: FlushStatements>(
    lane: &mut Lane,
    session: &mut S,
    batch: &Batch,
    rejection: &Rejection,
) -> Result<Flushed, StoreError> {
    let mut flush = Flush::new(lane, session, batch);
    let Some(first) = rows(batch, flush.lane.row.lane_id).next() else { return flush.run().await };
    // First another record, then this one again: what concerns every row may have ended since this one was refused.
    flush.check(rejection, first.record.ts_us).await?;
    let again = match batch.records() == 1 && rejection.code != Rejection::INTERRUPTED {
        true => flush.takes(first.record).await,
        false => Ok(Taken::No),
    };
    let taken = match again {
        Ok(Taken::Yes) => true,
        Ok(Taken::No) => false,
        Ok(Taken::Unknown(error)) | Err(error) => return Err(interrupted(error, rejection)),
    };
    if !taken {
        let records = flush.records();
        flush.refused = (0..records).map(|index| LeftOut { index, rejection: rejection.clone() }).collect();
    }
    flush.run().await
}

/// What became of a transaction.
enum Attempt {
    Committed(Flushed),
    /// Rolled back: other records of the batch are repeated than was known.
    OthersRepeated,
    /// Rolled back: the table took none of the batch's rows, and it is not known whether it takes others. About the last
    /// of them.
    NothingTaken {
        rejection: Rejection,
        ts_us: i64,
    },
}

/// A flush and what it knows about its rows so far.
struct Flush<'f, S> {
    lane: &'f mut Lane,
    session: &'f mut S,
    batch: &'f Batch,
    /// The frames that repeat a request, and how many of their records are stored.
    repeated_frames: BTreeMap<u64, u64>,
    /// The indexes of the rows of these records, ascending.
    repeated: Vec<usize>,
    /// The rows that will be dead letters, by index. None of them is repeated.
    refused: Vec<LeftOut>,
    /// How many of them were located one by one.
    located: usize,
    /// Each row has been tried alone.
    probed: bool,
    /// Nothing of the batch was taken, and then another record was.
    checked: bool,
    /// How many times what was refused was taken when it was tried again.
    ended: u32,
    how: How,
}

/// Whether the table takes a record.
enum Taken {
    Yes,
    No,
    /// It is not known: another session holds a lock, or the like.
    Unknown(StoreError),
}

impl<'f, S: FlushStatements> Flush<'f, S> {
    fn new(lane: &'f mut Lane, session: &'f mut S, batch: &'f Batch) -> Self {
        lane.exact = lane.exact.saturating_sub(1);
        let how = if lane.exact > 0 { How::Exact } else { How::Fast };
        Self {
            lane,
            session,
            batch,
            repeated_frames: BTreeMap::new(),
            repeated: Vec::new(),
            refused: Vec::new(),
            located: 0,
            probed: false,
            checked: false,
            ended: 0,
            how,
        }
    }

    async fn run(mut self) -> Result<Flushed, StoreError> {
        loop {
            match self.attempt().await {
                Ok(Attempt::Committed(flushed)) => return Ok(flushed),
                Ok(Attempt::OthersRepeated) => {}
                Ok(Attempt::NothingTaken { rejection, ts_us }) => {
                    self.check(&rejection, ts_us).await?;
                    self.checked = true;
                }
                Err(Refused::Filtered) if self.how == How::Fast => {
                    (self.how, self.lane.exact) = (How::Exact, EXACT_FLUSHES);
                }
                Err(Refused::Filtered) => {
                    let text = "the database dropped rows without an error, and it cannot be told which; rolled back";
                    return Err(StoreError::Systemic(text.to_owned()));
                }
                Err(Refused::Row { at, rejection }) => self.isolate(at, rejection).await?,
                Err(Refused::Failed(error)) => return Err(error),
            }
        }
    }

    fn records(&self) -> usize {
        usize::try_from(self.batch.records()).unwrap_or(usize::MAX)
    }

    fn step(&self) -> Step<'f> {
        let (dead, repeated) = (self.refused.len() as u64, self.repeated.len() as u64);
        Step {
            writer: self.lane.writer,
            epoch: self.lane.epoch,
            lane_id: self.lane.row.lane_id,
            batch: self.batch,
            rows: self.batch.records() - dead - repeated,
            repeated,
            dead,
        }
    }

    /// Runs one transaction.
    async fn attempt(&mut self) -> Result<Attempt, Refused> {
        let cursor_first = !armed("mutation.cursor_outside_tx");
        let (batch, step) = (self.batch, self.step());
        self.session.begin(Purpose::Commit).await?;
        if cursor_first && !self.move_cursor(&step).await? {
            return Ok(Attempt::Committed(self.resolve_mismatch().await?));
        }
        if self.others_repeated(&step).await? {
            self.session.rollback().await?;
            return Ok(Attempt::OthersRepeated);
        }
        kill_point("store.copy.before");
        let mut volume = Counter::default();
        let skip = self.left_out();
        let mut left_out = Vec::new();
        if step.rows > 0 {
            let rows = rows_without(batch, step.lane_id, &skip);
            match self.session.insert(rows, &mut volume, self.how).await {
                Ok(found) => left_out = found,
                Err(Refused::Failed(error)) => return Err(error.into()),
                Err(refused) => {
                    self.session.rollback().await?;
                    return Err(refused);
                }
            }
        }
        kill_point("store.copy.after");
        if !self.checked
            && left_out.len() as u64 == step.rows
            && let Some(last) = left_out.last()
        {
            let rejection = last.rejection.clone();
            self.session.rollback().await?;
            let last = rows_without(batch, step.lane_id, &skip).last();
            return Ok(Attempt::NothingTaken { rejection, ts_us: last.map_or(0, |row| row.record.ts_us) });
        }
        let left_out = self.in_batch(left_out);
        let flushed = Flushed {
            rows: step.rows - left_out.len() as u64,
            dead_lettered: step.dead + left_out.len() as u64,
            repeated: step.repeated,
        };
        if !left_out.is_empty() {
            self.session.recount(&step, left_out.len() as u64).await?;
        }
        let mut dead = left_out;
        dead.extend_from_slice(&self.refused);
        dead.sort_unstable_by_key(|left| left.index);
        if !dead.is_empty() {
            let all: Vec<Row<'_>> = rows(batch, step.lane_id).collect();
            let letters: Vec<Letter<'_>> =
                dead.iter().map(|left| Letter { row: all[left.index], rejection: &left.rejection }).collect();
            self.session.insert_dead_letters(&step, &letters).await.map_err(refused_letters)?;
        }
        let mut read_back = self.session.count_and_read_back(&step, volume.finish()).await?;
        if !cursor_first {
            self.session.commit().await?;
            kill_point("store.mutation.between");
            self.session.begin(Purpose::Commit).await?;
            self.move_cursor(&step).await?;
            read_back = self.session.count_and_read_back(&step, Vec::new()).await?;
        }
        self.guard(&flushed, read_back)?;
        kill_point("store.commit.before");
        self.session.commit().await?;
        kill_point("store.commit.after");
        self.committed(&flushed, &dead);
        Ok(Attempt::Committed(flushed))
    }

    /// Runs the compare-and-set. Returns whether it matched.
    async fn move_cursor(&mut self, step: &Step<'_>) -> Result<bool, StoreError> {
        kill_point("store.cas.before");
        let moved = self.session.move_cursor(step).await?;
        kill_point("store.cas.after");
        Ok(moved)
    }

    /// Looks up and remembers the requests of the batch. Returns whether other records are repeated than was known; if not,
    /// counts them.
    async fn others_repeated(&mut self, step: &Step<'_>) -> Result<bool, StoreError> {
        let requests = requests(self.batch);
        if requests.is_empty() || armed("mutation.no_key_lookup") {
            return Ok(false);
        }
        let known = self.session.claim_keys(&new_rows(step.lane_id, &requests)).await?;
        let decision = decide(step.lane_id, &requests, &known);
        if decision.repeated == self.repeated_frames {
            if !decision.changed.is_empty() {
                self.session.update_keys(&decision.changed).await?;
            }
            kill_point("store.keys.after");
            if step.repeated > 0 {
                self.session.count_repeated(step).await?;
            }
            return Ok(false);
        }
        let is_repeated = |(_, row): &(usize, Row<'_>)| {
            decision.repeated.get(&row.seq).is_some_and(|stored| u64::from(row.row) < *stored)
        };
        self.repeated =
            rows(self.batch, step.lane_id).enumerate().filter(is_repeated).map(|(index, _)| index).collect();
        self.refused.retain(|left| self.repeated.binary_search(&left.index).is_err());
        self.repeated_frames = decision.repeated;
        Ok(true)
    }

    /// The indexes of the rows that are not inserted, ascending.
    fn left_out(&self) -> Vec<usize> {
        let mut all: Vec<usize> = self.refused.iter().map(|left| left.index).chain(self.repeated.clone()).collect();
        all.sort_unstable();
        all
    }

    /// Finds out why the compare-and-set matched no row.
    async fn resolve_mismatch(&mut self) -> Result<Flushed, StoreError> {
        let (writer, mine, batch) = (self.lane.writer, self.lane.epoch, self.batch);
        let owner = self.session.owner(writer).await?;
        let row = self.session.lane(writer, batch.lane).await?;
        self.session.rollback().await?;
        let epoch = owner.as_ref().map(|owner| owner.epoch);
        match (on_cursor_mismatch(mine, self.lane.row.lane_id, epoch, row.as_ref(), batch), row) {
            (CursorMismatch::AlreadyApplied, Some(row)) => {
                let before = mem::replace(&mut self.lane.row, row);
                let row = &self.lane.row;
                Ok(Flushed {
                    rows: row.rows.saturating_sub(before.rows),
                    dead_lettered: row.dead_lettered.saturating_sub(before.dead_lettered),
                    repeated: row.repeated.saturating_sub(before.repeated),
                })
            }
            (CursorMismatch::Moved, Some(row)) => {
                self.lane.row = row.clone();
                Err(StoreError::CursorMoved(Box::new(row)))
            }
            (CursorMismatch::Fenced, _) => {
                let (epoch, owner) = owner.map(|owner| (owner.epoch, owner.owner)).unwrap_or_default();
                Err(StoreError::Fenced { writer, epoch, mine, owner })
            }
            (CursorMismatch::Reused(seq), _) => Err(StoreError::SequenceReused { lane: batch.lane, seq }),
            (CursorMismatch::Rewound | CursorMismatch::AlreadyApplied | CursorMismatch::Moved, _) => {
                Err(StoreError::LeaseLost { writer, mine })
            }
        }
    }

    /// Checks what the lane's row says before the commit.
    fn guard(&self, flushed: &Flushed, (seq, accounted): (u64, u64)) -> Result<(), StoreError> {
        let batch = self.batch;
        if (seq, accounted) == (batch.to_seq(), batch.to_records()) || armed("mutation.no_guard") {
            return Ok(());
        }
        Err(StoreError::Systemic(format!(
            "lane {}: inconsistent counts, rolled back: with this batch ({} rows, {} dead letters, {} repeated, {} lost, \
             frames after {} to {}) the database would account for {accounted} records at frame {seq}; the journal has {} at frame {}. \
             Nothing but logweir may change table logweir_lane: undo that, or restore the database",
            batch.lane,
            flushed.rows,
            flushed.dead_lettered,
            flushed.repeated,
            batch.lost(),
            batch.from_seq,
            batch.to_seq(),
            batch.to_records(),
            batch.to_seq(),
        )))
    }

    fn committed(&mut self, flushed: &Flushed, dead: &[LeftOut]) {
        let (batch, row) = (self.batch, &mut self.lane.row);
        (row.last_seq, row.digest) = (batch.to_seq(), batch.digest());
        row.rows += flushed.rows;
        row.dead_lettered += flushed.dead_lettered;
        row.inherited += flushed.repeated;
        row.repeated += flushed.repeated;
        row.lost += batch.lost();
        let mut index = batch.records();
        let mut left_out: Vec<usize> = dead.iter().map(|left| left.index).chain(self.repeated.clone()).collect();
        left_out.sort_unstable();
        let mut left_out = left_out.iter().rev().map(|index| *index as u64).peekable();
        let mut accepted = batch.records_backwards().filter(|_| {
            index -= 1;
            left_out.next_if_eq(&index).is_none()
        });
        if let Some(record) = accepted.next() {
            self.lane.last_taken.keep(&record);
        }
        log_dead_letters(batch, dead);
    }

    /// Converts indexes among the rows that were sent into indexes in the batch.
    fn in_batch(&self, found: Vec<LeftOut>) -> Vec<LeftOut> {
        if found.is_empty() || (self.refused.is_empty() && self.repeated.is_empty()) {
            return found;
        }
        let sent = self.sent();
        found.into_iter().map(|left| LeftOut { index: sent[left.index], ..left }).collect()
    }

    /// The indexes of the rows that are neither repeated nor refused yet.
    fn sent(&self) -> Vec<usize> {
        let is_refused = |index: &usize| self.refused.binary_search_by_key(index, |left| left.index).is_ok();
        let is_repeated = |index: &usize| self.repeated.binary_search(index).is_ok();
        (0..self.records()).filter(|index| !is_refused(index) && !is_repeated(index)).collect()
    }

    /// Finds the row that was refused (or all such rows), or sends the batch again if it is taken now.
    async fn isolate(&mut self, at: Option<usize>, rejection: Rejection) -> Result<(), StoreError> {
        if self.located >= LOCATED_MAX && !self.probed {
            self.probed = true;
            if self.probe().await? {
                return Ok(());
            }
        }
        if self.located >= TOGETHER_MAX || self.ended >= ENDED_MAX {
            return Err(StoreError::Rejected(rejection));
        }
        match self.locate(at).await? {
            Some(found) => {
                let place = self.refused.partition_point(|left| left.index < found.index);
                self.refused.insert(place, found);
                self.located += 1;
            }
            None => self.ended += 1,
        }
        Ok(())
    }

    /// Tries each row alone. Returns whether any was refused.
    async fn probe(&mut self) -> Result<bool, StoreError> {
        let all: Vec<Row<'_>> = rows(self.batch, self.lane.row.lane_id).collect();
        let sent = self.sent();
        let tried: Vec<Row<'_>> = sent.iter().map(|&index| all[index]).collect();
        let found = self.session.probe(&tried).await?;
        // Another record once for all that it says the same about.
        let mut checked = BTreeSet::new();
        for LeftOut { index, rejection } in &found {
            let ts_us = tried[*index].record.ts_us;
            let day = (!is_about_values(&rejection.code)).then(|| ts_us.div_euclid(DAY_US));
            if checked.insert(day) {
                self.check(rejection, ts_us).await?;
            }
        }
        let indexes: Vec<usize> = found.iter().map(|left| left.index).collect();
        let suspects: Vec<Row<'_>> = indexes.iter().map(|&index| tried[index]).collect();
        if suspects.is_empty() {
            return Ok(false);
        }
        let again = self.session.probe(&suspects).await?;
        if again.is_empty() {
            self.ended += 1;
        }
        self.refused.extend(again.into_iter().map(|left| LeftOut { index: sent[indexes[left.index]], ..left }));
        self.refused.sort_unstable_by_key(|left| left.index);
        Ok(true)
    }

    /// Finds a row that was refused, another record was taken, and it was refused again. `None` if nothing is refused
    /// any more.
    async fn locate(&mut self, at: Option<usize>) -> Result<Option<LeftOut>, StoreError> {
        let all: Vec<Row<'_>> = rows(self.batch, self.lane.row.lane_id).collect();
        let sent = self.sent();
        let tried: Vec<Row<'_>> = sent.iter().map(|&index| all[index]).collect();
        let Some((suspects, rejection)) = self.suspects(&tried, at.filter(|at| *at < tried.len())).await? else {
            return Ok(None);
        };
        let last = suspects.end - 1;
        self.check(&rejection, tried[last].record.ts_us).await?;
        let again = self.refusal(&tried[suspects]).await?;
        Ok(again.map(|rejection| LeftOut { index: sent[last], rejection }))
    }

    /// Finds the rows of which the last is at fault: that row alone, or with those before it.
    async fn suspects(
        &mut self,
        tried: &[Row<'_>],
        at: Option<usize>,
    ) -> Result<Option<(Range<usize>, Rejection)>, StoreError> {
        if let Some(at) = at
            && let Some(rejection) = self.refusal(&tried[at..=at]).await?
        {
            return Ok(Some((at..at + 1, rejection)));
        }
        // No place, or not that row alone: the last row of the shortest refused prefix.
        let Some((end, rejection)) = self.shortest_refused(tried, at).await? else { return Ok(None) };
        if at != Some(end - 1)
            && let Some(alone) = self.refusal(&tried[end - 1..end]).await?
        {
            return Ok(Some((end - 1..end, alone)));
        }
        // A constraint (class 23) can hold between rows, so that one is bad next to another. Anything else that is refused
        // only together is too much at once: the flusher divides it.
        match rejection.code.starts_with("23") {
            true => Ok(Some((0..end, rejection))),
            false => Err(StoreError::Rejected(rejection)),
        }
    }

    /// Returns the length of the shortest refused prefix, if any is refused now. The database says `at` which row it
    /// failed.
    async fn shortest_refused(
        &mut self,
        tried: &[Row<'_>],
        at: Option<usize>,
    ) -> Result<Option<(usize, Rejection)>, StoreError> {
        let mut shortest = None;
        for end in at.map(|at| at + 1).into_iter().chain([tried.len()]) {
            if shortest.is_none() {
                shortest = self.refusal(&tried[..end]).await?.map(|rejection| (end, rejection));
            }
        }
        let Some((mut refused, mut rejection)) = shortest else { return Ok(None) };
        let mut accepted = 0;
        // It is usually right.
        let mut next = at.filter(|at| at + 1 == refused);
        while refused - accepted > 1 {
            let middle = next.take().unwrap_or_else(|| accepted.midpoint(refused));
            match self.refusal(&tried[..middle]).await? {
                Some(why) => (refused, rejection) = (middle, why),
                None => accepted = middle,
            }
        }
        Ok(Some((refused, rejection)))
    }

    /// Inserts `rows` and rolls back. Returns why they were refused, if they were.
    async fn refusal(&mut self, rows: &[Row<'_>]) -> Result<Option<Rejection>, StoreError> {
        self.session.begin(Purpose::Try).await?;
        let outcome = self.session.insert(Rows::list(rows), &mut Counter::default(), How::Fast).await;
        match outcome {
            Err(Refused::Failed(error)) => return Err(error),
            _ => self.session.rollback().await?,
        }
        match outcome {
            Err(Refused::Row { rejection, .. }) => Ok(Some(rejection)),
            // Rows that can be left out do not stop the others.
            Ok(left_out) if rows.len() == 1 => Ok(left_out.into_iter().next().map(|left| left.rejection)),
            Ok(_) | Err(Refused::Filtered | Refused::Failed(_)) => Ok(None),
        }
    }

    /// Tries whether the table takes another record where a record of the time `ts_us` was refused with `rejection`: the
    /// last one that it took, one made up, one that it holds. All of a flush that depends on a record is tried, and rolled
    /// back.
    ///
    /// Time decides in which partition a record is stored, and one of them can be out of order. So the others are tried
    /// with that time. If none is taken, but one of the present time is, the time can be what is refused, or only its
    /// partition; what the error is about tells which.
    ///
    /// # Errors
    /// [`StoreError::Systemic`] if the table takes none of them; [`StoreError::Transient`] if that is known of none.
    async fn check(&mut self, rejection: &Rejection, ts_us: i64) -> Result<(), StoreError> {
        let now_us = wall_us();
        let about_values = is_about_values(&rejection.code);
        let times: &[i64] = if about_values { &[ts_us, now_us] } else { &[ts_us] };
        let (mut refused, mut unknown) = (false, None);
        for nth in 0..3 {
            let sample = match nth {
                0 => self.lane.last_taken.get(),
                1 => Sample::synthetic(now_us),
                // Last, since reading it takes a lock on every partition.
                _ => self.stored_record().await?,
            };
            let Some(record) = sample.record() else { continue };
            for &ts_us in times {
                match self.takes(Record { ts_us, ..record }).await? {
                    Taken::Yes => return Ok(()),
                    Taken::No => refused = true,
                    Taken::Unknown(error) => unknown = Some(error),
                }
            }
        }
        if let Some(error) = unknown.filter(|_| !refused) {
            return Err(error);
        }
        let (lane, reason) = (self.batch.lane, &rejection.reason);
        let whose = if about_values { "" } else { " of that time" };
        Err(StoreError::Systemic(format!(
            "lane {lane}: the table refuses every record{whose} (others were tried, too), so nothing was dead-lettered: \
             {reason}"
        )))
    }

    /// Reads a record that the table holds. An error means that this sample is missing; the other samples are sufficient.
    async fn stored_record(&mut self) -> Result<Sample, StoreError> {
        self.session.begin(Purpose::Try).await?;
        let found = self.session.stored_record().await;
        self.session.rollback().await?;
        Ok(found.ok().flatten().unwrap_or_default())
    }

    /// # Errors
    /// If the session is lost.
    async fn takes(&mut self, record: Record<'_>) -> Result<Taken, StoreError> {
        let step = self.step();
        let Some(first) = rows(self.batch, step.lane_id).next() else { return Ok(Taken::Yes) };
        let mut volume = Counter::default();
        self.session.begin(Purpose::Try).await?;
        let row = Row { record, ..first };
        let mut outcome = self.session.insert(Rows::list(std::slice::from_ref(&row)), &mut volume, How::Exact).await;
        if matches!(&outcome, Ok(left_out) if left_out.is_empty()) {
            outcome = self
                .session
                .count_and_read_back(&step, volume.finish())
                .await
                .map(|_| Vec::new())
                .map_err(Refused::Failed);
        }
        self.session.rollback().await?;
        Ok(match outcome {
            Ok(left_out) if left_out.is_empty() => Taken::Yes,
            Err(Refused::Failed(error @ StoreError::Transient(_))) => Taken::Unknown(error),
            _ => Taken::No,
        })
    }
}

/// Returns whether an error is about a record's values whatever it is raised by: bad values (SQLSTATE class 22),
/// constraints (23), the exceptions of the operator's triggers (P0), and rows that they drop. All of SQLite's are: it has
/// no partitions.
pub(crate) fn is_about_values(code: &str) -> bool {
    code == FILTERED || ["22", "23", "P0", "SQLITE-"].iter().any(|class| code.starts_with(class))
}

/// What a record fails with that was suspected before the table took another one.
fn interrupted(error: StoreError, suspected: &Rejection) -> StoreError {
    match error {
        StoreError::Transient(reason) if suspected.code == Rejection::SUSPECTED => StoreError::Rejected(Rejection {
            code: Rejection::INTERRUPTED.to_owned(),
            reason: format!("the table takes other records, and each flush of this one fails: {reason}"),
        }),
        error => error,
    }
}

/// A dead letter can always be written, unless somebody has changed its table.
fn refused_letters(error: StoreError) -> StoreError {
    match error {
        StoreError::Systemic(text) => StoreError::Systemic(format!(
            "{text}; table logweir_dead_letter must take every row: drop the triggers, constraints and policies that were \
             added to it"
        )),
        other => other,
    }
}

fn log_dead_letters(batch: &Batch, dead: &[LeftOut]) {
    for left in dead {
        let code = left.rejection.code.clone();
        metrics::counter!("logweir_store_dead_letters_total", "sqlstate" => code).increment(1);
    }
    if dead.len() > LOGGED_MAX {
        let records = dead.len() - LOGGED_MAX;
        tracing::warn!(lane = batch.lane, records, "further records of the batch were dead-lettered");
    }
    for LeftOut { rejection: Rejection { code, reason }, .. } in dead.iter().take(LOGGED_MAX) {
        tracing::warn!(lane = batch.lane, sqlstate = code, reason, "dead-lettered a record");
    }
}
