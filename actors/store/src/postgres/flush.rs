//! One lane's flush: rows, cursor, counters and dead letters in one transaction, exactly once.
//!
//! - The cursor moves first, by a compare-and-set on epoch and sequence number. Its row lock makes a retry wait for a
//!   zombie transaction of the same batch, so that what the retry reads is final. A check without the lock would not.
//! - The last statement before COMMIT reads the lane back: COMMIT of an aborted transaction returns ROLLBACK without an
//!   error, whereas a SELECT in it fails. It also proves that the counters match the journal.
//! - An attempt owns its connection: if it is dropped halfway (timeout, shutdown), the connection closes and the server
//!   rolls back.
//! - A row is dead-lettered only after it has failed alone, or as the last row of the shortest failing prefix.
//! - The number of round trips is bounded: locating a bad row takes about two attempts, and only a limited number of
//!   rows are located. If more have invalid values, all rows are validated at once, without the table.

use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::{join, join_all};
use logweir_engine::fault::{armed, kill_point};
use logweir_engine::journal::LaneId;
use tokio::time::Instant;
use tokio_postgres::types::Type;
use tokio_postgres::{Client, Error, Statement};
use uuid::Uuid;

use super::connect::{Connection, Connector, GRACE, class, describe, failure, within};
use super::copy::{COPY_SQL, copy, rows_without};
use super::error_class::{Class, copy_line};
use super::lane_row::{LANE_SQL, lane_row};
use super::schema;
use super::types::{Json, Time};
use crate::batch::Batch;
use crate::error::{Rejection, StoreError};
use crate::lane::{Flushed, LaneRow};
use crate::protocol::cursor::{CursorMismatch, on_cursor_mismatch};
use crate::protocol::rows::{Row, poison_rows_max, rows};
use crate::protocol::{raw_record, volume_counter};
use crate::store::LaneWriter;
use crate::telemetry::measure;

const CAS_SQL: &str = "UPDATE logweir_lane \
    SET last_seq = $5, digest = $6, rows = rows + $7, dead = dead + $8, lost = lost + $9 \
    WHERE writer_id = $1 AND lane = $2 AND epoch = $3 AND last_seq = $4 AND lane_id = $10";
/// The same without the condition, for the test that proves the condition necessary.
const NO_CAS_SQL: &str = "UPDATE logweir_lane \
    SET last_seq = $5, digest = $6, rows = rows + $7, dead = dead + $8, lost = lost + $9 \
    WHERE writer_id = $1 AND lane = $2 AND $3::bigint IS NOT NULL AND $4::bigint IS NOT NULL \
    AND $10::integer IS NOT NULL";
const END_STALLED_SQL: &str = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
    WHERE application_name IN ($1, $1 || '/open') AND pid <> pg_backend_pid() AND state = 'active' \
    AND wait_event = 'ClientRead'";
const VOLUME_SQL: &str = "INSERT INTO log_volume AS v (minute, service, severity, lane_id, records) \
    SELECT minute, service, severity, $5, records \
    FROM unnest($1::timestamptz[], $2::text[], $3::smallint[], $4::bigint[]) AS t (minute, service, severity, records) \
    ON CONFLICT (minute, service, severity, lane_id) DO UPDATE SET records = v.records + excluded.records";
const DEAD_SQL: &str = "INSERT INTO logweir_dead_letter (id, writer_id, lane, seq, row_no, sqlstate, reason, raw, at) \
    SELECT id, $7, $8, seq, row_no, sqlstate, reason, raw, clock_timestamp() \
    FROM unnest($1::bigint[], $2::bigint[], $3::integer[], $4::text[], $5::text[], $6::text[]) \
    AS t (id, seq, row_no, sqlstate, reason, raw)";
const GUARD_SQL: &str =
    "SELECT last_seq, inherited + rows + dead + lost FROM logweir_lane WHERE writer_id = $1 AND lane = $2";

/// Number of rows located one by one before all rows are validated, which is cheaper from then on.
const VALIDATE_ALL_AFTER: usize = 8;
/// Rows per round trip of a validation.
const VALIDATE_WINDOW: usize = 256;
/// Number of a batch's dead letters that are logged individually. All are in the table.
const LOGGED_MAX: usize = 8;

