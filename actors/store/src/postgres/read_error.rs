//! Classifies the SQLSTATEs of a query: what the caller can do about it. Pure.
//!
//! Not [`classify`](super::error_class::classify): that decides what becomes of a batch, and a batch without its table is
//! as stopped as one without a permission. A query distinguishes a database that is away (the cache answers meanwhile) from
//! one whose tables are missing, and from a query that this database cannot evaluate.

/// Why a query failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReadClass {
    /// Canceled: its time limit.
    Canceled,
    /// The server accepts no connection or query now.
    Unavailable,
    /// The tables are missing, are another program's, or may not be read.
    Unprepared,
    /// The database's encoding lacks a character of the query.
    Unencodable,
    /// Anything else: an error of this program, or damage.
    Failed,
}

/// Classifies `sqlstate`.
pub(super) fn read_class(sqlstate: &str) -> ReadClass {
    match sqlstate {
        "57014" => ReadClass::Canceled,
        "22021" | "22P05" => ReadClass::Unencodable,
        // Undefined schema, table, column, type, and operator (a column of another type); no table; wrong type; permission.
        "3F000" | "42P01" | "42703" | "42704" | "42883" | "42809" | "42804" | "42501" => ReadClass::Unprepared,
        // I/O error of the server.
        "58030" => ReadClass::Unavailable,
        _ => match sqlstate.get(..2).unwrap_or_default() {
            // Connection; transaction state (a session that was ended in between); authentication; unknown database;
            // rollback, which is also a conflict with a replica's recovery; resources; object state, such as a database that
            // accepts no connections; shutdown and startup.
            "08" | "25" | "28" | "3D" | "40" | "53" | "55" | "57" => ReadClass::Unavailable,
            _ => ReadClass::Failed,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_sqlstate_says_what_the_caller_can_do() {
        for (codes, class) in [
            (&["57014"][..], ReadClass::Canceled),
            (&["22021", "22P05"], ReadClass::Unencodable),
            (&["42P01", "42703", "42883", "42501", "3F000"], ReadClass::Unprepared),
            (
                &["55000", "28P01", "28000", "3D000", "08006", "53300", "57P03", "40001", "25006"],
                ReadClass::Unavailable,
            ),
            (&["XX000", "XX001", "42601", "2201B", "22003", ""], ReadClass::Failed),
        ] {
            for code in codes {
                assert_eq!(read_class(code), class, "{code}");
            }
        }
    }
}
