//! A disk that cannot read a page: what is in it is lost, counted and named, and nothing else. At a start, while the
//! journal is open, and for each command.

use std::collections::BTreeSet;
use std::ops::{ControlFlow, Range};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use logweir_engine::file_system::{Crash, FileSystem, OpenMode, SimulatedDisk};
use logweir_engine::journal::{Damage, Frame, Journal, JournalConfig, OpenError, check_on, dump_on, repair_on};

use crate::kit::{DATA, SEGMENT_BYTES, START, append, payload, raw_frames, read};

const DIR: &str = "/data/journal";
const PAGE_BYTES: u64 = 4096;
const FOR_EVER: u32 = u32::MAX;

fn config(disk: &SimulatedDisk) -> JournalConfig {
    JournalConfig {
        segment_bytes: SEGMENT_BYTES,
        quota_bytes: 32 * SEGMENT_BYTES,
        file_system: Arc::new(disk.clone()),
        ..JournalConfig::new(DIR)
    }
}

/// A disk with a journal of three segments, as a killed process leaves it; the same each time.
fn sample() -> SimulatedDisk {
    let disk = SimulatedDisk::new(1);
    let (journal, _) = Journal::open(config(&disk)).unwrap();
    for number in 0..90 {
        append(&journal, 0, 1, &payload(number, 300 + number * 47 % 3000)).unwrap();
    }
    drop(journal);
    disk.restart(Crash::Kill);
    disk
}

