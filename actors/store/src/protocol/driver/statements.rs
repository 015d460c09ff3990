//! What a database contributes to the protocol: its statements.
//!
//! After an error of [`StoreError`] the driver sends nothing more on the session: the database's code closes it, which
//! rolls back.

use logweir_engine::journal::LaneId;
use uuid::Uuid;

use crate::batch::Batch;
use crate::error::{Rejection, StoreError};
use crate::lane::{LaneRow, LaneStart};
use crate::lease::Claim;
use crate::protocol::requests::KeyRow;
use crate::protocol::rows::{Row, Rows};
use crate::protocol::sample::Sample;
use crate::protocol::takeover::{LaneAt, Owner};
use crate::protocol::volume_counter::{Counter, Key};

/// What a transaction is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// It will be committed.
    Commit,
    /// It tries rows and will be rolled back: constraints that are usually checked at the commit are checked at once.
    Try,
}

/// How rows are inserted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum How {
    /// As fast as possible. It need not be known which rows the database dropped, only that it dropped some:
    /// [`Refused::Filtered`].
    Fast,
    /// Rows that the database drops without an error are found and left out.
    Exact,
}

/// A row that the database did not take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LeftOut {
    /// Its index, from 0: among the rows that were sent, or in the batch (the driver converts).
    pub(crate) index: usize,
    /// Why.
    pub(crate) rejection: Rejection,
}

/// Why a statement that depends on the batch's rows failed.
#[derive(Debug)]
pub(crate) enum Refused {
    /// A row, or the rows together, can be the cause. The session is usable after a rollback.
    Row {
        /// Index of the row among those sent, if the database says so.
        at: Option<usize>,
        /// Why.
        rejection: Rejection,
    },
    /// The database took fewer rows than were sent, and said nothing: a trigger of the operator dropped them.
    #[cfg_attr(not(feature = "postgres"), allow(dead_code))] // only PostgreSQL has it
    Filtered,
    /// Anything else.
    Failed(StoreError),
}

impl From<StoreError> for Refused {
    fn from(error: StoreError) -> Self {
        Self::Failed(error)
    }
}

/// One step of a lane's cursor.
pub(crate) struct Step<'a> {
    /// The writer.
    pub(crate) writer: Uuid,
    /// The epoch that this process holds.
    pub(crate) epoch: i64,
    /// The lane's `lane_id`, as this process knows it.
    pub(crate) lane_id: i64,
    /// From where to where.
    pub(crate) batch: &'a Batch,
    /// Rows to be inserted.
    pub(crate) rows: u64,
    /// Records that another frame with the same request has stored: the lane accounts for them as inherited.
    pub(crate) repeated: u64,
    /// Records to be dead-lettered.
    pub(crate) dead: u64,
}

/// A dead letter to be written.
pub(crate) struct Letter<'a> {
    pub(crate) row: Row<'a>,
    pub(crate) rejection: &'a Rejection,
}

/// A session and its transaction.
pub(crate) trait Transaction {
    async fn begin(&mut self, purpose: Purpose) -> Result<(), StoreError>;

    /// Commits. [`Refused::Row`] if a deferred constraint or trigger of the operator refused rows.
    async fn commit(&mut self) -> Result<(), Refused>;

    async fn rollback(&mut self) -> Result<(), StoreError>;

    /// Reads the writer's row.
    async fn owner(&mut self, writer: Uuid) -> Result<Option<Owner>, StoreError>;

    /// Reads a lane's row.
    async fn lane(&mut self, writer: Uuid, lane: LaneId) -> Result<Option<LaneRow>, StoreError>;
}

