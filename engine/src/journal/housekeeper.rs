//! The keeper: a thread for what must not make the writer or a caller wait. It makes the next segment
//! ahead, of a settled one where there is one, removes the other settled ones, and minds a full disk.
//!
//! A full disk: the ballast goes at once, so that the database beside the journal can be drained. Intake
//! stays refused until ballast and spare could both be made again. A try is made at most each 500 ms, and
//! only when the file system says that there is room: a try that fails would take the room from others.

use std::fs;
use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};

use super::segment::{is_full, make_zeros};
use super::state::Spare;
use super::{AppendError, Shared};
use crate::fault;

const PROBE_INTERVAL: Duration = Duration::from_millis(500);

pub(super) struct Housekeeper {
    pub(super) shared: Arc<Shared>,
    pub(super) wake: Receiver<()>,
}

impl Housekeeper {
    /// Until the journal stops.
    pub(super) fn run(self) {
        // `Some` while something is left to try again: then, and not before.
        let mut retry_at = self.work(None);
        while !self.shared.stop.load(Ordering::Acquire) {
            self.shared.publish_gauges();
            let woken = match retry_at {
                None => self.wake.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(at) => self.wake.recv_deadline(at),
            };
            if woken == Err(RecvTimeoutError::Disconnected) {
                break;
            }
            retry_at = self.work(retry_at);
        }
    }

    /// One round; says when the next try of what did not succeed may be made.
    fn work(&self, retry_at: Option<Instant>) -> Option<Instant> {
        let removed = self.remove_settled();
        let full = self.shared.refuses() == Some(AppendError::DiskFull);
        if full && (self.give_ballast_away() || retry_at.is_none()) {
            // The room that there is now is for others: look again after a while.
            return Some(Instant::now() + PROBE_INTERVAL);
        }
        if retry_at.is_some_and(|at| Instant::now() < at) {
            return retry_at;
        }
        let made = (!full || self.has_room()) && self.make_spare() & self.make_ballast();
        if made && full {
            tracing::info!("the journal's disk has room again");
            self.shared.accept_again();
        }
        (!made || !removed).then(|| Instant::now() + PROBE_INTERVAL)
    }

    /// Whether the file system says that everything that is missing would fit.
    fn has_room(&self) -> bool {
        let (want, have) = self.shared.ballast();
        let spare = if self.shared.needs_spare() { self.shared.segment_bytes } else { 0 };
        self.is_free(want.saturating_sub(have) + spare)
    }

    fn is_free(&self, bytes: u64) -> bool {
        self.shared.dir.free_bytes().is_ok_and(|free| free >= bytes)
    }

    /// Removes settled segments, oldest first. An unlink that fails only delays, and stops here: a hole
    /// between segments would look like damage.
    fn remove_settled(&self) -> bool {
        while let Some((number, path, reusable)) = self.shared.removable() {
            fault::kill_point("journal.segment.remove.before");
            if reusable && self.shared.needs_spare() && self.shared.reuse(number) {
                continue;
            }
            match fs::remove_file(&path) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "cannot remove a settled segment yet");
                    return false;
                }
            }
            fault::kill_point("journal.segment.remove.after");
            if let Err(error) = self.shared.dir.sync() {
                tracing::warn!(%error, "cannot fsync the journal's directory after a removal");
            }
            self.shared.removed(number);
        }
        true
    }

    fn make_spare(&self) -> bool {
        if !self.shared.needs_spare() {
            return true;
        }
        if !self.is_free(self.shared.segment_bytes) {
            self.shared.set_spare(Spare::NoRoom);
            return false;
        }
        match self.shared.make_spare() {
            Ok(()) => true,
            Err(error) if is_full(&error) => {
                self.shared.set_spare(Spare::NoRoom);
                false
            }
            // The journal stops; what was begun is removed again.
            Err(error) if error.kind() == ErrorKind::Interrupted => false,
            Err(error) => {
                tracing::warn!(%error, "cannot make the next segment ahead");
                false
            }
        }
    }

    fn make_ballast(&self) -> bool {
        let (want, have) = self.shared.ballast();
        if have == want {
            return true;
        }
        if !self.is_free(want) {
            return false;
        }
        match make_zeros(&self.shared.dir.ballast(), want, &self.shared.stop) {
            Ok(_) => {
                self.shared.set_ballast(want);
                true
            }
            Err(error) => {
                if error.kind() != ErrorKind::Interrupted {
                    tracing::warn!(%error, "cannot make the ballast yet");
                }
                self.shared.set_ballast(0);
                false
            }
        }
    }

    /// Says whether there was one to give.
    fn give_ballast_away(&self) -> bool {
        let gave = fs::remove_file(self.shared.dir.ballast()).is_ok();
        if gave {
            tracing::warn!("the ballast is given away, so that the full disk can be drained");
        }
        self.shared.set_ballast(0);
        gave
    }
}
