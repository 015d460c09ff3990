//! The two HTTP listeners: data (intake) and admin.
//!
//! - Overload and the way down are answered, never sat out: every wait has a limit, every refusal a reason, a sentence
//!   and, where a retry helps, `Retry-After`.
//! - Each request passes `gate`: who may come in is decided there, by path, closed by default; and each answer is counted.
//! - The admin listener can be up before the journal is open: until [`Shared::start`] everything but the probes says
//!   `starting`.

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
use crate::store::LogStore;
use crate::tail::TailHub;
use crate::tls::{self, TlsError};

pub mod answer;
pub mod api;
pub mod auth;
mod admin;
mod alerts;
mod budget;
mod dead_letters;
mod described;
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

use answer::{Answer, Refused};
use auth::Listener;
use budget::Budget;
use limits::Limits;

/// How long an unread rest of a body is read and thrown away after an early answer, so that the client sees the answer
/// and not a reset connection.
const LINGER: Duration = Duration::from_secs(2);

/// How often the way down looks whether requests are at work.
const IDLE_POLL: Duration = Duration::from_millis(5);

/// Starts the drain; called by `POST /drain`. May be called more than once.
pub type StartDrain = Arc<dyn Fn() + Send + Sync>;

/// What every handler may need. A clone is a handle on the same.
#[derive(Clone)]
pub struct Shared(Arc<Parts>);

/// The parts of [`Shared`] that are there from the start.
pub struct Parts {
    /// The configuration.
    pub config: Arc<Config>,
    /// Where the drain stands.
    pub drain: DrainWatch,
    /// How far the lanes are.
    pub progress: Progress,
    /// Renders the metrics.
    pub prometheus: PrometheusHandle,
    /// Starts the drain.
    pub start_drain: StartDrain,
    /// Host name, or whatever tells this process from its siblings, for people.
    pub instance: String,
    /// The processors, where this is a gateway.
    pub gateway: Option<Gateway>,
    started: Instant,
    /// Requests that may still hand a body in.
    in_flight: Arc<()>,
    inflight: Budget,
    limits: Limits,
    running: OnceLock<Running>,
    searcher: OnceLock<Searcher>,
    letters: OnceLock<Arc<dyn LogStore>>,
    /// Whoever changes dead letters does so alone.
    letters_turn: Semaphore,
}

/// What is there once the journal is open and the stages are spawned.
pub struct Running {
    /// The door for bodies.
    pub intake: IntakeHandle,
    /// The journal.
    pub journal: Journal,
    /// Sees every actor.
    pub observer: Observer,
    /// Where durable records can be followed.
    pub tail: TailHub,
    /// How the alerts stand.
    pub alerts: AlertRegistry,
    /// The identity of the journal, which the database knows as the writer.
    pub writer: uuid::Uuid,
}

