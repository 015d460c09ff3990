//! Parsing and printing of single values. Pure; an error says what is accepted, and never repeats a secret.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use jiff::tz::TimeZone;
use logweir_store::DatabaseUrl;

use super::keys::{Key, Kind, Place};
use super::log_filter;
use super::quantity::{Unit, quantity, show_number};
use super::raw::Raw;
use super::settings::{CacheUrl, Config, HostPort};
use super::token::Token;

/// Minimum length of a token: shorter ones can be guessed.
pub const TOKEN_CHARS_MIN: usize = 16;

/// Parses `raw` into the field of `config` that belongs to `key`.
///
/// # Errors
/// What is accepted.
pub fn assign(key: &Key, raw: &Raw, config: &mut Config) -> Result<(), String> {
    let expected = || format!("expected {}", allowed(&key.kind));
    match key.kind {
        Kind::Number { place, unit, min, max } => {
            let number = number(raw, unit).filter(|number| (min..=max).contains(number)).ok_or_else(|| {
                let fraction = matches!(raw, Raw::Fraction(_)) || text(raw).is_some_and(|text| text.contains('.'));
                format!("{}{}", expected(), if fraction { "; fractions are not supported" } else { "" })
            })?;
            put(place, number, config);
        }
        Kind::Bool(at) => {
            *at(config) = match raw {
                Raw::Bool(value) => *value,
                Raw::Text(text) if text == "true" => true,
                Raw::Text(text) if text == "false" => false,
                _ => return Err(expected()),
            };
        }
        Kind::Choice { words, set, .. } => {
            let word = text(raw).and_then(|text| words.iter().position(|word| *word == text));
            set(config, word.ok_or_else(expected)?);
        }
        Kind::Address(at) => *at(config) = address(raw)?,
        Kind::OptionalAddress(at) => {
            *at(config) = if text(raw) == Some("") { None } else { Some(address(raw)?) };
        }
        Kind::Path(at) => *at(config) = path(raw)?.ok_or("expected a path")?,
        Kind::OptionalPath(at) => *at(config) = path(raw)?,
        Kind::Tokens(at) => *at(config) = tokens(raw)?,
        Kind::Webhook(at) => {
            *at(config) = match text(raw) {
                Some("") => None,
                Some(url) if is_http_url(url) => Some(Token(url.to_owned())),
                _ => return Err(expected()),
            };
        }
        Kind::Database(at) => *at(config) = database(text(raw).ok_or("expected a string")?, false)?,
        Kind::OptionalDatabase(at) => {
            *at(config) = match text(raw).ok_or("expected a string")? {
                "" => None,
                url => match database(url, true)? {
                    DatabaseUrl::Postgres(url) => Some(DatabaseUrl::Postgres(url)),
                    DatabaseUrl::Sqlite(_) => return Err(format!("{}: SQLite has no replicas", expected())),
                    DatabaseUrl::Blackhole => return Err(format!("{}: a blackhole stores nothing", expected())),
                    _ => return Err(expected()),
                },
            };
        }
        Kind::Cache(at) => *at(config) = cache(text(raw).ok_or("expected a string")?)?,
        Kind::Globs(at) => *at(config) = globs(raw)?,
        Kind::Hosts(at) => *at(config) = hosts(raw)?,
        Kind::Pattern(at) => {
            let text = text(raw).ok_or("expected a string")?;
            if let Err(error) = regex::bytes::Regex::new(text) {
                return Err(format!("{}: {error}", expected()));
            }
            text.clone_into(at(config));
        }
        Kind::Name(at) => {
            let text = text(raw).filter(|text| text.len() <= 255 && !text.contains(char::is_control));
            text.ok_or_else(expected)?.clone_into(at(config));
        }
        Kind::Filter(at) => {
            let text = text(raw).ok_or_else(expected)?;
            log_filter::check(text)?;
            text.clone_into(at(config));
        }
        Kind::Zone(at) => {
            let name = text(raw).ok_or_else(expected)?;
            *at(config) = TimeZone::get(name).map_err(|_| expected())?;
        }
    }
    Ok(())
}

