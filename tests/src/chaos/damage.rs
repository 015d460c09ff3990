//! Damages a closed segment of a journal that nobody has open, and says which records were in what it damaged.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::ops::{ControlFlow, Range};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;

use logweir_engine::journal::dump;
use logweir_record::codec::decode;

use crate::ledger::{Key, key_of};

/// What happens to a place of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Harm {
    /// A bit of a frame is flipped.
    Bit,
    /// So many bytes of a frame are others.
    Bytes(usize),
    /// The page in which a frame begins cannot be read.
    Page,
}

/// What was damaged.
#[derive(Debug)]
pub struct Damaged {
    /// The records that may be missing now.
    pub keys: BTreeSet<Key>,
    /// Where it is, for a report.
    pub place: String,
    /// The inode and the bytes that cannot be read.
    pub unreadable: Option<(u64, Range<u64>)>,
}

/// Frame header, of which the payload is the rest.
const HEADER_BYTES: u64 = 64;
const PAGE_BYTES: u64 = 4096;
/// One of so many of the latest frames is damaged: those are not stored yet.
const FRAMES: usize = 8;

struct Place {
    segment: u64,
    bytes: Range<u64>,
    keys: Vec<Key>,
}

/// Damages one of the latest frames that are not in the newest segment, which `choice` chooses. (At the end of the newest
/// one, damage cannot be told from a write that was interrupted.)
///
/// # Errors
/// No closed segment has a frame, or the journal cannot be read or written.
pub fn damage(journal: &Path, harm: Harm, choice: usize) -> Result<Damaged, String> {
    let (frames, newest) = frames(journal)?;
    let closed: Vec<&Place> = frames.iter().filter(|place| place.segment < newest).collect();
    let latest = &closed[closed.len().saturating_sub(FRAMES)..];
    let hit = latest.get(choice % latest.len().max(1)).ok_or("no frame is in a closed segment")?;
    let path = journal.join(format!("{:020}.wal", hit.segment));
    let failed = |error: std::io::Error| format!("{}: {error}", path.display());
    let length = hit.bytes.end - hit.bytes.start;
    let at = hit.bytes.start + choice as u64 % length;
    let range = match harm {
        Harm::Bit => at..at + 1,
        Harm::Bytes(count) => at..(at + count as u64).min(hit.bytes.end),
        Harm::Page => {
            let start = hit.bytes.start / PAGE_BYTES * PAGE_BYTES;
            start..start + PAGE_BYTES
        }
    };
    let mut unreadable = None;
    if harm == Harm::Page {
        unreadable = Some((fs::metadata(&path).map_err(failed)?.ino(), range.clone()));
    } else {
        let file = File::options().read(true).write(true).open(&path).map_err(failed)?;
        let mut bytes = vec![0; usize::try_from(range.end - range.start).unwrap_or(0)];
        file.read_exact_at(&mut bytes, range.start).map_err(failed)?;
        let flip = if harm == Harm::Bit { 1 << (choice % 8) } else { 0b0101_1010 };
        bytes.iter_mut().for_each(|byte| *byte ^= flip);
        file.write_all_at(&bytes, range.start).and_then(|()| file.sync_data()).map_err(failed)?;
    }
    let is_hit =
        |place: &&Place| place.segment == hit.segment && place.bytes.start < range.end && range.start < place.bytes.end;
    let keys: BTreeSet<Key> = frames.iter().filter(is_hit).flat_map(|place| place.keys.clone()).collect();
    let place = format!("segment {}, bytes {range:?}: {} records", hit.segment, keys.len());
    Ok(Damaged { keys, place, unreadable })
}

/// The frames of records, in order, and the number of the newest segment.
fn frames(journal: &Path) -> Result<(Vec<Place>, u64), String> {
    let mut frames = Vec::new();
    let mut unknown = Ok(());
    let read = dump(journal, None, 0, &mut |frame, segment, offset| {
        let bytes = offset..offset + HEADER_BYTES + frame.payload.len() as u64;
        let keys = decode(frame.codec, &frame.payload)
            .map_err(|error| error.to_string())
            .and_then(|chunk| chunk.iter().map(|record| key_of(record.message)).collect::<Result<Vec<_>, _>>());
        match keys {
            Ok(keys) => frames.push(Place { segment, bytes, keys }),
            Err(why) => unknown = Err(format!("frame {}: {why}", frame.seq)),
        }
        ControlFlow::Continue(())
    });
    read.map_err(|error| error.to_string())?;
    unknown?;
    let names = fs::read_dir(journal).map_err(|error| error.to_string())?;
    let number = |entry: fs::DirEntry| entry.file_name().to_str()?.strip_suffix(".wal")?.parse().ok();
    Ok((frames, names.flatten().filter_map(number).max().unwrap_or(0)))
}
