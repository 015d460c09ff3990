//! Stage db-flusher: commits one lane to the database, one transaction at a time, in order, exactly once.
//!
//! - The flusher is a *position* that moves along the lane: `(seq, records)`, always the database's cursor. A batch
//!   from the mailbox that starts there is flushed from memory; everything else is read from the journal. Replay at
//!   startup, catching up after an outage and recovering from a panic are the same code.
//! - No transaction starts before a completed fsync covers its frames.
//! - An unknown outcome (COMMIT cut off) is resolved by flushing the same range again: the compare-and-set decides.
//! - The journal releases a segment only for a cursor that the database has confirmed.
//! - The database can be restored to an earlier time, even while nothing is being flushed: a closed connection is
//!   reopened at once, and if the cursor is below the position, the journal is read again from there. Records that the
//!   journal no longer has are logged and counted as lost.
//! - A wait for the database ends when the drain reaches `Persisting`, or immediately while draining if the database is
//!   failing: the journal has everything.

mod failure_log;
mod session;

use std::sync::Arc;

use logweir_engine::drain::Phase;
use logweir_engine::fault::kill_point;
use logweir_engine::journal::{Frame, Journal, LaneId, LaneTail, Reader};
use logweir_engine::observe::Counter;
use logweir_engine::stage::{Exit, Stage, StageContext};
use logweir_record::codec;
use tokio::task::JoinHandle;
use tokio::time::{Duration, Instant};

use self::failure_log::{Failure, FailureLog};
pub use self::session::{Session, lanes_needed};

use crate::batcher::LaneLink;
use crate::config::BatchLimits;
use crate::limits::backoff::{Backoff, Delays};
use crate::limits::breaker::{self, Allow, Breaker, BreakerSettings};
use crate::progress::{Progress, StoreState};
use logweir_store::{Batch, BatchFrame, Gap};
use logweir_store::{LaneRow, LaneWriter, StoreError};

/// Retry interval of a lane that an operator must fix (schema, permission): constant, since no retry helps before that.
const SYSTEMIC_RETRY: Duration = Duration::from_secs(5);

/// Backs off from a failing database, for longer each time.
const BREAKER: BreakerSettings = BreakerSettings { failures_max: 3, open_ms_min: 200, open_ms_max: 5_000 };

/// Delays before a retry, in addition to the time for which the breaker is open: that time has no jitter, and many pods
/// lose the same server at the same moment.
const RETRY: Backoff = Backoff::new(Duration::from_millis(50), Duration::from_millis(400));

/// Time limit for connecting while draining.
const DRAIN_CONNECT_LIMIT: Duration = Duration::from_secs(1);

/// The database's cursor in the lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Position {
    seq: u64,
    /// Number of records up to and including `seq`.
    records: u64,
}

impl From<&LaneRow> for Position {
    fn from(row: &LaneRow) -> Self {
        Self { seq: row.last_seq, records: row.accounted() }
    }
}

/// A batch that is being read from the journal.
struct PendingRead {
    /// The position before it.
    after: Position,
    /// The journal's generation at the start of the read.
    generation: u64,
    /// The lane's durable tail at the start of the read.
    tail: LaneTail,
    task: JoinHandle<(Reader, ReadFrames)>,
}

/// The frames, a decoding error, or an I/O error.
type ReadFrames = std::io::Result<Result<Vec<BatchFrame>, String>>;

/// Why a flush did not commit.
enum Interrupted {
    /// The shutdown has reached the point where the rest stays in the journal.
    Drained,
    /// The database's cursor was elsewhere; the position has been set to it.
    Moved,
    /// The process must exit.
    Exit(Exit),
}

/// The stage; one per lane.
pub struct DbFlusher {
    context: StageContext,
    lane: LaneId,
    session: Arc<Session>,
    journal: Journal,
    link: Arc<LaneLink>,
    progress: Progress,
    limits: BatchLimits,
    breaker: Breaker,
    delays: Delays,
    failure_log: FailureLog,
    /// Whether the last attempt failed.
    failing: bool,
    /// Whether a flush has failed since the last commit. A new connection then does not count as a success.
    flush_failing: bool,
    connection: Option<Box<dyn LaneWriter>>,
    position: Option<Position>,
    reader: Option<Reader>,
    /// Read-ahead of what follows the batch that is being flushed.
    ahead: Option<PendingRead>,
    row: LaneRow,
    flushed_batches: u64,
    read_back_records: u64,
}

impl DbFlusher {
    /// Creates a flusher without connecting yet. It reads everything that is in the journal now from there.
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
            delays: RETRY.delays(),
            failure_log: FailureLog::default(),
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

