//! Which run may acquire a writer's lease, and where a rejected copy forks. Pure.

use std::collections::BTreeMap;

use logweir_engine::journal::{LaneId, LaneTail};
use uuid::Uuid;

use crate::digest::Digest;
use crate::error::StoreError;
use crate::lane::{LaneRow, LaneStart};
use crate::lease::{Claim, ForkLane, ForkPoint};

/// Number of a writer's takeovers that the database keeps: as many as a journal keeps runs.
pub(crate) const TAKEOVERS_MAX: i64 = 1024;

/// The writer's row in the database.
#[derive(Clone, Debug)]
pub struct Owner {
    /// The epoch.
    pub epoch: i64,
    /// The run that acquired the lease.
    pub run: Uuid,
    /// Host and process id.
    pub owner: String,
}

/// One lane in one past takeover.
#[derive(Clone, Debug)]
pub struct TakeoverRow {
    /// The epoch that it started.
    pub epoch: i64,
    /// The run that acquired the lease.
    pub run: Uuid,
    /// The previous run of the same journal.
    pub run_before: Option<Uuid>,
    /// The lane at that moment.
    pub at: LaneAt,
}

/// A lane at the moment of a takeover.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LaneAt {
    /// The lane; `None` if the journal had no lanes.
    pub lane: Option<LaneId>,
    /// The lane's last frame in that journal when it was opened.
    pub tail_seq: u64,
    /// The lane's cursor in the database.
    pub cursor_seq: u64,
    /// The lane's digest in the database: how much of the frame after the cursor was stored. Empty if that is not known.
    pub digest: Digest,
}

/// Returns the epoch for `claim`: the stored epoch if this run already holds the lease, otherwise the next one.
///
/// # Errors
/// [`StoreError::StaleCopy`] if the writer's last run is not in this journal's history, so another copy wrote it.
pub fn next_epoch(owner: Option<&Owner>, claim: &Claim) -> Result<i64, StoreError> {
    match owner {
        None => Ok(1),
        Some(owner) if owner.run == claim.run => Ok(owner.epoch),
        Some(owner) if claim.runs.contains(&owner.run) || claim.only_copy => Ok(owner.epoch + 1),
        Some(owner) => {
            Err(StoreError::StaleCopy { writer: claim.writer, epoch: owner.epoch, owner: owner.owner.clone() })
        }
    }
}

/// Finds where this copy forks from another one; see [`ForkPoint`]. `past` is in epoch order.
#[must_use]
pub fn fork_point(past: &[TakeoverRow], claim: &Claim) -> Option<ForkPoint> {
    let ours = |run: &Uuid| claim.runs.contains(run) || *run == claim.run;
    let last_ours = past.iter().filter(|past| ours(&past.run)).map(|past| past.epoch).max().unwrap_or(0);
    let first = past.iter().find(|past| past.epoch > last_ours)?;
    let lanes = past.iter().filter(|past| past.epoch == first.epoch).filter_map(|past| fork_lane(&past.at)).collect();
    // Both copies know the runs that the database knows and the run before the unknown one.
    let shared = |run: &Uuid| Some(*run) == first.run_before || past.iter().any(|past| past.run == *run);
    let own = match claim.runs.iter().rposition(shared) {
        Some(last_shared) => claim.runs.get(last_shared + 1),
        None => claim.runs.first(),
    };
    Some(ForkPoint {
        writer: own.copied().unwrap_or(claim.run),
        lanes,
        exact: first.run_before.is_some_and(|run| ours(&run)),
    })
}

/// Where a lane forks. The frame of which a part was stored is the other copy's, too, if it is below that copy's tail.
fn fork_lane(at: &LaneAt) -> Option<ForkLane> {
    let is_own = at.cursor_seq >= at.tail_seq && at.digest.partial() > 0;
    Some(ForkLane {
        lane: at.lane?,
        seq: at.tail_seq.max(at.cursor_seq),
        digest: if is_own { at.digest.clone() } else { Digest::default() },
    })
}

