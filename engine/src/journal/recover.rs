//! Recovery: turns the scanned directory into a journal that can be appended to.
//!
//! The order of the steps makes it safe to be killed at any moment and to start over:
//! 1. fsync the latest segment and the directory, then scan;
//! 2. quarantine torn and damaged bytes and foreign files (each name in `quarantine/` is written once);
//! 3. remove segments that a newer one has superseded (left by a start that was killed after step 4);
//! 4. write the next segment as `spare.tmp`: its header (fdatasync), copies of the frames above `D`, a START frame that
//!    jumps ahead, fdatasync; rename, fsync the directory. The rename is the commit point;
//! 5. only now truncate the old segment to its valid prefix, or remove it if it contains no valid data frame.
//!
//! So a crash loop does not grow the disk usage. On a full disk the new segment is only as large as necessary, using
//! the space of the old segment's unused zeros or of the ballast: start and seal still work.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use uuid::Uuid;

use super::dedup_index::DedupIndex;
use super::directory_scan::{
    Depth, DirectoryScan, Quarantined, SegmentScan, Tail, ValidPrefix, flush_page_cache, scan_directory, used_end,
};
use super::error::OpenError;
use super::frame::{FRAME_HEADER_BYTES, FrameHeader, Kind, Seed, Start, frame_bytes, header_crc, push_frame};
use super::identity::{Identity, RUNS_MAX};
use super::salvage::Salvage;
use super::scan::{Found, Payloads, Scanner, WINDOW_BYTES};
use super::segment::{
    At, Dir, FORMAT_VERSION, MIN_READER_VERSION, SEGMENT_HEADER_BYTES, SEQ_JUMP, SEQ_MAX, SegmentHeader, create_zeroed,
    is_transient, open_leftover_spare, publish_spare, sync_data, sync_dir,
};
use super::types::{Damage, LaneId, Recovered};
use crate::file_system::{File, FileSystem, OpenMode};
use crate::{clock, fault};

/// Space that every segment reserves for the SEAL frame.
pub(super) const SEAL_BYTES: u64 = FRAME_HEADER_BYTES as u64;

/// A segment of the running journal: its durable part.
#[derive(Clone, Debug)]
pub(super) struct Segment {
    pub(super) path: PathBuf,
    /// Size of the file.
    pub(super) size: u64,
    /// End of the last durable, valid frame.
    pub(super) end: u64,
    pub(super) seed: Seed,
    /// Sequence number of its first frame; 0 if its header was damaged.
    pub(super) first_seq: u64,
    /// Last durable frame of each lane in it.
    pub(super) lanes: BTreeMap<LaneId, u64>,
    /// When the database was first known to have committed all of it, if it is closed.
    pub(super) committed_at: Option<Instant>,
}

/// A recovered journal, before its threads run.
pub(super) struct Opened {
    pub(super) recovered: Recovered,
    pub(super) identity: Identity,
    pub(super) segments: BTreeMap<u64, Segment>,
    pub(super) dedup_index: DedupIndex,
    /// The new segment's file, opened for writing.
    pub(super) active: Box<dyn File>,
    pub(super) number: u64,
    pub(super) run_seq: u64,
    /// Header CRC of its last frame.
    pub(super) crc_last: u32,
    /// Whether there was no space for a segment of full size.
    pub(super) full: bool,
}

