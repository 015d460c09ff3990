//! Classifies SQLSTATEs, and says what an operator has to do about them. Pure.
//!
//! Outside of the rows' insertion an error is temporary, or an operator must act ([`classify`]). An error that is raised
//! while rows are inserted can be a row's fault, whatever its SQLSTATE: constraints, triggers and indexes are the
//! operator's, and a trigger can raise any error ([`blame`]). That a row is blamed is only a suspicion. The store
//! dead-letters a row only after it has failed alone, and only if the table takes another record.
//!
//! A client must not be able to stop a lane. The parser sanitizes NUL, lone surrogates, invalid UTF-8 and deep nesting.
//! What remains are numbers beyond `numeric` (1e400000), characters that the database's encoding lacks, and records
//! that were journaled before the parser sanitized them. These fail in the types' input functions.

/// The constraint that maintenance puts on a large default partition for a while, before it creates the partitions of the
/// next days. A row that it refuses has its partition soon.
pub const FUTURE_CHECK: &str = "logweir_next_partitions";

/// The class of a server error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Temporary: retry.
    Transient,
    /// Schema, permission or configuration: an operator must fix it.
    Systemic,
}

/// What an error that was raised while rows were inserted can be due to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blame {
    /// A row.
    Row,
    /// The number of rows, or what they are in sum: too slow, too much memory.
    Batch,
    /// Nothing in them.
    Nothing(Class),
}

/// Classifies `sqlstate`. Unknown codes are systemic, since a stopped lane loses nothing.
#[must_use]
pub fn classify(sqlstate: &str) -> Class {
    match sqlstate {
        // Read-only: a demoted primary. A new connection finds the new one.
        "25006" => Class::Transient,
        // Transaction aborted; session idle in a transaction for too long; transaction too long.
        "25P02" | "25P03" | "25P04" => Class::Transient,
        // Lock not available, object in use.
        "55P03" | "55006" => Class::Transient,
        // Disk full, out of memory, too many connections. 53400 is a configured limit.
        "53000" | "53100" | "53200" | "53300" => Class::Transient,
        // The database was dropped. (58P01 and XX001, which can mean damage on disk, are systemic too.)
        "57P04" => Class::Systemic,
        // I/O error of the server.
        "58030" => Class::Transient,
        _ => match sqlstate.get(..2).unwrap_or_default() {
            // Connection (a pooler reports 08P01 when its server is unreachable), transaction rollback (serialization,
            // deadlock), operator intervention (query canceled, shutdown, crash, start-up).
            "08" | "40" | "57" => Class::Transient,
            _ => Class::Systemic,
        },
    }
}

/// Says what an error can be due to that was raised while rows were inserted. `constraint` and `table` come from the
/// error's own fields, not from its text, which some servers translate.
#[must_use]
pub fn blame(sqlstate: &str, constraint: Option<&str>, table: Option<&str>) -> Blame {
    match sqlstate {
        // Wrong width or number of columns in binary COPY, or a column that got a wider type: the encoding is fixed, so
        // the table was changed.
        "22P03" | "22P04" | "08P01" => Blame::Nothing(Class::Systemic),
        // A violated partition bound carries the table's name and no constraint's. `logs`: no partition takes the row, which
        // concerns few rows or, if the present day has none, all. A partition (the default one): another session attached
        // a better one during the COPY; the retry finds it.
        "23514" if constraint.is_none() && table.is_some_and(|table| table != "logs") => {
            Blame::Nothing(Class::Transient)
        }
        "23514" if constraint == Some(FUTURE_CHECK) => Blame::Nothing(Class::Transient),
        // Canceled (statement_timeout), out of memory, a configured limit.
        "57014" | "53200" | "53400" => Blame::Batch,
        // Damaged data or index.
        "XX001" | "XX002" => Blame::Nothing(Class::Systemic),
        _ if classify(sqlstate) == Class::Transient => Blame::Nothing(Class::Transient),
        // No SQLSTATE, the server's files, its configuration file, the role or the database.
        _ => match sqlstate.get(..2).unwrap_or_default() {
            "" | "57" | "58" | "F0" | "28" | "3D" => Blame::Nothing(Class::Systemic),
            _ => Blame::Row,
        },
    }
}

