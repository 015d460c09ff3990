//! How long a chunk of a hypertable is: what the key says, or by the rate at which records come in.
//!
//! - Inserts are fast while the newest chunk with its index stays in memory, and a compression locks a chunk for as
//!   long as it takes: so a chunk is a quarter of the memory, and a day at most. What memory the server has is not
//!   known; usually `shared_buffers` is a quarter of it, and `effective_cache_size` three quarters.
//! - Each query of a long range locks each of its chunks: so they are not shorter than what is kept divided by
//!   [`CHUNKS_MAX`].
//! - An interval that somebody else has set is kept. Logweir's own is known by the comment on the constraint that marks
//!   [`LATE`](super::logs::LATE).

use tokio_postgres::Client;

use super::connect::failed;
use super::ddl::in_transaction;
use super::logs::{LATE_MARK, Logs};
use super::timescale::Timescale;
use crate::error::StoreError;

/// The interval with which a hypertable is created.
const DAY_S: i64 = 86_400;

/// The intervals that are chosen, the longest first. Days are divided evenly.
const STEPS_S: [i64; 5] = [DAY_S, 43_200, 21_600, 10_800, 3_600];

/// Chunks at most, as far as this decides.
const CHUNKS_MAX: i64 = 1_000;

/// Days that are kept if nothing is deleted: a long query is of so many.
const FOREVER_DAYS: u32 = 365;

/// Returns the interval that fits so many bytes per day, if the current one does not: chunks of at most twice, at least
/// half of the wanted size, so that it does not change with each wave. Pure.
fn fitting(current_s: i64, bytes_per_day: f64, chunk_bytes: f64, retention_days: u32) -> Option<i64> {
    let days = if retention_days == 0 { FOREVER_DAYS } else { retention_days };
    let least_s = i64::from(days) * DAY_S / CHUNKS_MAX;
    let bytes = |s: i64| bytes_per_day * s as f64 / DAY_S as f64;
    let steps = || STEPS_S.into_iter().filter(|&step| step >= least_s || step == DAY_S);
    let wanted = if bytes(current_s) > 2.0 * chunk_bytes {
        steps().find(|&step| bytes(step) <= chunk_bytes).or_else(|| steps().next_back())?
    } else {
        steps().find(|&step| bytes(step) < chunk_bytes / 2.0).filter(|&step| step > current_s)?
    };
    (wanted != current_s).then_some(wanted)
}

/// Sets the interval of chunks that are made from now on. `wanted_s` is the key; 0 leaves it to the rate.
pub(super) async fn set_interval(
    client: &Client,
    timescale: &Timescale,
    logs: &Logs,
    wanted_s: u32,
    retention_days: u32,
) -> Result<(), StoreError> {
    const WHAT: &str = "setting the interval of chunks";
    const CURRENT: &str = "SELECT extract(epoch FROM d.time_interval)::bigint, (SELECT obj_description(k.oid, 'pg_constraint') \
        FROM pg_constraint k WHERE k.conrelid = to_regclass($3) AND k.conname = $4), \
        greatest(pg_size_bytes(current_setting('shared_buffers')), \
        pg_size_bytes(current_setting('effective_cache_size')) / 3)::double precision \
        FROM timescaledb_information.dimensions d WHERE d.hypertable_schema = $1 AND d.hypertable_name = $2 \
        AND d.time_interval IS NOT NULL ORDER BY d.dimension_number LIMIT 1";
    // Of the newest chunks that tell it: not compressed, and not just begun.
    const RATE: &str = "SELECT max(bytes / days)::double precision FROM (SELECT \
        pg_total_relation_size(format('%I.%I', chunk_schema, chunk_name)::regclass) AS bytes, \
        extract(epoch FROM least(range_end, now()) - range_start) / 86400 AS days FROM timescaledb_information.chunks \
        WHERE hypertable_schema = $1 AND hypertable_name = $2 AND NOT is_compressed \
        AND range_start < now() - interval '1 hour' ORDER BY range_start DESC LIMIT 2) newest";
    let late = logs.late.as_ref().map(ToString::to_string);
    let (schema, name) = (&logs.table.schema, &logs.table.name);
    let row = client.query_opt(CURRENT, &[schema, name, &late, &LATE_MARK]).await.map_err(failed(WHAT))?;
    let Some(row) = row else { return Ok(()) };
    let (current_s, comment, chunk_bytes): (i64, Option<&str>, f64) = (row.get(0), row.get(1), row.get(2));
    let is_own = current_s == DAY_S || comment == Some(mark(current_s).as_str());
    let wanted_s = match i64::from(wanted_s) {
        0 if !is_own => return Ok(()),
        0 => {
            let rate = client.query_one(RATE, &[schema, name]).await.map_err(failed(WHAT))?;
            let Some(bytes_per_day) = rate.get::<_, Option<f64>>(0) else { return Ok(()) };
            fitting(current_s, bytes_per_day, chunk_bytes, retention_days).unwrap_or(current_s)
        }
        wanted_s => wanted_s,
    };
    if wanted_s == current_s {
        return Ok(());
    }
    let set = format!(
        "SELECT {}($1::text::regclass, make_interval(secs => $2::double precision))",
        timescale.function("set_chunk_time_interval")
    );
    in_transaction(client, WHAT, async {
        client.query(&set, &[&logs.table.to_string(), &(wanted_s as f64)]).await?;
        if let Some(late) = &late {
            let mark = mark(wanted_s);
            client.batch_execute(&format!("COMMENT ON CONSTRAINT {LATE_MARK} ON {late} IS '{mark}'")).await?;
        }
        Ok(())
    })
    .await?;
    tracing::info!(from_s = current_s, to_s = wanted_s, "the next chunks have another interval");
    Ok(())
}

fn mark(interval_s: i64) -> String {
    format!("chunk interval by logweir: {interval_s} s")
}

#[cfg(test)]
mod tests {
    use super::*;

    const GB: f64 = 1e9;

    #[test]
    fn a_chunk_is_about_the_wanted_size_and_a_day_at_most() {
        let fitting = |current_s, per_day| fitting(current_s, per_day, 4.0 * GB, 30);
        assert_eq!(fitting(DAY_S, 0.0), None);
        assert_eq!(fitting(DAY_S, 7.9 * GB), None, "not twice as large");
        assert_eq!(fitting(DAY_S, 9.0 * GB), Some(21_600));
        assert_eq!(fitting(DAY_S, 1e6 * GB), Some(3_600), "an hour at least");
        assert_eq!(fitting(21_600, 9.0 * GB), None);
        assert_eq!(fitting(21_600, 3.0 * GB), Some(43_200));
        assert_eq!(fitting(21_600, 1.0 * GB), Some(DAY_S));
    }

    #[test]
    fn what_is_kept_for_long_has_no_short_chunks() {
        assert_eq!(fitting(DAY_S, 1e6 * GB, 4.0 * GB, 365), Some(43_200));
        assert_eq!(fitting(DAY_S, 1e6 * GB, 4.0 * GB, 0), Some(43_200));
        assert_eq!(fitting(DAY_S, 1e6 * GB, 4.0 * GB, 36_500), None);
        assert_eq!(fitting(DAY_S, 1e6 * GB, 4.0 * GB, 41), Some(3_600));
    }
}
