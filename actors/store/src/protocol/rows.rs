//! The rows of a batch with their ids.

use logweir_record::record::Record;

use crate::batch::{Batch, BatchFrame};
use crate::lane::ORDINAL_BITS;

/// A record of a batch, as a row to insert.
#[derive(Clone, Copy)]
pub(crate) struct Row<'a> {
    /// `lane_id << 44 | ordinal`.
    pub(crate) id: i64,
    /// Sequence number of its frame.
    pub(crate) seq: u64,
    /// Its index in the frame, from 0.
    pub(crate) row: u32,
    /// The record.
    pub(crate) record: Record<'a>,
}

/// Returns all rows of `batch`, in order.
pub(crate) fn rows(batch: &Batch, lane_id: i64) -> Rows<'_> {
    rows_without(batch, lane_id, &[])
}

/// Returns the rows of `batch` except those whose indexes (from 0, ascending) are in `skip`.
pub(crate) fn rows_without<'a>(batch: &'a Batch, lane_id: i64, skip: &'a [usize]) -> Rows<'a> {
    let mut frames = batch.frames().iter();
    Rows {
        base: lane_id << ORDINAL_BITS,
        frame: frames.next(),
        frames,
        next: batch.skip(),
        index: 0,
        end: usize::try_from(batch.records()).unwrap_or(usize::MAX),
        skip,
        listed: [].iter(),
    }
}

/// Rows to insert: those of a batch, then those of a list. A type with a name, because an `impl Iterator` in the
/// signature of an asynchronous trait's method keeps the compiler from seeing that the future can be sent.
#[derive(Clone)]
pub(crate) struct Rows<'a> {
    base: i64,
    frame: Option<&'a BatchFrame>,
    frames: std::slice::Iter<'a, BatchFrame>,
    /// Index in `frame` of the next row.
    next: usize,
    /// Index in the batch of the next row, and the end of the batch.
    index: usize,
    end: usize,
    skip: &'a [usize],
    listed: std::slice::Iter<'a, Row<'a>>,
}

impl<'a> Rows<'a> {
    pub(crate) fn list(rows: &'a [Row<'a>]) -> Self {
        Self { base: 0, frame: None, frames: [].iter(), next: 0, index: 0, end: 0, skip: &[], listed: rows.iter() }
    }
}

impl<'a> Iterator for Rows<'a> {
    type Item = Row<'a>;

    fn next(&mut self) -> Option<Row<'a>> {
        while self.index < self.end
            && let Some(frame) = self.frame
        {
            let Some(record) = frame.chunk.get(self.next) else {
                (self.frame, self.next) = (self.frames.next(), 0);
                continue;
            };
            let (nth, index) = (self.next as u64, self.index);
            (self.next, self.index) = (self.next + 1, self.index + 1);
            if let [first, rest @ ..] = self.skip
                && *first == index
            {
                self.skip = rest;
                continue;
            }
            let before = frame.lane_records.saturating_sub(frame.chunk.len() as u64);
            return Some(Row {
                id: self.base | (before + nth + 1).cast_signed(),
                seq: frame.seq,
                row: u32::try_from(nth).unwrap_or(u32::MAX),
                record,
            });
        }
        self.listed.next().copied()
    }
}
