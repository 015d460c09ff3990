//! Deduplicates frames: one key per request that a client may retry, and one per source that resumes from a position.
//!
//! - A key is stored in its frame, and each START repeats the remembered ones. So they outlive their segments, and are
//!   known after a restart before the first append.
//! - A frame is a duplicate if its key is known with the same or a higher position. Requests have position 0, so a
//!   second one is always a duplicate; the position of a file grows.
//! - Requests expire after [`DEDUP_WINDOW`], sources never. The number of each kind is limited; the oldest is evicted
//!   first.
//! - A frame that is rolled back (the disk was full) leaves no key: the entry that it replaced is restored.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use super::types::LaneId;

/// How long a request is remembered.
pub const DEDUP_WINDOW: Duration = Duration::from_secs(3600);

/// Size of a dedup key at the head of a payload: key, position, time.
pub(super) const DEDUP_KEY_BYTES: usize = 32;
/// Size of an entry in a START frame: dedup key, sequence number, lane.
pub(super) const DEDUP_ENTRY_BYTES: usize = DEDUP_KEY_BYTES + 10;
/// Maximum number of entries, if the segments are large enough: 2.6 MiB of each segment.
const ENTRIES_MAX: usize = 65_536;
/// Entries take at most one part in this many of a segment.
const SEGMENT_FRACTION: u64 = 16;

/// Identifies a frame, so that a repetition of it can be rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DedupKey {
    /// Hash that identifies the request or the source.
    pub key: [u8; 16],
    /// Position in the source after this frame; 0 for a request.
    pub position: u64,
    /// Time of arrival, in microseconds since the Unix epoch.
    pub at_us: i64,
}

impl DedupKey {
    /// Number of bytes that a key adds to a payload.
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

/// A known dedup key, and the frame that carried it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DedupEntry {
    /// The key.
    pub dedup_key: DedupKey,
    /// The frame's lane.
    pub lane: LaneId,
    /// The frame's sequence number.
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

/// The index of all remembered keys.
#[derive(Clone, Debug, Default)]
pub(super) struct DedupIndex {
    by_key: HashMap<[u8; 16], DedupEntry>,
    requests: Kind,
    sources: Kind,
    /// What frames that are not durable yet have replaced, in order.
    undo: VecDeque<(u64, [u8; 16], Option<DedupEntry>)>,
}

/// Keys of one kind, in order of arrival. An entry is stale if its frame is not the latest with its key.
#[derive(Clone, Debug, Default)]
struct Kind {
    order: VecDeque<([u8; 16], u64)>,
    /// Number of entries that are not stale.
    count: usize,
    count_max: usize,
}

impl DedupIndex {
    /// Creates the index of a journal with segments of this size.
    pub(super) fn new(segment_bytes: u64, mut found: Vec<DedupEntry>) -> Self {
        let fit = usize::try_from(segment_bytes / SEGMENT_FRACTION).unwrap_or(usize::MAX) / DEDUP_ENTRY_BYTES;
        let mut dedup_index = Self::default();
        dedup_index.sources.count_max = fit.min(ENTRIES_MAX) / 4;
        dedup_index.requests.count_max = fit.min(ENTRIES_MAX) - dedup_index.sources.count_max;
        found.sort_by_key(|dedup_entry| dedup_entry.seq);
        found.into_iter().for_each(|dedup_entry| dedup_index.put(dedup_entry));
        dedup_index
    }

    /// Returns the earlier frame that a frame with `dedup_key` would duplicate.
    pub(super) fn find_duplicate(&self, dedup_key: &DedupKey) -> Option<DedupEntry> {
        self.get(&dedup_key.key).filter(|known| known.dedup_key.position >= dedup_key.position)
    }

    pub(super) fn get(&self, key: &[u8; 16]) -> Option<DedupEntry> {
        self.by_key.get(key).copied()
    }

