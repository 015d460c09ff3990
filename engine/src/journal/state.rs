//! The decisions of the running journal, without a file or a thread: where the next frame goes, whether
//! there is room for it, which segments may go.
//!
//! - `given` runs ahead of `written` by what is in the writer's queue. When a group finds no room, nothing
//!   more is taken until the queue is empty; then `given` falls back to `written`, so that sequence
//!   numbers stay without a hole and the record counts true.
//! - The quota counts file sizes, those of segments that are planned but not made yet included, and always
//!   one segment more (the spare: the next open needs it) and the ballast. Each segment keeps room for a
//!   SEAL. So a journal at its quota can still be sealed and opened.
//! - Segments go from the oldest on, without a hole, so that a missing one is always damage.
//! - Retained segments give way to the quota.
//! - How far a lane is settled is what the database says, also when that is less than before: it may be put back to an
//!   earlier time, and then needs again what it had.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::dedup_index::{DedupEntry, DedupIndex, DedupKey};
use super::frame::{FRAME_ALIGN, Start, frame_bytes};
use super::recover::{SEAL_BYTES, Segment};
use super::segment::{SEGMENT_HEADER_BYTES, SEQ_MAX};
use super::{AppendError, Appended, LaneId, LaneTail};

/// An end of the journal: of what was given out, or of what is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Cursor {
    /// Last sequence number.
    pub(super) seq: u64,
    pub(super) segment: u64,
    /// Where the next frame starts.
    pub(super) offset: u64,
    /// Where frames must end; the SEAL's room lies behind it.
    pub(super) frames_end: u64,
    pub(super) lanes: BTreeMap<LaneId, LaneTail>,
}

/// Whether the next segment lies ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Spare {
    Ready,
    Missing,
    /// The disk was full when it was to be made.
    NoRoom,
}

/// What of the configuration is needed here.
#[derive(Clone, Debug)]
pub(super) struct Sizes {
    pub(super) segment_bytes: u64,
    pub(super) quota_bytes: u64,
    pub(super) ballast_bytes: u64,
    pub(super) retain_segments: usize,
    pub(super) retain_for: Duration,
}

/// The most settled segments whose files wait to be used again: what a busy minute takes.
const WAITING_MAX: u64 = 8;

impl Sizes {
    /// How many settled segments may wait: an eighth of the quota.
    fn waiting_max(&self) -> usize {
        let waiting = (self.quota_bytes / 8 / self.segment_bytes).clamp(1, WAITING_MAX);
        usize::try_from(waiting).expect("a small number")
    }
}

/// Where a frame goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) segment: u64,
    pub(super) offset: u64,
}

/// A frame's place, and the START frame that comes before it when it opens a segment.
pub(super) struct Placed {
    pub(super) start: Option<(Place, u64, Vec<u8>)>,
    pub(super) place: Place,
    pub(super) appended: Appended,
}

/// The state behind the journal's mutex.
pub(super) struct State {
    pub(super) sizes: Sizes,
    pub(super) run: Uuid,
    pub(super) runs: Vec<Uuid>,
    pub(super) given: Cursor,
    pub(super) written: Cursor,
    /// Why nothing is taken now.
    pub(super) refuses: Option<AppendError>,
    pub(super) segments: BTreeMap<u64, Segment>,
    pub(super) settled: BTreeMap<LaneId, u64>,
    pub(super) dedup_index: DedupIndex,
    pub(super) spare: Spare,
    /// Bytes of the ballast file as it is.
    pub(super) ballast_now: u64,
    /// How often `given` fell back.
    pub(super) generation: u64,
}

impl State {
    /// Whether a payload of `payload_len` would be taken now. A refusal stays until there is room again.
    pub(super) fn check_room(&mut self, payload_len: usize) -> Result<(), AppendError> {
        if let Some(reason) = &self.refuses {
            return Err(reason.clone());
        }
        if payload_len > self.payload_max() {
            return Err(AppendError::TooLarge { bytes: payload_len });
        }
        if self.fits(payload_len) {
            return Ok(());
        }
        let refused = self.check_next_segment();
        if let Err(reason) = &refused {
            self.refuses = Some(reason.clone());
        }
        refused
    }

