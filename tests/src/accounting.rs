//! Reads the totals that the program reports: in its status, and in its first and final log lines.

use serde_json::Value;

/// `accepted = committed + dead-lettered + lost + backlog`, over all lanes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Accepted records.
    pub accepted: u64,
    /// Committed rows.
    pub committed: u64,
    /// Dead letters.
    pub dead: u64,
    /// Lost records.
    pub lost: u64,
    /// Records that are only in the journal.
    pub backlog: u64,
}

impl Totals {
    /// Sums the lanes of a status; `None` if a number is missing or a lane is inconsistent.
    #[must_use]
    pub fn of(status: &Value) -> Option<Self> {
        let mut sum = Self::default();
        for lane in status["lanes"].as_array()? {
            let number = |name: &str| lane[name].as_u64();
            let lane = Self {
                accepted: number("accepted")?,
                committed: number("committed")?,
                dead: number("dead_lettered")?,
                lost: number("lost")?,
                backlog: number("backlog")?,
            };
            lane.add_up().then_some(())?;
            sum.accepted += lane.accepted;
            sum.committed += lane.committed;
            sum.dead += lane.dead;
            sum.lost += lane.lost;
            sum.backlog += lane.backlog;
        }
        Some(sum)
    }

    /// Parses the final line of a log.
    #[must_use]
    pub fn at_the_end_of(log: &str) -> Option<Self> {
        let line = log.lines().rev().find_map(|line| line.strip_prefix("logweir stopped: "))?;
        let number = |name: &str| {
            line.split(' ').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('=')?.parse::<u64>().ok())
        };
        Some(Self {
            accepted: number("accepted")?,
            committed: number("committed")?,
            dead: number("dead_lettered")?,
            lost: number("lost")?,
            backlog: number("left_in_journal")?,
        })
    }

    /// Returns whether the totals are consistent.
    #[must_use]
    pub fn add_up(&self) -> bool {
        self.accepted == self.committed + self.dead + self.lost + self.backlog
    }
}

/// Parses the memory bound from the start of a log, in bytes.
#[must_use]
pub fn memory_bound(log: &str) -> Option<u64> {
    let (_, after) = log.split_once("memory_bytes_max=")?;
    after.split(|byte: char| !byte.is_ascii_digit()).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_are_summed_and_an_inconsistent_lane_is_rejected() {
        let lane = |backlog: u64| serde_json::json!({"accepted": 10, "committed": 5, "dead_lettered": 1, "lost": 1, "backlog": backlog});
        let status = serde_json::json!({"lanes": [lane(3), lane(3)]});
        let sum = Totals { accepted: 20, committed: 10, dead: 2, lost: 2, backlog: 6 };
        assert_eq!(Totals::of(&status), Some(sum));
        assert_eq!(Totals::of(&serde_json::json!({"lanes": [lane(3), lane(2)]})), None);
        assert_eq!(Totals::of(&Value::Null), None);
    }

    #[test]
    fn the_first_and_the_final_line_are_parsed() {
        let log = "logweir 0.1.0: SQLite, memory_bytes_max=1234\nnoise\nlogweir stopped: accepted=6 committed=3 \
                   dead_lettered=1 lost=0 left_in_journal=2\n";
        assert_eq!(memory_bound(log), Some(1234));
        let totals = Totals { accepted: 6, committed: 3, dead: 1, lost: 0, backlog: 2 };
        assert_eq!(Totals::at_the_end_of(log), Some(totals));
        assert_eq!(Totals::at_the_end_of("killed"), None);
    }
}
