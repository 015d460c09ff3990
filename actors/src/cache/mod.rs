//! The hot cache: recent records per service and counters per minute. It may lose, it may not delay.
//!
//! - Applying a batch twice equals applying it once, and so does applying an overlapping one: the cache keeps
//!   a cursor per writer and lane, and takes only frames behind it. Counters never double.
//! - What is lost (a full or absent cache, an evicted key) stays lost: the database has every record.
//! - Everything has a bound: newest records per service, services, hours of counters, time to live.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use logweir_engine::journal::LaneId;
use uuid::Uuid;

use crate::config;
use crate::message::Batch;

mod fold;
mod render;
pub mod read;
pub mod redis;
pub mod memory;

/// One recent record as the cache keeps it: the JSON text
/// `{"ts":RFC 3339,"severity":n,"service":…,"host":…,"message":…,"attributes":{…}|null,"run":uuid,"lane":n,"seq":n,
/// "row":n,"ordinal":n}`, where run, lane, seq and row say which record of which frame it is, and the ordinal which of its
/// lane: the id that its row will have follows from that. [`read`] takes it apart.
pub type RecentRecord = String;

/// Whose batches they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The journal.
    pub writer: Uuid,
    /// This run of it. A frame of an earlier run may have been taken back with its number.
    pub run: Uuid,
}

/// Why the cache did not do it. Never stops anything else.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct CacheError {
    /// Snake case, the label of a counter: `timeout`, `connection`, `oom`, `readonly`, …
    pub reason: &'static str,
    /// One sentence for a person.
    pub detail: String,
}

/// Where recent records and counters are kept for quick reading.
#[async_trait]
pub trait HotCache: Send + Sync {
    /// `Redis` or `memory`, for people.
    fn name(&self) -> String;

    /// Applies a batch: newest records per service, counters per minute and severity. Applying it twice equals
    /// applying it once (guarded by a cursor per writer and lane in the cache itself).
    async fn apply(&self, origin: Origin, batch: &Batch) -> Result<(), CacheError> {
        self.apply_within(origin, batch, usize::MAX).await.map(drop)
    }

    /// As [`HotCache::apply`], with at most `recent_max` new records in the windows of all services together: the newest
    /// of each service, and all where there are few. Counters count everything. Returns how many went into the windows.
    async fn apply_within(&self, origin: Origin, batch: &Batch, recent_max: usize) -> Result<usize, CacheError>;

    /// The last frame of each of the writer's lanes that the cache has seen.
    async fn cursors(&self, writer: Uuid) -> Result<HashMap<LaneId, u64>, CacheError>;

    /// The newest records of `service`, newest first, at most `limit`.
    async fn recent(&self, service: &str, limit: usize) -> Result<Vec<RecentRecord>, CacheError>;

    /// Services that have recent records, the one seen last first.
    async fn services(&self) -> Result<Vec<String>, CacheError>;

    /// Records per minute of `service` since the minute of `since_us`: (minute start in microseconds, severity
    /// number, count), in this order.
    async fn volume(&self, service: &str, since_us: i64) -> Result<Vec<(i64, u8, u64)>, CacheError>;

    /// Whether the cache answers.
    async fn ping(&self) -> Result<(), CacheError>;
}

/// The cache that `settings` ask for. `ca_file` holds PEM certificates that `rediss://` trusts besides the
/// system's. A Redis that is not there now is no error: it is waited for in the background.
///
/// Must be called on the runtime that lives as long as the process: the connection's task is spawned on it.
///
/// # Errors
/// The URL or the certificates cannot be used.
pub async fn open(settings: &config::Cache, ca_file: Option<&Path>) -> Result<Arc<dyn HotCache>, CacheError> {
    Ok(match &settings.url {
        config::CacheUrl::Memory => Arc::new(memory::MemoryCache::new(settings)),
        config::CacheUrl::Redis(url) => Arc::new(redis::RedisCache::connect(url, settings, ca_file).await?),
    })
}
