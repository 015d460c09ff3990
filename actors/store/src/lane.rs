//! A lane's row in the database, and what a flush does to it.

use logweir_engine::journal::LaneId;

use crate::digest::Digest;

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
    pub digest: Digest,
    /// Rows inserted since the journal was created.
    pub rows: u64,
    /// Dead-lettered records.
    pub dead_lettered: u64,
    /// Records that the journal no longer had (damaged, or past its retention). Each range was logged when it was
    /// found.
    pub lost: u64,
    /// Records of the lane before this row started: another writer's (see [`LogStore::fork`](crate::LogStore::fork)),
    /// or stored under the `lane_id` that the lane had before it was reset. And the repeated ones.
    pub inherited: u64,
    /// How many of them were stored by another frame, since a request was repeated. 0 if the table cannot say.
    pub repeated: u64,
}

impl LaneRow {
    /// Number of records of the frame after the cursor that are committed already; usually 0.
    #[must_use]
    pub fn partial(&self) -> u64 {
        self.digest.partial()
    }

    /// Number of records accounted for: the `lane_records` of the frame at the cursor, and [`Self::partial`].
    #[must_use]
    pub fn accounted(&self) -> u64 {
        self.inherited + self.rows + self.dead_lettered + self.lost
    }

    /// How far the lane is.
    #[must_use]
    pub fn position(&self) -> Position {
        Position { seq: self.last_seq, records: self.accounted(), partial: self.partial() }
    }
}

/// How far a lane is committed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Position {
    /// The last frame that is committed as a whole.
    pub seq: u64,
    /// Number of the lane's records that are committed: those up to `seq`, and `partial`.
    pub records: u64,
    /// Number of records of the frame after `seq` that are committed.
    pub partial: u64,
}

/// Where a forked or reset lane starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaneStart {
    /// The lane.
    pub lane: LaneId,
    /// The last frame of which nothing must be flushed.
    pub seq: u64,
    /// Number of records that must not be flushed: `lane_records` of that frame, and the part of the next one.
    pub records: u64,
    /// The digest of that part; empty without one.
    pub digest: Digest,
}

/// The result of a flush.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Flushed {
    /// Rows inserted.
    pub rows: u64,
    /// Dead-lettered records.
    pub dead_lettered: u64,
    /// Records that another frame had stored, since a request was repeated.
    pub repeated: u64,
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
