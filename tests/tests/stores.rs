//! The log stores against a real PostgreSQL and a real SQLite file: each record once, whatever happens.

use std::path::PathBuf;
use std::sync::Arc;

use logweir::config::{Database, DatabaseUrl};
use logweir::message::{Batch, BatchFrame};
use logweir::store::{self, Claim, Flushed, LaneRow, LaneWriter, Lease, LogStore, StoreError};
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

async fn the_same_batch_twice_is_once(on: Fixture) {
    let writer = Uuid::new_v4();
    let lease = on.store.take_over(&claim(writer, &[], 1)).await.unwrap();
    let mut first = lane(&on.store, &lease, 0).await;
    let mut second = lane(&on.store, &lease, 0).await;
    let batch = Feed::new(0).plain(10);
    assert_eq!(first.flush(&batch).await.unwrap(), flushed(10, 0));
    assert_eq!(first.flush(&batch).await.unwrap(), flushed(0, 0));
    // The other one does not know that it was done: it is told what the batch was worth.
    assert_eq!(second.flush(&batch).await.unwrap(), flushed(10, 0));
    on.assert_whole(writer, 10).await;
}

async fn an_older_epoch_is_fenced(on: Fixture) {
    let writer = Uuid::new_v4();
    let (old_store, new_store) = (on.other(), on.other());
    let old = old_store.take_over(&claim(writer, &[], 1)).await.unwrap();
    let mut old_lane = lane(&old_store, &old, 0).await;
    let mut feed = Feed::new(0);
    old_lane.flush(&feed.plain(5)).await.unwrap();

    let new = new_store.take_over(&claim(writer, &[1], 2)).await.unwrap();
    assert_eq!((new.epoch, new.lanes[0].last_seq, new.lanes[0].epoch), (2, 1, 2));
    let zombie = feed.clone().plain(7);
    match old_lane.flush(&zombie).await.unwrap_err() {
        StoreError::Fenced { epoch: 2, mine: 1, owner, .. } => assert_eq!(owner, "run 2"),
        other => panic!("{other}"),
    }
    let refused = old_store.open_lane(&old, 1).await.err().expect("an old lease opens no lane");
    assert!(matches!(refused, StoreError::Fenced { .. }), "{refused}");
    let mut new_lane = lane(&new_store, &new, 0).await;
    assert_eq!(new_lane.flush(&feed.plain(3)).await.unwrap(), flushed(3, 0));
    on.assert_whole(writer, 8).await;
}

async fn a_writer_goes_on_through_its_own_runs_and_refuses_a_copy(on: Fixture) {
    let writer = Uuid::new_v4();
    let take = async |runs: &[u128], run| on.store.take_over(&claim(writer, runs, run)).await;
    assert_eq!(take(&[], 1).await.unwrap().epoch, 1);
    assert_eq!(take(&[], 1).await.unwrap().epoch, 1, "the same run again");
    assert_eq!(take(&[1], 2).await.unwrap().epoch, 2);
    assert_eq!(take(&[1, 2, 3, 4], 5).await.unwrap().epoch, 3, "runs 3 and 4 never reached the database");
    match take(&[1, 2, 30], 31).await.unwrap_err() {
        StoreError::StaleCopy { epoch: 3, owner, .. } => assert_eq!(owner, "run 5"),
        other => panic!("{other}"),
    }
    assert_eq!(on.number("SELECT count(*) FROM logweir_takeover").await, 3);
    assert_eq!(take(&[1, 2, 3, 4, 5], 6).await.unwrap().epoch, 4, "the refused copy has changed nothing");
}

async fn a_stale_copys_own_frames_are_adopted_once(on: Fixture) {
    let writer = Uuid::new_v4();
    // Run 1 flushes 10 of 30 records. Then the volume is copied; the copy takes over as run 20 and flushes 25.
    let lease = on.store.take_over(&claim(writer, &[], 1)).await.unwrap();
    let mut common = Feed::new(0);
    lane(&on.store, &lease, 0).await.flush(&common.plain(10)).await.unwrap();
    let inherited = common.plain(20);
    let mut theirs = Claim { tails: vec![(0, common.seq)], ..claim(writer, &[1], 20) };
    let lease = on.store.take_over(&theirs).await.unwrap();
    let mut copy = lane(&on.store, &lease, 0).await;
    copy.flush(&inherited).await.unwrap();
    copy.flush(&common.clone().plain(5)).await.unwrap();

    // We, run 2, have 7 records of our own after the common 30.
    let mine = claim(writer, &[1], 2);
    assert!(matches!(on.store.take_over(&mine).await.unwrap_err(), StoreError::StaleCopy { .. }));
    let found = on.store.inheritance(&mine).await.unwrap().unwrap();
    assert_eq!((found.writer, found.exact), (Uuid::from_u128(2), true));
    assert_eq!(found.up_to_seq, [(0, common.seq)]);
    let own = common.plain(7);
    let starts = [store::LaneStart { lane: 0, seq: own.from_seq, records: own.from_records }];
    for run in [2, 3] {
        // The second round is a repeated command: another run, the same identity.
        let adopted = Claim { writer: found.writer, ..claim(writer, &[1, 2], run) };
        let lease = on.store.adopt(&adopted, &starts).await.unwrap();
        assert_eq!(lease.epoch, i64::try_from(run).unwrap() - 1);
        lane(&on.store, &lease, 0).await.flush(&own).await.unwrap();
    }
    let again = on.store.inheritance(&claim(writer, &[1, 2, 3], 4)).await.unwrap().unwrap();
    assert_eq!(again.writer, found.writer);
    on.assert_whole(writer, 35).await;
    on.assert_whole(found.writer, 37).await;
    assert_eq!(on.number("SELECT count(*) FROM logs").await, 42);
    theirs.runs.push(theirs.run);
    theirs.run = Uuid::from_u128(21);
    assert_eq!(on.store.inheritance(&theirs).await.unwrap(), None, "the copy itself is not stale");
}

