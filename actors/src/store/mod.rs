//! The log store: rows, cursor and volume counters move in one transaction.
//!
//! Identity follows the volume: the *writer* is the journal's uuid. At start a process takes the writer
//! over (epoch + 1), which fences every older owner. Each flush is a compare-and-set on the lane's row,
//! guarded by epoch and cursor. `inherited + rows + dead + lost` of a lane's row equals the `lane_records` of the
//! frame at its cursor: checked before each commit.
//!
//! A journal may be older than the database (a restored snapshot of its volume, a disk that lied at power loss): a
//! lane's cursor is then above its tail, and frames to come would pass for stored ones. The take-over begins such
//! a lane anew, at the tail and under a new `lane_id`.
//!
//! A record's `id` is `lane_id << 44 | ordinal`, where the ordinal counts the lane's records from 1: dense, unique,
//! and the proof that nothing is missing or doubled.

pub mod read;
pub mod claim;
pub mod cursor;
pub mod fault_class;
mod dead_letter;
mod rows;
mod time;
pub(crate) mod volume;
pub mod postgres;
pub mod sqlite;
pub mod blackhole;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use logweir_engine::journal::{LaneId, LaneTail};
use uuid::Uuid;

use crate::config::{Database, DatabaseUrl};
use crate::message::Batch;
use crate::query_throttle::QueryThrottle;

pub(crate) use self::time::{parse as time_of, text as time_text};

pub use self::dead_letter::DeadLetterRecord;

/// An opened store: what the pipeline needs as [`LogStore`], and what queries need as it is.
#[derive(Clone)]
pub enum Opened {
    /// `PostgreSQL` or `TimescaleDB`.
    Postgres(Arc<postgres::PostgresStore>),
    /// `SQLite`.
    Sqlite(Arc<sqlite::SqliteStore>),
    /// Nothing is kept.
    Blackhole(Arc<blackhole::BlackholeStore>),
}

impl Opened {
    /// The store as the pipeline sees it.
    #[must_use]
    pub fn store(&self) -> Arc<dyn LogStore> {
        match self {
            Self::Postgres(store) => store.clone(),
            Self::Sqlite(store) => store.clone(),
            Self::Blackhole(store) => store.clone(),
        }
    }

    /// The store as queries see it, which step back as `pace` says; none where nothing is kept.
    #[must_use]
    pub fn reader(&self, timeout: Duration, throttle: QueryThrottle) -> Option<Arc<dyn read::LogReader>> {
        match self {
            Self::Postgres(store) => Some(Arc::new(store.log_reader(timeout, throttle))),
            Self::Sqlite(store) => Some(Arc::new(store.log_reader(timeout, throttle))),
            Self::Blackhole(_) => None,
        }
    }
}

/// The id of the record that is a lane's `ordinal`-th.
#[must_use]
pub fn id_of(lane_id: i64, ordinal: i64) -> i64 {
    lane_id << cursor::ORDINAL_BITS | ordinal
}

/// Opens the store that `config.url` names. Connects to nothing yet (`SQLite` makes its file).
///
/// # Errors
/// [`StoreError::Systemic`]: the URL, the CA file or the path is wrong.
pub fn open(config: &Database) -> Result<Opened, StoreError> {
    Ok(match &config.url {
        DatabaseUrl::Postgres(url) => Opened::Postgres(Arc::new(postgres::PostgresStore::new(url, config)?)),
        DatabaseUrl::Sqlite(path) => Opened::Sqlite(Arc::new(sqlite::SqliteStore::open(path, config)?)),
        DatabaseUrl::Blackhole => Opened::Blackhole(Arc::default()),
    })
}

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
    /// The newest frame of each lane in the journal at its opening. Every lane that the journal ever had is here: its
    /// START frames carry them all. ResultCache beside the take-over, and compared with the cursors.
    pub tails: Vec<(LaneId, LaneTail)>,
}

/// What a take-over gave.
#[derive(Clone, Debug)]
pub struct Lease {
    /// The writer.
    pub writer: Uuid,
    /// The epoch that is ours.
    pub epoch: i64,
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
    /// Records that the journal no longer had (damaged, or not kept long enough), each range named when it was found.
    pub lost: u64,
    /// Records of the lane before this row began: they are another writer's (see [`LogStore::adopt`]), or stored
    /// under the `lane_id` that the lane had before it was begun anew.
    pub inherited: u64,
}

impl LaneRow {
    /// Records that are settled: the `lane_records` of the frame at the cursor.
    #[must_use]
    pub fn settled(&self) -> u64 {
        self.inherited + self.rows + self.dead + self.lost
    }
}

