//! The bytes on disk are frozen: what an older version wrote must stay readable.
//!
//! The files in `tests/golden` were written once by this version. A change of the format is a new version with new
//! files next to these, which must stay readable.

use std::fs;
use std::path::PathBuf;

use logweir_engine::journal::LaneTail;

use crate::kit::*;

/// Identities in the golden journal.
const WRITER: &str = "0a1b9865-9387-40a5-812a-ffbaa39bd8dd";
const RUNS: [&str; 2] = ["cccf4cfd-7f6a-4768-8c7d-f371301d25cd", "99e79e43-6a6e-4cfe-ab31-af807f704c57"];
/// Lane, sequence number, the lane's previous sequence number, the lane's record count.
const FRAMES: [(u16, u64, u64, u64); 5] =
    [(0, 2, 0, 2), (0, 4, 2, 4), (0, 2_097_158, 4, 6), (1, 3, 0, 2), (1, 2_097_159, 3, 4)];

fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

#[test]
fn a_journal_of_version_1_is_read() {
    // Two runs: START, three chunks, SEAL; START, two chunks and a kill.
    let dir = copy(&golden("journal-v1"));
    let (journal, recovered) = open(dir.path());
    assert_eq!(recovered.writer.to_string(), WRITER);
    assert_eq!(recovered.runs.iter().map(ToString::to_string).collect::<Vec<_>>(), RUNS);
    assert_eq!((recovered.damage.len(), recovered.torn_bytes, recovered.clean), (0, 0, false));
    assert_eq!(recovered.seq_last, 2_097_159);
    assert_eq!(recovered.lanes[&0], LaneTail { seq: 2_097_158, records: 6 });
    assert_eq!(recovered.lanes[&1], LaneTail { seq: 2_097_159, records: 4 });
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
