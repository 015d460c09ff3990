//! Scans a journal's directory: which file is which segment, which frames are valid, what is torn, what is damaged.
//! Read-only; recovery and `check` act on the result.
//!
//! - A frame is valid if it is not above the `prev_seq_last` of any later segment: recovery has copied the frames above
//!   it into a newer segment, or truncated them.
//! - **Torn or damaged.** `D` is the highest `durable_upto` in the last segment. Bytes that are not a frame where
//!   sequence number `e` is expected are damage if `e <= D`: the frame may have been acknowledged. Otherwise they are a
//!   torn write, and neither it nor anything behind it was acknowledged. In older segments everything was durable
//!   before the next one was named, so every such place is damage.
//! - Bytes that the disk cannot read are damage wherever they are, and the frames behind them are read: a torn write
//!   can be read. Only behind a seal or a terminator, where no frame is, they are ignored.
//! - In a reused file, zeros where a frame is expected end the segment, whatever follows them.
//! - Known limit: damage to the very last group, with nothing written after it, looks like a torn write.
//! - Memory: one window, and the lanes of each segment.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Instant;

use uuid::Uuid;

use super::dedup_index::{DedupEntry, DedupIndex};
use super::error::OpenError;
use super::frame::{FRAME_HEADER_BYTES, FrameHeader, Kind, Seed, Start, find_writer};
use super::identity::{Identity, Runs};
use super::salvage::Salvage;
use super::scan::{Found, HOP_BYTES, Payloads, Scanner, WINDOW_BYTES};
use super::segment::{
    At, DecodedHeader, Dir, FORMAT_VERSION, OLDEST_VERSION, SEGMENT_BYTES_MAX, SEGMENT_HEADER_BYTES, SegmentHeader,
    TORN_BYTES_MAX, ZEROS,
};
use super::types::{Damage, LaneId, LaneTail};
use crate::file_system::{File, OpenMode};

/// How much is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Depth {
    /// The last segment completely, and the frame headers of older ones: enough for an open.
    Open,
    /// Also the payloads of older segments.
    Everything,
}

/// Something to move to `quarantine/`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Quarantined {
    /// A range of a file.
    Copy { from: PathBuf, offset: u64, bytes: u64, name: String },
    /// A whole file that is not a segment of this journal.
    Move { from: PathBuf, name: String },
}

/// Valid frames of a segment up to `D`.
#[derive(Clone, Debug, Default)]
pub(super) struct ValidPrefix {
    pub(super) frames: u64,
    pub(super) data_frames: u64,
    pub(super) seq_first: u64,
    pub(super) seq_last: u64,
    /// Header CRC of the last frame.
    pub(super) crc_last: u32,
    /// End of the last frame.
    pub(super) end: u64,
    /// Last frame of each lane among them.
    pub(super) lanes: BTreeMap<LaneId, u64>,
}

/// Frames of the last segment above `D`: valid, but possibly only in the page cache.
#[derive(Clone, Debug, Default)]
pub(super) struct Tail {
    pub(super) offset: u64,
    pub(super) end: u64,
    pub(super) data_frames: u64,
    pub(super) data_bytes: u64,
    pub(super) data_seq_first: u64,
    /// First and last frame of any kind.
    pub(super) seq_first: u64,
    pub(super) seq_last: u64,
    pub(super) lanes: BTreeMap<LaneId, u64>,
}

/// Scan result of one segment.
#[derive(Clone, Debug)]
pub(super) struct SegmentScan {
    pub(super) number: u64,
    pub(super) path: PathBuf,
    pub(super) size: u64,
    pub(super) seed: Seed,
    /// As stated in its header; 0 if that is damaged.
    pub(super) first_seq: u64,
    pub(super) valid: ValidPrefix,
    pub(super) tail: Tail,
}

/// Scan result of the directory.
#[derive(Debug)]
pub(super) struct DirectoryScan {
    pub(super) writer: Option<Uuid>,
    pub(super) segments: Vec<SegmentScan>,
    pub(super) lanes: BTreeMap<LaneId, LaneTail>,
    /// Lanes whose first frame ever was found, and its sequence number.
    pub(super) begins: BTreeMap<LaneId, u64>,
    /// All runs that are known.
    pub(super) runs: Runs,
    /// The keys of frames and of START frames.
    pub(super) dedup_index: DedupIndex,
    /// When the scan began: keys that it finds count as new.
    pub(super) began: Instant,
    /// Highest sequence number that was found or is known to have been used.
    pub(super) seq_last: u64,
    /// Highest number of any file.
    pub(super) number_last: u64,
    /// Number of segments without a readable frame.
    pub(super) unreadable: u64,
    pub(super) clean: bool,
    pub(super) torn_bytes: u64,
    pub(super) damage: Vec<Damage>,
    pub(super) quarantined: Vec<Quarantined>,
    /// Files that contain only zeros.
    pub(super) empty: Vec<PathBuf>,
}

