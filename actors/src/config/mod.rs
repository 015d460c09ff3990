//! Configuration: what was typed becomes what is meant. A [`Config`] that [`load`] returned is valid.
//!
//! - Layers: defaults < file < `DATABASE_URL`, `REDIS_URL` < `LOGWEIR__SECTION__KEY` < flags.
//! - Every mistake is found in one go and named with its key, its source and what is allowed.
//! - Loading reads files and writes none: a bad configuration is refused before the journal is touched, because a
//!   restart with a typo must not cost a backlog.
//! - Secrets are in no message.

pub mod keys;
pub mod value;
pub mod layers;
mod check;
pub mod reference;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use crate::alerts::rule::{RULES_MAX, Rule};
use crate::message::AckLevel;
use crate::parser::{CUSTOM_MAX, CustomFormat, Rules};
use crate::tls::{ClientFiles, ServerFiles};
use crate::token::Token;
use keys::{Fallback, KEYS};
use layers::{AlertSetting, FormatSetting, Gathered, Inputs, Source};
use value::Raw;

/// The file that is read from the working directory where no other is named.
pub const NAME_OF_FILE: &str = "logweir.toml";

/// A valid configuration and who said what of it.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// Where each value came from; what is missing is a default.
    pub origins: BTreeMap<&'static str, Source>,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// The key's path; empty where it is about a whole file or variable.
    pub key: String,
    /// Its value, unless that is unreadable or secret.
    pub value: Option<String>,
    /// Who said it.
    pub source: Source,
    /// What is wrong and what is allowed.
    pub what: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.key.as_str(), &self.value) {
            ("", _) => write!(f, "{} {}", self.source, self.what),
            (key, None) => write!(f, "{key} ({}): {}", self.source, self.what),
            (key, Some(value)) => write!(f, "{key} = {value} ({}): {}", self.source, self.what),
        }
    }
}

/// Everything that is wrong, at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError(pub Vec<Mistake>);

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.0.len();
        write!(f, "the configuration has {count} mistake{}:", if count == 1 { "" } else { "s" })?;
        self.0.iter().try_for_each(|mistake| write!(f, "\n  {mistake}"))
    }
}

impl std::error::Error for ConfigError {}

/// Reads all layers and checks everything.
///
/// # Errors
/// Every mistake, each with its key, its source and what is allowed.
pub fn load(inputs: &Inputs) -> Result<Loaded, ConfigError> {
    let Gathered { settings, formats, alerts, mut mistakes, file_unread } = layers::gather(inputs);
    let mut config = defaults();
    let mut origins = BTreeMap::new();
    let mut unread: BTreeSet<&'static str> = BTreeSet::new();
    if file_unread {
        unread.extend(KEYS.iter().map(|key| key.path));
    }
    for setting in settings {
        let key = setting.key;
        match value::assign(key, &setting.raw, &mut config) {
            Ok(()) => _ = origins.insert(key.path, setting.source),
            Err(what) => {
                let value = typed(&setting.raw).filter(|_| !key.kind.is_secret());
                mistakes.push(Mistake { key: key.path.into(), value, source: setting.source, what });
                unread.insert(key.path);
            }
        }
    }
    config.parse.custom = custom_formats(formats, &mut mistakes);
    config.alerts = rules(alerts, &mut mistakes);
    let mut checker = check::Checker { config: &mut config, origins: &origins, unread: &unread, mistakes: Vec::new() };
    check::derive(&mut checker);
    check::check(&mut checker);
    mistakes.append(&mut checker.mistakes);
    if mistakes.is_empty() { Ok(Loaded { config, origins }) } else { Err(ConfigError(mistakes)) }
}

/// The formats that can be used, in the order of their names.
fn custom_formats(mut settings: Vec<FormatSetting>, mistakes: &mut Vec<Mistake>) -> Vec<CustomFormat> {
    settings.sort_by(|a, b| a.name.cmp(&b.name));
    let mut formats = Vec::new();
    for FormatSetting { name, pattern, source } in settings {
        let mut wrong = |key: String, value: Option<String>, what: String| {
            mistakes.push(Mistake { key, value, source: source.clone(), what });
        };
        let key = format!("formats.{name}");
        let usual = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'_' | b'-');
        if !(1..=64).contains(&name.len()) || !name.bytes().all(usual) {
            wrong(key, None, "is no name for a format: write up to 64 of a-z, 0-9, _ and -".into());
        } else if crate::parser::format_named(&name).is_some() {
            wrong(key, None, "is the name of a built-in format: choose another one".into());
        } else if formats.len() == CUSTOM_MAX {
            wrong(key, None, format!("is one format too many: there may be {CUSTOM_MAX}"));
        } else if let Some(pattern) = pattern {
            match CustomFormat::new(&name, &pattern) {
                Ok(format) => formats.push(format),
                Err(what) => wrong(format!("{key}.pattern"), Some(format!("{pattern:?}")), what),
            }
        } else {
            wrong(format!("{key}.pattern"), None, "must be a regular expression as a string".into());
        }
    }
    formats
}

