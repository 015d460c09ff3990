//! What one database transaction stores: consecutive chunks of one lane.

use std::sync::Arc;

use logweir_engine::journal::{DedupKey, Journal, LaneId};
use logweir_engine::mailbox::Message;
use logweir_record::chunk::Chunk;

use crate::digest::Digest;
use crate::lane::Position;

/// A frame's records in memory, shared by the flusher and the cache writer.
#[derive(Clone, Debug)]
pub struct BatchFrame {
    /// Sequence number of the frame.
    pub seq: u64,
    /// Number of records of the lane up to and including this frame.
    pub lane_records: u64,
    /// CRC-32C of the frame's payload.
    pub payload_crc: u32,
    /// Key of the request or the source that it came from, if it has one.
    pub dedup_key: Option<DedupKey>,
    /// The records. The first has the ordinal `lane_records - chunk.len() + 1`.
    pub chunk: Arc<Chunk>,
}

/// Records that are missing from a lane's journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Gap {
    /// The lowest sequence number that they can have.
    pub seq_first: u64,
    /// The highest sequence number that they can have.
    pub seq_last: u64,
    /// Number of records.
    pub records: u64,
}

/// Consecutive records of one lane that commit in one database transaction: those with the numbers
/// `(from_records, to_records]`.
///
/// Usually whole frames. After failures a batch is divided, also inside of a frame: then some records at its start are
/// committed already ([`after`](Self::after)), or some at its end are left to a later batch ([`prefix`](Self::prefix)).
/// The cursor stays at the last frame that is committed as a whole; the counters of the lane's row show how far into the
/// next one the lane is.
#[derive(Clone, Debug)]
pub struct Batch {
    /// The lane.
    pub lane: LaneId,
    /// The cursor before it.
    pub from_seq: u64,
    /// Number of records of the lane before it: [`LaneRow::accounted`](crate::LaneRow::accounted).
    pub from_records: u64,
    /// The journal generation in which its sequence numbers were assigned.
    pub generation: u64,
    frames: Vec<BatchFrame>,
    skip: usize,
    /// At most the number of records of the last frame, since only `prefix` sets it.
    leave: usize,
}

impl Batch {
    /// Whole frames, in order and at least one, that follow the cursor `from_seq`.
    #[must_use]
    pub fn new(lane: LaneId, from_seq: u64, from_records: u64, generation: u64, frames: Vec<BatchFrame>) -> Self {
        Self { lane, from_seq, from_records, generation, frames, skip: 0, leave: 0 }
    }

    /// Its first `records` records, or all if it has no more. They can end inside of a frame.
    #[must_use]
    pub fn prefix(&self, records: usize) -> Self {
        let (mut wanted, mut frames, mut leave) = (records.saturating_add(self.skip), Vec::new(), 0);
        let end = self.records_of_last();
        for (index, frame) in self.frames.iter().enumerate() {
            if wanted == 0 {
                break;
            }
            let is_last = index + 1 == self.frames.len();
            let taken = wanted.min(if is_last { end } else { frame.chunk.len() });
            leave = frame.chunk.len() - taken;
            wanted -= taken;
            frames.push(frame.clone());
        }
        Self { frames, leave, ..Self { frames: Vec::new(), ..*self } }
    }

    /// What is left of it when the lane is at `position`; `None` if nothing is. A batch that begins above it stays as it
    /// is.
    #[must_use]
    pub fn after(mut self, position: Position) -> Option<Self> {
        let gone = self.frames.partition_point(|frame| frame.seq <= position.seq);
        self.frames.drain(..gone);
        let first = self.frames.first()?;
        if self.from_seq <= position.seq {
            // Only the frame that the lane is in: if it cannot be read any more, the rest of it is lost.
            let is_begun = first.records_before().checked_add(position.partial) == Some(position.records);
            self.skip = if is_begun { usize::try_from(position.partial).unwrap_or(usize::MAX) } else { 0 };
            (self.from_seq, self.from_records) = (position.seq, position.records);
        }
        Some(self)
    }

