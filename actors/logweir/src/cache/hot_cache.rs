//! What every cache offers.

use std::collections::HashMap;

use async_trait::async_trait;
use logweir_engine::journal::LaneId;
use logweir_store::Batch;
use uuid::Uuid;

/// A recent record as the cache stores it: a [`RecordJson`](logweir_record::json::RecordJson) with the additional
/// members `run` (UUID), `lane`, `seq`, `row` and `ordinal`. Run, lane, seq and row identify the record within its
/// frame, the ordinal within its lane: the id of its row follows from it. `Cached` parses it.
pub type RecentRecord = String;

/// Origin of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// Identity of the journal.
    pub writer: Uuid,
    /// The run of the journal. Frames of an earlier run may have been lost, and the numbers of their records reused.
    pub run: Uuid,
}

/// Why a cache operation failed. Never affects anything else.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
#[non_exhaustive]
pub struct CacheError {
    /// Label value of a counter, in snake case: `timeout`, `connection`, `oom`, `readonly`, …
    pub reason: &'static str,
    /// Description for humans, one sentence.
    pub detail: String,
}

/// Stores recent records and counters for fast reads.
#[async_trait]
pub trait HotCache: Send + Sync {
    /// Name for humans: `Redis` or `memory`.
    fn name(&self) -> String;

    /// Applies a batch: recent records per service, counters per minute and severity. Idempotent, by a cursor per
    /// writer and lane in the cache itself.
    async fn apply(&self, origin: Origin, batch: &Batch) -> Result<(), CacheError> {
        self.apply_within(origin, batch, usize::MAX).await.map(drop)
    }

    /// As [`HotCache::apply`], but adds at most `recent_max` records to the recent records of all services together:
    /// the latest of each service, and all of those with few. Counters count everything. Returns how many were added.
    async fn apply_within(&self, origin: Origin, batch: &Batch, recent_max: usize) -> Result<usize, CacheError>;

    /// Returns the last applied frame of each of the writer's lanes.
    async fn cursors(&self, writer: Uuid) -> Result<HashMap<LaneId, u64>, CacheError>;

    /// Returns at most `limit` recent records of `service`, latest first.
    async fn recent(&self, service: &str, limit: usize) -> Result<Vec<RecentRecord>, CacheError>;

    /// Returns the services that have recent records, latest arrival first.
    async fn services(&self) -> Result<Vec<String>, CacheError>;

    /// Returns the records per minute of `service` since the minute of `since_us`, ordered: (start of the minute in
    /// microseconds, severity number, count).
    async fn volume(&self, service: &str, since_us: i64) -> Result<Vec<(i64, u8, u64)>, CacheError>;

    /// Checks that the cache responds.
    async fn ping(&self) -> Result<(), CacheError>;
}