/// The alerts that can be watched, in the order of their names.
fn rules(mut settings: Vec<AlertSetting>, mistakes: &mut Vec<Mistake>) -> Vec<Rule> {
    settings.sort_by(|a, b| a.name.cmp(&b.name));
    let mut rules = Vec::new();
    for AlertSetting { name, members, source } in settings {
        let mut wrong = |key: String, value: Option<String>, source: &Source, what: String| {
            mistakes.push(Mistake { key, value, source: source.clone(), what });
        };
        let key = format!("alerts.{name}");
        let usual = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
        if !(1..=64).contains(&name.len()) || !name.bytes().all(usual) {
            let what = "is no name for an alert: write up to 64 of a-z, A-Z, 0-9, _ and -";
            wrong(key, None, &source, what.into());
            continue;
        }
        if rules.len() == RULES_MAX {
            wrong(key, None, &source, format!("is one alert too many: there may be {RULES_MAX}"));
            continue;
        }
        let plain: Vec<_> = members.iter().map(|(name, raw, _)| (name.clone(), raw.clone())).collect();
        match Rule::read(&name, &plain) {
            Ok(rule) => rules.push(rule),
            Err(wrongs) => {
                for (member, what) in wrongs {
                    let said = members.iter().find(|(name, ..)| *name == member);
                    let value = said.and_then(|(_, raw, _)| typed(raw)).filter(|_| member != "webhook");
                    let source = said.map_or(&source, |(_, _, source)| source);
                    wrong(format!("{key}.{member}"), value, source, what);
                }
            }
        }
    }
    rules
}

/// What somebody typed, for a message about it.
fn typed(raw: &Raw) -> Option<String> {
    match raw {
        Raw::Text(text) => Some(format!("{text:?}")),
        Raw::List(list) => Some(format!("{list:?}")),
        Raw::Integer(number) => Some(number.to_string()),
        Raw::Bool(value) => Some(value.to_string()),
        Raw::Other(what) => Some((*what).to_owned()),
    }
}

/// The lowest layer: the table's own texts, read as if they had been typed.
fn defaults() -> Config {
    let mut config = blank();
    for key in KEYS {
        if let Fallback::Value(text) = key.fallback {
            value::assign(key, &Raw::Text(text.into()), &mut config).expect("a test reads every default");
        }
    }
    config
}

impl Default for Config {
    /// What holds where nobody says anything; for embedding and tests.
    fn default() -> Self {
        derived(defaults())
    }
}

/// With the settings that follow from others.
fn derived(mut config: Config) -> Config {
    let (origins, unread) = (BTreeMap::new(), BTreeSet::new());
    let mut checker = check::Checker { config: &mut config, origins: &origins, unread: &unread, mistakes: Vec::new() };
    check::derive(&mut checker);
    config
}

impl Config {
    /// The defaults, with journal and SQLite file in `data_dir`: what an embedding program starts from.
    #[must_use]
    pub fn in_dir(data_dir: impl Into<PathBuf>) -> Self {
        derived(Self { data_dir: data_dir.into(), ..defaults() })
    }

    /// Where the journal lies.
    #[must_use]
    pub fn journal_dir(&self) -> PathBuf {
        self.data_dir.join("journal")
    }
}

impl Loaded {
    /// Whether `data_dir`, or the directory it will be made in, can be written by this process. Asked by `run` and not by
    /// [`load`]: a configuration is also validated on machines that will never run it. Touches nothing.
    ///
    /// # Errors
    /// The mistake, with the directory that refuses.
    pub fn check_data_dir(&self) -> Result<(), ConfigError> {
        let absolute = std::path::absolute(&self.config.data_dir).unwrap_or_else(|_| self.config.data_dir.clone());
        let Some(nearest) = absolute.ancestors().find(|path| path.exists()) else { return Ok(()) };
        if nearest.is_dir() && writable(nearest) {
            return Ok(());
        }
        let why = if nearest.is_dir() { "cannot be written by this user" } else { "is not a directory" };
        Err(ConfigError(vec![Mistake {
            key: "data_dir".into(),
            value: Some(format!("{:?}", self.config.data_dir)),
            source: self.origins.get("data_dir").cloned().unwrap_or(Source::Default),
            what: format!("{} {why}: mend its owner and mode, or choose another data_dir", nearest.display()),
        }]))
    }
}

