//! What lies in a journal's directory: which file is which segment, which frames count, what is torn,
//! what is damaged. Reads only; recovery and `check` act on what it says.
//!
//! - A frame counts if it is not above the `prev_seq_last` of any later segment: recovery copied what
//!   lies above into a newer segment, or cut it off.
//! - **Torn or damaged.** `D` is the highest `durable_upto` in the last segment. Bytes that are no frame
//!   where sequence number `e` should be are damage if `e <= D`: somebody was promised them. Else they
//!   are a torn write, and nothing from there on was promised to anybody. In older segments everything
//!   was on disk before the next one was named, so every such place is damage.
//! - In a file that was used before, zeros where a frame should be end the segment, whatever lies behind them.
//! - Stated limit: damage to the very last group, with nothing written after it, looks torn.
//! - Memory: one window, and per segment the lanes in it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use uuid::Uuid;

use super::dedup_index::DedupEntry;
use super::frame::{FrameHeader, Kind, Seed, Start};
use super::scan::{Found, HOP_BYTES, Payloads, Scanner, WINDOW_BYTES};
use super::segment::{At, Dir, FORMAT_VERSION, SEGMENT_HEADER_BYTES, SegmentHeader, TORN_BYTES_KEPT, ZEROS};
use super::{Damage, LaneId, LaneTail, OpenError};

/// How much is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Depth {
    /// The last segment wholly, of older ones the headers: what a start needs to know.
    Open,
    /// Every payload.
    Everything,
}

/// Something to keep aside in `quarantine/`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Quarantined {
    /// Some bytes of a file.
    Copy { from: PathBuf, offset: u64, bytes: u64, name: String },
    /// A whole file that is no segment of this journal.
    Move { from: PathBuf, name: String },
}

/// Frames of a segment that count, up to `D`.
#[derive(Clone, Debug, Default)]
pub(super) struct ValidPrefix {
    pub(super) frames: u64,
    pub(super) data_frames: u64,
    pub(super) seq_first: u64,
    pub(super) seq_last: u64,
    /// Header CRC of the last one.
    pub(super) crc_last: u32,
    /// Where the last one ends.
    pub(super) end: u64,
    /// Newest frame of each lane among them.
    pub(super) lanes: BTreeMap<LaneId, u64>,
}

/// Frames of the last segment above `D`: valid, but perhaps only in the page cache.
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

/// One segment as it was found.
#[derive(Clone, Debug)]
pub(super) struct SegmentScan {
    pub(super) number: u64,
    pub(super) path: PathBuf,
    pub(super) size: u64,
    pub(super) seed: Seed,
    /// What its header says; 0 where that is damaged.
    pub(super) first_seq: u64,
    pub(super) kept: ValidPrefix,
    pub(super) tail: Tail,
}

/// What lies in the directory.
#[derive(Debug, Default)]
pub(super) struct DirectoryScan {
    pub(super) writer: Option<Uuid>,
    pub(super) segments: Vec<SegmentScan>,
    pub(super) lanes: BTreeMap<LaneId, LaneTail>,
    /// Newest START.
    pub(super) start: Option<Start>,
    /// DedupIndex of frames, and those that STARTs remember; some of them more than once.
    pub(super) dedup_index: Vec<DedupEntry>,
    /// Highest sequence number that a frame was found or is known to have.
    pub(super) seq_last: u64,
    /// Highest number that a file has.
    pub(super) number_last: u64,
    /// Segments whose frames could not be read at all.
    pub(super) unreadable: u64,
    pub(super) clean: bool,
    pub(super) torn_bytes: u64,
    pub(super) damage: Vec<Damage>,
    pub(super) aside: Vec<Quarantined>,
    /// Files of nothing but zeros.
    pub(super) empty: Vec<PathBuf>,
}

/// A segment file and what its header says.
struct Head {
    name_number: u64,
    path: PathBuf,
    size: u64,
    header: Option<SegmentHeader>,
    /// The header was read only after a bit of it was mended, or not at all.
    damaged: bool,
}

impl Head {
    /// Where nothing says that the file was new, anything may lie behind its frames.
    fn is_reused(&self) -> bool {
        self.header.is_none_or(|header| header.reused)
    }
}

