//! The journal: a write-ahead log on disk that holds every acknowledged record until the database has committed it.
//!
//! ```text
//! reserve ─> append ─> queue ─> writer ─ pwrite, fdatasync ─> on_durable     (state, writer)
//!            seq, lane counts     │  spare segments, removal, full disk       (housekeeper)
//!                                 ▼
//!  DIR/LOCK  DIR/<20 digits>.wal  DIR/spare.tmp  DIR/ballast  DIR/quarantine/ (frame, segment)
//!                                 │
//!        reader <─────────────────┴──> directory scan ─> recover, check       (scan, directory_scan)
//! ```
//!
//! - No second file has to agree with the log: every position is derived from the frames.
//! - A file that holds frames is only appended to. A newer segment states which frames of an older one are valid;
//!   nothing is marked in place.
//! - Sequence numbers increase across all lanes, without gaps inside a run. Each open starts a new run in a new segment
//!   and jumps ahead, so that a number lost in a power failure is not used again.
//! - Damage never prevents an open. It is reported by sequence range, counted and quarantined.
//! - Memory does not grow with the journal: one window per reader, and the lanes of each segment.

mod frame;
mod dedup_index;
mod segment;
mod state;
mod writer;
mod housekeeper;
mod scan;
mod directory_scan;
mod recover;
mod reader;
mod check;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, TrySendError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use uuid::Uuid;

pub use self::check::{Report, SegmentReport, check, dump, repair};
pub use self::dedup_index::{DEDUP_WINDOW, DedupEntry, DedupKey};
pub use self::frame::PAYLOAD_BYTES_MAX;
pub use self::reader::Reader;
pub use self::segment::{SEGMENT_BYTES_MAX, SEGMENT_BYTES_MIN};

use self::dedup_index::DedupIndex;
use self::directory_scan::Quarantined;
use self::frame::{FrameHeader, Kind};
use self::housekeeper::Housekeeper;
use self::reader::View;
use self::recover::{SEAL_BYTES, Segment};
use self::segment::{At, Dir, create_zeroed};
use self::state::{LogEnd, Sizes, Spare, State};
use self::writer::{Item, Writer};

/// Number of a lane: an ordered shard of the stream.
pub type LaneId = u16;

/// Configuration of [`Journal::open`]. Sizes are in bytes.
#[derive(Clone, Debug)]
pub struct JournalConfig {
    /// Directory of the journal; created if it does not exist.
    pub dir: PathBuf,
    /// Size of a segment file: [`SEGMENT_BYTES_MIN`] to [`SEGMENT_BYTES_MAX`], rounded down to a multiple of 4096. A
    /// frame never spans two segments, so this also bounds the payload of an append.
    pub segment_bytes: u64,
    /// Limit for all files of the journal together; an append that would exceed it fails with [`AppendError::Quota`].
    /// At least three segments (active, next, spare) plus `ballast_bytes`.
    pub quota_bytes: u64,
    /// Size of a file that reserves disk space: it is deleted when the disk fills up, so that the journal can still be
    /// drained and sealed. 0 disables it.
    pub ballast_bytes: u64,
    /// Limit for payload bytes waiting for the writer thread; at least 1. A larger payload is appended alone.
    pub queue_bytes_max: usize,
    /// Number of committed segments to retain in case the database is restored to an earlier state.
    pub retain_segments: usize,
    /// How long to retain a committed segment for the same purpose, counted from its commit (after a restart: from the
    /// first commit reported to [`Journal::commit`]). Zero: no minimum age.
    pub retain_for: Duration,
}

impl JournalConfig {
    /// Checks every field and returns the effective segment size.
    fn validate(&self) -> Result<u64, OpenError> {
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

/// End of a lane: its last frame, and its record count up to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct LaneTail {
    /// Sequence number of the lane's last frame; 0 if it has none.
    pub seq: u64,
    /// Records of the lane up to and including that frame, since the journal was created.
    pub records: u64,
}

/// Bytes that cannot be read. They are reported, quarantined and counted, and never prevent an open. If no frame is
/// lost (a repaired header, a misnamed file), the sequence range is empty: 1 to 0.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Damage {
    /// Number of the segment.
    pub segment: u64,
    /// Offset in the segment's file.
    pub offset: u64,
    /// Length in bytes.
    pub bytes: u64,
    /// First lost sequence number.
    pub seq_first: u64,
    /// Last lost sequence number.
    pub seq_last: u64,
    /// Description of the damage.
    pub reason: String,
}

impl Damage {
    fn log(&self) {
        let Self { segment, offset, bytes, seq_first, seq_last, reason } = self;
        tracing::error!(
            segment,
            offset,
            bytes,
            seq_first,
            seq_last,
            reason,
            "the journal is damaged; unreadable bytes are kept in quarantine/"
        );
    }
}

