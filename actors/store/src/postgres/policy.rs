//! TimescaleDB's own jobs: compression, and whether those of `logs` work. They run by the database's clock.
//!
//! - Retention is not one of them: see [`chunk`](super::chunk).
//! - The statements take locks that stop readers and flushes, so each waits half a second at most: behind a dump it would
//!   be hours, with everybody else behind it.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio_postgres::{Client, Error};

use super::connect::failed;
use super::ddl::{Failures, in_transaction};
use super::logs::{Logs, page_order};
use super::timescale::Timescale;
use crate::error::StoreError;

/// What earlier versions set, and what is set now: see [`settings`].
const FORMER: [&str; 2] = ["service 1 - -", "ts - 1 true"];
const OWN: [&str; 2] = ["ts - 1 false", "id - 2 false"];

/// The sparse index: the lowest and the highest severity of each thousand records, so that a search for rare ones
/// decompresses few others. Refused: Bloom filters of services and hosts, which are read instead of what they save, and
/// which a change of their hash has made useless once (2.24).
const SPARSE_INDEX: &str = "minmax(severity)";

/// Sets the jobs of the hypertable `logs`; 0 removes compression. What an operator changed about a job is kept, except
/// for its age. `told` is set once it was said that the edition has no compression.
pub(super) async fn set_policies(
    client: &Client,
    timescale: &Timescale,
    logs: &Logs,
    retention_days: u32,
    compress_after_days: u32,
    told: &AtomicBool,
) -> Result<(), StoreError> {
    if timescale.is_apache {
        // It has no jobs.
        if compress_after_days > 0 && !told.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                "database.compress_after_days has no effect: the Apache edition of TimescaleDB (timescaledb.license) \
                 cannot compress. Set the key to 0, or use the community edition"
            );
        }
        return Ok(());
    }
    let mut failures = Failures::default();
    failures.add(replace_retention(client, timescale, logs, retention_days).await);
    failures.add(timescale.check_version());
    if timescale.check_version().is_ok() {
        failures.add(compress(client, timescale, logs, compress_after_days).await);
    }
    failures.first()
}

/// Removes the job by which earlier versions deleted records. It would go on deleting what is to be kept now.
async fn replace_retention(
    client: &Client,
    timescale: &Timescale,
    logs: &Logs,
    retention_days: u32,
) -> Result<(), StoreError> {
    // Earlier versions' are those with nothing but an age, of the owner of the table.
    const SQL: &str = "SELECT job_id, coalesce(age, '?'), is_former, \
        is_former AND age::interval = make_interval(days => $4), \
        $4 = 0 OR coalesce(age::interval < make_interval(days => $4), true) \
        FROM (SELECT j.job_id, coalesce(j.config->>'drop_after', j.config->>'drop_created_before') AS age, \
        coalesce(j.config - 'drop_after' - 'hypertable_id' = '{}' AND j.config ? 'drop_after' \
        AND j.owner::text IN (pg_get_userbyid(c.relowner), quote_ident(pg_get_userbyid(c.relowner))), false) AS is_former \
        FROM timescaledb_information.jobs j JOIN pg_class c ON c.oid = $3 \
        WHERE j.hypertable_schema = $1 AND j.hypertable_name = $2 AND j.proc_name = 'policy_retention' AND j.scheduled) \
        jobs ORDER BY 1";
    let days = i32::try_from(retention_days).unwrap_or(i32::MAX);
    let jobs = client
        .query(SQL, &[&logs.table.schema, &logs.table.name, &logs.oid, &days])
        .await
        .map_err(failed("looking for TimescaleDB's retention of logs"))?;
    let mut failures = Failures::default();
    for job in jobs {
        let (id, after): (i32, &str) = (job.get(0), job.get(1));
        let (is_former, fits, deletes_too_much): (bool, bool, bool) = (job.get(2), job.get(3), job.get(4));
        if !fits && !deletes_too_much {
            continue;
        }
        if !is_former {
            failures.add(Err(StoreError::Systemic(format!(
                "TimescaleDB's own job {id} drops records of {} after {after}, although database.retention_days is \
                 {retention_days}, and leaves their counters: SELECT delete_job({id}), or lower database.retention_days",
                logs.table
            ))));
            continue;
        }
        let deleted = in_transaction(client, "removing the retention job of an earlier version", async {
            delete_job(client, timescale, id).await
        });
        match deleted.await {
            Ok(()) => {
                tracing::info!(id, after, "removed the retention job of an earlier version: logweir does it itself")
            }
            Err(error) => failures.add(Err(error)),
        }
    }
    failures.first()
}

/// The job that compresses.
struct Job {
    id: i32,
    /// Whether its age is the wanted one.
    fits: bool,
}

