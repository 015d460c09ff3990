//! Damaged files: torn, flipped, missing, swapped and foreign bytes.

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use logweir_engine::journal::{
    self, Damage, Frame, Journal, LaneId, OpenError, Recovered, Report, check, dump, repair,
};
use proptest::prelude::*;
use tempfile::TempDir;

use crate::kit::*;

const LANES: u16 = 2;

/// A journal of one segment that was never sealed: START and `frames` data frames, each a group of its own.
fn sample(frames: usize) -> (TempDir, PathBuf) {
    let dir = scratch();
    let (journal, _) = open(dir.path());
    for n in 0..frames {
        append(&journal, n as u16 % LANES, 1, &payload(n, 30)).unwrap();
    }
    drop(journal);
    let segment = segments(dir.path()).pop().unwrap();
    (dir, segment)
}

/// A journal of several segments.
fn long_sample() -> (TempDir, Vec<PathBuf>) {
    let dir = scratch();
    let (journal, _) = open(dir.path());
    for n in 0..20 {
        append(&journal, n as u16 % LANES, 1, &payload(n, 15_000)).unwrap();
    }
    drop(journal);
    let segments = segments(dir.path());
    assert!(segments.len() >= 4);
    (dir, segments)
}

fn read_all(journal: &Journal) -> Vec<Frame> {
    let mut frames: Vec<_> = (0..LANES).flat_map(|lane| read(journal, lane)).collect();
    frames.sort_by_key(|frame| frame.seq);
    frames
}

fn dump_all(dir: &Path) -> Vec<Frame> {
    dump_up_to(usize::MAX, dir, None, 0)
}

