//! Flushing batches of 20,000 rows to SQLite and PostgreSQL, compared with bare inserts of the same rows in the same
//! schema; and of requests with an idempotency key, compared with the same requests without.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use logweir::config::Config;
use logweir_benches::bare::Rows;
use logweir_benches::corpus::Corpus;
use logweir_benches::ratio::timed_ratio;
use logweir_benches::subject::{Database, on_a_runtime};
use logweir_engine::journal::{DedupKey, DedupKind};
use logweir_record::chunk::Chunk;
use logweir_store::DatabaseUrl;
use logweir_store::{Batch, BatchFrame};
use logweir_store::{Claim, LaneWriter};
use uuid::Uuid;

mod bare_sqlite;

use bare_sqlite::{BareSqlite, ROWS_MAX};

/// Batches per round.
const SQLITE_BATCHES: u64 = 2;
/// More, since each round of the bare COPY starts with a new backend, which first has to look up the table.
const POSTGRES_BATCHES: u64 = 5;

/// A lane of a logweir store.
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
        let store = logweir_store::open(&config.database).expect("the store opens").store();
        store.prepare().await.expect("the schema");
        let claim = Claim::new(Uuid::from_u128(1), Uuid::from_u128(2), "bench");
        let lease = store.acquire_lease(&claim).await.expect("the lease is acquired");
        let (writer, _) = store.open_lane(&lease, 0).await.expect("the lane");
        Self { corpus: corpus.clone(), seq: 0, records: 0, writer }
    }

    /// Returns the next batch: the rows of as many bodies as fit.
    fn batch(&mut self) -> Batch {
        let (from_seq, from_records) = (self.seq, self.records);
        let frames = (0..bodies(&self.corpus)).map(|_| {
            let chunk = Arc::new(self.corpus.chunk(self.seq));
            self.seq += 1;
            self.records += chunk.len() as u64;
            BatchFrame { seq: self.seq, lane_records: self.records, payload_crc: 0, dedup_key: None, chunk }
        });
        Batch::new(0, from_seq, from_records, 0, frames.collect())
    }

    /// Returns the next batch with its bodies divided into requests of `records` records.
    fn requests(&mut self, records: usize, keyed: bool) -> Batch {
        let batch = self.batch();
        let (mut frames, mut seq, mut lane_records) = (Vec::new(), self.seq, batch.from_records);
        for chunk in batch.frames().iter().map(|frame| &frame.chunk) {
            for first in (0..chunk.len()).step_by(records) {
                let mut part = Chunk::default();
                (first..chunk.len().min(first + records))
                    .filter_map(|nth| chunk.get(nth))
                    .for_each(|one| part.push(one));
                (seq, lane_records) = (seq + 1, lane_records + part.len() as u64);
                let key = DedupKey { key: Uuid::new_v4().into_bytes(), kind: DedupKind::Request { body: Some(seq) } };
                let dedup_key = keyed.then_some(key);
                frames.push(BatchFrame { seq, lane_records, payload_crc: 0, dedup_key, chunk: Arc::new(part) });
            }
        }
        self.seq = seq;
        Batch::new(0, batch.from_seq, batch.from_records, 0, frames)
    }

    /// Flushes requests that are prepared before the clock starts.
    async fn flush_requests(&mut self, batches: u64, records: usize, keyed: bool) -> Duration {
        let batches: Vec<_> = (0..batches).map(|_| self.requests(records, keyed)).collect();
        self.flush_all(&batches).await
    }

    /// Flushes batches that are prepared before the clock starts.
    async fn flush(&mut self, batches: u64) -> Duration {
        let batches: Vec<_> = (0..batches).map(|_| self.batch()).collect();
        self.flush_all(&batches).await
    }

    async fn flush_all(&mut self, batches: &[Batch]) -> Duration {
        let started = Instant::now();
        for batch in batches {
            let flushed = self.writer.flush(batch).await.expect("the batch is committed");
            assert_eq!(flushed.rows, batch.records(), "not every record was stored as a row");
        }
        started.elapsed()
    }
}

/// Records of a request: small ones, and as many as a shipper sends at once.
const REQUESTS: [usize; 2] = [1, 300];

/// Bodies per batch.
fn bodies(corpus: &Corpus) -> u64 {
    ROWS_MAX / corpus.events_per_body()
}

fn corpus() -> Corpus {
    Corpus::of_bodies(300, 64 << 10, 1_700_000_000_000_000)
}

/// Runs both alternately for the ratio, then each alone for its duration.
fn beside(
    criterion: &mut Criterion,
    store: &str,
    limit: &str,
    batches: u64,
    mut ours: impl FnMut(u64) -> Duration,
    mut bare: impl FnMut(u64) -> Duration,
) {
    timed_ratio(&format!("{store} flush / {limit}"), || ours(batches), || bare(batches));
    let mut group = criterion.benchmark_group(format!("stores/{store}"));
    group.sample_size(10).sampling_mode(SamplingMode::Flat);
    group.warm_up_time(Duration::from_millis(100)).measurement_time(Duration::from_secs(1));
    group.throughput(Throughput::Elements(batches * bodies(&corpus()) * corpus().events_per_body()));
    group.bench_function("flush", |bencher| bencher.iter_custom(|count| ours(count * batches)));
    group.bench_function(limit, |bencher| bencher.iter_custom(|count| bare(count * batches)));
    group.finish();
}

fn sqlite(criterion: &mut Criterion) {
    let corpus = corpus();
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a temporary directory");
    let mut bare = BareSqlite::open(&dir.path().join("bare.db"), &corpus);
    let mut ours = on_a_runtime(Lane::open(DatabaseUrl::Sqlite(dir.path().join("ours.db")), &corpus));
    let flush = |batches| on_a_runtime(ours.flush(batches));
    let insert = |batches| bare.insert(batches * bodies(&corpus));
    beside(criterion, "SQLite", "bare inserts", SQLITE_BATCHES, flush, insert);
    for records in REQUESTS {
        let name = format!("SQLite requests of {records}, keyed / not");
        let ours = std::cell::RefCell::new(&mut ours);
        let flush = |keyed| on_a_runtime(ours.borrow_mut().flush_requests(SQLITE_BATCHES, records, keyed));
        timed_ratio(&name, || flush(true), || flush(false));
    }
}

fn postgres(criterion: &mut Criterion) {
    if !Path::new("/usr/lib/postgresql").is_dir() {
        println!("skipped: PostgreSQL is not installed");
        return;
    }
    let corpus = corpus();
    let database = Database::start();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let mut ours = runtime.block_on(Lane::open(DatabaseUrl::Postgres(database.url()), &corpus));
    let flush = |batches| {
        database.empty();
        runtime.block_on(ours.flush(batches))
    };
    let bare = |batches| {
        let rows = Rows::new(&corpus, batches * bodies(&corpus), bodies(&corpus) * corpus.events_per_body());
        database.empty();
        on_a_runtime(rows.copy(&database.url(), 1))
    };
    beside(criterion, "PostgreSQL", "bare COPY", POSTGRES_BATCHES, flush, bare);
    for records in REQUESTS {
        let name = format!("PostgreSQL requests of {records}, keyed / not");
        let ours = std::cell::RefCell::new(&mut ours);
        let flush = |keyed| {
            database.empty();
            runtime.block_on(ours.borrow_mut().flush_requests(POSTGRES_BATCHES, records, keyed))
        };
        timed_ratio(&name, || flush(true), || flush(false));
    }
}

criterion_group!(benches, sqlite, postgres);
criterion_main!(benches);
