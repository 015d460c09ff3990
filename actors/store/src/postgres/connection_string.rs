//! Connection strings as libpq's users write them: a URL, or `key=value` pairs. Pure: parses, and reads no file.
//!
//! - The client library's own parser is not used: it lacks most of libpq's TLS parameters, takes raw characters for
//!   percent-encoded ones, and names neither what is accepted nor what to do.
//! - A parameter of libpq that has no counterpart here is refused if ignoring it would change what is protected or
//!   stored, and ignored if it would not (`application_name`: connections have names of their own).
//! - libpq's environment variables and its files in the home directory are not read: what a server connects to is in
//!   its configuration.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use tokio_postgres::Config;
use tokio_postgres::config::{ChannelBinding, SslNegotiation};

/// `sslmode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum SslMode {
    Disable,
    Allow,
    Prefer,
    Require,
    VerifyCa,
    VerifyFull,
}

/// `sslrootcert`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum RootCert {
    /// The CAs that the system trusts.
    System,
    File(PathBuf),
}

/// `target_session_attrs`. A primary is a server that allows writes, a standby one that does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Session {
    Any,
    ReadWrite,
    ReadOnly,
    PreferReadOnly,
}

/// One server to try.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Server {
    /// A name, an address, or the directory of a Unix socket.
    pub(super) host: String,
    /// `hostaddr`: the address to connect to; the certificate must still be for the host.
    pub(super) address: Option<IpAddr>,
    pub(super) port: u16,
}

impl Server {
    pub(super) fn is_socket(&self) -> bool {
        self.address.is_none() && self.host.starts_with('/')
    }
}

/// What a connection string says.
#[derive(Clone, Debug)]
pub(super) struct ConnectionString {
    /// Never empty.
    pub(super) servers: Vec<Server>,
    /// Everything that the client library knows, without hosts and `sslmode`.
    pub(super) config: Config,
    pub(super) ssl_mode: SslMode,
    pub(super) root_cert: Option<RootCert>,
    /// Client certificate chain and private key.
    pub(super) identity: Option<(PathBuf, PathBuf)>,
    pub(super) passfile: Option<PathBuf>,
    pub(super) session: Session,
    pub(super) in_random_order: bool,
}

const SSL_MODES: [(&str, SslMode); 6] = [
    ("disable", SslMode::Disable),
    ("allow", SslMode::Allow),
    ("prefer", SslMode::Prefer),
    ("require", SslMode::Require),
    ("verify-ca", SslMode::VerifyCa),
    ("verify-full", SslMode::VerifyFull),
];
const SESSIONS: [(&str, Session); 6] = [
    ("any", Session::Any),
    ("read-write", Session::ReadWrite),
    ("primary", Session::ReadWrite),
    ("read-only", Session::ReadOnly),
    ("standby", Session::ReadOnly),
    ("prefer-standby", Session::PreferReadOnly),
];
const CHANNEL_BINDINGS: [(&str, ChannelBinding); 3] =
    [("disable", ChannelBinding::Disable), ("prefer", ChannelBinding::Prefer), ("require", ChannelBinding::Require)];
const NEGOTIATIONS: [(&str, SslNegotiation); 2] =
    [("postgres", SslNegotiation::Postgres), ("direct", SslNegotiation::Direct)];

/// Parameters that are accepted and have an effect.
const KNOWN: &str = "host, hostaddr, port, dbname, user, password, passfile, options, sslmode, sslrootcert, sslcert, \
     sslkey, sslnegotiation, channel_binding, target_session_attrs, load_balance_hosts, connect_timeout, keepalives, \
     keepalives_idle, keepalives_interval, keepalives_count and tcp_user_timeout";

