//! Indexes of closed partitions.
//!
//! - The newest partitions have an index on `ts` only: a trigram index would divide the insert rate by thirty. A closed
//!   day gets an index on the service, and one on the message with the extension `pg_trgm`.
//! - They are built CONCURRENTLY, so that late records can be inserted meanwhile. An interrupted build leaves an
//!   invalid index, which is dropped and rebuilt.
//! - A build waits for every transaction that is older than it, and a dump can be hours old. So none is begun beside an
//!   old transaction, and one that has to wait gives up; the next round tries again.
//! - A hypertable has none of these indexes: its old chunks are compressed and segmented by service.

use tokio_postgres::{Client, Error};

use super::connect::{describe, failed};
use super::ddl::{Failures, Relation, ddl_failure, quoted};
use super::home::Home;
use super::logs::{Logs, LogsKind};
use super::partition::partition_name;
use crate::error::StoreError;

/// Days after which a partition counts as closed.
const CLOSED_DAYS: i32 = 2;

/// Limits of a build: for the locks that it waits for, and as a whole.
const BUILD_LIMITS: &str = "SET lock_timeout = '60s'; SET statement_timeout = '6h'";
const NO_LIMITS: &str = "RESET lock_timeout; RESET statement_timeout";

/// An index of closed partitions.
pub(super) struct IndexKind {
    /// The step that builds it.
    pub(super) step: &'static str,
    suffix: &'static str,
    is_text: bool,
}

impl IndexKind {
    /// On the service.
    pub(super) const SERVICE: Self = Self { step: "service_index", suffix: "service_ts_idx", is_text: false };
    /// On the message.
    pub(super) const TEXT: Self = Self { step: "text_index", suffix: "message_trgm_idx", is_text: true };
}

/// Builds the indexes of a kind that closed partitions lack, the oldest first. One that fails does not keep the others
/// from being built.
pub(super) async fn build_missing(client: &Client, home: &Home, kind: &IndexKind) -> Result<(), StoreError> {
    let logs = Logs::read(client, home).await?;
    if logs.kind != LogsKind::Partitioned {
        return Ok(());
    }
    let partitions = without(client, &logs, kind).await?;
    if partitions.is_empty() {
        return Ok(());
    }
    let on = match kind.is_text {
        false => "(service, ts)".to_owned(),
        // The collation of the queries' text comparisons.
        true => {
            let schema = pg_trgm(client, &logs).await?;
            format!("USING gin (message COLLATE \"C\" {}.gin_trgm_ops)", quoted(&schema))
        }
    };
    let mut failures = Failures::default();
    for partition in partitions {
        wait_for_nobody(client, &partition).await?;
        // What a lock or a time limit has ended would wait for the same transaction again.
        failures.keep(build(client, &partition, kind, &on).await)?;
    }
    failures.first()
}

/// The closed partitions without a valid index of this kind.
async fn without(client: &Client, logs: &Logs, kind: &IndexKind) -> Result<Vec<Relation>, StoreError> {
    let today: i32 = client
        .query_one("SELECT (now() AT TIME ZONE 'UTC')::date - DATE '1970-01-01'", &[])
        .await
        .map_err(failed("reading the database's clock"))?
        .get(0);
    let rows = client
        .query(
            "SELECT n.nspname::text, c.relname::text FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid \
             JOIN pg_namespace n ON n.oid = c.relnamespace \
             WHERE i.inhparent = $1 AND c.relkind = 'r' AND c.relname ~ '^logs_p[0-9]{8}$' AND c.relname::text < $2 \
             AND NOT EXISTS (SELECT FROM pg_index x JOIN pg_class k ON k.oid = x.indexrelid \
                 WHERE x.indrelid = c.oid AND x.indisvalid AND k.relname::text = c.relname::text || '_' || $3) \
             ORDER BY 2",
            &[&logs.oid, &partition_name(i64::from(today - CLOSED_DAYS + 1)), &kind.suffix],
        )
        .await
        .map_err(failed("listing partitions without indexes"))?;
    Ok(rows.iter().map(|row| Relation { schema: row.get(0), name: row.get(1) }).collect())
}

