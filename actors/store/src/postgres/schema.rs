//! The tables that a flush needs: whether they are there, and how they are made.
//!
//! - Looking costs two short queries, takes no lock and needs no privilege beyond reading. Only if something is missing
//!   is it created, in one transaction, under an advisory lock that ends with it. The key of the lock contains the
//!   schema: two logweirs in one database do not wait for each other.
//! - A table that was dropped while logweir runs is made again, unless that would store records twice.
//! - Where they are once this process has found them, they are looked for from then on, whatever `search_path` says
//!   later; unless none is left there that identifies records.
//! - Everything else that makes the tables better is [maintenance](super::maintain).

use std::collections::HashMap;
use std::time::Duration;

use tokio_postgres::error::SqlState;
use tokio_postgres::types::{Oid, ToSql, Type};
use tokio_postgres::{Client, Error};

use super::connect::{Connector, failed, within};
use super::ddl::{Relation, begin, ddl_failure, give_to_owner, optional, quoted};
use super::home::{Home, IDENTITY, KnownHome};
use super::idempotency;
use super::logs::{Beside, COLUMNS, Logs, find_late};
use super::partition::make_default;
use super::timescale::{Installed, installed, is_hypertable};
use super::{clock, late, takeover_digest, view};
use crate::error::StoreError;
use crate::lane::ORDINAL_BITS;
use crate::protocol::migrations::{APPLIED_SQL, Applied, CREATE_HISTORY_SQL, HISTORY, Migration, pending};
use logweir_engine::clock::wall_us;

const MIGRATIONS: &[Migration] = &[Migration {
    version: 1,
    name: "log_store",
    sql: include_str!("../sql/postgres/V1__log_store.sql"),
    checksum: 10_386_330_646_520_606_781,
}];

/// The tables that a flush needs, in the order in which they are created.
const TABLES: [&str; 7] = [
    "logweir_writer",
    "logweir_takeover",
    "logweir_lane",
    "logweir_replayed",
    "logweir_dead_letter",
    "log_volume",
    "logs",
];

/// The names of the tables that are migrated.
pub(super) fn tables() -> impl Iterator<Item = &'static str> {
    TABLES.into_iter().chain([HISTORY])
}

/// Attempts to get the lock, each waiting up to five seconds, before creating the tables fails.
const ATTEMPTS_MAX: u32 = 4;

/// Limits of the transaction that creates tables. Its session, and with it the lock, ends when its owner is frozen.
const BEGIN_SQL: &str = "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL lock_timeout = '5s'; \
    SET LOCAL statement_timeout = '60s'; \
    SET LOCAL idle_in_transaction_session_timeout = '15s'";

/// Waits for an advisory lock until the end of the transaction.
const LOCK_SQL: &str = "SELECT pg_advisory_xact_lock(hashtextextended($1, 0))";

/// Terminates the sessions of logweir that hold an advisory lock and wait for their client: a frozen process, or one
/// whose network is gone.
const END_STALLED_SQL: &str = "SELECT a.pid, a.application_name, pg_terminate_backend(a.pid) \
    FROM pg_locks l JOIN pg_stat_activity a USING (pid) \
    WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1 AND a.datname = current_database() \
    AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()) \
    AND ((l.classid::bigint << 32) | l.objid::bigint) = hashtextextended($1, 0) \
    AND starts_with(a.application_name, 'logweir/') AND a.pid <> pg_backend_pid() \
    AND (a.state LIKE 'idle%' OR a.wait_event = 'ClientRead') \
    AND a.state_change < clock_timestamp() - make_interval(secs => $2)";

/// What is in the database.
pub(super) struct Found {
    /// The schema that is known, or those of search_path that exist, in its order.
    path: Vec<String>,
    /// The tables that are found there, [`HISTORY`] included, with their schemas.
    tables: HashMap<&'static str, String>,
    /// The migrations that were applied.
    applied: Vec<Applied>,
    /// `logs` is TimescaleDB's.
    is_hypertable: bool,
    /// What is named as the table for late records.
    beside: Beside,
    /// `logs` is partitioned and has no default partition.
    lacks_default: bool,
}

