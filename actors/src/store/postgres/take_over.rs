//! Taking a writer over: one transaction that waits for the old owner's open flush and then cuts it off.
//!
//! - The writer's row is locked first, so that two take-overs go one after the other; the lanes' rows then, so that an
//!   open flush either commits before (and is seen in the cursor) or finds itself fenced.
//! - A holder that does not let go within 5 seconds (a frozen process, a half-open connection) loses its connection by its
//!   name, but only once it is certain that the writer is ours to take.
//! - A journal that is older than the database has its lanes begun anew in the same transaction.

use tokio_postgres::error::SqlState;
use tokio_postgres::{Error, Row};
use uuid::Uuid;

use super::connect::{Connector, Link, failure};
use super::flush::{LANE_SQL, lane_row};
use crate::store::claim::{Owner, Past, TAKEOVERS_MAX, anew, succeed, tails};
use crate::store::{Claim, LaneRow, LaneStart, Lease, StoreError, report_anew};

/// After so many waits of five seconds each it is told as it is.
const TRIES: u32 = 3;

/// The lock is short-lived in a sound process: whoever waits longer meets a frozen one, which the idle timeout ends.
const BEGIN_SQL: &str = "BEGIN; SET LOCAL synchronous_commit = on; SET LOCAL lock_timeout = '5s'; \
    SET LOCAL statement_timeout = '30s'; SET LOCAL idle_in_transaction_session_timeout = '15s'";
const OWNER_SQL: &str = "SELECT epoch, run_id, owner FROM logweir_writer WHERE writer_id = $1";

/// How one try went wrong.
enum Fault {
    /// Somebody of an epoch before `epoch` holds a row.
    Held {
        epoch: i64,
    },
    Other(StoreError),
}

/// Takes `claim.writer` over. Adopting (`adopted` is there), it makes the lanes that are new.
pub(super) async fn take_over(
    connector: &Connector,
    claim: &Claim,
    adopted: Option<&[LaneStart]>,
) -> Result<Lease, StoreError> {
    let name = format!("logweir/{}/take-over", claim.writer.simple());
    for _ in 0..TRIES {
        let link = connector.connect(&name).await?;
        match transaction(&link, claim, adopted).await {
            Ok((lease, begun)) => {
                report_anew(claim, &begun);
                return Ok(lease);
            }
            Err(Fault::Other(error)) => return Err(error),
            Err(Fault::Held { epoch }) => {
                link.client.batch_execute("ROLLBACK").await.map_err(|error| failure("ROLLBACK", &error))?;
                terminate(&link, claim.writer, epoch).await?;
            }
        }
    }
    Err(StoreError::Transient(format!(
        "the journal {} cannot be taken over: another session holds its rows in logweir_writer or logweir_lane; see pg_stat_activity",
        claim.writer
    )))
}

/// One try; returns the lanes that were begun anew, too.
async fn transaction(
    link: &Link,
    claim: &Claim,
    adopted: Option<&[LaneStart]>,
) -> Result<(Lease, Vec<LaneStart>), Fault> {
    let client = &link.client;
    let failed = |error: Error| Fault::Other(failure("taking the journal over", &error));
    client.batch_execute(BEGIN_SQL).await.map_err(failed)?;
    let owner = match client.query_opt(&format!("{OWNER_SQL} FOR NO KEY UPDATE"), &[&claim.writer]).await {
        Ok(row) => row.as_ref().map(owner_row),
        Err(error) if is_held(&error) => return Err(held_writer(link, claim).await),
        Err(error) => return Err(failed(error)),
    };
    let epoch = succeed(owner.as_ref(), claim).map_err(Fault::Other)?;
    let held = |error: Error| if is_held(&error) { Fault::Held { epoch } } else { failed(error) };
    let again = owner.is_some_and(|owner| owner.epoch == epoch);
    if !again {
        client
            .execute(
                "INSERT INTO logweir_writer AS w (writer_id, epoch, run_id, owner, taken_at) VALUES ($1, $2, $3, $4, clock_timestamp()) \
                 ON CONFLICT (writer_id) DO UPDATE \
                 SET epoch = excluded.epoch, run_id = excluded.run_id, owner = excluded.owner, taken_at = excluded.taken_at \
                 WHERE w.epoch < excluded.epoch",
                &[&claim.writer, &epoch, &claim.run, &claim.owner],
            )
            .await
            .map_err(failed)
            .and_then(|rows| match rows {
                1 => Ok(()),
                // A first take-over of the same new writer beside ours.
                _ => Err(Fault::Other(StoreError::Transient("two processes took the journal over at once".to_owned()))),
            })?;
    }
    client
        .execute("UPDATE logweir_lane SET epoch = $2 WHERE writer_id = $1 AND epoch < $2", &[&claim.writer, &epoch])
        .await
        .map_err(held)?;
    for start in adopted.unwrap_or_default() {
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
    let mut begun = Vec::new();
    if !again {
        let rows = client.query(&format!("{LANE_SQL} ORDER BY lane"), &[&claim.writer]).await.map_err(failed)?;
        let lanes: Vec<LaneRow> = rows.iter().map(lane_row).collect();
        remember(link, claim, epoch, &lanes).await.map_err(failed)?;
        if adopted.is_none() {
            begun = anew(claim, &lanes);
            begin_anew(link, claim.writer, &begun).await.map_err(failed)?;
        }
    }
    client.batch_execute("COMMIT").await.map_err(failed)?;
    Ok((Lease { writer: claim.writer, epoch }, begun))
}

fn owner_row(row: &Row) -> Owner {
    Owner { epoch: row.get(0), run: row.get(1), owner: row.get(2) }
}

fn is_held(error: &Error) -> bool {
    error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE)
}

