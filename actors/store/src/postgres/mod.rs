//! PostgreSQL and TimescaleDB.
//!
//! Each lane flushes over its own long-lived connection (`flush`). Lease acquisition, preparation and maintenance use
//! short-lived connections; queries and administration use two small pools.

mod connect;
mod filter;
mod index;
mod read;
pub(super) mod copy;
mod flush;
mod schema;
mod lease;
mod types;

use std::sync::OnceLock;
use std::time::Duration;

use async_trait::async_trait;
use deadpool_postgres::{Hook, HookError, Manager, ManagerConfig, Object, Pool, PoolError, RecyclingMethod, Runtime};
use logweir_engine::journal::LaneId;
use tokio_postgres::Error;
use tokio_postgres::config::TargetSessionAttrs;
use tokio_postgres_rustls::MakeRustlsConnect;
use uuid::Uuid;

use self::connect::{Connector, failure, within};
use self::flush::{LANE_SQL, PgLane, lane_row};
use self::schema::RetentionSettings;
use self::types::Time;
use super::cursor::ORDINAL_BITS;
use super::volume::Key;
use super::{
    Claim, DeadLetter, ForkPoint, LaneRow, LaneStart, LaneWriter, Lease, LogStore, StoreError, StoredCount, claim,
    dead_letter,
};
use crate::settings::{Database, DatabaseUrl};
use crate::throttle::QueryThrottle;

/// Size of the administration pool: small, since only commands use it.
const ADMIN_CONNECTIONS: usize = 2;

/// Time limits of a migration with all its locks, and of a lease acquisition with its three attempts. Flushes wait for
/// both.
const PREPARE_LIMIT: Duration = Duration::from_secs(600);
const ACQUIRE_LIMIT: Duration = Duration::from_secs(40);
/// Extra time that the client waits beyond the server's own limit.
const GRACE: Duration = Duration::from_secs(5);

/// A store in a `PostgreSQL` server.
pub struct PostgresStore {
    connector: Connector,
    admin: Pool,
    read: Pool,
    reader_tls: MakeRustlsConnect,
    statement_timeout: Duration,
    retention: RetentionSettings,
    hypertable: OnceLock<bool>,
}

impl PostgresStore {
    /// Creates the store without connecting yet.
    ///
    /// # Errors
    /// [`StoreError::Systemic`] if a URL or the CA file is invalid.
    pub fn new(url: &str, database: &Database) -> Result<Self, StoreError> {
        let connector = Connector::new(url, database)?;
        let mut reader = match &database.read_url {
            Some(DatabaseUrl::Postgres(url)) => Connector::new(url, database)?,
            _ => connector.clone(),
        };
        // read_url is meant for replicas.
        reader.config.target_session_attrs(TargetSessionAttrs::Any);
        let setup = format!(
            "SET default_transaction_read_only = on; SET statement_timeout = {}",
            database.statement_timeout_ms
        );
        Ok(Self {
            admin: pool(&connector, "logweir/admin", ADMIN_CONNECTIONS, database, None)?,
            read: pool(&reader, "logweir/query", database.pool_size, database, Some(setup))?,
            reader_tls: reader.tls,
            connector,
            statement_timeout: Duration::from_millis(database.statement_timeout_ms),
            retention: RetentionSettings {
                retention_days: database.retention_days,
                compress_after_days: database.compress_after_days,
                text_index: database.text_index,
            },
            hypertable: OnceLock::new(),
        })
    }

    /// Returns the pool for queries: `read_url`, read-only, with `statement_timeout` set.
    #[must_use]
    pub fn read_pool(&self) -> &Pool {
        &self.read
    }

    /// Returns a reader that uses the query pool. `timeout` is the server's limit for a statement.
    #[must_use]
    pub fn log_reader(&self, timeout: Duration, throttle: QueryThrottle) -> read::PostgresReader {
        read::PostgresReader::new(self.read.clone(), self.reader_tls.clone(), timeout, throttle)
    }

    async fn admin(&self) -> Result<Object, StoreError> {
        self.admin.get().await.map_err(|error| pool_failure(&error))
    }
}

