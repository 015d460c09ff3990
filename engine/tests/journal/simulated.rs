//! The journal on a simulated disk: appends, commits, rotations, full disks, failing operations, crashes and power
//! failures, all of which follow from a seed. Compared with a list of what was acknowledged.
//!
//! - `LOGWEIR_SEEDS=10000 cargo test -p logweir-engine --all-features --test journal simulated` tries as many seeds.
//! - `LOGWEIR_SEED=n` repeats one and prints its steps.
//!
//! The writer and the housekeeper run in steps, on the test's thread, in an order that follows from the seed; the
//! housekeeper also in the middle of the writer's answers. The identities of journal and runs are random, but nothing
//! depends on them.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use futures_util::FutureExt;
use logweir_engine::fault;
use logweir_engine::file_system::{Crash, Operation, Random, SimulatedDisk};
use logweir_engine::journal::{
    AppendError, Damage, HousekeeperSteps, Journal, JournalConfig, LaneId, OpenError, Recovered, WriterSteps,
};
use rustix::io::Errno;
use uuid::Uuid;

use crate::kit::{SEGMENT_BYTES, payload, when_settled};

const LANES: u64 = 3;
const DIR: &str = "/data/logweir/journal";

/// What was promised about a frame.
#[derive(Clone, Debug)]
struct Promised {
    lane: LaneId,
    payload: Vec<u8>,
    acknowledged: bool,
}

/// What the callbacks write to.
#[derive(Debug, Default)]
struct Ledger {
    /// Every frame that may be in the journal, by its sequence number.
    frames: BTreeMap<u64, Promised>,
    /// Why appends failed.
    failures: Vec<AppendError>,
}

/// Steps of the test, for the report of a failed seed.
#[derive(Default)]
struct Log {
    lines: Vec<String>,
    prints: bool,
}

impl Log {
    fn add(&mut self, line: impl Debug) {
        let line = format!("{line:?}");
        if self.prints {
            println!("{line}");
        }
        self.lines.push(line);
    }
}

/// A running journal.
struct Running {
    journal: Arc<Journal>,
    writer: Arc<Mutex<WriterSteps>>,
    housekeeper: Arc<Mutex<HousekeeperSteps>>,
}

/// Syncs wait until this is dropped, also by a panic.
struct Slow(SimulatedDisk);

impl Slow {
    fn new(disk: &SimulatedDisk) -> Self {
        disk.hang_syncs(true);
        Self(disk.clone())
    }
}

impl Drop for Slow {
    fn drop(&mut self) {
        self.0.hang_syncs(false);
    }
}

/// One seed.
struct Simulation {
    random: Random,
    disk: SimulatedDisk,
    config: JournalConfig,
    ledger: Arc<Mutex<Ledger>>,
    /// Committed position of each lane.
    committed: BTreeMap<LaneId, u64>,
    /// Whether an error was injected that may poison the journal or prevent a start, until the next restart.
    broken: bool,
    /// Whether pages of the disk become unreadable, and nothing else fails.
    is_damaged: bool,
    /// Whether one was: what is in it is named, and may be missing.
    damaged: bool,
    /// Whether one bit of a START flips, once.
    flips: bool,
    /// The last run that was opened.
    run: Option<Uuid>,
    damage: Vec<Damage>,
    appended: usize,
    log: Log,
}

type Checked<T> = Result<T, String>;

macro_rules! check_that {
    ($condition:expr, $($message:tt)*) => {
        if !$condition {
            return Err(format!($($message)*));
        }
    };
}

