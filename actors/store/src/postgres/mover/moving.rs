//! Moves late records into chunks.
//!
//! - A record moves in one transaction, with its id, so each query sees it once. Its counter and its lane know nothing
//!   of it.
//! - First those near the present, which most queries ask for; then all others by turns: a bounded number of slots and
//!   rows per turn, from where the last round ended. What one sender has stored keeps no other from its turn.
//! - Each statement begins where the one before ended, and reads no index entries of what has moved since.
//! - A record that `logs` refuses becomes a dead letter, and its neighbors move.
//! - A statement that makes a chunk holds TimescaleDB's lock on making chunks until its commit. A flush that needs a
//!   new chunk at that moment waits for it, shortly: the chunk of a day is made by its first record.

use std::collections::BTreeMap;
use std::mem;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use logweir_engine::fault::{armed, kill_point};
use logweir_record::timestamp::{DAY_US, text};
use tokio::time::Instant;
use tokio_postgres::Client;

use super::super::chunk::{Chunk, chunks};
use super::super::ddl::{Failures, Relation, transaction};
use super::super::logs::{COLUMN_NAMES, Logs, LogsKind};
use super::super::place::Window;
use super::super::types::Time;
use super::letter::{bury, check_others};
use super::pieces::{Pace, Pieces, ROWS_MAX};
use super::refusal::Refusal;
use super::rule::{ROWS_MIN, Slot, Verdict, chunks_max, decide, slot};
use super::waiting::{LIMITS, Listed, Room, count, list, next, total};
use crate::error::{Rejection, StoreError};

/// Time for moving records in one round. Those near the present take half of it at most.
const MOVE_FOR: Duration = Duration::from_secs(240);

/// Slots that are looked at in one round.
const SLOTS_MAX: u32 = 1_000;

/// Slots that fail in one round before it ends.
const FAILED_MAX: u32 = 16;

/// Rows of a slot that move per turn.
const TURN_ROWS_MAX: u64 = 100_000;

/// Rows of a slot without a chunk that are counted, to tell which have the most.
const COUNTED_MAX: i64 = 100_000;

/// Slots of a round for which chunks are made.
const CHUNKS_MADE_MAX: usize = 64;

/// What a process remembers from round to round.
#[derive(Debug, Default)]
pub(in super::super) struct Memory(Mutex<Progress>);

