//! Inspects the directory of any journal, including an orphaned one, without opening it for writing.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use super::directory_scan::{Depth, DirectoryScan, SegmentScan, scan_directory};
use super::error::OpenError;
use super::frame::{Frame, Kind, frame};
use super::recover::{quarantine, scan_twice};
use super::salvage::UNREADABLE;
use super::scan::{Found, PAYLOAD_MISMATCH, Payloads, Scanner, WINDOW_BYTES};
use super::segment::{At, Dir};
use super::types::{Damage, LaneId, LaneTail};
use crate::file_system::{File, FileSystem, OpenMode, RealFileSystem};

/// Result of [`check`].
#[derive(Clone, Debug, serde::Serialize)]
#[non_exhaustive]
pub struct Report {
    /// Identity of the journal; `None` if no segment can be read.
    pub writer: Option<Uuid>,
    /// The latest run.
    pub run: Option<Uuid>,
    /// Earlier runs, latest last.
    pub runs: Vec<Uuid>,
    /// The last run that the database is known to have accepted.
    pub confirmed: Option<Uuid>,
    /// The segments, oldest first.
    pub segments: Vec<SegmentReport>,
    /// The end of every lane.
    pub lanes: BTreeMap<LaneId, LaneTail>,
    /// Highest sequence number used.
    pub seq_last: u64,
    /// Whether the latest run ended with a seal.
    pub clean: bool,
    /// Bytes behind the last complete frame; never acknowledged.
    pub torn_bytes: u64,
    /// Damage found.
    pub damage: Vec<Damage>,
    /// Size of the files in `quarantine/`.
    pub quarantine_bytes: u64,
    /// Whether a process has the journal open: then the latest frames may be incomplete.
    pub locked: bool,
}

/// One segment of a [`Report`].
#[derive(Clone, Debug, serde::Serialize)]
#[non_exhaustive]
pub struct SegmentReport {
    /// Number of the segment.
    pub number: u64,
    /// Path of its file.
    pub path: PathBuf,
    /// Size of the file.
    pub bytes: u64,
    /// Number of valid data frames.
    pub frames: u64,
    /// First sequence number; 0 if there is none.
    pub seq_first: u64,
    /// Last sequence number; 0 if there is none.
    pub seq_last: u64,
    /// Last frame of each lane in it.
    pub lanes: BTreeMap<LaneId, u64>,
}

/// Reads every byte of the journal and reports its state. Modifies nothing and needs no lock.
///
/// # Errors
/// [`OpenError::TooNew`], or a read failed. Damage is not an error.
pub fn check(dir: &Path) -> Result<Report, OpenError> {
    check_on(Arc::new(RealFileSystem), dir)
}

/// [`check`] on any file system.
///
/// # Errors
/// See there.
pub fn check_on(file_system: Arc<dyn FileSystem>, dir: &Path) -> Result<Report, OpenError> {
    let dir = Dir::open(file_system, dir)?;
    Ok(report(&dir, scan_directory(&dir, Depth::Everything)?, is_locked(&dir)))
}

/// Calls `visit` with every data frame of `lane` (or of all lanes) from `from_seq` on, in order, with the number of its
/// segment and its offset in the file, until it breaks. What cannot be read is skipped and returned, of all lanes.
///
/// # Errors
/// See [`check`].
pub fn dump(
    dir: &Path,
    lane: Option<LaneId>,
    from_seq: u64,
    visit: &mut dyn FnMut(Frame, u64, u64) -> ControlFlow<()>,
) -> Result<Vec<Damage>, OpenError> {
    dump_on(Arc::new(RealFileSystem), dir, lane, from_seq, visit)
}

/// [`dump`] on any file system.
///
/// # Errors
/// See there.
pub fn dump_on(
    file_system: Arc<dyn FileSystem>,
    dir: &Path,
    lane: Option<LaneId>,
    from_seq: u64,
    visit: &mut dyn FnMut(Frame, u64, u64) -> ControlFlow<()>,
) -> Result<Vec<Damage>, OpenError> {
    let dir = Dir::open(file_system, dir)?;
    let found = scan_directory(&dir, Depth::Open)?;
    let mut damage = found.damage;
    for segment in &found.segments {
        let seq_before = segment.first_seq.saturating_sub(1);
        let mut dump = Dump { number: segment.number, seq_before, damage: Vec::new() };
        let dumped = dump.segment(&dir, segment, lane, from_seq, visit).at(&segment.path, "read the segment")?;
        // The scan has read some segments completely.
        let is_known = |new: &Damage| damage.iter().any(|known| known.overlaps(new));
        let new: Vec<_> = dump.damage.into_iter().filter(|new| !is_known(new)).collect();
        damage.extend(new);
        if dumped.is_break() {
            break;
        }
    }
    damage.sort_by_key(|damage| (damage.segment, damage.offset));
    Ok(damage)
}

/// The dump of one segment.
struct Dump {
    number: u64,
    /// The last sequence number that was read.
    seq_before: u64,
    damage: Vec<Damage>,
}

