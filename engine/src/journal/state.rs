//! The decisions of the running journal, without files or threads: where the next frame goes, whether it fits, which
//! segments may be removed.
//!
//! - `allocated` is ahead of `durable` by the contents of the writer's queue. If the disk is full, appends are rejected
//!   until the queue is empty; then `allocated` rolls back to `durable`, which keeps the sequence numbers without gaps
//!   and the record counts correct.
//! - The quota counts file sizes, including planned segments that do not exist yet, plus one more segment (the spare,
//!   which the next open needs) and the ballast. Each segment reserves space for a SEAL. So a journal at its quota can
//!   still be sealed and opened.
//! - A journal that is opened at its quota accepts nothing until a segment has been removed: its new segment is larger
//!   than what the last run left in its own.
//! - Segments are removed oldest first, without gaps, so that a missing segment is always damage.
//! - Retained segments are removed early if the quota requires it.
//! - The committed position of a lane is what the database reports, even if it moves back: a restored database needs
//!   again what it had before.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::acceptance::Acceptance;
use super::dedup_index::{DedupEntry, DedupIndex, DedupKey};
use super::error::AppendError;
use super::frame::{FRAME_ALIGN, FRAME_HEADER_BYTES, Kind, PAYLOAD_BYTES_MAX, Start, frame_bytes};
use super::identity::Identity;
use super::recover::{SEAL_BYTES, Segment};
use super::segment::{SEGMENT_HEADER_BYTES, SEQ_MAX};
use super::types::{Appended, LaneId, LaneTail};
use super::unsynced::Unsynced;

/// An end of the log: the allocated or the durable one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LogEnd {
    /// Last sequence number.
    pub(super) seq: u64,
    pub(super) segment: u64,
    /// Offset of the next frame.
    pub(super) offset: u64,
    /// Limit for the end of a frame; the space for the SEAL follows.
    pub(super) frames_end: u64,
    pub(super) lanes: BTreeMap<LaneId, LaneTail>,
}

/// State of the next segment's file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Spare {
    Ready,
    Missing,
    /// The disk was full when it was to be created.
    NoSpace,
}

/// The part of the configuration that is needed here.
#[derive(Clone, Debug)]
pub(super) struct Sizes {
    pub(super) segment_bytes: u64,
    pub(super) quota_bytes: u64,
    pub(super) ballast_bytes: u64,
    pub(super) retain_segments: usize,
    pub(super) retain_for: Duration,
}

/// Size of a CONFIRM frame.
const CONFIRM_BYTES: u64 = (FRAME_HEADER_BYTES + 16) as u64;

/// Maximum number of committed segments whose files are kept for reuse: the need of a busy minute.
const REUSABLE_MAX: u64 = 8;

impl Sizes {
    /// Number of committed segments kept for reuse: an eighth of the quota.
    fn reusable_max(&self) -> usize {
        let count = (self.quota_bytes / 8 / self.segment_bytes).clamp(1, REUSABLE_MAX);
        usize::try_from(count).expect("at most REUSABLE_MAX")
    }
}

/// Position of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) segment: u64,
    pub(super) offset: u64,
}

/// A frame that belongs to no lane: START or CONFIRM.
pub(super) struct RunFrame {
    pub(super) kind: Kind,
    pub(super) place: Place,
    pub(super) seq: u64,
    pub(super) payload: Vec<u8>,
}

/// Position of a frame, and the frame that precedes it: a START at the head of a segment, or a CONFIRM.
pub(super) struct Placed {
    pub(super) before: Option<RunFrame>,
    pub(super) place: Place,
    pub(super) appended: Appended,
}

/// The state behind the journal's mutex.
#[cfg_attr(test, derive(Clone))]
pub(super) struct State {
    pub(super) sizes: Sizes,
    pub(super) identity: Identity,
    /// Sequence number of the first frame that says that this run is confirmed; 0 if there is none.
    pub(super) confirmed_seq: u64,
    pub(super) runs: Vec<Uuid>,
    pub(super) allocated: LogEnd,
    pub(super) durable: LogEnd,
    pub(super) acceptance: Acceptance,
    pub(super) unsynced: Unsynced,
    pub(super) segments: BTreeMap<u64, Segment>,
    pub(super) committed: BTreeMap<LaneId, u64>,
    pub(super) dedup_index: DedupIndex,
    pub(super) spare: Spare,
    /// Actual size of the ballast file.
    pub(super) ballast_now: u64,
    /// Number of roll-backs of `allocated`.
    pub(super) generation: u64,
}

