//! Sources of values: defaults < file < `DATABASE_URL`, `REDIS_URL`, `LOGWEIR_LOG` < `LOGWEIR__SECTION__KEY` < flags.
//!
//! A layer only collects texts, each with its source. [`super::value`] parses them, so that an error reads the same in
//! every layer.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};

use super::keys::{self, Key, NamedKey};
use super::problem::{Problem, Source};
use super::raw::Raw;

/// The configuration file that is searched for where none is specified.
pub const NAME_OF_FILE: &str = "logweir.toml";

/// Maximum size of a configuration or secret file, in bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Common names of variables, and the key that each sets.
const COMMON: [(&str, &str); 3] =
    [("DATABASE_URL", "database.url"), ("REDIS_URL", "cache.url"), ("LOGWEIR_LOG", "log.level")];

/// Variables with one underscore that the program reads.
const OWN: [&str; 5] = ["LOGWEIR_CONFIG", "LOGWEIR_LOG", "LOGWEIR_TOKEN", "LOGWEIR_TOKEN_FILE", "LOGWEIR_URL"];

/// Directory of system-wide configuration.
const SYSTEM_DIR: &str = "/etc";

/// Everything that a configuration is loaded from.
#[derive(Clone, Debug, Default)]
pub struct Inputs {
    /// Path given with `--config`; the file must exist.
    pub file: Option<PathBuf>,
    /// Environment.
    pub environment: Vec<(OsString, OsString)>,
    /// Flags as `(flag, path of the key, value)`, in rising precedence.
    pub flags: Vec<(&'static str, String, String)>,
}

/// One value of one key.
#[derive(Debug)]
pub struct Setting {
    /// Key.
    pub key: &'static Key,
    /// Value.
    pub raw: Raw,
    /// Source.
    pub source: Source,
}

/// One `[formats.NAME]` or `[alerts.NAME]`.
#[derive(Debug)]
pub struct Section {
    /// Name.
    pub name: String,
    /// Keys with their values and sources.
    pub members: BTreeMap<String, (Raw, Source)>,
    /// Source of the section's first line or first key.
    pub source: Source,
}

/// All values of all layers.
#[derive(Debug, Default)]
pub struct Gathered {
    /// In rising precedence.
    pub settings: Vec<Setting>,
    /// `[formats.NAME]`, by name.
    pub formats: Vec<Section>,
    /// `[alerts.NAME]`, by name.
    pub alerts: Vec<Section>,
    /// Unknown keys and unreadable files.
    pub problems: Vec<Problem>,
    /// The file could not be read, so a missing value proves nothing.
    pub file_unread: bool,
    /// Keys whose secret files could not be read.
    pub unread: Vec<&'static str>,
}

impl Gathered {
    fn set(&mut self, key: &'static Key, raw: Raw, source: Source) {
        self.settings.push(Setting { key, raw, source });
    }

    /// Reports what belongs to no key.
    fn problem(&mut self, source: Source, message: impl Into<String>) {
        self.problems.push(Problem { key: String::new(), value: None, source, message: message.into() });
    }

    fn section(&mut self, section: &str, name: &str, source: &Source) -> &mut Section {
        let sections = if section == "formats" { &mut self.formats } else { &mut self.alerts };
        let at = sections.binary_search_by(|known| known.name.as_str().cmp(name)).unwrap_or_else(|at| {
            let new = Section { name: name.to_owned(), members: BTreeMap::new(), source: source.clone() };
            sections.insert(at, new);
            at
        });
        &mut sections[at]
    }

