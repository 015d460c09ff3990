//! Reads from SQLite: rows are read in the order of the index on `ts`, and the filter is evaluated in Rust for each.
//!
//! - A read has its own connection from a small pool, on a blocking thread.
//! - SQLite runs in this process, so translating the filter to SQL would gain nothing.
//! - A snapshot keeps SQLite from starting the write-ahead log from the beginning again. So a long read renews its snapshot
//!   between two rows, and pauses without one. It goes on behind the row at which it was, and leaves out what was
//!   stored since its first snapshot, of which it reports the cursors.
//! - Dropping a read, or its timeout, interrupts it.

use std::cell::{Cell, RefCell};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use logweir_record::record::{Record, Severity};
use rusqlite::types::ValueRef;
use rusqlite::{Connection, Error, ErrorCode, OpenFlags, Row, ffi, params};

use super::connection::failed;
use crate::error::StoreError;
use crate::lane::{ORDINAL_BITS, id_of};
use crate::read::{Count, LaneCursor, LogReader, ReadError, Sample, Scan, Snapshot, Volume};
use crate::throttle::{Abandoned, QueryThrottle, ThreadReading, waiter};
use logweir_query::facets::{Facets, NameCount, Names};
use logweir_query::filter::SeverityRange;
use logweir_query::hits::{By, Hits, Steps};
use logweir_query::page::{Direction, Found, Position, Range};
use logweir_query::{Filter, facets};
use logweir_record::timestamp::{self, MAX_US, MINUTE_US};

/// Size of a connection's page cache, in bytes.
pub const CACHE_BYTES: usize = 8 << 20;

/// Age at which a read renews its snapshot, and the number of rows between two looks at it. A long message counts as
/// several rows.
const SNAPSHOT_AGE_MAX: Duration = Duration::from_millis(500);
const ROWS_BETWEEN_LOOKS: usize = 64;
const ROW_BYTES: usize = 256;

/// Reads one file.
pub struct SqliteReader {
    pool: Arc<ConnectionPool>,
    timeout: Duration,
    throttle: QueryThrottle,
}

/// Idle connections. Not `deadpool-sqlite`: it opens them for writing, runs a statement on another thread at each
/// checkout, and needs a rusqlite (0.40) that cannot be linked next to this one (0.41).
struct ConnectionPool {
    path: PathBuf,
    busy_timeout: Duration,
    idle: Mutex<Vec<Connection>>,
}

impl SqliteReader {
    pub(super) fn new(path: PathBuf, busy_timeout: Duration, timeout: Duration, throttle: QueryThrottle) -> Self {
        Self { pool: Arc::new(ConnectionPool { path, busy_timeout, idle: Mutex::default() }), timeout, throttle }
    }

    /// Runs `work` on its own connection.
    async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Reading<'_>) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<Snapshot<T>, ReadError> {
        // Dropped with the future, so that canceling the query stops the work.
        let (waiter, abandoned) = waiter();
        let (pool, throttle) = (Arc::clone(&self.pool), self.throttle.clone());
        let task = tokio::task::spawn_blocking(move || {
            let mut connection = pool.get().map_err(ReadError::from)?;
            let done = read_on(&mut connection, abandoned, throttle, work);
            if done.is_ok() {
                pool.put_back(connection);
            }
            done.map_err(|error| match &error {
                Error::SqliteFailure(_, Some(what)) if what.starts_with("no such ") => {
                    ReadError::Unprepared(what.clone())
                }
                // If the read was dropped, this result is discarded.
                _ if error.sqlite_error_code() == Some(ErrorCode::OperationInterrupted) => ReadError::Preempted,
                _ => failed("reading")(error).into(),
            })
        });
        let joined = tokio::time::timeout(self.timeout, task).await;
        drop(waiter);
        match joined {
            Err(_) => Err(ReadError::too_slow(self.timeout, self.throttle.is_behind())),
            Ok(Err(error)) => Err(ReadError::Failed(format!("the SQLite task failed: {error}"))),
            Ok(Ok(done)) => done,
        }
    }
}

impl ConnectionPool {
    fn get(&self) -> Result<Connection, StoreError> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        idle.map_or_else(|| self.open().map_err(failed("opening the file for reading")), Ok)
    }

    fn open(&self) -> rusqlite::Result<Connection> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(&self.path, flags)?;
        connection.busy_timeout(self.busy_timeout)?;
        connection.execute_batch(&format!("PRAGMA cache_size = -{}", CACHE_BYTES >> 10))?;
        Ok(connection)
    }

    fn put_back(&self, connection: Connection) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
    }
}

