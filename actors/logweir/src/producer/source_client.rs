//! Submits bodies for sources that can wait, and retries until they are accepted.
//!
//! A rejection that a retry can resolve is retried indefinitely, with growing delays; only the drain ends it. A body
//! whose answer was lost in a stage restart is sent again: without a dedup key, delivery is at least once.

use std::time::Duration;

use bytes::Bytes;
use logweir_engine::clock::wall_us;
use logweir_engine::drain::{DrainWatch, Phase};
use logweir_engine::journal::DedupKey;
use tokio::time::sleep;

use super::IntakeHandle;
use crate::limits::backoff::Backoff;
use crate::message::{AckLevel, Delivery, Encoding, Rejection, RejectionKind, answer_channel};
use crate::progress::Progress;
use logweir_formats::{Defaults, Format, RECORD_END};

/// Delays between attempts.
const RETRY: Backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(2));

/// What a source needs to submit bodies.
#[derive(Clone)]
pub struct SourceClient {
    /// The entry point.
    pub intake: IntakeHandle,
    /// For [`AckLevel::Committed`].
    pub progress: Progress,
    /// Ends the retries.
    pub drain: DrainWatch,
    /// What a body must reach to count as delivered.
    pub ack: AckLevel,
}

/// A body of [`Format::Records`].
#[derive(Clone, Debug)]
pub struct SourceBatch {
    /// As in [`Delivery`].
    pub stream: u64,
    /// The records.
    pub body: Bytes,
    /// As in [`Delivery`].
    pub defaults: Defaults,
    /// As in [`Delivery`]: for sources that can read the same bytes again after a restart of the process.
    pub dedup_key: Option<DedupKey>,
}

impl SourceBatch {
    /// Number of its records.
    pub fn records(&self) -> u64 {
        memchr::memchr_iter(RECORD_END, &self.body).count() as u64
    }
}

impl SourceClient {
    /// Delivers one body, with retries. Returns the number of its records.
    ///
    /// # Errors
    /// A retry cannot succeed, or the drain started first.
    pub async fn deliver(&self, source_batch: &SourceBatch) -> Result<u64, Rejection> {
        let mut delays = RETRY.delays();
        loop {
            let rejection = match self.attempt(source_batch).await {
                Ok(records) => return Ok(records),
                Err(rejection) => rejection,
            };
            metrics::counter!("logweir_rejected_requests_total", "reason" => rejection.reason).increment(1);
            let is_retryable = matches!(rejection.kind, RejectionKind::Busy | RejectionKind::Unavailable);
            if !is_retryable || self.drain.phase() >= Phase::Draining {
                return Err(rejection);
            }
            tokio::select! {
                () = sleep(delays.next_delay()) => {}
                () = self.drain.reached(Phase::Draining) => {}
            }
        }
    }

    async fn attempt(&self, source_batch: &SourceBatch) -> Result<u64, Rejection> {
        let (reply, answer) = answer_channel();
        let delivery = Delivery {
            stream: source_batch.stream,
            body: source_batch.body.clone(),
            encoding: Encoding::Identity,
            format: Format::Records,
            defaults: source_batch.defaults.clone(),
            received_us: wall_us(),
            dedup_key: source_batch.dedup_key,
            ack: self.ack,
            reply,
        };
        self.intake.submit(delivery).await?;
        let receipt = answer.wait().await?;
        if self.ack == AckLevel::Committed && receipt.seq > 0 {
            // It is in the journal: if the drain starts first, the next start writes it to the database.
            tokio::select! {
                () = self.progress.committed(receipt.lane, receipt.seq) => {}
                () = self.drain.reached(Phase::Draining) => {}
            }
        }
        Ok(receipt.report.accepted.into())
    }
}

/// Counts records that were read and will not be stored.
pub fn discard(component: &'static str, reason: &'static str, records: u64) {
    let labels = [("component", component), ("reason", reason), ("intentional", "false")];
    metrics::counter!("logweir_discarded_records_total", &labels).increment(records);
}
