//! Kills at each named point and failing disks: every acknowledged frame survives.

use std::collections::BTreeSet;
use std::path::Path;

use logweir_engine::journal::check;

use crate::child::{ChildSpec, Outcome};
use crate::kit::*;

/// Opens the journal of a child; returns the acknowledged frames that are lost.
fn lost_acknowledgments(dir: &Path, outcome: &Outcome) -> Vec<u64> {
    let (journal, recovered) = open(dir);
    let frames = read(&journal, 0);
    let mut numbers = BTreeSet::new();
    for frame in &frames {
        assert!(numbers.insert(frame.seq), "{} was read twice", frame.seq);
    }
    let is_stored = |n: usize, seq: u64| {
        frames.iter().any(|frame| frame.seq == seq && frame.payload == payload(n, frame.payload.len()))
    };
    let lost: Vec<_> = outcome
        .acknowledged
        .iter()
        .filter(|(n, seq)| *seq > outcome.committed && !is_stored(*n, *seq))
        .map(|(_, seq)| *seq)
        .collect();
    if lost.is_empty() {
        assert_eq!(recovered.damage, []);
        assert!(frames.is_sorted_by_key(|frame| frame.seq));
    }
    append(&journal, 0, 1, b"one more").unwrap();
    lost
}

#[test]
fn a_kill_at_any_named_point_loses_no_acknowledged_frame() {
    let points = [
        "journal.append.before",
        "journal.append.after",
        "journal.fsync.before",
        "journal.fsync.after",
        "journal.ack.before",
        "journal.ack.after",
        "journal.segment.create",
        "journal.segment.rename.before",
        "journal.segment.rename.after",
        "journal.segment.remove.before",
        "journal.segment.remove.after",
        "journal.segment.reuse",
        "journal.recover.copied",
    ];
    for point in points {
        for pass in [0, 1, 2, 13] {
            let dir = scratch();
            // Something to recover and to remove.
            let mut before = ChildSpec { frames: 15, ..ChildSpec::new(dir.path(), "") }.run();
            assert!(before.done);
            let faults = format!("{point}={pass}*off->return");
            // Whether a committed segment is reused or removed depends on timing: among many, both happen.
            let frames = if point.contains("segment") { 1_000 } else { 160 };
            let spec = ChildSpec { frames, commit_every: 40, ..ChildSpec::new(dir.path(), &faults) };
            let outcome = spec.run();
            let passes = match point {
                "journal.recover.copied" => 1,
                _ if point.contains("segment") => 2,
                _ => usize::MAX,
            };
            assert!(!outcome.done || pass >= passes, "{faults} was never reached");
            if outcome.committed > 0 {
                before.acknowledged.clear();
            }
            assert_eq!(lost_acknowledgments(dir.path(), &outcome), [], "{faults}");
            assert_eq!(
                lost_acknowledgments(dir.path(), &Outcome { committed: outcome.committed, ..before }),
                [],
                "{faults}"
            );
        }
    }
}

#[test]
fn a_kill_during_each_of_twenty_starts_neither_grows_nor_changes_the_journal() {
    for point in ["journal.recover.copied", "journal.segment.rename.before", "journal.segment.rename.after"] {
        let dir = scratch();
        let outcome = ChildSpec::new(dir.path(), "journal.append.after=30*off->return").run();
        assert!(!outcome.done);
        let mut sizes = BTreeSet::new();
        for _ in 0..20 {
            let killed = ChildSpec::new(dir.path(), &format!("{point}=return")).run();
            assert!(!killed.opened, "{point}");
            sizes.insert(disk_bytes(dir.path()));
        }
        // There is a spare or not, and the old segment is truncated or not.
        assert!(sizes.len() <= 3, "{point}: {sizes:?}");
        assert!(sizes.last().unwrap() - sizes.first().unwrap() <= 2 * SEGMENT_BYTES, "{point}: {sizes:?}");
        assert_eq!(lost_acknowledgments(dir.path(), &outcome), [], "{point}");
    }
}

