//! How far each file was acknowledged, on disk: `DATA_DIR/files.json`.
//!
//! - An offset advances only with acknowledgments.
//! - Before bytes are submitted, their range is persisted (`in_flight`). After a crash exactly this range is submitted
//!   again with the same [`DedupKey`](logweir_engine::journal::DedupKey), so that the journal can recognize it.
//! - The file is replaced atomically: written to a temporary file, fsynced, renamed, directory fsynced.

use std::fs::{self, File, Metadata};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Name of the file in `data_dir`.
pub const NAME: &str = "files.json";

/// State of all files.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    version: u32,
    /// Unordered.
    pub files: Vec<Position>,
    /// Files that are not found any more, and may come back.
    #[serde(default)]
    pub gone: Vec<Position>,
}

/// State of one file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// Device of the file.
    pub dev: u64,
    /// Inode: a renamed file is the same file.
    pub ino: u64,
    /// A new number for each new content, however often an inode is reused.
    pub incarnation: Uuid,
    /// Last known path.
    pub path: PathBuf,
    /// First known path, which appears in its records.
    pub origin: PathBuf,
    /// Everything before it is acknowledged.
    pub offset: u64,
    /// `offset` is within an overlong line.
    #[serde(default)]
    pub skipping: bool,
    /// Fingerprint of the beginning of the content.
    pub head: Head,
    /// Fingerprint of what is before `offset`, if it is known.
    #[serde(default)]
    pub foot: Option<Head>,
    /// The range in flight.
    #[serde(default)]
    pub in_flight: Option<InFlight>,
    /// The contents before truncations of which a copy may exist that has not been found yet, oldest first.
    #[serde(default)]
    pub previous_contents: Vec<PreviousContent>,
}

/// Truncations of one file between two scans, whose copies are recognized nevertheless. Each takes a hundred bytes of the
/// checkpoint, and remains there if the copy is compressed or removed before it is found.
const PREVIOUS_MAX: usize = 8;

impl Position {
    /// Remembers the content that is there now, before it is truncated, and begins again.
    pub fn begin_again(&mut self) {
        let previous = PreviousContent { offset: self.offset, skipping: self.skipping, head: self.head };
        // What nothing was read of is read from its copy.
        if previous.head.len > 0 {
            self.previous_contents.push(previous);
            let forgotten = self.previous_contents.len().saturating_sub(PREVIOUS_MAX);
            self.previous_contents.drain(..forgotten);
        }
        (self.incarnation, self.offset, self.skipping) = (Uuid::new_v4(), 0, false);
        (self.head, self.foot, self.in_flight) = (Head::default(), None, None);
    }
}

/// Fingerprint of the first or the last bytes of what was read, to detect other content under the same inode.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// Number of bytes.
    pub len: u64,
    /// Their CRC-32C.
    pub crc: u32,
}

/// Bytes that identify a content.
pub const HEAD_BYTES: u64 = 1024;

impl Head {
    /// Fingerprint of the first `len` bytes, of [`HEAD_BYTES`] at most.
    ///
    /// # Errors
    /// They cannot be read, or the file is shorter.
    pub fn read(file: &File, len: u64) -> io::Result<Self> {
        Self::at(file, 0, len.min(HEAD_BYTES))
    }

    /// Fingerprint of the last bytes before `offset`.
    ///
    /// # Errors
    /// As [`Head::read`].
    pub fn before(file: &File, offset: u64) -> io::Result<Self> {
        let len = offset.min(HEAD_BYTES);
        Self::at(file, offset - len, len)
    }

    fn at(file: &File, offset: u64, len: u64) -> io::Result<Self> {
        let mut bytes = vec![0; usize::try_from(len).unwrap_or_default()];
        file.read_exact_at(&mut bytes, offset)?;
        Ok(Self { len, crc: crc32c::crc32c(&bytes) })
    }
}

