//! Recognizes frames that repeat an earlier one. Two kinds of keys, with different needs:
//!
//! - **Sources** that resume from a position, such as tailed files. A frame is a repetition if its source is known with
//!   the same or a higher position. Positions are never forgotten by age, since a file can be read on after any time: who
//!   reads says which sources there are no more ([`DedupIndex::retain_sources`]). Beyond a limit the source that advanced
//!   longest ago is forgotten. Each START repeats all positions, so that they
//!   outlive their segments. What a START says *replaces* what earlier segments said: were it added, a start would take
//!   time and memory in proportion to positions × segments.
//! - **Requests** that a sender may repeat. A window in memory, for a quick answer: requests are forgotten after
//!   [`DEDUP_WINDOW`], by a clock that nobody sets, and their number is limited. If it is exceeded, the sender with the
//!   most requests loses its oldest, so that a sender with no more than an equal share never loses one. After a start
//!   the window has what is found in the journal, as if it had just arrived. A START has no requests: whether a frame is
//!   stored that repeats a request is for the destination to decide, which knows the frames of all processes and of
//!   segments that are gone; in the log that index would be a second database.
//!
//! A frame that is rolled back (the disk was full) leaves no trace: its entry is removed, and those that it replaced or
//! evicted are put back.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

use super::types::LaneId;

/// How long a request is remembered.
pub const DEDUP_WINDOW: Duration = Duration::from_secs(3600);

/// Size of a dedup key at the head of a payload: three fields, see [`DedupKey::encode`].
pub(super) const DEDUP_KEY_BYTES: usize = 32;
/// Size of an entry in a START frame: dedup key, sequence number, lane.
pub(super) const DEDUP_ENTRY_BYTES: usize = DEDUP_KEY_BYTES + 10;
/// Maximum number of requests: about 10 MiB.
const REQUESTS_MAX: usize = 49_152;
/// Maximum number of sources, if the segments are large enough: 0.7 MiB of each segment.
const SOURCES_MAX: usize = 16_384;
/// The entries in a START take at most one part in this many of a segment.
const SEGMENT_FRACTION: u64 = 64;
/// In the field for a position: a request, whose third field is the digest of its body.
const WITH_BODY: u64 = u64::MAX;

/// Identifies a frame, so that a repetition of it is recognized.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DedupKey {
    /// Hash that identifies the request or the source. The first four bytes of a request's identify its sender.
    pub key: [u8; 16],
    /// What it identifies.
    pub kind: DedupKind,
}

/// What a dedup key identifies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DedupKind {
    /// A request: any second frame is a repetition.
    Request {
        /// Digest of the body: CRC-32C and length. It only finds mistakes. `None` if it is unknown.
        body: Option<u64>,
    },
    /// A source that advances.
    Source {
        /// Position in the source after this frame: neither 0 nor `u64::MAX`.
        position: u64,
    },
}

impl DedupKey {
    /// Number of bytes that a key adds to a payload.
    pub const BYTES: usize = DEDUP_KEY_BYTES;

    /// A request's key with the digest of its body; a source's key unchanged.
    #[must_use]
    pub fn with_body(self, body: &[u8]) -> Self {
        let length = u64::try_from(body.len()).unwrap_or(u64::MAX);
        match self.kind {
            DedupKind::Request { .. } => {
                let body = Some(u64::from(crc32c::crc32c(body)) << 32 | length & u64::from(u32::MAX));
                Self { kind: DedupKind::Request { body }, ..self }
            }
            DedupKind::Source { .. } => self,
        }
    }

    /// Whether both are requests with the same key, but different bodies.
    #[must_use]
    pub fn contradicts(&self, other: &Self) -> bool {
        match (self.kind, other.kind) {
            (DedupKind::Request { body: Some(one) }, DedupKind::Request { body: Some(two) }) => {
                self.key == other.key && one != two
            }
            _ => false,
        }
    }

    /// Whether a frame with this key would repeat the one of `known`, which has the same key.
    fn repeats(&self, known: &Self) -> bool {
        match (self.kind, known.kind) {
            (DedupKind::Source { position }, DedupKind::Source { position: known }) => position <= known,
            _ => true,
        }
    }

    fn sender(&self) -> Sender {
        match self.kind {
            DedupKind::Request { body: Some(_) } => [self.key[0], self.key[1], self.key[2], self.key[3]],
            // An earlier version wrote it, without a sender.
            _ => Sender::default(),
        }
    }

