//! Lines from standard input (or any stream of bytes).
//!
//! - One body is in flight at a time: the next is read while nobody waits, and not sent before the last is stored as far as
//!   the level asks. A pipe that is full is the backpressure.
//! - A refusal that a retry mends is retried for ever, with growing delays; only the drain ends it, and then says what is
//!   left. A body whose answer was lost in a restart is sent again: from here, that is at least once.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use logweir_engine::clock::wall_us;
use logweir_engine::drain::{DrainWatch, Phase};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::{Instant, sleep, timeout_at};

use super::{IntakeHandle, answer_channel};
use crate::message::{AckLevel, Defaults, Delivery, Encoding, Format, Refusal, RefusalKind};
use crate::progress::Progress;

/// A body leaves when it has this many bytes …
pub(super) const BODY_BYTES: usize = 64 << 10;
/// … or is this old.
const LINGER: Duration = Duration::from_millis(50);
/// First and longest delay between two attempts.
const RETRY_DELAYS: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// What a source needs to hand lines in.
#[derive(Clone)]
pub struct LineSource {
    /// The door.
    pub intake: IntakeHandle,
    /// For [`AckLevel::Committed`].
    pub progress: Progress,
    /// Ends the retries.
    pub drain: DrainWatch,
    /// How far a body must have come before the next one is sent.
    pub ack: AckLevel,
    /// A longer line is discarded and counted.
    pub line_bytes_max: usize,
    /// Service and host of lines that do not say it themselves.
    pub defaults: Defaults,
}

/// What was read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Records stored.
    pub records: u64,
    /// Lines discarded, because they are too long or the drain came first.
    pub discarded: u64,
}

impl LineSource {
    /// Reads `input` to its end, or to the drain.
    ///
    /// # Errors
    /// Reading failed; what was read before is stored.
    pub async fn run(&self, mut input: impl AsyncRead + Unpin) -> std::io::Result<Summary> {
        let stream = self.intake.new_stream();
        let mut lines = Lines::new(self.line_bytes_max);
        let mut summary = Summary::default();
        loop {
            let filled = lines.fill(&mut input, &self.drain).await?;
            let body = if filled == Filled::End { lines.take_all() } else { lines.take_whole() };
            if let Some(body) = body {
                match self.deliver(stream, &body).await {
                    Ok(records) => summary.records += records,
                    Err(refusal) => {
                        lines.give_up(&body, refusal.reason);
                        summary.discarded += lines.take_discarded();
                        return Ok(summary);
                    }
                }
            }
            if filled == Filled::Drained
                && let Some(cut) = lines.take_all()
            {
                lines.give_up(&cut, "draining");
            }
            summary.discarded += lines.take_discarded();
            if filled != Filled::Due {
                return Ok(summary);
            }
        }
    }

    /// Hands one body in, again and again if need be. Returns the number of its records.
    async fn deliver(&self, stream: u64, body: &Bytes) -> Result<u64, Refusal> {
        let (mut delay, delay_max) = RETRY_DELAYS;
        loop {
            let refusal = match self.attempt(stream, body.clone()).await {
                Ok(records) => return Ok(records),
                Err(refusal) => refusal,
            };
            metrics::counter!("logweir_refused_total", "reason" => refusal.reason).increment(1);
            let mendable = matches!(refusal.kind, RefusalKind::Busy | RefusalKind::Unavailable);
            if !mendable || self.drain.phase() >= Phase::Draining {
                return Err(refusal);
            }
            tokio::select! {
                () = sleep(delay) => delay = (delay * 2).min(delay_max),
                () = self.drain.reached(Phase::Draining) => {}
            }
        }
    }

    async fn attempt(&self, stream: u64, body: Bytes) -> Result<u64, Refusal> {
        let (reply, answer) = answer_channel();
        let delivery = Delivery {
            stream,
            body,
            encoding: Encoding::Identity,
            format: Format::Lines,
            defaults: self.defaults.clone(),
            received_us: wall_us(),
            mark: None,
            ack: self.ack,
            reply,
        };
        self.intake.submit(delivery).await?;
        let receipt = answer.wait().await?;
        if self.ack == AckLevel::Committed && receipt.seq > 0 {
            // It is in the journal: if the drain comes first, the next start brings it to the database.
            tokio::select! {
                () = self.progress.committed(receipt.lane, receipt.seq) => {}
                () = self.drain.reached(Phase::Draining) => {}
            }
        }
        Ok(receipt.report.accepted.into())
    }
}

/// Why [`Lines::fill`] came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Filled {
    /// There is enough, or it is old enough.
    Due,
    /// The input has ended; its last line may have no line feed.
    End,
    /// The way down came first; the last line may be cut off.
    Drained,
}

/// Bytes cut into bodies of whole lines. Never holds more than one line of the largest size, a body and one read.
struct Lines {
    pending: BytesMut,
    /// Whole lines end here.
    whole: usize,
    /// Inside a line that is too long, up to its end.
    skipping: bool,
    line_bytes_max: usize,
    discarded: u64,
}

impl Lines {
    fn new(line_bytes_max: usize) -> Self {
        Self { pending: BytesMut::new(), whole: 0, skipping: false, line_bytes_max, discarded: 0 }
    }

