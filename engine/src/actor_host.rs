//! The only actix actor: it hosts any [`Stage`] and calls it in order, one message at a time.
//!
//! - For each message the stage is moved into a future. Unless the future completes at its first poll, the context
//!   waits for it (`ctx.wait`), so no other message reaches the actor until the handler has completed. Of actix's ways
//!   to run a future only this one keeps the order.
//! - actix polls timers only when the mailbox is empty. So each turn checks the clock after its message, and the
//!   actor's own timer covers idle periods.
//! - actix processes messages until the mailbox is empty, so a busy actor would monopolize its thread. A turn therefore
//!   yields after [`SLICE_TURNS`] messages or [`SLICE`] of time.
//! - The stage is built in `started`, where the supervisor catches a panic, both initially and after each restart.

use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll, Waker};
use std::time::Duration;

use actix::dev::SendError;
use actix::dev::channel::AddressSender;
use actix::{Actor, ActorContext, ActorFuture, ActorState, AsyncContext, Context, Handler, Supervised};
use tokio::time::{Instant, Sleep};

use crate::exit::{Exit, Exits};
use crate::mailbox::{Envelope, Queue};
use crate::observe::StageState;
use crate::stage::{Stage, StageContext};

/// Number of messages after which an actor yields to the other actors on its thread.
const SLICE_TURNS: u32 = 64;
/// Time after which it yields.
const SLICE: Duration = Duration::from_millis(1);
/// Maximum age of the copy of a stage's counters under load.
const SNAPSHOT_AGE_MAX: Duration = Duration::from_millis(100);

/// Builds a stage, at start and after each panic or stall.
pub(crate) type Factory<S> = Box<dyn Fn(StageContext) -> S + Send>;

pub(crate) struct ActorHost<S: Stage> {
    factory: Factory<S>,
    context: StageContext,
    host: Rc<Host>,
    exits: Exits,
    schedule: Option<TickSchedule>,
    /// `None` while a turn runs, and before the factory has built the stage.
    stage: Option<Box<S>>,
    /// Whether the in-band drain has arrived. Survives a restart: otherwise the drain would be lost.
    draining: bool,
    snapshot_at: Instant,
}

/// The in-band drain: the last message of a mailbox.
pub(crate) struct Drain;

impl actix::Message for Drain {
    type Result = ();
}

impl<S: Stage> Queue<S::Message> for AddressSender<ActorHost<S>> {
    fn push(&self, envelope: Envelope<S::Message>) -> Result<(), Envelope<S::Message>> {
        #[expect(clippy::disallowed_methods, reason = "the only caller: the envelope holds a credit")]
        self.do_send(envelope).map_err(|error| match error {
            SendError::Full(envelope) | SendError::Closed(envelope) => envelope,
        })
    }

    fn push_drain(&self) -> bool {
        #[expect(clippy::disallowed_methods, reason = "once per actor, after the mailbox has closed")]
        self.do_send(Drain).is_ok()
    }
}

/// What a turn processes.
enum Work<M> {
    Message(Envelope<M>),
    Tick,
    Drain,
}

/// Result of a turn.
struct TurnOutcome<S> {
    stage: Box<S>,
    schedule: Option<TickSchedule>,
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
        let schedule = tick.map(|period| TickSchedule { period, next: now + period });
        Self { factory, context, host, exits, schedule, stage: None, draining: false, snapshot_at: now }
    }

    /// Starts a turn. Most turns complete at their first poll, and then actix has nothing to wait for.
    fn turn(&mut self, work: Work<S::Message>, ctx: &mut Context<Self>) {
        let stage = self.stage.take().expect("no message reaches the actor during a turn");
        let mut turn = Box::pin(run(stage, work, self.schedule, self.host.clone()));
        let poll = turn.as_mut().poll(&mut TaskContext::from_waker(&self.host.waker.borrow()));
        match poll {
            Poll::Ready(outcome) => self.finish_turn(outcome, ctx),
            Poll::Pending => ctx.wait(PendingTurn { turn, just_polled: true }),
        }
    }

    fn finish_turn(&mut self, outcome: TurnOutcome<S>, ctx: &mut Context<Self>) {
        self.snapshot(&outcome.stage, outcome.drained || outcome.result.is_err());
        self.stage = Some(outcome.stage);
        self.schedule = outcome.schedule;
        if let Err(exit) = outcome.result {
            self.exits.report(&self.context.name, exit);
            ctx.stop();
        } else if outcome.drained {
            self.host.stage_state.drained();
            ctx.stop();
        }
    }

    /// Copies the stage's counters. That allocates, so under load it is done only every [`SNAPSHOT_AGE_MAX`].
    fn snapshot(&mut self, stage: &S, last: bool) {
        let now = self.host.slice.now.get();
        if last
            || now.duration_since(self.snapshot_at) >= SNAPSHOT_AGE_MAX
            || self.host.stage_state.semaphore.is_probably_empty()
        {
            self.snapshot_at = now;
            self.host.stage_state.snapshot(stage.observe());
        }
    }
}

