//! Chunks of a hypertable: what there is, and how they are dropped when they have expired.
//!
//! Not by TimescaleDB's own job, which the Apache edition lacks, which runs by another clock than the one that is
//! trusted, and which leaves the counters: rows and counters go in one transaction, a chunk at a time.

use logweir_record::timestamp::{DAY_US, text};
use tokio::time::Instant;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Error, Row};

use super::connect::failed;
use super::ddl::{Failures, LIMITS, ddl_failure, transaction};
use super::logs::Logs;
use super::retention::{DELETE_FOR, DELETE_ROWS, DeletedCounters, delete_counters_of};
use super::timescale::Timescale;
use super::types::Time;
use crate::error::StoreError;

/// A chunk, or the chunks of a range of times if there are several.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Chunk {
    pub(super) from_us: i64,
    pub(super) to_us: i64,
    pub(super) state: ChunkState,
}

/// What an INSERT into a chunk means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ChunkState {
    /// Nothing special: it is not compressed, or has rows that are not, so that it is compressed again anyway.
    Open,
    /// It has to be compressed again.
    Compressed {
        /// The rows that it had when it was compressed.
        rows: i64,
    },
    /// It is refused: somebody has frozen the chunk, or moved it to cheaper storage.
    Closed,
}

/// The chunks of the hypertable `logs`, the oldest first.
pub(super) async fn chunks(client: &Client, logs: &Logs) -> Result<Vec<Chunk>, StoreError> {
    const WHAT: &str = "listing the chunks of logs";
    // The bits of a chunk's status: 1 compressed, 2 not in order, 4 frozen, 8 compressed in part. The view leaves out
    // the one that stands for what was moved to cheaper storage. Which slice of time that has, later versions say
    // elsewhere.
    const SQL: &str = "SELECT v.range_start, v.range_end, bool_or(c.status & 4 <> 0), bool_and(c.status & 11 = 1), \
        coalesce(sum(s.numrows_pre_compression), 0)::bigint FROM timescaledb_information.chunks v \
        JOIN _timescaledb_catalog.chunk c ON (c.schema_name, c.table_name) = (v.chunk_schema, v.chunk_name) \
        LEFT JOIN _timescaledb_catalog.compression_chunk_size s ON s.chunk_id = c.id \
        WHERE v.hypertable_schema = $1 AND v.hypertable_name = $2 AND v.range_end IS NOT NULL GROUP BY 1, 2 ORDER BY 1";
    const TIERED: &str = "SELECT c.id, to_regclass('_timescaledb_catalog.chunk_constraint') IS NOT NULL \
        FROM _timescaledb_catalog.chunk c JOIN _timescaledb_catalog.hypertable h ON h.id = c.hypertable_id \
        WHERE c.osm_chunk AND (h.schema_name, h.table_name) = ($1, $2)";
    const SLICE: &str = "SELECT range_start, range_end FROM _timescaledb_catalog.dimension_slice WHERE chunk_id = $1";
    const SLICE_BEFORE: &str = "SELECT s.range_start, s.range_end FROM _timescaledb_catalog.dimension_slice s \
        JOIN _timescaledb_catalog.chunk_constraint c ON c.dimension_slice_id = s.id WHERE c.chunk_id = $1";
    let name: [&(dyn ToSql + Sync); 2] = [&logs.table.schema, &logs.table.name];
    let rows = client.query(SQL, &name).await.map_err(failed(WHAT))?;
    let chunk = |row: &Row| Chunk {
        from_us: row.get::<_, Time>(0).0,
        to_us: row.get::<_, Time>(1).0,
        state: match (row.get(2), row.get(3)) {
            (true, _) => ChunkState::Closed,
            (false, true) => ChunkState::Compressed { rows: row.get(4) },
            (false, false) => ChunkState::Open,
        },
    };
    let mut chunks: Vec<Chunk> = rows.iter().map(chunk).collect();
    if let Some(tiered) = client.query_opt(TIERED, &name).await.map_err(failed(WHAT))? {
        let slice = if tiered.get(1) { SLICE_BEFORE } else { SLICE };
        let slices = client.query(slice, &[&tiered.get::<_, i32>(0)]).await.map_err(failed(WHAT))?;
        chunks.extend(slices.iter().map(|row| Chunk {
            from_us: row.get(0),
            to_us: row.get(1),
            state: ChunkState::Closed,
        }));
        chunks.sort_unstable_by_key(|chunk| chunk.from_us);
    }
    Ok(chunks)
}

