//! A database whose tables had daily partitions before it got TimescaleDB.

use std::process::Stdio;

use logweir_tests::client::Load;
use logweir_tests::process::command;
use logweir_tests::scenario::{PATIENCE, Scenario};

use super::{
    DAY_US, caught_up, found, lines, maintain_again, now_us, number, on_timescale, post, role, seen_by, start, step,
};

/// Days of old records, and their number per day.
const DAYS: [i64; 4] = [2, 3, 4, 5];
const PER_DAY: usize = 1_000;
const FAR: usize = 50;
const OLD: usize = DAYS.len() * PER_DAY + FAR;
const COUNTED: &str = "SELECT sum(records) FROM log_volume";
const FORMER: &str =
    "SELECT count(*) FROM pg_partition_tree(to_regclass('logweir_partitions')) WHERE isleaf AND level > 0";

fn partition(days_ago: i64) -> String {
    let (year, month, day) = logweir_record::timestamp::date(now_us().div_euclid(DAY_US) - days_ago);
    format!("logs_p{year:04}{month:02}{day:02}")
}

/// Records that are not counted, or counted twice. The snapshot is older than the plan, as that of a query is:
/// otherwise a chunk that is made in between is seen by the counters alone. A name can stand for the table that a
/// younger hypertable is.
fn uncounted(s: &Scenario) -> i64 {
    let sql = format!(
        "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1; \
         SELECT (SELECT count(*) FROM logweir_logs()) - ({COUNTED}), \
         (SELECT oid FROM pg_class WHERE relname = 'logs') = 'logs'::regclass; COMMIT"
    );
    loop {
        let row = s.store.rows(&sql).unwrap().remove(1);
        if row[1] == "t" {
            return row[0].parse().unwrap();
        }
    }
}

/// A database with daily partitions of old records, on a server that has got the extension since.
fn plain_before(s: &mut Scenario) {
    start(s);
    for ago in DAYS {
        s.postgres().execute(&format!(
            "DO $$ BEGIN EXECUTE format('CREATE TABLE {} PARTITION OF logs FOR VALUES FROM (%L) TO (%L)', \
             date_trunc('day', now(), 'UTC') - interval '{ago} days', \
             date_trunc('day', now(), 'UTC') - interval '{} days'); END $$",
            partition(ago),
            ago - 1
        ));
    }
    let far = "SELECT n, now() - interval '400 days', 9, 'old', 'h', 'm', NULL FROM generate_series";
    s.postgres().execute(&format!("INSERT INTO logs {far}(1, {FAR}) n"));
    s.postgres().execute(&format!(
        "INSERT INTO logs SELECT n, date_trunc('day', now(), 'UTC') - day * interval '1 day' + n * interval '1 s', 9, 'old', \
         'h', 'm', NULL FROM generate_series(1, {PER_DAY}) n, unnest('{{2,3,4,5}}'::int[]) day"
    ));
    // More pages than move at once.
    s.postgres().execute(
        "INSERT INTO logs SELECT n, date_trunc('day', now(), 'UTC') - interval '5 days' + n * interval '1 s', 9, 'large', 'h', \
         (SELECT string_agg(md5(random()::text), '') FROM generate_series(1, 55) WHERE n > 0), NULL \
         FROM generate_series(1, 3000) n",
    );
    s.postgres().execute(
        "INSERT INTO log_volume SELECT date_trunc('minute', ts), service, severity, 0, count(*) FROM logs GROUP BY 1, 2, 3",
    );
    s.stop();
    s.postgres().stop();
    s.postgres().set("shared_preload_libraries", "timescaledb");
    s.postgres().restart();
}

