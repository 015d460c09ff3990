//! The journal: what is acknowledged is here, on disk, until the database has it.
//!
//! ```text
//! reserve ─> append ─> queue ─> writer ─ pwrite, fdatasync ─> on_durable     (state, writer)
//!            seq, lane counts     │ segments made ahead, removed when settled  (keeper)
//!                                 ▼
//!  DIR/LOCK  DIR/<20 digits>.wal  DIR/spare.tmp  DIR/ballast  DIR/quarantine/ (frame, segment)
//!                                 │
//!        reader <─────────────────┴──> survey ─> recover, check               (scan, survey)
//! ```
//!
//! - There is no second file that must agree with the log: every position comes from the frames.
//! - A file that holds frames is only appended to. A newer segment says which frames of an older one
//!   count; nothing is marked in place.
//! - Sequence numbers rise over all lanes, without a hole inside a run; each open starts a new run in a
//!   fresh segment and jumps ahead, so that a number that vanished with the power is not used again.
//! - Damage never keeps the journal from opening. It is named by sequence range, counted and kept aside.
//! - Memory does not grow with the journal: it is one window per reader, and per segment its lanes.

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
pub use self::dedup_index::{DedupEntry, DedupKey, WINDOW};
pub use self::reader::Reader;
pub use self::segment::{SEGMENT_BYTES_MAX, SEGMENT_BYTES_MIN};

use self::dedup_index::DedupIndex;
use self::directory_scan::Quarantined;
use self::frame::{FrameHeader, Kind};
use self::housekeeper::Housekeeper;
use self::reader::View;
use self::recover::{SEAL_BYTES, Segment};
use self::segment::{At, Dir, make_zeros};
use self::state::{Cursor, Sizes, Spare, State};
use self::writer::{Item, Writer};

/// Number of a lane.
pub type LaneId = u16;

/// What [`Journal::open`] needs to know. Sizes in bytes.
#[derive(Clone, Debug)]
pub struct JournalConfig {
    /// The directory; made if it is missing.
    pub dir: PathBuf,
    /// Size of a segment file: [`SEGMENT_BYTES_MIN`] to [`SEGMENT_BYTES_MAX`], rounded down to a multiple of 4096. A frame
    /// never spans two segments, so this also bounds the payload of an append.
    pub segment_bytes: u64,
    /// Limit for all files of the journal together; an append that would exceed it fails with [`AppendError::Quota`].
    /// At least three segments (active, next, spare) plus `ballast_bytes`.
    pub quota_bytes: u64,
    /// Size of a file that reserves disk space: it is deleted when the disk fills up, so that the journal can still be
    /// drained and sealed. 0 disables it.
    pub ballast_bytes: u64,
    /// Limit for payload bytes waiting for the writer thread; at least 1. A larger payload is appended alone.
    pub queue_bytes_max: usize,
    /// Settled segments kept in case the database goes back in time.
    pub retain_segments: usize,
    /// How long a settled segment is kept for the same reason, counted from the moment when the database was known to
    /// have it (after a restart: from then on). Zero: not for a time.
    pub retain_for: Duration,
}

impl JournalConfig {
    /// Returns the segment size that is used.
    fn check(&self) -> Result<u64, OpenError> {
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

/// Last frame of a lane: its sequence number, and the lane's record count up to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct LaneTail {
    /// Its sequence number; 0 where there is none.
    pub seq: u64,
    /// Records of the lane up to and including it, since the journal was made.
    pub records: u64,
}

/// Bytes that recovery could not read. Named, kept aside, counted; never a reason not to start.
/// Where no frame is lost (a mended header, a misnamed file) the sequence range is empty: 1 to 0.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
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
    /// Whether this open created the journal: the directory held no segment. `clean` is false then, too, and means nothing.
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
    /// A field of [`JournalConfig`] is out of range; nothing was touched.
    #[error("invalid journal {field} {value}: expected {expected}")]
    InvalidConfig {
        /// The field's name.
        field: &'static str,
        /// Its value.
        value: u64,
        /// The values that are accepted.
        expected: String,
    },
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
    /// A frame with the same mark was taken before.
    #[error("the same was taken before")]
    Repeated,
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
    /// [`Journal::generation`] when it was given.
    pub generation: u64,
}

/// One data frame on its way in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewFrame {
    /// Lane.
    pub lane: LaneId,
    /// How to decode the payload.
    pub codec: u8,
    /// Records in it.
    pub records: u32,
    /// What tells it from a repetition, where something does.
    pub dedup_key: Option<DedupKey>,
    /// The payload.
    pub payload: Vec<u8>,
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

