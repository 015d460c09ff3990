//! Late records move into chunks, and expire: what moves when, what one of them can do to the others, and what a kill
//! does.

use std::sync::Arc;

use logweir_record::timestamp::DAY_US;
use logweir_store::{Database, DatabaseUrl, LogStore};
use logweir_tests::process::Server;
use logweir_tests::scenario::{PATIENCE, Scenario};

use super::{CHUNKS, assert_verified, caught_up, found, lines, maintain_again, now_us, number, on_timescale, post};
use super::{start, step};

const LATE: &str = "SELECT count(*) FROM logweir_late";
const ALL: &str = "(SELECT id, ts FROM logs UNION ALL SELECT id, ts FROM logweir_late) logs";

/// A store in this process, whose rounds of maintenance can be counted. It remembers from round to round, as a server.
struct Rounds {
    runtime: tokio::runtime::Runtime,
    store: Arc<dyn LogStore>,
}

impl Rounds {
    /// Creates the tables.
    fn of(s: &Scenario, change: impl FnOnce(&mut Database)) -> Self {
        let mut settings = Database::new(DatabaseUrl::Postgres(s.settings["database.url"].clone()));
        // TimescaleDB's own job would lock chunks whenever it likes.
        (settings.pool_size, settings.compress_after_days) = (1, 0);
        change(&mut settings);
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let store = runtime.block_on(async { logweir_store::open(&settings) }).unwrap().store();
        runtime.block_on(store.prepare()).unwrap();
        Self { runtime, store }
    }

    /// Runs a round. Returns why `step` failed, if it did.
    fn run(&self, step: &str) -> Option<String> {
        let steps = self.runtime.block_on(self.store.maintain(now_us()));
        let step = steps.into_iter().find(|found| found.name == step).expect("the step has run");
        step.result.err().map(|error| error.to_string())
    }
}

/// SQL of `rows` records of a day so many days ago, for INSERT.
fn of_day(ago: i64, rows: i64) -> String {
    format!(
        "SELECT {ago} * 1000000 + n, date_trunc('day', now()) - interval '{ago} days' + n * interval '1 ms', 9, 's', 'h', \
         'm ' || n, NULL::jsonb FROM generate_series(1, {rows}) n"
    )
}

fn into_late(s: &Scenario, of: &str) {
    s.postgres()
        .execute(&format!("INSERT INTO logweir_late (id, ts, severity, service, host, message, attributes) {of}"));
}

/// Compresses the chunks of `logs` that are older than so many days.
fn compress(s: &Scenario, older_than: i64) {
    s.postgres().execute(&format!(
        "SELECT compress_chunk(c, true) FROM show_chunks('logs', older_than => interval '{older_than} days') c"
    ));
}

/// The status of the oldest chunk of `logs`.
fn oldest_status(s: &Scenario) -> i64 {
    number(
        &s.store,
        "SELECT c.status FROM timescaledb_information.chunks v JOIN _timescaledb_catalog.chunk c \
         ON (c.schema_name, c.table_name) = (v.chunk_schema, v.chunk_name) WHERE v.hypertable_name = 'logs' \
         ORDER BY v.range_start LIMIT 1",
    )
}

/// Starts the program, without compression, on a table with a chunk of ten days ago.
fn start_with_chunk(s: &mut Scenario) {
    s.set("database.compress_after_days", 0);
    start(s);
    s.postgres().execute("INSERT INTO logs SELECT 1, now() - interval '10 days', 9, 's', 'h', 'm', NULL");
}

/// Stores late records of the day so many days ago, a number of them that is a multiple of 5000.
fn store_late(server: &mut Server, ago: i64, rows: i64) {
    let begin = (now_us().div_euclid(DAY_US) - ago) * DAY_US;
    for from in (0..rows).step_by(5_000) {
        post(server, "committed", &lines("old", (from..from + 5_000).map(|nth| begin + nth)));
    }
    caught_up(server);
}

