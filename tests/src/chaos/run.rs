//! Carries a plan out under load, and judges: after each round the program must recover, and at the end everything that
//! was acknowledged must be stored once.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::accounting::Totals;
use crate::chaos::act::Act;
use crate::chaos::operator::{DROPPED_DEAD_LETTERS, DROPPED_LOGS, WRONGLY_DEAD};
use crate::chaos::plan::{Kinds, Plan, Step};
use crate::chaos::world::{DISK_FAILED, Fakes, World, abilities, options};
use crate::client::Load;
use crate::ledger::Outcome;
use crate::oracle::Violation;
use crate::scenario::{PATIENCE, on_postgres_with};

/// What to do.
#[derive(Clone, Debug)]
pub struct Chaos {
    /// Names the plan.
    pub seed: u64,
    /// Rounds begin for this long.
    pub lasts: Duration,
    /// Kinds of acts.
    pub kinds: Kinds,
    /// Fault points of the program.
    pub faults: String,
}

/// What happened.
#[derive(Debug, Default)]
pub struct Report {
    /// Lines: time, act, parameters, outcome.
    pub injected: Vec<String>,
    /// How often each kind was done, and how often it could not be.
    pub counts: BTreeMap<&'static str, (u32, u32)>,
    /// The accounting at the end.
    pub accounting: String,
    /// Violations of the contract.
    pub violations: Vec<Violation>,
}

impl Report {
    /// The report as text.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = self.injected.join("\n");
        text.push_str("\n\nhow often (not possible at that moment):\n");
        for (kind, (done, failed)) in &self.counts {
            let _ = writeln!(text, "  {kind:32} {done} ({failed})");
        }
        let _ = writeln!(text, "\n{}", self.accounting);
        for violation in &self.violations {
            let _ = writeln!(text, "VIOLATION: {violation}");
        }
        text
    }
}

/// About this many records are sent at most, since the oracle keeps them in memory.
const RECORDS_MAX: u32 = 400_000;
/// The program must recover in this time, also on a machine that is busy with other things.
const RECOVERY: Duration = Duration::from_secs(180);
/// After this time the program's logs are kept, to see what it waited for.
const SLOW: Duration = Duration::from_secs(20);
/// Pause before a program whose disk failed is started again.
const RESTART: Duration = Duration::from_millis(300);
/// Pause between looks at the program.
const LOOK: Duration = Duration::from_millis(20);
/// Pause before an act is ended once more.
const AGAIN: Duration = Duration::from_millis(300);

/// Runs the plan of `chaos`.
#[must_use]
pub fn chaos(chaos: &Chaos) -> Report {
    let mut report = Report::default();
    // A third of the seeds have a pooler.
    let fakes = Fakes::new();
    let abilities = abilities(chaos.seed.is_multiple_of(3), &fakes);
    let mut plan = Plan::new(chaos.seed, abilities, &chaos.kinds);
    on_postgres_with("chaos", &options(&fakes), |scenario| {
        let mut world = World::new(scenario, abilities, &chaos.faults, fakes);
        let loads = loads(chaos.lasts).map(|load| world.scenario.load(load));
        world.scenario.stored();
        let mut run =
            Run { began: Instant::now(), round: 0, restarted: None, slowest: Duration::ZERO, report: &mut report };
        while run.began.elapsed() < chaos.lasts && run.report.violations.is_empty() {
            run.round += 1;
            if let Err(violation) = run.carry_out(&mut world, plan.round()) {
                run.report.violations.push(violation);
            }
        }
        loads.into_iter().for_each(crate::client::Running::stop);
        if run.report.violations.is_empty() {
            run.report.violations = findings(&mut world);
        }
        run.report.accounting = accounting(&mut world, run.round, run.slowest);
        if chaos.faults.is_empty() && !run.report.violations.is_empty() {
            let logs = keep_logs(&world, &chaos.seed.to_string());
            run.report.accounting.push_str(&format!("; logs in {}", logs.display()));
        }
    });
    report
}

