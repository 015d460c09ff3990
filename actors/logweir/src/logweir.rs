//! The running pipeline without sockets and signals: embedded by programs, wrapped by the server.

use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;

use bytes::Bytes;
use logweir_engine::clock;
use logweir_engine::drain::{DrainControl, DrainEvent, DrainMachine, DrainSettings, DrainStep, DrainWatch, Phase};
use logweir_engine::journal::{Journal, JournalConfig, OpenError, Recovered};
use logweir_engine::topology::{Observer, Topology};
use tokio::sync::mpsc;
use tokio::time::{Duration, Instant, timeout};

use crate::alerts::AlertRegistry;
use crate::cache::{self, HotCache, Origin};
use crate::config::{Config, ConfigError, Shutdown};
use crate::db_flusher::{Session, lanes_needed};
use crate::disk_watch;
use crate::error::Error;
use crate::maintenance;
use crate::message::{AckLevel, Receipt, Rejection};
use crate::pipeline::{self, Parts};
use crate::producer::IntakeHandle;
use crate::progress::backlog::SAMPLE_EVERY;
use crate::progress::{LaneSnapshot, Progress, Recovery, Snapshot, StoreState};
use crate::search::Searcher;
use crate::search::own_lanes::OwnLanes;
use crate::tail::TailHub;
use logweir_store::read::LogReader;
use logweir_store::throttle::QueryThrottle;
use logweir_store::{self as store, LogStore};

/// Interval at which `drain_journal` checks whether the journal is empty.
const DRAINED_POLL: Duration = Duration::from_millis(20);

/// A program's own store, and its reader, which answers queries.
type OwnStore = (Arc<dyn LogStore>, Option<Arc<dyn LogReader>>);

