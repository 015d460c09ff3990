//! Stage db-flusher: one lane into the database, one transaction at a time, in order, exactly once.
//!
//! - The flusher is a *position* that moves along the lane: `(seq, records)`, always the cursor that the database has.
//!   A batch from the mailbox that starts there is flushed from memory; anything else is read from the journal. Start-up
//!   replay, catching up after an outage and recovering from a panic are that one code.
//! - No transaction begins before its frames are covered by a completed fsync.
//! - An unknown outcome (COMMIT cut off) is decided by flushing the same range again: the compare-and-set knows.
//! - The journal lets go of a segment only for a cursor that the database has confirmed.
//! - The database may be put back to an earlier time, also while nothing is flushed: a connection that has ended is made anew at
//!   once, and a cursor below ours means to read the journal again from there. What it no longer has is named and counted as lost.
//! - A wait for the database ends when the drain reaches `Persisting`, or at once while draining if the database is
//!   failing: the journal has everything.

mod session;

use std::sync::Arc;

use logweir_engine::codec;
use logweir_engine::drain::Phase;
use logweir_engine::fault::kill_point;
use logweir_engine::journal::{Frame, Journal, LaneId, LaneTail, Reader};
use logweir_engine::observe::Counter;
use logweir_engine::stage::{Exit, Stage, StageContext};
use tokio::task::JoinHandle;
use tokio::time::{Duration, Instant};

pub use session::{Session, lanes_needed};

use crate::batcher::LaneLink;
use crate::breaker::{self, Allow, Breaker, BreakerSettings, retry};
use crate::config::BatchLimits;
use crate::message::{Batch, BatchFrame, Gap};
use crate::progress::{Progress, StoreState};
use crate::store::{LaneRow, LaneWriter, StoreError};

/// How long a lane that somebody must mend (schema, permission) waits before it tries again.
const SYSTEMIC_RETRY: Duration = Duration::from_secs(5);

/// A database that fails is left alone for a moment, for longer each time.
const BREAKER: BreakerSettings = BreakerSettings { failures_max: 3, open_ms_min: 200, open_ms_max: 5_000 };

/// By how much the moment of a new attempt is spread.
const SPREAD_MAX: Duration = Duration::from_millis(250);

/// Between two attempts of which the first failed at once.
const SHORT_PAUSE: Duration = Duration::from_millis(50);

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
        Self { seq: row.last_seq, records: row.accounted() }
    }
}

/// A batch on its way from the journal.
struct Reading {
    /// What it begins after.
    after: Position,
    /// The journal's, when it began.
    generation: u64,
    /// The lane's durable end, when it began.
    tail: LaneTail,
    task: JoinHandle<(Reader, ReadFrames)>,
}