/// Returns the schema of the extension, which is created if it is missing.
async fn pg_trgm(client: &Client, logs: &Logs) -> Result<String, StoreError> {
    const FIND: &str = "SELECT n.nspname::text FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace \
        WHERE e.extname = 'pg_trgm'";
    let looking = failed("looking for the extension pg_trgm");
    if let Some(row) = client.query_opt(FIND, &[]).await.map_err(&looking)? {
        return Ok(row.get(0));
    }
    // Rather in `public` than in the schema of one of several logweirs in this database.
    let public: bool = client
        .query_one(
            "SELECT coalesce((SELECT has_schema_privilege(oid, 'CREATE') FROM pg_namespace WHERE nspname = 'public'), false)",
            &[],
        )
        .await
        .map_err(&looking)?
        .get(0);
    let schema = if public { "public".to_owned() } else { logs.table.schema.clone() };
    client
        .batch_execute(&format!("CREATE EXTENSION IF NOT EXISTS pg_trgm SCHEMA {}", quoted(&schema)))
        .await
        .map_err(|error| {
            StoreError::Systemic(format!(
                "the extension pg_trgm cannot be created, so text is searched without an index: {}; let an administrator run \
                 CREATE EXTENSION pg_trgm in this database, or set database.text_index = false",
                describe(&error)
            ))
        })?;
    Ok(schema)
}

/// Fails if a transaction is open that the build would have to wait for.
async fn wait_for_nobody(client: &Client, partition: &Relation) -> Result<(), StoreError> {
    let older = client
        .query_opt(
            "SELECT pid, application_name, extract(epoch FROM clock_timestamp() - xact_start)::bigint \
             FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() \
             AND backend_type = 'client backend' \
             AND backend_xmin IS NOT NULL AND xact_start < clock_timestamp() - interval '1 minute' \
             ORDER BY xact_start LIMIT 1",
            &[],
        )
        .await
        .map_err(failed("looking for old transactions"))?;
    match older {
        None => Ok(()),
        Some(row) => Err(StoreError::Transient(format!(
            "not building an index of {partition} yet: it would wait for the transaction of process {} ({}), which began {} s \
             ago; the index is built when that has ended",
            row.get::<_, i32>(0),
            row.get::<_, &str>(1),
            row.get::<_, i64>(2)
        ))),
    }
}

async fn build(client: &Client, partition: &Relation, kind: &IndexKind, on: &str) -> Result<(), StoreError> {
    let name = format!("{}_{}", partition.name, kind.suffix);
    let index = Relation { schema: partition.schema.clone(), name: name.clone() };
    let what = format!("building the index {index}");
    client.batch_execute(BUILD_LIMITS).await.map_err(|error| ddl_failure(&what, &error))?;
    let built = async {
        let half_built = client
            .query_opt(
                "SELECT FROM pg_index x JOIN pg_class k ON k.oid = x.indexrelid \
                 WHERE x.indrelid = to_regclass($1) AND NOT x.indisvalid AND k.relname::text = $2",
                &[&partition.to_string(), &name],
            )
            .await?;
        if half_built.is_some() {
            client.batch_execute(&format!("DROP INDEX CONCURRENTLY IF EXISTS {index}")).await?;
        }
        let sql = format!("CREATE INDEX CONCURRENTLY {} ON {partition} {on}", quoted(&name));
        client.batch_execute(&sql).await
    };
    let built: Result<(), Error> = built.await;
    // Not left on a connection that a pooler may share.
    let _ = client.batch_execute(NO_LIMITS).await;
    match built {
        Ok(()) => {
            metrics::counter!("logweir_store_indexes_built_total").increment(1);
            tracing::info!(name = %index, "built an index on a closed partition");
            Ok(())
        }
        // Retention has dropped the partition in the meantime.
        Err(error) if error.code() == Some(&tokio_postgres::error::SqlState::UNDEFINED_TABLE) => Ok(()),
        Err(error) => Err(ddl_failure(&what, &error)),
    }
}
