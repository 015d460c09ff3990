//! Walks over the frames of one segment file, in order, whatever its bytes are.
//!
//! - Memory is one window; a payload is checked through it and never kept.
//! - Only bytes below `end` are looked at. What is below it never changes, so a window stays true while
//!   a writer appends behind it.
//! - A place where no frame is readable is named and passed: the next valid header is searched at each
//!   multiple of 8. What it means, a torn write or damage, is not decided here.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use memchr::memmem::Finder;

use super::dedup_index::DedupKey;
use super::frame::{FRAME_ALIGN, FRAME_HEADER_BYTES, FrameHeader, MAGIC_BYTES, Seed, header_crc};
use super::segment::{SEGMENT_HEADER_BYTES, TERMINATOR, TORN_BYTES_KEPT, ZEROS};

/// Window for reading everything.
pub(super) const WINDOW_BYTES: usize = 256 << 10;
/// Window for hopping from header to header.
pub(super) const HOP_BYTES: usize = 4 << 10;

/// Bytes of a file around a position.
struct Window {
    file: File,
    bytes: Vec<u8>,
    start: u64,
    size: usize,
}

impl Window {
    /// `len` bytes at `offset`, or fewer where `end` or the file stops.
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
        self.bytes.resize(want, 0);
        let mut have = 0;
        while have < want {
            match self.file.read_at(&mut self.bytes[have..], offset + have as u64) {
                Ok(0) => break,
                Ok(read) => have += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.bytes.clear();
                    return Err(error);
                }
            }
        }
        self.bytes.truncate(have);
        Ok(())
    }
}

/// Whether a scan looks at the payloads too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Payloads {
    Check,
    Skip,
}

/// What lies at one place of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// A frame; its payload matches, if payloads are checked.
    Frame { offset: u64, header: FrameHeader, crc: u32 },
    /// Bytes that are no frame, up to the next one or to the last byte that is not zero.
    Bad { offset: u64, bytes: u64, what: &'static str, header: Option<FrameHeader> },
}

/// A walk over one segment file.
pub(super) struct Scanner {
    window: Window,
    seed: Seed,
    payloads: Payloads,
    offset: u64,
    end: u64,
    /// Older bytes lie behind the newest frame.
    reused: bool,
}

impl Scanner {
    /// A walk from the first frame up to `end`.
    pub(super) fn new(file: File, seed: Seed, payloads: Payloads, window_bytes: usize, end: u64) -> Self {
        let window = Window { file, bytes: Vec::new(), start: 0, size: window_bytes };
        Self { window, seed, payloads, offset: SEGMENT_HEADER_BYTES as u64, end, reused: false }
    }

    /// Of a file that was used before: zeros, where a frame should be, are its end, whatever lies behind them.
    pub(super) fn reused(self, reused: bool) -> Self {
        Self { reused, ..self }
    }

    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    /// Goes on from there.
    pub(super) fn seek(&mut self, offset: u64) {
        self.offset = offset;
    }

    /// The writer has appended: what is below `end` may be read now.
    pub(super) fn extend(&mut self, end: u64) {
        self.end = self.end.max(end);
    }

    /// The next frame, or the next place that should be one. `None` where only zeros follow.
    pub(super) fn next(&mut self) -> io::Result<Option<Found>> {
        let offset = self.offset;
        let bytes = self.window.get(offset, FRAME_HEADER_BYTES, self.end)?;
        let Some(header) = FrameHeader::decode(bytes, self.seed) else {
            return self.resync();
        };
        let crc = header_crc(bytes.try_into().expect("a decoded header has its length"));
        let end = offset + header.frame_bytes();
        if end > self.end {
            self.offset = self.end;
            let bytes = self.end - offset;
            return Ok(Some(Found::Bad { offset, bytes, what: "the frame is cut off", header: Some(header) }));
        }
        self.offset = end;
        if self.payloads == Payloads::Check && !self.payload_matches(&header, offset)? {
            let bytes = header.frame_bytes();
            return Ok(Some(Found::Bad { offset, bytes, what: "the payload does not match", header: Some(header) }));
        }
        Ok(Some(Found::Frame { offset, header, crc }))
    }

    /// The payload of a frame; `None` if its CRC does not match.
    pub(super) fn payload(&mut self, header: &FrameHeader, offset: u64) -> io::Result<Option<Vec<u8>>> {
        let mut payload = vec![0; header.payload_len as usize];
        match self.window.file.read_exact_at(&mut payload, offset + FRAME_HEADER_BYTES as u64) {
            Ok(()) => Ok((crc32c::crc32c(&payload) == header.payload_crc).then_some(payload)),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The mark that a frame's payload begins with.
    pub(super) fn dedup_key(&mut self, header: &FrameHeader, offset: u64) -> io::Result<Option<DedupKey>> {
        if !header.dedup_entry {
            return Ok(None);
        }
        self.window.get(offset + FRAME_HEADER_BYTES as u64, DedupKey::BYTES, self.end).map(DedupKey::decode)
    }

    /// Hands the payload over in pieces that fit the window.
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

    /// Whether zeros stand where a frame's magic would.
    fn is_terminated(&mut self, offset: u64) -> io::Result<bool> {
        let bytes = self.window.get(offset, FRAME_ALIGN as usize, self.end)?;
        Ok(bytes == &TERMINATOR[..bytes.len()])
    }

    /// Searches the next valid header behind a place that has none.
    fn resync(&mut self) -> io::Result<Option<Found>> {
        let (offset, end) = (self.offset, self.end);
        let what = "no valid frame header";
        let magic = Finder::new(&MAGIC_BYTES);
        let mut at = offset;
        let mut used_end = offset;
        while at < end {
            // One header longer than a block, so that none is missed between two blocks.
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
                        return Ok(Some(Found::Bad { offset, bytes: found - offset, what, header: None }));
                    }
                }
                let last = bytes[..block].iter().rposition(|&byte| byte != 0).expect("the block is not all zeros");
                used_end = at + last as u64 + 1;
            }
            at += block as u64;
        }
        if used_end == offset || self.reused && self.is_terminated(offset)? {
            return Ok(None);
        }
        if self.reused {
            used_end = used_end.min(offset + TORN_BYTES_KEPT);
        }
        self.offset = end;
        Ok(Some(Found::Bad { offset, bytes: used_end - offset, what, header: None }))
    }
}
