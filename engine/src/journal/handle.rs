//! The public API of an open journal.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};
use tokio::sync::{Semaphore, watch};

use super::acceptance::Acceptance;
use super::check;
use super::config::JournalConfig;
use super::dedup_index::{DedupEntry, DedupKey};
use super::error::{AppendError, OpenError};
use super::housekeeper::Housekeeper;
use super::reader::Reader;
use super::recover::{self, SEAL_BYTES};
use super::segment::{At, Dir};
use super::shared::{AppendCredit, NewFrame, OnDurable, Progress, Shared, locked};
use super::state::{LogEnd, Sizes, Spare, State};
use super::types::{Appended, LaneId, LaneTail, Recovered};
use super::unsynced::Unsynced;
use super::writer::{self, Writer};
use crate::file_system::{File, FileId};

/// State of the journal, for metrics and status.
#[derive(Clone, Debug, Default, serde::Serialize)]
#[non_exhaustive]
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
    /// Disconnected when both have exited.
    exited: Receiver<()>,
}

/// An open journal whose threads do not run yet.
struct Parts {
    journal: Journal,
    recovered: Recovered,
    writer: Writer,
    housekeeper: Housekeeper,
    lock: Box<dyn File>,
}

impl Journal {
    /// Locks, recovers and opens the journal, and starts its threads.
    ///
    /// Under a file-size limit (`RLIMIT_FSIZE`), the system ends a process that ignores nothing with SIGXFSZ. A program that
    /// handles or ignores this signal gets a full disk instead: the journal is a library and changes no signal.
    ///
    /// # Errors
    /// [`OpenError::InvalidConfig`] if a size is out of the range given at [`JournalConfig`]; [`OpenError::Locked`],
    /// [`OpenError::TooNew`] or [`OpenError::Io`] otherwise. Damage is not an error: see [`Recovered::damage`].
    pub fn open(config: JournalConfig) -> Result<(Self, Recovered), OpenError> {
        let Parts { journal, recovered, writer, housekeeper, lock } = Self::prepare(&config)?;
        let lock = Arc::new(lock);
        let housekeeper_lock = lock.clone();
        let (running, exited) = crossbeam_channel::bounded::<()>(0);
        let housekeeper_running = running.clone();
        let threads = Threads {
            writer: spawn("journal-writer", move || {
                let (_running, _lock) = (running, lock);
                writer.guarded_run()
            })?,
            housekeeper: spawn("journal-housekeeper", move || {
                let (_running, _lock) = (housekeeper_running, housekeeper_lock);
                housekeeper.run();
            })?,
            exited,
        };
        *locked(&journal.handle.threads) = Some(threads);
        Ok((journal, recovered))
    }

    /// Like [`Journal::open`], but without threads: the caller makes their steps, in the order that it chooses.
    ///
    /// # Errors
    /// See there.
    #[cfg(feature = "faults")]
    pub fn open_in_steps(
        config: &JournalConfig,
    ) -> Result<(Self, Recovered, WriterSteps, HousekeeperSteps), OpenError> {
        let Parts { journal, recovered, writer, housekeeper, lock } = Self::prepare(config)?;
        let writer = WriterSteps { writer, rolls_back: false, _lock: lock };
        let housekeeper = HousekeeperSteps { housekeeper, now: Instant::now(), retry_at: None };
        Ok((journal, recovered, writer, housekeeper))
    }

    fn prepare(config: &JournalConfig) -> Result<Parts, OpenError> {
        let segment_bytes = config.validate()?;
        let started = Instant::now();
        config.file_system.create_dir_all(&config.dir).at(&config.dir, "create the directory and fsync its parents")?;
        let dir = Dir::open(config.file_system.clone(), &config.dir)?;
        let lock = check::lock(&dir)?;
        let lock_id = lock.metadata().at(&dir.lock(), "stat the lock file")?.id;
        let opened = recover::recover(&dir, segment_bytes)?;
        recover::prune_torn_tails(&dir);
        let recovered = opened.recovered.clone();
        recover::report(&recovered);
        let (journal, writer, housekeeper) = Self::assemble(config, dir, lock_id, segment_bytes, opened);
        metrics::gauge!("logweir_journal_recovery_seconds").set(started.elapsed().as_secs_f64());
        journal.handle.shared.publish_gauges();
        Ok(Parts { journal, recovered, writer, housekeeper, lock })
    }

