//! The settings: plain values. Defaults, ranges and rules are beside this module.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

use logweir_formats::Rules;
use logweir_store::{Database, DatabaseUrl};
#[cfg(feature = "server")]
use logweir_tls::{ClientFiles, ServerFiles};

use super::alert_rule::Rule;
use super::token::Token;
use crate::message::AckLevel;

/// All settings. Sizes in bytes, times in milliseconds; `deploy/configuration.md` lists ranges and defaults.
///
/// Start from [`Config::in_dir`]; `Logweir::start` calls [`Config::validate`].
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Config {
    /// `data_dir`: directory of the journal, and of the SQLite file if SQLite is the log store.
    pub data_dir: PathBuf,
    /// `role`
    pub role: Role,
    /// `http`
    pub http: Http,
    /// `admin`
    pub admin: Admin,
    /// `auth`
    pub auth: Auth,
    /// `limits`
    pub limits: Limits,
    /// `ack`: acknowledgment level of requests that set none.
    pub ack: AckLevel,
    /// `lanes`: number of lanes; `None` for the default of the log store. See [`Config::lanes`].
    pub lanes: Option<u16>,
    /// `batch`
    pub batch: BatchLimits,
    /// `journal`
    pub journal: JournalSettings,
    /// `database`
    pub database: Database,
    /// `cache`
    pub cache: Cache,
    /// `gateway`
    pub gateway: Gateway,
    /// `query`
    pub query: Query,
    /// `tail`
    pub tail: Tail,
    /// `alerting`
    pub alerting: Alerting,
    /// `[alerts.NAME]`
    pub alerts: Vec<Rule>,
    /// `shutdown`
    pub shutdown: Shutdown,
    /// `parse` and `[formats.NAME]`
    pub parse: Rules,
    /// `sources`
    pub sources: Sources,
    /// `syslog`
    pub syslog: Syslog,
    /// `files`
    pub files: Files,
    /// `multiline`
    pub multiline: Multiline,
    /// `log`
    pub log: Log,
}

impl Config {
    /// Directory of the journal.
    #[must_use]
    pub fn journal_dir(&self) -> PathBuf {
        self.data_dir.join("journal")
    }

    /// Number of lanes: `lanes`, or the default for the log store.
    #[must_use]
    pub fn lanes(&self) -> u16 {
        // Three: while one commits and one is read from the journal, the third keeps the database busy. SQLite has one
        // writer.
        self.lanes.unwrap_or(if matches!(self.database.url, DatabaseUrl::Sqlite(_)) { 1 } else { 3 })
    }
}

/// Role of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Role {
    /// Everything in one process.
    All,
    /// Receives and stores records.
    Processor,
    /// Serves the web UI and the query API. Stateless, so any number of replicas can run.
    Gateway,
}

/// The processors of a gateway.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Gateway {
    /// `gateway.processors`: hosts and data ports.
    pub processors: Vec<HostPort>,
    /// `gateway.lookup_ms`: interval between DNS lookups (5 s).
    pub lookup_ms: u64,
    /// `gateway.timeout_ms`: time limit for a response or a DNS lookup (2 s).
    pub timeout_ms: u64,
    /// `gateway.requests_max`: maximum number of concurrent requests (16).
    pub requests_max: usize,
    /// `gateway.tls_ca_file`: PEM with CA certificates; enables TLS to the processors.
    pub tls_ca_file: Option<PathBuf>,
    /// `gateway.tls_cert_file`: PEM with the client certificate chain.
    pub tls_cert_file: Option<PathBuf>,
    /// `gateway.tls_key_file`: PEM with the private key.
    pub tls_key_file: Option<PathBuf>,
}

#[cfg(feature = "server")]
impl Gateway {
    /// TLS files of the gateway; `None` if it uses plain HTTP.
    #[must_use]
    pub fn tls(&self) -> Option<ClientFiles> {
        let identity = self.tls_cert_file.clone().zip(self.tls_key_file.clone());
        Some(ClientFiles { ca: self.tls_ca_file.clone()?, identity })
    }
}

/// A host name or address, and a port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub struct HostPort {
    /// Name, or address without brackets.
    pub host: String,
    /// Port.
    pub port: u16,
}

impl HostPort {
    /// Default data port of a processor.
    pub const PORT: u16 = 8080;
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port } = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

