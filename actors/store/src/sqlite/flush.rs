//! One lane's flush: rows, cursor, counters and dead letters in one transaction, exactly once.

use async_trait::async_trait;
use logweir_engine::clock::wall_us;
use logweir_engine::fault::{armed, kill_point};
use logweir_record::timestamp;
use rusqlite::{Connection, Error, ErrorCode, Transaction, params};
use tokio::time::Instant;
use uuid::Uuid;

use super::connection::{SharedConnection, blocking, failed, immediate};
use super::lane_row::{one_lane, owner_of};
use crate::batch::Batch;
use crate::error::{Rejection, StoreError};
use crate::lane::{Flushed, LaneRow};
use crate::lease::Lease;
use crate::protocol::cursor::{CursorMismatch, on_cursor_mismatch};
use crate::protocol::rows::{self, poison_rows_max};
use crate::protocol::{raw_record, volume_counter};
use crate::store::LaneWriter;
use crate::telemetry::measure;

const CAS_SQL: &str = "UPDATE logweir_lane SET last_seq = ?5, digest = ?6, lost = lost + ?7 \
    WHERE writer_id = ?1 AND lane = ?2 AND epoch = ?3 AND last_seq = ?4 AND lane_id = ?8";
/// The same without the condition, for the test that proves the condition necessary.
const NO_CAS_SQL: &str = "UPDATE logweir_lane SET last_seq = ?5, digest = ?6, lost = lost + ?7 \
    WHERE writer_id = ?1 AND lane = ?2 AND ?3 IS NOT NULL AND ?4 IS NOT NULL AND ?8 IS NOT NULL";
pub(super) const INSERT_SQL: &str = "INSERT INTO logs (id, ts, severity, service, host, message, attributes) \
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
pub(super) const VOLUME_SQL: &str = "INSERT INTO log_volume (minute, service, severity, lane_id, records) \
    VALUES (?1, ?2, ?3, ?4, ?5) \
    ON CONFLICT (minute, service, severity, lane_id) DO UPDATE SET records = records + excluded.records";
const DEAD_SQL: &str = "INSERT INTO logweir_dead_letter (id, writer_id, lane, seq, row_no, sqlstate, reason, raw, at) \
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)";

/// A lane on the shared connection.
pub(super) struct SqliteLane {
    connection: SharedConnection,
    /// The part that the blocking thread needs.
    state: LaneState,
}

#[derive(Clone)]
struct LaneState {
    writer: Uuid,
    epoch: i64,
    row: LaneRow,
}

impl SqliteLane {
    /// The lane of `row`, with the lease `lease`.
    pub(super) fn new(connection: SharedConnection, lease: &Lease, row: LaneRow) -> Self {
        Self { connection, state: LaneState { writer: lease.writer, epoch: lease.epoch, row } }
    }
}

impl LaneState {
    /// Runs one transaction. Returns the lane's row after it.
    fn flush(&self, connection: &mut Connection, batch: &Batch) -> Result<(Flushed, LaneRow), StoreError> {
        let failed = failed("flushing");
        let cursor_first = !armed("mutation.cursor_outside_tx");
        let mut transaction = immediate(connection, "flushing")?;
        if cursor_first && !self.move_cursor(&transaction, batch)? {
            return self.resolve_mismatch(transaction, batch);
        }
        kill_point("store.copy.before");
        let dead_lettered = self.insert(&transaction, batch)?;
        kill_point("store.copy.after");
        if !cursor_first {
            transaction.commit().map_err(&failed)?;
            kill_point("store.mutation.between");
            transaction = immediate(connection, "flushing")?;
            self.move_cursor(&transaction, batch)?;
        }
        let flushed = Flushed { rows: batch.records() - dead_lettered, dead_lettered };
        transaction
            .prepare_cached("UPDATE logweir_lane SET rows = rows + ?2, dead = dead + ?3 WHERE lane_id = ?1")
            .and_then(|mut statement| {
                statement.execute(params![
                    self.row.lane_id,
                    flushed.rows.cast_signed(),
                    flushed.dead_lettered.cast_signed()
                ])
            })
            .map_err(&failed)?;
        let row = self.guard(&transaction, batch, &flushed)?;
        kill_point("store.commit.before");
        transaction.commit().map_err(&failed)?;
        kill_point("store.commit.after");
        Ok((flushed, row))
    }

