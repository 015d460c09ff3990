//! How far each lane has come: written by the flusher and whoever starts the process, read by intake (`ack=committed`),
//! status and `flush`.
//!
//! - What was accepted is the journal's to say ([`Journal::lanes`](logweir_engine::journal::Journal::lanes)), what is
//!   settled the database's ([`LaneRow`]); this only keeps the newest of the latter and wakes those who wait for it. So the
//!   two sides of the accounting have different witnesses.
//! - It is touched once per flush and once per waiting request, never per record: one lock over a small map will do.
//! - A cursor can move back (the database was restored): who waits for a number then waits for it to come again.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use logweir_engine::journal::{LaneId, LaneTail};
use serde::Serialize;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::backlog::Backlog;
use crate::breaker::BreakerState;
use crate::store::LaneRow;

/// How a lane's way into the store is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase", tag = "state", content = "reason")]
pub enum StoreState {
    /// No connection yet.
    #[default]
    Connecting,
    /// The last flush was committed.
    Ok,
    /// Flushes fail and are tried again.
    Failing(String),
    /// Given up until somebody mends it.
    Stopped(String),
}

/// The start-up: reading the journal back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Recovery {
    /// Bytes of the journal that were read.
    pub bytes_read: u64,
    /// Bytes of the journal in all.
    pub bytes: u64,
    /// Whether it is over: the journal takes appends.
    pub finished: bool,
}

/// One lane's accounting: `accepted = committed + dead + lost + backlog`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LaneSnapshot {
    /// The lane.
    pub lane: LaneId,
    /// Records that the journal was given.
    pub accepted: u64,
    /// Rows in the database.
    pub committed: u64,
    /// Records dead-lettered.
    pub dead: u64,
    /// Records that the journal no longer had when the database needed them: damaged, or not kept long enough.
    pub lost: u64,
    /// Records in the journal that are not settled yet.
    pub backlog: u64,
    /// How long the oldest of them has been waiting, to a second; since the start where it is older than this process.
    pub backlog_age_ms: u64,
    /// Whether the database has said what it has. Until then `committed` is 0 and everything counts as backlog.
    pub asked: bool,
    /// The newest frame in the journal.
    pub seq_last: u64,
    /// The newest frame that the database has.
    pub seq_committed: u64,
    /// The way into the store.
    pub store: StoreState,
}

/// Everything at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Snapshot {
    /// The epoch that is ours; `None` before the take-over.
    pub epoch: Option<i64>,
    /// The start-up.
    pub recovery: Recovery,
    /// Every lane that the journal or the database knows.
    pub lanes: Vec<LaneSnapshot>,
    /// Circuit breakers by name.
    pub breakers: BTreeMap<String, BreakerState>,
    /// The store's name.
    pub store: String,
    /// The cache's name.
    pub cache: String,
}

/// Shared by all that write or read it; a clone is a handle.
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
    store: String,
    cache: String,
}

#[derive(Default)]
struct Lane {
    row: Option<LaneRow>,
    store: StoreState,
    committed_seq: watch::Sender<u64>,
    backlog: Backlog,
}

impl Progress {
    /// The database's row of a lane, after a take-over or a flush.
    pub fn lane_row_updated(&self, row: LaneRow) {
        let mut state = self.state();
        let lane = state.lanes.entry(row.lane).or_default();
        lane.committed_seq.send_replace(row.last_seq);
        lane.row = Some(row);
    }

    /// The number that stands in the ids of the lane's records, once the database has told it.
    #[must_use]
    pub fn lane_id(&self, lane: LaneId) -> Option<i64> {
        Some(self.state().lanes.get(&lane)?.row.as_ref()?.lane_id)
    }

    /// How the lane's way into the store is now.
    pub fn lane_store_state(&self, lane: LaneId, store: StoreState) {
        self.state().lanes.entry(lane).or_default().store = store;
    }

    /// The epoch that a take-over gave.
    pub fn epoch(&self, epoch: i64) {
        self.state().epoch = Some(epoch);
    }

    /// The names of store and cache, for people.
    pub fn names(&self, store: impl Into<String>, cache: impl Into<String>) {
        let mut state = self.state();
        (state.store, state.cache) = (store.into(), cache.into());
    }

    /// The newest frames now, every [`NOTE_EVERY`](crate::backlog::NOTE_EVERY): how old the backlog is, follows from it.
    pub fn note_tails(&self, tails: &BTreeMap<LaneId, LaneTail>, now: Instant) {
        let mut state = self.state();
        for (&id, tail) in tails {
            let lane = state.lanes.entry(id).or_default();
            lane.backlog.note(tail.seq, lane.row.as_ref().map_or(0, |row| row.last_seq), now);
        }
    }

