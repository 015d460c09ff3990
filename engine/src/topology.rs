//! Builds a pipeline: spawn downstream first, drain upstream first.
//!
//! - A stage's factory holds the mailboxes it sends to, so downstream exists first and there is no cycle.
//! - Draining goes the other way, one stage at a time: when a stage is asked, everything that could
//!   send to it has ended, and what it hands on in `on_drain` finds the next one still open.
//! - Every arbiter is a thread of its own, made on first use. The system itself belongs to the
//!   embedding program (its web server lives there too): it is never stopped from here.

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
use crate::mailbox::{Bound, Mailbox};
pub use crate::observe::Observer;
use crate::observe::StageState;
use crate::stage::{Exit, Stage, StageContext};
pub use crate::supervisor::Supervision;
use crate::supervisor::{Exits, Lifetime, Supervisor, watch_over};

/// The arbiter of this name is the thread that made the topology; every other is a thread of its own.
/// The watchdog lives on that thread too: a stage that blocks it is not found.
pub const SYSTEM_ARBITER: &str = "system";

/// How long cancelled stages, and then the arbiters' threads, may take to end.
const END_WAIT_MAX: Duration = Duration::from_secs(1);

/// One stage of a topology.
#[derive(Clone, Debug)]
pub struct StageSpec {
    /// Unique name, e.g. `parser-0`.
    pub name: String,
    /// The arbiter (a thread with a runtime) it lives on, by name; made on first use.
    pub arbiter: String,
    /// The bound of its mailbox.
    pub bound: Bound,
    /// How often `on_tick` is called, in milliseconds; `None` for never.
    pub tick_ms: Option<u64>,
}

/// A pipeline under construction, then running. Lives on the system's main thread.
///
/// End it with [`Topology::drain`]. Dropping it instead cancels every stage and discards what is queued.
pub struct Topology {
    name: String,
    supervision: Supervision,
    drain: DrainWatch,
    exits: Exits,
    observer: Observer,
    watchdog: JoinHandle<()>,
    /// In the order in which they were spawned: downstream first.
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
    /// `name` is the value of the label `pipeline` on every `logweir_stage_*` and `logweir_mailbox_*` metric. Two topologies
    /// of one process need different names: otherwise stages of the same name add to the same time series.
    ///
    /// # Panics
    /// If `supervision.stall_ms` is 0.
    #[must_use]
    pub fn new(name: &str, supervision: Supervision, drain: DrainWatch) -> Self {
        assert!(supervision.stall_ms > 0, "topology {name}: stall_ms must be at least 1");
        let name = name.to_owned();
        let (exits, observer) = (Exits::new(), Observer::default());
        let watchdog = actix_rt::spawn(watch_over(observer.clone(), supervision, exits.clone()));
        Self { name, supervision, drain, exits, observer, watchdog, stages: Vec::new(), arbiters: Vec::new() }
    }

    /// Spawns a stage. Spawn downstream first: the stage's factory holds the mailboxes it sends to.
    /// The factory is called on the stage's arbiter, at start and after each panic or stall.
    ///
    /// # Panics
    /// When the name is taken, a bound is zero, or the arbiter's thread cannot be made: a topology
    /// that was wired wrongly does not start.
    pub fn spawn<S, F>(&mut self, spec: StageSpec, factory: F) -> Mailbox<S::Message>
    where
        S: Stage,
        F: Fn(StageContext) -> S + Send + 'static,
    {
        assert!(self.stages.iter().all(|stage| stage.stage_state.name != spec.name), "two stages named {}", spec.name);
        assert!(spec.tick_ms != Some(0), "stage {}: tick_ms must be at least 1", spec.name);
        let stage_state = StageState::new(&self.name, &spec.name, spec.bound);
        // The capacity is actix's own and bounds nothing here: the credits do.
        let (sender, receiver) = channel(0);
        let mailbox = Mailbox::new(&spec.name, stage_state.semaphore.clone(), Box::new(sender));
        let birth = Birth {
            factory: Box::new(factory) as Factory<S>,
            context: StageContext::new(spec.name, self.drain.clone(), stage_state.progress.clone()),
            stage_state: stage_state.clone(),
            exits: self.exits.clone(),
            lifetime: Lifetime::new(stage_state.clone()),
            supervision: self.supervision,
            tick: spec.tick_ms.map(Duration::from_millis),
            receiver,
        };
        self.arbiter(&spec.arbiter).spawn_fn(move || birth.spawn());
        self.observer.add(stage_state.clone());
        let drain = Box::new({
            let mailbox = mailbox.clone();
            move || mailbox.drain()
        });
        self.stages.push(Spawned { stage_state, drain });
        mailbox
    }

