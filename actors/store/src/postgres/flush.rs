//! The statements of a flush, on a lane's own connection.
//!
//! - An attempt owns its connection: if it is dropped halfway (timeout, shutdown), the connection closes and the server
//!   rolls back.
//! - Each statement has a time limit of its own, since the server's does not cover a COPY whose stream stalls.
//! - Nothing is set for the session, only for the transaction: the session can be a pooler's.
//! - What is asked before BEGIN uses the unnamed statement, so that everything is answered when it is sent
//!   ([`begin`](super::ddl::begin) says why) without another round trip.

use std::future::poll_fn;
use std::mem;
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::{join, maybe_done};
use logweir_engine::clock::wall_us;
use logweir_engine::fault::armed;
use logweir_engine::journal::LaneId;
use logweir_record::record::Severity;
use tokio::time::Instant;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{Oid, ToSql, Type};
use tokio_postgres::{Client, Error, Statement};
use uuid::Uuid;

use super::connect::{Connection, Connector, GRACE, describe, failure, no_answer, within};
use super::copy::{COPY_SQL, CopyError, copy};
use super::error_class::{Blame, Class, blame, copy_line};
use super::home::{Home, KnownHome};
use super::lane_row::{lane_in, owner_in};
use super::logs::{Logs, find_late};
use super::place::{Fallback, INSERT_SQL, Place, Placing, Reach, SharedFallback};
use super::schema::Prepared;
use super::types::{Json, Time};
use super::{idempotency, schema};
use crate::batch::{Batch, BatchFrame};
use crate::digest::Digest;
use crate::error::{Rejection, StoreError};
use crate::lane::{Flushed, LaneRow};
use crate::lease::Lease;
use crate::protocol::driver::flush::{Lane, dead_letter, flush};
use crate::protocol::driver::statements::{
    FlushStatements, How, LeftOut, Letter, Purpose, Refused, Step, Transaction, filtered,
};
use crate::protocol::raw_record::{self, ascii};
use crate::protocol::requests::KeyRow;
use crate::protocol::rows::{Row, Rows};
use crate::protocol::sample::{LastTaken, Sample};
use crate::protocol::takeover::Owner;
use crate::protocol::volume_counter::{Counter, Key};
use crate::store::LaneWriter;
use crate::telemetry::measure;
use logweir_record::record::Record;

const CAS_SQL: &str = "UPDATE $home.logweir_lane \
    SET last_seq = $5, digest = $6, rows = rows + $7, dead = dead + $8, lost = lost + $9 \
    WHERE writer_id = $1 AND lane = $2 AND epoch = $3 AND last_seq = $4 AND lane_id = $10 \
    AND inherited + rows + dead + lost = $11 AND ($12::bytea IS NULL OR substr(digest, 1, 16) = $12)";
/// The same without the condition, for the test that proves the condition necessary.
const NO_CAS_SQL: &str = "UPDATE $home.logweir_lane \
    SET last_seq = $5, digest = $6, rows = rows + $7, dead = dead + $8, lost = lost + $9 \
    WHERE writer_id = $1 AND lane = $2 AND $3::bigint IS NOT NULL AND $4::bigint IS NOT NULL \
    AND $10::integer IS NOT NULL AND $11::bigint IS NOT NULL AND coalesce($12::bytea, '') IS NOT NULL";
const RECOUNT_SQL: &str =
    "UPDATE $home.logweir_lane SET rows = rows - $3, dead = dead + $3 WHERE writer_id = $1 AND lane = $2";
const END_STALLED_SQL: &str = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
    WHERE application_name IN ($1, $1 || '/open') AND pid <> pg_backend_pid() \
    AND ((state = 'active' AND wait_event = 'ClientRead') \
    OR (state LIKE 'idle in transaction%' AND state_change < clock_timestamp() - interval '5 s'))";
const VOLUME_SQL: &str = "INSERT INTO $home.log_volume AS v (minute, service, severity, lane_id, records) \
    SELECT minute, service, severity, $5, records \
    FROM unnest($1::timestamptz[], $2::text[], $3::smallint[], $4::bigint[]) AS t (minute, service, severity, records) \
    ON CONFLICT (minute, service, severity, lane_id) DO UPDATE SET records = v.records + excluded.records";
/// Returns the ids of the rows that were inserted: not those of rows for which a trigger returned NULL.
const EXACT_SQL: &str = "INSERT INTO $logs (id, ts, severity, service, host, message, attributes) \
    SELECT id, ts, severity, service, host, message, attributes \
    FROM unnest($1::bigint[], $2::timestamptz[], $3::smallint[], $4::text[], $5::text[], $6::text[], $7::jsonb[]) \
    AS t (id, ts, severity, service, host, message, attributes) RETURNING id";