fn writable(path: &Path) -> bool {
    use std::os::unix::ffi::OsStrExt as _;
    let Ok(path) = std::ffi::CString::new(path.as_os_str().as_bytes()) else { return false };
    // SAFETY: the path is a NUL-terminated string that lives across the call, which only reads it.
    unsafe { libc::faccessat(libc::AT_FDCWD, path.as_ptr(), libc::W_OK | libc::X_OK, libc::AT_EACCESS) == 0 }
}

/// A value in every field, for the lenses to write over. No value of it survives [`defaults`] and `derive`,
/// except the empty ones.
fn blank() -> Config {
    let nowhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    Config {
        data_dir: PathBuf::new(),
        role: Role::All,
        http: Http {
            listen: nowhere,
            workers: 0,
            connections_max: 0,
            body_bytes_max: 0,
            decompressed_bytes_max: 0,
            line_bytes_max: 0,
            inflight_bytes_max: 0,
            request_timeout_ms: 0,
            ack_timeout_ms: 0,
            tls_cert_file: None,
            tls_key_file: None,
            tls_client_ca_file: None,
        },
        admin: Admin { listen: nowhere },
        auth: Auth {
            mode: AuthMode::None,
            ingest_tokens: vec![],
            query_tokens: vec![],
            admin_tokens: vec![],
            stamp_token: false,
        },
        limits: Limits::default(),
        ack: AckLevel::Journal,
        lanes: 0,
        batch: BatchLimits { rows_max: 0, bytes_max: 0, linger_ms: 0 },
        journal: JournalSettings {
            segment_bytes: 0,
            quota_bytes: 0,
            ballast_bytes: 0,
            queue_bytes_max: 0,
            retain_segments: 0,
            retain_s: 0,
        },
        database: Database {
            url: DatabaseUrl::Sqlite(PathBuf::new()),
            read_url: None,
            pool_size: 0,
            connect_timeout_ms: 0,
            statement_timeout_ms: 0,
            retention_days: 0,
            compress_after_days: 0,
            text_index: false,
            ca_file: None,
        },
        cache: Cache {
            url: CacheUrl::Memory,
            recent_records: 0,
            recent_records_per_s: 0,
            services_max: 0,
            timeout_ms: 0,
            ttl_s: 0,
        },
        gateway: Gateway::default(),
        query: Query::default(),
        tail: Tail::default(),
        alerting: Alerting::default(),
        alerts: vec![],
        shutdown: Shutdown { linger_ms: 0, deadline_ms: 0 },
        parse: Rules::default(),
        sources: Sources::default(),
        syslog: Syslog::default(),
        files: Files::default(),
        multiline: Multiline::default(),
        log: Log { level: String::new(), json: false },
    }
}

/// Everything that can be set. Sizes in bytes, times in milliseconds; [`keys::KEYS`] holds ranges and defaults.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// `data_dir`: the journal (and SQLite, if that is the store) live here.
    pub data_dir: PathBuf,
    /// `role`: which part of logweir this process is.
    pub role: Role,
    /// `http`
    pub http: Http,
    /// `admin`
    pub admin: Admin,
    /// `auth`
    pub auth: Auth,
    /// `limits`
    pub limits: Limits,
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
    /// `gateway`: where a gateway finds the processors.
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
    /// `parse`, and the formats of `[formats.NAME]`.
    pub parse: Rules,
    /// `sources`: producers beside HTTP.
    pub sources: Sources,
    /// `syslog`
    pub syslog: Syslog,
    /// `files`
    pub files: Files,
    /// `multiline`: for files and standard input.
    pub multiline: Multiline,
    /// `log`
    pub log: Log,
}

/// Which part of logweir a process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Everything in one process.
    All,
    /// Takes records and stores them.
    Processor,
    /// Page and query API: keeps nothing, so that there may be as many as one likes.
    Gateway,
}