/// Parameters of libpq that are refused, each with what to do.
const UNSUPPORTED: [(&str, &str); 17] = [
    ("service", "service files are not read: write the service's parameters here"),
    ("servicefile", "service files are not read: write the service's parameters here"),
    ("sslcrl", "revocation lists are not read: remove it"),
    ("sslcrldir", "revocation lists are not read: remove it"),
    ("sslpassword", "encrypted keys are not read: decrypt the file with `openssl pkey` and remove it"),
    ("sslkeylogfile", "remove it"),
    ("requirepeer", "remove it"),
    ("require_auth", "use channel_binding=require or a client certificate, and remove it"),
    ("replication", "remove it"),
    ("krbsrvname", "GSSAPI is not supported: use a password or a client certificate, and remove it"),
    ("gsslib", "GSSAPI is not supported: use a password or a client certificate, and remove it"),
    ("gssdelegation", "GSSAPI is not supported: use a password or a client certificate, and remove it"),
    ("scram_client_key", "use a password"),
    ("scram_server_key", "use a password"),
    ("oauth_issuer", "OAuth is not supported: use a password or a client certificate, and remove it"),
    ("oauth_client_id", "OAuth is not supported: use a password or a client certificate, and remove it"),
    ("oauth_client_secret", "OAuth is not supported: use a password or a client certificate, and remove it"),
];

/// Parameters of libpq without a counterpart, and the values that ask for what happens anyway.
const FIXED: [(&str, &[&str]); 9] = [
    ("client_encoding", &["auto", "UTF8", "utf8", "UTF-8", "utf-8"]),
    ("gssencmode", &["disable", "prefer"]),
    ("sslcompression", &["0"]),
    ("sslcertmode", &["allow"]),
    ("sslsni", &["1"]),
    ("ssl_min_protocol_version", &["TLSv1", "TLSv1.1", "TLSv1.2"]),
    ("ssl_max_protocol_version", &["TLSv1.3"]),
    ("min_protocol_version", &["3.0"]),
    ("max_protocol_version", &["3.0", "3.2", "latest"]),
];

/// Whether `text` is meant to be a connection string: a URL, or at least one `key=value` pair.
pub(super) fn is_connection_string(text: &str) -> bool {
    let key = text.split('=').next().unwrap_or_default().trim();
    without_scheme(text).is_some()
        || text.contains('=') && !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')
}

fn without_scheme(text: &str) -> Option<&str> {
    text.strip_prefix("postgres://").or_else(|| text.strip_prefix("postgresql://"))
}

