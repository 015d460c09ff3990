//! Queries: admission, reading, and merging of results.
//!
//! Queries cannot slow down intake: they have their own database connections, a limited number of which runs or waits;
//! further ones are rejected with a request to retry. Each query has a time range and limits on records, bytes and
//! time.

pub mod completeness;
pub mod own_lanes;
mod recent;
mod result_cache;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use logweir_engine::clock;
use logweir_record::record::Record;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout};

pub use self::completeness::Completeness;
use self::completeness::{LaneState, Lanes, completeness, elsewhere};
use self::recent::Recent;
use self::result_cache::{HistogramKey, ResultCache};
use crate::cache::HotCache;
use crate::config;
use logweir_query::Filter;
use logweir_query::facets::{Facet, Facets, NameCount};
use logweir_query::hits::{By, Hits, Series, Steps};
use logweir_query::page::{Direction, Found, Position, Range};
use logweir_query::{Field, filter};
use logweir_store::read::{Count, LaneCursor, LogReader, ReadError, Sample, Scan, Snapshot};

/// Maximum number of records that facets are counted over.
pub const FACET_RECORDS_MAX: usize = 50_000;

/// Maximum number of records that field names are counted over.
pub const NAME_RECORDS_MAX: usize = 20_000;

/// Maximum bytes of a page of a stream.
pub const STREAM_PAGE_BYTES_MAX: usize = 1 << 20;

/// Time ranges in which the context of a record is searched, in microseconds: the next one only if the previous one has
/// too few records.
const CONTEXT_US: [i64; 3] = [600_000_000, 3_600_000_000, 86_400_000_000];

/// Runs queries. Clones share the same state.
#[derive(Clone)]
pub struct Searcher(Arc<Parts>);

struct Parts {
    reader: Option<Arc<dyn LogReader>>,
    lanes: Arc<dyn Lanes>,
    recent: Recent,
    result_cache: ResultCache,
    settings: config::Query,
    running: Semaphore,
    waiting: AtomicUsize,
    streams: Arc<Semaphore>,
}

/// Why a query failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SearchError {
    /// Too many queries are running and waiting.
    #[error(
        "too many queries: query.running_max ({0}) are running and query.waiting_max ({1}) are waiting; retry shortly"
    )]
    TooManyQueries(usize, usize),
    /// Too many streams are open.
    #[error("too many streams: query.streams_max ({0}) are open; retry when one has ended")]
    TooManyStreams(usize),
    /// The request is inconsistent.
    #[error("{0}")]
    InvalidRequest(String),
    /// The store cannot be queried: it is `blackhole:`, or a program's own, without a reader.
    #[error("the store cannot be queried: name PostgreSQL or SQLite in database.url, or pass a reader with the store")]
    NotSearchable,
    /// The store failed.
    #[error(transparent)]
    Read(#[from] ReadError),
}

/// A request for a page of records.
#[derive(Clone, Debug)]
pub struct PageRequest {
    /// Filter on records.
    pub filter: Filter,
    /// Time range.
    pub range: Range,
    /// Order.
    pub direction: Direction,
    /// Position to continue after.
    pub after: Option<Position>,
    /// Maximum number of records.
    pub limit: usize,
}

/// A page of records.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Page {
    /// The records, in the requested order.
    pub records: Vec<Found>,
    /// Whether there may be more records in this direction.
    pub more: bool,
    /// Where the records come from.
    pub source: Source,
    /// Whether the database did not answer, so that every record is from the cache.
    pub without_database: bool,
}

/// Sources of the records of a response.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
#[non_exhaustive]
pub struct Source {
    /// Number of records from the database.
    pub database: usize,
    /// Number of records that only the cache has: the database has not committed them yet, or did not answer.
    pub cache: usize,
    /// What is missing.
    #[serde(flatten)]
    pub completeness: Completeness,
}

/// A histogram.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Histogram {
    /// Its bars.
    pub steps: Steps,
    /// Their heights.
    pub series: Vec<Series>,
    /// Whether the per-minute counters were sufficient.
    pub from_counters: bool,
    /// What is missing.
    pub completeness: Completeness,
}

/// A result that was counted over the latest records.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Sampled<T> {
    /// The counts.
    pub value: T,
    /// Number of records counted, if there were more.
    pub sampled: Option<u64>,
    /// What is missing.
    pub completeness: Completeness,
}

