//! One lane's flush: rows, cursor, counters and dead letters in one transaction, exactly once.
//!
//! - The cursor moves first, by a compare-and-set on epoch and sequence. Its row lock makes a retry wait for a zombie
//!   transaction of the same batch, so that what it then sees is settled. A check without the lock would not.
//! - The last statement before COMMIT reads the lane back: COMMIT of an aborted transaction answers ROLLBACK without
//!   an error, a SELECT in it fails. It also proves that the counters add up to what the journal says.
//! - An attempt owns its connection: dropped half-way (timeout, shutdown), the connection goes with it and the server rolls back.
//! - A row is dead-lettered only after it has failed alone, or as the last row of the shortest part that fails.
//! - The server's round trips are bounded: finding a row costs about two attempts, and only so many rows are looked for.
//!   Where more are refused for their values, all rows are sifted at once, without the table.

use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::{join, join_all};
use logweir_engine::fault::{armed, kill_point};
use tokio::time::Instant;
use tokio_postgres::types::Type;
use tokio_postgres::{Client, Error, Row as SqlRow, Statement};
use uuid::Uuid;

use super::GRACE;
use super::connect::{Connector, Link, class, describe, failure, within};
use super::copy::{COPY_SQL, copy};
use super::schema;
use super::types::{Json, Time};
use crate::message::Batch;
use crate::store::cursor::{Miss, on_miss};
use crate::store::fault_class::{Class, copy_line, poison_rows_max};
use crate::store::rows::{Row, rows, rows_without};
use crate::store::{Flushed, LaneRow, LaneWriter, StoreError, dead_letter, volume};

const CAS_SQL: &str = "UPDATE logweir_lane \
    SET last_seq = $5, digest = $6, rows = rows + $7, dead = dead + $8, lost = lost + $9 \
    WHERE writer_id = $1 AND lane = $2 AND epoch = $3 AND last_seq = $4 AND lane_id = $10";
/// The same without its condition, for the test that shows what the condition is for.
const NO_CAS_SQL: &str = "UPDATE logweir_lane \
    SET last_seq = $5, digest = $6, rows = rows + $7, dead = dead + $8, lost = lost + $9 \
    WHERE writer_id = $1 AND lane = $2 AND $3::bigint IS NOT NULL AND $4::bigint IS NOT NULL \
    AND $10::integer IS NOT NULL";
const END_STALLED_SQL: &str = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
    WHERE application_name = $1 AND pid <> pg_backend_pid() AND state = 'active' AND wait_event = 'ClientRead'";
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
pub(super) const LANE_SQL: &str = "SELECT lane, lane_id, epoch, last_seq, digest, rows, dead, lost, inherited \
    FROM logweir_lane WHERE writer_id = $1";

pub(super) fn lane_row(row: &SqlRow) -> LaneRow {
    let count = |column: usize| row.get::<_, i64>(column).cast_unsigned();
    LaneRow {
        lane: u16::try_from(row.get::<_, i32>(0)).unwrap_or(u16::MAX),
        lane_id: i64::from(row.get::<_, i32>(1)),
        epoch: row.get(2),
        last_seq: count(3),
        digest: row.get(4),
        rows: count(5),
        dead: count(6),
        lost: count(7),
        inherited: count(8),
    }
}

/// So many rows are looked for one by one before all are sifted: by then that is cheaper than an attempt for each.
const SIFT_AFTER: usize = 8;
/// Rows of a sifting that share a round trip.
const SIFT_WINDOW: usize = 256;
/// So many dead letters of a batch are told one by one; the rest as a number. All are in the table.
const TOLD_MAX: usize = 8;

/// A lane's connection.
pub(super) struct PgLane {
    connector: Connector,
    /// What the connection is called.
    name: String,
    writer: Uuid,
    epoch: i64,
    statement_timeout: Duration,
    /// The lane as we know it.
    row: LaneRow,
    session: Option<Session>,
}

/// A connection with its statements.
struct Session {
    link: Link,
    cas: Statement,
    copy: Statement,
    volume: Statement,
    guard: Statement,
}

