//! A session of the driver: transactions on the shared connection, whose statements complete at once.

use std::pin::pin;
use std::task::{Context, Poll, Waker};

use logweir_engine::journal::LaneId;
use rusqlite::{Connection, Error, ErrorCode, ffi};
use uuid::Uuid;

use super::connection::failure;
use super::lane_row::{one_lane, owner_of};
use crate::error::{Rejection, StoreError};
use crate::lane::LaneRow;
use crate::protocol::driver::statements::{Purpose, Refused, Transaction};
use crate::protocol::takeover::Owner;

/// Rolls back when it is dropped in a transaction.
pub(super) struct SqliteSession<'c> {
    pub(super) connection: &'c Connection,
    what: &'static str,
    purpose: Purpose,
}

impl<'c> SqliteSession<'c> {
    /// A session whose errors are about `what`.
    pub(super) fn new(connection: &'c Connection, what: &'static str) -> Self {
        Self { connection, what, purpose: Purpose::Commit }
    }

    pub(super) fn failed<T>(&self, done: rusqlite::Result<T>) -> Result<T, StoreError> {
        done.map_err(|error| failure(self.what, &error))
    }

    fn simple(&self, sql: &str) -> Result<(), StoreError> {
        self.failed(self.connection.execute_batch(sql))
    }

    /// In a transaction that tries rows: why the COMMIT would fail, which checks deferred foreign keys.
    pub(super) fn refused_later(&self) -> Option<Rejection> {
        let (mut violated, mut highest) = (0, 0);
        if self.purpose == Purpose::Commit {
            return None;
        }
        // SAFETY: the handle is that of an open connection, which this thread has to itself; both numbers outlive the call.
        let read = unsafe {
            let handle = self.connection.handle();
            ffi::sqlite3_db_status(handle, ffi::SQLITE_DBSTATUS_DEFERRED_FKS, &raw mut violated, &raw mut highest, 0)
        };
        let error = ffi::Error::new(ffi::SQLITE_CONSTRAINT_FOREIGNKEY);
        (read == ffi::SQLITE_OK && violated > 0).then(|| rejection(&Error::SqliteFailure(error, None)))
    }
}

/// SQLite's extended result code takes the place of an SQLSTATE.
pub(super) fn rejection(error: &Error) -> Rejection {
    let code = error.sqlite_error().map_or(0, |error| error.extended_code);
    Rejection { code: format!("SQLITE-{code}"), reason: error.to_string() }
}

impl Drop for SqliteSession<'_> {
    fn drop(&mut self) {
        if !self.connection.is_autocommit() {
            let _ = self.connection.execute_batch("ROLLBACK");
        }
    }
}

impl Transaction for SqliteSession<'_> {
    async fn begin(&mut self, purpose: Purpose) -> Result<(), StoreError> {
        self.purpose = purpose;
        self.simple("BEGIN IMMEDIATE")
    }

    async fn commit(&mut self) -> Result<(), Refused> {
        match self.connection.execute_batch("COMMIT") {
            // A deferred foreign key. The transaction is still open.
            Err(error) if error.sqlite_error_code() == Some(ErrorCode::ConstraintViolation) => {
                self.rollback().await?;
                Err(Refused::Row { at: None, rejection: rejection(&error) })
            }
            done => Ok(self.failed(done)?),
        }
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
