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
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::meter::{Discard, MailboxMeter};

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
struct State {
    /// Acquired since the start.
    messages: u64,
    bytes: u64,
    entered: u64,
    closed: bool,
    next_ticket: u64,
    /// Keyed by ticket, so that the first has waited longest and any waiter can leave cheaply.
    waiting: BTreeMap<u64, Waiter>,
}

/// Returned since the start. On cache lines of its own: the receiver writes it, the senders write the rest.
#[derive(Default)]
#[repr(align(128))]
struct Returned {
    messages: AtomicU64,
    bytes: AtomicU64,
}

struct Waiter {
    cost: usize,
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

    fn cost(&self, bytes: usize) -> usize {
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

    fn fits(&self, state: &State, cost: usize) -> bool {
        let (messages, bytes) = self.in_use_locked(state);
        messages < self.bound.messages_max && cost <= self.bound.bytes_max - bytes
    }

    /// Acquiring needs the lock, so under the lock no more than was acquired can have been returned.
    fn in_use_locked(&self, state: &State) -> (usize, usize) {
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

    fn lock(&self) -> MutexGuard<'_, State> {
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
    cost: usize,
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

#[cfg(test)]
mod tests {
    use std::task::Waker;
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    const BOUND: Bound = Bound { messages_max: 3, bytes_max: 100 };

    type Taking = Pin<Box<dyn Future<Output = Option<Permit>>>>;

    /// An `acquire` that runs only when it is polled.
    fn taking(semaphore: &Arc<Semaphore>, bytes: usize) -> Taking {
        let semaphore = semaphore.clone();
        Box::pin(async move { semaphore.acquire(bytes).await })
    }

    fn poll(taking: &mut Taking) -> Poll<Option<Permit>> {
        taking.as_mut().poll(&mut Context::from_waker(Waker::noop()))
    }

    fn now(semaphore: &Arc<Semaphore>, bytes: usize) -> Option<Permit> {
        match semaphore.try_enter(bytes, Err) {
            Ok(Err(permit)) => Some(permit),
            _ => None,
        }
    }

    #[test]
    fn both_limits_hold_at_once() {
        let semaphore = Semaphore::new("p", "s", BOUND);
        let light: Vec<_> = (0..3).map(|_| now(&semaphore, 1).unwrap()).collect();
        assert!(now(&semaphore, 1).is_none(), "no message permit is left");
        drop(light);
        let heavy = now(&semaphore, 60).unwrap();
        assert!(now(&semaphore, 41).is_none(), "no byte permit is left");
        assert!(now(&semaphore, 40).is_some());
        drop(heavy);
        assert_eq!(semaphore.in_use(), (0, 0));
    }

    #[test]
    fn one_heavy_message_costs_one_message() {
        const MIB: usize = 1 << 20;
        let semaphore = Semaphore::new("p", "s", Bound { messages_max: 16, bytes_max: 16 * MIB });
        let _heavy = now(&semaphore, 12 * MIB).unwrap();
        let light: Vec<_> = std::iter::from_fn(|| now(&semaphore, 1_000)).collect();
        assert_eq!(light.len(), 15);
    }

    #[test]
    fn later_waiters_do_not_overtake_a_heavy_one() {
        let semaphore = Semaphore::new("p", "s", BOUND);
        let held = now(&semaphore, 60).unwrap();
        let mut heavy = taking(&semaphore, 1_000); // oversized: needs the whole capacity
        let mut light = taking(&semaphore, 1);
        assert!(poll(&mut heavy).is_pending());
        assert!(poll(&mut light).is_pending(), "there is capacity, but an earlier waiter comes first");
        assert!(now(&semaphore, 1).is_none());
        drop(held);
        let Poll::Ready(Some(alone)) = poll(&mut heavy) else { panic!("the heavy waiter is first") };
        assert_eq!(semaphore.in_use(), (1, 100));
        assert!(poll(&mut light).is_pending());
        drop(alone);
        assert!(poll(&mut light).is_ready());
    }

    #[test]
    fn canceling_a_heavy_waiter_grants_the_lighter_ones() {
        let semaphore = Semaphore::new("p", "s", BOUND);
        let _held = now(&semaphore, 60).unwrap();
        let (mut heavy, mut light) = (taking(&semaphore, 90), taking(&semaphore, 1));
        assert!(poll(&mut heavy).is_pending() && poll(&mut light).is_pending());
        drop(heavy);
        assert!(poll(&mut light).is_ready());
    }

    #[test]
    fn the_excess_of_a_reservation_is_returned_when_the_message_is_sent() {
        let semaphore = Semaphore::new("p", "s", BOUND);
        let mut permit = now(&semaphore, 100).unwrap();
        let mut waiter = taking(&semaphore, 70);
        assert!(poll(&mut waiter).is_pending());
        permit.attach(30);
        assert!(poll(&mut waiter).is_ready());
    }

    #[test]
    fn closing_fails_current_and_later_acquires() {
        let semaphore = Semaphore::new("p", "s", BOUND);
        let held = now(&semaphore, 100).unwrap();
        let mut waiter = taking(&semaphore, 1);
        assert!(poll(&mut waiter).is_pending());
        semaphore.close();
        assert!(matches!(poll(&mut waiter), Poll::Ready(None)));
        assert!(now(&semaphore, 1).is_none());
        assert!(semaphore.push_if_open::<()>(|| panic!("a closed semaphore runs no push")).is_err());
        drop(held);
        assert_eq!(semaphore.in_use(), (0, 0));
    }

    #[test]
    fn a_permit_returned_by_another_thread_wakes_the_waiter() {
        const TAKES: usize = 300_000;
        let semaphore = Semaphore::new("p", "s", Bound { messages_max: 1, bytes_max: 100 });
        let start = std::sync::Barrier::new(2);
        let take_and_return = || {
            start.wait();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            runtime.block_on(async {
                for _ in 0..TAKES {
                    let taken = tokio::time::timeout(Duration::from_secs(5), semaphore.acquire(1)).await;
                    drop(taken.expect("no wake-up is lost"));
                }
            });
        };
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(take_and_return);
            }
        });
        assert_eq!(semaphore.in_use(), (0, 0));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Take(usize),
        TryTake(usize),
        /// Polls the n-th waiter.
        Poll(usize),
        /// Cancels the n-th waiter, whether or not its grant has been sent.
        Cancel(usize),
        Release(usize),
    }

