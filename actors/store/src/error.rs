//! Why a store failed.

use logweir_engine::journal::LaneId;
use uuid::Uuid;

use crate::lane::LaneRow;

/// A store's failure, classified by what must happen next.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// Retry later: connection lost, server restarting, read-only, disk full, lock, timeout.
    #[error("{0}")]
    Transient(String),
    /// The schema, a permission or the data model is wrong: the lane stops until an operator fixes it, and retries
    /// slowly.
    #[error("{0}")]
    Systemic(String),
    /// The server refused the batch for a reason that can depend on its rows or on their number. If it is refused again
    /// for the same reason, divide it; [`LaneWriter::dead_letter`](crate::LaneWriter::dead_letter) decides about a
    /// record that is refused alone.
    #[error("{}", .0.reason)]
    Rejected(Rejection),
    /// Another process has acquired the writer's lease.
    #[error(
        "fenced: the lease on journal {writer} was acquired by {owner} in epoch {epoch}; this process held epoch {mine}"
    )]
    Fenced {
        /// The writer.
        writer: Uuid,
        /// The epoch that the database has.
        epoch: i64,
        /// This process's epoch.
        mine: i64,
        /// The current owner.
        owner: String,
    },
    /// This journal is a copy that another copy of it has overtaken.
    #[error(
        "journal {writer} does not contain the run that last acquired its lease ({owner}, epoch {epoch}): it is an outdated \
         copy. Stop the other copy, and save what only this one has with `logweir journal drain --adopt --dir DIR`. If no other \
         copy has ever been used, what this journal knew about that run is damaged (`logweir journal check` says so): let it \
         continue with `logweir journal adopt --only-copy --dir DIR`; drain --adopt would store that run's records twice"
    )]
    StaleCopy {
        /// The writer.
        writer: Uuid,
        /// The epoch that the database has.
        epoch: i64,
        /// The current owner.
        owner: String,
    },
    /// A claim for the only copy of a journal, while sessions of its writer are connected.
    #[error(
        "journal {writer} is in use: {sessions} of its connections are open in the database ({owner}, epoch {epoch}). Stop the \
         process that uses it, and try again; connections of one that is gone end by themselves, or with pg_terminate_backend"
    )]
    InUse {
        /// The writer.
        writer: Uuid,
        /// The epoch that the database has.
        epoch: i64,
        /// The current owner.
        owner: String,
        /// Number of open connections.
        sessions: i64,
    },
    /// The database does not know this lease (or has reset the lane since): it was restored to an earlier time.
    /// Acquire the lease again, then flush from its cursor what the journal still has.
    #[error("the database does not know epoch {mine} of journal {writer}: it was restored to an earlier time")]
    LeaseLost {
        /// The writer.
        writer: Uuid,
        /// This process's epoch.
        mine: i64,
    },
    /// The cursor is not where this flush starts; the flusher decides what to do.
    #[error("the cursor of lane {} is at frame {}, not at the start of this batch", .0.lane, .0.last_seq)]
    CursorMoved(Box<LaneRow>),
    /// The sequence number at the cursor was used for other data: the lane stops.
    #[error(
        "lane {lane}: sequence number {seq} was used twice for different data; the lane is stopped, and the journal is \
         not removed"
    )]
    SequenceReused {
        /// The lane.
        lane: LaneId,
        /// The sequence number.
        seq: u64,
    },
}

/// Why a server refused a batch or a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// SQLSTATE, SQLite's extended result code, or a word for what has none (`timeout`). Two refusals with the same code are
    /// equal.
    pub code: String,
    /// What the server said, and what to do.
    pub reason: String,
}

impl Rejection {
    /// The code for a record that is suspected: alone in its batch, it has failed many times, each time with a
    /// [`StoreError::Transient`].
    pub const SUSPECTED: &str = "suspected";
    /// The code for a suspected record with which another flush has failed just after the table had taken another record.
    /// If the table then takes another one once more, it is a dead letter.
    pub const INTERRUPTED: &str = "interrupted";
}

impl StoreError {
    /// Returns the value of the metrics' `class` label.
    #[must_use]
    pub fn class(&self) -> &'static str {
        match self {
            Self::Transient(_) => "transient",
            Self::Systemic(_) => "systemic",
            Self::Rejected(_) => "rejected",
            Self::Fenced { .. } => "fenced",
            Self::StaleCopy { .. } => "stale_copy",
            Self::InUse { .. } => "in_use",
            Self::LeaseLost { .. } => "lease_lost",
            Self::CursorMoved(_) => "cursor_moved",
            Self::SequenceReused { .. } => "sequence_reused",
        }
    }
}