/// The first frames that `dump` visits, at most `count`.
fn dump_up_to(count: usize, dir: &Path, lane: Option<LaneId>, from_seq: u64) -> Vec<Frame> {
    let mut frames = Vec::new();
    let visit = &mut |frame, _, _| {
        frames.push(frame);
        if frames.len() == count { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    dump(dir, lane, from_seq, visit).unwrap();
    frames
}

/// Opens and reads everything; checks that the journal accepts appends and that a second start reads the same.
fn reopen(dir: &Path) -> (Vec<Frame>, Recovered) {
    let (journal, recovered) = open(dir);
    let frames = read_all(&journal);
    let more = append(&journal, 0, 1, b"one more").unwrap();
    assert!(frames.iter().all(|frame| frame.seq < more.seq));
    drop(journal);
    let (journal, second) = open(dir);
    assert_eq!(second.torn_bytes, 0, "torn bytes after the first start");
    let mut again = read_all(&journal);
    assert_eq!(again.pop().unwrap().payload, b"one more");
    assert_eq!(again, frames, "the second start reads the same frames");
    (frames, recovered)
}

#[test]
fn a_tail_torn_at_any_byte_leaves_a_prefix() {
    let (dir, segment) = sample(6);
    let all = dump_all(dir.path());
    assert_eq!(all.len(), 6);
    let whole = fs::read(&segment).unwrap();
    let raw = raw_frames(&whole);
    let used = raw.last().unwrap().end;
    for end in 0..used {
        let torn = copy(dir.path());
        let file = torn.path().join(segment.file_name().unwrap());
        // Truncated; zeros; garbage.
        let mut bytes = whole.clone();
        match end % 3 {
            0 => bytes.truncate(end),
            1 => bytes[end..].fill(0),
            _ => bytes[end..].fill(0x5a),
        }
        fs::write(&file, &bytes).unwrap();
        let whole_frames = raw.iter().filter(|frame| frame.kind == DATA && frame.end <= end).count();
        // A frame that lacks only its padding is complete.
        let padding = raw.iter().any(|frame| frame.end > end && frame.offset + 64 + frame.payload_bytes <= end);
        let readable = whole_frames + usize::from(padding && end % 3 != 0);
        let (frames, recovered) = reopen(torn.path());
        if end < SEGMENT_HEADER_BYTES {
            // The only header, and with it the journal's identity, is lost. A single flipped bit is repaired.
            assert!(frames.is_empty() || frames[..] == all[..frames.len()], "torn at {end}");
            continue;
        }
        assert_eq!(frames, all[..readable], "torn at {end}");
        assert_eq!(recovered.damage, [], "torn at {end}");
        let quarantined: u64 = quarantine(torn.path())
            .iter()
            .map(|name| fs::metadata(torn.path().join("quarantine").join(name)).unwrap().len())
            .sum();
        assert_eq!(quarantined, recovered.torn_bytes, "torn at {end}");
    }
}

#[test]
fn each_flipped_header_bit_is_detected_and_repaired() {
    let (dir, segment) = sample(6);
    let all = dump_all(dir.path());
    let whole = fs::read(&segment).unwrap();
    let raw = raw_frames(&whole);
    let places = std::iter::once((0, SEGMENT_HEADER_BYTES))
        .chain(raw.iter().map(|frame| (frame.offset, frame.offset + FRAME_HEADER_BYTES)));
    for (index, bit) in places.flat_map(|(from, to)| from * 8..to * 8).enumerate() {
        let mut bytes = whole.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        fs::write(&segment, &bytes).unwrap();
        let report = check(dir.path()).unwrap();
        assert!(!report.damage.is_empty() || report.torn_bytes > 0, "bit {bit} was not detected");
        let frames = dump_all(dir.path());
        assert_eq!(frames, all, "bit {bit} is repaired");
        if index % 16 == 0 {
            let flipped = copy(dir.path());
            assert_eq!(reopen(flipped.path()).0, frames, "bit {bit}");
        }
    }
}

#[test]
fn a_flipped_payload_bit_damages_exactly_that_frame() {
    let (dir, segment) = sample(6);
    let all = dump_all(dir.path());
    let raw = raw_frames(&fs::read(&segment).unwrap())[3];
    flip(&segment, (raw.offset + FRAME_HEADER_BYTES + 5) * 8);
    let (frames, recovered) = reopen(dir.path());
    let damage = Damage {
        segment: 1,
        offset: raw.offset as u64,
        bytes: (raw.end - raw.offset) as u64,
        seq_first: raw.seq,
        seq_last: raw.seq,
        reason: "the payload's CRC does not match".to_owned(),
    };
    assert_eq!(recovered.damage, [damage]);
    assert_eq!(frames, all.iter().filter(|frame| frame.seq != raw.seq).cloned().collect::<Vec<_>>());
    let next = frames.iter().find(|frame| frame.lane_prev_seq == raw.seq).unwrap();
    assert_eq!(next.lane_records, 3, "the gap is visible in the next frame of the lane");
    assert_eq!(quarantine(dir.path()), [format!("damage-1-{}-{}-{}", raw.offset, raw.seq, raw.seq)]);
}

#[test]
fn overwritten_headers_are_reported_with_the_whole_sequence_range() {
    for fill in [0, 0xff] {
        let (dir, segment) = sample(9);
        let mut bytes = fs::read(&segment).unwrap();
        let raw = raw_frames(&bytes);
        // Frames 3 to 5 of the segment, the last of them in part.
        bytes[raw[3].offset..raw[5].offset + 20].fill(fill);
        fs::write(&segment, bytes).unwrap();
        let (frames, recovered) = reopen(dir.path());
        assert_eq!(recovered.damage.len(), 1);
        let damage = &recovered.damage[0];
        assert_eq!((damage.seq_first, damage.seq_last), (raw[3].seq, raw[5].seq));
        assert_eq!((damage.offset, damage.bytes), (raw[3].offset as u64, (raw[5].end - raw[3].offset) as u64));
        assert_eq!(frames.len(), 6);
        assert_eq!(recovered.torn_bytes, 0);
    }
}

#[test]
fn writes_that_reached_the_disk_out_of_order_are_torn_not_damaged() {
    let dir = scratch();
    let (journal, _) = open(dir.path());
    append(&journal, 0, 1, b"acknowledged").unwrap();
    drop(journal);
    let segment = segments(dir.path()).pop().unwrap();
    // One group of several frames: all of them carry the same durable_upto.
    let (donor, _) = (scratch(), ());
    for entry in segments(dir.path()) {
        fs::copy(&entry, donor.path().join(entry.file_name().unwrap())).unwrap();
    }
    let (journal, _) = open(donor.path());
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let (sender, holds) = std::sync::mpsc::channel();
    let held = block_on(journal.reserve(10)).unwrap();
    let hold = when_settled(move |_| {
        sender.send(()).unwrap();
        wait.recv().unwrap();
    });
    journal.append(held, 0, 1, 1, b"holds the writer"[..10].to_vec(), hold).unwrap();
    holds.recv().unwrap(); // its group is complete: the next frames form another one
    let answers: Vec<_> = (0..5).map(|n| begin(&journal, 0, 1, &payload(n, 30)).unwrap().1).collect();
    go.send(()).unwrap();
    answers.into_iter().for_each(|answer| assert!(answer.recv().is_ok()));
    drop(journal);
    let segment = segments(donor.path()).pop().unwrap_or(segment);
    let mut bytes = fs::read(&segment).unwrap();
    let raw = raw_frames(&bytes);
    let group: Vec<_> = raw.iter().filter(|frame| frame.payload_bytes == 30).collect();
    assert_eq!(group.len(), 5);
    let hole = group[2];
    bytes[hole.offset..hole.end].fill(0);
    fs::write(&segment, bytes).unwrap();
    let (frames, recovered) = reopen(donor.path());
    assert_eq!(recovered.damage, []);
    assert!(recovered.torn_bytes > 0);
    // The frames of the group before the gap may stay: they are complete.
    assert_eq!(frames.iter().filter(|frame| frame.payload.len() == 30).count(), 2);
    assert!(quarantine(donor.path())[0].starts_with("torn-"));
}

#[test]
fn a_reader_counts_and_quarantines_damage_in_an_older_segment_once() {
    let (dir, files) = long_sample();
    let all = dump_all(dir.path());
    let raw = raw_frames(&fs::read(&files[1]).unwrap());
    let (payload_hit, header_hit) = (raw[1], raw[2]);
    flip(&files[1], (payload_hit.offset + FRAME_HEADER_BYTES) * 8);
    let (journal, recovered) = open(dir.path());
    assert_eq!(recovered.damage, [], "a start reads only the headers of older segments");
    // Two bits: one alone is repaired.
    flip(&files[1], header_hit.offset * 8);
    flip(&files[1], header_hit.offset * 8 + 9);
    let expect: Vec<_> =
        all.into_iter().filter(|frame| ![payload_hit.seq, header_hit.seq].contains(&frame.seq)).collect();
    for _ in 0..2 {
        assert_eq!(read_all(&journal), expect);
    }
    assert_eq!(journal.stats().damaged_frames, 2);
    assert_eq!(quarantine(dir.path()).len(), 2);
    assert!(journal.stats().quarantine_bytes > 0);
}

#[test]
fn a_missing_segment_is_reported_by_its_sequence_range() {
    let (dir, files) = long_sample();
    let all = dump_all(dir.path());
    let lost = raw_frames(&fs::read(&files[1]).unwrap());
    fs::remove_file(&files[1]).unwrap();
    let (frames, recovered) = reopen(dir.path());
    assert_eq!(recovered.damage.len(), 1, "{:?}", recovered.damage);
    let damage = &recovered.damage[0];
    assert_eq!((damage.seq_first, damage.seq_last), (lost[0].seq, lost.last().unwrap().seq));
    let range = damage.seq_first..=damage.seq_last;
    assert_eq!(frames, all.into_iter().filter(|frame| !range.contains(&frame.seq)).collect::<Vec<_>>());
}

#[test]
fn a_segment_of_a_diverged_copy_breaks_the_chain_and_is_reported() {
    // Two copies of one volume diverge; then a file of one is restored into the other.
    let (one, _) = sample(1);
    let other = copy(one.path());
    for (dir, from) in [(one.path(), 100), (other.path(), 200)] {
        let (journal, _) = open(dir);
        for n in from..from + 12 {
            append(&journal, 0, 1, &payload(n, 15_000)).unwrap();
        }
    }
    let files = segments(one.path());
    fs::copy(&files[1], other.path().join(files[1].file_name().unwrap())).unwrap();
    let (frames, recovered) = reopen(other.path());
    assert!(recovered.damage.iter().any(|damage| damage.reason.contains("not written after the present segment")));
    assert!(frames.is_sorted_by_key(|frame| frame.seq));
}

#[test]
fn swapped_segments_are_read_by_their_headers() {
    let (dir, files) = long_sample();
    let all = dump_all(dir.path());
    let temporary = dir.path().join("temporary");
    fs::rename(&files[0], &temporary).unwrap();
    fs::rename(&files[2], &files[0]).unwrap();
    fs::rename(&temporary, &files[2]).unwrap();
    let (frames, recovered) = reopen(dir.path());
    assert_eq!(frames, all);
    assert_eq!(recovered.damage.len(), 2);
    assert!(recovered.damage.iter().all(|damage| damage.seq_last < damage.seq_first), "no frame is lost");
}

#[test]
fn duplicate_and_foreign_segments_are_quarantined() {
    let (dir, files) = long_sample();
    let all = dump_all(dir.path());
    let (_keep, foreign) = sample(3);
    fs::copy(&files[1], dir.path().join("00000000000000000077.wal")).unwrap();
    fs::copy(&foreign, dir.path().join("00000000000000000078.wal")).unwrap();
    fs::write(dir.path().join("00000000000000000079.wal"), b"no segment at all").unwrap();
    let (frames, recovered) = reopen(dir.path());
    assert_eq!(frames, all);
    assert_eq!(recovered.damage.len(), 3);
    let names = quarantine(dir.path());
    assert_eq!(
        names,
        [
            "duplicate-00000000000000000077.wal",
            "foreign-00000000000000000078.wal",
            "unreadable-00000000000000000079.wal"
        ]
    );
    assert!(segments(dir.path()).iter().all(|path| !path.ends_with("00000000000000000077.wal")));
}

#[test]
fn frames_of_another_segment_or_journal_are_invalid() {
    let (dir, segment) = sample(4);
    let all = dump_all(dir.path());
    let (_keep, other) = sample(8);
    let (mut bytes, other) = (fs::read(&segment).unwrap(), fs::read(&other).unwrap());
    let end = raw_frames(&bytes).last().unwrap().end;
    let donor_end = raw_frames(&other).last().unwrap().end;
    bytes[end..end + donor_end - end].copy_from_slice(&other[end..donor_end]);
    fs::write(&segment, bytes).unwrap();
    let (frames, recovered) = reopen(dir.path());
    assert_eq!(frames, all);
    assert_eq!((recovered.torn_bytes > 0, recovered.damage.len()), (true, 0));
}

#[test]
fn a_segment_without_a_header_is_read_if_another_identifies_the_journal() {
    let (dir, files) = long_sample();
    let all = dump_all(dir.path());
    for file in [&files[1], files.last().unwrap()] {
        let mut bytes = fs::read(file).unwrap();
        bytes[..SEGMENT_HEADER_BYTES].fill(0xee);
        fs::write(file, bytes).unwrap();
    }
    let (frames, recovered) = reopen(dir.path());
    assert_eq!(frames, all);
    assert_eq!(recovered.damage.len(), 2, "{:?}", recovered.damage);
}

#[test]
fn an_empty_or_truncated_last_segment_loses_only_its_own_frames() {
    let (dir, _) = long_sample();
    let all = dump_all(dir.path());
    let number = segments(dir.path()).len() as u64 + 1;
    let name = format!("{number:020}.wal");
    for bytes in [Vec::new(), vec![0; 96], vec![0; 65536], b"LOGWEIR\x01 and no more".to_vec()] {
        let cut = copy(dir.path());
        fs::write(cut.path().join(&name), &bytes).unwrap();
        let before = check(cut.path()).unwrap().seq_last;
        let (frames, recovered) = reopen(cut.path());
        assert_eq!(frames, all);
        assert!(open(cut.path()).1.seq_last >= before + (1 << 20));
        assert!(recovered.damage.iter().all(|damage| damage.seq_last < damage.seq_first));
    }
}

#[test]
fn a_journal_of_a_newer_format_is_rejected_and_not_modified() {
    let (dir, segment) = sample(3);
    let mut bytes = fs::read(&segment).unwrap();
    bytes[8..10].copy_from_slice(&9_u16.to_le_bytes());
    bytes[10..12].copy_from_slice(&7_u16.to_le_bytes());
    let crc = crc32c::crc32c(&bytes[..92]);
    bytes[92..96].copy_from_slice(&crc.to_le_bytes());
    fs::write(&segment, &bytes).unwrap();
    let before = (segments(dir.path()), disk_bytes(dir.path()));
    match Journal::open(config(dir.path())) {
        Err(OpenError::TooNew { needs, have, .. }) => assert_eq!((needs, have), (7, 4)),
        other => panic!("{:?}", other.map(|opened| opened.1)),
    }
    assert!(matches!(check(dir.path()), Err(OpenError::TooNew { .. })));
    assert_eq!((segments(dir.path()), disk_bytes(dir.path())), before);
    assert_eq!(fs::read(&segment).unwrap(), bytes);
    // A newer format that this version can still read is accepted.
    bytes[10..12].copy_from_slice(&1_u16.to_le_bytes());
    let crc = crc32c::crc32c(&bytes[..92]);
    bytes[92..96].copy_from_slice(&crc.to_le_bytes());
    fs::write(&segment, &bytes).unwrap();
    assert_eq!(reopen(dir.path()).0.len(), 3);
}

#[test]
fn exhausted_sequence_numbers_are_reported() {
    let (dir, segment) = sample(3);
    let mut bytes = fs::read(&segment).unwrap();
    let limit = i64::MAX as u64 - (1 << 32);
    for (run_seq, opens) in [(limit - (1 << 21), true), (limit - (1 << 21) + 1, false)] {
        bytes[72..80].copy_from_slice(&run_seq.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..92]);
        bytes[92..96].copy_from_slice(&crc.to_le_bytes());
        let dir = copy(dir.path());
        fs::write(dir.path().join(segment.file_name().unwrap()), &bytes).unwrap();
        match Journal::open(config(dir.path())) {
            Ok((journal, _)) => {
                assert!(opens);
                assert!(append(&journal, 0, 1, b"x").is_err(), "the START takes the last one");
                assert!(journal.stats().seq_last <= limit);
            }
            Err(error) => assert!(!opens && error.to_string().contains("sequence number"), "{error}"),
        }
    }
}

#[test]
fn a_spare_with_the_writes_of_a_killed_start_is_not_used() {
    let (dir, segment) = sample(4);
    let all = dump_all(dir.path());
    // What a start that is killed before the rename leaves: header, copied frames, START.
    let (journal, _) = open(dir.path());
    drop(journal);
    let newer = segments(dir.path()).pop().unwrap();
    assert_ne!(newer, segment);
    let killed = copy(dir.path());
    fs::remove_file(killed.path().join(newer.file_name().unwrap())).unwrap();
    let mut spare = fs::read(&newer).unwrap();
    // More than the next start overwrites.
    spare[1000..2000].fill(0x5a);
    fs::write(killed.path().join("spare.tmp"), spare).unwrap();
    let (frames, recovered) = reopen(killed.path());
    // Its old segment had already been truncated: only the last, copied frame is missing here.
    assert_eq!(frames, all[..frames.len()]);
    assert_eq!(recovered.damage, []);
}

#[test]
fn check_reads_every_byte_and_modifies_nothing() {
    let (dir, files) = long_sample();
    let before = disk_bytes(dir.path());
    let raw = raw_frames(&fs::read(&files[1]).unwrap())[2];
    flip(&files[1], (raw.offset + FRAME_HEADER_BYTES) * 8);
    let Report { damage, lanes, segments, torn_bytes, locked, clean, .. } = check(dir.path()).unwrap();
    assert_eq!((damage.len(), damage[0].seq_first, damage[0].seq_last), (1, raw.seq, raw.seq));
    assert_eq!((lanes.len(), segments.len(), torn_bytes, locked, clean), (2, files.len(), 0, false, false));
    assert_eq!(segments.iter().map(|segment| segment.frames).sum::<u64>(), 19);
    assert_eq!(disk_bytes(dir.path()), before);
    let seqs: Vec<u64> = dump_up_to(usize::MAX, dir.path(), Some(1), 0).iter().map(|frame| frame.seq).collect();
    assert!(seqs.len() >= 9 && seqs.is_sorted());
    assert_eq!(dump_up_to(usize::MAX, dir.path(), Some(1), seqs[5]).len(), seqs.len() - 5);
    assert_eq!(dump_up_to(2, dir.path(), None, 0).len(), 2, "it continued in another segment");
    let (journal, _) = open(dir.path());
    assert!(check(dir.path()).unwrap().locked);
    drop(journal);
}

#[test]
fn repair_quarantines_what_open_would_and_is_idempotent() {
    let (dir, segment) = sample(6);
    let raw = raw_frames(&fs::read(&segment).unwrap());
    flip(&segment, (raw[2].offset + FRAME_HEADER_BYTES) * 8);
    // Two bits: one alone is repaired.
    flip(&segment, raw.last().unwrap().offset * 8);
    flip(&segment, raw.last().unwrap().offset * 8 + 9);
    let bytes = fs::read(&segment).unwrap();
    let first = repair(dir.path()).unwrap();
    let names = quarantine(dir.path());
    assert_eq!((first.damage.len(), first.torn_bytes > 0, names.len()), (1, true, 2));
    repair(dir.path()).unwrap();
    assert_eq!(quarantine(dir.path()), names);
    assert_eq!(fs::read(&segment).unwrap(), bytes);
    let (journal, _) = open(dir.path());
    assert!(matches!(repair(dir.path()), Err(OpenError::Locked { .. })));
    assert_eq!(quarantine(dir.path()), names, "open has nothing to add");
    drop(journal);
}

#[test]
fn the_error_names_a_directory_that_cannot_be_created() {
    let file = scratch();
    let path = file.path().join("a file");
    fs::write(&path, b"").unwrap();
    let error = Journal::open(config(&path.join("journal"))).err().unwrap().to_string();
    assert!(error.contains("a file"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_open(files in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..600), 1..4)) {
        let dir = scratch();
        for (number, bytes) in files.iter().enumerate() {
            fs::write(dir.path().join(format!("{number:020}.wal")), bytes).unwrap();
        }
        fs::write(dir.path().join("spare.tmp"), &files[0]).unwrap();
        let _ = journal::check(dir.path()).unwrap();
        prop_assert_eq!(reopen(dir.path()).0, []);
    }

    #[test]
    fn any_damage_yields_no_wrong_frame(
        cuts in proptest::collection::vec((0.0..1.0, 0_usize..300, any::<u8>()), 1..5),
        end in 0.5..1.0,
    ) {
        let (dir, segment) = sample(12);
        let all = dump_all(dir.path());
        let mut bytes = fs::read(&segment).unwrap();
        let used = raw_frames(&bytes).last().unwrap().end;
        for (at, len, fill) in cuts {
            let at = (at * used as f64) as usize;
            bytes[at..used.min(at + len)].fill(fill);
        }
        bytes.truncate((end * bytes.len() as f64) as usize);
        fs::write(&segment, bytes).unwrap();
        let found = check(dir.path()).unwrap();
        let frames = reopen(dir.path()).0;
        prop_assert!(frames.iter().all(|frame| all.contains(frame)));
        prop_assert!(frames.is_sorted_by_key(|frame| frame.seq));
        let noticed = !found.damage.is_empty() || found.torn_bytes > 0;
        // A tail of zeros cannot be distinguished from unused space.
        prop_assert!(noticed || frames == all[..frames.len()]);
    }
}
