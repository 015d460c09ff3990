//! A running logweir without sockets and signals: what a program embeds, and what the server wraps.

use std::pin::pin;
use std::sync::Arc;

use bytes::Bytes;
use logweir_engine::clock;
use logweir_engine::drain::{DrainControl, DrainEvent, DrainMachine, DrainSettings, DrainWatch, Phase};
use logweir_engine::journal::{Journal, JournalConfig, OpenError, Recovered};
use logweir_engine::stage::Exit;
use logweir_engine::topology::{Observer, Topology};
use tokio::sync::mpsc;
use tokio::time::{Duration, Instant};

use crate::cache::{self, HotCache};
use crate::config::{Config, Shutdown};
use crate::db_flusher::{Session, lanes_needed};
use crate::message::{Defaults, Delivery, Encoding, Format, Receipt, Refusal};
use crate::pipeline::{self, Parts};
use crate::producer::IntakeHandle;
use crate::progress::{Progress, Recovery, Snapshot};
use crate::store::{self, LogStore};

/// How often partitions are made ahead and retention is applied.
const MAINTENANCE: Duration = Duration::from_secs(300);

/// A running pipeline: intake, journal, flushers, cache-writer. Lives on the thread that started it.
pub struct Logweir {
    config: Arc<Config>,
    journal: Journal,
    recovered: Recovered,
    store: Arc<dyn LogStore>,
    cache: Arc<dyn HotCache>,
    progress: Progress,
    intake: IntakeHandle,
    topology: Topology,
    drain: DrainControl,
}

impl Logweir {
    /// Opens (and if need be recovers) the journal and starts every stage. Does not wait for the database.
    ///
    /// Must be called inside an actix system (`actix_rt::System` or `#[actix_web::main]`).
    ///
    /// # Errors
    /// The journal cannot be opened, or the database or cache settings cannot work.
    pub async fn start(config: Config) -> Result<Self, Exit> {
        Self::start_with(config, true).await
    }

    /// As [`Logweir::start`], but takes nothing in: empties the journal into the database.
    ///
    /// # Errors
    /// As [`Logweir::start`].
    pub async fn start_draining(config: Config) -> Result<Self, Exit> {
        Self::start_with(config, false).await
    }

    async fn start_with(config: Config, takes_in: bool) -> Result<Self, Exit> {
        let config = Arc::new(config);
        let store = store::open(&config.database).await.map_err(|error| Exit::new(Exit::CONFIG, error.to_string()))?;
        let cache = cache::open(&config.cache, config.database.ca_file.as_deref())
            .await
            .map_err(|error| Exit::new(Exit::CONFIG, error.to_string()))?;
        let (journal, recovered) = open_journal(&config).await?;
        let progress = Progress::default();
        progress.names(store.name(), cache.name());
        let session = Arc::new(Session::new(Arc::clone(&store), &recovered, owner(), progress.clone()));
        let drain = DrainControl::default();
        let parts = Parts {
            config: Arc::clone(&config),
            journal: journal.clone(),
            session: Arc::clone(&session),
            writer: recovered.writer,
            cache: Arc::clone(&cache),
            progress: progress.clone(),
            drain: drain.watch(),
        };
        let (topology, producers) =
            if takes_in { pipeline::build(&parts) } else { (pipeline::build_drain_only(&parts), Vec::new()) };
        actix_rt::spawn(maintain(Arc::clone(&store), session, drain.watch()));
        progress.recovery(Recovery { finished: true, ..Recovery::default() });
        Ok(Self {
            intake: IntakeHandle::new(producers),
            config,
            journal,
            recovered,
            store,
            cache,
            progress,
            topology,
            drain,
        })
    }