/// A read in progress.
struct Reading<'c> {
    connection: &'c Connection,
    abandoned: Abandoned,
    throttle: QueryThrottle,
    turn: RefCell<ThreadReading>,
    /// The beginning of the snapshot.
    since: Cell<Instant>,
    /// What the first snapshot has; later ones have more.
    first: Contents,
}

fn read_on<T>(
    connection: &mut Connection,
    abandoned: Abandoned,
    throttle: QueryThrottle,
    work: impl FnOnce(&Reading<'_>) -> rusqlite::Result<T>,
) -> rusqlite::Result<Snapshot<T>> {
    let mut turn = ThreadReading::default();
    if !throttle.may_continue(&mut turn, &abandoned) {
        return Err(interrupted());
    }
    let dropped = abandoned.clone();
    // Called every 10,000 instructions of SQLite's virtual machine: well under a millisecond.
    connection.progress_handler(10_000, Some(move || dropped.is_true()))?;
    let since = Cell::new(Instant::now());
    // The snapshot begins with the first statement that reads.
    connection.execute_batch("BEGIN")?;
    let (lanes, first) = lanes(connection)?;
    let reading = Reading { connection: &*connection, abandoned, throttle, turn: RefCell::new(turn), since, first };
    let value = work(&reading)?;
    connection.execute_batch("COMMIT")?;
    connection.progress_handler(0, None::<fn() -> bool>)?;
    Ok(Snapshot { value, lanes })
}

/// As if SQLite had been interrupted.
fn interrupted() -> Error {
    Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_INTERRUPT), None)
}

/// Which records a snapshot has: the last id of each lane, sorted.
#[derive(Default)]
struct Contents(Vec<i64>);

impl Contents {
    fn has(&self, id: i64) -> bool {
        let lane_id = id >> ORDINAL_BITS;
        match self.0.binary_search_by_key(&lane_id, |last| last >> ORDINAL_BITS) {
            Ok(at) => id <= self.0[at],
            // A lane that was reset: its number is lower than its successor's.
            Err(at) => at < self.0.len(),
        }
    }
}

fn lanes(connection: &Connection) -> rusqlite::Result<(Vec<LaneCursor>, Contents)> {
    let mut statement = connection.prepare_cached(
        "SELECT l.writer_id, w.run_id, l.lane, l.lane_id, l.last_seq, l.inherited + l.rows + l.dead + l.lost \
         FROM logweir_lane l JOIN logweir_writer w USING (writer_id) ORDER BY l.lane_id",
    )?;
    let lane = |row: &Row<'_>| {
        let (lane_id, accounted) = (row.get(3)?, row.get::<_, i64>(5)?);
        let cursor = LaneCursor {
            writer: row.get(0)?,
            run: row.get(1)?,
            lane: row.get(2)?,
            lane_id,
            last_seq: row.get::<_, i64>(4)?.cast_unsigned(),
            records: accounted.cast_unsigned(),
        };
        Ok((cursor, id_of(lane_id, accounted)))
    };
    let (lanes, last_ids) = statement.query_map([], lane)?.collect::<rusqlite::Result<(Vec<_>, Vec<_>)>>()?;
    Ok((lanes, Contents(last_ids)))
}

