//! What was taken in once and must not be taken in again: a mark per request that a client may send again, and one per
//! source that reads on from a position.
//!
//! - A mark travels in its frame, and each START repeats those that are remembered: so they outlive the segments that they
//!   came in, and a restart knows them before anything is taken in.
//! - A frame is a repetition if its key is known with the same or a higher position. Requests have position 0, so that a
//!   second one is always a repetition; a file's position grows.
//! - Requests are forgotten after [`WINDOW`], sources never by age; of each kind there are only so many, and the one that
//!   came longest ago goes first.
//! - A frame that was given a number and taken back again (the disk was full) leaves no mark: what it replaced is put back.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use super::LaneId;

/// How long a request is remembered.
pub const WINDOW: Duration = Duration::from_secs(3600);

/// Bytes of a mark at the head of a payload: key, position, time.
pub(super) const MARK_BYTES: usize = 32;
/// Bytes of one that is remembered in a START: the mark, its frame's number and lane.
pub(super) const REMEMBERED_BYTES: usize = MARK_BYTES + 10;
/// The most that are remembered, where segments are large enough: 2.6 MiB of each.
const MARKS_MAX: usize = 65_536;
/// Of a segment's bytes this part, at most, repeats marks.
const SEGMENT_PART: u64 = 16;

/// What tells a frame from a repetition of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// Whatever names the request or the source: a hash.
    pub key: [u8; 16],
    /// How far the source has been read with this frame; 0 for a request.
    pub position: u64,
    /// When it came, in microseconds since 1970.
    pub at_us: i64,
}

impl Mark {
    /// Bytes that it adds to a payload.
    pub const BYTES: usize = MARK_BYTES;

    pub(super) fn encode(&self) -> [u8; MARK_BYTES] {
        let mut bytes = [0; MARK_BYTES];
        bytes[..16].copy_from_slice(&self.key);
        bytes[16..24].copy_from_slice(&self.position.to_le_bytes());
        bytes[24..].copy_from_slice(&self.at_us.to_le_bytes());
        bytes
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; MARK_BYTES] = bytes.get(..MARK_BYTES)?.try_into().ok()?;
        Some(Self {
            key: bytes[..16].try_into().ok()?,
            position: u64::from_le_bytes(bytes[16..24].try_into().ok()?),
            at_us: i64::from_le_bytes(bytes[24..].try_into().ok()?),
        })
    }
}

/// A mark that is known, and the frame that brought it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Marked {
    /// The mark.
    pub mark: Mark,
    /// The frame's lane.
    pub lane: LaneId,
    /// The frame's number.
    pub seq: u64,
}

impl Marked {
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.mark.encode());
        out.extend_from_slice(&self.seq.to_le_bytes());
        out.extend_from_slice(&self.lane.to_le_bytes());
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let (mark, rest) = bytes.split_at_checked(MARK_BYTES)?;
        let (seq, lane) = rest.split_at_checked(8)?;
        Some(Self {
            mark: Mark::decode(mark)?,
            lane: LaneId::from_le_bytes(lane.try_into().ok()?),
            seq: u64::from_le_bytes(seq.try_into().ok()?),
        })
    }

    fn is_request(&self) -> bool {
        self.mark.position == 0
    }
}

/// All marks that are remembered.
#[derive(Clone, Debug, Default)]
pub(super) struct Marks {
    known: HashMap<[u8; 16], Marked>,
    requests: Kind,
    sources: Kind,
    /// What frames that are not durable yet have replaced, in order.
    undo: VecDeque<(u64, [u8; 16], Option<Marked>)>,
}

/// Marks of one kind in the order in which they came. An entry whose frame is not its key's newest says nothing.
#[derive(Clone, Debug, Default)]
struct Kind {
    order: VecDeque<([u8; 16], u64)>,
    /// Entries that say something.
    count: usize,
    count_max: usize,
}