impl Shared {
    /// What is there from the start.
    ///
    /// # Errors
    /// What a gateway needs to speak TLS with processors cannot be read.
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
            letters: OnceLock::new(),
            letters_turn: Semaphore::new(1),
        })))
    }

    /// The rest is there, too: from now on bodies are taken. Says whether this was the first call.
    pub fn start(&self, running: Running) -> bool {
        self.0.running.set(running).is_ok()
    }

    /// From now on queries are answered. Says whether this was the first call.
    pub fn search_with(&self, searcher: Searcher) -> bool {
        self.0.searcher.set(searcher).is_ok()
    }

    /// Whoever answers queries, or the refusal that nobody is there yet.
    /// Where the dead letters are.
    pub fn letters_of(&self, store: Arc<dyn LogStore>) -> bool {
        self.0.letters.set(store).is_ok()
    }

    fn letters(&self) -> Result<&Arc<dyn LogStore>, Refused> {
        self.0.letters.get().ok_or_else(|| Refused::new(503, "starting", "dead letters are not shown yet"))
    }

    fn searcher(&self) -> Result<&Searcher, Refused> {
        self.0.searcher.get().ok_or_else(|| Refused::new(503, "starting", "queries are not answered yet"))
    }

    /// Whether a body would be taken now.
    fn takes_bodies(&self) -> bool {
        self.drain.phase() < Phase::Draining
            && self.running().is_ok_and(|running| running.journal.check_writable().is_ok())
    }

    /// Whether this process does its part now: takes bodies, or, being a gateway, answers.
    fn is_ready(&self) -> bool {
        match self.config.role {
            Role::Gateway => self.drain.phase() == Phase::Accepting,
            Role::All | Role::Processor => self.takes_bodies(),
        }
    }

    /// Bytes of bodies that are being read now, all together.
    #[must_use]
    pub fn inflight_bytes(&self) -> usize {
        self.0.inflight.taken()
    }

    /// Completes when no request is at work that came before the way down. Puts no limit on the time.
    pub async fn idle(&self) {
        while Arc::strong_count(&self.0.in_flight) > 1 {
            tokio::time::sleep(IDLE_POLL).await;
        }
    }

    /// Held by whoever has something to hand in that the way down must wait for.
    #[must_use]
    pub fn in_flight(&self) -> Arc<()> {
        Arc::clone(&self.0.in_flight)
    }

    /// The running engine, or the refusal that it is not there yet.
    fn running(&self) -> Result<&Running, Refused> {
        self.0.running.get().ok_or_else(|| {
            if self.config.role == Role::Gateway {
                return Refused::new(
                    404,
                    "not_served_here",
                    "this is a gateway, which has no pipeline: ask a processor",
                );
            }
            let detail = "this process is reading its journal: see /startupz of the admin listener";
            Refused::new(503, "starting", detail)
        })
    }
}

impl std::ops::Deref for Shared {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.0
    }
}

/// The number of the connection that a request came on: its stream.
#[derive(Clone, Copy)]
struct Connection(u64);

/// A server that serves when its future is awaited, and where it listens.
pub struct Serving {
    /// Completes when the server has stopped.
    pub server: Server,
    /// Stops it: `stop(true)` lets requests in flight finish.
    pub handle: ServerHandle,
    /// Where it listens.
    pub address: SocketAddr,
}

/// The data listener on `listener`. Must be called inside an actix system.
///
/// # Errors
/// The listener does not work.
pub fn serve_data(shared: &Shared, listener: TcpListener) -> std::io::Result<Serving> {
    let workers = shared.config.http.workers;
    let connections_max = shared.config.http.connections_max;
    let tls = shared.config.http.tls().map(|files| tls::server_config("http", files)).transpose();
    let tls = tls.map_err(std::io::Error::other)?;
    serve(shared, listener, tls, Listener::Data, workers, connections_max, data_routes)
}

/// The admin listener on `listener`. Must be called inside an actix system.
///
/// # Errors
/// The listener does not work.
pub fn serve_admin(shared: &Shared, listener: TcpListener) -> std::io::Result<Serving> {
    // Never in TLS: probes have no certificate, and it is for this machine and its kubelet.
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
    // A client that goes away ends its query. Whoever closes its half of a connection has gone, too.
    .h1_allow_half_closed(false)
    .keep_alive(request_timeout.max(Duration::from_secs(75)))
    // A short answer must not wait for the client's next acknowledgement.
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
        .service(only("/ingest", &["POST"]).route(web::post().to(ingest::ingest)))
        .service(readable("/api/v1/status", status::status))
        .service(readable("/api/v1/pipeline", pipeline::pipeline))
        .service(only("/api/v1/alerts", &["GET"]).route(web::get().to(alerts::alerts)))
        .configure(dead_letters::routes)
        .service(only("/api/v1/tail", &["GET"]).route(web::get().to(tail::tail)))
        .service(readable("/ready", ready))
        .configure(api::routes)
        .configure(loki::routes)
        .service(only("/v1/logs", &["POST"]).route(web::post().to(otlp::export)))
        .configure(splunk::routes)
        .configure(elastic::routes)
        .default_service(web::to(|| {
            not_found(
                "/, POST /ingest, GET /api/v1/{query,hits,facets,context,fields,services,status}, POST /loki/api/v1/push, POST /v1/logs, POST /_bulk, \
                 POST /services/collector",
            )
        }));
}

