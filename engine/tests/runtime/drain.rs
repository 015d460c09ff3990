//! A drain proceeds upstream first, leaves nothing behind, and names the stages that block it.

use std::sync::Mutex;
use std::sync::mpsc;

use logweir_engine::drain::Phase;
use logweir_engine::mailbox::{Closed, Depth, TrySendError};

use super::*;

type Log = Arc<Mutex<Vec<String>>>;

/// Holds back three messages, so that only `on_drain` can send the last ones.
struct Hoard {
    ctx: StageContext,
    next: Option<Mailbox<Item>>,
    held: Vec<Item>,
    stored: Arc<AtomicU64>,
    log: Log,
}

impl Hoard {
    async fn send_held(&mut self, keep: usize) {
        while self.held.len() > keep {
            let item = self.held.remove(0);
            match &self.next {
                Some(next) => self.ctx.send(next, item).await.expect("downstream is still open"),
                None => drop(self.stored.fetch_add(1, Ordering::SeqCst)),
            }
        }
    }
}

impl Stage for Hoard {
    type Message = Item;

    async fn receive(&mut self, item: Item) -> Result<(), Exit> {
        self.held.push(item);
        self.send_held(3).await;
        Ok(())
    }

    async fn on_drain(&mut self) -> Result<(), Exit> {
        self.log.lock().unwrap().push(format!("{} drains {}", self.ctx.name, self.held.len()));
        self.send_held(0).await;
        Ok(())
    }
}

#[test]
fn a_drain_proceeds_upstream_first_and_leaves_nothing() {
    const SENT: u64 = 500;
    run(async {
        let (mut topology, _control) = topology(SUPERVISION);
        let (stored, log) = (Arc::new(AtomicU64::new(0)), Log::default());
        let hoard = |next: Option<Mailbox<Item>>| {
            let (stored, log) = (stored.clone(), log.clone());
            move |ctx| Hoard { ctx, next: next.clone(), held: Vec::new(), stored: stored.clone(), log: log.clone() }
        };
        let sink = topology.spawn(apart("sink", 2, 100), hoard(None));
        let middle = topology.spawn(apart("middle", 4, 100), hoard(Some(sink.clone())));
        let source = topology.spawn(apart("source", 8, 100), hoard(Some(middle.clone())));
        for id in 0..SENT {
            source.external().send(Item::new(id)).await.unwrap();
        }
        assert!(topology.drain().await.is_empty());
        assert_eq!(stored.load(Ordering::SeqCst), SENT);
        assert_eq!(*log.lock().unwrap(), ["source drains 3", "middle drains 3", "sink drains 3"]);
        for seen in topology.observer().observe() {
            assert_eq!((seen.handled, seen.discarded, seen.depth_messages, seen.state), (SENT, 0, 0, "drained"));
        }
        assert!(matches!(sink.external().send(Item::new(7)).await, Err(Closed(Item { id: 7, .. }))));
    });
}

#[test]
fn a_message_sent_during_a_drain_is_handled_or_returned() {
    const SENDERS: u64 = 4;
    run(async {
        let (mut topology, _control) = topology(SUPERVISION);
        let stored = Arc::new(AtomicU64::new(0));
        let factory = {
            let stored = stored.clone();
            move |ctx| Hoard { ctx, next: None, held: Vec::new(), stored: stored.clone(), log: Log::default() }
        };
        let mailbox = topology.spawn(apart("sink", 4, 100), factory);
        let senders: Vec<_> = (0..SENDERS)
            .map(|_| {
                let mailbox = mailbox.clone();
                std::thread::spawn(move || {
                    run(async move {
                        let mut sent = 0;
                        loop {
                            let credit = mailbox.external().reserve(1).await;
                            let Ok(credit) = credit else { return sent };
                            let Ok(()) = credit.send(Item::new(sent)) else { return sent };
                            sent += 1;
                        }
                    })
                })
            })
            .collect();
        eventually("the senders are running", || observation(&topology, "sink").handled > 1_000).await;
        assert!(topology.drain().await.is_empty());
        let sent: u64 = senders.into_iter().map(|sender| sender.join().unwrap()).sum();
        assert_eq!(stored.load(Ordering::SeqCst), sent, "no message after the drain");
        let seen = observation(&topology, "sink");
        assert_eq!((seen.entered, seen.handled, seen.discarded), (sent, sent, 0));
        assert_eq!(mailbox.depth(), Depth::default());
    });
}

#[test]
fn the_drain_is_the_last_to_enter_the_mailbox() {
    run_paused(async {
        let (mut topology, _control) = topology(SUPERVISION);
        let gate = Gate::shut();
        let mailbox = topology.spawn(here("gate", 4, 100), gated(&gate));
        let (item, answer) = Item::with_reply(1);
        mailbox.try_send(item).unwrap();
        let drained = actix_rt::spawn(async move { topology.drain().await });
        tokio::task::yield_now().await; // the drain is queued behind the message being handled
        assert!(matches!(mailbox.try_send(Item::new(2)), Err(TrySendError::Closed(Item { id: 2, .. }))));
        assert!(!drained.is_finished());
        gate.open(1);
        assert_eq!(answer.await, Ok(1));
        assert!(drained.await.unwrap().is_empty());
    });
}

