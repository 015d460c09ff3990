//! A round of maintenance: which steps there are, in which order, and on which connection.
//!
//! - Each step runs whether the one before failed or not, with limits of its own. After an error that closed the
//!   connection, the next step gets another one.
//! - One process of a schema does it: the others only try the lock, and terminate its session if the process is frozen.
//! - Indexes have a lock and a connection of their own, since a build can take hours.
//! - Days go by the database's clock, expiry by the time that is [trusted](super::clock).

use std::sync::atomic::AtomicBool;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tokio_postgres::Client;

use super::clock::{self, LastRound};
use super::connect::{Connection, Connector, failed, within};
use super::home::{Home, KnownHome};
use super::index::{self, IndexKind};
use super::logs::{Logs, LogsKind};
use super::partition::{drop_partitions, make_partitions, prune_takeovers, set_replica_identity};
use super::place::{Reach, Window};
use super::product::KnownProduct;
use super::retention::{delete_counters, delete_rows};
use super::timescale::Timescale;
use super::types::Time;
use super::{chunk, idempotency, interval, migrate, mover, policy, schema, takeover_digest, view};
use crate::error::StoreError;
use crate::maintenance::MaintenanceStep;
use crate::protocol::clock::horizon;
use crate::protocol::key_age::Rounds;
use crate::protocol::takeover::TAKEOVERS_MAX;
use logweir_record::timestamp::DAY_US;

/// Days relative to today that have a partition.
const DAYS_AHEAD: std::ops::RangeInclusive<i64> = -1..=3;

/// Time limit of a step, for a server that accepts statements and then stays silent.
const STEP_LIMIT: Duration = Duration::from_secs(600);

/// A holder of the lock on maintenance that sends nothing for this long is frozen.
const STALLED: Duration = Duration::from_secs(60);

/// The first interval after which creating partitions is tried again, unless the attempt took longer, and the longest.
const POSTPONED_FIRST: Duration = Duration::from_secs(10);
const POSTPONED_MAX: Duration = Duration::from_hours(1);

/// The step that opens a connection.
const CONNECTION: &str = "connection";

/// Retention, compression and index settings.
#[derive(Clone, Copy, Debug)]
pub(super) struct RetentionSettings {
    /// Days until records are deleted; 0 keeps them forever.
    pub(super) retention_days: u32,
    /// Days until chunks are compressed; 0 disables compression. `TimescaleDB` only.
    pub(super) compress_after_days: u32,
    /// Seconds that a chunk has; 0 decides by the rate. `TimescaleDB` only.
    pub(super) chunk_interval_s: u32,
    /// Whether closed partitions get a text index.
    pub(super) text_index: bool,
    /// Which records are late.
    pub(super) reach: Reach,
}

/// The steps of a round, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// The database has every character.
    Encoding,
    /// The database's clock and this process's agree, and what has expired by the time that is trusted.
    Clock,
    /// Tables from which maintenance deletes can be published.
    ReplicaIdentity,
    /// The default partition, and those of the next days.
    Partitions,
    /// TimescaleDB's own jobs.
    Policies,
    /// How long the next chunks are.
    ChunkInterval,
    /// Whether they work.
    Jobs,
    /// Partitions or chunks that have expired.
    RetentionPartitions,
    /// Rows that have expired, outside of partitions and chunks.
    RetentionRows,
    /// Counters of records that have expired.
    RetentionCounters,
    /// The table of idempotency keys, and those that have expired.
    IdempotencyKeys,
    /// The table for late records.
    LateTable,
    /// Records of former partitions move into chunks.
    FormerPartitions,
    /// Late records move into chunks.
    LateRecords,
    /// The function by which other programs read all records.
    View,
    /// What a takeover records.
    TakeoverDigest,
    /// Takeovers that no journal can ask for any more.
    Takeovers,
}

const STEPS: [(Step, &str); 17] = [
    (Step::Encoding, "encoding"),
    (Step::Clock, "clock"),
    (Step::ReplicaIdentity, "replica_identity"),
    (Step::Partitions, "partitions"),
    (Step::Policies, "policies"),
    (Step::ChunkInterval, "chunk_interval"),
    (Step::Jobs, "jobs"),
    (Step::RetentionPartitions, "retention_partitions"),
    (Step::RetentionRows, "retention_rows"),
    (Step::RetentionCounters, "retention_counters"),
    (Step::IdempotencyKeys, "idempotency_keys"),
    (Step::LateTable, "late_table"),
    (Step::FormerPartitions, "former_partitions"),
    (Step::LateRecords, "late_records"),
    (Step::View, "logweir_logs"),
    (Step::TakeoverDigest, "takeover_digest"),
    (Step::Takeovers, "takeovers"),
];

