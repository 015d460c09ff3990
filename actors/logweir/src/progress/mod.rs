//! Progress of each lane: written by the flusher and at startup, read by intake (`ack=committed`), the status and
//! `flush`.
//!
//! - The journal knows what was accepted ([`Journal::lanes`](logweir_engine::journal::Journal::lanes)), and the
//!   database what is committed ([`LaneRow`]); this module only holds the latest row and wakes the requests that wait
//!   for it. The two sides of the accounting thus have independent sources.
//! - It is accessed once per flush and once per waiting request, never per record, so one lock over a small map is
//!   sufficient.
//! - A cursor can move back (the database was restored): a request that waits for a sequence number then waits until it
//!   is reached again.

pub(crate) mod arrivals;
pub(crate) mod backlog;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use logweir_engine::clock;
use logweir_engine::journal::{LaneId, LaneTail};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::Instant;

pub use crate::limits::breaker::BreakerState;
use crate::progress::arrivals::Arrivals;
use crate::progress::backlog::Backlog;
use logweir_store::LaneRow;

/// State of a lane's connection to the store.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "state", content = "reason")]
#[non_exhaustive]
pub enum StoreState {
    /// Not connected yet.
    #[default]
    Connecting,
    /// The last flush was committed.
    Ok,
    /// Flushes fail and are retried.
    Failing(String),
    /// Stopped until the cause is fixed.
    Stopped(String),
}

/// Startup: reading the journal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Recovery {
    /// Bytes of the journal read so far.
    pub bytes_read: u64,
    /// Total bytes of the journal.
    pub bytes: u64,
    /// Whether reading has finished and the journal accepts appends.
    pub finished: bool,
}

/// Accounting of one lane: `accepted = committed + dead_lettered + lost + backlog`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct LaneSnapshot {
    /// The lane.
    pub lane: LaneId,
    /// Records appended to the journal.
    pub accepted: u64,
    /// Records committed to the database as rows, the repeated ones included.
    pub committed: u64,
    /// How many of them are rows of another frame, since a request was repeated.
    #[serde(default)]
    pub repeated: u64,
    /// Dead-lettered records.
    pub dead_lettered: u64,
    /// Records that the journal no longer had when the database needed them: damaged, or not retained long enough.
    pub lost: u64,
    /// Records of the lane before the first one counted here: another writer's, or of the lane before it was reset.
    #[serde(default)]
    pub inherited: u64,
    /// The upper bits of the records' ids; `None` until the database has reported its cursor.
    #[serde(default)]
    pub lane_id: Option<i64>,
    /// Records in the journal that are not committed yet.
    pub backlog: u64,
    /// Age of the oldest of them, to the second; counted from the start of this process if it is older.
    pub backlog_age_ms: u64,
    /// Whether the database has reported its cursor. Until then `committed` is 0 and everything counts as backlog.
    pub cursor_known: bool,
    /// Latest sequence number in the journal.
    pub seq_last: u64,
    /// Latest committed sequence number.
    pub seq_committed: u64,
    /// State of the connection to the store.
    pub store: StoreState,
}

/// A step of the database's maintenance that fails.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct FailingStep {
    /// Its name.
    pub step: &'static str,
    /// Since when, in seconds since 1970.
    pub since_s: i64,
    /// Why, and what to do.
    pub error: String,
}

/// All progress at one point in time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Snapshot {
    /// The epoch that this process owns; `None` before the takeover.
    pub epoch: Option<i64>,
    /// Startup.
    pub recovery: Recovery,
    /// Every lane known to the journal or the database.
    pub lanes: Vec<LaneSnapshot>,
    /// Circuit breakers by name.
    pub breakers: BTreeMap<String, BreakerState>,
    /// Steps of the database's maintenance that fail. They do not affect whether records are stored.
    pub maintenance_failing: Vec<FailingStep>,
    /// Name of the store.
    pub store: String,
    /// Its version; null until it is known, and for one without.
    pub store_version: Option<String>,
    /// Name of the cache.
    pub cache: String,
}

/// Shared by all readers and writers; clones share the same state.
#[derive(Clone, Default)]
pub struct Progress(Arc<Inner>);

#[derive(Default)]
struct Inner {
    state: Mutex<State>,
    flushes: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    epoch: Option<i64>,
    recovery: Recovery,
    lanes: BTreeMap<LaneId, Lane>,
    breakers: BTreeMap<String, BreakerState>,
    maintenance_failing: Vec<FailingStep>,
    store: String,
    store_version: Option<String>,
    cache: String,
}

