//! Queries of the stores: a filter means the same in Rust, in PostgreSQL (whatever its locale) and in SQLite, and pages
//! neither skip nor repeat records.

// Clippy allows unwrap in test functions, but not in their helpers.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use logweir_query::facets::{Facets, Names};
use logweir_query::hits::{By, Hits, Steps};
use logweir_query::page::{Direction, Found, Range};
use logweir_query::{Comparison, Field, Filter, SeverityRange, Test, Text, TextKind, parse};
use logweir_record::chunk::Chunk;
use logweir_record::record::{Record, Severity};
use logweir_store::read::{Count, LogReader, ReadError, Sample, Scan, Snapshot};
use logweir_store::throttle::{self, QueryThrottle};
use logweir_store::{self as store, Claim, LaneWriter, LogStore};
use logweir_store::{Batch, BatchFrame};
use logweir_store::{Database, DatabaseUrl};
use logweir_tests::scenario::PATIENCE;
use logweir_tests::{maintenance, postgres};
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::{Config, TestCaseError, TestRunner};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use tokio::runtime::Runtime;
use uuid::Uuid;

const NOON_US: i64 = 1_763_640_000_000_000;
const ALL: Range = Range { start_us: i64::MIN, end_us: i64::MAX };
/// Event times are within this many microseconds after noon, so many are equal.
const SPAN_US: i64 = 400;

const SERVICES: &[&str] = &["cart", "Cart", "shop", "straße", "İstanbul", "", "a%b_c\\d", "it's \"x\""];
const HOSTS: &[&str] = &["pod-7", "pod-70", "", "10.0.0.1"];
const MESSAGES: &[&str] = &[
    "Connection reset by peer",
    "connection_reset",
    "connection resets",
    "re connection",
    "100% of a_b\\c",
    "STRASSE straße STRAßE",
    "Iıİi KELVIN \u{212a} ſ",
    "line one\nline two\r\n",
    "tab\there é e\u{301}",
    "it's \"quoted\" `so`",
    "日本語 ログ 🚀 rocket🚀rocket",
    "200",
    "-12.5e1",
    "",
    "a",
    "aa ab ba",
    "\u{1}\u{7f}\u{80}\u{a0}",
];
const ATTRIBUTES: &[&str] = &[
    "",
    "{}",
    r#"{"status":200,"user":"anna"}"#,
    r#"{"status":"200","user":"Anna"}"#,
    r#"{"status":2e2,"took":12.50,"user":null}"#,
    r#"{"status":-0.0,"took":1E-7}"#,
    r#"{"status":1.50e1,"took":-1.25e+1}"#,
    r#"{"status":1e120,"took":"1e99"}"#,
    r#"{"status":true,"user":{"id":"u-1","name.first":"Bo"}}"#,
    r#"{"user.id":"u-2","user":{"id":"u-1"}}"#,
    r#"{"user":[1,2],"status":[]}"#,
    r#"{"user":"first","user":"last"}"#,
    r#"{"user":{"id":"x"},"user":{"id":"y"}}"#,
    r#"{"us\u0065r":"escaped \u00e9 \n \"q\"","a b":{"c.d":{"e":"deep"}}}"#,
    r#"{"user":"","status":" 7 ","took":"0x10"}"#,
    r#"{"took":"+5.0","status":".5","user":"100%"}"#,
    r#"{"user.id.x":1,"user":{"id":{"x":2},"id.x":3}}"#,
    r#"{"status":100000000000000000000000000000000000001,"took":99999999999999999999.5}"#,
];
const NAMES: &[&str] =
    &["status", "took", "user", "user.id", "user.id.x", "user.name.first", "a b.c.d.e", "none", "", "it's"];
