//! The rows of a batch with their ids.

use logweir_record::record::Record;

use crate::batch::Batch;
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
pub(crate) fn rows(batch: &Batch, lane_id: i64) -> impl Iterator<Item = Row<'_>> + '_ {
    let base = lane_id << ORDINAL_BITS;
    let all = batch.frames.iter().flat_map(move |frame| {
        let before = frame.lane_records.saturating_sub(frame.chunk.len() as u64).cast_signed();
        (1..).zip(frame.chunk.iter()).map(move |(nth, record): (u32, _)| Row {
            id: base | (before + i64::from(nth)),
            seq: frame.seq,
            row: nth - 1,
            record,
        })
    });
    all.skip(batch.skip).take(usize::try_from(batch.records()).unwrap_or(usize::MAX))
}

/// Number of rows rejected by the table that may be dead-lettered before the batch counts as evidence of a changed
/// table.
///
/// One percent, but at least 100: a few rows that violate a user's constraint must not stop a lane, while a table that
/// rejects everything is noticed within one batch of normal size. Rows that small batches dead-letter in the meantime
/// are stored, counted, and can be replayed.
#[must_use]
pub(crate) fn poison_rows_max(batch_rows: usize) -> usize {
    (batch_rows / 100).max(100)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_batches_may_dead_letter_a_hundred_rows_and_large_ones_one_percent() {
        assert_eq!(poison_rows_max(1), 100);
        assert_eq!(poison_rows_max(10_000), 100);
        assert_eq!(poison_rows_max(50_000), 500);
    }
}
