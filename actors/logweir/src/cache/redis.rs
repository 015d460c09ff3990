//! The cache in Redis 6.2 or later, through fred, shared by all pods.
//!
//! | key | content | expires |
//! |---|---|---|
//! | `logweir:recent:<service>` | list: latest records first, as JSON text | ttl after the last record |
//! | `logweir:services` | sorted set: services by arrival of their last record in microseconds | ttl |
//! | `logweir:volume:<service>:<hour>` | hash: `<minute>:<severity>` → records | ttl after the last record |
//! | `logweir:cursor:<writer>` | hash: lane → sequence number of its last frame | twice the ttl |
//!
//! - One script call per batch (`apply.lua`), never one command per record, which costs twenty times as much.
//! - The script applies a call entirely or not at all, by the cursor. If the cursor lies inside the batch, the script
//!   returns it, and the remaining frames are collected again and sent: exact, and one round trip when nothing
//!   overlaps.
//! - If Redis evicts a cursor but keeps the counters, and an old batch is replayed at that moment, that batch counts
//!   twice. Use a `noeviction` or `volatile-ttl` policy where that matters; a FLUSHALL is harmless.
//! - `redis-sentinel://` asks Sentinels for the current primary, at each connection. The keys of one call map to many hash
//!   slots: Redis Cluster is not supported, and is named when it is found.
//! - Nothing waits forever: each command has a timeout, a command without a connection fails at once, the queue is
//!   bounded, and a connection that does not lead to a primary that answers is replaced: fred never gives up on a socket
//!   write that hangs (stopped server, dead host), keeps a connection to a primary that became a replica, and forgets the
//!   Sentinels of the URL as soon as one of them has named others.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use fred::clients::Client;
use fred::error::{Error, ErrorKind};
use fred::interfaces::{ClientLike, EventInterface, HashesInterface, ListInterface, LuaInterface, SortedSetsInterface};
use fred::types::config::{Config, ConnectionConfig, PerformanceConfig, ReconnectPolicy, TcpConfig};
use fred::types::{Builder, ConnectHandle, InfoKind, Value};
use logweir_engine::clock;
use logweir_engine::journal::LaneId;
use tokio::runtime::Handle;
use uuid::Uuid;

use super::hot_cache::{CacheError, HotCache, Origin, RecentRecord};
use super::render;
use super::update::{CacheUpdate, HOUR_US, Limits, MINUTE_US};
use crate::config;
use logweir_store::Batch;
use logweir_tls as tls;

const APPLY: &str = include_str!("apply.lua");
const SERVICES: &str = "logweir:services";

/// Commands that may wait for the connection. One batch is in flight at a time; the rest are queries.
const QUEUE_MAX: usize = 64;
/// Consecutive commands without a use, because of a timeout or a replica, after which the connection is replaced.
const FAILURES_MAX: u32 = 3;
/// Time without a connection after which another one is opened from the URL.
const UNCONNECTED_MAX: Duration = Duration::from_secs(5);
/// Attempts for one batch: its frames are collected again if the cursor moved meanwhile or the script is missing.
const ATTEMPTS_MAX: u32 = 4;
/// First and last delay between connection attempts, doubling, in milliseconds. The first is short since fred waits
/// before the very first attempt as well.
const RECONNECT_MS: (u32, u32) = (20, 2_000);
/// Random addition to each of these delays: pods that lose Redis together do not reconnect together.
const RECONNECT_JITTER_MS: u32 = 100;
/// Minimum timeout for opening a connection, in milliseconds: it takes several round trips and possibly TLS.
const CONNECT_MS_MIN: u64 = 2_000;

/// Recent records and counters in Redis.
pub struct RedisCache {
    limits: Limits,
    builder: Builder,
    /// Where connections are spawned: the runtime of a query may end before the process does.
    runtime: Handle,
    link: Mutex<Link>,
    /// Consecutive commands on `link` that had no use.
    failures: AtomicU32,
    /// SHA of the script in Redis, known once it is loaded.
    sha: OnceLock<String>,
    /// Rendered records of the batch in flight; the memory is reused once fred has released it.
    scratch: Mutex<BytesMut>,
}

