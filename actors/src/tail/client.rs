//! One client's stream.
//!
//! - It holds no frame while it waits for the client, so that memory does not grow with clients that are slow.
//! - After a token it reads the journal itself until it meets the ring, and at the client's pace: nothing is dropped on
//!   the way, but what the journal keeps no more is told as a gap.
//! - Live, the newest is what counts: records above the rate, and those that a slow client did not get to before they left
//!   the ring, are counted and told.

use bytes::Bytes;
use logweir_engine::record::Record;
use tokio::sync::mpsc;
use tokio::time::{Duration, Instant, sleep, timeout};

use super::ring::Next;
use super::{Listening, Matches, TailHub, event};
use crate::follow::{DurableFrame, Follower, Position};
use crate::rate_limit::RateLimiter;

/// A piece of the stream leaves when it is this large, or when there is nothing to add.
pub(super) const PIECE_BYTES: usize = 64 << 10;
/// Records that are looked at before others get their turn.
const RECORDS_AT_ONCE: usize = 1000;
/// A connection on which nothing happens for so long gets a comment.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// A client that takes nothing for so long is gone.
const PATIENCE: Duration = Duration::from_secs(30);
/// What was dropped is told this often.
const TELL_EVERY: Duration = Duration::from_millis(250);
/// How long a client waits for its allowance while it catches up.
const PACE: Duration = Duration::from_millis(20);
/// When a browser comes back after the connection was lost.
const RETRY_MS: u64 = 1000;

/// Where a stream begins.
pub(super) enum Begin {
    /// With what comes now.
    Live,
    /// After this.
    After(Position),
    /// After what is not in this journal.
    Elsewhere,
}

/// The stream has ended: its client has gone.
struct Gone;

/// The stream.
pub(super) struct Client {
    hub: TailHub,
    _listening: Listening,
    matches: Matches,
    position: Position,
    /// It has not met the live edge yet.
    resuming: bool,
    allowance: RateLimiter,
    buffer: String,
    out: mpsc::Sender<Bytes>,
    dropped: u64,
    dropped_total: u64,
    told: Instant,
}

impl Client {
    pub(super) fn new(
        listening: Listening,
        matches: Matches,
        begin: Begin,
        live: Position,
        out: mpsc::Sender<Bytes>,
    ) -> Self {
        let hub = listening.0.clone();
        let mut buffer = String::new();
        event::retry(&mut buffer, RETRY_MS);
        let (position, resuming) = match begin {
            Begin::Live => (live, false),
            Begin::After(position) => (position, true),
            Begin::Elsewhere => {
                event::gap(&mut buffer, None, "other_journal");
                (live, false)
            }
        };
        // Who is cut off before the first record comes back to here.
        event::place(&mut buffer, hub.0.writer, &position);
        let now = Instant::now();
        let allowance = RateLimiter::new(hub.0.config.records_per_s, now);
        Self {
            hub,
            _listening: listening,
            matches,
            position,
            resuming,
            allowance,
            buffer,
            out,
            dropped: 0,
            dropped_total: 0,
            told: now,
        }
    }

    /// Until the client has gone, or the journal has ended.
    pub(super) async fn run(mut self) {
        let _ = self.follow().await; // a client that goes has nothing to be told
    }

    async fn follow(&mut self) -> Result<(), Gone> {
        let mut moved = self.hub.0.moved.subscribe();
        self.send().await?;
        loop {
            let ended = *moved.borrow_and_update();
            let next = self.hub.state().ring.next(&self.position);
            match next {
                Next::Frame(frame) => {
                    let paced = self.look_at(&frame);
                    drop(frame);
                    self.pass_on(paced).await?;
                }
                Next::Gone(start) if self.resuming => self.catch_up(&start).await?,
                Next::Gone(start) => self.skip_to(&start, "behind"),
                Next::Nothing => {
                    self.resuming = false;
                    self.send().await?;
                    if ended {
                        self.told -= TELL_EVERY;
                        return self.send().await;
                    }
                    self.wait(&mut moved).await?;
                }
            }
        }
    }

    /// Until there is more, or something to be said anyway.
    async fn wait(&mut self, moved: &mut tokio::sync::watch::Receiver<bool>) -> Result<(), Gone> {
        let patience = if self.dropped > 0 { TELL_EVERY } else { KEEP_ALIVE };
        tokio::select! {
            moved = moved.changed() => moved.map_err(|_| Gone),
            () = self.out.closed() => Err(Gone),
            () = sleep(patience) => {
                if self.dropped == 0 {
                    event::keep_alive(&mut self.buffer);
                }
                Ok(())
            }
        }
    }

