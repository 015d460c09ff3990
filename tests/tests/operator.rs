//! What the people around a database do to its tables, while the real program stores records: publications, constraints,
//! columns, triggers, roles, schemas, dropped tables, dumps, frozen processes, wrong clocks. Records are stored all the
//! same, each once; what cannot be maintained is told.

// Test helpers unwrap like tests.
#![allow(clippy::unwrap_used)]

use std::io::Write as _;
use std::time::{Duration, Instant};

use logweir_tests::accounting::Totals;
use logweir_tests::client::Load;
use logweir_tests::clock::Clock;
use logweir_tests::maintenance::{await_failing, await_none_failing, await_step};
use logweir_tests::pooler::{self, Pooler};
use logweir_tests::postgres::{connect, has_extension};
use logweir_tests::process::{self, Server, free_addr};
use logweir_tests::scenario::{PATIENCE, Scenario, on_postgres};
use logweir_tests::store::Store;

/// TimescaleDB refuses row security, and in some versions constraints, on what it compresses; and its job can fail at
/// first, by a race of its own, until it is run again.
fn without_compression(s: &mut Scenario) {
    s.set("database.compress_after_days", 0);
}

/// Stores some records, through intake, journal and database.
fn store_some(s: &mut Scenario) {
    let load = s.load(Load { keyed: true, ..Load::default() });
    s.acknowledged(300);
    load.stop();
    caught_up(s.server());
}

