//! What is new in the files, in rounds. Blocking; knows no socket and no runtime.
//!
//! - A file is its device and inode, wherever it is renamed to. Other content under the same inode (a truncated file, an
//!   inode used again) is noticed by its size and its first bytes.
//! - A copy of a file that is being read (`copytruncate`) is left alone until the original is truncated; then it is read on
//!   from where the original stood.
//! - What waits for more (a line without its end, a record that may go on) stays in the file and is read again.
//! - Each round takes a bounded piece of a bounded number of files, and each round begins with the next file.

use std::collections::HashMap;
use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::{DirEntryExt as _, FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use logweir_engine::clock::wall_us;
use logweir_engine::journal::DedupKey;
use uuid::Uuid;

use super::super::container;
use super::super::framing::{Cutter, Framing};
use super::super::lines::{Boundary, Composer, Discarded};
use super::super::multiline::Multiline;
use super::super::source_client::{SourceBatch, discard};
use super::checkpoint::{Checkpoint, Former, Head, Position, Sending};
use crate::message::Defaults;

/// Files that are read in one round.
pub const FILES_PER_ROUND: usize = 16;
/// Files that are known at most; further ones wait until others are gone.
pub const FILES_MAX: usize = 10_000;
/// Bytes beside a line of the largest size that are read of a file in one round.
pub const WINDOW_BYTES: usize = 64 << 10;
/// Bytes by which a content is known.
const HEAD_BYTES: u64 = 1024;
/// A file that was renamed out of the globs is watched for so long after its last byte: its writer may still have it open.
const ROTATED: Duration = Duration::from_secs(300);
/// A line without its end is taken when its file was renamed or removed and quiet for so long.
const LAST_LINE: Duration = Duration::from_secs(5);

/// The name by which what is discarded is counted.
pub const COMPONENT: &str = "files";

/// How files are read.
pub struct Settings {
    /// Where the checkpoint lies.
    pub data_dir: PathBuf,
    /// Globs.
    pub include: Vec<String>,
    /// Globs of what is left out.
    pub exclude: Vec<glob::Pattern>,
    /// Files that are there at the very first start are passed over.
    pub from_end: bool,
    /// The host of records that name none.
    pub host: String,
    /// How often the globs are looked through.
    pub rescan: Duration,
    /// Descriptors that are kept open.
    pub open_max: usize,
    /// A longer line is discarded and counted.
    pub line_bytes_max: usize,
    /// Which lines are one record.
    pub multiline: Multiline,
    /// How long a record waits for its next line.
    pub multiline_timeout: Duration,
}

/// Reads files and remembers how far.
pub struct Tailer {
    settings: Arc<Settings>,
    files: Vec<Tailed>,
    /// The file with which the next round begins.
    next: usize,
    scanned: Option<Instant>,
    /// Nobody has ever read files here.
    is_first: bool,
    /// The checkpoint on disk is older than what is known.
    is_dirty: bool,
    new_stream: Box<dyn Fn() -> u64 + Send>,
    is_crowded: bool,
    /// Files that begin as another one does that still stands there.
    copies: usize,
}

struct Tailed {
    position: Position,
    stream: u64,
    defaults: Defaults,
    file: Option<File>,
    size: u64,
    changed: Instant,
    /// The size at the last look, and whether the file was quiet.
    looked: Option<(u64, bool)>,
    /// No glob has it any more.
    is_rotated: bool,
    /// Found in the scan under way.
    is_matched: bool,
    is_lost: bool,
    discarded: Discarded,
}

/// A body of one file.
#[derive(Debug)]
pub struct Piece {
    /// The file, by its incarnation.
    pub incarnation: Uuid,
    /// The body.
    pub source_batch: SourceBatch,
}

impl Tailer {
    /// Goes on from the checkpoint, if there is one. `new_stream` numbers the files' streams.
    ///
    /// # Errors
    /// The checkpoint cannot be read.
    pub fn open(settings: Arc<Settings>, new_stream: impl Fn() -> u64 + Send + 'static) -> io::Result<Self> {
        let checkpoint = Checkpoint::load(&settings.data_dir)?;
        let mut tailer = Self {
            is_first: checkpoint.is_none(),
            settings,
            files: Vec::new(),
            next: 0,
            scanned: None,
            is_dirty: true,
            new_stream: Box::new(new_stream),
            is_crowded: false,
            copies: 0,
        };
        for position in checkpoint.unwrap_or_default().files {
            tailer.add(position, Instant::now());
        }
        Ok(tailer)
    }

    /// The next bodies. Their ranges are on disk when this returns; each must be [settled](Self::acknowledge) before the next call.
    ///
    /// # Errors
    /// The checkpoint cannot be written: nothing may be handed in.
    pub fn gather(&mut self, now: Instant) -> io::Result<Vec<Piece>> {
        if self.scanned.is_none_or(|at| now.duration_since(at) >= self.settings.rescan) {
            self.scan(now);
            self.scanned = Some(now);
        }
        let mut pieces = Vec::new();
        let count = self.files.len();
        for step in 0..count {
            if pieces.len() == FILES_PER_ROUND {
                self.next = (self.next + step) % count;
                break;
            }
            let index = (self.next + step) % count;
            match self.look(index, now) {
                Ok(Some(piece)) => pieces.push(piece),
                Ok(None) => {}
                Err(error) => {
                    let path = self.files[index].position.path.display();
                    tracing::debug!(%path, %error, "a file cannot be read now");
                    self.files[index].file = None;
                }
            }
        }
        if self.is_dirty || !pieces.is_empty() {
            self.save()?;
        }
        Ok(pieces)
    }

    /// The body of this file was taken, or will never be (then its records are counted as discarded).
    pub fn acknowledge(&mut self, incarnation: Uuid) {
        let Some(tailed) = self.files.iter_mut().find(|tailed| tailed.position.incarnation == incarnation) else {
            return;
        };
        if let Some(Sending { end, skipping, head }) = tailed.position.sending.take() {
            let position = &mut tailed.position;
            (position.offset, position.skipping, position.head) = (end, skipping, head);
        }
        tailed.count_discarded();
        self.is_dirty = true;
    }

    /// Writes the checkpoint.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn save(&mut self) -> io::Result<()> {
        Checkpoint::new(self.files.iter().map(|tailed| tailed.position.clone()).collect())
            .save(&self.settings.data_dir)?;
        self.is_dirty = false;
        Ok(())
    }

    fn add(&mut self, position: Position, now: Instant) {
        let defaults = defaults(&position.origin, &self.settings.host);
        self.files.push(Tailed {
            position,
            stream: (self.new_stream)(),
            defaults,
            file: None,
            size: 0,
            changed: now,
            looked: None,
            is_rotated: false,
            is_matched: false,
            is_lost: false,
            discarded: Discarded::default(),
        });
        self.is_dirty = true;
    }

    /// Looks through the globs for files that are new, renamed or gone.
    fn scan(&mut self, now: Instant) {
        let mut known: HashMap<(u64, u64), usize> = HashMap::new();
        for (index, tailed) in self.files.iter_mut().enumerate() {
            tailed.is_matched = false;
            known.insert((tailed.position.dev, tailed.position.ino), index);
        }
        let mut new: Vec<(PathBuf, Metadata)> = Vec::new();
        let settings = Arc::clone(&self.settings);
        for path in settings.include.iter().filter_map(|pattern| glob::glob(pattern).ok()).flatten().flatten() {
            if is_compressed(&path) || settings.exclude.iter().any(|pattern| pattern.matches_path(&path)) {
                continue;
            }
            let Ok(metadata) = fs::metadata(&path) else { continue };
            if !metadata.is_file() {
                continue;
            }
            match known.get(&(metadata.dev(), metadata.ino())) {
                Some(&usize::MAX) => {} // by two paths
                Some(&index) => self.files[index].found(path),
                None => {
                    known.insert((metadata.dev(), metadata.ino()), usize::MAX);
                    new.push((path, metadata));
                }
            }
        }
        for tailed in &mut self.files {
            tailed.is_rotated = !tailed.is_matched;
        }
        self.copies = 0;
        for (path, metadata) in new {
            self.begin(path, &metadata, now);
        }
        metrics::gauge!("logweir_files_watched").set(self.files.len() as f64);
        metrics::gauge!("logweir_files_ignored_duplicates").set(self.copies as f64);
        self.is_first = false;
        let before = self.files.len();
        self.files.retain(|tailed| !tailed.is_done(now));
        self.is_dirty |= self.files.len() != before;
    }

    /// Begins a file that nobody has seen before.
    fn begin(&mut self, path: PathBuf, metadata: &Metadata, now: Instant) {
        if self.files.len() >= FILES_MAX {
            if !self.is_crowded {
                tracing::warn!(path = %path.display(), files_max = FILES_MAX,
                    "there are more files than can be watched: further ones wait; narrow files.include");
            }
            self.is_crowded = true;
            return;
        }
        let mut position = Position {
            dev: metadata.dev(),
            ino: metadata.ino(),
            incarnation: Uuid::new_v4(),
            offset: if self.is_first && self.settings.from_end { metadata.size() } else { 0 },
            origin: path.clone(),
            path: real(path),
            ..Position::default()
        };
        match self.original_of(&position.path, metadata.size(), now) {
            Original::None => {}
            Original::Intact => {
                self.copies += 1;
                return; // looked at again in the next scan
            }
            Original::Truncated(Former { offset, skipping, head }) => {
                (position.offset, position.skipping, position.head) = (offset, skipping, head);
            }
        }
        tracing::info!(path = %position.path.display(), offset = position.offset, "a file is read");
        self.add(position, now);
    }

    /// Whether `path` is a copy of a file that is being read: its name goes on from that one's, and it begins as that one does
    /// (a copy in the making may still be shorter) or did.
    fn original_of(&mut self, path: &Path, size: u64, now: Instant) -> Original {
        let Ok(copy) = File::open(path) else { return Original::None };
        for tailed in &mut self.files {
            if !is_name_of_copy(&tailed.position.path, path) {
                continue;
            }
            let had_file = tailed.file.is_some();
            if !had_file {
                tailed.file = tailed.position.open().ok().flatten();
            }
            let _ = tailed.refresh(now);
            let is_former = |former: &Former| {
                let Head { len, .. } = former.head;
                len > 0 && former.offset <= size && read_head(&copy, len).is_ok_and(|head| head == former.head)
            };
            let compared = HEAD_BYTES.min(size).min(tailed.size);
            let begins_alike = |original: &File| {
                let heads = read_head(original, compared).ok().zip(read_head(&copy, compared).ok());
                heads.is_some_and(|(original, copy)| original == copy)
            };
            let found = if tailed.position.former.as_ref().is_some_and(is_former) {
                tailed.position.former.take().map(Original::Truncated)
            } else if size == 0 || (compared > 0 && tailed.file.as_ref().is_some_and(begins_alike)) {
                Some(Original::Intact)
            } else {
                None
            };
            if !had_file {
                tailed.file = None;
            }
            if let Some(found) = found {
                return found;
            }
        }
        Original::None
    }

    /// What is new in one file.
    fn look(&mut self, index: usize, now: Instant) -> io::Result<Option<Piece>> {
        if self.files[index].file.is_none() && !self.open_one(index)? {
            return Ok(None);
        }
        let tailed = &mut self.files[index];
        tailed.refresh(now)?;
        let Some(size) = tailed.open_size()? else { return Ok(None) };
        let quiet = now.duration_since(tailed.changed);
        let is_last = tailed.is_rotated && quiet >= LAST_LINE;
        let is_quiet = quiet >= self.settings.multiline_timeout;
        let again = tailed.position.sending;
        if again.is_none() && (size <= tailed.position.offset || tailed.looked == Some((size, is_quiet)) && !is_last) {
            return Ok(None);
        }
        let room = self.settings.line_bytes_max + WINDOW_BYTES;
        let left = again.map_or(size, |sending| sending.end) - tailed.position.offset;
        let window = tailed.read(usize::try_from(left).unwrap_or(usize::MAX).min(room))?;
        let reaches_end = window.len() as u64 == left;
        let mut composer = self.settings.composer(tailed.position.skipping);
        composer.feed(&window, again.is_some() || (is_last && reaches_end));
        // Nothing ends in all that may be held, or nothing more has come for long enough.
        if again.is_some() || (is_quiet && reaches_end) || (!reaches_end && composer.whole().fed == 0) {
            composer.close();
        }
        let (boundary, body) = composer.into_whole();
        tailed.looked = Some((size, is_quiet)).filter(|_| reaches_end);
        let piece = tailed.take(boundary, body, again)?;
        self.is_dirty |= piece.is_none() && boundary.fed > 0;
        Ok(piece)
    }

    /// Opens a file, if there is a descriptor to spare. False if it must wait or is gone.
    fn open_one(&mut self, index: usize) -> io::Result<bool> {
        let tailed = &mut self.files[index];
        let metadata = fs::metadata(&tailed.position.path).ok().filter(|metadata| tailed.position.is(metadata));
        if let Some(metadata) = &metadata
            && metadata.size() == tailed.position.offset
            && tailed.position.sending.is_none()
        {
            return Ok(false); // nothing to read
        }
        let path = match metadata {
            Some(_) => Some(tailed.position.path.clone()),
            None => tailed.position.search(),
        };
        let Some(path) = path else {
            tailed.is_lost = true;
            return Ok(false);
        };
        if self.files.iter().filter(|tailed| tailed.file.is_some()).count() >= self.settings.open_max {
            let idle = self.files.iter_mut().filter(|tailed| tailed.file.is_some() && tailed.is_read());
            let Some(longest) = idle.min_by_key(|tailed| tailed.changed) else { return Ok(false) };
            longest.file = None;
        }
        let file = File::open(&path)?;
        let tailed = &mut self.files[index];
        if tailed.position.is(&file.metadata()?) {
            tailed.position.path = path;
            tailed.file = Some(file);
        }
        Ok(tailed.file.is_some())
    }
}

