//! One typed text, and what it means. Pure; an error says what is wrong and what is allowed, and never repeats a secret.

use std::net::SocketAddr;
use std::path::PathBuf;

use jiff::tz::TimeZone;

use super::keys::{Key, Kind, Place, Unit};
use super::{CacheUrl, Config, DatabaseUrl, HostPort};
use crate::token::Token;

/// A value as a layer gave it.
#[derive(Clone, Debug, PartialEq)]
pub enum Raw {
    /// A string, an environment variable, a flag.
    Text(String),
    /// A TOML array of strings.
    List(Vec<String>),
    /// A TOML integer.
    Integer(i64),
    /// A TOML boolean.
    Bool(bool),
    /// A TOML value that no key takes, by the name of its type.
    Other(&'static str),
}

/// Shortest token that is taken: anything below is guessed sooner or later.
pub const TOKEN_CHARS_MIN: usize = 16;

/// Puts `raw` where `key` stands in `config`.
///
/// # Errors
/// What is wrong and what is allowed.
pub fn assign(key: &Key, raw: &Raw, config: &mut Config) -> Result<(), String> {
    match key.kind {
        Kind::Number { place, unit, min, max } => {
            let number = number(raw, unit)
                .filter(|number| (min..=max).contains(number))
                .ok_or_else(|| format!("must be {}", allowed(&key.kind)))?;
            put(place, number, config);
        }
        Kind::Bool(at) => {
            *at(config) = match raw {
                Raw::Bool(value) => *value,
                Raw::Text(text) if text == "true" => true,
                Raw::Text(text) if text == "false" => false,
                _ => return Err(format!("must be {}", allowed(&key.kind))),
            };
        }
        Kind::Choice { words, set, .. } => {
            let word = text(raw).and_then(|text| words.iter().position(|word| *word == text));
            set(config, word.ok_or_else(|| format!("must be {}", allowed(&key.kind)))?);
        }
        Kind::Address(at) => *at(config) = address(raw)?,
        Kind::OptionalAddress(at) => {
            *at(config) = if text(raw) == Some("") { None } else { Some(address(raw)?) };
        }
        Kind::Path(at) => *at(config) = path(raw)?.ok_or("must be a path")?,
        Kind::OptionalPath(at) => *at(config) = path(raw)?,
        Kind::Tokens(at) => *at(config) = tokens(raw)?,
        Kind::Webhook(at) => {
            *at(config) = match text(raw).map(str::trim) {
                Some("") => None,
                Some(url) if url.starts_with("http://") || url.starts_with("https://") => Some(Token(url.to_owned())),
                _ => return Err(format!("must be {}", allowed(&key.kind))),
            };
        }
        Kind::Database(at) => *at(config) = database(text(raw).ok_or("must be a string")?)?,
        Kind::OptionalDatabase(at) => {
            *at(config) = match text(raw).ok_or("must be a string")? {
                "" => None,
                url => match database(url)? {
                    DatabaseUrl::Sqlite(_) => return Err("SQLite has no replica: leave it out".into()),
                    DatabaseUrl::Blackhole => return Err("a blackhole gives nothing back: leave it out".into()),
                    postgres @ DatabaseUrl::Postgres(_) => Some(postgres),
                },
            };
        }
        Kind::Cache(at) => *at(config) = cache(text(raw).ok_or("must be a string")?)?,
        Kind::Globs(at) => *at(config) = globs(raw)?,
        Kind::Hosts(at) => *at(config) = hosts(raw)?,
        Kind::Pattern(at) => {
            let text = text(raw).ok_or("must be a string")?;
            if let Err(error) = regex::bytes::Regex::new(text) {
                return Err(format!("must be {}: {error}", allowed(&key.kind)));
            }
            text.clone_into(at(config));
        }
        Kind::Name(at) => {
            let text = text(raw).filter(|text| text.len() <= 255 && !text.contains('\0'));
            text.ok_or_else(|| format!("must be {}", allowed(&key.kind)))?.clone_into(at(config));
        }
        Kind::Filter(at) => {
            let text =
                text(raw).filter(|text| !text.is_empty()).ok_or_else(|| format!("must be {}", allowed(&key.kind)))?;
            if let Err(error) = tracing_subscriber::EnvFilter::try_new(text) {
                return Err(format!("must be {}: {error}", allowed(&key.kind)));
            }
            text.clone_into(at(config));
        }
        Kind::Zone(at) => {
            let name = text(raw).ok_or_else(|| format!("must be {}", allowed(&key.kind)))?;
            *at(config) = TimeZone::get(name).map_err(|_| format!("must be {}", allowed(&key.kind)))?;
        }
    }
    Ok(())
}

/// What a kind takes, in words.
#[must_use]
pub fn allowed(kind: &Kind) -> String {
    match kind {
        Kind::Number { unit, min, max, .. } => {
            let what = match unit {
                Unit::Count => "a whole number",
                Unit::Bytes => "a size such as 65536, 64KiB or 64MiB",
                Unit::Millis => "a time such as 50, 50ms or 5s",
                Unit::Seconds => "a time such as 60, 60s or 1d",
                Unit::Days => "a number of days such as 7 or 7d",
            };
            format!("{what}, from {} to {}", show_number(*min, *unit), show_number(*max, *unit))
        }
        Kind::Bool(_) => "true or false".into(),
        Kind::Choice { words, .. } => match words {
            [first, last] => format!("{first} or {last}"),
            _ => format!("one of {}", words.join(", ")),
        },
        Kind::Address(_) => "IP:PORT, such as 127.0.0.1:8080 or [::1]:8080".into(),
        Kind::OptionalAddress(_) => "IP:PORT, or empty".into(),
        Kind::Path(_) => "a path".into(),
        Kind::OptionalPath(_) => "a path, or empty".into(),
        Kind::Tokens(_) => {
            format!("a list of tokens, each of at least {TOKEN_CHARS_MIN} visible ASCII characters and no comma")
        }
        Kind::Webhook(_) => "http://… or https://…, or empty".into(),
        Kind::Database(_) => "postgres://USER:PASSWORD@HOST/DATABASE or sqlite:PATH".into(),
        Kind::OptionalDatabase(_) => "postgres://USER:PASSWORD@HOST/DATABASE, or empty".into(),
        Kind::Cache(_) => "memory: or redis://HOST:PORT (rediss:// for TLS)".into(),
        Kind::Globs(_) => "a list of paths with `*`, `**`, `?` and `[…]`".into(),
        Kind::Hosts(_) => format!("a list of HOST or HOST:PORT; the port is {} where none is given", HostPort::PORT),
        Kind::Pattern(_) => "a regular expression, or empty".into(),
        Kind::Name(_) => "a text of at most 255 bytes, or empty".into(),
        Kind::Filter(_) => "error, warn, info, debug, trace, or a filter such as info,logweir=debug".into(),
        Kind::Zone(_) => "UTC or an IANA name such as Europe/Berlin".into(),
    }
}

/// The value that holds, as a line of TOML would have it; secrets as `***`.
#[must_use]
pub fn show(key: &Key, config: &Config) -> String {
    // Lenses are made for writing; the table is small and this is not a hot path.
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

/// `number` in the largest unit that divides it.
#[must_use]
pub fn show_number(number: u64, unit: Unit) -> String {
    match suffixes(unit).iter().find(|(_, size)| number != 0 && *size > 1 && number.is_multiple_of(*size)) {
        Some((suffix, size)) => format!("{}{suffix}", number / size),
        None => number.to_string(),
    }
}

/// A URL that can be shown: whatever stands before its last `@` or after its `?` may be a password.
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
    }
}