const DEAD_SQL: &str = "INSERT INTO $home.logweir_dead_letter (id, writer_id, lane, seq, row_no, sqlstate, reason, raw, at) \
    SELECT id, $7, $8, seq, row_no, sqlstate, reason, raw, clock_timestamp() \
    FROM unnest($1::bigint[], $2::bigint[], $3::integer[], $4::text[], $5::text[], $6::text[]) \
    AS t (id, seq, row_no, sqlstate, reason, raw)";
/// Also returns which table is `logs`.
const GUARD_SQL: &str = "SELECT last_seq, inherited + rows + dead + lost, to_regclass($3)::oid \
    FROM $home.logweir_lane WHERE writer_id = $1 AND lane = $2";
const STORED_SQL: &str =
    "SELECT ts, severity, service, host, message, attributes::text FROM $home.logs ORDER BY ts DESC LIMIT 1";

const ENCODING_SQL: &str = "SELECT current_setting('server_encoding') <> 'UTF8'";
const ROW_SECURITY_SQL: &str = "SELECT row_security_active($1::text::regclass), $1::text::regclass::oid";

/// Rows that are tried per round trip.
const PROBE_WINDOW: usize = 256;

/// Limits of a flush.
#[derive(Clone, Copy)]
pub(super) struct Limits {
    /// Time for a statement.
    pub(super) statement: Duration,
    /// How far from the present a record may be to be stored with the others of its day, if there is a table for the rest.
    pub(super) reach: Reach,
    /// Whether rows are compressed while they are copied.
    pub(super) direct_compress: bool,
}

/// A lane's connection.
pub(super) struct PgLane {
    connector: Connector,
    home: KnownHome,
    /// The connection's `application_name`.
    name: String,
    limits: Limits,
    fallback: SharedFallback,
    lane: Lane,
    session: Option<LaneSession>,
}

/// A connection with its prepared statements.
struct LaneSession {
    connection: Connection,
    home: Home,
    cas: Statement,
    logs: Target,
    /// Which table `logs` was when the session began.
    logs_oid: Oid,
    /// Whether late records go to a table of their own.
    is_hypertable: bool,
    /// Whether daily partitions have got one, as far as possible.
    looked_for_late: bool,
    /// That table, as the last batch with late records found it.
    late: Option<Target>,
    /// Where the records of the current flush go.
    placing: Placing,
    /// The lock that was not available, with the server's error.
    locked: Mutex<Option<(Place, String)>>,
    volume: Statement,
    guard: Statement,
    /// Claims idempotency keys; prepared by the first batch that has some.
    claim: Option<Statement>,
    /// Whether the database's encoding lacks characters.
    ascii: bool,
    begin: String,
    limit: Duration,
    /// Whether nothing was committed on it yet.
    is_new: bool,
}

/// A table that rows are inserted into.
struct Target {
    copy: Statement,
    /// Whether row security applies: COPY is refused then, whatever the policies say, and INSERT is not.
    has_policies: bool,
}

/// Name of a lane's connections: each takeover can terminate those of earlier epochs. The connection that opens the lane
/// has the suffix `/open`.
pub(super) fn connection_name(writer: Uuid, lane: LaneId, epoch: i64) -> String {
    format!("logweir/{}/{lane}/{epoch}", writer.simple())
}

/// Terminates earlier connections of the lane named `name` that wait for their client in mid-statement, or for long
/// between two statements.
///
/// After a connection is lost silently, a COPY, or a statement whose Sync never arrives, waits for the client until TCP
/// gives up, and holds its locks all that time; no other limit of the server ends it. Without the privilege to terminate
/// it, the wait must run out.
pub(super) async fn end_stalled(connection: &Connection, name: &str) {
    let _ = connection.client.execute_typed(END_STALLED_SQL, &[(&name, Type::TEXT)]).await;
}

/// Whether this version of TimescaleDB can compress rows while they are copied.
async fn has_direct_compress(connection: &Connection) -> Result<bool, StoreError> {
    const SQL: &str = "SELECT EXISTS (SELECT FROM pg_settings WHERE name = 'timescaledb.enable_direct_compress_copy')";
    let found = connection.client.query_typed_one(SQL, &[]).await;
    Ok(found.map_err(|error| failure("looking for direct compression", &error))?.get(0))
}

impl PgLane {
    pub(super) async fn open(
        connector: Connector,
        home: KnownHome,
        lease: &Lease,
        row: LaneRow,
        last_taken: LastTaken,
        limits: Limits,
        fallback: SharedFallback,
    ) -> Result<Self, StoreError> {
        let Lease { writer, epoch } = *lease;
        let name = connection_name(writer, row.lane, epoch);
        let lane = Lane::new(writer, epoch, row, last_taken);
        let mut lane = Self { connector, home, name, limits, fallback, lane, session: None };
        lane.session = Some(lane.connect().await?);
        Ok(lane)
    }

    async fn connect(&self) -> Result<LaneSession, StoreError> {
        let limit = self.limits.statement + GRACE;
        within(limit, "opening the lane's connection", self.connect_unbounded(limit)).await
    }

