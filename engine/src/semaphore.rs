//! Semaphore behind one mailbox, counted in messages and in bytes at once.
//!
//! - What is in use is within the bound in both dimensions, always: room is taken under one lock, both
//!   dimensions together. Two semaphores were refused: a sender that holds the one and waits for the other
//!   counts as a message that is not there, and two of them can overtake each other in between.
//! - Semaphore is given back without the lock, so that sender and receiver do not fight for it at each message:
//!   taken and returned are two sums that only grow, and who takes subtracts. A sum that is read a moment too
//!   early shows too little room, never too much.
//! - First come, first served: while anybody waits, nobody who comes later gets in, however small.
//!   A heavy message therefore cannot be starved by light ones.
//! - A cost is clamped to the bound, so the heaviest message fits an empty mailbox.
//! - A waiter that gives up leaves no trace: the queue of waiters is as long as there are waiters.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::mailbox::Bound;
use crate::observe::MailboxMeter;

/// Why a message left its mailbox without having been handled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Discard {
    /// Its handler panicked.
    Panic,
    /// Its handler was silent for too long and was cancelled.
    Stall,
    /// Its stage has ended.
    Stopped,
}

impl Discard {
    pub(crate) const ALL: [Self; 3] = [Self::Panic, Self::Stall, Self::Stopped];

    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Panic => "panic",
            Self::Stall => "stall",
            Self::Stopped => "stopped",
        }
    }
}

pub(crate) struct Semaphore {
    bound: Bound,
    state: Mutex<State>,
    returned: Returned,
    /// A copy of `state.messages`, for those who need a hint only.
    messages: AtomicU64,
    /// Whether anybody stands in `state.waiting`: who gives room back then lets them in.
    awaited: AtomicBool,
    /// What a message that is dropped now dies of; set by the supervisor before it drops anything.
    discard: AtomicU8,
    pub(crate) meter: MailboxMeter,
}

#[derive(Default)]
struct State {
    /// Taken since the beginning.
    messages: u64,
    bytes: u64,
    entered: u64,
    closed: bool,
    next_ticket: u64,
    /// By ticket, so that the first is the one who has waited longest and any can leave cheaply.
    waiting: BTreeMap<u64, Waiter>,
}

/// Given back since the beginning. On cache lines of its own: the receiver writes it, the senders write the rest.
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

/// Semaphore refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    Full,
    Closed,
}

impl Semaphore {
    /// # Panics
    /// When the bound has no room for a single message.
    pub(crate) fn new(pipeline: &str, stage: &str, bound: Bound) -> Arc<Self> {
        assert!(bound.messages_max > 0, "mailbox of {stage}: messages_max must be at least 1");
        assert!(bound.bytes_max > 0, "mailbox of {stage}: bytes_max must be at least 1");
        let meter = MailboxMeter::new(pipeline, stage, bound);
        let discard = AtomicU8::new(Discard::Panic as u8);
        Arc::new(Self {
            bound,
            state: Mutex::default(),
            returned: Returned::default(),
            messages: AtomicU64::new(0),
            awaited: AtomicBool::new(false),
            discard,
            meter,
        })
    }

    pub(crate) fn bound(&self) -> Bound {
        self.bound
    }

    /// Messages and bytes that are in use now.
    pub(crate) fn taken(&self) -> (usize, usize) {
        self.in_use(&self.lock())
    }

    /// Messages that have been pushed since the beginning.
    pub(crate) fn entered(&self) -> u64 {
        self.lock().entered
    }

    /// Whether nothing was taken a moment ago. Takes no lock.
    pub(crate) fn looks_empty(&self) -> bool {
        self.messages.load(Ordering::Relaxed) == self.returned.messages.load(Ordering::Relaxed)
    }

    /// Takes room, or waits for it; `None` when closed.
    pub(crate) async fn take(self: &Arc<Self>, bytes: usize) -> Option<Permit> {
        let cost = self.cost(bytes);
        let waiting = {
            let mut state = self.lock();
            match self.take_now(&mut state, cost) {
                Ok(permit) => return Some(permit),
                Err(Refused::Closed) => return None,
                Err(Refused::Full) => self.wait(&mut state, cost),
            }
        };
        self.admit(); // what was given back before anybody was known to wait
        waiting.await
    }