    /// Whether another segment may be planned.
    fn check_next_segment(&self) -> Result<(), AppendError> {
        if self.bytes_with(self.planned_segments() + 2) > self.sizes.quota_bytes {
            return Err(AppendError::Quota);
        }
        if self.spare == Spare::NoRoom {
            return Err(AppendError::DiskFull);
        }
        Ok(())
    }

    /// Gives a frame its place in the order, unless it has a mark that says that it was there before.
    pub(super) fn place(
        &mut self,
        lane: LaneId,
        records: u32,
        payload_len: usize,
        payload_crc: u32,
        dedup_key: Option<DedupKey>,
    ) -> Result<Placed, AppendError> {
        self.check_room(payload_len)?;
        if dedup_key.is_some_and(|dedup_key| self.dedup_index.repeated(&dedup_key).is_some()) {
            return Err(AppendError::Repeated);
        }
        if self.given.seq + 2 > SEQ_MAX {
            return Err(AppendError::Poisoned("the sequence numbers are used up".to_owned()));
        }
        if !self.fits(payload_len) {
            self.next_segment();
        }
        // Also in a segment whose first group was taken back.
        let start = self.at_head().then(|| self.start_frame());
        let tail = self.given.lanes.entry(lane).or_default();
        let lane_prev_seq = tail.seq;
        self.given.seq += 1;
        *tail = LaneTail { seq: self.given.seq, records: tail.records + u64::from(records) };
        let appended = Appended {
            seq: tail.seq,
            lane_prev_seq,
            lane_records: tail.records,
            payload_crc,
            generation: self.generation,
        };
        let place = self.take(payload_len);
        if let Some(dedup_key) = dedup_key {
            self.dedup_index.give(DedupEntry { dedup_key, lane, seq: appended.seq });
        }
        Ok(Placed { start, place, appended })
    }

    fn next_segment(&mut self) {
        self.given.segment += 1;
        self.given.offset = SEGMENT_HEADER_BYTES as u64;
        self.given.frames_end = self.sizes.segment_bytes - SEAL_BYTES;
    }

    fn at_head(&self) -> bool {
        self.given.offset == SEGMENT_HEADER_BYTES as u64
    }

    /// The frame that opens a segment: it carries what would go with the segments before it.
    fn start_frame(&mut self) -> (Place, u64, Vec<u8>) {
        let (runs, lanes, dedup_index) = (self.runs.clone(), self.given.lanes.clone(), self.dedup_index.list());
        let start = Start { run: self.run, runs, lanes, dedup_index }.encode();
        self.given.seq += 1;
        (self.take(start.len()), self.given.seq, start)
    }

    fn take(&mut self, payload_len: usize) -> Place {
        let place = Place { segment: self.given.segment, offset: self.given.offset };
        self.given.offset += frame_bytes(payload_len);
        place
    }

    fn fits(&self, payload_len: usize) -> bool {
        // What fits behind a START in an empty segment was checked by `payload_max`.
        self.at_head() || self.given.offset + frame_bytes(payload_len) <= self.given.frames_end
    }

    /// The largest payload that a new segment takes.
    fn payload_max(&self) -> usize {
        // One lane more than now: the frame may be its first.
        let marks_bytes = self.dedup_index.bytes_max();
        let start = frame_bytes(Start::payload_bytes(self.runs.len(), self.given.lanes.len() + 1, marks_bytes));
        let taken = SEGMENT_HEADER_BYTES as u64 + start + frame_bytes(0) + SEAL_BYTES;
        let semaphore = usize::try_from(self.sizes.segment_bytes.saturating_sub(taken)).unwrap_or(usize::MAX);
        (semaphore & !(FRAME_ALIGN as usize - 1)).min(crate::codec::PAYLOAD_BYTES_MAX)
    }

