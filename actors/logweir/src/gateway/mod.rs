//! The gateway's view of the processors: discovered by name, queried with limits on everything, with a circuit breaker
//! each.
//!
//! ```text
//! names ── periodic lookup ──> members (each with a breaker) ── requests ──> a response or an error per processor
//! ```
//!
//! - Names are resolved by the system (`/etc/hosts`, search domains, the cluster's DNS): a resolver in the program
//!   could see different addresses than `curl` in the same pod. The system resolver reports no TTL, so names are looked
//!   up at a fixed interval.
//! - One attempt may take `gateway.timeout_ms`; a failed one is retried once after a random delay, unless it was a
//!   breaker's probe.
//! - At most `gateway.requests_max` requests run at a time, and at most [`ANSWER_BYTES_MAX`] of a response are read.
//! - An unreachable processor becomes an entry with an error, never an error of the whole response.
//! - Queries are compared with the lanes of the processors, to report what their results lack. They wait for that only
//!   briefly: what a processor reported last is still a lower bound of what it has committed.
//! - A processor that writes to another database than the one that is read is named in the log, a metric, and each result.
//!
//! Rejected alternative: a list of processors in the database, which would be one more thing that can be stale; the
//! platform's name service is authoritative.

pub mod elsewhere;
mod lanes;
pub mod members;
pub mod tail;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::join_all;
use logweir_engine::clock;
use logweir_engine::journal::LaneId;
use reqwest::header::AUTHORIZATION;
use reqwest::redirect;
use rustls::pki_types::ServerName;
use serde::Serialize;
use serde_json::Value;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout, timeout_at};
use uuid::Uuid;

use crate::config::{Auth, AuthMode, Config, HostPort};
use crate::limits::backoff::Backoff;
use crate::limits::breaker::{Allow, BreakerSnapshot};
use crate::search::completeness::{LaneState, Lanes};
use lanes::KnownLanes;
use logweir_store::throttle::QueryThrottle;
use logweir_tls::{self as tls, TlsError};
use members::{Member, Members};

/// Maximum length of a processor's response.
pub const ANSWER_BYTES_MAX: usize = 1 << 20;
/// Delay before the second attempt.
const RETRY: Backoff = Backoff::new(Duration::from_millis(200), Duration::from_millis(200));
/// How long a query waits for the processors' lanes.
const LANES_WITHIN: Duration = Duration::from_millis(250);
/// How long responses are reused for the next request: many users view the same page.
const REUSE_FOR: Duration = Duration::from_millis(500);

/// Client of all processors. Clones share the same state.
#[derive(Clone)]
pub struct Gateway(Arc<Parts>);

struct Parts {
    members: Mutex<Members>,
    client: reqwest::Client,
    /// `http` or `https`.
    scheme: &'static str,
    /// The `Authorization` header, if the processors require one.
    token: Option<String>,
    timeout: Duration,
    lookup_every: Duration,
    requests: Semaphore,
    /// Limits the number of live tails.
    tails: Arc<Semaphore>,
    statuses: tokio::sync::Mutex<Option<(Instant, Arc<Vec<Processor>>)>>,
    lanes: Mutex<KnownLanes>,
}

/// One processor, as shown by `/api/v1/pipeline`.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct Processor {
    /// Host name that it reports, or else the configured name.
    pub name: String,
    /// Address; null if the name resolves to none.
    #[schema(value_type = Option<String>)]
    pub address: Option<SocketAddr>,
    /// Whether it responded.
    pub ok: bool,
    /// Why it did not respond; null if it did.
    pub error: Option<String>,
    /// Its response to `/api/v1/status`.
    #[schema(value_type = Option<Object>)]
    pub status: Option<Value>,
    /// State of its circuit breaker.
    pub breaker: Option<BreakerSnapshot>,
}

/// Reason why a processor did not respond.
#[derive(Debug, thiserror::Error)]
enum ProcessorError {
    /// No request was sent.
    #[error("circuit breaker open after {failures} consecutive failures: next attempt in {} ms", retry_in.as_millis())]
    BreakerOpen { failures: u64, retry_in: Duration },
    /// The connection failed.
    #[error("unavailable: {0}")]
    Unreachable(String),
    /// The timeout passed.
    #[error("no response within gateway.timeout_ms ({} ms)", .0.as_millis())]
    TimedOut(Duration),
    /// It responded with an error.
    #[error("unexpected response: {0}")]
    Rejected(String),
    /// The response is too long, or not JSON.
    #[error("invalid response: {0}")]
    InvalidResponse(&'static str),
}

impl ProcessorError {
    /// Whether the error counts against the breaker: a rejection proves that the processor is reachable.
    fn opens_breaker(&self) -> bool {
        matches!(self, Self::Unreachable(_) | Self::TimedOut(_))
    }
}

impl Gateway {
    /// No processor is known until [`Gateway::look_up`] runs.
    ///
    /// # Errors
    /// A TLS file cannot be read.
    pub fn new(config: &Config) -> Result<Self, TlsError> {
        let settings = &config.gateway;
        let timeout = Duration::from_millis(settings.timeout_ms);
        let client = reqwest::Client::builder().no_proxy().redirect(redirect::Policy::none()).connect_timeout(timeout);
        let (scheme, tls) = match settings.tls() {
            None => ("http", tls::empty_client_config()?),
            Some(files) => ("https", tls::reloading_client_config("gateway", files, names(&settings.processors))?),
        };
        let client = client.tls_backend_preconfigured(tls).build().expect("the TLS configuration is a rustls one");
        Ok(Self(Arc::new(Parts {
            members: Mutex::new(Members::new(&settings.processors, Instant::now())),
            client,
            scheme,
            token: token(&config.auth),
            timeout,
            lookup_every: Duration::from_millis(settings.lookup_ms),
            requests: Semaphore::new(settings.requests_max),
            tails: Arc::new(Semaphore::new(config.tail.clients_max)),
            statuses: tokio::sync::Mutex::default(),
            lanes: Mutex::default(),
        })))
    }