    /// Takes lines in (NDJSON, a JSON array, plain) and returns when they are as safe as the `ack` setting asks.
    ///
    /// # Errors
    /// Nothing of the body is stored; the refusal says why and whether a retry helps.
    pub async fn ingest(&self, body: impl Into<Bytes>) -> Result<Receipt, Refusal> {
        let (reply, answer) = tokio::sync::oneshot::channel();
        let delivery = Delivery {
            stream: 0,
            body: body.into(),
            encoding: Encoding::Identity,
            format: Format::Auto,
            defaults: Defaults::default(),
            received_us: clock::wall_us(),
            ack: self.config.ack,
            reply,
        };
        self.intake.submit(delivery).await?;
        let receipt = answer.await.unwrap_or_else(|_| Err(Refusal::restarted()))?;
        if self.config.ack == crate::message::AckLevel::Committed {
            self.progress.committed(receipt.lane, receipt.seq).await;
        }
        Ok(receipt)
    }

    /// The way in, for sources.
    #[must_use]
    pub fn intake(&self) -> IntakeHandle {
        self.intake.clone()
    }

    /// The journal.
    #[must_use]
    pub fn journal(&self) -> Journal {
        self.journal.clone()
    }

    /// What recovery found.
    #[must_use]
    pub fn recovered(&self) -> &Recovered {
        &self.recovered
    }

    /// The accounting.
    #[must_use]
    pub fn progress(&self) -> Progress {
        self.progress.clone()
    }

    /// The log store.
    #[must_use]
    pub fn store(&self) -> Arc<dyn LogStore> {
        Arc::clone(&self.store)
    }

    /// The hot cache.
    #[must_use]
    pub fn cache(&self) -> Arc<dyn HotCache> {
        Arc::clone(&self.cache)
    }

    /// Sees every actor.
    #[must_use]
    pub fn observer(&self) -> Observer {
        self.topology.observer()
    }

    /// Sees where the way down stands.
    #[must_use]
    pub fn watch(&self) -> DrainWatch {
        self.drain.watch()
    }

    /// The most bytes that are held for records, by holder.
    #[must_use]
    pub fn memory_bytes_max(&self) -> Vec<(&'static str, usize)> {
        let lanes = usize::from(lanes_needed(self.config.lanes, &self.journal));
        pipeline::memory_bytes_max(&self.config, self.topology.bytes_max(), lanes)
    }

    /// Completes when a stage wants the process to end, has failed too often, or the disk has failed.
    pub async fn failed(&self) -> Exit {
        tokio::select! {
            exit = self.topology.exited() => exit,
            what = self.journal.poisoned() => Exit::new(Exit::IO_ERROR, format!(
                "the journal in {} cannot be trusted any more: {what}; what was acknowledged is on disk, restart to read it again",
                self.config.data_dir.display())),
        }
    }

    /// The way down without a server around it: see [`Logweir::stop_on`].
    pub async fn stop(self) -> Stopped {
        let (_, mut no_signals) = mpsc::channel(1);
        self.stop_on(DrainEvent::Requested, &mut no_signals, std::future::ready(())).await
    }

    /// The way down: lingers, refuses new records, waits for `intake_idle`, brings everything queued into the journal and as
    /// much as possible into the database until `shutdown.deadline_ms` or a second signal, seals the journal.
    pub async fn stop_on(
        mut self,
        first: DrainEvent,
        signals: &mut mpsc::Receiver<()>,
        intake_idle: impl Future<Output = ()>,
    ) -> Stopped {
        let began = Instant::now();
        let Shutdown { linger_ms, deadline_ms } = self.config.shutdown;
        let mut machine = DrainMachine::new(DrainSettings { linger_ms, deadline_ms });
        let mut step = machine.on(first, 0);
        let (drain, mut stuck) = (&self.drain, None);
        let (mut intake_idle, mut draining) = (pin!(intake_idle), pin!(self.topology.drain()));
        while step.phase < Phase::Persisting {
            if drain.advance(step.phase) {
                tracing::info!(phase = ?step.phase, "shutting down");
            }
            let wake_at = step.wake_at_ms.map(|at_ms| began + Duration::from_millis(at_ms));
            let event = tokio::select! {
                () = next_signal(signals) => DrainEvent::Signal,
                () = sleep_until(wake_at) => DrainEvent::Woken,
                () = &mut intake_idle, if step.phase == Phase::Draining && !step.drain_stages => DrainEvent::IntakeIdle,
                late = &mut draining, if step.drain_stages && stuck.is_none() => {
                    stuck = Some(late);
                    DrainEvent::StagesDrained
                }
            };
            step = machine.on(event, u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX));
        }
        drain.advance(Phase::Persisting);
        let stuck = match stuck {
            Some(stuck) => stuck,
            None => draining.await,
        };
        let journal = self.journal.clone();
        let seal_error = match tokio::task::spawn_blocking(move || journal.seal()).await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(error) => Some(error.to_string()),
        };
        drain.advance(Phase::Done);
        Stopped { accounting: Accounting::of(&self.progress.snapshot(&self.journal.lanes())), stuck, seal_error }
    }
}

