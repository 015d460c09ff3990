//! Rebuilds a stage after a panic or a stall, and turns repeated failures into an [`Exit`] that names the stage.
//!
//! - A panic is never silent: it is counted, logged with the stage's name, and the stage is rebuilt. Queue and address
//!   survive. The message being processed is dropped with its credit and its reply channel, so its sender is notified.
//! - A stage is **stalled** when it has made no progress in its own code for `stall_ms`: no turn and no known wait
//!   began or ended. If its future yields, it is canceled and rebuilt as after a panic. If its thread stays blocked for
//!   another `stall_ms`, nothing in this process can recover it: an [`Exit`] names the stage.
//! - A stage **starves** when it has messages, or a turn, and its thread does not run it: another task blocks the thread,
//!   or the system does not schedule it. After three times `stall_ms` an [`Exit`] names the stage; a stage that blocks
//!   the thread is named before that.
//! - More than `restarts_max` restarts within `restart_window_ms` end in an [`Exit`]: a crash-looping stage must not
//!   look healthy.
//!
//! actix's own supervisor is not used: it does not see panics and keeps the old struct.

use std::collections::VecDeque;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use actix::Context;
use actix::dev::ContextFut;
use tokio::time::Instant;

use crate::actor_host::{ActorHost, Host};
use crate::exit::{Exit, Exits};
use crate::meter::Discard;
use crate::observe::{Cause, Observer, StageState};
use crate::progress::ProgressSample;
use crate::stage::Stage;

/// Supervision policy for every stage of a topology.
#[derive(Clone, Copy, Debug)]
pub struct Supervision {
    /// A stage without progress in its own code for this long is stalled, in milliseconds. At least 1.
    pub stall_ms: u64,
    /// Maximum number of restarts of one stage within the window; one more ends in a drain and exit code 70.
    pub restarts_max: usize,
    /// Length of the window, in milliseconds.
    pub restart_window_ms: u64,
}

/// Marks the actor as stopped when it is dropped, even if its arbiter stopped before the actor was created.
pub(crate) struct LifetimeGuard(Arc<StageState>);

impl LifetimeGuard {
    pub(crate) fn new(stage_state: Arc<StageState>) -> Self {
        Self(stage_state)
    }
}

impl Drop for LifetimeGuard {
    fn drop(&mut self) {
        self.0.semaphore.close();
        self.0.end();
    }
}

/// The future of one actor: polls it, catches its panics, rebuilds it.
pub(crate) struct Supervisor<S: Stage> {
    /// `None` once the actor has stopped; its queue is dropped with it.
    actor: Option<ContextFut<ActorHost<S>, Context<ActorHost<S>>>>,
    stage_state: Arc<StageState>,
    exits: Exits,
    restarts: Restarts,
    host: Rc<Host>,
    /// Dropped after the actor.
    _lifetime: LifetimeGuard,
}

impl<S: Stage> Supervisor<S> {
    pub(crate) fn new(
        actor: ContextFut<ActorHost<S>, Context<ActorHost<S>>>,
        lifetime: LifetimeGuard,
        exits: Exits,
        supervision: Supervision,
        host: Rc<Host>,
    ) -> Self {
        let stage_state = lifetime.0.clone();
        Self { actor: Some(actor), stage_state, exits, restarts: Restarts::new(supervision), host, _lifetime: lifetime }
    }

    /// Polls the actor once. Returns an error if the stage must be rebuilt.
    fn poll_actor(&mut self, cx: &mut TaskContext<'_>) -> Result<Poll<()>, Cause> {
        let progress = &self.stage_state.progress;
        let Some(actor) = &mut self.actor else { return Ok(Poll::Ready(())) };
        self.host.begin_poll(cx);
        progress.set_polling(true);
        let poll = catch_unwind(AssertUnwindSafe(|| Pin::new(actor).poll(cx)));
        progress.set_polling(false);
        let poll = poll.map_err(|payload| Cause::from_panic(&*payload))?;
        // Only after a poll: a stage that did not get its thread because of its neighbors gets the chance to proceed.
        if progress.is_stalled() {
            return Err(Cause::Stall);
        }
        Ok(poll)
    }

    /// Returns false if the stage has failed too often, or if all senders are gone.
    fn rebuild(&mut self, cause: Cause) -> bool {
        let name = self.stage_state.name.as_str();
        self.stage_state.restarted(&cause);
        match &cause {
            Cause::Panic(message) => tracing::error!(stage = name, panic = message, "stage panicked"),
            Cause::Stall => tracing::error!(stage = name, "stage stalled and was canceled"),
        }
        if !self.restarts.allow(Instant::now()) {
            let reason = self.restarts.exceeded(name, &cause);
            self.exits.report(name, Exit::new(Exit::SOFTWARE, reason));
            return false;
        }
        if cause == Cause::Stall {
            self.stage_state.semaphore.set_discard(Discard::Stall);
        }
        // Drops the future and the old stage, whose `drop` may panic as well.
        let Some(actor) = &mut self.actor else { return false };
        let restarted = catch_unwind(AssertUnwindSafe(|| actor.restart()));
        self.stage_state.progress.end_turn();
        self.stage_state.semaphore.set_discard(Discard::Panic);
        match restarted {
            Ok(connected) => connected,
            Err(payload) => self.rebuild(Cause::from_panic(&*payload)),
        }
    }

