//! Connections: their sizes, how their errors are classified, and the blocking threads that they are used on.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rusqlite::{Connection, Error, ErrorCode, Transaction, TransactionBehavior};

use crate::error::StoreError;

pub(super) const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// Size of the writing connection's page cache. A batch of 20,000 rows takes 6 MiB of pages; a cache smaller than a
/// batch writes them before the commit, and again at each checkpoint.
pub const CACHE_BYTES: usize = 32 << 20;
/// Page size of a new file, in bytes. With SQLite's default of 4 KiB a third of the time is spent on single pages: each
/// is checksummed, written to the write-ahead log, read back and written to the file.
pub(super) const PAGE_BYTES: usize = 16 << 10;
/// Pages in the write-ahead log between two checkpoints: more than a batch takes, and few enough to be recovered
/// quickly after a kill.
pub(super) const WAL_PAGES: usize = (16 << 20) / PAGE_BYTES;

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

/// Ignores poisoning: a panic inside a transaction drops it, which rolls it back, so the connection stays usable.
fn locked(connection: &Mutex<Connection>) -> MutexGuard<'_, Connection> {
    connection.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) async fn blocking<T: Send + 'static>(
    connection: &Arc<Mutex<Connection>>,
    work: impl FnOnce(&mut Connection) -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    let connection = connection.clone();
    tokio::task::spawn_blocking(move || work(&mut locked(&connection)))
        .await
        .unwrap_or_else(|error| Err(StoreError::Transient(format!("the SQLite task failed: {error}"))))
}

pub(super) fn immediate<'c>(connection: &'c mut Connection, what: &'static str) -> Result<Transaction<'c>, StoreError> {
    connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failed(what))
}
