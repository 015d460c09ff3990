//! The hub: the thread that reads the journal while there are clients, and the streams that they subscribe to.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_util::Stream;
use logweir_engine::drain::{DrainWatch, Phase};
use logweir_engine::journal::Journal;
use logweir_record::codec::PAYLOAD_BYTES_MAX;
use tokio::runtime::Builder;
use tokio::sync::{Notify, Semaphore, mpsc, watch};
use tokio::time::{Duration, timeout};
use uuid::Uuid;

use super::client::{Client, Matches, PIECE_BYTES, Start};
use super::output::{Events, Output, Sse, TailEvent};
use super::ring::Ring;
use super::shared::{CATCHING_UP_MAX, Shared, State, TailRejection};
use crate::config;
use crate::follow::position::JournalTag;
use crate::follow::{self, DurableFrame, Follower, Position, TOKEN_SEPARATOR};
use crate::progress::Progress;

/// How long streams may take to end after the seal.
const END_TIMEOUT: Duration = Duration::from_millis(400);

/// Bytes read from the journal at once, unless a single frame is larger.
const READ_BYTES: usize = 1 << 20;
/// Bytes in flight per client: pieces of [`PIECE_BYTES`] and one more record.
const CLIENT_BYTES: usize = 1 << 20;
/// Upper bound of the memory used by live tails, in bytes.
#[must_use]
pub fn memory_bytes_max(config: &config::Tail) -> usize {
    if config.clients_max == 0 {
        return 0;
    }
    config.buffer_bytes.max(PAYLOAD_BYTES_MAX)
        + follow::memory_bytes_max(READ_BYTES)
        + CATCHING_UP_MAX * follow::memory_bytes_max(PIECE_BYTES)
        + config.clients_max * CLIENT_BYTES
}

/// The live tail that clients subscribe to. Cheap to clone.
#[derive(Clone)]
pub struct TailHub(Arc<Shared>);

/// A subscription to the live tail: a stream of [`TailEvent`]s. Dropping it ends the subscription.
///
/// It ends by itself when the journal is sealed, or when no event is taken for 30 s.
#[derive(Debug)]
pub struct TailStream {
    pieces: mpsc::Receiver<Vec<TailEvent>>,
    events: std::vec::IntoIter<TailEvent>,
}

impl TailStream {
    /// Waits for the next event; `None` when the stream has ended. Cancel-safe.
    pub async fn next(&mut self) -> Option<TailEvent> {
        loop {
            if let Some(event) = self.events.next() {
                return Some(event);
            }
            self.events = self.pieces.recv().await?.into_iter();
        }
    }
}

impl Stream for TailStream {
    type Item = TailEvent;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<TailEvent>> {
        loop {
            if let Some(event) = self.events.next() {
                return Poll::Ready(Some(event));
            }
            match ready!(self.pieces.poll_recv(context)) {
                Some(piece) => self.events = piece.into_iter(),
                None => return Poll::Ready(None),
            }
        }
    }
}

