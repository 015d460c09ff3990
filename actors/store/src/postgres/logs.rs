//! The table `logs` as it is: how it is divided, and the table for late records beside it.

use tokio_postgres::Client;
use tokio_postgres::types::Oid;

use super::connect::failed;
use super::ddl::{Relation, quoted};
use super::home::Home;
use super::timescale::is_hypertable;
use crate::error::StoreError;

/// Name of the table beside a hypertable that takes records far from the present.
pub(super) const LATE: &str = "logweir_late";

/// The table `logs` as it is now.
pub(super) struct Logs {
    pub(super) oid: Oid,
    pub(super) table: Relation,
    pub(super) kind: LogsKind,
    /// The default partition, whatever its name.
    pub(super) default: Option<Relation>,
    /// [`LATE`], if it is there.
    pub(super) late: Option<Relation>,
    /// For the partitions: ` TABLESPACE …`, or nothing.
    pub(super) tablespace: String,
    pub(super) server_version: i32,
}

/// How `logs` is divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LogsKind {
    /// Into daily partitions.
    Partitioned,
    /// Into chunks, by TimescaleDB.
    Hypertable,
    /// Not at all: an operator made it.
    Plain,
}

impl Logs {
    /// Reads the table that a flush writes to.
    pub(super) async fn read(client: &Client, home: &Home) -> Result<Self, StoreError> {
        let row = client
            .query_opt(
                "SELECT c.oid, n.nspname::text, c.relname::text, c.relkind = 'p', dn.nspname::text, d.relname::text, \
                 s.spcname::text, current_setting('server_version_num')::integer, \
                 EXISTS (SELECT FROM pg_class l WHERE l.relnamespace = n.oid AND l.relname = $2) \
                 FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
                 LEFT JOIN pg_partitioned_table p ON p.partrelid = c.oid \
                 LEFT JOIN pg_class d ON d.oid = p.partdefid AND p.partdefid <> 0 \
                 LEFT JOIN pg_namespace dn ON dn.oid = d.relnamespace \
                 LEFT JOIN pg_tablespace s ON s.oid = c.reltablespace \
                 WHERE n.nspname = $1 AND c.relname = 'logs'",
                &[&home.name(), &LATE],
            )
            .await
            .map_err(failed("reading the table logs"))?;
        let Some(row) = row else {
            return Err(StoreError::Systemic(format!(
                "table logs was not found in schema {home}; it is created when a lane connects again"
            )));
        };
        let relation = |schema: usize, name: usize| Some(Relation { schema: row.get(schema), name: row.get(name) });
        let table = Relation { schema: row.get(1), name: row.get(2) };
        let kind = match row.get(3) {
            true => LogsKind::Partitioned,
            false if is_hypertable(client, &table).await.map_err(failed("looking for hypertables"))? => {
                LogsKind::Hypertable
            }
            false => LogsKind::Plain,
        };
        let tablespace = row.get::<_, Option<String>>(6);
        Ok(Self {
            oid: row.get(0),
            late: row.get::<_, bool>(8).then(|| home.table(LATE)),
            table,
            kind,
            default: row.get::<_, Option<&str>>(5).and_then(|_| relation(4, 5)),
            tablespace: tablespace.map_or(String::new(), |name| format!(" TABLESPACE {}", quoted(&name))),
            server_version: row.get(7),
        })
    }

    /// The table `name` in the schema of `logs`.
    pub(super) fn beside(&self, name: &str) -> Relation {
        Relation { schema: self.table.schema.clone(), name: name.to_owned() }
    }

    /// What contains all records, with these columns, for FROM.
    pub(super) fn all(&self, columns: &str) -> String {
        match &self.late {
            None => self.table.to_string(),
            Some(late) => union_all(columns, &self.table.to_string(), &late.to_string()),
        }
    }
}

/// The records of both tables, for FROM. They are read in one snapshot, so a record that moves is seen once.
pub(super) fn union_all(columns: &str, logs: &str, late: &str) -> String {
    format!("(SELECT {columns} FROM {logs} UNION ALL SELECT {columns} FROM {late}) logs")
}
