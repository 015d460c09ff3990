//! Daily partitions: created ahead of time, dropped when they are past their retention.
//!
//! - A partition is created as a plain table and attached, which does not block flushes; `CREATE … PARTITION OF` would.
//!   Rows of its day that are already in the default partition move in the same transaction.
//! - It is made as `logs` is now, with the columns, constraints and partitions that an operator added. Nothing relies on
//!   the names of partitions where their bounds tell more.
//! - ATTACH reads the whole default partition once (for rows of the day) and blocks old events meanwhile. The default
//!   partition is small unless old logs are being imported.

use logweir_record::timestamp::{self, DAY_US};
use tokio_postgres::types::Oid;
use tokio_postgres::{Client, Error};

use super::connect::failed;
use super::ddl::{Relation, in_transaction, quoted};
use super::types::Time;
use crate::error::StoreError;

/// Rows per DELETE statement, and time for the statements of one step.
const DELETE_ROWS: u64 = 10_000;
const DELETE_FOR: std::time::Duration = std::time::Duration::from_secs(240);

/// Name of the default partition, unless another table has it.
const DEFAULT_NAME: &str = "logs_default";

/// The table `logs` as it is now.
pub(super) struct Logs {
    pub(super) oid: Oid,
    pub(super) table: Relation,
    pub(super) kind: LogsKind,
    /// The default partition, whatever its name.
    pub(super) default: Option<Relation>,
    /// For the partitions: ` TABLESPACE …`, or nothing.
    tablespace: String,
    server_version: i32,
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

/// A partition that is not the default one.
struct Partition {
    relation: Relation,
    is_plain: bool,
    from_us: i64,
    to_us: i64,
}

impl Logs {
    /// Reads the table that a flush writes to.
    pub(super) async fn read(client: &Client) -> Result<Self, StoreError> {
        let row = client
            .query_opt(
                "SELECT c.oid, n.nspname::text, c.relname::text, c.relkind = 'p', dn.nspname::text, d.relname::text, \
                 s.spcname::text, current_setting('server_version_num')::integer, \
                 EXISTS (SELECT FROM pg_extension WHERE extname = 'timescaledb') \
                 FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
                 LEFT JOIN pg_partitioned_table p ON p.partrelid = c.oid \
                 LEFT JOIN pg_class d ON d.oid = p.partdefid AND p.partdefid <> 0 \
                 LEFT JOIN pg_namespace dn ON dn.oid = d.relnamespace \
                 LEFT JOIN pg_tablespace s ON s.oid = c.reltablespace \
                 WHERE c.oid = to_regclass('logs')",
                &[],
            )
            .await
            .map_err(failed("reading the table logs"))?;
        let Some(row) = row else {
            return Err(StoreError::Systemic(
                "table logs was not found in search_path; it is made again when the next batch is written".to_owned(),
            ));
        };
        let relation = |schema: usize, name: usize| Some(Relation { schema: row.get(schema), name: row.get(name) });
        let kind = match (row.get(3), row.get(8)) {
            (true, _) => LogsKind::Partitioned,
            (false, true) => LogsKind::Hypertable,
            (false, false) => LogsKind::Plain,
        };
        let tablespace = row.get::<_, Option<String>>(6);
        Ok(Self {
            oid: row.get(0),
            table: Relation { schema: row.get(1), name: row.get(2) },
            kind,
            default: row.get::<_, Option<&str>>(5).and_then(|_| relation(4, 5)),
            tablespace: tablespace.map_or(String::new(), |name| format!(" TABLESPACE {}", quoted(&name))),
            server_version: row.get(7),
        })
    }

    /// The name of `name` in the schema of `logs`.
    fn beside(&self, name: &str) -> Relation {
        Relation { schema: self.table.schema.clone(), name: name.to_owned() }
    }

    /// Creates `name` as a table of the same shape, empty and not attached. Leaves out the constraints in `later`: those
    /// that existing rows may violate.
    async fn create_like(&self, client: &Client, name: &Relation, later: &[(String, String)]) -> Result<(), Error> {
        // Not INCLUDING ALL: ATTACH creates the indexes, and an identity column comes from the parent.
        let compression = if self.server_version >= 140_000 { " INCLUDING COMPRESSION" } else { "" };
        let mut sql = format!(
            "CREATE TABLE {name} (LIKE {} INCLUDING DEFAULTS INCLUDING CONSTRAINTS INCLUDING GENERATED INCLUDING STORAGE \
             INCLUDING STATISTICS INCLUDING COMMENTS{compression}){}",
            self.table, self.tablespace
        );
        for (constraint, _) in later {
            sql.push_str(&format!("; ALTER TABLE {name} DROP CONSTRAINT {}", quoted(constraint)));
        }
        client.batch_execute(&sql).await
    }