/// Result of [`Journal::open`].
#[derive(Clone, Debug)]
pub struct Recovered {
    /// Identity of this journal, assigned when it was created. The database knows it as the writer.
    pub writer: Uuid,
    /// Identity of this run; on disk before `open` returns.
    pub run: Uuid,
    /// Previous runs, latest last (at most 1024).
    pub runs: Vec<Uuid>,
    /// Last sequence number used before this run.
    pub seq_last: u64,
    /// The end of every lane.
    pub lanes: BTreeMap<LaneId, LaneTail>,
    /// Whether this open created the journal: the directory held no segment. `clean` is false then, too, and carries no
    /// information.
    pub created: bool,
    /// Whether the previous run ended with a seal.
    pub clean: bool,
    /// Bytes of a torn tail that were truncated and moved to the quarantine.
    pub torn_bytes: u64,
    /// Damage found.
    pub damage: Vec<Damage>,
}

/// Why a journal cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A field of [`JournalConfig`] is out of range; nothing was modified.
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
pub enum AppendError {
    /// The quota is reached; appends are accepted again after [`Journal::commit`] has released a segment.
    #[error("the journal has reached its quota")]
    Quota,
    /// The disk is full (ENOSPC, EDQUOT, EFBIG); appends are accepted again once space is available.
    #[error("the journal's disk is full")]
    DiskFull,
    /// The payload exceeds [`PAYLOAD_BYTES_MAX`], the segment size or the reserved credit.
    #[error("a payload of {bytes} bytes does not fit into a frame")]
    TooLarge {
        /// Size of the payload, in bytes.
        bytes: usize,
    },
    /// A write or fsync has failed: nothing is acknowledged until a restart has read the disk again.
    #[error("the journal is poisoned: {0}")]
    Poisoned(String),
    /// The journal has been sealed.
    #[error("the journal is sealed")]
    Sealed,
    /// A frame with the same dedup key has been appended before.
    #[error("a frame with the same dedup key has been appended before")]
    Duplicate,
}

/// What an accepted append was assigned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    /// The frame's sequence number.
    pub seq: u64,
    /// Sequence number of the lane's previous frame; 0 if there is none.
    pub lane_prev_seq: u64,
    /// Records of the lane up to and including this frame.
    pub lane_records: u64,
    /// CRC-32C of the payload.
    pub payload_crc: u32,
    /// [`Journal::generation`] at the time of the append.
    pub generation: u64,
}

/// A data frame to append.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewFrame {
    /// Its lane.
    pub lane: LaneId,
    /// Codec id of the payload.
    pub codec: u8,
    /// Number of records in the payload.
    pub records: u32,
    /// Key that identifies a repetition of this frame, if there is one.
    pub dedup_key: Option<DedupKey>,
    /// The payload.
    pub payload: Vec<u8>,
}

/// A data frame read from the journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Sequence number.
    pub seq: u64,
    /// Its lane.
    pub lane: LaneId,
    /// Sequence number of the lane's previous frame; 0 if there is none.
    pub lane_prev_seq: u64,
    /// Records of the lane up to and including this frame.
    pub lane_records: u64,
    /// Number of records in the payload.
    pub records: u32,
    /// Codec id of the payload.
    pub codec: u8,
    /// CRC-32C of the payload; verified.
    pub payload_crc: u32,
    /// The payload.
    pub payload: Vec<u8>,
}

/// Credit for the writer's queue, from [`Journal::reserve`]. Released when the frame has left the queue, or on drop.
#[derive(Debug)]
pub struct AppendCredit {
    bytes: usize,
    _bytes: OwnedSemaphorePermit,
    _frame: OwnedSemaphorePermit,
}

/// Called exactly once. On success: by the writer thread, with the frame's sequence number, after the fsync that covers
/// it. On failure: with the reason, by the thread that detects it. Must not block: a blocked call delays every later
/// acknowledgment.
pub type OnDurable = Box<dyn FnOnce(Result<u64, AppendError>) + Send>;

/// State of the journal, for metrics and status.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct JournalStats {
    /// Size of all files.
    pub bytes: u64,
    /// Configured quota.
    pub quota_bytes: u64,
    /// Number of segment files.
    pub segments: usize,
    /// Highest sequence number assigned.
    pub seq_last: u64,
    /// Highest sequence number covered by an fsync.
    pub seq_durable: u64,
    /// Payload bytes that wait for the writer.
    pub queue_bytes: u64,
    /// Why appends are rejected now; `None` if they are accepted.
    pub reject_reason: Option<String>,
    /// Damaged frames found since the journal was opened, by recovery and by readers.
    pub damaged_frames: u64,
    /// Size of the files in `quarantine/`.
    pub quarantine_bytes: u64,
}