impl State {
    /// Whether a payload of `payload_len` would be accepted now. A rejection persists until space is available again.
    pub(super) fn check_capacity(&mut self, payload_len: usize) -> Result<(), AppendError> {
        if let Some(reason) = self.acceptance.reject_reason() {
            return Err(reason);
        }
        if payload_len > self.payload_max() {
            return Err(AppendError::TooLarge { bytes: payload_len });
        }
        if self.fits(payload_len) {
            return Ok(());
        }
        let checked = self.check_next_segment();
        if let Err(reason) = &checked {
            self.acceptance.reject(reason);
        }
        checked
    }

    /// After an open, which needs a new segment even at the quota: it is filled only if the quota has space for it.
    /// Otherwise each restart would take a segment more.
    pub(super) fn check_first_segment(&mut self) {
        if self.is_over_quota(1) {
            self.acceptance.reject(&AppendError::Quota);
        }
    }

    fn is_over_quota(&self, more_segments: u64) -> bool {
        self.bytes_with(self.planned_segments() + more_segments) > self.sizes.quota_bytes
    }

    /// Whether another segment may be planned.
    fn check_next_segment(&self) -> Result<(), AppendError> {
        if self.is_over_quota(2) {
            return Err(AppendError::Quota);
        }
        if self.spare == Spare::NoSpace {
            return Err(AppendError::DiskFull);
        }
        Ok(())
    }

    /// Assigns a frame its sequence number and position, unless its dedup key is known at the present time.
    pub(super) fn place(
        &mut self,
        lane: LaneId,
        records: u32,
        payload_len: usize,
        payload_crc: u32,
        dedup: Option<(DedupKey, Instant)>,
    ) -> Result<Placed, AppendError> {
        self.check_capacity(payload_len)?;
        if dedup.is_some_and(|(dedup_key, now)| self.dedup_index.find_duplicate(&dedup_key, now).is_some()) {
            return Err(AppendError::Duplicate);
        }
        if self.allocated.seq + 2 > SEQ_MAX {
            return Err(AppendError::Poisoned("the sequence numbers are exhausted".to_owned()));
        }
        if !self.fits(payload_len) {
            self.next_segment();
        }
        // Also in a segment whose first group was rolled back.
        let before = if self.at_head() { Some(self.start_frame()) } else { self.confirm_frame() };
        let tail = self.allocated.lanes.entry(lane).or_default();
        let lane_prev_seq = tail.seq;
        self.allocated.seq += 1;
        *tail = LaneTail { seq: self.allocated.seq, records: tail.records + u64::from(records) };
        let appended = Appended {
            seq: tail.seq,
            lane_prev_seq,
            lane_records: tail.records,
            payload_crc,
            generation: self.generation,
        };
        let place = self.take(payload_len);
        if let Some((dedup_key, now)) = dedup {
            self.dedup_index.insert(DedupEntry { dedup_key, lane, seq: appended.seq }, now);
        }
        Ok(Placed { before, place, appended })
    }

    fn next_segment(&mut self) {
        self.allocated.segment += 1;
        self.allocated.offset = SEGMENT_HEADER_BYTES as u64;
        self.allocated.frames_end = self.sizes.segment_bytes - SEAL_BYTES;
    }

    fn at_head(&self) -> bool {
        self.allocated.offset == SEGMENT_HEADER_BYTES as u64
    }

    /// Builds the frame that opens a segment: it repeats what would be lost when the previous segments are removed.
    fn start_frame(&mut self) -> RunFrame {
        let (runs, lanes, dedup_entries) =
            (self.runs.clone(), self.allocated.lanes.clone(), self.dedup_index.start_entries());
        let Identity { writer, run, confirmed, .. } = self.identity;
        let start = Start { writer, run, confirmed, runs, lanes, dedup_entries }.encode();
        self.run_frame(Kind::Start, start)
    }

    /// Builds the frame that says that this run is confirmed, unless one does.
    fn confirm_frame(&mut self) -> Option<RunFrame> {
        self.owes_confirmation().then(|| self.run_frame(Kind::Confirm, self.identity.run.as_bytes().to_vec()))
    }