impl ConnectionString {
    /// Parses `text`.
    ///
    /// # Errors
    /// What is wrong, what is accepted and what to do; never a password.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let parameters = match without_scheme(text) {
            Some(rest) => url_parameters(rest)?,
            None => pair_parameters(text)?,
        };
        Self::of(&parameters)
    }

    fn of(parameters: &Parameters) -> Result<Self, String> {
        let mut config = Config::new();
        // So that a connection whose server or network is gone ends within half a minute.
        config
            .keepalives_idle(Duration::from_secs(15))
            .keepalives_interval(Duration::from_secs(5))
            .keepalives_retries(3)
            .tcp_user_timeout(Duration::from_secs(15));
        let mut parsed = Self {
            servers: servers(parameters)?,
            config,
            ssl_mode: SslMode::Prefer,
            root_cert: None,
            identity: None,
            passfile: None,
            session: Session::Any,
            in_random_order: false,
        };
        let (mut cert, mut key) = (None, None);
        for (name, value) in parameters {
            let (name, value) = (name.as_str(), value.as_str());
            // As in libpq, an empty value is the default.
            if value.is_empty() {
                continue;
            }
            let config = &mut parsed.config;
            match name {
                "host" | "hostaddr" | "port" | "application_name" | "fallback_application_name" => {}
                "dbname" => _ = config.dbname(value),
                "user" => _ = config.user(value),
                "password" => _ = config.password(value),
                "options" => _ = config.options(value),
                "passfile" => parsed.passfile = Some(value.into()),
                "sslmode" => parsed.ssl_mode = one_of(name, value, &SSL_MODES)?,
                "sslrootcert" if value == "system" => parsed.root_cert = Some(RootCert::System),
                "sslrootcert" => parsed.root_cert = Some(RootCert::File(value.into())),
                "sslcert" => cert = Some(PathBuf::from(value)),
                "sslkey" => key = Some(PathBuf::from(value)),
                "sslnegotiation" => _ = config.ssl_negotiation(one_of(name, value, &NEGOTIATIONS)?),
                "channel_binding" => _ = config.channel_binding(one_of(name, value, &CHANNEL_BINDINGS)?),
                "target_session_attrs" => parsed.session = one_of(name, value, &SESSIONS)?,
                "load_balance_hosts" => {
                    parsed.in_random_order = one_of(name, value, &[("disable", false), ("random", true)])?;
                }
                "connect_timeout" => each_positive(name, value, |number| {
                    config.connect_timeout(Duration::from_secs(number));
                })?,
                "keepalives" => _ = config.keepalives(integer(name, value)? != 0),
                "keepalives_idle" => each_positive(name, value, |number| {
                    config.keepalives_idle(Duration::from_secs(number));
                })?,
                "keepalives_interval" => each_positive(name, value, |number| {
                    config.keepalives_interval(Duration::from_secs(number));
                })?,
                "keepalives_count" => each_positive(name, value, |number| {
                    config.keepalives_retries(u32::try_from(number).unwrap_or(u32::MAX));
                })?,
                "tcp_user_timeout" => each_positive(name, value, |number| {
                    config.tcp_user_timeout(Duration::from_millis(number));
                })?,
                other => refuse_unless_without_effect(other, value)?,
            }
        }
        parsed.identity = match (cert, key) {
            (Some(cert), Some(key)) => Some((cert, key)),
            (None, None) => None,
            _ => return Err("sslcert and sslkey must be given together".to_owned()),
        };
        parsed.check(parameters.contains_key("sslmode"))
    }

    /// Checks what concerns several parameters.
    fn check(mut self, has_mode: bool) -> Result<Self, String> {
        if self.root_cert == Some(RootCert::System) {
            if !has_mode {
                self.ssl_mode = SslMode::VerifyFull;
            } else if self.ssl_mode != SslMode::VerifyFull {
                return Err("sslrootcert=system requires sslmode=verify-full: anybody can get a certificate of a \
                            public CA for a name of their own"
                    .to_owned());
            }
        }
        if self.config.get_ssl_negotiation() == SslNegotiation::Direct && self.ssl_mode < SslMode::Require {
            return Err("sslnegotiation=direct requires sslmode=require, verify-ca or verify-full".to_owned());
        }
        Ok(self)
    }
}

type Parameters = BTreeMap<String, String>;

fn one_of<T: Copy>(name: &str, value: &str, choices: &[(&str, T)]) -> Result<T, String> {
    let found = choices.iter().find(|(word, _)| *word == value).map(|(_, meaning)| *meaning);
    found.ok_or_else(|| {
        let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
        format!("invalid {name}={value}: expected one of {}", words.join(", "))
    })
}

fn integer(name: &str, value: &str) -> Result<i64, String> {
    value.trim().parse().map_err(|_| format!("invalid {name}={value}: expected an integer"))
}

/// Passes a positive number to `set`; any other one means the default.
fn each_positive(name: &str, value: &str, set: impl FnOnce(u64)) -> Result<(), String> {
    if let Ok(number @ 1..) = u64::try_from(integer(name, value)?) {
        set(number);
    }
    Ok(())
}

fn refuse_unless_without_effect(name: &str, value: &str) -> Result<(), String> {
    if let Some((_, values)) = FIXED.iter().find(|(fixed, _)| *fixed == name) {
        return match values.contains(&value) {
            true => Ok(()),
            false => Err(format!("{name}={value} is not supported: expected {}, or remove it", values.join(" or "))),
        };
    }
    match UNSUPPORTED.iter().find(|(unsupported, _)| *unsupported == name) {
        Some((_, what_to_do)) => Err(format!("{name} is not supported: {what_to_do}")),
        None => Err(format!("unknown parameter {}: expected {KNOWN}", name_only(name))),
    }
}

