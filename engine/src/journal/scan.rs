//! Iterates over the frames of one segment file, in order, whatever its bytes are.
//!
//! - Memory is one window; a payload is verified through it and never held.
//! - Only bytes below `end` are read. They never change, so a window stays valid while the writer appends behind it.
//! - A flipped bit in a header is repaired, if the payload then matches; so is one in the payload of a frame that belongs
//!   to no lane. A flipped bit in the payload of records costs the frame.
//! - A place without a readable frame is reported and skipped: the next valid header is searched at each multiple of 8.
//!   Whether it is a torn write or damage is not decided here.

use std::io;

use memchr::memmem::Finder;

use super::bit_flip::{self, flip};
use super::dedup_index::DedupKey;
use super::frame::{FRAME_ALIGN, FRAME_HEADER_BYTES, FrameHeader, Kind, MAGIC_BYTES, Seed, header_crc};
use super::salvage::{Salvage, UNREADABLE};
use super::segment::{SEGMENT_HEADER_BYTES, TERMINATOR, TORN_BYTES_MAX, ZEROS};
use crate::file_system::File;

/// Window for reading everything.
pub(super) const WINDOW_BYTES: usize = 256 << 10;
/// Window for reading headers only.
pub(super) const HOP_BYTES: usize = 4 << 10;

/// Why a frame with a valid header is bad.
pub(super) const PAYLOAD_MISMATCH: &str = "the payload's CRC does not match";
/// Largest payload in which a flipped bit is repaired; in a larger one, other damage would too often pass for one.
const REPAIRED_BYTES_MAX: usize = 64 << 10;

/// A cached range of a file.
struct Window {
    file: Salvage,
    bytes: Vec<u8>,
    start: u64,
    size: usize,
}

impl Window {
    /// Returns `len` bytes at `offset`, fewer at `end` or at the end of the file.
    fn get(&mut self, offset: u64, len: usize, end: u64) -> io::Result<&[u8]> {
        let len = len.min(usize::try_from(end.saturating_sub(offset)).unwrap_or(usize::MAX));
        let covered = offset >= self.start && offset + len as u64 <= self.start + self.bytes.len() as u64;
        if !covered {
            self.load(offset, self.size.max(len), end)?;
        }
        let from = usize::try_from(offset - self.start).expect("the window is small");
        Ok(&self.bytes[from..self.bytes.len().min(from + len)])
    }

    fn load(&mut self, offset: u64, want: usize, end: u64) -> io::Result<()> {
        let want = want.min(usize::try_from(end.saturating_sub(offset)).unwrap_or(usize::MAX));
        self.start = offset;
        if self.bytes.len() < want {
            // Pages of zeros cost less than writing zeros.
            self.bytes = vec![0; want];
        }
        self.bytes.truncate(want);
        let read = self.file.read(&mut self.bytes, offset);
        self.bytes.truncate(*read.as_ref().unwrap_or(&0));
        read.map(|_| ())
    }
}

/// Whether payloads are verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Payloads {
    Check,
    Skip,
}

/// The content of one place in a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// A frame, with a matching payload if payloads are verified. `repaired` if its header has a flipped bit.
    Frame { offset: u64, header: FrameHeader, crc: u32, repaired: bool },
    /// Bytes that are not a frame, up to the next frame or the last nonzero byte; with the header if only the payload is
    /// bad. `unreadable`: at least a part of them could not be read.
    Bad { offset: u64, bytes: u64, reason: &'static str, header: Option<FrameHeader>, unreadable: bool },
}

/// Iterator over one segment file.
pub(super) struct Scanner {
    window: Window,
    seed: Seed,
    payloads: Payloads,
    offset: u64,
    end: u64,
    /// Whether stale bytes follow the last frame.
    reused: bool,
}

impl Scanner {
    /// Creates a scanner that reads from the first frame up to `end`.
    pub(super) fn new(file: Box<dyn File>, seed: Seed, payloads: Payloads, window_bytes: usize, end: u64) -> Self {
        let window = Window { file: Salvage::new(file), bytes: Vec::new(), start: 0, size: window_bytes };
        Self { window, seed, payloads, offset: SEGMENT_HEADER_BYTES as u64, end, reused: false }
    }

