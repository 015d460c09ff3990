//! A segment: one file of frames behind a header of 168 bytes. And the directory that contains the segments.
//!
//! ```text
//!  0 magic u64 | 8 format_version u16 | 10 min_reader_version u16 | 12 flags u32 | 16 writer uuid
//! 32 segment_no u64 | 40 first_seq u64 | 48 created_at_us i64 | 56 prev_seq_last u64 | 64 prev_crc u32
//! 68 reserved u32 | 72 run_seq u64 | 80 reserved 12 | 92 CRC-32C of bytes 0..92        (little-endian)
//! 96 identity 72, with a CRC of its own
//! ```
//!
//! - `prev_seq_last` and `prev_crc` identify the last valid frame of the previous segment: frames of older segments
//!   above it are superseded, so an old file is never modified to say so.
//! - `run_seq` is the sequence number of the run's first START frame. It is the base of the next run's jump, even if
//!   that frame cannot be read any more.
//! - A file is filled with zeros and fsynced before it is used. A later fdatasync into written blocks changes no file
//!   metadata; a sparse file would discover a full disk too late.
//! - The file of a committed segment is reused for a later one: its blocks are allocated and its pages are cached,
//!   which costs a third of writing zeros. Flag 1 marks a reused file: stale bytes follow the last frame. Their CRCs
//!   have another seed, so no stale frame is valid. Zeros directly behind a group ([`TERMINATOR`]) mark the end of the
//!   log.
//! - A new name is durable only after an fsync of the directory.

use std::ffi::OsStr;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::Errno;
use uuid::Uuid;

use super::bit_flip::flip;
use super::error::OpenError;
use super::frame::{FRAME_HEADER_BYTES, u32_at, u64_at};
use super::identity::{IDENTITY_BYTES, Identity};
use crate::fault;
use crate::file_system::{Directory, File, FileId, FileSystem, OpenMode};

/// Size of a segment header; a multiple of the frame alignment.
pub(super) const SEGMENT_HEADER_BYTES: usize = PLACE_BYTES + IDENTITY_BYTES;
/// Size of the part in front of the identity, which is the segment's place in the log.
const PLACE_BYTES: usize = 96;
/// Largest size of a segment file, in bytes: 64 MiB.
pub const SEGMENT_BYTES_MAX: u64 = 64 << 20;
/// Smallest size of a segment file, in bytes: 64 KiB. A START frame of 1024 runs and a few hundred lanes leaves most of
/// it for data.
pub const SEGMENT_BYTES_MIN: u64 = 64 << 10;
/// The format version that is written, and the latest that can be read. Version 2 adds reused files: an older reader
/// would take the stale bytes for a torn write. Version 3 adds dedup keys: an older reader would take them for payload.
/// Version 4 adds the identity: a longer header, and in START.
pub(super) const FORMAT_VERSION: u16 = 4;
/// The reader version that the written files require.
pub(super) const MIN_READER_VERSION: u16 = 4;
/// The earliest version that can be read. No release wrote an earlier one.
pub(super) const OLDEST_VERSION: u16 = 4;
/// Written behind each group, in the same write, as far as the file has space; the next group overwrites it.
pub(super) const TERMINATOR: [u8; FRAME_HEADER_BYTES] = [0; FRAME_HEADER_BYTES];
/// Limit for the bytes of a torn write that are quarantined from a reused file, where stale bytes follow: about a
/// group.
pub(super) const TORN_BYTES_MAX: u64 = 2 << 20;
const FLAG_REUSED: u32 = 1;

/// How far a new run jumps ahead of the last visible sequence number. A number whose frame was lost may already be in
/// the database and must not be assigned to other data.
pub(super) const SEQ_JUMP: u64 = 1 << 21;
// Even a segment that recovery enlarged (copied frames and a START) holds fewer frames.
const _: () = assert!(2 * SEGMENT_BYTES_MAX / FRAME_HEADER_BYTES as u64 <= SEQ_JUMP);
/// Largest sequence number: it fits into a signed 64-bit column, with space for many more restarts above.
pub(super) const SEQ_MAX: u64 = i64::MAX as u64 - (1 << 32);