/// A segment file and its header.
struct Head {
    name_number: u64,
    path: PathBuf,
    size: u64,
    header: Option<SegmentHeader>,
    identity: Option<Identity>,
    /// Whether a part of the header is unreadable or had a flipped bit.
    damaged: bool,
}

impl Head {
    fn writer(&self) -> Option<Uuid> {
        self.header.map(|header| header.writer).or(self.identity.map(|identity| identity.writer))
    }

    fn number(&self) -> u64 {
        self.header.map_or(self.name_number, |header| header.number)
    }

    /// Without a readable header, stale bytes may follow the frames.
    fn is_reused(&self) -> bool {
        self.header.is_none_or(|header| header.reused)
    }
}

/// Scans the directory.
///
/// # Errors
/// [`OpenError::TooNew`], or a read failed.
pub(super) fn scan_directory(dir: &Dir, depth: Depth) -> Result<DirectoryScan, OpenError> {
    let heads = read_heads(dir)?;
    let mut writer = owner(&heads);
    if writer.is_none() {
        writer = writer_in_starts(dir, &heads)?;
    }
    // Only if nothing else says it: a directory may have been copied without, or with another's.
    let stored = if writer.is_none() && !heads.is_empty() { dir.stored_identity() } else { None };
    let writer = writer.or(stored.map(|identity| identity.writer));
    let mut directory_scan = DirectoryScan {
        writer,
        number_last: heads.iter().map(|head| head.name_number).max().unwrap_or(0),
        ..DirectoryScan::new()
    };
    if let Some(identity) = stored {
        directory_scan.runs.add(&identity);
    }
    let placed = directory_scan.place(dir, heads)?;
    let limits = limits(&placed);
    for (index, (number, head)) in placed.iter().enumerate() {
        let next = placed.range(number + 1..).next().map(|(number, head)| (*number, head.header.is_some()));
        directory_scan
            .scan_segment(dir, *number, head, next, limits[index], depth)
            .at(&head.path, "read the segment")?;
    }
    Ok(directory_scan)
}

fn read_heads(dir: &Dir) -> Result<Vec<Head>, OpenError> {
    let mut heads = Vec::new();
    for (name_number, path) in dir.segments().at(dir.path(), "list the segments")? {
        let (size, bytes) = read_head(dir, &path).at(&path, "read the segment's header")?;
        let unreadable = DecodedHeader { damaged: true, ..DecodedHeader::default() };
        let DecodedHeader { header, identity, damaged } = bytes.as_ref().map_or(unreadable, DecodedHeader::decode);
        if let Some(SegmentHeader { format_version, min_reader_version, .. }) = header {
            let dir = dir.path().to_owned();
            if min_reader_version > FORMAT_VERSION {
                return Err(OpenError::TooNew { dir, needs: min_reader_version, have: FORMAT_VERSION });
            }
            if format_version < OLDEST_VERSION {
                return Err(OpenError::TooOld { dir, is: format_version, oldest: OLDEST_VERSION });
            }
        }
        heads.push(Head { name_number, path, size, header, identity, damaged });
    }
    Ok(heads)
}

fn read_head(dir: &Dir, path: &Path) -> io::Result<(u64, Option<[u8; SEGMENT_HEADER_BYTES]>)> {
    let file = dir.read(path)?;
    let size = file.metadata()?.bytes;
    let mut bytes = [0; SEGMENT_HEADER_BYTES];
    if size < bytes.len() as u64 {
        return Ok((size, None));
    }
    Salvage::new(file).read(&mut bytes, 0)?;
    Ok((size, Some(bytes)))
}

/// The journal's identity: the uuid of most segments; on a tie that of the lowest segment.
fn owner(heads: &[Head]) -> Option<Uuid> {
    let writers = || heads.iter().filter_map(|head| Some((head.writer()?, head.number())));
    let of = |writer: Uuid| writers().filter(move |(of, _)| *of == writer);
    writers()
        .map(|(writer, _)| writer)
        .max_by_key(|&writer| (of(writer).count(), std::cmp::Reverse(of(writer).map(|(_, number)| number).min())))
}