/// What is to be created.
#[derive(Debug, PartialEq, Eq)]
struct Plan {
    schema: String,
    history: bool,
    tables: Vec<&'static str>,
}

/// The tables in the schema `$2` if that has one of `$3`, otherwise in the schemas of `search_path`.
const LOOK_SQL: &str = "WITH path AS (SELECT CASE WHEN EXISTS \
    (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = $2 AND c.relname = ANY ($3)) \
    THEN ARRAY[$2] ELSE current_schemas(false)::text[] END AS schemas) \
    SELECT path.schemas, t.name, c.schema, c.lacks_default FROM path, unnest($1) AS t (name) LEFT JOIN LATERAL \
    (SELECT n.nspname::text AS schema, c.relkind = 'p' AND NOT EXISTS \
        (SELECT FROM pg_partitioned_table p WHERE p.partrelid = c.oid AND p.partdefid <> 0) AS lacks_default \
    FROM unnest(path.schemas) WITH ORDINALITY AS s (name, place) JOIN pg_namespace n ON n.nspname = s.name \
    JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = t.name ORDER BY s.place LIMIT 1) c ON true";

/// What a process stores in.
pub(super) struct Prepared {
    pub(super) home: Home,
    /// `logs` has chunks, and another table is there for records far from the present.
    pub(super) is_hypertable: bool,
}

/// Makes the tables that are missing.
pub(super) async fn prepare(client: &Client, known: &KnownHome, mut found: Found) -> Result<Prepared, StoreError> {
    if let Some(plan) = plan(&found)? {
        let lock = Lock { schema: &plan.schema, what: "creating the tables" };
        lock.with(client, create_locked(client, known)).await?;
        found = look(client, known).await?;
    }
    let Some(home) = found.tables.get("logs").map(|schema| Home::new(schema)) else {
        return Err(StoreError::Transient("the tables were dropped while they were being looked for".to_owned()));
    };
    known.set(home.clone());
    if found.lacks_default {
        // Rows without a partition would fail. Anything else about partitions is maintenance.
        let made = make_default(client, &Logs::read(client, &home).await?).await;
        if let Err(error) = made
            // Every lane tries it, and one is the first.
            && look(client, known).await?.lacks_default
        {
            tracing::warn!(%error, "records that have no partition of their own will be rejected");
        }
    }
    if found.is_hypertable
        && let Err(error) = ensure_late(client, &home, &found.beside).await
        && known.is_news(&error.to_string())
    {
        tracing::warn!(%error, "cannot create the table for records far from the present; they go to table logs");
    }
    Ok(Prepared { home, is_hypertable: found.is_hypertable })
}

/// Looks after the table for late records of a hypertable: makes it if it is missing, and gives it the row security of
/// `logs`.
pub(super) async fn keep_late(client: &Client, home: &Home, logs: &Logs) -> Result<(), StoreError> {
    let beside = find_late(client, Some(home.name())).await.map_err(failed("looking for late records"))?;
    match beside {
        Beside::Late(late) => late::keep_protected(client, logs, &late).await,
        missing => ensure_late(client, home, &missing).await,
    }
}

/// Makes the table for late records if it is missing.
async fn ensure_late(client: &Client, home: &Home, beside: &Beside) -> Result<(), StoreError> {
    let make = async {
        // Again, under the lock: another process may have been faster.
        let beside = find_late(client, Some(home.name())).await.map_err(failed("looking for late records"))?;
        match beside {
            Beside::Nothing => late::make(client, &Logs::read(client, home).await?).await,
            Beside::Late(_) => Ok(()),
            Beside::Foreign(kind) => Err(late::foreign(home, kind)),
        }
    };
    match beside {
        Beside::Late(_) => Ok(()),
        Beside::Foreign(kind) => Err(late::foreign(home, kind)),
        Beside::Nothing => Lock { schema: home.name(), what: late::CREATING }.with(client, make).await,
    }
}

