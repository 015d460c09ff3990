//! The records that wait, read along their index: nothing here costs more when more of them wait.

use tokio_postgres::{Client, Error, Row};

use super::super::connect::failed;
use super::super::ddl::{self, Limits, Relation, in_transaction};
use super::super::logs::Logs;
use super::super::types::Time;
use super::pieces::ROWS_MAX;
use super::rule::Waiting;
use crate::error::StoreError;

/// A statement that takes longer is tried with fewer records.
pub(super) const LIMITS: Limits = Limits { statement_s: 20, ..ddl::LIMITS };

/// Records that are counted exactly for the metric.
const COUNTED_MAX: i64 = 10_000;

const WHAT: &str = "looking for late records";

/// A record that waits: where it is, and its size as it is stored.
pub(super) struct Listed {
    pub(super) ctid: String,
    pub(super) ts_us: i64,
    pub(super) bytes: u64,
}

/// The first time of a range of which a record waits.
pub(super) async fn next(
    client: &Client,
    late: &Relation,
    (from_us, to_us): (i64, i64),
) -> Result<Option<i64>, StoreError> {
    let sql = format!("SELECT min(ts) FROM {late} WHERE ts >= $1 AND ts < $2");
    let row = in_transaction(client, WHAT, async { client.query_one(&sql, &[&Time(from_us), &Time(to_us)]).await });
    Ok(row.await?.get::<_, Option<Time>>(0).map(|time| time.0))
}

/// Counts the records of a range, up to `rows_max` of them.
pub(super) async fn count(
    client: &Client,
    late: &Relation,
    (from_us, to_us): (i64, i64),
    rows_max: i64,
) -> Result<Waiting, StoreError> {
    let sql = format!(
        "SELECT count(*), min(stored_at) FROM \
         (SELECT stored_at FROM {late} WHERE ts >= $1 AND ts < $2 ORDER BY ts LIMIT {rows_max}) found"
    );
    let row = in_transaction(client, WHAT, async { client.query_one(&sql, &[&Time(from_us), &Time(to_us)]).await });
    let row = row.await?;
    Ok(Waiting { rows: row.get(0), since_us: row.get::<_, Option<Time>>(1).map_or(i64::MAX, |time| time.0) })
}

/// The first records of a range.
pub(super) async fn list(
    client: &Client,
    late: &Relation,
    (from_us, to_us): (i64, i64),
) -> Result<Vec<Listed>, StoreError> {
    // Sizes are those of the stored values: nothing is decompressed or fetched for them.
    let sql = format!(
        "SELECT ctid::text, ts, 64 + pg_column_size(service)::bigint + pg_column_size(host) + pg_column_size(message) \
         + coalesce(pg_column_size(attributes), 0) FROM {late} WHERE ts >= $1 AND ts < $2 ORDER BY ts LIMIT {ROWS_MAX}"
    );
    let rows = in_transaction(client, WHAT, async { client.query(&sql, &[&Time(from_us), &Time(to_us)]).await });
    let listed = |row: &Row| Listed {
        ctid: row.get(0),
        ts_us: row.get::<_, Time>(1).0,
        bytes: row.get::<_, i64>(2).unsigned_abs(),
    };
    Ok(rows.await?.iter().map(listed).collect())
}

/// The number of all records that wait: an estimate if there are many.
pub(super) async fn total(client: &Client, late: &Relation) -> Result<i64, StoreError> {
    let sql = format!(
        "SELECT count(*), (SELECT reltuples::bigint FROM pg_class WHERE oid = $1::text::regclass) \
         FROM (SELECT FROM {late} LIMIT {COUNTED_MAX}) found"
    );
    let row = in_transaction(client, WHAT, async { client.query_one(&sql, &[&late.to_string()]).await }).await?;
    let (counted, estimate): (i64, i64) = (row.get(0), row.get(1));
    Ok(if counted < COUNTED_MAX { counted } else { counted.max(estimate) })
}

/// What the hypertable `logs` makes chunks of, and for how many the server has locks.
pub(super) struct Room {
    pub(super) interval_us: i64,
    pub(super) locks_per_transaction: i64,
    pub(super) connections: i64,
}

impl Room {
    pub(super) async fn read(client: &Client, logs: &Logs) -> Result<Self, StoreError> {
        const SQL: &str = "SELECT (extract(epoch FROM time_interval) * 1000000)::bigint, \
            current_setting('max_locks_per_transaction')::bigint, current_setting('max_connections')::bigint \
            FROM timescaledb_information.dimensions \
            WHERE hypertable_schema = $1 AND hypertable_name = $2 AND column_name = 'ts'";
        let read: Result<Row, Error> = client.query_one(SQL, &[&logs.table.schema, &logs.table.name]).await;
        let row = read.map_err(failed("reading the interval of chunks"))?;
        Ok(Self {
            interval_us: row.get::<_, i64>(0).max(1),
            locks_per_transaction: row.get(1),
            connections: row.get(2),
        })
    }
}
