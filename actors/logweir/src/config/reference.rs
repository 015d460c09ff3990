//! The table of keys for people: the generated reference, and the effective configuration.

use std::fmt::Write as _;

use super::alert_rule::Rule;
use super::keys::{Fallback, KEYS, Key, NAMED_KEYS};
use super::layers::variable;
use super::load::Loaded;
use super::problem::Source;
use super::raw::Raw;
use super::value::{allowed, quote, show};

/// All keys as a Markdown table. `deploy/configuration.md` contains the same text; a test compares them.
#[must_use]
pub fn markdown() -> String {
    let mut table = String::from("| Key | Default | Type | Description |\n|---|---|---|---|\n");
    for key in KEYS {
        let (path, fallback, allowed, description) = (key.path, fallback(key), allowed(&key.kind), key.description);
        writeln!(table, "| `{path}` | {fallback} | {allowed} | {description} |").expect("writing to a String");
    }
    for key in NAMED_KEYS {
        let (path, fallback, allowed, description) = (key.path(), key.fallback, key.allowed, key.description);
        writeln!(table, "| `{path}` | {fallback} | {allowed} | {description} |").expect("writing to a String");
    }
    table
}

fn fallback(key: &Key) -> String {
    match key.fallback {
        Fallback::Value(text) => format!("`{text}`"),
        Fallback::Derived(words) => words.into(),
        Fallback::Unset => String::new(),
    }
}

/// The effective configuration as TOML, each line with its source. Secrets are hidden; without any, the text loads as
/// the same configuration.
#[must_use]
pub fn effective(loaded: &Loaded) -> String {
    let lines: Vec<(&Key, String)> = KEYS.iter().map(|key| (key, line(key, loaded))).collect();
    let width = lines.iter().map(|(_, line)| line.chars().count()).max().unwrap_or(0).min(60);
    let mut text = String::new();
    let mut section = "";
    for (key, line) in lines {
        if let Some((of, _)) = key.path.split_once('.')
            && of != section
        {
            section = of;
            writeln!(text, "\n[{section}]").expect("writing to a String");
        }
        let source = loaded.origins.get(key.path).unwrap_or(&Source::Default);
        writeln!(text, "{line:width$}  # {source}").expect("writing to a String");
    }
    for format in &loaded.config.parse.custom {
        writeln!(text, "\n[formats.{}]\npattern = {}", format.name, quote(format.pattern()))
            .expect("writing to a String");
    }
    for rule in &loaded.config.alerts {
        writeln!(text, "\n{}", alert(rule)).expect("writing to a String");
    }
    text
}

/// An alert as TOML, with its webhook hidden.
fn alert(rule: &Rule) -> String {
    let mut text = format!("[alerts.{}]\n", rule.name);
    for (name, raw) in rule.members() {
        match raw {
            Raw::Text(_) if name == "webhook" => text.push_str("# webhook = \"***\"\n"),
            Raw::Text(value) => writeln!(text, "{name} = {}", quote(&value)).expect("writing to a String"),
            _ => {}
        }
    }
    text
}

fn line(key: &Key, loaded: &Loaded) -> String {
    let name = key.path.split_once('.').map_or(key.path, |(_, name)| name);
    // A derived value that was not set explicitly must not become explicit when the text is loaded.
    let comment = match key.path {
        "auth.mode" | "lanes" if !loaded.origins.contains_key(key.path) => "# ",
        _ => "",
    };
    format!("{comment}{name} = {}", show(key, &loaded.config))
}

/// The text above the table in `logweir validate --reference`.
#[must_use]
pub fn preface() -> String {
    let example = KEYS.iter().find(|key| key.path == "batch.linger_ms").map(variable).unwrap_or_default();
    format!(
        "Each key can be set in the file, by an environment variable and by a flag. Later sources override earlier ones:\n\
         \n\
         1. The file: `--config FILE`, `$LOGWEIR_CONFIG`, or the first that exists of `./logweir.toml`, \
         `$XDG_CONFIG_HOME/logweir/logweir.toml` (`~/.config/logweir/logweir.toml`) and `/etc/logweir/logweir.toml`.\n\
         2. `DATABASE_URL`, `REDIS_URL` and `LOGWEIR_LOG`.\n\
         3. Environment variables such as `{example}=20`. Lists are separated by commas. Secrets can also be read from a file, \
         with `_FILE` after the name. `NAME` of a format or an alert is in lower case: `LOGWEIR__FORMATS__TILL__PATTERN` \
         sets `formats.till.pattern`.\n\
         4. Flags: `--set batch.linger_ms=20`.\n\
         \n\
         Sizes are whole numbers of bytes, with an optional unit: `KiB`, `MiB`, `GiB`, `TiB` are powers of 1024 (as are `k`, `M`, \
         `G`, `T`), `kB`, `MB`, `GB`, `TB` powers of 1000. Times are whole numbers with `ms`, `s`, `m`, `h` or `d`; a plain \
         number is in the unit that the key ends with. Write `1536MiB` instead of `1.5GiB`.\n"
    )
}
