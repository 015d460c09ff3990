//! Files of settled segments that are used again: what an older segment left in them is never taken for anything.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::kit::{
    DATA, SEGMENT_BYTES, append, begin, config, copy, eventually, open, payload, payloads, quarantine, raw_frames,
    read, scratch, segments,
};
use logweir_engine::journal::{Journal, JournalConfig, check};

/// The flag in a segment's header.
fn is_reused(path: &Path) -> bool {
    fs::read(path).unwrap()[12] == 1
}

/// Fills segments and settles them until the newest one's file was used before, then appends some frames that stay.
fn sample(dir: &Path) -> (Journal, PathBuf, Vec<Vec<u8>>) {
    let (journal, _) = open(dir);
    let mut number = 0;
    loop {
        let seq = append(&journal, 0, 1, &payload(number, 7_000)).unwrap().seq;
        journal.commit(0, seq);
        number += 1;
        let newest = segments(dir).pop().unwrap();
        if is_reused(&newest) && raw_frames(&fs::read(&newest).unwrap()).len() > 2 {
            let left: Vec<_> = (number..number + 3).map(|number| payload(number, 1_001)).collect();
            for payload in &left {
                append(&journal, 0, 1, payload).unwrap();
            }
            return (journal, newest, left);
        }
        assert!(number < 2_000, "no file was used again");
    }
}

fn unsettled(journal: &Journal, count: usize) -> Vec<Vec<u8>> {
    let all = payloads(&read(journal, 0));
    all[all.len() - count..].to_vec()
}

#[test]
fn a_journal_in_used_files_ends_where_it_ends() {
    let dir = scratch();
    let (journal, newest, left) = sample(dir.path());
    let bytes = fs::read(&newest).unwrap();
    assert!(bytes[SEGMENT_BYTES as usize / 2..].iter().any(|&byte| byte != 0), "something older lies behind");
    // As after a crash: a copy of the files of the running journal.
    let crashed = copy(dir.path());
    let report = check(crashed.path()).unwrap();
    assert_eq!((report.torn_bytes, report.damage.len()), (0, 0));
    let (again, recovered) = open(crashed.path());
    assert_eq!((recovered.torn_bytes, recovered.damage.len()), (0, 0));
    assert_eq!(quarantine(crashed.path()), Vec::<String>::new());
    assert_eq!(unsettled(&again, 3), left);
    // And in order.
    journal.seal().unwrap();
    drop(journal);
    let (again, recovered) = open(dir.path());
    assert!(recovered.clean);
    assert_eq!((recovered.torn_bytes, recovered.damage.len()), (0, 0));
    assert_eq!(unsettled(&again, 3), left);
}

#[test]
fn a_write_torn_at_any_place_of_a_used_file_is_cut_and_nothing_older_comes_back() {
    let dir = scratch();
    let (journal, newest, left) = sample(dir.path());
    let before = fs::read(&newest).unwrap();
    append(&journal, 0, 1, &payload(5_000, 900)).unwrap();
    let after = fs::read(&newest).unwrap();
    let last = *raw_frames(&after).last().unwrap();
    assert_eq!(last.kind, DATA);
    for end in (last.offset..=last.end + 64).step_by(40) {
        let torn = copy(dir.path());
        let file = fs::File::options().write(true).open(torn.path().join(newest.file_name().unwrap())).unwrap();
        // The first part of the write reached the disk, the rest is as it was.
        file.write_all_at(&before[end..], end as u64).unwrap();
        drop(file);
        let (again, recovered) = open(torn.path());
        assert_eq!(recovered.damage, [], "torn at {end}");
        let mut all = unsettled(&again, 3);
        if end >= last.end {
            all = unsettled(&again, 4);
            assert_eq!(all.pop().unwrap(), payload(5_000, 900));
        }
        assert_eq!(all, left, "torn at {end}");
        let kept: u64 = quarantine(torn.path())
            .iter()
            .map(|name| fs::metadata(torn.path().join("quarantine").join(name)).unwrap().len())
            .sum();
        assert_eq!(kept, recovered.torn_bytes, "torn at {end}");
    }
}

#[test]
fn damage_in_a_used_file_is_still_damage() {
    let dir = scratch();
    let (journal, newest, left) = sample(dir.path());
    for number in 0..3 {
        append(&journal, 0, 1, &payload(number, 100)).unwrap();
    }
    let crashed = copy(dir.path());
    let path = crashed.path().join(newest.file_name().unwrap());
    let frames = raw_frames(&fs::read(&path).unwrap());
    let hit = frames[frames.len() - 6];
    let file = fs::File::options().write(true).open(&path).unwrap();
    file.write_all_at(&[0; 64], hit.offset as u64).unwrap(); // zeros in the middle end nothing
    drop(file);
    let (again, recovered) = open(crashed.path());
    assert_eq!(
        recovered.damage.iter().map(|damage| (damage.seq_first, damage.seq_last)).collect::<Vec<_>>(),
        [(hit.seq, hit.seq)]
    );
    assert_eq!(unsettled(&again, 5)[..2], left[1..]);
}

#[test]
fn a_reader_of_a_file_that_is_used_again_meets_no_damage() {
    let dir = scratch();
    let config = JournalConfig { retain_segments: 0, ..config(dir.path()) };
    let (journal, _) = Journal::open(config).unwrap();
    // It stands in the first segment, and is left behind.
    let first = append(&journal, 0, 1, &payload(0, 9_000)).unwrap();
    for number in 1..7 {
        append(&journal, 0, 1, &payload(number, 9_000)).unwrap();
    }
    let mut reader = journal.reader(0, 0);
    assert_eq!(reader.next_frames(1, 1).unwrap()[0].seq, first.seq);
    let begun = segments(dir.path())[0].clone();
    let mut number = 7;
    loop {
        let seq = append(&journal, 0, 1, &payload(number, 9_000)).unwrap().seq;
        journal.commit(0, seq);
        number += 1;
        if !begun.exists() && segments(dir.path()).iter().filter(|path| is_reused(path)).count() > 0 && number > 60 {
            break;
        }
        assert!(number < 2_000, "no file was used again");
    }
    let (last, _answer) = begin(&journal, 0, 1, &payload(number, 10)).unwrap();
    eventually("it is on disk", || journal.stats().seq_durable >= last.seq);
    let mut newest = 0;
    loop {
        let frames = reader.next_frames(10, 1 << 20).unwrap();
        let Some(frame) = frames.last() else { break };
        newest = frame.seq;
    }
    assert_eq!(newest, last.seq);
    assert_eq!(journal.stats().damaged_frames, 0);
    assert_eq!(quarantine(dir.path()), Vec::<String>::new());
}