/// The current value of `key` in a form that [`assign`] parses; `None` where the type of the field already guarantees a
/// valid value.
#[must_use]
pub(super) fn current(key: &Key, config: &mut Config) -> Option<Raw> {
    let text = |text: &str| Some(Raw::Text(text.to_owned()));
    match key.kind {
        Kind::Number { place: Place::OptionalU16(at), .. } => at(config).map(|number| Raw::Integer(i64::from(number))),
        Kind::Number { place, .. } => Some(Raw::Text(get(place, config).to_string())),
        Kind::Path(at) => at(config).to_str().and_then(text),
        Kind::OptionalPath(at) => at(config).as_ref()?.to_str().and_then(text),
        Kind::Tokens(at) => Some(Raw::List(at(config).iter().map(|token| token.0.clone()).collect())),
        Kind::Webhook(at) => at(config).as_ref().and_then(|url| text(&url.0)),
        Kind::Database(at) => match at(config) {
            DatabaseUrl::Postgres(url) => text(url),
            // Only what the typed path cannot exclude: its characters are not parsed.
            DatabaseUrl::Sqlite(path) => path
                .to_str()
                .filter(|path| matches!(*path, "" | ":memory:"))
                .map(|path| Raw::Text(format!("sqlite:{path}"))),
            _ => None,
        },
        Kind::OptionalDatabase(at) => match at(config) {
            Some(DatabaseUrl::Postgres(url)) => text(url),
            Some(DatabaseUrl::Sqlite(_)) => text("sqlite:x"),
            Some(DatabaseUrl::Blackhole) => text("blackhole:"),
            _ => None,
        },
        Kind::Cache(at) => match at(config) {
            CacheUrl::Memory => None,
            CacheUrl::Redis(url) => text(url),
        },
        Kind::Globs(at) => Some(Raw::List(at(config).clone())),
        Kind::Hosts(at) => Some(Raw::List(at(config).iter().map(ToString::to_string).collect())),
        Kind::Filter(at) | Kind::Pattern(at) | Kind::Name(at) => text(at(config)),
        Kind::Bool(_) | Kind::Choice { .. } | Kind::Address(_) | Kind::OptionalAddress(_) | Kind::Zone(_) => None,
    }
}

/// Describes the accepted values of a kind.
#[must_use]
pub fn allowed(kind: &Kind) -> String {
    match kind {
        Kind::Number { unit, min, max, .. } => {
            let what = match unit {
                Unit::Count => "a whole number",
                Unit::Bytes => "a size (bytes, KiB, MiB, GiB)",
                Unit::Millis => "a time (ms, s, m, h, d)",
                Unit::Seconds => "a time (s, m, h, d)",
                Unit::Days => "a number of days",
            };
            format!("{what} from {} to {}", show_number(*min, *unit), show_number(*max, *unit))
        }
        Kind::Bool(_) => "true or false".into(),
        Kind::Choice { words, .. } => match words {
            [first, last] => format!("{first} or {last}"),
            _ => format!("one of {}", words.join(", ")),
        },
        Kind::Address(_) => ADDRESS.into(),
        Kind::OptionalAddress(_) => "IP:PORT, or empty".into(),
        Kind::Path(_) => "a path".into(),
        Kind::OptionalPath(_) => "a path, or empty".into(),
        Kind::Tokens(_) => {
            format!("a list of tokens, each of at least {TOKEN_CHARS_MIN} visible ASCII characters without commas")
        }
        Kind::Webhook(_) if cfg!(feature = "webhooks") => "http://… or https://…, or empty".into(),
        Kind::Webhook(_) => WEBHOOK.into(),
        Kind::Database(_) => DATABASE.into(),
        Kind::OptionalDatabase(_) => "postgres://USER:PASSWORD@HOST/DATABASE, or empty".into(),
        Kind::Cache(_) => CACHE.into(),
        Kind::Globs(_) => "a list of paths with `*`, `**`, `?` and `[…]`".into(),
        Kind::Hosts(_) => format!("a list of HOST or HOST:PORT, with the default port {}", HostPort::PORT),
        Kind::Pattern(_) => "a regular expression, or empty".into(),
        Kind::Name(_) => "a text of at most 255 bytes without control characters, or empty".into(),
        Kind::Filter(_) => log_filter::ALLOWED.into(),
        Kind::Zone(_) => "UTC or an IANA name such as Europe/Berlin".into(),
    }
}

