//! Messages are handled one at a time, in the order in which each sender sent them.

use std::cell::Cell;

use super::*;

const SENDERS: u64 = 8;
const EACH: u64 = 2_000;

/// Compares each message with the previous one of the same sender.
struct InOrder {
    ctx: StageContext,
    next: Vec<u64>,
    inside: Cell<bool>,
}

impl Stage for InOrder {
    type Message = Item;

    async fn receive(&mut self, item: Item) -> Result<(), Exit> {
        assert!(!self.inside.replace(true), "two messages at the same time");
        let (sender, number) = (item.id / EACH, item.id % EACH);
        match number % 5 {
            0 => tokio::task::yield_now().await,
            1 => self.ctx.waiting(tokio::time::sleep(Duration::from_micros(1))).await,
            _ => {}
        }
        let expected = std::mem::replace(&mut self.next[sender as usize], number + 1);
        assert_eq!(number, expected, "sender {sender}");
        self.inside.set(false);
        item.answer();
        Ok(())
    }

    async fn on_tick(&mut self) -> Result<(), Exit> {
        assert!(!self.inside.get(), "a tick inside a message");
        Ok(())
    }
}

#[test]
fn each_senders_messages_keep_their_order_across_awaiting_handlers() {
    run(async {
        let (mut topology, _control) = topology(SUPERVISION);
        let exited = topology.exited();
        let factory = |ctx| InOrder { ctx, next: vec![0; SENDERS as usize], inside: Cell::new(false) };
        let mailbox = topology.spawn(ticking(apart("order", 16, 1_000), 1), factory);
        let senders: Vec<_> = (0..SENDERS)
            .map(|sender| {
                let mailbox = mailbox.clone();
                std::thread::spawn(move || {
                    run(async move {
                        for number in 0..EACH {
                            mailbox.external().send(Item::new(sender * EACH + number)).await.unwrap();
                        }
                    });
                })
            })
            .collect();
        tokio::select! {
            exit = exited => panic!("{exit}"),
            () = eventually("all are handled", || observation(&topology, "order").handled == SENDERS * EACH) => {}
        }
        for sender in senders {
            sender.join().unwrap();
        }
        assert!(topology.drain().await.is_empty());
    });
}
