//! The flusher's decisions: events in, the next action out. Pure: neither I/O nor a clock, so that `model.rs` can walk
//! through every order of events.
//!
//! ```text
//! loop {
//!     action = next(now, phase)       what to do now
//!     event = the shell does it       one event is the result of each action
//!     handle(event, now)
//!     take_notes()                    what others should learn: the journal, progress, log, metrics
//! }
//! ```
//!
//! The machine holds the lane's row, whose *position* is always the database's cursor, and at most two batches: the one from the mailbox, and
//! the one that was read from the journal and comes before it. Both are flushed in parts, see [`Division`].

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use logweir_engine::drain::Phase;
use logweir_engine::journal::{LaneId, LaneTail};
use logweir_engine::stage::Exit;
use logweir_store::{Batch, BatchFrame, Flushed, Gap, LaneRow, Position, Rejection, StoreError};
use tokio::time::Instant;

use super::division::{Division, Verdict};
use crate::limits::breaker::{Allow, Breaker, BreakerSettings, BreakerState};

/// Backs off from a failing database, for longer each time.
const BREAKER: BreakerSettings = BreakerSettings { failures_max: 3, open_ms_min: 200, open_ms_max: 5_000 };

/// What happened.
#[derive(Debug)]
pub(super) enum Event {
    /// A batch arrived in the mailbox.
    Batch(Batch),
    /// The journal is to be read up to this frame.
    CatchUp(u64),
    /// The connection was closed.
    Closed,
    /// The connection is open, and the lane's row is this.
    Opened(LaneRow),
    /// The connection, the lease or the lane cannot be opened.
    OpenFailed(StoreError),
    /// What the journal has after a position.
    Frames {
        after: Position,
        /// The journal's generation at the start of the read.
        generation: u64,
        /// The lane's durable tail at the start of the read.
        tail: LaneTail,
        /// Empty at the durable tail, or if it cannot be read.
        frames: Vec<BatchFrame>,
    },
    /// The journal could not be read, or a frame not decoded.
    ReadFailed(String),
    /// Whether the batch from the mailbox is durable; false if its sequence numbers were reassigned.
    Durable(bool),
    /// A flush, or a dead letter, is committed.
    Flushed { flushed: Flushed, took: Duration },
    /// A flush, or a dead letter, failed; its outcome may be unknown. `open` is whether its connection still is.
    FlushFailed { error: StoreError, open: bool },
    /// A pause has ended, or the lease is dropped.
    Done,
    /// The shutdown no longer waits for the action. `open` is whether there is a connection still; `timed_out` whether
    /// connecting took too long.
    Abandoned { open: bool, timed_out: bool },
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Acquire the lease if necessary, and open the lane's connection.
    Open,
    /// Read from the journal, about `records_max` records.
    Read { after: Position, records_max: usize },
    /// Wait until the batch from the mailbox is durable.
    AwaitDurable,
    /// Commit [`Machine::batch`].
    Flush,
    /// Dead-letter the only record of [`Machine::batch`], which was refused alone with this.
    DeadLetter(Rejection),
    /// Wait for `at_least`, and a random time in addition.
    Pause { at_least: Duration, and: Delay },
    /// Drop the lease, to acquire it again.
    DropLease,
    /// Nothing: return to the mailbox.
    Rest,
    /// End the process.
    Exit(Exit),
}

/// The additional delay before a retry, longer each time. Its length is random: many pods lose the same server at the
/// same moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Delay {
    /// None.
    None,
    /// Before the database is tried again.
    Retry,
    /// Before a stopped lane is tried again.
    Stopped,
}

/// What others should learn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Note {
    /// Everything that the lane has now is to be read from the journal.
    LeaveToJournal,
    /// The database's row of the lane.
    Row(LaneRow),
    /// The database was restored to an earlier time.
    Rewound { database_seq: u64, expected_seq: u64, records: u64 },
    /// The journal lacks records that the database needs.
    Gap(Gap),
    /// The database is unavailable, or a batch cannot be committed.
    Failing { flushing: bool, what: String },
    /// The server refused records, of which there were this many.
    Refused { records: u64, rejection: Rejection, verdict: Verdict },
    /// The lane is stopped until an operator fixes the problem.
    Stopped(String),
    /// The lease is lost to another process.
    Fenced(String),
    /// The database does not know the lease.
    LeaseLost(String),
    /// The database works.
    Available,
}