    /// Looks up the names periodically, and reports the age of the processors' backlog to the query throttle. Never
    /// completes.
    pub async fn look_up(&self, throttle: &QueryThrottle) {
        loop {
            self.look_up_once().await;
            throttle.set_backlog_age(self.backlog_age().await);
            tokio::time::sleep(self.0.lookup_every).await;
        }
    }

    async fn look_up_once(&self) {
        let names = self.members(|members| members.names());
        for name in names {
            let found = resolve(&name, self.0.timeout).await;
            if let Err(error) = &found {
                metrics::counter!("logweir_gateway_lookup_errors_total").increment(1);
                tracing::debug!(%name, error, "DNS lookup of a processor failed");
            }
            self.members(|members| members.set_addresses(&name, found, Instant::now()));
        }
        let (known, open) = self.members(|members| members.count());
        let gauge = |state: &'static str, count: usize| {
            metrics::gauge!("logweir_gateway_processors", "state" => state)
                .set(u32::try_from(count).map_or(0.0, f64::from));
        };
        gauge("available", known - open);
        gauge("unavailable", open);
    }

    /// The status of every processor, or the error. Responses are reused for 500 ms.
    pub async fn statuses(&self) -> Arc<Vec<Processor>> {
        let mut last = self.0.statuses.lock().await;
        if let Some((at, statuses)) = &*last
            && at.elapsed() < REUSE_FOR
        {
            return Arc::clone(statuses);
        }
        let requested_us = clock::wall_us();
        let responses = self.request_all("/api/v1/status").await;
        let processor = |(member, outcome): (Member, Result<Value, ProcessorError>)| self.processor(&member, outcome);
        let mut processors: Vec<Processor> = responses.into_iter().map(processor).collect();
        let problems = self.members(|members| members.problems());
        processors.extend(problems.into_iter().map(|(name, error)| Processor {
            name: name.to_string(),
            address: None,
            ok: false,
            error: Some(error),
            status: None,
            breaker: None,
        }));
        for processor in &processors {
            if let (Some(status), Some(address)) = (&processor.status, processor.address) {
                self.lanes().report(&format!("{} ({address})", processor.name), status, requested_us);
            }
        }
        let statuses = Arc::new(processors);
        *last = Some((Instant::now(), Arc::clone(&statuses)));
        statuses
    }

    /// The age of the oldest backlog of all reachable processors.
    async fn backlog_age(&self) -> Duration {
        let statuses = self.statuses().await;
        let lanes = statuses.iter().filter_map(|processor| processor.status.as_ref()?["lanes"].as_array()).flatten();
        Duration::from_millis(lanes.filter_map(|lane| lane["backlog_age_ms"].as_u64()).max().unwrap_or(0))
    }

    /// The alerts of all reachable processors, each with the address of its processor.
    pub async fn alerts(&self) -> Vec<Value> {
        let mut all = Vec::new();
        for (member, outcome) in self.request_all("/api/v1/alerts").await {
            let Ok(Value::Object(mut body)) = outcome else { continue };
            let Some(Value::Array(alerts)) = body.remove("alerts") else { continue };
            for mut alert in alerts {
                alert["processor"] = member.address.to_string().into();
                all.push(alert);
            }
        }
        all
    }

    fn processor(&self, member: &Member, outcome: Result<Value, ProcessorError>) -> Processor {
        let breaker = self.members(|members| members.breaker(member.address, Instant::now()));
        let (status, error) = match outcome {
            Ok(status) => (Some(status), None),
            Err(error) => (None, Some(error.to_string())),
        };
        let instance = status.as_ref().and_then(|status| status["instance"].as_str());
        let name = instance.map_or_else(|| member.name.to_string(), ToOwned::to_owned);
        Processor { name, address: Some(member.address), ok: error.is_none(), error, status, breaker }
    }

