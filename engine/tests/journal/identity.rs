//! Which run the database has confirmed is never forgotten.

use std::fs;
use std::path::Path;

use logweir_engine::journal::{Journal, check};
use uuid::Uuid;

use crate::kit::*;

/// Overwrites every frame of the newest segment, and leaves its header.
fn destroy_frames(dir: &Path) {
    let segment = segments(dir).pop().unwrap();
    let mut bytes = fs::read(&segment).unwrap();
    let end = raw_frames(&bytes).last().unwrap().end;
    bytes[SEGMENT_HEADER_BYTES..end].fill(0xee);
    fs::write(segment, bytes).unwrap();
}

/// Overwrites the header of the newest segment, and leaves its frames.
fn destroy_header(dir: &Path) {
    let segment = segments(dir).pop().unwrap();
    let mut bytes = fs::read(&segment).unwrap();
    bytes[..SEGMENT_HEADER_BYTES].fill(0xee);
    fs::write(segment, bytes).unwrap();
}

#[test]
fn a_confirmed_run_is_known_after_a_kill_and_after_a_seal() {
    for sealed in [false, true] {
        let dir = scratch();
        let (journal, first) = open(dir.path());
        assert_eq!(first.confirmed, None);
        journal.confirm_run();
        journal.confirm_run();
        if sealed {
            journal.seal().unwrap();
        }
        drop(journal);
        let (journal, second) = open(dir.path());
        assert_eq!((second.confirmed, &second.runs[..]), (Some(first.run), &[first.run][..]));
        assert_eq!((second.damage.len(), second.torn_bytes), (0, 0));
        drop(journal);
        let report = check(dir.path()).unwrap();
        assert_eq!(
            (report.run, &report.runs[..], report.confirmed),
            (Some(second.run), &[first.run][..], Some(first.run))
        );
    }
}

#[test]
fn a_confirmed_run_stands_in_the_header_of_the_next_segment() {
    let dir = scratch();
    let (journal, first) = open(dir.path());
    journal.confirm_run();
    for n in 0..8 {
        append(&journal, 0, 1, &payload(n, 20_000)).unwrap();
    }
    drop(journal);
    assert!(segments(dir.path()).len() > 2);
    for segment in &segments(dir.path())[1..] {
        assert_eq!(fs::read(segment).unwrap()[144..160], *first.run.as_bytes());
    }
}

#[test]
fn a_journal_without_a_readable_start_knows_its_runs() {
    let dir = scratch();
    let (journal, first) = open(dir.path());
    journal.confirm_run();
    journal.seal().unwrap();
    drop(journal);
    let (journal, second) = open(dir.path());
    journal.seal().unwrap();
    drop(journal);
    assert_eq!(segments(dir.path()).len(), 1, "the newest START is the only one");
    destroy_frames(dir.path());
    let (_journal, third) = open(dir.path());
    assert_eq!((third.writer, third.confirmed), (first.writer, Some(first.run)));
    assert_eq!(third.runs, [first.run, second.run]);
}

#[test]
fn a_journal_without_a_readable_segment_header_knows_its_runs() {
    let dir = scratch();
    let (journal, first) = open(dir.path());
    journal.confirm_run();
    append(&journal, 3, 1, b"kept").unwrap();
    drop(journal);
    destroy_header(dir.path());
    let (journal, second) = open(dir.path());
    assert_eq!((second.writer, second.confirmed, &second.runs[..]), (first.writer, Some(first.run), &[first.run][..]));
    assert_eq!(payloads(&read(&journal, 3)), [b"kept"]);
    assert!(second.damage[0].reason.contains("header is unreadable"), "{:?}", second.damage);
}

#[test]
fn no_number_of_starts_that_never_reach_the_database_makes_it_forget_the_confirmed_run() {
    let dir = scratch();
    let (journal, first) = open(dir.path());
    journal.confirm_run();
    drop(journal);
    let mut latest = Vec::new();
    for _ in 0..1_100 {
        let (journal, recovered) = open(dir.path());
        latest.push(recovered.run);
        drop::<Journal>(journal);
    }
    let (_journal, last) = open(dir.path());
    assert_eq!((last.confirmed, last.runs[0]), (Some(first.run), first.run));
    assert_eq!(last.runs[1], latest[0], "a copy that forks is named after it");
    let newest: &[Uuid] = &last.runs[2..];
    assert_eq!(newest, &latest[latest.len() - newest.len()..]);
}
