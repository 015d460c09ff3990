//! The store: its pools, and what each operation does with a connection.

use std::time::Duration;

use async_trait::async_trait;
use logweir_engine::clock::wall_us;
use logweir_engine::journal::LaneId;
use tokio::time::Instant;
use tokio_postgres::{IsolationLevel, Row};
use uuid::Uuid;

use super::access::UrlKey;
use super::connect::{Connector, GRACE, failed, within};
use super::flush::{Limits, PgLane, connection_name, end_stalled};
use super::grants::{self, Purpose};
use super::home::{Home, KnownHome};
use super::lane_row::all_lanes;
use super::logs::{Logs, LogsKind, find_division, find_late, union_all};
use super::maintain::{self, Memory, RetentionSettings};
use super::migrate::{self, PartitionsLeft};
use super::patience::Patience;
use super::place::{Placing, Reach, SharedFallback};
use super::pool::{Object, Pool, admin_pool, pool_failure, query_pool};
use super::product::KnownProduct;
use super::read::PostgresReader;
use super::timescale::{self, Installed, Timescale};
use super::{dead_letters, lease, schema};
use crate::dead_letter::DeadLetter;
use crate::error::StoreError;
use crate::lane::{LaneRow, LaneStart, ORDINAL_BITS, StoredCount};
use crate::lease::{Claim, ForkPoint, Lease};
use crate::maintenance::MaintenanceStep;
use crate::protocol::raw_record;
use crate::protocol::sample::LastTaken;
use crate::protocol::takeover::fork_point;
use crate::settings::{Database, DatabaseUrl};
use crate::store::{LaneWriter, LogStore};
use crate::throttle::QueryThrottle;

/// Time limits of creating the tables with all locks, and of a lease acquisition with its three attempts. Flushes wait for
/// both.
const PREPARE_LIMIT: Duration = Duration::from_secs(90);
const ACQUIRE_LIMIT: Duration = Duration::from_secs(40);
/// Time to see what tables there are, at first: a few queries of the catalog.
const LOOK_LEAST: Duration = Duration::from_secs(10);
/// Time for one attempt to acquire a lease, at first. It waits up to five seconds for each of two locks.
const ATTEMPT_LEAST: Duration = Duration::from_secs(15);

/// A store in a `PostgreSQL` server.
pub struct PostgresStore {
    connector: Connector,
    home: KnownHome,
    admin: Pool,
    read: Pool,
    /// Where queries find the tables; `None` with a URL of their own, of which `search_path` decides.
    read_home: Option<KnownHome>,
    statement_timeout: Duration,
    retention: RetentionSettings,
    product: KnownProduct,
    direct_compress: bool,
    memory: Memory,
    fallback: SharedFallback,
    last_taken: LastTaken,
    looking: Patience,
    attempting: Patience,
}

impl PostgresStore {
    /// Creates the store without connecting yet.
    ///
    /// # Errors
    /// [`StoreError::Systemic`] if a URL or the CA file is invalid.
    pub fn new(url: &str, database: &Database) -> Result<Self, StoreError> {
        let connector = Connector::new(UrlKey::Url, url, database.url_file.clone(), database)?;
        // read_url is meant for replicas.
        let reader = match &database.read_url {
            Some(DatabaseUrl::Postgres(url)) => {
                Connector::new(UrlKey::ReadUrl, url, database.read_url_file.clone(), database)?
            }
            _ => Connector::new(UrlKey::ReadUrl, url, database.url_file.clone(), database)?,
        };
        let home = KnownHome::default();
        Ok(Self {
            read_home: database.read_url.is_none().then(|| home.clone()),
            admin: admin_pool(&connector, database)?,
            read: query_pool(&reader, database)?,
            connector,
            home,
            statement_timeout: Duration::from_millis(database.statement_timeout_ms),
            direct_compress: database.direct_compress,
            retention: RetentionSettings {
                retention_days: database.retention_days,
                compress_after_days: database.compress_after_days,
                chunk_interval_s: database.chunk_interval_s,
                text_index: database.text_index,
                reach: reach(database),
            },
            product: KnownProduct::default(),
            memory: Memory::default(),
            fallback: SharedFallback::default(),
            last_taken: LastTaken::default(),
            looking: Patience::new(LOOK_LEAST, PREPARE_LIMIT),
            attempting: Patience::new(ATTEMPT_LEAST, ACQUIRE_LIMIT),
        })
    }

