//! Reads from PostgreSQL.
//!
//! - One REPEATABLE READ, read-only transaction returns rows and cursors of one snapshot, also on a replica.
//! - No setting and no prepared statement outlives a read: a pooler may give the next transaction of this client another
//!   server process, and this one to another program. So statements are dropped, which closes them, before the end of
//!   the transaction.
//! - Rows are fetched in chunks, so that a page that has enough bytes fetches no more.
//! - A read that is dropped before its end (the client has disconnected, its time limit has passed, flushes have fallen
//!   behind) is canceled in the server, and its connection is not reused.

use std::time::Duration;

use async_trait::async_trait;
use futures_util::{TryStreamExt, pin_mut};
use logweir_record::record::{Record, Severity};
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{FromSql, Type};
use tokio_postgres::{Error, IsolationLevel, Row, Statement, Transaction};

use super::connect::describe;
use super::filter::Sql;
use super::home::{Home, KnownHome};
use super::logs::{COLUMN_NAMES, Late, find_division, find_late, page_order, union_all};
use super::pool::{Object, Pool, pool_failure};
use super::read_error::{ReadClass, read_class};
use super::types::Time;
use crate::read::{Count, LaneCursor, LogReader, ReadError, Sample, Scan, Snapshot, Volume};
use crate::throttle::{QueryThrottle, READING_MAX};
use logweir_query::Filter;
use logweir_query::facets::{self, Facets, NameCount, Names};
use logweir_query::hits::{By, Steps};
use logweir_query::page::{Direction, Found, Range};
use logweir_record::timestamp::{self, MINUTE_US};

/// Rows per fetch.
const ROWS_PER_FETCH: usize = 500;

/// Attempts of a read, each in a snapshot of its own.
const ATTEMPTS_MAX: u32 = 6;

/// Extra time that the server gets beyond its own limit before the read is canceled.
const GRACE: Duration = Duration::from_secs(2);

fn lanes_sql(lanes: &str, writers: &str) -> String {
    format!(
        "SELECT l.writer_id, w.run_id, l.lane, l.lane_id, l.last_seq, l.rows + l.dead + l.lost + l.inherited \
         FROM {lanes} l JOIN {writers} w USING (writer_id)"
    )
}

/// Reads through a pool.
pub struct PostgresReader {
    pool: Pool,
    /// Where the tables are; `None` if `search_path` decides.
    home: Option<KnownHome>,
    /// The server's limit for a statement.
    timeout: Duration,
    throttle: QueryThrottle,
}

impl PostgresReader {
    pub(super) fn new(pool: Pool, home: Option<KnownHome>, timeout: Duration, throttle: QueryThrottle) -> Self {
        Self { pool, home, timeout, throttle }
    }

    /// Returns the SQL that limits a statement: to a short time and one process while flushes are behind.
    fn limit(&self) -> String {
        match self.throttle.is_behind() {
            false => format!("SET LOCAL statement_timeout = {}", self.timeout.as_millis()),
            true => format!(
                "SET LOCAL statement_timeout = {}; SET LOCAL max_parallel_workers_per_gather = 0",
                READING_MAX.min(self.timeout).as_millis()
            ),
        }
    }

    /// The table `name` in a statement, with its schema if that is known.
    fn table(&self, name: &str) -> String {
        match self.home.as_ref().and_then(KnownHome::get) {
            Some(home) => home.table(name).to_string(),
            None => name.to_owned(),
        }
    }

    fn too_slow(&self) -> ReadError {
        ReadError::too_slow(self.timeout, self.throttle.is_behind())
    }

    fn failed(&self, error: &Error) -> ReadError {
        // Without a code, the connection failed.
        let class = error.code().map_or(ReadClass::Unavailable, |code| read_class(code.code()));
        let text = describe(error);
        match class {
            ReadClass::Canceled => self.too_slow(),
            ReadClass::Unavailable => ReadError::Unavailable(format!("reading: {text}")),
            ReadClass::Unprepared => ReadError::Unprepared(text),
            ReadClass::Unencodable => ReadError::Unanswerable(format!(
                "no record in this database can contain this text, because the database's encoding lacks a character of \
                 it: {text}; search for a part without that character"
            )),
            ReadClass::Failed => ReadError::Failed(format!("reading: {text}")),
        }
    }