    async fn connect_unbounded(&self, limit: Duration) -> Result<LaneSession, StoreError> {
        let connection = self.connector.connect(&self.name).await?;
        end_stalled(&connection, &self.name).await;
        let Prepared { home, is_hypertable } = schema::check_columns(&connection.client, &self.home).await?;
        let prepare = async |sql: String| {
            connection.client.prepare(&sql).await.map_err(|error| failure("preparing the flush", &error))
        };
        let cas = prepare(home.sql(if armed("mutation.no_cas") { NO_CAS_SQL } else { CAS_SQL })).await?;
        let volume = prepare(home.sql(VOLUME_SQL)).await?;
        let guard = prepare(home.sql(GUARD_SQL)).await?;
        let encoding = connection.client.query_typed_one(ENCODING_SQL, &[]).await;
        let ascii = encoding.map_err(|error| failure("reading the database's encoding", &error))?.get(0);
        let table = Place::Logs.table(&home).to_string();
        let row_security = connection.client.query_typed_one(ROW_SECURITY_SQL, &[(&table, Type::TEXT)]).await;
        let row_security = row_security.map_err(|error| failure("reading the row security of logs", &error))?;
        let (has_policies, logs_oid) = (row_security.get(0), row_security.get(1));
        let logs = Target { copy: prepare(Place::Logs.sql(&home, COPY_SQL)).await?, has_policies };
        let compresses = self.limits.direct_compress && is_hypertable && has_direct_compress(&connection).await?;
        let begin = self.begin_sql(compresses);
        Ok(LaneSession {
            connection,
            home,
            cas,
            logs,
            logs_oid,
            is_hypertable,
            looked_for_late: false,
            late: None,
            placing: Placing::LOGS,
            locked: Mutex::new(None),
            volume,
            guard,
            claim: None,
            ascii,
            begin,
            limit,
            is_new: true,
        })
    }

    /// Returns a new session, or `old` if none can be opened while `old` works.
    async fn replaced(&self, mut old: LaneSession) -> Result<LaneSession, StoreError> {
        match self.connect().await {
            Err(error) if !old.connection.client.is_closed() => {
                old.connection.keep(&error);
                Ok(old)
            }
            session => session,
        }
    }

    fn begin_sql(&self, compresses: bool) -> String {
        // Row locks suffice: under a role's default of SERIALIZABLE lanes would end each other's transactions.
        // lock_timeout bounds the wait for a zombie or for maintenance, the idle timeout a frozen process of logweir. It is
        // below the statement's own limit, with which the records would seem to be at fault.
        let statement_ms = self.limits.statement.as_millis();
        let lock_ms = (statement_ms / 2).clamp(1, 2_000);
        format!(
            "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL synchronous_commit = on; SET LOCAL lock_timeout = {lock_ms}; \
             SET LOCAL statement_timeout = {statement_ms}; SET LOCAL idle_in_transaction_session_timeout = '15s'{}",
            if compresses { "; SET LOCAL timescaledb.enable_direct_compress_copy = on" } else { "" }
        )
    }

    /// Makes the table for late records beside daily partitions, which do without it until something is locked. If that
    /// fails, records wait for the lock.
    async fn make_late(&self, session: &mut LaneSession) {
        if session.is_hypertable || mem::replace(&mut session.looked_for_late, true) {
            return;
        }
        let (client, home) = (&session.connection.client, &session.home);
        let making = async { schema::keep_late(client, home, &Logs::read(client, home).await?).await };
        if let Err(error) = within(self.limits.statement, "making a table beside the locked one", making).await
            && self.home.is_news(&error.to_string())
        {
            tracing::warn!(%error, "cannot create a table for records while table logs is locked; they wait for the lock");
        }
    }

    /// Flushes `batch`, or dead-letters it if it was refused.
    async fn run(&mut self, batch: &Batch, refused: Option<&Rejection>) -> Result<Flushed, StoreError> {
        let mut session = match self.session.take() {
            Some(session) if session.connection.client.is_closed() => self.connect().await?,
            Some(session) if session.connection.is_due() => self.replaced(session).await?,
            Some(session) => session,
            None => self.connect().await?,
        };
        let fallback = self.fallback.get();
        if matches!(fallback, Fallback::Recent | Fallback::Late) {
            self.make_late(&mut session).await;
        }
        session.placing = Placing::new(fallback, wall_us(), session.is_hypertable.then_some(self.limits.reach));
        let flushed = match refused {
            None => flush(&mut self.lane, &mut session, batch).await,
            Some(rejection) => dead_letter(&mut self.lane, &mut session, batch, rejection).await,
        };
        if let Some((place, error)) = session.locked.get_mut().unwrap_or_else(PoisonError::into_inner).take() {
            self.fallback.locked(place, fallback, &error);
        }
        let flushed = flushed?;
        self.session = Some(session);
        Ok(flushed)
    }
}

