//! The SQLite store beside its protocol: retention, the clock, the write-ahead log, queries that end, a file that is
//! removed.

#![cfg(feature = "sqlite")]
// Test helpers unwrap like tests.
#![allow(clippy::unwrap_used)]

use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use logweir_query::facets::Facets;
use logweir_query::hits::{By, Steps};
use logweir_query::page::{Direction, Range};
use logweir_query::{Filter, parse};
use logweir_record::chunk::Chunk;
use logweir_record::record::{Record, Severity};
use logweir_record::timestamp::DAY_US;
use logweir_store::read::{LogReader, ReadError, Sample, Scan};
use logweir_store::throttle::QueryThrottle;
use logweir_store::{
    AnyStore, Batch, BatchFrame, Claim, Database, DatabaseUrl, LaneWriter, LogStore, MaintenanceStep, StoreError, open,
};
use rusqlite::Connection;
use uuid::Uuid;

const DAYS: u32 = 7;
const NOW_US: i64 = 20_000 * DAY_US + DAY_US / 2;
const HOUR: Duration = Duration::from_secs(3600);
const PATIENCE: Duration = Duration::from_secs(120);
const LOG_BYTES: u64 = 16 << 20;

struct File {
    dir: tempfile::TempDir,
    opened: AnyStore,
    store: Arc<dyn LogStore>,
}

impl File {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (opened, store) = opened(dir.path());
        store.prepare().await.unwrap();
        Self { dir, opened, store }
    }

    /// As after a restart.
    fn again(&self) -> Arc<dyn LogStore> {
        opened(self.dir.path()).1
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("logs.db")
    }

    /// A connection like that of another program.
    fn other(&self) -> Connection {
        let connection = Connection::open(self.path()).unwrap();
        connection.busy_timeout(PATIENCE).unwrap();
        connection
    }

    fn number(&self, sql: &str) -> i64 {
        self.other().query_row(sql, [], |row| row.get(0)).unwrap()
    }

    /// Inserts `rows` rows and their counters, a minute each, in the minutes from `ts_us` on.
    fn insert(&self, rows: u32, ts_us: i64) {
        let id = self.number("SELECT coalesce(max(id), 0) FROM logs");
        let from_s = ts_us.div_euclid(1_000_000);
        self.other()
            .execute_batch(&format!(
                "BEGIN;
                 INSERT INTO logs (id, ts, severity, service, host, message)
                     WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {rows})
                     SELECT {id} + i, strftime('%Y-%m-%dT%H:%M:%S.000000Z', {from_s} + 60 * (i % 1000), 'unixepoch'), 9,
                         's', 'h', 'a message of the usual length, or nearly so: ' || i FROM n;
                 INSERT INTO log_volume (minute, service, severity, lane_id, records)
                     SELECT ts, service, severity, 1, count(*) FROM logs WHERE id > {id} GROUP BY ts
                     ON CONFLICT DO UPDATE SET records = records + excluded.records;
                 COMMIT"
            ))
            .unwrap();
    }

    fn rows(&self) -> i64 {
        let rows = self.number("SELECT count(*) FROM logs");
        assert_eq!(
            self.number("SELECT coalesce(sum(records), 0) FROM log_volume"),
            rows,
            "the counters match the rows"
        );
        rows
    }

    fn log_bytes(&self) -> u64 {
        std::fs::metadata(self.dir.path().join("logs.db-wal")).map_or(0, |metadata| metadata.len())
    }

    fn reader(&self, timeout: Duration) -> Arc<dyn LogReader> {
        self.opened.reader(timeout, QueryThrottle::default()).unwrap()
    }

    async fn lane(&self) -> Lane {
        let lease = self.store.acquire_lease(&Claim::new(Uuid::new_v4(), Uuid::new_v4(), "test")).await.unwrap();
        let (writer, row) = self.store.open_lane(&lease, 0).await.unwrap();
        Lane { writer, seq: row.last_seq, records: row.accounted() }
    }
}