/// Returns the lanes to reset because what they account for is above the journal's tail (also if only by a part of the
/// frame after it): the journal is older than the database.
///
/// Restarting at the tail is exact: every frame up to it is committed (the cursor passed it), and the database has not
/// seen any frame of this journal after it, whatever its number. A lane that is missing from the journal was never in it, so its tail
/// is 0. The row gets a new `lane_id`, since the ordinals after the tail are used up under the old one.
/// A lane whose first frame ever is above the cursor has lost its history (a damaged START), and counts from 0 again: it
/// continues after the cursor.
/// Must not be called again by the same run: its cursor rightly passes the tail that it opened with.
#[must_use]
pub(crate) fn lanes_to_reset(claim: &Claim, lanes: &[LaneRow]) -> Vec<LaneStart> {
    let tails: BTreeMap<LaneId, LaneTail> = claim.tails.iter().copied().collect();
    let begins: BTreeMap<LaneId, u64> = claim.begins.iter().copied().collect();
    let reset = |row: &LaneRow| {
        let (lane, cursor) = (row.lane, row.last_seq);
        let tail = tails.get(&lane).copied().unwrap_or_default();
        if cursor > tail.seq || (cursor == tail.seq && row.partial() > 0) {
            return Some(LaneStart { lane, seq: tail.seq, records: tail.records, digest: Digest::default() });
        }
        let begins_again = row.accounted() > 0 && begins.get(&lane).is_some_and(|begin| *begin > cursor);
        begins_again.then_some(LaneStart { lane, seq: cursor, records: 0, digest: Digest::default() })
    };
    lanes.iter().filter_map(reset).collect()
}

/// Returns every lane of the journal or the database, or one entry without a lane if none exists.
pub(crate) fn lanes_at(claim: &Claim, lanes: &[LaneRow]) -> Vec<LaneAt> {
    let stored = |row: &LaneRow| LaneAt {
        lane: Some(row.lane),
        tail_seq: 0,
        cursor_seq: row.last_seq,
        digest: row.digest.clone(),
    };
    let mut all: BTreeMap<LaneId, LaneAt> = lanes.iter().map(|row| (row.lane, stored(row))).collect();
    for &(lane, tail) in &claim.tails {
        let at = all.entry(lane).or_default();
        (at.lane, at.tail_seq) = (Some(lane), tail.seq);
    }
    match all.is_empty() {
        true => vec![LaneAt::default()],
        false => all.into_values().collect(),
    }
}

