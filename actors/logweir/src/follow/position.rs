//! The position of a journal reader, and its resume token.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use logweir_engine::journal::{LaneId, LaneTail};
use uuid::Uuid;

/// Upper bound of the number of lanes in a journal.
const LANES_MAX: usize = 1 << 10;

/// Separates the tokens of several journals in a gateway's token. No token contains it.
pub const TOKEN_SEPARATOR: char = '_';

/// Frames are ordered by sequence number, and each lane numbers its records. So one sequence number and one count per
/// lane determine which records were passed, and two positions how many lie between them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// Sequence number of the latest frame of which records were passed.
    pub seq: u64,
    /// Per lane, the number of records passed.
    lanes: Vec<u64>,
}

impl Position {
    /// The end of the durable part of the journal, as the journal reports it.
    #[must_use]
    pub fn of(seq: u64, tails: &BTreeMap<LaneId, LaneTail>) -> Self {
        let mut position = Self { seq, lanes: Vec::new() };
        for (&lane, tail) in tails {
            position.pass(lane, tail.records);
        }
        position
    }

    /// Returns how many records of `lane` were passed.
    #[must_use]
    pub fn records(&self, lane: LaneId) -> u64 {
        self.lanes.get(usize::from(lane)).copied().unwrap_or(0)
    }

    /// Marks the records of `lane` up to its `records`-th as passed.
    pub fn pass(&mut self, lane: LaneId, records: u64) {
        let lane = usize::from(lane);
        if self.lanes.len() <= lane {
            self.lanes.resize(lane + 1, 0);
        }
        self.lanes[lane] = self.lanes[lane].max(records);
    }

    /// Returns how many records were passed at `later` but not here.
    #[must_use]
    pub fn missing(&self, later: &Self) -> u64 {
        (0..).zip(&later.lanes).map(|(lane, records)| records.saturating_sub(self.records(lane))).sum()
    }

    /// Marks everything that was passed at `later` as passed here.
    pub fn join(&mut self, later: &Self) {
        self.seq = self.seq.max(later.seq);
        for (lane, &records) in (0..).zip(&later.lanes) {
            self.pass(lane, records);
        }
    }

    /// Appends the token of this position in the journal of `writer`; it stays valid across restarts.
    pub fn write_token(&self, writer: Uuid, out: &mut String) {
        write!(out, "{:016x}.{}", short(writer), self.seq).expect("writing to a String cannot fail");
        for records in &self.lanes {
            write!(out, ".{records}").expect("writing to a String cannot fail");
        }
    }

    /// Parses a token; `None` if it is invalid.
    #[must_use]
    pub fn from_token(token: &str) -> Option<(JournalTag, Self)> {
        let mut parts = token.trim().split('.');
        let tag = parts.next().filter(|part| part.len() == 16)?;
        let tag = u64::from_str_radix(tag, 16).ok()?;
        let seq = parts.next()?.parse().ok()?;
        let lanes = parts.map(str::parse).take(LANES_MAX + 1).collect::<Result<Vec<_>, _>>().ok()?;
        (lanes.len() <= LANES_MAX).then_some((JournalTag(tag), Self { seq, lanes }))
    }
}

/// Identifies the journal that issued a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JournalTag(u64);

impl JournalTag {
    /// Returns whether the token was issued by the journal of `writer`.
    #[must_use]
    pub fn is(self, writer: Uuid) -> bool {
        self.0 == short(writer)
    }
}

/// 64 bits of the UUID suffice to distinguish the journals that one client meets.
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
    fn a_token_round_trips() {
        let writer = Uuid::from_u128(7 << 64 | 9);
        for position in [position(0, &[]), position(1 << 60, &[3, 0, u64::MAX])] {
            let mut token = String::new();
            position.write_token(writer, &mut token);
            let (tag, back) = Position::from_token(&token).unwrap();
            assert!(tag.is(writer) && !tag.is(Uuid::nil()));
            assert_eq!(back, position);
        }
    }

    #[test]
    fn an_invalid_token_is_none() {
        let many = format!("{:016x}.1{}", 1, ".1".repeat(LANES_MAX + 1));
        for text in ["", "1", "000000000000000e", "000000000000000e.x", "000000000000000e.1.-1", "é.1.2", &many] {
            assert_eq!(Position::from_token(text), None, "{text}");
        }
    }

    #[test]
    fn records_between_two_positions_are_counted_per_lane() {
        let mut early = position(5, &[10, 20]);
        let late = position(9, &[12, 15, 3]);
        assert_eq!(early.missing(&late), 5);
        early.join(&late);
        assert_eq!(early, position(9, &[12, 20, 3]));
        assert_eq!(early.missing(&late), 0);
    }
}