    fn set_named(&mut self, name: &str, key: &NamedKey, raw: Raw, source: Source) {
        let section = self.section(key.section, name, &source);
        section.members.insert(key.name.to_owned(), (raw, source));
    }
}

/// Collects the values of all layers. Reads files, writes none.
#[must_use]
pub fn gather(inputs: &Inputs) -> Gathered {
    let mut gathered = Gathered::default();
    let environment = environment(&inputs.environment, &mut gathered);
    if let Some(path) = file_to_read(inputs, &environment) {
        match read(&path) {
            Ok(text) => read_toml(&text, &path, &mut gathered),
            Err(error) => {
                gathered.file_unread = true;
                gathered.problem(Source::File(path, 0), format!("cannot read the file: {error}"));
            }
        }
    }
    for (name, path) in COMMON {
        let key = keys::find(path).expect("the table has this key");
        read_variable(name, key, &environment, &mut gathered);
    }
    read_own_variables(&environment, &mut gathered);
    report_misspelled_variables(&environment, &mut gathered);
    for (flag, path, value) in &inputs.flags {
        let (raw, source) = (Raw::Text(value.clone()), Source::Flag(flag));
        if let Some(key) = keys::find(path) {
            gathered.set(key, raw, source);
        } else if let Some((name, key)) = keys::find_named(path) {
            gathered.set_named(name, key, raw, source);
        } else {
            gathered.problem(source, unknown_key(path));
        }
    }
    gathered
}

/// Path of the file to read: `--config`, else `$LOGWEIR_CONFIG`, else the first that exists of `./logweir.toml`,
/// `$XDG_CONFIG_HOME/logweir/logweir.toml` (`~/.config/…`) and `/etc/logweir/logweir.toml`.
///
/// A user's directory that this process cannot access is skipped: `sudo -u` keeps `$HOME`. Whether the system's file
/// exists must be known: a server must not start with the defaults because it lacks a permission.
fn file_to_read(inputs: &Inputs, environment: &HashMap<String, String>) -> Option<PathBuf> {
    let set = |name: &str| environment.get(name).filter(|path| !path.is_empty()).map(PathBuf::from);
    // A relative $XDG_CONFIG_HOME is to be ignored, by its specification.
    let xdg = || set("XDG_CONFIG_HOME").filter(|dir| dir.is_absolute());
    let user = || xdg().or_else(|| Some(set("HOME")?.join(".config")));
    let in_dir = |dir: PathBuf| dir.join("logweir").join(NAME_OF_FILE);
    let searched = || {
        let own = [Some(PathBuf::from(NAME_OF_FILE)), user().map(in_dir)].into_iter().flatten();
        let system = Some(in_dir(SYSTEM_DIR.into())).filter(|path| path.try_exists().unwrap_or(true));
        own.into_iter().find(|path| path.exists()).or(system)
    };
    inputs.file.clone().or_else(|| set("LOGWEIR_CONFIG")).or_else(searched)
}

/// Returns the text of a file. A file that is far too large is rejected before it is in memory.
fn read(path: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    std::fs::File::open(path)?.take(FILE_BYTES_MAX + 1).read_to_string(&mut text)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(std::io::Error::other(format!("it is larger than {FILE_BYTES_MAX} bytes")));
    }
    Ok(text)
}

fn unknown_key(path: &str) -> String {
    let section = path.split('.').next().unwrap_or_default();
    if keys::is_named_section(section) {
        return unknown_named_key(path, section);
    }
    match keys::nearest(path) {
        Some(key) => format!("unknown key `{path}`; did you mean `{}`?", key.path),
        None => format!("unknown key `{path}`; `logweir validate --reference` lists all keys"),
    }
}

/// `section` is `formats` or `alerts`.
fn unknown_named_key(path: &str, section: &str) -> String {
    let names: Vec<&str> = keys::NAMED_KEYS.iter().filter(|key| key.section == section).map(|key| key.name).collect();
    format!("unknown key `{path}`: expected {section}.NAME.KEY, where KEY is one of {}", names.join(", "))
}

fn read_toml(text: &str, file: &Path, gathered: &mut Gathered) {
    let line_at = |offset: usize| 1 + text.bytes().take(offset).filter(|&byte| byte == b'\n').count();
    let (table, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        gathered.file_unread = true;
        for error in errors {
            let line = error.span().map_or(0, |span| line_at(span.start));
            gathered.problem(Source::File(file.into(), line), format!("invalid TOML: {}", error.message()));
        }
        return;
    }
    let source_of =
        |name: &toml::Spanned<std::borrow::Cow<'_, str>>| Source::File(file.into(), line_at(name.span().start));
    // A stack instead of recursion: the file decides how deep its tables are nested.
    let mut tables = vec![(String::new(), table.get_ref())];
    while let Some((section, table)) = tables.pop() {
        for (spanned, value) in table {
            let source = source_of(spanned);
            let name = spanned.get_ref();
            if keys::is_named_section(&section) {
                let DeValue::Table(members) = value.get_ref() else {
                    gathered.problem(source, unknown_named_key(&format!("{section}.{name}"), &section));
                    continue;
                };
                gathered.section(&section, name, &source);
                for (spanned, value) in members {
                    let (source, member) = (source_of(spanned), spanned.get_ref());
                    match keys::NAMED_KEYS.iter().find(|key| key.section == section && key.name == &**member) {
                        Some(key) => {
                            // The numbers of alerts are the only ones that may have a fraction.
                            let raw = match raw(value.get_ref()) {
                                Raw::Fraction(text) => Raw::Text(text),
                                raw => raw,
                            };
                            gathered.set_named(name, key, raw, source);
                        }
                        None => {
                            let path = format!("{section}.{name}.{member}");
                            gathered.problem(source, unknown_named_key(&path, &section));
                        }
                    }
                }
                continue;
            }
            let path = match section.as_str() {
                "" => name.to_string(),
                section => format!("{section}.{name}"),
            };
            // A quoted name with a dot in it is one name, and no key has such a name.
            let key = keys::find(&path).filter(|_| !name.contains('.'));
            match (key, value.get_ref()) {
                (Some(key), value) => gathered.set(key, raw(value), source),
                (None, DeValue::Table(inner)) if !inner.is_empty() || is_section(&path) => tables.push((path, inner)),
                (None, _) if keys::is_named_section(&path) => {
                    gathered.problem(source, format!("invalid {path}: expected a section [{path}.NAME]"));
                }
                (None, _) if is_section(&path) => {
                    gathered.problem(source, format!("invalid {path}: expected a section [{path}]"));
                }
                (None, _) => gathered.problem(source, unknown_key(&path)),
            }
        }
    }
}

