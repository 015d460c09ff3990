//! A bounded queue between the feed and the connections whose waits end when the command is stopped.
//!
//! A channel of the standard library does not fit: its blocked sender only wakes up when a receiver takes something,
//! and after a stop no receiver does.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// The queue.
#[derive(Debug)]
pub(super) struct Queue<T> {
    state: Mutex<State<T>>,
    not_empty: Condvar,
    not_full: Condvar,
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
        Self { state: Mutex::new(state), not_empty: Condvar::new(), not_full: Condvar::new(), capacity }
    }

    /// Appends an item as soon as there is space; false if the queue was closed before.
    pub(super) fn push(&self, item: T) -> bool {
        let mut state = self.locked();
        while !state.is_closed && state.items.len() == self.capacity {
            state = self.not_full.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.is_closed {
            return false;
        }
        state.items.push_back(item);
        self.not_empty.notify_one();
        true
    }

    /// Removes the first item, waiting for one; `None` if the queue is closed and empty.
    pub(super) fn pop(&self) -> Option<T> {
        let mut state = self.locked();
        while !state.is_closed && state.items.is_empty() {
            state = self.not_empty.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let item = state.items.pop_front()?;
        self.not_full.notify_one();
        Some(item)
    }

    /// Ends the queue: what it contains is still returned.
    pub(super) fn close(&self) {
        self.end(&mut self.locked());
    }

    /// Ends the queue at once: what it contains is dropped.
    pub(super) fn stop(&self) {
        let mut state = self.locked();
        state.items.clear();
        self.end(&mut state);
    }

    fn end(&self, state: &mut State<T>) {
        state.is_closed = true;
        self.not_empty.notify_all();
        self.not_full.notify_all();
    }

    fn locked(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    #[test]
    fn a_blocked_push_and_a_blocked_pop_end_with_the_stop() {
        let (full, empty) = (Queue::new(1), Queue::<u8>::new(1));
        assert!(full.push(1));
        thread::scope(|scope| {
            let push = scope.spawn(|| full.push(2));
            let pop = scope.spawn(|| empty.pop());
            full.stop();
            empty.stop();
            assert_eq!((push.join().unwrap(), pop.join().unwrap()), (false, None));
        });
        assert_eq!(full.pop(), None);
    }

    #[test]
    fn a_full_queue_takes_the_next_item_when_one_is_removed() {
        let queue = Queue::new(1);
        thread::scope(|scope| {
            scope.spawn(|| assert!((0..1000).all(|number| queue.push(number))));
            assert!((0..1000).all(|number| queue.pop() == Some(number)));
        });
    }

    #[test]
    fn a_closed_queue_is_emptied_in_order() {
        let queue = Queue::new(2);
        assert!(queue.push(1) && queue.push(2));
        queue.close();
        assert!(!queue.push(3));
        assert_eq!([queue.pop(), queue.pop(), queue.pop()], [Some(1), Some(2), None]);
    }
}