/// Scans the directory (under the lock), quarantines what cannot be read, and starts a new run.
pub(super) fn recover(dir: &Dir, segment_bytes: u64) -> Result<Opened, OpenError> {
    flush_page_cache(dir)?;
    let mut found = scan_twice(dir, Depth::Open)?;
    found.dedup_index.limit(segment_bytes);
    let all_quarantined = quarantine(dir, &found.quarantined);
    let last = found.segments.last();
    let is_last = |segment: &SegmentScan| last.is_some_and(|last| last.number == segment.number);
    if all_quarantined {
        let superseded = found.segments.iter().filter(|segment| !is_last(segment) && segment.valid.frames == 0);
        found.empty.iter().chain(superseded.map(|segment| &segment.path)).for_each(|path| remove(dir, path));
        dir.sync().at(dir.path(), "fsync the directory")?;
    }

    let confirmed = found.runs.confirmed();
    // Limited so that a segment keeps most of its space.
    let runs = found.runs.limited(usize::try_from(segment_bytes / 4 / 16).unwrap_or(RUNS_MAX).min(RUNS_MAX));
    let writer = found.writer.unwrap_or_else(Uuid::new_v4);
    let identity = Identity { writer, run: Uuid::new_v4(), run_before: runs.last().copied(), confirmed };
    let dedup_entries = found.dedup_index.start_entries();
    let start = Start { writer, run: identity.run, confirmed, runs, lanes: found.lanes.clone(), dedup_entries };
    let fresh = found.segments.is_empty() && found.number_last == 0;
    let created = fresh && found.empty.is_empty() && found.quarantined.is_empty();
    let jump = if fresh { 1 } else { SEQ_JUMP.saturating_mul(1 + 2 * found.unreadable) };
    let run_seq = found.seq_last.saturating_add(jump);
    if run_seq > SEQ_MAX {
        let source = io::Error::other(format!("{run_seq} is above the limit of {SEQ_MAX}"));
        return Err(OpenError::Io { path: dir.path().to_owned(), action: "allocate a sequence number", source });
    }

    let is_retained = |segment: &&SegmentScan| match is_last(segment) {
        true => segment.valid.data_frames > 0,
        false => segment.valid.frames > 0,
    };
    let before = found.segments.iter().rev().find(is_retained);
    let tail = last.map(|last| last.tail.clone()).unwrap_or_default();
    let header = SegmentHeader {
        format_version: FORMAT_VERSION,
        min_reader_version: MIN_READER_VERSION,
        reused: false,
        writer,
        number: found.number_last + 1,
        first_seq: if tail.data_frames > 0 { tail.data_seq_first } else { run_seq },
        created_at_us: clock::wall_us(),
        prev_seq_last: before.map_or(0, |before| before.valid.seq_last),
        prev_crc: before.map_or(0, |before| before.valid.crc_last),
        run_seq,
    };
    dir.store_identity(&identity);
    let new = write_first_segment(dir, &header, &identity, last, &tail, &start, segment_bytes)?;

    let mut segments = BTreeMap::new();
    for segment in &found.segments {
        if is_retained(&segment) {
            let size = if is_last(segment) && all_quarantined { truncate_segment(dir, segment) } else { segment.size };
            segments.insert(segment.number, to_segment(segment, size));
        } else if is_last(segment) && all_quarantined {
            remove(dir, &segment.path);
        }
    }
    dir.sync().at(dir.path(), "fsync the directory")?;
    let number = header.number;
    segments.insert(number, new.segment);
    Ok(Opened {
        recovered: Recovered {
            writer,
            run: identity.run,
            runs: start.runs,
            confirmed,
            seq_last: found.seq_last,
            lanes: found.lanes,
            begins: found.begins,
            created,
            clean: found.clean,
            torn_bytes: found.torn_bytes,
            damage: found.damage,
        },
        identity,
        segments,
        dedup_index: found.dedup_index,
        active: new.file,
        number,
        run_seq,
        crc_last: new.crc_last,
        full: new.full,
    })
}

/// Scans the directory, a second time if anything in it is damaged: a disk that was away for a moment looks the same, and
/// what is damaged is moved aside.
pub(super) fn scan_twice(dir: &Dir, depth: Depth) -> Result<DirectoryScan, OpenError> {
    let found = scan_directory(dir, depth)?;
    if found.damage.is_empty() {
        return Ok(found);
    }
    dir.check_disk().at(dir.path(), "write to the disk")?;
    let found = scan_directory(dir, depth)?;
    dir.check_disk().at(dir.path(), "write to the disk")?;
    Ok(found)
}

fn to_segment(segment: &SegmentScan, size: u64) -> Segment {
    let ValidPrefix { end, ref lanes, .. } = segment.valid;
    let (path, first_seq) = (segment.path.clone(), segment.first_seq);
    Segment { path, size, end, seed: segment.seed, first_seq, lanes: lanes.clone(), committed_at: None }
}

/// Truncates the old last segment to its valid prefix. Optional: the next segment's header states it as well.
fn truncate_segment(dir: &Dir, segment: &SegmentScan) -> u64 {
    let end = segment.valid.end;
    let cut = dir.file_system().open(&segment.path, OpenMode::Update).and_then(|file| {
        file.set_len(end)?;
        file.sync_all()
    });
    match cut {
        Ok(()) => end,
        Err(error) => {
            let path = segment.path.display();
            tracing::warn!(%path, %error, "cannot truncate the old segment; its tail is ignored");
            segment.size
        }
    }
}

fn remove(dir: &Dir, path: &Path) {
    fault::kill_point("journal.segment.remove.before");
    if let Err(error) = dir.file_system().remove_file(path) {
        tracing::warn!(path = %path.display(), %error, "cannot remove a superseded segment; the next start tries again");
    }
    fault::kill_point("journal.segment.remove.after");
}