async fn limited<T>(limit: Duration, work: impl Future<Output = T>) -> Option<T> {
    tokio::time::timeout(limit, work).await.ok()
}

impl LaneSession {
    /// As [`refused`]. A record that no partition takes gets a new connection first: opening one creates the default
    /// partition again if it was dropped.
    fn refused(&self, what: &str, error: &Error) -> Refused {
        let is_partition_missing = error.as_db_error().is_some_and(|db| {
            db.code() == &SqlState::CHECK_VIOLATION && db.constraint().is_none() && db.table() == Some("logs")
        });
        match is_partition_missing && !self.is_new {
            true => StoreError::Transient(format!("{what}: {}", describe(error))).into(),
            false => refused(what, error),
        }
    }

    fn client(&self) -> &Client {
        &self.connection.client
    }

    /// Runs a statement whose duration depends on the batch.
    async fn run<T>(&self, what: &str, work: impl Future<Output = Result<T, Error>>) -> Result<T, StoreError> {
        match limited(self.limit, work).await {
            Some(done) => done.map_err(|error| batch_failure(what, &error)),
            None => Err(self.timed_out(what)),
        }
    }

    fn timed_out(&self, what: &str) -> StoreError {
        StoreError::Rejected(Rejection {
            code: "timeout".to_owned(),
            reason: format!(
                "{what}: the database did not respond within {} ms; look for slow triggers and indexes on table logs, or \
                 raise database.statement_timeout_ms",
                self.limit.as_millis()
            ),
        })
    }

    /// Runs a statement whose duration does not depend on the batch.
    async fn simple(&self, what: &str, sql: &str) -> Result<(), StoreError> {
        self.unrelated(what, self.client().batch_execute(sql)).await
    }

    async fn unrelated<T>(&self, what: &str, work: impl Future<Output = Result<T, Error>>) -> Result<T, StoreError> {
        within(self.limit, what, async { work.await.map_err(|error| failure(what, &error)) }).await
    }

    /// Finds the table for late records. If they must not go there (it is missing, it is not logweir's, its row security
    /// is not that of `logs`), they go to `logs` for the rest of this flush. Asked in their own transaction, since all that
    /// can change at any time; batches without late records need not ask.
    async fn find_late(&mut self) -> Result<(), StoreError> {
        const WHAT: &str = "looking for the table for late records";
        let beside = self.unrelated(WHAT, find_late(self.client(), Some(self.home.name()))).await?;
        let Some(found) = beside.late().filter(|late| late.may_insert && late.is_protected_alike) else {
            self.placing = Placing::LOGS;
            return Ok(());
        };
        let copy = match self.late.take() {
            Some(target) => target.copy,
            None => self.unrelated(WHAT, self.client().prepare(&Place::Late.sql(&self.home, COPY_SQL))).await?,
        };
        self.late = Some(Target { copy, has_policies: found.has_policies });
        Ok(())
    }

    fn is_late(&self, row: &Row<'_>) -> bool {
        self.placing.of(row.record.ts_us) == Place::Late
    }

