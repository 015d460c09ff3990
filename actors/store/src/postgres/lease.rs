//! Acquires a writer's lease in one transaction, which waits for the earlier owner's open flush and then fences it.
//!
//! - The writer's row is locked first, so that two takeovers are serialized; then the lanes' rows, so that an open
//!   flush either commits before (and shows in the cursor) or finds itself fenced.
//! - If a session does not release its lock within 5 seconds (a frozen process, a half-open connection), its connection
//!   is terminated by name, but only once it is certain that this run may acquire the lease.
//! - If the journal is older than the database, its lanes are reset in the same transaction.

use tokio_postgres::error::SqlState;
use tokio_postgres::{Error, Row};
use uuid::Uuid;

use super::connect::{Connection, Connector, failure};
use super::lane_row::{LANE_SQL, lane_row};
use crate::error::StoreError;
use crate::lane::{LaneRow, LaneStart};
use crate::lease::{Claim, Lease};
use crate::protocol::takeover::{Owner, TAKEOVERS_MAX, TakeoverRow, lanes_to_reset, log_resets, next_epoch, tails};

/// Attempts, each waiting up to five seconds for a lock, before the acquisition fails.
const ATTEMPTS_MAX: u32 = 3;

/// A healthy process holds the lock briefly. Waiting longer means that the holder is frozen; the idle timeout ends it.
const BEGIN_SQL: &str = "BEGIN; SET LOCAL synchronous_commit = on; SET LOCAL lock_timeout = '5s'; \
    SET LOCAL statement_timeout = '30s'; SET LOCAL idle_in_transaction_session_timeout = '15s'";
const OWNER_SQL: &str = "SELECT epoch, run_id, owner FROM logweir_writer WHERE writer_id = $1";

/// Why an attempt failed.
enum TakeoverError {
    /// A session of an epoch before `epoch` holds a row.
    Held {
        epoch: i64,
    },
    Other(StoreError),
}

/// Acquires the lease of `claim.writer`. For a fork, `forked` lists the lanes to create.
pub(super) async fn acquire_lease(
    connector: &Connector,
    claim: &Claim,
    forked: Option<&[LaneStart]>,
) -> Result<Lease, StoreError> {
    let name = format!("logweir/{}/acquire-lease", claim.writer.simple());
    for _ in 0..ATTEMPTS_MAX {
        let connection = connector.connect(&name).await?;
        match transaction(&connection, claim, forked).await {
            Ok((lease, resets)) => {
                log_resets(claim, &resets);
                return Ok(lease);
            }
            Err(TakeoverError::Other(error)) => return Err(error),
            Err(TakeoverError::Held { epoch }) => {
                connection.client.batch_execute("ROLLBACK").await.map_err(|error| failure("ROLLBACK", &error))?;
                terminate_holders(&connection, claim.writer, epoch).await?;
            }
        }
    }
    Err(StoreError::Transient(format!(
        "the lease of journal {} cannot be acquired: another session holds its rows in logweir_writer or logweir_lane; \
         see pg_stat_activity",
        claim.writer
    )))
}

