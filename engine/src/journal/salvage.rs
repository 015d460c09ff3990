//! Reads around what the disk cannot read.
//!
//! A bad place on a disk shows itself as an input/output error, or, where nothing checks it, as other bytes. Both are
//! damage of that place: bytes that cannot be read are replaced by [`FILLER`], so that the checksums above find them
//! like any other damage, and remembered, so that they are not taken for a torn write. A torn write can be read.

use std::io;
use std::ops::Range;
use std::time::Duration;

use rustix::io::Errno;

use crate::file_system::{File, read_up_to};

/// In the place of a byte that cannot be read. Not 0: zeros mean that the log has ended.
pub(super) const FILLER: u8 = 0xff;
/// What is lost with a bad place: a page.
const BLOCK_BYTES: u64 = 4096;
/// A place is given up after this many tries.
const TRIES: u32 = 3;
/// Between two tries of the first bad place of a file. Later ones are not waited for: there may be thousands.
const PAUSE: Duration = Duration::from_millis(5);

/// Why bytes are damaged, in reports.
pub(super) const UNREADABLE: &str = "the disk cannot read it (input/output error)";

/// Whether the error means that the place cannot be read, and not that the file cannot.
pub(super) fn is_unreadable(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::IO.raw_os_error())
}

/// A file that is read around its bad places.
pub(super) struct Salvage {
    file: Box<dyn File>,
    /// The bad places that were met, in ascending order of discovery.
    unreadable: Vec<Range<u64>>,
}

impl Salvage {
    pub(super) fn new(file: Box<dyn File>) -> Self {
        Self { file, unreadable: Vec::new() }
    }

    /// Forgets the bad places: they may be readable by now.
    pub(super) fn forget(&mut self) {
        self.unreadable.clear();
    }

    /// Whether a part of the range cannot be read, as far as is known.
    pub(super) fn is_unreadable(&self, range: &Range<u64>) -> bool {
        self.unreadable.iter().any(|bad| bad.start < range.end && range.start < bad.end)
    }

    /// Reads `buffer.len()` bytes at `offset`, fewer only at the end of the file.
    pub(super) fn read(&mut self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        if !self.is_unreadable(&(offset..offset + buffer.len() as u64)) {
            match read_up_to(&*self.file, buffer, offset) {
                Err(error) if is_unreadable(&error) => {}
                read => return read,
            }
        }
        let mut have = 0;
        while have < buffer.len() {
            let at = offset + have as u64;
            let end = (at / BLOCK_BYTES + 1) * BLOCK_BYTES;
            let want = usize::try_from(end - at).unwrap_or(usize::MAX).min(buffer.len() - have);
            let read = self.read_block(&mut buffer[have..have + want], at)?;
            have += read;
            if read < want {
                break;
            }
        }
        Ok(have)
    }

    fn read_block(&mut self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let range = offset..offset + buffer.len() as u64;
        for attempt in 1..=TRIES {
            if self.is_unreadable(&range) {
                break;
            }
            match read_up_to(&*self.file, buffer, offset) {
                Err(error) if is_unreadable(&error) => {}
                read => return read,
            }
            if self.unreadable.is_empty() && attempt < TRIES {
                std::thread::sleep(PAUSE);
            } else if attempt == TRIES {
                self.unreadable.push(range.clone());
            }
        }
        // The end of the file is known without reading.
        let size = self.file.metadata()?.bytes;
        let read = usize::try_from(size.saturating_sub(offset)).unwrap_or(usize::MAX).min(buffer.len());
        buffer[..read].fill(FILLER);
        Ok(read)
    }
}
