//! What the hub and the streams of its clients share.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use logweir_engine::drain::DrainWatch;
use logweir_engine::journal::Journal;
use tokio::runtime::Handle;
use tokio::sync::{Notify, Semaphore, watch};
use uuid::Uuid;

use super::ring::Ring;
use crate::config;
use crate::follow::Position;
use crate::progress::Progress;

/// Clients that may read the journal themselves at the same time.
pub(super) const CATCHING_UP_MAX: usize = 2;

/// Why a subscription was rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TailRejection {
    /// `tail.clients_max` streams are open.
    #[error("too many live tails: tail.clients_max streams are open")]
    TooMany,
    /// The process is shutting down.
    #[error("the process is shutting down")]
    Draining,
    /// The resume token is invalid.
    #[error("invalid resume token: expected the token of an earlier event")]
    BadToken,
}

/// What the thread and the streams of all clients use.
pub(super) struct Shared {
    pub journal: Journal,
    pub writer: Uuid,
    pub progress: Progress,
    pub drain: DrainWatch,
    pub config: config::Tail,
    pub state: Mutex<State>,
    /// Notifies clients of new frames in the ring; true once there will be no more.
    pub advanced: watch::Sender<bool>,
    /// Notified when a client subscribes and when the last one leaves.
    pub wake: Notify,
    pub catching_up: Semaphore,
    pub runtime: Handle,
}

pub(super) struct State {
    pub ring: Ring,
    pub clients: usize,
    /// Number of times the ring was reset.
    pub era: u64,
}

impl Shared {
    /// Counts a new client and returns the live edge.
    pub fn register(self: &Arc<Self>) -> Result<(Registration, Position), TailRejection> {
        let mut state = self.state();
        if state.clients >= self.config.clients_max {
            return Err(TailRejection::TooMany);
        }
        if state.clients == 0 {
            let (seq, tails) = self.journal.durable_position();
            state.ring.reset(Position::of(seq, &tails));
            state.era += 1;
        }
        state.clients += 1;
        metrics::gauge!("logweir_tail_clients").set(state.clients as f64);
        self.wake.notify_one();
        Ok((Registration(Arc::clone(self)), state.ring.end().clone()))
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        // No step leaves the state half changed, so a poisoned lock is safe to use.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Counts one client for as long as it lives.
pub(super) struct Registration(pub Arc<Shared>);

impl Drop for Registration {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.clients -= 1;
        metrics::gauge!("logweir_tail_clients").set(state.clients as f64);
        if state.clients == 0 {
            // Frees the memory; `register` resets the ring to the live edge.
            state.ring.reset(Position::default());
            metrics::gauge!("logweir_tail_buffer_bytes").set(0.0);
            self.0.wake.notify_one();
        }
    }
}
