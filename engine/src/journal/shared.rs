//! What callers, the writer, the housekeeper and readers share.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crossbeam_channel::{Sender, TrySendError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};

use super::dedup_index::DedupKey;
use super::directory_scan::{self, Quarantined};
use super::error::AppendError;
use super::frame::{FrameHeader, Kind, Seed};
use super::identity::Identity;
use super::recover::{self, Segment};
use super::segment::{self, Dir, create_zeroed, is_transient};
use super::state::{Place, RunFrame, Spare, State};
use super::types::{Appended, Damage, LaneId, LaneTail};
use crate::fault;
use crate::file_system::{File, FileId};

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

/// Credit for the writer's queue, from [`Journal::reserve`](super::Journal::reserve). Released when the frame has left
/// the queue, or on drop.
#[derive(Debug)]
pub struct AppendCredit {
    pub(super) bytes: usize,
    pub(super) _bytes: OwnedSemaphorePermit,
    pub(super) _frame: OwnedSemaphorePermit,
}

/// What happens once a frame is durable, or will never be. A value and not a closure: the writer's thread does it, and
/// one that waited would delay every later acknowledgment.
#[derive(Debug)]
pub struct OnDurable(Then);

enum Then {
    Send(oneshot::Sender<Result<u64, AppendError>>),
    CountLoss(metrics::Counter, u64),
}

impl OnDurable {
    /// Sends the frame's sequence number after the fsync that covers it, or the reason why there is none.
    #[must_use]
    pub fn send_to(sender: oneshot::Sender<Result<u64, AppendError>>) -> Self {
        Self(Then::Send(sender))
    }

    /// As [`OnDurable::send_to`], with the receiver.
    #[must_use]
    pub fn send() -> (Self, oneshot::Receiver<Result<u64, AppendError>>) {
        let (sender, outcome) = oneshot::channel();
        (Self::send_to(sender), outcome)
    }

    /// Adds `count` to `counter` if the frame does not become durable: nobody waits for it.
    #[must_use]
    pub fn count_loss(counter: metrics::Counter, count: u64) -> Self {
        Self(Then::CountLoss(counter, count))
    }

    pub(super) fn settle(self, outcome: Result<u64, AppendError>) {
        match self.0 {
            Then::Send(sender) => drop(sender.send(outcome)), // the receiver may have given up
            Then::CountLoss(counter, count) if outcome.is_err() => counter.increment(count),
            Then::CountLoss(..) => {}
        }
    }
}

impl fmt::Debug for Then {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Send(_) => "Send(..)",
            Self::CountLoss(..) => "CountLoss(..)",
        })
    }
}

/// A queued frame.
pub(super) struct Item {
    /// Complete except for `durable_upto`.
    pub(super) header: FrameHeader,
    pub(super) place: Place,
    pub(super) payload: Vec<u8>,
    /// `None` for a frame that belongs to no lane.
    pub(super) waiter: Option<(OnDurable, AppendCredit)>,
}

/// Where to continue: the next segment that has frames of the lane.
pub(super) struct View {
    pub(super) number: u64,
    pub(super) path: std::path::PathBuf,
    pub(super) seed: Seed,
    pub(super) end: u64,
    /// Last durable data frame in it.
    pub(super) seq_last: u64,
    /// Whether frames may still be appended to it.
    pub(super) active: bool,
}

/// Durable end of the journal, as published to waiters.
#[derive(Clone, Debug)]
pub(super) struct Progress {
    pub(super) seq_durable: u64,
    /// Number of roll-backs, and the lowest sequence number that the last one voided.
    pub(super) rollbacks: u64,
    pub(super) rolled_back_from: u64,
    /// Set when nothing more will become durable.
    pub(super) end: Option<AppendError>,
}

/// The file of the next segment.
pub(super) struct SpareFile {
    pub(super) file: Box<dyn File>,
    /// Whether it was a segment before.
    pub(super) reused: bool,
}

/// State shared by callers, writer and housekeeper.
pub(super) struct Shared {
    pub(super) dir: Dir,
    /// Identity of the lock file.
    pub(super) lock_id: FileId,
    pub(super) segment_bytes: u64,
    pub(super) ballast_bytes: u64,
    pub(super) state: Mutex<State>,
    /// The writer's queue; `None` once sealed. Locked after `state`, so that frames are queued in the order of their
    /// sequence numbers.
    pub(super) queue: Mutex<Option<Sender<Item>>>,
    /// The spare's file, once it is complete. Locked while it is created or renamed.
    pub(super) spare: Mutex<Option<SpareFile>>,
    pub(super) wake: Sender<()>,
    pub(super) stop: AtomicBool,
    pub(super) wants_seal: AtomicBool,
    pub(super) progress: watch::Sender<Progress>,
    /// `progress.end` alone, for waiters that need no wake-up at each fsync.
    pub(super) ends: watch::Sender<Option<AppendError>>,
    pub(super) queue_bytes: AtomicU64,
    pub(super) bytes_max: usize,
    pub(super) bytes: Arc<Semaphore>,
    pub(super) frames: Arc<Semaphore>,
    pub(super) damaged_frames: AtomicU64,
    pub(super) quarantine_bytes: AtomicU64,
    /// Damage that has been counted: segment and offset, and the last lost frame. It may grow.
    pub(super) damage_known: Mutex<BTreeMap<(u64, u64), u64>>,
}

