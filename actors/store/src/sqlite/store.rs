//! The store: one connection for writing, one for reading, and what each operation does with them.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use logweir_engine::journal::LaneId;
use logweir_record::timestamp;
use rusqlite::{Connection, Error};
use tokio::time::Instant;
use uuid::Uuid;

use super::connection::{CACHE_BYTES, PAGE_BYTES, SharedConnection, blocking, failed};
use super::file::{BUSY_TIMEOUT, DatabaseFile, LOG_BYTES};
use super::flush::SqliteLane;
use super::lane_row::all_lanes;
use super::read::SqliteReader;
use super::{dead_letters, idempotency, lease, retention, schema};
use crate::dead_letter::DeadLetter;
use crate::error::StoreError;
use crate::lane::{LaneRow, LaneStart, ORDINAL_BITS, StoredCount};
use crate::lease::{Claim, ForkPoint, Lease};
use crate::maintenance::MaintenanceStep;
use crate::protocol::key_age::Rounds;
use crate::protocol::raw_record;
use crate::protocol::sample::LastTaken;
use crate::protocol::takeover::fork_point;
use crate::settings::Database;
use crate::store::{LaneWriter, LogStore};
use crate::throttle::QueryThrottle;

/// A store in an SQLite file.
pub struct SqliteStore {
    path: PathBuf,
    write: SharedConnection,
    read: SharedConnection,
    file: Arc<DatabaseFile>,
    retention_days: u32,
    /// The beginning of the previous round of maintenance.
    last_round: Mutex<Option<Instant>>,
    /// The rounds that have seen idempotency keys.
    key_rounds: Mutex<Rounds>,
    last_taken: LastTaken,
}

impl SqliteStore {
    /// Opens the file, creating it and its directory if necessary.
    ///
    /// # Errors
    /// [`StoreError::Systemic`] if the file cannot be opened.
    pub fn open(path: &Path, database: &Database) -> Result<Self, StoreError> {
        let wrong =
            |what: String| StoreError::Systemic(format!("cannot open database.url sqlite:{}: {what}", path.display()));
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir).map_err(|error| wrong(error.to_string()))?;
        }
        let open = |setup: &str| {
            let connection = Connection::open(path)?;
            connection.busy_timeout(BUSY_TIMEOUT)?;
            connection.execute_batch(setup)?;
            connection.set_prepared_statement_cache_capacity(64);
            Ok(connection)
        };
        let failure = |error: Error| wrong(error.to_string());
        let write = open(&format!(
            "PRAGMA page_size = {PAGE_BYTES}; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA \
             foreign_keys = ON; PRAGMA cache_size = -{}; PRAGMA wal_autocheckpoint = {}; PRAGMA journal_size_limit = {}",
            CACHE_BYTES >> 10,
            LOG_BYTES / PAGE_BYTES,
            2 * LOG_BYTES
        ))
        .map_err(failure)?;
        let read = open("PRAGMA query_only = ON").map_err(failure)?;
        let file = Arc::new(DatabaseFile::of(&write).map_err(|error| wrong(error.to_string()))?);
        Ok(Self {
            path: path.to_owned(),
            write: SharedConnection::writing(write, Arc::clone(&file)),
            read: SharedConnection::reading(read),
            file,
            retention_days: database.retention_days,
            last_round: Mutex::default(),
            key_rounds: Mutex::default(),
            last_taken: LastTaken::default(),
        })
    }

    /// Returns a reader with its own connections; each read may take up to `timeout`.
    pub(crate) fn log_reader(&self, timeout: Duration, throttle: QueryThrottle) -> SqliteReader {
        SqliteReader::new(self.path.clone(), BUSY_TIMEOUT, timeout, throttle)
    }

    /// Moves the trusted time and deletes what has expired by it.
    async fn expire(&self, now_us: i64) -> Vec<MaintenanceStep> {
        let (days, now) = (self.retention_days, Instant::now());
        let before = self.last_round.lock().unwrap_or_else(PoisonError::into_inner).replace(now);
        let passed = before.map_or(Duration::ZERO, |before| now - before);
        let passed_us = i64::try_from(passed.as_micros()).unwrap_or(i64::MAX);
        let told =
            blocking(&self.write, move |connection| retention::tell_time(connection, now_us, passed_us, days)).await;
        let (clock, horizon_us) = match told {
            Ok((state, horizon_us)) => (state.verdict(now_us), horizon_us),
            Err(error) => (Err(error), None),
        };
        if days == 0 {
            // Nothing depends on the clock.
            return match clock {
                Err(error @ StoreError::Transient(_)) => vec![MaintenanceStep::new("clock", Err(error))],
                _ => Vec::new(),
            };
        }
        let mut steps = vec![MaintenanceStep::new("clock", clock)];
        if let Some(horizon_us) = horizon_us {
            let deleted = retention::delete_expired(&self.write, horizon_us).await;
            steps.push(MaintenanceStep::new("retention", deleted));
        }
        steps
    }
}

#[async_trait]
impl LogStore for SqliteStore {
    fn name(&self) -> String {
        "SQLite".to_owned()
    }

    async fn prepare(&self) -> Result<(), StoreError> {
        blocking(&self.write, schema::migrate).await
    }

