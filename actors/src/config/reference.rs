//! The table of keys as people read it: the reference of the README, and the configuration that holds.

use std::fmt::Write as _;

use super::Loaded;
use super::keys::{Fallback, KEYS, Key, Unit};
use super::layers::{Source, variable};
use super::value::{allowed, quote, show, show_number};
use crate::alerts::rule::Rule;

/// Every key as a table of Markdown. The README holds the same text; a test compares them.
#[must_use]
pub fn markdown() -> String {
    let mut table = String::from("| Key | Default | Takes | What for |\n|---|---|---|---|\n");
    for key in KEYS {
        let (path, fallback, takes, doc) = (key.path, fallback(key), allowed(&key.kind), key.doc);
        writeln!(table, "| `{path}` | {fallback} | {takes} | {doc} |").expect("a String takes all");
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

/// The configuration that holds, as TOML, each line with its source. Secrets are hidden, so this is for reading; without
/// secrets it loads as the same configuration.
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
            writeln!(text, "\n[{section}]").expect("a String takes all");
        }
        let source = loaded.origins.get(key.path).unwrap_or(&Source::Default);
        writeln!(text, "{line:width$}  # {source}").expect("a String takes all");
    }
    for format in &loaded.config.parse.custom {
        writeln!(text, "\n[formats.{}]\npattern = {}", format.name, quote(format.pattern()))
            .expect("a String takes all");
    }
    for rule in &loaded.config.alerts {
        writeln!(text, "\n{}", alert(rule)).expect("a String takes all");
    }
    text
}

/// An alert as the file could say it, with its webhook hidden.
fn alert(rule: &Rule) -> String {
    let mut text = format!("[alerts.{}]\nquery = {}\n", rule.name, quote(&rule.query));
    let mut put = |name: &str, value: String| writeln!(text, "{name} = {value}").expect("a String takes all");
    put("measure", quote(rule.measure.name()));
    if let Some(of) = &rule.of {
        put("of", quote(of));
    }
    put(rule.threshold.name(), quote(&rule.threshold.limit().to_string()));
    for (name, millis) in
        [("window", rule.window_ms), ("every", rule.every_ms), ("grace", rule.grace_ms), ("for", rule.for_ms)]
    {
        put(name, quote(&show_number(millis, Unit::Millis)));
    }
    if rule.webhook.is_some() {
        text.push_str("# webhook = \"***\"\n");
    }
    text
}

fn line(key: &Key, loaded: &Loaded) -> String {
    let name = key.path.split_once('.').map_or(key.path, |(_, name)| name);
    // A mode that nobody chose is not a mode that was said explicitly.
    let comment = match key.path {
        "auth.mode" if !loaded.origins.contains_key("auth.mode") => "# ",
        _ => "",
    };
    format!("{comment}{name} = {}", show(key, &loaded.config))
}

/// What stands above the table in `logweir validate --reference`.
#[must_use]
pub fn preface() -> String {
    let example = KEYS.iter().find(|key| key.path == "batch.linger_ms").map(variable).unwrap_or_default();
    format!(
        "Each key can be set in the file (`--config F`, `$LOGWEIR_CONFIG` or `./logweir.toml`), by environment \
         (`{example}=20`; lists with commas; secrets also as `…_FILE`) and by flag (`--set batch.linger_ms=20`); the later wins. \
         Sizes take `KiB`, `MiB`, `GiB`; times take `ms`, `s`, `m`, `h`, `d`.\n"
    )
}