    /// Nobody gets in from now on; who waits is told.
    pub(crate) fn close(&self) {
        let waiting = {
            let mut state = self.lock();
            state.closed = true;
            self.awaited.store(false, Ordering::Relaxed);
            std::mem::take(&mut state.waiting)
        };
        drop(waiting); // wakes them, outside the lock
    }

    /// Runs `push` if the mailbox is open, so that nothing is pushed after [`Semaphore::close`] has returned:
    /// what the closer pushes then is the last. `push` may drop no permit: it runs under the lock.
    pub(crate) fn if_open<T>(&self, push: impl FnOnce() -> Result<(), T>) -> Result<Result<(), T>, Refused> {
        let mut state = self.lock();
        if state.closed {
            return Err(Refused::Closed);
        }
        let pushed = push();
        state.entered += u64::from(pushed.is_ok());
        Ok(pushed)
    }

    /// Takes room if there is any now, and runs `push` under the same lock.
    pub(crate) fn enter<T>(
        self: &Arc<Self>,
        bytes: usize,
        push: impl FnOnce(Permit) -> Result<(), T>,
    ) -> Result<Result<(), T>, Refused> {
        let mut state = self.lock();
        let permit = self.take_now(&mut state, self.cost(bytes))?;
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

    fn take_now(self: &Arc<Self>, state: &mut State, cost: usize) -> Result<Permit, Refused> {
        if state.closed {
            return Err(Refused::Closed);
        }
        if !state.waiting.is_empty() || !self.fits(state, cost) {
            return Err(Refused::Full);
        }
        self.take_room(state, cost);
        Ok(self.permit(cost))
    }

    fn take_room(&self, state: &mut State, cost: usize) {
        state.messages += 1;
        state.bytes += cost as u64;
        self.messages.store(state.messages, Ordering::Relaxed);
    }

    fn fits(&self, state: &State, cost: usize) -> bool {
        let (messages, bytes) = self.in_use(state);
        messages < self.bound.messages_max && cost <= self.bound.bytes_max - bytes
    }

    /// With the lock held nothing is taken, so that no more than was taken can have been returned.
    fn in_use(&self, state: &State) -> (usize, usize) {
        let messages = state.messages - self.returned.messages.load(Ordering::Acquire);
        let bytes = state.bytes - self.returned.bytes.load(Ordering::Acquire);
        (messages as usize, bytes as usize)
    }

    /// The permit for room that has been taken.
    fn permit(self: &Arc<Self>, cost: usize) -> Permit {
        self.meter.depth_grew(1, cost);
        Permit { semaphore: self.clone(), cost, travelling: false }
    }

    fn wait<'a>(self: &'a Arc<Self>, state: &mut State, cost: usize) -> Waiting<'a> {
        let (grant, granted) = oneshot::channel();
        let ticket = state.next_ticket;
        state.next_ticket += 1;
        state.waiting.insert(ticket, Waiter { cost, grant });
        self.awaited.store(true, Ordering::Relaxed);
        // Against the fence of `give_back`: either it sees that somebody waits, or who waits sees what it gave back.
        fence(Ordering::SeqCst);
        Waiting { semaphore: self, ticket, granted, since: Instant::now() }
    }

    fn give_back(self: &Arc<Self>, messages: usize, bytes: usize) {
        self.meter.depth_shrank(messages, bytes);
        self.returned.bytes.fetch_add(bytes as u64, Ordering::Release);
        self.returned.messages.fetch_add(messages as u64, Ordering::Release);
        fence(Ordering::SeqCst);
        if self.awaited.load(Ordering::Relaxed) {
            self.admit();
        }
    }

    /// Lets in whoever has room now. Grants outside the lock: a grant wakes a task, and one that
    /// nobody takes comes back as a release.
    fn admit(self: &Arc<Self>) {
        loop {
            let Some(waiter) = self.admit_one() else { return };
            drop(waiter.grant.send(self.permit(waiter.cost)));
        }
    }

    /// The longest waiter, if there is room for it now; the room is taken.
    fn admit_one(&self) -> Option<Waiter> {
        let mut state = self.lock();
        let (_, first) = state.waiting.first_key_value()?;
        if !self.fits(&state, first.cost) {
            return None;
        }
        let (_, waiter) = state.waiting.pop_first()?;
        self.awaited.store(!state.waiting.is_empty(), Ordering::Relaxed);
        self.take_room(&mut state, waiter.cost);
        Some(waiter)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No user code runs under the lock, so the numbers hold whatever panicked meanwhile.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place in the queue for room. Dropping it gives the place up.
struct Waiting<'a> {
    semaphore: &'a Arc<Semaphore>,
    ticket: u64,
    /// A grant that arrived but was never taken out is dropped with this, which releases it.
    granted: oneshot::Receiver<Permit>,
    since: Instant,
}

