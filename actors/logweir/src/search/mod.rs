//! Queries: admission, reading, and merging of results.
//!
//! Queries cannot slow down intake: they have their own database connections, a limited number of which runs or waits;
//! further ones are rejected with a request to retry. Each query has a time range and limits on records, bytes and
//! time.

mod recent;
mod result_cache;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use logweir_record::record::Record;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout};

use self::recent::Recent;
use self::result_cache::{HistogramKey, ResultCache};
use crate::cache::HotCache;
use crate::config;
use logweir_query::Filter;
use logweir_query::facets::{Facet, Facets, NameCount};
use logweir_query::hits::{By, Hits, Series, Steps};
use logweir_query::page::{Direction, Found, Position, Range};
use logweir_query::{Field, filter};
use logweir_store::read::{Count, LaneCursor, LogReader, ReadError, Sample, Scan, Snapshot, Volume};

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
}

/// Sources of the records of a response.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
#[non_exhaustive]
pub struct Source {
    /// Number of records from the database.
    pub database: usize,
    /// Number of records that only the cache has: the database has not committed them yet.
    pub cache: usize,
    /// The database was unavailable: only records in the cache are included.
    pub partial: bool,
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
}

/// A result that was counted over the latest records.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Sampled<T> {
    /// The counts.
    pub value: T,
    /// Number of records counted, if there were more.
    pub sampled: Option<u64>,
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
}

