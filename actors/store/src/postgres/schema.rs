//! The schema: migrations, TimescaleDB or partitions, retention.
//!
//! - Migrations run under an advisory lock. Maintenance runs under another one that is only tried, so that one pod does
//!   it.
//! - Locks that block flushes are waited for half a second at most; the next round retries soon.

use std::collections::HashMap;

use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Error};

use super::connect::{Connection, describe, failed};
use super::index;
use super::partition::{delete_before, drop_partitions, make_partition};
use crate::error::StoreError;
use crate::protocol::migrations::{APPLIED_SQL, Applied, CREATE_HISTORY_SQL, HISTORY, Migration, pending};
use logweir_engine::clock::wall_us;
use logweir_record::timestamp::DAY_US;

const MIGRATIONS: &[Migration] = &[Migration {
    version: 1,
    name: "log_store",
    sql: include_str!("../sql/postgres/V1__log_store.sql"),
    checksum: 10_386_330_646_520_606_781,
}];

/// Keys of the advisory locks: `logweir` in ASCII, and the next number.
const PREPARE_LOCK: i64 = 0x6c6f_6777_6569_7200;
const MAINTAIN_LOCK: i64 = PREPARE_LOCK + 1;
/// Days relative to today that have a partition.
const DAYS_AHEAD: std::ops::RangeInclusive<i64> = -1..=3;

/// The columns that a flush writes, with their types. A binary COPY into another type of the same width would succeed
/// silently: an id as a double, the version byte of a jsonb as the first character of a text.
const COLUMNS: [(&str, &str); 7] = [
    ("id", "bigint"),
    ("ts", "timestamp with time zone"),
    ("severity", "smallint"),
    ("service", "text"),
    ("host", "text"),
    ("message", "text"),
    ("attributes", "jsonb"),
];

/// Retention, compression and index settings.
#[derive(Clone, Copy, Debug)]
pub(super) struct RetentionSettings {
    /// Days until records are deleted; 0 keeps them forever.
    pub(super) retention_days: u32,
    /// Days until chunks are compressed; 0 disables compression. `TimescaleDB` only.
    pub(super) compress_after_days: u32,
    /// Whether closed partitions get a text index.
    pub(super) text_index: bool,
}

/// Brings the schema up to date. Returns whether `logs` is a hypertable. Consumes the connection, which releases the
/// lock.
pub(super) async fn prepare(mut connection: Connection) -> Result<bool, StoreError> {
    connection
        .client
        .batch_execute("SET lock_timeout = '60s'; SET statement_timeout = 0")
        .await
        .map_err(failed("preparing the schema"))?;
    connection
        .client
        .execute("SELECT pg_advisory_lock($1)", &[&PREPARE_LOCK])
        .await
        .map_err(failed("waiting for another process to prepare the schema"))?;
    create_timescale(&connection.client).await?;
    migrate(&mut connection.client).await?;
    is_hypertable(&connection.client).await
}

/// Applies the migrations that the database lacks, each in a transaction that also records it.
async fn migrate(client: &mut Client) -> Result<(), StoreError> {
    let failed = failed("migrating the schema");
    // Not `IF NOT EXISTS` alone: that requires the privilege to create tables although nothing is to be created, and
    // looks only at the first schema of search_path.
    let exists = client.query_one("SELECT to_regclass($1) IS NOT NULL", &[&HISTORY]).await.map_err(&failed)?;
    if !exists.get::<_, bool>(0) {
        client.batch_execute(CREATE_HISTORY_SQL).await.map_err(&failed)?;
    }
    let rows = client.query(APPLIED_SQL, &[]).await.map_err(&failed)?;
    let applied: Vec<Applied> =
        rows.iter().map(|row| Applied { version: row.get(0), name: row.get(1), checksum: row.get(2) }).collect();
    for migration in pending(MIGRATIONS, &applied)? {
        let transaction = client.transaction().await.map_err(&failed)?;
        transaction.batch_execute(migration.sql).await.map_err(&failed)?;
        transaction.batch_execute(&migration.record_sql(wall_us())).await.map_err(&failed)?;
        transaction.commit().await.map_err(&failed)?;
    }
    Ok(())
}

/// Creates the extension if it is installed. Without the privilege, partitions are used.
async fn create_timescale(client: &Client) -> Result<(), StoreError> {
    let missing = client
        .query_opt(
            "SELECT FROM pg_available_extensions WHERE name = 'timescaledb' AND installed_version IS NULL \
             AND to_regclass('logs') IS NULL",
            &[],
        )
        .await
        .map_err(failed("checking for TimescaleDB"))?
        .is_some();
    if missing && let Err(error) = client.batch_execute("CREATE EXTENSION IF NOT EXISTS timescaledb").await {
        tracing::warn!(
            error = describe(&error),
            "TimescaleDB is installed, but its extension cannot be created; using daily partitions"
        );
    }
    Ok(())
}

async fn is_hypertable(client: &Client) -> Result<bool, StoreError> {
    // relkind p: partitioned by logweir.
    let row = client
        .query_one("SELECT relkind <> 'p' FROM pg_class WHERE oid = 'logs'::regclass", &[])
        .await
        .map_err(failed("reading the columns of table logs"))?;
    Ok(row.get(0))
}

