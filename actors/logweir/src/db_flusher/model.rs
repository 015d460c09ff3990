//! Walks the machine through every order of events, to a depth, together with a model of the journal, the database and
//! the shell, and checks each state:
//!
//! - An acknowledged record is in the table or among the dead letters at most once, in every state.
//! - From every state, once faults end, the lane comes to rest, and then it is there exactly once, or counted as lost
//!   with a reason. So a bad record never stops its neighbors.
//! - Only a bad record is a dead letter: nothing becomes one because of what concerns every row.
//!
//! Faults: crash, power loss, transactions whose outcome is unknown and which commit or end later, a database that is
//! restored to an earlier state, a journal that has removed what is committed, refused records (alone for any code, or
//! only together with others), records that end the connection, spells in which everything is refused, a full mailbox, a
//! shutdown. Time is left out of a state, since it only decides how long a pause is. A record is suspected after few
//! interruptions here, but after as many as there are faults that interrupt.
//!
//! The search is tested itself: for each deliberate bug (`Bugs`) it must find a state that violates the above in the way in
//! which that bug does.

use std::collections::{HashSet, VecDeque};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;
use std::time::Duration;

use logweir_engine::drain::Phase;
use logweir_engine::journal::LaneTail;
use logweir_record::chunk::Chunk;
use logweir_record::record::{Record, Severity};
use logweir_record::timestamp::DAY_US;
use logweir_store::{Batch, BatchFrame, Digest, Flushed, LaneRow, Rejection, StoreError};
use tokio::time::Instant;

use super::division::Division;
use super::machine::{Action, Event, Machine, Note};

/// Records of all frames together.
const RECORDS: usize = 8;
/// A connection or a transaction that is refused in a spell.
const EVERY_ROW: &str = "42501";

/// A record of a scenario.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Good,
    /// Refused whatever it is stored with.
    Bad,
    /// Refused if more than one of them is stored at once.
    Heavy,
    /// The connection is lost whatever it is stored with.
    Fatal,
}
use Kind::{Bad, Fatal, Good, Heavy};

/// Interruptions of a record alone after which it is suspected. No more than these happen by themselves.
const INTERRUPTIONS: u8 = 2;
const TIMEOUT: Duration = Duration::from_secs(60);

/// How often each fault may happen.
#[derive(Clone, Copy, Default, Hash)]
struct Faults {
    crashes: u8,
    power_cuts: u8,
    /// Transactions whose outcome is unknown.
    unknown: u8,
    /// Connections that cannot be opened.
    unreachable: u8,
    restores: u8,
    /// The journal removes what is committed.
    removals: u8,
    spells: u8,
    drains: u8,
    mailbox_full: u8,
}

/// Deliberate bugs.
#[derive(Clone, Copy, Default)]
struct Bugs {
    no_compare_and_set: bool,
    no_guard: bool,
    /// The rows commit first, then the cursor.
    cursor_outside: bool,
    /// Frames are flushed before they are durable.
    not_durable: bool,
    /// A lost connection counts as a commit.
    unknown_is_success: bool,
    /// The position is not read again.
    deaf: bool,
    /// A dead letter is written without a check.
    unchecked_letter: bool,
    /// A dead letter is written after a check with another record only.
    one_check: bool,
    /// How far the lane is into a frame is forgotten.
    no_partial: bool,
    /// The journal may remove what is being flushed.
    removed_early: bool,
    /// A refusal counts as a lost connection.
    refused_is_transient: bool,
    /// A refused record stops the lane.
    refused_is_systemic: bool,
    /// A lost connection is never due to a record.
    never_suspected: bool,
}

/// What happens, apart from faults.
struct Scenario {
    /// The records of each frame.
    frames: &'static [&'static [Kind]],
    faults: Faults,
    bugs: Bugs,
    /// Whether a refusal leaves the connection open.
    keeps_open: bool,
    /// How long a transaction takes.
    took: Duration,
    depth: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct JournalFrame {
    seq: u64,
    lane_records: u64,
    /// Its index in the scenario.
    content: usize,
}

#[derive(Clone, PartialEq, Eq)]
struct Database {
    epoch: i64,
    row: Option<LaneRow>,
    /// How often each record is in the table.
    rows: [u8; RECORDS],
    letters: [u8; RECORDS],
}

/// A transaction that may still commit, and holds the lock of the lane's row.
#[derive(Clone)]
struct Transaction {
    rows: [u8; RECORDS],
    letters: [u8; RECORDS],
    row: LaneRow,
}

#[derive(Clone)]
struct World<'a> {
    scenario: &'a Scenario,
    faults: Faults,
    now: Instant,
    // The process.
    machine: Machine,
    resting: bool,
    phase: Phase,
    mailbox: VecDeque<Batch>,
    released: u64,
    lease: Option<i64>,
    /// The lane's row as the connection knows it.
    connection: Option<LaneRow>,
    // The disk.
    journal: Vec<JournalFrame>,
    durable: usize,
    /// Frames up to here are removed.
    removed: u64,
    /// As told to the journal.
    committed: u64,
    appended: usize,
    /// Lost before they were durable: nobody was promised them.
    gone: usize,
    // The database.
    database: Database,
    backup: Option<Database>,
    /// Whether it was restored to the backup: only then may the journal lack what it needs.
    restored: bool,
    zombie: Option<Transaction>,
    spell: bool,
    violation: Option<Violated>,
    trail: Option<Arc<Step>>,
}

