//! What the journal asks of a file system, and what it may rely on.
//!
//! - Bytes, and the file's size, are durable after [`File::sync_data`]. Until then a power failure may keep any part of
//!   them, in any order.
//! - A name (created, renamed or removed) is durable after [`Directory::sync`] of its directory, independently of the
//!   file's bytes.
//! - A rename replaces the name at once: after a power failure there is the old name or the new one.
//! - After a sync has failed, nothing is known about the bytes that it should have made durable: a later success does
//!   not cover them.
//!
//! There are only operations that are used, with an offset each: nothing depends on a file's position.

use std::ffi::OsString;
use std::fmt::Debug;
use std::io::{self, ErrorKind};
use std::path::Path;

/// How to open a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenMode {
    /// An existing file, for reading.
    Read,
    /// An existing file, for reading and writing.
    Update,
    /// For reading and writing; created empty if there is none.
    CreateIfMissing,
    /// For reading and writing; empty, whatever it held.
    Replace,
}

/// Identity of a file or directory, whatever its name: device and inode.
pub type FileId = (u64, u64);

/// What is known about a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metadata {
    /// Size in bytes.
    pub bytes: u64,
    /// Whether it is a directory.
    pub is_dir: bool,
    /// Identity.
    pub id: FileId,
}

/// A file system. Paths are those of the operating system.
pub trait FileSystem: Debug + Send + Sync {
    /// Opens a file.
    ///
    /// # Errors
    /// The system's.
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Box<dyn File>>;

    /// Opens a directory. It is kept open, so that a sync needs no descriptor when there may be none left.
    ///
    /// # Errors
    /// The system's.
    fn open_dir(&self, path: &Path) -> io::Result<Box<dyn Directory>>;

    /// Creates a directory in an existing one.
    ///
    /// # Errors
    /// The system's.
    fn create_dir(&self, path: &Path) -> io::Result<()>;

    /// Lists the names in a directory, in no order.
    ///
    /// # Errors
    /// The system's.
    fn list(&self, dir: &Path) -> io::Result<Vec<OsString>>;

    /// Looks a path up.
    ///
    /// # Errors
    /// The system's.
    fn metadata(&self, path: &Path) -> io::Result<Metadata>;

    /// Renames a file, replacing one of the new name.
    ///
    /// # Errors
    /// The system's.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file.
    ///
    /// # Errors
    /// The system's.
    fn remove_file(&self, path: &Path) -> io::Result<()>;

    /// Whether there is something of this name.
    fn exists(&self, path: &Path) -> bool {
        self.metadata(path).is_ok()
    }

    /// Creates a directory and its missing parents, and makes all their names durable.
    ///
    /// Also those that are there already: an earlier start may have been killed between creating and syncing them. Up
    /// to the top of their file system, or the first that this process may not read: it has not created that one.
    ///
    /// # Errors
    /// The system's.
    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        // The empty path is the parent of a relative one.
        let parent = |path: &'_ Path| match path.parent() {
            Some(parent) if parent.as_os_str().is_empty() => Some(Path::new(".").to_owned()),
            parent => parent.map(Path::to_owned),
        };
        let is_dir = |path: &Path| self.metadata(path).is_ok_and(|metadata| metadata.is_dir);
        let mut missing = Vec::new();
        let mut at = Some(path.to_owned());
        while let Some(dir) = at.filter(|dir| !is_dir(dir)) {
            at = parent(&dir);
            missing.push(dir);
        }
        for dir in missing.iter().rev() {
            match self.create_dir(dir) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists && is_dir(dir) => {}
                created => created?,
            }
        }
        let device = self.metadata(path)?.id.0;
        let mut child = path.to_owned();
        while let Some(dir) = parent(&child) {
            if self.metadata(&dir)?.id.0 != device || dir == child {
                break;
            }
            match self.open_dir(&dir) {
                Err(error) if error.kind() == ErrorKind::PermissionDenied && !missing.contains(&child) => break,
                opened => opened?.sync()?,
            }
            child = dir;
        }
        Ok(())
    }
}

/// An open file.
pub trait File: Debug + Send + Sync {
    /// Reads at most `buffer.len()` bytes at `offset`; 0 at the end of the file.
    ///
    /// # Errors
    /// The system's.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Writes at most `bytes.len()` bytes at `offset`. Returns how many.
    ///
    /// # Errors
    /// The system's.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize>;

    /// Makes the bytes and the size durable (fdatasync).
    ///
    /// # Errors
    /// The system's; from then on nothing is known about what is on the disk.
    fn sync_data(&self) -> io::Result<()>;

    /// Like [`Self::sync_data`], and all metadata (fsync).
    ///
    /// # Errors
    /// See there.
    fn sync_all(&self) -> io::Result<()>;

    /// Drops the synced part of the file from the page cache, so that the next read comes from the disk.
    ///
    /// # Errors
    /// The system's.
    fn drop_cached(&self) -> io::Result<()>;

    /// Truncates or extends the file; the new bytes are zeros.
    ///
    /// # Errors
    /// The system's.
    fn set_len(&self, bytes: u64) -> io::Result<()>;

    /// Size and identity.
    ///
    /// # Errors
    /// The system's.
    fn metadata(&self) -> io::Result<Metadata>;

    /// Locks the file for this handle until it is closed, `shared` with others that do so or alone. Returns false if
    /// another handle, of any process, is in the way. Advisory.
    ///
    /// # Errors
    /// The system's.
    fn try_lock(&self, shared: bool) -> io::Result<bool>;

    /// Reads `buffer.len()` bytes at `offset`.
    ///
    /// # Errors
    /// The system's, or [`ErrorKind::UnexpectedEof`].
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        match read_up_to(self, buffer, offset)? {
            read if read == buffer.len() => Ok(()),
            _ => Err(ErrorKind::UnexpectedEof.into()),
        }
    }

    /// Writes all bytes at `offset`.
    ///
    /// # Errors
    /// The system's; a part may have been written.
    fn write_all_at(&self, mut bytes: &[u8], mut offset: u64) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.write_at(bytes, offset) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(written) => {
                    bytes = &bytes[written..];
                    offset += written as u64;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Reads `buffer.len()` bytes at `offset`, fewer only at the end of the file. Returns how many.
pub(crate) fn read_up_to<F: File + ?Sized>(file: &F, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut have = 0;
    while have < buffer.len() {
        match file.read_at(&mut buffer[have..], offset + have as u64) {
            Ok(0) => break,
            Ok(read) => have += read,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(have)
}

/// An open directory.
pub trait Directory: Debug + Send + Sync {
    /// Makes its names durable.
    ///
    /// # Errors
    /// The system's.
    fn sync(&self) -> io::Result<()>;

    /// Space available to an unprivileged process on its file system.
    ///
    /// # Errors
    /// The system's.
    fn free_bytes(&self) -> io::Result<u64>;

    /// Its identity.
    ///
    /// # Errors
    /// The system's.
    fn id(&self) -> io::Result<FileId>;
}
