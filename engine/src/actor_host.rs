//! The one actix actor: it hosts any [`Stage`], in order, one message at a time.
//!
//! - For each message the stage is taken out and moved into a future. Unless that ends at its first poll,
//!   the context waits for it, so nothing else reaches the actor until the handler has ended. Of actix's
//!   ways to answer with a future only this one keeps the order.
//! - actix polls timers only when the mailbox has run empty. So each turn looks at the clock after its
//!   message, and a timer of the actor's own covers idle times.
//! - actix goes on until the mailbox is empty, so a busy actor would keep its thread. A turn therefore
//!   gives way after [`SLICE_TURNS`] messages or [`SLICE`] of time.
//! - The stage is built in `started`, under the supervisor's eyes: at first and after each restart alike.

use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll, Waker};
use std::time::Duration;

use actix::{Actor, ActorContext, ActorFuture, ActorState, AsyncContext, Context, Handler, Supervised};
use tokio::time::{Instant, Sleep};

use crate::mailbox::Envelope;
use crate::observe::StageState;
use crate::stage::{Exit, Stage, StageContext};
use crate::supervisor::Exits;

/// Messages after which an actor gives way to its neighbours on the thread.
const SLICE_TURNS: u32 = 64;
/// Time after which it gives way.
const SLICE: Duration = Duration::from_millis(1);
/// How old the copy of a stage's counters may become under load.
const SNAPSHOT_AGE_MAX: Duration = Duration::from_millis(100);

/// Builds a stage, at start and after each panic or stall.
pub(crate) type Factory<S> = Box<dyn Fn(StageContext) -> S + Send>;

pub(crate) struct ActorHost<S: Stage> {
    factory: Factory<S>,
    context: StageContext,
    host: Rc<Host>,
    exits: Exits,
    pace: Option<Pace>,
    /// Absent while a turn runs, and before the factory has made it.
    stage: Option<Box<S>>,
    /// The in-band drain has come: it outlives a restart, or the drain would be lost with it.
    draining: bool,
    snapshot_at: Instant,
}

/// Follows the last message through the mailbox.
pub(crate) struct Drain;

impl actix::Message for Drain {
    type Result = ();
}

/// What a turn is about.
enum Work<M> {
    Message(Envelope<M>),
    Tick,
    Drain,
}

/// What comes back from a turn.
struct Turned<S> {
    stage: Box<S>,
    pace: Option<Pace>,
    result: Result<(), Exit>,
    drained: bool,
}

impl<S: Stage> ActorHost<S> {
    pub(crate) fn new(
        factory: Factory<S>,
        context: StageContext,
        host: Rc<Host>,
        exits: Exits,
        tick: Option<Duration>,
    ) -> Self {
        let now = Instant::now();
        let pace = tick.map(|period| Pace { period, next: now + period });
        Self { factory, context, host, exits, pace, stage: None, draining: false, snapshot_at: now }
    }

    /// Starts a turn. Most end at their first poll, and then actix need not wait for anything.
    fn turn(&mut self, work: Work<S::Message>, ctx: &mut Context<Self>) {
        let stage = self.stage.take().expect("nothing reaches the actor while its stage is out");
        let mut turn = Box::pin(run(stage, work, self.pace, self.host.clone()));
        let poll = turn.as_mut().poll(&mut TaskContext::from_waker(&self.host.waker.borrow()));
        match poll {
            Poll::Ready(turned) => self.turned(turned, ctx),
            Poll::Pending => ctx.wait(Rest { turn, just_polled: true }),
        }
    }

    fn turned(&mut self, turned: Turned<S>, ctx: &mut Context<Self>) {
        self.snapshot(&turned.stage, turned.drained || turned.result.is_err());
        self.stage = Some(turned.stage);
        self.pace = turned.pace;
        if let Err(exit) = turned.result {
            self.exits.report(&self.context.name, exit);
            ctx.stop();
        } else if turned.drained {
            self.host.stage_state.drained();
            ctx.stop();
        }
    }

    /// Copying the counters allocates, so under load it is done now and then only.
    fn snapshot(&mut self, stage: &S, last: bool) {
        let now = self.host.slice.now.get();
        if last
            || now.duration_since(self.snapshot_at) >= SNAPSHOT_AGE_MAX
            || self.host.stage_state.semaphore.looks_empty()
        {
            self.snapshot_at = now;
            self.host.stage_state.snapshot(stage.observe());
        }
    }
}

impl<S: Stage> Actor for ActorHost<S> {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        // A context that is dropped before its first poll is started all the same, only to be stopped.
        if ctx.state() != ActorState::Running {
            return;
        }
        let stage = Box::new((self.factory)(self.context.clone()));
        self.host.stage_state.snapshot(stage.observe());
        self.stage = Some(stage);
        if let Some(pace) = &mut self.pace {
            pace.next = Instant::now() + pace.period;
            ctx.spawn(Metronome(Box::pin(tokio::time::sleep_until(pace.next))));
        }
        if self.draining {
            self.turn(Work::Drain, ctx);
        }
    }
}

impl<S: Stage> Supervised for ActorHost<S> {
    fn restarting(&mut self, _: &mut Self::Context) {
        self.stage = None; // `started` builds the next one
    }
}

impl<S: Stage> Handler<Envelope<S::Message>> for ActorHost<S> {
    type Result = ();

