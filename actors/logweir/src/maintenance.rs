//! The loop around the store's maintenance: when it runs, and what is told about the steps that fail.
//!
//! - The first round follows the lease at once, never before: no record waits for it.
//! - Indexes are built beside the rounds, since a build can take hours.
//! - After a failure that passes by itself, such as a lock, the next round comes sooner; and after one that another process
//!   prevented: what does the work may be a session of this one's predecessor, which has not ended yet.
//! - A step that fails is a gauge, a line in the status and few lines in the log: one when it begins, others at growing
//!   intervals, one when it is over.

use std::collections::BTreeMap;
use std::sync::Arc;

use logweir_engine::clock;
use logweir_engine::drain::{DrainWatch, Phase};
use logweir_store::{LogStore, MaintenanceStep, StoreError};
use tokio::time::{Duration, Instant};

use crate::db_flusher::Session;
use crate::progress::{FailingStep, Progress};

/// Interval between rounds.
const EVERY: Duration = Duration::from_secs(300);

/// Interval after the first round with a failure that passes by itself; it doubles up to [`EVERY`].
const SOON: Duration = Duration::from_secs(10);

/// The first interval between lines about the same failing step, and the longest.
const AGAIN_FIRST: Duration = Duration::from_mins(30);
const AGAIN_MAX: Duration = Duration::from_hours(24);

/// Number of rounds without a failing step after which this process no longer reports it: another process runs it, or it
/// is not due. One round is not enough, since the rounds of two processes can coincide.
const MISSED_MAX: u32 = 2;

/// What is to be said about a step.
#[derive(Debug, PartialEq, Eq)]
enum Say {
    Nothing,
    Begun,
    Still,
    Over,
}

/// A step that fails.
#[derive(Debug)]
struct Failing {
    since_us: i64,
    since: Instant,
    error: String,
    said: bool,
    say_again: Instant,
    interval: Duration,
    /// Rounds in a row in which the step did not run here.
    missed: u32,
}

