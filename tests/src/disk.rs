//! Small disks, and disks that lose power. Both need root.

use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::process::Command;

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

#[cfg(test)]
mod tests {
    use std::io::Write as _;

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
}