fn admin_routes(routes: &mut ServiceConfig) {
    for path in ["/livez", "/healthz", "/health"] {
        routes.service(readable(path, admin::livez));
    }
    for path in ["/readyz", "/ready"] {
        routes.service(readable(path, admin::readyz));
    }
    routes
        .service(readable("/startupz", admin::startupz))
        .service(readable("/metrics", admin::metrics))
        .service(readable("/api/v1/status", status::status))
        .service(only("/drain", &["POST"]).route(web::post().to(admin::drain)))
        .service(only("/flush", &["POST"]).route(web::post().to(admin::flush)))
        .default_service(web::to(|| {
            not_found("/livez, /readyz, /startupz, /metrics, /api/v1/status, POST /drain, POST /flush")
        }));
}

/// A resource that is read with GET or HEAD.
fn readable<H, F>(path: &'static str, handler: H) -> actix_web::Resource
where
    H: Fn(web::Data<Shared>) -> F + Clone + 'static,
    F: Future<Output = Answer> + 'static,
{
    only(path, &["GET", "HEAD"]).route(web::get().to(handler.clone())).route(web::head().to(handler))
}

/// A resource that names its methods when it is asked with another.
fn only(path: &'static str, methods: &'static [&'static str]) -> actix_web::Resource {
    web::resource(path).default_service(web::to(move || async move {
        let methods = methods.join(", ");
        let detail = format!("{path} takes {methods}");
        Answer::error(405, "method_not_allowed", detail).with_header("Allow", methods)
    }))
}

async fn not_found(routes: &'static str) -> Answer {
    Answer::error(404, "not_found", format!("there is no such path; there are {routes}"))
}

/// What shippers ask before they send, and Grafana of a gateway: 200 if it would be answered now.
async fn ready(shared: web::Data<Shared>) -> Answer {
    if shared.is_ready() {
        Answer::text("text/plain; charset=utf-8", "ready\n".to_owned())
    } else {
        Refused::new(503, "not_ready", "no body would be taken now: see /readyz of the admin listener").into()
    }
}

/// Lets in who may come in, and counts every answer.
async fn gate(
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<impl MessageBody>, Error> {
    let start = Instant::now();
    let response = match check_token(&request) {
        Err(denied) => {
            let answer = shape(request.path())(denied.counted(), request.headers());
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

/// The shape that the protocol which owns `path` gives its refusals.
fn shape(path: &str) -> fn(Refused, &HeaderMap) -> Answer {
    match path {
        "/v1/logs" => otlp::refusal,
        _ if path.starts_with("/loki/") => loki::refusal,
        _ if path.starts_with("/services/collector") => splunk::refusal,
        _ if path.starts_with("/_") || path.ends_with("/_bulk") => elastic::refusal,
        _ => |refused, _| refused.into(),
    }
}

fn check_token(request: &ServiceRequest) -> Result<(), Refused> {
    let (Some(shared), Some(&listener)) = (request.app_data::<web::Data<Shared>>(), request.app_data::<Listener>())
    else {
        return Err(Refused::new(500, "internal", "the listener was built without its state"));
    };
    // What may be asked of a path is no secret, and Docker's log driver asks it without its token.
    if request.method() == Method::OPTIONS && request.path().starts_with("/services/collector") {
        return Ok(());
    }
    if listener == Listener::Data {
        role::check(shared.config.role, request.path())?;
    }
    let given = request.headers().get("authorization").map(|value| value.as_bytes());
    let sender = auth::check(&shared.config.auth, auth::need(listener, request.path()), given)?;
    request.extensions_mut().insert(sender);
    Ok(())
}

/// What a connection's requests have in common: their stream. Requests on a connection that is older than the engine
/// share stream 0.
fn stream_of(request: &HttpRequest) -> u64 {
    request.conn_data::<Connection>().map_or(0, |connection| connection.0)
}
