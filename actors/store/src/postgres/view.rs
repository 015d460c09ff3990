//! The function `logweir_logs()`: all records, for the SQL of other programs.
//!
//! Beside a hypertable some records are in a table of their own, which such a query would miss. The planner puts the
//! function's query in its place, so it costs nothing, and the reader's own privileges and policies apply in every
//! version. Refused: a view, which is read with its owner's (unless `security_invoker` says otherwise, from PostgreSQL 15
//! on), which follows a table that is renamed, and without which `logs` could not be dropped.

use tokio_postgres::Client;

use super::connect::failed;
use super::ddl::{Relation, in_transaction, other_owner, quoted};
use super::logs::{COLUMN_NAMES, COLUMNS, LATE, Logs};
use crate::error::StoreError;

/// Its name.
pub(super) const FUNCTION: &str = "logweir_logs";

/// How the source of logweir's own begins.
const MARK: &str = "/* made by logweir */";

/// The statement that creates it. The schema is a parameter of the text, quoted.
pub(super) fn create_sql(schema: &str, others: &[&str]) -> String {
    let columns: Vec<String> = COLUMNS.iter().map(|(name, _, kind)| format!("{name} {kind}")).collect();
    format!(
        "CREATE OR REPLACE FUNCTION {schema}.{FUNCTION}() RETURNS TABLE ({}) LANGUAGE sql STABLE PARALLEL SAFE \
         AS $logweir${}$logweir$",
        columns.join(", "),
        source(schema, others)
    )
}

fn source(schema: &str, others: &[&str]) -> String {
    let others: String =
        others.iter().map(|table| format!(" UNION ALL SELECT {COLUMN_NAMES} FROM {schema}.{table}")).collect();
    format!("{MARK} SELECT {COLUMN_NAMES} FROM {schema}.logs{others}")
}

/// The same for administrators, beside the `logs` that search_path finds.
pub(super) fn create_sql_here(has_late: bool) -> String {
    format!(
        "EXECUTE replace($sql${}$sql$, '$schema', (SELECT '\"' || replace(n.nspname, '\"', '\"\"') || '\"' \
         FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = 'logs'::regclass));",
        create_sql("$schema", if has_late { &[LATE] } else { &[] })
    )
}

/// The statements that create it, or change it to what the tables are; `None` if it is so already.
///
/// # Errors
/// It is not logweir's.
pub(super) async fn change_sql(
    client: &Client,
    logs: &Relation,
    others: &[&str],
) -> Result<Option<String>, StoreError> {
    const SOURCE: &str = "SELECT p.prosrc FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace \
        WHERE n.nspname = $1 AND p.proname = $2 AND p.pronargs = 0";
    let looking = failed("looking for the function logweir_logs");
    let schema = quoted(&logs.schema);
    let found = client.query_opt(SOURCE, &[&logs.schema, &FUNCTION]).await.map_err(&looking)?;
    let create = create_sql(&schema, others);
    match found.as_ref().map(|row| row.get::<_, &str>(0)) {
        None => {
            let owner = other_owner(client, logs).await.map_err(&looking)?;
            let give = |owner: String| format!("; ALTER FUNCTION {schema}.{FUNCTION}() OWNER TO {}", quoted(&owner));
            Ok(Some(create + &owner.map(give).unwrap_or_default()))
        }
        Some(found) if found == source(&schema, others) => Ok(None),
        Some(found) if found.starts_with(MARK) => Ok(Some(create)),
        Some(_) => Err(StoreError::Systemic(format!(
            "the function {schema}.{FUNCTION}() is not logweir's, and stays as it is: rename it; logweir then creates \
             its own, by which other programs read all records"
        ))),
    }
}

/// Keeps it to what the tables are.
pub(super) async fn keep(client: &Client, logs: &Logs) -> Result<(), StoreError> {
    match change_sql(client, &logs.table, &logs.others().map(|table| table.name.as_str()).collect::<Vec<_>>()).await? {
        None => Ok(()),
        Some(sql) => in_transaction(client, "creating the function logweir_logs", client.batch_execute(&sql)).await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_function_has_all_columns_of_the_tables_that_are_there() {
        let one = create_sql("\"s\"", &[]);
        assert!(one.contains("\"s\".logweir_logs() RETURNS TABLE (id bigint, ts timestamp with time zone,"), "{one}");
        assert!(one.contains("FROM \"s\".logs$") && !one.contains("UNION"), "{one}");
        assert!(create_sql("\"s\"", &[LATE]).contains(" FROM \"s\".logweir_late$"));
    }
}
