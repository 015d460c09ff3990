//! The trusted time in the database: by it, not by the server's clock alone, records expire. Pod and database often run on
//! one machine, so that both clocks are wrong in the same way.
//!
//! Its table is created by maintenance, not by a migration: storing does not need it.

use logweir_record::timestamp::DAY_US;
use tokio::time::Instant;
use tokio_postgres::Client;

use super::connect::failed;
use super::ddl::{give_to_owner, in_transaction};
use super::logs::Logs;
use super::types::Time;
use crate::error::StoreError;
use crate::protocol::clock::{ClockState, Observed, passed_us};

/// The table's name.
pub(super) const TABLE: &str = "logweir_clock";

/// Creates the table: the trusted time, how long the clock has been doubted, and how long all processes have run.
const CREATE_SQL: &str = "CREATE TABLE IF NOT EXISTS logweir_clock (one integer PRIMARY KEY CHECK (one = 1), \
    trusted_us bigint NOT NULL, doubted_us bigint NOT NULL, running_us bigint NOT NULL)";

/// Creates the table, and trusts the clock of a database without records.
pub(super) fn begin_sql(wall_us: i64) -> String {
    format!("{CREATE_SQL};\nINSERT INTO logweir_clock VALUES (1, {wall_us}, 0, 0) ON CONFLICT (one) DO NOTHING;")
}

/// Greatest difference between the database's clock and this process's at which records are deleted. More than the
/// time that a connection may take, less than anything that matters to a retention in days.
const CLOCKS_APART_MAX_US: i64 = 5 * 60 * 1_000_000;

/// Checks that two clocks agree.
///
/// # Errors
/// By how much they differ, and what to do.
pub(super) fn agree(database_us: i64, process_us: i64) -> Result<(), String> {
    let apart_us = database_us.abs_diff(process_us);
    if apart_us <= CLOCKS_APART_MAX_US.unsigned_abs() {
        return Ok(());
    }
    let (apart_s, which) = (apart_us / 1_000_000, if process_us > database_us { "ahead of" } else { "behind" });
    Err(format!(
        "this process's clock is {apart_s} s {which} the database's, so nothing is deleted: set the clock that is wrong \
         (NTP, chrony); retention then continues by itself"
    ))
}

/// What this process remembers of its last round.
#[derive(Clone, Copy, Debug)]
pub(super) struct LastRound {
    at: Instant,
    counted_us: i64,
}

/// Moves the trusted time, and returns it.
pub(super) async fn tell_time(
    client: &Client,
    logs: &Logs,
    last: &mut Option<LastRound>,
    wall_us: i64,
    retention_days: u32,
) -> Result<ClockState, StoreError> {
    const WHAT: &str = "reading the trusted time";
    let table = logs.beside(TABLE);
    let exists = client.query_one("SELECT to_regclass($1) IS NOT NULL", &[&table.to_string()]).await;
    if !exists.map_err(failed(WHAT))?.get::<_, bool>(0) {
        let create = CREATE_SQL.replace(TABLE, &table.to_string());
        in_transaction(client, "creating table logweir_clock", async {
            client.batch_execute(&create).await?;
            give_to_owner(client, &table, &logs.table).await
        })
        .await?;
    }
    let read = format!("SELECT trusted_us, doubted_us, running_us FROM {table}");
    let row = in_transaction(client, WHAT, client.query_opt(&read, &[])).await?;
    let (before, running_us) = match row {
        Some(row) => (ClockState { trusted_us: row.get(0), doubted_us: row.get(1) }, row.get(2)),
        // The newest record's, as a clock that was wrong before cannot be trusted either.
        None => (ClockState::new(logs.newest_us(client).await?.unwrap_or(wall_us)), 0),
    };
    let now = Instant::now();
    let passed_us = last.map_or(0, |last| {
        let elapsed_us = i64::try_from((now - last.at).as_micros()).unwrap_or(i64::MAX);
        passed_us(running_us, last.counted_us, elapsed_us)
    });
    let retention_us = i64::from(retention_days) * DAY_US;
    let oldest_us = logs.oldest_us(client, before.trusted_us.saturating_sub(retention_us)).await?;
    let harmless_until_us = oldest_us.map_or(i64::MAX, |oldest_us| oldest_us.saturating_add(retention_us));
    let state = before.next(Observed { wall_us, passed_us, harmless_until_us, retention_us });
    let running_us = running_us.saturating_add(passed_us);
    let write = format!(
        "INSERT INTO {table} AS kept (one, trusted_us, doubted_us, running_us) VALUES (1, $1, $2, $3) \
         ON CONFLICT (one) DO UPDATE SET trusted_us = excluded.trusted_us, doubted_us = excluded.doubted_us, \
         running_us = excluded.running_us"
    );
    in_transaction(client, "keeping the trusted time", async {
        client.execute(&write, &[&state.trusted_us, &state.doubted_us, &running_us]).await
    })
    .await?;
    *last = Some(LastRound { at: now, counted_us: running_us });
    Ok(state)
}

impl Logs {
    /// The time of the newest record that is not in the future, by the database's clock.
    pub(super) async fn newest_us(&self, client: &Client) -> Result<Option<i64>, StoreError> {
        let sql = format!("SELECT max(ts) FROM {} WHERE ts <= now()", self.all("ts"));
        let reading = "reading the time of the newest record";
        let row = in_transaction(client, reading, client.query_one(&sql, &[])).await?;
        Ok(row.get::<_, Option<Time>>(0).map(|time| time.0))
    }

    /// The time of the oldest record that is not older than `from_us`.
    pub(super) async fn oldest_us(&self, client: &Client, from_us: i64) -> Result<Option<i64>, StoreError> {
        let sql = format!("SELECT min(ts) FROM {} WHERE ts >= $1", self.all("ts"));
        let reading = "reading the time of the oldest record";
        let row = in_transaction(client, reading, async { client.query_one(&sql, &[&Time(from_us)]).await }).await?;
        Ok(row.get::<_, Option<Time>>(0).map(|time| time.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 20_000 * DAY_US + DAY_US / 2;
    const MINUTE: i64 = 60 * 1_000_000;

    #[test]
    fn clocks_that_differ_by_more_than_minutes_do_not_agree() {
        for process_us in [NOW, NOW - 4 * MINUTE, NOW + 5 * MINUTE] {
            assert_eq!(agree(NOW, process_us), Ok(()));
        }
        for (process_us, expected) in [
            (NOW + 6 * MINUTE, "360 s ahead of the database's"),
            (NOW - 400 * DAY_US, "34560000 s behind the database's"),
            (NOW + 400 * DAY_US, "34560000 s ahead of the database's"),
            (i64::MAX, "ahead of"),
            (i64::MIN, "behind"),
        ] {
            let error = agree(NOW, process_us).unwrap_err();
            assert!(error.contains(expected) && error.contains("nothing is deleted"), "{error}");
        }
    }
}