/// A running pipeline: intake, journal, flushers, cache writer. It stays on the thread that started it.
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
    /// Opens the journal, recovering it if necessary, and starts every stage. Does not wait for the database.
    ///
    /// Must be called on a thread with a running actix system (`actix_rt::System` or `#[actix_web::main]`).
    ///
    /// # Errors
    /// The configuration is invalid ([`Config::validate`]), or the journal cannot be opened.
    pub async fn start(config: Config) -> Result<Self, Error> {
        Self::start_observed(Arc::new(config), DrainControl::default(), Progress::default()).await
    }

    /// Like [`Logweir::start`], with `store` in place of the log store that `config.database` names. `reader` answers
    /// queries; without one they are rejected.
    ///
    /// `config.database` still counts in three places: it is validated, [`Config::lanes`] is 1 if it is SQLite, and
    /// [`Logweir::memory_bytes_max`] then includes SQLite's page caches, not the memory of `store`. The query throttle,
    /// which pauses queries while the store is behind the intake, only exists for the readers of logweir's own stores:
    /// `reader` does not get it.
    ///
    /// # Errors
    /// As [`Logweir::start`].
    pub async fn start_on(
        config: Config,
        store: Arc<dyn LogStore>,
        reader: Option<Arc<dyn LogReader>>,
    ) -> Result<Self, Error> {
        let own = Some((store, reader));
        Self::start_with(Arc::new(config), Work::Serve, own, DrainControl::default(), Progress::default()).await
    }

    /// As [`Logweir::start`], with the shutdown phase and the progress of the startup visible from outside.
    ///
    /// # Errors
    /// As [`Logweir::start`].
    pub async fn start_observed(config: Arc<Config>, drain: DrainControl, progress: Progress) -> Result<Self, Error> {
        Self::start_with(config, Work::Serve, None, drain, progress).await
    }

    async fn start_with(
        config: Arc<Config>,
        work: Work,
        own: Option<OwnStore>,
        drain: DrainControl,
        progress: Progress,
    ) -> Result<Self, Error> {
        config.validate()?;
        let throttle = QueryThrottle::default();
        let (store, reader) = match own {
            Some(own) => own,
            None => {
                let opened = store::open(&config.database).map_err(|error| ConfigError::at("database.url", error))?;
                let timeout = Duration::from_millis(config.query.timeout_ms);
                (opened.store(), opened.reader(timeout, throttle.clone()))
            }
        };
        let cache = cache::open(&config.cache, config.database.ca_file.as_deref())
            .await
            .map_err(|error| ConfigError::at("cache.url", error))?;
        let (journal, recovered) = open_journal(&config, work.journal_dir(&config)).await?;
        let lanes = OwnLanes {
            journal: journal.clone(),
            writer: recovered.writer,
            run: recovered.run,
            linger: Duration::from_millis(config.batch.linger_ms),
            progress: progress.clone(),
        };
        let searcher = Searcher::new(reader, Arc::clone(&cache), Arc::new(lanes), config.query);
        progress.names(store.name(), cache.name());
        let session = Session::new(Arc::clone(&store), journal.clone(), &recovered, process_name(), progress.clone());
        let session = Arc::new(if work.adopts() { session.forking() } else { session });
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
                (topology, Some(IntakeHandle::new(&producers)))
            }
            Work::Empty { .. } => (pipeline::build_drain_only(&parts), None),
        };
        let tail = TailHub::start(journal.clone(), recovered.writer, progress.clone(), drain.watch(), config.tail)
            .map_err(|error| Error::Unavailable(format!("cannot start the thread of the live tail: {error}")))?;
        actix_rt::spawn(sample_backlog(journal.clone(), progress.clone(), throttle, drain.watch()));
        actix_rt::spawn(disk_watch::run(journal.clone(), disk_watch::limit(&config), drain.watch()));
        if config.database.maintenance {
            actix_rt::spawn(maintenance::run(Arc::clone(&store), session, progress.clone(), drain.watch()));
        }
        progress.recovery(Recovery { finished: true, ..Recovery::default() });
        Ok(Self { intake, config, journal, recovered, store, cache, searcher, progress, tail, alerts, topology, drain })
    }

    /// Parses `body` (NDJSON, a JSON array or plain lines) and returns when the records are as durable as `ack`
    /// requires.
    ///
    /// # Errors
    /// The rejection has the reason, and whether a retry can succeed.
    pub async fn ingest(&self, body: impl Into<Bytes>) -> Result<Receipt, Rejection> {
        let intake = self.intake();
        let (mut delivery, answer) = intake.delivery(body);
        delivery.ack = self.config.ack;
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

    /// Handle for sources to submit records; `Send`, and cheap to clone.
    #[must_use]
    pub fn intake(&self) -> IntakeHandle {
        self.intake
            .clone()
            .expect("only a pipeline that empties a journal has no intake, and it is never returned to a caller")
    }

    /// Returns the journal.
    #[must_use]
    pub fn journal(&self) -> Journal {
        self.journal.clone()
    }

    /// Returns what recovery found.
    #[must_use]
    pub fn recovered(&self) -> &Recovered {
        &self.recovered
    }

    /// Returns the accounting of records.
    #[must_use]
    pub fn progress(&self) -> Progress {
        self.progress.clone()
    }

    /// Returns the log store.
    #[must_use]
    pub fn store(&self) -> Arc<dyn LogStore> {
        Arc::clone(&self.store)
    }

    /// Returns the query engine.
    #[must_use]
    pub fn searcher(&self) -> Searcher {
        self.searcher.clone()
    }

    /// Returns the hot cache.
    #[must_use]
    pub fn cache(&self) -> Arc<dyn HotCache> {
        Arc::clone(&self.cache)
    }

    /// Returns an observer of all stages.
    #[must_use]
    pub fn observer(&self) -> Observer {
        self.topology.observer()
    }

    /// Returns the live tail of durable records.
    #[must_use]
    pub fn tail(&self) -> TailHub {
        self.tail.clone()
    }

    /// Returns the state of the alerts.
    #[must_use]
    pub fn alerts(&self) -> AlertRegistry {
        self.alerts.clone()
    }

    /// Returns a watch on the shutdown phase.
    #[must_use]
    pub fn watch(&self) -> DrainWatch {
        self.drain.watch()
    }

    /// Upper bound of the memory used for records, in bytes, by component.
    #[must_use]
    pub fn memory_bytes_max(&self) -> Vec<(&'static str, usize)> {
        let lanes = usize::from(lanes_needed(self.config.lanes(), &self.journal));
        pipeline::memory_bytes_max(&self.config, self.topology.bytes_max(), lanes)
    }

    /// Waits until the pipeline cannot continue: it was fenced, a stage failed too often, or the disk failed.
    ///
    /// Call [`Logweir::stop`] then.
    pub async fn failed(&self) -> Error {
        tokio::select! {
            exit = self.topology.exited() => exit.into(),
            reason = self.journal.poisoned() => Error::Disk(format!(
                "journal {}: {reason}: acknowledged records are on disk; restart to recover them",
                self.config.data_dir.display())),
        }
    }

    /// Waits until every lane of the journal is in the database; returns the reason if a lane was stopped.
    async fn drained(&self) -> Option<String> {
        loop {
            let lanes = self.progress.snapshot(&self.journal.lanes()).lanes;
            let behind = |lane: &&LaneSnapshot| self.journal.lane_durable(lane.lane).seq > lane.seq_committed;
            match lanes.iter().find(behind) {
                None => return None,
                Some(LaneSnapshot { lane, store: StoreState::Stopped(reason), .. }) => {
                    return Some(format!("lane {lane}: {reason}"));
                }
                Some(_) => tokio::time::sleep(DRAINED_POLL).await,
            }
        }
    }

    /// Stops in order: see [`Logweir::stop_on`].
    pub async fn stop(self) -> ShutdownReport {
        let (_, mut no_signals) = mpsc::channel(1);
        self.stop_on(DrainEvent::Requested, &mut no_signals, std::future::ready(())).await
    }

    /// Shuts down: lingers, rejects new records, waits for `intake_idle`, writes everything queued to the journal and
    /// as much as possible to the database until `shutdown.deadline_ms` or a second signal, and seals the journal.
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
            let wake_at = wake_at(step, began);
            let event = tokio::select! {
                () = next_signal(signals) => DrainEvent::Signal,
                () = sleep_until(wake_at) => DrainEvent::Timer,
                exit = &mut exited, if failure.is_none() => {
                    failure = Some(Error::from(exit));
                    DrainEvent::Requested // the shutdown has already started
                }
                () = &mut intake_idle, if step.phase == Phase::Draining && !step.drain_stages => DrainEvent::IntakeIdle,
                late = &mut draining, if step.drain_stages && stuck.is_none() => {
                    stuck = Some(late);
                    DrainEvent::StagesDrained
                }
            };
            step = machine.on(event, elapsed_ms(began));
        }
        drain.advance(Phase::Persisting);
        let stuck = match stuck {
            Some(stuck) => stuck,
            None => draining.await,
        };
        let journal = self.journal.clone();
        let limit = wake_at(step, began).map_or(Duration::ZERO, |at| at.saturating_duration_since(Instant::now()));
        let mut sealing = tokio::task::spawn_blocking(move || journal.seal_within(limit));
        let sealed = loop {
            let event = tokio::select! {
                sealed = &mut sealing => {
                    let sealed = sealed.map_err(|error| error.to_string());
                    break sealed.and_then(|sealed| sealed.map_err(|error| error.to_string()));
                }
                () = next_signal(signals) => DrainEvent::Signal,
                () = sleep_until(wake_at(step, began)) => DrainEvent::Timer,
            };
            step = machine.on(event, elapsed_ms(began));
            if step.phase == Phase::Done {
                break Err("its disk does not answer".to_owned());
            }
        };
        let failure = failure.or(sealed.err().map(|error| {
            Error::Disk(format!(
                "cannot seal the journal: {error}; acknowledged records are on disk, and the next start recovers them"
            ))
        }));
        drain.advance(Phase::Done);
        let accounting = Accounting::of(&self.progress.snapshot(&self.journal.lanes()));
        ShutdownReport { accounting, stuck, failure }
    }
}

