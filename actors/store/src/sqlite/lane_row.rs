//! The rows of lanes and writers.

use logweir_engine::journal::LaneId;
use rusqlite::{Connection, OptionalExtension, Row, params};
use uuid::Uuid;

use crate::digest::Digest;
use crate::lane::LaneRow;
use crate::protocol::takeover::Owner;

const LANE_SQL: &str = "SELECT lane, lane_id, epoch, last_seq, digest, rows, dead, lost, inherited, repeated \
    FROM logweir_lane WHERE writer_id = ?1";

fn lane_row(row: &Row<'_>) -> rusqlite::Result<LaneRow> {
    let count = |column: usize| row.get::<_, i64>(column).map(i64::cast_unsigned);
    Ok(LaneRow {
        lane: row.get(0)?,
        lane_id: row.get(1)?,
        epoch: row.get(2)?,
        last_seq: count(3)?,
        digest: Digest::from_bytes(row.get(4)?),
        rows: count(5)?,
        dead_lettered: count(6)?,
        lost: count(7)?,
        inherited: count(8)?,
        repeated: count(9)?,
    })
}

pub(super) fn all_lanes(connection: &Connection, writer: Uuid) -> rusqlite::Result<Vec<LaneRow>> {
    let mut statement = connection.prepare_cached(&format!("{LANE_SQL} ORDER BY lane"))?;
    statement.query_map([writer], lane_row)?.collect()
}

pub(super) fn one_lane(connection: &Connection, writer: Uuid, lane: LaneId) -> rusqlite::Result<Option<LaneRow>> {
    let mut statement = connection.prepare_cached(&format!("{LANE_SQL} AND lane = ?2"))?;
    statement.query_row(params![writer, lane], lane_row).optional()
}

pub(super) fn owner_of(connection: &Connection, writer: Uuid) -> rusqlite::Result<Option<Owner>> {
    let sql = "SELECT epoch, run_id, owner FROM logweir_writer WHERE writer_id = ?1";
    let owner = |row: &Row<'_>| Ok(Owner { epoch: row.get(0)?, run: row.get(1)?, owner: row.get(2)? });
    connection.prepare_cached(sql)?.query_row([writer], owner).optional()
}
