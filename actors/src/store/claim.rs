//! Who may take a writer over, and what a refused copy still has alone. Pure.

use std::collections::BTreeMap;

use logweir_engine::journal::{LaneId, LaneTail};
use uuid::Uuid;

use super::{Claim, Inheritance, LaneRow, LaneStart, StoreError};

/// So many take-overs of a writer are remembered: as many as a journal keeps runs.
pub(super) const TAKEOVERS_MAX: i64 = 1024;

/// The writer's row as the database has it.
#[derive(Clone, Debug)]
pub struct Owner {
    /// The epoch.
    pub epoch: i64,
    /// The run that took it over.
    pub run: Uuid,
    /// Host and pid.
    pub owner: String,
}

/// One lane in one past take-over.
#[derive(Clone, Debug)]
pub struct Past {
    /// The epoch that it gave.
    pub epoch: i64,
    /// The run that took over.
    pub run: Uuid,
    /// The run of the same journal before it.
    pub run_before: Option<Uuid>,
    /// The lane; `None` where the journal had none.
    pub lane: Option<LaneId>,
    /// The lane's newest frame in that journal at its opening.
    pub tail_seq: u64,
    /// The lane's cursor in the database at that moment.
    pub cursor_seq: u64,
}

/// The epoch that `claim` gets: the stored one for the run that has it already, else the next.
///
/// # Errors
/// [`StoreError::StaleCopy`]: the writer's last run is not in this journal's history, so another copy wrote it.
/// (The history holds 1024 runs: a journal that was opened more often without reaching the database reads as a copy too.)
pub fn succeed(owner: Option<&Owner>, claim: &Claim) -> Result<i64, StoreError> {
    match owner {
        None => Ok(1),
        Some(owner) if owner.run == claim.run => Ok(owner.epoch),
        Some(owner) if claim.runs.contains(&owner.run) => Ok(owner.epoch + 1),
        Some(owner) => {
            Err(StoreError::StaleCopy { writer: claim.writer, epoch: owner.epoch, owner: owner.owner.clone() })
        }
    }
}

/// What another copy had inherited of our frames; see [`Inheritance`]. `past` is in order of epochs.
#[must_use]
pub fn inheritance(past: &[Past], claim: &Claim) -> Option<Inheritance> {
    let ours = |run: &Uuid| claim.runs.contains(run) || *run == claim.run;
    let last_ours = past.iter().filter(|past| ours(&past.run)).map(|past| past.epoch).max().unwrap_or(0);
    let first = past.iter().find(|past| past.epoch > last_ours)?;
    let up_to_seq = past
        .iter()
        .filter(|past| past.epoch == first.epoch)
        .filter_map(|past| Some((past.lane?, past.tail_seq.max(past.cursor_seq))))
        .collect();
    // Runs that both copies know are those that the database knows, and the one that the stranger's came after.
    let shared = |run: &Uuid| Some(*run) == first.run_before || past.iter().any(|past| past.run == *run);
    let own = match claim.runs.iter().rposition(shared) {
        Some(last_shared) => claim.runs.get(last_shared + 1),
        None => claim.runs.first(),
    };
    Some(Inheritance {
        writer: own.copied().unwrap_or(claim.run),
        up_to_seq,
        exact: first.run_before.is_some_and(|run| ours(&run)),
    })
}

/// The lanes that must begin anew, since their cursor is above the journal's tail: the journal is older than the database.
///
/// Beginning at the tail is exact: every frame up to it is settled (the cursor passed it), and every frame after it is
/// one that the database has not seen, whatever its number. A lane that is missing in the journal was never in it, so
/// that its tail is 0. The row gets a new `lane_id`, since the ordinals after the tail are used up under the old one.
/// Not to be asked again by the same run: its cursor rightly passes the tail that it opened with.
#[must_use]
pub(super) fn anew(claim: &Claim, lanes: &[LaneRow]) -> Vec<LaneStart> {
    let tails: BTreeMap<LaneId, LaneTail> = claim.tails.iter().copied().collect();
    lanes
        .iter()
        .map(|row| (row, tails.get(&row.lane).copied().unwrap_or_default()))
        .filter(|(row, tail)| row.last_seq > tail.seq)
        .map(|(row, tail)| LaneStart { lane: row.lane, seq: tail.seq, records: tail.records })
        .collect()
}

