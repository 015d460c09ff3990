//! The housekeeper: a background thread for work that must not delay the writer or a caller. It prepares the next
//! segment's file, from a committed segment if possible, removes other committed segments, and handles a full disk.
//!
//! On a full disk the ballast is deleted at once, so that a database on the same disk can still be drained. Intake
//! stays rejected until both ballast and spare have been created again. That is tried at most every 500 ms, and only if
//! the file system reports enough space: a failing attempt would take the space from others. What is tried so often is
//! logged at most once a minute.

use std::cell::Cell;
use std::io::ErrorKind;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};

use super::error::AppendError;
use super::segment::{create_zeroed, is_transient};
use super::shared::Shared;
use super::state::Spare;
use crate::fault;

const PROBE_INTERVAL: Duration = Duration::from_millis(500);
/// How often the directory is looked for.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
const LOG_INTERVAL: Duration = Duration::from_mins(1);

pub(super) struct Housekeeper {
    shared: Arc<Shared>,
    wake: Receiver<()>,
    full: LogLimit,
    resumed: LogLimit,
    failed: LogLimit,
}

/// Limits how often something is logged that happens again and again.
#[derive(Default)]
struct LogLimit(Cell<Option<Instant>>);

impl LogLimit {
    /// Whether it may be logged now. Only asked if it is about to be.
    fn allows(&self, now: Instant) -> bool {
        let allows = self.0.get().is_none_or(|last| now.saturating_duration_since(last) >= LOG_INTERVAL);
        if allows {
            self.0.set(Some(now));
        }
        allows
    }
}

impl Housekeeper {
    pub(super) fn new(shared: Arc<Shared>, wake: Receiver<()>) -> Self {
        let [full, resumed, failed] = <[LogLimit; 3]>::default();
        Self { shared, wake, full, resumed, failed }
    }

    /// Runs until the journal stops. After a panic it begins again: without it, the journal would grow to its quota and
    /// then reject everything, while the process looks healthy.
    pub(super) fn run(self) {
        while catch_unwind(AssertUnwindSafe(|| self.keep_house())).is_err() && !self.shared.stop.load(Ordering::Acquire)
        {
            metrics::counter!("logweir_journal_housekeeper_panics_total").increment(1);
            tracing::error!("the journal's housekeeper panicked; it begins again");
            // A round that always panics must not keep a core busy.
            let _ = self.wake.recv_timeout(PROBE_INTERVAL);
        }
    }

    fn keep_house(&self) {
        // `Some` while something has to be retried; nothing is retried earlier.
        let mut retry_at = self.work(None, Instant::now());
        while !self.shared.stop.load(Ordering::Acquire) {
            self.shared.publish_gauges();
            let look_at = Instant::now() + LOOK_INTERVAL;
            let until = retry_at.map_or(look_at, |at| at.min(look_at));
            if self.wake.recv_deadline(until) == Err(RecvTimeoutError::Disconnected) {
                break;
            }
            retry_at = self.work(retry_at, Instant::now());
        }
    }

    /// One round. Returns when to retry what failed.
    pub(super) fn work(&self, retry_at: Option<Instant>, now: Instant) -> Option<Instant> {
        fault::kill_point("journal.housekeeper");
        self.look_for_directory();
        let removed = self.remove_committed();
        let full = self.shared.reject_reason() == Some(AppendError::DiskFull);
        if full && (self.delete_ballast() || retry_at.is_none()) {
            // The freed space is for others: check again later.
            return Some(now + PROBE_INTERVAL);
        }
        if retry_at.is_some_and(|at| now < at) {
            return retry_at;
        }
        let made = (!full || self.has_space()) && self.make_spare() & self.make_ballast();
        // Tried again until the writer has rolled back.
        let resumed = made && full && self.shared.space_made();
        if resumed && self.resumed.allows(now) {
            tracing::info!("the journal's disk has space again; intake resumes");
        }
        (!made || full != resumed || !removed).then(|| now + PROBE_INTERVAL)
    }

