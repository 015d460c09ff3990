//! Internals exposed to the benchmarks.

use bytes::Bytes;

use crate::batch::Batch;
use crate::postgres::copy;
use crate::protocol::rows;
use crate::protocol::volume_counter::Counter;

/// Returns the rows of `batch` in COPY format, in the chunks that are written to the socket.
pub fn copy_rows(batch: &Batch) -> impl Iterator<Item = Bytes> {
    copy::chunks(rows::rows(batch, 1))
}

/// Returns the number of volume counters that the rows of `batch` increment.
#[must_use]
pub fn count_volume(batch: &Batch) -> usize {
    let mut volume = Counter::default();
    rows::rows(batch, 1).for_each(|row| volume.add(&row));
    volume.finish().len()
}