/// The journal's identity if no header is readable: from the latest START.
fn writer_in_starts(dir: &Dir, heads: &[Head]) -> Result<Option<Uuid>, OpenError> {
    for head in heads.iter().rev() {
        let mut bytes = vec![0; usize::try_from(head.size.min(2 * SEGMENT_BYTES_MAX)).unwrap_or(0)];
        let read = dir.read(&head.path).and_then(|file| Salvage::new(file).read(&mut bytes, 0));
        let read = read.at(&head.path, "read the segment")?;
        let writer = find_writer(&bytes[..read], head.name_number);
        if writer.is_some() {
            return Ok(writer);
        }
    }
    Ok(None)
}

/// The highest valid sequence number of each segment, as stated by the later segments.
fn limits(placed: &BTreeMap<u64, Head>) -> Vec<Option<u64>> {
    let mut limits = vec![None; placed.len()];
    let mut limit = None;
    for (index, head) in placed.values().enumerate().rev() {
        limits[index] = limit;
        if let Some(header) = head.header {
            limit = Some(limit.map_or(header.prev_seq_last, |limit: u64| limit.min(header.prev_seq_last)));
        }
    }
    limits
}

impl DirectoryScan {
    fn new() -> Self {
        Self {
            writer: None,
            segments: Vec::new(),
            lanes: BTreeMap::new(),
            begins: BTreeMap::new(),
            runs: Runs::default(),
            dedup_index: DedupIndex::new(SEGMENT_BYTES_MAX),
            began: Instant::now(),
            seq_last: 0,
            number_last: 0,
            unreadable: 0,
            clean: false,
            torn_bytes: 0,
            damage: Vec::new(),
            quarantined: Vec::new(),
            empty: Vec::new(),
        }
    }

    /// Decides which file is which segment: the number in the header counts, not the file name.
    fn place(&mut self, dir: &Dir, heads: Vec<Head>) -> Result<BTreeMap<u64, Head>, OpenError> {
        let mut placed = BTreeMap::new();
        // If two files claim the same number, the one with the matching name wins.
        let named: BTreeSet<u64> = heads
            .iter()
            .filter(|head| head.header.is_some_and(|header| self.is_own(&header) && header.number == head.name_number))
            .map(|head| head.name_number)
            .collect();
        for head in heads {
            let Some(header) = head.header else {
                self.place_without_header(dir, head, &mut placed, &named)?;
                continue;
            };
            self.number_last = self.number_last.max(header.number);
            let misnamed = header.number != head.name_number;
            if !self.is_own(&header) {
                self.quarantine_file(&head, "foreign", format!("segment of another journal, {}", header.writer));
            } else if misnamed && (named.contains(&header.number) || placed.contains_key(&header.number)) {
                self.quarantine_file(&head, "duplicate", format!("another copy of segment {}", header.number));
            } else {
                if misnamed {
                    self.report_damage(
                        &head,
                        format!("the file contains segment {} and is read as such", header.number),
                    );
                } else if head.damaged {
                    let reason = match head.identity {
                        Some(_) => "the segment header had a flipped bit and was repaired for reading",
                        None => "the segment header does not say which run wrote the segment",
                    };
                    self.report_damage(&head, reason.to_owned());
                }
                placed.insert(header.number, head);
            }
        }
        Ok(placed)
    }

    fn is_own(&self, header: &SegmentHeader) -> bool {
        self.writer == Some(header.writer)
    }

    /// A file without a readable header is the segment of its name if it contains frames of it.
    fn place_without_header(
        &mut self,
        dir: &Dir,
        head: Head,
        placed: &mut BTreeMap<u64, Head>,
        named: &BTreeSet<u64>,
    ) -> Result<(), OpenError> {
        if all_zeros(dir, &head).at(&head.path, "read the segment")? {
            self.empty.push(head.path);
            return Ok(());
        }
        let free = !named.contains(&head.name_number) && !placed.contains_key(&head.name_number);
        let frames = match self.writer {
            Some(writer) if free => has_frames(dir, &head, writer).at(&head.path, "read the segment")?,
            _ => false,
        };
        if frames {
            self.report_damage(&head, "the segment header is unreadable; its frames are readable".to_owned());
            placed.insert(head.name_number, head);
        } else {
            self.unreadable += 1;
            self.quarantine_file(
                &head,
                "unreadable",
                "neither a segment header nor a frame of this journal is readable".to_owned(),
            );
        }
        Ok(())
    }