/// Number of zeros written between two fdatasyncs.
const ZEROS_STEP_BYTES: u64 = 4 << 20;

const MAGIC: u64 = u64::from_le_bytes(*b"LOGWEIR\x01");
const CRC_AT: usize = 92;

/// A segment header in memory, without the identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SegmentHeader {
    pub(super) format_version: u16,
    pub(super) min_reader_version: u16,
    /// Whether stale bytes of an older segment follow the last frame.
    pub(super) reused: bool,
    pub(super) writer: Uuid,
    pub(super) number: u64,
    pub(super) first_seq: u64,
    pub(super) created_at_us: i64,
    pub(super) prev_seq_last: u64,
    pub(super) prev_crc: u32,
    pub(super) run_seq: u64,
}

impl SegmentHeader {
    /// Encodes the whole header.
    pub(super) fn encode(&self, identity: &Identity) -> [u8; SEGMENT_HEADER_BYTES] {
        let mut bytes = [0; SEGMENT_HEADER_BYTES];
        bytes[0..8].copy_from_slice(&MAGIC.to_le_bytes());
        bytes[8..10].copy_from_slice(&self.format_version.to_le_bytes());
        bytes[10..12].copy_from_slice(&self.min_reader_version.to_le_bytes());
        bytes[12..16].copy_from_slice(&if self.reused { FLAG_REUSED } else { 0 }.to_le_bytes());
        bytes[16..32].copy_from_slice(self.writer.as_bytes());
        bytes[32..40].copy_from_slice(&self.number.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.first_seq.to_le_bytes());
        bytes[48..56].copy_from_slice(&self.created_at_us.to_le_bytes());
        bytes[56..64].copy_from_slice(&self.prev_seq_last.to_le_bytes());
        bytes[64..68].copy_from_slice(&self.prev_crc.to_le_bytes());
        bytes[72..80].copy_from_slice(&self.run_seq.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..CRC_AT]);
        bytes[CRC_AT..PLACE_BYTES].copy_from_slice(&crc.to_le_bytes());
        if !fault::armed("mutation.no_identity") {
            bytes[PLACE_BYTES..].copy_from_slice(&identity.encode());
        }
        bytes
    }

    fn decode(bytes: &[u8; PLACE_BYTES]) -> Option<Self> {
        if u64_at(bytes, 0) != MAGIC || u32_at(bytes, CRC_AT) != crc32c::crc32c(&bytes[..CRC_AT]) {
            return None;
        }
        Some(Self {
            format_version: u16::from_le_bytes([bytes[8], bytes[9]]),
            min_reader_version: u16::from_le_bytes([bytes[10], bytes[11]]),
            reused: u32_at(bytes, 12) & FLAG_REUSED != 0,
            writer: Uuid::from_slice(&bytes[16..32]).ok()?,
            number: u64_at(bytes, 32),
            first_seq: u64_at(bytes, 40),
            created_at_us: u64_at(bytes, 48).cast_signed(),
            prev_seq_last: u64_at(bytes, 56),
            prev_crc: u32_at(bytes, 64),
            run_seq: u64_at(bytes, 72),
        })
    }

    /// Decodes a header with one flipped bit, by trial. Without this a single bit flip in the journal's only header
    /// would lose its identity, and with it every frame.
    fn repair_bit_flip(bytes: &[u8; PLACE_BYTES]) -> Option<Self> {
        (0..bytes.len() * 8).find_map(|bit| {
            let mut flipped = *bytes;
            flip(&mut flipped, bit);
            Self::decode(&flipped)
        })
    }
}

/// What can be read of a segment header. Both parts have a CRC of their own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct DecodedHeader {
    pub(super) header: Option<SegmentHeader>,
    pub(super) identity: Option<Identity>,
    /// Whether a part is unreadable or had a flipped bit.
    pub(super) damaged: bool,
}