/// When creating partitions is tried again after a lock or a time limit ended an attempt: each locks the default
/// partition for a moment, or refuses its rows of future days while it is read. Partitions are created days ahead. So at
/// most half of the time goes into attempts, and ever less.
#[derive(Debug, Default)]
struct Postponed(Mutex<Option<Postponement>>);

#[derive(Debug)]
struct Postponement {
    until: Instant,
    after: Duration,
    error: String,
}

impl Postponed {
    /// Fails as the last attempt did, until the next one is due.
    fn check(&self, now: Instant) -> Result<(), StoreError> {
        match &*self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(Postponement { until, error, .. }) if now < *until => Err(StoreError::Transient(error.clone())),
            _ => Ok(()),
        }
    }

    /// Takes in the outcome of an attempt that began then.
    fn observe(&self, result: &Result<(), StoreError>, began: Instant, now: Instant) {
        let mut postponed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *postponed = match result {
            Err(StoreError::Transient(error)) => {
                let after = postponed.take().map_or(POSTPONED_FIRST, |last| 2 * last.after);
                let after = after.max(now.saturating_duration_since(began)).min(POSTPONED_MAX);
                Some(Postponement { until: now + after, after, error: error.clone() })
            }
            _ => None,
        };
    }
}

/// What a process remembers from round to round.
#[derive(Debug, Default)]
pub(super) struct Memory {
    partitions: Postponed,
    clock: Mutex<Option<LastRound>>,
    keys: Mutex<Rounds>,
    mover: mover::Memory,
    /// It was said that TimescaleDB's edition cannot compress.
    told_edition: AtomicBool,
}

/// What a round knows.
struct Round<'s> {
    settings: RetentionSettings,
    memory: &'s Memory,
    /// This process's clock when the round began, and the moment itself.
    process_us: i64,
    began: Instant,
    /// The time, once it is known: the database's, or the trusted time if that is earlier.
    now_us: Option<i64>,
    /// The first day that is kept, once the time is known.
    first_kept: Option<i64>,
}

/// A connection that holds an advisory lock, and is opened again when it was lost.
struct Session<'c> {
    connector: &'c Connector,
    name: &'static str,
    home: Home,
    key: String,
    connection: Option<Connection>,
}

/// Runs a round, unless another process is doing so.
pub(super) async fn round(
    connector: &Connector,
    home: &KnownHome,
    settings: RetentionSettings,
    memory: &Memory,
    product: &KnownProduct,
    now_us: i64,
) -> Vec<MaintenanceStep> {
    let mut round =
        Round { settings, memory, process_us: now_us, began: Instant::now(), now_us: None, first_kept: None };
    let mut steps = Vec::new();
    let mut session = match Session::open(connector, home, "logweir/maintain", "maintain").await {
        Ok(Some(session)) => session,
        Ok(None) => {
            memory.mover.end();
            return vec![MaintenanceStep::new(CONNECTION, Ok(()))];
        }
        Err(error) => return vec![MaintenanceStep::new(CONNECTION, Err(error))],
    };
    let home = session.home.clone();
    let mut connected = Ok(());
    for (step, name) in STEPS {
        let client = match session.client().await {
            Ok(client) => client,
            Err(error) => {
                connected = Err(error);
                break;
            }
        };
        match within(STEP_LIMIT, name, round.run(step, client, &home)).await {
            Ok(false) => {}
            Ok(true) => steps.push(MaintenanceStep::new(name, Ok(()))),
            Err(error) => {
                session.forget_if_unusable(&error).await;
                steps.push(MaintenanceStep::new(name, Err(error)));
            }
        }
    }
    if let Ok(client) = session.client().await {
        let _ = within(STEP_LIMIT, "reading the version", async {
            product.learn(client, &home).await;
            Ok(())
        })
        .await;
    }
    session.close().await;
    steps.insert(0, MaintenanceStep::new(CONNECTION, connected));
    steps
}

