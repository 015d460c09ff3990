//! The schema: migrations.

use logweir_engine::clock::wall_us;
use rusqlite::{Connection, Row};

use super::clock;
use super::connection::{failed, immediate};
use crate::error::StoreError;
use crate::protocol::migrations::{APPLIED_SQL, Applied, CREATE_HISTORY_SQL, HISTORY, Migration, pending};

const MIGRATIONS: &[Migration] = &[
    Migration {
        version: 1,
        name: "log_store",
        sql: include_str!("../sql/sqlite/V1__log_store.sql"),
        checksum: 8_097_175_706_608_978_689,
    },
    Migration {
        version: 2,
        name: "clock",
        sql: include_str!("../sql/sqlite/V2__clock.sql"),
        checksum: 17_631_894_045_283_608_636,
    },
    Migration {
        version: 3,
        name: "takeover_digest",
        sql: include_str!("../sql/sqlite/V3__takeover_digest.sql"),
        checksum: 3_038_219_700_098_052_145,
    },
    Migration {
        version: 4,
        name: "idempotency_key",
        sql: include_str!("../sql/sqlite/V4__idempotency_key.sql"),
        checksum: 4_215_322_044_311_854_339,
    },
];

const WHAT: &str = "migrating the schema";

/// Brings the schema up to date, in one transaction: a process that is killed in between leaves nothing behind.
pub(super) fn migrate(connection: &mut Connection) -> Result<(), StoreError> {
    // Read first: a file that is up to date is not locked for writing.
    if lacking(connection)?.is_empty() {
        return Ok(());
    }
    let failed = failed(WHAT);
    let transaction = immediate(connection, WHAT)?;
    transaction.execute_batch(CREATE_HISTORY_SQL).map_err(&failed)?;
    // Again, under the lock: another process may have been faster.
    for migration in lacking(&transaction)? {
        transaction.execute_batch(migration.sql).map_err(&failed)?;
        transaction.execute_batch(&migration.record_sql(wall_us())).map_err(&failed)?;
    }
    clock::begin(&transaction, wall_us()).map_err(&failed)?;
    transaction.commit().map_err(&failed)
}

/// The migrations that the file lacks.
fn lacking(connection: &Connection) -> Result<&'static [Migration], StoreError> {
    pending(MIGRATIONS, &applied(connection).map_err(failed(WHAT))?)
}

fn applied(connection: &Connection) -> rusqlite::Result<Vec<Applied>> {
    // Not `table_exists`, which asks the connection's copy of the schema: another process may have created it since.
    let sql = "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = ?1";
    if !connection.query_row(sql, [HISTORY], |row| row.get(0))? {
        return Ok(Vec::new());
    }
    let applied = |row: &Row<'_>| Ok(Applied { version: row.get(0)?, name: row.get(1)?, checksum: row.get(2)? });
    connection.prepare(APPLIED_SQL)?.query_map([], applied)?.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::migrations::checksum;

    #[test]
    fn no_migration_was_edited() {
        for migration in MIGRATIONS {
            let name = migration.name;
            assert_eq!(migration.checksum, checksum(migration), "{name} was edited: add a migration instead");
        }
    }

    #[test]
    fn a_file_of_an_earlier_version_is_up_to_date_and_a_new_file_gets_the_same_history() {
        let mut connection = Connection::open_in_memory().unwrap();
        migrate(&mut connection).unwrap();
        let history = |connection: &Connection| {
            connection.query_row(
                "SELECT group_concat(version || ' ' || name || ' ' || checksum, ', ' ORDER BY version) \
                 FROM logweir_schema_history",
                [],
                |row| row.get::<_, String>(0),
            )
        };
        let current = "1 log_store 8097175706608978689, 2 clock 17631894045283608636, 3 takeover_digest 3038219700098052145, \
             4 idempotency_key 4215322044311854339";
        assert_eq!(history(&connection).unwrap(), current);
        // As refinery left it.
        connection
            .execute_batch(
                "DROP TABLE logweir_idempotency_key;
                 ALTER TABLE logweir_lane DROP COLUMN repeated;
                 ALTER TABLE logweir_takeover DROP COLUMN digest;
                 DROP TABLE logweir_clock;
                 DROP TABLE logweir_schema_history;
                 CREATE TABLE logweir_schema_history(
                     version int4 PRIMARY KEY, name VARCHAR(255), applied_on VARCHAR(255), checksum VARCHAR(255));
                 INSERT INTO logweir_schema_history (version, name, applied_on, checksum)
                     VALUES (1, 'log_store', '2026-11-30T01:40:59.927610415Z', '8097175706608978689')",
            )
            .unwrap();
        migrate(&mut connection).unwrap();
        assert_eq!(history(&connection).unwrap(), current);
        connection.execute_batch("UPDATE logweir_schema_history SET version = 5 WHERE version = 4").unwrap();
        assert!(migrate(&mut connection).unwrap_err().to_string().contains("newer version"));
    }
}
