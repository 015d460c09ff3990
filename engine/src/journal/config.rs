//! The configuration of a journal and its limits.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

use super::error::OpenError;
use super::segment::{SEGMENT_BYTES_MAX, SEGMENT_BYTES_MIN};
use crate::file_system::{FileSystem, RealFileSystem};

/// Configuration of [`Journal::open`](super::Journal::open). Sizes are in bytes.
#[derive(Clone, Debug)]
pub struct JournalConfig {
    /// Directory of the journal; created if it does not exist.
    pub dir: PathBuf,
    /// Size of a segment file: [`SEGMENT_BYTES_MIN`] to [`SEGMENT_BYTES_MAX`], rounded down to a multiple of 4096. A
    /// frame never spans two segments, so this also bounds the payload of an append.
    pub segment_bytes: u64,
    /// Limit for all files of the journal together, without `quarantine/` and the lock file; an append that would exceed
    /// it fails with [`AppendError::Quota`](super::AppendError::Quota). At least three segments (active, next, spare)
    /// plus `ballast_bytes`.
    pub quota_bytes: u64,
    /// Size of a file that reserves disk space: it is deleted when the disk fills up, so that the journal can still be
    /// drained and sealed. 0 disables it.
    pub ballast_bytes: u64,
    /// Limit for payload bytes waiting for the writer thread; at least 1. A larger payload is appended alone.
    pub queue_bytes_max: usize,
    /// Number of committed segments to retain in case the database is restored to an earlier state.
    pub retain_segments: usize,
    /// How long to retain a committed segment for the same purpose, counted from its commit (after a restart: from the
    /// first commit reported to [`Journal::commit`](super::Journal::commit)). Zero: no minimum age.
    pub retain_for: Duration,
    /// Where `dir` is: the operating system's file system, but in tests of its faults.
    pub file_system: Arc<dyn FileSystem>,
}

impl JournalConfig {
    /// A journal in `dir` with segments of 64 MiB, at most 1 GiB of files, no ballast, at most 32 MiB waiting to be
    /// written, and nothing retained after its commit.
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            segment_bytes: SEGMENT_BYTES_MAX,
            quota_bytes: 1 << 30,
            ballast_bytes: 0,
            queue_bytes_max: 32 << 20,
            retain_segments: 0,
            retain_for: Duration::ZERO,
            file_system: Arc::new(RealFileSystem),
        }
    }

    /// Checks every field and returns the effective segment size.
    pub(super) fn validate(&self) -> Result<u64, OpenError> {
        let invalid = |field, value, expected| Err(OpenError::InvalidConfig { field, value, expected });
        if !(SEGMENT_BYTES_MIN..=SEGMENT_BYTES_MAX).contains(&self.segment_bytes) {
            let expected = format!("{SEGMENT_BYTES_MIN} to {SEGMENT_BYTES_MAX} bytes");
            return invalid("segment_bytes", self.segment_bytes, expected);
        }
        let segment_bytes = self.segment_bytes & !4095;
        let quota_bytes_min = self.ballast_bytes.saturating_add(3 * segment_bytes);
        if self.quota_bytes < quota_bytes_min {
            let expected = format!("at least {quota_bytes_min} bytes, three segments and the ballast");
            return invalid("quota_bytes", self.quota_bytes, expected);
        }
        if !(1..=Semaphore::MAX_PERMITS).contains(&self.queue_bytes_max) {
            let expected = format!("1 to {} bytes", Semaphore::MAX_PERMITS);
            return invalid("queue_bytes_max", self.queue_bytes_max as u64, expected);
        }
        Ok(segment_bytes)
    }
}
