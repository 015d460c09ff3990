//! Reads new content of files, in rounds. Blocking; uses no sockets and no runtime.
//!
//! - A file is identified by device and inode, wherever it is renamed to. Other content under the same inode (a
//!   truncated file, a reused inode) is detected by its size and its first bytes.
//! - A copy of a file that is being read (`copytruncate`) is ignored until the original is truncated; then it is read
//!   from the position reached in the original. The positions of the latest truncations are remembered, since a file may
//!   be truncated several times before the next scan finds the copies.
//! - What may continue (a line without a line feed, a record that may get more lines) stays in the file and is read
//!   again.
//! - Each round reads a bounded window of a bounded number of files, and starts with the next file.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::{DirEntryExt as _, FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use logweir_engine::journal::{DedupKey, DedupKind};
use uuid::Uuid;

use super::super::container;
use super::super::framing::{Framing, RecordSplitter};
use super::super::lines::{BodyBuilder, Boundary, Discarded};
use super::super::multiline::Multiline;
use super::super::source_client::{SourceBatch, discard};
use super::checkpoint::{Checkpoint, HEAD_BYTES, Head, InFlight, Position, PreviousContent};
use super::gone::Gone;
use logweir_formats::Defaults;

/// Files read per round.
pub const FILES_PER_ROUND: usize = 16;
/// Maximum number of known files; others wait until some are removed.
pub const FILES_MAX: usize = 10_000;
/// Bytes read of a file per round, beside a line of maximum size.
pub const WINDOW_BYTES: usize = 64 << 10;
/// How long a file that was renamed out of the globs is watched after its last byte, since its writer may still have it
/// open.
const ROTATED_WATCH: Duration = Duration::from_secs(300);
/// A line without a line feed is taken when its file was renamed or removed and unchanged for this long.
const LAST_LINE_DELAY: Duration = Duration::from_secs(5);

/// Component label of the counters for discarded records.
pub const COMPONENT: &str = "files";

/// Settings for tailing.
pub struct Settings {
    /// Directory of the checkpoint.
    pub data_dir: PathBuf,
    /// Globs of the files to read.
    pub include: Vec<String>,
    /// Globs of the files to exclude.
    pub exclude: Vec<glob::Pattern>,
    /// Skip the content that exists at the very first start.
    pub from_end: bool,
    /// Host of records without one.
    pub host: String,
    /// Interval of directory scans.
    pub rescan: Duration,
    /// Maximum number of open descriptors.
    pub open_max: usize,
    /// Longer lines are discarded and counted.
    pub line_bytes_max: usize,
    /// Rules for joining lines.
    pub multiline: Multiline,
    /// How long a record waits for its next line.
    pub multiline_timeout: Duration,
}

/// Reads files and tracks their positions.
pub struct Tailer {
    settings: Arc<Settings>,
    files: Vec<Tailed>,
    gone: Gone,
    /// Whether files were forgotten that the journal may still remember.
    has_forgotten: bool,
    /// The file that the next round starts with.
    next: usize,
    scanned: Option<Instant>,
    /// No checkpoint exists yet.
    is_first: bool,
    /// The checkpoint on disk is outdated.
    is_dirty: bool,
    new_stream: Box<dyn Fn() -> u64 + Send>,
    files_max_reached: bool,
    /// Number of files ignored as copies of a file that still exists.
    copies: usize,
}

struct Tailed {
    position: Position,
    stream: u64,
    defaults: Defaults,
    file: Option<File>,
    size: u64,
    changed: Instant,
    /// The size at the last poll, and whether the file was quiet.
    last_poll: Option<(u64, bool)>,
    /// No glob matches it any more.
    is_rotated: bool,
    /// Matched by the current scan.
    is_matched: bool,
    is_lost: bool,
    discarded: Discarded,
}

/// A body of one file.
#[derive(Debug)]
pub struct Piece {
    /// The incarnation of the file.
    pub incarnation: Uuid,
    /// The body.
    pub source_batch: SourceBatch,
}

