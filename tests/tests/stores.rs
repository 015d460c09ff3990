//! The log stores against a real PostgreSQL and a real SQLite file: each record once, whatever happens.

use std::path::PathBuf;
use std::sync::Arc;

use logweir::config::{Database, DatabaseUrl};
use logweir::message::{Batch, BatchFrame};
use logweir::store::{self, Claim, Flushed, LaneRow, LaneWriter, Lease, LogStore, Opened, StoreError};
use logweir_engine::chunk::Chunk;
use logweir_engine::record::{Record, Severity};
use logweir_tests::postgres::{self, TestDatabase};
use uuid::Uuid;

const NOON_US: i64 = 1_763_640_000_000_000;

fn settings(url: DatabaseUrl) -> Database {
    Database {
        url,
        read_url: None,
        pool_size: 2,
        connect_timeout_ms: 5_000,
        statement_timeout_ms: 60_000,
        retention_days: 0,
        compress_after_days: 0,
        ca_file: None,
    }
}

fn open_postgres(url: &str) -> Arc<dyn LogStore> {
    store::open(&settings(DatabaseUrl::Postgres(url.to_owned()))).unwrap().store()
}

/// A prepared store and a way to look into it from beside.
struct Fixture {
    store: Arc<dyn LogStore>,
    place: Place,
}

enum Place {
    Postgres(TestDatabase),
    Sqlite(tempfile::TempDir),
}

impl Fixture {
    async fn postgres() -> Self {
        let database = postgres::database().await;
        let store = open_postgres(&database.url);
        store.prepare().await.unwrap();
        Self { store, place: Place::Postgres(database) }
    }

    async fn sqlite() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = store::open(&settings(DatabaseUrl::Sqlite(dir.path().join("logs.db")))).unwrap().store();
        store.prepare().await.unwrap();
        Self { store, place: Place::Sqlite(dir) }
    }

    /// A second store on the same database, as another process would have it.
    fn other(&self) -> Arc<dyn LogStore> {
        match &self.place {
            Place::Postgres(database) => open_postgres(&database.url),
            Place::Sqlite(dir) => {
                store::open(&settings(DatabaseUrl::Sqlite(dir.path().join("logs.db")))).unwrap().store()
            }
        }
    }

    fn file(&self) -> PathBuf {
        match &self.place {
            Place::Sqlite(dir) => dir.path().join("logs.db"),
            Place::Postgres(_) => panic!("this store is no file"),
        }
    }

    /// One number.
    async fn number(&self, sql: &str) -> i64 {
        match &self.place {
            Place::Postgres(database) => {
                let sql = format!("SELECT ({sql})::bigint");
                database.client().await.query_one(&sql, &[]).await.unwrap().get(0)
            }
            Place::Sqlite(_) => rusqlite::Connection::open(self.file())
                .unwrap()
                .query_row(&format!("SELECT ({sql})"), [], |row| row.get(0))
                .unwrap(),
        }
    }

    async fn execute(&self, sql: &str) {
        match &self.place {
            Place::Postgres(database) => database.client().await.batch_execute(sql).await.unwrap(),
            Place::Sqlite(_) => rusqlite::Connection::open(self.file()).unwrap().execute_batch(sql).unwrap(),
        }
    }

    /// Asserts the contract: rows, cursor, counters and histogram tell the same.
    async fn assert_whole(&self, writer: Uuid, expected_records: u64) {
        let lanes = self.store.lanes(writer).await.unwrap();
        let settled: u64 = lanes.iter().map(LaneRow::settled).sum();
        assert_eq!(settled, expected_records, "settled: {lanes:?}");
        for row in &lanes {
            let stored = self.store.count_stored(row).await.unwrap();
            assert_eq!(stored.rows, row.rows + stored.replayed, "{row:?}");
            assert_eq!(stored.distinct, stored.rows, "{row:?}");
            assert_eq!(stored.dead_letters + stored.replayed, row.dead, "{row:?}");
        }
        assert_eq!(
            self.number("SELECT coalesce(sum(records), 0) FROM log_volume").await,
            self.number("SELECT count(*) FROM logs").await,
            "the histogram and the rows"
        );
    }
}

/// A suite of sentences that hold for both stores.
macro_rules! both {
    ($($name:ident)*) => { $(
        mod $name {
            #[tokio::test]
            async fn postgres() {
                super::$name(super::Fixture::postgres().await).await;
            }

            #[tokio::test]
            async fn sqlite() {
                super::$name(super::Fixture::sqlite().await).await;
            }
        }
    )* };
}