impl Marks {
    /// Those of a journal with segments of this size.
    pub(super) fn new(segment_bytes: u64, mut found: Vec<Marked>) -> Self {
        let fit = usize::try_from(segment_bytes / SEGMENT_PART).unwrap_or(usize::MAX) / REMEMBERED_BYTES;
        let mut marks = Self::default();
        marks.sources.count_max = fit.min(MARKS_MAX) / 4;
        marks.requests.count_max = fit.min(MARKS_MAX) - marks.sources.count_max;
        found.sort_by_key(|marked| marked.seq);
        found.into_iter().for_each(|marked| marks.keep(marked));
        marks
    }

    /// The frame that `mark` repeats.
    pub(super) fn repeated(&self, mark: &Mark) -> Option<Marked> {
        self.of(&mark.key).filter(|known| known.mark.position >= mark.position)
    }

    pub(super) fn of(&self, key: &[u8; 16]) -> Option<Marked> {
        self.known.get(key).copied()
    }

    /// A frame with a mark was given its number.
    pub(super) fn give(&mut self, marked: Marked) {
        self.undo.push_back((marked.seq, marked.mark.key, self.of(&marked.mark.key)));
        self.keep(marked);
        let oldest_us = marked.mark.at_us - i64::try_from(WINDOW.as_micros()).expect("an hour is few microseconds");
        while let Some(oldest) = self.oldest_request()
            && oldest.mark.at_us < oldest_us
        {
            self.forget(&oldest);
        }
    }

    /// Everything up to `seq` is durable.
    pub(super) fn written(&mut self, seq: u64) {
        while self.undo.front().is_some_and(|(of, ..)| *of <= seq) {
            self.undo.pop_front();
        }
    }

    /// Everything that was given and is not durable was taken back.
    pub(super) fn fall_back(&mut self) {
        while let Some((_, key, before)) = self.undo.pop_back() {
            if let Some(void) = self.of(&key) {
                self.forget(&void);
            }
            if let Some(before) = before {
                self.keep(before);
            }
        }
    }

    /// For a START, in an order in which they can be kept again.
    pub(super) fn list(&self) -> Vec<Marked> {
        let mut list: Vec<Marked> = self.known.values().copied().collect();
        list.sort_unstable_by_key(|marked| marked.seq);
        list
    }

    /// The most that they may take in a START.
    pub(super) fn bytes_max(&self) -> usize {
        (self.requests.count_max + self.sources.count_max) * REMEMBERED_BYTES
    }

    fn keep(&mut self, marked: Marked) {
        let key = marked.mark.key;
        if let Some(before) = self.known.insert(key, marked) {
            self.kind(&before).count -= 1;
        }
        let kind = self.kind(&marked);
        kind.order.push_back((key, marked.seq));
        kind.count += 1;
        if kind.count > kind.count_max {
            let oldest = if marked.is_request() { self.oldest_request() } else { self.oldest_source() };
            self.forget(&oldest.expect("there is at least the one that came now"));
        } else if kind.order.len() > 2 * kind.count_max {
            let known = &self.known;
            let order = if marked.is_request() { &mut self.requests.order } else { &mut self.sources.order };
            order.retain(|(key, seq)| known.get(key).is_some_and(|known| known.seq == *seq));
        }
    }

    fn forget(&mut self, marked: &Marked) {
        self.known.remove(&marked.mark.key);
        self.kind(marked).count -= 1;
    }

    fn kind(&mut self, marked: &Marked) -> &mut Kind {
        if marked.is_request() { &mut self.requests } else { &mut self.sources }
    }

    fn oldest_request(&mut self) -> Option<Marked> {
        oldest(&mut self.requests.order, &self.known)
    }

    fn oldest_source(&mut self) -> Option<Marked> {
        oldest(&mut self.sources.order, &self.known)
    }
}