impl Tailer {
    /// Resumes from the checkpoint, if there is one. `new_stream` numbers the files' streams.
    ///
    /// # Errors
    /// The checkpoint cannot be read.
    pub fn open(settings: Arc<Settings>, new_stream: impl Fn() -> u64 + Send + 'static) -> io::Result<Self> {
        let checkpoint = Checkpoint::load(&settings.data_dir)?;
        let mut tailer = Self {
            is_first: checkpoint.is_none(),
            settings,
            files: Vec::new(),
            gone: Gone::default(),
            // What the journal knows may be older than the checkpoint.
            has_forgotten: true,
            next: 0,
            scanned: None,
            is_dirty: true,
            new_stream: Box::new(new_stream),
            files_max_reached: false,
            copies: 0,
        };
        let (checkpoint, now) = (checkpoint.unwrap_or_default(), Instant::now());
        for position in checkpoint.files {
            tailer.add(position, now);
        }
        for position in checkpoint.gone {
            tailer.gone.add(position, now);
        }
        Ok(tailer)
    }

    /// Returns the next bodies. Their ranges are on disk when this returns; each must be
    /// [acknowledged](Self::acknowledge) before the next call.
    ///
    /// # Errors
    /// The checkpoint cannot be written: nothing may be submitted.
    pub fn next_pieces(&mut self, now: Instant) -> io::Result<Vec<Piece>> {
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
            match self.poll(index, now) {
                Ok(Some(piece)) => pieces.push(piece),
                Ok(None) => {}
                Err(error) => {
                    let path = self.files[index].position.path.display();
                    tracing::debug!(%path, %error, "cannot read a file: retrying at the next poll");
                    self.files[index].file = None;
                }
            }
        }
        if self.is_dirty || !pieces.is_empty() {
            self.save()?;
        }
        Ok(pieces)
    }

    /// The body of this file was accepted, or rejected for good (its records are then counted as discarded).
    pub fn acknowledge(&mut self, incarnation: Uuid) {
        let Some(tailed) = self.files.iter_mut().find(|tailed| tailed.position.incarnation == incarnation) else {
            return;
        };
        if let Some(in_flight) = tailed.position.in_flight.take() {
            tailed.advance(in_flight);
        }
        tailed.count_discarded();
        self.is_dirty = true;
    }

    /// Writes the checkpoint.
    ///
    /// # Errors
    /// The write failed.
    pub fn save(&mut self) -> io::Result<()> {
        let files = self.files.iter().map(|tailed| tailed.position.clone()).collect();
        Checkpoint::new(files, self.gone.positions().cloned().collect()).save(&self.settings.data_dir)?;
        self.is_dirty = false;
        Ok(())
    }

    /// The incarnations that may be submitted from now on, if others no longer are, since the last call.
    pub fn take_incarnations(&mut self) -> Option<HashSet<[u8; 16]>> {
        let known = self.files.iter().map(|tailed| &tailed.position).chain(self.gone.positions());
        std::mem::take(&mut self.has_forgotten).then(|| known.map(|it| it.incarnation.into_bytes()).collect())
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
            last_poll: None,
            is_rotated: false,
            is_matched: false,
            is_lost: false,
            discarded: Discarded::default(),
        });
        self.is_dirty = true;
    }

    /// Scans the globs for files that are new, renamed or removed.
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
                Some(&usize::MAX) => {} // reached by two paths
                Some(&index) => self.files[index].matched_at(path),
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
            self.start_tailing(path, &metadata, now);
        }
        metrics::gauge!("logweir_files_watched").set(self.files.len() as f64);
        metrics::gauge!("logweir_files_ignored_duplicates").set(self.copies as f64);
        self.is_first = false;
        let mut has_forgotten = self.gone.forget(now);
        let (done, files): (Vec<_>, _) = std::mem::take(&mut self.files).into_iter().partition(|it| it.is_done(now));
        self.files = files;
        self.is_dirty |= has_forgotten || !done.is_empty();
        for tailed in done {
            has_forgotten |= tailed.is_removed() || self.gone.add(tailed.position, now);
        }
        self.has_forgotten |= has_forgotten;
    }

    /// Starts tailing a file that is not known yet.
    fn start_tailing(&mut self, path: PathBuf, metadata: &Metadata, now: Instant) {
        if self.files.len() >= FILES_MAX {
            if !self.files_max_reached {
                tracing::warn!(path = %path.display(), files_max = FILES_MAX,
                    "more files match than can be watched: the rest wait until some are removed; \
                     narrow files.include");
            }
            self.files_max_reached = true;
            return;
        }
        if let Some(position) = self.gone.take(&path) {
            tracing::info!(path = %path.display(), offset = position.offset, "a file is back: it is read on");
            self.add(Position { path: canonical(path), ..position }, now);
            return;
        }
        let mut position = Position {
            dev: metadata.dev(),
            ino: metadata.ino(),
            incarnation: Uuid::new_v4(),
            offset: if self.is_first && self.settings.from_end { metadata.size() } else { 0 },
            origin: path.clone(),
            path: canonical(path),
            ..Position::default()
        };
        match self.original_of(&position.path, metadata.size(), now) {
            Original::None => {}
            Original::Unchanged => {
                self.copies += 1;
                return; // examined again in the next scan
            }
            Original::Truncated(PreviousContent { offset, skipping, head }) => {
                (position.offset, position.skipping, position.head) = (offset, skipping, head);
            }
        }
        tracing::info!(path = %position.path.display(), offset = position.offset, "tailing a file");
        self.add(position, now);
    }

    /// Whether `path` is a copy of a file that is being read: its name extends that file's name, and it begins as that
    /// file does (a copy in progress may still be shorter) or did.
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
            let is_previous = |previous: &PreviousContent| {
                let Head { len, .. } = previous.head;
                len > 0 && previous.offset <= size && Head::read(&copy, len).is_ok_and(|head| head == previous.head)
            };
            let compared = HEAD_BYTES.min(size).min(tailed.size);
            let begins_alike = |original: &File| {
                let heads = Head::read(original, compared).ok().zip(Head::read(&copy, compared).ok());
                heads.is_some_and(|(original, copy)| original == copy)
            };
            let previous_contents = &mut tailed.position.previous_contents;
            // Contents that begin alike: the copy is most likely of the latest.
            let original = if let Some(found) = previous_contents.iter().rposition(is_previous) {
                Some(Original::Truncated(previous_contents.remove(found)))
            } else if size == 0 || (compared > 0 && tailed.file.as_ref().is_some_and(begins_alike)) {
                Some(Original::Unchanged)
            } else {
                None
            };
            if !had_file {
                tailed.file = None;
            }
            if let Some(original) = original {
                return original;
            }
        }
        Original::None
    }

    /// Reads what is new in one file.
    fn poll(&mut self, index: usize, now: Instant) -> io::Result<Option<Piece>> {
        if self.files[index].file.is_none() && !self.open_one(index)? {
            return Ok(None);
        }
        let tailed = &mut self.files[index];
        let incarnation = tailed.position.incarnation;
        tailed.refresh(now)?;
        let is_other_content = tailed.position.incarnation != incarnation;
        self.has_forgotten |= is_other_content;
        self.is_dirty |= is_other_content;
        let Some(size) = tailed.open_size()? else { return Ok(None) };
        let quiet = now.duration_since(tailed.changed);
        let is_last = tailed.is_rotated && quiet >= LAST_LINE_DELAY;
        let is_quiet = quiet >= self.settings.multiline_timeout;
        let resent = tailed.position.in_flight;
        if resent.is_none()
            && (size <= tailed.position.offset || tailed.last_poll == Some((size, is_quiet)) && !is_last)
        {
            return Ok(None);
        }
        let window_max = self.settings.line_bytes_max + WINDOW_BYTES;
        let left = resent.map_or(size, |in_flight| in_flight.end) - tailed.position.offset;
        let window = tailed.read(usize::try_from(left).unwrap_or(usize::MAX).min(window_max))?;
        let reaches_end = window.len() as u64 == left;
        let mut builder = self.settings.body_builder(tailed.position.skipping);
        builder.feed(&window, resent.is_some() || (is_last && reaches_end));
        // No record ends within the window, or nothing more has arrived for long enough.
        if resent.is_some() || (is_quiet && reaches_end) || (!reaches_end && builder.boundary().fed == 0) {
            builder.close();
        }
        let (boundary, body) = builder.into_boundary();
        tailed.last_poll = Some((size, is_quiet)).filter(|_| reaches_end);
        let piece = tailed.take(boundary, body, resent)?;
        self.is_dirty |= piece.is_none() && boundary.fed > 0;
        Ok(piece)
    }

    /// Opens a file, if a descriptor is available. Returns false if it must wait or is removed.
    fn open_one(&mut self, index: usize) -> io::Result<bool> {
        let tailed = &mut self.files[index];
        let metadata = fs::metadata(&tailed.position.path).ok().filter(|metadata| tailed.position.is(metadata));
        if let Some(metadata) = &metadata
            && metadata.size() == tailed.position.offset
            && tailed.position.in_flight.is_none()
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
    fn body_builder(&self, skipping: bool) -> BodyBuilder {
        let splitter = RecordSplitter::new(Framing::Lines, self.line_bytes_max).within_line(skipping);
        BodyBuilder::new(splitter, Some(self.multiline.clone()))
    }
}

