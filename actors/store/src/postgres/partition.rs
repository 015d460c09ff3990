//! Daily partitions: created ahead of time, dropped when they are past their retention.
//!
//! - A partition is created as a plain table and attached, which does not block flushes; `CREATE … PARTITION OF` would.
//! - ATTACH locks the default partition and reads it whole, to be sure that it has no row of the day. Today's records may
//!   go there, so it is locked for a second at most per attempt. A small one is read within that time, and a few rows of
//!   the day move in the same transaction.
//! - A large one is read before, without a lock that writers wait for: a CHECK that excludes the days is added NOT VALID
//!   and validated, and ATTACH then reads nothing. Meanwhile the default partition refuses rows of these days, which the
//!   lanes try again ([`FUTURE_CHECK`]); so it is done for future days without any row only.
//! - A day of which a large default partition has rows stays there, and expires by rows. Refused: moving them in several
//!   transactions, since a query would not find those that have left the default partition.
//! - It is made as `logs` is now, with the columns, constraints and partitions that an operator added. Nothing relies on
//!   the names of partitions where their bounds tell more.

use std::time::Duration;

use logweir_record::timestamp::{self, DAY_US};
use tokio::time::Instant;
use tokio_postgres::types::{Oid, ToSql, Type};
use tokio_postgres::{Client, Error};

use super::connect::failed;
use super::ddl::{Failures, LIMITS, Limits, Relation, give_to_owner, in_transaction, in_transaction_with, quoted};
use super::error_class::FUTURE_CHECK;
use super::home::Home;
use super::moving::{Moving, Published};
use super::types::Time;
use crate::error::StoreError;

/// Rows per DELETE statement, and time for the statements of one step.
pub(super) const DELETE_ROWS: u64 = 10_000;
pub(super) const DELETE_FOR: Duration = Duration::from_secs(240);

/// How long the default partition may be locked per attempt to create a partition.
const LOCKED_MAX: Duration = Duration::from_secs(1);
/// Size up to which the default partition is read within that time.
const READ_BYTES_MAX: i64 = 128 << 20;
/// Rows that move within that time.
const MOVED_ROWS_MAX: i64 = 10_000;
/// Time for reading a large default partition, while writers go on.
const VALIDATE_LIMITS: Limits = Limits { lock_ms: 500, statement_s: 300 };
/// While a partition is detached, and other tables are searched for what refers to its records, no lane writes.
const DETACH_LIMITS: Limits = Limits { lock_ms: 500, statement_s: 5 };
/// Attempts to drop [`FUTURE_CHECK`], half a second each.
const DROP_CHECK_ATTEMPTS: u32 = 10;

/// Name of the default partition, unless another table has it.
const DEFAULT_NAME: &str = "logs_default";

/// The table `logs` as it is now.
pub(super) struct Logs {
    pub(super) oid: Oid,
    pub(super) table: Relation,
    pub(super) kind: LogsKind,
    /// The default partition, whatever its name.
    pub(super) default: Option<Relation>,
    /// For the partitions: ` TABLESPACE …`, or nothing.
    tablespace: String,
    server_version: i32,
}

/// How `logs` is divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LogsKind {
    /// Into daily partitions.
    Partitioned,
    /// Into chunks, by TimescaleDB.
    Hypertable,
    /// Not at all: an operator made it.
    Plain,
}

/// A partition that is not the default one.
struct Partition {
    relation: Relation,
    is_plain: bool,
    from_us: i64,
    to_us: i64,
}

