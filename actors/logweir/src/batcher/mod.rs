//! Stage batcher: appends chunks to the journal and collects batches for the flusher.
//!
//! - A chunk is appended to the journal *on arrival*, before any lingering; the fsync acknowledges it.
//! - The open batch is only a shortcut that avoids reading the disk. When the flusher's mailbox is full, the batch is
//!   released: the journal has it, and the flusher learns through [`LaneLink`] how far to read.
//! - The cache-writer gets a batch if its mailbox has room; nothing waits for it.

mod builder;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use logweir_engine::fault::kill_point;
use logweir_engine::journal::{AppendError, Appended, DedupEntry, DedupKey, Journal, LaneId, NewFrame, OnDurable};
use logweir_engine::mailbox::{Mailbox, TrySendError};
use logweir_engine::observe::Counter;
use logweir_engine::stage::{Exit, Stage, StageContext};
use logweir_record::chunk::Chunk;
use logweir_record::codec;
use tokio::sync::watch;
use tokio::time::Instant;

pub use builder::BatchBuilder;

use crate::config::BatchLimits;
use crate::message::{AckLevel, ParsedChunk, Receipt, Rejection, RejectionKind, Reply};
use crate::progress::Progress;
use logweir_formats::ParseReport;
use logweir_store::{Batch, BatchFrame};

/// State shared by the batcher and the flusher of one lane, beside the mailbox.
#[derive(Debug, Default)]
pub struct LaneLink {
    /// Frames up to this one are not (or no longer) in the flusher's mailbox: the flusher reads them from the journal.
    released_seq: AtomicU64,
}

impl LaneLink {
    /// Marks everything up to `seq` as released: the flusher reads it from the journal.
    pub fn release(&self, seq: u64) {
        self.released_seq.fetch_max(seq, Ordering::AcqRel);
    }

    /// Returns how far the flusher has to read.
    #[must_use]
    pub fn released_seq(&self) -> u64 {
        self.released_seq.load(Ordering::Acquire)
    }
}

/// Where a lane sends its batches.
#[derive(Clone)]
pub struct Downstream {
    /// The lane's flusher.
    pub flusher: Mailbox<Batch>,
    /// The cache-writer, shared by all lanes.
    pub cache_writer: Mailbox<Batch>,
    /// Through which the flusher learns what to read from the journal.
    pub link: Arc<LaneLink>,
}

/// The stage, one per lane.
pub(crate) struct Batcher {
    context: StageContext,
    lane: LaneId,
    journal: Journal,
    downstream: Downstream,
    open: BatchBuilder,
    flushes: watch::Receiver<u64>,
    appended_records: u64,
    released_batches: u64,
}

impl Batcher {
    /// An empty batcher. Batches that a predecessor held are left to the journal.
    #[must_use]
    pub fn new(
        context: StageContext,
        lane: LaneId,
        journal: Journal,
        progress: &Progress,
        downstream: Downstream,
        limits: BatchLimits,
    ) -> Self {
        let tail = journal.lanes().get(&lane).copied().unwrap_or_default();
        downstream.link.release(tail.seq);
        Self {
            context,
            lane,
            journal,
            downstream,
            open: BatchBuilder::new(lane, limits),
            flushes: progress.flushes(),
            appended_records: 0,
            released_batches: 0,
        }
    }

