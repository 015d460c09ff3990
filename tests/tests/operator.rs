//! What the people around a database do to its tables, while the real program stores records: publications, constraints,
//! columns, triggers, roles, schemas, dropped tables, dumps, frozen processes, wrong clocks. Records are stored all the
//! same, each once; what cannot be maintained is told.

// Test helpers unwrap like tests.
#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use logweir_tests::accounting::Totals;
use logweir_tests::chaos::libfaketime;
use logweir_tests::client::Load;
use logweir_tests::postgres::connect;
use logweir_tests::process::{self, Server, free_addr};
use logweir_tests::scenario::{PATIENCE, Scenario, on_postgres};
use logweir_tests::store::Store;

/// Stores some records, through intake, journal and database.
fn store_some(s: &mut Scenario) {
    let load = s.load(Load::default());
    s.acknowledged(300);
    load.stop();
    caught_up(s.server());
}

/// Waits until the database has everything that the journal has.
fn caught_up(server: &mut Server) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let status = server.status();
        if Totals::of(&status).is_some_and(|totals| totals.backlog == 0 && totals.accepted > 0) {
            return;
        }
        assert!(Instant::now() < deadline, "the records do not reach the database: {status}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Waits until a gauge of a step of maintenance is there, and returns it.
fn failing(server: &mut Server, step: &str) -> bool {
    let label = format!("step=\"{step}\"");
    let has_run = |server: &Server| {
        let metrics = server.admin("/metrics").map(|answer| answer.body).unwrap_or_default();
        metrics.lines().any(|line| line.starts_with("logweir_maintenance_failing{") && line.contains(&label))
    };
    server.until(&format!("the step {step}"), PATIENCE, has_run).expect("the server keeps running");
    server.metric("logweir_maintenance_failing", &label) > 0.0
}

/// Waits until every step of maintenance has run, and asserts that none fails.
fn assert_maintained(server: &mut Server) {
    for step in ["connection", "encoding", "clock", "replica_identity", "partitions", "takeovers", "text_index"] {
        assert!(!failing(server, step), "{step}: {}", server.status()["maintenance_failing"]);
    }
    assert_eq!(server.status()["maintenance_failing"], serde_json::json!([]));
}

fn number(s: &Scenario, sql: &str) -> i64 {
    let rows = s.store.rows(&format!("SELECT ({sql})::bigint")).unwrap_or_else(|error| panic!("{error}"));
    rows[0][0].parse().unwrap_or_else(|_| panic!("{sql}: {rows:?}"))
}

/// Drops the newest daily partition, so that the next round has one to create.
fn drop_newest_partition(s: &Scenario) {
    const NEWEST: &str = "SELECT relname FROM pg_class WHERE relname ~ '^logs_p[0-9]{8}$' ORDER BY 1 DESC LIMIT 1";
    // The first round follows the lease.
    s.wait("the partitions", |s| number(s, &format!("SELECT count(*) FROM ({NEWEST}) newest")) == 1);
    let newest = s.store.rows(NEWEST).unwrap();
    s.postgres().execute(&format!("DROP TABLE {}", newest[0][0]));
}

/// A day that has long been closed, whose indexes are missing.
fn make_closed_partition(s: &Scenario) {
    s.postgres().execute(
        "CREATE TABLE logs_p20250102 PARTITION OF logs FOR VALUES FROM ('2025-01-02T00:00Z') TO ('2025-01-03T00:00Z')",
    );
}

/// An operator changes the table while logweir is not running; then it runs, stores, and maintains the tables.
fn survives(name: &str, change: &str) {
    on_postgres(name, |s| {
        s.start();
        store_some(s);
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
        assert_eq!(number(s, "SELECT count(*) FROM pg_inherits WHERE inhparent = 'logs'::regclass"), 6);
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
    on_postgres("no default", |s| {
        s.start();
        store_some(s);
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
    on_postgres("pg_trgm", |s| {
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
    on_postgres("DML only", |s| {
        let owner = s.settings["database.url"].clone();
        prepare(s, 0);
        drop_newest_partition(s);
        s.postgres().execute("CREATE ROLE app LOGIN; REVOKE ALL ON DATABASE postgres FROM PUBLIC");
        let printed = |s: &Scenario, purpose: &str| {
            let output = s.run(&["database", "grants", "--role", "app", "--for", purpose]);
            assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8(output.stdout).unwrap()
        };
        s.postgres().execute(&printed(s, "storing"));
        s.set("database.url", owner.replace("postgres@", "app@"));
        s.start();
        store_some(s);
        assert!(failing(s.server(), "partitions"), "it may not create tables");
        let reported = s.server().status()["maintenance_failing"].to_string();
        assert!(reported.contains("42501") && reported.contains("logweir database prepare"), "{reported}");
        assert!(!failing(s.server(), "clock") && !failing(s.server(), "takeovers"), "each step runs");
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
        s.postgres().execute(&printed(s, "maintenance"));
        drop_newest_partition(s);
        s.set("database.url", app);
        prepare(s, 0);
        assert_eq!(number(s, "pg_has_role('app', 'postgres', 'MEMBER')::integer"), 0, "it cannot become a superuser");
    });
}

#[test]
fn a_role_gets_no_more_than_its_purpose_needs() {
    on_postgres("grants", |s| {
        let superuser = s.settings["database.url"].clone();
        let of = |role: &str| superuser.replace("postgres@", &format!("{role}@"));
        s.postgres().execute(
            "CREATE ROLE owner LOGIN; CREATE ROLE app LOGIN; CREATE ROLE reader LOGIN; CREATE ROLE keeper LOGIN; \
             GRANT CREATE ON SCHEMA public TO owner; GRANT CREATE ON DATABASE postgres TO owner",
        );
        s.set("database.url", of("owner"));
        prepare(s, 0);
        for (role, purpose) in [("app", "storing"), ("reader", "reading"), ("keeper", "maintenance")] {
            let grants = s.run(&["database", "grants", "--role", role, "--for", purpose]);
            s.postgres().execute(&String::from_utf8(grants.stdout).unwrap());
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
            let grants = s.run(&["database", "grants", "--role", role, "--for", purpose]);
            s.postgres().execute(&String::from_utf8(grants.stdout).unwrap());
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
    on_postgres("dump", |s| {
        s.start();
        store_some(s);
        s.stop();
        make_closed_partition(s);
        let dump = Beside::of(s);
        dump.execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM logs");
        s.start();
        store_some(s);
        // The rounds are not held up by the index either.
        assert!(!failing(s.server(), "takeovers"));
        dump.execute("COMMIT");
        s.assert_contract();
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
        let (rows, counted) =
            (number(s, "SELECT count(*) FROM logs"), "SELECT coalesce(sum(records), 0) FROM log_volume");
        assert!(rows > 0);
        assert_eq!(number(s, counted), rows, "the counters are those of the records that are there");
    });
}

#[test]
fn identities_that_were_dropped_are_not_invented_again() {
    on_postgres("no lanes", |s| {
        s.start();
        store_some(s);
        let rows = number(s, "SELECT count(*) FROM logs");
        s.postgres().execute("DROP TABLE logweir_lane");
        let load = s.load(Load::default());
        s.acknowledged(100);
        load.stop();
        let refused = |server: &Server| {
            let status = server.status()["lanes"].to_string();
            status.contains("table logweir_lane is missing") && status.contains("search_path=logweir")
        };
        s.server().until("the reason", PATIENCE, refused).unwrap();
        assert_eq!(number(s, "SELECT count(*) FROM logs"), rows, "nothing is stored twice");
    });
}

#[test]
fn a_wrong_clock_deletes_nothing() {
    let Some(library) = libfaketime() else {
        eprintln!("SKIPPED: libfaketime is not installed (Debian package faketime)");
        return;
    };
    on_postgres("clock", |s| {
        s.set("database.retention_days", "7");
        s.start();
        store_some(s);
        let partitions = "SELECT count(*) FROM pg_class WHERE relname ~ '^logs_p[0-9]{8}$'";
        s.wait("the partitions", |s| number(s, partitions) == 5);
        s.stop();
        let rows = number(s, "SELECT count(*) FROM logs");
        for (n, offset) in ["+400d", "-400d"].into_iter().enumerate() {
            let mut command = process::command(&s.settings, "", &["run"]);
            command.env("LD_PRELOAD", &library).env("FAKETIME", offset).env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
            let (http, admin) =
                (s.settings["http.listen"].parse().unwrap(), s.settings["admin.listen"].parse().unwrap());
            let log = s.dir.join(format!("faketime-{n}.log"));
            let mut server = Server::spawn(command, http, admin, log);
            server.ready().expect("it starts");
            let load = Load { records: 1, ..Load::default() }.start(&s.ledger, http);
            s.acknowledged(50);
            load.stop();
            caught_up(&mut server);
            assert!(failing(&mut server, "clock"), "{offset}");
            assert!(!failing(&mut server, "takeovers"), "{offset}: the other steps run");
            let reported = server.status()["maintenance_failing"].to_string();
            assert!(reported.contains("nothing is deleted"), "{reported}");
            server.kill();
        }
        assert!(number(s, "SELECT count(*) FROM logs") >= rows + 100);
        assert_eq!(number(s, partitions), 5);
        // With the right clock everything goes on.
        s.start();
        store_some(s);
        assert!(!failing(s.server(), "clock"));
        s.assert_contract();
    });
}

#[test]
fn expired_partitions_are_dropped_and_their_records_counted() {
    on_postgres("retention", |s| {
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
        let rows = number(s, "SELECT count(*) FROM logs");
        s.stop();
        s.set("database.retention_days", "7");
        s.start();
        s.wait("the old records to expire", |s| number(s, "SELECT count(*) FROM logs") == rows - 3);
        let deleted = |server: &Server| server.metric("logweir_store_retention_deleted_rows_total", "table=\"logs\"");
        s.server().until("the counter", PATIENCE, |server| deleted(server) > 0.0).unwrap();
        assert_eq!(deleted(s.server()), 3.0);
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
        assert!(failing(s.server(), "encoding"));
        let reported = s.server().status()["maintenance_failing"].to_string();
        assert!(reported.contains("LATIN1") && reported.contains("ENCODING 'UTF8'"), "{reported}");
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
