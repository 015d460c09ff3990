//! Exit codes that scripts and orchestrators can distinguish. Those of a server are the engine's; from 64 on they are those of
//! `sysexits.h`.

use std::fmt::Write as _;

use logweir_engine::stage::Exit;

/// Success.
pub(super) const OK: u8 = 0;
/// The command ran and its check failed: a record is missing, was rejected, or the server is not healthy.
pub(super) const FAILED: u8 = 1;
/// The command line is invalid.
pub(super) const USAGE: u8 = 64;
/// An input file or journal does not exist or cannot be read.
pub(super) const NO_INPUT: u8 = 66;
/// A server or the database cannot be reached, or an address or a journal is in use.
pub(super) const UNAVAILABLE: u8 = Exit::UNAVAILABLE;
/// The program itself failed.
pub(super) const SOFTWARE: u8 = Exit::SOFTWARE;
/// A disk or standard output failed.
pub(super) const DISK: u8 = Exit::IO_ERROR;
/// The configuration is invalid.
pub(super) const CONFIG: u8 = Exit::CONFIG;

const MEANINGS: [(u8, &str); 9] = [
    (OK, "success"),
    (
        FAILED,
        "the check failed: a record is missing or was rejected, the server is not healthy or rejected the request",
    ),
    (USAGE, "invalid command line or query"),
    (NO_INPUT, "an input file or a journal does not exist or cannot be read"),
    (UNAVAILABLE, "a server or the database cannot be reached, or an address or a journal is in use"),
    (SOFTWARE, "a stage of the server failed too often"),
    (DISK, "a disk or standard output failed"),
    (Exit::FENCED, "another process has taken over the journal"),
    (CONFIG, "invalid configuration"),
];

/// The list that `--help` prints.
pub(super) fn list() -> String {
    MEANINGS.iter().fold("Exit codes:".to_owned(), |mut list, (code, meaning)| {
        let _ = write!(list, "\n  {code:2}  {meaning}");
        list
    })
}