/// What a new file is a copy of.
enum Original {
    None,
    /// A file that still exists, or is about to be truncated.
    Unchanged,
    /// A file that was truncated after the copy was made.
    Truncated(PreviousContent),
}

impl Tailed {
    /// A glob matches it at `path`.
    fn matched_at(&mut self, path: PathBuf) {
        self.is_matched = true;
        self.is_lost = false;
        if self.position.path != path && !fs::metadata(&self.position.path).is_ok_and(|at| self.position.is(&at)) {
            self.position.path = canonical(path);
        }
    }

    /// Updates size and content; other content starts a new incarnation.
    fn refresh(&mut self, now: Instant) -> io::Result<()> {
        let Some(size) = self.open_size()? else { return Ok(()) };
        if size == self.size && size >= self.position.offset {
            return Ok(());
        }
        (self.size, self.changed) = (size, now);
        let (position, file) = (&mut self.position, self.file.as_ref());
        let is_same = size >= position.offset
            && position.in_flight.is_none_or(|in_flight| in_flight.end <= size)
            && file.is_some_and(|file| Head::read(file, position.head.len).is_ok_and(|head| head == position.head));
        if !is_same {
            tracing::info!(path = %position.path.display(), offset = position.offset, size,
                "a file was truncated or replaced: it is read from the beginning");
            if position.in_flight.is_some() {
                tracing::warn!(path = %position.path.display(),
                    "the range that was in flight when the process ended is no longer in the file");
            }
            position.begin_again();
            self.last_poll = None;
        }
        Ok(())
    }