    /// Reports damage that costs no frame, or none that is known here: the next segment's header reports those.
    fn report_damage(&mut self, head: &Head, reason: String) {
        self.damage.push(Damage {
            segment: head.name_number,
            offset: 0,
            bytes: SEGMENT_HEADER_BYTES as u64,
            seq_first: 1,
            seq_last: 0,
            reason,
        });
    }

    fn quarantine_file(&mut self, head: &Head, why: &str, reason: String) {
        self.report_damage(head, reason);
        let name = head.path.file_name().unwrap_or_default().to_string_lossy();
        self.quarantined.push(Quarantined::Move { from: head.path.clone(), name: format!("{why}-{name}") });
    }

    /// Scans one segment.
    fn scan_segment(
        &mut self,
        dir: &Dir,
        number: u64,
        head: &Head,
        next: Option<(u64, bool)>,
        limit: Option<u64>,
        depth: Depth,
    ) -> io::Result<()> {
        let writer = self.writer.expect("a placed segment implies an identity");
        let seed = Seed::new(writer, number);
        let is_last = next.is_none();
        let durable = if is_last { durable_upto(dir, head, seed)? } else { u64::MAX };
        let everything = is_last || depth == Depth::Everything;
        let (payloads, window) = if everything { (Payloads::Check, WINDOW_BYTES) } else { (Payloads::Skip, HOP_BYTES) };
        let before = self.segments.iter().rev().find(|before| before.valid.frames > 0);
        if let (Some(header), Some(before)) = (head.header, before)
            && header.prev_seq_last == before.valid.seq_last
            && header.prev_crc != before.valid.crc_last
        {
            self.report_damage(head, format!("it was not written after the present segment {}", before.number));
        }
        if let Some(identity) = head.identity.filter(|identity| identity.writer == writer) {
            self.runs.add(&identity);
        }
        if let Some(header) = head.header {
            self.seq_last = self.seq_last.max(header.run_seq).max(header.prev_seq_last).max(header.first_seq);
        }
        let mut walk = Walk {
            dir,
            directory_scan: self,
            scanner: Scanner::new(dir.read(&head.path)?, seed, payloads, window, head.size).reused(head.is_reused()),
            segment: SegmentScan {
                number,
                path: head.path.clone(),
                size: head.size,
                seed,
                first_seq: head.header.map_or(0, |header| header.first_seq),
                valid: ValidPrefix { end: SEGMENT_HEADER_BYTES as u64, ..ValidPrefix::default() },
                tail: Tail::default(),
            },
            expected: head.header.map(|header| header.first_seq),
            pending: None,
            reused: head.is_reused(),
            durable,
            complete: head.header.map_or(0, |header| header.run_seq.saturating_sub(1)).max(durable),
            limit: limit.unwrap_or(u64::MAX),
            sealed: false,
        };
        walk.run(next)?;
        let (segment, sealed) = (walk.segment, walk.sealed);
        self.clean = sealed;
        self.segments.push(segment);
        Ok(())
    }

    fn apply_start(&mut self, start: &Start) {
        for (&lane, &tail) in &start.lanes {
            let end = self.lanes.entry(lane).or_default();
            if tail.seq > end.seq {
                *end = tail;
            }
        }
        self.dedup_index.apply_start(&start.dedup_entries, self.began);
        self.runs.replace(&start.runs, start.run, start.confirmed);
    }
}

fn all_zeros(dir: &Dir, head: &Head) -> io::Result<bool> {
    Ok(used_end(dir.read(&head.path)?, 0, head.size)? == 0)
}

fn has_frames(dir: &Dir, head: &Head, writer: Uuid) -> io::Result<bool> {
    let seed = Seed::new(writer, head.name_number);
    let mut scanner = Scanner::new(dir.read(&head.path)?, seed, Payloads::Skip, WINDOW_BYTES, head.size);
    while let Some(found) = scanner.next()? {
        if let Found::Frame { .. } = found {
            return Ok(true);
        }
    }
    Ok(false)
}