    /// Reads until a body is due.
    async fn fill(&mut self, input: &mut (impl AsyncRead + Unpin), drain: &DrainWatch) -> std::io::Result<Filled> {
        let mut due: Option<Instant> = None;
        while self.whole < BODY_BYTES {
            let before = self.pending.len();
            self.pending.reserve(BODY_BYTES);
            let linger_end = due.unwrap_or_else(|| Instant::now() + Duration::from_secs(86_400));
            let read = tokio::select! {
                read = timeout_at(linger_end, input.read_buf(&mut self.pending)) => read,
                () = drain.reached(Phase::Draining) => return Ok(Filled::Drained),
            };
            match read {
                Err(_) if due.is_none() => {} // a day without a byte
                Err(_) => return Ok(Filled::Due),
                Ok(read) => {
                    if read? == 0 {
                        return Ok(Filled::End);
                    }
                    self.cut(before);
                    if self.whole > 0 && due.is_none() {
                        due = Some(Instant::now() + LINGER);
                    }
                }
            }
        }
        Ok(Filled::Due)
    }

    /// Looks at the bytes after `before`: where whole lines end, and whether the open line is too long.
    fn cut(&mut self, before: usize) {
        if self.skipping {
            match memchr::memchr(b'\n', &self.pending[before..]) {
                // The line that was skipped began where the whole ones end.
                Some(end) => {
                    let rest = self.pending.split_off(before + end + 1);
                    self.pending.truncate(self.whole);
                    self.pending.unsplit(rest);
                    self.skipping = false;
                    return self.cut(self.whole);
                }
                None => return self.pending.truncate(self.whole),
            }
        }
        if let Some(end) = memchr::memrchr(b'\n', &self.pending[before..]) {
            self.whole = before + end + 1;
        }
        // Longer lines that came whole are the parser's to discard.
        if self.pending.len() - self.whole > self.line_bytes_max + 1 {
            self.pending.truncate(self.whole);
            self.skipping = true;
            self.discard("line_too_long", 1);
        }
    }

    /// Counts lines that will not be stored.
    fn discard(&mut self, reason: &'static str, lines: u64) {
        self.discarded += lines;
        let labels = [("component", "stdin"), ("reason", reason), ("intentional", "false")];
        metrics::counter!("logweir_discarded_records_total", &labels).increment(lines);
    }

    /// Counts the lines of `body`, which nobody took, and says so.
    fn give_up(&mut self, body: &[u8], reason: &'static str) {
        let left = body.split(|&byte| byte == b'\n').filter(|line| !line.trim_ascii().is_empty()).count() as u64;
        tracing::warn!(reason, lines = left, "lines of the input were read and are not stored");
        self.discard(reason, left);
    }

    fn take_whole(&mut self) -> Option<Bytes> {
        let body = self.pending.split_to(std::mem::take(&mut self.whole)).freeze();
        (!body.is_empty()).then_some(body)
    }

    fn take_all(&mut self) -> Option<Bytes> {
        self.whole = self.pending.len();
        self.take_whole()
    }

    fn take_discarded(&mut self) -> u64 {
        std::mem::take(&mut self.discarded)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use logweir_engine::drain::DrainControl;
    use proptest::prelude::*;

    /// Cuts `input`, which comes in pieces of these sizes, and returns all bodies together.
    fn cut(input: &[u8], pieces: &[usize], line_bytes_max: usize) -> (Vec<u8>, u64) {
        let (mut lines, mut out) = (Lines::new(line_bytes_max), Vec::new());
        let mut rest = input;
        for &piece in pieces.iter().cycle() {
            let (head, tail) = rest.split_at(piece.clamp(1, rest.len().max(1)).min(rest.len()));
            rest = tail;
            let before = lines.pending.len();
            lines.pending.extend_from_slice(head);
            lines.cut(before);
            if let Some(body) = lines.take_whole() {
                assert!(body.ends_with(b"\n"), "a line was cut in two");
                out.extend_from_slice(&body);
            }
            if rest.is_empty() {
                break;
            }
        }
        out.extend_from_slice(&lines.take_all().unwrap_or_default());
        (out, lines.take_discarded())
    }

    #[test]
    fn a_line_that_does_not_end_is_discarded_without_being_held() {
        let input = [b"one\n".to_vec(), vec![b'x'; 1000], b"\ntwo\nthree".to_vec()].concat();
        assert_eq!(cut(&input, &[7], 100), (b"one\ntwo\nthree".to_vec(), 1));
        let control = DrainControl::default();
        let endless = vec![b'x'; 1 << 20];
        let mut lines = Lines::new(100);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(lines.fill(&mut &endless[..], &control.watch())).unwrap();
        assert!(lines.pending.capacity() <= 4 * BODY_BYTES, "{}", lines.pending.capacity());
    }

    proptest! {
        #[test]
        fn lines_come_out_whole_and_in_order_however_they_came_in(
            input in "[a-z\n]{0,200}",
            pieces in prop::collection::vec(1_usize..40, 1..6),
        ) {
            prop_assert_eq!(cut(input.as_bytes(), &pieces, 1000), (input.clone().into_bytes(), 0));
            // With a limit, each line is there or was counted; longer ones that came whole are left to the parser.
            let (out, discarded) = cut(input.as_bytes(), &pieces, 10);
            let count = |bytes: &[u8]| bytes.iter().filter(|&&byte| byte == b'\n').count() as u64;
            let ended = count(input.as_bytes()) - count(&out);
            prop_assert!(discarded == ended || discarded == ended + 1, "{} {}", discarded, ended);
            for line in input.split('\n').filter(|line| !line.is_empty() && line.len() <= 10) {
                prop_assert!(String::from_utf8(out.clone()).unwrap().split('\n').any(|kept| kept == line));
            }
        }
    }
}