impl Memory {
    /// Another process does it from now on, and shows what waits.
    pub(in super::super) fn end(&self) {
        if mem::take(&mut *self.lock()).rounds > 0 {
            show(0, 0);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Progress> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// Metrics are floats.
#[allow(clippy::cast_precision_loss)]
fn show(rows: i64, overdue_us: i64) {
    metrics::gauge!("logweir_store_late_rows").set(rows as f64);
    metrics::gauge!("logweir_store_late_overdue_seconds").set(overdue_us as f64 / 1e6);
}

#[derive(Clone, Copy, Debug)]
struct Progress {
    rounds: u64,
    /// Where the next round begins.
    next_us: i64,
    pace: Pace,
    /// Since the beginning was passed, and between the times before.
    seen: Seen,
    seen_before: Seen,
}

impl Default for Progress {
    fn default() -> Self {
        Self {
            rounds: 0,
            next_us: i64::MIN,
            pace: Pace::default(),
            seen: Seen::default(),
            seen_before: Seen::default(),
        }
    }
}

/// What stays although it should move.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    /// For how long records have stayed that should have moved.
    overdue_us: i64,
    /// Slots with many records that get no chunk because there are too many.
    without_chunk: u64,
}

/// A round.
struct Mover<'r> {
    client: &'r Client,
    logs: &'r Logs,
    late: &'r Relation,
    window: Window,
    /// Where what has not expired begins.
    kept_us: i64,
    now_us: i64,
    until: Instant,
    chunks: Vec<Chunk>,
    interval_us: i64,
    chunks_max: i64,
    progress: Progress,
    /// Slots that may still be looked at.
    slots: u32,
    /// Times at which nothing is left to do in this round, as ranges: a search begins behind them. Their index entries
    /// are mostly of records that have moved, and each search would read them again.
    visited: BTreeMap<i64, i64>,
    moved: u64,
    /// Slots that could not be moved.
    failed: u32,
    /// Slots that need a chunk, and the rows that wait for it.
    candidates: Vec<(i64, Slot)>,
    failures: Failures,
}

/// Moves late records to where they belong. What has expired (`first_kept` is the first day that has not) is left to be
/// deleted.
pub(in super::super) async fn move_records(
    client: &Client,
    logs: &Logs,
    window: Window,
    now_us: i64,
    first_kept: Option<i64>,
    memory: &Memory,
) -> Result<(), StoreError> {
    let Some(late) = &logs.late else { return Ok(()) };
    let (chunks, interval_us, chunks_max) = match logs.kind {
        LogsKind::Hypertable => {
            let room = Room::read(client, logs).await?;
            let chunks_max = chunks_max(room.locks_per_transaction, room.connections);
            (chunks(client, logs).await?, room.interval_us, chunks_max)
        }
        // Each record is within reach. By days: one whose partition is locked holds up no other.
        LogsKind::Partitioned | LogsKind::Plain => (Vec::new(), DAY_US, i64::MAX),
    };
    let mut progress = *memory.lock();
    progress.rounds += 1;
    progress.pace.speed_up();
    let kept_us = first_kept.map_or(i64::MIN, |day| day * DAY_US);
    let mut mover = Mover {
        client,
        logs,
        late,
        window,
        kept_us,
        now_us,
        until: Instant::now() + MOVE_FOR,
        chunks,
        interval_us,
        chunks_max,
        progress,
        slots: SLOTS_MAX,
        visited: BTreeMap::new(),
        moved: 0,
        failed: 0,
        candidates: Vec::new(),
        failures: Failures::default(),
    };
    let done = mover.run().await;
    let Mover { progress, mut failures, .. } = mover;
    *memory.lock() = progress;
    failures.add(done);
    match total(client, late).await {
        Ok(rows) => show(rows, progress.seen.overdue_us.max(progress.seen_before.overdue_us)),
        Err(error) => failures.add(Err(error)),
    }
    failures.first()
}

impl Mover<'_> {
    async fn run(&mut self) -> Result<(), StoreError> {
        let until = self.until;
        self.until = until - MOVE_FOR / 2;
        loop {
            let moved = self.moved;
            match self.walk(self.window.range()).await {
                Ok(None) if self.moved > moved => {}
                Ok(_) => break,
                Err(error) if self.client.is_closed() => return Err(error),
                Err(error) => {
                    self.failures.add(Err(error));
                    break;
                }
            }
        }
        (self.until, self.slots) = (until, SLOTS_MAX);
        loop {
            let moved = self.moved;
            let begin_us = self.progress.next_us;
            let mut stopped = self.walk((begin_us, i64::MAX)).await?;
            if stopped.is_none() {
                self.progress.seen_before = mem::take(&mut self.progress.seen);
                stopped = self.walk((i64::MIN, begin_us)).await?;
            }
            self.make_chunks().await?;
            self.progress.next_us = stopped.unwrap_or(i64::MIN);
            if self.moved == moved || self.is_over() {
                break;
            }
        }
        self.tell_of_chunks();
        Ok(())
    }

    /// Whether the next round goes on.
    fn is_over(&self) -> bool {
        self.slots == 0 || self.failed >= FAILED_MAX || Instant::now() >= self.until
    }

    /// Visits the slots of a range. Returns where it stopped before the end.
    async fn walk(&mut self, (from_us, to_us): (i64, i64)) -> Result<Option<i64>, StoreError> {
        let mut at_us = from_us.max(self.kept_us);
        while let Some(ts_us) = self.next((at_us, to_us)).await? {
            if self.is_over() {
                return Ok(Some(at_us));
            }
            self.slots -= 1;
            let slot = slot(ts_us, &self.chunks, self.interval_us);
            if at_us < slot.from_us {
                self.visited.insert(at_us, slot.from_us);
            }
            self.visit(slot).await?;
            at_us = slot.to_us;
        }
        Ok(None)
    }

    /// The first time of a range of which a record waits that was not visited yet.
    async fn next(&self, (from_us, to_us): (i64, i64)) -> Result<Option<i64>, StoreError> {
        let mut at_us = from_us;
        if at_us >= to_us {
            return Ok(None);
        }
        for (&slot_us, &visited_us) in self.visited.range(from_us..to_us) {
            if at_us < slot_us
                && let Some(found) = next(self.client, self.late, (at_us, slot_us)).await?
            {
                return Ok(Some(found));
            }
            at_us = at_us.max(visited_us);
        }
        match at_us < to_us {
            true => next(self.client, self.late, (at_us, to_us)).await,
            false => Ok(None),
        }
    }

