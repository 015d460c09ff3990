//! Queries: how many may run, what they read, and how the answers are put together.
//!
//! A query cannot hurt intake: it has connections of its own, so many run at once and so many wait; who comes then is told
//! to come again. Each has a range of time, a limit of records, of bytes and of time.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use logweir_engine::record::Record;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout};

use crate::cache::HotCache;
use crate::config;
use crate::query::Filter;
use crate::query::facets::{Facet, Facets, NameCount};
use crate::query::hits::{By, Hits, Series, Steps};
use crate::query::page::{Direction, Found, Position, Range};
use crate::query::{Field, filter};
use crate::recent::{self, Recent};
use crate::result_cache::{self, Question, ResultCache};
use crate::store::read::{Count, LaneCursor, LogReader, ReadError, Sample, Scan, Snapshot, Volume};

/// Records that facets look at.
pub const FACET_RECORDS_MAX: usize = 50_000;

/// Records that the list of fields looks at.
pub const NAME_RECORDS_MAX: usize = 20_000;

/// Bytes of a stream's page.
pub const PORTION_BYTES_MAX: usize = 1 << 20;

/// How far around a record its context is looked for, in microseconds: further only where nearer there is not enough.
const CONTEXT_US: [i64; 3] = [600_000_000, 3_600_000_000, 86_400_000_000];

/// Runs queries. A clone is a handle on the same.
#[derive(Clone)]
pub struct Searcher(Arc<Parts>);

