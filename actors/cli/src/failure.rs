//! The outcome of a command, as an exit code and a message on standard error.

use std::fmt::Display;
use std::io;
use std::process::ExitCode;

use logweir::config::ConfigError;
use logweir_store::StoreError;

use crate::{exit, last_message};

/// Outcome of a command.
pub(super) type Outcome = Result<ExitCode, Failure>;

/// Why a command failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// Standard output could not be written.
    Output(io::Error),
    /// An exit code and a message for the user.
    Message(u8, String),
}

impl Failure {
    pub(super) fn new(code: u8, message: impl Display) -> Self {
        Self::Message(code, message.to_string())
    }

    pub(super) fn config(error: ConfigError) -> Self {
        Self::new(exit::CONFIG, error)
    }

    pub(super) fn store(error: StoreError) -> Self {
        Self::new(exit::UNAVAILABLE, format!("database: {error}"))
    }
}

/// Only writing to standard output fails with a bare [`io::Error`]; every other error gets a message with its context.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Output(error)
    }
}

/// Reports a failure, and returns the exit code.
pub(super) fn exit_code(outcome: Outcome) -> ExitCode {
    match outcome {
        Ok(code) => code,
        Err(Failure::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => exit::OK.into(),
        Err(Failure::Output(error)) => complain(exit::DISK, &format!("cannot write to standard output: {error}")),
        Err(Failure::Message(code, message)) => complain(code, &message),
    }
}

fn complain(code: u8, message: &str) -> ExitCode {
    last_message::write(|| {}, format!("logweir: {message}\n"));
    code.into()
}