    /// Encodes the chunk and appends it to the journal. The reply is sent when the frame is durable, or with
    /// `ack=received` as soon as it is appended.
    async fn append(&mut self, parsed: ParsedChunk) -> Option<(Appended, Chunk)> {
        let ParsedChunk { chunk, report, dedup_key, ack, reply } = parsed;
        if let Some(dedup_key) = dedup_key
            && let Some((first, durable)) = self.journal.find_duplicate(&dedup_key)
        {
            if dedup_key.contradicts(&first.dedup_key) {
                reply.send(Err(Rejection::contradiction()));
            } else {
                self.repeat(chunk.len(), durable.then_some(first), report, reply);
            }
            return None;
        }
        let encoded = codec::encode(&chunk).map_err(|error| Rejection {
            kind: RejectionKind::TooLarge,
            reason: "chunk_too_large",
            detail: format!("{error}: send fewer records in one request"),
        });
        let (codec, payload) = match encoded {
            Ok(encoded) => encoded,
            Err(rejection) => {
                reply.send(Err(rejection));
                return None;
            }
        };
        let bytes = payload.len() + dedup_key.map_or(0, |_| DedupKey::BYTES);
        let credit = match self.context.waiting(self.journal.reserve(bytes)).await {
            Ok(credit) => credit,
            Err(error) => {
                reply.send(Err(Rejection::of_journal(&error)));
                return None;
            }
        };
        let records = u32::try_from(chunk.len()).unwrap_or(u32::MAX);
        let lane = self.lane;
        let frame = NewFrame { lane, codec, records, dedup_key, payload };
        // The sequence number is known once the frame has been appended.
        let receipt = Receipt { lane, seq: 0, report, repeated: false };
        let appended = if ack == AckLevel::Received {
            // The sender is acknowledged on receipt; a loss can only be counted.
            let lost = metrics::counter!("logweir_discarded_records_total",
                "component" => "journal", "reason" => "not_durable", "intentional" => "false");
            let on_durable = OnDurable::count_loss(lost, u64::from(records));
            let appended = self.journal.append_frame(credit, frame, on_durable);
            let receipt = appended.clone().map(|appended| Receipt { seq: appended.seq, ..receipt });
            reply.send(receipt.map_err(|error| Rejection::of_journal(&error)));
            appended
        } else {
            self.journal.append_frame(credit, frame, reply.when_durable(receipt))
        };
        appended.ok().map(|appended| (appended, chunk))
    }

    /// Acknowledges a repeated chunk; `first` is `None` while the original is not durable yet.
    fn repeat(&self, records: usize, first: Option<DedupEntry>, report: ParseReport, reply: Reply) {
        metrics::counter!("logweir_discarded_records_total",
            "component" => "batcher", "reason" => "repeated", "intentional" => "true")
        .increment(records as u64);
        let receipt = first.map(|first| Receipt { lane: first.lane, seq: first.seq, report, repeated: true });
        reply.send(receipt.ok_or_else(|| Rejection::of_journal(&AppendError::Duplicate)));
    }

    fn ship(&mut self, batch: Batch) {
        match self.downstream.cache_writer.try_send(batch.clone()) {
            Ok(()) => {}
            Err(TrySendError::Full(batch) | TrySendError::Closed(batch)) => {
                metrics::counter!("logweir_discarded_records_total",
                    "component" => "cache-writer", "reason" => "behind", "intentional" => "true")
                .increment(batch.records());
            }
        }
        match self.downstream.flusher.try_send(batch) {
            Ok(()) => {}
            Err(TrySendError::Full(batch) | TrySendError::Closed(batch)) => {
                self.released_batches += 1;
                self.downstream.link.release(batch.to_seq());
            }
        }
    }
}

impl Stage for Batcher {
    type Message = ParsedChunk;

    async fn receive(&mut self, parsed: ParsedChunk) -> Result<(), Exit> {
        kill_point("stage.batcher");
        if parsed.chunk.is_empty() {
            parsed.reply.send(Ok(Receipt { lane: self.lane, seq: 0, report: parsed.report, repeated: false }));
            return Ok(());
        }
        let dedup_key = parsed.dedup_key;
        let Some((appended, chunk)) = self.append(parsed).await else { return Ok(()) };
        self.appended_records += chunk.len() as u64;
        let frame = BatchFrame {
            seq: appended.seq,
            lane_records: appended.lane_records,
            payload_crc: appended.payload_crc,
            dedup_key,
            chunk: Arc::new(chunk),
        };
        for batch in
            self.open.push(frame, appended.lane_prev_seq, appended.generation, Instant::now()).into_iter().flatten()
        {
            self.ship(batch);
        }
        Ok(())
    }

    async fn on_tick(&mut self) -> Result<(), Exit> {
        // An error means that no flush can be requested any more.
        let flush_requested = self.flushes.has_changed().unwrap_or(false);
        self.flushes.mark_unchanged();
        if (flush_requested || self.open.is_due(Instant::now()))
            && let Some(batch) = self.open.take()
        {
            self.ship(batch);
        }
        Ok(())
    }

    async fn on_drain(&mut self) -> Result<(), Exit> {
        if let Some(batch) = self.open.take() {
            self.ship(batch);
        }
        Ok(())
    }

    fn observe(&self) -> Vec<Counter> {
        vec![
            Counter { name: "appended_records", value: self.appended_records },
            Counter { name: "released_batches", value: self.released_batches },
            Counter { name: "open_records", value: self.open.records() },
        ]
    }
}
