//! One lane's flush: rows, cursor, counters and dead letters in one transaction, exactly once.
//!
//! - The cursor moves first, by a compare-and-set on epoch, cursor, accounted records and `lane_id`. Its row lock makes a
//!   retry wait for a zombie transaction of the same batch, so that what the retry reads is final. A check without the
//!   lock would not.
//! - The last statement before the commit reads the lane back: COMMIT of an aborted transaction returns ROLLBACK without
//!   an error, whereas a SELECT in it fails. It also proves that the counters match the journal.
//! - A row is dead-lettered only after it has failed alone, or as the last row of the shortest failing prefix, and never
//!   because the table refuses everything: before a batch of which nothing would be stored, and before many rows, another
//!   record is tried (and rolled back). If the table does not take that one either, the lane waits.
//! - The number of statements is bounded: locating a bad row takes about two attempts. After [`LOCATED_MAX`] of them
//!   each row is tried alone, which finds all that fail alone. Rows that violate a constraint only together are located up to
//!   [`TOGETHER_MAX`]; beyond that the flusher divides the batch.

use std::mem;

use logweir_engine::clock::wall_us;
use logweir_engine::fault::{armed, kill_point};
use logweir_record::record::Record;
use uuid::Uuid;

use super::statements::{FlushStatements, How, LeftOut, Letter, Purpose, Refused, Step};
use crate::batch::Batch;
use crate::error::{Rejection, StoreError};
use crate::lane::{Flushed, LaneRow};
use crate::protocol::cursor::{CursorMismatch, on_cursor_mismatch};
use crate::protocol::rows::{Row, Rows, rows, rows_without};
use crate::protocol::sample::Sample;
use crate::protocol::volume_counter::Counter;

/// Number of rows of a batch that are located one by one before each of its rows is tried alone, which is cheaper from
/// then on.
const LOCATED_MAX: usize = 8;
/// Number of rows of a batch that are located one by one although none of them fails alone.
const TOGETHER_MAX: usize = 100;
/// Number of a batch's dead letters that are logged individually. All are in the table.
const LOGGED_MAX: usize = 8;

/// A lane as its flushes know it.
#[derive(Debug)]
pub(crate) struct Lane {
    pub(crate) writer: Uuid,
    pub(crate) epoch: i64,
    /// The lane's row as of the last commit or read.
    pub(crate) row: LaneRow,
    /// The last record that the table accepted.
    sample: Sample,
}

impl Lane {
    /// The lane with the row `row`, under a lease of `epoch`.
    pub(crate) fn new(writer: Uuid, epoch: i64, row: LaneRow) -> Self {
        Self { writer, epoch, row, sample: Sample::default() }
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
    // First another record, then this one again: what concerns every row may have ended since this one was refused.
    flush.check(rejection).await?;
    let taken = match rows(batch, flush.lane.row.lane_id).next() {
        Some(first) if batch.records() == 1 => flush.takes(first.record).await?,
        _ => false,
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
    /// Rolled back: the table took none of the batch's rows, and it is not known whether it takes others.
    NothingTaken(Rejection),
}

/// A flush and what it knows about its rows so far.
struct Flush<'f, S> {
    lane: &'f mut Lane,
    session: &'f mut S,
    batch: &'f Batch,
    /// The rows that will be dead letters, by index.
    refused: Vec<LeftOut>,
    /// How many of them were located one by one.
    located: usize,
    /// Each row has been tried alone.
    probed: bool,
    /// The table has taken another record.
    checked: bool,
    how: How,
}

impl<'f, S: FlushStatements> Flush<'f, S> {
    fn new(lane: &'f mut Lane, session: &'f mut S, batch: &'f Batch) -> Self {
        Self { lane, session, batch, refused: Vec::new(), located: 0, probed: false, checked: false, how: How::Fast }
    }