/// The data listener.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Http {
    /// `http.listen` (127.0.0.1:8080).
    pub listen: SocketAddr,
    /// `http.workers`: threads that read requests (half of the CPU cores, at least 1).
    pub workers: usize,
    /// `http.connections_max`: maximum number of open connections (1024).
    pub connections_max: usize,
    /// `http.body_bytes_max`: maximum size of a body as sent (8 MiB).
    pub body_bytes_max: usize,
    /// `http.decompressed_bytes_max`: maximum size of a decompressed body (12 MiB).
    pub decompressed_bytes_max: usize,
    /// `http.line_bytes_max`: maximum size of a record's line (256 KiB).
    pub line_bytes_max: usize,
    /// `http.inflight_bytes_max`: maximum size of all bodies being read (64 MiB).
    pub inflight_bytes_max: usize,
    /// `http.request_timeout_ms`: time limit for reading a request (30 s).
    pub request_timeout_ms: u64,
    /// `http.ack_timeout_ms`: time limit for reaching the acknowledgment level (10 s).
    pub ack_timeout_ms: u64,
    /// `http.tls_cert_file`: PEM with the certificate chain; `None` for plain HTTP.
    pub tls_cert_file: Option<PathBuf>,
    /// `http.tls_key_file`: PEM with the private key.
    pub tls_key_file: Option<PathBuf>,
    /// `http.tls_client_ca_file`: PEM with the CA certificates of clients.
    pub tls_client_ca_file: Option<PathBuf>,
}

#[cfg(feature = "server")]
impl Http {
    /// TLS files of the data listener; `None` if it serves plain HTTP.
    #[must_use]
    pub fn tls(&self) -> Option<ServerFiles> {
        let (cert, key) = self.tls_cert_file.clone().zip(self.tls_key_file.clone())?;
        Some(ServerFiles { cert, key, client_ca: self.tls_client_ca_file.clone() })
    }
}

/// The admin listener.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Admin {
    /// `admin.listen` (127.0.0.1:9600).
    pub listen: SocketAddr,
}

/// Authentication.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Auth {
    /// `auth.mode`: by default [`AuthMode::Token`] if any token is set.
    pub mode: AuthMode,
    /// `auth.ingest_tokens`
    pub ingest_tokens: Vec<Token>,
    /// `auth.query_tokens`
    pub query_tokens: Vec<Token>,
    /// `auth.admin_tokens`
    pub admin_tokens: Vec<Token>,
    /// `auth.stamp_token`: whether records get the attribute `logweir.token`.
    pub stamp_token: bool,
}

/// Limits per token; 0 disables one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// `limits.bytes_per_s`: bytes of bodies, as sent, per second.
    pub bytes_per_s: u64,
    /// `limits.bytes_per_day`: bytes of bodies, as sent, per day (UTC).
    pub bytes_per_day: u64,
}

/// Whether requests need a bearer token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum AuthMode {
    /// Each request needs a bearer token of the corresponding list.
    Token,
    /// No request needs a token.
    None,
}

/// Limits at which a batch is flushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BatchLimits {
    /// `batch.rows_max`: records (20,000).
    pub rows_max: usize,
    /// `batch.bytes_max`: size (8 MiB).
    pub bytes_max: usize,
    /// `batch.linger_ms`: age (50 ms).
    pub linger_ms: u64,
}

/// The journal.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct JournalSettings {
    /// `journal.segment_bytes`: size of a segment file (64 MiB).
    pub segment_bytes: u64,
    /// `journal.quota_bytes`: maximum size of all files (4 GiB).
    pub quota_bytes: u64,
    /// `journal.ballast_bytes`: disk space reserved for draining a full disk (64 MiB).
    pub ballast_bytes: u64,
    /// `journal.queue_bytes_max`: maximum size of the payloads waiting for the writer thread (32 MiB).
    pub queue_bytes_max: usize,
    /// `journal.retain_segments`: committed segments to keep, in case the database is restored to an earlier state (2).
    pub retain_segments: usize,
    /// `journal.retain_s`: how long to keep committed segments, as far as the quota allows (0).
    pub retain_s: u64,
}

/// The hot cache.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Cache {
    /// `cache.url`: `memory:`, `redis://…` or `redis-sentinel://…`.
    pub url: CacheUrl,
    /// `cache.recent_records`: recent records to keep per service (1000).
    pub recent_records: usize,
    /// `cache.recent_records_per_s`: maximum number of records added per second (20,000).
    pub recent_records_per_s: usize,
    /// `cache.services_max`: services to keep (1000); the least recently used one is evicted.
    pub services_max: usize,
    /// `cache.timeout_ms`: time limit for a command (500 ms).
    pub timeout_ms: u64,
    /// `cache.ttl_s`: time after which an entry that is not updated expires (1 day).
    pub ttl_s: u64,
}

/// Queries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Query {
    /// `query.timeout_ms`: time limit for a query (30 s).
    pub timeout_ms: u64,
    /// `query.running_max`: maximum number of concurrent queries (4).
    pub running_max: usize,
    /// `query.waiting_max`: maximum number of queued queries (32).
    pub waiting_max: usize,
    /// `query.streams_max`: maximum number of concurrent streaming responses (8).
    pub streams_max: usize,
    /// `query.page_bytes_max`: size at which a page of records ends (4 MiB).
    pub page_bytes_max: usize,
}