    /// Runs a read. Restarts it in pieces if flushes fall behind meanwhile, and if the table was exchanged or got other
    /// partitions: a few are made one after another when the tables are new, and one each day.
    async fn throttled<T, F>(&self, reading: impl Fn() -> F) -> Result<Snapshot<T>, ReadError>
    where
        F: Future<Output = Result<Option<Snapshot<T>>, ReadError>>,
    {
        for _ in 0..ATTEMPTS_MAX {
            let done = match self.throttle.is_behind() {
                true => reading().await,
                false => tokio::select! {
                    done = reading() => done,
                    () = self.throttle.throttled() => reading().await,
                },
            };
            if let Some(done) = done.transpose() {
                return done;
            }
        }
        Err(ReadError::Unavailable("the partitions of table logs changed while it was read; ask again".to_owned()))
    }

    /// Runs `work` in one snapshot. Returns nothing if the table was exchanged, or got other partitions, meanwhile.
    async fn read<T>(
        &self,
        work: impl AsyncFnOnce(&Reading<'_, '_>) -> Result<T, ReadStop>,
    ) -> Result<Option<Snapshot<T>>, ReadError> {
        let object = self.pool.get().await.map_err(|error| ReadError::Unavailable(pool_failure(error).to_string()))?;
        let mut guard = CancelOnDrop { object: Some(object) };
        let connection = guard.object.as_mut().expect("the connection is taken only at the end");
        let (is_direct, client) = (connection.is_direct(), &mut connection.client);
        let reading = async {
            let transaction = client
                .build_transaction()
                .isolation_level(IsolationLevel::RepeatableRead)
                .read_only(true)
                .start()
                .await?;
            let limit = self.limit();
            let lanes_sql = lanes_sql(&self.table("logweir_lane"), &self.table("logweir_writer"));
            let lanes = async {
                match is_direct {
                    true => transaction.query(&transaction.prepare_cached(&lanes_sql).await?, &[]).await,
                    false => transaction.query(&lanes_sql, &[]).await,
                }
            };
            let logs = self.table("logs");
            let home = self.home.as_ref().and_then(KnownHome::get);
            let late = find_late(&*transaction, home.as_ref().map(Home::name));
            let division = find_division(&*transaction, home.as_ref().map(Home::name));
            let (limited, lanes, late, division) =
                tokio::join!(transaction.batch_execute(&limit), lanes, late, division);
            limited?;
            let lanes = lanes?.iter().map(lane).collect();
            let (late, division) = (late?.late(), division?);
            let former = division.former.as_ref().map(ToString::to_string);
            let is_moving = former.is_some();
            let reading = Reading { transaction: &transaction, logs, late, former };
            let value = match work(&reading).await {
                // The last of the former partitions was just dropped.
                Err(ReadStop::Failed(error)) if is_moving && error.code() == Some(&SqlState::UNDEFINED_TABLE) => {
                    return Ok(None);
                }
                done => done?,
            };
            let exchanged = division.was_exchanged(&*transaction, &reading.logs);
            let repartitioned = division.has_other_partitions(&*transaction, &reading.logs);
            let (exchanged, repartitioned) = tokio::join!(exchanged, repartitioned);
            if exchanged? || repartitioned? {
                return Ok(None);
            }
            transaction.commit().await?;
            Ok(Some(Snapshot { value, lanes }))
        };
        match tokio::time::timeout(self.timeout + GRACE, reading).await {
            Err(_) => Err(self.too_slow()),
            Ok(done) => {
                // An error has ended the statement too; dropping the transaction rolls it back.
                guard.finish();
                done.map_err(|stop| match stop {
                    ReadStop::Failed(error) => self.failed(&error),
                    ReadStop::Preempted => ReadError::Preempted,
                    ReadStop::Refused(error) => error,
                })
            }
        }
    }