/// Returns what an operator has to do about `sqlstate`, if there is more to say than the server does.
#[must_use]
pub fn advice(sqlstate: &str) -> Option<&'static str> {
    Some(match sqlstate {
        "08P01" | "22P03" | "22P04" => "a column of table logs has another type than logweir writes: undo the change",
        "0A000" => {
            "the server does not support this here: undo the last change of table logs, its triggers or its storage"
        }
        "22P05" | "22021" => {
            "a character that this database's encoding lacks: move to a database with ENCODING 'UTF8' (SHOW server_encoding)"
        }
        "23502" => "a column of table logs is NOT NULL and logweir does not write it: give it a DEFAULT",
        "23505" | "23P01" => "drop the unique index or exclusion constraint on table logs: log records may be equal",
        "23503" => "if the foreign key is on table logs, drop it: logweir writes records whatever other tables contain",
        "23514" => {
            "a CHECK constraint refuses the row, or no partition takes it: change the constraint, or CREATE TABLE \
             logs_default PARTITION OF logs DEFAULT"
        }
        "25006" => {
            "the server is read-only: let database.url name the primary (all hosts, target_session_attrs=read-write), or \
             check default_transaction_read_only"
        }
        "28000" => "let pg_hba.conf admit logweir's user, database and address (with or without TLS)",
        "28P01" => "correct the password in database.url or in the file that it is read from",
        "3D000" => "create the database, or correct its name in database.url",
        "3F000" => {
            "create the schema, or correct search_path of the role or of database.url (options=-c search_path=…)"
        }
        "42501" => {
            "run what `logweir database grants` prints, as the owner of the tables; if row security is enabled, give the role \
             a policy by which it reads and writes every row"
        }
        "42P01" => {
            "a table is missing, and logweir creates it when it connects again; if the table exists, add its schema to the \
             search_path of the role or of database.url (options=-c search_path=…)"
        }
        "42703" | "42804" => "a column that logweir writes was renamed, dropped or changed its type: undo the change",
        "53100" => "the server's disk is full: make space; the records wait in the journal",
        "53200" => {
            "the server is out of memory: lower work_mem, maintenance_work_mem or max_connections, or give it more"
        }
        "53300" => {
            "raise max_connections (or the limit of the role or database), or lower database.pool_size and lanes"
        }
        "53400" => "raise the limit that the message names (temp_file_limit, …)",
        "54000" => {
            "a value is too long for an index of table logs: drop the index, or make it one of a hash or a prefix"
        }
        "54001" => "raise max_stack_depth, or send values that are less deeply nested",
        "55000" => {
            "the object is not in the state for that: a publication FOR ALL TABLES forbids UPDATE and DELETE of tables \
             without REPLICA IDENTITY; a server that does not accept connections must be started"
        }
        "57014" => {
            "the statement took longer than statement_timeout, or was canceled: look for slow triggers and indexes on \
             table logs, give the server more speed, or raise database.statement_timeout_ms"
        }
        "55P03" => "another session holds a lock on the table: see pg_locks and pg_stat_activity",
        "P0001" | "P0004" => "a trigger on table logs raises this error: change or drop the trigger",
        "2F005" => "a trigger's function ends without RETURN: let it RETURN NEW",
        _ => return None,
    })
}

