//! The rows of a batch with their ids.

use logweir_record::record::Record;

use super::cursor::ORDINAL_BITS;
use crate::batch::Batch;

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
pub(crate) fn rows(batch: &Batch, lane_id: i64) -> impl Iterator<Item = Row<'_>> + '_ {
    let base = lane_id << ORDINAL_BITS;
    batch.frames.iter().flat_map(move |frame| {
        let before = frame.lane_records.saturating_sub(frame.chunk.len() as u64).cast_signed();
        (1..).zip(frame.chunk.iter()).map(move |(nth, record): (u32, _)| Row {
            id: base | (before + i64::from(nth)),
            seq: frame.seq,
            row: nth - 1,
            record,
        })
    })
}

/// Returns the rows of `batch` except those whose indexes (from 0, ascending) are in `skip`.
pub(crate) fn rows_without<'a>(
    batch: &'a Batch,
    lane_id: i64,
    skip: &'a [usize],
) -> impl Iterator<Item = Row<'a>> + 'a {
    let mut skip = skip.iter().copied().peekable();
    rows(batch, lane_id).enumerate().filter_map(move |(place, row)| match skip.next_if_eq(&place) {
        Some(_) => None,
        None => Some(row),
    })
}