    async fn sampled<T>(
        &self,
        sample: &Sample,
        columns: &str,
        empty: impl Fn() -> T,
        add: fn(&mut T, &Record<'_>),
    ) -> Result<Snapshot<(T, u64)>, ReadError> {
        let reading = || {
            self.read(async |reading| {
                let (transaction, logs) = (reading.transaction, reading.all(sample.range).await?);
                let (mut fold, mut records) = (empty(), 0);
                let mut pieces = self.throttle.pieces(sample.range, Direction::Backward);
                while let Some(range) = pieces.next() {
                    let records_left = sample.records_max - records;
                    let sql = sample_sql(columns, &logs, range, &sample.filter, records_left);
                    let read = pieces.read(async {
                        let statement = prepared(transaction, &sql, &RECORD).await?;
                        let rows = transaction.query_raw(&statement, sql.parameters()).await?;
                        pin_mut!(rows);
                        let mut read = 0;
                        while let Some(row) = rows.try_next().await? {
                            add(&mut fold, &record(&row));
                            read += 1;
                        }
                        Ok::<_, ReadStop>(read)
                    });
                    records += read.await.ok_or(ReadStop::Preempted)??;
                    if records >= sample.records_max {
                        break;
                    }
                }
                Ok((fold, records as u64))
            })
        };
        self.throttled(reading).await
    }

    /// Reads rows with one statement.
    async fn rows<T>(&self, sql: &Sql, types: &[Type], each: fn(&Row) -> T) -> Result<Snapshot<Vec<T>>, ReadError> {
        let reading = || {
            self.read(async |reading| {
                let rows = self.throttle.whole(rows(reading.transaction, sql, types)).await?;
                Ok(rows.iter().map(each).collect())
            })
        };
        self.throttled(reading).await
    }
}

/// A snapshot that is being read.
struct Reading<'r, 'c> {
    transaction: &'r Transaction<'c>,
    /// The table of records, and the one for late records, if there is one.
    logs: String,
    late: Option<Late>,
    /// The one with former partitions, if there is one.
    former: Option<String>,
}

impl Reading<'_, '_> {
    /// Whether a table has records of `range`.
    async fn has_some(&self, table: &str, range: Range) -> Result<bool, ReadStop> {
        let mut sql = Sql::new("SELECT EXISTS (SELECT FROM ");
        sql.push(&format!("{table} WHERE "));
        within(&mut sql, range);
        sql.push(")");
        let statement = self.transaction.prepare_typed(&sql.text, &sql.types()).await?;
        Ok(self.transaction.query_one(&statement, &sql.parameters()).await?.get(0))
    }

    /// The table for late records, if it has some of `range`.
    async fn late(&self, range: Range) -> Result<Option<String>, ReadStop> {
        let Some(late) = &self.late else { return Ok(None) };
        let table = late.table.to_string();
        if !self.has_some(&table, range).await? {
            return Ok(None);
        }
        if !late.is_protected_alike && (late.has_policies || late.logs_has_policies) {
            // Not as unprepared: the cache would answer then, which knows no policies.
            return Err(ReadStop::Refused(ReadError::Failed(format!(
                "the row security of {table} is not that of logs, so the records that this role may see are not known: give \
                 both tables the same policies"
            ))));
        }
        Ok(Some(table))
    }

    /// The tables beside `logs` that have records of `range`.
    async fn others(&self, range: Range) -> Result<Vec<String>, ReadStop> {
        let mut others: Vec<String> = self.late(range).await?.into_iter().collect();
        if let Some(former) = &self.former
            && self.has_some(former, range).await?
        {
            others.push(former.clone());
        }
        Ok(others)
    }

    /// What contains the records of `range`, for FROM.
    async fn all(&self, range: Range) -> Result<String, ReadStop> {
        Ok(union_all(COLUMN_NAMES, &self.logs, self.others(range).await?))
    }