struct Step {
    label: &'static str,
    before: Option<Arc<Step>>,
}

/// What must not happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Violation {
    /// A record is in the table or among the dead letters more than once.
    Doubled,
    /// A record with which nothing is wrong is a dead letter.
    GoodLetter,
    /// A record is nowhere, and need not be.
    Lost,
    /// As many records as are counted as lost are not missing.
    Miscounted,
    /// A frame is flushed that is not durable.
    NotDurable,
    /// The database has what the journal never made durable.
    AheadOfJournal,
    /// The lane does not come to rest.
    Stuck,
    /// The process ends.
    Ended,
}
use Violation::{AheadOfJournal, Doubled, Ended, GoodLetter, Lost, Miscounted, NotDurable, Stuck};

/// A violation, and more about it.
type Violated = (Violation, String);

fn transient() -> StoreError {
    StoreError::Transient("connection lost".into())
}

fn rejected(code: &str) -> StoreError {
    StoreError::Rejected(Rejection { code: code.into(), reason: "refused".into() })
}

impl<'a> World<'a> {
    fn new(scenario: &'a Scenario) -> Self {
        Self {
            scenario,
            faults: scenario.faults,
            now: Instant::now(),
            machine: machine(scenario),
            resting: true,
            phase: Phase::Accepting,
            mailbox: VecDeque::new(),
            released: 0,
            lease: None,
            connection: None,
            journal: Vec::new(),
            durable: 0,
            removed: 0,
            committed: 0,
            appended: 0,
            gone: 0,
            database: Database { epoch: 0, row: None, rows: [0; RECORDS], letters: [0; RECORDS] },
            backup: None,
            restored: false,
            zombie: None,
            spell: false,
            violation: None,
            trail: None,
        }
    }

    fn hash(&self) -> u64 {
        let state = &mut DefaultHasher::new();
        self.machine.hash_state(state);
        (self.resting, self.phase as u8, self.released, self.lease).hash(state);
        self.mailbox.iter().for_each(|batch| (batch.from_seq, batch.last_seq()).hash(state));
        (self.connection.as_ref().map(hashable), self.faults, self.spell, self.gone).hash(state);
        (&self.journal, self.durable, self.removed, self.committed, self.appended).hash(state);
        let database = |database: &Database| {
            (database.epoch, database.row.as_ref().map(hashable), database.rows, database.letters)
        };
        (database(&self.database), self.restored, self.backup.as_ref().map(database)).hash(state);
        self.zombie.as_ref().map(|zombie| (hashable(&zombie.row), zombie.rows, zombie.letters)).hash(state);
        state.finish()
    }

    /// A copy in which `label` is about to happen.
    fn after(&self, label: &'static str) -> Self {
        let mut world = self.clone();
        world.trail = Some(Arc::new(Step { label, before: self.trail.clone() }));
        world
    }

    fn bugs(&self) -> Bugs {
        self.scenario.bugs
    }

    fn kinds(&self) -> impl Iterator<Item = Kind> {
        self.scenario.frames.iter().flat_map(|frame| frame.iter().copied())
    }

    fn first_record(&self, content: usize) -> usize {
        self.scenario.frames[..content].iter().map(|frame| frame.len()).sum()
    }

    fn tail(&self) -> LaneTail {
        self.journal.last().map_or(LaneTail::default(), |last| LaneTail { seq: last.seq, records: last.lane_records })
    }

    fn durable_tail(&self) -> LaneTail {
        self.journal[..self.durable]
            .last()
            .map_or(LaneTail::default(), |last| LaneTail { seq: last.seq, records: last.lane_records })
    }

    fn frame(&self, frame: &JournalFrame) -> BatchFrame {
        let kinds = self.scenario.frames[frame.content];
        let mut chunk = Chunk::default();
        for record in 0..kinds.len() {
            chunk.push(Record {
                ts_us: i64::try_from(record % 2).unwrap() * DAY_US,
                severity: Severity::INFO,
                service: "",
                host: "",
                message: "",
                attributes: "",
            });
        }
        let payload_crc = u32::try_from(frame.content).unwrap();
        BatchFrame {
            seq: frame.seq,
            lane_records: frame.lane_records,
            payload_crc,
            dedup_key: None,
            chunk: Arc::new(chunk),
        }
    }

    /// The records of `batch`, by their index in the scenario.
    fn records(&self, batch: &Batch) -> Vec<usize> {
        let last = batch.frames().len() - 1;
        let records = batch.frames().iter().enumerate().flat_map(|(index, frame)| {
            let first = self.first_record(frame.payload_crc as usize);
            let skip = if index == 0 { batch.skip() } else { 0 };
            let leave = if index == last { batch.leave() } else { 0 };
            first + skip..(first + frame.chunk.len()).saturating_sub(leave).max(first + skip)
        });
        records.collect()
    }

