//! The command line: the commands, their options before and after the command, and what runs them.

use std::ffi::OsString;
use std::io::{self, Write as _};

use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

use crate::args::ConfigArgs;
use crate::failure::{Failure, Outcome};
use crate::process::VERSION;
use crate::run::RunArgs;
use crate::{database, dead_letters, exit, health, help, journal, parse, produce, query, tail, top, validate, verify};

/// Receive logs and write each acknowledged record exactly once to PostgreSQL, TimescaleDB or SQLite
///
/// Without a command, runs the server with the options of `logweir run`.
#[derive(Debug, Parser)]
#[command(name = "logweir", version = VERSION, disable_help_subcommand = true)]
pub(super) struct Cli {
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
    /// while a server is running. Exits with 1 if a record is missing. PostgreSQL reads the whole table for each lane, about two
    /// seconds per million rows, because the ids have no index, which would slow down every insert.
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
    /// Create, maintain and describe the tables
    #[command(subcommand)]
    Database(database::DatabaseCommand),
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
            Self::Database(command) => command.config_mut(),
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
            Self::Database(command) => database::database(command),
            Self::DeadLetters(command) => dead_letters::dead_letters(command),
            Self::Help(args) => help::help(args, definition()),
            Self::Version => help::version(&definition()),
            Self::Completions(args) => help::completions(args, definition()),
            Self::Man(args) => help::man(args, definition()),
        }
    }
}

/// The command line as it is parsed and described.
fn definition() -> clap::Command {
    help::described(Cli::command())
}

/// Parses the arguments, and runs the command.
pub(super) fn run(arguments: impl IntoIterator<Item = OsString>) -> Outcome {
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
    let mut command = definition();
    let matches = command.try_get_matches_from_mut(arguments)?;
    Cli::from_arg_matches(&matches).map_err(|error| error.format(&mut command))
}

#[cfg(test)]
mod tests {
    use logweir::config::Inputs;

    use super::*;

    fn parsed(arguments: &[&str]) -> Cli {
        parse_arguments(std::iter::once("logweir").chain(arguments.iter().copied()).map(OsString::from)).unwrap()
    }

    fn flags(inputs: Inputs) -> Vec<(&'static str, String, String)> {
        inputs.flags
    }

    #[test]
    fn the_command_line_is_consistent() {
        definition().debug_assert();
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