/// `D`: the highest `durable_upto` of any header in the segment, including those behind bad bytes.
fn durable_upto(dir: &Dir, head: &Head, seed: Seed) -> io::Result<u64> {
    let mut scanner = Scanner::new(dir.read(&head.path)?, seed, Payloads::Skip, WINDOW_BYTES, head.size);
    let mut durable = 0;
    while let Some(found) = scanner.next()? {
        let (Found::Frame { header, .. } | Found::Bad { header: Some(header), .. }) = found else { continue };
        durable = durable.max(header.durable_upto);
    }
    Ok(durable)
}

/// Returns the end of the last nonzero byte at or after `from`; `from` if there is none.
pub(super) fn used_end(file: Box<dyn File>, from: u64, size: u64) -> io::Result<u64> {
    let mut file = Salvage::new(file);
    let mut buffer = vec![0; HOP_BYTES];
    let (mut at, mut end) = (from, from);
    while at < size {
        let read = file.read(&mut buffer, at)?;
        if read == 0 {
            break;
        }
        if buffer[..read] != ZEROS[..read] {
            let last = buffer[..read].iter().rposition(|&byte| byte != 0).expect("not all zeros");
            end = at + last as u64 + 1;
        }
        at += read as u64;
    }
    Ok(end)
}

/// The scan of one segment in progress.
struct Walk<'a> {
    dir: &'a Dir,
    directory_scan: &'a mut DirectoryScan,
    scanner: Scanner,
    segment: SegmentScan,
    /// The next sequence number, if known.
    expected: Option<u64>,
    /// Bad bytes whose sequence range is known only at the next valid frame.
    pending: Option<Pending>,
    /// Whether stale bytes follow the last frame.
    reused: bool,
    durable: u64,
    /// Up to here nothing is torn: what is durable, and what recovery had copied before the segment got its name.
    complete: u64,
    limit: u64,
    sealed: bool,
}

/// Bad bytes.
#[derive(Clone, Copy)]
struct Pending {
    offset: u64,
    bytes: u64,
    reason: &'static str,
    /// Whether a part of them could not be read.
    unreadable: bool,
}