fn bytes(disk: &SimulatedDisk, path: &Path) -> Vec<u8> {
    let file = disk.open(path, OpenMode::Read).unwrap();
    let mut bytes = vec![0; usize::try_from(file.metadata().unwrap().bytes).unwrap()];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

fn segments(disk: &SimulatedDisk) -> Vec<PathBuf> {
    let names = disk.list(Path::new(DIR)).unwrap();
    names
        .into_iter()
        .map(|name| Path::new(DIR).join(name))
        .filter(|path| path.extension().is_some_and(|it| it == "wal"))
        .collect()
}

/// Sequence numbers of the data frames: all, and those with a byte in `page` of `hit`.
fn frames(disk: &SimulatedDisk, hit: &Path, page: &Range<u64>) -> (BTreeSet<u64>, BTreeSet<u64>) {
    let (mut all, mut lost) = (BTreeSet::new(), BTreeSet::new());
    for path in segments(disk) {
        for frame in raw_frames(&bytes(disk, &path)).into_iter().filter(|frame| frame.kind == DATA) {
            all.insert(frame.seq);
            // The padding behind a payload is part of no checksum.
            let end = frame.offset + crate::kit::FRAME_HEADER_BYTES + frame.payload_bytes;
            if path == hit && (frame.offset as u64) < page.end && page.start < end as u64 {
                lost.insert(frame.seq);
            }
        }
    }
    (all, lost)
}

fn seqs(frames: &[Frame]) -> BTreeSet<u64> {
    frames.iter().map(|frame| frame.seq).collect()
}

fn is_named(damage: &[Damage], seq: u64) -> bool {
    damage.iter().any(|damage| (damage.seq_first..=damage.seq_last).contains(&seq))
}

/// Calls `test` for each page that is in use, with a new disk each time: its file and the page.
fn each_page(mut test: impl FnMut(&SimulatedDisk, &Path, Range<u64>, &BTreeSet<u64>, &BTreeSet<u64>)) {
    let mut pages = 0;
    for number in 0..3 {
        for start in (0..SEGMENT_BYTES).step_by(4096) {
            let disk = sample();
            let path = segments(&disk)[number].clone();
            let page = start..start + PAGE_BYTES;
            let used = raw_frames(&bytes(&disk, &path)).last().unwrap().end as u64;
            if start > used {
                continue;
            }
            let (all, lost) = frames(&disk, &path, &page);
            test(&disk, &path, page, &all, &lost);
            pages += 1;
        }
    }
    assert!(pages > 35, "{pages} pages");
}

#[test]
fn a_start_skips_a_page_that_cannot_be_read_and_names_what_was_in_it() {
    each_page(|disk, path, page, all, lost| {
        disk.make_unreadable(path, page.clone(), FOR_EVER).unwrap();
        // Twice: the first start may have copied frames.
        for start in 1..=2 {
            let (journal, recovered) = Journal::open(config(disk)).unwrap();
            let found = seqs(&read(&journal, 0));
            let kept = all.difference(lost).copied().collect();
            assert_eq!(found, kept, "{path:?} {page:?} start {start}");
            let damage: Vec<_> = recovered.damage.into_iter().chain(named(disk)).collect();
            for seq in lost {
                assert!(is_named(&damage, *seq), "{path:?} {page:?} start {start}: {seq} in {damage:?}");
            }
            if start == 1 && !lost.is_empty() {
                assert!(journal.stats().damaged_frames >= lost.len() as u64, "{path:?} {page:?} start {start}");
            }
            append(&journal, 1, 1, b"more").unwrap();
            drop(journal);
            disk.restart(Crash::PowerLoss);
        }
    });
}

#[test]
fn the_frames_of_a_run_whose_start_cannot_be_read_are_named() {
    let disk = SimulatedDisk::new(1);
    let (journal, _) = Journal::open(config(&disk)).unwrap();
    append(&journal, 0, 1, &payload(1, 20_000)).unwrap();
    drop(journal);
    disk.restart(Crash::Kill);
    let (journal, _) = Journal::open(config(&disk)).unwrap();
    let seq = append(&journal, 0, 1, b"of the second run").unwrap().seq;
    drop(journal);
    disk.restart(Crash::Kill);
    // What the start has copied comes before its START, and remains.
    let path = segments(&disk).pop().unwrap();
    let frames = raw_frames(&bytes(&disk, &path));
    let start = frames.iter().find(|frame| frame.kind == START).unwrap().offset as u64;
    let page = start / PAGE_BYTES * PAGE_BYTES;
    assert!(page > 0, "{start}");
    disk.make_unreadable(&path, page..SEGMENT_BYTES, FOR_EVER).unwrap();
    let (journal, recovered) = Journal::open(config(&disk)).unwrap();
    assert!(!seqs(&read(&journal, 0)).contains(&seq));
    assert!(is_named(&recovered.damage, seq), "{seq} in {:?}", recovered.damage);
    assert!(append(&journal, 0, 1, b"of the third run").unwrap().seq > seq);
}

/// Damage that a reader has found: the names in the quarantine.
fn named(disk: &SimulatedDisk) -> Vec<Damage> {
    let names = disk.list(&Path::new(DIR).join("quarantine")).unwrap_or_default();
    let damage = |name: &str| {
        let mut numbers = name.strip_prefix("damage-")?.split('-').map(|number| number.parse().ok());
        let mut next = || numbers.next().flatten();
        let (segment, offset, seq_first, seq_last) = (next()?, next()?, next()?, next()?);
        Some(Damage { segment, offset, bytes: 0, seq_first, seq_last, reason: String::new() })
    };
    names.iter().filter_map(|name| damage(name.to_str()?)).collect()
}

#[test]
fn a_reader_skips_a_page_that_cannot_be_read_and_names_what_was_in_it() {
    each_page(|disk, path, page, all, lost| {
        let (journal, recovered) = Journal::open(config(disk)).unwrap();
        assert_eq!(recovered.damage, []);
        // Frames that the start has copied are in another file.
        let Ok(()) = disk.make_unreadable(path, page.clone(), FOR_EVER) else { return };
        let (before, lost) = (all.clone(), if disk.exists(path) { lost.clone() } else { BTreeSet::new() });
        let found = seqs(&read(&journal, 0));
        let missing: BTreeSet<_> = before.difference(&found).copied().collect();
        assert!(missing.is_subset(&lost), "{path:?} {page:?}: {missing:?} of {lost:?}");
        let damage = named(disk);
        for seq in &missing {
            assert!(is_named(&damage, *seq), "{path:?} {page:?}: {seq} in {damage:?}");
        }
        assert_eq!(journal.stats().damaged_frames >= 1, !missing.is_empty(), "{path:?} {page:?}");
        // A second reader finds the same, and counts nothing again.
        let counted = journal.stats().damaged_frames;
        assert_eq!(seqs(&read(&journal, 0)), found);
        assert_eq!(journal.stats().damaged_frames, counted);
    });
}

#[test]
fn each_command_skips_a_page_that_cannot_be_read() {
    each_page(|disk, path, page, all, lost| {
        disk.make_unreadable(path, page.clone(), FOR_EVER).unwrap();
        let file_system: Arc<dyn FileSystem> = Arc::new(disk.clone());
        let report = check_on(file_system.clone(), Path::new(DIR)).unwrap();
        for seq in lost {
            assert!(is_named(&report.damage, *seq), "{path:?} {page:?}: {seq} in {:?}", report.damage);
        }
        let mut dumped = BTreeSet::new();
        let visit = &mut |frame: Frame, _, _| {
            dumped.insert(frame.seq);
            ControlFlow::Continue(())
        };
        let damage = dump_on(file_system.clone(), Path::new(DIR), None, 0, visit).unwrap();
        for seq in lost {
            assert!(is_named(&damage, *seq), "{path:?} {page:?}: {seq} in the dump's {damage:?}");
        }
        for seq in all.difference(lost) {
            assert!(!is_named(&damage, *seq), "{path:?} {page:?}: {seq} in the dump's {damage:?}");
        }
        assert_eq!(dumped, all.difference(lost).copied().collect(), "{path:?} {page:?}");
        repair_on(file_system.clone(), Path::new(DIR)).unwrap();
        repair_on(file_system, Path::new(DIR)).unwrap();
        let (journal, _) = Journal::open(config(disk)).unwrap();
        assert_eq!(seqs(&read(&journal, 0)), dumped, "{path:?} {page:?}");
    });
}

#[test]
fn a_page_that_can_be_read_at_the_third_try_is_not_damaged() {
    let disk = sample();
    let path = segments(&disk)[1].clone();
    let (all, _) = frames(&disk, &path, &(0..0));
    disk.make_unreadable(&path, 4096..8192, 2).unwrap();
    let (journal, recovered) = Journal::open(config(&disk)).unwrap();
    assert_eq!(recovered.damage, []);
    disk.make_unreadable(&path, 4096..8192, 2).unwrap();
    assert_eq!(seqs(&read(&journal, 0)), all);
    assert_eq!(journal.stats().damaged_frames, 0);
}

#[test]
fn nothing_is_skipped_while_the_whole_disk_is_away() {
    use logweir_engine::file_system::Operation;
    use rustix::io::Errno;

    let disk = sample();
    let (journal, _) = Journal::open(config(&disk)).unwrap();
    let path = segments(&disk)[0].clone();
    let goes_away = || {
        disk.fail(Operation::Read, "", Errno::IO, 1_000_000);
        disk.fail(Operation::Open, "probe", Errno::IO, 1_000_000);
    };
    goes_away();
    let error = journal.reader(0, 0).next_frames(1, 1).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(Errno::IO.raw_os_error()));
    assert_eq!(journal.stats().damaged_frames, 0);
    disk.heal();
    let (all, _) = frames(&disk, &path, &(0..0));
    assert_eq!(seqs(&read(&journal, 0)), all, "the disk is back, and nothing is missing");
    drop(journal);

    disk.restart(Crash::Kill);
    goes_away();
    assert!(matches!(Journal::open(config(&disk)), Err(OpenError::Io { .. })));
    disk.heal();
    // Away only while the directory is scanned for the first time.
    disk.fail(Operation::Read, "", Errno::IO, 40);
    let (journal, recovered) = Journal::open(config(&disk)).unwrap();
    assert_eq!(recovered.damage, []);
    assert_eq!(seqs(&read(&journal, 0)), all);
}

