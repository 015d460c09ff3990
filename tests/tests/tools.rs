//! Programs that others wrote work on the database while the real program stores records: dumps and their restoration,
//! everything that rewrites tables and indexes, logical replication, extensions. Storing goes on, each record is there once,
//! and no step of maintenance fails.

// Test helpers unwrap like tests.
#![allow(clippy::unwrap_used)]

use std::path::PathBuf;

use logweir_tests::client::Load;
use logweir_tests::maintenance::{await_none_failing, await_step};
use logweir_tests::postgres::{Options, Server};
use logweir_tests::process::Server as Process;
use logweir_tests::scenario::{PATIENCE, Scenario, on_postgres, on_postgres_with};
use logweir_tests::store::Store;

/// Runs a shell command with the programs and the address of `server`.
fn sh(s: &Scenario, server: &Server, command: &str) -> Result<(), String> {
    let log = s.dir.join("tool.log");
    let _ = std::fs::remove_file(&log);
    let status = server.script(command, &[], &log).wait().unwrap();
    let text = std::fs::read_to_string(&log).unwrap_or_default();
    if status.success() { Ok(()) } else { Err(format!("{command}: {status}: {text}")) }
}

fn number(store: &Store, sql: &str) -> i64 {
    let rows = store.rows(&format!("SELECT ({sql})::bigint")).unwrap_or_else(|error| panic!("{sql}: {error}"));
    rows[0][0].parse().unwrap()
}

/// Records that come in from now on are stored.
fn storing_goes_on(s: &Scenario, after: &str) {
    let before = s.store.count().unwrap();
    s.acknowledged(200);
    s.wait(&format!("records are stored after {after}"), |s| s.store.count().is_ok_and(|now| now >= before + 200));
}

/// Whether an extension can be created; says so if not.
fn has_extension(s: &Scenario, name: &str) -> bool {
    let available = format!("SELECT count(*) FROM pg_available_extensions WHERE name = '{name}'");
    let available = number(&s.store, &available) == 1;
    if !available {
        println!("skipped: the extension {name} is not installed");
    }
    available
}

fn assert_maintained(server: &mut Process) {
    await_step(server, "text_index");
    await_none_failing(server);
}

/// Another journal on the same database: its records are stored, and under numbers of its own.
fn another_journal_stores(s: &mut Scenario) {
    let (lanes, before) = ("SELECT count(*) FROM logweir_lane WHERE rows > 0", "SELECT max(lane_id) FROM logweir_lane");
    let (lanes_before, number_before) = (number(&s.store, lanes), number(&s.store, before));
    let dir = s.dir.join("another");
    let mut other = s.launch_beside(&dir);
    other.ready().unwrap();
    let load = Load::default().start(&s.ledger, other.http);
    s.acknowledged(300);
    load.stop();
    s.wait("the other journal's records", |s| number(&s.store, lanes) > lanes_before);
    // Each opens by itself, also one that gets no record.
    let fresh = format!("SELECT count(*) FROM logweir_lane WHERE lane_id > {number_before}");
    s.wait("each lane has a number that none had before", |s| number(&s.store, &fresh) == 3);
    other.signal(libc::SIGTERM);
    assert_eq!(other.wait(PATIENCE).code(), Some(0), "{}", other.log_text());
    assert!(!other.log_text().contains("ERROR"), "{}", other.log_text());
    assert_eq!(number(&s.store, &fresh), 3);
    assert_eq!(number(&s.store, "SELECT count(*) - count(DISTINCT id) FROM logs"), 0);
}

#[test]
fn what_comes_with_postgresql_stops_nothing() {
    let options = Options { settings: vec![("max_wal_senders", "4".to_owned())], ..Options::default() };
    on_postgres_with("tools of PostgreSQL", &options, |s| {
        s.start();
        let load = s.load(Load::default());
        s.stored();
        let checks = has_extension(s, "amcheck");
        if checks {
            s.postgres().execute("CREATE EXTENSION amcheck");
        }
        for tool in [
            "pg_dump --format=custom --file=$SOCKET_DIR/dump postgres",
            "vacuumdb --all --full",
            "vacuumdb --analyze-in-stages postgres",
            "vacuumdb --all --jobs=4 --freeze --analyze",
            "reindexdb postgres",
            "reindexdb --concurrently postgres",
            "reindexdb --concurrently --jobs=2 --table=logs --table=log_volume --table=logweir_lane postgres",
            "clusterdb --all",
            "psql -c 'CREATE INDEX by_service ON logs (service, ts)' -c 'CLUSTER logs USING by_service' postgres",
            "pg_basebackup --checkpoint=fast --no-sync --pgdata=$SOCKET_DIR/copy",
            "pg_amcheck --heapallindexed --parent-check --database=postgres",
        ] {
            if tool.starts_with("pg_amcheck") && !checks {
                continue;
            }
            sh(s, s.postgres(), tool).unwrap();
            storing_goes_on(s, tool);
        }
        load.stop();
        assert_maintained(s.server());
        s.assert_contract();
    });
}