impl Logs {
    /// Reads the table that a flush writes to.
    pub(super) async fn read(client: &Client, home: &Home) -> Result<Self, StoreError> {
        let row = client
            .query_opt(
                "SELECT c.oid, n.nspname::text, c.relname::text, c.relkind = 'p', dn.nspname::text, d.relname::text, \
                 s.spcname::text, current_setting('server_version_num')::integer \
                 FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
                 LEFT JOIN pg_partitioned_table p ON p.partrelid = c.oid \
                 LEFT JOIN pg_class d ON d.oid = p.partdefid AND p.partdefid <> 0 \
                 LEFT JOIN pg_namespace dn ON dn.oid = d.relnamespace \
                 LEFT JOIN pg_tablespace s ON s.oid = c.reltablespace \
                 WHERE n.nspname = $1 AND c.relname = 'logs'",
                &[&home.name()],
            )
            .await
            .map_err(failed("reading the table logs"))?;
        let Some(row) = row else {
            return Err(StoreError::Systemic(format!(
                "table logs was not found in schema {home}; it is created when a lane connects again"
            )));
        };
        let relation = |schema: usize, name: usize| Some(Relation { schema: row.get(schema), name: row.get(name) });
        let table = Relation { schema: row.get(1), name: row.get(2) };
        let kind = match row.get(3) {
            true => LogsKind::Partitioned,
            false if is_hypertable(client, &table).await.map_err(failed("looking for hypertables"))? => {
                LogsKind::Hypertable
            }
            false => LogsKind::Plain,
        };
        let tablespace = row.get::<_, Option<String>>(6);
        Ok(Self {
            oid: row.get(0),
            table,
            kind,
            default: row.get::<_, Option<&str>>(5).and_then(|_| relation(4, 5)),
            tablespace: tablespace.map_or(String::new(), |name| format!(" TABLESPACE {}", quoted(&name))),
            server_version: row.get(7),
        })
    }

    /// The table `name` in the schema of `logs`.
    pub(super) fn beside(&self, name: &str) -> Relation {
        Relation { schema: self.table.schema.clone(), name: name.to_owned() }
    }

    /// Creates `name` as a table of the same shape, empty and not attached. Leaves out the constraints in `later`: those
    /// that existing rows may violate.
    async fn create_like(&self, client: &Client, name: &Relation, later: &[(String, String)]) -> Result<(), Error> {
        // Not INCLUDING ALL: ATTACH creates the indexes, and an identity column comes from the parent.
        let compression = if self.server_version >= 140_000 { " INCLUDING COMPRESSION" } else { "" };
        let mut sql = format!(
            "CREATE TABLE {name} (LIKE {} INCLUDING DEFAULTS INCLUDING CONSTRAINTS INCLUDING GENERATED INCLUDING STORAGE \
             INCLUDING STATISTICS INCLUDING COMMENTS{compression}){}",
            self.table, self.tablespace
        );
        for (constraint, _) in later {
            sql.push_str(&format!("; ALTER TABLE {name} DROP CONSTRAINT {}", quoted(constraint)));
        }
        client.batch_execute(&sql).await?;
        give_to_owner(client, name, &self.table).await
    }

    /// The CHECK constraints that are NOT VALID, as (name, definition).
    async fn not_valid(&self, client: &Client) -> Result<Vec<(String, String)>, Error> {
        let rows = client
            .query(
                "SELECT conname::text, pg_get_constraintdef(oid) FROM pg_constraint \
                 WHERE conrelid = $1 AND contype = 'c' AND NOT convalidated",
                &[&self.oid],
            )
            .await?;
        Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
    }

    /// The columns that can be written, separated by commas.
    async fn columns(&self, client: &Client) -> Result<String, Error> {
        let rows = client
            .query(
                "SELECT attname::text FROM pg_attribute \
                 WHERE attrelid = $1 AND attnum > 0 AND NOT attisdropped AND attgenerated = '' ORDER BY attnum",
                &[&self.oid],
            )
            .await?;
        Ok(rows.iter().map(|row| quoted(row.get(0))).collect::<Vec<_>>().join(", "))
    }

    /// Whether other tables have foreign keys to it. Partitions can then be dropped only when they are detached.
    async fn is_referred_to(&self, client: &Client) -> Result<bool, Error> {
        let sql = "SELECT EXISTS (SELECT FROM pg_constraint WHERE contype = 'f' AND confrelid = $1)";
        Ok(client.query_one(sql, &[&self.oid]).await?.get(0))
    }

