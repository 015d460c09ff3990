//! How far each file has been taken, on disk: `DATA_DIR/files.json`.
//!
//! - An offset moves only with what is acknowledged.
//! - Before bytes are handed in, their range is written down (`sending`). After a crash exactly this range is handed in
//!   again with the same [`DedupKey`](logweir_engine::journal::DedupKey), so that the journal can tell whether it has it.
//! - The file is replaced as a whole: written beside, fsynced, renamed, directory fsynced.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Its name in `data_dir`.
pub const NAME: &str = "files.json";

/// What is known of all files.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    version: u32,
    /// In no order.
    pub files: Vec<Position>,
}

/// What is known of one file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// The device it lies on.
    pub dev: u64,
    /// Its inode: a file that is renamed is the same file.
    pub ino: u64,
    /// Another number for each new content, however often an inode is used again.
    pub incarnation: Uuid,
    /// Where it was last.
    pub path: PathBuf,
    /// Where it was first: what its records say.
    pub origin: PathBuf,
    /// Everything before it is acknowledged.
    pub offset: u64,
    /// At `offset` is the inside of a line that is too long.
    #[serde(default)]
    pub skipping: bool,
    /// How the content begins.
    pub head: Head,
    /// What is on its way.
    #[serde(default)]
    pub sending: Option<Sending>,
    /// What it held before it was truncated: there may be a copy of that.
    #[serde(default)]
    pub former: Option<Former>,
}

/// The first bytes of what was read, to notice other content under the same inode.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// How many.
    pub len: u64,
    /// Their CRC-32C.
    pub crc: u32,
}

/// A range that was written down before it was handed in: from the offset to `end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sending {
    /// Where it ends.
    pub end: u64,
    /// As in [`Position`], at `end`.
    pub skipping: bool,
    /// As in [`Position`], at `end`.
    pub head: Head,
}

/// A content that is no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Former {
    /// How far it was acknowledged.
    pub offset: u64,
    /// As in [`Position`].
    pub skipping: bool,
    /// How it began.
    pub head: Head,
}

const VERSION: u32 = 1;

impl Checkpoint {
    /// With these positions.
    pub fn new(files: Vec<Position>) -> Self {
        Self { version: VERSION, files }
    }

    /// Reads it; none if there is none. One that cannot be understood is kept aside and all files begin anew: records
    /// may then come twice, and none is lost.
    ///
    /// # Errors
    /// It is there and cannot be read.
    pub fn load(dir: &Path) -> io::Result<Option<Self>> {
        let path = dir.join(NAME);
        let text = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        match serde_json::from_slice::<Self>(&text) {
            Ok(checkpoint) if checkpoint.version == VERSION => Ok(Some(checkpoint)),
            other => {
                let why = other.err().map_or_else(|| "its version is another".to_owned(), |error| error.to_string());
                let aside = dir.join(format!("{NAME}.unreadable"));
                fs::rename(&path, &aside)?;
                tracing::error!(kept = %aside.display(), why,
                    "the checkpoint of the tailed files cannot be understood: all files are read from the beginning, \
                     and records that were stored before come a second time");
                Ok(Some(Self::default()))
            }
        }
    }

    /// Replaces what is on disk.
    ///
    /// # Errors
    /// The disk refuses; what was there is still there.
    pub fn save(&self, dir: &Path) -> io::Result<()> {
        let beside = dir.join(format!("{NAME}.tmp"));
        let mut file = File::create(&beside)?;
        file.write_all(&serde_json::to_vec(self)?)?;
        file.sync_all()?;
        fs::rename(&beside, dir.join(NAME))?;
        File::open(dir)?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_comes_back_as_it_was_saved_and_damage_is_kept_aside() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Checkpoint::load(dir.path()).unwrap(), None);
        let head = Head { len: 3, crc: 7 };
        let sending = Some(Sending { end: 9, skipping: true, head });
        let former = Some(Former { offset: 4, skipping: false, head });
        let position =
            Position { dev: 1, ino: 2, path: "/a".into(), offset: 5, sending, former, ..Position::default() };
        let saved = Checkpoint::new(vec![position]);
        saved.save(dir.path()).unwrap();
        assert_eq!(Checkpoint::load(dir.path()).unwrap(), Some(saved));
        fs::write(dir.path().join(NAME), "{").unwrap();
        assert_eq!(Checkpoint::load(dir.path()).unwrap(), Some(Checkpoint::default()));
        assert!(dir.path().join("files.json.unreadable").exists());
    }
}
