//! What a person writes: a plain struct that handles one message at a time, in order.

use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;

use crate::drain::DrainWatch;
use crate::mailbox::Message;
use crate::observe::Counter;
use crate::supervisor::Progress;

/// One step of a pipeline. Lives on one arbiter, is never called twice at once, and is rebuilt from
/// its factory after a panic or a stall while its queue and address stay.
#[allow(async_fn_in_trait)] // a stage never leaves its arbiter: its futures need not be `Send`
pub trait Stage: 'static {
    /// What it receives.
    type Message: Message;

    /// Handles one message. The next one waits until this future has ended.
    ///
    /// # Errors
    /// An [`Exit`] ends the process in order; whatever can be mended is mended inside. The stage ends here:
    /// its mailbox closes, and what is queued is discarded and counted.
    async fn receive(&mut self, message: Self::Message) -> Result<(), Exit>;

    /// Called every `tick_ms` of the stage's spec, also between messages under full load.
    ///
    /// # Errors
    /// As [`Stage::receive`].
    async fn on_tick(&mut self) -> Result<(), Exit> {
        Ok(())
    }

    /// Called once, after the last message: hand on whatever is still held. If it panics, it is called
    /// once more on the rebuilt stage.
    ///
    /// # Errors
    /// As [`Stage::receive`].
    async fn on_drain(&mut self) -> Result<(), Exit> {
        Ok(())
    }

    /// The stage's counters; what operators and tests see. Read after a message or tick when the mailbox
    /// has run empty, and at least ten times a second under load.
    fn observe(&self) -> Vec<Counter> {
        Vec::new()
    }
}

/// Why the process must end, and with which exit code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exit {
    /// The process's exit code.
    pub code: u8,
    /// One sentence: what happened, where, and what to do.
    pub reason: String,
}

impl Exit {
    /// 69: something needed is not there (a lock, a port).
    pub const UNAVAILABLE: u8 = 69;
    /// 70: a stage failed too often.
    pub const SOFTWARE: u8 = 70;
    /// 74: the disk failed; nothing more can be promised.
    pub const IO_ERROR: u8 = 74;
    /// 75: another process has taken over this journal's identity.
    pub const FENCED: u8 = 75;
    /// 78: the configuration is wrong.
    pub const CONFIG: u8 = 78;

    /// An exit with `code` and `reason`.
    #[must_use]
    pub fn new(code: u8, reason: impl Into<String>) -> Self {
        Self { code, reason: reason.into() }
    }
}

impl std::error::Error for Exit {}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (exit {})", self.reason, self.code)
    }
}

/// What the engine hands to a stage when it builds (or rebuilds) it.
#[derive(Clone)]
pub struct StageContext {
    /// The stage's name, e.g. `db-flusher-0`.
    pub name: String,
    /// Where the drain stands; a stage that waits for something outside selects on this.
    pub drain: DrainWatch,
    /// Where the supervisor looks to tell a wait from a stall.
    progress: Arc<Progress>,
}

impl StageContext {
    /// A context that no supervisor looks at: for a stage that is driven by hand, in a test or a bench.
    #[must_use]
    pub fn detached(name: impl Into<String>, drain: DrainWatch) -> Self {
        Self::new(name.into(), drain, Arc::new(Progress::new()))
    }

    pub(crate) fn new(name: String, drain: DrainWatch, progress: Arc<Progress>) -> Self {
        Self { name, drain, progress }
    }

    /// Runs `future` as a known wait: a stage that waits for a database or for room downstream is
    /// healthy, one that is silent in its own code is not.
    ///
    /// It waits only while `future` is pending: code inside that keeps the thread is the stage's own.
    /// A send to the next stage is such a wait: `ctx.waiting(next.reserve(bytes)).await`.
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
