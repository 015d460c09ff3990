//! Turns a panic or a stall into an exit with a name and rebuilds the stage.
//!
//! - A panic never escapes as silence: it becomes a count, a log line with the stage's name and a fresh
//!   stage. Queue and address stay; the message in hand is dropped with its credit and its reply
//!   channel, so that its sender hears of it.
//! - A stage is **stalled** when it has been silent in its own code for `stall_ms`: no turn began or
//!   ended, no known wait began or ended. If its future gives the thread back, it is cancelled and rebuilt like
//!   after a panic. If the thread itself is stuck for another `stall_ms`, nothing in this process can
//!   mend that: an [`Exit`] names the stage.
//! - More than `restarts_max` restarts within `restart_window_ms` end in an [`Exit`]: a stage that
//!   cannot live must not look alive.
//!
//! actix's own supervisor is not used: it sees no panic and keeps the old struct.

use std::any::Any;
use std::collections::VecDeque;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use actix::Context;
use actix::dev::ContextFut;
use futures_util::task::AtomicWaker;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::actor_host::{ActorHost, Host};
use crate::observe::{Observer, StageState};
use crate::semaphore::Discard;
use crate::stage::{Exit, Stage};

/// How the supervisor treats every stage.
#[derive(Clone, Copy, Debug)]
pub struct Supervision {
    /// A stage silent in its own code for this long is stalled, in milliseconds.
    pub stall_ms: u64,
    /// More restarts of one stage than this inside the window end in a drain and exit 70.
    pub restarts_max: usize,
    /// The window, in milliseconds.
    pub restart_window_ms: u64,
}

/// Why a stage is rebuilt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    /// It panicked, saying this.
    Panic(String),
    /// It was silent for too long.
    Stall,
}

impl Cause {
    pub(crate) const ALL: [Self; 2] = [Self::Panic(String::new()), Self::Stall];

    pub(crate) fn index(&self) -> usize {
        match self {
            Self::Panic(_) => 0,
            Self::Stall => 1,
        }
    }

    pub(crate) fn label(&self) -> &'static str {
        match self {
            Self::Panic(_) => "panic",
            Self::Stall => "stall",
        }
    }

    fn from_panic(payload: &(dyn Any + Send)) -> Self {
        let message = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let message = message.or_else(|| payload.downcast_ref::<String>().cloned());
        Self::Panic(message.unwrap_or_else(|| "a panic without words".to_owned()))
    }
}

/// The first [`Exit`] that any stage asked for; later ones are only logged.
#[derive(Clone)]
pub(crate) struct Exits(Arc<watch::Sender<Option<Exit>>>);

impl Exits {
    pub(crate) fn new() -> Self {
        Self(Arc::new(watch::Sender::new(None)))
    }

    pub(crate) fn report(&self, stage: &str, exit: Exit) {
        tracing::error!(stage, code = exit.code, reason = %exit.reason, "a stage asks for the end of the process");
        self.0.send_if_modified(|first| first.is_none().then(|| *first = Some(exit)).is_some());
    }

    pub(crate) fn wait(&self) -> impl Future<Output = Exit> + use<> {
        let mut exits = self.0.subscribe();
        let sender = self.0.clone(); // so that the wait outlives the topology
        async move {
            let exit = exits.wait_for(Option::is_some).await.expect("the sender is held here").clone();
            drop(sender);
            exit.expect("waited for")
        }
    }
}

/// Whether a stage moves, written by its thread and read by the watchdog.
pub(crate) struct Progress {
    epoch: Instant,
    /// Grows with everything that shows life.
    beats: AtomicU64,
    /// A turn runs.
    busy: AtomicBool,
    /// Known waits that are pending now.
    waits: AtomicUsize,
    /// When the first of them began, and how long there was any, in nanoseconds since the epoch.
    wait_began: AtomicU64,
    waited: AtomicU64,
    /// The stage's thread is inside the actor at this moment.
    polling: AtomicBool,
    /// The beat at which the watchdog found the stage silent; 0 for never.
    stalled_at: AtomicU64,
    cancelled: AtomicBool,
    supervisor: AtomicWaker,
}

