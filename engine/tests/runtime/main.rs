//! The actor runtime under load, panics, stalls and drains, verified by counting.
//!
//! Tests whose stages all run on the system's own thread use a paused clock, which jumps ahead when all tasks are idle.
//! Tests that need threads use the real clock, and poll with a deadline.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod bound;
mod drain;
mod observe;
mod order;
mod supervise;
mod timers;

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use logweir_engine::drain::DrainControl;
use logweir_engine::mailbox::{Bound, Mailbox, Message};
use logweir_engine::observe::Observation;
use logweir_engine::stage::{Exit, Stage, StageContext};
use logweir_engine::topology::{SYSTEM_ARBITER, StageSpec, Supervision, Topology};
use tokio::sync::{Semaphore, oneshot};

/// A message with an id, a size and an optional reply channel.
struct Item {
    id: u64,
    bytes: usize,
    reply: Option<oneshot::Sender<u64>>,
}

impl Message for Item {
    fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Item {
    fn new(id: u64) -> Self {
        Self { id, bytes: 1, reply: None }
    }

    fn of_bytes(bytes: usize) -> Self {
        Self { id: 0, bytes, reply: None }
    }

    fn with_reply(id: u64) -> (Self, oneshot::Receiver<u64>) {
        let (reply, answer) = oneshot::channel();
        (Self { id, bytes: 1, reply: Some(reply) }, answer)
    }

    fn answer(self) {
        if let Some(reply) = self.reply {
            let _ = reply.send(self.id);
        }
    }
}

/// A stage that consists of one function.
struct Act<F> {
    ctx: StageContext,
    act: F,
}

impl<F, Fut> Stage for Act<F>
where
    F: FnMut(StageContext, Item) -> Fut + 'static,
    Fut: Future<Output = Result<(), Exit>>,
{
    type Message = Item;

    async fn receive(&mut self, item: Item) -> Result<(), Exit> {
        (self.act)(self.ctx.clone(), item).await
    }
}

/// The factory of an [`Act`].
fn act<F, Fut>(act: F) -> impl Fn(StageContext) -> Act<F> + Send + 'static
where
    F: FnMut(StageContext, Item) -> Fut + Clone + Send + 'static,
    Fut: Future<Output = Result<(), Exit>> + 'static,
{
    move |ctx| Act { ctx, act: act.clone() }
}

/// Lets one message pass per permit.
#[derive(Clone)]
struct Gate {
    permits: Arc<Semaphore>,
    passed: Arc<AtomicU64>,
}

impl Gate {
    fn shut() -> Self {
        Self { permits: Arc::new(Semaphore::new(0)), passed: Arc::default() }
    }

    fn open(&self, messages: usize) {
        self.permits.add_permits(messages);
    }

    async fn pass(&self, ctx: &StageContext) {
        ctx.waiting(self.permits.acquire()).await.unwrap().forget();
        self.passed.fetch_add(1, Ordering::SeqCst);
    }
}

/// The factory of a stage that handles one message each time the gate is opened.
fn gated(gate: &Gate) -> impl Fn(StageContext) -> Act<GatedFn> + Send + 'static {
    let gate = gate.clone();
    let act: GatedFn = Box::new(move |ctx, item| {
        let gate = gate.clone();
        Box::pin(async move {
            gate.pass(&ctx).await;
            item.answer();
            Ok(())
        })
    });
    let act = Arc::new(act);
    move |ctx| {
        let act = act.clone();
        Act { ctx, act: Box::new(move |ctx, item| act(ctx, item)) }
    }
}

type GatedFn =
    Box<dyn Fn(StageContext, Item) -> std::pin::Pin<Box<dyn Future<Output = Result<(), Exit>>>> + Send + Sync>;

const SUPERVISION: Supervision = Supervision { stall_ms: 60_000, restarts_max: 0, restart_window_ms: 60_000 };

/// The exit that a stage requests. For tests with the real clock: they fail instead of waiting for ever.
async fn exit_of(topology: &Topology) -> Exit {
    tokio::time::timeout(Duration::from_secs(120), topology.exited()).await.expect("an exit in time")
}

/// Runs `test` inside a system of its own.
fn run<T>(test: impl Future<Output = T>) -> T {
    actix_rt::System::new().block_on(test)
}

/// Runs `test` inside a system whose clock jumps ahead when all tasks are idle.
fn run_paused<T>(test: impl Future<Output = T>) -> T {
    let paused = || tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    actix_rt::System::with_tokio_rt(paused).block_on(test)
}

fn topology(supervision: Supervision) -> (Topology, DrainControl) {
    let control = DrainControl::default();
    (Topology::new("test", supervision, control.watch()), control)
}

/// A stage on the system's own thread.
fn here(name: &str, messages_max: usize, bytes_max: usize) -> StageSpec {
    let bound = Bound { messages_max, bytes_max };
    StageSpec { name: name.to_owned(), arbiter: SYSTEM_ARBITER.to_owned(), bound, tick_ms: None }
}

/// A stage on a thread of its own.
fn apart(name: &str, messages_max: usize, bytes_max: usize) -> StageSpec {
    StageSpec { arbiter: name.to_owned(), ..here(name, messages_max, bytes_max) }
}

fn ticking(spec: StageSpec, tick_ms: u64) -> StageSpec {
    StageSpec { tick_ms: Some(tick_ms), ..spec }
}

fn observation(topology: &Topology, name: &str) -> Observation {
    let all = topology.observer().observe();
    all.into_iter().find(|seen| seen.name == name).unwrap()
}

/// Polls until `is_true`; fails after two minutes of real time.
async fn eventually(what: &str, mut is_true: impl FnMut() -> bool) {
    let began = std::time::Instant::now();
    while !is_true() {
        assert!(began.elapsed() < Duration::from_secs(120), "did not happen within two minutes: {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Sends a message and waits for the reply; `None` if the message was dropped.
async fn ask(mailbox: &Mailbox<Item>, id: u64) -> Option<u64> {
    let (item, answer) = Item::with_reply(id);
    mailbox.external().send(item).await.unwrap();
    answer.await.ok()
}
