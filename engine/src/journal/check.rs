//! Looks at any journal's directory, also an orphaned one, without opening it for writing.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};
use std::time::Duration;

use uuid::Uuid;

use super::directory_scan::{Depth, DirectoryScan, SegmentScan, directory_scan};
use super::frame::Kind;
use super::reader::frame;
use super::recover::set_aside;
use super::scan::{Found, Payloads, Scanner, WINDOW_BYTES};
use super::segment::{At, Dir};
use super::{Damage, Frame, LaneId, LaneTail, OpenError};

/// What [`check`] found.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Report {
    /// The journal's identity; `None` if no segment can be read.
    pub writer: Option<Uuid>,
    /// The newest run.
    pub run: Option<Uuid>,
    /// Runs before it, newest last.
    pub runs: Vec<Uuid>,
    /// Its segments, oldest first.
    pub segments: Vec<SegmentReport>,
    /// Newest frame of every lane.
    pub lanes: BTreeMap<LaneId, LaneTail>,
    /// Highest sequence number used.
    pub seq_last: u64,
    /// Whether the last run ended with a seal.
    pub clean: bool,
    /// Bytes behind the last whole frame that nobody was promised.
    pub torn_bytes: u64,
    /// Damage found.
    pub damage: Vec<Damage>,
    /// Bytes in `quarantine/`.
    pub quarantine_bytes: u64,
    /// A process has the journal open: the newest frames may still be on their way.
    pub locked: bool,
}

/// One segment of a [`Report`].
#[derive(Clone, Debug, serde::Serialize)]
pub struct SegmentReport {
    /// Its number.
    pub number: u64,
    /// Its file.
    pub path: PathBuf,
    /// Bytes of the file.
    pub bytes: u64,
    /// Data frames in it that count.
    pub frames: u64,
    /// First sequence number in it; 0 for none.
    pub seq_first: u64,
    /// Last sequence number in it; 0 for none.
    pub seq_last: u64,
    /// Newest frame of each lane in it.
    pub lanes: BTreeMap<LaneId, u64>,
}

/// Reads every byte of the journal and says how it stands. Changes nothing and needs no lock.
///
/// # Errors
/// [`OpenError`]: too new, or the disk refused a read. Damage is not an error.
pub fn check(dir: &Path) -> Result<Report, OpenError> {
    let dir = Dir::new(dir.to_owned());
    Ok(report(&dir, directory_scan(&dir, Depth::Everything)?, is_locked(&dir)))
}

/// Hands every data frame of `lane` (or of all lanes) from `from_seq` on to `visit`, in order, with its
/// segment and its offset in the file. Frames that cannot be read are left out; [`check`] names them.
///
/// # Errors
/// As [`check`].
pub fn dump(
    dir: &Path,
    lane: Option<LaneId>,
    from_seq: u64,
    visit: &mut dyn FnMut(Frame, u64, u64),
) -> Result<(), OpenError> {
    let dir = Dir::new(dir.to_owned());
    for segment in directory_scan(&dir, Depth::Open)?.segments {
        dump_segment(&segment, lane, from_seq, visit).at(&segment.path, "read the segment")?;
    }
    Ok(())
}

fn dump_segment(
    segment: &SegmentScan,
    lane: Option<LaneId>,
    from_seq: u64,
    visit: &mut dyn FnMut(Frame, u64, u64),
) -> std::io::Result<()> {
    let end = segment.kept.end.max(segment.tail.end);
    let mut scanner = Scanner::new(File::open(&segment.path)?, segment.seed, Payloads::Skip, WINDOW_BYTES, end);
    while let Some(found) = scanner.next()? {
        let Found::Frame { offset, header, .. } = found else { continue };
        let wanted = lane.is_none_or(|lane| lane == header.lane) && header.seq >= from_seq;
        if header.kind != Kind::Data || !wanted {
            continue;
        }
        if let Some(payload) = scanner.payload(&header, offset)? {
            visit(frame(&header, payload), segment.number, offset);
        }
    }
    Ok(())
}

/// Keeps aside, under the lock, what opening would keep aside: torn and damaged bytes (as copies) and
/// files that are no segments of this journal. Rewrites nothing; a second call finds nothing to do.
///
/// # Errors
/// As [`check`], and [`OpenError::Locked`].
pub fn repair(dir: &Path) -> Result<Report, OpenError> {
    let dir = Dir::new(dir.to_owned());
    let _lock = lock(&dir)?;
    let found = directory_scan(&dir, Depth::Everything)?;
    if !set_aside(&dir, &found.aside) {
        let source = std::io::Error::other("see the log for which bytes and why");
        return Err(OpenError::Io { path: dir.quarantine(), what: "keep bytes aside", source });
    }
    Ok(report(&dir, found, false))
}

fn report(dir: &Dir, found: DirectoryScan, locked: bool) -> Report {
    let start = found.start.unwrap_or_default();
    Report {
        writer: found.writer,
        run: Some(start.run).filter(|run| !run.is_nil()),
        runs: start.runs,
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
    let SegmentScan { number, path, size, kept, tail, .. } = segment;
    let mut lanes = kept.lanes;
    lanes.extend(tail.lanes);
    let seq_first = if kept.frames > 0 { kept.seq_first } else { tail.seq_first };
    SegmentReport {
        number,
        path,
        bytes: size,
        frames: kept.data_frames + tail.data_frames,
        seq_first,
        seq_last: kept.seq_last.max(tail.seq_last),
        lanes,
    }
}

/// Takes the journal for this process.
pub(super) fn lock(dir: &Dir) -> Result<File, OpenError> {
    const TRIES: u32 = 5;
    let path = dir.lock();
    let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
    let file = open.at(&path, "open the lock")?;
    for _ in 0..TRIES {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            // A process that was killed a moment ago may still hold it.
            Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(50)),
            Err(TryLockError::Error(source)) => return Err(OpenError::Io { path, what: "lock", source }),
        }
    }
    Err(OpenError::Locked { dir: dir.path().to_owned() })
}

fn is_locked(dir: &Dir) -> bool {
    // Shared, so that two that look do not see each other; given back at once.
    File::open(dir.lock()).is_ok_and(|file| matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)))
}
