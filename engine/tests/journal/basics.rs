//! Append, read, commit, seal: normal operation.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use logweir_engine::journal::{
    AppendError, Journal, JournalConfig, LaneTail, OnDurable, OpenError, SEGMENT_BYTES_MAX, SEGMENT_BYTES_MIN,
};

use crate::kit::*;

#[test]
fn acknowledged_frames_are_read_back_by_the_next_run() {
    let dir = scratch();
    let (journal, first) = open(dir.path());
    assert_eq!((first.runs.len(), first.seq_last, first.created, first.clean), (0, 0, true, false));
    let appended: Vec<_> = (0..5).map(|n| append(&journal, (n % 2) as u16, 10, &payload(n, 50)).unwrap()).collect();
    assert_eq!(read(&journal, 0).len(), 3);
    assert_eq!(journal.lane_durable(0), LaneTail { seq: appended[4].seq, records: 30 });
    journal.seal().unwrap();

    let (journal, second) = open(dir.path());
    assert_eq!(second.writer, first.writer);
    assert_eq!(second.runs, [first.run]);
    assert!(second.clean && !second.created);
    assert_eq!(second.lanes, journal.lanes());
    assert_eq!(second.lanes[&0], LaneTail { seq: appended[4].seq, records: 30 });
    assert_eq!((second.torn_bytes, second.damage.len()), (0, 0));
    let frames = read(&journal, 0);
    assert_eq!(payloads(&frames), [payload(0, 50), payload(2, 50), payload(4, 50)]);
    assert_eq!(frames[2].lane_prev_seq, frames[1].seq);
    assert_eq!(frames[2].payload_crc, appended[4].payload_crc);
    let next = append(&journal, 0, 1, b"x").unwrap();
    assert!(next.seq > second.seq_last + 1_000_000, "a new run jumps ahead");
    assert_eq!((next.lane_prev_seq, next.lane_records), (appended[4].seq, 31));
}

#[test]
fn a_reader_follows_the_live_edge_across_segments() {
    let dir = scratch();
    let (journal, _) = open(dir.path());
    let mut reader = journal.reader(1, 0);
    assert!(reader.next_frames(10, 1000).unwrap().is_empty());
    for n in 0..60 {
        append(&journal, 0, 1, &payload(n, 5000)).unwrap();
        let mine = append(&journal, 1, 1, &payload(n, 3000)).unwrap();
        let frames = reader.next_frames(10, 1 << 20).unwrap();
        assert_eq!(frames.len(), 1);
        assert_eq!((frames[0].seq, &frames[0].payload), (mine.seq, &payload(n, 3000)));
    }
    assert!(journal.stats().segments > 5);
    let after = read(&journal, 1)[30].seq;
    assert_eq!(journal.reader(1, after).next_frames(1, 1).unwrap()[0].payload, payload(31, 3000));
}