    /// Requests `path` from every processor, with limited concurrency.
    async fn request_all(&self, path: &str) -> Vec<(Member, Result<Value, ProcessorError>)> {
        let members = self.members(|members| members.members());
        join_all(members.into_iter().map(async |member| {
            let outcome = match self.0.requests.acquire().await {
                Ok(_permit) => self.request(member.address, path).await,
                Err(_) => Err(ProcessorError::Unreachable("the gateway is shutting down".to_owned())),
            };
            let label = match &outcome {
                Ok(_) => "ok",
                Err(ProcessorError::BreakerOpen { .. }) => "breaker_open",
                Err(_) => "failed",
            };
            metrics::counter!("logweir_gateway_requests_total", "outcome" => label).increment(1);
            (member, outcome)
        }))
        .await
    }

    /// Requests `path` from one processor, through its breaker.
    async fn request(&self, address: SocketAddr, path: &str) -> Result<Value, ProcessorError> {
        let attempts = match self.members(|members| members.allow(address, Instant::now())) {
            Allow::Yes => 2,
            Allow::Probe => 1,
            Allow::No { retry_in } => {
                let breaker = self.members(|members| members.breaker(address, Instant::now()));
                return Err(ProcessorError::BreakerOpen {
                    failures: breaker.map_or(0, |breaker| breaker.failures),
                    retry_in,
                });
            }
        };
        let mut outcome = self.attempt(address, path).await;
        if attempts > 1 && outcome.as_ref().is_err_and(ProcessorError::opens_breaker) {
            tokio::time::sleep(RETRY.delays().next_delay()).await;
            outcome = self.attempt(address, path).await;
        }
        let reachable = !outcome.as_ref().is_err_and(ProcessorError::opens_breaker);
        self.members(|members| members.record_outcome(address, reachable, Instant::now()));
        outcome
    }

    async fn attempt(&self, address: SocketAddr, path: &str) -> Result<Value, ProcessorError> {
        let until = Instant::now() + self.0.timeout;
        let mut request = self.0.client.get(format!("{}://{address}{path}", self.0.scheme));
        if let Some(token) = &self.0.token {
            request = request.header(AUTHORIZATION, token);
        }
        let answer = async {
            let mut response = request.send().await.map_err(|error| unreachable(&error))?;
            match response.status().as_u16() {
                200 => {}
                401 => {
                    return Err(ProcessorError::Rejected(
                        "401: the processor's auth.query_tokens must contain the gateway's first token".into(),
                    ));
                }
                status @ 500.. => return Err(ProcessorError::Unreachable(format!("status {status}"))),
                status => return Err(ProcessorError::Rejected(status.to_string())),
            }
            let mut body = Vec::new();
            while let Some(piece) = response.chunk().await.map_err(|error| unreachable(&error))? {
                if body.len() + piece.len() > ANSWER_BYTES_MAX {
                    return Err(ProcessorError::InvalidResponse("expected at most 1 MiB"));
                }
                body.extend_from_slice(&piece);
            }
            serde_json::from_slice(&body).map_err(|_| ProcessorError::InvalidResponse("expected JSON"))
        };
        timeout_at(until, answer).await.unwrap_or(Err(ProcessorError::TimedOut(self.0.timeout)))
    }

    fn lanes(&self) -> MutexGuard<'_, KnownLanes> {
        // What a panic left behind is at worst incomplete, and reported again.
        self.0.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn members<T>(&self, access: impl FnOnce(&mut Members) -> T) -> T {
        // The lock is never held across a panic, and its content would still be consistent.
        access(&mut self.0.members.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[async_trait]
impl Lanes for Gateway {
    async fn states(&self) -> Vec<LaneState> {
        // In time or not, what is known then counts.
        let _ = timeout(LANES_WITHIN, self.statuses()).await;
        self.lanes().states()
    }

    fn arrived_until(&self, writer: Uuid, lane: LaneId, records: u64) -> Option<i64> {
        self.lanes().arrived_until(writer, lane, records)
    }
}

/// The `Authorization` header for processors, which share their query tokens with the gateway.
fn token(auth: &Auth) -> Option<String> {
    let token = auth.query_tokens.first().filter(|_| auth.mode == AuthMode::Token)?;
    Some(format!("Bearer {}", token.secret()))
}

/// The names that processors' certificates must be valid for.
fn names(processors: &[HostPort]) -> Vec<ServerName<'static>> {
    processors.iter().filter_map(|name| ServerName::try_from(name.host.clone()).ok()).collect()
}

async fn resolve(name: &HostPort, within: Duration) -> Result<Vec<SocketAddr>, String> {
    match timeout(within, tokio::net::lookup_host((name.host.as_str(), name.port))).await {
        Ok(Ok(addresses)) => Ok(addresses.collect()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no response within {} ms", within.as_millis())),
    }
}

/// The innermost cause: "error sending request" alone is not informative.
fn unreachable(error: &reqwest::Error) -> ProcessorError {
    let mut cause: &dyn std::error::Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    ProcessorError::Unreachable(cause.to_string())
}