/// A connection and its background task.
struct Link {
    client: Client,
    task: ConnectHandle,
    /// When it was found to have no connection; unset while it has one.
    unconnected_since: Option<Instant>,
    /// Why the connection was lost or could not be opened; a command that fails without a connection does not know.
    last_error: Arc<Mutex<Option<CacheError>>>,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Link {
    /// `last_error` of the connection that this one replaces is not logged once more.
    fn open(builder: &Builder, last_error: Option<CacheError>) -> Result<Self, Error> {
        let client = builder.build()?;
        let last_error = Arc::new(Mutex::new(last_error));
        let seen = Arc::clone(&last_error);
        client.on_error(move |(error, _)| {
            let error = cache_error(&error);
            let before = lock(&seen).replace(error.clone());
            if before.as_ref() != Some(&error) {
                tracing::warn!(
                    error = error.detail,
                    "cannot connect to Redis: retrying in the background; until then, recent records and counters are \
                     not cached"
                );
            }
            async { Ok(()) }
        });
        let seen = Arc::clone(&last_error);
        client.on_reconnect(move |_| {
            if lock(&seen).take().is_some() {
                tracing::info!("connected to Redis again");
            }
            async { Ok(()) }
        });
        let task = client.connect();
        Ok(Self { client, task, unconnected_since: None, last_error })
    }
}

impl RedisCache {
    /// Opens a cache at `url`. Waits briefly for the first connection, then continues without it.
    ///
    /// # Errors
    /// The URL or the certificates are invalid.
    pub async fn connect(url: &str, settings: &config::Cache, ca_file: Option<&Path>) -> Result<Self, CacheError> {
        let timeout = Duration::from_millis(settings.timeout_ms.max(1));
        let builder = builder(url, timeout, ca_file)?;
        let link = Link::open(&builder, None).map_err(|error| cache_error(&error))?;
        // An unavailable Redis is not an error; batches that arrive meanwhile are counted as discarded.
        let connected = tokio::time::timeout(timeout, link.client.wait_for_connect()).await;
        if matches!(connected, Ok(Ok(())))
            && let Ok(info) = link.client.info::<String>(Some(InfoKind::Server)).await
            && let Some(what) = unsupported_mode(&info)
        {
            tracing::error!("cache.url: {what}");
        }
        Ok(Self {
            limits: settings.into(),
            builder,
            runtime: Handle::current(),
            link: Mutex::new(link),
            failures: AtomicU32::new(0),
            sha: OnceLock::new(),
            scratch: Mutex::default(),
        })
    }

    /// Returns the connection, if there is one: a command without one would only wait for its timeout.
    ///
    /// fred has an option for that, but its scripting commands silently ignore options.
    fn client(&self) -> Result<Client, CacheError> {
        let mut link = lock(&self.link);
        if link.client.is_connected() {
            link.unconnected_since = None;
            return Ok(link.client.clone());
        }
        let last_error = lock(&link.last_error).clone();
        if link.unconnected_since.get_or_insert_with(Instant::now).elapsed() >= UNCONNECTED_MAX {
            self.replace(&mut link, last_error.clone());
        }
        let connecting = || CacheError { reason: "connection", detail: "Redis: connecting".to_owned() };
        Err(last_error.unwrap_or_else(connecting))
    }

    /// Passes a response through; replaces a connection that is of no use.
    fn checked<T>(&self, answer: Result<T, Error>) -> Result<T, CacheError> {
        let error = match answer {
            Ok(answer) => {
                self.failures.store(0, Ordering::Relaxed);
                return Ok(answer);
            }
            Err(error) => cache_error(&error),
        };
        let is_useless = matches!(error.reason, "timeout" | "readonly");
        if is_useless && self.failures.fetch_add(1, Ordering::Relaxed) + 1 >= FAILURES_MAX {
            tracing::warn!(error = error.detail, "Redis cannot be used over this connection: replacing it");
            self.replace(&mut lock(&self.link), None);
        }
        Err(error)
    }

    fn replace(&self, link: &mut Link, last_error: Option<CacheError>) {
        self.failures.store(0, Ordering::Relaxed);
        let _on = self.runtime.enter();
        // Built once from the same settings before, so it cannot fail now; if it does, the old connection stays.
        if let Ok(fresh) = Link::open(&self.builder, last_error) {
            *link = fresh;
        }
    }

