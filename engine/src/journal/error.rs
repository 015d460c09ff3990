//! Why a journal cannot be opened, and why an append is rejected.

use std::path::PathBuf;

/// Why a journal cannot be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// A field of [`JournalConfig`](super::JournalConfig) is out of range; nothing was modified.
    #[error("invalid journal {field} {value}: expected {expected}")]
    InvalidConfig {
        /// Name of the field.
        field: &'static str,
        /// Its value.
        value: u64,
        /// The accepted values.
        expected: String,
    },
    /// Another process holds the lock.
    #[error("journal {dir} is in use by another process: stop it, or choose another data_dir")]
    Locked {
        /// The directory.
        dir: PathBuf,
    },
    /// Written by a newer version in a format that this version cannot read; nothing was modified.
    #[error("journal {dir} needs format version {needs}, but this version reads up to {have}: run the newer version")]
    TooNew {
        /// The directory.
        dir: PathBuf,
        /// Format version that is needed to read it.
        needs: u16,
        /// Latest format version that this version reads.
        have: u16,
    },
    /// Written before the first release in a format that no version reads any more; nothing was modified.
    #[error(
        "journal {dir} has format version {is}, but this version reads from {oldest} on: drain it with the version \
             that wrote it, then remove the directory"
    )]
    TooOld {
        /// The directory.
        dir: PathBuf,
        /// Its format version.
        is: u16,
        /// Earliest format version that this version reads.
        oldest: u16,
    },
    /// An operation on the directory or a file failed.
    #[error("journal {path}: cannot {action}: {source}")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What failed.
        action: &'static str,
        /// The system's error.
        source: std::io::Error,
    },
}

/// Why an append was rejected, or why a frame will never become durable.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum AppendError {
    /// The quota is reached; appends are accepted again after [`Journal::commit`](super::Journal::commit) has released
    /// a segment.
    #[error("the journal has reached its quota")]
    Quota,
    /// The disk is full (ENOSPC, EDQUOT, EFBIG); appends are accepted again once space is available.
    #[error("the journal's disk is full")]
    DiskFull,
    /// The payload exceeds [`PAYLOAD_BYTES_MAX`](super::PAYLOAD_BYTES_MAX), the segment size or the reserved credit.
    #[error("a payload of {bytes} bytes does not fit into a frame")]
    TooLarge {
        /// Size of the payload, in bytes.
        bytes: usize,
    },
    /// A write or fsync has failed: nothing is acknowledged until a restart has read the disk again.
    #[error("the journal is poisoned: {0}")]
    Poisoned(String),
    /// The disk has not answered: neither a write nor an fsync has returned.
    #[error("the journal's disk has not answered for {after_ms} ms")]
    NoAnswer {
        /// For how long, in milliseconds.
        after_ms: u64,
    },
    /// The journal has been sealed.
    #[error("the journal is sealed")]
    Sealed,
    /// A frame with the same dedup key has been appended before.
    #[error("a frame with the same dedup key has been appended before")]
    Duplicate,
}
