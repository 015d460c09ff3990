//! Statements that change tables: names, transactions whose session dies with its owner, and what to do about failures.

use std::fmt;

use tokio_postgres::{Client, Error};

use super::connect::{describe, failure};
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
pub(super) const LIMITS: Limits = Limits { lock_ms: 500, statement_s: 60 };

/// A table with its schema; displayed quoted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Relation {
    pub(super) schema: String,
    pub(super) name: String,
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

/// Begins a transaction when everything that was sent before is answered. The driver closes a named statement with a
/// request whose answer nobody awaits. If the connection ended between that answer and the one of the BEGIN behind it,
/// PgBouncer before 1.21 would take the session for finished, and keep new clients waiting for a server connection that
/// it cannot reset. Where a round trip matters, in flushes, what precedes is an unnamed statement instead.
pub(super) async fn begin(client: &Client, sql: &str) -> Result<(), Error> {
    client.check_connection().await?;
    client.batch_execute(sql).await
}

/// The owner of `table`, if it is another role than the current one, which may create tables for it. Who maintains the
/// tables is their owner or a member of the owner. A table of the member would be out of reach for all others.
pub(super) async fn other_owner(client: &Client, table: &Relation) -> Result<Option<String>, Error> {
    const SQL: &str = "SELECT pg_get_userbyid(relowner)::text FROM pg_class WHERE oid = $1::text::regclass \
        AND pg_get_userbyid(relowner) <> current_user AND has_schema_privilege(relowner, relnamespace, 'CREATE') \
        AND pg_has_role(relowner, CASE WHEN current_setting('server_version_num')::integer >= 160000 THEN 'SET' \
        ELSE 'MEMBER' END)";
    let owner = client.query_opt(SQL, &[&table.to_string()]).await?;
    Ok(owner.map(|row| row.get(0)))
}

/// Gives `table` to the owner of `sibling`.
pub(super) async fn give_to_owner(client: &Client, table: &Relation, sibling: &Relation) -> Result<(), Error> {
    match other_owner(client, sibling).await? {
        None => Ok(()),
        Some(owner) => client.batch_execute(&format!("ALTER TABLE {table} OWNER TO {}", quoted(&owner))).await,
    }
}

/// Runs `work` in a transaction with the limits of maintenance.
pub(super) async fn in_transaction<T>(
    client: &Client,
    what: &str,
    work: impl Future<Output = Result<T, Error>>,
) -> Result<T, StoreError> {
    in_transaction_with(LIMITS, client, what, work).await
}

/// Runs `work` in a transaction with these limits.
pub(super) async fn in_transaction_with<T>(
    limits: Limits,
    client: &Client,
    what: &str,
    work: impl Future<Output = Result<T, Error>>,
) -> Result<T, StoreError> {
    transaction(limits, client, work).await.map_err(|error| ddl_failure(what, &error))
}

/// Runs `work` in a transaction whose session ends with its owner: a frozen process loses it. Rolls back if `work` fails.
pub(super) async fn transaction<T, E: From<Error>>(
    limits: Limits,
    client: &Client,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    let Limits { lock_ms, statement_s } = limits;
    let begin_sql = format!(
        "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL lock_timeout = '{lock_ms}ms'; \
         SET LOCAL statement_timeout = '{statement_s}s'; \
         SET LOCAL idle_in_transaction_session_timeout = '15s'"
    );
    begin(client, &begin_sql).await?;
    let done = match work.await {
        Ok(done) => client.batch_execute("COMMIT").await.map(|()| done).map_err(E::from),
        Err(error) => Err(error),
    };
    if done.is_err() {
        let _ = client.batch_execute("ROLLBACK").await;
    }
    done
}

/// Runs statements in the open transaction, which goes on if they fail; returns whether they succeeded.
pub(super) async fn optional(client: &Client, sql: &str) -> Result<bool, Error> {
    client.batch_execute("SAVEPOINT optional").await?;
    let done = client.batch_execute(sql).await;
    if done.is_err() {
        client.batch_execute("ROLLBACK TO optional").await?;
    }
    Ok(done.is_ok())
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
        "23503" => {
            "another table has a foreign key that refers to these records: they stay until what refers to them is deleted, or \
             the foreign key is dropped"
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

/// The failures of steps each of which may fail alone.
#[derive(Debug, Default)]
pub(super) struct Failures(Vec<StoreError>);

impl Failures {
    /// Keeps a failure, and lets the others go on; fails at once if a lock or a time limit ended the step, as it would end
    /// the others.
    pub(super) fn keep(&mut self, done: Result<(), StoreError>) -> Result<(), StoreError> {
        match done {
            Err(error @ StoreError::Transient(_)) => Err(error),
            done => {
                self.add(done);
                Ok(())
            }
        }
    }

    /// Keeps a failure, whatever it is.
    pub(super) fn add(&mut self, done: Result<(), StoreError>) {
        self.0.extend(done.err());
    }

    /// The first failure, with the number of the others.
    pub(super) fn first(self) -> Result<(), StoreError> {
        let others = self.0.len().saturating_sub(1);
        match self.0.into_iter().next() {
            None => Ok(()),
            Some(StoreError::Systemic(text)) if others > 0 => {
                Err(StoreError::Systemic(format!("{text} (and {others} more of this kind)")))
            }
            Some(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_that_fails_lets_the_others_go_on_unless_a_lock_or_a_time_limit_ended_it() {
        let mut failures = Failures::default();
        failures.keep(Ok(())).unwrap();
        failures.keep(Err(StoreError::Systemic("one".to_owned()))).unwrap();
        failures.keep(Err(StoreError::Systemic("two".to_owned()))).unwrap();
        assert!(failures.keep(Err(StoreError::Transient("a lock".to_owned()))).is_err());
        assert_eq!(failures.first().unwrap_err().to_string(), "one (and 1 more of this kind)");
        assert!(Failures::default().first().is_ok());
    }

    #[test]
    fn identifiers_are_quoted() {
        let odd = Relation { schema: "Other schema".to_owned(), name: "a\"b".to_owned() };
        assert_eq!(odd.to_string(), "\"Other schema\".\"a\"\"b\"");
    }
}