fn opened(dir: &Path) -> (AnyStore, Arc<dyn LogStore>) {
    let mut database = Database::new(DatabaseUrl::Sqlite(dir.join("logs.db")));
    database.retention_days = DAYS;
    let opened = open(&database).unwrap();
    let store = opened.store();
    (opened, store)
}

struct Lane {
    writer: Box<dyn LaneWriter>,
    seq: u64,
    records: u64,
}

impl Lane {
    async fn flush(&mut self, records: usize, message: &str) -> Result<(), StoreError> {
        let mut chunk = Chunk::with_capacity(NOW_US, records, 0);
        let record =
            Record { ts_us: NOW_US, severity: Severity::INFO, service: "s", host: "h", message, attributes: "" };
        (0..records).for_each(|_| chunk.push(record));
        let (from_seq, from_records) = (self.seq, self.records);
        let (seq, lane_records) = (from_seq + 1, from_records + records as u64);
        let frame = BatchFrame { seq, lane_records, payload_crc: 1, dedup_key: None, chunk: Arc::new(chunk) };
        let batch = Batch::new(0, from_seq, from_records, 0, vec![frame]);
        self.writer.flush(&batch).await?;
        (self.seq, self.records) = (seq, lane_records);
        Ok(())
    }
}

fn all(steps: Vec<MaintenanceStep>) {
    for MaintenanceStep { name, result } in steps {
        result.unwrap_or_else(|error| panic!("{name}: {error}"));
    }
}

/// The error of one step; all others must have succeeded.
fn error_of(step: &str, steps: Vec<MaintenanceStep>) -> String {
    let failed = steps.into_iter().filter_map(|done| Some((done.name, done.result.err()?)));
    let failed: Vec<_> = failed.collect();
    let [(name, error)] = &failed[..] else { panic!("{failed:?}") };
    assert_eq!(*name, step, "{error}");
    error.to_string()
}

#[tokio::test]
async fn a_round_deletes_everything_that_has_expired_and_lets_flushes_in() {
    let file = File::new().await;
    file.insert(505_000, NOW_US - 30 * DAY_US);
    file.insert(1, NOW_US);
    let mut lane = file.lane().await;
    let ended = Arc::new(AtomicBool::new(false));
    let round = tokio::spawn({
        let (store, ended) = (file.store.clone(), ended.clone());
        async move {
            all(store.maintain(NOW_US).await);
            ended.store(true, Ordering::Release);
        }
    });
    let mut flushes = 0;
    while !ended.load(Ordering::Acquire) {
        lane.flush(10, "in between").await.unwrap();
        flushes += 1;
    }
    round.await.unwrap();
    assert_eq!(file.rows(), 1 + 10 * flushes);
    assert!(flushes > 5, "{flushes} flushes had their turn");
}

#[tokio::test]
async fn a_wrong_clock_deletes_nothing_and_the_step_says_what_to_do() {
    let file = File::new().await;
    for days in [2, 5, 6] {
        file.insert(100, NOW_US - days * DAY_US);
    }
    all(file.store.maintain(NOW_US).await);
    let wrong_us = NOW_US + 400 * DAY_US;
    // While it runs, and after each restart.
    for store in [file.store.clone(), file.again(), file.again()] {
        store.prepare().await.unwrap();
        let error = error_of("clock", store.maintain(wrong_us).await);
        assert!(error.contains("days ahead") && error.contains("set it"), "{error}");
        assert_eq!(file.rows(), 300);
    }
    all(file.store.maintain(NOW_US + DAY_US).await);
    assert_eq!(file.rows(), 300, "those of six days ago are seven days old at some minute of the day");
    all(file.store.maintain(NOW_US + 2 * DAY_US).await);
    assert_eq!(file.rows(), 200, "it is right again, and retention goes on");
}

