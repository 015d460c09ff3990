//! Opening: what was found becomes a journal that can be written again.
//!
//! The order is what makes it safe to be killed at any instant and to start over:
//! 1. fsync the newest segment and the directory, then read;
//! 2. keep aside torn and damaged bytes and foreign files (a name in `quarantine/` is written once);
//! 3. remove segments that a newer one has superseded (a start that was killed after step 4 left them);
//! 4. write the next segment as `spare.tmp`: its header (fdatasync), copies of the frames above `D`, a
//!    START frame that jumps ahead, fdatasync; rename, fsync the directory. That rename is the commit;
//! 5. only now cut the old segment to what counts, or remove it when nothing in it does.
//!
//! A crash loop therefore leaves the disk as large as it was. On a full disk the new segment is only as
//! large as it must be, in the room of the old one's unused zeros or of the ballast: start-up and the seal
//! still work.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use uuid::Uuid;

use super::dedup_index::{DedupEntry, DedupIndex};
use super::directory_scan::{
    Depth, Quarantined, SegmentScan, Tail, ValidPrefix, directory_scan, flush_page_cache, used_end,
};
use super::frame::{FRAME_HEADER_BYTES, FrameHeader, Kind, RUNS_MAX, Seed, Start, frame_bytes, header_crc, push_frame};
use super::scan::{Found, Payloads, Scanner, WINDOW_BYTES};
use super::segment::{
    At, Dir, FORMAT_VERSION, MIN_READER_VERSION, SEGMENT_HEADER_BYTES, SEQ_JUMP, SEQ_MAX, SegmentHeader, adopt_spare,
    enlist_spare, is_full, make_zeros, sync_data, sync_dir,
};
use super::{Damage, LaneId, OpenError, Recovered};
use crate::{clock, fault};

/// Semaphore that every segment keeps for the SEAL frame.
pub(super) const SEAL_BYTES: u64 = FRAME_HEADER_BYTES as u64;

/// A segment as the running journal knows it: what is durable in it.
#[derive(Clone, Debug)]
pub(super) struct Segment {
    pub(super) path: PathBuf,
    /// Bytes of the file.
    pub(super) size: u64,
    /// Where the last durable frame that counts ends.
    pub(super) end: u64,
    pub(super) seed: Seed,
    /// The number of its first frame; 0 where its header was damaged.
    pub(super) first_seq: u64,
    /// Newest durable frame of each lane in it.
    pub(super) lanes: BTreeMap<LaneId, u64>,
    /// Since when the database is known to have all of it, as far as it is closed.
    pub(super) settled_at: Option<Instant>,
}

/// An opened journal, before its threads run.
pub(super) struct Opened {
    pub(super) recovered: Recovered,
    pub(super) segments: BTreeMap<u64, Segment>,
    pub(super) dedup_index: Vec<DedupEntry>,
    /// The new segment, open for writing.
    pub(super) active: File,
    pub(super) number: u64,
    pub(super) run_seq: u64,
    /// Header CRC of its last frame.
    pub(super) crc_last: u32,
    /// There was no room for a segment of full size.
    pub(super) full: bool,
}