    /// Closes the mailbox and drops the queue.
    fn end(&mut self) {
        let Some(actor) = self.actor.take() else { return };
        self.stage_state.semaphore.close();
        self.stage_state.semaphore.set_discard(Discard::Stopped);
        if let Err(payload) = catch_unwind(AssertUnwindSafe(|| drop(actor))) {
            let (stage, cause) = (self.stage_state.name.as_str(), Cause::from_panic(&*payload));
            tracing::error!(stage, ?cause, "stage panicked while it was dropped");
        }
        self.stage_state.progress.end_turn();
    }
}

impl<S: Stage> Future for Supervisor<S> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<()> {
        self.stage_state.progress.register(cx.waker());
        while !self.stage_state.progress.is_canceled() {
            match self.poll_actor(cx) {
                Ok(Poll::Pending) => return Poll::Pending,
                Ok(Poll::Ready(())) => break,
                Err(cause) => {
                    if !self.rebuild(cause) {
                        break;
                    }
                }
            }
        }
        self.end();
        Poll::Ready(())
    }
}

impl<S: Stage> Drop for Supervisor<S> {
    fn drop(&mut self) {
        self.end(); // the arbiter was stopped
    }
}

/// Counts restarts in a sliding window.
struct Restarts {
    max: usize,
    window: Duration,
    /// At most `max + 1` of them.
    recent: VecDeque<Instant>,
}

impl Restarts {
    fn new(supervision: Supervision) -> Self {
        let window = Duration::from_millis(supervision.restart_window_ms);
        Self { max: supervision.restarts_max, window, recent: VecDeque::new() }
    }

    /// Records a restart; returns false if it exceeds the limit.
    fn allow(&mut self, now: Instant) -> bool {
        while self.recent.front().is_some_and(|&then| now.duration_since(then) >= self.window) {
            self.recent.pop_front();
        }
        self.recent.push_back(now);
        self.recent.len() <= self.max
    }

    fn exceeded(&self, stage: &str, cause: &Cause) -> String {
        let why = match cause {
            Cause::Panic(message) => format!("it panicked: {message}"),
            Cause::Stall => "it stalled".to_owned(),
        };
        format!(
            "stage {stage} failed {} times within {} ms, most recently because {why}; see the log for each failure",
            self.recent.len(),
            self.window.as_millis(),
        )
    }
}

/// The watchdog's conclusion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Alive,
    /// No progress for too long: cancel the stage.
    Stalled,
    /// The stage could not even be canceled: its thread has been blocked for this long.
    Blocked(Duration),
    /// The stage has something to do, and its thread has not run it for this long.
    Starved(Duration),
}

/// Tracks how long one stage has made no progress. Pure: the time is an argument.
#[derive(Clone, Copy, Debug)]
struct StallDetector {
    beats: u64,
    since: Duration,
    verdicts: u32,
}

impl StallDetector {
    fn new(now: Duration) -> Self {
        Self { beats: 0, since: now, verdicts: 0 }
    }

    fn update(&mut self, sample: ProgressSample, now: Duration, stall: Duration) -> Verdict {
        if !sample.has_work() || sample.beats != self.beats {
            *self = Self { beats: sample.beats, since: now, verdicts: 0 };
            return Verdict::Alive;
        }
        let silent = now - self.since;
        match self.verdicts {
            // Wakes the stage, too: that is all that a lost wake-up needs.
            0 if silent >= stall => {
                self.verdicts = 1;
                Verdict::Stalled
            }
            // A stage that merely does not get its thread is not the one to blame.
            1 if silent >= 2 * stall && sample.polling => {
                self.verdicts = 2;
                Verdict::Blocked(silent)
            }
            1 if silent >= 3 * stall => {
                self.verdicts = 2;
                Verdict::Starved(silent)
            }
            _ => Verdict::Alive,
        }
    }
}

/// The time during which the watchdog itself has run, by which it judges: a process that was stopped as a whole, or
/// whose machine was suspended, has no stalled stage.
struct WatchdogClock {
    read: Instant,
    ran: Duration,
    /// Longest time that counts between two readings.
    step_max: Duration,
}

impl WatchdogClock {
    fn new(now: Instant, period: Duration) -> Self {
        Self { read: now, ran: Duration::ZERO, step_max: 2 * period }
    }

    fn advance(&mut self, now: Instant) -> Duration {
        self.ran += now.duration_since(self.read).min(self.step_max);
        self.read = now;
        self.ran
    }
}

