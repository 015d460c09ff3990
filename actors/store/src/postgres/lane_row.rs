//! The row of a lane.

use tokio_postgres::Row;

use crate::lane::LaneRow;

pub(super) const LANE_SQL: &str = "SELECT lane, lane_id, epoch, last_seq, digest, rows, dead, lost, inherited \
    FROM logweir_lane WHERE writer_id = $1";

pub(super) fn lane_row(row: &Row) -> LaneRow {
    let count = |column: usize| row.get::<_, i64>(column).cast_unsigned();
    LaneRow {
        lane: u16::try_from(row.get::<_, i32>(0)).unwrap_or(u16::MAX),
        lane_id: i64::from(row.get::<_, i32>(1)),
        epoch: row.get(2),
        last_seq: count(3),
        digest: row.get(4),
        rows: count(5),
        dead_lettered: count(6),
        lost: count(7),
        inherited: count(8),
    }
}
