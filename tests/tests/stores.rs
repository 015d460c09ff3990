//! The log stores against a real PostgreSQL and a real SQLite file: each record exactly once, despite faults.

// Test helpers unwrap like tests.
#![allow(clippy::unwrap_used)]

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use logweir_record::record::Record;
use logweir_record::timestamp::DAY_US;
use logweir_store::{self as store, Batch, Digest, Flushed, ForkLane, LaneWriter, LogStore, StoreError};
use logweir_store::{Database, DatabaseUrl};
use logweir_tests::conformance;
use logweir_tests::conformance::feed::{EARLIER_US, Feed, NOON_US, claim, claim_at, flushed, lane, record, started};
use logweir_tests::conformance::subject::{POSTGRES, SQLITE, Sql, Subject};
use logweir_tests::maintenance::maintain;
use logweir_tests::postgres::{self, Options, Server, TestDatabase};
use logweir_tests::scenario::PATIENCE;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use uuid::Uuid;

fn settings(url: DatabaseUrl) -> Database {
    with(url, |_| {})
}

fn with(url: DatabaseUrl, change: impl FnOnce(&mut Database)) -> Database {
    let mut settings = Database::new(url);
    (settings.pool_size, settings.compress_after_days) = (2, 0);
    // So long that no slow machine reaches it.
    settings.connect_timeout_ms = 60_000;
    // The feeds' records have fixed times. On TimescaleDB they would go beside the table that these tests change.
    settings.late_after_days = 36_500;
    change(&mut settings);
    settings
}

fn open_postgres(url: &str) -> Arc<dyn LogStore> {
    store::open(&settings(DatabaseUrl::Postgres(url.to_owned()))).unwrap().store()
}

/// A store for which every second record of a feed is late.
fn open_half_late(url: &str) -> Arc<dyn LogStore> {
    let days = (now_us() - NOON_US + EARLIER_US / 2) / DAY_US;
    let settings = with(DatabaseUrl::Postgres(url.to_owned()), |settings| {
        settings.late_after_days = u32::try_from(days).unwrap();
    });
    store::open(&settings).unwrap().store()
}

/// A prepared store and direct access to its database.
struct Fixture {
    store: Arc<dyn LogStore>,
    place: Place,
    /// Every second record is late. What a test asks of `logs` or does to it concerns the table for late records, too.
    half_late: bool,
}

/// What a test asks of `logs`, if half of it is late.
const BOTH: &str = "FROM (SELECT id, ts, severity, service, host, message, attributes FROM logs \
    UNION ALL SELECT id, ts, severity, service, host, message, attributes FROM logweir_late) logs";

/// Drops the constraints and triggers of tests from the table for late records.
const FORGET_RULES: &str = "DO $$ DECLARE it record; BEGIN \
    FOR it IN SELECT tgname FROM pg_trigger WHERE tgrelid = 'logweir_late'::regclass AND NOT tgisinternal LOOP \
        EXECUTE format('DROP TRIGGER %I ON logweir_late', it.tgname); END LOOP; \
    FOR it IN SELECT conname FROM pg_constraint WHERE conrelid = 'logweir_late'::regclass AND contype = 'c' \
        AND conname <> 'made_by_logweir' LOOP \
        EXECUTE format('ALTER TABLE logweir_late DROP CONSTRAINT %I', it.conname); END LOOP; END $$";

/// Gives it those of `logs`.
const COPY_RULES: &str = "DO $$ DECLARE it record; BEGIN \
    FOR it IN SELECT replace(pg_get_triggerdef(oid), ' ON public.logs ', ' ON public.logweir_late ') AS sql \
        FROM pg_trigger WHERE tgrelid = 'logs'::regclass AND NOT tgisinternal AND tgname <> 'ts_insert_blocker' LOOP \
        EXECUTE it.sql; END LOOP; \
    FOR it IN SELECT conname, pg_get_constraintdef(oid) AS sql FROM pg_constraint \
        WHERE conrelid = 'logs'::regclass AND contype = 'c' LOOP \
        EXECUTE format('ALTER TABLE logweir_late ADD CONSTRAINT %I %s', it.conname, it.sql); END LOOP; END $$";

enum Place {
    Postgres(TestDatabase),
    Sqlite(tempfile::TempDir),
}

impl Fixture {
    async fn postgres() -> Self {
        let on = Self::empty_postgres().await;
        on.store.prepare().await.unwrap();
        on
    }

    async fn sqlite() -> Self {
        let on = Self::empty_sqlite();
        on.store.prepare().await.unwrap();
        on
    }

    /// On TimescaleDB only.
    async fn half_late() -> Option<Self> {
        let database = postgres::database().await;
        let store = open_half_late(&database.url);
        store.prepare().await.unwrap();
        if store.name() != "TimescaleDB" {
            eprintln!("skipped: no TimescaleDB");
            return None;
        }
        Some(Self { store, place: Place::Postgres(database), half_late: true })
    }

    async fn empty_postgres() -> Self {
        let database = postgres::database().await;
        Self { store: open_postgres(&database.url), place: Place::Postgres(database), half_late: false }
    }

    fn empty_sqlite() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = store::open(&settings(DatabaseUrl::Sqlite(dir.path().join("logs.db")))).unwrap().store();
        Self { store, place: Place::Sqlite(dir), half_late: false }
    }

    fn file(&self) -> PathBuf {
        match &self.place {
            Place::Sqlite(dir) => dir.path().join("logs.db"),
            Place::Postgres(_) => panic!("this store is not a file"),
        }
    }
}

/// Whether a test of daily partitions is skipped.
fn skips_partitions(on: &Fixture) -> bool {
    let is_hypertable = on.store.name() == "TimescaleDB";
    if is_hypertable {
        eprintln!("skipped: TimescaleDB has no daily partitions");
    }
    is_hypertable
}

impl Subject for Fixture {
    fn store(&self) -> &Arc<dyn LogStore> {
        &self.store
    }

    fn other(&self) -> Arc<dyn LogStore> {
        match &self.place {
            Place::Postgres(database) if self.half_late => open_half_late(&database.url),
            Place::Postgres(database) => open_postgres(&database.url),
            Place::Sqlite(dir) => {
                store::open(&settings(DatabaseUrl::Sqlite(dir.path().join("logs.db")))).unwrap().store()
            }
        }
    }