    /// Key 16, position u64, u64. The position of a request is 0 or [`WITH_BODY`]; earlier versions had a time in the
    /// third field, which is not read any more.
    pub(super) fn encode(&self) -> [u8; DEDUP_KEY_BYTES] {
        let (position, body) = match self.kind {
            DedupKind::Request { body: None } => (0, 0),
            DedupKind::Request { body: Some(body) } => (WITH_BODY, body),
            DedupKind::Source { position } => (position, 0),
        };
        let mut bytes = [0; DEDUP_KEY_BYTES];
        bytes[..16].copy_from_slice(&self.key);
        bytes[16..24].copy_from_slice(&position.to_le_bytes());
        bytes[24..].copy_from_slice(&body.to_le_bytes());
        bytes
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; DEDUP_KEY_BYTES] = bytes.get(..DEDUP_KEY_BYTES)?.try_into().ok()?;
        let kind = match u64::from_le_bytes(bytes[16..24].try_into().ok()?) {
            0 => DedupKind::Request { body: None },
            WITH_BODY => DedupKind::Request { body: Some(u64::from_le_bytes(bytes[24..].try_into().ok()?)) },
            position => DedupKind::Source { position },
        };
        Some(Self { key: bytes[..16].try_into().ok()?, kind })
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
        matches!(self.dedup_key.kind, DedupKind::Request { .. })
    }
}

/// Who sent a request.
type Sender = [u8; 4];

/// The index of all remembered keys.
#[derive(Clone, Debug)]
pub(super) struct DedupIndex {
    sources: Sources,
    requests: Requests,
    /// What frames that are not durable yet have changed, in order.
    undo: VecDeque<Undo>,
}

/// What to do when a frame is rolled back.
#[derive(Clone, Debug)]
struct Undo {
    seq: u64,
    entry: DedupEntry,
    /// The entries that it replaced or evicted.
    displaced: Vec<Known>,
}

/// An entry, and when it arrived.
#[derive(Clone, Copy, Debug)]
struct Known {
    entry: DedupEntry,
    at: Instant,
}

impl Known {
    fn is_expired(&self, now: Instant) -> bool {
        self.entry.is_request() && now.saturating_duration_since(self.at) > DEDUP_WINDOW
    }
}

impl DedupIndex {
    /// Creates the empty index of a journal with segments of this size.
    pub(super) fn new(segment_bytes: u64) -> Self {
        let requests = Requests { count_max: REQUESTS_MAX, ..Requests::default() };
        let mut index = Self { sources: Sources::default(), requests, undo: VecDeque::new() };
        index.limit(segment_bytes);
        index
    }

    /// Limits the index to what a journal with segments of this size can have.
    pub(super) fn limit(&mut self, segment_bytes: u64) {
        let fit = usize::try_from(segment_bytes / SEGMENT_FRACTION).unwrap_or(usize::MAX) / DEDUP_ENTRY_BYTES;
        self.sources.count_max = fit.min(SOURCES_MAX);
        while self.sources.evict().is_some() {}
    }

    /// Returns the earlier frame that a frame with `dedup_key` would repeat.
    pub(super) fn find_duplicate(&self, dedup_key: &DedupKey, now: Instant) -> Option<DedupEntry> {
        let known = match dedup_key.kind {
            DedupKind::Request { .. } => self.requests.by_key.get(&dedup_key.key),
            DedupKind::Source { .. } => self.sources.by_key.get(&dedup_key.key),
        };
        let known = known.filter(|known| !known.is_expired(now) && dedup_key.repeats(&known.entry.dedup_key));
        known.map(|known| known.entry)
    }

    /// Inserts the key of a frame that was assigned its sequence number; [`Self::roll_back`] can revert it.
    pub(super) fn insert(&mut self, entry: DedupEntry, now: Instant) {
        let displaced = self.put(Known { entry, at: now });
        self.undo.push_back(Undo { seq: entry.seq, entry, displaced });
    }

    /// Inserts the key of a frame that is in the journal.
    pub(super) fn insert_found(&mut self, entry: DedupEntry, now: Instant) {
        self.put(Known { entry, at: now });
    }

