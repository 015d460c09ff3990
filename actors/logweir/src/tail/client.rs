//! The stream of one client.
//!
//! - It holds no frame while it waits for the client, so memory does not grow with the number of slow clients.
//! - A resumed stream reads the journal itself, at the client's pace, until it reaches the ring. Nothing is dropped
//!   meanwhile; records that the journal no longer retains are reported as a gap.
//! - A live stream favors the latest records: those above the rate limit, and those that left the ring before a slow
//!   client got to them, are counted and reported.

use std::sync::Arc;

use logweir_record::record::Record;
use tokio::sync::mpsc;
use tokio::time::{Duration, Instant, sleep, timeout};

use super::output::{GapReason, Output};
use super::ring::Next;
use super::shared::{Registration, Shared};
use crate::follow::{DurableFrame, Follower, Position};
use crate::limits::rate_limit::RateLimiter;

/// A piece is sent when it reaches this size, or when there is nothing to add.
pub(super) const PIECE_BYTES: usize = 64 << 10;
/// Records processed before other clients get their turn.
const RECORDS_AT_ONCE: usize = 1000;
/// Interval of keep-alive comments on an idle connection.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// A client that accepts nothing for this long is disconnected.
const SEND_TIMEOUT: Duration = Duration::from_secs(30);
/// Interval at which dropped records are reported.
const REPORT_INTERVAL: Duration = Duration::from_millis(250);
/// Pause of a resuming client that has reached its rate limit.
const RATE_PAUSE: Duration = Duration::from_millis(20);