async fn a_cursor_that_stands_elsewhere_is_told_and_a_reused_number_stops(on: Fixture) {
    let writer = Uuid::new_v4();
    let lease = on.store.take_over(&claim(writer, &[], 1)).await.unwrap();
    let mut flusher = lane(&on.store, &lease, 0).await;
    let mut feed = Feed::new(0);
    flusher.flush(&feed.plain(5)).await.unwrap();
    let start = feed.clone();
    flusher.flush(&feed.plain(6)).await.unwrap();

    // Boundaries moved: frames 2 and 3 in one batch, of which 2 is in.
    let mut wide = start.clone();
    let batch = wide.batch(&[&[record("x"); 6], &[record("y")]]);
    match flusher.flush(&batch).await.unwrap_err() {
        StoreError::CursorMoved(row) => assert_eq!((row.last_seq, row.rows), (2, 11)),
        other => panic!("{other}"),
    }
    let mut other = start.clone().plain(6);
    other.frames[0].payload_crc ^= 1;
    assert!(matches!(flusher.flush(&other).await.unwrap_err(), StoreError::SequenceReused { lane: 0, seq: 2 }));
    on.assert_whole(writer, 11).await;
}

async fn counts_that_do_not_add_up_are_refused_with_their_numbers(on: Fixture) {
    let writer = Uuid::new_v4();
    let lease = on.store.take_over(&claim(writer, &[], 1)).await.unwrap();
    let mut flusher = lane(&on.store, &lease, 0).await;
    let mut feed = Feed::new(0);
    flusher.flush(&feed.plain(5)).await.unwrap();
    let good = feed.plain(3);
    let mut bad = good.clone();
    bad.from_records += 1;
    bad.frames[0].lane_records += 1;
    let error = flusher.flush(&bad).await.unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, StoreError::Systemic(_)) && text.contains("8 records") && text.contains("has 9"), "{text}");
    on.assert_whole(writer, 5).await;
    flusher.flush(&good).await.unwrap();
    on.assert_whole(writer, 8).await;
}

async fn records_that_the_journal_lost_are_counted(on: Fixture) {
    let writer = Uuid::new_v4();
    let lease = on.store.take_over(&claim(writer, &[], 1)).await.unwrap();
    let mut flusher = lane(&on.store, &lease, 0).await;
    let mut feed = Feed::new(0);
    let mut batch = feed.batch(&[&[record("a"); 2], &[record("damaged"); 4], &[record("c"); 3]]);
    batch.frames.remove(1);
    assert_eq!(flusher.flush(&batch).await.unwrap(), flushed(5, 0));
    let row = &on.store.lanes(writer).await.unwrap()[0];
    assert_eq!((row.rows, row.lost, row.settled()), (5, 4, 9));
    let first = row.lane_id << 44;
    assert_eq!(on.number(&format!("SELECT count(*) FROM logs WHERE id - {first} IN (1, 2, 7, 8, 9)")).await, 5);
}