const ADDRESS: &str = "IP:PORT, such as 127.0.0.1:8080 or [::1]:8080";
const DATABASE: &str = "postgres://USER:PASSWORD@HOST/DATABASE or sqlite:PATH";
const CACHE: &str =
    "memory:, redis://HOST:PORT, or redis-sentinel://HOST:PORT?sentinelServiceName=NAME (rediss for TLS)";

/// The URLs that alerts can notify.
#[cfg(feature = "webhooks")]
pub(super) const WEBHOOK: &str = "http://HOST/… or https://HOST/…";
#[cfg(not(feature = "webhooks"))]
pub(super) const WEBHOOK: &str = "no webhook: this program was built without the feature `webhooks`";

/// No URL can be notified.
#[cfg(not(feature = "webhooks"))]
pub fn is_http_url(_url: &str) -> bool {
    false
}

/// Whether `url` is an absolute HTTP URL with a host.
#[cfg(feature = "webhooks")]
#[must_use]
pub fn is_http_url(url: &str) -> bool {
    let Ok(uri) = url.parse::<ureq::http::Uri>() else { return false };
    matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some_and(|host| !host.is_empty())
}

/// The current value as TOML, with secrets as `***`.
#[must_use]
pub fn show(key: &Key, config: &Config) -> String {
    // Lenses need a mutable reference; the table is small and this is not a hot path.
    let config = &mut config.clone();
    match key.kind {
        Kind::Number { place, unit, .. } => {
            let shown = show_number(get(place, config), unit);
            if shown.bytes().all(|byte| byte.is_ascii_digit()) { shown } else { format!("\"{shown}\"") }
        }
        Kind::Bool(at) => at(config).to_string(),
        Kind::Choice { words, get, .. } => format!("\"{}\"", words[get(config)]),
        Kind::Address(at) => format!("\"{}\"", at(config)),
        Kind::OptionalAddress(at) => quote(&at(config).map(|address| address.to_string()).unwrap_or_default()),
        Kind::Path(at) => quote(&at(config).display().to_string()),
        Kind::OptionalPath(at) => {
            quote(&at(config).as_ref().map(|path| path.display().to_string()).unwrap_or_default())
        }
        Kind::Tokens(at) => format!("[{}]", vec!["\"***\""; at(config).len()].join(", ")),
        Kind::Webhook(at) => quote(if at(config).is_some() { "***" } else { "" }),
        Kind::Database(at) => quote(&show_database(at(config))),
        Kind::OptionalDatabase(at) => quote(&at(config).as_ref().map(show_database).unwrap_or_default()),
        Kind::Cache(at) => match at(config) {
            CacheUrl::Memory => quote("memory:"),
            CacheUrl::Redis(url) => quote(&without_secrets(url)),
        },
        Kind::Globs(at) => format!("[{}]", at(config).iter().map(|glob| quote(glob)).collect::<Vec<_>>().join(", ")),
        Kind::Hosts(at) => {
            format!("[{}]", at(config).iter().map(|host| quote(&host.to_string())).collect::<Vec<_>>().join(", "))
        }
        Kind::Filter(at) | Kind::Pattern(at) | Kind::Name(at) => quote(at(config)),
        Kind::Zone(at) => quote(at(config).iana_name().unwrap_or("UTC")),
    }
}