/// What the notes have said of the database so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum State {
    Unknown,
    Available,
    Failing,
    Stopped,
}

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct Machine {
    lane: LaneId,
    breaker: Breaker,
    division: Division,
    /// The lane's row, as in the database; `None` before it was read.
    row: Option<LaneRow>,
    connected: bool,
    /// A connection is wanted even if there is nothing to flush.
    connect: bool,
    /// Whether the last attempt failed.
    failing: bool,
    /// Whether a flush has failed since the last commit. A new connection then does not count as a success.
    flush_failing: bool,
    state: State,
    /// From the mailbox, and whether it is durable.
    mail: Option<Batch>,
    durable: bool,
    /// From the journal.
    read: Option<Batch>,
    /// The part that is being flushed, if it is not all of `read` or `mail`.
    part: Option<Batch>,
    /// Why the record at this position becomes a dead letter.
    letter: Option<(Position, Rejection)>,
    /// The journal is read up to here.
    until: u64,
    /// Gaps up to here are noted.
    gaps_until: u64,
    /// Actions that a failure requires before anything else.
    queue: VecDeque<Action>,
    exit: Option<Exit>,
    notes: Vec<Note>,
    /// Records that were read from the journal to be flushed.
    pub(super) read_back_records: u64,
    pub(super) flushed_batches: u64,
}

impl Machine {
    /// A machine that knows nothing of the database yet.
    pub(super) fn new(lane: LaneId, division: Division) -> Self {
        Self {
            lane,
            breaker: Breaker::new(BREAKER),
            division,
            row: None,
            connected: false,
            connect: false,
            failing: false,
            flush_failing: false,
            state: State::Unknown,
            mail: None,
            durable: false,
            read: None,
            part: None,
            letter: None,
            until: 0,
            gaps_until: 0,
            queue: VecDeque::new(),
            exit: None,
            notes: Vec::new(),
            read_back_records: 0,
            flushed_batches: 0,
        }
    }

    /// Decides what to do next.
    pub(super) fn next(&mut self, now: Instant, phase: Phase) -> Action {
        if let Some(exit) = &self.exit {
            return Action::Exit(exit.clone());
        }
        if phase >= Phase::Persisting {
            self.abandon(); // the journal has everything
        }
        if let Some(action) = self.queue.pop_front() {
            return action;
        }
        if self.is_idle() {
            return Action::Rest;
        }
        let Some(position) = self.position().filter(|_| self.connected) else { return self.open(now) };
        self.connect = false;
        self.work(position)
    }

    /// The batch to flush: consecutive records that begin at the position.
    pub(super) fn batch(&self) -> Option<&Batch> {
        current(&self.part, &self.read, &self.mail)
    }

    /// What should be read while the batch is being flushed: what follows it.
    pub(super) fn read_ahead(&self) -> Option<Position> {
        let Some(batch) = &self.read else { return None };
        let until = self.mail.as_ref().map_or(self.until, |mail| mail.from_seq);
        let follows = batch.to_seq() < until && !self.failing;
        follows.then(|| batch.end())
    }

    /// Whether the batch to flush comes from the mailbox: what was read ahead would repeat it.
    pub(super) fn is_from_memory(&self) -> bool {
        self.read.is_none()
    }

    /// Whether the last attempt failed: while draining the database is then no longer waited for.
    pub(super) fn is_failing(&self) -> bool {
        self.failing
    }

    pub(super) fn is_connected(&self) -> bool {
        self.connected
    }

    pub(super) fn position(&self) -> Option<Position> {
        self.row.as_ref().map(LaneRow::position)
    }

    pub(super) fn breaker(&self) -> BreakerState {
        self.breaker.state()
    }

    /// Number of records that a transaction may have now.
    pub(super) fn records_max(&self) -> usize {
        self.division.records()
    }

    pub(super) fn take_notes(&mut self) -> Vec<Note> {
        std::mem::take(&mut self.notes)
    }