/// The statements of a flush.
pub(crate) trait FlushStatements: Transaction {
    /// Moves the cursor and the counters if epoch, cursor, number of accounted records and `lane_id` are the expected
    /// ones and, for a batch that begins inside of a frame, if the digest is that frame's. Returns whether it did.
    async fn move_cursor(&mut self, step: &Step<'_>) -> Result<bool, StoreError>;

    /// Inserts `rows`, which are in the order of their keys, unless their keys are known. Returns the rows of all keys,
    /// locked until the end of the transaction; none if the database cannot remember requests yet.
    async fn claim_keys(&mut self, rows: &[KeyRow]) -> Result<Vec<KeyRow>, StoreError>;

    /// Writes rows that [`claim_keys`](Self::claim_keys) has locked.
    async fn update_keys(&mut self, rows: &[KeyRow]) -> Result<(), StoreError>;

    /// Counts [`Step::repeated`] records of the current step.
    async fn count_repeated(&mut self, step: &Step<'_>) -> Result<(), StoreError>;

    /// Inserts `rows`, and counts those that were inserted in `volume`. Returns the rows that it left out although the
    /// transaction can go on.
    async fn insert<'a>(&mut self, rows: Rows<'a>, volume: &mut Counter<'a>, how: How)
    -> Result<Vec<LeftOut>, Refused>;

    /// Returns the rows that the database does not take when each is inserted alone. In a transaction that is rolled
    /// back.
    async fn probe(&mut self, rows: &[Row<'_>]) -> Result<Vec<LeftOut>, StoreError> {
        let mut found = Vec::new();
        for (index, row) in rows.iter().enumerate() {
            self.begin(Purpose::Try).await?;
            let outcome = self.insert(Rows::list(std::slice::from_ref(row)), &mut Counter::default(), How::Exact).await;
            self.rollback().await?;
            match outcome {
                Ok(left_out) => found.extend(left_out.into_iter().map(|left| LeftOut { index, ..left })),
                Err(Refused::Row { rejection, .. }) => found.push(LeftOut { index, rejection }),
                Err(Refused::Filtered) => found.push(LeftOut { index, rejection: filtered() }),
                Err(Refused::Failed(error)) => return Err(error),
            }
        }
        Ok(found)
    }

    /// Counts `dead` rows of the current step as dead letters instead.
    async fn recount(&mut self, step: &Step<'_>, dead: u64) -> Result<(), StoreError>;

    async fn insert_dead_letters(&mut self, step: &Step<'_>, letters: &[Letter<'_>]) -> Result<(), StoreError>;

    /// Adds to the volume counters, then reads the lane's row back: the cursor and the number of accounted records. One
    /// method, so that a database can do both in one round trip.
    async fn count_and_read_back(
        &mut self,
        step: &Step<'_>,
        volume: Vec<(Key<'_>, i64)>,
    ) -> Result<(u64, u64), StoreError>;

    /// Returns a record that the table holds, if it is quick to find.
    async fn stored_record(&mut self) -> Result<Option<Sample>, StoreError>;
}

/// Why a statement of an acquisition failed.
#[derive(Debug)]
pub(crate) enum LeaseError {
    /// Another session holds the row.
    #[cfg_attr(not(feature = "postgres"), allow(dead_code))] // only PostgreSQL has it
    Held,
    /// Anything else.
    Failed(StoreError),
}

impl From<StoreError> for LeaseError {
    fn from(error: StoreError) -> Self {
        Self::Failed(error)
    }
}

/// The statements that acquire a lease and open a lane.
pub(crate) trait LeaseStatements: Transaction {
    /// Reads the writer's row and locks it against other acquisitions.
    async fn lock_owner(&mut self, writer: Uuid) -> Result<Option<Owner>, LeaseError>;

    /// Counts the other sessions of the writer that are connected.
    async fn other_sessions(&mut self, writer: Uuid) -> Result<i64, StoreError>;

    /// Reads the writer's row and keeps others from acquiring the lease until the end of the transaction.
    async fn share_owner(&mut self, writer: Uuid) -> Result<Option<Owner>, StoreError>;

    /// Writes the writer's row with `epoch`, if the stored epoch is lower. Returns whether it did.
    async fn set_owner(&mut self, claim: &Claim, epoch: i64) -> Result<bool, StoreError>;

    /// Gives all lanes of the writer the epoch, which waits for their open flushes.
    async fn fence_lanes(&mut self, writer: Uuid, epoch: i64) -> Result<(), LeaseError>;

    /// Reads all lanes of the writer, by number.
    async fn lanes(&mut self, writer: Uuid) -> Result<Vec<LaneRow>, StoreError>;

    /// Creates a lane's row, unless it exists.
    async fn create_lane(&mut self, writer: Uuid, epoch: i64, start: &LaneStart) -> Result<(), StoreError>;

    /// Lets a lane start again at `start`, under a `lane_id` that no lane has had.
    async fn reset_lane(&mut self, writer: Uuid, epoch: i64, start: &LaneStart) -> Result<(), StoreError>;

    /// Records the takeover with the state of all lanes.
    async fn record_takeover(&mut self, claim: &Claim, epoch: i64, lanes: &[LaneAt]) -> Result<(), StoreError>;
}

/// The code of a record that a trigger of the operator dropped without an error.
pub(crate) const FILTERED: &str = "filtered";

/// Why a record that a trigger dropped is a dead letter.
pub(crate) fn filtered() -> Rejection {
    Rejection {
        code: FILTERED.to_owned(),
        reason:
            "a trigger on table logs dropped the record without an error; if that is intended, discard such records \
                 before they are stored (a filter at the sender), and purge these dead letters"
                .to_owned(),
    }
}