/// Records that the same service logged on the same host around a record, oldest first.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Context {
    /// Records before it.
    pub before: Vec<Found>,
    /// The record.
    pub record: Found,
    /// Records after it.
    pub after: Vec<Found>,
    /// What is missing.
    pub completeness: Completeness,
}

/// A read of the store, and what only the cache has.
struct Answered<T> {
    stored: T,
    recent: Vec<Found>,
    completeness: Completeness,
    without_database: bool,
}

impl Searcher {
    /// Queries `reader` (`None` if the store cannot be queried), and `cache` for records that are not committed yet;
    /// compares the result with `lanes`.
    #[must_use]
    pub fn new(
        reader: Option<Arc<dyn LogReader>>,
        cache: Arc<dyn HotCache>,
        lanes: Arc<dyn Lanes>,
        settings: config::Query,
    ) -> Self {
        let running = Semaphore::new(settings.running_max);
        let streams = Arc::new(Semaphore::new(settings.streams_max));
        Self(Arc::new(Parts {
            reader,
            lanes,
            recent: Recent::new(cache),
            result_cache: ResultCache::default(),
            settings,
            running,
            waiting: AtomicUsize::new(0),
            streams,
        }))
    }

    /// Reads one page of records.
    ///
    /// # Errors
    /// See [`SearchError`].
    pub async fn page(&self, request: &PageRequest) -> Result<Page, SearchError> {
        let query = self.admit("query").await?;
        Ok(self.read_page(&query, request, self.0.settings.page_bytes_max).await?)
    }

    /// Reads one page of a stream: smaller, because one is held for each client.
    ///
    /// # Errors
    /// See [`SearchError`].
    pub async fn stream_page(&self, request: &PageRequest) -> Result<Page, SearchError> {
        let query = self.admit("stream").await?;
        let bytes_max = self.0.settings.page_bytes_max.min(STREAM_PAGE_BYTES_MAX);
        Ok(self.read_page(&query, request, bytes_max).await?)
    }

    /// Admits a stream for as long as the permit is held.
    ///
    /// # Errors
    /// Too many streams are open.
    pub fn stream(&self) -> Result<OwnedSemaphorePermit, SearchError> {
        Arc::clone(&self.0.streams).try_acquire_owned().map_err(|_| {
            metrics::counter!("logweir_queries_rejected_total", "reason" => "streams").increment(1);
            SearchError::TooManyStreams(self.0.settings.streams_max)
        })
    }

    async fn read_page(
        &self,
        query: &RunningQuery<'_>,
        request: &PageRequest,
        bytes_max: usize,
    ) -> Result<Page, ReadError> {
        let scan = Scan {
            range: request.range,
            filter: request.filter.clone(),
            direction: request.direction,
            after: request.after,
            limit: request.limit,
            bytes_max,
        };
        let answered = self.or_cached(query, query.reader.records(&scan).await, Vec::new).await?;
        let page = merged(&scan, answered.stored, answered.recent);
        let source = Source { completeness: answered.completeness, ..page.source };
        Ok(Page { source, without_database: answered.without_database, ..page })
    }

    /// Adds what only the cache has to a read. While the database does not answer, that is everything that the cache has,
    /// added to `empty`; if it has nothing, the error remains, because an empty result means that there are no records.
    async fn or_cached<T>(
        &self,
        query: &RunningQuery<'_>,
        result: Result<Snapshot<T>, ReadError>,
        empty: impl FnOnce() -> T,
    ) -> Result<Answered<T>, ReadError> {
        let error = match result {
            Ok(Snapshot { value, lanes }) => {
                let (recent, completeness) = self.uncommitted(query, &lanes).await;
                return Ok(Answered { stored: value, recent, completeness, without_database: false });
            }
            Err(error @ (ReadError::Unavailable(_) | ReadError::Unprepared(_))) => with_problem(error, query),
            Err(error) => return Err(error),
        };
        let Some(recent) = self.0.recent.all(&query.expected).await.filter(|recent| !recent.is_empty()) else {
            return Err(error);
        };
        metrics::counter!("logweir_queries_partial_total").increment(1);
        let completeness = Completeness::partial(format!("only recent records from the cache: {error}"));
        Ok(Answered { stored: empty(), recent, completeness, without_database: true })
    }