/// Many small records, and a few large ones.
fn loads(lasts: Duration) -> [Load; 2] {
    let small = Load { clients: 4, records: 10, ..Load::default() };
    let per_pause = u32::try_from(small.clients).unwrap_or(1) * small.records;
    let pause = (lasts * per_pause / RECORDS_MAX).max(Duration::from_millis(40));
    let large = Load { clients: 1, records: 3, message_bytes: 20_000, pause: pause * 10, ..Load::default() };
    [Load { pause, ..small }, large]
}

fn findings(world: &mut World<'_>) -> Vec<Violation> {
    let mut violations = match world.end_sessions().and_then(|()| world.dropped()) {
        Ok(dropped) => {
            let damaged = world.damaged().clone();
            world.scenario.findings_damaged(dropped, &damaged)
        }
        Err(why) => vec![Violation::Stuck(why)],
    };
    violations.extend(wrongly_dead(world));
    violations
}

/// Dead letters of records that were refused only because every record was.
fn wrongly_dead(world: &World<'_>) -> Option<Violation> {
    let count = world.sql(WRONGLY_DEAD).ok().and_then(|rows| rows.first()?.first()?.parse::<u64>().ok());
    (count != Some(0))
        .then(|| Violation::Accounting(format!("{count:?} dead letters of what every row was refused for")))
}

fn accounting(world: &mut World<'_>, rounds: u32, slowest: Duration) -> String {
    let ledger = world.scenario.ledger.clone();
    let acknowledged = ledger.records(Outcome::Acknowledged);
    let mut count = |table: &str| {
        let rows = world.sql(&format!("SELECT count(*) FROM {table}")).unwrap_or_default();
        rows.concat().concat().parse::<u64>().unwrap_or(0)
    };
    let tables = ["logs", DROPPED_LOGS, "logweir_dead_letter", DROPPED_DEAD_LETTERS].map(&mut count);
    let [table, dropped, dead, dropped_dead] = tables;
    let lost = world.sql("SELECT coalesce(sum(lost), 0) FROM logweir_lane").unwrap_or_default();
    let lost = lost.concat().concat().parse::<u64>().unwrap_or(0);
    let stored: u64 = tables.iter().sum::<u64>() + lost;
    let damaged = world.damaged().len();
    let sqlstates = format!(
        "SELECT string_agg(DISTINCT sqlstate, ' ') FROM (SELECT sqlstate FROM logweir_dead_letter UNION ALL \
         SELECT sqlstate FROM {DROPPED_DEAD_LETTERS}) dead"
    );
    let sqlstates = world.sql(&sqlstates).unwrap_or_default().concat().concat();
    let (memory, peak) = world.scenario.server().memory_bytes();
    format!(
        "{rounds} rounds; acknowledged {acknowledged} + in the journal without a response {} (of {}) = {stored} = table \
         {table} + dropped with their table {dropped} + dead letters {dead} + dropped dead letters {dropped_dead} \
         (SQLSTATEs {sqlstates}) + named as damaged {lost} (of {damaged}); slowest recovery {slowest:.1?}; memory {} MiB, at most {} MiB since the last start",
        i128::from(stored) - i128::from(acknowledged),
        ledger.records(Outcome::Unknown),
        memory >> 20,
        peak >> 20,
    )
}

struct Run<'a> {
    began: Instant,
    round: u32,
    /// When the program was started last because its disk had failed.
    restarted: Option<Instant>,
    slowest: Duration,
    report: &'a mut Report,
}

/// An act that is in force, and when it ends; `None`: with its round.
type InForce = (Option<Duration>, Act);