/// Makes a hypertable of a partitioned table, while no round runs. Returns whether it was not one before.
pub(super) async fn exchange(
    connector: &Connector,
    home: &KnownHome,
    timescale: &Timescale,
) -> Result<bool, StoreError> {
    let Some(mut session) = Session::open(connector, home, "logweir/migrate", "maintain").await? else {
        return Err(StoreError::Transient("another process maintains the tables at the moment".to_owned()));
    };
    let home = session.home.clone();
    let client = session.client().await?;
    let exchanging = async {
        let logs = Logs::read(client, &home).await?;
        if !migrate::check(client, &logs).await? {
            return Ok(false);
        }
        schema::keep_late(client, &home, &logs).await?;
        migrate::exchange(client, timescale, &Logs::read(client, &home).await?).await.map(|()| true)
    };
    let exchanged = exchanging.await;
    session.close().await;
    exchanged
}

/// Builds the indexes that closed partitions lack, unless another process is doing so.
pub(super) async fn build_indexes(
    connector: &Connector,
    home: &KnownHome,
    settings: RetentionSettings,
) -> Vec<MaintenanceStep> {
    let mut session = match Session::open(connector, home, "logweir/index", "index").await {
        Ok(Some(session)) => session,
        // The round of maintenance reports why the connection failed.
        Ok(None) | Err(_) => return Vec::new(),
    };
    let home = session.home.clone();
    let mut steps = Vec::new();
    for (kind, wanted) in [(&IndexKind::SERVICE, true), (&IndexKind::TEXT, settings.text_index)] {
        if !wanted {
            continue;
        }
        let Ok(client) = session.client().await else { break };
        let built = index::build_missing(client, &home, kind).await;
        if let Err(error) = &built {
            session.forget_if_unusable(error).await;
        }
        steps.push(MaintenanceStep::new(kind.step, built));
    }
    session.close().await;
    steps
}

