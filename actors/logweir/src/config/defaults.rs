//! Defaults: the lowest layer.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use logweir_formats::Rules;
use logweir_store::{Database, DatabaseUrl};

use super::check;
use super::keys::{Fallback, KEYS};
use super::raw::Raw;
use super::settings::{
    Admin, Alerting, Auth, AuthMode, BatchLimits, Cache, CacheUrl, Config, Files, Gateway, Http, JournalSettings,
    Limits, Log, Multiline, Query, Role, Shutdown, Sources, Syslog, Tail,
};
use super::value;
use crate::message::AckLevel;

/// The lowest layer: the defaults of the table, parsed like values of a file.
pub(super) fn defaults() -> Config {
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
        database: Database::new(DatabaseUrl::Sqlite(PathBuf::new())),
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