    /// Returns the records that the snapshot with these `lanes` does not have, and what is missing even so.
    async fn uncommitted(&self, query: &RunningQuery<'_>, lanes: &[LaneCursor]) -> (Vec<Found>, Completeness) {
        let recent = self.0.recent.uncommitted(lanes, &query.expected).await;
        let completeness = completeness(&*self.0.lanes, &query.expected, lanes, &recent, clock::wall_us());
        if completeness.partial {
            metrics::counter!("logweir_queries_behind_total").increment(1);
        }
        (recent, completeness)
    }

    /// Counts records per time step.
    ///
    /// While the database does not answer, this is an error: the counts of the cache alone would be far too low.
    ///
    /// # Errors
    /// See [`SearchError`].
    pub async fn hits(
        &self,
        filter: &Filter,
        range: Range,
        step_us: Option<i64>,
        by: By,
    ) -> Result<Histogram, SearchError> {
        let steps = Steps::over(range, step_us).map_err(SearchError::InvalidRequest)?;
        let query = self.admit("hits").await?;
        let from_counters = filter.is_counted() && steps.are_minutes();
        let counts = match from_counters {
            true => query
                .reader
                .volume(filter, steps, by)
                .await
                .map(|Snapshot { value, lanes }| Snapshot { value: Arc::new(value), lanes }),
            false => self.count_records(query.reader, filter, steps, by).await,
        };
        let counts = counts.map_err(|error| with_problem(error, &query))?;
        let mut hits = Hits::new(steps, by);
        for (ts_us, severity, service, records) in &*counts.value {
            hits.add_many(*ts_us, *severity, service, *records);
        }
        let (recent, completeness) = self.uncommitted(&query, &counts.lanes).await;
        visit(&recent, filter, steps.range, |record| hits.add(record));
        Ok(Histogram { steps, series: hits.finish(), from_counters, completeness })
    }

    /// Counts record by record, unless a cached result is still valid because its range has not changed.
    async fn count_records(
        &self,
        reader: &dyn LogReader,
        filter: &Filter,
        steps: Steps,
        by: By,
    ) -> Result<Snapshot<Arc<Vec<Count>>>, ReadError> {
        let key = HistogramKey { filter: format!("{filter:?}"), steps, by };
        let total = reader.total(steps.range).await?;
        if let Some(value) = self.0.result_cache.get(&key, total.value) {
            metrics::counter!("logweir_query_result_cache_hits_total").increment(1);
            return Ok(Snapshot { value, lanes: total.lanes });
        }
        let Snapshot { value, lanes } = reader.count(filter, steps, by).await?;
        let value = Arc::new(value);
        self.0.result_cache.put(key, total.value, Arc::clone(&value));
        Ok(Snapshot { value, lanes })
    }

    /// Returns the most frequent values of the fields with these names.
    ///
    /// # Errors
    /// See [`SearchError`].
    pub async fn facets(
        &self,
        filter: &Filter,
        range: Range,
        fields: Vec<String>,
        limit: usize,
    ) -> Result<Sampled<Vec<Facet>>, SearchError> {
        let query = self.admit("facets").await?;
        let sample = Sample { range, filter: filter.clone(), records_max: FACET_RECORDS_MAX };
        let result = query.reader.facets(&sample, Facets::of(fields.iter().cloned())).await;
        let Answered { stored: (mut facets, records), recent, completeness, .. } =
            self.or_cached(&query, result, || (Facets::of(fields), 0)).await?;
        visit(&recent, filter, range, |record| facets.add(record));
        Ok(Sampled { value: facets.finish(limit), sampled: sampled(records, FACET_RECORDS_MAX), completeness })
    }

    /// Returns the attribute names.
    ///
    /// # Errors
    /// See [`SearchError`].
    pub async fn fields(&self, filter: &Filter, range: Range) -> Result<Sampled<Vec<NameCount>>, SearchError> {
        let query = self.admit("fields").await?;
        let sample = Sample { range, filter: filter.clone(), records_max: NAME_RECORDS_MAX };
        let result = query.reader.names(&sample).await;
        let Answered { stored: (mut names, records), recent, completeness, .. } =
            self.or_cached(&query, result, Default::default).await?;
        visit(&recent, filter, range, |record| names.add(record));
        Ok(Sampled { value: names.finish(), sampled: sampled(records, NAME_RECORDS_MAX), completeness })
    }