impl<S: Stage> Actor for ActorHost<S> {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        // actix also starts a context that is dropped before its first poll, only to stop it.
        if ctx.state() != ActorState::Running {
            return;
        }
        let stage = Box::new((self.factory)(self.context.clone()));
        self.host.stage_state.snapshot(stage.observe());
        self.stage = Some(stage);
        if let Some(schedule) = &mut self.schedule {
            schedule.next = Instant::now() + schedule.period;
            ctx.spawn(TickTimer(Box::pin(tokio::time::sleep_until(schedule.next))));
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

/// A turn that was pending at its first poll.
struct PendingTurn<T> {
    turn: Pin<Box<T>>,
    /// actix polls a future immediately when it starts to wait for it. The first poll had the same waker, so skipping
    /// that poll misses nothing, and a `yield_now` in the turn really yields.
    just_polled: bool,
}

impl<S: Stage, T: Future<Output = TurnOutcome<S>>> ActorFuture<ActorHost<S>> for PendingTurn<T> {
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
        self.turn.as_mut().poll(cx).map(|outcome| actor_host.finish_turn(outcome, ctx))
    }
}

/// One turn: yields if the slice is used up, processes the work, then a tick if one is due.
async fn run<S: Stage>(
    mut stage: Box<S>,
    work: Work<S::Message>,
    mut schedule: Option<TickSchedule>,
    host: Rc<Host>,
) -> TurnOutcome<S> {
    let Host { stage_state, slice, .. } = &*host;
    if slice.is_used_up() {
        tokio::task::yield_now().await;
    }
    let drained = matches!(work, Work::Drain);
    // The clock was read when the last turn ended or the actor's poll began: nothing ran in between.
    let began = stage_state.progress.begin(slice.now.get());
    let mut result = match work {
        Work::Message(Envelope { message, permit }) => {
            let result = stage.receive(message).await;
            // Before the credit is released: an observer that sees the free credit then sees the count.
            stage_state.handled.add(1);
            permit.release();
            result
        }
        Work::Tick => Ok(()), // handled below
        Work::Drain => stage.on_drain().await,
    };
    slice.read_clock();
    if result.is_ok()
        && !drained
        && let Some(schedule) = &mut schedule
        && schedule.is_due(slice.now.get())
    {
        schedule.next = slice.now.get() + schedule.period;
        stage_state.progress.beat();
        result = stage.on_tick().await;
        slice.read_clock();
    }
    stage_state.busy.add(stage_state.progress.end(began, slice.now.get()));
    TurnOutcome { stage, schedule, drained: drained && result.is_ok(), result }
}

/// State that an actor host and its supervisor share.
pub(crate) struct Host {
    pub(crate) stage_state: Arc<StageState>,
    slice: TimeSlice,
    /// The waker of the current poll: actix does not pass it to handlers.
    waker: RefCell<Waker>,
}

impl Host {
    pub(crate) fn new(stage_state: Arc<StageState>) -> Rc<Self> {
        Rc::new(Self { stage_state, slice: TimeSlice::new(), waker: RefCell::new(Waker::noop().clone()) })
    }

    /// Called at the start of each poll of the actor.
    pub(crate) fn begin_poll(&self, cx: &TaskContext<'_>) {
        self.slice.begin();
        self.waker.borrow_mut().clone_from(cx.waker());
    }
}

/// When the next tick is due. A late tick delays the following ones: ticks never come in bursts.
#[derive(Clone, Copy)]
struct TickSchedule {
    period: Duration,
    next: Instant,
}

impl TickSchedule {
    fn is_due(&self, now: Instant) -> bool {
        now >= self.next
    }
}

/// How long the actor has had its thread, and the last reading of the clock: reading it costs more than handling a
/// small message.
struct TimeSlice {
    began: Cell<Instant>,
    now: Cell<Instant>,
    turns: Cell<u32>,
}

impl TimeSlice {
    fn new() -> Self {
        let now = Instant::now();
        Self { began: Cell::new(now), now: Cell::new(now), turns: Cell::new(0) }
    }

    fn begin(&self) {
        self.read_clock();
        self.began.set(self.now.get());
        self.turns.set(0);
    }

    fn read_clock(&self) {
        self.now.set(Instant::now());
    }

    fn is_used_up(&self) -> bool {
        self.turns.set(self.turns.get() + 1);
        self.turns.get() > SLICE_TURNS || self.now.get().duration_since(self.began.get()) >= SLICE
    }
}

/// Ticks while the mailbox is empty; actix does not poll it while a turn runs.
struct TickTimer(Pin<Box<Sleep>>);

impl<S: Stage> ActorFuture<ActorHost<S>> for TickTimer {
    type Output = ();

    fn poll(
        mut self: Pin<&mut Self>,
        actor_host: &mut ActorHost<S>,
        ctx: &mut Context<ActorHost<S>>,
        cx: &mut TaskContext<'_>,
    ) -> Poll<()> {
        while self.0.as_mut().poll(cx).is_ready() {
            let Some(schedule) = actor_host.schedule else { return Poll::Ready(()) };
            let now = Instant::now();
            let due = schedule.is_due(now);
            // If the stage is absent a turn is about to run, which checks the clock itself.
            if due && actor_host.stage.is_some() {
                actor_host.turn(Work::Tick, ctx);
            }
            self.0.as_mut().reset(if due { now + schedule.period } else { schedule.next });
        }
        Poll::Pending
    }
}