impl Future for Waiting<'_> {
    type Output = Option<Permit>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        // An error means that the mailbox was closed.
        Poll::Ready(ready!(Pin::new(&mut self.granted).poll(cx)).ok())
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.semaphore.meter.waited.add(self.since.elapsed());
        let gave_up = {
            let mut state = self.semaphore.lock();
            let gave_up = state.waiting.remove(&self.ticket).is_some();
            self.semaphore.awaited.store(!state.waiting.is_empty(), Ordering::Relaxed);
            gave_up
        };
        if gave_up {
            self.semaphore.admit(); // a heavy first one may have held up lighter ones
        }
    }
}

/// Semaphore for one message; dropping it gives the room back.
pub(crate) struct Permit {
    semaphore: Arc<Semaphore>,
    cost: usize,
    /// On its way with a message that has not been handled yet.
    travelling: bool,
}

impl Permit {
    /// Sets off with a message of `bytes`. What was reserved beyond that is given back.
    pub(crate) fn depart(&mut self, bytes: usize) {
        let cost = self.semaphore.cost(bytes);
        debug_assert!(cost <= self.cost, "a message of {bytes} bytes on a credit for {}", self.cost);
        if cost < self.cost {
            self.semaphore.give_back(0, self.cost - cost);
            self.cost = cost;
        }
        self.travelling = true;
    }

    /// The message went back to its sender.
    pub(crate) fn recall(&mut self) {
        self.travelling = false;
    }

