//! The `logweir` program: the command line. Parses arguments, runs a command, and turns its outcome into an exit code.
//!
//! - Results go to standard output, status messages and errors to standard error.
//! - A reader that closes the pipe (`logweir journal dump | head`) is not an error.
//! - The whole configuration is validated before a command does anything.

mod exit;
mod args;
mod process;
mod terminal;
mod output;
mod help;
mod parse;
mod validate;
mod health;
mod produce;
mod verify;
mod journal;
mod dead_letters;
mod remote;
mod print;
mod query;
mod query_words;
mod tail;
mod top;

use std::ffi::OsString;
use std::io::{self, Write as _};
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Args, FromArgMatches as _, Parser, Subcommand};

use self::args::{ConfigArgs, StoreArgs};
use logweir::config::Inputs;
use logweir::config::{self, Role};
use logweir_store::{self as store, LogStore, StoreError};
use logweir_store::{Database, DatabaseUrl};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Version and build, as printed by `--version`.
const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (", env!("LOGWEIR_BUILD"), ")");

/// Receive logs and write each acknowledged record exactly once to PostgreSQL, TimescaleDB or SQLite
///
/// Without a command, runs the server with the options of `logweir run`.
#[derive(Debug, Parser)]
#[command(name = "logweir", version = VERSION, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: RunArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the server until SIGTERM or SIGINT
    ///
    /// The first signal starts the shutdown: accepted records are written to the database until shutdown.deadline_ms has passed.
    /// A second signal ends that at once; the remaining records stay in the journal and are written after the next start.
    Run(RunArgs),
    /// Check the configuration without touching anything
    ///
    /// Reports every error with its file and line, and exits with 78 if there are any.
    Validate(validate::ValidateArgs),
    /// Check whether the server on this machine is healthy
    ///
    /// Exits with 0 if it is healthy, otherwise with 1. Queries the admin port, as Kubernetes probes do.
    Health(health::HealthArgs),
    /// Show how lines on standard input would be parsed, without storing them
    Parse(parse::ParseArgs),
    /// Send files, standard input or generated load to a server
    Produce(produce::ProduceArgs),
    /// Check that the journal and the database agree, and report missing records
    ///
    /// Compares, for each lane, the records accepted by the journal with those in the database and in the backlog. Can be used
    /// while a server is running. Exits with 1 if a record is missing.
    Verify(verify::VerifyArgs),
    /// Search the records of a server
    Query(query::QueryArgs),
    /// Print records as they arrive
    ///
    /// Reconnects after lost connections and server restarts, without a gap as long as the server's journal still contains the
    /// records.
    Tail(tail::TailArgs),
    /// Monitor the stages, lanes and journal of a server
    Top(top::TopArgs),
    /// Inspect, repair or drain a journal directory
    #[command(subcommand)]
    Journal(journal::JournalCommand),
    /// List, replay or purge records that the database rejected
    #[command(subcommand)]
    DeadLetters(dead_letters::DeadLettersCommand),
    /// Print help for a command or a topic
    Help(help::HelpArgs),
    /// Print the version
    Version,
    /// Print a completion script for a shell
    ///
    /// For bash: logweir completions bash > ~/.local/share/bash-completion/completions/logweir. For zsh, write it to a file _logweir
    /// in a directory of $fpath; for fish, to ~/.config/fish/completions/logweir.fish.
    Completions(help::CompletionsArgs),
    /// Print a manual page, or write those of all commands to a directory
    ///
    /// To read one: logweir man query | man -l -
    Man(help::ManArgs),
}

#[derive(Clone, Debug, Default, Args)]
struct RunArgs {
    /// Role of this process: all, processor or gateway; short for --set role=ROLE
    #[arg(long, value_name = "ROLE")]
    role: Option<String>,
    /// Address of the data port: ingestion, query API and web UI; short for --set http.listen=ADDRESS
    #[arg(long, value_name = "IP:PORT")]
    listen: Option<String>,
    /// Address of the admin port: probes and metrics; short for --set admin.listen=ADDRESS
    #[arg(long, value_name = "IP:PORT")]
    admin_listen: Option<String>,
    // As in `produce`: --demo is a switch, --rate its records per second.
    /// Generate records of a few fictional services
    #[arg(long)]
    demo: bool,
    /// Number of records to generate per second with --demo [default: 100]
    #[arg(long, value_name = "N", requires = "demo")]
    rate: Option<String>,
    /// Read records from standard input; at the end of the input, drain and exit
    #[arg(long)]
    stdin: bool,
    #[command(flatten)]
    store: StoreArgs,
}

