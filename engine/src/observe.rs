//! What can be seen of every actor from outside, without asking it.
//!
//! A stage that waits hears nothing, so nobody asks it: its mailbox, shell and supervisor write to
//! atomics that are shared with every [`Observer`], and the stage's own counters are copied after a
//! message when the mailbox ran empty, or at least ten times a second under load.
//!
//! The same numbers go to the `metrics` facade through handles that are made once, when the stage is
//! spawned: install the recorder before the topology is built.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use metrics::Label;
use tokio::sync::watch;

use crate::mailbox::Bound;
use crate::semaphore::{Discard, Semaphore};
use crate::supervisor::{Cause, Progress};

/// One counter of a stage: a name and a value that only grows, or a gauge.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Counter {
    /// Snake case, with its unit last.
    pub name: &'static str,
    /// Its value now.
    pub value: u64,
}

/// One actor as it is now.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Observation {
    /// The stage's name.
    pub name: String,
    /// Messages queued or being handled, and credits that senders hold.
    pub depth_messages: usize,
    /// Bytes queued or being handled, and credits that senders hold.
    pub depth_bytes: usize,
    /// The mailbox's bound.
    pub bound: Bound,
    /// Messages that entered the mailbox: `handled + discarded +` those still in it.
    pub entered: u64,
    /// Messages handled since start.
    pub handled: u64,
    /// Messages that entered and were dropped unhandled: in hand at a panic or a stall, or queued
    /// when the stage ended.
    pub discarded: u64,
    /// Messages that found the mailbox full and went back to their sender.
    pub refused: u64,
    /// Seconds that senders have waited for room, all together.
    pub wait_seconds: f64,
    /// Seconds in the stage's own code, known waits left out.
    pub busy_seconds: f64,
    /// How often it was rebuilt after a panic or a stall.
    pub restarts: u64,
    /// What its last panic said.
    pub last_panic: Option<String>,
    /// `idle`, `busy`, `waiting` (for something outside), `drained` or `stopped`.
    pub state: &'static str,
    /// The stage's own counters.
    pub counters: Vec<Counter>,
}

/// Sees every actor of a topology. Cheap to clone, usable from any thread.
#[derive(Clone, Default)]
pub struct Observer {
    /// In the order in which they were spawned: downstream first.
    stages: Arc<Mutex<Vec<Arc<StageState>>>>,
}

impl Observer {
    /// Every actor as it is now, in the order of a record's way.
    #[must_use]
    pub fn observe(&self) -> Vec<Observation> {
        self.stage_state().iter().rev().map(|stage_state| stage_state.observe()).collect()
    }

    pub(crate) fn add(&self, stage_state: Arc<StageState>) {
        self.stages.lock().unwrap_or_else(PoisonError::into_inner).push(stage_state);
    }

    pub(crate) fn stage_state(&self) -> Vec<Arc<StageState>> {
        self.stages.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// How an actor's life ended, or that it goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Life {
    Running,
    /// On its way out: everything is handled, and handed on.
    Drained,
    /// Its future is gone, after a drain.
    EndedDrained,
    /// Its future is gone.
    EndedStopped,
}

/// What shell, supervisor, mailbox and topology know of one actor.
pub(crate) struct StageState {
    pub(crate) name: String,
    pub(crate) semaphore: Arc<Semaphore>,
    pub(crate) progress: Arc<Progress>,
    pub(crate) handled: Tally,
    pub(crate) busy: Seconds,
    restarts: [Tally; 2],
    life: watch::Sender<Life>,
    last_panic: Mutex<Option<String>>,
    counters: Mutex<Vec<Counter>>,
}

impl StageState {
    pub(crate) fn new(pipeline: &str, name: &str, bound: Bound) -> Arc<Self> {
        let labels = labels(pipeline, name);
        let restarts = Cause::ALL.map(|cause| {
            let labels = labels.iter().cloned().chain([Label::new("cause", cause.label())]);
            Tally::new(metrics::counter!("logweir_stage_restarts_total", labels.collect::<Vec<_>>()))
        });
        Arc::new(Self {
            name: name.to_owned(),
            semaphore: Semaphore::new(pipeline, name, bound),
            progress: Arc::new(Progress::new()),
            handled: Tally::new(metrics::counter!("logweir_stage_handled_total", labels.clone())),
            busy: Seconds::new(metrics::counter!("logweir_stage_busy_seconds_total", labels)),
            restarts,
            life: watch::Sender::new(Life::Running),
            last_panic: Mutex::default(),
            counters: Mutex::default(),
        })
    }

    pub(crate) fn restarted(&self, cause: &Cause) {
        self.restarts[cause.index()].add(1);
        if let Cause::Panic(message) = cause {
            *self.last_panic.lock().unwrap_or_else(PoisonError::into_inner) = Some(message.clone());
        }
    }

    pub(crate) fn snapshot(&self, counters: Vec<Counter>) {
        *self.counters.lock().unwrap_or_else(PoisonError::into_inner) = counters;
    }

    pub(crate) fn drained(&self) {
        self.life.send_replace(Life::Drained);
    }