    /// Inserts the key of a frame that was assigned its sequence number; [`Self::roll_back`] can revert it.
    pub(super) fn insert(&mut self, dedup_entry: DedupEntry) {
        self.undo.push_back((dedup_entry.seq, dedup_entry.dedup_key.key, self.get(&dedup_entry.dedup_key.key)));
        self.put(dedup_entry);
        let oldest_us = dedup_entry.dedup_key.at_us
            - i64::try_from(DEDUP_WINDOW.as_micros()).expect("an hour fits into an i64 of microseconds");
        while let Some(oldest) = self.oldest_request()
            && oldest.dedup_key.at_us < oldest_us
        {
            self.remove(&oldest);
        }
    }

    /// Every frame up to `seq` is durable.
    pub(super) fn mark_durable(&mut self, seq: u64) {
        while self.undo.front().is_some_and(|(of, ..)| *of <= seq) {
            self.undo.pop_front();
        }
    }

    /// Reverts the frames that are not durable.
    pub(super) fn roll_back(&mut self) {
        while let Some((_, key, before)) = self.undo.pop_back() {
            if let Some(void) = self.get(&key) {
                self.remove(&void);
            }
            if let Some(before) = before {
                self.put(before);
            }
        }
    }

    /// Returns the entries for a START, in the order in which they must be inserted again.
    pub(super) fn entries(&self) -> Vec<DedupEntry> {
        let mut list: Vec<DedupEntry> = self.by_key.values().copied().collect();
        list.sort_unstable_by_key(|dedup_entry| dedup_entry.seq);
        list
    }

    /// Maximum size of all entries in a START.
    pub(super) fn bytes_max(&self) -> usize {
        (self.requests.count_max + self.sources.count_max) * DEDUP_ENTRY_BYTES
    }

    fn put(&mut self, dedup_entry: DedupEntry) {
        let key = dedup_entry.dedup_key.key;
        if let Some(before) = self.by_key.insert(key, dedup_entry) {
            self.kind(&before).count -= 1;
        }
        let kind = self.kind(&dedup_entry);
        kind.order.push_back((key, dedup_entry.seq));
        kind.count += 1;
        if kind.count > kind.count_max {
            let oldest = if dedup_entry.is_request() { self.oldest_request() } else { self.oldest_source() };
            self.remove(&oldest.expect("the entry just inserted exists"));
        } else if kind.order.len() > 2 * kind.count_max {
            let known = &self.by_key;
            let order = if dedup_entry.is_request() { &mut self.requests.order } else { &mut self.sources.order };
            order.retain(|(key, seq)| known.get(key).is_some_and(|known| known.seq == *seq));
        }
    }

    fn remove(&mut self, dedup_entry: &DedupEntry) {
        self.by_key.remove(&dedup_entry.dedup_key.key);
        self.kind(dedup_entry).count -= 1;
    }

    fn kind(&mut self, dedup_entry: &DedupEntry) -> &mut Kind {
        if dedup_entry.is_request() { &mut self.requests } else { &mut self.sources }
    }

    fn oldest_request(&mut self) -> Option<DedupEntry> {
        oldest(&mut self.requests.order, &self.by_key)
    }

    fn oldest_source(&mut self) -> Option<DedupEntry> {
        oldest(&mut self.sources.order, &self.by_key)
    }
}

/// Returns the first entry that is not stale, dropping those before it.
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
    fn a_repeated_request_is_a_duplicate_and_a_source_may_advance() {
        let mut dedup_index = dedup_index();
        dedup_index.insert(dedup_entry(1, 0, 5, 0));
        dedup_index.insert(dedup_entry(2, 100, 6, 0));
        assert_eq!(dedup_index.find_duplicate(&dedup_entry(1, 0, 0, 1).dedup_key).unwrap().seq, 5);
        assert_eq!(dedup_index.find_duplicate(&dedup_entry(2, 100, 0, 1).dedup_key).unwrap().seq, 6);
        assert_eq!(dedup_index.find_duplicate(&dedup_entry(2, 40, 0, 1).dedup_key).unwrap().seq, 6);
        assert_eq!(dedup_index.find_duplicate(&dedup_entry(2, 101, 0, 1).dedup_key), None);
        assert_eq!(dedup_index.find_duplicate(&dedup_entry(3, 0, 0, 1).dedup_key), None);
    }

