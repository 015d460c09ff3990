//! Table `logweir_idempotency_key`: what is stored of each request that may be repeated; and the column `repeated` of
//! `logweir_lane`.
//!
//! They are created by maintenance, not by a migration: only the tables' owner can do it, and storing does not need them.
//! A role that may only write rows stores repeated requests twice until they are there, unless the same process gets both.
//!
//! A key is valid as long as its row is there. Maintenance deletes those that have [expired](crate::protocol::key_age),
//! except for requests of which a lane has stored only a part: it goes on with the rest, however late.

use tokio::time::Instant;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Error, Row, Statement};

use super::connect::failed;
use super::ddl::{Relation, give_to_owner, in_transaction};
use super::home::Home;
use super::retention::{DELETE_FOR, DELETE_ROWS};
use super::types::Time;
use crate::error::StoreError;
use crate::protocol::requests::KeyRow;

/// The table.
pub(super) const TABLE: &str = "logweir_idempotency_key";

const CREATE_SQL: &str = "CREATE TABLE IF NOT EXISTS $home.logweir_idempotency_key (key bytea PRIMARY KEY, \
    lane_id integer NOT NULL, seq bigint NOT NULL, records bigint NOT NULL, stored bigint NOT NULL, \
    at timestamptz NOT NULL);\n\
    CREATE INDEX IF NOT EXISTS logweir_idempotency_key_at_idx ON $home.logweir_idempotency_key (at);\n\
    ALTER TABLE $home.logweir_lane ADD COLUMN IF NOT EXISTS repeated bigint NOT NULL DEFAULT 0;";

/// Whether the table `$1` is there, whether the role may use it, and whether the table `$2` has the column.
const LOOK_SQL: &str = "SELECT key.oid IS NOT NULL, coalesce(has_table_privilege(key.oid, 'SELECT') AND \
    has_table_privilege(key.oid, 'INSERT') AND has_table_privilege(key.oid, 'UPDATE'), false), \
    EXISTS (SELECT FROM pg_attribute WHERE attrelid = to_regclass($2) AND attname = 'repeated' AND NOT attisdropped) \
    FROM (SELECT to_regclass($1)::oid AS oid) AS key";

/// Inserts keys that are new, locks the others, and returns the rows of all. A conflicting insertion that is not committed
/// is waited for.
const CLAIM_SQL: &str = "INSERT INTO $home.logweir_idempotency_key AS k (key, lane_id, seq, records, stored, at) \
    SELECT key, lane_id, seq, records, stored, clock_timestamp() \
    FROM unnest($1::bytea[], $2::integer[], $3::bigint[], $4::bigint[], $5::bigint[]) \
    WITH ORDINALITY AS t (key, lane_id, seq, records, stored, nth) ORDER BY nth \
    ON CONFLICT (key) DO UPDATE SET at = k.at RETURNING key, lane_id, seq, records, stored";
const UPDATE_SQL: &str = "UPDATE $home.logweir_idempotency_key AS k \
    SET lane_id = t.lane_id, seq = t.seq, records = t.records, stored = t.stored, at = clock_timestamp() \
    FROM unnest($1::bytea[], $2::integer[], $3::bigint[], $4::bigint[], $5::bigint[]) \
    AS t (key, lane_id, seq, records, stored) WHERE k.key = t.key";
/// Counts records of the current step that another frame has stored.
pub(super) const REPEATED_SQL: &str = "UPDATE $home.logweir_lane SET inherited = inherited + $3, repeated = repeated + $3 \
    WHERE writer_id = $1 AND lane = $2";

/// What of it is there.
pub(super) struct Found {
    table: bool,
    is_usable: bool,
    /// The column `repeated` of `logweir_lane`.
    pub(super) column: bool,
}

/// The statements that create the table and the column in the schema that comes first in search_path.
pub(super) fn create_sql() -> String {
    CREATE_SQL.replace("$home.", "")
}

pub(super) async fn look(client: &Client, home: &Home) -> Result<Found, Error> {
    let (keys, lanes) = (home.table(TABLE).to_string(), home.table("logweir_lane").to_string());
    let row = client.query_typed_one(LOOK_SQL, &[(&keys, Type::TEXT), (&lanes, Type::TEXT)]).await?;
    Ok(Found { table: row.get(0), is_usable: row.get(1), column: row.get(2) })
}

