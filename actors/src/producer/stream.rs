//! Records from a stream of bytes: standard input, a syslog connection.
//!
//! - One body is in flight at a time: the next is read while nobody waits, and not sent before the last is stored as far as
//!   the level asks. A pipe or a socket that is full is the backpressure.
//! - At the drain what is whole is handed in once more; what no longer finds a way in is counted and told.

use std::time::Duration;

use bytes::{Buf, BytesMut};
use logweir_engine::drain::Phase;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::{Instant, timeout_at};

use super::framing::{Cutter, Framing};
use super::lines::Composer;
use super::multiline::Multiline;
use super::source_client::{SourceBatch, SourceClient, discard};
use crate::message::Defaults;

/// A body leaves when it has this many bytes …
pub(super) const BODY_BYTES: usize = 64 << 10;
/// … or is this old.
pub(super) const LINGER: Duration = Duration::from_millis(50);
/// Bytes that are read at once.
pub(super) const READ_BYTES: usize = 16 << 10;

/// How a stream is read.
#[derive(Clone)]
pub struct StreamSource {
    /// Hands bodies in.
    pub source_client: SourceClient,
    /// The name by which what is discarded is counted.
    pub component: &'static str,
    /// Where a record ends.
    pub framing: Framing,
    /// A longer record is discarded and counted.
    pub record_bytes_max: usize,
    /// Which lines are one record, and how long one waits for its next line.
    pub multiline: Option<(Multiline, Duration)>,
    /// The stream ends when nothing comes for so long.
    pub idle_timeout: Option<Duration>,
    /// What is said of records that do not say it themselves.
    pub defaults: Defaults,
}

/// What was read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Records stored.
    pub records: u64,
    /// Records discarded, because they are too long, broke off, or the drain came first.
    pub discarded: u64,
}

/// Why reading has stopped for a moment or for good.
#[derive(Debug)]
enum Filled {
    /// There is enough, or it is old enough.
    Due,
    /// The input has ended; its last line may have no line feed.
    End,
    /// The way down or a failure came first; the last record may be cut off.
    Cut(&'static str, Option<std::io::Error>),
}

impl StreamSource {
    /// Reads `input` to its end, or to the drain.
    ///
    /// # Errors
    /// Reading failed; what was read before is stored.
    pub async fn run(&self, mut input: impl AsyncRead + Unpin) -> std::io::Result<Summary> {
        let stream = self.source_client.intake.new_stream();
        let cutter = Cutter::new(self.framing, self.record_bytes_max);
        let mut composer = Composer::new(cutter, self.multiline.as_ref().map(|(rules, _)| rules.clone()));
        let (mut pending, mut summary) = (BytesMut::new(), Summary::default());
        loop {
            let filled = self.fill(&mut input, &mut pending, &mut composer).await;
            match filled {
                Filled::Due => {}
                Filled::End => {
                    composer.feed(&pending, true);
                    composer.close();
                }
                Filled::Cut(reason, _) => {
                    composer.close();
                    summary.discarded += self.discard(reason, u64::from(!pending.is_empty()));
                }
            }
            let discarded = composer.take_discarded();
            summary.discarded += self.discard("line_too_long", discarded.too_long);
            summary.discarded += self.discard("frame_incomplete", discarded.incomplete);
            if let Some(body) = composer.take_body() {
                let source_batch = SourceBatch { stream, body, defaults: self.defaults.clone(), dedup_key: None };
                match self.source_client.deliver(&source_batch).await {
                    Ok(records) => summary.records += records,
                    Err(refusal) => {
                        let lines = source_batch.records() + u64::from(!pending.is_empty());
                        tracing::warn!(
                            source = self.component,
                            reason = refusal.reason,
                            lines,
                            "lines of the input were read and are not stored"
                        );
                        summary.discarded += self.discard(refusal.reason, lines);
                        return Ok(summary);
                    }
                }
            }
            match filled {
                Filled::Due => {}
                Filled::Cut(_, Some(error)) => return Err(error),
                Filled::End | Filled::Cut(_, None) => return Ok(summary),
            }
        }
    }

    /// Counts records that will not be stored.
    fn discard(&self, reason: &'static str, records: u64) -> u64 {
        if records > 0 {
            discard(self.component, reason, records);
        }
        records
    }

    /// Reads until a body is due.
    async fn fill(
        &self,
        input: &mut (impl AsyncRead + Unpin),
        pending: &mut BytesMut,
        composer: &mut Composer,
    ) -> Filled {
        let (mut due, mut quiet_since) = (None, Instant::now());
        while composer.body_len() < BODY_BYTES {
            let settles = self.multiline.as_ref().filter(|_| composer.is_open()).map(|(_, wait)| quiet_since + *wait);
            let idle = self.idle_timeout.map(|timeout| quiet_since + timeout);
            let a_day = Instant::now() + Duration::from_secs(86_400);
            let wake = [due, settles, idle].into_iter().flatten().fold(a_day, Instant::min);
            pending.reserve(READ_BYTES);
            let read = tokio::select! {
                read = timeout_at(wake, input.read_buf(pending)) => read,
                () = self.source_client.drain.reached(Phase::Draining) => return Filled::Cut("draining", None),
            };
            match read {
                Ok(Ok(0)) => return Filled::End,
                Ok(Ok(_)) => {
                    let used = composer.feed(pending, false);
                    pending.advance(used);
                    quiet_since = Instant::now();
                    if composer.body_len() > 0 && due.is_none() {
                        due = Some(quiet_since + LINGER);
                    }
                }
                Ok(Err(error)) => return Filled::Cut("frame_incomplete", Some(error)),
                Err(_) if settles.is_some_and(|at| at <= wake) => {
                    composer.close();
                    return Filled::Due;
                }
                Err(_) if due.is_some() => return Filled::Due,
                Err(_) if idle.is_some_and(|at| at <= wake) => return Filled::End,
                Err(_) => {} // a day without a byte
            }
        }
        Filled::Due
    }
}