/// A lane's connection.
pub(super) struct PgLane {
    connector: Connector,
    /// The connection's `application_name`.
    name: String,
    writer: Uuid,
    epoch: i64,
    statement_timeout: Duration,
    /// The lane's row as of the last commit or read.
    row: LaneRow,
    session: Option<LaneSession>,
}

/// A connection with its prepared statements.
struct LaneSession {
    connection: Connection,
    cas: Statement,
    copy: Statement,
    volume: Statement,
    guard: Statement,
}

/// The rows of a batch that the server rejected so far.
#[derive(Default)]
struct RejectedRows {
    /// Sorted by index.
    poison: Vec<Poison>,
    /// How many of them were located one by one; limited.
    located: usize,
    /// All values have been validated: any further rejection comes from the table.
    validated: bool,
}

/// A row that the server rejected.
struct Poison {
    /// Its index in the batch, from 0.
    index: usize,
    sqlstate: String,
    reason: String,
}

/// Why an attempt failed.
enum AttemptError {
    /// A row is bad; the transaction is rolled back and the connection is usable.
    BadRow(Box<Error>),
    /// Anything else; the connection must be closed.
    Other(StoreError),
}

impl From<StoreError> for AttemptError {
    fn from(error: StoreError) -> Self {
        Self::Other(error)
    }
}

/// Name of a lane's connections: each takeover can terminate those of earlier epochs. The connection that opens the lane
/// has the suffix `/open`.
pub(super) fn connection_name(writer: Uuid, lane: LaneId, epoch: i64) -> String {
    format!("logweir/{}/{lane}/{epoch}", writer.simple())
}

/// Terminates earlier connections of the lane named `name` that wait for their client in mid-statement.
///
/// After a connection is lost silently, a COPY, or a statement whose Sync never arrives, waits for the client until TCP
/// gives up, and holds its locks all that time; no other limit of the server ends it. Without the privilege to terminate
/// it, the wait must run out.
pub(super) async fn end_stalled(connection: &Connection, name: &str) {
    let _ = connection.client.execute(END_STALLED_SQL, &[&name]).await;
}

impl PgLane {
    pub(super) async fn open(
        connector: Connector,
        writer: Uuid,
        epoch: i64,
        row: LaneRow,
        statement_timeout: Duration,
    ) -> Result<Self, StoreError> {
        let name = connection_name(writer, row.lane, epoch);
        let mut lane = Self { connector, name, writer, epoch, statement_timeout, row, session: None };
        lane.session = Some(lane.connect().await?);
        Ok(lane)
    }

    async fn connect(&self) -> Result<LaneSession, StoreError> {
        within(self.limit(), "opening the lane's connection", self.connect_unbounded()).await
    }

    /// Time limit of an attempt: the server's own timeouts do not cover a COPY whose stream stalls.
    fn limit(&self) -> Duration {
        self.statement_timeout + GRACE
    }

    async fn connect_unbounded(&self) -> Result<LaneSession, StoreError> {
        let connection = self.connector.connect(&self.name).await?;
        end_stalled(&connection, &self.name).await;
        schema::check_columns(&connection.client).await?;
        let prepare =
            async |sql| connection.client.prepare(sql).await.map_err(|error| failure("preparing the flush", &error));
        let cas = prepare(if armed("mutation.no_cas") { NO_CAS_SQL } else { CAS_SQL }).await?;
        let copy = prepare(COPY_SQL).await?;
        let volume = prepare(VOLUME_SQL).await?;
        let guard = prepare(GUARD_SQL).await?;
        Ok(LaneSession { connection, cas, copy, volume, guard })
    }

    fn begin_sql(&self) -> String {
        // lock_timeout bounds the wait for a zombie or for maintenance, the idle timeout a frozen process of logweir.
        format!(
            "BEGIN; SET LOCAL synchronous_commit = on; SET LOCAL lock_timeout = '2s'; \
             SET LOCAL statement_timeout = {}; SET LOCAL idle_in_transaction_session_timeout = '15s'",
            self.statement_timeout.as_millis()
        )
    }

