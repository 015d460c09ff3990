//! A running logweir without sockets and signals: what a program embeds, and what the server wraps.

use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;

use bytes::Bytes;
use logweir_engine::clock;
use logweir_engine::drain::{DrainControl, DrainEvent, DrainMachine, DrainSettings, DrainWatch, Phase};
use logweir_engine::journal::{Journal, JournalConfig, OpenError, Recovered};
use logweir_engine::stage::Exit;
use logweir_engine::topology::{Observer, Topology};
use tokio::sync::mpsc;
use tokio::time::{Duration, Instant, timeout};

use crate::alerts::AlertRegistry;
use crate::backlog::NOTE_EVERY;
use crate::cache::{self, HotCache, Origin};
use crate::config::{Config, Shutdown};
use crate::db_flusher::{Session, lanes_needed};
use crate::message::{AckLevel, Defaults, Delivery, Encoding, Format, Receipt, Rejection};
use crate::pipeline::{self, Parts};
use crate::producer::{IntakeHandle, answer_channel};
use crate::progress::{LaneSnapshot, Progress, Recovery, Snapshot, StoreState};
use crate::query_throttle::QueryThrottle;
use crate::search::Searcher;
use crate::store::{self, LogStore};
use crate::tail::TailHub;

/// How often partitions are made ahead and retention is applied.
const MAINTENANCE: Duration = Duration::from_secs(300);

/// How often somebody who empties a journal looks whether it is done.
const EMPTIED_POLL: Duration = Duration::from_millis(20);

