//! Reads on a thread of their own, which pause from time to time and end when nobody waits for them any more.

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{OwnedMutexGuard, watch};
use tokio::time::Instant;

use super::gate::{QueryThrottle, READING_MAX};
use super::pause::{PIECE, pause_after};

/// Somebody waits for a read as long as this exists.
pub(crate) struct Waiter(#[expect(dead_code, reason = "its drop is the message")] watch::Sender<()>);

/// The read's side of a [`Waiter`].
#[derive(Clone, Debug)]
pub(crate) struct Abandoned(watch::Receiver<()>);

/// A waiter, and how the thread that reads for it notices its end.
pub(crate) fn waiter() -> (Waiter, Abandoned) {
    let (sender, receiver) = watch::channel(());
    (Waiter(sender), Abandoned(receiver))
}

impl Abandoned {
    /// Whether nobody waits any more.
    pub(crate) fn is_true(&self) -> bool {
        self.0.has_changed().is_err()
    }

    /// Blocks this thread, which must be one for blocking work, until `future` is done; `None` if nobody waits any more.
    fn unless<T>(&self, future: impl Future<Output = T>) -> Option<T> {
        let mut receiver = self.0.clone();
        Handle::current().block_on(async {
            tokio::select! {
                biased;
                _ = receiver.changed() => None,
                value = future => Some(value),
            }
        })
    }
}

impl QueryThrottle {
    /// Whether a read on its own thread has to call [`Self::may_continue`] before it reads more.
    pub(crate) fn is_due(&self, state: &ThreadReading) -> bool {
        self.is_behind() && state.turn.as_ref().is_none_or(|turn| turn.since.elapsed() > *PIECE.end())
    }

    /// For a read on its own thread: blocks until it may continue. It should hold no snapshot meanwhile. Returns
    /// `false` if nobody waits for it any more, or if other queries have waited long enough.
    pub(crate) fn may_continue(&self, state: &mut ThreadReading, abandoned: &Abandoned) -> bool {
        if !self.is_behind() {
            state.turn = None;
        } else if self.is_due(state) {
            // Its drop makes the next turn wait for the pause.
            state.reading += state.turn.take().map_or(Duration::ZERO, |turn| turn.since.elapsed());
            if state.reading >= READING_MAX {
                return false;
            }
            let turn = abandoned.unless(Arc::clone(&self.0.turn).lock_owned());
            state.turn = turn.map(|guard| Turn { guard: Some(guard), since: Instant::now() });
        }
        !abandoned.is_true()
    }
}

/// State of a read on its own thread.
#[derive(Debug, Default)]
pub(crate) struct ThreadReading {
    turn: Option<Turn>,
    /// Total duration of its earlier turns.
    reading: Duration,
}

/// Permission to read, and since when. The next turn starts after a pause.
#[derive(Debug)]
struct Turn {
    guard: Option<OwnedMutexGuard<()>>,
    since: Instant,
}

impl Drop for Turn {
    fn drop(&mut self) {
        let (guard, took) = (self.guard.take(), self.since.elapsed());
        // Without a runtime nobody else reads.
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(async move {
                tokio::time::sleep(pause_after(took)).await;
                drop(guard);
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::throttle::BEHIND;

    fn behind() -> QueryThrottle {
        let throttle = QueryThrottle::default();
        throttle.set_backlog_age(BEHIND * 2);
        throttle
    }

    /// Calls `may_continue` on a blocking thread, once, for a new read.
    fn begin(throttle: &QueryThrottle, abandoned: Abandoned) -> tokio::task::JoinHandle<bool> {
        let throttle = throttle.clone();
        tokio::task::spawn_blocking(move || throttle.may_continue(&mut ThreadReading::default(), &abandoned))
    }

    #[tokio::test]
    async fn a_read_that_waits_for_its_turn_ends_with_its_waiter() {
        let throttle = behind();
        let turn = Arc::clone(&throttle.0.turn).lock_owned().await;
        let (waiter, abandoned) = waiter();
        let read = begin(&throttle, abandoned.clone());
        assert!(!abandoned.is_true());
        drop(waiter);
        assert!(!read.await.unwrap(), "another read still has the turn");
        assert!(abandoned.is_true());
        drop(turn);
    }

    #[tokio::test]
    async fn a_read_has_its_turn_when_the_one_before_has_paused() {
        let throttle = behind();
        let (_waiter, abandoned) = waiter();
        for _ in 0..3 {
            assert!(begin(&throttle, abandoned.clone()).await.unwrap());
        }
    }

    #[tokio::test]
    async fn a_long_read_is_rejected_while_the_database_is_behind() {
        let throttle = behind();
        let (_waiter, abandoned) = waiter();
        let read = tokio::task::spawn_blocking(move || {
            let since = Instant::now().checked_sub(READING_MAX).unwrap();
            let turn = || Some(Turn { guard: None, since });
            let mut state = ThreadReading { turn: turn(), reading: Duration::ZERO };
            assert!(throttle.is_due(&state));
            assert!(!throttle.may_continue(&mut state, &abandoned));
            throttle.set_backlog_age(Duration::ZERO);
            let mut state = ThreadReading { turn: turn(), reading: READING_MAX };
            assert!(!throttle.is_due(&state));
            assert!(throttle.may_continue(&mut state, &abandoned));
        });
        read.await.unwrap();
    }
}
