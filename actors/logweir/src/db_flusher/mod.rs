//! Stage db-flusher: commits one lane to the database, one transaction at a time, in order, exactly once.
//!
//! - The flusher is a *position* that moves along the lane: `(seq, records)`, always the database's cursor. A batch
//!   from the mailbox that starts there is flushed from memory; everything else is read from the journal. Replay at
//!   startup, catching up after an outage and recovering from a panic are the same code.
//! - `machine` decides, without I/O; this file is the shell around it, which does what the machine says.
//! - No transaction starts before a completed fsync covers its frames.
//! - An unknown outcome (COMMIT cut off) is resolved by flushing the same range again: the compare-and-set decides.
//! - The journal releases a segment only for a cursor that the database has confirmed.
//! - The database can be restored to an earlier time, even while nothing is being flushed: a closed connection is
//!   reopened at once, and if the cursor is below the position, the journal is read again from there. Records that the
//!   journal no longer has are logged and counted as lost.
//! - What the server refuses twice in the same way is divided, down to one record, which becomes a dead letter. A lane is
//!   stopped only by what concerns every row, and goes on by itself.
//! - A wait for the database ends when the drain reaches `Persisting`, or immediately while draining if the database is
//!   failing: the journal has everything.

mod division;
mod failure_log;
mod machine;
#[cfg(test)]
mod model;
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

use self::division::Division;
use self::failure_log::Failure;
use self::machine::{Action, Delay, Event, Machine, Note};
pub use self::session::{Session, lanes_needed};

use crate::batcher::LaneLink;
use crate::limits::backoff::{Backoff, Delays};
use crate::limits::breaker::{self, BreakerState};
use crate::progress::{Progress, StoreState};
use logweir_store::{Batch, BatchFrame, Flushed, Gap, LaneWriter, Position, Rejection, StoreError};

/// Delays before a failing database is tried again, in addition to the time for which the breaker is open: that time has
/// no jitter, and many pods lose the same server at the same moment.
const RETRY: Backoff = Backoff::new(Duration::from_millis(50), Duration::from_millis(400));

/// Delays before a stopped lane is tried again: an operator has to act, and is not made to wait for long afterwards.
const STOPPED_RETRY: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(10));

/// Time limit for connecting while draining.
const DRAIN_CONNECT_LIMIT: Duration = Duration::from_secs(1);

/// Frames that are being read from the journal.
struct PendingRead {
    /// The position before them.
    after: Position,
    /// The journal's generation at the start of the read.
    generation: u64,
    /// The lane's durable tail at the start of the read.
    tail: LaneTail,
    task: JoinHandle<(Reader, ReadFrames)>,
}

/// The frames, a decoding error, or an I/O error.
type ReadFrames = std::io::Result<Result<Vec<BatchFrame>, String>>;

/// How much a flusher commits at a time.
#[derive(Clone, Copy, Debug)]
pub struct FlushLimits {
    /// Records of a batch, unless a single frame has more.
    pub rows_max: usize,
    /// Bytes that are read from the journal at a time.
    pub bytes_max: usize,
    /// After which the server cancels a statement: batches that come near it do not become larger.
    pub statement_timeout: Duration,
}