    fn run_frame(&mut self, kind: Kind, payload: Vec<u8>) -> RunFrame {
        let place = self.take(payload.len());
        self.allocated.seq += 1;
        let seq = self.allocated.seq;
        if self.owes_confirmation() {
            self.confirmed_seq = seq;
        }
        RunFrame { kind, place, seq, payload }
    }

    fn owes_confirmation(&self) -> bool {
        self.identity.confirmed == Some(self.identity.run) && self.confirmed_seq == 0
    }

    /// The database has confirmed this run. Returns the frame that records this; `None` if one has, or if it does not fit
    /// now: then it is written with the next frame.
    pub(super) fn confirm_run(&mut self) -> Option<RunFrame> {
        self.identity.confirmed = Some(self.identity.run);
        let is_writable = matches!(self.acceptance, Acceptance::Open | Acceptance::Quota);
        let space = self.allocated.frames_end.saturating_sub(self.allocated.offset);
        let fits = space >= CONFIRM_BYTES && !self.at_head() && self.allocated.seq < SEQ_MAX;
        if is_writable && fits { self.confirm_frame() } else { None }
    }

    fn take(&mut self, payload_len: usize) -> Place {
        let place = Place { segment: self.allocated.segment, offset: self.allocated.offset };
        self.allocated.offset += frame_bytes(payload_len);
        place
    }

    fn fits(&self, payload_len: usize) -> bool {
        // At the head `payload_max` has ensured that the frame fits behind the START.
        let confirm_bytes = if self.owes_confirmation() { CONFIRM_BYTES } else { 0 };
        self.at_head() || self.allocated.offset + confirm_bytes + frame_bytes(payload_len) <= self.allocated.frames_end
    }

    /// Largest payload that fits into a new segment.
    fn payload_max(&self) -> usize {
        // One lane more than now: the frame may be the first of its lane.
        let dedup_bytes = self.dedup_index.start_bytes_max();
        let start = frame_bytes(Start::payload_bytes(self.runs.len(), self.allocated.lanes.len() + 1, dedup_bytes));
        let taken = SEGMENT_HEADER_BYTES as u64 + start + frame_bytes(0) + SEAL_BYTES;
        let payload_max = usize::try_from(self.sizes.segment_bytes.saturating_sub(taken)).unwrap_or(usize::MAX);
        (payload_max & !(FRAME_ALIGN as usize - 1)).min(PAYLOAD_BYTES_MAX)
    }

    /// Number of segments that the queued frames will create.
    fn planned_segments(&self) -> u64 {
        let made = self.segments.last_key_value().map_or(0, |(number, _)| *number);
        self.allocated.segment.saturating_sub(made)
    }

    fn segment_file_bytes(&self) -> u64 {
        self.segments.values().map(|segment| segment.size).sum()
    }

    fn bytes_with(&self, more_segments: u64) -> u64 {
        self.segment_file_bytes() + more_segments * self.sizes.segment_bytes + self.sizes.ballast_bytes
    }

    /// Current size of all files.
    pub(super) fn bytes(&self) -> u64 {
        let spare = if self.spare == Spare::Ready { self.sizes.segment_bytes } else { 0 };
        self.segment_file_bytes() + spare + self.ballast_now
    }

    /// Whether the quota allows a spare for the next segment.
    pub(super) fn may_make_spare(&self) -> bool {
        self.bytes_with(1) <= self.sizes.quota_bytes
    }

    /// The writer continues in a new segment.
    pub(super) fn add_segment(&mut self, number: u64, segment: Segment) {
        self.durable.segment = number;
        self.durable.offset = segment.end;
        self.durable.frames_end = segment.size - SEAL_BYTES;
        self.segments.insert(number, segment);
    }

    /// A group is durable up to `seq`, which ends at `offset`; `lanes` are the last frames of the lanes in it.
    pub(super) fn advance(&mut self, seq: u64, offset: u64, lanes: &BTreeMap<LaneId, LaneTail>) {
        if let Some(segment) = self.segments.get_mut(&self.durable.segment) {
            segment.end = offset;
            segment.lanes.extend(lanes.iter().map(|(lane, tail)| (*lane, tail.seq)));
        }
        self.dedup_index.mark_durable(seq);
        self.unsynced.advance(seq, self.allocated.seq);
        self.durable.seq = seq;
        self.durable.offset = offset;
        self.durable.lanes.extend(lanes);
    }

