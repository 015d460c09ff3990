//! The semaphore of a mailbox under loom: every order of its threads' steps and every value that the memory model lets an
//! atomic read return, with at most three preemptions. A lost wake-up shows as a deadlock.
//!
//! The file of the semaphore is compiled here among loom's primitives and a meter that counts nothing, so the engine
//! itself needs no build for loom.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(dead_code, reason = "the models use a part of the semaphore")]

#[path = "../src/semaphore.rs"]
mod semaphore;

/// A meter that counts nothing.
mod meter {
    use std::time::Duration;

    #[derive(Clone, Copy)]
    #[repr(u8)]
    pub(crate) enum Discard {
        Panic,
    }

    pub(crate) struct MailboxMeter {
        pub(crate) waited: Waited,
    }

    pub(crate) struct Waited;

    impl Waited {
        pub(crate) fn add(&self, _: Duration) {}
    }

    impl MailboxMeter {
        pub(crate) fn new(_: &str, _: &str, _: usize, _: usize) -> Self {
            Self { waited: Waited }
        }

        pub(crate) fn depth_grew(&self, _: usize, _: usize) {}

        pub(crate) fn depth_shrank(&self, _: usize, _: usize) {}

        pub(crate) fn discarded(&self, _: u8) {}
    }
}

/// Loom's primitives, and a channel for one value that is built from them.
mod sync {
    pub(crate) use loom::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering, fence};
    pub(crate) use loom::sync::{Mutex, MutexGuard};

    pub(crate) mod oneshot {
        use std::future::Future;
        use std::pin::Pin;
        use std::sync::Arc;
        use std::task::{Context, Poll, Waker};

        use loom::sync::Mutex;

        struct State<T> {
            value: Option<T>,
            sender_gone: bool,
            receiver_gone: bool,
            waker: Option<Waker>,
        }

        pub(crate) struct Sender<T>(Arc<Mutex<State<T>>>);
        pub(crate) struct Receiver<T>(Arc<Mutex<State<T>>>);

        pub(crate) fn channel<T>() -> (Sender<T>, Receiver<T>) {
            let state = State { value: None, sender_gone: false, receiver_gone: false, waker: None };
            let state = Arc::new(Mutex::new(state));
            (Sender(state.clone()), Receiver(state))
        }

        impl<T> Sender<T> {
            pub(crate) fn send(self, value: T) -> Result<(), T> {
                let mut state = self.0.lock().unwrap();
                if state.receiver_gone {
                    return Err(value);
                }
                state.value = Some(value);
                Ok(()) // the drop wakes the receiver
            }
        }

        impl<T> Drop for Sender<T> {
            fn drop(&mut self) {
                let waker = {
                    let mut state = self.0.lock().unwrap();
                    state.sender_gone = true;
                    state.waker.take()
                };
                waker.into_iter().for_each(Waker::wake);
            }
        }

        impl<T> Future for Receiver<T> {
            type Output = Result<T, ()>;

            fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
                let mut state = self.0.lock().unwrap();
                match state.value.take() {
                    Some(value) => Poll::Ready(Ok(value)),
                    None if state.sender_gone => Poll::Ready(Err(())),
                    None => {
                        state.waker = Some(cx.waker().clone());
                        Poll::Pending
                    }
                }
            }
        }

        impl<T> Drop for Receiver<T> {
            fn drop(&mut self) {
                let unread = {
                    let mut state = self.0.lock().unwrap();
                    state.receiver_gone = true;
                    state.value.take()
                };
                drop(unread); // outside the lock: a permit's drop uses the semaphore
            }
        }
    }
}

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use loom::future::block_on;
use loom::thread;

use semaphore::{Bound, Permit, Semaphore};

const PREEMPTIONS: usize = 3;

fn check(model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(PREEMPTIONS);
    builder.check(model);
}

fn one() -> Arc<Semaphore> {
    Semaphore::new("p", "s", Bound { messages_max: 1, bytes_max: 10 })
}

fn take_now(semaphore: &Arc<Semaphore>, bytes: usize) -> Option<Permit> {
    semaphore.try_enter(bytes, Err).ok().and_then(Result::err)
}

fn take(semaphore: &Arc<Semaphore>, bytes: usize) -> Option<Permit> {
    block_on(semaphore.acquire(bytes))
}

fn is_free(semaphore: &Arc<Semaphore>) {
    assert_eq!(semaphore.in_use(), (0, 0));
    assert!(take_now(semaphore, 10).is_some(), "no waiter is left");
}

#[test]
fn a_permit_that_is_returned_wakes_who_begins_to_wait() {
    check(|| {
        let semaphore = one();
        let held = take_now(&semaphore, 1).unwrap();
        let returns = thread::spawn(move || drop(held));
        assert!(take(&semaphore, 1).is_some());
        returns.join().unwrap();
        is_free(&semaphore);
    });
}

#[test]
fn two_waiters_are_both_granted() {
    check(|| {
        let semaphore = one();
        let held = take_now(&semaphore, 1).unwrap();
        let other = semaphore.clone();
        let waits = thread::spawn(move || drop(take(&other, 10).unwrap()));
        drop(held);
        drop(take(&semaphore, 1).unwrap());
        waits.join().unwrap();
        is_free(&semaphore);
    });
}

#[test]
fn a_waiter_that_gives_up_takes_no_permit_with_it() {
    check(|| {
        let semaphore = one();
        let held = take_now(&semaphore, 1).unwrap();
        let returns = thread::spawn(move || drop(held));
        {
            let mut waiting = pin!(semaphore.acquire(1));
            let polled = waiting.as_mut().poll(&mut Context::from_waker(Waker::noop()));
            drop(polled); // granted or not, it is dropped
        }
        assert!(take(&semaphore, 10).is_some());
        returns.join().unwrap();
        is_free(&semaphore);
    });
}

#[test]
fn the_excess_of_a_reservation_wakes_a_waiter() {
    check(|| {
        let semaphore = Semaphore::new("p", "s", Bound { messages_max: 2, bytes_max: 10 });
        let mut held = take_now(&semaphore, 10).unwrap();
        let attaches = thread::spawn(move || {
            held.attach(4);
            held
        });
        assert!(take(&semaphore, 6).is_some());
        attaches.join().unwrap().release();
        is_free(&semaphore);
    });
}

#[test]
fn a_close_wakes_every_waiter() {
    check(|| {
        let semaphore = one();
        let held = take_now(&semaphore, 1).unwrap();
        let other = semaphore.clone();
        let closes = thread::spawn(move || other.close());
        assert!(take(&semaphore, 1).is_none());
        closes.join().unwrap();
        drop(held);
        assert_eq!(semaphore.in_use(), (0, 0));
    });
}

#[test]
fn a_close_and_a_return_leave_nobody_waiting() {
    check(|| {
        let semaphore = one();
        let held = take_now(&semaphore, 1).unwrap();
        let other = semaphore.clone();
        let closes = thread::spawn(move || other.close());
        let returns = thread::spawn(move || drop(held));
        let taken = match block_on(semaphore.acquire(1)) {
            Some(permit) => Poll::Ready(permit),
            None => Poll::Pending,
        };
        drop(taken);
        closes.join().unwrap();
        returns.join().unwrap();
        assert_eq!(semaphore.in_use(), (0, 0));
    });
}
