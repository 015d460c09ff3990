//! The gateway's view of the processors: found by name, asked with a bound on everything, remembered by how they answered.
//!
//! ```text
//! names ── looked up again and again ──> members (a breaker each) ── asked ──> one answer or one reason per processor
//! ```
//!
//! - The system's own resolver is asked (`/etc/hosts`, search domains, the cluster's DNS): a second resolver in the program
//!   would see another world than `curl` in the same pod. It tells no time to live, so names are looked up at an interval.
//! - One attempt has `gateway.timeout_ms`; a failed one is made once more after a random wait, a breaker's probe is not.
//! - At most `gateway.requests_max` processors are asked at once, and an answer is at most [`ANSWER_BYTES_MAX`] long.
//! - A processor that is away is a line with a reason, never an error of the whole.
//!
//! Refused: a list of processors in the database, which would be one more thing to be stale; the platform's name service is
//! the one who knows.

pub mod members;
pub mod tail;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use reqwest::header::AUTHORIZATION;
use rustls::pki_types::ServerName;
use serde::Serialize;
use serde_json::Value;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout, timeout_at};

use crate::breaker::{Allow, BreakerSnapshot, retry};
use crate::config::{Auth, AuthMode, Config, HostPort};
use crate::query_throttle::QueryThrottle;
use crate::tls::{self, TlsError};
use members::{Member, Members};

/// Longest answer of a processor that is read.
pub const ANSWER_BYTES_MAX: usize = 1 << 20;
/// The wait before the second attempt, at most.
const RETRY_MS_MAX: Duration = Duration::from_millis(200);
/// How long the answers to one question are good for the next one: many people look at the same page.
const FRESH: Duration = Duration::from_millis(500);

/// A clone is a handle on the same.
#[derive(Clone)]
pub struct Gateway(Arc<Parts>);

struct Parts {
    members: Mutex<Members>,
    client: reqwest::Client,
    /// `http` or `https`.
    scheme: &'static str,
    /// `Authorization`, where the processors ask for it.
    token: Option<String>,
    timeout: Duration,
    lookup_every: Duration,
    at_once: Semaphore,
    /// Places for live tails.
    tails: Arc<Semaphore>,
    statuses: tokio::sync::Mutex<Option<(Instant, Arc<Vec<Processor>>)>>,
}

/// One processor, as `/api/v1/pipeline` shows it.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct Processor {
    /// Its host name as it says itself, else the name that stands for it.
    pub name: String,
    /// Where it is; none where the name stands for nobody.
    #[schema(value_type = Option<String>)]
    pub address: Option<SocketAddr>,
    /// Whether it has answered.
    pub ok: bool,
    /// Why not.
    pub error: Option<String>,
    /// What it said: its `/api/v1/status`.
    #[schema(value_type = Option<Object>)]
    pub status: Option<Value>,
    /// Where the breaker before it stands.
    pub breaker: Option<BreakerSnapshot>,
}

/// Why a processor has given no answer.
#[derive(Debug, thiserror::Error)]
enum AskError {
    /// It was not asked.
    #[error("not asked: it has failed {failures} times in a row, the next try is in {} ms", retry_in.as_millis())]
    Open { failures: u64, retry_in: Duration },
    /// Connecting or reading failed.
    #[error("no answer: {0}")]
    Away(String),
    /// It took longer than it may.
    #[error("no answer within gateway.timeout_ms ({} ms)", .0.as_millis())]
    TimedOut(Duration),
    /// It answered, but not what was asked for.
    #[error("it answers {0}")]
    Refused(String),
    /// More than is read, or no JSON.
    #[error("its answer is {0}")]
    Unreadable(&'static str),
}

impl AskError {
    /// Whether it says that the other side is not well: a refusal comes from one that is.
    fn breaks(&self) -> bool {
        matches!(self, Self::Away(_) | Self::TimedOut(_))
    }
}

impl Gateway {
    /// Nobody is known and nothing looked up until [`Gateway::look_up`].
    ///
    /// # Errors
    /// A file for TLS cannot be read.
    pub fn new(config: &Config) -> Result<Self, TlsError> {
        let settings = &config.gateway;
        let timeout = Duration::from_millis(settings.timeout_ms);
        let client = reqwest::Client::builder().no_proxy().connect_timeout(timeout);
        let (scheme, tls) = match settings.tls() {
            None => ("http", tls::trusting_nobody()?),
            Some(files) => ("https", tls::asking_config("gateway", files, names(&settings.processors))?),
        };
        let client = client.tls_backend_preconfigured(tls).build().expect("its TLS configuration is one of rustls");
        Ok(Self(Arc::new(Parts {
            members: Mutex::new(Members::new(&settings.processors, Instant::now())),
            client,
            scheme,
            token: token(&config.auth),
            timeout,
            lookup_every: Duration::from_millis(settings.lookup_ms),
            at_once: Semaphore::new(settings.requests_max),
            tails: Arc::new(Semaphore::new(config.tail.clients_max)),
            statuses: tokio::sync::Mutex::default(),
        })))
    }