    /// Inserts rows of one place.
    async fn insert_into<'a>(
        &self,
        place: Place,
        rows: impl Iterator<Item = Row<'a>>,
        volume: &mut Counter<'a>,
        how: How,
    ) -> Result<Vec<LeftOut>, Refused> {
        let target = if place == Place::Late { self.late.as_ref() } else { Some(&self.logs) };
        match (how, target) {
            (How::Fast, Some(Target { copy, has_policies: false })) => self.copy_rows(place, copy, rows, volume).await,
            _ => self.insert_exactly(place, rows, volume).await,
        }
    }

    /// Notes that a lock on `place` was not available, for the next attempt.
    fn note_lock_timeout(&self, place: Place, error: &Error) {
        if error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE) {
            *self.locked.lock().unwrap_or_else(PoisonError::into_inner) = Some((place, describe(error)));
        }
    }

    async fn copy_rows<'a>(
        &self,
        place: Place,
        statement: &Statement,
        rows: impl Iterator<Item = Row<'a>>,
        volume: &mut Counter<'a>,
    ) -> Result<Vec<LeftOut>, Refused> {
        let what = &format!("copying rows into {}", place.name());
        let rows = rows.inspect(|row| volume.add(row));
        match limited(self.limit, copy(self.client(), statement, rows)).await {
            Some(Ok((sent, counted))) if sent == counted => Ok(Vec::new()),
            Some(Ok(_)) => Err(Refused::Filtered),
            // Row security that was enabled since: the next connection inserts.
            Some(Err(CopyError::Start(error)))
                if error.code() == Some(&SqlState::FEATURE_NOT_SUPPORTED) && !self.is_new =>
            {
                Err(StoreError::Transient(format!("{what}: {}", describe(&error))).into())
            }
            Some(Err(CopyError::Start(error))) => {
                self.note_lock_timeout(place, &error);
                Err(batch_failure(what, &error).into())
            }
            Some(Err(CopyError::Rows(error))) => {
                self.note_lock_timeout(place, &error);
                Err(self.refused(what, &error))
            }
            None => Err(self.timed_out(what).into()),
        }
    }

    async fn insert_exactly<'a>(
        &self,
        place: Place,
        rows: impl Iterator<Item = Row<'a>>,
        volume: &mut Counter<'a>,
    ) -> Result<Vec<LeftOut>, Refused> {
        let what = &format!("inserting rows into {}", place.name());
        let rows: Vec<Row<'a>> = rows.collect();
        let ids: Vec<i64> = rows.iter().map(|row| row.id).collect();
        let times: Vec<Time> = rows.iter().map(|row| Time(row.record.ts_us)).collect();
        let severities: Vec<i16> = rows.iter().map(|row| i16::from(row.record.severity.number())).collect();
        let services: Vec<&str> = rows.iter().map(|row| row.record.service).collect();
        let hosts: Vec<&str> = rows.iter().map(|row| row.record.host).collect();
        let messages: Vec<&str> = rows.iter().map(|row| row.record.message).collect();
        let attributes: Vec<Option<Json<'_>>> = rows.iter().map(|row| attributes(&row.record)).collect();
        let values: [&(dyn ToSql + Sync); 7] = [&ids, &times, &severities, &services, &hosts, &messages, &attributes];
        let sql = place.sql(&self.home, EXACT_SQL);
        let inserted = match limited(self.limit, self.client().query(&sql, &values)).await {
            Some(Ok(inserted)) => inserted,
            Some(Err(error)) => {
                self.note_lock_timeout(place, &error);
                return Err(self.refused(what, &error));
            }
            None => return Err(self.timed_out(what).into()),
        };
        let mut inserted: Vec<i64> = inserted.iter().map(|row| row.get(0)).collect();
        inserted.sort_unstable();
        let mut left_out = Vec::new();
        for (index, row) in rows.iter().enumerate() {
            match inserted.binary_search(&row.id) {
                Ok(_) => volume.add(row),
                Err(_) => left_out.push(LeftOut { index, rejection: filtered() }),
            }
        }
        if rows.len() - left_out.len() == inserted.len() {
            return Ok(left_out);
        }
        let text =
            "a trigger on table logs changes the column id, by which logweir finds its rows: let it leave id alone";
        Err(StoreError::Systemic(text.to_owned()).into())
    }

    /// After keys could not be claimed: terminates lanes' sessions, of whichever writer, that have been in the middle of a
    /// statement for longer than this process would wait for it. A frozen process holds its keys as long as the server lets
    /// it, and no other one could store what repeats a request of it.
    async fn end_stalled_holders(&self) {
        const SQL: &str = "SELECT pid, application_name, pg_terminate_backend(pid) FROM pg_stat_activity \
            WHERE datname = current_database() AND pid <> pg_backend_pid() \
            AND application_name ~ '^logweir/[0-9a-f]{32}/[0-9]+/[0-9]+$' AND state = 'active' \
            AND wait_event = 'ClientRead' AND query_start < clock_timestamp() - make_interval(secs => $1)";
        let limit_s = self.limit.as_secs_f64();
        let ended = limited(self.limit, async {
            self.client().batch_execute("ROLLBACK").await?;
            self.client().query_typed(SQL, &[(&limit_s, Type::FLOAT8)]).await
        });
        // Without the privilege to terminate them, the wait must run out.
        for row in ended.await.and_then(Result::ok).unwrap_or_default() {
            let (pid, name): (i32, String) = (row.get(0), row.get(1));
            tracing::warn!(pid, name, "terminated a connection of a frozen process that held idempotency keys");
            metrics::counter!("logweir_store_terminated_sessions_total").increment(1);
        }
    }

    /// Tries each of `rows` alone, in one transaction, pipelined.
    async fn try_each(&self, rows: &[Row<'_>]) -> Result<Vec<LeftOut>, StoreError> {
        const WHAT: &str = "trying rows one by one";
        let client = self.client();
        let types = [Type::INT8, Type::TIMESTAMPTZ, Type::INT2, Type::TEXT, Type::TEXT, Type::TEXT, Type::JSONB];
        let has_late = rows.iter().any(|row| self.is_late(row));
        let insert = async |place: Place| client.prepare_typed(&place.sql(&self.home, INSERT_SQL), &types).await;
        let prepared = async {
            client.batch_execute("SAVEPOINT logweir_row").await?;
            let one = insert(Place::Logs).await?;
            let one_late = if has_late { Some(insert(Place::Late).await?) } else { None };
            Ok((one, one_late, client.prepare("ROLLBACK TO SAVEPOINT logweir_row").await?))
        };
        let (one, one_late, undo) = self.run(WHAT, prepared).await?;
        let mut found = Vec::new();
        for (window, rows) in rows.chunks(PROBE_WINDOW).enumerate() {
            // Each is sent when it is first polled, so that the server gets them in this order.
            let mut tried = Vec::with_capacity(rows.len());
            for row in rows {
                let one = one_late.as_ref().filter(|_| self.is_late(row)).unwrap_or(&one);
                let mut insert = Box::pin(maybe_done(insert_one(client, one, row)));
                start(insert.as_mut()).await;
                let mut undone = Box::pin(maybe_done(client.execute(&undo, &[])));
                start(undone.as_mut()).await;
                tried.push((insert, undone));
            }
            for (index, (mut insert, mut undone)) in tried.into_iter().enumerate() {
                let both = async { join(&mut insert, &mut undone).await };
                if limited(self.limit, both).await.is_none() {
                    return Err(self.timed_out(WHAT));
                }
                let (outcome, undone) = (insert.as_mut().take_output(), undone.as_mut().take_output());
                let index = window * PROBE_WINDOW + index;
                match outcome {
                    Some(Ok(0)) => found.push(LeftOut { index, rejection: filtered() }),
                    Some(Err(error)) => match refused(WHAT, &error) {
                        Refused::Row { rejection, .. } => found.push(LeftOut { index, rejection }),
                        Refused::Failed(error) => return Err(error),
                        Refused::Filtered => {}
                    },
                    Some(Ok(_)) | None => {}
                }
                if let Some(Err(error)) = undone {
                    return Err(batch_failure(WHAT, &error));
                }
            }
        }
        Ok(found)
    }

    async fn count_volume(&self, step: &Step<'_>, counted: &[(Key<'_>, i64)]) -> Result<(), Error> {
        if counted.is_empty() {
            return Ok(());
        }
        let minutes: Vec<Time> = counted.iter().map(|(key, _)| Time(key.minute_us)).collect();
        let services: Vec<&str> = counted.iter().map(|(key, _)| key.service).collect();
        let severities: Vec<i16> = counted.iter().map(|(key, _)| i16::from(key.severity)).collect();
        let records: Vec<i64> = counted.iter().map(|(_, records)| *records).collect();
        let values: [&(dyn ToSql + Sync); 5] = [&minutes, &services, &severities, &records, &lane_id(step)];
        self.client().execute(&self.volume, &values).await.map(drop)
    }
}

