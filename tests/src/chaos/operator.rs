//! What an operator may do to the database with SQL: each act with the statements that undo it.

use crate::chaos::slot::Slot;

/// Statements that belong together.
#[derive(Debug)]
pub struct Statements {
    /// Name of the kind.
    pub kind: &'static str,
    /// Acts of one slot are never in force at the same time.
    pub slot: Slot,
    /// Each is a request of its own, since some may not run in a transaction. `{n}` is a seeded number.
    pub doing: &'static [&'static str],
    /// As `doing`. They may run more than once.
    pub undoing: &'static [&'static str],
    /// Whether everything is stored nevertheless, if need be as dead letters: the program must go on while it is so.
    pub harmless: bool,
}

/// Everything is stored nevertheless.
const HARMLESS: bool = true;
/// Nothing can be stored until it is undone.
const STOPS: bool = false;

/// Ends all sessions of logweir's role, so that changed settings of the role take effect.
const END_SESSIONS: &str = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'logweir'";

/// A setting of logweir's role.
macro_rules! role_setting {
    ($kind:literal, $harmless:ident, $name:literal, $value:literal) => {
        Statements {
            kind: $kind,
            slot: Slot::Role,
            doing: &[concat!("ALTER ROLE logweir SET ", $name, " = ", $value), END_SESSIONS],
            undoing: &[concat!("ALTER ROLE logweir RESET ", $name), END_SESSIONS],
            harmless: $harmless,
        }
    };
}

/// A trigger for each new row.
macro_rules! trigger {
    ($kind:literal, $harmless:ident, $body:literal) => {
        Statements {
            kind: $kind,
            slot: Slot::Trigger,
            doing: &[
                concat!(
                    "CREATE OR REPLACE FUNCTION chaos_trigger() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN ",
                    $body,
                    " RETURN NEW; END $$"
                ),
                "CREATE TRIGGER chaos BEFORE INSERT ON logs FOR EACH ROW EXECUTE FUNCTION chaos_trigger()",
            ],
            undoing: &["DROP TRIGGER IF EXISTS chaos ON logs"],
            harmless: $harmless,
        }
    };
}

/// A CHECK constraint.
macro_rules! check {
    ($kind:literal, $harmless:ident, $condition:literal) => {
        check!($kind, $harmless, "chaos", $condition)
    };
    ($kind:literal, $harmless:ident, $name:literal, $condition:literal) => {
        Statements {
            kind: $kind,
            slot: Slot::Check,
            doing: &[concat!("ALTER TABLE logs ADD CONSTRAINT ", $name, " ", $condition)],
            undoing: &[concat!("ALTER TABLE logs DROP CONSTRAINT IF EXISTS ", $name)],
            harmless: $harmless,
        }
    };
}

/// An additional column.
macro_rules! column {
    ($kind:literal, $harmless:ident, $($doing:literal),+) => {
        Statements {
            kind: $kind,
            slot: Slot::Column,
            doing: &[$($doing),+],
            undoing: &["ALTER TABLE logs DROP COLUMN IF EXISTS chaos, DROP COLUMN IF EXISTS refuses_all"],
            harmless: $harmless,
        }
    };
}

/// A right that is taken away.
macro_rules! right {
    ($kind:literal, $right:literal) => {
        Statements {
            kind: $kind,
            slot: Slot::Right,
            doing: &[concat!("REVOKE ", $right, " FROM logweir")],
            undoing: &[concat!("GRANT ", $right, " TO logweir")],
            harmless: STOPS,
        }
    };
}

/// An index.
macro_rules! index {
    ($kind:literal, $($doing:literal),+) => {
        Statements { kind: $kind, slot: Slot::Index, doing: &[$($doing),+], undoing: &["DROP INDEX IF EXISTS chaos_idx"],
            harmless: HARMLESS,
        }
    };
}

/// A command that holds strong locks while it runs.
macro_rules! upkeep {
    ($kind:literal, $doing:literal) => {
        Statements { kind: $kind, slot: Slot::Upkeep, doing: &[$doing], undoing: &[], harmless: STOPS }
    };
}

