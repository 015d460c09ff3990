//! The `logweir` program: the command line. Parses arguments, runs a command, and turns its outcome into an exit code.
//!
//! - Results go to standard output, status messages and errors to standard error.
//! - A reader that closes the pipe (`logweir journal dump | head`) is not an error.
//! - The whole configuration is validated before a command does anything.
//!
//! # Code map
//!
//! Each module uses only those above it.
//!
//! ```text
//! exit                exit codes, and the list that `--help` prints
//! last_message        the end of standard error, whose reader may stand still
//! failure             the outcome of a command, as an exit code and a message
//! terminal            whether output is colored
//! print, output       a record as text; output formats, colors, JSON, records one by one
//! args                options that several commands share: the configuration, the store
//! log                 the log and the messages of a server: standard error through a bounded queue
//! process             runs a command that needs an engine: fault points, the log, the exit code
//! store               the database, for commands without a server
//! remote              requests to a running server: its address, token and certificates
//! help                `help`, `version`, `completions`, `man`; the topics of docs/
//! run, validate       the server; checks and prints the configuration
//! health, parse       the health check; shows how lines would be parsed
//! journal, verify     checks, dumps, repairs and drains a journal; compares journal and database
//! database            creates, maintains and describes the tables
//! dead_letters        lists, replays and purges rejected records
//! query_words         the words of a query
//! tail, query         prints records as they arrive; searches records
//! produce/            sends files, standard input or generated records, and measures the acknowledgments
//! top/                shows the pipeline of a server on a terminal
//! cli                 all commands and their options
//! ```

#![forbid(unsafe_code)]

mod exit;
mod last_message;
mod failure;
mod terminal;
mod print;
mod output;
mod args;
mod log;
mod process;
mod store;
mod remote;
mod help;
mod run;
mod validate;
mod health;
mod parse;
mod journal;
mod verify;
mod database;
mod dead_letters;
mod query_words;
mod tail;
mod query;
mod produce;
mod top;
mod cli;

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    failure::exit_code(cli::run(std::env::args_os()))
}
