//! A journal's lane from a store's point of view.

// Test helpers unwrap like tests.
#![allow(clippy::unwrap_used, clippy::missing_panics_doc)]

use std::sync::Arc;

use logweir_engine::journal::{DedupKey, DedupKind, LaneTail};
use logweir_record::chunk::Chunk;
use logweir_record::record::{Record, Severity};
use logweir_record::timestamp::DAY_US;
use logweir_store::{Batch, BatchFrame, Claim, Flushed, LaneRow, LaneWriter, Lease, LogStore, Position};
use uuid::Uuid;

use super::subject::Subject;

/// The time of the records that a feed's test creates.
pub const NOON_US: i64 = 1_763_640_000_000_000;

/// How much earlier a feed lets every second record of noon be, so that a store may keep it in another place.
pub const EARLIER_US: i64 = 30 * DAY_US;

/// A journal's lane from a store's point of view: creates frames with dense sequence numbers.
#[derive(Clone, Debug)]
pub struct Feed {
    /// The lane.
    pub lane: u16,
    /// The last frame.
    pub seq: u64,
    /// Number of records up to it.
    pub records: u64,
    /// Every second record of noon is [`EARLIER_US`] earlier.
    pub is_spread: bool,
}

/// A record at noon with one attribute.
#[must_use]
pub fn record(message: &str) -> Record<'_> {
    Record { ts_us: NOON_US, severity: Severity::INFO, service: "api", host: "h1", message, attributes: r#"{"a":1}"# }
}

impl Feed {
    /// The lane `lane` without frames.
    #[must_use]
    pub fn new(lane: u16) -> Self {
        Self { lane, seq: 0, records: 0, is_spread: true }
    }

    /// The same, whose records have the times that they are given.
    #[must_use]
    pub fn of_one_day(lane: u16) -> Self {
        Self { is_spread: false, ..Self::new(lane) }
    }

    /// Creates the next frame.
    pub fn frame(&mut self, records: &[Record<'_>]) -> BatchFrame {
        let mut chunk = Chunk::with_capacity(NOON_US, records.len(), 64 * records.len());
        for (nth, &record) in (self.records..).zip(records) {
            let is_earlier = self.is_spread && record.ts_us == NOON_US && nth % 2 == 1;
            let earlier_us = if is_earlier { EARLIER_US } else { 0 };
            chunk.push(Record { ts_us: record.ts_us - earlier_us, ..record });
        }
        self.seq += 1;
        self.records += records.len() as u64;
        BatchFrame {
            seq: self.seq,
            lane_records: self.records,
            payload_crc: u32::try_from(self.seq).unwrap() ^ 0xabcd,
            dedup_key: None,
            chunk: Arc::new(chunk),
        }
    }

    /// Creates a batch with one frame per slice.
    pub fn batch(&mut self, frames: &[&[Record<'_>]]) -> Batch {
        let (from_seq, from_records) = (self.seq, self.records);
        let frames = frames.iter().map(|records| self.frame(records)).collect();
        Batch::new(self.lane, from_seq, from_records, 0, frames)
    }

    /// Creates a batch with one frame of two records per request: its key and its body.
    pub fn requests(&mut self, requests: &[(u8, u64)]) -> Batch {
        let (from_seq, from_records) = (self.seq, self.records);
        let frame = |&(key, body): &(u8, u64)| {
            let kind = DedupKind::Request { body: Some(body) };
            let records = [format!("first of {key}"), format!("second of {key}")];
            let frame = self.frame(&[record(&records[0]), record(&records[1])]);
            BatchFrame { dedup_key: Some(DedupKey { key: [key; 16], kind }), ..frame }
        };
        let frames = requests.iter().map(frame).collect();
        Batch::new(self.lane, from_seq, from_records, 0, frames)
    }

    /// Returns the lane's tail as if the journal were opened now.
    #[must_use]
    pub fn tail(&self) -> (u16, LaneTail) {
        (self.lane, LaneTail { seq: self.seq, records: self.records })
    }

    /// Creates a batch of these frames at the place of `batch`.
    #[must_use]
    pub fn instead(batch: &Batch, frames: Vec<BatchFrame>) -> Batch {
        let partial = batch.skip() as u64;
        let position = Position { seq: batch.from_seq, records: batch.from_records, partial };
        let instead = Batch::new(batch.lane, batch.from_seq, batch.from_records, batch.generation, frames);
        instead.after(position).unwrap()
    }

    /// Creates a batch of `n` records.
    pub fn plain(&mut self, n: usize) -> Batch {
        let records = vec![record("plain"); n];
        self.batch(&[&records])
    }
}

/// Returns the claim of `run` after `runs`, whose journal has no frames.
#[must_use]
pub fn claim(writer: Uuid, runs: &[u128], run: u128) -> Claim {
    Claim {
        runs: runs.iter().copied().map(Uuid::from_u128).collect(),
        ..Claim::new(writer, Uuid::from_u128(run), format!("run {run}"))
    }
}

/// Returns the claim of a later run, whose journal ends where `feed` is.
#[must_use]
pub fn claim_at(feed: &Feed, writer: Uuid, runs: &[u128], run: u128) -> Claim {
    Claim { tails: vec![feed.tail()], ..claim(writer, runs, run) }
}

/// Opens a lane.
pub async fn lane(store: &Arc<dyn LogStore>, lease: &Lease, lane: u16) -> Box<dyn LaneWriter> {
    store.open_lane(lease, lane).await.unwrap().0
}

/// A writer, its lease and lane 0.
pub async fn started(on: &impl Subject) -> (Uuid, Lease, Box<dyn LaneWriter>) {
    let writer = Uuid::new_v4();
    let lease = on.store().acquire_lease(&claim(writer, &[], 1)).await.unwrap();
    let flusher = lane(on.store(), &lease, 0).await;
    (writer, lease, flusher)
}

/// The result of a flush.
#[must_use]
pub fn flushed(rows: u64, dead_lettered: u64) -> Flushed {
    Flushed { rows, dead_lettered, ..Flushed::default() }
}

/// A lane's frames, as a flusher reads them back.
#[derive(Debug, Default)]
pub struct Frames(pub Vec<BatchFrame>);

impl Frames {
    /// Returns the batch after the position of `row`: up to `frames` frames, of the last of which `leave` records are
    /// left out (as far as it has that many). `None` at the end.
    #[must_use]
    pub fn after(&self, row: &LaneRow, frames: usize, leave: usize) -> Option<Batch> {
        let rest = self.0.iter().filter(|frame| frame.seq > row.last_seq).take(frames).cloned().collect();
        let batch = Batch::new(row.lane, row.last_seq, row.accounted(), 0, rest).after(row.position())?;
        let last = batch.frames().last()?.chunk.len() - if batch.frames().len() == 1 { batch.skip() } else { 0 };
        Some(batch.prefix(usize::try_from(batch.records()).unwrap() - leave.min(last - 1)))
    }
}