    /// Segments that queued frames will make.
    fn planned_segments(&self) -> u64 {
        let made = self.segments.last_key_value().map_or(0, |(number, _)| *number);
        self.given.segment.saturating_sub(made)
    }

    fn segment_file_bytes(&self) -> u64 {
        self.segments.values().map(|segment| segment.size).sum()
    }

    fn bytes_with(&self, more_segments: u64) -> u64 {
        self.segment_file_bytes() + more_segments * self.sizes.segment_bytes + self.sizes.ballast_bytes
    }

    /// Bytes of all files now.
    pub(super) fn bytes(&self) -> u64 {
        let spare = if self.spare == Spare::Ready { self.sizes.segment_bytes } else { 0 };
        self.segment_file_bytes() + spare + self.ballast_now
    }

    /// Whether the quota has room for the spare that lies ready for the next segment.
    pub(super) fn may_make_spare(&self) -> bool {
        self.bytes_with(1) <= self.sizes.quota_bytes
    }

    /// The writer goes on in a new segment.
    pub(super) fn enlist(&mut self, number: u64, segment: Segment) {
        self.written.segment = number;
        self.written.offset = segment.end;
        self.written.frames_end = segment.size - SEAL_BYTES;
        self.segments.insert(number, segment);
    }

    /// A group is on disk: up to `seq`, which ends at `offset`; `lanes` are the newest frames in it.
    pub(super) fn advance(&mut self, seq: u64, offset: u64, lanes: &BTreeMap<LaneId, LaneTail>) {
        if let Some(segment) = self.segments.get_mut(&self.written.segment) {
            segment.end = offset;
            segment.lanes.extend(lanes.iter().map(|(lane, tail)| (*lane, tail.seq)));
        }
        self.dedup_index.written(seq);
        self.written.seq = seq;
        self.written.offset = offset;
        self.written.lanes.extend(lanes);
    }

    /// The queue is empty and nothing is taken: what was given out and not written never was.
    pub(super) fn fall_back(&mut self) {
        self.given = self.written.clone();
        self.dedup_index.fall_back();
        self.generation += 1;
    }

    /// Says whether a segment is settled now that was not, or is not any more.
    pub(super) fn commit(&mut self, lane: LaneId, seq: u64, now: Instant) -> bool {
        self.settled.insert(lane, seq);
        let mut changed = false;
        for (_, segment) in self.segments.range_mut(..self.written.segment) {
            let before = segment.settled_at;
            segment.settled_at = is_settled(&self.settled, segment).then(|| before.unwrap_or(now));
            changed |= before.is_some() != segment.settled_at.is_some();
        }
        changed
    }

    /// Bytes of segments that the database has, and that are kept all the same: they give way to what it does not have.
    pub(super) fn retained_bytes(&self) -> u64 {
        let closed = self.segments.range(..self.written.segment).map(|(_, segment)| segment);
        closed.take_while(|segment| is_settled(&self.settled, segment)).map(|segment| segment.size).sum()
    }

    /// The oldest segment, if it may go. Some more than are retained wait until their files are needed again.
    pub(super) fn removable(&self, now: Instant) -> Option<(u64, &Segment)> {
        let closed = || self.segments.range(..self.written.segment);
        let (number, oldest) = closed().next()?;
        let waits = if self.is_reusable(oldest) && self.spare == Spare::Ready { self.sizes.waiting_max() } else { 0 };
        let keep = self.sizes.retain_segments + waits;
        let count = closed().take_while(|(_, segment)| is_settled(&self.settled, segment)).take(keep + 1).count();
        let pressed =
            self.refuses == Some(AppendError::DiskFull) || self.check_next_segment() == Err(AppendError::Quota);
        let may_go = (count > keep && self.is_old(oldest, now)) || (count > 0 && pressed);
        may_go.then_some((*number, oldest))
    }

