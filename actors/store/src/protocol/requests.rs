//! Requests that their senders may repeat, to any process that shares the database. Pure.
//!
//! Exactly once is decided here, in the transaction that stores a frame: table `logweir_idempotency_key` has, for each
//! key, how many records of its request are stored, and which frame stored the last of them. A frame with the same key
//! and body is a repetition: what is stored of the request is accounted for, but not stored again. Only the database can
//! decide that. A sender whose request was not answered tries another process, and what one process remembers the other
//! does not know; the database can be away when both accept the request.
//!
//! - A number of records, not only the first frame: a batch can end inside of a frame, and its rest can stay away for
//!   ever (the disk is lost, or the lane goes on under another `lane_id` or writer). The next frame with it stores what is
//!   missing, so that each of the frames that have the request can be the only one that is left.
//! - A frame that stored the last records is never its own repetition: what its batch has is not stored, whatever the row
//!   says. So a database of which some tables were restored to an earlier time stores them again instead of losing them.
//! - A frame with the same key and another body is another request. It was acknowledged by a process that did not know
//!   the first one (which would have answered 422), so it is stored. The body is therefore a part of the [`RequestKey`].
//! - A request of which a part is stored, and that has another number of records when it is repeated (the parsers of two
//!   processes are configured differently), is stored again: twice is better than not at all.

use std::collections::{BTreeMap, BTreeSet};

use logweir_engine::journal::DedupKind;

use crate::batch::{Batch, BatchFrame};

/// A request's dedup key and the digest of its body; 0 if an earlier version wrote the frame, without the digest.
pub(crate) type RequestKey = [u8; 24];

/// A frame of a batch that has a request's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) key: RequestKey,
    /// Sequence number of the frame.
    pub(crate) seq: u64,
    /// Number of records of the frame.
    pub(crate) records: u64,
    /// Those of them that are in the batch: from `begin`, counted from 0, to before `end`.
    pub(crate) begin: u64,
    pub(crate) end: u64,
}

/// What the database knows about a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct KeyRow {
    pub(crate) key: RequestKey,
    /// The frame that stored the last records.
    pub(crate) lane_id: i64,
    pub(crate) seq: u64,
    /// Number of records of the request.
    pub(crate) records: u64,
    /// How many of them are stored, from the first on.
    pub(crate) stored: u64,
}

/// What is decided about a batch.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Decision {
    /// For each frame that repeats a request, by sequence number: how many of its records are stored already.
    pub(crate) repeated: BTreeMap<u64, u64>,
    /// The rows that change, in the order of their keys.
    pub(crate) changed: Vec<KeyRow>,
}

/// The requests of a batch, in the order of their frames.
pub(crate) fn requests(batch: &Batch) -> Vec<Request> {
    let last = batch.frames().len().saturating_sub(1);
    let request = |(index, frame): (usize, &BatchFrame)| {
        let dedup_key = frame.dedup_key.as_ref()?;
        let DedupKind::Request { body } = dedup_key.kind else { return None };
        let mut key = [0; 24];
        key[..16].copy_from_slice(&dedup_key.key);
        key[16..].copy_from_slice(&body.unwrap_or(0).to_be_bytes());
        let records = frame.chunk.len() as u64;
        let begin = if index == 0 { batch.skip() as u64 } else { 0 };
        let end = records.saturating_sub(if index == last { batch.leave() as u64 } else { 0 });
        Some(Request { key, seq: frame.seq, records, begin, end })
    };
    batch.frames().iter().enumerate().filter_map(request).collect()
}

impl Request {
    /// The key's row after this frame.
    fn row(&self, lane_id: i64) -> KeyRow {
        let &Self { key, seq, records, end, .. } = self;
        KeyRow { key, lane_id, seq, records, stored: end }
    }

    /// How many records of this frame are stored, according to `row`, which another frame wrote.
    fn stored(&self, row: &KeyRow) -> u64 {
        match row.stored >= row.records {
            true => self.records,
            false if row.records == self.records => row.stored,
            false => 0,
        }
    }
}

/// The rows to insert for keys that the database does not know, in the order of the keys: two transactions that lock keys
/// in the same order never wait for each other in a circle.
pub(crate) fn new_rows(lane_id: i64, requests: &[Request]) -> Vec<KeyRow> {
    let mut rows: Vec<KeyRow> = requests.iter().map(|request| request.row(lane_id)).collect();
    rows.sort_by_key(|row| row.key);
    rows.dedup_by_key(|row| row.key);
    rows
}

