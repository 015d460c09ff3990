//! The table `logs` as it is: how it is divided, and the table for late records beside it.
//!
//! Other relations can have that table's name: an operator's copy, an index, a view. Only [`find_late`] decides which is
//! logweir's, for flushes, queries, maintenance, grants and the schema. It counts by the mark that it was made with, and
//! by its columns. The mark is a constraint: a comment is lost in a dump without comments, and is anybody's to edit.

use std::sync::LazyLock;

use tokio_postgres::types::{Oid, Type};
use tokio_postgres::{Client, Error, GenericClient, Row};

use super::connect::failed;
use super::ddl::{Relation, quoted};
use super::home::Home;
use super::timescale::is_hypertable;
use crate::error::StoreError;

/// Name of the table beside a hypertable that takes records far from the present.
pub(super) const LATE: &str = "logweir_late";

/// What `logs` is called that had daily partitions before a hypertable took its place, until its records have moved.
pub(super) const FORMER: &str = "logweir_partitions";

/// The constraint by which [`LATE`] is known to be logweir's.
pub(super) const LATE_MARK: &str = "made_by_logweir";

/// The columns that a flush writes, with their types. A binary COPY into another type of the same width would succeed
/// silently: an id as a double, the version byte of a jsonb as the first character of a text.
pub(super) const COLUMNS: [(&str, Oid, &str); 7] = [
    ("id", 20, "bigint"),
    ("ts", 1184, "timestamp with time zone"),
    ("severity", 21, "smallint"),
    ("service", 25, "text"),
    ("host", 25, "text"),
    ("message", 25, "text"),
    ("attributes", 3802, "jsonb"),
];

/// Their names.
pub(super) const COLUMN_NAMES: &str = "id, ts, severity, service, host, message, attributes";

/// What is named [`LATE`] in the schema `$1`, or in that of the `logs` that search_path finds. Policies are compared as
/// text: where one of `logs` names its table, that of the other one names its own.
static LATE_SQL: LazyLock<String> = LazyLock::new(|| {
    let columns: Vec<String> = COLUMNS.iter().map(|(name, oid, _)| format!("('{name}', {oid})")).collect();
    let policies = |table: &str, expression: &str| {
        let text = |tree: &str| {
            format!("coalesce({}, '')", expression.replace('$', &format!("pg_get_expr(p.{tree}, p.polrelid)")))
        };
        format!(
            "(SELECT array_agg(ARRAY[p.polname::text, p.polcmd::text, p.polpermissive::text, \
             (SELECT array_agg(role ORDER BY role) FROM unnest(p.polroles) role)::text, {}, {}] ORDER BY p.polname) \
             FROM pg_policy p WHERE p.polrelid = {table}.oid)",
            text("polqual"),
            text("polwithcheck")
        )
    };
    format!(
        "SELECT n.nspname::text, l.relkind::text, \
         l.relkind = 'r' \
         AND EXISTS (SELECT FROM pg_constraint k WHERE k.conrelid = l.oid AND k.conname = '{LATE_MARK}') AND (SELECT count(*) FROM pg_attribute a \
         JOIN (VALUES {columns}, ('stored_at', 1184)) wanted (name, type) ON a.attname = wanted.name \
         AND a.atttypid = wanted.type::oid WHERE a.attrelid = l.oid AND NOT a.attisdropped) = {wanted}, \
         c.oid IS NULL OR (c.relrowsecurity, c.relforcerowsecurity) = (l.relrowsecurity, l.relforcerowsecurity) \
         AND {of_logs} IS NOT DISTINCT FROM {of_late}, \
         NOT l.relrowsecurity AND NOT EXISTS (SELECT FROM pg_policy p WHERE p.polrelid = l.oid), \
         l.relkind = 'r' AND row_security_active(l.oid), c.oid IS NOT NULL AND row_security_active(c.oid), \
         l.relkind = 'r' AND has_table_privilege(l.oid, 'INSERT') \
         FROM pg_namespace n JOIN pg_class l ON l.relnamespace = n.oid AND l.relname = '{LATE}' \
         LEFT JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = 'logs' \
         WHERE n.oid = (SELECT CASE WHEN $1 IS NULL \
         THEN (SELECT relnamespace FROM pg_class WHERE oid = to_regclass('logs')) \
         ELSE (SELECT oid FROM pg_namespace WHERE nspname = $1) END)",
        columns = columns.join(", "),
        wanted = COLUMNS.len() + 1,
        of_logs = policies("c", "$"),
        of_late = policies("l", &format!("regexp_replace($, '\\m{LATE}\\.', 'logs.', 'g')")),
    )
});

/// What is named [`LATE`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Beside {
    Nothing,
    /// The table for late records.
    Late(Late),
    /// Something else, of this kind.
    Foreign(&'static str),
}