async fn the_histogram_is_a_group_by_of_the_rows(on: Fixture) {
    let writer = Uuid::new_v4();
    let lease = on.store.take_over(&claim(writer, &[], 1)).await.unwrap();
    for number in 0..2 {
        let mut flusher = lane(&on.store, &lease, number).await;
        let mut feed = Feed::new(number);
        for round in 0..3_i64 {
            let records: Vec<Record<'_>> = (0..200)
                .map(|n| Record {
                    ts_us: NOON_US + (n * 7 + round) * 1_000_000,
                    service: ["a", "b", "c\u{fffd}"][usize::try_from(n % 3).unwrap()],
                    severity: if n % 5 == 0 { Severity::WARN } else { Severity::INFO },
                    ..record("m")
                })
                .collect();
            flusher.flush(&feed.batch(&[&records])).await.unwrap();
        }
    }
    let minute = match on.place {
        Place::Postgres(_) => "date_trunc('minute', ts)",
        Place::Sqlite(_) => "substr(ts, 1, 17) || '00.000000Z'",
    };
    let differing = format!(
        "SELECT count(*) FROM (SELECT {minute} AS m, service, severity, id / 17592186044416 AS l, count(*) AS n FROM logs \
         GROUP BY 1, 2, 3, 4) AS g FULL JOIN log_volume AS v ON v.minute = g.m AND v.service = g.service \
         AND v.severity = g.severity AND v.lane_id = g.l WHERE g.n IS NULL OR v.records IS NULL OR g.n <> v.records"
    );
    assert_eq!(on.number(&differing).await, 0);
    assert!(on.number("SELECT count(*) FROM log_volume").await > 100);
    on.assert_whole(writer, 1_200).await;
}

async fn a_row_that_a_rule_of_the_user_forbids_is_set_aside_and_can_be_replayed(on: Fixture) {
    let (on_rule, off_rule) = match on.place {
        Place::Postgres(_) => (
            "ALTER TABLE logs ADD CONSTRAINT polite CHECK (message <> 'rude')",
            "ALTER TABLE logs DROP CONSTRAINT polite",
        ),
        Place::Sqlite(_) => (
            "CREATE TRIGGER polite BEFORE INSERT ON logs WHEN new.message = 'rude' BEGIN SELECT RAISE(ABORT, 'polite'); END",
            "DROP TRIGGER polite",
        ),
    };
    on.execute(on_rule).await;
    let writer = Uuid::new_v4();
    let lease = on.store.take_over(&claim(writer, &[], 1)).await.unwrap();
    let (mut flusher, row) = on.store.open_lane(&lease, 0).await.unwrap();
    let mut feed = Feed::new(0);
    let batch = feed.batch(&[&[record("a")], &[record("b"), record("rude"), record("c")]]);
    assert_eq!(flusher.flush(&batch).await.unwrap(), flushed(3, 1));
    assert_eq!(flusher.flush(&batch).await.unwrap(), flushed(0, 0));
    on.assert_whole(writer, 4).await;
    let letters = on.store.dead_letters(10).await.unwrap();
    let letter = &letters[0];
    assert_eq!((letters.len(), letter.lane, letter.seq, letter.row), (1, 0, 2, 1));
    assert_eq!(letter.id, (row.lane_id << 44) + 3);
    assert!(letter.reason.contains("polite") && letter.raw.contains("rude"), "{letter:?}");

    assert!(on.store.replay_dead_letter(letter).await.is_err(), "the rule still stands");
    assert_eq!(on.store.dead_letters(10).await.unwrap().len(), 1);
    on.execute(off_rule).await;
    on.store.replay_dead_letter(letter).await.unwrap();
    assert!(on.store.replay_dead_letter(letter).await.is_err(), "it is gone");
    on.assert_whole(writer, 4).await;
    assert_eq!(on.number("SELECT count(*) FROM logs WHERE message = 'rude'").await, 1);
}

async fn old_dead_letters_are_purged(on: Fixture) {
    let at = match on.place {
        Place::Postgres(_) => "to_timestamp(1000 * g)",
        Place::Sqlite(_) => "'1970-01-01T00:16:40.000000Z'",
    };
    let from = match on.place {
        Place::Postgres(_) => "generate_series(1, 3) AS g",
        Place::Sqlite(_) => "(SELECT 1 AS g)",
    };
    let blob = match on.place {
        Place::Postgres(_) => "gen_random_uuid()",
        Place::Sqlite(_) => "randomblob(16)",
    };
    on.execute(&format!(
        "INSERT INTO logweir_dead_letter SELECT g, {blob}, 0, 1, 0, '22021', 'why', '{{}}', {at} FROM {from}"
    ))
    .await;
    assert_eq!(on.store.purge_dead_letters(1_000_000_000).await.unwrap(), 0);
    assert_eq!(on.store.purge_dead_letters(1_000_000_001).await.unwrap(), 1);
}

both! {
    rows_cursor_and_counters_move_together
    the_same_batch_twice_is_once
    an_older_epoch_is_fenced
    a_writer_goes_on_through_its_own_runs_and_refuses_a_copy
    a_stale_copys_own_frames_are_adopted_once
    a_cursor_that_stands_elsewhere_is_told_and_a_reused_number_stops
    counts_that_do_not_add_up_are_refused_with_their_numbers
    records_that_the_journal_lost_are_counted
    the_histogram_is_a_group_by_of_the_rows
    a_row_that_a_rule_of_the_user_forbids_is_set_aside_and_can_be_replayed
    old_dead_letters_are_purged
}