fn wake_at(step: DrainStep, began: Instant) -> Option<Instant> {
    step.wake_at_ms.map(|at_ms| began + Duration::from_millis(at_ms))
}

fn elapsed_ms(began: Instant) -> u64 {
    u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// Waits for the next signal; forever, once no sender is left.
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

/// Sums over all lanes: `accepted = committed + dead_lettered + lost + backlog`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct Accounting {
    /// Records appended to the journal.
    pub accepted: u64,
    /// Rows committed to the database.
    pub committed: u64,
    /// Records dead-lettered.
    pub dead_lettered: u64,
    /// Records lost to damage in the journal; each range was logged when it was found.
    pub lost: u64,
    /// Records that are only in the journal.
    pub backlog: u64,
    /// Whether the database has reported its cursor of every lane. Until then, everything counts as backlog.
    pub cursors_known: bool,
}

impl Accounting {
    /// Sums the lanes of `snapshot`.
    #[must_use]
    pub fn of(snapshot: &Snapshot) -> Self {
        let nothing = Self { cursors_known: true, ..Self::default() };
        snapshot.lanes.iter().fold(nothing, |sum, lane| Self {
            accepted: sum.accepted + lane.accepted,
            committed: sum.committed + lane.committed,
            dead_lettered: sum.dead_lettered + lane.dead_lettered,
            lost: sum.lost + lane.lost,
            backlog: sum.backlog + lane.backlog,
            cursors_known: sum.cursors_known && lane.cursor_known,
        })
    }
}

