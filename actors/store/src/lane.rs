//! A lane's row in the database, and what a flush does to it.

use logweir_engine::journal::LaneId;

use crate::batch::DIGEST_BYTES;

/// Number of bits of a record's id below the `lane_id`.
pub const ORDINAL_BITS: u32 = 44;

/// Returns the id of a lane's record number `ordinal` (from 1).
#[must_use]
pub fn id_of(lane_id: i64, ordinal: i64) -> i64 {
    lane_id << ORDINAL_BITS | ordinal
}

/// A lane's row in the database.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct LaneRow {
    /// The lane.
    pub lane: LaneId,
    /// The number in the upper bits of its records' ids.
    pub lane_id: i64,
    /// The epoch of the owner that last moved it or acquired the lease.
    pub epoch: i64,
    /// The cursor: the last committed frame.
    pub last_seq: u64,
    /// [`Batch::digest`](crate::Batch::digest) of the last batch; empty before the first.
    pub digest: Vec<u8>,
    /// Rows inserted since the journal was created.
    pub rows: u64,
    /// Dead-lettered records.
    pub dead_lettered: u64,
    /// Records that the journal no longer had (damaged, or past its retention). Each range was logged when it was
    /// found.
    pub lost: u64,
    /// Records of the lane before this row started: another writer's (see [`LogStore::fork`](crate::LogStore::fork)),
    /// or stored under the `lane_id` that the lane had before it was reset.
    pub inherited: u64,
}

impl LaneRow {
    /// Number of records of the frame after the cursor that are committed already; usually 0.
    #[must_use]
    pub fn partial(&self) -> u64 {
        let bytes = self.digest.get(DIGEST_BYTES..).and_then(|bytes| bytes.try_into().ok());
        bytes.map_or(0, u64::from_le_bytes)
    }

    /// The digest of the frame that the last batch ended with or in; empty before the first.
    #[must_use]
    pub fn frame_digest(&self) -> &[u8] {
        self.digest.get(..DIGEST_BYTES).unwrap_or(&self.digest)
    }

    /// Number of records accounted for: the `lane_records` of the frame at the cursor, and [`Self::partial`].
    #[must_use]
    pub fn accounted(&self) -> u64 {
        self.inherited + self.rows + self.dead_lettered + self.lost
    }
}

/// Where a forked or reset lane starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaneStart {
    /// The lane.
    pub lane: LaneId,
    /// The last frame that must not be flushed.
    pub seq: u64,
    /// `lane_records` of that frame.
    pub records: u64,
}

/// The result of a flush.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Flushed {
    /// Rows inserted.
    pub rows: u64,
    /// Dead-lettered records.
    pub dead_lettered: u64,
}

/// Stored rows and dead letters of one lane.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct StoredCount {
    /// Rows.
    pub rows: u64,
    /// Distinct ids among the rows.
    pub distinct: u64,
    /// Dead letters of the lane that still exist.
    pub dead_letters: u64,
    /// Rows replayed from dead letters.
    pub replayed: u64,
}
