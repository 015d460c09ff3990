//! The two HTTP listeners: data (intake) and admin.
//!
//! - Overload and shutdown are reported, never waited out: every wait has a limit, and every rejection carries a
//!   reason, a sentence and, where a retry can succeed, `Retry-After`.
//! - Every request passes `gate`, which authorizes it by path (unknown paths are closed by default) and counts the
//!   response.
//! - The admin listener can be up before the journal is open: until [`Shared::start`], everything except the probes
//!   answers `starting`.

use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use actix_web::body::MessageBody;
use actix_web::dev::{Server, ServerHandle, ServiceRequest, ServiceResponse};
use actix_web::http::Method;
use actix_web::http::header::HeaderMap;
use actix_web::middleware::{Next, from_fn};
use actix_web::web::{self, ServiceConfig};
use actix_web::{App, Error, HttpMessage, HttpRequest, HttpResponse, HttpServer};
use logweir_engine::drain::{DrainWatch, Phase};
use logweir_engine::journal::Journal;
use logweir_engine::topology::Observer;
use metrics_exporter_prometheus::PrometheusHandle;
use rustls::ServerConfig;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::alerts::AlertRegistry;
use crate::config::{Config, Role};
use crate::gateway::Gateway;
use crate::producer::IntakeHandle;
use crate::progress::Progress;
use crate::search::Searcher;
use crate::tail::TailHub;
use logweir_store::LogStore;
use logweir_tls::{self as tls, TlsError};

pub mod answer;
pub mod api;
pub mod auth;
mod admin;
mod alerts;
mod budget;
mod dead_letters;
mod error_responses;
mod idempotency;
mod elastic;
mod ingest;
mod intake;
mod limits;
mod loki;
mod otlp;
mod ui;
mod parameters;
mod pipeline;
mod role;
mod splunk;
mod status;
mod tail;

use answer::{Answer, HttpError};
use auth::Listener;
use budget::Budget;
use limits::Limits;

