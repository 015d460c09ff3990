//! Records that the cache has and the database does not have yet.
//!
//! The database's cursors decide exactly: they are read in the same snapshot as the rows, so a cached record is missing
//! from the rows if and only if its ordinal is above its lane's cursor. A record that the cache has lost becomes visible
//! a moment later, once the database has it; a record that the cache has in excess (from an earlier run or a restored
//! journal) is recognized by its run.
//!
//! A lane that the snapshot does not have, but a processor, is taken from the processor: the database may lack it because
//! nothing can be stored at the moment. Its records have provisional ids until the database has numbered the lane.
//!
//! The cache may be slow or unavailable: it is queried through its own circuit breaker, and a query waits for it no
//! longer than one timeout.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::time::Instant;

use crate::cache::read::Cached;
use crate::cache::{CacheError, HotCache};
use crate::limits::breaker::{Allow, Breaker, BreakerSettings};
use crate::search::completeness::{LaneState, lane_id, provisional_lane_id};
use logweir_query::page::{Found, Position};
use logweir_store::read::LaneCursor;

const BREAKER: BreakerSettings = BreakerSettings { failures_max: 2, open_ms_min: 1_000, open_ms_max: 15_000 };

/// Maximum number of records of one service, and in total, that one query reads.
const SERVICE_RECORDS_MAX: usize = 200;
const RECORDS_MAX: usize = 10_000;
/// Maximum total size of the records in bytes: reading stops above it.
pub const BYTES_MAX: usize = 4 << 20;
/// Maximum number of concurrent commands.
const COMMANDS: usize = 4;

/// The recent records of a cache.
pub struct Recent {
    cache: Arc<dyn HotCache>,
    breaker: Mutex<Breaker>,
    /// The lanes of the latest database snapshot: record ids are derived from them while the database is unavailable.
    lanes: Mutex<Vec<LaneCursor>>,
}

impl Recent {
    /// Reads from `cache`.
    #[must_use]
    pub fn new(cache: Arc<dyn HotCache>) -> Self {
        Self { cache, breaker: Mutex::new(Breaker::new(BREAKER)), lanes: Mutex::default() }
    }

    /// Records above the cursors `stored` and of the lanes that only `expected` has, by position. Empty if the cache does
    /// not respond.
    pub async fn uncommitted(&self, stored: &[LaneCursor], expected: &[LaneState]) -> Vec<Found> {
        let lanes = with_expected(stored, expected);
        let records = self.through_breaker(async {
            let id = |cached: &Cached<'_>| {
                cached.lane(&lanes).filter(|lane| cached.ordinal > lane.records).map(|lane| lane.lane_id)
            };
            match self.is_ahead(&lanes).await? {
                true => self.records(id).await,
                false => Ok(Vec::new()),
            }
        });
        let records = records.await.unwrap_or_default();
        *lock(&self.lanes) = stored.to_vec();
        records
    }

    /// All records, by position, while the database does not answer; `None` if the cache does not respond.
    ///
    /// A record of a lane that neither the latest snapshot nor `expected` has gets a provisional id. It may be of an
    /// earlier run: while there are no rows, it is not in excess.
    pub async fn all(&self, expected: &[LaneState]) -> Option<Vec<Found>> {
        let known = with_expected(&lock(&self.lanes), expected);
        let id = |cached: &Cached<'_>| {
            let known = cached.lane(&known).map(|lane| lane.lane_id);
            Some(known.unwrap_or_else(|| provisional_lane_id(cached.run, cached.lane)))
        };
        self.through_breaker(self.records(id)).await
    }

    async fn through_breaker<T>(&self, request: impl Future<Output = Result<T, CacheError>>) -> Option<T> {
        if let Allow::No { .. } = lock(&self.breaker).allow(Instant::now()) {
            return None;
        }
        let result = request.await;
        let mut breaker = lock(&self.breaker);
        match result {
            Ok(result) => {
                breaker.succeeded(Instant::now());
                Some(result)
            }
            Err(error) => {
                breaker.failed(Instant::now());
                metrics::counter!("logweir_query_cache_errors_total", "reason" => error.reason).increment(1);
                None
            }
        }
    }

    /// Whether the cache has a frame that the database lacks.
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

    /// Reads the records for which `lane_id` returns the id of their lane.
    async fn records(&self, lane_id: impl Fn(&Cached<'_>) -> Option<i64>) -> Result<Vec<Found>, CacheError> {
        let services = self.cache.services().await?;
        let windows = stream::iter(services)
            .map(async |service| self.cache.recent(&service, SERVICE_RECORDS_MAX).await)
            .buffered(COMMANDS);
        let mut windows = std::pin::pin!(windows);
        let (mut found, mut read, mut bytes) = (BTreeMap::<Position, Found>::new(), 0, 0);
        while let Some(window) = windows.try_next().await? {
            read += window.len();
            for text in &window {
                let Some(cached) = Cached::read(text) else { continue };
                let Some(record) = lane_id(&cached).and_then(|lane_id| cached.found(lane_id)) else { continue };
                bytes += record.bytes();
                found.insert(record.position(), record);
            }
            if read >= RECORDS_MAX || bytes >= BYTES_MAX {
                break;
            }
        }
        Ok(found.into_values().collect())
    }
}

