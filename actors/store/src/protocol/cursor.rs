//! Why a flush's compare-and-set matched no row. Pure: takes the rows, returns the decision.
//!
//! The compare-and-set requires this process's epoch, and the cursor and the number of accounted records at which the
//! batch starts; if it starts inside of a frame, also that frame's digest. It waits for a zombie transaction that holds
//! the row, so that what is read after it is final: the zombie has committed or has ended.

use crate::batch::Batch;
use crate::digest::Digest;
use crate::lane::LaneRow;

/// Why a compare-and-set matched no row.
#[derive(Debug, PartialEq, Eq)]
pub enum CursorMismatch {
    /// The batch is already committed: the response to an earlier COMMIT was lost.
    AlreadyApplied,
    /// The writer has a later epoch.
    Fenced,
    /// The database does not know this epoch, this lane or its `lane_id`: it was restored to an earlier time. A retry
    /// does not help; the lease must be acquired again.
    Rewound,
    /// The cursor is elsewhere: the flusher rebuilds its range from there.
    Moved,
    /// This sequence number was used for another frame: the cursor is at the end of the batch, or inside of a frame that
    /// the batch begins or ends in, but the digest is another one.
    Reused(u64),
}

/// Classifies the mismatch. `mine` and `lane_id` are this process's values, `writer_epoch` comes from the writer's row
/// and `row` is the lane's; `None` if that row does not exist.
#[must_use]
pub fn on_cursor_mismatch(
    mine: i64,
    lane_id: i64,
    writer_epoch: Option<i64>,
    row: Option<&LaneRow>,
    batch: &Batch,
) -> CursorMismatch {
    let (Some(writer_epoch), Some(row)) = (writer_epoch, row) else { return CursorMismatch::Rewound };
    let epoch = writer_epoch.max(row.epoch);
    if epoch > mine {
        return CursorMismatch::Fenced;
    }
    if row.epoch < mine || writer_epoch < mine || row.lane_id != lane_id {
        return CursorMismatch::Rewound;
    }
    if let Some(begun) = batch.begun()
        && (row.last_seq, row.accounted()) == (batch.from_seq, batch.from_records)
        && row.partial() > 0
        && row.digest.frame() != begun.digest().frame()
    {
        return CursorMismatch::Reused(begun.seq);
    }
    if row.last_seq != batch.to_seq() {
        return CursorMismatch::Moved;
    }
    if row.digest == batch.digest() && row.accounted() == batch.to_records() {
        return CursorMismatch::AlreadyApplied;
    }
    // A digest says something about this batch only if both describe the same frame: the one at the cursor, or the one
    // after it of which a part is committed.
    let same_place = (row.partial() > 0) == (batch.leave() > 0) && row.digest != Digest::default();
    let same_frame = batch.frames().last().is_some_and(|frame| frame.digest().frame() == row.digest.frame());
    if same_place && !same_frame { CursorMismatch::Reused(batch.last_seq()) } else { CursorMismatch::Moved }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use logweir_record::chunk::Chunk;

    use super::*;
    use crate::batch::BatchFrame;

    #[test]
    fn a_cursor_mismatch_has_one_cause_for_each_state_of_the_rows() {
        let frame =
            BatchFrame { seq: 9, lane_records: 0, payload_crc: 77, dedup_key: None, chunk: Arc::new(Chunk::default()) };
        let batch = Batch::new(0, 5, 0, 0, vec![frame]);
        let other = Digest::of_frame(1, 0, 0);
        let row = |epoch, last_seq, digest: &Digest| {
            Some(LaneRow { epoch, last_seq, digest: digest.clone(), ..LaneRow::default() })
        };
        let ours = batch.digest();
        // This process's epoch is 3, the batch is (5, 9].
        let table = [
            (Some(3), row(3, 9, &ours), CursorMismatch::AlreadyApplied, "a COMMIT whose response was lost"),
            (Some(3), row(3, 9, &other), CursorMismatch::Reused(9), "another frame with the same sequence number"),
            (Some(3), row(3, 7, &other), CursorMismatch::Moved, "inside the range"),
            (Some(3), row(3, 12, &other), CursorMismatch::Moved, "past the range"),
            (Some(3), row(3, 2, &other), CursorMismatch::Moved, "before the range: the database lost commits"),
            (Some(3), row(3, 5, &other), CursorMismatch::Moved, "at the start: it moved between the two reads"),
            (
                Some(4),
                row(4, 9, &ours),
                CursorMismatch::Fenced,
                "committed, then the lease was acquired by another process",
            ),
            (Some(4), row(3, 5, &other), CursorMismatch::Fenced, "the takeover has not reached the lane yet"),
            (Some(4), None, CursorMismatch::Rewound, "no row for the lane"),
            (None, row(3, 5, &other), CursorMismatch::Rewound, "no row for the writer"),
            (Some(2), row(2, 5, &other), CursorMismatch::Rewound, "restored to a time before the lease was acquired"),
            (Some(3), row(2, 5, &other), CursorMismatch::Rewound, "the lane's row is older than the lease"),
        ];
        let reset_lane = row(3, 9, &ours);
        assert_eq!(
            on_cursor_mismatch(3, 1, Some(3), reset_lane.as_ref(), &batch),
            CursorMismatch::Rewound,
            "another lane_id"
        );
        for (writer_epoch, row, miss, why) in table {
            assert_eq!(on_cursor_mismatch(3, 0, writer_epoch, row.as_ref(), &batch), miss, "{why}");
        }
    }
}