    /// Everything that can happen next.
    fn successors(&self) -> Vec<Self> {
        let mut all = Vec::new();
        self.environment(&mut all);
        if self.resting {
            if !self.mailbox.is_empty() {
                let mut world = self.after("receive");
                world.receive();
                all.push(world);
            }
            let mut world = self.after("tick");
            world.handle(Event::CatchUp(world.released));
            all.push(world);
        } else {
            self.act(&mut all);
        }
        all
    }

    fn receive(&mut self) {
        if let Some(batch) = self.mailbox.pop_front() {
            self.handle(Event::Batch(batch));
        }
    }

    fn handle(&mut self, event: Event) {
        self.machine.handle(event, self.now);
        self.resting = false;
        self.connection.take_if(|_| !self.machine.is_connected());
        self.tell();
    }

    fn tell(&mut self) {
        for note in self.machine.take_notes() {
            match note {
                Note::LeaveToJournal => self.released = self.released.max(self.tail().seq),
                Note::Row(row) => self.committed = row.last_seq,
                Note::Fenced(error) => self.violation = Some((Ended, error)),
                _ => {}
            }
        }
    }

    /// What happens around the flusher.
    fn environment(&self, all: &mut Vec<Self>) {
        if self.appended < self.scenario.frames.len() && self.phase == Phase::Accepting {
            let mut world = self.after("append");
            world.append(true);
            all.push(world);
            if self.faults.mailbox_full > 0 {
                let mut world = self.after("append, the mailbox is full");
                world.faults.mailbox_full -= 1;
                world.append(false);
                all.push(world);
            }
        }
        if self.durable < self.journal.len() {
            let mut world = self.after("fsync");
            world.durable = world.journal.len();
            all.push(world);
        }
        if self.zombie.is_some() {
            for (label, commits) in [("late commit", true), ("late rollback", false)] {
                let mut world = self.after(label);
                world.end_zombie(commits);
                all.push(world);
            }
        }
        if self.faults.crashes > 0 {
            let mut world = self.after("crash");
            world.faults.crashes -= 1;
            world.restart();
            all.push(world);
        }
        if self.faults.power_cuts > 0 {
            let mut world = self.after("power cut");
            world.faults.power_cuts -= 1;
            for frame in world.journal.split_off(world.durable) {
                world.gone |= 1 << frame.content;
            }
            world.restart();
            all.push(world);
        }
        if self.faults.restores > 0 {
            match &self.backup {
                None => {
                    let mut world = self.after("backup");
                    world.backup = Some(world.database.clone());
                    all.push(world);
                }
                Some(backup) if *backup != self.database => {
                    let mut world = self.after("restore");
                    world.faults.restores -= 1;
                    world.database = backup.clone();
                    world.restored = true;
                    world.zombie = None;
                    if world.connection.is_some() {
                        world.connection = None;
                        world.machine.handle(Event::Closed, world.now);
                    }
                    all.push(world);
                }
                Some(_) => {}
            }
        }
        if self.faults.removals > 0 && self.committed > self.removed {
            let mut world = self.after("remove segments");
            world.faults.removals -= 1;
            world.removed = world.committed;
            all.push(world);
        }
        if self.faults.spells > 0 && !self.spell {
            let mut world = self.after("spell");
            world.faults.spells -= 1;
            world.spell = true;
            all.push(world);
        }
        if self.spell {
            let mut world = self.after("end of the spell");
            world.spell = false;
            all.push(world);
        }
        if self.phase == Phase::Accepting && self.faults.drains > 0 && self.resting {
            let mut world = self.after("drain");
            world.faults.drains -= 1;
            world.phase = Phase::Draining;
            world.durable = world.journal.len();
            world.mailbox.clear(); // received before, as the orders without a drain have it
            let tail = world.tail().seq;
            world.handle(Event::CatchUp(tail));
            all.push(world);
        }
        if self.phase == Phase::Draining {
            let mut world = self.after("restart after the drain");
            world.restart();
            all.push(world);
        }
    }

    fn append(&mut self, to_mailbox: bool) {
        let before = self.tail();
        let content = self.appended;
        let records = self.scenario.frames[content].len() as u64;
        // Sequence numbers are shared with other lanes, so that a lane's are not consecutive.
        let frame = JournalFrame { seq: before.seq + 2, lane_records: before.records + records, content };
        self.journal.push(frame);
        self.appended += 1;
        let batch = Batch::new(0, before.seq, before.records, 0, vec![self.frame(&frame)]);
        match to_mailbox {
            true => self.mailbox.push_back(batch),
            false => self.released = frame.seq,
        }
    }

    fn restart(&mut self) {
        self.machine = machine(self.scenario);
        (self.resting, self.phase) = (true, Phase::Accepting);
        self.mailbox.clear();
        self.released = self.tail().seq;
        (self.lease, self.connection) = (None, None);
        self.durable = self.journal.len(); // recovery makes durable what it keeps
        self.committed = 0;
    }

