//! The statements that acquire a writer's lease and open its lanes.
//!
//! If a session does not release its lock within 5 seconds (a frozen process, a half-open connection), its connection is
//! terminated by name, but only once it is certain that this run may acquire the lease. That holds also for sessions that
//! acquire a lease themselves: the server ends one that is idle in its transaction, but no limit of the server covers one
//! that waits for its client in the middle of a statement.

use logweir_engine::journal::LaneId;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Error, Row};
use uuid::Uuid;

use super::connect::{Connection, Connector, failed, failure};
use super::ddl::begin;
use super::home::{Home, KnownHome};
use super::lane_row::{all_lanes, lane_in, owner_in};
use super::patience::Patience;
use super::{idempotency, takeover_digest};
use crate::digest::Digest;
use crate::error::StoreError;
use crate::lane::{LaneRow, LaneStart};
use crate::lease::{Claim, Lease};
use crate::protocol::driver::lease::{AcquireError, acquire, open_lane};
use crate::protocol::driver::statements::{LeaseError, LeaseStatements, Purpose, Refused, Transaction};
use crate::protocol::takeover::{LaneAt, Owner, TakeoverRow};

/// Attempts, each waiting up to five seconds for a lock, before the acquisition fails.
const ATTEMPTS_MAX: u32 = 3;

/// A healthy process holds the lock briefly. Waiting longer means that the holder is frozen; the idle timeout ends it.
const BEGIN_SQL: &str = "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL synchronous_commit = on; \
    SET LOCAL lock_timeout = '5s'; SET LOCAL statement_timeout = '30s'; \
    SET LOCAL idle_in_transaction_session_timeout = '15s'";
/// From PostgreSQL 17 on: ends a transaction whatever its session waits for.
const TRANSACTION_TIMEOUT_SQL: &str =
    "SELECT set_config(name, '60s', true) FROM pg_settings WHERE name = 'transaction_timeout'";

/// Moves the sequence behind the numbers in use, if the role may. Logical replication does not copy it, nor does a
/// restore of the rows alone. A number that a lane has had, also before it was reset, would give its records' ids to
/// others.
const SEQUENCE_SQL: &str = "SELECT setval(sequence, used) FROM (SELECT pg_get_serial_sequence($1, 'lane_id')::regclass \
    AS sequence, max(lane_id) AS used FROM $home.logweir_lane) lanes \
    WHERE CASE WHEN has_sequence_privilege(sequence, 'SELECT') AND has_sequence_privilege(sequence, 'UPDATE') \
    THEN used > coalesce(pg_sequence_last_value(sequence), 0) ELSE false END";

/// Part of the name of a connection that acquires a lease.
const ACQUIRE: &str = "acquire-lease";

/// A session that acquires a lease or opens a lane.
struct LeaseSession<'c> {
    connection: &'c Connection,
    home: Home,
    what: &'static str,
}

/// Acquires the lease of `claim.writer`. For a fork, `forked` lists the lanes to create.
pub(super) async fn acquire_lease(
    connector: &Connector,
    home: &KnownHome,
    attempting: &Patience,
    claim: &Claim,
    forked: Option<&[LaneStart]>,
) -> Result<Lease, StoreError> {
    const WHAT: &str = "acquiring the journal's lease";
    let name = format!("logweir/{}/{ACQUIRE}", claim.writer.simple());
    for _ in 0..ATTEMPTS_MAX {
        let connection = connector.connect(&name).await?;
        let attempt = async {
            let home = home.find(&connection.client).await?;
            let mut session = LeaseSession { connection: &connection, home, what: WHAT };
            match acquire(&mut session, claim, forked).await {
                Ok(lease) => Ok(Some(lease)),
                Err(AcquireError::Failed(error)) => Err(error),
                Err(AcquireError::Held { epoch }) => {
                    terminate_holders(&connection, claim.writer, epoch).await?;
                    Ok(None)
                }
            }
        };
        if let Some(lease) = attempting.wait(WHAT, attempt).await? {
            return Ok(lease);
        }
    }
    Err(StoreError::Transient(format!(
        "the lease of journal {} cannot be acquired: another session holds its rows in logweir_writer or logweir_lane; \
         see pg_stat_activity",
        claim.writer
    )))
}

