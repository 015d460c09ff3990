//! What all handlers share.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use actix_web::HttpRequest;
use logweir_engine::drain::{DrainWatch, Phase};
use logweir_engine::journal::Journal;
use logweir_engine::topology::Observer;
use logweir_store::LogStore;
use logweir_tls::TlsError;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::answer::HttpError;
use super::budget::Budget;
use super::limits::Limits;
use crate::alerts::AlertRegistry;
use crate::config::{Config, Role};
use crate::gateway::Gateway;
use crate::producer::IntakeHandle;
use crate::progress::Progress;
use crate::search::Searcher;
use crate::tail::TailHub;

/// How often shutdown checks for requests in flight.
const IDLE_POLL: Duration = Duration::from_millis(5);

/// Starts the drain; called by `POST /drain`. May be called more than once.
pub type StartDrain = Arc<dyn Fn() + Send + Sync>;

/// State shared by all handlers. Clones share the same state.
#[derive(Clone)]
pub struct Shared(Arc<Parts>);

/// The parts of [`Shared`] that exist from the start.
pub struct Parts {
    /// The configuration.
    pub config: Arc<Config>,
    /// Current shutdown phase.
    pub drain: DrainWatch,
    /// Progress of the lanes.
    pub progress: Progress,
    /// Renders the metrics.
    pub prometheus: PrometheusHandle,
    /// Starts the drain.
    pub start_drain: StartDrain,
    /// Host name, or another name that distinguishes this process from its siblings, for display.
    pub instance: String,
    /// The processors, if this process is a gateway.
    pub gateway: Option<Gateway>,
    pub(super) started: Instant,
    /// Held by requests that may still submit a body.
    pub(super) in_flight: Arc<()>,
    pub(super) inflight: Budget,
    pub(super) limits: Limits,
    pub(super) running: OnceLock<Running>,
    searcher: OnceLock<Searcher>,
    dead_letter_store: OnceLock<Arc<dyn LogStore>>,
    /// Serializes changes to dead letters.
    pub(super) dead_letters_lock: Semaphore,
}

/// The parts that exist once the journal is open and the stages are spawned.
pub struct Running {
    /// Accepts bodies.
    pub intake: IntakeHandle,
    /// The journal.
    pub journal: Journal,
    /// Observes every actor.
    pub observer: Observer,
    /// Live tail of durable records.
    pub tail: TailHub,
    /// State of the alerts.
    pub alerts: AlertRegistry,
    /// Identity of the journal, known to the database as the writer.
    pub writer: uuid::Uuid,
    /// The current run of the journal.
    pub run: uuid::Uuid,
}

impl Shared {
    /// Creates the state that exists from the start.
    ///
    /// # Errors
    /// The TLS files that a gateway needs to reach its processors cannot be read.
    pub fn new(
        config: Arc<Config>,
        drain: DrainWatch,
        progress: Progress,
        prometheus: PrometheusHandle,
        start_drain: StartDrain,
        instance: String,
    ) -> Result<Self, TlsError> {
        let inflight = Budget::new(config.http.inflight_bytes_max);
        let limits = Limits::new(config.limits);
        let running = OnceLock::new();
        let started = Instant::now();
        let in_flight = Arc::default();
        let gateway = (config.role == Role::Gateway).then(|| Gateway::new(&config)).transpose()?;
        Ok(Self(Arc::new(Parts {
            config,
            drain,
            progress,
            prometheus,
            start_drain,
            instance,
            gateway,
            started,
            in_flight,
            inflight,
            limits,
            running,
            searcher: OnceLock::new(),
            dead_letter_store: OnceLock::new(),
            dead_letters_lock: Semaphore::new(1),
        })))
    }

    /// Adds the remaining parts: from now on bodies are accepted. Returns whether this was the first call.
    pub fn start(&self, running: Running) -> bool {
        self.0.running.set(running).is_ok()
    }

    /// Enables queries. Returns whether this was the first call.
    pub fn set_searcher(&self, searcher: Searcher) -> bool {
        self.0.searcher.set(searcher).is_ok()
    }

    /// Sets the store of the dead letters. Returns whether this was the first call.
    pub fn set_dead_letter_store(&self, store: Arc<dyn LogStore>) -> bool {
        self.0.dead_letter_store.set(store).is_ok()
    }

    pub(super) fn dead_letter_store(&self) -> Result<&Arc<dyn LogStore>, HttpError> {
        self.0
            .dead_letter_store
            .get()
            .ok_or_else(|| HttpError::new(503, "starting", "the store is not open yet: retry shortly"))
    }

    pub(super) fn searcher(&self) -> Result<&Searcher, HttpError> {
        self.0
            .searcher
            .get()
            .ok_or_else(|| HttpError::new(503, "starting", "queries are not available yet: retry shortly"))
    }

    /// Whether a body would be accepted now.
    pub(super) fn accepts_bodies(&self) -> bool {
        self.drain.phase() < Phase::Draining
            && self.running().is_ok_and(|running| running.journal.check_writable().is_ok())
    }

    /// Whether this process can do its job now: accept bodies, or, for a gateway, answer requests.
    pub(super) fn is_ready(&self) -> bool {
        match self.config.role {
            Role::Gateway => self.drain.phase() == Phase::Accepting,
            Role::All | Role::Processor => self.accepts_bodies(),
        }
    }

    /// Total bytes of all bodies that are being read.
    #[must_use]
    pub fn inflight_bytes(&self) -> usize {
        self.0.inflight.used()
    }

    /// Completes once every request that started before shutdown has finished. Has no timeout.
    pub async fn idle(&self) {
        while Arc::strong_count(&self.0.in_flight) > 1 {
            tokio::time::sleep(IDLE_POLL).await;
        }
    }

    /// Returns a guard for work that still submits bodies: shutdown waits until it is dropped.
    #[must_use]
    pub fn in_flight(&self) -> Arc<()> {
        Arc::clone(&self.0.in_flight)
    }

    /// The running pipeline, or the rejection while it does not exist yet.
    pub(super) fn running(&self) -> Result<&Running, HttpError> {
        self.0.running.get().ok_or_else(|| {
            if self.config.role == Role::Gateway {
                return HttpError::new(
                    404,
                    "wrong_role",
                    "a gateway has no pipeline: send this request to a processor",
                );
            }
            let detail = "the journal is still being read: retry later, or watch /startupz on the admin port";
            HttpError::new(503, "starting", detail)
        })
    }
}

impl std::ops::Deref for Shared {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.0
    }
}

/// Number of the connection that a request arrived on, used as its stream.
#[derive(Clone, Copy)]
pub(super) struct Connection(pub u64);

/// The stream of a request: the number of its connection. Requests on a connection that is older than the pipeline
/// share stream 0.
pub(super) fn stream_of(request: &HttpRequest) -> u64 {
    request.conn_data::<Connection>().map_or(0, |connection| connection.0)
}