/// Every lane that the journal or the database knows, with tail and cursor; one line without a lane where there is none.
pub(super) fn tails(claim: &Claim, lanes: &[LaneRow]) -> Vec<(Option<LaneId>, u64, u64)> {
    let mut all: BTreeMap<LaneId, (u64, u64)> = lanes.iter().map(|row| (row.lane, (0, row.last_seq))).collect();
    for &(lane, tail) in &claim.tails {
        all.entry(lane).or_default().0 = tail.seq;
    }
    match all.is_empty() {
        true => vec![(None, 0, 0)],
        false => all.into_iter().map(|(lane, (tail, cursor))| (Some(lane), tail, cursor)).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(n: u128) -> Uuid {
        Uuid::from_u128(n)
    }

    fn claim(runs: &[u128], now: u128) -> Claim {
        Claim {
            writer: run(99),
            run: run(now),
            runs: runs.iter().copied().map(run).collect(),
            owner: "here".into(),
            tails: Vec::new(),
        }
    }

    fn past(epoch: i64, now: u128, before: Option<u128>, lane: u16, tail_seq: u64, cursor_seq: u64) -> Past {
        Past { epoch, run: run(now), run_before: before.map(run), lane: Some(lane), tail_seq, cursor_seq }
    }

    #[test]
    fn a_writer_goes_to_its_own_next_run_and_to_nobody_else() {
        let owner = |n| Owner { epoch: 7, run: run(n), owner: "there".into() };
        assert_eq!(succeed(None, &claim(&[], 1)).unwrap(), 1);
        assert_eq!(succeed(Some(&owner(2)), &claim(&[1, 2], 3)).unwrap(), 8);
        assert_eq!(succeed(Some(&owner(3)), &claim(&[1, 2], 3)).unwrap(), 7);
        assert!(matches!(succeed(Some(&owner(5)), &claim(&[1, 2], 3)), Err(StoreError::StaleCopy { epoch: 7, .. })));
    }

    #[test]
    fn a_stale_copy_keeps_what_stood_above_the_strangers_first_tail() {
        // Runs 1 and 2 are common. The copy took over as run 20 with the tails (10, 4), then 21; we are run 3.
        let history = [
            past(1, 1, None, 0, 0, 0),
            past(2, 2, Some(1), 0, 6, 6),
            past(3, 20, Some(2), 0, 10, 8),
            past(3, 20, Some(2), 1, 4, 4),
            past(4, 21, Some(20), 0, 99, 99),
        ];
        let found = inheritance(&history, &claim(&[1, 2], 3)).unwrap();
        assert_eq!(found, Inheritance { writer: run(3), up_to_seq: vec![(0, 10), (1, 4)], exact: true });
        // At the next try the identity is the same.
        let again = inheritance(&history, &claim(&[1, 2, 3], 4)).unwrap();
        assert_eq!(again.writer, run(3));
        // And the copy itself is none.
        assert_eq!(inheritance(&history, &claim(&[1, 2, 20, 21], 22)), None);
    }

    #[test]
    fn a_lane_begins_anew_only_where_the_cursor_is_above_the_tail() {
        let tail = |seq, records| LaneTail { seq, records };
        let row = |lane, last_seq| LaneRow { lane, last_seq, ..LaneRow::default() };
        let claim = Claim { tails: vec![(0, tail(9, 90)), (1, tail(9, 90)), (2, tail(9, 90))], ..claim(&[], 1) };
        let rows = [row(0, 8), row(1, 9), row(2, 10), row(3, 1), row(4, 0)];
        let start = |lane, seq, records| LaneStart { lane, seq, records };
        assert_eq!(anew(&claim, &rows), [start(2, 9, 90), start(3, 0, 0)]);
    }

    #[test]
    fn frames_that_our_run_flushed_after_the_copy_was_made_are_not_flushed_again() {
        let history = [past(1, 1, None, 0, 0, 0), past(2, 20, Some(1), 0, 10, 30)];
        assert_eq!(inheritance(&history, &claim(&[1], 2)).unwrap().up_to_seq, [(0, 30)]);
    }

    #[test]
    fn a_stranger_that_ran_unseen_before_makes_it_inexact() {
        let history = [past(1, 1, None, 0, 0, 0), past(2, 21, Some(20), 0, 15, 8)];
        assert!(!inheritance(&history, &claim(&[1], 2)).unwrap().exact);
    }
}