/// The first that says something; those before it are dropped.
fn oldest(order: &mut VecDeque<([u8; 16], u64)>, known: &HashMap<[u8; 16], Marked>) -> Option<Marked> {
    while let Some((key, seq)) = order.front() {
        match known.get(key).filter(|known| known.seq == *seq) {
            Some(marked) => return Some(*marked),
            None => _ = order.pop_front(),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEGMENT_BYTES: u64 = 64 << 10;

    fn marked(key: u8, position: u64, seq: u64, at_s: i64) -> Marked {
        Marked { mark: Mark { key: [key; 16], position, at_us: at_s * 1_000_000 }, lane: 0, seq }
    }

    fn marks() -> Marks {
        Marks::new(SEGMENT_BYTES, vec![])
    }

    #[test]
    fn a_request_is_a_repetition_and_a_source_goes_on() {
        let mut marks = marks();
        marks.give(marked(1, 0, 5, 0));
        marks.give(marked(2, 100, 6, 0));
        assert_eq!(marks.repeated(&marked(1, 0, 0, 1).mark).unwrap().seq, 5);
        assert_eq!(marks.repeated(&marked(2, 100, 0, 1).mark).unwrap().seq, 6);
        assert_eq!(marks.repeated(&marked(2, 40, 0, 1).mark).unwrap().seq, 6);
        assert_eq!(marks.repeated(&marked(2, 101, 0, 1).mark), None);
        assert_eq!(marks.repeated(&marked(3, 0, 0, 1).mark), None);
    }

    #[test]
    fn what_was_taken_back_leaves_what_was_before() {
        let mut marks = marks();
        marks.give(marked(2, 100, 6, 0));
        marks.written(6);
        marks.give(marked(2, 200, 7, 0));
        marks.give(marked(2, 300, 8, 0));
        marks.give(marked(1, 0, 9, 0));
        marks.fall_back();
        assert_eq!(marks.of(&[2; 16]).unwrap().mark.position, 100);
        assert_eq!(marks.of(&[1; 16]), None);
        assert_eq!(marks.list().len(), 1);
        marks.give(marked(2, 200, 7, 0));
        assert_eq!(marks.list(), [marked(2, 200, 7, 0)]);
    }

    #[test]
    fn requests_are_forgotten_by_age_and_sources_are_not() {
        let mut marks = marks();
        marks.give(marked(1, 0, 1, 0));
        marks.give(marked(2, 7, 2, 0));
        marks.give(marked(3, 0, 3, 10));
        marks.give(marked(4, 0, 4, 3601));
        assert_eq!(marks.of(&[1; 16]), None);
        assert!(marks.of(&[2; 16]).is_some());
        for seq in 5..1000 {
            marks.give(marked(4, 0, seq, 9000));
            marks.give(marked(5, seq, 1000 + seq, 9000));
        }
        assert!(marks.of(&[2; 16]).is_some(), "a source");
        assert_eq!(marks.of(&[3; 16]), None);
        let entries = marks.requests.order.len() + marks.sources.order.len();
        assert!(entries <= 2 * marks.bytes_max() / REMEMBERED_BYTES, "{entries}");
    }

    #[test]
    fn no_more_are_remembered_than_a_start_may_take() {
        let mut marks = marks();
        for seq in 1..500_u64 {
            let mut one = marked(0, seq % 2, seq, 0);
            one.mark.key[..8].copy_from_slice(&seq.to_le_bytes());
            marks.give(one);
            marks.written(seq);
        }
        let list = marks.list();
        assert_eq!(list.len(), 4096 / REMEMBERED_BYTES);
        assert_eq!(list.last().unwrap().seq, 499);
        assert_eq!(list.iter().filter(|one| !one.is_request()).count(), list.len() / 4);
        assert_eq!(list.len() * REMEMBERED_BYTES, marks.bytes_max());
        let again = Marks::new(SEGMENT_BYTES, list.clone());
        assert_eq!(again.list(), list);
    }

    #[test]
    fn a_mark_survives_the_round_trip() {
        let one = Marked { mark: Mark { key: *b"0123456789abcdef", position: 77, at_us: -5 }, lane: 9, seq: 1 << 40 };
        let mut bytes = Vec::new();
        one.encode(&mut bytes);
        assert_eq!(bytes.len(), REMEMBERED_BYTES);
        assert_eq!(Marked::decode(&bytes), Some(one));
        assert_eq!(Marked::decode(&bytes[..41]), None);
        assert_eq!(Mark::decode(&one.mark.encode()), Some(one.mark));
    }
}