/// Reads the directory.
///
/// # Errors
/// [`OpenError::TooNew`], or the disk refused a read.
pub(super) fn directory_scan(dir: &Dir, depth: Depth) -> Result<DirectoryScan, OpenError> {
    let heads = read_heads(dir)?;
    let mut directory_scan = DirectoryScan {
        writer: owner(&heads),
        number_last: heads.iter().map(|head| head.name_number).max().unwrap_or(0),
        ..DirectoryScan::default()
    };
    let placed = directory_scan.place(heads)?;
    let limits = limits(&placed);
    for (index, (number, head)) in placed.iter().enumerate() {
        let next = placed.range(number + 1..).next().map(|(number, head)| (*number, head.header.is_some()));
        directory_scan.examine(*number, head, next, limits[index], depth).at(&head.path, "read the segment")?;
    }
    Ok(directory_scan)
}

fn read_heads(dir: &Dir) -> Result<Vec<Head>, OpenError> {
    let mut heads = Vec::new();
    for (name_number, path) in dir.segments().at(dir.path(), "list the segments")? {
        let (size, bytes) = read_head(&path).at(&path, "read the segment's header")?;
        let sound = bytes.as_ref().and_then(SegmentHeader::decode);
        let header = sound.or_else(|| bytes.as_ref().and_then(SegmentHeader::mend));
        if let Some(header) = header
            && header.min_reader_version > FORMAT_VERSION
        {
            let dir = dir.path().to_owned();
            return Err(OpenError::TooNew { dir, needs: header.min_reader_version, have: FORMAT_VERSION });
        }
        heads.push(Head { name_number, path, size, header, damaged: sound.is_none() });
    }
    Ok(heads)
}

fn read_head(path: &PathBuf) -> io::Result<(u64, Option<[u8; SEGMENT_HEADER_BYTES]>)> {
    let file = File::open(path)?;
    let size = file.metadata()?.len();
    let mut bytes = [0; SEGMENT_HEADER_BYTES];
    if size < bytes.len() as u64 {
        return Ok((size, None));
    }
    file.read_exact_at(&mut bytes, 0)?;
    Ok((size, Some(bytes)))
}

/// Whose journal this is: the uuid of most segments; among equals the one of the lowest segment.
fn owner(heads: &[Head]) -> Option<Uuid> {
    let headers = || heads.iter().filter_map(|head| head.header);
    let of = |writer: Uuid| headers().filter(move |header| header.writer == writer);
    headers()
        .map(|header| header.writer)
        .max_by_key(|&writer| (of(writer).count(), std::cmp::Reverse(of(writer).map(|header| header.number).min())))
}

