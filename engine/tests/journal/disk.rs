//! Real file systems that are full, read-only or lose their power. Needs root; says so and passes without.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::{Command, Stdio};

use logweir_engine::journal::{AppendError, Journal, JournalConfig, OpenError};
use tempfile::TempDir;

use crate::child::{Orders, Running};
use crate::kit::*;

/// A mounted file system, unmounted when dropped.
struct Mount {
    image: TempDir,
}

impl Mount {
    fn tmpfs(bytes: u64) -> Option<Self> {
        let image = tempfile::tempdir().unwrap();
        fs::create_dir(image.path().join("mnt")).unwrap();
        let mount = Self { image };
        let size = format!("size={bytes}");
        mount.run(&["mount", "-t", "tmpfs", "-o", &size, "none"], true).then_some(mount)
    }

    fn ext4(bytes: u64) -> Option<Self> {
        let image = tempfile::tempdir().unwrap();
        fs::create_dir(image.path().join("mnt")).unwrap();
        let disk = image.path().join("disk");
        File::create(&disk).unwrap().set_len(bytes).unwrap();
        let mount = Self { image };
        let disk = disk.to_str().unwrap();
        (mount.run(&["mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", disk], false) && mount.attach())
            .then_some(mount)
    }

    /// No timed commit in the seconds that a test takes.
    fn attach(&self) -> bool {
        let disk = self.image.path().join("disk");
        self.run(&["mount", "-o", "loop,commit=600", disk.to_str().unwrap()], true)
    }

    fn run(&self, command: &[&str], on_mount: bool) -> bool {
        let mut run = Command::new(command[0]);
        run.args(&command[1..]).stdout(Stdio::null()).stderr(Stdio::null());
        if on_mount {
            run.arg(self.dir());
        }
        let done = run.status().is_ok_and(|status| status.success());
        if !done && command[0] != "umount" {
            println!("skipped: {} does not work here (root and loop devices are needed)", command[0]);
        }
        done
    }

    fn dir(&self) -> std::path::PathBuf {
        self.image.path().join("mnt")
    }

    /// What a power cut does: nothing that was not synced reaches the disk any more.
    fn cut_power(&self, running: &mut Running) {
        const SHUTDOWN: libc::Ioctl = 0x8004_587d_u32 as libc::Ioctl;
        let no_log_flush: u32 = 2;
        let root = File::open(self.dir()).unwrap();
        // SAFETY: the request reads one u32.
        let done = unsafe { libc::ioctl(root.as_raw_fd(), SHUTDOWN, &raw const no_log_flush) };
        assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
        drop(root);
        running.child.kill().unwrap();
        while running.listen() {}
        running.child.wait().unwrap();
        // Another test's child holds each of our files between its fork and its exec.
        eventually("it is unmounted", || self.run(&["umount"], true));
        assert!(self.attach());
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.dir()).stderr(Stdio::null()).status();
    }
}

/// Acknowledged numbers that the journal does not have.
fn lost(dir: &Path, acknowledged: &[(usize, u64)], frame_bytes: usize) -> usize {
    let (journal, recovered) = open(dir);
    let frames = read(&journal, 0);
    let kept = |n: usize, seq| frames.iter().any(|frame| frame.seq == seq && frame.payload == payload(n, frame_bytes));
    let lost = acknowledged.iter().filter(|(n, seq)| !kept(*n, *seq)).count();
    assert!(lost > 0 || recovered.damage.is_empty(), "{:?}", recovered.damage);
    lost
}

/// How much is lost when the power is cut behind the `after`th acknowledgement.
fn lost_in_a_power_cut(faults: &str, after: usize, frame_bytes: usize, burst: usize) -> Option<usize> {
    let mount = Mount::ext4(48 << 20)?;
    let dir = mount.dir().join("journal");
    let mut running = Orders { frames: 100_000, frame_bytes, burst, ..Orders::new(&dir, faults) }.spawn();
    while running.told.acknowledged.len() < after {
        assert!(running.listen(), "{:?}", running.told);
    }
    mount.cut_power(&mut running);
    Some(lost(&dir, &running.told.acknowledged, frame_bytes))
}