impl Transaction for LaneSession {
    async fn begin(&mut self, purpose: Purpose) -> Result<(), StoreError> {
        self.simple("BEGIN", &self.begin).await?;
        match purpose {
            Purpose::Commit => Ok(()),
            Purpose::Try => self.simple("BEGIN", "SET CONSTRAINTS ALL IMMEDIATE").await,
        }
    }

    async fn commit(&mut self) -> Result<(), Refused> {
        // An open transaction whose fate is unknown; dividing the batch would not help.
        match limited(self.limit, self.client().batch_execute("COMMIT")).await {
            Some(Ok(())) => {
                self.is_new = false;
                Ok(())
            }
            Some(Err(error)) => Err(refused("COMMIT", &error)),
            None => Err(no_answer("COMMIT", self.limit).into()),
        }
    }

    async fn rollback(&mut self) -> Result<(), StoreError> {
        self.simple("ROLLBACK", "ROLLBACK").await
    }

    async fn owner(&mut self, writer: Uuid) -> Result<Option<Owner>, StoreError> {
        self.unrelated("reading the lease", owner_in(self.client(), &self.home, writer, "")).await
    }

    async fn lane(&mut self, writer: Uuid, lane: LaneId) -> Result<Option<LaneRow>, StoreError> {
        self.unrelated("reading the cursor", lane_in(self.client(), &self.home, writer, lane)).await
    }
}

impl FlushStatements for LaneSession {
    async fn move_cursor(&mut self, step: &Step<'_>) -> Result<bool, StoreError> {
        let batch = step.batch;
        let (begun, digest) = (batch.begun().map(BatchFrame::digest), batch.digest());
        let (lane, from_seq, to_seq) =
            (i32::from(batch.lane), batch.from_seq.cast_signed(), batch.to_seq().cast_signed());
        let (rows, dead, lost) = (step.rows.cast_signed(), step.dead.cast_signed(), batch.lost().cast_signed());
        let values: [&(dyn ToSql + Sync); 12] = [
            &step.writer,
            &lane,
            &step.epoch,
            &from_seq,
            &to_seq,
            &digest.as_bytes(),
            &rows,
            &dead,
            &lost,
            &lane_id(step),
            &batch.from_records.cast_signed(),
            &begun.as_ref().map(Digest::frame),
        ];
        Ok(self.run("moving the cursor", self.client().execute(&self.cas, &values)).await? == 1)
    }