    fn handle(&mut self, envelope: Envelope<S::Message>, ctx: &mut Self::Context) {
        self.turn(Work::Message(envelope), ctx);
    }
}

impl<S: Stage> Handler<Drain> for ActorHost<S> {
    type Result = ();

    fn handle(&mut self, _: Drain, ctx: &mut Self::Context) {
        self.draining = true;
        self.turn(Work::Drain, ctx);
    }
}

/// What is left of a turn after its first poll.
struct Rest<T> {
    turn: Pin<Box<T>>,
    /// actix polls at once what it is to wait for. The first poll had the same waker, so nothing is
    /// missed by leaving that one out, and a `yield_now` in the turn really yields.
    just_polled: bool,
}

impl<S: Stage, T: Future<Output = Turned<S>>> ActorFuture<ActorHost<S>> for Rest<T> {
    type Output = ();

    fn poll(
        mut self: Pin<&mut Self>,
        actor_host: &mut ActorHost<S>,
        ctx: &mut Context<ActorHost<S>>,
        cx: &mut TaskContext<'_>,
    ) -> Poll<()> {
        if std::mem::take(&mut self.just_polled) {
            return Poll::Pending;
        }
        self.turn.as_mut().poll(cx).map(|turned| actor_host.turned(turned, ctx))
    }
}

/// One turn: gives way if the slice is used up, does the work, then a tick if one is due.
async fn run<S: Stage>(mut stage: Box<S>, work: Work<S::Message>, mut pace: Option<Pace>, host: Rc<Host>) -> Turned<S> {
    let Host { stage_state, slice, .. } = &*host;
    if slice.is_used_up() {
        tokio::task::yield_now().await;
    }
    let drained = matches!(work, Work::Drain);
    // The clock was read when the last turn ended or the actor's poll began: nothing lies in between.
    let began = stage_state.progress.begin(slice.now.get());
    let mut result = match work {
        Work::Message(Envelope { message, permit }) => {
            let result = stage.receive(message).await;
            stage_state.handled.add(1); // before the room is free: who sees the room sees the count
            permit.release();
            result
        }
        Work::Tick => Ok(()), // due below
        Work::Drain => stage.on_drain().await,
    };
    slice.look();
    if result.is_ok()
        && !drained
        && let Some(pace) = &mut pace
        && pace.is_due(slice.now.get())
    {
        pace.next = slice.now.get() + pace.period;
        stage_state.progress.beat();
        result = stage.on_tick().await;
        slice.look();
    }
    stage_state.busy.add(stage_state.progress.end(began, slice.now.get()));
    Turned { stage, pace, drained: drained && result.is_ok(), result }
}

/// What a shell and its supervisor share.
pub(crate) struct Host {
    pub(crate) stage_state: Arc<StageState>,
    slice: Slice,
    /// The waker of the poll that is under way: actix gives a handler none.
    waker: RefCell<Waker>,
}

impl Host {
    pub(crate) fn new(stage_state: Arc<StageState>) -> Rc<Self> {
        Rc::new(Self { stage_state, slice: Slice::new(), waker: RefCell::new(Waker::noop().clone()) })
    }

    /// The thread has come back to the actor.
    pub(crate) fn begin_poll(&self, cx: &TaskContext<'_>) {
        self.slice.begin();
        self.waker.borrow_mut().clone_from(cx.waker());
    }
}

/// When the next tick is due. A late tick delays those after it: ticks never come in bursts.
#[derive(Clone, Copy)]
struct Pace {
    period: Duration,
    next: Instant,
}

impl Pace {
    fn is_due(&self, now: Instant) -> bool {
        now >= self.next
    }
}

/// How long the actor has had its thread, and the clock as it was last read: reading it costs more than
/// a small message does.
struct Slice {
    began: Cell<Instant>,
    now: Cell<Instant>,
    turns: Cell<u32>,
}

impl Slice {
    fn new() -> Self {
        let now = Instant::now();
        Self { began: Cell::new(now), now: Cell::new(now), turns: Cell::new(0) }
    }

    fn begin(&self) {
        self.look();
        self.began.set(self.now.get());
        self.turns.set(0);
    }

    fn look(&self) {
        self.now.set(Instant::now());
    }

    fn is_used_up(&self) -> bool {
        self.turns.set(self.turns.get() + 1);
        self.turns.get() > SLICE_TURNS || self.now.get().duration_since(self.began.get()) >= SLICE
    }
}

/// Ticks while the mailbox is empty; actix does not poll it while a turn runs.
struct Metronome(Pin<Box<Sleep>>);

impl<S: Stage> ActorFuture<ActorHost<S>> for Metronome {
    type Output = ();

    fn poll(
        mut self: Pin<&mut Self>,
        actor_host: &mut ActorHost<S>,
        ctx: &mut Context<ActorHost<S>>,
        cx: &mut TaskContext<'_>,
    ) -> Poll<()> {
        while self.0.as_mut().poll(cx).is_ready() {
            let Some(pace) = actor_host.pace else { return Poll::Ready(()) };
            let now = Instant::now();
            let due = pace.is_due(now);
            // With the stage out a turn is about to run, and it looks at the clock itself.
            if due && actor_host.stage.is_some() {
                actor_host.turn(Work::Tick, ctx);
            }
            self.0.as_mut().reset(if due { now + pace.period } else { pace.next });
        }
        Poll::Pending
    }
}