    /// Flushes, dead-lettering bad rows until the rest is accepted.
    async fn flush_isolating_bad_rows(&mut self, batch: &Batch) -> Result<Flushed, StoreError> {
        let mut rejected = RejectedRows::default();
        loop {
            let session = match self.session.take() {
                Some(session) if !session.connection.client.is_closed() && !session.connection.expired() => session,
                _ => self.connect().await?,
            };
            let limit = self.limit();
            let attempt = tokio::time::timeout(limit, self.attempt(&session, batch, &rejected.poison)).await;
            let error = match attempt {
                Ok(Ok(flushed)) => {
                    self.session = Some(session);
                    return Ok(flushed);
                }
                Ok(Err(AttemptError::Other(error))) => {
                    return Err(error);
                }
                Ok(Err(AttemptError::BadRow(error))) => error,
                Err(_) => {
                    let limit_ms = limit.as_millis();
                    return Err(StoreError::Transient(format!("the flush timed out after {limit_ms} ms")));
                }
            };
            let found = self.isolate(&session, batch, &mut rejected, *error);
            match within(limit, "locating bad rows", found).await {
                Ok(()) => self.session = Some(session),
                Err(error) => {
                    return Err(error);
                }
            }
        }
    }

    /// Runs one transaction.
    async fn attempt(
        &mut self,
        session: &LaneSession,
        batch: &Batch,
        poison: &[Poison],
    ) -> Result<Flushed, AttemptError> {
        let skip: Vec<usize> = poison.iter().map(|poison| poison.index).collect();
        let client = &session.connection.client;
        let rows_in = batch.records() - skip.len() as u64;
        let cursor_first = !armed("mutation.cursor_outside_tx");

        self.simple(session, &self.begin_sql()).await?;
        if cursor_first && !self.move_cursor(session, batch, rows_in, skip.len() as u64).await? {
            return Ok(self.resolve_mismatch(session, batch).await?);
        }
        kill_point("store.copy.before");
        let mut volume = volume_counter::Counter::default();
        if rows_in > 0 {
            let stream = rows_without(batch, self.row.lane_id, &skip).inspect(|row| volume.add(row));
            match copy(client, &session.copy, stream).await {
                Ok((sent, counted)) if sent == counted => {}
                Ok((sent, counted)) => {
                    let text = format!("{sent} rows were sent, but the database counted {counted}; rolled back");
                    return Err(AttemptError::Other(StoreError::Systemic(text)));
                }
                Err(error) if blames_a_row(&error) => {
                    self.simple(session, "ROLLBACK").await?;
                    return Err(AttemptError::BadRow(Box::new(error)));
                }
                Err(error) => return Err(failure("copying rows", &error).into()),
            }
        }
        kill_point("store.copy.after");
        let counting = self.count_volume(session, volume.finish());
        if !poison.is_empty() {
            self.insert_dead_letters(session, batch, poison).await?;
        }
        if cursor_first {
            // One round trip for both. If counting fails, so does the guard, since the transaction is aborted.
            let (counted, guarded) = join(counting, self.guard(session, batch, rows_in, skip.len() as u64)).await;
            counted?;
            guarded?;
        } else {
            counting.await?;
            self.simple(session, "COMMIT").await?;
            kill_point("store.mutation.between");
            self.simple(session, "BEGIN").await?;
            self.move_cursor(session, batch, rows_in, skip.len() as u64).await?;
            self.guard(session, batch, rows_in, skip.len() as u64).await?;
        }
        kill_point("store.commit.before");
        self.simple(session, "COMMIT").await?;
        kill_point("store.commit.after");

        self.row.last_seq = batch.to_seq();
        self.row.rows += rows_in;
        self.row.dead_lettered += skip.len() as u64;
        self.row.lost += batch.lost();
        self.log_dead_letters(poison);
        Ok(Flushed { rows: rows_in, dead_lettered: skip.len() as u64 })
    }

    async fn simple(&self, session: &LaneSession, sql: &str) -> Result<(), StoreError> {
        let what = sql.split(';').next().unwrap_or(sql);
        session.connection.client.batch_execute(sql).await.map_err(|error| failure(what, &error))
    }