#[test]
fn a_crash_loop_copies_the_tail_each_time_and_does_not_grow() {
    let dir = scratch();
    let outcome = ChildSpec::new(dir.path(), "journal.append.after=30*off->return").run();
    let (journal, _) = open(dir.path());
    let frames = read(&journal, 0);
    drop(journal);
    let mut sizes = BTreeSet::new();
    for _ in 0..20 {
        let (journal, recovered) = open(dir.path());
        assert_eq!((recovered.damage.len(), recovered.clean), (0, false));
        assert_eq!(read(&journal, 0), frames);
        drop(journal);
        sizes.insert((segments(dir.path()).len(), disk_bytes(dir.path()) / SEGMENT_BYTES));
    }
    assert!(sizes.len() <= 2, "{sizes:?}");
    assert_eq!(lost_acknowledgments(dir.path(), &outcome), []);
}

#[test]
fn a_failed_fsync_is_never_retried() {
    let dir = scratch();
    // The writer's fourth one: the start has its own.
    let outcome = ChildSpec::new(dir.path(), "journal.fsync.fail=6*off->1*return->off").run();
    assert!(outcome.opened && !outcome.done);
    assert!(!outcome.acknowledged.is_empty() && outcome.acknowledged.len() < 10, "{outcome:?}");
    assert!(outcome.errors.iter().all(|error| error.contains("fsync")), "{outcome:?}");
    assert_eq!(outcome.errors.len(), 2, "reported by the waiting append and by `poisoned`");
    assert_eq!(lost_acknowledgments(dir.path(), &outcome), []);
}

#[test]
fn a_write_on_a_full_disk_is_erased_and_the_numbers_roll_back() {
    let dir = scratch();
    let outcome = ChildSpec::new(dir.path(), "journal.write.enospc=5*off->1*return->off").run();
    assert!(outcome.done, "{outcome:?}");
    assert!(outcome.errors.iter().all(|error| error.contains("full")), "{outcome:?}");
    assert_eq!((outcome.errors.len(), outcome.acknowledged.len()), (1, 39), "it resumes by itself");
    let report = check(dir.path()).unwrap();
    assert_eq!((report.torn_bytes, report.damage.len()), (0, 0));
    assert_eq!(report.lanes[&0].records, outcome.acknowledged.len() as u64, "failed appends are not counted");
    assert_eq!(lost_acknowledgments(dir.path(), &outcome), []);
}

#[test]
fn a_write_on_a_full_disk_leaves_nothing_behind_the_last_frame() {
    let dir = scratch();
    let outcome = ChildSpec { frames: 6, ..ChildSpec::new(dir.path(), "journal.write.enospc=5*off->return") }.run();
    assert_eq!((outcome.acknowledged.len(), outcome.errors.len()), (5, 1), "{outcome:?}");
    assert_eq!(check(dir.path()).unwrap().torn_bytes, 0);
    assert_eq!(lost_acknowledgments(dir.path(), &outcome), []);
}

#[test]
fn the_housekeeper_creates_no_spare_while_the_writer_renames_it() {
    let dir = scratch();
    // Each rename takes its time, while commits wake the housekeeper.
    let faults = "journal.segment.rename.before=1*off->sleep(20)";
    let slow =
        ChildSpec { frames: 60, frame_bytes: 30_000, burst: 6, commit_behind: 1, ..ChildSpec::new(dir.path(), faults) };
    let outcome = slow.run();
    assert!(outcome.done && outcome.errors.is_empty(), "{outcome:?}");
    assert_eq!(lost_acknowledgments(dir.path(), &outcome), []);
}

#[test]
fn an_acknowledgment_before_the_fsync_is_detected() {
    let dir = scratch();
    let honest = ChildSpec::new(dir.path(), "journal.fsync.before=3*off->return").run();
    assert_eq!(honest.acknowledged.len(), 3);
    let dir = scratch();
    let faults = "mutation.ack_before_fsync=return;journal.fsync.before=3*off->pause";
    let mut eager = ChildSpec::new(dir.path(), faults).spawn();
    while eager.outcome.acknowledged.len() < 4 && eager.read_line() {}
    eager.child.kill().unwrap();
    eager.child.wait().unwrap();
    assert_eq!(eager.outcome.acknowledged.len(), 4, "acknowledged before its fsync");
}
