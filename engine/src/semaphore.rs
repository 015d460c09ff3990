//! The semaphore of one mailbox, which accounts messages and bytes together.
//!
//! - The usage never exceeds the bound in either dimension: both are charged under one lock. Two semaphores were
//!   rejected: a sender that holds a permit of one and waits for the other counts as a message that is not there, and
//!   two such senders can overtake each other.
//! - Permits are returned without the lock, so that sender and receiver do not contend at each message: acquired and
//!   returned amounts are two sums that only grow, and an acquire subtracts them. A stale sum shows too little free
//!   capacity, never too much.
//! - FIFO: while a sender waits, later ones wait too, however small their message. So light messages cannot starve a
//!   heavy one.
//! - A cost is clamped to the bound, so the heaviest message fits into an empty mailbox.
//! - A canceled waiter leaves the queue: the queue is as long as there are waiters.
//!
//! `tests/loom.rs` checks the orderings: that no wake-up is lost, and that a canceled waiter takes no permit with it.
//!
//! What tokio's `Semaphore` in its place would change:
//! - One semaphore with a cost of `max(bytes, bytes_max / messages_max)`: the limits are no longer independent. A
//!   mailbox of 16 messages and 16 MiB that holds one of 8 MiB then takes 8 small ones, not 15; with one of 12 MiB it
//!   takes 4 (`cargo test -p logweir-engine one_heavy_message`). It needs a lock of our own all the same, so that
//!   nothing enters after the close, and counters for the depth. A hop costs 7 to 8% more instructions (1569 instead of
//!   1454 for `send`, 1809 instead of 1693 for `reserve`), and 10% fewer if every sender waits (3973 instead of 4399):
//!   callgrind, per message between runs of 5,000 and 25,000, sent on one thread as `cargo bench --bench mailbox` does.
//! - Two semaphores behind a fair lock: a sender keeps the lock until its thread has polled it, so a busy thread would
//!   stop all other senders of an empty mailbox.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, PoisonError};
use std::task::{Context, Poll, ready};

use tokio::time::Instant;

// Relative: `tests/loom.rs` compiles this file among modules of its own, to run it in every order of its threads' steps.
use super::meter::{Discard, MailboxMeter};
use super::sync::{AtomicBool, AtomicU8, AtomicU64, Mutex, MutexGuard, Ordering, fence, oneshot};

/// Bound of one mailbox. Both limits hold at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Bound {
    /// Limit for messages queued or being handled.
    pub messages_max: usize,
    /// Limit for bytes of messages queued or being handled.
    pub bytes_max: usize,
}

pub(crate) struct Semaphore {
    bound: Bound,
    state: Mutex<State>,
    returned: Returned,
    /// A copy of `state.messages` that can be read without the lock, as a hint.
    messages: AtomicU64,
    /// Whether `state.waiting` is not empty: then returning a permit must grant waiters.
    has_waiters: AtomicBool,
    /// The reason counted for a message that is dropped now; set by the supervisor before it drops messages.
    discard: AtomicU8,
    pub(crate) meter: MailboxMeter,
}

#[derive(Default)]
pub(super) struct State {
    /// Acquired since the start.
    messages: u64,
    bytes: u64,
    entered: u64,
    closed: bool,
    next_ticket: u64,
    /// Keyed by ticket, so that the first has waited longest and any waiter can leave cheaply.
    pub(super) waiting: BTreeMap<u64, Waiter>,
}

/// Returned since the start. On cache lines of its own: the receiver writes it, the senders write the rest.
#[derive(Default)]
#[repr(align(128))]
struct Returned {
    messages: AtomicU64,
    bytes: AtomicU64,
}

pub(super) struct Waiter {
    pub(super) cost: usize,
    grant: oneshot::Sender<Permit>,
}

/// Why no permit was acquired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AcquireError {
    Full,
    Closed,
}

impl Semaphore {
    /// # Panics
    /// If a limit of the bound is 0.
    pub(crate) fn new(pipeline: &str, stage: &str, bound: Bound) -> Arc<Self> {
        assert!(bound.messages_max > 0, "mailbox of {stage}: messages_max must be at least 1");
        assert!(bound.bytes_max > 0, "mailbox of {stage}: bytes_max must be at least 1");
        let meter = MailboxMeter::new(pipeline, stage, bound.messages_max, bound.bytes_max);
        let discard = AtomicU8::new(Discard::Panic as u8);
        Arc::new(Self {
            bound,
            state: Mutex::default(),
            returned: Returned::default(),
            messages: AtomicU64::new(0),
            has_waiters: AtomicBool::new(false),
            discard,
            meter,
        })
    }

