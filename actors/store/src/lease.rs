//! The right to flush a journal's lanes, and where a rejected copy of the journal forks.

use logweir_engine::journal::{LaneId, LaneTail, Recovered};
use uuid::Uuid;

use crate::digest::Digest;
use crate::lane::LaneStart;

/// A run's claim to a journal's lease.
#[derive(Clone, Debug)]
pub struct Claim {
    /// The journal's identity.
    pub writer: Uuid,
    /// The id of this run.
    pub run: Uuid,
    /// Earlier runs, oldest first, among them the last one of which this journal knows that it held the lease. If the database's last owner is neither among them nor this run, this journal is a
    /// copy that another copy has overtaken: [`StoreError::StaleCopy`](crate::StoreError::StaleCopy).
    pub runs: Vec<Uuid>,
    /// Host and process id, for messages.
    pub owner: String,
    /// The last frame of each lane when the journal was opened. Includes every lane that the journal ever had, since
    /// the START frames list them all. Stored with the takeover and compared with the cursors.
    pub tails: Vec<(LaneId, LaneTail)>,
    /// The lanes whose first frame ever is in the journal, and its sequence number. If the cursor is below it, the journal
    /// has lost what it knew about the lane, and counts its records from that frame on.
    pub begins: Vec<(LaneId, u64)>,
    /// Whether an operator has said that no other copy of this journal is in use: the lease is granted even if the
    /// database's last owner is unknown, but not while any session of this writer is connected
    /// ([`StoreError::InUse`](crate::StoreError::InUse)).
    pub only_copy: bool,
}

impl Claim {
    /// The claim of the run that has opened a journal.
    #[must_use]
    pub fn of(recovered: &Recovered, owner: impl Into<String>) -> Self {
        Self {
            runs: recovered.runs.clone(),
            tails: recovered.lanes.iter().map(|(&lane, &tail)| (lane, tail)).collect(),
            begins: recovered.begins.iter().map(|(&lane, &seq)| (lane, seq)).collect(),
            ..Self::new(recovered.writer, recovered.run, owner)
        }
    }

    /// The claim of a journal's first run, which has no earlier runs and no frames.
    #[must_use]
    pub fn new(writer: Uuid, run: Uuid, owner: impl Into<String>) -> Self {
        let (runs, tails, begins) = (Vec::new(), Vec::new(), Vec::new());
        Self { writer, run, runs, owner: owner.into(), tails, begins, only_copy: false }
    }
}

/// The right to flush a writer's lanes.
#[derive(Clone, Debug)]
pub struct Lease {
    /// The writer.
    pub writer: Uuid,
    /// The epoch of this lease.
    pub epoch: i64,
}

/// Where this copy of a journal forks from another copy that acquired the lease: every frame above this point exists
/// only in this copy.
///
/// The database records every takeover with the journal's tails at that moment. The first takeover by an unknown run
/// after the last one by a run of this journal was made by the copy that inherited this journal's frames. That copy
/// flushes whatever was in its journal then, and everything that this journal's runs had flushed until then is stored.
///
/// `exact` means that the unknown run directly followed a run of this journal, so that its tail is the point where the
/// two journals diverged. Otherwise the other copy had run before without reaching the database. Its tail can then lie
/// above the point of divergence, and this journal's frames up to it would be treated as inherited.
/// It also assumes that the other copy's journal still exists, since that copy must flush the frames between its cursor
/// and its tail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForkPoint {
    /// The writer under which this copy's own frames are stored: the UUID of its first run that the database does not
    /// know. It is stable across retries, and no other copy has it.
    pub writer: Uuid,
    /// The lanes that the other copy or the database had. Those that are not listed belong to this copy entirely.
    pub lanes: Vec<ForkLane>,
    /// Whether the sequence numbers are exact.
    pub exact: bool,
}

/// Where a lane of a copy forks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForkLane {
    /// The lane.
    pub lane: LaneId,
    /// The last frame that the other copy has, or of which this copy has stored everything.
    pub seq: u64,
    /// If this copy has stored a part of the frame after that, which the other copy does not have: its digest. Otherwise
    /// empty, also if the takeover was recorded in a table that lacks the column.
    pub digest: Digest,
}

impl ForkLane {
    /// Where the fork's lane starts. `records` is the number of the lane's records up to `seq` as the journal has it. Inside
    /// of a frame the digest says it: whether the journal still has that frame is found out by the flush, as ever.
    #[must_use]
    pub fn start(&self, records: u64) -> LaneStart {
        let Self { lane, seq, ref digest } = *self;
        match digest.part_records() {
            Some(records) => LaneStart { lane, seq, records, digest: digest.clone() },
            None => LaneStart { lane, seq, records, digest: Digest::default() },
        }
    }
}