fn is_section(path: &str) -> bool {
    keys::is_named_section(path)
        || keys::KEYS.iter().any(|key| key.path.split_once('.').is_some_and(|(section, _)| section == path))
}

fn raw(value: &DeValue<'_>) -> Raw {
    match value {
        DeValue::String(text) => Raw::Text(text.to_string()),
        // What does not fit 64 bits fits no key: as a text it fails with the key's own message.
        DeValue::Integer(integer) => i64::from_str_radix(integer.as_str(), integer.radix())
            .map_or_else(|_| Raw::Text(integer.to_string()), Raw::Integer),
        DeValue::Boolean(value) => Raw::Bool(*value),
        DeValue::Float(float) => Raw::Fraction(float.as_str().to_owned()),
        DeValue::Datetime(_) => Raw::Other("(a date)"),
        DeValue::Table(_) => Raw::Other("(a table)"),
        DeValue::Array(array) => array
            .iter()
            .map(|element| element.get_ref().as_str().map(str::to_owned))
            .collect::<Option<Vec<_>>>()
            .map_or(Raw::Other("(a list with elements other than strings)"), Raw::List),
    }
}

/// The variables that may concern the program, as text.
fn environment(all: &[(OsString, OsString)], gathered: &mut Gathered) -> HashMap<String, String> {
    let mut ours = HashMap::new();
    for (name, value) in all {
        let Some(name) = name.to_str() else { continue };
        let common = name.strip_suffix("_FILE").unwrap_or(name);
        let directory = matches!(name, "HOME" | "XDG_CONFIG_HOME");
        if !name.starts_with("LOGWEIR_") && !directory && !COMMON.iter().any(|(known, _)| *known == common) {
            continue;
        }
        match value.to_str() {
            Some(value) => _ = ours.insert(name.to_owned(), value.to_owned()),
            None if directory => {}
            None => gathered.problem(Source::Environment(name.to_owned()), "the value is not UTF-8"),
        }
    }
    ours
}

/// Name of the variable that sets `key`.
#[must_use]
pub fn variable(key: &Key) -> String {
    variable_at(key.path)
}

fn variable_at(path: &str) -> String {
    format!("LOGWEIR__{}", path.replace('.', "__").to_uppercase())
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
        let path = path_of(name);
        let source = Source::Environment(name.to_owned());
        if let Some((section, key)) = keys::find_named(&path) {
            gathered.set_named(section, key, Raw::Text(environment[name].clone()), source);
            continue;
        }
        let bare = path.strip_suffix("_file");
        if let Some((section, key)) = bare.and_then(keys::find_named).filter(|(_, key)| key.is_secret) {
            let value = name.strip_suffix("_FILE").unwrap_or(name);
            if environment.contains_key(value) {
                gathered
                    .problem(Source::Environment(value.to_owned()), format!("{name} is also set: remove one of them"));
            } else if let Some((raw, source)) = read_secret(name, &environment[name], gathered) {
                gathered.set_named(section, key, raw, source);
            }
            continue;
        }
        let message = match bare.filter(|path| keys::find(path).is_some() || keys::find_named(path).is_some()) {
            Some(bare) => format!("only secrets can be read from a file; set {} instead", variable_at(bare)),
            None => match keys::nearest(&path).filter(|_| !is_named(&path)) {
                Some(key) => format!("unknown variable; did you mean {}?", variable(key)),
                None => unknown_key(&path),
            },
        };
        gathered.problem(source, message);
    }
}

fn is_named(path: &str) -> bool {
    keys::is_named_section(path.split('.').next().unwrap_or_default())
}

/// The path of the key that the variable `name` sets. Names of sections are in lower case, too.
fn path_of(name: &str) -> String {
    name.strip_prefix("LOGWEIR__").unwrap_or(name).replace("__", ".").to_lowercase()
}

