//! Reads on a thread of their own, which are paused from time to time.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::OwnedMutexGuard;
use tokio::time::Instant;

use super::gate::{QueryThrottle, READING_MAX};
use super::pause::{PIECE, pause_after};

impl QueryThrottle {
    /// For a read on its own thread, called every few milliseconds: blocks until it may continue. Returns whether it
    /// may continue; `false` if other queries have waited long enough.
    pub(crate) fn may_continue(&self, state: &mut ThreadReading) -> bool {
        match &state.turn {
            _ if !self.is_behind() => state.turn = None,
            None => state.turn = Some((Arc::clone(&self.0.turn).blocking_lock_owned(), Instant::now())),
            Some((_, since)) => {
                let took = since.elapsed();
                if took > *PIECE.end() {
                    std::thread::sleep(pause_after(took));
                    *state = ThreadReading { turn: None, reading: state.reading + took };
                }
            }
        }
        state.reading < READING_MAX || !self.is_behind()
    }
}

/// State of a read on its own thread.
#[derive(Debug, Default)]
pub(crate) struct ThreadReading {
    /// Permission to read, and since when.
    turn: Option<(OwnedMutexGuard<()>, Instant)>,
    /// Total duration of its turns.
    reading: Duration,
}
