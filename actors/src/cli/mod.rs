//! The command line: what was typed becomes a call, and how it went becomes an exit code.
//!
//! - Results go to standard output, everything said about them to standard error.
//! - A reader that goes away (`logweir journal dump | head`) is not an error.
//! - The configuration is checked as a whole before a command does anything.

pub mod exit;
mod parse;
mod validate;
mod health;
pub mod produce;
pub mod verify;
mod journal;
mod dead_letters;
mod remote;
mod print;
mod query;
mod tail;
mod top;

use std::ffi::OsString;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Args, Parser, Subcommand};

use crate::VERSION;
use crate::config::layers::Inputs;
use crate::config::{self, Database, DatabaseUrl, Loaded, Role};
use crate::store::{self, LogStore, StoreError};

/// Logs into PostgreSQL, each acknowledged record exactly once.
#[derive(Debug, Parser)]
#[command(name = "logweir", version = VERSION, args_conflicts_with_subcommands = true, after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: RunArgs,
}

const EXIT_CODES: &str = "Without a command it runs. Exit codes: 0 done, 1 it does not hold, 64 usage, 66 no input, \
                          69 unavailable, 70 too many restarts, 74 disk failed, 75 fenced, 78 bad configuration.";

#[derive(Debug, Subcommand)]
enum Command {
    /// Take records in and bring them into the database, until SIGTERM.
    Run(RunArgs),
    /// Check the configuration, touch nothing.
    Validate(validate::ValidateArgs),
    /// Ask a running server on this machine whether it is well: exit 0 or 1.
    Health(health::HealthArgs),
    /// Show what each line of standard input becomes, store nothing.
    Parse(parse::ParseArgs),
    /// Send a file, standard input or generated load to a server.
    Produce(produce::ProduceArgs),
    /// Prove that journal and database agree, or name what is missing.
    Verify(verify::VerifyArgs),
    /// Show records that a running server has.
    Query(query::QueryArgs),
    /// Show records as they come.
    Tail(tail::TailArgs),
    /// Watch the stages, lanes and the journal of a running server.
    Top(top::TopArgs),
    /// Look into a journal directory, mend it or empty it.
    #[command(subcommand)]
    Journal(journal::JournalCommand),
    /// The records that the database would not take.
    #[command(subcommand)]
    DeadLetters(dead_letters::DeadLettersCommand),
}

/// Where the configuration comes from.
#[derive(Clone, Debug, Default, Args)]
pub struct ConfigArgs {
    /// The configuration file [default: $LOGWEIR_CONFIG, then ./logweir.toml if it is there]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Set a key, such as batch.linger_ms=20
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_value)]
    set: Vec<(String, String)>,
    /// Shorthand for --set data_dir=…
    #[arg(long, value_name = "DIR")]
    data_dir: Option<String>,
    /// Shorthand for --set database.url=…
    #[arg(long, value_name = "URL")]
    database_url: Option<String>,
    /// Shorthand for --set cache.url=…
    #[arg(long, value_name = "URL")]
    cache_url: Option<String>,
}

#[derive(Clone, Debug, Default, Args)]
struct RunArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Shorthand for --set role=…: all, processor or gateway
    #[arg(long, value_name = "ROLE")]
    role: Option<String>,
    /// Shorthand for --set http.listen=…
    #[arg(long, value_name = "IP:PORT")]
    listen: Option<String>,
    /// Shorthand for --set admin.listen=…
    #[arg(long, value_name = "IP:PORT")]
    admin_listen: Option<String>,
    /// Make up records of a few services, so many per second
    #[arg(long, value_name = "RATE")]
    demo: Option<String>,
    /// Read records from standard input; its end drains and exits
    #[arg(long)]
    stdin: bool,
}

fn key_value(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("write KEY=VALUE")?;
    Ok((key.trim().to_owned(), value.to_owned()))
}

impl ConfigArgs {
    /// With the shorthands above `--set`: they are the more particular word.
    fn inputs(&self) -> Inputs {
        let mut flags: Vec<_> = self.set.iter().map(|(key, value)| ("--set", key.clone(), value.clone())).collect();
        for (flag, path, value) in [
            ("--data-dir", "data_dir", &self.data_dir),
            ("--database-url", "database.url", &self.database_url),
            ("--cache-url", "cache.url", &self.cache_url),
        ] {
            flags.extend(value.iter().map(|value| (flag, path.to_owned(), value.clone())));
        }
        Inputs { file: self.config.clone(), environment: std::env::vars_os().collect(), flags }
    }

    /// The configuration, or every mistake in it.
    fn load(&self) -> Result<Loaded, Failure> {
        config::load(&self.inputs()).map_err(Failure::config)
    }
}

