//! Rules between keys, and values that are derived from others. Each message has the numbers that were compared.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::Path;

use logweir_store::DatabaseUrl;

use super::keys;
use super::problem::{Problem, Source};
use super::quantity::{Unit, show_number};
use super::settings::{AuthMode, Config, Role};
use super::value::show;

/// A configuration with what the rules need to know about its values.
pub(super) struct Checker<'a> {
    pub config: &'a mut Config,
    pub explicit: Explicit<'a>,
    /// Keys whose values could not be parsed.
    pub unread: &'a BTreeSet<&'static str>,
    pub problems: Vec<Problem>,
}

/// Keys that were set explicitly.
#[derive(Clone, Copy)]
pub(super) enum Explicit<'a> {
    /// These, with their sources.
    Only(&'a BTreeMap<&'static str, Source>),
    /// All: a program built the configuration.
    All,
}

impl Checker<'_> {
    /// Reports a problem of the first of `keys`, unless `holds`. A rule about a value that could not be parsed is
    /// skipped.
    fn rule(&mut self, keys: &[&'static str], holds: bool, message: impl FnOnce(&Config) -> String) {
        if holds || keys.iter().any(|key| self.unread.contains(key)) {
            return;
        }
        let key = keys::find(keys[0]).expect("rules are about keys of the table");
        self.problems.push(Problem {
            key: key.path.into(),
            value: Some(show(key, self.config)),
            source: self.source(key.path),
            message: message(self.config),
        });
    }

    fn source(&self, path: &str) -> Source {
        match self.explicit {
            Explicit::Only(origins) => origins.get(path).cloned().unwrap_or(Source::Default),
            Explicit::All => Source::Program,
        }
    }

    fn is_explicit(&self, path: &str) -> bool {
        self.source(path) != Source::Default
    }
}

/// Sets the values that follow from others.
pub(super) fn derive(check: &mut Checker<'_>) {
    if !check.is_explicit("http.workers") {
        check.config.http.workers = std::thread::available_parallelism().map_or(1, |cores| (cores.get() / 2).max(1));
    }
    if !check.is_explicit("database.url") {
        check.config.database.url = DatabaseUrl::Sqlite(check.config.data_dir.join("logweir.db"));
    }
    // A lower limit for lines also lowers the defaults that it bounds.
    let line_bytes_max = check.config.http.line_bytes_max;
    if !check.is_explicit("syslog.message_bytes_max") {
        check.config.syslog.message_bytes_max = check.config.syslog.message_bytes_max.min(line_bytes_max);
    }
    if !check.is_explicit("multiline.bytes_max") {
        check.config.multiline.bytes_max = check.config.multiline.bytes_max.min(line_bytes_max);
    }
    if !check.is_explicit("auth.mode") {
        let auth = &check.config.auth;
        let tokens = auth.ingest_tokens.len() + auth.query_tokens.len() + auth.admin_tokens.len();
        check.config.auth.mode = if tokens > 0 { AuthMode::Token } else { AuthMode::None };
    }
}

/// Checks every rule.
pub(super) fn check(check: &mut Checker<'_>) {
    sizes(check);
    times(check);
    listeners(check);
    syslog(check);
    paths(check);
    role(check);
}

fn role(check: &mut Checker<'_>) {
    let (role, config) = (check.config.role, check.config.clone());
    let processors = !config.gateway.processors.is_empty();
    if role != Role::Gateway {
        check.rule(&["gateway.processors", "role"], !processors, |_| {
            "expected role = \"gateway\", the only role that connects to processors".into()
        });
        return;
    }
    check.rule(&["role", "gateway.processors"], processors, |_| {
        "a gateway requires gateway.processors, the hosts of the processors".into()
    });
    let database = check.is_explicit("database.url");
    check.rule(&["role", "database.url"], database, |_| {
        "a gateway requires database.url, the log store of the processors".into()
    });
    let sources = [
        ("sources.stdin", config.sources.stdin),
        ("sources.demo_rate", config.sources.demo_rate > 0),
        ("syslog.tcp_listen", config.syslog.tcp_listen.is_some()),
        ("syslog.udp_listen", config.syslog.udp_listen.is_some()),
        ("syslog.tls_listen", config.syslog.tls_listen.is_some()),
        ("files.include", !config.files.include.is_empty()),
    ];
    for (key, set) in sources {
        check.rule(&[key, "role"], !set, |_| "a gateway receives no records: set this on a processor".into());
    }
}

