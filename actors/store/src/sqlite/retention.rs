//! Deletes expired records: everything that has expired, in small transactions between which the flushes have their
//! turn. What is deleted per hour thus follows what expires, and has no other bound.
//!
//! A transaction takes as many rows as it can delete in a short time. If it had to wait long for its turn, it may take
//! half of that, a third of the whole: as much as deletion needs to keep up with lanes that always have something to
//! flush, since inserting a row takes longer than deleting one.

use std::time::Duration;

use logweir_record::timestamp::{self, DAY_US, MINUTE_US};
use rusqlite::{Connection, params};
use tokio::time::Instant;

use super::clock;
use super::connection::{SharedConnection, blocking, failed, immediate};
use crate::error::StoreError;
use crate::protocol::clock::{ClockState, Observed, horizon};

const DELETE_ROWS_SQL: &str = "DELETE FROM logs WHERE id IN (SELECT id FROM logs WHERE ts < ?1 ORDER BY ts LIMIT ?2)";
const DELETE_COUNTERS_SQL: &str = "DELETE FROM log_volume WHERE (minute, service, severity, lane_id) IN \
    (SELECT minute, service, severity, lane_id FROM log_volume WHERE minute < ?1 LIMIT ?2)";

/// How long a transaction may take if nobody waits, and at most.
const SHORT: Duration = Duration::from_millis(50);
const LONG: Duration = Duration::from_millis(250);
/// Rows of the first transaction, and the least number.
const ROWS_FIRST: u32 = 5_000;
const ROWS_MIN: u32 = 500;
/// A round ends after this time, so that the other steps have their turn and its outcome is reported.
const ROUND_MAX: Duration = Duration::from_mins(30);

/// Moves the trusted time. Returns it, and the time before which records have expired, if any do: whole minutes, as the
/// counters have them.
pub(super) fn tell_time(
    connection: &mut Connection,
    wall_us: i64,
    passed_us: i64,
    retention_days: u32,
) -> Result<(ClockState, Option<i64>), StoreError> {
    let failed = failed("reading the clock's state");
    let transaction = immediate(connection, "reading the clock's state")?;
    let before = clock::read(&transaction, wall_us).map_err(&failed)?;
    let retention_us = i64::from(retention_days) * DAY_US;
    let harmless_until_us = match retention_us {
        0 => i64::MIN,
        _ => clock::oldest(&transaction, before.trusted_us.saturating_sub(retention_us))
            .map_err(&failed)?
            .map_or(i64::MAX, |oldest| oldest.saturating_add(retention_us)),
    };
    let state = before.next(Observed { wall_us, passed_us, harmless_until_us, retention_us });
    if state != before {
        clock::write(&transaction, state).map_err(&failed)?;
    }
    let newest = clock::newest(&transaction, wall_us).map_err(&failed)?;
    transaction.commit().map_err(&failed)?;
    let horizon = (retention_us > 0).then(|| horizon(state.trusted_us, newest, retention_us, MINUTE_US));
    Ok((state, horizon))
}

/// Deletes the records before `horizon_us`, with their counters.
pub(super) async fn delete_expired(connection: &SharedConnection, horizon_us: i64) -> Result<(), StoreError> {
    let before = timestamp::text(horizon_us);
    let started = Instant::now();
    let mut rows_max = ROWS_FIRST;
    loop {
        let (asked, before) = (Instant::now(), before.clone());
        let step = blocking(connection, move |connection| {
            let (waited, begun) = (asked.elapsed(), Instant::now());
            let deleted = delete_step(connection, &before, rows_max)?;
            Ok((waited, begun.elapsed(), deleted))
        });
        let (waited, took, (rows, counters)) = step.await?;
        for (table, deleted) in [("logs", rows), ("log_volume", counters)] {
            metrics::counter!("logweir_store_retention_deleted_rows_total", "table" => table).increment(deleted.into());
        }
        if rows.max(counters) < rows_max || started.elapsed() > ROUND_MAX {
            return Ok(());
        }
        rows_max = next_rows_max(rows_max, waited, took);
    }
}

/// One transaction. Returns the numbers of deleted records and counters.
fn delete_step(connection: &mut Connection, before: &str, rows_max: u32) -> Result<(u32, u32), StoreError> {
    const WHAT: &str = "deleting expired rows";
    let transaction = immediate(connection, WHAT)?;
    let delete = |sql| -> rusqlite::Result<u32> {
        let deleted = transaction.prepare_cached(sql)?.execute(params![before, rows_max])?;
        Ok(u32::try_from(deleted).unwrap_or(u32::MAX))
    };
    let deleted = delete(DELETE_ROWS_SQL).and_then(|rows| Ok((rows, delete(DELETE_COUNTERS_SQL)?)));
    let deleted = deleted.map_err(failed(WHAT))?;
    transaction.commit().map_err(failed(WHAT))?;
    Ok(deleted)
}

/// The number of rows of the next transaction, after one that waited and took so long.
fn next_rows_max(rows_max: u32, waited: Duration, took: Duration) -> u32 {
    let target = (waited / 2).clamp(SHORT, LONG);
    let factor = (target.as_secs_f64() / took.as_secs_f64().max(1e-6)).clamp(0.5, 2.0);
    // At most 2^31 rows in practice: the time doubles with them.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let rows = (f64::from(rows_max) * factor) as u32;
    rows.max(ROWS_MIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transaction_takes_what_it_can_delete_in_a_short_time_or_half_of_its_wait() {
        let millis = Duration::from_millis;
        for (rows_max, waited, took, expected) in [
            (5_000, 0, 50, 5_000),
            (5_000, 0, 25, 10_000),
            (5_000, 0, 1, 10_000),
            (5_000, 0, 100, 2_500),
            (5_000, 0, 9_000, 2_500),
            (5_000, 200, 50, 10_000),
            (5_000, 60_000, 250, 5_000),
            (600, 0, 9_000, 500),
        ] {
            assert_eq!(next_rows_max(rows_max, millis(waited), millis(took)), expected, "{rows_max} {waited} {took}");
        }
    }
}
