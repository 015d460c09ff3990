//! Chunks of a hypertable: dropped when they have expired.
//!
//! Not by TimescaleDB's own job, which the Apache edition lacks, which runs by another clock than the one that is
//! trusted, and which leaves the counters: rows and counters go in one transaction, a chunk at a time.

use logweir_record::timestamp::DAY_US;
use tokio_postgres::Client;

use super::connect::failed;
use super::ddl::{Failures, in_transaction};
use super::logs::Logs;
use super::retention::delete_counters_of;
use super::timescale::Timescale;
use super::types::Time;
use crate::error::StoreError;

/// Drops the chunks whose last day is before `first_kept`.
pub(super) async fn drop_chunks(
    client: &Client,
    timescale: &Timescale,
    logs: &Logs,
    first_kept: i64,
) -> Result<(), StoreError> {
    let drop = format!(
        "SELECT {}($1::text::regclass, older_than => $3::timestamptz, newer_than => $2::timestamptz)",
        timescale.function("drop_chunks")
    );
    let table = logs.table.to_string();
    let mut failures = Failures::default();
    for Chunk { from_us, to_us } in chunks(client, logs).await? {
        if to_us > first_kept * DAY_US {
            continue;
        }
        let what = format!("dropping an expired chunk of {table}");
        let dropped = in_transaction(client, &what, async {
            let counted = delete_counters_of(client, logs, (from_us, to_us)).await?;
            client.query(&drop, &[&table, &Time(from_us), &Time(to_us)]).await?;
            Ok(counted)
        });
        match dropped.await {
            Ok(counted) => {
                counted.count_dropped();
                let from = logweir_record::timestamp::text(from_us);
                tracing::info!(from, rows = counted.records, "dropped an expired chunk");
            }
            Err(error) => failures.add(Err(error)),
        }
    }
    failures.first()
}

/// A chunk's range of times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Chunk {
    pub(super) from_us: i64,
    pub(super) to_us: i64,
}

/// The chunks of the hypertable `logs`, the oldest first.
pub(super) async fn chunks(client: &Client, logs: &Logs) -> Result<Vec<Chunk>, StoreError> {
    const SQL: &str = "SELECT DISTINCT range_start, range_end FROM timescaledb_information.chunks \
        WHERE hypertable_schema = $1 AND hypertable_name = $2 AND range_end IS NOT NULL ORDER BY 1";
    let rows = client
        .query(SQL, &[&logs.table.schema, &logs.table.name])
        .await
        .map_err(failed("listing the chunks of logs"))?;
    Ok(rows.iter().map(|row| Chunk { from_us: row.get::<_, Time>(0).0, to_us: row.get::<_, Time>(1).0 }).collect())
}