/// The highest sequence number that counts in each segment: what the segments after it say.
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
    /// Decides which file is which segment: the header's number counts, not the file's name.
    fn place(&mut self, heads: Vec<Head>) -> Result<BTreeMap<u64, Head>, OpenError> {
        let mut placed = BTreeMap::new();
        // Where two files claim one number, the one whose name agrees has it.
        let named: BTreeSet<u64> = heads
            .iter()
            .filter(|head| head.header.is_some_and(|header| self.is_own(&header) && header.number == head.name_number))
            .map(|head| head.name_number)
            .collect();
        for head in heads {
            let Some(header) = head.header else {
                self.place_headless(head, &mut placed, &named)?;
                continue;
            };
            self.number_last = self.number_last.max(header.number);
            let misnamed = header.number != head.name_number;
            if !self.is_own(&header) {
                self.expel(&head, "foreign", format!("a segment of the journal {}", header.writer));
            } else if misnamed && (named.contains(&header.number) || placed.contains_key(&header.number)) {
                self.expel(&head, "duplicate", format!("a second copy of segment {}", header.number));
            } else {
                if misnamed {
                    self.note(&head, format!("the file holds segment {}; it is read as that", header.number));
                } else if head.damaged {
                    self.note(&head, "a bit of the segment header is wrong; it was mended for reading".to_owned());
                }
                placed.insert(header.number, head);
            }
        }
        Ok(placed)
    }

    fn is_own(&self, header: &SegmentHeader) -> bool {
        self.writer == Some(header.writer)
    }

    /// A file without a readable header is the segment of its name if frames of it can be found.
    fn place_headless(
        &mut self,
        head: Head,
        placed: &mut BTreeMap<u64, Head>,
        named: &BTreeSet<u64>,
    ) -> Result<(), OpenError> {
        if all_zeros(&head).at(&head.path, "read the segment")? {
            self.empty.push(head.path);
            return Ok(());
        }
        let free = !named.contains(&head.name_number) && !placed.contains_key(&head.name_number);
        let frames = match self.writer {
            Some(writer) if free => has_frames(&head, writer).at(&head.path, "read the segment")?,
            _ => false,
        };
        if frames {
            self.note(&head, "the segment header is unreadable; its frames were found all the same".to_owned());
            placed.insert(head.name_number, head);
        } else {
            self.unreadable += 1;
            self.expel(&head, "unreadable", "neither a header nor a frame of this journal can be read".to_owned());
        }
        Ok(())
    }

    /// Damage that costs no frame, or none that can be named here: the next segment's chain names it.
    fn note(&mut self, head: &Head, what: String) {
        self.damage.push(Damage {
            segment: head.name_number,
            offset: 0,
            bytes: SEGMENT_HEADER_BYTES as u64,
            seq_first: 1,
            seq_last: 0,
            what,
        });
    }

    fn expel(&mut self, head: &Head, why: &str, what: String) {
        self.note(head, what);
        let name = head.path.file_name().unwrap_or_default().to_string_lossy();
        self.aside.push(Quarantined::Move { from: head.path.clone(), name: format!("{why}-{name}") });
    }

    /// Walks over one segment.
    fn examine(
        &mut self,
        number: u64,
        head: &Head,
        next: Option<(u64, bool)>,
        limit: Option<u64>,
        depth: Depth,
    ) -> io::Result<()> {
        let writer = self.writer.expect("a placed segment has an owner");
        let seed = Seed::new(writer, number);
        let is_last = next.is_none();
        let durable = if is_last { durable_upto(head, seed)? } else { u64::MAX };
        let everything = is_last || depth == Depth::Everything;
        let (payloads, window) = if everything { (Payloads::Check, WINDOW_BYTES) } else { (Payloads::Skip, HOP_BYTES) };
        let before = self.segments.iter().rev().find(|before| before.kept.frames > 0);
        if let (Some(header), Some(before)) = (head.header, before)
            && header.prev_seq_last == before.kept.seq_last
            && header.prev_crc != before.kept.crc_last
        {
            self.note(head, format!("segment {} before it is not the one that it followed", before.number));
        }
        if let Some(header) = head.header {
            self.seq_last = self.seq_last.max(header.run_seq).max(header.prev_seq_last).max(header.first_seq);
        }
        let mut walk = Walk {
            directory_scan: self,
            scanner: Scanner::new(File::open(&head.path)?, seed, payloads, window, head.size).reused(head.is_reused()),
            segment: SegmentScan {
                number,
                path: head.path.clone(),
                size: head.size,
                seed,
                first_seq: head.header.map_or(0, |header| header.first_seq),
                kept: ValidPrefix { end: SEGMENT_HEADER_BYTES as u64, ..ValidPrefix::default() },
                tail: Tail::default(),
            },
            expected: head.header.map(|header| header.first_seq),
            pending: None,
            reused: head.is_reused(),
            durable,
            limit: limit.unwrap_or(u64::MAX),
            sealed: false,
        };
        walk.run(next)?;
        let (segment, sealed) = (walk.segment, walk.sealed);
        self.clean = sealed;
        self.segments.push(segment);
        Ok(())
    }

    fn see_start(&mut self, start: Start) {
        for (&lane, &tail) in &start.lanes {
            let newest = self.lanes.entry(lane).or_default();
            if tail.seq > newest.seq {
                *newest = tail;
            }
        }
        // The newest START repeats what the ones before it knew, and knows what was forgotten since.
        let first = start.dedup_index.first().map_or(u64::MAX, |dedup_entry| dedup_entry.seq);
        self.dedup_index.retain(|dedup_entry| dedup_entry.seq >= first);
        self.dedup_index.extend(&start.dedup_index);
        self.start = Some(start);
    }
}

fn all_zeros(head: &Head) -> io::Result<bool> {
    Ok(used_end(&File::open(&head.path)?, 0, head.size)? == 0)
}

fn has_frames(head: &Head, writer: Uuid) -> io::Result<bool> {
    let seed = Seed::new(writer, head.name_number);
    let mut scanner = Scanner::new(File::open(&head.path)?, seed, Payloads::Skip, WINDOW_BYTES, head.size);
    while let Some(found) = scanner.next()? {
        if let Found::Frame { .. } = found {
            return Ok(true);
        }
    }
    Ok(false)
}