/// Combines the lists of hosts, addresses and ports.
fn servers(parameters: &Parameters) -> Result<Vec<Server>, String> {
    let list = |name: &str| -> Vec<&str> {
        parameters.get(name).filter(|list| !list.is_empty()).map(|list| list.split(',').collect()).unwrap_or_default()
    };
    let (hosts, addresses, ports) = (list("host"), list("hostaddr"), list("port"));
    let number = hosts.len().max(addresses.len());
    if number == 0 {
        return Err("the host is missing".to_owned());
    }
    if !hosts.is_empty() && !addresses.is_empty() && hosts.len() != addresses.len() {
        return Err(format!("{} hosts, but {} addresses in hostaddr", hosts.len(), addresses.len()));
    }
    if ports.len() > 1 && ports.len() != number {
        return Err(format!("{number} hosts, but {} ports: expected one port for all, or one for each", ports.len()));
    }
    let server = |at: usize| {
        let address = match addresses.get(at).map(|address| address.trim()) {
            None | Some("") => None,
            Some(address) => {
                let wrong = |_| format!("invalid hostaddr={address}: expected an IP address");
                Some(address.parse::<IpAddr>().map_err(wrong)?)
            }
        };
        let host = hosts.get(at).map(|host| host.trim()).filter(|host| !host.is_empty()).map(str::to_owned);
        let host = host.or_else(|| address.map(|address| address.to_string()));
        let host = host.ok_or_else(|| format!("host {} of {number} is missing", at + 1))?;
        let port = match ports.get(at).or_else(|| ports.first()).map(|port| port.trim()) {
            None | Some("") => 5432,
            Some(port) => match port.parse() {
                Ok(port @ 1..) => port,
                // Not shown: it can be the part of a password in front of a raw `?`.
                _ => {
                    return Err(
                        "invalid port: expected a number from 1 to 65535 (write ? in a password as %3F)".to_owned()
                    );
                }
            },
        };
        Ok(Server { host, address, port })
    };
    (0..number).map(server).collect()
}

/// Splits what follows `postgres://`.
fn url_parameters(rest: &str) -> Result<Parameters, String> {
    let mut parameters = Parameters::new();
    let (place, query) = rest.split_once('?').map_or((rest, None), |(place, query)| (place, Some(query)));
    // A raw `/` in a password is clear; a raw `@` is not: the rest of the password would be taken for a host.
    let (credentials, place) = place.split_once('@').map_or((None, place), |(before, place)| (Some(before), place));
    let (hosts, dbname) = place.split_once('/').unwrap_or((place, ""));
    if hosts.contains('@') {
        return Err("write @ in a user or password as %40".to_owned());
    }
    if let Some(credentials) = credentials {
        let (user, password) =
            credentials.split_once(':').map_or((credentials, None), |(user, password)| (user, Some(password)));
        parameters.insert("user".to_owned(), decoded("the user", user)?);
        if let Some(password) = password {
            parameters.insert("password".to_owned(), decoded("the password", password)?);
        }
    }
    if !hosts.is_empty() {
        let (mut names, mut ports) = (Vec::new(), Vec::new());
        for one in hosts.split(',') {
            let (name, port) = host_and_port(one)?;
            names.push(decoded("the host", name)?);
            ports.push(decoded("the port", port)?);
        }
        parameters.insert("host".to_owned(), names.join(","));
        parameters.insert("port".to_owned(), ports.join(","));
    }
    if !dbname.is_empty() {
        parameters.insert("dbname".to_owned(), decoded("the database", dbname)?);
    }
    let Some(query) = query else { return Ok(parameters) };
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').ok_or_else(|| {
            format!("parameter {}: expected NAME=VALUE (write ? in a user or password as %3F)", name_only(pair))
        })?;
        let name = decoded("a parameter's name", name)?;
        let value = decoded(&name, value)?;
        // What JDBC's URLs say.
        let (name, value) = match (name.as_str(), value.as_str()) {
            ("ssl", "true") => ("sslmode".to_owned(), "require".to_owned()),
            _ => (name, value),
        };
        parameters.insert(name, value);
    }
    Ok(parameters)
}