    /// For a reused file: zeros where a frame is expected are its end, whatever follows them.
    pub(super) fn reused(self, reused: bool) -> Self {
        Self { reused, ..self }
    }

    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    /// Continues at `offset`.
    pub(super) fn seek(&mut self, offset: u64) {
        self.offset = offset;
    }

    /// Continues at `offset`, and reads what could not be read once more.
    pub(super) fn read_again(&mut self, offset: u64) {
        self.window.bytes.clear();
        self.window.file.forget();
        self.offset = offset;
    }

    /// The writer has appended: bytes below `end` may be read now.
    pub(super) fn extend(&mut self, end: u64) {
        self.end = self.end.max(end);
    }

    /// Returns the next frame, or the next place that should be one. `None` if only zeros follow.
    pub(super) fn next(&mut self) -> io::Result<Option<Found>> {
        let offset = self.offset;
        let bytes = self.window.get(offset, FRAME_HEADER_BYTES, self.end)?;
        let Some(header) = FrameHeader::decode(bytes, self.seed) else {
            let repaired = FrameHeader::repair_bit_flip(bytes, self.seed);
            return match repaired {
                Some(header) if self.is_whole(&header, offset)? => {
                    self.offset = offset + header.frame_bytes();
                    let crc = header_crc(&header.encode(self.seed));
                    Ok(Some(Found::Frame { offset, header, crc, repaired: true }))
                }
                _ => self.resync(),
            };
        };
        let crc = header_crc(bytes.try_into().expect("a decoded header has its length"));
        let end = offset + header.frame_bytes();
        if end > self.end {
            self.offset = self.end;
            let bytes = self.end - offset;
            return Ok(Some(self.bad(offset, bytes, "the frame is truncated", Some(header))));
        }
        self.offset = end;
        let checked = self.payloads == Payloads::Check;
        if checked && !self.payload_matches(&header, offset)? && self.run_payload(&header, offset)?.is_none() {
            let bytes = header.frame_bytes();
            return Ok(Some(self.bad(offset, bytes, PAYLOAD_MISMATCH, Some(header))));
        }
        Ok(Some(Found::Frame { offset, header, crc, repaired: false }))
    }

    /// Whether all of the frame is there, with a matching payload.
    fn is_whole(&mut self, header: &FrameHeader, offset: u64) -> io::Result<bool> {
        Ok(offset + header.frame_bytes() <= self.end && self.payload_matches(header, offset)?)
    }

    /// Reads the payload of a frame that belongs to no lane, and whether a flipped bit was repaired in it. `None` if it is
    /// damaged, and for a data frame.
    pub(super) fn run_payload(&mut self, header: &FrameHeader, offset: u64) -> io::Result<Option<(Vec<u8>, bool)>> {
        if header.kind == Kind::Data {
            return Ok(None);
        }
        let mut payload = vec![0; header.payload_len as usize];
        let read = self.window.file.read(&mut payload, offset + FRAME_HEADER_BYTES as u64)?;
        if read == payload.len() && crc32c::crc32c(&payload) == header.payload_crc {
            return Ok(Some((payload, false)));
        }
        if read < payload.len() || payload.len() > REPAIRED_BYTES_MAX || self.is_unreadable(header, offset) {
            return Ok(None);
        }
        Ok(bit_flip::find(&payload, header.payload_crc).map(|bit| {
            flip(&mut payload, bit);
            (payload, true)
        }))
    }

    /// Reads the payload of a frame; `None` if its CRC does not match.
    pub(super) fn payload(&mut self, header: &FrameHeader, offset: u64) -> io::Result<Option<Vec<u8>>> {
        let mut payload = vec![0; header.payload_len as usize];
        let read = self.window.file.read(&mut payload, offset + FRAME_HEADER_BYTES as u64)?;
        let matches = read == payload.len() && crc32c::crc32c(&payload) == header.payload_crc;
        Ok(matches.then_some(payload))
    }