/// Somebody holds the writer's row: reads it without a lock, to know whether it is ours to take and from which epoch on.
async fn held_writer(link: &Link, claim: &Claim) -> Fault {
    let failed = |error: Error| Fault::Other(failure("taking the journal over", &error));
    if let Err(error) = link.client.batch_execute("ROLLBACK").await {
        return failed(error);
    }
    match link.client.query_opt(OWNER_SQL, &[&claim.writer]).await {
        Ok(row) => match succeed(row.as_ref().map(owner_row).as_ref(), claim) {
            Ok(epoch) => Fault::Held { epoch },
            Err(error) => Fault::Other(error),
        },
        Err(error) => failed(error),
    }
}

/// `DEFAULT` is the identity's next number, which no lane has had.
async fn begin_anew(link: &Link, writer: Uuid, starts: &[LaneStart]) -> Result<(), Error> {
    for start in starts {
        link.client
            .execute(
                "UPDATE logweir_lane SET lane_id = DEFAULT, last_seq = $3, inherited = $4, \
                 digest = '', rows = 0, dead = 0, lost = 0 WHERE writer_id = $1 AND lane = $2",
                &[&writer, &i32::from(start.lane), &start.seq.cast_signed(), &start.records.cast_signed()],
            )
            .await?;
    }
    Ok(())
}

/// Writes the history: each lane's tail in the journal and cursor in the database.
async fn remember(link: &Link, claim: &Claim, epoch: i64, lanes: &[LaneRow]) -> Result<(), Error> {
    for (lane, tail, cursor) in tails(claim, lanes) {
        link.client
            .execute(
                "INSERT INTO logweir_takeover (writer_id, epoch, run_id, run_before, owner, taken_at, lane, tail_seq, cursor_seq) \
                 VALUES ($1, $2, $3, $4, $5, clock_timestamp(), $6, $7, $8)",
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
    link.client.execute(sql, &[&claim.writer, &(epoch - TAKEOVERS_MAX)]).await?;
    Ok(())
}

/// Ends the connections of the writer (for its lanes, and those that open one) that belong to epochs before `epoch`.
async fn terminate(link: &Link, writer: Uuid, epoch: i64) -> Result<(), StoreError> {
    let ended = link
        .client
        .query(
            "SELECT pid, application_name, pg_terminate_backend(pid) FROM pg_stat_activity \
             WHERE starts_with(application_name, $1) AND pid <> pg_backend_pid() AND \
             CASE WHEN split_part(application_name, '/', 4) ~ '^[0-9]{1,18}$' \
             THEN split_part(application_name, '/', 4)::bigint < $2 ELSE false END",
            &[&format!("logweir/{}/", writer.simple()), &epoch],
        )
        .await
        .map_err(|error| failure("ending the connections of the older owner", &error))?;
    for row in ended {
        let (pid, name): (i32, String) = (row.get(0), row.get(1));
        tracing::warn!(pid, name, "ended a connection of the journal's older owner, which held a lock");
        metrics::counter!("logweir_store_terminated_sessions_total").increment(1);
    }
    Ok(())
}

/// The history of the writer, in order.
pub(super) async fn history(link: &Link, writer: Uuid) -> Result<Vec<Past>, StoreError> {
    let past = |row: &Row| Past {
        epoch: row.get(0),
        run: row.get(1),
        run_before: row.get(2),
        lane: row.get::<_, Option<i32>>(3).and_then(|lane| u16::try_from(lane).ok()),
        tail_seq: row.get::<_, i64>(4).cast_unsigned(),
        cursor_seq: row.get::<_, i64>(5).cast_unsigned(),
    };
    let rows = link
        .client
        .query(
            "SELECT epoch, run_id, run_before, lane, tail_seq, cursor_seq FROM logweir_takeover \
             WHERE writer_id = $1 ORDER BY epoch, lane",
            &[&writer],
        )
        .await
        .map_err(|error| failure("reading the take-overs", &error))?;
    Ok(rows.iter().map(past).collect())
}

/// Reads the lane, or makes its row while the writer is still ours (the lock keeps a take-over out meanwhile).
pub(super) async fn lane(link: &Link, lease: &Lease, lane: u16) -> Result<LaneRow, StoreError> {
    let failed = |error: Error| failure("opening the lane", &error);
    let client = &link.client;
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
    // Looked for first: an INSERT … ON CONFLICT would use up a lane_id each time.
    let mut found = client.query_opt(&find, &[&lease.writer, &number]).await.map_err(failed)?;
    if found.is_none() {
        client
            .execute(
                "INSERT INTO logweir_lane (writer_id, lane, epoch) VALUES ($1, $2, $3) ON CONFLICT (writer_id, lane) DO NOTHING",
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
        .ok_or_else(|| StoreError::Systemic(format!("the row of lane {lane} was removed while it was made")))
}
