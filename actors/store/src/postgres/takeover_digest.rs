//! The column `digest` of `logweir_takeover`, which tables of an earlier version lack.
//!
//! Only the owner of a table can add a column, and storing does not need this one. Maintenance therefore adds it, not a
//! migration; until then, a role that may only write rows records takeovers without it. `journal drain --adopt` can then store the part
//! of a frame twice that was committed before such a takeover.

use tokio_postgres::types::Type;
use tokio_postgres::{Client, Error};

use super::connect::failed;
use super::ddl::in_transaction;
use super::home::Home;
use crate::error::StoreError;

const TABLE: &str = "logweir_takeover";

/// Adds the column to the table that search_path finds.
pub(super) const ADD_SQL: &str = "ALTER TABLE logweir_takeover ADD COLUMN IF NOT EXISTS digest bytea";

/// Whether the table has the column.
pub(super) async fn exists(client: &Client, home: &Home) -> Result<bool, Error> {
    const SQL: &str = "SELECT EXISTS (SELECT FROM pg_attribute \
        WHERE attrelid = to_regclass($1) AND attname = 'digest' AND NOT attisdropped)";
    let table = home.table(TABLE).to_string();
    Ok(client.query_typed_one(SQL, &[(&table, Type::TEXT)]).await?.get(0))
}

/// Adds the column if it is missing.
pub(super) async fn add(client: &Client, home: &Home) -> Result<(), StoreError> {
    const WHAT: &str = "adding the column digest to table logweir_takeover";
    // Asked first: ALTER TABLE waits for every transaction that has read the table.
    if exists(client, home).await.map_err(failed(WHAT))? {
        return Ok(());
    }
    let sql = ADD_SQL.replacen(TABLE, &home.table(TABLE).to_string(), 1);
    in_transaction(client, WHAT, client.batch_execute(&sql)).await
}
