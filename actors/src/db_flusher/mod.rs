//! Stage db-flusher: one lane into the database, one transaction at a time, in order, exactly once.
//!
//! - The flusher is a *position* that moves along the lane: `(seq, records)`, always the cursor that the database has.
//!   A batch from the mailbox that starts there is flushed from memory; anything else is read from the journal. Start-up
//!   replay, catching up after an outage and recovering from a panic are that one code.
//! - No transaction begins before its frames are covered by a completed fsync.
//! - An unknown outcome (COMMIT cut off) is decided by flushing the same range again: the compare-and-set knows.
//! - The journal lets go of a segment only for a cursor that the database has confirmed.
//! - A wait for the database ends when the drain reaches `Persisting`, or at once while draining if the database is
//!   failing: the journal has everything.

mod session;

use std::sync::Arc;

use logweir_engine::codec;
use logweir_engine::drain::Phase;
use logweir_engine::fault::kill_point;
use logweir_engine::journal::{Frame, Journal, LaneId, LaneReader};
use logweir_engine::observe::Counter;
use logweir_engine::stage::{Exit, Stage, StageContext};
use tokio::time::{Duration, Instant};

pub use session::{Session, lanes_needed};

use crate::batcher::LaneLink;
use crate::breaker::{self, Allow, Breaker};
use crate::config::BatchLimits;
use crate::message::{Batch, BatchFrame};
use crate::progress::{Progress, StoreState};
use crate::store::{LaneRow, LaneWriter, StoreError};

/// How long a lane that somebody must mend (schema, permission) waits before it tries again.
const SYSTEMIC_RETRY: Duration = Duration::from_secs(5);

/// How long a connection may take to come about while draining.
const CONNECT_PATIENCE: Duration = Duration::from_secs(1);

/// Where the database is in the lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Position {
    seq: u64,
    /// Records up to and including `seq`.
    records: u64,
}

impl From<&LaneRow> for Position {
    fn from(row: &LaneRow) -> Self {
        Self { seq: row.last_seq, records: row.settled() }
    }
}

/// Why a flush did not come to a commit.
enum Interrupted {
    /// The way down has reached the point where the rest stays in the journal.
    Drained,
    /// The database's cursor is elsewhere: the position has been set to it.
    Moved,
    /// The process must end.
    Exit(Exit),
}

/// The stage. One per lane.
pub struct DbFlusher {
    context: StageContext,
    lane: LaneId,
    session: Arc<Session>,
    journal: Journal,
    link: Arc<LaneLink>,
    progress: Progress,
    limits: BatchLimits,
    breaker: Breaker,
    /// The last attempt failed.
    failing: bool,
    connection: Option<Box<dyn LaneWriter>>,
    position: Option<Position>,
    reader: Option<LaneReader>,
    row: LaneRow,
    flushed_batches: u64,
    read_back_records: u64,
}

impl DbFlusher {
    /// A flusher that has not spoken to the database yet, and will read from the journal whatever is there now.
    #[must_use]
    pub fn new(
        context: StageContext,
        lane: LaneId,
        session: Arc<Session>,
        journal: Journal,
        link: Arc<LaneLink>,
        progress: Progress,
        limits: BatchLimits,
        breaker: Breaker,
    ) -> Self {
        link.release(journal.lanes().get(&lane).copied().unwrap_or_default().seq);
        Self {
            context,
            lane,
            session,
            journal,
            link,
            progress,
            limits,
            breaker,
            failing: false,
            connection: None,
            position: None,
            reader: None,
            row: LaneRow::default(),
            flushed_batches: 0,
            read_back_records: 0,
        }
    }

    /// Brings `batch` into the database, and first whatever lies between the position and it.
    async fn settle(&mut self, mut batch: Batch) -> Result<(), Interrupted> {
        loop {
            let position = self.position().await?;
            batch.frames.retain(|frame| frame.seq > position.seq);
            if batch.frames.is_empty() {
                return Ok(()); // read from the journal in the meantime
            }
            if batch.from_seq <= position.seq {
                batch.from_seq = position.seq;
                batch.from_records = position.records;
                if !self.is_durable(&batch).await? {
                    self.link.release(batch.to_seq());
                    return Ok(());
                }
                self.reader = None; // it would read again what goes past it here
                match self.flush(&batch).await {
                    Err(Interrupted::Moved) => continue,
                    outcome => return outcome,
                }
            }
            let before = batch.from_seq;
            self.catch_up(before).await?;
            if self.position().await?.seq < before {
                // The frames before it cannot be read (yet): leave the batch to the journal, in order.
                self.link.release(batch.to_seq());
                return Ok(());
            }
        }
    }

    /// Reads the lane from the journal and flushes it until the position has passed `until_seq` or the durable end.
    async fn catch_up(&mut self, until_seq: u64) -> Result<(), Interrupted> {
        loop {
            let position = self.position().await?;
            if position.seq >= until_seq || self.context.drain.phase() >= Phase::Persisting {
                return Ok(());
            }
            let Some(batch) = self.read_batch(position).await? else { return Ok(()) };
            self.read_back_records += batch.records();
            match self.flush(&batch).await {
                Ok(()) => {}
                Err(Interrupted::Moved) => self.reader = None,
                Err(other) => {
                    self.reader = None; // it is past frames that were not committed
                    return Err(other);
                }
            }
        }
    }

