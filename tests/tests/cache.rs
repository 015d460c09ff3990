//! The hot cache: applied batches can be read, nothing counts twice, and any bad state of Redis is an error that the
//! cache recovers from by itself.

#![allow(clippy::unwrap_used)] // clippy exempts test functions but not their helpers

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use logweir::cache::{CacheError, HotCache, Origin};
use logweir::config::{Cache as Settings, CacheUrl, Config};
use logweir::internal::{CacheFeed, MemoryCache, open_cache};
use logweir_engine::clock;
use logweir_engine::journal::LaneId;
use logweir_record::chunk::Chunk;
use logweir_record::record::{Record, Severity};
use logweir_store::{Batch, BatchFrame};
use logweir_tests::client::Load;
use logweir_tests::process::Server;
use logweir_tests::redis::{Authority, Redis, idle_connection};
use logweir_tests::scenario::{PATIENCE, Scenario, on_postgres};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::Value;
use uuid::Uuid;

const MINUTE_US: i64 = 60_000_000;
/// Long, so that a loaded machine does not fail a test; short where the timeout itself is tested.
const TIMEOUT_MS: u64 = 20_000;
const TIMEOUT_SHORT_MS: u64 = 300;

fn settings() -> Settings {
    with(|_| {})
}

fn with(change: impl FnOnce(&mut Settings)) -> Settings {
    let mut settings = Config::default().cache;
    (settings.recent_records, settings.services_max) = (7, 50);
    (settings.timeout_ms, settings.ttl_s) = (TIMEOUT_MS, 4 * 3600);
    change(&mut settings);
    settings
}

async fn connect(redis: &Redis, settings: &Settings) -> Arc<dyn HotCache> {
    open(redis.url(), settings, None).await.unwrap()
}

async fn open(url: String, settings: &Settings, ca_file: Option<&Path>) -> Result<Arc<dyn HotCache>, CacheError> {
    let mut settings = settings.clone();
    settings.url = CacheUrl::Redis(url);
    open_cache(&settings, ca_file).await
}

/// The origin of a separate journal.
fn origin() -> Origin {
    Origin { writer: Uuid::new_v4(), run: Uuid::new_v4() }
}