    pub(crate) fn bound(&self) -> Bound {
        self.bound
    }

    /// Messages and bytes in use.
    pub(crate) fn in_use(&self) -> (usize, usize) {
        self.in_use_locked(&self.lock())
    }

    /// Messages that have entered the mailbox since the start.
    pub(crate) fn entered(&self) -> u64 {
        self.lock().entered
    }

    /// Whether nothing was in use a moment ago. Takes no lock.
    pub(crate) fn is_probably_empty(&self) -> bool {
        self.messages.load(Ordering::Relaxed) == self.returned.messages.load(Ordering::Relaxed)
    }

    /// Acquires a permit, waiting if necessary; `None` if the semaphore is closed.
    pub(crate) async fn acquire(self: &Arc<Self>, bytes: usize) -> Option<Permit> {
        let cost = self.cost(bytes);
        let waiting = {
            let mut state = self.lock();
            match self.try_acquire(&mut state, cost) {
                Ok(permit) => return Some(permit),
                Err(AcquireError::Closed) => return None,
                Err(AcquireError::Full) => self.enqueue(&mut state, cost),
            }
        };
        self.grant_waiters(); // permits that were returned before `has_waiters` was set
        waiting.await
    }

    /// Closes the semaphore: every later acquire fails, and waiters are woken with `None`.
    pub(crate) fn close(&self) {
        let waiting = {
            let mut state = self.lock();
            state.closed = true;
            self.has_waiters.store(false, Ordering::Relaxed);
            std::mem::take(&mut state.waiting)
        };
        drop(waiting); // wakes them, outside the lock
    }

    /// Runs `push` if the semaphore is open. Nothing is pushed after [`Semaphore::close`] has returned, so that the
    /// in-band drain is the last message. `push` must not drop a permit: it runs under the lock.
    pub(crate) fn push_if_open<T>(&self, push: impl FnOnce() -> Result<(), T>) -> Result<Result<(), T>, AcquireError> {
        let mut state = self.lock();
        if state.closed {
            return Err(AcquireError::Closed);
        }
        let pushed = push();
        state.entered += u64::from(pushed.is_ok());
        Ok(pushed)
    }

    /// Acquires a permit if one is free now, and runs `push` under the same lock.
    pub(crate) fn try_enter<T>(
        self: &Arc<Self>,
        bytes: usize,
        push: impl FnOnce(Permit) -> Result<(), T>,
    ) -> Result<Result<(), T>, AcquireError> {
        let mut state = self.lock();
        let permit = self.try_acquire(&mut state, self.cost(bytes))?;
        let pushed = push(permit);
        state.entered += u64::from(pushed.is_ok());
        Ok(pushed)
    }

    pub(crate) fn set_discard(&self, reason: Discard) {
        self.discard.store(reason as u8, Ordering::Relaxed);
    }

    pub(super) fn cost(&self, bytes: usize) -> usize {
        bytes.min(self.bound.bytes_max)
    }

    fn try_acquire(self: &Arc<Self>, state: &mut State, cost: usize) -> Result<Permit, AcquireError> {
        if state.closed {
            return Err(AcquireError::Closed);
        }
        if !state.waiting.is_empty() || !self.fits(state, cost) {
            return Err(AcquireError::Full);
        }
        self.charge(state, cost);
        Ok(self.permit(cost))
    }

    fn charge(&self, state: &mut State, cost: usize) {
        state.messages += 1;
        state.bytes += cost as u64;
        self.messages.store(state.messages, Ordering::Relaxed);
    }

    pub(super) fn fits(&self, state: &State, cost: usize) -> bool {
        let (messages, bytes) = self.in_use_locked(state);
        messages < self.bound.messages_max && cost <= self.bound.bytes_max - bytes
    }

    /// Acquiring needs the lock, so under the lock no more than was acquired can have been returned.
    pub(super) fn in_use_locked(&self, state: &State) -> (usize, usize) {
        let messages = state.messages - self.returned.messages.load(Ordering::Acquire);
        let bytes = state.bytes - self.returned.bytes.load(Ordering::Acquire);
        (messages as usize, bytes as usize)
    }

