//! Why the process must exit: requested by a stage, or by the supervisor of one that fails too often.

use std::fmt;
use std::future::Future;
use std::sync::Arc;

use tokio::sync::watch;

/// Why the process must exit, and with which exit code.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Exit {
    /// The exit code of the process.
    pub code: u8,
    /// One sentence: what happened, where, and what to do.
    pub reason: String,
}

impl Exit {
    /// 69: a required resource (a lock, a port) is unavailable.
    pub const UNAVAILABLE: u8 = 69;
    /// 70: a stage failed too often.
    pub const SOFTWARE: u8 = 70;
    /// 74: the disk failed; no further record can be acknowledged.
    pub const IO_ERROR: u8 = 74;
    /// 75: another process has taken over this journal's identity.
    pub const FENCED: u8 = 75;
    /// 78: the configuration is invalid.
    pub const CONFIG: u8 = 78;

    /// Creates an exit with `code` and `reason`.
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

/// The first [`Exit`] that a stage returned; later ones are only logged.
#[derive(Clone)]
pub(crate) struct Exits(Arc<watch::Sender<Option<Exit>>>);

impl Exits {
    pub(crate) fn new() -> Self {
        Self(Arc::new(watch::Sender::new(None)))
    }

    pub(crate) fn report(&self, stage: &str, exit: Exit) {
        // First of all: what writes the log may wait for its reader.
        self.0.send_if_modified(|first| first.is_none().then(|| *first = Some(exit.clone())).is_some());
        tracing::error!(stage, code = exit.code, reason = %exit.reason, "a stage requested that the process exit");
    }

    pub(crate) fn wait(&self) -> impl Future<Output = Exit> + use<> {
        let mut exits = self.0.subscribe();
        let sender = self.0.clone(); // keeps the channel open after the topology is dropped
        async move {
            let exit = exits.wait_for(Option::is_some).await.expect("this future holds the sender").clone();
            drop(sender);
            exit.expect("wait_for returned")
        }
    }
}