    /// Gives a slot its turn.
    async fn visit(&mut self, slot: Slot) -> Result<(), StoreError> {
        let rows_max = if slot.chunk.is_none() { COUNTED_MAX } else { ROWS_MIN };
        let waiting = count(self.client, self.late, self.left(slot), rows_max).await?;
        let is_near = self.window.overlaps((slot.from_us, slot.to_us));
        match decide(slot.chunk, is_near, waiting, self.now_us) {
            Verdict::Stay => self.done_with(slot),
            Verdict::MakeChunk => {
                self.candidates.push((waiting.rows, slot));
                self.candidates.sort_unstable_by_key(|&(rows, _)| std::cmp::Reverse(rows));
                if self.candidates.len() > CHUNKS_MADE_MAX {
                    self.candidates.pop();
                }
            }
            Verdict::Move { since_us } => {
                if !self.move_slot(slot).await? {
                    self.done_with(slot);
                    let overdue_us = self.now_us.saturating_sub(since_us);
                    self.progress.seen.overdue_us = self.progress.seen.overdue_us.max(overdue_us);
                }
            }
        }
        Ok(())
    }

    /// Leaves a slot to the next round.
    fn done_with(&mut self, slot: Slot) {
        self.visited.insert(slot.from_us, slot.to_us);
    }

    /// The times of a slot that have neither expired nor been visited.
    fn left(&self, slot: Slot) -> (i64, i64) {
        let visited_us = self.visited.get(&slot.from_us).copied().unwrap_or(slot.from_us);
        (visited_us.max(self.kept_us), slot.to_us)
    }

    /// Makes chunks for the slots that have the most records, while there is room.
    async fn make_chunks(&mut self) -> Result<(), StoreError> {
        for (_, slot) in mem::take(&mut self.candidates) {
            if Instant::now() >= self.until {
                break;
            }
            if i64::try_from(self.chunks.len()).unwrap_or(i64::MAX) >= self.chunks_max {
                self.progress.seen.without_chunk += 1;
                self.done_with(slot);
                continue;
            }
            if !self.move_slot(slot).await? {
                self.done_with(slot);
            }
            self.chunks = chunks(self.client, self.logs).await?;
        }
        Ok(())
    }

    fn tell_of_chunks(&mut self) {
        let Progress { seen, seen_before, .. } = self.progress;
        let slots = seen.without_chunk.max(seen_before.without_chunk);
        if slots > 0 {
            let chunks = self.chunks.len();
            self.failures.add(Err(StoreError::Systemic(format!(
                "{} has many records of at least {slots} days (or other intervals of chunks) without a chunk, and {} \
                 has {chunks} of at most {}: more would take too many locks of one query. They are found where they \
                 are, more slowly. Raise max_locks_per_transaction and restart PostgreSQL, or choose a longer interval \
                 for chunks",
                self.late, self.logs.table, self.chunks_max
            ))));
        }
    }

    /// Moves the records of a slot, as many as are its turn. Returns whether none stays that should have moved.
    ///
    /// # Errors
    /// The list could not be read, or the connection is lost.
    async fn move_slot(&mut self, slot: Slot) -> Result<bool, StoreError> {
        let (mut from_us, to_us) = self.left(slot);
        let (before, pace) = (self.moved, self.progress.pace);
        loop {
            let listed = list(self.client, self.late, (from_us, to_us)).await?;
            let mut pieces = Pieces::of(listed.iter().map(|row| row.bytes));
            let moved = self.moved;
            while let Some(piece) = pieces.next(self.progress.pace) {
                if Instant::now() >= self.until {
                    return Ok(false);
                }
                let rows = &listed[piece.clone()];
                let refusal = match self.try_move(rows).await {
                    Ok(()) => continue,
                    Err(refusal) => refusal,
                };
                let done = match (refusal, rows) {
                    (Refusal::Failed(error), _) => Err(error),
                    (Refusal::Rows(rejection) | Refusal::TooMuch(rejection), [row]) => {
                        // If it was too much, that was not a matter of their number.
                        self.progress.pace = pace;
                        self.isolated(row, &rejection).await
                    }
                    (Refusal::TooMuch(_), rows) => {
                        self.progress.pace.slow_down(rows.len());
                        pieces.halve(piece);
                        Ok(())
                    }
                    (Refusal::Rows(_), _) => {
                        pieces.halve(piece);
                        Ok(())
                    }
                };
                if let Err(error) = done {
                    if self.client.is_closed() {
                        return Err(error);
                    }
                    self.failed += 1;
                    self.failures.add(Err(self.of_slot(error, slot)));
                    return Ok(false);
                }
            }
            match listed.last() {
                // More may be there, unless nobody could move these.
                Some(last) if listed.len() == ROWS_MAX && self.moved > moved => from_us = last.ts_us,
                _ => from_us = to_us,
            }
            self.visited.insert(slot.from_us, from_us);
            if from_us == to_us {
                return Ok(true);
            }
            if self.moved - before >= TURN_ROWS_MAX {
                return Ok(true);
            }
        }
    }