    /// Whether a part of a frame could not be read, so far.
    pub(super) fn is_unreadable(&self, header: &FrameHeader, offset: u64) -> bool {
        self.window.file.is_unreadable(&(offset..offset + header.frame_bytes()))
    }

    fn bad(&self, offset: u64, bytes: u64, reason: &'static str, header: Option<FrameHeader>) -> Found {
        let unreadable = self.window.file.is_unreadable(&(offset..offset + bytes));
        Found::Bad { offset, bytes, reason: if unreadable { UNREADABLE } else { reason }, header, unreadable }
    }

    /// Reads the dedup key at the start of a frame's payload.
    pub(super) fn dedup_key(&mut self, header: &FrameHeader, offset: u64) -> io::Result<Option<DedupKey>> {
        if !header.has_dedup_key {
            return Ok(None);
        }
        self.window.get(offset + FRAME_HEADER_BYTES as u64, DedupKey::BYTES, self.end).map(DedupKey::decode)
    }

    /// Passes the payload to `piece`, in pieces that fit into the window.
    pub(super) fn stream_payload(
        &mut self,
        header: &FrameHeader,
        offset: u64,
        mut piece: impl FnMut(&[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut at = offset + FRAME_HEADER_BYTES as u64;
        let end = at + u64::from(header.payload_len);
        while at < end {
            let want = self.window.size.min(usize::try_from(end - at).unwrap_or(usize::MAX));
            let bytes = self.window.get(at, want, self.end)?;
            if bytes.is_empty() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            piece(bytes)?;
            at += bytes.len() as u64;
        }
        Ok(())
    }

    fn payload_matches(&mut self, header: &FrameHeader, offset: u64) -> io::Result<bool> {
        let mut crc = 0;
        let read = self.stream_payload(header, offset, |piece| {
            crc = crc32c::crc32c_append(crc, piece);
            Ok(())
        });
        match read {
            Ok(()) => Ok(crc == header.payload_crc),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Whether zeros stand in the place of a frame's magic.
    fn is_terminated(&mut self, offset: u64) -> io::Result<bool> {
        let bytes = self.window.get(offset, FRAME_ALIGN as usize, self.end)?;
        Ok(bytes == &TERMINATOR[..bytes.len()])
    }

    /// Searches the next valid header behind a place without one.
    fn resync(&mut self) -> io::Result<Option<Found>> {
        let (offset, end) = (self.offset, self.end);
        let reason = "no valid frame header";
        let magic = Finder::new(&MAGIC_BYTES);
        let mut at = offset;
        // The same without bytes that could not be read.
        let (mut used_end, mut read_end) = (offset, offset);
        while at < end {
            // Each block is extended by one header, so that none is missed between two blocks.
            let bytes = self.window.get(at, HOP_BYTES + FRAME_HEADER_BYTES, end)?;
            if bytes.is_empty() {
                break;
            }
            let block = bytes.len().min(HOP_BYTES);
            if bytes[..block] != ZEROS[..block] {
                let steps = magic.find_iter(bytes).take_while(|&step| step < block);
                for step in steps.filter(|&step| step.is_multiple_of(FRAME_ALIGN as usize)) {
                    if FrameHeader::decode(&bytes[step..], self.seed).is_some() {
                        let found = at + step as u64;
                        self.offset = found;
                        return Ok(Some(self.bad(offset, found - offset, reason, None)));
                    }
                }
                let last = bytes[..block].iter().rposition(|&byte| byte != 0).expect("the block is not all zeros");
                used_end = at + last as u64 + 1;
                if !self.window.file.is_unreadable(&(at..used_end)) {
                    read_end = used_end;
                }
            }
            at += block as u64;
        }
        if used_end == offset || (self.reused || read_end == offset) && self.is_terminated(offset)? {
            return Ok(None);
        }
        if self.reused {
            used_end = used_end.min(offset + TORN_BYTES_MAX);
        }
        self.offset = end;
        Ok(Some(self.bad(offset, used_end - offset, reason, None)))
    }
}