/// Reads the lane's row, or creates it while this run holds the lease (the lock blocks a takeover meanwhile).
pub(super) async fn lane(
    connection: &Connection,
    home: &KnownHome,
    lease: &Lease,
    lane: LaneId,
) -> Result<LaneRow, StoreError> {
    let home = home.find(&connection.client).await?;
    open_lane(&mut LeaseSession { connection, home, what: "opening the lane" }, lease, lane).await
}

impl LeaseSession<'_> {
    fn failed<T>(&self, done: Result<T, Error>) -> Result<T, StoreError> {
        done.map_err(|error| failure(self.what, &error))
    }

    fn unless_held<T>(&self, done: Result<T, Error>) -> Result<T, LeaseError> {
        match done {
            Err(error) if error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE) => Err(LeaseError::Held),
            done => Ok(self.failed(done)?),
        }
    }

    /// Runs a statement that gives a lane the sequence's next number, and returns it: more than the greatest one before. That
    /// is another statement, since Citus takes no subquery in this one.
    async fn number_lane(&self, sql: &str, parameters: &[&(dyn ToSql + Sync)]) -> Result<(), StoreError> {
        let client = &self.connection.client;
        let table = self.home.table("logweir_lane").to_string();
        self.failed(client.execute(&self.home.sql(SEQUENCE_SQL), &[&table]).await)?;
        let used_sql = self.home.sql("SELECT coalesce(max(lane_id), 0) FROM $home.logweir_lane");
        let used: i32 = self.failed(client.query_one(&used_sql, &[]).await)?.get(0);
        let is_new = match client.query_opt(&self.home.sql(sql), parameters).await {
            Ok(row) => row.is_none_or(|row| row.get::<_, i32>(0) > used),
            Err(error) if error.code() == Some(&SqlState::UNIQUE_VIOLATION) => false,
            Err(error) => return self.failed(Err(error)),
        };
        is_new.then_some(()).ok_or_else(|| {
            StoreError::Systemic(format!(
                "{}: the sequence of {table}.lane_id is behind the numbers in use, as after logical replication or a \
                 restore of the rows alone: run, as the owner of the tables, SELECT setval(pg_get_serial_sequence('{table}', \
                 'lane_id'), (SELECT max(lane_id) FROM {table}))",
                self.what
            ))
        })
    }

    async fn simple(&self, sql: &str) -> Result<(), StoreError> {
        self.failed(self.connection.client.batch_execute(sql).await)
    }
}

impl Transaction for LeaseSession<'_> {
    async fn begin(&mut self, _: Purpose) -> Result<(), StoreError> {
        let sql = format!("{BEGIN_SQL}; {TRANSACTION_TIMEOUT_SQL}");
        self.failed(begin(&self.connection.client, &sql).await)
    }

    async fn commit(&mut self) -> Result<(), Refused> {
        Ok(self.simple("COMMIT").await?)
    }

    async fn rollback(&mut self) -> Result<(), StoreError> {
        self.simple("ROLLBACK").await
    }

    async fn owner(&mut self, writer: Uuid) -> Result<Option<Owner>, StoreError> {
        self.failed(owner_in(&self.connection.client, &self.home, writer, "").await)
    }

    async fn lane(&mut self, writer: Uuid, lane: LaneId) -> Result<Option<LaneRow>, StoreError> {
        self.failed(lane_in(&self.connection.client, &self.home, writer, lane).await)
    }
}

