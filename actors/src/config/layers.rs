//! Where values come from: defaults < file < `DATABASE_URL`, `REDIS_URL` < environment < flags.
//!
//! A layer only gathers texts, each with its source. What a text means is [`super::value`]'s business, so that a
//! mistake reads the same wherever it was made.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fmt;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};

use super::keys::{self, Key};
use super::value::Raw;
use super::{Mistake, NAME_OF_FILE};

/// Longest configuration or secret that is read, in bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// What the outside says, before anything of it is understood.
#[derive(Clone, Debug, Default)]
pub struct Inputs {
    /// `--config`: this file, which must exist then.
    pub file: Option<PathBuf>,
    /// The environment.
    pub environment: Vec<(OsString, OsString)>,
    /// Flags as `(flag, path of the key, value)`, in the order in which they take precedence.
    pub flags: Vec<(&'static str, String, String)>,
}

/// Who said it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// Nobody.
    Default,
    /// A line of the file; 0 for the file as a whole.
    File(PathBuf, usize),
    /// An environment variable.
    Environment(String),
    /// A file named by an environment variable.
    SecretFile(String, PathBuf),
    /// A flag.
    Flag(&'static str),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(path, 0) => write!(f, "{}", path.display()),
            Self::File(path, line) => write!(f, "{}:{line}", path.display()),
            Self::Environment(name) => write!(f, "environment {name}"),
            Self::SecretFile(name, path) => write!(f, "{}, named by environment {name}", path.display()),
            Self::Flag(flag) => write!(f, "flag {flag}"),
        }
    }
}

/// One value for one key.
#[derive(Debug)]
pub struct Setting {
    /// The key.
    pub key: &'static Key,
    /// Its value.
    pub raw: Raw,
    /// Who said so.
    pub source: Source,
}

/// One `[formats.NAME]`.
#[derive(Debug)]
pub struct FormatSetting {
    /// Its name.
    pub name: String,
    /// Its pattern; `None` where there is none, or no text.
    pub pattern: Option<String>,
    /// The line that says so.
    pub source: Source,
}

/// One `[alerts.NAME]`.
#[derive(Debug)]
pub struct AlertSetting {
    /// Its name.
    pub name: String,
    /// What stands in it, each with the line that says so.
    pub members: Vec<(String, Raw, Source)>,
    /// The line that it begins with.
    pub source: Source,
}

/// Everything that was said, later settings above earlier ones.
#[derive(Debug, Default)]
pub struct Gathered {
    /// In rising precedence.
    pub settings: Vec<Setting>,
    /// Formats of lines, `[formats.NAME]`: only a file can hold them.
    pub formats: Vec<FormatSetting>,
    /// Alerts, `[alerts.NAME]`: only a file can hold them, too.
    pub alerts: Vec<AlertSetting>,
    /// What cannot be a setting.
    pub mistakes: Vec<Mistake>,
    /// The file could not be read, so nothing can be concluded from what is missing.
    pub file_unread: bool,
}

impl Gathered {
    fn set(&mut self, key: &'static Key, raw: Raw, source: Source) {
        self.settings.push(Setting { key, raw, source });
    }

    fn wrong(&mut self, key: impl Into<String>, source: Source, what: impl Into<String>) {
        self.mistakes.push(Mistake { key: key.into(), value: None, source, what: what.into() });
    }
}

/// Gathers all layers. Reads files, writes none.
#[must_use]
pub fn gather(inputs: &Inputs) -> Gathered {
    let mut gathered = Gathered::default();
    let environment = environment(&inputs.environment, &mut gathered);
    if let Some(path) = file_to_read(inputs, &environment) {
        match read(&path) {
            Ok(text) => read_toml(&text, &path, &mut gathered),
            Err(error) => {
                gathered.file_unread = true;
                gathered.wrong("", Source::File(path, 0), format!("cannot be read: {error}"));
            }
        }
    }
    for (name, path) in [("DATABASE_URL", "database.url"), ("REDIS_URL", "cache.url")] {
        let key = keys::find(path).expect("the table has it");
        read_variable(name, key, &environment, &mut gathered);
    }
    read_own_variables(&environment, &mut gathered);
    for (flag, path, value) in &inputs.flags {
        match keys::find(path) {
            Some(key) => gathered.set(key, Raw::Text(value.clone()), Source::Flag(flag)),
            None => gathered.wrong(path, Source::Flag(flag), unknown(path, |key| format!("`{}`", key.path))),
        }
    }
    gathered
}

