//! The statements of a flush.

use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use logweir_engine::clock::wall_us;
use logweir_engine::fault::armed;
use logweir_record::record::{Record, Severity};
use logweir_record::timestamp;
use rusqlite::{Error, ErrorCode, OptionalExtension, Row as SqlRow, params};
use tokio::time::Instant;

use super::connection::{SharedConnection, blocking, failure};
use super::idempotency;
use super::session::{SqliteSession, at_once, rejection};
use crate::batch::{Batch, BatchFrame};
use crate::digest::Digest;
use crate::error::{Rejection, StoreError};
use crate::lane::{Flushed, LaneRow};
use crate::lease::Lease;
use crate::protocol::driver::flush::{Lane, dead_letter, flush};
use crate::protocol::driver::statements::{
    FlushStatements, How, LeftOut, Letter, Refused, Step, Transaction as _, filtered,
};
use crate::protocol::raw_record;
use crate::protocol::requests::KeyRow;
use crate::protocol::rows::Rows;
use crate::protocol::sample::{LastTaken, Sample};
use crate::protocol::volume_counter::{Counter, Key};
use crate::store::LaneWriter;
use crate::telemetry::measure;

const CAS_SQL: &str = "UPDATE logweir_lane \
    SET last_seq = ?5, digest = ?6, rows = rows + ?7, dead = dead + ?8, lost = lost + ?9 \
    WHERE writer_id = ?1 AND lane = ?2 AND epoch = ?3 AND last_seq = ?4 AND lane_id = ?10 \
    AND inherited + rows + dead + lost = ?11 AND (?12 IS NULL OR substr(digest, 1, 16) = ?12)";
/// The same without the condition, for the test that proves the condition necessary.
const NO_CAS_SQL: &str = "UPDATE logweir_lane \
    SET last_seq = ?5, digest = ?6, rows = rows + ?7, dead = dead + ?8, lost = lost + ?9 \
    WHERE writer_id = ?1 AND lane = ?2 AND ?3 IS NOT NULL AND ?4 IS NOT NULL AND ?10 IS NOT NULL \
    AND ?11 IS NOT NULL AND coalesce(?12, '') IS NOT NULL";
const RECOUNT_SQL: &str =
    "UPDATE logweir_lane SET rows = rows - ?3, dead = dead + ?3 WHERE writer_id = ?1 AND lane = ?2";
pub(super) const INSERT_SQL: &str = "INSERT INTO logs (id, ts, severity, service, host, message, attributes) \
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
pub(super) const VOLUME_SQL: &str = "INSERT INTO log_volume (minute, service, severity, lane_id, records) \
    VALUES (?1, ?2, ?3, ?4, ?5) \
    ON CONFLICT (minute, service, severity, lane_id) DO UPDATE SET records = records + excluded.records";
const DEAD_SQL: &str = "INSERT INTO logweir_dead_letter (id, writer_id, lane, seq, row_no, sqlstate, reason, raw, at) \
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)";
const STORED_SQL: &str = "SELECT ts, severity, service, host, message, attributes FROM logs ORDER BY ts DESC LIMIT 1";

/// A lane on the shared connection.
pub(super) struct SqliteLane {
    connection: SharedConnection,
    /// Shared with the blocking thread, which ends its work even if nobody waits for it any more.
    lane: Arc<Mutex<Lane>>,
}

impl SqliteLane {
    /// The lane of `row`, with the lease `lease`.
    pub(super) fn new(connection: SharedConnection, lease: &Lease, row: LaneRow, last_taken: LastTaken) -> Self {
        Self { connection, lane: Arc::new(Mutex::new(Lane::new(lease.writer, lease.epoch, row, last_taken))) }
    }

    /// Flushes `batch`, or dead-letters it if it was refused.
    async fn run(&self, batch: &Batch, refused: Option<&Rejection>) -> Result<Flushed, StoreError> {
        let started = Instant::now();
        let (lane, batch, refused) = (self.lane.clone(), batch.clone(), refused.cloned());
        let number = batch.lane;
        let result = blocking(&self.connection, move |connection| {
            let mut lane = lane.lock().unwrap_or_else(PoisonError::into_inner);
            let mut session = SqliteSession::new(connection, "flushing");
            match &refused {
                None => at_once(flush(&mut lane, &mut session, &batch)),
                Some(rejection) => at_once(dead_letter(&mut lane, &mut session, &batch, rejection)),
            }
        })
        .await;
        measure(number, started, &result);
        result
    }
}

