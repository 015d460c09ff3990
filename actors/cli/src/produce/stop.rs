//! Stop of the command: by a failure, by a signal, or because all threads have ended.
//!
//! Nothing polls. A wait for time or for threads is a wait on a condition variable; a wait for input is a `poll` that
//! also watches a pipe whose writing end the stop closes.

use std::io::{self, PipeReader, PipeWriter};
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::retry_on_intr;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::low_level::emulate_default_handler;

/// Why the command was stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    /// A body was rejected or not accepted in time, or the input failed.
    Failure,
    /// SIGINT or SIGTERM.
    Signal,
}

impl Reason {
    /// How long requests in flight are waited for.
    fn grace(self) -> Duration {
        match self {
            Self::Failure => Duration::from_secs(10),
            Self::Signal => Duration::from_millis(500),
        }
    }
}

/// The stop.
#[derive(Debug)]
pub(super) struct Stop {
    state: Mutex<State>,
    changed: Condvar,
    /// At its end as soon as the command is stopped.
    pipe: PipeReader,
}

#[derive(Debug)]
struct State {
    reason: Option<Reason>,
    /// When the grace period ends.
    deadline: Option<Instant>,
    running: usize,
    /// Closed by the stop.
    pipe: Option<PipeWriter>,
}

/// A thread that is waited for, until this is dropped.
#[derive(Debug)]
pub(super) struct Running(Arc<Stop>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.locked().running -= 1;
        self.0.changed.notify_all();
    }
}

impl Stop {
    /// # Errors
    /// The process has no file descriptors left.
    pub(super) fn new() -> io::Result<Self> {
        let (reader, writer) = io::pipe()?;
        let state = State { reason: None, deadline: None, running: 0, pipe: Some(writer) };
        Ok(Self { state: Mutex::new(state), changed: Condvar::new(), pipe: reader })
    }

    /// Stops the command. A signal after a failure shortens the grace period; otherwise the first reason counts.
    pub(super) fn set(&self, reason: Reason) {
        let mut state = self.locked();
        if state.reason.is_none() || (state.reason, reason) == (Some(Reason::Failure), Reason::Signal) {
            state.reason = Some(reason);
            state.deadline = Some(Instant::now() + reason.grace());
            state.pipe = None;
            self.changed.notify_all();
        }
    }

    /// Why the command was stopped; `None` while it is not.
    pub(super) fn reason(&self) -> Option<Reason> {
        self.locked().reason
    }

    pub(super) fn is_set(&self) -> bool {
        self.reason().is_some()
    }

    /// Counts a thread that is about to start.
    pub(super) fn running(self: &Arc<Self>) -> Running {
        self.locked().running += 1;
        Running(Arc::clone(self))
    }

    /// Sleeps until `then`; false if the command was stopped before.
    pub(super) fn sleep_until(&self, then: Instant) -> bool {
        let mut state = self.locked();
        loop {
            if state.reason.is_some() {
                return false;
            }
            let left = then.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return true;
            }
            state = self.wait_timeout(state, left);
        }
    }

    /// Waits until a read of `fd` does not block; false if the command was stopped before.
    ///
    /// # Errors
    /// `poll` failed.
    pub(super) fn wait_readable(&self, fd: BorrowedFd<'_>) -> io::Result<bool> {
        let mut ready = [PollFd::new(&self.pipe, PollFlags::IN), PollFd::from_borrowed_fd(fd, PollFlags::IN)];
        retry_on_intr(|| poll(&mut ready, None))?;
        Ok(ready[0].revents().is_empty())
    }

    /// Waits until all threads have ended, or for the grace period after the command was stopped: a thread that is
    /// blocked in the system must not keep the command from ending.
    pub(super) fn wait_for_threads(&self) {
        let mut state = self.locked();
        while state.running > 0 {
            state = match state.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now())) {
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(Duration::ZERO) => return,
                Some(left) => self.wait_timeout(state, left),
            };
        }
    }

    fn locked(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_timeout<'a>(&self, state: MutexGuard<'a, State>, time: Duration) -> MutexGuard<'a, State> {
        self.changed.wait_timeout(state, time).unwrap_or_else(PoisonError::into_inner).0
    }
}

/// Calls `stop` at the first SIGINT or SIGTERM; a second one, whichever it is, ends the process.
///
/// One thread does both, in the order in which it takes the signals: one that came before the thread began is taken like
/// the others. A signal handler could not notify a condition variable. This also works if a shell has started the command
/// in the background, with SIGINT ignored.
///
/// # Errors
/// The process has no file descriptors left.
pub(super) fn on_first_signal(stop: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    let mut stop = Some(stop);
    thread::spawn(move || {
        for signal in signals.forever() {
            match stop.take() {
                Some(stop) => stop(),
                // It does not return; if it fails, the next signal tries it again.
                None => drop(emulate_default_handler(signal)),
            }
        }
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;
    use std::os::fd::AsFd as _;

    #[test]
    fn every_wait_ends_with_the_stop() {
        let stop = Stop::new().unwrap();
        let (input, _open) = io::pipe().unwrap();
        thread::scope(|scope| {
            let slept = scope.spawn(|| stop.sleep_until(Instant::now() + Duration::from_secs(3600)));
            let read = scope.spawn(|| stop.wait_readable(input.as_fd()).unwrap());
            stop.set(Reason::Signal);
            assert_eq!((slept.join().unwrap(), read.join().unwrap()), (false, false));
        });
        assert!(!stop.sleep_until(Instant::now()), "a stopped command starts nothing");
    }

    #[test]
    fn without_a_stop_waits_end_with_what_they_wait_for() {
        let stop = Arc::new(Stop::new().unwrap());
        let (input, mut output) = io::pipe().unwrap();
        output.write_all(b"x").unwrap();
        assert!(stop.sleep_until(Instant::now() + Duration::from_millis(1)));
        assert!(stop.wait_readable(input.as_fd()).unwrap());
        let running = stop.running();
        let thread = thread::spawn(move || drop(running));
        stop.wait_for_threads();
        thread.join().unwrap();
        assert_eq!(stop.reason(), None);
    }

    #[test]
    fn a_signal_shortens_the_grace_period_of_a_failure() {
        let stop = Arc::new(Stop::new().unwrap());
        let _never_ends = stop.running();
        stop.set(Reason::Failure);
        let before = Instant::now();
        stop.set(Reason::Signal);
        let after = Instant::now();
        stop.set(Reason::Failure);
        assert_eq!(stop.reason(), Some(Reason::Signal));
        let grace = Reason::Signal.grace();
        assert!((before + grace..=after + grace).contains(&stop.locked().deadline.unwrap()));
        stop.wait_for_threads();
    }
}
