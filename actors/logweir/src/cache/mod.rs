//! The hot cache: recent records per service and counters per minute. It may lose data; it must not cause delays.
//!
//! - Applying a batch twice has the same effect as applying it once, and so has applying an overlapping batch: the
//!   cache stores a cursor per writer and lane and applies only frames after it. Counters never double.
//! - What is lost (full or unavailable cache, evicted key) stays lost: the database has every record.
//! - Everything is bounded: recent records per service, services, hours of counters, time to live.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use logweir_engine::journal::LaneId;
use uuid::Uuid;

use crate::config;
use logweir_store::Batch;

mod update;
mod render;
pub mod read;
pub mod redis;
pub mod memory;
pub mod writer;

/// A recent record as the cache stores it: the JSON object of [`record_json`](logweir_record::json) with the additional
/// members `run` (UUID), `lane`, `seq`, `row` and `ordinal`. Run, lane, seq and row identify the record within its
/// frame, the ordinal within its lane: the id of its row follows from it. [`read`] parses it.
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

/// Opens the cache that `settings` selects. `ca_file` holds PEM certificates that `rediss://` trusts in addition to the
/// system's. An unavailable Redis is not an error: the connection is retried in the background.
///
/// Must be called on the runtime that lives as long as the process: the connection task is spawned on it.
///
/// # Errors
/// The URL or the certificates are invalid.
pub async fn open(settings: &config::Cache, ca_file: Option<&Path>) -> Result<Arc<dyn HotCache>, CacheError> {
    Ok(match &settings.url {
        config::CacheUrl::Memory => Arc::new(memory::MemoryCache::new(settings)),
        config::CacheUrl::Redis(url) => Arc::new(redis::RedisCache::connect(url, settings, ca_file).await?),
    })
}
