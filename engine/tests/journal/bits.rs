//! Every bit of every file of a journal, flipped: the next start goes on, and loses at most the frame that the bit is in.

use std::fs;
use std::path::Path;

use logweir_engine::journal::{Frame, Journal, JournalConfig, Recovered};
use tempfile::TempDir;
use uuid::Uuid;

use crate::kit::*;

/// Zeros behind the last frame that are tried as well.
const UNUSED_BYTES: usize = 200;

struct Sample {
    dir: TempDir,
    writer: Uuid,
    /// The run that the database knows.
    confirmed: Uuid,
    frames: Vec<Frame>,
}

/// Two runs, the first of them sealed, and a run that never reached the database. Each file is cut behind its frames.
fn sample() -> Sample {
    let dir = scratch();
    let (journal, first) = open(dir.path());
    append(&journal, 0, 1, b"one").unwrap();
    journal.confirm_run();
    append(&journal, 1, 2, b"two").unwrap();
    journal.seal().unwrap();
    drop(journal);
    drop(open(dir.path()));
    let (journal, _) = open(dir.path());
    append(&journal, 0, 1, b"three").unwrap();
    append(&journal, 1, 2, b"four").unwrap();
    // Damage to the last group looks like a torn write.
    append(&journal, 0, 1, b"last").unwrap();
    let frames = read_all(&journal);
    drop(journal);
    for segment in segments(dir.path()) {
        let bytes = fs::read(&segment).unwrap();
        let used = raw_frames(&bytes).last().unwrap().end;
        fs::write(&segment, &bytes[..bytes.len().min(used + UNUSED_BYTES)]).unwrap();
    }
    Sample { dir, writer: first.writer, confirmed: first.run, frames }
}

fn read_all(journal: &Journal) -> Vec<Frame> {
    let mut frames = [read(journal, 0), read(journal, 1)].concat();
    frames.sort_by_key(|frame| frame.seq);
    frames
}

/// What is not lost of `sample`, and what the start says.
fn start(sample: &Sample, dir: &Path) -> (Vec<Frame>, Recovered) {
    let (journal, recovered) = Journal::open(JournalConfig { quota_bytes: 1 << 20, ..config(dir) }).unwrap();
    let frames = read_all(&journal);
    assert!(frames.iter().all(|frame| sample.frames.contains(frame)), "a frame that nobody wrote");
    (frames, recovered)
}

#[test]
fn any_flipped_bit_of_any_segment_costs_at_most_the_frame_that_it_is_in() {
    let sample = sample();
    let all: Vec<u64> = sample.frames.iter().map(|frame| frame.seq).collect();
    assert_eq!(segments(sample.dir.path()).len(), 2);
    for segment in segments(sample.dir.path()) {
        let whole = fs::read(&segment).unwrap();
        let raw = raw_frames(&whole);
        for bit in 0..whole.len() * 8 {
            let dir = copy(sample.dir.path());
            flip(&dir.path().join(segment.file_name().unwrap()), bit);
            let at = format!("bit {bit} of {}", segment.display());
            let (frames, recovered) = start(&sample, dir.path());
            // The database accepts it: it knows the run that the database knows.
            assert_eq!((recovered.writer, recovered.confirmed), (sample.writer, Some(sample.confirmed)), "{at}");
            assert!(recovered.runs.contains(&sample.confirmed), "{at}");
            assert_eq!(recovered.lanes.len(), 2, "{at}");
            let of = |frame: &&Raw| (frame.offset + FRAME_HEADER_BYTES..frame.end).contains(&(bit / 8));
            let hit = raw.iter().find(of).filter(|frame| frame.kind == DATA).map(|frame| frame.seq);
            let lost: Vec<u64> =
                all.iter().copied().filter(|seq| frames.iter().all(|frame| frame.seq != *seq)).collect();
            assert!(lost.is_empty() || lost == Vec::from_iter(hit), "{at}: {lost:?} lost");
            // By the start, or, in an older segment, by the reader.
            let named = |seq: u64| {
                let by_start = recovered.damage.iter().any(|lost| (lost.seq_first..=lost.seq_last).contains(&seq));
                by_start || quarantine(dir.path()).iter().any(|name| name.ends_with(&format!("-{seq}-{seq}")))
            };
            for seq in lost {
                assert!(
                    named(seq) || (Some(&seq) == all.last() && recovered.torn_bytes > 0),
                    "{at}: {seq} is not named"
                );
            }
        }
    }
}

#[test]
fn any_flipped_bit_of_the_other_files_costs_nothing() {
    let sample = sample();
    let spare = sample.dir.path().join("spare.tmp");
    let mut bytes = fs::read(&spare).unwrap_or_else(|_| vec![0; SEGMENT_BYTES as usize]);
    fs::write(sample.dir.path().join("ballast"), [0; 64]).unwrap();
    let lock_bytes = fs::metadata(sample.dir.path().join("LOCK")).unwrap().len() as usize;
    assert!(lock_bytes >= 72, "the identity is in the lock file, too");
    for bit in (0..bytes.len() * 8).step_by(8 * 1021 + 1).chain((0..SEGMENT_HEADER_BYTES * 8).step_by(9)) {
        bytes[bit / 8] ^= 1 << (bit % 8);
        let dir = copy(sample.dir.path());
        fs::write(dir.path().join("spare.tmp"), &bytes).unwrap();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let (frames, recovered) = start(&sample, dir.path());
        assert_eq!((frames.len(), recovered.damage.len()), (sample.frames.len(), 0), "bit {bit}");
        // What is written over it is read back.
        let (journal, _) = open(dir.path());
        append(&journal, 0, 1, b"more").unwrap();
        drop(journal);
        let (journal, recovered) = open(dir.path());
        assert_eq!(read(&journal, 0).last().unwrap().payload, b"more", "bit {bit}");
        assert_eq!(recovered.damage, [], "bit {bit}");
    }
    for (name, bits) in [("ballast", 64 * 8), ("LOCK", lock_bytes * 8)] {
        for bit in 0..bits {
            let dir = copy(sample.dir.path());
            fs::copy(sample.dir.path().join(name), dir.path().join(name)).unwrap();
            flip(&dir.path().join(name), bit);
            let (frames, recovered) = start(&sample, dir.path());
            assert_eq!((frames.len(), recovered.damage.len()), (sample.frames.len(), 0), "bit {bit} of {name}");
        }
    }
}