    /// Reads on in the journal up to where the ring begins.
    async fn catch_up(&mut self, start: &Position) -> Result<(), Gone> {
        let hub = self.hub.clone();
        // Nobody closes it.
        let _turn = hub.0.catching_up.acquire().await.map_err(|_| Gone)?;
        // The frame that it is in is read again: some of it may be missing.
        let mut follower = Follower::new(hub.0.journal.clone(), self.position.seq.saturating_sub(1), PIECE_BYTES);
        'reading: loop {
            let frames = follower.next().await;
            if frames.is_empty() {
                break;
            }
            for frame in frames {
                if frame.seq > start.seq {
                    break 'reading;
                }
                while self.position.records(frame.lane) < frame.records_after() {
                    let paced = self.look_at(&frame);
                    self.pass_on(paced).await?;
                }
            }
        }
        self.skip_to(start, "not_kept");
        Ok(())
    }

    /// What lies before `start` and was not seen never will be.
    fn skip_to(&mut self, start: &Position, reason: &'static str) {
        self.missed(self.position.missing(start), reason);
        self.position.join(start);
    }

    fn missed(&mut self, records: u64, reason: &'static str) {
        if records == 0 {
            return;
        }
        metrics::counter!("logweir_tail_dropped_records_total", "reason" => reason).increment(records);
        if self.resuming {
            event::gap(&mut self.buffer, Some(records), reason);
        } else {
            self.dropped += records;
        }
    }

    /// Looks at some of `frame`'s records that have not gone past yet. Says whether the rate has been reached.
    fn look_at(&mut self, frame: &DurableFrame) -> bool {
        let before = self.position.records(frame.lane).max(frame.records_before);
        self.missed(before - self.position.records(frame.lane), if self.resuming { "not_kept" } else { "behind" });
        self.position.seq = frame.seq;
        self.position.pass(frame.lane, before);
        let lane_id = self.hub.0.progress.lane_id(frame.lane);
        let mut left = self.allowance.at(Instant::now());
        let (mut sent, mut above) = (0, 0);
        let first = usize::try_from(before - frame.records_before).unwrap_or(usize::MAX);
        for row in (first..frame.chunk.len()).take(RECORDS_AT_ONCE) {
            let Some(record) = frame.chunk.get(row) else { break };
            let matches = (self.matches)(&record);
            if matches && left == 0 && self.resuming {
                break;
            }
            self.position.pass(frame.lane, frame.records_before + row as u64 + 1);
            match (matches, left) {
                (false, _) => {}
                (true, 0) => above += 1,
                (true, _) => {
                    left -= 1;
                    sent += 1;
                    self.add(lane_id, frame, &record);
                }
            }
            if self.buffer.len() >= PIECE_BYTES {
                break;
            }
        }
        self.allowance.spend(sent);
        metrics::counter!("logweir_tail_records_total").increment(sent as u64);
        self.missed(above, "rate");
        self.resuming && left == 0
    }

    fn add(&mut self, lane_id: Option<i64>, frame: &DurableFrame, record: &Record<'_>) {
        let ordinal = self.position.records(frame.lane).cast_signed();
        let id = lane_id.map(|lane_id| crate::store::id_of(lane_id, ordinal));
        event::record(&mut self.buffer, self.hub.0.writer, &self.position, id, record);
    }

    /// After some records: sends what is worth it, and lets others have their turn.
    async fn pass_on(&mut self, paced: bool) -> Result<(), Gone> {
        if paced {
            self.send().await?;
            sleep(PACE).await;
        } else if self.buffer.len() >= PIECE_BYTES {
            self.send().await?;
        } else {
            tokio::task::yield_now().await;
        }
        Ok(())
    }

    async fn send(&mut self) -> Result<(), Gone> {
        if self.dropped > 0 && self.told.elapsed() >= TELL_EVERY {
            self.dropped_total += self.dropped;
            event::dropped(&mut self.buffer, self.dropped, self.dropped_total);
            (self.dropped, self.told) = (0, Instant::now());
        }
        if self.buffer.is_empty() {
            return Ok(());
        }
        let piece = Bytes::from(std::mem::take(&mut self.buffer));
        match timeout(PATIENCE, self.out.send(piece)).await {
            Ok(sent) => sent.map_err(|_| Gone),
            Err(_) => {
                metrics::counter!("logweir_tail_stalled_clients_total").increment(1);
                Err(Gone)
            }
        }
    }
}