impl Progress {
    pub(crate) fn new() -> Self {
        Self {
            epoch: Instant::now(),
            beats: AtomicU64::new(1),
            busy: AtomicBool::new(false),
            waits: AtomicUsize::new(0),
            wait_began: AtomicU64::new(0),
            waited: AtomicU64::new(0),
            polling: AtomicBool::new(false),
            stalled_at: AtomicU64::new(0),
            cancelled: AtomicBool::new(false),
            supervisor: AtomicWaker::new(),
        }
    }

    /// A turn begins.
    pub(crate) fn begin(&self, now: Instant) -> Began {
        self.beat();
        self.busy.store(true, Ordering::Release);
        Began { at: now, waited: self.waited.load(Ordering::Relaxed) }
    }

    /// The turn has ended. Gives its time without the known waits.
    pub(crate) fn end(&self, began: Began, now: Instant) -> Duration {
        self.rest();
        let waited = Duration::from_nanos(self.waited.load(Ordering::Relaxed) - began.waited);
        now.duration_since(began.at).saturating_sub(waited)
    }

    pub(crate) fn beat(&self) {
        self.beats.fetch_add(1, Ordering::Release);
    }

    /// No turn runs any more, however it ended.
    fn rest(&self) {
        self.busy.store(false, Ordering::Release);
    }

    pub(crate) fn wait(&self) -> Wait<'_> {
        Wait { progress: self, entered: false }
    }

    pub(crate) fn state(&self) -> &'static str {
        match (self.busy.load(Ordering::Relaxed), self.waits.load(Ordering::Relaxed)) {
            (false, _) => "idle",
            (true, 0) => "busy",
            (true, _) => "waiting",
        }
    }

    /// Cancels whatever the stage does, for good.
    pub(crate) fn cancel(&self) {
        self.cancelled.store(true, Ordering::Release);
        self.supervisor.wake();
    }

    fn is_silent(&self) -> bool {
        self.busy.load(Ordering::Acquire) && self.waits.load(Ordering::Relaxed) == 0
    }

    fn glance(&self) -> Glance {
        Glance {
            beats: self.beats.load(Ordering::Acquire),
            silent: self.is_silent(),
            polling: self.polling.load(Ordering::Relaxed),
        }
    }

    fn nanos(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

/// When a turn began, and how long the stage had waited by then.
pub(crate) struct Began {
    at: Instant,
    waited: u64,
}

/// One known wait. Left when it is dropped.
pub(crate) struct Wait<'a> {
    progress: &'a Progress,
    entered: bool,
}

impl Wait<'_> {
    pub(crate) fn enter(&mut self) {
        self.entered = true;
        if self.progress.waits.fetch_add(1, Ordering::Relaxed) == 0 {
            self.progress.wait_began.store(self.progress.nanos(), Ordering::Relaxed);
        }
        self.progress.beat();
    }

    pub(crate) fn leave(&mut self) {
        if !std::mem::take(&mut self.entered) {
            return;
        }
        if self.progress.waits.fetch_sub(1, Ordering::Relaxed) == 1 {
            let waited = self.progress.nanos().saturating_sub(self.progress.wait_began.load(Ordering::Relaxed));
            self.progress.waited.fetch_add(waited, Ordering::Relaxed);
        }
        self.progress.beat();
    }
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        self.leave();
    }
}

/// Says that an actor has ended when it is dropped, also when its arbiter stopped before it was born.
pub(crate) struct Lifetime(Arc<StageState>);

impl Lifetime {
    pub(crate) fn new(stage_state: Arc<StageState>) -> Self {
        Self(stage_state)
    }
}

impl Drop for Lifetime {
    fn drop(&mut self) {
        self.0.semaphore.close();
        self.0.end();
    }
}

/// The future of one actor: polls it, catches what it throws, rebuilds it.
pub(crate) struct Supervisor<S: Stage> {
    /// Gone once the actor has ended; its queue goes with it.
    actor: Option<ContextFut<ActorHost<S>, Context<ActorHost<S>>>>,
    stage_state: Arc<StageState>,
    exits: Exits,
    restarts: Restarts,
    host: Rc<Host>,
    /// Dropped after the actor.
    _lifetime: Lifetime,
}

