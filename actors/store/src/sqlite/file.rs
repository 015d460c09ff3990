//! The file behind the writing connection: whether it is still there, and the size of its write-ahead log.
//!
//! - SQLite moves the log's pages to the file by itself (`wal_autocheckpoint`), but it starts the log from the
//!   beginning again only at a moment at which no read uses it. Queries that overlap leave no such moment, so the log
//!   would grow as long as they do. Above [`LOG_BYTES_MAX`] a commit is therefore followed by a checkpoint that waits for
//!   the reads that have begun. That is short, since a query renews its snapshot (see `read`).
//! - A checkpoint that cannot finish, because another program has a transaction open, is tried again after growing pauses:
//!   each attempt keeps flushes waiting.
//! - A file that was removed or replaced is still written to by the processes that have it open, and disappears with them.
//!   What is written to it is therefore not confirmed.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rusqlite::Connection;

use crate::error::StoreError;

/// How long a statement waits for a lock.
pub(super) const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// Size of the log at which SQLite checkpoints it: more than a batch takes, and few enough to be recovered quickly after a
/// kill. Its file is cut to twice as much when it starts from the beginning, so that an ordinary one keeps its blocks.
pub(super) const LOG_BYTES: u64 = 16 << 20;
/// Size of the log above which a checkpoint waits for reads.
pub(super) const LOG_BYTES_MAX: u64 = 4 * LOG_BYTES;

/// How long such a checkpoint waits.
const CHECKPOINT_WAIT: Duration = Duration::from_secs(2);
/// The pause after one that waited in vain; it doubles up to the second value.
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(64);

/// A database file that is open for writing.
pub(super) struct DatabaseFile {
    path: PathBuf,
    log: PathBuf,
    /// Device and inode.
    identity: (u64, u64),
    paused: Mutex<Option<Paused>>,
}

/// After a checkpoint that waited for reads in vain.
#[derive(Clone, Copy)]
struct Paused {
    until: Instant,
    pause: Duration,
}

impl Paused {
    fn after(before: Option<Self>) -> Self {
        let pause = before.map_or(PAUSE_MIN, |before| (before.pause * 2).min(PAUSE_MAX));
        Self { until: Instant::now() + pause, pause }
    }
}

impl DatabaseFile {
    /// The file of a connection that was just opened.
    pub(super) fn of(connection: &Connection) -> std::io::Result<Self> {
        // SQLite's own path: links are resolved, as in the name of the log.
        let path = PathBuf::from(connection.path().unwrap_or_default());
        let identity = identity(&path)?;
        let mut log = path.clone().into_os_string();
        log.push("-wal");
        Ok(Self { path, log: log.into(), identity, paused: Mutex::default() })
    }

    /// Checks that the path still leads to the open file.
    ///
    /// # Errors
    /// [`StoreError::Systemic`] if it does not.
    pub(super) fn check(&self) -> Result<(), StoreError> {
        match identity(&self.path) {
            Ok(identity) if identity == self.identity => Ok(()),
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(StoreError::Transient(format!("cannot look at {}: {error}", self.path.display())))
            }
            _ => Err(StoreError::Systemic(format!(
                "the SQLite file {} was removed or replaced while it was in use, so what is written to it would be lost; \
                 move the file back, or restart logweir: it opens the file that it finds there and stores what its \
                 journal still has",
                self.path.display()
            ))),
        }
    }

    /// Keeps the log small after a write.
    #[allow(clippy::cast_precision_loss)] // gauges are doubles
    pub(super) fn bound_log(&self, connection: &Connection) {
        let bytes = self.log_bytes();
        metrics::gauge!("logweir_store_sqlite_wal_bytes").set(bytes as f64);
        let mut paused = self.paused.lock().unwrap_or_else(PoisonError::into_inner);
        if bytes <= LOG_BYTES_MAX || paused.is_some_and(|paused| Instant::now() < paused.until) {
            return;
        }
        let done = checkpoint(connection);
        *paused = (!matches!(done, Ok(true))).then(|| Paused::after(*paused));
        if let Err(error) = done {
            tracing::warn!(%error, "cannot checkpoint the write-ahead log: retrying");
        }
        metrics::gauge!("logweir_store_sqlite_wal_bytes").set(self.log_bytes() as f64);
    }

    /// Cuts a log that has grown, also if nothing is written at the moment.
    ///
    /// # Errors
    /// [`StoreError::Transient`] if a read keeps it from being cut.
    #[allow(clippy::cast_precision_loss)] // gauges are doubles
    pub(super) fn cut_log(&self, connection: &Connection) -> Result<(), StoreError> {
        let before = self.log_bytes();
        let done = before <= LOG_BYTES
            || checkpoint(connection)
                .map_err(|error| StoreError::Transient(format!("checkpointing the write-ahead log: {error}")))?;
        let bytes = self.log_bytes();
        metrics::gauge!("logweir_store_sqlite_wal_bytes").set(bytes as f64);
        if done || bytes <= LOG_BYTES_MAX {
            return Ok(());
        }
        Err(StoreError::Transient(format!(
            "the write-ahead log {} has grown to {} MiB, because a transaction that reads from it stays open; end the \
             program that has it, such as a sqlite3 shell or a backup",
            self.log.display(),
            bytes >> 20
        )))
    }

    fn log_bytes(&self) -> u64 {
        fs::metadata(&self.log).map_or(0, |metadata| metadata.len())
    }
}

fn identity(path: &Path) -> std::io::Result<(u64, u64)> {
    fs::metadata(path).map(|metadata| (metadata.dev(), metadata.ino()))
}

/// Moves the whole log to the file and empties it. Returns false if reads did not let it.
fn checkpoint(connection: &Connection) -> rusqlite::Result<bool> {
    connection.busy_timeout(CHECKPOINT_WAIT)?;
    let blocked = connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get::<_, bool>(0));
    connection.busy_timeout(BUSY_TIMEOUT)?;
    blocked.map(|blocked| !blocked)
}