const TEXTS: &[&str] = &[
    "connection",
    "Connection",
    "reset",
    "RESET by",
    "%",
    "_",
    "\\",
    "a_b",
    "ß",
    "STRA",
    "strass",
    "i",
    "I",
    "İ",
    "ı",
    "k",
    "s",
    "\n",
    "é",
    "日本",
    "🚀",
    "rocket",
    "it's",
    "\"",
    "200",
    "u-1",
    "anna",
    "ANNA",
    "",
    " ",
    "a",
    "a%b_c\\d",
    "x'y",
    "\u{80}",
    "\u{a0}",
];
const REGEXES: &[&str] = &[
    "^connection",
    "(?i)CONNECTION",
    "reset$",
    r"\bconnection\b",
    r"\d+",
    r"^\d+$",
    r"\w+\s\w+",
    ".",
    "^.$",
    "^$",
    "",
    "(?s)one.line",
    "one.line",
    r"(?m)^line two",
    r"(?m)one$",
    "[^a-z]",
    "(?i)straße",
    "(?i)k",
    "[[:punct:]]",
    "a|b|",
    "(a|b){2,3}",
    "a*?b",
    r"\\",
    "é|e\u{301}",
    r"\p{Greek}|\p{Han}",
    r"\B",
    "x{0}",
    "(?:)",
    "[\u{1}-\u{1f}]",
    "[^\u{0}-\u{10ffff}]",
    r"\.\d",
    "'|\"",
    "(?-u:\\w)\\z",
    r"\x{1F680}",
    "🚀+",
    r"[\w--\d]",
    "(?i)[a-c]+$",
];

fn settings(url: DatabaseUrl) -> Database {
    let mut settings = Database::new(url);
    settings.compress_after_days = 0;
    // So long that no slow machine reaches it.
    settings.connect_timeout_ms = 60_000;
    settings
}

/// A store and a writer for it.
struct On {
    name: &'static str,
    store: Arc<dyn LogStore>,
    reader: Arc<dyn LogReader>,
    throttle: QueryThrottle,
    /// A throttled reader of the same store.
    throttled: Arc<dyn LogReader>,
    lane: Box<dyn LaneWriter>,
    seq: u64,
    records: u64,
    lane_id: i64,
}

impl On {
    async fn open(name: &'static str, url: DatabaseUrl) -> Self {
        let opened = store::open(&settings(url)).unwrap();
        let store = opened.store();
        store.prepare().await.unwrap();
        let run = Uuid::new_v4();
        let claim = Claim { runs: vec![run], ..Claim::new(Uuid::new_v4(), run, "test") };
        let lease = store.acquire_lease(&claim).await.unwrap();
        let (lane, row) = store.open_lane(&lease, 0).await.unwrap();
        let reader = |throttle: &QueryThrottle| opened.reader(PATIENCE, throttle.clone()).unwrap();
        let behind = QueryThrottle::default();
        behind.set_backlog_age(throttle::BEHIND * 2);
        let throttle = QueryThrottle::default();
        let (reader, throttled) = (reader(&throttle), reader(&behind));
        Self { name, store, reader, throttle, throttled, lane, seq: 0, records: 0, lane_id: row.lane_id }
    }

    /// Stores `records` in one transaction; returns them with their ids.
    async fn store(&mut self, records: &[Record<'_>]) -> Vec<Found> {
        let mut chunk = Chunk::with_capacity(NOON_US, records.len(), 0);
        records.iter().for_each(|&record| chunk.push(record));
        let (from_seq, from_records) = (self.seq, self.records);
        self.seq += 1;
        self.records += records.len() as u64;
        let frame = BatchFrame {
            seq: self.seq,
            lane_records: self.records,
            payload_crc: 1,
            dedup_key: None,
            chunk: Arc::new(chunk),
        };
        let batch = Batch::new(0, from_seq, from_records, 0, vec![frame]);
        self.lane.flush(&batch).await.unwrap();
        let first = (self.lane_id << 44) + from_records.cast_signed() + 1;
        (first..).zip(records).map(|(id, record)| Found::of(id, record)).collect()
    }

    /// The ids of all records that match `filter`, read in one page.
    async fn ids(&self, filter: &Filter) -> BTreeSet<i64> {
        let page = self.reader.records(&scan(filter.clone(), ALL)).await;
        page.unwrap_or_else(|error| panic!("{}: {error}: {filter:?}", self.name))
            .value
            .iter()
            .map(|found| found.id)
            .collect()
    }
}

fn scan(filter: Filter, range: Range) -> Scan {
    Scan { range, filter, direction: Direction::Backward, after: None, limit: 1_000_000, bytes_max: usize::MAX }
}

/// A PostgreSQL database in a locale whose case folding differs most from ASCII, and a SQLite file.
struct Both {
    stores: [On; 2],
    database: postgres::TestDatabase,
    _dir: tempfile::TempDir,
}

async fn both() -> Both {
    let server = postgres::database().await;
    let turkish = format!("turkish_{}", Uuid::new_v4().simple());
    let client = server.client().await;
    client
        .batch_execute(&format!(
            "CREATE DATABASE {turkish} TEMPLATE template0 LOCALE_PROVIDER icu ICU_LOCALE 'tr-TR' LOCALE 'C.UTF-8'"
        ))
        .await
        .unwrap();
    let (rest, _) = server.url.rsplit_once('/').unwrap();
    let database = postgres::TestDatabase::at(format!("{rest}/{turkish}"));
    let dir = tempfile::tempdir().unwrap();
    let stores = [
        On::open("PostgreSQL", DatabaseUrl::Postgres(database.url.clone())).await,
        On::open("SQLite", DatabaseUrl::Sqlite(dir.path().join("logs.db"))).await,
    ];
    Both { stores, database, _dir: dir }
}

fn random_record(random: &mut StdRng) -> Record<'static> {
    Record {
        ts_us: NOON_US + random.random_range(0..SPAN_US) * 1_000_000,
        severity: Severity::from_number(random.random_range(0..=24)).unwrap(),
        service: SERVICES.choose(random).unwrap(),
        host: HOSTS.choose(random).unwrap(),
        message: MESSAGES.choose(random).unwrap(),
        attributes: ATTRIBUTES.choose(random).unwrap(),
    }
}