fn sizes(check: &mut Checker<'_>) {
    let (http, batch, journal) = (check.config.http.clone(), check.config.batch, check.config.journal.clone());
    let bytes = |number: usize| show_number(number as u64, Unit::Bytes);
    check.rule(
        &["http.decompressed_bytes_max", "http.body_bytes_max"],
        http.decompressed_bytes_max >= http.body_bytes_max,
        |_| format!("expected at least http.body_bytes_max, which is {}", bytes(http.body_bytes_max)),
    );
    check.rule(
        &["http.line_bytes_max", "http.decompressed_bytes_max"],
        http.line_bytes_max <= http.decompressed_bytes_max,
        |_| format!("expected at most http.decompressed_bytes_max, which is {}", bytes(http.decompressed_bytes_max)),
    );
    check.rule(
        &["http.inflight_bytes_max", "http.decompressed_bytes_max"],
        http.inflight_bytes_max >= http.decompressed_bytes_max,
        |_| {
            let one = bytes(http.decompressed_bytes_max);
            format!("expected at least http.decompressed_bytes_max, which is {one}: one request must fit")
        },
    );
    check.rule(&["batch.bytes_max", "http.line_bytes_max"], batch.bytes_max >= http.line_bytes_max, |_| {
        format!("expected at least http.line_bytes_max, which is {}", bytes(http.line_bytes_max))
    });
    let (message, multiline) = (check.config.syslog.message_bytes_max, check.config.multiline.bytes_max);
    for (key, size) in [("syslog.message_bytes_max", message), ("multiline.bytes_max", multiline)] {
        check.rule(&[key, "http.line_bytes_max"], size <= http.line_bytes_max, |_| {
            format!("expected at most http.line_bytes_max, which is {}", bytes(http.line_bytes_max))
        });
    }
    // Retained segments are not available for new records.
    let segments = (journal.retain_segments as u64).saturating_add(2).max(4);
    let segment_bytes = journal.segment_bytes & !4095; // the journal rounds down
    let least = segments.saturating_mul(segment_bytes).saturating_add(journal.ballast_bytes);
    check.rule(
        &["journal.quota_bytes", "journal.ballast_bytes", "journal.segment_bytes", "journal.retain_segments"],
        journal.quota_bytes >= least,
        |_| {
            format!(
                "expected at least {} ({least} bytes): journal.ballast_bytes {} and {segments} segments of {}",
                show_number(least, Unit::Bytes),
                show_number(journal.ballast_bytes, Unit::Bytes),
                show_number(segment_bytes, Unit::Bytes),
            )
        },
    );
}

fn times(check: &mut Checker<'_>) {
    let (shutdown, batch, ack) = (check.config.shutdown, check.config.batch, check.config.http.ack_timeout_ms);
    let millis = |number: u64| show_number(number, Unit::Millis);
    check.rule(&["shutdown.linger_ms", "shutdown.deadline_ms"], shutdown.linger_ms < shutdown.deadline_ms, |_| {
        format!("expected less than shutdown.deadline_ms, which is {}", millis(shutdown.deadline_ms))
    });
    check.rule(&["batch.linger_ms", "shutdown.deadline_ms"], batch.linger_ms < shutdown.deadline_ms, |_| {
        format!("expected less than shutdown.deadline_ms, which is {}", millis(shutdown.deadline_ms))
    });
    check.rule(&["batch.linger_ms", "http.ack_timeout_ms"], batch.linger_ms < ack, |_| {
        format!(
            "expected less than http.ack_timeout_ms, which is {}: otherwise ack=committed always times out",
            millis(ack)
        )
    });
}

