#![doc = include_str!("../README.md")]
//!
//! The log store: rows, cursor and volume counters move in one transaction.
//!
//! Identity follows the volume: the *writer* is the journal's UUID. At startup a process acquires the writer's lease
//! (epoch + 1), which fences every earlier owner. Each flush is a compare-and-set on the lane's row,
//! guarded by epoch and cursor. `inherited + rows + dead + lost` of a lane's row equals the `lane_records` of the
//! frame at its cursor; this is checked before each commit.
//!
//! A journal can be older than the database (a restored volume snapshot, or a disk that lost confirmed writes at power
//! loss). A lane's cursor is then above the journal's tail, and new frames would be mistaken for stored ones. Acquiring
//! the lease resets such a lane: it restarts at the tail under a new `lane_id`.
//!
//! A record's `id` is `lane_id << 44 | ordinal`, where the ordinal counts the lane's records from 1. Ids are dense and
//! unique, which proves that no record is missing or duplicated.

pub mod settings;
pub mod batch;
pub mod throttle;
pub mod claim;
pub mod cursor;
pub mod error_class;
pub mod read;
mod dead_letter;
mod rows;
pub mod volume;
pub mod postgres;
pub mod sqlite;
pub mod blackhole;
pub mod replay;

pub use self::batch::{Batch, BatchFrame, Gap};
pub use self::settings::{Database, DatabaseUrl};

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use logweir_engine::journal::{LaneId, LaneTail};
use uuid::Uuid;

use crate::throttle::QueryThrottle;

/// An open store of any kind.
#[derive(Clone)]
pub enum AnyStore {
    /// `PostgreSQL` or `TimescaleDB`.
    Postgres(Arc<postgres::PostgresStore>),
    /// `SQLite`.
    Sqlite(Arc<sqlite::SqliteStore>),
    /// Discards every record.
    Blackhole(Arc<blackhole::BlackholeStore>),
}

impl AnyStore {
    /// Returns the store's write side.
    #[must_use]
    pub fn store(&self) -> Arc<dyn LogStore> {
        match self {
            Self::Postgres(store) => store.clone(),
            Self::Sqlite(store) => store.clone(),
            Self::Blackhole(store) => store.clone(),
        }
    }

    /// Returns the store's read side, or `None` if the store discards its records. `timeout` bounds each query;
    /// `throttle` makes queries yield to flushes.
    #[must_use]
    pub fn reader(&self, timeout: Duration, throttle: QueryThrottle) -> Option<Arc<dyn read::LogReader>> {
        match self {
            Self::Postgres(store) => Some(Arc::new(store.log_reader(timeout, throttle))),
            Self::Sqlite(store) => Some(Arc::new(store.log_reader(timeout, throttle))),
            Self::Blackhole(_) => None,
        }
    }
}

/// Returns the id of a lane's record number `ordinal` (from 1).
#[must_use]
pub fn id_of(lane_id: i64, ordinal: i64) -> i64 {
    lane_id << cursor::ORDINAL_BITS | ordinal
}

/// Opens the store at `config.url`. Does not connect to a server yet; `SQLite` creates its file.
///
/// # Errors
/// [`StoreError::Systemic`] if the URL, the CA file or the path is invalid.
pub fn open(config: &Database) -> Result<AnyStore, StoreError> {
    Ok(match &config.url {
        DatabaseUrl::Postgres(url) => AnyStore::Postgres(Arc::new(postgres::PostgresStore::new(url, config)?)),
        DatabaseUrl::Sqlite(path) => AnyStore::Sqlite(Arc::new(sqlite::SqliteStore::open(path, config)?)),
        DatabaseUrl::Blackhole => AnyStore::Blackhole(Arc::default()),
    })
}

/// A run's claim to a journal's lease.
#[derive(Clone, Debug)]
pub struct Claim {
    /// The journal's identity.
    pub writer: Uuid,
    /// The id of this run.
    pub run: Uuid,
    /// Earlier runs, oldest first. If the database's last owner is neither among them nor this run, this journal is a
    /// copy that another copy has overtaken: [`StoreError::StaleCopy`].
    pub runs: Vec<Uuid>,
    /// Host and process id, for messages.
    pub owner: String,
    /// The last frame of each lane when the journal was opened. Includes every lane that the journal ever had, since
    /// the START frames list them all. Stored with the takeover and compared with the cursors.
    pub tails: Vec<(LaneId, LaneTail)>,
}

