//! The process's hold on the writer: schema up to date and the journal's identity taken over, once per run.

use std::sync::Arc;

use logweir_engine::journal::{Journal, Recovered};
use tokio::sync::{Mutex, watch};

use crate::progress::Progress;
use crate::store::{Claim, LaneRow, LaneWriter, Lease, LogStore, StoreError};

/// Shared by the flushers of all lanes. The first that gets through prepares the store and takes the writer over.
pub struct Session {
    store: Arc<dyn LogStore>,
    claim: Claim,
    lease: Mutex<Option<Lease>>,
    progress: Progress,
    held: watch::Sender<bool>,
}

impl Session {
    /// A session that has not spoken to the store yet.
    #[must_use]
    pub fn new(store: Arc<dyn LogStore>, recovered: &Recovered, owner: String, progress: Progress) -> Self {
        let claim = Claim {
            writer: recovered.writer,
            run: recovered.run,
            runs: recovered.runs.clone(),
            owner,
            tails: recovered.lanes.iter().map(|(&lane, tail)| (lane, tail.seq)).collect(),
        };
        Self { store, claim, lease: Mutex::new(None), progress, held: watch::Sender::new(false) }
    }

    /// Waits until the writer is ours and the schema is there.
    pub async fn held(&self) {
        // The sender is ours: the wait ends only with the take-over.
        let _ = self.held.subscribe().wait_for(|held| *held).await;
    }

    /// The lane's connection and row, after the take-over.
    ///
    /// # Errors
    /// Whatever the store says; nothing is kept of a failed attempt.
    pub async fn open_lane(&self, lane: u16) -> Result<(Box<dyn LaneWriter>, LaneRow), StoreError> {
        let mut lease = self.lease.lock().await;
        if lease.is_none() {
            self.store.prepare().await?;
            let taken = self.store.take_over(&self.claim).await?;
            tracing::info!(store = self.store.name(), writer = %taken.writer, epoch = taken.epoch, "journal taken over");
            self.progress.epoch(taken.epoch);
            self.held.send_replace(true);
            *lease = Some(taken);
        }
        let Some(held) = lease.as_ref() else { unreachable!("it was set above") };
        self.store.open_lane(held, lane).await
    }
}

/// What lanes the journal knows that the settings do not: a lane outlives a smaller `lanes` setting until it is empty.
#[must_use]
pub fn lanes_needed(configured: u16, journal: &Journal) -> u16 {
    journal.lanes().keys().next_back().map_or(configured, |&last| configured.max(last + 1))
}
