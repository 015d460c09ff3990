//! A mailbox never exceeds its bound, and no credit is ever lost.

use std::sync::Mutex;

use futures_util::future::join_all;
use logweir_engine::mailbox::{Closed, Depth, TrySendError};

use super::*;

const SENDERS: usize = 300;

/// Sends from 300 senders, `item_bytes` each, to a stage that handles a message for each time the gate is opened. The
/// number of messages that have entered must be exactly `handled + capacity`, and never more.
fn check_bound(messages_max: usize, bytes_max: usize, item_bytes: usize, capacity: usize, threads: usize) {
    run(async move {
        let (mut topology, _control) = topology(SUPERVISION);
        let gate = Gate::shut();
        let entered = Arc::new(AtomicU64::new(0));
        let worst = Arc::new(AtomicU64::new(0));
        let handle = {
            let (gate, entered, worst) = (gate.clone(), entered.clone(), worst.clone());
            move |ctx: StageContext, _: Item| {
                let (gate, entered, worst) = (gate.clone(), entered.clone(), worst.clone());
                async move {
                    // The current message is not handled yet: `passed` counts those that are.
                    let handled = gate.passed.load(Ordering::SeqCst);
                    worst.fetch_max(entered.load(Ordering::SeqCst) - handled, Ordering::SeqCst);
                    gate.pass(&ctx).await;
                    Ok(())
                }
            }
        };
        let mailbox = topology.spawn(apart("gate", messages_max, bytes_max), act(handle));
        let senders = (0..threads).map(|_| {
            let (mailbox, entered) = (mailbox.clone(), entered.clone());
            let send_all = move || {
                run(join_all((0..SENDERS / threads).map(|_| {
                    let (mailbox, entered) = (mailbox.clone(), entered.clone());
                    async move {
                        mailbox.external().send(Item::of_bytes(item_bytes)).await.unwrap();
                        entered.fetch_add(1, Ordering::SeqCst);
                    }
                })))
            };
            std::thread::spawn(send_all)
        });
        let senders: Vec<_> = senders.collect();
        for handled in [0, 1, 5, 50, SENDERS - capacity] {
            gate.open(handled - usize::try_from(gate.passed.load(Ordering::SeqCst)).unwrap());
            let expected = (handled + capacity) as u64;
            eventually("the mailbox is full again", || entered.load(Ordering::SeqCst) == expected).await;
            assert_eq!(mailbox.depth(), Depth { messages: capacity, bytes: capacity * item_bytes });
        }
        gate.open(SENDERS);
        for sender in senders {
            sender.join().unwrap();
        }
        eventually("all are handled", || mailbox.depth() == Depth::default()).await;
        assert_eq!(observation(&topology, "gate").handled, SENDERS as u64);
        assert!(worst.load(Ordering::SeqCst) <= capacity as u64, "at most {capacity}, but {worst:?}");
        assert!(topology.drain().await.is_empty());
    });
}

#[test]
fn messages_bound_300_senders() {
    check_bound(7, 1_000_000, 100, 7, 1);
}

#[test]
fn bytes_bound_300_senders() {
    check_bound(1_000, 1_099, 100, 10, 1);
}

#[test]
fn messages_bound_300_senders_on_four_threads() {
    check_bound(7, 1_000_000, 100, 7, 4);
}

#[test]
fn bytes_bound_300_senders_on_four_threads() {
    check_bound(1_000, 1_099, 100, 10, 4);
}

#[test]
fn an_oversized_message_is_admitted_alone() {
    run_paused(async {
        let (mut topology, _control) = topology(SUPERVISION);
        let gate = Gate::shut();
        let mailbox = topology.spawn(here("gate", 10, 100), gated(&gate));
        mailbox.try_send(Item::of_bytes(1)).unwrap();
        let huge = actix_rt::spawn({
            let mailbox = mailbox.clone();
            async move { mailbox.external().send(Item::of_bytes(5_000)).await.unwrap() }
        });
        let light = actix_rt::spawn({
            let mailbox = mailbox.clone();
            async move { mailbox.external().send(Item::of_bytes(1)).await.unwrap() }
        });
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(mailbox.depth(), Depth { messages: 1, bytes: 1 }, "it waits for the other message");
        gate.open(1);
        huge.await.unwrap();
        assert_eq!(mailbox.depth(), Depth { messages: 1, bytes: 100 }, "it costs the whole capacity");
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(!light.is_finished());
        gate.open(2);
        light.await.unwrap();
        eventually("all are handled", || mailbox.depth() == Depth::default()).await;
    });
}

