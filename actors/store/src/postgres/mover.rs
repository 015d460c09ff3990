//! Late records move from the table beside a hypertable into chunks, and expire there.

use std::time::Duration;

use logweir_record::timestamp::DAY_US;
use tokio::time::Instant;
use tokio_postgres::{Client, Error};

use super::chunk::{Chunk, chunks};
use super::connect::failed;
use super::ddl::{Failures, Relation, in_transaction};
use super::logs::{Logs, LogsKind};
use super::place::Window;
use super::retention::{DELETE_FOR, DELETE_ROWS, delete_counters_of};
use super::types::Time;
use crate::error::StoreError;

/// Records of a day for which a chunk is worthwhile.
const DAY_ROWS_MIN: i64 = 10_000;

/// Time for moving records in one round.
const MOVE_FOR: Duration = Duration::from_secs(240);

/// A day of which records wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Waiting {
    day: i64,
    rows: i64,
}

/// Whether the records of a day move. Pure.
fn moves(waiting: Waiting, window: Window, chunks: &[Chunk]) -> bool {
    let (from_us, to_us) = (waiting.day * DAY_US, (waiting.day + 1) * DAY_US);
    let is_near = window.overlaps((from_us, to_us));
    let has_chunk = chunks.iter().any(|chunk| chunk.from_us < to_us && from_us < chunk.to_us);
    is_near || has_chunk || waiting.rows >= DAY_ROWS_MIN
}

/// Moves late records to where they belong, a bounded number of one day per transaction. A day whose chunk is locked is
/// left to the next round. What has expired (`first_kept` is the first day that has not) is left to be deleted.
pub(super) async fn move_days(
    client: &Client,
    logs: &Logs,
    window: Window,
    first_kept: Option<i64>,
) -> Result<(), StoreError> {
    let Some(late) = &logs.late else { return Ok(()) };
    let until = Instant::now() + MOVE_FOR;
    let is_hypertable = logs.kind == LogsKind::Hypertable;
    let chunks = if is_hypertable { chunks(client, logs).await? } else { Vec::new() };
    let columns = shared_columns(client, logs, late).await.map_err(failed("reading the columns of late records"))?;
    let sql = format!(
        "WITH moved AS (DELETE FROM {late} WHERE ctid = ANY (ARRAY(SELECT ctid FROM {late} WHERE ts >= $1 AND ts < $2 \
         LIMIT {DELETE_ROWS})) RETURNING {columns}), \
         stored AS (INSERT INTO {} ({columns}) SELECT {columns} FROM moved RETURNING 1) \
         SELECT (SELECT count(*) FROM moved), (SELECT count(*) FROM stored)",
        logs.table
    );
    let mut failures = Failures::default();
    for waiting in waiting(client, late).await? {
        let is_kept = first_kept.is_none_or(|first_kept| waiting.day >= first_kept);
        if !is_kept || is_hypertable && !moves(waiting, window, &chunks) {
            continue;
        }
        let (from, to) = (Time(waiting.day * DAY_US), Time((waiting.day + 1) * DAY_US));
        loop {
            if Instant::now() >= until {
                return failures.first();
            }
            let what = format!("moving records from {late} to {}", logs.table);
            let moving = in_transaction(client, &what, async {
                let row = client.query_one(&sql, &[&from, &to]).await?;
                let (moved, stored): (i64, i64) = (row.get(0), row.get(1));
                if moved != stored {
                    // The COMMIT that follows is one of nothing.
                    client.batch_execute("ROLLBACK").await?;
                }
                Ok((moved, stored))
            });
            let moved = match moving.await {
                Ok((moved, stored)) if moved == stored => moved.unsigned_abs(),
                Ok((moved, stored)) => {
                    failures.add(Err(StoreError::Systemic(format!(
                        "{what}: a trigger on {} drops {} of {moved} records that are stored and acknowledged, so they stay \
                         where they are; let the trigger keep them",
                        logs.table,
                        moved - stored
                    ))));
                    break;
                }
                Err(error) => {
                    failures.add(Err(error));
                    break;
                }
            };
            metrics::counter!("logweir_store_late_moved_rows_total").increment(moved);
            if moved < DELETE_ROWS {
                break;
            }
        }
    }
    failures.first()
}

