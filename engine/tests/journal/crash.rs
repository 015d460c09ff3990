//! Killed at each named point, by a failing disk, by a power cut: what was acknowledged is there.

use std::collections::BTreeSet;
use std::path::Path;

use logweir_engine::journal::check;

use crate::child::{Orders, Told};
use crate::kit::*;

/// Opens what a child has left; says which of its promises are broken.
fn broken_promises(dir: &Path, told: &Told) -> Vec<u64> {
    let (journal, recovered) = open(dir);
    let frames = read(&journal, 0);
    let mut numbers = BTreeSet::new();
    for frame in &frames {
        assert!(numbers.insert(frame.seq), "{} comes twice", frame.seq);
    }
    let kept = |n: usize, seq: u64| {
        frames.iter().any(|frame| frame.seq == seq && frame.payload == payload(n, frame.payload.len()))
    };
    let broken: Vec<_> = told
        .acknowledged
        .iter()
        .filter(|(n, seq)| *seq > told.settled && !kept(*n, *seq))
        .map(|(_, seq)| *seq)
        .collect();
    if broken.is_empty() {
        assert_eq!(recovered.damage, []);
        assert!(frames.is_sorted_by_key(|frame| frame.seq));
    }
    append(&journal, 0, 1, b"goes on").unwrap();
    broken
}

#[test]
fn killed_at_any_named_point_it_keeps_what_it_has_acknowledged() {
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
            // There is something to recover and to remove.
            let mut before = Orders { frames: 15, ..Orders::new(dir.path(), "") }.run();
            assert!(before.done);
            let faults = format!("{point}={pass}*off->return");
            // Whether a settled segment is used again or goes depends on who is first: among many, both come by.
            let frames = if point.contains("segment") { 1_000 } else { 160 };
            let orders = Orders { frames, settle_every: 40, ..Orders::new(dir.path(), &faults) };
            let told = orders.run();
            let passes = match point {
                "journal.recover.copied" => 1,
                _ if point.contains("segment") => 2,
                _ => usize::MAX,
            };
            assert!(!told.done || pass >= passes, "{faults} never came by");
            if told.settled > 0 {
                before.acknowledged.clear();
            }
            assert_eq!(broken_promises(dir.path(), &told), [], "{faults}");
            assert_eq!(broken_promises(dir.path(), &Told { settled: told.settled, ..before }), [], "{faults}");
        }
    }
}

#[test]
fn killed_during_each_of_twenty_starts_it_neither_grows_nor_changes() {
    for point in ["journal.recover.copied", "journal.segment.rename.before", "journal.segment.rename.after"] {
        let dir = scratch();
        let told = Orders::new(dir.path(), "journal.append.after=30*off->return").run();
        assert!(!told.done);
        let mut sizes = BTreeSet::new();
        for _ in 0..20 {
            let killed = Orders::new(dir.path(), &format!("{point}=return")).run();
            assert!(!killed.opened, "{point}");
            sizes.insert(disk_bytes(dir.path()));
        }
        // A spare is there or not, and the old segment is cut or not.
        assert!(sizes.len() <= 3, "{point}: {sizes:?}");
        assert!(sizes.last().unwrap() - sizes.first().unwrap() <= 2 * SEGMENT_BYTES, "{point}: {sizes:?}");
        assert_eq!(broken_promises(dir.path(), &told), [], "{point}");
    }
}

#[test]
fn a_crash_loop_copies_the_unproven_tail_each_time_and_does_not_grow() {
    let dir = scratch();
    let told = Orders::new(dir.path(), "journal.append.after=30*off->return").run();
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
    assert_eq!(broken_promises(dir.path(), &told), []);
}

#[test]
fn a_failed_fsync_is_never_tried_again() {
    let dir = scratch();
    // The fourth one of the writer: the start has its own.
    let told = Orders::new(dir.path(), "journal.fsync.fail=6*off->1*return->off").run();
    assert!(told.opened && !told.done);
    assert!(!told.acknowledged.is_empty() && told.acknowledged.len() < 10, "{told:?}");
    assert!(told.errors.iter().all(|error| error.contains("fsync")), "{told:?}");
    assert_eq!(told.errors.len(), 2, "the waiting append and `poisoned` say it");
    assert_eq!(broken_promises(dir.path(), &told), []);
}

#[test]
fn a_write_without_room_is_taken_back_and_numbers_fall_back() {
    let dir = scratch();
    let told = Orders::new(dir.path(), "journal.write.enospc=5*off->1*return->off").run();
    assert!(told.done, "{told:?}");
    assert!(told.errors.iter().all(|error| error.contains("full")), "{told:?}");
    assert_eq!((told.errors.len(), told.acknowledged.len()), (1, 39), "it goes on by itself");
    let report = check(dir.path()).unwrap();
    assert_eq!((report.torn_bytes, report.damage.len()), (0, 0));
    assert_eq!(report.lanes[&0].records, told.acknowledged.len() as u64, "what failed is not counted");
    assert_eq!(broken_promises(dir.path(), &told), []);
}

#[test]
fn a_write_without_room_leaves_nothing_behind_its_last_frame() {
    let dir = scratch();
    let told = Orders { frames: 6, ..Orders::new(dir.path(), "journal.write.enospc=5*off->return") }.run();
    assert_eq!((told.acknowledged.len(), told.errors.len()), (5, 1), "{told:?}");
    assert_eq!(check(dir.path()).unwrap().torn_bytes, 0);
    assert_eq!(broken_promises(dir.path(), &told), []);
}

#[test]
fn the_keeper_makes_no_spare_under_the_name_that_the_writer_is_about_to_rename() {
    let dir = scratch();
    // Each rename takes its time, while settled frames wake the keeper.
    let faults = "journal.segment.rename.before=1*off->sleep(20)";
    let slow =
        Orders { frames: 60, frame_bytes: 30_000, burst: 6, settle_behind: 1, ..Orders::new(dir.path(), faults) };
    let told = slow.run();
    assert!(told.done && told.errors.is_empty(), "{told:?}");
    assert_eq!(broken_promises(dir.path(), &told), []);
}

#[test]
fn an_acknowledgement_before_the_fsync_is_caught() {
    let dir = scratch();
    let honest = Orders::new(dir.path(), "journal.fsync.before=3*off->return").run();
    assert_eq!(honest.acknowledged.len(), 3);
    let dir = scratch();
    let faults = "mutation.ack_before_fsync=return;journal.fsync.before=3*off->pause";
    let mut hasty = Orders::new(dir.path(), faults).spawn();
    while hasty.told.acknowledged.len() < 4 && hasty.listen() {}
    hasty.child.kill().unwrap();
    hasty.child.wait().unwrap();
    assert_eq!(hasty.told.acknowledged.len(), 4, "acknowledged although its fsync has never begun");
}