impl<S: Stage> Supervisor<S> {
    pub(crate) fn new(
        actor: ContextFut<ActorHost<S>, Context<ActorHost<S>>>,
        lifetime: Lifetime,
        exits: Exits,
        supervision: Supervision,
        host: Rc<Host>,
    ) -> Self {
        let stage_state = lifetime.0.clone();
        Self { actor: Some(actor), stage_state, exits, restarts: Restarts::new(supervision), host, _lifetime: lifetime }
    }

    /// Polls the actor once. `Err` says why it must be rebuilt.
    fn poll_actor(&mut self, cx: &mut TaskContext<'_>) -> Result<Poll<()>, Cause> {
        let progress = &self.stage_state.progress;
        let Some(actor) = &mut self.actor else { return Ok(Poll::Ready(())) };
        self.host.begin_poll(cx);
        progress.polling.store(true, Ordering::Relaxed);
        let poll = catch_unwind(AssertUnwindSafe(|| Pin::new(actor).poll(cx)));
        progress.polling.store(false, Ordering::Relaxed);
        let poll = poll.map_err(|payload| Cause::from_panic(&*payload))?;
        // Only after a poll: a stage that its neighbours kept from its thread gets the chance to move.
        if progress.stalled_at.load(Ordering::Acquire) == progress.beats.load(Ordering::Relaxed) && progress.is_silent()
        {
            return Err(Cause::Stall);
        }
        Ok(poll)
    }

    /// False when the stage has failed too often, or nobody can reach it any more.
    fn rebuild(&mut self, cause: Cause) -> bool {
        let name = self.stage_state.name.as_str();
        self.stage_state.restarted(&cause);
        match &cause {
            Cause::Panic(message) => tracing::error!(stage = name, panic = message, "stage panicked"),
            Cause::Stall => tracing::error!(stage = name, "stage stalled; cancelled"),
        }
        if !self.restarts.allow(Instant::now()) {
            let reason = self.restarts.exceeded(name, &cause);
            self.exits.report(name, Exit::new(Exit::SOFTWARE, reason));
            return false;
        }
        if cause == Cause::Stall {
            self.stage_state.semaphore.set_discard(Discard::Stall);
        }
        // Drops the future with the old stage, whose `drop` may panic as well.
        let Some(actor) = &mut self.actor else { return false };
        let restarted = catch_unwind(AssertUnwindSafe(|| actor.restart()));
        self.stage_state.progress.rest();
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
            tracing::error!(stage = self.stage_state.name, cause = ?Cause::from_panic(&*payload), "stage panicked at its end");
        }
        self.stage_state.progress.rest();
    }
}

impl<S: Stage> Future for Supervisor<S> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<()> {
        self.stage_state.progress.supervisor.register(cx.waker());
        while !self.stage_state.progress.cancelled.load(Ordering::Acquire) {
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
        self.end(); // its arbiter was stopped
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

    /// Notes a restart; false when it is one too many.
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
            "stage {stage} failed {} times within {} ms, at last because {why}; see the log for each failure",
            self.recent.len(),
            self.window.as_millis(),
        )
    }
}

/// What the watchdog sees of a stage at one moment.
#[derive(Clone, Copy, Debug)]
struct Glance {
    beats: u64,
    /// In a turn, and in no known wait.
    silent: bool,
    /// Its thread is inside the stage.
    polling: bool,
}

/// What the watchdog concludes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Alive,
    /// Silent for too long: cancel it.
    Stalled,
    /// Did not even let itself be cancelled: its thread is stuck, for this long by now.
    Blocked(Duration),
}

/// How long one stage has been silent. Pure: the time is an argument.
#[derive(Clone, Copy, Debug)]
struct Silence {
    beats: u64,
    since: Instant,
    verdicts: u32,
}

impl Silence {
    fn new(now: Instant) -> Self {
        Self { beats: 0, since: now, verdicts: 0 }
    }