/// Deletes late records of days before `first_kept`, and the counters of each day with the last of its records.
pub(super) async fn delete_expired(client: &Client, logs: &Logs, first_kept: i64) -> Result<(), StoreError> {
    let Some(late) = &logs.late else { return Ok(()) };
    let until = Instant::now() + DELETE_FOR;
    let delete = format!(
        "DELETE FROM {late} WHERE ctid = ANY (ARRAY(SELECT ctid FROM {late} WHERE ts >= $1 AND ts < $2 \
         LIMIT {DELETE_ROWS}))"
    );
    let found = format!("SELECT EXISTS (SELECT FROM {} WHERE ts >= $1 AND ts < $2)", logs.table);
    let what = format!("deleting expired rows from {late}");
    for Waiting { day, .. } in waiting(client, late).await?.into_iter().filter(|waiting| waiting.day < first_kept) {
        let (from_us, to_us) = (day * DAY_US, (day + 1) * DAY_US);
        let (from, to) = (Time(from_us), Time(to_us));
        loop {
            if Instant::now() >= until {
                return Ok(());
            }
            let deleted = in_transaction(client, &what, async {
                let deleted = client.execute(&delete, &[&from, &to]).await?;
                let is_last = deleted < DELETE_ROWS;
                if is_last && !client.query_one(&found, &[&from, &to]).await?.get::<_, bool>(0) {
                    delete_counters_of(client, logs, (from_us, to_us)).await?;
                }
                Ok(deleted)
            })
            .await?;
            metrics::counter!("logweir_store_retention_deleted_rows_total", "table" => "logs").increment(deleted);
            if deleted < DELETE_ROWS {
                break;
            }
        }
    }
    Ok(())
}

/// The days of which records wait, the oldest first.
async fn waiting(client: &Client, late: &Relation) -> Result<Vec<Waiting>, StoreError> {
    let sql =
        format!("SELECT floor(extract(epoch FROM ts) / 86400)::bigint, count(*) FROM {late} GROUP BY 1 ORDER BY 1");
    let rows = in_transaction(client, "counting late records", client.query(&sql, &[])).await?;
    Ok(rows.iter().map(|row| Waiting { day: row.get(0), rows: row.get(1) }).collect())
}

/// The columns that both tables have and that can be written: an operator may have added some to `logs` since.
async fn shared_columns(client: &Client, logs: &Logs, late: &Relation) -> Result<String, Error> {
    const SQL: &str = "SELECT string_agg(quote_ident(a.attname), ', ' ORDER BY a.attnum) \
        FROM pg_attribute a JOIN pg_attribute b USING (attname) \
        WHERE a.attrelid = $1 AND b.attrelid = $2::text::regclass AND a.attnum > 0 AND NOT a.attisdropped \
        AND NOT b.attisdropped AND a.attgenerated = '' AND b.attgenerated = ''";
    let row = client.query_one(SQL, &[&logs.oid, &late.to_string()]).await?;
    Ok(row.get::<_, Option<String>>(0).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::super::place::Reach;
    use super::*;

    const NOW: i64 = 20_000 * DAY_US + DAY_US / 2;
    const REACH: Reach = Reach { past_days: 7, future_days: 1 };

    #[test]
    fn a_day_moves_when_it_is_near_has_a_chunk_or_many_records() {
        let window = Window::at(NOW, REACH);
        let chunk = Chunk { from_us: 19_900 * DAY_US, to_us: 19_901 * DAY_US };
        let moves = |day, rows| moves(Waiting { day, rows }, window, &[chunk]);
        assert!(!moves(19_000, 1) && !moves(30_000, DAY_ROWS_MIN - 1));
        assert!(moves(19_000, DAY_ROWS_MIN) && moves(30_000, DAY_ROWS_MIN));
        assert!(moves(19_900, 1) && !moves(19_899, 1) && !moves(19_901, 1));
        assert!(moves(20_000, 1) && moves(20_001, 1) && !moves(20_002, 1));
        assert!(moves(19_993, 1) && !moves(19_992, 1));
    }
}