    /// The most bytes that all mailboxes can hold together. A message that is larger than its whole
    /// mailbox passes alone and counts as the mailbox: keep single messages below `bytes_max`.
    #[must_use]
    pub fn bytes_max(&self) -> usize {
        self.stages.iter().map(|stage| stage.stage_state.semaphore.bound().bytes_max).sum()
    }

    /// A handle by which any thread sees every actor.
    #[must_use]
    pub fn observer(&self) -> Observer {
        self.observer.clone()
    }

    /// Completes when a stage wants the process to end, has failed too often, or hangs for good.
    /// Borrows nothing, so that it can be awaited during [`Topology::drain`] too.
    pub fn exited(&self) -> impl Future<Output = Exit> + use<> {
        self.exits.wait()
    }

    /// Drains in order, upstream first: closes each mailbox, lets the stage handle what is queued,
    /// calls `on_drain`. Returns the names of stages that had not ended when
    /// [`DrainControl`](crate::drain::DrainControl) moved to `Persisting`, upstream first; those are cancelled.
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

    /// Cancels whatever has not ended, names it, and waits a moment for it to go.
    async fn cancel(&self) -> Vec<String> {
        let late: Vec<_> = self.stages.iter().rev().filter(|stage| !stage.stage_state.has_ended()).collect();
        for stage in &late {
            stage.stage_state.progress.cancel();
        }
        let gone = async {
            for stage in &late {
                stage.stage_state.ended().await;
            }
        };
        if timeout(END_WAIT_MAX, gone).await.is_err() {
            tracing::error!("a cancelled stage keeps its thread; going on without it");
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
            tokio::runtime::Builder::new_current_thread().enable_all().build().expect("the system grants a runtime")
        });
        let handle = arbiter.handle();
        self.arbiters.push((name.to_owned(), arbiter));
        handle
    }

    /// Stops the threads. One that does not end in time is left behind: the process is about to end.
    async fn stop_arbiters(&mut self) {
        let joins: Vec<_> = self.arbiters.drain(..).map(|(name, arbiter)| (name, join(arbiter))).collect();
        let deadline = sleep(END_WAIT_MAX);
        tokio::pin!(deadline);
        for (name, joined) in joins {
            tokio::select! {
                biased;
                _ = joined => {}
                () = &mut deadline => tracing::error!(arbiter = name, "a thread does not end; left behind"),
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

/// Joins on a thread of its own: tokio's blocking pool would hold up the end of the runtime for a
/// thread that never ends.
fn join(arbiter: Arbiter) -> oneshot::Receiver<()> {
    let (done, joined) = oneshot::channel();
    arbiter.stop();
    let joiner = std::thread::Builder::new().name("arbiter-join".to_owned()).spawn(move || {
        if arbiter.join().is_err() {
            tracing::error!("an arbiter's thread panicked");
        }
        let _ = done.send(()); // nobody waits any more
    });
    if let Err(error) = joiner {
        tracing::error!(%error, "no thread to join an arbiter with");
    }
    joined
}

/// Names the thread for `top -H` and the like, which show 15 bytes.
fn name_thread(name: &str) {
    let short: Vec<u8> = name.bytes().filter(|&byte| byte != 0).take(15).collect();
    let Ok(short) = std::ffi::CString::new(short) else { return };
    #[cfg(target_os = "linux")]
    // SAFETY: the calling thread names itself, with a terminated string that lives through the call.
    unsafe {
        libc::pthread_setname_np(libc::pthread_self(), short.as_ptr());
    }
    #[cfg(not(target_os = "linux"))]
    let _ = short;
}

/// What a stage's thread needs to bring the actor to life.
struct Birth<S: Stage> {
    factory: Factory<S>,
    context: StageContext,
    stage_state: Arc<StageState>,
    exits: Exits,
    lifetime: Lifetime,
    supervision: Supervision,
    tick: Option<Duration>,
    receiver: AddressReceiver<ActorHost<S>>,
}

impl<S: Stage> Birth<S> {
    fn spawn(self) {
        let host = Host::new(self.stage_state);
        let actor_host = ActorHost::new(self.factory, self.context, host.clone(), self.exits.clone(), self.tick);
        let actor = Context::with_receiver(self.receiver).into_future(actor_host);
        actix_rt::spawn(Supervisor::new(actor, self.lifetime, self.exits, self.supervision, host));
    }
}