    /// Commits `batch`, after everything between the position and it.
    async fn commit(&mut self, mut batch: Batch) -> Result<(), Interrupted> {
        loop {
            let position = self.position().await?;
            batch.frames.retain(|frame| frame.seq > position.seq);
            if batch.frames.is_empty() {
                return Ok(()); // already read from the journal
            }
            if batch.from_seq <= position.seq {
                batch.from_seq = position.seq;
                batch.from_records = position.records;
                if !self.is_durable(&batch).await? {
                    self.leave_to_journal();
                    return Ok(());
                }
                (self.reader, self.ahead) = (None, None); // they would read again what is flushed from memory here
                match self.flush(&batch).await {
                    Err(Interrupted::Moved) => self.pause_unless_moved(position).await?,
                    outcome => return outcome,
                }
                continue;
            }
            let before = batch.from_seq;
            self.catch_up(before).await?;
            if self.position().await?.seq < before {
                // The frames before it cannot be read yet: leave the batch to the journal, to keep the order.
                self.leave_to_journal();
                return Ok(());
            }
        }
    }

    /// Leaves everything that the lane has now to be read from the journal.
    fn leave_to_journal(&self) {
        self.link.release(self.tail().seq);
    }

    /// Returns the lane's last assigned frame, durable or not.
    fn tail(&self) -> LaneTail {
        self.journal.lanes().get(&self.lane).copied().unwrap_or_default()
    }

    /// Reads the lane from the journal and flushes it until the position reaches `until_seq` or the durable tail.
    async fn catch_up(&mut self, until_seq: u64) -> Result<(), Interrupted> {
        loop {
            let position = self.position().await?;
            if position.seq >= until_seq || self.context.drain.phase() >= Phase::Persisting {
                return Ok(());
            }
            let Some(batch) = self.read_batch(position).await? else { return Ok(()) };
            self.read_back_records += batch.records();
            if batch.to_seq() < until_seq {
                self.ahead = Some(self.start_read(Position { seq: batch.to_seq(), records: batch.to_records() }));
            }
            match self.flush(&batch).await {
                Ok(()) => {}
                Err(Interrupted::Moved) => self.pause_unless_moved(position).await?,
                Err(other) => return Err(other),
            }
        }
    }