    async fn partitions(&self, client: &Client) -> Result<Vec<Partition>, StoreError> {
        // The bounds are read as they were written in the same session, so its time zone and DateStyle do not matter.
        let rows = client
            .query(
                "SELECT n.nspname::text, c.relname::text, c.relkind = 'r', \
                 coalesce((regexp_match(b.bound, 'FROM [(]''([^'']*)'''))[1]::timestamptz, '-infinity'), \
                 coalesce((regexp_match(b.bound, 'TO [(]''([^'']*)'''))[1]::timestamptz, 'infinity') \
                 FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid JOIN pg_namespace n ON n.oid = c.relnamespace, \
                 LATERAL (SELECT pg_get_expr(c.relpartbound, c.oid) AS bound) b \
                 WHERE i.inhparent = $1 AND b.bound <> 'DEFAULT' ORDER BY 4",
                &[&self.oid],
            )
            .await
            .map_err(failed("listing the partitions of logs"))?;
        let partition = |row: &tokio_postgres::Row| Partition {
            relation: Relation { schema: row.get(0), name: row.get(1) },
            is_plain: row.get(2),
            from_us: row.get::<_, Time>(3).0,
            to_us: row.get::<_, Time>(4).0,
        };
        Ok(rows.iter().map(partition).collect())
    }
}

/// Whether TimescaleDB divides `table`. A database can use TimescaleDB for other tables only.
pub(super) async fn is_hypertable(client: &Client, table: &Relation) -> Result<bool, Error> {
    let view = "SELECT to_regclass('timescaledb_information.hypertables') IS NOT NULL";
    if !client.query_typed_one(view, &[]).await?.get::<_, bool>(0) {
        return Ok(false);
    }
    let found = "SELECT FROM timescaledb_information.hypertables \
        WHERE hypertable_schema::text = $1 AND hypertable_name::text = $2";
    let name: [(&(dyn ToSql + Sync), Type); 2] = [(&table.schema, Type::TEXT), (&table.name, Type::TEXT)];
    Ok(client.query_typed_opt(found, &name).await?.is_some())
}

/// Returns `logs_pYYYYMMDD`.
pub(super) fn partition_name(day: i64) -> String {
    let (year, month, day) = timestamp::date(day);
    format!("logs_p{year:04}{month:02}{day:02}")
}

/// Whether a partition has a name that logweir gives.
fn is_daily(name: &str) -> bool {
    name.strip_prefix("logs_p").is_some_and(|day| day.len() == 8 && day.bytes().all(|byte| byte.is_ascii_digit()))
}

/// How the partition of a missing day is created.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// Its rows move from the default partition, which ATTACH reads.
    Move,
    /// The default partition is read before, and has no row of it.
    Check,
    /// Not: its rows stay in the default partition.
    Leave,
    /// Not, and nobody misses it: a large default partition, and a past day without rows.
    Skip,
}

/// Decides how the partition of `day` is created beside a default partition of this size that has `rows` of it. Pure.
fn way(day: i64, today: i64, rows: i64, default_bytes: i64) -> Way {
    match (default_bytes <= READ_BYTES_MAX, rows) {
        (true, ..=MOVED_ROWS_MAX) => Way::Move,
        (false, 0) if day > today => Way::Check,
        (false, 0) if day < today => Way::Skip,
        _ => Way::Leave,
    }
}

/// The condition that no row is of `days`, which are in order. Pure.
fn outside(days: &[i64]) -> String {
    let mut ranges: Vec<(i64, i64)> = Vec::new();
    for &day in days {
        match ranges.last_mut() {
            Some((_, end)) if *end == day => *end = day + 1,
            _ => ranges.push((day, day + 1)),
        }
    }
    let at = |day: i64| timestamp::text(day * DAY_US);
    let outside = |&(from, to): &(i64, i64)| format!("(ts < '{}' OR ts >= '{}')", at(from), at(to));
    ranges.iter().map(outside).collect::<Vec<_>>().join(" AND ")
}

