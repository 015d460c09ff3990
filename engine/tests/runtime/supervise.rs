//! A panic or a stall costs only the message being handled, and is never silent.

use std::future::pending;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc;

use super::*;

/// With the real clock: a busy machine must not take a thread from its stage for so long.
const BUSY_STALL_MS: u64 = 1_000;
const LENIENT: Supervision = Supervision { stall_ms: 60_000, restarts_max: 10_000, restart_window_ms: 60_000 };

#[test]
fn a_panic_loses_only_the_message_being_handled_and_its_sender_is_notified() {
    const SENT: u64 = 1_000;
    const FATAL: u64 = 100; // ids that end in 7
    run(async {
        let (mut topology, _control) = topology(LENIENT);
        let lives = Arc::new(AtomicU64::new(0));
        let factory = {
            let lives = lives.clone();
            let build = act(|_, item: Item| async move {
                tokio::task::yield_now().await; // panics in the middle of a future, not at its first poll
                assert_ne!(item.id % 10, 7, "poison {}", item.id);
                item.answer();
                Ok(())
            });
            move |ctx| {
                lives.fetch_add(1, Ordering::SeqCst);
                build(ctx)
            }
        };
        let mailbox = topology.spawn(apart("fragile", 16, 1_000), factory);
        let mut answers = Vec::new();
        for id in 0..SENT {
            let (item, answer) = Item::with_reply(id);
            mailbox.external().send(item).await.unwrap();
            answers.push(answer);
        }
        let mut lost = Vec::new();
        for (id, answer) in (0..).zip(answers) {
            match answer.await {
                Ok(answer) => assert_eq!(answer, id),
                Err(_) => lost.push(id),
            }
        }
        assert_eq!(lost, (0..SENT).filter(|id| id % 10 == 7).collect::<Vec<_>>());
        // The last reply is sent inside the handler, before the handler completes.
        eventually("every credit is released", || mailbox.depth().messages == 0).await;
        let seen = observation(&topology, "fragile");
        assert_eq!((seen.entered, seen.handled, seen.discarded), (SENT, SENT - FATAL, FATAL));
        assert_eq!(seen.restarts, FATAL);
        assert!(seen.last_panic.unwrap().contains("poison 997"));
        assert_eq!(lives.load(Ordering::SeqCst), 1 + FATAL);
        assert!(topology.drain().await.is_empty());
    });
}

#[test]
fn a_rebuilt_stage_starts_with_fresh_state() {
    run_paused(async {
        let (mut topology, _control) = topology(LENIENT);
        let count = |_| {
            let mut handled = 0;
            let act: CountFn = Box::new(move |item| {
                handled += 1;
                assert_ne!(item.id, 13);
                item.reply.unwrap().send(handled).unwrap();
            });
            Count(act)
        };
        let mailbox = topology.spawn(here("counter", 4, 100), count);
        assert_eq!(ask(&mailbox, 1).await, Some(1));
        assert_eq!(ask(&mailbox, 2).await, Some(2));
        assert_eq!(ask(&mailbox, 13).await, None);
        assert_eq!(ask(&mailbox, 3).await, Some(1), "no state of the old stage is left");
    });
}

type CountFn = Box<dyn FnMut(Item)>;
struct Count(CountFn);

impl Stage for Count {
    type Message = Item;

    async fn receive(&mut self, item: Item) -> Result<(), Exit> {
        (self.0)(item);
        Ok(())
    }
}

/// Panics where it is armed, once each.
struct Trap {
    tick: Arc<AtomicBool>,
    drain: Arc<AtomicBool>,
}

impl Stage for Trap {
    type Message = Item;

    async fn receive(&mut self, item: Item) -> Result<(), Exit> {
        item.answer();
        Ok(())
    }

    async fn on_tick(&mut self) -> Result<(), Exit> {
        assert!(!self.tick.swap(false, Ordering::SeqCst), "tick trap");
        Ok(())
    }

    async fn on_drain(&mut self) -> Result<(), Exit> {
        assert!(!self.drain.swap(false, Ordering::SeqCst), "drain trap");
        Ok(())
    }
}

#[test]
fn ticks_continue_after_a_panic_in_a_tick() {
    run_paused(async {
        let (mut topology, _control) = topology(LENIENT);
        let trap = Arc::new(AtomicBool::new(true));
        let tick = trap.clone();
        let factory = move |_| Trap { tick: tick.clone(), drain: Arc::default() };
        let mailbox = topology.spawn(ticking(here("trap", 4, 100), 10), factory);
        tokio::time::sleep(Duration::from_millis(15)).await;
        let seen = observation(&topology, "trap");
        assert_eq!((seen.restarts, seen.last_panic.as_deref()), (1, Some("tick trap")));
        assert_eq!(ask(&mailbox, 5).await, Some(5));
        trap.store(true, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(15)).await;
        assert_eq!(observation(&topology, "trap").restarts, 2);
    });
}