/// Semaphore in the writer's queue, from [`Journal::reserve`]. Given back when the frame has left the queue,
/// or when it is dropped.
#[derive(Debug)]
pub struct AppendCredit {
    bytes: usize,
    _bytes: OwnedSemaphorePermit,
    _frame: OwnedSemaphorePermit,
}

/// Called exactly once: with the frame's sequence number, by the writer thread, when it is covered by a completed fsync;
/// with the reason, by whoever finds out, when it never will be.
pub type OnDurable = Box<dyn FnOnce(Result<u64, AppendError>) + Send>;

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

/// Frames that may wait for the writer thread.
const QUEUE_FRAMES_MAX: usize = 8192;

/// The journal of one process. Cheap to clone.
///
/// When the last clone is dropped without [`Journal::seal`], what is queued is still written and
/// acknowledged, but the next open finds no seal.
#[derive(Clone)]
pub struct Journal {
    handle: Arc<Handle>,
}

struct Handle {
    shared: Arc<Shared>,
    threads: Mutex<Option<Threads>>,
    /// How the seal went, for whoever asks again.
    sealed: Mutex<Option<Result<(), AppendError>>>,
}

/// What runs. Each thread holds the directory's lock until it has ended.
struct Threads {
    writer: JoinHandle<Result<(), AppendError>>,
    housekeeper: JoinHandle<()>,
}

/// How far the journal is on disk.
#[derive(Clone, Debug)]
struct Progress {
    seq_durable: u64,
    /// How often numbers fell back, and the lowest number that did last.
    falls: u64,
    fell_from: u64,
    /// Nothing more will become durable.
    end: Option<AppendError>,
}

/// The file of the next segment.
struct SpareFile {
    file: File,
    /// It was a segment before.
    reused: bool,
}

/// What callers, the writer and the keeper share.
struct Shared {
    dir: Dir,
    segment_bytes: u64,
    ballast_bytes: u64,
    state: Mutex<State>,
    /// The writer's queue; `None` from the seal on. Taken together with `state`, in that order, so that
    /// the queue's order is the order of sequence numbers.
    queue: Mutex<Option<Sender<Item>>>,
    /// The file of the spare, once it is whole. Held by whoever makes it or gives it its place.
    spare: Mutex<Option<SpareFile>>,
    wake: Sender<()>,
    stop: AtomicBool,
    wants_seal: AtomicBool,
    progress: watch::Sender<Progress>,
    /// The end alone: who waits for nothing else need not wake at each fsync.
    ends: watch::Sender<Option<AppendError>>,
    queue_bytes: AtomicU64,
    bytes_max: usize,
    bytes: Arc<Semaphore>,
    frames: Arc<Semaphore>,
    damaged_frames: AtomicU64,
    quarantine_bytes: AtomicU64,
    /// Damage that was counted already: segment and offset.
    damage_known: Mutex<BTreeSet<(u64, u64)>>,
}

impl Journal {
    /// Locks, recovers and opens the journal, and starts its writer thread.
    ///
    /// # Errors
    /// [`OpenError::InvalidConfig`] if a size is out of the range given at [`JournalConfig`]; [`OpenError::Locked`],
    /// [`OpenError::TooNew`] or [`OpenError::Io`] otherwise. Damage is not an error: see [`Recovered::damage`].
    pub fn open(config: JournalConfig) -> Result<(Self, Recovered), OpenError> {
        let segment_bytes = config.check()?;
        ignore_file_size_signal();
        let begun = Instant::now();
        let dir = Dir::new(config.dir.clone());
        fs::create_dir_all(dir.path()).at(dir.path(), "make the directory")?;
        if let Some(parent) = dir.path().parent().filter(|parent| !parent.as_os_str().is_empty()) {
            segment::sync_dir(parent).at(parent, "fsync the directory")?;
        }
        let lock = check::lock(&dir)?;
        let opened = recover::recover(&dir, segment_bytes)?;
        recover::forget_old_torn_tails(&dir);
        let recovered = opened.recovered.clone();
        recover::report(&recovered);
        let (journal, writer, housekeeper) = Self::assemble(&config, dir, segment_bytes, opened);
        let lock = Arc::new(lock);
        let keeper_lock = lock.clone();
        let threads = Threads {
            writer: spawn("journal-writer", move || {
                let _lock = lock;
                writer.guarded_run()
            })?,
            housekeeper: spawn("journal-keeper", move || {
                let _lock = keeper_lock;
                housekeeper.run();
            })?,
        };
        *locked(&journal.handle.threads) = Some(threads);
        metrics::gauge!("logweir_journal_recovery_seconds").set(begun.elapsed().as_secs_f64());
        journal.handle.shared.publish_gauges();
        Ok((journal, recovered))
    }