impl TailHub {
    /// Follows `journal`, whose identity is `writer`, on a dedicated thread until it is sealed.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn start(
        journal: Journal,
        writer: Uuid,
        progress: Progress,
        drain: DrainWatch,
        config: config::Tail,
    ) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_time().max_blocking_threads(1 + CATCHING_UP_MAX).build()?;
        let hub = Self(Arc::new(Shared {
            journal,
            writer,
            progress,
            drain,
            config,
            state: Mutex::new(State { ring: Ring::new(config.buffer_bytes), clients: 0, era: 0 }),
            advanced: watch::Sender::new(false),
            wake: Notify::new(),
            catching_up: Semaphore::new(CATCHING_UP_MAX),
            runtime: runtime.handle().clone(),
        }));
        let pump = hub.clone();
        std::thread::Builder::new().name("tail".to_owned()).spawn(move || runtime.block_on(pump.run()))?;
        Ok(hub)
    }

    /// Streams the records that `matches` selects, from now on or after the position of the resume token `token`.
    ///
    /// The token comes from an earlier stream: [`TailEvent::Position`] or [`TailEvent::Record`].
    ///
    /// # Errors
    /// The subscription is rejected: too many streams, shutdown, or an invalid token.
    pub fn subscribe(&self, matches: Matches, token: Option<&str>) -> Result<TailStream, TailRejection> {
        let pieces = self.open::<Events>(matches, token)?;
        Ok(TailStream { pieces, events: Vec::new().into_iter() })
    }

    /// As [`TailHub::subscribe`], rendered as server-sent events. One item holds any number of whole events.
    ///
    /// # Errors
    /// See [`TailHub::subscribe`].
    pub fn subscribe_sse(&self, matches: Matches, token: Option<&str>) -> Result<mpsc::Receiver<Bytes>, TailRejection> {
        self.open::<Sse>(matches, token)
    }

    fn open<O: Output>(
        &self,
        matches: Matches,
        token: Option<&str>,
    ) -> Result<mpsc::Receiver<O::Piece>, TailRejection> {
        let token = token.map(|token| self.own(token)).transpose()?;
        if self.0.drain.phase() >= Phase::Draining {
            return Err(TailRejection::Draining);
        }
        let (registration, live) = self.0.register()?;
        let start = match token {
            None => Start::Live,
            // A token ahead of the live edge was issued before the journal was restored to an earlier state: the
            // records at these numbers are not the ones that the client has seen.
            Some((tag, at)) if tag.is(self.0.writer) && at.seq <= live.seq => Start::After(at),
            Some(_) => Start::OtherJournal,
        };
        let (out, pieces) = mpsc::channel(1);
        self.0.runtime.spawn(Client::<O>::new(registration, matches, start, live, out).run());
        Ok(pieces)
    }

    /// Parses a resume token. A gateway's token joins one of each processor: this journal's is used if it is among
    /// them.
    fn own(&self, token: &str) -> Result<(JournalTag, Position), TailRejection> {
        let tokens: Option<Vec<_>> = token.split(TOKEN_SEPARATOR).map(Position::from_token).collect();
        let mut tokens = tokens.ok_or(TailRejection::BadToken)?;
        let ours = tokens.iter().position(|(tag, _)| tag.is(self.0.writer)).unwrap_or(0);
        Ok(tokens.swap_remove(ours))
    }

    /// Body of the thread: feeds the ring while there are clients.
    async fn run(self) {
        'journal: loop {
            while self.0.state().clients > 0 {
                if !self.feed().await {
                    break 'journal;
                }
            }
            tokio::select! {
                () = self.0.wake.notified() => {}
                // A client that subscribed at the last moment still gets the last records.
                () = self.0.drain.reached(Phase::Done) => if self.0.state().clients == 0 { break },
            }
        }
        self.0.advanced.send_replace(true);
        let _ = timeout(END_TIMEOUT, self.idle()).await;
    }

    /// Completes when there are no clients.
    async fn idle(&self) {
        while self.0.state().clients > 0 {
            self.0.wake.notified().await;
        }
    }

    /// Reads frames as they become durable. Returns false at the end of the journal, true when no client is left.
    async fn feed(&self) -> bool {
        let (era, from) = {
            let state = self.0.state();
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
                    () = self.idle() => {}
                }
            }
        }
    }

    /// Adds frames that were read in `era`. Returns false when no client waits for them.
    fn push(&self, era: u64, frames: Vec<DurableFrame>) -> bool {
        let mut state = self.0.state();
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
        self.0.advanced.send_replace(false);
        true
    }
}

#[cfg(test)]
mod tests {
    use logweir_engine::drain::DrainControl;
    use logweir_engine::journal::{JournalConfig, OnDurable};
    use logweir_record::chunk::Chunk;
    use logweir_record::codec;
    use logweir_record::record::{Record, Severity};
    use tempfile::TempDir;

    use super::*;
    use crate::tail::output::{GapReason, TailRecord};

    struct Fixture {
        _dir: TempDir,
        journal: Journal,
        _drain: DrainControl,
        hub: TailHub,
    }

