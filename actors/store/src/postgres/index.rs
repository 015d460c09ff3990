//! Indexes of closed partitions.
//!
//! - The newest partitions have an index on `ts` only: a trigram index would divide the insert rate by thirty. A closed
//!   day gets an index on the service, and one on the message if the extension `pg_trgm` is available.
//! - They are built CONCURRENTLY, so that late records can be inserted meanwhile. An interrupted build leaves an
//!   invalid index, which is dropped and rebuilt.
//! - One partition per round, after all other maintenance.
//! - A hypertable has none of these indexes: its old chunks are compressed and segmented by service.

use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::connect::{describe, failure};
use super::partition::partition_name;
use crate::error::StoreError;

/// Days after which a partition counts as closed.
const CLOSED_DAYS: i64 = 2;

/// An index of closed partitions.
struct IndexKind {
    suffix: &'static str,
    on: &'static str,
}

const ON_SERVICE: IndexKind = IndexKind { suffix: "service_ts_idx", on: "(service, ts)" };
/// Uses the collation of the queries' text comparisons.
const ON_MESSAGE: IndexKind =
    IndexKind { suffix: "message_trgm_idx", on: "USING gin (message COLLATE \"C\" gin_trgm_ops)" };

/// Builds one missing index of a closed partition.
pub(super) async fn build(client: &Client, today: i64, text_index: bool) -> Result<(), StoreError> {
    match partition_without(client, today, &ON_SERVICE).await? {
        Some(partition) => create(client, &partition, &ON_SERVICE).await,
        None if text_index => build_text(client, today).await,
        None => Ok(()),
    }
}

async fn build_text(client: &Client, today: i64) -> Result<(), StoreError> {
    let Some(partition) = partition_without(client, today, &ON_MESSAGE).await? else { return Ok(()) };
    match client.batch_execute("CREATE EXTENSION IF NOT EXISTS pg_trgm").await {
        Ok(()) => create(client, &partition, &ON_MESSAGE).await,
        Err(error) => {
            let error = describe(&error);
            tracing::debug!(error, "the extension pg_trgm cannot be created; searching text without an index");
            Ok(())
        }
    }
}

/// Returns the oldest closed partition without a valid index of this kind.
async fn partition_without(client: &Client, today: i64, kind: &IndexKind) -> Result<Option<String>, StoreError> {
    let row = client
        .query_opt(
            "SELECT c.relname::text FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid \
             WHERE i.inhparent = 'logs'::regclass AND c.relname ~ '^logs_p[0-9]{8}$' AND c.relname < $1 \
             AND NOT EXISTS (SELECT FROM pg_index x JOIN pg_class n ON n.oid = x.indexrelid \
                 WHERE x.indrelid = c.oid AND x.indisvalid AND n.relname = c.relname || '_' || $2) \
             ORDER BY 1 LIMIT 1",
            &[&partition_name(today - CLOSED_DAYS + 1), &kind.suffix],
        )
        .await
        .map_err(|error| failure("listing partitions without indexes", &error))?;
    Ok(row.map(|row| row.get(0)))
}

async fn create(client: &Client, partition: &str, kind: &IndexKind) -> Result<(), StoreError> {
    let name = format!("{partition}_{}", kind.suffix);
    let what = format!("building the index {name}");
    let failed = |error: tokio_postgres::Error| failure(&what, &error);
    // It can take long, and waits for transactions that write to the partition.
    client.batch_execute("SET statement_timeout = 0; SET lock_timeout = 0").await.map_err(failed)?;
    client.batch_execute(&format!("DROP INDEX IF EXISTS {name}")).await.map_err(failed)?;
    match client.batch_execute(&format!("CREATE INDEX CONCURRENTLY {name} ON {partition} {}", kind.on)).await {
        Ok(()) => {
            metrics::counter!("logweir_store_indexes_built_total").increment(1);
            tracing::info!(name, "built an index on a closed partition");
            Ok(())
        }
        // Retention has dropped the partition in the meantime.
        Err(error) if error.code() == Some(&SqlState::UNDEFINED_TABLE) => Ok(()),
        Err(error) => Err(failed(error)),
    }
}