/// Reads what is there.
pub(super) async fn look(client: &Client, known: &KnownHome) -> Result<Found, StoreError> {
    let names: Vec<&str> = tables().collect();
    let known = known.get();
    let parameters: [(&(dyn ToSql + Sync), Type); 3] =
        [(&names, Type::TEXT_ARRAY), (&known.as_ref().map(Home::name), Type::TEXT), (&&IDENTITY[..], Type::TEXT_ARRAY)];
    let rows = client.query_typed(LOOK_SQL, &parameters).await.map_err(failed("looking for the tables"))?;
    let mut found = Found {
        path: rows.first().map_or_else(Vec::new, |row| row.get(0)),
        tables: HashMap::new(),
        applied: Vec::new(),
        is_hypertable: false,
        beside: Beside::Nothing,
        lacks_default: false,
    };
    for row in &rows {
        let (name, schema): (&str, Option<String>) = (row.get(1), row.get(2));
        let (Some(name), Some(schema)) = (tables().find(|known| *known == name), schema) else { continue };
        if name == "logs" {
            found.lacks_default = row.get(3);
        }
        found.tables.insert(name, schema);
    }
    drop_foreign(&mut found)?;
    if let Some(schema) = found.tables.get("logs") {
        let logs = Relation { schema: schema.clone(), name: "logs".to_owned() };
        found.is_hypertable = is_hypertable(client, &logs).await.map_err(failed("looking for hypertables"))?;
    }
    // Also beside tables of which `logs` is missing.
    if let Some(schema) = found.tables.values().next() {
        found.beside = find_late(client, Some(schema)).await.map_err(failed("looking for late records"))?;
    }
    if let Some(schema) = found.tables.get(HISTORY) {
        let rows = client
            .query_typed(&of_history(APPLIED_SQL, schema), &[])
            .await
            .map_err(|error| ddl_failure("reading the migrations", &error))?;
        found.applied =
            rows.iter().map(|row| Applied { version: row.get(0), name: row.get(1), checksum: row.get(2) }).collect();
    }
    Ok(found)
}

/// The statement `sql` of the migrations, which names [`HISTORY`] without its schema.
fn of_history(sql: &str, schema: &str) -> String {
    sql.replace(HISTORY, &Home::new(schema).table(HISTORY).to_string())
}

/// Forgets the tables that are not in the schema of those that identify records: they belong to another logweir, and
/// search_path finds them because logweir's own are missing. Pure.
///
/// # Errors
/// They come before the schema of logweir's own tables, which they hide.
fn drop_foreign(found: &mut Found) -> Result<(), StoreError> {
    let path = found.path.clone();
    let place = |schema: &String| path.iter().position(|other| other == schema);
    let identity = IDENTITY.into_iter().filter_map(|name| found.tables.get(name));
    let Some(home) = identity.min_by_key(|schema| place(schema)).cloned() else { return Ok(()) };
    let hidden = found.tables.iter().find(|(_, schema)| place(schema) < place(&home));
    if let Some((name, schema)) = hidden {
        return Err(StoreError::Systemic(format!(
            "search_path finds table {name} in schema {schema}, but the tables that identify records in schema {home}: let the \
             search_path of the role or of database.url (options=-c%20search_path=SCHEMA) name only the one that is \
             logweir's"
        )));
    }
    found.tables.retain(|_, schema| *schema == home);
    found.lacks_default &= found.tables.contains_key("logs");
    Ok(())
}

/// Decides what to create; `None` if everything is there. Pure.
fn plan(found: &Found) -> Result<Option<Plan>, StoreError> {
    let missing = |name: &&'static str| !found.tables.contains_key(name);
    let pending = pending(MIGRATIONS, &found.applied)?;
    let lacking: Vec<&'static str> = TABLES.into_iter().filter(missing).collect();
    if lacking.is_empty() && pending.is_empty() {
        return Ok(None);
    }
    // Beside the tables that are there already, not in the first schema of search_path.
    let owned = IDENTITY.into_iter().find_map(|name| found.tables.get(name));
    let home = found.tables.get(HISTORY).or(owned).or(found.path.first());
    let Some(schema) = home.cloned() else {
        return Err(StoreError::Systemic(
            "no schema of search_path exists: create it (CREATE SCHEMA …), or name another one with \
             ?options=-c%20search_path=SCHEMA in database.url"
                .to_owned(),
        ));
    };
    let history = !pending.is_empty();
    if history && !IDENTITY.iter().all(|name| found.tables.contains_key(name)) {
        // Not made by logweir, or not all of it is left.
        let foreign = TABLES.into_iter().find(|name| found.tables.get(name) == Some(&schema));
        if let Some(name) = foreign {
            return Err(StoreError::Systemic(format!(
                "schema {schema} contains a table {name} that logweir did not create, since it has no table {HISTORY}: give \
                 logweir its own schema with CREATE SCHEMA logweir AUTHORIZATION ROLE, and append \
                 ?options=-c%20search_path=logweir to database.url"
            )));
        }
        return Ok(Some(Plan { schema, history, tables: TABLES.to_vec() }));
    }
    Ok(Some(Plan { schema, history, tables: lacking }))
}