impl Reading<'_> {
    /// Passes each matching record to `visit` until it returns false.
    fn scan(
        &self,
        range: Range,
        filter: &Filter,
        direction: Direction,
        after: Option<Position>,
        mut visit: impl FnMut(i64, &Record<'_>) -> bool,
    ) -> rusqlite::Result<()> {
        let order = match direction {
            Direction::Backward => "DESC",
            Direction::Forward => "ASC",
        };
        // The index on ts has the ids as well: a scan starts at a row, not at the first one of its time.
        let sql = format!(
            "SELECT id, ts, severity, service, host, message, attributes FROM logs \
             WHERE (ts, id) > (?1, ?2) AND (ts, id) < (?3, ?4) ORDER BY ts {order}, id {order}"
        );
        let severities = severities(filter);
        let (from, to) = bounds(range);
        let (mut from, mut to) = ((from, i64::MIN), (to, i64::MIN));
        let mut after = after.map(|after| (timestamp::text(after.ts_us), after.id));
        let mut is_first = true;
        loop {
            match direction {
                Direction::Backward => to = after.map_or(to, |after| after),
                Direction::Forward => from = after.map_or(from, |after| after),
            }
            let at = {
                let mut statement = self.connection.prepare_cached(&sql)?;
                let mut rows = statement.query(params![from.0, from.1, to.0, to.1])?;
                let mut until_look = ROWS_BETWEEN_LOOKS;
                loop {
                    let Some(row) = rows.next()? else { return Ok(()) };
                    // Before the other columns are read: most rows may end here.
                    let is_severe = (severities.min..=severities.max).contains(&row.get(2)?);
                    if is_severe && (is_first || self.first.has(row.get(0)?)) {
                        let (id, record) = record(row)?;
                        until_look = until_look.saturating_sub(record.message.len() / ROW_BYTES);
                        if filter.matches(&record) && !visit(id, &record) {
                            return Ok(());
                        }
                    }
                    until_look = until_look.saturating_sub(1);
                    if until_look == 0 {
                        until_look = ROWS_BETWEEN_LOOKS;
                        if self.is_due() {
                            break (text(row, 1)?.to_owned(), row.get(0)?);
                        }
                    }
                }
            };
            self.renew()?;
            (after, is_first) = (Some(at), false);
        }
    }

    /// Whether the snapshot must end.
    fn is_due(&self) -> bool {
        self.since.get().elapsed() > SNAPSHOT_AGE_MAX
            || self.throttle.is_due(&self.turn.borrow())
            || self.abandoned.is_true()
    }

    /// Ends the snapshot and, when this read may continue, begins another one.
    fn renew(&self) -> rusqlite::Result<()> {
        self.connection.execute_batch("COMMIT")?;
        if !self.throttle.may_continue(&mut self.turn.borrow_mut(), &self.abandoned) {
            return Err(interrupted());
        }
        self.since.set(Instant::now());
        self.connection.execute_batch("BEGIN")
    }
}

/// Returns the range of severities that can match a filter.
fn severities(filter: &Filter) -> SeverityRange {
    match filter {
        Filter::Severity(range) => *range,
        Filter::And(filters) => filters
            .iter()
            .map(severities)
            .fold(SeverityRange::ALL, |a, b| SeverityRange { min: a.min.max(b.min), max: a.max.min(b.max) }),
        _ => SeverityRange::ALL,
    }
}

/// Returns a range as text. A range up to the end of time includes the last instant.
fn bounds(range: Range) -> (String, String) {
    let end = if range.end_us > MAX_US { "~".to_owned() } else { timestamp::text(range.end_us) };
    (timestamp::text(range.start_us), end)
}

fn record<'r>(row: &'r Row<'_>) -> rusqlite::Result<(i64, Record<'r>)> {
    let record = Record {
        ts_us: timestamp::parse(text(row, 1)?).unwrap_or_default(),
        severity: Severity::from_number(row.get(2)?).unwrap_or_default(),
        service: text(row, 3)?,
        host: text(row, 4)?,
        message: text(row, 5)?,
        attributes: match row.get_ref(6)? {
            ValueRef::Null => "",
            _ => text(row, 6)?,
        },
    };
    Ok((row.get(0)?, record))
}

fn text<'r>(row: &'r Row<'_>, column: usize) -> rusqlite::Result<&'r str> {
    row.get_ref(column)?
        .as_str()
        .map_err(|error| Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, Box::new(error)))
}

#[async_trait]
impl LogReader for SqliteReader {
    async fn records(&self, scan: &Scan) -> Result<Snapshot<Vec<Found>>, ReadError> {
        let scan = scan.clone();
        self.read(move |reading| {
            let (mut found, mut bytes) = (Vec::new(), 0);
            if scan.limit == 0 {
                return Ok(found);
            }
            reading.scan(scan.range_left(), &scan.filter, scan.direction, scan.after, |id, record| {
                found.push(Found::of(id, record));
                bytes += found.last().map_or(0, Found::bytes);
                found.len() < scan.limit && bytes < scan.bytes_max
            })?;
            Ok(found)
        })
        .await
    }

    async fn count(&self, filter: &Filter, steps: Steps, by: By) -> Result<Snapshot<Vec<Count>>, ReadError> {
        let filter = filter.clone();
        self.read(move |reading| {
            let mut hits = Hits::new(steps, by);
            reading.scan(steps.range, &filter, Direction::Forward, None, |_, record| {
                hits.add(record);
                true
            })?;
            Ok(hits.counts())
        })
        .await
    }

    async fn volume(&self, filter: &Filter, steps: Steps, by: By) -> Result<Snapshot<Vec<Count>>, ReadError> {
        let filter = filter.clone();
        self.read(move |reading| {
            let mut hits = Hits::new(steps, by);
            reading.volume(steps.range, |minute_us, service, severity, records| {
                if filter.matches(&counted(service, severity)) {
                    hits.add_many(minute_us, severity, service, records);
                }
            })?;
            Ok(hits.counts())
        })
        .await
    }