/// Records per second of `--demo`.
const DEMO_RATE: &str = "100";

impl RunArgs {
    fn inputs(&self) -> Inputs {
        let stdin = self.stdin.then(|| "true".to_owned());
        let rate = self.demo.then(|| self.rate.as_deref().unwrap_or(DEMO_RATE).to_owned());
        self.store.inputs(args::flags([
            ("--role", "role", self.role.as_ref()),
            ("--listen", "http.listen", self.listen.as_ref()),
            ("--admin-listen", "admin.listen", self.admin_listen.as_ref()),
            (if self.rate.is_some() { "--rate" } else { "--demo" }, "sources.demo_rate", rate.as_ref()),
            ("--stdin", "sources.stdin", stdin.as_ref()),
        ]))
    }

    fn run(&self) -> Outcome {
        let loaded = config::load(&self.inputs()).map_err(Failure::config)?;
        if loaded.config.role != Role::Gateway {
            loaded.check_data_dir().map_err(Failure::config)?;
        }
        Ok(crate::process::run(loaded.config))
    }

    /// The first option that is set and that only `run` has.
    fn own_option(&self) -> Option<&'static str> {
        let own = [
            ("--role", self.role.is_some()),
            ("--listen", self.listen.is_some()),
            ("--admin-listen", self.admin_listen.is_some()),
            ("--demo", self.demo),
            ("--stdin", self.stdin),
        ];
        own.into_iter().find_map(|(option, set)| set.then_some(option))
    }
}

impl Command {
    /// The options that are also accepted before the command.
    fn config_mut(&mut self) -> Option<&mut ConfigArgs> {
        Some(match self {
            Self::Run(args) => &mut args.store.config,
            Self::Validate(args) => &mut args.store.config,
            Self::Health(args) => &mut args.config,
            Self::Parse(args) => &mut args.config,
            Self::Produce(args) => &mut args.remote.config,
            Self::Verify(args) => &mut args.store.config,
            Self::Query(args) => &mut args.remote.config,
            Self::Tail(args) => &mut args.remote.config,
            Self::Top(args) => &mut args.remote.config,
            Self::Journal(command) => command.config_mut(),
            Self::DeadLetters(command) => command.config_mut(),
            Self::Help(_) | Self::Version | Self::Completions(_) | Self::Man(_) => return None,
        })
    }

    fn run(&self) -> Outcome {
        match self {
            Self::Run(args) => args.run(),
            Self::Validate(args) => validate::validate(args),
            Self::Health(args) => health::health(args),
            Self::Parse(args) => parse::parse(args),
            Self::Produce(args) => produce::produce(args),
            Self::Verify(args) => verify::verify(args),
            Self::Query(args) => query::query(args),
            Self::Tail(args) => tail::tail(args),
            Self::Top(args) => top::top(args),
            Self::Journal(command) => journal::journal(command),
            Self::DeadLetters(command) => dead_letters::dead_letters(command),
            Self::Help(args) => help::help(args),
            Self::Version => help::version(),
            Self::Completions(args) => help::completions(args),
            Self::Man(args) => help::man(args),
        }
    }
}

/// Outcome of a command.
type Outcome = Result<ExitCode, Failure>;

/// Why a command failed.
#[derive(Debug)]
pub enum Failure {
    /// Standard output could not be written.
    Output(io::Error),
    /// An exit code and a message for the user.
    Message(u8, String),
}

impl Failure {
    fn new(code: u8, message: impl std::fmt::Display) -> Self {
        Self::Message(code, message.to_string())
    }

    fn config(error: config::ConfigError) -> Self {
        Self::new(exit::CONFIG, error)
    }

    fn store(error: StoreError) -> Self {
        Self::new(exit::UNAVAILABLE, format!("database: {error}"))
    }
}

/// Only writing to standard output fails with a bare [`io::Error`]; every other error gets a message with its context.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Output(error)
    }
}