async fn compression(client: &Client, logs: &Logs, days: i32) -> Result<Option<Job>, Error> {
    const SQL: &str = "SELECT job_id, coalesce((config->>'compress_after')::interval = make_interval(days => $3), false) \
        FROM timescaledb_information.jobs \
        WHERE hypertable_schema = $1 AND hypertable_name = $2 AND proc_name = 'policy_compression' ORDER BY 1 LIMIT 1";
    let row = client.query_opt(SQL, &[&logs.table.schema, &logs.table.name, &days]).await?;
    Ok(row.map(|row| Job { id: row.get(0), fits: row.get(1) }))
}

async fn delete_job(client: &Client, timescale: &Timescale, id: i32) -> Result<(), Error> {
    client.execute(&format!("SELECT {}($1::integer)", timescale.function("delete_job")), &[&id]).await.map(drop)
}

async fn compress(client: &Client, timescale: &Timescale, logs: &Logs, after_days: u32) -> Result<(), StoreError> {
    const WHAT: &str = "setting the compression policy";
    let days = i32::try_from(after_days).unwrap_or(i32::MAX);
    let found = compression(client, logs, days).await.map_err(failed(WHAT))?;
    match found {
        None if after_days == 0 => return Ok(()),
        Some(Job { id, .. }) if after_days == 0 => {
            return in_transaction(client, WHAT, delete_job(client, timescale, id)).await;
        }
        _ => {}
    }
    // From 2.18 on it is called columnstore; the former names still work there.
    let is_columnstore = timescale.has(client, "add_columnstore_policy").await.map_err(failed(WHAT))?;
    let settings = settings(client, logs).await.map_err(failed(WHAT))?;
    let has_sparse = timescale.has_sparse_indexes() && is_sparse_free(client, logs).await.map_err(failed(WHAT))?;
    if let Some(change) = change(&settings, is_columnstore, has_sparse) {
        let sql = format!("ALTER TABLE {} SET ({change})", logs.table);
        in_transaction(client, WHAT, client.batch_execute(&sql)).await?;
    }
    let table = logs.table.to_string();
    match found {
        Some(Job { fits: true, .. }) => Ok(()),
        Some(Job { id, .. }) => {
            let sql = format!(
                "SELECT {}(job_id, config => jsonb_set(config, '{{compress_after}}', \
                 to_jsonb(make_interval(days => $2)::text))) FROM timescaledb_information.jobs WHERE job_id = $1",
                timescale.function("alter_job")
            );
            in_transaction(client, WHAT, client.query(&sql, &[&id, &days])).await.map(drop)
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
            in_transaction(client, WHAT, client.query(&call, &[&table, &days])).await.map(drop)
        }
    }
}

/// What is set of the compression, unless it has settings of an operator's. `has_sparse` is whether a sparse index can be
/// added. Pure.
fn change(settings: &[String], is_columnstore: bool, has_sparse: bool) -> Option<String> {
    let is_new = settings.is_empty() || settings == FORMER;
    if !(is_new || settings == OWN && has_sparse) {
        return None;
    }
    let (enable, prefix) = if is_columnstore { ("enable_columnstore", "") } else { ("compress", "compress_") };
    // The order of a page: so a page decompresses what it shows, and sorts nothing. Refused: a segment per service,
    // which makes each page merge all services and saves no space.
    let order = page_order("DESC");
    let sparse = if has_sparse { format!(", timescaledb.sparse_index = '{SPARSE_INDEX}'") } else { String::new() };
    Some(format!(
        "timescaledb.{enable}, timescaledb.{prefix}segmentby = '', timescaledb.{prefix}orderby = '{order}'{sparse}"
    ))
}