/// A URL that can be printed: whatever is before its last `@` or after its `?` may be a password.
#[must_use]
pub fn without_secrets(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return "***".into() };
    let (credentials, place) = match rest.rsplit_once('@') {
        Some((_, place)) => ("***@", place),
        None => ("", rest),
    };
    match place.split_once('?') {
        Some((place, _)) => format!("{scheme}://{credentials}{place}?***"),
        None => format!("{scheme}://{credentials}{place}"),
    }
}

fn show_database(url: &DatabaseUrl) -> String {
    match url {
        DatabaseUrl::Sqlite(path) => format!("sqlite:{}", path.display()),
        DatabaseUrl::Postgres(url) => without_secrets(url),
        DatabaseUrl::Blackhole => "blackhole:".to_owned(),
        other => format!("{other:?}"),
    }
}

pub(super) fn quote(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

fn number(raw: &Raw, unit: Unit) -> Option<u64> {
    match raw {
        Raw::Integer(number) => u64::try_from(*number).ok(),
        Raw::Text(text) => quantity(text, unit),
        _ => None,
    }
}

fn put(place: Place, number: u64, config: &mut Config) {
    let why = "a key's range fits its width";
    match place {
        Place::OptionalU16(at) => *at(config) = Some(number.try_into().expect(why)),
        Place::U32(at) => *at(config) = number.try_into().expect(why),
        Place::U64(at) => *at(config) = number,
        Place::Usize(at) => *at(config) = number.try_into().expect(why),
    }
}

fn get(place: Place, config: &mut Config) -> u64 {
    match place {
        // The only derived number of this width.
        Place::OptionalU16(_) => u64::from(config.lanes()),
        Place::U32(at) => u64::from(*at(config)),
        Place::U64(at) => *at(config),
        Place::Usize(at) => *at(config) as u64,
    }
}

fn text(raw: &Raw) -> Option<&str> {
    match raw {
        Raw::Text(text) => Some(text.trim()),
        _ => None,
    }
}

fn address(raw: &Raw) -> Result<SocketAddr, String> {
    let expected = format!("expected {ADDRESS}");
    let text = text(raw).ok_or_else(|| expected.clone())?;
    text.parse().map_err(|_| match text.split_once(':') {
        Some(("", port)) => format!("{expected}; for all addresses, write 0.0.0.0:{port}"),
        Some(("localhost", port)) => format!("{expected}; host names are not supported, so write 127.0.0.1:{port}"),
        _ => expected.clone(),
    })
}

fn path(raw: &Raw) -> Result<Option<PathBuf>, String> {
    let text = text(raw).ok_or("expected a path in quotes")?;
    if text.contains('\0') {
        return Err("expected a path without NUL characters".into());
    }
    expanded(text)?;
    Ok((!text.is_empty()).then(|| PathBuf::from(text)))
}

/// Rejects what a shell would expand: a directory called `~` or `$HOME` is never meant.
fn expanded(path: &str) -> Result<(), String> {
    if path == "~" || path.starts_with("~/") || path.starts_with('$') {
        return Err("expected a literal path: `~` and variables are not expanded".into());
    }
    Ok(())
}

/// A TOML list, or text with commas; without empty items.
fn list(raw: &Raw) -> Result<Vec<String>, String> {
    let given: Vec<&str> = match raw {
        Raw::Text(text) => text.split(',').collect(),
        Raw::List(list) => list.iter().map(String::as_str).collect(),
        _ => return Err("expected a list of strings".into()),
    };
    Ok(given.into_iter().map(|item| item.trim().to_owned()).filter(|item| !item.is_empty()).collect())
}

fn hosts(raw: &Raw) -> Result<Vec<HostPort>, String> {
    list(raw)?.iter().map(|text| host_port(text)).collect()
}

/// Parses `HOST`, `HOST:PORT`, `IPV6` or `[IPV6]:PORT`.
fn host_port(text: &str) -> Result<HostPort, String> {
    let expected = |why: &str| {
        let hint = if text.contains("://") { "without http://, " } else { "" };
        format!("expected HOST or HOST:PORT, {hint}such as logweir-processor:8080, instead of {text:?}: {why}")
    };
    let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, "")) => (address, None),
        Some((address, port)) => {
            (address, Some(port.strip_prefix(':').ok_or_else(|| expected("unexpected text after ]"))?))
        }
        None if text.parse::<Ipv6Addr>().is_ok() => (text, None),
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    if !is_host_name(host) && host.parse::<Ipv6Addr>().is_err() {
        return Err(expected("invalid host"));
    }
    let port = match port.map(str::parse) {
        None => HostPort::PORT,
        Some(Ok(port)) if port > 0 => port,
        Some(_) => return Err(expected("a port is a number from 1 to 65535")),
    };
    Ok(HostPort { host: host.to_owned(), port })
}

