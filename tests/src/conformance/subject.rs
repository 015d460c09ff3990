//! What a store needs in order to be tested.

use std::sync::Arc;

use logweir_store::{LaneRow, LogStore};
use uuid::Uuid;

/// The SQL in which databases differ. Pairs are a statement and the one that undoes it.
#[derive(Clone, Copy, Debug)]
pub struct Sql {
    /// The year of the time `$ts`.
    pub year: &'static str,
    /// The minute of `ts`, as it is in `log_volume`.
    pub minute: &'static str,
    /// Run 1 as a value of `run_id`.
    pub first_run: &'static str,
    /// Gives each lane another `lane_id`.
    pub new_lane_id: &'static str,
    /// Inserts a dead letter of 1970-01-01T00:16:40Z.
    pub old_dead_letter: &'static str,
    /// Lets each flush count a row too many.
    pub count_too_many: [&'static str; 2],
    /// Refuses rows whose message begins with `rude`; the error contains `polite`.
    pub refuse_rude: [&'static str; 2],
    /// Refuses rows whose message begins with `after`, after it has inserted them, and those whose message begins with
    /// `late` at the commit.
    pub refuse_afterwards: &'static str,
    /// Refuses every row.
    pub refuse_all: [&'static str; 2],
    /// Drops rows whose message begins with `noise`, without an error.
    pub drop_noise: [&'static str; 2],
    /// Drops every row, without an error.
    pub drop_all: [&'static str; 2],
    /// Lets the idempotency keys have been stored two hours ago.
    pub keys_of_two_hours_ago: &'static str,
    /// Lets them have been stored three days ago.
    pub old_keys: &'static str,
}

/// PostgreSQL and what is compatible with it.
pub const POSTGRES: Sql = Sql {
    year: "extract(year FROM $ts)",
    minute: "date_trunc('minute', ts)",
    first_run: "'00000000-0000-0000-0000-000000000001'",
    new_lane_id: "UPDATE logweir_lane SET lane_id = DEFAULT",
    old_dead_letter: "INSERT INTO logweir_dead_letter SELECT 1, gen_random_uuid(), 0, 1, 0, '22021', 'why', '{}', \
        to_timestamp(1000)",
    count_too_many: [
        "CREATE FUNCTION more() RETURNS trigger LANGUAGE plpgsql AS \
         $$BEGIN NEW.rows = NEW.rows + 1; RETURN NEW; END$$; \
         CREATE TRIGGER meddle BEFORE UPDATE ON logweir_lane FOR EACH ROW EXECUTE FUNCTION more()",
        "DROP TRIGGER meddle ON logweir_lane",
    ],
    refuse_rude: [
        "ALTER TABLE logs ADD CONSTRAINT polite CHECK (message NOT LIKE 'rude%')",
        "ALTER TABLE logs DROP CONSTRAINT polite",
    ],
    refuse_afterwards: "CREATE FUNCTION regret() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RAISE 'regretted'; END$$; \
        CREATE TRIGGER regret AFTER INSERT ON logs FOR EACH ROW WHEN (new.message LIKE 'after%') \
        EXECUTE FUNCTION regret(); \
        CREATE CONSTRAINT TRIGGER late AFTER INSERT ON logs DEFERRABLE INITIALLY DEFERRED \
        FOR EACH ROW WHEN (new.message LIKE 'late%') EXECUTE FUNCTION regret()",
    refuse_all: [
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RAISE 'closed'; END$$; \
         CREATE TRIGGER closed BEFORE INSERT ON logs FOR EACH ROW EXECUTE FUNCTION refuse()",
        "DROP TRIGGER closed ON logs; DROP FUNCTION refuse",
    ],
    drop_noise: [
        "CREATE FUNCTION quieten() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RETURN NULL; END$$; \
         CREATE TRIGGER quiet BEFORE INSERT ON logs FOR EACH ROW WHEN (new.message LIKE 'noise%') \
         EXECUTE FUNCTION quieten()",
        "DROP TRIGGER quiet ON logs; DROP FUNCTION quieten",
    ],
    drop_all: [
        "CREATE FUNCTION silence() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RETURN NULL; END$$; \
         CREATE TRIGGER silent BEFORE INSERT ON logs FOR EACH ROW EXECUTE FUNCTION silence()",
        "DROP TRIGGER silent ON logs; DROP FUNCTION silence",
    ],
    keys_of_two_hours_ago: "UPDATE logweir_idempotency_key SET at = at - interval '2 h'",
    old_keys: "UPDATE logweir_idempotency_key SET at = at - interval '3 days'",
};

/// SQLite.
pub const SQLITE: Sql = Sql {
    year: "CAST(substr($ts, 1, 4) AS INTEGER)",
    minute: "substr(ts, 1, 17) || '00.000000Z'",
    first_run: "x'00000000000000000000000000000001'",
    new_lane_id: "UPDATE logweir_lane SET lane_id = lane_id + 1",
    old_dead_letter: "INSERT INTO logweir_dead_letter VALUES (1, randomblob(16), 0, 1, 0, '22021', 'why', '{}', \
        '1970-01-01T00:16:40.000000Z')",
    count_too_many: [
        "CREATE TRIGGER meddle AFTER UPDATE OF last_seq ON logweir_lane BEGIN UPDATE logweir_lane SET rows = rows + 1; END",
        "DROP TRIGGER meddle",
    ],
    refuse_rude: [
        "CREATE TRIGGER polite BEFORE INSERT ON logs WHEN new.message LIKE 'rude%' \
         BEGIN SELECT RAISE(ABORT, 'polite'); END",
        "DROP TRIGGER polite",
    ],
    refuse_afterwards: "CREATE TRIGGER regret AFTER INSERT ON logs WHEN new.message LIKE 'after%' \
        BEGIN SELECT RAISE(FAIL, 'regretted'); END; \
        CREATE TABLE known (name TEXT PRIMARY KEY); \
        CREATE TABLE seen (name TEXT REFERENCES known DEFERRABLE INITIALLY DEFERRED); \
        CREATE TRIGGER late AFTER INSERT ON logs WHEN new.message LIKE 'late%' \
        BEGIN INSERT INTO seen VALUES (new.message); END",
    refuse_all: [
        "CREATE TRIGGER closed BEFORE INSERT ON logs BEGIN SELECT RAISE(ABORT, 'closed'); END",
        "DROP TRIGGER closed",
    ],
    drop_noise: [
        "CREATE TRIGGER quiet BEFORE INSERT ON logs WHEN new.message LIKE 'noise%' BEGIN SELECT RAISE(IGNORE); END",
        "DROP TRIGGER quiet",
    ],
    drop_all: ["CREATE TRIGGER silent BEFORE INSERT ON logs BEGIN SELECT RAISE(IGNORE); END", "DROP TRIGGER silent"],
    keys_of_two_hours_ago: "UPDATE logweir_idempotency_key SET at = at - 7200000000",
    old_keys: "UPDATE logweir_idempotency_key SET at = at - 259200000000",
};

/// A prepared store on a new database, and direct access to that.
// Used with types known at compile time only.
#[allow(async_fn_in_trait)]
pub trait Subject {
    /// The store.
    fn store(&self) -> &Arc<dyn LogStore>;

    /// Opens a second store on the same database, like another process.
    fn other(&self) -> Arc<dyn LogStore>;

    /// Returns a query's number.
    async fn number(&self, sql: &str) -> i64;

    /// Runs statements.
    async fn execute(&self, sql: &str);

    /// The database's SQL.
    fn sql(&self) -> Sql;

    /// Number of records beside the table `logs`.
    async fn late(&self) -> i64 {
        0
    }

    /// Asserts that rows, cursor, counters and histogram agree.
    ///
    /// # Panics
    /// If they do not, or the store fails.
    async fn assert_whole(&self, writer: Uuid, expected_records: u64) {
        let lanes = self.store().lanes(writer).await.expect("the store answers");
        let accounted: u64 = lanes.iter().map(LaneRow::accounted).sum();
        assert_eq!(accounted, expected_records, "accounted: {lanes:?}");
        for row in &lanes {
            let stored = self.store().count_stored(row).await.expect("the store answers");
            assert_eq!(stored.rows, row.rows + stored.replayed, "{row:?}");
            assert_eq!(stored.distinct, stored.rows, "{row:?}");
            assert_eq!(stored.dead_letters + stored.replayed, row.dead_lettered, "{row:?}");
        }
        assert_eq!(
            self.number("SELECT coalesce(sum(records), 0) FROM log_volume").await,
            self.number("SELECT count(*) FROM logs").await + self.late().await,
            "the histogram does not match the rows"
        );
    }
}