    /// Returns the services and their numbers of records in the minutes of `range`.
    ///
    /// # Errors
    /// See [`SearchError`].
    pub async fn services(&self, range: Range) -> Result<Sampled<Vec<NameCount>>, SearchError> {
        let query = self.admit("services").await?;
        let result = query.reader.services(range).await;
        let Answered { stored: mut services, recent, completeness, .. } =
            self.or_cached(&query, result, Vec::new).await?;
        visit(&recent, &Filter::All, range, |record| {
            match services.iter_mut().find(|service| service.name == record.service) {
                Some(service) => service.count += 1,
                None => services.push(NameCount { name: record.service.to_owned(), count: 1 }),
            }
        });
        Ok(Sampled { value: services, sampled: None, completeness })
    }

    /// Returns what the same service logged on the same host around the record at `position`; `None` if there is no
    /// such record.
    ///
    /// # Errors
    /// See [`SearchError`]. If the record is not found because the database does not answer, that is the error.
    pub async fn context(
        &self,
        position: Position,
        before: usize,
        after: usize,
    ) -> Result<Option<Context>, SearchError> {
        let query = self.admit("context").await?;
        let (record, mut completeness) = self.record_at(&query, position).await?;
        let Some(record) = record else {
            return match completeness.partial_reason {
                Some(reason) => Err(ReadError::Unavailable(format!("the record was not found: {reason}")).into()),
                None => Ok(None),
            };
        };
        let mut neighbors = async |direction, limit| -> Result<Vec<Found>, ReadError> {
            let (found, one) = self.neighbors(&query, &record, direction, limit).await?;
            completeness = std::mem::take(&mut completeness).and(one);
            Ok(found)
        };
        let mut older = neighbors(Direction::Backward, before).await?;
        older.reverse();
        let newer = neighbors(Direction::Forward, after).await?;
        Ok(Some(Context { before: older, record, after: newer, completeness }))
    }

    async fn record_at(
        &self,
        query: &RunningQuery<'_>,
        position: Position,
    ) -> Result<(Option<Found>, Completeness), ReadError> {
        let Position { ts_us, id } = position;
        let Some(before) = id.checked_sub(1) else { return Ok((None, Completeness::default())) };
        let request = PageRequest {
            filter: Filter::All,
            range: Range { start_us: ts_us, end_us: ts_us.saturating_add(1) },
            direction: Direction::Forward,
            after: Some(Position { ts_us, id: before }),
            limit: 1,
        };
        let page = self.read_page(query, &request, self.0.settings.page_bytes_max).await?;
        let found = page.records.into_iter().find(|found| found.position() == position);
        Ok((found, page.source.completeness))
    }

    /// Returns the neighbors of `record` in one direction, nearest first.
    async fn neighbors(
        &self,
        query: &RunningQuery<'_>,
        record: &Found,
        direction: Direction,
        limit: usize,
    ) -> Result<(Vec<Found>, Completeness), ReadError> {
        let same = |field, value: &str| filter::Filter::equals(field, value);
        let filter = same(Field::Service, &record.service).and(same(Field::Host, &record.host));
        let (mut records, mut completeness) = (Vec::new(), Completeness::default());
        for reach_us in CONTEXT_US {
            let range = match direction {
                Direction::Backward => {
                    Range { start_us: record.ts_us.saturating_sub(reach_us), end_us: record.ts_us.saturating_add(1) }
                }
                Direction::Forward => Range { start_us: record.ts_us, end_us: record.ts_us.saturating_add(reach_us) },
            };
            let after = Some(record.position());
            let request = PageRequest { filter: filter.clone(), range, direction, after, limit };
            let page = self.read_page(query, &request, self.0.settings.page_bytes_max).await?;
            (records, completeness) = (page.records, page.source.completeness);
            if page.more {
                break;
            }
        }
        Ok((records, completeness))
    }

    /// Returns the processors whose records are in another database than the one that is read.
    ///
    /// # Errors
    /// See [`SearchError`].
    pub async fn elsewhere(&self) -> Result<BTreeSet<Arc<str>>, SearchError> {
        let query = self.admit("databases").await?;
        let nothing = Range { start_us: 0, end_us: 0 };
        let lanes = query.reader.total(nothing).await?.lanes;
        Ok(elsewhere(&query.expected, &lanes))
    }