    /// Takes in what happened.
    pub(super) fn handle(&mut self, event: Event, now: Instant) {
        match event {
            Event::Batch(batch) => (self.mail, self.durable) = (Some(batch), false),
            Event::CatchUp(until) => (self.until, self.connect) = (until, true),
            Event::Closed => self.connected = false,
            Event::Opened(row) => {
                self.connected = true;
                self.apply(row);
                if !self.flush_failing {
                    self.succeeded(now);
                }
            }
            Event::OpenFailed(error) => {
                if matches!(error, StoreError::Systemic(_)) {
                    // It may be another database now: prepare its schema and acquire the lease again.
                    self.queue.push_back(Action::DropLease);
                }
                self.failed(false, error, now);
            }
            Event::Frames { after, generation, tail, frames } => self.take_in(after, generation, tail, frames),
            Event::ReadFailed(what) => self.stop(what),
            Event::Durable(true) => self.durable = true,
            Event::Durable(false) => self.leave(),
            Event::Flushed { flushed, took } => self.flushed(&flushed, took, now),
            Event::FlushFailed { error, open } => self.flush_failed(error, open, now),
            Event::Done => {}
            Event::Abandoned { open, timed_out } => {
                self.connected &= open;
                self.failing |= timed_out;
                self.abandon();
            }
        }
    }

    /// Whether there is nothing to do.
    fn is_idle(&self) -> bool {
        let caught_up = self.until == 0 || self.position().is_some_and(|position| position.seq >= self.until);
        let connected = self.connected || !self.connect;
        self.mail.is_none() && self.read.is_none() && caught_up && connected
    }

    fn open(&mut self, now: Instant) -> Action {
        match self.breaker.allow(now) {
            Allow::Yes | Allow::Probe => Action::Open,
            Allow::No { retry_in } => Action::Pause { at_least: retry_in, and: Delay::None },
        }
    }

    /// Flushes what begins at the position, or reads what is before it.
    fn work(&mut self, position: Position) -> Action {
        self.part = None;
        // A batch from the journal that begins above the position was read before the database was restored.
        self.read = self.read.take().filter(|read| read.from_seq <= position.seq).and_then(|read| read.after(position));
        self.mail = self.mail.take().and_then(|mail| mail.after(position));
        if self.read.is_some() {
            return self.flush(position);
        }
        let until = match &self.mail {
            Some(mail) if mail.from_seq > position.seq => mail.from_seq,
            Some(_) if self.durable => return self.flush(position),
            Some(_) => return Action::AwaitDurable,
            None => self.until,
        };
        if position.seq < until {
            // While the lane is stopped one record is enough to see whether it still is.
            return Action::Read { after: position, records_max: self.division.records() };
        }
        Action::Rest
    }

    fn flush(&mut self, position: Position) -> Action {
        let Some(batch) = self.read.as_ref().or(self.mail.as_ref()) else { return Action::Rest };
        self.part = self.division.part(batch);
        let alone = self.batch().is_some_and(|part| part.records() == 1);
        self.letter = self.letter.take().filter(|(at, _)| *at == position && alone);
        self.letter.as_ref().map_or(Action::Flush, |(_, rejection)| Action::DeadLetter(rejection.clone()))
    }

    /// Makes a batch of what was read after `after`.
    ///
    /// A durable tail that cannot be read (damaged, or past its retention) becomes a batch without records: it is
    /// counted as lost, since otherwise the lane would never drain.
    fn take_in(&mut self, after: Position, generation: u64, tail: LaneTail, mut frames: Vec<BatchFrame>) {
        if self.position() != Some(after) {
            return; // it has moved since: read again
        }
        if frames.is_empty() && after.seq < tail.seq {
            frames.push(unreadable(tail));
        }
        let batch = Batch::new(self.lane, after.seq, after.records, generation, frames);
        let Some(batch) = batch.after(after) else {
            // The durable end. If the frames before the batch in memory cannot be read yet, it is read later, in order.
            self.leave();
            return;
        };
        self.read_back_records += batch.records();
        for gap in batch.gaps() {
            // Until it is committed it may be read more than once.
            if gap.seq_last > self.gaps_until {
                self.notes.push(Note::Gap(gap));
                self.gaps_until = gap.seq_last;
            }
        }
        self.read = Some(batch);
    }