impl Searcher {
    /// Queries `reader` (`None` if the store cannot be queried), and `cache` for records that are not committed yet.
    #[must_use]
    pub fn new(reader: Option<Arc<dyn LogReader>>, cache: Arc<dyn HotCache>, settings: config::Query) -> Self {
        let running = Semaphore::new(settings.running_max);
        let streams = Arc::new(Semaphore::new(settings.streams_max));
        Self(Arc::new(Parts {
            reader,
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
        let (_running, reader) = self.admit("query").await?;
        Ok(self.read_page(reader, request, self.0.settings.page_bytes_max).await?)
    }

    /// Reads one page of a stream: smaller, because one is held for each client.
    ///
    /// # Errors
    /// See [`SearchError`].
    pub async fn stream_page(&self, request: &PageRequest) -> Result<Page, SearchError> {
        let (_running, reader) = self.admit("stream").await?;
        let bytes_max = self.0.settings.page_bytes_max.min(STREAM_PAGE_BYTES_MAX);
        Ok(self.read_page(reader, request, bytes_max).await?)
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
        reader: &dyn LogReader,
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
        let (stored, recent) = match Snapshot::or_empty(reader.records(&scan).await, Vec::new) {
            Ok(Snapshot { value, lanes }) => (value, self.0.recent.uncommitted(lanes).await),
            Err(ReadError::Unavailable(error)) => {
                return self.cached_page(&scan).await.ok_or(ReadError::Unavailable(error));
            }
            Err(error) => return Err(error),
        };
        Ok(merged(&scan, stored, recent))
    }

    /// The part of a page that the cache has, while the database is unavailable.
    async fn cached_page(&self, scan: &Scan) -> Option<Page> {
        let recent = self.0.recent.all().await?;
        metrics::counter!("logweir_queries_partial_total").increment(1);
        let page = merged(scan, Vec::new(), recent);
        Some(Page { source: Source { partial: true, ..page.source }, ..page })
    }

    /// Passes the records that the database has not committed yet to `visit`.
    async fn uncommitted(
        &self,
        lanes: Vec<LaneCursor>,
        filter: &Filter,
        range: Range,
        mut visit: impl FnMut(&Record<'_>),
    ) {
        for found in self.0.recent.uncommitted(lanes).await {
            let record = found.record();
            if range.holds(record.ts_us) && filter.matches(&record) {
                visit(&record);
            }
        }
    }

    /// Counts records per time step.
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
        let (_running, reader) = self.admit("hits").await?;
        let from_counters = filter.is_counted() && steps.are_minutes();
        let counts = match from_counters {
            true => {
                let Snapshot { value, lanes } = Snapshot::or_empty(reader.volume(filter, steps, by).await, Vec::new)?;
                Snapshot { value: Arc::new(value), lanes }
            }
            false => self.count_records(reader, filter, steps, by).await?,
        };
        let mut hits = Hits::new(steps, by);
        for (ts_us, severity, service, records) in &*counts.value {
            hits.add_many(*ts_us, *severity, service, *records);
        }
        self.uncommitted(counts.lanes, filter, steps.range, |record| hits.add(record)).await;
        Ok(Histogram { steps, series: hits.finish(), from_counters })
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
        let total = Snapshot::or_empty(reader.total(steps.range).await, Volume::default)?;
        if let Some(value) = self.0.result_cache.get(&key, total.value) {
            metrics::counter!("logweir_query_result_cache_hits_total").increment(1);
            return Ok(Snapshot { value, lanes: total.lanes });
        }
        let Snapshot { value, lanes } = Snapshot::or_empty(reader.count(filter, steps, by).await, Vec::new)?;
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
        let (_running, reader) = self.admit("facets").await?;
        let sample = Sample { range, filter: filter.clone(), records_max: FACET_RECORDS_MAX };
        let result = reader.facets(&sample, Facets::of(fields.iter().cloned())).await;
        let Snapshot { value: (mut facets, records), lanes } = Snapshot::or_empty(result, || (Facets::of(fields), 0))?;
        self.uncommitted(lanes, filter, range, |record| facets.add(record)).await;
        Ok(Sampled { value: facets.finish(limit), sampled: sampled(records, FACET_RECORDS_MAX) })
    }

    /// Returns the attribute names.
    ///
    /// # Errors
    /// See [`SearchError`].
    pub async fn fields(&self, filter: &Filter, range: Range) -> Result<Sampled<Vec<NameCount>>, SearchError> {
        let (_running, reader) = self.admit("fields").await?;
        let sample = Sample { range, filter: filter.clone(), records_max: NAME_RECORDS_MAX };
        let result = reader.names(&sample).await;
        let Snapshot { value: (mut names, records), lanes } = Snapshot::or_empty(result, Default::default)?;
        self.uncommitted(lanes, filter, range, |record| names.add(record)).await;
        Ok(Sampled { value: names.finish(), sampled: sampled(records, NAME_RECORDS_MAX) })
    }

    /// Returns the services and their numbers of records in the minutes of `range`.
    ///
    /// # Errors
    /// See [`SearchError`].
    pub async fn services(&self, range: Range) -> Result<Vec<NameCount>, SearchError> {
        let (_running, reader) = self.admit("services").await?;
        let Snapshot { value: mut services, lanes } = Snapshot::or_empty(reader.services(range).await, Vec::new)?;
        self.uncommitted(lanes, &Filter::All, range, |record| {
            match services.iter_mut().find(|service| service.name == record.service) {
                Some(service) => service.count += 1,
                None => services.push(NameCount { name: record.service.to_owned(), count: 1 }),
            }
        })
        .await;
        Ok(services)
    }

    /// Returns what the same service logged on the same host around the record at `position`; `None` if there is no
    /// such record.
    ///
    /// # Errors
    /// See [`SearchError`].
    pub async fn context(
        &self,
        position: Position,
        before: usize,
        after: usize,
    ) -> Result<Option<Context>, SearchError> {
        let (_running, reader) = self.admit("context").await?;
        let Some(record) = self.record_at(reader, position).await? else { return Ok(None) };
        let mut older = self.neighbors(reader, &record, Direction::Backward, before).await?;
        older.reverse();
        let newer = self.neighbors(reader, &record, Direction::Forward, after).await?;
        Ok(Some(Context { before: older, record, after: newer }))
    }

    async fn record_at(&self, reader: &dyn LogReader, position: Position) -> Result<Option<Found>, ReadError> {
        let Position { ts_us, id } = position;
        let Some(before) = id.checked_sub(1) else { return Ok(None) };
        let request = PageRequest {
            filter: Filter::All,
            range: Range { start_us: ts_us, end_us: ts_us.saturating_add(1) },
            direction: Direction::Forward,
            after: Some(Position { ts_us, id: before }),
            limit: 1,
        };
        let page = self.read_page(reader, &request, self.0.settings.page_bytes_max).await?;
        Ok(page.records.into_iter().find(|found| found.position() == position))
    }

    /// Returns the neighbors of `record` in one direction, nearest first.
    async fn neighbors(
        &self,
        reader: &dyn LogReader,
        record: &Found,
        direction: Direction,
        limit: usize,
    ) -> Result<Vec<Found>, ReadError> {
        let same = |field, value: &str| filter::Filter::equals(field, value);
        let filter = same(Field::Service, &record.service).and(same(Field::Host, &record.host));
        let mut records = Vec::new();
        for reach_us in CONTEXT_US {
            let range = match direction {
                Direction::Backward => {
                    Range { start_us: record.ts_us.saturating_sub(reach_us), end_us: record.ts_us.saturating_add(1) }
                }
                Direction::Forward => Range { start_us: record.ts_us, end_us: record.ts_us.saturating_add(reach_us) },
            };
            let after = Some(record.position());
            let request = PageRequest { filter: filter.clone(), range, direction, after, limit };
            let page = self.read_page(reader, &request, self.0.settings.page_bytes_max).await?;
            records = page.records;
            if page.more {
                break;
            }
        }
        Ok(records)
    }

    /// Waits until one more query may run.
    async fn admit(&self, kind: &'static str) -> Result<(RunningQuery<'_>, &dyn LogReader), SearchError> {
        let Parts { reader, settings, running, waiting, .. } = &*self.0;
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
        Ok((RunningQuery { _permit: permit, kind, since: Instant::now() }, reader))
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
    let source = Source { database, cache: records.len() - database, partial: false };
    Page { records, more, source }
}

fn sampled(records: u64, records_max: usize) -> Option<u64> {
    (records >= records_max as u64).then_some(records)
}

/// A running query; its duration is recorded when it ends, however it ends.
struct RunningQuery<'s> {
    _permit: SemaphorePermit<'s>,
    kind: &'static str,
    since: Instant,
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