    /// The queue is empty and appends are rejected: voids everything that was allocated but not written.
    pub(super) fn roll_back(&mut self) {
        self.allocated = self.durable.clone();
        self.unsynced.advance(self.durable.seq, self.durable.seq);
        if self.confirmed_seq > self.durable.seq {
            self.confirmed_seq = 0;
        }
        self.dedup_index.roll_back();
        self.generation += 1;
        self.acceptance.rolled_back();
    }

    /// Records the committed position of a lane. Returns whether any segment became committed or uncommitted.
    pub(super) fn commit(&mut self, lane: LaneId, seq: u64, now: Instant) -> bool {
        self.committed.insert(lane, seq);
        let mut changed = false;
        for (_, segment) in self.segments.range_mut(..self.durable.segment) {
            let before = segment.committed_at;
            segment.committed_at = is_committed(&self.committed, segment).then(|| before.unwrap_or(now));
            changed |= before.is_some() != segment.committed_at.is_some();
        }
        changed
    }

    /// Size of committed segments that still exist: the quota may reclaim them.
    pub(super) fn retained_bytes(&self) -> u64 {
        let closed = self.segments.range(..self.durable.segment).map(|(_, segment)| segment);
        closed.take_while(|segment| is_committed(&self.committed, segment)).map(|segment| segment.size).sum()
    }

    /// Returns the oldest segment if it may be removed. Some committed segments beyond the retained ones are kept until
    /// their files are reused.
    pub(super) fn removable(&self, now: Instant) -> Option<(u64, &Segment)> {
        let closed = || self.segments.range(..self.durable.segment);
        let (number, oldest) = closed().next()?;
        let reusable =
            if self.is_reusable(oldest) && self.spare == Spare::Ready { self.sizes.reusable_max() } else { 0 };
        let keep = self.sizes.retain_segments + reusable;
        let count = closed().take_while(|(_, segment)| is_committed(&self.committed, segment)).take(keep + 1).count();
        let needs_space = self.acceptance.reject_reason() == Some(AppendError::DiskFull)
            || self.check_next_segment() == Err(AppendError::Quota);
        let may_go = (count > keep && self.is_old(oldest, now)) || (count > 0 && needs_space);
        may_go.then_some((*number, oldest))
    }

    /// Whether the segment's file has the size of a new segment.
    pub(super) fn is_reusable(&self, segment: &Segment) -> bool {
        segment.size == self.sizes.segment_bytes
    }

    /// Whether a committed segment has been retained for `retain_for`.
    fn is_old(&self, segment: &Segment, now: Instant) -> bool {
        let committed_for = segment.committed_at.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        committed_for >= self.sizes.retain_for
    }

    /// Reinstates a segment whose file could not be removed.
    pub(super) fn restore_segment(&mut self, number: u64, segment: Segment) {
        self.segments.insert(number, segment);
    }

    /// Unlists a segment whose file is, or is about to be, removed.
    pub(super) fn remove_segment(&mut self, number: u64) -> Option<Segment> {
        let removed = self.segments.remove(&number);
        if self.check_next_segment() != Err(AppendError::Quota) {
            self.acceptance.quota_released();
        }
        removed
    }
}

fn is_committed(committed: &BTreeMap<LaneId, u64>, segment: &Segment) -> bool {
    segment.lanes.iter().all(|(lane, seq)| committed.get(lane).is_some_and(|committed| committed >= seq))
}

