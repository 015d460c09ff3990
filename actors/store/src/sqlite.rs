//! SQLite: the same protocol in one file, for a laptop or a small machine.
//!
//! - All lanes share one connection for writing (SQLite has a single writer anyway); another one reads. Both run on
//!   blocking threads.
//! - WAL with `synchronous = FULL`: a commit is on disk when it returns.
//! - Transactions are IMMEDIATE: they hold the write lock before they read the cursor, so nothing changes between read
//!   and update.
//! - `ts` is fixed-width text, `YYYY-MM-DDTHH:MM:SS.ffffffZ`, which sorts by time and is readable.
//! - SQLite accepts any text, so only a constraint that a user added can reject a row; that row is dead-lettered at
//!   once.

mod read;

pub use self::read::CACHE_BYTES as READ_CACHE_BYTES;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use logweir_engine::clock::wall_us;
use logweir_engine::fault::{armed, kill_point};
use logweir_engine::journal::LaneId;
use rusqlite::{
    Connection, Error, ErrorCode, OpenFlags, OptionalExtension, Row, Transaction, TransactionBehavior, params,
};
use tokio::time::Instant;
use uuid::Uuid;

use super::claim::{Owner, TAKEOVERS_MAX, TakeoverRow, fork_point, lanes_to_reset, next_epoch, tails};
use super::cursor::{CursorMismatch, ORDINAL_BITS, on_cursor_mismatch};
use super::error_class::poison_rows_max;
use super::volume::{self, Key};
use super::{
    Claim, DeadLetter, Flushed, ForkPoint, LaneRow, LaneStart, LaneWriter, Lease, LogStore, StoreError, StoredCount,
    dead_letter, log_resets, migration_failure, rows,
};
use crate::batch::Batch;
use crate::settings::Database;
use crate::throttle::QueryThrottle;
use logweir_record::timestamp::{self, DAY_US};

mod embedded {
    refinery::embed_migrations!("src/sql/sqlite");
}

const HISTORY_TABLE: &str = "logweir_schema_history";
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// Rows per DELETE statement of retention, and number of statements per round.
const DELETE_ROWS: u32 = 5_000;
const DELETE_ROUNDS: u32 = 100;

const LANE_SQL: &str = "SELECT lane, lane_id, epoch, last_seq, digest, rows, dead, lost, inherited \
    FROM logweir_lane WHERE writer_id = ?1";
const CAS_SQL: &str = "UPDATE logweir_lane SET last_seq = ?5, digest = ?6, lost = lost + ?7 \
    WHERE writer_id = ?1 AND lane = ?2 AND epoch = ?3 AND last_seq = ?4 AND lane_id = ?8";
/// The same without the condition, for the test that proves the condition necessary.
const NO_CAS_SQL: &str = "UPDATE logweir_lane SET last_seq = ?5, digest = ?6, lost = lost + ?7 \
    WHERE writer_id = ?1 AND lane = ?2 AND ?3 IS NOT NULL AND ?4 IS NOT NULL AND ?8 IS NOT NULL";
/// Size of the writing connection's page cache. A batch of 20,000 rows takes 6 MiB of pages; a cache smaller than a
/// batch writes them before the commit, and again at each checkpoint.
pub const CACHE_BYTES: usize = 32 << 20;
/// Page size of a new file, in bytes. With SQLite's default of 4 KiB a third of the time is spent on single pages: each
/// is checksummed, written to the write-ahead log, read back and written to the file.
const PAGE_BYTES: usize = 16 << 10;
/// Pages in the write-ahead log between two checkpoints: more than a batch takes, and few enough to be recovered
/// quickly after a kill.
const WAL_PAGES: usize = (16 << 20) / PAGE_BYTES;
const INSERT_SQL: &str = "INSERT INTO logs (id, ts, severity, service, host, message, attributes) \
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
const VOLUME_SQL: &str = "INSERT INTO log_volume (minute, service, severity, lane_id, records) \
    VALUES (?1, ?2, ?3, ?4, ?5) \
    ON CONFLICT (minute, service, severity, lane_id) DO UPDATE SET records = records + excluded.records";