impl Settings {
    fn composer(&self, skipping: bool) -> Composer {
        let cutter = Cutter::new(Framing::Lines, self.line_bytes_max).in_a_line(skipping);
        Composer::new(cutter, Some(self.multiline.clone()))
    }
}

/// What a new file is a copy of.
enum Original {
    None,
    /// One that still stands there, or is about to be truncated.
    Intact,
    /// One that was truncated after this was taken of it.
    Truncated(Former),
}

impl Tailed {
    /// A glob has it, at `path`.
    fn found(&mut self, path: PathBuf) {
        self.is_matched = true;
        self.is_lost = false;
        if self.position.path != path && !fs::metadata(&self.position.path).is_ok_and(|at| self.position.is(&at)) {
            self.position.path = real(path);
        }
    }

    /// Size and content as they are now; a content that is another one is begun.
    fn refresh(&mut self, now: Instant) -> io::Result<()> {
        let Some(size) = self.open_size()? else { return Ok(()) };
        if size == self.size && size >= self.position.offset {
            return Ok(());
        }
        (self.size, self.changed) = (size, now);
        let (position, file) = (&mut self.position, self.file.as_ref());
        let is_same = size >= position.offset
            && position.sending.is_none_or(|sending| sending.end <= size)
            && file.is_some_and(|file| read_head(file, position.head.len).is_ok_and(|head| head == position.head));
        if !is_same {
            tracing::info!(path = %position.path.display(), offset = position.offset, size,
                "a file was truncated or holds other content: it is read from the beginning");
            if position.sending.is_some() {
                tracing::warn!(path = %position.path.display(),
                    "what was being handed in when the process ended is not in the file any more");
            }
            let former = Former { offset: position.offset, skipping: position.skipping, head: position.head };
            *position = Position {
                incarnation: Uuid::new_v4(),
                offset: 0,
                skipping: false,
                head: Head::default(),
                sending: None,
                former: Some(former),
                ..std::mem::take(position)
            };
            self.looked = None;
        }
        Ok(())
    }

