//! Reads and replays dead letters.

use std::mem;
use std::time::Duration;

use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Error, IsolationLevel, Row, Transaction};

use super::connect::{describe, failed, failure};
use super::home::Home;
use super::place::{INSERT_SQL, Place, Placing};
use super::types::{Json, Time};
use crate::dead_letter::DeadLetter;
use crate::error::StoreError;
use crate::lane::ORDINAL_BITS;
use crate::protocol::driver::statements::filtered;
use crate::protocol::raw_record::SanitizedRecord;
use crate::protocol::volume_counter::Key;

/// Attempts of a transaction that the database ends for the sake of another session, and the pause after the first.
const ATTEMPTS_MAX: u32 = 5;
const PAUSE: Duration = Duration::from_millis(50);

/// A process that is frozen must not hold locks for long.
const LIMITS_SQL: &str = "SET LOCAL lock_timeout = '5s'; SET LOCAL statement_timeout = '10min'; \
    SET LOCAL idle_in_transaction_session_timeout = '15s'";

const REMOVE_SQL: &str = "DELETE FROM $home.logweir_dead_letter WHERE id = $1";
const VOLUME_SQL: &str = "INSERT INTO $home.log_volume AS v (minute, service, severity, lane_id, records) \
    VALUES ($1, $2, $3, $4, 1) \
    ON CONFLICT (minute, service, severity, lane_id) DO UPDATE SET records = v.records + 1";
const REPLAYED_SQL: &str = "INSERT INTO $home.logweir_replayed AS r (lane_id, records) VALUES ($1, 1) \
    ON CONFLICT (lane_id) DO UPDATE SET records = r.records + 1";

const PURGE_SQL: &str = "DELETE FROM $home.logweir_dead_letter WHERE at < $1";

pub(super) async fn read(client: &Client, home: &Home, limit: u32) -> Result<Vec<DeadLetter>, StoreError> {
    let rows = client
        .query(
            &home.sql(
                "SELECT id, writer_id, lane, seq, row_no, sqlstate, reason, raw, at FROM $home.logweir_dead_letter \
                 ORDER BY at DESC, id DESC LIMIT $1",
            ),
            &[&i64::from(limit)],
        )
        .await
        .map_err(failed("reading dead letters"))?;
    let letter = |row: &Row| DeadLetter {
        id: row.get(0),
        writer: row.get(1),
        lane: u16::try_from(row.get::<_, i32>(2)).unwrap_or(u16::MAX),
        seq: row.get::<_, i64>(3).cast_unsigned(),
        row: row.get::<_, i32>(4).cast_unsigned(),
        sqlstate: row.get(5),
        reason: row.get(6),
        raw: row.get(7),
        at_us: row.get::<_, Time>(8).0,
    };
    Ok(rows.iter().map(letter).collect())
}

/// Inserts `record` where a flush would, counts it and removes its dead letter `id`. If that table is locked, which
/// `locked` is told, into the other one, unless it says that there is none.
pub(super) async fn replay(
    client: &mut Client,
    home: &Home,
    placing: Placing,
    (id, record): (i64, &SanitizedRecord),
    locked: impl Fn(Place, &str) -> bool,
) -> Result<(), StoreError> {
    let mut attempts = Attempts { what: "replaying a dead letter", failed: 0 };
    let mut place = placing.of(record.ts_us);
    let mut is_first = true;
    while let Err(stop) = try_replay(client, home, place, id, record).await {
        match lock_timeout(&stop) {
            Some(error) if mem::take(&mut is_first) && locked(place, &error) => place = place.other(),
            _ => attempts.again(stop).await?,
        }
    }
    Ok(())
}