impl RunArgs {
    fn inputs(&self) -> Inputs {
        let mut inputs = self.config.inputs();
        let stdin = self.stdin.then(|| "true".to_owned());
        for (flag, path, value) in [
            ("--role", "role", &self.role),
            ("--listen", "http.listen", &self.listen),
            ("--admin-listen", "admin.listen", &self.admin_listen),
            ("--demo", "sources.demo_rate", &self.demo),
            ("--stdin", "sources.stdin", &stdin),
        ] {
            inputs.flags.extend(value.iter().map(|value| (flag, path.to_owned(), value.clone())));
        }
        inputs
    }

    fn run(&self) -> Outcome {
        let loaded = config::load(&self.inputs()).map_err(Failure::config)?;
        if loaded.config.role != Role::Gateway {
            loaded.check_data_dir().map_err(Failure::config)?;
        }
        Ok(crate::run::run(loaded.config))
    }
}

/// How a command went.
type Outcome = Result<ExitCode, Failure>;

/// Why a command could not do it.
#[derive(Debug)]
pub enum Failure {
    /// Standard output took no more.
    Output(io::Error),
    /// With the exit code and what to tell the operator.
    Told(u8, String),
}

impl Failure {
    fn told(code: u8, message: impl std::fmt::Display) -> Self {
        Self::Told(code, message.to_string())
    }

    fn config(error: config::ConfigError) -> Self {
        Self::told(exit::CONFIG, error)
    }

    fn store(error: StoreError) -> Self {
        Self::told(exit::UNAVAILABLE, format!("the store: {error}"))
    }
}

/// Only writing to standard output fails with a bare [`io::Error`]; everything else says what it was about.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Output(error)
    }
}

/// Parses, dispatches, and turns the outcome into an exit code.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            let code = if error.use_stderr() { exit::USAGE } else { exit::OK };
            // Nothing can be said about standard output or error being closed.
            let _ = error.print();
            return code.into();
        }
    };
    let outcome = match cli.command {
        None => cli.run.run(),
        Some(Command::Run(args)) => args.run(),
        Some(Command::Validate(args)) => validate::validate(&args),
        Some(Command::Health(args)) => health::health(&args),
        Some(Command::Parse(args)) => parse::parse(&args),
        Some(Command::Produce(args)) => produce::produce(&args),
        Some(Command::Verify(args)) => verify::verify(&args),
        Some(Command::Query(args)) => query::query(&args),
        Some(Command::Tail(args)) => tail::tail(&args),
        Some(Command::Top(args)) => top::top(&args),
        Some(Command::Journal(command)) => journal::journal(&command),
        Some(Command::DeadLetters(command)) => dead_letters::dead_letters(&command),
    };
    match outcome {
        Ok(code) => code,
        Err(Failure::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => exit::OK.into(),
        Err(Failure::Output(error)) => complain(exit::DISK, &format!("standard output: {error}")),
        Err(Failure::Told(code, message)) => complain(code, &message),
    }
}

fn complain(code: u8, message: &str) -> ExitCode {
    let _ = writeln!(io::stderr(), "logweir: {message}");
    code.into()
}

/// The configured store, which a server has made: the operator's commands bring no schema up to date and make no file.
fn open_store(database: &Database) -> Result<Arc<dyn LogStore>, Failure> {
    if let DatabaseUrl::Sqlite(path) = &database.url
        && !path.is_file()
    {
        let message = format!("the store: there is no file {} (database.url)", path.display());
        return Err(Failure::told(exit::UNAVAILABLE, message));
    }
    Ok(store::open(database).map_err(Failure::store)?.store())
}

/// Runs `future` on this thread: the operator's commands do one thing after another.
fn block_on<T>(future: impl Future<Output = T>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::told(exit::UNAVAILABLE, format!("cannot start a runtime: {error}")))?;
    Ok(runtime.block_on(future))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_contradicts_itself_nowhere() {
        Cli::command().debug_assert();
    }

    #[test]
    fn shorthands_go_above_set_and_set_goes_in_order() {
        let cli =
            Cli::try_parse_from(["logweir", "--set", "lanes=3", "--listen", "a", "--set", "lanes=4", "--demo", "9"]);
        let flags = cli.unwrap().run.inputs().flags;
        let flags: Vec<_> = flags.iter().map(|(flag, path, value)| (*flag, path.as_str(), value.as_str())).collect();
        assert_eq!(
            flags,
            [
                ("--set", "lanes", "3"),
                ("--set", "lanes", "4"),
                ("--listen", "http.listen", "a"),
                ("--demo", "sources.demo_rate", "9"),
            ]
        );
    }
}
