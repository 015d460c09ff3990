//! From daily partitions to a hypertable, in a database that got TimescaleDB after its tables.
//!
//! - One short transaction renames the partitioned table to [`FORMER`] and makes a hypertable of its shape in its
//!   place. It copies nothing. Lanes wait for it as for any lock, and go on in the hypertable; what is accepted is in
//!   the journal.
//! - Queries read both tables. Records move in bounded pieces, the pages of one partition from its end to its begin,
//!   each in one transaction: so each query finds each record once, and nothing that was moved is read again. A
//!   partition without records is dropped.
//! - Records of the default partition are far from the present, so they go where those of a hypertable do.
//! - Nobody but an operator begins it, since each record is written once more. From then on maintenance goes on with
//!   it.
//! - Refused: `create_hypertable(migrate_data => true)`, which takes no partitioned table and locks it while it copies;
//!   a copy while the journal keeps what comes in, which is a backlog of hours; partitions as children of the table for
//!   late records, since each query would lock all of them.
//! - Refused: copying what operators have attached to the table (triggers, policies, views, publications). They are
//!   named, and the operator decides.

use std::time::Duration;

use tokio::time::Instant;
use tokio_postgres::{Client, Error};

use super::connect::failed;
use super::ddl::{Failures, Limits, Relation, give_to_owner, in_transaction, in_transaction_with, quoted};
use super::home::Home;
use super::late::grant_like;
use super::logs::{FORMER, Logs, LogsKind};
use super::timescale::Timescale;
use super::view;
use crate::error::StoreError;

/// The exchange waits for queries that read the table, and lanes wait behind it.
const EXCHANGE_LIMITS: Limits = Limits { lock_ms: 1500, statement_s: 15 };

/// Pages per transaction at first, and by how much a piece is divided after a failure: a page can have 8 KiB of
/// records, or pointers to hundreds of large ones.
const PAGES: i64 = 512;
const DIVIDED_BY: i64 = 8;

/// How long a partition has had no records when it is dropped. A query whose snapshot is older than the moves must have
/// begun to read it: it sees the records here, not yet where they are now, and keeps it from being dropped.
const EMPTY_FOR_S: i64 = 30;

/// The comment of a partition without records, before the seconds since 1970.
const EMPTY_SINCE: &str = "logweir: empty since ";

/// A partition of a longer range than this was not made by logweir: its records are moved like those far from the
/// present, since each of its days would become a chunk.
const RANGE_MAX_US: i64 = 8 * logweir_record::timestamp::DAY_US;

/// What has to move yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartitionsLeft {
    /// Partitions, with the default one.
    pub partitions: u64,
    /// Their size with their indexes.
    pub bytes: u64,
}

const WHAT: &str = "making a hypertable of the table logs";

/// What is attached to the table `$1` and would not be in its place afterwards.
const ATTACHED_SQL: &str = "SELECT format('trigger %s', tgname) FROM pg_trigger WHERE tgrelid = $1 AND NOT tgisinternal \
    UNION ALL SELECT 'row security' FROM pg_class WHERE oid = $1 AND relrowsecurity \
    UNION ALL SELECT format('policy %s', polname) FROM pg_policy WHERE polrelid = $1 \
    UNION ALL SELECT format('rule %s', rulename) FROM pg_rewrite WHERE ev_class = $1 \
    UNION ALL SELECT DISTINCT format('view %s', r.ev_class::regclass) FROM pg_depend d JOIN pg_rewrite r ON r.oid = d.objid \
    WHERE d.classid = 'pg_rewrite'::regclass AND d.refclassid = 'pg_class'::regclass AND d.refobjid = $1 \
    AND r.ev_class <> $1 \
    UNION ALL SELECT format('foreign key %s of %s', conname, conrelid::regclass) FROM pg_constraint \
    WHERE contype = 'f' AND conparentid = 0 AND $1 IN (conrelid, confrelid) \
    UNION ALL SELECT format('constraint %s, which is not valid', conname) FROM pg_constraint \
    WHERE contype = 'c' AND conrelid = $1 AND NOT convalidated \
    UNION ALL SELECT format('publication %s', p.pubname) FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid \
    WHERE r.prrelid = $1 \
    UNION ALL SELECT format('identity column %s', attname) FROM pg_attribute \
    WHERE attrelid = $1 AND attnum > 0 AND NOT attisdropped AND attidentity <> '' \
    UNION ALL SELECT format('partition %s, which is not a plain table', c.oid::regclass) FROM pg_inherits i \
    JOIN pg_class c ON c.oid = i.inhrelid WHERE i.inhparent = $1 AND c.relkind <> 'r' ORDER BY 1";