/// Prepares [`claim`]; `None` while the table cannot be used.
pub(super) async fn prepare(client: &Client, home: &Home) -> Result<Option<Statement>, Error> {
    let found = look(client, home).await?;
    match found.is_usable && found.column {
        true => client.prepare(&home.sql(CLAIM_SQL)).await.map(Some),
        false => Ok(None),
    }
}

/// Inserts the rows whose keys are not known, and returns the rows of all.
pub(super) async fn claim(client: &Client, statement: &Statement, rows: &[KeyRow]) -> Result<Vec<KeyRow>, Error> {
    let row = |row: &Row| KeyRow {
        key: row.get::<_, &[u8]>(0).try_into().unwrap_or([0; 24]),
        lane_id: i64::from(row.get::<_, i32>(1)),
        seq: row.get::<_, i64>(2).cast_unsigned(),
        records: row.get::<_, i64>(3).cast_unsigned(),
        stored: row.get::<_, i64>(4).cast_unsigned(),
    };
    Ok(client.query(statement, &Columns::of(rows).values()).await?.iter().map(row).collect())
}

/// Overwrites rows.
pub(super) async fn update(client: &Client, home: &Home, rows: &[KeyRow]) -> Result<(), Error> {
    client.execute(&home.sql(UPDATE_SQL), &Columns::of(rows).values()).await.map(drop)
}

/// Rows as parameters.
struct Columns<'r>(Vec<&'r [u8]>, Vec<i32>, [Vec<i64>; 3]);

impl<'r> Columns<'r> {
    fn of(rows: &'r [KeyRow]) -> Self {
        let keys = rows.iter().map(|row| &row.key[..]).collect();
        let lane_ids = rows.iter().map(|row| i32::try_from(row.lane_id).unwrap_or(i32::MAX)).collect();
        let numbers = |number: fn(&KeyRow) -> u64| rows.iter().map(|row| number(row).cast_signed()).collect();
        Self(keys, lane_ids, [numbers(|row| row.seq), numbers(|row| row.records), numbers(|row| row.stored)])
    }

    fn values(&self) -> [&(dyn ToSql + Sync); 5] {
        let Self(keys, lane_ids, [seqs, records, stored]) = self;
        [keys, lane_ids, seqs, records, stored]
    }
}

/// Creates what is missing beside `logs`.
pub(super) async fn create(client: &Client, home: &Home, logs: &Relation) -> Result<(), StoreError> {
    const WHAT: &str = "creating table logweir_idempotency_key";
    // ALTER TABLE waits for every session that has read the table.
    let found = look(client, home).await.map_err(failed(WHAT))?;
    if found.table && found.column {
        return Ok(());
    }
    in_transaction(client, WHAT, async {
        client.batch_execute(&home.sql(CREATE_SQL)).await?;
        give_to_owner(client, &home.table(TABLE), logs).await
    })
    .await
}

/// Deletes keys that were stored before `before_us`, a bounded number at a time.
pub(super) async fn delete_expired(client: &Client, home: &Home, before_us: i64) -> Result<(), StoreError> {
    const WHAT: &str = "deleting expired idempotency keys";
    let expired = home.sql(
        "FROM $home.logweir_idempotency_key AS k WHERE at < $1 AND (stored >= records OR NOT EXISTS \
         (SELECT FROM $home.logweir_lane AS l WHERE l.lane_id = k.lane_id AND l.last_seq < k.seq))",
    );
    // Those that a flush has claimed are left to the next round: the two lock keys in different orders.
    let sql = home.sql(&format!(
        "DELETE FROM $home.logweir_idempotency_key WHERE ctid = ANY (ARRAY(SELECT ctid {expired} \
         ORDER BY at LIMIT {DELETE_ROWS} FOR UPDATE OF k SKIP LOCKED))"
    ));
    let found = format!("SELECT EXISTS (SELECT {expired})");
    let (until, before) = (Instant::now() + DELETE_FOR, Time(before_us));
    loop {
        let deleted = in_transaction(client, WHAT, async {
            // A role that may only write rows fails when there is something to delete, not before.
            match client.query_one(&found, &[&before]).await?.get(0) {
                true => client.execute(&sql, &[&before]).await,
                false => Ok(0),
            }
        })
        .await?;
        metrics::counter!("logweir_store_retention_deleted_rows_total", "table" => TABLE).increment(deleted);
        if deleted < DELETE_ROWS || Instant::now() >= until {
            return Ok(());
        }
    }
}