/// The right to flush a writer's lanes.
#[derive(Clone, Debug)]
pub struct Lease {
    /// The writer.
    pub writer: Uuid,
    /// The epoch of this lease.
    pub epoch: i64,
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
    /// [`Batch::digest`] of that frame; empty before the first.
    pub digest: Vec<u8>,
    /// Rows inserted since the journal was created.
    pub rows: u64,
    /// Dead-lettered records.
    pub dead_lettered: u64,
    /// Records that the journal no longer had (damaged, or past its retention). Each range was logged when it was
    /// found.
    pub lost: u64,
    /// Records of the lane before this row started: another writer's (see [`LogStore::fork`]), or stored under the
    /// `lane_id` that the lane had before it was reset.
    pub inherited: u64,
}

impl LaneRow {
    /// Number of records accounted for: the `lane_records` of the frame at the cursor.
    #[must_use]
    pub fn accounted(&self) -> u64 {
        self.inherited + self.rows + self.dead_lettered + self.lost
    }
}

/// Where this copy of a journal forks from another copy that acquired the lease: every frame above this point exists
/// only in this copy.
///
/// The database records every takeover with the journal's tails at that moment. The first takeover by an unknown run
/// after the last one by a run of this journal was made by the copy that inherited this journal's frames. That copy
/// flushes whatever was in its journal then, and everything that this journal's runs had flushed until then is stored.
///
/// `exact` means that the unknown run directly followed a run of this journal, so that its tail is the point where the
/// two journals diverged. Otherwise the other copy had run before without reaching the database. Its tail can then lie
/// above the point of divergence, and this journal's frames up to it would be treated as inherited.
/// It also assumes that the other copy's journal still exists, since that copy must flush the frames between its cursor
/// and `up_to_seq`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForkPoint {
    /// The writer under which this copy's own frames are stored: the UUID of its first run that the database does not
    /// know. It is stable across retries, and no other copy has it.
    pub writer: Uuid,
    /// The last frame of each lane that the other copy has. Lanes that are not listed belong to this copy entirely.
    pub up_to_seq: Vec<(LaneId, u64)>,
    /// Whether the sequence numbers are exact.
    pub exact: bool,
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

/// A store's failure, classified by what must happen next.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Retry later: connection lost, server restarting, read-only, disk full, lock, timeout.
    #[error("{0}")]
    Transient(String),
    /// The schema, a permission or the data model is wrong: the lane stops until an operator fixes it, and retries
    /// slowly.
    #[error("{0}")]
    Systemic(String),
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
         copy, or the START frame of that run is damaged. Run `logweir journal check`. If it is a copy, stop the other one and \
         save what only this one has with `logweir journal drain --adopt --dir DIR`; if the frame is damaged, do not use \
         --adopt: that run's records would be stored twice"
    )]
    StaleCopy {
        /// The writer.
        writer: Uuid,
        /// The epoch that the database has.
        epoch: i64,
        /// The current owner.
        owner: String,
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

/// A database that stores records permanently.
#[async_trait]
pub trait LogStore: Send + Sync {
    /// Returns the product's name (`PostgreSQL`, `TimescaleDB`, `SQLite`), for messages.
    fn name(&self) -> String;

    /// Brings the schema up to date, under a lock.
    async fn prepare(&self) -> Result<(), StoreError>;

    /// Acquires the writer's lease and fences earlier owners. Idempotent for the same run. Resets every lane whose
    /// cursor is above its tail in the journal.
    async fn acquire_lease(&self, claim: &Claim) -> Result<Lease, StoreError>;

    /// For a stale copy (`claim` is the rejected one), returns where it forks from the other copy and the writer to
    /// store the rest under. Returns `None` if this journal is not a stale copy.
    async fn fork_point(&self, claim: &Claim) -> Result<Option<ForkPoint>, StoreError>;

    /// Acquires the lease of `claim.writer` (the [`ForkPoint::writer`]) and creates its lanes, each starting where
    /// `starts` specifies. Existing lanes keep their cursor, so that an interrupted fork resumes.
    async fn fork(&self, claim: &Claim, starts: &[LaneStart]) -> Result<Lease, StoreError>;

    /// Opens the lane's own long-lived connection, and creates its row if it is new. Returns the connection and the
    /// row.
    async fn open_lane(&self, lease: &Lease, lane: LaneId) -> Result<(Box<dyn LaneWriter>, LaneRow), StoreError>;

    /// Creates upcoming partitions and removes expired data. One process at a time calls it, every few minutes.
    async fn maintain(&self, now_us: i64) -> Result<(), StoreError>;

    /// Returns all lanes of `writer`, for `status` and `verify`.
    async fn lanes(&self, writer: Uuid) -> Result<Vec<LaneRow>, StoreError>;

    /// Counts the stored rows with a lane's ids, for `verify`.
    async fn count_stored(&self, row: &LaneRow) -> Result<StoredCount, StoreError>;

    /// Returns up to `limit` dead letters, newest first.
    async fn dead_letters(&self, limit: u32) -> Result<Vec<DeadLetter>, StoreError>;

    /// Replays a dead letter: inserts its (possibly corrected) record and removes the letter, in one transaction.
    async fn replay_dead_letter(&self, letter: &DeadLetter) -> Result<(), StoreError>;

    /// Removes dead letters older than `before_us` (microseconds since 1970) and returns their number.
    async fn purge_dead_letters(&self, before_us: i64) -> Result<u64, StoreError>;
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

/// A connection that flushes one lane, one transaction at a time.
#[async_trait]
pub trait LaneWriter: Send {
    /// Commits `batch` with its cursor and counters, exactly once. Finds rows that the database rejects and
    /// dead-letters them.
    ///
    /// After an error the outcome is unknown (a COMMIT may have been cut off). Flushing the same batch again resolves
    /// it.
    async fn flush(&mut self, batch: &Batch) -> Result<Flushed, StoreError>;

    /// Returns whether the connection is open as far as is known locally, without a round trip.
    fn is_open(&self) -> bool {
        true
    }
}

/// A record that the database rejected.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct DeadLetter {
    /// The id of the row that would have been inserted.
    pub id: i64,
    /// The writer.
    pub writer: Uuid,
    /// The lane.
    pub lane: LaneId,
    /// The frame.
    pub seq: u64,
    /// The record's index in the frame, from 0.
    pub row: u32,
    /// SQLSTATE.
    pub sqlstate: String,
    /// The server's error message.
    pub reason: String,
    /// The record as one JSON object (ts, severity, service, host, message, attributes as text).
    pub raw: String,
    /// Time of the rejection, in microseconds since 1970.
    pub at_us: i64,
}

/// Keeps the class of a driver error inside `error`; anything else is a schema that this version does not understand.
fn migration_failure<E: std::error::Error + 'static>(
    error: &refinery::Error,
    classify: impl Fn(&str, &E) -> StoreError,
) -> StoreError {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<E>() {
            return classify("migrating the schema", error);
        }
        cause = error.source();
    }
    StoreError::Systemic(format!("migrating the schema: {error}; the database may have been used by a newer version"))
}

