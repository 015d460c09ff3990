//! A session of the driver: transactions on the shared connection, whose statements complete at once.

use std::pin::pin;
use std::task::{Context, Poll, Waker};

use logweir_engine::journal::LaneId;
use rusqlite::Connection;
use uuid::Uuid;

use super::connection::failure;
use super::lane_row::{one_lane, owner_of};
use crate::error::StoreError;
use crate::lane::LaneRow;
use crate::protocol::driver::statements::{Purpose, Refused, Transaction};
use crate::protocol::takeover::Owner;

/// Rolls back when it is dropped in a transaction.
pub(super) struct SqliteSession<'c> {
    pub(super) connection: &'c Connection,
    what: &'static str,
}

impl<'c> SqliteSession<'c> {
    /// A session whose errors are about `what`.
    pub(super) fn new(connection: &'c Connection, what: &'static str) -> Self {
        Self { connection, what }
    }

    pub(super) fn failed<T>(&self, done: rusqlite::Result<T>) -> Result<T, StoreError> {
        done.map_err(|error| failure(self.what, &error))
    }

    fn simple(&self, sql: &str) -> Result<(), StoreError> {
        self.failed(self.connection.execute_batch(sql))
    }
}

impl Drop for SqliteSession<'_> {
    fn drop(&mut self) {
        if !self.connection.is_autocommit() {
            let _ = self.connection.execute_batch("ROLLBACK");
        }
    }
}

impl Transaction for SqliteSession<'_> {
    async fn begin(&mut self, _: Purpose) -> Result<(), StoreError> {
        self.simple("BEGIN IMMEDIATE")
    }

    async fn commit(&mut self) -> Result<(), Refused> {
        Ok(self.simple("COMMIT")?)
    }

    async fn rollback(&mut self) -> Result<(), StoreError> {
        // A trigger's RAISE(ROLLBACK) has done it already.
        if self.connection.is_autocommit() { Ok(()) } else { self.simple("ROLLBACK") }
    }

    async fn owner(&mut self, writer: Uuid) -> Result<Option<Owner>, StoreError> {
        self.failed(owner_of(self.connection, writer))
    }

    async fn lane(&mut self, writer: Uuid, lane: LaneId) -> Result<Option<LaneRow>, StoreError> {
        self.failed(one_lane(self.connection, writer, lane))
    }
}

/// Runs a future whose statements complete at once, on the thread that may block.
pub(super) fn at_once<T>(work: impl Future<Output = T>) -> T {
    match pin!(work).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(done) => done,
        Poll::Pending => unreachable!("no statement of an SqliteSession waits"),
    }
}
