//! The journal, followed: durable frames of all lanes, decoded, in the order of their numbers, from anywhere to the live
//! edge and on. What live tails and alerts see.
//!
//! - It is how a flusher reads that has fallen behind: nobody waits for it, and it sees nothing that a crash takes back.
//! - What is damaged, or left the journal before it was read, is missing between two frames; a [`Position`] says how much.

pub mod position;

use std::io;

use logweir_engine::chunk::Chunk;
use logweir_engine::codec::{self, PAYLOAD_BYTES_MAX};
use logweir_engine::journal::{AppendError, Frame, Journal, LaneId, Reader};
use tokio::time::{Duration, sleep};

pub use position::Position;

/// After the disk has refused a read.
const READ_AGAIN: Duration = Duration::from_secs(1);

/// One frame.
#[derive(Debug)]
pub struct DurableFrame {
    /// Its number.
    pub seq: u64,
    /// Its lane.
    pub lane: LaneId,
    /// Records of the lane before it.
    pub records_before: u64,
    /// Its records.
    pub chunk: Chunk,
}

impl DurableFrame {
    /// Records of the lane up to its end.
    #[must_use]
    pub fn records_after(&self) -> u64 {
        self.records_before + self.chunk.len() as u64
    }
}

/// The most bytes that a follower holds that reads `read_bytes` at once: as read, and decoded. One frame may be larger.
#[must_use]
pub fn memory_bytes_max(read_bytes: usize) -> usize {
    2 * (read_bytes + PAYLOAD_BYTES_MAX)
}

/// Somebody on the way.
pub struct Follower {
    journal: Journal,
    /// Missing while it reads, and after a read that failed.
    reader: Option<Reader>,
    after_seq: u64,
    /// What was durable when it last began to read.
    looked_to: u64,
    read_bytes: usize,
}

impl Follower {
    /// Follows `journal` from behind the frame `after_seq`, about `read_bytes` at a time.
    #[must_use]
    pub fn new(journal: Journal, after_seq: u64, read_bytes: usize) -> Self {
        Self { journal, reader: None, after_seq, looked_to: after_seq, read_bytes }
    }

    /// The frames that come next, read on a thread that may wait for the disk. None at the durable edge: see
    /// [`Follower::more`].
    pub async fn next(&mut self) -> Vec<DurableFrame> {
        loop {
            let mut reader = self.reader.take().unwrap_or_else(|| self.journal.reader_of_all(self.after_seq));
            let (durable, read_bytes) = (self.journal.durable_now().0, self.read_bytes);
            let read = tokio::task::spawn_blocking(move || {
                let frames = reader.next_frames(usize::MAX, read_bytes)?;
                Ok::<_, io::Error>((reader, frames.into_iter().filter_map(decode).collect()))
            });
            let why = match read.await {
                Ok(Ok((reader, frames))) => {
                    (self.after_seq, self.looked_to) = (reader.after_seq(), durable);
                    self.reader = Some(reader);
                    return frames;
                }
                Ok(Err(error)) => error.to_string(),
                Err(error) => error.to_string(),
            };
            tracing::warn!(error = why, "the journal cannot be read by those who follow it: trying again");
            sleep(READ_AGAIN).await;
        }
    }

    /// Waits until there may be more than was read.
    ///
    /// # Errors
    /// There never will be: the journal has ended.
    pub async fn more(&self) -> Result<(), AppendError> {
        self.journal.durable_beyond(self.looked_to).await
    }
}

/// What does not decode is left out.
fn decode(frame: Frame) -> Option<DurableFrame> {
    let chunk = codec::decode(frame.codec, &frame.payload).ok()?;
    let records_before = frame.lane_records.saturating_sub(chunk.len() as u64);
    Some(DurableFrame { seq: frame.seq, lane: frame.lane, records_before, chunk })
}