    /// Continues with what a START says: its sources, and no others. A START of an earlier version has requests, too.
    pub(super) fn apply_start(&mut self, entries: &[DedupEntry], now: Instant) {
        self.sources.clear();
        for &entry in entries {
            let known = self.requests.by_key.get(&entry.dedup_key.key).filter(|_| entry.is_request());
            if known.is_none_or(|known| known.entry.seq < entry.seq) {
                self.put(Known { entry, at: now });
            }
        }
    }

    /// Forgets the sources that are not in `known`. The next START does not repeat them.
    pub(super) fn retain_sources(&mut self, known: &HashSet<[u8; 16]>) {
        let gone: Vec<_> = self.sources.by_key.keys().filter(|key| !known.contains(*key)).copied().collect();
        for key in gone {
            self.sources.remove(&key);
        }
    }

    /// Every frame up to `seq` is durable.
    pub(super) fn mark_durable(&mut self, seq: u64) {
        while self.undo.front().is_some_and(|undo| undo.seq <= seq) {
            self.undo.pop_front();
        }
    }

    /// Reverts the frames that are not durable.
    pub(super) fn roll_back(&mut self) {
        while let Some(Undo { entry, displaced, .. }) = self.undo.pop_back() {
            match entry.is_request() {
                true => drop(self.requests.remove(&entry.dedup_key.key)),
                false => drop(self.sources.remove(&entry.dedup_key.key)),
            }
            for known in displaced {
                match known.entry.is_request() {
                    true => drop(self.requests.insert(known)),
                    false => drop(self.sources.insert(known)),
                }
            }
        }
    }

    /// Returns the entries for a START, in the order of their sequence numbers.
    pub(super) fn start_entries(&self) -> Vec<DedupEntry> {
        self.sources.by_seq.values().map(|key| self.sources.by_key[key].entry).collect()
    }

    /// Maximum size of all entries in a START.
    pub(super) fn start_bytes_max(&self) -> usize {
        self.sources.count_max * DEDUP_ENTRY_BYTES
    }

    /// Inserts an entry. Returns those that it replaces or evicts.
    fn put(&mut self, known: Known) -> Vec<Known> {
        let mut displaced = Vec::new();
        if known.entry.is_request() {
            displaced.extend(self.requests.insert(known));
            displaced.extend(self.requests.expire(known.entry.dedup_key.sender(), known.at));
            displaced.extend(self.requests.evict());
        } else {
            displaced.extend(self.sources.insert(known));
            displaced.extend(self.sources.evict());
        }
        displaced
    }
}

/// The positions of sources.
#[derive(Clone, Debug, Default)]
struct Sources {
    by_key: HashMap<[u8; 16], Known>,
    by_seq: BTreeMap<u64, [u8; 16]>,
    count_max: usize,
}

impl Sources {
    fn insert(&mut self, known: Known) -> Option<Known> {
        let key = known.entry.dedup_key.key;
        let before = self.remove(&key);
        self.by_seq.insert(known.entry.seq, key);
        self.by_key.insert(key, known);
        before
    }

    fn remove(&mut self, key: &[u8; 16]) -> Option<Known> {
        work::count();
        let known = self.by_key.remove(key)?;
        self.by_seq.remove(&known.entry.seq);
        Some(known)
    }

    /// Removes the source that advanced longest ago, if there are too many.
    fn evict(&mut self) -> Option<Known> {
        if self.by_key.len() <= self.count_max {
            return None;
        }
        let oldest = *self.by_seq.first_key_value()?.1;
        self.remove(&oldest)
    }

    fn clear(&mut self) {
        self.by_key.clear();
        self.by_seq.clear();
    }
}

/// The window of requests.
#[derive(Clone, Debug, Default)]
struct Requests {
    by_key: HashMap<[u8; 16], Known>,
    /// The requests of each sender, by sequence number.
    senders: HashMap<Sender, BTreeMap<u64, [u8; 16]>>,
    /// The senders by the number of their requests.
    sizes: BTreeSet<(usize, Sender)>,
    count_max: usize,
}

impl Requests {
    fn insert(&mut self, known: Known) -> Option<Known> {
        let (key, sender) = (known.entry.dedup_key.key, known.entry.dedup_key.sender());
        let before = self.remove(&key);
        self.change(sender, |requests| requests.insert(known.entry.seq, key));
        self.by_key.insert(key, known);
        before
    }

