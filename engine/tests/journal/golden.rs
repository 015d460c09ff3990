//! The bytes on disk are frozen: what an older version wrote must stay readable.
//!
//! The files in `tests/golden` were written once by this version. A change of the format is a new version with new
//! files next to these, which must stay readable. Until the first release they are written again instead:
//! `cargo test -p logweir-engine --test journal write_the_golden_journal -- --ignored`.

use std::fs;
use std::path::PathBuf;

use logweir_engine::journal::{LaneTail, OpenError};

use crate::kit::*;

/// Lane, sequence number, the lane's previous sequence number, the lane's record count.
const FRAMES: [(u16, u64, u64, u64); 5] =
    [(0, 2, 0, 2), (0, 5, 2, 4), (0, 2_097_159, 5, 6), (1, 4, 0, 2), (1, 2_097_160, 4, 4)];

fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

#[test]
fn a_journal_of_version_4_is_read() {
    let ids = fs::read_to_string(golden("journal-v4.ids")).unwrap();
    let [writer, first, second] = ids.lines().collect::<Vec<_>>().try_into().unwrap();
    let dir = copy(&golden("journal-v4"));
    let (journal, recovered) = open(dir.path());
    assert_eq!(recovered.writer.to_string(), writer);
    assert_eq!(recovered.runs.iter().map(ToString::to_string).collect::<Vec<_>>(), [first, second]);
    assert_eq!(recovered.confirmed.map(|run| run.to_string()).as_deref(), Some(first));
    assert_eq!((recovered.damage.len(), recovered.torn_bytes, recovered.clean), (0, 0, false));
    assert_eq!(recovered.seq_last, 2_097_160);
    assert_eq!(recovered.lanes[&0], LaneTail { seq: 2_097_159, records: 6 });
    assert_eq!(recovered.lanes[&1], LaneTail { seq: 2_097_160, records: 4 });
    let payload = fs::read(golden("payload.bin")).unwrap();
    let mut seqs = Vec::new();
    for lane in [0, 1] {
        for frame in read(&journal, lane) {
            assert_eq!((frame.codec, &frame.payload[..]), (1, &payload[..]));
            seqs.push((lane, frame.seq, frame.lane_prev_seq, frame.lane_records));
        }
    }
    assert_eq!(seqs, FRAMES);
}

/// Two runs: START, a chunk, CONFIRM, two chunks, SEAL; START, two chunks and a kill.
#[test]
#[ignore = "writes the files that the other test reads"]
fn write_the_golden_journal() {
    let (dir, payload) = (scratch(), fs::read(golden("payload.bin")).unwrap());
    let (journal, first) = open(dir.path());
    append(&journal, 0, 2, &payload).unwrap();
    journal.confirm_run();
    append(&journal, 1, 2, &payload).unwrap();
    append(&journal, 0, 2, &payload).unwrap();
    journal.seal().unwrap();
    let (journal, second) = open(dir.path());
    append(&journal, 0, 2, &payload).unwrap();
    append(&journal, 1, 2, &payload).unwrap();
    drop(journal);
    for segment in segments(dir.path()) {
        let bytes = fs::read(&segment).unwrap();
        let used = raw_frames(&bytes).last().unwrap().end;
        fs::create_dir_all(golden("journal-v4")).unwrap();
        fs::write(golden("journal-v4").join(segment.file_name().unwrap()), &bytes[..used]).unwrap();
    }
    fs::write(golden("journal-v4.ids"), format!("{}\n{}\n{}\n", first.writer, first.run, second.run)).unwrap();
}

#[test]
fn a_journal_from_before_the_first_release_is_rejected_and_not_modified() {
    let dir = copy(&golden("journal-v4"));
    let segment = segments(dir.path()).remove(0);
    let mut bytes = fs::read(&segment).unwrap();
    bytes[8..12].copy_from_slice(&[3, 0, 3, 0]);
    let crc = crc32c::crc32c(&bytes[..92]);
    bytes[92..96].copy_from_slice(&crc.to_le_bytes());
    fs::write(&segment, &bytes).unwrap();
    let error = logweir_engine::journal::Journal::open(config(dir.path())).err().unwrap();
    assert!(matches!(error, OpenError::TooOld { is: 3, oldest: 4, .. }), "{error}");
    assert!(error.to_string().contains("drain it with the version that wrote it"), "{error}");
    assert_eq!((segments(dir.path()).len(), fs::read(&segment).unwrap()), (2, bytes));
}