    /// Waits until one more query may run.
    async fn admit(&self, kind: &'static str) -> Result<RunningQuery<'_>, SearchError> {
        let Parts { reader, lanes, settings, running, waiting, .. } = &*self.0;
        let reader = reader.as_deref().ok_or(SearchError::NotSearchable)?;
        let rejection = || {
            metrics::counter!("logweir_queries_rejected_total", "reason" => "busy").increment(1);
            SearchError::TooManyQueries(settings.running_max, settings.waiting_max)
        };
        let permit = match running.try_acquire() {
            Ok(permit) => permit,
            Err(_) => {
                let _slot = QueueSlot::take(waiting, settings.waiting_max).ok_or_else(rejection)?;
                let wait_max = Duration::from_millis(settings.timeout_ms);
                match timeout(wait_max, running.acquire()).await {
                    Ok(Ok(permit)) => permit,
                    _ => return Err(rejection()),
                }
            }
        };
        let since = Instant::now();
        Ok(RunningQuery { _permit: permit, kind, since, reader, expected: lanes.states().await })
    }
}

/// Merges `stored` rows with `recent` records, which are not among them, into a page.
fn merged(scan: &Scan, stored: Vec<Found>, recent: Vec<Found>) -> Page {
    let bytes: usize = stored.iter().map(Found::bytes).sum();
    let mut more = stored.len() >= scan.limit || bytes >= scan.bytes_max;
    // Records beyond the last row belong to a later page, if there is one.
    let last = stored.last().map(Found::position).filter(|_| more);
    let from_database: BTreeSet<i64> = stored.iter().map(|found| found.id).collect();
    let mut records = stored;
    records.extend(recent.into_iter().filter(|found| {
        let position = found.position();
        scan.range.holds(found.ts_us)
            && scan.after.is_none_or(|after| scan.direction.is_behind(position, after))
            && last.is_none_or(|last| scan.direction.is_behind(last, position))
            && scan.filter.matches(&found.record())
    }));
    if records.len() > from_database.len() {
        match scan.direction {
            Direction::Backward => records.sort_by_key(|found| std::cmp::Reverse(found.position())),
            Direction::Forward => records.sort_by_key(Found::position),
        }
        more |= records.len() > scan.limit;
        records.truncate(scan.limit);
    }
    let database = records.iter().filter(|found| from_database.contains(&found.id)).count();
    let source = Source { database, cache: records.len() - database, completeness: Completeness::default() };
    Page { records, more, source, without_database: false }
}

/// Passes the `recent` records of a range that match to `add`.
fn visit(recent: &[Found], filter: &Filter, range: Range, mut add: impl FnMut(&Record<'_>)) {
    for found in recent {
        let record = found.record();
        if range.holds(record.ts_us) && filter.matches(&record) {
            add(&record);
        }
    }
}

/// Adds to the error of a database without tables why a processor does not make them.
fn with_problem(error: ReadError, query: &RunningQuery<'_>) -> ReadError {
    match (error, query.expected.iter().find_map(|lane| lane.problem.as_ref())) {
        (ReadError::Unprepared(what), Some(problem)) => ReadError::Unprepared(format!("{what}; {problem}")),
        (ReadError::Unprepared(what), None) => ReadError::Unprepared(format!(
            "{what}; a processor makes what is missing when it connects, and /api/v1/pipeline says why it cannot"
        )),
        (error, _) => error,
    }
}

fn sampled(records: u64, records_max: usize) -> Option<u64> {
    (records >= records_max as u64).then_some(records)
}

/// A running query; its duration is recorded when it ends, however it ends.
struct RunningQuery<'s> {
    _permit: SemaphorePermit<'s>,
    kind: &'static str,
    since: Instant,
    reader: &'s dyn LogReader,
    /// The lanes before the query read.
    expected: Vec<LaneState>,
}

impl Drop for RunningQuery<'_> {
    fn drop(&mut self) {
        metrics::histogram!("logweir_query_duration_seconds", "kind" => self.kind)
            .record(self.since.elapsed().as_secs_f64());
    }
}

/// A slot in the waiting queue.
struct QueueSlot<'s>(&'s AtomicUsize);

impl<'s> QueueSlot<'s> {
    fn take(waiting: &'s AtomicUsize, max: usize) -> Option<Self> {
        let taken = waiting.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| (n < max).then_some(n + 1));
        taken.ok().map(|_| Self(waiting))
    }
}

impl Drop for QueueSlot<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Maximum number of bytes that queries and their responses use: rows, their copy as text, and what a connection still
/// has to send; cached records while they are parsed; a page in transit to each client of a stream; cached histograms.
#[must_use]
pub fn bytes_max(settings: &config::Query) -> usize {
    settings.running_max * (3 * settings.page_bytes_max + recent::BYTES_MAX)
        + settings.streams_max * 3 * STREAM_PAGE_BYTES_MAX
        + result_cache::BYTES_MAX
}