/// The lanes `stored`, and those of the runs that only `expected` has.
fn with_expected(stored: &[LaneCursor], expected: &[LaneState]) -> Vec<LaneCursor> {
    let mut lanes = stored.to_vec();
    for state in expected {
        let Some(run) = state.run else { continue };
        let of_writer = stored.iter().find(|lane| (lane.writer, lane.lane) == (state.writer, state.lane));
        let new = match of_writer {
            Some(lane) if lane.run == run => continue,
            // The journal goes on where the earlier run ended.
            Some(lane) => LaneCursor { run, ..lane.clone() },
            None => LaneCursor {
                writer: state.writer,
                run,
                lane: state.lane,
                lane_id: lane_id(state, stored),
                last_seq: 0,
                records: state.inherited,
            },
        };
        lanes.push(new);
    }
    lanes
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    use logweir_record::chunk::Chunk;
    use logweir_record::record::{Record, Severity};
    use logweir_store::{Batch, BatchFrame};
    use uuid::Uuid;

    use crate::cache::Origin;
    use crate::cache::memory::MemoryCache;
    use crate::config::Config;

    const WRITER: Uuid = Uuid::from_u128(1);
    const RUN: Uuid = Uuid::from_u128(2);

    /// A cache with one frame of three records of lane 0, the lane's records 5 to 7.
    async fn recent() -> Recent {
        let cache = MemoryCache::new(&Config::in_dir("data").cache);
        let now_us = logweir_engine::clock::wall_us();
        let mut chunk = Chunk::with_capacity(now_us, 3, 0);
        for message in ["one", "two", "three"] {
            let severity = Severity::INFO;
            chunk.push(Record { ts_us: now_us, severity, service: "s", host: "", message, attributes: "" });
        }
        let frame = BatchFrame { seq: 9, lane_records: 7, payload_crc: 0, dedup_key: None, chunk: Arc::new(chunk) };
        let batch = Batch::new(0, 8, 4, 0, vec![frame]);
        cache.apply(Origin { writer: WRITER, run: RUN }, &batch).await.unwrap();
        Recent::new(Arc::new(cache))
    }

    fn cursor(run: Uuid, last_seq: u64, records: u64) -> LaneCursor {
        LaneCursor { writer: WRITER, run, lane: 0, lane_id: 4, last_seq, records }
    }

    fn state(run: Uuid, lane_id: Option<i64>) -> LaneState {
        let (backlog_age, linger) = (Duration::ZERO, Duration::ZERO);
        let (inherited, committed, accepted, problem) = (4, 4, 7, None);
        LaneState {
            processor: "processor-0".into(),
            writer: WRITER,
            run: Some(run),
            lane: 0,
            lane_id,
            inherited,
            committed,
            accepted,
            backlog_age,
            linger,
            problem,
        }
    }

    fn messages(found: &[Found]) -> Vec<&str> {
        found.iter().map(|found| &*found.message).collect()
    }

    #[tokio::test]
    async fn a_record_of_a_partly_committed_frame_is_returned_once() {
        let recent = recent().await;
        for (last_seq, records, expected) in
            [(8, 4, &["one", "two", "three"][..]), (8, 6, &["three"]), (8, 7, &[]), (9, 7, &[])]
        {
            let found = recent.uncommitted(&[cursor(RUN, last_seq, records)], &[]).await;
            assert_eq!(messages(&found), expected, "after {records} records");
            assert!(found.iter().all(|found| found.id >> 44 == 4));
        }
    }

    #[tokio::test]
    async fn a_lane_that_only_its_processor_has_is_returned_too() {
        let (recent, earlier) = (recent().await, Uuid::from_u128(3));
        assert_eq!(recent.uncommitted(&[], &[]).await, [], "nobody knows whether the run is valid");
        let found = recent.uncommitted(&[], &[state(RUN, None)]).await;
        assert!(messages(&found).len() == 3 && found.iter().all(|found| found.id < 0), "provisional ids");
        // The takeover has not been possible since the last start: the lane is the earlier run's.
        let found = recent.uncommitted(&[cursor(earlier, 8, 5)], &[state(RUN, Some(4))]).await;
        assert_eq!(messages(&found), ["two", "three"]);
        assert_eq!(found[0].id, 4 << 44 | 6);
    }

    #[tokio::test]
    async fn without_a_database_everything_is_returned() {
        let recent = recent().await;
        let ids = async |states: &[LaneState]| -> Vec<i64> {
            recent.all(states).await.unwrap().iter().map(|found| found.id).collect()
        };
        let provisional = ids(&[]).await;
        assert!(provisional.len() == 3 && provisional.iter().all(|&id| id < 0));
        assert_eq!(ids(&[state(RUN, Some(4))]).await, [5, 6, 7].map(|ordinal| 4_i64 << 44 | ordinal));
        recent.uncommitted(&[cursor(RUN, 8, 4)], &[]).await;
        assert_eq!(ids(&[]).await, [5, 6, 7].map(|ordinal| 4_i64 << 44 | ordinal), "as in the latest snapshot");
    }
}
