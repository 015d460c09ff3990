//! The schema: migrations, TimescaleDB or partitions, retention.
//!
//! - Migrations run under an advisory lock, maintenance under another that is only tried: one pod does it.
//! - A partition is made as a plain table and attached, which does not block the flushes; `CREATE … PARTITION OF` would.
//!   Rows of its day that already lie in the default partition move in the same transaction.
//! - ATTACH reads the whole default partition once (for rows of the day), and keeps old events out meanwhile. It is small
//!   unless old logs are being imported.
//! - Locks that stand in the way of flushes are waited for half a second at most: the next round comes soon.

use std::collections::HashMap;

use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Error};

use super::connect::{Link, describe, failure};
use super::index;
use super::types::Time;
use crate::store::time::{self, DAY_US};
use crate::store::{StoreError, migration_failure};

mod embedded {
    refinery::embed_migrations!("src/store/sql/postgres");
}

const HISTORY_TABLE: &str = "logweir_schema_history";
/// Any two numbers that nobody else uses: `logweir` in ASCII, and one more.
const PREPARE_LOCK: i64 = 0x6c6f_6777_6569_7200;
const MAINTAIN_LOCK: i64 = PREPARE_LOCK + 1;
/// Partitions are made for these days, counted from today.
const DAYS_AHEAD: std::ops::RangeInclusive<i64> = -1..=3;
/// Rows that one DELETE takes, and how often it is repeated in one round.
const DELETE_ROWS: i64 = 10_000;
const DELETE_ROUNDS: u32 = 100;

/// The columns that a flush writes, with their types. A binary COPY into another type of the same width
/// would be taken without a word: an id as a double, the version byte of a jsonb as the first character of a text.
const COLUMNS: [(&str, &str); 7] = [
    ("id", "bigint"),
    ("ts", "timestamp with time zone"),
    ("severity", "smallint"),
    ("service", "text"),
    ("host", "text"),
    ("message", "text"),
    ("attributes", "jsonb"),
];

/// What the user set.
#[derive(Clone, Copy, Debug)]
pub(super) struct Keep {
    /// 0: for ever.
    pub(super) retention_days: u32,
    /// 0: never. `TimescaleDB` only.
    pub(super) compress_after_days: u32,
    /// Whether closed partitions get an index for text.
    pub(super) text_index: bool,
}

fn failed(what: &'static str) -> impl Fn(Error) -> StoreError {
    move |error| failure(what, &error)
}

/// Brings the schema up to date; returns whether `logs` is a hypertable. Uses up the connection: with it the lock goes.
pub(super) async fn prepare(mut link: Link) -> Result<bool, StoreError> {
    link.client
        .batch_execute("SET lock_timeout = '60s'; SET statement_timeout = 0")
        .await
        .map_err(failed("preparing the schema"))?;
    link.client
        .execute("SELECT pg_advisory_lock($1)", &[&PREPARE_LOCK])
        .await
        .map_err(failed("waiting for another process that prepares the schema"))?;
    create_timescale(&link.client).await?;
    let mut runner = embedded::migrations::runner();
    runner.set_migration_table_name(HISTORY_TABLE);
    runner.run_async(&mut link.client).await.map_err(|error| migration_failure(&error, failure))?;
    is_hypertable(&link.client).await
}

/// Makes the extension where it is installed; without the right to, partitions are used.
async fn create_timescale(client: &Client) -> Result<(), StoreError> {
    let missing = client
        .query_opt(
            "SELECT FROM pg_available_extensions WHERE name = 'timescaledb' AND installed_version IS NULL \
             AND to_regclass('logs') IS NULL",
            &[],
        )
        .await
        .map_err(failed("looking for TimescaleDB"))?
        .is_some();
    if missing && let Err(error) = client.batch_execute("CREATE EXTENSION IF NOT EXISTS timescaledb").await {
        tracing::warn!(
            error = describe(&error),
            "TimescaleDB is there but cannot be switched on; daily partitions are used"
        );
    }
    Ok(())
}

async fn is_hypertable(client: &Client) -> Result<bool, StoreError> {
    // relkind p: partitioned by us.
    let row = client
        .query_one("SELECT relkind <> 'p' FROM pg_class WHERE oid = 'logs'::regclass", &[])
        .await
        .map_err(failed("looking at the table logs"))?;
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
        .map_err(failed("looking at the table logs"))?;
    let found: HashMap<String, String> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    if found.is_empty() {
        return Err(StoreError::Systemic("there is no table logs in the schema that search_path leads to".to_owned()));
    }
    let wrong = |&(name, right): &(&str, &str)| match found.get(name) {
        Some(kind) if kind == right => None,
        Some(kind) => Some(format!("{name} is {kind} and must be {right}")),
        None => Some(format!("{name} ({right}) is missing")),
    };
    let wrong: Vec<String> = COLUMNS.iter().filter_map(wrong).collect();
    match wrong.is_empty() {
        true => Ok(()),
        false => Err(StoreError::Systemic(format!("the table logs was changed: {}", wrong.join(", ")))),
    }
}

/// Partitions ahead and retention, unless another process is at it. Uses up the connection.
pub(super) async fn maintain(link: Link, keep: Keep, now_us: i64) -> Result<(), StoreError> {
    let client = &link.client;
    client
        .batch_execute("SET lock_timeout = '500ms'; SET statement_timeout = '60s'")
        .await
        .map_err(failed("maintaining the tables"))?;
    let ours: bool = client
        .query_one("SELECT pg_try_advisory_lock($1)", &[&MAINTAIN_LOCK])
        .await
        .map_err(failed("taking the lock for maintenance"))?
        .get(0);
    if !ours {
        return Ok(());
    }
    let done = round(client, keep, now_us).await;
    // The session's end gives it back too, but later than the next round may ask for it.
    let _ = client.execute("SELECT pg_advisory_unlock($1)", &[&MAINTAIN_LOCK]).await;
    done
}