/// `--config`, else `$LOGWEIR_CONFIG`, else `./logweir.toml` if it is there.
fn file_to_read(inputs: &Inputs, environment: &HashMap<String, String>) -> Option<PathBuf> {
    let named = || environment.get("LOGWEIR_CONFIG").filter(|path| !path.is_empty()).map(PathBuf::from);
    let here = || Some(PathBuf::from(NAME_OF_FILE)).filter(|path| path.exists());
    inputs.file.clone().or_else(named).or_else(here)
}

/// A file's text; one that is too long to be meant is refused instead of read.
fn read(path: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    std::fs::File::open(path)?.take(FILE_BYTES_MAX + 1).read_to_string(&mut text)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(std::io::Error::other(format!("it is longer than {FILE_BYTES_MAX} bytes")));
    }
    Ok(text)
}

fn unknown(path: &str, name: impl Fn(&Key) -> String) -> String {
    match keys::nearest(path) {
        Some(key) => format!("is not a key; did you mean {}?", name(key)),
        None => "is not a key; `logweir validate --reference` lists them all".into(),
    }
}

fn read_toml(text: &str, file: &Path, gathered: &mut Gathered) {
    let line_at = |offset: usize| 1 + text.bytes().take(offset).filter(|&byte| byte == b'\n').count();
    let (table, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        gathered.file_unread = true;
        for error in errors {
            let line = error.span().map_or(0, |span| line_at(span.start));
            gathered.wrong("", Source::File(file.into(), line), format!("is not TOML: {}", error.message()));
        }
        return;
    }
    // A stack instead of recursion: the depth is whatever somebody typed.
    let mut tables = vec![(String::new(), table.get_ref())];
    while let Some((section, table)) = tables.pop() {
        for (name, value) in table {
            let source = Source::File(file.into(), line_at(name.span().start));
            let name = name.get_ref();
            let path = match section.as_str() {
                "" => name.to_string(),
                section => format!("{section}.{name}"),
            };
            // A quoted name with a dot in it is one name, and no key has one.
            let key = keys::find(&path).filter(|_| !name.contains('.'));
            if path.starts_with("formats.") || path == "formats" {
                read_format(&path, value.get_ref(), source, gathered, &mut tables);
                continue;
            }
            if section == "alerts" || path == "alerts" {
                match value.get_ref() {
                    DeValue::Table(inner) if section.is_empty() => tables.push((path, inner)),
                    DeValue::Table(inner) => gathered.alerts.push(alert(name, inner, source, file, &line_at)),
                    _ => gathered.wrong(path, source, "is not a key: an alert is a section [alerts.NAME] with a query"),
                }
                continue;
            }
            match (key, value.get_ref()) {
                (None, DeValue::Table(inner)) if !inner.is_empty() => tables.push((path, inner)),
                (None, DeValue::Table(_)) if is_section(&path) => {}
                (None, _) if is_section(&path) => {
                    gathered.wrong(path.as_str(), source, format!("is a section: write [{path}]"));
                }
                (None, _) => {
                    let what = unknown(&path, |key| format!("`{}`", key.path));
                    gathered.wrong(path, source, what);
                }
                (Some(key), value) => gathered.set(key, raw(value), source),
            }
        }
    }
}

fn alert(
    name: &str,
    inner: &DeTable<'_>,
    source: Source,
    file: &Path,
    line_at: &impl Fn(usize) -> usize,
) -> AlertSetting {
    let member = |(name, value): (&toml::Spanned<std::borrow::Cow<'_, str>>, &toml::Spanned<DeValue<'_>>)| {
        let source = Source::File(file.into(), line_at(name.span().start));
        (name.get_ref().to_string(), raw(value.get_ref()), source)
    };
    AlertSetting { name: name.to_owned(), members: inner.iter().map(member).collect(), source }
}

fn read_format<'t, 'd>(
    path: &str,
    value: &'t DeValue<'d>,
    source: Source,
    gathered: &mut Gathered,
    tables: &mut Vec<(String, &'t DeTable<'d>)>,
) {
    let parts: Vec<&str> = path.splitn(3, '.').collect();
    match (parts.as_slice(), value) {
        (["formats"], DeValue::Table(inner)) => tables.push((path.to_owned(), inner)),
        (["formats", name], DeValue::Table(inner)) => {
            let pattern = inner.iter().find(|(name, _)| name.get_ref() == "pattern");
            let pattern = pattern.and_then(|(_, value)| value.get_ref().as_str()).map(str::to_owned);
            gathered.formats.push(FormatSetting { name: (*name).to_owned(), pattern, source });
            tables.push((path.to_owned(), inner));
        }
        (["formats", _, "pattern"], _) => {}
        (["formats", ..], _) => {
            let what = "is not a key: a format is a section [formats.NAME] with a pattern".to_owned();
            gathered.wrong(path, source, what);
        }
        _ => {}
    }
}