/// Returns the row number (from 1) in the server's CONTEXT for a COPY into `logs`, or into the table beside it. Uses the
/// last match: errors inside a JSON value prepend a line `JSON data, line 1: …`, which can quote anything.
#[must_use]
pub fn copy_line(context: &str) -> Option<usize> {
    const MARKS: [&str; 2] = ["COPY logs, line ", "COPY logweir_late, line "];
    let end = |mark: &&str| Some(context.rfind(*mark)? + mark.len());
    let rest = &context[MARKS.iter().filter_map(end).max()?..];
    let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    rest[..digits].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRANSIENT: [&str; 20] = [
        "08000", "08003", "08006", "08P01", "40001", "40P01", "55P03", "57014", "57P01", "57P02", "57P03", "57P05",
        "53100", "53200", "53300", "25006", "25P02", "25P03", "25P04", "58030",
    ];

    #[test]
    fn outside_of_the_rows_an_error_is_transient_or_an_operators() {
        for code in TRANSIENT {
            assert_eq!(classify(code), Class::Transient, "{code}");
        }
        for code in [
            "22021", "22003", "23502", "23514", "54000", "42P01", "42703", "42804", "42501", "42601", "3D000", "3F000",
            "28000", "28P01", "0A000", "22P03", "22P04", "53400", "57P04", "XX000", "XX001", "54011", "P0001", "",
        ] {
            assert_eq!(classify(code), Class::Systemic, "{code}");
        }
    }

    #[test]
    fn while_rows_are_inserted_a_row_can_be_at_fault_whatever_the_sqlstate() {
        for code in [
            "22021", "22P05", "22P02", "22003", "54001", "22000", "22008", "22001", "23502", "23505", "23503", "54000",
            "P0001", "P0002", "P0004", "38000", "39004", "2F005", "XX000", "42501", "42P01", "42703", "0A000", "21000",
            "44000", "09000", "LW001",
        ] {
            assert_eq!(blame(code, None, None), Blame::Row, "{code}");
        }
        for code in ["57014", "53200", "53400"] {
            assert_eq!(blame(code, None, None), Blame::Batch, "{code}");
        }
        for code in TRANSIENT.into_iter().filter(|code| !["08P01", "57014", "53200"].contains(code)) {
            assert_eq!(blame(code, None, None), Blame::Nothing(Class::Transient), "{code}");
        }
        for code in ["22P03", "22P04", "08P01", "57P04", "XX001", "XX002", "58P01", "28000", ""] {
            assert_eq!(blame(code, None, None), Blame::Nothing(Class::Systemic), "{code}");
        }
    }

    #[test]
    fn a_users_check_constraint_and_a_missing_partition_blame_the_row() {
        assert_eq!(blame("23514", Some("service_known"), Some("logs")), Blame::Row);
        assert_eq!(blame("23514", None, None), Blame::Row, "raised by a trigger");
        assert_eq!(blame("23514", Some(FUTURE_CHECK), Some("logs_default")), Blame::Nothing(Class::Transient));
        assert_eq!(blame("23514", None, Some("logs")), Blame::Row, "no partition takes it");
        assert_eq!(blame("23514", None, Some("logs_default")), Blame::Nothing(Class::Transient));
    }

    #[test]
    fn each_error_that_stops_or_delays_a_lane_says_what_to_do() {
        for code in [
            "57014", "53200", "53100", "53300", "53400", "54000", "22P05", "P0001", "23514", "23502", "42501", "42P01",
            "3F000", "42804", "42703", "28P01", "28000", "25006", "55000", "0A000", "55P03", "3D000",
        ] {
            assert!(advice(code).is_some(), "{code}");
        }
        assert!(advice("42501").unwrap_or_default().contains("logweir database grants"));
    }

    #[test]
    fn the_last_copy_line_of_the_context_is_used() {
        assert_eq!(copy_line("COPY logs, line 7, column message"), Some(7));
        assert_eq!(copy_line("JSON data, line 1: COPY logs, line 3\nCOPY logs, line 12, column attributes"), Some(12));
        assert_eq!(copy_line("COPY logweir_late, line 5, column message"), Some(5));
        assert_eq!(copy_line("JSON data, line 1: {"), None);
        assert_eq!(copy_line("COPY logs, line x"), None);
        assert_eq!(copy_line(""), None);
    }
}