    /// Returns a reader that uses the query pool. `timeout` is the server's limit for a statement.
    pub(crate) fn log_reader(&self, timeout: Duration, throttle: QueryThrottle) -> PostgresReader {
        PostgresReader::new(self.read.clone(), self.read_home.clone(), timeout, throttle)
    }

    /// Returns the statements that let `role` do what `purpose` says, for the schema that `database.url` leads to.
    ///
    /// # Errors
    /// [`StoreError::Transient`] and [`StoreError::Systemic`], as the methods of [`LogStore`].
    pub async fn grants(&self, role: &str, purpose: Purpose) -> Result<Vec<String>, StoreError> {
        let connection = self.connector.connect("logweir/grants").await?;
        grants::grants(&connection.client, role, purpose).await
    }

    /// Makes a hypertable of a table `logs` that has daily partitions, whose records [`Self::move_partitions`] moves. Returns
    /// whether it was not one before.
    ///
    /// # Errors
    /// [`StoreError::Transient`] while others use the table, or maintain it. [`StoreError::Systemic`] if `TimescaleDB` cannot
    /// be used, or if something is attached to the table that would not be in its place afterwards.
    pub async fn migrate(&self) -> Result<bool, StoreError> {
        const LOOKING: &str = "looking for TimescaleDB";
        let connection = self.connector.connect("logweir/migrate").await?;
        let home = self.home.find(&connection.client).await?;
        if Logs::read(&connection.client, &home).await?.kind == LogsKind::Hypertable {
            return Ok(false);
        }
        let installed = timescale::installed(&connection.client).await.map_err(failed(LOOKING))?;
        if installed == Installed::Preloaded {
            schema::create_timescale(&self.connector).await;
        }
        // A session loads the extension when it begins.
        let connection = self.connector.connect("logweir/migrate").await?;
        let Some(timescale) = Timescale::find(&connection.client).await.map_err(failed(LOOKING))? else {
            return Err(StoreError::Systemic(
                match installed {
                    Installed::NotPreloaded => {
                        "the server has not loaded TimescaleDB: add timescaledb to shared_preload_libraries, and restart it"
                    }
                    _ => "the database has no extension timescaledb: install it on the server, and CREATE EXTENSION timescaledb",
                }
                .to_owned(),
            ));
        };
        maintain::exchange(&self.connector, &self.home, &timescale).await
    }

    /// Moves records from former partitions to the hypertable, the newest first. Returns what is left after about this time.
    ///
    /// # Errors
    /// [`StoreError::Transient`] and [`StoreError::Systemic`], as the methods of [`LogStore`].
    pub async fn move_partitions(&self, time: Duration) -> Result<PartitionsLeft, StoreError> {
        let connection = self.connector.connect("logweir/migrate").await?;
        let home = self.home.find(&connection.client).await?;
        let logs = Logs::read(&connection.client, &home).await?;
        if logs.kind == LogsKind::Hypertable {
            migrate::move_partitions(&connection.client, &home, &logs, None, Instant::now() + time).await?;
        }
        migrate::left(&connection.client, &home).await
    }

    /// Returns the statements that create the tables, for administrators who want to run them themselves. Run as
    /// they are, logweir has nothing left to create.
    #[must_use]
    pub fn schema_sql() -> String {
        schema::sql()
    }

    fn limits(&self) -> Limits {
        Limits { statement: self.statement_timeout, reach: self.retention.reach, direct_compress: self.direct_compress }
    }

    /// A connection for administration, and where the tables are.
    async fn admin(&self) -> Result<(Object, Home), StoreError> {
        let admin = self.admin.get().await.map_err(pool_failure)?;
        let home = self.home.find(&admin.client).await?;
        if self.product.version().is_none() {
            self.product.learn(&admin.client, &home).await;
        }
        Ok((admin, home))
    }
}