#[test]
fn a_power_cut_takes_nothing_that_was_acknowledged() {
    for (after, frame_bytes, burst) in [(1, 100, 1), (50, 100, 1), (300, 100, 40), (60, 6000, 5), (100, 20_000, 1)] {
        let Some(lost) = lost_in_a_power_cut("", after, frame_bytes, burst) else { return };
        assert_eq!(lost, 0, "after {after} frames of {frame_bytes}");
    }
}

#[test]
fn power_cuts_during_starts_take_nothing_either() {
    let Some(mount) = Mount::ext4(48 << 20) else { return };
    let dir = mount.dir().join("journal");
    let mut running = Orders { frames: 100_000, burst: 7, ..Orders::new(&dir, "") }.spawn();
    while running.told.acknowledged.len() < 40 {
        assert!(running.listen());
    }
    mount.cut_power(&mut running);
    let acknowledged = running.told.acknowledged;
    for point in ["journal.recover.copied", "journal.segment.rename.before", "journal.segment.rename.after", ""] {
        // A header that was not there before: each start writes its own, with its time in it.
        let header = || {
            let bytes = fs::read(dir.join("spare.tmp")).unwrap_or_default();
            bytes.get(..SEGMENT_HEADER_BYTES).map(<[u8]>::to_vec).filter(|header| header.iter().any(|byte| *byte != 0))
        };
        let before = (segments(&dir), header());
        let faults = if point.is_empty() { String::new() } else { format!("{point}=pause") };
        let mut starting = Orders { frames: 0, ..Orders::new(&dir, &faults) }.spawn();
        match point {
            "" => while starting.listen() {},
            "journal.segment.rename.after" => {
                eventually("the new segment has its name", || segments(&dir) != before.0);
            }
            _ => eventually("the spare has its header", || header().is_some_and(|now| Some(now) != before.1)),
        }
        mount.cut_power(&mut starting);
        // It may have been on its way to the point still.
        assert!(starting.told.errors.iter().all(|error| error.contains("Input/output")), "{:?}", starting.told);
    }
    assert_eq!(lost(&dir, &acknowledged, 6000), 0);
}

#[test]
fn what_a_start_has_read_from_the_page_cache_outlives_a_power_cut() {
    let Some(mount) = Mount::ext4(48 << 20) else { return };
    let dir = mount.dir().join("journal");
    // Killed between write and fsync: the frame is in the page cache and nowhere else.
    let killed = Orders::new(&dir, "journal.fsync.before=5*off->return").run();
    assert_eq!(killed.acknowledged.len(), 5);
    let mut started = Orders { frames: 1, ..Orders::new(&dir, "") }.spawn();
    while started.listen() && !started.told.opened {}
    let seen = dump_seqs(&dir);
    assert!(seen.len() >= 6, "the start sees the sixth frame, and may hand it to the database");
    mount.cut_power(&mut started);
    assert!(dump_seqs(&dir).starts_with(&seen[..6]));
}

fn dump_seqs(dir: &Path) -> Vec<u64> {
    let mut seqs = Vec::new();
    logweir_engine::journal::dump(dir, None, 0, &mut |frame, _, _| seqs.push(frame.seq)).unwrap();
    seqs
}

#[test]
fn without_the_fsync_a_power_cut_is_seen_to_take_records() {
    let Some(lost) = lost_in_a_power_cut("mutation.skip_fsync=return", 50, 100, 1) else { return };
    assert!(lost > 0);
    let lost = lost_in_a_power_cut("mutation.ack_before_fsync=return;journal.fsync.before=20*off->pause", 21, 100, 1);
    assert!(lost.unwrap() > 0);
}

#[test]
fn without_the_fsync_of_the_directory_a_power_cut_is_seen_to_take_a_segment() {
    // Into the second segment, by a few frames. The next spare's fsync would commit the name by the way.
    let faults = "mutation.skip_dir_fsync=return;journal.segment.create=2*off->pause";
    let Some(lost) = lost_in_a_power_cut(faults, 12, 6000, 1) else { return };
    assert!(lost > 0);
}

fn fill(path: &Path) {
    let Ok(mut file) = File::create(path) else { return };
    let block = vec![7; 4096];
    while std::io::Write::write_all(&mut file, &block).is_ok() {}
}

