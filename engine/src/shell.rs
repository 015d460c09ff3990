//! The one actix actor: it hosts any [`Stage`], in order, one message at a time.
//!
//! - For each message the stage is taken out and moved into a future that the context waits for, so
//!   nothing else reaches the actor until the handler has ended. Of actix's ways to answer with a future
//!   only this one keeps the order.
//! - actix polls timers only when the mailbox has run empty. So each turn looks at the clock after its
//!   message, and a timer of the actor's own covers idle times.
//! - actix goes on until the mailbox is empty, so a busy actor would keep its thread. A turn therefore
//!   gives way after [`SLICE_TURNS`] messages or [`SLICE`] of time.
//! - The stage is built in `started`, under the supervisor's eyes: at first and after each restart alike.

use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use actix::{
    Actor, ActorContext, ActorFuture, ActorFutureExt, ActorState, AsyncContext, Context, Handler, Supervised,
    WrapFuture,
};
use tokio::time::{Instant, Sleep};

use crate::mailbox::Envelope;
use crate::observe::Vitals;
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

pub(crate) struct Shell<S: Stage> {
    factory: Factory<S>,
    context: StageContext,
    vitals: Arc<Vitals>,
    exits: Exits,
    slice: Rc<Slice>,
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

impl<S: Stage> Shell<S> {
    pub(crate) fn new(
        factory: Factory<S>,
        context: StageContext,
        vitals: Arc<Vitals>,
        exits: Exits,
        slice: Rc<Slice>,
        tick: Option<Duration>,
    ) -> Self {
        let now = Instant::now();
        let pace = tick.map(|period| Pace { period, next: now + period });
        Self { factory, context, vitals, exits, slice, pace, stage: None, draining: false, snapshot_at: now }
    }

    fn turn(&mut self, work: Work<S::Message>, ctx: &mut Context<Self>) {
        let stage = self.stage.take().expect("nothing reaches the actor while its stage is out");
        let turn = run(stage, work, self.pace, self.vitals.clone(), self.slice.clone());
        ctx.wait(turn.into_actor(self).map(|turned, shell, ctx| shell.turned(turned, ctx)));
    }

    fn turned(&mut self, turned: Turned<S>, ctx: &mut Context<Self>) {
        self.snapshot(&turned.stage, turned.drained || turned.result.is_err());
        self.stage = Some(turned.stage);
        self.pace = turned.pace;
        if let Err(exit) = turned.result {
            self.exits.report(&self.context.name, exit);
            ctx.stop();
        } else if turned.drained {
            self.vitals.drained();
            ctx.stop();
        }
    }

    /// Copying the counters allocates, so under load it is done now and then only.
    fn snapshot(&mut self, stage: &S, last: bool) {
        let now = self.slice.now.get();
        if last || now.duration_since(self.snapshot_at) >= SNAPSHOT_AGE_MAX || self.vitals.room.taken().0 == 0 {
            self.snapshot_at = now;
            self.vitals.snapshot(stage.observe());
        }
    }
}

impl<S: Stage> Actor for Shell<S> {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        // A context that is dropped before its first poll is started all the same, only to be stopped.
        if ctx.state() != ActorState::Running {
            return;
        }
        let stage = Box::new((self.factory)(self.context.clone()));
        self.vitals.snapshot(stage.observe());
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

impl<S: Stage> Supervised for Shell<S> {
    fn restarting(&mut self, _: &mut Self::Context) {
        self.stage = None; // `started` builds the next one
    }
}

impl<S: Stage> Handler<Envelope<S::Message>> for Shell<S> {
    type Result = ();

    fn handle(&mut self, envelope: Envelope<S::Message>, ctx: &mut Self::Context) {
        self.turn(Work::Message(envelope), ctx);
    }
}

impl<S: Stage> Handler<Drain> for Shell<S> {
    type Result = ();

    fn handle(&mut self, _: Drain, ctx: &mut Self::Context) {
        self.draining = true;
        self.turn(Work::Drain, ctx);
    }
}

/// One turn: gives way if the slice is used up, does the work, then a tick if one is due.
async fn run<S: Stage>(
    mut stage: Box<S>,
    work: Work<S::Message>,
    mut pace: Option<Pace>,
    vitals: Arc<Vitals>,
    slice: Rc<Slice>,
) -> Turned<S> {
    if slice.is_used_up() {
        tokio::task::yield_now().await;
    }
    let drained = matches!(work, Work::Drain);
    let began = vitals.progress.begin();
    let mut result = match work {
        Work::Message(Envelope { message, permit }) => {
            let result = stage.receive(message).await;
            vitals.handled.add(1); // before the room is free: who sees the room sees the count
            permit.settle();
            result
        }
        Work::Tick => Ok(()), // due below
        Work::Drain => stage.on_drain().await,
    };
    let now = Instant::now();
    if result.is_ok()
        && let Some(pace) = &mut pace
        && pace.is_due(now)
        && !drained
    {
        vitals.progress.beat();
        pace.next = now + pace.period;
        result = stage.on_tick().await;
    }
    let now = vitals.progress.end(began, &vitals.busy);
    slice.now.set(now);
    Turned { stage, pace, drained: drained && result.is_ok(), result }
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

/// How long the actor has had its thread; shared with the supervisor, which sees each poll begin.
pub(crate) struct Slice {
    began: Cell<Instant>,
    now: Cell<Instant>,
    turns: Cell<u32>,
}

impl Slice {
    pub(crate) fn new() -> Rc<Self> {
        let now = Instant::now();
        Rc::new(Self { began: Cell::new(now), now: Cell::new(now), turns: Cell::new(0) })
    }

    /// The thread has come back to the actor.
    pub(crate) fn begin(&self) {
        let now = Instant::now();
        self.began.set(now);
        self.now.set(now);
        self.turns.set(0);
    }

    fn is_used_up(&self) -> bool {
        self.turns.set(self.turns.get() + 1);
        self.turns.get() > SLICE_TURNS || self.now.get().duration_since(self.began.get()) >= SLICE
    }
}

/// Ticks while the mailbox is empty; actix does not poll it while a turn runs.
struct Metronome(Pin<Box<Sleep>>);

impl<S: Stage> ActorFuture<Shell<S>> for Metronome {
    type Output = ();

    fn poll(
        mut self: Pin<&mut Self>,
        shell: &mut Shell<S>,
        ctx: &mut Context<Shell<S>>,
        cx: &mut TaskContext<'_>,
    ) -> Poll<()> {
        while self.0.as_mut().poll(cx).is_ready() {
            let Some(pace) = shell.pace else { return Poll::Ready(()) };
            let now = Instant::now();
            let due = pace.is_due(now);
            // With the stage out a turn is about to run, and it looks at the clock itself.
            if due && shell.stage.is_some() {
                shell.turn(Work::Tick, ctx);
            }
            self.0.as_mut().reset(if due { now + pace.period } else { pace.next });
        }
        Poll::Pending
    }
}