    fn assemble(
        config: &JournalConfig,
        dir: Dir,
        lock_id: FileId,
        segment_bytes: u64,
        opened: recover::Opened,
    ) -> (Self, Writer, Housekeeper) {
        let recover::Opened { recovered, identity, segments, dedup_index, active, number, run_seq, crc_last, full } =
            opened;
        let first = &segments[&number];
        let log_end = LogEnd {
            seq: run_seq,
            segment: number,
            offset: first.end,
            frames_end: first.size - SEAL_BYTES,
            lanes: recovered.lanes.clone(),
        };
        let (offset, active_bytes) = (log_end.offset, first.size);
        let ballast_now = dir.file_system().metadata(&dir.ballast()).map_or(0, |ballast| ballast.bytes);
        let sizes = Sizes {
            segment_bytes,
            quota_bytes: config.quota_bytes,
            ballast_bytes: config.ballast_bytes,
            retain_segments: config.retain_segments,
            retain_for: config.retain_for,
        };
        let mut state = State {
            sizes,
            identity,
            confirmed_seq: 0,
            runs: recovered.runs.clone(),
            allocated: log_end.clone(),
            durable: log_end,
            acceptance: if full { Acceptance::NoSpace } else { Acceptance::Open },
            unsynced: Unsynced::default(),
            segments,
            committed: BTreeMap::new(),
            dedup_index,
            spare: Spare::Missing,
            ballast_now,
            generation: 0,
        };
        state.check_first_segment();
        // Each frame may be preceded by a START or a CONFIRM. The first CONFIRM may come alone.
        let (queue, items) = crossbeam_channel::bounded(2 * QUEUE_FRAMES_MAX + 1);
        let (wake, woken) = crossbeam_channel::bounded(1);
        let bytes_max = config.queue_bytes_max;
        let damage_known =
            recovered.damage.iter().map(|damage| ((damage.segment, damage.offset), damage.seq_last)).collect();
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
            lock_id,
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
        let housekeeper = Housekeeper::new(shared.clone(), woken);
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

    /// Like [`Journal::append`], for a frame that may have a dedup key. The key adds
    /// [`DedupKey::BYTES`](super::DedupKey::BYTES) to the payload: reserve that much more credit.
    ///
    /// # Errors
    /// [`AppendError::Duplicate`] if the key is in the dedup index; [`Journal::find_duplicate`] then returns the earlier
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
            on_durable.settle(Err(reason.clone()));
        }
        appended
    }

    /// Returns the earlier frame that a frame with this dedup key would repeat, and whether it is durable.
    #[must_use]
    pub fn find_duplicate(&self, dedup_key: &DedupKey) -> Option<(DedupEntry, bool)> {
        let state = self.handle.shared.state();
        let first = state.dedup_index.find_duplicate(dedup_key, Instant::now())?;
        Some((first, first.seq <= state.durable.seq))
    }

    /// Forgets the positions of all sources whose keys are not in `known`: none of them will be appended again. Otherwise
    /// each segment repeats the positions of all sources that there ever were, up to the limit of the dedup index.
    pub fn retain_sources(&self, known: &HashSet<[u8; 16]>) {
        self.handle.shared.state().dedup_index.retain_sources(known);
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

    /// The age of the oldest append that is not durable; zero if there is none. It grows while the disk does not answer.
    #[must_use]
    pub fn oldest_append_age(&self) -> Duration {
        self.handle.shared.state().unsynced.oldest_age(Instant::now())
    }

    /// Reports that the database has accepted this run of this journal, so that no later one forgets it: whatever is
    /// damaged, and however many runs do not reach the database. Does not wait for the disk; a call again does nothing.
    pub fn confirm_run(&self) {
        self.handle.shared.confirm_run();
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
            reject_reason: state.acceptance.reject_reason().map(|reason| reason.to_string()),
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
        self.seal_until(None)
    }

    /// As [`Journal::seal`], but gives up after `limit`: a disk that does not answer would otherwise prevent the end of
    /// the process. The threads are then left alone, with the lock, until the process has ended.
    ///
    /// # Errors
    /// As [`Journal::seal`]; [`AppendError::NoAnswer`] after `limit`.
    pub fn seal_within(&self, limit: Duration) -> Result<(), AppendError> {
        self.seal_until(Some(limit))
    }

    fn seal_until(&self, limit: Option<Duration>) -> Result<(), AppendError> {
        let mut sealed = locked(&self.handle.sealed);
        if sealed.is_none() {
            self.handle.shared.wants_seal.store(true, Ordering::Release);
            *sealed = Some(self.handle.stop(limit));
        }
        sealed.clone().expect("set above")
    }
}

