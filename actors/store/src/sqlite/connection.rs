//! Connections: their sizes, how their errors are classified, and the blocking threads that they are used on.

use std::sync::Arc;

use rusqlite::{Connection, Error, ErrorCode, Transaction, TransactionBehavior};
use tokio::sync::Mutex;

use super::file::DatabaseFile;
use crate::error::StoreError;

/// Size of the writing connection's page cache. A batch of 20,000 rows takes 6 MiB of pages; a cache smaller than a
/// batch writes them before the commit, and again at each checkpoint.
pub const CACHE_BYTES: usize = 32 << 20;
/// Page size of a new file, in bytes. With SQLite's default of 4 KiB a third of the time is spent on single pages: each
/// is checksummed, written to the write-ahead log, read back and written to the file.
pub(super) const PAGE_BYTES: u64 = 16 << 10;

/// A connection that several tasks use, one at a time and in the order in which they asked for it: work that comes in
/// many small steps, such as retention, cannot keep the others out.
#[derive(Clone)]
pub(super) struct SharedConnection {
    connection: Arc<Mutex<Connection>>,
    /// The file that it writes to; `None` for a connection that only reads.
    file: Option<Arc<DatabaseFile>>,
}

impl SharedConnection {
    pub(super) fn reading(connection: Connection) -> Self {
        Self { connection: Arc::new(Mutex::new(connection)), file: None }
    }

    pub(super) fn writing(connection: Connection, file: Arc<DatabaseFile>) -> Self {
        Self { connection: Arc::new(Mutex::new(connection)), file: Some(file) }
    }
}

/// Classifies errors of the step `what`.
pub(super) fn failed(what: &'static str) -> impl Fn(Error) -> StoreError {
    move |error| failure(what, &error)
}

pub(super) fn failure(what: &str, error: &Error) -> StoreError {
    let text = format!("{what}: {error}");
    match error.sqlite_error_code() {
        // A lock, a full disk, an I/O error: can be temporary. SQLite reports some full disks as I/O errors.
        Some(
            ErrorCode::DatabaseBusy
            | ErrorCode::DatabaseLocked
            | ErrorCode::DiskFull
            | ErrorCode::SystemIoFailure
            | ErrorCode::OutOfMemory
            | ErrorCode::OperationInterrupted
            | ErrorCode::ReadOnly
            | ErrorCode::CannotOpen,
        ) => StoreError::Transient(text),
        _ => StoreError::Systemic(text),
    }
}

/// Runs `work` on a blocking thread when it is its turn. On the writing connection a result is returned only if the
/// file is still the one at its path.
pub(super) async fn blocking<T: Send + 'static>(
    connection: &SharedConnection,
    work: impl FnOnce(&mut Connection) -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    let SharedConnection { connection, file } = connection.clone();
    let mut connection = connection.lock_owned().await;
    // A panic inside a transaction drops it, which rolls it back, so the connection stays usable.
    let task = tokio::task::spawn_blocking(move || {
        let value = work(&mut connection)?;
        if let Some(file) = file {
            file.check()?;
            file.bound_log(&connection);
        }
        Ok(value)
    });
    task.await.unwrap_or_else(|error| Err(StoreError::Transient(format!("the SQLite task failed: {error}"))))
}

pub(super) fn immediate<'c>(connection: &'c mut Connection, what: &'static str) -> Result<Transaction<'c>, StoreError> {
    connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failed(what))
}