/// Parses the arguments, runs the command, and returns its exit code.
fn main() -> ExitCode {
    match try_main(std::env::args_os()) {
        Ok(code) => code,
        Err(Failure::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => exit::OK.into(),
        Err(Failure::Output(error)) => complain(exit::DISK, &format!("cannot write to standard output: {error}")),
        Err(Failure::Message(code, message)) => complain(code, &message),
    }
}

fn try_main(arguments: impl IntoIterator<Item = OsString>) -> Outcome {
    let cli = match parse_arguments(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            // --help and --version are results: a full disk is an error.
            let printed = error.print().and_then(|()| io::stdout().flush());
            if error.use_stderr() {
                return Ok(exit::USAGE.into());
            }
            printed?;
            return Ok(exit::OK.into());
        }
    };
    let Some(mut command) = cli.command else { return cli.run.run() };
    if !matches!(command, Command::Run(_))
        && let Some(option) = cli.run.own_option()
    {
        return Err(Failure::new(exit::USAGE, format!("{option} is an option of `logweir run` only")));
    }
    if let Command::Run(args) = &mut command {
        args.inherit(&cli.run);
    }
    if let Some(config) = command.config_mut() {
        config.inherit(&cli.run.store);
    }
    command.run()
}

fn parse_arguments(arguments: impl IntoIterator<Item = OsString>) -> Result<Cli, clap::Error> {
    let mut command = help::command();
    let matches = command.try_get_matches_from_mut(arguments)?;
    Cli::from_arg_matches(&matches).map_err(|error| error.format(&mut command))
}

impl RunArgs {
    /// Takes over the options of `run` that were given before the command.
    fn inherit(&mut self, outer: &Self) {
        let inherit = |own: &mut Option<String>, outer: &Option<String>| *own = own.take().or_else(|| outer.clone());
        inherit(&mut self.role, &outer.role);
        inherit(&mut self.listen, &outer.listen);
        inherit(&mut self.admin_listen, &outer.admin_listen);
        inherit(&mut self.rate, &outer.rate);
        self.demo |= outer.demo;
        self.stdin |= outer.stdin;
    }
}

fn complain(code: u8, message: &str) -> ExitCode {
    let _ = writeln!(io::stderr(), "logweir: {message}");
    code.into()
}

/// The configured store, which a server must have created: these commands neither migrate the schema nor create a file.
fn open_store(database: &Database) -> Result<Arc<dyn LogStore>, Failure> {
    if let DatabaseUrl::Sqlite(path) = &database.url
        && !path.is_file()
    {
        let message =
            format!("database file {} does not exist: start the server first, or set database.url", path.display());
        return Err(Failure::new(exit::UNAVAILABLE, message));
    }
    Ok(store::open(database).map_err(Failure::store)?.store())
}

/// Runs `future` on this thread.
fn block_on<T>(future: impl Future<Output = T>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(exit::UNAVAILABLE, format!("cannot start a runtime: {error}")))?;
    Ok(runtime.block_on(future))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(arguments: &[&str]) -> Cli {
        parse_arguments(std::iter::once("logweir").chain(arguments.iter().copied()).map(OsString::from)).unwrap()
    }

    fn flags(inputs: Inputs) -> Vec<(&'static str, String, String)> {
        inputs.flags
    }

    #[test]
    fn the_command_line_is_consistent() {
        help::command().debug_assert();
    }

    #[test]
    fn shorthands_take_precedence_over_set() {
        let cli = parsed(&["--set", "lanes=3", "--listen", "a", "--set", "lanes=4", "--demo", "--rate", "9", "-v"]);
        assert_eq!(
            flags(cli.run.inputs()),
            [
                ("--set", "lanes", "3"),
                ("--set", "lanes", "4"),
                ("--listen", "http.listen", "a"),
                ("--rate", "sources.demo_rate", "9"),
                ("--verbose", "log.level", "debug"),
            ]
            .map(|(flag, key, value)| (flag, key.to_owned(), value.to_owned()))
        );
    }

    #[test]
    fn options_before_a_command_yield_to_those_after_it() {
        let Cli { command, run } =
            parsed(&["-c", "a", "--set", "lanes=3", "--data-dir", "x", "validate", "--data-dir", "y"]);
        let Some(Command::Validate(mut args)) = command else { panic!("validate") };
        args.store.config.inherit(&run.store);
        let inputs = args.store.inputs([]);
        assert_eq!(inputs.file.as_deref(), Some("a".as_ref()));
        assert_eq!(
            flags(inputs),
            [("--set", "lanes", "3"), ("--data-dir", "data_dir", "x"), ("--data-dir", "data_dir", "y")]
                .map(|(flag, key, value)| (flag, key.to_owned(), value.to_owned()))
        );
    }
}
