//! A store that discards every record: to benchmark the rest of the pipeline, or to use the hot cache alone.
//!
//! It commits each batch at once and has no history: records that are in a journal when its lease is acquired count as
//! committed.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use logweir_engine::journal::LaneId;
use tokio::time::Instant;
use uuid::Uuid;

use crate::batch::Batch;
use crate::dead_letter::DeadLetter;
use crate::error::{Rejection, StoreError};
use crate::lane::{Flushed, LaneRow, LaneStart, StoredCount};
use crate::lease::{Claim, ForkPoint, Lease};
use crate::maintenance::MaintenanceStep;
use crate::store::{LaneWriter, LogStore};
use crate::telemetry::measure;

/// Cheap to clone; clones share their lanes.
#[derive(Clone, Default)]
pub struct BlackholeStore {
    lanes: Arc<Mutex<BTreeMap<LaneId, LaneRow>>>,
}

impl BlackholeStore {
    fn lanes(&self) -> MutexGuard<'_, BTreeMap<LaneId, LaneRow>> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct BlackholeLane {
    store: BlackholeStore,
    lane: LaneId,
}

#[async_trait]
impl LogStore for BlackholeStore {
    fn name(&self) -> String {
        "blackhole".to_owned()
    }

    async fn prepare(&self) -> Result<(), StoreError> {
        tracing::warn!("database.url is a blackhole: every record is accepted, counted as committed and discarded");
        Ok(())
    }

    async fn acquire_lease(&self, claim: &Claim) -> Result<Lease, StoreError> {
        let mut lanes = self.lanes();
        for &(lane, tail) in &claim.tails {
            let row = LaneRow { lane, last_seq: tail.seq, inherited: tail.records, ..LaneRow::default() };
            lanes.entry(lane).or_insert(row);
        }
        Ok(Lease { writer: claim.writer, epoch: 1 })
    }

    async fn fork_point(&self, _: &Claim) -> Result<Option<ForkPoint>, StoreError> {
        Ok(None)
    }

    async fn fork(&self, claim: &Claim, _: &[LaneStart]) -> Result<Lease, StoreError> {
        self.acquire_lease(claim).await
    }

    async fn open_lane(&self, _: &Lease, lane: LaneId) -> Result<(Box<dyn LaneWriter>, LaneRow), StoreError> {
        let row = self.lanes().entry(lane).or_insert_with(|| LaneRow { lane, ..LaneRow::default() }).clone();
        Ok((Box::new(BlackholeLane { store: self.clone(), lane }), row))
    }

    async fn maintain(&self, _: i64) -> Vec<MaintenanceStep> {
        Vec::new()
    }

    async fn lanes(&self, _: Uuid) -> Result<Vec<LaneRow>, StoreError> {
        Ok(self.lanes().values().cloned().collect())
    }

    async fn count_stored(&self, _: &LaneRow) -> Result<StoredCount, StoreError> {
        Err(StoreError::Systemic("database.url is a blackhole: it stores no records to count".to_owned()))
    }

    async fn dead_letters(&self, _: u32) -> Result<Vec<DeadLetter>, StoreError> {
        Ok(Vec::new())
    }

    async fn replay_dead_letter(&self, letter: &DeadLetter) -> Result<(), StoreError> {
        Err(StoreError::Systemic(format!(
            "unknown dead letter {}: database.url is a blackhole, which has no dead letters",
            letter.id
        )))
    }

    async fn purge_dead_letters(&self, _: i64) -> Result<u64, StoreError> {
        Ok(0)
    }
}

#[async_trait]
impl LaneWriter for BlackholeLane {
    async fn flush(&mut self, batch: &Batch) -> Result<Flushed, StoreError> {
        let started = Instant::now();
        let flushed = Flushed { rows: batch.records(), ..Flushed::default() };
        if let Some(row) = self.store.lanes().get_mut(&self.lane) {
            (row.last_seq, row.digest) = (batch.to_seq(), batch.digest());
            row.rows += flushed.rows;
            row.lost += batch.lost();
        }
        let flushed = Ok(flushed);
        measure(batch.lane, started, &flushed);
        flushed
    }

    async fn dead_letter(&mut self, batch: &Batch, _: &Rejection) -> Result<Flushed, StoreError> {
        self.flush(batch).await
    }
}
