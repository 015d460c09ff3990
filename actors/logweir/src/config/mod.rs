//! Configuration. A [`Config`] returned by [`load`] is valid; [`Config::validate`] checks one that a program built.
//!
//! - Layers: defaults < file < `DATABASE_URL`, `REDIS_URL`, `LOGWEIR_LOG` < `LOGWEIR__SECTION__KEY` < flags.
//! - All errors are reported at once, each with its key, its source and what is accepted.
//! - Loading reads files and writes none: an invalid configuration is rejected before the journal is opened, because a
//!   restart with a typo must not cost a backlog.
//! - Messages contain no secrets.

pub mod keys;
pub mod value;
pub mod layers;
mod log_filter;
mod check;
pub mod token;
pub mod reference;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use crate::alerts::rule::{Measure, RULES_MAX, Rule, Threshold};
use crate::config::token::Token;
use crate::message::AckLevel;
use keys::{Fallback, KEYS};
use layers::{Gathered, Inputs, Section, Source};
use logweir_formats::{CUSTOM_MAX, CustomFormat, Rules};
pub use logweir_store::{Database, DatabaseUrl};
use logweir_tls::{ClientFiles, ServerFiles};
use value::Raw;

/// The configuration file that is searched for where none is specified.
pub const NAME_OF_FILE: &str = "logweir.toml";

/// A valid configuration and the source of each value.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// Configuration.
    pub config: Config,
    /// Source of each value by path; a value without an entry is a default.
    pub origins: BTreeMap<&'static str, Source>,
}

/// One error of a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Path of the key; empty for an unknown key, a whole file or a variable.
    pub key: String,
    /// Value, unless it is unreadable or secret.
    pub value: Option<String>,
    /// Source of the value.
    pub source: Source,
    /// What is wrong, and what is accepted.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, value, source, message } = self;
        let is_default = matches!(source, Source::Default);
        if !is_default && *source != Source::Program {
            write!(f, "{source}: ")?;
        }
        if key.is_empty() {
            return f.write_str(message);
        }
        write!(f, "invalid {key}")?;
        if let Some(value) = value {
            write!(f, " {value}")?;
        }
        write!(f, "{}: {message}", if is_default { " (default)" } else { "" })
    }
}

/// All errors of a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError(pub Vec<Problem>);

impl ConfigError {
    /// A single error of the key at `path`, found when its value was first used.
    #[must_use]
    pub fn at(path: &str, message: impl fmt::Display) -> Self {
        let (key, message) = (path.to_owned(), message.to_string());
        Self(vec![Problem { key, value: None, source: Source::Program, message }])
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_slice() {
            [problem] => write!(f, "invalid configuration: {problem}"),
            problems => {
                write!(f, "invalid configuration, {} errors:", problems.len())?;
                problems.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
            }
        }
    }
}

impl std::error::Error for ConfigError {}

/// Reads all layers and validates the result.
///
/// # Errors
/// Every error found, each with its key, its source and what is accepted.
pub fn load(inputs: &Inputs) -> Result<Loaded, ConfigError> {
    let Gathered { settings, formats, alerts, mut problems, file_unread, unread } = layers::gather(inputs);
    let mut config = defaults();
    let mut origins = BTreeMap::new();
    let mut unread: BTreeSet<&'static str> = unread.into_iter().collect();
    if file_unread {
        unread.extend(KEYS.iter().map(|key| key.path));
    }
    for setting in settings {
        let key = setting.key;
        match value::assign(key, &setting.raw, &mut config) {
            Ok(()) => {
                origins.insert(key.path, setting.source);
                if !file_unread {
                    unread.remove(key.path);
                }
            }
            Err(message) => {
                let value = printed(&setting.raw).filter(|_| !key.kind.is_secret());
                problems.push(Problem { key: key.path.into(), value, source: setting.source, message });
                unread.insert(key.path);
            }
        }
    }
    config.parse.custom = custom_formats(formats, &mut problems);
    config.alerts = rules(alerts, &mut problems);
    let mut checker =
        check::Checker { config: &mut config, explicit: check::Explicit::Only(&origins), unread: &unread, problems };
    check::derive(&mut checker);
    check::check(&mut checker);
    let problems = checker.problems;
    if problems.is_empty() { Ok(Loaded { config, origins }) } else { Err(ConfigError(problems)) }
}