const DEAD_SQL: &str = "INSERT INTO logweir_dead_letter (id, writer_id, lane, seq, row_no, sqlstate, reason, raw, at) \
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)";

/// A store in an SQLite file.
pub struct SqliteStore {
    path: PathBuf,
    write: Arc<Mutex<Connection>>,
    read: Arc<Mutex<Connection>>,
    retention_days: u32,
}

/// Classifies errors of the step `what`.
fn failed(what: &'static str) -> impl Fn(Error) -> StoreError {
    move |error| failure(what, &error)
}

fn failure(what: &str, error: &Error) -> StoreError {
    let text = format!("{what}: {error}");
    match error.sqlite_error_code() {
        // A lock, a full disk, an I/O error: can be temporary. SQLite reports some full disks as I/O errors.
        Some(
            ErrorCode::DatabaseBusy
            | ErrorCode::DatabaseLocked
            | ErrorCode::DiskFull
            | ErrorCode::SystemIoFailure
            | ErrorCode::OutOfMemory
            | ErrorCode::OperationInterrupted
            | ErrorCode::ReadOnly
            | ErrorCode::CannotOpen,
        ) => StoreError::Transient(text),
        _ => StoreError::Systemic(text),
    }
}

fn lane_row(row: &Row<'_>) -> rusqlite::Result<LaneRow> {
    let count = |column: usize| row.get::<_, i64>(column).map(i64::cast_unsigned);
    Ok(LaneRow {
        lane: row.get(0)?,
        lane_id: row.get(1)?,
        epoch: row.get(2)?,
        last_seq: count(3)?,
        digest: row.get(4)?,
        rows: count(5)?,
        dead_lettered: count(6)?,
        lost: count(7)?,
        inherited: count(8)?,
    })
}

/// Ignores poisoning: a panic inside a transaction drops it, which rolls it back, so the connection stays usable.
fn locked(connection: &Mutex<Connection>) -> MutexGuard<'_, Connection> {
    connection.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn blocking<T: Send + 'static>(
    connection: &Arc<Mutex<Connection>>,
    work: impl FnOnce(&mut Connection) -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    let connection = connection.clone();
    tokio::task::spawn_blocking(move || work(&mut locked(&connection)))
        .await
        .unwrap_or_else(|error| Err(StoreError::Transient(format!("the SQLite task failed: {error}"))))
}

fn immediate<'c>(connection: &'c mut Connection, what: &'static str) -> Result<Transaction<'c>, StoreError> {
    connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failed(what))
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
             foreign_keys = ON; PRAGMA cache_size = -{}; PRAGMA wal_autocheckpoint = {WAL_PAGES}",
            CACHE_BYTES >> 10
        ))
        .map_err(failure)?;
        let read = open("PRAGMA query_only = ON").map_err(failure)?;
        Ok(Self {
            path: path.to_owned(),
            write: Arc::new(Mutex::new(write)),
            read: Arc::new(Mutex::new(read)),
            retention_days: database.retention_days,
        })
    }

    /// Returns a reader with its own connections; each read may take up to `timeout`.
    #[must_use]
    pub fn log_reader(&self, timeout: Duration, throttle: QueryThrottle) -> read::SqliteReader {
        read::SqliteReader::new(self.path.clone(), BUSY_TIMEOUT, timeout, throttle)
    }

    /// Returns the shared read-only connection. Use it on a blocking thread.
    #[must_use]
    pub fn reader(&self) -> Arc<Mutex<Connection>> {
        self.read.clone()
    }

    /// Opens another read-only connection, for queries that must not wait for each other.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub fn open_reader(&self) -> Result<Connection, StoreError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection =
            Connection::open_with_flags(&self.path, flags).map_err(failed("opening the file for reading"))?;
        connection.busy_timeout(BUSY_TIMEOUT).map_err(failed("opening the file for reading"))?;
        Ok(connection)
    }
}