fn is_section(path: &str) -> bool {
    keys::KEYS.iter().any(|key| key.path.split_once('.').is_some_and(|(section, _)| section == path))
}

fn raw(value: &DeValue<'_>) -> Raw {
    match value {
        DeValue::String(text) => Raw::Text(text.to_string()),
        // What does not fit 64 bits fits no key: as a text it fails with the key's own words.
        DeValue::Integer(integer) => i64::from_str_radix(integer.as_str(), integer.radix())
            .map_or_else(|_| Raw::Text(integer.to_string()), Raw::Integer),
        DeValue::Boolean(value) => Raw::Bool(*value),
        DeValue::Float(_) => Raw::Other("a number with a fraction"),
        DeValue::Datetime(_) => Raw::Other("a date"),
        DeValue::Table(_) => Raw::Other("a table"),
        DeValue::Array(array) => array
            .iter()
            .map(|element| element.get_ref().as_str().map(str::to_owned))
            .collect::<Option<Vec<_>>>()
            .map_or(Raw::Other("a list of something else than strings"), Raw::List),
    }
}

/// The variables that concern us, as text.
fn environment(all: &[(OsString, OsString)], gathered: &mut Gathered) -> HashMap<String, String> {
    let mut ours = HashMap::new();
    for (name, value) in all {
        let Some(name) = name.to_str() else { continue };
        if !name.starts_with("LOGWEIR_") && !matches!(name.trim_end_matches("_FILE"), "DATABASE_URL" | "REDIS_URL") {
            continue;
        }
        match value.to_str() {
            Some(value) => _ = ours.insert(name.to_owned(), value.to_owned()),
            None => gathered.wrong("", Source::Environment(name.to_owned()), "is not UTF-8"),
        }
    }
    ours
}

/// The variable that sets `key`.
#[must_use]
pub fn variable(key: &Key) -> String {
    format!("LOGWEIR__{}", key.path.replace('.', "__").to_uppercase())
}

fn read_own_variables(environment: &HashMap<String, String>, gathered: &mut Gathered) {
    let mut names: Vec<&str> =
        environment.keys().map(String::as_str).filter(|name| name.starts_with("LOGWEIR__")).collect();
    names.sort_unstable();
    for key in keys::KEYS {
        let name = variable(key);
        read_variable(&name, key, environment, gathered);
        let file = format!("{name}_FILE");
        names.retain(|given| *given != name && !(key.kind.is_secret() && *given == file));
    }
    for name in names {
        let path = name.trim_start_matches("LOGWEIR__").replace("__", ".").to_lowercase();
        let what = match path.strip_suffix("_file").and_then(keys::find) {
            Some(key) => format!("is not a key: only secrets are read from files; set {}", variable(key)),
            None => unknown(&path, variable),
        };
        gathered.wrong("", Source::Environment(name.to_owned()), what);
    }
}

/// `NAME`, or the content of the file that `NAME_FILE` names, which is how secrets are mounted.
fn read_variable(name: &str, key: &'static Key, environment: &HashMap<String, String>, gathered: &mut Gathered) {
    // The two common names are often there and empty; nobody means the empty database by it.
    let common = !name.starts_with("LOGWEIR__");
    let value = environment.get(name).filter(|value| !(common && value.is_empty()));
    let file_name = format!("{name}_FILE");
    let file = environment.get(&file_name).filter(|path| key.kind.is_secret() && !path.is_empty());
    match (value, file) {
        (Some(_), Some(_)) => {
            let what = format!("is set beside {file_name}: which of the two holds? Remove one");
            gathered.wrong(key.path, Source::Environment(name.to_owned()), what);
        }
        (Some(value), None) => gathered.set(key, Raw::Text(value.clone()), Source::Environment(name.to_owned())),
        (None, Some(path)) => {
            let source = Source::SecretFile(file_name, path.into());
            match read(path.as_ref()) {
                Ok(text) => gathered.set(key, Raw::Text(text.trim().to_owned()), source),
                Err(error) => gathered.wrong(key.path, source, format!("cannot be read: {error}")),
            }
        }
        (None, None) => {}
    }
}