    /// The next frames after `position`, as a batch; `None` at the durable end.
    async fn read_batch(&mut self, position: Position) -> Result<Option<Batch>, Interrupted> {
        let mut reader = self.reader.take().unwrap_or_else(|| self.journal.reader(self.lane, position.seq));
        let BatchLimits { rows_max, bytes_max, .. } = self.limits;
        let reading = tokio::task::spawn_blocking(move || {
            let frames = reader.next_frames(rows_max, bytes_max);
            (reader, frames.map(|frames| frames.into_iter().map(decode).collect::<Result<Vec<_>, _>>()))
        });
        let Ok((reader, frames)) = self.context.waiting(reading).await else { return Ok(None) };
        let what = match frames {
            Ok(Ok(frames)) => {
                self.reader = Some(reader);
                let (from_seq, from_records) = (position.seq, position.records);
                let batch = Batch { lane: self.lane, from_seq, from_records, generation: 0, frames };
                return Ok((!batch.frames.is_empty()).then(|| self.name_loss(batch)));
            }
            Ok(Err(undecodable)) => undecodable,
            Err(error) => format!("the journal cannot be read: {error}"),
        };
        self.stop(&what);
        self.pause(SYSTEMIC_RETRY).await?;
        Ok(None)
    }

    fn name_loss(&self, batch: Batch) -> Batch {
        let lost = batch.lost();
        if lost > 0 {
            tracing::error!(
                lane = self.lane,
                records = lost,
                after_seq = batch.from_seq,
                to_seq = batch.to_seq(),
                "records are missing from the journal (damaged, or no longer kept): counted as lost"
            );
            metrics::counter!("logweir_discarded_records_total",
                "component" => "journal", "reason" => "damaged", "intentional" => "false")
            .increment(lost);
        }
        batch
    }

    async fn is_durable(&self, batch: &Batch) -> Result<bool, Interrupted> {
        tokio::select! {
            durable = self.context.waiting(batch.is_durable(&self.journal)) => Ok(durable),
            () = given_up(&self.context, false) => Err(Interrupted::Drained),
        }
    }

    /// Flushes `batch`, which is durable and starts at the position, until it is committed or something else must happen.
    async fn flush(&mut self, batch: &Batch) -> Result<(), Interrupted> {
        loop {
            if self.position().await?.seq != batch.from_seq {
                return Err(Interrupted::Moved); // an attempt whose outcome was unknown had been committed
            }
            let Some(connection) = self.connection.as_mut() else { continue };
            let (context, failing) = (self.context.clone(), self.failing);
            let outcome = tokio::select! {
                outcome = context.waiting(connection.flush(batch)) => outcome,
                () = given_up(&context, failing) => {
                    self.connection = None; // a transaction may be open on it
                    return Err(Interrupted::Drained);
                }
            };
            match outcome {
                Ok(flushed) => {
                    self.row.rows += flushed.rows;
                    self.row.dead += flushed.dead;
                    self.row.lost += batch.lost();
                    self.row.last_seq = batch.to_seq();
                    self.committed();
                    return Ok(());
                }
                Err(StoreError::CursorMoved(row)) => {
                    if row.last_seq < batch.from_seq {
                        tracing::error!(
                            lane = self.lane,
                            database_seq = row.last_seq,
                            expected_seq = batch.from_seq,
                            "the database has gone back in time: reading the journal again from its cursor"
                        );
                    }
                    self.row = *row;
                    self.committed();
                    return Err(Interrupted::Moved);
                }
                Err(error) => self.failed(error).await?,
            }
        }
    }

    /// The position is the row's: says so to everybody who waits for it.
    fn committed(&mut self) {
        self.breaker.succeeded(Instant::now());
        self.publish_breaker();
        self.failing = false;
        self.flushed_batches += 1;
        self.position = Some(Position::from(&self.row));
        self.journal.settle(self.lane, self.row.last_seq);
        self.progress.lane_row_updated(self.row.clone());
        self.progress.lane_store_state(self.lane, StoreState::Ok);
    }

    /// Where the database is, asking it if need be.
    async fn position(&mut self) -> Result<Position, Interrupted> {
        loop {
            if let (Some(position), true) = (self.position, self.connection.is_some()) {
                return Ok(position);
            }
            match self.breaker.allow(Instant::now()) {
                Allow::Yes | Allow::Probe => {}
                Allow::No { retry_in } => {
                    self.pause(retry_in).await?;
                    continue;
                }
            }
            let session = Arc::clone(&self.session);
            let (context, failing, lane) = (self.context.clone(), self.failing, self.lane);
            let opened = tokio::select! {
                opened = context.waiting(session.open_lane(lane)) => opened,
                () = given_up(&context, failing) => return Err(Interrupted::Drained),
                () = connect_patience(&context) => return Err(Interrupted::Drained),
            };
            match opened {
                Ok((connection, row)) => {
                    self.connection = Some(connection);
                    if self.position != Some(Position::from(&row)) {
                        self.reader = None;
                    }
                    self.row = row;
                    self.committed();
                }
                Err(error) => self.failed(error).await?,
            }
        }
    }