/// Acquires the lease of `claim.writer`. For a fork, `forked` lists the lanes to create.
fn acquire_lease(
    connection: &mut Connection,
    claim: &Claim,
    forked: Option<&[LaneStart]>,
) -> Result<Lease, StoreError> {
    let failed = failed("acquiring the journal's lease");
    let transaction = immediate(connection, "acquiring the journal's lease")?;
    let owner = transaction
        .query_row("SELECT epoch, run_id, owner FROM logweir_writer WHERE writer_id = ?1", [claim.writer], |row| {
            Ok(Owner { epoch: row.get(0)?, run: row.get(1)?, owner: row.get(2)? })
        })
        .optional()
        .map_err(&failed)?;
    let epoch = next_epoch(owner.as_ref(), claim)?;
    let reacquired = owner.is_some_and(|owner| owner.epoch == epoch);
    let now = timestamp::text(wall_us());
    if !reacquired {
        transaction
            .execute(
                "INSERT INTO logweir_writer (writer_id, epoch, run_id, owner, taken_at) VALUES (?1, ?2, ?3, ?4, ?5) \
                 ON CONFLICT (writer_id) DO UPDATE SET epoch = excluded.epoch, run_id = excluded.run_id, \
                 owner = excluded.owner, taken_at = excluded.taken_at",
                params![claim.writer, epoch, claim.run, claim.owner, now],
            )
            .map_err(&failed)?;
    }
    transaction
        .execute("UPDATE logweir_lane SET epoch = ?2 WHERE writer_id = ?1", params![claim.writer, epoch])
        .map_err(&failed)?;
    for start in forked.unwrap_or_default() {
        transaction
            .execute(
                "INSERT INTO logweir_lane (writer_id, lane, epoch, last_seq, inherited) VALUES (?1, ?2, ?3, ?4, ?5) \
                 ON CONFLICT (writer_id, lane) DO NOTHING",
                params![claim.writer, start.lane, epoch, start.seq.cast_signed(), start.records.cast_signed()],
            )
            .map_err(&failed)?;
    }
    let mut resets = Vec::new();
    if !reacquired {
        let lanes = all_lanes(&transaction, claim.writer).map_err(&failed)?;
        for (lane, tail, cursor) in tails(claim, &lanes) {
            transaction
                .execute(
                    "INSERT INTO logweir_takeover (writer_id, epoch, run_id, run_before, owner, taken_at, lane, \
                     tail_seq, cursor_seq) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
                    params![
                        claim.writer,
                        epoch,
                        claim.run,
                        claim.runs.last(),
                        claim.owner,
                        now,
                        lane,
                        tail.cast_signed(),
                        cursor.cast_signed()
                    ],
                )
                .map_err(&failed)?;
        }
        transaction
            .execute(
                "DELETE FROM logweir_takeover WHERE writer_id = ?1 AND epoch <= ?2",
                params![claim.writer, epoch - TAKEOVERS_MAX],
            )
            .map_err(&failed)?;
        if forked.is_none() {
            resets = lanes_to_reset(claim, &lanes);
            reset_lanes(&transaction, claim.writer, epoch, &resets).map_err(&failed)?;
        }
    }
    transaction.commit().map_err(&failed)?;
    log_resets(claim, &resets);
    Ok(Lease { writer: claim.writer, epoch })
}

/// Resets lanes. AUTOINCREMENT gives the new rows numbers that no lane has had.
fn reset_lanes(transaction: &Transaction<'_>, writer: Uuid, epoch: i64, starts: &[LaneStart]) -> rusqlite::Result<()> {
    for start in starts {
        transaction
            .execute("DELETE FROM logweir_lane WHERE writer_id = ?1 AND lane = ?2", params![writer, start.lane])?;
        transaction.execute(
            "INSERT INTO logweir_lane (writer_id, lane, epoch, last_seq, inherited) VALUES (?1, ?2, ?3, ?4, ?5)",
            params![writer, start.lane, epoch, start.seq.cast_signed(), start.records.cast_signed()],
        )?;
    }
    Ok(())
}

fn all_lanes(connection: &Connection, writer: Uuid) -> rusqlite::Result<Vec<LaneRow>> {
    let mut statement = connection.prepare_cached(&format!("{LANE_SQL} ORDER BY lane"))?;
    statement.query_map([writer], lane_row)?.collect()
}