/// Refuses a table that is not logweir's, or that has what a hypertable in its place would lack. Returns whether it is
/// to be exchanged.
pub(super) async fn check(client: &Client, logs: &Logs) -> Result<bool, StoreError> {
    match logs.kind {
        LogsKind::Hypertable => return Ok(false),
        LogsKind::Partitioned => {}
        LogsKind::Plain => {
            return Err(StoreError::Systemic(format!(
                "{} has no partitions, so it was not made by logweir: make a hypertable of it with create_hypertable",
                logs.table
            )));
        }
    }
    let attached = client.query(ATTACHED_SQL, &[&logs.oid]).await.map_err(failed(WHAT))?;
    if !attached.is_empty() {
        let attached: Vec<String> = attached.iter().map(|row| row.get(0)).collect();
        return Err(StoreError::Systemic(format!(
            "{} has what a hypertable in its place would not have: {}. Drop it or detach it, run this again, and create it \
             again for the hypertable",
            logs.table,
            attached.join(", ")
        )));
    }
    Ok(true)
}

/// Makes a hypertable of `logs`, whose records stay in [`FORMER`]. Needs the lock on maintenance, and the table for
/// late records: lanes use it from the first moment on.
pub(super) async fn exchange(client: &Client, timescale: &Timescale, logs: &Logs) -> Result<(), StoreError> {
    let (table, former) = (&logs.table, logs.beside(FORMER));
    // One that is not logweir's is told by maintenance.
    let others: Vec<&str> = logs.late.iter().map(|late| late.name.as_str()).chain([FORMER]).collect();
    let view_sql = view::change_sql(client, table, &others).await.unwrap_or_default();
    in_transaction_with(EXCHANGE_LIMITS, client, WHAT, async {
        client
            .batch_execute(&format!(
                "LOCK TABLE ONLY {table} IN ACCESS EXCLUSIVE MODE; ALTER TABLE {table} RENAME TO {}; \
                 ALTER INDEX IF EXISTS {} RENAME TO {}; CREATE TABLE {table} (LIKE {former} INCLUDING ALL){}",
                quoted(FORMER),
                logs.beside("logs_ts_idx"),
                quoted(&format!("{FORMER}_ts_idx")),
                logs.tablespace,
            ))
            .await?;
        give_to_owner(client, table, &former).await?;
        let create = format!(
            "SELECT {}($1::text::regclass, 'ts', chunk_time_interval => interval '1 day', create_default_indexes => false)",
            timescale.function("create_hypertable")
        );
        client.query(&create, &[&table.to_string()]).await?;
        grant_like(client, table, logs).await?;
        match &view_sql {
            Some(sql) => client.batch_execute(sql).await,
            None => Ok(()),
        }
    })
    .await?;
    tracing::info!(table = %table, "the table is a hypertable now; its records move from its former partitions");
    Ok(())
}

/// Moves records from [`FORMER`] until then, the newest first, and drops each partition without records, at last the
/// table. One of which no record is kept (`first_kept` is the first day that is) is left to be dropped.
pub(super) async fn move_partitions(
    client: &Client,
    home: &Home,
    logs: &Logs,
    first_kept: Option<i64>,
    until: Instant,
) -> Result<(), StoreError> {
    let Some(former) = Logs::read_former(client, home).await? else { return Ok(()) };
    let moving = "moving records from former partitions";
    let key = format!("logweir/move/{}", home.name());
    let lock = "SELECT pg_try_advisory_lock(hashtextextended($1, 0))";
    if !client.query_one(lock, &[&key]).await.map_err(failed(moving))?.get::<_, bool>(0) {
        // Another process moves them.
        return Ok(());
    }
    let moved = move_from(client, home, logs, &former, first_kept, until).await;
    let unlock = "SELECT pg_advisory_unlock(hashtextextended($1, 0))";
    let _ = client.execute(unlock, &[&key]).await;
    moved
}

