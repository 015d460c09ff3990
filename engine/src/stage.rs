//! The user's side of the runtime: a plain struct that handles one message at a time, in order.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;

use crate::drain::DrainWatch;
pub use crate::exit::Exit;
use crate::mailbox::{Closed, Credit, Mailbox, Message};
use crate::progress::Progress;

/// One step of a pipeline. A stage lives on one arbiter and is never called concurrently. After a panic or a stall it
/// is rebuilt by its factory; its queue and its address survive.
#[allow(async_fn_in_trait)] // a stage never leaves its arbiter, so its futures need not be `Send`
pub trait Stage: 'static {
    /// The message type of the stage's mailbox.
    type Message: Message;

    /// Handles one message. The next message is handled after this future has completed.
    ///
    /// # Errors
    /// An [`Exit`] starts an orderly shutdown of the process, so return one only for errors that cannot be handled
    /// inside the stage. The stage stops: its mailbox closes, and queued messages are discarded and counted.
    async fn receive(&mut self, message: Self::Message) -> Result<(), Exit>;

    /// Called every `tick_ms` of the stage's [`StageSpec`](crate::topology::StageSpec), under full load between two
    /// messages.
    ///
    /// # Errors
    /// See [`Stage::receive`].
    async fn on_tick(&mut self) -> Result<(), Exit> {
        Ok(())
    }

    /// Called once after the last message: send everything that the stage still holds. If it panics, it is called once
    /// more on the rebuilt stage.
    ///
    /// # Errors
    /// See [`Stage::receive`].
    async fn on_drain(&mut self) -> Result<(), Exit> {
        Ok(())
    }

    /// Returns the stage's own counters for [`Observer`](crate::observe::Observer). Called after a message or a tick if
    /// the mailbox is empty, and under load at least ten times a second.
    fn observe(&self) -> Vec<Counter> {
        Vec::new()
    }
}

/// One counter or gauge of a stage.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Counter {
    /// Name in snake case, with the unit as suffix.
    pub name: &'static str,
    /// Current value.
    pub value: u64,
}

/// What the engine passes to a stage's factory.
#[derive(Clone)]
pub struct StageContext {
    /// The stage's name, e.g. `db-flusher-0`.
    pub name: String,
    /// The drain phase. A stage that waits for something outside the process selects on it.
    pub drain: DrainWatch,
    /// How the watchdog distinguishes a wait from a stall.
    progress: Arc<Progress>,
}

impl StageContext {
    /// Creates a context that no supervisor watches, for a stage that is driven by hand in a test or a benchmark.
    #[must_use]
    pub fn detached(name: impl Into<String>, drain: DrainWatch) -> Self {
        Self::new(name.into(), drain, Arc::new(Progress::new()))
    }

    pub(crate) fn new(name: String, drain: DrainWatch, progress: Arc<Progress>) -> Self {
        Self { name, drain, progress }
    }

    /// Sends to the next stage, and waits for a credit. Holds the message while it waits; if the wait may be canceled
    /// (`select!`), use [`StageContext::reserve`].
    ///
    /// # Errors
    /// The stage no longer accepts messages; the message is returned.
    pub async fn send<M: Message>(&self, to: &Mailbox<M>, message: M) -> Result<(), Closed<M>> {
        self.waiting(to.send(message)).await
    }

    /// Waits for a credit of the next stage for a message of `bytes`.
    ///
    /// # Errors
    /// The stage no longer accepts messages.
    pub async fn reserve<M: Message>(&self, of: &Mailbox<M>, bytes: usize) -> Result<Credit<M>, Closed<()>> {
        self.waiting(of.reserve(bytes)).await
    }

    /// Runs `future` as a known wait: a stage that waits for a database or for space downstream is healthy, a stage
    /// that makes no progress in its own code is stalled.
    ///
    /// Only the time in which `future` is pending counts as waiting: code inside it that blocks the thread is the
    /// stage's own.
    pub async fn waiting<F: Future>(&self, future: F) -> F::Output {
        let mut future = pin!(future);
        let mut wait = self.progress.wait();
        poll_fn(|cx| {
            wait.leave();
            let poll = future.as_mut().poll(cx);
            if poll.is_pending() {
                wait.enter();
            }
            poll
        })
        .await
    }
}