fn one_lane(connection: &Connection, writer: Uuid, lane: LaneId) -> rusqlite::Result<Option<LaneRow>> {
    let mut statement = connection.prepare_cached(&format!("{LANE_SQL} AND lane = ?2"))?;
    statement.query_row(params![writer, lane], lane_row).optional()
}

fn owner_of(connection: &Connection, writer: Uuid) -> rusqlite::Result<Option<(i64, String)>> {
    let mut statement = connection.prepare_cached("SELECT epoch, owner FROM logweir_writer WHERE writer_id = ?1")?;
    statement.query_row([writer], |row| Ok((row.get(0)?, row.get(1)?))).optional()
}

fn open_lane(connection: &mut Connection, lease: &Lease, lane: LaneId) -> Result<LaneRow, StoreError> {
    let failed = failed("opening the lane");
    let transaction = immediate(connection, "opening the lane")?;
    match owner_of(&transaction, lease.writer).map_err(&failed)? {
        Some((epoch, _)) if epoch == lease.epoch => {}
        Some((epoch, owner)) if epoch > lease.epoch => {
            return Err(StoreError::Fenced { writer: lease.writer, epoch, mine: lease.epoch, owner });
        }
        _ => return Err(StoreError::LeaseLost { writer: lease.writer, mine: lease.epoch }),
    }
    transaction
        .execute(
            "INSERT INTO logweir_lane (writer_id, lane, epoch) VALUES (?1, ?2, ?3) ON CONFLICT (writer_id, lane) DO \
             NOTHING",
            params![lease.writer, lane, lease.epoch],
        )
        .map_err(&failed)?;
    let row = one_lane(&transaction, lease.writer, lane).map_err(&failed)?;
    transaction.commit().map_err(&failed)?;
    row.ok_or_else(|| StoreError::Systemic(format!("the row of lane {lane} was deleted while it was being created")))
}

/// A lane on the shared connection.
struct SqliteLane {
    connection: Arc<Mutex<Connection>>,
    /// The part that the blocking thread needs.
    state: LaneState,
}

#[derive(Clone)]
struct LaneState {
    writer: Uuid,
    epoch: i64,
    row: LaneRow,
}

impl LaneState {
    /// Runs one transaction. Returns the lane's row after it.
    fn flush(&self, connection: &mut Connection, batch: &Batch) -> Result<(Flushed, LaneRow), StoreError> {
        let failed = failed("flushing");
        let cursor_first = !armed("mutation.cursor_outside_tx");
        let mut transaction = immediate(connection, "flushing")?;
        if cursor_first && !self.move_cursor(&transaction, batch)? {
            return self.resolve_mismatch(transaction, batch);
        }
        kill_point("store.copy.before");
        let dead_lettered = self.insert(&transaction, batch)?;
        kill_point("store.copy.after");
        if !cursor_first {
            transaction.commit().map_err(&failed)?;
            kill_point("store.mutation.between");
            transaction = immediate(connection, "flushing")?;
            self.move_cursor(&transaction, batch)?;
        }
        let flushed = Flushed { rows: batch.records() - dead_lettered, dead_lettered };
        transaction
            .prepare_cached("UPDATE logweir_lane SET rows = rows + ?2, dead = dead + ?3 WHERE lane_id = ?1")
            .and_then(|mut statement| {
                statement.execute(params![
                    self.row.lane_id,
                    flushed.rows.cast_signed(),
                    flushed.dead_lettered.cast_signed()
                ])
            })
            .map_err(&failed)?;
        let row = self.guard(&transaction, batch, &flushed)?;
        kill_point("store.commit.before");
        transaction.commit().map_err(&failed)?;
        kill_point("store.commit.after");
        Ok((flushed, row))
    }