async fn round(client: &Client, keep: Keep, now_us: i64) -> Result<(), StoreError> {
    let today = now_us.div_euclid(DAY_US);
    let hypertable = is_hypertable(client).await?;
    if hypertable {
        set_policies(client, keep).await?;
    } else {
        for day in DAYS_AHEAD {
            make_partition(client, today + day).await?;
        }
    }
    if keep.retention_days > 0 {
        let oldest = today - i64::from(keep.retention_days);
        if !hypertable {
            drop_partitions(client, oldest).await?;
            delete_before(client, "logs_default", "ts", oldest).await?;
        }
        delete_before(client, "log_volume", "minute", oldest).await?;
    }
    // Last, since it may take long.
    if hypertable { Ok(()) } else { index::build(client, today, keep.text_index).await }
}

/// `logs_pYYYYMMDD`.
pub(super) fn partition_name(day: i64) -> String {
    let (year, month, day) = time::civil(day);
    format!("logs_p{year:04}{month:02}{day:02}")
}

async fn make_partition(client: &Client, day: i64) -> Result<(), StoreError> {
    let name = partition_name(day);
    let exists = client
        .query_one("SELECT to_regclass($1) IS NOT NULL", &[&name])
        .await
        .map_err(failed("looking for a partition"))?
        .get::<_, bool>(0);
    if exists {
        return Ok(());
    }
    let (from, to) = (time::text(day * DAY_US), time::text((day + 1) * DAY_US));
    // The default partition is locked before it is read, so that nothing comes in between the move and the ATTACH.
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
        return Err(failure(&format!("making the partition {name}"), &error));
    }
    tracing::info!(name, "made a partition");
    Ok(())
}

/// Drops the partitions of the days before `oldest`.
async fn drop_partitions(client: &Client, oldest: i64) -> Result<(), StoreError> {
    let rows = client
        .query(
            "SELECT c.relname::text FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid \
             WHERE i.inhparent = 'logs'::regclass AND c.relname ~ '^logs_p[0-9]{8}$' AND c.relname < $1 ORDER BY 1",
            &[&partition_name(oldest)],
        )
        .await
        .map_err(failed("looking for old partitions"))?;
    for row in rows {
        let name: String = row.get(0);
        client
            .batch_execute(&format!("DROP TABLE {name}"))
            .await
            .map_err(|error| failure(&format!("dropping the partition {name}"), &error))?;
        metrics::counter!("logweir_store_partitions_dropped_total").increment(1);
        tracing::info!(name, "dropped a partition that is past its retention");
    }
    Ok(())
}

/// Deletes what is older than the day `oldest`, a bounded number of rows at a time.
async fn delete_before(client: &Client, table: &str, column: &str, oldest: i64) -> Result<(), StoreError> {
    let sql = format!(
        "DELETE FROM {table} WHERE ctid = ANY (ARRAY(SELECT ctid FROM {table} WHERE {column} < $1 LIMIT {DELETE_ROWS}))"
    );
    for _ in 0..DELETE_ROUNDS {
        let deleted = client
            .execute(&sql, &[&Time(oldest * DAY_US)])
            .await
            .map_err(|error| failure(&format!("deleting old rows from {table}"), &error))?;
        metrics::counter!("logweir_store_retention_deleted_total", "table" => table.to_owned()).increment(deleted);
        if deleted < DELETE_ROWS.unsigned_abs() {
            break;
        }
    }
    Ok(())
}

/// TimescaleDB's own jobs do retention and compression; here they are told how. The Apache-licensed build has
/// neither: that is said, and is no reason to store nothing.
async fn set_policies(client: &Client, keep: Keep) -> Result<(), StoreError> {
    match try_policies(client, keep).await {
        Err(error) if error.code() == Some(&SqlState::FEATURE_NOT_SUPPORTED) => {
            tracing::warn!(error = describe(&error), "this TimescaleDB has no retention or compression policies");
            Ok(())
        }
        done => done.map_err(failed("setting the retention and compression policies")),
    }
}

async fn try_policies(client: &Client, keep: Keep) -> Result<(), Error> {
    policy(client, "retention", "drop_after", keep.retention_days).await?;
    if keep.compress_after_days > 0 {
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
    policy(client, "compression", "compress_after", keep.compress_after_days).await
}

/// Brings one policy of `logs` to `days`; 0 removes it.
async fn policy(client: &Client, kind: &str, argument: &str, days: u32) -> Result<(), Error> {
    let days = i32::try_from(days).unwrap_or(i32::MAX);
    let sql = format!(
        "SELECT (config->>'{argument}')::interval = make_interval(days => $1) FROM timescaledb_information.jobs \
         WHERE hypertable_name = 'logs' AND proc_name = 'policy_{kind}'"
    );
    let right = client.query_opt(&sql, &[&days]).await?.map(|row| row.get::<_, Option<bool>>(0) == Some(true));
    if (days == 0 && right.is_none()) || (days > 0 && right == Some(true)) {
        return Ok(());
    }
    client.execute(&format!("SELECT remove_{kind}_policy('logs', if_exists => true)"), &[]).await?;
    if days > 0 {
        let sql = format!("SELECT add_{kind}_policy('logs', {argument} => make_interval(days => $1))");
        client.execute(&sql, &[&days]).await?;
    }
    Ok(())
}
