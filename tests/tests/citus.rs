//! The real program on a Citus cluster: a coordinator, two workers, and a table `logs` that is distributed over them.
//!
//! `LOGWEIR_TEST_PG_BIN` names the programs of a server that has the extension.

// Test helpers unwrap like tests.
#![allow(clippy::unwrap_used)]

use std::fmt::Write as _;

use logweir_record::timestamp::{self, DAY_US};
use logweir_tests::accounting::Totals;
use logweir_tests::client::Load;
use logweir_tests::postgres::{Options, Server as Postgres, has_extension};
use logweir_tests::process::Server;
use logweir_tests::scenario::{PATIENCE, Scenario, on_postgres_with};
use rand::Rng as _;

/// Runs a scenario on a coordinator whose table `logs` is distributed over two workers; skips it if Citus is missing. The
/// program is stopped, and has stored nothing.
fn on_citus(name: &str, run: impl FnOnce(&mut Scenario, &[Postgres])) {
    if !has_extension("citus") {
        eprintln!("{name}: skipped: no Citus; LOGWEIR_TEST_PG_BIN can name the programs of a server that has it");
        return;
    }
    let settings = [
        ("shared_preload_libraries", "citus"),
        ("max_prepared_transactions", "200"),
        ("citus.node_conninfo", "sslmode=prefer"),
        // Nothing of a test leaves the machine.
        ("citus.enable_statistics_collection", "off"),
    ];
    let settings = settings.map(|(key, value)| (key, value.to_owned())).into();
    let options = Options { settings, ..Options::default() };
    on_postgres_with(name, &options, |s| {
        let workers = [Postgres::start(&options), Postgres::start(&options)];
        for server in workers.iter().chain([s.postgres()]) {
            server.execute("CREATE EXTENSION citus");
        }
        let coordinator = s.postgres().port();
        sql(s, &format!("SELECT citus_set_coordinator_host('127.0.0.1', {coordinator})"));
        for worker in &workers {
            sql(s, &format!("SELECT citus_add_node('127.0.0.1', {})", worker.port()));
        }
        start(s);
        s.stop();
        for table in ["logweir_writer", "logweir_lane", "logweir_takeover"] {
            sql(s, &format!("SELECT create_reference_table('{table}')"));
        }
        sql(s, "SELECT create_distributed_table('logs', 'id')");
        run(s, &workers);
    });
}

fn sql(s: &Scenario, sql: &str) -> Vec<Vec<String>> {
    s.store.rows(sql).unwrap_or_else(|error| panic!("{sql}: {error}"))
}

fn number(s: &Scenario, query: &str) -> i64 {
    sql(s, &format!("SELECT ({query})::bigint"))[0][0].parse().unwrap()
}

/// Starts the program, and waits for a round of maintenance. Returns the steps that fail.
fn start(s: &mut Scenario) -> Vec<String> {
    s.start();
    let label = "step=\"takeovers\"";
    let has_run = |server: &Server| {
        let metrics = server.admin("/metrics").map(|answer| answer.body).unwrap_or_default();
        metrics.lines().any(|line| line.starts_with("logweir_maintenance_failing{") && line.contains(label))
    };
    s.server().until("a round of maintenance", PATIENCE, has_run).unwrap();
    let status = s.server().status();
    status["maintenance_failing"].as_array().unwrap().iter().map(ToString::to_string).collect()
}