impl LeaseStatements for LeaseSession<'_> {
    async fn lock_owner(&mut self, writer: Uuid) -> Result<Option<Owner>, LeaseError> {
        self.unless_held(owner_in(&self.connection.client, &self.home, writer, "FOR NO KEY UPDATE").await)
    }

    async fn other_sessions(&mut self, writer: Uuid) -> Result<i64, StoreError> {
        let sql =
            "SELECT count(*) FROM pg_stat_activity WHERE starts_with(application_name, $1) AND pid <> pg_backend_pid()";
        let name = format!("logweir/{}/", writer.simple());
        Ok(self.failed(self.connection.client.query_one(sql, &[&name]).await)?.get(0))
    }

    async fn share_owner(&mut self, writer: Uuid) -> Result<Option<Owner>, StoreError> {
        self.failed(owner_in(&self.connection.client, &self.home, writer, "FOR SHARE").await)
    }

    async fn set_owner(&mut self, claim: &Claim, epoch: i64) -> Result<bool, StoreError> {
        let set = self
            .connection
            .client
            .execute(
                &self.home.sql("INSERT INTO $home.logweir_writer AS w (writer_id, epoch, run_id, owner, taken_at) VALUES ($1, $2, $3, $4, \
                 clock_timestamp()) ON CONFLICT (writer_id) DO UPDATE SET epoch = excluded.epoch, run_id = \
                 excluded.run_id, owner = excluded.owner, taken_at = excluded.taken_at WHERE w.epoch < excluded.epoch"),
                &[&claim.writer, &epoch, &claim.run, &claim.owner],
            )
            .await;
        Ok(self.failed(set)? == 1)
    }

    async fn fence_lanes(&mut self, writer: Uuid, epoch: i64) -> Result<(), LeaseError> {
        let sql = self.home.sql("UPDATE $home.logweir_lane SET epoch = $2 WHERE writer_id = $1 AND epoch < $2");
        self.unless_held(self.connection.client.execute(&sql, &[&writer, &epoch]).await).map(drop)
    }

    async fn lanes(&mut self, writer: Uuid) -> Result<Vec<LaneRow>, StoreError> {
        self.failed(all_lanes(&self.connection.client, &self.home, writer).await)
    }

    async fn create_lane(&mut self, writer: Uuid, epoch: i64, start: &LaneStart) -> Result<(), StoreError> {
        let (seq, records) = (start.seq.cast_signed(), start.records.cast_signed());
        self.number_lane(
            "INSERT INTO $home.logweir_lane (writer_id, lane, epoch, last_seq, inherited, digest) \
             VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (writer_id, lane) DO NOTHING RETURNING lane_id",
            &[&writer, &i32::from(start.lane), &epoch, &seq, &records, &start.digest.as_bytes()],
        )
        .await
    }

    async fn reset_lane(&mut self, writer: Uuid, _: i64, start: &LaneStart) -> Result<(), StoreError> {
        let (seq, records) = (start.seq.cast_signed(), start.records.cast_signed());
        let found = self.failed(idempotency::look(&self.connection.client, &self.home).await)?;
        let repeated = if found.column { ", repeated = 0" } else { "" };
        // `DEFAULT` is the identity column's next number, which no lane has had.
        self.number_lane(
            &format!(
                "UPDATE $home.logweir_lane SET lane_id = DEFAULT, last_seq = $3, inherited = $4, \
                 digest = '', rows = 0, dead = 0, lost = 0{repeated} WHERE writer_id = $1 AND lane = $2 \
                 RETURNING lane_id"
            ),
            &[&writer, &i32::from(start.lane), &seq, &records],
        )
        .await
    }

    async fn record_takeover(&mut self, claim: &Claim, epoch: i64, lanes: &[LaneAt]) -> Result<(), StoreError> {
        let client = &self.connection.client;
        let column = if self.failed(takeover_digest::exists(client, &self.home).await)? { ", digest" } else { "" };
        let sql = self.home.sql(&format!(
            "INSERT INTO $home.logweir_takeover (writer_id, epoch, run_id, run_before, owner, taken_at, lane, tail_seq, \
             cursor_seq{column}) SELECT $1, $2, $3, $4, $5, clock_timestamp(), lane, tail_seq, cursor_seq{column} \
             FROM unnest($6::integer[], $7::bigint[], $8::bigint[], $9::bytea[]) \
             AS t (lane, tail_seq, cursor_seq, digest)"
        ));
        let numbers: Vec<Option<i32>> = lanes.iter().map(|at| at.lane.map(i32::from)).collect();
        let tails: Vec<i64> = lanes.iter().map(|at| at.tail_seq.cast_signed()).collect();
        let cursors: Vec<i64> = lanes.iter().map(|at| at.cursor_seq.cast_signed()).collect();
        let digests: Vec<&[u8]> = lanes.iter().map(|at| at.digest.as_bytes()).collect();
        let Claim { writer, run, runs, owner, .. } = claim;
        let values: [&(dyn ToSql + Sync); 9] =
            [writer, &epoch, run, &runs.last(), owner, &numbers, &tails, &cursors, &digests];
        self.failed(client.execute(&sql, &values).await).map(drop)
    }
}

