//! Acquires a writer's lease, in one transaction, and opens the lanes that it covers.
//!
//! - The writer's row is locked first, so that two takeovers are serialized; then the lanes' rows, so that an open
//!   flush either commits before (and shows in the cursor) or finds itself fenced.
//! - A journal that the database does not recognize may acquire the lease if an operator says that it is the only copy,
//!   and no session of the writer is connected. One that connects later is fenced.
//! - If the journal is older than the database, its lanes are reset in the same transaction.
//! - Rows are only inserted, and updated in tables with a primary key: a publication `FOR ALL TABLES` forbids more than
//!   that. Old takeovers are removed by maintenance.

use logweir_engine::journal::LaneId;

use super::statements::{LeaseError, LeaseStatements, Purpose, Refused};
use crate::digest::Digest;
use crate::error::StoreError;
use crate::lane::{LaneRow, LaneStart};
use crate::lease::{Claim, Lease};
use crate::protocol::takeover::{Owner, lanes_at, lanes_to_reset, log_resets, next_epoch};

/// Why an attempt to acquire a lease failed.
#[derive(Debug)]
pub(crate) enum AcquireError {
    /// A session of an epoch before `epoch` holds a row, and this run may acquire the lease in that epoch.
    Held {
        #[cfg_attr(not(feature = "postgres"), allow(dead_code))] // only PostgreSQL has it
        epoch: i64,
    },
    Failed(StoreError),
}

impl From<StoreError> for AcquireError {
    fn from(error: StoreError) -> Self {
        Self::Failed(error)
    }
}

/// Acquires the lease of `claim.writer`. For a fork, `forked` lists the lanes to create.
pub(crate) async fn acquire<S: LeaseStatements>(
    session: &mut S,
    claim: &Claim,
    forked: Option<&[LaneStart]>,
) -> Result<Lease, AcquireError> {
    let writer = claim.writer;
    session.begin(Purpose::Commit).await?;
    if claim.only_copy {
        // Before the lock: a session that waits for a lock and may acquire the lease ends its holder.
        let sessions = session.other_sessions(writer).await?;
        if let Some(Owner { epoch, owner, .. }) = session.owner(writer).await?
            && sessions > 0
        {
            session.rollback().await?;
            return Err(StoreError::InUse { writer, epoch, owner, sessions }.into());
        }
    }
    let owner = match session.lock_owner(writer).await {
        Ok(owner) => owner,
        Err(LeaseError::Held) => {
            // Read without the lock: only a run that may acquire the lease may end the session that holds it.
            session.rollback().await?;
            let owner = session.owner(writer).await?;
            return Err(AcquireError::Held { epoch: next_epoch(owner.as_ref(), claim)? });
        }
        Err(LeaseError::Failed(error)) => return Err(error.into()),
    };
    let epoch = next_epoch(owner.as_ref(), claim)?;
    let reacquired = owner.is_some_and(|owner| owner.epoch == epoch);
    if !reacquired && !session.set_owner(claim, epoch).await? {
        // Another process inserted the row of the same new writer at the same time.
        let text = "two processes acquired the journal's lease at the same time".to_owned();
        return Err(StoreError::Transient(text).into());
    }
    match session.fence_lanes(writer, epoch).await {
        Ok(()) => {}
        Err(LeaseError::Held) => {
            session.rollback().await?;
            return Err(AcquireError::Held { epoch });
        }
        Err(LeaseError::Failed(error)) => return Err(error.into()),
    }
    for start in forked.unwrap_or_default() {
        session.create_lane(writer, epoch, start).await?;
    }
    let mut resets = Vec::new();
    if !reacquired {
        let lanes = session.lanes(writer).await?;
        session.record_takeover(claim, epoch, &lanes_at(claim, &lanes)).await?;
        if forked.is_none() {
            resets = lanes_to_reset(claim, &lanes);
        }
        for start in &resets {
            session.reset_lane(writer, epoch, start).await?;
        }
    }
    commit(session).await?;
    log_resets(claim, &resets);
    Ok(Lease { writer, epoch })
}

/// Reads the lane's row, or creates it, while this run holds the lease.
pub(crate) async fn open_lane<S: LeaseStatements>(
    session: &mut S,
    lease: &Lease,
    lane: LaneId,
) -> Result<LaneRow, StoreError> {
    let Lease { writer, epoch: mine } = *lease;
    session.begin(Purpose::Commit).await?;
    match session.share_owner(writer).await? {
        Some(owner) if owner.epoch == mine => {}
        Some(owner) if owner.epoch > mine => {
            return Err(StoreError::Fenced { writer, epoch: owner.epoch, mine, owner: owner.owner });
        }
        _ => return Err(StoreError::LeaseLost { writer, mine }),
    }
    // Read first: an INSERT that meets a conflict would use up a lane_id each time.
    let mut row = session.lane(writer, lane).await?;
    if row.is_none() {
        let start = LaneStart { lane, seq: 0, records: 0, digest: Digest::default() };
        session.create_lane(writer, mine, &start).await?;
        row = session.lane(writer, lane).await?;
    }
    commit(session).await?;
    row.ok_or_else(|| StoreError::Systemic(format!("the row of lane {lane} was deleted while it was being created")))
}

/// No row of a batch is in this transaction, so none can be at fault.
async fn commit<S: LeaseStatements>(session: &mut S) -> Result<(), StoreError> {
    session.commit().await.map_err(|refused| match refused {
        Refused::Failed(error) => error,
        Refused::Row { rejection, .. } => StoreError::Systemic(rejection.reason),
        Refused::Filtered => StoreError::Systemic("a trigger dropped the row of a lane or a writer".to_owned()),
    })
}
