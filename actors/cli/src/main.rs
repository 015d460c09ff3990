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
//! failure             the outcome of a command, as an exit code and a message
//! terminal            whether output is colored
//! print, output       a record as text; output formats, colors, JSON, records one by one
//! args                options that several commands share: the configuration, the store
//! log                 the log and the messages of a server: standard error through a bounded queue
//! process             a command with an engine as a process: fault points, the log, the exit code
//! store               the database, for commands without a server
//! remote              a running server: its address, token and certificates; requests to it
//! help                `help`, `version`, `completions`, `man`; the topics of docs/
//! run, validate       the server; the configuration checked and printed
//! health, parse       the health check; how lines would be parsed
//! journal, verify     the journal checked, dumped, repaired, drained; journal and database compared
//! dead_letters        rejected records listed, replayed, purged
//! query_words         the words of a query
//! tail, query         records as they arrive; records searched
//! produce/            files, standard input or generated records sent, and the acknowledgments measured
//! top/                the pipeline of a server on a terminal
//! cli                 all commands and their options
//! ```

#![forbid(unsafe_code)]

mod exit;
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