/// Compiles the valid formats; they are sorted by name.
fn custom_formats(sections: Vec<Section>, problems: &mut Vec<Problem>) -> Vec<CustomFormat> {
    let mut formats = Vec::new();
    for Section { name, members, source } in sections {
        let (pattern, at) = match members.get("pattern") {
            Some((raw, source)) => (Some(raw), source),
            None => (None, &source),
        };
        let mut report = |key: String, value: Option<String>, source: &Source, message: String| {
            problems.push(Problem { key, value, source: source.clone(), message });
        };
        let key = format!("formats.{name}");
        let usual = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'_' | b'-');
        if !(1..=64).contains(&name.len()) || !name.bytes().all(usual) {
            report(key, None, &source, "expected a name of 1 to 64 characters a-z, 0-9, _ and -".into());
        } else if logweir_formats::format_named(&name).is_some() {
            report(key, None, &source, "expected another name: this is a built-in format".into());
        } else if formats.len() == CUSTOM_MAX {
            report(key, None, &source, format!("expected at most {CUSTOM_MAX} formats"));
        } else if let Some(Raw::Text(pattern)) = pattern {
            match CustomFormat::new(&name, pattern) {
                Ok(format) => formats.push(format),
                Err(message) => report(format!("{key}.pattern"), Some(format!("{pattern:?}")), at, message),
            }
        } else {
            let message = "expected a regular expression as a string";
            report(format!("{key}.pattern"), pattern.and_then(printed), at, message.into());
        }
    }
    formats
}

/// Parses the valid alerts; they are sorted by name.
fn rules(sections: Vec<Section>, problems: &mut Vec<Problem>) -> Vec<Rule> {
    let mut rules = Vec::new();
    for Section { name, members, source } in sections {
        let mut report = |key: String, value: Option<String>, source: &Source, message: String| {
            problems.push(Problem { key, value, source: source.clone(), message });
        };
        let key = format!("alerts.{name}");
        let usual = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
        if !(1..=64).contains(&name.len()) || !name.bytes().all(usual) {
            let message = "expected a name of 1 to 64 characters a-z, A-Z, 0-9, _ and -";
            report(key, None, &source, message.into());
            continue;
        }
        if rules.len() == RULES_MAX {
            report(key, None, &source, format!("expected at most {RULES_MAX} alerts"));
            continue;
        }
        let values: Vec<_> = members.iter().map(|(name, (raw, _))| (name.clone(), raw.clone())).collect();
        let read = Rule::read(&name, &values).and_then(|rule| {
            let errors = rule_errors(&rule);
            if errors.is_empty() { Ok(rule) } else { Err(errors) }
        });
        match read {
            Ok(rule) => rules.push(rule),
            Err(errors) => {
                for (member, message) in errors {
                    let given = members.get(&member);
                    let value = given.and_then(|(raw, _)| printed(raw)).filter(|_| member != "webhook");
                    let source = given.map_or(&source, |(_, source)| source);
                    report(format!("{key}.{member}"), value, source, message);
                }
            }
        }
    }
    rules
}

/// Why an alert could never fire, or notify nothing: the keys to change and what is accepted.
fn rule_errors(rule: &Rule) -> Vec<(String, String)> {
    let mut errors = Vec::new();
    let at_least_one = matches!(rule.threshold, Threshold::Above(limit) if limit >= 1.0);
    if at_least_one && matches!(rule.measure, Measure::Ratio(_)) {
        errors.push(("above".into(), "expected a number below 1, because a ratio is at most 1".into()));
    }
    if rule.webhook.as_ref().is_some_and(|url| !value::is_http_url(&url.0)) {
        errors.push(("webhook".into(), "expected http://HOST/… or https://HOST/…".into()));
    }
    errors
}

/// A value as it was written, for an error message.
fn printed(raw: &Raw) -> Option<String> {
    match raw {
        Raw::Text(text) => Some(format!("{text:?}")),
        Raw::List(list) => Some(format!("{list:?}")),
        Raw::Integer(number) => Some(number.to_string()),
        Raw::Fraction(number) => Some(number.clone()),
        Raw::Bool(value) => Some(value.to_string()),
        Raw::Other(kind) => Some((*kind).to_owned()),
    }
}

/// The lowest layer: the defaults of the table, parsed like values of a file.
fn defaults() -> Config {
    let mut config = blank();
    for key in KEYS {
        if let Fallback::Value(text) = key.fallback {
            value::assign(key, &Raw::Text(text.into()), &mut config).expect("a test parses every default");
        }
    }
    config
}

impl Default for Config {
    /// The defaults, with the journal and the SQLite file in `./logweir-data`.
    fn default() -> Self {
        derived(defaults())
    }
}

/// Derives the settings that follow from others.
fn derived(mut config: Config) -> Config {
    let (origins, unread) = (BTreeMap::new(), BTreeSet::new());
    let explicit = check::Explicit::Only(&origins);
    check::derive(&mut check::Checker { config: &mut config, explicit, unread: &unread, problems: Vec::new() });
    config
}

impl Config {
    /// The defaults, with the journal and the SQLite file in `data_dir`: the starting point of an embedding program.
    #[must_use]
    pub fn in_dir(data_dir: impl Into<PathBuf>) -> Self {
        derived(Self { data_dir: data_dir.into(), ..defaults() })
    }

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

