//! Loading: layers are gathered, parsed, derived and checked.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use logweir_formats::CustomFormat;
use logweir_store::Database;
use rustix::fs::{Access, AtFlags, CWD, accessat};

use super::alert_rule::{Measure, RULES_MAX, Rule, Threshold};
use super::check;
use super::defaults::defaults;
use super::keys::KEYS;
use super::layers::{self, Gathered, Inputs, Section};
use super::problem::{ConfigError, Problem, Source};
use super::raw::Raw;
use super::settings::Config;
use super::value;

/// A valid configuration and the source of each value.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Loaded {
    /// Configuration.
    pub config: Config,
    /// Source of each value by path; a value without an entry is a default.
    pub origins: BTreeMap<&'static str, Source>,
}

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
                remember_file(key.path, &setting.source, &mut config.database);
                origins.insert(key.path, setting.source);
                if !file_unread {
                    unread.remove(key.path);
                }
            }
            Err(message) => {
                let value = setting.raw.printed().filter(|_| !key.kind.is_secret());
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

/// Remembers the file that a URL of the database was read from: it is read again for each connection.
fn remember_file(path: &str, source: &Source, database: &mut Database) {
    let file = match source {
        Source::SecretFile(_, file) => Some(file.clone()),
        _ => None,
    };
    match path {
        "database.url" => database.url_file = file,
        "database.read_url" => database.read_url_file = file,
        _ => {}
    }
}

/// Maximum number of custom formats: each makes every line slower.
const CUSTOM_MAX: usize = 32;

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
                Err(error) => report(format!("{key}.pattern"), Some(format!("{pattern:?}")), at, error.to_string()),
            }
        } else {
            let message = "expected a regular expression as a string";
            report(format!("{key}.pattern"), pattern.and_then(Raw::printed), at, message.into());
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
                    let value = given.and_then(|(raw, _)| raw.printed()).filter(|_| member != "webhook");
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
        errors.push(("webhook".into(), format!("expected {}", value::WEBHOOK)));
    }
    errors
}

impl Config {
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
                let value = raw.printed().filter(|_| !key.kind.is_secret());
                problems.push(Problem { key: key.path.into(), value, source: Source::Program, message });
                unread.insert(key.path);
            }
        }
        if config.parse.custom.len() > CUSTOM_MAX {
            problems.extend(ConfigError::at("formats", format!("expected at most {CUSTOM_MAX} formats")).0);
        }
        let sections = config.alerts.iter().map(|rule| {
            let members = rule.members().into_iter();
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
    accessat(CWD, path, Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS).is_ok()
}