/// The writer of a journal without threads.
#[cfg(feature = "faults")]
pub struct WriterSteps {
    writer: Writer,
    /// Whether the next step is to roll back.
    rolls_back: bool,
    _lock: Box<dyn File>,
}

#[cfg(feature = "faults")]
impl WriterSteps {
    /// Writes and acknowledges the next group, or rolls back after a step in which the disk was full. Returns false if
    /// there is nothing to do.
    pub fn step(&mut self) -> bool {
        if std::mem::take(&mut self.rolls_back) {
            self.writer.shared.roll_back();
            return true;
        }
        let stepped = self.writer.guarded_step();
        self.rolls_back = stepped == Some(true);
        stepped.is_some()
    }

    /// Writes what is queued, and the seal. The end of the journal's life.
    ///
    /// # Errors
    /// See [`Journal::seal`].
    pub fn seal(mut self) -> Result<(), AppendError> {
        while self.step() {}
        self.writer.shared.wants_seal.store(true, Ordering::Release);
        self.writer.shared.close();
        self.writer.guarded_run()
    }
}

/// The housekeeper of a journal without threads.
#[cfg(feature = "faults")]
pub struct HousekeeperSteps {
    housekeeper: Housekeeper,
    now: Instant,
    retry_at: Option<Instant>,
}

#[cfg(feature = "faults")]
impl HousekeeperSteps {
    /// One round, a second after the one before: whatever waited to be tried again is due.
    pub fn step(&mut self) {
        self.now += std::time::Duration::from_secs(1);
        self.retry_at = self.housekeeper.work(self.retry_at, self.now);
    }
}

impl Handle {
    /// Stops the threads, the writer once its queue is empty, and releases the lock; within `limit` or not at all.
    fn stop(&self, limit: Option<Duration>) -> Result<(), AppendError> {
        let Some(threads) = locked(&self.threads).take() else { return Ok(()) };
        self.shared.close();
        if threads.writer.thread().id() == std::thread::current().id() {
            // The last clone was dropped by a task that the writer woke: it cannot join itself, it just exits.
            return Ok(());
        }
        let result = match limit {
            Some(limit) if threads.exited.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) => {
                Err(AppendError::NoAnswer { after_ms: u64::try_from(limit.as_millis()).unwrap_or(u64::MAX) })
            }
            _ => {
                let wrote = threads.writer.join();
                let _ = threads.housekeeper.join();
                wrote.unwrap_or_else(|_| Err(AppendError::Poisoned(writer::PANICKED.to_owned())))
            }
        };
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
        let _ = self.stop(None);
    }
}

fn spawn<T: Send + 'static>(
    name: &'static str,
    run: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>, OpenError> {
    std::thread::Builder::new().name(name.to_owned()).spawn(run).at(std::path::Path::new(name), "start the thread")
}