    async fn load_script(&self) -> Result<&str, CacheError> {
        let sha = self.checked(self.client()?.script_load(APPLY).await)?;
        Ok(self.sha.get_or_init(|| sha))
    }

    /// Runs the script once and returns the previous cursor.
    async fn run(&self, writer: Uuid, args: Vec<Value>) -> Result<u64, CacheError> {
        let sha = match self.sha.get() {
            Some(sha) => sha,
            None => self.load_script().await?,
        };
        let keys = vec![format!("logweir:cursor:{writer}"), SERVICES.to_owned()];
        self.checked(self.client()?.evalsha(sha, keys, args).await)
    }

    /// The script's arguments, in the order documented in `apply.lua`.
    fn arguments(&self, origin: Origin, batch: &Batch, update: &CacheUpdate<'_>) -> Vec<Value> {
        let mut texts = self.render(origin, batch, update).into_iter();
        let (hour_first, hour_last) = self.limits.hours(update.received_us);
        let mut args: Vec<Value> = vec![
            i64::from(batch.lane).into(),
            number(update.first_seq),
            number(update.last_seq),
            number(self.limits.ttl_s),
            number(self.limits.recent_records as u64),
            number(self.limits.services_max as u64),
            hour_first.into(),
            hour_last.into(),
            (update.received_us - self.limits.ttl_us()).into(),
        ];
        for service in &update.services {
            args.push(service.name.into());
            args.push(service.seen_us.into());
            args.push(number(service.latest.len() as u64));
            args.extend(texts.by_ref().take(service.latest.len()).map(Value::Bytes));
            let counters_at = args.len();
            args.push(Value::Null);
            for (&minute, counts) in &service.minutes {
                let hour = minute.div_euclid(60);
                for (severity, &count) in counts.iter().enumerate().filter(|(_, count)| **count > 0) {
                    let field = format!("{}:{severity}", minute.rem_euclid(60));
                    args.extend([hour.into(), field.into(), i64::from(count).into()]);
                }
            }
            args[counters_at] = number(((args.len() - counters_at - 1) / 3) as u64);
        }
        args
    }

    /// Renders the recent records of each service, oldest first, as slices of one buffer.
    fn render(&self, origin: Origin, batch: &Batch, update: &CacheUpdate<'_>) -> Vec<Bytes> {
        let mut text = std::mem::take(&mut *lock(&self.scratch));
        let mut ends = Vec::with_capacity(update.services.iter().map(|service| service.latest.len()).sum());
        for entry in update.services.iter().flat_map(|service| service.latest.iter().rev()) {
            if let Some((record, location)) = entry.of(batch, origin.run) {
                render::record(&mut text, &location, &record);
            }
            ends.push(text.len());
        }
        let rendered = text.split().freeze();
        *lock(&self.scratch) = text;
        let mut start = 0;
        let slice = |end| rendered.slice(std::mem::replace(&mut start, end)..end);
        ends.into_iter().map(slice).collect()
    }
}

#[async_trait]
impl HotCache for RedisCache {
    fn name(&self) -> String {
        "Redis".to_owned()
    }

    async fn apply_within(&self, origin: Origin, batch: &Batch, recent_max: usize) -> Result<usize, CacheError> {
        let mut after_seq = 0;
        for _ in 0..ATTEMPTS_MAX {
            let (first_seq, recent, args) = match CacheUpdate::of(batch, after_seq, &self.limits, recent_max) {
                Some(update) => (update.first_seq, update.recent(), self.arguments(origin, batch, &update)),
                None => return Ok(0),
            };
            match self.run(origin.writer, args).await {
                Ok(stored_seq) if stored_seq < first_seq => return Ok(recent),
                Ok(stored_seq) => after_seq = stored_seq,
                // Redis was restarted, or its scripts were flushed.
                Err(error) if error.reason == "noscript" => drop(self.load_script().await?),
                Err(error) => return Err(error),
            }
        }
        let detail =
            format!("lane {}: another process moved its cursor in Redis while a batch was applied", batch.lane);
        Err(CacheError { reason: "contended", detail })
    }

