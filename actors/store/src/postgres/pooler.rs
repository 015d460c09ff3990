//! Whether a pooler gives each client a server connection of its own.
//!
//! In PgBouncer's modes `transaction` and `statement` it does not: prepared statements and settings then belong to
//! whatever client comes next. Two clients find that out: one asks twice which process serves it, the other begins a
//! transaction and asks as well, and the first asks once more.
//!
//! - A client with a connection of its own always gets the same answer, and never the other one's.
//! - A pooler that hands out the connection that was returned last serves the transaction with the process that has
//!   just served the first client.
//! - One that hands out connections in turn serves the first client by another process each time, or has only one.
//!
//! Other clients of the same pool can hide that by taking a connection at the right moment, so several rounds are made.

use tokio_postgres::{Client, Error, SimpleQueryMessage};

/// Rounds until a pooler is believed.
const ROUNDS: usize = 4;

/// How a pooler assigns server connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pooling {
    /// For as long as the client is connected.
    Session,
    /// For a transaction or a statement.
    Transaction,
}

/// Finds out how the pooler of two clients assigns server connections.
pub(super) async fn pooling(first: &Client, second: &Client) -> Result<Pooling, Error> {
    for _ in 0..ROUNDS {
        let mut served = vec![process(first).await?, process(first).await?];
        match second.batch_execute("BEGIN").await {
            Ok(()) => {}
            Err(error) if is_statement_mode(&error) => return Ok(Pooling::Transaction),
            Err(error) => return Err(error),
        }
        let other = process(second).await?;
        // Not asked if that has been answered: the only server connection may be taken.
        if !is_shared(&served, other) {
            served.push(process(first).await?);
        }
        second.batch_execute("ROLLBACK").await?;
        if is_shared(&served, other) {
            return Ok(Pooling::Transaction);
        }
    }
    Ok(Pooling::Session)
}

/// Whether a client served by the processes `served`, one after the other, shares them with a client served by `other`.
fn is_shared(served: &[i32], other: i32) -> bool {
    served.windows(2).any(|pair| pair[0] != pair[1]) || served.contains(&other)
}

/// PgBouncer refuses transactions in this mode.
fn is_statement_mode(error: &Error) -> bool {
    error.as_db_error().is_some_and(|db| db.message().contains("statement pooling"))
}

/// Returns the number of the process that serves `client` now. A simple query, since a prepared statement would have to
/// be on the same connection.
pub(super) async fn process(client: &Client) -> Result<i32, Error> {
    let answer = client.simple_query("SELECT pg_backend_pid()").await?;
    let rows = answer.iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0)?.parse().ok(),
        _ => None,
    });
    Ok(rows.last().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A pooler with `idle` server connections that hands out the first (last returned) or the last (longest idle).
    struct Pool {
        idle: std::collections::VecDeque<i32>,
        in_turn: bool,
    }

    impl Pool {
        fn take(&mut self) -> i32 {
            self.idle.pop_front().unwrap()
        }

        fn put(&mut self, process: i32) {
            if self.in_turn { self.idle.push_back(process) } else { self.idle.push_front(process) }
        }

        fn ask(&mut self) -> i32 {
            let process = self.take();
            self.put(process);
            process
        }
    }

    #[test]
    fn every_way_of_handing_out_connections_per_transaction_is_found() {
        for in_turn in [false, true] {
            for connections in 1..6 {
                let mut pool = Pool { idle: (0..connections).collect(), in_turn };
                let mut served = vec![pool.ask(), pool.ask()];
                let other = pool.take();
                if !is_shared(&served, other) {
                    served.push(pool.ask());
                }
                assert!(is_shared(&served, other), "{connections} connections, in turn: {in_turn}");
            }
        }
        assert!(!is_shared(&[1, 1, 1], 2));
    }
}
