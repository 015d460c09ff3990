//! Why records did not move, by what can be done about it.

use tokio_postgres::Error;

use super::super::connect::{describe, failure};
use super::super::error_class::{Blame, blame};
use crate::error::{Rejection, StoreError};
use crate::protocol::driver::statements::filtered;

/// Why a statement moved nothing.
#[derive(Debug)]
pub(super) enum Refusal {
    /// One of the records, or all of them, can be at fault.
    Rows(Rejection),
    /// It can be their number, or their size.
    TooMuch(Rejection),
    /// Nothing about them.
    Failed(StoreError),
}

impl Refusal {
    /// `logs` took fewer records than it was given, without an error.
    pub(super) fn filtered() -> Self {
        Self::Rows(filtered())
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        const WHAT: &str = "moving late records";
        let Some(db) = error.as_db_error() else { return Self::Failed(failure(WHAT, &error)) };
        let code = db.code().code();
        let rejection = || Rejection { code: code.to_owned(), reason: format!("{WHAT}: {}", describe(&error)) };
        match blame(code, db.constraint(), db.table()) {
            Blame::Row => Self::Rows(rejection()),
            Blame::Batch => Self::TooMuch(rejection()),
            Blame::Nothing(_) => Self::Failed(failure(WHAT, &error)),
        }
    }
}
