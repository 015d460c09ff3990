//! The latest frames, decoded once for all clients. Pure.
//!
//! - It holds a bounded number of bytes, but always the latest frame, whatever its size. A client that is slower has
//!   missed records; the difference of two positions gives their number.
//! - It is a contiguous range of the journal: `start` plus the frames in it gives `end`.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::follow::{DurableFrame, Position};

/// What follows a position.
#[derive(Debug)]
pub enum Next {
    /// This frame; some of its records may lie before the position.
    Frame(Arc<DurableFrame>),
    /// The next frame has left the ring, which now starts here.
    Evicted(Position),
    /// Nothing yet.
    Nothing,
}

/// The ring.
#[derive(Debug)]
pub struct Ring {
    bytes_max: usize,
    bytes: usize,
    frames: VecDeque<Arc<DurableFrame>>,
    start: Position,
    end: Position,
}

impl Ring {
    /// An empty ring.
    #[must_use]
    pub fn new(bytes_max: usize) -> Self {
        Self { bytes_max, bytes: 0, frames: VecDeque::new(), start: Position::default(), end: Position::default() }
    }

    /// Resets it: empty, at `at`.
    pub fn reset(&mut self, at: Position) {
        self.frames = VecDeque::new();
        self.bytes = 0;
        self.start = at.clone();
        self.end = at;
    }

    /// The position after its last frame.
    #[must_use]
    pub fn end(&self) -> &Position {
        &self.end
    }

    /// Size of its frames, in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Adds the next frame and evicts the oldest ones above the bound.
    pub fn push(&mut self, frame: DurableFrame) {
        self.end.seq = frame.seq;
        self.end.pass(frame.lane, frame.records_after());
        self.bytes += frame.chunk.bytes();
        self.frames.push_back(Arc::new(frame));
        while self.bytes > self.bytes_max
            && self.frames.len() > 1
            && let Some(oldest) = self.frames.pop_front()
        {
            self.bytes -= oldest.chunk.bytes();
            self.start.seq = oldest.seq;
            self.start.pass(oldest.lane, oldest.records_after());
        }
    }

    /// Returns what follows `position`.
    #[must_use]
    pub fn next(&self, position: &Position) -> Next {
        if position.missing(&self.start) > 0 {
            return Next::Evicted(self.start.clone());
        }
        let first = self.frames.partition_point(|frame| frame.seq < position.seq);
        let unseen = |frame: &&Arc<DurableFrame>| frame.records_after() > position.records(frame.lane);
        self.frames.range(first..).find(unseen).map_or(Next::Nothing, |frame| Next::Frame(Arc::clone(frame)))
    }
}

#[cfg(test)]
mod tests {
    use logweir_engine::journal::LaneId;
    use logweir_record::chunk::Chunk;
    use logweir_record::record::{Record, Severity};

    use super::*;

    fn frame(seq: u64, lane: LaneId, records_before: u64, records: u64) -> DurableFrame {
        let mut chunk = Chunk::default();
        for _ in 0..records {
            let record =
                Record { ts_us: 0, severity: Severity::INFO, service: "s", host: "", message: "m", attributes: "" };
            chunk.push(record);
        }
        DurableFrame { seq, lane, records_before, chunk }
    }

    /// Three frames of two lanes.
    fn ring(frames: usize) -> Ring {
        let mut ring = Ring::new(frames * frame(0, 0, 0, 2).chunk.bytes());
        ring.reset(Position::default());
        ring.push(frame(4, 0, 0, 2));
        ring.push(frame(5, 1, 0, 2));
        ring.push(frame(9, 0, 2, 2));
        ring
    }

    /// The frames that a client which takes one record at a time gets.
    fn seen(ring: &Ring, mut position: Position) -> Vec<u64> {
        let mut seqs = Vec::new();
        while let Next::Frame(frame) = ring.next(&position) {
            seqs.push(frame.seq);
            position.seq = frame.seq;
            position.pass(frame.lane, position.records(frame.lane).max(frame.records_before) + 1);
        }
        assert!(matches!(ring.next(&position), Next::Nothing));
        assert_eq!(&position, ring.end());
        seqs
    }

    #[test]
    fn every_record_is_delivered_once() {
        assert_eq!(seen(&ring(3), Position::default()), [4, 4, 5, 5, 9, 9]);
        let mut within = Position::default();
        within.seq = 4;
        within.pass(0, 1);
        assert_eq!(seen(&ring(3), within), [4, 5, 5, 9, 9]);
    }

    #[test]
    fn an_evicted_frame_yields_the_start_of_the_ring() {
        let ring = ring(2);
        let Next::Evicted(start) = ring.next(&Position::default()) else { panic!("the first frame was evicted") };
        assert_eq!((start.seq, Position::default().missing(&start)), (4, 2));
        assert_eq!(seen(&ring, start), [5, 5, 9, 9]);
    }

    #[test]
    fn the_latest_frame_is_kept_whatever_its_size() {
        let mut ring = ring(1);
        assert_eq!(ring.frames.len(), 1);
        ring.push(frame(10, 2, 0, 50));
        assert_eq!((ring.frames.len(), ring.bytes()), (1, frame(10, 2, 0, 50).chunk.bytes()));
    }
}