/// Terminates the writer's lane connections (including those being opened) of epochs before `epoch`, and those that
/// acquire the lease and have held a lock since before this one waited for it.
async fn terminate_holders(connection: &Connection, writer: Uuid, epoch: i64) -> Result<(), StoreError> {
    let ended = connection
        .client
        .query(
            "SELECT pid, application_name, pg_terminate_backend(pid) FROM pg_stat_activity \
             WHERE starts_with(application_name, $1) AND pid <> pg_backend_pid() AND \
             CASE WHEN split_part(application_name, '/', 4) ~ '^[0-9]{1,18}$' \
             THEN split_part(application_name, '/', 4)::bigint < $2 \
             ELSE split_part(application_name, '/', 3) = $3 AND xact_start < clock_timestamp() - interval '4 s' \
             AND wait_event_type IS DISTINCT FROM 'Lock' END",
            &[&format!("logweir/{}/", writer.simple()), &epoch, &ACQUIRE],
        )
        .await
        .map_err(failed("terminating the earlier owner's connections"))?;
    for row in ended {
        let (pid, name): (i32, String) = (row.get(0), row.get(1));
        tracing::warn!(pid, name, "terminated a connection of the journal's earlier owner that held a lock");
        metrics::counter!("logweir_store_terminated_sessions_total").increment(1);
    }
    Ok(())
}

/// Returns the writer's takeovers, in order.
pub(super) async fn history(
    connection: &Connection,
    home: &Home,
    writer: Uuid,
) -> Result<Vec<TakeoverRow>, StoreError> {
    const WHAT: &str = "reading the takeovers";
    let takeover = |row: &Row| TakeoverRow {
        epoch: row.get(0),
        run: row.get(1),
        run_before: row.get(2),
        at: LaneAt {
            lane: row.get::<_, Option<i32>>(3).and_then(|lane| u16::try_from(lane).ok()),
            tail_seq: row.get::<_, i64>(4).cast_unsigned(),
            cursor_seq: row.get::<_, i64>(5).cast_unsigned(),
            digest: Digest::from_bytes(row.get::<_, Option<Vec<u8>>>(6).unwrap_or_default()),
        },
    };
    let client = &connection.client;
    let has_digest = takeover_digest::exists(client, home).await.map_err(failed(WHAT))?;
    let digest = if has_digest { "digest" } else { "NULL::bytea" };
    let sql = home.sql(&format!(
        "SELECT epoch, run_id, run_before, lane, tail_seq, cursor_seq, {digest} FROM $home.logweir_takeover \
         WHERE writer_id = $1 ORDER BY epoch, lane"
    ));
    let rows = client.query(&sql, &[&writer]).await.map_err(failed(WHAT))?;
    Ok(rows.iter().map(takeover).collect())
}