    fn flushed(&mut self, flushed: &Flushed, took: Duration, now: Instant) {
        let Some(batch) = current(&self.part, &self.read, &self.mail) else { return };
        self.division.stored(batch, self.part.is_some(), took);
        let row = self.row.clone().unwrap_or_default();
        let row = LaneRow {
            rows: row.rows + flushed.rows,
            dead_lettered: row.dead_lettered + flushed.dead_lettered,
            inherited: row.inherited + flushed.repeated,
            repeated: row.repeated + flushed.repeated,
            lost: row.lost + batch.lost(),
            last_seq: batch.to_seq(),
            digest: batch.digest(),
            ..row
        };
        self.flushed_batches += 1;
        self.letter = None;
        self.apply(row);
        self.succeeded(now);
    }

    fn flush_failed(&mut self, error: StoreError, open: bool, now: Instant) {
        self.connected = open;
        let dead_lettering = self.letter.take().is_some();
        match error {
            StoreError::CursorMoved(row) => {
                let before = self.position();
                self.apply(*row);
                if self.position() == before {
                    self.pause(Duration::ZERO, Delay::Retry); // to avoid a hot loop
                }
            }
            // The table took another record, and this one was interrupted once more.
            StoreError::Rejected(rejection) if dead_lettering && rejection.code == Rejection::INTERRUPTED => {
                self.flush_failing = true;
                self.condemn(rejection);
                self.pause(Duration::ZERO, Delay::Retry);
            }
            StoreError::Rejected(rejection) => {
                self.flush_failing = true;
                if dead_lettering {
                    self.stop_small(rejection.reason);
                } else {
                    self.refused(rejection);
                }
            }
            StoreError::Transient(reason) => {
                self.flush_failing = true;
                if let Some(batch) = current(&self.part, &self.read, &self.mail)
                    && self.division.interrupted(batch) == Verdict::Alone
                {
                    self.condemn(Rejection { code: Rejection::SUSPECTED.to_owned(), reason: reason.clone() });
                }
                self.failed(true, StoreError::Transient(reason), now);
            }
            error => {
                self.flush_failing = true;
                self.failed(true, error, now);
            }
        }
    }

    fn refused(&mut self, rejection: Rejection) {
        let Some(batch) = current(&self.part, &self.read, &self.mail) else { return };
        let records = batch.records();
        let verdict = self.division.refused(batch, &rejection.code);
        if self.state != State::Stopped {
            self.state = State::Failing;
            self.notes.push(Note::Refused { records, rejection: rejection.clone(), verdict });
        }
        match verdict {
            Verdict::Again => self.pause(Duration::ZERO, Delay::Retry),
            Verdict::Divided => {} // at once: it is less work than what was refused
            Verdict::Alone => self.condemn(rejection),
            Verdict::Indivisible => self.stop_small(rejection.reason),
        }
    }

    /// What follows the position becomes a dead letter, if the store finds that the table takes another record.
    fn condemn(&mut self, rejection: Rejection) {
        self.letter = self.position().map(|position| (position, rejection));
    }

    /// Handles a failure by its class, and waits before the retry.
    fn failed(&mut self, flushing: bool, error: StoreError, now: Instant) {
        self.connected = false;
        self.failing = true;
        match error {
            StoreError::Transient(what) | StoreError::Rejected(Rejection { reason: what, .. }) => {
                self.breaker.failed(now);
                self.state = State::Failing;
                self.notes.push(Note::Failing { flushing, what });
                let open_for = match self.breaker.allow(now) {
                    Allow::No { retry_in } => retry_in,
                    Allow::Yes | Allow::Probe => Duration::ZERO,
                };
                self.pause(open_for, Delay::Retry);
            }
            StoreError::Fenced { .. } | StoreError::StaleCopy { .. } => {
                self.notes.push(Note::Fenced(error.to_string()));
                self.exit = Some(Exit::new(Exit::FENCED, error.to_string()));
            }
            StoreError::LeaseLost { .. } => {
                self.notes.push(Note::LeaseLost(error.to_string()));
                self.queue.push_back(Action::DropLease);
                self.pause(Duration::ZERO, Delay::Retry);
            }
            StoreError::CursorMoved(_) => {} // the next connection reads the cursor
            // Systemic, SequenceReused, and what a later version of the store adds: an operator decides.
            _ => self.stop_small(error.to_string()),
        }
    }

