//! Acquires a writer's lease, and opens the lanes that it covers.

use logweir_engine::clock::wall_us;
use logweir_engine::journal::LaneId;
use logweir_record::timestamp;
use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};
use uuid::Uuid;

use super::connection::{failed, immediate};
use super::lane_row::{all_lanes, one_lane, owner_of};
use crate::error::StoreError;
use crate::lane::{LaneRow, LaneStart};
use crate::lease::{Claim, Lease};
use crate::protocol::takeover::{Owner, TAKEOVERS_MAX, TakeoverRow, lanes_to_reset, log_resets, next_epoch, tails};

/// Acquires the lease of `claim.writer`. For a fork, `forked` lists the lanes to create.
pub(super) fn acquire_lease(
    connection: &mut Connection,
    claim: &Claim,
    forked: Option<&[LaneStart]>,
) -> Result<Lease, StoreError> {
    let failed = failed("acquiring the journal's lease");
    let transaction = immediate(connection, "acquiring the journal's lease")?;
    let owner = transaction
        .query_row("SELECT epoch, run_id, owner FROM logweir_writer WHERE writer_id = ?1", [claim.writer], |row| {
            Ok(Owner { epoch: row.get(0)?, run: row.get(1)?, owner: row.get(2)? })
        })
        .optional()
        .map_err(&failed)?;
    let epoch = next_epoch(owner.as_ref(), claim)?;
    let reacquired = owner.is_some_and(|owner| owner.epoch == epoch);
    let now = timestamp::text(wall_us());
    if !reacquired {
        transaction
            .execute(
                "INSERT INTO logweir_writer (writer_id, epoch, run_id, owner, taken_at) VALUES (?1, ?2, ?3, ?4, ?5) \
                 ON CONFLICT (writer_id) DO UPDATE SET epoch = excluded.epoch, run_id = excluded.run_id, \
                 owner = excluded.owner, taken_at = excluded.taken_at",
                params![claim.writer, epoch, claim.run, claim.owner, now],
            )
            .map_err(&failed)?;
    }
    transaction
        .execute("UPDATE logweir_lane SET epoch = ?2 WHERE writer_id = ?1", params![claim.writer, epoch])
        .map_err(&failed)?;
    for start in forked.unwrap_or_default() {
        transaction
            .execute(
                "INSERT INTO logweir_lane (writer_id, lane, epoch, last_seq, inherited) VALUES (?1, ?2, ?3, ?4, ?5) \
                 ON CONFLICT (writer_id, lane) DO NOTHING",
                params![claim.writer, start.lane, epoch, start.seq.cast_signed(), start.records.cast_signed()],
            )
            .map_err(&failed)?;
    }
    let mut resets = Vec::new();
    if !reacquired {
        let lanes = all_lanes(&transaction, claim.writer).map_err(&failed)?;
        for (lane, tail, cursor) in tails(claim, &lanes) {
            transaction
                .execute(
                    "INSERT INTO logweir_takeover (writer_id, epoch, run_id, run_before, owner, taken_at, lane, \
                     tail_seq, cursor_seq) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
                    params![
                        claim.writer,
                        epoch,
                        claim.run,
                        claim.runs.last(),
                        claim.owner,
                        now,
                        lane,
                        tail.cast_signed(),
                        cursor.cast_signed()
                    ],
                )
                .map_err(&failed)?;
        }
        transaction
            .execute(
                "DELETE FROM logweir_takeover WHERE writer_id = ?1 AND epoch <= ?2",
                params![claim.writer, epoch - TAKEOVERS_MAX],
            )
            .map_err(&failed)?;
        if forked.is_none() {
            resets = lanes_to_reset(claim, &lanes);
            reset_lanes(&transaction, claim.writer, epoch, &resets).map_err(&failed)?;
        }
    }
    transaction.commit().map_err(&failed)?;
    log_resets(claim, &resets);
    Ok(Lease { writer: claim.writer, epoch })
}

/// Resets lanes. AUTOINCREMENT gives the new rows numbers that no lane has had.
fn reset_lanes(transaction: &Transaction<'_>, writer: Uuid, epoch: i64, starts: &[LaneStart]) -> rusqlite::Result<()> {
    for start in starts {
        transaction
            .execute("DELETE FROM logweir_lane WHERE writer_id = ?1 AND lane = ?2", params![writer, start.lane])?;
        transaction.execute(
            "INSERT INTO logweir_lane (writer_id, lane, epoch, last_seq, inherited) VALUES (?1, ?2, ?3, ?4, ?5)",
            params![writer, start.lane, epoch, start.seq.cast_signed(), start.records.cast_signed()],
        )?;
    }
    Ok(())
}

pub(super) fn open_lane(connection: &mut Connection, lease: &Lease, lane: LaneId) -> Result<LaneRow, StoreError> {
    let failed = failed("opening the lane");
    let transaction = immediate(connection, "opening the lane")?;
    match owner_of(&transaction, lease.writer).map_err(&failed)? {
        Some((epoch, _)) if epoch == lease.epoch => {}
        Some((epoch, owner)) if epoch > lease.epoch => {
            return Err(StoreError::Fenced { writer: lease.writer, epoch, mine: lease.epoch, owner });
        }
        _ => return Err(StoreError::LeaseLost { writer: lease.writer, mine: lease.epoch }),
    }
    transaction
        .execute(
            "INSERT INTO logweir_lane (writer_id, lane, epoch) VALUES (?1, ?2, ?3) ON CONFLICT (writer_id, lane) DO \
             NOTHING",
            params![lease.writer, lane, lease.epoch],
        )
        .map_err(&failed)?;
    let row = one_lane(&transaction, lease.writer, lane).map_err(&failed)?;
    transaction.commit().map_err(&failed)?;
    row.ok_or_else(|| StoreError::Systemic(format!("the row of lane {lane} was deleted while it was being created")))
}

pub(super) fn history(connection: &Connection, writer: Uuid) -> rusqlite::Result<Vec<TakeoverRow>> {
    let mut statement = connection.prepare(
        "SELECT epoch, run_id, run_before, lane, tail_seq, cursor_seq FROM logweir_takeover \
         WHERE writer_id = ?1 ORDER BY epoch, lane",
    )?;
    let takeover = |row: &Row<'_>| {
        Ok(TakeoverRow {
            epoch: row.get(0)?,
            run: row.get(1)?,
            run_before: row.get(2)?,
            lane: row.get(3)?,
            tail_seq: row.get::<_, i64>(4)?.cast_unsigned(),
            cursor_seq: row.get::<_, i64>(5)?.cast_unsigned(),
        })
    };
    statement.query_map([writer], takeover)?.collect()
}
