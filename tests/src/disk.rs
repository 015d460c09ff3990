//! Small disks, disks that lose power, slow ones and failing ones. The first two need root, the others a C compiler.

use std::fs::File;
use std::ops::Range;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Returns whether this process can mount file systems.
#[must_use]
pub fn may_mount() -> bool {
    // SAFETY: `geteuid` always succeeds and touches no memory.
    unsafe { libc::geteuid() == 0 }
}

/// A mounted file system; unmounted on drop.
pub struct Disk {
    at: PathBuf,
    image: Option<PathBuf>,
}

/// ioctl of ext4 and XFS that shuts a file system down immediately.
const FS_IOC_SHUTDOWN: libc::c_ulong = 0x8004_587d;
/// Flag of the ioctl that discards what the file system's journal has not written yet.
static FS_SHUTDOWN_FLAGS_NOLOGFLUSH: u32 = 2;

impl Disk {
    /// Mounts a tmpfs of `bytes` at `at`.
    #[must_use]
    pub fn small(at: &Path, bytes: u64) -> Self {
        std::fs::create_dir_all(at).expect("a mount point");
        mount(&["-t", "tmpfs", "-o", &format!("size={bytes}"), "tmpfs"], at);
        Self { at: at.to_owned(), image: None }
    }

    /// Mounts an ext4 image of `bytes` at `at`. Unsynced data stays in memory as long as possible.
    #[must_use]
    pub fn ext4(at: &Path, bytes: u64) -> Self {
        std::fs::create_dir_all(at).expect("a mount point");
        let image = at.with_extension("img");
        File::create(&image).and_then(|file| file.set_len(bytes)).expect("the image file");
        run(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&image));
        let disk = Self { at: at.to_owned(), image: Some(image) };
        disk.mount_image();
        disk
    }

    /// The mount point.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.at
    }

    /// Takes space until `left` bytes are free, in a file that [`Disk::free`] removes.
    ///
    /// # Errors
    /// The system's.
    pub fn fill(&self, left: u64) -> std::io::Result<()> {
        let file = File::options().create(true).append(true).open(self.ballast())?;
        let (mut at, mut size) = (file.metadata()?.len(), 1_u64 << 30);
        while size >= 4096 {
            let free = self.free_bytes()?;
            let (offset, length) = (i64::try_from(at).unwrap_or(0), i64::try_from(size).unwrap_or(0));
            // SAFETY: allocates blocks for a file that is open.
            if free >= left + size && unsafe { libc::fallocate(file.as_raw_fd(), 0, offset, length) } == 0 {
                at += size;
            } else {
                size /= 2;
            }
        }
        Ok(())
    }

    /// Gives back what [`Disk::fill`] took.
    pub fn free(&self) {
        let _ = std::fs::remove_file(self.ballast());
    }

    fn ballast(&self) -> PathBuf {
        self.at.join("filled-by-the-test")
    }

    /// Free bytes, including those that are reserved for root: it is root who fills the disk.
    ///
    /// # Errors
    /// The system's.
    pub fn free_bytes(&self) -> std::io::Result<u64> {
        let path = std::ffi::CString::new(self.at.to_string_lossy().as_bytes())?;
        // SAFETY: zeros are a valid value of this type of plain numbers.
        let mut stat: libc::statvfs = unsafe { std::mem::zeroed() };
        // SAFETY: the system fills in the struct for a path that ends in a zero.
        match unsafe { libc::statvfs(path.as_ptr(), &raw mut stat) } {
            0 => Ok(stat.f_bfree * stat.f_frsize),
            _ => Err(std::io::Error::last_os_error()),
        }
    }

    /// Simulates power loss: anything that is not on disk yet is lost.
    pub fn power_off(&self) {
        let directory = File::open(&self.at).expect("the mount point");
        // SAFETY: the ioctl reads one u32 behind the pointer.
        let done =
            unsafe { libc::ioctl(directory.as_raw_fd(), FS_IOC_SHUTDOWN, &raw const FS_SHUTDOWN_FLAGS_NOLOGFLUSH) };
        assert_eq!(done, 0, "FS_IOC_SHUTDOWN: {}", std::io::Error::last_os_error());
    }

    /// Restores power. Processes with open files must have ended.
    pub fn power_on(&self) {
        run(Command::new("umount").arg(&self.at));
        self.mount_image();
    }

    fn mount_image(&self) {
        let image = self.image.as_ref().expect("an ext4 has an image");
        mount(&["-o", "loop,commit=600", &image.to_string_lossy()], &self.at);
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: a process left behind by a failed test must not keep the mount forever.
        let _ = Command::new("umount").arg("-l").arg(&self.at).status();
    }
}