    /// Checks a configuration that a program built, by the rules that hold for a file.
    ///
    /// Everything counts as set explicitly: a program that has `AuthMode::None` on an address that is not loopback
    /// means it.
    ///
    /// # Errors
    /// Every error found, each with its key and what is accepted.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let mut config = self.clone();
        let (mut problems, mut unread) = (Vec::new(), BTreeSet::new());
        for key in KEYS {
            let Some(raw) = value::current(key, &mut config) else { continue };
            if let Err(message) = value::assign(key, &raw, &mut config.clone()) {
                let value = printed(&raw).filter(|_| !key.kind.is_secret());
                problems.push(Problem { key: key.path.into(), value, source: Source::Program, message });
                unread.insert(key.path);
            }
        }
        if config.parse.custom.len() > CUSTOM_MAX {
            problems.extend(ConfigError::at("formats", format!("expected at most {CUSTOM_MAX} formats")).0);
        }
        let sections = config.alerts.iter().map(|rule| {
            let members = reference::alert_members(rule).into_iter();
            let members = members.map(|(name, raw)| (name.to_owned(), (raw, Source::Program))).collect();
            Section { name: rule.name.clone(), members, source: Source::Program }
        });
        rules(sections.collect(), &mut problems);
        let explicit = check::Explicit::All;
        let mut checker = check::Checker { config: &mut config, explicit, unread: &unread, problems };
        check::check(&mut checker);
        let problems = checker.problems;
        if problems.is_empty() { Ok(()) } else { Err(ConfigError(problems)) }
    }
}

impl Loaded {
    /// Checks whether this process can write `data_dir`, or the directory in which it will be created.
    ///
    /// `run` calls this and [`load`] does not: a configuration is also validated on machines that never run it. Writes
    /// nothing.
    ///
    /// # Errors
    /// The directory that cannot be written.
    pub fn check_data_dir(&self) -> Result<(), ConfigError> {
        let absolute = std::path::absolute(&self.config.data_dir).unwrap_or_else(|_| self.config.data_dir.clone());
        let Some(nearest) = absolute.ancestors().find(|path| path.exists()) else { return Ok(()) };
        if nearest.is_dir() && writable(nearest) {
            return Ok(());
        }
        let why = if nearest.is_dir() { "is not writable by this user" } else { "is not a directory" };
        Err(ConfigError(vec![Problem {
            key: "data_dir".into(),
            value: Some(format!("{:?}", self.config.data_dir)),
            source: self.origins.get("data_dir").cloned().unwrap_or(Source::Default),
            message: format!("expected a writable directory, but {} {why}", nearest.display()),
        }]))
    }
}

fn writable(path: &Path) -> bool {
    use std::os::unix::ffi::OsStrExt as _;
    let Ok(path) = std::ffi::CString::new(path.as_os_str().as_bytes()) else { return false };
    // SAFETY: the path is a NUL-terminated string that outlives the call, which only reads it.
    unsafe { libc::faccessat(libc::AT_FDCWD, path.as_ptr(), libc::W_OK | libc::X_OK, libc::AT_EACCESS) == 0 }
}

/// Placeholders for the lenses to overwrite. After [`defaults`] and `derive` only the empty values are left.
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
        lanes: None,
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

/// All settings. Sizes in bytes, times in milliseconds; [`keys::KEYS`] has ranges and defaults.
///
/// Start from [`Config::in_dir`]; `Logweir::start` calls [`Config::validate`].
#[derive(Clone, Debug, PartialEq)]
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

/// Role of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
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
pub struct Admin {
    /// `admin.listen` (127.0.0.1:9600).
    pub listen: SocketAddr,
}

/// Authentication.
#[derive(Clone, Debug, PartialEq, Eq)]
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
pub struct Limits {
    /// `limits.bytes_per_s`: bytes of bodies, as sent, per second.
    pub bytes_per_s: u64,
    /// `limits.bytes_per_day`: bytes of bodies, as sent, per day (UTC).
    pub bytes_per_day: u64,
}

/// Whether requests need a bearer token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuthMode {
    /// Each request needs a bearer token of the corresponding list.
    Token,
    /// No request needs a token.
    None,
}

/// Limits at which a batch is flushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
pub struct Cache {
    /// `cache.url`: `memory:` or `redis://…` / `rediss://…`.
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
pub struct Alerting {
    /// `alerting.webhook_url`: webhook of the alerts that set none; may contain a secret.
    pub webhook_url: Option<Token>,
}

/// Shutdown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shutdown {
    /// `shutdown.linger_ms`: how long records are accepted after readiness has turned 503 (0; 5000 behind a load
    /// balancer).
    pub linger_ms: u64,
    /// `shutdown.deadline_ms`: time limit for flushing after SIGTERM (25 s).
    pub deadline_ms: u64,
}

/// Sources that need no listener.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sources {
    /// `sources.stdin`: whether to read lines from standard input; its end starts the drain.
    pub stdin: bool,
    /// `sources.demo_rate`: sample records per second; 0 disables them.
    pub demo_rate: u32,
}

/// Syslog listeners.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
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
pub struct Log {
    /// `log.level`: a level, or a filter such as `info,logweir=debug`.
    pub level: String,
    /// `log.format`: whether it is `json` instead of `text`.
    pub json: bool,
}

#[cfg(test)]
mod tests;
