//! The process's lease: prepares the schema and acquires the writer's lease, once per run.

use std::sync::{Arc, PoisonError};

use logweir_engine::journal::{Journal, LaneId, Recovered};
use tokio::sync::{Mutex, watch};
use tokio::time::{Duration, Instant, timeout};

use super::failure_log::{Failure, FailureLog};
use crate::progress::Progress;
use logweir_store::{Claim, ForkPoint, LaneRow, LaneStart, LaneWriter, Lease, LogStore, StoreError};

/// Time limit for making the tables, or bringing them up to date: longer than the limits that the server enforces.
const PREPARE_LIMIT: Duration = Duration::from_secs(120);
/// Time limit of the other steps: longer than the limits that the server enforces, too, which do not help if the server
/// accepts connections and then stays silent (it is frozen, or the network has dropped the connection's state).
const ANSWER_LIMIT: Duration = Duration::from_secs(45);

/// Shared by the flushers of all lanes. The first to reach the database prepares the store and acquires the lease.
pub struct Session {
    store: Arc<dyn LogStore>,
    claim: Claim,
    journal: Journal,
    /// Whether this journal is a stale copy whose own frames are to be saved under a new writer.
    forks: bool,
    lease: Mutex<Option<Lease>>,
    progress: Progress,
    held: watch::Sender<bool>,
    failure_log: std::sync::Mutex<FailureLog>,
}

impl Session {
    /// Creates a session without connecting to the store yet.
    #[must_use]
    pub fn new(
        store: Arc<dyn LogStore>,
        journal: Journal,
        recovered: &Recovered,
        owner: String,
        progress: Progress,
    ) -> Self {
        let claim = Claim::of(recovered, owner);
        Self {
            store,
            claim,
            journal,
            forks: false,
            lease: Mutex::new(None),
            progress,
            held: watch::Sender::new(false),
            failure_log: std::sync::Mutex::default(),
        }
    }

    /// For a copy that another copy has overtaken: flushes the frames that only this journal has, under a new writer.
    #[must_use]
    pub fn forking(self) -> Self {
        Self { forks: true, ..self }
    }

    /// For a journal of which an operator says that it is the only copy.
    #[must_use]
    pub fn of_only_copy(mut self) -> Self {
        self.claim.only_copy = true;
        self
    }

    /// Drops the lease because the database was restored to an earlier time; the next lane acquires it again.
    pub async fn forget(&self) {
        *self.lease.lock().await = None;
    }

    /// Prepares the tables, which is cheap if they are there, and acquires the lease.
    ///
    /// A lane needs the lease alone. If the tables cannot be prepared now, because another process is about to and is
    /// slow or frozen, they may still be there: whether they are is then shown by acquiring the lease.
    async fn take(&self) -> Result<Lease, StoreError> {
        let slow = match limited(PREPARE_LIMIT, self.store.prepare()).await {
            Ok(()) => return self.acquire().await,
            Err(StoreError::Transient(what)) => what,
            Err(error) => return Err(error),
        };
        match self.acquire().await {
            Ok(lease) => {
                tracing::warn!(
                    error = slow,
                    "could not check whether the tables are up to date; they are there, and records are stored"
                );
                Ok(lease)
            }
            Err(StoreError::Transient(_) | StoreError::Systemic(_)) => Err(StoreError::Transient(slow)),
            Err(error) => Err(error),
        }
    }

    async fn acquire(&self) -> Result<Lease, StoreError> {
        let inherited = if self.forks { self.store.fork_point(&self.claim).await? } else { None };
        let Some(inherited) = inherited else {
            return limited(ANSWER_LIMIT, self.store.acquire_lease(&self.claim)).await;
        };
        if !inherited.exact {
            tracing::warn!(
                "the other copy has run without reaching the database before: frames that both copies have count as \
                 the other copy's; see `logweir help journal drain`, option --adopt"
            );
        }
        let claim = Claim { writer: inherited.writer, ..self.claim.clone() };
        self.store.fork(&claim, &lane_starts(&self.journal, &inherited).await?).await
    }