/// Posts records, and waits until they are stored.
fn post(server: &mut Server, messages: impl IntoIterator<Item = String>) {
    let mut lines = String::new();
    for message in messages {
        let _ = writeln!(lines, r#"{{"level":"info","service":"till","host":"h","message":"{message}"}}"#);
    }
    let answer = server.post("/ingest", "application/x-ndjson", &lines).expect("a response");
    assert_eq!(answer.status, 200, "{}", answer.body);
    let stored = |server: &Server| Totals::of(&server.status()).is_some_and(|totals| totals.backlog == 0);
    server.until("stored", PATIENCE, stored).unwrap_or_else(|exit| panic!("{exit:?}: {}", server.log_text()));
}

/// Asserts that each acknowledged record is stored once.
fn assert_verified(s: &mut Scenario) {
    s.stop();
    let output = s.run(&["verify"]);
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
}

fn day(ago: i64) -> i64 {
    logweir_engine::clock::wall_us().div_euclid(DAY_US) - ago
}

fn partition(ago: i64) -> String {
    let (year, month, day) = timestamp::date(day(ago));
    format!("logs_p{year:04}{month:02}{day:02}")
}

#[test]
fn records_are_stored_found_and_verified() {
    on_citus("storing", |s, _| {
        assert_eq!(start(s), Vec::<String>::new());
        post(s.server(), (0..500).map(|n| format!("sale {n}")));
        let shards = number(s, "SELECT count(*) FROM citus_shards WHERE table_name = 'logs'::regclass");
        assert!(shards > 2, "it is distributed");
        for (path, pointer, expected) in [
            ("/api/v1/query?query=sale&limit=1000", "/records/499/service", serde_json::json!("till")),
            ("/api/v1/hits", "/total", 500.into()),
            ("/api/v1/hits?query=sale&step=90s", "/total", 500.into()),
            ("/api/v1/facets?fields=service", "/facets/0/values/0/count", 500.into()),
            ("/api/v1/services", "/services/0/records", 500.into()),
        ] {
            let answer = s.server().data(path).expect("a response");
            assert_eq!(
                (answer.status, answer.json().pointer(pointer)),
                (200, Some(&expected)),
                "{path}: {}",
                answer.body
            );
        }
        assert_verified(s);
    });
}

#[test]
fn partitions_are_created_and_expire_and_so_do_rows() {
    on_citus("partitions and retention", |s, _| {
        s.set("database.retention_days", 5);
        sql(s, &format!("DROP TABLE {}", partition(-2)));
        sql(s, &format!("DROP TABLE {}", partition(-1)));
        // Its records move from the default partition.
        let insert = |from: i64, id: i64, rows: i64| {
            let at = timestamp::text(day(from) * DAY_US);
            format!(
                "INSERT INTO logs (id, ts, severity, service, host, message) SELECT ({id}::bigint << 44) + n, \
                 timestamptz '{at}' + n * interval '1 ms', 9, 'other', 'h', 'm' FROM generate_series(1, {rows}) n"
            )
        };
        sql(s, &insert(-1, 500_001, 100));
        sql(s, &insert(0, 500_000, 1)); // the day of the newest record stays, however old it is
        sql(s, &insert(20, 500_002, 25_000));
        let (name, from, to) = (partition(10), timestamp::text(day(10) * DAY_US), timestamp::text(day(9) * DAY_US));
        sql(s, &format!("CREATE TABLE {name} PARTITION OF logs FOR VALUES FROM ('{from}') TO ('{to}')"));
        sql(s, &insert(10, 500_003, 10));

        assert_eq!(start(s), Vec::<String>::new());
        let exists =
            |s: &Scenario, name: &str| number(s, &format!("SELECT count(*) FROM pg_class WHERE relname = '{name}'"));
        assert_eq!((exists(s, &partition(-1)), exists(s, &partition(-2)), exists(s, &name)), (1, 1, 0));
        assert_eq!(number(s, &format!("SELECT count(*) FROM {}", partition(-1))), 100);
        assert_eq!(number(s, "SELECT count(*) FROM logs WHERE service = 'other'"), 101, "the others have expired");
        post(s.server(), ["sale".to_owned()]);
        assert_verified(s);
    });
}

#[test]
fn a_record_that_a_worker_refuses_becomes_a_dead_letter() {
    on_citus("one bad row", |s, _| {
        sql(s, "ALTER TABLE logs ADD CONSTRAINT no_returns CHECK (message <> 'return 250')");
        start(s);
        post(s.server(), (0..500).map(|n| format!("return {n}")));
        assert_eq!(number(s, "SELECT count(*) FROM logs"), 499);
        let dead = sql(s, "SELECT sqlstate, raw FROM logweir_dead_letter");
        assert!(dead.len() == 1 && dead[0][1].contains("return 250"), "{dead:?}");
        assert_verified(s);
    });
}

#[test]
fn kills_of_the_program_and_of_a_worker_lose_and_double_nothing() {
    on_citus("kills", |s, workers| {
        start(s);
        let load = s.load(Load::default());
        for nth in 0..8 {
            let records = s.random.random_range(1..2_000);
            s.acknowledged(records);
            match nth % 4 {
                3 => {
                    workers[nth / 4].kill();
                    workers[nth / 4].restart();
                }
                _ => {
                    s.kill_server();
                    s.start();
                }
            }
        }
        load.stop();
        s.assert_contract();
        assert_eq!(number(s, "SELECT count(*) FROM pg_prepared_xacts"), 0);
    });
}