#[test]
fn a_full_disk_refuses_drains_and_resumes_by_itself() {
    let Some(mount) = Mount::tmpfs(1 << 20) else { return };
    let dir = mount.dir().join("journal");
    let config = JournalConfig { ballast_bytes: 2 * SEGMENT_BYTES, ..config(&dir) };
    let (journal, _) = Journal::open(config.clone()).unwrap();
    eventually("ballast and spare are made", || {
        fs::metadata(dir.join("ballast")).is_ok_and(|ballast| ballast.len() == 2 * SEGMENT_BYTES)
            && journal.stats().bytes >= 4 * SEGMENT_BYTES
    });
    let hog = mount.dir().join("hog");
    fill(&hog);
    // What is made already is used up, then intake is refused.
    let mut taken = 0;
    let refused = loop {
        match append(&journal, 0, 1, &payload(taken, 20_000)) {
            Ok(_) => taken += 1,
            Err(refused) => break refused,
        }
    };
    assert_eq!(refused, AppendError::DiskFull);
    assert!(taken >= 4, "the spare was used");
    assert_eq!(journal.check_writable(), Err(AppendError::DiskFull));
    eventually("the ballast is given away", || !dir.join("ballast").exists());
    fs::write(mount.dir().join("the database"), vec![1; 100_000]).unwrap();
    assert_eq!(read(&journal, 0).len(), taken);
    assert_eq!(journal.check_writable(), Err(AppendError::DiskFull), "the ballast's room is not for intake");

    fs::remove_file(&hog).unwrap();
    eventually("it resumes by itself", || journal.check_writable().is_ok());
    assert!(dir.join("ballast").exists());
    for n in taken..taken + 5 {
        append(&journal, 0, 1, &payload(n, 20_000)).unwrap();
    }
    taken += 5;

    // Full again, the ballast's room too: it can be sealed, and opened in two pages.
    fill(&hog);
    while append(&journal, 0, 1, &payload(taken, 20_000)).is_ok() {
        taken += 1;
    }
    eventually("the ballast is given away", || !dir.join("ballast").exists());
    let last = journal.stats().seq_durable;
    let second = hog.with_extension("2");
    fill(&second);
    journal.seal().unwrap();
    drop(journal);
    let pages = fs::metadata(&second).unwrap().len() - 2 * 4096;
    File::options().write(true).open(&second).unwrap().set_len(pages).unwrap();
    for _ in 0..3 {
        let (journal, recovered) = Journal::open(config.clone()).unwrap();
        assert!(recovered.clean);
        assert_eq!(recovered.lanes[&0].seq, last);
        assert_eq!(read(&journal, 0).len(), taken);
        assert_eq!(journal.check_writable(), Err(AppendError::DiskFull));
        journal.seal().unwrap();
    }
    fs::remove_file(&hog).unwrap();
    fs::remove_file(&second).unwrap();
    let (journal, _) = Journal::open(config).unwrap();
    eventually("it resumes by itself", || append(&journal, 0, 1, b"x").is_ok());
}

#[test]
fn a_read_only_disk_is_an_error_with_its_name_and_the_files_can_still_be_checked() {
    let Some(mount) = Mount::tmpfs(1 << 20) else { return };
    let dir = mount.dir().join("journal");
    let (journal, _) = open(&dir);
    append(&journal, 0, 1, b"x").unwrap();
    journal.seal().unwrap();
    drop(journal);
    assert!(mount.run(&["mount", "-o", "remount,ro"], true));
    let error = Journal::open(config(&dir)).err().unwrap();
    assert!(matches!(error, OpenError::Io { .. }) && error.to_string().contains("journal/"), "{error}");
    let report = logweir_engine::journal::check(&dir).unwrap();
    assert_eq!((report.clean, report.lanes[&0].records), (true, 1));
}

#[test]
fn a_file_size_limit_is_a_full_disk_and_kills_nobody() {
    let dir = scratch();
    let told = Orders { file_bytes_max: SEGMENT_BYTES / 2, ..Orders::new(dir.path(), "") }.run();
    // The first segment is only as large as START and SEAL need.
    assert!(told.opened && told.done, "{told:?}");
    assert_eq!(told.acknowledged, []);
    assert!(told.errors.len() == 40 && told.errors[0].contains("full"), "{told:?}");
    let told = Orders { file_bytes_max: SEGMENT_BYTES, ..Orders::new(dir.path(), "") }.run();
    assert_eq!((told.acknowledged.len(), told.errors.len()), (40, 0), "{told:?}");
}