/// Waits until the database has as many records as the journal had at the beginning: others may go on coming in.
fn caught_up(server: &mut Server) {
    let deadline = Instant::now() + PATIENCE;
    let mut wanted = None;
    loop {
        let status = server.status();
        if let Some(totals) = Totals::of(&status).filter(|totals| totals.accepted > 0)
            && totals.accepted - totals.backlog >= *wanted.get_or_insert(totals.accepted)
        {
            return;
        }
        assert!(Instant::now() < deadline, "the records do not reach the database: {status}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Waits until every step of maintenance has run, and none fails.
fn assert_maintained(server: &mut Server) {
    for step in ["connection", "encoding", "clock", "replica_identity", "takeovers"] {
        await_step(server, step);
    }
    if !has_extension("timescaledb") {
        await_step(server, "partitions");
        await_step(server, "text_index");
    }
    await_none_failing(server);
}

fn number(s: &Scenario, sql: &str) -> i64 {
    let rows = s.store.rows(&format!("SELECT ({sql})::bigint")).unwrap_or_else(|error| panic!("{error}"));
    rows[0][0].parse().unwrap_or_else(|_| panic!("{sql}: {rows:?}"))
}

/// All records, wherever they are: a lock that is held for long sends some to the table beside `logs`.
fn stored(s: &Scenario) -> i64 {
    i64::try_from(s.store.count().unwrap()).unwrap()
}

/// Drops the newest daily partition, so that the next round has one to create.
fn drop_newest_partition(s: &Scenario) {
    const NEWEST: &str = "SELECT relname FROM pg_class WHERE relname ~ '^logs_p[0-9]{8}$' ORDER BY 1 DESC LIMIT 1";
    let newest = s.store.rows(NEWEST).unwrap();
    s.postgres().execute(&format!("DROP TABLE {}", newest[0][0]));
}

/// A day that has long been closed, whose indexes are missing.
fn make_closed_partition(s: &Scenario) {
    s.postgres().execute(
        "CREATE TABLE logs_p20250102 PARTITION OF logs FOR VALUES FROM ('2025-01-02T00:00Z') TO ('2025-01-03T00:00Z')",
    );
}

/// Runs a scenario about daily partitions, which are not made on a server that has TimescaleDB.
fn on_partitions(name: &str, run: impl FnOnce(&mut Scenario)) {
    if has_extension("timescaledb") {
        // Past the capture of test output: what was skipped must be visible in a run that passes.
        let _ = writeln!(std::io::stderr(), "{name}: skipped: TimescaleDB has no daily partitions");
        return;
    }
    on_postgres(name, run);
}

/// An operator changes the table while logweir is not running; then it runs, stores, and maintains the tables.
fn survives(name: &str, change: &str) {
    on_partitions(name, |s| {
        s.start();
        store_some(s);
        await_step(s.server(), "partitions");
        drop_newest_partition(s);
        s.stop();
        // A record of the day that has lost its partition: it has to move.
        s.postgres().execute(
            "UPDATE logs SET ts = now() + interval '3 days', severity = 99 WHERE id = (SELECT min(id) FROM logs)",
        );
        s.postgres().execute(change);
        s.start();
        store_some(s);
        assert_maintained(s.server());
        // More if a day has begun meanwhile.
        assert!(number(s, "SELECT count(*) FROM pg_inherits WHERE inhparent = 'logs'::regclass") >= 6);
        let of_default = "SELECT count(*) FROM pg_class c JOIN pg_partitioned_table p ON p.partdefid = c.oid, \
                          LATERAL (SELECT FROM logs l WHERE l.tableoid = c.oid) l";
        assert_eq!(number(s, of_default), 0, "the record has moved to its partition");
        s.assert_contract();
    });
}

#[test]
fn a_publication_of_all_tables() {
    // As in a database in which no maintenance has run yet.
    survives(
        "publication",
        "ALTER TABLE logweir_takeover REPLICA IDENTITY DEFAULT; ALTER TABLE logs_default REPLICA IDENTITY DEFAULT; \
         CREATE PUBLICATION p FOR ALL TABLES",
    );
}

#[test]
fn a_publication_of_the_logs_alone() {
    survives(
        "publication of logs",
        "ALTER TABLE logs_default REPLICA IDENTITY DEFAULT; CREATE PUBLICATION p FOR TABLE logs",
    );
}

#[test]
fn a_check_constraint() {
    survives("check", "ALTER TABLE logs ADD CONSTRAINT \"Not empty\" CHECK (length(message) > 0)");
}

#[test]
fn a_check_constraint_that_existing_rows_violate() {
    survives("not valid", "ALTER TABLE logs ADD CONSTRAINT c CHECK (severity <> 99) NOT VALID");
}

#[test]
fn a_generated_column_more_columns_and_triggers() {
    survives(
        "columns",
        "ALTER TABLE logs ADD tsv tsvector GENERATED ALWAYS AS (to_tsvector('simple', message)) STORED; \
         ALTER TABLE logs ADD \"Team\" text DEFAULT 'ops'; ALTER TABLE logs ADD gone int; ALTER TABLE logs DROP gone; \
         CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN new.\"Team\" := ''dev''; RETURN new; END'; \
         CREATE TRIGGER touch BEFORE INSERT ON logs FOR EACH ROW EXECUTE FUNCTION touch()",
    );
}

#[test]
fn a_default_partition_with_another_name() {
    survives("renamed", "ALTER TABLE logs_default RENAME TO \"Logs rest\"");
}

#[test]
fn quoted_identifiers_everywhere() {
    survives("quotes", "ALTER ROLE postgres SET quote_all_identifiers = on");
}

#[test]
fn a_default_partition_that_was_dropped_while_records_come_in() {
    on_partitions("no default", |s| {
        s.start();
        store_some(s);
        await_step(s.server(), "partitions");
        drop_newest_partition(s);
        s.postgres().execute("DROP TABLE logs_default");
        // Of a day that has no partition.
        let old = r#"{"ts":"2020-01-02T03:04:05Z","msg":"old"}"#;
        assert_eq!(s.server().post("/ingest", "application/json", old).map(|answer| answer.status), Some(200));
        s.wait("the old record", |s| number(s, "SELECT count(*) FROM logs WHERE message = 'old'") == 1);
        caught_up(s.server());
    });
}

#[test]
fn pg_trgm_in_another_schema_and_two_logweirs_in_one_database() {
    on_partitions("pg_trgm", |s| {
        let url = s.settings["database.url"].clone();
        s.postgres().execute("CREATE SCHEMA extensions; CREATE EXTENSION pg_trgm SCHEMA extensions");
        for schema in ["first", "second"] {
            s.postgres().execute(&format!("CREATE SCHEMA {schema}"));
            s.set("database.url", format!("{url}?options=-c%20search_path={schema}"));
            prepare(s, 0);
            s.postgres().execute(&format!(
                "CREATE TABLE {schema}.logs_p20250102 PARTITION OF {schema}.logs \
                 FOR VALUES FROM ('2025-01-02T00:00Z') TO ('2025-01-03T00:00Z')"
            ));
            prepare(s, 0);
        }
        let built = "SELECT count(*) FROM pg_indexes WHERE indexname IN \
                     ('logs_p20250102_message_trgm_idx', 'logs_p20250102_service_ts_idx')";
        assert_eq!(number(s, built), 4);
        // And the server itself.
        s.store = Store::Postgres(s.settings["database.url"].clone());
        s.start();
        store_some(s);
        assert_maintained(s.server());
        s.assert_contract();
    });
}

/// Runs `logweir database prepare` and returns what it printed.
fn prepare(s: &Scenario, code: i32) -> String {
    let output = s.run(&["database", "prepare"]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &*String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{text}");
    text
}

#[test]
fn a_role_that_may_only_read_and_write_rows() {
    on_partitions("DML only", |s| {
        let owner = s.settings["database.url"].clone();
        prepare(s, 0);
        drop_newest_partition(s);
        s.postgres().execute("CREATE ROLE app LOGIN; REVOKE ALL ON DATABASE postgres FROM PUBLIC");
        s.postgres().execute(&grants(s, "app", "storing"));
        s.set("database.url", owner.replace("postgres@", "app@"));
        s.start();
        store_some(s);
        // It may not create tables.
        await_failing(s.server(), "partitions", &["42501", "logweir database prepare"]);
        for step in ["clock", "takeovers"] {
            await_step(s.server(), step); // each step runs
        }
        s.stop();
        let told = s.server().log_text().matches("a step of the database's maintenance fails").count();
        assert_eq!(told, 1, "{}", s.server().log_text());
        assert!(prepare(s, 1).contains("partitions            failed: "));

        s.set("database.maintenance", "false");
        s.start();
        store_some(s);
        let answer = s.server().data("/api/v1/query?query=*").expect("an answer");
        assert_eq!(answer.status, 200, "{}", answer.body);
        assert_eq!(s.server().status()["maintenance_failing"], serde_json::json!([]));
        s.assert_contract();

        // Another role maintains the tables.
        let app = s.settings.insert("database.url".to_owned(), owner).unwrap();
        assert!(prepare(s, 0).contains("partitions            ok"));
        s.postgres().execute(&grants(s, "app", "maintenance"));
        drop_newest_partition(s);
        s.set("database.url", app);
        prepare(s, 0);
        assert_eq!(number(s, "pg_has_role('app', 'postgres', 'MEMBER')::integer"), 0, "it cannot become a superuser");
    });
}

#[test]
fn a_role_gets_no_more_than_its_purpose_needs() {
    on_partitions("grants", |s| {
        let superuser = s.settings["database.url"].clone();
        let of = |role: &str| superuser.replace("postgres@", &format!("{role}@"));
        s.postgres().execute(
            "CREATE ROLE owner LOGIN; CREATE ROLE app LOGIN; CREATE ROLE reader LOGIN; CREATE ROLE keeper LOGIN; \
             GRANT CREATE ON SCHEMA public TO owner; GRANT CREATE ON DATABASE postgres TO owner",
        );
        s.set("database.url", of("owner"));
        prepare(s, 0);
        for (role, purpose) in [("app", "storing"), ("reader", "reading"), ("keeper", "maintenance")] {
            s.postgres().execute(&grants(s, role, purpose));
        }
        drop_newest_partition(s);
        s.set("database.url", of("keeper"));
        prepare(s, 0);
        s.postgres().execute("DROP TABLE logs_default");
        prepare(s, 0);
        let tables = "FROM pg_class WHERE relname ~ '^(logs|log_volume|logweir_)' AND relkind IN ('r', 'p')";
        assert_eq!(number(s, &format!("SELECT count(*) {tables} AND relowner <> 'owner'::regrole")), 0);
        let partitions = "FROM pg_class WHERE relname ~ '^logs_' AND relkind = 'r'";
        assert!(number(s, &format!("SELECT count(*) {partitions}")) > 1);
        let may_change = "has_table_privilege('app', oid, 'UPDATE, DELETE, TRUNCATE')";
        assert_eq!(number(s, &format!("SELECT count(*) {partitions} AND {may_change}")), 0);
        for table in ["logweir_dead_letter", "logweir_takeover"] {
            assert_eq!(
                number(s, &format!("has_table_privilege('reader', '{table}', 'SELECT')::integer")),
                0,
                "{table}"
            );
        }
        assert_eq!(number(s, "has_table_privilege('app', 'logweir_takeover', 'DELETE')::integer"), 0);
        // The role that stores does, beside the one that maintains.
        s.set("database.url", of("app"));
        s.set("database.maintenance", "false");
        s.start();
        store_some(s);
        s.assert_contract();
    });
}

#[test]
fn printed_statements_create_the_tables_for_a_role_that_may_not() {
    on_postgres("schema by hand", |s| {
        let output = s.run(&["database", "schema"]);
        assert_eq!(output.status.code(), Some(0));
        s.postgres().execute(&String::from_utf8(output.stdout).unwrap());
        s.postgres().execute("CREATE ROLE app LOGIN; CREATE ROLE reader LOGIN");
        for (role, purpose) in [("app", "storing"), ("reader", "reading")] {
            s.postgres().execute(&grants(s, role, purpose));
        }
        let owner = s.settings["database.url"].clone();
        s.set("database.url", owner.replace("postgres@", "app@"));
        s.set("database.read_url", owner.replace("postgres@", "reader@"));
        s.set("database.maintenance", "false");
        s.start();
        store_some(s);
        for path in ["/api/v1/query?query=*", "/api/v1/hits?step=1m", "/api/v1/services"] {
            let answer = s.server().data(path).expect("an answer");
            assert_eq!(answer.status, 200, "{path}: {}", answer.body);
        }
        s.assert_contract();
    });
}

/// A session beside logweir's.
struct Beside {
    runtime: tokio::runtime::Runtime,
    client: tokio_postgres::Client,
}

impl Beside {
    fn of(s: &Scenario) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let client = runtime.block_on(connect(&s.postgres().url("postgres")));
        Self { runtime, client }
    }

    fn execute(&self, sql: &str) {
        self.runtime.block_on(self.client.batch_execute(sql)).unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    }
}

#[test]
fn a_restart_beside_a_dump_stores_at_once() {
    on_partitions("dump", |s| {
        s.start();
        store_some(s);
        s.stop();
        make_closed_partition(s);
        let dump = Beside::of(s);
        dump.execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM logs");
        s.start();
        store_some(s);
        // The rounds are not held up by the index either.
        await_step(s.server(), "takeovers");
        dump.execute("COMMIT");
        s.assert_contract();
    });
}

/// As of a predecessor whose session has not ended yet, for instance since its statement takes long.
#[test]
fn a_round_of_maintenance_that_another_session_prevents_comes_soon() {
    on_postgres("prevented", |s| {
        let beside = Beside::of(s);
        for what in ["maintain", "index"] {
            beside.execute(&format!("SELECT pg_advisory_lock(hashtextextended('logweir/{what}/public', 0))"));
        }
        s.start();
        await_step(s.server(), "connection");
        beside.execute("SELECT pg_advisory_unlock_all()");
        assert_maintained(s.server());
    });
}

#[test]
fn a_process_frozen_while_it_creates_the_tables_does_not_stop_another_one() {
    on_postgres("frozen", |s| {
        let beside = Beside::of(s);
        beside.execute("BEGIN; CREATE TABLE logweir_takeover (n int)");
        s.start();
        s.wait("a session that waits", |s| {
            number(
                s,
                "SELECT count(*) FROM pg_locks l JOIN pg_stat_activity a USING (pid) \
                 WHERE NOT granted AND a.application_name LIKE 'logweir/%'",
            ) > 0
        });
        s.server().freeze();
        beside.execute("ROLLBACK");
        let dir = s.dir.join("second");
        let mut second = s.launch_beside(&dir);
        second.ready().expect("it starts");
        let load = Load::default().start(&s.ledger, second.http);
        s.acknowledged(300);
        load.stop();
        caught_up(&mut second);
        s.server().signal(libc::SIGCONT);
        store_some(s);
        drop(second);
    });
}

#[test]
fn tables_of_somebody_else_are_refused_with_the_way_out() {
    on_postgres("foreign", |s| {
        s.postgres().execute("CREATE TABLE logs (line text)");
        s.start();
        let load = s.load(Load::default());
        s.acknowledged(100);
        load.stop();
        let reason = |server: &Server| server.status()["lanes"][0]["store"]["reason"].as_str().map(str::to_owned);
        s.server().until("a reason", PATIENCE, |server| reason(server).is_some()).unwrap();
        let reason = reason(s.server()).unwrap();
        assert!(reason.contains("schema public") && reason.contains("search_path=logweir"), "{reason}");
        s.kill_server();
        s.postgres().execute("CREATE SCHEMA logweir");
        let url = format!("{}?options=-c%20search_path=logweir", s.settings["database.url"]);
        s.set("database.url", &url);
        s.store = Store::Postgres(url);
        s.start();
        store_some(s);
        s.assert_contract();
    });
}

#[test]
fn tables_that_are_dropped_while_records_come_in_are_made_again() {
    on_postgres("DROP TABLE", |s| {
        s.start();
        store_some(s);
        s.postgres().execute("DROP TABLE log_volume, logweir_dead_letter, logweir_replayed, logweir_takeover");
        store_some(s);
        s.assert_contract();
        s.postgres().execute("DROP TABLE logweir_schema_history");
        s.stop();
        s.start();
        store_some(s);
        s.assert_contract();

        s.postgres().execute("DROP TABLE logs");
        store_some(s);
        let (rows, counted) = (stored(s), "SELECT coalesce(sum(records), 0) FROM log_volume");
        assert!(rows > 0);
        assert_eq!(number(s, counted), rows, "the counters are those of the records that are there");
    });
}

#[test]
fn relations_named_like_the_table_for_late_records_are_left_alone() {
    on_postgres("foreign table", |s| {
        s.start();
        store_some(s);
        s.postgres().execute("DROP TABLE IF EXISTS logweir_late");
        // A copy: if it were read or emptied, records would be there twice.
        for other in [
            "TABLE logweir_late AS SELECT *, now() AS stored_at FROM logs",
            "INDEX logweir_late ON logs (host)",
            "VIEW logweir_late AS SELECT * FROM logs",
            "SEQUENCE logweir_late",
        ] {
            s.postgres().execute(&format!("CREATE {other}"));
            let copied = |s: &Scenario| match other.starts_with("TABLE") {
                true => number(s, "SELECT count(*) FROM logweir_late"),
                false => 0,
            };
            let before = copied(s);
            store_some(s);
            let _ = s.run(&["database", "prepare"]);
            assert_eq!(copied(s), before, "{other}");
            for path in ["/api/v1/query?query=*", "/api/v1/hits?query=host:*&step=1m", "/api/v1/facets"] {
                let answer = s.server().data(path).expect("an answer");
                assert!(answer.status == 200 && !answer.body.contains("\"partial\":true"), "{other}: {}", answer.body);
            }
            let all = number(s, "SELECT count(*) FROM logweir_logs()");
            assert_eq!(all, number(s, "SELECT count(*) FROM logs"), "{other}");
            s.assert_contract();
            s.postgres().execute(&format!("DROP {} logweir_late", other.split(' ').next().unwrap()));
        }
    });
}

#[test]
fn identities_that_were_dropped_are_not_invented_again() {
    on_postgres("no lanes", |s| {
        s.start();
        store_some(s);
        let rows = stored(s);
        s.postgres().execute("DROP TABLE logweir_lane");
        let load = s.load(Load::default());
        s.acknowledged(100);
        load.stop();
        let refused = |server: &Server| {
            let status = server.status()["lanes"].to_string();
            status.contains("table logweir_lane is missing") && status.contains("search_path=logweir")
        };
        s.server().until("the reason", PATIENCE, refused).unwrap();
        assert_eq!(stored(s), rows, "nothing is stored twice");
    });
}

#[test]
fn a_wrong_clock_deletes_nothing() {
    let clock = match Clock::new() {
        Ok(clock) => clock,
        Err(why) => return eprintln!("skipped: {why}"),
    };
    on_partitions("clock", |s| {
        s.set("database.retention_days", "7");
        s.start();
        store_some(s);
        let partitions = "SELECT count(*) FROM pg_class WHERE relname ~ '^logs_p[0-9]{8}$'";
        s.wait("the partitions", |s| number(s, partitions) == 5);
        s.stop();
        let rows = stored(s);
        for (n, offset) in ["+400d", "-400d"].into_iter().enumerate() {
            let mut command = process::command(&s.settings, "", &["run"]);
            clock.set(offset);
            command.envs(clock.whole_environment());
            let (http, admin) =
                (s.settings["http.listen"].parse().unwrap(), s.settings["admin.listen"].parse().unwrap());
            let log = s.dir.join(format!("wrong-clock-{n}.log"));
            let mut server = Server::spawn(command, http, admin, log);
            server.ready().expect("it starts");
            let load = Load { records: 1, ..Load::default() }.start(&s.ledger, http);
            s.acknowledged(50);
            load.stop();
            caught_up(&mut server);
            await_failing(&server, "clock", &["nothing is deleted"]);
            await_step(&server, "takeovers"); // the other steps run
            server.kill();
        }
        assert!(stored(s) >= rows + 100);
        assert_eq!(number(s, partitions), 5);
        // With the right clock everything goes on.
        s.start();
        store_some(s);
        await_step(s.server(), "clock");
        s.assert_contract();
    });
}

#[test]
fn expired_partitions_are_dropped_and_their_records_counted() {
    on_partitions("retention", |s| {
        s.start();
        store_some(s);
        s.stop();
        let days = number(s, "SELECT extract(epoch FROM now())::bigint / 86400 - 8");
        let day = format!("to_timestamp({days} * 86400::bigint)");
        s.postgres().execute(&format!(
            "DO $$ BEGIN EXECUTE format('CREATE TABLE logs_p%s PARTITION OF logs FOR VALUES FROM (%L) TO (%L)', \
             to_char({day} AT TIME ZONE 'UTC', 'YYYYMMDD'), {day}, {day} + interval '1 day'); END $$"
        ));
        s.start();
        let body = format!("{{\"ts\":{},\"msg\":\"old\"}}\n", days * 86_400 + 5).repeat(3);
        let answer = s.server().post("/ingest?ack=committed", "application/x-ndjson", &body);
        assert_eq!(answer.map(|answer| answer.status), Some(200));
        let rows = stored(s);
        s.stop();
        s.set("database.retention_days", "7");
        s.start();
        s.wait("the old records to expire", |s| stored(s) == rows - 3);
        let deleted = |server: &Server| server.metric("logweir_store_retention_deleted_rows_total", "table=\"logs\"");
        s.server().until("the counter", PATIENCE, |server| deleted(server) > 0.0).unwrap();
        assert_eq!(deleted(s.server()), 3.0);
        // It counts first.
        assert_eq!(s.server().metric("logweir_store_partitions_dropped_total", ""), 1.0);
    });
}

#[test]
fn a_database_that_is_not_utf8_is_told() {
    on_postgres("LATIN1", |s| {
        s.postgres().execute("CREATE DATABASE latin ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0");
        let url = s.postgres().url("latin");
        s.set("database.url", &url);
        s.store = Store::Postgres(url);
        s.start();
        store_some(s);
        await_failing(s.server(), "encoding", &["LATIN1", "ENCODING 'UTF8'"]);
        s.assert_contract();
    });
}

/// What the command prints for `role`.
fn grants(s: &Scenario, role: &str, purpose: &str) -> String {
    let output = s.run(&["database", "grants", "--role", role, "--for", purpose]);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Gives each step of maintenance something that it has to do, and returns the number of records that must stay.
fn make_work_for_maintenance(s: &Scenario) -> i64 {
    s.postgres().execute(
        "DO $$ DECLARE today timestamptz := date_trunc('day', now() AT TIME ZONE 'UTC') AT TIME ZONE 'UTC'; day timestamptz; \
         BEGIN FOREACH day IN ARRAY ARRAY[today - interval '20 days', today - interval '4 days'] LOOP \
         EXECUTE format('CREATE TABLE logs_p%s PARTITION OF logs FOR VALUES FROM (%L) TO (%L)', \
         to_char(day AT TIME ZONE 'UTC', 'YYYYMMDD'), day, day + interval '1 day'); \
         EXECUTE format('ALTER TABLE logs_p%s OWNER TO %I', to_char(day AT TIME ZONE 'UTC', 'YYYYMMDD'), \
         (SELECT pg_get_userbyid(relowner) FROM pg_class WHERE oid = 'logs'::regclass)); \
         INSERT INTO logs VALUES (1, day, 9, 's', 'h', 'old', NULL), (1, day - interval '20 days', 9, 's', 'h', 'old', NULL); \
         END LOOP; END $$; \
         INSERT INTO logs VALUES (1, now(), 9, 's', 'h', 'new', NULL); \
         INSERT INTO log_volume SELECT date_trunc('minute', ts), service, severity, 1, 1 FROM logs; \
         INSERT INTO logweir_writer VALUES (gen_random_uuid(), 5000, gen_random_uuid(), 'x', now()); \
         INSERT INTO logweir_takeover SELECT writer_id, n, run_id, NULL, 'x', now(), NULL, 0, 0 \
         FROM logweir_writer, generate_series(1, 10) n WHERE epoch = 5000; \
         INSERT INTO logweir_idempotency_key VALUES ('x', 1, 1, 1, 1, now() - interval '3 days'); \
         ALTER TABLE logweir_takeover REPLICA IDENTITY DEFAULT; ALTER TABLE logs_default REPLICA IDENTITY DEFAULT; \
         CREATE PUBLICATION p FOR ALL TABLES",
    );
    2
}

/// A role that has exactly what is printed for its purpose, on a database that gives nobody anything.
fn each_purpose_needs_what_is_printed_for_it(name: &str, make_tables: impl FnOnce(&mut Scenario)) {
    on_partitions(name, |s| {
        let superuser = s.settings["database.url"].clone();
        let of = |role: &str| superuser.replace("postgres@", &format!("{role}@"));
        s.postgres().execute(
            "CREATE ROLE app LOGIN; CREATE ROLE reader LOGIN; CREATE ROLE keeper LOGIN; CREATE ROLE owner LOGIN; \
             REVOKE ALL ON DATABASE postgres FROM PUBLIC; REVOKE ALL ON SCHEMA public FROM PUBLIC; \
             CREATE SCHEMA extensions; CREATE EXTENSION pg_trgm SCHEMA extensions",
        );
        make_tables(s);
        s.set("database.url", &superuser);
        s.postgres().execute(&grants(s, "keeper", "maintenance"));
        s.set("database.url", of("keeper"));
        prepare(s, 0);
        let kept = make_work_for_maintenance(s);

        // A server that stores and maintains.
        s.set("database.retention_days", 7);
        s.start();
        store_some(s);
        let steps = "replica_identity partitions retention_partitions retention_rows retention_counters idempotency_keys \
                     takeovers clock service_index text_index";
        for step in steps.split_whitespace() {
            await_step(s.server(), step);
        }
        await_none_failing(s.server());
        assert_eq!(number(s, "SELECT count(*) FROM logs WHERE service = 's'"), kept, "the old ones expired");
        assert_eq!(number(s, "SELECT count(*) FROM log_volume WHERE service = 's'"), kept);
        assert_eq!(number(s, "SELECT count(*) FROM logweir_takeover WHERE owner = 'x'"), 0);
        assert_eq!(number(s, "SELECT count(*) FROM logweir_idempotency_key WHERE key = 'x'"), 0);
        s.wait("the indexes", |s| number(s, "SELECT count(*) FROM pg_indexes WHERE indexname LIKE '%trgm_idx'") == 1);
        s.stop();
        s.postgres().execute(
            "DROP PUBLICATION p; DELETE FROM logs WHERE service = 's'; DELETE FROM log_volume WHERE service = 's'; \
             DELETE FROM logweir_idempotency_key",
        );

        // One that only stores, and one role that only reads.
        s.set("database.url", &superuser);
        for (role, purpose) in [("app", "storing"), ("reader", "reading")] {
            s.postgres().execute(&grants(s, role, purpose));
        }
        s.set("database.url", of("app"));
        s.set("database.read_url", of("reader"));
        s.set("database.maintenance", "false");
        s.postgres().execute("ALTER TABLE logs ADD CONSTRAINT polite CHECK (message NOT LIKE '%-33/%') NOT VALID");
        s.start();
        store_some(s);
        assert_eq!(s.server().status()["maintenance_failing"], serde_json::json!([]));
        let letters = number(s, "SELECT count(*) FROM logweir_dead_letter");
        assert!(letters > 0 && number(s, "SELECT count(*) FROM logweir_idempotency_key") > 0);
        for path in
            ["/api/v1/query?query=*", "/api/v1/hits?step=1m", "/api/v1/services", "/api/v1/facets", "/api/v1/fields"]
        {
            let answer = s.server().data(path).expect("an answer");
            assert!(answer.status == 200 && !answer.body.contains("\"partial\":true"), "{path}: {}", answer.body);
        }
        s.assert_contract();
        s.postgres().execute("ALTER TABLE logs DROP CONSTRAINT polite");
        let replayed = s.run(&["dead-letters", "replay", "--all"]);
        let text = String::from_utf8_lossy(&replayed.stdout);
        assert!(text.contains("replayed") && text.contains(" 0 failed"), "{text}");
        for command in [&["dead-letters", "purge", "--older-than", "1d"][..], &["verify"]] {
            assert_eq!(s.run(command).status.code(), Some(0), "{command:?}");
        }
    });
}

#[test]
fn each_purpose_needs_what_is_printed_for_it_on_tables_of_a_superuser() {
    each_purpose_needs_what_is_printed_for_it("superuser's", |s| {
        prepare(s, 0);
    });
}

#[test]
fn each_purpose_needs_what_is_printed_for_it_on_tables_of_another_role() {
    each_purpose_needs_what_is_printed_for_it("another role's", |s| {
        s.postgres().execute(&grants(s, "owner", "maintenance"));
        let url = s.settings["database.url"].replace("postgres@", "owner@");
        s.set("database.url", url);
        prepare(s, 0);
        // What a member of the owner makes again belongs to the owner, too.
        s.postgres().execute("DROP TABLE logweir_clock, logweir_idempotency_key");
    });
}

#[test]
fn each_purpose_needs_what_is_printed_for_it_without_tables() {
    each_purpose_needs_what_is_printed_for_it("own", |_| {});
}

#[test]
fn an_empty_database_in_which_the_role_may_not_create_tables() {
    on_postgres("no CREATE", |s| {
        s.postgres().execute("CREATE ROLE app LOGIN; REVOKE CREATE ON SCHEMA public FROM PUBLIC");
        let superuser = s.settings["database.url"].clone();
        assert!(grants(s, "app", "storing").contains("run `logweir database prepare`"));
        s.set("database.url", superuser.replace("postgres@", "app@"));
        s.start();
        let load = s.load(Load::default());
        s.acknowledged(300);
        load.stop();
        let told = |server: &Server| {
            let lanes = server.status()["lanes"].to_string();
            lanes.contains("42501") && lanes.contains("logweir database grants --role ROLE --for maintenance")
        };
        s.server().until("what has to be done", PATIENCE, told).unwrap();
        // As the owner of the database does it; then it goes on by itself.
        let app = s.settings.insert("database.url".to_owned(), superuser).unwrap();
        let printed = grants(s, "app", "maintenance");
        s.postgres().execute(&printed);
        s.set("database.url", app);
        caught_up(s.server());
        assert_maintained(s.server());
        s.assert_contract();
    });
}

#[test]
fn tables_of_a_member_of_the_owner_belong_to_the_owner() {
    on_postgres("made again", |s| {
        without_compression(s);
        let superuser = s.settings["database.url"].clone();
        s.postgres().execute("CREATE ROLE owner LOGIN; CREATE ROLE keeper LOGIN");
        s.postgres().execute(&grants(s, "owner", "maintenance"));
        s.set("database.url", superuser.replace("postgres@", "owner@"));
        prepare(s, 0);
        s.postgres().execute(&grants(s, "keeper", "maintenance"));
        s.postgres().execute("DROP TABLE logs, log_volume, logweir_dead_letter, logweir_clock");
        s.set("database.url", superuser.replace("postgres@", "keeper@"));
        s.set("database.retention_days", 7);
        prepare(s, 0);
        let tables = "FROM pg_class WHERE relname ~ '^(logs|log_volume|logweir_)' AND relkind IN ('r', 'p')";
        assert_eq!(number(s, &format!("SELECT count(*) {tables} AND relowner <> 'owner'::regrole")), 0);
        s.set("database.url", superuser.replace("postgres@", "owner@"));
        prepare(s, 0);
    });
}

#[test]
fn what_comes_before_the_tables_in_search_path_gets_no_rows() {
    on_postgres("search_path", |s| {
        s.postgres().execute("CREATE ROLE app LOGIN SUPERUSER");
        let url = s.settings["database.url"].replace("postgres@", "app@");
        s.set("database.url", url);
        s.set("database.retention_days", 7);
        s.start();
        store_some(s);
        let load = s.load(Load::default());
        let tables = |schema: &str| {
            let tables = ["logs", "log_volume", "logweir_dead_letter"];
            tables.map(|name| format!("CREATE TABLE {schema}.{name} (LIKE public.{name} INCLUDING ALL);")).join(" ")
        };
        // Found by open sessions at once: "$user" comes first.
        s.postgres().execute(&format!("CREATE SCHEMA app AUTHORIZATION app; {}", tables("app")));
        s.acknowledged(500);
        caught_up(s.server());
        // Found by new sessions.
        s.postgres().execute(&format!(
            "CREATE SCHEMA other; {} CREATE TABLE other.logweir_lane (LIKE public.logweir_lane); \
             ALTER ROLE app SET search_path = other, app",
            tables("other")
        ));
        s.postgres()
            .execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'logweir/%'");
        s.acknowledged(500);
        caught_up(s.server());
        // Comes first in the session that makes it.
        s.postgres().execute(
            "CREATE FUNCTION scratch() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN \
             CREATE TEMP TABLE IF NOT EXISTS logs (LIKE public.logs); RETURN NULL; END$$; \
             CREATE TRIGGER scratch AFTER INSERT ON public.logs FOR EACH STATEMENT EXECUTE FUNCTION scratch()",
        );
        s.acknowledged(500);
        load.stop();
        caught_up(s.server());
        let answer = s.server().data("/api/v1/query?query=*").expect("an answer");
        assert!(answer.status == 200 && !answer.body.contains("\"records\":[]"), "{}", answer.body);
        assert!(!answer.body.contains("\"partial\":true"), "{}", answer.body);
        for table in ["app.logs", "app.log_volume", "other.logs", "other.log_volume", "other.logweir_lane"] {
            assert_eq!(number(s, &format!("SELECT count(*) FROM {table}")), 0, "{table}");
        }
        assert_maintained(s.server());
        s.postgres().execute("ALTER ROLE app SET search_path = public; DROP TRIGGER scratch ON logs");
        s.assert_contract();
    });
}

#[test]
fn commands_refuse_a_pooler_that_shares_server_connections_by_name() {
    if pooler::program().is_none() {
        eprintln!("SKIPPED: PgBouncer is not installed");
        return;
    }
    on_postgres("transaction pooler", |s| {
        without_compression(s);
        prepare(s, 0);
        s.postgres().execute("CREATE ROLE app LOGIN SUPERUSER PASSWORD 'one'");
        let commands: [&[&str]; 5] = [
            &["database", "prepare"],
            &["database", "grants", "--role", "app"],
            &["dead-letters", "list"],
            &["dead-letters", "replay", "--all"],
            &["dead-letters", "purge", "--older-than", "1d"],
        ];
        for (mode, works) in [("transaction", false), ("statement", false), ("session", true)] {
            let pooler = Pooler::start(s.postgres().port(), mode, &[("app", "one")]);
            s.set("database.url", format!("postgres://app:one@127.0.0.1:{}/postgres", pooler.port()));
            for command in commands {
                let output = s.run(command);
                let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
                let is_refused = text.contains("pool_mode=session") && text.contains("database.url");
                assert!(is_refused != works, "{mode} {command:?}: {text}");
                assert_eq!(output.status.success(), works, "{mode} {command:?}: {text}");
            }
        }
    });
}

/// Records that a constraint has refused until now, beside one of the same minute that it has not.
fn refuse_some(s: &mut Scenario, records: usize) {
    let ts = logweir_tests::client::now_text();
    let record =
        |message: &str| format!("{{\"ts\":\"{ts}\",\"service\":\"a\",\"level\":\"info\",\"msg\":\"{message}\"}}\n");
    let post = |s: &mut Scenario, body: &str| {
        let answer = s.server().post("/ingest?ack=committed", "application/x-ndjson", body);
        assert_eq!(answer.map(|answer| answer.status), Some(200));
    };
    post(s, &record("polite"));
    s.postgres().execute("ALTER TABLE logs ADD CONSTRAINT polite CHECK (message <> 'rude')");
    post(s, &record("rude").repeat(records));
    assert_eq!(number(s, "SELECT count(*) FROM logweir_dead_letter"), i64::try_from(records).unwrap());
    s.postgres().execute("ALTER TABLE logs DROP CONSTRAINT polite");
}

/// Runs `logweir dead-letters replay --all`; what it printed.
fn replay(s: &Scenario) -> String {
    let output = s.run(&["dead-letters", "replay", "--all"]);
    String::from_utf8_lossy(&output.stdout).into_owned() + &*String::from_utf8_lossy(&output.stderr)
}

#[test]
fn dead_letters_are_replayed_whatever_the_isolation_that_the_role_has_by_default() {
    for level in ["repeatable read", "serializable"] {
        on_postgres(level, |s| {
            without_compression(s);
            s.set("lanes", 1);
            s.postgres().execute(&format!("ALTER ROLE postgres SET default_transaction_isolation = '{level}'"));
            s.start();
            refuse_some(s, 5);
            // As a flush that counts the same minute, and commits while the replay waits for it.
            let flush = Beside::of(s);
            flush.execute("BEGIN ISOLATION LEVEL READ COMMITTED; UPDATE log_volume SET records = records");
            let replayed = std::thread::scope(|threads| {
                let replaying = threads.spawn(|| replay(s));
                s.wait("the replay waits", |s| {
                    let waits = "SELECT count(*) FROM pg_locks l JOIN pg_stat_activity a USING (pid) \
                                 WHERE NOT granted AND a.application_name = 'logweir/admin'";
                    number(s, waits) > 0 || replaying.is_finished()
                });
                flush.execute("COMMIT");
                replaying.join().unwrap()
            });
            assert!(replayed.contains("replayed 5 dead letters, 0 failed"), "{level}: {replayed}");
            assert_eq!(number(s, "SELECT sum(records) FROM log_volume"), stored(s));
            assert_eq!(s.run(&["verify"]).status.code(), Some(0));
        });
    }
}

#[test]
fn a_replay_that_the_database_ends_is_tried_again_and_not_for_ever() {
    on_postgres("40001", |s| {
        without_compression(s);
        s.set("lanes", 1);
        s.start();
        refuse_some(s, 3);
        s.postgres().execute(
            "CREATE SEQUENCE tries; CREATE FUNCTION conflict() RETURNS trigger LANGUAGE plpgsql AS \
             $$BEGIN IF nextval('tries') < 4 THEN RAISE 'not now' USING ERRCODE = '40001'; END IF; RETURN new; END$$; \
             CREATE TRIGGER conflict BEFORE INSERT ON logs FOR EACH ROW EXECUTE FUNCTION conflict()",
        );
        let text = replay(s);
        assert!(text.contains("replayed 3 dead letters, 0 failed"), "{text}");
        s.postgres().execute("DROP TRIGGER conflict ON logs");
        s.postgres().execute("DELETE FROM logs WHERE message = 'rude'; DELETE FROM logweir_replayed");
        refuse_some(s, 2);
        s.postgres().execute(
            "CREATE OR REPLACE FUNCTION conflict() RETURNS trigger LANGUAGE plpgsql AS \
             $$BEGIN PERFORM nextval('tries'); RAISE 'never' USING ERRCODE = '40001'; END$$; ALTER SEQUENCE tries RESTART; \
             CREATE TRIGGER conflict BEFORE INSERT ON logs FOR EACH ROW EXECUTE FUNCTION conflict()",
        );
        let text = replay(s);
        assert!(text.contains("2 failed") && text.contains("failed 5 times") && text.contains("40001"), "{text}");
        assert_eq!(number(s, "SELECT last_value FROM tries"), 10, "each of both five times");
        assert_eq!(number(s, "SELECT count(*) FROM logweir_dead_letter"), 2);
    });
}

#[test]
fn a_truncated_table_goes_on_with_the_next_records() {
    on_postgres("TRUNCATE", |s| {
        s.start();
        store_some(s);
        s.postgres().execute("CREATE TABLE kept (LIKE logs)");
        let load = s.load(Load::default());
        for _ in 0..5 {
            s.acknowledged(300);
            s.postgres().execute(
                "BEGIN; LOCK TABLE logs IN ACCESS EXCLUSIVE MODE; INSERT INTO kept SELECT * FROM logs; TRUNCATE logs; COMMIT",
            );
        }
        s.acknowledged(300);
        load.stop();
        caught_up(s.server());
        assert!(number(s, "SELECT count(*) FROM kept") > 0 && number(s, "SELECT count(*) FROM logs") > 0);
        // What was there and what came later is everything, once.
        s.postgres().execute("INSERT INTO logs SELECT * FROM kept");
        s.assert_contract();
    });
}

#[test]
fn a_foreign_key_of_another_table_keeps_the_records_that_it_refers_to() {
    on_partitions("foreign key", |s| {
        s.start();
        store_some(s);
        await_step(s.server(), "partitions");
        drop_newest_partition(s);
        s.stop();
        let daily = |days: u32| {
            format!(
                "DO $$ DECLARE day timestamptz := date_trunc('day', now() AT TIME ZONE 'UTC') AT TIME ZONE 'UTC' \
                 - interval '{days} days'; BEGIN EXECUTE format('CREATE TABLE logs_p%s PARTITION OF logs FOR VALUES FROM (%L) \
                 TO (%L)', to_char(day AT TIME ZONE 'UTC', 'YYYYMMDD'), day, day + interval '1 day'); \
                 INSERT INTO logs VALUES ({days}, day, 9, 's', 'h', 'old', NULL); END $$"
            )
        };
        s.postgres().execute(&daily(20));
        s.postgres().execute(&daily(30));
        // Somebody's notes on a record of a day that has expired, and on one of a day whose partition is to be created.
        s.postgres().execute(
            "INSERT INTO logs VALUES (1, now() + interval '3 days', 9, 's', 'h', 'ahead', NULL); \
             ALTER TABLE logs ADD UNIQUE (id, ts); \
             CREATE TABLE note (id bigint, ts timestamptz, FOREIGN KEY (id, ts) REFERENCES logs (id, ts)); \
             INSERT INTO note SELECT id, ts FROM logs WHERE id IN (1, 20)",
        );
        s.set("database.retention_days", 7);
        s.start();
        store_some(s);
        for step in ["partitions", "retention_partitions"] {
            await_failing(s.server(), step, &["23503", "until what refers to them is deleted"]);
        }
        for step in ["clock", "retention_rows", "takeovers"] {
            await_step(s.server(), step);
        }
        assert_eq!(number(s, "SELECT count(*) FROM logs WHERE message = 'old' AND id = 20"), 1);
        assert_eq!(number(s, "SELECT count(*) FROM logs WHERE message = 'old' AND id = 30"), 0, "nothing refers to it");
        s.stop();
        s.postgres().execute("DELETE FROM note");
        s.start();
        assert_maintained(s.server());
        await_step(s.server(), "retention_partitions");
        assert_eq!(number(s, "SELECT count(*) FROM logs WHERE message = 'old'"), 0);
        s.postgres().execute("DELETE FROM logs WHERE id = 1");
        s.assert_contract();
    });
}

/// Starts with a role to which row security applies, which no superuser is.
fn start_as_app(s: &mut Scenario) {
    s.postgres().execute("CREATE ROLE app LOGIN");
    s.postgres().execute(&grants(s, "app", "maintenance"));
    let superuser = s.settings["database.url"].clone();
    s.set("database.url", superuser.replace("postgres@", "app@"));
    s.start();
}

#[test]
fn row_security_on_the_records_lets_those_in_that_a_policy_lets_in() {
    on_postgres("row security", |s| {
        without_compression(s);
        start_as_app(s);
        store_some(s);
        let polite = "SELECT count(*) FROM logs WHERE message LIKE '%-33/%'";
        let before = number(s, polite);
        s.postgres().execute(
            "CREATE POLICY own ON logs USING (true) WITH CHECK (message NOT LIKE '%-33/%'); \
             ALTER TABLE logs ENABLE ROW LEVEL SECURITY; ALTER TABLE logs FORCE ROW LEVEL SECURITY",
        );
        store_some(s);
        let refused = "SELECT count(*) FROM logweir_dead_letter WHERE sqlstate = '42501'";
        assert!(number(s, refused) > 0);
        assert_eq!(number(s, "SELECT count(*) FROM logweir_dead_letter") - number(s, refused), 0);
        assert_eq!(number(s, polite), before);
        // Without a policy nothing is let in, and nothing is a dead letter.
        let before = number(s, "SELECT count(*) FROM logweir_dead_letter");
        s.postgres().execute("DROP POLICY own ON logs");
        let load = s.load(Load::default());
        s.acknowledged(300);
        load.stop();
        let told = |server: &Server| {
            let lanes = server.status()["lanes"].to_string();
            lanes.contains("42501") && lanes.contains("row security")
        };
        s.server().until("the reason", PATIENCE, told).unwrap();
        assert_eq!(number(s, "SELECT count(*) FROM logweir_dead_letter"), before);
        s.postgres().execute("CREATE POLICY everything ON logs USING (true)");
        caught_up(s.server());
        s.assert_contract();
    });
}

#[test]
fn row_security_on_the_dead_letters_is_named_and_storing_goes_on_without_it() {
    on_postgres("row security on dead letters", |s| {
        start_as_app(s);
        store_some(s);
        s.postgres().execute(
            "ALTER TABLE logweir_dead_letter ENABLE ROW LEVEL SECURITY; \
             ALTER TABLE logweir_dead_letter FORCE ROW LEVEL SECURITY; \
             ALTER TABLE logs ADD CONSTRAINT polite CHECK (message NOT LIKE '%-33/%') NOT VALID",
        );
        let load = s.load(Load::default());
        s.acknowledged(600);
        load.stop();
        let told = |server: &Server| {
            let lanes = server.status()["lanes"].to_string();
            lanes.contains("table logweir_dead_letter must take every row") && lanes.contains("policies")
        };
        s.server().until("the reason", PATIENCE, told).unwrap();
        s.postgres().execute("ALTER TABLE logweir_dead_letter NO FORCE ROW LEVEL SECURITY");
        caught_up(s.server());
        assert!(number(s, "SELECT count(*) FROM logweir_dead_letter") > 0);
        s.assert_contract();
    });
}

#[test]
fn an_unknown_role_or_database_is_an_error_of_the_command() {
    on_postgres("usage", |s| {
        let code = |s: &Scenario, arguments: &[&str]| s.run(arguments).status.code();
        assert_eq!(code(s, &["database", "grants"]), Some(64), "a role is needed");
        let url = format!("postgres://postgres@{}/postgres", free_addr());
        s.set("database.url", url);
        assert_eq!(code(s, &["database", "prepare"]), Some(69));
        assert_eq!(code(s, &["database", "grants", "--role", "app"]), Some(69));
        s.set("database.url", format!("sqlite:{}", s.dir.join("x.db").display()));
        assert_eq!(code(s, &["database", "grants", "--role", "app"]), Some(78));
        assert_eq!(code(s, &["database", "prepare"]), Some(0));
    });
}

/// What a DBA does to a partition takes as long as it takes. Records of other days, and late ones, do not wait for it.
#[test]
fn a_lock_on_a_partition_holds_up_nobody() {
    on_partitions("locked partition", |s| {
        s.start();
        assert_maintained(s.server());
        let day = "to_char((now() - interval '1 day') AT TIME ZONE 'UTC', 'YYYYMMDD')";
        let yesterday = s.store.rows(&format!("SELECT 'logs_p' || {day}")).unwrap().concat().concat();
        let noon = s.store.rows("SELECT to_char((now() - interval '1 day') AT TIME ZONE 'UTC', 'YYYY-MM-DD')").unwrap();
        let noon = format!("{}T12:00:00Z", noon.concat().concat());
        let holder = s.postgres().session();
        holder.execute(&format!("BEGIN; LOCK TABLE {yesterday} IN ACCESS EXCLUSIVE MODE"));
        let fresh = r#"{"level":"info","service":"s","message":"fresh"}"#;
        let old = format!(r#"{{"ts":"{noon}","level":"info","service":"s","message":"old"}}"#);
        let lines = format!("{}{old}\n", format!("{fresh}\n").repeat(99));
        for _ in 0..3 {
            let answer = s.server().post("/ingest?ack=committed", "application/x-ndjson", &lines).expect("a response");
            assert_eq!(answer.status, 200, "{}", answer.body);
        }
        assert_eq!(number(s, "SELECT count(*) FROM logweir_late"), 3);
        // Those of other days move meanwhile.
        s.postgres().execute(
            "INSERT INTO logweir_late (id, ts, severity, service, host, message) VALUES (0, now(), 9, 's', 'h', 'm')",
        );
        s.stop();
        holder.execute(&format!("COMMIT; BEGIN; LOCK TABLE {yesterday} IN EXCLUSIVE MODE"));
        s.start();
        s.wait("another record to move", |s| number(s, "SELECT count(*) FROM logweir_late WHERE id = 0") == 0);
        assert_eq!(number(s, "SELECT count(*) FROM logweir_late"), 3);
        holder.execute("COMMIT");
        // They move into their partition in the next round.
        s.stop();
        s.start();
        s.wait("the records to move", |s| number(s, "SELECT count(*) FROM logweir_late") == 0);
        assert_eq!(number(s, &format!("SELECT count(*) FROM {yesterday}")), 3);
        s.stop();
        let output = s.run(&["verify"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    });
}