fn seeded() -> StdRng {
    let seed = std::env::var("LOGWEIR_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(rand::random);
    eprintln!("LOGWEIR_SEED={seed}");
    StdRng::seed_from_u64(seed)
}

/// A part of the text in the records, possibly in another case.
fn any_part() -> impl Strategy<Value = String> {
    let whole = prop_oneof![select(MESSAGES), select(SERVICES)];
    (whole, any::<prop::sample::Index>(), 1..6_usize, 0..3).prop_map(|(text, from, letters, case)| {
        let from = from.index(text.chars().count().max(1));
        let part: String = text.chars().skip(from).take(letters).collect();
        match case {
            0 => part.to_uppercase(),
            1 => part.to_lowercase(),
            _ => part,
        }
    })
}

fn any_text() -> impl Strategy<Value = Text> {
    let kinds = [
        TextKind::Words,
        TextKind::WordsFrom,
        TextKind::WordsTo,
        TextKind::Substring,
        TextKind::Prefix,
        TextKind::Suffix,
    ];
    let literal =
        (select(kinds.to_vec()), prop_oneof![select(TEXTS).prop_map(str::to_owned), any_part()], any::<bool>())
            .prop_map(|(kind, text, case_sensitive)| Text::new(kind, text, case_sensitive).unwrap());
    let regex =
        select(REGEXES).prop_filter_map("PostgreSQL can say it", |regex| Text::new(TextKind::Regex, regex, true).ok());
    let joined = (select(REGEXES), select(REGEXES), select(&["", "|", "?", "+", "{0,2}"][..]))
        .prop_filter_map("it is one", |(a, b, between)| {
            Text::new(TextKind::Regex, format!("(?:{a}){between}(?:{b})"), true).ok()
        });
    prop_oneof![5 => literal, 2 => regex, 1 => joined]
}

fn any_filter() -> impl Strategy<Value = Filter> {
    let field = prop_oneof![
        2 => Just(Field::Service),
        1 => Just(Field::Host),
        4 => Just(Field::Message),
        4 => select(NAMES).prop_map(|name| Field::Attribute(name.to_owned())),
    ];
    let comparison =
        select(&[Comparison::Less, Comparison::LessOrEqual, Comparison::Greater, Comparison::GreaterOrEqual][..]);
    let number = select(&[-13.0, -0.0, 0.0, 0.000_000_1, 5.0, 12.5, 15.0, 200.0, 1e38, 1e99, 1e120, f64::INFINITY][..]);
    let value = prop_oneof![
        select(TEXTS),
        select(SERVICES),
        select(&["200", "2e2", "15.0", "0.0", "12.50", "true", "last", "y", "deep"][..])
    ];
    let test = prop_oneof![
        1 => Just(Test::Exists),
        1 => prop::collection::vec(value.prop_map(str::to_owned), 0..4).prop_map(Test::OneOf),
        4 => any_text().prop_map(Test::Text),
        2 => (comparison, number).prop_map(|(comparison, than)| Test::Compare(comparison, than)),
    ];
    let leaf = prop_oneof![
        8 => (field, test).prop_map(|(field, test)| Filter::Field { field, test }),
        1 => (0_u8..=24, 0_u8..=24).prop_map(|(min, max)| Filter::Severity(SeverityRange { min, max })),
        1 => Just(Filter::All),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Filter::And),
            prop::collection::vec(inner.clone(), 0..4).prop_map(Filter::Or),
            inner.prop_map(|filter| Filter::Not(Box::new(filter))),
        ]
    })
}