    fn move_cursor(&self, transaction: &Transaction<'_>, batch: &Batch) -> Result<bool, StoreError> {
        kill_point("store.cas.before");
        let sql = if armed("mutation.no_cas") { NO_CAS_SQL } else { CAS_SQL };
        let moved = transaction
            .prepare_cached(sql)
            .and_then(|mut statement| {
                statement.execute(params![
                    self.writer,
                    batch.lane,
                    self.epoch,
                    batch.from_seq.cast_signed(),
                    batch.to_seq().cast_signed(),
                    batch.digest(),
                    batch.lost().cast_signed(),
                    self.row.lane_id,
                ])
            })
            .map_err(failed("moving the cursor"))?;
        kill_point("store.cas.after");
        Ok(moved == 1)
    }

    fn resolve_mismatch(&self, transaction: Transaction<'_>, batch: &Batch) -> Result<(Flushed, LaneRow), StoreError> {
        let failed = failed("reading the cursor");
        let owner = owner_of(&transaction, self.writer).map_err(&failed)?;
        let row = one_lane(&transaction, self.writer, batch.lane).map_err(&failed)?;
        transaction.rollback().map_err(&failed)?;
        let epoch = owner.as_ref().map(|(epoch, _)| *epoch);
        match (on_cursor_mismatch(self.epoch, self.row.lane_id, epoch, row.as_ref(), batch), row) {
            (CursorMismatch::AlreadyApplied, Some(row)) => {
                let flushed = Flushed {
                    rows: row.rows.saturating_sub(self.row.rows),
                    dead_lettered: row.dead_lettered.saturating_sub(self.row.dead_lettered),
                };
                Ok((flushed, row))
            }
            (CursorMismatch::Moved, Some(row)) => Err(StoreError::CursorMoved(Box::new(row))),
            (CursorMismatch::Fenced, _) => {
                let (epoch, owner) = owner.unwrap_or_default();
                Err(StoreError::Fenced { writer: self.writer, epoch, mine: self.epoch, owner })
            }
            (CursorMismatch::Reused, _) => Err(StoreError::SequenceReused { lane: batch.lane, seq: batch.to_seq() }),
            (CursorMismatch::Rewound | CursorMismatch::AlreadyApplied | CursorMismatch::Moved, _) => {
                Err(StoreError::LeaseLost { writer: self.writer, mine: self.epoch })
            }
        }
    }

    /// Inserts and counts the rows. Returns the number of dead-lettered records.
    fn insert(&self, transaction: &Transaction<'_>, batch: &Batch) -> Result<u64, StoreError> {
        let failed = failed("inserting rows");
        let mut statement = transaction.prepare_cached(INSERT_SQL).map_err(&failed)?;
        let mut rejected: Vec<(usize, Error)> = Vec::new();
        let limit = poison_rows_max(usize::try_from(batch.records()).unwrap_or(usize::MAX));
        let mut ts = timestamp::Formatter::default();
        let mut clamped = 0;
        let mut volume = volume::Counter::default();
        for (index, row) in rows::rows(batch, self.row.lane_id).enumerate() {
            let record = &row.record;
            clamped += u64::from(timestamp::clamp(record.ts_us) != record.ts_us);
            let attributes = (!record.attributes.is_empty()).then_some(record.attributes);
            let inserted = statement.execute(params![
                row.id,
                ts.write(record.ts_us),
                record.severity.number(),
                record.service,
                record.host,
                record.message,
                attributes
            ]);
            match inserted {
                Ok(_) => volume.add(&row),
                Err(error) if is_row_error(&error) && rejected.len() < limit => rejected.push((index, error)),
                Err(error) if is_row_error(&error) => {
                    return Err(StoreError::Systemic(format!(
                        "lane {}: the database rejects more than {limit} of {} rows, the last one with: {error}; the \
                         table was probably changed, so nothing was dead-lettered",
                        batch.lane,
                        batch.records()
                    )));
                }
                Err(error) => return Err(failed(error)),
            }
        }
        if clamped > 0 {
            metrics::counter!("logweir_store_clamped_timestamps_total").increment(clamped);
        }
        self.insert_dead_letters(transaction, batch, &rejected)?;
        self.count_volume(transaction, volume.finish())?;
        Ok(rejected.len() as u64)
    }