/// Checks that `logs` has the columns that a flush writes.
pub(super) async fn check_columns(client: &Client) -> Result<(), StoreError> {
    let rows = client
        .query(
            "SELECT attname::text, format_type(atttypid, NULL) FROM pg_attribute \
             WHERE attrelid = to_regclass('logs') AND attnum > 0 AND NOT attisdropped",
            &[],
        )
        .await
        .map_err(failed("reading the columns of table logs"))?;
    let found: HashMap<String, String> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    if found.is_empty() {
        return Err(StoreError::Systemic("table logs not found in search_path".to_owned()));
    }
    let wrong = |&(name, expected): &(&str, &str)| match found.get(name) {
        Some(kind) if kind == expected => None,
        Some(kind) => Some(format!("{name} is {kind}, expected {expected}")),
        None => Some(format!("{name} ({expected}) is missing")),
    };
    let wrong: Vec<String> = COLUMNS.iter().filter_map(wrong).collect();
    match wrong.is_empty() {
        true => Ok(()),
        false => Err(StoreError::Systemic(format!("table logs was changed: {}", wrong.join(", ")))),
    }
}

/// Creates partitions and applies retention, unless another process is doing so. Consumes the connection.
pub(super) async fn maintain(
    connection: Connection,
    retention: RetentionSettings,
    now_us: i64,
) -> Result<(), StoreError> {
    let client = &connection.client;
    client
        .batch_execute("SET lock_timeout = '500ms'; SET statement_timeout = '60s'")
        .await
        .map_err(failed("maintaining the tables"))?;
    let ours: bool = client
        .query_one("SELECT pg_try_advisory_lock($1)", &[&MAINTAIN_LOCK])
        .await
        .map_err(failed("acquiring the maintenance lock"))?
        .get(0);
    if !ours {
        return Ok(());
    }
    let done = round(client, retention, now_us).await;
    // The end of the session releases it too, but perhaps after the next round requests it.
    let _ = client.execute("SELECT pg_advisory_unlock($1)", &[&MAINTAIN_LOCK]).await;
    done
}

async fn round(client: &Client, retention: RetentionSettings, now_us: i64) -> Result<(), StoreError> {
    let today = now_us.div_euclid(DAY_US);
    let hypertable = is_hypertable(client).await?;
    if hypertable {
        set_policies(client, retention).await?;
    } else {
        for day in DAYS_AHEAD {
            make_partition(client, today + day).await?;
        }
    }
    if retention.retention_days > 0 {
        let oldest = today - i64::from(retention.retention_days);
        if !hypertable {
            drop_partitions(client, oldest).await?;
            delete_before(client, "logs_default", "ts", oldest).await?;
        }
        delete_before(client, "log_volume", "minute", oldest).await?;
    }
    // Last, since it can take long.
    if hypertable { Ok(()) } else { index::build(client, today, retention.text_index).await }
}

/// Configures TimescaleDB's own retention and compression jobs. The Apache-licensed build has neither, which is logged
/// and not an error.
async fn set_policies(client: &Client, retention: RetentionSettings) -> Result<(), StoreError> {
    match try_policies(client, retention).await {
        Err(error) if error.code() == Some(&SqlState::FEATURE_NOT_SUPPORTED) => {
            tracing::warn!(
                error = describe(&error),
                "this TimescaleDB build does not support retention and compression policies; records are kept forever"
            );
            Ok(())
        }
        done => done.map_err(failed("setting the retention and compression policies")),
    }
}

async fn try_policies(client: &Client, retention: RetentionSettings) -> Result<(), Error> {
    policy(client, "retention", "drop_after", retention.retention_days).await?;
    if retention.compress_after_days > 0 {
        let sql = "SELECT compression_enabled FROM timescaledb_information.hypertables WHERE hypertable_name = 'logs'";
        let compressed: bool = client.query_one(sql, &[]).await?.get(0);
        if !compressed {
            client
                .batch_execute(
                    "ALTER TABLE logs SET (timescaledb.compress, timescaledb.compress_segmentby = 'service', \
                     timescaledb.compress_orderby = 'ts')",
                )
                .await?;
        }
    }
    policy(client, "compression", "compress_after", retention.compress_after_days).await
}

/// Sets one policy of `logs` to `days`; 0 removes it.
async fn policy(client: &Client, kind: &str, argument: &str, days: u32) -> Result<(), Error> {
    let days = i32::try_from(days).unwrap_or(i32::MAX);
    let sql = format!(
        "SELECT (config->>'{argument}')::interval = make_interval(days => $1) FROM timescaledb_information.jobs \
         WHERE hypertable_name = 'logs' AND proc_name = 'policy_{kind}'"
    );
    let current = client.query_opt(&sql, &[&days]).await?.map(|row| row.get::<_, Option<bool>>(0) == Some(true));
    if (days == 0 && current.is_none()) || (days > 0 && current == Some(true)) {
        return Ok(());
    }
    client.execute(&format!("SELECT remove_{kind}_policy('logs', if_exists => true)"), &[]).await?;
    if days > 0 {
        let sql = format!("SELECT add_{kind}_policy('logs', {argument} => make_interval(days => $1))");
        client.execute(&sql, &[&days]).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::migrations::checksum;

    #[test]
    fn no_migration_was_edited() {
        for migration in MIGRATIONS {
            let name = migration.name;
            assert_eq!(migration.checksum, checksum(migration), "{name} was edited: add a migration instead");
        }
    }
}