/// A COPY that waits for the lock has been taken for one into a table that is no hypertable: it writes where no query looks.
#[test]
fn a_batch_that_waits_while_a_hypertable_takes_the_place_of_the_table_is_stored_where_it_is_found() {
    on_timescale("exchange", &[("shared_preload_libraries", "")], |s| {
        plain_before(s);
        s.postgres().execute("CREATE EXTENSION timescaledb");
        start(s);
        let load = s.load(Load::default());
        s.stored();
        // As the command does it.
        let exchange = s.postgres().session();
        exchange.execute(
            "BEGIN; LOCK TABLE ONLY logs IN ACCESS EXCLUSIVE MODE; ALTER TABLE logs RENAME TO logweir_partitions; \
             CREATE TABLE logs (LIKE logweir_partitions INCLUDING ALL); \
             SELECT create_hypertable('logs', 'ts', create_default_indexes => false)",
        );
        let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE 'COPY%'";
        s.wait("a batch that waits", |s| number(&s.store, waiting) > 0);
        exchange.execute("COMMIT");
        s.acknowledged(1_000);
        load.stop();
        caught_up(s.server());
        let exists = |table: &&str| number(&s.store, &format!("SELECT count(to_regclass('{table}'))")) == 1;
        let of_lanes = |table: &str| number(&s.store, &format!("SELECT count(*) FROM {table} WHERE id >> 44 > 0"));
        let visible = ["logs", "logweir_partitions", "logweir_late"].into_iter().filter(exists).map(of_lanes);
        assert_eq!(visible.sum::<i64>(), number(&s.store, "SELECT sum(rows)::bigint FROM logweir_lane"));
        assert!(s.server().log_text().contains("another table took the place of table logs"), "the batch had waited");
    });
}

#[test]
fn daily_partitions_become_a_hypertable_while_records_come_in() {
    on_timescale("migration", &[("shared_preload_libraries", "")], |s| {
        plain_before(s);
        s.postgres().execute("CREATE EXTENSION timescaledb");
        start(s);
        let status = s.server().status();
        assert!(status["store_version"].as_str().unwrap().contains("logweir database migrate"), "{status}");
        assert!(s.server().log_text().contains("logweir database migrate"), "{}", s.server().log_text());

        let load = s.load(Load::default());
        s.acknowledged(500);
        // As an index build does; it keeps the records of one day where they are.
        let holder = s.postgres().session();
        holder.execute(&format!("BEGIN; LOCK TABLE {} IN SHARE MODE", partition(3)));
        let mut migrating = command(&s.settings, "", &["database", "migrate"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let deadline = std::time::Instant::now() + PATIENCE;
        let (mut seen, mut left) = (0, usize::MAX);
        // The partitions without records are dropped a while later.
        while left != PER_DAY {
            assert!(std::time::Instant::now() < deadline, "{left} records are left");
            assert!(migrating.try_wait().unwrap().is_none(), "it gave up");
            assert_eq!(found(s.server(), "service:old"), OLD, "with {left} records left");
            assert_eq!(uncounted(s), 0, "with {left} records left");
            seen += 1;
            left = match number(&s.store, FORMER) {
                0 => usize::MAX,
                _ => usize::try_from(number(&s.store, "SELECT count(*) FROM logweir_partitions")).unwrap(),
            };
        }
        assert!(seen > 1);
        s.acknowledged(1_000);
        s.load(Load { clients: 1, posts_max: 1, ack: "committed", ..Load::default() }).finish();
        load.stop();
        assert_eq!(uncounted(s), 0);
        let verified = s.run(&["verify"]);
        assert!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stdout));

        // Another process ends what one has begun.
        migrating.kill().unwrap();
        migrating.wait().unwrap();
        holder.execute("COMMIT");
        maintain_again(s);
        assert_eq!(step(s.server(), "former_partitions"), None);
        let kept = format!("SELECT count(*) FROM {} WHERE service = 'old'", partition(3));
        assert_eq!(number(&s.store, &kept), 0, "maintenance goes on with it");
        let again = s.run(&["database", "migrate"]);
        assert_eq!(number(&s.store, FORMER), 0);
        let told = String::from_utf8_lossy(&again.stdout).into_owned() + &*String::from_utf8_lossy(&again.stderr);
        assert!(again.status.success() && told.contains("all records are in it"), "{told}");
        assert_eq!(s.server().status()["store"], "TimescaleDB");
        assert_eq!(found(s.server(), "service:old"), OLD);
        assert_eq!(uncounted(s), 0);
        let far = "SELECT count(*) FROM logweir_late WHERE service = 'old'";
        assert_eq!(number(&s.store, far), i64::try_from(FAR).unwrap(), "they are far from the present");
        let chunked = "SELECT count(*) FROM logs WHERE service = 'old'";
        assert_eq!(number(&s.store, chunked), i64::try_from(OLD - FAR).unwrap());

        s.postgres().execute(
            "DELETE FROM logs WHERE service IN ('old', 'large'); DELETE FROM logweir_late WHERE service = 'old'",
        );
        s.assert_contract();
    });
}