/// Drops the chunks whose last day is before `first_kept`. One that is frozen stays, with its counters: somebody keeps
/// it.
pub(super) async fn drop_chunks(
    client: &Client,
    timescale: &Timescale,
    logs: &Logs,
    first_kept: i64,
) -> Result<(), StoreError> {
    let until = Instant::now() + DELETE_FOR;
    let mut failures = Failures::default();
    for Chunk { from_us, to_us, state } in chunks(client, logs).await? {
        if to_us > first_kept * DAY_US || state == ChunkState::Closed {
            continue;
        }
        let from = text(from_us);
        match drop_chunk(client, timescale, logs, (from_us, to_us), until).await {
            Ok(Dropped::Yes(counted)) => {
                counted.count_dropped();
                tracing::info!(from, rows = counted.records, "dropped an expired chunk");
            }
            Ok(Dropped::No) => tracing::info!(from, "kept an expired chunk that TimescaleDB does not drop"),
            Ok(Dropped::Later) => break,
            Err(error) => failures.add(Err(error)),
        }
    }
    failures.first()
}

/// What became of a chunk.
enum Dropped {
    Yes(DeletedCounters),
    /// It has been frozen since it was listed.
    No,
    /// Time was up while what waits beside it was deleted.
    Later,
}

/// Why a chunk was not dropped.
enum Stop {
    Failed(Error),
    NotDropped,
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// Drops the chunk of a range, with the late records that wait for it, and their counters. The last of those records go
/// in the transaction of the chunk, so the counters are those of no record.
async fn drop_chunk(
    client: &Client,
    timescale: &Timescale,
    logs: &Logs,
    (from_us, to_us): (i64, i64),
    until: Instant,
) -> Result<Dropped, StoreError> {
    let table = logs.table.to_string();
    let what = format!("dropping an expired chunk of {table}");
    let (from, to) = (Time(from_us), Time(to_us));
    let drop = format!(
        "SELECT {}($1::text::regclass, older_than => $3::timestamptz, newer_than => $2::timestamptz)",
        timescale.function("drop_chunks")
    );
    let waiting = logs.late.as_ref().map(|late| {
        let found = format!("SELECT ctid FROM {late} WHERE ts >= $1 AND ts < $2 LIMIT {DELETE_ROWS}");
        format!("DELETE FROM {late} WHERE ctid = ANY (ARRAY({found}))")
    });
    loop {
        if Instant::now() >= until {
            return Ok(Dropped::Later);
        }
        let dropping = async {
            if let Some(waiting) = &waiting
                && client.execute(waiting, &[&from, &to]).await? == DELETE_ROWS
            {
                return Ok(None);
            }
            let counted = delete_counters_of(client, logs, (from_us, to_us)).await?;
            match client.query(&drop, &[&table, &from, &to]).await?.is_empty() {
                true => Err(Stop::NotDropped),
                false => Ok(Some(counted)),
            }
        };
        match transaction(LIMITS, client, dropping).await {
            Ok(None) => {}
            Ok(Some(counted)) => return Ok(Dropped::Yes(counted)),
            Err(Stop::NotDropped) => return Ok(Dropped::No),
            Err(Stop::Failed(error)) => return Err(ddl_failure(&what, &error)),
        }
    }
}