    async fn run(mut self) -> Result<Flushed, StoreError> {
        loop {
            if let Some(last) = self.refused.last().filter(|_| self.refused.len() == self.records()) {
                let rejection = last.rejection.clone();
                self.check(&rejection).await?;
            }
            match self.attempt().await {
                Ok(Attempt::Committed(flushed)) => return Ok(flushed),
                Ok(Attempt::NothingTaken(rejection)) => self.check(&rejection).await?,
                Err(Refused::Filtered) if self.how == How::Fast => self.how = How::Exact,
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
        let dead = self.refused.len() as u64;
        Step {
            writer: self.lane.writer,
            epoch: self.lane.epoch,
            lane_id: self.lane.row.lane_id,
            batch: self.batch,
            rows: self.batch.records() - dead,
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
        kill_point("store.copy.before");
        let mut volume = Counter::default();
        let skip: Vec<usize> = self.refused.iter().map(|left| left.index).collect();
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
            return Ok(Attempt::NothingTaken(rejection));
        }
        let left_out = self.in_batch(left_out);
        let flushed =
            Flushed { rows: step.rows - left_out.len() as u64, dead_lettered: step.dead + left_out.len() as u64 };
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
            self.session.insert_dead_letters(&step, &letters).await?;
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
            "lane {}: inconsistent counts, rolled back: with this batch ({} rows, {} dead letters, {} lost, frames after \
             {} to {}) the database would account for {accounted} records at frame {seq}; the journal has {} at frame {}. \
             Nothing but logweir may change table logweir_lane: undo that, or restore the database",
            batch.lane,
            flushed.rows,
            flushed.dead_lettered,
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
        row.lost += batch.lost();
        let mut index = batch.records();
        let mut dead_indexes = dead.iter().rev().map(|left| left.index as u64).peekable();
        let mut accepted = batch.records_backwards().filter(|_| {
            index -= 1;
            dead_indexes.next_if_eq(&index).is_none()
        });
        if let Some(record) = accepted.next() {
            self.lane.sample.keep(&record);
        }
        log_dead_letters(batch, dead);
    }

    /// Converts indexes among the rows that were sent into indexes in the batch.
    fn in_batch(&self, found: Vec<LeftOut>) -> Vec<LeftOut> {
        if found.is_empty() || self.refused.is_empty() {
            return found;
        }
        let sent = self.sent();
        found.into_iter().map(|left| LeftOut { index: sent[left.index], ..left }).collect()
    }

    /// The indexes of the rows that are not refused yet.
    fn sent(&self) -> Vec<usize> {
        let is_refused = |index: &usize| self.refused.binary_search_by_key(index, |left| left.index).is_ok();
        (0..self.records()).filter(|index| !is_refused(index)).collect()
    }

    /// Finds the row that was refused (or all such rows).
    async fn isolate(&mut self, at: Option<usize>, rejection: Rejection) -> Result<(), StoreError> {
        if self.located >= LOCATED_MAX && !self.probed {
            // A table that refuses everything is not tried row by row.
            self.check(&rejection).await?;
            self.probed = true;
            let all: Vec<Row<'_>> = rows(self.batch, self.lane.row.lane_id).collect();
            let sent: Vec<Row<'_>> = self.sent().into_iter().map(|index| all[index]).collect();
            let found = self.session.probe(&sent).await?;
            if !found.is_empty() {
                let found = self.in_batch(found);
                self.refused.extend(found);
                self.refused.sort_unstable_by_key(|left| left.index);
                return Ok(());
            }
        }
        if self.located >= TOGETHER_MAX {
            return Err(StoreError::Rejected(rejection));
        }
        let found = self.locate(at, rejection).await?;
        let place = self.refused.partition_point(|left| left.index < found.index);
        self.refused.insert(place, found);
        self.located += 1;
        Ok(())
    }

    async fn locate(&mut self, at: Option<usize>, rejection: Rejection) -> Result<LeftOut, StoreError> {
        let all: Vec<Row<'_>> = rows(self.batch, self.lane.row.lane_id).collect();
        let sent = self.sent();
        if let Some(&index) = at.and_then(|at| sent.get(at))
            && let Some(rejection) = self.refusal(&all[index..=index]).await?
        {
            return Ok(LeftOut { index, rejection });
        }
        // No place, or not that row alone: the last row of the shortest refused prefix.
        let (mut accepted, mut refused, mut last) = (0, sent.len(), rejection);
        while refused - accepted > 1 {
            let middle = accepted.midpoint(refused);
            let part: Vec<Row<'_>> = sent[..middle].iter().map(|&index| all[index]).collect();
            match self.refusal(&part).await? {
                Some(rejection) => (refused, last) = (middle, rejection),
                None => accepted = middle,
            }
        }
        let index = sent[refused - 1];
        // A constraint (class 23) can hold between rows, so that one is bad next to another. Anything else that is refused
        // only together is too much at once: the flusher divides it.
        if !last.code.starts_with("23") && self.refusal(&all[index..=index]).await?.is_none() {
            return Err(StoreError::Rejected(last));
        }
        Ok(LeftOut { index, rejection: last })
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
            Ok(_) | Err(Refused::Filtered | Refused::Failed(_)) => Ok(None),
        }
    }

    /// Tries whether the table takes any record at all, once per flush: the last one that it took on this lane, one that
    /// it holds, one made up. All of a flush that depends on a record is tried, and rolled back.
    ///
    /// # Errors
    /// [`StoreError::Systemic`] if the table takes none of them. `rejection` is what led here.
    async fn check(&mut self, rejection: &Rejection) -> Result<(), StoreError> {
        if self.checked {
            return Ok(());
        }
        let mut samples = vec![self.lane.sample.clone(), Sample::synthetic(wall_us())];
        if let Some(stored) = self.stored_record().await? {
            samples.insert(1, stored);
        }
        for sample in &samples {
            if let Some(record) = sample.record()
                && self.takes(record).await?
            {
                self.checked = true;
                return Ok(());
            }
        }
        let (lane, reason) = (self.batch.lane, &rejection.reason);
        Err(StoreError::Systemic(format!(
            "lane {lane}: the table refuses every record (others were tried, too), so nothing was dead-lettered: {reason}"
        )))
    }

    async fn stored_record(&mut self) -> Result<Option<Sample>, StoreError> {
        self.session.begin(Purpose::Try).await?;
        let found = self.session.stored_record().await;
        self.session.rollback().await?;
        match found {
            Ok(found) => Ok(found),
            Err(error @ StoreError::Transient(_)) => Err(error),
            Err(_) => Ok(None),
        }
    }

    async fn takes(&mut self, record: Record<'_>) -> Result<bool, StoreError> {
        let step = self.step();
        let Some(first) = rows(self.batch, step.lane_id).next() else { return Ok(true) };
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
        match outcome {
            Err(Refused::Failed(error @ StoreError::Transient(_))) => return Err(error),
            _ => self.session.rollback().await?,
        }
        Ok(matches!(outcome, Ok(left_out) if left_out.is_empty()))
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