    fn open_size(&self) -> io::Result<Option<u64>> {
        self.file.as_ref().map(|file| Ok(file.metadata()?.size())).transpose()
    }

    /// Up to `len` bytes from the offset on.
    fn read(&self, len: usize) -> io::Result<Vec<u8>> {
        let mut window = vec![0; len];
        let mut filled = 0;
        while let Some(file) = &self.file
            && filled < len
        {
            match file.read_at(&mut window[filled..], self.position.offset + filled as u64)? {
                0 => break,
                read => filled += read,
            }
        }
        window.truncate(filled);
        Ok(window)
    }

    /// Writes down that the bytes up to `boundary` are on their way; those without a record are done with at once.
    fn take(&mut self, boundary: Boundary, body: bytes::Bytes, again: Option<Sending>) -> io::Result<Option<Piece>> {
        if boundary.fed == 0 && again.is_none() {
            return Ok(None);
        }
        let end = self.position.offset + boundary.fed as u64;
        let head = match &self.file {
            Some(file) if self.position.head.len < HEAD_BYTES => read_head(file, end.min(HEAD_BYTES))?,
            _ => self.position.head,
        };
        self.discarded = boundary.discarded;
        let sending = again.unwrap_or(Sending { end, skipping: boundary.skipping, head });
        if body.is_empty() {
            let position = &mut self.position;
            (position.offset, position.skipping, position.head) = (sending.end, sending.skipping, sending.head);
            position.sending = None;
            self.count_discarded();
            return Ok(None);
        }
        let incarnation = self.position.incarnation;
        self.position.sending = Some(sending);
        let source_batch = SourceBatch {
            stream: self.stream,
            body,
            defaults: self.defaults.clone(),
            // The same in every life of the process, and higher with each piece.
            dedup_key: Some(DedupKey { key: incarnation.into_bytes(), position: sending.end, at_us: wall_us() }),
        };
        Ok(Some(Piece { incarnation, source_batch }))
    }

