//! The hot cache: recent records per service and counters per minute. It may lose, it may not delay.

use async_trait::async_trait;
use uuid::Uuid;

use crate::message::Batch;

/// One recent record as the cache keeps it (JSON text of ts, severity, service, host, message, attributes, id parts).
pub type RecentRecord = String;

/// Why the cache did not do it. Never stops anything else.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct CacheError(pub String);

/// Where recent records and counters are kept for quick reading.
#[async_trait]
pub trait HotCache: Send + Sync {
    /// `Redis` or `memory`, for people.
    fn name(&self) -> String;

    /// Applies a batch: newest records per service, counters per minute and severity. Applying it twice equals
    /// applying it once (guarded by a cursor per writer and lane in the cache itself).
    async fn apply(&self, writer: Uuid, batch: &Batch) -> Result<(), CacheError>;

    /// The newest records of `service`, newest first, at most `limit`.
    async fn recent(&self, service: &str, limit: usize) -> Result<Vec<RecentRecord>, CacheError>;

    /// Services that have recent records.
    async fn services(&self) -> Result<Vec<String>, CacheError>;

    /// Records per minute of `service` since `since_us`: (minute start in microseconds, severity number, count).
    async fn volume(&self, service: &str, since_us: i64) -> Result<Vec<(i64, u8, u64)>, CacheError>;

    /// Whether the cache answers.
    async fn ping(&self) -> Result<(), CacheError>;
}
