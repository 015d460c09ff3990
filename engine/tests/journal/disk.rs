//! Real file systems that are full, read-only or lose power. Needs root; without it the tests print why they are
//! skipped and pass.

use std::fs::{self, File};
use std::ops::ControlFlow;
use std::path::Path;
use std::process::{Command, Stdio};

use logweir_engine::journal::{AppendError, Frame, Journal, JournalConfig, OpenError};
use tempfile::TempDir;

use crate::child::{ChildSpec, Running};
use crate::kit::*;

/// A mounted file system, unmounted when dropped.
struct Mount {
    image: TempDir,
    options: &'static str,
}

impl Mount {
    fn tmpfs(bytes: u64) -> Option<Self> {
        let image = tempfile::tempdir().unwrap();
        fs::create_dir(image.path().join("mnt")).unwrap();
        let mount = Self { image, options: "" };
        let size = format!("size={bytes}");
        mount.run(&["mount", "-t", "tmpfs", "-o", &size, "none"], true).then_some(mount)
    }

    /// 48 MiB of ext4, without a timed commit during the test.
    fn ext4() -> Option<Self> {
        Self::on_a_disk(
            48 << 20,
            &["mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0"],
            "loop,commit=600",
        )
    }

    /// The smallest XFS; the image is sparse.
    fn xfs() -> Option<Self> {
        Self::on_a_disk(300 << 20, &["mkfs.xfs", "-q"], "loop")
    }

    fn on_a_disk(bytes: u64, make: &[&str], options: &'static str) -> Option<Self> {
        let image = tempfile::tempdir().unwrap();
        fs::create_dir(image.path().join("mnt")).unwrap();
        let disk = image.path().join("disk");
        File::create(&disk).unwrap().set_len(bytes).unwrap();
        let mount = Self { image, options };
        (mount.run(&[make, &[disk.to_str().unwrap()]].concat(), false) && mount.attach()).then_some(mount)
    }

    fn attach(&self) -> bool {
        let disk = self.image.path().join("disk");
        self.run(&["mount", "-o", self.options, disk.to_str().unwrap()], true)
    }

    fn run(&self, command: &[&str], on_mount: bool) -> bool {
        let mut run = Command::new(command[0]);
        run.args(&command[1..]).stdout(Stdio::null()).stderr(Stdio::null());
        if on_mount {
            run.arg(self.dir());
        }
        let done = run.status().is_ok_and(|status| status.success());
        if !done && command[0] != "umount" {
            println!("skipped: {} failed (needs root and loop devices)", command[0]);
        }
        done
    }

    fn dir(&self) -> std::path::PathBuf {
        self.image.path().join("mnt")
    }

    /// Simulates a power cut: whatever was not synced never reaches the disk.
    fn cut_power(&self, running: &mut Running) {
        const SHUTDOWN: rustix::ioctl::Opcode = 0x8004_587d;
        let no_log_flush: u32 = 2;
        let root = File::open(self.dir()).unwrap();
        // SAFETY: the request reads one u32.
        let shutdown = unsafe { rustix::ioctl::Setter::<SHUTDOWN, u32>::new(no_log_flush) };
        // SAFETY: as above.
        unsafe { rustix::ioctl::ioctl(&root, shutdown) }.unwrap();
        drop(root);
        running.child.kill().unwrap();
        while running.read_line() {}
        running.child.wait().unwrap();
        // A child of a concurrent test inherits our open files between its fork and its exec.
        eventually("it can be unmounted", || self.run(&["umount"], true));
        assert!(self.attach());
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.dir()).stderr(Stdio::null()).status();
    }
}

/// Number of acknowledged frames that the journal does not have.
fn lost(dir: &Path, acknowledged: &[(usize, u64)], frame_bytes: usize) -> usize {
    let (journal, recovered) = open(dir);
    let frames = read(&journal, 0);
    let is_stored =
        |n: usize, seq| frames.iter().any(|frame| frame.seq == seq && frame.payload == payload(n, frame_bytes));
    let lost = acknowledged.iter().filter(|(n, seq)| !is_stored(*n, *seq)).count();
    assert!(lost > 0 || recovered.damage.is_empty(), "{:?}", recovered.damage);
    lost
}

