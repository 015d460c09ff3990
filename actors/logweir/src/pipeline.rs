//! Wiring of all stages. They are spawned downstream first and drained upstream first.

use std::sync::Arc;
use std::time::Duration;

use logweir_engine::drain::DrainWatch;
use logweir_engine::fault::armed;
use logweir_engine::journal::{Journal, LaneId};
use logweir_engine::mailbox::{Bound, Mailbox};
use logweir_engine::topology::{StageSpec, Supervision, Topology};

use crate::alerts::{self, AlertRegistry};
use crate::batcher::{Batcher, Downstream, LaneLink};
use crate::cache::writer::CacheWriter;
use crate::cache::{HotCache, Origin};
use crate::config::{Config, Http};
use crate::db_flusher::{DbFlusher, FlushLimits, Session, lanes_needed};
use crate::horizon::Horizon;
use crate::message::Delivery;
use crate::parser::Parser;
use crate::producer::Producer;
#[cfg(feature = "server")]
use crate::producer::{files, syslog};
use crate::progress::Progress;
use crate::search;
use crate::tail;
use logweir_store::{Batch, DatabaseUrl};

const MIB: usize = 1 << 20;

/// Name of the topology: the label `pipeline` of stage and mailbox metrics.
const PIPELINE: &str = "logweir";
/// A stage that makes no progress in its own code for this long is stalled. Far longer than the largest chunk takes.
const STALL_MS: u64 = 30_000;
/// More restarts of one stage per minute than this drain the process and end it with exit code 70.
const RESTARTS_MAX: usize = 10;
/// Tick interval of batcher and flusher.
const TICK_MS: u64 = 10;

/// Everything that the stages share.
pub struct Parts {
    /// Configuration.
    pub config: Arc<Config>,
    /// Open journal.
    pub journal: Journal,
    /// Identity of the journal and of this run.
    pub origin: Origin,
    /// Lease on the log store.
    pub session: Arc<Session>,
    /// Hot cache.
    pub cache: Arc<dyn HotCache>,
    /// State of the alerts.
    pub alerts: AlertRegistry,
    /// Accounting of records.
    pub progress: Progress,
    /// Shutdown phase.
    pub drain: DrainWatch,
}

/// Supervision limits of logweir's stages.
#[must_use]
pub fn supervision() -> Supervision {
    let stall_ms = if armed("stage.short_stall") { 5_000 } else { STALL_MS };
    Supervision { stall_ms, restarts_max: RESTARTS_MAX, restart_window_ms: 60_000 }
}

/// Spawns every stage; returns the topology and the producers' mailboxes, one per lane.
#[must_use]
pub fn build(parts: &Parts) -> (Topology, Vec<Mailbox<Delivery>>) {
    let mut topology = Topology::new(PIPELINE, supervision(), parts.drain.clone());
    alerts::spawn(&mut topology, &parts.config, &parts.journal, &parts.alerts);
    let cache_writer = spawn_cache_writer(&mut topology, parts);
    let mut producers = Vec::new();
    for lane in 0..lanes_needed(parts.config.lanes(), &parts.journal) {
        let downstream = spawn_flusher(&mut topology, parts, lane, &cache_writer);
        // A lane beyond the configured number only has a backlog to flush.
        if lane < parts.config.lanes() {
            producers.push(spawn_intake(&mut topology, parts, lane, downstream));
        }
    }
    (topology, producers)
}

/// Spawns only the flushers: empties a journal without accepting records.
#[must_use]
pub fn build_drain_only(parts: &Parts) -> Topology {
    let mut topology = Topology::new(PIPELINE, supervision(), parts.drain.clone());
    let cache_writer = spawn_cache_writer(&mut topology, parts);
    for lane in 0..lanes_needed(1, &parts.journal) {
        let _ = spawn_flusher(&mut topology, parts, lane, &cache_writer);
    }
    topology
}

/// Upper bound of the process's memory, in bytes, by component.
#[must_use]
pub fn memory_bytes_max(config: &Config, mailboxes: usize, lanes: usize) -> Vec<(&'static str, usize)> {
    let batch = batch_bytes_max(config);
    vec![
        ("mailboxes", mailboxes),
        ("request bodies being read", config.http.inflight_bytes_max),
        // One more than the lanes need: the body parsed for `?debug=1`.
        ("chunks being decompressed and parsed", (lanes * 2 + 1) * (config.http.decompressed_bytes_max + batch)),
        #[cfg(feature = "server")]
        (
            "TLS of the data port",
            config.http.tls().map_or(0, |_| config.http.connections_max * logweir_tls::CONNECTION_BYTES),
        ),
        #[cfg(feature = "server")]
        ("syslog connections and datagrams", syslog::memory_bytes_max(&config.syslog)),
        #[cfg(feature = "server")]
        ("tailed files", files::memory_bytes_max(config)),
        ("open batches", lanes * batch),
        ("batches read back and flushed", lanes * 3 * batch),
        ("journal queue", config.journal.queue_bytes_max + 2 * MIB),
        ("recent records in process", 64 * MIB),
        ("alerts", alerts::memory_bytes_max(&config.alerts)),
        ("live tails", tail::memory_bytes_max(&config.tail)),
        ("queries and their responses", search::bytes_max(&config.query)),
        #[cfg(feature = "sqlite")]
        ("SQLite page caches", sqlite_bytes_max(config)),
        ("program, stacks, connections and allocator", 96 * MIB),
    ]
}