/// Logs and counts the lanes that acquiring the lease has reset.
pub(crate) fn log_resets(claim: &Claim, resets: &[LaneStart]) {
    for start in resets {
        tracing::error!(
            writer = %claim.writer,
            lane = start.lane,
            tail_seq = start.seq,
            "the journal is older than the database (a restored volume snapshot, or a disk that lost confirmed \
             writes), or has lost what it knew about the lane (a damaged START frame): the lane continues after this frame; \
             records that only a newer journal had are lost"
        );
        metrics::counter!("logweir_lane_resets_total").increment(1);
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use logweir_engine::journal::{Journal, JournalConfig, OnDurable};

    use super::*;

    fn at_once<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
    }

    fn run(n: u128) -> Uuid {
        Uuid::from_u128(n)
    }

    fn claim(runs: &[u128], now: u128) -> Claim {
        Claim { runs: runs.iter().copied().map(run).collect(), ..Claim::new(run(99), run(now), "here") }
    }

    fn past(epoch: i64, now: u128, before: Option<u128>, lane: u16, tail_seq: u64, cursor_seq: u64) -> TakeoverRow {
        let at = LaneAt { lane: Some(lane), tail_seq, cursor_seq, digest: Digest::default() };
        TakeoverRow { epoch, run: run(now), run_before: before.map(run), at }
    }

    fn fork(lane: LaneId, seq: u64) -> ForkLane {
        ForkLane { lane, seq, digest: Digest::default() }
    }

    #[test]
    fn only_the_next_run_of_the_same_journal_acquires_the_lease() {
        let owner = |n| Owner { epoch: 7, run: run(n), owner: "there".into() };
        assert_eq!(next_epoch(None, &claim(&[], 1)).unwrap(), 1);
        assert_eq!(next_epoch(Some(&owner(2)), &claim(&[1, 2], 3)).unwrap(), 8);
        assert_eq!(next_epoch(Some(&owner(3)), &claim(&[1, 2], 3)).unwrap(), 7);
        assert!(matches!(next_epoch(Some(&owner(5)), &claim(&[1, 2], 3)), Err(StoreError::StaleCopy { epoch: 7, .. })));
        let only_copy = Claim { only_copy: true, ..claim(&[1, 2], 3) };
        assert_eq!(next_epoch(Some(&owner(5)), &only_copy).unwrap(), 8);
    }

    #[test]
    fn a_journal_with_any_bit_of_its_only_start_or_header_flipped_is_recognized() {
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let config = |dir: &Path| JournalConfig { segment_bytes: 64 << 10, ..JournalConfig::new(dir) };
        let (journal, recovered) = Journal::open(config(dir.path())).unwrap();
        journal.confirm_run();
        let (credit, (on_durable, _)) = (at_once(journal.reserve(1)).unwrap(), OnDurable::send());
        let seq = journal.append(credit, 3, 1, 1, vec![0], on_durable).unwrap().seq;
        journal.seal().unwrap();
        let owner = Owner { epoch: 7, run: recovered.run, owner: "there".into() };
        let row = LaneRow { lane: 3, last_seq: seq, rows: 1, ..LaneRow::default() };
        // All is committed: the next run has a segment with a START and nothing else, and the earlier one is removed.
        let (journal, _) = Journal::open(config(dir.path())).unwrap();
        journal.seal().unwrap();
        fs::remove_file(dir.path().join(format!("{:020}.wal", 1))).unwrap();
        fs::remove_file(dir.path().join("LOCK")).unwrap();
        let name = format!("{:020}.wal", 2);
        let mut bytes = fs::read(dir.path().join(&name)).unwrap();
        let used = bytes.iter().rposition(|byte| *byte != 0).unwrap() + 1;
        bytes.truncate(used.next_multiple_of(8));
        for bit in 0..bytes.len() * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            let copy = tempfile::tempdir_in(dir.path()).unwrap();
            fs::write(copy.path().join(&name), &bytes).unwrap();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let claim = Claim::of(&Journal::open(config(copy.path())).unwrap().1, "here");
            assert_eq!(claim.writer, recovered.writer, "bit {bit}");
            assert_eq!(next_epoch(Some(&owner), &claim).unwrap(), 8, "bit {bit}");
            assert_eq!(lanes_to_reset(&claim, std::slice::from_ref(&row)), [], "bit {bit}");
        }
    }

    #[test]
    fn a_lane_that_the_journal_has_forgotten_continues_after_the_cursor() {
        let tails = vec![(0, LaneTail { seq: 900, records: 5 }), (1, LaneTail { seq: 901, records: 500 })];
        let begins = vec![(0, 899), (1, 10)];
        let claim = Claim { tails, begins, ..claim(&[], 1) };
        let row = |lane, last_seq, rows| LaneRow { lane, last_seq, rows, ..LaneRow::default() };
        let forgotten = LaneStart { lane: 0, seq: 20, records: 0, digest: Digest::default() };
        assert_eq!(lanes_to_reset(&claim, &[row(0, 20, 40), row(1, 20, 40)]), [forgotten]);
        assert_eq!(lanes_to_reset(&claim, &[row(0, 899, 1), row(1, 10, 3)]), [], "the first frame is committed");
        assert_eq!(lanes_to_reset(&claim, &[row(0, 0, 0), row(1, 0, 0)]), [], "nothing is committed yet");
    }

    #[test]
    fn a_stale_copy_keeps_the_frames_above_the_first_tail_of_the_other_copy() {
        // Runs 1 and 2 are shared. The copy acquired the lease as run 20 with the tails (10, 4), then as run 21; this
        // is run 3.
        let history = [
            past(1, 1, None, 0, 0, 0),
            past(2, 2, Some(1), 0, 6, 6),
            past(3, 20, Some(2), 0, 10, 8),
            past(3, 20, Some(2), 1, 4, 4),
            past(4, 21, Some(20), 0, 99, 99),
        ];
        let found = fork_point(&history, &claim(&[1, 2], 3)).unwrap();
        assert_eq!(found, ForkPoint { writer: run(3), lanes: vec![fork(0, 10), fork(1, 4)], exact: true });
        // A retry gets the same writer.
        let again = fork_point(&history, &claim(&[1, 2, 3], 4)).unwrap();
        assert_eq!(again.writer, run(3));
        // The other copy itself is not stale.
        assert_eq!(fork_point(&history, &claim(&[1, 2, 20, 21], 22)), None);
    }

    #[test]
    fn a_lane_is_reset_only_if_its_cursor_is_above_the_tail() {
        let tail = |seq, records| LaneTail { seq, records };
        let row = |lane, last_seq| LaneRow { lane, last_seq, ..LaneRow::default() };
        let claim = Claim { tails: vec![(0, tail(9, 90)), (1, tail(9, 90)), (2, tail(9, 90))], ..claim(&[], 1) };
        let rows = [row(0, 8), row(1, 9), row(2, 10), row(3, 1), row(4, 0)];
        let start = |lane, seq, records| LaneStart { lane, seq, records, digest: Digest::default() };
        assert_eq!(lanes_to_reset(&claim, &rows), [start(2, 9, 90), start(3, 0, 0)]);
        // Four records of the frame after the cursor are stored. The journal has that frame, or it ends before it.
        let digest = Digest::of_frame(7, 10, 90).of_part(4);
        let partial = |lane, last_seq| LaneRow { rows: 84, digest: digest.clone(), ..row(lane, last_seq) };
        assert_eq!(lanes_to_reset(&claim, &[partial(0, 8), partial(1, 9)]), [start(1, 9, 90)]);
    }

    #[test]
    fn frames_that_this_run_flushed_after_the_copy_was_made_are_not_flushed_again() {
        let history = [past(1, 1, None, 0, 0, 0), past(2, 20, Some(1), 0, 10, 30)];
        assert_eq!(fork_point(&history, &claim(&[1], 2)).unwrap().lanes, [fork(0, 30)]);
    }

    #[test]
    fn a_part_that_this_copy_stored_of_a_frame_is_not_flushed_again_unless_the_other_copy_has_that_frame() {
        let digest = Digest::of_frame(7, 10, 90).of_part(4);
        for (tail_seq, cursor_seq, expected) in [(10, 30, true), (30, 30, true), (31, 30, false)] {
            let mut taken = past(2, 20, Some(1), 0, tail_seq, cursor_seq);
            taken.at.digest.clone_from(&digest);
            let lanes = fork_point(&[past(1, 1, None, 0, 0, 0), taken], &claim(&[1], 2)).unwrap().lanes;
            let found = if expected { digest.clone() } else { Digest::default() };
            assert_eq!(lanes, [ForkLane { digest: found.clone(), ..fork(0, tail_seq.max(cursor_seq)) }]);
            let start =
                LaneStart { lane: 0, seq: lanes[0].seq, records: if expected { 84 } else { 80 }, digest: found };
            assert_eq!(lanes[0].start(80), start);
        }
    }

    #[test]
    fn a_takeover_records_each_lane_of_the_journal_and_the_database() {
        assert_eq!(lanes_at(&claim(&[], 1), &[]), [LaneAt::default()]);
        let claim =
            Claim { tails: vec![(0, LaneTail { seq: 9, records: 90 }), (2, LaneTail::default())], ..claim(&[], 1) };
        let digest = Digest::of_frame(7, 10, 90);
        let rows = [0, 1].map(|lane| LaneRow { lane, last_seq: 8, digest: digest.clone(), ..LaneRow::default() });
        let at = |lane, tail_seq, cursor_seq, digest: &Digest| LaneAt {
            lane: Some(lane),
            tail_seq,
            cursor_seq,
            digest: digest.clone(),
        };
        let none = Digest::default();
        assert_eq!(lanes_at(&claim, &rows), [at(0, 9, 8, &digest), at(1, 0, 8, &digest), at(2, 0, 0, &none)]);
    }

    #[test]
    fn an_unknown_run_before_that_of_the_other_copy_makes_the_fork_point_inexact() {
        let history = [past(1, 1, None, 0, 0, 0), past(2, 21, Some(20), 0, 15, 8)];
        assert!(!fork_point(&history, &claim(&[1], 2)).unwrap().exact);
    }
}