impl Simulation {
    fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let disk = SimulatedDisk::new(random.number());
        disk.set_partial(random.percent(50));
        let config = JournalConfig {
            segment_bytes: SEGMENT_BYTES,
            quota_bytes: SEGMENT_BYTES * (4 + random.below(8)),
            ballast_bytes: if random.percent(50) { SEGMENT_BYTES } else { 0 },
            queue_bytes_max: 1 << 20,
            retain_segments: usize::try_from(random.below(2)).unwrap(),
            file_system: Arc::new(disk.clone()),
            ..JournalConfig::new(DIR)
        };
        let is_damaged = random.percent(25);
        let flips = !is_damaged && random.percent(20);
        Self {
            random,
            disk,
            config: JournalConfig { quota_bytes: config.quota_bytes + config.ballast_bytes, ..config },
            ledger: Arc::default(),
            committed: BTreeMap::new(),
            broken: false,
            is_damaged,
            damaged: false,
            flips,
            run: None,
            damage: Vec::new(),
            appended: 0,
            log: Log::default(),
        }
    }

    fn run(&mut self) -> Checked<()> {
        let lives = 2 + self.random.below(5);
        for _ in 0..lives {
            self.live()?;
        }
        // At the end the disk is sound and has space: everything goes on.
        self.disk.set_capacity(u64::MAX);
        self.broken = false;
        let Some(running) = self.open()? else { return Err("a sound disk prevents a start".to_owned()) };
        self.compare(&running)?;
        running.housekeeper.lock().unwrap().step();
        running.housekeeper.lock().unwrap().step();
        for lane in 0..LANES as LaneId {
            self.commit_all(&running, lane);
        }
        running.housekeeper.lock().unwrap().step();
        let before = self.acknowledged();
        self.append(&running);
        while running.writer.lock().unwrap().step() {}
        check_that!(
            self.acknowledged() > before,
            "a sound disk accepts nothing: {:?}",
            running.journal.check_writable()
        );
        self.compare(&running)
    }

    fn acknowledged(&self) -> usize {
        self.ledger.lock().unwrap().frames.values().filter(|frame| frame.acknowledged).count()
    }

    /// From a start to a crash or a seal.
    fn live(&mut self) -> Checked<()> {
        self.broken = false;
        if self.random.percent(20) {
            let operations = self.random.below(60);
            self.log.add(format!("the start ends after {operations} operations"));
            self.disk.crash_after(operations);
        } else if self.random.percent(15) {
            self.inject();
        }
        if self.is_damaged && self.random.percent(50) {
            self.make_unreadable();
        }
        if self.flips && self.random.percent(50) {
            self.flip();
        }
        let Some(mut running) = self.open()? else { return self.crash(None) };
        if !self.disk.is_down() {
            self.compare(&running)?;
        }
        if self.random.percent(60) {
            let operations = self.random.below(400);
            self.log.add(format!("crash in {operations} operations"));
            self.disk.crash_after(operations);
        }
        let steps = 10 + self.random.below(60);
        for _ in 0..steps {
            self.step(&mut running)?;
            if self.disk.is_down() || running.journal.check_writable().is_err_and(|error| is_poison(&error)) {
                break;
            }
        }
        self.check_poison(&running)?;
        if !self.disk.is_down() && !self.broken && self.random.percent(40) {
            return self.seal(running);
        }
        self.crash(Some(running))
    }

    fn step(&mut self, running: &mut Running) -> Checked<()> {
        match self.random.below(100) {
            0..50 => self.append(running),
            50..72 => {
                self.log.add("write");
                running.writer.lock().unwrap().step();
            }
            72..75 => self.write_slowly(running)?,
            75..85 => {
                self.log.add("tidy");
                running.housekeeper.lock().unwrap().step();
            }
            85..92 => {
                let lane = self.lane();
                self.commit_some(running, lane);
            }
            92..95 if !self.is_damaged => {
                let room = self.random.below(3 * SEGMENT_BYTES);
                let capacity = if self.random.percent(50) { u64::MAX } else { self.disk.used_bytes() + room };
                self.log.add(format!("capacity {capacity}"));
                self.disk.set_capacity(capacity);
            }
            92..97 => self.inject(),
            _ => self.compare(running)?,
        }
        Ok(())
    }

    /// A step of the writer whose first sync takes so long that others append, commit and read meanwhile, or that the power
    /// fails in it.
    fn write_slowly(&mut self, running: &Running) -> Checked<()> {
        self.log.add("write slowly");
        let checked = std::thread::scope(|scope| {
            let _slow = Slow::new(&self.disk);
            let step = scope.spawn(|| running.writer.lock().unwrap().step());
            while self.disk.hanging() == 0 && !step.is_finished() {
                std::thread::yield_now();
            }
            if self.disk.hanging() > 0 { self.while_it_syncs(running) } else { Ok(()) }
        });
        self.log.add("the sync is over");
        checked
    }

    fn while_it_syncs(&mut self, running: &Running) -> Checked<()> {
        let acknowledged = self.acknowledged();
        let age = running.journal.oldest_append_age();
        check_that!(!age.is_zero(), "what is being synced has no age");
        for _ in 0..self.random.below(4) {
            match self.random.below(4) {
                0 => {
                    let lane = self.lane();
                    self.commit_some(running, lane);
                }
                // A reader that meets a bad place asks the disk with a sync of its own.
                1 if !self.is_damaged => self.compare(running)?,
                _ => self.append(running),
            }
        }
        check_that!(self.acknowledged() == acknowledged, "a frame is acknowledged during its sync");
        if self.random.percent(20) {
            self.log.add("the process ends in the sync");
            self.disk.crash_after(0);
        }
        Ok(())
    }

    fn lane(&mut self) -> LaneId {
        LaneId::try_from(self.random.below(LANES)).unwrap()
    }

    /// Makes a page of a segment unreadable, for good or twice.
    fn make_unreadable(&mut self) {
        let names = self.disk.names(Path::new(DIR));
        let mut segments: Vec<_> =
            names.iter().filter(|name| name.to_str().is_some_and(|it| it.ends_with(".wal"))).collect();
        if segments.is_empty() {
            return;
        }
        let segment = segments.swap_remove(usize::try_from(self.random.below(segments.len() as u64)).unwrap());
        let start = self.random.below(SEGMENT_BYTES / 4096) * 4096;
        let times = if self.random.percent(50) { u32::MAX } else { 2 };
        self.damaged |= times == u32::MAX;
        self.log.add(format!("{start} to {} of {segment:?} cannot be read, {times} times", start + 4096));
        let _ = self.disk.make_unreadable(&Path::new(DIR).join(segment), start..start + 4096, times);
    }

    /// Flips a bit in the list of runs at the head of the newest segment, behind its header of 168 bytes and the frame's
    /// of 64.
    fn flip(&mut self) {
        let newest = self.disk.names(Path::new(DIR)).into_iter().rfind(|name| name.to_string_lossy().ends_with(".wal"));
        let bit = 8 * (168 + 64) + self.random.below(8 * 48);
        if let Some(newest) = newest
            && self.disk.flip(&Path::new(DIR).join(&newest), bit).is_ok()
        {
            self.log.add(format!("bit {bit} of {newest:?} flips"));
            (self.flips, self.damaged) = (false, true);
        }
    }

    /// Sequence ranges of the damage in the quarantine: also readers find some.
    fn is_in_quarantine(&self, seq: u64) -> bool {
        let names = self.disk.names(&Path::new(DIR).join("quarantine"));
        names.iter().any(|name| {
            let numbers = name.to_str().and_then(|name| name.strip_prefix("damage-")).unwrap_or_default();
            let numbers: Vec<u64> = numbers.split('-').filter_map(|number| number.parse().ok()).collect();
            numbers.len() == 4 && (numbers[2]..=numbers[3]).contains(&seq)
        })
    }

    /// Lets one of the next operations fail.
    fn inject(&mut self) {
        if self.is_damaged {
            return self.make_unreadable();
        }
        use Operation::{Open, Remove, Rename, SetLen, Sync, SyncDir, Write};
        let operations = [Open, Write, Sync, SyncDir, SetLen, Rename, Remove];
        let operation = operations[usize::try_from(self.random.below(operations.len() as u64)).unwrap()];
        let passing = [Errno::NOSPC, Errno::DQUOT, Errno::MFILE, Errno::NFILE];
        let error = match self.random.below(5) {
            index @ 0..4 if matches!(operation, Open | Write) => passing[usize::try_from(index).unwrap()],
            _ => Errno::IO,
        };
        let times = 1 + u32::try_from(self.random.below(2)).unwrap();
        self.broken |= error == Errno::IO || operation == Open;
        self.log.add(format!("{operation:?} fails with {error:?}, {times} times"));
        self.disk.fail(operation, "", error, times);
    }

    fn open(&mut self) -> Checked<Option<Running>> {
        match Journal::open_in_steps(&self.config) {
            Ok((journal, recovered, writer, housekeeper)) => {
                self.log.add(format!("opened: {} torn, {:?}", recovered.torn_bytes, recovered.damage));
                if !self.disk.is_down() {
                    self.check_recovered(&recovered)?;
                }
                self.damage.extend(recovered.damage);
                let (writer, housekeeper) = (Arc::new(Mutex::new(writer)), Arc::new(Mutex::new(housekeeper)));
                Ok(Some(Running { journal: Arc::new(journal), writer, housekeeper }))
            }
            Err(error) => {
                self.log.add(format!("not opened: {error}"));
                let full = matches!(&error, OpenError::Io { source, .. } if is_space(source));
                check_that!(self.broken || full || self.disk.is_down(), "a start fails without a reason: {error}");
                Ok(None)
            }
        }
    }

    fn check_recovered(&mut self, recovered: &Recovered) -> Checked<()> {
        if let Some(run) = self.run.replace(recovered.run) {
            check_that!(self.is_damaged || recovered.runs.contains(&run), "the journal has forgotten its last run");
        }
        check_that!(self.damaged || recovered.damage.is_empty(), "damage of a sound disk: {:?}", recovered.damage);
        Ok(())
    }

    /// A full disk and used-up descriptors pass; only a broken disk may end a journal.
    fn check_poison(&self, running: &Running) -> Checked<()> {
        match running.journal.check_writable() {
            Err(error) if is_poison(&error) && !self.broken && !self.disk.is_down() => {
                Err(format!("poisoned without a reason: {error}"))
            }
            _ => Ok(()),
        }
    }

    fn append(&mut self, running: &Running) {
        let lane = self.lane();
        let bytes = match self.random.below(10) {
            0 => self.random.below(40_000),
            1..4 => self.random.below(8_000),
            _ => self.random.below(600),
        };
        self.appended += 1;
        let payload = payload(self.appended, usize::try_from(bytes).unwrap());
        let tidies = self.random.percent(30);
        let appended = append(running, &self.disk, &self.ledger, lane, payload, tidies);
        self.log.add(format!("append to {lane}: {appended:?}"));
    }

    fn commit_some(&mut self, running: &Running, lane: LaneId) {
        let durable = running.journal.lane_durable(lane).seq;
        let ledger = self.ledger.lock().unwrap();
        let seqs: Vec<_> = ledger.frames.iter().filter(|(seq, frame)| frame.lane == lane && **seq <= durable).collect();
        if seqs.is_empty() {
            return;
        }
        let (&seq, _) = seqs[usize::try_from(self.random.below(seqs.len() as u64)).unwrap()];
        drop(ledger);
        self.commit(running, lane, seq);
    }

    fn commit_all(&mut self, running: &Running, lane: LaneId) {
        let seq = running.journal.lane_durable(lane).seq;
        self.commit(running, lane, seq);
    }

    fn commit(&mut self, running: &Running, lane: LaneId, seq: u64) {
        let committed = self.committed.entry(lane).or_default();
        *committed = seq.max(*committed);
        self.log.add(format!("commit {lane} up to {committed}"));
        running.journal.commit(lane, *committed);
    }

    /// Every acknowledged frame that is not committed is there, as it was appended, and nothing else.
    fn compare(&mut self, running: &Running) -> Checked<()> {
        let mut reader = running.journal.reader_all_lanes(0);
        let mut found = BTreeMap::new();
        loop {
            let frames = match reader.next_frames(100, 1 << 20) {
                Ok(frames) if frames.is_empty() => break,
                Ok(frames) => frames,
                Err(error) => {
                    check_that!(self.broken || self.disk.is_down(), "a read fails without a reason: {error}");
                    return Ok(());
                }
            };
            for frame in frames {
                let last = found.last_key_value().map_or(0, |(seq, _)| *seq);
                check_that!(frame.seq > last, "frame {} is read after {last}", frame.seq);
                found.insert(frame.seq, frame);
            }
        }
        // What is damaged may not have been named any more.
        if self.disk.is_down() {
            return Ok(());
        }
        let ledger = self.ledger.lock().unwrap();
        for (seq, frame) in &found {
            let Some(promised) = ledger.frames.get(seq) else { return Err(format!("frame {seq} was never appended")) };
            check_that!(promised.payload == frame.payload && promised.lane == frame.lane, "frame {seq} is another one");
        }
        for (seq, promised) in &ledger.frames {
            let committed = self.committed.get(&promised.lane).is_some_and(|committed| committed >= seq);
            // If nothing of a segment is readable, only the segment is named.
            let named = self.damage.iter().any(|damage| {
                (damage.seq_first..=damage.seq_last).contains(seq) || damage.reason.starts_with("neither")
            }) || self.is_in_quarantine(*seq);
            check_that!(
                found.contains_key(seq) || !promised.acknowledged || committed || named,
                "the acknowledged frame {seq} is lost"
            );
        }
        Ok(())
    }

    fn seal(&mut self, running: Running) -> Checked<()> {
        self.log.add("seal");
        self.disk.heal();
        let Running { journal, writer, housekeeper } = running;
        let writer = Arc::into_inner(writer).expect("nothing else writes").into_inner().unwrap();
        let sealed = writer.seal();
        check_that!(sealed.is_ok() || self.disk.is_down(), "cannot seal on a sound disk: {sealed:?}");
        drop((journal, housekeeper));
        self.disk.restart(Crash::Kill);
        Ok(())
    }

    fn crash(&mut self, running: Option<Running>) -> Checked<()> {
        let crash = if self.random.percent(70) { Crash::PowerLoss } else { Crash::Kill };
        self.log.add(crash);
        drop(running);
        self.disk.restart(crash);
        Ok(())
    }
}