/// Logs and counts the lanes that acquiring the lease has reset.
fn log_resets(claim: &Claim, resets: &[LaneStart]) {
    for start in resets {
        tracing::error!(
            writer = %claim.writer,
            lane = start.lane,
            tail_seq = start.seq,
            "the journal is older than the database (a restored volume snapshot, or a disk that lost confirmed \
             writes): the lane is reset to the journal's last frame; records that only the newer journal had are lost"
        );
        metrics::counter!("logweir_lane_resets_total").increment(1);
    }
}

/// Records a flush's metrics; the same for every store.
fn measure(lane: LaneId, started: tokio::time::Instant, result: &Result<Flushed, StoreError>) {
    metrics::histogram!("logweir_store_flush_seconds").record(started.elapsed().as_secs_f64());
    match result {
        Ok(flushed) => {
            metrics::counter!("logweir_store_transactions_total").increment(1);
            metrics::counter!("logweir_store_rows_total", "lane" => lane.to_string()).increment(flushed.rows);
        }
        Err(error) => metrics::counter!("logweir_store_errors_total", "class" => error.class()).increment(1),
    }
}

impl StoreError {
    /// Returns the value of the metrics' `class` label.
    #[must_use]
    pub fn class(&self) -> &'static str {
        match self {
            Self::Transient(_) => "transient",
            Self::Systemic(_) => "systemic",
            Self::Fenced { .. } => "fenced",
            Self::StaleCopy { .. } => "stale_copy",
            Self::LeaseLost { .. } => "lease_lost",
            Self::CursorMoved(_) => "cursor_moved",
            Self::SequenceReused { .. } => "sequence_reused",
        }
    }
}

/// Internals exposed to the benchmarks.
#[doc(hidden)]
pub mod bench {
    use bytes::Bytes;

    use super::{postgres, rows, volume};
    use crate::batch::Batch;

    /// Returns the rows of `batch` in COPY format, in the chunks that are written to the socket.
    pub fn copy_rows(batch: &Batch) -> impl Iterator<Item = Bytes> {
        postgres::copy::chunks(rows::rows(batch, 1))
    }

    /// Returns the number of volume counters that the rows of `batch` increment.
    #[must_use]
    pub fn count_volume(batch: &Batch) -> usize {
        let mut volume = volume::Counter::default();
        rows::rows(batch, 1).for_each(|row| volume.add(&row));
        volume.finish().len()
    }
}