/// URL of the cache.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum CacheUrl {
    /// In this process.
    Memory,
    /// Redis, as written; may contain a password.
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

/// The live tail.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Tail {
    /// `tail.clients_max`: maximum number of concurrent live tails (32); 0 disables them.
    pub clients_max: usize,
    /// `tail.buffer_bytes`: buffer of the latest records, shared by all live tails (8 MiB).
    pub buffer_bytes: usize,
    /// `tail.records_per_s`: maximum number of records sent to one live tail per second (10,000).
    pub records_per_s: usize,
}

/// Settings of all alerts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Alerting {
    /// `alerting.webhook_url`: webhook of the alerts that set none; may contain a secret.
    pub webhook_url: Option<Token>,
}

/// Shutdown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Shutdown {
    /// `shutdown.linger_ms`: how long records are accepted after readiness has turned 503 (0; 5000 behind a load
    /// balancer).
    pub linger_ms: u64,
    /// `shutdown.deadline_ms`: time limit for the shutdown after SIGTERM (25 s): flushing, then sealing the journal.
    pub deadline_ms: u64,
}

/// Sources that need no listener.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Sources {
    /// `sources.stdin`: whether to read lines from standard input; its end starts the drain.
    pub stdin: bool,
    /// `sources.demo_rate`: sample records per second; 0 disables them.
    pub demo_rate: u32,
}

/// Syslog listeners.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Syslog {
    /// `syslog.tcp_listen`: octet-counted or newline-delimited; `None` disables it.
    pub tcp_listen: Option<SocketAddr>,
    /// `syslog.udp_listen`: one message per datagram; `None` disables it.
    pub udp_listen: Option<SocketAddr>,
    /// `syslog.tls_listen`: as TCP, over TLS; `None` disables it.
    pub tls_listen: Option<SocketAddr>,
    /// `syslog.tls_cert_file`: PEM with the certificate chain.
    pub tls_cert_file: Option<PathBuf>,
    /// `syslog.tls_key_file`: PEM with the private key.
    pub tls_key_file: Option<PathBuf>,
    /// `syslog.client_ca_file`: PEM with the CA certificates of senders.
    pub client_ca_file: Option<PathBuf>,
    /// `syslog.connections_max`: maximum number of open connections, TCP and TLS together (128).
    pub connections_max: usize,
    /// `syslog.message_bytes_max`: maximum size of a message (64 KiB).
    pub message_bytes_max: usize,
    /// `syslog.idle_timeout_ms`: time after which an idle connection is closed (1 h).
    pub idle_timeout_ms: u64,
    /// `syslog.udp_buffer_bytes`: buffer for received datagrams (8 MiB).
    pub udp_buffer_bytes: usize,
}

#[cfg(feature = "server")]
impl Syslog {
    /// TLS files of the TLS listener; `None` if it has no certificate.
    #[must_use]
    pub fn tls(&self) -> Option<ServerFiles> {
        let (cert, key) = self.tls_cert_file.clone().zip(self.tls_key_file.clone())?;
        Some(ServerFiles { cert, key, client_ca: self.client_ca_file.clone() })
    }
}

/// Tailed files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Files {
    /// `files.include`: globs of files to tail; empty disables it.
    pub include: Vec<String>,
    /// `files.exclude`: globs of files not to tail.
    pub exclude: Vec<String>,
    /// `files.from`: whether files that exist at the first start are read from their end.
    pub from_end: bool,
    /// `files.host`: host name of records that have none.
    pub host: String,
    /// `files.poll_ms`: interval between checks for new data (200 ms).
    pub poll_ms: u64,
    /// `files.rescan_ms`: interval between scans for new files (2 s).
    pub rescan_ms: u64,
    /// `files.open_max`: maximum number of files kept open (256).
    pub open_max: usize,
}

/// Records of several lines, for files and standard input.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Multiline {
    /// `multiline.start`: regular expression; a line that does not match belongs to the record before it. Empty
    /// disables it.
    pub start: String,
    /// `multiline.stack_traces`: whether the lines of a stack trace belong to the record before them.
    pub stack_traces: bool,
    /// `multiline.timeout_ms`: how long a record waits for its next line (500 ms).
    pub timeout_ms: u64,
    /// `multiline.bytes_max`: maximum size of a record; a longer one is split (64 KiB).
    pub bytes_max: usize,
}

/// The program's own log.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Log {
    /// `log.level`: a level, or a filter such as `info,logweir=debug`.
    pub level: String,
    /// `log.format`: whether it is `json` instead of `text`.
    pub json: bool,
}