    fn remove(&mut self, key: &[u8; 16]) -> Option<Known> {
        work::count();
        let known = self.by_key.remove(key)?;
        self.change(known.entry.dedup_key.sender(), |requests| requests.remove(&known.entry.seq));
        Some(known)
    }

    fn change<T>(&mut self, sender: Sender, change: impl FnOnce(&mut BTreeMap<u64, [u8; 16]>) -> T) {
        let requests = self.senders.entry(sender).or_default();
        let before = requests.len();
        change(requests);
        let after = requests.len();
        self.sizes.remove(&(before, sender));
        if after > 0 {
            self.sizes.insert((after, sender));
        } else {
            self.senders.remove(&sender);
        }
    }

    /// Removes the requests of `sender` that have expired. Those of a sender that sends no more are found expired when
    /// they are looked for.
    fn expire(&mut self, sender: Sender, now: Instant) -> Vec<Known> {
        let mut expired = Vec::new();
        while let Some(oldest) = self.oldest(sender)
            && self.by_key[&oldest].is_expired(now)
        {
            expired.extend(self.remove(&oldest));
        }
        expired
    }

    /// Removes the oldest request of the sender with the most, if there are too many.
    fn evict(&mut self) -> Option<Known> {
        if self.by_key.len() <= self.count_max {
            return None;
        }
        let oldest = self.oldest(self.sizes.last()?.1)?;
        self.remove(&oldest)
    }

    fn oldest(&self, sender: Sender) -> Option<[u8; 16]> {
        Some(*self.senders.get(&sender)?.first_key_value()?.1)
    }
}

/// Counts the entries that are touched, for the test that recovery is linear.
mod work {
    #[cfg(test)]
    thread_local! {
        pub(super) static TOUCHED: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
    }