    #[test]
    fn a_roll_back_restores_the_previous_entries() {
        let mut dedup_index = dedup_index();
        dedup_index.insert(dedup_entry(2, 100, 6, 0));
        dedup_index.mark_durable(6);
        dedup_index.insert(dedup_entry(2, 200, 7, 0));
        dedup_index.insert(dedup_entry(2, 300, 8, 0));
        dedup_index.insert(dedup_entry(1, 0, 9, 0));
        dedup_index.roll_back();
        assert_eq!(dedup_index.get(&[2; 16]).unwrap().dedup_key.position, 100);
        assert_eq!(dedup_index.get(&[1; 16]), None);
        assert_eq!(dedup_index.entries().len(), 1);
        dedup_index.insert(dedup_entry(2, 200, 7, 0));
        assert_eq!(dedup_index.entries(), [dedup_entry(2, 200, 7, 0)]);
    }

    #[test]
    fn requests_expire_and_sources_do_not() {
        let mut dedup_index = dedup_index();
        dedup_index.insert(dedup_entry(1, 0, 1, 0));
        dedup_index.insert(dedup_entry(2, 7, 2, 0));
        dedup_index.insert(dedup_entry(3, 0, 3, 10));
        dedup_index.insert(dedup_entry(4, 0, 4, 3601));
        assert_eq!(dedup_index.get(&[1; 16]), None);
        assert!(dedup_index.get(&[2; 16]).is_some());
        for seq in 5..1000 {
            dedup_index.insert(dedup_entry(4, 0, seq, 9000));
            dedup_index.insert(dedup_entry(5, seq, 1000 + seq, 9000));
        }
        assert!(dedup_index.get(&[2; 16]).is_some(), "a source");
        assert_eq!(dedup_index.get(&[3; 16]), None);
        let entries = dedup_index.requests.order.len() + dedup_index.sources.order.len();
        assert!(entries <= 2 * dedup_index.bytes_max() / DEDUP_ENTRY_BYTES, "{entries}");
    }

    #[test]
    fn the_number_of_entries_is_limited_by_the_space_in_a_start() {
        let mut dedup_index = dedup_index();
        for seq in 1..500_u64 {
            let mut one = dedup_entry(0, seq % 2, seq, 0);
            one.dedup_key.key[..8].copy_from_slice(&seq.to_le_bytes());
            dedup_index.insert(one);
            dedup_index.mark_durable(seq);
        }
        let list = dedup_index.entries();
        assert_eq!(list.len(), 4096 / DEDUP_ENTRY_BYTES);
        assert_eq!(list.last().unwrap().seq, 499);
        assert_eq!(list.iter().filter(|one| !one.is_request()).count(), list.len() / 4);
        assert_eq!(list.len() * DEDUP_ENTRY_BYTES, dedup_index.bytes_max());
        let again = DedupIndex::new(SEGMENT_BYTES, list.clone());
        assert_eq!(again.entries(), list);
    }

    #[test]
    fn an_entry_survives_the_round_trip() {
        let one = DedupEntry {
            dedup_key: DedupKey { key: *b"0123456789abcdef", position: 77, at_us: -5 },
            lane: 9,
            seq: 1 << 40,
        };
        let mut bytes = Vec::new();
        one.encode(&mut bytes);
        assert_eq!(bytes.len(), DEDUP_ENTRY_BYTES);
        assert_eq!(DedupEntry::decode(&bytes), Some(one));
        assert_eq!(DedupEntry::decode(&bytes[..41]), None);
        assert_eq!(DedupKey::decode(&one.dedup_key.encode()), Some(one.dedup_key));
    }
}
