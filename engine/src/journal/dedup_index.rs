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
pub(super) const DEDUP_KEY_BYTES: usize = 32;
/// Bytes of one that is remembered in a START: the mark, its frame's number and lane.
pub(super) const REMEMBERED_BYTES: usize = DEDUP_KEY_BYTES + 10;
/// The most that are remembered, where segments are large enough: 2.6 MiB of each.
const MARKS_MAX: usize = 65_536;
/// Of a segment's bytes this part, at most, repeats marks.
const SEGMENT_PART: u64 = 16;

/// What tells a frame from a repetition of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DedupKey {
    /// Whatever names the request or the source: a hash.
    pub key: [u8; 16],
    /// How far the source has been read with this frame; 0 for a request.
    pub position: u64,
    /// When it came, in microseconds since 1970.
    pub at_us: i64,
}

impl DedupKey {
    /// Bytes that it adds to a payload.
    pub const BYTES: usize = DEDUP_KEY_BYTES;

    pub(super) fn encode(&self) -> [u8; DEDUP_KEY_BYTES] {
        let mut bytes = [0; DEDUP_KEY_BYTES];
        bytes[..16].copy_from_slice(&self.key);
        bytes[16..24].copy_from_slice(&self.position.to_le_bytes());
        bytes[24..].copy_from_slice(&self.at_us.to_le_bytes());
        bytes
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; DEDUP_KEY_BYTES] = bytes.get(..DEDUP_KEY_BYTES)?.try_into().ok()?;
        Some(Self {
            key: bytes[..16].try_into().ok()?,
            position: u64::from_le_bytes(bytes[16..24].try_into().ok()?),
            at_us: i64::from_le_bytes(bytes[24..].try_into().ok()?),
        })
    }
}

/// A mark that is known, and the frame that brought it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DedupEntry {
    /// The mark.
    pub dedup_key: DedupKey,
    /// The frame's lane.
    pub lane: LaneId,
    /// The frame's number.
    pub seq: u64,
}

impl DedupEntry {
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.dedup_key.encode());
        out.extend_from_slice(&self.seq.to_le_bytes());
        out.extend_from_slice(&self.lane.to_le_bytes());
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let (dedup_key, rest) = bytes.split_at_checked(DEDUP_KEY_BYTES)?;
        let (seq, lane) = rest.split_at_checked(8)?;
        Some(Self {
            dedup_key: DedupKey::decode(dedup_key)?,
            lane: LaneId::from_le_bytes(lane.try_into().ok()?),
            seq: u64::from_le_bytes(seq.try_into().ok()?),
        })
    }

    fn is_request(&self) -> bool {
        self.dedup_key.position == 0
    }
}

/// All marks that are remembered.
#[derive(Clone, Debug, Default)]
pub(super) struct DedupIndex {
    known: HashMap<[u8; 16], DedupEntry>,
    requests: Kind,
    sources: Kind,
    /// What frames that are not durable yet have replaced, in order.
    undo: VecDeque<(u64, [u8; 16], Option<DedupEntry>)>,
}

/// DedupIndex of one kind in the order in which they came. An entry whose frame is not its key's newest says nothing.
#[derive(Clone, Debug, Default)]
struct Kind {
    order: VecDeque<([u8; 16], u64)>,
    /// Entries that say something.
    count: usize,
    count_max: usize,
}

impl DedupIndex {
    /// Those of a journal with segments of this size.
    pub(super) fn new(segment_bytes: u64, mut found: Vec<DedupEntry>) -> Self {
        let fit = usize::try_from(segment_bytes / SEGMENT_PART).unwrap_or(usize::MAX) / REMEMBERED_BYTES;
        let mut dedup_index = Self::default();
        dedup_index.sources.count_max = fit.min(MARKS_MAX) / 4;
        dedup_index.requests.count_max = fit.min(MARKS_MAX) - dedup_index.sources.count_max;
        found.sort_by_key(|dedup_entry| dedup_entry.seq);
        found.into_iter().for_each(|dedup_entry| dedup_index.keep(dedup_entry));
        dedup_index
    }