fn mount(arguments: &[&str], at: &Path) {
    run(Command::new("mount").args(arguments).arg(at));
}

fn run(command: &mut Command) {
    let output = command.output().expect("the system's own tools run");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Compiles a library that is loaded into processes, into a new directory that every user can read.
pub(crate) fn library(name: &str, text: &str) -> Result<tempfile::TempDir, String> {
    let dir = tempfile::tempdir().map_err(|error| format!("a temporary directory: {error}"))?;
    // The processes can have another user.
    let readable = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(dir.path(), readable).map_err(|error| format!("chmod: {error}"))?;
    let source = dir.path().join(name).with_extension("c");
    std::fs::write(&source, text).map_err(|error| format!("{name}.c: {error}"))?;
    let mut compiler = Command::new("cc");
    compiler.args(["-shared", "-fPIC", "-O1", "-o"]).arg(source.with_extension("so")).arg(source).arg("-ldl");
    let output = compiler.output().map_err(|error| format!("no cc: {error}"))?;
    if !output.status.success() {
        return Err(format!("cc: {}", String::from_utf8_lossy(&output.stderr)));
    }
    Ok(dir)
}

/// Makes the files of the processes that are started with its environment as slow as those on a slow disk. (Not a slow
/// block device: for that, the kernel needs device-mapper.)
pub struct SlowDisk {
    dir: tempfile::TempDir,
    delays: File,
}

/// How much faster than the log of transactions other files are flushed, and how much faster all of them are read and
/// written.
const FLUSHES_FASTER: u32 = 20;
const TRANSFERS_FASTER: u32 = 1000;

impl SlowDisk {
    /// Compiles what delays the processes. They are not delayed until [`SlowDisk::set`].
    ///
    /// # Errors
    /// Why that is impossible on this machine.
    pub fn new() -> Result<Self, String> {
        let dir = library("slow_disk", include_str!("slow_disk.c"))?;
        let delays = File::create(dir.path().join("delays")).map_err(|error| format!("a file: {error}"))?;
        let disk = Self { dir, delays };
        disk.set(Duration::ZERO);
        Ok(disk)
    }

    /// Path of the library, for `LD_PRELOAD`.
    #[must_use]
    pub fn library(&self) -> PathBuf {
        self.dir.path().join("slow_disk.so")
    }

    /// Environment variables of the processes besides `LD_PRELOAD`.
    #[must_use]
    pub fn environment(&self) -> Vec<(String, String)> {
        vec![("SLOW_DISK".to_owned(), self.dir.path().join("delays").display().to_string())]
    }

    /// Sets how long a flush of the log of transactions takes; other accesses take a fixed part of it.
    ///
    /// # Panics
    /// If the file of the delays cannot be written.
    pub fn set(&self, flush: Duration) {
        let micros = u32::try_from(flush.as_micros()).unwrap_or(u32::MAX);
        let delays = [micros, micros / FLUSHES_FASTER, micros / TRANSFERS_FASTER].map(u32::to_ne_bytes).concat();
        self.delays.write_all_at(&delays, 0).expect("the delays can be written");
    }
}

/// How each access to a file fails, as a number of the system's errors; 0 for none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Failure {
    /// Of a read.
    pub read: i32,
    /// Of a write.
    pub write: i32,
    /// Of an fsync.
    pub sync: i32,
    /// Of whatever needs space.
    pub space: i32,
    /// An fsync takes this long.
    pub flush: Duration,
    /// A write writes at most so many bytes; 0 for all.
    pub part: u32,
}

impl Failure {
    /// Whether any access fails: not if all only take longer, or are done in parts.
    #[must_use]
    pub fn fails(&self) -> bool {
        [self.read, self.write, self.sync, self.space] != [0; 4]
    }
}

/// Makes the files below a directory fail for the processes that are started with its environment.
pub struct FailingDisk {
    dir: tempfile::TempDir,
    state: File,
}

/// Where the place that cannot be read is in the state of the library.
const PLACE_AT: u64 = 24;