    fn any_step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => (0_usize..150).prop_map(Step::Take),
            1 => (0_usize..150).prop_map(Step::TryTake),
            3 => any::<usize>().prop_map(Step::Poll),
            1 => any::<usize>().prop_map(Step::Cancel),
            3 => any::<usize>().prop_map(Step::Release),
        ]
    }

    proptest! {
        #[test]
        fn the_bound_holds_and_no_permit_is_lost(steps in prop::collection::vec(any_step(), 1..200)) {
            let semaphore = Semaphore::new("p", "s", BOUND);
            let mut waiting: Vec<(Taking, usize)> = Vec::new();
            let mut held: Vec<Permit> = Vec::new();
            for step in steps {
                match step {
                    Step::Take(bytes) => {
                        let mut taking = taking(&semaphore, bytes);
                        match poll(&mut taking) {
                            Poll::Ready(permit) => held.push(permit.unwrap()),
                            Poll::Pending => waiting.push((taking, semaphore.cost(bytes))),
                        }
                    }
                    Step::TryTake(bytes) => held.extend(now(&semaphore, bytes)),
                    Step::Poll(n) if !waiting.is_empty() => {
                        let n = n % waiting.len();
                        if let Poll::Ready(permit) = poll(&mut waiting[n].0) {
                            held.push(permit.unwrap());
                            drop(waiting.remove(n));
                        }
                    }
                    Step::Cancel(n) if !waiting.is_empty() => drop(waiting.remove(n % waiting.len())),
                    Step::Release(n) if !held.is_empty() => drop(held.swap_remove(n % held.len())),
                    _ => {}
                }
                let state = semaphore.lock();
                let (messages, bytes) = semaphore.in_use_locked(&state);
                prop_assert!(messages <= BOUND.messages_max && bytes <= BOUND.bytes_max);
                // Queued waiters came after all granted ones, and the first of them does not fit.
                let granted_count = waiting.len() - state.waiting.len();
                let costs: Vec<_> = state.waiting.values().map(|waiter| waiter.cost).collect();
                prop_assert_eq!(&costs[..], &waiting[granted_count..].iter().map(|(_, cost)| *cost).collect::<Vec<_>>()[..]);
                let first_fits = costs.first().is_some_and(|&cost| semaphore.fits(&state, cost));
                prop_assert!(!first_fits, "the first waiter fits but was not granted");
                let granted: usize = waiting[..granted_count].iter().map(|(_, cost)| *cost).sum();
                prop_assert_eq!(bytes, granted + held.iter().map(|permit| permit.cost).sum::<usize>());
                prop_assert_eq!(messages, granted_count + held.len());
            }
            drop((waiting, held));
            prop_assert_eq!(semaphore.in_use(), (0, 0));
        }
    }
}