    fn count_discarded(&mut self) {
        let Discarded { too_long, incomplete } = std::mem::take(&mut self.discarded);
        for (reason, records) in [("line_too_long", too_long), ("frame_incomplete", incomplete)] {
            if records > 0 {
                discard(COMPONENT, reason, records);
            }
        }
    }

    fn is_read(&self) -> bool {
        self.position.sending.is_none() && self.size == self.position.offset
    }

    /// Nothing more can come of it.
    fn is_done(&self, now: Instant) -> bool {
        if self.is_lost {
            // It was renamed to where nobody finds it, or removed, while no descriptor was open.
            if self.is_rotated && !self.is_read() {
                tracing::warn!(path = %self.position.path.display(), offset = self.position.offset,
                    "a file is gone; what it may have held after this offset is not stored");
                metrics::counter!("logweir_files_removed_unread_total").increment(1);
            }
            return self.is_rotated;
        }
        if !self.is_rotated || !self.is_read() {
            return false;
        }
        let quiet = now.duration_since(self.changed);
        let is_removed = self.file.as_ref().is_some_and(|file| file.metadata().is_ok_and(|is| is.nlink() == 0));
        quiet >= if is_removed { LAST_LINE } else { ROTATED }
    }
}

impl Position {
    /// Whether it is the file that `metadata` is about.
    fn is(&self, metadata: &Metadata) -> bool {
        (metadata.dev(), metadata.ino()) == (self.dev, self.ino)
    }