/// Number of frames lost when the power is cut after the `after`th acknowledgment.
fn lost_in_a_power_cut(mount: &Mount, faults: &str, after: usize, frame_bytes: usize, burst: usize) -> usize {
    let dir = mount.dir().join("journal");
    let mut running = ChildSpec { frames: 100_000, frame_bytes, burst, ..ChildSpec::new(&dir, faults) }.spawn();
    while running.outcome.acknowledged.len() < after {
        assert!(running.read_line(), "{:?}", running.outcome);
    }
    mount.cut_power(&mut running);
    lost(&dir, &running.outcome.acknowledged, frame_bytes)
}

#[test]
fn a_power_cut_loses_no_acknowledged_frame() {
    for (after, frame_bytes, burst) in [(1, 100, 1), (50, 100, 1), (300, 100, 40), (60, 6000, 5), (100, 20_000, 1)] {
        for mount in [Mount::ext4(), Mount::xfs()].into_iter().flatten() {
            let lost = lost_in_a_power_cut(&mount, "", after, frame_bytes, burst);
            assert_eq!(lost, 0, "after {after} frames of {frame_bytes} on {}", mount.options);
        }
    }
}

#[test]
fn power_cuts_during_starts_lose_no_acknowledged_frame() {
    let Some(mount) = Mount::ext4() else { return };
    let dir = mount.dir().join("journal");
    let mut running = ChildSpec { frames: 100_000, burst: 7, ..ChildSpec::new(&dir, "") }.spawn();
    while running.outcome.acknowledged.len() < 40 {
        assert!(running.read_line());
    }
    mount.cut_power(&mut running);
    let acknowledged = running.outcome.acknowledged;
    for point in ["journal.recover.copied", "journal.segment.rename.before", "journal.segment.rename.after", ""] {
        // A new header: each start writes its own, which includes the time.
        let header = || {
            let bytes = fs::read(dir.join("spare.tmp")).unwrap_or_default();
            bytes.get(..SEGMENT_HEADER_BYTES).map(<[u8]>::to_vec).filter(|header| header.iter().any(|byte| *byte != 0))
        };
        let before = (segments(&dir), header());
        let faults = if point.is_empty() { String::new() } else { format!("{point}=pause") };
        let mut starting = ChildSpec { frames: 0, ..ChildSpec::new(&dir, &faults) }.spawn();
        match point {
            "" => while starting.read_line() {},
            "journal.segment.rename.after" => {
                eventually("the new segment is renamed", || segments(&dir) != before.0);
            }
            _ => eventually("the spare has its header", || header().is_some_and(|now| Some(now) != before.1)),
        }
        mount.cut_power(&mut starting);
        // It may not have reached the point yet.
        assert!(starting.outcome.errors.iter().all(|error| error.contains("Input/output")), "{:?}", starting.outcome);
    }
    assert_eq!(lost(&dir, &acknowledged, 6000), 0);
}

#[test]
fn frames_that_a_start_has_read_survive_a_power_cut() {
    let Some(mount) = Mount::ext4() else { return };
    let dir = mount.dir().join("journal");
    // Killed between write and fsync: the frame is only in the page cache.
    let killed = ChildSpec::new(&dir, "journal.fsync.before=5*off->return").run();
    assert_eq!(killed.acknowledged.len(), 5);
    let mut started = ChildSpec { frames: 1, ..ChildSpec::new(&dir, "") }.spawn();
    while started.read_line() && !started.outcome.opened {}
    let seen = dump_seqs(&dir);
    assert!(seen.len() >= 6, "the start reads the sixth frame, and may send it to the database");
    mount.cut_power(&mut started);
    assert!(dump_seqs(&dir).starts_with(&seen[..6]));
}

fn dump_seqs(dir: &Path) -> Vec<u64> {
    let mut seqs = Vec::new();
    let visit = &mut |frame: Frame, _, _| {
        seqs.push(frame.seq);
        ControlFlow::Continue(())
    };
    logweir_engine::journal::dump(dir, None, 0, visit).unwrap();
    seqs
}

#[test]
fn without_the_fsync_a_power_cut_loses_frames() {
    for mount in [Mount::ext4(), Mount::xfs()].into_iter().flatten() {
        let lost = lost_in_a_power_cut(&mount, "mutation.skip_fsync=return", 50, 100, 1);
        assert!(lost > 0, "{}", mount.options);
    }
    let Some(mount) = Mount::ext4() else { return };
    let faults = "mutation.ack_before_fsync=return;journal.fsync.before=20*off->pause";
    assert!(lost_in_a_power_cut(&mount, faults, 21, 100, 1) > 0);
}