impl FailingDisk {
    /// Compiles what makes files fail. They do not until [`FailingDisk::set`].
    ///
    /// # Errors
    /// Why that is impossible on this machine.
    pub fn new() -> Result<Self, String> {
        let dir = library("failing_disk", include_str!("failing_disk.c"))?;
        let state = File::create(dir.path().join("state")).map_err(|error| format!("a file: {error}"))?;
        let disk = Self { dir, state };
        disk.set(Failure::default());
        disk.make_unreadable(None);
        Ok(disk)
    }

    /// Path of the library, for `LD_PRELOAD`.
    #[must_use]
    pub fn library(&self) -> PathBuf {
        self.dir.path().join("failing_disk.so")
    }

    /// Environment variables of the processes besides `LD_PRELOAD`.
    #[must_use]
    pub fn environment(&self, files: &Path) -> Vec<(String, String)> {
        let state = self.dir.path().join("state").display().to_string();
        vec![("FAILING_DISK".to_owned(), state), ("FAILING_DISK_FILES".to_owned(), files.display().to_string())]
    }

    /// Sets how accesses fail.
    ///
    /// # Panics
    /// If the state cannot be written.
    pub fn set(&self, failure: Failure) {
        let Failure { read, write, sync, space, flush, part } = failure;
        let error = |number: i32| u32::try_from(number).expect("a number of an error");
        let micros = u32::try_from(flush.as_micros()).unwrap_or(u32::MAX);
        let state = [error(read), error(write), error(sync), error(space), micros, part].map(u32::to_ne_bytes);
        self.state.write_all_at(&state.concat(), 0).expect("the state can be written");
    }

    /// Sets the bytes of which file (its inode) cannot be read.
    ///
    /// # Panics
    /// If the state cannot be written.
    pub fn make_unreadable(&self, place: Option<(u64, Range<u64>)>) {
        let (inode, range) = place.unwrap_or_default();
        let state = [inode, range.start, range.end].map(u64::to_ne_bytes);
        self.state.write_all_at(&state.concat(), PLACE_AT).expect("the state can be written");
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::time::Instant;

    use super::*;

    #[test]
    fn unsynced_data_is_lost_at_power_loss() {
        if !may_mount() {
            eprintln!("skipped: needs root");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::ext4(&dir.path().join("disk"), 32 << 20);
        let write = |name: &str, sync: bool| {
            let mut file = File::create(disk.path().join(name)).unwrap();
            file.write_all(b"words").unwrap();
            if sync {
                file.sync_all().unwrap();
            }
        };
        write("synced", true);
        write("unsynced", false);
        disk.power_off();
        disk.power_on();
        assert_eq!(std::fs::read(disk.path().join("synced")).unwrap(), b"words");
        assert!(!disk.path().join("unsynced").exists());
    }

    #[test]
    fn a_slow_disk_delays_what_is_started_with_it() {
        let disk = match SlowDisk::new() {
            Ok(disk) => disk,
            Err(why) => return eprintln!("skipped: {why}"),
        };
        let file = tempfile::NamedTempFile::new().unwrap();
        let flushed = || {
            let began = Instant::now();
            let mut flush = Command::new("sync");
            flush.arg("--data").arg(file.path()).envs(disk.environment()).env("LD_PRELOAD", disk.library());
            assert!(flush.status().unwrap().success());
            began.elapsed()
        };
        flushed();
        let delay = Duration::from_millis(700);
        disk.set(delay);
        assert!(flushed() >= delay);
    }

    #[test]
    fn a_failing_disk_fails_below_its_directory_and_nowhere_else() {
        let disk = match FailingDisk::new() {
            Ok(disk) => disk,
            Err(why) => return eprintln!("skipped: {why}"),
        };
        let (inside, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let synced = |dir: &Path| {
            let path = dir.join("file");
            std::fs::write(&path, "text").unwrap();
            let mut flush = Command::new("sync");
            flush.arg("--data").arg(path).envs(disk.environment(inside.path())).env("LD_PRELOAD", disk.library());
            let output = flush.output().unwrap();
            (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
        };
        assert!(synced(inside.path()).0);
        disk.set(Failure { sync: libc::EIO, ..Failure::default() });
        let (fine, why) = synced(inside.path());
        assert!(!fine && why.contains("Input/output error"), "{why}");
        assert!(synced(outside.path()).0);
        disk.set(Failure::default());
        assert!(synced(inside.path()).0);
    }
}