#[test]
fn the_drain_continues_after_a_panic_in_the_drain() {
    run_paused(async {
        let (mut topology, _control) = topology(LENIENT);
        let trap = Arc::new(AtomicBool::new(true));
        let drain = trap.clone();
        let factory = move |_| Trap { tick: Arc::default(), drain: drain.clone() };
        topology.spawn(here("trap", 4, 100), factory);
        assert!(topology.drain().await.is_empty());
        assert!(!trap.load(Ordering::SeqCst), "on_drain was called");
        let seen = observation(&topology, "trap");
        assert_eq!((seen.restarts, seen.state), (1, "drained"));
    });
}

/// A factory that panics at its first `failures` calls.
fn bad_factory(failures: u64) -> impl Fn(StageContext) -> Act<AnswerFn> + Send + 'static {
    let turn = AtomicU64::new(0);
    move |ctx| {
        let turn = turn.fetch_add(1, Ordering::SeqCst);
        assert!(turn >= failures, "factory {turn} fails");
        Act { ctx, act: answer }
    }
}

type AnswerFn = fn(StageContext, Item) -> std::future::Ready<Result<(), Exit>>;

fn answer(_: StageContext, item: Item) -> std::future::Ready<Result<(), Exit>> {
    item.answer();
    std::future::ready(Ok(()))
}

#[test]
fn a_factory_that_panics_is_called_again_and_counts_as_a_restart() {
    run_paused(async {
        let (mut topology, _control) = topology(Supervision { restarts_max: 3, ..LENIENT });
        let mailbox = topology.spawn(here("late", 4, 100), bad_factory(3));
        assert_eq!(ask(&mailbox, 1).await, Some(1));
        assert_eq!(observation(&topology, "late").restarts, 3);
        assert_eq!(observation(&topology, "late").last_panic.as_deref(), Some("factory 2 fails"));
    });
}

#[test]
fn too_many_restarts_end_in_exit_70_and_every_sender_is_notified() {
    run_paused(async {
        let (mut topology, _control) = topology(Supervision { restarts_max: 3, ..LENIENT });
        let die = |_, item: Item| async move {
            assert_ne!(item.id, 7, "always");
            Ok(())
        };
        let mailbox = topology.spawn(here("doomed", 100, 100), act(die));
        let mut answers = Vec::new();
        for _ in 0..10 {
            let (item, answer) = Item::with_reply(7);
            mailbox.try_send(item).unwrap();
            answers.push(answer);
        }
        let exit = topology.exited().await;
        assert_eq!(exit.code, Exit::SOFTWARE);
        assert!(exit.reason.contains("stage doomed failed 4 times within 60000 ms"), "{exit}");
        assert!(exit.reason.contains("always"), "{exit}");
        for answer in answers {
            assert!(answer.await.is_err());
        }
        assert!(mailbox.external().send(Item::new(1)).await.is_err());
        let seen = observation(&topology, "doomed");
        assert_eq!((seen.entered, seen.handled, seen.discarded, seen.state), (10, 0, 10, "stopped"));
        assert!(topology.drain().await.is_empty(), "it has already stopped");
    });
}

#[test]
fn restarts_below_the_limit_do_not_end_the_process() {
    run_paused(async {
        let (mut topology, _control) = topology(Supervision { restarts_max: 1, restart_window_ms: 1_000, ..LENIENT });
        let die = |_, _: Item| async { panic!("now and then") };
        let mailbox = topology.spawn(here("moody", 4, 100), act(die));
        for _ in 0..20 {
            assert_eq!(ask(&mailbox, 7).await, None);
            tokio::time::sleep(Duration::from_millis(1_001)).await;
        }
        assert_eq!(observation(&topology, "moody").restarts, 20);
        assert!(futures_util::FutureExt::now_or_never(topology.exited()).is_none());
    });
}

#[test]
fn the_first_exit_returned_by_a_stage_counts() {
    run_paused(async {
        let (mut topology, _control) = topology(LENIENT);
        let fenced = |_, item: Item| async move { Err(Exit::new(Exit::FENCED, format!("fenced {}", item.id))) };
        let (first, second) =
            (topology.spawn(here("first", 4, 100), act(fenced)), topology.spawn(here("second", 4, 100), act(fenced)));
        let exited = topology.exited();
        first.try_send(Item::new(1)).unwrap();
        assert_eq!(exited.await, Exit::new(Exit::FENCED, "fenced 1"));
        second.try_send(Item::new(2)).unwrap();
        eventually("the second stage stops, too", || observation(&topology, "second").state == "stopped").await;
        assert_eq!(topology.exited().await, Exit::new(Exit::FENCED, "fenced 1"));
        assert!(first.external().send(Item::new(3)).await.is_err());
    });
}