    /// Decides by the class of the failure, and waits as long as it asks for.
    async fn failed(&mut self, error: StoreError) -> Result<(), Interrupted> {
        self.connection = None;
        self.failing = true;
        match error {
            StoreError::Transient(what) => {
                self.breaker.failed(Instant::now());
                self.publish_breaker();
                tracing::warn!(lane = self.lane, error = what, "the database did not take a batch: trying again");
                self.progress.lane_store_state(self.lane, StoreState::Failing(what));
                match self.breaker.allow(Instant::now()) {
                    Allow::No { retry_in } => self.pause(retry_in).await,
                    Allow::Yes | Allow::Probe => self.pause(Duration::from_millis(50)).await,
                }
            }
            StoreError::Fenced { .. } | StoreError::StaleCopy { .. } => {
                self.stop(&error.to_string());
                Err(Interrupted::Exit(Exit::new(Exit::FENCED, error.to_string())))
            }
            StoreError::LeaseLost { .. } => {
                tracing::error!(lane = self.lane, "{error}: taking over again");
                self.session.forget().await;
                self.pause(Duration::from_millis(50)).await
            }
            StoreError::CursorMoved(row) => {
                self.position = Some(Position::from(&*row));
                self.row = *row;
                Ok(())
            }
            StoreError::Systemic(_) | StoreError::SequenceReused { .. } => {
                self.stop(&error.to_string());
                self.pause(SYSTEMIC_RETRY).await
            }
        }
    }

    fn publish_breaker(&self) {
        breaker::publish(&self.context.name, self.breaker.state());
        self.progress.breaker_state(&self.context.name, self.breaker.state());
    }

    /// The lane stands still until somebody mends what is named; the journal keeps taking records.
    fn stop(&mut self, what: &str) {
        self.failing = true;
        tracing::error!(lane = self.lane, error = what, "the lane is stopped: mend this and it goes on by itself");
        self.progress.lane_store_state(self.lane, StoreState::Stopped(what.to_owned()));
    }

    async fn pause(&self, duration: Duration) -> Result<(), Interrupted> {
        tokio::select! {
            () = self.context.waiting(tokio::time::sleep(duration)) => Ok(()),
            () = given_up(&self.context, self.failing) => Err(Interrupted::Drained),
        }
    }
}

/// Completes when waiting for the database makes no sense any more.
async fn given_up(context: &StageContext, failing: bool) {
    let phase = if failing { Phase::Draining } else { Phase::Persisting };
    context.drain.reached(phase).await;
}

/// While draining, a connection that does not come about soon is not waited for: the database may hang.
async fn connect_patience(context: &StageContext) {
    context.drain.reached(Phase::Draining).await;
    tokio::time::sleep(CONNECT_PATIENCE).await;
}

fn decode(frame: Frame) -> Result<BatchFrame, String> {
    let chunk = codec::decode(frame.codec, &frame.payload)
        .map_err(|error| format!("frame {} of lane {} does not decode: {error}", frame.seq, frame.lane))?;
    Ok(BatchFrame {
        seq: frame.seq,
        lane_records: frame.lane_records,
        payload_crc: frame.payload_crc,
        chunk: Arc::new(chunk),
    })
}

fn ended(outcome: Result<(), Interrupted>) -> Result<(), Exit> {
    match outcome {
        Err(Interrupted::Exit(exit)) => Err(exit),
        Ok(()) | Err(Interrupted::Drained | Interrupted::Moved) => Ok(()),
    }
}

impl Stage for DbFlusher {
    type Message = Batch;

    async fn receive(&mut self, batch: Batch) -> Result<(), Exit> {
        kill_point("stage.db_flusher");
        let (from_seq, to_seq) = (batch.from_seq, batch.to_seq());
        let outcome = self.settle(batch).await;
        if matches!(outcome, Err(Interrupted::Drained)) {
            tracing::debug!(lane = self.lane, from_seq, to_seq, "left to the journal");
        }
        ended(outcome)
    }

    /// Reads from the journal what never came through the mailbox.
    async fn on_tick(&mut self) -> Result<(), Exit> {
        if self.position.is_none() {
            // Take the writer over as soon as the database answers, also when there is nothing to flush.
            if let Err(interrupted) = self.position().await {
                return ended(Err(interrupted));
            }
        }
        ended(self.catch_up(self.link.released_seq()).await)
    }

    /// Everything that is in the journal, as far as the deadline allows.
    async fn on_drain(&mut self) -> Result<(), Exit> {
        let tail = self.journal.lanes().get(&self.lane).copied().unwrap_or_default();
        ended(self.catch_up(tail.seq).await)
    }

    fn observe(&self) -> Vec<Counter> {
        vec![
            Counter { name: "flushed_batches", value: self.flushed_batches },
            Counter { name: "read_back_records", value: self.read_back_records },
            Counter { name: "position_seq", value: self.position.map_or(0, |position| position.seq) },
        ]
    }
}