fn listeners(check: &mut Checker<'_>) {
    let (http, admin, auth) = (check.config.http.listen, check.config.admin.listen, check.config.auth.clone());
    check.rule(&["admin.listen", "http.listen"], !collide(http, admin), |_| {
        format!("expected a port other than that of http.listen, which is {http}")
    });
    let lists = ["auth.ingest_tokens", "auth.query_tokens", "auth.admin_tokens"];
    let any = !(auth.ingest_tokens.is_empty() && auth.query_tokens.is_empty() && auth.admin_tokens.is_empty());
    let token = auth.mode == AuthMode::Token;
    check.rule(&["auth.mode", lists[0], lists[1], lists[2]], any || !token, |_| {
        format!("expected a token in one of {}", lists.join(", "))
    });
    check.rule(&["auth.mode", lists[0], lists[1], lists[2]], token || !any, |_| {
        "expected \"token\", because tokens are set: with \"none\", no request needs one".into()
    });
    let data = match check.config.role {
        Role::Gateway => (&auth.query_tokens, "auth.query_tokens"),
        Role::All | Role::Processor => (&auth.ingest_tokens, "auth.ingest_tokens"),
    };
    for (listener, address, tokens, name) in
        [("http.listen", http, data.0, data.1), ("admin.listen", admin, &auth.admin_tokens, "auth.admin_tokens")]
    {
        let open = auth.mode == AuthMode::None && check.is_explicit("auth.mode");
        let certified = listener == "http.listen" && check.config.http.tls_client_ca_file.is_some();
        let safe = address.ip().to_canonical().is_loopback() || open || certified || !tokens.is_empty();
        check.rule(&[listener, "auth.mode", name], safe, |_| {
            format!("reachable from other machines: set {name}, or set auth.mode = \"none\" to allow everyone")
        });
    }
    let (http, gateway) = (check.config.http.clone(), check.config.gateway.clone());
    let keys = ["http.tls_cert_file", "http.tls_key_file", "http.tls_client_ca_file"];
    let whole = http.tls_cert_file.is_some() == http.tls_key_file.is_some()
        && (http.tls_client_ca_file.is_none() || http.tls_cert_file.is_some());
    check.rule(&keys, whole, |_| {
        "expected http.tls_cert_file and http.tls_key_file together; http.tls_client_ca_file requires both".into()
    });
    #[cfg(feature = "server")]
    if let Some(Err(error)) = http.tls().filter(|_| whole).map(|files| files.check()) {
        check.rule(&keys, false, |_| format!("cannot use the TLS files: {error}"));
    }
    let keys = ["gateway.tls_ca_file", "gateway.tls_cert_file", "gateway.tls_key_file"];
    let whole = gateway.tls_cert_file.is_some() == gateway.tls_key_file.is_some()
        && (gateway.tls_ca_file.is_some() || gateway.tls_cert_file.is_none());
    check.rule(&keys, whole, |_| {
        "expected gateway.tls_cert_file and gateway.tls_key_file together; they require gateway.tls_ca_file".into()
    });
    #[cfg(feature = "server")]
    if let Some(Err(error)) = gateway.tls().filter(|_| whole).map(|files| files.check()) {
        check.rule(&keys, false, |_| format!("cannot use the TLS files: {error}"));
    }
}