#[derive(Default)]
struct Lane {
    row: Option<LaneRow>,
    store: StoreState,
    committed_seq: watch::Sender<u64>,
    backlog: Backlog,
    arrivals: Arrivals,
}

impl Progress {
    /// Sets the database's row of a lane, after a takeover or a flush.
    pub fn lane_row_updated(&self, row: LaneRow) {
        let mut state = self.state();
        let lane = state.lanes.entry(row.lane).or_default();
        lane.committed_seq.send_replace(row.last_seq);
        lane.row = Some(row);
    }

    /// The lane id that is part of the record ids, once the database has reported it.
    #[must_use]
    pub fn lane_id(&self, lane: LaneId) -> Option<i64> {
        Some(self.state().lanes.get(&lane)?.row.as_ref()?.lane_id)
    }

    /// Sets the state of a lane's connection to the store.
    pub fn lane_store_state(&self, lane: LaneId, store: StoreState) {
        self.state().lanes.entry(lane).or_default().store = store;
    }

    /// Sets the epoch acquired by a takeover.
    pub fn epoch(&self, epoch: i64) {
        self.state().epoch = Some(epoch);
    }

    /// Sets the display names of store and cache.
    pub fn names(&self, store: impl Into<String>, cache: impl Into<String>) {
        let mut state = self.state();
        (state.store, state.cache) = (store.into(), cache.into());
    }

    /// Sets what the store turned out to be.
    pub fn store(&self, name: String, version: Option<String>) {
        let mut state = self.state();
        (state.store, state.store_version) = (name, version);
    }

    /// Samples the latest sequence numbers, every `SAMPLE_EVERY`, from which the age of the backlog is derived.
    pub fn sample_backlog(&self, tails: &BTreeMap<LaneId, LaneTail>, now: Instant) {
        let now_us = clock::wall_us();
        let mut state = self.state();
        for (&id, tail) in tails {
            let lane = state.lanes.entry(id).or_default();
            lane.arrivals.sample(tail.records, now_us);
            lane.backlog.sample(tail.seq, lane.row.as_ref().map_or(0, |row| row.last_seq), now);
        }
    }

    /// The age of the oldest record that the database lacks.
    #[must_use]
    pub fn backlog_age(&self, now: Instant) -> Duration {
        let age = |lane: &Lane| lane.backlog.age(lane.row.as_ref().map_or(0, |row| row.last_seq), now);
        self.state().lanes.values().map(age).max().unwrap_or_default()
    }

    /// The latest time, in microseconds since 1970, at which a lane had no more than `records`; `None` if that was before
    /// this process started.
    #[must_use]
    pub fn arrived_until(&self, lane: LaneId, records: u64) -> Option<i64> {
        self.state().lanes.get(&lane)?.arrivals.until(records)
    }

    /// Sets the state of the circuit breaker called `name`.
    pub fn breaker_state(&self, name: &str, breaker: BreakerState) {
        let breakers = &mut self.state().breakers;
        match breakers.get_mut(name) {
            Some(row) => *row = breaker,
            None => drop(breakers.insert(name.to_owned(), breaker)),
        }
    }

    /// Sets the steps of the database's maintenance that fail.
    pub fn maintenance_failing(&self, failing: Vec<FailingStep>) {
        self.state().maintenance_failing = failing;
    }

    /// Sets the progress of startup.
    pub fn recovery(&self, recovery: Recovery) {
        self.state().recovery = recovery;
    }

    /// Whether startup has finished.
    #[must_use]
    pub fn recovered(&self) -> bool {
        self.state().recovery.finished
    }

    /// The progress of startup.
    #[must_use]
    pub fn recovery_now(&self) -> Recovery {
        self.state().recovery
    }

    /// Waits until `lane` is committed up to `seq`. Has no timeout; the caller sets one.
    pub async fn committed(&self, lane: LaneId, seq: u64) {
        let mut cursor = self.state().lanes.entry(lane).or_default().committed_seq.subscribe();
        // The sender lives as long as `self`, so the wait ends only with the sequence number.
        let _ = cursor.wait_for(|&committed| committed >= seq).await;
    }

    /// Requests the batchers to flush open batches.
    pub fn flush_now(&self) {
        self.0.flushes.send_modify(|count| *count += 1);
    }

    /// Changes with each [`Progress::flush_now`]; watched by the batchers.
    #[must_use]
    pub fn flushes(&self) -> watch::Receiver<u64> {
        self.0.flushes.subscribe()
    }

