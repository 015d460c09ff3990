//! Records whose event times are beyond what the database keeps. Pure.
//!
//! PostgreSQL deletes whole days, SQLite whole minutes: a record from before `database.retention_days` is stored,
//! acknowledged, and deleted at the next maintenance; one that is dated far ahead stays until that day has come and
//! passed. Neither is refused, because a sender with a wrong clock would lose records that are still useful for now; both
//! are counted, so that it is noticed.
//!
//! Only the earliest and the latest time of a chunk are determined for each; records are counted only if one of the two is
//! beyond.

use logweir_record::timestamp::{DAY_US, MINUTE_US};

/// Records dated further ahead than this are counted: no time zone is.
const AHEAD_US: i64 = DAY_US;

/// What the database keeps.
#[derive(Clone, Copy, Debug, Default)]
pub struct Horizon {
    /// `database.retention_days`; 0 keeps everything.
    pub retention_days: u32,
    /// Whether records expire by the minute, not by the day.
    pub by_minute: bool,
}

/// Records of a chunk that are beyond.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Beyond {
    /// Records that are too old.
    pub expired: u32,
    /// Index of the oldest of them.
    pub oldest: Option<usize>,
    /// Records that are too far ahead.
    pub ahead: u32,
}

impl Horizon {
    /// Examines the event `times` of records that arrived at `now_us`.
    #[must_use]
    pub fn examine(&self, times: &[i64], now_us: i64) -> Beyond {
        let first_us = match self.retention_days {
            0 => i64::MIN,
            days => {
                let unit_us = if self.by_minute { MINUTE_US } else { DAY_US };
                let days_us = i64::from(days).saturating_mul(DAY_US);
                now_us.saturating_sub(days_us).div_euclid(unit_us).saturating_mul(unit_us)
            }
        };
        let last_us = now_us.saturating_add(AHEAD_US);
        let (min, max) = times.iter().fold((i64::MAX, i64::MIN), |(min, max), &ts_us| (min.min(ts_us), max.max(ts_us)));
        let count = |is_beyond: &dyn Fn(i64) -> bool| {
            let count = times.iter().filter(|&&ts_us| is_beyond(ts_us)).count();
            u32::try_from(count).unwrap_or(u32::MAX)
        };
        let mut beyond = Beyond::default();
        if min < first_us {
            beyond.expired = count(&|ts_us| ts_us < first_us);
            beyond.oldest = times.iter().position(|&ts_us| ts_us == min);
        }
        if max > last_us {
            beyond.ahead = count(&|ts_us| ts_us > last_us);
        }
        beyond
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Noon of day 20,000.
    const NOW: i64 = 20_000 * DAY_US + DAY_US / 2;

    #[test]
    fn records_of_a_day_that_maintenance_deletes_are_counted() {
        let horizon = Horizon { retention_days: 7, by_minute: false };
        let kept = 19_993 * DAY_US;
        assert_eq!(horizon.examine(&[kept, NOW, NOW + AHEAD_US], NOW), Beyond::default());
        let beyond = horizon.examine(&[NOW, kept - 1, 0, kept, i64::MIN, NOW + AHEAD_US + 1], NOW);
        assert_eq!(beyond, Beyond { expired: 3, oldest: Some(4), ahead: 1 });
        assert_eq!(horizon.examine(&[], NOW), Beyond::default());
    }

    #[test]
    fn records_of_a_minute_that_maintenance_deletes_are_counted() {
        let horizon = Horizon { retention_days: 7, by_minute: true };
        let kept = NOW - 7 * DAY_US;
        assert_eq!(horizon.examine(&[kept, NOW], NOW + MINUTE_US - 1), Beyond::default());
        let beyond = horizon.examine(&[kept - 1, kept], NOW);
        assert_eq!(beyond, Beyond { expired: 1, oldest: Some(0), ahead: 0 });
    }

    #[test]
    fn without_retention_nothing_is_too_old() {
        let beyond = Horizon::default().examine(&[i64::MIN, i64::MAX], NOW);
        assert_eq!(beyond, Beyond { expired: 0, oldest: None, ahead: 1 });
        let longest = Horizon { retention_days: u32::MAX, by_minute: false };
        assert_eq!(longest.examine(&[0], NOW), Beyond::default());
    }
}