#[test]
fn a_record_that_logs_refuses_becomes_a_dead_letter_and_its_neighbors_move() {
    on_timescale("refused", &[], |s| {
        start_with_chunk(s);
        store_late(s.server(), 10, 20_000);
        assert_eq!(number(&s.store, LATE), 20_000);
        let begin = (now_us().div_euclid(DAY_US) - 10) * DAY_US;
        s.postgres().execute(&format!(
            "ALTER TABLE logs ADD CONSTRAINT odd CHECK (extract(epoch FROM ts) * 1000000 <> {})",
            begin + 12_345
        ));
        maintain_again(s);
        assert_eq!(step(s.server(), "late_records"), None);
        let moved = number(&s.store, "SELECT count(*) FROM logs WHERE service = 'old'");
        let dead = number(&s.store, "SELECT count(*) FROM logweir_dead_letter WHERE sqlstate = '23514'");
        assert_eq!((number(&s.store, LATE), moved, dead), (0, 19_999, 1));
        assert_eq!(number(&s.store, "SELECT sum(records) FROM log_volume"), 19_999);
        assert_verified(s);
        // It is a dead letter like any other.
        s.postgres().execute("ALTER TABLE logs DROP CONSTRAINT odd");
        let id = s.store.rows("SELECT id FROM logweir_dead_letter").unwrap().concat().concat();
        let output = s.run(&["dead-letters", "replay", "--id", &id]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        s.start();
        assert_eq!(number(&s.store, "SELECT sum(records) FROM log_volume"), 20_000);
        assert_verified(s);
    });
}

#[test]
fn triggers_that_raise_or_drop_concern_their_records_alone() {
    on_timescale("triggers", &[], |s| {
        start_with_chunk(s);
        store_late(s.server(), 10, 5_000);
        s.postgres().execute(
            "CREATE FUNCTION strict() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
             IF NEW.message = 'm 100' THEN RAISE EXCEPTION 'odd'; END IF; \
             IF NEW.message IN ('m 200', 'm 4999') THEN RETURN NULL; END IF; RETURN NEW; END $$; \
             CREATE TRIGGER strict BEFORE INSERT ON logs FOR EACH ROW EXECUTE FUNCTION strict()",
        );
        maintain_again(s);
        assert_eq!(step(s.server(), "late_records"), None);
        let codes = s.store.rows("SELECT sqlstate FROM logweir_dead_letter ORDER BY 1").unwrap().concat();
        assert_eq!(codes, ["P0001", "filtered", "filtered"]);
        assert_eq!((number(&s.store, LATE), found(s.server(), "service:old%20%22m%204998%22")), (0, 1));
        assert_verified(s);
    });
}

#[test]
fn a_table_that_refuses_every_record_makes_no_dead_letters() {
    on_timescale("refuses all", &[], |s| {
        start_with_chunk(s);
        store_late(s.server(), 10, 5_000);
        s.stop();
        s.postgres().execute("ALTER TABLE logs ADD CONSTRAINT none CHECK (id = 1)");
        let rounds = Rounds::of(s, |_| {});
        let told = rounds.run("late_records").expect("it fails");
        assert!(told.contains("refuses every record") && told.contains("none"), "{told}");
        let dead = number(&s.store, "SELECT count(*) FROM logweir_dead_letter");
        assert_eq!((number(&s.store, LATE), dead), (5_000, 0));
        s.postgres().execute("ALTER TABLE logs DROP CONSTRAINT none");
        assert_eq!(rounds.run("late_records"), None);
        assert_eq!(number(&s.store, LATE), 0);
    });
}

#[test]
fn what_takes_too_long_at_once_moves_in_smaller_pieces() {
    on_timescale("slow", &[], |s| {
        let rounds = Rounds::of(s, |_| {});
        s.postgres().execute(&format!("INSERT INTO logs {}", of_day(30, 1)));
        into_late(s, &of_day(30, 20_000));
        // As a statement that runs into its limit, beyond a thousand records.
        s.postgres().execute(
            "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ \
             DECLARE n integer := coalesce(nullif(current_setting('test.n', true), ''), '0')::integer + 1; BEGIN \
             PERFORM set_config('test.n', n::text, true); \
             IF n > 1000 THEN RAISE EXCEPTION 'too slow' USING ERRCODE = '57014'; END IF; RETURN NEW; END $$; \
             CREATE TRIGGER slow BEFORE INSERT ON logs FOR EACH ROW EXECUTE FUNCTION slow()",
        );
        assert_eq!(rounds.run("late_records"), None);
        assert_eq!((number(&s.store, LATE), number(&s.store, "SELECT count(*) FROM logs")), (0, 20_001));
    });
}

#[test]
fn a_round_reads_a_bounded_number_of_what_waits_and_the_next_goes_on() {
    on_timescale("hundred thousand days", &[("autovacuum", "off")], |s| {
        let rounds = Rounds::of(s, |_| {});
        let of_days = "SELECT n, '1700-01-01Z'::timestamptz + n * interval '1 day', 9, 's', 'h', 'm', NULL::jsonb \
                       FROM generate_series";
        into_late(s, &format!("{of_days}(1, 100000) n"));
        // The one that can move is behind thousands that stay.
        s.postgres().execute(&format!("INSERT INTO logs {of_days}(2501, 2501) n"));
        // Those of today move in each round, whatever else waits.
        into_late(s, &of_day(0, 1));
        let fetched = "SELECT seq_tup_read + idx_tup_fetch FROM pg_stat_user_tables WHERE relname = 'logweir_late'";
        let before = number(&s.store, fetched);
        assert_eq!(rounds.run("late_records"), None);
        assert_eq!(number(&s.store, LATE), 100_000, "that of today");
        // Statistics of a session are published when it ends, or later.
        s.wait("the statistics", |s| number(&s.store, fetched) > before);
        let fetched = number(&s.store, fetched) - before - 2 * 100_000 - 1;
        assert!(fetched < 20_000, "a round reads {fetched} rows");
        for _ in 0..3 {
            assert_eq!(rounds.run("late_records"), None);
        }
        assert_eq!(number(&s.store, LATE), 99_999, "the other one");
        assert!(number(&s.store, CHUNKS) < 4);
    });
}

#[test]
fn a_compressed_chunk_gets_late_records_in_large_numbers_or_once_a_day() {
    on_timescale("compressed", &[], |s| {
        let rounds = Rounds::of(s, |settings| settings.compress_after_days = 7);
        assert_eq!(rounds.run("policies"), None);
        s.postgres().execute("SELECT alter_job(job_id, scheduled => false) FROM timescaledb_information.jobs");
        s.postgres().execute(&format!("INSERT INTO logs {}", of_day(30, 5_000)));
        compress(s, 20);
        into_late(s, &of_day(30, 10));
        assert_eq!(rounds.run("late_records"), None);
        assert_eq!((oldest_status(s), number(&s.store, LATE)), (1, 10), "a few let it be compressed again");
        s.postgres().execute("UPDATE logweir_late SET stored_at = now() - interval '25 hours' WHERE id % 10 = 3");
        assert_eq!(rounds.run("late_records"), None);
        assert_eq!((oldest_status(s) & 8, number(&s.store, LATE)), (8, 0), "they wait for more than a day");
        // It is compressed again anyway.
        into_late(s, &of_day(30, 3));
        assert_eq!(rounds.run("late_records"), None);
        assert_eq!(number(&s.store, LATE), 0);
        let job = "SELECT job_id FROM timescaledb_information.jobs WHERE proc_name = 'policy_compression'";
        let job = number(&s.store, job);
        s.postgres().execute(&format!("CALL run_job({job})"));
        assert_eq!(oldest_status(s), 1);
        into_late(s, &of_day(30, 60));
        assert_eq!(rounds.run("late_records"), None);
        assert_eq!(number(&s.store, LATE), 0, "a hundredth of the chunk");
    });
}

#[test]
fn a_chunk_that_is_frozen_keeps_its_records_and_counters_and_gets_no_more() {
    on_timescale("frozen", &[], |s| {
        start(s);
        super::store_days_ago(s.server(), "s", &[0, 4, 6]);
        s.set("database.late_after_days", 2);
        maintain_again(s);
        // What waits for it expires, and its counter, too.
        super::store_days_ago(s.server(), "s", &[6]);
        assert_eq!(number(&s.store, LATE), 1);
        let freeze =
            "SELECT _timescaledb_functions.freeze_chunk(c) FROM show_chunks('logs', older_than => interval '5 days') c";
        s.postgres().execute(freeze);
        s.stop();
        let rounds = Rounds::of(s, |settings| settings.retention_days = 3);
        for _ in 0..2 {
            assert_eq!(rounds.run("retention_partitions"), None);
        }
        let counted = number(&s.store, "SELECT sum(records) FROM log_volume");
        assert_eq!((number(&s.store, "SELECT count(*) FROM logs"), number(&s.store, LATE), counted), (2, 0, 2));
        let dropped =
            "SELECT count(*) FROM logs WHERE ts BETWEEN now() - interval '5 days' AND now() - interval '2 days'";
        assert_eq!(number(&s.store, dropped), 0, "the other one was dropped");
        // What is late for it stays where it is.
        into_late(s, &of_day(6, 20_000));
        let rounds = Rounds::of(s, |settings| settings.late_after_days = 2);
        assert_eq!(rounds.run("late_records"), None);
        assert_eq!(number(&s.store, LATE), 20_000);
        // Nor if it looks as if it had been moved to cheaper storage, which takes a service of TimescaleDB's makers.
        s.postgres().execute(
            "SELECT _timescaledb_functions.unfreeze_chunk(c) FROM show_chunks('logs', older_than => interval '5 days') c; \
             UPDATE _timescaledb_catalog.chunk SET osm_chunk = true WHERE status = 0 AND (schema_name, table_name) = \
             (SELECT chunk_schema, chunk_name FROM timescaledb_information.chunks WHERE hypertable_name = 'logs' \
             ORDER BY range_start LIMIT 1)",
        );
        assert_eq!(rounds.run("late_records"), None);
        assert_eq!(number(&s.store, LATE), 20_000);
        s.postgres().execute("UPDATE _timescaledb_catalog.chunk SET osm_chunk = false");
        assert_eq!(rounds.run("late_records"), None);
        assert_eq!(number(&s.store, LATE), 0);
    });
}

#[test]
fn a_chunk_expires_together_with_what_waits_for_it() {
    on_timescale("expires with late records", &[], |s| {
        start(s);
        super::store_days_ago(s.server(), "s", &[0, 6]);
        s.stop();
        s.set("database.late_after_days", 2);
        start(s);
        // The counters of these are the same minute's.
        super::store_days_ago(s.server(), "s", &[6, 6, 5]);
        assert_eq!((found(s.server(), "service:s"), number(&s.store, LATE)), (5, 3));
        // As a record that comes in after those that wait were deleted, and before the chunk is.
        s.postgres().execute(
            "CREATE FUNCTION one_more() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
             INSERT INTO logweir_late SELECT 7, now() - interval '6 days', 9, 's', 'h', 'm', NULL; RETURN NULL; END $$; \
             CREATE TRIGGER one_more AFTER UPDATE ON log_volume FOR EACH STATEMENT EXECUTE FUNCTION one_more()",
        );
        s.set("database.retention_days", 5);
        maintain_again(s);
        assert_eq!(s.server().metric("logweir_store_retention_deleted_rows_total", "table=\"logs\""), 3.0);
        for name in ["retention_partitions", "retention_rows", "retention_counters", "late_records"] {
            assert_eq!(step(s.server(), name), None);
        }
        let counted = number(&s.store, "SELECT sum(records) FROM log_volume");
        assert_eq!((found(s.server(), "service:s"), counted), (2, 2));
    });
}

#[test]
fn expired_late_records_of_any_number_of_days_go_with_their_counters() {
    on_timescale("late records expire", &[], |s| {
        start(s);
        let first = now_us().div_euclid(DAY_US) - 3_000;
        post(s.server(), "committed", &lines("ä".repeat(400).as_str(), (0..2_500).map(|day| (first + day) * DAY_US)));
        post(s.server(), "committed", &lines("s", [now_us(), now_us() - 20 * DAY_US]));
        s.set("database.retention_days", 30);
        maintain_again(s);
        assert_eq!(step(s.server(), "retention_partitions"), None);
        let counted = number(&s.store, "SELECT sum(records) FROM log_volume");
        assert_eq!((number(&s.store, LATE), counted), (1, 2));
        assert_eq!(number(&s.store, "SELECT count(*) FROM log_volume WHERE records <= 0"), 0);
    });
}

#[test]
fn the_fullest_days_get_chunks_while_the_server_has_locks() {
    // 10 * 24 / 8 = 30 chunks.
    let settings = [("max_locks_per_transaction", "10"), ("max_connections", "24")];
    on_timescale("locks", &settings, |s| {
        let rounds = Rounds::of(s, |_| {});
        s.postgres().execute(&format!("INSERT INTO logs {}", of_day(0, 1)));
        for ago in 30..65 {
            into_late(s, &of_day(ago, 10_000 + 100 * (ago - 30)));
        }
        into_late(s, &of_day(70, 9_999));
        let told = rounds.run("late_records").expect("not all fit");
        assert!(told.contains("max_locks_per_transaction") && told.contains("30 of at most 30"), "{told}");
        assert_eq!(number(&s.store, CHUNKS), 30);
        let left = s.store.rows(
            "SELECT current_date - (ts AT TIME ZONE 'UTC')::date, count(*) FROM logweir_late GROUP BY 1 ORDER BY 1",
        );
        let left: Vec<String> = left.unwrap().into_iter().map(|row| row[0].clone()).collect();
        assert_eq!(left, ["30", "31", "32", "33", "34", "35", "70"], "those with the fewest records");
        // It is told until it has ended, also by a round that looks elsewhere.
        assert!(rounds.run("late_records").is_some());
        s.postgres().execute("DELETE FROM logweir_late WHERE ts > now() - interval '50 days'");
        let ended = (0..3).any(|_| rounds.run("late_records").is_none());
        assert!(ended && number(&s.store, LATE) == 9_999);
    });
}

#[test]
fn an_hours_chunk_takes_the_records_of_its_hour_alone() {
    on_timescale("hours", &[], |s| {
        let rounds = Rounds::of(s, |_| {});
        s.postgres().execute("SELECT set_chunk_time_interval('logs', interval '1 hour')");
        let at = "date_trunc('day', now()) - interval '20 days'";
        s.postgres().execute(&format!("INSERT INTO logs SELECT 1, {at} + interval '10 hours', 9, 's', 'h', 'm', NULL"));
        let of_hours = format!(
            "SELECT n, {at} + n * interval '10 minutes', 9, 's', 'h', 'm', NULL::jsonb FROM generate_series(0, 143) n"
        );
        into_late(s, &of_hours);
        let chunks = number(&s.store, CHUNKS);
        assert_eq!(rounds.run("late_records"), None);
        assert_eq!((number(&s.store, LATE), number(&s.store, CHUNKS)), (138, chunks));
    });
}

/// The number of records that are stored twice after a kill between the statement that moves them and its commit.
fn doubled_by_a_kill(faults: &str) -> i64 {
    let mut doubled = 0;
    on_timescale("kill in a move", &[], |s| {
        start_with_chunk(s);
        store_late(s.server(), 10, 15_000);
        s.stop();
        // Before the first piece is committed, then before the second.
        for point in ["store.late.moved=return", "store.late.moved=1*off->return"] {
            let exit = s.launch(&format!("{faults}{point}")).wait(PATIENCE);
            assert!(exit.killed(), "{exit:?}: {}", s.server().log_text());
        }
        start(s);
        let stored = number(&s.store, &format!("SELECT count(*) FROM {ALL} WHERE id <> 1"));
        let distinct = number(&s.store, &format!("SELECT count(DISTINCT id) FROM {ALL} WHERE id <> 1"));
        assert_eq!((distinct, number(&s.store, LATE)), (15_000, 0), "none is lost, and all move in the end");
        doubled = stored - distinct;
        if doubled == 0 {
            assert_verified(s);
        }
    });
    doubled
}

#[test]
fn a_kill_between_a_move_and_its_commit_leaves_each_record_once() {
    assert_eq!(doubled_by_a_kill(""), 0);
}

#[test]
fn moving_in_two_transactions_is_detected_by_a_kill() {
    if !logweir_tests::postgres::has_extension("timescaledb") {
        return super::told("mutation of the move: skipped: no TimescaleDB");
    }
    assert!(doubled_by_a_kill("mutation.move_in_two_transactions=return;") > 0);
}

#[test]
fn others_that_move_or_read_at_the_same_time_see_each_record_once() {
    on_timescale("others", &[], |s| {
        start_with_chunk(s);
        store_late(s.server(), 10, 15_000);
        s.stop();
        let rounds = Rounds::of(s, |_| {});
        let count = format!("SELECT count(*) FROM {ALL}");
        let (reader, mover) = (s.postgres().session(), s.postgres().session());
        let all_are_there = format!(
            "DO $$ BEGIN IF (SELECT count(*) = 15001 AND count(DISTINCT id) = 15001 FROM {ALL}) IS NOT TRUE THEN \
             RAISE EXCEPTION 'not once'; END IF; END $$"
        );
        reader.execute(&format!("BEGIN ISOLATION LEVEL REPEATABLE READ; {all_are_there}"));
        // Another process, whose lock on maintenance was lost while it moves some.
        mover.execute(
            "BEGIN; WITH moved AS (DELETE FROM logweir_late WHERE id % 3 = 0 RETURNING *) \
             INSERT INTO logs SELECT id, ts, severity, service, host, message, attributes FROM moved",
        );
        let output = s.run(&["verify"]);
        assert!(output.status.success(), "during a move: {}", String::from_utf8_lossy(&output.stderr));
        let told = rounds.run("late_records").expect("it waits for the other one in vain");
        assert!(told.contains("lock timeout"), "{told}");
        mover.execute("COMMIT");
        assert_eq!(rounds.run("late_records"), None);
        reader.execute(&format!("{all_are_there}; COMMIT"));
        assert_eq!((number(&s.store, &count), number(&s.store, LATE)), (15_001, 0));
        s.start();
        assert_verified(s);
    });
}

#[test]
fn what_waits_and_what_should_have_moved_is_shown() {
    on_timescale("shown", &[], |s| {
        start_with_chunk(s);
        store_late(s.server(), 10, 5_000);
        store_late(s.server(), 40, 5_000);
        s.postgres().execute("UPDATE logweir_late SET stored_at = now() - interval '2 hours'");
        let holder = s.postgres().session();
        holder.execute(
            "BEGIN; DO $$ BEGIN EXECUTE format('LOCK TABLE %s IN EXCLUSIVE MODE', \
             (SELECT show_chunks('logs', older_than => interval '9 days'))); END $$",
        );
        maintain_again(s);
        let shown = |s: &mut Scenario, name: &str| s.server().metric(name, "");
        assert_eq!(shown(s, "logweir_store_late_rows"), 10_000.0);
        let overdue_s = shown(s, "logweir_store_late_overdue_seconds");
        assert!((7_200.0..10_800.0).contains(&overdue_s), "{overdue_s}");
        holder.execute("COMMIT");
        maintain_again(s);
        assert_eq!(shown(s, "logweir_store_late_rows"), 5_000.0, "a few of a day without a chunk");
        assert_eq!(shown(s, "logweir_store_late_overdue_seconds"), 0.0, "they need not");
    });
}
