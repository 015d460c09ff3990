//! Reads and replays dead letters.

use logweir_record::timestamp;
use rusqlite::{Connection, Row, params};

use super::connection::{failed, immediate};
use super::flush::{INSERT_SQL, VOLUME_SQL};
use crate::dead_letter::DeadLetter;
use crate::error::StoreError;
use crate::lane::ORDINAL_BITS;
use crate::protocol::driver::statements::filtered;
use crate::protocol::raw_record::SanitizedRecord;
use crate::protocol::volume_counter::Key;

pub(super) fn read(connection: &Connection, limit: u32) -> rusqlite::Result<Vec<DeadLetter>> {
    let mut statement = connection.prepare(
        "SELECT id, writer_id, lane, seq, row_no, sqlstate, reason, raw, at FROM logweir_dead_letter \
         ORDER BY at DESC, id DESC LIMIT ?1",
    )?;
    let letter = |row: &Row<'_>| {
        Ok(DeadLetter {
            id: row.get(0)?,
            writer: row.get(1)?,
            lane: row.get(2)?,
            seq: row.get::<_, i64>(3)?.cast_unsigned(),
            row: row.get(4)?,
            sqlstate: row.get(5)?,
            reason: row.get(6)?,
            raw: row.get(7)?,
            at_us: timestamp::parse(&row.get::<_, String>(8)?).unwrap_or_default(),
        })
    };
    statement.query_map([limit], letter)?.collect()
}

/// Inserts `record`, counts it and removes its dead letter `id`.
pub(super) fn replay(connection: &mut Connection, id: i64, record: &SanitizedRecord) -> Result<(), StoreError> {
    let failed = failed("replaying a dead letter");
    let transaction = immediate(connection, "replaying a dead letter")?;
    let removed = transaction.execute("DELETE FROM logweir_dead_letter WHERE id = ?1", [id]).map_err(&failed)?;
    if removed == 0 {
        return Err(StoreError::Systemic(format!("unknown dead letter {id}: it may have been replayed or purged")));
    }
    let severity = record.severity.number();
    let inserted = transaction
        .execute(
            INSERT_SQL,
            params![
                id,
                timestamp::text(record.ts_us),
                severity,
                record.service,
                record.host,
                record.message,
                record.attributes
            ],
        )
        .map_err(&failed)?;
    if inserted == 0 {
        return Err(StoreError::Systemic(filtered().reason));
    }
    let key = Key::new(record.ts_us, &record.service, severity);
    let lane_id = id >> ORDINAL_BITS;
    transaction
        .execute(VOLUME_SQL, params![timestamp::text(key.minute_us), key.service, severity, lane_id, 1])
        .map_err(&failed)?;
    transaction
        .execute(
            "INSERT INTO logweir_replayed (lane_id, records) VALUES (?1, 1) \
             ON CONFLICT (lane_id) DO UPDATE SET records = records + 1",
            [lane_id],
        )
        .map_err(&failed)?;
    transaction.commit().map_err(&failed)
}