/// Result of a shutdown.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ShutdownReport {
    /// Sums over all lanes.
    pub accounting: Accounting,
    /// Stages that were canceled at the deadline; their records are in the journal.
    pub stuck: Vec<String>,
    /// Failure during the shutdown: a stage that was fenced or failed too often, or a journal that could not be sealed.
    pub failure: Option<Error>,
}

/// Flushes the journal in `dir` to the database and seals it.
///
/// With `adopt`, a copy of a journal whose original has continued writes the records that only the copy has, under a
/// new identity.
///
/// # Errors
/// The configuration is invalid, the journal cannot be opened, or the database rejects a lane until an operator intervenes.
pub async fn drain_journal(config: Config, dir: PathBuf, adopt: bool) -> Result<ShutdownReport, Error> {
    let logweir = Logweir::start_with(
        Arc::new(config),
        Work::Empty { dir, adopt },
        None,
        DrainControl::default(),
        Progress::default(),
    )
    .await?;
    let failure = tokio::select! {
        exit = logweir.failed() => Some(exit),
        stopped = logweir.drained() => stopped.map(Error::Unavailable),
    };
    let stopped = logweir.stop().await;
    failure.map_or(Ok(stopped), Err)
}

/// Purpose of a pipeline.
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

pub(crate) async fn open_journal(config: &Config, dir: PathBuf) -> Result<(Journal, Recovered), Error> {
    let settings = &config.journal;
    let journal_config = JournalConfig {
        segment_bytes: settings.segment_bytes,
        quota_bytes: settings.quota_bytes,
        ballast_bytes: settings.ballast_bytes,
        queue_bytes_max: settings.queue_bytes_max,
        retain_segments: settings.retain_segments,
        retain_for: Duration::from_secs(settings.retain_s),
        ..JournalConfig::new(dir)
    };
    let opened = tokio::task::spawn_blocking(move || Journal::open(journal_config)).await;
    let opened = opened.map_err(|error| Error::Stage(format!("opening the journal failed: {error}")))?;
    opened.map_err(|error| match error {
        OpenError::InvalidConfig { field, .. } => ConfigError::at(&format!("journal.{field}"), error).into(),
        OpenError::Locked { .. } => Error::Unavailable(error.to_string()),
        OpenError::TooNew { .. } | OpenError::TooOld { .. } => ConfigError::at("data_dir", error).into(),
        _ => Error::Disk(error.to_string()),
    })
}

