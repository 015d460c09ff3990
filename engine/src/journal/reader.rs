//! Reads one lane of the running journal, or all lanes, in order, concurrently with the writer.
//!
//! - Only durable frames are read, so a crash cannot undo what a reader returned.
//! - A segment that is committed meanwhile is unlisted before its file is reused: unreadable bytes in an unlisted file
//!   are not damage, and none of its frames is needed.
//! - Bytes that cannot be read are counted and quarantined once, however many readers pass them, and skipped: after the
//!   disk was seen to answer, and they could not be read once more.

use std::io;
use std::sync::Arc;

use super::frame::{Frame, Kind, frame};
use super::salvage::UNREADABLE;
use super::scan::{Found, PAYLOAD_MISMATCH, Payloads, Scanner};
use super::shared::{Shared, View};
use super::types::LaneId;

/// Headers are small, and payloads bypass the window.
const WINDOW_BYTES: usize = 16 << 10;

/// Reads one lane, or all lanes in journal order. `Send`. Performs blocking I/O: call it on a blocking thread.
pub struct Reader {
    shared: Arc<Shared>,
    /// `None` for all lanes.
    lane: Option<LaneId>,
    after_seq: u64,
    /// The open segment and its scanner.
    open: Option<(u64, Scanner)>,
    /// Segments below this one have been read.
    from: u64,
    /// The segment and the offset of the place that is being read once more.
    again_at: Option<(u64, u64)>,
}

impl Reader {
    pub(super) fn new(shared: Arc<Shared>, lane: Option<LaneId>, after_seq: u64) -> Self {
        Self { shared, lane, after_seq, open: None, from: 0, again_at: None }
    }

    /// Sequence number after which the reader continues.
    #[must_use]
    pub fn after_seq(&self) -> u64 {
        self.after_seq
    }

    /// Skips frames up to `seq`, which are committed. A reader never moves back: create a new one instead.
    pub fn skip_to(&mut self, seq: u64) {
        self.after_seq = self.after_seq.max(seq);
    }

    /// Returns the next durable frames, until `records_max` or `bytes_max` is reached (at least one frame if there is
    /// any). Empty at the durable end. Damaged frames are skipped; the gap is visible in the next frame's
    /// `lane_prev_seq` and `lane_records`.
    ///
    /// # Errors
    /// A read failed.
    pub fn next_frames(&mut self, records_max: usize, bytes_max: usize) -> io::Result<Vec<Frame>> {
        let mut frames = Vec::new();
        let (mut records, mut bytes) = (0, 0);
        while (records < records_max && bytes < bytes_max) || frames.is_empty() {
            let Some(frame) = self.next_frame()? else { break };
            records += frame.records as usize;
            bytes += frame.payload.len();
            frames.push(frame);
        }
        Ok(frames)
    }

    fn next_frame(&mut self) -> io::Result<Option<Frame>> {
        while let Some(view) = self.shared.view(self.lane, self.after_seq, self.from) {
            let next = self.next_in(&view);
            if next.is_err() {
                // The scanner remembers what it could not read, and has passed it.
                self.open = None;
            }
            if let Some(frame) = next? {
                self.after_seq = frame.seq;
                return Ok(Some(frame));
            }
            if view.active {
                return Ok(None);
            }
            self.from = view.number + 1;
        }
        Ok(None)
    }

    /// Returns the lane's next frame in one segment.
    fn next_in(&mut self, view: &View) -> io::Result<Option<Frame>> {
        if self.open.as_ref().is_none_or(|(number, _)| *number != view.number) {
            let file = match self.shared.dir.read(&view.path) {
                Ok(file) => file,
                // Committed and removed meanwhile: none of its frames is needed.
                Err(error) if error.kind() == io::ErrorKind::NotFound && !self.shared.is_listed(view.number) => {
                    return Ok(None);
                }
                Err(error) => return Err(error),
            };
            let scanner = Scanner::new(file, view.seed, Payloads::Skip, WINDOW_BYTES, view.end);
            self.open = Some((view.number, scanner));
        }
        let Some((_, scanner)) = &mut self.open else { return Ok(None) };
        scanner.extend(view.end);
        let mut seq_before = self.after_seq;
        while let Some(found) = scanner.next()? {
            let (offset, header) = match found {
                Found::Frame { offset, header, .. } => (offset, header),
                Found::Bad { .. } if !self.shared.is_listed(view.number) => return Ok(None),
                Found::Bad { offset, bytes, reason, unreadable, .. } => {
                    if unreadable && is_back(&self.shared, &mut self.again_at, scanner, (view.number, offset))? {
                        continue;
                    }
                    let seq_next = peek_seq(scanner)?.unwrap_or(view.seq_last + 1).max(seq_before + 1);
                    self.shared.report_damage(view, offset, bytes, seq_before + 1, seq_next - 1, reason);
                    seq_before = seq_next - 1;
                    continue;
                }
            };
            seq_before = header.seq;
            let other_lane = self.lane.is_some_and(|lane| lane != header.lane);
            if header.kind != Kind::Data || other_lane || header.seq <= self.after_seq {
                continue;
            }
            match scanner.payload(&header, offset)? {
                Some(payload) => return Ok(Some(frame(&header, payload))),
                None if !self.shared.is_listed(view.number) => return Ok(None),
                None => {
                    let (bytes, seq) = (header.frame_bytes(), header.seq);
                    let unreadable = scanner.is_unreadable(&header, offset);
                    if unreadable && is_back(&self.shared, &mut self.again_at, scanner, (view.number, offset))? {
                        continue;
                    }
                    let reason = if unreadable { UNREADABLE } else { PAYLOAD_MISMATCH };
                    self.shared.report_damage(view, offset, bytes, seq, seq, reason);
                }
            }
        }
        Ok(None)
    }
}

/// Whether a place that could not be read is to be read once more, since all of the disk may have been away: the first
/// time, if the disk answers. An error if it does not.
fn is_back(
    shared: &Shared,
    again_at: &mut Option<(u64, u64)>,
    scanner: &mut Scanner,
    place: (u64, u64),
) -> io::Result<bool> {
    shared.dir.check_disk()?;
    let first = again_at.replace(place) != Some(place);
    if first {
        scanner.read_again(place.1);
    }
    Ok(first)
}

/// Returns the sequence number of the next frame without advancing.
fn peek_seq(scanner: &mut Scanner) -> io::Result<Option<u64>> {
    let offset = scanner.offset();
    let mut seq = None;
    while let Some(found) = scanner.next()? {
        if let Found::Frame { header, .. } = found {
            seq = Some(header.seq);
            break;
        }
    }
    scanner.seek(offset);
    Ok(seq)
}
