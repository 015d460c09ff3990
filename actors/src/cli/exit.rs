//! Exit codes: what a script or an orchestrator can tell apart. 64 to 78 are those of `sysexits.h`.

/// It is done.
pub const OK: u8 = 0;
/// It ran, and what it was to show does not hold: a gap was found, something was not accepted.
pub const FAILED: u8 = 1;
/// The command line is wrong.
pub const USAGE: u8 = 64;
/// A file that is to be read is not there.
pub const NO_INPUT: u8 = 66;
/// A server or a store cannot be reached.
pub const UNAVAILABLE: u8 = 69;
/// A stage was restarted too often.
pub const RESTARTS: u8 = 70;
/// The disk failed.
pub const DISK: u8 = 74;
/// Another process has taken the journal over.
pub const FENCED: u8 = 75;
/// The configuration is wrong.
pub const CONFIG: u8 = 78;