/// How far from the present a record may be to go into a chunk. Not as far as chunks are compressed: a late record would
/// wait for that. Nor beyond the retention: a record that is to be deleted would make a chunk first.
fn reach(database: &Database) -> Reach {
    let past_days = [database.compress_after_days, database.retention_days]
        .into_iter()
        .filter(|&days| days > 0)
        .fold(database.late_after_days, u32::min);
    Reach { past_days, future_days: database.early_after_days }
}

#[async_trait]
impl LogStore for PostgresStore {
    fn name(&self) -> String {
        self.product.name().to_owned()
    }

    fn version(&self) -> Option<String> {
        self.product.version()
    }

    async fn learn(&self) {
        let learning = async {
            let reader = self.read.get().await.map_err(pool_failure)?;
            let home = self.read_home.clone().unwrap_or_default().find(&reader.client).await?;
            self.product.learn(&reader.client, &home).await;
            Ok::<_, StoreError>(())
        };
        if let Err(error) = within(self.statement_timeout, "reading the version", learning).await {
            tracing::debug!(%error, "the version of the database is not known");
        }
    }

    async fn prepare(&self) -> Result<(), StoreError> {
        let mut connection = self.connector.connect("logweir/prepare").await?;
        let looking = schema::lacks_timescale(&connection.client, &self.home);
        if self.looking.wait("looking for TimescaleDB", looking).await? {
            schema::create_timescale(&self.connector).await;
            // A session loads the extension when it begins.
            connection = self.connector.connect("logweir/prepare").await?;
        }
        let client = &connection.client;
        let found = self.looking.wait("looking for the tables", schema::look(client, &self.home)).await?;
        let preparing = schema::prepare(client, &self.home, found);
        let prepared = within(PREPARE_LIMIT, "creating the tables", preparing).await?;
        self.product.learn(&connection.client, &prepared.home).await;
        Ok(())
    }

    async fn acquire_lease(&self, claim: &Claim) -> Result<Lease, StoreError> {
        let acquiring = lease::acquire_lease(&self.connector, &self.home, &self.attempting, claim, None);
        within(ACQUIRE_LIMIT, "acquiring the journal's lease", acquiring).await
    }

    async fn fork_point(&self, claim: &Claim) -> Result<Option<ForkPoint>, StoreError> {
        let connection = self.connector.connect("logweir/fork").await?;
        let home = self.home.find(&connection.client).await?;
        Ok(fork_point(&lease::history(&connection, &home, claim.writer).await?, claim))
    }

    async fn fork(&self, claim: &Claim, starts: &[LaneStart]) -> Result<Lease, StoreError> {
        let acquiring = lease::acquire_lease(&self.connector, &self.home, &self.attempting, claim, Some(starts));
        within(ACQUIRE_LIMIT, "acquiring the fork's lease", acquiring).await
    }

    async fn open_lane(&self, lease: &Lease, lane: LaneId) -> Result<(Box<dyn LaneWriter>, LaneRow), StoreError> {
        let opening = async {
            let name = connection_name(lease.writer, lane, lease.epoch);
            let connection = self.connector.connect(&format!("{name}/open")).await?;
            end_stalled(&connection, &name).await;
            let row = lease::lane(&connection, &self.home, lease, lane).await?;
            // Lanes open again after ALTER EXTENSION … UPDATE.
            self.product.learn(&connection.client, &self.home.find(&connection.client).await?).await;
            drop(connection);
            let (connector, home, last_taken) = (self.connector.clone(), self.home.clone(), self.last_taken.clone());
            let (limits, fallback) = (self.limits(), self.fallback.clone());
            let writer = PgLane::open(connector, home, lease, row.clone(), last_taken, limits, fallback).await?;
            Ok((Box::new(writer) as Box<dyn LaneWriter>, row))
        };
        within(self.statement_timeout + GRACE, "opening the lane", opening).await
    }

    async fn maintain(&self, now_us: i64) -> Vec<MaintenanceStep> {
        maintain::round(&self.connector, &self.home, self.retention, &self.memory, &self.product, now_us).await
    }

    async fn build_indexes(&self) -> Vec<MaintenanceStep> {
        maintain::build_indexes(&self.connector, &self.home, self.retention).await
    }

