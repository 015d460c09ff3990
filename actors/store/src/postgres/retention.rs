//! Deletes rows that have expired, and the counters of records that have: used for whatever form `logs` has.

use std::time::Duration;

use logweir_record::timestamp::DAY_US;
use tokio::time::Instant;
use tokio_postgres::{Client, Error, Row};

use super::ddl::{Relation, in_transaction};
use super::logs::Logs;
use super::types::Time;
use crate::error::StoreError;
use crate::protocol::volume_counter::Key;

/// Rows per DELETE statement, and time for the statements of one step.
pub(super) const DELETE_ROWS: u64 = 10_000;
pub(super) const DELETE_FOR: Duration = Duration::from_secs(240);

/// Counters that were deleted with their records.
pub(super) struct DeletedCounters {
    pub(super) records: u64,
    counters: u64,
}

impl DeletedCounters {
    /// Counts them for the metrics, as of a partition or a chunk.
    pub(super) fn count_dropped(&self) {
        metrics::counter!("logweir_store_partitions_dropped_total").increment(1);
        let deleted = |table| metrics::counter!("logweir_store_retention_deleted_rows_total", "table" => table);
        deleted("logs").increment(self.records);
        deleted("log_volume").increment(self.counters);
    }
}

/// Deletes the counters of a range of which all records are deleted in the same transaction: the histogram shows
/// nothing that is gone. A record of the range that is stored at that moment can lose its counter, until it expires in
/// the next round.
pub(super) async fn delete_counters_of(
    client: &Client,
    logs: &Logs,
    (from_us, to_us): (i64, i64),
) -> Result<DeletedCounters, Error> {
    // The number of records, too: counting the rows would read them all.
    let sql = format!(
        "WITH gone AS (DELETE FROM {} WHERE minute >= $1 AND minute < $2 RETURNING records) \
         SELECT coalesce(sum(records), 0)::bigint, count(*) FROM gone",
        logs.beside("log_volume")
    );
    let row = client.query_one(&sql, &[&Time(from_us), &Time(to_us)]).await?;
    let number = |column| row.get::<_, i64>(column).unsigned_abs();
    Ok(DeletedCounters { records: number(0), counters: number(1) })
}

/// What records of one minute, service, severity and lane add to a counter.
pub(super) struct Uncounted {
    pub(super) minute_us: i64,
    service: String,
    severity: i16,
    lane_id: i32,
    pub(super) records: i64,
}

impl Uncounted {
    /// Of one record.
    pub(super) fn of(ts_us: i64, service: &str, severity: i16, lane_id: i32) -> Self {
        let Key { minute_us, service, .. } = Key::new(ts_us, service, 0);
        Self { minute_us, service: service.to_owned(), severity, lane_id, records: 1 }
    }

    /// Of a row with a time, service, severity, `lane_id` and the number of records.
    pub(super) fn read(row: &Row) -> Self {
        let one = Self::of(row.get::<_, Time>(0).0, row.get(1), row.get(2), row.get(3));
        Self { records: row.get(4), ..one }
    }
}

/// Takes records that are deleted in the same transaction out of the counters.
pub(super) async fn uncount(client: &Client, logs: &Logs, gone: &[Uncounted]) -> Result<(), Error> {
    if gone.is_empty() {
        return Ok(());
    }
    let minutes: Vec<Time> = gone.iter().map(|gone| Time(gone.minute_us)).collect();
    let services: Vec<&str> = gone.iter().map(|gone| gone.service.as_str()).collect();
    let severities: Vec<i16> = gone.iter().map(|gone| gone.severity).collect();
    let lanes: Vec<i32> = gone.iter().map(|gone| gone.lane_id).collect();
    let records: Vec<i64> = gone.iter().map(|gone| gone.records).collect();
    let counters = logs.beside("log_volume");
    let keys = "(v.minute, v.service, v.severity, v.lane_id) = (t.minute, t.service, t.severity, t.lane_id)";
    // A counter is updated once by a statement, however many rows say so.
    let update = format!(
        "UPDATE {counters} v SET records = v.records - t.records FROM (SELECT minute, service, severity, lane_id, \
         sum(records)::bigint AS records FROM unnest($1::timestamptz[], $2::text[], $3::smallint[], $4::integer[], \
         $5::bigint[]) AS u (minute, service, severity, lane_id, records) GROUP BY 1, 2, 3, 4) t WHERE {keys}"
    );
    let delete = format!(
        "DELETE FROM {counters} v USING unnest($1::timestamptz[], $2::text[], $3::smallint[], $4::integer[]) \
         AS t (minute, service, severity, lane_id) WHERE {keys} AND v.records <= 0"
    );
    client.execute(&update, &[&minutes, &services, &severities, &lanes, &records]).await?;
    client.execute(&delete, &[&minutes, &services, &severities, &lanes]).await.map(drop)
}