    /// The CHECK constraints that are NOT VALID, as (name, definition).
    async fn not_valid(&self, client: &Client) -> Result<Vec<(String, String)>, Error> {
        let rows = client
            .query(
                "SELECT conname::text, pg_get_constraintdef(oid) FROM pg_constraint \
                 WHERE conrelid = $1 AND contype = 'c' AND NOT convalidated",
                &[&self.oid],
            )
            .await?;
        Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
    }

    /// The columns that can be written, separated by commas.
    async fn columns(&self, client: &Client) -> Result<String, Error> {
        let rows = client
            .query(
                "SELECT attname::text FROM pg_attribute \
                 WHERE attrelid = $1 AND attnum > 0 AND NOT attisdropped AND attgenerated = '' ORDER BY attnum",
                &[&self.oid],
            )
            .await?;
        Ok(rows.iter().map(|row| quoted(row.get(0))).collect::<Vec<_>>().join(", "))
    }

    async fn partitions(&self, client: &Client) -> Result<Vec<Partition>, StoreError> {
        // The bounds are read as they were written in the same session, so its time zone and DateStyle do not matter.
        let rows = client
            .query(
                "SELECT n.nspname::text, c.relname::text, c.relkind = 'r', \
                 coalesce((regexp_match(b.bound, 'FROM [(]''([^'']*)'''))[1]::timestamptz, '-infinity'), \
                 coalesce((regexp_match(b.bound, 'TO [(]''([^'']*)'''))[1]::timestamptz, 'infinity') \
                 FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid JOIN pg_namespace n ON n.oid = c.relnamespace, \
                 LATERAL (SELECT pg_get_expr(c.relpartbound, c.oid) AS bound) b \
                 WHERE i.inhparent = $1 AND b.bound <> 'DEFAULT' ORDER BY 4",
                &[&self.oid],
            )
            .await
            .map_err(failed("listing the partitions of logs"))?;
        let partition = |row: &tokio_postgres::Row| Partition {
            relation: Relation { schema: row.get(0), name: row.get(1) },
            is_plain: row.get(2),
            from_us: row.get::<_, Time>(3).0,
            to_us: row.get::<_, Time>(4).0,
        };
        Ok(rows.iter().map(partition).collect())
    }

