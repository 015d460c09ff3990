//! The hot cache: recent records per service and counters per minute. It may lose, it may not delay.
//!
//! - Applying a batch twice equals applying it once, and so does applying an overlapping one: the cache keeps
//!   a cursor per writer and lane, and takes only frames behind it. Counters never double.
//! - What is lost (a full or absent cache, an evicted key) stays lost: the database has every record.
//! - Everything has a bound: newest records per service, services, hours of counters, time to live.

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use uuid::Uuid;

use crate::config;
use crate::message::Batch;

mod fold;
mod render;
pub mod redis;
pub mod memory;

/// One recent record as the cache keeps it: the JSON text
/// `{"ts":RFC 3339,"severity":n,"service":…,"host":…,"message":…,"attributes":{…}|null,"lane":n,"seq":n,"row":n}`,
/// where lane, seq and row say which record of which frame it is.
pub type RecentRecord = String;

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
    async fn apply(&self, writer: Uuid, batch: &Batch) -> Result<(), CacheError> {
        self.apply_within(writer, batch, usize::MAX).await.map(drop)
    }

    /// As [`HotCache::apply`], with at most `recent_max` new records in the windows of all services together: the newest
    /// of each service, and all where there are few. Counters count everything. Returns how many went into the windows.
    async fn apply_within(&self, writer: Uuid, batch: &Batch, recent_max: usize) -> Result<usize, CacheError>;

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