/// The stage; one per lane.
pub struct DbFlusher {
    context: StageContext,
    lane: LaneId,
    session: Arc<Session>,
    journal: Journal,
    link: Arc<LaneLink>,
    progress: Progress,
    limits: FlushLimits,
    machine: Machine,
    retry: Delays,
    stopped_retry: Delays,
    /// As last published.
    breaker: Option<BreakerState>,
    connection: Option<Box<dyn LaneWriter>>,
    reader: Option<Reader>,
    /// Read-ahead of what follows the batch that is being flushed.
    ahead: Option<PendingRead>,
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
        limits: FlushLimits,
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
            machine: Machine::new(lane, Division::new(limits.rows_max, limits.statement_timeout)),
            retry: RETRY.delays(),
            stopped_retry: STOPPED_RETRY.delays(),
            breaker: None,
            connection: None,
            reader: None,
            ahead: None,
        }
    }

    /// Does what the machine decides after `event`, until it rests.
    async fn run(&mut self, event: Event) -> Result<(), Exit> {
        self.handle(event);
        loop {
            let action = self.machine.next(Instant::now(), self.context.drain.phase());
            self.publish();
            let event = match action {
                Action::Open => self.open().await,
                Action::Read { after, records_max } => self.read(after, records_max).await,
                Action::AwaitDurable => self.await_durable().await,
                Action::Flush => self.flush(None).await,
                Action::DeadLetter(rejection) => self.flush(Some(rejection)).await,
                Action::Pause { at_least, and } => self.pause(at_least, and).await,
                Action::DropLease => self.drop_lease().await,
                Action::Rest => return Ok(()),
                Action::Exit(exit) => return Err(exit),
            };
            self.handle(event);
        }
    }

    fn handle(&mut self, event: Event) {
        self.machine.handle(event, Instant::now());
        if !self.machine.is_connected() {
            self.connection = None;
        }
        self.publish();
    }

    async fn open(&mut self) -> Event {
        let session = Arc::clone(&self.session);
        let opened = tokio::select! {
            opened = self.context.waiting(session.open_lane(self.lane)) => opened,
            () = wait_abandoned(&self.context, self.machine.is_failing()) => return self.abandoned(),
            () = connect_timed_out(&self.context) => return Event::Abandoned { open: false, timed_out: true },
        };
        match opened {
            Ok((connection, row)) => {
                self.connection = Some(connection);
                Event::Opened(row)
            }
            Err(error) => Event::OpenFailed(error),
        }
    }

    /// Reads the next frames after `after`, unless they have been read ahead.
    async fn read(&mut self, after: Position, records_max: usize) -> Event {
        let ahead = self.ahead.take().filter(|reading| reading.after == after);
        let reading = match ahead {
            Some(reading) if reading.generation == self.journal.generation() => reading,
            _ => self.start_read(after, records_max),
        };
        let PendingRead { after, generation, tail, task } = reading;
        match self.context.waiting(task).await {
            Ok((reader, Ok(Ok(frames)))) => {
                self.reader = Some(reader);
                Event::Frames { after, generation, tail, frames }
            }
            Ok((_, Ok(Err(undecodable)))) => Event::ReadFailed(undecodable),
            Ok((_, Err(error))) => Event::ReadFailed(format!("cannot read the journal: {error}")),
            Err(error) => Event::ReadFailed(format!("the journal read task failed: {error}")),
        }
    }

    /// Starts to read what follows `position`, on a blocking thread.
    fn start_read(&mut self, position: Position, records_max: usize) -> PendingRead {
        let generation = self.journal.generation();
        let tail = self.journal.lane_durable(self.lane); // before the read, so that all of it should be readable
        let mut reader = match self.reader.take().filter(|reader| reader.after_seq() <= position.seq) {
            Some(mut reader) => {
                reader.skip_to(position.seq); // batches from memory have moved the position
                reader
            }
            None => self.journal.reader(self.lane, position.seq),
        };
        let bytes_max = self.limits.bytes_max;
        let task = tokio::task::spawn_blocking(move || {
            let frames = reader.next_frames(records_max, bytes_max);
            (reader, frames.map(|frames| frames.into_iter().map(decode).collect()))
        });
        PendingRead { after: position, generation, tail, task }
    }

    async fn await_durable(&self) -> Event {
        let Some(batch) = self.machine.batch() else { return Event::Done };
        tokio::select! {
            durable = self.context.waiting(batch.is_durable(&self.journal)) => Event::Durable(durable),
            () = wait_abandoned(&self.context, false) => self.abandoned(),
        }
    }

    /// Flushes the machine's batch, or dead-letters its only record.
    async fn flush(&mut self, refused: Option<Rejection>) -> Event {
        if self.machine.is_from_memory() {
            (self.reader, self.ahead) = (None, None); // they would read again what is flushed from memory here
        } else if let Some(next) = self.machine.read_ahead()
            && self.ahead.as_ref().is_none_or(|ahead| ahead.after != next)
        {
            self.ahead = Some(self.start_read(next, self.machine.records_max()));
        }
        let (Some(batch), Some(mut connection)) = (self.machine.batch(), self.connection.take()) else {
            return Event::Closed;
        };
        let started = Instant::now();
        let flush = async {
            match &refused {
                Some(rejection) => connection.dead_letter(batch, rejection).await,
                None => connection.flush(batch).await,
            }
        };
        let outcome: Result<Flushed, StoreError> = tokio::select! {
            outcome = self.context.waiting(flush) => outcome,
            // A transaction may be open on the connection, which ends with it.
            () = wait_abandoned(&self.context, self.machine.is_failing()) => return self.abandoned(),
        };
        let (took, open) = (started.elapsed(), connection.is_open());
        self.connection = Some(connection);
        match outcome {
            Ok(flushed) => Event::Flushed { flushed, took },
            Err(error) => Event::FlushFailed { error, open },
        }
    }

    async fn drop_lease(&self) -> Event {
        tokio::select! {
            () = self.context.waiting(self.session.forget()) => Event::Done,
            () = wait_abandoned(&self.context, true) => self.abandoned(),
        }
    }

    /// Pauses for `at_least` and the next delay.
    async fn pause(&mut self, at_least: Duration, and: Delay) -> Event {
        let delay = match and {
            Delay::None => Duration::ZERO,
            Delay::Retry => self.retry.next_delay(),
            Delay::Stopped => self.stopped_retry.next_delay(),
        };
        tokio::select! {
            () = self.context.waiting(tokio::time::sleep(at_least + delay)) => Event::Done,
            () = wait_abandoned(&self.context, self.machine.is_failing()) => self.abandoned(),
        }
    }

    fn abandoned(&self) -> Event {
        tracing::debug!(lane = self.lane, "canceled by the shutdown; what is not committed stays in the journal");
        Event::Abandoned { open: self.connection.is_some(), timed_out: false }
    }

    /// Leaves everything that the lane has now to be read from the journal.
    fn leave_to_journal(&self) {
        self.link.release(self.tail().seq);
    }

    /// Returns the lane's last assigned frame, durable or not.
    fn tail(&self) -> LaneTail {
        self.journal.lanes().get(&self.lane).copied().unwrap_or_default()
    }

    /// Tells others what the machine has noted.
    fn publish(&mut self) {
        for note in self.machine.take_notes() {
            self.tell(note);
        }
        let state = self.machine.breaker();
        if self.breaker.replace(state) != Some(state) {
            breaker::publish(&self.context.name, state);
            self.progress.breaker_state(&self.context.name, state);
        }
    }

    fn tell(&mut self, note: Note) {
        let lane = self.lane;
        match note {
            Note::LeaveToJournal => self.leave_to_journal(),
            Note::Row(row) => {
                self.journal.commit(lane, row.last_seq);
                self.progress.lane_row_updated(row);
            }
            Note::Rewound { database_seq, expected_seq, records } => {
                tracing::error!(
                    lane,
                    database_seq,
                    expected_seq,
                    records,
                    "the database was restored to an earlier time: reading the journal again from its cursor"
                );
                metrics::counter!("logweir_store_rewinds_total").increment(1);
            }
            Note::Gap(gap) => self.tell_gap(gap),
            Note::Failing { flushing, what } => {
                let failure = if flushing { Failure::Flush } else { Failure::Connect };
                if let Some(suppressed) = self.session.failed(lane, failure, &what) {
                    match flushing {
                        true => tracing::warn!(
                            lane,
                            error = what,
                            suppressed,
                            "cannot commit a batch: retrying; its records are safe in the journal"
                        ),
                        false => tracing::warn!(
                            lane,
                            error = what,
                            suppressed,
                            "the database is unavailable: retrying; new records are kept in the journal"
                        ),
                    }
                }
                self.progress.lane_store_state(lane, StoreState::Failing(what));
                metrics::counter!("logweir_network_errors_total", "peer" => "database").increment(1);
            }
            Note::Refused { records, rejection: Rejection { code, reason }, verdict } => {
                if let Some(suppressed) = self.session.failed(lane, Failure::Refused, &code) {
                    tracing::warn!(
                        lane,
                        records,
                        code,
                        error = reason,
                        next = ?verdict,
                        suppressed,
                        "the database refused records: what it refuses again is divided, and a record that it refuses \
                         alone becomes a dead letter"
                    );
                }
                self.progress.lane_store_state(lane, StoreState::Failing(reason));
            }
            Note::Stopped(what) => {
                if let Some(suppressed) = self.session.failed(lane, Failure::Stopped, &what) {
                    tracing::error!(
                        lane,
                        error = what,
                        suppressed,
                        "the lane is stopped until this problem is fixed, then resumes automatically; records are kept \
                         in the journal"
                    );
                }
                self.progress.lane_store_state(lane, StoreState::Stopped(what));
            }
            Note::Fenced(error) => {
                tracing::error!(lane, error, "the lease is lost: exiting");
                self.progress.lane_store_state(lane, StoreState::Stopped(error));
            }
            Note::LeaseLost(error) => tracing::error!(lane, "{error}: acquiring the lease again"),
            Note::Available => {
                if let Some(lasted) = self.session.succeeded(lane) {
                    tracing::info!(lane, after_ms = lasted.as_millis(), "the database is available again");
                }
                (self.retry, self.stopped_retry) = (RETRY.delays(), STOPPED_RETRY.delays());
                self.progress.lane_store_state(lane, StoreState::Ok);
            }
        }
    }

    fn tell_gap(&self, Gap { seq_first, seq_last, records }: Gap) {
        let (reason, what) = match seq_first < self.journal.first_retained_seq() {
            true => {
                ("expired", "the database was restored to a time before the journal's retention (journal.retain_s)")
            }
            false => ("damaged", "the journal is damaged in this range"),
        };
        tracing::error!(
            lane = self.lane,
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

fn decode(frame: Frame) -> Result<BatchFrame, String> {
    let chunk = codec::decode(frame.codec, &frame.payload)
        .map_err(|error| format!("cannot decode frame {} of lane {}: {error}", frame.seq, frame.lane))?;
    Ok(BatchFrame {
        seq: frame.seq,
        lane_records: frame.lane_records,
        payload_crc: frame.payload_crc,
        dedup_key: frame.dedup_key,
        chunk: Arc::new(chunk),
    })
}

impl Stage for DbFlusher {
    type Message = Batch;

    async fn receive(&mut self, batch: Batch) -> Result<(), Exit> {
        kill_point("stage.db_flusher");
        self.run(Event::Batch(batch)).await
    }

    /// Reads from the journal what did not arrive through the mailbox. Acquires the lease and reads the cursor as soon as
    /// the database responds, even if there is nothing to flush.
    async fn on_tick(&mut self) -> Result<(), Exit> {
        if self.connection.as_ref().is_some_and(|connection| !connection.is_open()) {
            self.handle(Event::Closed);
        }
        self.run(Event::CatchUp(self.link.released_seq())).await
    }

    /// Flushes everything in the journal, as far as the deadline allows.
    async fn on_drain(&mut self) -> Result<(), Exit> {
        let tail = self.tail();
        tokio::select! {
            // An error means that its sequence numbers were reassigned: then there is nothing more to read.
            _ = self.context.waiting(self.journal.durable(tail.seq)) => {}
            () = wait_abandoned(&self.context, self.machine.is_failing()) => {}
        }
        self.run(Event::CatchUp(tail.seq)).await
    }

    fn observe(&self) -> Vec<Counter> {
        vec![
            Counter { name: "flushed_batches", value: self.machine.flushed_batches },
            Counter { name: "read_back_records", value: self.machine.read_back_records },
            Counter { name: "position_seq", value: self.machine.position().map_or(0, |position| position.seq) },
            Counter { name: "batch_records_max", value: self.machine.records_max() as u64 },
        ]
    }
}