    /// The tables that have records of `range`. Counts are made for each and added: an aggregate over both at once is
    /// several times as slow on a hypertable, and one late record would be enough.
    async fn each(&self, range: Range) -> Result<Vec<String>, ReadStop> {
        Ok(std::iter::once(self.logs.clone()).chain(self.others(range).await?).collect())
    }
}

/// Why a read ended without a result.
enum ReadStop {
    Failed(Error),
    /// Its time is up while flushes are behind.
    Preempted,
    /// It was not, or not only, run.
    Refused(ReadError),
}

impl From<Error> for ReadStop {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// A pooled connection that is canceled and discarded unless its read finishes.
struct CancelOnDrop {
    object: Option<Object>,
}

impl CancelOnDrop {
    fn finish(mut self) {
        drop(self.object.take());
    }
}

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        let Some(object) = self.object.take() else { return };
        let connection = Object::take(object);
        metrics::counter!("logweir_queries_canceled_total").increment(1);
        tokio::spawn(async move {
            if let Err(error) = connection.canceler().cancel().await {
                tracing::debug!(%error, "a query could not be canceled; its statement timeout ends it");
            }
            drop(connection);
        });
    }
}

/// Prepares a statement whose columns have the types `expected`. Refuses one that this database would evaluate
/// differently: in most encodings the numbers of characters, which sets in regular expressions consist of, are not those
/// of Unicode.
async fn prepared(transaction: &Transaction<'_>, sql: &Sql, expected: &[Type]) -> Result<Statement, ReadStop> {
    if sql.needs_unicode() {
        let row = transaction.query_one("SHOW server_encoding", &[]).await?;
        let encoding: &str = row.get(0);
        if !matches!(encoding, "UTF8" | "LATIN1") {
            return Err(ReadStop::Refused(ReadError::Unanswerable(format!(
                "the regular expression has a set with characters above ASCII, which a database with the encoding \
                 {encoding} cannot compare: write the characters outside of [], as in a|b, or search for words"
            ))));
        }
    }
    let statement = transaction.prepare_typed(&sql.text, &sql.types()).await?;
    // Another program's table can have columns of these names.
    let fits = |found: &Type, expected: &Type| match *expected == Type::TEXT {
        true => <&str as FromSql<'_>>::accepts(found),
        false => found == expected,
    };
    match statement.columns().iter().zip(expected).find(|(column, expected)| !fits(column.type_(), expected)) {
        None => Ok(statement),
        Some((column, expected)) => Err(ReadStop::Refused(ReadError::Unprepared(format!(
            "the tables are not those of logweir: {} is {}, expected {expected}",
            column.name(),
            column.type_()
        )))),
    }
}

async fn rows(transaction: &Transaction<'_>, sql: &Sql, types: &[Type]) -> Result<Vec<Row>, ReadStop> {
    let statement = prepared(transaction, sql, types).await?;
    Ok(transaction.query(&statement, &sql.parameters()).await?)
}

fn lane(row: &Row) -> LaneCursor {
    LaneCursor {
        writer: row.get(0),
        run: row.get(1),
        lane: u16::try_from(row.get::<_, i32>(2)).unwrap_or(u16::MAX),
        lane_id: row.get::<_, i32>(3).into(),
        last_seq: row.get::<_, i64>(4).cast_unsigned(),
        records: row.get::<_, i64>(5).cast_unsigned(),
    }
}

/// Types of the columns of a record, of a count, and of the results of the other statements.
const RECORD: [Type; 7] = [Type::INT8, Type::TIMESTAMPTZ, Type::INT2, Type::TEXT, Type::TEXT, Type::TEXT, Type::TEXT];
const COUNT: [Type; 4] = [Type::TIMESTAMPTZ, Type::INT2, Type::TEXT, Type::INT8];
const TOTAL: [Type; 2] = [Type::INT8, Type::INT8];
const SERVICE: [Type; 2] = [Type::TEXT, Type::INT8];

/// Columns of a record; those that a read does not need can be empty.
const COLUMNS: &str = "id, ts, severity, service, host, message, attributes::text";
const WITHOUT_MESSAGE: &str = "id, ts, severity, service, host, '' AS message, attributes::text";
const ATTRIBUTES_ONLY: &str = "id, ts, severity, '' AS service, '' AS host, '' AS message, attributes::text";

fn record(row: &Row) -> Record<'_> {
    Record {
        ts_us: row.get::<_, Time>(1).0,
        severity: u8::try_from(row.get::<_, i16>(2)).ok().and_then(Severity::from_number).unwrap_or_default(),
        service: row.get(3),
        host: row.get(4),
        message: row.get(5),
        attributes: row.get::<_, Option<&str>>(6).unwrap_or_default(),
    }
}