impl Round<'_> {
    /// Runs a step. Returns whether it is due.
    async fn run(&mut self, step: Step, client: &Client, home: &Home) -> Result<bool, StoreError> {
        if step == Step::Encoding {
            return check_encoding(client).await.map(|()| true);
        }
        let logs = Logs::read(client, home).await?;
        let is_partitioned = logs.kind == LogsKind::Partitioned;
        let timescale = match logs.kind {
            LogsKind::Hypertable => Timescale::find(client).await.map_err(failed("looking for TimescaleDB"))?,
            LogsKind::Partitioned | LogsKind::Plain => None,
        };
        let done = match (step, self.first_kept, &timescale) {
            (Step::Clock, ..) => self.read_clocks(client, &logs).await,
            (Step::ReplicaIdentity, ..) => set_replica_identity(client, &logs).await,
            (Step::Partitions, ..) if is_partitioned => {
                let today = database_us(client).await?.div_euclid(DAY_US);
                let began = Instant::now();
                self.memory.partitions.check(began)?;
                let made = make_partitions(client, logs, today, DAYS_AHEAD).await;
                self.memory.partitions.observe(&made, began, Instant::now());
                made
            }
            (Step::Policies, _, Some(timescale)) => {
                let RetentionSettings { retention_days, compress_after_days, .. } = self.settings;
                let told = &self.memory.told_edition;
                policy::set_policies(client, timescale, &logs, retention_days, compress_after_days, told).await
            }
            (Step::ChunkInterval, _, Some(timescale)) => {
                let RetentionSettings { retention_days, chunk_interval_s, .. } = self.settings;
                interval::set_interval(client, timescale, &logs, chunk_interval_s, retention_days).await
            }
            (Step::Jobs, _, Some(_)) => policy::check_jobs(client, &logs).await,
            (Step::RetentionPartitions, Some(first_kept), None) if is_partitioned => {
                drop_partitions(client, &logs, first_kept).await
            }
            (Step::RetentionPartitions, Some(first_kept), Some(timescale)) => {
                if let Some(former) = Logs::read_former(client, home).await? {
                    drop_partitions(client, &former, first_kept).await?;
                }
                // Before the chunks, so that few are left to go with them.
                let late = mover::delete_expired(client, &logs, first_kept).await;
                let chunks = chunk::drop_chunks(client, timescale, &logs, first_kept).await;
                late.and(chunks)
            }
            (Step::RetentionRows, Some(first_kept), None) => {
                let late = mover::delete_expired(client, &logs, first_kept).await;
                let rows = match &logs.default {
                    Some(default) => delete_rows(client, &logs, default, first_kept).await,
                    None if is_partitioned => Ok(()),
                    None => delete_rows(client, &logs, &logs.table, first_kept).await,
                };
                late.and(rows)
            }
            // Nothing is outside of chunks, but in the default one of former partitions.
            (Step::RetentionRows, Some(first_kept), Some(_)) => {
                match Logs::read_former(client, home).await?.and_then(|former| former.default) {
                    Some(default) => delete_rows(client, &logs, &default, first_kept).await,
                    None => Ok(()),
                }
            }
            (Step::RetentionCounters, Some(first_kept), _) => delete_counters(client, &logs, first_kept).await,
            (Step::IdempotencyKeys, ..) => self.maintain_keys(client, home, &logs).await,
            (Step::LateTable, _, timescale) if timescale.is_some() || logs.late.is_some() => {
                schema::keep_late(client, home, &logs).await
            }
            (Step::View, ..) => view::keep(client, &logs).await,
            (Step::FormerPartitions, first_kept, Some(_)) if logs.former.is_some() => {
                migrate::move_partitions(client, home, &logs, first_kept, Instant::now() + migrate::MOVE_FOR).await
            }
            (Step::LateRecords, first_kept, _) if logs.late.is_some() => {
                let now_us = database_us(client).await?;
                // A partition takes any record.
                let window = timescale.as_ref().map_or(Window::ALL, |_| Window::at(now_us, self.settings.reach));
                mover::move_records(client, &logs, window, now_us, first_kept, &self.memory.mover).await
            }
            (Step::TakeoverDigest, ..) => takeover_digest::add(client, home).await,
            (Step::Takeovers, ..) => prune_takeovers(client, home, TAKEOVERS_MAX).await,
            _ => return Ok(false),
        };
        done.map(|()| true)
    }

    /// Creates the table of idempotency keys, and deletes those that have expired.
    async fn maintain_keys(&self, client: &Client, home: &Home, logs: &Logs) -> Result<(), StoreError> {
        idempotency::create(client, home, &logs.table).await?;
        let database_us = database_us(client).await?;
        let trusted_us = self.now_us.unwrap_or(i64::MIN);
        let before_us = {
            let mut rounds = self.memory.keys.lock().unwrap_or_else(PoisonError::into_inner);
            rounds.expired_before(Instant::now(), database_us, trusted_us)
        };
        idempotency::delete_expired(client, home, before_us).await
    }

    /// Compares the clocks, and decides what has expired.
    async fn read_clocks(&mut self, client: &Client, logs: &Logs) -> Result<(), StoreError> {
        let database_us = database_us(client).await?;
        let elapsed_us = i64::try_from(self.began.elapsed().as_micros()).unwrap_or(i64::MAX);
        clock::agree(database_us, self.process_us.saturating_add(elapsed_us)).map_err(StoreError::Systemic)?;
        let retention_days = self.settings.retention_days;
        if retention_days == 0 {
            self.now_us = Some(database_us);
            return Ok(());
        }
        let mut last = *self.memory.clock.lock().unwrap_or_else(PoisonError::into_inner);
        let state = clock::tell_time(client, logs, &mut last, database_us, retention_days).await?;
        *self.memory.clock.lock().unwrap_or_else(PoisonError::into_inner) = last;
        self.now_us = Some(state.trusted_us.min(database_us));
        let newest_us = logs.newest_us(client).await?;
        let retention_us = i64::from(retention_days) * DAY_US;
        let kept_us = horizon(state.trusted_us, newest_us, retention_us, DAY_US);
        self.first_kept = Some(kept_us.div_euclid(DAY_US));
        state.verdict(database_us)
    }
}

async fn database_us(client: &Client) -> Result<i64, StoreError> {
    let row =
        client.query_one("SELECT clock_timestamp()", &[]).await.map_err(failed("reading the database's clock"))?;
    Ok(row.get::<_, Time>(0).0)
}

/// What an encoding other than UTF-8 means.
async fn check_encoding(client: &Client) -> Result<(), StoreError> {
    let row = client
        .query_one("SELECT current_setting('server_encoding'), current_database()::text", &[])
        .await
        .map_err(failed("reading the database's encoding"))?;
    let (encoding, database): (&str, &str) = (row.get(0), row.get(1));
    let effect = match encoding {
        "UTF8" => return Ok(()),
        "SQL_ASCII" => "searches for letters that ASCII lacks find nothing",
        _ => "records with characters that it lacks become dead letters",
    };
    Err(StoreError::Systemic(format!(
        "the encoding of database {database} is {encoding}, not UTF8: {effect}. Create another database with \
         ENCODING 'UTF8' TEMPLATE template0 and name it in database.url"
    )))
}