#[cfg(test)]
pub(super) mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::journal::frame::Seed;

    /// A segment without frames.
    pub(in crate::journal) fn segment(size: u64) -> Segment {
        Segment {
            path: PathBuf::new(),
            size,
            end: SEGMENT_HEADER_BYTES as u64,
            seed: Seed::new(Uuid::nil(), 1),
            first_seq: 1,
            lanes: BTreeMap::new(),
            committed_at: None,
        }
    }

    /// The state of a journal with one segment, in which the START frame is.
    pub(in crate::journal) fn state(segment_bytes: u64, quota_bytes: u64) -> State {
        let log_end =
            LogEnd { seq: 1, segment: 1, offset: 200, frames_end: segment_bytes - SEAL_BYTES, lanes: BTreeMap::new() };
        State {
            sizes: Sizes {
                segment_bytes,
                quota_bytes,
                ballast_bytes: 0,
                retain_segments: 0,
                retain_for: Duration::ZERO,
            },
            identity: Identity::default(),
            confirmed_seq: 0,
            runs: Vec::new(),
            allocated: log_end.clone(),
            durable: log_end,
            acceptance: Acceptance::Open,
            unsynced: Unsynced::default(),
            segments: BTreeMap::from([(1, segment(segment_bytes))]),
            committed: BTreeMap::new(),
            dedup_index: DedupIndex::new(segment_bytes),
            spare: Spare::Ready,
            ballast_now: 0,
            generation: 0,
        }
    }

    #[test]
    fn a_frame_carries_the_record_count_and_the_previous_frame_of_its_lane() {
        let mut state = state(1 << 16, 1 << 20);
        let first = state.place(3, 10, 100, 0, None).ok().unwrap().appended;
        let other = state.place(4, 1, 100, 0, None).ok().unwrap().appended;
        let second = state.place(3, 5, 100, 0, None).ok().unwrap().appended;
        assert_eq!((first.seq, first.lane_prev_seq, first.lane_records), (2, 0, 10));
        assert_eq!((other.seq, other.lane_prev_seq, other.lane_records), (3, 0, 1));
        assert_eq!((second.seq, second.lane_prev_seq, second.lane_records), (4, 2, 15));
    }

    #[test]
    fn a_new_segment_opens_with_a_start_that_takes_a_sequence_number() {
        let mut state = state(1 << 16, 1 << 20);
        state.place(0, 1, 60_000, 0, None).ok().unwrap();
        let placed = state.place(0, 1, 60_000, 0, None).ok().unwrap();
        let RunFrame { kind, place, seq, payload } = placed.before.unwrap();
        let head = SEGMENT_HEADER_BYTES as u64;
        assert_eq!((kind, place, seq), (Kind::Start, Place { segment: 2, offset: head }, 3));
        assert_eq!(Start::decode(&payload).unwrap().lanes[&0], LaneTail { seq: 2, records: 1 });
        assert_eq!(placed.place, Place { segment: 2, offset: head + frame_bytes(payload.len()) });
        assert_eq!(placed.appended.seq, 4);
    }

    #[test]
    fn a_confirmed_run_is_written_once_and_again_if_that_was_rolled_back() {
        let mut state = state(1 << 16, 1 << 20);
        state.identity.run = Uuid::from_u128(7);
        let kinds = |before: Option<RunFrame>| before.map(|before| before.kind);
        assert_eq!(kinds(state.place(0, 1, 100, 0, None).ok().unwrap().before), None);
        let confirm = state.confirm_run().unwrap();
        assert_eq!((confirm.kind, &confirm.payload[..]), (Kind::Confirm, &state.identity.run.as_bytes()[..]));
        assert_eq!((confirm.place.offset, confirm.seq), (200 + frame_bytes(100), 3));
        assert!(state.confirm_run().is_none(), "it is queued");
        let next = state.place(0, 1, 100, 0, None).ok().unwrap();
        assert_eq!((kinds(next.before), next.appended.seq), (None, 4));
        state.acceptance.write_failed();
        assert!(state.confirm_run().is_none(), "nothing may be queued before the roll-back");
        state.roll_back();
        state.acceptance.space_made();
        let again = state.place(0, 1, 100, 0, None).ok().unwrap();
        assert_eq!((kinds(again.before), again.appended.seq), (Some(Kind::Confirm), 3));
        // A START says it as well.
        state.roll_back();
        state.place(0, 1, 60_000, 0, None).ok().unwrap_or_else(|| panic!("fits into a segment"));
        assert!(!state.owes_confirmation());
    }

    #[test]
    fn the_quota_reserves_space_for_the_next_open_and_applies_until_a_segment_is_removed() {
        // Active, next and spare: three segments.
        let mut state = state(1 << 16, 3 << 16);
        for _ in 0..2 {
            state.place(0, 1, 60_000, 0, None).ok().unwrap();
        }
        assert_eq!(state.place(0, 1, 60_000, 0, None).err(), Some(AppendError::Quota));
        assert_eq!(state.check_capacity(1), Err(AppendError::Quota), "small payloads are rejected, too");
        state.add_segment(2, segment(1 << 16));
        state.advance(4, 60_000, &BTreeMap::from([(0, LaneTail { seq: 4, records: 2 })]));
        assert!(state.removable(Instant::now()).is_some(), "segment 1 holds no lane");
        state.remove_segment(1);
        assert_eq!(state.check_capacity(60_000), Ok(()));
    }

    #[test]
    fn retained_segments_are_removed_early_only_for_the_quota() {
        let mut state = state(1 << 16, 10 << 16);
        state.sizes.retain_segments = 1;
        state.segments.insert(2, segment(1 << 16));
        state.segments.insert(3, segment(1 << 16));
        state.durable.segment = 3;
        state.allocated.segment = 3;
        assert_eq!(state.removable(Instant::now()).map(|(number, _)| number), None, "one is kept for reuse");
        state.spare = Spare::Missing;
        assert_eq!(state.removable(Instant::now()).map(|(number, _)| number), Some(1));
        state.remove_segment(1);
        assert_eq!(state.removable(Instant::now()).map(|(number, _)| number), None);
        state.sizes.quota_bytes = 3 << 16;
        assert_eq!(state.removable(Instant::now()).map(|(number, _)| number), Some(2));
    }

    #[test]
    fn a_committed_segment_is_retained_and_becomes_uncommitted_when_the_database_moves_back() {
        let mut state = state(1 << 16, 10 << 16);
        (state.sizes.retain_for, state.spare) = (Duration::from_secs(60), Spare::Missing);
        state.segments.get_mut(&1).unwrap().lanes.insert(0, 10);
        state.segments.insert(2, segment(1 << 16));
        (state.durable.segment, state.allocated.segment) = (2, 2);
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        assert!(state.commit(0, 10, start));
        assert!(state.removable(after(59)).is_none());
        assert_eq!(state.retained_bytes(), 1 << 16);
        assert!(state.removable(after(60)).is_some());
        state.commit(0, 9, after(61));
        assert!(state.removable(after(1000)).is_none(), "it is no longer committed");
        assert_eq!(state.retained_bytes(), 0);
        state.commit(0, 11, after(70));
        assert!(state.removable(after(129)).is_none(), "its retention restarts");
        assert!(state.removable(after(130)).is_some());
        state.commit(0, 12, after(100));
        assert!(state.removable(after(130)).is_some(), "later commits do not restart it");
        state.sizes.quota_bytes = 2 << 16;
        assert!(state.removable(after(71)).is_some(), "the quota takes precedence");
    }

    #[test]
    fn a_lane_that_was_never_committed_keeps_its_segments_and_all_later_ones() {
        let mut state = state(1 << 16, 10 << 16);
        state.segments.get_mut(&1).unwrap().lanes.extend([(0, 10), (1, 11)]);
        state.segments.insert(2, segment(1 << 16));
        state.segments.insert(3, segment(1 << 16));
        state.durable.segment = 3;
        state.commit(0, 100, Instant::now());
        assert!(state.removable(Instant::now()).is_none());
        state.commit(1, 10, Instant::now());
        assert!(state.removable(Instant::now()).is_none());
        state.commit(1, 11, Instant::now());
        assert_eq!(state.removable(Instant::now()).map(|(number, _)| number), Some(1));
    }

    #[test]
    fn sequence_numbers_stay_within_a_signed_column() {
        let mut state = state(1 << 16, 1 << 20);
        state.allocated.seq = SEQ_MAX - 2;
        assert!(state.place(0, 1, 1, 0, None).is_ok());
        assert!(matches!(state.place(0, 1, 1, 0, None), Err(AppendError::Poisoned(_))));
    }

    #[test]
    fn allocated_frames_that_were_not_written_are_rolled_back() {
        let mut state = state(1 << 16, 1 << 20);
        let before = state.allocated.clone();
        state.place(0, 7, 60_000, 0, None).ok().unwrap();
        state.place(0, 7, 60_000, 0, None).ok().unwrap();
        state.roll_back();
        assert_eq!(state.allocated, before);
        // Rotates, but the disk is full for the first group: the next one still opens with a START.
        state.place(0, 7, 60_000, 0, None).ok().unwrap();
        state.add_segment(2, segment(1 << 16));
        state.roll_back();
        assert!(state.place(0, 7, 100, 0, None).ok().unwrap().before.is_some());
    }
}