/// The advisory lock under which the tables of a schema are created.
struct Lock<'l> {
    schema: &'l str,
    what: &'static str,
}

impl Lock<'_> {
    /// Does `work` in one transaction, under the lock.
    async fn with(
        &self,
        client: &Client,
        work: impl Future<Output = Result<(), StoreError>>,
    ) -> Result<(), StoreError> {
        self.take(client).await?;
        let done = match work.await {
            Ok(()) => client.batch_execute("COMMIT").await.map_err(|error| ddl_failure(self.what, &error)),
            Err(error) => Err(error),
        };
        if done.is_err() {
            let _ = client.batch_execute("ROLLBACK").await;
        }
        done
    }

    /// Begins the transaction.
    async fn take(&self, client: &Client) -> Result<(), StoreError> {
        let key = format!("logweir/prepare/{}", self.schema);
        for _ in 0..ATTEMPTS_MAX {
            begin(client, BEGIN_SQL).await.map_err(failed(self.what))?;
            let Err(error) = client.execute(LOCK_SQL, &[&key]).await else { return Ok(()) };
            client.batch_execute("ROLLBACK").await.map_err(failed(self.what))?;
            if error.code() != Some(&SqlState::LOCK_NOT_AVAILABLE) {
                return Err(failed("waiting for another process to create the tables")(error));
            }
            end_stalled(client, &key, Duration::from_secs(3)).await?;
        }
        Err(StoreError::Transient(format!(
            "another session has been creating the tables of schema {} for too long; see pg_stat_activity",
            self.schema
        )))
    }
}

/// Terminates holders of the advisory lock `key` that have waited for their clients for `stalled`.
pub(super) async fn end_stalled(client: &Client, key: &str, stalled: Duration) -> Result<(), StoreError> {
    let ended = client
        .query_typed(END_STALLED_SQL, &[(&key, Type::TEXT), (&stalled.as_secs_f64(), Type::FLOAT8)])
        .await
        .map_err(failed("terminating a frozen session"))?;
    for row in ended {
        let (pid, name): (i32, String) = (row.get(0), row.get(1));
        tracing::warn!(pid, name, "terminated a session of a frozen process that held the lock on the schema");
        metrics::counter!("logweir_store_terminated_sessions_total").increment(1);
    }
    Ok(())
}

async fn create_locked(client: &Client, known: &KnownHome) -> Result<(), StoreError> {
    let what = "creating the tables";
    let failed = |error: Error| ddl_failure(what, &error);
    // Again, under the lock: another process may have been faster.
    let found = look(client, known).await?;
    let Some(plan) = plan(&found)? else { return Ok(()) };
    // Beside those that are there, but types and functions of extensions are still found.
    client
        .execute(
            "SELECT set_config('search_path', concat_ws(', ', quote_ident($1), nullif(current_setting('search_path'), ''), \
             (SELECT quote_ident(n.nspname) FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace \
             WHERE e.extname = 'timescaledb')), true)",
            &[&plan.schema],
        )
        .await
        .map_err(failed)?;
    check_identity(client, &found, &plan).await?;
    if !found.tables.contains_key(HISTORY) {
        client.batch_execute(CREATE_HISTORY_SQL).await.map_err(failed)?;
    }
    for name in &plan.tables {
        client.batch_execute(statements(name)).await.map_err(failed)?;
    }
    if plan.tables.contains(&"logweir_takeover") {
        client.batch_execute(takeover_digest::ADD_SQL).await.map_err(failed)?;
    }
    give_to_owner_of_the_rest(client, &found, &plan).await.map_err(failed)?;
    if plan.tables.contains(&"logs") && found.tables.contains_key("log_volume") {
        // It counts records that are gone with the table, and late records, which are not.
        let late = found.beside.late().map(|late| format!("; {}", count_again_sql(&late.table)));
        let sql = format!("TRUNCATE log_volume{}", late.unwrap_or_default());
        optional(client, &sql).await.map_err(failed)?;
    }
    if plan.history {
        for migration in pending(MIGRATIONS, &found.applied)? {
            client.batch_execute(&migration.record_sql(wall_us())).await.map_err(failed)?;
        }
    }
    if plan.tables.len() == TABLES.len() {
        // The time is trusted before the first record can have a wrong one.
        client.batch_execute(&clock::begin_sql(wall_us())).await.map_err(failed)?;
        client.batch_execute(&idempotency::create_sql()).await.map_err(failed)?;
        optional(client, &view::create_sql(&quoted(&plan.schema), &[])).await.map_err(failed)?;
    } else if !plan.tables.is_empty() {
        tracing::warn!(
            tables = plan.tables.join(", "),
            schema = plan.schema,
            "tables were missing; created them again"
        );
    }
    Ok(())
}