/// A running pipeline: intake, journal, flushers, cache-writer. Lives on the thread that started it.
pub struct Logweir {
    config: Arc<Config>,
    journal: Journal,
    recovered: Recovered,
    store: Arc<dyn LogStore>,
    cache: Arc<dyn HotCache>,
    searcher: Searcher,
    progress: Progress,
    tail: TailHub,
    alerts: AlertRegistry,
    intake: Option<IntakeHandle>,
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
        Self::start_seen(Arc::new(config), DrainControl::default(), Progress::default()).await
    }

    /// As [`Logweir::start`], for a server that shows the start-up to others.
    ///
    /// # Errors
    /// As [`Logweir::start`].
    pub async fn start_seen(config: Arc<Config>, drain: DrainControl, progress: Progress) -> Result<Self, Exit> {
        Self::start_with(config, Work::Serve, drain, progress).await
    }

    async fn start_with(
        config: Arc<Config>,
        work: Work,
        drain: DrainControl,
        progress: Progress,
    ) -> Result<Self, Exit> {
        let opened = store::open(&config.database).map_err(|error| Exit::new(Exit::CONFIG, error.to_string()))?;
        let store = opened.store();
        let cache = cache::open(&config.cache, config.database.ca_file.as_deref())
            .await
            .map_err(|error| Exit::new(Exit::CONFIG, error.to_string()))?;
        let throttle = QueryThrottle::default();
        let reader = opened.reader(Duration::from_millis(config.query.timeout_ms), throttle.clone());
        let searcher = Searcher::new(reader, Arc::clone(&cache), config.query);
        let (journal, recovered) = open_journal(&config, work.journal_dir(&config)).await?;
        progress.names(store.name(), cache.name());
        let session = Session::new(Arc::clone(&store), &recovered, process_name(), progress.clone());
        let session = Arc::new(if work.adopts() { session.forking(journal.clone()) } else { session });
        let alerts = AlertRegistry::new(&config.alerts, clock::wall_us(), process_name());
        let parts = Parts {
            alerts: alerts.clone(),
            config: Arc::clone(&config),
            journal: journal.clone(),
            session: Arc::clone(&session),
            origin: Origin { writer: recovered.writer, run: recovered.run },
            cache: Arc::clone(&cache),
            progress: progress.clone(),
            drain: drain.watch(),
        };
        let (topology, intake) = match work {
            Work::Serve => {
                let (topology, producers) = pipeline::build(&parts);
                (topology, Some(IntakeHandle::new(producers)))
            }
            Work::Empty { .. } => (pipeline::build_drain_only(&parts), None),
        };
        let tail = TailHub::start(journal.clone(), recovered.writer, progress.clone(), drain.watch(), config.tail)
            .map_err(|error| Exit::new(Exit::UNAVAILABLE, format!("the tail's thread cannot be started: {error}")))?;
        actix_rt::spawn(note_tails(journal.clone(), progress.clone(), throttle, drain.watch()));
        actix_rt::spawn(maintain(Arc::clone(&store), session, drain.watch()));
        progress.recovery(Recovery { finished: true, ..Recovery::default() });
        Ok(Self { intake, config, journal, recovered, store, cache, searcher, progress, tail, alerts, topology, drain })
    }

    /// Takes lines in (NDJSON, a JSON array, plain) and returns when they are as safe as the `ack` setting asks.
    ///
    /// # Errors
    /// The refusal says why, and whether a retry helps.
    pub async fn ingest(&self, body: impl Into<Bytes>) -> Result<Receipt, Rejection> {
        let (reply, answer) = answer_channel();
        let intake = self.intake();
        let delivery = Delivery {
            stream: intake.new_stream(),
            body: body.into(),
            encoding: Encoding::Identity,
            format: Format::Auto,
            defaults: Defaults::default(),
            received_us: clock::wall_us(),
            dedup_key: None,
            ack: self.config.ack,
            reply,
        };
        intake.submit(delivery).await?;
        let receipt = answer.wait().await?;
        if self.config.ack == AckLevel::Committed && receipt.seq > 0 {
            let committed = self.progress.committed(receipt.lane, receipt.seq);
            let patience = Duration::from_millis(self.config.http.ack_timeout_ms);
            if timeout(patience, committed).await.is_err() {
                return Err(Rejection::not_committed());
            }
        }
        Ok(receipt)
    }

    /// The way in, for sources.
    #[must_use]
    pub fn intake(&self) -> IntakeHandle {
        self.intake
            .clone()
            .expect("only what is started to empty a journal has no way in, and that is never handed out")
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

    /// Answers queries.
    #[must_use]
    pub fn searcher(&self) -> Searcher {
        self.searcher.clone()
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

    /// Where durable records can be followed as they come.
    #[must_use]
    pub fn tail(&self) -> TailHub {
        self.tail.clone()
    }

    /// How the alerts stand.
    #[must_use]
    pub fn alerts(&self) -> AlertRegistry {
        self.alerts.clone()
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

    /// Completes when every lane of the journal is in the database, or with the reason why one cannot be brought there.
    async fn emptied(&self) -> Option<String> {
        loop {
            let lanes = self.progress.snapshot(&self.journal.lanes()).lanes;
            let behind = |lane: &&LaneSnapshot| self.journal.lane_durable(lane.lane).seq > lane.seq_committed;
            match lanes.iter().find(behind) {
                None => return None,
                Some(LaneSnapshot { lane, store: StoreState::Stopped(reason), .. }) => {
                    return Some(format!("lane {lane}: {reason}"));
                }
                Some(_) => tokio::time::sleep(EMPTIED_POLL).await,
            }
        }
    }

    /// The way down without a server around it: see [`Logweir::stop_on`].
    pub async fn stop(self) -> ShutdownReport {
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
    ) -> ShutdownReport {
        let began = Instant::now();
        let Shutdown { linger_ms, deadline_ms } = self.config.shutdown;
        let mut machine = DrainMachine::new(DrainSettings { linger_ms, deadline_ms });
        let mut step = machine.on(first, 0);
        let (drain, mut stuck) = (&self.drain, None);
        let (mut failure, mut exited) = (None, pin!(self.topology.exited()));
        let (mut intake_idle, mut draining) = (pin!(intake_idle), pin!(self.topology.drain()));
        while step.phase < Phase::Persisting {
            if drain.advance(step.phase) {
                tracing::info!(phase = ?step.phase, "shutting down");
            }
            let wake_at = step.wake_at_ms.map(|at_ms| began + Duration::from_millis(at_ms));
            let event = tokio::select! {
                () = next_signal(signals) => DrainEvent::Signal,
                () = sleep_until(wake_at) => DrainEvent::Woken,
                exit = &mut exited, if failure.is_none() => {
                    failure = Some(exit);
                    DrainEvent::Requested // it is under way already
                }
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
        let sealed = tokio::task::spawn_blocking(move || journal.seal()).await;
        let sealed =
            sealed.map_err(|error| error.to_string()).and_then(|sealed| sealed.map_err(|error| error.to_string()));
        let failure = failure.or(sealed.err().map(|error| {
            Exit::new(Exit::IO_ERROR, format!(
                "the journal could not be sealed: {error}; what was acknowledged is on disk, the next start recovers"
            ))
        }));
        drain.advance(Phase::Done);
        let accounting = Accounting::of(&self.progress.snapshot(&self.journal.lanes()));
        ShutdownReport { accounting, stuck, failure }
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
    /// Whether the database has said what it has, of every lane. Until then everything counts as backlog.
    pub asked: bool,
}

impl Accounting {
    /// The sum over the lanes of `snapshot`.
    #[must_use]
    pub fn of(snapshot: &Snapshot) -> Self {
        let nothing = Self { asked: true, ..Self::default() };
        snapshot.lanes.iter().fold(nothing, |sum, lane| Self {
            accepted: sum.accepted + lane.accepted,
            committed: sum.committed + lane.committed,
            dead: sum.dead + lane.dead,
            lost: sum.lost + lane.lost,
            backlog: sum.backlog + lane.backlog,
            asked: sum.asked && lane.asked,
        })
    }
}

/// How a [`Logweir`] ended.
#[derive(Clone, Debug)]
pub struct ShutdownReport {
    /// The sum over all lanes.
    pub accounting: Accounting,
    /// Stages that had to be cancelled at the deadline; what they held is in the journal.
    pub stuck: Vec<String>,
    /// What went wrong on the way down: a stage that was fenced or failed too often, a journal that could not be sealed.
    pub failure: Option<Exit>,
}

/// Empties the journal in `dir` into the database and seals it. With `adopt`, a copy that another copy has overtaken gives
/// what only it has, under a new identity.
///
/// # Errors
/// The journal cannot be opened, the database refuses for good, or a lane stands still until somebody mends something.
pub async fn drain_journal(config: Config, dir: PathBuf, adopt: bool) -> Result<ShutdownReport, Exit> {
    let logweir =
        Logweir::start_with(Arc::new(config), Work::Empty { dir, adopt }, DrainControl::default(), Progress::default())
            .await?;
    let failure = tokio::select! {
        exit = logweir.failed() => Some(exit),
        stopped = logweir.emptied() => stopped.map(|reason| Exit::new(Exit::UNAVAILABLE, reason)),
    };
    let stopped = logweir.stop().await;
    failure.map_or(Ok(stopped), Err)
}

/// What a [`Logweir`] is started for.
enum Work {
    Serve,
    Empty { dir: PathBuf, adopt: bool },
}

impl Work {
    fn journal_dir(&self, config: &Config) -> PathBuf {
        match self {
            Self::Serve => config.journal_dir(),
            Self::Empty { dir, .. } => dir.clone(),
        }
    }

    fn adopts(&self) -> bool {
        matches!(self, Self::Empty { adopt: true, .. })
    }
}

async fn open_journal(config: &Config, dir: PathBuf) -> Result<(Journal, Recovered), Exit> {
    let settings = &config.journal;
    let journal_config = JournalConfig {
        dir,
        segment_bytes: settings.segment_bytes,
        quota_bytes: settings.quota_bytes,
        ballast_bytes: settings.ballast_bytes,
        queue_bytes_max: settings.queue_bytes_max,
        retain_segments: settings.retain_segments,
        retain_for: Duration::from_secs(settings.retain_s),
    };
    let opened = tokio::task::spawn_blocking(move || Journal::open(journal_config)).await;
    let opened = opened.map_err(|error| Exit::new(Exit::SOFTWARE, format!("opening the journal failed: {error}")))?;
    opened.map_err(|error| {
        let code = match error {
            OpenError::Locked { .. } => Exit::UNAVAILABLE,
            OpenError::TooNew { .. } | OpenError::InvalidConfig { .. } => Exit::CONFIG,
            OpenError::Io { .. } => Exit::IO_ERROR,
        };
        Exit::new(code, error.to_string())
    })
}

/// Host and process, so that a person who reads the database knows whom to look for.
#[must_use]
pub fn process_name() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{}/{}", host.trim(), std::process::id())
}

/// Notes where the lanes stand, until nothing comes any more, and tells readers how far behind the rows are.
async fn note_tails(journal: Journal, progress: Progress, throttle: QueryThrottle, drain: DrainWatch) {
    loop {
        let now = Instant::now();
        progress.note_tails(&journal.lanes(), now);
        throttle.backlog_is(progress.backlog_age(now));
        tokio::select! {
            () = drain.reached(Phase::Draining) => return,
            () = tokio::time::sleep(NOTE_EVERY) => {}
        }
    }
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
