//! How far a reader of the journal has come, and the token that stands for it.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use logweir_engine::journal::{LaneId, LaneTail};
use uuid::Uuid;

/// More lanes than that no journal has.
const LANES_MAX: usize = 1 << 10;

/// Frames lie in the journal in the order of their numbers, and a lane counts its records: a number and a count per lane
/// say which records have gone past, and two positions how many lie between them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// The frame that was begun last.
    pub seq: u64,
    /// Of each lane, how many records have gone past.
    lanes: Vec<u64>,
}

impl Position {
    /// The end of what is durable, as the journal gives it.
    #[must_use]
    pub fn of(seq: u64, tails: &BTreeMap<LaneId, LaneTail>) -> Self {
        let mut position = Self { seq, lanes: Vec::new() };
        for (&lane, tail) in tails {
            position.pass(lane, tail.records);
        }
        position
    }

    /// How many records of `lane` have gone past.
    #[must_use]
    pub fn records(&self, lane: LaneId) -> u64 {
        self.lanes.get(usize::from(lane)).copied().unwrap_or(0)
    }

    /// Everything of `lane` up to its `records`-th record has gone past.
    pub fn pass(&mut self, lane: LaneId, records: u64) {
        let lane = usize::from(lane);
        if self.lanes.len() <= lane {
            self.lanes.resize(lane + 1, 0);
        }
        self.lanes[lane] = self.lanes[lane].max(records);
    }

    /// Records that have gone past at `later` and not here.
    #[must_use]
    pub fn missing(&self, later: &Self) -> u64 {
        (0..).zip(&later.lanes).map(|(lane, records)| records.saturating_sub(self.records(lane))).sum()
    }

    /// Everything that has gone past at `later` has gone past here, too.
    pub fn join(&mut self, later: &Self) {
        self.seq = self.seq.max(later.seq);
        for (lane, &records) in (0..).zip(&later.lanes) {
            self.pass(lane, records);
        }
    }

    /// The token: it stands for this position in the journal of `writer`, after any restart.
    pub fn write_token(&self, writer: Uuid, out: &mut String) {
        write!(out, "{:016x}.{}", short(writer), self.seq).expect("a String takes all");
        for records in &self.lanes {
            write!(out, ".{records}").expect("a String takes all");
        }
    }

    /// What a token stands for; `None` for what is no token.
    #[must_use]
    pub fn from_token(token: &str) -> Option<(Home, Self)> {
        let mut parts = token.trim().split('.');
        let home = parts.next().filter(|part| part.len() == 16)?;
        let home = u64::from_str_radix(home, 16).ok()?;
        let seq = parts.next()?.parse().ok()?;
        let lanes = parts.map(str::parse).take(LANES_MAX + 1).collect::<Result<Vec<_>, _>>().ok()?;
        (lanes.len() <= LANES_MAX).then_some((Home(home), Self { seq, lanes }))
    }
}

/// The journal that a token was given out for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Home(u64);

impl Home {
    /// Whether it is that of `writer`.
    #[must_use]
    pub fn is(self, writer: Uuid) -> bool {
        self.0 == short(writer)
    }
}

/// Half of a uuid tells journals apart that one client meets.
fn short(writer: Uuid) -> u64 {
    writer.as_u64_pair().0 ^ writer.as_u64_pair().1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn position(seq: u64, lanes: &[u64]) -> Position {
        Position { seq, lanes: lanes.to_vec() }
    }

    #[test]
    fn a_token_comes_back_as_its_position() {
        let writer = Uuid::from_u128(7 << 64 | 9);
        for position in [position(0, &[]), position(1 << 60, &[3, 0, u64::MAX])] {
            let mut token = String::new();
            position.write_token(writer, &mut token);
            let (home, back) = Position::from_token(&token).unwrap();
            assert!(home.is(writer) && !home.is(Uuid::nil()));
            assert_eq!(back, position);
        }
    }

    #[test]
    fn what_is_no_token_is_none() {
        let many = format!("{:016x}.1{}", 1, ".1".repeat(LANES_MAX + 1));
        for text in ["", "1", "000000000000000e", "000000000000000e.x", "000000000000000e.1.-1", "é.1.2", &many] {
            assert_eq!(Position::from_token(text), None, "{text}");
        }
    }

    #[test]
    fn what_lies_between_two_positions_is_counted_by_lane() {
        let mut early = position(5, &[10, 20]);
        let late = position(9, &[12, 15, 3]);
        assert_eq!(early.missing(&late), 5);
        early.join(&late);
        assert_eq!(early, position(9, &[12, 20, 3]));
        assert_eq!(early.missing(&late), 0);
    }
}
