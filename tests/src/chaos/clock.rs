//! Clocks that are wrong, by libfaketime: a process reads how far off it is from a file.

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

/// Path of libfaketime, if it is installed.
#[must_use]
pub fn libfaketime() -> Option<PathBuf> {
    let architectures = std::fs::read_dir("/usr/lib").ok()?.flatten().map(|entry| entry.path());
    let dirs = architectures.chain(["/usr/lib".into(), "/usr/lib64".into()]);
    dirs.map(|dir| dir.join("faketime/libfaketimeMT.so.1")).find(|path| path.exists())
}

/// The clock of the processes that are started with its environment.
pub struct Clock {
    dir: tempfile::TempDir,
    library: PathBuf,
}

impl Clock {
    /// A clock that is right; `None` without libfaketime.
    ///
    /// # Panics
    /// If its file cannot be written.
    #[must_use]
    pub fn new() -> Option<Self> {
        let clock = Self { library: libfaketime()?, dir: tempfile::tempdir().expect("a temporary directory") };
        // The processes can have another user.
        let readable = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(clock.dir.path(), readable).expect("the directory is ours");
        clock.set("+0");
        Some(clock)
    }

    /// Sets how far off it is, within a second.
    ///
    /// # Panics
    /// If its file cannot be written.
    pub fn set(&self, offset: &str) {
        let new = self.dir.path().join("new");
        std::fs::write(&new, format!("{offset}\n")).expect("the file is writable");
        // A reader never sees a part of it.
        std::fs::rename(new, self.file()).expect("the file is writable");
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join("clock")
    }

    /// Path of the library, for `LD_PRELOAD`.
    #[must_use]
    pub fn library(&self) -> PathBuf {
        self.library.clone()
    }

    /// Environment variables of the processes besides `LD_PRELOAD`.
    #[must_use]
    pub fn environment(&self) -> Vec<(String, String)> {
        [
            ("FAKETIME_TIMESTAMP_FILE", self.file().display().to_string()),
            ("FAKETIME_CACHE_DURATION", "1".to_owned()),
            // A clock that is set does not move the time since the start.
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .to_vec()
    }
}
