//! The journal's directory is created durably, and missed when it is gone.

use std::path::Path;
use std::sync::Arc;

use logweir_engine::file_system::{Crash, FileSystem, Operation, SimulatedDisk};
use logweir_engine::journal::{AppendError, Journal, JournalConfig};
use rustix::io::Errno;

use crate::kit::{SEGMENT_BYTES, append, begin, config, eventually, read, scratch};

const DIR: &str = "/var/lib/logweir/journal";

fn simulated(disk: &SimulatedDisk) -> JournalConfig {
    JournalConfig {
        segment_bytes: SEGMENT_BYTES,
        quota_bytes: 8 * SEGMENT_BYTES,
        file_system: Arc::new(disk.clone()),
        ..JournalConfig::new(DIR)
    }
}

#[test]
fn all_parents_that_a_start_creates_survive_a_power_failure() {
    for seed in 0..20 {
        let disk = SimulatedDisk::new(seed);
        let (journal, first) = Journal::open(simulated(&disk)).unwrap();
        append(&journal, 0, 1, b"acknowledged").unwrap();
        drop(journal);
        disk.restart(Crash::PowerLoss);
        let (journal, second) = Journal::open(simulated(&disk)).unwrap();
        assert_eq!((second.writer, read(&journal, 0).len()), (first.writer, 1), "seed {seed}");
    }
}

#[test]
fn parents_that_a_killed_start_created_survive_a_power_failure() {
    for seed in 0..20 {
        let disk = SimulatedDisk::new(seed);
        for dir in ["/var", "/var/lib", "/var/lib/logweir"] {
            disk.create_dir(Path::new(dir)).unwrap();
        }
        let (journal, first) = Journal::open(simulated(&disk)).unwrap();
        append(&journal, 0, 1, b"acknowledged").unwrap();
        drop(journal);
        disk.restart(Crash::PowerLoss);
        let (_, second) = Journal::open(simulated(&disk)).unwrap();
        assert_eq!(second.writer, first.writer, "seed {seed}");
    }
}

#[test]
fn a_parent_that_cannot_be_synced_prevents_a_start() {
    let disk = SimulatedDisk::new(0);
    disk.fail(Operation::SyncDir, "lib", Errno::IO, 1);
    assert!(Journal::open(simulated(&disk)).is_err());
    Journal::open(simulated(&disk)).unwrap();
}

fn assert_gone(journal: &Journal, path: &Path) {
    eventually("the journal refuses appends", || journal.check_writable().is_err());
    let Err(AppendError::Poisoned(reason)) = journal.check_writable() else { panic!("for another reason") };
    assert!(reason.starts_with(&path.display().to_string()) && reason.contains("was removed or replaced"), "{reason}");
    assert!(begin(journal, 0, 1, b"into a removed file").is_err());
}

#[test]
fn a_journal_whose_directory_is_removed_acknowledges_nothing_more() {
    let root = scratch();
    let dir = root.path().join("journal");
    let (journal, _) = Journal::open(config(&dir)).unwrap();
    append(&journal, 0, 1, b"x").unwrap();
    std::fs::remove_dir_all(&dir).unwrap();
    assert_gone(&journal, &dir);
    // A reader says so, too, and takes nothing for committed.
    assert!(journal.reader(0, 0).next_frames(1, 1).is_err());
}

#[test]
fn a_journal_whose_directory_is_replaced_acknowledges_nothing_more() {
    let root = scratch();
    let dir = root.path().join("journal");
    let (journal, _) = Journal::open(config(&dir)).unwrap();
    std::fs::rename(&dir, root.path().join("old")).unwrap();
    std::fs::create_dir(&dir).unwrap();
    assert_gone(&journal, &dir);
}

#[test]
fn a_journal_whose_lock_file_is_replaced_acknowledges_nothing_more() {
    let dir = scratch();
    let (journal, _) = Journal::open(config(dir.path())).unwrap();
    let lock = dir.path().join("LOCK");
    std::fs::copy(&lock, dir.path().join("copy")).unwrap();
    std::fs::rename(dir.path().join("copy"), &lock).unwrap();
    assert_gone(&journal, &lock);
}
