//! The rows of lanes and writers.

use logweir_engine::journal::LaneId;
use tokio_postgres::{Client, Error, Row};
use uuid::Uuid;

use super::home::Home;
use crate::digest::Digest;
use crate::lane::LaneRow;
use crate::protocol::takeover::Owner;

/// The column `repeated` can be missing.
const LANE_SQL: &str = "SELECT lane, lane_id, epoch, last_seq, digest, rows, dead, lost, inherited, \
    coalesce((to_jsonb(l) ->> 'repeated')::bigint, 0) FROM $home.logweir_lane AS l WHERE writer_id = $1";

fn lane_row(row: &Row) -> LaneRow {
    let count = |column: usize| row.get::<_, i64>(column).cast_unsigned();
    LaneRow {
        lane: u16::try_from(row.get::<_, i32>(0)).unwrap_or(u16::MAX),
        lane_id: i64::from(row.get::<_, i32>(1)),
        epoch: row.get(2),
        last_seq: count(3),
        digest: Digest::from_bytes(row.get(4)),
        rows: count(5),
        dead_lettered: count(6),
        lost: count(7),
        inherited: count(8),
        repeated: count(9),
    }
}

/// Reads the rows of all lanes of a writer.
pub(super) async fn all_lanes(client: &Client, home: &Home, writer: Uuid) -> Result<Vec<LaneRow>, Error> {
    let rows = client.query(&home.sql(&format!("{LANE_SQL} ORDER BY lane")), &[&writer]).await?;
    Ok(rows.iter().map(lane_row).collect())
}

/// Reads the row of one lane.
pub(super) async fn lane_in(
    client: &Client,
    home: &Home,
    writer: Uuid,
    lane: LaneId,
) -> Result<Option<LaneRow>, Error> {
    let sql = home.sql(&format!("{LANE_SQL} AND lane = $2"));
    let row = client.query_opt(&sql, &[&writer, &i32::from(lane)]).await?;
    Ok(row.as_ref().map(lane_row))
}

/// Reads the row of a writer. `lock` is a locking clause, or empty.
pub(super) async fn owner_in(client: &Client, home: &Home, writer: Uuid, lock: &str) -> Result<Option<Owner>, Error> {
    let sql = format!("SELECT epoch, run_id, owner FROM {home}.logweir_writer WHERE writer_id = $1 {lock}");
    let row = client.query_opt(&sql, &[&writer]).await?;
    Ok(row.map(|row| Owner { epoch: row.get(0), run: row.get(1), owner: row.get(2) }))
}