/// Runs one attempt. Returns the lease and the lanes that were reset.
async fn transaction(
    connection: &Connection,
    claim: &Claim,
    forked: Option<&[LaneStart]>,
) -> Result<(Lease, Vec<LaneStart>), TakeoverError> {
    let client = &connection.client;
    let failed = |error: Error| TakeoverError::Other(failure("acquiring the journal's lease", &error));
    client.batch_execute(BEGIN_SQL).await.map_err(failed)?;
    let owner = match client.query_opt(&format!("{OWNER_SQL} FOR NO KEY UPDATE"), &[&claim.writer]).await {
        Ok(row) => row.as_ref().map(owner_row),
        Err(error) if is_held(&error) => return Err(held_writer(connection, claim).await),
        Err(error) => return Err(failed(error)),
    };
    let epoch = next_epoch(owner.as_ref(), claim).map_err(TakeoverError::Other)?;
    let held = |error: Error| if is_held(&error) { TakeoverError::Held { epoch } } else { failed(error) };
    let reacquired = owner.is_some_and(|owner| owner.epoch == epoch);
    if !reacquired {
        client
            .execute(
                "INSERT INTO logweir_writer AS w (writer_id, epoch, run_id, owner, taken_at) VALUES ($1, $2, $3, $4, \
                 clock_timestamp()) ON CONFLICT (writer_id) DO UPDATE SET epoch = excluded.epoch, run_id = \
                 excluded.run_id, owner = excluded.owner, taken_at = excluded.taken_at WHERE w.epoch < excluded.epoch",
                &[&claim.writer, &epoch, &claim.run, &claim.owner],
            )
            .await
            .map_err(failed)
            .and_then(|rows| match rows {
                1 => Ok(()),
                // Another process acquired the lease of the same new writer at the same time.
                _ => {
                    let text = "two processes acquired the journal's lease at the same time".to_owned();
                    Err(TakeoverError::Other(StoreError::Transient(text)))
                }
            })?;
    }
    client
        .execute("UPDATE logweir_lane SET epoch = $2 WHERE writer_id = $1 AND epoch < $2", &[&claim.writer, &epoch])
        .await
        .map_err(held)?;
    for start in forked.unwrap_or_default() {
        client
            .execute(
                "INSERT INTO logweir_lane (writer_id, lane, epoch, last_seq, inherited) VALUES ($1, $2, $3, $4, $5) \
                 ON CONFLICT (writer_id, lane) DO NOTHING",
                &[
                    &claim.writer,
                    &i32::from(start.lane),
                    &epoch,
                    &start.seq.cast_signed(),
                    &start.records.cast_signed(),
                ],
            )
            .await
            .map_err(failed)?;
    }
    let mut resets = Vec::new();
    if !reacquired {
        let rows = client.query(&format!("{LANE_SQL} ORDER BY lane"), &[&claim.writer]).await.map_err(failed)?;
        let lanes: Vec<LaneRow> = rows.iter().map(lane_row).collect();
        record_takeover(connection, claim, epoch, &lanes).await.map_err(failed)?;
        if forked.is_none() {
            resets = lanes_to_reset(claim, &lanes);
            reset_lanes(connection, claim.writer, &resets).await.map_err(failed)?;
        }
    }
    client.batch_execute("COMMIT").await.map_err(failed)?;
    Ok((Lease { writer: claim.writer, epoch }, resets))
}

fn owner_row(row: &Row) -> Owner {
    Owner { epoch: row.get(0), run: row.get(1), owner: row.get(2) }
}

fn is_held(error: &Error) -> bool {
    error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE)
}

/// Another session holds the writer's row: reads it without a lock to determine whether this run may acquire the lease.
async fn held_writer(connection: &Connection, claim: &Claim) -> TakeoverError {
    let failed = |error: Error| TakeoverError::Other(failure("acquiring the journal's lease", &error));
    if let Err(error) = connection.client.batch_execute("ROLLBACK").await {
        return failed(error);
    }
    match connection.client.query_opt(OWNER_SQL, &[&claim.writer]).await {
        Ok(row) => match next_epoch(row.as_ref().map(owner_row).as_ref(), claim) {
            Ok(epoch) => TakeoverError::Held { epoch },
            Err(error) => TakeoverError::Other(error),
        },
        Err(error) => failed(error),
    }
}

/// Resets lanes. `DEFAULT` is the identity column's next number, which no lane has had.
async fn reset_lanes(connection: &Connection, writer: Uuid, starts: &[LaneStart]) -> Result<(), Error> {
    for start in starts {
        connection
            .client
            .execute(
                "UPDATE logweir_lane SET lane_id = DEFAULT, last_seq = $3, inherited = $4, \
                 digest = '', rows = 0, dead = 0, lost = 0 WHERE writer_id = $1 AND lane = $2",
                &[&writer, &i32::from(start.lane), &start.seq.cast_signed(), &start.records.cast_signed()],
            )
            .await?;
    }
    Ok(())
}

/// Records the takeover: each lane's tail in the journal and cursor in the database.
async fn record_takeover(connection: &Connection, claim: &Claim, epoch: i64, lanes: &[LaneRow]) -> Result<(), Error> {
    for (lane, tail, cursor) in tails(claim, lanes) {
        connection
            .client
            .execute(
                "INSERT INTO logweir_takeover (writer_id, epoch, run_id, run_before, owner, taken_at, lane, tail_seq, \
                 cursor_seq) VALUES ($1, $2, $3, $4, $5, clock_timestamp(), $6, $7, $8)",
                &[
                    &claim.writer,
                    &epoch,
                    &claim.run,
                    &claim.runs.last(),
                    &claim.owner,
                    &lane.map(i32::from),
                    &tail.cast_signed(),
                    &cursor.cast_signed(),
                ],
            )
            .await?;
    }
    let sql = "DELETE FROM logweir_takeover WHERE writer_id = $1 AND epoch <= $2";
    connection.client.execute(sql, &[&claim.writer, &(epoch - TAKEOVERS_MAX)]).await?;
    Ok(())
}