/// Decides what is stored of the frames of a batch. `rows` are those of their keys, the new ones included; none if the
/// database cannot remember requests.
pub(crate) fn decide(lane_id: i64, requests: &[Request], rows: &[KeyRow]) -> Decision {
    let mut known: BTreeMap<RequestKey, KeyRow> = rows.iter().map(|row| (row.key, *row)).collect();
    let mut repeated = BTreeMap::new();
    let mut changed = BTreeSet::new();
    for request in requests {
        let Some(row) = known.get_mut(&request.key) else { continue };
        let is_own = (row.lane_id, row.seq) == (lane_id, request.seq);
        let stored = if is_own { 0 } else { request.stored(row) };
        if stored > request.begin {
            repeated.insert(request.seq, stored);
        }
        let goes_on = is_own || (stored > 0 && stored < request.end);
        if goes_on && *row != request.row(lane_id) {
            *row = request.row(lane_id);
            changed.insert(request.key);
        }
    }
    Decision { repeated, changed: changed.iter().map(|key| known[key]).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: RequestKey = [1; 24];

    fn request(seq: u64, records: u64, (begin, end): (u64, u64)) -> Request {
        Request { key: KEY, seq, records, begin, end }
    }

    fn row(lane_id: i64, seq: u64, records: u64, stored: u64) -> KeyRow {
        KeyRow { key: KEY, lane_id, seq, records, stored }
    }

    /// How many records of the frame are repeated, and how many are stored afterwards if the row changes.
    fn decided(request: Request, row: KeyRow) -> (u64, Option<u64>) {
        let decision = decide(1, &[request], &[row]);
        let repeated = decision.repeated.get(&request.seq).copied().unwrap_or(0);
        assert!(decision.changed.iter().all(|changed| *changed == request.row(1)), "{decision:?}");
        (repeated, decision.changed.first().map(|changed| changed.stored))
    }

    #[test]
    fn what_is_stored_of_a_request_is_not_stored_again() {
        let whole = request(5, 4, (0, 4));
        for (row, expected) in [
            (row(1, 5, 4, 4), (0, None)),    // it was inserted for this frame
            (row(1, 3, 4, 4), (4, None)),    // an earlier frame of the lane
            (row(2, 5, 4, 4), (4, None)),    // of another lane
            (row(2, 9, 9, 9), (4, None)),    // parsed differently, and stored as a whole
            (row(2, 9, 4, 3), (3, Some(4))), // stored in part
            (row(2, 9, 9, 3), (0, None)),
        ] {
            assert_eq!(decided(whole, row), expected, "{row:?}");
        }
        assert_eq!(decide(1, &[whole], &[]), Decision::default(), "the database cannot remember it");
    }

    #[test]
    fn a_frame_of_which_a_part_is_stored_goes_on() {
        let rest = request(5, 6, (2, 4));
        for (row, expected) in [
            (row(1, 5, 6, 2), (0, Some(4))), // its own part
            (row(9, 5, 6, 2), (0, Some(4))), // under the lane_id before, or as another writer's
            (row(1, 5, 6, 6), (0, Some(4))), // tables that were restored to different times
            (row(9, 8, 6, 3), (3, Some(4))), // another frame has stored a part of its rest
            (row(9, 8, 6, 5), (5, None)),
            (row(9, 8, 6, 6), (6, None)),
        ] {
            assert_eq!(decided(rest, row), expected, "{row:?}");
        }
    }

    #[test]
    fn frames_of_one_batch_repeat_each_other() {
        let other = Request { key: [0; 24], ..request(6, 1, (0, 1)) };
        let requests = [request(5, 2, (1, 2)), other, request(7, 2, (0, 2))];
        let rows = new_rows(1, &requests);
        assert_eq!(rows, [other.row(1), requests[0].row(1)], "by key, the first frame of each");
        assert_eq!(decide(1, &requests, &rows), Decision { repeated: [(7, 2)].into(), changed: vec![] });
        // The part before was the row's.
        let rows = [other.row(1), KeyRow { stored: 1, ..requests[0].row(1) }];
        let changed = vec![requests[0].row(1)];
        assert_eq!(decide(1, &requests, &rows), Decision { repeated: [(7, 2)].into(), changed });
    }

    /// Three frames with one request of four records, in three lanes. Each is divided in each possible way, and the parts of all are
    /// stored in any order. Each frame may end early, for ever.
    #[test]
    fn in_any_order_of_any_parts_each_record_is_stored_once_and_no_frame_relies_on_another() {
        fn go(row: Option<KeyRow>, stored: u8, ends: [u64; 3], orders: &mut u64) {
            *orders += 1;
            for lane in 0..3 {
                let begin = ends[lane];
                for end in begin + 1..=4 {
                    let lane_id = i64::try_from(lane).unwrap();
                    let request = request(10, 4, (begin, end));
                    let row = row.unwrap_or_else(|| new_rows(lane_id, &[request])[0]);
                    let decision = decide(lane_id, &[request], &[row]);
                    let first = decision.repeated.get(&10).copied().unwrap_or(0).max(begin);
                    let new: u8 = (first..end).map(|record| 1 << record).sum();
                    assert_eq!(stored & new, 0, "stored twice");
                    let stored = stored | new;
                    let mut ends = ends;
                    ends[lane] = end;
                    assert!((0..end).all(|record| stored & 1 << record != 0), "what is accounted for is stored");
                    go(Some(decision.changed.first().copied().unwrap_or(row)), stored, ends, orders);
                }
            }
        }
        let mut orders = 0;
        go(None, 0, [0; 3], &mut orders);
        assert!(orders > 10_000, "{orders}");
    }
}