/// Maximum number of frames that wait for the writer thread.
const QUEUE_FRAMES_MAX: usize = 8192;

/// The journal of one process. Cheap to clone.
///
/// If the last clone is dropped without [`Journal::seal`], queued frames are still written and acknowledged, but the
/// next open finds no seal.
#[derive(Clone)]
pub struct Journal {
    handle: Arc<Handle>,
}

struct Handle {
    shared: Arc<Shared>,
    threads: Mutex<Option<Threads>>,
    /// Result of the seal, for repeated calls.
    sealed: Mutex<Option<Result<(), AppendError>>>,
}

/// The threads. Each holds the directory's lock until it has exited.
struct Threads {
    writer: JoinHandle<Result<(), AppendError>>,
    housekeeper: JoinHandle<()>,
}

/// Durable end of the journal, as published to waiters.
#[derive(Clone, Debug)]
struct Progress {
    seq_durable: u64,
    /// Number of roll-backs, and the lowest sequence number that the last one voided.
    rollbacks: u64,
    rolled_back_from: u64,
    /// Set when nothing more will become durable.
    end: Option<AppendError>,
}

/// The file of the next segment.
struct SpareFile {
    file: File,
    /// Whether it was a segment before.
    reused: bool,
}

/// State shared by callers, writer and housekeeper.
struct Shared {
    dir: Dir,
    segment_bytes: u64,
    ballast_bytes: u64,
    state: Mutex<State>,
    /// The writer's queue; `None` once sealed. Locked after `state`, so that frames are queued in the order of their
    /// sequence numbers.
    queue: Mutex<Option<Sender<Item>>>,
    /// The spare's file, once it is complete. Locked while it is created or renamed.
    spare: Mutex<Option<SpareFile>>,
    wake: Sender<()>,
    stop: AtomicBool,
    wants_seal: AtomicBool,
    progress: watch::Sender<Progress>,
    /// `progress.end` alone, for waiters that need no wake-up at each fsync.
    ends: watch::Sender<Option<AppendError>>,
    queue_bytes: AtomicU64,
    bytes_max: usize,
    bytes: Arc<Semaphore>,
    frames: Arc<Semaphore>,
    damaged_frames: AtomicU64,
    quarantine_bytes: AtomicU64,
    /// Damage that has been counted: segment and offset.
    damage_known: Mutex<BTreeSet<(u64, u64)>>,
}

impl Journal {
    /// Locks, recovers and opens the journal, and starts its threads.
    ///
    /// # Errors
    /// [`OpenError::InvalidConfig`] if a size is out of the range given at [`JournalConfig`]; [`OpenError::Locked`],
    /// [`OpenError::TooNew`] or [`OpenError::Io`] otherwise. Damage is not an error: see [`Recovered::damage`].
    pub fn open(config: JournalConfig) -> Result<(Self, Recovered), OpenError> {
        let segment_bytes = config.validate()?;
        ignore_file_size_signal();
        let started = Instant::now();
        let dir = Dir::new(config.dir.clone());
        fs::create_dir_all(dir.path()).at(dir.path(), "create the directory")?;
        if let Some(parent) = dir.path().parent().filter(|parent| !parent.as_os_str().is_empty()) {
            segment::sync_dir(parent).at(parent, "fsync the parent directory")?;
        }
        let lock = check::lock(&dir)?;
        let opened = recover::recover(&dir, segment_bytes)?;
        recover::prune_torn_tails(&dir);
        let recovered = opened.recovered.clone();
        recover::report(&recovered);
        let (journal, writer, housekeeper) = Self::assemble(&config, dir, segment_bytes, opened);
        let lock = Arc::new(lock);
        let housekeeper_lock = lock.clone();
        let threads = Threads {
            writer: spawn("journal-writer", move || {
                let _lock = lock;
                writer.guarded_run()
            })?,
            housekeeper: spawn("journal-housekeeper", move || {
                let _lock = housekeeper_lock;
                housekeeper.run();
            })?,
        };
        *locked(&journal.handle.threads) = Some(threads);
        metrics::gauge!("logweir_journal_recovery_seconds").set(started.elapsed().as_secs_f64());
        journal.handle.shared.publish_gauges();
        Ok((journal, recovered))
    }

