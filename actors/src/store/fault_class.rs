//! What an SQLSTATE asks for: try again, mend something, or set one row aside. Pure.
//!
//! Wrongly calling an error a row's fault dead-letters good records; wrongly calling it systemic stops a lane for
//! one bad record. So a row is blamed only for what its own values can cause through a binary COPY with fixed types,
//! only in the COPY itself, and (in the store) only after it has failed alone.
//!
//! What a client can send must not stop a lane. The parser mends NUL, lone surrogates, bytes that are no UTF-8 and deep
//! nesting; numbers beyond `numeric` (1e400000), characters that the database's encoding lacks, and whatever was journaled
//! before it mended so, remain. These fail in the types' input functions, without any table ([`Class::Value`]), and are set
//! aside without a limit. The limit is for what the table refuses ([`Class::Row`]): its constraints, triggers and indexes are
//! the operator's.

/// What must happen after an error of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// A value that its type does not take, if the error came from the COPY: the record's fault, whatever the table is.
    Value,
    /// A row that the table does not take, if the error came from the COPY: the record's fault, or a changed table's.
    Row,
    /// Passes by itself: try again.
    Transient,
    /// Schema, permission, configuration: somebody must mend it.
    Systemic,
}

impl Class {
    /// For the label of a counter.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Value => "value",
            Self::Row => "row",
            Self::Transient => "transient",
            Self::Systemic => "systemic",
        }
    }
}

/// What is known of an error beside its SQLSTATE. `constraint` and `table` are the error's own fields, not its text,
/// which is translated on some servers.
#[derive(Clone, Copy, Debug, Default)]
pub struct Details<'a> {
    /// The constraint that was violated.
    pub constraint: Option<&'a str>,
    /// The table it was about.
    pub table: Option<&'a str>,
    /// Whether it was found while reading a row of a COPY.
    pub in_copy: bool,
}

/// Classifies `sqlstate`. What nobody foresaw is systemic: nothing is lost while a lane stands.
#[must_use]
pub fn classify(sqlstate: &str, details: Details<'_>) -> Class {
    match sqlstate {
        // Wrong width or number of columns in binary COPY: our encoding is fixed, so the table has changed.
        "22P03" | "22P04" => Class::Systemic,
        // The same for a column that got a wider type. Elsewhere a pooler says this when its server is away.
        "08P01" if details.in_copy => Class::Systemic,
        // A partition's own bounds carry no constraint name. `logs`: no partition takes the row. A partition
        // (the default one): another session attached a better one while we were copying; it is there at the next try.
        "23514" if details.constraint.is_none() => match details.table {
            Some("logs") | None => Class::Systemic,
            Some(_) => Class::Transient,
        },
        // No JSON, or no such escape in it; bytes that are no text; a number beyond `numeric`; nesting beyond the stack.
        "22P02" | "22P05" | "22021" | "22003" | "54001" => Class::Value,
        // Sizes: an index entry above a page. The index is a user's, ours have nothing of variable length.
        "54000" => Class::Row,
        // Read-only: a demoted primary. A fresh connection looks for the new one.
        "25006" => Class::Transient,
        // In an aborted transaction; its session was idle in it for too long.
        "25P02" | "25P03" => Class::Transient,
        // Query cancelled: statement_timeout, or a person. Lock not available, object in use.
        "57014" | "55P03" | "55006" => Class::Transient,
        // Disk full, out of memory, too many connections. 53400 is a configured limit.
        "53000" | "53100" | "53200" | "53300" => Class::Transient,
        // The database was dropped; the server does not know its own data (58P01 and XX001 may be damage on disk).
        "57P04" => Class::Systemic,
        // I/O error of the server.
        "58030" => Class::Transient,
        _ => match sqlstate.get(..2).unwrap_or_default() {
            "22" | "23" => Class::Row,
            // Connection, transaction rollback (serialization, deadlock), operator intervention (shutdown, crash, start-up).
            "08" | "40" | "57" => Class::Transient,
            _ => Class::Systemic,
        },
    }
}

/// How many rows that the table refuses may be set aside before the batch is taken for a sign that it has changed.
///
/// One per cent, but never less than 100: a handful of rows that a user's constraint forbids must not stop a lane,
/// while a table that refuses everything is noticed within one batch of normal size. What small batches set aside
/// meanwhile is kept, counted and can be replayed.
#[must_use]
pub fn poison_rows_max(batch_rows: usize) -> usize {
    (batch_rows / 100).max(100)
}

/// The row number (from 1) that the server's CONTEXT names for a COPY into `logs`. The last match: errors inside a
/// JSON value put a `JSON data, line 1: …` of their own first, which may quote anything.
#[must_use]
pub fn copy_line(context: &str) -> Option<usize> {
    const MARK: &str = "COPY logs, line ";
    let rest = &context[context.rfind(MARK)? + MARK.len()..];
    let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    rest[..digits].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_sqlstate_is_blamed_on_the_value_the_row_the_moment_or_the_schema() {
        let none = Details::default();
        for code in ["22021", "22P05", "22P02", "22003", "54001"] {
            assert_eq!(classify(code, none), Class::Value, "{code}");
        }
        for code in ["22000", "22008", "22001", "23502", "23505", "23503", "54000"] {
            assert_eq!(classify(code, none), Class::Row, "{code}");
        }
        for code in [
            "08000", "08003", "08006", "08P01", "40001", "40P01", "55P03", "57014", "57P01", "57P02", "57P03", "57P05",
            "53100", "53200", "53300", "25006", "25P02", "25P03", "58030",
        ] {
            assert_eq!(classify(code, none), Class::Transient, "{code}");
        }
        for code in [
            "42P01", "42703", "42804", "42501", "42601", "3D000", "3F000", "28000", "28P01", "0A000", "22P03", "22P04",
            "23514", "53400", "57P04", "XX000", "XX001", "54011", "P0001", "",
        ] {
            assert_eq!(classify(code, none), Class::Systemic, "{code}");
        }
    }

    #[test]
    fn a_check_of_the_user_is_the_rows_fault_and_a_partitions_bound_is_not() {
        let bound = Details { in_copy: true, ..Details::default() };
        let user = Details { constraint: Some("service_known"), table: Some("logs"), in_copy: true };
        assert_eq!(classify("23514", user), Class::Row);
        assert_eq!(classify("23514", Details { table: Some("logs"), ..bound }), Class::Systemic);
        assert_eq!(classify("23514", Details { table: Some("logs_default"), ..bound }), Class::Transient);
    }

    #[test]
    fn too_few_bytes_in_a_row_are_a_changed_column_and_a_poolers_complaint_passes() {
        assert_eq!(classify("08P01", Details { in_copy: true, ..Details::default() }), Class::Systemic);
        assert_eq!(classify("08P01", Details::default()), Class::Transient);
    }

    #[test]
    fn the_last_copy_line_of_the_context_counts() {
        assert_eq!(copy_line("COPY logs, line 7, column message"), Some(7));
        assert_eq!(copy_line("JSON data, line 1: COPY logs, line 3\nCOPY logs, line 12, column attributes"), Some(12));
        assert_eq!(copy_line("JSON data, line 1: {"), None);
        assert_eq!(copy_line("COPY logs, line x"), None);
        assert_eq!(copy_line(""), None);
    }

    #[test]
    fn small_batches_may_lose_a_hundred_rows_and_large_ones_one_per_cent() {
        assert_eq!(poison_rows_max(1), 100);
        assert_eq!(poison_rows_max(10_000), 100);
        assert_eq!(poison_rows_max(50_000), 500);
    }
}
