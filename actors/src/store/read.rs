//! The log store's other side: reading.
//!
//! - A reader has connections of its own: it never waits for a flush, and no flush for it.
//! - Whoever drops a reading ends it in the database too.
//! - With the rows come the lanes' cursors of the same snapshot: what a cache has above them is not among the rows.

use std::time::Duration;

use async_trait::async_trait;
use uuid::Uuid;

use super::StoreError;
use crate::query::hits::{By, Steps};
use crate::query::page::{Direction, Found, Position, Range};
use crate::query::{Filter, facets};
use crate::query_throttle::QueryThrottle;

/// Records to be read, in order.
#[derive(Clone, Debug)]
pub struct Scan {
    /// When they happened.
    pub range: Range,
    /// Which are wanted.
    pub filter: Filter,
    /// The way they are read.
    pub direction: Direction,
    /// Where the ones before end.
    pub after: Option<Position>,
    /// At most so many.
    pub limit: usize,
    /// Reading ends with the record that passes these bytes.
    pub bytes_max: usize,
}

impl Scan {
    /// The part of the range that lies behind `after`: partitions are left out by it.
    pub(crate) fn range_left(&self) -> Range {
        match (self.direction, self.after) {
            (Direction::Backward, Some(after)) => {
                Range { end_us: self.range.end_us.min(after.ts_us.saturating_add(1)), ..self.range }
            }
            (Direction::Forward, Some(after)) => Range { start_us: self.range.start_us.max(after.ts_us), ..self.range },
            (_, None) => self.range,
        }
    }
}

/// How far a lane's records are in the rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaneCursor {
    /// The journal.
    pub writer: Uuid,
    /// The run of it that took it over last.
    pub run: Uuid,
    /// The lane.
    pub lane: u16,
    /// The upper bits of its records' ids.
    pub lane_id: i64,
    /// The last frame that is stored.
    pub last_seq: u64,
}

/// Something, and the cursors that were true when it was.
#[derive(Clone, Debug)]
pub struct Snapshot<T> {
    /// What was read.
    pub value: T,
    /// The lanes.
    pub lanes: Vec<LaneCursor>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// It took longer than a query may.
    #[error("the query took longer than {0} ms; ask for a shorter time or for something rarer")]
    Timeout(u64),
    /// It had to step back for the rows.
    #[error(
        "the database is behind what comes in, which goes first: there is no time for a query that reads so much; \
         ask for a shorter time, or again when it has caught up"
    )]
    MadeRoom,
    /// The database does not answer.
    #[error("{0}")]
    Unavailable(String),
    /// There are no tables yet: the first record makes them.
    #[error("nothing was ever stored here")]
    Unprepared,
    /// It never will.
    #[error("{0}")]
    Failed(String),
}

/// What an aggregation counts over: the newest records that are wanted, at most so many.
#[derive(Clone, Debug)]
pub struct Sample {
    /// When they happened.
    pub range: Range,
    /// Which are wanted.
    pub filter: Filter,
    /// At most so many.
    pub records_max: usize,
}

/// One count of a histogram: the step's beginning, severity, service (empty unless it is asked by service) and records.
pub type Count = (i64, u8, String, u64);

/// What the minute counters say of a range: it changes whenever a record comes into it, or goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Volume {
    /// Records in its minutes.
    pub records: u64,
    /// Counters of its minutes.
    pub counters: u64,
}

/// Where stored records are read.
#[async_trait]
pub trait LogReader: Send + Sync {
    /// The records of `scan`.
    async fn records(&self, scan: &Scan) -> Result<Snapshot<Vec<Found>>, ReadError>;

    /// Counts per step from the records themselves.
    async fn count(&self, filter: &Filter, steps: Steps, by: By) -> Result<Snapshot<Vec<Count>>, ReadError>;

    /// Counts per step from the minute counters; `filter` [is counted](Filter::is_counted), `steps`
    /// [are minutes](Steps::are_minutes).
    async fn volume(&self, filter: &Filter, steps: Steps, by: By) -> Result<Snapshot<Vec<Count>>, ReadError>;

    /// What the counters of the minutes of `range` add up to.
    async fn total(&self, range: Range) -> Result<Snapshot<Volume>, ReadError>;

    /// The services that have records in the minutes of `range`, from the counters.
    async fn services(&self, range: Range) -> Result<Snapshot<Vec<facets::NameCount>>, ReadError>;

    /// Counts the values of fields over `sample`. Returns the number of records looked at.
    async fn facets(&self, sample: &Sample, into: facets::Facets)
    -> Result<Snapshot<(facets::Facets, u64)>, ReadError>;

    /// Counts the names of attributes over `sample`. Returns the number of records looked at.
    async fn names(&self, sample: &Sample) -> Result<Snapshot<(facets::Names, u64)>, ReadError>;
}

impl ReadError {
    /// A reading's time was over.
    pub(crate) fn too_slow(timeout: Duration, throttle: &QueryThrottle) -> Self {
        match throttle.is_behind() {
            true => Self::MadeRoom,
            false => Self::Timeout(u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX)),
        }
    }
}

impl<T> Snapshot<T> {
    /// What `reading` gave, or `empty` where nothing was ever stored.
    pub(crate) fn or_empty(reading: Result<Self, ReadError>, empty: impl FnOnce() -> T) -> Result<Self, ReadError> {
        match reading {
            Err(ReadError::Unprepared) => Ok(Self { value: empty(), lanes: Vec::new() }),
            other => other,
        }
    }
}

impl From<StoreError> for ReadError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Transient(what) => Self::Unavailable(what),
            other => Self::Failed(other.to_string()),
        }
    }
}