impl Run<'_> {
    fn carry_out(&mut self, world: &mut World<'_>, steps: Vec<Step>) -> Result<(), Violation> {
        let began = Instant::now();
        let mut steps = steps.into_iter().peekable();
        let mut in_force: Vec<InForce> = Vec::new();
        world.disk_failed = false;
        while steps.peek().is_some() || in_force.iter().any(|(end, _)| end.is_some()) {
            self.look(world, &in_force)?;
            let now = began.elapsed();
            // What could not be done has been done in part: it ends at once.
            if let Some(due) = in_force.iter().position(|(end, _)| end.is_some_and(|end| end <= now)) {
                let (_, act) = in_force.remove(due);
                self.end(world, act, &mut in_force, began)?;
            } else if let Some(step) = steps.next_if(|step| step.at <= now) {
                self.begin(world, step, &mut in_force, began)?;
            } else {
                std::thread::sleep(LOOK);
            }
        }
        // What remains is harmless: the program goes on in spite of it.
        self.recovered(world, "in spite of what is still in force")?;
        self.end_all(world, in_force)?;
        self.recovered(world, "after the end of all acts")
    }

    fn end_all(&mut self, world: &mut World<'_>, mut in_force: Vec<InForce>) -> Result<(), Violation> {
        let began = Instant::now();
        while let Some((_, act)) = in_force.pop() {
            self.look(world, &in_force)?;
            let remaining = in_force.len();
            self.end(world, act, &mut in_force, began)?;
            if in_force.len() > remaining {
                std::thread::sleep(AGAIN);
                // Another one first.
                in_force.rotate_right(1);
            }
        }
        Ok(())
    }

    /// The program does not end by itself, except when its disk fails: what supervises it starts it again.
    fn look(&mut self, world: &mut World<'_>, in_force: &[InForce]) -> Result<(), Violation> {
        if world.pooler_crashed() {
            self.enter("PgBouncer crashed, and was started again");
        }
        let is_ended = |(_, act): &InForce| matches!(act, Act::Ended(..));
        let paused = self.restarted.is_none_or(|at| at.elapsed() > RESTART);
        match world.exited() {
            Some(exit) if exit.code() == Some(DISK_FAILED) && world.disk_failed && !in_force.iter().any(is_ended) => {
                if paused {
                    self.enter("the program ended with 74, and is started again");
                    self.restarted = Some(Instant::now());
                    world.launch();
                }
                Ok(())
            }
            Some(exit) if !in_force.iter().any(is_ended) => {
                Err(Violation::Stuck(format!("the program ended by itself: {exit:?}\n{}", tail(world))))
            }
            _ => Ok(()),
        }
    }

    fn begin(
        &mut self,
        world: &mut World<'_>,
        step: Step,
        in_force: &mut Vec<InForce>,
        began: Instant,
    ) -> Result<(), Violation> {
        let act = step.act;
        let is_program = matches!(act, Act::Ended(..) | Act::Suspended);
        if is_program && world.exited().is_some() {
            self.report.counts.entry(act.kind()).or_default().1 += 1;
            self.enter(&format!("skipped: {act} (the program does not run)"));
            return Ok(());
        }
        // Time that other acts took can have moved the end of the one before behind this beginning.
        if let Some(before) = in_force.iter().position(|(_, other)| other.slot() == act.slot()) {
            let (_, before) = in_force.remove(before);
            self.end(world, before, in_force, began)?;
            if in_force.iter().any(|(_, other)| other.slot() == act.slot()) {
                self.report.counts.entry(act.kind()).or_default().1 += 1;
                self.enter(&format!("skipped: {act} ({before} cannot be ended yet)"));
                return Ok(());
            }
        }
        let result = world.begin(act);
        let counts = self.report.counts.entry(act.kind()).or_default();
        match &result {
            Ok(_) => counts.0 += 1,
            Err(_) => counts.1 += 1,
        }
        let lasts = if result.is_ok() { step.lasts } else { Some(Duration::ZERO) };
        match (&result, lasts) {
            (Err(why), _) => self.enter(&format!("skipped: {act} ({why})")),
            (Ok(what), Some(lasts)) => self.enter(&format!("{act} for {lasts:?} {what}")),
            (Ok(what), None) => self.enter(&format!("{act} until the round ends {what}")),
        }
        let ends = lasts.map(|lasts| began.elapsed() + lasts);
        if !act.is_alone() {
            in_force.push((ends, act));
            return Ok(());
        }
        while ends.is_some_and(|ends| began.elapsed() < ends) {
            self.look(world, in_force)?;
            std::thread::sleep(LOOK);
        }
        self.end(world, act, in_force, began)
    }

    fn end(
        &mut self,
        world: &mut World<'_>,
        act: Act,
        in_force: &mut Vec<InForce>,
        began: Instant,
    ) -> Result<(), Violation> {
        match world.end(act) {
            Ok(()) => self.enter(&format!("end of {}", act.kind())),
            // Another act can be in its way.
            Err(why) => {
                let limit = Duration::from_secs(30) + PATIENCE;
                assert!(began.elapsed() < limit, "{act} cannot be ended: {why}\n{}", world.sessions());
                in_force.push((Some(began.elapsed() + AGAIN), act));
                // Who waits for a lock ends the session that holds it.
                let held = in_force.iter_mut().filter(|(_, act)| matches!(act, Act::Held(..)));
                held.for_each(|(ends, _)| *ends = Some(began.elapsed()));
            }
        }
        Ok(())
    }

    fn enter(&mut self, what: &str) {
        let at = self.began.elapsed().as_secs_f64();
        let what: String = what.chars().take(300).collect();
        let line = format!("{at:8.2} s  round {:3}  {what}", self.round);
        eprintln!("{line}");
        self.report.injected.push(line);
    }

    /// What was accepted until now must be stored, and every lane must be well.
    fn recovered(&mut self, world: &mut World<'_>, when: &str) -> Result<(), Violation> {
        let began = Instant::now();
        let mut target = None;
        loop {
            self.look(world, &[])?;
            let status = world.scenario.server().status();
            let totals = Totals::of(&status).filter(|_| status["recovery"]["finished"] != false);
            target = target.or(totals.map(|totals| totals.accepted));
            let lanes = status["lanes"].as_array();
            let well = lanes.is_some_and(|lanes| lanes.iter().all(|lane| lane["store"]["state"] == "ok"));
            let stored = totals.map(|totals| totals.committed + totals.dead);
            if well && target.is_some() && stored >= target {
                self.slowest = self.slowest.max(began.elapsed());
                if began.elapsed() > SLOW {
                    let logs = keep_logs(world, &format!("round-{}", self.round));
                    self.enter(&format!("slow: see the program's logs in {}", logs.display()));
                }
                self.enter(&format!("recovered within {:.2} s {when}", began.elapsed().as_secs_f64()));
                return Ok(());
            }
            if began.elapsed() > RECOVERY {
                let what =
                    format!("no recovery within {RECOVERY:?} {when}: {status}\n{}\n{}", world.sessions(), tail(world));
                return Err(Violation::Stuck(what));
            }
            std::thread::sleep(LOOK);
        }
    }
}

/// The end of the program's log, without the frames of backtraces.
fn tail(world: &mut World<'_>) -> String {
    let log = world.scenario.server().log_text();
    let lines: Vec<&str> = log.lines().filter(|line| !line.starts_with(' ')).collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}

/// Copies the logs of the program to a directory that stays, and returns it.
fn keep_logs(world: &World<'_>, name: &str) -> PathBuf {
    let to = std::env::temp_dir().join(format!("logweir-chaos-{}-{name}", std::process::id()));
    let _ = std::fs::create_dir_all(&to);
    for entry in std::fs::read_dir(&world.scenario.dir).into_iter().flatten().flatten() {
        if entry.path().extension().is_some_and(|extension| extension == "log") {
            let _ = std::fs::copy(entry.path(), to.join(entry.file_name()));
        }
    }
    to
}