/// Whether `host` is a name or an IPv4 address. A name that ends in a number would be taken for an incomplete address.
fn is_host_name(host: &str) -> bool {
    let usual = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    let is_label =
        |label: &str| !label.is_empty() && label.bytes().all(usual) && !label.starts_with('-') && !label.ends_with('-');
    let name = host.strip_suffix('.').unwrap_or(host);
    let last = name.rsplit('.').next().unwrap_or_default();
    let numeric = last.bytes().all(|byte| byte.is_ascii_digit());
    name.len() <= 253 && name.split('.').all(is_label) && (!numeric || host.parse::<Ipv4Addr>().is_ok())
}

fn globs(raw: &Raw) -> Result<Vec<String>, String> {
    let given = list(raw)?;
    for glob in &given {
        let expected = |why: &str| format!("expected a path with `*`, `**`, `?` and `[…]` instead of {glob:?}: {why}");
        if glob.contains(['{', '}']) {
            return Err(expected("`{a,b}` is not supported: list each pattern"));
        }
        expanded(glob)?;
        glob::Pattern::new(glob).map_err(|error| expected(&error.to_string()))?;
    }
    Ok(given)
}

fn tokens(raw: &Raw) -> Result<Vec<Token>, String> {
    let given: Vec<&str> = match raw {
        Raw::Text(text) => text.split([',', '\n']).collect(),
        Raw::List(list) => list.iter().map(String::as_str).collect(),
        _ => return Err("expected a list of strings".into()),
    };
    let given: Vec<&str> = given.into_iter().map(str::trim).filter(|token| !token.is_empty()).collect();
    for (index, token) in given.iter().enumerate() {
        if !token.bytes().all(|byte| byte.is_ascii_graphic() && byte != b',') {
            return Err(format!(
                "expected visible ASCII characters without commas, but token {} contains others",
                index + 1
            ));
        }
        let chars = Token((*token).to_owned()).secret().len();
        if chars < TOKEN_CHARS_MIN {
            let number = index + 1;
            return Err(format!(
                "expected at least {TOKEN_CHARS_MIN} characters, but token {number} has {chars}; `openssl rand -hex 24` \
                 generates one"
            ));
        }
    }
    Ok(given.into_iter().map(|token| Token(token.to_owned())).collect())
}

fn database(url: &str, is_for_reads: bool) -> Result<DatabaseUrl, String> {
    if let Some(path) = url.strip_prefix("sqlite:") {
        return sqlite(path);
    }
    if url == "blackhole:" {
        return Ok(DatabaseUrl::Blackhole);
    }
    check_postgres(url, is_for_reads)?;
    Ok(DatabaseUrl::Postgres(url.to_owned()))
}

/// Why the client cannot use `url`.
#[cfg(feature = "postgres")]
fn check_postgres(url: &str, is_for_reads: bool) -> Result<(), String> {
    use logweir_store::postgres::{check_read_url, check_url, is_connection_string};
    if !is_connection_string(url) {
        return Err(format!("expected {DATABASE}"));
    }
    let checked = if is_for_reads { check_read_url(url) } else { check_url(url) };
    checked.map_err(|why| format!("expected {DATABASE}: {why}"))
}

