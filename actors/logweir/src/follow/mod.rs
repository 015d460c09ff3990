//! Follows the journal: durable frames of all lanes, decoded, ordered by sequence number, from any position to the live
//! edge and beyond. Used by live tails and alerts.
//!
//! - It reads like a flusher that has fallen behind: nothing waits for it, and it sees nothing that a crash can undo.
//! - Frames that are damaged, or that left the journal before they were read, are skipped; the number of their records
//!   is the difference of two [`Position`]s.

pub mod position;

use std::io;

use logweir_engine::journal::{AppendError, Frame, Journal, LaneId, Reader};
use logweir_record::chunk::Chunk;
use logweir_record::codec::{self, PAYLOAD_BYTES_MAX};
use tokio::time::{Duration, sleep};

pub use position::{Position, TOKEN_SEPARATOR};

/// Delay before a failed read is retried.
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// A decoded frame of the journal.
#[derive(Debug)]
pub struct DurableFrame {
    /// Sequence number.
    pub seq: u64,
    /// Lane.
    pub lane: LaneId,
    /// Records of the lane before this frame.
    pub records_before: u64,
    /// Records of this frame.
    pub chunk: Chunk,
}

impl DurableFrame {
    /// Returns the records of the lane up to the end of this frame.
    #[must_use]
    pub fn records_after(&self) -> u64 {
        self.records_before + self.chunk.len() as u64
    }
}

/// Maximum memory of a follower that reads `read_bytes` at once, in bytes: raw and decoded. A single frame may be
/// larger.
#[must_use]
pub fn memory_bytes_max(read_bytes: usize) -> usize {
    2 * (read_bytes + PAYLOAD_BYTES_MAX)
}

/// A reader that follows the journal.
pub struct Follower {
    journal: Journal,
    /// `None` during a read, and after one that failed.
    reader: Option<Reader>,
    after_seq: u64,
    /// Sequence number that was durable when the last read started.
    read_to: u64,
    read_bytes: usize,
}

impl Follower {
    /// Follows `journal` after the frame `after_seq`, reading about `read_bytes` at a time.
    #[must_use]
    pub fn new(journal: Journal, after_seq: u64, read_bytes: usize) -> Self {
        Self { journal, reader: None, after_seq, read_to: after_seq, read_bytes }
    }

    /// Returns the next frames, read on a blocking thread. Empty at the durable edge: see [`Follower::more`].
    pub async fn next(&mut self) -> Vec<DurableFrame> {
        loop {
            let mut reader = self.reader.take().unwrap_or_else(|| self.journal.reader_all_lanes(self.after_seq));
            let (durable, read_bytes) = (self.journal.durable_position().0, self.read_bytes);
            let read = tokio::task::spawn_blocking(move || {
                let frames = reader.next_frames(usize::MAX, read_bytes)?;
                Ok::<_, io::Error>((reader, frames.into_iter().filter_map(decode).collect()))
            });
            let error = match read.await {
                Ok(Ok((reader, frames))) => {
                    (self.after_seq, self.read_to) = (reader.after_seq(), durable);
                    self.reader = Some(reader);
                    return frames;
                }
                Ok(Err(error)) => error.to_string(),
                Err(error) => error.to_string(),
            };
            tracing::warn!(error, "cannot read the journal for live tails and alerts: retrying");
            sleep(RETRY_DELAY).await;
        }
    }

    /// Waits until there may be more frames.
    ///
    /// # Errors
    /// The journal has ended: there will be no more.
    pub async fn more(&self) -> Result<(), AppendError> {
        self.journal.durable_beyond(self.read_to).await
    }
}

/// A frame that cannot be decoded is skipped.
fn decode(frame: Frame) -> Option<DurableFrame> {
    let chunk = codec::decode(frame.codec, &frame.payload).ok()?;
    let records_before = frame.lane_records.saturating_sub(chunk.len() as u64);
    Some(DurableFrame { seq: frame.seq, lane: frame.lane, records_before, chunk })
}