    async fn cursors(&self, writer: Uuid) -> Result<HashMap<LaneId, u64>, CacheError> {
        let cursors: HashMap<String, u64> =
            self.checked(self.client()?.hgetall(format!("logweir:cursor:{writer}")).await)?;
        Ok(cursors.into_iter().filter_map(|(lane, seq)| Some((lane.parse().ok()?, seq))).collect())
    }

    async fn recent(&self, service: &str, limit: usize) -> Result<Vec<RecentRecord>, CacheError> {
        let Some(last) = limit.min(self.limits.recent_records).checked_sub(1) else { return Ok(Vec::new()) };
        let last = i64::try_from(last).unwrap_or(i64::MAX);
        self.checked(self.client()?.lrange(format!("logweir:recent:{service}"), 0, last).await)
    }

    async fn services(&self) -> Result<Vec<String>, CacheError> {
        #[allow(clippy::cast_precision_loss)] // scores are microseconds, exact below 2^53
        let oldest = (clock::wall_us() - self.limits.ttl_us()) as f64;
        self.checked(self.client()?.zrevrangebyscore(SERVICES, f64::INFINITY, oldest, false, None).await)
    }

    async fn volume(&self, service: &str, since_us: i64) -> Result<Vec<(i64, u8, u64)>, CacheError> {
        let (hour_oldest, hour_last) = self.limits.hours(clock::wall_us());
        let since = since_us.div_euclid(MINUTE_US);
        let hours: Vec<i64> = (since.div_euclid(60).max(hour_oldest)..=hour_last).collect();
        if hours.is_empty() {
            return Ok(Vec::new());
        }
        let pipeline = self.client()?.pipeline();
        for hour in &hours {
            let _queued: () = self.checked(pipeline.hgetall(format!("logweir:volume:{service}:{hour}")).await)?;
        }
        let answers: Vec<HashMap<String, u64>> = self.checked(pipeline.all().await)?;
        let mut counts: Vec<_> = hours
            .into_iter()
            .zip(&answers)
            .flat_map(|(hour, fields)| fields.iter().filter_map(move |(field, &count)| counter(hour, field, count)))
            .filter(|&(minute_us, ..)| minute_us >= since * MINUTE_US)
            .collect();
        counts.sort_unstable();
        Ok(counts)
    }

    async fn ping(&self) -> Result<(), CacheError> {
        self.checked(self.client()?.ping(None).await)
    }
}

/// Parses `<minute>:<severity>`; other fields are ignored, since this program did not write them.
fn counter(hour: i64, field: &str, count: u64) -> Option<(i64, u8, u64)> {
    let (minute, severity) = field.split_once(':')?;
    Some((hour * HOUR_US + minute.parse::<i64>().ok()? * MINUTE_US, severity.parse().ok()?, count))
}

fn builder(url: &str, timeout: Duration, ca_file: Option<&Path>) -> Result<Builder, CacheError> {
    let unusable = |detail: String| CacheError { reason: "config", detail: format!("cache.url: {detail}") };
    // fred would load the system's certificates by itself, and only those: TLS is configured here.
    let (plain, uses_tls) = match url.strip_prefix("rediss") {
        Some(rest) => (format!("redis{rest}"), true),
        None => (url.to_owned(), false),
    };
    let mut config = Config::from_url(&plain).map_err(|error| unusable(error.to_string()))?;
    if uses_tls {
        config.tls = Some(tls::client_config(ca_file).map_err(|error| unusable(error.to_string()))?.into());
    }
    // A Redis that is unavailable at startup is retried like one that becomes unavailable later.
    config.fail_fast = false;
    let connect = timeout.max(Duration::from_millis(CONNECT_MS_MIN));
    let mut reconnect = ReconnectPolicy::new_exponential(0, RECONNECT_MS.0, RECONNECT_MS.1, 2);
    reconnect.set_jitter(RECONNECT_JITTER_MS);
    let mut builder = Builder::from_config(config);
    builder
        .set_policy(reconnect)
        .set_performance_config(PerformanceConfig { default_command_timeout: timeout, ..PerformanceConfig::default() })
        .set_connection_config(ConnectionConfig {
            connection_timeout: connect,
            internal_command_timeout: connect,
            max_command_attempts: 1,
            max_command_buffer_len: QUEUE_MAX,
            tcp: TcpConfig { nodelay: Some(true), ..TcpConfig::default() },
            ..ConnectionConfig::default()
        });
    Ok(builder)
}

const CLUSTER: &str = "Redis Cluster is not supported, because one call uses keys of many slots: recent records and \
    counters are not cached; name a server that is not part of a cluster, or use cache.url = \"memory\"";
const SENTINEL: &str = "this is a Redis Sentinel, which holds no data: recent records and counters are not cached; to ask it \
    for the primary, use cache.url = \"redis-sentinel://HOST:PORT?sentinelServiceName=NAME\"";

/// What is wrong with a server that says this about itself (`INFO server`).
fn unsupported_mode(info: &str) -> Option<&'static str> {
    match info.lines().find_map(|line| line.strip_prefix("redis_mode:"))?.trim() {
        "cluster" => Some(CLUSTER),
        "sentinel" => Some(SENTINEL),
        _ => None,
    }
}