/// The rows of a batch that the server refused.
#[derive(Default)]
struct Refused {
    /// In order of their places.
    poison: Vec<Poison>,
    /// How many of them were looked for one by one: these are limited.
    located: usize,
    /// All rows were sifted: whatever is refused from here on, the table refuses.
    sifted: bool,
}

/// A row that the server refused.
struct Poison {
    /// Its place in the batch, from 0.
    place: usize,
    sqlstate: String,
    reason: String,
}

/// How an attempt failed.
enum Fault {
    /// A row is to blame; the transaction is rolled back and the connection is good.
    Row(Box<Error>),
    /// Anything else; the connection goes.
    Other(StoreError),
}

impl From<StoreError> for Fault {
    fn from(error: StoreError) -> Self {
        Self::Other(error)
    }
}

impl PgLane {
    pub(super) async fn open(
        connector: Connector,
        writer: Uuid,
        epoch: i64,
        row: LaneRow,
        statement_timeout: Duration,
    ) -> Result<Self, StoreError> {
        let name = format!("logweir/{}/{}/{epoch}", writer.simple(), row.lane);
        let mut lane = Self { connector, name, writer, epoch, statement_timeout, row, session: None };
        lane.session = Some(lane.connect().await?);
        Ok(lane)
    }

    async fn connect(&self) -> Result<Session, StoreError> {
        within(self.limit(), "opening the lane's connection", self.connect_unbounded()).await
    }

    /// The server's own timeouts do not cover a COPY whose stream stalls.
    fn limit(&self) -> Duration {
        self.statement_timeout + GRACE
    }

    async fn connect_unbounded(&self) -> Result<Session, StoreError> {
        let link = self.connector.connect(&self.name).await?;
        // A COPY that was cut off without a word waits for its client as long as TCP lets it, and holds the lane's row
        // all that time; no other limit of the server's ends it. Where this is not allowed, time does it.
        let _ = link.client.execute(END_STALLED_SQL, &[&self.name]).await;
        schema::check_columns(&link.client).await?;
        let prepare =
            async |sql| link.client.prepare(sql).await.map_err(|error| failure("preparing the flush", &error));
        let cas = prepare(if armed("mutation.no_cas") { NO_CAS_SQL } else { CAS_SQL }).await?;
        let copy = prepare(COPY_SQL).await?;
        let volume = prepare(VOLUME_SQL).await?;
        let guard = prepare(GUARD_SQL).await?;
        Ok(Session { link, cas, copy, volume, guard })
    }

    fn begin_sql(&self) -> String {
        // lock_timeout bounds the wait for a zombie or for maintenance, the idle timeout a frozen process of ours.
        format!(
            "BEGIN; SET LOCAL synchronous_commit = on; SET LOCAL lock_timeout = '2s'; \
             SET LOCAL statement_timeout = {}; SET LOCAL idle_in_transaction_session_timeout = '15s'",
            self.statement_timeout.as_millis()
        )
    }

    /// Flushes, setting rows aside until the rest goes in.
    async fn flush_isolating_bad_rows(&mut self, batch: &Batch) -> Result<Flushed, StoreError> {
        let mut refused = Refused::default();
        loop {
            let session = match self.session.take() {
                Some(session) if !session.link.client.is_closed() => session,
                _ => self.connect().await?,
            };
            let limit = self.limit();
            let attempt = tokio::time::timeout(limit, self.attempt(&session, batch, &refused.poison)).await;
            let error = match attempt {
                Ok(Ok(flushed)) => {
                    self.session = Some(session);
                    return Ok(flushed);
                }
                Ok(Err(Fault::Other(error))) => {
                    return Err(error);
                }
                Ok(Err(Fault::Row(error))) => error,
                Err(_) => {
                    let limit_ms = limit.as_millis();
                    return Err(StoreError::Transient(format!("a flush took longer than {limit_ms} ms")));
                }
            };
            let found = self.set_aside(&session, batch, &mut refused, *error);
            match within(limit, "looking for bad rows", found).await {
                Ok(()) => self.session = Some(session),
                Err(error) => {
                    return Err(error);
                }
            }
        }
    }