    /// Returns the next frames after `position` as a batch, or `None` at the durable tail.
    ///
    /// A durable tail that cannot be read (damaged, or past its retention) becomes a batch without records: it is
    /// counted as lost, since otherwise the lane would never drain.
    async fn read_batch(&mut self, position: Position) -> Result<Option<Batch>, Interrupted> {
        let ahead = self.ahead.take().filter(|reading| reading.after == position);
        let reading = match ahead {
            Some(reading) if reading.generation == self.journal.generation() => reading,
            _ => self.start_read(position),
        };
        let PendingRead { tail, generation, task, .. } = reading;
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
                return Ok(Some(self.log_gaps(Batch {
                    lane: self.lane,
                    from_seq,
                    from_records,
                    skip: 0,
                    leave: 0,
                    generation,
                    frames,
                })));
            }
            Ok((_, Ok(Err(undecodable)))) => undecodable,
            Ok((_, Err(error))) => format!("cannot read the journal: {error}"),
            Err(error) => format!("the journal read task failed: {error}"),
        };
        self.stop(&what);
        self.pause(SYSTEMIC_RETRY).await?;
        Ok(None)
    }

    /// Starts to read what follows `position`, on a blocking thread.
    fn start_read(&mut self, position: Position) -> PendingRead {
        let generation = self.journal.generation();
        let tail = self.journal.lane_durable(self.lane); // before the read, so that all of it should be readable
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
        PendingRead { after: position, generation, tail, task }
    }

    fn log_gaps(&self, batch: Batch) -> Batch {
        let first_retained_seq = self.journal.first_retained_seq();
        for Gap { seq_first, seq_last, records } in batch.gaps() {
            let (reason, what) = match seq_first < first_retained_seq {
                true => {
                    ("expired", "the database was restored to a time before the journal's retention (journal.retain_s)")
                }
                false => ("damaged", "the journal is damaged in this range"),
            };
            let lane = self.lane;
            tracing::error!(
                lane,
                seq_first,
                seq_last,
                records,
                reason = what,
                "the journal lacks records that the database needs: they are counted as lost"
            );
            metrics::counter!("logweir_discarded_records_total",
                "component" => "journal", "reason" => reason, "intentional" => "false")
            .increment(records);
        }
        batch
    }

    async fn is_durable(&self, batch: &Batch) -> Result<bool, Interrupted> {
        tokio::select! {
            durable = self.context.waiting(batch.is_durable(&self.journal)) => Ok(durable),
            () = wait_abandoned(&self.context, false) => Err(Interrupted::Drained),
        }
    }

    /// Flushes `batch`, which is durable and starts at the position, until it is committed or interrupted.
    async fn flush(&mut self, batch: &Batch) -> Result<(), Interrupted> {
        loop {
            if self.position().await?.seq != batch.from_seq {
                return Err(Interrupted::Moved); // an attempt with an unknown outcome had committed
            }
            let Some(connection) = self.connection.as_mut() else { continue };
            let (context, failing) = (self.context.clone(), self.failing);
            let outcome = tokio::select! {
                outcome = context.waiting(connection.flush(batch)) => outcome,
                () = wait_abandoned(&context, failing) => {
                    self.connection = None; // a transaction may be open on it
                    return Err(Interrupted::Drained);
                }
            };
            match outcome {
                Ok(flushed) => {
                    self.flushed_batches += 1;
                    let row = self.row.clone();
                    self.apply_row(LaneRow {
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
                    self.apply_row(*row);
                    return Err(Interrupted::Moved);
                }
                Err(error) => {
                    self.flush_failing = true;
                    self.failed(Failure::Flush, error).await?;
                }
            }
        }
    }

    /// Sets the position to the database's `row` and publishes it.
    fn apply_row(&mut self, row: LaneRow) {
        if let Some(before) = self.position.filter(|before| row.last_seq < before.seq) {
            let (lane, database_seq, expected_seq) = (self.lane, row.last_seq, before.seq);
            let records = before.records.saturating_sub(row.accounted());
            tracing::error!(
                lane,
                database_seq,
                expected_seq,
                records,
                "the database was restored to an earlier time: reading the journal again from its cursor"
            );
            metrics::counter!("logweir_store_rewinds_total").increment(1);
            self.leave_to_journal(); // including what was flushed from memory
        }
        self.position = Some(Position::from(&row));
        self.journal.commit(self.lane, row.last_seq);
        self.progress.lane_row_updated(row.clone());
        self.row = row;
    }

    /// Records a success.
    fn succeeded(&mut self) {
        let now = Instant::now();
        self.breaker.succeeded(now);
        self.publish_breaker();
        if let Some(lasted) = self.failure_log.succeeded(now) {
            tracing::info!(lane = self.lane, after_ms = lasted.as_millis(), "the database is available again");
        }
        self.delays = RETRY.delays();
        self.failing = false;
        self.flush_failing = false;
        self.progress.lane_store_state(self.lane, StoreState::Ok);
    }

    /// Returns the database's position, connecting if necessary.
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
                () = wait_abandoned(&context, failing) => return Err(Interrupted::Drained),
                () = connect_timed_out(&context) => {
                    self.failing = true;
                    return Err(Interrupted::Drained);
                }
            };
            match opened {
                Ok((connection, row)) => {
                    self.connection = Some(connection);
                    self.apply_row(row);
                    if !self.flush_failing {
                        self.succeeded();
                    }
                }
                Err(error) => {
                    if matches!(error, StoreError::Systemic(_)) {
                        // It may be another database now: prepare its schema and acquire the lease again.
                        self.drop_lease().await?;
                    }
                    self.failed(Failure::Connect, error).await?;
                }
            }
        }
    }

    /// Handles a failure by its class, and waits before the retry.
    async fn failed(&mut self, failure: Failure, error: StoreError) -> Result<(), Interrupted> {
        self.connection = None;
        self.failing = true;
        match error {
            StoreError::Transient(what) => {
                self.breaker.failed(Instant::now());
                self.publish_breaker();
                if let Some(suppressed) = self.failure_log.failed(failure, Instant::now()) {
                    let lane = self.lane;
                    match failure {
                        Failure::Flush => tracing::warn!(
                            lane,
                            error = what,
                            suppressed,
                            "cannot commit a batch: retrying; its records are safe in the journal"
                        ),
                        Failure::Connect | Failure::Stopped => tracing::warn!(
                            lane,
                            error = what,
                            suppressed,
                            "the database is unavailable: retrying; new records are kept in the journal"
                        ),
                    }
                }
                self.progress.lane_store_state(self.lane, StoreState::Failing(what));
                metrics::counter!("logweir_network_errors_total", "peer" => "database").increment(1);
                let open_for = match self.breaker.allow(Instant::now()) {
                    Allow::No { retry_in } => retry_in,
                    Allow::Yes | Allow::Probe => Duration::ZERO,
                };
                self.back_off(open_for).await
            }
            StoreError::Fenced { .. } | StoreError::StaleCopy { .. } => {
                tracing::error!(lane = self.lane, %error, "the lease is lost: exiting");
                self.progress.lane_store_state(self.lane, StoreState::Stopped(error.to_string()));
                Err(Interrupted::Exit(Exit::new(Exit::FENCED, error.to_string())))
            }
            StoreError::LeaseLost { .. } => {
                tracing::error!(lane = self.lane, "{error}: acquiring the lease again");
                self.drop_lease().await?;
                self.back_off(Duration::ZERO).await
            }
            StoreError::CursorMoved(_) => Ok(()), // the next connection reads the cursor
            // Systemic, SequenceReused, and what a later version of the store adds: an operator decides.
            _ => {
                self.stop(&error.to_string());
                self.pause(SYSTEMIC_RETRY).await
            }
        }
    }

    async fn drop_lease(&self) -> Result<(), Interrupted> {
        tokio::select! {
            () = self.context.waiting(self.session.forget()) => Ok(()),
            () = wait_abandoned(&self.context, true) => Err(Interrupted::Drained),
        }
    }

    /// Pauses if the cursor was reported as moved but has not, to avoid a hot loop.
    async fn pause_unless_moved(&mut self, before: Position) -> Result<(), Interrupted> {
        if self.position == Some(before) { self.back_off(Duration::ZERO).await } else { Ok(()) }
    }

    fn publish_breaker(&self) {
        breaker::publish(&self.context.name, self.breaker.state());
        self.progress.breaker_state(&self.context.name, self.breaker.state());
    }

    /// Stops the lane until an operator fixes the problem; the journal keeps accepting records.
    fn stop(&mut self, what: &str) {
        self.failing = true;
        if let Some(suppressed) = self.failure_log.failed(Failure::Stopped, Instant::now()) {
            tracing::error!(
                lane = self.lane,
                error = what,
                suppressed,
                "the lane is stopped until this problem is fixed, then resumes automatically; records are kept in the \
                 journal"
            );
        }
        self.progress.lane_store_state(self.lane, StoreState::Stopped(what.to_owned()));
    }

    /// Pauses for `at_least` and the next delay.
    async fn back_off(&mut self, at_least: Duration) -> Result<(), Interrupted> {
        let delay = self.delays.next_delay();
        self.pause(at_least + delay).await
    }

    async fn pause(&self, duration: Duration) -> Result<(), Interrupted> {
        tokio::select! {
            () = self.context.waiting(tokio::time::sleep(duration)) => Ok(()),
            () = wait_abandoned(&self.context, self.failing) => Err(Interrupted::Drained),
        }
    }
}

