//! Builds a pipeline: spawn downstream first, drain upstream first.

use std::sync::Arc;

use crate::drain::{DrainControl, DrainWatch};
use crate::mailbox::{Bound, Mailbox};
use crate::observe::Observation;
use crate::stage::{Exit, Stage, StageContext};

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

/// One stage of a topology.
#[derive(Clone, Debug)]
pub struct StageSpec {
    /// Unique name, e.g. `parser-0`.
    pub name: String,
    /// The arbiter (a thread with a runtime) it lives on, by name; made on first use.
    pub arbiter: String,
    /// The bound of its mailbox.
    pub bound: Bound,
    /// How often `on_tick` is called, in milliseconds; `None` for never.
    pub tick_ms: Option<u64>,
}

/// A pipeline under construction, then running. Lives on the system's main thread.
pub struct Topology {
    _private: (),
}

impl Topology {
    /// An empty topology. Must be called inside an actix system.
    #[must_use]
    pub fn new(supervision: Supervision, drain: DrainWatch) -> Self {
        let _ = (supervision, drain);
        todo!()
    }

    /// Spawns a stage. Spawn downstream first: the stage's factory holds the mailboxes it sends to.
    /// The factory is called on the stage's arbiter, at start and after each panic or stall.
    pub fn spawn<S, F>(&mut self, spec: StageSpec, factory: F) -> Mailbox<S::Message>
    where
        S: Stage,
        F: Fn(StageContext) -> S + Send + 'static,
    {
        let _ = (spec, factory);
        todo!()
    }

    /// The most bytes that all mailboxes can hold together.
    #[must_use]
    pub fn bytes_max(&self) -> usize {
        todo!()
    }

    /// A handle by which any thread sees every actor.
    #[must_use]
    pub fn observer(&self) -> Observer {
        todo!()
    }

    /// Completes when a stage wants the process to end, has failed too often, or hangs for good.
    pub async fn exited(&self) -> Exit {
        todo!()
    }

    /// Drains in order, upstream first: closes each mailbox, lets the stage handle what is queued,
    /// calls `on_drain`. Returns the names of stages that had not ended when [`DrainControl`] moved to
    /// `Persisting`; those are cancelled.
    pub async fn drain(&mut self) -> Vec<String> {
        let _ = DrainControl::default();
        todo!()
    }
}

/// Sees every actor of a topology. Cheap to clone, usable from any thread.
#[derive(Clone)]
pub struct Observer {
    _private: Arc<()>,
}

impl Observer {
    /// Every actor as it is now, in the order of a record's way.
    #[must_use]
    pub fn observe(&self) -> Vec<Observation> {
        todo!()
    }
}