    /// Where the lane is after it.
    #[must_use]
    pub fn end(&self) -> Position {
        Position { seq: self.to_seq(), records: self.to_records(), partial: self.digest().partial() }
    }

    /// Its frames.
    #[must_use]
    pub fn frames(&self) -> &[BatchFrame] {
        &self.frames
    }

    /// Number of records of the first frame that are committed already.
    #[must_use]
    pub fn skip(&self) -> usize {
        self.skip
    }

    /// Number of records of the last frame that are not part of it.
    #[must_use]
    pub fn leave(&self) -> usize {
        self.leave
    }

    /// Waits for the fsync that covers it. Returns false if that will not happen: the disk was full and its sequence
    /// numbers were reassigned to other records.
    pub async fn is_durable(&self, journal: &Journal) -> bool {
        journal.durable(self.last_seq()).await.is_ok() && journal.generation() == self.generation
    }

    /// Sequence number of the last frame that it touches.
    #[must_use]
    pub fn last_seq(&self) -> u64 {
        self.frames.last().map_or(self.from_seq, |frame| frame.seq)
    }

    /// The cursor after it: the last frame that is committed as a whole.
    #[must_use]
    pub fn to_seq(&self) -> u64 {
        match (self.leave, self.frames.len()) {
            (0, _) => self.last_seq(),
            (_, 0 | 1) => self.from_seq,
            (_, frames) => self.frames[frames - 2].seq,
        }
    }

    /// Number of records of the lane up to its end.
    #[must_use]
    pub fn to_records(&self) -> u64 {
        match self.frames.last() {
            None => self.from_records,
            Some(last) if self.leave == 0 => last.lane_records,
            Some(last) => last.records_before() + self.records_of_last() as u64,
        }
    }

    /// Number of records of the last frame that are part of it or before it.
    fn records_of_last(&self) -> usize {
        self.frames.last().map_or(0, |last| last.chunk.len() - self.leave)
    }

    /// Number of records in it.
    #[must_use]
    pub fn records(&self) -> u64 {
        let records: usize = self.frames.iter().map(|frame| frame.chunk.len()).sum();
        // More than there are can be committed of a frame that is not this one; the compare-and-set finds that out.
        records.saturating_sub(self.skip).saturating_sub(self.leave) as u64
    }

    /// Returns the ranges of missing records.
    #[must_use]
    pub fn gaps(&self) -> Vec<Gap> {
        let (mut seq, mut records) = (self.from_seq, self.from_records.saturating_sub(self.skip as u64));
        let mut gaps = Vec::new();
        for frame in &self.frames {
            let missing = frame.records_before().saturating_sub(records);
            if missing > 0 {
                // A frame without records represents one that cannot be read.
                let seq_last = if frame.chunk.is_empty() { frame.seq } else { frame.seq - 1 };
                gaps.push(Gap { seq_first: seq + 1, seq_last, records: missing });
            }
            (seq, records) = (frame.seq, frame.lane_records);
        }
        gaps
    }

    /// Number of missing records in the range: damaged in the journal, or no longer in it.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.to_records().saturating_sub(self.from_records).saturating_sub(self.records())
    }

    /// The digest that is stored with the cursor to detect a reused sequence number: that of the last frame, or of the
    /// part of it that is committed.
    #[must_use]
    pub fn digest(&self) -> Digest {
        match self.frames.last() {
            None => Digest::of_frame(0, 0, 0),
            Some(last) if self.leave == 0 => last.digest(),
            Some(last) => last.digest().of_part(self.records_of_last() as u64),
        }
    }

    /// Its records, the last one first.
    #[cfg(any(feature = "postgres", feature = "sqlite"))]
    pub(crate) fn records_backwards(&self) -> impl Iterator<Item = logweir_record::record::Record<'_>> + '_ {
        let backwards = self.frames.iter().rev().map(|frame| &frame.chunk);
        let all = backwards.flat_map(|chunk| (0..chunk.len()).rev().filter_map(|index| chunk.get(index)));
        all.skip(self.leave).take(usize::try_from(self.records()).unwrap_or(usize::MAX))
    }

    /// If the batch begins inside of a frame: that frame, whose digest the lane's row must have. Otherwise the records
    /// that are committed already could be another frame's.
    #[must_use]
    pub fn begun(&self) -> Option<&BatchFrame> {
        self.frames.first().filter(|_| self.skip > 0)
    }
}

