//! The log store: rows, cursor and volume counters move in one transaction.
//!
//! Identity follows the volume: the *writer* is the journal's uuid. At start a process takes the writer
//! over (epoch + 1), which fences every older owner. Each flush is a compare-and-set on the lane's row,
//! guarded by epoch and cursor. `rows + dead + lost` of a lane's row equals the `lane_records` of the frame at
//! its cursor: checked before each commit.
//!
//! A record's `id` is `lane_id << 44 | ordinal`, where the ordinal counts the lane's records from 1: dense, unique,
//! and the proof that nothing is missing or doubled.

use async_trait::async_trait;
use logweir_engine::journal::LaneId;
use uuid::Uuid;

use crate::message::Batch;

/// Who takes over which journal.
#[derive(Clone, Debug)]
pub struct Claim {
    /// The journal's identity.
    pub writer: Uuid,
    /// This run of it.
    pub run: Uuid,
    /// Runs before this one. If the database was last claimed by a run that is not among them (nor this
    /// one), this journal is a copy that another copy has overtaken: [`StoreError::StaleCopy`].
    pub runs: Vec<Uuid>,
    /// Host and pid, for people.
    pub owner: String,
    /// The newest sequence number of each lane in the journal at its opening, kept beside the take-over.
    pub tails: Vec<(LaneId, u64)>,
}

/// What a take-over gave.
#[derive(Clone, Debug)]
pub struct Lease {
    /// The writer.
    pub writer: Uuid,
    /// The epoch that is ours.
    pub epoch: i64,
    /// The cursor of each lane that the database knows.
    pub lanes: Vec<LaneRow>,
}

/// A lane as the database has it.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct LaneRow {
    /// The lane.
    pub lane: LaneId,
    /// The number that stands in its records' ids.
    pub lane_id: i64,
    /// The epoch of the owner that moved it last, or took it over.
    pub epoch: i64,
    /// The cursor: the last frame that the database has.
    pub last_seq: u64,
    /// [`Batch::digest`] of that frame; empty before the first.
    pub digest: Vec<u8>,
    /// Rows inserted since the journal was made.
    pub rows: u64,
    /// Records dead-lettered.
    pub dead: u64,
    /// Records lost to damage in the journal, each range named when it was found.
    pub lost: u64,
}

impl LaneRow {
    /// Records that are settled: the `lane_records` of the frame at the cursor.
    #[must_use]
    pub fn settled(&self) -> u64 {
        self.rows + self.dead + self.lost
    }
}

/// What a flush did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Flushed {
    /// Rows inserted.
    pub rows: u64,
    /// Records dead-lettered.
    pub dead: u64,
}

/// Why a store did not do it, by what must happen next.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Try the same again later: connection lost, server restarting, read-only, disk full, lock, timeout.
    #[error("{0}")]
    Transient(String),
    /// The schema, a permission or the data model is wrong: the lane stops, somebody must mend it; tried again slowly.
    #[error("{0}")]
    Systemic(String),
    /// Another process has taken over the writer.
    #[error(
        "fenced: the journal {writer} was taken over in epoch {epoch} by {owner}; this process was in epoch {mine}"
    )]
    Fenced {
        /// The writer.
        writer: Uuid,
        /// The epoch that the database has.
        epoch: i64,
        /// Ours.
        mine: i64,
        /// Who has it.
        owner: String,
    },
    /// This journal is a copy that another copy of it has overtaken.
    #[error(
        "this journal ({writer}) is a copy: {owner} has taken the same journal over since, in epoch {epoch}; \
             stop one of the two, then save what only this copy has with `logweir journal drain --adopt --dir DIR`"
    )]
    StaleCopy {
        /// The writer.
        writer: Uuid,
        /// The epoch that the database has.
        epoch: i64,
        /// Who has it.
        owner: String,
    },
    /// The cursor is not where this flush starts; the decision is the flusher's.
    #[error("the cursor of lane {} is at {}, not where this batch starts", .0.lane, .0.last_seq)]
    CursorMoved(Box<LaneRow>),
    /// The sequence number at the cursor was used for other data: the lane stops.
    #[error(
        "lane {lane}: sequence number {seq} was used twice for different data; the lane is stopped, the journal is kept"
    )]
    SequenceReused {
        /// The lane.
        lane: LaneId,
        /// The number.
        seq: u64,
    },
}

/// Where records go for good.
#[async_trait]
pub trait LogStore: Send + Sync {
    /// `PostgreSQL`, `TimescaleDB` or `SQLite`, for people.
    fn name(&self) -> String;

    /// Brings the schema up to date, under a lock.
    async fn prepare(&self) -> Result<(), StoreError>;

    /// Takes the writer over and fences older owners. Idempotent for the same run.
    async fn take_over(&self, claim: &Claim) -> Result<Lease, StoreError>;

    /// Opens the lane's own long-lived connection, and makes its row if it is new. Returns the lane as it stands.
    async fn open_lane(&self, lease: &Lease, lane: LaneId) -> Result<(Box<dyn LaneWriter>, LaneRow), StoreError>;

    /// Makes partitions ahead, drops what retention lets go. Called every few minutes by one process at a time.
    async fn maintain(&self, now_us: i64) -> Result<(), StoreError>;

    /// All lanes of `writer`, for status and verify.
    async fn lanes(&self, writer: Uuid) -> Result<Vec<LaneRow>, StoreError>;

    /// Counts what the table really holds for a lane's ids, for `verify`.
    async fn count_stored(&self, row: &LaneRow) -> Result<StoredCount, StoreError>;

    /// Dead letters, newest first, at most `limit`.
    async fn dead_letters(&self, limit: u32) -> Result<Vec<DeadLetter>, StoreError>;

    /// Tries the dead letter again: inserts its (possibly mended) record and removes it, in one transaction.
    async fn replay_dead_letter(&self, letter: &DeadLetter) -> Result<(), StoreError>;

    /// Removes dead letters older than `before_us`; returns how many.
    async fn purge_dead_letters(&self, before_us: i64) -> Result<u64, StoreError>;
}

/// What the table holds of one lane.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct StoredCount {
    /// Rows.
    pub rows: u64,
    /// Distinct ids among them.
    pub distinct: u64,
    /// Dead letters of the lane still kept.
    pub dead_letters: u64,
    /// Rows that came back from the dead letters.
    pub replayed: u64,
}

/// One connection that flushes one lane, one transaction at a time.
#[async_trait]
pub trait LaneWriter: Send {
    /// Commits `batch` with its cursor and counters, exactly once. Poisonous rows are found and dead-lettered inside.
    ///
    /// An error leaves the outcome open (a COMMIT may have been cut off): flushing the same batch again decides it.
    async fn flush(&mut self, batch: &Batch) -> Result<Flushed, StoreError>;
}

/// A record that the database would not take.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct DeadLetter {
    /// The id that its row would have.
    pub id: i64,
    /// The writer.
    pub writer: Uuid,
    /// The lane.
    pub lane: LaneId,
    /// The frame.
    pub seq: u64,
    /// The record's place in the frame, from 0.
    pub row: u32,
    /// SQLSTATE.
    pub sqlstate: String,
    /// What the server said.
    pub reason: String,
    /// The record as one JSON object (ts, severity, service, host, message, attributes as text).
    pub raw: String,
    /// When, in microseconds since 1970.
    pub at_us: i64,
}
