//! Options that several commands share: where the configuration comes from, and how much is logged.
//!
//! They are accepted before the command as well: `logweir -c FILE validate` is `logweir validate -c FILE`. Options before
//! the command yield to the same options after it.

use std::path::PathBuf;

use clap::Args;

use crate::failure::Failure;
use logweir::config::Inputs;
use logweir::config::{self, Loaded};

/// A setting by flag: the flag, the key, the value.
type Flag = (&'static str, String, String);

/// Options of every command that reads the configuration.
#[derive(Clone, Debug, Default, Args)]
pub(super) struct ConfigArgs {
    /// Read the configuration from FILE
    ///
    /// Default: $LOGWEIR_CONFIG, else the first of ./logweir.toml, $XDG_CONFIG_HOME/logweir/logweir.toml
    /// (~/.config/logweir/logweir.toml) and /etc/logweir/logweir.toml that exists.
    #[arg(long, short, value_name = "FILE", help_heading = "Configuration")]
    config: Option<PathBuf>,
    /// Set a configuration key, such as batch.linger_ms=20; repeatable
    ///
    /// Takes precedence over environment and file. The process list shows it: set secrets in the environment or in the file.
    /// `logweir validate --reference` lists all keys. Durations have a unit
    /// (500ms, 30s, 5m, 2h, 7d). Sizes are whole numbers with a unit: K, M, G, T and KiB, MiB, GiB, TiB are powers of 1024,
    /// kB, MB, GB, TB are powers of 1000; write 1536MiB, not 1.5GiB.
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_value, help_heading = "Configuration")]
    set: Vec<(String, String)>,
    /// Log warnings and errors only, and omit status messages
    #[arg(long, short, conflicts_with = "verbose", help_heading = "Configuration")]
    pub(super) quiet: bool,
    /// Log debug messages; -vv logs trace messages
    #[arg(long, short, action = clap::ArgAction::Count, help_heading = "Configuration")]
    verbose: u8,
    /// Options before the command.
    #[arg(skip)]
    outer: Vec<Flag>,
}

/// Options of commands that use the journal or the database.
#[derive(Clone, Debug, Default, Args)]
pub(super) struct StoreArgs {
    #[command(flatten)]
    pub(super) config: ConfigArgs,
    /// Data directory, which holds the journal; short for --set data_dir=DIR
    #[arg(long, value_name = "DIR", help_heading = "Configuration")]
    data_dir: Option<String>,
    /// Database URL (postgres://USER@HOST/DATABASE or sqlite:PATH); short for --set database.url=URL
    ///
    /// The process list shows it: set a URL with a password as $DATABASE_URL or in the file $DATABASE_URL_FILE.
    #[arg(long, value_name = "URL", help_heading = "Configuration")]
    database_url: Option<String>,
    /// Cache URL (redis://HOST:PORT or memory:); short for --set cache.url=URL
    #[arg(long, value_name = "URL", help_heading = "Configuration")]
    cache_url: Option<String>,
}

fn key_value(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("expected KEY=VALUE, such as batch.linger_ms=20")?;
    Ok((key.trim().to_owned(), value.to_owned()))
}

/// The flags that have a value, as settings.
pub(super) fn flags<const N: usize>(values: [(&'static str, &str, Option<&String>); N]) -> Vec<Flag> {
    values.into_iter().filter_map(|(flag, key, value)| Some((flag, key.to_owned(), value?.clone()))).collect()
}

impl ConfigArgs {
    /// Takes over what was given before the command.
    pub(super) fn inherit(&mut self, outer: &StoreArgs) {
        self.outer = outer.set_flags();
        self.config = self.config.take().or_else(|| outer.config.config.clone());
        self.quiet |= outer.config.quiet;
        self.verbose += outer.config.verbose;
    }

    /// The layers; `own` are the command's own flags, which take precedence over `--set`.
    pub(super) fn inputs(&self, own: impl IntoIterator<Item = Flag>) -> Inputs {
        let set = self.set.iter().map(|(key, value)| ("--set", key.clone(), value.clone()));
        let level = match (self.quiet, self.verbose) {
            (true, _) => Some(("--quiet", "warn")),
            (_, 0) => None,
            (_, 1) => Some(("--verbose", "debug")),
            _ => Some(("--verbose", "trace")),
        };
        let level = level.map(|(flag, level)| (flag, "log.level".to_owned(), level.to_owned()));
        let flags = self.outer.iter().cloned().chain(set).chain(own).chain(level).collect();
        Inputs { file: self.config.clone(), environment: std::env::vars_os().collect(), flags }
    }

    /// The configuration, or every mistake in it.
    pub(super) fn load(&self) -> Result<Loaded, Failure> {
        config::load(&self.inputs([])).map_err(Failure::config)
    }
}

impl StoreArgs {
    fn own_flags(&self) -> Vec<Flag> {
        flags([
            ("--data-dir", "data_dir", self.data_dir.as_ref()),
            ("--database-url", "database.url", self.database_url.as_ref()),
            ("--cache-url", "cache.url", self.cache_url.as_ref()),
        ])
    }

    /// All settings, in rising precedence.
    fn set_flags(&self) -> Vec<Flag> {
        let set = self.config.set.iter().map(|(key, value)| ("--set", key.clone(), value.clone()));
        set.chain(self.own_flags()).collect()
    }

    /// The layers; `own` are the command's own flags.
    pub(super) fn inputs(&self, own: impl IntoIterator<Item = Flag>) -> Inputs {
        self.config.inputs(self.own_flags().into_iter().chain(own))
    }

    /// The configuration, or every mistake in it.
    pub(super) fn load(&self) -> Result<Loaded, Failure> {
        config::load(&self.inputs([])).map_err(Failure::config)
    }
}