    impl Fixture {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let (journal, recovered) = Journal::open(JournalConfig {
                segment_bytes: 17 << 20,
                quota_bytes: 1 << 30,
                queue_bytes_max: 16 << 20,
                ..JournalConfig::new(dir.path())
            })
            .unwrap();
            let drain = DrainControl::default();
            let config = config::Tail { clients_max: 2, buffer_bytes: 1 << 20, records_per_s: 10 };
            let hub =
                TailHub::start(journal.clone(), recovered.writer, Progress::default(), drain.watch(), config).unwrap();
            Self { _dir: dir, journal, _drain: drain, hub }
        }

        async fn append(&self, messages: &[String]) {
            let mut chunk = Chunk::default();
            for message in messages {
                let (severity, attributes) = (Severity::WARN, r#"{"a":1}"#);
                chunk.push(Record { ts_us: 7, severity, service: "shop", host: "h", message, attributes });
            }
            let (codec, payload) = codec::encode(&chunk).unwrap();
            let credit = self.journal.reserve(payload.len()).await.unwrap();
            let records = u32::try_from(messages.len()).unwrap();
            let appended = self.journal.append(credit, 0, codec, records, payload, OnDurable::send().0).unwrap();
            self.journal.durable(appended.seq).await.unwrap();
        }

        fn subscribe(&self, token: Option<&str>) -> TailStream {
            self.hub.subscribe(Arc::new(|record| record.message.starts_with('m')), token).unwrap()
        }
    }

    fn messages(range: std::ops::Range<u32>) -> Vec<String> {
        range.map(|n| format!("m{n}")).collect()
    }

    async fn next(stream: &mut TailStream) -> TailEvent {
        timeout(Duration::from_secs(120), stream.next()).await.expect("an event in time").expect("no end of stream")
    }

    fn record(event: TailEvent) -> TailRecord {
        let TailEvent::Record(record) = event else { panic!("expected a record, got {event:?}") };
        record
    }

    #[tokio::test]
    async fn a_subscription_yields_records_and_resumes_after_a_token() {
        let fixture = Fixture::new();
        let mut stream = fixture.subscribe(None);
        assert!(matches!(next(&mut stream).await, TailEvent::Position { .. }));
        fixture.append(&["other".to_owned(), "m1".to_owned(), "m2".to_owned()]).await;
        let first = record(next(&mut stream).await);
        let expected = Record {
            ts_us: 7,
            severity: Severity::WARN,
            service: "shop",
            host: "h",
            message: "m1",
            attributes: r#"{"a":1}"#,
        };
        assert_eq!((first.as_record(), first.id), (expected, None), "no lane has a number in the database yet");
        assert_eq!(record(next(&mut stream).await).message, "m2");

        let mut resumed = fixture.subscribe(Some(&first.token));
        let TailEvent::Position { token } = next(&mut resumed).await else { panic!("a stream starts at a position") };
        assert_eq!(token, first.token);
        assert_eq!(record(next(&mut resumed).await).message, "m2");

        assert_eq!(fixture.hub.subscribe(Arc::new(|_| true), None).err(), Some(TailRejection::TooMany));
        drop((stream, resumed));
        assert_eq!(fixture.hub.subscribe(Arc::new(|_| true), Some("x")).err(), Some(TailRejection::BadToken));
        fixture.journal.seal().unwrap();
    }

    #[tokio::test]
    async fn records_above_the_rate_are_counted_and_an_unknown_token_is_a_gap() {
        let fixture = Fixture::new();
        let mut stream = fixture.subscribe(Some("0123456789abcdef.5.5"));
        assert_eq!(next(&mut stream).await, TailEvent::Gap { missing: None, reason: GapReason::OtherJournal });
        assert!(matches!(next(&mut stream).await, TailEvent::Position { .. }));
        fixture.append(&messages(0..100)).await;
        let (mut received, mut dropped) = (0, 0);
        while received + dropped < 100 {
            match next(&mut stream).await {
                TailEvent::Record(_) => received += 1,
                TailEvent::Dropped { records, total } => {
                    dropped += records;
                    assert_eq!(total, dropped);
                }
                other => panic!("unexpected {other:?}"),
            }
        }
        assert!(received >= 10 && dropped > 0, "{received} received, {dropped} dropped");
        fixture.journal.seal().unwrap();
        assert!(timeout(Duration::from_secs(120), stream.next()).await.unwrap().is_none(), "the seal ends the stream");
    }
}