    /// The time of the newest record that is not in the future, by the database's clock.
    pub(super) async fn newest_us(&self, client: &Client) -> Result<Option<i64>, StoreError> {
        let sql = format!("SELECT max(ts) FROM {} WHERE ts <= now()", self.table);
        let reading = "reading the time of the newest record";
        let row = in_transaction(client, reading, client.query_one(&sql, &[])).await?;
        Ok(row.get::<_, Option<Time>>(0).map(|time| time.0))
    }
}

/// Returns `logs_pYYYYMMDD`.
pub(super) fn partition_name(day: i64) -> String {
    let (year, month, day) = timestamp::date(day);
    format!("logs_p{year:04}{month:02}{day:02}")
}

/// Whether a partition has a name that logweir gives.
fn is_daily(name: &str) -> bool {
    name.strip_prefix("logs_p").is_some_and(|day| day.len() == 8 && day.bytes().all(|byte| byte.is_ascii_digit()))
}

/// Creates the default partition if there is none, then the partitions of `days`. One that cannot be created does not
/// keep the others from being created.
pub(super) async fn make_partitions(
    client: &Client,
    mut logs: Logs,
    days: impl Iterator<Item = i64>,
) -> Result<(), StoreError> {
    let mut failures = Vec::new();
    if logs.default.is_none() {
        match make_default(client, &logs).await {
            Ok(default) => logs.default = Some(default),
            Err(error) => failures.push(error),
        }
    }
    let partitions = logs.partitions(client).await?;
    for day in days {
        // Also a partition of another size, or one whose name the operator chose.
        let (from_us, to_us) = (day * DAY_US, (day + 1) * DAY_US);
        if partitions.iter().any(|partition| partition.from_us < to_us && from_us < partition.to_us) {
            continue;
        }
        if let Err(error) = make_partition(client, &logs, day).await {
            failures.push(error);
        }
    }
    first(failures)
}

/// The first failure, with the number of the others.
fn first(failures: Vec<StoreError>) -> Result<(), StoreError> {
    let others = failures.len().saturating_sub(1);
    match failures.into_iter().next() {
        None => Ok(()),
        Some(StoreError::Systemic(text)) if others > 0 => {
            Err(StoreError::Systemic(format!("{text} (and {others} more of this kind)")))
        }
        Some(error) => Err(error),
    }
}

/// Creates the default partition under the first free name.
pub(super) async fn make_default(client: &Client, logs: &Logs) -> Result<Relation, StoreError> {
    const WHAT: &str = "creating a default partition of logs";
    let taken: Vec<String> = client
        .query(
            "SELECT c.relname::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
             WHERE n.nspname = $1 AND starts_with(c.relname::text, $2)",
            &[&logs.table.schema, &DEFAULT_NAME],
        )
        .await
        .map_err(failed(WHAT))?
        .iter()
        .map(|row| row.get(0))
        .collect();
    let names = std::iter::once(DEFAULT_NAME.to_owned()).chain((2..).map(|n| format!("{DEFAULT_NAME}_{n}")));
    let name = names.into_iter().find(|name| !taken.contains(name)).unwrap_or_default();
    let default = logs.beside(&name);
    in_transaction(client, WHAT, async {
        logs.create_like(client, &default, &[]).await?;
        let attach = format!("ALTER TABLE {} ATTACH PARTITION {default} DEFAULT", logs.table);
        client.batch_execute(&attach).await
    })
    .await?;
    tracing::warn!(table = %default, "the table logs had no default partition; created one");
    Ok(default)
}

async fn make_partition(client: &Client, logs: &Logs, day: i64) -> Result<(), StoreError> {
    let name = logs.beside(&partition_name(day));
    let exists: bool = client
        .query_one("SELECT to_regclass($1) IS NOT NULL", &[&name.to_string()])
        .await
        .map_err(failed("checking for a partition"))?
        .get(0);
    if exists {
        return Err(StoreError::Systemic(format!(
            "the table {name} exists, but is no partition of logs, so the records of its day stay in the default partition: \
             attach it, or rename it and logweir creates another"
        )));
    }
    let what = format!("creating partition {name}");
    let (from, to) = (timestamp::text(day * DAY_US), timestamp::text((day + 1) * DAY_US));
    let moved = in_transaction(client, &what, async {
        let later = logs.not_valid(client).await?;
        logs.create_like(client, &name, &later).await?;
        let mut moved = 0;
        if let Some(default) = &logs.default {
            // Locked before it is read, so that no row is inserted between the move and the ATTACH.
            client.batch_execute(&format!("LOCK TABLE {default} IN ACCESS EXCLUSIVE MODE")).await?;
            let of_day = format!("ts >= '{from}' AND ts < '{to}'");
            let found = client.query_one(&format!("SELECT EXISTS (SELECT FROM {default} WHERE {of_day})"), &[]).await?;
            // A DELETE that finds nothing still needs a replica identity if the table is published.
            if found.get(0) {
                let columns = logs.columns(client).await?;
                let sql = format!(
                    "WITH moved AS (DELETE FROM {default} WHERE {of_day} RETURNING {columns}) \
                     INSERT INTO {name} ({columns}) SELECT {columns} FROM moved"
                );
                moved = client.execute(&sql, &[]).await?;
            }
        }
        for (constraint, definition) in &later {
            let add = format!("ALTER TABLE {name} ADD CONSTRAINT {} {definition}", quoted(constraint));
            client.batch_execute(&add).await?;
        }
        let attach =
            format!("ALTER TABLE {} ATTACH PARTITION {name} FOR VALUES FROM ('{from}') TO ('{to}')", logs.table);
        client.batch_execute(&attach).await?;
        Ok(moved)
    })
    .await?;
    tracing::info!(name = %name, moved_rows = moved, "created a partition");
    Ok(())
}

/// Drops the partitions of days before `first_kept`. Only those that logweir has created, by their names and bounds: one
/// that an operator attached may be an archive.
pub(super) async fn drop_partitions(client: &Client, logs: &Logs, first_kept: i64) -> Result<(), StoreError> {
    let mut failures = Vec::new();
    for partition in logs.partitions(client).await? {
        let Partition { relation, is_plain, from_us, to_us } = &partition;
        let is_own = *is_plain && is_daily(&relation.name) && to_us - DAY_US == *from_us;
        if !is_own || *to_us > first_kept * DAY_US {
            continue;
        }
        let what = format!("dropping partition {relation}");
        let dropped = in_transaction(client, &what, async {
            // From the counters: counting the rows would read the whole partition.
            let sql = "SELECT coalesce(sum(records), 0)::bigint FROM log_volume WHERE minute >= $1 AND minute < $2";
            let rows = client.query_one(sql, &[&Time(*from_us), &Time(*to_us)]).await?.get::<_, i64>(0);
            client.batch_execute(&format!("DROP TABLE {relation}")).await?;
            Ok(rows.unsigned_abs())
        })
        .await;
        match dropped {
            Ok(rows) => {
                metrics::counter!("logweir_store_partitions_dropped_total").increment(1);
                metrics::counter!("logweir_store_retention_deleted_rows_total", "table" => "logs").increment(rows);
                tracing::info!(name = %relation, rows, "dropped an expired partition");
            }
            Err(error) => failures.push(error),
        }
    }
    first(failures)
}

/// Deletes rows of days before `first_kept`, a bounded number at a time.
pub(super) async fn delete_before(
    client: &Client,
    table: &Relation,
    column: &str,
    first_kept: i64,
) -> Result<(), StoreError> {
    let what = format!("deleting expired rows from {table}");
    let before = Time(first_kept * DAY_US);
    let sql = format!(
        "DELETE FROM {table} WHERE ctid = ANY (ARRAY(SELECT ctid FROM {table} WHERE {column} < $1 LIMIT {DELETE_ROWS}))"
    );
    let found = format!("SELECT EXISTS (SELECT FROM {table} WHERE {column} < $1)");
    let until = tokio::time::Instant::now() + DELETE_FOR;
    loop {
        let deleted = in_transaction(client, &what, async {
            // A DELETE that finds nothing still needs a replica identity if the table is published.
            match client.query_one(&found, &[&before]).await?.get(0) {
                true => client.execute(&sql, &[&before]).await,
                false => Ok(0),
            }
        })
        .await?;
        metrics::counter!("logweir_store_retention_deleted_rows_total", "table" => table.name.clone())
            .increment(deleted);
        if deleted < DELETE_ROWS {
            return Ok(());
        }
        if tokio::time::Instant::now() >= until {
            return Ok(()); // the next round continues
        }
    }
}

/// Gives the tables that maintenance deletes from a replica identity: without one, a publication of all tables makes
/// every DELETE fail. FULL, not a new column with a key, which would break the other side of such a publication.
pub(super) async fn set_replica_identity(client: &Client, logs: &Logs) -> Result<(), StoreError> {
    const WHAT: &str = "setting the replica identity of tables";
    let rows = client
        .query(
            "SELECT n.nspname::text, c.relname::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
             WHERE (c.oid = to_regclass('logweir_takeover') \
             OR c.oid = (SELECT partdefid FROM pg_partitioned_table WHERE partrelid = $1)) \
             AND (c.relreplident = 'n' OR c.relreplident = 'd' AND NOT EXISTS \
             (SELECT FROM pg_index x WHERE x.indrelid = c.oid AND x.indisprimary AND x.indisvalid))",
            &[&logs.oid],
        )
        .await
        .map_err(failed(WHAT))?;
    let mut failures = Vec::new();
    for row in rows {
        let table = Relation { schema: row.get(0), name: row.get(1) };
        let sql = format!("ALTER TABLE {table} REPLICA IDENTITY FULL");
        let done = in_transaction(client, WHAT, client.batch_execute(&sql)).await;
        failures.extend(done.err());
    }
    first(failures)
}

/// Deletes the takeovers that no journal can ask for any more.
pub(super) async fn prune_takeovers(client: &Client, kept: i64) -> Result<(), StoreError> {
    const OLD: &str =
        "FROM logweir_takeover t USING logweir_writer w WHERE w.writer_id = t.writer_id AND t.epoch <= w.epoch - $1";
    const ANY_OLD: &str = "SELECT EXISTS (SELECT FROM logweir_takeover t JOIN logweir_writer w USING (writer_id) \
        WHERE t.epoch <= w.epoch - $1)";
    in_transaction(client, "deleting old takeovers", async {
        if client.query_one(ANY_OLD, &[&kept]).await?.get(0) {
            client.execute(&format!("DELETE {OLD}"), &[&kept]).await?;
        }
        Ok(())
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_with_a_day_are_daily() {
        assert!(is_daily(&partition_name(20_000)));
        for other in ["logs_default", "logs_p2026", "logs_p202612011", "logs_p2026120a", "audit_p20261201"] {
            assert!(!is_daily(other), "{other}");
        }
    }
}