async fn move_from(
    client: &Client,
    home: &Home,
    logs: &Logs,
    former: &Logs,
    first_kept: Option<i64>,
    until: Instant,
) -> Result<(), StoreError> {
    let kept_us = first_kept.map_or(i64::MIN, |day| day.saturating_mul(logweir_record::timestamp::DAY_US));
    let mut failures = Failures::default();
    let mut partitions: Vec<(Relation, bool)> = Vec::new();
    for partition in former.partitions(client).await?.into_iter().rev() {
        if partition.to_us > kept_us {
            let is_long = partition.to_us.saturating_sub(partition.from_us) > RANGE_MAX_US;
            partitions.push((partition.relation, is_long));
        }
    }
    partitions.extend(former.default.clone().map(|default| (default, true)));
    for (partition, is_far) in partitions {
        if Instant::now() >= until {
            return failures.first();
        }
        failures.add(move_partition(client, logs, &partition, is_far, until).await);
    }
    let rest = former.partitions(client).await?.len();
    if rest == 0 && Logs::read_former(client, home).await?.is_some_and(|former| former.default.is_none()) {
        let drop = format!("DROP TABLE {}", former.table);
        let what = format!("dropping {}, which has no partition any more", former.table);
        let others: Vec<&str> = logs.late.iter().map(|late| late.name.as_str()).collect();
        let view_sql = view::change_sql(client, &logs.table, &others).await.unwrap_or_default();
        let dropping = in_transaction(client, &what, async {
            if let Some(sql) = &view_sql {
                client.batch_execute(sql).await?;
            }
            client.batch_execute(&drop).await
        });
        failures.add(dropping.await);
    }
    failures.first()
}

/// Moves the records of a partition, and drops it.
async fn move_partition(
    client: &Client,
    logs: &Logs,
    partition: &Relation,
    is_far: bool,
    until: Instant,
) -> Result<(), StoreError> {
    let what = format!("moving records from {partition}");
    let name = partition.to_string();
    let preparing = in_transaction(client, &what, async {
        // A publication of all tables needs it, for each DELETE.
        let logical: bool = client.query_one("SELECT current_setting('wal_level') = 'logical'", &[]).await?.get(0);
        if logical {
            client.batch_execute(&format!("ALTER TABLE {partition} REPLICA IDENTITY FULL")).await?;
        }
        let pages = "SELECT pg_relation_size($1::text::regclass) / current_setting('block_size')::bigint";
        let pages: i64 = client.query_one(pages, &[&name]).await?.get(0);
        let beside = logs.late.as_ref().filter(|_| is_far);
        let columns = columns(client, partition, beside.unwrap_or(&logs.table)).await?;
        let all = match beside {
            Some(_) => self::columns(client, partition, &logs.table).await?,
            None => columns.clone(),
        };
        // What an operator has written into columns of his own is not lost.
        let to = if columns == all { beside.unwrap_or(&logs.table) } else { &logs.table };
        Ok((pages, to.clone(), all))
    });
    let (mut end, to, columns) = preparing.await?;
    let mut pages = PAGES;
    while end > 0 {
        if Instant::now() >= until {
            return Ok(());
        }
        let begin = (end - pages).max(0);
        match move_pages(client, &what, (partition, &to, &columns), begin..end).await {
            Ok(moved) => {
                metrics::counter!("logweir_store_partition_moved_rows_total").increment(moved);
                end = begin;
            }
            Err(StoreError::Transient(_)) if pages > 1 => pages /= DIVIDED_BY,
            Err(error) => return Err(error),
        }
    }
    let found = format!("SELECT EXISTS (SELECT FROM {partition})");
    let empty_s = "SELECT extract(epoch FROM now())::bigint, obj_description($1::text::regclass, 'pg_class')";
    let drop = format!("DROP TABLE {partition}");
    let dropping = format!("dropping {partition}, which has no records any more");
    let dropped = in_transaction(client, &dropping, async {
        if client.query_one(&found, &[]).await?.get(0) {
            return Ok(false);
        }
        let row = client.query_one(empty_s, &[&name]).await?;
        let (now_s, comment): (i64, Option<&str>) = (row.get(0), row.get(1));
        let since_s = comment.and_then(|comment| comment.strip_prefix(EMPTY_SINCE)?.parse().ok());
        match since_s.map(|since_s: i64| now_s - since_s) {
            Some(empty_s) if empty_s >= EMPTY_FOR_S => client.batch_execute(&drop).await.map(|()| true),
            Some(_) => Ok(false),
            None => {
                let mark = format!("COMMENT ON TABLE {partition} IS '{EMPTY_SINCE}{now_s}'");
                client.batch_execute(&mark).await.map(|()| false)
            }
        }
    });
    if dropped.await? {
        tracing::info!(name = %partition, "all records of a former partition have moved");
    }
    Ok(())
}