impl DecodedHeader {
    pub(super) fn decode(bytes: &[u8; SEGMENT_HEADER_BYTES]) -> Self {
        let (place, identity) = bytes.split_first_chunk().expect("longer than its first part");
        let identity: &[u8; IDENTITY_BYTES] = identity.try_into().expect("its second part");
        let (header_sound, identity_sound) = (SegmentHeader::decode(place), Identity::decode(identity));
        Self {
            header: header_sound.or_else(|| SegmentHeader::repair_bit_flip(place)),
            identity: identity_sound.or_else(|| Identity::repair_bit_flip(identity)),
            damaged: header_sound.is_none() || identity_sound.is_none(),
        }
    }
}

/// Adds the path and the failed action to an I/O error.
pub(super) trait At<T> {
    fn at(self, path: &Path, action: &'static str) -> Result<T, OpenError>;
}

impl<T> At<T> for io::Result<T> {
    fn at(self, path: &Path, action: &'static str) -> Result<T, OpenError> {
        self.map_err(|source| OpenError::Io { path: path.to_owned(), action, source })
    }
}

/// Whether the error means that something is used up which others may release: space, or descriptors. The disk is not
/// broken.
pub(super) fn is_transient(error: &io::Error) -> bool {
    let no_descriptor = [Errno::MFILE, Errno::NFILE].map(Errno::raw_os_error);
    matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge)
        || error.raw_os_error().is_some_and(|code| no_descriptor.contains(&code))
}

/// The journal's directory, open, and the paths in it.
#[derive(Clone, Debug)]
pub(super) struct Dir {
    file_system: Arc<dyn FileSystem>,
    path: PathBuf,
    /// Kept open: no descriptor may be left when a new name has to be made durable.
    open: Arc<dyn Directory>,
}

impl Dir {
    pub(super) fn open(file_system: Arc<dyn FileSystem>, path: &Path) -> Result<Self, OpenError> {
        let open = file_system.open_dir(path).at(path, "open the directory")?.into();
        Ok(Self { file_system, path: path.to_owned(), open })
    }

    pub(super) fn file_system(&self) -> &dyn FileSystem {
        &*self.file_system
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn lock(&self) -> PathBuf {
        self.path.join("LOCK")
    }

    pub(super) fn spare(&self) -> PathBuf {
        self.path.join("spare.tmp")
    }

    pub(super) fn ballast(&self) -> PathBuf {
        self.path.join("ballast")
    }

    pub(super) fn quarantine(&self) -> PathBuf {
        self.path.join("quarantine")
    }

    pub(super) fn segment(&self, number: u64) -> PathBuf {
        self.path.join(format!("{number:020}.wal"))
    }

    /// Opens a file for reading.
    pub(super) fn read(&self, path: &Path) -> io::Result<Box<dyn File>> {
        self.file_system.open(path, OpenMode::Read)
    }

    /// Returns the directory or its lock file, if its path no longer leads to it. An error that says nothing about that is
    /// ignored.
    pub(super) fn gone(&self, lock: FileId) -> Option<PathBuf> {
        let leads_to = |path: &Path, id: FileId| match self.file_system.metadata(path) {
            Ok(found) => found.id == id,
            Err(error) => !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory),
        };
        let is_there = self.open.id().is_ok_and(|id| leads_to(&self.path, id));
        if !is_there {
            return Some(self.path.clone());
        }
        (!leads_to(&self.lock(), lock)).then(|| self.lock())
    }

    /// Keeps a copy of the identity in the lock file: it may be all that is left if the journal's only segment has lost
    /// its first page, and without it no frame can be recognized.
    pub(super) fn store_identity(&self, identity: &Identity) {
        let stored = self.file_system.open(&self.lock(), OpenMode::Update).and_then(|file| {
            file.write_all_at(&identity.encode(), 0)?;
            file.sync_data()
        });
        if let Err(error) = stored {
            tracing::warn!(%error, "cannot write a copy of the journal's identity to the lock file");
        }
    }

    /// Reads the copy of the identity in the lock file.
    pub(super) fn stored_identity(&self) -> Option<Identity> {
        let mut bytes = [0; IDENTITY_BYTES];
        self.read(&self.lock()).and_then(|file| file.read_exact_at(&mut bytes, 0)).ok()?;
        Identity::decode(&bytes).or_else(|| Identity::repair_bit_flip(&bytes))
    }