struct NewSegment {
    file: Box<dyn File>,
    segment: Segment,
    crc_last: u32,
    full: bool,
}

/// Writes the first segment of the new run completely before it gets its name.
fn write_first_segment(
    dir: &Dir,
    header: &SegmentHeader,
    identity: &Identity,
    old: Option<&SegmentScan>,
    tail: &Tail,
    start: &Start,
    segment_bytes: u64,
) -> Result<NewSegment, OpenError> {
    let start_payload = start.encode();
    let start_bytes = frame_bytes(start_payload.len());
    let need = SEGMENT_HEADER_BYTES as u64 + tail.data_bytes + start_bytes + SEAL_BYTES;
    let (file, size, full) = allocate_segment(dir, old, segment_bytes.max(need), need)?;
    let seed = Seed::new(header.writer, header.number);
    let path = dir.spare();

    // First and alone: a spare with a header is never taken for one of zeros.
    file.write_all_at(&header.encode(identity), 0).at(&path, "write the segment header")?;
    sync_data(&*file).at(&path, "fsync the segment header")?;
    let mut at = SEGMENT_HEADER_BYTES as u64;
    let mut lanes = BTreeMap::new();
    if let Some(old) = old.filter(|_| tail.data_frames > 0) {
        copy_tail(dir, old, tail, seed, &*file, &mut at, &mut lanes).at(&old.path, "copy the last frames")?;
    }
    fault::kill_point("journal.recover.copied");
    let start_header =
        FrameHeader::of_run(Kind::Start, header.run_seq, header.prev_seq_last, &start_payload).encode(seed);
    let mut frame = Vec::with_capacity(FRAME_HEADER_BYTES + start_payload.len());
    push_frame(&mut frame, &start_header, &start_payload);
    file.write_all_at(&frame, at).at(&path, "write the START frame")?;
    sync_data(&*file).at(&path, "fsync the new segment")?;
    publish_spare(dir, header.number).at(&path, "rename the new segment into place")?;
    let end = at + start_bytes;
    let (path, first_seq) = (dir.segment(header.number), header.first_seq);
    let segment = Segment { path, size, end, seed, first_seq, lanes, committed_at: None };
    Ok(NewSegment { file, segment, crc_last: header_crc(&start_header), full })
}

/// Copies the data frames above `D`, with their sequence numbers and the new segment's seed.
fn copy_tail(
    dir: &Dir,
    old: &SegmentScan,
    tail: &Tail,
    seed: Seed,
    to: &dyn File,
    at: &mut u64,
    lanes: &mut BTreeMap<LaneId, u64>,
) -> io::Result<()> {
    let mut scanner = Scanner::new(dir.read(&old.path)?, old.seed, Payloads::Check, WINDOW_BYTES, tail.end);
    let mut copied = 0;
    scanner.seek(tail.offset);
    while let Some(found) = scanner.next()? {
        // What the scan has found damaged is skipped, as it was there.
        let Found::Frame { offset, header, .. } = found else { continue };
        if header.kind != Kind::Data {
            continue;
        }
        to.write_all_at(&header.encode(seed), *at)?;
        let mut piece_at = *at + FRAME_HEADER_BYTES as u64;
        scanner.stream_payload(&header, offset, |piece| {
            to.write_all_at(piece, piece_at)?;
            piece_at += piece.len() as u64;
            Ok(())
        })?;
        *at += header.frame_bytes();
        copied += 1;
        lanes.insert(header.lane, header.seq);
    }
    if copied != tail.data_frames {
        return Err(io::Error::other("the frames changed while they were read"));
    }
    Ok(())
}

/// Creates a file of zeros under the spare's name: of `size` if there is space, else of `need`, if necessary in the
/// space freed from the old segment or the ballast. Returns the file, its size, and whether the disk is full.
fn allocate_segment(
    dir: &Dir,
    old: Option<&SegmentScan>,
    size: u64,
    need: u64,
) -> Result<(Box<dyn File>, u64, bool), OpenError> {
    let path = dir.spare();
    if let Some(file) = open_leftover_spare(dir, size).at(&path, "open the spare segment")? {
        return Ok((file, size, false));
    }
    let never = AtomicBool::new(false);
    let mut made = create_zeroed(dir.file_system(), &path, size, &never);
    let mut full = false;
    let fallbacks: [&dyn Fn() -> io::Result<()>; 3] =
        [&|| Ok(()), &|| old.map_or(Ok(()), |old| trim(dir, old)), &|| dir.file_system().remove_file(&dir.ballast())];
    for fallback in fallbacks {
        match &made {
            Err(error) if is_transient(error) => {}
            _ => break,
        }
        full = true;
        if fallback().is_ok() {
            made = create_zeroed(dir.file_system(), &path, need, &never);
        }
    }
    let file = made.at(&path, "create a segment")?;
    Ok((file, if full { need } else { size }, full))
}

