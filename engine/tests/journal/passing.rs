//! What others may release again (space, quota, descriptors) makes the journal reject appends, and never ends it.

use std::sync::Arc;
use std::time::Duration;

use logweir_engine::file_system::{Crash, Operation, SimulatedDisk};
use logweir_engine::journal::{AppendError, Journal, JournalConfig};
use rustix::io::Errno;

use crate::kit::{SEGMENT_BYTES, append, begin, eventually, payload, payloads, read};

fn config(disk: &SimulatedDisk) -> JournalConfig {
    JournalConfig {
        segment_bytes: SEGMENT_BYTES,
        quota_bytes: 64 * SEGMENT_BYTES,
        file_system: Arc::new(disk.clone()),
        ..JournalConfig::new("/data/journal")
    }
}

/// Appends over several rotations, while `operation` on files named `name` fails for a while.
fn assert_passes(operation: Operation, name: &str, error: Errno) {
    let what = format!("{operation:?} {name:?} {error:?}");
    let disk = SimulatedDisk::new(7);
    let (journal, _) = Journal::open(config(&disk)).unwrap();
    let mut acknowledged = vec![payload(0, 100)];
    append(&journal, 0, 1, &acknowledged[0]).unwrap();
    disk.fail(operation, name, error, u32::MAX);
    let rejected = loop {
        let next = payload(acknowledged.len(), 20_000);
        match append(&journal, 0, 1, &next) {
            Ok(_) => acknowledged.push(next),
            Err(rejected) => break rejected,
        }
        assert!(acknowledged.len() < 50, "{what} never fails");
    };
    assert_eq!(rejected, AppendError::DiskFull, "{what}");
    assert!(disk.heal());
    eventually("appends are accepted again", || journal.check_writable().is_ok());
    for number in 0..10 {
        let next = payload(100 + number, 20_000);
        append(&journal, 0, 1, &next).unwrap();
        acknowledged.push(next);
    }
    assert_eq!(payloads(&read(&journal, 0)), acknowledged, "{what}");
    drop(journal);
    disk.restart(Crash::PowerLoss);
    let (journal, recovered) = Journal::open(config(&disk)).unwrap();
    assert_eq!(recovered.damage, [], "{what}");
    assert_eq!(payloads(&read(&journal, 0)), acknowledged, "{what}");
}

#[test]
fn no_space_no_quota_and_no_descriptor_pass_at_a_write_and_at_a_rotation() {
    for error in [Errno::NOSPC, Errno::DQUOT, Errno::MFILE, Errno::NFILE] {
        assert_passes(Operation::Open, "spare.tmp", error);
        // A segment is opened under this name, too.
        assert_passes(Operation::Write, "spare.tmp", error);
    }
}

#[test]
fn a_failed_fsync_does_not_pass() {
    let disk = SimulatedDisk::new(7);
    let (journal, _) = Journal::open(config(&disk)).unwrap();
    append(&journal, 0, 1, b"x").unwrap();
    // The housekeeper tries again what it syncs meanwhile.
    disk.fail(Operation::Sync, "", Errno::NOSPC, u32::MAX);
    append(&journal, 0, 1, b"y").unwrap_err();
    assert!(disk.heal());
    eventually("the journal has ended for good", || matches!(journal.check_writable(), Err(AppendError::Poisoned(_))));
}

/// Whether a name is on the disk or gone from it is unknown for good: the journal ends, at a rotation and at a removal. A
/// power failure at that moment costs nothing that was acknowledged.
#[test]
fn a_failed_fsync_of_the_directory_does_not_pass() {
    for (what, reuses, commits) in [("rotation", false, false), ("removal", false, true), ("reuse", true, true)] {
        for seed in 0..10 {
            let disk = SimulatedDisk::new(seed);
            // A quota of a few segments leaves none for reuse.
            let quota_bytes = if reuses { 64 } else { 4 } * SEGMENT_BYTES;
            let open = || Journal::open(JournalConfig { quota_bytes, retain_segments: 0, ..config(&disk) }).unwrap();
            let (journal, _) = open();
            let mut acknowledged = Vec::new();
            let mut fill = |bytes: usize| {
                let next = payload(acknowledged.len(), bytes);
                let appended = append(&journal, 0, 1, &next)?;
                acknowledged.push((appended.seq, next));
                Ok::<_, AppendError>(appended.seq)
            };
            let mut last = 0;
            if commits {
                // The next segment's file is there: what follows is a removal.
                (0..4).for_each(|_| last = fill(20_000).unwrap());
            }
            disk.fail(Operation::SyncDir, "", Errno::IO, 1);
            if commits {
                journal.commit(0, last);
            }
            let poisoned = || matches!(journal.check_writable(), Err(AppendError::Poisoned(_)));
            eventually(&format!("{what}: the journal ends"), || fill(if commits { 100 } else { 20_000 }).is_err());
            eventually(&format!("{what}: for good"), poisoned);
            assert!(!disk.heal(), "{what}: the error has occurred");
            drop(journal);
            disk.restart(Crash::PowerLoss);
            let (journal, recovered) = open();
            assert_eq!(recovered.damage, [], "{what} {seed}");
            let found = payloads(&read(&journal, 0));
            for (seq, payload) in acknowledged.iter().filter(|(seq, _)| *seq > last) {
                assert!(found.contains(payload), "{what} {seed}: {seq}");
            }
        }
    }
}

#[test]
fn a_sync_that_hangs_delays_the_answers_and_neither_loses_a_frame_nor_keeps_the_end_waiting() {
    let disk = SimulatedDisk::new(7);
    let (journal, _) = Journal::open(config(&disk)).unwrap();
    append(&journal, 0, 1, b"before").unwrap();
    assert_eq!(journal.oldest_append_age(), Duration::ZERO);
    disk.hang_syncs(true);
    let (appended, answer) = begin(&journal, 0, 1, b"while it hangs").unwrap();
    eventually("the writer waits for the disk", || disk.hanging() > 0);
    eventually("the age grows", || journal.oldest_append_age() > Duration::from_millis(20));
    assert!(journal.stats().seq_durable < appended.seq);
    let sealed = journal.seal_within(Duration::from_millis(50));
    assert!(matches!(sealed, Err(AppendError::NoAnswer { after_ms: 50 })), "{sealed:?}");
    disk.hang_syncs(false);
    assert_eq!(answer.recv(), Ok(appended.seq));
}