/// How long the unread rest of a body is read and discarded after an early response, so that the client sees the
/// response instead of a connection reset.
const LINGER: Duration = Duration::from_secs(2);

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
    started: Instant,
    /// Held by requests that may still submit a body.
    in_flight: Arc<()>,
    inflight: Budget,
    limits: Limits,
    running: OnceLock<Running>,
    searcher: OnceLock<Searcher>,
    dead_letter_store: OnceLock<Arc<dyn LogStore>>,
    /// Serializes changes to dead letters.
    dead_letters_lock: Semaphore,
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

    fn dead_letter_store(&self) -> Result<&Arc<dyn LogStore>, HttpError> {
        self.0
            .dead_letter_store
            .get()
            .ok_or_else(|| HttpError::new(503, "starting", "the store is not open yet: retry shortly"))
    }

    fn searcher(&self) -> Result<&Searcher, HttpError> {
        self.0
            .searcher
            .get()
            .ok_or_else(|| HttpError::new(503, "starting", "queries are not available yet: retry shortly"))
    }

    /// Whether a body would be accepted now.
    fn accepts_bodies(&self) -> bool {
        self.drain.phase() < Phase::Draining
            && self.running().is_ok_and(|running| running.journal.check_writable().is_ok())
    }

    /// Whether this process can do its job now: accept bodies, or, for a gateway, answer requests.
    fn is_ready(&self) -> bool {
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
    fn running(&self) -> Result<&Running, HttpError> {
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
struct Connection(u64);

/// A server, which runs while its future is awaited, and its address.
pub struct Serving {
    /// Completes when the server has stopped.
    pub server: Server,
    /// Stops the server: `stop(true)` lets requests in flight finish.
    pub handle: ServerHandle,
    /// The listen address.
    pub address: SocketAddr,
}

/// Starts the data listener on `listener`. Must be called inside an actix system.
///
/// # Errors
/// The listener cannot be used, or the TLS files cannot be loaded.
pub fn serve_data(shared: &Shared, listener: TcpListener) -> std::io::Result<Serving> {
    let workers = shared.config.http.workers;
    let connections_max = shared.config.http.connections_max;
    let tls = shared.config.http.tls().map(|files| tls::server_config("http", files)).transpose();
    let tls = tls.map_err(std::io::Error::other)?;
    serve(shared, listener, tls, Listener::Data, workers, connections_max, data_routes)
}

/// Starts the admin listener on `listener`. Must be called inside an actix system.
///
/// # Errors
/// The listener cannot be used.
pub fn serve_admin(shared: &Shared, listener: TcpListener) -> std::io::Result<Serving> {
    // Never uses TLS: probes have no certificate, and the port serves only this machine and its kubelet.
    serve(shared, listener, None, Listener::Admin, 1, 64, admin_routes)
}

fn serve(
    shared: &Shared,
    listener: TcpListener,
    tls: Option<ServerConfig>,
    which: Listener,
    workers: usize,
    connections_max: usize,
    routes: fn(&mut ServiceConfig),
) -> std::io::Result<Serving> {
    let address = listener.local_addr()?;
    let request_timeout = Duration::from_millis(shared.config.http.request_timeout_ms);
    let streams = shared.clone();
    let shared = shared.clone();
    let server = HttpServer::new(move || {
        App::new().app_data(web::Data::new(shared.clone())).app_data(which).wrap(from_fn(gate)).configure(routes)
    })
    .workers(workers)
    .max_connections(connections_max.div_ceil(workers))
    .client_request_timeout(request_timeout)
    .client_disconnect_timeout(LINGER)
    // A client that disconnects ends its query. A half-closed connection counts as disconnected.
    .h1_allow_half_closed(false)
    .keep_alive(request_timeout.max(Duration::from_secs(75)))
    // A short response must not wait for the client's next TCP acknowledgment.
    .tcp_nodelay(true)
    .on_connect(move |_, data| {
        if let Some(running) = streams.running.get() {
            data.insert(Connection(running.intake.new_stream()));
        }
    })
    .disable_signals();
    let server = match tls {
        None => server.listen(listener)?,
        Some(tls) => server.listen_rustls_0_23(listener, tls)?,
    }
    .run();
    Ok(Serving { handle: server.handle(), server, address })
}

fn data_routes(routes: &mut ServiceConfig) {
    routes
        .configure(ui::routes)
        .service(with_methods("/ingest", &["POST"]).route(web::post().to(ingest::ingest)))
        .service(get_or_head("/api/v1/status", status::status))
        .service(get_or_head("/api/v1/pipeline", pipeline::pipeline))
        .service(with_methods("/api/v1/alerts", &["GET"]).route(web::get().to(alerts::alerts)))
        .configure(dead_letters::routes)
        .service(with_methods("/api/v1/tail", &["GET"]).route(web::get().to(tail::tail)))
        .service(get_or_head("/ready", ready))
        .configure(api::routes)
        .configure(loki::routes)
        .service(with_methods("/v1/logs", &["POST"]).route(web::post().to(otlp::export)))
        .configure(splunk::routes)
        .configure(elastic::routes)
        .default_service(web::to(|request: HttpRequest| not_found(request, DATA_ENDPOINTS)));
}

fn admin_routes(routes: &mut ServiceConfig) {
    for path in ["/livez", "/healthz", "/health"] {
        routes.service(get_or_head(path, admin::livez));
    }
    for path in ["/readyz", "/ready"] {
        routes.service(get_or_head(path, admin::readyz));
    }
    routes
        .service(get_or_head("/startupz", admin::startupz))
        .service(get_or_head("/metrics", admin::metrics))
        .service(get_or_head("/api/v1/status", status::status))
        .service(with_methods("/drain", &["POST"]).route(web::post().to(admin::drain)))
        .service(with_methods("/flush", &["POST"]).route(web::post().to(admin::flush)))
        .default_service(web::to(|request: HttpRequest| not_found(request, ADMIN_ENDPOINTS)));
}

/// A resource that accepts GET and HEAD.
fn get_or_head<H, F>(path: &'static str, handler: H) -> actix_web::Resource
where
    H: Fn(web::Data<Shared>) -> F + Clone + 'static,
    F: Future<Output = Answer> + 'static,
{
    with_methods(path, &["GET", "HEAD"]).route(web::get().to(handler.clone())).route(web::head().to(handler))
}

/// A resource that answers any other method with 405 and the allowed ones.
fn with_methods(path: &'static str, methods: &'static [&'static str]) -> actix_web::Resource {
    web::resource(path).default_service(web::to(move |request: HttpRequest| async move {
        let methods = methods.join(", ");
        Answer::from(HttpError::method_not_allowed(&request, &methods)).with_header("Allow", methods)
    }))
}

/// Endpoints of the data listener, as listed for an unknown path.
const DATA_ENDPOINTS: &str = "GET /, POST /ingest, POST /loki/api/v1/push, POST /v1/logs, POST /_bulk, \
                              POST /services/collector, GET /api/v1/query, GET /api/v1/hits, GET /api/v1/facets, \
                              GET /api/v1/context, GET /api/v1/fields, GET /api/v1/services, GET /api/v1/tail, \
                              GET /api/v1/alerts, GET /api/v1/pipeline, GET /api/v1/status, \
                              GET /api/v1/dead-letters, GET /api/v1/docs, GET /ready";

/// Endpoints of the admin listener, as listed for an unknown path.
const ADMIN_ENDPOINTS: &str = "GET /livez, GET /readyz, GET /startupz, GET /metrics, GET /api/v1/status, \
                               POST /drain, POST /flush";

async fn not_found(request: HttpRequest, endpoints: &'static str) -> Answer {
    Answer::error(404, "not_found", format!("unknown path {:?}: expected one of {endpoints}", request.path()))
}

/// Readiness as log shippers and, on a gateway, Grafana query it: 200 if a request would be answered now.
async fn ready(shared: web::Data<Shared>) -> Answer {
    if shared.is_ready() {
        Answer::text("text/plain; charset=utf-8", "ready\n".to_owned())
    } else {
        HttpError::new(503, "not_ready", "not ready for requests: see /readyz on the admin port for the reason").into()
    }
}

/// Authorizes every request and counts every response.
async fn gate(
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<impl MessageBody>, Error> {
    let start = Instant::now();
    let response = match check_token(&request) {
        Err(denied) => {
            let answer = error_shape(request.path())(denied.counted(), request.headers());
            request.into_response(HttpResponse::from(answer)).map_into_right_body()
        }
        Ok(()) => next.call(request).await?.map_into_left_body(),
    };
    let route = response.request().match_pattern().unwrap_or_else(|| "other".to_owned());
    let seconds = start.elapsed().as_secs_f64();
    metrics::histogram!("logweir_http_request_duration_seconds", "route" => route.clone()).record(seconds);
    let status = response.status().as_u16().to_string();
    metrics::counter!("logweir_http_requests_total", "route" => route, "status" => status).increment(1);
    Ok(response)
}

/// Returns the function that shapes rejections for the protocol that owns `path`.
fn error_shape(path: &str) -> fn(HttpError, &HeaderMap) -> Answer {
    match path {
        "/v1/logs" => otlp::error_response,
        _ if path.starts_with("/loki/") => loki::error_response,
        _ if path.starts_with("/services/collector") => splunk::error_response,
        _ if path.starts_with("/_") || path.ends_with("/_bulk") => elastic::error_response,
        _ => |rejection, _| rejection.into(),
    }
}

fn check_token(request: &ServiceRequest) -> Result<(), HttpError> {
    let (Some(shared), Some(&listener)) = (request.app_data::<web::Data<Shared>>(), request.app_data::<Listener>())
    else {
        return Err(HttpError::new(500, "internal", "internal error: the listener has no shared state"));
    };
    // The allowed methods of a path are not secret, and Docker's log driver requests them without its token.
    if request.method() == Method::OPTIONS && request.path().starts_with("/services/collector") {
        return Ok(());
    }
    if listener == Listener::Data {
        role::check(shared.config.role, request.path())?;
    }
    let authorization = request.headers().get("authorization").map(|value| value.as_bytes());
    let sender = auth::check(&shared.config.auth, auth::required_access(listener, request.path()), authorization)?;
    request.extensions_mut().insert(sender);
    Ok(())
}

/// The stream of a request: the number of its connection. Requests on a connection that is older than the pipeline
/// share stream 0.
fn stream_of(request: &HttpRequest) -> u64 {
    request.conn_data::<Connection>().map_or(0, |connection| connection.0)
}