    fn open_size(&self) -> io::Result<Option<u64>> {
        self.file.as_ref().map(|file| Ok(file.metadata()?.size())).transpose()
    }

    /// Reads up to `len` bytes from the offset.
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

    /// Marks the bytes up to `boundary` as in flight; if they contain no record, they are acknowledged at once.
    fn take(&mut self, boundary: Boundary, body: bytes::Bytes, resent: Option<InFlight>) -> io::Result<Option<Piece>> {
        if boundary.fed == 0 && resent.is_none() {
            return Ok(None);
        }
        let end = self.position.offset + boundary.fed as u64;
        let head = match &self.file {
            Some(file) if self.position.head.len < HEAD_BYTES => Head::read(file, end.min(HEAD_BYTES))?,
            _ => self.position.head,
        };
        self.discarded = boundary.discarded;
        let foot = self.file.as_ref().and_then(|file| Head::before(file, end).ok());
        let in_flight = resent.unwrap_or(InFlight { end, skipping: boundary.skipping, head, foot });
        if body.is_empty() {
            self.advance(in_flight);
            self.position.in_flight = None;
            self.count_discarded();
            return Ok(None);
        }
        let incarnation = self.position.incarnation;
        self.position.in_flight = Some(in_flight);
        let source_batch = SourceBatch {
            stream: self.stream,
            body,
            defaults: self.defaults.clone(),
            // Stable across restarts, and increasing with each piece.
            dedup_key: Some(DedupKey {
                key: incarnation.into_bytes(),
                kind: DedupKind::Source { position: in_flight.end },
            }),
        };
        Ok(Some(Piece { incarnation, source_batch }))
    }

