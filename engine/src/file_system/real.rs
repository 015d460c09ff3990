//! The operating system's file system.

use std::ffi::OsString;
use std::fs::{self, TryLockError};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use super::operations::{Directory, File, FileId, FileSystem, Metadata, OpenMode};

/// The file system of the operating system.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealFileSystem;

impl From<fs::Metadata> for Metadata {
    fn from(metadata: fs::Metadata) -> Self {
        Self { bytes: metadata.len(), is_dir: metadata.is_dir(), id: (metadata.dev(), metadata.ino()) }
    }
}

impl FileSystem for RealFileSystem {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Box<dyn File>> {
        let mut options = fs::OpenOptions::new();
        options.read(true).write(mode != OpenMode::Read);
        match mode {
            OpenMode::Read | OpenMode::Update => {}
            OpenMode::CreateIfMissing => _ = options.create(true).truncate(false),
            OpenMode::Replace => _ = options.create(true).truncate(true),
        }
        Ok(Box::new(options.open(path)?))
    }

    fn open_dir(&self, path: &Path) -> io::Result<Box<dyn Directory>> {
        Ok(Box::new(OpenDirectory(fs::File::open(path)?)))
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        fs::create_dir(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<OsString>> {
        fs::read_dir(dir)?.map(|entry| Ok(entry?.file_name())).collect()
    }

    fn metadata(&self, path: &Path) -> io::Result<Metadata> {
        fs::metadata(path).map(Metadata::from)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }
}

impl File for fs::File {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        FileExt::read_at(self, buffer, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        FileExt::write_at(self, bytes, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        Self::sync_data(self)
    }

    fn sync_all(&self) -> io::Result<()> {
        Self::sync_all(self)
    }

    fn drop_cached(&self) -> io::Result<()> {
        // Up to its end.
        rustix::fs::fadvise(self, 0, None, rustix::fs::Advice::DontNeed).map_err(io::Error::from)
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        Self::set_len(self, bytes)
    }

    fn metadata(&self) -> io::Result<Metadata> {
        Self::metadata(self).map(Metadata::from)
    }

    fn try_lock(&self, shared: bool) -> io::Result<bool> {
        let locked = if shared { Self::try_lock_shared(self) } else { Self::try_lock(self) };
        match locked {
            Ok(()) => Ok(true),
            Err(TryLockError::WouldBlock) => Ok(false),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }
}

#[derive(Debug)]
struct OpenDirectory(fs::File);

impl Directory for OpenDirectory {
    fn sync(&self) -> io::Result<()> {
        self.0.sync_all()
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let stat = rustix::fs::fstatvfs(&self.0)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    fn id(&self) -> io::Result<FileId> {
        self.0.metadata().map(|metadata| (metadata.dev(), metadata.ino()))
    }
}
