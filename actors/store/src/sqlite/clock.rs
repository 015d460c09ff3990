//! The trusted time in the file, and what else is known about the time.

use logweir_record::timestamp;
use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};

use crate::protocol::clock::ClockState;

/// The state in the file, or, if there is none, the newest time that a record has and that is not in the future: the
/// clock of a file that an earlier version wrote cannot be trusted either. A file without records trusts the clock.
pub(super) fn read(connection: &Connection, wall_us: i64) -> rusqlite::Result<ClockState> {
    let state = |row: &Row<'_>| Ok(ClockState { trusted_us: row.get(0)?, doubted_us: row.get(1)? });
    let kept = connection.query_row("SELECT trusted_us, doubted_us FROM logweir_clock", [], state).optional()?;
    match kept {
        Some(kept) => Ok(kept),
        None => Ok(ClockState::new(newest(connection, wall_us)?.unwrap_or(wall_us))),
    }
}

/// Keeps the time of a file that has none yet, before the first record can be stored.
pub(super) fn begin(connection: &Connection, wall_us: i64) -> rusqlite::Result<()> {
    let state = read(connection, wall_us)?;
    connection
        .execute(
            "INSERT INTO logweir_clock (one, trusted_us, doubted_us) VALUES (1, ?1, ?2) ON CONFLICT (one) DO NOTHING",
            params![state.trusted_us, state.doubted_us],
        )
        .map(drop)
}

pub(super) fn write(transaction: &Transaction<'_>, state: ClockState) -> rusqlite::Result<()> {
    transaction
        .execute(
            "INSERT INTO logweir_clock (one, trusted_us, doubted_us) VALUES (1, ?1, ?2) \
             ON CONFLICT (one) DO UPDATE SET trusted_us = excluded.trusted_us, doubted_us = excluded.doubted_us",
            params![state.trusted_us, state.doubted_us],
        )
        .map(drop)
}

/// The time of the newest record that is not in the future.
pub(super) fn newest(connection: &Connection, wall_us: i64) -> rusqlite::Result<Option<i64>> {
    let sql = "SELECT max(ts) FROM logs WHERE ts <= ?1";
    let ts: Option<String> = connection.query_row(sql, [timestamp::text(wall_us)], |row| row.get(0))?;
    Ok(ts.and_then(|ts| timestamp::parse(&ts)))
}

/// The time of the oldest record that is not older than `from_us`.
pub(super) fn oldest(connection: &Connection, from_us: i64) -> rusqlite::Result<Option<i64>> {
    let sql = "SELECT min(ts) FROM logs WHERE ts >= ?1";
    let ts: Option<String> = connection.query_row(sql, [timestamp::text(from_us)], |row| row.get(0))?;
    Ok(ts.and_then(|ts| timestamp::parse(&ts)))
}