impl<'c> Session<'c> {
    /// Connects and takes the lock; `None` if another process has it.
    async fn open(
        connector: &'c Connector,
        home: &KnownHome,
        name: &'static str,
        what: &str,
    ) -> Result<Option<Self>, StoreError> {
        let connection = connector.connect(name).await?;
        let home = home.find(&connection.client).await?;
        let key = format!("logweir/{what}/{}", home.name());
        let mut session = Self { connector, name, home, key, connection: None };
        if !session.lock(&connection.client).await? {
            return Ok(None);
        }
        session.connection = Some(connection);
        Ok(Some(session))
    }

    async fn lock(&self, client: &Client) -> Result<bool, StoreError> {
        const SQL: &str = "SELECT pg_try_advisory_lock(hashtextextended($1, 0))";
        let locked = client.query_one(SQL, &[&self.key]).await.map_err(failed("acquiring the maintenance lock"))?;
        if !locked.get::<_, bool>(0) {
            schema::end_stalled(client, &self.key, STALLED).await?;
            return Ok(false);
        }
        Ok(true)
    }

    /// The connection; another one if it was lost.
    async fn client(&mut self) -> Result<&Client, StoreError> {
        let connection = match self.connection.take().filter(|connection| !connection.client.is_closed()) {
            Some(connection) => connection,
            None => {
                let connection = self.connector.connect(self.name).await?;
                if !self.lock(&connection.client).await? {
                    return Err(StoreError::Transient(
                        "the connection was lost, and another process continues with the maintenance".to_owned(),
                    ));
                }
                connection
            }
        };
        Ok(&self.connection.insert(connection).client)
    }

    /// Closes the connection if `error` can have left it in the middle of a statement.
    async fn forget_if_unusable(&mut self, error: &StoreError) {
        const CHECK_LIMIT: Duration = Duration::from_secs(5);
        if !matches!(error, StoreError::Transient(_)) {
            return;
        }
        let Some(connection) = &self.connection else { return };
        let answer = tokio::time::timeout(CHECK_LIMIT, connection.client.batch_execute("ROLLBACK")).await;
        if !matches!(answer, Ok(Ok(()))) {
            self.connection = None;
        }
    }

    /// Releases the lock: the end of the session does it, too, but perhaps after the next round requests it.
    async fn close(self) {
        if let Some(connection) = self.connection {
            let unlock = "SELECT pg_advisory_unlock(hashtextextended($1, 0))";
            let _ = connection.client.execute(unlock, &[&self.key]).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn creating_partitions_is_tried_again_at_growing_intervals() {
        let begin = Instant::now();
        let at = |seconds: u64| begin + Duration::from_secs(seconds);
        let locked = || Err(StoreError::Transient("a lock".to_owned()));
        // A round every ten seconds, with attempts that take so long.
        let tried = |takes: u64| {
            let postponed = Postponed::default();
            let mut free = 0;
            let began = (0..10_000).step_by(10).filter(|&second| {
                let due = second >= free && postponed.check(at(second)).is_ok();
                if due {
                    free = second + takes;
                    postponed.observe(&locked(), at(second), at(free));
                }
                due
            });
            began.collect::<Vec<u64>>()
        };
        assert_eq!(tried(0), [0, 10, 30, 70, 150, 310, 630, 1270, 2550, 5110, 8710], "up to hourly");
        assert_eq!(tried(300), [0, 600, 1500, 3000, 5700, 9600], "one that took long is not tried again at once");
        let postponed = Postponed::default();
        postponed.observe(&locked(), begin, begin);
        assert!(postponed.check(at(1)).unwrap_err().to_string().contains("a lock"), "it still fails");
        postponed.observe(&Err(StoreError::Systemic("a name that is taken".to_owned())), at(250), at(250));
        assert!(postponed.check(at(250)).is_ok(), "the others cost nothing");
        postponed.observe(&locked(), at(250), at(250));
        postponed.observe(&Ok(()), at(255), at(255));
        assert!(postponed.check(at(255)).is_ok());
    }
}