#[tokio::test]
async fn a_file_of_an_earlier_version_does_not_trust_a_wrong_clock_either() {
    let file = File::new().await;
    file.insert(100, NOW_US - DAY_US);
    file.insert(100, NOW_US);
    file.insert(1, 253_402_300_700_000_000);
    file.other().execute_batch("DELETE FROM logweir_clock").unwrap();
    assert!(error_of("clock", file.store.maintain(NOW_US + 400 * DAY_US).await).contains("days ahead"));
    assert_eq!(file.rows(), 201);
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_was_off_for_a_month_catches_up_by_itself() {
    let file = File::new().await;
    for days in 0..7 {
        file.insert(100, NOW_US - days * DAY_US);
    }
    all(file.store.maintain(NOW_US).await);
    let store = file.again();
    let on_us = NOW_US + 31 * DAY_US;
    file.insert(100, on_us);
    let mut hours = 0;
    let hour_us = i64::try_from(HOUR.as_micros()).unwrap();
    while let Some(error) = store.maintain(on_us + hours * hour_us).await.into_iter().find_map(|step| step.result.err())
    {
        // Time passes as ever.
        assert!(hours > 12 || file.rows() >= 700, "{} rows after {hours} hours: {error}", file.rows());
        hours += 1;
        assert!(hours < 48, "{error}");
        tokio::time::advance(HOUR).await;
    }
    assert!(hours > 12, "{hours}");
    assert_eq!(file.rows(), 100, "after {hours} hours");
}

#[tokio::test]
async fn neither_1970_nor_9999_moves_what_expires_and_the_newest_day_stays() {
    let file = File::new().await;
    all(file.store.maintain(NOW_US).await);
    file.insert(10, 0);
    file.insert(10, 253_402_000_000_000_000);
    file.insert(10, NOW_US - 6 * DAY_US);
    file.insert(10, NOW_US - 30 * DAY_US);
    all(file.store.maintain(NOW_US).await);
    assert_eq!(file.rows(), 20);
    assert_eq!(file.number("SELECT count(*) FROM logs WHERE ts < '9999'"), 10, "those of six days ago");

    let quiet = File::new().await;
    quiet.insert(10, NOW_US - 20 * DAY_US);
    quiet.insert(10, NOW_US - 30 * DAY_US);
    all(quiet.store.maintain(NOW_US).await);
    assert_eq!(quiet.rows(), 10, "nothing came since, so the newest are kept");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_log_is_bounded_while_queries_overlap_and_shrinks() {
    let file = File::new().await;
    let mut lane = file.lane().await;
    let message = "a long message ".repeat(1_000);
    lane.flush(1_000, &message).await.unwrap();
    let ended = Arc::new(AtomicBool::new(false));
    let queries: Vec<_> = (0..3)
        .map(|_| {
            let (reader, ended) = (file.reader(HOUR), ended.clone());
            tokio::spawn(async move {
                let filter = parse("\"no such message\"").unwrap();
                let scan = scan(filter);
                let mut queries = 0;
                while !ended.load(Ordering::Acquire) {
                    reader.records(&scan).await.unwrap();
                    queries += 1;
                }
                queries
            })
        })
        .collect();
    // SQLite itself cuts the log to twice `LOG_BYTES`, and only at a moment without a read. How large it grows between two
    // cuts depends on the machine's speed: one that waits for reads in vain is tried again after a pause.
    let (mut cuts, mut is_large) = (0, false);
    let deadline = Instant::now() + 5 * PATIENCE;
    while cuts < 2 {
        assert!(Instant::now() < deadline, "the log was cut {cuts} times, and has {} bytes", file.log_bytes());
        // While it is too large, it is written to, but hardly grows.
        let is_too_large = file.log_bytes() > 8 * LOG_BYTES;
        lane.flush(if is_too_large { 1 } else { 200 }, &message).await.unwrap();
        if is_too_large {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        match file.log_bytes() {
            bytes if bytes > 2 * LOG_BYTES => is_large = true,
            bytes if bytes <= LOG_BYTES => cuts += u32::from(std::mem::take(&mut is_large)),
            _ => {}
        }
    }
    ended.store(true, Ordering::Release);
    for query in queries {
        assert!(query.await.unwrap() > 0, "queries ran beside the flushes");
    }
    all(file.store.maintain(NOW_US).await);
    assert!(file.log_bytes() <= LOG_BYTES, "{} bytes", file.log_bytes());
}

#[tokio::test]
async fn a_transaction_of_another_program_that_keeps_the_log_is_named() {
    let file = File::new().await;
    let mut lane = file.lane().await;
    let other = file.other();
    other.execute_batch("BEGIN; SELECT count(*) FROM logs").unwrap();
    let message = "x".repeat(1 << 20);
    while file.log_bytes() <= 5 * LOG_BYTES {
        lane.flush(10, &message).await.unwrap();
    }
    let error = error_of("wal", file.store.maintain(NOW_US).await);
    assert!(error.contains("logs.db-wal") && error.contains("end the program"), "{error}");
    other.execute_batch("COMMIT").unwrap();
    all(file.store.maintain(NOW_US).await);
    assert!(file.log_bytes() <= LOG_BYTES, "{} bytes", file.log_bytes());
}

fn scan(filter: Filter) -> Scan {
    let range = Range { start_us: 0, end_us: i64::MAX };
    Scan { range, filter, direction: Direction::Backward, after: None, limit: 10, bytes_max: usize::MAX }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_query_that_renews_its_snapshot_counts_what_the_first_one_had() {
    const RECORDS: u64 = 2_000;
    let file = File::new().await;
    let mut lane = file.lane().await;
    let message = "the quick brown fox jumps over the lazy dog";
    for _ in 0..100 {
        lane.flush(usize::try_from(RECORDS).unwrap(), message).await.unwrap();
    }
    // Again if the query was so quick, or the disk so slow, that hardly anything was stored meanwhile.
    for attempt in 1.. {
        if count_while_records_arrive(&file, &mut lane, RECORDS, message).await {
            break;
        }
        assert!(attempt < 10, "the query never had to renew its snapshot");
    }
}

/// Returns whether records were stored while a query counted those that were there.
async fn count_while_records_arrive(file: &File, lane: &mut Lane, each: u64, message: &str) -> bool {
    let ended = Arc::new(AtomicBool::new(false));
    let query = tokio::spawn({
        let (reader, ended) = (file.reader(HOUR), ended.clone());
        async move {
            let filter = parse("fox -cat").unwrap();
            let day = Range { start_us: NOW_US - DAY_US, end_us: NOW_US + DAY_US };
            let steps = Steps::over(day, Some(2 * DAY_US)).unwrap();
            let counted = reader.count(&filter, steps, By::Severity).await.unwrap();
            ended.store(true, Ordering::Release);
            (counted.value.iter().map(|(.., records)| records).sum::<u64>(), counted.lanes[0].last_seq)
        }
    });
    // Not without end: the query passes over what was stored meanwhile.
    for _ in 0..150 {
        if !ended.load(Ordering::Acquire) {
            lane.flush(usize::try_from(each).unwrap(), message).await.unwrap();
        }
    }
    let (records, last_seq) = query.await.unwrap();
    assert_eq!(records, last_seq * each);
    lane.seq > last_seq + 1
}

type Read = fn(Arc<dyn LogReader>) -> Pin<Box<dyn Future<Output = Result<(), ReadError>>>>;

/// Every way to read.
fn reads() -> Vec<(&'static str, Read)> {
    const RANGE: Range = Range { start_us: 0, end_us: 4_000_000_000_000_000 };
    fn sample() -> Sample {
        Sample { range: RANGE, filter: parse("nothing").unwrap(), records_max: 1_000 }
    }
    fn steps() -> Steps {
        Steps::over(RANGE, Some(RANGE.end_us)).unwrap()
    }
    vec![
        ("records", |on| Box::pin(async move { on.records(&scan(parse("nothing").unwrap())).await.map(drop) })),
        ("count", |on| Box::pin(async move { on.count(&Filter::All, steps(), By::Severity).await.map(drop) })),
        ("volume", |on| Box::pin(async move { on.volume(&Filter::All, steps(), By::Service).await.map(drop) })),
        ("total", |on| Box::pin(async move { on.total(RANGE).await.map(drop) })),
        ("services", |on| Box::pin(async move { on.services(RANGE).await.map(drop) })),
        ("facets", |on| {
            Box::pin(async move { on.facets(&sample(), Facets::of(["service".to_owned()])).await.map(drop) })
        }),
        ("names", |on| Box::pin(async move { on.names(&sample()).await.map(drop) })),
    ]
}

/// With one thread for all blocking work, a query that goes on keeps everything else from running.
#[test]
fn every_query_ends_with_its_timeout_and_with_its_client() {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).max_blocking_threads(1).enable_all().build();
    runtime.unwrap().block_on(async {
        let file = File::new().await;
        // Tables without an end.
        file.other()
            .execute_batch(
                "DROP TABLE logs;
                 DROP TABLE log_volume;
                 CREATE VIEW logs AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n)
                     SELECT i AS id, '2026-11-30T00:00:00.000000Z' AS ts, 9 AS severity, 's' AS service, 'h' AS host,
                         'm' AS message, NULL AS attributes FROM n WHERE i < 0;
                 CREATE VIEW log_volume AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n)
                     SELECT '2026-11-30T00:00:00.000000Z' AS minute, 's' AS service, 9 AS severity, 1 AS lane_id,
                         i AS records FROM n WHERE i < 0",
            )
            .unwrap();
        for (name, read) in reads() {
            let error = read(file.reader(Duration::from_millis(100))).await.unwrap_err();
            assert!(matches!(error, ReadError::Timeout(100)), "{name}: {error}");
            is_free(name).await;

            let mut dropped = read(file.reader(PATIENCE));
            let polled = tokio::time::timeout(Duration::from_millis(100), &mut dropped).await;
            assert!(polled.is_err(), "{name}: {polled:?}");
            drop(dropped);
            is_free(name).await;
        }
    });
}

async fn is_free(name: &str) {
    let free = tokio::time::timeout(PATIENCE, tokio::task::spawn_blocking(|| ())).await;
    free.unwrap_or_else(|_| panic!("{name}: its thread still reads")).unwrap();
}

#[tokio::test]
async fn nothing_is_confirmed_in_a_file_that_was_removed_or_replaced() {
    let file = File::new().await;
    let mut lane = file.lane().await;
    lane.flush(10, "m").await.unwrap();
    let aside = file.dir.path().join("aside.db");
    std::fs::rename(file.path(), &aside).unwrap();
    let error = lane.flush(10, "m").await.unwrap_err();
    assert!(matches!(&error, StoreError::Systemic(text) if text.contains("was removed or replaced")), "{error}");
    std::fs::write(file.path(), "another file").unwrap();
    let error = lane.flush(10, "m").await.unwrap_err();
    assert!(matches!(&error, StoreError::Systemic(text) if text.contains("restart logweir")), "{error}");
    // It was committed, and is confirmed as soon as the file is back.
    std::fs::rename(&aside, file.path()).unwrap();
    let deadline = Instant::now() + PATIENCE;
    while let Err(error) = lane.flush(10, "m").await {
        assert!(Instant::now() < deadline, "{error}");
    }
    assert_eq!(file.number("SELECT count(*) FROM logs"), 20);
}

#[tokio::test]
async fn twenty_runs_use_one_identifier_for_their_lane() {
    let file = File::new().await;
    let mut claim = Claim::new(Uuid::new_v4(), Uuid::new_v4(), "test");
    for _ in 0..20 {
        let store = file.again();
        store.open_lane(&store.acquire_lease(&claim).await.unwrap(), 0).await.unwrap();
        claim.runs.push(claim.run);
        claim.run = Uuid::new_v4();
    }
    assert_eq!(file.number("SELECT seq FROM sqlite_sequence WHERE name = 'logweir_lane'"), 1);
}