    fn count_volume(
        &self,
        transaction: &Transaction<'_>,
        counted: Vec<(volume::Key<'_>, i64)>,
    ) -> Result<(), StoreError> {
        let failed = failed("counting the volume");
        let mut statement = transaction.prepare_cached(VOLUME_SQL).map_err(&failed)?;
        let mut minute = timestamp::Formatter::default();
        for (key, records) in counted {
            let minute = minute.write(key.minute_us);
            statement
                .execute(params![minute, key.service, key.severity, self.row.lane_id, records])
                .map_err(&failed)?;
        }
        Ok(())
    }

    fn insert_dead_letters(
        &self,
        transaction: &Transaction<'_>,
        batch: &Batch,
        rejected: &[(usize, Error)],
    ) -> Result<(), StoreError> {
        if rejected.is_empty() {
            return Ok(());
        }
        let failed = failed("writing dead letters");
        let all: Vec<rows::Row<'_>> = rows::rows(batch, self.row.lane_id).collect();
        let now = timestamp::text(wall_us());
        for (index, error) in rejected {
            let (row, state) = (&all[*index], extended_code(error));
            transaction
                .execute(
                    DEAD_SQL,
                    params![
                        row.id,
                        self.writer,
                        batch.lane,
                        row.seq.cast_signed(),
                        row.row,
                        state,
                        error.to_string(),
                        dead_letter::raw(&row.record),
                        now
                    ],
                )
                .map_err(&failed)?;
            metrics::counter!("logweir_store_dead_letters_total", "sqlstate" => state).increment(1);
            tracing::warn!(lane = batch.lane, error = %error, "dead-lettered a record");
        }
        Ok(())
    }

    fn guard(&self, transaction: &Transaction<'_>, batch: &Batch, flushed: &Flushed) -> Result<LaneRow, StoreError> {
        let row = one_lane(transaction, self.writer, batch.lane)
            .map_err(failed("reading the cursor back"))?
            .ok_or(StoreError::LeaseLost { writer: self.writer, mine: self.epoch })?;
        if row.last_seq == batch.to_seq() && row.accounted() == batch.to_records() {
            return Ok(row);
        }
        Err(StoreError::Systemic(format!(
            "lane {}: inconsistent counts, rolled back: with this batch ({} rows, {} dead letters, {} lost, frames \
             after {} to {}) the database would account for {} records at frame {}; the journal has {} at frame {}",
            batch.lane,
            flushed.rows,
            flushed.dead_lettered,
            batch.lost(),
            batch.from_seq,
            batch.to_seq(),
            row.accounted(),
            row.last_seq,
            batch.to_records(),
            batch.to_seq(),
        )))
    }
}

/// Returns whether a user's constraint (CHECK, UNIQUE, a trigger's RAISE) failed. Not the id: a duplicate id is a bug.
fn is_row_error(error: &Error) -> bool {
    error.sqlite_error_code() == Some(ErrorCode::ConstraintViolation)
        && !matches!(
            error.sqlite_error().map(|error| error.extended_code),
            Some(rusqlite::ffi::SQLITE_CONSTRAINT_PRIMARYKEY | rusqlite::ffi::SQLITE_CONSTRAINT_ROWID)
        )
}

/// Returns SQLite's extended result code in place of an SQLSTATE.
fn extended_code(error: &Error) -> String {
    format!("SQLITE-{}", error.sqlite_error().map_or(0, |error| error.extended_code))
}

#[async_trait]
impl LaneWriter for SqliteLane {
    async fn flush(&mut self, batch: &Batch) -> Result<Flushed, StoreError> {
        let started = Instant::now();
        let (state, cloned) = (self.state.clone(), batch.clone());
        let result = blocking(&self.connection, move |connection| state.flush(connection, &cloned)).await;
        let result = result.map(|(flushed, row)| {
            self.state.row = row;
            flushed
        });
        super::measure(batch.lane, started, &result);
        result
    }
}

#[async_trait]
impl LogStore for SqliteStore {
    fn name(&self) -> String {
        "SQLite".to_owned()
    }

