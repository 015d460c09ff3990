//! A bounded queue between the feed and the connections whose waits end when the command is stopped.
//!
//! A channel of the standard library does not fit: its blocked sender only wakes up when a receiver takes something,
//! and after a signal no receiver does.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Interval at which a wait checks whether the command is stopped: a signal handler cannot notify a condition variable.
pub(super) const POLL: Duration = Duration::from_millis(50);

/// The queue.
#[derive(Debug)]
pub(super) struct Queue<T> {
    state: Mutex<State<T>>,
    changed: Condvar,
    capacity: usize,
}

#[derive(Debug)]
struct State<T> {
    items: VecDeque<T>,
    is_closed: bool,
}

impl<T> Queue<T> {
    pub(super) fn new(capacity: usize) -> Self {
        let state = State { items: VecDeque::with_capacity(capacity), is_closed: false };
        Self { state: Mutex::new(state), changed: Condvar::new(), capacity }
    }

    /// Appends an item as soon as there is space; false if the queue was closed or the command stopped before.
    pub(super) fn push(&self, item: T, is_stopped: impl Fn() -> bool) -> bool {
        let mut state = self.locked();
        loop {
            if state.is_closed || is_stopped() {
                return false;
            }
            if state.items.len() < self.capacity {
                state.items.push_back(item);
                self.changed.notify_all();
                return true;
            }
            state = self.wait(state);
        }
    }

    /// Removes the first item, waiting for one; `None` if the queue is closed and empty, or the command was stopped.
    pub(super) fn pop(&self, is_stopped: impl Fn() -> bool) -> Option<T> {
        let mut state = self.locked();
        loop {
            if is_stopped() {
                return None;
            }
            if let Some(item) = state.items.pop_front() {
                self.changed.notify_all();
                return Some(item);
            }
            if state.is_closed {
                return None;
            }
            state = self.wait(state);
        }
    }

    /// Ends the queue: what it contains is still returned.
    pub(super) fn close(&self) {
        self.locked().is_closed = true;
        self.changed.notify_all();
    }

    fn locked(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State<T>>) -> MutexGuard<'a, State<T>> {
        self.changed.wait_timeout(state, POLL).unwrap_or_else(PoisonError::into_inner).0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;

    #[test]
    fn a_blocked_push_and_a_blocked_pop_end_with_the_stop() {
        let (full, empty, stop) = (Queue::new(1), Queue::<u8>::new(1), AtomicBool::new(false));
        let is_stopped = || stop.load(Ordering::Relaxed);
        assert!(full.push(1, is_stopped));
        thread::scope(|scope| {
            let push = scope.spawn(|| full.push(2, is_stopped));
            let pop = scope.spawn(|| empty.pop(is_stopped));
            thread::sleep(2 * POLL);
            assert!(!push.is_finished() && !pop.is_finished());
            stop.store(true, Ordering::Relaxed);
            assert_eq!((push.join().unwrap(), pop.join().unwrap()), (false, None));
        });
    }

    #[test]
    fn a_closed_queue_is_emptied_in_order() {
        let queue = Queue::new(2);
        let never = || false;
        assert!(queue.push(1, never) && queue.push(2, never));
        queue.close();
        assert!(!queue.push(3, never));
        assert_eq!([queue.pop(never), queue.pop(never), queue.pop(never)], [Some(1), Some(2), None]);
    }
}