/// What may be printed of a parameter without `=`: a name, but nothing that could be the rest of a password.
fn name_only(text: &str) -> &str {
    if text.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_') { text } else { "(unreadable)" }
}

/// Splits `HOST`, `HOST:PORT`, `[IPV6]` or `[IPV6]:PORT`; the port can be empty.
fn host_and_port(text: &str) -> Result<(&str, &str), String> {
    let Some(rest) = text.strip_prefix('[') else {
        return match text.split_once(':') {
            Some((_, port)) if port.contains(':') => {
                Err("write an IPv6 address in brackets, such as [::1]:5432".to_owned())
            }
            Some(both) => Ok(both),
            None => Ok((text, "")),
        };
    };
    match rest.split_once(']') {
        Some((address, "")) => Ok((address, "")),
        Some((address, port)) if port.starts_with(':') => Ok((address, &port[1..])),
        _ => Err("an IPv6 address must end with ], optionally followed by :PORT".to_owned()),
    }
}

fn decoded(what: &str, text: &str) -> Result<String, String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        if first != b'%' {
            bytes.push(first);
            rest = after;
            continue;
        }
        let byte = after.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        let byte = byte.filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()));
        match byte.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(0) => return Err(format!("%00 in {what} is not supported")),
            Some(byte) => bytes.push(byte),
            None => return Err(format!("invalid percent-encoding in {what}: write % as %25")),
        }
        rest = &after[2..];
    }
    String::from_utf8(bytes).map_err(|_| format!("{what}: expected UTF-8"))
}

/// Splits `key=value` pairs; values with spaces are quoted with `'`, and `\` escapes one character.
fn pair_parameters(text: &str) -> Result<Parameters, String> {
    let mut parameters = Parameters::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let end = rest.find(|c: char| c == '=' || c.is_whitespace()).unwrap_or(rest.len());
        let name = &rest[..end];
        let Some(value) = rest[end..].trim_start().strip_prefix('=') else {
            return Err(format!("parameter {}: expected NAME=VALUE", name_only(name)));
        };
        let (value, after) = pair_value(name, value.trim_start())?;
        parameters.insert(name.to_owned(), value);
        rest = after.trim_start();
    }
    Ok(parameters)
}

/// Reads one value, and returns it with what follows.
fn pair_value<'a>(name: &str, text: &'a str) -> Result<(String, &'a str), String> {
    let quoted = text.starts_with('\'');
    let mut value = String::new();
    let mut chars = text.char_indices().skip(usize::from(quoted));
    while let Some((at, next)) = chars.next() {
        match next {
            '\\' => value.extend(chars.next().map(|(_, escaped)| escaped)),
            '\'' if quoted => return Ok((value, &text[at + 1..])),
            next if !quoted && next.is_whitespace() => return Ok((value, &text[at..])),
            next => value.push(next),
        }
    }
    if quoted { Err(format!("parameter {name}: the closing quote ' is missing")) } else { Ok((value, "")) }
}

