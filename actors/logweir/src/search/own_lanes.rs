//! The lanes of this process, with which its queries are compared.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use logweir_engine::journal::{Journal, LaneId};
use uuid::Uuid;

use crate::progress::Progress;
use crate::search::completeness::{LaneState, Lanes};

/// The lanes of one journal.
pub struct OwnLanes {
    /// The journal.
    pub journal: Journal,
    /// Its UUID.
    pub writer: Uuid,
    /// Its current run.
    pub run: Uuid,
    /// `batch.linger_ms`
    pub linger: Duration,
    /// What the database has.
    pub progress: Progress,
}

#[async_trait]
impl Lanes for OwnLanes {
    async fn states(&self) -> Vec<LaneState> {
        let snapshot = self.progress.snapshot(&self.journal.lanes());
        let this: Arc<str> = "this process".into();
        let state = |lane| LaneState::of(Arc::clone(&this), self.writer, Some(self.run), self.linger, lane);
        snapshot.lanes.iter().map(state).collect()
    }

    fn arrived_until(&self, writer: Uuid, lane: LaneId, records: u64) -> Option<i64> {
        self.progress.arrived_until(lane, records).filter(|_| writer == self.writer)
    }
}