    fn move_cursor(&self, transaction: &Transaction<'_>, batch: &Batch) -> Result<bool, StoreError> {
        kill_point("store.cas.before");
        let sql = if armed("mutation.no_cas") { NO_CAS_SQL } else { CAS_SQL };
        let moved = transaction
            .prepare_cached(sql)
            .and_then(|mut statement| {
                statement.execute(params![
                    self.writer,
                    batch.lane,
                    self.epoch,
                    batch.from_seq.cast_signed(),
                    batch.to_seq().cast_signed(),
                    batch.digest(),
                    batch.lost().cast_signed(),
                    self.row.lane_id,
                ])
            })
            .map_err(failed("moving the cursor"))?;
        kill_point("store.cas.after");
        Ok(moved == 1)
    }

    fn resolve_mismatch(&self, transaction: Transaction<'_>, batch: &Batch) -> Result<(Flushed, LaneRow), StoreError> {
        let failed = failed("reading the cursor");
        let owner = owner_of(&transaction, self.writer).map_err(&failed)?;
        let row = one_lane(&transaction, self.writer, batch.lane).map_err(&failed)?;
        transaction.rollback().map_err(&failed)?;
        let epoch = owner.as_ref().map(|(epoch, _)| *epoch);
        match (on_cursor_mismatch(self.epoch, self.row.lane_id, epoch, row.as_ref(), batch), row) {
            (CursorMismatch::AlreadyApplied, Some(row)) => {
                let flushed = Flushed {
                    rows: row.rows.saturating_sub(self.row.rows),
                    dead_lettered: row.dead_lettered.saturating_sub(self.row.dead_lettered),
                };
                Ok((flushed, row))
            }
            (CursorMismatch::Moved, Some(row)) => Err(StoreError::CursorMoved(Box::new(row))),
            (CursorMismatch::Fenced, _) => {
                let (epoch, owner) = owner.unwrap_or_default();
                Err(StoreError::Fenced { writer: self.writer, epoch, mine: self.epoch, owner })
            }
            (CursorMismatch::Reused, _) => Err(StoreError::SequenceReused { lane: batch.lane, seq: batch.to_seq() }),
            (CursorMismatch::Rewound | CursorMismatch::AlreadyApplied | CursorMismatch::Moved, _) => {
                Err(StoreError::LeaseLost { writer: self.writer, mine: self.epoch })
            }
        }
    }

    /// Inserts and counts the rows. Returns the number of dead-lettered records.
    fn insert(&self, transaction: &Transaction<'_>, batch: &Batch) -> Result<u64, StoreError> {
        let failed = failed("inserting rows");
        let mut statement = transaction.prepare_cached(INSERT_SQL).map_err(&failed)?;
        let mut rejected: Vec<(usize, Error)> = Vec::new();
        let limit = poison_rows_max(usize::try_from(batch.records()).unwrap_or(usize::MAX));
        let mut ts = timestamp::Formatter::default();
        let mut clamped = 0;
        let mut volume = volume_counter::Counter::default();
        for (index, row) in rows::rows(batch, self.row.lane_id).enumerate() {
            let record = &row.record;
            clamped += u64::from(timestamp::clamp(record.ts_us) != record.ts_us);
            let attributes = (!record.attributes.is_empty()).then_some(record.attributes);
            let inserted = statement.execute(params![
                row.id,
                ts.write(record.ts_us),
                record.severity.number(),
                record.service,
                record.host,
                record.message,
                attributes
            ]);
            match inserted {
                Ok(_) => volume.add(&row),
                Err(error) if is_row_error(&error) && rejected.len() < limit => rejected.push((index, error)),
                Err(error) if is_row_error(&error) => {
                    return Err(StoreError::Systemic(format!(
                        "lane {}: the database rejects more than {limit} of {} rows, the last one with: {error}; the \
                         table was probably changed, so nothing was dead-lettered",
                        batch.lane,
                        batch.records()
                    )));
                }
                Err(error) => return Err(failed(error)),
            }
        }
        if clamped > 0 {
            metrics::counter!("logweir_store_clamped_timestamps_total").increment(clamped);
        }
        self.insert_dead_letters(transaction, batch, &rejected)?;
        self.count_volume(transaction, volume.finish())?;
        Ok(rejected.len() as u64)
    }