    /// Whether the segment's file is like one that is made for the next.
    pub(super) fn is_reusable(&self, segment: &Segment) -> bool {
        segment.size == self.sizes.segment_bytes
    }

    /// Whether a settled segment has been kept for as long as it is to be.
    fn is_old(&self, segment: &Segment, now: Instant) -> bool {
        let kept_for = segment.settled_at.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        kept_for >= self.sizes.retain_for
    }

    /// A segment's file could not go after all.
    pub(super) fn stays(&mut self, number: u64, segment: Segment) {
        self.segments.insert(number, segment);
    }

    /// A segment's file is gone, or about to.
    pub(super) fn removed(&mut self, number: u64) -> Option<Segment> {
        let removed = self.segments.remove(&number);
        if self.refuses == Some(AppendError::Quota) && self.check_next_segment() != Err(AppendError::Quota) {
            self.refuses = None;
        }
        removed
    }
}

fn is_settled(settled: &BTreeMap<LaneId, u64>, segment: &Segment) -> bool {
    segment.lanes.iter().all(|(lane, seq)| settled.get(lane).is_some_and(|settled| settled >= seq))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::journal::frame::Seed;

    fn segment(size: u64) -> Segment {
        Segment {
            path: PathBuf::new(),
            size,
            end: 96,
            seed: Seed::new(Uuid::nil(), 1),
            first_seq: 1,
            lanes: BTreeMap::new(),
            settled_at: None,
        }
    }

    fn state(segment_bytes: u64, quota_bytes: u64) -> State {
        let cursor =
            Cursor { seq: 1, segment: 1, offset: 200, frames_end: segment_bytes - SEAL_BYTES, lanes: BTreeMap::new() };
        State {
            sizes: Sizes {
                segment_bytes,
                quota_bytes,
                ballast_bytes: 0,
                retain_segments: 0,
                retain_for: Duration::ZERO,
            },
            run: Uuid::nil(),
            runs: Vec::new(),
            given: cursor.clone(),
            written: cursor,
            refuses: None,
            segments: BTreeMap::from([(1, segment(segment_bytes))]),
            settled: BTreeMap::new(),
            dedup_index: DedupIndex::new(segment_bytes, vec![]),
            spare: Spare::Ready,
            ballast_now: 0,
            generation: 0,
        }
    }

    #[test]
    fn a_lane_counts_its_records_and_knows_its_frame_before() {
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
        let (place, seq, payload) = placed.start.unwrap();
        assert_eq!((place, seq), (Place { segment: 2, offset: 96 }, 3));
        assert_eq!(Start::decode(&payload).unwrap().lanes[&0], LaneTail { seq: 2, records: 1 });
        assert_eq!(placed.place, Place { segment: 2, offset: 96 + frame_bytes(payload.len()) });
        assert_eq!(placed.appended.seq, 4);
    }

    #[test]
    fn the_quota_leaves_room_for_the_next_open_and_lasts_until_a_segment_goes() {
        // Active, one more and the spare: three segments.
        let mut state = state(1 << 16, 3 << 16);
        for _ in 0..2 {
            state.place(0, 1, 60_000, 0, None).ok().unwrap();
        }
        assert_eq!(state.place(0, 1, 60_000, 0, None).err(), Some(AppendError::Quota));
        assert_eq!(state.check_room(1), Err(AppendError::Quota), "small ones are refused alike");
        state.enlist(2, segment(1 << 16));
        state.advance(4, 60_000, &BTreeMap::from([(0, LaneTail { seq: 4, records: 2 })]));
        assert!(state.removable(Instant::now()).is_some(), "segment 1 holds no lane");
        state.removed(1);
        assert_eq!(state.check_room(60_000), Ok(()));
    }

    #[test]
    fn retained_segments_give_way_to_the_quota_only() {
        let mut state = state(1 << 16, 10 << 16);
        state.sizes.retain_segments = 1;
        state.segments.insert(2, segment(1 << 16));
        state.segments.insert(3, segment(1 << 16));
        state.written.segment = 3;
        state.given.segment = 3;
        assert_eq!(state.removable(Instant::now()).map(|(number, _)| number), None, "one waits to be used again");
        state.spare = Spare::Missing;
        assert_eq!(state.removable(Instant::now()).map(|(number, _)| number), Some(1));
        state.removed(1);
        assert_eq!(state.removable(Instant::now()).map(|(number, _)| number), None);
        state.sizes.quota_bytes = 3 << 16;
        assert_eq!(state.removable(Instant::now()).map(|(number, _)| number), Some(2));
    }

    #[test]
    fn a_settled_segment_stays_for_its_time_and_is_needed_again_when_the_database_goes_back() {
        let mut state = state(1 << 16, 10 << 16);
        (state.sizes.retain_for, state.spare) = (Duration::from_secs(60), Spare::Missing);
        state.segments.get_mut(&1).unwrap().lanes.insert(0, 10);
        state.segments.insert(2, segment(1 << 16));
        (state.written.segment, state.given.segment) = (2, 2);
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        assert!(state.commit(0, 10, start));
        assert!(state.removable(after(59)).is_none());
        assert_eq!(state.retained_bytes(), 1 << 16);
        assert!(state.removable(after(60)).is_some());
        state.commit(0, 9, after(61));
        assert!(state.removable(after(1000)).is_none(), "the database has it no more");
        assert_eq!(state.retained_bytes(), 0);
        state.commit(0, 11, after(70));
        assert!(state.removable(after(129)).is_none(), "its time begins anew");
        assert!(state.removable(after(130)).is_some());
        state.commit(0, 12, after(100));
        assert!(state.removable(after(130)).is_some(), "and with that settling, not with each");
        state.sizes.quota_bytes = 2 << 16;
        assert!(state.removable(after(71)).is_some(), "the quota comes first");
    }

    #[test]
    fn a_lane_that_was_never_settled_keeps_its_segments_and_all_newer_ones() {
        let mut state = state(1 << 16, 10 << 16);
        state.segments.get_mut(&1).unwrap().lanes.extend([(0, 10), (1, 11)]);
        state.segments.insert(2, segment(1 << 16));
        state.segments.insert(3, segment(1 << 16));
        state.written.segment = 3;
        state.commit(0, 100, Instant::now());
        assert!(state.removable(Instant::now()).is_none());
        state.commit(1, 10, Instant::now());
        assert!(state.removable(Instant::now()).is_none());
        state.commit(1, 11, Instant::now());
        assert_eq!(state.removable(Instant::now()).map(|(number, _)| number), Some(1));
    }

    #[test]
    fn sequence_numbers_end_before_a_signed_column_does() {
        let mut state = state(1 << 16, 1 << 20);
        state.given.seq = SEQ_MAX - 2;
        assert!(state.place(0, 1, 1, 0, None).is_ok());
        assert!(matches!(state.place(0, 1, 1, 0, None), Err(AppendError::Poisoned(_))));
    }

    #[test]
    fn what_was_given_out_and_not_written_falls_back() {
        let mut state = state(1 << 16, 1 << 20);
        let before = state.given.clone();
        state.place(0, 7, 60_000, 0, None).ok().unwrap();
        state.place(0, 7, 60_000, 0, None).ok().unwrap();
        state.fall_back();
        assert_eq!(state.given, before);
        // Into the new segment, but its first group finds no room: the next one still opens with a START.
        state.place(0, 7, 60_000, 0, None).ok().unwrap();
        state.enlist(2, segment(1 << 16));
        state.fall_back();
        assert!(state.place(0, 7, 100, 0, None).ok().unwrap().start.is_some());
    }
}