    fn end_zombie(&mut self, commits: bool) {
        if let Some(zombie) = self.zombie.take()
            && commits
        {
            self.commit(zombie);
        }
    }

    fn commit(&mut self, transaction: Transaction) {
        for record in 0..RECORDS {
            self.database.rows[record] += transaction.rows[record];
            self.database.letters[record] += transaction.letters[record];
        }
        self.database.row = Some(transaction.row);
    }

    /// Does what the machine decides next, with every result.
    fn act(&self, all: &mut Vec<Self>) {
        let mut world = self.clone();
        let action = world.machine.next(world.now, world.phase);
        world.tell();
        // While draining a failing database is not waited for.
        let abandoned = world.phase >= Phase::Draining && world.machine.is_failing();
        match action {
            Action::Rest => {
                let mut world = world.after("rest");
                world.resting = true;
                all.push(world);
            }
            Action::Exit(exit) => {
                world.violation = Some((Ended, exit.reason));
                all.push(world);
            }
            Action::Pause { at_least, .. } => {
                let mut world = world.after("pause");
                world.now += at_least;
                let open = world.connection.is_some();
                world.handle(if abandoned { Event::Abandoned { open, timed_out: false } } else { Event::Done });
                all.push(world);
            }
            Action::DropLease => {
                let mut world = world.after("drop the lease");
                world.lease = None;
                world.handle(Event::Done);
                all.push(world);
            }
            Action::AwaitDurable => {
                let last = world.machine.batch().map_or(0, Batch::last_seq);
                let is_known = world.journal.iter().any(|frame| frame.seq == last);
                // It waits until something else makes it durable.
                if world.bugs().not_durable || last <= world.durable_tail().seq || !is_known {
                    let mut world = world.after("durable");
                    world.handle(Event::Durable(true));
                    all.push(world);
                }
            }
            Action::Read { after, records_max } => {
                let mut world = world.after("read");
                let (mut frames, mut records) = (Vec::new(), 0);
                for frame in &world.journal[..world.durable] {
                    if frame.seq > after.seq.max(world.removed) && records < records_max {
                        records += world.scenario.frames[frame.content].len();
                        frames.push(world.frame(frame));
                    }
                }
                let tail = world.durable_tail();
                world.handle(Event::Frames { after, generation: 0, tail, frames });
                all.push(world);
            }
            Action::Open => world.open(abandoned, all),
            Action::Flush => world.flush(None, abandoned, all),
            Action::DeadLetter(Rejection { code, .. }) => world.flush(Some(&code), abandoned, all),
        }
    }