    async fn lanes(&self, writer: Uuid) -> Result<Vec<LaneRow>, StoreError> {
        let (admin, home) = self.admin().await?;
        all_lanes(&admin.client, &home, writer).await.map_err(failed("reading the lanes"))
    }

    async fn count_stored(&self, row: &LaneRow) -> Result<StoredCount, StoreError> {
        let (mut admin, home) = self.admin().await?;
        let (first, end) = (row.lane_id << ORDINAL_BITS, (row.lane_id + 1) << ORDINAL_BITS);
        // Three statements of one snapshot: Citus counts no other table in the same one.
        let table = home.table("logs").to_string();
        let dead = "SELECT count(*) FROM $home.logweir_dead_letter WHERE id >= $1 AND id < $2";
        let replayed = "SELECT coalesce(sum(records), 0)::bigint FROM $home.logweir_replayed WHERE lane_id = $1";
        let counting = async {
            let snapshot = admin.client.build_transaction().isolation_level(IsolationLevel::RepeatableRead);
            let snapshot = snapshot.read_only(true).start().await?;
            let late = find_late(&*snapshot, Some(home.name())).await?.late().map(|late| late.table);
            let division = find_division(&*snapshot, Some(home.name())).await?;
            let others = late.iter().chain(&division.former).map(ToString::to_string);
            let logs = union_all("id", &table, others);
            let rows = format!("SELECT count(*), count(DISTINCT id) FROM {logs} WHERE id >= $1 AND id < $2");
            let counted = snapshot.query_one(&rows, &[&first, &end]).await?;
            let dead = snapshot.query_one(&home.sql(dead), &[&first, &end]).await?;
            let lane_id = i32::try_from(row.lane_id).unwrap_or(i32::MAX);
            let replayed = snapshot.query_one(&home.sql(replayed), &[&lane_id]).await?;
            if division.was_exchanged(&*snapshot, &table).await? {
                return Ok(None);
            }
            let count = |row: &Row, column| row.get::<_, i64>(column).cast_unsigned();
            Ok(Some(StoredCount {
                rows: count(&counted, 0),
                distinct: count(&counted, 1),
                dead_letters: count(&dead, 0),
                replayed: count(&replayed, 0),
            }))
        };
        counting.await.map_err(failed("counting rows"))?.ok_or_else(|| {
            StoreError::Transient("the table logs was exchanged while its rows were counted; try again".to_owned())
        })
    }

    async fn dead_letters(&self, limit: u32) -> Result<Vec<DeadLetter>, StoreError> {
        let (admin, home) = self.admin().await?;
        dead_letters::read(&admin.client, &home, limit).await
    }

    async fn replay_dead_letter(&self, dead: &DeadLetter) -> Result<(), StoreError> {
        let record = raw_record::parse_raw(&dead.raw)?;
        let (mut admin, home) = self.admin().await?;
        let fallback = self.fallback.get();
        let logs = Logs::read(&admin.client, &home).await?;
        let has_late = logs.late.is_some();
        let reach = (logs.kind == LogsKind::Hypertable).then_some(self.retention.reach);
        let placing = if has_late { Placing::new(fallback, wall_us(), reach) } else { Placing::LOGS };
        let locked = |place, error: &str| {
            if has_late {
                self.fallback.locked(place, fallback, error);
            }
            has_late
        };
        dead_letters::replay(&mut admin.client, &home, placing, (dead.id, &record), locked).await
    }

    async fn purge_dead_letters(&self, before_us: i64) -> Result<u64, StoreError> {
        let (mut admin, home) = self.admin().await?;
        let purged = dead_letters::purge(&mut admin.client, &home, before_us).await?;
        metrics::counter!("logweir_store_dead_letters_purged_total").increment(purged);
        Ok(purged)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_that_is_compressed_or_deleted_soon_is_not_within_reach() {
        let past_days = |late_after_days, compress_after_days, retention_days| {
            let mut database = Database::new(DatabaseUrl::Blackhole);
            (database.late_after_days, database.compress_after_days) = (late_after_days, compress_after_days);
            database.retention_days = retention_days;
            reach(&database).past_days
        };
        assert_eq!([past_days(7, 0, 0), past_days(7, 9, 30), past_days(7, 5, 0), past_days(7, 5, 3)], [7, 7, 5, 3]);
    }
}
