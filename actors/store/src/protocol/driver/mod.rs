//! The exactly-once protocol over the statements of any database.
//!
//! The driver decides what is done in which order, which rows are dead letters, and what a mismatch means. A database
//! contributes a session that runs one statement at a time ([`statements`]), and nothing else.
//!
//! # How to add a database
//!
//! 1. Implement [`statements::Transaction`] and [`statements::FlushStatements`] for a lane's session, and
//!    [`statements::LeaseStatements`] for a session that acquires a lease. Only `insert` has to tell a row's error from
//!    any other: [`statements::Refused::Row`] if a row, or all of them together, can be the cause, and
//!    [`statements::Refused::Failed`] for everything else. Whatever the database can say about *which* row is used, and
//!    nothing of it is needed: `probe` has a default that inserts each row alone.
//! 2. The compare-and-set must lock the lane's row until the end of the transaction, and the transaction must be
//!    durable when `commit` returns.
//! 3. A database without an asynchronous client implements the same trait with statements that complete at once; see
//!    `at_once` in `sqlite/session.rs`.
//! 4. Run the conformance suite against it: `tests/src/conformance/`.

pub(crate) mod statements;
pub(crate) mod flush;
pub(crate) mod lease;
#[cfg(test)]
mod tests;