#[test]
fn a_dump_that_is_restored_elsewhere_is_gone_on_with() {
    on_postgres("dump and restore", |s| {
        s.start();
        let load = s.load(Load::default());
        s.stored();
        sh(s, s.postgres(), "pg_dump --format=custom --file=$SOCKET_DIR/dump postgres").unwrap();
        storing_goes_on(s, "the dump");
        load.stop();
        s.stop();
        sh(s, s.postgres(), "createdb fresh && pg_restore --jobs=2 --dbname=fresh $SOCKET_DIR/dump").unwrap();
        let url = s.postgres().url("fresh");
        s.set("database.url", &url);
        s.store = Store::Postgres(url);
        s.start();
        let load = s.load(Load::default());
        storing_goes_on(s, "the restoration");
        load.stop();
        assert_maintained(s.server());
        s.assert_contract();
        let verified = s.run(&["verify"]);
        assert_eq!(verified.status.code(), Some(0), "{}", String::from_utf8_lossy(&verified.stdout));
        another_journal_stores(s);
    });
}

/// Records that have no partition yet reach a subscriber of a publication of all tables `with` these options, and move
/// into their partition then. Returns when no more records come in and the subscriber has everything.
fn replicate(s: &mut Scenario, subscriber: &Server, with: &str) {
    let schema = s.run(&["database", "schema"]);
    subscriber.execute(&String::from_utf8(schema.stdout).unwrap());
    subscriber.execute("TRUNCATE logweir_schema_history, logweir_clock");
    s.set("database.maintenance", "false");
    s.start();
    let load = s.load(Load::default());
    s.stored();
    s.postgres().execute(&format!("CREATE PUBLICATION everything FOR ALL TABLES WITH ({with})"));
    let source = s.postgres().url("postgres");
    subscriber.execute(&format!("CREATE SUBSCRIPTION everything CONNECTION '{source}' PUBLICATION everything"));
    let copy = Store::Postgres(subscriber.url("postgres"));
    // Each table is copied for itself: one can have everything while another one, such as that of the cursors, has not.
    let copied = |_: &Scenario| number(&copy, "SELECT count(*) FROM pg_subscription_rel WHERE srsubstate <> 'r'") == 0;
    s.wait("the first copy", copied);
    load.stop();
    s.stop();
    let in_default = "SELECT count(*) FROM logs_default";
    assert!(number(&s.store, in_default) > 0);

    // Triggers have acted on these records when they came.
    s.postgres().execute(
        "CREATE UNLOGGED TABLE known AS SELECT id FROM logs; \
         CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
         IF EXISTS (SELECT FROM known WHERE id = NEW.id) THEN RAISE 'again: %', NEW.id; END IF; RETURN NEW; END $$; \
         CREATE TRIGGER refuse BEFORE INSERT ON logs FOR EACH ROW EXECUTE FUNCTION refuse()",
    );
    s.set("database.maintenance", "true");
    s.start();
    s.wait("the move", |s| number(&s.store, in_default) == 0);
    let triggers = "SELECT count(*) FROM pg_trigger WHERE tgname = 'refuse' AND tgenabled <> 'O'";
    assert_eq!(number(&s.store, triggers), 0);
    assert_maintained(s.server());
    let load = s.load(Load::default());
    storing_goes_on(s, "the move");
    load.stop();
    s.stop();
    let end = s.store.rows("SELECT pg_current_wal_lsn()::text").unwrap()[0][0].clone();
    let behind = format!("SELECT count(*) FROM pg_replication_slots WHERE confirmed_flush_lsn < '{end}'");
    s.wait_long("the subscriber has everything", |s| number(&s.store, &behind) == 0);
    let rows = "SELECT count(*), count(DISTINCT id), sum(id) FROM logs";
    assert_eq!(copy.rows(rows).unwrap(), s.store.rows(rows).unwrap(), "{with}");
    subscriber.execute("DROP SUBSCRIPTION everything");
}