    async fn prepare(&self) -> Result<(), StoreError> {
        blocking(&self.write, |connection| {
            // Grouped: otherwise refinery creates the tables in one transaction and records the migration in the next,
            // and a process killed in between could never start on this file again.
            let mut runner = embedded::migrations::runner().set_grouped(true);
            runner.set_migration_table_name(HISTORY_TABLE);
            // A process that loses the race for the write lock finds on its second try that the tables exist.
            let migrated = runner.run(connection).or_else(|_| runner.run(connection));
            migrated.map(drop).map_err(|error| migration_failure(&error, failure))
        })
        .await?;
        self.maintain(wall_us()).await
    }

    async fn acquire_lease(&self, claim: &Claim) -> Result<Lease, StoreError> {
        let claim = claim.clone();
        blocking(&self.write, move |connection| acquire_lease(connection, &claim, None)).await
    }

    async fn fork_point(&self, claim: &Claim) -> Result<Option<ForkPoint>, StoreError> {
        let claim = claim.clone();
        blocking(&self.read, move |connection| {
            let takeovers = history(connection, claim.writer).map_err(failed("reading the takeovers"))?;
            Ok(fork_point(&takeovers, &claim))
        })
        .await
    }

    async fn fork(&self, claim: &Claim, starts: &[LaneStart]) -> Result<Lease, StoreError> {
        let (claim, starts) = (claim.clone(), starts.to_vec());
        blocking(&self.write, move |connection| acquire_lease(connection, &claim, Some(&starts))).await
    }

    async fn open_lane(&self, lease: &Lease, lane: LaneId) -> Result<(Box<dyn LaneWriter>, LaneRow), StoreError> {
        let cloned = lease.clone();
        let row = blocking(&self.write, move |connection| open_lane(connection, &cloned, lane)).await?;
        let state = LaneState { writer: lease.writer, epoch: lease.epoch, row: row.clone() };
        Ok((Box::new(SqliteLane { connection: self.write.clone(), state }), row))
    }

    async fn maintain(&self, now_us: i64) -> Result<(), StoreError> {
        if self.retention_days == 0 {
            return Ok(());
        }
        let oldest = now_us.div_euclid(DAY_US) - i64::from(self.retention_days);
        let before = timestamp::text(oldest * DAY_US);
        for (table, sql) in [
            ("logs", "DELETE FROM logs WHERE id IN (SELECT id FROM logs WHERE ts < ?1 ORDER BY ts LIMIT ?2)"),
            (
                "log_volume",
                "DELETE FROM log_volume WHERE (minute, service, severity, lane_id) IN \
                 (SELECT minute, service, severity, lane_id FROM log_volume WHERE minute < ?1 LIMIT ?2)",
            ),
        ] {
            for _ in 0..DELETE_ROUNDS {
                // One short transaction per step, so that flushes can run in between.
                let before = before.clone();
                let deleted = blocking(&self.write, move |connection| {
                    connection.execute(sql, params![before, DELETE_ROWS]).map_err(failed("deleting expired rows"))
                })
                .await?;
                metrics::counter!("logweir_store_retention_deleted_rows_total", "table" => table)
                    .increment(deleted as u64);
                if deleted < DELETE_ROWS as usize {
                    break;
                }
            }
        }
        Ok(())
    }

    async fn lanes(&self, writer: Uuid) -> Result<Vec<LaneRow>, StoreError> {
        blocking(&self.read, move |connection| all_lanes(connection, writer).map_err(failed("reading the lanes"))).await
    }

    async fn count_stored(&self, row: &LaneRow) -> Result<StoredCount, StoreError> {
        let lane_id = row.lane_id;
        let (first, end) = (lane_id << ORDINAL_BITS, (lane_id + 1) << ORDINAL_BITS);
        blocking(&self.read, move |connection| {
            let count = |row: &Row<'_>, column| row.get::<_, i64>(column).map(i64::cast_unsigned);
            connection
                .query_row(
                    "SELECT count(*), (SELECT count(*) FROM logweir_dead_letter WHERE id >= ?1 AND id < ?2), \
                     (SELECT coalesce(sum(records), 0) FROM logweir_replayed WHERE lane_id = ?3) \
                     FROM logs WHERE id >= ?1 AND id < ?2",
                    [first, end, lane_id],
                    |row| {
                        // id is the primary key, so ids are distinct.
                        let rows = count(row, 0)?;
                        let (dead_letters, replayed) = (count(row, 1)?, count(row, 2)?);
                        Ok(StoredCount { rows, distinct: rows, dead_letters, replayed })
                    },
                )
                .map_err(failed("counting rows"))
        })
        .await
    }