/// The next signal; never, once nobody can send one.
async fn next_signal(signals: &mut mpsc::Receiver<()>) {
    if signals.recv().await.is_none() {
        std::future::pending().await
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// The sum over all lanes: `accepted = committed + dead + lost + backlog`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Accounting {
    /// Records that the journal was given.
    pub accepted: u64,
    /// Rows in the database.
    pub committed: u64,
    /// Records dead-lettered.
    pub dead: u64,
    /// Records lost to damage in the journal, each range named when it was found.
    pub lost: u64,
    /// Records that only the journal has.
    pub backlog: u64,
}

impl Accounting {
    /// The sum over the lanes of `snapshot`.
    #[must_use]
    pub fn of(snapshot: &Snapshot) -> Self {
        snapshot.lanes.iter().fold(Self::default(), |sum, lane| Self {
            accepted: sum.accepted + lane.accepted,
            committed: sum.committed + lane.committed,
            dead: sum.dead + lane.dead,
            lost: sum.lost + lane.lost,
            backlog: sum.backlog + lane.backlog,
        })
    }
}

/// How a [`Logweir`] ended.
#[derive(Clone, Debug)]
pub struct Stopped {
    /// The sum over all lanes.
    pub accounting: Accounting,
    /// Stages that had to be cancelled at the deadline; what they held is in the journal.
    pub stuck: Vec<String>,
    /// Why the journal could not be sealed; what was acknowledged is safe all the same.
    pub seal_error: Option<String>,
}

async fn open_journal(config: &Config) -> Result<(Journal, Recovered), Exit> {
    let settings = &config.journal;
    let journal_config = JournalConfig {
        dir: config.data_dir.join("journal"),
        segment_bytes: settings.segment_bytes,
        quota_bytes: settings.quota_bytes,
        ballast_bytes: settings.ballast_bytes,
        queue_bytes_max: settings.queue_bytes_max,
        retain_segments: settings.retain_segments,
    };
    let opened = tokio::task::spawn_blocking(move || Journal::open(journal_config)).await;
    let opened = opened.map_err(|error| Exit::new(Exit::SOFTWARE, format!("opening the journal failed: {error}")))?;
    opened.map_err(|error| {
        let code = match error {
            OpenError::Locked { .. } => Exit::UNAVAILABLE,
            OpenError::TooNew { .. } => Exit::CONFIG,
            OpenError::Io { .. } => Exit::IO_ERROR,
        };
        Exit::new(code, error.to_string())
    })
}

/// Host and process, so that a person who reads the database knows whom to look for.
fn owner() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{}/{}", host.trim(), std::process::id())
}

/// Partitions ahead and retention, once the schema is there.
async fn maintain(store: Arc<dyn LogStore>, session: Arc<Session>, drain: DrainWatch) {
    loop {
        tokio::select! {
            () = drain.reached(Phase::Draining) => return,
            () = session.held() => {}
        }
        if let Err(error) = store.maintain(clock::wall_us()).await {
            tracing::warn!(%error, "partitions and retention could not be looked after: trying again in five minutes");
        }
        tokio::select! {
            () = drain.reached(Phase::Draining) => return,
            () = tokio::time::sleep(MAINTENANCE) => {}
        }
    }
}