/// Gives the tables that were created again to the owner of those that are there.
async fn give_to_owner_of_the_rest(client: &Client, found: &Found, plan: &Plan) -> Result<(), Error> {
    const WITH_PARTITIONS: &str = "SELECT n.nspname::text, c.relname::text FROM unnest($1::text[]) AS t (name) \
        JOIN pg_class c ON c.oid = to_regclass(t.name) \
        OR c.oid IN (SELECT relid FROM pg_partition_tree(to_regclass(t.name))) \
        JOIN pg_namespace n ON n.oid = c.relnamespace";
    let Some((sibling, schema)) = found.tables.iter().next() else { return Ok(()) };
    let sibling = Home::new(schema).table(sibling);
    let history = if found.tables.contains_key(HISTORY) { None } else { Some(HISTORY) };
    let created: Vec<&str> = plan.tables.iter().copied().chain(history).collect();
    for row in client.query(WITH_PARTITIONS, &[&created]).await? {
        let table = Relation { schema: row.get(0), name: row.get(1) };
        give_to_owner(client, &table, &sibling).await?;
    }
    Ok(())
}

/// Refuses to create the tables that identify records while there are records: their ids would be used again, and what
/// journals still have would be stored twice.
async fn check_identity(client: &Client, found: &Found, plan: &Plan) -> Result<(), StoreError> {
    let lacking: Vec<&str> = IDENTITY.into_iter().filter(|name| plan.tables.contains(name)).collect();
    if lacking.is_empty() {
        return Ok(());
    }
    let own = |name: &'static str| {
        let schema = found.tables.get(name).filter(|_| !plan.tables.contains(&name))?;
        Some(Relation { schema: schema.clone(), name: name.to_owned() })
    };
    let late = found.beside.clone().late().map(|late| late.table);
    for table in
        ["logs", "logweir_dead_letter", "logweir_lane", "logweir_writer"].into_iter().filter_map(own).chain(late)
    {
        let name = &table.name;
        let rows: bool = client
            .query_one(&format!("SELECT EXISTS (SELECT 1 FROM {table})"), &[])
            .await
            .map_err(failed("looking for records"))?
            .get(0);
        if rows {
            return Err(StoreError::Systemic(format!(
                "{} missing from schema {}, but {name} has rows: creating what is missing would use the ids of records again and \
                 store what the journals still have twice. Restore it from a backup; or keep these tables as they are and \
                 give logweir a schema of its own: CREATE SCHEMA logweir, and append \
                 ?options=-c%20search_path=logweir to database.url",
                match lacking[..] {
                    [one] => format!("table {one} is"),
                    _ => format!("tables {} are", lacking.join(" and ")),
                },
                plan.schema
            )));
        }
    }
    Ok(())
}

/// The statements that create `table`: its paragraph of the migration.
fn statements(table: &str) -> &'static str {
    let create = format!("CREATE TABLE {table} (");
    MIGRATIONS[0].sql.split("\n\n").find(|paragraph| paragraph.contains(&create)).unwrap_or_default()
}