    fn assemble(
        config: &JournalConfig,
        dir: Dir,
        segment_bytes: u64,
        opened: recover::Opened,
    ) -> (Self, Writer, Housekeeper) {
        let recover::Opened { recovered, segments, dedup_entries, active, number, run_seq, crc_last, full } = opened;
        let first = &segments[&number];
        let log_end = LogEnd {
            seq: run_seq,
            segment: number,
            offset: first.end,
            frames_end: first.size - SEAL_BYTES,
            lanes: recovered.lanes.clone(),
        };
        let (offset, active_bytes) = (log_end.offset, first.size);
        let ballast_now = fs::metadata(dir.ballast()).map_or(0, |metadata| metadata.len());
        let sizes = Sizes {
            segment_bytes,
            quota_bytes: config.quota_bytes,
            ballast_bytes: config.ballast_bytes,
            retain_segments: config.retain_segments,
            retain_for: config.retain_for,
        };
        let state = State {
            sizes,
            run: recovered.run,
            runs: recovered.runs.clone(),
            allocated: log_end.clone(),
            durable: log_end,
            reject_reason: full.then_some(AppendError::DiskFull),
            segments,
            committed: BTreeMap::new(),
            dedup_index: DedupIndex::new(segment_bytes, dedup_entries),
            spare: Spare::Missing,
            ballast_now,
            generation: 0,
        };
        // Each frame may be preceded by the START of a new segment.
        let (queue, items) = crossbeam_channel::bounded(2 * QUEUE_FRAMES_MAX);
        let (wake, woken) = crossbeam_channel::bounded(1);
        let bytes_max = config.queue_bytes_max;
        let damage_known = recovered.damage.iter().map(|damage| (damage.segment, damage.offset)).collect();
        let shared = Arc::new(Shared {
            segment_bytes,
            ballast_bytes: config.ballast_bytes,
            state: Mutex::new(state),
            queue: Mutex::new(Some(queue)),
            spare: Mutex::new(None),
            wake,
            stop: AtomicBool::new(false),
            wants_seal: AtomicBool::new(false),
            progress: watch::Sender::new(Progress {
                seq_durable: run_seq,
                rollbacks: 0,
                rolled_back_from: 0,
                end: None,
            }),
            ends: watch::Sender::new(None),
            queue_bytes: AtomicU64::new(0),
            bytes_max,
            bytes: Arc::new(Semaphore::new(bytes_max)),
            frames: Arc::new(Semaphore::new(QUEUE_FRAMES_MAX)),
            damaged_frames: AtomicU64::new(recover::damaged_frames(&recovered.damage)),
            quarantine_bytes: AtomicU64::new(dir.quarantine_bytes()),
            damage_known: Mutex::new(damage_known),
            dir,
        });
        let writer = Writer {
            shared: shared.clone(),
            queue: items,
            writer: recovered.writer,
            run_seq,
            file: active,
            number,
            size: active_bytes,
            seq: run_seq,
            offset,
            crc_last,
            pending: None,
            buffer: Vec::new(),
        };
        let housekeeper = Housekeeper { shared: shared.clone(), wake: woken };
        let handle = Handle { shared, threads: Mutex::new(None), sealed: Mutex::new(None) };
        (Self { handle: Arc::new(handle) }, writer, housekeeper)
    }

    /// Waits for space for `bytes` of payload in the writer's queue.
    ///
    /// # Errors
    /// The journal rejects appends; the error is the reason.
    pub async fn reserve(&self, bytes: usize) -> Result<AppendCredit, AppendError> {
        let shared = &self.handle.shared;
        shared.check_capacity(bytes)?;
        // A payload larger than the whole queue is queued alone.
        let permits = u32::try_from(bytes.clamp(1, shared.bytes_max)).unwrap_or(u32::MAX);
        let never_closed = "the journal never closes its semaphores";
        let credit = AppendCredit {
            bytes,
            _bytes: shared.bytes.clone().acquire_many_owned(permits).await.expect(never_closed),
            _frame: shared.frames.clone().acquire_owned().await.expect(never_closed),
        };
        shared.check_capacity(bytes)?;
        Ok(credit)
    }

    /// Assigns the frame its sequence number and queues it for the writer thread. Never blocks on the disk.
    ///
    /// If `on_durable` receives an error, the sequence number is void: another frame may get it.
    ///
    /// # Errors
    /// The frame was rejected; `on_durable` has received the same error.
    pub fn append(
        &self,
        credit: AppendCredit,
        lane: LaneId,
        codec: u8,
        records: u32,
        payload: Vec<u8>,
        on_durable: OnDurable,
    ) -> Result<Appended, AppendError> {
        self.append_frame(credit, NewFrame { lane, codec, records, dedup_key: None, payload }, on_durable)
    }

