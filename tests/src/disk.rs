//! Small disks, disks that lose power, and slow ones. The first two need root, the last one a C compiler.

use std::fs::File;
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
        let dir = tempfile::tempdir().map_err(|error| format!("a temporary directory: {error}"))?;
        // The processes have another user.
        let readable = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(dir.path(), readable).map_err(|error| format!("chmod: {error}"))?;
        let source = dir.path().join("slow_disk.c");
        std::fs::write(&source, include_str!("slow_disk.c")).map_err(|error| format!("slow_disk.c: {error}"))?;
        let mut compiler = Command::new("cc");
        compiler.args(["-shared", "-fPIC", "-O1", "-o"]).arg(dir.path().join("slow_disk.so")).arg(source).arg("-ldl");
        let output = compiler.output().map_err(|error| format!("no cc: {error}"))?;
        if !output.status.success() {
            return Err(format!("cc: {}", String::from_utf8_lossy(&output.stderr)));
        }
        let delays = File::create(dir.path().join("delays")).map_err(|error| format!("a file: {error}"))?;
        let disk = Self { dir, delays };
        disk.set(Duration::ZERO);
        Ok(disk)
    }

    /// Environment variables of the processes.
    #[must_use]
    pub fn environment(&self) -> Vec<(String, String)> {
        let at = |name: &str| self.dir.path().join(name).display().to_string();
        vec![("LD_PRELOAD".to_owned(), at("slow_disk.so")), ("SLOW_DISK".to_owned(), at("delays"))]
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
            flush.arg("--data").arg(file.path()).envs(disk.environment());
            assert!(flush.status().unwrap().success());
            began.elapsed()
        };
        flushed();
        let delay = Duration::from_millis(700);
        disk.set(delay);
        assert!(flushed() >= delay);
    }
}
