//! Observes every actor from outside, without a message to it.
//!
//! An actor that waits processes no message, so none is sent: its mailbox, host and supervisor write to atomics shared
//! with every [`Observer`]. The stage's own counters are copied after a message if the mailbox is empty, or under load
//! at least ten times a second.
//!
//! The same numbers are exported through the `metrics` facade. Its handles are created when a stage is spawned: install
//! the recorder before building the topology.

use std::any::Any;
use std::sync::{Arc, Mutex, PoisonError};

use metrics::Label;
use tokio::sync::watch;

use crate::meter::{Count, DurationSum, labels};
use crate::progress::{Progress, ProgressSample};
use crate::semaphore::{Bound, Semaphore};
pub use crate::stage::Counter;

/// State of one actor at one moment.
#[derive(Clone, Debug, serde::Serialize)]
#[non_exhaustive]
pub struct Observation {
    /// Name of the stage.
    pub name: String,
    /// Messages queued or being handled, and credits held by senders.
    pub depth_messages: usize,
    /// Bytes queued or being handled, and credits held by senders.
    pub depth_bytes: usize,
    /// Bound of the mailbox.
    pub bound: Bound,
    /// Messages that entered the mailbox: `handled + discarded +` those still in it.
    pub entered: u64,
    /// Messages handled since start.
    pub handled: u64,
    /// Messages that were dropped without being handled: being processed at a panic or a stall, or queued when the
    /// stage stopped.
    pub discarded: u64,
    /// Messages returned to their sender because the mailbox was full.
    pub rejected: u64,
    /// Total time that senders have waited for a credit, in seconds.
    pub wait_seconds: f64,
    /// Total time spent in the stage's own code, without known waits, in seconds.
    pub busy_seconds: f64,
    /// Number of restarts after a panic or a stall.
    pub restarts: u64,
    /// Message of the last panic.
    pub last_panic: Option<String>,
    /// `idle`, `busy`, `waiting` (in a known wait), `stalled` (it has work and makes no progress), `drained` or `stopped`.
    pub state: &'static str,
    /// The stage's own counters.
    pub counters: Vec<Counter>,
}

/// Observes every actor of a topology. Cheap to clone, usable from any thread.
#[derive(Clone, Default)]
pub struct Observer {
    /// In spawn order: downstream first.
    stages: Arc<Mutex<Vec<Arc<StageState>>>>,
}

impl Observer {
    /// Returns the state of every actor, in pipeline order.
    #[must_use]
    pub fn observe(&self) -> Vec<Observation> {
        self.stages().iter().rev().map(|stage| stage.observe()).collect()
    }

    pub(crate) fn add(&self, stage_state: Arc<StageState>) {
        self.stages.lock().unwrap_or_else(PoisonError::into_inner).push(stage_state);
    }

    pub(crate) fn stages(&self) -> Vec<Arc<StageState>> {
        self.stages.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Why a stage is rebuilt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    /// It panicked with this message.
    Panic(String),
    /// It made no progress for too long.
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

    pub(crate) fn from_panic(payload: &(dyn Any + Send)) -> Self {
        let message = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let message = message.or_else(|| payload.downcast_ref::<String>().cloned());
        Self::Panic(message.unwrap_or_else(|| "panic without a message".to_owned()))
    }
}

/// Lifecycle of an actor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lifecycle {
    Running,
    /// The stage has handled and sent everything; the actor is about to stop.
    Drained,
    /// The actor's future has completed, after a drain.
    EndedDrained,
    /// The actor's future has completed without a drain.
    EndedStopped,
}

/// State of one actor that its host, supervisor, mailbox and topology share.
pub(crate) struct StageState {
    pub(crate) name: String,
    pub(crate) semaphore: Arc<Semaphore>,
    pub(crate) progress: Arc<Progress>,
    pub(crate) handled: Count,
    pub(crate) busy: DurationSum,
    restarts: [Count; 2],
    lifecycle: watch::Sender<Lifecycle>,
    last_panic: Mutex<Option<String>>,
    counters: Mutex<Vec<Counter>>,
}