fn within(sql: &mut Sql, range: Range) {
    let (start, end) = (sql.time(range.start_us), sql.end(range.end_us));
    sql.push(&format!("ts >= {start} AND ts < {end}"));
}

fn sample_sql(columns: &str, logs: &str, range: Range, filter: &Filter, records_max: usize) -> Sql {
    let mut sql = Sql::new("SELECT ");
    sql.push(&format!("{columns} FROM {logs} WHERE "));
    within(&mut sql, range);
    sql.push(" AND ").filter(filter);
    let limit = sql.number(i64::try_from(records_max).unwrap_or(i64::MAX));
    sql.push(&format!(" ORDER BY ts DESC LIMIT {limit}"));
    sql
}

fn scan_sql(scan: &Scan, logs: &str) -> Sql {
    let mut sql = Sql::new("SELECT ");
    sql.push(&format!("{COLUMNS} FROM {logs} WHERE "));
    within(&mut sql, scan.range_left());
    let (sign, order) = match scan.direction {
        Direction::Backward => ("<", "DESC"),
        Direction::Forward => (">", "ASC"),
    };
    if let Some(after) = scan.after {
        let (ts, id) = (sql.time(after.ts_us), sql.number(after.id));
        sql.push(&format!(" AND (ts, id) {sign} ({ts}, {id})"));
    }
    sql.push(" AND ").filter(&scan.filter);
    let limit = sql.number(i64::try_from(scan.limit).unwrap_or(i64::MAX));
    sql.push(&format!(" ORDER BY {} LIMIT {limit}", page_order(order)));
    sql
}

async fn page(transaction: &Transaction<'_>, scan: &Scan, logs: &str) -> Result<Vec<Found>, ReadStop> {
    let sql = scan_sql(scan, logs);
    let statement = prepared(transaction, &sql, &RECORD).await?;
    let portal = transaction.bind(&statement, &sql.parameters()).await?;
    let (mut found, mut bytes) = (Vec::new(), 0);
    loop {
        let chunk = transaction.query_portal_raw(&portal, i32::try_from(ROWS_PER_FETCH).unwrap_or(i32::MAX)).await?;
        pin_mut!(chunk);
        let before = found.len();
        while let Some(row) = chunk.try_next().await? {
            if bytes < scan.bytes_max {
                let record = Found::of(row.get(0), &record(&row));
                bytes += record.bytes();
                found.push(record);
            }
        }
        if found.len() < before + ROWS_PER_FETCH || found.len() >= scan.limit {
            return Ok(found);
        }
    }
}

fn key(by: By) -> (&'static str, &'static str) {
    match by {
        By::Severity => ("severity", "''"),
        By::Service => ("0::int2", "service"),
    }
}

/// Counts per step in `range`, from `table` with the time column `ts`; each row counts `records`.
fn counts_sql(filter: &Filter, range: Range, steps: Steps, by: By, table: [&str; 3]) -> Sql {
    let [table, ts, records] = table;
    let (severity, service) = key(by);
    let mut sql = Sql::new("SELECT date_bin(");
    let (step, origin) = (sql.number(steps.step_us), sql.time(steps.range.start_us));
    sql.push(&format!(
        "{step} * interval '1 microsecond', {ts}, {origin}), {severity}, {service}, {records} FROM {table}"
    ));
    let (start, end) = (sql.time(range.start_us), sql.end(range.end_us));
    sql.push(&format!(" WHERE {ts} >= {start} AND {ts} < {end} AND ")).filter(filter);
    sql.push(" GROUP BY 1, 2, 3");
    sql
}

fn count(row: &Row) -> Count {
    let severity = u8::try_from(row.get::<_, i16>(1)).unwrap_or_default();
    (row.get::<_, Time>(0).0, severity, row.get(2), row.get::<_, i64>(3).cast_unsigned())
}

