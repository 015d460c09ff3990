//! Exit codes that scripts and orchestrators can distinguish. 64 to 78 are those of `sysexits.h`.

/// Success.
pub const OK: u8 = 0;
/// The command ran and its check failed: a record is missing, was rejected, or the server is not healthy.
pub const FAILED: u8 = 1;
/// The command line is invalid.
pub const USAGE: u8 = 64;
/// An input file or journal does not exist or cannot be read.
pub const NO_INPUT: u8 = 66;
/// A server or the database cannot be reached, or an address or a journal is in use.
pub const UNAVAILABLE: u8 = 69;
/// A stage failed too often.
pub const RESTARTS: u8 = 70;
/// A disk or standard output failed.
pub const DISK: u8 = 74;
/// The configuration is invalid.
pub const CONFIG: u8 = 78;

/// The list that `--help` prints.
pub(super) const LIST: &str = "\
Exit codes:
   0  success
   1  the check failed: a record is missing or was rejected, the server is not healthy or rejected the request
  64  invalid command line or query
  66  an input file or a journal does not exist or cannot be read
  69  a server or the database cannot be reached, or an address or a journal is in use
  70  a stage of the server failed too often
  74  a disk or standard output failed
  75  another process has taken over the journal
  78  invalid configuration";