#[test]
fn waiting_senders_are_served_in_fifo_order() {
    const WAITING: u64 = 50;
    run_paused(async {
        let (mut topology, _control) = topology(SUPERVISION);
        let gate = Gate::shut();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let handle = {
            let (gate, seen) = (gate.clone(), seen.clone());
            move |ctx: StageContext, item: Item| {
                let (gate, seen) = (gate.clone(), seen.clone());
                async move {
                    gate.pass(&ctx).await;
                    seen.lock().unwrap().push(item.id);
                    Ok(())
                }
            }
        };
        let mailbox = topology.spawn(here("gate", 1, 100), act(handle));
        mailbox.try_send(Item::new(0)).unwrap();
        for id in 1..=WAITING {
            let mailbox = mailbox.clone();
            actix_rt::spawn(async move { mailbox.external().send(Item::new(id)).await.unwrap() });
            tokio::task::yield_now().await; // it waits in the queue now
        }
        for _ in 0..=WAITING {
            assert!(matches!(mailbox.try_send(Item::new(99)), Err(TrySendError::Full(Item { id: 99, .. }))));
            gate.open(1);
            tokio::task::yield_now().await;
        }
        eventually("all are handled", || seen.lock().unwrap().len() as u64 == WAITING + 1).await;
        assert_eq!(*seen.lock().unwrap(), (0..=WAITING).collect::<Vec<_>>());
        assert_eq!(observation(&topology, "gate").rejected, WAITING + 1);
    });
}

#[test]
fn closing_returns_new_messages_and_handles_queued_ones() {
    run_paused(async {
        let (mut topology, _control) = topology(SUPERVISION);
        let gate = Gate::shut();
        let mailbox = topology.spawn(here("gate", 3, 100), gated(&gate));
        let (first, first_answer) = Item::with_reply(1);
        let (second, second_answer) = Item::with_reply(2);
        mailbox.external().send(first).await.unwrap();
        mailbox.external().send(second).await.unwrap();
        let credit = mailbox.external().reserve(1).await.unwrap();
        let waiting = actix_rt::spawn({
            let mailbox = mailbox.clone();
            async move { mailbox.external().send(Item::new(3)).await }
        });
        tokio::task::yield_now().await;
        mailbox.close();
        let Err(Closed(back)) = waiting.await.unwrap() else { panic!("the mailbox is closed") };
        assert_eq!(back.id, 3);
        assert!(matches!(credit.send(Item::new(4)), Err(Closed(Item { id: 4, .. }))));
        assert!(matches!(mailbox.external().send(Item::new(5)).await, Err(Closed(Item { id: 5, .. }))));
        assert!(matches!(mailbox.try_send(Item::new(6)), Err(TrySendError::Closed(Item { id: 6, .. }))));
        assert!(matches!(mailbox.external().reserve(1).await, Err(Closed(()))));
        gate.open(2);
        assert_eq!((first_answer.await, second_answer.await), (Ok(1), Ok(2)));
        eventually("every credit is released", || mailbox.depth() == Depth::default()).await;
        let seen = observation(&topology, "gate");
        assert_eq!((seen.entered, seen.handled, seen.discarded), (2, 2, 0));
    });
}

#[test]
fn dropping_a_waiting_reserve_loses_no_credit() {
    const CAPACITY: usize = 4;
    const ROUNDS: usize = 2_000;
    run(async {
        let (mut topology, _control) = topology(SUPERVISION);
        let gate = Gate::shut();
        let mailbox = topology.spawn(apart("gate", CAPACITY, 1_000), gated(&gate));
        let sender = mailbox.external();
        let mut sent = 0;
        for round in 0..ROUNDS {
            // A release on the stage's thread races with the cancellation: the grant may be in flight.
            gate.open(round % 2);
            tokio::select! {
                biased;
                credit = sender.reserve(1) => {
                    credit.unwrap().send(Item::new(0)).unwrap();
                    sent += 1;
                }
                () = tokio::task::yield_now() => {}
            }
        }
        gate.open(ROUNDS);
        eventually("all sent messages are handled", || observation(&topology, "gate").handled == sent).await;
        eventually("every credit is released", || mailbox.depth() == Depth::default()).await;
        assert!(topology.drain().await.is_empty());
    });
    run_paused(async {
        // The whole capacity is usable afterwards.
        let (mut topology, _control) = topology(SUPERVISION);
        let gate = Gate::shut();
        let mailbox = topology.spawn(here("gate", CAPACITY, 1_000), gated(&gate));
        for _ in 0..CAPACITY {
            mailbox.try_send(Item::new(0)).unwrap();
        }
        let sender = mailbox.external();
        for _ in 0..ROUNDS {
            tokio::select! {
                biased;
                _ = sender.reserve(1) => panic!("full"),
                () = std::future::ready(()) => {}
            }
        }
        gate.open(CAPACITY);
        eventually("the mailbox is empty", || mailbox.depth() == Depth::default()).await;
        for _ in 0..CAPACITY {
            mailbox.try_send(Item::new(0)).unwrap();
        }
        assert!(mailbox.try_send(Item::new(0)).is_err());
    });
}