/// Completes when the shutdown no longer waits for the database.
async fn wait_abandoned(context: &StageContext, failing: bool) {
    let phase = if failing { Phase::Draining } else { Phase::Persisting };
    context.drain.reached(phase).await;
}

/// Completes when a connection takes too long while draining: the database may hang.
async fn connect_timed_out(context: &StageContext) {
    context.drain.reached(Phase::Draining).await;
    tokio::time::sleep(DRAIN_CONNECT_LIMIT).await;
}

/// Represents a lane's last frame when only its header is known.
fn unreadable(tail: LaneTail) -> BatchFrame {
    BatchFrame { seq: tail.seq, lane_records: tail.records, payload_crc: 0, chunk: Arc::default() }
}

fn decode(frame: Frame) -> Result<BatchFrame, String> {
    let chunk = codec::decode(frame.codec, &frame.payload)
        .map_err(|error| format!("cannot decode frame {} of lane {}: {error}", frame.seq, frame.lane))?;
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
            tracing::debug!(
                lane = self.lane,
                from_seq,
                to_seq,
                "flush canceled by the shutdown; the batch stays in the journal"
            );
        }
        ended(outcome)
    }

    /// Reads from the journal what did not arrive through the mailbox.
    async fn on_tick(&mut self) -> Result<(), Exit> {
        self.connection.take_if(|connection| !connection.is_open());
        if self.position.is_none() || self.connection.is_none() {
            // Acquire the lease and read the cursor as soon as the database responds, even if there is nothing to
            // flush.
            if let Err(interrupted) = self.position().await {
                return ended(Err(interrupted));
            }
        }
        ended(self.catch_up(self.link.released_seq()).await)
    }

    /// Flushes everything in the journal, as far as the deadline allows.
    async fn on_drain(&mut self) -> Result<(), Exit> {
        let tail = self.tail();
        tokio::select! {
            // An error means that its sequence numbers were reassigned: then there is nothing more to read.
            _ = self.context.waiting(self.journal.durable(tail.seq)) => {}
            () = wait_abandoned(&self.context, self.failing) => {}
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