/// Creates the default partition if there is none, then the partitions of `days` around `today`. One that cannot be
/// created does not keep the others from being created, unless a lock or a time limit ended the attempt.
pub(super) async fn make_partitions(
    client: &Client,
    mut logs: Logs,
    today: i64,
    days: std::ops::RangeInclusive<i64>,
) -> Result<(), StoreError> {
    let mut failures = Failures::default();
    if logs.default.is_none() {
        let made = make_default(client, &logs).await;
        failures.add(made.map(|default| logs.default = Some(default)));
    }
    if let Some(default) = &logs.default {
        // Of an attempt that was interrupted.
        drop_check(client, default).await?;
    }
    let partitions = logs.partitions(client).await?;
    // Also a partition of another size, or one whose name the operator chose, counts for its days.
    let has_one = |day: i64| {
        let (from_us, to_us) = (day * DAY_US, (day + 1) * DAY_US);
        partitions.iter().any(|partition| partition.from_us < to_us && from_us < partition.to_us)
    };
    let (mut empty, mut left) = (Vec::new(), Vec::new());
    for day in days.map(|day| today + day).filter(|&day| !has_one(day)) {
        let (rows, bytes) = match &logs.default {
            Some(default) => in_default(client, default, day).await?,
            None => (0, 0),
        };
        match way(day, today, rows, bytes) {
            Way::Move => failures.keep(make_partition(client, &logs, day, rows).await)?,
            Way::Check => empty.push(day),
            Way::Leave => left.push(day),
            Way::Skip => {}
        }
    }
    if let Some(default) = logs.default.as_ref().filter(|_| !empty.is_empty()) {
        let made = make_empty_partitions(client, &logs, default, &empty).await;
        // Whatever happened: nothing is refused for longer than it has to be.
        let dropped = drop_check(client, default).await;
        failures.keep(made.and(dropped))?;
    }
    if let (Some(default), Some(day)) = (&logs.default, left.first()) {
        let (day, others) = (timestamp::text(day * DAY_US), left.len() - 1);
        let others = if others > 0 { format!(" (and of {others} more days)") } else { String::new() };
        failures.add(Err(StoreError::Systemic(format!(
            "records of the day that begins at {}{others} stay in {default}, because there are too many to move them while \
             others are written; they are found, and expire, more slowly than in a partition of their own. The next days get \
             their partitions, so nothing has to be done; to divide {default} see \"Large default partition\" in operations.md",
            day.trim_end_matches(".000000Z")
        ))));
    }
    failures.first()
}

/// The number of rows of `day` in the default partition, up to one more than can move, and its size in bytes.
async fn in_default(client: &Client, default: &Relation, day: i64) -> Result<(i64, i64), StoreError> {
    let sql = format!(
        "SELECT (SELECT count(*) FROM (SELECT FROM {default} WHERE ts >= $1 AND ts < $2 LIMIT {MOVED_ROWS_MAX} + 1) found), \
         (SELECT coalesce(sum(pg_relation_size(relid)), 0)::bigint FROM pg_partition_tree($3::text::regclass))"
    );
    let (from, to) = (Time(day * DAY_US), Time((day + 1) * DAY_US));
    let name = default.to_string();
    let what = format!("counting rows in {default}");
    let row = in_transaction(client, &what, async { client.query_one(&sql, &[&from, &to, &name]).await }).await?;
    Ok((row.get(0), row.get(1)))
}