    /// The frame that `mark` repeats.
    pub(super) fn repeated(&self, dedup_key: &DedupKey) -> Option<DedupEntry> {
        self.of(&dedup_key.key).filter(|known| known.dedup_key.position >= dedup_key.position)
    }

    pub(super) fn of(&self, key: &[u8; 16]) -> Option<DedupEntry> {
        self.known.get(key).copied()
    }

    /// A frame with a mark was given its number.
    pub(super) fn give(&mut self, dedup_entry: DedupEntry) {
        self.undo.push_back((dedup_entry.seq, dedup_entry.dedup_key.key, self.of(&dedup_entry.dedup_key.key)));
        self.keep(dedup_entry);
        let oldest_us =
            dedup_entry.dedup_key.at_us - i64::try_from(WINDOW.as_micros()).expect("an hour is few microseconds");
        while let Some(oldest) = self.oldest_request()
            && oldest.dedup_key.at_us < oldest_us
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
    pub(super) fn list(&self) -> Vec<DedupEntry> {
        let mut list: Vec<DedupEntry> = self.known.values().copied().collect();
        list.sort_unstable_by_key(|dedup_entry| dedup_entry.seq);
        list
    }

    /// The most that they may take in a START.
    pub(super) fn bytes_max(&self) -> usize {
        (self.requests.count_max + self.sources.count_max) * REMEMBERED_BYTES
    }

    fn keep(&mut self, dedup_entry: DedupEntry) {
        let key = dedup_entry.dedup_key.key;
        if let Some(before) = self.known.insert(key, dedup_entry) {
            self.kind(&before).count -= 1;
        }
        let kind = self.kind(&dedup_entry);
        kind.order.push_back((key, dedup_entry.seq));
        kind.count += 1;
        if kind.count > kind.count_max {
            let oldest = if dedup_entry.is_request() { self.oldest_request() } else { self.oldest_source() };
            self.forget(&oldest.expect("there is at least the one that came now"));
        } else if kind.order.len() > 2 * kind.count_max {
            let known = &self.known;
            let order = if dedup_entry.is_request() { &mut self.requests.order } else { &mut self.sources.order };
            order.retain(|(key, seq)| known.get(key).is_some_and(|known| known.seq == *seq));
        }
    }

    fn forget(&mut self, dedup_entry: &DedupEntry) {
        self.known.remove(&dedup_entry.dedup_key.key);
        self.kind(dedup_entry).count -= 1;
    }

    fn kind(&mut self, dedup_entry: &DedupEntry) -> &mut Kind {
        if dedup_entry.is_request() { &mut self.requests } else { &mut self.sources }
    }

    fn oldest_request(&mut self) -> Option<DedupEntry> {
        oldest(&mut self.requests.order, &self.known)
    }

    fn oldest_source(&mut self) -> Option<DedupEntry> {
        oldest(&mut self.sources.order, &self.known)
    }
}

/// The first that says something; those before it are dropped.
fn oldest(order: &mut VecDeque<([u8; 16], u64)>, known: &HashMap<[u8; 16], DedupEntry>) -> Option<DedupEntry> {
    while let Some((key, seq)) = order.front() {
        match known.get(key).filter(|known| known.seq == *seq) {
            Some(dedup_entry) => return Some(*dedup_entry),
            None => _ = order.pop_front(),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEGMENT_BYTES: u64 = 64 << 10;

    fn dedup_entry(key: u8, position: u64, seq: u64, at_s: i64) -> DedupEntry {
        DedupEntry { dedup_key: DedupKey { key: [key; 16], position, at_us: at_s * 1_000_000 }, lane: 0, seq }
    }

    fn dedup_index() -> DedupIndex {
        DedupIndex::new(SEGMENT_BYTES, vec![])
    }

    #[test]
    fn a_request_is_a_repetition_and_a_source_goes_on() {
        let mut dedup_index = dedup_index();
        dedup_index.give(dedup_entry(1, 0, 5, 0));
        dedup_index.give(dedup_entry(2, 100, 6, 0));
        assert_eq!(dedup_index.repeated(&dedup_entry(1, 0, 0, 1).dedup_key).unwrap().seq, 5);
        assert_eq!(dedup_index.repeated(&dedup_entry(2, 100, 0, 1).dedup_key).unwrap().seq, 6);
        assert_eq!(dedup_index.repeated(&dedup_entry(2, 40, 0, 1).dedup_key).unwrap().seq, 6);
        assert_eq!(dedup_index.repeated(&dedup_entry(2, 101, 0, 1).dedup_key), None);
        assert_eq!(dedup_index.repeated(&dedup_entry(3, 0, 0, 1).dedup_key), None);
    }

    #[test]
    fn what_was_taken_back_leaves_what_was_before() {
        let mut dedup_index = dedup_index();
        dedup_index.give(dedup_entry(2, 100, 6, 0));
        dedup_index.written(6);
        dedup_index.give(dedup_entry(2, 200, 7, 0));
        dedup_index.give(dedup_entry(2, 300, 8, 0));
        dedup_index.give(dedup_entry(1, 0, 9, 0));
        dedup_index.fall_back();
        assert_eq!(dedup_index.of(&[2; 16]).unwrap().dedup_key.position, 100);
        assert_eq!(dedup_index.of(&[1; 16]), None);
        assert_eq!(dedup_index.list().len(), 1);
        dedup_index.give(dedup_entry(2, 200, 7, 0));
        assert_eq!(dedup_index.list(), [dedup_entry(2, 200, 7, 0)]);
    }

    #[test]
    fn requests_are_forgotten_by_age_and_sources_are_not() {
        let mut dedup_index = dedup_index();
        dedup_index.give(dedup_entry(1, 0, 1, 0));
        dedup_index.give(dedup_entry(2, 7, 2, 0));
        dedup_index.give(dedup_entry(3, 0, 3, 10));
        dedup_index.give(dedup_entry(4, 0, 4, 3601));
        assert_eq!(dedup_index.of(&[1; 16]), None);
        assert!(dedup_index.of(&[2; 16]).is_some());
        for seq in 5..1000 {
            dedup_index.give(dedup_entry(4, 0, seq, 9000));
            dedup_index.give(dedup_entry(5, seq, 1000 + seq, 9000));
        }
        assert!(dedup_index.of(&[2; 16]).is_some(), "a source");
        assert_eq!(dedup_index.of(&[3; 16]), None);
        let entries = dedup_index.requests.order.len() + dedup_index.sources.order.len();
        assert!(entries <= 2 * dedup_index.bytes_max() / REMEMBERED_BYTES, "{entries}");
    }

    #[test]
    fn no_more_are_remembered_than_a_start_may_take() {
        let mut dedup_index = dedup_index();
        for seq in 1..500_u64 {
            let mut one = dedup_entry(0, seq % 2, seq, 0);
            one.dedup_key.key[..8].copy_from_slice(&seq.to_le_bytes());
            dedup_index.give(one);
            dedup_index.written(seq);
        }
        let list = dedup_index.list();
        assert_eq!(list.len(), 4096 / REMEMBERED_BYTES);
        assert_eq!(list.last().unwrap().seq, 499);
        assert_eq!(list.iter().filter(|one| !one.is_request()).count(), list.len() / 4);
        assert_eq!(list.len() * REMEMBERED_BYTES, dedup_index.bytes_max());
        let again = DedupIndex::new(SEGMENT_BYTES, list.clone());
        assert_eq!(again.list(), list);
    }

    #[test]
    fn a_mark_survives_the_round_trip() {
        let one = DedupEntry {
            dedup_key: DedupKey { key: *b"0123456789abcdef", position: 77, at_us: -5 },
            lane: 9,
            seq: 1 << 40,
        };
        let mut bytes = Vec::new();
        one.encode(&mut bytes);
        assert_eq!(bytes.len(), REMEMBERED_BYTES);
        assert_eq!(DedupEntry::decode(&bytes), Some(one));
        assert_eq!(DedupEntry::decode(&bytes[..41]), None);
        assert_eq!(DedupKey::decode(&one.dedup_key.encode()), Some(one.dedup_key));
    }
}
