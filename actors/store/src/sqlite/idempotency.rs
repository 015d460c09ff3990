//! Table `logweir_idempotency_key`: what is stored of each request that may be repeated.
//!
//! A key is valid as long as its row is there. Maintenance deletes those that have [expired](crate::protocol::key_age),
//! except for requests of which a lane has stored only a part: it goes on with the rest, however late.

use std::sync::{Mutex, PoisonError};

use rusqlite::{Connection, Row, params};
use tokio::time::Instant;

use super::clock;
use super::connection::{SharedConnection, blocking, failed, immediate};
use crate::error::StoreError;
use crate::protocol::key_age::Rounds;
use crate::protocol::requests::KeyRow;

/// Inserts a key that is new, and returns the key's row.
const CLAIM_SQL: &str = "INSERT INTO logweir_idempotency_key (key, lane_id, seq, records, stored, at) \
    VALUES (?1, ?2, ?3, ?4, ?5, ?6) ON CONFLICT (key) DO UPDATE SET at = at RETURNING lane_id, seq, records, stored";
const UPDATE_SQL: &str = "UPDATE logweir_idempotency_key \
    SET lane_id = ?2, seq = ?3, records = ?4, stored = ?5, at = ?6 WHERE key = ?1";
/// Counts records of the current step that another frame has stored.
pub(super) const REPEATED_SQL: &str = "UPDATE logweir_lane SET inherited = inherited + ?3, repeated = repeated + ?3 \
    WHERE writer_id = ?1 AND lane = ?2";
const DELETE_SQL: &str = "DELETE FROM logweir_idempotency_key WHERE key IN \
    (SELECT key FROM logweir_idempotency_key AS k WHERE at < ?1 AND (stored >= records OR NOT EXISTS \
    (SELECT 1 FROM logweir_lane AS l WHERE l.lane_id = k.lane_id AND l.last_seq < k.seq)) ORDER BY at LIMIT ?2)";

/// Keys that a transaction deletes, and transactions of a round: flushes have their turn in between.
const DELETE_MAX: u16 = 5_000;
const ROUND_MAX: u16 = 1_000;

/// Inserts the rows whose keys are not known, and returns the rows of all.
pub(super) fn claim(connection: &Connection, rows: &[KeyRow], now_us: i64) -> rusqlite::Result<Vec<KeyRow>> {
    let mut statement = connection.prepare_cached(CLAIM_SQL)?;
    let claim = |&KeyRow { key, lane_id, seq, records, stored }: &KeyRow| {
        let numbers = [seq, records, stored].map(u64::cast_signed);
        let number = |row: &Row<'_>, column| row.get::<_, i64>(column).map(i64::cast_unsigned);
        statement.query_row(params![key, lane_id, numbers[0], numbers[1], numbers[2], now_us], |row| {
            let (seq, records, stored) = (number(row, 1)?, number(row, 2)?, number(row, 3)?);
            Ok(KeyRow { key, lane_id: row.get(0)?, seq, records, stored })
        })
    };
    rows.iter().map(claim).collect()
}

/// Overwrites rows.
pub(super) fn update(connection: &Connection, rows: &[KeyRow], now_us: i64) -> rusqlite::Result<()> {
    let mut statement = connection.prepare_cached(UPDATE_SQL)?;
    rows.iter().try_for_each(|&KeyRow { key, lane_id, seq, records, stored }| {
        let numbers = [seq, records, stored].map(u64::cast_signed);
        statement.execute(params![key, lane_id, numbers[0], numbers[1], numbers[2], now_us]).map(drop)
    })
}

/// Deletes the keys that have expired, a bounded number at a time.
pub(super) async fn delete_expired(
    connection: &SharedConnection,
    rounds: &Mutex<Rounds>,
    wall_us: i64,
) -> Result<(), StoreError> {
    const WHAT: &str = "deleting expired idempotency keys";
    let state = blocking(connection, move |connection| clock::read(connection, wall_us).map_err(failed(WHAT))).await?;
    let before_us = {
        let mut rounds = rounds.lock().unwrap_or_else(PoisonError::into_inner);
        rounds.expired_before(Instant::now(), wall_us, state.trusted_us)
    };
    for _ in 0..ROUND_MAX {
        let deleted = blocking(connection, move |connection| {
            let transaction = immediate(connection, WHAT)?;
            let deleted = transaction.execute(DELETE_SQL, params![before_us, DELETE_MAX]).map_err(failed(WHAT))?;
            transaction.commit().map_err(failed(WHAT))?;
            Ok(deleted)
        });
        if deleted.await? < usize::from(DELETE_MAX) {
            break;
        }
    }
    Ok(())
}
