//! The function `logweir_logs()`: all records, for the SQL of other programs.
//!
//! Beside a hypertable some records are in a table of their own, which such a query would miss. The planner puts the
//! function's query in its place, so it costs nothing, and the reader's own privileges and policies apply in every
//! version. Refused: a view, which is read with its owner's (unless `security_invoker` says otherwise, from PostgreSQL 15
//! on), which follows a table that is renamed, and without which `logs` could not be dropped.

use tokio_postgres::Client;

use super::connect::failed;
use super::ddl::{Relation, in_transaction, other_owner, quoted};
use super::home::Home;
use super::logs::{COLUMN_NAMES, COLUMNS, LATE, Logs};
use crate::error::StoreError;

/// Its name.
pub(super) const FUNCTION: &str = "logweir_logs";

/// How the source of logweir's own begins.
const MARK: &str = "/* made by logweir */";

/// The statement that creates it. The schema is a parameter of the text, quoted.
fn create_sql(schema: &str, has_late: bool) -> String {
    let columns: Vec<String> = COLUMNS.iter().map(|(name, _, kind)| format!("{name} {kind}")).collect();
    format!(
        "CREATE OR REPLACE FUNCTION {schema}.{FUNCTION}() RETURNS TABLE ({}) LANGUAGE sql STABLE PARALLEL SAFE \
         AS $logweir${}$logweir$",
        columns.join(", "),
        source(schema, has_late)
    )
}

fn source(schema: &str, has_late: bool) -> String {
    let late = match has_late {
        true => format!(" UNION ALL SELECT {COLUMN_NAMES} FROM {schema}.{LATE}"),
        false => String::new(),
    };
    format!("{MARK} SELECT {COLUMN_NAMES} FROM {schema}.logs{late}")
}

/// The same for administrators, beside the `logs` that search_path finds.
pub(super) fn create_sql_here(has_late: bool) -> String {
    format!(
        "EXECUTE replace($sql${}$sql$, '$schema', (SELECT '\"' || replace(n.nspname, '\"', '\"\"') || '\"' \
         FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = 'logs'::regclass));",
        create_sql("$schema", has_late)
    )
}

/// Creates it, or changes it to what the tables are now.
pub(super) async fn keep(client: &Client, home: &Home, logs: &Logs) -> Result<(), StoreError> {
    const SOURCE: &str = "SELECT p.prosrc FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace \
        WHERE n.nspname = $1 AND p.proname = $2 AND p.pronargs = 0";
    let schema = quoted(home.name());
    let has_late = logs.late.is_some();
    let found = client
        .query_opt(SOURCE, &[&home.name(), &FUNCTION])
        .await
        .map_err(failed("looking for the function logweir_logs"))?;
    match found.as_ref().map(|row| row.get::<_, &str>(0)) {
        Some(found) if found == source(&schema, has_late) => return Ok(()),
        Some(found) if !found.starts_with(MARK) => {
            return Err(StoreError::Systemic(format!(
                "the function {schema}.{FUNCTION}() is not logweir's, and stays as it is: rename it; logweir then creates its own, \
                 by which other programs read all records"
            )));
        }
        _ => {}
    }
    let name = Relation { schema: home.name().to_owned(), name: FUNCTION.to_owned() };
    in_transaction(client, "creating the function logweir_logs", async {
        client.batch_execute(&create_sql(&schema, has_late)).await?;
        match other_owner(client, &logs.table).await? {
            Some(owner) if found.is_none() => {
                client.batch_execute(&format!("ALTER FUNCTION {name}() OWNER TO {}", quoted(&owner))).await
            }
            _ => Ok(()),
        }
    })
    .await
}