/// `D`: the highest `durable_upto` of any header in the segment, behind bad places too.
fn durable_upto(head: &Head, seed: Seed) -> io::Result<u64> {
    let mut scanner = Scanner::new(File::open(&head.path)?, seed, Payloads::Skip, WINDOW_BYTES, head.size);
    let mut durable = 0;
    while let Some(found) = scanner.next()? {
        let (Found::Frame { header, .. } | Found::Bad { header: Some(header), .. }) = found else { continue };
        durable = durable.max(header.durable_upto);
    }
    Ok(durable)
}

/// Where the last byte that is not zero ends, at or after `from`; `from` if there is none.
pub(super) fn used_end(file: &File, from: u64, size: u64) -> io::Result<u64> {
    let mut buffer = vec![0; HOP_BYTES];
    let (mut at, mut end) = (from, from);
    while at < size {
        let read = match file.read_at(&mut buffer, at) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        if buffer[..read] != ZEROS[..read] {
            let last = buffer[..read].iter().rposition(|&byte| byte != 0).expect("not all zeros");
            end = at + last as u64 + 1;
        }
        at += read as u64;
    }
    Ok(end)
}

/// The walk over one segment.
struct Walk<'a> {
    directory_scan: &'a mut DirectoryScan,
    scanner: Scanner,
    segment: SegmentScan,
    /// Sequence number that must come next, where it is known.
    expected: Option<u64>,
    /// Bad bytes whose sequence range the next valid frame will tell: offset, bytes, what.
    pending: Option<(u64, u64, &'static str)>,
    /// Older bytes lie behind the newest frame.
    reused: bool,
    durable: u64,
    limit: u64,
    sealed: bool,
}