/// Creates the partitions of future `days` of which the default partition has no rows, without locking it while it is
/// read. Leaves [`FUTURE_CHECK`] behind.
async fn make_empty_partitions(
    client: &Client,
    logs: &Logs,
    default: &Relation,
    days: &[i64],
) -> Result<(), StoreError> {
    let what = format!("making sure that {default} has no records of the next days");
    let add = format!("ALTER TABLE {default} ADD CONSTRAINT {FUTURE_CHECK} CHECK ({}) NOT VALID", outside(days));
    in_transaction(client, &what, client.batch_execute(&add)).await?;
    let validate = format!("ALTER TABLE {default} VALIDATE CONSTRAINT {FUTURE_CHECK}");
    match in_transaction_with(VALIDATE_LIMITS, client, &what, client.batch_execute(&validate)).await {
        // The client's limit of a step, or a row that came in just before the constraint: see the next round.
        Err(StoreError::Systemic(text)) => return Err(StoreError::Transient(text)),
        done => done?,
    }
    let mut failures = Failures::default();
    for &day in days {
        failures.keep(make_partition(client, logs, day, 0).await)?;
    }
    failures.first()
}

/// Drops [`FUTURE_CHECK`] if it is there.
async fn drop_check(client: &Client, default: &Relation) -> Result<(), StoreError> {
    let what = format!("dropping constraint {FUTURE_CHECK} of {default}");
    let found = format!(
        "SELECT EXISTS (SELECT FROM pg_constraint WHERE conname = '{FUTURE_CHECK}' AND conrelid = $1::text::regclass)"
    );
    let drop = format!("ALTER TABLE {default} DROP CONSTRAINT IF EXISTS {FUTURE_CHECK}");
    let mut attempt = 1;
    loop {
        let dropping = in_transaction(client, &what, async {
            match client.query_one(&found, &[&default.to_string()]).await?.get(0) {
                true => client.batch_execute(&drop).await,
                false => Ok(()),
            }
        });
        match dropping.await {
            // Somebody reads it.
            Err(StoreError::Transient(_)) if attempt < DROP_CHECK_ATTEMPTS => attempt += 1,
            done => return done,
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// Creates the default partition under the first free name.
pub(super) async fn make_default(client: &Client, logs: &Logs) -> Result<Relation, StoreError> {
    const WHAT: &str = "creating a default partition of logs";
    let taken: Vec<String> = client
        .query(
            "SELECT c.relname::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
             WHERE n.nspname = $1 AND starts_with(c.relname::text, $2)",
            &[&logs.table.schema, &DEFAULT_NAME],
        )
        .await
        .map_err(failed(WHAT))?
        .iter()
        .map(|row| row.get(0))
        .collect();
    let names = std::iter::once(DEFAULT_NAME.to_owned()).chain((2..).map(|n| format!("{DEFAULT_NAME}_{n}")));
    let name = names.into_iter().find(|name| !taken.contains(name)).unwrap_or_default();
    let default = logs.beside(&name);
    in_transaction(client, WHAT, async {
        logs.create_like(client, &default, &[]).await?;
        let attach = format!("ALTER TABLE {} ATTACH PARTITION {default} DEFAULT", logs.table);
        client.batch_execute(&attach).await
    })
    .await?;
    tracing::warn!(table = %default, "the table logs had no default partition; created one");
    Ok(default)
}

async fn make_partition(client: &Client, logs: &Logs, day: i64, rows: i64) -> Result<(), StoreError> {
    let name = logs.beside(&partition_name(day));
    let exists: bool = client
        .query_one("SELECT to_regclass($1) IS NOT NULL", &[&name.to_string()])
        .await
        .map_err(failed("checking for a partition"))?
        .get(0);
    if exists {
        return Err(StoreError::Systemic(format!(
            "table {name} exists but is not a partition of logs, so the records of its day stay in the default partition: \
             attach it, or rename it so that logweir can create its own"
        )));
    }
    let published = match &logs.default {
        Some(default) => Published::of(client, &logs.table, default).await.map_err(failed("reading publications"))?,
        None => Published::Nothing,
    };
    if rows > 0 && published == Published::Both {
        return Err(StoreError::Systemic(format!(
            "records of the day of {name} stay in the default partition: one publication of logs has its deletions, another \
             one has not, and subscribers of one of them would lose moved records or get them twice. Set the same `publish` \
             for both; the next days get their partitions before they have records"
        )));
    }
    let what = format!("creating partition {name}");
    let (from, to) = (timestamp::text(day * DAY_US), timestamp::text((day + 1) * DAY_US));
    let moved = in_transaction(client, &what, async {
        let later = logs.not_valid(client).await?;
        logs.create_like(client, &name, &later).await?;
        let mut moved = 0;
        let mut moving = None;
        let mut locked = None;
        if let Some(default) = &logs.default {
            // Locked before it is read, so that no row is inserted between the move and the ATTACH.
            client.batch_execute(&format!("LOCK TABLE {default} IN ACCESS EXCLUSIVE MODE")).await?;
            locked = Some(Instant::now());
            limit(client, locked).await?;
            let of_day = format!("ts >= '{from}' AND ts < '{to}'");
            let found = client.query_one(&format!("SELECT EXISTS (SELECT FROM {default} WHERE {of_day})"), &[]).await?;
            // A DELETE that finds nothing still needs a replica identity if the table is published.
            if found.get(0) {
                let columns = logs.columns(client).await?;
                limit(client, locked).await?;
                let rows = moving.insert(Moving::new(name.clone(), columns, published));
                moved = rows.take(client, default, &of_day).await?;
            }
        }
        for (constraint, definition) in &later {
            let add = format!("ALTER TABLE {name} ADD CONSTRAINT {} {definition}", quoted(constraint));
            client.batch_execute(&add).await?;
        }
        limit(client, locked).await?;
        let attach =
            format!("ALTER TABLE {} ATTACH PARTITION {name} FOR VALUES FROM ('{from}') TO ('{to}')", logs.table);
        client.batch_execute(&attach).await?;
        if let Some(moving) = moving {
            moving.put_back(client).await?;
        }
        Ok(moved)
    })
    .await?;
    tracing::info!(name = %name, moved_rows = moved, "created a partition");
    Ok(())
}

/// Limits the next statement to what is left of the time that the default partition may be locked.
async fn limit(client: &Client, locked: Option<Instant>) -> Result<(), Error> {
    let Some(locked) = locked else { return Ok(()) };
    let left = LOCKED_MAX.saturating_sub(locked.elapsed()).max(Duration::from_millis(1));
    client.batch_execute(&format!("SET LOCAL statement_timeout = '{}ms'", left.as_millis())).await
}

/// Drops the partitions of days before `first_kept`. Only those that logweir has created, by their names and bounds: one
/// that an operator attached may be an archive.
pub(super) async fn drop_partitions(client: &Client, logs: &Logs, first_kept: i64) -> Result<(), StoreError> {
    let counters = logs.beside("log_volume");
    let counted =
        format!("SELECT coalesce(sum(records), 0)::bigint FROM {counters} WHERE minute >= $1 AND minute < $2");
    let is_referred_to = logs.is_referred_to(client).await.map_err(failed("looking for foreign keys on logs"))?;
    let mut failures = Failures::default();
    for partition in logs.partitions(client).await? {
        let Partition { relation, is_plain, from_us, to_us } = &partition;
        let is_own = *is_plain && is_daily(&relation.name) && to_us - DAY_US == *from_us;
        if !is_own || *to_us > first_kept * DAY_US {
            continue;
        }
        let what = format!("dropping partition {relation}");
        let drop_it = async |limits: Limits, sql: String| {
            in_transaction_with(limits, client, &what, async {
                // From the counters: counting the rows would read the whole partition.
                let counted = client.query_one(&counted, &[&Time(*from_us), &Time(*to_us)]).await?;
                client.batch_execute(&sql).await?;
                Ok(counted.get::<_, i64>(0).unsigned_abs())
            })
            .await
        };
        let dropped = match is_referred_to {
            false => drop_it(LIMITS, format!("DROP TABLE {relation}")).await,
            true => {
                let detach = format!("ALTER TABLE {} DETACH PARTITION {relation}; DROP TABLE {relation}", logs.table);
                drop_it(DETACH_LIMITS, detach).await
            }
        };
        match dropped {
            Ok(rows) => {
                metrics::counter!("logweir_store_partitions_dropped_total").increment(1);
                metrics::counter!("logweir_store_retention_deleted_rows_total", "table" => "logs").increment(rows);
                tracing::info!(name = %relation, rows, "dropped an expired partition");
            }
            Err(error) => failures.add(Err(error)),
        }
    }
    failures.first()
}

/// Deletes rows of `table` (`logs` or its default partition) of days before `first_kept`.
pub(super) async fn delete_rows(client: &Client, table: &Relation, first_kept: i64) -> Result<(), StoreError> {
    let until = Instant::now() + DELETE_FOR;
    delete_range(client, (table, "ts", "logs"), (i64::MIN, first_kept * DAY_US), until).await
}

/// Deletes the counters of days before `first_kept` of which no record is left: a partition can have stayed, because it
/// is an operator's, or could not be dropped.
pub(super) async fn delete_counters(client: &Client, logs: &Logs, first_kept: i64) -> Result<(), StoreError> {
    const WHAT: &str = "looking for counters of expired records";
    let until = Instant::now() + DELETE_FOR;
    let counters = logs.beside("log_volume");
    let next = format!("SELECT min(minute) FROM {counters} WHERE minute >= $1 AND minute < $2");
    let found = format!("SELECT EXISTS (SELECT FROM {} WHERE ts >= $1 AND ts < $2)", logs.table);
    let end_us = first_kept * DAY_US;
    let mut from_us = i64::MIN;
    while Instant::now() < until {
        let (from, end) = (Time(from_us), Time(end_us));
        let next = in_transaction(client, WHAT, async { client.query_one(&next, &[&from, &end]).await }).await?;
        let Some(day) = next.get::<_, Option<Time>>(0).map(|minute| minute.0.div_euclid(DAY_US)) else { break };
        let day_us = (day * DAY_US, (day + 1) * DAY_US);
        let (from, to) = (Time(day_us.0), Time(day_us.1));
        let has_records = in_transaction(client, WHAT, async { client.query_one(&found, &[&from, &to]).await }).await?;
        if !has_records.get::<_, bool>(0) {
            delete_range(client, (&counters, "minute", "log_volume"), day_us, until).await?;
        }
        from_us = day_us.1;
    }
    Ok(())
}

/// Deletes the rows of a table whose `column` is in a range, a bounded number at a time, and counts them for `label`.
/// What is left at `until` is left to the next round.
async fn delete_range(
    client: &Client,
    (table, column, label): (&Relation, &str, &'static str),
    (from_us, to_us): (i64, i64),
    until: Instant,
) -> Result<(), StoreError> {
    let what = format!("deleting expired rows from {table}");
    let (from, to) = (Time(from_us), Time(to_us));
    let expired = format!("FROM {table} WHERE {column} >= $1 AND {column} < $2");
    let sql = format!("DELETE FROM {table} WHERE ctid = ANY (ARRAY(SELECT ctid {expired} LIMIT {DELETE_ROWS}))");
    let found = format!("SELECT EXISTS (SELECT {expired})");
    loop {
        let deleted = in_transaction(client, &what, async {
            // A DELETE that finds nothing still needs a replica identity if the table is published.
            match client.query_one(&found, &[&from, &to]).await?.get(0) {
                true => client.execute(&sql, &[&from, &to]).await,
                false => Ok(0),
            }
        })
        .await?;
        metrics::counter!("logweir_store_retention_deleted_rows_total", "table" => label).increment(deleted);
        if deleted < DELETE_ROWS || Instant::now() >= until {
            return Ok(());
        }
    }
}

/// Gives the tables that maintenance deletes from a replica identity: without one, a publication of all tables makes
/// every DELETE fail. FULL, not a new column with a key, which would break the other side of such a publication. With
/// `publish_via_partition_root` a subscriber is told that of `logs`, so that has it, too.
pub(super) async fn set_replica_identity(client: &Client, logs: &Logs) -> Result<(), StoreError> {
    const WHAT: &str = "setting the replica identity of tables";
    let rows = client
        .query(
            "SELECT n.nspname::text, c.relname::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
             WHERE (n.nspname = $2 AND c.relname = 'logweir_takeover' AND c.relkind = 'r' \
             OR c.oid IN (SELECT unnest(ARRAY[partrelid, partdefid]) FROM pg_partitioned_table WHERE partrelid = $1)) \
             AND (c.relreplident = 'n' OR c.relreplident = 'd' AND NOT EXISTS \
             (SELECT FROM pg_index x WHERE x.indrelid = c.oid AND x.indisprimary AND x.indisvalid))",
            &[&logs.oid, &logs.table.schema],
        )
        .await
        .map_err(failed(WHAT))?;
    let mut failures = Failures::default();
    for row in rows {
        let table = Relation { schema: row.get(0), name: row.get(1) };
        let sql = format!("ALTER TABLE {table} REPLICA IDENTITY FULL");
        failures.add(in_transaction(client, WHAT, client.batch_execute(&sql)).await);
    }
    failures.first()
}

/// Deletes the takeovers that no journal can ask for any more.
pub(super) async fn prune_takeovers(client: &Client, home: &Home, kept: i64) -> Result<(), StoreError> {
    const OLD: &str = "DELETE FROM $home.logweir_takeover t USING $home.logweir_writer w \
        WHERE w.writer_id = t.writer_id AND t.epoch <= w.epoch - $1";
    const ANY_OLD: &str = "SELECT EXISTS (SELECT FROM $home.logweir_takeover t \
        JOIN $home.logweir_writer w USING (writer_id) WHERE t.epoch <= w.epoch - $1)";
    in_transaction(client, "deleting old takeovers", async {
        if client.query_one(&home.sql(ANY_OLD), &[&kept]).await?.get(0) {
            client.execute(&home.sql(OLD), &[&kept]).await?;
        }
        Ok(())
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_large_default_partition_has_stays_there_and_future_days_get_their_partitions() {
        const TODAY: i64 = 20_000;
        let small = READ_BYTES_MAX;
        for day in TODAY - 1..=TODAY + 3 {
            assert_eq!(way(day, TODAY, 0, small), Way::Move);
            assert_eq!(way(day, TODAY, MOVED_ROWS_MAX, small), Way::Move);
            assert_eq!(way(day, TODAY, MOVED_ROWS_MAX + 1, small), Way::Leave);
            assert_eq!(way(day, TODAY, 1, small + 1), Way::Leave);
        }
        assert_eq!(way(TODAY + 1, TODAY, 0, small + 1), Way::Check);
        assert_eq!(way(TODAY, TODAY, 0, small + 1), Way::Leave, "its records would be refused for a while");
        assert_eq!(way(TODAY - 1, TODAY, 0, small + 1), Way::Skip);
    }

    #[test]
    fn days_in_a_row_are_one_range() {
        let day = |day: i64| timestamp::text(day * DAY_US);
        let range = |from, to| format!("(ts < '{}' OR ts >= '{}')", day(from), day(to));
        assert_eq!(outside(&[7]), range(7, 8));
        assert_eq!(outside(&[7, 8, 9]), range(7, 10));
        assert_eq!(outside(&[7, 9]), format!("{} AND {}", range(7, 8), range(9, 10)));
    }

    #[test]
    fn only_names_with_a_day_are_daily() {
        assert!(is_daily(&partition_name(20_000)));
        for other in ["logs_default", "logs_p2026", "logs_p202612011", "logs_p2026120a", "audit_p20261201"] {
            assert!(!is_daily(other), "{other}");
        }
    }
}