fn pool(
    connector: &Connector,
    name: &str,
    connections: usize,
    database: &Database,
    setup: Option<String>,
) -> Result<Pool, StoreError> {
    let mut config = connector.config.clone();
    config.application_name(name);
    // Verified: the default returns dead sockets.
    let recycling = ManagerConfig { recycling_method: RecyclingMethod::Verified };
    let wait = Some(Duration::from_millis(database.connect_timeout_ms));
    let mut builder = Pool::builder(Manager::from_config(config, connector.tls.clone(), recycling))
        .max_size(connections.max(1))
        .runtime(Runtime::Tokio1)
        .wait_timeout(wait)
        .create_timeout(wait)
        .recycle_timeout(wait);
    if let Some(setup) = setup {
        builder = builder.post_create(Hook::async_fn(move |client, _| {
            let setup = setup.clone();
            Box::pin(async move { client.batch_execute(&setup).await.map_err(HookError::Backend) })
        }));
    }
    builder.build().map_err(|error| StoreError::Systemic(format!("connection pool: {error}")))
}

fn pool_failure(error: &PoolError) -> StoreError {
    match error {
        PoolError::Backend(error) => failure("connecting to the database", error),
        other => StoreError::Transient(format!("no connection to the database: {other}")),
    }
}

fn failed(what: &'static str) -> impl Fn(Error) -> StoreError {
    move |error| failure(what, &error)
}

#[async_trait]
impl LogStore for PostgresStore {
    fn name(&self) -> String {
        match self.hypertable.get() {
            Some(true) => "TimescaleDB".to_owned(),
            _ => "PostgreSQL".to_owned(),
        }
    }

    async fn prepare(&self) -> Result<(), StoreError> {
        let connection = self.connector.connect("logweir/prepare").await?;
        let hypertable = within(PREPARE_LIMIT, "preparing the schema", schema::prepare(connection)).await?;
        let _ = self.hypertable.set(hypertable);
        let ahead = self.maintain(logweir_engine::clock::wall_us());
        match within(PREPARE_LIMIT, "creating partitions", ahead).await {
            // A lock is held: the default partition receives the rows until the next round.
            Err(StoreError::Transient(error)) => {
                tracing::warn!(error, "partitions could not be created; retrying at the next maintenance");
                Ok(())
            }
            done => done,
        }
    }

    async fn acquire_lease(&self, claim: &Claim) -> Result<Lease, StoreError> {
        let acquiring = lease::acquire_lease(&self.connector, claim, None);
        within(ACQUIRE_LIMIT, "acquiring the journal's lease", acquiring).await
    }

    async fn fork_point(&self, claim: &Claim) -> Result<Option<ForkPoint>, StoreError> {
        let connection = self.connector.connect("logweir/fork").await?;
        Ok(claim::fork_point(&lease::history(&connection, claim.writer).await?, claim))
    }

    async fn fork(&self, claim: &Claim, starts: &[LaneStart]) -> Result<Lease, StoreError> {
        let acquiring = lease::acquire_lease(&self.connector, claim, Some(starts));
        within(ACQUIRE_LIMIT, "acquiring the fork's lease", acquiring).await
    }

    async fn open_lane(&self, lease: &Lease, lane: LaneId) -> Result<(Box<dyn LaneWriter>, LaneRow), StoreError> {
        let opening = async {
            let name = flush::connection_name(lease.writer, lane, lease.epoch);
            let connection = self.connector.connect(&format!("{name}/open")).await?;
            flush::end_stalled(&connection, &name).await;
            let row = lease::lane(&connection, lease, lane).await?;
            drop(connection);
            let connector = self.connector.clone();
            let writer =
                PgLane::open(connector, lease.writer, lease.epoch, row.clone(), self.statement_timeout).await?;
            Ok((Box::new(writer) as Box<dyn LaneWriter>, row))
        };
        within(self.statement_timeout + GRACE, "opening the lane", opening).await
    }

    async fn maintain(&self, now_us: i64) -> Result<(), StoreError> {
        schema::maintain(self.connector.connect("logweir/maintain").await?, self.retention, now_us).await
    }

    async fn lanes(&self, writer: Uuid) -> Result<Vec<LaneRow>, StoreError> {
        let rows = self
            .admin()
            .await?
            .query(&format!("{LANE_SQL} ORDER BY lane"), &[&writer])
            .await
            .map_err(failed("reading the lanes"))?;
        Ok(rows.iter().map(lane_row).collect())
    }

