//! What the cache has and the database does not have yet.
//!
//! The database's cursors tell it exactly: they were read in the snapshot that the rows come from, so a cached record is
//! missing from the rows if its frame is above its lane's cursor, and only then. What the cache has lost is seen a moment
//! later, when the database has it; what it has too many (an earlier run's, a restored journal's) is told by its run.
//!
//! The cache may be slow or gone: it is asked behind a breaker of its own, and nothing waits for it longer than one timeout.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::time::Instant;

use crate::breaker::{Allow, Breaker, BreakerSettings};
use crate::cache::read::Cached;
use crate::cache::{CacheError, HotCache};
use crate::query::page::{Found, Position};
use crate::store::read::LaneCursor;

const BREAKER: BreakerSettings = BreakerSettings { failures_max: 2, open_ms_min: 1_000, open_ms_max: 15_000 };

/// Records of one service, and of all, that one query looks at.
const SERVICE_RECORDS_MAX: usize = 200;
const RECORDS_MAX: usize = 10_000;
/// What they weigh together: reading ends above it.
pub const BYTES_MAX: usize = 4 << 20;
/// Commands that are under way at once.
const COMMANDS: usize = 4;

/// The recent records of a cache.
pub struct Recent {
    cache: Arc<dyn HotCache>,
    breaker: Mutex<Breaker>,
    /// The lanes as the database had them when it was asked last: the ids of records follow from them when it is away.
    lanes: Mutex<Vec<LaneCursor>>,
}

impl Recent {
    /// Those of `cache`.
    #[must_use]
    pub fn new(cache: Arc<dyn HotCache>) -> Self {
        Self { cache, breaker: Mutex::new(Breaker::new(BREAKER)), lanes: Mutex::default() }
    }

    /// Records above the cursors `lanes`, by position. Empty where the cache does not answer.
    pub async fn unsettled(&self, lanes: Vec<LaneCursor>) -> Vec<Found> {
        let records = self.guarded(async {
            match self.is_ahead(&lanes).await? {
                true => self.records(&lanes, |cached, lane| cached.seq > lane.last_seq).await,
                false => Ok(Vec::new()),
            }
        });
        let records = records.await.unwrap_or_default();
        *lock(&self.lanes) = lanes;
        records
    }

    /// All records of the lanes that are known, by position; none where no lane is, or the cache does not answer.
    pub async fn all(&self) -> Option<Vec<Found>> {
        let lanes = lock(&self.lanes).clone();
        if lanes.is_empty() {
            return None;
        }
        self.guarded(self.records(&lanes, |_, _| true)).await
    }

    async fn guarded<T>(&self, asking: impl Future<Output = Result<T, CacheError>>) -> Option<T> {
        if let Allow::No { .. } = lock(&self.breaker).allow(Instant::now()) {
            return None;
        }
        let answer = asking.await;
        let mut breaker = lock(&self.breaker);
        match answer {
            Ok(answer) => {
                breaker.succeeded(Instant::now());
                Some(answer)
            }
            Err(error) => {
                breaker.failed(Instant::now());
                metrics::counter!("logweir_query_cache_errors_total", "reason" => error.reason).increment(1);
                None
            }
        }
    }

    /// Whether the cache has seen a frame that the database does not have.
    async fn is_ahead(&self, lanes: &[LaneCursor]) -> Result<bool, CacheError> {
        let writers: BTreeSet<_> = lanes.iter().map(|lane| lane.writer).collect();
        for writer in writers {
            let cursors = self.cache.cursors(writer).await?;
            let ahead = |lane: &LaneCursor| cursors.get(&lane.lane).is_some_and(|&seq| seq > lane.last_seq);
            if lanes.iter().filter(|lane| lane.writer == writer).any(ahead) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    async fn records(
        &self,
        lanes: &[LaneCursor],
        wanted: impl Fn(&Cached<'_>, &LaneCursor) -> bool,
    ) -> Result<Vec<Found>, CacheError> {
        let services = self.cache.services().await?;
        let windows = stream::iter(services)
            .map(async |service| self.cache.recent(&service, SERVICE_RECORDS_MAX).await)
            .buffered(COMMANDS);
        let mut windows = std::pin::pin!(windows);
        let (mut found, mut looked_at, mut bytes) = (BTreeMap::<Position, Found>::new(), 0, 0);
        while let Some(window) = windows.try_next().await? {
            looked_at += window.len();
            for text in &window {
                let Some(cached) = Cached::read(text) else { continue };
                let Some(lane) = cached.lane(lanes).filter(|lane| wanted(&cached, lane)) else { continue };
                let Some(record) = cached.found(lane) else { continue };
                bytes += record.bytes();
                found.insert(record.position(), record);
            }
            if looked_at >= RECORDS_MAX || bytes >= BYTES_MAX {
                break;
            }
        }
        Ok(found.into_values().collect())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