impl Shared {
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        locked(&self.state)
    }

    pub(super) fn check_capacity(&self, bytes: usize) -> Result<(), AppendError> {
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
            AppendError::NoAnswer { .. } => "no_answer",
            AppendError::Sealed => "sealed",
            AppendError::Duplicate => "duplicate",
        };
        metrics::counter!("logweir_journal_rejected_appends_total", "reason" => label).increment(1);
        if *reason == AppendError::DiskFull {
            self.wake();
        }
    }

    pub(super) fn append(
        &self,
        frame: NewFrame,
        payload_crc: u32,
        waiter: &mut Option<(OnDurable, AppendCredit)>,
    ) -> Result<Appended, AppendError> {
        let NewFrame { lane, codec, records, dedup_key, payload } = frame;
        let mut state = self.state();
        let placed = state
            .place(lane, records, payload.len(), payload_crc, dedup_key.map(|dedup_key| (dedup_key, Instant::now())))
            .inspect_err(|reason| self.count_rejection(reason))?;
        state.unsynced.append(placed.appended.seq, Instant::now());
        let queue = locked(&self.queue);
        let Some(queue) = queue.as_ref() else { return Err(AppendError::Sealed) };
        if let Some(before) = placed.before {
            send(queue, run_item(before));
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

    /// The database has confirmed this run: queues the frame that says so, unless one is there.
    pub(super) fn confirm_run(&self) {
        let mut state = self.state();
        let queue = locked(&self.queue);
        let Some(queue) = queue.as_ref() else { return };
        if let Some(confirm) = state.confirm_run() {
            state.unsynced.append(confirm.seq, Instant::now());
            send(queue, run_item(confirm));
        }
    }

    /// Rejects appends from now on; the writer exits when it has written its queue.
    pub(super) fn close(&self) {
        self.state().acceptance.seal();
        self.stop.store(true, Ordering::Release);
        locked(&self.queue).take();
        self.wake();
    }

    pub(super) fn wake(&self) {
        // Full means that the housekeeper has been woken already.
        let _ = self.wake.try_send(());
    }

    // Called by the writer.

    pub(super) fn mark_durable(&self, seq: u64, offset: u64, lanes: &BTreeMap<LaneId, LaneTail>) {
        self.state().advance(seq, offset, lanes);
        self.progress.send_modify(|progress| progress.seq_durable = seq);
    }

    /// A new segment has been renamed into place.
    pub(super) fn segment_added(&self, number: u64, segment: Segment) {
        self.state().add_segment(number, segment);
        self.wake();
    }

    pub(super) fn identity(&self) -> Identity {
        self.state().identity
    }

    pub(super) fn dequeued(&self, bytes: usize) {
        let bytes = bytes as u64;
        let left = self.queue_bytes.fetch_sub(bytes, Ordering::Relaxed) - bytes;
        metrics::gauge!("logweir_journal_queue_bytes").set(left as f64);
    }

    /// A write has failed because the disk is full: rejects appends until [`Self::roll_back`] and the housekeeper.
    pub(super) fn write_failed(&self) {
        self.state().acceptance.write_failed();
    }

    /// Nothing is queued any more: rolls back everything that is not durable.
    pub(super) fn roll_back(&self) {
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

    pub(super) fn poison(&self, reason: String) {
        self.state().acceptance.poison(reason.clone());
        let reason = AppendError::Poisoned(reason);
        self.progress.send_modify(|progress| progress.end = Some(reason.clone()));
        self.ends.send_replace(Some(reason));
    }

    pub(super) fn poison_reason(&self) -> Option<String> {
        match &self.progress.borrow().end {
            Some(AppendError::Poisoned(reason)) => Some(reason.clone()),
            _ => None,
        }
    }

    pub(super) fn wants_seal(&self) -> bool {
        self.wants_seal.load(Ordering::Acquire)
    }

    /// Returns the spare's file, creating it if there is none.
    pub(super) fn take_spare(&self, spare: &mut Option<SpareFile>) -> io::Result<SpareFile> {
        let file = match spare.take() {
            Some(file) => file,
            None => self.make_spare_file(&AtomicBool::new(false))?,
        };
        self.set_spare(Spare::Missing);
        Ok(file)
    }

    fn make_spare_file(&self, stop: &AtomicBool) -> io::Result<SpareFile> {
        let file = create_zeroed(self.dir.file_system(), &self.dir.spare(), self.segment_bytes, stop)?;
        Ok(SpareFile { file, reused: false })
    }

    // Called by the housekeeper.

    pub(super) fn needs_spare(&self) -> bool {
        let state = self.state();
        state.spare != Spare::Ready && state.may_make_spare()
    }

    pub(super) fn make_spare(&self) -> io::Result<()> {
        let mut spare = locked(&self.spare);
        if spare.is_none() {
            *spare = Some(self.make_spare_file(&self.stop)?);
        }
        self.set_spare(Spare::Ready);
        Ok(())
    }

    pub(super) fn set_spare(&self, spare: Spare) {
        self.state().spare = spare;
    }

    /// Size of the ballast, configured and actual.
    pub(super) fn ballast(&self) -> (u64, u64) {
        (self.ballast_bytes, self.state().ballast_now)
    }

    pub(super) fn set_ballast(&self, bytes: u64) {
        self.state().ballast_now = bytes;
    }

    pub(super) fn reject_reason(&self) -> Option<AppendError> {
        self.state().acceptance.reject_reason()
    }

    /// The disk has space again. Returns whether appends are accepted now.
    pub(super) fn space_made(&self) -> bool {
        let acceptance = &mut self.state().acceptance;
        if fault::armed("mutation.space_before_roll_back") {
            acceptance.rolled_back();
        }
        acceptance.space_made()
    }

    /// Returns the oldest segment if it may be removed, and whether its file can be reused.
    pub(super) fn removable(&self) -> Option<(u64, PathBuf, bool)> {
        let state = self.state();
        let (number, segment) = state.removable(Instant::now())?;
        Some((number, segment.path.clone(), state.is_reusable(segment)))
    }

    /// The removal of a segment's name was not made durable.
    pub(super) fn removal_failed(&self, error: &io::Error) {
        let reason = format!("cannot fsync the directory after the removal of a segment: {error}");
        tracing::error!(reason, "the journal is poisoned: nothing is acknowledged until a restart");
        self.poison(reason);
    }

    /// Removes the committed segment `number`.
    pub(super) fn remove(&self, number: u64) -> io::Result<()> {
        // Unlisted before its file is removed: for a reader, a missing file of a listed segment is an error.
        let Some(segment) = self.state().remove_segment(number) else { return Ok(()) };
        match self.dir.file_system().remove_file(&segment.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                self.state().restore_segment(number, segment);
                return Err(error);
            }
            _ => locked(&self.damage_known).retain(|(segment, _), _| *segment != number),
        }
        Ok(())
    }

    /// Makes the file of the committed segment `number` the spare. Returns whether the segment is gone.
    pub(super) fn reuse(&self, number: u64) -> bool {
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
                if self.dir.file_system().exists(&segment.path) {
                    self.state().restore_segment(number, segment);
                    return false;
                }
                if !is_transient(&error) {
                    self.removal_failed(&error);
                }
                return true;
            }
        }
        self.set_spare(Spare::Ready);
        drop(spare);
        locked(&self.damage_known).retain(|(segment, _), _| *segment != number);
        true
    }

    /// Whether the segment still exists.
    pub(super) fn is_listed(&self, number: u64) -> bool {
        self.state().segments.contains_key(&number)
    }

    pub(super) fn publish_gauges(&self) {
        let state = self.state();
        metrics::gauge!("logweir_journal_bytes").set(state.bytes() as f64);
        metrics::gauge!("logweir_journal_quota_bytes").set(state.sizes.quota_bytes as f64);
        metrics::gauge!("logweir_journal_retained_bytes").set(state.retained_bytes() as f64);
        metrics::gauge!("logweir_journal_segments").set(state.segments.len() as f64);
        metrics::gauge!("logweir_journal_quarantine_bytes").set(self.quarantine_bytes.load(Ordering::Relaxed) as f64);
    }

    // Called by readers.

    /// Returns the first segment from `from` on that has durable frames of `lane` above `after_seq`.
    pub(super) fn view(&self, lane: Option<LaneId>, after_seq: u64, from: u64) -> Option<View> {
        let state = self.state();
        let has = |segment: &Segment| match lane {
            Some(lane) => segment.lanes.get(&lane).is_some_and(|seq| *seq > after_seq),
            None => segment.lanes.values().any(|seq| *seq > after_seq),
        };
        let (number, segment) = state.segments.range(from..).find(|(_, segment)| has(segment))?;
        let active = state.durable.segment == *number;
        let seq_last = segment.lanes.values().max().copied().unwrap_or(0);
        Some(View {
            number: *number,
            path: segment.path.clone(),
            seed: segment.seed,
            end: segment.end,
            seq_last,
            active,
        })
    }

    /// Counts and quarantines bytes that a reader cannot read, once.
    pub(super) fn report_damage(
        &self,
        view: &View,
        offset: u64,
        bytes: u64,
        seq_first: u64,
        seq_last: u64,
        reason: &str,
    ) {
        let mut damage_known = locked(&self.damage_known);
        let known = damage_known.get(&(view.number, offset)).copied();
        if known.is_some_and(|known| known >= seq_last) {
            return;
        }
        damage_known.insert((view.number, offset), seq_last);
        drop(damage_known);
        let seq_first = known.map_or(seq_first, |known| seq_first.max(known + 1));
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

fn run_item(RunFrame { kind, place, seq, payload }: RunFrame) -> Item {
    Item { header: FrameHeader::of_run(kind, seq, 0, &payload), place, payload, waiter: None }
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
pub(super) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