/// Where a gateway finds the processors.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Gateway {
    /// `gateway.processors`: their data listeners.
    pub processors: Vec<HostPort>,
    /// `gateway.lookup_ms`: how often the names are looked up (5 s).
    pub lookup_ms: u64,
    /// `gateway.timeout_ms`: how long one answer may take (2 s).
    pub timeout_ms: u64,
    /// `gateway.requests_max`: processors that are asked at once (16).
    pub requests_max: usize,
    /// `gateway.tls_ca_file`: PEM; processors are asked over TLS, and must have a certificate of these.
    pub tls_ca_file: Option<PathBuf>,
    /// `gateway.tls_cert_file`: PEM, the certificate that processors are shown.
    pub tls_cert_file: Option<PathBuf>,
    /// `gateway.tls_key_file`: PEM, its key.
    pub tls_key_file: Option<PathBuf>,
}

impl Gateway {
    /// Whom the gateway trusts, and what it shows, where processors speak TLS.
    #[must_use]
    pub fn tls(&self) -> Option<ClientFiles> {
        let identity = self.tls_cert_file.clone().zip(self.tls_key_file.clone());
        Some(ClientFiles { ca: self.tls_ca_file.clone()?, identity })
    }
}

/// A host by name or address, and a port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostPort {
    /// A name, or an address without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
}

impl HostPort {
    /// Where a processor's data listener is unless it says otherwise.
    pub const PORT: u16 = 8080;

    fn read(text: &str) -> Result<Self, String> {
        let wrong = |why: &str| format!("{text:?} is no HOST or HOST:PORT, such as logweir-processor:8080: {why}");
        let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((address, "")) => (address, None),
            Some((address, port)) => (address, Some(port.strip_prefix(':').ok_or_else(|| wrong("after the `]`"))?)),
            None if text.parse::<std::net::Ipv6Addr>().is_ok() => (text, None),
            None => match text.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (text, None),
            },
        };
        let usual = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
        let named = !host.is_empty() && host.len() <= 253 && host.bytes().all(usual);
        if !named && host.parse::<std::net::Ipv6Addr>().is_err() {
            return Err(wrong("a host has letters, digits, `.`, `-` and `_`, and there is no http:// before"));
        }
        let port = match port.map(str::parse) {
            None => Self::PORT,
            Some(Ok(port)) if port > 0 => port,
            Some(_) => return Err(wrong("a port is a number from 1 to 65535, and there is no http:// before")),
        };
        Ok(Self { host: host.to_owned(), port })
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port } = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
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
    /// `http.tls_cert_file`: PEM, the certificate and what leads to its root; none for plain HTTP.
    pub tls_cert_file: Option<PathBuf>,
    /// `http.tls_key_file`: PEM, the certificate's key.
    pub tls_key_file: Option<PathBuf>,
    /// `http.tls_client_ca_file`: PEM; clients must have a certificate of these.
    pub tls_client_ca_file: Option<PathBuf>,
}

impl Http {
    /// What the data listener shows, where it speaks TLS.
    #[must_use]
    pub fn tls(&self) -> Option<ServerFiles> {
        let (cert, key) = self.tls_cert_file.clone().zip(self.tls_key_file.clone())?;
        Some(ServerFiles { cert, key, client_ca: self.tls_client_ca_file.clone() })
    }
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
    /// `auth.stamp_token`: each record gets the attribute `logweir.token` with the name of its sender's token.
    pub stamp_token: bool,
}

/// What one token may send. 0: as much as it likes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// `limits.bytes_per_s`: of bodies as sent.
    pub bytes_per_s: u64,
    /// `limits.bytes_per_day`: of bodies as sent, in a day of UTC.
    pub bytes_per_day: u64,
}

/// Whether requests need a bearer token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuthMode {
    /// Each request needs a bearer token of the right list.
    Token,
    /// Nobody is asked.
    None,
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
    /// `journal.retain_s`: how long they are kept for the same reason, as far as the quota has room (0).
    pub retain_s: u64,
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
    /// `database.text_index`: partitions of days that are over get an index for text (true).
    pub text_index: bool,
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
    /// `blackhole:`, for measurements: every record is taken and none is kept.
    Blackhole,
}

impl std::fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Sqlite(path) => write!(f, "sqlite:{}", path.display()),
            Self::Postgres(_) => f.write_str("postgres://***"),
            Self::Blackhole => f.write_str("blackhole:"),
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
    /// `cache.recent_records_per_s`: records that enter the windows in a second (20,000).
    pub recent_records_per_s: usize,
    /// `cache.services_max`: services kept (1000); the least recent goes.
    pub services_max: usize,
    /// `cache.timeout_ms`: per command (500).
    pub timeout_ms: u64,
    /// `cache.ttl_s`: keys expire after this (86,400).
    pub ttl_s: u64,
}