    /// Checks that the disk is there although a place on it cannot be read. While all of it is away, or none of it can be
    /// read, what cannot be read is not lost: the read has to be tried again, and not to be skipped.
    pub(super) fn check_disk(&self) -> io::Result<()> {
        match self.store_and_read_something() {
            Err(error) if !is_transient(&error) => Err(error),
            _ => Ok(()),
        }
    }

    fn store_and_read_something(&self) -> io::Result<()> {
        let path = self.path.join("probe.tmp");
        let stored = self.file_system.open(&path, OpenMode::Replace).and_then(|file| {
            file.write_all_at(&TERMINATOR, 0)?;
            file.sync_data()?;
            file.drop_cached()?;
            file.read_exact_at(&mut [0; TERMINATOR.len()], 0)
        });
        let _ = self.file_system.remove_file(&path);
        stored
    }

    /// Lists the segment files by the number in their name, in ascending order.
    pub(super) fn segments(&self) -> io::Result<Vec<(u64, PathBuf)>> {
        let mut found = Vec::new();
        for name in self.file_system.list(&self.path)? {
            if let Some(number) = segment_number(&name) {
                found.push((number, self.path.join(name)));
            }
        }
        found.sort_unstable();
        Ok(found)
    }

    /// Makes the directory's entries durable.
    pub(super) fn sync(&self) -> io::Result<()> {
        sync_dir(&*self.open)
    }

    /// Space available to an unprivileged process on the file system.
    pub(super) fn free_bytes(&self) -> io::Result<u64> {
        self.open.free_bytes()
    }

    /// Size of the quarantined files.
    pub(super) fn quarantine_bytes(&self) -> u64 {
        let dir = self.quarantine();
        let Ok(names) = self.file_system.list(&dir) else { return 0 };
        names.iter().filter_map(|name| self.file_system.metadata(&dir.join(name)).ok()).map(|found| found.bytes).sum()
    }
}

fn segment_number(name: &OsStr) -> Option<u64> {
    let digits = name.to_str()?.strip_suffix(".wal")?;
    (digits.len() == 20 && digits.bytes().all(|byte| byte.is_ascii_digit())).then(|| digits.parse().ok())?
}

/// Fsyncs a directory, which makes its entries durable.
pub(super) fn sync_dir(dir: &dyn Directory) -> io::Result<()> {
    if fault::armed("mutation.skip_dir_fsync") {
        return Ok(());
    }
    dir.sync()
}

/// fdatasync, with a fault point.
pub(super) fn sync_data(file: &dyn File) -> io::Result<()> {
    if fault::armed("mutation.skip_fsync") {
        return Ok(());
    }
    if fault::armed("journal.fsync.fail") {
        return Err(Errno::IO.into());
    }
    file.sync_data()
}

pub(super) static ZEROS: [u8; 1 << 18] = [0; 1 << 18];

/// Writes zeros over `from..to`.
pub(super) fn write_zeros(file: &dyn File, mut from: u64, to: u64) -> io::Result<()> {
    while from < to {
        let step = ZEROS.len().min(usize::try_from(to - from).unwrap_or(usize::MAX));
        file.write_all_at(&ZEROS[..step], from)?;
        from += step as u64;
    }
    Ok(())
}

/// Creates a file of `bytes` zeros and fsyncs it. Removes it on failure and when `stop` is set.
pub(super) fn create_zeroed(
    file_system: &dyn FileSystem,
    path: &Path,
    bytes: u64,
    stop: &AtomicBool,
) -> io::Result<Box<dyn File>> {
    fault::kill_point("journal.segment.create");
    let made = file_system.open(path, OpenMode::Replace).and_then(|file| {
        let mut at = 0;
        while at < bytes {
            if stop.load(Ordering::Relaxed) {
                return Err(ErrorKind::Interrupted.into());
            }
            let next = bytes.min(at + ZEROS_STEP_BYTES);
            write_zeros(&*file, at, next)?;
            // In steps, so that neither the writer's fdatasync nor a seal waits for 64 MiB.
            file.sync_data()?;
            at = next;
        }
        file.sync_all()?;
        Ok(file)
    });
    if made.is_err() {
        // A partial file would only take up space.
        let _ = file_system.remove_file(path);
    }
    made
}