impl Dump {
    fn segment(
        &mut self,
        dir: &Dir,
        segment: &SegmentScan,
        lane: Option<LaneId>,
        from_seq: u64,
        visit: &mut dyn FnMut(Frame, u64, u64) -> ControlFlow<()>,
    ) -> std::io::Result<ControlFlow<()>> {
        let end = segment.valid.end.max(segment.tail.end);
        let mut scanner = Scanner::new(dir.read(&segment.path)?, segment.seed, Payloads::Skip, WINDOW_BYTES, end);
        // The frames of a bad place are known by the one behind it.
        let mut bad = None;
        while let Some(found) = scanner.next()? {
            let (offset, header) = match found {
                Found::Frame { offset, header, .. } => (offset, header),
                Found::Bad { offset, bytes, reason, .. } => {
                    let (offset, bytes) =
                        bad.take().map_or((offset, bytes), |(first, before, _)| (first, before + bytes));
                    bad = Some((offset, bytes, reason));
                    continue;
                }
            };
            if let Some((offset, bytes, reason)) = bad.take() {
                self.add(offset, bytes, self.seq_before + 1, header.seq - 1, reason);
            }
            self.seq_before = header.seq;
            let wanted = lane.is_none_or(|lane| lane == header.lane) && header.seq >= from_seq;
            if header.kind != Kind::Data || !wanted {
                continue;
            }
            match scanner.payload(&header, offset)? {
                Some(payload) => {
                    if visit(frame(&header, payload), segment.number, offset).is_break() {
                        return Ok(ControlFlow::Break(()));
                    }
                }
                None => {
                    let unreadable = scanner.is_unreadable(&header, offset);
                    let reason = if unreadable { UNREADABLE } else { PAYLOAD_MISMATCH };
                    self.add(offset, header.frame_bytes(), header.seq, header.seq, reason);
                }
            }
        }
        if let Some((offset, bytes, reason)) = bad {
            self.add(offset, bytes, self.seq_before + 1, segment.valid.seq_last.max(segment.tail.seq_last), reason);
        }
        Ok(ControlFlow::Continue(()))
    }

    fn add(&mut self, offset: u64, bytes: u64, seq_first: u64, seq_last: u64, reason: &str) {
        let (segment, reason) = (self.number, reason.to_owned());
        self.damage.push(Damage { segment, offset, bytes, seq_first, seq_last, reason });
    }
}

/// Quarantines, under the lock, what an open would quarantine: torn and damaged bytes (as copies) and files that are
/// not segments of this journal. Rewrites nothing; a second call finds nothing to do.
///
/// # Errors
/// See [`check`]; also [`OpenError::Locked`].
pub fn repair(dir: &Path) -> Result<Report, OpenError> {
    repair_on(Arc::new(RealFileSystem), dir)
}

/// [`repair`] on any file system.
///
/// # Errors
/// See there.
pub fn repair_on(file_system: Arc<dyn FileSystem>, dir: &Path) -> Result<Report, OpenError> {
    let dir = Dir::open(file_system, dir)?;
    let _lock = lock(&dir)?;
    let found = scan_twice(&dir, Depth::Everything)?;
    if !quarantine(&dir, &found.quarantined) {
        let source = std::io::Error::other("see the log for the bytes and the reason");
        return Err(OpenError::Io { path: dir.quarantine(), action: "quarantine unreadable bytes", source });
    }
    Ok(report(&dir, found, false))
}

fn report(dir: &Dir, found: DirectoryScan, locked: bool) -> Report {
    let confirmed = found.runs.confirmed();
    let mut runs = found.runs.limited(usize::MAX);
    Report {
        writer: found.writer,
        run: runs.pop(),
        runs,
        confirmed,
        segments: found.segments.into_iter().map(segment_report).collect(),
        lanes: found.lanes,
        seq_last: found.seq_last,
        clean: found.clean,
        torn_bytes: found.torn_bytes,
        damage: found.damage,
        quarantine_bytes: dir.quarantine_bytes(),
        locked,
    }
}

fn segment_report(segment: SegmentScan) -> SegmentReport {
    let SegmentScan { number, path, size, valid, tail, .. } = segment;
    let mut lanes = valid.lanes;
    lanes.extend(tail.lanes);
    let seq_first = if valid.frames > 0 { valid.seq_first } else { tail.seq_first };
    SegmentReport {
        number,
        path,
        bytes: size,
        frames: valid.data_frames + tail.data_frames,
        seq_first,
        seq_last: valid.seq_last.max(tail.seq_last),
        lanes,
    }
}

/// Locks the journal for this process.
pub(super) fn lock(dir: &Dir) -> Result<Box<dyn File>, OpenError> {
    const TRIES: u32 = 5;
    let path = dir.lock();
    let file = dir.file_system().open(&path, OpenMode::CreateIfMissing).at(&path, "open the lock file")?;
    for _ in 0..TRIES {
        if file.try_lock(false).at(&path, "lock")? {
            return Ok(file);
        }
        // A process that was killed just now may still hold it.
        std::thread::sleep(Duration::from_millis(50));
    }
    Err(OpenError::Locked { dir: dir.path().to_owned() })
}

fn is_locked(dir: &Dir) -> bool {
    // A shared lock, so that two checks do not see each other; released at once.
    dir.read(&dir.lock()).and_then(|file| file.try_lock(true)).is_ok_and(|locked| !locked)
}