/// Queries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Query {
    /// `query.timeout_ms`: how long one may take (30 s).
    pub timeout_ms: u64,
    /// `query.running_max`: how many run at once (4).
    pub running_max: usize,
    /// `query.waiting_max`: how many more wait for their turn (32).
    pub waiting_max: usize,
    /// `query.streams_max`: answers that are streamed at once (8).
    pub streams_max: usize,
    /// `query.page_bytes_max`: a page of records ends when it has so many bytes (4 MiB).
    pub page_bytes_max: usize,
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

/// The live tail.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tail {
    /// `tail.clients_max`: streams at once (32); 0 for none.
    pub clients_max: usize,
    /// `tail.buffer_bytes`: the newest records, kept once for all while anybody listens (8 MiB).
    pub buffer_bytes: usize,
    /// `tail.records_per_s`: what one stream gets in a second (10,000); the rest is told as dropped.
    pub records_per_s: usize,
}

/// What holds for all alerts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Alerting {
    /// `alerting.webhook_url`: where alerts are told that name no webhook; such an address may hold a secret.
    pub webhook_url: Option<Token>,
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

/// Syslog listeners.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Syslog {
    /// `syslog.tcp_listen`: octet-counted frames and lines; none for off.
    pub tcp_listen: Option<SocketAddr>,
    /// `syslog.udp_listen`: one message per datagram; none for off.
    pub udp_listen: Option<SocketAddr>,
    /// `syslog.tls_listen`: as TCP, in TLS; none for off.
    pub tls_listen: Option<SocketAddr>,
    /// `syslog.tls_cert_file`: PEM, the listener's certificate and what leads to its root.
    pub tls_cert_file: Option<PathBuf>,
    /// `syslog.tls_key_file`: PEM, the certificate's key.
    pub tls_key_file: Option<PathBuf>,
    /// `syslog.client_ca_file`: PEM; senders on the TLS listener must have a certificate of these.
    pub client_ca_file: Option<PathBuf>,
    /// `syslog.connections_max`: open connections, TCP and TLS together (128).
    pub connections_max: usize,
    /// `syslog.message_bytes_max`: longer messages are discarded and counted (64 KiB).
    pub message_bytes_max: usize,
    /// `syslog.idle_timeout_ms`: a connection on which nothing comes is closed (1 h).
    pub idle_timeout_ms: u64,
    /// `syslog.udp_buffer_bytes`: datagrams that wait; further ones are dropped and counted (8 MiB).
    pub udp_buffer_bytes: usize,
}

impl Syslog {
    /// What the TLS listener shows, where it has a certificate.
    #[must_use]
    pub fn tls(&self) -> Option<ServerFiles> {
        let (cert, key) = self.tls_cert_file.clone().zip(self.tls_key_file.clone())?;
        Some(ServerFiles { cert, key, client_ca: self.client_ca_file.clone() })
    }
}

/// Tailed files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Files {
    /// `files.include`: globs; none for off.
    pub include: Vec<String>,
    /// `files.exclude`: globs of what is left out of it.
    pub exclude: Vec<String>,
    /// `files.from`: whether files that are there at the very first start are passed over.
    pub from_end: bool,
    /// `files.host`: the host of records that name none, such as the node's name.
    pub host: String,
    /// `files.poll_ms`: how often files are looked at (200).
    pub poll_ms: u64,
    /// `files.rescan_ms`: how often the globs are (2 s).
    pub rescan_ms: u64,
    /// `files.open_max`: descriptors that are kept open (256).
    pub open_max: usize,
}

/// Lines that are one record.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Multiline {
    /// `multiline.start`: a regular expression; lines that do not match belong to the record before. Empty for none.
    pub start: String,
    /// `multiline.stack_traces`: the lines of a stack trace belong to the record before.
    pub stack_traces: bool,
    /// `multiline.timeout_ms`: how long a record may wait for its next line (500 ms).
    pub timeout_ms: u64,
    /// `multiline.bytes_max`: a longer record is begun anew (64 KiB).
    pub bytes_max: usize,
}

/// The program's own log lines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// `log.level`: a filter such as `info` or `logweir=debug`.
    pub level: String,
    /// `log.format`: `text` or `json`.
    pub json: bool,
}

#[cfg(test)]
mod tests;
