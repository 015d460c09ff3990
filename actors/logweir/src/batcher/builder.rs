//! Decides when a batch is full or has lingered long enough. Pure: time is an argument.

use logweir_engine::journal::LaneId;
use tokio::time::{Duration, Instant};

use crate::config::BatchLimits;
use logweir_store::{Batch, BatchFrame};

/// Collects consecutive frames of one lane.
///
/// - Every frame pushed is in exactly one batch, in order.
/// - No batch exceeds `rows_max` or `bytes_max`, except one that consists of a single larger frame.
/// - No frame waits longer than `linger_ms`, provided that the caller polls [`BatchBuilder::is_due`].
#[derive(Debug)]
pub struct BatchBuilder {
    lane: LaneId,
    limits: BatchLimits,
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    from_seq: u64,
    from_records: u64,
    generation: u64,
    frames: Vec<BatchFrame>,
    records: usize,
    bytes: usize,
    due: Instant,
}

impl BatchBuilder {
    /// An empty builder for `lane`.
    #[must_use]
    pub fn new(lane: LaneId, limits: BatchLimits) -> Self {
        Self { lane, limits, open: None }
    }

    /// Adds a frame; `prev_seq` is the lane's previous frame, `generation` the journal's. Returns the batches to send
    /// now, in order: the open batch if the frame does not fit or does not follow it, and the frame's own batch if it
    /// is full.
    pub fn push(&mut self, frame: BatchFrame, prev_seq: u64, generation: u64, now: Instant) -> [Option<Batch>; 2] {
        let (records, bytes) = (frame.chunk.len(), frame.chunk.bytes());
        let fits = self.open.as_ref().is_none_or(|open| {
            open.frames.last().map_or(open.from_seq, |last| last.seq) == prev_seq
                && open.generation == generation
                && open.records + records <= self.limits.rows_max
                && open.bytes + bytes <= self.limits.bytes_max
        });
        let previous = if fits { None } else { self.take() };
        let open = self.open.get_or_insert_with(|| Open {
            from_seq: prev_seq,
            from_records: frame.records_before(),
            generation,
            frames: Vec::new(),
            records: 0,
            bytes: 0,
            due: now + Duration::from_millis(self.limits.linger_ms),
        });
        open.frames.push(frame);
        open.records += records;
        open.bytes += bytes;
        let full = open.records >= self.limits.rows_max || open.bytes >= self.limits.bytes_max;
        let full_batch = if full { self.take() } else { None };
        [previous, full_batch]
    }

    /// Returns whether the open batch has lingered long enough.
    #[must_use]
    pub fn is_due(&self, now: Instant) -> bool {
        self.open.as_ref().is_some_and(|open| now >= open.due)
    }

    /// Takes the open batch, if there is one.
    pub fn take(&mut self) -> Option<Batch> {
        let Open { from_seq, from_records, generation, frames, .. } = self.open.take()?;
        Some(Batch::new(self.lane, from_seq, from_records, generation, frames))
    }

    /// Number of records in the open batch.
    #[must_use]
    pub fn records(&self) -> u64 {
        self.open.as_ref().map_or(0, |open| open.records as u64)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use logweir_record::chunk::Chunk;
    use logweir_record::record::{Record, Severity};

    use super::*;

    fn frame(seq: u64, lane_records: u64, records: usize) -> BatchFrame {
        let mut chunk = Chunk::default();
        for _ in 0..records {
            chunk.push(Record {
                ts_us: 0,
                severity: Severity::INFO,
                service: "s",
                host: "",
                message: "m",
                attributes: "",
            });
        }
        BatchFrame { seq, lane_records, payload_crc: 0, dedup_key: None, chunk: Arc::new(chunk) }
    }

    fn builder(rows_max: usize) -> BatchBuilder {
        BatchBuilder::new(0, BatchLimits { rows_max, bytes_max: 1 << 20, linger_ms: 50 })
    }

    fn seqs(batch: Option<&Batch>) -> Option<Vec<u64>> {
        Some(batch?.frames().iter().map(|frame| frame.seq).collect())
    }

    #[test]
    fn a_full_batch_is_sent_and_covers_a_range() {
        let mut builder = builder(4);
        let now = Instant::now();
        assert_eq!(builder.push(frame(7, 12, 2), 5, 0, now).iter().flatten().count(), 0);
        let [previous, full_batch] = builder.push(frame(9, 14, 2), 7, 0, now);
        assert!(previous.is_none());
        let batch = full_batch.expect("four rows fill the batch");
        assert_eq!((batch.from_seq, batch.to_seq(), batch.from_records, batch.to_records()), (5, 9, 10, 14));
        assert_eq!((batch.records(), batch.lost()), (4, 0));
    }

    #[test]
    fn a_frame_that_does_not_fit_sends_the_open_batch_first() {
        let mut builder = builder(4);
        let now = Instant::now();
        let _ = builder.push(frame(1, 3, 3), 0, 0, now);
        let [previous, full_batch] = builder.push(frame(2, 13, 10), 1, 0, now);
        assert_eq!(seqs(previous.as_ref()), Some(vec![1]));
        assert_eq!(seqs(full_batch.as_ref()), Some(vec![2]), "a single larger frame is its own batch");
    }

    #[test]
    fn a_gap_in_the_lane_ends_the_batch() {
        let mut builder = builder(100);
        let now = Instant::now();
        let _ = builder.push(frame(1, 1, 1), 0, 0, now);
        let [previous, _] = builder.push(frame(5, 9, 1), 4, 0, now);
        assert_eq!(seqs(previous.as_ref()), Some(vec![1]));
        assert_eq!(builder.take().map(|batch| batch.from_seq), Some(4));
    }

    #[test]
    fn frames_of_different_generations_are_not_mixed() {
        let mut builder = builder(100);
        let now = Instant::now();
        let _ = builder.push(frame(1, 1, 1), 0, 0, now);
        let [previous, _] = builder.push(frame(2, 2, 1), 1, 1, now);
        assert_eq!(previous.map(|batch| batch.generation), Some(0));
        assert_eq!(builder.take().map(|batch| batch.generation), Some(1));
    }

    #[test]
    fn a_batch_is_due_after_the_linger_of_its_first_frame() {
        let mut builder = builder(100);
        let now = Instant::now();
        assert!(!builder.is_due(now + Duration::from_secs(9)), "nothing is open");
        let _ = builder.push(frame(1, 1, 1), 0, 0, now);
        let _ = builder.push(frame(2, 2, 1), 1, 0, now + Duration::from_millis(49));
        assert!(!builder.is_due(now + Duration::from_millis(49)));
        assert!(builder.is_due(now + Duration::from_millis(50)));
    }
}