/// The table for late records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Late {
    pub(super) table: Relation,
    /// Whether its row security is that of `logs`: otherwise who reads it can see what `logs` would not show.
    pub(super) is_protected_alike: bool,
    /// Whether it has no row security at all.
    pub(super) is_unprotected: bool,
    /// Whether row security applies to the current role, in it and in `logs`.
    pub(super) has_policies: bool,
    pub(super) logs_has_policies: bool,
    /// Whether the current role may insert.
    pub(super) may_insert: bool,
}

impl Beside {
    fn of(row: &Row) -> Self {
        if !row.get::<_, bool>(2) {
            return Self::Foreign(match row.get(1) {
                "r" => "a table",
                "p" => "a partitioned table",
                "i" | "I" => "an index",
                "v" => "a view",
                "m" => "a materialized view",
                "S" => "a sequence",
                _ => "a relation",
            });
        }
        Self::Late(Late {
            table: Relation { schema: row.get(0), name: LATE.to_owned() },
            is_protected_alike: row.get(3),
            is_unprotected: row.get(4),
            has_policies: row.get(5),
            logs_has_policies: row.get(6),
            may_insert: row.get(7),
        })
    }

    /// The table for late records, if it is that.
    pub(super) fn late(self) -> Option<Late> {
        match self {
            Self::Late(late) => Some(late),
            Self::Nothing | Self::Foreign(_) => None,
        }
    }
}

/// Looks for the table for late records in `schema`, or in that of the `logs` that search_path finds.
pub(super) async fn find_late(client: &impl GenericClient, schema: Option<&str>) -> Result<Beside, Error> {
    let row = client.query_typed_opt(&LATE_SQL, &[(&schema, Type::TEXT)]).await?;
    Ok(row.as_ref().map_or(Beside::Nothing, Beside::of))
}

/// How a snapshot sees the records divided into tables.
pub(super) struct Division {
    /// [`FORMER`], if it is there.
    pub(super) former: Option<Relation>,
    /// `logs`, if a hypertable can take its place at any moment.
    exchangeable: Option<Oid>,
    /// The partitions of `logs`.
    partitions: Option<Vec<Oid>>,
}

/// Looks for [`FORMER`] and the partitions of `logs` in `schema`, or in that of the `logs` that search_path finds.
pub(super) async fn find_division(client: &impl GenericClient, schema: Option<&str>) -> Result<Division, Error> {
    const SQL: &str = "SELECT n.nspname::text, \
        EXISTS (SELECT FROM pg_class f WHERE f.relnamespace = n.oid AND f.relname = $2 AND f.relkind = 'p'), \
        (SELECT c.oid FROM pg_class c WHERE c.relnamespace = n.oid AND c.relname = 'logs' AND c.relkind = 'p' \
        AND EXISTS (SELECT FROM pg_extension WHERE extname = 'timescaledb')), \
        (SELECT array_agg(i.inhrelid ORDER BY i.inhrelid) FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhparent \
        WHERE c.relnamespace = n.oid AND c.relname = 'logs' AND c.relkind = 'p') \
        FROM pg_namespace n WHERE n.oid = (SELECT CASE WHEN $1 IS NULL \
        THEN (SELECT relnamespace FROM pg_class WHERE oid = to_regclass('logs')) \
        ELSE (SELECT oid FROM pg_namespace WHERE nspname = $1) END)";
    let row = client.query_typed_opt(SQL, &[(&schema, Type::TEXT), (&FORMER, Type::TEXT)]).await?;
    let Some(row) = row else { return Ok(Division { former: None, exchangeable: None, partitions: None }) };
    let former = row.get::<_, bool>(1).then(|| Relation { schema: row.get(0), name: FORMER.to_owned() });
    Ok(Division { former, exchangeable: row.get(2), partitions: row.get(3) })
}

impl Division {
    /// Whether a hypertable took the place of `logs` between the snapshot and what was read since: a name stands for the
    /// table that has it now, whose records the snapshot does not see.
    pub(super) async fn was_exchanged(&self, client: &impl GenericClient, logs: &str) -> Result<bool, Error> {
        let Some(before) = self.exchangeable else { return Ok(false) };
        let now = client.query_typed_one("SELECT to_regclass($1)::oid", &[(&logs, Type::TEXT)]).await?;
        Ok(now.get::<_, Option<Oid>>(0) != Some(before))
    }