pub(super) fn quote(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

/// Largest first, as they are shown; those of size 1 and the decimal ones are only read.
fn suffixes(unit: Unit) -> &'static [(&'static str, u64)] {
    match unit {
        Unit::Count => &[],
        Unit::Bytes => &[("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)],
        Unit::Millis => &[("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)],
        Unit::Seconds => &[("d", 86_400), ("h", 3600), ("m", 60), ("s", 1)],
        Unit::Days => &[("d", 1)],
    }
}

/// Reads `64MiB`, `512k`, `50ms`, `7d`, or a plain number in the unit that the key's name says.
#[must_use]
pub fn quantity(text: &str, unit: Unit) -> Option<u64> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '_').unwrap_or(text.len());
    let (digits, suffix) = text.split_at(digits);
    let number: u64 = digits.replace('_', "").parse().ok()?;
    let suffix = suffix.trim_start();
    if suffix.is_empty() {
        return Some(number);
    }
    let exact = suffixes(unit).iter().find(|(name, _)| *name == suffix).map(|(_, size)| *size);
    let size = exact.or_else(|| (unit == Unit::Bytes).then(|| loose_size(suffix)).flatten())?;
    number.checked_mul(size)
}

/// Sizes as people type them: `k`, `M`, `g` are binary like `KiB`; `kB`, `MB` are decimal, as SI has them.
fn loose_size(suffix: &str) -> Option<u64> {
    Some(match suffix.to_ascii_lowercase().as_str() {
        "b" => 1,
        "k" | "ki" | "kib" => 1 << 10,
        "m" | "mi" | "mib" => 1 << 20,
        "g" | "gi" | "gib" => 1 << 30,
        "t" | "ti" | "tib" => 1 << 40,
        "kb" => 1000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        _ => return None,
    })
}

fn number(raw: &Raw, unit: Unit) -> Option<u64> {
    match raw {
        Raw::Integer(number) => u64::try_from(*number).ok(),
        Raw::Text(text) => quantity(text, unit),
        _ => None,
    }
}

fn put(place: Place, number: u64, config: &mut Config) {
    let why = "the key's range lies within its width";
    match place {
        Place::U16(at) => *at(config) = number.try_into().expect(why),
        Place::U32(at) => *at(config) = number.try_into().expect(why),
        Place::U64(at) => *at(config) = number,
        Place::Usize(at) => *at(config) = number.try_into().expect(why),
    }
}

fn get(place: Place, config: &mut Config) -> u64 {
    match place {
        Place::U16(at) => u64::from(*at(config)),
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
    let wrong = "must be IP:PORT, such as 127.0.0.1:8080 or [::1]:8080";
    let text = text(raw).ok_or(wrong)?;
    text.parse().map_err(|_| match text.split_once(':') {
        Some(("", port)) => format!("{wrong}; for all addresses write 0.0.0.0:{port}"),
        Some(("localhost", port)) => format!("{wrong}; a name is not resolved: write 127.0.0.1:{port}"),
        _ => wrong.into(),
    })
}

fn path(raw: &Raw) -> Result<Option<PathBuf>, String> {
    let text = text(raw).ok_or("must be a path in quotes")?;
    if text.contains('\0') {
        return Err("holds a NUL character, which no path can".into());
    }
    Ok((!text.is_empty()).then(|| PathBuf::from(text)))
}

/// A list as TOML has it, or with commas; without empty items.
fn list(raw: &Raw) -> Result<Vec<String>, String> {
    let given: Vec<&str> = match raw {
        Raw::Text(text) => text.split(',').collect(),
        Raw::List(list) => list.iter().map(String::as_str).collect(),
        _ => return Err("must be a list of strings".into()),
    };
    Ok(given.into_iter().map(|item| item.trim().to_owned()).filter(|item| !item.is_empty()).collect())
}

fn hosts(raw: &Raw) -> Result<Vec<HostPort>, String> {
    list(raw)?.iter().map(|text| HostPort::read(text)).collect()
}

fn globs(raw: &Raw) -> Result<Vec<String>, String> {
    let given = list(raw)?;
    for glob in &given {
        glob::Pattern::new(glob).map_err(|error| format!("{glob:?} is no pattern: {error}"))?;
    }
    Ok(given)
}

fn tokens(raw: &Raw) -> Result<Vec<Token>, String> {
    let given: Vec<&str> = match raw {
        Raw::Text(text) => text.split([',', '\n']).collect(),
        Raw::List(list) => list.iter().map(String::as_str).collect(),
        _ => return Err("must be a list of strings".into()),
    };
    let given: Vec<&str> = given.into_iter().map(str::trim).filter(|token| !token.is_empty()).collect();
    for (index, token) in given.iter().enumerate() {
        if !token.bytes().all(|byte| byte.is_ascii_graphic() && byte != b',') {
            return Err(format!("token {} holds a character that is not visible ASCII, or a comma", index + 1));
        }
        let chars = Token((*token).to_owned()).secret().len();
        if chars < TOKEN_CHARS_MIN {
            let number = index + 1;
            return Err(format!(
                "token {number} has {chars} characters, at least {TOKEN_CHARS_MIN} are needed: `openssl rand -hex 24` makes one"
            ));
        }
    }
    Ok(given.into_iter().map(|token| Token(token.to_owned())).collect())
}

fn database(url: &str) -> Result<DatabaseUrl, String> {
    if let Some(path) = url.strip_prefix("sqlite:") {
        return sqlite(path);
    }
    if url == "blackhole:" {
        return Ok(DatabaseUrl::Blackhole);
    }
    if !url.starts_with("postgres://") && !url.starts_with("postgresql://") {
        return Err("must be postgres://USER:PASSWORD@HOST/DATABASE or sqlite:PATH".into());
    }
    let config: tokio_postgres::Config = url.parse().map_err(|error| format!("does not parse: {}", chain(&error)))?;
    if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
        return Err("names no host".into());
    }
    Ok(DatabaseUrl::Postgres(url.to_owned()))
}

fn sqlite(path: &str) -> Result<DatabaseUrl, String> {
    // `sqlite:///var/x` as other programs write it; `//host/…` means nothing here.
    let path = path.strip_prefix("//").unwrap_or(path);
    match path {
        "" => Err("names no file: write sqlite:PATH".into()),
        ":memory:" => {
            Err("in memory nothing survives a restart, while the journal believes it does: name a file".into())
        }
        path if path.contains(['\0', '?']) => Err("is not a plain path (options after `?` are not taken)".into()),
        path => Ok(DatabaseUrl::Sqlite(path.into())),
    }
}

fn cache(url: &str) -> Result<CacheUrl, String> {
    if matches!(url, "memory:" | "memory") {
        return Ok(CacheUrl::Memory);
    }
    if !url.starts_with("redis://") && !url.starts_with("rediss://") {
        return Err("must be memory: or redis://HOST:PORT (rediss:// for TLS)".into());
    }
    match fred::types::config::Config::from_url(url) {
        Ok(_) => Ok(CacheUrl::Redis(url.to_owned())),
        Err(error) => Err(format!("does not parse: {}", error.details())),
    }
}

/// An error with what caused it: the outer one alone often says nothing.
fn chain(error: &dyn std::error::Error) -> String {
    let mut words = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_words = inner.to_string();
        if !words.contains(&inner_words) {
            words = format!("{words}: {inner_words}");
        }
        cause = inner.source();
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_are_read_as_people_write_them() {
        for (text, unit, number) in [
            ("65536", Unit::Bytes, Some(65_536)),
            ("64MiB", Unit::Bytes, Some(64 << 20)),
            ("512k", Unit::Bytes, Some(512 << 10)),
            ("1 GiB", Unit::Bytes, Some(1 << 30)),
            ("2MB", Unit::Bytes, Some(2_000_000)),
            ("1_000", Unit::Bytes, Some(1000)),
            ("50", Unit::Millis, Some(50)),
            ("50ms", Unit::Millis, Some(50)),
            ("5s", Unit::Millis, Some(5000)),
            ("2m", Unit::Millis, Some(120_000)),
            ("1d", Unit::Seconds, Some(86_400)),
            ("7d", Unit::Days, Some(7)),
            ("5s", Unit::Bytes, None),
            ("5x", Unit::Millis, None),
            ("5ms", Unit::Seconds, None),
            ("1.5s", Unit::Millis, None),
            ("-1", Unit::Count, None),
            ("", Unit::Bytes, None),
            ("MiB", Unit::Bytes, None),
            ("99999999999999999999", Unit::Bytes, None),
            ("99999999999TiB", Unit::Bytes, None),
        ] {
            assert_eq!(quantity(text, unit), number, "{text:?} as {unit:?}");
        }
    }

    #[test]
    fn a_shown_number_reads_back_as_itself() {
        for unit in [Unit::Count, Unit::Bytes, Unit::Millis, Unit::Seconds, Unit::Days] {
            for number in [0, 1, 7, 1000, 1024, 60_000, 65_536, 86_400, 90_061, 64 << 20, u64::MAX] {
                assert_eq!(quantity(&show_number(number, unit), unit), Some(number));
            }
        }
    }

    #[test]
    fn a_shown_url_holds_no_password() {
        for (url, shown) in [
            ("postgres://u:p@h:5/db", "postgres://***@h:5/db"),
            ("postgres://u:p@ss/w@h/db?password=x", "postgres://***@h/db?***"),
            ("redis://h:6379/1", "redis://h:6379/1"),
            ("no url p", "***"),
        ] {
            assert_eq!(without_secrets(url), shown);
        }
    }
}