    /// Waits until the schema is prepared and the lease is acquired.
    pub async fn held(&self) {
        // `self` owns the sender, so the wait ends only when the lease is acquired.
        let _ = self.held.subscribe().wait_for(|held| *held).await;
    }

    /// Records a failure of a lane. Returns the number of suppressed failures if it is to be logged.
    pub(super) fn failed(&self, lane: LaneId, failure: Failure, text: &str) -> Option<u64> {
        self.failure_log().failed(lane, failure, text, Instant::now())
    }

    /// Records a success of a lane. Returns how long the failure before it lasted, if there was one.
    pub(super) fn succeeded(&self, lane: LaneId) -> Option<Duration> {
        self.failure_log().succeeded(lane, Instant::now())
    }

    fn failure_log(&self) -> std::sync::MutexGuard<'_, FailureLog> {
        self.failure_log.lock().unwrap_or_else(PoisonError::into_inner) // it only decides what is logged
    }

    /// Acquires the lease if necessary, then opens the lane's connection. Returns the connection and the lane's row.
    ///
    /// # Errors
    /// The store's error. A failed attempt leaves no state behind.
    pub async fn open_lane(&self, lane: u16) -> Result<(Box<dyn LaneWriter>, LaneRow), StoreError> {
        let mut lease = self.lease.lock().await;
        let held = self.acquired(&mut lease).await?;
        let opened = limited(ANSWER_LIMIT, self.store.open_lane(held, lane)).await?;
        self.progress.store(self.store.name(), self.store.version());
        Ok(opened)
    }

    /// Acquires the lease.
    ///
    /// # Errors
    /// The store's error.
    pub async fn acquire_lease(&self) -> Result<Lease, StoreError> {
        let mut lease = self.lease.lock().await;
        Ok(self.acquired(&mut lease).await?.clone())
    }

    async fn acquired<'l>(&self, lease: &'l mut Option<Lease>) -> Result<&'l Lease, StoreError> {
        if lease.is_none() {
            let taken = self.take().await?;
            let Lease { writer, epoch } = &taken;
            let (store, version) = (self.store.name(), self.store.version());
            tracing::info!(store, version, %writer, epoch, "acquired the journal's lease");
            self.progress.store(store, version);
            if taken.writer == self.claim.writer {
                self.journal.confirm_run();
            }
            self.progress.epoch(taken.epoch);
            self.held.send_replace(true);
            *lease = Some(taken);
        }
        let Some(held) = lease.as_ref() else { unreachable!("the lease was set above") };
        Ok(held)
    }
}

async fn limited<T>(limit: Duration, step: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
    let timed_out =
        |_| Err(StoreError::Transient(format!("the database did not respond within {} s", limit.as_secs())));
    timeout(limit, step).await.unwrap_or_else(timed_out)
}

/// Returns where each lane shared with another copy starts: after the last shared frame, with the records up to it, or
/// inside of the frame after that.
async fn lane_starts(journal: &Journal, inherited: &ForkPoint) -> Result<Vec<LaneStart>, StoreError> {
    let mut starts = Vec::new();
    for lane in &inherited.lanes {
        let (mut reader, tail) = (journal.reader(lane.lane, lane.seq), journal.lane_durable(lane.lane));
        let first = tokio::task::spawn_blocking(move || reader.next_frames(1, 1)).await;
        let first = match first {
            Ok(Ok(frames)) => frames.into_iter().next(),
            Ok(Err(error)) => return Err(StoreError::Transient(format!("cannot read the journal: {error}"))),
            Err(error) => return Err(StoreError::Transient(format!("the journal read task failed: {error}"))),
        };
        let records = first.map_or(tail.records, |frame| frame.lane_records - u64::from(frame.records));
        starts.push(lane.start(records));
    }
    Ok(starts)
}