impl StageState {
    pub(crate) fn new(pipeline: &str, name: &str, bound: Bound) -> Arc<Self> {
        let labels = labels(pipeline, name);
        let restarts = Cause::ALL.map(|cause| {
            let labels = labels.iter().cloned().chain([Label::new("cause", cause.label())]);
            Count::new(metrics::counter!("logweir_stage_restarts_total", labels.collect::<Vec<_>>()))
        });
        Arc::new(Self {
            name: name.to_owned(),
            semaphore: Semaphore::new(pipeline, name, bound),
            progress: Arc::new(Progress::new()),
            handled: Count::new(metrics::counter!("logweir_stage_handled_total", labels.clone())),
            busy: DurationSum::new(metrics::counter!("logweir_stage_busy_seconds_total", labels)),
            restarts,
            lifecycle: watch::Sender::new(Lifecycle::Running),
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
        self.lifecycle.send_replace(Lifecycle::Drained);
    }

    /// Called when the actor's future, and with it its queue, has been dropped.
    pub(crate) fn end(&self) {
        self.lifecycle.send_modify(|lifecycle| {
            *lifecycle = match *lifecycle {
                Lifecycle::Drained | Lifecycle::EndedDrained => Lifecycle::EndedDrained,
                Lifecycle::Running | Lifecycle::EndedStopped => Lifecycle::EndedStopped,
            }
        });
    }

    pub(crate) fn has_ended(&self) -> bool {
        matches!(*self.lifecycle.borrow(), Lifecycle::EndedDrained | Lifecycle::EndedStopped)
    }

    pub(crate) async fn ended(&self) {
        let mut lifecycle = self.lifecycle.subscribe();
        let ended =
            lifecycle.wait_for(|lifecycle| matches!(lifecycle, Lifecycle::EndedDrained | Lifecycle::EndedStopped));
        ended.await.expect("self holds the sender");
    }

    /// What the watchdog judges by. Credits that senders hold are no messages.
    pub(crate) fn sample(&self) -> ProgressSample {
        let settled = self.handled.get() + self.discarded();
        self.progress.sample(!self.has_ended() && self.semaphore.entered() > settled)
    }

    fn discarded(&self) -> u64 {
        self.semaphore.meter.discards.iter().map(Count::get).sum()
    }

    fn state(&self) -> &'static str {
        match *self.lifecycle.borrow() {
            Lifecycle::EndedStopped => "stopped",
            Lifecycle::Drained | Lifecycle::EndedDrained => "drained",
            Lifecycle::Running => {
                let sample = self.sample();
                let stalled = sample.has_work() && self.progress.is_marked(sample.beats);
                if stalled { "stalled" } else { self.progress.state() }
            }
        }
    }

    fn observe(&self) -> Observation {
        let (depth_messages, depth_bytes) = self.semaphore.in_use();
        let meter = &self.semaphore.meter;
        Observation {
            name: self.name.clone(),
            depth_messages,
            depth_bytes,
            bound: self.semaphore.bound(),
            entered: self.semaphore.entered(),
            handled: self.handled.get(),
            discarded: self.discarded(),
            rejected: meter.rejected.get(),
            wait_seconds: meter.waited.get().as_secs_f64(),
            busy_seconds: self.busy.get().as_secs_f64(),
            restarts: self.restarts.iter().map(Count::get).sum(),
            last_panic: self.last_panic.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            state: self.state(),
            counters: self.counters.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_message_of_a_panic_is_extracted() {
        let cause = |payload: Box<dyn Any + Send>| Cause::from_panic(&*payload);
        assert_eq!(cause(Box::new("static")), Cause::Panic("static".to_owned()));
        assert_eq!(cause(Box::new("owned".to_owned())), Cause::Panic("owned".to_owned()));
        assert_eq!(cause(Box::new(7)), Cause::Panic("panic without a message".to_owned()));
    }
}