    async fn claim_keys(&mut self, rows: &[KeyRow]) -> Result<Vec<KeyRow>, StoreError> {
        const WHAT: &str = "claiming idempotency keys";
        if self.claim.is_none() {
            self.claim = self.unrelated(WHAT, idempotency::prepare(self.client(), &self.home)).await?;
        }
        let Some(statement) = &self.claim else { return Ok(Vec::new()) };
        let claimed = self.run(WHAT, idempotency::claim(self.client(), statement, rows)).await;
        if claimed.is_err() {
            self.end_stalled_holders().await;
        }
        claimed
    }

    async fn update_keys(&mut self, rows: &[KeyRow]) -> Result<(), StoreError> {
        self.run("updating idempotency keys", idempotency::update(self.client(), &self.home, rows)).await
    }

    async fn count_repeated(&mut self, step: &Step<'_>) -> Result<(), StoreError> {
        let (lane, repeated) = (i32::from(step.batch.lane), step.repeated.cast_signed());
        let values: [&(dyn ToSql + Sync); 3] = [&step.writer, &lane, &repeated];
        let sql = self.home.sql(idempotency::REPEATED_SQL);
        self.run("counting repeated records", self.client().execute(&sql, &values)).await.map(drop)
    }

    async fn insert<'a>(
        &mut self,
        rows: Rows<'a>,
        volume: &mut Counter<'a>,
        how: How,
    ) -> Result<Vec<LeftOut>, Refused> {
        if rows.clone().any(|row| self.is_late(&row)) {
            self.find_late().await?;
        }
        let placing = self.placing;
        if rows.clone().all(|row| placing.of(row.record.ts_us) == Place::Logs) {
            return self.insert_into(Place::Logs, rows, volume, how).await;
        }
        // That rows were dropped without an error is told last: an error of a row says more.
        let (mut left_out, mut is_filtered) = (Vec::new(), false);
        for place in [Place::Logs, Place::Late] {
            let is_here = |(_, row): &(usize, Row<'_>)| placing.of(row.record.ts_us) == place;
            let (indexes, here): (Vec<usize>, Vec<Row<'a>>) = rows.clone().enumerate().filter(is_here).unzip();
            if here.is_empty() {
                continue;
            }
            match self.insert_into(place, here.into_iter(), volume, how).await {
                Ok(found) => {
                    left_out.extend(found.into_iter().map(|left| LeftOut { index: indexes[left.index], ..left }))
                }
                Err(Refused::Row { at, rejection }) => {
                    return Err(Refused::Row { at: at.and_then(|at| indexes.get(at).copied()), rejection });
                }
                Err(Refused::Filtered) => is_filtered = true,
                Err(refused) => return Err(refused),
            }
        }
        if is_filtered {
            return Err(Refused::Filtered);
        }
        left_out.sort_unstable_by_key(|left| left.index);
        Ok(left_out)
    }

    async fn probe(&mut self, rows: &[Row<'_>]) -> Result<Vec<LeftOut>, StoreError> {
        self.begin(Purpose::Try).await?;
        if rows.iter().any(|row| self.is_late(row)) {
            self.find_late().await?;
        }
        let found = self.try_each(rows).await?;
        self.rollback().await?;
        Ok(found)
    }

    async fn recount(&mut self, step: &Step<'_>, dead: u64) -> Result<(), StoreError> {
        let (lane, dead) = (i32::from(step.batch.lane), dead.cast_signed());
        let values: [&(dyn ToSql + Sync); 3] = [&step.writer, &lane, &dead];
        self.run("counting dead letters", self.client().execute(&self.home.sql(RECOUNT_SQL), &values)).await.map(drop)
    }

    async fn insert_dead_letters(&mut self, step: &Step<'_>, letters: &[Letter<'_>]) -> Result<(), StoreError> {
        const WHAT: &str = "writing dead letters";
        let ids: Vec<i64> = letters.iter().map(|letter| letter.row.id).collect();
        let seqs: Vec<i64> = letters.iter().map(|letter| letter.row.seq.cast_signed()).collect();
        let indexes: Vec<i32> = letters.iter().map(|letter| letter.row.row.cast_signed()).collect();
        let codes: Vec<&str> = letters.iter().map(|letter| letter.rejection.code.as_str()).collect();
        let mut reasons: Vec<String> = letters.iter().map(|letter| letter.rejection.reason.clone()).collect();
        let mut raws: Vec<String> = letters.iter().map(|letter| raw_record::raw(&letter.row.record)).collect();
        if self.ascii {
            raws.iter_mut().chain(&mut reasons).for_each(|text| *text = ascii(text));
        }
        let lane = i32::from(step.batch.lane);
        let values: [&(dyn ToSql + Sync); 8] = [&ids, &seqs, &indexes, &codes, &reasons, &raws, &step.writer, &lane];
        self.run(WHAT, self.client().execute(&self.home.sql(DEAD_SQL), &values)).await.map(drop)
    }

    async fn count_and_read_back(
        &mut self,
        step: &Step<'_>,
        volume: Vec<(Key<'_>, i64)>,
    ) -> Result<(u64, u64), StoreError> {
        let lane = i32::from(step.batch.lane);
        let table = Place::Logs.table(&self.home).to_string();
        let values: [&(dyn ToSql + Sync); 3] = [&step.writer, &lane, &table];
        // One round trip for both. If counting fails, so does the guard, since the transaction is aborted.
        let both = join(self.count_volume(step, &volume), self.client().query_one(&self.guard, &values));
        let Some((counted, read)) = limited(self.limit, both).await else {
            return Err(self.timed_out("counting the volume"));
        };
        counted.map_err(|error| batch_failure("counting the volume", &error))?;
        let row = read.map_err(|error| batch_failure("reading the cursor back", &error))?;
        // TimescaleDB decides what kind of table a COPY has before the COPY waits for the table's lock. One that waited while a
        // hypertable took the place of `logs` writes into the hypertable itself, where no query looks.
        if row.get::<_, Option<Oid>>(2) != Some(self.logs_oid) {
            return Err(StoreError::Transient(
                "another table took the place of table logs while records were stored: rolled back, and stored there"
                    .to_owned(),
            ));
        }
        Ok((row.get::<_, i64>(0).cast_unsigned(), row.get::<_, i64>(1).cast_unsigned()))
    }

    async fn stored_record(&mut self) -> Result<Option<Sample>, StoreError> {
        let found =
            self.unrelated("reading a record", self.client().query_opt(&self.home.sql(STORED_SQL), &[])).await?;
        Ok(found.map(|row| {
            let attributes: Option<&str> = row.get(5);
            let severity = u8::try_from(row.get::<_, i16>(1)).ok().and_then(Severity::from_number);
            Sample::of(&Record {
                ts_us: row.get::<_, Time>(0).0,
                severity: severity.unwrap_or_default(),
                service: row.get(2),
                host: row.get(3),
                message: row.get(4),
                attributes: attributes.unwrap_or_default(),
            })
        }))
    }
}

fn lane_id(step: &Step<'_>) -> i32 {
    i32::try_from(step.lane_id).unwrap_or(i32::MAX)
}

fn attributes<'a>(record: &Record<'a>) -> Option<Json<'a>> {
    (!record.attributes.is_empty()).then_some(Json(record.attributes))
}