    async fn acquire_lease(&self, claim: &Claim) -> Result<Lease, StoreError> {
        let claim = claim.clone();
        blocking(&self.write, move |connection| lease::acquire_lease(connection, &claim, None)).await
    }

    async fn fork_point(&self, claim: &Claim) -> Result<Option<ForkPoint>, StoreError> {
        let claim = claim.clone();
        blocking(&self.read, move |connection| {
            let takeovers = lease::history(connection, claim.writer).map_err(failed("reading the takeovers"))?;
            Ok(fork_point(&takeovers, &claim))
        })
        .await
    }

    async fn fork(&self, claim: &Claim, starts: &[LaneStart]) -> Result<Lease, StoreError> {
        let (claim, starts) = (claim.clone(), starts.to_vec());
        blocking(&self.write, move |connection| lease::acquire_lease(connection, &claim, Some(&starts))).await
    }

    async fn open_lane(&self, lease: &Lease, lane: LaneId) -> Result<(Box<dyn LaneWriter>, LaneRow), StoreError> {
        let cloned = lease.clone();
        let row = blocking(&self.write, move |connection| lease::open_lane(connection, &cloned, lane)).await?;
        let lane = SqliteLane::new(self.write.clone(), lease, row.clone(), self.last_taken.clone());
        Ok((Box::new(lane), row))
    }

    async fn maintain(&self, now_us: i64) -> Vec<MaintenanceStep> {
        let mut steps = self.expire(now_us).await;
        let pruned = blocking(&self.write, |connection| lease::prune(connection)).await;
        steps.push(MaintenanceStep::new("takeovers", pruned));
        let deleted = idempotency::delete_expired(&self.write, &self.key_rounds, now_us).await;
        steps.push(MaintenanceStep::new("idempotency_keys", deleted));
        let file = Arc::clone(&self.file);
        let cut = blocking(&self.write, move |connection| file.cut_log(connection)).await;
        steps.push(MaintenanceStep::new("wal", cut));
        steps
    }

    async fn lanes(&self, writer: Uuid) -> Result<Vec<LaneRow>, StoreError> {
        blocking(&self.read, move |connection| all_lanes(connection, writer).map_err(failed("reading the lanes"))).await
    }

    async fn count_stored(&self, row: &LaneRow) -> Result<StoredCount, StoreError> {
        let lane_id = row.lane_id;
        let (first, end) = (lane_id << ORDINAL_BITS, (lane_id + 1) << ORDINAL_BITS);
        blocking(&self.read, move |connection| {
            let failed = failed("counting rows");
            // id is the primary key, so ids are distinct.
            let rows = count_ids(connection, first, end).map_err(&failed)?;
            connection
                .query_row(
                    "SELECT (SELECT count(*) FROM logweir_dead_letter WHERE id >= ?1 AND id < ?2), \
                     (SELECT coalesce(sum(records), 0) FROM logweir_replayed WHERE lane_id = ?3)",
                    [first, end, lane_id],
                    |row| {
                        let [dead_letters, replayed] = [row.get::<_, i64>(0)?, row.get(1)?].map(i64::cast_unsigned);
                        Ok(StoredCount { rows, distinct: rows, dead_letters, replayed })
                    },
                )
                .map_err(&failed)
        })
        .await
    }

    async fn dead_letters(&self, limit: u32) -> Result<Vec<DeadLetter>, StoreError> {
        blocking(&self.read, move |connection| {
            dead_letters::read(connection, limit).map_err(failed("reading dead letters"))
        })
        .await
    }

    async fn replay_dead_letter(&self, dead: &DeadLetter) -> Result<(), StoreError> {
        let record = raw_record::parse_raw(&dead.raw)?;
        let id = dead.id;
        blocking(&self.write, move |connection| dead_letters::replay(connection, id, &record)).await
    }

    async fn purge_dead_letters(&self, before_us: i64) -> Result<u64, StoreError> {
        let before = timestamp::text(before_us);
        let purged = blocking(&self.write, move |connection| {
            connection
                .execute("DELETE FROM logweir_dead_letter WHERE at < ?1", [before])
                .map_err(failed("purging dead letters"))
        })
        .await? as u64;
        metrics::counter!("logweir_store_dead_letters_purged_total").increment(purged);
        Ok(purged)
    }
}

/// Counts the rows with ids from `first` up to `end`, in statements that are short, as a snapshot keeps the write-ahead
/// log from being cut.
fn count_ids(connection: &Connection, mut first: i64, end: i64) -> rusqlite::Result<u64> {
    const ROWS: u64 = 100_000;
    let mut statement = connection.prepare_cached(&format!(
        "SELECT count(*), max(id) FROM (SELECT id FROM logs WHERE id >= ?1 AND id < ?2 ORDER BY id LIMIT {ROWS})"
    ))?;
    let mut counted = 0;
    loop {
        let (rows, last): (i64, Option<i64>) =
            statement.query_row([first, end], |row| Ok((row.get(0)?, row.get(1)?)))?;
        counted += rows.cast_unsigned();
        match last {
            Some(last) if rows.cast_unsigned() == ROWS => first = last + 1,
            _ => return Ok(counted),
        }
    }
}
