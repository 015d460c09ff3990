//! Live tail: durable records as they come, to whoever listens.
//!
//! - It reads the journal, as a flusher does that has fallen behind. So it delays nobody, sees only what is durable, a stream
//!   that was cut goes on where it was as long as the journal keeps it, also after SIGKILL, and as long as nobody listens
//!   nothing is done at all. A copy of the batches, as the cache-writer gets it, was refused: it can be lost on the way, and
//!   would need a second road for what came before.
//! - Frames are read and decoded once for all, into a [`ring`] of so many bytes. Who falls behind it is told exactly how many
//!   records went past unseen, and goes on with the newest.
//! - Everything runs on one thread of its own: however many listen to whatever, intake keeps its cores but one.
//! - It ends with the journal's seal: what is accepted on the way down is seen, too.

pub mod ring;
mod event;
mod client;

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use logweir_engine::codec::PAYLOAD_BYTES_MAX;
use logweir_engine::drain::{DrainWatch, Phase};
use logweir_engine::journal::Journal;
use logweir_engine::record::Record;
use tokio::runtime::{Builder, Handle};
use tokio::sync::{Notify, Semaphore, mpsc, watch};
use tokio::time::{Duration, timeout};
use uuid::Uuid;

use crate::config;
use crate::follow::position::Home;
use crate::follow::{self, DurableFrame, Follower, Position};
use crate::gateway::tail::BETWEEN_TOKENS;
use crate::progress::Progress;
use ring::Ring;

/// What is read from the journal at once, unless one frame is larger.
const READ_BYTES: usize = 1 << 20;
/// Those who read the journal themselves at one time.
const CATCHING_UP_MAX: usize = 2;
/// What a client has on its way, in pieces of [`client::PIECE_BYTES`] and one record more.
const CLIENT_BYTES: usize = 1 << 20;
/// How long streams may take to end after the seal.
const LAST_PIECES: Duration = Duration::from_millis(400);

/// Says which records a client wants to see.
pub type Matches = Arc<dyn Fn(&Record<'_>) -> bool + Send + Sync>;

/// The most bytes that it holds.
#[must_use]
pub fn memory_bytes_max(config: &config::Tail) -> usize {
    if config.clients_max == 0 {
        return 0;
    }
    config.buffer_bytes.max(PAYLOAD_BYTES_MAX)
        + follow::memory_bytes_max(READ_BYTES)
        + CATCHING_UP_MAX * follow::memory_bytes_max(client::PIECE_BYTES)
        + config.clients_max * CLIENT_BYTES
}

/// Where clients come to. Cheap to clone.
#[derive(Clone)]
pub struct TailHub(Arc<Inner>);

struct Inner {
    journal: Journal,
    writer: Uuid,
    progress: Progress,
    drain: DrainWatch,
    config: config::Tail,
    state: Mutex<State>,
    /// There is more in the ring, or there will be no more: then it is true.
    moved: watch::Sender<bool>,
    /// Somebody has come, or the last one has gone.
    wake: Notify,
    catching_up: Semaphore,
    runtime: Handle,
}

struct State {
    ring: Ring,
    clients: usize,
    /// Counts the times that the ring was begun anew.
    era: u64,
}

/// Why somebody cannot listen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TailRejection {
    /// There are `tail.clients_max` already.
    TooMany,
    /// The process is on its way down.
    Draining,
    /// What was given as a token is none.
    BadToken,
}