#[test]
fn a_migration_names_what_it_would_leave_behind_and_changes_nothing() {
    on_timescale("migration refused", &[("shared_preload_libraries", "")], |s| {
        plain_before(s);
        s.postgres().execute(
            "CREATE EXTENSION timescaledb; CREATE VIEW mine AS SELECT service FROM logs; \
             CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN new; END'; \
             CREATE TRIGGER t BEFORE INSERT ON logs FOR EACH ROW EXECUTE FUNCTION f(); \
             CREATE ROLE reader; GRANT SELECT ON logs TO reader; ALTER TABLE logs ADD mine text DEFAULT 'x', \
             ADD CONSTRAINT possible CHECK (severity < 100)",
        );
        start(s);
        let refused = s.run(&["database", "migrate"]);
        let told = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success() && told.contains("trigger t") && told.contains("view mine"), "{told}");
        assert_eq!(number(&s.store, "SELECT count(*) FROM pg_class WHERE relname = 'logs' AND relkind = 'p'"), 1);
        s.postgres().execute("DROP VIEW mine; DROP TRIGGER t ON logs");
        let done = s.run(&["database", "migrate"]);
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        // What belongs to the table itself is kept.
        let kept = "SELECT count(*) FROM pg_constraint WHERE conname = 'possible' AND conrelid = 'logs'::regclass";
        assert_eq!(number(&s.store, kept), 1);
        assert_eq!(number(&s.store, "SELECT has_table_privilege('reader', 'logs', 'SELECT')::int"), 1);
        let lost = "SELECT count(*) FROM logs WHERE service = 'old' AND mine IS DISTINCT FROM 'x'";
        assert_eq!(number(&s.store, lost), 0);
        post(s.server(), "committed", &lines("after", [now_us()]));
        assert_eq!((found(s.server(), "service:old"), found(s.server(), "service:after")), (OLD, 1));
    });
}

#[test]
fn former_partitions_expire_together_with_their_counters() {
    on_timescale("migration and retention", &[("shared_preload_libraries", "")], |s| {
        plain_before(s);
        let holder = s.postgres().session();
        // Nothing moves.
        holder.execute(&format!("BEGIN; LOCK TABLE {} IN SHARE MODE", partition(2)));
        holder.execute(&format!("LOCK TABLE {}, {}, logs_default IN SHARE MODE", partition(3), partition(4)));
        let mut migrating = command(&s.settings, "", &["database", "migrate"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        s.wait("the exchange", |s| number(&s.store, FORMER) > 0);
        migrating.kill().unwrap();
        migrating.wait().unwrap();
        // A role that comes while records move reads them, too.
        let app = role(s, "app", "reading");
        assert_eq!(seen_by(&app, "logweir_partitions"), number(&s.store, "SELECT count(*) FROM logweir_partitions"));
        holder.execute("COMMIT");
        s.set("database.retention_days", 4);
        start(s);
        for name in ["retention_partitions", "retention_rows", "retention_counters", "former_partitions"] {
            assert_eq!(step(s.server(), name), None, "{name}");
        }
        let kept = number(&s.store, COUNTED);
        assert_eq!(uncounted(s), 0);
        assert_eq!(kept, i64::try_from(3 * PER_DAY).unwrap(), "days within retention, and nothing else");
        let expired = format!("SELECT (to_regclass('{}') IS NOT NULL)::int", partition(5));
        assert_eq!(number(&s.store, &expired), 0);
    });
}