    /// The actor's future is gone, and its queue with it.
    pub(crate) fn end(&self) {
        self.life.send_modify(|life| {
            *life = match *life {
                Life::Drained | Life::EndedDrained => Life::EndedDrained,
                Life::Running | Life::EndedStopped => Life::EndedStopped,
            }
        });
    }

    pub(crate) fn has_ended(&self) -> bool {
        matches!(*self.life.borrow(), Life::EndedDrained | Life::EndedStopped)
    }

    pub(crate) async fn ended(&self) {
        let mut life = self.life.subscribe();
        let ended = life.wait_for(|life| matches!(life, Life::EndedDrained | Life::EndedStopped));
        ended.await.expect("the sender lives in self");
    }

    fn state(&self) -> &'static str {
        match *self.life.borrow() {
            Life::EndedStopped => "stopped",
            Life::Drained | Life::EndedDrained => "drained",
            Life::Running => self.progress.state(),
        }
    }

    fn observe(&self) -> Observation {
        let (depth_messages, depth_bytes) = self.semaphore.taken();
        let meter = &self.semaphore.meter;
        Observation {
            name: self.name.clone(),
            depth_messages,
            depth_bytes,
            bound: self.semaphore.bound(),
            entered: self.semaphore.entered(),
            handled: self.handled.get(),
            discarded: meter.discards.iter().map(Tally::get).sum(),
            refused: meter.refused.get(),
            wait_seconds: meter.waited.get().as_secs_f64(),
            busy_seconds: self.busy.get().as_secs_f64(),
            restarts: self.restarts.iter().map(Tally::get).sum(),
            last_panic: self.last_panic.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            state: self.state(),
            counters: self.counters.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }
}

/// Labels that every metric of a stage and of its mailbox carries.
fn labels(pipeline: &str, stage: &str) -> Vec<Label> {
    vec![Label::new("pipeline", pipeline.to_owned()), Label::new("stage", stage.to_owned())]
}

/// Metrics of one mailbox.
pub(crate) struct MailboxMeter {
    pub(crate) refused: Tally,
    pub(crate) waited: Seconds,
    discards: [Tally; Discard::ALL.len()],
    depth_messages: metrics::Gauge,
    depth_bytes: metrics::Gauge,
}

impl MailboxMeter {
    pub(crate) fn new(pipeline: &str, stage: &str, bound: Bound) -> Self {
        let labels = labels(pipeline, stage);
        metrics::gauge!("logweir_mailbox_capacity_messages", labels.clone()).set(bound.messages_max as f64);
        metrics::gauge!("logweir_mailbox_capacity_bytes", labels.clone()).set(bound.bytes_max as f64);
        let discards = Discard::ALL.map(|reason| {
            let labels = labels.iter().cloned().chain([Label::new("reason", reason.label())]);
            Tally::new(metrics::counter!("logweir_mailbox_discarded_total", labels.collect::<Vec<_>>()))
        });
        Self {
            refused: Tally::new(metrics::counter!("logweir_mailbox_full_total", labels.clone())),
            waited: Seconds::new(metrics::counter!("logweir_mailbox_wait_seconds_total", labels.clone())),
            discards,
            depth_messages: metrics::gauge!("logweir_mailbox_depth_messages", labels.clone()),
            depth_bytes: metrics::gauge!("logweir_mailbox_depth_bytes", labels),
        }
    }

    pub(crate) fn depth_grew(&self, messages: usize, bytes: usize) {
        // Increments commute, so no lock is needed for the gauge to end where the depth ends.
        self.depth_messages.increment(messages as f64);
        self.depth_bytes.increment(bytes as f64);
    }

    pub(crate) fn depth_shrank(&self, messages: usize, bytes: usize) {
        self.depth_messages.decrement(messages as f64);
        self.depth_bytes.decrement(bytes as f64);
    }

    pub(crate) fn discarded(&self, reason: u8) {
        self.discards[usize::from(reason)].add(1);
    }
}

/// A count that is read here and exported by the `metrics` facade.
pub(crate) struct Tally {
    total: AtomicU64,
    exported: metrics::Counter,
}

impl Tally {
    fn new(exported: metrics::Counter) -> Self {
        Self { total: AtomicU64::new(0), exported }
    }

    pub(crate) fn add(&self, count: u64) {
        self.total.fetch_add(count, Ordering::Relaxed);
        self.exported.increment(count);
    }

    pub(crate) fn get(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }
}

/// A sum of durations. The facade's counters are whole numbers, so the exported one moves by whole
/// seconds; the exact sum is in the [`Observation`].
pub(crate) struct Seconds {
    nanos: AtomicU64,
    exported: metrics::Counter,
}

impl Seconds {
    const NANOS: u64 = 1_000_000_000;

    fn new(exported: metrics::Counter) -> Self {
        Self { nanos: AtomicU64::new(0), exported }
    }

    pub(crate) fn add(&self, duration: Duration) {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let before = self.nanos.fetch_add(nanos, Ordering::Relaxed);
        let whole = before.wrapping_add(nanos) / Self::NANOS - before / Self::NANOS;
        if whole > 0 {
            self.exported.increment(whole);
        }
    }

    pub(crate) fn get(&self) -> Duration {
        Duration::from_nanos(self.nanos.load(Ordering::Relaxed))
    }
}