    /// The message has been handled: the room is free.
    pub(crate) fn release(mut self) {
        self.travelling = false;
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if self.travelling {
            let reason = self.semaphore.discard.load(Ordering::Relaxed);
            self.semaphore.meter.discarded(reason);
        }
        self.semaphore.give_back(1, self.cost);
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

    /// A `take` that runs only when it is polled.
    fn taking(semaphore: &Arc<Semaphore>, bytes: usize) -> Taking {
        let semaphore = semaphore.clone();
        Box::pin(async move { semaphore.take(bytes).await })
    }

    fn poll(taking: &mut Taking) -> Poll<Option<Permit>> {
        taking.as_mut().poll(&mut Context::from_waker(Waker::noop()))
    }

    fn now(semaphore: &Arc<Semaphore>, bytes: usize) -> Option<Permit> {
        match semaphore.enter(bytes, Err) {
            Ok(Err(permit)) => Some(permit),
            _ => None,
        }
    }

    #[test]
    fn both_dimensions_hold_at_once() {
        let semaphore = Semaphore::new("p", "s", BOUND);
        let light: Vec<_> = (0..3).map(|_| now(&semaphore, 1).unwrap()).collect();
        assert!(now(&semaphore, 1).is_none(), "messages are used up");
        drop(light);
        let heavy = now(&semaphore, 60).unwrap();
        assert!(now(&semaphore, 41).is_none(), "bytes are used up");
        assert!(now(&semaphore, 40).is_some());
        drop(heavy);
        assert_eq!(semaphore.taken(), (0, 0));
    }

    #[test]
    fn nobody_overtakes_a_heavy_waiter() {
        let semaphore = Semaphore::new("p", "s", BOUND);
        let held = now(&semaphore, 60).unwrap();
        let mut heavy = taking(&semaphore, 1_000); // oversized: needs the whole room
        let mut light = taking(&semaphore, 1);
        assert!(poll(&mut heavy).is_pending());
        assert!(poll(&mut light).is_pending(), "there is room, but not for who comes later");
        assert!(now(&semaphore, 1).is_none());
        drop(held);
        let Poll::Ready(Some(alone)) = poll(&mut heavy) else { panic!("the heavy one is first") };
        assert_eq!(semaphore.taken(), (1, 100));
        assert!(poll(&mut light).is_pending());
        drop(alone);
        assert!(poll(&mut light).is_ready());
    }

    #[test]
    fn a_heavy_waiter_that_gives_up_lets_the_lighter_ones_in() {
        let semaphore = Semaphore::new("p", "s", BOUND);
        let _held = now(&semaphore, 60).unwrap();
        let (mut heavy, mut light) = (taking(&semaphore, 90), taking(&semaphore, 1));
        assert!(poll(&mut heavy).is_pending() && poll(&mut light).is_pending());
        drop(heavy);
        assert!(poll(&mut light).is_ready());
    }

    #[test]
    fn what_was_reserved_beyond_the_need_is_given_back_on_departure() {
        let semaphore = Semaphore::new("p", "s", BOUND);
        let mut permit = now(&semaphore, 100).unwrap();
        let mut waiter = taking(&semaphore, 70);
        assert!(poll(&mut waiter).is_pending());
        permit.depart(30);
        assert!(poll(&mut waiter).is_ready());
    }

    #[test]
    fn closing_tells_who_waits_and_who_comes() {
        let semaphore = Semaphore::new("p", "s", BOUND);
        let held = now(&semaphore, 100).unwrap();
        let mut waiter = taking(&semaphore, 1);
        assert!(poll(&mut waiter).is_pending());
        semaphore.close();
        assert!(matches!(poll(&mut waiter), Poll::Ready(None)));
        assert!(now(&semaphore, 1).is_none());
        assert!(semaphore.if_open::<()>(|| panic!("nothing passes a closed door")).is_err());
        drop(held);
        assert_eq!(semaphore.taken(), (0, 0));
    }

    #[test]
    fn nobody_waits_for_room_that_another_thread_gave_back_meanwhile() {
        const TAKES: usize = 300_000;
        let semaphore = Semaphore::new("p", "s", Bound { messages_max: 1, bytes_max: 100 });
        let start = std::sync::Barrier::new(2);
        let take_and_return = || {
            start.wait();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            runtime.block_on(async {
                for _ in 0..TAKES {
                    let taken = tokio::time::timeout(Duration::from_secs(5), semaphore.take(1)).await;
                    drop(taken.expect("no wake-up is lost"));
                }
            });
        };
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(take_and_return);
            }
        });
        assert_eq!(semaphore.taken(), (0, 0));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Take(usize),
        TryTake(usize),
        /// Polls the n-th waiter.
        Poll(usize),
        /// The n-th waiter gives up, whether or not its grant is already under way.
        GiveUp(usize),
        Release(usize),
    }

    fn any_step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => (0_usize..150).prop_map(Step::Take),
            1 => (0_usize..150).prop_map(Step::TryTake),
            3 => any::<usize>().prop_map(Step::Poll),
            1 => any::<usize>().prop_map(Step::GiveUp),
            3 => any::<usize>().prop_map(Step::Release),
        ]
    }

    proptest! {
        #[test]
        fn the_bound_holds_and_no_room_is_lost(steps in prop::collection::vec(any_step(), 1..200)) {
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
                    Step::GiveUp(n) if !waiting.is_empty() => drop(waiting.remove(n % waiting.len())),
                    Step::Release(n) if !held.is_empty() => drop(held.swap_remove(n % held.len())),
                    _ => {}
                }
                let state = semaphore.lock();
                let (messages, bytes) = semaphore.in_use(&state);
                prop_assert!(messages <= BOUND.messages_max && bytes <= BOUND.bytes_max);
                // Who still stands in the queue came after all who were let in, and the first does not fit.
                let let_in = waiting.len() - state.waiting.len();
                let costs: Vec<_> = state.waiting.values().map(|waiter| waiter.cost).collect();
                prop_assert_eq!(&costs[..], &waiting[let_in..].iter().map(|(_, cost)| *cost).collect::<Vec<_>>()[..]);
                prop_assert!(costs.first().is_none_or(|&cost| !semaphore.fits(&state, cost)), "room stands empty");
                let granted: usize = waiting[..let_in].iter().map(|(_, cost)| *cost).sum();
                prop_assert_eq!(bytes, granted + held.iter().map(|permit| permit.cost).sum::<usize>());
                prop_assert_eq!(messages, let_in + held.len());
            }
            drop((waiting, held));
            prop_assert_eq!(semaphore.taken(), (0, 0));
        }
    }
}
