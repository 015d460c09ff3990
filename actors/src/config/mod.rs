//! Configuration: what was typed becomes what is meant. A [`Config`] that exists is valid.

use std::net::SocketAddr;
use std::path::PathBuf;

use crate::message::AckLevel;

/// Everything that can be set. Sizes in bytes, times in milliseconds.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// `data_dir`: the journal (and SQLite, if that is the store) live here.
    pub data_dir: PathBuf,
    /// `http`
    pub http: Http,
    /// `admin`
    pub admin: Admin,
    /// `auth`
    pub auth: Auth,
    /// `ack`: the level for requests that do not choose one.
    pub ack: AckLevel,
    /// `lanes`: units of order and parallelism.
    pub lanes: u16,
    /// `batch`
    pub batch: BatchLimits,
    /// `journal`
    pub journal: JournalSettings,
    /// `database`
    pub database: Database,
    /// `cache`
    pub cache: Cache,
    /// `shutdown`
    pub shutdown: Shutdown,
    /// `sources`: producers beside HTTP.
    pub sources: Sources,
    /// `log`
    pub log: Log,
}

/// The data listener.
#[derive(Clone, Debug, PartialEq)]
pub struct Http {
    /// `http.listen` (127.0.0.1:8080).
    pub listen: SocketAddr,
    /// `http.workers`: threads that read requests (half of the cores, at least 1).
    pub workers: usize,
    /// `http.connections_max` (1024).
    pub connections_max: usize,
    /// `http.body_bytes_max`: body as sent (8 MiB).
    pub body_bytes_max: usize,
    /// `http.decompressed_bytes_max`: body after decompression (12 MiB).
    pub decompressed_bytes_max: usize,
    /// `http.line_bytes_max`: one record's line (256 KiB); longer lines are discarded and counted.
    pub line_bytes_max: usize,
    /// `http.inflight_bytes_max`: bodies being read, all together (64 MiB); 429 above.
    pub inflight_bytes_max: usize,
    /// `http.request_timeout_ms`: a request must be read within this (30 s).
    pub request_timeout_ms: u64,
    /// `http.ack_timeout_ms`: how long an answer may wait for its ack level before 503 (10 s).
    pub ack_timeout_ms: u64,
}

/// The admin listener.
#[derive(Clone, Debug, PartialEq)]
pub struct Admin {
    /// `admin.listen` (127.0.0.1:9600).
    pub listen: SocketAddr,
}

/// Who may do what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Auth {
    /// `auth.mode`: `token`, or `none` (said explicitly, or by default when every listener is on loopback and no token is given).
    pub mode: AuthMode,
    /// `auth.ingest_tokens`
    pub ingest_tokens: Vec<Token>,
    /// `auth.query_tokens`
    pub query_tokens: Vec<Token>,
    /// `auth.admin_tokens`
    pub admin_tokens: Vec<Token>,
}

/// Whether requests need a bearer token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuthMode {
    /// Each request needs a bearer token of the right list.
    Token,
    /// Nobody is asked.
    None,
}

/// A secret; prints as `***`.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(pub String);

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

/// When a batch leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchLimits {
    /// `batch.rows_max` (20,000).
    pub rows_max: usize,
    /// `batch.bytes_max` (8 MiB).
    pub bytes_max: usize,
    /// `batch.linger_ms` (50).
    pub linger_ms: u64,
}

/// The journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JournalSettings {
    /// `journal.segment_bytes` (64 MiB).
    pub segment_bytes: u64,
    /// `journal.quota_bytes` (4 GiB).
    pub quota_bytes: u64,
    /// `journal.ballast_bytes` (64 MiB).
    pub ballast_bytes: u64,
    /// `journal.queue_bytes_max`: payloads waiting for the writer thread (32 MiB).
    pub queue_bytes_max: usize,
    /// `journal.retain_segments`: settled segments kept in case the database goes back in time (2).
    pub retain_segments: usize,
}

/// The log store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Database {
    /// `database.url`
    pub url: DatabaseUrl,
    /// `database.read_url`: where queries go (a replica); `url` if it is not given.
    pub read_url: Option<DatabaseUrl>,
    /// `database.pool_size`: connections for queries and administration (4).
    pub pool_size: usize,
    /// `database.connect_timeout_ms` (5 s).
    pub connect_timeout_ms: u64,
    /// `database.statement_timeout_ms` (60 s).
    pub statement_timeout_ms: u64,
    /// `database.retention_days`: older partitions are dropped; 0 keeps everything.
    pub retention_days: u32,
    /// `database.compress_after_days`: TimescaleDB only (7); 0 for never.
    pub compress_after_days: u32,
    /// `database.ca_file`: PEM certificates to trust besides the system's.
    pub ca_file: Option<PathBuf>,
}

/// Where the database is.
#[derive(Clone, PartialEq, Eq)]
pub enum DatabaseUrl {
    /// `sqlite:PATH`
    Sqlite(PathBuf),
    /// `postgres://…`, as typed (it may hold a password).
    Postgres(String),
}

impl std::fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Sqlite(path) => write!(f, "sqlite:{}", path.display()),
            Self::Postgres(_) => f.write_str("postgres://***"),
        }
    }
}

/// The hot cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cache {
    /// `cache.url`: `memory:` or `redis://…` / `rediss://…`.
    pub url: CacheUrl,
    /// `cache.recent_records`: records kept per service (1000).
    pub recent_records: usize,
    /// `cache.services_max`: services kept (1000); the least recent goes.
    pub services_max: usize,
    /// `cache.timeout_ms`: per command (500).
    pub timeout_ms: u64,
    /// `cache.ttl_s`: keys expire after this (86,400).
    pub ttl_s: u64,
}

/// Where the cache is.
#[derive(Clone, PartialEq, Eq)]
pub enum CacheUrl {
    /// In this process.
    Memory,
    /// Redis, as typed (it may hold a password).
    Redis(String),
}

impl std::fmt::Debug for CacheUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Memory => f.write_str("memory:"),
            Self::Redis(_) => f.write_str("redis://***"),
        }
    }
}

/// The way down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shutdown {
    /// `shutdown.linger_ms`: intake goes on this long after readiness has turned 503 (0 on a laptop; 5000 behind a load balancer).
    pub linger_ms: u64,
    /// `shutdown.deadline_ms`: the flusher may go on this long after SIGTERM (25 s).
    pub deadline_ms: u64,
}

/// Producers beside HTTP.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sources {
    /// `sources.stdin`: read lines from standard input; its end drains.
    pub stdin: bool,
    /// `sources.demo_rate`: records per second of made-up services; 0 for none.
    pub demo_rate: u32,
}

/// The program's own log lines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// `log.level`: a filter such as `info` or `logweir=debug`.
    pub level: String,
    /// `log.format`: `text` or `json`.
    pub json: bool,
}
