//! What one database transaction stores: consecutive chunks of one lane.

use std::sync::Arc;

use logweir_engine::journal::{Journal, LaneId};
use logweir_engine::mailbox::Message;
use logweir_record::chunk::Chunk;

/// Length of the digest of a frame that is committed as a whole.
pub(crate) const DIGEST_BYTES: usize = 16;

/// A frame's records in memory, shared by the flusher and the cache writer.
#[derive(Clone, Debug)]
pub struct BatchFrame {
    /// Sequence number of the frame.
    pub seq: u64,
    /// Number of records of the lane up to and including this frame.
    pub lane_records: u64,
    /// CRC-32C of the frame's payload.
    pub payload_crc: u32,
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
/// Usually whole frames. After failures a batch is divided, also inside of a frame: then `skip` records at its start are
/// committed already, or `leave` records at its end are left to a later batch. The cursor stays at the last frame that
/// is committed as a whole; the counters of the lane's row show how far into the next one the lane is.
#[derive(Clone, Debug)]
pub struct Batch {
    /// The lane.
    pub lane: LaneId,
    /// The cursor before it.
    pub from_seq: u64,
    /// Number of records of the lane before it: [`LaneRow::accounted`](crate::LaneRow::accounted).
    pub from_records: u64,
    /// Number of records of the first frame that are committed already.
    pub skip: usize,
    /// Number of records of the last frame that are not part of it.
    pub leave: usize,
    /// The journal generation in which its sequence numbers were assigned.
    pub generation: u64,
    /// Its frames, in order; not empty.
    pub frames: Vec<BatchFrame>,
}

impl Batch {
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
        self.frames.last().map_or(self.from_records, |frame| frame.lane_records - self.leave as u64)
    }

    /// Number of records in it.
    #[must_use]
    pub fn records(&self) -> u64 {
        let records: usize = self.frames.iter().map(|frame| frame.chunk.len()).sum();
        records.saturating_sub(self.skip).saturating_sub(self.leave) as u64
    }

    /// Returns the ranges of missing records.
    #[must_use]
    pub fn gaps(&self) -> Vec<Gap> {
        let (mut seq, mut records) = (self.from_seq, self.from_records.saturating_sub(self.skip as u64));
        let mut gaps = Vec::new();
        for frame in &self.frames {
            let here = frame.chunk.len() as u64;
            let missing = frame.lane_records.saturating_sub(here).saturating_sub(records);
            if missing > 0 {
                // A frame without records represents one that cannot be read.
                let seq_last = if here > 0 { frame.seq - 1 } else { frame.seq };
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

    /// The digest that is stored with the cursor to detect a reused sequence number: CRC, number of records and
    /// `lane_records` of the last frame; if only a part of it is committed, also the number of its records that are
    /// (see [`LaneRow::partial`](crate::LaneRow::partial)).
    #[must_use]
    pub fn digest(&self) -> Vec<u8> {
        let Some(last) = self.frames.last() else { return vec![0; DIGEST_BYTES] };
        let mut digest = last.digest();
        if self.leave > 0 {
            digest.extend_from_slice(&((last.chunk.len() - self.leave) as u64).to_le_bytes());
        }
        digest
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
    pub fn digest(&self) -> Vec<u8> {
        let mut digest = Vec::with_capacity(DIGEST_BYTES + 8);
        digest.extend_from_slice(&self.payload_crc.to_le_bytes());
        digest.extend_from_slice(&u32::try_from(self.chunk.len()).unwrap_or(u32::MAX).to_le_bytes());
        digest.extend_from_slice(&self.lane_records.to_le_bytes());
        digest
    }
}

impl Message for Batch {
    fn bytes(&self) -> usize {
        size_of::<Self>() + self.frames.iter().map(|frame| frame.chunk.bytes()).sum::<usize>()
    }
}
