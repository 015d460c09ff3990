//! What can be seen of every actor from outside, without asking it.

use crate::mailbox::Bound;

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
    /// Messages queued or being handled.
    pub depth_messages: usize,
    /// Bytes queued or being handled.
    pub depth_bytes: usize,
    /// The mailbox's bound.
    pub bound: Bound,
    /// Messages handled since start.
    pub handled: u64,
    /// Seconds that senders have waited for room, all together.
    pub wait_seconds: f64,
    /// How often it was rebuilt after a panic or a stall.
    pub restarts: u64,
    /// `idle`, `busy`, `waiting` (for something outside), `drained` or `stopped`.
    pub state: &'static str,
    /// The stage's own counters.
    pub counters: Vec<Counter>,
}