struct Parts {
    reader: Option<Arc<dyn LogReader>>,
    recent: Recent,
    kept: ResultCache,
    settings: config::Query,
    running: Semaphore,
    waiting: AtomicUsize,
    streams: Arc<Semaphore>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum SearchError {
    /// Too many queries run and wait.
    #[error("{0} queries are running and {1} wait: try again in a moment")]
    Busy(usize, usize),
    /// Too many answers are streamed.
    #[error("{0} answers are streamed already: try again when one has ended")]
    Streams(usize),
    /// What is asked for does not go together.
    #[error("{0}")]
    Wrong(String),
    /// Nothing is kept that could be read.
    #[error("nothing can be read: the store is a blackhole")]
    NothingKept,
    /// The store has no answer.
    #[error(transparent)]
    Read(#[from] ReadError),
}

/// A page that is asked for.
#[derive(Clone, Debug)]
pub struct PageRequest {
    /// Which records.
    pub filter: Filter,
    /// When.
    pub range: Range,
    /// Which way.
    pub direction: Direction,
    /// Behind which place.
    pub after: Option<Position>,
    /// At most so many.
    pub limit: usize,
}

/// A page.
#[derive(Clone, Debug, Default)]
pub struct Page {
    /// The records, in the order of the request's direction.
    pub records: Vec<Found>,
    /// Whether there may be more this way.
    pub more: bool,
    /// Where they come from.
    pub source: Source,
}

/// Where the records of an answer come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, utoipa::ToSchema)]
pub struct Source {
    /// From the database.
    pub database: usize,
    /// Only from the cache: the database does not have them yet.
    pub cache: usize,
    /// The database was away: this is what the cache has.
    pub partial: bool,
}

/// A histogram.
#[derive(Clone, Debug)]
pub struct Histogram {
    /// Its bars.
    pub steps: Steps,
    /// Their heights.
    pub series: Vec<Series>,
    /// Whether the minute counters were enough.
    pub from_counters: bool,
}

/// Counted over the newest records.
#[derive(Clone, Debug)]
pub struct Sampled<T> {
    /// The counts.
    pub value: T,
    /// The number of records looked at, where there were more.
    pub sampled: Option<u64>,
}

/// What was logged around a record by the same service on the same host, from the oldest to the newest.
#[derive(Clone, Debug)]
pub struct Context {
    /// Before it.
    pub before: Vec<Found>,
    /// It.
    pub record: Found,
    /// After it.
    pub after: Vec<Found>,
}

impl Searcher {
    /// Reads from `reader` (none where nothing is kept), and from `cache` what is not there yet.
    #[must_use]
    pub fn new(reader: Option<Arc<dyn LogReader>>, cache: Arc<dyn HotCache>, settings: config::Query) -> Self {
        let running = Semaphore::new(settings.running_max);
        let streams = Arc::new(Semaphore::new(settings.streams_max));
        Self(Arc::new(Parts {
            reader,
            recent: Recent::new(cache),
            kept: ResultCache::default(),
            settings,
            running,
            waiting: AtomicUsize::new(0),
            streams,
        }))
    }

    /// One page of records.
    ///
    /// # Errors
    /// See [`SearchError`].
    pub async fn page(&self, request: &PageRequest) -> Result<Page, SearchError> {
        let (_running, reader) = self.admit("query").await?;
        Ok(self.read_page(reader, request, self.0.settings.page_bytes_max).await?)
    }

    /// One page of a stream: smaller, since one waits for each client.
    ///
    /// # Errors
    /// See [`SearchError`].
    pub async fn portion(&self, request: &PageRequest) -> Result<Page, SearchError> {
        let (_running, reader) = self.admit("stream").await?;
        let bytes_max = self.0.settings.page_bytes_max.min(PORTION_BYTES_MAX);
        Ok(self.read_page(reader, request, bytes_max).await?)
    }

    /// The right to stream, for as long as it is held.
    ///
    /// # Errors
    /// Too many are streamed.
    pub fn stream(&self) -> Result<OwnedSemaphorePermit, SearchError> {
        Arc::clone(&self.0.streams).try_acquire_owned().map_err(|_| {
            metrics::counter!("logweir_queries_rejected_total", "reason" => "streams").increment(1);
            SearchError::Streams(self.0.settings.streams_max)
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
            Ok(Snapshot { value, lanes }) => (value, self.0.recent.unsettled(lanes).await),
            Err(ReadError::Unavailable(error)) => {
                return self.cached_page(&scan).await.ok_or(ReadError::Unavailable(error));
            }
            Err(error) => return Err(error),
        };
        Ok(merged(&scan, stored, recent))
    }

    /// What the cache has of a page, while the database is away.
    async fn cached_page(&self, scan: &Scan) -> Option<Page> {
        let recent = self.0.recent.all().await?;
        metrics::counter!("logweir_queries_partial_total").increment(1);
        let page = merged(scan, Vec::new(), recent);
        Some(Page { source: Source { partial: true, ..page.source }, ..page })
    }

    /// Gives the records that the database does not have yet to `see`.
    async fn unsettled(&self, lanes: Vec<LaneCursor>, filter: &Filter, range: Range, mut see: impl FnMut(&Record<'_>)) {
        for found in self.0.recent.unsettled(lanes).await {
            let record = found.record();
            if range.holds(record.ts_us) && filter.matches(&record) {
                see(&record);
            }
        }
    }

    /// Counts per step of time.
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
        let steps = Steps::over(range, step_us).map_err(SearchError::Wrong)?;
        let (_running, reader) = self.admit("hits").await?;
        let from_counters = filter.is_counted() && steps.are_minutes();
        let counts = match from_counters {
            true => {
                let Snapshot { value, lanes } = Snapshot::or_empty(reader.volume(filter, steps, by).await, Vec::new)?;
                Snapshot { value: Arc::new(value), lanes }
            }
            false => self.counted(reader, filter, steps, by).await?,
        };
        let mut hits = Hits::new(steps, by);
        for (ts_us, severity, service, records) in &*counts.value {
            hits.add_many(*ts_us, *severity, service, *records);
        }
        self.unsettled(counts.lanes, filter, steps.range, |record| hits.add(record)).await;
        Ok(Histogram { steps, series: hits.finish(), from_counters })
    }

    /// Counts record by record, unless that was done before and nothing has come into the range since.
    async fn counted(
        &self,
        reader: &dyn LogReader,
        filter: &Filter,
        steps: Steps,
        by: By,
    ) -> Result<Snapshot<Arc<Vec<Count>>>, ReadError> {
        let question = Question { filter: format!("{filter:?}"), steps, by };
        let total = Snapshot::or_empty(reader.total(steps.range).await, Volume::default)?;
        if let Some(value) = self.0.kept.get(&question, total.value) {
            metrics::counter!("logweir_query_result_cache_hits_total").increment(1);
            return Ok(Snapshot { value, lanes: total.lanes });
        }
        let Snapshot { value, lanes } = Snapshot::or_empty(reader.count(filter, steps, by).await, Vec::new)?;
        let value = Arc::new(value);
        self.0.kept.put(question, total.value, Arc::clone(&value));
        Ok(Snapshot { value, lanes })
    }

    /// The most frequent values of the fields with these names.
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
        let counted = reader.facets(&sample, Facets::of(fields.iter().cloned())).await;
        let Snapshot { value: (mut facets, records), lanes } = Snapshot::or_empty(counted, || (Facets::of(fields), 0))?;
        self.unsettled(lanes, filter, range, |record| facets.add(record)).await;
        Ok(Sampled { value: facets.finish(limit), sampled: sampled(records, FACET_RECORDS_MAX) })
    }

    /// The names of the attributes.
    ///
    /// # Errors
    /// See [`SearchError`].
    pub async fn fields(&self, filter: &Filter, range: Range) -> Result<Sampled<Vec<NameCount>>, SearchError> {
        let (_running, reader) = self.admit("fields").await?;
        let sample = Sample { range, filter: filter.clone(), records_max: NAME_RECORDS_MAX };
        let counted = reader.names(&sample).await;
        let Snapshot { value: (mut names, records), lanes } = Snapshot::or_empty(counted, Default::default)?;
        self.unsettled(lanes, filter, range, |record| names.add(record)).await;
        Ok(Sampled { value: names.finish(), sampled: sampled(records, NAME_RECORDS_MAX) })
    }

    /// The services, and how many records they have in the minutes of `range`.
    ///
    /// # Errors
    /// See [`SearchError`].
    pub async fn services(&self, range: Range) -> Result<Vec<NameCount>, SearchError> {
        let (_running, reader) = self.admit("services").await?;
        let Snapshot { value: mut services, lanes } = Snapshot::or_empty(reader.services(range).await, Vec::new)?;
        self.unsettled(lanes, &Filter::All, range, |record| {
            match services.iter_mut().find(|service| service.name == record.service) {
                Some(service) => service.count += 1,
                None => services.push(NameCount { name: record.service.to_owned(), count: 1 }),
            }
        })
        .await;
        Ok(services)
    }

    /// What the same service on the same host logged around the record at `position`; none where there is no such record.
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
        let mut older = self.beside(reader, &record, Direction::Backward, before).await?;
        older.reverse();
        let newer = self.beside(reader, &record, Direction::Forward, after).await?;
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

    /// The neighbours of `record` one way, the nearest first.
    async fn beside(
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

    /// Waits for the turn of one more query.
    async fn admit(&self, kind: &'static str) -> Result<(Running<'_>, &dyn LogReader), SearchError> {
        let Parts { reader, settings, running, waiting, .. } = &*self.0;
        let reader = reader.as_deref().ok_or(SearchError::NothingKept)?;
        let busy = || {
            metrics::counter!("logweir_queries_rejected_total", "reason" => "busy").increment(1);
            SearchError::Busy(settings.running_max, settings.waiting_max)
        };
        let permit = match running.try_acquire() {
            Ok(permit) => permit,
            Err(_) => {
                let _place = Place::take(waiting, settings.waiting_max).ok_or_else(busy)?;
                let patience = Duration::from_millis(settings.timeout_ms);
                match timeout(patience, running.acquire()).await {
                    Ok(Ok(permit)) => permit,
                    _ => return Err(busy()),
                }
            }
        };
        Ok((Running { _permit: permit, kind, since: Instant::now() }, reader))
    }
}

/// The page that `stored` rows and `recent` records, which are not among them, make together.
fn merged(scan: &Scan, stored: Vec<Found>, recent: Vec<Found>) -> Page {
    let bytes: usize = stored.iter().map(Found::bytes).sum();
    let mut more = stored.len() >= scan.limit || bytes >= scan.bytes_max;
    // What lies behind the last row belongs to a later page, if there is one.
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

/// A query at work; measured when it ends, however it ends.
struct Running<'s> {
    _permit: SemaphorePermit<'s>,
    kind: &'static str,
    since: Instant,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        metrics::histogram!("logweir_query_duration_seconds", "kind" => self.kind)
            .record(self.since.elapsed().as_secs_f64());
    }
}

/// A place among those who wait.
struct Place<'s>(&'s AtomicUsize);

impl<'s> Place<'s> {
    fn take(waiting: &'s AtomicUsize, max: usize) -> Option<Self> {
        let taken = waiting.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| (n < max).then_some(n + 1));
        taken.ok().map(|_| Self(waiting))
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The most bytes that queries and their answers take: rows, their copy as text, and what a connection still sends; records
/// of the cache while they are taken apart; a page on its way to each stream's client; histograms that are kept.
#[must_use]
pub fn bytes_max(settings: &config::Query) -> usize {
    settings.running_max * (3 * settings.page_bytes_max + recent::BYTES_MAX)
        + settings.streams_max * 3 * PORTION_BYTES_MAX
        + result_cache::BYTES_MAX
}