    /// Whether `logs` got other partitions between the snapshot and what was read since. A plan leaves out the default
    /// partition for the times of a new one, although it is there that the snapshot sees the rows that have moved.
    pub(super) async fn has_other_partitions(&self, client: &impl GenericClient, logs: &str) -> Result<bool, Error> {
        const SQL: &str = "SELECT array_agg(relid::oid ORDER BY relid::oid) \
            FROM pg_partition_tree(to_regclass($1)) WHERE level = 1";
        let Some(before) = &self.partitions else { return Ok(false) };
        let now = client.query_typed_one(SQL, &[(&logs, Type::TEXT)]).await?;
        Ok(now.get::<_, Option<Vec<Oid>>>(0).as_ref() != Some(before))
    }
}

/// The table `logs` as it is now.
pub(super) struct Logs {
    pub(super) oid: Oid,
    pub(super) table: Relation,
    pub(super) kind: LogsKind,
    /// The default partition, whatever its name.
    pub(super) default: Option<Relation>,
    /// The table for late records, if it is there.
    pub(super) late: Option<Relation>,
    /// [`FORMER`], if it is there; of that, `logs`.
    pub(super) former: Option<Relation>,
    /// For the partitions: ` TABLESPACE …`, or nothing.
    pub(super) tablespace: String,
    pub(super) server_version: i32,
    /// Tables can be distributed over other servers.
    pub(super) has_citus: bool,
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
        let Some(logs) = Self::read_table(client, home, "logs").await? else {
            return Err(StoreError::Systemic(format!(
                "table logs was not found in schema {home}; it is created when a lane connects again"
            )));
        };
        Ok(logs)
    }

    /// Reads [`FORMER`].
    pub(super) async fn read_former(client: &Client, home: &Home) -> Result<Option<Self>, StoreError> {
        let former = Self::read_table(client, home, FORMER).await?;
        let former = former.filter(|former| former.kind == LogsKind::Partitioned);
        Ok(former.map(|former| Self { former: Some(home.table("logs")), ..former }))
    }

    async fn read_table(client: &Client, home: &Home, name: &str) -> Result<Option<Self>, StoreError> {
        let row = client
            .query_opt(
                "SELECT c.oid, n.nspname::text, c.relname::text, c.relkind = 'p', dn.nspname::text, d.relname::text, \
                 s.spcname::text, current_setting('server_version_num')::integer, \
                 to_regclass('pg_catalog.pg_dist_partition') IS NOT NULL \
                 FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
                 LEFT JOIN pg_partitioned_table p ON p.partrelid = c.oid \
                 LEFT JOIN pg_class d ON d.oid = p.partdefid AND p.partdefid <> 0 \
                 LEFT JOIN pg_namespace dn ON dn.oid = d.relnamespace \
                 LEFT JOIN pg_tablespace s ON s.oid = c.reltablespace \
                 WHERE n.nspname = $1 AND c.relname = $2",
                &[&home.name(), &name],
            )
            .await
            .map_err(failed("reading the table logs"))?;
        let Some(row) = row else { return Ok(None) };
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
        let beside = find_late(client, Some(home.name())).await.map_err(failed("looking for late records"))?;
        let division =
            find_division(client, Some(home.name())).await.map_err(failed("looking for former partitions"))?;
        Ok(Some(Self {
            oid: row.get(0),
            late: beside.late().map(|late| late.table),
            former: division.former,
            table,
            kind,
            default: row.get::<_, Option<&str>>(5).and_then(|_| relation(4, 5)),
            tablespace: tablespace.map_or(String::new(), |name| format!(" TABLESPACE {}", quoted(&name))),
            server_version: row.get(7),
            has_citus: row.get(8),
        }))
    }

    /// The table `name` in the schema of `logs`.
    pub(super) fn beside(&self, name: &str) -> Relation {
        Relation { schema: self.table.schema.clone(), name: name.to_owned() }
    }

    /// The tables that have records beside this one.
    pub(super) fn others(&self) -> impl Iterator<Item = &Relation> {
        self.late.iter().chain(&self.former)
    }

    /// What contains all records, with these columns, for FROM.
    pub(super) fn all(&self, columns: &str) -> String {
        union_all(columns, &self.table.to_string(), self.others().map(Relation::to_string))
    }
}

/// The records of all tables, for FROM. They are read in one snapshot, so a record that moves is seen once.
pub(super) fn union_all(columns: &str, logs: &str, others: impl IntoIterator<Item = String>) -> String {
    let others: String = others.into_iter().map(|table| format!(" UNION ALL SELECT {columns} FROM {table}")).collect();
    match others.is_empty() {
        true => logs.to_owned(),
        false => format!("(SELECT {columns} FROM {logs}{others}) logs"),
    }
}

/// The order of the records of a page, by `direction` (`DESC`: newest first). Also of what is compressed: a page then
/// decompresses what it shows, and sorts nothing.
pub(super) fn page_order(direction: &str) -> String {
    format!("ts {direction}, id {direction}")
}