/// Whether `logs` is to be created, and TimescaleDB can be used for it but is not yet an extension of this database.
pub(super) async fn lacks_timescale(client: &Client, known: &KnownHome) -> Result<bool, StoreError> {
    if known.get().is_some() {
        return Ok(false);
    }
    let looking = failed("looking for TimescaleDB");
    let logs = client.query_typed_one("SELECT to_regclass('logs') IS NOT NULL", &[]).await.map_err(&looking)?;
    if logs.get(0) {
        return Ok(false);
    }
    let installed = installed(client).await.map_err(&looking)?;
    if installed == Installed::NotPreloaded {
        tracing::info!(
            "TimescaleDB is installed, but shared_preload_libraries does not name it; using daily partitions"
        );
    }
    Ok(installed == Installed::Preloaded)
}

/// Creates the extension, on a connection of its own: a server that has not preloaded it ends the session. Whatever
/// fails, daily partitions are used.
pub(super) async fn create_timescale(connector: &Connector) {
    const LIMIT: Duration = Duration::from_secs(30);
    let created = within(LIMIT, "creating the extension timescaledb", async {
        let connection = connector.connect("logweir/extension").await?;
        let sql = "CREATE EXTENSION IF NOT EXISTS timescaledb";
        connection.client.batch_execute(sql).await.map_err(failed("creating the extension timescaledb"))
    });
    if let Err(error) = created.await {
        tracing::warn!(%error, "TimescaleDB is installed, but its extension cannot be created; using daily partitions");
    }
}

/// The statements that create every table, for administrators who want to run them themselves.
pub(super) fn sql() -> String {
    let mut sql = format!("{CREATE_HISTORY_SQL};\n\n");
    for migration in MIGRATIONS {
        sql.push_str(migration.sql.trim_end());
        sql.push_str(&format!("\n\n{};\n", migration.record_sql(wall_us())));
    }
    let (clock, keys) = (clock::begin_sql(wall_us()), idempotency::create_sql());
    sql.push_str(&format!("\n{};\n\n{clock}\n\n{keys}\n\n{}\n", takeover_digest::ADD_SQL, late_sql()));
    sql
}

/// The statements that create what maintenance makes beside the tables.
fn late_sql() -> String {
    format!(
        "DO $do$\nBEGIN\n    IF EXISTS (SELECT FROM pg_extension WHERE extname = 'timescaledb') THEN\n{}\n{}\n    \
         ELSE\n{}\n    END IF;\nEND\n$do$;",
        late::create_sql(),
        view::create_sql_here(true),
        view::create_sql_here(false)
    )
}

/// Counts the records of a table, in addition to what is counted.
fn count_again_sql(table: &Relation) -> String {
    format!(
        "INSERT INTO log_volume (minute, service, severity, lane_id, records) \
         SELECT date_bin('1 minute', ts, '2000-01-01 00:00Z'), service, severity, (id >> {ORDINAL_BITS})::integer, \
         count(*) FROM {table} GROUP BY 1, 2, 3, 4"
    )
}

