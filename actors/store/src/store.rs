//! The traits of a store.

use async_trait::async_trait;
use logweir_engine::journal::LaneId;
use uuid::Uuid;

use crate::batch::Batch;
use crate::dead_letter::DeadLetter;
use crate::error::{Rejection, StoreError};
use crate::lane::{Flushed, LaneRow, LaneStart, StoredCount};
use crate::lease::{Claim, ForkPoint, Lease};
use crate::maintenance::MaintenanceStep;

/// A database that stores records permanently.
///
/// # Errors
/// Every method can fail with [`StoreError::Transient`] (the database is unavailable: retry) and
/// [`StoreError::Systemic`] (schema, permission or data are wrong: an operator must act). Each method lists its other
/// errors.
#[async_trait]
pub trait LogStore: Send + Sync {
    /// Returns the product's name (`PostgreSQL`, `TimescaleDB`, `SQLite`), for messages.
    fn name(&self) -> String;

    /// Returns the version of what stores, for messages; `None` if it has none or is not known yet.
    fn version(&self) -> Option<String> {
        None
    }

    /// Learns both from the database that answers queries, for a process that never prepares one. A failure changes
    /// nothing.
    async fn learn(&self) {}

    /// Creates the tables that a flush needs or brings them up to date, under a lock, and nothing else. Call it before
    /// anything else.
    async fn prepare(&self) -> Result<(), StoreError>;

    /// Acquires the writer's lease and fences earlier owners. Idempotent for the same run. Resets every lane whose
    /// cursor is above its tail in the journal.
    ///
    /// # Errors
    /// [`StoreError::StaleCopy`] if the last owner is not a run of this journal.
    async fn acquire_lease(&self, claim: &Claim) -> Result<Lease, StoreError>;

    /// For a stale copy (`claim` is the rejected one), returns where it forks from the other copy and the writer to
    /// store the rest under. Returns `None` if this journal is not a stale copy.
    async fn fork_point(&self, claim: &Claim) -> Result<Option<ForkPoint>, StoreError>;

    /// Acquires the lease of `claim.writer` (the [`ForkPoint::writer`]) and creates its lanes, each starting where
    /// `starts` specifies. Existing lanes keep their cursor, so that an interrupted fork resumes.
    ///
    /// # Errors
    /// The same as [`acquire_lease`](Self::acquire_lease).
    async fn fork(&self, claim: &Claim, starts: &[LaneStart]) -> Result<Lease, StoreError>;

    /// Opens the lane's own long-lived connection, and creates its row if it is new. Returns the connection and the
    /// row. A lane has one open connection at a time.
    ///
    /// # Errors
    /// [`StoreError::Fenced`] if another run has acquired the lease since, [`StoreError::LeaseLost`] if the database
    /// does not know it.
    async fn open_lane(&self, lease: &Lease, lane: LaneId) -> Result<(Box<dyn LaneWriter>, LaneRow), StoreError>;

    /// Runs a round of maintenance, unless another process is doing so: upcoming partitions, retention. Call it every few
    /// minutes. Each step runs whether the one before failed or not; a step that is not due is not listed.
    ///
    /// `now_us` is this process's clock, in microseconds since 1970. Records expire by the database's clock; if the two
    /// differ by more than minutes, nothing is deleted.
    async fn maintain(&self, now_us: i64) -> Vec<MaintenanceStep>;

    /// Builds the indexes that past days lack, unless another process is doing so. It can take hours, so call it beside
    /// the rounds of [`maintain`](Self::maintain); dropping the future cancels it.
    async fn build_indexes(&self) -> Vec<MaintenanceStep> {
        Vec::new()
    }

    /// Returns all lanes of `writer`, for `status` and `verify`.
    async fn lanes(&self, writer: Uuid) -> Result<Vec<LaneRow>, StoreError>;

    /// Counts the stored rows with a lane's ids, for `verify`.
    async fn count_stored(&self, row: &LaneRow) -> Result<StoredCount, StoreError>;

    /// Returns up to `limit` dead letters, newest first.
    async fn dead_letters(&self, limit: u32) -> Result<Vec<DeadLetter>, StoreError>;

    /// Replays a dead letter: inserts its (possibly corrected) record and removes the letter, in one transaction.
    ///
    /// # Errors
    /// [`StoreError::Systemic`] also if the dead letter does not exist, or if its record is invalid or rejected again.
    async fn replay_dead_letter(&self, letter: &DeadLetter) -> Result<(), StoreError>;

    /// Removes dead letters older than `before_us` (microseconds since 1970) and returns their number.
    async fn purge_dead_letters(&self, before_us: i64) -> Result<u64, StoreError>;
}

/// A connection that flushes one lane, one transaction at a time.
#[async_trait]
pub trait LaneWriter: Send {
    /// Commits `batch` with its cursor and counters, exactly once. Finds rows that the database rejects and
    /// dead-letters them.
    ///
    /// After an error the outcome is unknown (a COMMIT may have been cut off). Flushing the same batch again resolves
    /// it: a batch that is committed already is not stored again. The connection may be closed then; the next flush
    /// opens another.
    ///
    /// # Errors
    /// Every [`StoreError`] except `StaleCopy`. After `CursorMoved` the batch must be built again from the cursor in
    /// it; after `LeaseLost` and `Fenced` this connection can no longer flush.
    async fn flush(&mut self, batch: &Batch) -> Result<Flushed, StoreError>;

    /// Dead-letters the only record of `batch`, which was refused alone with `rejection` more than once. First tries another
    /// record, which it rolls back: a table that refuses that one, too, refuses everything. Then the record itself, unless the
    /// code is [`Rejection::INTERRUPTED`]: that can end the connection.
    ///
    /// # Errors
    /// As [`flush`](Self::flush); [`StoreError::Systemic`] if the table refuses every record. [`StoreError::Rejected`] with
    /// [`Rejection::INTERRUPTED`] if the code is [`Rejection::SUSPECTED`], another record was taken, and this one failed
    /// temporarily once more: call it again with that.
    async fn dead_letter(&mut self, batch: &Batch, rejection: &Rejection) -> Result<Flushed, StoreError>;

    /// Returns whether the connection is open as far as is known locally, without a round trip.
    fn is_open(&self) -> bool {
        true
    }
}