    /// What is written to a removed file is acknowledged and lost: the journal ends if its directory or lock file has
    /// been removed, renamed or replaced.
    fn look_for_directory(&self) {
        let shared = &self.shared;
        if shared.poison_reason().is_some() {
            return;
        }
        if let Some(gone) = shared.dir.gone(shared.lock_id) {
            let reason =
                format!("{} was removed or replaced: restore it, or start again with an empty journal", gone.display());
            tracing::error!(reason, "the journal is poisoned: nothing is acknowledged until a restart");
            shared.poison(reason);
        }
    }

    /// Whether the file system reports enough space for everything that is missing.
    fn has_space(&self) -> bool {
        let (want, have) = self.shared.ballast();
        let spare = if self.shared.needs_spare() { self.shared.segment_bytes } else { 0 };
        self.is_free(want.saturating_sub(have) + spare)
    }

    fn is_free(&self, bytes: u64) -> bool {
        self.shared.dir.free_bytes().is_ok_and(|free| free >= bytes)
    }

    /// Removes committed segments, oldest first. Stops at a failed unlink, which only delays: a gap between segments
    /// would look like damage.
    fn remove_committed(&self) -> bool {
        while let Some((number, path, reusable)) = self.shared.removable() {
            fault::kill_point("journal.segment.remove.before");
            if reusable && self.shared.needs_spare() && self.shared.reuse(number) {
                continue;
            }
            if let Err(error) = self.shared.remove(number) {
                if self.failed.allows(Instant::now()) {
                    tracing::warn!(path = %path.display(), %error, "cannot remove a committed segment: retrying");
                }
                return false;
            }
            fault::kill_point("journal.segment.remove.after");
            if let Err(error) = self.shared.dir.sync() {
                // Whether the name is gone is unknown for good: the next removal might leave a gap.
                self.shared.removal_failed(&error);
                return false;
            }
        }
        true
    }

    fn make_spare(&self) -> bool {
        if !self.shared.needs_spare() {
            return true;
        }
        if !self.is_free(self.shared.segment_bytes) {
            self.shared.set_spare(Spare::NoSpace);
            return false;
        }
        match self.shared.make_spare() {
            Ok(()) => true,
            Err(error) if is_transient(&error) => {
                self.shared.set_spare(Spare::NoSpace);
                false
            }
            // The journal stops; the partial file has been removed.
            Err(error) if error.kind() == ErrorKind::Interrupted => false,
            Err(error) => {
                if self.failed.allows(Instant::now()) {
                    tracing::warn!(%error, "cannot create the next segment's file: retrying");
                }
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
        let dir = &self.shared.dir;
        match create_zeroed(dir.file_system(), &dir.ballast(), want, &self.shared.stop) {
            Ok(_) => {
                self.shared.set_ballast(want);
                true
            }
            Err(error) => {
                if error.kind() != ErrorKind::Interrupted && self.failed.allows(Instant::now()) {
                    tracing::warn!(%error, "cannot create the ballast: retrying");
                }
                self.shared.set_ballast(0);
                false
            }
        }
    }

    /// Returns whether there was a ballast to delete.
    fn delete_ballast(&self) -> bool {
        let dir = &self.shared.dir;
        let deleted = dir.file_system().remove_file(&dir.ballast()).is_ok();
        if deleted && self.full.allows(Instant::now()) {
            tracing::warn!("deleted the ballast, so that the full disk can be drained");
        }
        self.shared.set_ballast(0);
        deleted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_happens_twice_a_second_is_logged_once_a_minute() {
        let (limit, start) = (LogLimit::default(), Instant::now());
        let logged = (0..360).filter(|nth| limit.allows(start + PROBE_INTERVAL * *nth)).count();
        assert_eq!(logged, 3, "in three minutes");
    }
}