impl Walk<'_> {
    fn run(&mut self, next: Option<(u64, bool)>) -> io::Result<()> {
        while self.segment.kept.seq_last < self.limit
            && let Some(found) = self.scanner.next()?
        {
            match found {
                Found::Frame { header, .. } if header.seq > self.limit => break,
                Found::Frame { offset, header, crc } if header.seq >= self.expects() => {
                    // A jump is a new run's right; elsewhere it is a hole.
                    let hole = header.seq > self.expects() && header.kind != Kind::Start && self.expected.is_some();
                    if hole && self.expects() > self.durable {
                        self.tear(offset)?;
                        break;
                    }
                    if hole || self.pending.is_some() {
                        self.explain(header.seq - 1, offset, "frames are missing");
                    }
                    self.accept(offset, &header, crc)?;
                }
                Found::Frame { offset, header, .. } => {
                    let bad = (offset, header.frame_bytes(), "a frame out of order");
                    if self.is_torn(bad)? {
                        break;
                    }
                }
                Found::Bad { offset, bytes, what, header } => {
                    if self.is_torn((offset, bytes, what))? {
                        break;
                    }
                    if let Some(header) = header.filter(|header| (self.expects()..=self.limit).contains(&header.seq)) {
                        self.lose(offset, &header);
                    }
                }
            }
        }
        self.finish(next);
        Ok(())
    }

    fn expects(&self) -> u64 {
        self.expected.unwrap_or(self.directory_scan.seq_last + 1)
    }

    /// Notes bad bytes, unless the journal ends here: then they are cut.
    fn is_torn(&mut self, bad: (u64, u64, &'static str)) -> io::Result<bool> {
        if self.expects() > self.durable {
            self.tear(self.pending.map_or(bad.0, |pending| pending.0))?;
            return Ok(true);
        }
        let (offset, _, what) = *self.pending.get_or_insert(bad);
        self.pending = Some((offset, bad.0 + bad.1 - offset, what));
        Ok(false)
    }

    /// A frame with a sound header and a broken payload: its place in the sequence is known.
    fn lose(&mut self, offset: u64, header: &FrameHeader) {
        let (from, bytes, what) = self.pending.take().expect("the caller has just noted it");
        if header.seq > self.expects() && (header.kind != Kind::Start || offset > from) {
            self.pending = Some((from, offset - from, what));
            self.explain(header.seq - 1, offset, what);
        }
        self.damage(offset, from + bytes - offset, header.seq, header.seq, what);
        self.expected = Some(header.seq + 1);
        self.directory_scan.seq_last = self.directory_scan.seq_last.max(header.seq);
    }

    /// Turns pending bad bytes, or none, into damage that ends with `seq_last`.
    fn explain(&mut self, seq_last: u64, offset: u64, what: &'static str) {
        let (offset, bytes, what) = self.pending.take().unwrap_or((offset, 0, what));
        self.damage(offset, bytes, self.expects(), seq_last, what);
    }

    fn damage(&mut self, offset: u64, bytes: u64, seq_first: u64, seq_last: u64, what: &str) {
        let segment = self.segment.number;
        if bytes > 0 {
            self.directory_scan.aside.push(Quarantined::Copy {
                from: self.segment.path.clone(),
                offset,
                bytes,
                name: damage_name(segment, offset, seq_first, seq_last),
            });
        }
        self.directory_scan.damage.push(Damage { segment, offset, bytes, seq_first, seq_last, what: what.to_owned() });
    }

    /// Everything from `offset` on was never promised to anybody.
    fn tear(&mut self, offset: u64) -> io::Result<()> {
        self.pending = None;
        let mut bytes = used_end(&File::open(&self.segment.path)?, offset, self.segment.size)? - offset;
        if self.reused {
            bytes = bytes.min(TORN_BYTES_KEPT);
        }
        if bytes > 0 {
            self.sealed = false;
            self.directory_scan.torn_bytes += bytes;
            self.directory_scan.aside.push(Quarantined::Copy {
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
                let newest = self.directory_scan.lanes.entry(header.lane).or_default();
                if tail.seq > newest.seq {
                    *newest = tail;
                }
                if let Some(dedup_key) = self.scanner.dedup_key(header, offset)? {
                    self.directory_scan.dedup_index.push(DedupEntry { dedup_key, lane: header.lane, seq: header.seq });
                }
            }
            Kind::Start => match self.scanner.payload(header, offset)?.as_deref().and_then(Start::decode) {
                Some(start) => self.directory_scan.see_start(start),
                None => {
                    self.damage(offset, header.frame_bytes(), header.seq, header.seq, "a START frame is unreadable")
                }
            },
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
        let kept = &mut self.segment.kept;
        if kept.frames == 0 {
            kept.seq_first = header.seq;
        }
        kept.frames += 1;
        kept.data_frames += u64::from(is_data);
        kept.seq_last = header.seq;
        kept.crc_last = crc;
        kept.end = end;
        if is_data {
            kept.lanes.insert(header.lane, header.seq);
        }
        Ok(())
    }

    /// What the segment, or the ones behind it, should still have held. `next` is the number of the segment
    /// that follows and whether its header, which says so, could be read.
    fn finish(&mut self, next: Option<(u64, bool)>) {
        let offset = self.segment.kept.end;
        match next {
            Some((next, true)) if self.expects() <= self.limit => {
                let what = match next - self.segment.number {
                    1 => "the end of the segment is missing".to_owned(),
                    _ => format!("the segments between {} and {next} are missing", self.segment.number),
                };
                self.explain_all(self.limit, offset, &what);
            }
            // How far it went is not known; a hole shows in the sequence of the next segment.
            Some((_, false)) if self.pending.is_some() => self.explain(self.expects() - 1, offset, ""),
            None if self.pending.is_some() => self.explain(self.durable, offset, ""),
            _ => self.pending = None,
        }
    }

    fn explain_all(&mut self, seq_last: u64, offset: u64, what: &str) {
        let (offset, bytes, _) = self.pending.take().unwrap_or((offset, 0, ""));
        self.damage(offset, bytes, self.expects(), seq_last, what);
    }
}

/// Name in `quarantine/` of damaged bytes.
pub(super) fn damage_name(segment: u64, offset: u64, seq_first: u64, seq_last: u64) -> String {
    format!("damage-{segment}-{offset}-{seq_first}-{seq_last}")
}

/// fsync before reading: what is acted on must not be something that only the page cache holds.
pub(super) fn flush_page_cache(dir: &Dir) -> Result<(), OpenError> {
    if let Some((_, path)) = dir.segments().at(dir.path(), "list the segments")?.pop() {
        let file = OpenOptions::new().read(true).write(true).open(&path).at(&path, "open the segment")?;
        file.sync_all().at(&path, "fsync the segment")?;
    }
    dir.sync().at(dir.path(), "fsync the directory")
}