/// A range that was persisted before it was submitted: from the offset to `end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InFlight {
    /// Its end.
    pub end: u64,
    /// As in [`Position`], at `end`.
    pub skipping: bool,
    /// As in [`Position`], at `end`.
    pub head: Head,
    /// As in [`Position`], at `end`.
    #[serde(default)]
    pub foot: Option<Head>,
}

/// A content that no longer exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PreviousContent {
    /// How far it was acknowledged.
    pub offset: u64,
    /// As in [`Position`].
    pub skipping: bool,
    /// Fingerprint of its beginning.
    pub head: Head,
}

const VERSION: u32 = 1;

impl Position {
    /// Whether `metadata` describes this file.
    pub fn is(&self, metadata: &Metadata) -> bool {
        (metadata.dev(), metadata.ino()) == (self.dev, self.ino)
    }
}

impl Checkpoint {
    /// A checkpoint of these positions.
    pub fn new(files: Vec<Position>, gone: Vec<Position>) -> Self {
        Self { version: VERSION, files, gone }
    }

    /// Loads it; `None` if it does not exist. A corrupt one is moved aside and all files are read from the beginning:
    /// records may then be stored twice, but none is lost.
    ///
    /// # Errors
    /// It exists but cannot be read.
    pub fn load(dir: &Path) -> io::Result<Option<Self>> {
        let path = dir.join(NAME);
        let text = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        match serde_json::from_slice::<Self>(&text) {
            Ok(checkpoint) if checkpoint.version == VERSION => Ok(Some(checkpoint)),
            other => {
                let error = other.err().map_or_else(|| "unsupported version".to_owned(), |error| error.to_string());
                let moved_to = dir.join(format!("{NAME}.unreadable"));
                fs::rename(&path, &moved_to)?;
                tracing::error!(moved_to = %moved_to.display(), error,
                    "the checkpoint of the tailed files is corrupt: all files are read from the beginning, \
                     and records that were stored before are stored again");
                Ok(Some(Self::default()))
            }
        }
    }

    /// Replaces the file on disk.
    ///
    /// # Errors
    /// The write failed; the previous file is still in place.
    pub fn save(&self, dir: &Path) -> io::Result<()> {
        let temporary = dir.join(format!("{NAME}.tmp"));
        let mut file = File::create(&temporary)?;
        file.write_all(&serde_json::to_vec(self)?)?;
        file.sync_all()?;
        fs::rename(&temporary, dir.join(NAME))?;
        File::open(dir)?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_round_trips_and_a_corrupt_one_is_moved_aside() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Checkpoint::load(dir.path()).unwrap(), None);
        let head = Head { len: 3, crc: 7 };
        let in_flight = Some(InFlight { end: 9, skipping: true, head, foot: Some(head) });
        let mut position = Position { dev: 1, ino: 2, path: "/a".into(), offset: 4, head, ..Position::default() };
        position.begin_again();
        (position.offset, position.in_flight) = (5, in_flight);
        assert_eq!(position.previous_contents, [PreviousContent { offset: 4, skipping: false, head }]);
        let saved = Checkpoint::new(vec![position.clone()], vec![position]);
        saved.save(dir.path()).unwrap();
        assert_eq!(Checkpoint::load(dir.path()).unwrap(), Some(saved));
        fs::write(dir.path().join(NAME), "{").unwrap();
        assert_eq!(Checkpoint::load(dir.path()).unwrap(), Some(Checkpoint::default()));
        assert!(dir.path().join("files.json.unreadable").exists());
    }

    #[test]
    fn the_latest_contents_are_remembered_but_none_of_which_nothing_was_read() {
        let mut position = Position::default();
        position.begin_again();
        assert_eq!(position.previous_contents, []);
        for offset in 1..=20 {
            (position.offset, position.head.len) = (offset, offset);
            position.begin_again();
            assert_eq!((position.offset, position.head), (0, Head::default()));
        }
        let offsets: Vec<u64> = position.previous_contents.iter().map(|previous| previous.offset).collect();
        assert_eq!(offsets, (13..=20).collect::<Vec<_>>());
    }
}
