//! Daily partitions: created ahead of time, dropped when they are past their retention.
//!
//! - A partition is created as a plain table and attached, which does not block flushes; `CREATE … PARTITION OF` would.
//!   Rows of its day that are already in the default partition move in the same transaction.
//! - ATTACH reads the whole default partition once (for rows of the day) and blocks old events meanwhile. The default
//!   partition is small unless old logs are being imported.

use logweir_record::timestamp::{self, DAY_US};
use tokio_postgres::Client;

use super::connect::{failed, failure};
use super::types::Time;
use crate::error::StoreError;

/// Rows per DELETE statement, and number of statements per round.
const DELETE_ROWS: i64 = 10_000;
const DELETE_ROUNDS: u32 = 100;

/// Returns `logs_pYYYYMMDD`.
pub(super) fn partition_name(day: i64) -> String {
    let (year, month, day) = timestamp::date(day);
    format!("logs_p{year:04}{month:02}{day:02}")
}

pub(super) async fn make_partition(client: &Client, day: i64) -> Result<(), StoreError> {
    let name = partition_name(day);
    let exists = client
        .query_one("SELECT to_regclass($1) IS NOT NULL", &[&name])
        .await
        .map_err(failed("checking for a partition"))?
        .get::<_, bool>(0);
    if exists {
        return Ok(());
    }
    let (from, to) = (timestamp::text(day * DAY_US), timestamp::text((day + 1) * DAY_US));
    // The default partition is locked before it is read, so that no row is inserted between the move and the ATTACH.
    let sql = format!(
        "BEGIN;
         CREATE TABLE {name} (LIKE logs INCLUDING DEFAULTS);
         LOCK TABLE logs_default IN ACCESS EXCLUSIVE MODE;
         WITH moved AS (DELETE FROM logs_default WHERE ts >= '{from}' AND ts < '{to}' RETURNING *)
             INSERT INTO {name} SELECT * FROM moved;
         ALTER TABLE logs ATTACH PARTITION {name} FOR VALUES FROM ('{from}') TO ('{to}');
         COMMIT"
    );
    if let Err(error) = client.batch_execute(&sql).await {
        let _ = client.batch_execute("ROLLBACK").await;
        return Err(failure(&format!("creating partition {name}"), &error));
    }
    tracing::info!(name, "created a partition");
    Ok(())
}

/// Drops the partitions of days before `oldest`.
pub(super) async fn drop_partitions(client: &Client, oldest: i64) -> Result<(), StoreError> {
    let rows = client
        .query(
            "SELECT c.relname::text FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid \
             WHERE i.inhparent = 'logs'::regclass AND c.relname ~ '^logs_p[0-9]{8}$' AND c.relname < $1 ORDER BY 1",
            &[&partition_name(oldest)],
        )
        .await
        .map_err(failed("listing expired partitions"))?;
    for row in rows {
        let name: String = row.get(0);
        client
            .batch_execute(&format!("DROP TABLE {name}"))
            .await
            .map_err(|error| failure(&format!("dropping partition {name}"), &error))?;
        metrics::counter!("logweir_store_partitions_dropped_total").increment(1);
        tracing::info!(name, "dropped an expired partition");
    }
    Ok(())
}

/// Deletes rows older than the day `oldest`, a bounded number at a time.
pub(super) async fn delete_before(client: &Client, table: &str, column: &str, oldest: i64) -> Result<(), StoreError> {
    let sql = format!(
        "DELETE FROM {table} WHERE ctid = ANY (ARRAY(SELECT ctid FROM {table} WHERE {column} < $1 LIMIT {DELETE_ROWS}))"
    );
    for _ in 0..DELETE_ROUNDS {
        let deleted = client
            .execute(&sql, &[&Time(oldest * DAY_US)])
            .await
            .map_err(|error| failure(&format!("deleting expired rows from {table}"), &error))?;
        metrics::counter!("logweir_store_retention_deleted_rows_total", "table" => table.to_owned()).increment(deleted);
        if deleted < DELETE_ROWS.unsigned_abs() {
            break;
        }
    }
    Ok(())
}