    async fn total(&self, range: Range) -> Result<Snapshot<Volume>, ReadError> {
        self.read(move |reading| {
            let (from, to) = minutes(range);
            let mut statement = reading.connection.prepare_cached(
                "SELECT coalesce(sum(records), 0), count(*) FROM log_volume WHERE minute >= ?1 AND minute < ?2",
            )?;
            statement.query_row(params![from, to], |row| {
                let [records, counters] = [row.get::<_, i64>(0)?, row.get(1)?].map(i64::cast_unsigned);
                Ok(Volume { records, counters })
            })
        })
        .await
    }

    async fn services(&self, range: Range) -> Result<Snapshot<Vec<NameCount>>, ReadError> {
        self.read(move |reading| {
            let (from, to) = minutes(range);
            let mut statement = reading.connection.prepare_cached(
                "SELECT service, sum(records) FROM log_volume WHERE minute >= ?1 AND minute < ?2 \
                 GROUP BY service ORDER BY 2 DESC, 1 LIMIT ?3",
            )?;
            let service =
                |row: &Row<'_>| Ok(NameCount { name: row.get(0)?, count: row.get::<_, i64>(1)?.cast_unsigned() });
            statement.query_map(params![from, to, facets::SERVICES_MAX], service)?.collect()
        })
        .await
    }

    async fn facets(&self, sample: &Sample, mut into: Facets) -> Result<Snapshot<(Facets, u64)>, ReadError> {
        let sample = sample.clone();
        self.read(move |reading| {
            let records = reading.sample(&sample, |record| into.add(record))?;
            Ok((into, records))
        })
        .await
    }

    async fn names(&self, sample: &Sample) -> Result<Snapshot<(Names, u64)>, ReadError> {
        let sample = sample.clone();
        self.read(move |reading| {
            let mut names = Names::default();
            let records = reading.sample(&sample, |record| names.add(record))?;
            Ok((names, records))
        })
        .await
    }
}

impl Reading<'_> {
    fn sample(&self, sample: &Sample, mut visit: impl FnMut(&Record<'_>)) -> rusqlite::Result<u64> {
        let mut records = 0;
        self.scan(sample.range, &sample.filter, Direction::Backward, None, |_, record| {
            visit(record);
            records += 1;
            records < sample.records_max as u64
        })?;
        Ok(records)
    }

    fn volume(&self, range: Range, mut visit: impl FnMut(i64, &str, u8, u64)) -> rusqlite::Result<()> {
        let mut statement = self.connection.prepare_cached(
            "SELECT minute, service, severity, sum(records) FROM log_volume WHERE minute >= ?1 AND minute < ?2 \
             GROUP BY minute, service, severity",
        )?;
        let (from, to) = minutes(range);
        let mut rows = statement.query([from, to])?;
        while let Some(row) = rows.next()? {
            let minute_us = timestamp::parse(text(row, 0)?).unwrap_or_default();
            visit(minute_us, text(row, 1)?, row.get(2)?, row.get::<_, i64>(3)?.cast_unsigned());
        }
        Ok(())
    }
}

/// Returns the minutes that overlap `range`.
fn minutes(range: Range) -> (String, String) {
    bounds(Range { start_us: timestamp::clamp(range.start_us).div_euclid(MINUTE_US) * MINUTE_US, ..range })
}

/// Returns a record with only the fields that the counters have.
fn counted(service: &str, severity: u8) -> Record<'_> {
    let severity = Severity::from_number(severity).unwrap_or_default();
    Record { ts_us: 0, severity, service, host: "", message: "", attributes: "" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_snapshot_is_cut_to_what_the_first_one_had() {
        // Lane 3 was reset: it had the number 2.
        let first = Contents(vec![id_of(1, 10), id_of(3, 0), id_of(5, 7)]);
        for (id, has) in [
            (id_of(1, 1), true),
            (id_of(1, 10), true),
            (id_of(1, 11), false),
            (id_of(2, 99), true),
            (id_of(3, 1), false),
            (id_of(4, 1), true),
            (id_of(5, 7), true),
            (id_of(5, 8), false),
            (id_of(6, 1), false),
        ] {
            assert_eq!(first.has(id), has, "lane {} record {}", id >> ORDINAL_BITS, id & ((1 << ORDINAL_BITS) - 1));
        }
        assert!(!Contents::default().has(id_of(1, 1)));
    }
}
