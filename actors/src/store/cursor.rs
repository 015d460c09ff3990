//! What it means that a flush's compare-and-set hit no row. Pure: the rows go in, the decision comes out.
//!
//! The compare-and-set asks for our epoch and for the cursor where the batch begins. It waits for a zombie
//! transaction that holds the row, so that what is read after it is settled: the zombie has committed or is gone.

use super::LaneRow;
use crate::message::Batch;

/// Bits of a record's id below the lane's number.
pub const ORDINAL_BITS: u32 = 44;

/// What to do after a compare-and-set that hit no row.
#[derive(Debug, PartialEq, Eq)]
pub enum Miss {
    /// The batch is in the database: an earlier COMMIT went through whose answer was lost.
    AlreadyApplied,
    /// A newer epoch owns the writer.
    Fenced,
    /// The database has never heard of this epoch, this lane or its `lane_id`: it was put back to an earlier time.
    /// No retry helps, only a new take-over.
    WentBack,
    /// The cursor stands elsewhere: the flusher rebuilds its range from there.
    Moved,
    /// The cursor is at the end of the batch, with another frame's digest.
    Reused,
}

/// Decides. `mine` and `lane_id` are what we hold, `writer_epoch` is the writer's row, `row` the lane's; `None` where the
/// row is missing.
#[must_use]
pub fn on_miss(mine: i64, lane_id: i64, writer_epoch: Option<i64>, row: Option<&LaneRow>, batch: &Batch) -> Miss {
    let (Some(writer_epoch), Some(row)) = (writer_epoch, row) else { return Miss::WentBack };
    let epoch = writer_epoch.max(row.epoch);
    if epoch > mine {
        return Miss::Fenced;
    }
    if row.epoch < mine || writer_epoch < mine || row.lane_id != lane_id {
        return Miss::WentBack;
    }
    if row.last_seq != batch.to_seq() {
        return Miss::Moved;
    }
    if row.digest == batch.digest() { Miss::AlreadyApplied } else { Miss::Reused }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use logweir_engine::chunk::Chunk;

    use super::*;
    use crate::message::BatchFrame;

    #[test]
    fn a_missed_compare_and_set_has_one_meaning_for_each_state_of_the_rows() {
        let frame = BatchFrame { seq: 9, lane_records: 0, payload_crc: 77, chunk: Arc::new(Chunk::default()) };
        let batch = Batch { lane: 0, from_seq: 5, from_records: 0, generation: 0, frames: vec![frame] };
        let other = vec![1; 16];
        let row = |epoch, last_seq, digest: &[u8]| {
            Some(LaneRow { epoch, last_seq, digest: digest.to_vec(), ..LaneRow::default() })
        };
        let ours = batch.digest();
        // Our epoch is 3, the batch is (5, 9].
        let table = [
            (Some(3), row(3, 9, &ours), Miss::AlreadyApplied, "a cut COMMIT"),
            (Some(3), row(3, 9, &other), Miss::Reused, "another frame with our number"),
            (Some(3), row(3, 7, &other), Miss::Moved, "inside the range"),
            (Some(3), row(3, 12, &other), Miss::Moved, "past the range"),
            (Some(3), row(3, 2, &other), Miss::Moved, "before the range: the database lost commits"),
            (Some(3), row(3, 5, &other), Miss::Moved, "at the start: it moved between the two looks"),
            (Some(4), row(4, 9, &ours), Miss::Fenced, "applied, and taken over since"),
            (Some(4), row(3, 5, &other), Miss::Fenced, "the take-over has not reached the lane yet"),
            (Some(4), None, Miss::WentBack, "no lane"),
            (None, row(3, 5, &other), Miss::WentBack, "no writer"),
            (Some(2), row(2, 5, &other), Miss::WentBack, "restored to before our take-over"),
            (Some(3), row(2, 5, &other), Miss::WentBack, "the lane's row is older than our take-over"),
        ];
        let begun_anew = row(3, 9, &ours);
        assert_eq!(on_miss(3, 1, Some(3), begun_anew.as_ref(), &batch), Miss::WentBack, "another lane_id");
        for (writer_epoch, row, miss, why) in table {
            assert_eq!(on_miss(3, 0, writer_epoch, row.as_ref(), &batch), miss, "{why}");
        }
    }
}
