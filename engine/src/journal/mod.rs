//! The journal: what is acknowledged is here, on disk, until the database has it.
//!
//! SPEC (the owner of this module turns it into module docs, code and tests)

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use uuid::Uuid;

/// Number of a lane.
pub type LaneId = u16;

/// What [`Journal::open`] needs to know. Sizes in bytes.
#[derive(Clone, Debug)]
pub struct JournalConfig {
    /// The directory; made if it is missing.
    pub dir: PathBuf,
    /// Size of a segment file (64 MiB); holds at least one frame of the largest payload.
    pub segment_bytes: u64,
    /// All files of the journal together; an append that would need more is refused.
    pub quota_bytes: u64,
    /// A file kept back so that a full disk can still be drained and sealed; 0 for none.
    pub ballast_bytes: u64,
    /// Payload bytes that may wait for the writer thread.
    pub queue_bytes_max: usize,
    /// Settled segments kept in case the database goes back in time.
    pub retain_segments: usize,
}

/// The newest frame of a lane that recovery found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LaneTail {
    /// Its sequence number; 0 where there is none.
    pub seq: u64,
    /// Records of the lane up to and including it, since the journal was made.
    pub records: u64,
}

/// Bytes that recovery could not read. Named, kept aside, counted; never a reason not to start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// The segment's number.
    pub segment: u64,
    /// Where in the file it starts.
    pub offset: u64,
    /// How many bytes.
    pub bytes: u64,
    /// First sequence number that is missing.
    pub seq_first: u64,
    /// Last sequence number that is missing.
    pub seq_last: u64,
    /// What is wrong, in words.
    pub what: String,
}

/// What [`Journal::open`] found.
#[derive(Clone, Debug)]
pub struct Recovered {
    /// The identity of this journal, made with it. The database knows it as the writer.
    pub writer: Uuid,
    /// The identity of this run of it; on disk before `open` returns.
    pub run: Uuid,
    /// Runs before this one, newest last (at most 1024).
    pub runs: Vec<Uuid>,
    /// The last sequence number used before this run.
    pub seq_last: u64,
    /// Newest frame of every lane found.
    pub lanes: BTreeMap<LaneId, LaneTail>,
    /// Whether the last run ended with a seal.
    pub clean: bool,
    /// Bytes of a torn tail that were cut and kept aside.
    pub torn_bytes: u64,
    /// Damage found.
    pub damage: Vec<Damage>,
}

/// Why a journal cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process holds the lock.
    #[error("journal {dir} is in use by another process: stop it, or choose another data_dir")]
    Locked {
        /// The directory.
        dir: PathBuf,
    },
    /// Written by a newer version in a way this one cannot read; nothing was touched.
    #[error("journal {dir} needs a reader of format {needs}, this is {have}: start the newer version again")]
    TooNew {
        /// The directory.
        dir: PathBuf,
        /// Format version it needs.
        needs: u16,
        /// Format version this program reads.
        have: u16,
    },
    /// The directory or the disk refused.
    #[error("journal {path}: {what}: {source}")]
    Io {
        /// Which file or directory.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
}

/// Why an append was not taken, or will not become durable.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum AppendError {
    /// The quota is reached: settle something first.
    #[error("the journal has reached its quota")]
    Quota,
    /// The disk is full (ENOSPC, EDQUOT, EFBIG); goes on by itself when there is room.
    #[error("the journal's disk is full")]
    DiskFull,
    /// The payload is above [`crate::codec::PAYLOAD_BYTES_MAX`] or does not fit a segment.
    #[error("a payload of {bytes} bytes does not fit a frame")]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// A write or fsync has failed: nothing more is promised until a restart has read the disk again.
    #[error("the journal is poisoned: {0}")]
    Poisoned(String),
    /// The journal has been sealed.
    #[error("the journal is sealed")]
    Sealed,
}

/// What an append was given, at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    /// The frame's sequence number.
    pub seq: u64,
    /// The lane's frame before it; 0 for none.
    pub lane_prev_seq: u64,
    /// Records of the lane up to and including this frame.
    pub lane_records: u64,
    /// CRC-32C of the payload.
    pub payload_crc: u32,
}

/// One data frame read back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Sequence number.
    pub seq: u64,
    /// Lane.
    pub lane: LaneId,
    /// The lane's frame before it when it was written; 0 for none.
    pub lane_prev_seq: u64,
    /// Records of the lane up to and including it.
    pub lane_records: u64,
    /// Records in it.
    pub records: u32,
    /// How to decode the payload.
    pub codec: u8,
    /// CRC-32C of the payload, checked.
    pub payload_crc: u32,
    /// The payload.
    pub payload: Vec<u8>,
}

/// Room in the writer's queue, from [`Journal::reserve`].
#[derive(Debug)]
pub struct AppendCredit {
    _private: (),
}