    /// The file, if it is still where it was.
    fn open(&self) -> io::Result<Option<File>> {
        let file = File::open(&self.path)?;
        Ok(self.is(&file.metadata()?).then_some(file))
    }

    /// Where in its directory the file is now: it may have been renamed to a name that no glob has.
    fn search(&self) -> Option<PathBuf> {
        let entries = fs::read_dir(self.path.parent()?).ok()?;
        let is_it = |entry: &fs::DirEntry| entry.ino() == self.ino && entry.metadata().is_ok_and(|is| self.is(&is));
        entries.flatten().find(is_it).map(|entry| entry.path()).filter(|path| !is_compressed(path))
    }
}

/// The first `len` bytes.
fn read_head(file: &File, len: u64) -> io::Result<Head> {
    let mut bytes = vec![0; usize::try_from(len.min(HEAD_BYTES)).unwrap_or_default()];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(Head { len, crc: crc32c::crc32c(&bytes) })
}

/// `app.log.1` or `app.log-20261121` beside `app.log`.
fn is_name_of_copy(original: &Path, copy: &Path) -> bool {
    let names = original.file_name().zip(copy.file_name());
    let goes_on = names.is_some_and(|(original, copy)| {
        copy.len() > original.len() && copy.as_encoded_bytes().starts_with(original.as_encoded_bytes())
    });
    goes_on && original.parent() == copy.parent()
}

/// Where a link leads to: a file that is renamed is looked for beside itself, not beside what points to it.
fn real(path: PathBuf) -> PathBuf {
    fs::canonicalize(&path).unwrap_or(path)
}

/// Rotated files that were compressed hold what was read already.
fn is_compressed(path: &Path) -> bool {
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    matches!(extension, "gz" | "zst" | "bz2" | "xz" | "lz4" | "Z" | "zip" | "lzma")
}

/// What the path says of a file's records.
fn defaults(path: &Path, host: &str) -> Defaults {
    let text = |text: &str| serde_json::Value::from(text).to_string();
    let mut attributes = format!("\"log.file.path\":{}", text(&path.to_string_lossy()));
    let container = container::of_path(path);
    if let Some(container) = &container {
        for (name, value) in [
            ("k8s.namespace.name", Some(container.namespace)),
            ("k8s.pod.name", Some(container.pod)),
            ("k8s.pod.uid", container.pod_uid),
            ("k8s.container.name", Some(container.name)),
        ] {
            if let Some(value) = value {
                attributes.push_str(&format!(",\"{name}\":{}", text(value)));
            }
        }
    }
    Defaults {
        service: container.map(|container| container.name.into()),
        host: (!host.is_empty()).then(|| host.into()),
        attributes: Some(attributes.into()),
        ..Defaults::default()
    }
}