async fn try_replay(
    client: &mut Client,
    home: &Home,
    place: Place,
    id: i64,
    record: &SanitizedRecord,
) -> Result<(), Stop> {
    let transaction = begin(client).await?;
    if transaction.execute(&home.sql(REMOVE_SQL), &[&id]).await? == 0 {
        return Err(Stop::Refused(format!("unknown dead letter {id}: it may have been replayed or purged")));
    }
    let (ts, severity) = (Time(record.ts_us), i16::from(record.severity.number()));
    let attributes = record.attributes.as_deref().map(Json);
    let values: [&(dyn ToSql + Sync); 7] =
        [&id, &ts, &severity, &record.service, &record.host, &record.message, &attributes];
    if transaction.execute(&place.sql(home, INSERT_SQL), &values).await? == 0 {
        return Err(Stop::Refused(filtered().reason));
    }
    let key = Key::new(record.ts_us, &record.service, record.severity.number());
    let lane_id = i32::try_from(id >> ORDINAL_BITS).unwrap_or(i32::MAX);
    let values: [&(dyn ToSql + Sync); 4] = [&Time(key.minute_us), &key.service, &severity, &lane_id];
    transaction.execute(&home.sql(VOLUME_SQL), &values).await?;
    transaction.execute(&home.sql(REPLAYED_SQL), &[&lane_id]).await?;
    Ok(transaction.commit().await?)
}

/// Deletes the dead letters that are older than `before_us`, and returns their number.
pub(super) async fn purge(client: &mut Client, home: &Home, before_us: i64) -> Result<u64, StoreError> {
    let mut attempts = Attempts { what: "purging dead letters", failed: 0 };
    loop {
        match try_purge(client, home, before_us).await {
            Ok(purged) => return Ok(purged),
            Err(stop) => attempts.again(stop).await?,
        }
    }
}

async fn try_purge(client: &mut Client, home: &Home, before_us: i64) -> Result<u64, Stop> {
    let transaction = begin(client).await?;
    let purged = transaction.execute(&home.sql(PURGE_SQL), &[&Time(before_us)]).await?;
    transaction.commit().await?;
    Ok(purged)
}

/// Begins a transaction that is rolled back when it is dropped. Always READ COMMITTED: under a role's default of
/// SERIALIZABLE it would fail whenever a flush counts the same minute.
async fn begin(client: &mut Client) -> Result<Transaction<'_>, Error> {
    // As `ddl::begin`: what precedes is answered, also the rollback of an attempt before.
    client.check_connection().await?;
    let transaction = client.build_transaction().isolation_level(IsolationLevel::ReadCommitted).start().await?;
    transaction.batch_execute(LIMITS_SQL).await?;
    Ok(transaction)
}

/// Why an attempt did nothing.
enum Stop {
    Failed(Error),
    /// Another attempt would end like this one.
    Refused(String),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// The attempts of a transaction, which the database can end for the sake of another session.
struct Attempts {
    what: &'static str,
    failed: u32,
}

impl Attempts {
    /// Waits until the next attempt is due.
    ///
    /// # Errors
    /// Another attempt would be of no use.
    async fn again(&mut self, stop: Stop) -> Result<(), StoreError> {
        let error = match stop {
            Stop::Refused(text) => return Err(StoreError::Systemic(text)),
            Stop::Failed(error) => error,
        };
        if !is_conflict(&error) {
            return Err(failure(self.what, &error));
        }
        self.failed += 1;
        if self.failed >= ATTEMPTS_MAX {
            // Not transient, which would keep other dead letters from being replayed.
            let text = format!("{}: failed {} times: {}", self.what, self.failed, describe(&error));
            return Err(StoreError::Systemic(text));
        }
        tokio::time::sleep(PAUSE * self.failed).await;
        Ok(())
    }
}

/// The error, if a lock was not available.
fn lock_timeout(stop: &Stop) -> Option<String> {
    match stop {
        Stop::Failed(error) if error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE) => Some(describe(error)),
        _ => None,
    }
}

/// A serialization failure, or a deadlock.
fn is_conflict(error: &Error) -> bool {
    matches!(error.code(), Some(&SqlState::T_R_SERIALIZATION_FAILURE | &SqlState::T_R_DEADLOCK_DETECTED))
}