/// Tables of logweir that an operator drops. What he dropped remains known: see [`DROPPED_SQL`].
macro_rules! dropped {
    ($kind:literal, $doing:literal) => {
        Statements { kind: $kind, slot: Slot::Table, doing: &[$doing], undoing: &[], harmless: HARMLESS }
    };
}

/// A table without which records would be stored twice is not there.
macro_rules! hidden {
    ($kind:literal, $table:literal) => {
        Statements {
            kind: $kind,
            slot: Slot::Table,
            doing: &[concat!("ALTER TABLE ", $table, " RENAME TO chaos_hidden")],
            undoing: &[concat!("ALTER TABLE IF EXISTS chaos_hidden RENAME TO ", $table)],
            harmless: STOPS,
        }
    };
}

/// The records that were stored when an operator dropped the table that they were in.
pub const DROPPED_LOGS: &str = "chaos.dropped_logs";
pub const DROPPED_DEAD_LETTERS: &str = "chaos.dropped_dead_letters";
/// Creates the tables of these records.
pub const DROPPED_SQL: &str = "CREATE TABLE chaos.dropped_logs (id bigint, message text, attributes jsonb); \
     CREATE TABLE chaos.dropped_dead_letters (id bigint, sqlstate text, reason text, raw text)";

/// The dead letters whose reason is an act that refuses every row: its name is in the reason. There is none, since then
/// it is not the record that is wrong.
pub const WRONGLY_DEAD: &str = "SELECT count(*) FROM (SELECT reason FROM logweir_dead_letter UNION ALL \
     SELECT reason FROM chaos.dropped_dead_letters) dead WHERE reason LIKE '%refuses_all%'";

