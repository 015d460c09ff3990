//! What one stage is doing, as written by its thread: the signs of progress by which the watchdog distinguishes a stage
//! that works or waits from one that is stalled.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::Waker;
use std::time::Duration;

use futures_util::task::AtomicWaker;
use tokio::time::Instant;

/// Progress of a stage, written by its thread and read by the watchdog.
pub(crate) struct Progress {
    epoch: Instant,
    /// Incremented by every sign of progress.
    beats: AtomicU64,
    /// Whether a turn runs.
    busy: AtomicBool,
    /// Number of known waits that are pending.
    waits: AtomicUsize,
    /// When the first pending wait began, and the total time of waits, in nanoseconds since the epoch.
    wait_began: AtomicU64,
    waited: AtomicU64,
    /// Whether the stage's thread is inside the actor.
    polling: AtomicBool,
    /// The beat at which the watchdog found the stage stalled; 0 for never.
    stalled_at: AtomicU64,
    canceled: AtomicBool,
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
            canceled: AtomicBool::new(false),
            supervisor: AtomicWaker::new(),
        }
    }

    /// Called at the start of a turn.
    pub(crate) fn begin(&self, now: Instant) -> TurnStart {
        self.beat();
        self.busy.store(true, Ordering::Release);
        TurnStart { at: now, waited: self.waited.load(Ordering::Relaxed) }
    }

    /// Called at the end of a turn. Returns its duration without known waits.
    pub(crate) fn end(&self, began: TurnStart, now: Instant) -> Duration {
        self.end_turn();
        let waited = Duration::from_nanos(self.waited.load(Ordering::Relaxed) - began.waited);
        now.duration_since(began.at).saturating_sub(waited)
    }

    pub(crate) fn beat(&self) {
        self.beats.fetch_add(1, Ordering::Release);
    }

    /// Called when a turn is over, however it ended.
    pub(crate) fn end_turn(&self) {
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

    /// Cancels the stage permanently.
    pub(crate) fn cancel(&self) {
        self.canceled.store(true, Ordering::Release);
        self.supervisor.wake();
    }

    pub(crate) fn is_canceled(&self) -> bool {
        self.canceled.load(Ordering::Acquire)
    }

    /// Called by the supervisor at each of its polls: what [`Progress::cancel`] and [`Progress::mark_stalled`] wake.
    pub(crate) fn register(&self, supervisor: &Waker) {
        self.supervisor.register(supervisor);
    }

    /// Called by the supervisor before and after it polls the actor.
    pub(crate) fn set_polling(&self, polling: bool) {
        self.polling.store(polling, Ordering::Relaxed);
    }

    /// Called by the watchdog: there has been no progress since `beats`. Wakes the supervisor.
    pub(crate) fn mark_stalled(&self, beats: u64) {
        self.stalled_at.store(beats, Ordering::Release);
        self.supervisor.wake();
    }

    /// Whether there has been no progress since the watchdog found the stage stalled.
    pub(crate) fn is_stalled(&self) -> bool {
        self.is_marked(self.beats.load(Ordering::Relaxed)) && self.is_silent()
    }

    /// Whether the watchdog found the stage stalled at `beats`.
    pub(crate) fn is_marked(&self, beats: u64) -> bool {
        self.stalled_at.load(Ordering::Acquire) == beats
    }

    fn is_silent(&self) -> bool {
        self.busy.load(Ordering::Acquire) && self.waits.load(Ordering::Relaxed) == 0
    }

    /// `has_messages`: whether messages are queued or being handled.
    pub(crate) fn sample(&self, has_messages: bool) -> ProgressSample {
        ProgressSample {
            beats: self.beats.load(Ordering::Acquire),
            silent: self.is_silent(),
            queued: has_messages && !self.busy.load(Ordering::Acquire),
            polling: self.polling.load(Ordering::Relaxed),
        }
    }

    fn nanos(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

/// Start of a turn, and the stage's total waiting time at that point.
pub(crate) struct TurnStart {
    at: Instant,
    waited: u64,
}

/// One known wait. Dropping it leaves the wait.
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

/// The watchdog's reading of a stage.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ProgressSample {
    pub(crate) beats: u64,
    /// In a turn, and in no known wait.
    pub(crate) silent: bool,
    /// In no turn, although messages are queued.
    pub(crate) queued: bool,
    /// The thread is inside the stage.
    pub(crate) polling: bool,
}

impl ProgressSample {
    pub(crate) fn has_work(&self) -> bool {
        self.silent || self.queued
    }
}