#[test]
fn a_stalled_stage_is_canceled_and_rebuilt_and_a_waiting_one_is_not() {
    run_paused(async {
        let (mut topology, _control) = topology(Supervision { stall_ms: 1_000, ..LENIENT });
        let silent = |_, item: Item| async move {
            if item.id == 7 {
                pending::<()>().await; // forever, in its own code
            }
            item.answer();
            Ok(())
        };
        let gate = Gate::shut();
        let silent = topology.spawn(here("silent", 4, 100), act(silent));
        let waiting = topology.spawn(here("waiting", 4, 100), gated(&gate));
        let delegate = {
            let gate = gate.clone();
            move |ctx: StageContext, item: Item| {
                let gate = gate.clone();
                async move {
                    // Polling the stage does not poll this wait, so only the number of waits shows it.
                    actix_rt::spawn(async move { gate.pass(&ctx).await }).await.unwrap();
                    item.answer();
                    Ok(())
                }
            }
        };
        let delegating = topology.spawn(here("delegating", 4, 100), act(delegate));
        let (item, waited_for) = Item::with_reply(1);
        let (other, delegated) = Item::with_reply(2);
        waiting.try_send(item).unwrap();
        delegating.try_send(other).unwrap();
        assert_eq!(ask(&silent, 7).await, None);
        assert_eq!(ask(&silent, 8).await, Some(8));
        tokio::time::sleep(Duration::from_secs(1_000)).await;
        assert_eq!(observation(&topology, "waiting").state, "waiting");
        gate.open(2);
        assert_eq!((waited_for.await, delegated.await), (Ok(1), Ok(2)));
        let seen = observation(&topology, "silent");
        assert_eq!((seen.restarts, seen.handled, seen.discarded, seen.last_panic), (1, 1, 1, None));
        assert_eq!((observation(&topology, "waiting").restarts, observation(&topology, "delegating").restarts), (0, 0));
        assert!(futures_util::FutureExt::now_or_never(topology.exited()).is_none());
    });
}

#[test]
fn a_stage_that_spins_but_yields_is_canceled() {
    run(async {
        let (mut topology, _control) = topology(Supervision { stall_ms: BUSY_STALL_MS, ..LENIENT });
        let spin = |_, item: Item| async move {
            if item.id == 7 {
                loop {
                    tokio::task::yield_now().await;
                }
            }
            item.answer();
            Ok(())
        };
        let mailbox = topology.spawn(apart("spinner", 4, 100), act(spin));
        assert_eq!(ask(&mailbox, 7).await, None);
        assert_eq!(ask(&mailbox, 8).await, Some(8));
        assert!(topology.drain().await.is_empty());
    });
}

#[test]
fn a_stage_that_blocks_its_thread_ends_in_exit_70_and_its_neighbor_is_not_blamed() {
    run(async {
        let (mut topology, _control) = topology(Supervision { stall_ms: BUSY_STALL_MS, restarts_max: 0, ..LENIENT });
        let (release, released) = mpsc::channel::<()>();
        let released = Arc::new(Mutex::new(released));
        let block = {
            let released = released.clone();
            move |_, item: Item| {
                let released = released.clone();
                async move {
                    let _ = released.lock().unwrap().recv();
                    item.answer();
                    Ok(())
                }
            }
        };
        let neighbor = |_, item: Item| async move {
            tokio::task::yield_now().await; // the blocker takes the thread here
            item.answer();
            Ok(())
        };
        let neighbor =
            topology.spawn(StageSpec { arbiter: "shared".to_owned(), ..here("neighbor", 4, 100) }, act(neighbor));
        let blocker = topology.spawn(StageSpec { arbiter: "shared".to_owned(), ..here("blocker", 4, 100) }, act(block));
        let (item, blocked) = Item::with_reply(1);
        let (other, unheard) = Item::with_reply(2);
        neighbor.external().send(other).await.unwrap();
        blocker.external().send(item).await.unwrap();
        let exit = exit_of(&topology).await;
        assert_eq!(exit.code, Exit::SOFTWARE);
        assert!(exit.reason.starts_with("stage blocker has blocked its thread for "), "{exit}");
        drop(release);
        assert_eq!((blocked.await, unheard.await), (Ok(1), Ok(2)));
        assert!(topology.drain().await.is_empty());
    });
}