    /// How long the oldest record has been waiting that the database does not have.
    #[must_use]
    pub fn backlog_age(&self, now: Instant) -> Duration {
        let age = |lane: &Lane| lane.backlog.age(lane.row.as_ref().map_or(0, |row| row.last_seq), now);
        self.state().lanes.values().map(age).max().unwrap_or_default()
    }

    /// How the circuit breaker called `name` stands.
    pub fn breaker_state(&self, name: &str, breaker: BreakerState) {
        let breakers = &mut self.state().breakers;
        match breakers.get_mut(name) {
            Some(known) => *known = breaker,
            None => drop(breakers.insert(name.to_owned(), breaker)),
        }
    }

    /// How far the start-up has come.
    pub fn recovery(&self, recovery: Recovery) {
        self.state().recovery = recovery;
    }

    /// Whether the start-up is over.
    #[must_use]
    pub fn recovered(&self) -> bool {
        self.state().recovery.finished
    }

    /// How far the start-up has come.
    #[must_use]
    pub fn recovery_now(&self) -> Recovery {
        self.state().recovery
    }

    /// Waits until the database has `lane` up to `seq`. Puts no limit on the time: the caller does.
    pub async fn committed(&self, lane: LaneId, seq: u64) {
        let mut cursor = self.state().lanes.entry(lane).or_default().committed_seq.subscribe();
        // The sender lives as long as `self`, so the wait ends only with the number.
        let _ = cursor.wait_for(|&committed| committed >= seq).await;
    }

    /// Asks the batchers to let go of what they hold.
    pub fn flush_now(&self) {
        self.0.flushes.send_modify(|count| *count += 1);
    }

    /// Changes with each [`Progress::flush_now`]: what a batcher watches.
    #[must_use]
    pub fn flushes(&self) -> watch::Receiver<u64> {
        self.0.flushes.subscribe()
    }

    /// The accounting, with `tails` as the journal gives them.
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
            store: state.store.clone(),
            cache: state.cache.clone(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Each write is one assignment: a panic elsewhere leaves nothing half done.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn snapshot_of(id: LaneId, tail: Option<LaneTail>, lane: Option<&Lane>) -> LaneSnapshot {
    let known = lane.and_then(|lane| lane.row.clone());
    let asked = known.is_some();
    let row = known.unwrap_or_default();
    // A journal that was emptied by hand knows less than the database. What a lane inherited is another writer's.
    let accepted = tail.map_or(0, |tail| tail.records).max(row.accounted()) - row.inherited;
    let backlog = accepted - (row.rows + row.dead_lettered + row.lost);
    let age = lane.filter(|_| backlog > 0).map(|lane| lane.backlog.age(row.last_seq, Instant::now()));
    LaneSnapshot {
        lane: id,
        accepted,
        committed: row.rows,
        dead: row.dead_lettered,
        lost: row.lost,
        backlog,
        backlog_age_ms: age.map_or(0, |age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX)),
        asked,
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
    fn accepted_is_the_sum_of_what_became_of_it() {
        let progress = Progress::default();
        progress.lane_row_updated(row(0, 5, 100));
        progress.lane_row_updated(row(3, 9, 7)); // gone from the journal
        let tails = BTreeMap::from([(0, LaneTail { seq: 8, records: 150 }), (1, LaneTail { seq: 6, records: 20 })]);
        let lanes = progress.snapshot(&tails).lanes;
        assert_eq!(lanes.iter().map(|lane| (lane.lane, lane.backlog)).collect::<Vec<_>>(), [(0, 47), (1, 20), (3, 0)]);
        for lane in &lanes {
            assert_eq!(lane.accepted, lane.committed + lane.dead + lane.lost + lane.backlog);
        }
    }

    #[test]
    fn who_waits_for_a_commit_is_woken_by_it_and_not_before() {
        let progress = Progress::default();
        let mut early = Box::pin(progress.committed(1, 7)); // before anybody knows the lane
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
    fn a_flush_is_seen_by_every_batcher() {
        let progress = Progress::default();
        let (mut one, two) = (progress.flushes(), progress.clone().flushes());
        progress.flush_now();
        assert!(one.has_changed().unwrap() && two.has_changed().unwrap());
        one.mark_unchanged();
        assert!(!one.has_changed().unwrap());
    }

    #[test]
    fn a_snapshot_reads_well_as_json() {
        let progress = Progress::default();
        progress.names("SQLite", "memory");
        progress.lane_store_state(0, StoreState::Failing("connection refused".into()));
        let json = serde_json::to_value(progress.snapshot(&BTreeMap::new())).unwrap();
        assert_eq!(json["lanes"][0]["store"]["state"], "failing");
        assert_eq!(json["lanes"][0]["store"]["reason"], "connection refused");
        assert_eq!(json["recovery"]["finished"], false);
    }
}