#[test]
fn without_the_fsync_of_the_directory_a_power_cut_loses_a_segment() {
    // A few frames into the second segment. The fsync of the next spare would commit the name as a side effect.
    let faults = "mutation.skip_dir_fsync=return;journal.segment.create=2*off->pause";
    // XFS writes names in the order of its log, which the fsync of a file also writes.
    let Some(mount) = Mount::ext4() else { return };
    assert!(lost_in_a_power_cut(&mount, faults, 12, 6000, 1) > 0);
}

fn fill(path: &Path) {
    let Ok(mut file) = File::create(path) else { return };
    let block = vec![7; 4096];
    while std::io::Write::write_all(&mut file, &block).is_ok() {}
}

#[test]
fn a_full_disk_rejects_appends_drains_and_resumes_by_itself() {
    let Some(mount) = Mount::tmpfs(1 << 20) else { return };
    let dir = mount.dir().join("journal");
    let config = JournalConfig { ballast_bytes: 2 * SEGMENT_BYTES, ..config(&dir) };
    let (journal, _) = Journal::open(config.clone()).unwrap();
    eventually("ballast and spare are created", || {
        fs::metadata(dir.join("ballast")).is_ok_and(|ballast| ballast.len() == 2 * SEGMENT_BYTES)
            && journal.stats().bytes >= 4 * SEGMENT_BYTES
    });
    let hog = mount.dir().join("hog");
    fill(&hog);
    // The spare is used up, then intake is rejected.
    let mut accepted = 0;
    let rejected = loop {
        match append(&journal, 0, 1, &payload(accepted, 20_000)) {
            Ok(_) => accepted += 1,
            Err(rejected) => break rejected,
        }
    };
    assert_eq!(rejected, AppendError::DiskFull);
    assert!(accepted >= 4, "the spare was used");
    assert_eq!(journal.check_writable(), Err(AppendError::DiskFull));
    eventually("the ballast is deleted", || !dir.join("ballast").exists());
    fs::write(mount.dir().join("the database"), vec![1; 100_000]).unwrap();
    assert_eq!(read(&journal, 0).len(), accepted);
    assert_eq!(journal.check_writable(), Err(AppendError::DiskFull), "the ballast's space is not for intake");

    fs::remove_file(&hog).unwrap();
    eventually("it resumes by itself", || journal.check_writable().is_ok());
    assert!(dir.join("ballast").exists());
    for n in accepted..accepted + 5 {
        append(&journal, 0, 1, &payload(n, 20_000)).unwrap();
    }
    accepted += 5;

    // Full again, including the ballast's space: it can be sealed, and opened in two pages.
    fill(&hog);
    while append(&journal, 0, 1, &payload(accepted, 20_000)).is_ok() {
        accepted += 1;
    }
    eventually("the ballast is deleted", || !dir.join("ballast").exists());
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
        assert_eq!(read(&journal, 0).len(), accepted);
        assert_eq!(journal.check_writable(), Err(AppendError::DiskFull));
        journal.seal().unwrap();
    }
    fs::remove_file(&hog).unwrap();
    fs::remove_file(&second).unwrap();
    let (journal, _) = Journal::open(config).unwrap();
    eventually("it resumes by itself", || append(&journal, 0, 1, b"x").is_ok());
}

#[test]
fn a_read_only_disk_is_reported_and_the_journal_can_be_checked() {
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
fn a_file_size_limit_counts_as_a_full_disk() {
    let dir = scratch();
    let outcome = ChildSpec { file_bytes_max: SEGMENT_BYTES / 2, ..ChildSpec::new(dir.path(), "") }.run();
    // The first segment is only as large as START and SEAL need.
    assert!(outcome.opened && outcome.done, "{outcome:?}");
    assert_eq!(outcome.acknowledged, []);
    assert!(outcome.errors.len() == 40 && outcome.errors[0].contains("full"), "{outcome:?}");
    let outcome = ChildSpec { file_bytes_max: SEGMENT_BYTES, ..ChildSpec::new(dir.path(), "") }.run();
    assert_eq!((outcome.acknowledged.len(), outcome.errors.len()), (40, 0), "{outcome:?}");
}