    async fn dead_letters(&self, limit: u32) -> Result<Vec<DeadLetter>, StoreError> {
        blocking(&self.read, move |connection| {
            read_dead_letters(connection, limit).map_err(failed("reading dead letters"))
        })
        .await
    }

    async fn replay_dead_letter(&self, dead: &DeadLetter) -> Result<(), StoreError> {
        let record = dead_letter::parse_raw(&dead.raw)?;
        let id = dead.id;
        blocking(&self.write, move |connection| {
            let failed = failed("replaying a dead letter");
            let transaction = immediate(connection, "replaying a dead letter")?;
            let removed =
                transaction.execute("DELETE FROM logweir_dead_letter WHERE id = ?1", [id]).map_err(&failed)?;
            if removed == 0 {
                return Err(StoreError::Systemic(format!(
                    "unknown dead letter {id}: it may have been replayed or purged"
                )));
            }
            let severity = record.severity.number();
            transaction
                .execute(
                    INSERT_SQL,
                    params![
                        id,
                        timestamp::text(record.ts_us),
                        severity,
                        record.service,
                        record.host,
                        record.message,
                        record.attributes
                    ],
                )
                .map_err(&failed)?;
            let key = Key::new(record.ts_us, &record.service, severity);
            let lane_id = id >> ORDINAL_BITS;
            transaction
                .execute(VOLUME_SQL, params![timestamp::text(key.minute_us), key.service, severity, lane_id, 1])
                .map_err(&failed)?;
            transaction
                .execute(
                    "INSERT INTO logweir_replayed (lane_id, records) VALUES (?1, 1) \
                     ON CONFLICT (lane_id) DO UPDATE SET records = records + 1",
                    [lane_id],
                )
                .map_err(&failed)?;
            transaction.commit().map_err(&failed)
        })
        .await
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

fn history(connection: &Connection, writer: Uuid) -> rusqlite::Result<Vec<TakeoverRow>> {
    let mut statement = connection.prepare(
        "SELECT epoch, run_id, run_before, lane, tail_seq, cursor_seq FROM logweir_takeover \
         WHERE writer_id = ?1 ORDER BY epoch, lane",
    )?;
    let takeover = |row: &Row<'_>| {
        Ok(TakeoverRow {
            epoch: row.get(0)?,
            run: row.get(1)?,
            run_before: row.get(2)?,
            lane: row.get(3)?,
            tail_seq: row.get::<_, i64>(4)?.cast_unsigned(),
            cursor_seq: row.get::<_, i64>(5)?.cast_unsigned(),
        })
    };
    statement.query_map([writer], takeover)?.collect()
}

fn read_dead_letters(connection: &Connection, limit: u32) -> rusqlite::Result<Vec<DeadLetter>> {
    let mut statement = connection.prepare(
        "SELECT id, writer_id, lane, seq, row_no, sqlstate, reason, raw, at FROM logweir_dead_letter \
         ORDER BY at DESC, id DESC LIMIT ?1",
    )?;
    let letter = |row: &Row<'_>| {
        Ok(DeadLetter {
            id: row.get(0)?,
            writer: row.get(1)?,
            lane: row.get(2)?,
            seq: row.get::<_, i64>(3)?.cast_unsigned(),
            row: row.get(4)?,
            sqlstate: row.get(5)?,
            reason: row.get(6)?,
            raw: row.get(7)?,
            at_us: timestamp::parse(&row.get::<_, String>(8)?).unwrap_or_default(),
        })
    };
    statement.query_map([limit], letter)?.collect()
}