/// Returns the number of lanes to run: a lane in the journal outlives a smaller `lanes` setting until it is empty.
#[must_use]
pub fn lanes_needed(configured: u16, journal: &Journal) -> u16 {
    journal.lanes().keys().next_back().map_or(configured, |&last| configured.max(last + 1))
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;
    use logweir_engine::journal::JournalConfig;
    use logweir_store::blackhole::BlackholeStore;
    use logweir_store::{DeadLetter, MaintenanceStep, StoredCount};
    use uuid::Uuid;

    use super::*;

    /// A store of which another process prepares the tables.
    struct Preparing {
        store: BlackholeStore,
        /// Whether waiting for it ends with an error of the server, or not at all.
        refused: bool,
        tables: bool,
    }

    #[async_trait]
    impl LogStore for Preparing {
        fn name(&self) -> String {
            self.store.name()
        }

        async fn prepare(&self) -> Result<(), StoreError> {
            if self.refused {
                return Err(StoreError::Transient("lock timeout".into()));
            }
            std::future::pending().await
        }

        async fn acquire_lease(&self, claim: &Claim) -> Result<Lease, StoreError> {
            match self.tables {
                true => self.store.acquire_lease(claim).await,
                false => Err(StoreError::Systemic("relation does not exist".into())),
            }
        }

        async fn fork_point(&self, claim: &Claim) -> Result<Option<ForkPoint>, StoreError> {
            self.store.fork_point(claim).await
        }

        async fn fork(&self, claim: &Claim, starts: &[LaneStart]) -> Result<Lease, StoreError> {
            self.store.fork(claim, starts).await
        }

        async fn open_lane(&self, lease: &Lease, lane: LaneId) -> Result<(Box<dyn LaneWriter>, LaneRow), StoreError> {
            self.store.open_lane(lease, lane).await
        }

        async fn maintain(&self, now_us: i64) -> Vec<MaintenanceStep> {
            self.store.maintain(now_us).await
        }

        async fn lanes(&self, writer: Uuid) -> Result<Vec<LaneRow>, StoreError> {
            self.store.lanes(writer).await
        }

        async fn count_stored(&self, row: &LaneRow) -> Result<StoredCount, StoreError> {
            self.store.count_stored(row).await
        }

        async fn dead_letters(&self, limit: u32) -> Result<Vec<DeadLetter>, StoreError> {
            self.store.dead_letters(limit).await
        }

        async fn replay_dead_letter(&self, letter: &DeadLetter) -> Result<(), StoreError> {
            self.store.replay_dead_letter(letter).await
        }

        async fn purge_dead_letters(&self, before_us: i64) -> Result<u64, StoreError> {
            self.store.purge_dead_letters(before_us).await
        }
    }

    async fn open(refused: bool, tables: bool) -> Result<LaneRow, StoreError> {
        let dir = tempfile::tempdir().unwrap();
        let session = Session {
            store: Arc::new(Preparing { store: BlackholeStore::default(), refused, tables }),
            claim: Claim::new(Uuid::from_u128(1), Uuid::from_u128(2), "test"),
            journal: Journal::open(JournalConfig::new(dir.path())).unwrap().0,
            forks: false,
            lease: Mutex::default(),
            progress: Progress::default(),
            held: watch::Sender::new(false),
            failure_log: std::sync::Mutex::default(),
        };
        session.open_lane(0).await.map(|(_, row)| row)
    }

    #[tokio::test(start_paused = true)]
    async fn a_lane_opens_although_another_process_never_ends_preparing_the_tables() {
        for refused in [true, false] {
            assert!(open(refused, true).await.is_ok(), "the tables are there; refused: {refused}");
            assert!(matches!(open(refused, false).await, Err(StoreError::Transient(_))), "they are not");
        }
    }
}
