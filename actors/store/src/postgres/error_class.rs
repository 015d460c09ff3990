//! Classifies SQLSTATEs: retry, operator action needed, or one bad row. Pure.
//!
//! Wrongly blaming a row dead-letters good records; wrongly classifying an error as systemic stops a lane for one bad
//! record. So a row is blamed only for what its own values can cause in a binary COPY with fixed types, only in the
//! COPY itself, and (in the store) only after it has failed alone.
//!
//! A client must not be able to stop a lane. The parser sanitizes NUL, lone surrogates, invalid UTF-8 and deep nesting.
//! What remains are numbers beyond `numeric` (1e400000), characters that the database's encoding lacks, and records
//! that were journaled before the parser sanitized them. These fail in the types' input functions, independently of any
//! table ([`Class::Value`]), and are dead-lettered without a limit. The limit applies to rows that the table rejects
//! ([`Class::Row`]): its constraints, triggers and indexes belong to the operator.

/// The class of a server error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Its type rejected a value, if the error came from the COPY: the record is bad, whatever the table.
    Value,
    /// The table rejected a row, if the error came from the COPY: the record is bad, or the table was changed.
    Row,
    /// Temporary: retry.
    Transient,
    /// Schema, permission or configuration: an operator must fix it.
    Systemic,
}

/// Details of an error besides its SQLSTATE. `constraint` and `table` come from the error's own fields, not from its
/// text, which some servers translate.
#[derive(Clone, Copy, Debug, Default)]
pub struct Details<'a> {
    /// The violated constraint.
    pub constraint: Option<&'a str>,
    /// The table.
    pub table: Option<&'a str>,
    /// Whether it occurred while reading a row of a COPY.
    pub in_copy: bool,
}

/// Classifies `sqlstate`. Unknown codes are systemic, since a stopped lane loses nothing.
#[must_use]
pub fn classify(sqlstate: &str, details: Details<'_>) -> Class {
    match sqlstate {
        // Wrong width or number of columns in binary COPY: the encoding is fixed, so the table was changed.
        "22P03" | "22P04" => Class::Systemic,
        // The same for a column that got a wider type. Elsewhere a pooler reports it when its server is unreachable.
        "08P01" if details.in_copy => Class::Systemic,
        // A violated partition bound carries no constraint name. `logs`: no partition accepts the row. A partition (the
        // default one): another session attached a better one during the COPY; the retry finds it.
        "23514" if details.constraint.is_none() => match details.table {
            Some("logs") | None => Class::Systemic,
            Some(_) => Class::Transient,
        },
        // Invalid JSON or escape; invalid text; a number beyond `numeric`; nesting beyond the stack.
        "22P02" | "22P05" | "22021" | "22003" | "54001" => Class::Value,
        // An index entry larger than a page. The index is a user's: logweir's own have no variable-length columns.
        "54000" => Class::Row,
        // Read-only: a demoted primary. A new connection finds the new one.
        "25006" => Class::Transient,
        // Transaction aborted; session idle in a transaction for too long.
        "25P02" | "25P03" => Class::Transient,
        // Query canceled: statement_timeout or an operator. Lock not available, object in use.
        "57014" | "55P03" | "55006" => Class::Transient,
        // Disk full, out of memory, too many connections. 53400 is a configured limit.
        "53000" | "53100" | "53200" | "53300" => Class::Transient,
        // The database was dropped. (58P01 and XX001, which can mean damage on disk, are systemic too.)
        "57P04" => Class::Systemic,
        // I/O error of the server.
        "58030" => Class::Transient,
        _ => match sqlstate.get(..2).unwrap_or_default() {
            "22" | "23" => Class::Row,
            // Connection, transaction rollback (serialization, deadlock), operator intervention (shutdown, crash,
            // start-up).
            "08" | "40" | "57" => Class::Transient,
            _ => Class::Systemic,
        },
    }
}

/// Returns the row number (from 1) in the server's CONTEXT for a COPY into `logs`. Uses the last match: errors inside a
/// JSON value prepend a line `JSON data, line 1: …`, which can quote anything.
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
    fn each_sqlstate_is_a_value_row_transient_or_systemic_error() {
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
    fn a_users_check_constraint_blames_the_row_and_a_partition_bound_does_not() {
        let bound = Details { in_copy: true, ..Details::default() };
        let user = Details { constraint: Some("service_known"), table: Some("logs"), in_copy: true };
        assert_eq!(classify("23514", user), Class::Row);
        assert_eq!(classify("23514", Details { table: Some("logs"), ..bound }), Class::Systemic);
        assert_eq!(classify("23514", Details { table: Some("logs_default"), ..bound }), Class::Transient);
    }

    #[test]
    fn a_protocol_violation_is_systemic_in_copy_and_transient_elsewhere() {
        assert_eq!(classify("08P01", Details { in_copy: true, ..Details::default() }), Class::Systemic);
        assert_eq!(classify("08P01", Details::default()), Class::Transient);
    }

    #[test]
    fn the_last_copy_line_of_the_context_is_used() {
        assert_eq!(copy_line("COPY logs, line 7, column message"), Some(7));
        assert_eq!(copy_line("JSON data, line 1: COPY logs, line 3\nCOPY logs, line 12, column attributes"), Some(12));
        assert_eq!(copy_line("JSON data, line 1: {"), None);
        assert_eq!(copy_line("COPY logs, line x"), None);
        assert_eq!(copy_line(""), None);
    }
}