    fn count_volume(
        &self,
        transaction: &Transaction<'_>,
        counted: Vec<(volume_counter::Key<'_>, i64)>,
    ) -> Result<(), StoreError> {
        let failed = failed("counting the volume");
        let mut statement = transaction.prepare_cached(VOLUME_SQL).map_err(&failed)?;
        let mut minute = timestamp::Formatter::default();
        for (key, records) in counted {
            let minute = minute.write(key.minute_us);
            statement
                .execute(params![minute, key.service, key.severity, self.row.lane_id, records])
                .map_err(&failed)?;
        }
        Ok(())
    }

    fn insert_dead_letters(
        &self,
        transaction: &Transaction<'_>,
        batch: &Batch,
        rejected: &[(usize, Error)],
    ) -> Result<(), StoreError> {
        if rejected.is_empty() {
            return Ok(());
        }
        let failed = failed("writing dead letters");
        let all: Vec<rows::Row<'_>> = rows::rows(batch, self.row.lane_id).collect();
        let now = timestamp::text(wall_us());
        for (index, error) in rejected {
            let (row, state) = (&all[*index], extended_code(error));
            transaction
                .execute(
                    DEAD_SQL,
                    params![
                        row.id,
                        self.writer,
                        batch.lane,
                        row.seq.cast_signed(),
                        row.row,
                        state,
                        error.to_string(),
                        raw_record::raw(&row.record),
                        now
                    ],
                )
                .map_err(&failed)?;
            metrics::counter!("logweir_store_dead_letters_total", "sqlstate" => state).increment(1);
            tracing::warn!(lane = batch.lane, error = %error, "dead-lettered a record");
        }
        Ok(())
    }

    fn guard(&self, transaction: &Transaction<'_>, batch: &Batch, flushed: &Flushed) -> Result<LaneRow, StoreError> {
        let row = one_lane(transaction, self.writer, batch.lane)
            .map_err(failed("reading the cursor back"))?
            .ok_or(StoreError::LeaseLost { writer: self.writer, mine: self.epoch })?;
        if row.last_seq == batch.to_seq() && row.accounted() == batch.to_records() {
            return Ok(row);
        }
        Err(StoreError::Systemic(format!(
            "lane {}: inconsistent counts, rolled back: with this batch ({} rows, {} dead letters, {} lost, frames \
             after {} to {}) the database would account for {} records at frame {}; the journal has {} at frame {}",
            batch.lane,
            flushed.rows,
            flushed.dead_lettered,
            batch.lost(),
            batch.from_seq,
            batch.to_seq(),
            row.accounted(),
            row.last_seq,
            batch.to_records(),
            batch.to_seq(),
        )))
    }
}

/// Returns whether a user's constraint (CHECK, UNIQUE, a trigger's RAISE) failed. Not the id: a duplicate id is a bug.
fn is_row_error(error: &Error) -> bool {
    error.sqlite_error_code() == Some(ErrorCode::ConstraintViolation)
        && !matches!(
            error.sqlite_error().map(|error| error.extended_code),
            Some(rusqlite::ffi::SQLITE_CONSTRAINT_PRIMARYKEY | rusqlite::ffi::SQLITE_CONSTRAINT_ROWID)
        )
}

/// Returns SQLite's extended result code in place of an SQLSTATE.
fn extended_code(error: &Error) -> String {
    format!("SQLITE-{}", error.sqlite_error().map_or(0, |error| error.extended_code))
}

#[async_trait]
impl LaneWriter for SqliteLane {
    async fn flush(&mut self, batch: &Batch) -> Result<Flushed, StoreError> {
        let started = Instant::now();
        let (state, cloned) = (self.state.clone(), batch.clone());
        let result = blocking(&self.connection, move |connection| state.flush(connection, &cloned)).await;
        let result = result.map(|(flushed, row)| {
            self.state.row = row;
            flushed
        });
        measure(batch.lane, started, &result);
        result
    }

    async fn dead_letter(&mut self, _batch: &Batch, rejection: &Rejection) -> Result<Flushed, StoreError> {
        Err(StoreError::Systemic(rejection.reason.clone()))
    }
}
