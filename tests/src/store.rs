//! Reads the log store directly, bypassing logweir's code.

use std::path::PathBuf;

use rusqlite::{Connection, OpenFlags};
use serde_json::Value;
use tokio_postgres::{NoTls, SimpleQueryMessage};

use crate::client::PATIENCE;
use crate::oracle::{Contents, LaneTotals, Stored};

/// A log store.
#[derive(Clone, Debug)]
pub enum Store {
    /// An SQLite file.
    Sqlite(PathBuf),
    /// A PostgreSQL server's direct URL, which bypasses any proxy between it and logweir.
    Postgres(String),
}

/// A row as text; NULL is empty.
type Row = Vec<String>;

impl Store {
    /// Returns rows, dead letters and lanes.
    ///
    /// # Errors
    /// The store cannot be read, or its tables do not exist.
    pub fn contents(&self) -> Result<Contents, String> {
        let records = self.records(&self.logs()?, "logweir_dead_letter")?;
        let lanes = self.rows("SELECT lane_id, rows, dead, lost, inherited FROM logweir_lane")?;
        let lanes = lanes.into_iter().map(lane).collect::<Result<_, _>>()?;
        Ok(Contents { lanes, ..records })
    }

    /// What has all records, for FROM.
    ///
    /// # Errors
    /// As in [`Store::rows`].
    pub fn logs(&self) -> Result<String, String> {
        let Self::Postgres(_) = self else { return Ok("logs".to_owned()) };
        let others = self.rows(
            "SELECT c.relname FROM pg_class c WHERE c.relnamespace = (SELECT relnamespace FROM pg_class \
             WHERE oid = to_regclass('logs')) AND (c.relname = 'logweir_partitions' AND c.relkind = 'p' \
             OR c.relname = 'logweir_late' \
             AND EXISTS (SELECT FROM pg_constraint k WHERE k.conname = 'made_by_logweir' AND k.conrelid = c.oid))",
        )?;
        if others.is_empty() {
            return Ok("logs".to_owned());
        }
        let columns = "id, ts, severity, service, host, message, attributes";
        let others: String =
            others.concat().iter().map(|table| format!(" UNION ALL SELECT {columns} FROM {table}")).collect();
        Ok(format!("(SELECT {columns} FROM logs{others}) logs"))
    }

    /// Returns the rows of one table and the dead letters of another.
    ///
    /// # Errors
    /// As in [`Store::contents`].
    pub fn records(&self, logs: &str, dead_letters: &str) -> Result<Contents, String> {
        let stored = |row: Row| -> Result<Stored, String> {
            let [id, message, attributes] = row.try_into().map_err(|row| format!("{row:?}"))?;
            Ok(Stored { id: id.parse().map_err(|_| format!("id {id:?}"))?, message, attributes })
        };
        let rows = self.rows(&format!("SELECT id, message, coalesce(CAST(attributes AS text), '') FROM {logs}"))?;
        let rows = rows.into_iter().map(stored).collect::<Result<_, _>>()?;
        let dead = self.rows(&format!("SELECT id, raw FROM {dead_letters}"))?;
        let dead = dead.into_iter().map(dead_letter).collect::<Result<_, _>>()?;
        Ok(Contents { rows, dead, lanes: Vec::new() })
    }

    /// Returns the number of rows in the table.
    ///
    /// # Errors
    /// As in [`Store::rows`].
    pub fn count(&self) -> Result<u64, String> {
        let rows = self.rows(&format!("SELECT count(*) FROM {}", self.logs()?))?;
        rows.first().and_then(|row| row.first()?.parse().ok()).ok_or_else(|| format!("{rows:?} is not a count"))
    }

    /// Runs `sql` and returns its rows as text. A query of `logs` is repeated if a partition was made meanwhile: one that
    /// waits for that has been planned without it, and misses the records that have moved there.
    ///
    /// # Errors
    /// The database's error, with the statement.
    pub fn rows(&self, sql: &str) -> Result<Vec<Row>, String> {
        const PARTITIONS: &str = "SELECT string_agg(inhrelid::text, ' ' ORDER BY inhrelid) FROM pg_inherits WHERE inhparent = to_regclass('logs')";
        let is_divided = matches!(self, Self::Postgres(_)) && is_query(sql) && sql.contains("logs");
        if !is_divided {
            return self.run(sql);
        }
        loop {
            let mut rows = self.run(&format!("{PARTITIONS}; {sql}; {PARTITIONS}"))?;
            let (after, before) = (rows.pop(), (!rows.is_empty()).then(|| rows.remove(0)));
            if before == after {
                return Ok(rows);
            }
        }
    }

    /// As [`Store::rows`], once.
    ///
    /// # Errors
    /// As [`Store::rows`].
    pub fn run(&self, sql: &str) -> Result<Vec<Row>, String> {
        match self {
            Self::Sqlite(path) => sqlite_rows(path, sql).map_err(|error| format!("{sql}: {error}")),
            Self::Postgres(url) => postgres_rows(url, sql).map_err(|error| format!("{sql}: {error:?}")),
        }
    }
}

/// Whether it is a single SELECT.
fn is_query(sql: &str) -> bool {
    sql.trim_start().to_ascii_uppercase().starts_with("SELECT") && !sql.contains(';')
}

fn dead_letter(row: Row) -> Result<Stored, String> {
    let [id, raw] = row.try_into().map_err(|row| format!("{row:?}"))?;
    let record: Value = serde_json::from_str(&raw).map_err(|error| format!("dead dead_letter {raw:?}: {error}"))?;
    let text = |name: &str| match &record[name] {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    Ok(Stored {
        id: id.parse().map_err(|_| format!("id {id:?}"))?,
        message: text("message"),
        attributes: text("attributes"),
    })
}

fn lane(row: Row) -> Result<LaneTotals, String> {
    let numbers: Vec<i64> = row.iter().filter_map(|text| text.parse().ok()).collect();
    let [lane_id, rows, dead, lost, inherited] = numbers[..] else { return Err(format!("lane {row:?}")) };
    Ok(LaneTotals { lane_id, rows, dead, lost, inherited })
}

fn sqlite_rows(path: &PathBuf, sql: &str) -> rusqlite::Result<Vec<Row>> {
    let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    connection.busy_timeout(PATIENCE)?;
    let mut statement = connection.prepare(sql)?;
    let columns = statement.column_count();
    let text = |value: rusqlite::types::Value| match value {
        rusqlite::types::Value::Null => String::new(),
        rusqlite::types::Value::Integer(number) => number.to_string(),
        rusqlite::types::Value::Real(number) => number.to_string(),
        rusqlite::types::Value::Text(text) => text,
        rusqlite::types::Value::Blob(bytes) => format!("{bytes:02x?}"),
    };
    let rows = statement.query_map([], |row| (0..columns).map(|column| row.get(column).map(text)).collect())?;
    rows.collect()
}

fn postgres_rows(url: &str, sql: &str) -> Result<Vec<Row>, tokio_postgres::Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
        let connection = tokio::spawn(connection);
        let messages = client.simple_query(sql).await?;
        drop(client);
        let _ = connection.await;
        let row = |message| match message {
            SimpleQueryMessage::Row(row) => {
                Some((0..row.len()).map(|column| row.get(column).unwrap_or_default().to_owned()).collect())
            }
            _ => None,
        };
        Ok(messages.into_iter().filter_map(row).collect())
    })
}