#[test]
fn a_group_is_acknowledged_in_the_order_of_sequence_numbers() {
    let dir = scratch();
    let (journal, _) = open(dir.path());
    let order = Arc::new(Mutex::new(Vec::new()));
    let threads: Vec<_> = (0..4_u16)
        .map(|lane| {
            let (journal, order) = (journal.clone(), order.clone());
            std::thread::spawn(move || {
                for n in 0..200 {
                    let credit = block_on(journal.reserve(100)).unwrap();
                    let (order, seq) = (order.clone(), Arc::new(Mutex::new(0)));
                    let mine = seq.clone();
                    // Locked until the number is known: the writer may be faster than this thread.
                    let mut seq = seq.lock().unwrap();
                    let note = when_settled(move |result| {
                        result.unwrap();
                        order.lock().unwrap().push(*mine.lock().unwrap());
                    });
                    *seq = journal.append(credit, lane, 1, 1, payload(n, 100), note).unwrap().seq;
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    let last = journal.stats().seq_last;
    block_on(journal.durable(last)).unwrap();
    journal.seal().unwrap();
    let order = order.lock().unwrap();
    assert_eq!(order.len(), 800);
    assert!(order.is_sorted());
    for lane in 0..4 {
        assert_eq!(payloads(&read(&journal, lane)), (0..200).map(|n| payload(n, 100)).collect::<Vec<_>>());
    }
}

#[test]
fn reserve_waits_while_the_queue_is_full() {
    let dir = scratch();
    let (journal, _) = Journal::open(JournalConfig { queue_bytes_max: 1000, ..config(dir.path()) }).unwrap();
    block_on(async {
        let first = journal.reserve(600).await.unwrap();
        let waiting = journal.reserve(600);
        tokio::pin!(waiting);
        assert!(tokio::time::timeout(Duration::from_millis(20), &mut waiting).await.is_err());
        let small = journal.reserve(400);
        drop(first);
        waiting.await.unwrap();
        small.await.unwrap();
        // A payload larger than the whole queue is queued alone.
        let alone = journal.reserve(5000).await.unwrap();
        assert!(tokio::time::timeout(Duration::from_millis(20), journal.reserve(1)).await.is_err());
        assert_eq!(
            journal.append(alone, 0, 1, 1, vec![0; 5001], OnDurable::send().0),
            Err(AppendError::TooLarge { bytes: 5001 })
        );
        journal.reserve(1).await.unwrap();
    });
}

#[test]
fn a_payload_that_fits_into_no_segment_is_rejected_by_reserve() {
    let dir = scratch();
    let (journal, _) = open(dir.path());
    assert_eq!(block_on(journal.reserve(70_000)).unwrap_err(), AppendError::TooLarge { bytes: 70_000 });
    assert_eq!(journal.check_writable(), Ok(()));
    append(&journal, 0, 1, &payload(1, 60_000)).unwrap();
    append(&journal, 0, 1, &payload(2, 60_000)).unwrap();
    assert_eq!(read(&journal, 0).len(), 2);
}

#[test]
fn committed_segments_are_removed_except_the_retained_ones() {
    let dir = scratch();
    let quota_bytes = 16 * SEGMENT_BYTES;
    let (journal, _) = Journal::open(JournalConfig { retain_segments: 2, quota_bytes, ..config(dir.path()) }).unwrap();
    let mut last = [0, 0];
    for n in 0..40 {
        last[n % 2] = append(&journal, (n % 2) as u16, 1, &payload(n, 15_000)).unwrap().seq;
    }
    let before = journal.stats().segments;
    journal.commit(0, last[0]);
    assert_eq!(journal.stats().segments, before, "lane 1 was never committed");
    journal.commit(1, last[1]);
    // Two are retained, and the files of two more, an eighth of the quota, are kept for reuse.
    eventually("all but four committed segments and the active one are removed", || {
        segments(dir.path()).len() == 5 && journal.stats().segments == 5
    });
    let left = read(&journal, 0);
    assert!(!left.is_empty() && left.len() < 20);
    drop(journal);
    let (journal, recovered) = open(dir.path());
    assert_eq!(recovered.damage, []);
    assert_eq!(journal.lanes()[&1], LaneTail { seq: last[1], records: 20 });
}

#[test]
fn a_lane_whose_segments_were_removed_keeps_its_tail() {
    let dir = scratch();
    let (journal, first) = open(dir.path());
    let old = append(&journal, 7, 5, b"only one").unwrap();
    let first_segment = segments(dir.path())[0].clone();
    journal.commit(7, old.seq);
    for n in 0..12 {
        let seq = append(&journal, 0, 1, &payload(n, 30_000)).unwrap().seq;
        journal.commit(0, seq);
    }
    eventually("the first segment is removed", || !first_segment.exists());
    drop(journal);
    let (_journal, recovered) = open(dir.path());
    assert_eq!(recovered.lanes[&7], LaneTail { seq: old.seq, records: 5 });
    assert_eq!(recovered.runs, [first.run]);
}

#[test]
fn the_quota_rejects_appends_until_a_commit() {
    let dir = scratch();
    let quota = JournalConfig { quota_bytes: 5 * SEGMENT_BYTES, retain_segments: 1, ..config(dir.path()) };
    let (journal, _) = Journal::open(quota.clone()).unwrap();
    let mut accepted = Vec::new();
    let rejected = loop {
        match append(&journal, 0, 1, &payload(accepted.len(), 20_000)) {
            Ok(appended) => accepted.push(appended.seq),
            Err(rejected) => break rejected,
        }
        assert!(accepted.len() < 100, "never rejected");
    };
    assert_eq!(rejected, AppendError::Quota);
    assert_eq!(journal.check_writable(), Err(AppendError::Quota));
    assert_eq!(block_on(journal.reserve(1)).unwrap_err(), AppendError::Quota);
    assert!(disk_bytes(dir.path()) <= 5 * SEGMENT_BYTES);
    assert!(journal.stats().reject_reason.is_some());

    // Opening a journal at its quota needs only the reserved space.
    drop(journal);
    let (journal, recovered) = Journal::open(quota).unwrap();
    assert_eq!(recovered.damage, []);
    assert!(disk_bytes(dir.path()) <= 5 * SEGMENT_BYTES, "{}", disk_bytes(dir.path()));
    assert_eq!(read(&journal, 0).len(), accepted.len());
    journal.commit(0, *accepted.last().unwrap());
    eventually("appends are accepted again", || append(&journal, 0, 1, &payload(0, 20_000)).is_ok());
    for n in 0..50 {
        let seq = loop {
            match append(&journal, 0, 1, &payload(n, 20_000)) {
                Ok(appended) => break appended.seq,
                Err(AppendError::Quota) => std::thread::yield_now(),
                Err(other) => panic!("{other}"),
            }
        };
        journal.commit(0, seq);
    }
    assert_eq!(block_on(journal.durable(journal.stats().seq_last)), Ok(()));
}

#[test]
fn restarts_at_the_quota_take_no_more_space() {
    let dir = scratch();
    let quota = JournalConfig { quota_bytes: 3 * SEGMENT_BYTES, ..config(dir.path()) };
    let mut seq_last = 0;
    for start in 0..40 {
        let (journal, recovered) = Journal::open(quota.clone()).unwrap();
        assert_eq!(recovered.damage, []);
        let rejected = loop {
            match append(&journal, 0, 1, &payload(start, 20_000)) {
                Ok(appended) => seq_last = appended.seq,
                Err(rejected) => break rejected,
            }
        };
        assert_eq!(rejected, AppendError::Quota);
        let bytes = disk_bytes(dir.path());
        assert!(bytes <= quota.quota_bytes + SEGMENT_BYTES, "{bytes} bytes at start {start}");
        // Killed: no seal.
        drop(journal);
    }
    let (journal, _) = Journal::open(quota).unwrap();
    assert_eq!(journal.check_writable(), Err(AppendError::Quota), "also before the first append");
    journal.commit(0, seq_last);
    eventually("appends are accepted again", || append(&journal, 0, 1, &payload(0, 20_000)).is_ok());
}

#[test]
fn sizes_out_of_range_are_rejected_and_the_directory_is_not_touched() {
    let dir = scratch();
    let valid = config(&dir.path().join("journal"));
    let ballast_bytes = 1 << 20;
    let quota_bytes = ballast_bytes + 3 * SEGMENT_BYTES;
    for (config, message) in [
        (
            JournalConfig { segment_bytes: SEGMENT_BYTES_MIN - 1, ..valid.clone() },
            "invalid journal segment_bytes 65535: expected 65536 to 67108864 bytes",
        ),
        (
            JournalConfig { segment_bytes: SEGMENT_BYTES_MAX + 1, ..valid.clone() },
            "invalid journal segment_bytes 67108865: expected 65536 to 67108864 bytes",
        ),
        (
            JournalConfig { ballast_bytes, quota_bytes: quota_bytes - 1, ..valid.clone() },
            "invalid journal quota_bytes 1245183: expected at least 1245184 bytes, three segments and the ballast",
        ),
        (
            JournalConfig { queue_bytes_max: 0, ..valid.clone() },
            "invalid journal queue_bytes_max 0: expected 1 to 2305843009213693951 bytes",
        ),
    ] {
        let error = Journal::open(config).err().expect("the configuration is invalid");
        assert!(matches!(error, OpenError::InvalidConfig { .. }));
        assert_eq!(error.to_string(), message);
    }
    assert!(!valid.dir.exists());
    Journal::open(JournalConfig { ballast_bytes, quota_bytes, ..valid }).unwrap().0.seal().unwrap();
}

#[test]
fn a_second_process_cannot_open_the_journal_until_the_first_has_sealed_it() {
    let dir = scratch();
    let (journal, _) = open(dir.path());
    assert!(matches!(Journal::open(config(dir.path())), Err(OpenError::Locked { .. })));
    let clone = journal.clone();
    journal.seal().unwrap();
    assert_eq!(journal.seal(), Ok(()), "a second seal returns the same result");
    let (_next, recovered) = open(dir.path());
    assert!(recovered.clean);
    assert_eq!(clone.check_writable(), Err(AppendError::Sealed));
    assert_eq!(append(&clone, 0, 1, b"x").unwrap_err(), AppendError::Sealed);
    assert!(block_on(clone.durable(u64::MAX)).is_err());
}

#[test]
fn a_seal_writes_the_queued_frames_first() {
    let dir = scratch();
    let (journal, _) = open(dir.path());
    let answers: Vec<_> = (0..100).map(|n| begin(&journal, 0, 1, &payload(n, 1000)).unwrap().1).collect();
    journal.seal().unwrap();
    for answer in answers {
        assert!(answer.recv().is_ok());
    }
    let (journal, recovered) = open(dir.path());
    assert!(recovered.clean);
    assert_eq!(read(&journal, 0).len(), 100);
}

#[test]
fn the_last_clone_may_be_dropped_by_what_the_writer_wakes() {
    let dir = scratch();
    let (journal, _) = open(dir.path());
    let (sender, receiver) = std::sync::mpsc::channel();
    let last = journal.clone();
    let credit = block_on(journal.reserve(10)).unwrap();
    let act = when_settled(move |_| {
        // Wait until this clone is the last.
        std::thread::sleep(Duration::from_millis(50));
        drop(last);
        sender.send(()).unwrap();
    });
    journal.append(credit, 0, 1, 1, vec![1; 10], act).unwrap();
    drop(journal);
    receiver.recv_timeout(PATIENCE).unwrap();
    eventually("the lock is released", || Journal::open(config(dir.path())).is_ok());
}

#[test]
fn a_restart_without_data_does_not_grow_the_disk_usage() {
    let dir = scratch();
    let mut sizes = Vec::new();
    for _ in 0..20 {
        let (journal, recovered) = open(dir.path());
        assert_eq!(recovered.damage, []);
        journal.seal().unwrap();
        sizes.push((segments(dir.path()).len(), recovered.runs.len()));
    }
    assert_eq!(sizes[19], (1, 19));
}

#[test]
fn a_reader_of_all_lanes_returns_frames_in_sequence_order() {
    let dir = scratch();
    let (journal, _) = open(dir.path());
    let mut reader = journal.reader_all_lanes(0);
    let mut appended = Vec::new();
    for n in 0..60 {
        appended.push(append(&journal, (n % 3) as u16, 2, &payload(n, 5000)).unwrap().seq);
    }
    assert!(journal.stats().segments > 3);
    let mut seqs = Vec::new();
    loop {
        let frames = reader.next_frames(7, 1 << 20).unwrap();
        if frames.is_empty() {
            break;
        }
        seqs.extend(frames.iter().map(|frame| frame.seq));
    }
    assert_eq!(seqs, appended);
    let (seq, lanes) = journal.durable_position();
    assert_eq!((seq, lanes[&2]), (appended[59], LaneTail { seq: appended[59], records: 40 }));
    block_on(journal.durable_beyond(appended[58])).unwrap();
    let waits = block_on(async { tokio::time::timeout(Duration::from_millis(1), journal.durable_beyond(seq)).await });
    assert!(waits.is_err(), "there is no frame above the last one");
    journal.seal().unwrap();
    assert_eq!(block_on(journal.durable_beyond(seq)), Err(AppendError::Sealed));
}