/// Whether nobody has chosen sparse indexes: neither by a setting, nor by an index on another column, for which
/// TimescaleDB makes one unless some are named.
async fn is_sparse_free(client: &Client, logs: &Logs) -> Result<bool, Error> {
    const SQL: &str = "SELECT NOT EXISTS (SELECT FROM timescaledb_information.hypertable_compression_settings s, \
        jsonb_array_elements(CASE jsonb_typeof(to_jsonb(s)->'index') WHEN 'array' THEN to_jsonb(s)->'index' ELSE '[]' END) e \
        WHERE s.hypertable::oid = $1 AND e->>'source' <> 'orderby') \
        AND NOT EXISTS (SELECT FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey) \
        WHERE i.indrelid = $1 AND a.attname NOT IN ('ts', 'id'))";
    Ok(client.query_one(SQL, &[&logs.oid]).await?.get(0))
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

/// What can be wrong with a job.
#[derive(Clone, Debug, Default)]
struct JobState {
    failed: bool,
    /// Due for an hour.
    overdue: bool,
    /// Running for a day.
    stuck: bool,
    /// It compresses, and somebody has switched it off.
    paused: bool,
    failures: i64,
    error: Option<String>,
}

impl JobState {
    /// Says what is wrong with the job `id`. Pure.
    fn verdict(&self, id: i32, name: &str) -> Option<String> {
        let job = format!("TimescaleDB's job {id} ({name})");
        Some(if self.stuck {
            format!(
                "{job} has been running for more than a day: it may wait for a lock (pg_stat_activity shows it, and \
                 pg_blocking_pids for whom it waits); pg_terminate_backend ends it, and it is run again by itself"
            )
        } else if self.failed {
            let times = self.failures;
            let why = self.error.as_deref().unwrap_or(
                "the reason is visible only to the owner of the database or of the job, or was not recorded",
            );
            format!(
                "{job} fails, {times} times so far: {why}. It is run again by itself; timescaledb_information.job_errors has \
                 more, and CALL run_job({id}) tries it now"
            )
        } else if self.paused {
            format!(
                "{job} is switched off, so nothing is compressed: SELECT alter_job({id}, scheduled => true) switches it on, \
                 and database.compress_after_days = 0 removes it"
            )
        } else if self.overdue {
            format!(
                "{job} has been due for an hour and does not run: see timescaledb.max_background_workers and \
                 max_worker_processes, and that the database has a scheduler (pg_stat_activity)"
            )
        } else {
            return None;
        })
    }
}

/// Looks whether the jobs of `logs` work: nobody else does.
pub(super) async fn check_jobs(client: &Client, logs: &Logs) -> Result<(), StoreError> {
    const SQL: &str = "SELECT j.job_id, j.proc_name::text, coalesce(s.last_run_status = 'Failed', false), \
        coalesce(j.scheduled AND s.job_status = 'Scheduled' AND s.next_start < now() - interval '1 hour', false), \
        coalesce(s.job_status = 'Running' AND s.last_run_started_at < now() - interval '1 day', false), \
        j.proc_name = 'policy_compression' AND NOT j.scheduled, coalesce(s.total_failures, 0), \
        (SELECT e.err_message FROM timescaledb_information.job_errors e WHERE e.job_id = j.job_id \
        ORDER BY e.finish_time DESC LIMIT 1) \
        FROM timescaledb_information.jobs j LEFT JOIN timescaledb_information.job_stats s USING (job_id) \
        WHERE j.hypertable_schema = $1 AND j.hypertable_name = $2 ORDER BY 1";
    let rows = client
        .query(SQL, &[&logs.table.schema, &logs.table.name])
        .await
        .map_err(failed("looking at the jobs of TimescaleDB"))?;
    let mut failures = Failures::default();
    for row in rows {
        let state = JobState {
            failed: row.get(2),
            overdue: row.get(3),
            stuck: row.get(4),
            paused: row.get(5),
            failures: row.get(6),
            error: row.get(7),
        };
        let verdict = state.verdict(row.get(0), &format!("{} of {}", row.get::<_, &str>(1), logs.table));
        failures.add(verdict.map_or(Ok(()), |text| Err(StoreError::Systemic(text))));
    }
    failures.first()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compression_is_set_unless_an_operator_has_settings() {
        let set = |settings: &[&str], has_sparse| {
            change(&settings.iter().map(ToString::to_string).collect::<Vec<_>>(), true, has_sparse).unwrap_or_default()
        };
        let new =
            "timescaledb.enable_columnstore, timescaledb.segmentby = '', timescaledb.orderby = 'ts DESC, id DESC'";
        let sparse = format!("{new}, timescaledb.sparse_index = 'minmax(severity)'");
        assert_eq!([set(&[], false), set(&[], true)], [new, &*sparse]);
        assert_eq!([set(&FORMER, false), set(&FORMER, true)], [new, &*sparse]);
        assert_eq!([set(&OWN, false), set(&OWN, true)], ["", &*sparse]);
        assert_eq!(set(&["host 1 - -", "ts - 1 false"], true), "");
        assert!(change(&[], false, false).is_some_and(|set| set.contains("compress_orderby = 'ts DESC, id DESC'")));
    }

    #[test]
    fn what_is_wrong_with_a_job_is_told() {
        let told = |state: JobState| state.verdict(7, "policy_compression of logs").unwrap_or_default();
        assert_eq!(told(JobState::default()), "");
        let failed = JobState { failed: true, failures: 3, ..JobState::default() };
        assert!(told(failed.clone()).contains("3 times so far: the reason is visible only to the owner"));
        assert!(told(JobState { error: Some("no space".to_owned()), ..failed }).contains("3 times so far: no space."));
        assert!(told(JobState { stuck: true, ..JobState::default() }).contains("running for more than a day"));
        assert!(told(JobState { paused: true, ..JobState::default() }).contains("alter_job(7, scheduled => true)"));
        assert!(told(JobState { overdue: true, ..JobState::default() }).contains("due for an hour"));
    }
}