    /// Looks the names up, again and again, and tells readers how far behind the processors' rows are. Never completes.
    pub async fn look_up(&self, throttle: &QueryThrottle) {
        loop {
            self.look_up_once().await;
            throttle.backlog_is(self.backlog_age().await);
            tokio::time::sleep(self.0.lookup_every).await;
        }
    }

    async fn look_up_once(&self) {
        let names = self.members(|members| members.names());
        for name in names {
            let found = resolve(&name, self.0.timeout).await;
            if let Err(error) = &found {
                metrics::counter!("logweir_gateway_lookup_errors_total").increment(1);
                tracing::debug!(%name, error, "a processor's name cannot be looked up");
            }
            self.members(|members| members.looked_up(&name, found, Instant::now()));
        }
        let (known, open) = self.members(|members| members.count());
        let gauge = |state: &'static str, count: usize| {
            metrics::gauge!("logweir_gateway_processors", "state" => state)
                .set(u32::try_from(count).map_or(0.0, f64::from));
        };
        gauge("asked", known - open);
        gauge("not_asked", open);
    }

    /// The status of every processor, or why there is none. What was asked a moment ago is not asked again.
    pub async fn statuses(&self) -> Arc<Vec<Processor>> {
        let mut last = self.0.statuses.lock().await;
        if let Some((at, statuses)) = &*last
            && at.elapsed() < FRESH
        {
            return Arc::clone(statuses);
        }
        let asked = self.ask_all("/api/v1/status").await;
        let told = |(member, outcome): (Member, Result<Value, AskError>)| self.processor(&member, outcome);
        let mut processors: Vec<Processor> = asked.into_iter().map(told).collect();
        let troubles = self.members(|members| members.troubles());
        processors.extend(troubles.into_iter().map(|(name, error)| Processor {
            name: name.to_string(),
            address: None,
            ok: false,
            error: Some(error),
            status: None,
            breaker: None,
        }));
        let statuses = Arc::new(processors);
        *last = Some((Instant::now(), Arc::clone(&statuses)));
        statuses
    }

    /// How long the oldest record of a processor that answers has been waiting for the database.
    async fn backlog_age(&self) -> Duration {
        let statuses = self.statuses().await;
        let lanes = statuses.iter().filter_map(|processor| processor.status.as_ref()?["lanes"].as_array()).flatten();
        Duration::from_millis(lanes.filter_map(|lane| lane["backlog_age_ms"].as_u64()).max().unwrap_or(0))
    }

    /// The alerts of all processors that answer, each with the address of its processor.
    pub async fn alerts(&self) -> Vec<Value> {
        let mut all = Vec::new();
        for (member, outcome) in self.ask_all("/api/v1/alerts").await {
            let Ok(Value::Object(mut body)) = outcome else { continue };
            let Some(Value::Array(alerts)) = body.remove("alerts") else { continue };
            for mut alert in alerts {
                alert["processor"] = member.address.to_string().into();
                all.push(alert);
            }
        }
        all
    }

    fn processor(&self, member: &Member, outcome: Result<Value, AskError>) -> Processor {
        let breaker = self.members(|members| members.breaker(member.address, Instant::now()));
        let (status, error) = match outcome {
            Ok(status) => (Some(status), None),
            Err(error) => (None, Some(error.to_string())),
        };
        let itself = status.as_ref().and_then(|status| status["instance"].as_str());
        let name = itself.map_or_else(|| member.name.to_string(), ToOwned::to_owned);
        Processor { name, address: Some(member.address), ok: error.is_none(), error, status, breaker }
    }