    fn open(&self, abandoned: bool, all: &mut Vec<Self>) {
        if abandoned {
            let mut world = self.after("connecting is abandoned");
            world.handle(Event::Abandoned { open: false, timed_out: false });
            all.push(world);
            return;
        }
        if self.faults.unreachable > 0 {
            let mut world = self.after("unreachable");
            world.faults.unreachable -= 1;
            world.handle(Event::OpenFailed(transient()));
            all.push(world);
        }
        if self.spell {
            let mut world = self.after("opening is refused");
            world.handle(Event::OpenFailed(StoreError::Systemic("permission denied".into())));
            all.push(world);
        }
        // Acquiring the lease waits for the process that holds the lane's row.
        let waits = self.lease.is_none() && self.zombie.is_some();
        let ways: &[(&'static str, bool)] =
            if waits { &[("open after a commit", true), ("open after a rollback", false)] } else { &[("open", false)] };
        for &(label, commits) in ways {
            let mut world = self.after(label);
            if waits {
                world.end_zombie(commits);
            }
            world.opened();
            all.push(world);
        }
    }

    fn opened(&mut self) {
        let epoch = match self.lease {
            Some(epoch) => epoch,
            None => {
                let tail = self.tail();
                self.database.epoch += 1;
                self.lease = Some(self.database.epoch);
                if let Some(row) = &mut self.database.row {
                    row.epoch = self.database.epoch;
                    // Inside of a frame the database has a part of the next one.
                    if row.last_seq > tail.seq || row.accounted() > tail.records {
                        self.violation = Some((AheadOfJournal, format!("it has {:?} above {tail:?}", row.position())));
                    }
                }
                self.database.epoch
            }
        };
        if self.database.epoch != epoch {
            let lost = StoreError::LeaseLost { writer: uuid::Uuid::nil(), mine: epoch };
            self.handle(Event::OpenFailed(lost));
            return;
        }
        let new = LaneRow { epoch, ..LaneRow::default() };
        let mut row = self.database.row.get_or_insert(new).clone();
        if self.bugs().no_partial {
            row.digest = Digest::from_bytes(row.digest.frame().to_vec());
        }
        if self.bugs().deaf && self.connection_row().is_some() {
            row = self.connection_row().unwrap_or_default();
        }
        self.connection = Some(row.clone());
        self.handle(Event::Opened(row));
    }

    /// The row at the machine's position, for the bug that does not read it again.
    fn connection_row(&self) -> Option<LaneRow> {
        let position = self.machine.position()?;
        Some(LaneRow { last_seq: position.seq, rows: position.records, ..LaneRow::default() })
    }

    /// Flushes the machine's batch, or dead-letters it since it was refused with the code `letter`, with every result.
    fn flush(&self, letter: Option<&str>, abandoned: bool, all: &mut Vec<Self>) {
        if self.zombie.is_none() {
            self.flush_alone(letter, abandoned, all);
            return;
        }
        // The compare-and-set waits for the transaction that holds the row.
        for (label, commits) in [("flush after a commit", true), ("flush after a rollback", false)] {
            let mut world = self.after(label);
            world.end_zombie(commits);
            world.flush_alone(letter, abandoned, all);
        }
    }

    fn flush_alone(&self, letter: Option<&str>, abandoned: bool, all: &mut Vec<Self>) {
        let Some(batch) = self.machine.batch().cloned() else { return };
        let failed = |label, error, open| {
            let mut world = self.after(label);
            world.handle(match abandoned {
                true => Event::Abandoned { open: false, timed_out: false },
                false => Event::FlushFailed { error, open },
            });
            world
        };
        let row = match self.compare_and_set(&batch) {
            Ok(row) => row,
            Err(Ok(flushed)) => {
                let mut world = self.after("already applied");
                world.connection.clone_from(&world.database.row);
                world.handle(Event::Flushed { flushed, took: self.scenario.took });
                all.push(world);
                return;
            }
            Err(Err(error)) => {
                let moved = matches!(error, StoreError::CursorMoved(_));
                all.push(match self.bugs().deaf && moved {
                    true => failed("moved, which is not heard", transient(), false),
                    false => failed("mismatch", error, moved),
                });
                return;
            }
        };
        let records = self.records(&batch);
        let (bugs, keeps_open) = (self.bugs(), self.scenario.keeps_open);
        if self.spell {
            if letter.is_some() && bugs.unchecked_letter {
                self.commits(&batch, row, &[], &records, abandoned, all);
            } else if letter.is_some() {
                all.push(failed("the check is refused", StoreError::Systemic("permission denied".into()), false));
            } else {
                all.push(failed("refused, as all", rejected(EVERY_ROW), keeps_open));
                all.push(failed("refused as a whole", StoreError::Systemic("permission denied".into()), false));
            }
            return;
        }
        let kinds: Vec<Kind> = self.kinds().collect();
        let has = |kind| records.iter().filter(|&&record| kinds[record] == kind).count();
        let (bad, heavy, fatal) = (has(Bad), has(Heavy), has(Fatal));
        // Only another record is tried, or not even that.
        let blind = bugs.one_check || bugs.unchecked_letter || letter == Some(Rejection::INTERRUPTED);
        if letter.is_some() && (bad > 0 || blind) {
            self.commits(&batch, row, &[], &records, abandoned, all);
        } else if fatal > 0 {
            let checked = letter == Some(Rejection::SUSPECTED);
            let error = if checked { rejected(Rejection::INTERRUPTED) } else { transient() };
            all.push(failed("the record ends the connection", error, false));
        } else if bad > 0 || heavy > 1 {
            let codes: &[&str] = if bad > 0 { &["P0001", "XX000"] } else { &["57014"] };
            for code in codes {
                let error = match () {
                    () if bugs.refused_is_transient => transient(),
                    () if bugs.refused_is_systemic => StoreError::Systemic("refused".into()),
                    () => rejected(code),
                };
                all.push(failed("refused", error, keeps_open && !bugs.refused_is_transient));
            }
        } else {
            self.commits(&batch, row, &records, &[], abandoned, all);
            if letter == Some(Rejection::SUSPECTED) && self.faults.unknown > 0 {
                let mut world = failed("interrupted after the check", rejected(Rejection::INTERRUPTED), false);
                world.faults.unknown -= 1;
                all.push(world);
            }
        }
    }

    /// The lane's row before the batch, or what the store returns instead of committing it.
    fn compare_and_set(&self, batch: &Batch) -> Result<LaneRow, Result<Flushed, StoreError>> {
        let lost = StoreError::LeaseLost { writer: uuid::Uuid::nil(), mine: self.lease.unwrap_or_default() };
        let Some(row) = &self.database.row else { return Err(Err(lost)) };
        let at = |seq, records| row.last_seq == seq && row.accounted() == records;
        if self.lease != Some(self.database.epoch) || row.epoch != self.database.epoch {
            return Err(Err(lost));
        }
        let known = self.connection.clone().unwrap_or_default();
        if row.lane_id != known.lane_id {
            return Err(Err(lost));
        }
        let starts_here = at(batch.from_seq, batch.from_records);
        if let Some(begun) = batch.begun().filter(|begun| starts_here && begun.digest().frame() != row.digest.frame()) {
            return Err(Err(StoreError::SequenceReused { lane: 0, seq: begun.seq }));
        }
        if starts_here || self.bugs().no_compare_and_set {
            return Ok(row.clone());
        }
        if !at(batch.to_seq(), batch.to_records()) {
            return Err(Err(StoreError::CursorMoved(Box::new(row.clone()))));
        }
        if row.digest != batch.digest() {
            return Err(Err(StoreError::SequenceReused { lane: 0, seq: batch.to_seq() }));
        }
        let (rows, dead_lettered) = (row.rows - known.rows, row.dead_lettered - known.dead_lettered);
        Err(Ok(Flushed { rows, dead_lettered, ..Flushed::default() }))
    }

    /// Commits, with a known or an unknown outcome.
    fn commits(
        &self,
        batch: &Batch,
        row: LaneRow,
        rows: &[usize],
        letters: &[usize],
        abandoned: bool,
        all: &mut Vec<Self>,
    ) {
        let mut transaction = Transaction {
            rows: [0; RECORDS],
            letters: [0; RECORDS],
            row: LaneRow {
                rows: row.rows + rows.len() as u64,
                dead_lettered: row.dead_lettered + letters.len() as u64,
                lost: row.lost + batch.lost(),
                last_seq: batch.to_seq(),
                digest: batch.digest(),
                ..row
            },
        };
        rows.iter().for_each(|&record| transaction.rows[record] += 1);
        letters.iter().for_each(|&record| transaction.letters[record] += 1);
        if transaction.row.accounted() != batch.to_records() && !self.bugs().no_guard {
            let mut world = self.after("the counts do not add up");
            let error = StoreError::Systemic("inconsistent counts".into());
            world.handle(Event::FlushFailed { error, open: false });
            all.push(world);
            return;
        }
        let mut before = self.clone();
        if before.bugs().removed_early {
            before.committed = batch.to_seq();
        }
        if before.durable_tail().seq < batch.last_seq() {
            before.violation = Some((NotDurable, format!("frame {}", batch.last_seq())));
        }
        let (rows, dead_lettered) = (rows.len() as u64, letters.len() as u64);
        let flushed = Flushed { rows, dead_lettered, ..Flushed::default() };
        let unknown = |world: &mut Self| {
            world.handle(match (abandoned, world.bugs().unknown_is_success) {
                (true, _) => Event::Abandoned { open: false, timed_out: false },
                (_, true) => Event::Flushed { flushed: flushed.clone(), took: self.scenario.took },
                _ => Event::FlushFailed { error: transient(), open: false },
            });
        };
        if !abandoned {
            let mut world = before.after("commit");
            world.commit(transaction.clone());
            world.connection.clone_from(&world.database.row);
            world.handle(Event::Flushed { flushed: flushed.clone(), took: self.scenario.took });
            all.push(world);
            if before.faults.unknown == 0 {
                return;
            }
            before.faults.unknown -= 1;
        }
        let mut world = before.after("commit, its answer is lost");
        world.commit(transaction.clone());
        unknown(&mut world);
        all.push(world);
        let mut world = before.after("rolled back");
        unknown(&mut world);
        all.push(world);
        if before.bugs().cursor_outside {
            let mut world = before.after("only the rows are committed");
            let row = world.database.row.clone();
            world.commit(transaction.clone());
            world.database.row = row;
            unknown(&mut world);
            all.push(world);
        }
        let mut world = before.after("no answer yet");
        world.zombie = Some(transaction);
        unknown(&mut world);
        all.push(world);
    }

    /// Checks what must hold in every state.
    fn check(&self) -> Result<(), Violated> {
        if let Some(violation) = &self.violation {
            return Err(violation.clone());
        }
        for (record, kind) in self.kinds().enumerate() {
            let (rows, letters) = (self.database.rows[record], self.database.letters[record]);
            if rows + letters > 1 {
                return Err((Doubled, format!("record {record} is stored {rows} times, with {letters} dead letters")));
            }
            if letters > 0 && ![Bad, Fatal].contains(&kind) {
                return Err((GoodLetter, format!("record {record}")));
            }
        }
        Ok(())
    }

    /// Checks that the lane comes to rest once faults end. `calm` has the states for which that is known.
    fn check_rest(&self, calm: &mut HashSet<u64>) -> Result<(), Violated> {
        for commits in [true, false] {
            let mut world = self.clone();
            world.faults = Faults::default();
            world.spell = false;
            world.backup = None;
            world.durable = world.journal.len();
            world.appended = world.scenario.frames.len();
            world.end_zombie(commits);
            if world.phase != Phase::Accepting {
                world.restart();
            }
            world.check_calm(calm)?;
        }
        Ok(())
    }

    fn check_calm(mut self, calm: &mut HashSet<u64>) -> Result<(), Violated> {
        let mut passed = Vec::new();
        for _ in 0..300 {
            let hash = self.hash();
            if calm.contains(&hash) {
                calm.extend(passed);
                return Ok(());
            }
            passed.push(hash);
            self.check()?;
            if self.resting {
                let is_done = self.database.row.as_ref().is_some_and(|row| row.accounted() >= self.tail().records);
                if is_done && self.mailbox.is_empty() {
                    calm.extend(passed);
                    return self.check_complete();
                }
                match self.mailbox.is_empty() {
                    true => self.handle(Event::CatchUp(self.released)),
                    false => self.receive(),
                }
                continue;
            }
            let mut next = Vec::new();
            self.act(&mut next);
            // All refusals lead on; the first will do.
            let Some(world) = next.into_iter().next() else { return Err((Stuck, "it waits for ever".into())) };
            self = world;
        }
        Err((Stuck, "it does not come to rest".into()))
    }

    fn check_complete(&self) -> Result<(), Violated> {
        let mut missing = 0;
        for frame in &self.journal {
            let first = self.first_record(frame.content);
            for record in first..first + self.scenario.frames[frame.content].len() {
                if self.database.rows[record] + self.database.letters[record] == 0 {
                    missing += 1;
                    if frame.seq > self.removed || !self.restored {
                        return Err((Lost, format!("record {record}")));
                    }
                }
            }
        }
        let lost = self.database.row.as_ref().map_or(0, |row| row.lost);
        match lost == missing {
            true => Ok(()),
            false => Err((Miscounted, format!("{missing} records are missing, {lost} are counted as lost"))),
        }
    }

    fn trail(&self) -> String {
        let mut labels = Vec::new();
        let mut step = self.trail.as_ref();
        while let Some(Step { label, before }) = step.map(AsRef::as_ref) {
            labels.push(*label);
            step = before.as_ref();
        }
        labels.reverse();
        labels.join("; ")
    }
}

fn machine(scenario: &Scenario) -> Machine {
    let suspected_after = if scenario.bugs.never_suspected { u32::MAX } else { INTERRUPTIONS.into() };
    Machine::new(0, Division::suspecting_after(suspected_after, 4, TIMEOUT))
}

fn hashable(row: &LaneRow) -> (i64, u64, Digest, u64, u64, u64) {
    (row.epoch, row.last_seq, row.digest.clone(), row.rows, row.dead_lettered, row.lost)
}

/// The first violation that a search finds.
struct Found {
    violation: Violation,
    /// Number of states before it.
    states: usize,
    /// What happened.
    after: String,
}

/// Returns the number of states, or the first violation.
fn search(scenario: &Scenario) -> Result<usize, Found> {
    let (mut visited, mut calm) = (HashSet::new(), HashSet::new());
    let mut frontier = vec![World::new(scenario)];
    for _ in 0..scenario.depth {
        let mut next = Vec::new();
        for world in frontier {
            for world in world.successors() {
                if !visited.insert(world.hash()) {
                    continue;
                }
                if let Err((violation, why)) = world.check().and_then(|()| world.check_rest(&mut calm)) {
                    let after = format!("{why}, after: {}", world.trail());
                    return Err(Found { violation, states: visited.len(), after });
                }
                next.push(world);
            }
        }
        frontier = next;
    }
    Ok(visited.len())
}

const CALM: Faults = Faults {
    crashes: 0,
    power_cuts: 0,
    unknown: 0,
    unreachable: 0,
    restores: 0,
    removals: 0,
    spells: 0,
    drains: 0,
    mailbox_full: 0,
};
const NO_BUGS: Bugs = Bugs {
    no_compare_and_set: false,
    no_guard: false,
    cursor_outside: false,
    not_durable: false,
    unknown_is_success: false,
    deaf: false,
    unchecked_letter: false,
    one_check: false,
    no_partial: false,
    removed_early: false,
    refused_is_transient: false,
    refused_is_systemic: false,
    never_suspected: false,
};

const CRASHES: Scenario = Scenario {
    frames: &[&[Good, Good], &[Good]],
    faults: Faults { crashes: 1, power_cuts: 1, unknown: 2, mailbox_full: 1, ..CALM },
    bugs: NO_BUGS,
    keeps_open: false,
    took: Duration::ZERO,
    depth: 18,
};
const RESTORED: Scenario = Scenario {
    frames: &[&[Good, Bad], &[Good]],
    faults: Faults { crashes: 1, unknown: 1, restores: 1, removals: 1, ..CALM },
    bugs: NO_BUGS,
    keeps_open: false,
    took: Duration::ZERO,
    depth: 20,
};
const REFUSED: Scenario = Scenario {
    frames: &[&[Good, Bad, Good], &[Heavy, Heavy]],
    faults: Faults { crashes: 1, unknown: 1, ..CALM },
    bugs: NO_BUGS,
    keeps_open: false,
    took: Duration::ZERO,
    depth: 26,
};
/// A frame of which only a part is committed meets a power cut.
const PARTS: Scenario = Scenario {
    frames: &[&[Good, Bad], &[Good]],
    faults: Faults { power_cuts: 1, unknown: 1, ..CALM },
    bugs: NO_BUGS,
    keeps_open: true,
    took: TIMEOUT,
    depth: 19,
};
const INTERRUPTED: Scenario = Scenario {
    frames: &[&[Good, Fatal], &[Good]],
    faults: Faults { crashes: 1, unknown: INTERRUPTIONS, ..CALM },
    bugs: NO_BUGS,
    keeps_open: false,
    took: TIMEOUT,
    depth: 34,
};
const SPELLS: Scenario = Scenario {
    frames: &[&[Good, Good], &[Bad]],
    faults: Faults { spells: 2, unknown: 1, unreachable: 1, ..CALM },
    bugs: NO_BUGS,
    keeps_open: false,
    took: Duration::ZERO,
    depth: 22,
};
const DRAINS: Scenario = Scenario {
    frames: &[&[Good], &[Bad, Good]],
    faults: Faults { drains: 1, unknown: 1, spells: 1, mailbox_full: 1, ..CALM },
    bugs: NO_BUGS,
    keeps_open: false,
    took: Duration::ZERO,
    depth: 17,
};

fn holds(name: &str, scenario: &Scenario, states_min: usize) {
    let started = std::time::Instant::now();
    let states =
        search(scenario).unwrap_or_else(|Found { violation, after, .. }| panic!("{name}: {violation:?}: {after}"));
    println!("{name}: {states} states, {} events deep, in {:?}", scenario.depth, started.elapsed());
    assert!(states >= states_min, "{name}: only {states} states");
}

#[test]
fn crashes_power_cuts_and_unknown_outcomes_lose_and_double_nothing() {
    holds("crashes", &CRASHES, 15_000);
}

#[test]
fn a_restored_database_gets_what_the_journal_still_has() {
    holds("restored", &RESTORED, 15_000);
}

#[test]
fn a_refused_record_becomes_a_dead_letter_and_its_neighbors_are_stored() {
    holds("refused", &REFUSED, 7_000);
}

#[test]
fn a_frame_that_is_committed_in_parts_survives_a_power_cut() {
    holds("parts", &PARTS, 5_000);
}

#[test]
fn a_record_that_always_ends_the_connection_becomes_a_dead_letter_and_lost_connections_make_none() {
    holds("interrupted", &INTERRUPTED, 2_000);
}

#[test]
fn what_concerns_every_row_dead_letters_nothing() {
    holds("spells", &SPELLS, 15_000);
}

#[test]
fn a_shutdown_leaves_the_rest_to_the_journal() {
    holds("drains", &DRAINS, 30_000);
}

#[test]
fn each_bug_is_found_by_what_it_violates() {
    let unchecked = Bugs { no_compare_and_set: true, no_guard: true, ..NO_BUGS };
    let endless = Bugs { refused_is_transient: true, never_suspected: true, ..NO_BUGS };
    let table = [
        ("no compare-and-set, no guard", &CRASHES, unchecked, Doubled),
        ("cursor outside", &CRASHES, Bugs { cursor_outside: true, ..NO_BUGS }, Doubled),
        ("not durable", &CRASHES, Bugs { not_durable: true, ..NO_BUGS }, NotDurable),
        ("unknown is success", &CRASHES, Bugs { unknown_is_success: true, ..NO_BUGS }, Stuck),
        ("deaf", &RESTORED, Bugs { deaf: true, ..NO_BUGS }, Stuck),
        ("removed early", &RESTORED, Bugs { removed_early: true, ..NO_BUGS }, Lost),
        ("no partial", &REFUSED, Bugs { no_partial: true, ..NO_BUGS }, Stuck),
        ("refused is transient", &REFUSED, endless, Stuck),
        ("refused is systemic", &REFUSED, Bugs { refused_is_systemic: true, ..NO_BUGS }, Stuck),
        ("no partial, in parts", &PARTS, Bugs { no_partial: true, ..NO_BUGS }, Stuck),
        ("never suspected", &INTERRUPTED, Bugs { never_suspected: true, ..NO_BUGS }, Stuck),
        ("one check, interrupted", &INTERRUPTED, Bugs { one_check: true, ..NO_BUGS }, GoodLetter),
        ("unchecked letter", &SPELLS, Bugs { unchecked_letter: true, ..NO_BUGS }, GoodLetter),
        ("one check", &SPELLS, Bugs { one_check: true, ..NO_BUGS }, GoodLetter),
    ];
    let found: Vec<_> = table
        .iter()
        .map(|&(name, scenario, bugs, _)| match search(&Scenario { bugs, ..*scenario }) {
            Ok(states) => {
                println!("{name}: not found in {states} states");
                (name, None)
            }
            Err(Found { violation, states, after }) => {
                println!("{name}: {violation:?} in one of {states} states: {after}");
                (name, Some(violation))
            }
        })
        .collect();
    let expected: Vec<_> = table.iter().map(|&(name, .., violation)| (name, Some(violation))).collect();
    assert_eq!(found, expected);
}

#[test]
fn the_compare_and_set_and_the_guard_each_suffice() {
    let without = |name, bugs| holds(name, &Scenario { bugs, ..CRASHES }, 15_000);
    without("no compare-and-set", Bugs { no_compare_and_set: true, ..NO_BUGS });
    without("no guard", Bugs { no_guard: true, ..NO_BUGS });
}