    /// Moves these records in one transaction.
    async fn try_move(&mut self, rows: &[Listed]) -> Result<(), Refusal> {
        let Self { client, logs, late, .. } = *self;
        let ctids: Vec<&str> = rows.iter().map(|row| row.ctid.as_str()).collect();
        // A row that went meanwhile leaves its place to another one, which may not belong there.
        let (from, to) = (rows.iter().map(|row| row.ts_us).min(), rows.iter().map(|row| row.ts_us).max());
        let times = (Time(from.unwrap_or_default()), Time(to.unwrap_or_default()));
        let of_these = "WHERE ctid = ANY ($1::text[]::tid[]) AND ts >= $2 AND ts <= $3";
        if armed("mutation.move_in_two_transactions") {
            let sql =
                format!("INSERT INTO {} ({COLUMN_NAMES}) SELECT {COLUMN_NAMES} FROM {late} {of_these}", logs.table);
            let insert = async { Ok::<_, Refusal>(client.execute(&sql, &[&ctids, &times.0, &times.1]).await?) };
            self.moved += transaction(LIMITS, client, insert).await?;
            kill_point("store.late.moved");
            let sql = format!("DELETE FROM {late} {of_these}");
            let delete = async { Ok::<_, Refusal>(client.execute(&sql, &[&ctids, &times.0, &times.1]).await?) };
            return transaction(LIMITS, client, delete).await.map(drop);
        }
        let sql = format!(
            "WITH moved AS (DELETE FROM {late} {of_these} RETURNING {COLUMN_NAMES}), \
             stored AS (INSERT INTO {} ({COLUMN_NAMES}) SELECT {COLUMN_NAMES} FROM moved RETURNING 1) \
             SELECT (SELECT count(*) FROM moved), (SELECT count(*) FROM stored)",
            logs.table
        );
        let moved = transaction(LIMITS, client, async {
            let row = client.query_one(&sql, &[&ctids, &times.0, &times.1]).await?;
            let (moved, stored): (i64, i64) = (row.get(0), row.get(1));
            kill_point("store.late.moved");
            if moved == stored { Ok(moved.unsigned_abs()) } else { Err(Refusal::filtered()) }
        })
        .await?;
        metrics::counter!("logweir_store_late_moved_rows_total").increment(moved);
        self.moved += moved;
        Ok(())
    }

    /// A record was refused alone: if another one is taken, and it is refused again, it becomes a dead letter.
    async fn isolated(&mut self, row: &Listed, rejection: &Rejection) -> Result<(), StoreError> {
        check_others(self.client, self.logs, row.ts_us, self.now_us, rejection).await?;
        let again = match self.try_move(std::slice::from_ref(row)).await {
            Ok(()) => return Ok(()),
            Err(Refusal::Failed(error)) => return Err(error),
            Err(Refusal::Rows(rejection) | Refusal::TooMuch(rejection)) => rejection,
        };
        match bury(self.client, self.logs, row, &again).await {
            Ok(buried) => {
                self.moved += u64::from(buried);
                Ok(())
            }
            Err(Refusal::Failed(error)) => Err(error),
            Err(Refusal::Rows(rejection) | Refusal::TooMuch(rejection)) => Err(StoreError::Systemic(format!(
                "a late record is refused, and so is its dead letter: {}",
                rejection.reason
            ))),
        }
    }

    /// An error, with where the records are that it concerns.
    fn of_slot(&self, error: StoreError, slot: Slot) -> StoreError {
        let from = text(slot.from_us);
        let with = |reason: String| format!("records from {from} on stay in {}: {reason}", self.late);
        match error {
            StoreError::Transient(reason) => StoreError::Transient(with(reason)),
            StoreError::Systemic(reason) => StoreError::Systemic(with(reason)),
            other => other,
        }
    }
}