impl Walk<'_> {
    fn run(&mut self, next: Option<(u64, bool)>) -> io::Result<()> {
        while self.segment.valid.seq_last < self.limit
            && let Some(found) = self.scanner.next()?
        {
            match found {
                Found::Frame { header, .. } if header.seq > self.limit => break,
                Found::Frame { offset, header, crc, repaired } if header.seq >= self.next_seq() => {
                    // A START may jump ahead; elsewhere a jump is a gap.
                    let gap = header.seq > self.next_seq() && header.kind != Kind::Start && self.expected.is_some();
                    let unreadable = self.pending.is_some_and(|pending| pending.unreadable);
                    if gap && self.next_seq() > self.complete && !unreadable {
                        self.truncate_at(offset)?;
                        break;
                    }
                    if gap || self.pending.is_some() {
                        self.report_gap(header.seq - 1, offset, "missing frames");
                    }
                    if repaired {
                        self.report_repair(offset, &header);
                    }
                    self.accept(offset, &header, crc)?;
                }
                Found::Frame { offset, header, .. } => {
                    let (bytes, reason) = (header.frame_bytes(), "frame out of order");
                    if self.is_torn(Pending { offset, bytes, reason, unreadable: false })? {
                        break;
                    }
                }
                // Nothing is written behind a seal.
                Found::Bad { unreadable: true, .. } if self.sealed => break,
                Found::Bad { offset, bytes, reason, header, unreadable } => {
                    if self.is_torn(Pending { offset, bytes, reason, unreadable })? {
                        break;
                    }
                    if let Some(header) = header.filter(|header| (self.next_seq()..=self.limit).contains(&header.seq)) {
                        self.report_lost_frame(offset, &header);
                    }
                }
            }
        }
        self.finish(next);
        Ok(())
    }

    fn next_seq(&self) -> u64 {
        self.expected.unwrap_or(self.directory_scan.seq_last + 1)
    }

    /// Notes bad bytes as pending. Returns true if the journal ends here: then they are truncated. What cannot be read
    /// is not torn.
    fn is_torn(&mut self, bad: Pending) -> io::Result<bool> {
        if self.next_seq() > self.complete && !bad.unreadable {
            if let Some(pending) = self.pending.filter(|pending| pending.unreadable) {
                self.report_unreadable_end(pending, bad.reason);
            }
            self.truncate_at(self.pending.map_or(bad.offset, |pending| pending.offset))?;
            return Ok(true);
        }
        let first = *self.pending.get_or_insert(bad);
        let bytes = bad.offset + bad.bytes - first.offset;
        self.pending = Some(Pending { bytes, unreadable: first.unreadable || bad.unreadable, ..first });
        Ok(false)
    }

    /// Reports pending bytes that cannot be read, with no frame behind them. How many frames they held is unknown. The
    /// START of a run, and its first frames, can be among them: the header tells its number.
    fn report_unreadable_end(&mut self, Pending { offset, bytes, .. }: Pending, reason: &'static str) {
        let frames_max = bytes.div_ceil(FRAME_HEADER_BYTES as u64);
        let seq_last = self.durable.max(self.next_seq() - 1 + frames_max);
        self.report_gap(seq_last, offset, reason);
        let start = self.directory_scan.seq_last;
        if start > seq_last {
            self.damage(offset + bytes, 0, start, start + frames_max, "the start of a run that the disk cannot read");
        }
    }

    /// Reports a frame with a valid header and a damaged payload: its sequence number is known.
    fn report_lost_frame(&mut self, offset: u64, header: &FrameHeader) {
        let pending = self.pending.take().expect("set by is_torn");
        let Pending { offset: from, bytes, reason, .. } = pending;
        if header.seq > self.next_seq() && (header.kind != Kind::Start || offset > from) {
            self.pending = Some(Pending { bytes: offset - from, ..pending });
            self.report_gap(header.seq - 1, offset, reason);
        }
        self.damage(offset, from + bytes - offset, header.seq, header.seq, reason);
        self.expected = Some(header.seq + 1);
        self.directory_scan.seq_last = self.directory_scan.seq_last.max(header.seq);
    }

    /// Reports pending bad bytes, or a gap without bytes, as damage that ends with `seq_last`.
    fn report_gap(&mut self, seq_last: u64, offset: u64, reason: &'static str) {
        let nothing = Pending { offset, bytes: 0, reason, unreadable: false };
        let Pending { offset, bytes, reason, .. } = self.pending.take().unwrap_or(nothing);
        self.damage(offset, bytes, self.next_seq(), seq_last, reason);
    }

    /// Reads the payload of a START or a CONFIRM.
    fn run_payload(&mut self, header: &FrameHeader, offset: u64) -> io::Result<Option<Vec<u8>>> {
        let Some((payload, repaired)) = self.scanner.run_payload(header, offset)? else { return Ok(None) };
        if repaired {
            self.report_repair(offset, header);
        }
        Ok(Some(payload))
    }

    fn report_repair(&mut self, offset: u64, header: &FrameHeader) {
        self.damage(offset, header.frame_bytes(), 1, 0, "a flipped bit of the frame was repaired for reading");
    }

    fn damage(&mut self, offset: u64, bytes: u64, seq_first: u64, seq_last: u64, reason: &str) {
        let segment = self.segment.number;
        if bytes > 0 {
            self.directory_scan.quarantined.push(Quarantined::Copy {
                from: self.segment.path.clone(),
                offset,
                bytes,
                name: damage_name(segment, offset, seq_first, seq_last),
            });
        }
        self.directory_scan.damage.push(Damage {
            segment,
            offset,
            bytes,
            seq_first,
            seq_last,
            reason: reason.to_owned(),
        });
    }

    /// Truncates the segment at `offset`: nothing from there on was acknowledged.
    fn truncate_at(&mut self, offset: u64) -> io::Result<()> {
        self.pending = None;
        let mut bytes = used_end(self.dir.read(&self.segment.path)?, offset, self.segment.size)? - offset;
        if self.reused {
            bytes = bytes.min(TORN_BYTES_MAX);
        }
        if bytes > 0 {
            self.sealed = false;
            self.directory_scan.torn_bytes += bytes;
            self.directory_scan.quarantined.push(Quarantined::Copy {
                from: self.segment.path.clone(),
                offset,
                bytes,
                name: format!("torn-{}-{offset}", self.segment.number),
            });
        }
        Ok(())
    }

    fn accept(&mut self, offset: u64, header: &FrameHeader, crc: u32) -> io::Result<()> {
        let end = offset + header.frame_bytes();
        let is_data = header.kind == Kind::Data;
        self.expected = Some(header.seq + 1);
        self.sealed = header.kind == Kind::Seal;
        self.directory_scan.seq_last = self.directory_scan.seq_last.max(header.seq);
        match header.kind {
            Kind::Data => {
                let tail = LaneTail { seq: header.seq, records: header.lane_records };
                if header.lane_prev_seq == 0 {
                    self.directory_scan.begins.insert(header.lane, header.seq);
                }
                let end = self.directory_scan.lanes.entry(header.lane).or_default();
                if tail.seq > end.seq {
                    *end = tail;
                }
                if let Some(dedup_key) = self.scanner.dedup_key(header, offset)? {
                    let entry = DedupEntry { dedup_key, lane: header.lane, seq: header.seq };
                    self.directory_scan.dedup_index.insert_found(entry, self.directory_scan.began);
                }
            }
            Kind::Start => match self.run_payload(header, offset)?.as_deref().and_then(Start::decode) {
                Some(start) => self.directory_scan.apply_start(&start),
                None => self.damage(offset, header.frame_bytes(), header.seq, header.seq, "unreadable START frame"),
            },
            Kind::Confirm => {
                let run = self.run_payload(header, offset)?.and_then(|run| Uuid::from_slice(&run).ok());
                self.directory_scan.runs.confirm(run);
                if run.is_none() {
                    self.damage(offset, header.frame_bytes(), header.seq, header.seq, "unreadable CONFIRM frame");
                }
            }
            Kind::Seal => {}
        }
        if header.seq > self.durable {
            let tail = &mut self.segment.tail;
            if tail.seq_last == 0 {
                (tail.offset, tail.seq_first) = (offset, header.seq);
            }
            if is_data {
                tail.lanes.insert(header.lane, header.seq);
                if tail.data_frames == 0 {
                    tail.data_seq_first = header.seq;
                }
                tail.data_frames += 1;
                tail.data_bytes += header.frame_bytes();
            }
            tail.end = end;
            tail.seq_last = header.seq;
            return Ok(());
        }
        let valid = &mut self.segment.valid;
        if valid.frames == 0 {
            valid.seq_first = header.seq;
        }
        valid.frames += 1;
        valid.data_frames += u64::from(is_data);
        valid.seq_last = header.seq;
        valid.crc_last = crc;
        valid.end = end;
        if is_data {
            valid.lanes.insert(header.lane, header.seq);
        }
        Ok(())
    }

    /// Reports what this segment, or the missing ones behind it, should have contained. `next` is the number of the
    /// following segment and whether its header was readable.
    fn finish(&mut self, next: Option<(u64, bool)>) {
        let offset = self.segment.valid.end;
        match next {
            Some((next, true)) if self.next_seq() <= self.limit => {
                let reason = match next - self.segment.number {
                    1 => "missing end of the segment".to_owned(),
                    _ => format!("missing segments between {} and {next}", self.segment.number),
                };
                self.report_missing_end(self.limit, offset, &reason);
            }
            // The end of this segment is unknown; a gap shows in the sequence of the next segment.
            Some((_, false)) if self.pending.is_some() => self.report_gap(self.next_seq() - 1, offset, ""),
            None if let Some(pending) = self.pending.filter(|pending| pending.unreadable) => {
                self.report_unreadable_end(pending, "");
            }
            None if self.pending.is_some() => self.report_gap(self.durable, offset, ""),
            _ => self.pending = None,
        }
    }

    fn report_missing_end(&mut self, seq_last: u64, offset: u64, reason: &str) {
        let (offset, bytes) = self.pending.take().map_or((offset, 0), |pending| (pending.offset, pending.bytes));
        self.damage(offset, bytes, self.next_seq(), seq_last, reason);
    }
}

/// Name of damaged bytes in `quarantine/`.
pub(super) fn damage_name(segment: u64, offset: u64, seq_first: u64, seq_last: u64) -> String {
    format!("damage-{segment}-{offset}-{seq_first}-{seq_last}")
}

/// Fsyncs before reading: recovery must not act on bytes that only the page cache holds.
pub(super) fn flush_page_cache(dir: &Dir) -> Result<(), OpenError> {
    if let Some((_, path)) = dir.segments().at(dir.path(), "list the segments")?.pop() {
        let file = dir.file_system().open(&path, OpenMode::Update).at(&path, "open the segment")?;
        file.sync_all().at(&path, "fsync the segment")?;
    }
    dir.sync().at(dir.path(), "fsync the directory")
}