    async fn count_stored(&self, row: &LaneRow) -> Result<StoredCount, StoreError> {
        let client = self.admin().await?;
        let (first, end) = (row.lane_id << ORDINAL_BITS, (row.lane_id + 1) << ORDINAL_BITS);
        let counted = client
            .query_one(
                "SELECT count(*), count(DISTINCT id), \
                 (SELECT count(*) FROM logweir_dead_letter WHERE id >= $1 AND id < $2), \
                 (SELECT coalesce(sum(records), 0)::bigint FROM logweir_replayed WHERE lane_id = $3) \
                 FROM logs WHERE id >= $1 AND id < $2",
                &[&first, &end, &i32::try_from(row.lane_id).unwrap_or(i32::MAX)],
            )
            .await
            .map_err(failed("counting rows"))?;
        let count = |column| counted.get::<_, i64>(column).cast_unsigned();
        Ok(StoredCount { rows: count(0), distinct: count(1), dead_letters: count(2), replayed: count(3) })
    }

    async fn dead_letters(&self, limit: u32) -> Result<Vec<DeadLetter>, StoreError> {
        let rows = self
            .admin()
            .await?
            .query(
                "SELECT id, writer_id, lane, seq, row_no, sqlstate, reason, raw, at FROM logweir_dead_letter \
                 ORDER BY at DESC, id DESC LIMIT $1",
                &[&i64::from(limit)],
            )
            .await
            .map_err(failed("reading dead letters"))?;
        let letter = |row: &tokio_postgres::Row| DeadLetter {
            id: row.get(0),
            writer: row.get(1),
            lane: u16::try_from(row.get::<_, i32>(2)).unwrap_or(u16::MAX),
            seq: row.get::<_, i64>(3).cast_unsigned(),
            row: row.get::<_, i32>(4).cast_unsigned(),
            sqlstate: row.get(5),
            reason: row.get(6),
            raw: row.get(7),
            at_us: row.get::<_, Time>(8).0,
        };
        Ok(rows.iter().map(letter).collect())
    }

    async fn replay_dead_letter(&self, dead: &DeadLetter) -> Result<(), StoreError> {
        let record = dead_letter::parse_raw(&dead.raw)?;
        let mut client = self.admin().await?;
        let failed = failed("replaying a dead letter");
        let transaction = client.transaction().await.map_err(&failed)?;
        let removed =
            transaction.execute("DELETE FROM logweir_dead_letter WHERE id = $1", &[&dead.id]).await.map_err(&failed)?;
        if removed == 0 {
            return Err(StoreError::Systemic(format!(
                "unknown dead letter {}: it may have been replayed or purged",
                dead.id
            )));
        }
        let severity = i16::from(record.severity.number());
        transaction
            .execute(
                "INSERT INTO logs (id, ts, severity, service, host, message, attributes) \
                 VALUES ($1, $2, $3, $4, $5, $6, $7::text::jsonb)",
                &[
                    &dead.id,
                    &Time(record.ts_us),
                    &severity,
                    &record.service,
                    &record.host,
                    &record.message,
                    &record.attributes,
                ],
            )
            .await
            .map_err(&failed)?;
        let key = Key::new(record.ts_us, &record.service, record.severity.number());
        let lane_id = i32::try_from(dead.id >> ORDINAL_BITS).unwrap_or(i32::MAX);
        transaction
            .execute(
                "INSERT INTO log_volume AS v (minute, service, severity, lane_id, records) VALUES ($1, $2, $3, $4, 1) \
                 ON CONFLICT (minute, service, severity, lane_id) DO UPDATE SET records = v.records + 1",
                &[&Time(key.minute_us), &key.service, &severity, &lane_id],
            )
            .await
            .map_err(&failed)?;
        transaction
            .execute(
                "INSERT INTO logweir_replayed AS r (lane_id, records) VALUES ($1, 1) \
                 ON CONFLICT (lane_id) DO UPDATE SET records = r.records + 1",
                &[&lane_id],
            )
            .await
            .map_err(&failed)?;
        transaction.commit().await.map_err(&failed)
    }

    async fn purge_dead_letters(&self, before_us: i64) -> Result<u64, StoreError> {
        let purged = self
            .admin()
            .await?
            .execute("DELETE FROM logweir_dead_letter WHERE at < $1", &[&Time(before_us)])
            .await
            .map_err(failed("purging dead letters"))?;
        metrics::counter!("logweir_store_dead_letters_purged_total").increment(purged);
        Ok(purged)
    }
}
