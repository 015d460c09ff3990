//! Builds and drains a pipeline: spawn downstream first, drain upstream first.
//!
//! - A stage's factory holds the mailboxes that the stage sends to. So downstream stages are spawned first, and there
//!   can be no cycle.
//! - Stages are drained one at a time, upstream first: when a stage is drained, all stages that send to it have
//!   stopped, and whatever it sends in `on_drain` finds the next stage still open.
//! - Every arbiter is a thread of its own, created on first use. The actix system belongs to the embedding program (its
//!   web server runs there too) and is never stopped from here.

use std::sync::Arc;
use std::time::Duration;

use actix::Context;
use actix::dev::channel::{AddressReceiver, channel};
use actix_rt::{Arbiter, ArbiterHandle};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use crate::actor_host::{ActorHost, Factory, Host};
use crate::drain::{DrainWatch, Phase};
use crate::exit::{Exit, Exits};
use crate::mailbox::{Bound, Mailbox};
pub use crate::observe::Observer;
use crate::observe::StageState;
use crate::stage::{Stage, StageContext};
pub use crate::supervisor::Supervision;
use crate::supervisor::{LifetimeGuard, Supervisor, run_watchdog};

/// Name of the arbiter that is the thread which created the topology; every other arbiter is a thread of its own. The
/// watchdog runs on this thread too, so it cannot detect a stage that blocks it.
pub const SYSTEM_ARBITER: &str = "system";

/// Time limit for canceled stages to stop, and then for the arbiters' threads to exit.
const END_WAIT_MAX: Duration = Duration::from_secs(1);

/// One stage of a topology.
#[derive(Clone, Debug)]
pub struct StageSpec {
    /// Unique name, e.g. `parser-0`.
    pub name: String,
    /// Name of the arbiter (a thread with a runtime) that the stage runs on; created on first use.
    pub arbiter: String,
    /// Bound of its mailbox.
    pub bound: Bound,
    /// Interval of `on_tick` in milliseconds; `None` for no ticks.
    pub tick_ms: Option<u64>,
}

/// A pipeline, first under construction, then running. Lives on the system's main thread.
///
/// Stop it with [`Topology::drain`]. Dropping it instead cancels every stage and discards queued messages.
pub struct Topology {
    name: String,
    supervision: Supervision,
    drain: DrainWatch,
    exits: Exits,
    observer: Observer,
    watchdog: JoinHandle<()>,
    /// In spawn order: downstream first.
    stages: Vec<Spawned>,
    arbiters: Vec<(String, Arbiter)>,
}

struct Spawned {
    stage_state: Arc<StageState>,
    /// Closes the mailbox and sends the in-band drain. Holds the mailbox, so the actor outlives its senders.
    drain: Box<dyn Fn()>,
}

impl Topology {
    /// Creates an empty topology. Must be called inside an actix system.
    ///
    /// `name` is the value of the label `pipeline` on every `logweir_stage_*` and `logweir_mailbox_*` metric. Two
    /// topologies of one process need different names: otherwise stages of the same name share their time series.
    ///
    /// # Panics
    /// If `supervision.stall_ms` is 0, or if there is no actix system on this thread.
    #[must_use]
    pub fn new(name: &str, supervision: Supervision, drain: DrainWatch) -> Self {
        assert!(supervision.stall_ms > 0, "topology {name}: stall_ms must be at least 1");
        let name = name.to_owned();
        let (exits, observer) = (Exits::new(), Observer::default());
        let watchdog = actix_rt::spawn(run_watchdog(observer.clone(), supervision, exits.clone()));
        Self { name, supervision, drain, exits, observer, watchdog, stages: Vec::new(), arbiters: Vec::new() }
    }

    /// Spawns a stage and returns its mailbox. Spawn downstream stages first: the stage's factory holds the mailboxes
    /// that the stage sends to. The factory is called on the stage's arbiter, at start and after each panic or stall.
    ///
    /// # Panics
    /// If the name is taken, a bound is zero, `tick_ms` is 0, or the arbiter's thread cannot be created.
    pub fn spawn<S, F>(&mut self, spec: StageSpec, factory: F) -> Mailbox<S::Message>
    where
        S: Stage,
        F: Fn(StageContext) -> S + Send + 'static,
    {
        assert!(self.stages.iter().all(|stage| stage.stage_state.name != spec.name), "two stages named {}", spec.name);
        assert!(spec.tick_ms != Some(0), "stage {}: tick_ms must be at least 1", spec.name);
        let stage_state = StageState::new(&self.name, &spec.name, spec.bound);
        // actix's own capacity does not bound the queue (see `mailbox`): the credits do.
        let (sender, receiver) = channel(0);
        let mailbox = Mailbox::new(&spec.name, stage_state.semaphore.clone(), Box::new(sender));
        let pending = PendingStage {
            factory: Box::new(factory) as Factory<S>,
            context: StageContext::new(spec.name, self.drain.clone(), stage_state.progress.clone()),
            stage_state: stage_state.clone(),
            exits: self.exits.clone(),
            lifetime: LifetimeGuard::new(stage_state.clone()),
            supervision: self.supervision,
            tick: spec.tick_ms.map(Duration::from_millis),
            receiver,
        };
        self.arbiter(&spec.arbiter).spawn_fn(move || pending.spawn());
        self.observer.add(stage_state.clone());
        let drain = Box::new({
            let mailbox = mailbox.clone();
            move || mailbox.drain()
        });
        self.stages.push(Spawned { stage_state, drain });
        mailbox
    }