    /// Runs the compare-and-set. Returns whether it matched.
    async fn move_cursor(
        &self,
        session: &LaneSession,
        batch: &Batch,
        rows_in: u64,
        dead: u64,
    ) -> Result<bool, StoreError> {
        kill_point("store.cas.before");
        let moved = session
            .connection
            .client
            .execute(
                &session.cas,
                &[
                    &self.writer,
                    &i32::from(batch.lane),
                    &self.epoch,
                    &batch.from_seq.cast_signed(),
                    &batch.to_seq().cast_signed(),
                    &batch.digest().as_slice(),
                    &rows_in.cast_signed(),
                    &dead.cast_signed(),
                    &batch.lost().cast_signed(),
                    &self.lane_id(),
                ],
            )
            .await
            .map_err(|error| failure("moving the cursor", &error))?;
        kill_point("store.cas.after");
        Ok(moved == 1)
    }

    /// Finds out why the compare-and-set matched no row.
    async fn resolve_mismatch(&mut self, session: &LaneSession, batch: &Batch) -> Result<Flushed, StoreError> {
        let client = &session.connection.client;
        let reading = |error: Error| failure("reading the cursor", &error);
        let owner = client
            .query_opt("SELECT epoch, owner FROM logweir_writer WHERE writer_id = $1", &[&self.writer])
            .await
            .map_err(reading)?;
        let sql = format!("{LANE_SQL} AND lane = $2");
        let row = client.query_opt(&sql, &[&self.writer, &i32::from(batch.lane)]).await.map_err(reading)?;
        self.simple(session, "ROLLBACK").await?;
        let row = row.as_ref().map(lane_row);
        let epoch = owner.as_ref().map(|owner| owner.get(0));
        let mismatch = on_cursor_mismatch(self.epoch, self.row.lane_id, epoch, row.as_ref(), batch);
        match (mismatch, row) {
            (CursorMismatch::AlreadyApplied, Some(row)) => {
                let flushed = Flushed {
                    rows: row.rows.saturating_sub(self.row.rows),
                    dead_lettered: row.dead_lettered.saturating_sub(self.row.dead_lettered),
                };
                self.row = row;
                Ok(flushed)
            }
            (CursorMismatch::Moved, Some(row)) => {
                self.row = row.clone();
                Err(StoreError::CursorMoved(Box::new(row)))
            }
            (CursorMismatch::Fenced, _) => Err(StoreError::Fenced {
                writer: self.writer,
                epoch: epoch.unwrap_or_default(),
                mine: self.epoch,
                owner: owner.map(|owner| owner.get(1)).unwrap_or_default(),
            }),
            (CursorMismatch::Reused, _) => Err(StoreError::SequenceReused { lane: batch.lane, seq: batch.to_seq() }),
            (CursorMismatch::Rewound | CursorMismatch::AlreadyApplied | CursorMismatch::Moved, _) => {
                Err(StoreError::LeaseLost { writer: self.writer, mine: self.epoch })
            }
        }
    }