    /// The permit for an amount that has been charged.
    fn permit(self: &Arc<Self>, cost: usize) -> Permit {
        self.meter.depth_grew(1, cost);
        Permit { semaphore: self.clone(), cost, in_flight: false }
    }

    fn enqueue<'a>(self: &'a Arc<Self>, state: &mut State, cost: usize) -> Waiting<'a> {
        let (grant, granted) = oneshot::channel();
        let ticket = state.next_ticket;
        state.next_ticket += 1;
        state.waiting.insert(ticket, Waiter { cost, grant });
        self.has_waiters.store(true, Ordering::Relaxed);
        // Pairs with the fence of `return_permit`: either it sees the waiter, or the waiter sees what it returned.
        fence(Ordering::SeqCst);
        Waiting { semaphore: self, ticket, granted, since: Instant::now() }
    }

    fn return_permit(self: &Arc<Self>, messages: usize, bytes: usize) {
        self.meter.depth_shrank(messages, bytes);
        self.returned.bytes.fetch_add(bytes as u64, Ordering::Release);
        self.returned.messages.fetch_add(messages as u64, Ordering::Release);
        fence(Ordering::SeqCst);
        if self.has_waiters.load(Ordering::Relaxed) {
            self.grant_waiters();
        }
    }

    /// Grants waiters as long as permits are free. Grants outside the lock: sending a grant wakes a task, and a grant
    /// that is not received is dropped, which returns it.
    fn grant_waiters(self: &Arc<Self>) {
        loop {
            let Some(waiter) = self.pop_grantable() else { return };
            drop(waiter.grant.send(self.permit(waiter.cost)));
        }
    }

    /// Removes and returns the longest waiter if its cost fits now; the cost has been charged.
    fn pop_grantable(&self) -> Option<Waiter> {
        let mut state = self.lock();
        let (_, first) = state.waiting.first_key_value()?;
        if !self.fits(&state, first.cost) {
            return None;
        }
        let (_, waiter) = state.waiting.pop_first()?;
        self.has_waiters.store(!state.waiting.is_empty(), Ordering::Relaxed);
        self.charge(&mut state, waiter.cost);
        Some(waiter)
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        // No user code runs under the lock, so the state is consistent even after a panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place in the queue of waiters. Dropping it leaves the queue.
struct Waiting<'a> {
    semaphore: &'a Arc<Semaphore>,
    ticket: u64,
    /// A grant that was sent but not received is dropped with this, which returns the permit.
    granted: oneshot::Receiver<Permit>,
    since: Instant,
}

impl Future for Waiting<'_> {
    type Output = Option<Permit>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        // An error means that the semaphore was closed.
        Poll::Ready(ready!(Pin::new(&mut self.granted).poll(cx)).ok())
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.semaphore.meter.waited.add(self.since.elapsed());
        let was_waiting = {
            let mut state = self.semaphore.lock();
            let was_waiting = state.waiting.remove(&self.ticket).is_some();
            self.semaphore.has_waiters.store(!state.waiting.is_empty(), Ordering::Relaxed);
            was_waiting
        };
        if was_waiting {
            self.semaphore.grant_waiters(); // a heavy waiter at the head may have blocked lighter ones
        }
    }
}

/// Permit for one message; dropping it returns it.
pub(crate) struct Permit {
    semaphore: Arc<Semaphore>,
    pub(super) cost: usize,
    /// Whether it belongs to a message that has not been handled yet.
    in_flight: bool,
}

impl Permit {
    /// Attaches the permit to a message of `bytes`. The excess of the reservation is returned.
    pub(crate) fn attach(&mut self, bytes: usize) {
        let cost = self.semaphore.cost(bytes);
        debug_assert!(cost <= self.cost, "a message of {bytes} bytes on a credit for {}", self.cost);
        if cost < self.cost {
            self.semaphore.return_permit(0, self.cost - cost);
            self.cost = cost;
        }
        self.in_flight = true;
    }

    /// The message was returned to its sender.
    pub(crate) fn detach(&mut self) {
        self.in_flight = false;
    }

    /// The message has been handled: returns the permit.
    pub(crate) fn release(mut self) {
        self.in_flight = false;
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if self.in_flight {
            let reason = self.semaphore.discard.load(Ordering::Relaxed);
            self.semaphore.meter.discarded(reason);
        }
        self.semaphore.return_permit(1, self.cost);
    }
}
