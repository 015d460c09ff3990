//! The table for late records: records far from the present go there on TimescaleDB, and from there into chunks.
//!
//! - A chunk is a table, and its sender decides how many days a batch has. So no flush makes chunks but those of the days
//!   around the present.
//! - A late record never waits for who holds its chunk: a compression takes hours of a large one.
//! - It is stored in the transaction of its batch ([`place`](super::place) says why), with its id and its counter, and moves
//!   in one transaction, so each query sees it once.
//! - A day gets a chunk when it has many records, or once it is near the present. A few records of a day stay: thousands
//!   of chunks would make each query lock thousands of tables.
//! - Daily partitions need none of this: the default partition takes what has no partition.
//!
//! It has the columns that a flush writes, and nothing of what an operator adds to `logs` but what protects records: the
//! grants, and row security. Refused: CREATE TABLE (LIKE logs), which makes of an identity column one that is NOT NULL
//! and has no default.

use tokio_postgres::{Client, Error};

use super::ddl::{Relation, ddl_failure, give_to_owner, in_transaction, optional};
use super::home::Home;
use super::logs::{LATE, Late, Logs, find_late};
use super::view;
use crate::error::StoreError;

/// Creates the table `$late`. `stored_at` tells the mover how long a record has waited. What the mover leaves behind is
/// vacuumed by the number of rows: they are many in a table that is mostly empty.
const CREATE_SQL: &str = "CREATE TABLE $late (
    id         bigint NOT NULL,
    ts         timestamptz NOT NULL,
    severity   smallint NOT NULL,
    service    text NOT NULL,
    host       text NOT NULL,
    message    text NOT NULL,
    attributes jsonb,
    stored_at  timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT made_by_logweir CHECK (true)
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 10000);
CREATE INDEX ON $late (ts);
ALTER TABLE $late REPLICA IDENTITY FULL;";

/// The statements that create the table in the schema that search_path finds first.
pub(super) fn create_sql() -> String {
    CREATE_SQL.replace("$late", LATE)
}

/// Creates the table, in the open transaction. Who may read `logs`, and sees which records of it, reads and sees the same
/// here.
pub(super) async fn make(client: &Client, logs: &Logs) -> Result<(), StoreError> {
    let late = logs.beside(LATE);
    let failed = |error: Error| ddl_failure(CREATING, &error);
    client.batch_execute(&CREATE_SQL.replace("$late", &late.to_string())).await.map_err(failed)?;
    give_to_owner(client, &late, &logs.table).await.map_err(failed)?;
    // Before anybody may read it.
    protect(client, &late, logs).await.map_err(failed)?;
    grant_like(client, &late, logs).await.map_err(failed)?;
    if let Ok(Some(sql)) = view::change_sql(client, &logs.table, &[LATE]).await {
        // If not, maintenance says why.
        optional(client, &sql).await.map_err(failed)?;
    }
    let made = find_late(client, Some(&late.schema)).await.map_err(failed)?;
    match made.late() {
        Some(made) if made.is_protected_alike => Ok(()),
        _ => Err(StoreError::Systemic(format!(
            "{CREATING}: the row security of logs cannot be that of {late}, because its policies use a \
             column or a table that only logs has; {CONSEQUENCE}"
        ))),
    }
}

/// What a failure calls it.
pub(super) const CREATING: &str = "creating the table for late records";

const CONSEQUENCE: &str = "late records go to logs, and each of their days gets a chunk of its own";

/// Looks after the row security of the table: gives it that of `logs` if it has none, and fails if it has another one.
pub(super) async fn keep_protected(client: &Client, logs: &Logs, late: &Late) -> Result<(), StoreError> {
    let table = &late.table;
    if late.is_protected_alike {
        return Ok(());
    }
    if late.is_unprotected {
        in_transaction(client, &format!("giving {table} the row security of logs"), protect(client, table, logs))
            .await?;
        tracing::info!(%table, "gave the table for late records the row security of logs");
        return Ok(());
    }
    Err(StoreError::Systemic(format!(
        "the row security of {table} is not that of logs, so who reads it could see records that logs would not show: \
         {CONSEQUENCE}, until both tables have the same policies, ENABLE and FORCE ROW LEVEL SECURITY. To let logweir \
         copy them, drop the policies of {table}, and \
         ALTER TABLE {table} DISABLE ROW LEVEL SECURITY, NO FORCE ROW LEVEL SECURITY"
    )))
}