impl FlushStatements for SqliteSession<'_> {
    async fn move_cursor(&mut self, step: &Step<'_>) -> Result<bool, StoreError> {
        let batch = step.batch;
        let sql = if armed("mutation.no_cas") { NO_CAS_SQL } else { CAS_SQL };
        let moved = self.connection.prepare_cached(sql).and_then(|mut statement| {
            statement.execute(params![
                step.writer,
                batch.lane,
                step.epoch,
                batch.from_seq.cast_signed(),
                batch.to_seq().cast_signed(),
                batch.digest().as_bytes(),
                step.rows.cast_signed(),
                step.dead.cast_signed(),
                batch.lost().cast_signed(),
                step.lane_id,
                batch.from_records.cast_signed(),
                batch.begun().map(BatchFrame::digest).as_ref().map(Digest::frame),
            ])
        });
        Ok(self.failed(moved)? == 1)
    }

    async fn claim_keys(&mut self, rows: &[KeyRow]) -> Result<Vec<KeyRow>, StoreError> {
        self.failed(idempotency::claim(self.connection, rows, wall_us()))
    }

    async fn update_keys(&mut self, rows: &[KeyRow]) -> Result<(), StoreError> {
        self.failed(idempotency::update(self.connection, rows, wall_us()))
    }

    async fn count_repeated(&mut self, step: &Step<'_>) -> Result<(), StoreError> {
        let values = params![step.writer, step.batch.lane, step.repeated.cast_signed()];
        self.failed(self.connection.execute(idempotency::REPEATED_SQL, values)).map(drop)
    }

    /// A failed statement undoes only itself, so the transaction continues without the row. There are two exceptions: a
    /// trigger's RAISE(ROLLBACK) ends the transaction, and its RAISE(FAIL) leaves the row in the table.
    async fn insert<'a>(&mut self, rows: Rows<'a>, volume: &mut Counter<'a>, _: How) -> Result<Vec<LeftOut>, Refused> {
        let mut statement = self.failed(self.connection.prepare_cached(INSERT_SQL))?;
        let mut left_out = Vec::new();
        let mut ts = timestamp::Formatter::default();
        let mut clamped = 0;
        for (index, row) in rows.enumerate() {
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
                Ok(0) => left_out.push(LeftOut { index, rejection: filtered() }),
                Ok(_) => volume.add(&row),
                Err(error) if blames_the_row(&error) => {
                    let rejection = rejection(&error);
                    if self.connection.is_autocommit() || self.failed(self.holds(row.id))? {
                        return Err(Refused::Row { at: Some(index), rejection });
                    }
                    left_out.push(LeftOut { index, rejection });
                }
                Err(error) => return Err(failure("inserting rows", &error).into()),
            }
        }
        if clamped > 0 {
            metrics::counter!("logweir_store_clamped_timestamps_total").increment(clamped);
        }
        match self.refused_later() {
            Some(rejection) => Err(Refused::Row { at: None, rejection }),
            None => Ok(left_out),
        }
    }

    async fn recount(&mut self, step: &Step<'_>, dead: u64) -> Result<(), StoreError> {
        let values = params![step.writer, step.batch.lane, dead.cast_signed()];
        self.failed(self.connection.execute(RECOUNT_SQL, values)).map(drop)
    }

    async fn insert_dead_letters(&mut self, step: &Step<'_>, letters: &[Letter<'_>]) -> Result<(), StoreError> {
        let now = timestamp::text(wall_us());
        let insert = |letter: &Letter<'_>| {
            let Letter { row, rejection } = letter;
            self.connection.prepare_cached(DEAD_SQL)?.execute(params![
                row.id,
                step.writer,
                step.batch.lane,
                row.seq.cast_signed(),
                row.row,
                rejection.code,
                rejection.reason,
                raw_record::raw(&row.record),
                now
            ])
        };
        let inserted = letters.iter().try_for_each(|letter| insert(letter).map(drop));
        inserted.map_err(|error| failure("writing dead letters", &error))
    }

    async fn count_and_read_back(
        &mut self,
        step: &Step<'_>,
        volume: Vec<(Key<'_>, i64)>,
    ) -> Result<(u64, u64), StoreError> {
        let mut statement = self.failed(self.connection.prepare_cached(VOLUME_SQL))?;
        let mut minute = timestamp::Formatter::default();
        for (key, records) in volume {
            let values = params![minute.write(key.minute_us), key.service, key.severity, step.lane_id, records];
            statement.execute(values).map_err(|error| failure("counting the volume", &error))?;
        }
        drop(statement);
        let row = self.lane(step.writer, step.batch.lane).await?;
        Ok(row.map_or((0, 0), |row| (row.last_seq, row.accounted())))
    }

    async fn stored_record(&mut self) -> Result<Option<Sample>, StoreError> {
        let text = |row: &SqlRow<'_>, column| row.get::<_, Option<String>>(column).map(Option::unwrap_or_default);
        let sample = |row: &SqlRow<'_>| {
            Ok(Sample::of(&Record {
                ts_us: timestamp::parse(&text(row, 0)?).unwrap_or_default(),
                severity: Severity::from_number(row.get(1)?).unwrap_or_default(),
                service: &text(row, 2)?,
                host: &text(row, 3)?,
                message: &text(row, 4)?,
                attributes: &text(row, 5)?,
            }))
        };
        self.failed(self.connection.query_row(STORED_SQL, [], sample).optional())
    }
}

impl SqliteSession<'_> {
    /// Returns whether the table has the row.
    fn holds(&self, id: i64) -> rusqlite::Result<bool> {
        self.connection
            .prepare_cached("SELECT EXISTS (SELECT 1 FROM logs WHERE id = ?1)")?
            .query_row([id], |row| row.get(0))
    }
}

/// Returns whether the row can be at fault: a user's constraint (CHECK, UNIQUE, a trigger's RAISE), or anything that a
/// trigger or a generated column computes from it. Not the id: a duplicate id is a bug.
fn blames_the_row(error: &Error) -> bool {
    match error.sqlite_error_code() {
        Some(ErrorCode::ConstraintViolation) => !matches!(
            error.sqlite_error().map(|error| error.extended_code),
            Some(rusqlite::ffi::SQLITE_CONSTRAINT_PRIMARYKEY | rusqlite::ffi::SQLITE_CONSTRAINT_ROWID)
        ),
        Some(ErrorCode::Unknown | ErrorCode::TypeMismatch | ErrorCode::TooBig) => true,
        _ => false,
    }
}

#[async_trait]
impl LaneWriter for SqliteLane {
    async fn flush(&mut self, batch: &Batch) -> Result<Flushed, StoreError> {
        self.run(batch, None).await
    }

    async fn dead_letter(&mut self, batch: &Batch, rejection: &Rejection) -> Result<Flushed, StoreError> {
        self.run(batch, Some(rejection)).await
    }
}
