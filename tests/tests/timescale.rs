//! The real program on a real TimescaleDB: what differs there from daily partitions.
//!
//! `LOGWEIR_TEST_PG_BIN` names the programs of a server that has the extension.

// Test helpers unwrap like tests.
#![allow(clippy::unwrap_used)]

use std::fmt::Write as _;
use std::io::Write as _;

use logweir_record::timestamp::{self, DAY_US};
use logweir_tests::accounting::Totals;
use logweir_tests::postgres::{Options, has_extension};
use logweir_tests::process::Server;
use logweir_tests::scenario::{PATIENCE, Scenario, on_postgres_with};
use logweir_tests::store::Store;

#[path = "timescale/interval.rs"]
mod interval;
#[path = "timescale/migrate.rs"]
mod migrate;
#[path = "timescale/mover.rs"]
mod mover;
#[path = "timescale/policies.rs"]
mod policies;
#[path = "timescale/update.rs"]
mod update;

/// Past the capture of test output: what was skipped must be visible in a run that passes.
fn told(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Runs a scenario on a TimescaleDB with these settings, unless there is none.
fn on_timescale(name: &str, settings: &[(&'static str, &str)], run: impl FnOnce(&mut Scenario)) {
    if !has_extension("timescaledb") {
        return told(&format!(
            "{name}: skipped: no TimescaleDB; LOGWEIR_TEST_PG_BIN can name the programs of a server that has it"
        ));
    }
    let settings = settings.iter().map(|&(key, value)| (key, value.to_owned())).collect();
    on_postgres_with(name, &Options { settings, ..Options::default() }, run);
}

fn number(store: &Store, sql: &str) -> i64 {
    let rows = store.rows(&format!("SELECT ({sql})::bigint")).unwrap_or_else(|error| panic!("{error}"));
    rows[0][0].parse().unwrap_or_else(|_| panic!("{sql}: {rows:?}"))
}

fn now_us() -> i64 {
    logweir_engine::clock::wall_us()
}

/// Lines of one record each, at these times.
fn lines(service: &str, times_us: impl IntoIterator<Item = i64>) -> String {
    let mut lines = String::new();
    for (nth, us) in times_us.into_iter().enumerate() {
        let ts = timestamp::text(us);
        let _ =
            writeln!(lines, r#"{{"ts":"{ts}","level":"info","service":"{service}","host":"h","message":"m {nth}"}}"#);
    }
    lines
}

/// Posts lines, and expects that all are accepted.
fn post(server: &Server, ack: &str, lines: &str) {
    let answer = server.post(&format!("/ingest?ack={ack}"), "application/x-ndjson", lines).expect("a response");
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert_eq!(answer.json()["accepted"].as_u64(), Some(lines.lines().count() as u64), "{}", answer.body);
}

/// Waits until the database has everything.
fn caught_up(server: &mut Server) {
    let caught_up =
        |server: &Server| Totals::of(&server.status()).is_some_and(|totals| totals.accepted > 0 && totals.backlog == 0);
    server.until("without backlog", PATIENCE, caught_up).unwrap();
}

/// Stores records of `days` ago, noon.
fn store_days_ago(server: &mut Server, service: &str, days: &[i64]) {
    let noon = |ago: &i64| (now_us().div_euclid(DAY_US) - ago) * DAY_US + DAY_US / 2;
    post(server, "journal", &lines(service, days.iter().map(noon)));
    caught_up(server);
}

/// The number of records that a query finds in all of time.
fn found(server: &Server, query: &str) -> usize {
    let path = format!("/api/v1/query?query={query}&start=1970-01-01T00:00:00Z&end=2100-01-01T00:00:00Z&limit=5000");
    let answer = server.data(&path).expect("a response");
    assert_eq!(answer.status, 200, "{}", answer.body);
    answer.json()["records"].as_array().map_or(0, Vec::len)
}

/// Waits until a step of maintenance has run, and returns why it failed, if it did.
fn step(server: &mut Server, step: &str) -> Option<String> {
    let label = format!("step=\"{step}\"");
    let has_run = |server: &Server| {
        let metrics = server.admin("/metrics").map(|answer| answer.body).unwrap_or_default();
        metrics.lines().any(|line| line.starts_with("logweir_maintenance_failing{") && line.contains(&label))
    };
    server.until(&format!("the step {step}"), PATIENCE, has_run).unwrap();
    let status = server.status();
    let failing = status["maintenance_failing"].as_array().unwrap();
    failing.iter().find(|failing| failing["step"] == step).map(|failing| failing["error"].to_string())
}

/// Starts the program, and waits for the first round of maintenance, which follows the lease.
fn start(s: &mut Scenario) {
    s.start();
    assert_eq!(step(s.server(), "takeovers"), None);
}

/// Runs one more round of maintenance.
fn maintain_again(s: &mut Scenario) {
    s.stop();
    start(s);
}

/// Asserts that each acknowledged record is stored once.
fn assert_verified(s: &mut Scenario) {
    s.stop();
    let output = s.run(&["verify"]);
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    let product = s.store.rows("SELECT count(*) FROM pg_extension WHERE extname = 'timescaledb'").unwrap();
    let product = if product[0][0] == "1" { ", TimescaleDB" } else { ", PostgreSQL" };
    assert!(output.status.success() && text.contains(product), "{text}");
}

const CHUNKS: &str = "SELECT count(*) FROM timescaledb_information.chunks WHERE hypertable_name = 'logs'";

#[test]
fn records_of_thousands_of_days_in_one_request_stop_nobody_and_are_found() {
    on_timescale("many days", &[], |s| {
        start(s);
        let from = now_us().div_euclid(DAY_US) - 3_200;
        let server = s.server();
        post(server, "journal", &lines("old", (0..2_600).map(|day| (from + day) * DAY_US)));
        post(server, "committed", &lines("fresh", (0..60).map(|_| now_us())));
        assert_eq!((found(server, "service:old"), found(server, "service:fresh")), (2_600, 60));
        caught_up(s.server());
        assert!(number(&s.store, CHUNKS) < 20, "a sender decides over the number of chunks");
        maintain_again(s);
        assert_eq!((found(s.server(), "service:old"), found(s.server(), "service:fresh")), (2_600, 60));
        assert!(number(&s.store, CHUNKS) < 20, "a sender decides over the number of chunks");
        assert_verified(s);
    });
}

#[test]
fn installed_but_not_preloaded_it_is_not_used_and_records_are_stored() {
    on_timescale("not preloaded", &[("shared_preload_libraries", "")], |s| {
        post(s.start(), "committed", &lines("s", [now_us()]));
        assert_eq!(number(&s.store, "SELECT count(*) FROM pg_class WHERE relname = 'logs' AND relkind = 'p'"), 1);
        assert!(!s.postgres().log_text().contains("must be preloaded"), "it was tried");
        assert_verified(s);
    });
}

#[test]
fn late_records_wait_for_a_compression_alone() {
    on_timescale("held compression", &[], |s| {
        start(s);
        // The chunk of ten days ago, by a record of its own.
        s.postgres().execute("INSERT INTO logs SELECT 1, now() - interval '10 days', 9, 's', 'h', 'm', NULL");
        let holder = s.postgres().session();
        // As a compression does for as long as it takes.
        holder.execute(
            "BEGIN; DO $$ BEGIN EXECUTE format('LOCK TABLE %s IN EXCLUSIVE MODE', \
             (SELECT show_chunks('logs', older_than => interval '9 days'))); END $$",
        );
        for _ in 0..5 {
            let mut times = vec![now_us(); 99];
            times.push(now_us() - 10 * DAY_US);
            post(s.server(), "committed", &lines("late", times));
        }
        assert_eq!(found(s.server(), "service:late"), 500);
        maintain_again(s);
        assert!(step(s.server(), "late_records").unwrap().contains("lock timeout"), "they stay behind");
        holder.execute("COMMIT");
        // The job of TimescaleDB may be doing so, too.
        let compress = "SELECT compress_chunk(c, true) FROM show_chunks('logs', older_than => interval '9 days') c";
        s.wait("the chunk to be compressed", |s| s.store.rows(compress).is_ok());
        maintain_again(s);
        assert_eq!(step(s.server(), "late_records"), None);
        assert_eq!(found(s.server(), "service:late"), 500);
        let (logs, late) = ("SELECT count(*) FROM logs WHERE service = 'late'", "SELECT count(*) FROM logweir_late");
        assert_eq!((number(&s.store, logs), number(&s.store, late)), (500, 0), "they have moved");
        assert_verified(s);
    });
}

#[test]
fn a_lock_on_the_table_for_late_records_stops_nobody() {
    on_timescale("locked late table", &[], |s| {
        start(s);
        let holder = s.postgres().session();
        // As CREATE INDEX does for as long as it takes.
        holder.execute("BEGIN; LOCK TABLE logweir_late IN SHARE MODE");
        for _ in 0..3 {
            let mut times = vec![now_us(); 99];
            times.push(now_us() - 10 * DAY_US);
            post(s.server(), "committed", &lines("s", times));
        }
        assert_eq!(number(&s.store, "SELECT count(*) FROM logs WHERE ts < now() - interval '9 days'"), 3);
        let log = s.server().log_text();
        let told: Vec<&str> = log.lines().filter(|line| line.contains("a table is locked")).collect();
        assert_eq!(told.len(), 1, "{told:?}");
        assert!(told[0].contains("logweir_late") && told[0].contains("lock timeout"), "{told:?}");
        let metrics = s.server().admin("/metrics").unwrap().body;
        assert!(metrics.contains("logweir_store_fallback{table=\"logweir_late\"} 1"), "{metrics}");
        // With both locked, it waits, and goes on once one of them is free.
        holder.execute("LOCK TABLE logs IN SHARE MODE");
        post(s.server(), "journal", &lines("s", [now_us(), now_us() - 11 * DAY_US]));
        let told = |server: &Server| server.log_text().matches("a table is locked").count() == 2;
        s.server().until("a flush to wait for the lock", PATIENCE, told).unwrap();
        holder.execute("COMMIT");
        caught_up(s.server());
        assert_eq!(found(s.server(), "service:s"), 302);
        assert_verified(s);
    });
}

#[test]
fn recent_records_go_beside_a_chunk_that_is_locked() {
    on_timescale("locked chunk", &[], |s| {
        start(s);
        let times = || [now_us(), now_us() - DAY_US];
        post(s.server(), "committed", &lines("before", times()));
        let holder = s.postgres().session();
        holder.execute(
            "BEGIN; DO $$ DECLARE chunk regclass; BEGIN FOR chunk IN SELECT show_chunks('logs') LOOP \
             EXECUTE format('LOCK TABLE %s IN EXCLUSIVE MODE', chunk); END LOOP; END $$",
        );
        for _ in 0..3 {
            // Two attempts may fail before.
            post(s.server(), "journal", &lines("during", times()));
            caught_up(s.server());
        }
        assert_eq!(found(s.server(), "service:during"), 6);
        holder.execute("COMMIT");
        maintain_again(s);
        let late = number(&s.store, "SELECT count(*) FROM logweir_late");
        assert_eq!((found(s.server(), "service:during"), late), (6, 0));
        assert_verified(s);
    });
}

#[test]
fn a_kill_while_late_records_are_stored_and_move_leaves_each_once() {
    on_timescale("kills", &[], |s| {
        start(s);
        s.postgres().execute("INSERT INTO logs SELECT 1, now() - interval '10 days', 9, 's', 'h', 'm', NULL");
        for round in 0..6 {
            for _ in 0..10 {
                let old = (0..50).map(|nth| now_us() - (8 + nth % 4) * DAY_US);
                post(s.server(), "journal", &lines("old", old.chain([now_us()])));
            }
            if round % 2 == 0 {
                s.server().kill();
            } else {
                s.postgres().kill();
                s.postgres().restart();
                s.server().kill();
            }
            s.start(); // a round of maintenance moves records meanwhile
        }
        caught_up(s.server());
        maintain_again(s);
        s.postgres().execute("DELETE FROM logs WHERE id = 1");
        let counted = number(&s.store, "SELECT sum(records) FROM log_volume");
        let (logs, late) = (s.store.count().unwrap(), number(&s.store, "SELECT count(*) FROM logweir_late"));
        assert_eq!((logs, counted), (6 * 10 * 51, 6 * 10 * 51));
        assert!(late > 0, "not all days have a chunk");
        assert_verified(s);
    });
}

#[test]
fn a_database_that_has_partitions_keeps_them_and_says_that_the_extension_is_not_used() {
    on_timescale("plain before", &[("shared_preload_libraries", "")], |s| {
        post(s.start(), "committed", &lines("s", [now_us()]));
        s.stop();
        s.postgres().stop();
        s.postgres().set("shared_preload_libraries", "timescaledb");
        s.postgres().restart();
        s.postgres().execute("CREATE EXTENSION timescaledb");
        start(s);
        post(s.server(), "committed", &lines("s", [now_us()]));
        let status = s.server().status();
        assert_eq!(status["store"], "PostgreSQL");
        assert!(status["store_version"].as_str().unwrap().contains("is not used"), "{status}");
        assert_eq!(found(s.server(), "service:s"), 2);
    });
}

#[test]
fn what_an_operator_changed_about_the_compression_is_kept() {
    on_timescale("changed policies", &[], |s| {
        start(s);
        s.postgres().execute(
            "SELECT alter_job(job_id, schedule_interval => interval '1 hour', max_runtime => interval '2 hours') \
             FROM timescaledb_information.jobs WHERE proc_name = 'policy_compression'; \
             ALTER TABLE logs SET (timescaledb.compress, timescaledb.compress_orderby = 'ts DESC', \
             timescaledb.compress_segmentby = 'host')",
        );
        s.set("database.compress_after_days", 9);
        maintain_again(s);
        let job = "SELECT count(*) FROM timescaledb_information.jobs WHERE proc_name = 'policy_compression' \
                   AND schedule_interval = interval '1 hour' AND max_runtime = interval '2 hours' \
                   AND (config->>'compress_after')::interval = interval '9 days'";
        assert_eq!(number(&s.store, job), 1);
        let segments = "SELECT count(*) FROM timescaledb_information.compression_settings \
                        WHERE attname = 'host' AND segmentby_column_index = 1";
        assert_eq!(number(&s.store, segments), 1);
        s.set("database.compress_after_days", 0);
        maintain_again(s);
        let jobs = "SELECT count(*) FROM timescaledb_information.jobs WHERE proc_name = 'policy_compression'";
        assert_eq!(number(&s.store, jobs), 0);
    });
}

#[test]
fn the_apache_edition_deletes_records_together_with_their_counters() {
    on_timescale("apache", &[("timescaledb.license", "apache")], |s| {
        start(s);
        store_days_ago(s.server(), "s", &[0, 1, 2, 6, 7, 8, 9, 400]);
        s.set("database.retention_days", 5);
        maintain_again(s);
        maintain_again(s);
        assert_eq!(step(s.server(), "policies"), None);
        let counted = number(&s.store, "SELECT sum(records) FROM log_volume");
        assert_eq!((found(s.server(), "service:s"), counted), (3, 3));
    });
}

#[test]
fn a_chunk_expires_together_with_its_counters_or_not_at_all() {
    on_timescale("expiry", &[], |s| {
        start(s);
        store_days_ago(s.server(), "s", &[0, 1, 6]);
        s.set("database.retention_days", 5);
        let holder = s.postgres().session();
        holder.execute("BEGIN; LOCK TABLE log_volume IN SHARE MODE");
        maintain_again(s);
        assert!(step(s.server(), "retention_partitions").unwrap().contains("lock timeout"));
        let counted = "SELECT sum(records) FROM log_volume";
        assert_eq!((found(s.server(), "service:s"), number(&s.store, counted)), (3, 3));
        holder.execute("COMMIT");
        maintain_again(s);
        assert_eq!(step(s.server(), "retention_partitions"), None);
        assert_eq!((found(s.server(), "service:s"), number(&s.store, counted)), (2, 2));
    });
}

#[test]
fn two_schemas_of_one_database_both_get_their_policies() {
    on_timescale("two schemas", &[], |s| {
        s.postgres().execute("CREATE SCHEMA t1; CREATE SCHEMA t2; CREATE EXTENSION timescaledb");
        // Somebody else's, with the same name.
        s.postgres().execute(
            "CREATE SCHEMA foreigner; CREATE TABLE foreigner.logs (ts timestamptz NOT NULL); \
             SELECT create_hypertable('foreigner.logs', 'ts'); SELECT add_retention_policy('foreigner.logs', interval '9 days')",
        );
        let url = s.settings["database.url"].clone();
        s.set("database.retention_days", 9);
        for schema in ["t1", "t2"] {
            s.set("database.url", format!("{url}?options=-c%20search_path={schema},public"));
            s.set("data_dir", s.dir.join(schema).display());
            post(s.start(), "committed", &lines("s", [now_us(), now_us() - 20 * DAY_US]));
            maintain_again(s);
            for name in ["policies", "retention_counters"] {
                assert_eq!(step(s.server(), name), None, "{schema}");
            }
            let jobs = format!(
                "SELECT count(*) FROM timescaledb_information.jobs WHERE hypertable_schema = '{schema}' \
                 AND proc_name LIKE 'policy_co%'"
            );
            assert_eq!(number(&s.store, &jobs), 1, "{schema} has its compression");
            assert_eq!(found(s.server(), "service:s"), 1, "{schema} deletes its records");
        }
        let foreign = "SELECT count(*) FROM timescaledb_information.jobs WHERE hypertable_schema = 'foreigner'";
        assert_eq!(number(&s.store, foreign), 1, "nobody else's job was touched");
    });
}

#[test]
fn the_extension_may_be_in_a_schema_of_its_own() {
    on_timescale("own schema", &[], |s| {
        s.postgres().execute("CREATE SCHEMA \"Ext\"; CREATE EXTENSION timescaledb SCHEMA \"Ext\"");
        s.set("database.retention_days", 9);
        post(s.start(), "committed", &lines("s", [now_us(), now_us() - 20 * DAY_US]));
        maintain_again(s);
        for name in ["policies", "retention_counters"] {
            assert_eq!(step(s.server(), name), None);
        }
        assert_eq!(number(&s.store, "SELECT count(*) FROM timescaledb_information.hypertables"), 1);
        assert_eq!(found(s.server(), "service:s"), 1);
    });
}

/// Makes a role with the printed privileges, and returns the URL by which it connects.
fn role(s: &Scenario, name: &str, purpose: &str) -> String {
    s.postgres().execute(&format!("CREATE ROLE {name} LOGIN"));
    grant(s, name, purpose);
    s.settings["database.url"].replace("postgres@", &format!("{name}@"))
}

fn grant(s: &Scenario, name: &str, purpose: &str) {
    let output = s.run(&["database", "grants", "--role", name, "--for", purpose]);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    s.postgres().execute(&String::from_utf8(output.stdout).unwrap());
}

/// Rows of `table` that a role sees.
fn seen_by(url: &str, table: &str) -> i64 {
    number(&Store::Postgres(url.to_owned()), &format!("SELECT count(*) FROM {table}"))
}

/// Late records and fresh ones, two of each.
fn late_and_fresh(service: &str) -> String {
    lines(service, [now_us(), now_us(), now_us() - 100 * DAY_US, now_us() - 200 * DAY_US])
}

const LATE: &str = "SELECT count(*) FROM logweir_late";
const IN_LOGS: &str = "SELECT count(*) FROM logs";

#[test]
fn row_security_of_the_records_holds_for_late_ones() {
    on_timescale("row security", &[], |s| {
        // Not with compression: TimescaleDB refuses both.
        s.set("database.compress_after_days", 0);
        start(s);
        let tenant = role(s, "tenant", "reading");
        // An upgrade: the table is made beside policies that are there.
        s.stop();
        s.postgres().execute(
            "DROP TABLE logweir_late; \
             CREATE POLICY own ON logs FOR SELECT TO tenant USING (EXISTS (SELECT FROM (VALUES ('a')) own (service) \
             WHERE own.service = logs.service)); ALTER TABLE logs ENABLE ROW LEVEL SECURITY",
        );
        s.set("database.read_url", &tenant);
        let given = |s: &mut Scenario| s.server().log_text().matches("gave the table for late records").count();
        start(s);
        assert_eq!((step(s.server(), "late_table"), given(s)), (None, 0), "it is made with them, not given them later");
        for service in ["a", "b"] {
            post(s.server(), "committed", &late_and_fresh(service));
        }
        assert_eq!((number(&s.store, LATE), number(&s.store, IN_LOGS)), (4, 4));
        for (table, rows) in [("logs", 2), ("logweir_late", 2), ("logweir_logs()", 4)] {
            assert_eq!(seen_by(&tenant, table), rows, "{table}");
        }
        assert_eq!((found(s.server(), "*"), found(s.server(), "service:b")), (4, 0));

        // While they differ, late records go where they are protected, and nobody gets what he may not see.
        s.postgres().execute("ALTER POLICY own ON logweir_late USING (true)");
        post(s.server(), "committed", &late_and_fresh("b"));
        assert_eq!((number(&s.store, LATE), number(&s.store, IN_LOGS)), (4, 8));
        let refused = s.server().data("/api/v1/query?query=*&start=-300d").unwrap();
        assert!(refused.status != 200 && refused.body.contains("row security"), "{}", refused.body);
        maintain_again(s);
        assert!(step(s.server(), "late_table").unwrap().contains("row security"), "it is told");
        // What the message says.
        s.postgres().execute(
            "DROP POLICY own ON logweir_late; \
             ALTER TABLE logweir_late DISABLE ROW LEVEL SECURITY, NO FORCE ROW LEVEL SECURITY",
        );
        maintain_again(s);
        assert_eq!((step(s.server(), "late_table"), given(s)), (None, 1));
        post(s.server(), "committed", &late_and_fresh("b"));
        assert_eq!(number(&s.store, LATE), 2, "those before have moved to the chunks that were made meanwhile");
        assert_eq!((found(s.server(), "*"), found(s.server(), "service:b")), (4, 0));
        assert_verified(s);
    });
}

#[test]
fn something_else_with_the_name_of_the_table_for_late_records_is_not_used() {
    let others = [
        "CREATE TABLE logweir_late AS SELECT 1::bigint AS id, now() AS ts, 9::smallint AS severity, 's' AS service, \
         'h' AS host, 'not logweir' AS message, NULL::jsonb AS attributes, now() AS stored_at",
        "CREATE INDEX logweir_late ON logs (service)",
        "CREATE VIEW logweir_late AS SELECT * FROM logs",
        "CREATE SEQUENCE logweir_late",
    ];
    on_timescale("foreign table", &[], |s| {
        start(s);
        s.stop();
        s.postgres().execute("DROP TABLE logweir_late");
        for (nth, other) in others.into_iter().enumerate() {
            s.postgres().execute(other);
            start(s);
            assert!(step(s.server(), "late_table").expect(other).contains("did not make"), "{other}");
            post(s.server(), "committed", &late_and_fresh("s"));
            assert_eq!(found(s.server(), "*"), 4 * (nth + 1), "{other}");
            assert_eq!(number(&s.store, "SELECT count(*) FROM logweir_logs()"), 4 * (nth as i64 + 1), "{other}");
            let hits = s.server().data("/api/v1/hits?query=m&start=-300d&step=1d").unwrap();
            assert_eq!(hits.status, 200, "{}", hits.body);
            s.stop();
            let verified = s.run(&["verify"]);
            assert!(verified.status.success(), "{other}: {}", String::from_utf8_lossy(&verified.stdout));
            let kind = other.split(' ').nth(1).unwrap();
            if kind == "TABLE" {
                assert_eq!(number(&s.store, LATE), 1, "nothing was moved or deleted");
            }
            s.postgres().execute(&format!("DROP {kind} logweir_late"));
        }
        start(s);
        assert_eq!(step(s.server(), "late_table"), None, "logweir makes its own");
        post(s.server(), "committed", &late_and_fresh("s"));
        assert_eq!((number(&s.store, LATE), found(s.server(), "*")), (2, 20));
        assert_verified(s);
    });
}

#[test]
fn columns_that_an_operator_adds_do_not_concern_late_records() {
    on_timescale("identity", &[], |s| {
        // TimescaleDB adds no such column to what is compressed.
        s.set("database.compress_after_days", 0);
        start(s);
        s.stop();
        s.postgres().execute(
            "DROP TABLE logweir_late; ALTER TABLE logs ADD n bigint GENERATED ALWAYS AS IDENTITY; \
             CREATE ROLE reader; GRANT SELECT (ts, message) ON logs TO reader WITH GRANT OPTION; GRANT SELECT (n) ON logs TO reader",
        );
        start(s);
        // Who may read some columns of the records may read these of late ones.
        let may = |column: &str| {
            let may = |what| format!("has_column_privilege('reader', 'logweir_late', '{column}', '{what}')::int");
            number(&s.store, &format!("SELECT {} + {}", may("SELECT"), may("SELECT WITH GRANT OPTION")))
        };
        assert_eq!(["ts", "message", "host", "attributes"].map(may), [2, 2, 0, 0]);
        post(s.server(), "committed", &late_and_fresh("s"));
        assert_eq!((number(&s.store, LATE), number(&s.store, "SELECT count(*) FROM logweir_dead_letter")), (2, 0));
        // The chunks of their days: they move.
        s.postgres().execute(
            "INSERT INTO logs (id, ts, severity, service, host, message) \
             SELECT 1, ts, 9, 's', 'h', 'first' FROM logweir_late",
        );
        s.wait("the move", |s| {
            let _ = s.run(&["database", "prepare"]);
            number(&s.store, LATE) == 0
        });
        assert_eq!(found(s.server(), "m"), 4);
    });
}

#[test]
fn the_table_for_late_records_may_come_and_go_while_lanes_are_open() {
    on_timescale("comes and goes", &[], |s| {
        let owner = s.settings["database.url"].clone();
        start(s);
        s.stop();
        s.postgres().execute("DROP TABLE logweir_late; REVOKE CREATE ON SCHEMA public FROM PUBLIC");
        let app = role(s, "app", "storing");
        s.set("database.url", &app);
        s.start();
        assert!(step(s.server(), "late_table").unwrap().contains("42501"), "it is told");
        post(s.server(), "committed", &late_and_fresh("without"));
        assert_eq!((number(&s.store, IN_LOGS), found(s.server(), "service:without")), (4, 4));
        let warnings =
            s.server().log_text().matches("cannot create the table for records far from the present").count();
        assert_eq!(warnings, 1, "once, not by each lane");

        s.set("database.url", &owner);
        // Not its exit status: a job of TimescaleDB's may fail meanwhile.
        let _ = s.run(&["database", "prepare"]);
        assert_eq!(number(&s.store, LATE), 0, "it is there");
        post(s.server(), "committed", &late_and_fresh("with"));
        // The same lanes: logweir_late has the privileges of logs.
        assert_eq!((number(&s.store, LATE), found(s.server(), "service:with")), (2, 4));
        s.postgres().execute("DROP TABLE logweir_late");
        post(s.server(), "committed", &late_and_fresh("again"));
        assert_eq!(
            (number(&s.store, "SELECT count(*) FROM logs WHERE service = 'again'"), found(s.server(), "*")),
            (4, 10)
        );
    });
}

#[test]
fn a_role_with_the_printed_privileges_maintains_an_extension_in_a_schema_of_its_own() {
    on_timescale("privileges", &[], |s| {
        s.postgres().execute(
            "CREATE SCHEMA ext; CREATE EXTENSION timescaledb SCHEMA ext; REVOKE ALL ON SCHEMA public FROM PUBLIC; \
             REVOKE ALL ON DATABASE postgres FROM PUBLIC; \
             ALTER DEFAULT PRIVILEGES REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC",
        );
        start(s);
        post(s.server(), "committed", &lines("s", [now_us(), now_us() - DAY_US, now_us() - 2 * DAY_US]));
        post(s.server(), "committed", &lines("s", [now_us() - 100 * DAY_US, now_us() - 6 * DAY_US]));
        s.stop();
        let (keeper, reader) = (role(s, "keeper", "maintenance"), role(s, "reader", "reading"));
        s.set("database.url", &keeper);
        s.set("database.read_url", &reader);
        s.set("database.retention_days", 5);
        start(s);
        for name in ["policies", "retention_partitions", "retention_rows", "late_table", "late_records", "logweir_logs"]
        {
            assert_eq!(step(s.server(), name), None, "{name}");
        }
        assert_eq!((found(s.server(), "*"), number(&s.store, "SELECT sum(records) FROM log_volume")), (3, 3));
        post(s.server(), "committed", &lines("s", [now_us() + 3 * DAY_US]));
        assert_eq!((found(s.server(), "*"), seen_by(&reader, "public.logweir_logs()")), (4, 4));
        assert_verified(s);
    });
}

#[test]
fn printed_statements_make_what_late_records_need() {
    on_timescale("schema by hand", &[], |s| {
        let output = s.run(&["database", "schema"]);
        s.postgres().execute("CREATE EXTENSION timescaledb");
        s.postgres().execute(&String::from_utf8(output.stdout).unwrap());
        let owner = s.settings["database.url"].clone();
        let (app, reader) = (role(s, "app", "storing"), role(s, "reader", "reading"));
        s.set("database.url", app);
        s.set("database.read_url", reader);
        s.set("database.maintenance", "false");
        post(s.start(), "committed", &late_and_fresh("s"));
        assert_eq!((number(&s.store, LATE), found(s.server(), "*")), (2, 4));
        assert_eq!(s.server().status()["maintenance_failing"], serde_json::json!([]));
        s.stop();
        // The owner has nothing left to make.
        let made = "SELECT count(*) FROM pg_class c, pg_proc p WHERE c.relname = 'logweir_late' \
            AND p.proname = 'logweir_logs' AND age(p.xmin) > (SELECT min(age(xmin)) FROM logweir_lane)";
        assert_eq!(number(&s.store, made), 1);
        s.set("database.url", owner);
        let _ = s.run(&["database", "prepare"]);
        assert_eq!(number(&s.store, made), 1, "it is the one that was made by hand");
        assert_verified(s);
    });
}

#[test]
fn late_records_keep_their_counters_when_logs_is_dropped() {
    on_timescale("drop logs", &[], |s| {
        start(s);
        post(s.server(), "committed", &late_and_fresh("s"));
        s.postgres().execute("DROP TABLE logs");
        post(s.server(), "committed", &late_and_fresh("s"));
        let counted = number(&s.store, "SELECT sum(records) FROM log_volume");
        assert_eq!((number(&s.store, LATE), number(&s.store, IN_LOGS), counted), (4, 2, 6));
        let minutes = "SELECT count(*) FROM log_volume v WHERE records <> (SELECT count(*) FROM logweir_logs() l \
            WHERE date_bin('1 minute', l.ts, '2000-01-01 00:00Z') = v.minute AND l.service = v.service)";
        maintain_again(s);
        assert_eq!(number(&s.store, minutes), 0);
    });
}

#[test]
fn pages_and_counts_of_compressed_days_have_late_records() {
    let settings = [("log_statement", "all")];
    on_timescale("late pages", &settings, |s| {
        start(s);
        s.postgres().execute(
            "INSERT INTO logs SELECT n, date_trunc('day', now()) - interval '10 days' + n * interval '4 s', 9, \
             's' || n % 5, 'h', 'm', NULL FROM generate_series(1, 20000) n; \
             INSERT INTO logweir_late \
             SELECT 1000000 + n, date_trunc('day', now()) - interval '10 days' + n * interval '7000 s', 13, 's0', 'h', 'late', NULL FROM generate_series(1, 10) n",
        );
        s.postgres()
            .execute("SELECT compress_chunk(c, true) FROM show_chunks('logs', older_than => interval '8 days') c");
        let path = "/api/v1/query?query=*&start=-20d&limit=3000";
        let page = s.server().data(path).unwrap().json()["records"].as_array().unwrap().clone();
        let times: Vec<&str> = page.iter().map(|record| record["ts"].as_str().unwrap()).collect();
        assert!(page.len() == 3_000 && times.is_sorted_by(|one, next| one >= next), "{times:?}");
        assert!(
            page.iter().filter(|record| record["message"] == "late").count() > 0,
            "a page has records of both tables"
        );
        let of = |server: &Server, path: &str| server.data(path).unwrap().json();
        for (query, total) in [("host:h", 20_010), ("host:h severity>=warn", 10), ("late", 10), ("host:other", 0)] {
            let query = query.replace(' ', "%20").replace(">=", "%3E%3D");
            let hits = of(s.server(), &format!("/api/v1/hits?query={query}&start=-20d&step=1d"));
            assert_eq!(hits["total"], total, "{query}: {hits}");
        }
        let log = s.postgres().log_text();
        let counts = log.lines().filter(|line| line.contains("SELECT date_bin(") && line.contains("logs"));
        assert!(
            counts.clone().count() > 0 && !counts.clone().any(|line| line.contains("UNION ALL")),
            "one table at a time"
        );
    });
}

#[test]
fn a_job_that_fails_is_told() {
    on_timescale("failed job", &[], |s| {
        start(s);
        assert_eq!(step(s.server(), "policies"), None);
        assert_eq!(step(s.server(), "jobs"), None);
        s.postgres().execute(
            "UPDATE _timescaledb_config.bgw_job SET config = jsonb_set(config, '{compress_after}', '\"no interval\"') \
             WHERE proc_name = 'policy_compression'; \
             SELECT alter_job(job_id, next_start => now(), schedule_interval => interval '1 day', max_retries => 0) \
             FROM timescaledb_information.jobs WHERE proc_name = 'policy_compression'",
        );
        s.wait("the job to fail", |s| {
            number(
                &s.store,
                "SELECT count(*) FROM timescaledb_information.job_stats s JOIN \
                timescaledb_information.jobs j USING (job_id) WHERE last_run_status = 'Failed' \
                AND proc_name = 'policy_compression'",
            ) == 1
        });
        maintain_again(s);
        let failing = step(s.server(), "jobs").expect("the job fails");
        assert!(failing.contains("policy_compression"), "{failing}");
    });
}

#[test]
fn what_is_used_is_told_at_the_start_and_in_the_status() {
    on_timescale("told", &[], |s| {
        start(s);
        let version = s.store.rows("SELECT extversion FROM pg_extension WHERE extname = 'timescaledb'").unwrap();
        let status = s.server().status();
        assert_eq!(status["store"], "TimescaleDB", "{status}");
        let told = status["store_version"].as_str().unwrap();
        assert!(told.starts_with(&format!("{} (PostgreSQL ", version[0][0])), "{told}");
        let log = s.server().log_text();
        assert!(log.lines().any(|line| line.contains("TimescaleDB") && line.contains(told)), "{log}");
    });
}

#[test]
fn dead_letters_that_are_replayed_make_no_chunks_and_wait_for_none() {
    on_timescale("replay", &[], |s| {
        // 2.17 refuses constraints on what is compressed.
        s.set("database.compress_after_days", 0);
        start(s);
        for table in ["logs", "logweir_late"] {
            s.postgres().execute(&format!("ALTER TABLE {table} ADD CONSTRAINT quiet CHECK (service <> 'loud')"));
        }
        // Something else is taken, so it is these that are refused.
        post(s.server(), "committed", &lines("s", [now_us(), now_us() - DAY_US]));
        let days = (0..40).map(|nth| now_us() - (100 + nth) * DAY_US);
        post(s.server(), "journal", &lines("loud", days.chain([now_us() - DAY_US])));
        caught_up(s.server());
        let letters = "SELECT count(*) FROM logweir_dead_letter";
        assert_eq!(number(&s.store, letters), 41);
        for table in ["logs", "logweir_late"] {
            s.postgres().execute(&format!("ALTER TABLE {table} DROP CONSTRAINT quiet"));
        }
        let chunks = number(&s.store, CHUNKS);
        let holder = s.postgres().session();
        holder.execute(
            "BEGIN; DO $$ DECLARE chunk regclass; BEGIN FOR chunk IN SELECT show_chunks('logs') LOOP \
             EXECUTE format('LOCK TABLE %s IN EXCLUSIVE MODE', chunk); END LOOP; END $$",
        );
        let output = s.run(&["dead-letters", "replay", "--all"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        holder.execute("COMMIT");
        assert_eq!((number(&s.store, letters), number(&s.store, CHUNKS)), (0, chunks));
        assert_eq!(found(s.server(), "service:loud"), 41);
        assert_verified(s);
    });
}
