//! The writer: one OS thread that owns the active segment's file.
//!
//! - Group commit: it takes the queued frames, at least one, writes them with one pwrite and makes them durable with
//!   one fdatasync. The next group gathers meanwhile: the window is the speed of the disk, so there is no timer to
//!   tune.
//! - A frame is acknowledged after the fdatasync that covers it has returned, in the order of sequence numbers.
//! - Disk full (ENOSPC, EDQUOT, EFBIG) before the fdatasync: the group is erased, it and all queued frames are
//!   rejected, and the sequence numbers roll back. Any other failure poisons the journal: after a failed fsync the page
//!   cache may hold what the disk does not, so nothing is retried.

use std::collections::BTreeMap;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::Receiver;
use rustix::io::Errno;
use uuid::Uuid;

use super::error::AppendError;
use super::frame::{FrameHeader, Kind, Seed, header_crc, push_frame};
use super::recover::Segment;
use super::segment::{
    FORMAT_VERSION, MIN_READER_VERSION, SEGMENT_HEADER_BYTES, SegmentHeader, TERMINATOR, is_transient, publish_spare,
    sync_data, write_zeros,
};
use super::shared::{Item, Shared, SpareFile, locked};
use super::state::Place;
use super::types::{LaneId, LaneTail};
use crate::file_system::File;
use crate::{clock, fault};

/// Limit for the payload bytes of a group.
const GROUP_BYTES_MAX: usize = 1 << 20;
/// Limit for the frames of a group.
const GROUP_FRAMES_MAX: usize = 1024;
/// The write buffer is freed when one large frame has grown it beyond this.
const BUFFER_BYTES_MAX: usize = 2 << 20;

pub(super) const PANICKED: &str = "the writer thread has panicked";

/// Why a group is not on disk.
enum Failed {
    Full(io::Error),
    Broken(&'static str, io::Error),
}

impl Failed {
    fn from(action: &'static str) -> impl Fn(io::Error) -> Self {
        move |error| if is_transient(&error) { Self::Full(error) } else { Self::Broken(action, error) }
    }
}

/// State of the thread.
pub(super) struct Writer {
    pub(super) shared: Arc<Shared>,
    pub(super) queue: Receiver<Item>,
    pub(super) writer: Uuid,
    pub(super) run_seq: u64,
    pub(super) file: Box<dyn File>,
    pub(super) number: u64,
    /// Size of the file.
    pub(super) size: u64,
    /// Last durable sequence number, and the end of its frame.
    pub(super) seq: u64,
    pub(super) offset: u64,
    /// Header CRC of the last frame.
    pub(super) crc_last: u32,
    /// Taken from the queue, but part of the next group.
    pub(super) pending: Option<Item>,
    pub(super) buffer: Vec<u8>,
}

impl Writer {
    /// Runs the writer. A panic would leave callers waiting forever: it poisons the journal instead.
    pub(super) fn guarded_run(self) -> Result<(), AppendError> {
        let shared = self.shared.clone();
        catch_unwind(AssertUnwindSafe(|| self.run())).unwrap_or_else(|_| {
            shared.poison(PANICKED.to_owned());
            Err(AppendError::Poisoned(PANICKED.to_owned()))
        })
    }

    /// Runs until the journal closes the queue, then writes a SEAL if one is requested.
    fn run(mut self) -> Result<(), AppendError> {
        while let Some(first) = self.pending.take().or_else(|| self.queue.recv().ok()) {
            if self.commit_group(first) {
                self.shared.roll_back();
            }
        }
        match self.shared.poison_reason() {
            Some(reason) => Err(AppendError::Poisoned(reason)),
            None if self.shared.wants_seal() => self.seal(),
            None => Ok(()),
        }
    }

    /// Writes the next group, if anything is queued. Returns whether there was, and whether the caller must roll back.
    #[cfg(feature = "faults")]
    pub(super) fn guarded_step(&mut self) -> Option<bool> {
        let first = self.pending.take().or_else(|| self.queue.try_recv().ok())?;
        let shared = self.shared.clone();
        Some(catch_unwind(AssertUnwindSafe(|| self.commit_group(first))).unwrap_or_else(|_| {
            shared.poison(PANICKED.to_owned());
            false
        }))
    }

    /// Makes the group that `first` begins durable, and answers its callers. Returns true if the disk was full: nothing
    /// is queued any more, and the caller must roll back.
    #[must_use]
    fn commit_group(&mut self, first: Item) -> bool {
        let group = self.next_group(first);
        if let Some(reason) = self.shared.poison_reason() {
            self.fail_all(group, &AppendError::Poisoned(reason));
            return false;
        }
        match self.make_durable(&group) {
            Ok(()) => self.acknowledge(group),
            Err(Failed::Full(error)) => {
                self.reject_group(group, &error);
                return true;
            }
            Err(Failed::Broken(action, error)) => self.poison(group, action, &error),
        }
        false
    }

