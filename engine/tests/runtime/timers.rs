//! Ticks come while the mailbox is empty and while it is never empty.

use super::*;

/// Counts its ticks; a message takes `work_ms` of the paused clock.
struct Worker {
    work_ms: u64,
    ticks: Arc<AtomicU64>,
}

impl Stage for Worker {
    type Message = Item;

    async fn receive(&mut self, _: Item) -> Result<(), Exit> {
        tokio::time::advance(Duration::from_millis(self.work_ms)).await;
        Ok(())
    }

    async fn on_tick(&mut self) -> Result<(), Exit> {
        self.ticks.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
}

fn worker(work_ms: u64, ticks: &Arc<AtomicU64>) -> impl Fn(StageContext) -> Worker + Send + 'static {
    let ticks = ticks.clone();
    move |_| Worker { work_ms, ticks: ticks.clone() }
}

#[test]
fn ticks_come_while_the_mailbox_is_never_empty() {
    const MESSAGES: u64 = 1_000;
    const PERIOD_MS: u64 = 10;
    const WORK_MS: u64 = 1;
    run_paused(async {
        let (mut topology, _control) = topology(SUPERVISION);
        let ticks = Arc::default();
        let mailbox =
            topology.spawn(ticking(here("busy", MESSAGES as usize, 10_000), PERIOD_MS), worker(WORK_MS, &ticks));
        for id in 0..MESSAGES {
            mailbox.try_send(Item::new(id)).unwrap(); // all at once: the mailbox is never empty
        }
        eventually("all are handled", || observation(&topology, "busy").handled == MESSAGES).await;
        // A tick is late by one message at most.
        let ticks = ticks.load(Ordering::SeqCst);
        assert!(ticks >= MESSAGES * WORK_MS / (PERIOD_MS + WORK_MS), "only {ticks} ticks");
        assert!(ticks <= MESSAGES * WORK_MS / PERIOD_MS + 1, "{ticks} ticks are too many");
    });
}

#[test]
fn ticks_come_while_the_stage_is_idle() {
    run_paused(async {
        let (mut topology, _control) = topology(SUPERVISION);
        let ticks: Arc<AtomicU64> = Arc::default();
        topology.spawn(ticking(here("idle", 1, 1), 10), worker(0, &ticks));
        tokio::time::sleep(Duration::from_millis(1_005)).await;
        assert_eq!(ticks.load(Ordering::SeqCst), 100);
    });
}

#[test]
fn a_full_mailbox_does_not_monopolize_the_thread() {
    const MESSAGES: usize = 10_000;
    run_paused(async {
        let (mut topology, _control) = topology(SUPERVISION);
        let at_once = |_, _: Item| std::future::ready(Ok(())); // never yields by itself
        let busy = topology.spawn(here("busy", MESSAGES, MESSAGES), act(at_once));
        let seen = Arc::new(AtomicU64::new(u64::MAX));
        let handle = {
            let (seen, observer) = (seen.clone(), topology.observer());
            move |_, _| {
                let busy = observer.observe().into_iter().find(|stage| stage.name == "busy").unwrap();
                seen.store(busy.handled, Ordering::SeqCst);
                std::future::ready(Ok(()))
            }
        };
        let neighbor = topology.spawn(here("neighbor", 1, 1), act(handle));
        for id in 0..MESSAGES {
            busy.try_send(Item::new(id as u64)).unwrap();
        }
        neighbor.try_send(Item::new(0)).unwrap();
        eventually("the neighbor had its turn", || seen.load(Ordering::SeqCst) != u64::MAX).await;
        let handled = seen.load(Ordering::SeqCst);
        assert!(handled < 1_000, "the neighbor waited for {handled} messages");
    });
}
