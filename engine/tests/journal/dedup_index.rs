//! A frame is appended once, across retries, rotations and restarts.

use std::collections::HashSet;
use std::time::Instant;

use logweir_engine::journal::{AppendError, Appended, DedupKey, DedupKind, Journal, NewFrame, OnDurable};

use crate::kit::{Answer, PATIENCE, SEGMENT_BYTES, append, block_on, config, open, payloads, read, scratch};

/// A request if `position` is 0.
fn dedup_key(key: u8, position: u64) -> DedupKey {
    let kind = match position {
        0 => DedupKind::Request { body: Some(u64::from(key)) },
        position => DedupKind::Source { position },
    };
    DedupKey { key: [key; 16], kind }
}

fn begin(journal: &Journal, dedup_key: DedupKey, payload: &[u8]) -> Result<(Appended, Answer), AppendError> {
    let credit = block_on(journal.reserve(payload.len() + DedupKey::BYTES))?;
    let (on_durable, outcome) = OnDurable::send();
    let frame = NewFrame { lane: 3, codec: 1, records: 1, dedup_key: Some(dedup_key), payload: payload.to_vec() };
    journal.append_frame(credit, frame, on_durable).map(|appended| (appended, Answer(outcome)))
}

fn take(journal: &Journal, dedup_key: DedupKey, payload: &[u8]) -> Result<Appended, AppendError> {
    let (appended, answer) = begin(journal, dedup_key, payload)?;
    answer.recv()?;
    Ok(appended)
}

#[test]
fn a_duplicate_is_rejected_and_the_first_frame_is_found() {
    let dir = scratch();
    let (journal, _) = open(dir.path());
    let first = take(&journal, dedup_key(1, 0), b"one").unwrap();
    assert_eq!(take(&journal, dedup_key(1, 0), b"one").unwrap_err(), AppendError::Duplicate);
    let (known, durable) = journal.find_duplicate(&dedup_key(1, 0)).unwrap();
    assert_eq!((known.seq, known.lane, durable), (first.seq, 3, true));
    assert_eq!(journal.find_duplicate(&dedup_key(2, 10)), None);
    take(&journal, dedup_key(2, 10), b"two").unwrap();
    take(&journal, dedup_key(2, 20), b"three").unwrap();
    assert_eq!(take(&journal, dedup_key(2, 20), b"three").unwrap_err(), AppendError::Duplicate);
    assert_eq!(take(&journal, dedup_key(2, 5), b"two").unwrap_err(), AppendError::Duplicate);
    assert_eq!(payloads(&read(&journal, 3)), [&b"one"[..], b"two", b"three"], "without their keys");
}

#[test]
fn keys_survive_a_restart_with_and_without_a_seal() {
    let dir = scratch();
    for run in 0..6_u8 {
        let (journal, recovered) = open(dir.path());
        assert_eq!(recovered.damage, []);
        for known in 0..run {
            assert_eq!(take(&journal, dedup_key(known, 0), b"again").unwrap_err(), AppendError::Duplicate, "run {run}");
            assert_eq!(take(&journal, dedup_key(100, u64::from(known) + 1), b"x").unwrap_err(), AppendError::Duplicate);
        }
        take(&journal, dedup_key(run, 0), b"new").unwrap();
        take(&journal, dedup_key(100, u64::from(run) + 1), b"x").unwrap();
        if run % 2 == 0 {
            journal.seal().unwrap();
        }
    }
    assert_eq!(read(&open(dir.path()).0, 3).len(), 12);
}

#[test]
fn positions_outlive_their_segments_and_requests_the_run() {
    let dir = scratch();
    let bulk = vec![7; 20_000];
    {
        let (journal, _) = open(dir.path());
        take(&journal, dedup_key(1, 0), b"request").unwrap();
        take(&journal, dedup_key(2, 77), b"file").unwrap();
        for _ in 0..30 {
            append(&journal, 0, 1, &bulk).unwrap();
            let last = append(&journal, 3, 1, b"y").unwrap().seq;
            journal.commit(0, last);
            journal.commit(3, last);
        }
        let first = dir.path().join(format!("{:020}.wal", 1));
        let deadline = Instant::now() + PATIENCE;
        while first.exists() {
            assert!(Instant::now() < deadline, "the first segment is not removed");
            std::thread::yield_now();
        }
        assert_eq!(take(&journal, dedup_key(1, 0), b"request").unwrap_err(), AppendError::Duplicate);
    }
    let (journal, _) = open(dir.path());
    assert_eq!(journal.find_duplicate(&dedup_key(1, 0)), None, "the destination knows it");
    assert_eq!(take(&journal, dedup_key(2, 77), b"file").unwrap_err(), AppendError::Duplicate);
    take(&journal, dedup_key(2, 78), b"file").unwrap();
}

#[test]
fn a_source_that_is_no_longer_known_is_forgotten_with_its_segment() {
    let dir = scratch();
    let bulk = vec![7; 20_000];
    {
        let (journal, _) = open(dir.path());
        take(&journal, dedup_key(1, 77), b"kept").unwrap();
        take(&journal, dedup_key(2, 77), b"gone").unwrap();
        journal.retain_sources(&HashSet::from([dedup_key(1, 77).key]));
        assert_eq!(journal.find_duplicate(&dedup_key(2, 77)), None);
        // The next segments do not repeat it.
        (0..10).for_each(|_| _ = append(&journal, 0, 1, &bulk).unwrap());
    }
    let (journal, _) = open(dir.path());
    assert_eq!(take(&journal, dedup_key(1, 77), b"kept").unwrap_err(), AppendError::Duplicate);
    take(&journal, dedup_key(2, 77), b"gone").unwrap();
}

#[test]
fn the_limit_of_remembered_keys_leaves_space_in_a_segment() {
    let dir = scratch();
    let most = usize::try_from(SEGMENT_BYTES).unwrap() - 12_000;
    for _ in 0..2 {
        let (journal, _) = open(dir.path());
        for n in 0..2_000_u64 {
            let mut one = dedup_key(0, n % 3);
            one.key[..8].copy_from_slice(&(n * 7 + journal.stats().seq_last).to_le_bytes());
            begin(&journal, one, b"z").unwrap();
        }
        append(&journal, 0, 1, &vec![1; most]).unwrap();
        let seq = journal.stats().seq_last;
        journal.commit(0, seq);
        journal.commit(3, seq);
    }
    let mut small = config(dir.path());
    small.segment_bytes = SEGMENT_BYTES;
    assert!(Journal::open(small).unwrap().1.damage.is_empty());
}