    async fn number(&self, sql: &str) -> i64 {
        match &self.place {
            Place::Postgres(database) => {
                let sql = format!("SELECT ({sql})::bigint");
                let sql = if self.half_late { sql.replace("FROM logs", BOTH) } else { sql };
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
            Place::Postgres(database) => {
                let client = database.client().await;
                if !self.half_late {
                    return client.batch_execute(sql).await.unwrap();
                }
                client.batch_execute(FORGET_RULES).await.unwrap();
                client.batch_execute(sql).await.unwrap();
                for deletion in sql.split(';').filter(|sql| sql.trim_start().starts_with("DELETE FROM logs ")) {
                    let late = deletion.replace("DELETE FROM logs ", "DELETE FROM logweir_late ");
                    client.batch_execute(&late).await.unwrap();
                }
                client.batch_execute(COPY_RULES).await.unwrap();
            }
            Place::Sqlite(_) => rusqlite::Connection::open(self.file()).unwrap().execute_batch(sql).unwrap(),
        }
    }

    fn sql(&self) -> Sql {
        match &self.place {
            Place::Postgres(_) => POSTGRES,
            Place::Sqlite(_) => SQLITE,
        }
    }

    async fn late(&self) -> i64 {
        let is_there = matches!(&self.place, Place::Postgres(_))
            && !self.half_late
            && self.number("SELECT (to_regclass('logweir_late') IS NOT NULL)::integer").await == 1;
        if is_there { self.number("SELECT count(*) FROM logweir_late").await } else { 0 }
    }
}

/// Declares tests that run on both stores.
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

#[tokio::test]
async fn an_interrupted_migration_leaves_nothing_behind_in_postgres() {
    an_interrupted_migration(Fixture::empty_postgres().await).await;
}

#[tokio::test]
async fn an_interrupted_migration_leaves_nothing_behind_in_sqlite() {
    an_interrupted_migration(Fixture::empty_sqlite()).await;
}

/// Simulates a kill between creating the tables and recording the migration.
async fn an_interrupted_migration(on: Fixture) {
    on.execute(
        "CREATE TABLE logweir_schema_history (version integer PRIMARY KEY CHECK (version < 0), name varchar(255), \
         applied_on varchar(255), checksum varchar(255))",
    )
    .await;
    on.store.prepare().await.unwrap_err();
    on.execute("DROP TABLE logweir_schema_history").await;
    on.store.prepare().await.unwrap();
    on.other().prepare().await.unwrap();
    assert_eq!(on.number("SELECT count(*) FROM logs").await, 0);
}

#[tokio::test]
async fn a_prepared_database_needs_no_privilege_to_create_tables() {
    let on = Fixture::postgres().await;
    let role = format!("app_{}", Uuid::new_v4().simple());
    on.execute(&format!(
        "CREATE ROLE {role} LOGIN PASSWORD 'p'; REVOKE CREATE ON SCHEMA public FROM PUBLIC; \
         GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {role}"
    ))
    .await;
    let at = on.url().split('@').next_back().unwrap();
    let store = open_postgres(&format!("postgres://{role}:p@{at}"));
    store.prepare().await.unwrap();
    let lease = store.acquire_lease(&claim(Uuid::new_v4(), &[], 1)).await.unwrap();
    let mut flusher = lane(&store, &lease, 0).await;
    assert_eq!(flusher.flush(&Feed::new(0).plain(10)).await.unwrap(), flushed(10, 0));
    drop((flusher, store));
    on.execute(&format!("DROP OWNED BY {role}; DROP ROLE {role}")).await;
}

#[tokio::test]
async fn a_takeover_is_recorded_in_a_table_of_an_earlier_version_and_only_its_owner_can_change_the_table() {
    let on = Fixture::postgres().await;
    let role = format!("app_{}", Uuid::new_v4().simple());
    on.execute(&format!(
        "ALTER TABLE logweir_takeover DROP COLUMN digest; CREATE ROLE {role} LOGIN PASSWORD 'p'; \
         GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {role}"
    ))
    .await;
    let at = on.url().split('@').next_back().unwrap();
    let store = open_postgres(&format!("postgres://{role}:p@{at}"));
    store.prepare().await.unwrap();
    let (writer, mut feed) = (Uuid::new_v4(), Feed::new(0));
    let lease = store.acquire_lease(&claim(writer, &[], 1)).await.unwrap();
    let mut flusher = lane(&store, &lease, 0).await;
    assert_eq!(flusher.flush(&feed.plain(10).prefix(4)).await.unwrap(), flushed(4, 0));
    store.acquire_lease(&claim(writer, &[1], 20)).await.unwrap();
    let mine = claim_at(&feed, writer, &[1], 2);
    let lanes = async || store.fork_point(&mine).await.unwrap().unwrap().lanes;
    assert_eq!(lanes().await, [ForkLane { lane: 0, seq: 0, digest: Digest::default() }], "it is not known");
    let failed = maintain(&store, now_us()).await;
    let told = failed.iter().find(|step| step.starts_with("takeover_digest: ")).unwrap();
    assert!(told.contains("42501") && told.contains("logweir database prepare"), "{told}");

    assert_maintained(&on.store).await;
    assert_maintained(&on.store).await;
    assert_eq!(lanes().await, [ForkLane { lane: 0, seq: 0, digest: Digest::default() }], "nor later");
    let lease = store.acquire_lease(&claim(writer, &[1, 20], 21)).await.unwrap();
    let mut flusher = lane(&store, &lease, 0).await;
    flusher.flush(&Feed::new(0).plain(8).prefix(3)).await.unwrap();
    store.acquire_lease(&claim(writer, &[1, 20, 21], 30)).await.unwrap();
    let copy = store.fork_point(&claim(writer, &[1, 20, 21], 22)).await.unwrap().unwrap();
    assert_eq!(copy.lanes[0].digest.part_records(), Some(3));
    drop((flusher, store));
    on.execute(&format!("DROP OWNED BY {role}; DROP ROLE {role}")).await;
}

#[tokio::test]
async fn a_role_that_cannot_create_the_table_of_requests_goes_on_storing() {
    let on = Fixture::postgres().await;
    let role = format!("app_{}", Uuid::new_v4().simple());
    let grant = format!("GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {role}");
    on.execute(&format!(
        "DROP TABLE logweir_idempotency_key; ALTER TABLE logweir_lane DROP COLUMN repeated; \
         CREATE ROLE {role} LOGIN PASSWORD 'p'; {grant}"
    ))
    .await;
    let at = on.url().split('@').next_back().unwrap();
    let store = open_postgres(&format!("postgres://{role}:p@{at}"));
    store.prepare().await.unwrap();
    let (writer, mut feed) = (Uuid::new_v4(), Feed::new(0));
    let lease = store.acquire_lease(&claim(writer, &[], 1)).await.unwrap();
    let mut flusher = lane(&store, &lease, 0).await;
    for _ in 0..2 {
        assert_eq!(flusher.flush(&feed.requests(&[(1, 10)])).await.unwrap(), flushed(2, 0), "it is not known");
    }
    let failed = maintain(&store, now_us()).await;
    let told = failed.iter().find(|step| step.starts_with("idempotency_keys: ")).unwrap();
    assert!(told.contains("42501") && told.contains("logweir database prepare"), "{told}");

    assert_maintained(&on.store).await;
    assert_maintained(&on.store).await;
    assert_eq!(flusher.flush(&feed.requests(&[(1, 10)])).await.unwrap(), flushed(2, 0), "it may not use the table");
    on.execute(&grant).await;
    // On the connection that was open all the time.
    assert_eq!(flusher.flush(&feed.requests(&[(1, 10)])).await.unwrap(), flushed(2, 0), "the first that is remembered");
    assert_eq!(flusher.flush(&feed.requests(&[(1, 10), (2, 20)])).await.unwrap().repeated, 2);
    on.assert_whole(writer, 12).await;
    drop((flusher, store));
    on.execute(&format!("DROP OWNED BY {role}; DROP ROLE {role}")).await;
}

/// Its connection waits for it in the middle of a COPY, and no time limit of the server covers that.
#[tokio::test]
async fn a_frozen_process_does_not_keep_others_from_storing_a_request_that_it_has_too() {
    let on = Fixture::postgres().await;
    let (writer, _, mut flusher) = started(&on).await;
    let mut feed = Feed::new(0);
    assert_eq!(flusher.flush(&feed.requests(&[(1, 10)])).await.unwrap(), flushed(2, 0));
    let name = format!("logweir/{}/0/1", Uuid::new_v4().simple());
    let frozen = postgres::connect(on.url()).await;
    frozen.batch_execute(&format!("SET application_name = '{name}'")).await.unwrap();
    frozen.batch_execute("BEGIN; UPDATE logweir_idempotency_key SET at = at").await.unwrap();
    let copy = frozen.copy_in::<_, bytes::Bytes>("COPY logs FROM STDIN").await.unwrap();

    let short = with(DatabaseUrl::Postgres(on.url().to_owned()), |short| short.statement_timeout_ms = 1000);
    let store = store::open(&short).unwrap().store();
    let (other, mut feed) = (Uuid::new_v4(), Feed::new(0));
    let lease = store.acquire_lease(&claim(other, &[], 1)).await.unwrap();
    let mut flusher = lane(&store, &lease, 0).await;
    let batch = feed.requests(&[(1, 10)]);
    let begin = Instant::now();
    let mut refused = 0;
    let done = loop {
        match flusher.flush(&batch).await {
            Err(StoreError::Transient(_) | StoreError::Rejected(_)) if begin.elapsed() < PATIENCE => refused += 1,
            done => break done.unwrap(),
        }
    };
    assert!(refused > 0, "it was held up");
    assert_eq!(done.repeated, 2);
    drop(copy);
    on.assert_whole(writer, 2).await;
    on.assert_whole(other, 2).await;
}

#[tokio::test]
async fn tables_in_a_later_schema_of_search_path_are_not_created_again_in_the_first() {
    let on = Fixture::postgres().await;
    let database = on.url().rsplit('/').next().unwrap();
    on.execute(&format!("CREATE SCHEMA first; ALTER DATABASE {database} SET search_path = first, public")).await;
    on.other().prepare().await.unwrap();
    assert_eq!(on.number("SELECT count(*) FROM pg_class WHERE relnamespace = 'first'::regnamespace").await, 0);
}

#[tokio::test]
async fn a_missing_table_is_not_replaced_by_another_logweirs_in_a_later_schema() {
    let on = Fixture::postgres().await;
    if skips_partitions(&on) {
        return;
    }
    on.execute("CREATE SCHEMA app").await;
    open_postgres(&format!("{}?options=-c%20search_path=app", on.url())).prepare().await.unwrap();
    let both = open_postgres(&format!("{}?options=-c%20search_path=app,public", on.url()));
    both.prepare().await.unwrap();
    on.execute("DROP TABLE app.logs").await;
    assert!(!maintain(&both, now_us()).await.is_empty(), "it does not maintain the tables of the other");
    assert_eq!(on.number(PARTITIONS).await, 1);
    both.prepare().await.unwrap();
    assert_eq!(on.number("SELECT count(*) FROM pg_tables WHERE schemaname = 'app' AND tablename = 'logs'").await, 1);
    on.execute("DROP TABLE app.logweir_lane, app.logweir_takeover, app.logweir_writer").await;
    let error = both.prepare().await.unwrap_err();
    assert!(is_systemic(&error) && error.to_string().contains("identify records in schema public"), "{error}");
}

#[tokio::test]
async fn an_extension_that_ends_the_session_does_not_keep_the_tables_from_being_created() {
    let on = Fixture::empty_postgres().await;
    // As a TimescaleDB whose extension fails in the worst way.
    on.execute(
        "CREATE SCHEMA app; CREATE VIEW app.pg_available_extensions AS \
         SELECT 'timescaledb'::name AS name, NULL::text AS installed_version; CREATE VIEW app.pg_settings AS \
         SELECT 'timescaledb.max_background_workers'::text AS name; \
         CREATE FUNCTION app.ends_the_session() RETURNS event_trigger LANGUAGE plpgsql AS \
         $$ BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); PERFORM pg_sleep(5); END $$; \
         CREATE EVENT TRIGGER t ON ddl_command_start WHEN TAG IN ('CREATE EXTENSION') \
         EXECUTE FUNCTION app.ends_the_session()",
    )
    .await;
    let store = open_postgres(&format!("{}?options=-c%20search_path=app,pg_catalog", on.url()));
    store.prepare().await.unwrap();
    assert_eq!(on.number("SELECT count(*) FROM pg_inherits WHERE inhparent = 'app.logs'::regclass").await, 1);
}

#[tokio::test]
async fn a_plain_table_expires_by_rows_in_a_database_that_uses_timescaledb_for_others() {
    let on = Fixture::postgres().await;
    if skips_partitions(&on) {
        return;
    }
    on.execute(
        "CREATE SCHEMA timescaledb_information; CREATE VIEW timescaledb_information.hypertables AS \
         SELECT 'public'::name AS hypertable_schema, 'metrics'::name AS hypertable_name; \
         INSERT INTO pg_extension (oid, extname, extowner, extnamespace, extrelocatable, extversion) \
         VALUES (99999, 'timescaledb', 10, 2200, true, '2'); \
         ALTER TABLE logs RENAME TO shape; CREATE TABLE logs (LIKE shape INCLUDING ALL); DROP TABLE shape",
    )
    .await;
    let (_, _, mut flusher) = started(&on).await;
    let old = Record { ts_us: now_us() - 40 * DAY_US, ..record("m") };
    flusher.flush(&Feed::new(0).batch(&[&[old, Record { ts_us: now_us(), ..record("m") }]])).await.unwrap();
    assert_maintained(&keeping_30_days(&on)).await;
    assert_eq!(on.number("SELECT count(*) FROM logs").await, 1);
}

#[tokio::test]
async fn two_processes_prepare_one_new_sqlite_file() {
    for _ in 0..20 {
        let on = Fixture::empty_sqlite();
        let (one, other) = (on.store.clone(), on.other());
        let (one, other) = tokio::join!(one.prepare(), other.prepare());
        one.unwrap();
        other.unwrap();
    }
}

conformance! { on_postgres, Some(Fixture::postgres().await) }
conformance! { on_sqlite, Some(Fixture::sqlite().await) }
conformance! { on_timescale_half_of_it_late, Fixture::half_late().await }

// PostgreSQL only from here on.

fn is_transient(error: &StoreError) -> bool {
    matches!(error, StoreError::Transient(_))
}

fn is_systemic(error: &StoreError) -> bool {
    matches!(error, StoreError::Systemic(_))
}

/// Flushes like the flusher: retries transient errors for a while. Returns the number of errors.
async fn flush_on(flusher: &mut Box<dyn LaneWriter>, batch: &Batch) -> (Flushed, u32) {
    let deadline = Instant::now() + PATIENCE;
    let mut tries = 0;
    loop {
        match flusher.flush(batch).await {
            Ok(flushed) => return (flushed, tries),
            Err(error) => assert!(is_transient(&error) && Instant::now() < deadline, "{error}"),
        }
        tries += 1;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// As [`flush_on`], for a statement timeout so short that a machine that stalls can reach it.
async fn flush_in_haste(flusher: &mut Box<dyn LaneWriter>, batch: &Batch) -> Flushed {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match flusher.flush(batch).await {
            Err(StoreError::Transient(_) | StoreError::Rejected(_)) if Instant::now() < deadline => {}
            done => return done.unwrap(),
        }
    }
}

impl Fixture {
    fn url(&self) -> &str {
        match &self.place {
            Place::Postgres(database) => &database.url,
            Place::Sqlite(_) => panic!("this store has no URL"),
        }
    }

    /// A private server with one prepared database.
    async fn private(options: Options) -> (Server, Self) {
        let server = tokio::task::spawn_blocking(move || Server::start(&options)).await.unwrap();
        let name = postgres::create_database(&server.url("postgres")).await;
        let store = open_postgres(&server.url(&name));
        store.prepare().await.unwrap();
        let database = TestDatabase::on(&server, &name);
        (server, Self { store, place: Place::Postgres(database), half_late: false })
    }

    /// Waits until a session is waiting for a lock.
    async fn session_waits(&self) {
        let deadline = Instant::now() + PATIENCE;
        while self
            .number(
                "SELECT count(*) FROM pg_locks l JOIN pg_stat_activity a USING (pid) \
                           WHERE NOT granted AND a.datname = current_database()",
            )
            .await
            == 0
        {
            assert!(Instant::now() < deadline, "no session waits for a lock");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

#[tokio::test]
async fn two_lanes_flush_the_same_minute_without_waiting_for_each_other() {
    let on = Fixture::postgres().await;
    let (writer, lease, mut first) = started(&on).await;
    let mut second = lane(&on.store, &lease, 1).await;
    let (mut feed, mut other) = (Feed::of_one_day(0), Feed::of_one_day(1));
    first.flush(&feed.plain(5)).await.unwrap();
    second.flush(&other.plain(5)).await.unwrap();
    // Lane 0's next flush, stopped before its COMMIT: its lane row, rows and counter are locked.
    let beside = postgres::connect(on.url()).await;
    beside
        .batch_execute(
            "BEGIN; UPDATE logweir_lane SET last_seq = 2, rows = 6 WHERE lane = 0; \
             INSERT INTO logs SELECT id + 5, ts, severity, service, host, message FROM logs ORDER BY id LIMIT 1; \
             UPDATE log_volume SET records = 6 WHERE lane_id = (SELECT lane_id FROM logweir_lane WHERE lane = 0)",
        )
        .await
        .unwrap();
    assert_eq!(second.flush(&other.plain(4)).await.unwrap(), flushed(4, 0));
    beside.batch_execute("COMMIT").await.unwrap();
    on.assert_whole(writer, 15).await;
}

#[tokio::test]
async fn a_takeover_waits_for_an_open_flush_and_sees_its_result() {
    let on = Fixture::postgres().await;
    let (writer, _, mut flusher) = started(&on).await;
    let mut feed = Feed::new(0);
    flusher.flush(&feed.plain(5)).await.unwrap();
    feed.seq = 80;
    let beside = postgres::connect(on.url()).await;
    beside.batch_execute("BEGIN; UPDATE logweir_lane SET last_seq = 77 WHERE lane = 0").await.unwrap();
    let store = on.other();
    let taking = tokio::spawn(async move {
        // It does not wait for a lock without end.
        loop {
            match store.acquire_lease(&claim_at(&feed, writer, &[1], 2)).await {
                Err(error) if is_transient(&error) => {}
                done => break done,
            }
        }
    });
    on.session_waits().await;
    assert!(!taking.is_finished());
    beside.batch_execute("COMMIT").await.unwrap();
    let lease = taking.await.unwrap().unwrap();
    let row = &on.store.lanes(writer).await.unwrap()[0];
    assert_eq!((lease.epoch, row.last_seq, row.epoch), (2, 77, 2));
}

#[tokio::test]
async fn a_lane_opens_beside_its_earlier_connection_that_stalled_in_mid_statement() {
    let on = Fixture::postgres().await;
    let (writer, lease, _flusher) = started(&on).await;
    // The network fell silent while lane 5 was being opened: its row is inserted but not committed, and the server waits
    // for the rest of a statement. No timeout of the server ends that.
    let stalled = postgres::connect(on.url()).await;
    let name = format!("logweir/{}/5/{}/open", writer.simple(), lease.epoch);
    stalled
        .batch_execute(&format!(
            "SET application_name = '{name}'; CREATE TEMP TABLE scratch (line text); BEGIN; \
             INSERT INTO logweir_lane (writer_id, lane, epoch) VALUES ('{writer}', 5, {})",
            lease.epoch
        ))
        .await
        .unwrap();
    let _unfinished = stalled.copy_in::<_, bytes::Bytes>("COPY scratch FROM STDIN").await.unwrap();
    let (_, row) = on.store.open_lane(&lease, 5).await.unwrap();
    assert_eq!((row.lane, row.last_seq), (5, 0));
}

#[tokio::test]
async fn a_takeover_terminates_the_connection_of_a_frozen_holder() {
    let on = Fixture::postgres().await;
    let (writer, _, mut flusher) = started(&on).await;
    let mut feed = Feed::new(0);
    flusher.flush(&feed.plain(5)).await.unwrap();
    // A process of epoch 1 that was frozen during its flush.
    let name = format!("logweir/{}/0/1", writer.simple());
    let frozen = postgres::connect(on.url()).await;
    frozen
        .batch_execute(&format!("SET application_name = '{name}'; BEGIN; UPDATE logweir_lane SET last_seq = 9"))
        .await
        .unwrap();
    let lease = on.other().acquire_lease(&claim_at(&feed, writer, &[1], 2)).await.unwrap();
    assert_eq!((lease.epoch, on.store.lanes(writer).await.unwrap()[0].last_seq), (2, 1));
    assert!(frozen.batch_execute("COMMIT").await.is_err(), "its connection was terminated");
    on.assert_whole(writer, 5).await;

    // One that was frozen while it opened a lane: it holds the writer's row.
    let name = format!("logweir/{}/0/2/open", writer.simple());
    let frozen = postgres::connect(on.url()).await;
    frozen
        .batch_execute(&format!(
            "SET application_name = '{name}'; BEGIN; SELECT FROM logweir_writer WHERE writer_id = '{writer}' FOR SHARE"
        ))
        .await
        .unwrap();
    let stale = on.other().acquire_lease(&claim_at(&feed, writer, &[1, 30], 31)).await.unwrap_err();
    assert!(
        matches!(stale, StoreError::StaleCopy { epoch: 2, .. }),
        "a stale copy must not terminate connections: {stale}"
    );
    frozen.batch_execute("SELECT 1").await.unwrap();
    let lease = on.other().acquire_lease(&claim_at(&feed, writer, &[1, 2], 3)).await.unwrap();
    assert_eq!(lease.epoch, 3);
    assert!(frozen.batch_execute("COMMIT").await.is_err(), "its connection was terminated");
}

const CUT_NOT: u8 = 0;
const CUT_REQUEST: u8 = 1;
const CUT_REPLY: u8 = 2;
const SILENT_AFTER_CONNECTING: u8 = 3;
const SILENT_WHILE_OPENING: u8 = 4;

/// A proxy that cuts the connection once, at the next COMMIT: before it reaches the server, or after the server has
/// responded. It can also fall silent for a while, at the first statement of a connection or when a lane is opened.
async fn proxy(port: u16) -> (u16, Arc<AtomicU8>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let own = listener.local_addr().unwrap().port();
    let cut = Arc::new(AtomicU8::new(CUT_NOT));
    let armed = cut.clone();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let server = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
            tokio::spawn(pass(client, server, armed.clone()));
        }
    });
    (own, cut)
}

async fn pass(mut client: tokio::net::TcpStream, mut server: tokio::net::TcpStream, cut: Arc<AtomicU8>) -> Option<()> {
    let (mut up, mut down) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    loop {
        tokio::select! {
            read = client.read(&mut up) => {
                let read = read.ok().filter(|&read| read > 0)?;
                let bytes = &up[..read];
                let contains_bytes = |what: &[u8]| bytes.windows(what.len()).any(|window| window == what);
                match cut.load(Ordering::SeqCst) {
                    SILENT_AFTER_CONNECTING if contains_bytes(b"client_connection_check_interval") => std::future::pending().await,
                    SILENT_WHILE_OPENING if contains_bytes(b".logweir_writer") => std::future::pending().await,
                    _ => {}
                }
                let commits = bytes.windows(7).any(|window| window == b"COMMIT\0");
                match if commits { cut.swap(CUT_NOT, Ordering::SeqCst) } else { CUT_NOT } {
                    CUT_REQUEST => return None,
                    CUT_REPLY => {
                        server.write_all(bytes).await.ok()?;
                        let _answer_bytes = server.read(&mut down).await.ok()?;
                        return None;
                    }
                    _ => server.write_all(bytes).await.ok()?,
                }
            }
            read = server.read(&mut down) => {
                let read = read.ok().filter(|&read| read > 0)?;
                client.write_all(&down[..read]).await.ok()?;
            }
        }
    }
}

#[tokio::test]
async fn a_connection_cut_at_commit_leaves_each_record_once() {
    let on = Fixture::postgres().await;
    let config: tokio_postgres::Config = on.url().parse().unwrap();
    let (port, cut) = proxy(config.get_ports()[0]).await;
    let url = on.url().replacen(&format!(":{}/", config.get_ports()[0]), &format!(":{port}/"), 1);
    let store = open_postgres(&url);
    let writer = Uuid::new_v4();
    let lease = store.acquire_lease(&claim(writer, &[], 1)).await.unwrap();
    let mut flusher = lane(&store, &lease, 0).await;
    let mut feed = Feed::new(0);
    for (round, how) in [CUT_REQUEST, CUT_REPLY, CUT_REPLY, CUT_REQUEST].into_iter().enumerate() {
        let batch = feed.plain(100);
        cut.store(how, Ordering::SeqCst);
        let error = flusher.flush(&batch).await.unwrap_err();
        assert!(is_transient(&error), "{error}");
        assert_eq!(cut.load(Ordering::SeqCst), CUT_NOT, "the connection was not cut");
        assert_eq!(flush_on(&mut flusher, &batch).await.0, flushed(100, 0));
        on.assert_whole(writer, 100 * (round as u64 + 1)).await;
    }
}

#[tokio::test]
async fn a_server_that_falls_silent_while_a_lane_is_opened_times_out() {
    let on = Fixture::postgres().await;
    let (_, lease, _flusher) = started(&on).await;
    let config: tokio_postgres::Config = on.url().parse().unwrap();
    let (port, cut) = proxy(config.get_ports()[0]).await;
    let url = on.url().replacen(&format!(":{}/", config.get_ports()[0]), &format!(":{port}/"), 1);
    let hasty = with(DatabaseUrl::Postgres(url), |hasty| {
        (hasty.connect_timeout_ms, hasty.statement_timeout_ms) = (2_000, 10_000)
    });
    let store = store::open(&hasty).unwrap().store();
    for (silence, expected_text) in
        [(SILENT_AFTER_CONNECTING, "connecting to the database"), (SILENT_WHILE_OPENING, "opening the lane")]
    {
        cut.store(silence, Ordering::SeqCst);
        let opened = tokio::time::timeout(PATIENCE, store.open_lane(&lease, 0)).await;
        let error = opened.expect("opening times out").err().expect("opening fails");
        assert!(is_transient(&error) && error.to_string().contains(expected_text), "{error}");
        cut.store(CUT_NOT, Ordering::SeqCst);
        // A busy machine may be too slow for these limits once.
        let opens = async { while store.open_lane(&lease, 0).await.is_err() {} };
        tokio::time::timeout(PATIENCE, opens).await.expect("it opens again");
    }
}

#[tokio::test]
async fn exactly_the_bad_rows_are_dead_lettered_each_with_its_reason() {
    let on = Fixture::postgres().await;
    let (writer, _, mut flusher) = started(&on).await;
    let deep = format!("{{\"a\":{}1{}}}", "[".repeat(100_000), "]".repeat(100_000));
    let with = |attributes| Record { attributes, ..record("bad attributes") };
    let poison = [
        (record("a NUL \0 in the message"), "22021"),
        (Record { service: "a\0b", ..record("m") }, "22021"),
        (Record { host: "\0", ..record("m") }, "22021"),
        (with(r#"{"a":"\u0000"}"#), "22P05"),
        (with(r#"{"a":"\ud800"}"#), "22P02"),
        (with(r#"{"a":"\udc00\ud800"}"#), "22P02"),
        (with(r#"{"a":NaN}"#), "22P02"),
        (with(r#"{"a":"#), "22P02"),
        (with("COPY logs, line 1"), "22P02"),
        (with(r#"{"a":1e400000}"#), "22003"),
        (with(&deep), "54001"),
    ];
    // Each bad row between two good ones, one at the start, two in a row at the end, across several frames.
    let mut records = Vec::new();
    for (bad, _) in &poison {
        records.extend([*bad, record("good"), record("good")]);
    }
    records.extend([poison[0].0, poison[3].0]);
    let mut feed = Feed::new(0);
    let batch = feed.batch(&[&records[..7], &records[7..8], &records[8..]]);
    let dead = poison.len() as u64 + 2;
    assert_eq!(flusher.flush(&batch).await.unwrap(), flushed(2 * poison.len() as u64, dead));
    on.assert_whole(writer, records.len() as u64).await;
    assert_eq!(on.number("SELECT count(*) FROM logs WHERE message = 'good'").await, 2 * poison.len() as i64);

    let mut letters = on.store.dead_letters(100).await.unwrap();
    letters.sort_by_key(|letter| letter.id);
    let states: Vec<&str> = letters.iter().map(|letter| letter.sqlstate.as_str()).collect();
    let expected: Vec<&str> = poison.iter().map(|(_, state)| *state).chain(["22021", "22P05"]).collect();
    assert_eq!(states, expected);
    assert_eq!((letters[0].seq, letters[0].row, letters[2].seq, letters[2].row), (1, 0, 1, 6));
    assert!(letters.iter().all(|letter| !letter.reason.is_empty() && letter.at_us > NOON_US));
    let raw: serde_json::Value = serde_json::from_str(&letters[3].raw).unwrap();
    assert_eq!(raw["attributes"], serde_json::json!({"a": "\u{0}"}));

    // Records that can be sanitized are replayed; the others fail with a reason and stay.
    let mut replayed = 0;
    for letter in &letters {
        match on.store.replay_dead_letter(letter).await {
            Ok(()) => replayed += 1,
            Err(error) => assert!(error.to_string().contains(&letter.sqlstate), "{error}"),
        }
    }
    assert_eq!(replayed, 8, "NULs, \\u0000 and lone surrogates");
    on.assert_whole(writer, records.len() as u64).await;

    // The lane continues.
    assert_eq!(flusher.flush(&feed.plain(3)).await.unwrap(), flushed(3, 0));
}

#[tokio::test]
async fn many_bad_values_are_dead_lettered_and_the_lane_continues() {
    let on = Fixture::postgres().await;
    let (writer, _, mut flusher) = started(&on).await;
    let mut feed = Feed::new(0);
    let bad = Record { attributes: r#"{"a":1e400000}"#, ..record("bad") };
    let mixed: Vec<Record<'_>> = (0..1_000).map(|n| if n % 2 == 0 { bad } else { record("good") }).collect();
    assert_eq!(flusher.flush(&feed.batch(&[&mixed])).await.unwrap(), flushed(500, 500));
    on.assert_whole(writer, 1_000).await;
    assert_eq!(on.number("SELECT count(*) FROM logs WHERE message = 'good'").await, 500);
    assert_eq!(on.number("SELECT count(*) FROM logweir_dead_letter WHERE sqlstate = '22003'").await, 500);
    assert_eq!(on.number("SELECT count(*) FROM logweir_dead_letter WHERE row_no % 2 = 0").await, 500);

    let all_bad = feed.batch(&[&[bad; 300], &[record("a\0b"); 300]]);
    assert_eq!(flusher.flush(&all_bad).await.unwrap(), flushed(0, 600));
    assert_eq!(on.number("SELECT count(*) FROM logweir_dead_letter WHERE sqlstate = '22021'").await, 300);
    assert_eq!(flusher.flush(&all_bad).await.unwrap(), flushed(0, 0));
    assert_eq!(flusher.flush(&feed.plain(10)).await.unwrap(), flushed(10, 0));
    on.assert_whole(writer, 1_610).await;
}

#[tokio::test]
async fn many_bad_values_do_not_hide_rows_that_a_constraint_rejects() {
    let on = Fixture::postgres().await;
    on.execute("ALTER TABLE logs ADD CONSTRAINT polite CHECK (message <> 'rude')").await;
    let (writer, _, mut flusher) = started(&on).await;
    let mut feed = Feed::new(0);
    let bad = Record { attributes: r#"{"a":1e400000}"#, ..record("bad") };
    let mixed: Vec<Record<'_>> = (0..400)
        .map(|n| match n % 40 {
            39 => record("rude"),
            n if n % 2 == 0 => bad,
            _ => record("good"),
        })
        .collect();
    assert_eq!(flusher.flush(&feed.batch(&[&mixed])).await.unwrap(), flushed(190, 210));
    assert_eq!(on.number("SELECT count(*) FROM logweir_dead_letter WHERE sqlstate = '23514'").await, 10);
    on.assert_whole(writer, 400).await;
}

#[tokio::test]
async fn a_column_that_rejects_everything_with_a_value_error_stops_the_lane() {
    let on = Fixture::postgres().await;
    let (writer, _, mut flusher) = started(&on).await;
    // An enum raises 22P02 for every unknown text, like jsonb.
    on.execute("CREATE TYPE mood AS ENUM ('sad'); ALTER TABLE logs ALTER host TYPE mood USING 'sad'").await;
    let mut feed = Feed::new(0);
    let error = flusher.flush(&feed.plain(150)).await.unwrap_err();
    assert!(is_systemic(&error) && error.to_string().contains("refuses every record"), "{error}");
    assert_eq!(on.number("SELECT count(*) FROM logweir_dead_letter").await, 0);
    on.assert_whole(writer, 0).await;
}

#[tokio::test]
async fn a_bad_row_is_found_without_a_line_number_and_if_it_fails_only_together_with_another() {
    let on = Fixture::postgres().await;
    // The context of a trigger after the statement's rows has no COPY line.
    on.execute(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS \
         $$BEGIN RAISE 'rude' USING ERRCODE = '22000'; END$$; \
         CREATE TRIGGER polite AFTER INSERT ON logs FOR EACH ROW WHEN (new.message = 'rude') EXECUTE FUNCTION refuse(); \
         CREATE UNIQUE INDEX once ON logs (ts, message)",
    )
    .await;
    let (writer, _, mut flusher) = started(&on).await;
    let texts: Vec<String> = (0..1_000).map(|n| n.to_string()).collect();
    let mut records: Vec<Record<'_>> = texts.iter().map(|text| record(text)).collect();
    records[300] = record("rude");
    records[700] = record("699");
    records[999] = record("rude");
    assert_eq!(flusher.flush(&Feed::of_one_day(0).batch(&[&records])).await.unwrap(), flushed(997, 3));
    on.assert_whole(writer, 1_000).await;
    let mut found: Vec<(u32, String)> =
        on.store.dead_letters(9).await.unwrap().into_iter().map(|letter| (letter.row, letter.sqlstate)).collect();
    found.sort();
    assert_eq!(found, [(300, "22000".into()), (700, "23505".into()), (999, "22000".into())]);
}

#[tokio::test]
async fn a_changed_schema_stops_the_lane_until_it_is_fixed_and_dead_letters_nothing() {
    let on = Fixture::postgres().await;
    let (writer, _, mut flusher) = started(&on).await;
    let mut feed = Feed::new(0);
    // The error in an open session, and in a new one.
    let drifts = [
        ("RENAME COLUMN host TO machine", "RENAME COLUMN machine TO host", "42703", "host (text) is missing"),
        ("ALTER host TYPE bigint USING 0", "ALTER host TYPE text", "08P01", "host is bigint, expected text"),
        ("ALTER severity TYPE integer", "ALTER severity TYPE smallint", "08P01", "severity is integer"),
        ("RENAME TO logs_old", "", "42P01", "if logs was renamed"),
        ("DROP COLUMN attributes", "ADD COLUMN attributes jsonb", "42703", "attributes (jsonb) is missing"),
    ]
    .map(|(break_it, repair_it, open, fresh)| {
        let repair = match repair_it {
            "" => "ALTER TABLE logs_old RENAME TO logs".to_owned(),
            other => format!("ALTER TABLE logs {other}"),
        };
        (format!("ALTER TABLE logs {break_it}"), repair, open, fresh)
    });
    let counters = [(
        "ALTER TABLE log_volume ADD CONSTRAINT few CHECK (records < 0) NOT VALID".to_owned(),
        "ALTER TABLE log_volume DROP CONSTRAINT few".to_owned(),
        "23514",
        "23514",
    )];
    for (round, (break_it, repair_it, open, fresh)) in drifts.into_iter().chain(counters).enumerate() {
        let batch = feed.plain(10);
        on.execute(&break_it).await;
        for expected_text in [open, fresh] {
            let error = flusher.flush(&batch).await.unwrap_err();
            assert!(is_systemic(&error) && error.to_string().contains(expected_text), "{break_it}: {error}");
        }
        on.execute(&repair_it).await;
        assert_eq!(flusher.flush(&batch).await.unwrap(), flushed(10, 0), "{repair_it}");
        assert_eq!(on.number("SELECT count(*) FROM logweir_dead_letter").await, 0);
        on.assert_whole(writer, 10 * (round as u64 + 1)).await;
    }
}

#[tokio::test]
async fn a_revoked_privilege_is_systemic_and_a_connection_limit_transient() {
    let on = Fixture::postgres().await;
    let role = format!("app_{}", Uuid::new_v4().simple());
    let database = on.url().rsplit('/').next().unwrap();
    on.execute(&format!(
        "CREATE ROLE {role} LOGIN PASSWORD 'p'; GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}; \
         GRANT ALL ON DATABASE {database} TO {role}"
    ))
    .await;
    let at = on.url().split('@').next_back().unwrap();
    let store = open_postgres(&format!("postgres://{role}:p@{at}"));
    let writer = Uuid::new_v4();
    let lease = store.acquire_lease(&claim(writer, &[], 1)).await.unwrap();
    let mut flusher = lane(&store, &lease, 0).await;
    let mut feed = Feed::new(0);

    let batch = feed.plain(10);
    on.execute(&format!("REVOKE INSERT ON logs FROM {role}")).await;
    let error = flusher.flush(&batch).await.unwrap_err();
    assert!(is_systemic(&error) && error.to_string().contains("42501"), "{error}");
    on.execute(&format!("GRANT INSERT ON logs TO {role}; ALTER ROLE {role} CONNECTION LIMIT 0")).await;
    let error = flusher.flush(&batch).await.unwrap_err();
    assert!(is_transient(&error) && error.to_string().contains("53300"), "{error}");
    on.execute(&format!("ALTER ROLE {role} CONNECTION LIMIT -1")).await;
    assert_eq!(flush_on(&mut flusher, &batch).await.0, flushed(10, 0));
    assert_eq!(on.number("SELECT count(*) FROM logweir_dead_letter").await, 0);
    on.assert_whole(writer, 10).await;
    drop((flusher, store));
    on.execute(&format!("DROP OWNED BY {role}; DROP ROLE {role}")).await;
}

#[tokio::test]
async fn a_held_lock_and_a_terminated_session_are_transient_and_a_slow_statement_divides_the_batch() {
    let on = Fixture::postgres().await;
    let (writer, _, mut flusher) = started(&on).await;
    let mut feed = Feed::new(0);

    let batch = feed.plain(10);
    let beside = postgres::connect(on.url()).await;
    beside.batch_execute("BEGIN; LOCK TABLE logs").await.unwrap();
    let error = flusher.flush(&batch).await.unwrap_err();
    assert!(is_transient(&error) && error.to_string().contains("55P03"), "{error}");
    beside.batch_execute("COMMIT").await.unwrap();
    assert_eq!(flusher.flush(&batch).await.unwrap(), flushed(10, 0));

    let hasty = with(DatabaseUrl::Postgres(on.url().to_owned()), |hasty| hasty.statement_timeout_ms = 1_500);
    let store = store::open(&hasty).unwrap().store();
    let lease = store.acquire_lease(&claim_at(&feed, writer, &[1], 2)).await.unwrap();
    let mut flusher = lane(&store, &lease, 0).await;
    on.execute(
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN PERFORM pg_sleep(60); RETURN new; END$$; \
         CREATE TRIGGER slow BEFORE INSERT ON log_volume FOR EACH ROW EXECUTE FUNCTION slow()",
    )
    .await;
    let batch = feed.plain(10);
    match flusher.flush(&batch).await.unwrap_err() {
        StoreError::Rejected(rejection) => {
            assert!(rejection.code == "57014" && rejection.reason.contains("statement_timeout_ms"), "{rejection:?}");
            // Alone, too: that is no reason to dead-letter a record, since every other one is as slow.
            let one = batch.prefix(1);
            let error = flusher.dead_letter(&one, &rejection).await.unwrap_err();
            assert!(is_systemic(&error) && error.to_string().contains("57014"), "{error}");
        }
        other => panic!("{other}"),
    }
    on.execute("DROP TRIGGER slow ON log_volume").await;
    assert_eq!(flush_in_haste(&mut flusher, &batch).await, flushed(10, 0));

    on.number(
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
               WHERE datname = current_database() AND pid <> pg_backend_pid() AND application_name LIKE 'logweir/%'",
    )
    .await;
    assert_eq!(flush_on(&mut flusher, &feed.plain(10)).await.0, flushed(10, 0));
    on.assert_whole(writer, 30).await;
}

/// Lets inserting a row whose message is `rude CODE` fail with that SQLSTATE.
const RAISE: &str = "CREATE FUNCTION complain() RETURNS trigger LANGUAGE plpgsql AS \
    $$BEGIN RAISE 'rude' USING ERRCODE = substr(new.message, 6); END$$; \
    CREATE TRIGGER polite BEFORE INSERT ON logs FOR EACH ROW WHEN (new.message LIKE 'rude %') \
    EXECUTE FUNCTION complain()";

#[tokio::test]
async fn a_row_for_which_a_trigger_raises_is_a_dead_letter_whatever_the_sqlstate() {
    let on = Fixture::postgres().await;
    on.execute(RAISE).await;
    let (writer, _, mut flusher) = started(&on).await;
    let mut feed = Feed::new(0);
    let codes = [
        "P0001", "P0002", "P0004", "38000", "39004", "2F000", "XX000", "42501", "42P01", "42703", "42804", "0A000",
        "23514", "22P05", "54000", "21000", "44000", "55000", "LW001",
    ];
    let texts: Vec<String> = codes.iter().map(|code| format!("rude {code}")).collect();
    let mut records: Vec<Record<'_>> = texts.iter().map(|text| record(text)).collect();
    records.extend([record("plain"); 50]);
    let bad = codes.len() as u64;
    assert_eq!(flusher.flush(&feed.batch(&[&records])).await.unwrap(), flushed(50, bad));
    let mut letters = on.store.dead_letters(100).await.unwrap();
    letters.sort_by_key(|letter| letter.id);
    let found: Vec<&str> = letters.iter().map(|letter| letter.sqlstate.as_str()).collect();
    assert_eq!(found, codes);
    // One alone, and what is not a row's fault whatever raises it.
    assert_eq!(flusher.flush(&feed.batch(&[&records[..1]])).await.unwrap(), flushed(0, 1));
    let batch = |code: &str| feed.clone().batch(&[&[record(&format!("rude {code}"))]]);
    for code in ["57014", "53200", "53400"] {
        match flusher.flush(&batch(code)).await.unwrap_err() {
            StoreError::Rejected(rejection) => assert_eq!(rejection.code, code),
            other => panic!("{code}: {other}"),
        }
    }
    for code in ["53100", "53300", "40001", "57P01", "55P03"] {
        let error = flusher.flush(&batch(code)).await.unwrap_err();
        assert!(is_transient(&error), "{code}: {error}");
    }
    on.assert_whole(writer, 51 + bad).await;
}

/// Lets inserting a row fail whose number among all that are tried is in `calls`. A sequence is not rolled back.
fn refuse_some(code: &str, calls: &str) -> String {
    format!(
        "CREATE SEQUENCE calls; CREATE FUNCTION count_calls() RETURNS trigger LANGUAGE plpgsql AS \
         $$BEGIN IF nextval('calls') {calls} THEN RAISE 'closed' USING ERRCODE = '{code}'; END IF; RETURN new; END$$; \
         CREATE TRIGGER calls BEFORE INSERT ON logs FOR EACH ROW EXECUTE FUNCTION count_calls()"
    )
}

#[tokio::test]
async fn a_table_that_refuses_every_row_for_a_moment_makes_no_dead_letter() {
    // In a big batch: the row and then it alone; and a constraint, which can be violated by rows together.
    for (code, calls) in [("P0001", "<= 2"), ("23503", "<= 2"), ("23514", "= 3"), ("23514", "= 100"), ("XX000", "= 1")]
    {
        let on = Fixture::postgres().await;
        let (writer, _, mut flusher) = started(&on).await;
        let mut feed = Feed::new(0);
        flusher.flush(&feed.plain(5)).await.unwrap();
        on.execute(&refuse_some(code, calls)).await;
        assert_eq!(flusher.flush(&feed.plain(100)).await.unwrap(), flushed(100, 0), "{code}, calls {calls}");
        on.assert_whole(writer, 105).await;
    }
}

#[tokio::test]
async fn rows_are_inserted_once_per_flush_while_a_trigger_drops_some_of_them() {
    let on = Fixture::postgres().await;
    on.execute(on.sql().drop_noise[0]).await;
    on.execute(&refuse_some("P0001", "< 0")).await;
    let (writer, _, mut flusher) = started(&on).await;
    let mut feed = Feed::new(0);
    let tried = async || on.number("SELECT last_value FROM calls").await;
    for round in 0..3 {
        let before = tried().await;
        let records = [record("plain"), record("noise"), record("plain")];
        assert_eq!(flusher.flush(&feed.batch(&[&records])).await.unwrap(), flushed(2, 1));
        let twice = if round == 0 { 2 } else { 1 };
        // The sequence's first number is the value that it begins with.
        assert_eq!(tried().await - before, twice * 3 - i64::from(round == 0), "round {round}");
    }
    on.assert_whole(writer, 9).await;
}

/// A partition for the day of the tests' records, and one of 2020.
const TWO_DAYS: &str = "CREATE TABLE logs_today PARTITION OF logs FOR VALUES FROM ('2025-11-20') TO ('2025-11-21'); \
    CREATE TABLE logs_old PARTITION OF logs FOR VALUES FROM ('2020-01-01') TO ('2020-01-02')";
/// Noon of its day.
const OLD_US: i64 = 1_577_880_000_000_000;

#[tokio::test]
async fn a_bad_record_does_not_wait_for_the_lock_on_another_partition() {
    let on = Fixture::postgres().await;
    if skips_partitions(&on) {
        return;
    }
    on.execute(TWO_DAYS).await;
    let (writer, lease, mut flusher) = started(&on).await;
    let mut feed = Feed::new(0);
    let bad = record("a\0b");
    let beside = postgres::connect(on.url()).await;
    // As VACUUM FULL does for an hour.
    beside.batch_execute("BEGIN; LOCK TABLE logs_old").await.unwrap();
    assert_eq!(flusher.flush(&feed.batch(&[&[bad]])).await.unwrap(), flushed(0, 1));
    beside.batch_execute("COMMIT").await.unwrap();
    // The record that the table took last is of the locked partition, and on a connection that has been lost.
    on.execute("ALTER TABLE logs ADD CONSTRAINT own CHECK (service = 'api')").await;
    let old = Record { ts_us: OLD_US, ..record("old") };
    assert_eq!(flusher.flush(&feed.batch(&[&[old]])).await.unwrap(), flushed(1, 0));
    beside.batch_execute("BEGIN; LOCK TABLE logs_old").await.unwrap();
    let mut fresh = lane(&on.store, &lease, 0).await;
    assert_eq!(fresh.flush(&feed.batch(&[&[bad]])).await.unwrap(), flushed(0, 1));
    // What is refused because of the lock waits.
    let waits = feed.clone().batch(&[&[Record { ts_us: OLD_US, ..bad }]]);
    let error = fresh.flush(&feed.clone().batch(&[&[old]])).await.unwrap_err();
    assert!(is_transient(&error) && error.to_string().contains("55P03"), "{error}");
    assert!(flush_on(&mut fresh, &waits).await.0 == flushed(0, 1), "tried with the present time");
    beside.batch_execute("COMMIT").await.unwrap();
    on.assert_whole(writer, 4).await;
}

#[tokio::test]
async fn a_partition_that_takes_no_row_makes_no_dead_letters_although_others_do() {
    let on = Fixture::postgres().await;
    if skips_partitions(&on) {
        return;
    }
    on.execute(TWO_DAYS).await;
    let (writer, _, mut flusher) = started(&on).await;
    let mut feed = Feed::of_one_day(0);
    let old = Record { ts_us: OLD_US, ..record("old") };
    assert_eq!(flusher.flush(&feed.batch(&[&[old, old]])).await.unwrap(), flushed(2, 0));
    on.execute(
        "CREATE FUNCTION damaged() RETURNS trigger LANGUAGE plpgsql AS \
         $$BEGIN RAISE 'damaged' USING ERRCODE = 'XX000'; END$$; \
         CREATE TRIGGER damaged BEFORE INSERT ON logs_today FOR EACH ROW EXECUTE FUNCTION damaged()",
    )
    .await;
    for records in [1, 50] {
        let error = flusher.flush(&feed.clone().plain(records)).await.unwrap_err();
        assert!(is_systemic(&error) && error.to_string().contains("of that time"), "{error}");
    }
    let mixed = feed.batch(&[&[old, record("today"), old]]);
    let error = flusher.flush(&mixed).await.unwrap_err();
    assert!(is_systemic(&error), "{error}");
    on.execute("DROP TRIGGER damaged ON logs_today").await;
    assert_eq!(flusher.flush(&mixed).await.unwrap(), flushed(3, 0));
    on.assert_whole(writer, 5).await;
}

#[tokio::test]
async fn a_record_that_no_partition_takes_is_a_dead_letter_unless_the_present_day_has_none_either() {
    let on = Fixture::postgres().await;
    if skips_partitions(&on) {
        return;
    }
    on.execute(TWO_DAYS).await;
    let (writer, lease, mut flusher) = started(&on).await;
    let mut feed = Feed::new(0);
    // A new connection would create it again, as its role owns the tables.
    on.execute("DROP TABLE logs_default").await;
    let of_1970 = Record { ts_us: 1, ..record("1970") };
    let batch = feed.batch(&[&[record("today"), of_1970, record("today")]]);
    let error = flusher.flush(&batch).await.unwrap_err();
    assert!(is_systemic(&error) && error.to_string().contains("logs_default"), "{error}");
    let now = "date_trunc('day', now())";
    on.execute(&format!(
        "DO $$BEGIN EXECUTE format('CREATE TABLE logs_now PARTITION OF logs FOR VALUES FROM (%L) TO (%L)', \
         {now} - interval '1 day', {now} + interval '2 days'); END$$"
    ))
    .await;
    let mut flusher = lane(&on.store, &lease, 0).await;
    on.execute("DROP TABLE logs_default").await;
    assert_eq!(flusher.flush(&batch).await.unwrap(), flushed(2, 1));
    assert_eq!(on.number("SELECT count(*) FROM logweir_dead_letter WHERE sqlstate = '23514'").await, 1);
    // A connection that has committed is replaced first: opening another one creates the default partition again.
    let alone = feed.batch(&[&[of_1970]]);
    assert!(is_transient(&flusher.flush(&alone).await.unwrap_err()));
    let mut flusher = lane(&on.store, &lease, 0).await;
    on.execute("DROP TABLE logs_default").await;
    assert_eq!(flusher.flush(&alone).await.unwrap(), flushed(0, 1), "alone");
    on.assert_whole(writer, 4).await;
}

#[tokio::test]
async fn a_batch_that_takes_longer_than_the_statement_timeout_is_refused_and_a_smaller_one_is_stored() {
    let on = Fixture::postgres().await;
    on.execute(
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN PERFORM pg_sleep(0.05); RETURN new; END$$; \
         CREATE TRIGGER slow BEFORE INSERT ON logs FOR EACH ROW EXECUTE FUNCTION slow()",
    )
    .await;
    let hasty = with(DatabaseUrl::Postgres(on.url().to_owned()), |hasty| hasty.statement_timeout_ms = 2_000);
    let store = store::open(&hasty).unwrap().store();
    let lease = store.acquire_lease(&claim(Uuid::new_v4(), &[], 1)).await.unwrap();
    let mut flusher = lane(&store, &lease, 0).await;
    let mut feed = Feed::new(0);
    match flusher.flush(&feed.clone().plain(100)).await.unwrap_err() {
        StoreError::Rejected(rejection) => assert_eq!(rejection.code, "57014", "{}", rejection.reason),
        other => panic!("{other}"),
    }
    assert_eq!(flush_in_haste(&mut flusher, &feed.plain(5)).await, flushed(5, 0));
    on.assert_whole(lease.writer, 5).await;
}

#[tokio::test]
async fn a_trigger_that_drops_rows_at_random_loses_none_unsaid() {
    let on = Fixture::postgres().await;
    on.execute(
        "CREATE FUNCTION sampled() RETURNS trigger LANGUAGE plpgsql AS \
         $$BEGIN IF random() < 0.5 THEN RETURN NULL; END IF; RETURN new; END$$; \
         CREATE TRIGGER sampled BEFORE INSERT ON logs FOR EACH ROW EXECUTE FUNCTION sampled()",
    )
    .await;
    let (writer, _, mut flusher) = started(&on).await;
    let done = flusher.flush(&Feed::new(0).plain(1_000)).await.unwrap();
    assert!(done.rows > 300 && done.dead_lettered > 300 && done.rows + done.dead_lettered == 1_000, "{done:?}");
    on.assert_whole(writer, 1_000).await;
}

#[tokio::test]
async fn a_column_that_logweir_does_not_write_stops_the_lane_until_it_has_a_default() {
    let on = Fixture::postgres().await;
    let (writer, _, mut flusher) = started(&on).await;
    let mut feed = Feed::new(0);
    on.execute("ALTER TABLE logs ADD tenant integer NOT NULL").await;
    let batch = feed.plain(200);
    let error = flusher.flush(&batch).await.unwrap_err();
    let text = error.to_string();
    assert!(is_systemic(&error) && text.contains("23502") && text.ends_with("give it a DEFAULT"), "{text}");
    assert_eq!(on.number("SELECT count(*) FROM logweir_dead_letter").await, 0);
    on.execute("ALTER TABLE logs ALTER tenant SET DEFAULT 7").await;
    assert_eq!(flusher.flush(&batch).await.unwrap(), flushed(200, 0));
    on.assert_whole(writer, 200).await;
}

#[tokio::test]
async fn a_dead_letter_can_be_written_whatever_the_encoding_of_the_database() {
    let server = tokio::task::spawn_blocking(|| Server::start(&Options::default())).await.unwrap();
    for (encoding, stored) in [("LATIN1", 2), ("WIN1252", 2), ("EUC_JP", 2), ("SQL_ASCII", 5)] {
        let name = encoding.to_lowercase();
        let url = server.url("postgres");
        let sql = format!("CREATE DATABASE {name} ENCODING '{encoding}' LOCALE 'C' TEMPLATE template0");
        postgres::connect(&url).await.batch_execute(&sql).await.unwrap();
        let database = TestDatabase::on(&server, &name);
        let place = Place::Postgres(database);
        let on = Fixture { store: open_postgres(&server.url(&name)), place, half_late: false };
        on.store.prepare().await.unwrap();
        let (writer, _, mut flusher) = started(&on).await;
        let mut feed = Feed::new(0);
        let records = [
            Record { service: "日本語", message: "日本語 🎉", ..record("") },
            record("plain"),
            Record { attributes: r#"{"wörld":"日本語 🎉"}"#, ..record("in the attributes") },
            record("Grüße 🎉"),
            record(if encoding == "EUC_JP" { "日本語" } else { "café" }),
        ];
        let done = flusher.flush(&feed.batch(&[&records])).await.unwrap();
        assert_eq!(done, flushed(stored, 5 - stored), "{encoding}");
        for letter in on.store.dead_letters(9).await.unwrap() {
            let sent = &records[letter.row as usize];
            assert!(letter.raw.is_ascii() && letter.reason.is_ascii(), "{encoding}: {letter:?}");
            let raw: serde_json::Value = serde_json::from_str(&letter.raw).unwrap();
            assert_eq!((&raw["message"], &raw["service"]), (&sent.message.into(), &sent.service.into()), "{encoding}");
            assert!(on.store.replay_dead_letter(&letter).await.is_err(), "{encoding}: the character is still missing");
            let corrected = letter.raw.replace(r"\ud83c\udf89", "!").replace(r"\u65e5\u672c\u8a9e", "Nihongo");
            let corrected = corrected.replace(r"w\u00f6rld", "world").replace(r"Gr\u00fc\u00dfe", "Gruesse");
            on.store.replay_dead_letter(&store::DeadLetter { raw: corrected, ..letter }).await.unwrap();
        }
        assert_eq!(on.number("SELECT count(*) FROM logs").await, 5, "{encoding}");
        // A letter whose characters the encoding has is replayed as it was sent.
        on.execute(on.sql().refuse_rude[0]).await;
        let text = if encoding == "EUC_JP" { "rude 日本語" } else { "rude café" };
        assert_eq!(flusher.flush(&feed.batch(&[&[record(text)]])).await.unwrap(), flushed(0, 1), "{encoding}");
        on.execute(on.sql().refuse_rude[1]).await;
        on.store.replay_dead_letter(&on.store.dead_letters(1).await.unwrap()[0]).await.unwrap();
        assert_eq!(on.number(&format!("SELECT count(*) FROM logs WHERE message = '{text}'")).await, 1, "{encoding}");
        on.assert_whole(writer, 6).await;
    }
}

#[tokio::test]
async fn a_rule_on_the_dead_letters_is_named() {
    let on = Fixture::postgres().await;
    on.execute(on.sql().refuse_rude[0]).await;
    on.execute("ALTER TABLE logweir_dead_letter ADD CONSTRAINT mine CHECK (lane > 0)").await;
    let (writer, _, mut flusher) = started(&on).await;
    let batch = Feed::new(0).batch(&[&[record("rude"), record("plain")]]);
    let error = flusher.flush(&batch).await.unwrap_err();
    let text = error.to_string();
    assert!(is_systemic(&error) && text.contains("mine") && text.contains("logweir_dead_letter must take"), "{text}");
    on.execute("ALTER TABLE logweir_dead_letter DROP CONSTRAINT mine").await;
    assert_eq!(flusher.flush(&batch).await.unwrap(), flushed(1, 1));
    on.assert_whole(writer, 2).await;
}

#[tokio::test]
async fn a_takeover_needs_nothing_that_a_publication_of_all_tables_forbids() {
    let on = Fixture::postgres().await;
    let (writer, _, mut flusher) = started(&on).await;
    let mut feed = Feed::new(0);
    flusher.flush(&feed.plain(5)).await.unwrap();
    let older = feed.clone();
    flusher.flush(&feed.plain(5)).await.unwrap();
    on.execute("ALTER TABLE logweir_takeover REPLICA IDENTITY NOTHING; CREATE PUBLICATION everything FOR ALL TABLES")
        .await;
    let mut runs = vec![1];
    for (run, feed) in [(2, &feed), (3, &older)] {
        let lease = on.store.acquire_lease(&claim_at(feed, writer, &runs, run)).await.unwrap();
        lane(&on.store, &lease, 0).await.flush(&feed.clone().plain(3)).await.unwrap();
        runs.push(run);
    }
    on.execute("DROP PUBLICATION everything").await;
    on.assert_whole(writer, 8).await;
}

#[tokio::test]
async fn a_takeover_terminates_a_process_that_froze_while_it_acquired_the_lease() {
    let on = Fixture::postgres().await;
    let (writer, ..) = started(&on).await;
    let name = format!("logweir/{}/acquire-lease", writer.simple());
    let held = format!("SELECT FROM logweir_writer WHERE writer_id = '{writer}' FOR NO KEY UPDATE");
    // In the middle of a statement, which no limit of the server ends.
    let frozen = postgres::connect(on.url()).await;
    frozen
        .batch_execute(&format!(
            "SET application_name = '{name}'; CREATE TEMP TABLE scratch (line text); BEGIN; {held}"
        ))
        .await
        .unwrap();
    let _unfinished = frozen.copy_in::<_, bytes::Bytes>("COPY scratch FROM STDIN").await.unwrap();
    let stale = on.other().acquire_lease(&claim(writer, &[30], 31)).await.unwrap_err();
    assert!(matches!(stale, StoreError::StaleCopy { .. }), "a stale copy must not terminate connections: {stale}");
    assert!(!frozen.is_closed());
    let lease = on.other().acquire_lease(&claim(writer, &[1], 2)).await.unwrap();
    assert_eq!(lease.epoch, 2);
    assert!(frozen.batch_execute("SELECT 1").await.is_err(), "its connection was terminated");
}

#[tokio::test]
async fn an_error_that_an_operator_must_fix_says_how() {
    let on = Fixture::postgres().await;
    let (_, _, mut flusher) = started(&on).await;
    let feed = Feed::new(0);
    let role = format!("app_{}", Uuid::new_v4().simple());
    on.execute(&format!("CREATE ROLE {role} LOGIN PASSWORD 'p'")).await;
    let at = on.url().split('@').next_back().unwrap();
    let store = open_postgres(&format!("postgres://{role}:p@{at}"));
    let error = store.acquire_lease(&claim(Uuid::new_v4(), &[], 1)).await.unwrap_err();
    assert!(is_systemic(&error) && error.to_string().contains("`logweir database grants`"), "{error}");
    on.execute(&format!("DROP ROLE {role}")).await;
    on.execute("DROP TABLE logs").await;
    let error = flusher.flush(&feed.clone().plain(1)).await.unwrap_err();
    assert!(is_systemic(&error) && error.to_string().contains("search_path"), "{error}");
}

#[tokio::test]
async fn a_crash_a_restart_and_a_read_only_server_are_transient() {
    let (server, on) = Fixture::private(Options::default()).await;
    let (writer, lease, mut flusher) = started(&on).await;
    let mut feed = Feed::new(0);
    flusher.flush(&feed.plain(10)).await.unwrap();
    let server = Arc::new(server);
    let control = async |what: fn(&Server)| {
        let server = server.clone();
        tokio::task::spawn_blocking(move || what(&server)).await.unwrap();
    };

    for end in [Server::kill, Server::stop] {
        let batch = feed.plain(10);
        control(end).await;
        let error = flusher.flush(&batch).await.unwrap_err();
        assert!(is_transient(&error), "{error}");
        assert!(is_transient(&on.store.lanes(writer).await.unwrap_err()));
        control(Server::restart).await;
        assert_eq!(flush_on(&mut flusher, &batch).await.0, flushed(10, 0));
    }

    let batch = feed.plain(10);
    server.set_read_only(true).await;
    // The open session has its own setting; a new session is read-only from the start.
    let mut fresh = on.store.open_lane(&lease, 0).await.err();
    let error = fresh.take().expect("a read-only server must not open a lane");
    assert!(is_transient(&error), "{error}");
    let error = flusher.flush(&batch).await.unwrap_err();
    assert!(is_transient(&error) && error.to_string().contains("25006"), "{error}");
    server.set_read_only(false).await;
    assert_eq!(flush_on(&mut flusher, &batch).await.0, flushed(10, 0));
    assert_eq!(on.number("SELECT count(*) FROM logweir_dead_letter").await, 0);
    on.assert_whole(writer, 40).await;
}

/// The clock of this machine, which is the database's.
fn now_us() -> i64 {
    logweir_engine::clock::wall_us()
}

async fn assert_maintained(store: &Arc<dyn LogStore>) {
    let failed = maintain(store, now_us()).await;
    assert!(failed.is_empty(), "{failed:#?}");
}

/// A store that keeps records for 30 days, on the same database.
fn keeping_30_days(on: &Fixture) -> Arc<dyn LogStore> {
    let keeping = with(DatabaseUrl::Postgres(on.url().to_owned()), |keeping| keeping.retention_days = 30);
    store::open(&keeping).unwrap().store()
}

impl Fixture {
    /// Creates the daily partition of a day, counted from 1970-01-01.
    async fn make_day(&self, day: i64) -> String {
        let row = self
            .one(&format!("SELECT 'logs_p' || to_char(to_timestamp({day} * 86400) AT TIME ZONE 'UTC', 'YYYYMMDD')"))
            .await;
        self.execute(&format!(
            "DO $$ BEGIN EXECUTE format('CREATE TABLE {row} PARTITION OF logs FOR VALUES FROM (%L) TO (%L)', \
             to_timestamp({day} * 86400::bigint), to_timestamp(({day} + 1) * 86400::bigint)); END $$"
        ))
        .await;
        row
    }

    /// Returns a query's text.
    async fn one(&self, sql: &str) -> String {
        let Place::Postgres(database) = &self.place else { panic!("this store has no URL") };
        database.client().await.query_one(sql, &[]).await.unwrap().get(0)
    }
}

const PARTITIONS: &str = "SELECT count(*) FROM pg_inherits WHERE inhparent = 'logs'::regclass";

#[tokio::test]
async fn partitions_are_created_ahead_take_rows_from_the_default_partition_and_are_dropped() {
    let on = Fixture::postgres().await;
    if skips_partitions(&on) {
        return;
    }
    assert_eq!(on.number(PARTITIONS).await, 1, "preparing creates what a flush needs: the default partition");
    let (writer, _, mut flusher) = started(&on).await;
    let today = now_us().div_euclid(DAY_US);
    let at = |day: i64| Record { ts_us: day * DAY_US + DAY_US / 2, ..record("m") };
    let records = [at(today), at(today + 3), at(today + 4), at(today - 40), Record { ts_us: i64::MAX, ..record("m") }];
    let mut feed = Feed::new(0);
    flusher.flush(&feed.batch(&[&records])).await.unwrap();
    assert_eq!(on.number("SELECT count(*) FROM logs_default").await, 5);

    assert_maintained(&on.store).await;
    assert_maintained(&on.store).await;
    assert_eq!(on.number(PARTITIONS).await, 6, "yesterday to three days ahead, once, and the default partition");
    assert_eq!(on.number("SELECT count(*) FROM logs_default").await, 3, "the others have moved");
    on.assert_whole(writer, 5).await;

    let oldest_kept = on.make_day(today - 30).await;
    let expired = on.make_day(today - 31).await;
    flusher.flush(&feed.batch(&[&[at(today - 30), at(today - 31), at(today - 31)]])).await.unwrap();
    assert_eq!(on.number(&format!("SELECT count(*) FROM {expired}")).await, 2);
    assert_maintained(&keeping_30_days(&on)).await;
    let exists = |name: &str| format!("SELECT count(*) FROM pg_class WHERE relname = '{name}'");
    assert_eq!((on.number(&exists(&expired)).await, on.number(&exists(&oldest_kept)).await), (0, 1));
    assert_eq!(on.number("SELECT count(*) FROM logs").await, 5, "the row in the default partition expired, too");
    assert_eq!(on.number("SELECT sum(records) FROM log_volume").await, 5, "the histogram must match");
}

#[tokio::test]
async fn a_large_default_partition_delays_no_writer_and_the_next_days_get_their_partitions() {
    let on = Fixture::postgres().await;
    if skips_partitions(&on) {
        return;
    }
    let (_, _, mut flusher) = started(&on).await;
    // Partitions could not be created for days, and the default partition took everything.
    on.execute(
        "INSERT INTO logs SELECT n, now() - make_interval(mins => n % 1440), 9, 's', 'h', repeat('x', 90), NULL \
         FROM generate_series(1, 1000000) n",
    )
    .await;
    let ended = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let insert = {
        let (ended, client) = (Arc::clone(&ended), postgres::connect(on.url()).await);
        client.batch_execute("SET lock_timeout = '10s'").await.unwrap();
        tokio::spawn(async move {
            let mut written = 0_u64;
            while !ended.load(Ordering::Relaxed) {
                client.batch_execute("INSERT INTO logs VALUES (1, now(), 9, 's', 'h', 'm', NULL)").await.unwrap();
                written += 1;
            }
            written
        })
    };
    let flush = {
        let ended = Arc::clone(&ended);
        tokio::spawn(async move {
            let (mut feed, mut flushed) = (Feed::new(0), 0);
            while !ended.load(Ordering::Relaxed) {
                let now = Record { ts_us: now_us(), ..record("m") };
                flush_on(&mut flusher, &feed.batch(&[&[now]])).await;
                flushed += 1;
            }
            flushed
        })
    };
    let failed = maintain(&on.store, now_us()).await;
    let failed = [failed, maintain(&on.store, now_us()).await].concat();
    ended.store(true, Ordering::Relaxed);
    assert!(insert.await.unwrap() > 0);
    let flushed: i64 = flush.await.unwrap();
    // Some are beside the table if a lock was held for long.
    let stored = on.number("SELECT count(*) FROM logs WHERE id >= 1::bigint << 44").await + on.late().await;
    assert_eq!(stored, flushed);
    assert_eq!(on.number(PARTITIONS).await, 1 + 3, "tomorrow and two more days: {failed:#?}");
    assert_eq!(failed.len(), 2, "{failed:#?}");
    for failure in failed {
        assert!(failure.starts_with("partitions: ") && failure.contains("Large default partition"), "{failure}");
    }
    assert_eq!(on.number("SELECT count(*) FROM pg_constraint WHERE conname = 'logweir_next_partitions'").await, 0);
}

#[tokio::test]
async fn a_record_of_a_day_whose_partition_is_being_created_waits_for_it_even_if_the_process_is_killed() {
    let on = Fixture::postgres().await;
    if skips_partitions(&on) {
        return;
    }
    let (writer, _, mut flusher) = started(&on).await;
    on.execute(
        "ALTER TABLE logs_default ADD CONSTRAINT logweir_next_partitions CHECK (ts < now() + '1 day') NOT VALID",
    )
    .await;
    let batch = Feed::new(0).batch(&[&[record("m"), Record { ts_us: now_us() + 3 * DAY_US, ..record("m") }]]);
    let refused = flusher.flush(&batch).await.unwrap_err();
    assert!(is_transient(&refused), "{refused}");
    assert_maintained(&on.store).await;
    flusher.flush(&batch).await.unwrap();
    on.assert_whole(writer, 2).await;
    assert_eq!(on.number("SELECT count(*) FROM logweir_dead_letter").await, 0);
}

#[tokio::test]
async fn a_round_deletes_what_has_expired_from_the_default_partition_however_much_it_is() {
    let on = Fixture::postgres().await;
    if skips_partitions(&on) {
        return;
    }
    on.execute(
        "INSERT INTO logs SELECT n, now() - make_interval(days => 40 + n % 3), 9, 's', 'h', 'm', NULL \
         FROM generate_series(1, 25001) n; INSERT INTO logs VALUES (25002, now(), 9, 's', 'h', 'm', NULL); \
         INSERT INTO log_volume SELECT date_trunc('minute', ts), service, severity, id, 1 FROM logs",
    )
    .await;
    assert_maintained(&keeping_30_days(&on)).await;
    for table in ["logs", "log_volume"] {
        assert_eq!(on.number(&format!("SELECT count(*) FROM {table}")).await, 1, "{table}");
    }
}

#[tokio::test]
async fn nothing_is_deleted_while_the_clocks_differ() {
    let on = Fixture::postgres().await;
    if skips_partitions(&on) {
        return;
    }
    let (_, _, mut flusher) = started(&on).await;
    let today = now_us().div_euclid(DAY_US);
    assert_maintained(&on.store).await;
    let old = on.make_day(today - 40).await;
    let at = |day: i64| Record { ts_us: day * DAY_US, ..record("m") };
    flusher.flush(&Feed::new(0).batch(&[&[at(today), at(today - 40), at(today - 50)]])).await.unwrap();
    let keeping = keeping_30_days(&on);
    for wrong_us in [now_us() + 400 * DAY_US, now_us() - 400 * DAY_US, now_us() + DAY_US / 24, i64::MAX, i64::MIN] {
        let failed = maintain(&keeping, wrong_us).await;
        assert!(failed.len() == 1 && failed[0].starts_with("clock: "), "{failed:#?}");
        assert_eq!(on.number("SELECT count(*) FROM logs").await, 3);
        assert_eq!(on.number("SELECT count(*) FROM log_volume").await, 3);
        assert_eq!(on.number(PARTITIONS).await, 7, "and partitions are created by the database's clock");
    }
    assert_maintained(&keeping).await;
    assert_eq!(on.number(&format!("SELECT count(*) FROM pg_class WHERE relname = '{old}'")).await, 0);
    assert_eq!(on.number("SELECT count(*) FROM logs").await, 1);
}

#[tokio::test]
async fn a_clock_that_jumps_with_the_whole_machine_deletes_nothing() {
    let on = Fixture::postgres().await;
    if skips_partitions(&on) {
        return;
    }
    let (_, _, mut flusher) = started(&on).await;
    let today = now_us().div_euclid(DAY_US);
    let keeping = keeping_30_days(&on);
    assert_maintained(&keeping).await;
    // As after a jump by 400 days: what is trusted is behind, and the first records have the wrong time.
    let real = today - 400;
    on.execute(&format!("UPDATE logweir_clock SET trusted_us = {}", real * DAY_US + DAY_US / 2)).await;
    let at = |day: i64| Record { ts_us: day * DAY_US, ..record("m") };
    on.make_day(real - 20).await;
    flusher.flush(&Feed::new(0).batch(&[&[at(today), at(real), at(real - 20)]])).await.unwrap();
    for store in [keeping.clone(), keeping.clone(), keeping_30_days(&on)] {
        let failed = maintain(&store, now_us()).await;
        assert!(failed.len() == 1 && failed[0].starts_with("clock: "), "{failed:#?}");
        assert!(failed[0].contains("days ahead") && failed[0].contains("set it"), "{failed:#?}");
        assert_eq!(on.number("SELECT count(*) FROM logs").await, 3);
        assert_eq!(on.number("SELECT sum(records) FROM log_volume").await, 3);
    }
    // Time that is trusted is the only thing that kept them.
    on.execute(&format!("UPDATE logweir_clock SET trusted_us = {}, doubted_us = 0", now_us())).await;
    assert_maintained(&keeping).await;
    assert_eq!(on.number("SELECT count(*) FROM logs").await, 1);
}

#[tokio::test]
async fn the_newest_day_is_kept_and_partitions_of_somebody_else_are_not_dropped() {
    let on = Fixture::postgres().await;
    if skips_partitions(&on) {
        return;
    }
    let (_, _, mut flusher) = started(&on).await;
    let today = now_us().div_euclid(DAY_US);
    let (newest, older) = (on.make_day(today - 40).await, on.make_day(today - 41).await);
    on.execute(
        "CREATE TABLE archive PARTITION OF logs FOR VALUES FROM (MINVALUE) TO ('2001-01-01Z'); \
         CREATE TABLE logs_p20010101 PARTITION OF logs FOR VALUES FROM ('2001-01-01Z') TO ('2002-01-01Z')",
    )
    .await;
    let at = |day: i64| Record { ts_us: day * DAY_US, ..record("m") };
    let records = [at(today - 40), at(today - 41), at(0), Record { ts_us: i64::MAX, ..record("m") }];
    flusher.flush(&Feed::new(0).batch(&[&records])).await.unwrap();
    assert_maintained(&keeping_30_days(&on)).await;
    let names = format!("SELECT count(*) FROM pg_class WHERE relname IN ('{newest}', 'archive', 'logs_p20010101')");
    assert_eq!(on.number(&names).await, 3);
    assert_eq!(on.number(&format!("SELECT count(*) FROM pg_class WHERE relname = '{older}'")).await, 0);
    assert_eq!(on.number("SELECT count(*) FROM logs").await, 3, "1970 is in the archive, 9999 has not come");
    assert_eq!(on.number("SELECT sum(records) FROM log_volume").await, 3, "the histogram has what is there");
}

#[tokio::test]
async fn each_step_runs_whether_the_one_before_failed_or_not() {
    let on = Fixture::postgres().await;
    if skips_partitions(&on) {
        return;
    }
    let (_, _, mut flusher) = started(&on).await;
    let today = now_us().div_euclid(DAY_US);
    let expired = on.make_day(today - 40).await;
    let at = |day: i64| Record { ts_us: day * DAY_US, ..record("m") };
    flusher.flush(&Feed::new(0).batch(&[&[at(today), at(today - 40), at(today - 41)]])).await.unwrap();
    // A table of the operator has the name of tomorrow's partition, and a view depends on the expired one.
    let tomorrow = on.make_day(today + 1).await;
    on.execute(&format!("ALTER TABLE logs DETACH PARTITION {tomorrow}; CREATE VIEW v AS SELECT * FROM {expired}"))
        .await;
    let failed = maintain(&keeping_30_days(&on), now_us()).await;
    assert_eq!(failed.len(), 2, "{failed:#?}");
    assert!(failed[0].starts_with("partitions: ") && failed[0].contains("is not a partition of logs"), "{failed:#?}");
    assert!(failed[1].starts_with("retention_partitions: ") && failed[1].contains("depend"), "{failed:#?}");
    assert_eq!(on.number(PARTITIONS).await, 1 + 1 + 4, "the other days have their partitions");
    assert_eq!(on.number("SELECT sum(records) FROM log_volume").await, 2, "but those of the day that stayed");
    on.execute(&format!("DROP VIEW v; ALTER TABLE {tomorrow} RENAME TO kept")).await;
    assert_maintained(&keeping_30_days(&on)).await;
    assert_eq!(on.number("SELECT sum(records) FROM log_volume").await, 1);
    assert_eq!(on.number(PARTITIONS).await, 6);
}

#[tokio::test]
async fn preparing_waits_for_no_lock_and_two_schemas_do_not_wait_for_each_other() {
    let on = Fixture::postgres().await;
    on.execute("CREATE SCHEMA first; CREATE SCHEMA second").await;
    let beside = postgres::connect(on.url()).await;
    beside
        .batch_execute(
            "BEGIN; LOCK TABLE logs, log_volume, logweir_lane, logweir_writer, logweir_takeover IN ACCESS EXCLUSIVE MODE; \
             CREATE TABLE first.logweir_takeover (n int)",
        )
        .await
        .unwrap();
    on.other().prepare().await.unwrap();
    let at = |schema: &str| open_postgres(&format!("{}?options=-c%20search_path={schema}", on.url()));
    let first = at("first");
    // It does not wait for a lock without end.
    let deadline = Instant::now() + PATIENCE;
    let waiting = tokio::spawn(async move {
        loop {
            match first.prepare().await {
                Err(error) if is_transient(&error) && Instant::now() < deadline => {}
                done => break done,
            }
        }
    });
    on.session_waits().await;
    at("second").prepare().await.unwrap();
    beside.batch_execute("ROLLBACK").await.unwrap();
    waiting.await.unwrap().unwrap();
    let tables = "SELECT count(*) FROM pg_tables WHERE schemaname IN ('first', 'second') AND tablename = 'logs'";
    assert_eq!(on.number(tables).await, 2);
}

#[tokio::test]
async fn old_takeovers_are_pruned_by_maintenance() {
    let on = Fixture::postgres().await;
    let (writer, _, _flusher) = started(&on).await;
    on.execute(&format!(
        "INSERT INTO logweir_takeover SELECT '{writer}', n, '{writer}', NULL, 'x', now(), NULL, 0, 0 \
         FROM generate_series(2, 1100) n; UPDATE logweir_writer SET epoch = 1100; CREATE PUBLICATION p FOR ALL TABLES"
    ))
    .await;
    assert_maintained(&on.store).await;
    assert_eq!(on.number("SELECT min(epoch) FROM logweir_takeover").await, 1100 - 1024 + 1);
}

#[tokio::test]
async fn retention_deletes_expired_rows_from_sqlite() {
    let on = Fixture::sqlite().await;
    let (_, _, mut flusher) = started(&on).await;
    let at = |ts_us| Record { ts_us, ..record("m") };
    let today = 20_000 * DAY_US;
    flusher
        .flush(&Feed::new(0).batch(&[&[at(today), at(today - 31 * DAY_US), at(today - 30 * DAY_US)]]))
        .await
        .unwrap();
    let keeping = with(DatabaseUrl::Sqlite(on.file()), |keeping| keeping.retention_days = 30);
    store::open(&keeping)
        .unwrap()
        .store()
        .maintain(today + 5)
        .await
        .into_iter()
        .try_for_each(|step| step.result)
        .unwrap();
    assert_eq!(on.number("SELECT count(*) FROM logs").await, 2);
    assert_eq!(on.number("SELECT sum(records) FROM log_volume").await, 2);
}

// Kill points and mutations apply to a whole process, so each of these tests runs in its own process.

const CHILD_STORE: &str = "LOGWEIR_TEST_CHILD_STORE";

/// The child process of the tests below: run 1 flushes two batches, then run 2 acquires the lease and run 1 continues.
#[tokio::test]
#[ignore = "started by the tests below"]
async fn child() {
    let Ok(url) = std::env::var(CHILD_STORE) else { return };
    let _armed = logweir_engine::fault::arm_from_environment();
    let url = match url.strip_prefix("sqlite:") {
        Some(path) => DatabaseUrl::Sqlite(path.into()),
        None => DatabaseUrl::Postgres(url),
    };
    let store = store::open(&settings(url)).unwrap().store();
    let lease = store.acquire_lease(&claim(Uuid::nil(), &[], 1)).await.unwrap();
    let mut flusher = lane(&store, &lease, 0).await;
    let mut feed = Feed::new(0);
    for _ in 0..2 {
        flusher.flush(&feed.plain(100)).await.unwrap();
    }
    store.acquire_lease(&claim_at(&feed, Uuid::nil(), &[1], 2)).await.unwrap();
    match flusher.flush(&feed.plain(100)).await {
        Ok(_) => println!("the old epoch was accepted"),
        Err(StoreError::Fenced { .. }) => println!("the old epoch was fenced"),
        Err(other) => panic!("{other}"),
    }
}

/// The child process of the test of requests: two processes get the same one.
#[tokio::test]
#[ignore = "started by the tests below"]
async fn child_with_requests() {
    let Ok(url) = std::env::var(CHILD_STORE) else { return };
    let _armed = logweir_engine::fault::arm_from_environment();
    let url = match url.strip_prefix("sqlite:") {
        Some(path) => DatabaseUrl::Sqlite(path.into()),
        None => DatabaseUrl::Postgres(url),
    };
    let store = store::open(&settings(url)).unwrap().store();
    for writer in [Uuid::new_v4(), Uuid::new_v4()] {
        let lease = store.acquire_lease(&claim(writer, &[], 1)).await.unwrap();
        lane(&store, &lease, 0).await.flush(&Feed::new(0).requests(&[(1, 10)])).await.unwrap();
    }
}

/// Runs the child with `faults` armed. Returns whether it survived, and its output.
async fn run_child(on: &Fixture, faults: &str) -> (bool, String) {
    run_test(on, "child", faults).await
}

async fn run_test(on: &Fixture, test: &'static str, faults: &str) -> (bool, String) {
    let url = match &on.place {
        Place::Postgres(database) => database.url.clone(),
        Place::Sqlite(_) => format!("sqlite:{}", on.file().display()),
    };
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--ignored", "--nocapture"]).env(CHILD_STORE, url).env("FAILPOINTS", faults);
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The next run: acquires the lease and flushes what is missing, like a replay.
async fn replay(on: &Fixture) -> Result<(), StoreError> {
    let mut feed = Feed::new(0);
    let batches = [feed.plain(100), feed.plain(100)];
    let lease = on.store.acquire_lease(&claim_at(&feed, Uuid::nil(), &[1], 2)).await?;
    let (mut flusher, row) = on.store.open_lane(&lease, 0).await?;
    for batch in batches {
        if batch.to_seq() > row.last_seq {
            flusher.flush(&batch).await?;
        }
    }
    Ok(())
}

async fn a_kill_at_any_point_leaves_each_record_once(first: Fixture) {
    let mut on = first;
    for point in ["cas.before", "cas.after", "copy.before", "copy.after", "commit.before", "commit.after"] {
        // In the second flush, so that a flush precedes it.
        let (survived, output) = run_child(&on, &format!("store.{point}=1*off->return")).await;
        assert!(!survived, "{point}: {output}");
        replay(&on).await.unwrap();
        on.assert_whole(Uuid::nil(), 200).await;
        assert_eq!(on.number("SELECT count(*) FROM logs").await, 200, "{point}");
        on = match on.place {
            Place::Postgres(_) => Fixture::postgres().await,
            Place::Sqlite(_) => Fixture::sqlite().await,
        };
    }
    let (survived, output) = run_child(&on, "").await;
    assert!(survived && output.contains("the old epoch was fenced"), "{output}");
    on.assert_whole(Uuid::nil(), 200).await;
}

async fn without_the_compare_and_set_an_old_epoch_is_accepted(on: Fixture) {
    let (survived, output) = run_child(&on, "mutation.no_cas=return").await;
    assert!(survived && output.contains("the old epoch was accepted"), "{output}");
}

async fn a_cursor_outside_the_transaction_duplicates_rows(on: Fixture) {
    let (survived, output) =
        run_child(&on, "mutation.cursor_outside_tx=return;store.mutation.between=1*off->return").await;
    assert!(!survived, "{output}");
    let outcome = replay(&on).await;
    let whole = outcome.is_ok() && on.number("SELECT count(*) FROM logs").await == 200;
    assert!(!whole, "the mutation was not detected");
}

async fn without_the_look_up_of_its_key_a_request_is_stored_twice(on: Fixture) {
    let rows = "SELECT count(*) FROM logs";
    for (faults, expected) in [("mutation.no_key_lookup=return", 4), ("", 6), ("", 6)] {
        let (survived, output) = run_test(&on, "child_with_requests", faults).await;
        assert!(survived, "{output}");
        assert_eq!(on.number(rows).await, expected, "{faults}");
    }
}

both! {
    a_kill_at_any_point_leaves_each_record_once
    without_the_look_up_of_its_key_a_request_is_stored_twice
    without_the_compare_and_set_an_old_epoch_is_accepted
    a_cursor_outside_the_transaction_duplicates_rows
}
