//! Reused files of committed segments: stale bytes in them are never taken for frames.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::kit::{
    DATA, SEGMENT_BYTES, append, begin, config, copy, eventually, open, payload, payloads, quarantine, raw_frames,
    read, scratch, segments,
};
use logweir_engine::journal::{Journal, JournalConfig, check};

/// Reads the flag in a segment's header.
fn is_reused(bytes: &[u8]) -> bool {
    bytes[12] == 1
}

/// Fills and commits segments until the last one is in a reused file, then appends frames that stay uncommitted.
fn sample(dir: &Path) -> (Journal, PathBuf, Vec<Vec<u8>>) {
    let (journal, _) = open(dir);
    let mut number = 0;
    loop {
        let seq = append(&journal, 0, 1, &payload(number, 7_000)).unwrap().seq;
        journal.commit(0, seq);
        number += 1;
        let latest = segments(dir).pop().unwrap();
        // A listing that is taken while files are renamed can name one that is gone.
        let Ok(bytes) = fs::read(&latest) else { continue };
        if is_reused(&bytes) && raw_frames(&bytes).len() > 2 {
            let left: Vec<_> = (number..number + 3).map(|number| payload(number, 1_001)).collect();
            for payload in &left {
                append(&journal, 0, 1, payload).unwrap();
            }
            return (journal, latest, left);
        }
        assert!(number < 2_000, "no file was reused");
    }
}

fn uncommitted(journal: &Journal, count: usize) -> Vec<Vec<u8>> {
    let all = payloads(&read(journal, 0));
    all[all.len() - count..].to_vec()
}

#[test]
fn a_journal_in_reused_files_ends_at_its_last_frame() {
    let dir = scratch();
    let (journal, latest, left) = sample(dir.path());
    let bytes = fs::read(&latest).unwrap();
    assert!(bytes[SEGMENT_BYTES as usize / 2..].iter().any(|&byte| byte != 0), "stale bytes follow");
    // After a crash: a copy of the running journal's files.
    let crashed = copy(dir.path());
    let report = check(crashed.path()).unwrap();
    assert_eq!((report.torn_bytes, report.damage.len()), (0, 0));
    let (again, recovered) = open(crashed.path());
    assert_eq!((recovered.torn_bytes, recovered.damage.len()), (0, 0));
    assert_eq!(quarantine(crashed.path()), Vec::<String>::new());
    assert_eq!(uncommitted(&again, 3), left);
    // After an orderly stop.
    journal.seal().unwrap();
    drop(journal);
    let (again, recovered) = open(dir.path());
    assert!(recovered.clean);
    assert_eq!((recovered.torn_bytes, recovered.damage.len()), (0, 0));
    assert_eq!(uncommitted(&again, 3), left);
}

#[test]
fn a_torn_write_in_a_reused_file_is_truncated_and_stale_frames_stay_invalid() {
    let dir = scratch();
    let (journal, latest, left) = sample(dir.path());
    let before = fs::read(&latest).unwrap();
    append(&journal, 0, 1, &payload(5_000, 900)).unwrap();
    let after = fs::read(&latest).unwrap();
    let last = *raw_frames(&after).last().unwrap();
    assert_eq!(last.kind, DATA);
    for end in (last.offset..=last.end + 64).step_by(40) {
        let torn = copy(dir.path());
        let file = fs::File::options().write(true).open(torn.path().join(latest.file_name().unwrap())).unwrap();
        // The first part of the write reached the disk, the rest has its previous content.
        file.write_all_at(&before[end..], end as u64).unwrap();
        drop(file);
        let (again, recovered) = open(torn.path());
        assert_eq!(recovered.damage, [], "torn at {end}");
        let mut all = uncommitted(&again, 3);
        if end >= last.end {
            all = uncommitted(&again, 4);
            assert_eq!(all.pop().unwrap(), payload(5_000, 900));
        }
        assert_eq!(all, left, "torn at {end}");
        let quarantined: u64 = quarantine(torn.path())
            .iter()
            .map(|name| fs::metadata(torn.path().join("quarantine").join(name)).unwrap().len())
            .sum();
        assert_eq!(quarantined, recovered.torn_bytes, "torn at {end}");
    }
}

#[test]
fn damage_in_a_reused_file_is_detected() {
    let dir = scratch();
    let (journal, latest, left) = sample(dir.path());
    for number in 0..3 {
        append(&journal, 0, 1, &payload(number, 100)).unwrap();
    }
    let crashed = copy(dir.path());
    let path = crashed.path().join(latest.file_name().unwrap());
    let frames = raw_frames(&fs::read(&path).unwrap());
    let hit = frames[frames.len() - 6];
    let file = fs::File::options().write(true).open(&path).unwrap();
    file.write_all_at(&[0; 64], hit.offset as u64).unwrap(); // zeros in the middle are not the end
    drop(file);
    let (again, recovered) = open(crashed.path());
    assert_eq!(
        recovered.damage.iter().map(|damage| (damage.seq_first, damage.seq_last)).collect::<Vec<_>>(),
        [(hit.seq, hit.seq)]
    );
    assert_eq!(uncommitted(&again, 5)[..2], left[1..]);
}

#[test]
fn a_reader_of_a_file_that_is_reused_reports_no_damage() {
    let dir = scratch();
    let config = JournalConfig { retain_segments: 0, ..config(dir.path()) };
    let (journal, _) = Journal::open(config).unwrap();
    // The reader is in the first segment and falls behind.
    let first = append(&journal, 0, 1, &payload(0, 9_000)).unwrap();
    for number in 1..7 {
        append(&journal, 0, 1, &payload(number, 9_000)).unwrap();
    }
    let mut reader = journal.reader(0, 0);
    assert_eq!(reader.next_frames(1, 1).unwrap()[0].seq, first.seq);
    let first_file = segments(dir.path())[0].clone();
    let mut number = 7;
    loop {
        let seq = append(&journal, 0, 1, &payload(number, 9_000)).unwrap().seq;
        journal.commit(0, seq);
        number += 1;
        if !first_file.exists()
            && segments(dir.path()).iter().any(|path| fs::read(path).is_ok_and(|bytes| is_reused(&bytes)))
            && number > 60
        {
            break;
        }
        assert!(number < 2_000, "no file was reused");
    }
    let (last, _answer) = begin(&journal, 0, 1, &payload(number, 10)).unwrap();
    eventually("it is durable", || journal.stats().seq_durable >= last.seq);
    let mut latest = 0;
    loop {
        let frames = reader.next_frames(10, 1 << 20).unwrap();
        let Some(frame) = frames.last() else { break };
        latest = frame.seq;
    }
    assert_eq!(latest, last.seq);
    assert_eq!(journal.stats().damaged_frames, 0);
    assert_eq!(quarantine(dir.path()), Vec::<String>::new());
}