/// The steps that fail, since when. Pure.
#[derive(Debug, Default)]
struct Steps(BTreeMap<&'static str, Failing>);

impl Steps {
    /// Takes in a step's outcome at `now`, when the wall clock shows `now_us`.
    fn observe(&mut self, step: &'static str, result: &Result<(), StoreError>, now_us: i64, now: Instant) -> Say {
        let Err(error) = result else {
            return match self.0.remove(step) {
                Some(failing) if failing.said => Say::Over,
                _ => Say::Nothing,
            };
        };
        let passes = passes(error);
        let error = error.to_string();
        match self.0.get_mut(step) {
            None => {
                let say_again = now + AGAIN_FIRST;
                let failing = Failing {
                    since_us: now_us,
                    since: now,
                    error,
                    said: !passes,
                    say_again,
                    interval: AGAIN_FIRST,
                    missed: 0,
                };
                self.0.insert(step, failing);
                if passes { Say::Nothing } else { Say::Begun }
            }
            Some(failing) => {
                (failing.error, failing.missed) = (error, 0);
                if !failing.said {
                    if passes && now.saturating_duration_since(failing.since) < EVERY {
                        return Say::Nothing;
                    }
                    (failing.said, failing.say_again) = (true, now + failing.interval);
                    return Say::Begun;
                }
                if now < failing.say_again {
                    return Say::Nothing;
                }
                failing.interval = (2 * failing.interval).min(AGAIN_MAX);
                failing.say_again = now + failing.interval;
                Say::Still
            }
        }
    }

    /// Takes in that only the steps `ran` have run in a round. Returns those that are no longer this process's.
    fn observe_missing(&mut self, ran: &[&'static str]) -> Vec<&'static str> {
        let mut over = Vec::new();
        for (step, failing) in &mut self.0 {
            if !ran.contains(step) {
                failing.missed += 1;
                if failing.missed >= MISSED_MAX {
                    over.push(*step);
                }
            }
        }
        self.0.retain(|step, _| !over.contains(step));
        over
    }

    fn snapshot(&self) -> Vec<FailingStep> {
        let step = |(&step, failing): (&&'static str, &Failing)| FailingStep {
            step,
            since_s: failing.since_us / 1_000_000,
            error: failing.error.clone(),
        };
        self.0.iter().map(step).collect()
    }
}

/// Whether a failure passes by itself: a lock, an old transaction, a restart. Another attempt usually gets through.
fn passes(error: &StoreError) -> bool {
    matches!(error, StoreError::Transient(_))
}

/// Whether a round did nothing, since another process is doing it.
fn is_elsewhere(outcome: &[MaintenanceStep]) -> bool {
    outcome.iter().all(|step| step.name == "connection" && step.result.is_ok())
}

/// When the next round follows. Pure.
#[derive(Debug, Default)]
struct Pace(Option<Duration>);

impl Pace {
    /// The interval after a round with this outcome.
    fn after(&mut self, outcome: &[MaintenanceStep]) -> Duration {
        let soon = is_elsewhere(outcome) || outcome.iter().any(|step| step.result.as_ref().is_err_and(passes));
        self.0 = soon.then(|| self.0.map_or(SOON, |last| (2 * last).min(EVERY)));
        self.0.unwrap_or(EVERY)
    }
}

/// The steps of the rounds and those of the indexes, which run at times of their own.
#[derive(Debug, Default)]
struct Told {
    rounds: Steps,
    indexes: Steps,
}

/// Tells about the outcome of the steps of `which`: the log, the gauges and the status.
fn report(told: &mut Told, which: fn(&mut Told) -> &mut Steps, outcome: Vec<MaintenanceStep>, progress: &Progress) {
    let (now_us, now) = (clock::wall_us(), Instant::now());
    let steps = which(told);
    // Without a connection, nothing is known about the others.
    let is_cut = outcome.iter().any(|step| step.name == "connection" && step.result.is_err());
    if !is_cut {
        let ran: Vec<&'static str> = outcome.iter().map(|step| step.name).collect();
        for step in steps.observe_missing(&ran) {
            tracing::info!(step, "a failing step of the database's maintenance does not run in this process any more");
            gauges(step, None);
        }
    }
    for MaintenanceStep { name: step, result } in outcome {
        let since_s = |steps: &Steps| steps.0.get(step).map_or(0, |failing| failing.since_us / 1_000_000);
        let failing_for = |since: Instant| now.saturating_duration_since(since).as_secs();
        let for_s = steps.0.get(step).map_or(0, |failing| failing_for(failing.since));
        match (steps.observe(step, &result, now_us, now), &result) {
            (Say::Begun, Err(error)) => {
                tracing::warn!(step, %error, "a step of the database's maintenance fails; records are stored all the same");
            }
            (Say::Still, Err(error)) => {
                tracing::warn!(step, for_s, %error, "a step of the database's maintenance still fails");
            }
            (Say::Over, _) => tracing::info!(step, "a step of the database's maintenance works again"),
            _ => {}
        }
        gauges(step, result.is_err().then(|| since_s(steps)));
    }
    progress.maintenance_failing([told.rounds.snapshot(), told.indexes.snapshot()].concat());
}

/// Sets the gauges of a step that has failed since then, or does not fail.
fn gauges(step: &'static str, failing_since_s: Option<i64>) {
    metrics::gauge!("logweir_maintenance_failing", "step" => step).set(f64::from(u8::from(failing_since_s.is_some())));
    #[expect(clippy::cast_precision_loss, reason = "seconds since 1970")]
    metrics::gauge!("logweir_maintenance_failing_since_seconds", "step" => step)
        .set(failing_since_s.unwrap_or_default() as f64);
}

/// Maintains the tables until the shutdown, once this process holds the lease.
pub(crate) async fn run(store: Arc<dyn LogStore>, session: Arc<Session>, progress: Progress, drain: DrainWatch) {
    let told = std::cell::RefCell::new(Told::default());
    let rounds = async {
        let mut pace = Pace::default();
        loop {
            session.held().await;
            let outcome = store.maintain(clock::wall_us()).await;
            // It may have been updated meanwhile.
            progress.store(store.name(), store.version());
            let next = pace.after(&outcome);
            report(&mut told.borrow_mut(), |told| &mut told.rounds, outcome, &progress);
            tokio::time::sleep(next).await;
        }
    };
    let indexes = async {
        let mut pace = Pace::default();
        loop {
            session.held().await;
            let outcome = store.build_indexes().await;
            let next = pace.after(&outcome);
            report(&mut told.borrow_mut(), |told| &mut told.indexes, outcome, &progress);
            tokio::time::sleep(next).await;
        }
    };
    tokio::select! {
        () = drain.reached(Phase::Draining) => {}
        () = async { tokio::join!(rounds, indexes); } => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: i64 = 60 * 1_000_000;

    /// Steps whose clocks start together.
    struct Watched(Steps, Instant);

    impl Watched {
        fn new() -> Self {
            Self(Steps::default(), Instant::now())
        }

        fn observe(&mut self, step: &'static str, result: &Result<(), StoreError>, now_us: i64) -> Say {
            self.0.observe(step, result, now_us, self.1 + Duration::from_micros(now_us.unsigned_abs()))
        }
    }

    impl std::ops::Deref for Watched {
        type Target = Steps;

        fn deref(&self) -> &Steps {
            &self.0
        }
    }

    impl std::ops::DerefMut for Watched {
        fn deref_mut(&mut self) -> &mut Steps {
            &mut self.0
        }
    }

    fn failure() -> Result<(), StoreError> {
        Err(StoreError::Systemic("permission denied".to_owned()))
    }

    #[test]
    fn a_failing_step_is_told_when_it_begins_at_growing_intervals_and_when_it_is_over() {
        let mut steps = Watched::new();
        let mut said = Vec::new();
        for minute in (0..10_000).step_by(5) {
            match steps.observe("partitions", &failure(), minute * MINUTE) {
                Say::Nothing => {}
                say => said.push((minute, say)),
            }
        }
        let minutes: Vec<i64> = said.iter().map(|(minute, _)| *minute).collect();
        assert_eq!(minutes, [0, 30, 90, 210, 450, 930, 1890, 3330, 4770, 6210, 7650, 9090], "at most once a day");
        assert!(said[0].1 == Say::Begun && said[1..].iter().all(|(_, say)| *say == Say::Still));
        assert_eq!(steps.snapshot()[0].since_s, 0);
        assert_eq!(steps.observe("partitions", &Ok(()), 10_000 * MINUTE), Say::Over);
        assert_eq!(steps.observe("partitions", &Ok(()), 10_005 * MINUTE), Say::Nothing);
        assert!(steps.snapshot().is_empty());
    }

    #[test]
    fn what_passes_by_itself_is_told_once_it_lasts_as_long_as_an_interval() {
        let held = || Err(StoreError::Transient("a lock".to_owned()));
        let mut steps = Watched::new();
        assert_eq!(steps.observe("partitions", &held(), 0), Say::Nothing);
        assert_eq!(steps.snapshot().len(), 1, "but it is in the status and in the gauges");
        assert_eq!(steps.observe("partitions", &held(), MINUTE / 6), Say::Nothing, "the round that comes sooner");
        assert_eq!(steps.observe("partitions", &held(), 5 * MINUTE - 1), Say::Nothing);
        assert_eq!(steps.observe("partitions", &Ok(()), 5 * MINUTE), Say::Nothing);
        assert_eq!(steps.observe("partitions", &held(), 10 * MINUTE), Say::Nothing);
        assert_eq!(steps.observe("partitions", &held(), 15 * MINUTE), Say::Begun);
        assert_eq!(steps.observe("partitions", &held(), 20 * MINUTE), Say::Nothing);
        assert_eq!(steps.observe("partitions", &Ok(()), 25 * MINUTE), Say::Over);
    }

    #[test]
    fn what_no_longer_passes_by_itself_is_told_at_once() {
        let mut steps = Watched::new();
        let held = Err(StoreError::Transient("a lock".to_owned()));
        assert_eq!(steps.observe("partitions", &held, 0), Say::Nothing);
        assert_eq!(steps.observe("partitions", &failure(), MINUTE), Say::Begun);
    }

    #[test]
    fn the_next_round_comes_sooner_while_a_failure_passes_by_itself_or_another_process_is_at_it() {
        let connected = || MaintenanceStep::new("connection", Ok(()));
        let worked = [connected(), MaintenanceStep::new("partitions", Ok(()))];
        let failed = [connected(), MaintenanceStep::new("partitions", failure())];
        let held = MaintenanceStep::new("partitions", Err(StoreError::Transient("a lock".to_owned())));
        for soon in [&[connected(), held][..], &[connected()], &[]] {
            let mut pace = Pace::default();
            assert_eq!((pace.after(&worked), pace.after(&failed)), (EVERY, EVERY));
            let intervals: Vec<u64> = (0..7).map(|_| pace.after(soon).as_secs()).collect();
            assert_eq!(intervals, [10, 20, 40, 80, 160, 300, 300]);
            assert_eq!((pace.after(&worked), pace.after(soon)), (EVERY, SOON));
        }
    }

    #[test]
    fn a_step_that_another_process_runs_or_that_is_not_due_is_cleared_here() {
        let mut steps = Watched::new();
        steps.observe("partitions", &failure(), 0);
        steps.observe("retention_rows", &failure(), 0);
        assert!(steps.observe_missing(&["connection"]).is_empty(), "two processes met");
        steps.observe("partitions", &failure(), 5 * MINUTE);
        assert_eq!(steps.observe_missing(&["connection", "partitions"]), ["retention_rows"]);
        assert_eq!(steps.snapshot()[0].since_s, 0, "the other one goes on");
        assert!(steps.observe_missing(&["connection"]).is_empty());
        assert_eq!(steps.observe_missing(&["connection"]), ["partitions"]);
        assert!(steps.snapshot().is_empty());
    }

    #[test]
    fn steps_are_independent_of_each_other() {
        let mut steps = Watched::new();
        assert_eq!(steps.observe("partitions", &failure(), 0), Say::Begun);
        assert_eq!(steps.observe("text_index", &failure(), MINUTE), Say::Begun);
        assert_eq!(steps.observe("partitions", &Ok(()), 2 * MINUTE), Say::Over);
        let failing: Vec<_> = steps.snapshot().into_iter().map(|step| (step.step, step.since_s)).collect();
        assert_eq!(failing, [("text_index", 60)]);
    }

    #[test]
    fn a_clock_that_goes_ahead_and_back_delays_no_line() {
        let (mut steps, start) = (Steps::default(), Instant::now());
        let at = |minute: u64| start + Duration::from_mins(minute);
        let day_us = 1440 * MINUTE;
        assert_eq!(steps.observe("partitions", &failure(), day_us, at(0)), Say::Begun);
        assert_eq!(steps.observe("partitions", &failure(), 0, at(29)), Say::Nothing);
        assert_eq!(steps.observe("partitions", &failure(), MINUTE, at(30)), Say::Still);
    }
}
