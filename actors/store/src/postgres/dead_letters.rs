//! Reads and replays dead letters.

use tokio_postgres::{Client, Row};

use super::connect::failed;
use super::types::Time;
use crate::dead_letter::DeadLetter;
use crate::error::StoreError;
use crate::lane::ORDINAL_BITS;
use crate::protocol::driver::statements::filtered;
use crate::protocol::raw_record::SanitizedRecord;
use crate::protocol::volume_counter::Key;

pub(super) async fn read(client: &Client, limit: u32) -> Result<Vec<DeadLetter>, StoreError> {
    let rows = client
        .query(
            "SELECT id, writer_id, lane, seq, row_no, sqlstate, reason, raw, at FROM logweir_dead_letter \
             ORDER BY at DESC, id DESC LIMIT $1",
            &[&i64::from(limit)],
        )
        .await
        .map_err(failed("reading dead letters"))?;
    let letter = |row: &Row| DeadLetter {
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

/// Inserts `record`, counts it and removes its dead letter `id`.
pub(super) async fn replay(client: &mut Client, id: i64, record: &SanitizedRecord) -> Result<(), StoreError> {
    let failed = failed("replaying a dead letter");
    let transaction = client.transaction().await.map_err(&failed)?;
    let removed =
        transaction.execute("DELETE FROM logweir_dead_letter WHERE id = $1", &[&id]).await.map_err(&failed)?;
    if removed == 0 {
        return Err(StoreError::Systemic(format!("unknown dead letter {id}: it may have been replayed or purged")));
    }
    let severity = i16::from(record.severity.number());
    let inserted = transaction
        .execute(
            "INSERT INTO logs (id, ts, severity, service, host, message, attributes) \
             VALUES ($1, $2, $3, $4, $5, $6, $7::text::jsonb)",
            &[&id, &Time(record.ts_us), &severity, &record.service, &record.host, &record.message, &record.attributes],
        )
        .await
        .map_err(&failed)?;
    if inserted == 0 {
        return Err(StoreError::Systemic(filtered().reason));
    }
    let key = Key::new(record.ts_us, &record.service, record.severity.number());
    let lane_id = i32::try_from(id >> ORDINAL_BITS).unwrap_or(i32::MAX);
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