    /// Like [`Journal::append`], for a frame that may have a dedup key. The key adds [`DedupKey::BYTES`] to the
    /// payload: reserve that much more credit.
    ///
    /// # Errors
    /// [`AppendError::Duplicate`] if the key is in the dedup index; [`Journal::dedup_entry`] then returns the earlier
    /// frame. Otherwise as for [`Journal::append`].
    pub fn append_frame(
        &self,
        credit: AppendCredit,
        mut frame: NewFrame,
        on_durable: OnDurable,
    ) -> Result<Appended, AppendError> {
        if let Some(dedup_key) = frame.dedup_key {
            frame.payload.splice(..0, dedup_key.encode());
        }
        let bytes = frame.payload.len();
        let fits = if bytes > credit.bytes { Err(AppendError::TooLarge { bytes }) } else { Ok(()) };
        // Computed here, on the caller's core and outside the mutex.
        let payload_crc = crc32c::crc32c(&frame.payload);
        let mut waiter = Some((on_durable, credit));
        let appended = fits.and_then(|()| self.handle.shared.append(frame, payload_crc, &mut waiter));
        if let (Err(reason), Some((on_durable, _))) = (&appended, waiter) {
            on_durable(Err(reason.clone()));
        }
        appended
    }

    /// Returns the latest frame with this dedup key, and whether it is durable.
    #[must_use]
    pub fn dedup_entry(&self, key: &[u8; 16]) -> Option<(DedupEntry, bool)> {
        let state = self.handle.shared.state();
        state.dedup_index.get(key).map(|dedup_entry| (dedup_entry, dedup_entry.seq <= state.durable.seq))
    }

    /// Whether an append would be accepted now. For readiness probes and intake.
    ///
    /// # Errors
    /// The reason why appends are rejected.
    pub fn check_writable(&self) -> Result<(), AppendError> {
        // Not counted as a rejection: probes call this.
        let shared = &self.handle.shared;
        let checked = shared.state().check_capacity(0);
        if checked == Err(AppendError::DiskFull) {
            shared.wake();
        }
        checked
    }

    /// Waits until `seq` is covered by a completed fsync.
    ///
    /// # Errors
    /// It never will be; the error is the reason.
    pub async fn durable(&self, seq: u64) -> Result<(), AppendError> {
        let shared = &self.handle.shared;
        let mut progress = shared.progress.subscribe();
        let rollbacks = progress.borrow_and_update().rollbacks;
        if seq > shared.state().allocated.seq {
            // Only a frame that was rolled back can have had this number.
            return Err(AppendError::DiskFull);
        }
        loop {
            {
                let now = progress.borrow_and_update();
                if now.rollbacks != rollbacks && now.rolled_back_from <= seq {
                    return Err(AppendError::DiskFull);
                }
                if now.seq_durable >= seq {
                    return Ok(());
                }
                if let Some(end) = &now.end {
                    return Err(end.clone());
                }
            }
            progress.changed().await.map_err(|_| AppendError::Sealed)?;
        }
    }