/// The frames, or which one does not decode; or what the disk said.
type ReadFrames = std::io::Result<Result<Vec<BatchFrame>, String>>;

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
    /// A flush has failed since the last commit: that a connection comes about proves nothing then.
    flush_failing: bool,
    connection: Option<Box<dyn LaneWriter>>,
    position: Option<Position>,
    reader: Option<Reader>,
    /// What follows the batch that is being flushed, on its way from the disk.
    ahead: Option<Reading>,
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
            breaker: Breaker::new(BREAKER),
            failing: false,
            flush_failing: false,
            connection: None,
            position: None,
            reader: None,
            ahead: None,
            row: LaneRow::default(),
            flushed_batches: 0,
            read_back_records: 0,
        }
    }

    /// Brings `batch` into the database, and first whatever lies between the position and it.
    async fn commit(&mut self, mut batch: Batch) -> Result<(), Interrupted> {
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
                    self.leave_to_journal();
                    return Ok(());
                }
                (self.reader, self.ahead) = (None, None); // they would read again what goes past them here
                match self.flush(&batch).await {
                    Err(Interrupted::Moved) => self.pause_unless_moved(position).await?,
                    outcome => return outcome,
                }
                continue;
            }
            let before = batch.from_seq;
            self.catch_up(before).await?;
            if self.position().await?.seq < before {
                // The frames before it cannot be read (yet): leave the batch to the journal, in order.
                self.leave_to_journal();
                return Ok(());
            }
        }
    }

    /// Everything that the lane has now is read from the journal.
    fn leave_to_journal(&self) {
        self.link.release(self.tail().seq);
    }

    /// The lane's newest frame given out, durable or not.
    fn tail(&self) -> LaneTail {
        self.journal.lanes().get(&self.lane).copied().unwrap_or_default()
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
            if batch.to_seq() < until_seq {
                self.ahead = Some(self.begin_reading(Position { seq: batch.to_seq(), records: batch.to_records() }));
            }
            match self.flush(&batch).await {
                Ok(()) => {}
                Err(Interrupted::Moved) => self.pause_unless_moved(position).await?,
                Err(other) => return Err(other),
            }
        }
    }

    /// The next frames after `position`, as a batch; `None` at the durable end.
    ///
    /// A durable tail that cannot be read (damaged, or no longer kept) is a batch without records: it is counted as
    /// lost, or the lane could never be settled.
    async fn read_batch(&mut self, position: Position) -> Result<Option<Batch>, Interrupted> {
        let ahead = self.ahead.take().filter(|reading| reading.after == position);
        let reading = match ahead {
            Some(reading) if reading.generation == self.journal.generation() => reading,
            _ => self.begin_reading(position),
        };
        let Reading { tail, generation, task, .. } = reading;
        let what = match self.context.waiting(task).await {
            Ok((reader, Ok(Ok(mut frames)))) => {
                self.reader = Some(reader);
                if frames.is_empty() && position.seq < tail.seq {
                    frames.push(unreadable(tail));
                }
                if frames.is_empty() {
                    return Ok(None);
                }
                let (from_seq, from_records) = (position.seq, position.records);
                return Ok(Some(self.name_loss(Batch { lane: self.lane, from_seq, from_records, generation, frames })));
            }
            Ok((_, Ok(Err(undecodable)))) => undecodable,
            Ok((_, Err(error))) => format!("the journal cannot be read: {error}"),
            Err(error) => format!("reading the journal failed: {error}"),
        };
        self.stop(&what);
        self.pause(SYSTEMIC_RETRY).await?;
        Ok(None)
    }

    /// Begins to read what follows `position`, on a thread that may wait for the disk.
    fn begin_reading(&mut self, position: Position) -> Reading {
        let generation = self.journal.generation();
        let tail = self.journal.lane_durable(self.lane); // before the read: all of it should be there
        let mut reader = match self.reader.take().filter(|reader| reader.after_seq() <= position.seq) {
            Some(mut reader) => {
                reader.skip_to(position.seq); // batches from memory have moved the position
                reader
            }
            None => self.journal.reader(self.lane, position.seq),
        };
        let BatchLimits { rows_max, bytes_max, .. } = self.limits;
        let task = tokio::task::spawn_blocking(move || {
            let frames = reader.next_frames(rows_max, bytes_max);
            (reader, frames.map(|frames| frames.into_iter().map(decode).collect()))
        });
        Reading { after: position, generation, tail, task }
    }

    fn name_loss(&self, batch: Batch) -> Batch {
        let first_kept_seq = self.journal.first_kept_seq();
        for Gap { seq_first, seq_last, records } in batch.gaps() {
            let (reason, what) = match seq_first < first_kept_seq {
                true => {
                    ("not_kept", "the database went back further than the journal keeps records (journal.retain_s)")
                }
                false => ("damaged", "the journal is damaged there"),
            };
            let lane = self.lane;
            tracing::error!(lane, seq_first, seq_last, records, reason = what, "records are counted as lost");
            metrics::counter!("logweir_discarded_records_total",
                "component" => "journal", "reason" => reason, "intentional" => "false")
            .increment(records);
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
                    self.flushed_batches += 1;
                    let row = self.row.clone();
                    self.at_row(LaneRow {
                        rows: row.rows + flushed.rows,
                        dead_lettered: row.dead_lettered + flushed.dead_lettered,
                        lost: row.lost + batch.lost(),
                        last_seq: batch.to_seq(),
                        ..row
                    });
                    self.succeeded();
                    return Ok(());
                }
                Err(StoreError::CursorMoved(row)) => {
                    self.at_row(*row);
                    return Err(Interrupted::Moved);
                }
                Err(error) => {
                    self.flush_failing = true;
                    self.failed(error).await?;
                }
            }
        }
    }

    /// The database is at `row`: says so to everybody who waits for it.
    fn at_row(&mut self, row: LaneRow) {
        if let Some(before) = self.position.filter(|before| row.last_seq < before.seq) {
            let (lane, database_seq, expected_seq) = (self.lane, row.last_seq, before.seq);
            let settled = before.records.saturating_sub(row.accounted());
            tracing::error!(
                lane,
                database_seq,
                expected_seq,
                records = settled,
                "the database has gone back in time: reading the journal again from its cursor"
            );
            metrics::counter!("logweir_store_rewinds_total").increment(1);
            self.leave_to_journal(); // what it had from memory, too
        }
        self.position = Some(Position::from(&row));
        self.journal.commit(self.lane, row.last_seq);
        self.progress.lane_row_updated(row.clone());
        self.row = row;
    }

    /// The database does what it is asked to.
    fn succeeded(&mut self) {
        self.breaker.succeeded(Instant::now());
        self.publish_breaker();
        self.failing = false;
        self.flush_failing = false;
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
                () = connect_patience(&context) => {
                    self.failing = true;
                    return Err(Interrupted::Drained);
                }
            };
            match opened {
                Ok((connection, row)) => {
                    self.connection = Some(connection);
                    self.at_row(row);
                    if !self.flush_failing {
                        self.succeeded();
                    }
                }
                Err(error) => {
                    if matches!(error, StoreError::Systemic(_)) {
                        // Perhaps it is another database now: look at its schema and take over again.
                        self.forget_lease().await?;
                    }
                    self.failed(error).await?;
                }
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
                metrics::counter!("logweir_network_errors_total", "peer" => "database").increment(1);
                match self.breaker.allow(Instant::now()) {
                    Allow::No { retry_in } => {
                        // Many pods lost the same server at the same moment: they need not come back at one.
                        let spread = retry::delay(0, SPREAD_MAX, SPREAD_MAX, &mut rand::rng());
                        self.pause(retry_in + spread).await
                    }
                    Allow::Yes | Allow::Probe => self.pause(SHORT_PAUSE).await,
                }
            }
            StoreError::Fenced { .. } | StoreError::StaleCopy { .. } => {
                self.stop(&error.to_string());
                Err(Interrupted::Exit(Exit::new(Exit::FENCED, error.to_string())))
            }
            StoreError::LeaseLost { .. } => {
                tracing::error!(lane = self.lane, "{error}: taking over again");
                self.forget_lease().await?;
                self.pause(SHORT_PAUSE).await
            }
            StoreError::CursorMoved(_) => Ok(()), // the next connection says where it is
            StoreError::Systemic(_) | StoreError::SequenceReused { .. } => {
                self.stop(&error.to_string());
                self.pause(SYSTEMIC_RETRY).await
            }
        }
    }

    async fn forget_lease(&self) -> Result<(), Interrupted> {
        tokio::select! {
            () = self.context.waiting(self.session.forget()) => Ok(()),
            () = given_up(&self.context, true) => Err(Interrupted::Drained),
        }
    }

    /// A cursor that is said to have moved and has not is asked for again after a moment, not in a hot loop.
    async fn pause_unless_moved(&self, before: Position) -> Result<(), Interrupted> {
        if self.position == Some(before) { self.pause(SHORT_PAUSE).await } else { Ok(()) }
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

/// Stands for a lane's newest frame, of which only the header's numbers are known.
fn unreadable(tail: LaneTail) -> BatchFrame {
    BatchFrame { seq: tail.seq, lane_records: tail.records, payload_crc: 0, chunk: Arc::default() }
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
        let outcome = self.commit(batch).await;
        if matches!(outcome, Err(Interrupted::Drained)) {
            tracing::debug!(lane = self.lane, from_seq, to_seq, "left to the journal");
        }
        ended(outcome)
    }

    /// Reads from the journal what never came through the mailbox.
    async fn on_tick(&mut self) -> Result<(), Exit> {
        self.connection.take_if(|connection| !connection.is_open());
        if self.position.is_none() || self.connection.is_none() {
            // Take the writer over as soon as the database answers, and see where it is, also when there is nothing to flush.
            if let Err(interrupted) = self.position().await {
                return ended(Err(interrupted));
            }
        }
        ended(self.catch_up(self.link.released_seq()).await)
    }

    /// Everything that is in the journal, as far as the deadline allows.
    async fn on_drain(&mut self) -> Result<(), Exit> {
        let tail = self.tail();
        tokio::select! {
            // An error means that its numbers were taken back: then there is nothing more to read.
            _ = self.context.waiting(self.journal.durable(tail.seq)) => {}
            () = given_up(&self.context, self.failing) => {}
        }
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