fn syslog(check: &mut Checker<'_>) {
    let config = check.config.clone();
    let open = config.auth.mode == AuthMode::None && check.is_explicit("auth.mode");
    let syslog = &config.syslog;
    let certified = syslog.client_ca_file.is_some();
    let listeners = [
        ("syslog.tcp_listen", syslog.tcp_listen, false),
        ("syslog.udp_listen", syslog.udp_listen, false),
        ("syslog.tls_listen", syslog.tls_listen, certified),
    ];
    for (key, address, certified) in listeners {
        let Some(address) = address else { continue };
        let safe = address.ip().to_canonical().is_loopback() || open || certified;
        check.rule(&[key, "auth.mode", "syslog.client_ca_file"], safe, |_| {
            "reachable from other machines, and syslog has no tokens: use syslog.tls_listen with syslog.client_ca_file, \
             or set auth.mode = \"none\" to allow everyone"
                .into()
        });
    }
    let tcp = [("http.listen", Some(config.http.listen)), ("admin.listen", Some(config.admin.listen))];
    let tcp = [tcp[0], tcp[1], ("syslog.tcp_listen", syslog.tcp_listen), ("syslog.tls_listen", syslog.tls_listen)];
    for (index, (key, address)) in tcp.iter().enumerate().skip(2) {
        for (other, taken) in &tcp[..index] {
            let apart = !address.zip(*taken).is_some_and(|(address, taken)| collide(address, taken));
            check.rule(&[key, other], apart, |_| format!("expected a port other than that of {other}"));
        }
    }
    if syslog.tls_listen.is_none() {
        return;
    }
    let keys = ["syslog.tls_listen", "syslog.tls_cert_file", "syslog.tls_key_file"];
    let whole = syslog.tls_cert_file.is_some() && syslog.tls_key_file.is_some();
    check.rule(&keys, whole, |_| "requires syslog.tls_cert_file and syslog.tls_key_file".into());
    #[cfg(feature = "server")]
    if let Some(Err(error)) = syslog.tls().map(|files| files.check()) {
        check.rule(&keys, false, |_| format!("cannot use the TLS files: {error}"));
    }
}

/// Whether two listeners would bind the same port. Port 0 is any free port.
fn collide(a: SocketAddr, b: SocketAddr) -> bool {
    a.port() != 0 && a.port() == b.port() && (a.ip() == b.ip() || a.ip().is_unspecified() || b.ip().is_unspecified())
}

fn paths(check: &mut Checker<'_>) {
    let data_dir = check.config.data_dir.clone();
    check.rule(&["data_dir"], !data_dir.exists() || data_dir.is_dir(), |_| {
        "expected a directory, but this is a file".into()
    });
    if let DatabaseUrl::Sqlite(path) = check.config.database.url.clone() {
        let parent = match path.parent() {
            Some(parent) if parent != Path::new("") => parent.to_owned(),
            _ => ".".into(),
        };
        check.rule(&["database.url", "data_dir"], parent.is_dir() || parent.starts_with(&data_dir), |_| {
            format!(
                "the directory {} does not exist; only data_dir and directories below it are created",
                parent.display()
            )
        });
        check.rule(&["database.url"], !path.is_dir(), |_| "expected a file, but this is a directory".into());
    }
    if let Some(path) = check.config.database.ca_file.clone() {
        let read = std::fs::read(&path);
        let what = match &read {
            Err(error) => format!("cannot read the file: {error}"),
            Ok(_) => "expected a PEM certificate (-----BEGIN CERTIFICATE-----), but the file has none".into(),
        };
        let pem = read.is_ok_and(|bytes| String::from_utf8_lossy(&bytes).contains("-----BEGIN CERTIFICATE-----"));
        check.rule(&["database.ca_file"], pem, |_| what);
    }
    #[cfg(feature = "postgres")]
    if check.config.database.ca_file.is_none() {
        let database = &check.config.database;
        let urls = [("database.url", Some(database.url.clone())), ("database.read_url", database.read_url.clone())];
        for (key, url) in urls {
            if let Some(DatabaseUrl::Postgres(url)) = url
                && let Some(why) = logweir_store::postgres::requires_ca_file(&url)
            {
                check.rule(&[key, "database.ca_file"], false, |_| why.to_owned());
            }
        }
    }
}