    /// Number of roll-backs: sequence numbers that were assigned and voided because the disk was full. Until a frame is
    /// durable, its sequence number identifies it only within one generation.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.handle.shared.state().generation
    }

    /// Returns the durable end of `lane`.
    #[must_use]
    pub fn lane_durable(&self, lane: LaneId) -> LaneTail {
        self.handle.shared.state().durable.lanes.get(&lane).copied().unwrap_or_default()
    }

    /// Returns the end of every lane, including frames that are not durable yet.
    #[must_use]
    pub fn lanes(&self) -> BTreeMap<LaneId, LaneTail> {
        self.handle.shared.state().allocated.lanes.clone()
    }

    /// Returns the highest durable sequence number, and the durable end of every lane at that moment.
    #[must_use]
    pub fn durable_position(&self) -> (u64, BTreeMap<LaneId, LaneTail>) {
        let state = self.handle.shared.state();
        (state.durable.seq, state.durable.lanes.clone())
    }

    /// Waits until any frame above `seq` is durable.
    ///
    /// # Errors
    /// None ever will be; the error is the reason.
    pub async fn durable_beyond(&self, seq: u64) -> Result<(), AppendError> {
        let mut progress = self.handle.shared.progress.subscribe();
        let now = progress.wait_for(|now| now.seq_durable > seq || now.end.is_some()).await;
        let now = now.map_err(|_| AppendError::Sealed)?;
        match &now.end {
            Some(end) if now.seq_durable <= seq => Err(end.clone()),
            _ => Ok(()),
        }
    }

    /// Returns a reader of the durable frames of `lane` above `after_seq`.
    #[must_use]
    pub fn reader(&self, lane: LaneId, after_seq: u64) -> Reader {
        Reader::new(self.handle.shared.clone(), Some(lane), after_seq)
    }

    /// Returns a reader of the durable frames of all lanes above `after_seq`, in the order of their sequence numbers.
    #[must_use]
    pub fn reader_all_lanes(&self, after_seq: u64) -> Reader {
        Reader::new(self.handle.shared.clone(), None, after_seq)
    }

    /// Reports that the database has committed `lane` up to `seq`: segments that no lane needs any more may be removed,
    /// oldest first. A lane with frames in the journal that was never reported keeps its segments. A `seq` below the
    /// previous one means that the database was restored to an earlier state: frames above it are needed again, as far
    /// as they still exist.
    pub fn commit(&self, lane: LaneId, seq: u64) {
        let shared = &self.handle.shared;
        let wake = {
            let (mut state, now) = (shared.state(), Instant::now());
            state.commit(lane, seq, now) | state.removable(now).is_some()
        };
        if wake {
            shared.wake();
        }
    }

    /// First sequence number that is still in the journal: earlier frames were committed and removed with their
    /// segments.
    #[must_use]
    pub fn first_retained_seq(&self) -> u64 {
        let state = self.handle.shared.state();
        state.segments.first_key_value().map_or(0, |(_, segment)| segment.first_seq)
    }

    /// Returns the state of the journal.
    #[must_use]
    pub fn stats(&self) -> JournalStats {
        let shared = &self.handle.shared;
        let state = shared.state();
        JournalStats {
            bytes: state.bytes(),
            quota_bytes: state.sizes.quota_bytes,
            segments: state.segments.len(),
            seq_last: state.allocated.seq,
            seq_durable: state.durable.seq,
            queue_bytes: shared.queue_bytes.load(Ordering::Relaxed),
            reject_reason: state.reject_reason.as_ref().map(ToString::to_string),
            damaged_frames: shared.damaged_frames.load(Ordering::Relaxed),
            quarantine_bytes: shared.quarantine_bytes.load(Ordering::Relaxed),
        }
    }

    /// Completes with the reason once a write or fsync has failed for good (exit code 74).
    pub async fn poisoned(&self) -> String {
        let mut ends = self.handle.shared.ends.subscribe();
        loop {
            if let Some(AppendError::Poisoned(reason)) = &*ends.borrow_and_update() {
                return reason.clone();
            }
            if ends.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    /// Seals the journal: last fsync, SEAL frame, both threads joined, lock released. Later appends are rejected.
    ///
    /// # Errors
    /// The seal could not be written; acknowledged frames are safe nevertheless.
    pub fn seal(&self) -> Result<(), AppendError> {
        let mut sealed = locked(&self.handle.sealed);
        if sealed.is_none() {
            self.handle.shared.wants_seal.store(true, Ordering::Release);
            *sealed = Some(self.handle.stop());
        }
        sealed.clone().expect("set above")
    }
}

impl Handle {
    /// Stops the threads, the writer once its queue is empty, and releases the lock.
    fn stop(&self) -> Result<(), AppendError> {
        let Some(threads) = locked(&self.threads).take() else { return Ok(()) };
        self.shared.close();
        if threads.writer.thread().id() == std::thread::current().id() {
            // The last clone was dropped by an `on_durable`: the writer cannot join itself, it just exits.
            return Ok(());
        }
        let wrote = threads.writer.join();
        let _ = threads.housekeeper.join();
        let result = wrote.unwrap_or_else(|_| Err(AppendError::Poisoned(writer::PANICKED.to_owned())));
        let end = result.clone().err().unwrap_or(AppendError::Sealed);
        self.shared.progress.send_modify(|progress| {
            progress.end.get_or_insert(end.clone());
        });
        self.shared.ends.send_modify(|first| {
            first.get_or_insert(end);
        });
        result
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let _ = self.stop();
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        locked(&self.state)
    }

    fn check_capacity(&self, bytes: usize) -> Result<(), AppendError> {
        let checked = self.state().check_capacity(bytes);
        if let Err(reason) = &checked {
            self.count_rejection(reason);
        }
        checked
    }

    /// Counts a rejection; a full disk wakes the housekeeper.
    fn count_rejection(&self, reason: &AppendError) {
        let label = match reason {
            AppendError::Quota => "quota",
            AppendError::DiskFull => "disk_full",
            AppendError::TooLarge { .. } => "too_large",
            AppendError::Poisoned(_) => "poisoned",
            AppendError::Sealed => "sealed",
            AppendError::Duplicate => "duplicate",
        };
        metrics::counter!("logweir_journal_rejected_appends_total", "reason" => label).increment(1);
        if *reason == AppendError::DiskFull {
            self.wake();
        }
    }

    fn append(
        &self,
        frame: NewFrame,
        payload_crc: u32,
        waiter: &mut Option<(OnDurable, AppendCredit)>,
    ) -> Result<Appended, AppendError> {
        let NewFrame { lane, codec, records, dedup_key, payload } = frame;
        let mut state = self.state();
        let placed = state
            .place(lane, records, payload.len(), payload_crc, dedup_key)
            .inspect_err(|reason| self.count_rejection(reason))?;
        let queue = locked(&self.queue);
        let Some(queue) = queue.as_ref() else { return Err(AppendError::Sealed) };
        if let Some((place, seq, start)) = placed.start {
            let header = FrameHeader::of_run(Kind::Start, seq, 0, &start);
            send(queue, Item { header, place, payload: start, waiter: None });
        }
        let appended = placed.appended;
        let header = FrameHeader {
            kind: Kind::Data,
            codec,
            lane,
            payload_len: u32::try_from(payload.len()).expect("checked by place"),
            records,
            payload_crc,
            seq: appended.seq,
            durable_upto: 0,
            lane_prev_seq: appended.lane_prev_seq,
            lane_records: appended.lane_records,
            has_dedup_key: dedup_key.is_some(),
        };
        let bytes = self.queue_bytes.fetch_add(payload.len() as u64, Ordering::Relaxed) + payload.len() as u64;
        metrics::gauge!("logweir_journal_queue_bytes").set(bytes as f64);
        send(queue, Item { header, place: placed.place, payload, waiter: waiter.take() });
        Ok(appended)
    }

    /// Rejects appends from now on; the writer exits when it has written its queue.
    fn close(&self) {
        self.reject(AppendError::Sealed);
        self.stop.store(true, Ordering::Release);
        locked(&self.queue).take();
        self.wake();
    }

    fn wake(&self) {
        // Full means that the housekeeper has been woken already.
        let _ = self.wake.try_send(());
    }

    // Called by the writer.

    fn mark_durable(&self, seq: u64, offset: u64, lanes: &BTreeMap<LaneId, LaneTail>) {
        self.state().advance(seq, offset, lanes);
        self.progress.send_modify(|progress| progress.seq_durable = seq);
    }

    /// A new segment has been renamed into place.
    fn segment_added(&self, number: u64, segment: Segment) {
        self.state().add_segment(number, segment);
        self.wake();
    }

    fn dequeued(&self, bytes: usize) {
        let bytes = bytes as u64;
        let left = self.queue_bytes.fetch_sub(bytes, Ordering::Relaxed) - bytes;
        metrics::gauge!("logweir_journal_queue_bytes").set(left as f64);
    }

    fn reject(&self, reason: AppendError) {
        let mut state = self.state();
        // Sealed and poisoned are final.
        if matches!(state.reject_reason, None | Some(AppendError::Quota | AppendError::DiskFull)) {
            state.reject_reason = Some(reason);
        }
    }

    fn rolled_back(&self) {
        let rolled_back_from = {
            let mut state = self.state();
            state.roll_back();
            state.allocated.seq + 1
        };
        self.progress.send_modify(|progress| {
            progress.rollbacks += 1;
            progress.rolled_back_from = rolled_back_from;
        });
        self.wake();
    }

    fn poison(&self, reason: String) {
        let reason = AppendError::Poisoned(reason);
        self.state().reject_reason = Some(reason.clone());
        self.progress.send_modify(|progress| progress.end = Some(reason.clone()));
        self.ends.send_replace(Some(reason));
    }

    fn poison_reason(&self) -> Option<String> {
        match &self.progress.borrow().end {
            Some(AppendError::Poisoned(reason)) => Some(reason.clone()),
            _ => None,
        }
    }

    fn wants_seal(&self) -> bool {
        self.wants_seal.load(Ordering::Acquire)
    }

    /// Returns the spare's file, creating it if there is none.
    fn take_spare(&self, spare: &mut Option<SpareFile>) -> io::Result<SpareFile> {
        let file = match spare.take() {
            Some(file) => file,
            None => self.make_spare_file(&AtomicBool::new(false))?,
        };
        self.set_spare(Spare::Missing);
        Ok(file)
    }

    fn make_spare_file(&self, stop: &AtomicBool) -> io::Result<SpareFile> {
        Ok(SpareFile { file: create_zeroed(&self.dir.spare(), self.segment_bytes, stop)?, reused: false })
    }

    // Called by the housekeeper.

    fn needs_spare(&self) -> bool {
        let state = self.state();
        state.spare != Spare::Ready && state.may_make_spare()
    }

    fn make_spare(&self) -> io::Result<()> {
        let mut spare = locked(&self.spare);
        if spare.is_none() {
            *spare = Some(self.make_spare_file(&self.stop)?);
        }
        self.set_spare(Spare::Ready);
        Ok(())
    }

    fn set_spare(&self, spare: Spare) {
        self.state().spare = spare;
    }

    /// Size of the ballast, configured and actual.
    fn ballast(&self) -> (u64, u64) {
        (self.ballast_bytes, self.state().ballast_now)
    }

    fn set_ballast(&self, bytes: u64) {
        self.state().ballast_now = bytes;
    }

    fn reject_reason(&self) -> Option<AppendError> {
        self.state().reject_reason.clone()
    }

    fn resume(&self) {
        let mut state = self.state();
        if state.reject_reason == Some(AppendError::DiskFull) {
            state.reject_reason = None;
        }
    }

    /// Returns the oldest segment if it may be removed, and whether its file can be reused.
    fn removable(&self) -> Option<(u64, PathBuf, bool)> {
        let state = self.state();
        let (number, segment) = state.removable(Instant::now())?;
        Some((number, segment.path.clone(), state.is_reusable(segment)))
    }

    fn remove_segment(&self, number: u64) {
        self.state().remove_segment(number);
        locked(&self.damage_known).retain(|(segment, _)| *segment != number);
    }

    /// Makes the file of the committed segment `number` the spare. Returns whether the segment is gone.
    fn reuse(&self, number: u64) -> bool {
        let mut spare = locked(&self.spare);
        if spare.is_some() {
            return false;
        }
        // Unlisted before the rename: a reader that has the file open then knows that its bytes are no longer the
        // segment's.
        let Some(segment) = self.state().remove_segment(number) else { return false };
        match segment::reuse(&self.dir, &segment.path) {
            Ok(file) => *spare = Some(SpareFile { file, reused: true }),
            Err(error) => {
                tracing::warn!(path = %segment.path.display(), %error, "cannot reuse the file of a committed segment");
                if segment.path.exists() {
                    self.state().restore_segment(number, segment);
                    return false;
                }
                return true;
            }
        }
        self.set_spare(Spare::Ready);
        drop(spare);
        locked(&self.damage_known).retain(|(segment, _)| *segment != number);
        true
    }

    /// Whether the segment still exists.
    fn is_listed(&self, number: u64) -> bool {
        self.state().segments.contains_key(&number)
    }

    fn publish_gauges(&self) {
        let state = self.state();
        metrics::gauge!("logweir_journal_bytes").set(state.bytes() as f64);
        metrics::gauge!("logweir_journal_quota_bytes").set(state.sizes.quota_bytes as f64);
        metrics::gauge!("logweir_journal_retained_bytes").set(state.retained_bytes() as f64);
        metrics::gauge!("logweir_journal_segments").set(state.segments.len() as f64);
        metrics::gauge!("logweir_journal_quarantine_bytes").set(self.quarantine_bytes.load(Ordering::Relaxed) as f64);
    }

    // Called by readers.

    /// Returns the first segment from `from` on that has durable frames of `lane` above `after_seq`.
    fn view(&self, lane: Option<LaneId>, after_seq: u64, from: u64) -> Option<View> {
        let state = self.state();
        let has = |segment: &Segment| match lane {
            Some(lane) => segment.lanes.get(&lane).is_some_and(|seq| *seq > after_seq),
            None => segment.lanes.values().any(|seq| *seq > after_seq),
        };
        let (number, segment) = state.segments.range(from..).find(|(_, segment)| has(segment))?;
        let active = state.durable.segment == *number;
        Some(View { number: *number, path: segment.path.clone(), seed: segment.seed, end: segment.end, active })
    }

    /// Counts and quarantines bytes that a reader cannot read, once.
    fn report_damage(&self, view: &View, offset: u64, bytes: u64, seq_first: u64, seq_last: u64, reason: &str) {
        if !locked(&self.damage_known).insert((view.number, offset)) {
            return;
        }
        let segment = view.number;
        Damage { segment, offset, bytes, seq_first, seq_last, reason: reason.to_owned() }.log();
        let frames = (seq_last + 1).saturating_sub(seq_first);
        self.damaged_frames.fetch_add(frames, Ordering::Relaxed);
        metrics::counter!("logweir_journal_damaged_frames_total").increment(frames);
        let name = directory_scan::damage_name(segment, offset, seq_first, seq_last);
        recover::quarantine(&self.dir, &[Quarantined::Copy { from: view.path.clone(), offset, bytes, name }]);
        self.quarantine_bytes.store(self.dir.quarantine_bytes(), Ordering::Relaxed);
        self.publish_gauges();
    }
}

fn send(queue: &Sender<Item>, item: Item) {
    match queue.try_send(item) {
        Ok(()) => {}
        // Each credit guarantees a slot.
        Err(TrySendError::Full(_)) => unreachable!("the journal's queue has a slot for each credit"),
        // The writer has panicked; the journal is poisoned.
        Err(TrySendError::Disconnected(_)) => tracing::error!("the journal's writer thread has exited"),
    }
}

/// Locks a mutex even if a holder has panicked: no step leaves the data half changed.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn spawn<T: Send + 'static>(
    name: &'static str,
    run: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>, OpenError> {
    std::thread::Builder::new().name(name.to_owned()).spawn(run).at(std::path::Path::new(name), "start the thread")
}

/// Makes a write beyond the file-size limit fail instead of killing the process.
fn ignore_file_size_signal() {
    // SAFETY: ignoring a signal installs no handler that could run.
    unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
    }
}