/// Opens the spare that an earlier run left, if it has the right size and no header has been written to it. A header is
/// fdatasynced before anything else is written.
pub(super) fn open_leftover_spare(dir: &Dir, bytes: u64) -> io::Result<Option<Box<dyn File>>> {
    let path = dir.spare();
    let file = match dir.file_system().open(&path, OpenMode::Update) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut head = [0; SEGMENT_HEADER_BYTES];
    if file.metadata()?.bytes == bytes && file.read_exact_at(&mut head, 0).is_ok() && head == ZEROS[..head.len()] {
        file.sync_all()?;
        return Ok(Some(file));
    }
    dir.file_system().remove_file(&path)?;
    Ok(None)
}

/// Makes the file of a committed segment the spare. It keeps its old header, so that [`open_leftover_spare`] does not
/// take it for zeros after a crash. The old name is durably gone before anything is written to the file.
pub(super) fn reuse(dir: &Dir, old: &Path) -> io::Result<Box<dyn File>> {
    dir.file_system().rename(old, &dir.spare())?;
    fault::kill_point("journal.segment.reuse");
    let reused = dir.sync().and_then(|()| dir.file_system().open(&dir.spare(), OpenMode::Update));
    if reused.is_err() {
        let _ = dir.file_system().remove_file(&dir.spare());
    }
    reused
}

/// Renames the spare to its segment name; it is a segment only once this has returned.
pub(super) fn publish_spare(dir: &Dir, number: u64) -> io::Result<()> {
    fault::kill_point("journal.segment.rename.before");
    dir.file_system().rename(&dir.spare(), &dir.segment(number))?;
    fault::kill_point("journal.segment.rename.after");
    dir.sync()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> SegmentHeader {
        SegmentHeader {
            format_version: 1,
            min_reader_version: 1,
            reused: false,
            writer: Uuid::from_u128(0x1234),
            number: 3,
            first_seq: 100,
            created_at_us: -5,
            prev_seq_last: 99,
            prev_crc: 7,
            run_seq: 50,
        }
    }

    fn identity() -> Identity {
        let run = |n| Some(Uuid::from_u128(n));
        Identity { writer: Uuid::from_u128(0x1234), run: Uuid::from_u128(9), run_before: run(8), confirmed: run(7) }
    }

    #[test]
    fn each_flipped_bit_of_a_segment_header_is_detected_and_repaired() {
        let bytes = header().encode(&identity());
        let sound = DecodedHeader { header: Some(header()), identity: Some(identity()), damaged: false };
        assert_eq!(DecodedHeader::decode(&bytes), sound);
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(DecodedHeader::decode(&flipped), DecodedHeader { damaged: true, ..sound }, "bit {bit}");
        }
    }

    #[test]
    fn a_part_of_a_segment_header_that_is_overwritten_leaves_the_other_readable() {
        let sound = DecodedHeader { header: Some(header()), identity: Some(identity()), damaged: true };
        for (place, left) in
            [(40..48, DecodedHeader { header: None, ..sound }), (100..110, DecodedHeader { identity: None, ..sound })]
        {
            let mut bytes = header().encode(&identity());
            bytes[place].fill(0xee);
            assert_eq!(DecodedHeader::decode(&bytes), left);
        }
    }

    #[test]
    fn a_reused_file_is_flagged() {
        let reused = SegmentHeader { reused: true, ..header() };
        assert_eq!(DecodedHeader::decode(&reused.encode(&identity())).header, Some(reused));
    }

    #[test]
    fn the_segment_header_matches_the_golden_file() {
        let golden = include_str!("../../tests/golden/segment-header.hex");
        assert_eq!(super::super::frame::tests::hex(&header().encode(&identity())), golden.trim_end());
    }

    #[test]
    fn a_segment_name_is_twenty_digits_and_wal() {
        assert_eq!(segment_number(OsStr::new("00000000000000000012.wal")), Some(12));
        for name in ["12.wal", "+0000000000000000012.wal", "00000000000000000012.tmp", "99999999999999999999.wal"] {
            assert_eq!(segment_number(OsStr::new(name)), None, "{name}");
        }
    }
}
