//! Tests of the semaphore. In a file of its own, since `tests/loom.rs` compiles the semaphore without them.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use proptest::prelude::*;

use crate::semaphore::{Bound, Permit, Semaphore};

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
                let taken = tokio::time::timeout(Duration::from_secs(120), semaphore.acquire(1)).await;
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