/// Checks that the tables are there (or makes them), and that `logs` has the columns that a flush writes. Returns where
/// they are.
pub(super) async fn check_columns(client: &Client, known: &KnownHome) -> Result<Prepared, StoreError> {
    let prepared = prepare(client, known, look(client, known).await?).await?;
    let home = &prepared.home;
    let rows = client
        .query_typed(
            "SELECT attname::text, atttypid, format_type(atttypid, NULL) FROM pg_attribute \
             WHERE attrelid = to_regclass($1) AND attnum > 0 AND NOT attisdropped",
            &[(&home.table("logs").to_string(), Type::TEXT)],
        )
        .await
        .map_err(failed("reading the columns of table logs"))?;
    let found: HashMap<String, (Oid, String)> = rows.iter().map(|row| (row.get(0), (row.get(1), row.get(2)))).collect();
    // By the types' numbers: their names depend on settings such as quote_all_identifiers.
    let wrong = |&(name, expected, label): &(&str, Oid, &str)| match found.get(name) {
        Some((kind, _)) if *kind == expected => None,
        Some((_, kind)) => Some(format!("{name} is {kind}, expected {label}")),
        None => Some(format!("{name} ({label}) is missing")),
    };
    let wrong: Vec<String> = COLUMNS.iter().filter_map(wrong).collect();
    match wrong.is_empty() {
        true => Ok(prepared),
        false => Err(StoreError::Systemic(format!(
            "table logs was changed: {}; change it back (ALTER TABLE logs …)",
            wrong.join(", ")
        ))),
    }
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
    fn each_table_has_its_own_paragraph_of_the_migration() {
        let joined: Vec<&str> = TABLES.iter().map(|name| statements(name)).collect();
        assert!(joined.iter().all(|paragraph| !paragraph.is_empty()));
        assert_eq!(joined.iter().map(|paragraph| paragraph.matches("CREATE TABLE ").count()).sum::<usize>(), 10);
        assert_eq!(MIGRATIONS[0].sql.trim_end(), joined.join("\n\n").trim_end(), "in this order, and nothing else");
    }

    fn found(tables: &[&'static str], applied: bool) -> Found {
        let migration = &MIGRATIONS[0];
        let applied = applied.then(|| Applied {
            version: 1,
            name: migration.name.to_owned(),
            checksum: migration.checksum.to_string(),
        });
        let tables = tables.iter().copied().chain(applied.iter().map(|_| HISTORY));
        Found {
            path: vec!["first".to_owned(), "home".to_owned()],
            tables: tables.map(|name| (name, "home".to_owned())).collect(),
            applied: applied.into_iter().collect(),
            is_hypertable: false,
            beside: Beside::Nothing,
            lacks_default: false,
        }
    }

    #[test]
    fn what_is_missing_is_created_beside_the_rest() {
        assert_eq!(plan(&found(&TABLES, true)).unwrap(), None);
        let all = plan(&found(&[], false)).unwrap().unwrap();
        assert_eq!(all, Plan { schema: "first".to_owned(), history: true, tables: TABLES.to_vec() });
        for lost in TABLES {
            let rest: Vec<_> = TABLES.into_iter().filter(|name| *name != lost).collect();
            let plan = plan(&found(&rest, true)).unwrap().unwrap();
            assert_eq!(plan, Plan { schema: "home".to_owned(), history: false, tables: vec![lost] });
        }
        let history = plan(&found(&TABLES, false)).unwrap().unwrap();
        assert_eq!(history, Plan { schema: "home".to_owned(), history: true, tables: vec![] });
        for lost in TABLES {
            let rest: Vec<_> = TABLES.into_iter().filter(|name| *name != lost).collect();
            let plan = plan(&found(&rest, false));
            if IDENTITY.contains(&lost) {
                assert!(plan.unwrap_err().to_string().contains("did not create"), "{lost}");
            } else {
                let expected = Plan { schema: "home".to_owned(), history: true, tables: vec![lost] };
                assert_eq!(plan.unwrap(), Some(expected));
            }
        }
    }

    #[test]
    fn tables_of_another_logweir_do_not_stand_in_for_missing_ones() {
        let mut found = found(&TABLES, true);
        found.path = vec!["home".to_owned(), "public".to_owned()];
        found.tables.insert("logs", "public".to_owned());
        found.lacks_default = true;
        drop_foreign(&mut found).unwrap();
        assert_eq!(plan(&found).unwrap().unwrap().tables, ["logs"]);
        assert!(!found.lacks_default);
        found.path.reverse();
        found.tables.insert("logs", "public".to_owned());
        let error = drop_foreign(&mut found).unwrap_err().to_string();
        assert!(error.contains("logs in schema public") && error.contains("records in schema home"), "{error}");
    }

    #[test]
    fn tables_of_somebody_else_are_refused_and_those_in_another_schema_do_not_matter() {
        let mut foreign = found(&["logs"], false);
        foreign.path = vec!["home".to_owned()];
        let error = plan(&foreign).unwrap_err().to_string();
        assert!(
            error.contains("schema home contains a table logs") && error.contains("search_path=logweir"),
            "{error}"
        );
        foreign.path = vec!["first".to_owned()];
        assert_eq!(plan(&foreign).unwrap().unwrap().schema, "first");
        foreign.path = vec![];
        assert!(plan(&foreign).unwrap_err().to_string().contains("CREATE SCHEMA"));
    }
}