    /// Asks every processor for `path`, as many at once as may be.
    async fn ask_all(&self, path: &str) -> Vec<(Member, Result<Value, AskError>)> {
        let members = self.members(|members| members.members());
        join_all(members.into_iter().map(async |member| {
            let outcome = match self.0.at_once.acquire().await {
                Ok(_permit) => self.ask(member.address, path).await,
                Err(_) => Err(AskError::Away("the gateway is stopping".to_owned())),
            };
            let word = match &outcome {
                Ok(_) => "ok",
                Err(AskError::Open { .. }) => "not_asked",
                Err(_) => "failed",
            };
            metrics::counter!("logweir_gateway_requests_total", "outcome" => word).increment(1);
            (member, outcome)
        }))
        .await
    }

    /// Asks one processor, through its breaker.
    async fn ask(&self, address: SocketAddr, path: &str) -> Result<Value, AskError> {
        let attempts = match self.members(|members| members.allow(address, Instant::now())) {
            Allow::Yes => 2,
            Allow::Probe => 1,
            Allow::No { retry_in } => {
                let breaker = self.members(|members| members.breaker(address, Instant::now()));
                return Err(AskError::Open { failures: breaker.map_or(0, |breaker| breaker.failures), retry_in });
            }
        };
        let mut outcome = self.attempt(address, path).await;
        if attempts > 1 && outcome.as_ref().is_err_and(AskError::breaks) {
            tokio::time::sleep(retry::delay(2, RETRY_MS_MAX / 4, RETRY_MS_MAX, &mut rand::rng())).await;
            outcome = self.attempt(address, path).await;
        }
        let well = !outcome.as_ref().is_err_and(AskError::breaks);
        self.members(|members| members.asked(address, well, Instant::now()));
        outcome
    }

    async fn attempt(&self, address: SocketAddr, path: &str) -> Result<Value, AskError> {
        let until = Instant::now() + self.0.timeout;
        let mut request = self.0.client.get(format!("{}://{address}{path}", self.0.scheme));
        if let Some(token) = &self.0.token {
            request = request.header(AUTHORIZATION, token);
        }
        let answer = async {
            let mut response = request.send().await.map_err(|error| away(&error))?;
            match response.status().as_u16() {
                200 => {}
                401 => {
                    return Err(AskError::Refused(
                        "401: it must know the first of this gateway's auth.query_tokens".into(),
                    ));
                }
                status @ 500.. => return Err(AskError::Away(format!("status {status}"))),
                status => return Err(AskError::Refused(status.to_string())),
            }
            let mut body = Vec::new();
            while let Some(piece) = response.chunk().await.map_err(|error| away(&error))? {
                if body.len() + piece.len() > ANSWER_BYTES_MAX {
                    return Err(AskError::Unreadable("longer than 1 MiB"));
                }
                body.extend_from_slice(&piece);
            }
            serde_json::from_slice(&body).map_err(|_| AskError::Unreadable("no JSON"))
        };
        timeout_at(until, answer).await.unwrap_or(Err(AskError::TimedOut(self.0.timeout)))
    }

    fn members<T>(&self, use_them: impl FnOnce(&mut Members) -> T) -> T {
        // Nobody panics while holding it, and if somebody did, what is in it is still whole.
        use_them(&mut self.0.members.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The `Authorization` that processors get: they share their tokens for queries with the gateway.
fn token(auth: &Auth) -> Option<String> {
    let token = auth.query_tokens.first().filter(|_| auth.mode == AuthMode::Token)?;
    Some(format!("Bearer {}", token.secret()))
}

/// What processors' certificates may be for.
fn names(processors: &[HostPort]) -> Vec<ServerName<'static>> {
    processors.iter().filter_map(|name| ServerName::try_from(name.host.clone()).ok()).collect()
}

async fn resolve(name: &HostPort, within: Duration) -> Result<Vec<SocketAddr>, String> {
    match timeout(within, tokio::net::lookup_host((name.host.as_str(), name.port))).await {
        Ok(Ok(addresses)) => Ok(addresses.collect()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer within {} ms", within.as_millis())),
    }
}

/// The innermost reason: "error sending request" alone says nothing.
fn away(error: &reqwest::Error) -> AskError {
    let mut cause: &dyn std::error::Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    AskError::Away(cause.to_string())
}
