//! TimescaleDB's own jobs for retention and compression. They run by the database's clock.

use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Error};

use super::connect::describe;
use super::ddl::ddl_failure;
use super::partition::Logs;
use crate::error::StoreError;

/// Sets the jobs of the hypertable `logs`; 0 removes one.
pub(super) async fn set_policies(
    client: &Client,
    logs: &Logs,
    retention_days: u32,
    compress_after_days: u32,
) -> Result<(), StoreError> {
    match try_policies(client, logs, retention_days, compress_after_days).await {
        // The Apache-licensed build has neither. That matters only if something was to be deleted.
        Err(error) if error.code() == Some(&SqlState::FEATURE_NOT_SUPPORTED) && retention_days > 0 => {
            Err(StoreError::Systemic(format!(
                "this build of TimescaleDB has no policies, so records are kept forever: {}; install the community edition, \
                 or set database.retention_days to 0",
                describe(&error)
            )))
        }
        Err(error) if error.code() == Some(&SqlState::FEATURE_NOT_SUPPORTED) => Ok(()),
        done => done.map_err(|error| ddl_failure("setting the retention and compression policies", &error)),
    }
}

async fn try_policies(
    client: &Client,
    logs: &Logs,
    retention_days: u32,
    compress_after_days: u32,
) -> Result<(), Error> {
    policy(client, logs, "retention", "drop_after", retention_days).await?;
    if compress_after_days > 0 {
        let sql = "SELECT compression_enabled FROM timescaledb_information.hypertables \
                   WHERE hypertable_schema = $1 AND hypertable_name = $2";
        let compressed: bool = client.query_one(sql, &[&logs.table.schema, &logs.table.name]).await?.get(0);
        if !compressed {
            let sql = format!(
                "ALTER TABLE {} SET (timescaledb.compress, timescaledb.compress_segmentby = 'service', \
                 timescaledb.compress_orderby = 'ts')",
                logs.table
            );
            client.batch_execute(&sql).await?;
        }
    }
    policy(client, logs, "compression", "compress_after", compress_after_days).await
}

/// Sets one policy to `days`; 0 removes it.
async fn policy(client: &Client, logs: &Logs, kind: &str, argument: &str, days: u32) -> Result<(), Error> {
    let days = i32::try_from(days).unwrap_or(i32::MAX);
    let sql = format!(
        "SELECT (config->>'{argument}')::interval = make_interval(days => $1) FROM timescaledb_information.jobs \
         WHERE hypertable_schema = $2 AND hypertable_name = $3 AND proc_name = 'policy_{kind}'"
    );
    let current = client.query_opt(&sql, &[&days, &logs.table.schema, &logs.table.name]).await?;
    let current = current.map(|row| row.get::<_, Option<bool>>(0) == Some(true));
    if (days == 0 && current.is_none()) || (days > 0 && current == Some(true)) {
        return Ok(());
    }
    let table = logs.table.to_string();
    client.execute(&format!("SELECT remove_{kind}_policy($1::text::regclass, if_exists => true)"), &[&table]).await?;
    if days > 0 {
        let sql = format!("SELECT add_{kind}_policy($2::text::regclass, {argument} => make_interval(days => $1))");
        client.execute(&sql, &[&days, &table]).await?;
    }
    Ok(())
}