fn is_poison(error: &AppendError) -> bool {
    matches!(error, AppendError::Poisoned(_))
}

fn is_space(error: &std::io::Error) -> bool {
    let passing = [Errno::NOSPC, Errno::DQUOT, Errno::MFILE, Errno::NFILE];
    error.raw_os_error().is_some_and(|code| passing.iter().any(|errno| errno.raw_os_error() == code))
}

/// Appends without waiting. `tidies`: if the append fails, the housekeeper's thread runs while its caller is told, and
/// the caller tries again at once.
fn append(
    running: &Running,
    disk: &SimulatedDisk,
    ledger: &Arc<Mutex<Ledger>>,
    lane: LaneId,
    payload: Vec<u8>,
    tidies: bool,
) -> Result<u64, AppendError> {
    let Some(credit) = running.journal.reserve(payload.len()).now_or_never().transpose()? else {
        return Err(AppendError::Quota);
    };
    let (known, down, kept) = (ledger.clone(), disk.clone(), payload.clone());
    // Nothing answers before the writer's next step, so the sequence number is known by then. Weak, because the journal's
    // queue holds this closure: a journal that is dropped with a full queue would hold itself, and its disk.
    let (journal, housekeeper) = (Arc::downgrade(&running.journal), Arc::downgrade(&running.housekeeper));
    let retried = payload.clone();
    let answer = move |result: Result<u64, AppendError>| {
        if down.is_down() {
            return;
        }
        match result {
            Ok(seq) => known.lock().unwrap().frames.get_mut(&seq).expect("it was appended").acknowledged = true,
            Err(error) => {
                known.lock().unwrap().failures.push(error);
                if tidies
                    && let (Some(journal), Some(housekeeper)) = (journal.upgrade(), housekeeper.upgrade())
                    && let Ok(mut housekeeper) = housekeeper.try_lock()
                {
                    housekeeper.step();
                    housekeeper.step();
                    drop(housekeeper);
                    retry(&journal, &down, &known, lane, retried);
                }
            }
        }
    };
    let appended = running.journal.append(credit, lane, 1, 1, payload, when_settled(answer))?;
    let promised = Promised { lane, payload: kept, acknowledged: false };
    ledger.lock().unwrap().frames.insert(appended.seq, promised);
    Ok(appended.seq)
}