#[test]
fn a_stage_that_blocks_the_drain_is_canceled_and_named_at_persisting() {
    run_paused(async {
        let (mut topology, control) = topology(SUPERVISION);
        let gate = Gate::shut();
        let sink = topology.spawn(here("sink", 4, 100), act(|_, _: Item| async { Ok(()) }));
        let stuck = topology.spawn(here("stuck", 4, 100), gated(&gate));
        let source = topology.spawn(here("source", 4, 100), act(|_, _: Item| async { Ok(()) }));
        let (item, in_hand) = Item::with_reply(1);
        let (other, queued) = Item::with_reply(2);
        stuck.try_send(item).unwrap();
        stuck.try_send(other).unwrap();
        actix_rt::spawn(async move {
            tokio::time::sleep(Duration::from_secs(1)).await;
            control.advance(Phase::Persisting);
            tokio::time::sleep(Duration::from_secs(60)).await; // keeps the control alive
        });
        assert_eq!(topology.drain().await, ["stuck", "sink"], "upstream first; source had stopped");
        assert!(in_hand.await.is_err() && queued.await.is_err(), "their senders are notified");
        let states: Vec<_> = topology.observer().observe().into_iter().map(|seen| (seen.name, seen.state)).collect();
        let expected = [("source", "drained"), ("stuck", "stopped"), ("sink", "stopped")];
        assert_eq!(states, expected.map(|(name, state)| (name.to_owned(), state)));
        assert_eq!(observation(&topology, "stuck").discarded, 2);
        for mailbox in [source, stuck, sink] {
            assert!(mailbox.external().send(Item::new(3)).await.is_err());
            assert_eq!(mailbox.depth(), Depth::default());
        }
    });
}

#[test]
fn a_blocked_thread_does_not_block_the_drain() {
    run(async {
        let (mut topology, control) = topology(SUPERVISION);
        let (release, released) = mpsc::channel::<()>();
        let released = Arc::new(Mutex::new(released));
        let (inside, entered) = mpsc::channel();
        let block = move |_, _: Item| {
            let (released, inside) = (released.clone(), inside.clone());
            async move {
                inside.send(()).unwrap();
                let _ = released.lock().unwrap().recv();
                Ok(())
            }
        };
        let mailbox = topology.spawn(apart("blocker", 4, 100), act(block));
        mailbox.external().send(Item::new(1)).await.unwrap();
        eventually("the handler runs", || entered.try_recv().is_ok()).await;
        control.advance(Phase::Persisting);
        assert_eq!(topology.drain().await, ["blocker"]);
        drop(release);
    });
}

#[test]
fn a_drain_skips_a_stage_that_has_stopped() {
    run_paused(async {
        let (mut topology, _control) = topology(SUPERVISION);
        let stored = Arc::new(AtomicU64::new(0));
        let sink = {
            let stored = stored.clone();
            move |ctx| Hoard { ctx, next: None, held: Vec::new(), stored: stored.clone(), log: Log::default() }
        };
        let sink = topology.spawn(here("sink", 4, 100), sink);
        let ends = |_, _: Item| async { Err(Exit::new(Exit::IO_ERROR, "the disk failed")) };
        let ends = topology.spawn(here("ends", 4, 100), act(ends));
        ends.try_send(Item::new(1)).unwrap();
        sink.try_send(Item::new(2)).unwrap();
        assert_eq!(topology.exited().await.code, Exit::IO_ERROR);
        assert!(topology.drain().await.is_empty());
        assert_eq!(stored.load(Ordering::SeqCst), 1);
    });
}

#[test]
fn dropping_a_topology_stops_its_stages_and_notifies_their_senders() {
    run(async {
        let (mut topology, _control) = topology(SUPERVISION);
        let gate = Gate::shut();
        let mailbox = topology.spawn(apart("gate", 4, 100), gated(&gate));
        let (item, answer) = Item::with_reply(1);
        mailbox.external().send(item).await.unwrap();
        drop(topology);
        assert!(answer.await.is_err());
        assert!(mailbox.external().send(Item::new(2)).await.is_err());
    });
}

#[test]
fn a_stage_that_is_canceled_before_its_first_turn_is_never_built() {
    run_paused(async {
        let (mut topology, _control) = topology(SUPERVISION);
        let built = Arc::new(AtomicU64::new(0));
        let factory = {
            let (built, build) = (built.clone(), act(|_, _: Item| async { Ok(()) }));
            move |ctx| {
                built.fetch_add(1, Ordering::SeqCst);
                build(ctx)
            }
        };
        let mailbox = topology.spawn(here("unborn", 1, 1), factory);
        let (item, answer) = Item::with_reply(1);
        mailbox.try_send(item).unwrap();
        drop(topology);
        assert!(answer.await.is_err());
        assert_eq!(built.load(Ordering::SeqCst), 0);
    });
}