    async fn count_volume(
        &self,
        session: &LaneSession,
        counted: Vec<(volume_counter::Key<'_>, i64)>,
    ) -> Result<(), StoreError> {
        if counted.is_empty() {
            return Ok(());
        }
        let minutes: Vec<Time> = counted.iter().map(|(key, _)| Time(key.minute_us)).collect();
        let services: Vec<&str> = counted.iter().map(|(key, _)| key.service).collect();
        let severities: Vec<i16> = counted.iter().map(|(key, _)| i16::from(key.severity)).collect();
        let records: Vec<i64> = counted.iter().map(|(_, records)| *records).collect();
        session
            .connection
            .client
            .execute(&session.volume, &[&minutes, &services, &severities, &records, &self.lane_id()])
            .await
            .map_err(|error| failure("counting the volume", &error))?;
        Ok(())
    }

    /// Inserts the dead letters.
    async fn insert_dead_letters(
        &self,
        session: &LaneSession,
        batch: &Batch,
        poison: &[Poison],
    ) -> Result<(), StoreError> {
        let all: Vec<Row<'_>> = rows(batch, self.row.lane_id).collect();
        let dead: Vec<(&Poison, &Row<'_>)> = poison.iter().map(|poison| (poison, &all[poison.index])).collect();
        let ids: Vec<i64> = dead.iter().map(|(_, row)| row.id).collect();
        let seqs: Vec<i64> = dead.iter().map(|(_, row)| row.seq.cast_signed()).collect();
        let indexes: Vec<i32> = dead.iter().map(|(_, row)| row.row.cast_signed()).collect();
        let states: Vec<&str> = dead.iter().map(|(poison, _)| poison.sqlstate.as_str()).collect();
        let reasons: Vec<&str> = dead.iter().map(|(poison, _)| poison.reason.as_str()).collect();
        let raws: Vec<String> = dead.iter().map(|(_, row)| raw_record::raw(&row.record)).collect();
        session
            .connection
            .client
            .execute(DEAD_SQL, &[&ids, &seqs, &indexes, &states, &reasons, &raws, &self.writer, &i32::from(batch.lane)])
            .await
            .map_err(|error| failure("writing dead letters", &error))?;
        Ok(())
    }

    /// Reads the lane back inside the transaction and checks that the counters add up.
    async fn guard(&self, session: &LaneSession, batch: &Batch, rows_in: u64, dead: u64) -> Result<(), StoreError> {
        let row = session
            .connection
            .client
            .query_one(&session.guard, &[&self.writer, &i32::from(batch.lane)])
            .await
            .map_err(|error| failure("reading the cursor back", &error))?;
        let (seq, accounted) = (row.get::<_, i64>(0).cast_unsigned(), row.get::<_, i64>(1).cast_unsigned());
        if (seq == batch.to_seq() && accounted == batch.to_records()) || armed("mutation.no_guard") {
            return Ok(());
        }
        Err(StoreError::Systemic(format!(
            "lane {}: inconsistent counts, rolled back: with this batch ({rows_in} rows, {dead} dead letters, {} lost, \
             frames after {} to {}) the database would account for {accounted} records at frame {seq}; the journal has \
             {} at frame {}",
            batch.lane,
            batch.lost(),
            batch.from_seq,
            batch.to_seq(),
            batch.to_records(),
            batch.to_seq(),
        )))
    }

    /// Finds the row that caused `error` (or all such rows) and excludes it, unless there are too many already.
    async fn isolate(
        &self,
        session: &LaneSession,
        batch: &Batch,
        rejected: &mut RejectedRows,
        error: Error,
    ) -> Result<(), StoreError> {
        if class(&error) == Class::Value && rejected.located >= VALIDATE_ALL_AFTER && !rejected.validated {
            rejected.validated = true;
            let found = self.validate_values(session, batch, &rejected.poison).await?;
            if !found.is_empty() {
                rejected.poison.extend(found);
                rejected.poison.sort_by_key(|poison| poison.index);
                return Ok(());
            }
        }
        let records = usize::try_from(batch.records()).unwrap_or(usize::MAX);
        let limit = poison_rows_max(records);
        if rejected.located >= limit {
            return Err(StoreError::Systemic(format!(
                "lane {}: the database rejects more than {limit} of {records} rows, the last one with: {}; the table \
                 was probably changed, so nothing was dead-lettered",
                batch.lane,
                describe(&error)
            )));
        }
        let found = self.locate(session, batch, &rejected.poison, error).await?;
        let at = rejected.poison.partition_point(|poison| poison.index < found.index);
        rejected.poison.insert(at, found);
        rejected.located += 1;
        Ok(())
    }

    /// Passes each row's values to the input functions of their types, as COPY does, but to no table. A failure here
    /// means a bad record and not a changed table. Pipelined: one round trip per [`VALIDATE_WINDOW`] rows.
    async fn validate_values(
        &self,
        session: &LaneSession,
        batch: &Batch,
        poison: &[Poison],
    ) -> Result<Vec<Poison>, StoreError> {
        const WHAT: &str = "validating rows";
        let client = &session.connection.client;
        // Unused parameters are parsed all the same.
        let types = [Type::TEXT, Type::TEXT, Type::TEXT, Type::JSONB];
        let statement = client.prepare_typed("SELECT", &types).await.map_err(|error| failure(WHAT, &error))?;
        let skip: Vec<usize> = poison.iter().map(|poison| poison.index).collect();
        let all: Vec<Row<'_>> = rows(batch, self.row.lane_id).collect();
        let sent: Vec<usize> = (0..all.len()).filter(|index| skip.binary_search(index).is_err()).collect();
        let mut found = Vec::new();
        for indexes in sent.chunks(VALIDATE_WINDOW) {
            let mut results = Vec::with_capacity(indexes.len());
            for &index in indexes {
                results.push(read_values(client, &statement, &all[index]));
            }
            for (&index, result) in indexes.iter().zip(join_all(results).await) {
                match result {
                    Ok(()) => {}
                    Err(error) if class(&error) == Class::Value => found.push(Poison::new(index, &error)),
                    Err(error) => return Err(failure(WHAT, &error)),
                }
            }
        }
        Ok(found)
    }

    async fn locate(
        &self,
        session: &LaneSession,
        batch: &Batch,
        poison: &[Poison],
        error: Error,
    ) -> Result<Poison, StoreError> {
        let all: Vec<Row<'_>> = rows(batch, self.row.lane_id).collect();
        let is_poison = |index: &usize| poison.binary_search_by_key(index, |poison| poison.index).is_ok();
        let sent: Vec<usize> = (0..all.len()).filter(|index| !is_poison(index)).collect();
        let line = error.as_db_error().and_then(|db| copy_line(db.where_()?));
        if let Some(&index) = line.and_then(|line| sent.get(line.checked_sub(1)?))
            && let Some(error) = self.try_copy(session, &all[index..=index]).await?
        {
            return Ok(Poison::new(index, &error));
        }
        // No line number, or not that row alone: the last row of the shortest rejected prefix.
        let (mut accepted, mut rejected, mut last) = (0, sent.len(), error);
        while rejected - accepted > 1 {
            let middle = accepted.midpoint(rejected);
            let part: Vec<Row<'_>> = sent[..middle].iter().map(|&index| all[index]).collect();
            match self.try_copy(session, &part).await? {
                Some(error) => (rejected, last) = (middle, error),
                None => accepted = middle,
            }
        }
        Ok(Poison::new(sent[rejected - 1], &last))
    }

    /// Copies `rows` and rolls back. Returns the error if a row caused it.
    async fn try_copy(&self, session: &LaneSession, rows: &[Row<'_>]) -> Result<Option<Error>, StoreError> {
        self.simple(session, &self.begin_sql()).await?;
        let outcome = copy(&session.connection.client, &session.copy, rows.iter().copied()).await;
        self.simple(session, "ROLLBACK").await?;
        match outcome {
            Ok(_) => Ok(None),
            Err(error) if blames_a_row(&error) => Ok(Some(error)),
            Err(error) => Err(failure("locating a bad row", &error)),
        }
    }

    fn lane_id(&self) -> i32 {
        i32::try_from(self.row.lane_id).unwrap_or(i32::MAX)
    }

    fn log_dead_letters(&self, poison: &[Poison]) {
        for poison in poison {
            metrics::counter!("logweir_store_dead_letters_total", "sqlstate" => poison.sqlstate.clone()).increment(1);
        }
        if poison.len() > LOGGED_MAX {
            let records = poison.len() - LOGGED_MAX;
            tracing::warn!(lane = self.row.lane, records, "further records of the batch were dead-lettered");
        }
        for poison in poison.iter().take(LOGGED_MAX) {
            tracing::warn!(
                lane = self.row.lane,
                sqlstate = poison.sqlstate,
                reason = poison.reason,
                "dead-lettered a record"
            );
        }
    }
}

async fn read_values(client: &Client, statement: &Statement, row: &Row<'_>) -> Result<(), Error> {
    let record = &row.record;
    let attributes = (!record.attributes.is_empty()).then_some(Json(record.attributes));
    client.execute(statement, &[&record.service, &record.host, &record.message, &attributes]).await.map(drop)
}

fn blames_a_row(error: &Error) -> bool {
    matches!(class(error), Class::Value | Class::Row)
}

impl Poison {
    fn new(index: usize, error: &Error) -> Self {
        Self {
            index,
            sqlstate: error.code().map(|code| code.code().to_owned()).unwrap_or_default(),
            reason: describe(error),
        }
    }
}

#[async_trait]
impl LaneWriter for PgLane {
    async fn flush(&mut self, batch: &Batch) -> Result<Flushed, StoreError> {
        let started = Instant::now();
        let result = self.flush_isolating_bad_rows(batch).await;
        measure(batch.lane, started, &result);
        result
    }

    async fn dead_letter(&mut self, _batch: &Batch, rejection: &Rejection) -> Result<Flushed, StoreError> {
        Err(StoreError::Systemic(rejection.reason.clone()))
    }

    fn is_open(&self) -> bool {
        self.session.as_ref().is_some_and(|session| !session.connection.client.is_closed())
    }
}
