//! Statements that change tables: names, transactions whose session dies with its owner, and what to do about failures.

use std::fmt;

use tokio_postgres::{Client, Error};

use super::connect::{describe, failed, failure};
use crate::error::StoreError;

/// Limits of the statements of a transaction.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// How long each may wait for a lock. What flushes need waits in turn behind it.
    pub(super) lock_ms: u32,
    /// How long each may take.
    pub(super) statement_s: u32,
}

/// The limits of maintenance.
const LIMITS: Limits = Limits { lock_ms: 500, statement_s: 60 };

/// A table with its schema; displayed quoted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Relation {
    pub(super) schema: String,
    pub(super) name: String,
}

impl Relation {
    /// The table that `name` means in a statement without a schema.
    pub(super) async fn find(client: &Client, name: &str) -> Result<Self, StoreError> {
        let found = client
            .query_opt(
                "SELECT n.nspname::text, c.relname::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
                 WHERE c.oid = to_regclass($1)",
                &[&name],
            )
            .await
            .map_err(failed("looking for a table"))?;
        match found {
            Some(row) => Ok(Self { schema: row.get(0), name: row.get(1) }),
            None => Err(StoreError::Systemic(format!("table {name} was not found in search_path"))),
        }
    }
}

impl fmt::Display for Relation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", quoted(&self.schema), quoted(&self.name))
    }
}

/// Quotes an identifier; always, whatever `quote_all_identifiers` is.
pub(super) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Runs `work` in a transaction with the limits of maintenance.
pub(super) async fn in_transaction<T>(
    client: &Client,
    what: &str,
    work: impl Future<Output = Result<T, Error>>,
) -> Result<T, StoreError> {
    in_transaction_with(LIMITS, client, what, work).await
}

/// Runs `work` in a transaction whose session ends with its owner: a frozen process loses it.
pub(super) async fn in_transaction_with<T>(
    limits: Limits,
    client: &Client,
    what: &str,
    work: impl Future<Output = Result<T, Error>>,
) -> Result<T, StoreError> {
    let Limits { lock_ms, statement_s } = limits;
    let begin = format!(
        "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL lock_timeout = '{lock_ms}ms'; \
         SET LOCAL statement_timeout = '{statement_s}s'; \
         SET LOCAL idle_in_transaction_session_timeout = '15s'"
    );
    client.batch_execute(&begin).await.map_err(|error| ddl_failure(what, &error))?;
    let done = match work.await {
        Ok(done) => client.batch_execute("COMMIT").await.map(|()| done),
        Err(error) => Err(error),
    };
    if done.is_err() {
        let _ = client.batch_execute("ROLLBACK").await;
    }
    done.map_err(|error| ddl_failure(what, &error))
}

/// Classifies an error of a statement that changes tables, and adds what to do.
pub(super) fn ddl_failure(what: &str, error: &Error) -> StoreError {
    let to_do = error.code().map_or("", |code| to_do(code.code(), &describe(error)));
    let with = |text: String| if to_do.is_empty() { text } else { format!("{text}; {to_do}") };
    match failure(what, error) {
        StoreError::Transient(text) => StoreError::Transient(with(text)),
        StoreError::Systemic(text) => StoreError::Systemic(with(text)),
        other => other,
    }
}

/// What the operator has to do about a SQLSTATE.
fn to_do(code: &str, text: &str) -> &'static str {
    match code {
        "42501" => {
            "let the owner of the tables run `logweir database prepare`, or give this role its rights: \
             `logweir database grants --role ROLE --for maintenance` prints the statements"
        }
        "55P03" => {
            "another session holds a lock, or a transaction that has to end first (see pg_stat_activity); the next round tries again"
        }
        "57014" => "it took longer than its limit; the next round tries again",
        "55000" if text.contains("replica identity") => "ALTER TABLE … REPLICA IDENTITY FULL allows it",
        "42P07" => {
            "if logs was renamed, rename it back, or give its partitions and indexes other names as well; logweir then creates \
             a new table"
        }
        "2BP01" => "drop the objects that depend on it, or drop the table yourself with CASCADE",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_are_quoted() {
        let odd = Relation { schema: "Other schema".to_owned(), name: "a\"b".to_owned() };
        assert_eq!(odd.to_string(), "\"Other schema\".\"a\"\"b\"");
    }
}