impl TailHub {
    /// Follows `journal`, whose identity is `writer`, on a thread of its own, until it is sealed.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn start(
        journal: Journal,
        writer: Uuid,
        progress: Progress,
        drain: DrainWatch,
        config: config::Tail,
    ) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_time().max_blocking_threads(1 + CATCHING_UP_MAX).build()?;
        let hub = Self(Arc::new(Inner {
            journal,
            writer,
            progress,
            drain,
            config,
            state: Mutex::new(State { ring: Ring::new(config.buffer_bytes), clients: 0, era: 0 }),
            moved: watch::Sender::new(false),
            wake: Notify::new(),
            catching_up: Semaphore::new(CATCHING_UP_MAX),
            runtime: runtime.handle().clone(),
        }));
        let pump = hub.clone();
        std::thread::Builder::new().name("tail".to_owned()).spawn(move || runtime.block_on(pump.run()))?;
        Ok(hub)
    }

    /// Begins a stream of server-sent events: records that `matches`, from now on, or from where `token` stands.
    ///
    /// # Errors
    /// Why not.
    pub fn subscribe(&self, matches: Matches, token: Option<&str>) -> Result<mpsc::Receiver<Bytes>, TailRejection> {
        let token = token.map(|token| self.own(token)).transpose()?;
        if self.0.drain.phase() >= Phase::Draining {
            return Err(TailRejection::Draining);
        }
        let (listening, live) = self.listen()?;
        let begin = match token {
            None => client::Begin::Live,
            // What a journal that was put back to an earlier time has is not what this token has seen.
            Some((home, at)) if home.is(self.0.writer) && at.seq <= live.seq => client::Begin::After(at),
            Some(_) => client::Begin::Elsewhere,
        };
        let (out, pieces) = mpsc::channel(1);
        self.0.runtime.spawn(client::Client::new(listening, matches, begin, live, out).run());
        Ok(pieces)
    }

    /// What a token stands for. A gateway's is one of each processor, joined: ours counts, if it is among them.
    fn own(&self, token: &str) -> Result<(Home, Position), TailRejection> {
        let tokens: Option<Vec<_>> = token.split(BETWEEN_TOKENS).map(Position::from_token).collect();
        let mut tokens = tokens.ok_or(TailRejection::BadToken)?;
        let ours = tokens.iter().position(|(home, _)| home.is(self.0.writer)).unwrap_or(0);
        Ok(tokens.swap_remove(ours))
    }

    /// Counts somebody who listens, and says where the live edge is.
    fn listen(&self) -> Result<(Listening, Position), TailRejection> {
        let mut state = self.state();
        if state.clients >= self.0.config.clients_max {
            return Err(TailRejection::TooMany);
        }
        if state.clients == 0 {
            let (seq, tails) = self.0.journal.durable_now();
            state.ring.reset(Position::of(seq, &tails));
            state.era += 1;
        }
        state.clients += 1;
        metrics::gauge!("logweir_tail_clients").set(state.clients as f64);
        self.0.wake.notify_one();
        Ok((Listening(self.clone()), state.ring.end().clone()))
    }

    /// The thread: feeds the ring while anybody listens.
    async fn run(self) {
        'journal: loop {
            while self.state().clients > 0 {
                if !self.feed().await {
                    break 'journal;
                }
            }
            tokio::select! {
                () = self.0.wake.notified() => {}
                // Who came in the last moment gets the last records.
                () = self.0.drain.reached(Phase::Done) => if self.state().clients == 0 { break },
            }
        }
        self.0.moved.send_replace(true);
        let _ = timeout(LAST_PIECES, self.nobody()).await;
    }

    /// Completes when nobody listens any more.
    async fn nobody(&self) {
        while self.state().clients > 0 {
            self.0.wake.notified().await;
        }
    }

    /// Reads what becomes durable. Says whether more can come: false at the journal's end, true when nobody listens.
    async fn feed(&self) -> bool {
        let (era, from) = {
            let state = self.state();
            (state.era, state.ring.end().seq)
        };
        let mut follower = Follower::new(self.0.journal.clone(), from, READ_BYTES);
        loop {
            let frames = follower.next().await;
            let at_end = frames.is_empty();
            if !self.push(era, frames) {
                return true;
            }
            if at_end {
                tokio::select! {
                    more = follower.more() => if more.is_err() { return false },
                    () = self.nobody() => {}
                }
            }
        }
    }

    /// Adds frames that were read in `era`. False when nobody waits for them.
    fn push(&self, era: u64, frames: Vec<DurableFrame>) -> bool {
        let mut state = self.state();
        if state.clients == 0 || state.era != era {
            return false;
        }
        if frames.is_empty() {
            return true;
        }
        for frame in frames {
            state.ring.push(frame);
        }
        metrics::gauge!("logweir_tail_buffer_bytes").set(state.ring.bytes() as f64);
        drop(state);
        self.0.moved.send_replace(false);
        true
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No step leaves it half changed.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Somebody listens as long as this lives.
struct Listening(TailHub);

impl Drop for Listening {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.clients -= 1;
        metrics::gauge!("logweir_tail_clients").set(state.clients as f64);
        if state.clients == 0 {
            // The memory is given back; `listen` begins anew.
            state.ring.reset(Position::default());
            metrics::gauge!("logweir_tail_buffer_bytes").set(0.0);
            self.0.0.wake.notify_one();
        }
    }
}
