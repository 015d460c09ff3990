//! Hands bodies in for sources that can wait: again and again, until they are taken.
//!
//! A refusal that a retry mends is retried for ever, with growing delays; only the drain ends it. A body whose answer was
//! lost in a restart of a stage is sent again: without a mark, that is at least once.

use std::time::Duration;

use bytes::Bytes;
use logweir_engine::clock::wall_us;
use logweir_engine::drain::{DrainWatch, Phase};
use logweir_engine::journal::Mark;
use tokio::time::sleep;

use super::{IntakeHandle, answer_channel};
use crate::message::{AckLevel, Defaults, Delivery, Encoding, Format, RECORD_END, Refusal, RefusalKind};
use crate::progress::Progress;

/// First and longest delay between two attempts.
const RETRY_DELAYS: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// What a source needs to hand bodies in.
#[derive(Clone)]
pub struct Courier {
    /// The door.
    pub intake: IntakeHandle,
    /// For [`AckLevel::Committed`].
    pub progress: Progress,
    /// Ends the retries.
    pub drain: DrainWatch,
    /// How far a body must have come before it counts as taken.
    pub ack: AckLevel,
}

/// A body of [`Format::Records`].
#[derive(Clone, Debug)]
pub struct Parcel {
    /// As in [`Delivery`].
    pub stream: u64,
    /// The records.
    pub body: Bytes,
    /// As in [`Delivery`].
    pub defaults: Defaults,
    /// As in [`Delivery`]: for sources that can read the same bytes again in the next life of the process.
    pub mark: Option<Mark>,
}

impl Parcel {
    /// Records in it.
    pub fn records(&self) -> u64 {
        memchr::memchr_iter(RECORD_END, &self.body).count() as u64
    }
}

impl Courier {
    /// Hands one body in, again and again if need be. Returns the number of its records.
    ///
    /// # Errors
    /// No retry mends it, or the drain came first.
    pub async fn deliver(&self, parcel: &Parcel) -> Result<u64, Refusal> {
        let (mut delay, delay_max) = RETRY_DELAYS;
        loop {
            let refusal = match self.attempt(parcel).await {
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

    async fn attempt(&self, parcel: &Parcel) -> Result<u64, Refusal> {
        let (reply, answer) = answer_channel();
        let delivery = Delivery {
            stream: parcel.stream,
            body: parcel.body.clone(),
            encoding: Encoding::Identity,
            format: Format::Records,
            defaults: parcel.defaults.clone(),
            received_us: wall_us(),
            mark: parcel.mark,
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

/// Counts records that were read and will not be stored.
pub fn discard(component: &'static str, reason: &'static str, records: u64) {
    let labels = [("component", component), ("reason", reason), ("intentional", "false")];
    metrics::counter!("logweir_discarded_records_total", &labels).increment(records);
}