/// Queries both stores with `cases` random filters, after storing random records.
fn for_random_filters(cases: u32, ask: impl Fn(&Runtime, &Both, &[Found], Filter) -> Result<(), TestCaseError>) {
    let runtime = Runtime::new().unwrap();
    let mut random = seeded();
    let (both, found) = runtime.block_on(async {
        let mut both = both().await;
        let records: Vec<_> = (0..600).map(|_| random_record(&mut random)).collect();
        let [a, b] = &mut both.stores;
        let (found, same) = (a.store(&records).await, b.store(&records).await);
        assert_eq!(found, same, "both stores give the same ids");
        (both, found)
    });
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let mut runner = TestRunner::new(config);
    runner.run(&any_filter(), |filter| ask(&runtime, &both, &found, filter)).unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn a_filter_means_the_same_everywhere() {
    for_random_filters(1_500, |runtime, both, found, filter| {
        let matching: BTreeSet<i64> =
            found.iter().filter(|found| filter.matches(&found.record())).map(|found| found.id).collect();
        for on in &both.stores {
            let ids = runtime.block_on(on.ids(&filter));
            let differ: Vec<_> =
                found.iter().filter(|found| ids.contains(&found.id) != matching.contains(&found.id)).collect();
            prop_assert!(differ.is_empty(), "{} differs at {:?}", on.name, differ[0]);
        }
        Ok(())
    });
}

#[test]
fn counts_are_the_same_everywhere() {
    for_random_filters(150, |runtime, both, found, filter| {
        let range = Range { start_us: NOON_US + 7_000_000, end_us: NOON_US + 333_000_000 };
        let matching = || found.iter().map(Found::record).filter(|record| filter.matches(record));
        for (by, step_s) in [(By::Severity, 10), (By::Service, 60)] {
            let steps = Steps::over(range, Some(step_s * 1_000_000)).unwrap();
            let mut hits = Hits::new(steps, by);
            matching().for_each(|record| hits.add(&record));
            let expected = hits.finish();
            for on in &both.stores {
                let series = |counts: Vec<(i64, u8, String, u64)>| {
                    let mut hits = Hits::new(steps, by);
                    counts.iter().for_each(|(at, severity, service, n)| hits.add_many(*at, *severity, service, *n));
                    hits.finish()
                };
                let counted = runtime.block_on(on.reader.count(&filter, steps, by)).unwrap();
                prop_assert_eq!(&series(counted.value), &expected, "{}", on.name);
                if filter.is_counted() && steps.are_minutes() {
                    let volume = runtime.block_on(on.reader.volume(&filter, steps, by)).unwrap();
                    prop_assert_eq!(&series(volume.value), &expected, "the counters of {}", on.name);
                }
            }
        }
        let fields = || Facets::of(["service", "severity", "message", "status", "user.id"].map(str::to_owned));
        let (mut facets, mut names) = (fields(), Names::default());
        matching().filter(|record| range.holds(record.ts_us)).for_each(|record| {
            facets.add(&record);
            names.add(&record);
        });
        let (facets, names) = (facets.finish(100), names.finish());
        let sample = Sample { range, filter: filter.clone(), records_max: 10_000 };
        for on in &both.stores {
            let (counted, _) = runtime.block_on(on.reader.facets(&sample, fields())).unwrap().value;
            prop_assert_eq!(&counted.finish(100), &facets, "{}", on.name);
            let (counted, _) = runtime.block_on(on.reader.names(&sample)).unwrap().value;
            if on.name == "SQLite" {
                prop_assert_eq!(&counted.finish(), &names, "{}", on.name);
            }
        }
        Ok(())
    });
}

/// Retries a read that was rejected while throttled, which may happen on a slow machine.
async fn with_retries<T, F: Future<Output = Result<Snapshot<T>, ReadError>>>(reading: impl Fn() -> F) -> Snapshot<T> {
    for _ in 0..100 {
        match reading().await {
            Err(ReadError::Preempted) => {}
            done => return done.unwrap(),
        }
    }
    panic!("there was never enough time");
}

#[test]
fn throttled_reads_return_the_same_results() {
    let range = Range { start_us: NOON_US + 7_000_000, end_us: NOON_US + 333_000_000 };
    let steps = Steps::over(range, Some(10_000_000)).unwrap();
    let series = |counts: Snapshot<Vec<Count>>| {
        let mut hits = Hits::new(steps, By::Service);
        counts.value.iter().for_each(|(at, severity, service, n)| hits.add_many(*at, *severity, service, *n));
        hits.finish()
    };
    for_random_filters(25, |runtime, both, found, filter| {
        for on in &both.stores {
            let page = Scan { limit: 60, bytes_max: 4_000, ..scan(filter.clone(), range) };
            let after = Some(found[found.len() / 2].position());
            for page in [
                page.clone(),
                Scan { direction: Direction::Forward, after, ..page.clone() },
                Scan { after, limit: 7, bytes_max: usize::MAX, ..page },
            ] {
                let read = |reader: &Arc<dyn LogReader>| runtime.block_on(with_retries(|| reader.records(&page))).value;
                prop_assert_eq!(read(&on.throttled), read(&on.reader), "{}", on.name);
            }
            let count = |reader: &Arc<dyn LogReader>| {
                series(runtime.block_on(with_retries(|| reader.count(&filter, steps, By::Service))))
            };
            prop_assert_eq!(count(&on.throttled), count(&on.reader), "{}", on.name);
            let sample = Sample { range, filter: filter.clone(), records_max: 10_000 };
            let names = |reader: &Arc<dyn LogReader>| {
                let (names, records) = runtime.block_on(with_retries(|| reader.names(&sample))).value;
                (names.finish(), records)
            };
            prop_assert_eq!(names(&on.throttled), names(&on.reader), "{}", on.name);
        }
        Ok(())
    });
}

#[tokio::test]
async fn a_read_at_full_speed_restarts_in_pieces_when_the_database_falls_behind() {
    let Both { stores: [mut on, _], database, .. } = both().await;
    let mut random = seeded();
    let records: Vec<_> = (0..10).map(|_| random_record(&mut random)).collect();
    on.store(&records).await;
    let (holder, client) = (database.client().await, database.client().await);
    holder.batch_execute("BEGIN; LOCK TABLE logs").await.unwrap();
    let reader = Arc::clone(&on.reader);
    let reading = tokio::spawn(async move { reader.records(&scan(Filter::All, ALL)).await });
    let waits = async |than: i32| {
        let sql = "SELECT pid FROM pg_stat_activity WHERE application_name = 'logweir/query' AND wait_event_type = 'Lock' \
                   AND datname = current_database() AND pid <> $1";
        let deadline = Instant::now() + PATIENCE;
        loop {
            match client.query_opt(sql, &[&than]).await.unwrap() {
                Some(row) => break row.get::<_, i32>(0),
                None => assert!(Instant::now() < deadline, "no query waits for the lock"),
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let first = waits(0).await;
    on.throttle.set_backlog_age(throttle::BEHIND * 2);
    waits(first).await;
    on.throttle.set_backlog_age(Duration::ZERO);
    holder.batch_execute("COMMIT").await.unwrap();
    match reading.await.unwrap() {
        Ok(page) => assert_eq!(page.value.len(), 10),
        // On a very slow machine a piece may time out.
        Err(ReadError::Preempted | ReadError::Timeout(_)) => {}
        Err(error) => panic!("{error}"),
    }
}

#[tokio::test]
async fn pages_neither_skip_nor_repeat_while_records_arrive() {
    let mut both = both().await;
    let mut random = seeded();
    for on in &mut both.stores {
        let records: Vec<_> = (0..500).map(|_| random_record(&mut random)).collect();
        let there: BTreeSet<i64> = on.store(&records).await.iter().map(|found| found.id).collect();
        for direction in [Direction::Backward, Direction::Forward] {
            let (mut seen, mut after) = (Vec::new(), None);
            loop {
                let page = Scan { direction, after, limit: 7, ..scan(Filter::All, ALL) };
                let records = on.reader.records(&page).await.unwrap().value;
                let Some(last) = records.last() else { break };
                after = Some(last.position());
                seen.extend(records.iter().map(|found| (found.position(), found.id)));
                // Before, at and after the position where the page ends.
                let more: Vec<_> = (0..5).map(|_| random_record(&mut random)).collect();
                if seen.len() < 2_000 {
                    on.store(&more).await;
                }
            }
            let ordered = seen.windows(2).all(|pair| match direction {
                Direction::Backward => pair[0].0 > pair[1].0,
                Direction::Forward => pair[0].0 < pair[1].0,
            });
            assert!(ordered, "{} {direction:?}", on.name);
            let seen: BTreeSet<i64> = seen.into_iter().map(|(_, id)| id).collect();
            assert!(there.is_subset(&seen), "{} {direction:?}: skipped {:?}", on.name, there.difference(&seen));
        }
    }
}

#[tokio::test]
async fn a_page_is_limited_in_bytes_and_has_the_cursors() {
    let mut both = both().await;
    for on in &mut both.stores {
        let message = "x".repeat(1_000);
        let record = Record {
            ts_us: NOON_US,
            severity: Severity::INFO,
            service: "s",
            host: "h",
            message: &message,
            attributes: "",
        };
        on.store(&vec![record; 2_000]).await;
        let page = on.reader.records(&Scan { bytes_max: 50_000, ..scan(Filter::All, ALL) }).await.unwrap();
        assert!((40..60).contains(&page.value.len()), "{}: {}", on.name, page.value.len());
        assert_eq!(
            page.lanes.iter().map(|lane| (lane.lane, lane.last_seq)).collect::<Vec<_>>(),
            [(0, 1)],
            "{}",
            on.name
        );
        assert!(page.lanes[0].lane_id == on.lane_id);
    }
}

#[tokio::test]
async fn both_stores_answer_typed_queries() {
    let mut both = both().await;
    let records: Vec<_> = MESSAGES
        .iter()
        .map(|message| Record {
            ts_us: NOON_US,
            severity: Severity::WARN,
            service: "cart",
            host: "",
            message,
            attributes: r#"{"status":500}"#,
        })
        .collect();
    for on in &mut both.stores {
        on.store(&records).await;
        for (query, count) in [
            ("connection", 3),
            ("'connection'", 2),
            ("connection*", 4),
            ("status>=500 severity:warn service:cart -host:*", 17),
            ("\"line two\"", 1),
            ("*%*", 1),
            ("~`^\\d+$`", 1),
            ("nothing", 0),
            ("*I*", 7),
        ] {
            assert_eq!(on.ids(&parse(query).unwrap()).await.len(), count, "{}: {query}", on.name);
        }
        maintain(&on.store).await;
    }
}

/// Maintenance by the real clock, with its indexes.
async fn maintain(store: &Arc<dyn LogStore>) {
    let failed = maintenance::maintain(store, logweir_engine::clock::wall_us()).await;
    assert!(failed.is_empty(), "{failed:#?}");
}

#[tokio::test]
async fn closed_partitions_get_indexes_that_text_queries_use() {
    let Both { stores: [mut on, _], database, .. } = both().await;
    let client = database.client().await;
    if client.query_one("SELECT to_regclass('logweir_late') IS NOT NULL", &[]).await.unwrap().get(0) {
        eprintln!("skipped: TimescaleDB has no daily partitions");
        return;
    }
    client
        .batch_execute(
            "CREATE TABLE logs_p20251120 PARTITION OF logs FOR VALUES FROM ('2025-11-20Z') TO ('2025-11-21Z'); \
             CREATE TABLE logs_p20251121 PARTITION OF logs FOR VALUES FROM ('2025-11-21Z') TO ('2025-11-22Z')",
        )
        .await
        .unwrap();
    let record =
        |message| Record { ts_us: NOON_US, severity: Severity::INFO, service: "s", host: "", message, attributes: "" };
    on.store(&[record("a needle"), record("hay"), record("NEEDLES")]).await;
    let indexes = "SELECT indexname::text FROM pg_indexes WHERE tablename = 'logs_p20251120' ORDER BY 1";
    let names =
        async || client.query(indexes, &[]).await.unwrap().iter().map(|row| row.get(0)).collect::<Vec<String>>();
    // An interrupted build.
    client.batch_execute("CREATE INDEX logs_p20251120_service_ts_idx ON logs_p20251120 (host)").await.unwrap();
    client
        .batch_execute(
            "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'logs_p20251120_service_ts_idx'::regclass",
        )
        .await
        .unwrap();
    maintain(&on.store).await;
    let built = ["logs_p20251120_message_trgm_idx", "logs_p20251120_service_ts_idx", "logs_p20251120_ts_idx"];
    assert_eq!(names().await, built);
    let built = "SELECT count(*) FROM pg_indexes WHERE indexname LIKE 'logs_p%_message_trgm_idx'";
    let built: i64 = client.query_one(built, &[]).await.unwrap().get(0);
    assert_eq!(built, 2, "all closed days at once; yesterday has just ended, so it is not closed");
    let sql = "SELECT pg_get_indexdef('logs_p20251120_service_ts_idx'::regclass)";
    let definition: String = client.query_one(sql, &[]).await.unwrap().get(0);
    assert!(definition.ends_with("(service, ts)"), "{definition}");

    client.batch_execute("SET enable_seqscan = off").await.unwrap();
    let sql = "EXPLAIN SELECT * FROM logs_p20251120 WHERE message COLLATE \"C\" ILIKE '%needle%'";
    let plan: Vec<String> = client.query(sql, &[]).await.unwrap().iter().map(|row| row.get(0)).collect();
    assert!(plan.concat().contains("message_trgm_idx"), "{plan:#?}");
    assert_eq!(on.ids(&parse("needle").unwrap()).await.len(), 1);
    assert_eq!(on.ids(&parse("needle*").unwrap()).await.len(), 2);
}

/// A database in another encoding.
async fn encoded(encoding: &str) -> (On, postgres::TestDatabase) {
    let server = postgres::database().await;
    let name = format!("encoded_{}", Uuid::new_v4().simple());
    let sql = format!("CREATE DATABASE {name} TEMPLATE template0 ENCODING '{encoding}' LOCALE 'C'");
    server.client().await.batch_execute(&sql).await.unwrap();
    let (rest, _) = server.url.rsplit_once('/').unwrap();
    let database = postgres::TestDatabase::at(format!("{rest}/{name}"));
    (On::open("PostgreSQL", DatabaseUrl::Postgres(database.url.clone())).await, database)
}

/// In a database of any encoding, a query finds what the filter matches, or is refused with the reason.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_of_any_encoding_answers_rightly_or_refuses() {
    let messages =
        ["café crème", "un café", "cafés", "Straße 5 €", "日本語 ログ", "日日", "plain", "x日y", "été", "a\nb", ""];
    let queries = [
        "café",
        "caf*",
        "\"un café\"",
        "€",
        "日本語",
        "日*",
        "~\"日+$\"",
        "~\"^x.+y$\"",
        "~\"caf[éè]\"",
        "~\"[日本]\"",
        "~\"^[^a-z]+$\"",
        "plain",
        "été",
        "-café",
        "~\"(?s)a.b\"",
        "~\"\\d\"",
        "service:café",
        "note:=日本語",
        "Straße",
    ];
    // Which characters the encoding has.
    let has = |encoding: &str, text: &str| match encoding {
        "LATIN1" => text.chars().all(|letter| u32::from(letter) < 0x100),
        "WIN1252" => text.chars().all(|letter| u32::from(letter) < 0x100 || letter == '€'),
        "EUC_JP" => text.chars().all(|letter| letter.is_ascii() || "日本語ログé".contains(letter)),
        _ => true,
    };
    for encoding in ["UTF8", "LATIN1", "WIN1252", "EUC_JP", "SQL_ASCII"] {
        let (mut on, _database) = encoded(encoding).await;
        let texts: Vec<&str> = messages.iter().copied().filter(|text| has(encoding, text)).collect();
        let attributes: Vec<String> =
            texts.iter().map(|text| serde_json::json!({ "note": text }).to_string()).collect();
        let records: Vec<Record<'_>> = (0_i64..)
            .zip(texts.iter().zip(&attributes))
            .map(|(nth, (message, attributes))| {
                let severity = Severity::INFO;
                Record { ts_us: NOON_US + nth, severity, service: message, host: "", message, attributes }
            })
            .collect();
        let stored = on.store(&records).await;
        let mut refused = Vec::new();
        for query in queries {
            let filter = parse(query).unwrap();
            let expected: BTreeSet<i64> =
                stored.iter().filter(|found| filter.matches(&found.record())).map(|found| found.id).collect();
            match on.reader.records(&scan(filter, ALL)).await {
                Ok(page) => {
                    let found: BTreeSet<i64> = page.value.iter().map(|found| found.id).collect();
                    assert_eq!(found, expected, "{encoding}: {query}");
                }
                Err(ReadError::Unanswerable(_)) => refused.push(query),
                Err(error) => panic!("{encoding}: {query}: {error}"),
            }
        }
        let sets = refused.iter().filter(|query| query.contains('[')).count();
        match encoding {
            "UTF8" => assert!(refused.is_empty(), "{refused:?}"),
            "SQL_ASCII" => assert_eq!((sets, refused.len()), (2, 2), "{refused:?}"),
            _ => assert!(refused.iter().all(|query| query.contains('[') || !has(encoding, query)), "{refused:?}"),
        }
    }
}

/// A database that accepts no connection, or not this one, is unavailable, which says nothing about the query.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_accepts_no_connection_is_unavailable() {
    let unavailable = async |url: &str, code: &str| {
        let opened = store::open(&settings(DatabaseUrl::Postgres(url.to_owned()))).unwrap();
        let reader = opened.reader(PATIENCE, QueryThrottle::default()).unwrap();
        match reader.total(ALL).await {
            Err(ReadError::Unavailable(reason)) => assert!(reason.contains(code), "{code}: {reason}"),
            other => panic!("{code}: {other:?}"),
        }
    };
    let options = postgres::Options { hba: vec!["host all walled 127.0.0.1/32 scram-sha-256"], ..Default::default() };
    let server = tokio::task::spawn_blocking(move || postgres::Server::start(&options)).await.unwrap();
    let admin = postgres::connect(&server.url("postgres")).await;
    for sql in [
        "CREATE DATABASE closed",
        "ALTER DATABASE closed ALLOW_CONNECTIONS false",
        "CREATE ROLE walled LOGIN PASSWORD 'right'",
        "CREATE ROLE unable NOLOGIN",
    ] {
        admin.batch_execute(sql).await.unwrap();
    }
    let address = format!("127.0.0.1:{}", server.port());
    unavailable(&server.url("closed"), "55000").await;
    unavailable(&format!("postgres://walled:wrong@{address}/postgres"), "28P01").await;
    unavailable(&format!("postgres://unable@{address}/postgres"), "28000").await;
    unavailable(&server.url("missing"), "3D000").await;
    // It can be reached, but has no tables, and the user must not read those of another.
    let reader = |url: &str| {
        let opened = store::open(&settings(DatabaseUrl::Postgres(url.to_owned()))).unwrap();
        opened.reader(PATIENCE, QueryThrottle::default()).unwrap()
    };
    let none = reader(&server.url("postgres")).total(ALL).await;
    assert!(matches!(&none, Err(ReadError::Unprepared(reason)) if reason.contains("logweir_lane")), "{none:?}");
    store::open(&settings(DatabaseUrl::Postgres(server.url("postgres")))).unwrap().store().prepare().await.unwrap();
    let denied = reader(&format!("postgres://walled:right@{address}/postgres")).total(ALL).await;
    assert!(
        matches!(&denied, Err(ReadError::Unprepared(reason)) if reason.contains("permission denied")),
        "{denied:?}"
    );
    assert_eq!(reader(&server.url("postgres")).total(ALL).await.unwrap().value, Default::default());
}