/// Reports variables with one underscore that resemble one that the program reads: without that, `LOGWEIR_HTTP__LISTEN`
/// would be ignored silently.
///
/// The namespace is shared: Kubernetes sets `LOGWEIR_SERVICE_HOST` and the like for a service named logweir, and
/// scripts and tests have variables of their own. So whatever does not resemble a name of ours is left alone.
fn report_misspelled_variables(environment: &HashMap<String, String>, gathered: &mut Gathered) {
    let mut names: Vec<&String> = environment.keys().filter(|name| is_unknown(name)).collect();
    names.sort_unstable();
    for name in names {
        if let Some(meant) = resembled(name) {
            let source = Source::Environment(name.clone());
            gathered.problem(source, format!("unknown variable; did you mean {meant}?"));
        }
    }
}

fn is_unknown(name: &str) -> bool {
    let Some(rest) = name.strip_prefix("LOGWEIR_") else { return false };
    // Of Kubernetes and Docker links: LOGWEIR_SERVICE_HOST, LOGWEIR_ADMIN_SERVICE_PORT_HTTP, LOGWEIR_PORT_80_TCP_ADDR.
    let is_link =
        rest.contains("SERVICE_HOST") || rest.contains("SERVICE_PORT") || rest == "PORT" || rest.contains("PORT_");
    !rest.starts_with('_') && !rest.starts_with("TEST_") && !is_link && !OWN.contains(&name)
}

/// The variable that was most likely meant by `name`. Separators are not compared: they are what is often wrong.
fn resembled(name: &str) -> Option<String> {
    const SIMILARITY_MIN: f64 = 0.8;
    let bare = |name: &str| name.replace('_', "").to_uppercase();
    let given = bare(name.strip_prefix("LOGWEIR_")?);
    let own = OWN.into_iter().map(|name| (bare(&name["LOGWEIR_".len()..]), name.to_owned()));
    let keys = keys::KEYS.iter().map(|key| (bare(&key.path.replace('.', "")), variable(key)));
    let secrets = keys::KEYS.iter().filter(|key| key.kind.is_secret());
    let files = secrets.map(|key| (bare(&key.path.replace('.', "")) + "FILE", variable(key) + "_FILE"));
    let named = keys::is_named_section(&name["LOGWEIR_".len()..].split('_').next()?.to_lowercase())
        .then(|| name.replacen("LOGWEIR_", "LOGWEIR__", 1));
    // One wrong letter in a name as short as LOGWEIR_URL, and a key without its section, such as LOGWEIR_LISTEN.
    let short = OWN.into_iter().find(|own| strsim::damerau_levenshtein(own, name) == 1).map(str::to_owned);
    let without_section = || {
        let last = |key: &&keys::Key| bare(key.path.rsplit('.').next().unwrap_or_default()) == given;
        keys::KEYS.iter().find(last).map(variable)
    };
    let named = named.or(short).or_else(without_section);
    let similarity = |known: &str| strsim::normalized_damerau_levenshtein(known, &given);
    let best = own
        .chain(keys)
        .chain(files)
        .map(|(known, variable)| (similarity(&known), variable))
        .max_by(|(a, _), (b, _)| a.total_cmp(b))?;
    (best.0 >= SIMILARITY_MIN).then_some(best.1).or(named)
}

/// Reads `NAME`, or the file that `NAME_FILE` names, which is how secrets are mounted.
fn read_variable(name: &str, key: &'static Key, environment: &HashMap<String, String>, gathered: &mut Gathered) {
    // The common names are often set to nothing, which never means an empty URL.
    let common = !name.starts_with("LOGWEIR__");
    let value = environment.get(name).filter(|value| !(common && value.is_empty()));
    let file_name = format!("{name}_FILE");
    let file = environment.get(&file_name).filter(|path| key.kind.is_secret() && !path.is_empty());
    match (value, file) {
        (Some(_), Some(_)) => {
            let message = format!("{file_name} is also set: remove one of them");
            gathered.problem(Source::Environment(name.to_owned()), message);
        }
        (Some(value), None) => gathered.set(key, Raw::Text(value.clone()), Source::Environment(name.to_owned())),
        (None, Some(path)) => match read_secret(&file_name, path, gathered) {
            Some((raw, source)) => gathered.set(key, raw, source),
            None => gathered.unread.push(key.path),
        },
        (None, None) => {}
    }
}

/// Reads the file at `path`, which the variable `name` names; an empty path is like an unset variable.
fn read_secret(name: &str, path: &str, gathered: &mut Gathered) -> Option<(Raw, Source)> {
    if path.is_empty() {
        return None;
    }
    match read(path.as_ref()) {
        Ok(text) => Some((Raw::Text(text.trim().to_owned()), Source::SecretFile(name.to_owned(), path.into()))),
        Err(error) => {
            gathered.problem(Source::Environment(name.to_owned()), format!("cannot read {path}: {error}"));
            None
        }
    }
}
