//! Deletes late records that have expired.

use logweir_record::timestamp::DAY_US;
use tokio::time::Instant;
use tokio_postgres::Client;

use super::super::ddl::in_transaction;
use super::super::logs::Logs;
use super::super::retention::{DELETE_FOR, DELETE_ROWS, Uncounted, uncount};
use super::super::types::Time;
use crate::error::StoreError;

/// Deletes late records of days before `first_kept`, each together with what it adds to a counter. The oldest first,
/// each statement from where the one before ended: so none reads again what others have deleted, however many days
/// there are.
pub(in super::super) async fn delete_expired(client: &Client, logs: &Logs, first_kept: i64) -> Result<(), StoreError> {
    let Some(late) = &logs.late else { return Ok(()) };
    let until = Instant::now() + DELETE_FOR;
    let what = format!("deleting expired rows from {late}");
    // Whole minutes of UTC, whatever the time zone of the session is.
    let sql = format!(
        "WITH gone AS (DELETE FROM {late} WHERE ctid = ANY (ARRAY(SELECT ctid FROM {late} WHERE ts >= $1 AND ts < $2 \
         ORDER BY ts LIMIT {DELETE_ROWS})) RETURNING ts, left(service, 512) AS service, severity, id) \
         SELECT date_trunc('minute', ts AT TIME ZONE 'UTC') AT TIME ZONE 'UTC', service, severity, \
         (id >> 44)::integer, count(*) FROM gone GROUP BY 1, 2, 3, 4"
    );
    let (mut from_us, end) = (i64::MIN, Time(first_kept * DAY_US));
    while Instant::now() < until {
        let gone = in_transaction(client, &what, async {
            let rows = client.query(&sql, &[&Time(from_us), &end]).await?;
            let gone: Vec<Uncounted> = rows.iter().map(Uncounted::read).collect();
            uncount(client, logs, &gone).await?;
            Ok(gone)
        })
        .await?;
        let deleted: u64 = gone.iter().map(|gone| gone.records.unsigned_abs()).sum();
        metrics::counter!("logweir_store_retention_deleted_rows_total", "table" => "logs").increment(deleted);
        if deleted < DELETE_ROWS {
            break;
        }
        from_us = gone.iter().map(|gone| gone.minute_us).max().unwrap_or(from_us);
    }
    Ok(())
}