/// Selects the records that a client receives.
pub type Matches = Arc<dyn Fn(&Record<'_>) -> bool + Send + Sync>;

/// Where a stream starts.
pub(super) enum Start {
    /// At the live edge.
    Live,
    /// After this position.
    After(Position),
    /// At the live edge, since the position of the token is not in this journal.
    OtherJournal,
}

/// The client has disconnected.
struct Disconnected;

/// One client's stream.
pub(super) struct Client<O: Output> {
    shared: Arc<Shared>,
    _registration: Registration,
    matches: Matches,
    position: Position,
    /// The stream has not reached the live edge yet.
    resuming: bool,
    rate_limiter: RateLimiter,
    output: O,
    out: mpsc::Sender<O::Piece>,
    dropped: u64,
    dropped_total: u64,
    reported_at: Instant,
}

impl<O: Output> Client<O> {
    pub(super) fn new(
        registration: Registration,
        matches: Matches,
        start: Start,
        live: Position,
        out: mpsc::Sender<O::Piece>,
    ) -> Self {
        let shared = Arc::clone(&registration.0);
        let mut output = O::default();
        let (position, resuming) = match start {
            Start::Live => (live, false),
            Start::After(position) => (position, true),
            Start::OtherJournal => {
                output.gap(None, GapReason::OtherJournal);
                (live, false)
            }
        };
        // A client that is disconnected before its first record resumes here.
        output.position(shared.writer, &position);
        let now = Instant::now();
        let rate_limiter = RateLimiter::new(shared.config.records_per_s, now);
        Self {
            shared,
            _registration: registration,
            matches,
            position,
            resuming,
            rate_limiter,
            output,
            out,
            dropped: 0,
            dropped_total: 0,
            reported_at: now,
        }
    }

    /// Runs until the client has disconnected or the journal has ended.
    pub(super) async fn run(mut self) {
        let _ = self.follow().await; // a client that has disconnected needs no report
    }

    async fn follow(&mut self) -> Result<(), Disconnected> {
        let mut advanced = self.shared.advanced.subscribe();
        self.send().await?;
        loop {
            let ended = *advanced.borrow_and_update();
            let next = self.shared.state().ring.next(&self.position);
            match next {
                Next::Frame(frame) => {
                    let rate_limited = self.process(&frame);
                    drop(frame);
                    self.send_if_due(rate_limited).await?;
                }
                Next::Evicted(start) if self.resuming => self.catch_up(&start).await?,
                Next::Evicted(start) => self.skip_to(&start, "behind"),
                Next::Nothing => {
                    self.resuming = false;
                    self.send().await?;
                    if ended {
                        self.reported_at -= REPORT_INTERVAL;
                        return self.send().await;
                    }
                    self.wait(&mut advanced).await?;
                }
            }
        }
    }

    /// Waits for more frames, at most until a report or a keep-alive is due.
    async fn wait(&mut self, advanced: &mut tokio::sync::watch::Receiver<bool>) -> Result<(), Disconnected> {
        let limit = if self.dropped > 0 { REPORT_INTERVAL } else { KEEP_ALIVE };
        tokio::select! {
            advanced = advanced.changed() => advanced.map_err(|_| Disconnected),
            () = self.out.closed() => Err(Disconnected),
            () = sleep(limit) => {
                if self.dropped == 0 {
                    self.output.keep_alive();
                }
                Ok(())
            }
        }
    }

    /// Reads the journal up to the start of the ring.
    async fn catch_up(&mut self, start: &Position) -> Result<(), Disconnected> {
        let shared = Arc::clone(&self.shared);
        // The semaphore is never closed.
        let _permit = shared.catching_up.acquire().await.map_err(|_| Disconnected)?;
        // The frame at the position is read again: the client may have seen only part of it.
        let mut follower = Follower::new(shared.journal.clone(), self.position.seq.saturating_sub(1), PIECE_BYTES);
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
                    let rate_limited = self.process(&frame);
                    self.send_if_due(rate_limited).await?;
                }
            }
        }
        self.skip_to(start, GapReason::NotRetained.name());
        Ok(())
    }

    /// Counts the unseen records before `start` as missed and moves there.
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
            self.output.gap(Some(records), GapReason::NotRetained);
        } else {
            self.dropped += records;
        }
    }

    /// Processes some of the records of `frame` after the position. Returns whether a resuming client has reached its
    /// rate limit.
    fn process(&mut self, frame: &DurableFrame) -> bool {
        let before = self.position.records(frame.lane).max(frame.records_before);
        let reason = if self.resuming { GapReason::NotRetained.name() } else { "behind" };
        self.missed(before - self.position.records(frame.lane), reason);
        self.position.seq = frame.seq;
        self.position.pass(frame.lane, before);
        let lane_id = self.shared.progress.lane_id(frame.lane);
        let mut left = self.rate_limiter.available(Instant::now());
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
            if self.output.bytes() >= PIECE_BYTES {
                break;
            }
        }
        self.rate_limiter.take(sent);
        metrics::counter!("logweir_tail_records_total").increment(sent as u64);
        self.missed(above, "rate");
        self.resuming && left == 0
    }

    fn add(&mut self, lane_id: Option<i64>, frame: &DurableFrame, record: &Record<'_>) {
        let ordinal = self.position.records(frame.lane).cast_signed();
        let id = lane_id.map(|lane_id| logweir_store::id_of(lane_id, ordinal));
        self.output.record(self.shared.writer, &self.position, id, record);
    }

    /// Sends a piece that is full or rate-limited; otherwise lets other clients run.
    async fn send_if_due(&mut self, rate_limited: bool) -> Result<(), Disconnected> {
        if rate_limited {
            self.send().await?;
            sleep(RATE_PAUSE).await;
        } else if self.output.bytes() >= PIECE_BYTES {
            self.send().await?;
        } else {
            tokio::task::yield_now().await;
        }
        Ok(())
    }

    async fn send(&mut self) -> Result<(), Disconnected> {
        if self.dropped > 0 && self.reported_at.elapsed() >= REPORT_INTERVAL {
            self.dropped_total += self.dropped;
            self.output.dropped(self.dropped, self.dropped_total);
            (self.dropped, self.reported_at) = (0, Instant::now());
        }
        if self.output.bytes() == 0 {
            return Ok(());
        }
        match timeout(SEND_TIMEOUT, self.out.send(self.output.take())).await {
            Ok(sent) => sent.map_err(|_| Disconnected),
            Err(_) => {
                metrics::counter!("logweir_tail_stalled_clients_total").increment(1);
                Err(Disconnected)
            }
        }
    }
}
