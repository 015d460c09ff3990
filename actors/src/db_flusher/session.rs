//! The process's hold on the writer: schema up to date and the journal's identity taken over, once per run.

use std::sync::Arc;

use logweir_engine::journal::{Journal, Recovered};
use tokio::sync::{Mutex, watch};
use tokio::time::{Duration, timeout};

use crate::progress::Progress;
use crate::store::{Claim, Inheritance, LaneRow, LaneStart, LaneWriter, Lease, LogStore, StoreError};

/// How long a migration may take: longer than any, since a big table may be rebuilt in it.
const PREPARE_LIMIT: Duration = Duration::from_secs(3600);
/// How long the rest of a take-over may take: longer than the limits that the server itself has been given. They do not help
/// where the server takes connections and then says nothing (it is frozen, or the network has forgotten the connection).
const ANSWER_LIMIT: Duration = Duration::from_secs(45);

/// Shared by the flushers of all lanes. The first that gets through prepares the store and takes the writer over.
pub struct Session {
    store: Arc<dyn LogStore>,
    claim: Claim,
    /// Set when this journal is a copy whose own frames are to be saved: they are adopted under a new identity.
    adopt_from: Option<Journal>,
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
            tails: recovered.lanes.iter().map(|(&lane, &tail)| (lane, tail)).collect(),
        };
        Self { store, claim, adopt_from: None, lease: Mutex::new(None), progress, held: watch::Sender::new(false) }
    }

    /// For a copy that another copy has overtaken: flush what only `journal` has, under an identity of its own.
    #[must_use]
    pub fn adopting(self, journal: Journal) -> Self {
        Self { adopt_from: Some(journal), ..self }
    }

    /// The take-over is void (the database was put back to an earlier time): the next lane takes over again.
    pub async fn forget(&self) {
        *self.lease.lock().await = None;
    }

    async fn take(&self) -> Result<Lease, StoreError> {
        limited(PREPARE_LIMIT, self.store.prepare()).await?;
        let inherited = match &self.adopt_from {
            Some(journal) => self.store.inheritance(&self.claim).await?.map(|inherited| (journal, inherited)),
            None => None,
        };
        let Some((journal, inherited)) = inherited else {
            return limited(ANSWER_LIMIT, self.store.take_over(&self.claim)).await;
        };
        if !inherited.exact {
            tracing::warn!(
                "the other copy has run without reaching the database before: frames that it shares with \
                            this one are taken for its own, see the documentation of `journal drain --adopt`"
            );
        }
        let claim = Claim { writer: inherited.writer, ..self.claim.clone() };
        self.store.adopt(&claim, &lane_starts(journal, &inherited).await?).await
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
            let taken = self.take().await?;
            tracing::info!(store = self.store.name(), writer = %taken.writer, epoch = taken.epoch, "journal taken over");
            self.progress.epoch(taken.epoch);
            self.held.send_replace(true);
            *lease = Some(taken);
        }
        let Some(held) = lease.as_ref() else { unreachable!("it was set above") };
        limited(ANSWER_LIMIT, self.store.open_lane(held, lane)).await
    }
}

async fn limited<T>(limit: Duration, step: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
    let silent = |_| Err(StoreError::Transient(format!("the database has not answered for {} s", limit.as_secs())));
    timeout(limit, step).await.unwrap_or_else(silent)
}

/// Where each lane begins that another copy shares up to a frame: after that frame, with the records counted until then.
async fn lane_starts(journal: &Journal, inherited: &Inheritance) -> Result<Vec<LaneStart>, StoreError> {
    let mut starts = Vec::new();
    for &(lane, seq) in &inherited.up_to_seq {
        let (mut reader, tail) = (journal.reader(lane, seq), journal.lane_durable(lane));
        let first = tokio::task::spawn_blocking(move || reader.next_frames(1, 1)).await;
        let first = match first {
            Ok(Ok(frames)) => frames.into_iter().next(),
            Ok(Err(error)) => return Err(StoreError::Transient(format!("the journal cannot be read: {error}"))),
            Err(error) => return Err(StoreError::Transient(format!("reading the journal failed: {error}"))),
        };
        let records = first.map_or(tail.records, |frame| frame.lane_records - u64::from(frame.records));
        starts.push(LaneStart { lane, seq, records });
    }
    Ok(starts)
}

/// What lanes the journal knows that the settings do not: a lane outlives a smaller `lanes` setting until it is empty.
#[must_use]
pub fn lanes_needed(configured: u16, journal: &Journal) -> u16 {
    journal.lanes().keys().next_back().map_or(configured, |&last| configured.max(last + 1))
}