/// Reads the directory (under the lock), keeps aside what cannot be read, and starts a new run.
pub(super) fn recover(dir: &Dir, segment_bytes: u64) -> Result<Opened, OpenError> {
    flush_page_cache(dir)?;
    let found = directory_scan(dir, Depth::Open)?;
    let asides_kept = set_aside(dir, &found.aside);
    let last = found.segments.last();
    let is_last = |segment: &SegmentScan| last.is_some_and(|last| last.number == segment.number);
    if asides_kept {
        let superseded = found.segments.iter().filter(|segment| !is_last(segment) && segment.kept.frames == 0);
        found.empty.iter().chain(superseded.map(|segment| &segment.path)).for_each(|path| remove(path));
        dir.sync().at(dir.path(), "fsync the directory")?;
    }

    let runs = runs_before(found.start.as_ref(), segment_bytes);
    let dedup_index = DedupIndex::new(segment_bytes, found.dedup_index).list();
    let start = Start { run: Uuid::new_v4(), runs, lanes: found.lanes.clone(), dedup_index };
    let fresh = found.segments.is_empty() && found.number_last == 0;
    let created = fresh && found.empty.is_empty() && found.aside.is_empty();
    let jump = if fresh { 1 } else { SEQ_JUMP.saturating_mul(1 + 2 * found.unreadable) };
    let run_seq = found.seq_last.saturating_add(jump);
    if run_seq > SEQ_MAX {
        let source = io::Error::other(format!("{run_seq} is above the limit of {SEQ_MAX}"));
        return Err(OpenError::Io { path: dir.path().to_owned(), what: "give out another sequence number", source });
    }

    let stays = |segment: &&SegmentScan| match is_last(segment) {
        true => segment.kept.data_frames > 0,
        false => segment.kept.frames > 0,
    };
    let before = found.segments.iter().rev().find(stays);
    let tail = last.map(|last| last.tail.clone()).unwrap_or_default();
    let header = SegmentHeader {
        format_version: FORMAT_VERSION,
        min_reader_version: MIN_READER_VERSION,
        reused: false,
        writer: found.writer.unwrap_or_else(Uuid::new_v4),
        number: found.number_last + 1,
        first_seq: if tail.data_frames > 0 { tail.data_seq_first } else { run_seq },
        created_at_us: clock::wall_us(),
        prev_seq_last: before.map_or(0, |before| before.kept.seq_last),
        prev_crc: before.map_or(0, |before| before.kept.crc_last),
        run_seq,
    };
    let durable = before.map_or(0, |before| before.kept.seq_last);
    let new = write_first_segment(dir, &header, last, &tail, &start, durable, segment_bytes)?;

    let mut segments = BTreeMap::new();
    for segment in &found.segments {
        if stays(&segment) {
            let size = if is_last(segment) && asides_kept { cut(segment) } else { segment.size };
            segments.insert(segment.number, known(segment, size));
        } else if is_last(segment) && asides_kept {
            remove(&segment.path);
        }
    }
    dir.sync().at(dir.path(), "fsync the directory")?;
    let number = header.number;
    segments.insert(number, new.segment);
    Ok(Opened {
        recovered: Recovered {
            writer: header.writer,
            run: start.run,
            runs: start.runs,
            seq_last: found.seq_last,
            lanes: found.lanes,
            created,
            clean: found.clean,
            torn_bytes: found.torn_bytes,
            damage: found.damage,
        },
        segments,
        dedup_index: start.dedup_index,
        active: new.file,
        number,
        run_seq,
        crc_last: new.crc_last,
        full: new.full,
    })
}

/// The runs before the one that starts, as many as leave a segment most of its room.
fn runs_before(start: Option<&Start>, segment_bytes: u64) -> Vec<Uuid> {
    let Some(start) = start else { return Vec::new() };
    let mut runs = start.runs.clone();
    runs.push(start.run);
    let fit = usize::try_from(segment_bytes / 4 / 16).unwrap_or(RUNS_MAX).min(RUNS_MAX);
    runs.drain(..runs.len().saturating_sub(fit));
    runs
}

fn known(segment: &SegmentScan, size: u64) -> Segment {
    let ValidPrefix { end, ref lanes, .. } = segment.kept;
    let (path, first_seq) = (segment.path.clone(), segment.first_seq);
    Segment { path, size, end, seed: segment.seed, first_seq, lanes: lanes.clone(), settled_at: None }
}

/// Cuts the old last segment to what counts. Not essential: the next segment's header says it too.
fn cut(segment: &SegmentScan) -> u64 {
    let end = segment.kept.end;
    let cut = fs::OpenOptions::new().write(true).open(&segment.path).and_then(|file| {
        file.set_len(end)?;
        file.sync_all()
    });
    match cut {
        Ok(()) => end,
        Err(error) => {
            tracing::warn!(path = %segment.path.display(), %error, "cannot cut the old segment to its frames");
            segment.size
        }
    }
}

fn remove(path: &Path) {
    fault::kill_point("journal.segment.remove.before");
    if let Err(error) = fs::remove_file(path) {
        tracing::warn!(path = %path.display(), %error, "cannot remove a segment of which nothing is needed");
    }
    fault::kill_point("journal.segment.remove.after");
}