    fn look(&mut self, glance: Glance, now: Instant, stall: Duration) -> Verdict {
        if !glance.silent || glance.beats != self.beats {
            *self = Self { beats: glance.beats, since: now, verdicts: 0 };
            return Verdict::Alive;
        }
        let silent = now.duration_since(self.since);
        match self.verdicts {
            0 if silent >= stall => {
                self.verdicts = 1;
                Verdict::Stalled
            }
            // A stage that is merely kept from its thread is not the one to name.
            1 if silent >= 2 * stall && glance.polling => {
                self.verdicts = 2;
                Verdict::Blocked(silent)
            }
            _ => Verdict::Alive,
        }
    }
}

/// Looks at every stage, four times per `stall_ms`, from a thread that runs no stage.
pub(crate) async fn watch_over(stages: Observer, supervision: Supervision, exits: Exits) {
    let stall = Duration::from_millis(supervision.stall_ms);
    let period = (stall / 4).max(Duration::from_millis(1));
    let mut silences: Vec<Silence> = Vec::new();
    loop {
        tokio::time::sleep(period).await;
        let now = Instant::now();
        let stage_state = stages.stage_state();
        silences.resize(stage_state.len(), Silence::new(now));
        for (stage_state, silence) in stage_state.iter().zip(&mut silences) {
            match silence.look(stage_state.progress.glance(), now, stall) {
                Verdict::Alive => {}
                Verdict::Stalled => {
                    stage_state.progress.stalled_at.store(silence.beats, Ordering::Release);
                    stage_state.progress.supervisor.wake();
                }
                Verdict::Blocked(silent) => {
                    let (name, silent_ms) = (&stage_state.name, silent.as_millis());
                    let reason = format!("stage {name} has blocked its thread for {silent_ms} ms; restart the process");
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
    fn no_restart_at_all_may_be_allowed() {
        let mut restarts = Restarts::new(Supervision { restarts_max: 0, ..supervision() });
        assert!(!restarts.allow(Instant::now()));
    }

    /// Shows `(at_ms, beats, silent, polling)` and expects the verdict on each.
    fn check(glances: &[(u64, u64, bool, bool, Verdict)]) {
        let start = Instant::now();
        let mut silence = Silence::new(start);
        for &(at, beats, silent, polling, verdict) in glances {
            let seen = silence.look(Glance { beats, silent, polling }, start + ms(at), STALL);
            assert_eq!(seen, verdict, "at {at} ms");
        }
    }

    #[test]
    fn a_stage_that_beats_or_waits_is_alive() {
        use Verdict::Alive;
        check(&[(0, 1, true, true, Alive), (90, 2, true, true, Alive), (180, 3, true, true, Alive)]);
        check(&[(0, 1, false, false, Alive), (500, 1, false, false, Alive), (900, 1, false, true, Alive)]);
    }

    #[test]
    fn silence_is_a_stall_once_and_a_blocked_thread_after_twice_the_time() {
        use Verdict::{Alive, Blocked, Stalled};
        check(&[
            (0, 1, true, true, Alive),
            (99, 1, true, true, Alive),
            (100, 1, true, true, Stalled),
            (199, 1, true, true, Alive),
            (200, 1, true, true, Blocked(ms(200))),
            (300, 1, true, true, Alive), // named once
            (310, 2, true, true, Alive),
            (410, 2, true, true, Stalled), // a new silence
        ]);
    }

    #[test]
    fn a_stage_kept_from_its_thread_by_another_is_not_named() {
        use Verdict::{Alive, Stalled};
        check(&[(0, 1, true, false, Alive), (100, 1, true, false, Stalled), (900, 1, true, false, Alive)]);
    }

    #[test]
    fn the_words_of_a_panic_are_kept() {
        let say = |payload: Box<dyn Any + Send>| Cause::from_panic(&*payload);
        assert_eq!(say(Box::new("static")), Cause::Panic("static".to_owned()));
        assert_eq!(say(Box::new("owned".to_owned())), Cause::Panic("owned".to_owned()));
        assert_eq!(say(Box::new(7)), Cause::Panic("a panic without words".to_owned()));
    }
}