    pub(super) fn count() {
        #[cfg(test)]
        TOUCHED.with(|touched| touched.set(touched.get() + 1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEGMENT_BYTES: u64 = 64 << 10;
    const REQUESTS_MAX: u64 = 73;
    /// In segments of that size.
    const SOURCES_MAX: u64 = 24;

    fn request(key: u64, seq: u64) -> DedupEntry {
        request_of(1, key, seq)
    }

    fn request_of(sender: u8, key: u64, seq: u64) -> DedupEntry {
        let mut bytes = [sender; 16];
        bytes[8..].copy_from_slice(&key.to_le_bytes());
        let kind = DedupKind::Request { body: Some(key) };
        DedupEntry { dedup_key: DedupKey { key: bytes, kind }, lane: 0, seq }
    }

    fn source(key: u64, position: u64, seq: u64) -> DedupEntry {
        let kind = DedupKind::Source { position };
        DedupEntry { dedup_key: DedupKey { kind, ..request_of(0, key, seq).dedup_key }, lane: 0, seq }
    }

    fn index() -> DedupIndex {
        let mut index = DedupIndex::new(SEGMENT_BYTES);
        index.requests.count_max = REQUESTS_MAX.try_into().unwrap();
        index
    }

    fn entries(index: &DedupIndex) -> Vec<DedupEntry> {
        let known = index.sources.by_key.values().chain(index.requests.by_key.values());
        let mut entries: Vec<DedupEntry> = known.map(|known| known.entry).collect();
        entries.sort_unstable_by_key(|entry| entry.seq);
        entries
    }

    /// Sequence number of the frame that one with `entry`'s key would repeat.
    fn first(index: &DedupIndex, entry: DedupEntry, now: Instant) -> Option<u64> {
        index.find_duplicate(&entry.dedup_key, now).map(|first| first.seq)
    }

    #[test]
    fn a_repeated_request_is_a_duplicate_and_a_source_may_advance() {
        let (mut index, now) = (index(), Instant::now());
        index.insert(request(1, 5), now);
        index.insert(source(2, 100, 6), now);
        assert_eq!(first(&index, request(1, 0), now), Some(5));
        assert_eq!(first(&index, source(2, 100, 0), now), Some(6));
        assert_eq!(first(&index, source(2, 40, 0), now), Some(6));
        assert_eq!(first(&index, source(2, 101, 0), now), None);
        assert_eq!(first(&index, request(3, 0), now), None);
        assert_eq!(first(&index, request_of(2, 1, 0), now), None, "another sender's");
    }

    #[test]
    fn a_key_with_another_body_is_a_contradiction() {
        let key = request(1, 0).dedup_key;
        let with = |body| DedupKey { kind: DedupKind::Request { body }, ..key };
        assert!(!key.contradicts(&key));
        assert!(key.contradicts(&with(Some(2))));
        assert!(!key.contradicts(&with(None)), "the body is unknown");
        assert!(!key.contradicts(&request(2, 0).dedup_key), "another key");
        assert!(key.with_body(b"one").contradicts(&key.with_body(b"two")));
        assert!(!key.with_body(b"one").contradicts(&with(None).with_body(b"one")));
    }

    #[test]
    fn a_roll_back_restores_what_was_replaced() {
        let (mut index, now) = (index(), Instant::now());
        index.insert(source(2, 100, 6), now);
        index.mark_durable(6);
        index.insert(source(2, 200, 7), now);
        index.insert(source(2, 300, 8), now);
        index.insert(request(1, 9), now);
        index.roll_back();
        assert_eq!(first(&index, source(2, 100, 0), now), Some(6));
        assert_eq!(first(&index, source(2, 101, 0), now), None);
        assert_eq!(first(&index, request(1, 0), now), None);
        index.insert(source(2, 200, 7), now);
        assert_eq!(entries(&index), [source(2, 200, 7)]);
    }

    #[test]
    fn a_roll_back_puts_back_what_was_evicted_or_has_expired() {
        let (mut index, now) = (index(), Instant::now());
        for key in 0..REQUESTS_MAX {
            index.insert(request(key, 1 + key), now);
        }
        for key in 0..SOURCES_MAX {
            index.insert(source(key, 5, 100 + key), now);
        }
        index.mark_durable(200);
        let before = entries(&index);
        let later = now + DEDUP_WINDOW + Duration::from_millis(1);
        for nth in 0..40 {
            index.insert(request(1000 + nth, 201 + 2 * nth), if nth < 20 { now } else { later });
            index.insert(source(1000 + nth, 5, 202 + 2 * nth), now);
        }
        assert_eq!(first(&index, request(0, 0), now), None, "evicted");
        assert_eq!(first(&index, request(30, 0), now), None, "expired");
        index.roll_back();
        assert_eq!(entries(&index), before);
        assert_eq!(first(&index, request(0, 0), now), Some(1));
    }

    #[test]
    fn requests_expire_by_their_age_and_sources_do_not() {
        let (mut index, now) = (index(), Instant::now());
        index.insert(request(1, 1), now);
        index.insert(source(2, 7, 2), now);
        let later = now + DEDUP_WINDOW;
        assert_eq!(first(&index, request(1, 0), later), Some(1));
        assert_eq!(first(&index, request(1, 0), later + Duration::from_millis(1)), None, "although it is still there");
        index.insert(request(3, 3), later + Duration::from_millis(1));
        assert_eq!(index.requests.by_key.len(), 1, "and now it is not");
        assert_eq!(first(&index, source(2, 7, 0), later + 100 * DEDUP_WINDOW), Some(2));
    }

    #[test]
    fn a_source_is_forgotten_when_it_is_not_known_any_more_also_by_a_start() {
        let (mut running, now) = (index(), Instant::now());
        running.insert(source(1, 5, 1), now);
        running.insert(source(2, 5, 2), now);
        running.insert(request(3, 3), now);
        running.mark_durable(3);
        let mut found = running.clone();
        running.retain_sources(&HashSet::from([source(1, 0, 0).dedup_key.key]));
        // A start that reads the frames first, and then the START of a later segment.
        found.apply_start(&running.start_entries(), now);
        for index in [&running, &found] {
            assert_eq!(index.start_entries(), [source(1, 5, 1)]);
            assert_eq!(first(index, source(2, 5, 0), now), None);
            assert_eq!(first(index, request(3, 0), now), Some(3), "requests are not in a START, and not forgotten");
        }
        // A frame that is rolled back later leaves nothing of a forgotten source, either.
        running.insert(source(4, 5, 4), now);
        running.retain_sources(&HashSet::new());
        running.roll_back();
        assert_eq!(running.start_entries(), []);
    }

    #[test]
    fn a_sender_with_many_requests_pushes_out_only_its_own() {
        let (mut index, now) = (index(), Instant::now());
        for key in 0..20 {
            index.insert(request_of(7, key, 1 + key), now);
        }
        for key in 0..10_000 {
            index.insert(request_of(8, key, 100 + key), now);
            index.mark_durable(100 + key);
        }
        assert!((0..20).all(|key| first(&index, request_of(7, key, 0), now).is_some()));
        assert_eq!(first(&index, request_of(8, 10_000 - (REQUESTS_MAX - 20), 0), now), Some(10_047));
        assert_eq!(first(&index, request_of(8, 9_999 - (REQUESTS_MAX - 20), 0), now), None);
        assert_eq!(index.requests.by_key.len() as u64, REQUESTS_MAX);
    }

    #[test]
    fn the_number_of_entries_is_limited_by_the_space_in_a_start() {
        let (mut index, now) = (index(), Instant::now());
        for seq in 1..500 {
            index.insert(if seq % 2 == 0 { request(seq, seq) } else { source(seq, 9, seq) }, now);
            index.mark_durable(seq);
        }
        assert_eq!(entries(&index).len() as u64, REQUESTS_MAX + SOURCES_MAX);
        let list = index.start_entries();
        assert_eq!((list.len() as u64, list.last().unwrap().seq), (SOURCES_MAX, 499));
        assert!(list.iter().all(|entry| !entry.is_request()), "a START has no requests");
        assert_eq!(list.len() * DEDUP_ENTRY_BYTES, index.start_bytes_max());
        let mut again = DedupIndex::new(64 << 20);
        again.apply_start(&list, now);
        again.limit(SEGMENT_BYTES);
        assert_eq!(again.start_entries(), list);
    }

    /// What a START says replaces what was known: a start touches each entry in the journal a bounded number of times.
    #[test]
    fn recovery_touches_each_entry_in_the_journal_a_bounded_number_of_times() {
        let now = Instant::now();
        let touched = |segments: u64| {
            let (mut running, mut found) = (index(), index());
            let (mut in_journal, mut seq) = (0, 0);
            work::TOUCHED.with(|touched| touched.set(0));
            for _ in 0..segments {
                let start = running.start_entries();
                let before = work::TOUCHED.with(std::cell::Cell::get);
                found.apply_start(&start, now);
                let mut touched = work::TOUCHED.with(std::cell::Cell::get) - before;
                in_journal += start.len() as u64;
                for _ in 0..100 {
                    seq += 1;
                    let entry = if seq % 2 == 0 { request(seq % 90, seq) } else { source(seq % 30, seq, seq) };
                    running.insert(entry, now);
                    running.mark_durable(seq);
                    let before = work::TOUCHED.with(std::cell::Cell::get);
                    found.insert_found(entry, now);
                    touched += work::TOUCHED.with(std::cell::Cell::get) - before;
                    in_journal += 1;
                }
                assert!(touched <= 2 * (start.len() as u64 + 100), "{touched} in one segment");
                assert!(entries(&found).len() as u64 <= REQUESTS_MAX + SOURCES_MAX);
            }
            assert_eq!(entries(&found), entries(&running));
            in_journal
        };
        assert!(touched(400) > 40_000);
    }

    #[test]
    fn an_entry_survives_the_round_trip() {
        for dedup_key in [
            DedupKey { key: *b"0123456789abcdef", kind: DedupKind::Source { position: 77 } },
            DedupKey { key: [3; 16], kind: DedupKind::Request { body: None } },
            DedupKey { key: [4; 16], kind: DedupKind::Request { body: Some(u64::MAX - 1) } },
        ] {
            let one = DedupEntry { dedup_key, lane: 9, seq: 1 << 40 };
            let mut bytes = Vec::new();
            one.encode(&mut bytes);
            assert_eq!(bytes.len(), DEDUP_ENTRY_BYTES);
            assert_eq!(DedupEntry::decode(&bytes), Some(one));
            assert_eq!(DedupEntry::decode(&bytes[..41]), None);
        }
    }

    #[test]
    fn a_request_of_an_earlier_version_has_no_body_and_no_sender() {
        let mut bytes = [5; DEDUP_KEY_BYTES];
        bytes[16..24].fill(0); // the position; a time follows
        let key = DedupKey::decode(&bytes).unwrap();
        assert_eq!((key.kind, key.sender()), (DedupKind::Request { body: None }, Sender::default()));
    }
}