struct NewSegment {
    file: File,
    segment: Segment,
    crc_last: u32,
    full: bool,
}

/// Writes the segment that the new run starts with, wholly, before it gets its name.
fn write_first_segment(
    dir: &Dir,
    header: &SegmentHeader,
    old: Option<&SegmentScan>,
    tail: &Tail,
    start: &Start,
    durable: u64,
    segment_bytes: u64,
) -> Result<NewSegment, OpenError> {
    let start_payload = start.encode();
    let start_bytes = frame_bytes(start_payload.len());
    let need = SEGMENT_HEADER_BYTES as u64 + tail.data_bytes + start_bytes + SEAL_BYTES;
    let (file, size, full) = make_room(dir, old, segment_bytes.max(need), need)?;
    let seed = Seed::new(header.writer, header.number);
    let path = dir.spare();

    // First and alone: a spare with a header is never taken for one of zeros.
    file.write_all_at(&header.encode(), 0).at(&path, "write the segment header")?;
    sync_data(&file).at(&path, "fsync the segment header")?;
    let mut at = SEGMENT_HEADER_BYTES as u64;
    let mut lanes = BTreeMap::new();
    if let Some(old) = old.filter(|_| tail.data_frames > 0) {
        copy_tail(old, tail, seed, &file, &mut at, &mut lanes).at(&old.path, "copy its last frames")?;
    }
    fault::kill_point("journal.recover.copied");
    let start_header = FrameHeader::of_run(Kind::Start, header.run_seq, durable, &start_payload).encode(seed);
    let mut frame = Vec::with_capacity(FRAME_HEADER_BYTES + start_payload.len());
    push_frame(&mut frame, &start_header, &start_payload);
    file.write_all_at(&frame, at).at(&path, "write the START frame")?;
    sync_data(&file).at(&path, "fsync the new segment")?;
    enlist_spare(dir, header.number).at(&path, "give the new segment its name")?;
    let end = at + start_bytes;
    let (path, first_seq) = (dir.segment(header.number), header.first_seq);
    let segment = Segment { path, size, end, seed, first_seq, lanes, settled_at: None };
    Ok(NewSegment { file, segment, crc_last: header_crc(&start_header), full })
}

/// Copies the data frames above `D`: same sequence numbers, the new segment's seed.
fn copy_tail(
    old: &SegmentScan,
    tail: &Tail,
    seed: Seed,
    to: &File,
    at: &mut u64,
    lanes: &mut BTreeMap<LaneId, u64>,
) -> io::Result<()> {
    let mut scanner = Scanner::new(File::open(&old.path)?, old.seed, Payloads::Skip, WINDOW_BYTES, tail.end);
    scanner.seek(tail.offset);
    while let Some(found) = scanner.next()? {
        let Found::Frame { offset, header, .. } = found else {
            return Err(io::Error::other("frames that were valid a moment ago are not any more"));
        };
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
        lanes.insert(header.lane, header.seq);
    }
    Ok(())
}

/// A file of zeros under the spare's name: of `size` if there is room, else of what is needed, if need be
/// in room that the old segment or the ballast gives up. Says its size and whether the disk is full.
fn make_room(dir: &Dir, old: Option<&SegmentScan>, size: u64, need: u64) -> Result<(File, u64, bool), OpenError> {
    let path = dir.spare();
    if let Some(file) = adopt_spare(dir, size).at(&path, "look at the spare segment")? {
        return Ok((file, size, false));
    }
    let never = AtomicBool::new(false);
    let mut made = make_zeros(&path, size, &never);
    let mut full = false;
    let ways_out: [&dyn Fn() -> io::Result<()>; 3] =
        [&|| Ok(()), &|| old.map_or(Ok(()), trim), &|| fs::remove_file(dir.ballast())];
    for way_out in ways_out {
        match &made {
            Err(error) if is_full(error) => {}
            _ => break,
        }
        full = true;
        if way_out().is_ok() {
            made = make_zeros(&path, need, &never);
        }
    }
    let file = made.at(&path, "make a segment")?;
    Ok((file, if full { need } else { size }, full))
}