/// All kinds.
pub const STATEMENTS: &[Statements] = &[
    Statements {
        kind: "publication_for_all_tables",
        slot: Slot::Publication,
        doing: &["CREATE PUBLICATION chaos FOR ALL TABLES"],
        undoing: &["DROP PUBLICATION IF EXISTS chaos"],
        harmless: HARMLESS,
    },
    Statements {
        kind: "publication_for_logs",
        slot: Slot::Publication,
        doing: &["CREATE PUBLICATION chaos FOR TABLE logs"],
        undoing: &["DROP PUBLICATION IF EXISTS chaos"],
        harmless: HARMLESS,
    },
    check!("check_valid", HARMLESS, "CHECK (length(message) > 0)"),
    check!("check_not_valid", HARMLESS, "CHECK (length(message) > 0) NOT VALID"),
    check!("check_refuses_some", HARMLESS, "CHECK (hashtext(message) % ({n} * 10) <> 0) NOT VALID"),
    check!("check_refuses_all", STOPS, "refuses_all", "CHECK (false) NOT VALID"),
    column!(
        "generated_column",
        HARMLESS,
        "ALTER TABLE logs ADD COLUMN chaos tsvector GENERATED ALWAYS AS (to_tsvector('simple', left(message, 60))) STORED"
    ),
    column!("nullable_column", HARMLESS, "ALTER TABLE logs ADD COLUMN chaos text"),
    column!("not_null_column_with_default", HARMLESS, "ALTER TABLE logs ADD COLUMN chaos integer NOT NULL DEFAULT 7"),
    column!(
        "not_null_column_without_default",
        STOPS,
        "ALTER TABLE logs ADD COLUMN refuses_all integer NOT NULL DEFAULT 7",
        "ALTER TABLE logs ALTER COLUMN refuses_all DROP DEFAULT"
    ),
    trigger!(
        "trigger_raises_for_some",
        HARMLESS,
        "IF hashtext(NEW.message) % ({n} * 10) = 0 THEN RAISE EXCEPTION 'this row is refused'; END IF;"
    ),
    trigger!("trigger_raises_for_all", STOPS, "RAISE EXCEPTION 'refuses_all';"),
    trigger!("trigger_filters_some", HARMLESS, "IF hashtext(NEW.message) % ({n} * 10) = 0 THEN RETURN NULL; END IF;"),
    trigger!("trigger_slow", HARMLESS, "PERFORM pg_sleep(0.001);"),
    trigger!("trigger_notice", HARMLESS, "RAISE NOTICE 'a row of %', NEW.service;"),
    trigger!(
        "trigger_changes_rows",
        HARMLESS,
        "NEW.host := 'changed'; NEW.attributes := NEW.attributes || '{\"chaos\": true}'::jsonb;"
    ),
    Statements {
        kind: "default_partition_renamed",
        slot: Slot::DefaultPartition,
        doing: &["ALTER TABLE logs_default RENAME TO chaos_default"],
        undoing: &["ALTER TABLE IF EXISTS chaos_default RENAME TO logs_default"],
        harmless: HARMLESS,
    },
    Statements {
        kind: "default_partition_dropped",
        slot: Slot::DefaultPartition,
        // Only if it is empty: rows that an operator drops are not lost by the program.
        doing: &["DO $$ BEGIN LOCK TABLE logs; IF EXISTS (SELECT FROM logs_default) THEN \
                  RAISE EXCEPTION 'the default partition has rows'; END IF; DROP TABLE logs_default; END $$"],
        undoing: &[
            "CREATE TABLE IF NOT EXISTS logs_default PARTITION OF logs DEFAULT",
            "ALTER TABLE logs_default OWNER TO logweir",
        ],
        harmless: HARMLESS,
    },
    Statements {
        kind: "newest_partition_dropped",
        slot: Slot::Partition,
        doing: &["DO $$ DECLARE newest text; filled boolean; BEGIN LOCK TABLE logs; \
                  SELECT max(relname) INTO newest FROM pg_class WHERE relname LIKE 'logs_p2%' AND relkind = 'r'; \
                  EXECUTE format('SELECT EXISTS (SELECT FROM %I)', newest) INTO filled; \
                  IF newest IS NULL OR filled THEN RAISE EXCEPTION 'no empty partition'; END IF; \
                  EXECUTE format('DROP TABLE %I', newest); END $$"],
        undoing: &[],
        harmless: HARMLESS,
    },
    Statements {
        kind: "closed_partition",
        slot: Slot::ClosedPartition,
        // As if the program had made it in time: it is indexed, or dropped when it is past the retention.
        doing: &["DO $$ DECLARE day date := (now() AT TIME ZONE 'UTC')::date - {n} * 2; \
             part text := 'logs_p' || to_char(day, 'YYYYMMDD'); \
             BEGIN EXECUTE format('CREATE TABLE %I PARTITION OF logs FOR VALUES FROM (%L) TO (%L)', part, \
             day || ' 00:00:00+00', day + 1 || ' 00:00:00+00'); \
             EXECUTE format('ALTER TABLE %I OWNER TO logweir', part); END $$"],
        undoing: &[],
        harmless: HARMLESS,
    },
    index!("index_extra", "CREATE INDEX chaos_idx ON logs (host, ts)"),
    index!(
        "index_entries_too_large",
        "CREATE OR REPLACE FUNCTION chaos_large(text) RETURNS text IMMUTABLE LANGUAGE sql AS \
         $$ SELECT CASE WHEN hashtext($1) % ({n} * 10) = 0 THEN \
            (SELECT string_agg(md5($1 || i), '') FROM generate_series(1, 300) i) ELSE '' END $$",
        // Only for rows that come later: the index could not be built over what is there.
        "DO $$ BEGIN EXECUTE format('CREATE INDEX chaos_idx ON logs (chaos_large(message)) WHERE ts > %L', \
         clock_timestamp()); END $$"
    ),
    Statements {
        kind: "primary_key",
        slot: Slot::Index,
        doing: &["ALTER TABLE logs ADD CONSTRAINT chaos_key PRIMARY KEY (id, ts)"],
        undoing: &["ALTER TABLE logs DROP CONSTRAINT IF EXISTS chaos_key"],
        harmless: HARMLESS,
    },
    dropped!(
        "logs_dropped",
        "DO $$ BEGIN LOCK TABLE logs; INSERT INTO chaos.dropped_logs SELECT id, message, attributes FROM logs; \
         DROP TABLE logs; END $$"
    ),
    dropped!(
        "dead_letters_dropped",
        "DO $$ BEGIN LOCK TABLE logweir_dead_letter; INSERT INTO chaos.dropped_dead_letters \
         SELECT id, sqlstate, reason, raw FROM logweir_dead_letter; DROP TABLE logweir_dead_letter; END $$"
    ),
    dropped!("volume_dropped", "DROP TABLE log_volume"),
    dropped!("history_dropped", "DROP TABLE logweir_schema_history"),
    dropped!("other_tables_dropped", "DROP TABLE logweir_takeover, logweir_replayed, logweir_clock"),
    hidden!("lanes_hidden", "logweir_lane"),
    hidden!("writers_hidden", "logweir_writer"),
    right!("insert_revoked", "INSERT ON logs"),
    right!("lane_update_revoked", "UPDATE ON logweir_lane"),
    right!("dead_letter_insert_revoked", "INSERT ON logweir_dead_letter"),
    right!("volume_revoked", "INSERT, UPDATE, SELECT ON log_volume"),
    role_setting!("role_quote_all_identifiers", HARMLESS, "quote_all_identifiers", "on"),
    role_setting!("role_statement_timeout", HARMLESS, "statement_timeout", "'50ms'"),
    role_setting!("role_lock_timeout", HARMLESS, "lock_timeout", "'20ms'"),
    role_setting!("role_idle_in_transaction_timeout", STOPS, "idle_in_transaction_session_timeout", "'50ms'"),
    role_setting!("role_serializable", HARMLESS, "default_transaction_isolation", "serializable"),
    role_setting!("role_repeatable_read", HARMLESS, "default_transaction_isolation", "'repeatable read'"),
    role_setting!("role_read_only", STOPS, "default_transaction_read_only", "on"),
    role_setting!("role_search_path", HARMLESS, "search_path", "chaos, public"),
    role_setting!("role_asynchronous_commit", HARMLESS, "synchronous_commit", "off"),
    role_setting!("role_time_zone", HARMLESS, "\"TimeZone\"", "'Asia/Kathmandu'"),
    role_setting!("role_date_style", HARMLESS, "\"DateStyle\"", "'SQL, DMY'"),
    role_setting!("role_text_formats", HARMLESS, "bytea_output", "escape"),
    role_setting!("role_little_memory", HARMLESS, "work_mem", "'64kB'"),
    upkeep!("vacuum_full", "VACUUM FULL logs"),
    upkeep!("vacuum_full_lanes", "VACUUM FULL logweir_lane"),
    upkeep!("reindex", "REINDEX TABLE logs"),
    upkeep!("reindex_concurrently", "REINDEX TABLE CONCURRENTLY logs"),
];

/// Transactions of another session that stay open for a while: what they hold.
pub const HELD: &[(&str, &str)] = &[
    ("lock_access_exclusive", "BEGIN; LOCK TABLE logs IN ACCESS EXCLUSIVE MODE"),
    ("lock_share", "BEGIN; LOCK TABLE logs IN SHARE MODE"),
    ("lock_dead_letters", "BEGIN; LOCK TABLE logweir_dead_letter IN ACCESS EXCLUSIVE MODE"),
    ("lock_volume", "BEGIN; LOCK TABLE log_volume IN ACCESS EXCLUSIVE MODE"),
    ("snapshot", "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM logs"),
    ("lane_rows_locked", "BEGIN; SELECT FROM logweir_lane FOR UPDATE"),
    ("writer_rows_locked", "BEGIN; SELECT FROM logweir_writer FOR UPDATE"),
];