/// Frees the zeros behind the last byte of a segment that is never appended to again.
fn trim(dir: &Dir, old: &SegmentScan) -> io::Result<()> {
    let file = dir.file_system().open(&old.path, OpenMode::Update)?;
    let used = used_end(dir.read(&old.path)?, old.valid.end.max(old.tail.end), old.size)?;
    file.set_len(used)
}

/// Moves everything in the list to `quarantine/`. Returns whether all of it is safe there; otherwise (disk full) the
/// originals stay in place.
pub(super) fn quarantine(dir: &Dir, quarantined: &[Quarantined]) -> bool {
    let mut all = true;
    for item in quarantined {
        if let Err(error) = quarantine_one(dir, item) {
            tracing::error!(?item, %error, "cannot quarantine unreadable bytes; they stay in place");
            all = false;
        }
    }
    all
}

fn quarantine_one(dir: &Dir, item: &Quarantined) -> io::Result<()> {
    let (quarantine, file_system) = (dir.quarantine(), dir.file_system());
    if !file_system.exists(&quarantine) {
        file_system.create_dir(&quarantine)?;
        dir.sync()?;
    }
    match item {
        Quarantined::Copy { from, offset, bytes, name } => {
            let to = quarantine.join(name);
            if file_system.exists(&to) {
                return Ok(());
            }
            let draft = quarantine.join("draft.tmp");
            let drafted =
                copy_range(file_system, from, *offset, *bytes, &draft).and_then(|()| file_system.rename(&draft, &to));
            if drafted.is_err() {
                let _ = file_system.remove_file(&draft);
            }
            drafted?;
        }
        Quarantined::Move { from, name } => {
            let mut to = quarantine.join(name);
            let mut copy = 1;
            while file_system.exists(&to) {
                copy += 1;
                to = quarantine.join(format!("{name}.{copy}"));
            }
            file_system.rename(from, &to)?;
            dir.sync()?;
        }
    }
    sync_dir(&*file_system.open_dir(&quarantine)?)
}

fn copy_range(file_system: &dyn FileSystem, from: &Path, offset: u64, bytes: u64, to: &Path) -> io::Result<()> {
    let mut from = Salvage::new(file_system.open(from, OpenMode::Read)?);
    let to = file_system.open(to, OpenMode::Replace)?;
    let mut buffer = vec![0; WINDOW_BYTES];
    let mut at = 0;
    while at < bytes {
        let want = buffer.len().min(usize::try_from(bytes - at).unwrap_or(usize::MAX));
        let read = from.read(&mut buffer[..want], offset + at)?;
        if read == 0 {
            break;
        }
        to.write_all_at(&buffer[..read], at)?;
        at += read as u64;
    }
    to.sync_all()
}

/// Removes all but the latest torn tails: they are kept for inspection only, since they were never acknowledged.
pub(super) fn prune_torn_tails(dir: &Dir) {
    const TORN_TAILS_MAX: usize = 16;
    let Ok(names) = dir.file_system().list(&dir.quarantine()) else { return };
    let segment = |name: &str| name.strip_prefix("torn-")?.split('-').next()?.parse::<u64>().ok();
    let mut torn: Vec<_> =
        names.iter().filter_map(|name| Some((name.to_str().and_then(segment)?, dir.quarantine().join(name)))).collect();
    torn.sort_unstable();
    for (_, path) in &torn[..torn.len().saturating_sub(TORN_TAILS_MAX)] {
        tracing::info!(path = %path.display(), "removing an old torn tail from the quarantine");
        let _ = dir.file_system().remove_file(path);
    }
}

/// Logs and counts damage.
pub(super) fn report(recovered: &Recovered) {
    metrics::counter!("logweir_journal_torn_bytes_total").increment(recovered.torn_bytes);
    recovered.damage.iter().for_each(Damage::log);
    metrics::counter!("logweir_journal_damaged_frames_total").increment(damaged_frames(&recovered.damage));
}

/// Number of sequence numbers lost to the damage.
pub(super) fn damaged_frames(damage: &[Damage]) -> u64 {
    damage.iter().map(|damage| (damage.seq_last + 1).saturating_sub(damage.seq_first)).sum()
}