#[test]
fn a_subscriber_of_all_tables_can_take_over() {
    let options = || Options { settings: vec![("wal_level", "logical".to_owned())], ..Options::default() };
    on_postgres_with("logical replication", &options(), |s| {
        let subscriber = Server::start(&options());
        replicate(s, &subscriber, "publish_via_partition_root");
        let url = subscriber.url("postgres");
        s.set("database.url", &url);
        s.store = Store::Postgres(url);
        s.start();
        let load = s.load(Load::default());
        storing_goes_on(s, "the change");
        load.stop();
        // A statement that waits for the move has been planned without the partition that it makes.
        s.wait("the move there", |s| number(&s.store, "SELECT count(*) FROM logs_default") == 0);
        s.assert_contract();
        another_journal_stores(s);
    });
}

#[test]
fn a_subscriber_of_insertions_alone_has_each_record_once() {
    let options = || Options { settings: vec![("wal_level", "logical".to_owned())], ..Options::default() };
    on_postgres_with("logical replication of insertions", &options(), |s| {
        // Its cursors stay behind, so that it can't take over.
        let subscriber = Server::start(&options());
        replicate(s, &subscriber, "publish_via_partition_root, publish = 'insert'");
    });
}

#[test]
fn publications_that_contradict_each_other_are_told_and_nothing_moves_until_they_agree() {
    // Daily partitions, whatever the server has.
    let settings = vec![("wal_level", "logical".to_owned()), ("shared_preload_libraries", String::new())];
    on_postgres_with("contradicting publications", &Options { settings, ..Options::default() }, |s| {
        s.set("database.maintenance", "false");
        s.start();
        let load = s.load(Load::default());
        s.stored();
        load.stop();
        s.stop();
        s.postgres().execute(
            "CREATE PUBLICATION all_of_it FOR TABLE logs WITH (publish_via_partition_root); \
             CREATE PUBLICATION insertions FOR TABLE logs WITH (publish_via_partition_root, publish = 'insert')",
        );
        let in_default = "SELECT count(*) FROM logs_default";
        let waiting = number(&s.store, in_default);
        assert!(waiting > 0);
        s.set("database.maintenance", "true");
        s.start();
        let told = |server: &Process| {
            let failing = server.status()["maintenance_failing"].clone();
            let all = failing.as_array().cloned().unwrap_or_default();
            all.iter()
                .any(|step| step["error"].as_str().is_some_and(|error| error.contains("the same `publish` for both")))
        };
        s.server().until("the reason", PATIENCE, told).unwrap();
        assert_eq!(number(&s.store, in_default), waiting, "a subscriber would lose them, or get them twice");
        assert!(
            number(&s.store, "SELECT count(*) FROM pg_inherits WHERE inhparent = 'logs'::regclass") > 1,
            "the next days"
        );
        let load = s.load(Load::default());
        storing_goes_on(s, "the contradiction");
        load.stop();
        s.stop();
        s.postgres().execute("ALTER PUBLICATION insertions SET (publish = 'insert, update, delete, truncate')");
        s.start();
        s.wait("the move", |s| number(&s.store, in_default) == 0);
        assert_maintained(s.server());
        s.assert_contract();
    });
}

#[test]
fn a_role_that_may_not_move_the_sequence_is_told_and_uses_no_number_twice() {
    on_postgres("sequence", |s| {
        s.start();
        let load = s.load(Load::default());
        s.stored();
        load.stop();
        s.stop();
        // A lane was given another number, 4; its first one is in none of the rows any more.
        s.postgres().execute("UPDATE logweir_lane SET lane_id = DEFAULT WHERE lane_id = 2");
        s.postgres().execute("ALTER TABLE logweir_lane ALTER COLUMN lane_id RESTART WITH 2");
        s.postgres().execute("CREATE ROLE app LOGIN");
        let grants = s.run(&["database", "grants", "--role", "app"]);
        s.postgres().execute(&String::from_utf8(grants.stdout).unwrap());
        let owner = s.settings["database.url"].clone();
        s.set("database.url", owner.replace("postgres@", "app@"));
        s.set("database.maintenance", "false");
        let dir = s.dir.join("another");
        let mut other = s.launch_beside(&dir);
        other.ready().unwrap();
        let told = "SELECT setval(pg_get_serial_sequence('\"public\".\"logweir_lane\"', 'lane_id'), \
                    (SELECT max(lane_id) FROM \"public\".\"logweir_lane\"))";
        other
            .until("the lanes say so", PATIENCE, |server| server.status()["lanes"].to_string().contains("setval"))
            .unwrap();
        let reason = other.status()["lanes"].to_string().replace("\\\"", "\"");
        assert!(reason.contains(told), "{reason}");
        assert_eq!(number(&s.store, "SELECT count(*) FROM logweir_lane"), 3);
        s.postgres().execute(told);
        s.wait("the lanes", |s| number(&s.store, "SELECT count(*) FROM logweir_lane WHERE lane_id > 4") == 3);
    });
}