    /// Returns the frames of the next group; all belong to one segment.
    fn next_group(&mut self, first: Item) -> Vec<Item> {
        let segment = first.place.segment;
        let mut bytes = first.payload.len();
        let mut group = vec![first];
        while bytes < GROUP_BYTES_MAX && group.len() < GROUP_FRAMES_MAX {
            let Ok(item) = self.queue.try_recv() else { break };
            if item.place.segment != segment || bytes + item.payload.len() > GROUP_BYTES_MAX {
                self.pending = Some(item);
                break;
            }
            bytes += item.payload.len();
            group.push(item);
        }
        group
    }

    /// Writes the group, in a new segment if necessary, and fsyncs it.
    fn make_durable(&mut self, group: &[Item]) -> Result<(), Failed> {
        let first = &group[0];
        if first.place.segment != self.number {
            self.rotate(first.place.segment, first.header.seq)?;
        }
        self.write(group)?;
        if fault::armed("mutation.ack_before_fsync") {
            return Ok(());
        }
        self.sync()
    }

    fn write(&mut self, group: &[Item]) -> Result<(), Failed> {
        let seed = Seed::new(self.writer, self.number);
        let durable_upto = self.seq;
        self.buffer.clear();
        let mut crc = self.crc_last;
        for (item, seq) in group.iter().zip(self.seq + 1..) {
            let place = Place { segment: self.number, offset: self.offset + self.buffer.len() as u64 };
            // Anything else would overwrite what is acknowledged, or leave a hole in front of what is about to be.
            assert_eq!((item.place, item.header.seq), (place, seq), "queue and file disagree about the next frame");
            let header = FrameHeader { durable_upto, ..item.header }.encode(seed);
            crc = header_crc(&header);
            push_frame(&mut self.buffer, &header, &item.payload);
        }
        let offset = self.offset;
        terminate(&mut self.buffer, offset, self.size);
        fault::kill_point("journal.append.before");
        if let Err(error) = write_group(&*self.file, &self.buffer, offset) {
            return Err(self.erase_partial_write(offset, error));
        }
        fault::kill_point("journal.append.after");
        self.crc_last = crc;
        if self.buffer.capacity() > BUFFER_BYTES_MAX {
            self.buffer = Vec::new();
        }
        Ok(())
    }

    /// After a write on a full disk: the part of the group that was written must not look like frames.
    fn erase_partial_write(&self, offset: u64, error: io::Error) -> Failed {
        if !is_transient(&error) {
            return Failed::Broken("write the journal", error);
        }
        let size = match self.file.metadata() {
            Ok(metadata) => metadata.bytes,
            Err(error) => return Failed::Broken("stat the segment", error),
        };
        let end = offset + self.buffer.len() as u64;
        let cleared = write_zeros(&*self.file, offset, end)
            .or_else(|_| self.file.set_len(offset))
            .and_then(|()| self.file.set_len(size));
        match cleared {
            Ok(()) => Failed::Full(error),
            Err(error) => Failed::Broken("erase a partial write on a full disk", error),
        }
    }

    fn sync(&self) -> Result<(), Failed> {
        fault::kill_point("journal.fsync.before");
        let started = Instant::now();
        // A full disk is as bad as any other failure at this point: what is on disk is unknown.
        sync_data(&*self.file).map_err(|error| Failed::Broken("fsync the journal", error))?;
        metrics::histogram!("logweir_journal_fsync_seconds").record(started.elapsed().as_secs_f64());
        fault::kill_point("journal.fsync.after");
        Ok(())
    }

    /// Continues in a new segment. The old one is completely on disk before the new one has a name.
    fn rotate(&mut self, number: u64, first_seq: u64) -> Result<(), Failed> {
        sync_data(&*self.file).map_err(|error| Failed::Broken("fsync the full segment", error))?;
        // Locked until the spare has been renamed: the housekeeper creates the next one under the old name.
        let shared = self.shared.clone();
        let mut spare = locked(&shared.spare);
        let SpareFile { file, reused } = shared.take_spare(&mut spare).map_err(Failed::from("create a segment"))?;
        let header = SegmentHeader {
            format_version: FORMAT_VERSION,
            min_reader_version: MIN_READER_VERSION,
            reused,
            writer: self.writer,
            number,
            first_seq,
            created_at_us: clock::wall_us(),
            prev_seq_last: self.seq,
            prev_crc: self.crc_last,
            run_seq: self.run_seq,
        };
        let size = file.metadata().map_err(|error| Failed::Broken("stat a new segment", error))?.bytes;
        let mut head = header.encode(&self.shared.identity()).to_vec();
        terminate(&mut head, 0, size);
        file.write_all_at(&head, 0).map_err(Failed::from("write a segment header"))?;
        sync_data(&*file).map_err(|error| Failed::Broken("fsync a segment header", error))?;
        if let Err(error) = publish_spare(&self.shared.dir, number) {
            // Once the new name exists, frames appended to the old segment would be superseded.
            let named = self.shared.dir.file_system().exists(&self.shared.dir.segment(number));
            return Err(if is_transient(&error) && !named {
                Failed::Full(error)
            } else {
                Failed::Broken("rename a new segment into place", error)
            });
        }
        drop(spare);
        let offset = SEGMENT_HEADER_BYTES as u64;
        let segment = Segment {
            path: self.shared.dir.segment(number),
            size,
            end: offset,
            seed: Seed::new(self.writer, number),
            first_seq,
            lanes: BTreeMap::new(),
            committed_at: None,
        };
        self.file = file;
        self.number = number;
        self.size = size;
        self.offset = offset;
        self.shared.segment_added(number, segment);
        Ok(())
    }