/// Terminates the writer's lane connections (including those being opened) of epochs before `epoch`.
async fn terminate_holders(connection: &Connection, writer: Uuid, epoch: i64) -> Result<(), StoreError> {
    let ended = connection
        .client
        .query(
            "SELECT pid, application_name, pg_terminate_backend(pid) FROM pg_stat_activity \
             WHERE starts_with(application_name, $1) AND pid <> pg_backend_pid() AND \
             CASE WHEN split_part(application_name, '/', 4) ~ '^[0-9]{1,18}$' \
             THEN split_part(application_name, '/', 4)::bigint < $2 ELSE false END",
            &[&format!("logweir/{}/", writer.simple()), &epoch],
        )
        .await
        .map_err(|error| failure("terminating the earlier owner's connections", &error))?;
    for row in ended {
        let (pid, name): (i32, String) = (row.get(0), row.get(1));
        tracing::warn!(pid, name, "terminated a connection of the journal's earlier owner that held a lock");
        metrics::counter!("logweir_store_terminated_sessions_total").increment(1);
    }
    Ok(())
}

/// Returns the writer's takeovers, in order.
pub(super) async fn history(connection: &Connection, writer: Uuid) -> Result<Vec<TakeoverRow>, StoreError> {
    let takeover = |row: &Row| TakeoverRow {
        epoch: row.get(0),
        run: row.get(1),
        run_before: row.get(2),
        lane: row.get::<_, Option<i32>>(3).and_then(|lane| u16::try_from(lane).ok()),
        tail_seq: row.get::<_, i64>(4).cast_unsigned(),
        cursor_seq: row.get::<_, i64>(5).cast_unsigned(),
    };
    let rows = connection
        .client
        .query(
            "SELECT epoch, run_id, run_before, lane, tail_seq, cursor_seq FROM logweir_takeover \
             WHERE writer_id = $1 ORDER BY epoch, lane",
            &[&writer],
        )
        .await
        .map_err(|error| failure("reading the takeovers", &error))?;
    Ok(rows.iter().map(takeover).collect())
}

/// Reads the lane's row, or creates it while this run holds the lease (the lock blocks a takeover meanwhile).
pub(super) async fn lane(connection: &Connection, lease: &Lease, lane: u16) -> Result<LaneRow, StoreError> {
    let failed = |error: Error| failure("opening the lane", &error);
    let client = &connection.client;
    client.batch_execute(BEGIN_SQL).await.map_err(failed)?;
    let owner = client
        .query_opt("SELECT epoch, owner FROM logweir_writer WHERE writer_id = $1 FOR SHARE", &[&lease.writer])
        .await
        .map_err(failed)?;
    match owner {
        Some(owner) if owner.get::<_, i64>(0) == lease.epoch => {}
        Some(owner) if owner.get::<_, i64>(0) > lease.epoch => {
            return Err(StoreError::Fenced {
                writer: lease.writer,
                epoch: owner.get(0),
                mine: lease.epoch,
                owner: owner.get(1),
            });
        }
        _ => return Err(StoreError::LeaseLost { writer: lease.writer, mine: lease.epoch }),
    }
    let find = format!("{LANE_SQL} AND lane = $2");
    let number = i32::from(lane);
    // Read first: an INSERT … ON CONFLICT would use up a lane_id each time.
    let mut found = client.query_opt(&find, &[&lease.writer, &number]).await.map_err(failed)?;
    if found.is_none() {
        client
            .execute(
                "INSERT INTO logweir_lane (writer_id, lane, epoch) VALUES ($1, $2, $3) ON CONFLICT (writer_id, lane) \
                 DO NOTHING",
                &[&lease.writer, &number, &lease.epoch],
            )
            .await
            .map_err(failed)?;
        found = client.query_opt(&find, &[&lease.writer, &number]).await.map_err(failed)?;
    }
    client.batch_execute("COMMIT").await.map_err(failed)?;
    found
        .as_ref()
        .map(lane_row)
        .ok_or_else(|| StoreError::Systemic(format!("the row of lane {lane} was deleted while it was being created")))
}