/// Maps an error to its counter label. Redis starts its own errors with a word that identifies them.
fn cache_error(error: &Error) -> CacheError {
    let word = error.details().split_whitespace().next();
    if matches!(word, Some("CROSSSLOT" | "MOVED" | "ASK" | "CLUSTERDOWN")) {
        return CacheError { reason: "unsupported", detail: format!("{CLUSTER} ({error})") };
    }
    let reason = match error.kind() {
        ErrorKind::Timeout => "timeout",
        ErrorKind::IO | ErrorKind::Canceled | ErrorKind::Routing | ErrorKind::Sentinel => "connection",
        ErrorKind::Tls => "tls",
        ErrorKind::Auth => "auth",
        ErrorKind::Backpressure => "queue_full",
        ErrorKind::Config | ErrorKind::Url => "config",
        _ => match word {
            Some("OOM") => "oom",
            Some("READONLY") => "readonly",
            Some("MISCONF") => "misconf",
            Some("LOADING") => "loading",
            Some("NOSCRIPT") => "noscript",
            Some("BUSY") => "busy",
            Some("NOPERM") => "auth",
            _ => "rejected",
        },
    };
    CacheError { reason, detail: format!("Redis: {error}") }
}

fn number(value: u64) -> Value {
    i64::try_from(value).unwrap_or(i64::MAX).into()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // These values are consistent at every moment, also after a panic elsewhere.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_redis_error_has_its_label() {
        for (kind, text, reason) in [
            (ErrorKind::Unknown, "OOM command not allowed when used memory > 'maxmemory'.", "oom"),
            (ErrorKind::Unknown, "READONLY You can't write against a read only replica.", "readonly"),
            (ErrorKind::Unknown, "MISCONF Redis is configured to save RDB snapshots", "misconf"),
            (ErrorKind::Unknown, "LOADING Redis is loading the dataset in memory", "loading"),
            (ErrorKind::Unknown, "CROSSSLOT Keys in request don't hash to the same slot", "unsupported"),
            (ErrorKind::Cluster, "MOVED 3999 127.0.0.1:6381", "unsupported"),
            (ErrorKind::Cluster, "CLUSTERDOWN Hash slot not served", "unsupported"),
            (ErrorKind::Unknown, "ERR something else", "rejected"),
            (ErrorKind::Unknown, "", "rejected"),
            (ErrorKind::Timeout, "Request timed out.", "timeout"),
            (ErrorKind::Backpressure, "Max in-flight commands reached.", "queue_full"),
        ] {
            assert_eq!(cache_error(&Error::new(kind, text)).reason, reason, "{text}");
        }
    }

    #[test]
    fn an_invalid_url_names_the_key() {
        for url in ["", "redis://", "nonsense"] {
            let error = builder(url, Duration::from_secs(1), None).expect_err(url);
            assert_eq!(error.reason, "config");
            assert!(error.detail.starts_with("cache.url: "), "{error}");
        }
        let missing = Path::new("/nonexistent/ca.pem");
        let error = builder("rediss://localhost", Duration::from_secs(1), Some(missing)).expect_err("no such file");
        assert!(error.detail.contains("/nonexistent/ca.pem"), "{error}");
    }
}
