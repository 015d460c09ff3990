//! Random operations on a journal, compared with a model that is a list per lane.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use logweir_engine::journal::{Frame, Journal, JournalConfig, LaneTail};
use proptest::prelude::*;

use crate::kit::*;

const LANES: u16 = 3;

#[derive(Clone, Debug)]
enum Step {
    /// Appended and acknowledged.
    Append {
        lane: u16,
        bytes: usize,
        records: u32,
    },
    /// Commits a part of a lane's frames.
    Commit {
        lane: u16,
        part: f64,
    },
    Seal,
    /// Frames without an acknowledgment, then a power cut: from some offset in them on the file holds its previous
    /// content, zeros, or garbage.
    Crash {
        frames: Vec<(u16, usize)>,
        part: f64,
        fill: u8,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let lane = 0..LANES;
    prop_oneof![
        8 => (lane.clone(), 0_usize..20_000, 0_u32..9)
            .prop_map(|(lane, bytes, records)| Step::Append { lane, bytes, records }),
        2 => (lane.clone(), 0.0..=1.0).prop_map(|(lane, part)| Step::Commit { lane, part }),
        1 => Just(Step::Seal),
        2 => (proptest::collection::vec((lane, 0_usize..9000), 0..4), 0.0..=1.0, prop_oneof![Just(0_u8), any::<u8>()])
            .prop_map(|(frames, part, fill)| Step::Crash { frames, part, fill }),
    ]
}

#[derive(Default)]
struct Lane {
    /// Sequence number, payload and records of each acknowledged frame.
    frames: Vec<(u64, Vec<u8>, u32)>,
    records_before: u64,
    committed: u64,
}

impl Lane {
    fn tail(&self) -> LaneTail {
        let records: u32 = self.frames.iter().map(|frame| frame.2).sum();
        LaneTail {
            seq: self.frames.last().map_or(0, |frame| frame.0),
            records: self.records_before + u64::from(records),
        }
    }
}

/// Reads a lane. The housekeeper may remove committed segments meanwhile, which leaves a gap; then reads again.
fn committed_view(journal: &Journal, number: u16, lane: &Lane) -> Vec<Frame> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let frames = read(journal, number);
        let latest = lane.frames.iter().rev().zip(frames.iter().rev());
        let is_suffix =
            frames.len() <= lane.frames.len() && latest.into_iter().all(|(model, frame)| model.0 == frame.seq);
        if is_suffix || Instant::now() > deadline {
            return frames;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The journal has each uncommitted frame, and of the committed ones a suffix or none.
fn compare(journal: &Journal, model: &BTreeMap<u16, Lane>) -> Result<(), TestCaseError> {
    for (number, lane) in model {
        let frames = committed_view(journal, *number, lane);
        let removed = lane.frames.len().checked_sub(frames.len());
        prop_assert!(removed.is_some(), "unknown frames");
        let (removed, survived) = lane.frames.split_at(removed.unwrap());
        prop_assert!(removed.iter().all(|frame| frame.0 <= lane.committed), "an uncommitted frame is missing");
        for (frame, (seq, payload, records)) in frames.iter().zip(survived) {
            prop_assert_eq!((frame.seq, &frame.payload, frame.records), (*seq, payload, *records));
        }
        prop_assert_eq!(journal.lanes().get(number).copied().unwrap_or_default(), lane.tail());
        prop_assert_eq!(journal.lane_durable(*number), lane.tail());
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_journal_behaves_like_a_list_per_lane(steps in proptest::collection::vec(step(), 1..60)) {
        let dir = scratch();
        let config = JournalConfig { retain_segments: 1, ..config(dir.path()) };
        let mut model: BTreeMap<u16, Lane> = (0..LANES).map(|lane| (lane, Lane::default())).collect();
        let (mut journal, _) = Journal::open(config.clone()).unwrap();
        let mut seq_last = 0;
        for (number, step) in steps.into_iter().enumerate() {
            match step {
                Step::Append { lane, bytes, records } => {
                    let payload = payload(number, bytes);
                    let before = model[&lane].tail();
                    let appended = append(&journal, lane, records, &payload).unwrap();
                    prop_assert!(appended.seq > seq_last);
                    prop_assert_eq!(appended.lane_prev_seq, before.seq);
                    prop_assert_eq!(appended.lane_records, before.records + u64::from(records));
                    seq_last = appended.seq;
                    model.get_mut(&lane).unwrap().frames.push((appended.seq, payload, records));
                }
                Step::Commit { lane, part } => {
                    let lane_model = model.get_mut(&lane).unwrap();
                    let index = (part * lane_model.frames.len() as f64) as usize;
                    if let Some(frame) = lane_model.frames[..index].last() {
                        lane_model.committed = lane_model.committed.max(frame.0);
                        journal.commit(lane, frame.0);
                    }
                }
                Step::Seal => {
                    journal.seal().unwrap();
                    drop(journal);
                    let (next, recovered) = Journal::open(config.clone()).unwrap();
                    prop_assert!(recovered.clean);
                    prop_assert_eq!((recovered.torn_bytes, recovered.damage), (0, vec![]));
                    journal = next;
                }
                Step::Crash { frames, part, fill } => {
                    let segment = segments(dir.path()).pop().unwrap();
                    let acknowledged_end = raw_frames(&fs::read(&segment).unwrap()).last().unwrap().end;
                    let mut unacknowledged = Vec::new();
                    for (index, (lane, bytes)) in frames.into_iter().enumerate() {
                        let payload = payload(1000 * number + index, bytes);
                        let (appended, _) = begin(&journal, lane, 1, &payload).unwrap();
                        unacknowledged.push((lane, appended.seq, payload));
                    }
                    drop(journal);
                    // Only in the segment that was active: a rotation fsyncs the previous ones.
                    if segments(dir.path()).pop().unwrap() == segment {
                        let mut bytes = fs::read(&segment).unwrap();
                        let end = raw_frames(&bytes).last().unwrap().end;
                        let from = acknowledged_end + (part * (end - acknowledged_end) as f64) as usize;
                        let until = bytes.len().min(end + 100);
                        bytes[from..until].fill(fill);
                        fs::write(&segment, bytes).unwrap();
                    }
                    let (next, recovered) = Journal::open(config.clone()).unwrap();
                    prop_assert_eq!(recovered.damage, vec![]);
                    prop_assert!(!recovered.clean);
                    journal = next;
                    // Any prefix of them may have survived, permanently.
                    let mut lost = false;
                    for (lane, seq, payload) in unacknowledged {
                        let survived = read(&journal, lane).iter().any(|frame| frame.seq == seq);
                        prop_assert!(!(survived && lost), "a gap between frames that were not acknowledged");
                        lost |= !survived;
                        if survived {
                            model.get_mut(&lane).unwrap().frames.push((seq, payload, 1));
                        }
                        seq_last = seq_last.max(seq);
                    }
                    prop_assert!(journal.stats().seq_last > seq_last);
                }
            }
            compare(&journal, &model)?;
        }
    }
}