/// Called once by the writer thread: `Ok` when the frame is covered by a completed fsync.
pub type OnDurable = Box<dyn FnOnce(Result<(), AppendError>) + Send>;

/// How the journal stands, for metrics and status.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct JournalStats {
    /// Bytes of all its files.
    pub bytes: u64,
    /// Its quota in bytes.
    pub quota_bytes: u64,
    /// Segment files.
    pub segments: usize,
    /// Highest sequence number given out.
    pub seq_last: u64,
    /// Highest sequence number covered by an fsync.
    pub seq_durable: u64,
    /// Payload bytes waiting for the writer.
    pub queue_bytes: u64,
    /// Whether an append would be refused now, and why.
    pub refuses: Option<String>,
    /// Frames found damaged since the journal was opened (recovery and reads).
    pub damaged_frames: u64,
    /// Bytes kept aside in `quarantine/`.
    pub quarantine_bytes: u64,
}

/// The journal of one process. Cheap to clone.
#[derive(Clone)]
pub struct Journal {
    _private: Arc<()>,
}

impl Journal {
    /// Locks, recovers and opens the journal, and starts its writer thread.
    ///
    /// # Errors
    /// [`OpenError`]; damage is not an error.
    pub fn open(config: JournalConfig) -> Result<(Self, Recovered), OpenError> {
        let _ = config;
        todo!()
    }

    /// Waits for room for `bytes` of payload in the writer's queue.
    ///
    /// # Errors
    /// The journal refuses appends now; says why.
    pub async fn reserve(&self, bytes: usize) -> Result<AppendCredit, AppendError> {
        let _ = bytes;
        todo!()
    }

    /// Gives the frame its place in the order and hands it to the writer thread. Never blocks on the disk.
    ///
    /// # Errors
    /// The frame was not taken; `on_durable` is not called.
    pub fn append(
        &self,
        credit: AppendCredit,
        lane: LaneId,
        codec: u8,
        records: u32,
        payload: Vec<u8>,
        on_durable: OnDurable,
    ) -> Result<Appended, AppendError> {
        let _ = (credit, lane, codec, records, payload, on_durable);
        todo!()
    }

    /// Whether an append would be refused now, and why. What readiness and intake ask.
    ///
    /// # Errors
    /// The reason.
    pub fn check_writable(&self) -> Result<(), AppendError> {
        todo!()
    }

    /// Waits until `seq` is covered by a completed fsync.
    ///
    /// # Errors
    /// It never will be.
    pub async fn durable(&self, seq: u64) -> Result<(), AppendError> {
        let _ = seq;
        todo!()
    }

    /// The newest durable frame of `lane`.
    #[must_use]
    pub fn lane_durable(&self, lane: LaneId) -> LaneTail {
        let _ = lane;
        todo!()
    }

    /// The newest frame of `lane` given out, durable or not; and every lane that has one.
    #[must_use]
    pub fn lanes(&self) -> BTreeMap<LaneId, LaneTail> {
        todo!()
    }

    /// Reads the durable frames of `lane` after `after_seq`, in order.
    #[must_use]
    pub fn reader(&self, lane: LaneId, after_seq: u64) -> LaneReader {
        let _ = (lane, after_seq);
        todo!()
    }

    /// The database has everything of `lane` up to `seq`: segments that no lane needs may go.
    /// A lane that has frames in the journal and was never settled keeps them.
    pub fn settle(&self, lane: LaneId, seq: u64) {
        let _ = (lane, seq);
        todo!()
    }

    /// How it stands.
    #[must_use]
    pub fn stats(&self) -> JournalStats {
        todo!()
    }

    /// Completes with the reason when a write or fsync has failed for good (exit 74).
    pub async fn poisoned(&self) -> String {
        todo!()
    }

    /// Last fsync, a SEAL frame, the writer thread joined, the lock given back. Appends are refused from here on.
    ///
    /// # Errors
    /// The disk refused; the frames that were acknowledged are safe all the same.
    pub fn seal(&self) -> Result<(), AppendError> {
        todo!()
    }
}

/// Reads one lane in order. `Send`; blocking I/O: call it on a blocking thread.
pub struct LaneReader {
    _private: (),
}

impl LaneReader {
    /// The next durable frames, until `records_max` or `bytes_max` is passed (at least one frame when
    /// there is one). Empty at the durable end. Damaged frames are skipped; the gap shows in the next
    /// frame's `lane_prev_seq` and `lane_records`.
    ///
    /// # Errors
    /// The disk refused a read.
    pub fn next_frames(&mut self, records_max: usize, bytes_max: usize) -> std::io::Result<Vec<Frame>> {
        let _ = (records_max, bytes_max);
        todo!()
    }
}