/// Page caches of the writing connection and of the reading ones.
#[cfg(feature = "sqlite")]
fn sqlite_bytes_max(config: &Config) -> usize {
    use logweir_store::sqlite::{CACHE_BYTES, READ_CACHE_BYTES};
    if !matches!(config.database.url, DatabaseUrl::Sqlite(_)) {
        return 0;
    }
    CACHE_BYTES + config.query.running_max * READ_CACHE_BYTES
}

fn batch_bytes_max(config: &Config) -> usize {
    config.batch.bytes_max.max(logweir_record::codec::PAYLOAD_BYTES_MAX)
}

fn spawn_cache_writer(topology: &mut Topology, parts: &Parts) -> Mailbox<Batch> {
    let (cache, journal) = (Arc::clone(&parts.cache), parts.journal.clone());
    let (progress, origin) = (parts.progress.clone(), parts.origin);
    let recent_records_per_s = parts.config.cache.recent_records_per_s;
    let bound = Bound { messages_max: 16, bytes_max: 16 * MIB };
    topology.spawn(spec("cache-writer".to_owned(), "cache", bound, None), move |context| {
        CacheWriter::new(context, journal.clone(), progress.clone(), Arc::clone(&cache), origin, recent_records_per_s)
    })
}

fn spawn_flusher(topology: &mut Topology, parts: &Parts, lane: LaneId, cache_writer: &Mailbox<Batch>) -> Downstream {
    let link = Arc::new(LaneLink::default());
    // One batch waits while another is flushed; what does not fit is read from the journal. A batch may consist of one
    // frame that is larger than batch.bytes_max.
    let bound = Bound { messages_max: 2, bytes_max: 2 * batch_bytes_max(&parts.config) };
    let (session, journal, progress) = (Arc::clone(&parts.session), parts.journal.clone(), parts.progress.clone());
    let flusher_link = Arc::clone(&link);
    let limits = FlushLimits {
        rows_max: parts.config.batch.rows_max,
        bytes_max: parts.config.batch.bytes_max,
        statement_timeout: Duration::from_millis(parts.config.database.statement_timeout_ms),
    };
    let flusher = topology.spawn(spec(format!("db-flusher-{lane}"), "store", bound, Some(TICK_MS)), move |context| {
        DbFlusher::new(
            context,
            lane,
            Arc::clone(&session),
            journal.clone(),
            Arc::clone(&flusher_link),
            progress.clone(),
            limits,
        )
    });
    Downstream { flusher, cache_writer: cache_writer.clone(), link }
}

fn spawn_intake(topology: &mut Topology, parts: &Parts, lane: LaneId, downstream: Downstream) -> Mailbox<Delivery> {
    let arbiter = format!("lanes-{}", usize::from(lane) % threads_for_lanes());
    let (journal, progress, limits) = (parts.journal.clone(), parts.progress.clone(), parts.config.batch);
    let bound = Bound { messages_max: 16, bytes_max: 16 * MIB };
    let batcher = topology.spawn(spec(format!("batcher-{lane}"), &arbiter, bound, Some(TICK_MS)), move |context| {
        Batcher::new(context, lane, journal.clone(), &progress, downstream.clone(), limits)
    });
    let Http { line_bytes_max, decompressed_bytes_max, .. } = parts.config.http;
    let rules = Arc::new(parts.config.parse.clone());
    let database = &parts.config.database;
    let by_minute = matches!(database.url, DatabaseUrl::Sqlite(_));
    let horizon = Horizon { retention_days: database.retention_days, by_minute };
    let bound = Bound { messages_max: 16, bytes_max: 16 * MIB };
    let parser = topology.spawn(spec(format!("parser-{lane}"), &arbiter, bound, None), move |context| {
        Parser::new(context, batcher.clone(), line_bytes_max).with_rules(Arc::clone(&rules)).with_horizon(horizon)
    });
    let bound = Bound { messages_max: 64, bytes_max: 16 * MIB };
    topology.spawn(spec(format!("producer-{lane}"), &arbiter, bound, None), move |context| {
        Producer::new(context, parser.clone(), decompressed_bytes_max)
    })
}

/// Number of threads that parse. One core is left for writing to disk and database; more threads than cores would only
/// compete.
pub(crate) fn threads_for_lanes() -> usize {
    std::thread::available_parallelism().map_or(1, |cores| cores.get().saturating_sub(1).max(1))
}

fn spec(name: String, arbiter: &str, bound: Bound, tick_ms: Option<u64>) -> StageSpec {
    StageSpec { name, arbiter: arbiter.to_owned(), bound, tick_ms }
}