/// Checks every stage four times per `stall_ms`, from the system's thread.
pub(crate) async fn run_watchdog(observer: Observer, supervision: Supervision, exits: Exits) {
    let stall = Duration::from_millis(supervision.stall_ms);
    let period = (stall / 4).max(Duration::from_millis(1));
    let mut detectors: Vec<StallDetector> = Vec::new();
    let mut clock = WatchdogClock::new(Instant::now(), period);
    loop {
        tokio::time::sleep(period).await;
        let now = clock.advance(Instant::now());
        let stages = observer.stages();
        detectors.resize(stages.len(), StallDetector::new(now));
        for (stage, detector) in stages.iter().zip(&mut detectors) {
            match detector.update(stage.sample(), now, stall) {
                Verdict::Alive => {}
                Verdict::Stalled => {
                    stage.progress.mark_stalled(detector.beats);
                    let (stage, silent_ms) = (stage.name.as_str(), stall.as_millis());
                    tracing::warn!(stage, silent_ms, "a stage has work and makes no progress");
                }
                Verdict::Blocked(silent) => {
                    let (name, silent_ms) = (&stage.name, silent.as_millis());
                    let reason = format!("stage {name} has blocked its thread for {silent_ms} ms; restart the process");
                    exits.report(name, Exit::new(Exit::SOFTWARE, reason));
                }
                Verdict::Starved(silent) => {
                    let (name, silent_ms) = (&stage.name, silent.as_millis());
                    let reason = format!(
                        "the thread of stage {name} has not run it for {silent_ms} ms, although it has work; restart the \
                         process"
                    );
                    exits.report(name, Exit::new(Exit::SOFTWARE, reason));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STALL: Duration = Duration::from_millis(100);

    fn supervision() -> Supervision {
        Supervision { stall_ms: 100, restarts_max: 2, restart_window_ms: 1_000 }
    }

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn restarts_count_in_a_sliding_window() {
        let start = Instant::now();
        let mut restarts = Restarts::new(supervision());
        let allowed = [0, 600, 1_000, 1_599, 1_600].map(|at| restarts.allow(start + ms(at)));
        // The one at 0 has left the window at 1000; at 1599 those at 600 and 1000 have not.
        assert_eq!(allowed, [true, true, true, false, false]);
    }

    #[test]
    fn a_limit_of_zero_allows_no_restart() {
        let mut restarts = Restarts::new(Supervision { restarts_max: 0, ..supervision() });
        assert!(!restarts.allow(Instant::now()));
    }

    /// Feeds `(at_ms, beats, silent, polling)` and checks the verdict on each.
    fn check(samples: &[(u64, u64, bool, bool, Verdict)]) {
        let mut detector = StallDetector::new(Duration::ZERO);
        for &(at, beats, silent, polling, verdict) in samples {
            let sample = ProgressSample { beats, silent, queued: false, polling };
            assert_eq!(detector.update(sample, ms(at), STALL), verdict, "at {at} ms");
        }
    }

    #[test]
    fn a_stage_that_makes_progress_or_waits_is_alive() {
        use Verdict::Alive;
        check(&[(0, 1, true, true, Alive), (90, 2, true, true, Alive), (180, 3, true, true, Alive)]);
        check(&[(0, 1, false, false, Alive), (500, 1, false, false, Alive), (900, 1, false, true, Alive)]);
    }

    #[test]
    fn no_progress_is_a_stall_once_and_a_blocked_thread_after_twice_the_time() {
        use Verdict::{Alive, Blocked, Stalled};
        check(&[
            (0, 1, true, true, Alive),
            (99, 1, true, true, Alive),
            (100, 1, true, true, Stalled),
            (199, 1, true, true, Alive),
            (200, 1, true, true, Blocked(ms(200))),
            (300, 1, true, true, Alive), // reported once
            (310, 2, true, true, Alive),
            (410, 2, true, true, Stalled), // a new stall
        ]);
    }

    #[test]
    fn a_stage_that_does_not_get_its_thread_is_reported_after_the_one_that_blocks_it() {
        use Verdict::{Alive, Stalled, Starved};
        check(&[
            (0, 1, true, false, Alive),
            (100, 1, true, false, Stalled),
            (299, 1, true, false, Alive),
            (300, 1, true, false, Starved(ms(300))),
            (900, 1, true, false, Alive),
        ]);
    }

    #[test]
    fn messages_without_a_turn_are_woken_and_then_reported() {
        let mut detector = StallDetector::new(Duration::ZERO);
        let mut update = |at, beats, queued| {
            let sample = ProgressSample { beats, silent: false, queued, polling: false };
            detector.update(sample, ms(at), STALL)
        };
        assert_eq!(update(0, 1, true), Verdict::Alive);
        assert_eq!(update(90, 2, true), Verdict::Alive, "a turn has begun and ended");
        assert_eq!(update(190, 2, true), Verdict::Stalled);
        assert_eq!(update(389, 2, true), Verdict::Alive);
        assert_eq!(update(390, 2, true), Verdict::Starved(ms(300)));
        assert_eq!(update(400, 2, false), Verdict::Alive, "an idle stage waits for messages for ever");
        assert_eq!(update(9_000, 2, false), Verdict::Alive);
    }

    #[test]
    fn time_in_which_the_watchdog_did_not_run_does_not_count() {
        let start = Instant::now();
        let mut clock = WatchdogClock::new(start, ms(25));
        let seen = [25, 60, 70_000, 70_025].map(|at| clock.advance(start + ms(at)));
        assert_eq!(seen, [25, 60, 110, 135].map(ms));
    }
}
