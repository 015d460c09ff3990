//! Migrations: which SQL files of `src/sql` a database still needs. Pure; each store applies them.
//!
//! The table [`HISTORY`] has the shape and the checksums of refinery, which migrated the databases of earlier versions.
//! That crate was dropped: for one SQL file per database it brought 39 of the 127 crates of a program that stores in
//! SQLite (`url` with its Unicode tables, `time`, `walkdir`), and none of them is optional.

use logweir_record::timestamp;

use crate::error::StoreError;

/// The table of applied migrations.
pub(crate) const HISTORY: &str = "logweir_schema_history";

/// Creates [`HISTORY`].
pub(crate) const CREATE_HISTORY_SQL: &str = "CREATE TABLE IF NOT EXISTS logweir_schema_history (\
    version int4 PRIMARY KEY, name VARCHAR(255), applied_on VARCHAR(255), checksum VARCHAR(255))";

/// Reads [`HISTORY`]: the columns of [`Applied`].
pub(crate) const APPLIED_SQL: &str = "SELECT version, name, checksum FROM logweir_schema_history ORDER BY version";

/// An SQL file that changes the schema. Never edited once it is released: a change is a new migration.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Migration {
    /// From 1, without a gap.
    pub(crate) version: i32,
    pub(crate) name: &'static str,
    pub(crate) sql: &'static str,
    /// SipHash-1-3 of the name, the version and the SQL, as refinery computes it. A constant, so that an edited file
    /// fails a test instead of every database.
    pub(crate) checksum: u64,
}

/// A row of [`HISTORY`].
#[derive(Debug)]
pub(crate) struct Applied {
    pub(crate) version: i32,
    pub(crate) name: String,
    pub(crate) checksum: String,
}

impl Migration {
    /// Records the migration in [`HISTORY`]; for the same transaction.
    pub(crate) fn record_sql(&self, now_us: i64) -> String {
        let Self { version, name, checksum, .. } = self;
        let at = timestamp::text(now_us);
        format!(
            "INSERT INTO {HISTORY} (version, name, applied_on, checksum) VALUES ({version}, '{name}', '{at}', \
             '{checksum}')"
        )
    }

    fn is(&self, applied: &Applied) -> bool {
        self.version == applied.version && self.name == applied.name && self.checksum.to_string() == applied.checksum
    }
}

/// Returns the migrations that a database with this history lacks. `all` and `applied` are in order.
///
/// # Errors
/// [`StoreError::Systemic`] if the history is not the beginning of `all`.
pub(crate) fn pending<'m>(all: &'m [Migration], applied: &[Applied]) -> Result<&'m [Migration], StoreError> {
    for (at, applied) in applied.iter().enumerate() {
        let what = match all.get(at) {
            Some(known) if known.is(applied) => continue,
            Some(known) if known.version == applied.version => "differs from this version's",
            Some(_) | None => "is unknown to this version",
        };
        return Err(StoreError::Systemic(format!(
            "migrating the schema: migration {} ({}) in table {HISTORY} {what}; the database may have been used by a \
             newer version: run that version",
            applied.version, applied.name
        )));
    }
    Ok(&all[applied.len()..])
}

/// Computes a migration's checksum as refinery does.
#[cfg(test)]
pub(crate) fn checksum(migration: &Migration) -> u64 {
    use std::hash::{Hash, Hasher};

    let mut hasher = siphasher::sip::SipHasher13::new();
    migration.name.hash(&mut hasher);
    migration.version.hash(&mut hasher);
    migration.sql.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Migration; 2] = [
        Migration { version: 1, name: "one", sql: "", checksum: 11 },
        Migration { version: 2, name: "two", sql: "", checksum: 22 },
    ];

    fn applied(version: i32, name: &str, checksum: &str) -> Applied {
        Applied { version, name: name.to_owned(), checksum: checksum.to_owned() }
    }

    #[test]
    fn what_is_not_applied_yet_is_pending() {
        assert_eq!(pending(&ALL, &[]).unwrap(), ALL);
        assert_eq!(pending(&ALL, &[applied(1, "one", "11")]).unwrap(), &ALL[1..]);
        assert_eq!(pending(&ALL, &[applied(1, "one", "11"), applied(2, "two", "22")]).unwrap(), []);
    }

    #[test]
    fn a_history_of_another_version_is_rejected() {
        let rejected = |applied: &[Applied]| pending(&ALL, applied).unwrap_err().to_string();
        for changed in [applied(1, "one", "12"), applied(1, "other", "11")] {
            let error = rejected(&[changed]);
            assert!(error.contains("migration 1") && error.contains("differs") && error.contains("newer"), "{error}");
        }
        let newer = [applied(1, "one", "11"), applied(2, "two", "22"), applied(3, "three", "33")];
        assert!(rejected(&newer).contains("migration 3 (three) in table logweir_schema_history is unknown"));
        assert!(rejected(&[applied(2, "two", "22")]).contains("migration 2"), "one was not applied");
    }
}
