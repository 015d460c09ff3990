//! What one database transaction stores: consecutive chunks of one lane.

use std::sync::Arc;

use logweir_engine::journal::{Journal, LaneId};
use logweir_engine::mailbox::Message;
use logweir_record::chunk::Chunk;

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

/// Consecutive chunks of one lane that commit in one database transaction: the range `(from_seq, to_seq]`.
#[derive(Clone, Debug)]
pub struct Batch {
    /// The lane.
    pub lane: LaneId,
    /// The cursor before it.
    pub from_seq: u64,
    /// Number of records of the lane up to and including `from_seq`.
    pub from_records: u64,
    /// The journal generation in which its sequence numbers were assigned.
    pub generation: u64,
    /// Its frames, in order; not empty.
    pub frames: Vec<BatchFrame>,
}

impl Batch {
    /// Waits for the fsync that covers it. Returns false if that will not happen: the disk was full and its sequence
    /// numbers were reassigned to other records.
    pub async fn is_durable(&self, journal: &Journal) -> bool {
        journal.durable(self.to_seq()).await.is_ok() && journal.generation() == self.generation
    }

    /// The cursor after it.
    #[must_use]
    pub fn to_seq(&self) -> u64 {
        self.frames.last().map_or(self.from_seq, |frame| frame.seq)
    }

    /// Number of records of the lane up to and including the last frame.
    #[must_use]
    pub fn to_records(&self) -> u64 {
        self.frames.last().map_or(self.from_records, |frame| frame.lane_records)
    }

    /// Number of records in it.
    #[must_use]
    pub fn records(&self) -> u64 {
        self.frames.iter().map(|frame| frame.chunk.len() as u64).sum()
    }

    /// Returns the ranges of missing records.
    #[must_use]
    pub fn gaps(&self) -> Vec<Gap> {
        let (mut seq, mut records) = (self.from_seq, self.from_records);
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
    /// `lane_records` of the last frame.
    #[must_use]
    pub fn digest(&self) -> [u8; 16] {
        let mut digest = [0; 16];
        if let Some(last) = self.frames.last() {
            digest[..4].copy_from_slice(&last.payload_crc.to_le_bytes());
            digest[4..8].copy_from_slice(&u32::try_from(last.chunk.len()).unwrap_or(u32::MAX).to_le_bytes());
            digest[8..].copy_from_slice(&last.lane_records.to_le_bytes());
        }
        digest
    }
}

impl Message for Batch {
    fn bytes(&self) -> usize {
        size_of::<Self>() + self.frames.iter().map(|frame| frame.chunk.bytes()).sum::<usize>()
    }
}