    /// Everything up to the end of the range is acknowledged.
    fn advance(&mut self, InFlight { end, skipping, head, foot }: InFlight) {
        let position = &mut self.position;
        (position.offset, position.skipping, position.head, position.foot) = (end, skipping, head, foot);
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
        self.position.in_flight.is_none() && self.size == self.position.offset
    }

    /// Whether nothing more can be read from it.
    fn is_done(&self, now: Instant) -> bool {
        if self.is_lost {
            // It was renamed to an unknown place or removed while it was not open.
            if self.is_rotated && !self.is_read() {
                tracing::warn!(path = %self.position.path.display(), offset = self.position.offset,
                    "a file was removed before it was read to its end: content after this offset is not stored");
                metrics::counter!("logweir_files_removed_unread_total").increment(1);
            }
            return self.is_rotated;
        }
        if !self.is_rotated || !self.is_read() {
            return false;
        }
        let quiet = now.duration_since(self.changed);
        quiet >= if self.is_removed() { LAST_LINE_DELAY } else { ROTATED_WATCH }
    }

    /// Whether it has no name any more, and never will.
    fn is_removed(&self) -> bool {
        self.file.as_ref().is_some_and(|file| file.metadata().is_ok_and(|is| is.nlink() == 0))
    }
}

impl Position {
    /// Opens the file, if it is still at its path.
    fn open(&self) -> io::Result<Option<File>> {
        let file = File::open(&self.path)?;
        Ok(self.is(&file.metadata()?).then_some(file))
    }

    /// Finds the file in its directory: it may have been renamed to a name that no glob matches.
    fn search(&self) -> Option<PathBuf> {
        let entries = fs::read_dir(self.path.parent()?).ok()?;
        let is_it = |entry: &fs::DirEntry| entry.ino() == self.ino && entry.metadata().is_ok_and(|is| self.is(&is));
        entries.flatten().find(is_it).map(|entry| entry.path()).filter(|path| !is_compressed(path))
    }
}

/// Whether `copy` is named like a copy of `original`: `app.log.1` or `app.log-20261121` beside `app.log`.
fn is_name_of_copy(original: &Path, copy: &Path) -> bool {
    let names = original.file_name().zip(copy.file_name());
    let goes_on = names.is_some_and(|(original, copy)| {
        copy.len() > original.len() && copy.as_encoded_bytes().starts_with(original.as_encoded_bytes())
    });
    goes_on && original.parent() == copy.parent()
}

/// Resolves links: a renamed file is searched beside itself, not beside a link to it.
fn canonical(path: PathBuf) -> PathBuf {
    fs::canonicalize(&path).unwrap_or(path)
}

/// Rotated files that were compressed contain what was already read.
fn is_compressed(path: &Path) -> bool {
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    matches!(extension, "gz" | "zst" | "bz2" | "xz" | "lz4" | "Z" | "zip" | "lzma")
}

/// Defaults for the records of a file, derived from its path.
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