async fn insert_one(client: &Client, statement: &Statement, row: &Row<'_>) -> Result<u64, Error> {
    let record = &row.record;
    let (time, severity) = (Time(record.ts_us), i16::from(record.severity.number()));
    let attributes = attributes(record);
    let values: [&(dyn ToSql + Sync); 7] =
        [&row.id, &time, &severity, &record.service, &record.host, &record.message, &attributes];
    client.execute(statement, &values).await
}

/// Polls `work` once.
async fn start(mut work: Pin<&mut impl Future>) {
    poll_fn(|context| {
        let _ = work.as_mut().poll(context);
        Poll::Ready(())
    })
    .await;
}

/// Classifies an error of a flush that no row is suspected of.
fn batch_failure(what: &str, error: &Error) -> StoreError {
    match rejection(what, error) {
        Some(rejection) if blame(&rejection.code, None, None) == Blame::Batch => StoreError::Rejected(rejection),
        _ => failure(what, error),
    }
}

/// Classifies an error that was raised while rows were inserted.
fn refused(what: &str, error: &Error) -> Refused {
    let (Some(db), Some(rejection)) = (error.as_db_error(), rejection(what, error)) else {
        return failure(what, error).into();
    };
    match blame(&rejection.code, db.constraint(), db.table()) {
        Blame::Row => {
            let line = db.where_().and_then(copy_line);
            Refused::Row { at: line.and_then(|line| line.checked_sub(1)), rejection }
        }
        Blame::Batch => StoreError::Rejected(rejection).into(),
        Blame::Nothing(Class::Transient) => StoreError::Transient(rejection.reason).into(),
        Blame::Nothing(Class::Systemic) => StoreError::Systemic(rejection.reason).into(),
    }
}

fn rejection(what: &str, error: &Error) -> Option<Rejection> {
    let code = error.code()?.code().to_owned();
    Some(Rejection { code, reason: format!("{what}: {}", describe(error)) })
}

#[async_trait]
impl LaneWriter for PgLane {
    async fn flush(&mut self, batch: &Batch) -> Result<Flushed, StoreError> {
        let started = Instant::now();
        let result = self.run(batch, None).await;
        measure(batch.lane, started, &result);
        result
    }

    async fn dead_letter(&mut self, batch: &Batch, rejection: &Rejection) -> Result<Flushed, StoreError> {
        let started = Instant::now();
        let result = self.run(batch, Some(rejection)).await;
        measure(batch.lane, started, &result);
        result
    }

    fn is_open(&self) -> bool {
        self.session.as_ref().is_some_and(|session| !session.connection.client.is_closed())
    }
}
