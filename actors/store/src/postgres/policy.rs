//! TimescaleDB's own jobs: compression, and whether those of `logs` work. They run by the database's clock.
//!
//! Retention is not one of them: see [`chunk`](super::chunk).

use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Error};

use super::connect::failed;
use super::ddl::{Failures, ddl_failure};
use super::logs::Logs;
use super::timescale::Timescale;
use crate::error::StoreError;

/// The order of a page, newest first: so a page decompresses what it shows, and sorts nothing. Refused: a segment per
/// service, which makes each page merge all services and saves no space.
const ORDER: &str = "ts DESC, id DESC";

/// What earlier versions set.
const FORMER: [&str; 2] = ["service 1 - -", "ts - 1 true"];

/// Sets the jobs of the hypertable `logs`; 0 removes compression. What an operator changed about a job is kept, except
/// for its age.
pub(super) async fn set_policies(
    client: &Client,
    timescale: &Timescale,
    logs: &Logs,
    retention_days: u32,
    compress_after_days: u32,
) -> Result<(), StoreError> {
    let set = async {
        drop_former_retention(client, timescale, logs, retention_days).await?;
        compress(client, timescale, logs, compress_after_days).await
    };
    match set.await {
        // The Apache edition has no compression.
        Err(error) if error.code() == Some(&SqlState::FEATURE_NOT_SUPPORTED) => Ok(()),
        done => done.map_err(|error| ddl_failure("setting the compression policy", &error)),
    }
}

/// A job of `logs`.
struct Job {
    id: i32,
    /// Whether its age is the wanted one.
    fits: bool,
}

/// The job `procedure` of `logs`, with its age in `argument`.
async fn job(client: &Client, logs: &Logs, procedure: &str, argument: &str, days: i32) -> Result<Option<Job>, Error> {
    const SQL: &str = "SELECT job_id, coalesce((config->>$4)::interval = make_interval(days => $5), false) \
        FROM timescaledb_information.jobs \
        WHERE hypertable_schema = $1 AND hypertable_name = $2 AND proc_name = $3 ORDER BY 1 LIMIT 1";
    let row = client.query_opt(SQL, &[&logs.table.schema, &logs.table.name, &procedure, &argument, &days]).await?;
    Ok(row.map(|row| Job { id: row.get(0), fits: row.get(1) }))
}

/// Removes the job that earlier versions made for retention.
async fn drop_former_retention(
    client: &Client,
    timescale: &Timescale,
    logs: &Logs,
    retention_days: u32,
) -> Result<(), Error> {
    let days = i32::try_from(retention_days).unwrap_or(i32::MAX);
    match job(client, logs, "policy_retention", "drop_after", days).await? {
        Some(Job { id, fits: true }) => delete_job(client, timescale, id).await,
        _ => Ok(()),
    }
}

async fn delete_job(client: &Client, timescale: &Timescale, id: i32) -> Result<(), Error> {
    client.execute(&format!("SELECT {}($1::integer)", timescale.function("delete_job")), &[&id]).await.map(drop)
}

async fn compress(client: &Client, timescale: &Timescale, logs: &Logs, after_days: u32) -> Result<(), Error> {
    let days = i32::try_from(after_days).unwrap_or(i32::MAX);
    let found = job(client, logs, "policy_compression", "compress_after", days).await?;
    match found {
        None if after_days == 0 => return Ok(()),
        Some(Job { id, .. }) if after_days == 0 => return delete_job(client, timescale, id).await,
        _ => {}
    }
    // From 2.18 on it is called columnstore; the former names still work there.
    let is_columnstore = timescale.has(client, "add_columnstore_policy").await?;
    let settings = settings(client, logs).await?;
    if settings.is_empty() || settings == FORMER {
        let (enable, prefix) = if is_columnstore { ("enable_columnstore", "") } else { ("compress", "compress_") };
        let sql = format!(
            "ALTER TABLE {} SET (timescaledb.{enable}, timescaledb.{prefix}segmentby = '', \
             timescaledb.{prefix}orderby = '{ORDER}')",
            logs.table
        );
        client.batch_execute(&sql).await?;
    }
    match found {
        Some(Job { fits: true, .. }) => Ok(()),
        Some(Job { id, .. }) => {
            let sql = format!(
                "SELECT {}(job_id, config => jsonb_set(config, '{{compress_after}}', \
                 to_jsonb(make_interval(days => $2)::text))) FROM timescaledb_information.jobs WHERE job_id = $1",
                timescale.function("alter_job")
            );
            client.query(&sql, &[&id, &days]).await.map(drop)
        }
        None => {
            let call = match is_columnstore {
                true => format!(
                    "CALL {}($1::text::regclass, after => make_interval(days => $2))",
                    timescale.function("add_columnstore_policy")
                ),
                false => format!(
                    "SELECT {}($1::text::regclass, compress_after => make_interval(days => $2))",
                    timescale.function("add_compression_policy")
                ),
            };
            client.query(&call, &[&logs.table.to_string(), &days]).await.map(drop)
        }
    }
}

/// The settings of compression, a text per column; none if it is not enabled.
async fn settings(client: &Client, logs: &Logs) -> Result<Vec<String>, Error> {
    const SQL: &str = "SELECT concat_ws(' ', attname, coalesce(segmentby_column_index::text, '-'), \
        coalesce(orderby_column_index::text, '-'), coalesce(orderby_asc::text, '-')) \
        FROM timescaledb_information.compression_settings \
        WHERE hypertable_schema = $1 AND hypertable_name = $2 ORDER BY segmentby_column_index, orderby_column_index";
    let rows = client.query(SQL, &[&logs.table.schema, &logs.table.name]).await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Looks whether the jobs of `logs` work: nobody else does.
pub(super) async fn check_jobs(client: &Client, logs: &Logs) -> Result<(), StoreError> {
    const SQL: &str = "SELECT j.job_id, j.proc_name::text, s.last_run_status = 'Failed', s.total_failures, \
        (SELECT e.err_message FROM timescaledb_information.job_errors e WHERE e.job_id = j.job_id \
        ORDER BY e.finish_time DESC LIMIT 1), \
        coalesce(j.scheduled AND s.job_status = 'Scheduled' AND s.next_start < now() - interval '1 hour', false) \
        FROM timescaledb_information.jobs j LEFT JOIN timescaledb_information.job_stats s USING (job_id) \
        WHERE j.hypertable_schema = $1 AND j.hypertable_name = $2 ORDER BY 1";
    let rows = client
        .query(SQL, &[&logs.table.schema, &logs.table.name])
        .await
        .map_err(failed("looking at the jobs of TimescaleDB"))?;
    let mut failures = Failures::default();
    for row in rows {
        let (id, name): (i32, &str) = (row.get(0), row.get(1));
        if row.get::<_, Option<bool>>(2) == Some(true) {
            let (times, why): (i64, Option<&str>) = (row.get(3), row.get(4));
            failures.add(Err(StoreError::Systemic(format!(
                "TimescaleDB's job {id} ({name} of {}) fails, {times} times so far: {}. It is run again by itself; \
                 timescaledb_information.job_errors has more, and CALL run_job({id}) tries it now",
                logs.table,
                why.unwrap_or("no reason was recorded")
            ))));
        } else if row.get::<_, bool>(5) {
            failures.add(Err(StoreError::Systemic(format!(
                "TimescaleDB's job {id} ({name} of {}) has been due for an hour and does not run: see \
                 timescaledb.max_background_workers and max_worker_processes, and that the database has a scheduler \
                 (pg_stat_activity)",
                logs.table
            ))));
        }
    }
    failures.first()
}