#[test]
fn a_stage_with_messages_whose_thread_does_not_run_it_ends_in_exit_70() {
    run(async {
        let (mut topology, _control) = topology(Supervision { stall_ms: BUSY_STALL_MS, restarts_max: 0, ..LENIENT });
        let (release, released) = mpsc::channel::<()>();
        let released = Arc::new(Mutex::new(released));
        // Blocks the thread outside of every stage.
        let sabotage = move |_, item: Item| {
            let released = released.clone();
            async move {
                actix_rt::spawn(async move { released.lock().unwrap().recv() });
                item.answer();
                Ok(())
            }
        };
        let shared = |name: &str| StageSpec { arbiter: "shared".to_owned(), ..here(name, 4, 100) };
        let starved = topology.spawn(shared("starved"), act(answer));
        let saboteur = topology.spawn(shared("saboteur"), act(sabotage));
        assert_eq!(ask(&saboteur, 1).await, Some(1));
        let (item, unheard) = Item::with_reply(2);
        starved.external().send(item).await.unwrap();
        assert_eq!(observation(&topology, "starved").state, "idle");
        let exit = exit_of(&topology).await;
        assert_eq!(exit.code, Exit::SOFTWARE);
        assert!(exit.reason.starts_with("the thread of stage starved has not run it for "), "{exit}");
        drop(release);
        assert_eq!(unheard.await, Ok(2));
        assert!(topology.drain().await.is_empty());
    });
}

#[test]
fn code_that_blocks_the_thread_inside_a_known_wait_is_detected() {
    run(async {
        let (mut topology, _control) = topology(Supervision { stall_ms: BUSY_STALL_MS, ..LENIENT });
        let (release, released) = mpsc::channel::<()>();
        let released = Arc::new(Mutex::new(released));
        let block = move |ctx: StageContext, _: Item| {
            let released = released.clone();
            async move {
                ctx.waiting(async { released.lock().unwrap().recv() }).await.unwrap_err();
                Ok(())
            }
        };
        let mailbox = topology.spawn(apart("blocker", 4, 100), act(block));
        mailbox.external().send(Item::new(1)).await.unwrap();
        assert_eq!(exit_of(&topology).await.code, Exit::SOFTWARE);
        drop(release);
    });
}

/// Returns an exit at one place.
struct Quit {
    at: &'static str,
}

impl Quit {
    fn exit(&self, at: &str) -> Result<(), Exit> {
        if self.at == at { Err(Exit::new(Exit::IO_ERROR, format!("in {at}"))) } else { Ok(()) }
    }
}

impl Stage for Quit {
    type Message = Item;

    async fn receive(&mut self, _: Item) -> Result<(), Exit> {
        self.exit("receive")
    }

    async fn on_tick(&mut self) -> Result<(), Exit> {
        self.exit("on_tick")
    }

    async fn on_drain(&mut self) -> Result<(), Exit> {
        self.exit("on_drain")
    }
}

#[test]
fn an_exit_from_a_tick_or_a_drain_counts_too() {
    for (at, state) in [("receive", "stopped"), ("on_tick", "stopped"), ("on_drain", "stopped"), ("never", "drained")] {
        run_paused(async {
            let (mut topology, _control) = topology(LENIENT);
            let mailbox = topology.spawn(ticking(here("quits", 4, 100), 10), move |_| Quit { at });
            mailbox.try_send(Item::new(1)).unwrap();
            tokio::time::sleep(Duration::from_millis(15)).await;
            assert!(topology.drain().await.is_empty());
            let exit = futures_util::FutureExt::now_or_never(topology.exited());
            assert_eq!(exit, (at != "never").then(|| Exit::new(Exit::IO_ERROR, format!("in {at}"))));
            assert_eq!(observation(&topology, "quits").state, state);
        });
    }
}

#[test]
#[should_panic(expected = "two stages named twin")]
fn spawning_two_stages_of_one_name_panics() {
    run(async {
        let (mut topology, _control) = topology(LENIENT);
        topology.spawn(here("twin", 1, 1), |_| Quit { at: "never" });
        topology.spawn(here("twin", 1, 1), |_| Quit { at: "never" });
    });
}

#[test]
#[should_panic(expected = "mailbox of narrow: messages_max must be at least 1")]
fn spawning_a_mailbox_without_capacity_panics() {
    run(async {
        let (mut topology, _control) = topology(LENIENT);
        topology.spawn(here("narrow", 0, 1), |_| Quit { at: "never" });
    });
}