/// A journal's lane as far as a store sees it: it makes frames with dense numbers.
#[derive(Clone)]
struct Feed {
    lane: u16,
    seq: u64,
    records: u64,
}

fn record(message: &str) -> Record<'_> {
    Record { ts_us: NOON_US, severity: Severity::INFO, service: "api", host: "h1", message, attributes: r#"{"a":1}"# }
}

impl Feed {
    fn new(lane: u16) -> Self {
        Self { lane, seq: 0, records: 0 }
    }

    /// Where the database has the lane.
    fn at(row: &LaneRow) -> Self {
        Self { lane: row.lane, seq: row.last_seq, records: row.settled() }
    }

    fn frame(&mut self, records: &[Record<'_>]) -> BatchFrame {
        let mut chunk = Chunk::with_capacity(NOON_US, records.len(), 64 * records.len());
        for &record in records {
            chunk.push(record);
        }
        self.seq += 1;
        self.records += records.len() as u64;
        BatchFrame {
            seq: self.seq,
            lane_records: self.records,
            payload_crc: u32::try_from(self.seq).unwrap() ^ 0xabcd,
            chunk: Arc::new(chunk),
        }
    }

    /// One batch of one frame per slice.
    fn batch(&mut self, frames: &[&[Record<'_>]]) -> Batch {
        let (from_seq, from_records) = (self.seq, self.records);
        let frames = frames.iter().map(|records| self.frame(records)).collect();
        Batch { lane: self.lane, from_seq, from_records, frames }
    }

    /// A batch of `n` records.
    fn plain(&mut self, n: usize) -> Batch {
        let records = vec![record("plain"); n];
        self.batch(&[&records])
    }
}

fn claim(writer: Uuid, runs: &[u128], run: u128) -> Claim {
    Claim {
        writer,
        run: Uuid::from_u128(run),
        runs: runs.iter().copied().map(Uuid::from_u128).collect(),
        owner: format!("run {run}"),
        tails: Vec::new(),
    }
}

async fn lane(store: &Arc<dyn LogStore>, lease: &Lease, lane: u16) -> Box<dyn LaneWriter> {
    store.open_lane(lease, lane).await.unwrap().0
}

fn flushed(rows: u64, dead: u64) -> Flushed {
    Flushed { rows, dead }
}

async fn rows_cursor_and_counters_move_together(on: Fixture) {
    let writer = Uuid::new_v4();
    let lease = on.store.take_over(&claim(writer, &[], 1)).await.unwrap();
    assert_eq!((lease.epoch, lease.lanes.len()), (1, 0));
    let (mut flusher, row) = on.store.open_lane(&lease, 3).await.unwrap();
    assert_eq!((row.lane, row.last_seq, row.settled(), row.epoch), (3, 0, 0, 1));

    let big = "x".repeat(1 << 20);
    let mut feed = Feed::new(3);
    let batch = feed.batch(&[
        &[record("one"), Record { service: "", host: "", attributes: "", ..record("") }],
        &[Record { service: "zwölf ✓", ..record("𝕦nicode\n\t\"quoted\" \\") }, record(&big)],
        &[Record { ts_us: i64::MAX, ..record("end of time") }, Record { ts_us: i64::MIN, ..record("its start") }],
    ]);
    assert_eq!(flusher.flush(&batch).await.unwrap(), flushed(6, 0));
    let batch = feed.plain(5_000);
    assert_eq!(flusher.flush(&batch).await.unwrap(), flushed(5_000, 0));

    let stored = on.store.lanes(writer).await.unwrap();
    assert_eq!((stored[0].last_seq, stored[0].rows, &stored[0].digest[..]), (4, 5_006, &batch.digest()[..]));
    on.assert_whole(writer, 5_006).await;
    let first = row.lane_id << 44;
    assert_eq!(on.number("SELECT min(id) FROM logs").await, first + 1);
    assert_eq!(on.number("SELECT max(id) FROM logs").await, first + 5_006);
    assert_eq!(on.number("SELECT max(length(message)) FROM logs").await, 1 << 20);
    assert_eq!(on.number("SELECT count(*) FROM logs WHERE attributes IS NULL").await, 1);
    assert_eq!(
        on.number("SELECT id FROM logs WHERE message LIKE '𝕦nicode%\\' ESCAPE '!' AND service = 'zwölf ✓'").await,
        first + 3
    );
}

both! {
    rows_cursor_and_counters_move_together
}
