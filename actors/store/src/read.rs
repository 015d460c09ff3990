//! The read side of the log store.
//!
//! - A reader has its own connections: reads never wait for flushes, nor flushes for reads.
//! - Dropping a read cancels it in the database too.
//! - Rows are returned with the lanes' cursors of the same snapshot: records above them in the cache are not among the
//!   rows.
//! - A result is empty only if the tables are there and have no such record.

use async_trait::async_trait;
use uuid::Uuid;

use crate::error::StoreError;
use logweir_query::hits::{By, Steps};
use logweir_query::page::{Direction, Found, Position, Range};
use logweir_query::{Filter, facets};

/// An ordered read of records.
#[derive(Clone, Debug)]
pub struct Scan {
    /// The time range.
    pub range: Range,
    /// The filter.
    pub filter: Filter,
    /// The order.
    pub direction: Direction,
    /// Continue after this position.
    pub after: Option<Position>,
    /// Maximum number of records.
    pub limit: usize,
    /// The read ends with the record that exceeds this many bytes in memory.
    pub bytes_max: usize,
}

impl Scan {
    /// Returns the part of the range after `after`, so that the planner can prune partitions.
    pub fn range_left(&self) -> Range {
        match (self.direction, self.after) {
            (Direction::Backward, Some(after)) => {
                Range { end_us: self.range.end_us.min(after.ts_us.saturating_add(1)), ..self.range }
            }
            (Direction::Forward, Some(after)) => Range { start_us: self.range.start_us.max(after.ts_us), ..self.range },
            (_, None) => self.range,
        }
    }
}

/// How far a lane is committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaneCursor {
    /// The journal's UUID.
    pub writer: Uuid,
    /// The run that holds its lease.
    pub run: Uuid,
    /// The lane.
    pub lane: u16,
    /// The upper bits of its records' ids.
    pub lane_id: i64,
    /// The last committed frame.
    pub last_seq: u64,
    /// Number of its records that are accounted for: a record with a higher ordinal is not among the rows. A batch can end
    /// inside of a frame, so the frame alone does not decide.
    pub records: u64,
}

/// A value and the cursors of the same snapshot.
#[derive(Clone, Debug)]
pub struct Snapshot<T> {
    /// The result of the read.
    pub value: T,
    /// The lanes' cursors.
    pub lanes: Vec<LaneCursor>,
}

/// Why a read failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// It exceeded the query timeout, in milliseconds.
    #[error("the query exceeded the timeout of {0} ms: use a shorter time range or a more selective filter")]
    Timeout(u64),
    /// It was stopped so that flushes could catch up.
    #[error(
        "the query was stopped because the database is behind the intake, which has priority: use a shorter time \
         range, or retry when the database has caught up"
    )]
    Preempted,
    /// The database is unavailable: it cannot be reached, or accepts no connection or query now.
    #[error("{0}")]
    Unavailable(String),
    /// The database responds, but its tables are not (or not yet) those of logweir, or may not be read.
    #[error("the database is not prepared for queries: {0}")]
    Unprepared(String),
    /// The database cannot evaluate this query: another one must be sent.
    #[error("{0}")]
    Unanswerable(String),
    /// A permanent failure.
    #[error("{0}")]
    Failed(String),
}

/// The records an aggregation covers: the newest matching ones, up to a limit.
#[derive(Clone, Debug)]
pub struct Sample {
    /// The time range.
    pub range: Range,
    /// The filter.
    pub filter: Filter,
    /// Maximum number of records.
    pub records_max: usize,
}

/// One count of a histogram: the step's start, severity, service (empty unless grouped by service) and number of
/// records.
pub type Count = (i64, u8, String, u64);

/// Totals of a range's minute counters. They change whenever a record is added to the range or removed from it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Volume {
    /// Records in its minutes.
    pub records: u64,
    /// Counters of its minutes.
    pub counters: u64,
}

/// Reads stored records.
///
/// # Errors
/// Every method can fail with any [`ReadError`]. Dropping its future cancels the read in the database.
#[async_trait]
pub trait LogReader: Send + Sync {
    /// Returns the records of `scan`.
    async fn records(&self, scan: &Scan) -> Result<Snapshot<Vec<Found>>, ReadError>;

    /// Counts per step from the records themselves.
    async fn count(&self, filter: &Filter, steps: Steps, by: By) -> Result<Snapshot<Vec<Count>>, ReadError>;

    /// Counts per step from the minute counters; `filter` [is counted](Filter::is_counted), `steps`
    /// [are minutes](Steps::are_minutes).
    async fn volume(&self, filter: &Filter, steps: Steps, by: By) -> Result<Snapshot<Vec<Count>>, ReadError>;

    /// Returns the totals of the minute counters in `range`.
    async fn total(&self, range: Range) -> Result<Snapshot<Volume>, ReadError>;

    /// Returns the services with records in the minutes of `range`, from the counters.
    async fn services(&self, range: Range) -> Result<Snapshot<Vec<facets::NameCount>>, ReadError>;

    /// Counts the values of fields in `sample`. Also returns the number of records read.
    async fn facets(&self, sample: &Sample, into: facets::Facets)
    -> Result<Snapshot<(facets::Facets, u64)>, ReadError>;

    /// Counts the attribute names in `sample`. Also returns the number of records read.
    async fn names(&self, sample: &Sample) -> Result<Snapshot<(facets::Names, u64)>, ReadError>;
}

impl ReadError {
    /// Returns the error for a read that exceeded its time limit.
    #[cfg(any(feature = "postgres", feature = "sqlite"))]
    pub(crate) fn too_slow(timeout: std::time::Duration, is_behind: bool) -> Self {
        match is_behind {
            true => Self::Preempted,
            false => Self::Timeout(u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX)),
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