    /// The group is durable: publishes it, then calls its waiters in order.
    fn acknowledge(&mut self, group: Vec<Item>) {
        let mut lanes: BTreeMap<LaneId, LaneTail> = BTreeMap::new();
        let mut bytes = 0;
        for Item { header, place, .. } in &group {
            self.seq = header.seq;
            self.offset = place.offset + header.frame_bytes();
            bytes += u64::from(header.payload_len);
            if header.kind == Kind::Data {
                lanes.insert(header.lane, LaneTail { seq: header.seq, records: header.lane_records });
            }
        }
        metrics::counter!("logweir_journal_appended_frames_total").increment(group.len() as u64);
        metrics::counter!("logweir_journal_appended_bytes_total").increment(bytes);
        metrics::histogram!("logweir_journal_group_frames").record(group.len() as f64);
        self.shared.mark_durable(self.seq, self.offset, &lanes);
        fault::kill_point("journal.ack.before");
        self.answer(group, &Ok(()));
        fault::kill_point("journal.ack.after");
        if fault::armed("mutation.ack_before_fsync") {
            let _ = self.sync();
        }
    }

    /// Disk full: rejects the group and all queued frames.
    fn reject_group(&mut self, group: Vec<Item>, error: &io::Error) {
        let segment = self.number;
        tracing::warn!(%error, segment, "the journal's disk is full; rejecting appends until space is available");
        self.shared.write_failed();
        metrics::counter!("logweir_journal_disk_full_failures_total").increment(1);
        self.fail_all(group, &AppendError::DiskFull);
    }

    fn poison(&mut self, group: Vec<Item>, action: &'static str, error: &io::Error) {
        let reason = format!("cannot {action} (segment {}): {error}", self.number);
        tracing::error!(reason, "the journal is poisoned: nothing is acknowledged until a restart");
        self.shared.poison(reason.clone());
        self.fail_all(group, &AppendError::Poisoned(reason));
    }

    /// Fails everything in the queue, in order. Nothing can enter it any more.
    fn fail_all(&mut self, group: Vec<Item>, error: &AppendError) {
        self.answer(group, &Err(error.clone()));
        let pending = self.pending.take().into_iter().collect();
        self.answer(pending, &Err(error.clone()));
        while let Ok(item) = self.queue.try_recv() {
            self.answer(vec![item], &Err(error.clone()));
        }
    }

    /// Calls the waiters. A waiter that panics must not prevent the calls of the others.
    fn answer(&self, group: Vec<Item>, result: &Result<(), AppendError>) {
        for Item { header, payload, waiter, .. } in group {
            let Some((on_durable, credit)) = waiter else { continue };
            let settle = || on_durable.settle(result.clone().map(|()| header.seq));
            if catch_unwind(AssertUnwindSafe(settle)).is_err() {
                tracing::error!("the wake-up of a task that waits for the journal panicked");
            }
            self.shared.dequeued(payload.len());
            drop(credit);
        }
    }

    /// Writes the last frame of the run, into the space that the segment reserves for it.
    fn seal(&mut self) -> Result<(), AppendError> {
        let sealed = sync_data(&*self.file).and_then(|()| {
            let seq = self.seq;
            let header = FrameHeader::of_run(Kind::Seal, seq + 1, seq, &[]);
            let mut seal = header.encode(Seed::new(self.writer, self.number)).to_vec();
            terminate(&mut seal, self.offset, self.size);
            self.file.write_all_at(&seal, self.offset)?;
            sync_data(&*self.file)
        });
        sealed.map_err(|error| AppendError::Poisoned(format!("cannot seal the journal: {error}")))
    }
}

/// Appends zeros to what is written at `offset` of a file of `size`, as far as they fit: they mark the end of the log.
fn terminate(bytes: &mut Vec<u8>, offset: u64, size: u64) {
    let free = size.saturating_sub(offset + bytes.len() as u64);
    let zeros = TERMINATOR.len().min(usize::try_from(free).unwrap_or(TERMINATOR.len()));
    bytes.extend_from_slice(&TERMINATOR[..zeros]);
}

fn write_group(file: &dyn File, bytes: &[u8], offset: u64) -> io::Result<()> {
    if fault::armed("journal.write.enospc") {
        file.write_all_at(&bytes[..bytes.len() / 2], offset)?;
        return Err(Errno::NOSPC.into());
    }
    file.write_all_at(bytes, offset)
}