/// Applies until it succeeds, which must happen without intervention.
async fn applies_again(cache: &dyn HotCache, writer: Origin, batch: &Batch) {
    let deadline = Instant::now() + PATIENCE;
    while let Err(error) = cache.apply(writer, batch).await {
        assert!(Instant::now() < deadline, "the cache does not recover: {error}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Applies until it fails, and returns the error.
async fn apply_until_error(cache: &dyn HotCache, writer: Origin, batches: &mut Journal) -> CacheError {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let batch = batches.batch(0, 1);
        if let Err(error) = cache.apply(writer, &batch).await {
            return error;
        }
        assert!(Instant::now() < deadline, "applying does not fail");
    }
}

/// Creates the frames of a writer's lanes, numbered like the journal's: one sequence for all lanes.
struct Journal {
    rng: StdRng,
    now_us: i64,
    seq: u64,
    frames: BTreeMap<LaneId, Vec<BatchFrame>>,
}

impl Journal {
    fn new(seed: u64) -> Self {
        Self { rng: StdRng::seed_from_u64(seed), now_us: clock::wall_us(), seq: 0, frames: BTreeMap::new() }
    }

    /// The next `frames` frames of `lane`, with random services, minutes and severities.
    fn batch(&mut self, lane: LaneId, frames: usize) -> Batch {
        self.batch_of(lane, frames, |rng| ["api", "web: ui", "", "зонт\0\"x"][rng.random_range(0..4)].to_owned())
    }

    fn batch_of(&mut self, lane: LaneId, frames: usize, mut service: impl FnMut(&mut StdRng) -> String) -> Batch {
        let from = self.frames.get(&lane).map_or(0, Vec::len);
        for _ in 0..frames {
            self.now_us += 1;
            self.seq += self.rng.random_range(1..4);
            let records = self.rng.random_range(1..12);
            let mut chunk = Chunk::with_capacity(self.now_us, records, 0);
            for row in 0..records {
                let ts_us = self.now_us - self.rng.random_range(0..90) * MINUTE_US;
                let severity = Severity::from_number(self.rng.random_range(0..=24)).unwrap();
                let message = format!("record {} {row}", self.seq);
                let attributes = ["", r#"{"k":[1,"a"]}"#][self.rng.random_range(0..2)];
                let service = &service(&mut self.rng);
                chunk.push(Record { ts_us, severity, service, host: "h", message: &message, attributes });
            }
            let frame =
                BatchFrame { seq: self.seq, lane_records: 0, payload_crc: 0, dedup_key: None, chunk: Arc::new(chunk) };
            self.frames.entry(lane).or_default().push(frame);
        }
        self.replay(lane, from, from + frames)
    }

    /// The lane's frames from the `from`-th up to, not including, the `to`-th: a batch of a replay.
    fn replay(&self, lane: LaneId, from: usize, to: usize) -> Batch {
        let frames = &self.frames[&lane];
        let from_seq = from.checked_sub(1).map_or(0, |before| frames[before].seq);
        Batch::new(lane, from_seq, 0, 0, frames[from..to].to_vec())
    }
}

/// The expected contents of a cache, by the simplest implementation.
#[derive(Default)]
struct Model {
    /// Latest first.
    recent: BTreeMap<String, Vec<(LaneId, u64, usize, String)>>,
    volume: BTreeMap<String, BTreeMap<(i64, u8), u64>>,
}

impl Model {
    fn apply(&mut self, batch: &Batch) {
        for frame in batch.frames() {
            for (row, record) in frame.chunk.iter().enumerate() {
                let recent = self.recent.entry(record.service.to_owned()).or_default();
                recent.insert(0, (batch.lane, frame.seq, row, record.message.to_owned()));
                let minute_us = record.ts_us.div_euclid(MINUTE_US) * MINUTE_US;
                let volume = self.volume.entry(record.service.to_owned()).or_default();
                *volume.entry((minute_us, record.severity.number())).or_default() += 1;
            }
        }
    }

    async fn assert_equals(&self, cache: &dyn HotCache, settings: &Settings, when: &str) {
        let services: BTreeSet<_> = cache.services().await.unwrap().into_iter().collect();
        assert_eq!(services, self.recent.keys().cloned().collect(), "services {when}");
        for (service, expected) in &self.recent {
            let recent = cache.recent(service, usize::MAX).await.unwrap();
            let recent: Vec<_> = recent.iter().map(|text| identity(text, service)).collect();
            assert_eq!(recent, expected[..expected.len().min(settings.recent_records)], "{service} {when}");
        }
        for (service, expected) in &self.volume {
            let volume = cache.volume(service, i64::MIN / 2).await.unwrap();
            let expected: Vec<_> =
                expected.iter().map(|(&(minute, severity), &count)| (minute, severity, count)).collect();
            assert_eq!(volume, expected, "volume of {service} {when}");
        }
    }
}

fn identity(text: &str, service: &str) -> (LaneId, u64, usize, String) {
    let value: Value = serde_json::from_str(text).unwrap();
    assert_eq!(value["service"], service, "{text}");
    assert_eq!(value["host"], "h", "{text}");
    assert!(value["attributes"] == serde_json::json!({}) || value["attributes"]["k"][1] == "a", "{text}");
    let number = |key: &str| value[key].as_u64().unwrap();
    let lane = LaneId::try_from(number("lane")).unwrap();
    (lane, number("seq"), usize::try_from(number("row")).unwrap(), value["message"].as_str().unwrap().to_owned())
}

/// Checks the behavior that every cache must have.
async fn check(cache: &dyn HotCache, settings: &Settings) {
    let (mut journal, mut model) = (Journal::new(1), Model::default());
    let writer = origin();
    cache.ping().await.unwrap();
    model.assert_equals(cache, settings, "initially").await;

    for lane in [0, 1, 0, 0, 7, 1] {
        let batch = journal.batch(lane, 3);
        cache.apply(writer, &batch).await.unwrap();
        model.apply(&batch);
    }
    model.assert_equals(cache, settings, "after six batches of three lanes").await;

    for _ in 0..2 {
        for (from, to) in [(0, 9), (6, 9), (0, 3), (4, 5)] {
            cache.apply(writer, &journal.replay(0, from, to)).await.unwrap();
        }
    }
    model.assert_equals(cache, settings, "after replays").await;

    let fresh = journal.batch(0, 4);
    model.apply(&fresh);
    cache.apply(writer, &journal.replay(0, 5, 11)).await.unwrap();
    cache.apply(writer, &journal.replay(0, 0, 13)).await.unwrap();
    model.assert_equals(cache, settings, "after batches that start before the cursor and end after it").await;
    cache.apply(writer, &fresh).await.unwrap();
    model.assert_equals(cache, settings, "after the same batch again").await;

    let (mut other, other_writer) = (Journal::new(2), origin());
    let batch = other.batch(0, 2);
    cache.apply(other_writer, &batch).await.unwrap();
    model.apply(&batch);
    model.assert_equals(cache, settings, "after another writer's batch with the same sequence numbers").await;

    let recent = cache.recent("api", usize::MAX).await.unwrap();
    assert_eq!(cache.recent("api", 2).await.unwrap(), recent[..2]);
    assert_eq!(cache.recent("api", 0).await.unwrap(), [""; 0]);
    assert_eq!(cache.recent("unknown", 10).await.unwrap(), [""; 0]);
    assert_eq!(cache.volume("unknown", 0).await.unwrap(), []);
    let all = cache.volume("api", 0).await.unwrap();
    let since_us = clock::wall_us() - 30 * MINUTE_US;
    let since: Vec<_> = all.iter().copied().filter(|(minute, ..)| *minute > since_us - MINUTE_US).collect();
    assert!(since.len() < all.len());
    assert_eq!(cache.volume("api", since_us).await.unwrap(), since);
    assert_eq!(cache.volume("api", i64::MAX).await.unwrap(), []);
}

/// The least recently seen service is removed with its data.
async fn check_services_max(cache: &dyn HotCache, settings: &Settings) {
    let (mut journal, writer) = (Journal::new(3), origin());
    for number in 0..settings.services_max + 3 {
        // `steady` is seen in every batch; the others once each.
        let name = format!("s{number:02}");
        let mut names = [name, "steady".to_owned()].into_iter().cycle();
        cache.apply(writer, &journal.batch_of(0, 6, |_| names.next().unwrap())).await.unwrap();
    }
    let services = cache.services().await.unwrap();
    let mut expected: Vec<_> = (4..settings.services_max + 3).map(|number| format!("s{number:02}")).collect();
    expected.push("steady".to_owned());
    assert_eq!(services.iter().cloned().collect::<BTreeSet<_>>(), expected.into_iter().collect());
    for removed in ["s00", "s03"] {
        assert_eq!(cache.recent(removed, 10).await.unwrap(), [""; 0]);
        assert_eq!(cache.volume(removed, 0).await.unwrap(), []);
    }
    assert!(!cache.recent("s04", 10).await.unwrap().is_empty());

    let mut flood = 0..;
    let batch = journal.batch_of(0, 40, |_| format!("flood {}", flood.next().unwrap()));
    cache.apply(writer, &batch).await.unwrap();
    assert_eq!(cache.services().await.unwrap().len(), settings.services_max);
}

#[tokio::test]
async fn the_memory_cache_applies_each_batch_once() {
    check(&MemoryCache::new(&settings()), &settings()).await;
}

#[tokio::test]
async fn redis_applies_each_batch_once() {
    let redis = Redis::start();
    check(&*connect(&redis, &settings()).await, &settings()).await;
}

#[tokio::test]
async fn redis_cluster_is_named() {
    let redis = Redis::start_with(&["--cluster-enabled", "yes"]);
    // Without slots, and with all of them.
    for slots in [false, true] {
        if slots {
            redis.command(&["CLUSTER", "ADDSLOTSRANGE", "0", "16383"]);
        }
        let cache = connect(&redis, &settings()).await;
        let mut journal = Journal::new(5);
        let deadline = Instant::now() + PATIENCE;
        // The server takes a moment until it believes its slots.
        loop {
            let batch = journal.batch_of(0, 3, |_| "cart".to_owned());
            let error = cache.apply(origin(), &batch).await.unwrap_err();
            let word = if slots { "CROSSSLOT" } else { "CLUSTERDOWN" };
            assert_eq!(error.reason, "unsupported", "{error}");
            assert!(error.detail.contains("Redis Cluster is not supported"), "{error}");
            if error.detail.contains(word) {
                break;
            }
            assert!(Instant::now() < deadline, "{error}");
        }
    }
}

#[tokio::test]
async fn the_memory_cache_keeps_the_services_seen_last() {
    let settings = with(|settings| settings.services_max = 9);
    check_services_max(&MemoryCache::new(&settings), &settings).await;
}

#[tokio::test]
async fn redis_keeps_the_services_seen_last_and_removes_the_keys_of_others() {
    let redis = Redis::start();
    let settings = with(|settings| settings.services_max = 9);
    check_services_max(&*connect(&redis, &settings).await, &settings).await;
    let keys = redis.command(&["KEYS", "*"]);
    assert!(keys.contains("logweir:recent:flood") && !keys.contains(":s0") && !keys.contains("steady"), "{keys}");
}

#[tokio::test]
async fn the_memory_cache_stays_within_its_byte_limit_at_the_expense_of_noisy_services() {
    let settings = with(|settings| settings.recent_records = 100_000);
    let cache = MemoryCache::with_bytes_max(&settings, 50_000);
    let (mut journal, writer) = (Journal::new(4), origin());
    cache.apply(writer, &journal.batch_of(0, 1, |_| "quiet".to_owned())).await.unwrap();
    let quiet = cache.recent("quiet", 100).await.unwrap();
    for _ in 0..50 {
        cache.apply(writer, &journal.batch_of(0, 10, |_| "noisy".to_owned())).await.unwrap();
        assert!(cache.bytes() <= 50_000, "{}", cache.bytes());
    }
    assert!(cache.bytes() > 20_000, "{}", cache.bytes());
    assert_eq!(cache.recent("quiet", 100).await.unwrap(), quiet);
    let latest = cache.recent("noisy", 1).await.unwrap();
    assert_eq!(identity(&latest[0], "noisy").1, journal.seq);
}

#[tokio::test]
async fn expired_records_are_removed() {
    let settings = with(|settings| settings.ttl_s = 3600);
    let (mut journal, writer) = (Journal::new(5), origin());
    journal.now_us -= 2 * 3600 * 1_000_000;
    let old = journal.batch(0, 2);
    journal.now_us = clock::wall_us();
    let new = journal.batch_of(0, 1, |_| "new".to_owned());
    let redis = Redis::start();
    let caches: [Arc<dyn HotCache>; 2] = [Arc::new(MemoryCache::new(&settings)), connect(&redis, &settings).await];
    for cache in caches {
        cache.apply(writer, &old).await.unwrap();
        assert_eq!(cache.services().await.unwrap(), [""; 0], "{}", cache.name());
        cache.apply(writer, &new).await.unwrap();
        assert_eq!(cache.services().await.unwrap(), ["new"], "{}", cache.name());
        assert_eq!(cache.recent("api", 10).await.unwrap(), [""; 0], "{}", cache.name());
    }
}

#[tokio::test]
async fn every_key_in_redis_expires() {
    let redis = Redis::start();
    let cache = connect(&redis, &settings()).await;
    let (mut journal, writer) = (Journal::new(6), origin());
    cache.apply(writer, &journal.batch_of(0, 20, |rng| format!("s{}", rng.random_range(0..3)))).await.unwrap();
    let keys = redis.command(&["KEYS", "*"]);
    assert!(keys.lines().count() > 5, "{keys}");
    for key in keys.lines() {
        assert!(key.starts_with("logweir:"), "{key}");
        let ttl: i64 = redis.command(&["TTL", key]).parse().unwrap();
        let guard = if key.starts_with("logweir:cursor:") { 2 } else { 1 };
        assert!((1..=guard * 4 * 3600).contains(&ttl) && ttl > guard * 4 * 3600 - 1800, "{key} {ttl}");
    }
}

#[tokio::test]
async fn a_replay_after_flushall_counts_once() {
    let redis = Redis::start();
    let cache = connect(&redis, &settings()).await;
    let (mut journal, mut model, writer) = (Journal::new(7), Model::default(), origin());
    cache.apply(writer, &journal.batch(0, 5)).await.unwrap();
    redis.command(&["FLUSHALL"]);
    redis.command(&["SCRIPT", "FLUSH"]);
    let replayed = journal.replay(0, 2, 5);
    model.apply(&replayed);
    for _ in 0..2 {
        cache.apply(writer, &replayed).await.unwrap();
    }
    model.assert_equals(&*cache, &settings(), "after the replay").await;
}

#[tokio::test]
async fn two_processes_that_feed_the_same_lane_count_once() {
    let redis = Redis::start();
    let (old, new) = (connect(&redis, &settings()).await, connect(&redis, &settings()).await);
    let (mut journal, mut model, writer) = (Journal::new(8), Model::default(), origin());
    for round in 0..20 {
        model.apply(&journal.batch(0, 3));
        let (a, b) = (journal.replay(0, round, round * 3 + 2), journal.replay(0, 0, round * 3 + 3));
        let (a, b) = tokio::join!(old.apply(writer, &a), new.apply(writer, &b));
        a.unwrap();
        b.unwrap();
    }
    model.assert_equals(&*old, &settings(), "after both").await;
}

/// A state in which Redis responds but rejects writes: the error has its label, no part of the batch is applied, and
/// the same batch succeeds once the state has ended.
async fn check_rejection(redis: &Redis, reason: &str, enter: impl FnOnce(), leave: impl FnOnce()) {
    let cache = connect(redis, &settings()).await;
    let (mut journal, mut model, writer) = (Journal::new(9), Model::default(), origin());
    let before = journal.batch(0, 3);
    cache.apply(writer, &before).await.unwrap();
    model.apply(&before);
    enter();
    let rejected = journal.batch(0, 3);
    let error = cache.apply(writer, &rejected).await.unwrap_err();
    assert_eq!(error.reason, reason, "{error}");
    model.assert_equals(&*cache, &settings(), "while writes are rejected").await;
    leave();
    applies_again(&*cache, writer, &rejected).await;
    model.apply(&rejected);
    model.assert_equals(&*cache, &settings(), "after recovery").await;
}

#[tokio::test]
async fn a_full_redis_rejects_batches_and_recovers() {
    let redis = Redis::start();
    let enter = || {
        redis.config_set("maxmemory-policy", "noeviction");
        redis.config_set("maxmemory", "1mb");
    };
    check_rejection(&redis, "oom", enter, || redis.config_set("maxmemory", "0")).await;
}

#[tokio::test]
async fn a_replica_rejects_batches_and_recovers_when_promoted() {
    let redis = Redis::start();
    // There is no primary at that address; the replica keeps its data.
    let enter = || drop(redis.command(&["REPLICAOF", "127.0.0.1", "1"]));
    check_rejection(&redis, "readonly", enter, || drop(redis.command(&["REPLICAOF", "NO", "ONE"]))).await;
}

#[tokio::test]
async fn a_redis_that_cannot_save_rejects_batches_and_recovers() {
    let redis = Redis::start();
    let enter = || {
        redis.config_set("save", "3600 1000000");
        std::fs::remove_dir(redis.data_dir()).unwrap();
        redis.command(&["BGSAVE"]);
        let deadline = Instant::now() + PATIENCE;
        while !redis.command(&["INFO", "persistence"]).contains("rdb_last_bgsave_status:err") {
            assert!(Instant::now() < deadline, "the save does not fail");
            std::thread::sleep(Duration::from_millis(10));
        }
    };
    check_rejection(&redis, "misconf", enter, || redis.config_set("stop-writes-on-bgsave-error", "no")).await;
}

#[tokio::test]
async fn a_frozen_redis_times_out_holds_no_memory_and_recovers() {
    let redis = Redis::start();
    let settings = with(|settings| (settings.recent_records, settings.timeout_ms) = (100_000, TIMEOUT_SHORT_MS));
    let cache = connect(&redis, &settings).await;
    let (mut journal, writer) = (Journal::new(10), origin());
    applies_again(&*cache, writer, &journal.batch(0, 1)).await;
    redis.freeze();
    // More than the kernel buffers hold, so that the writes themselves hang.
    let large: Vec<Batch> = (0..40).map(|_| journal.batch_of(0, 1, |_| "x".repeat(300_000))).collect();
    let before = resident_bytes();
    let mut reasons = BTreeSet::new();
    for batch in &large {
        let applied = tokio::time::timeout(PATIENCE, cache.apply(writer, batch)).await;
        reasons.insert(applied.expect("applying returns by its timeout").unwrap_err().reason);
    }
    let grown = resident_bytes().saturating_sub(before);
    let sent: usize = large.iter().map(|batch| 2 * batch.records() as usize * 300_000).sum();
    assert!(grown < sent / 4, "grown by {grown} bytes while {sent} bytes were rejected");
    assert!(reasons.contains("timeout"), "{reasons:?}");

    redis.thaw();
    let next = journal.batch_of(0, 3, |_| "after".to_owned());
    applies_again(&*cache, writer, &next).await;
    // The interrupted commands may or may not have run since; either way nothing counts twice, and the next batch
    // counts.
    let patient = connect(&redis, &with(|settings| settings.recent_records = 100_000)).await;
    patient.apply(writer, &large[0]).await.unwrap();
    let mut counted = 0;
    for service in patient.services().await.unwrap() {
        counted += records_of(&*patient, &service).await;
    }
    let all = journal.replay(0, 0, large.len() + 4);
    assert!(counted <= all.records(), "{counted} of {}", all.records());
    assert_eq!(records_of(&*patient, "after").await, next.records());
}

async fn records_of(cache: &dyn HotCache, service: &str) -> u64 {
    cache.volume(service, 0).await.unwrap().iter().map(|(.., count)| count).sum()
}

fn resident_bytes() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

#[tokio::test]
async fn a_killed_redis_is_an_error_and_a_restarted_one_is_used_again() {
    let mut redis = Redis::start();
    let cache = connect(&redis, &settings()).await;
    let (mut journal, writer) = (Journal::new(11), origin());
    cache.apply(writer, &journal.batch(0, 3)).await.unwrap();
    redis.kill();
    let error = apply_until_error(&*cache, writer, &mut journal).await;
    assert!(["connection", "timeout"].contains(&error.reason), "{error:?}");
    redis.restart();
    let (batch, mut model) = (journal.batch(0, 3), Model::default());
    applies_again(&*cache, writer, &batch).await;
    model.apply(&batch);
    model.assert_equals(&*cache, &settings(), "in the restarted Redis").await;
}

#[tokio::test]
async fn a_redis_that_is_unavailable_at_start_is_used_once_available() {
    let mut redis = Redis::start();
    redis.kill();
    let cache = connect(&redis, &settings()).await;
    let (mut journal, writer) = (Journal::new(12), origin());
    let batch = journal.batch(0, 3);
    let error = cache.apply(writer, &batch).await.unwrap_err();
    assert_eq!(error.reason, "connection", "{error}");
    assert!(error.detail.contains("refused"), "the error must name the cause: {error}");
    redis.restart();
    applies_again(&*cache, writer, &batch).await;
}

#[tokio::test]
async fn a_redis_at_its_client_limit_is_used_once_below_it() {
    let redis = Redis::start_with(&["--maxclients", "1"]);
    let occupied = idle_connection(redis.port());
    let cache = connect(&redis, &settings()).await;
    let (mut journal, writer) = (Journal::new(13), origin());
    let batch = journal.batch(0, 3);
    cache.apply(writer, &batch).await.unwrap_err();
    drop(occupied);
    applies_again(&*cache, writer, &batch).await;
}

#[tokio::test]
async fn a_redis_that_is_loading_rejects_batches_and_is_used_afterwards() {
    let mut redis = Redis::start();
    let fill = "for key = 1, 3000 do redis.call('SET', 'key ' .. key, string.rep(key, 500)) end";
    redis.command(&["EVAL", fill, "0"]);
    redis.command(&["SAVE"]);
    let cache = connect(&redis, &with(|settings| settings.timeout_ms = TIMEOUT_SHORT_MS)).await;
    redis.restart_loading(&["--key-load-delay", "30000", "--loading-process-events-interval-bytes", "1024"]);
    let (mut journal, writer) = (Journal::new(14), origin());
    let batch = journal.batch(0, 3);
    let deadline = Instant::now() + PATIENCE;
    loop {
        let error = cache.apply(writer, &batch).await.expect_err("Redis is loading for a minute and a half");
        if error.reason == "loading" {
            break;
        }
        assert!(Instant::now() < deadline, "{error}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    redis.config_set("key-load-delay", "0");
    applies_again(&*cache, writer, &batch).await;
}

#[tokio::test]
async fn tls_requires_the_right_authority() {
    let redis = Redis::start_tls();
    let (mut journal, writer) = (Journal::new(15), origin());
    let batch = journal.batch(0, 3);
    let cache = open(redis.url(), &settings(), Some(&redis.ca_file())).await.unwrap();
    applies_again(&*cache, writer, &batch).await;

    let wrong = redis.data_dir().join("wrong.pem");
    Authority::new().write(&wrong);
    for ca_file in [Some(&*wrong), None] {
        let cache = open(redis.url(), &settings(), ca_file).await.unwrap();
        let error = cache.apply(writer, &batch).await.unwrap_err();
        assert!(error.detail.contains("InvalidCertificate"), "{ca_file:?}: {error}");
    }
    // It gets no answer.
    let settings = with(|settings| settings.timeout_ms = TIMEOUT_SHORT_MS);
    let plain = open(redis.url().replace("rediss:", "redis:"), &settings, None).await.unwrap();
    plain.apply(writer, &batch).await.unwrap_err();
}

#[tokio::test]
async fn a_password_is_required() {
    let redis = Redis::start_with(&["--requirepass", "secret"]);
    let with_password = redis.url().replace("redis://", "redis://:secret@");
    let (mut journal, writer) = (Journal::new(16), origin());
    let batch = journal.batch(0, 3);
    applies_again(&*open(with_password, &settings(), None).await.unwrap(), writer, &batch).await;
    let error = open(redis.url(), &settings(), None).await.unwrap().apply(writer, &batch).await.unwrap_err();
    assert_eq!(error.reason, "auth", "{error}");
}

#[tokio::test]
async fn the_feed_counts_each_record_as_applied_or_discarded_and_recovers() {
    let mut redis = Redis::start();
    let (mut journal, writer) = (Journal::new(17), origin());
    let mut feed = CacheFeed::new(connect(&redis, &settings()).await, writer, 20_000);
    let counter =
        |feed: &CacheFeed, name: &str| feed.observe().iter().find(|counter| counter.name == name).expect(name).value;
    let mut sent = 0;
    let mut send = |journal: &mut Journal| {
        let batch = journal.batch(0, 2);
        sent += batch.records();
        batch
    };
    feed.apply(&send(&mut journal)).await;
    assert_eq!((counter(&feed, "applied_batches"), feed.is_failing()), (1, false));

    redis.kill();
    for _ in 0..10 {
        feed.apply(&send(&mut journal)).await;
    }
    assert!(feed.is_failing());
    // More than once if the attempts took long.
    assert!(counter(&feed, "breaker_state") > 0 && counter(&feed, "breaker_opened") > 0);

    redis.restart();
    let deadline = Instant::now() + PATIENCE;
    while counter(&feed, "applied_batches") < 2 {
        assert!(Instant::now() < deadline, "the feed does not recover");
        feed.apply(&send(&mut journal)).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(counter(&feed, "breaker_state"), 0);
    assert_eq!(counter(&feed, "applied_records") + counter(&feed, "discarded_records"), sent);
}

/// A primary with a replica, and Sentinels that watch them.
struct Replicated {
    servers: Vec<Redis>,
    sentinels: Vec<Redis>,
}

impl Replicated {
    fn start(sentinels: u32) -> Self {
        let primary = Redis::start();
        let replica = Redis::start_with(&["--replicaof", "127.0.0.1", &primary.port().to_string()]);
        let quorum = sentinels / 2 + 1;
        let sentinels: Vec<Redis> = (0..sentinels).map(|_| Redis::start_sentinel(primary.port(), quorum)).collect();
        let others = format!("num-other-sentinels\n{}\n", sentinels.len() - 1);
        for sentinel in &sentinels {
            wait_until("a Sentinel knows the others and the replica", || {
                let known = sentinel.command(&["SENTINEL", "MASTER", "main"]) + "\n";
                known.contains("num-slaves\n1\n") && known.contains(&others)
            });
        }
        Self { servers: vec![primary, replica], sentinels }
    }

    /// Names all Sentinels, the first one as the host.
    fn url(&self) -> String {
        let nodes = self.sentinels[1..].iter().map(|sentinel| format!("&node=127.0.0.1:{}", sentinel.port()));
        let first = self.sentinels[0].port();
        format!("redis-sentinel://127.0.0.1:{first}?sentinelServiceName=main{}", nodes.collect::<String>())
    }

    /// The server that the Sentinel holds for the primary.
    fn primary(&mut self) -> &mut Redis {
        let address = self.sentinels.last().unwrap().command(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", "main"]);
        let port: u16 = address.lines().last().unwrap().parse().unwrap();
        self.servers.iter_mut().find(|server| server.port() == port).unwrap()
    }

    fn other_primary(&mut self, before: u16) -> &mut Redis {
        wait_until("the failover", || self.primary().port() != before);
        self.primary()
    }
}

fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "timed out: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[tokio::test]
async fn sentinels_lead_to_the_primary_and_after_a_failover_to_the_next_one() {
    let mut replicated = Replicated::start(3);
    let settings = with(|settings| settings.timeout_ms = TIMEOUT_SHORT_MS);
    let cache = open(replicated.url(), &settings, None).await.unwrap();
    let (mut journal, writer) = (Journal::new(18), origin());
    applies_again(&*cache, writer, &journal.batch(0, 3)).await;
    let keys = |redis: &mut Redis| redis.command(&["KEYS", "logweir:cursor:*"]);
    assert!(keys(replicated.primary()).contains(&writer.writer.to_string()));

    // By order of an operator, while the server goes on as a replica.
    let before = replicated.primary().port();
    assert_eq!(replicated.sentinels[1].command(&["SENTINEL", "FAILOVER", "main"]), "OK");
    replicated.other_primary(before);
    applies_again(&*cache, writer, &journal.batch(0, 3)).await;

    // The primary is stopped, together with the Sentinel that the URL names first.
    wait_until("the old primary is a replica", || {
        let known = replicated.sentinels[2].command(&["SENTINEL", "REPLICAS", "main"]);
        known.contains("master-link-status\nok\n") && !known.contains("s_down") && !known.contains("disconnected")
    });
    let before = replicated.primary().port();
    replicated.primary().freeze();
    replicated.sentinels[0].kill();
    replicated.other_primary(before);
    let batch = journal.batch(0, 3);
    applies_again(&*cache, writer, &batch).await;
    let latest = batch.frames().last().unwrap().seq;
    assert_eq!(cache.cursors(writer.writer).await.unwrap()[&0], latest);
    let stored = replicated.primary().command(&["HGET", &format!("logweir:cursor:{}", writer.writer), "0"]);
    assert_eq!(stored, latest.to_string());
}

#[tokio::test]
async fn a_primary_that_became_a_replica_without_a_word_is_left() {
    let mut replicated = Replicated::start(1);
    let cache = open(replicated.url(), &settings(), None).await.unwrap();
    let (mut journal, writer) = (Journal::new(19), origin());
    applies_again(&*cache, writer, &journal.batch(0, 3)).await;
    // As by an operator's hand: no connection is closed, which Sentinel would do.
    let (old, new) = (replicated.servers[0].port(), replicated.servers[1].port());
    replicated.sentinels[0].command(&["SENTINEL", "REMOVE", "main"]);
    replicated.servers[1].command(&["REPLICAOF", "NO", "ONE"]);
    replicated.servers[0].command(&["REPLICAOF", "127.0.0.1", &new.to_string()]);
    replicated.sentinels[0].command(&["SENTINEL", "MONITOR", "main", "127.0.0.1", &new.to_string(), "1"]);
    assert_ne!(replicated.primary().port(), old);
    applies_again(&*cache, writer, &journal.batch(0, 3)).await;
}

#[tokio::test]
async fn a_sentinel_of_the_url_is_asked_when_those_that_it_named_are_gone() {
    let mut replicated = Replicated::start(2);
    let cache = open(replicated.url(), &settings(), None).await.unwrap();
    let (mut journal, writer) = (Journal::new(20), origin());
    applies_again(&*cache, writer, &journal.batch(0, 3)).await;
    // Whichever was asked, the other one is remembered; as after a restart with other addresses.
    for gone in 0..2 {
        replicated.sentinels[gone].kill();
        replicated.servers[0].kill();
        replicated.servers[0].restart();
        applies_again(&*cache, writer, &journal.batch(0, 3)).await;
        replicated.sentinels[gone].restart();
    }
}

#[tokio::test]
async fn a_password_of_the_sentinels_is_not_that_of_redis() {
    let mut replicated = Replicated::start(1);
    for server in &replicated.servers {
        server.config_set("masterauth", "secret");
        server.config_set("requirepass", "secret");
    }
    replicated.sentinels[0].command(&["SENTINEL", "SET", "main", "auth-pass", "secret"]);
    let url = replicated.url().replace("//", "//:secret@");
    let (mut journal, writer) = (Journal::new(21), origin());
    let cache = open(url.clone(), &settings(), None).await.unwrap();
    applies_again(&*cache, writer, &journal.batch(0, 3)).await;
    replicated.sentinels[0].restart_loading(&["--requirepass", "other"]);
    let cache = open(url + "&sentinelPassword=other", &settings(), None).await.unwrap();
    applies_again(&*cache, writer, &journal.batch(0, 3)).await;
}

#[test]
fn a_failover_of_redis_delays_nothing_and_loses_nothing() {
    on_postgres("Redis failover", |s| {
        let mut replicated = Replicated::start(1);
        s.set("cache.url", replicated.url());
        s.start();
        let load = s.load(Load::default());
        let cached = |s: &mut Scenario, at_least: f64| {
            let applied = |server: &Server| server.metric("logweir_cache_applied_records_total", "");
            let at_least = applied(s.server()) + at_least;
            s.server().until("cached records", PATIENCE, |server| applied(server) >= at_least).unwrap();
        };
        cached(s, 3.0);
        let before = replicated.primary().port();
        replicated.primary().kill();
        loop {
            s.acknowledged(200);
            let answer = s.server().data("/api/v1/query?query=*").expect("an answer");
            assert_eq!(answer.status, 200, "{}", answer.body);
            if replicated.primary().port() != before {
                break;
            }
        }
        cached(s, 3.0);
        assert!(replicated.primary().command(&["KEYS", "*"]).contains("logweir:cursor:"));
        load.stop();
        s.assert_contract();
    });
}
