//! Records from a byte stream: standard input or a syslog connection.
//!
//! - One body is in flight at a time: the next is read meanwhile, but not sent before the last is acknowledged at the
//!   requested level. A full pipe or socket is the backpressure.
//! - At the drain, complete records are submitted once more; those that are rejected are counted and logged.

use std::time::Duration;

use bytes::{Buf, BytesMut};
use logweir_engine::drain::Phase;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::{Instant, timeout_at};

use super::framing::{Framing, RecordSplitter};
use super::lines::BodyBuilder;
use super::multiline::Multiline;
use super::source_client::{SourceBatch, SourceClient, discard};
use logweir_formats::Defaults;

/// A body is sent when it reaches this size …
pub(super) const BODY_BYTES: usize = 64 << 10;
/// … or this age.
pub(super) const LINGER: Duration = Duration::from_millis(50);
/// Bytes read at once.
pub(super) const READ_BYTES: usize = 16 << 10;

/// Settings of a stream.
#[derive(Clone)]
pub struct StreamSource {
    /// Submits the bodies.
    pub source_client: SourceClient,
    /// Component label of the counters for discarded records.
    pub component: &'static str,
    /// How records are delimited.
    pub framing: Framing,
    /// Longer records are discarded and counted.
    pub record_bytes_max: usize,
    /// Rules for joining lines, and how long a record waits for its next line.
    pub multiline: Option<(Multiline, Duration)>,
    /// The stream ends when nothing arrives for this long.
    pub idle_timeout: Option<Duration>,
    /// Defaults for fields that a record does not set.
    pub defaults: Defaults,
}

/// Result of reading a stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Records stored.
    pub records: u64,
    /// Records discarded because they were overlong or incomplete, or because the drain started first.
    pub discarded: u64,
}

/// Why reading stopped, for the moment or for good.
#[derive(Debug)]
enum FillOutcome {
    /// The body is large or old enough.
    Due,
    /// The input has ended; its last line may lack a line feed.
    End,
    /// The drain started or reading failed; the last record may be incomplete.
    Interrupted(&'static str, Option<std::io::Error>),
}

impl StreamSource {
    /// Reads `input` to its end, or until the drain.
    ///
    /// # Errors
    /// Reading failed; what was read before is stored.
    pub async fn run(&self, mut input: impl AsyncRead + Unpin) -> std::io::Result<Summary> {
        let stream = self.source_client.intake.new_stream();
        let splitter = RecordSplitter::new(self.framing, self.record_bytes_max);
        let mut builder = BodyBuilder::new(splitter, self.multiline.as_ref().map(|(rules, _)| rules.clone()));
        let (mut pending, mut summary) = (BytesMut::new(), Summary::default());
        loop {
            let outcome = self.fill(&mut input, &mut pending, &mut builder).await;
            match outcome {
                FillOutcome::Due => {}
                FillOutcome::End => {
                    builder.feed(&pending, true);
                    builder.close();
                }
                FillOutcome::Interrupted(reason, _) => {
                    builder.close();
                    summary.discarded += self.discard(reason, u64::from(!pending.is_empty()));
                }
            }
            let discarded = builder.take_discarded();
            summary.discarded += self.discard("line_too_long", discarded.too_long);
            summary.discarded += self.discard("frame_incomplete", discarded.incomplete);
            if let Some(body) = builder.take_body() {
                let source_batch = SourceBatch { stream, body, defaults: self.defaults.clone(), dedup_key: None };
                match self.source_client.deliver(&source_batch).await {
                    Ok(records) => summary.records += records,
                    Err(rejection) => {
                        let lines = source_batch.records() + u64::from(!pending.is_empty());
                        tracing::warn!(
                            source = self.component,
                            reason = rejection.reason,
                            lines,
                            "lines were read but not stored"
                        );
                        summary.discarded += self.discard(rejection.reason, lines);
                        return Ok(summary);
                    }
                }
            }
            match outcome {
                FillOutcome::Due => {}
                FillOutcome::Interrupted(_, Some(error)) => return Err(error),
                FillOutcome::End | FillOutcome::Interrupted(_, None) => return Ok(summary),
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
        builder: &mut BodyBuilder,
    ) -> FillOutcome {
        let (mut due, mut quiet_since) = (None, Instant::now());
        while builder.body_len() < BODY_BYTES {
            let join_deadline =
                self.multiline.as_ref().filter(|_| builder.is_open()).map(|(_, wait)| quiet_since + *wait);
            let idle = self.idle_timeout.map(|timeout| quiet_since + timeout);
            let a_day = Instant::now() + Duration::from_secs(86_400);
            let wake = [due, join_deadline, idle].into_iter().flatten().fold(a_day, Instant::min);
            pending.reserve(READ_BYTES);
            let read = tokio::select! {
                read = timeout_at(wake, input.read_buf(pending)) => read,
                () = self.source_client.drain.reached(Phase::Draining) => {
                    return FillOutcome::Interrupted("draining", None);
                }
            };
            match read {
                Ok(Ok(0)) => return FillOutcome::End,
                Ok(Ok(_)) => {
                    let used = builder.feed(pending, false);
                    pending.advance(used);
                    quiet_since = Instant::now();
                    if builder.body_len() > 0 && due.is_none() {
                        due = Some(quiet_since + LINGER);
                    }
                }
                Ok(Err(error)) => return FillOutcome::Interrupted("frame_incomplete", Some(error)),
                Err(_) if join_deadline.is_some_and(|at| at <= wake) => {
                    builder.close();
                    return FillOutcome::Due;
                }
                Err(_) if due.is_some() => return FillOutcome::Due,
                Err(_) if idle.is_some_and(|at| at <= wake) => return FillOutcome::End,
                Err(_) => {} // a day without input
            }
        }
        FillOutcome::Due
    }
}
