//! Indexes of closed partitions.
//!
//! - The newest partitions have an index on `ts` only: one over trigrams divides the insert rate by thirty. A day that is
//!   over gets one for services, and one for text, where the extension `pg_trgm` can be made.
//! - They are built CONCURRENTLY: late records go in meanwhile. A build that was cut off leaves an invalid index, which is
//!   dropped and built anew.
//! - One partition in a round: the other work of maintenance is done before.
//! - A hypertable has none of this: its old chunks are compressed, in segments by service.

use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::connect::{describe, failure};
use super::schema::partition_name;
use crate::store::StoreError;

/// Days after which a partition counts as closed.
const CLOSED_DAYS: i64 = 2;

/// An index that a closed partition has.
struct Wanted {
    suffix: &'static str,
    on: &'static str,
}

const BY_SERVICE: Wanted = Wanted { suffix: "service_ts_idx", on: "(service, ts)" };
/// Under the collation that queries compare texts with.
const OF_TEXT: Wanted = Wanted { suffix: "message_trgm_idx", on: "USING gin (message COLLATE \"C\" gin_trgm_ops)" };

/// Builds one index that a closed partition lacks.
pub(super) async fn build(client: &Client, today: i64, of_text: bool) -> Result<(), StoreError> {
    match lacking(client, today, &BY_SERVICE).await? {
        Some(partition) => create(client, &partition, &BY_SERVICE).await,
        None if of_text => build_text(client, today).await,
        None => Ok(()),
    }
}

async fn build_text(client: &Client, today: i64) -> Result<(), StoreError> {
    let Some(partition) = lacking(client, today, &OF_TEXT).await? else { return Ok(()) };
    match client.batch_execute("CREATE EXTENSION IF NOT EXISTS pg_trgm").await {
        Ok(()) => create(client, &partition, &OF_TEXT).await,
        Err(error) => {
            let error = describe(&error);
            tracing::debug!(error, "the extension pg_trgm cannot be made: text is searched without an index");
            Ok(())
        }
    }
}

/// The oldest closed partition that does not have this index, or not a valid one.
async fn lacking(client: &Client, today: i64, wanted: &Wanted) -> Result<Option<String>, StoreError> {
    let row = client
        .query_opt(
            "SELECT c.relname::text FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid \
             WHERE i.inhparent = 'logs'::regclass AND c.relname ~ '^logs_p[0-9]{8}$' AND c.relname < $1 \
             AND NOT EXISTS (SELECT FROM pg_index x JOIN pg_class n ON n.oid = x.indexrelid \
                 WHERE x.indrelid = c.oid AND x.indisvalid AND n.relname = c.relname || '_' || $2) \
             ORDER BY 1 LIMIT 1",
            &[&partition_name(today - CLOSED_DAYS + 1), &wanted.suffix],
        )
        .await
        .map_err(|error| failure("looking for partitions without their indexes", &error))?;
    Ok(row.map(|row| row.get(0)))
}

async fn create(client: &Client, partition: &str, wanted: &Wanted) -> Result<(), StoreError> {
    let name = format!("{partition}_{}", wanted.suffix);
    let what = format!("building the index {name}");
    let failed = |error: tokio_postgres::Error| failure(&what, &error);
    // It may take long, and waits for whoever writes into the partition.
    client.batch_execute("SET statement_timeout = 0; SET lock_timeout = 0").await.map_err(failed)?;
    client.batch_execute(&format!("DROP INDEX IF EXISTS {name}")).await.map_err(failed)?;
    match client.batch_execute(&format!("CREATE INDEX CONCURRENTLY {name} ON {partition} {}", wanted.on)).await {
        Ok(()) => {
            metrics::counter!("logweir_store_indexes_built_total").increment(1);
            tracing::info!(name, "built an index of a closed partition");
            Ok(())
        }
        // Retention was quicker.
        Err(error) if error.code() == Some(&SqlState::UNDEFINED_TABLE) => Ok(()),
        Err(error) => Err(failed(error)),
    }
}