#[cfg(not(feature = "postgres"))]
fn check_postgres(_url: &str, _is_for_reads: bool) -> Result<(), String> {
    Err(format!("expected {DATABASE}; this program was built without the feature `postgres`"))
}

fn sqlite(path: &str) -> Result<DatabaseUrl, String> {
    // `sqlite:///var/x` is the usual spelling elsewhere; `//host/…` has no meaning here.
    let path = path.strip_prefix("//").unwrap_or(path);
    match path {
        "" => Err("expected sqlite:PATH: the path is missing".into()),
        ":memory:" => {
            Err("expected sqlite:PATH: a database in memory would lose committed records at each restart".into())
        }
        path if path.contains(['\0', '?']) => Err("expected sqlite:PATH: options after `?` are not supported".into()),
        path => expanded(path).map(|()| DatabaseUrl::Sqlite(path.into())),
    }
}

fn cache(url: &str) -> Result<CacheUrl, String> {
    if matches!(url, "memory:" | "memory") {
        return Ok(CacheUrl::Memory);
    }
    match url.split_once("://") {
        Some(("redis" | "rediss" | "redis-sentinel" | "rediss-sentinel", _)) => {}
        Some(("redis-cluster" | "rediss-cluster", _)) => {
            return Err(format!("expected {CACHE}: Redis Cluster is not supported"));
        }
        _ => return Err(format!("expected {CACHE}")),
    }
    check_redis(url).map_err(|why| format!("expected {CACHE}{why}"))?;
    Ok(CacheUrl::Redis(url.to_owned()))
}

/// Why the client cannot use `url`, as the end of a sentence.
#[cfg(feature = "redis")]
fn check_redis(url: &str) -> Result<(), String> {
    // Certificates are loaded when it is opened.
    let plain = url.replacen("rediss", "redis", 1);
    fred::types::config::Config::from_url(&plain).map(drop).map_err(|error| format!(": {}", error.details()))
}

#[cfg(not(feature = "redis"))]
fn check_redis(_url: &str) -> Result<(), String> {
    Err("; this program was built without the feature `redis`".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_printed_url_contains_no_password() {
        for (url, shown) in [
            ("postgres://u:p@h:5/db", "postgres://***@h:5/db"),
            ("postgres://u:p@ss/w@h/db?password=x", "postgres://***@h/db?***"),
            ("redis://h:6379/1", "redis://h:6379/1"),
            ("no url p", "***"),
        ] {
            assert_eq!(without_secrets(url), shown);
        }
    }

    #[test]
    fn hosts_are_names_or_whole_addresses() {
        for (text, read) in [
            ("logweir-processor", Some("logweir-processor:8080")),
            ("processor.default.svc.cluster.local.:81", Some("processor.default.svc.cluster.local.:81")),
            ("10.0.0.1", Some("10.0.0.1:8080")),
            ("::1", Some("[::1]:8080")),
            ("[::2]:82", Some("[::2]:82")),
            ("10.0.0.256", None),
            ("10.0.0", None),
            ("a..b", None),
            ("-a", None),
            ("a:0", None),
            ("http://a", None),
            ("[::2]82", None),
            ("", None),
        ] {
            assert_eq!(host_port(text).ok().map(|host| host.to_string()).as_deref(), read, "{text}");
        }
    }

    #[test]
    fn a_webhook_is_a_whole_url() {
        for (url, is_url) in [
            ("https://hooks.example/a?b=c", true),
            ("http://user:secret@h:1/", true),
            ("http://", false),
            ("http://a b/", false),
            ("https:///path", false),
            ("ftp://x", false),
        ] {
            assert_eq!(is_http_url(url), is_url, "{url}");
        }
    }
}