fn retry(journal: &Journal, disk: &SimulatedDisk, ledger: &Arc<Mutex<Ledger>>, lane: LaneId, payload: Vec<u8>) {
    let Some(Ok(credit)) = journal.reserve(payload.len()).now_or_never() else { return };
    let (known, down, kept) = (ledger.clone(), disk.clone(), payload.clone());
    let answer = move |result: Result<u64, AppendError>| {
        if let (Ok(seq), false) = (result, down.is_down()) {
            known.lock().unwrap().frames.get_mut(&seq).expect("it was appended").acknowledged = true;
        }
    };
    if let Ok(appended) = journal.append(credit, lane, 1, 1, payload, when_settled(answer)) {
        let promised = Promised { lane, payload: kept, acknowledged: false };
        ledger.lock().unwrap().frames.insert(appended.seq, promised);
    }
}

/// Runs a seed; on failure its steps and the reason.
fn run_seed(seed: u64, prints: bool) -> Result<usize, String> {
    let mut simulation = Simulation::new(seed);
    simulation.log.prints = prints;
    match simulation.run() {
        Ok(()) => Ok(simulation.acknowledged()),
        Err(reason) => Err(format!("seed {seed}: {reason}")),
    }
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|number| number.parse().unwrap_or_else(|_| panic!("{variable} is a number")))
}