/// Deletes rows of `table` (`logs` or its default partition) of days before `first_kept`.
pub(super) async fn delete_rows(
    client: &Client,
    logs: &Logs,
    table: &Relation,
    first_kept: i64,
) -> Result<(), StoreError> {
    let until = Instant::now() + DELETE_FOR;
    delete_range(client, logs.has_citus, (table, "ts", "logs"), (i64::MIN, first_kept * DAY_US), until).await
}

/// Deletes the counters of days before `first_kept` of which no record is left: a partition can have stayed, because it
/// is an operator's, or could not be dropped.
pub(super) async fn delete_counters(client: &Client, logs: &Logs, first_kept: i64) -> Result<(), StoreError> {
    const WHAT: &str = "looking for counters of expired records";
    let until = Instant::now() + DELETE_FOR;
    let counters = logs.beside("log_volume");
    let next = format!("SELECT min(minute) FROM {counters} WHERE minute >= $1 AND minute < $2");
    let found = format!("SELECT EXISTS (SELECT 1 FROM {} WHERE ts >= $1 AND ts < $2)", logs.all("ts"));
    let end_us = first_kept * DAY_US;
    let mut from_us = i64::MIN;
    while Instant::now() < until {
        let (from, end) = (Time(from_us), Time(end_us));
        let next = in_transaction(client, WHAT, async { client.query_one(&next, &[&from, &end]).await }).await?;
        let Some(day) = next.get::<_, Option<Time>>(0).map(|minute| minute.0.div_euclid(DAY_US)) else { break };
        let day_us = (day * DAY_US, (day + 1) * DAY_US);
        let (from, to) = (Time(day_us.0), Time(day_us.1));
        let has_records = in_transaction(client, WHAT, async { client.query_one(&found, &[&from, &to]).await }).await?;
        if !has_records.get::<_, bool>(0) {
            delete_range(client, logs.has_citus, (&counters, "minute", "log_volume"), day_us, until).await?;
        }
        from_us = day_us.1;
    }
    Ok(())
}

/// Deletes the rows of a table whose `column` is in a range, a bounded number at a time, and counts them for `label`.
/// What is left at `until` is left to the next round.
///
/// A piece is a list of rows by their place (`ctid`). Of a table that is distributed by Citus, which has no such places, it
/// is what was logged up to a time: as many rows of one moment as there are go at once.
async fn delete_range(
    client: &Client,
    by_time: bool,
    (table, column, label): (&Relation, &str, &'static str),
    (from_us, to_us): (i64, i64),
    until: Instant,
) -> Result<(), StoreError> {
    let what = format!("deleting expired rows from {table}");
    let (from, to) = (Time(from_us), Time(to_us));
    let expired = format!("FROM {table} WHERE {column} >= $1 AND {column} < $2");
    let by_place = format!("DELETE FROM {table} WHERE ctid = ANY (ARRAY(SELECT ctid {expired} LIMIT {DELETE_ROWS}))");
    let found = format!("SELECT EXISTS (SELECT 1 {expired})");
    let up_to = format!("DELETE FROM {table} WHERE {column} >= $1 AND {column} <= $2");
    let last = format!("SELECT max({column}) FROM (SELECT {column} {expired} ORDER BY 1 LIMIT {DELETE_ROWS}) piece");
    loop {
        let deleted = in_transaction(client, &what, async {
            if by_time {
                return match client.query_one(&last, &[&from, &to]).await?.get::<_, Option<Time>>(0) {
                    Some(last) => client.execute(&up_to, &[&from, &last]).await,
                    None => Ok(0),
                };
            }
            // A DELETE that finds nothing still needs a replica identity if the table is published.
            match client.query_one(&found, &[&from, &to]).await?.get(0) {
                true => client.execute(&by_place, &[&from, &to]).await,
                false => Ok(0),
            }
        })
        .await?;
        metrics::counter!("logweir_store_retention_deleted_rows_total", "table" => label).increment(deleted);
        if deleted < DELETE_ROWS || Instant::now() >= until {
            return Ok(());
        }
    }
}