impl BatchFrame {
    /// The digest of the frame as a whole.
    #[must_use]
    pub fn digest(&self) -> Digest {
        Digest::of_frame(self.payload_crc, self.chunk.len(), self.lane_records)
    }

    /// Number of records of the lane before this frame.
    #[must_use]
    pub fn records_before(&self) -> u64 {
        self.lane_records.saturating_sub(self.chunk.len() as u64)
    }
}

impl Message for Batch {
    fn bytes(&self) -> usize {
        size_of::<Self>() + self.frames.iter().map(|frame| frame.chunk.bytes()).sum::<usize>()
    }
}

#[cfg(test)]
mod tests {
    use logweir_record::record::{Record, Severity};

    use super::*;

    fn frame(seq: u64, lane_records: u64, records: usize) -> BatchFrame {
        let mut chunk = Chunk::default();
        let record = Record { ts_us: 0, severity: Severity::INFO, service: "", host: "", message: "", attributes: "" };
        (0..records).for_each(|_| chunk.push(record));
        BatchFrame { seq, lane_records, payload_crc: 7, dedup_key: None, chunk: Arc::new(chunk) }
    }

    fn three() -> Batch {
        Batch::new(0, 10, 100, 0, vec![frame(11, 103, 3), frame(12, 103, 0), frame(14, 107, 4)])
    }

    #[test]
    fn any_prefix_and_what_is_after_it_are_the_batch() {
        for records in 1..=7_u64 {
            let prefix = three().prefix(usize::try_from(records).unwrap());
            assert_eq!((prefix.records(), prefix.to_records(), prefix.lost()), (records, 100 + records, 0));
            let (seq, partial) = match records {
                1 | 2 => (10, records),
                3 => (11, 0),
                4..=6 => (12, records - 3),
                _ => (14, 0),
            };
            assert_eq!(prefix.end(), Position { seq, records: 100 + records, partial });
            assert_eq!(prefix.digest().part_records(), (partial > 0).then_some(100 + records));
            // A prefix of what is left has the same end as a longer prefix of the whole.
            match three().after(prefix.end()) {
                None => assert_eq!(records, 7),
                Some(rest) => {
                    assert_eq!((rest.from_records, rest.records()), (100 + records, 7 - records));
                    assert_eq!(rest.begun().is_some(), partial > 0);
                    for more in 1..=7 - records {
                        let longer = three().prefix(usize::try_from(records + more).unwrap());
                        let next = rest.prefix(usize::try_from(more).unwrap());
                        assert_eq!((next.end(), next.records()), (longer.end(), more));
                        assert_eq!(next.prefix(99).end(), next.end(), "a prefix has no more than the part");
                    }
                }
            }
        }
    }

    #[test]
    fn a_frame_that_is_not_the_one_the_lane_is_in_changes_no_count_by_more_than_it_has() {
        // As a database says that was written by another journal, or by somebody else.
        for (records, partial) in [(101, 1), (110, 10), (100 + u64::MAX / 2, u64::MAX / 2), (0, u64::MAX), (99, 5)] {
            let batch = three().after(Position { seq: 10, records, partial }).unwrap();
            for part in [batch.prefix(1), batch.prefix(5), batch] {
                assert!(part.records() <= 7 && part.to_records() <= 107, "{part:?}");
                let _ = (part.end(), part.gaps(), part.lost(), part.digest());
            }
        }
        // A journal that counts less than its frames have.
        let batch = Batch::new(0, 0, 0, 0, vec![frame(1, 2, 5)]);
        let part = batch.prefix(3);
        let _ = (part.end(), part.gaps(), part.lost(), part.digest(), batch.end(), batch.gaps(), batch.lost());
    }
}
