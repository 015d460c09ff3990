//! The statements that acquire a writer's lease and open its lanes.

use logweir_engine::clock::wall_us;
use logweir_engine::journal::LaneId;
use logweir_record::timestamp;
use rusqlite::{Connection, Row, params};
use uuid::Uuid;

use super::connection::failed;
use super::lane_row::all_lanes;
use super::session::{SqliteSession, at_once};
use crate::digest::Digest;
use crate::error::StoreError;
use crate::lane::{LaneRow, LaneStart};
use crate::lease::{Claim, Lease};
use crate::protocol::driver::lease::{AcquireError, acquire, open_lane as open};
use crate::protocol::driver::statements::{LeaseError, LeaseStatements, Transaction as _};
use crate::protocol::takeover::{LaneAt, Owner, TAKEOVERS_MAX, TakeoverRow};

/// Acquires the lease of `claim.writer`. For a fork, `forked` lists the lanes to create.
pub(super) fn acquire_lease(
    connection: &Connection,
    claim: &Claim,
    forked: Option<&[LaneStart]>,
) -> Result<Lease, StoreError> {
    let mut session = SqliteSession::new(connection, "acquiring the journal's lease");
    at_once(acquire(&mut session, claim, forked)).map_err(|error| match error {
        AcquireError::Failed(error) => error,
        AcquireError::Held { .. } => StoreError::Transient("the database is locked".to_owned()),
    })
}

/// Reads the lane's row, or creates it while this run holds the lease.
pub(super) fn open_lane(connection: &Connection, lease: &Lease, lane: LaneId) -> Result<LaneRow, StoreError> {
    at_once(open(&mut SqliteSession::new(connection, "opening the lane"), lease, lane))
}

/// A transaction has the whole file to itself: no row is held by another session.
impl LeaseStatements for SqliteSession<'_> {
    async fn lock_owner(&mut self, writer: Uuid) -> Result<Option<Owner>, LeaseError> {
        Ok(self.owner(writer).await?)
    }

    async fn other_sessions(&mut self, _: Uuid) -> Result<i64, StoreError> {
        // SQLite does not say who has the file open. A process that has is fenced.
        Ok(0)
    }

    async fn share_owner(&mut self, writer: Uuid) -> Result<Option<Owner>, StoreError> {
        self.owner(writer).await
    }

    async fn set_owner(&mut self, claim: &Claim, epoch: i64) -> Result<bool, StoreError> {
        let set = self.connection.execute(
            "INSERT INTO logweir_writer (writer_id, epoch, run_id, owner, taken_at) VALUES (?1, ?2, ?3, ?4, ?5) \
             ON CONFLICT (writer_id) DO UPDATE SET epoch = excluded.epoch, run_id = excluded.run_id, \
             owner = excluded.owner, taken_at = excluded.taken_at WHERE epoch < excluded.epoch",
            params![claim.writer, epoch, claim.run, claim.owner, timestamp::text(wall_us())],
        );
        Ok(self.failed(set)? == 1)
    }

    async fn fence_lanes(&mut self, writer: Uuid, epoch: i64) -> Result<(), LeaseError> {
        let sql = "UPDATE logweir_lane SET epoch = ?2 WHERE writer_id = ?1 AND epoch < ?2";
        self.failed(self.connection.execute(sql, params![writer, epoch]))?;
        Ok(())
    }

    async fn lanes(&mut self, writer: Uuid) -> Result<Vec<LaneRow>, StoreError> {
        self.failed(all_lanes(self.connection, writer))
    }

    async fn create_lane(&mut self, writer: Uuid, epoch: i64, start: &LaneStart) -> Result<(), StoreError> {
        let (seq, records) = (start.seq.cast_signed(), start.records.cast_signed());
        let created = self.connection.execute(
            "INSERT INTO logweir_lane (writer_id, lane, epoch, last_seq, inherited, digest) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6) ON CONFLICT (writer_id, lane) DO NOTHING",
            params![writer, start.lane, epoch, seq, records, start.digest.as_bytes()],
        );
        self.failed(created).map(drop)
    }

    async fn reset_lane(&mut self, writer: Uuid, epoch: i64, start: &LaneStart) -> Result<(), StoreError> {
        let sql = "DELETE FROM logweir_lane WHERE writer_id = ?1 AND lane = ?2";
        self.failed(self.connection.execute(sql, params![writer, start.lane]))?;
        // AUTOINCREMENT gives the new row a number that no lane has had.
        self.create_lane(writer, epoch, start).await
    }

    async fn record_takeover(&mut self, claim: &Claim, epoch: i64, lanes: &[LaneAt]) -> Result<(), StoreError> {
        let now = timestamp::text(wall_us());
        let record = |at: &LaneAt| {
            self.connection.execute(
                "INSERT INTO logweir_takeover (writer_id, epoch, run_id, run_before, owner, taken_at, lane, tail_seq, \
                 cursor_seq, digest) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
                params![
                    claim.writer,
                    epoch,
                    claim.run,
                    claim.runs.last(),
                    claim.owner,
                    now,
                    at.lane,
                    at.tail_seq.cast_signed(),
                    at.cursor_seq.cast_signed(),
                    at.digest.as_bytes()
                ],
            )
        };
        self.failed(lanes.iter().try_for_each(|at| record(at).map(drop)))
    }
}

/// Deletes the takeovers that no journal can ask for any more.
pub(super) fn prune(connection: &Connection) -> Result<(), StoreError> {
    let sql = "DELETE FROM logweir_takeover WHERE epoch <= \
        (SELECT epoch - ?1 FROM logweir_writer AS w WHERE w.writer_id = logweir_takeover.writer_id)";
    connection.execute(sql, [TAKEOVERS_MAX]).map(drop).map_err(failed("deleting old takeovers"))
}

/// Returns the writer's takeovers, in order.
pub(super) fn history(connection: &Connection, writer: Uuid) -> rusqlite::Result<Vec<TakeoverRow>> {
    let mut statement = connection.prepare(
        "SELECT epoch, run_id, run_before, lane, tail_seq, cursor_seq, digest FROM logweir_takeover \
         WHERE writer_id = ?1 ORDER BY epoch, lane",
    )?;
    let takeover = |row: &Row<'_>| {
        Ok(TakeoverRow {
            epoch: row.get(0)?,
            run: row.get(1)?,
            run_before: row.get(2)?,
            at: LaneAt {
                lane: row.get(3)?,
                tail_seq: row.get::<_, i64>(4)?.cast_unsigned(),
                cursor_seq: row.get::<_, i64>(5)?.cast_unsigned(),
                digest: Digest::from_bytes(row.get::<_, Option<Vec<u8>>>(6)?.unwrap_or_default()),
            },
        })
    };
    statement.query_map([writer], takeover)?.collect()
}