#[test]
fn nothing_is_skipped_while_nothing_can_be_read_although_the_disk_can_be_written() {
    use logweir_engine::file_system::Operation;
    use rustix::io::Errno;

    let disk = sample();
    let path = segments(&disk)[0].clone();
    let (all, _) = frames(&disk, &path, &(0..0));
    let (journal, _) = Journal::open(config(&disk)).unwrap();
    let mut reader = journal.reader(0, 0);
    disk.fail(Operation::Read, "", Errno::IO, 1_000_000);
    assert!(reader.next_frames(1, 1).is_err());
    assert!(reader.next_frames(1, 1).is_err(), "again");
    disk.heal();
    // The same reader has passed nothing.
    assert_eq!(seqs(&reader.next_frames(usize::MAX, usize::MAX).unwrap()), all);
    // It comes back at any moment, also between the read and the check of the disk.
    for reads in 1..=16 {
        disk.fail(Operation::Read, ".wal", Errno::IO, reads);
        assert_eq!(seqs(&read(&journal, 0)), all, "{reads} reads fail");
        disk.heal();
    }
    assert_eq!(journal.stats().damaged_frames, 0);
    drop(journal);
    disk.restart(Crash::Kill);
    disk.fail(Operation::Read, "", Errno::IO, 1_000_000);
    assert!(matches!(Journal::open(config(&disk)), Err(OpenError::Io { .. })));
    disk.heal();
    let (journal, recovered) = Journal::open(config(&disk)).unwrap();
    assert_eq!(recovered.damage, []);
    assert_eq!(seqs(&read(&journal, 0)), all);
}