/// Looks up the password for a server in the text of a password file: lines `host:port:database:user:password`, where
/// `*` matches everything and `\` escapes one character.
pub(super) fn password_in(passfile: &str, server: &Server, dbname: &str, user: &str) -> Option<String> {
    let host = if server.is_socket() { "localhost" } else { &server.host };
    let wanted = [host, &server.port.to_string(), dbname, user];
    let fields = |line: &str| {
        let (mut fields, mut field, mut chars) = (Vec::new(), String::new(), line.chars());
        while let Some(next) = chars.next() {
            match next {
                '\\' => field.extend(chars.next()),
                ':' if fields.len() < 4 => fields.push(std::mem::take(&mut field)),
                next => field.push(next),
            }
        }
        fields.push(field);
        fields
    };
    passfile.lines().filter(|line| !line.starts_with('#')).map(fields).find_map(|mut fields| {
        let matches =
            fields.len() == 5 && fields.iter().zip(wanted).all(|(field, wanted)| field == "*" || field == wanted);
        if matches { fields.pop() } else { None }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> ConnectionString {
        ConnectionString::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    fn server(host: &str, port: u16) -> Server {
        Server { host: host.to_owned(), address: None, port }
    }

    #[test]
    fn a_url_and_pairs_say_the_same() {
        for text in [
            "postgres://al%20ice:p%40s%25s%2F@db.example:5433/lo%2Fgs?sslmode=verify-full&sslrootcert=/etc/ca.pem",
            "postgresql://db.example:5433/lo%2Fgs?user=al%20ice&password=p%40s%25s/&sslmode=verify-full&sslrootcert=%2Fetc/ca.pem",
            r"host=db.example port = 5433 dbname=lo/gs user='al ice' password=p@s%s/ sslmode=verify-full sslrootcert=/etc/ca.pem",
            r"  sslrootcert='/etc/ca.pem' sslmode=verify-full host='db.example' port=5433 user=al\ ice dbname='lo/gs' password='p@s%s\/'",
        ] {
            let parsed = parse(text);
            assert_eq!(parsed.servers, [server("db.example", 5433)], "{text}");
            assert_eq!(parsed.config.get_user(), Some("al ice"), "{text}");
            assert_eq!(parsed.config.get_password(), Some(&b"p@s%s/"[..]), "{text}");
            assert_eq!(parsed.config.get_dbname(), Some("lo/gs"), "{text}");
            assert_eq!(parsed.ssl_mode, SslMode::VerifyFull, "{text}");
            assert_eq!(parsed.root_cert, Some(RootCert::File("/etc/ca.pem".into())), "{text}");
            assert!(is_connection_string(text.trim()), "{text}");
        }
        for text in ["sqlite:a=b", "mysql://h/db", "", "=", "Host=h"] {
            assert!(!is_connection_string(text), "{text}");
        }
    }

    #[test]
    fn hosts_can_be_several_names_addresses_and_sockets() {
        for (text, expected) in [
            ("postgres://a,b:1,[::1],[::2]:3/db", vec![("a", 5432), ("b", 1), ("::1", 5432), ("::2", 3)]),
            ("postgres://%2Frun%2Fpostgresql/db", vec![("/run/postgresql", 5432)]),
            ("postgres:///db?host=/run/postgresql&port=5", vec![("/run/postgresql", 5)]),
            ("postgres://ignored/db?host=h", vec![("h", 5432)]),
            ("host=a,b port=7", vec![("a", 7), ("b", 7)]),
            ("host=a,/run/x port=7,", vec![("a", 7), ("/run/x", 5432)]),
        ] {
            let expected: Vec<Server> = expected.into_iter().map(|(host, port)| server(host, port)).collect();
            assert_eq!(parse(text).servers, expected, "{text}");
        }
        let [one] = &parse("hostaddr=127.0.0.1 dbname=d").servers[..] else { panic!("one server") };
        assert_eq!((one.host.as_str(), one.address), ("127.0.0.1", Some([127, 0, 0, 1].into())));
        let [one] = &parse("host=db hostaddr=::1").servers[..] else { panic!("one server") };
        assert_eq!((one.host.as_str(), one.address.unwrap().is_ipv6()), ("db", true));
    }

    #[test]
    fn a_refusal_names_the_parameter_what_is_accepted_and_no_secret() {
        for (text, words) in [
            (
                "postgres://u:secret@h/d?sslmode=on",
                &["sslmode=on", "disable, allow, prefer, require, verify-ca, verify-full"][..],
            ),
            ("postgres://u:secret@h/d?sslmod=disable", &["unknown parameter sslmod", "sslmode"]),
            ("postgres://u:secret@h/d?service=x", &["service", "write the service's parameters here"]),
            ("postgres://u:secret@h/d?gssencmode=require", &["gssencmode=require", "disable or prefer"]),
            ("postgres://u:secret@h/d?sslcrl=x", &["sslcrl", "remove it"]),
            ("postgres://u:secret@h/d?sslmode", &["parameter sslmode: expected NAME=VALUE"]),
            ("postgres://u:se@cret@h/d", &["%40"]),
            ("postgres://u:secret?x@h/d", &["%3F"]),
            ("postgres://u:secret?x=y@h/d", &["invalid port", "%3F"]),
            ("postgres://u:secret%@h/d", &["the password", "%25"]),
            ("postgres://u:secret%2@h/d", &["the password", "%25"]),
            ("postgres://u:secret%00@h/d", &["%00"]),
            ("postgres://u:secret@::1/d", &["[::1]"]),
            ("postgres://u:secret@h:0/d", &["port", "1 to 65535"]),
            ("postgres://u:secret@h:65536/d", &["port", "1 to 65535"]),
            ("postgres://u:secret@/d", &["the host is missing"]),
            ("postgres://u:secret@a,b/d?hostaddr=1.2.3.4", &["2 hosts, but 1 addresses"]),
            ("postgres://u:secret@h/d?sslcert=x", &["sslcert and sslkey"]),
            ("postgres://u:secret@h/d?sslrootcert=system&sslmode=require", &["sslrootcert=system", "verify-full"]),
            ("postgres://u:secret@h/d?sslnegotiation=direct", &["sslnegotiation=direct", "sslmode=require"]),
            ("host=h password='secret", &["password", "quote"]),
            ("host=h secret", &["parameter secret: expected NAME=VALUE"]),
            ("host=a,b port=1,2,3", &["2 hosts, but 3 ports"]),
        ] {
            let error = ConnectionString::parse(text).unwrap_err();
            for word in words {
                assert!(error.contains(word), "{text}: {error}");
            }
            let shown = text.contains("host=h secret");
            assert!(shown || !error.contains("secret") && !error.contains("cret@"), "{text}: {error}");
        }
    }

    #[test]
    fn what_other_programs_write_is_accepted() {
        for text in [
            "postgres://h/d?application_name=x&connect_timeout=10&client_encoding=utf8&gssencmode=disable",
            "postgres://h/d?target_session_attrs=prefer-standby&load_balance_hosts=random",
            "postgres://h/d?channel_binding=require&sslmode=require&sslnegotiation=direct",
            "postgres://h/d?keepalives=1&keepalives_idle=5&keepalives_interval=&keepalives_count=2&tcp_user_timeout=9000",
            "postgres://h/d?options=-c%20search_path%3Dlogs",
            "postgres://h/d?options=-c search_path=logs",
            "postgres://u:pass/word@h/d?user=u@tenant",
        ] {
            parse(text);
        }
        assert_eq!(parse("postgres://h/d?ssl=true").ssl_mode, SslMode::Require);
        assert_eq!(parse("postgres://h/d?sslrootcert=system").ssl_mode, SslMode::VerifyFull);
        assert_eq!(parse("postgres://h/d").ssl_mode, SslMode::Prefer);
        let parsed = parse("postgres://h/d?tcp_user_timeout=9000&connect_timeout=3");
        assert_eq!(parsed.config.get_tcp_user_timeout(), Some(&Duration::from_secs(9)));
        assert_eq!(parsed.config.get_connect_timeout(), Some(&Duration::from_secs(3)));
    }

    #[test]
    fn a_password_file_is_searched_from_the_top() {
        let file = "# comment\nother:*:*:*:no\nh:5432:d:u:pa\\:ss\\\\\nlocalhost:*:*:u:sock:et\n*:*:*:*:last";
        for (host, user, password) in [("h", "u", "pa:ss\\"), ("/run/x", "u", "sock:et"), ("h", "v", "last")] {
            assert_eq!(password_in(file, &server(host, 5432), "d", user).as_deref(), Some(password), "{host} {user}");
        }
        assert_eq!(password_in("h:1:d:u:p", &server("h", 2), "d", "u"), None);
    }
}