/// Gives back the zeros behind the last byte of a segment that nothing will be written to again.
fn trim(old: &SegmentScan) -> io::Result<()> {
    let file = fs::OpenOptions::new().read(true).write(true).open(&old.path)?;
    let used = used_end(&file, old.kept.end.max(old.tail.end), old.size)?;
    file.set_len(used)
}

/// Keeps aside what the survey names. Says whether all of it is safe there; if not (the disk is full),
/// the originals stay where they are.
pub(super) fn set_aside(dir: &Dir, asides: &[Quarantined]) -> bool {
    let mut all = true;
    for aside in asides {
        if let Err(error) = set_one_aside(dir, aside) {
            tracing::error!(?aside, %error, "cannot keep unreadable bytes aside; they stay where they are");
            all = false;
        }
    }
    all
}

fn set_one_aside(dir: &Dir, aside: &Quarantined) -> io::Result<()> {
    let quarantine = dir.quarantine();
    if !quarantine.is_dir() {
        fs::create_dir(&quarantine)?;
        dir.sync()?;
    }
    match aside {
        Quarantined::Copy { from, offset, bytes, name } => {
            let to = quarantine.join(name);
            if to.exists() {
                return Ok(());
            }
            let draft = quarantine.join("draft.tmp");
            let drafted = copy_range(from, *offset, *bytes, &draft).and_then(|()| fs::rename(&draft, &to));
            if drafted.is_err() {
                let _ = fs::remove_file(&draft);
            }
            drafted?;
        }
        Quarantined::Move { from, name } => {
            let mut to = quarantine.join(name);
            let mut copy = 1;
            while to.exists() {
                copy += 1;
                to = quarantine.join(format!("{name}.{copy}"));
            }
            fs::rename(from, &to)?;
            dir.sync()?;
        }
    }
    sync_dir(&quarantine)
}

fn copy_range(from: &Path, offset: u64, bytes: u64, to: &Path) -> io::Result<()> {
    let (from, to) = (File::open(from)?, File::create(to)?);
    let mut buffer = vec![0; WINDOW_BYTES];
    let mut at = 0;
    while at < bytes {
        let want = buffer.len().min(usize::try_from(bytes - at).unwrap_or(usize::MAX));
        match from.read_at(&mut buffer[..want], offset + at) {
            Ok(0) => break,
            Ok(read) => {
                to.write_all_at(&buffer[..read], at)?;
                at += read as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    to.sync_all()
}

/// Torn tails are kept to be looked at; nobody was promised them, so only the newest stay.
pub(super) fn forget_old_torn_tails(dir: &Dir) {
    const TORN_TAILS_MAX: usize = 16;
    let Ok(entries) = fs::read_dir(dir.quarantine()) else { return };
    let segment = |name: &str| name.strip_prefix("torn-")?.split('-').next()?.parse::<u64>().ok();
    let mut torn: Vec<_> = entries
        .flatten()
        .filter_map(|entry| Some((entry.file_name().to_str().and_then(segment)?, entry.path())))
        .collect();
    torn.sort_unstable();
    for (_, path) in &torn[..torn.len().saturating_sub(TORN_TAILS_MAX)] {
        tracing::info!(path = %path.display(), "an old torn tail is removed from the quarantine");
        let _ = fs::remove_file(path);
    }
}

/// Damage in words, for the log, and counted.
pub(super) fn report(recovered: &Recovered) {
    metrics::counter!("logweir_journal_torn_bytes_total").increment(recovered.torn_bytes);
    for Damage { segment, offset, bytes, seq_first, seq_last, what } in &recovered.damage {
        tracing::error!(segment, offset, bytes, seq_first, seq_last, what, "damage in the journal");
    }
    metrics::counter!("logweir_journal_damaged_frames_total").increment(damaged_frames(&recovered.damage));
}

/// How many sequence numbers the damage takes.
pub(super) fn damaged_frames(damage: &[Damage]) -> u64 {
    damage.iter().map(|damage| (damage.seq_last + 1).saturating_sub(damage.seq_first)).sum()
}