#[async_trait]
impl LogReader for PostgresReader {
    async fn records(&self, scan: &Scan) -> Result<Snapshot<Vec<Found>>, ReadError> {
        let reading = || {
            self.read(async |reading| {
                let (transaction, logs) = (reading.transaction, reading.all(scan.range_left()).await?);
                let (mut found, mut bytes) = (Vec::new(), 0);
                let mut pieces = self.throttle.pieces(scan.range_left(), scan.direction);
                while let Some(range) = pieces.next() {
                    let (limit, bytes_max) = (scan.limit - found.len(), scan.bytes_max - bytes);
                    let piece = Scan { range, limit, bytes_max, ..scan.clone() };
                    let page = pieces.read(page(transaction, &piece, &logs)).await.ok_or(ReadStop::Preempted)??;
                    bytes += page.iter().map(Found::bytes).sum::<usize>();
                    found.extend(page);
                    if found.len() >= scan.limit || bytes >= scan.bytes_max {
                        break;
                    }
                }
                Ok(found)
            })
        };
        self.throttled(reading).await
    }

    async fn count(&self, filter: &Filter, steps: Steps, by: By) -> Result<Snapshot<Vec<Count>>, ReadError> {
        let reading = || {
            self.read(async |reading| {
                let tables = reading.each(steps.range).await?;
                let mut counts = Vec::new();
                let mut pieces = self.throttle.pieces(steps.range, Direction::Backward);
                while let Some(range) = pieces.next() {
                    let read = pieces.read(async {
                        for table in &tables {
                            let sql = counts_sql(filter, range, steps, by, [table, "ts", "count(*)"]);
                            counts.extend(rows(reading.transaction, &sql, &COUNT).await?.iter().map(count));
                        }
                        Ok::<_, ReadStop>(())
                    });
                    read.await.ok_or(ReadStop::Preempted)??;
                }
                Ok(counts)
            })
        };
        self.throttled(reading).await
    }

    async fn volume(&self, filter: &Filter, steps: Steps, by: By) -> Result<Snapshot<Vec<Count>>, ReadError> {
        let table = [&self.table("log_volume"), "minute", "sum(records)::bigint"];
        let sql = counts_sql(filter, steps.range, steps, by, table);
        self.rows(&sql, &COUNT, count).await
    }

    async fn total(&self, range: Range) -> Result<Snapshot<Volume>, ReadError> {
        let mut sql = Sql::new("SELECT coalesce(sum(records), 0)::bigint, count(*) FROM ");
        sql.push(&self.table("log_volume")).push(" WHERE ");
        let start = sql.time(timestamp::clamp(range.start_us).div_euclid(MINUTE_US) * MINUTE_US);
        let end = sql.end(range.end_us);
        sql.push(&format!("minute >= {start} AND minute < {end}"));
        let volume = |row: &Row| Volume {
            records: row.get::<_, i64>(0).cast_unsigned(),
            counters: row.get::<_, i64>(1).cast_unsigned(),
        };
        let Snapshot { mut value, lanes } = self.rows(&sql, &TOTAL, volume).await?;
        Ok(Snapshot { value: value.pop().unwrap_or_default(), lanes })
    }

    async fn services(&self, range: Range) -> Result<Snapshot<Vec<NameCount>>, ReadError> {
        let mut sql = Sql::new("SELECT service, sum(records)::bigint FROM ");
        sql.push(&self.table("log_volume")).push(" WHERE ");
        let start = sql.time(timestamp::clamp(range.start_us).div_euclid(MINUTE_US) * MINUTE_US);
        let (end, limit) = (sql.end(range.end_us), sql.number(facets::SERVICES_MAX.into()));
        sql.push(&format!("minute >= {start} AND minute < {end} GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT {limit}"));
        self.rows(&sql, &SERVICE, |row| NameCount { name: row.get(0), count: row.get::<_, i64>(1).cast_unsigned() })
            .await
    }

    async fn facets(&self, sample: &Sample, into: Facets) -> Result<Snapshot<(Facets, u64)>, ReadError> {
        let columns = if into.needs_message() { COLUMNS } else { WITHOUT_MESSAGE };
        self.sampled(sample, columns, || into.clone(), Facets::add).await
    }

    async fn names(&self, sample: &Sample) -> Result<Snapshot<(Names, u64)>, ReadError> {
        self.sampled(sample, ATTRIBUTES_ONLY, Names::default, Names::add).await
    }
}