    /// One transaction.
    async fn attempt(&mut self, session: &Session, batch: &Batch, poison: &[Poison]) -> Result<Flushed, Fault> {
        let skip: Vec<usize> = poison.iter().map(|poison| poison.place).collect();
        let client = &session.link.client;
        let rows_in = batch.records() - skip.len() as u64;
        let cursor_first = !armed("mutation.cursor_outside_tx");

        self.simple(session, &self.begin_sql()).await?;
        if cursor_first && !self.move_cursor(session, batch, rows_in, skip.len() as u64).await? {
            return Ok(self.missed(session, batch).await?);
        }
        kill_point("store.copy.before");
        let mut volume = volume::Counter::default();
        if rows_in > 0 {
            let stream = rows_without(batch, self.row.lane_id, &skip).inspect(|row| volume.add(row));
            match copy(client, &session.copy, stream).await {
                Ok((sent, counted)) if sent == counted => {}
                Ok((sent, counted)) => {
                    let text = format!("{sent} rows were sent and the database counted {counted}; rolled back");
                    return Err(Fault::Other(StoreError::Systemic(text)));
                }
                Err(error) if blames_a_row(&error) => {
                    self.simple(session, "ROLLBACK").await?;
                    return Err(Fault::Row(Box::new(error)));
                }
                Err(error) => return Err(failure("copying rows", &error).into()),
            }
        }
        kill_point("store.copy.after");
        let counting = self.count_volume(session, volume.finish());
        if !poison.is_empty() {
            self.bury(session, batch, poison).await?;
        }
        if cursor_first {
            // One round trip for both. Where counting fails so does the other: the transaction is aborted then.
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
        self.row.dead += skip.len() as u64;
        self.row.lost += batch.lost();
        self.count_dead(poison);
        Ok(Flushed { rows: rows_in, dead: skip.len() as u64 })
    }

    async fn simple(&self, session: &Session, sql: &str) -> Result<(), StoreError> {
        let what = sql.split(';').next().unwrap_or(sql);
        session.link.client.batch_execute(sql).await.map_err(|error| failure(what, &error))
    }

    /// The compare-and-set. `false`: it hit no row.
    async fn move_cursor(&self, session: &Session, batch: &Batch, rows_in: u64, dead: u64) -> Result<bool, StoreError> {
        kill_point("store.cas.before");
        let moved = session
            .link
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

    /// The compare-and-set hit no row: finds out why.
    async fn missed(&mut self, session: &Session, batch: &Batch) -> Result<Flushed, StoreError> {
        let client = &session.link.client;
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
        let miss = on_miss(self.epoch, self.row.lane_id, epoch, row.as_ref(), batch);
        match (miss, row) {
            (Miss::AlreadyApplied, Some(row)) => {
                let flushed = Flushed {
                    rows: row.rows.saturating_sub(self.row.rows),
                    dead: row.dead.saturating_sub(self.row.dead),
                };
                self.row = row;
                Ok(flushed)
            }
            (Miss::Moved, Some(row)) => {
                self.row = row.clone();
                Err(StoreError::CursorMoved(Box::new(row)))
            }
            (Miss::Fenced, _) => Err(StoreError::Fenced {
                writer: self.writer,
                epoch: epoch.unwrap_or_default(),
                mine: self.epoch,
                owner: owner.map(|owner| owner.get(1)).unwrap_or_default(),
            }),
            (Miss::Reused, _) => Err(StoreError::SequenceReused { lane: batch.lane, seq: batch.to_seq() }),
            (Miss::WentBack | Miss::AlreadyApplied | Miss::Moved, _) => {
                Err(StoreError::LeaseLost { writer: self.writer, mine: self.epoch })
            }
        }
    }

    async fn count_volume(&self, session: &Session, counted: Vec<(volume::Key<'_>, i64)>) -> Result<(), StoreError> {
        if counted.is_empty() {
            return Ok(());
        }
        let minutes: Vec<Time> = counted.iter().map(|(key, _)| Time(key.minute_us)).collect();
        let services: Vec<&str> = counted.iter().map(|(key, _)| key.service).collect();
        let severities: Vec<i16> = counted.iter().map(|(key, _)| i16::from(key.severity)).collect();
        let records: Vec<i64> = counted.iter().map(|(_, records)| *records).collect();
        session
            .link
            .client
            .execute(&session.volume, &[&minutes, &services, &severities, &records, &self.lane_id()])
            .await
            .map_err(|error| failure("counting the volume", &error))?;
        Ok(())
    }

    /// Writes the dead letters.
    async fn bury(&self, session: &Session, batch: &Batch, poison: &[Poison]) -> Result<(), StoreError> {
        let all: Vec<Row<'_>> = rows(batch, self.row.lane_id).collect();
        let dead: Vec<(&Poison, &Row<'_>)> = poison.iter().map(|poison| (poison, &all[poison.place])).collect();
        let ids: Vec<i64> = dead.iter().map(|(_, row)| row.id).collect();
        let seqs: Vec<i64> = dead.iter().map(|(_, row)| row.seq.cast_signed()).collect();
        let places: Vec<i32> = dead.iter().map(|(_, row)| row.row.cast_signed()).collect();
        let states: Vec<&str> = dead.iter().map(|(poison, _)| poison.sqlstate.as_str()).collect();
        let reasons: Vec<&str> = dead.iter().map(|(poison, _)| poison.reason.as_str()).collect();
        let raws: Vec<String> = dead.iter().map(|(_, row)| dead_letter::raw(&row.record)).collect();
        session
            .link
            .client
            .execute(DEAD_SQL, &[&ids, &seqs, &places, &states, &reasons, &raws, &self.writer, &i32::from(batch.lane)])
            .await
            .map_err(|error| failure("writing dead letters", &error))?;
        Ok(())
    }

    /// Reads the lane back inside the transaction and checks that the counters add up.
    async fn guard(&self, session: &Session, batch: &Batch, rows_in: u64, dead: u64) -> Result<(), StoreError> {
        let row = session
            .link
            .client
            .query_one(&session.guard, &[&self.writer, &i32::from(batch.lane)])
            .await
            .map_err(|error| failure("reading the cursor back", &error))?;
        let (seq, settled) = (row.get::<_, i64>(0).cast_unsigned(), row.get::<_, i64>(1).cast_unsigned());
        if (seq == batch.to_seq() && settled == batch.to_records()) || armed("mutation.no_guard") {
            return Ok(());
        }
        Err(StoreError::Systemic(format!(
            "lane {}: the counts do not add up, rolled back: with this batch ({rows_in} rows, {dead} dead letters, {} lost, \
             frames after {} to {}) the database would have {settled} records settled at frame {seq}; the journal has {} at frame {}",
            batch.lane,
            batch.lost(),
            batch.from_seq,
            batch.to_seq(),
            batch.to_records(),
            batch.to_seq(),
        )))
    }

    /// Finds the row that made `error` (or all rows like it) and sets it aside, unless there are too many already.
    async fn set_aside(
        &self,
        session: &Session,
        batch: &Batch,
        refused: &mut Refused,
        error: Error,
    ) -> Result<(), StoreError> {
        if class(&error) == Class::Value && refused.located >= SIFT_AFTER && !refused.sifted {
            refused.sifted = true;
            let found = self.sift(session, batch, &refused.poison).await?;
            if !found.is_empty() {
                refused.poison.extend(found);
                refused.poison.sort_by_key(|poison| poison.place);
                return Ok(());
            }
        }
        let records = usize::try_from(batch.records()).unwrap_or(usize::MAX);
        let limit = poison_rows_max(records);
        if refused.located >= limit {
            return Err(StoreError::Systemic(format!(
                "lane {}: the database refuses more than {limit} of {records} rows, the last one with: {}; this is taken for a \
                 change of the table, not for bad records; nothing was dead-lettered",
                batch.lane,
                describe(&error)
            )));
        }
        let found = self.locate(session, batch, &refused.poison, error).await?;
        let at = refused.poison.partition_point(|poison| poison.place < found.place);
        refused.poison.insert(at, found);
        refused.located += 1;
        Ok(())
    }

    /// Shows each row's values to the input functions of their types, the same that COPY uses, and to no table. What fails
    /// here is the record's own fault and no sign of a changed table. Pipelined: one round trip for
    /// each [`SIFT_WINDOW`] rows.
    async fn sift(&self, session: &Session, batch: &Batch, poison: &[Poison]) -> Result<Vec<Poison>, StoreError> {
        const WHAT: &str = "sifting rows";
        let client = &session.link.client;
        // Parameters that nothing uses are read all the same.
        let types = [Type::TEXT, Type::TEXT, Type::TEXT, Type::JSONB];
        let statement = client.prepare_typed("SELECT", &types).await.map_err(|error| failure(WHAT, &error))?;
        let skip: Vec<usize> = poison.iter().map(|poison| poison.place).collect();
        let all: Vec<Row<'_>> = rows(batch, self.row.lane_id).collect();
        let sent: Vec<usize> = (0..all.len()).filter(|place| skip.binary_search(place).is_err()).collect();
        let mut found = Vec::new();
        for places in sent.chunks(SIFT_WINDOW) {
            let mut answers = Vec::with_capacity(places.len());
            for &place in places {
                answers.push(read_values(client, &statement, &all[place]));
            }
            for (&place, answer) in places.iter().zip(join_all(answers).await) {
                match answer {
                    Ok(()) => {}
                    Err(error) if class(&error) == Class::Value => found.push(Poison::new(place, &error)),
                    Err(error) => return Err(failure(WHAT, &error)),
                }
            }
        }
        Ok(found)
    }

    async fn locate(
        &self,
        session: &Session,
        batch: &Batch,
        poison: &[Poison],
        error: Error,
    ) -> Result<Poison, StoreError> {
        let all: Vec<Row<'_>> = rows(batch, self.row.lane_id).collect();
        let is_poison = |place: &usize| poison.binary_search_by_key(place, |poison| poison.place).is_ok();
        let sent: Vec<usize> = (0..all.len()).filter(|place| !is_poison(place)).collect();
        let line = error.as_db_error().and_then(|db| copy_line(db.where_()?));
        if let Some(&place) = line.and_then(|line| sent.get(line.checked_sub(1)?))
            && let Some(error) = self.refused(session, &all[place..=place]).await?
        {
            return Ok(Poison::new(place, &error));
        }
        // No line, or not that row alone: the last row of the shortest part that is refused.
        let (mut taken, mut refused, mut last) = (0, sent.len(), error);
        while refused - taken > 1 {
            let middle = taken.midpoint(refused);
            let part: Vec<Row<'_>> = sent[..middle].iter().map(|&place| all[place]).collect();
            match self.refused(session, &part).await? {
                Some(error) => (refused, last) = (middle, error),
                None => taken = middle,
            }
        }
        Ok(Poison::new(sent[refused - 1], &last))
    }

    /// Whether the server refuses `rows` for a row's sake. Leaves nothing behind.
    async fn refused(&self, session: &Session, rows: &[Row<'_>]) -> Result<Option<Error>, StoreError> {
        self.simple(session, &self.begin_sql()).await?;
        let outcome = copy(&session.link.client, &session.copy, rows.iter().copied()).await;
        self.simple(session, "ROLLBACK").await?;
        match outcome {
            Ok(_) => Ok(None),
            Err(error) if blames_a_row(&error) => Ok(Some(error)),
            Err(error) => Err(failure("looking for a bad row", &error)),
        }
    }

    fn lane_id(&self) -> i32 {
        i32::try_from(self.row.lane_id).unwrap_or(i32::MAX)
    }

    fn count_dead(&self, poison: &[Poison]) {
        for poison in poison {
            metrics::counter!("logweir_store_dead_letters_total", "sqlstate" => poison.sqlstate.clone()).increment(1);
        }
        if poison.len() > TOLD_MAX {
            let records = poison.len() - TOLD_MAX;
            tracing::warn!(
                lane = self.row.lane,
                records,
                "more records of the batch were dead-lettered than are told here"
            );
        }
        for poison in poison.iter().take(TOLD_MAX) {
            tracing::warn!(
                lane = self.row.lane,
                sqlstate = poison.sqlstate,
                reason = poison.reason,
                "a record was dead-lettered"
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
    fn new(place: usize, error: &Error) -> Self {
        Self {
            place,
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
        crate::store::measure(batch.lane, started, &result);
        result
    }

    fn is_open(&self) -> bool {
        self.session.as_ref().is_some_and(|session| !session.link.client.is_closed())
    }
}