#[test]
fn acknowledged_frames_survive_whatever_the_disk_does() {
    let _armed = std::env::var("LOGWEIR_MUTATION").is_ok().then(fault::arm_from_environment);
    if let Some(seed) = number("LOGWEIR_SEED") {
        run_seed(seed, true).unwrap();
        return;
    }
    let seeds = number("LOGWEIR_SEEDS").unwrap_or(1_000);
    let (next, acknowledged) = (AtomicU64::new(0), AtomicU64::new(0));
    let found = Mutex::new(None);
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds || found.lock().unwrap().is_some() {
                        return;
                    }
                    match run_seed(seed, false) {
                        Ok(count) => _ = acknowledged.fetch_add(count as u64, Ordering::Relaxed),
                        Err(reason) => _ = found.lock().unwrap().get_or_insert((seed, reason)),
                    }
                }
            });
        }
    });
    if let Some((seed, reason)) = found.into_inner().unwrap() {
        println!("@found {} {reason}", seed + 1);
        panic!("{reason}; LOGWEIR_SEED={seed} repeats it and prints its steps");
    }
    let acknowledged = acknowledged.into_inner();
    println!("{seeds} seeds, {acknowledged} frames acknowledged, none lost");
    assert!(acknowledged > seeds, "the simulation appends too little");
}

/// Number of seeds until the simulation finds a mutation; `None` if it does not.
fn seeds_to_find(mutation: &str) -> Option<(u64, String)> {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "simulated::acknowledged_frames_survive_whatever_the_disk_does", "--nocapture"])
        .env("LOGWEIR_MUTATION", "1")
        .env("FAILPOINTS", format!("{mutation}=return"))
        .env_remove("LOGWEIR_SEED")
        .env("LOGWEIR_SEEDS", "2000")
        .env("RUST_BACKTRACE", "0")
        .stderr(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let (_, found) = text.split_once("@found ")?;
    let (seeds, reason) = found.lines().next()?.split_once(' ')?;
    Some((seeds.parse().unwrap(), reason.to_owned()))
}

#[test]
fn each_mutation_of_the_journal_is_found() {
    for mutation in [
        "mutation.skip_fsync",
        "mutation.skip_dir_fsync",
        "mutation.ack_before_fsync",
        "mutation.space_before_roll_back",
        "mutation.no_identity",
    ] {
        let Some((seeds, reason)) = seeds_to_find(mutation) else { panic!("{mutation} was not found") };
        println!("{mutation}: found by seed {seeds}: {reason}");
    }
}