/// What another copy of a journal already had when it took the writer over: everything above is only here.
///
/// The database knows every take-over with the journal's tails at that moment. The first take-over by a
/// stranger after the last one by a run of ours was made by the copy that inherited our frames; whatever
/// stood in its journal then is its own to flush, and what our runs had flushed until then is stored.
///
/// `exact` says that the stranger's run followed directly on one of our runs, so that its tail is the point
/// at which the two journals parted. Otherwise the stranger ran before without reaching the database; its
/// tail may then lie above that point, and frames of ours up to it would be taken for inherited.
/// It also takes for granted that the other copy's journal lives: frames between its cursor and
/// `up_to_seq` are its to flush.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inheritance {
    /// The identity to adopt this copy's own frames under: the uuid of its first run that the database does
    /// not know. It is the same at each repetition, and no other copy has it.
    pub writer: Uuid,
    /// Up to which frame of each lane the other copy has it; lanes that are missing here are wholly ours.
    pub up_to_seq: Vec<(LaneId, u64)>,
    /// Whether the numbers are exact.
    pub exact: bool,
}

/// Where an adopted lane begins, or one that is begun anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaneStart {
    /// The lane.
    pub lane: LaneId,
    /// The last frame that is not ours to flush.
    pub seq: u64,
    /// `lane_records` of that frame.
    pub records: u64,
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
        "this journal ({writer}) does not know the run that took it over last: {owner}, in epoch {epoch}. Either it is a \
             copy that another copy has overtaken: stop one of the two, then save what only this one has with `logweir \
             journal drain --adopt --dir DIR`. Or damage has taken the START frame of that run (`logweir journal check` \
             names it) and there is no other copy: then do not adopt, what that run has stored would be stored twice"
    )]
    StaleCopy {
        /// The writer.
        writer: Uuid,
        /// The epoch that the database has.
        epoch: i64,
        /// Who has it.
        owner: String,
    },
    /// The database does not know our take-over (or the lane was begun anew since): it was put back to an earlier time.
    /// Take over again, then flush from its cursor what the journal still has.
    #[error("the database does not know epoch {mine} of the journal {writer}: it was put back to an earlier time")]
    LeaseLost {
        /// The writer.
        writer: Uuid,
        /// Our epoch.
        mine: i64,
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

    /// Takes the writer over and fences older owners. Idempotent for the same run. A lane whose cursor is above its tail
    /// in the journal begins anew.
    async fn take_over(&self, claim: &Claim) -> Result<Lease, StoreError>;

    /// For a stale copy (`claim` is the one that was refused): what the other copy has, and the identity to
    /// adopt the rest under. `None` when this journal is no stale copy.
    async fn inheritance(&self, claim: &Claim) -> Result<Option<Inheritance>, StoreError>;

    /// Takes over `claim.writer` (the [`Inheritance::writer`]) and makes those of its lanes that are new, each
    /// beginning where `starts` says. Lanes that exist keep their cursor, so that a cut adoption goes on where it was.
    async fn adopt(&self, claim: &Claim, starts: &[LaneStart]) -> Result<Lease, StoreError>;

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

    /// Whether the connection is still there, as far as it has heard, without asking.
    fn is_open(&self) -> bool {
        true
    }
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

/// The driver's error inside keeps its class; anything else is a schema that this version does not understand.
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
    StoreError::Systemic(format!("migrating the schema: {error}; was the database used by a newer version?"))
}

/// Says which lanes a take-over has begun anew.
fn report_anew(claim: &Claim, anew: &[LaneStart]) {
    for start in anew {
        tracing::error!(
            writer = %claim.writer,
            lane = start.lane,
            tail_seq = start.seq,
            "the journal is older than the database (a restored snapshot, or a disk that lost what it had confirmed): \
             the lane begins anew after the journal's last frame; records that only the newer journal had are gone"
        );
        metrics::counter!("logweir_lane_resets_total").increment(1);
    }
}

/// One flush's metrics, the same for every store.
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
    /// For the label of a counter.
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

/// What the benches measure of the insides.
#[doc(hidden)]
pub mod bench {
    use bytes::Bytes;

    use super::{postgres, rows, volume};
    use crate::message::Batch;

    /// The rows of `batch` as COPY takes them, in the pieces that go to the socket one after another.
    pub fn copy_rows(batch: &Batch) -> impl Iterator<Item = Bytes> {
        postgres::copy::pieces(rows::rows(batch, 1))
    }

    /// How many counters the rows of `batch` move.
    #[must_use]
    pub fn count_volume(batch: &Batch) -> usize {
        let mut volume = volume::Counter::default();
        rows::rows(batch, 1).for_each(|row| volume.add(&row));
        volume.finish().len()
    }
}