    fn assemble(
        config: &JournalConfig,
        dir: Dir,
        segment_bytes: u64,
        opened: recover::Opened,
    ) -> (Self, Writer, Housekeeper) {
        let recover::Opened { recovered, segments, dedup_index, active, number, run_seq, crc_last, full } = opened;
        let newest = &segments[&number];
        let cursor = Cursor {
            seq: run_seq,
            segment: number,
            offset: newest.end,
            frames_end: newest.size - SEAL_BYTES,
            lanes: recovered.lanes.clone(),
        };
        let (offset, newest_bytes) = (cursor.offset, newest.size);
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
            given: cursor.clone(),
            written: cursor,
            refuses: full.then_some(AppendError::DiskFull),
            segments,
            settled: BTreeMap::new(),
            dedup_index: DedupIndex::new(segment_bytes, dedup_index),
            spare: Spare::Missing,
            ballast_now,
            generation: 0,
        };
        // Each frame may bring the START of a new segment along.
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
            progress: watch::Sender::new(Progress { seq_durable: run_seq, falls: 0, fell_from: 0, end: None }),
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
            size: newest_bytes,
            seq: run_seq,
            offset,
            crc_last,
            held: None,
            buffer: Vec::new(),
        };
        let housekeeper = Housekeeper { shared: shared.clone(), wake: woken };
        let handle = Handle { shared, threads: Mutex::new(None), sealed: Mutex::new(None) };
        (Self { handle: Arc::new(handle) }, writer, housekeeper)
    }

    /// Waits for room for `bytes` of payload in the writer's queue.
    ///
    /// # Errors
    /// The journal refuses appends now; says why.
    pub async fn reserve(&self, bytes: usize) -> Result<AppendCredit, AppendError> {
        let shared = &self.handle.shared;
        shared.check_room(bytes)?;
        // A payload larger than the whole queue goes alone.
        let permits = u32::try_from(bytes.clamp(1, shared.bytes_max)).unwrap_or(u32::MAX);
        let never_closed = "the journal never closes its semaphores";
        let credit = AppendCredit {
            bytes,
            _bytes: shared.bytes.clone().acquire_many_owned(permits).await.expect(never_closed),
            _frame: shared.frames.clone().acquire_owned().await.expect(never_closed),
        };
        shared.check_room(bytes)?;
        Ok(credit)
    }

    /// Gives the frame its place in the order and hands it to the writer thread. Never blocks on the disk.
    ///
    /// When `on_durable` gets an error the sequence number is void: another frame may get it.
    ///
    /// # Errors
    /// The frame was not taken; `on_durable` was told, too.
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

    /// As [`Journal::append`]; a frame with a mark is taken once, and needs [`DedupKey::BYTES`] more of credit.
    ///
    /// # Errors
    /// [`AppendError::Repeated`] if its mark is known: ask [`Journal::marked`] for the frame that was there before.
    /// Otherwise as there.
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
        // Checksummed here, on the caller's core and outside the mutex.
        let payload_crc = crc32c::crc32c(&frame.payload);
        let mut waiter = Some((on_durable, credit));
        let appended = fits.and_then(|()| self.handle.shared.append(frame, payload_crc, &mut waiter));
        if let (Err(reason), Some((on_durable, _))) = (&appended, waiter) {
            on_durable(Err(reason.clone()));
        }
        appended
    }

    /// The newest frame with the mark of `key`, and whether it is durable.
    #[must_use]
    pub fn dedup_entry(&self, key: &[u8; 16]) -> Option<(DedupEntry, bool)> {
        let state = self.handle.shared.state();
        state.dedup_index.of(key).map(|dedup_entry| (dedup_entry, dedup_entry.seq <= state.written.seq))
    }

    /// Whether an append would be refused now, and why. What readiness and intake ask.
    ///
    /// # Errors
    /// The reason.
    pub fn check_writable(&self) -> Result<(), AppendError> {
        // Asked by probes: not counted as a refusal.
        let shared = &self.handle.shared;
        let checked = shared.state().check_room(0);
        if checked == Err(AppendError::DiskFull) {
            shared.wake();
        }
        checked
    }

    /// Waits until `seq` is covered by a completed fsync.
    ///
    /// # Errors
    /// It never will be.
    pub async fn durable(&self, seq: u64) -> Result<(), AppendError> {
        let shared = &self.handle.shared;
        let mut progress = shared.progress.subscribe();
        let falls = progress.borrow_and_update().falls;
        if seq > shared.state().given.seq {
            // Only a frame that was taken back can have had it.
            return Err(AppendError::DiskFull);
        }
        loop {
            {
                let now = progress.borrow_and_update();
                if now.falls != falls && now.fell_from <= seq {
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

    /// How often numbers were given out and taken back because the disk was full. A sequence number stands for
    /// the same frame only within one generation, until the frame is durable.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.handle.shared.state().generation
    }

    /// The newest durable frame of `lane`.
    #[must_use]
    pub fn lane_durable(&self, lane: LaneId) -> LaneTail {
        self.handle.shared.state().written.lanes.get(&lane).copied().unwrap_or_default()
    }

    /// The newest frame of `lane` given out, durable or not; and every lane that has one.
    #[must_use]
    pub fn lanes(&self) -> BTreeMap<LaneId, LaneTail> {
        self.handle.shared.state().given.lanes.clone()
    }

    /// How far it is durable: the newest frame, and the newest one of each lane at that moment.
    #[must_use]
    pub fn durable_now(&self) -> (u64, BTreeMap<LaneId, LaneTail>) {
        let state = self.handle.shared.state();
        (state.written.seq, state.written.lanes.clone())
    }

    /// Waits until a frame above `seq` is durable, whichever it is.
    ///
    /// # Errors
    /// None ever will be.
    pub async fn durable_beyond(&self, seq: u64) -> Result<(), AppendError> {
        let mut progress = self.handle.shared.progress.subscribe();
        let now = progress.wait_for(|now| now.seq_durable > seq || now.end.is_some()).await;
        let now = now.map_err(|_| AppendError::Sealed)?;
        match &now.end {
            Some(end) if now.seq_durable <= seq => Err(end.clone()),
            _ => Ok(()),
        }
    }

    /// Reads the durable frames of `lane` after `after_seq`, in order.
    #[must_use]
    pub fn reader(&self, lane: LaneId, after_seq: u64) -> Reader {
        Reader::new(self.handle.shared.clone(), Some(lane), after_seq)
    }

    /// Reads the durable frames of all lanes after `after_seq`, in the order of their numbers.
    #[must_use]
    pub fn reader_of_all(&self, after_seq: u64) -> Reader {
        Reader::new(self.handle.shared.clone(), None, after_seq)
    }

    /// The database has everything of `lane` up to `seq`: segments that no lane needs may go, the oldest
    /// first. A lane that has frames in the journal and was never settled keeps them. A `seq` below the one before says
    /// that the database has gone back in time: what lies above it is needed again, as far as it is there.
    pub fn commit(&self, lane: LaneId, seq: u64) {
        let shared = &self.handle.shared;
        let news = {
            let (mut state, now) = (shared.state(), Instant::now());
            state.commit(lane, seq, now) | state.removable(now).is_some()
        };
        if news {
            shared.wake();
        }
    }

    /// The first sequence number that is still kept: frames below it were settled, and have gone with their segments.
    #[must_use]
    pub fn first_kept_seq(&self) -> u64 {
        let state = self.handle.shared.state();
        state.segments.first_key_value().map_or(0, |(_, segment)| segment.first_seq)
    }

    /// How it stands.
    #[must_use]
    pub fn stats(&self) -> JournalStats {
        let shared = &self.handle.shared;
        let state = shared.state();
        JournalStats {
            bytes: state.bytes(),
            quota_bytes: state.sizes.quota_bytes,
            segments: state.segments.len(),
            seq_last: state.given.seq,
            seq_durable: state.written.seq,
            queue_bytes: shared.queue_bytes.load(Ordering::Relaxed),
            refuses: state.refuses.as_ref().map(ToString::to_string),
            damaged_frames: shared.damaged_frames.load(Ordering::Relaxed),
            quarantine_bytes: shared.quarantine_bytes.load(Ordering::Relaxed),
        }
    }

    /// Completes with the reason when a write or fsync has failed for good (exit 74).
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

    /// Last fsync, a SEAL frame, the writer thread joined, the lock given back. Appends are refused from here on.
    ///
    /// # Errors
    /// The disk refused; the frames that were acknowledged are safe all the same.
    pub fn seal(&self) -> Result<(), AppendError> {
        let mut sealed = locked(&self.handle.sealed);
        if sealed.is_none() {
            self.handle.shared.wants_seal.store(true, Ordering::Release);
            *sealed = Some(self.handle.stop());
        }
        sealed.clone().expect("it was set just now")
    }
}

impl Handle {
    /// Ends the threads: the writer when its queue is empty. Then the lock goes.
    fn stop(&self) -> Result<(), AppendError> {
        let Some(threads) = locked(&self.threads).take() else { return Ok(()) };
        self.shared.close();
        if threads.writer.thread().id() == std::thread::current().id() {
            // The last clone was dropped by a waiter: the writer cannot wait for itself, it just ends.
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

    fn check_room(&self, bytes: usize) -> Result<(), AppendError> {
        let checked = self.state().check_room(bytes);
        if let Err(reason) = &checked {
            self.refused(reason);
        }
        checked
    }

    /// Counts a refusal; a full disk is the keeper's business.
    fn refused(&self, reason: &AppendError) {
        let label = match reason {
            AppendError::Quota => "quota",
            AppendError::DiskFull => "disk_full",
            AppendError::TooLarge { .. } => "too_large",
            AppendError::Poisoned(_) => "poisoned",
            AppendError::Sealed => "sealed",
            AppendError::Repeated => "repeated",
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
            .inspect_err(|reason| self.refused(reason))?;
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
            payload_len: u32::try_from(payload.len()).expect("place has checked it"),
            records,
            payload_crc,
            seq: appended.seq,
            durable_upto: 0,
            lane_prev_seq: appended.lane_prev_seq,
            lane_records: appended.lane_records,
            dedup_entry: dedup_key.is_some(),
        };
        let bytes = self.queue_bytes.fetch_add(payload.len() as u64, Ordering::Relaxed) + payload.len() as u64;
        metrics::gauge!("logweir_journal_queue_bytes").set(bytes as f64);
        send(queue, Item { header, place: placed.place, payload, waiter: waiter.take() });
        Ok(appended)
    }

    /// Nothing is taken from here on; the writer ends when it has written what is queued.
    fn close(&self) {
        self.refuse(AppendError::Sealed);
        self.stop.store(true, Ordering::Release);
        locked(&self.queue).take();
        self.wake();
    }

    fn wake(&self) {
        // Full means that it is awake already.
        let _ = self.wake.try_send(());
    }

    // What the writer says.

    fn written(&self, seq: u64, offset: u64, lanes: &BTreeMap<LaneId, LaneTail>) {
        self.state().advance(seq, offset, lanes);
        self.progress.send_modify(|progress| progress.seq_durable = seq);
    }

    /// A new segment has its name.
    fn enlisted(&self, number: u64, segment: Segment) {
        self.state().enlist(number, segment);
        self.wake();
    }

    fn left_queue(&self, bytes: usize) {
        let bytes = bytes as u64;
        let left = self.queue_bytes.fetch_sub(bytes, Ordering::Relaxed) - bytes;
        metrics::gauge!("logweir_journal_queue_bytes").set(left as f64);
    }

    fn refuse(&self, reason: AppendError) {
        let mut state = self.state();
        // Sealed and poisoned are for good.
        if matches!(state.refuses, None | Some(AppendError::Quota | AppendError::DiskFull)) {
            state.refuses = Some(reason);
        }
    }

    fn fell_back(&self) {
        let fell_from = {
            let mut state = self.state();
            state.fall_back();
            state.given.seq + 1
        };
        self.progress.send_modify(|progress| {
            progress.falls += 1;
            progress.fell_from = fell_from;
        });
        self.wake();
    }

    fn poison(&self, reason: String) {
        let reason = AppendError::Poisoned(reason);
        self.state().refuses = Some(reason.clone());
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

    /// The spare's file: made ahead, or made now.
    fn take_spare(&self, spare: &mut Option<SpareFile>) -> io::Result<SpareFile> {
        let file = match spare.take() {
            Some(file) => file,
            None => self.make_spare_file(&AtomicBool::new(false))?,
        };
        self.set_spare(Spare::Missing);
        Ok(file)
    }

    fn make_spare_file(&self, stop: &AtomicBool) -> io::Result<SpareFile> {
        Ok(SpareFile { file: make_zeros(&self.dir.spare(), self.segment_bytes, stop)?, reused: false })
    }

    // What the keeper asks and says.

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

    /// Bytes of the ballast, as wanted and as it is.
    fn ballast(&self) -> (u64, u64) {
        (self.ballast_bytes, self.state().ballast_now)
    }

    fn set_ballast(&self, bytes: u64) {
        self.state().ballast_now = bytes;
    }

    fn refuses(&self) -> Option<AppendError> {
        self.state().refuses.clone()
    }

    fn accept_again(&self) {
        let mut state = self.state();
        if state.refuses == Some(AppendError::DiskFull) {
            state.refuses = None;
        }
    }

    /// The oldest segment, if it may go, and whether its file could be the next one's.
    fn removable(&self) -> Option<(u64, PathBuf, bool)> {
        let state = self.state();
        let (number, segment) = state.removable(Instant::now())?;
        Some((number, segment.path.clone(), state.is_reusable(segment)))
    }

    fn removed(&self, number: u64) {
        self.state().removed(number);
        locked(&self.damage_known).retain(|(segment, _)| *segment != number);
    }

    /// Makes the file of the settled segment `number` the spare; says whether it has.
    fn reuse(&self, number: u64) -> bool {
        let mut spare = locked(&self.spare);
        if spare.is_some() {
            return false;
        }
        // First off the list: a reader that has the file open then knows that what it meets is not the segment any more.
        let Some(segment) = self.state().removed(number) else { return false };
        match segment::reuse(&self.dir, &segment.path) {
            Ok(file) => *spare = Some(SpareFile { file, reused: true }),
            Err(error) => {
                tracing::warn!(path = %segment.path.display(), %error, "cannot use a settled segment's file again");
                if segment.path.exists() {
                    self.state().stays(number, segment);
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

    /// Whether the segment is still one.
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

    // What readers ask and say.

    /// The first segment from `from` on that has durable frames of `lane` after `after_seq`.
    fn view(&self, lane: Option<LaneId>, after_seq: u64, from: u64) -> Option<View> {
        let state = self.state();
        let has = |segment: &Segment| match lane {
            Some(lane) => segment.lanes.get(&lane).is_some_and(|seq| *seq > after_seq),
            None => segment.lanes.values().any(|seq| *seq > after_seq),
        };
        let (number, segment) = state.segments.range(from..).find(|(_, segment)| has(segment))?;
        let active = state.written.segment == *number;
        Some(View { number: *number, path: segment.path.clone(), seed: segment.seed, end: segment.end, active })
    }

    /// A reader has met bytes that it cannot read: counted and kept aside, once.
    fn found_damage(&self, view: &View, offset: u64, bytes: u64, seq_first: u64, seq_last: u64, what: &str) {
        if !locked(&self.damage_known).insert((view.number, offset)) {
            return;
        }
        let segment = view.number;
        tracing::error!(segment, offset, bytes, seq_first, seq_last, what, "damage in the journal");
        let frames = (seq_last + 1).saturating_sub(seq_first);
        self.damaged_frames.fetch_add(frames, Ordering::Relaxed);
        metrics::counter!("logweir_journal_damaged_frames_total").increment(frames);
        let name = directory_scan::damage_name(segment, offset, seq_first, seq_last);
        recover::set_aside(&self.dir, &[Quarantined::Copy { from: view.path.clone(), offset, bytes, name }]);
        self.quarantine_bytes.store(self.dir.quarantine_bytes(), Ordering::Relaxed);
        self.publish_gauges();
    }
}

fn send(queue: &Sender<Item>, item: Item) {
    match queue.try_send(item) {
        Ok(()) => {}
        // Semaphore for it is what the credit stands for.
        Err(TrySendError::Full(_)) => unreachable!("the journal's queue holds a frame for each credit"),
        // The writer has panicked: the waiter's drop tells it.
        Err(TrySendError::Disconnected(_)) => tracing::error!("the journal's writer is gone"),
    }
}

/// A mutex whose holder has panicked still guards sound data: no step here leaves it half changed.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn spawn<T: Send + 'static>(
    name: &'static str,
    run: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>, OpenError> {
    std::thread::Builder::new().name(name.to_owned()).spawn(run).at(std::path::Path::new(name), "start a thread")
}

/// Without this, a file-size limit ends the process by a signal instead of failing a write.
fn ignore_file_size_signal() {
    // SAFETY: ignoring a signal installs no handler that could run.
    unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
    }
}