/// Host name and process ID: shown in the database as the owner of the lease.
#[must_use]
pub fn process_name() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{}/{}", host.trim(), std::process::id())
}

/// Samples the end of each lane periodically, and reports the age of the backlog to the query throttle.
async fn sample_backlog(journal: Journal, progress: Progress, throttle: QueryThrottle, drain: DrainWatch) {
    loop {
        let now = Instant::now();
        progress.sample_backlog(&journal.lanes(), now);
        throttle.set_backlog_age(progress.backlog_age(now));
        tokio::select! {
            () = drain.reached(Phase::Draining) => return,
            () = tokio::time::sleep(SAMPLE_EVERY) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use logweir_store::DatabaseUrl;
    use logweir_store::blackhole::BlackholeStore;

    /// The error of a start with a changed configuration; nothing may have been created.
    fn start_error(set: impl FnOnce(&mut Config)) -> Error {
        let dir = tempfile::tempdir().unwrap();
        let data_dir = dir.path().join("data");
        let mut config = Config::in_dir(&data_dir);
        set(&mut config);
        let started = actix_rt::System::new().block_on(Logweir::start(config));
        assert!(!data_dir.exists(), "an invalid configuration created the data_dir");
        started.err().expect("the configuration is invalid")
    }

    #[test]
    fn an_invalid_configuration_of_a_program_is_an_error_of_the_start() {
        for (key, set) in [
            ("lanes", (|config| config.lanes = Some(0)) as fn(&mut Config)),
            ("query.running_max", |config| config.query.running_max = 0),
            ("journal.quota_bytes", |config| config.journal.quota_bytes = 1),
            ("batch.rows_max", |config| config.batch.rows_max = 0),
            ("database.url", |config| config.database.url = DatabaseUrl::Postgres("nonsense".to_owned())),
        ] {
            let error = start_error(set);
            assert!(
                matches!(&error, Error::Config(error) if error.0.iter().any(|problem| problem.key == key)),
                "{error}"
            );
            assert_eq!(error.code(), 78);
        }
    }

    #[test]
    fn a_program_can_bring_its_own_store() {
        let dir = tempfile::tempdir().unwrap();
        actix_rt::System::new().block_on(async {
            let store = Arc::new(BlackholeStore::default());
            let logweir = Logweir::start_on(Config::in_dir(dir.path()), store, None).await.unwrap();
            let (delivery, answer) = logweir.intake().delivery("one\ntwo");
            logweir.intake().submit(delivery).await.unwrap();
            assert_eq!(answer.wait().await.unwrap().report.accepted, 2);
            let stopped = logweir.stop().await;
            assert_eq!((stopped.accounting.committed, stopped.failure), (2, None));
        });
        assert!(!dir.path().join("logweir.db").exists(), "the configured store was not opened");
    }

    #[test]
    fn a_journal_in_use_is_unavailable() {
        let dir = tempfile::tempdir().unwrap();
        actix_rt::System::new().block_on(async {
            let first = Logweir::start(Config::in_dir(dir.path())).await.unwrap();
            assert!(first.recovered().created);
            let second = Logweir::start(Config::in_dir(dir.path())).await.err().expect("the journal is locked");
            assert!(matches!(second, Error::Unavailable(_)), "{second:?}");
            assert_eq!(second.code(), 69);
            assert_eq!(first.stop().await.failure, None);
        });
    }
}