/// Moves what is in these pages of a partition. Returns the number of records.
async fn move_pages(
    client: &Client,
    what: &str,
    (partition, to, columns): (&Relation, &Relation, &str),
    pages: std::ops::Range<i64>,
) -> Result<u64, StoreError> {
    let sql = format!(
        "WITH moved AS (DELETE FROM ONLY {partition} WHERE ctid >= '({},0)' AND ctid < '({},0)' RETURNING {columns}), \
         stored AS (INSERT INTO {to} ({columns}) SELECT {columns} FROM moved RETURNING 1) \
         SELECT (SELECT count(*) FROM moved), (SELECT count(*) FROM stored)",
        pages.start, pages.end
    );
    let (moved, stored) = in_transaction(client, what, async {
        let row = client.query_one(&sql, &[]).await?;
        let (moved, stored): (i64, i64) = (row.get(0), row.get(1));
        if moved != stored {
            // The COMMIT that follows is one of nothing.
            client.batch_execute("ROLLBACK").await?;
        }
        Ok((moved, stored))
    })
    .await?;
    if moved != stored {
        return Err(StoreError::Systemic(format!(
            "{what}: a trigger on {to} drops {} of {moved} records that are stored and acknowledged, so they stay where they \
             are; let the trigger keep them",
            moved - stored
        )));
    }
    Ok(moved.unsigned_abs())
}

/// The columns that both tables have and that can be written.
async fn columns(client: &Client, from: &Relation, to: &Relation) -> Result<String, Error> {
    const SQL: &str = "SELECT string_agg(quote_ident(a.attname), ', ' ORDER BY a.attnum) \
        FROM pg_attribute a JOIN pg_attribute b USING (attname) \
        WHERE a.attrelid = $1::text::regclass AND b.attrelid = $2::text::regclass AND a.attnum > 0 \
        AND NOT a.attisdropped AND NOT b.attisdropped AND a.attgenerated = '' AND b.attgenerated = ''";
    let row = client.query_one(SQL, &[&from.to_string(), &to.to_string()]).await?;
    Ok(row.get::<_, Option<String>>(0).unwrap_or_default())
}

/// What is left of [`FORMER`].
pub(super) async fn left(client: &Client, home: &Home) -> Result<PartitionsLeft, StoreError> {
    const SQL: &str = "SELECT count(*), coalesce(sum(pg_total_relation_size(relid)), 0)::bigint \
        FROM pg_partition_tree(to_regclass($1::text)) WHERE isleaf AND level > 0";
    let row = client
        .query_one(SQL, &[&home.table(FORMER).to_string()])
        .await
        .map_err(failed("looking for former partitions"))?;
    let number = |column| row.get::<_, i64>(column).unsigned_abs();
    Ok(PartitionsLeft { partitions: number(0), bytes: number(1) })
}

/// How long a round of maintenance moves records.
pub(super) const MOVE_FOR: Duration = Duration::from_secs(240);