    /// Upper limit for the bytes held by all mailboxes together. A message larger than its mailbox's `bytes_max` is
    /// admitted alone and counted as `bytes_max`, so keep single messages below it.
    #[must_use]
    pub fn bytes_max(&self) -> usize {
        self.stages.iter().map(|stage| stage.stage_state.semaphore.bound().bytes_max).sum()
    }

    /// Returns a handle that can observe every actor from any thread.
    #[must_use]
    pub fn observer(&self) -> Observer {
        self.observer.clone()
    }

    /// Completes when a stage returns an [`Exit`], has failed too often, or blocks its thread for good. Borrows
    /// nothing, so that it can also be awaited during [`Topology::drain`].
    pub fn exited(&self) -> impl Future<Output = Exit> + use<> {
        self.exits.wait()
    }

    /// Drains the stages in order, upstream first: closes each mailbox, lets the stage handle its queued messages,
    /// calls `on_drain`. Stages that have not stopped when [`DrainControl`](crate::drain::DrainControl) moves to
    /// `Persisting` are canceled; their names are returned, upstream first.
    pub async fn drain(&mut self) -> Vec<String> {
        let late = tokio::select! {
            biased;
            () = self.drain_in_order() => Vec::new(),
            () = self.drain.reached(Phase::Persisting) => self.cancel().await,
        };
        self.watchdog.abort();
        self.stop_arbiters().await;
        late
    }

    async fn drain_in_order(&self) {
        for stage in self.stages.iter().rev() {
            (stage.drain)();
            stage.stage_state.ended().await;
            tracing::debug!(stage = stage.stage_state.name, "stage ended");
        }
    }

    /// Cancels and returns the stages that have not stopped, after waiting up to [`END_WAIT_MAX`] for them to stop.
    async fn cancel(&self) -> Vec<String> {
        let late: Vec<_> = self.stages.iter().rev().filter(|stage| !stage.stage_state.has_ended()).collect();
        for stage in &late {
            stage.stage_state.progress.cancel();
        }
        let stopped = async {
            for stage in &late {
                stage.stage_state.ended().await;
            }
        };
        if timeout(END_WAIT_MAX, stopped).await.is_err() {
            tracing::error!("a canceled stage still blocks its thread; continuing without it");
        }
        late.iter().map(|stage| stage.stage_state.name.clone()).collect()
    }

    fn arbiter(&mut self, name: &str) -> ArbiterHandle {
        if name == SYSTEM_ARBITER {
            return Arbiter::current();
        }
        if let Some((_, arbiter)) = self.arbiters.iter().find(|(known, _)| known == name) {
            return arbiter.handle();
        }
        let thread = name.to_owned();
        let arbiter = Arbiter::with_tokio_rt(move || {
            name_thread(&thread);
            tokio::runtime::Builder::new_current_thread().enable_all().build().expect("the runtime can be created")
        });
        let handle = arbiter.handle();
        self.arbiters.push((name.to_owned(), arbiter));
        handle
    }

    /// Stops the threads. A thread that does not exit in time is abandoned: the process is about to exit.
    async fn stop_arbiters(&mut self) {
        let joins: Vec<_> = self.arbiters.drain(..).map(|(name, arbiter)| (name, join(arbiter))).collect();
        let deadline = sleep(END_WAIT_MAX);
        tokio::pin!(deadline);
        for (name, joined) in joins {
            tokio::select! {
                biased;
                _ = joined => {}
                () = &mut deadline => tracing::error!(arbiter = name, "a thread does not exit; continuing without it"),
            }
        }
    }
}

impl Drop for Topology {
    fn drop(&mut self) {
        self.watchdog.abort();
        for stage in &self.stages {
            stage.stage_state.progress.cancel();
        }
        for (_, arbiter) in &self.arbiters {
            arbiter.stop();
        }
    }
}

/// Joins on a separate thread: tokio's blocking pool would delay the shutdown of the runtime for a thread that never
/// exits.
fn join(arbiter: Arbiter) -> oneshot::Receiver<()> {
    let (done, joined) = oneshot::channel();
    arbiter.stop();
    let joiner = std::thread::Builder::new().name("arbiter-join".to_owned()).spawn(move || {
        if arbiter.join().is_err() {
            tracing::error!("an arbiter's thread panicked");
        }
        let _ = done.send(()); // the receiver may have given up
    });
    if let Err(error) = joiner {
        tracing::error!(%error, "cannot spawn a thread to join an arbiter");
    }
    joined
}

/// Names the thread for `top -H` and similar tools, which show 15 bytes.
fn name_thread(name: &str) {
    let short: Vec<u8> = name.bytes().filter(|&byte| byte != 0).take(15).collect();
    let Ok(short) = std::ffi::CString::new(short) else { return };
    let _ = rustix::thread::set_name(&short); // the name is only for people
}

/// What the arbiter's thread needs to build and run the actor.
struct PendingStage<S: Stage> {
    factory: Factory<S>,
    context: StageContext,
    stage_state: Arc<StageState>,
    exits: Exits,
    lifetime: LifetimeGuard,
    supervision: Supervision,
    tick: Option<Duration>,
    receiver: AddressReceiver<ActorHost<S>>,
}

impl<S: Stage> PendingStage<S> {
    fn spawn(self) {
        let host = Host::new(self.stage_state);
        let actor_host = ActorHost::new(self.factory, self.context, host.clone(), self.exits.clone(), self.tick);
        let actor = Context::with_receiver(self.receiver).into_future(actor_host);
        actix_rt::spawn(Supervisor::new(actor, self.lifetime, self.exits, self.supervision, host));
    }
}