/// What is named as the table for late records, and is something else.
pub(super) fn foreign(home: &Home, kind: &str) -> StoreError {
    StoreError::Systemic(format!(
        "{} is {kind} that logweir did not make, or that has lost a column or the constraint made_by_logweir: it is \
         not used, and {CONSEQUENCE}. Rename it; logweir then creates its own",
        home.table(LATE)
    ))
}

/// Gives `late` the policies and the row security of `logs`. Their conditions are written for `late`, where they name the
/// table.
async fn protect(client: &Client, late: &Relation, logs: &Logs) -> Result<(), Error> {
    const POLICIES: &str = "SELECT format('CREATE POLICY %I ON %s AS %s FOR %s TO %s', p.polname, $2::text, \
        CASE WHEN p.polpermissive THEN 'PERMISSIVE' ELSE 'RESTRICTIVE' END, CASE p.polcmd WHEN 'r' THEN 'SELECT' \
        WHEN 'a' THEN 'INSERT' WHEN 'w' THEN 'UPDATE' WHEN 'd' THEN 'DELETE' ELSE 'ALL' END, \
        (SELECT string_agg(CASE r WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(r)) END, ', ') \
        FROM unnest(p.polroles) r)) \
        || coalesce(' USING (' || pg_get_expr(p.polqual, $2::text::regclass) || ')', '') \
        || coalesce(' WITH CHECK (' || pg_get_expr(p.polwithcheck, $2::text::regclass) || ')', '') \
        FROM pg_policy p WHERE p.polrelid = $1 ORDER BY p.polname";
    const FLAGS: &str = "SELECT relrowsecurity, relforcerowsecurity FROM pg_class WHERE oid = $1";
    for row in client.query(POLICIES, &[&logs.oid, &late.to_string()]).await? {
        client.batch_execute(row.get(0)).await?;
    }
    let flags = client.query_one(FLAGS, &[&logs.oid]).await?;
    for (is_set, flag) in [(flags.get(0), "ENABLE"), (flags.get(1), "FORCE")] {
        if is_set {
            client.batch_execute(&format!("ALTER TABLE {late} {flag} ROW LEVEL SECURITY")).await?;
        }
    }
    Ok(())
}

/// Grants on `late` what is granted on `logs`, and nothing else: default privileges may have given more.
pub(super) async fn grant_like(client: &Client, late: &Relation, logs: &Logs) -> Result<(), Error> {
    const GIVEN: &str = "SELECT DISTINCT \
        CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END \
        FROM pg_class c, aclexplode(c.relacl) a WHERE c.oid = $1::text::regclass AND a.grantee <> c.relowner";
    // Of the table, and of columns that both have.
    const GRANTED: &str = "SELECT format('GRANT %s%s ON %s TO %s%s', a.privilege_type, \
        '(' || quote_ident(a.attname) || ')', $2::text, \
        CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END, \
        CASE WHEN a.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END) \
        FROM (SELECT relowner, NULL::name AS attname, (aclexplode(relacl)).* FROM pg_class WHERE oid = $1 \
        UNION ALL SELECT c.relowner, f.attname, (aclexplode(f.attacl)).* \
        FROM pg_class c JOIN pg_attribute f ON f.attrelid = c.oid \
        JOIN pg_attribute l ON l.attname = f.attname AND l.attrelid = $2::text::regclass \
        WHERE c.oid = $1 AND f.attnum > 0 AND NOT f.attisdropped) a WHERE a.grantee <> a.relowner";
    let name = late.to_string();
    for row in client.query(GIVEN, &[&name]).await? {
        client.batch_execute(&format!("REVOKE ALL ON {late} FROM {} CASCADE", row.get::<_, &str>(0))).await?;
    }
    for row in client.query(GRANTED, &[&logs.oid, &name]).await? {
        client.batch_execute(row.get(0)).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::logs::{COLUMN_NAMES, COLUMNS, LATE_MARK};

    #[test]
    fn the_table_has_the_columns_that_a_flush_writes_and_the_mark() {
        let sql = create_sql();
        let names: Vec<&str> = COLUMNS.iter().map(|(name, ..)| *name).collect();
        assert_eq!(names.join(", "), COLUMN_NAMES);
        for name in names.into_iter().chain(["stored_at"]) {
            assert!(sql.lines().any(|line| line.trim_start().starts_with(&format!("{name} "))), "{name}");
        }
        assert!(sql.contains(&format!("CONSTRAINT {LATE_MARK} CHECK")) && !sql.contains('$'), "{sql}");
    }
}
