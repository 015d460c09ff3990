//! What the feed and the connections share.

use std::io::{self, Write as _};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use indicatif::ProgressBar;

use super::queue::Queue;
use super::stop::{Reason, Stop};

/// The lines of one request.
#[derive(Debug)]
pub(super) struct Body {
    /// From 1.
    pub(super) number: u64,
    pub(super) bytes: Vec<u8>,
    /// `None` for a document: only the server knows how many records it holds.
    pub(super) records: Option<u64>,
    /// When it is to be sent, at a given rate.
    pub(super) due: Option<Instant>,
}

/// State shared by the connections and the feed.
pub(super) struct Shared {
    pub(super) queue: Queue<Body>,
    pub(super) stop: Arc<Stop>,
    /// Exit code and message of the first failure.
    pub(super) failure: Mutex<Option<(u8, String)>>,
    pub(super) warned: AtomicBool,
    pub(super) quiet: bool,
    pub(super) progress: ProgressBar,
}

impl Shared {
    pub(super) fn stop(&self, reason: Reason) {
        self.stop.set(reason);
        self.queue.stop();
    }

    pub(super) fn fail(&self, code: u8, why: String) {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert((code, why));
        self.stop(Reason::Failure);
    }

    /// Prints a line to standard error, above the progress bar.
    pub(super) fn note(&self, line: &str) {
        if !self.quiet {
            self.progress.suspend(|| drop(writeln!(io::stderr(), "logweir: {line}")));
        }
    }
}