    /// Stops the lane because of the database, until an operator fixes the problem. Each retry is built again from the
    /// journal, with what has arrived since.
    fn stop_small(&mut self, what: String) {
        self.division.start_small();
        self.stop(what);
    }

    /// Stops the lane until an operator fixes the problem; the journal keeps accepting records.
    fn stop(&mut self, what: String) {
        self.failing = true;
        self.state = State::Stopped;
        self.notes.push(Note::Stopped(what));
        self.leave();
        self.pause(Duration::ZERO, Delay::Stopped);
    }

    /// Ends the work on what is in memory: it is read from the journal, in order.
    fn leave(&mut self) {
        if self.mail.is_some() {
            self.notes.push(Note::LeaveToJournal);
        }
        self.end_work();
    }

    /// Ends all work, as the shutdown demands.
    fn abandon(&mut self) {
        self.queue.clear();
        self.connect = false;
        self.end_work();
    }

    fn end_work(&mut self) {
        (self.mail, self.read, self.part, self.letter) = (None, None, None, None);
        self.until = 0;
    }

    fn pause(&mut self, at_least: Duration, and: Delay) {
        self.queue.push_back(Action::Pause { at_least, and });
    }

    /// Takes in the database's `row`.
    fn apply(&mut self, row: LaneRow) {
        let position = row.position();
        let is_behind = |before: &Position| (position.seq, position.partial) < (before.seq, before.partial);
        if let Some(before) = self.position().filter(is_behind) {
            self.notes.push(Note::Rewound {
                database_seq: row.last_seq,
                expected_seq: before.seq,
                records: before.records.saturating_sub(row.accounted()),
            });
            self.notes.push(Note::LeaveToJournal); // including what was flushed from memory
            self.gaps_until = 0;
        }
        self.notes.push(Note::Row(row.clone()));
        self.row = Some(row);
    }

    /// Records a success.
    fn succeeded(&mut self, now: Instant) {
        self.breaker.succeeded(now);
        (self.failing, self.flush_failing) = (false, false);
        if self.state != State::Available {
            self.state = State::Available;
            self.notes.push(Note::Available);
        }
    }

    /// Hashes what decides about the future, except the time.
    #[cfg(test)]
    pub(super) fn hash_state(&self, state: &mut impl std::hash::Hasher) {
        use std::hash::Hash as _;
        let batch = |batch: &Option<Batch>| {
            batch
                .as_ref()
                .map(|batch| (batch.from_seq, batch.from_records, batch.skip(), batch.end(), batch.last_seq()))
        };
        let counts = self.row.as_ref().map(|row| (row.lane_id, row.rows, row.dead_lettered, row.lost));
        (self.position(), counts).hash(state);
        (self.connected, self.connect, self.failing, self.flush_failing, self.state, self.durable).hash(state);
        (batch(&self.mail), batch(&self.read), batch(&self.part), self.until, self.exit.is_some()).hash(state);
        self.letter.as_ref().map(|(at, rejection)| (at, &rejection.code)).hash(state);
        self.queue.len().hash(state);
        self.queue.contains(&Action::DropLease).hash(state);
        self.division.hash_state(state);
    }
}

/// The part that is flushed now. Not a method: the machine's other fields can be changed meanwhile.
fn current<'a>(part: &'a Option<Batch>, read: &'a Option<Batch>, mail: &'a Option<Batch>) -> Option<&'a Batch> {
    part.as_ref().or(read.as_ref()).or(mail.as_ref())
}

/// Represents a lane's last frame when only its header is known.
fn unreadable(tail: LaneTail) -> BatchFrame {
    BatchFrame { seq: tail.seq, lane_records: tail.records, payload_crc: 0, dedup_key: None, chunk: Arc::default() }
}
