//! Flushing batches of 20,000 rows into SQLite and PostgreSQL, beside bare inserts of the same rows in the same schema.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use logweir::batcher::BatchBuilder;
use logweir::config::{BatchLimits, Config, DatabaseUrl};
use logweir::message::{Batch, BatchFrame};
use logweir::store::{Claim, LaneWriter, LogStore};
use logweir_benches::bare::Rows;
use logweir_benches::corpus::Corpus;
use logweir_benches::ratio::timed_ratio;
use logweir_benches::subject::{Database, on_a_runtime};
use uuid::Uuid;

const BATCHES: u64 = 5;
const ROWS_MAX: usize = 20_000;
const NOW_US: i64 = 1_700_000_000_000_000;

/// Consecutive batches of one lane.
struct Lane {
    corpus: Corpus,
    seq: u64,
    records: u64,
    writer: Box<dyn LaneWriter>,
}

impl Lane {
    async fn open(url: DatabaseUrl, corpus: &Corpus) -> Self {
        let mut config = Config::in_dir("unused");
        config.database.url = url;
        let store: Arc<dyn LogStore> = logweir::store::open(&config.database).expect("it opens").store();
        store.prepare().await.expect("the schema");
        let claim = Claim {
            writer: Uuid::from_u128(1),
            run: Uuid::from_u128(2),
            runs: Vec::new(),
            owner: "bench".to_owned(),
            tails: Vec::new(),
        };
        let lease = store.take_over(&claim).await.expect("it is ours");
        let (writer, _) = store.open_lane(&lease, 0).await.expect("the lane");
        Self { corpus: corpus.clone(), seq: 0, records: 0, writer }
    }

    fn batch(&mut self) -> Batch {
        let limits = BatchLimits { rows_max: ROWS_MAX, bytes_max: usize::MAX, linger_ms: 0 };
        let mut builder = BatchBuilder::new(0, limits);
        let now = tokio::time::Instant::now();
        let per_batch = ROWS_MAX as u64 / self.corpus.events_per_body();
        for _ in 0..per_batch {
            let chunk = Arc::new(self.corpus.chunk(self.seq));
            self.seq += 1;
            self.records += chunk.len() as u64;
            let frame = BatchFrame { seq: self.seq, lane_records: self.records, payload_crc: 0, chunk };
            let full = builder.push(frame, self.seq - 1, 0, now);
            assert!(full.iter().all(Option::is_none), "the batch has room");
        }
        builder.take().expect("it is open")
    }

    /// Flushes some batches, prepared before the clock runs.
    async fn flush(&mut self) -> Duration {
        let batches: Vec<_> = (0..BATCHES).map(|_| self.batch()).collect();
        let begun = Instant::now();
        for batch in &batches {
            self.writer.flush(batch).await.expect("it is committed");
        }
        begun.elapsed()
    }
}

fn bodies(corpus: &Corpus) -> u64 {
    BATCHES * (ROWS_MAX as u64 / corpus.events_per_body())
}

fn sqlite(corpus: &Corpus) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("bench.db");
    let mut ours = on_a_runtime(Lane::open(DatabaseUrl::Sqlite(path.clone()), corpus));
    let bare = dir.path().join("bare.db");
    let mut connection = bare_sqlite(&bare);
    let mut id = 0;
    let insert = || {
        let mut corpus = corpus.clone();
        let chunks: Vec<_> = (0..bodies(&corpus)).map(|number| corpus.chunk(number)).collect();
        let begun = Instant::now();
        for chunks in chunks.chunks(chunks.len() / BATCHES as usize) {
            let transaction = connection.transaction().expect("BEGIN");
            {
                let mut statement = transaction
                    .prepare_cached("INSERT INTO logs VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)")
                    .expect("the statement");
                for record in chunks.iter().flat_map(logweir_engine::chunk::Chunk::iter) {
                    id += 1;
                    let values = (
                        id,
                        "2026-01-01T00:00:00.000000Z",
                        record.severity.number(),
                        record.service,
                        record.host,
                        record.message,
                        record.attributes,
                    );
                    statement.execute(values).expect("the row");
                }
            }
            transaction.commit().expect("COMMIT");
        }
        begun.elapsed()
    };
    timed_ratio("SQLite flush / bare insert", || on_a_runtime(ours.flush()), insert);
}

/// The same table and index, and the same promises.
fn bare_sqlite(path: &Path) -> rusqlite::Connection {
    let connection = rusqlite::Connection::open(path).expect("it opens");
    connection
        .execute_batch(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;
             CREATE TABLE logs (id INTEGER PRIMARY KEY, ts TEXT NOT NULL, severity INTEGER NOT NULL, service TEXT NOT NULL,
                 host TEXT NOT NULL, message TEXT NOT NULL, attributes TEXT) STRICT;
             CREATE INDEX logs_ts_idx ON logs (ts);",
        )
        .expect("the schema");
    connection
}

fn postgres(corpus: &Corpus) {
    let database = Database::start();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let mut ours = runtime.block_on(Lane::open(DatabaseUrl::Postgres(database.url()), corpus));
    let rows = Rows::new(corpus, bodies(corpus), ROWS_MAX as u64 - corpus.events_per_body());
    let flush = || {
        database.empty();
        runtime.block_on(ours.flush())
    };
    let bare = || {
        database.empty();
        on_a_runtime(rows.copy(&database.url(), 1))
    };
    timed_ratio("PostgreSQL flush / bare COPY, 1 connection", flush, bare);
}

fn main() {
    let corpus = Corpus::of_bodies(300, 64 << 10, NOW_US);
    println!("{BATCHES} batches of {ROWS_MAX} rows a round");
    sqlite(&corpus);
    if Path::new("/usr/lib/postgresql").is_dir() {
        postgres(&corpus);
    } else {
        println!("PostgreSQL is not installed: left out");
    }
}