    /// The accounting, given the journal's `tails`.
    #[must_use]
    pub fn snapshot(&self, tails: &BTreeMap<LaneId, LaneTail>) -> Snapshot {
        let state = self.state();
        let mut ids: Vec<_> = tails.keys().chain(state.lanes.keys()).copied().collect();
        ids.sort_unstable();
        ids.dedup();
        let lanes = ids.into_iter().map(|id| snapshot_of(id, tails.get(&id).copied(), state.lanes.get(&id))).collect();
        Snapshot {
            epoch: state.epoch,
            recovery: state.recovery,
            lanes,
            breakers: state.breakers.clone(),
            maintenance_failing: state.maintenance_failing.clone(),
            store: state.store.clone(),
            store_version: state.store_version.clone(),
            cache: state.cache.clone(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Each write is a single assignment, so a panic elsewhere leaves the state consistent.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn snapshot_of(id: LaneId, tail: Option<LaneTail>, lane: Option<&Lane>) -> LaneSnapshot {
    let row = lane.and_then(|lane| lane.row.clone());
    let cursor_known = row.is_some();
    let row = row.unwrap_or_default();
    // A journal that was emptied by hand knows less than the database. Inherited records belong to another writer.
    let inherited = row.inherited.saturating_sub(row.repeated);
    let committed = row.rows + row.inherited - inherited;
    let accepted = tail.map_or(0, |tail| tail.records).max(row.accounted()) - inherited;
    let backlog = accepted - (committed + row.dead_lettered + row.lost);
    let age = lane.filter(|_| backlog > 0).map(|lane| lane.backlog.age(row.last_seq, Instant::now()));
    LaneSnapshot {
        lane: id,
        accepted,
        committed,
        repeated: row.inherited - inherited,
        dead_lettered: row.dead_lettered,
        lost: row.lost,
        inherited,
        lane_id: cursor_known.then_some(row.lane_id),
        backlog,
        backlog_age_ms: age.map_or(0, |age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX)),
        cursor_known,
        seq_last: tail.map_or(0, |tail| tail.seq).max(row.last_seq),
        seq_committed: row.last_seq,
        store: lane.map(|lane| lane.store.clone()).unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    fn row(lane: LaneId, last_seq: u64, rows: u64) -> LaneRow {
        LaneRow { lane, last_seq, rows, dead_lettered: 2, lost: 1, ..LaneRow::default() }
    }

    #[test]
    fn accepted_is_the_sum_of_all_outcomes() {
        let progress = Progress::default();
        progress.lane_row_updated(row(0, 5, 100));
        progress.lane_row_updated(row(3, 9, 7)); // no longer in the journal
        let tails = BTreeMap::from([(0, LaneTail { seq: 8, records: 150 }), (1, LaneTail { seq: 6, records: 20 })]);
        let lanes = progress.snapshot(&tails).lanes;
        assert_eq!(lanes.iter().map(|lane| (lane.lane, lane.backlog)).collect::<Vec<_>>(), [(0, 47), (1, 20), (3, 0)]);
        for lane in &lanes {
            assert_eq!(lane.accepted, lane.committed + lane.dead_lettered + lane.lost + lane.backlog);
        }
    }

    #[test]
    fn a_waiter_is_woken_by_its_commit_and_not_earlier() {
        let progress = Progress::default();
        let mut early = Box::pin(progress.committed(1, 7)); // before the lane is known
        assert_eq!(early.as_mut().now_or_never(), None);
        progress.lane_row_updated(row(1, 6, 0));
        assert_eq!(early.as_mut().now_or_never(), None);
        progress.lane_row_updated(row(2, 9, 0));
        assert_eq!(early.as_mut().now_or_never(), None);
        progress.lane_row_updated(row(1, 8, 0));
        assert_eq!(early.as_mut().now_or_never(), Some(()));
        assert_eq!(progress.committed(1, 8).now_or_never(), Some(()));
    }

    #[test]
    fn a_flush_reaches_every_batcher() {
        let progress = Progress::default();
        let (mut one, two) = (progress.flushes(), progress.clone().flushes());
        progress.flush_now();
        assert!(one.has_changed().unwrap() && two.has_changed().unwrap());
        one.mark_unchanged();
        assert!(!one.has_changed().unwrap());
    }

    #[test]
    fn a_snapshot_serializes_to_json() {
        let progress = Progress::default();
        progress.names("SQLite", "memory");
        progress.lane_store_state(0, StoreState::Failing("connection refused".into()));
        let json = serde_json::to_value(progress.snapshot(&BTreeMap::new())).unwrap();
        assert_eq!(json["lanes"][0]["store"]["state"], "failing");
        assert_eq!(json["lanes"][0]["store"]["reason"], "connection refused");
        assert_eq!(json["recovery"]["finished"], false);
    }
}