/// `LOGWEIR_TEST_PG_REPACK` names the program, if it is not beside PostgreSQL's.
fn pg_repack() -> Option<PathBuf> {
    let named = std::env::var_os("LOGWEIR_TEST_PG_REPACK").map(PathBuf::from);
    named.or_else(|| {
        let versions = std::fs::read_dir("/usr/lib/postgresql").ok()?;
        versions.filter_map(|entry| Some(entry.ok()?.path().join("bin/pg_repack"))).filter(|path| path.exists()).max()
    })
}

#[test]
fn pg_repack_stops_nothing() {
    let Some(program) = pg_repack() else {
        println!("skipped: no pg_repack");
        return;
    };
    on_postgres("pg_repack", |s| {
        if !has_extension(s, "pg_repack") {
            return;
        }
        s.start();
        let load = s.load(Load::default());
        s.stored();
        assert_maintained(s.server());
        s.postgres().execute("CREATE EXTENSION pg_repack");
        let exists = "SELECT count(to_regclass('logs_p' || to_char(now() AT TIME ZONE 'UTC', 'YYYYMMDD')))";
        s.wait("today's partition", |s| number(&s.store, exists) == 1);
        let today = "DO $$ BEGIN EXECUTE format('ALTER TABLE logs_p%s ADD PRIMARY KEY (id)', \
                     to_char(now() AT TIME ZONE 'UTC', 'YYYYMMDD')); END $$";
        s.postgres().execute(today);
        for arguments in ["", "--parent-table=logs --order-by=ts", "--only-indexes --parent-table=logs"] {
            let tool = format!("{} --dbname=postgres --wait-timeout=5 {arguments}", program.display());
            sh(s, s.postgres(), &tool).unwrap();
            storing_goes_on(s, &tool);
        }
        load.stop();
        s.stop();
        s.start();
        assert_maintained(s.server());
        s.assert_contract();
    });
}

#[test]
fn partitions_can_be_those_of_pg_partman() {
    on_postgres("pg_partman", |s| {
        if !has_extension(s, "pg_partman") {
            return;
        }
        let schema = s.run(&["database", "schema"]);
        s.postgres().execute(&String::from_utf8(schema.stdout).unwrap());
        s.postgres()
            .execute("CREATE SCHEMA partman; CREATE EXTENSION pg_partman SCHEMA partman; DROP TABLE logs_default");
        let version =
            number(&s.store, "SELECT split_part(extversion, '.', 1) FROM pg_extension WHERE extname = 'pg_partman'");
        let kind = if version < 5 { "'native', 'daily'" } else { "'1 day'" };
        s.postgres().execute(&format!("SELECT partman.create_parent('public.logs', 'ts', {kind})"));
        s.set("database.retention_days", "7");
        s.start();
        let load = s.load(Load::default());
        s.stored();
        s.postgres()
            .execute("UPDATE partman.part_config SET premake = 8, retention = '1 day', retention_keep_table = false");
        sh(s, s.postgres(), "psql -c 'CALL partman.run_maintenance_proc()' postgres").unwrap();
        storing_goes_on(s, "pg_partman's maintenance");
        load.stop();
        assert_maintained(s.server());
        let ours = "SELECT count(*) FROM pg_class WHERE relname ~ '^logs_p[0-9]{8}$' AND relkind = 'r'";
        if version < 5 {
            assert_eq!(number(&s.store, ours), 0, "each day has one partition, with pg_partman's name");
        }
        assert_eq!(number(&s.store, "SELECT count(*) FROM logs_default"), 0);
        s.assert_contract();
    });
}
