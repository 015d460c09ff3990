//! Which idempotency keys have expired. Pure.
//!
//! - A key lives for [`DEDUP_WINDOW`] of running time: it expires when the rounds of maintenance of one process have found
//!   it for so long. A key that a wrong clock lets expire would let a request be stored twice, and the time that is
//!   [trusted](super::clock) for records is not exact enough: it follows a clock that is ahead by hours.
//! - After a start the hour begins again, as in the journal. A process that runs for less than an hour, such as a daily job,
//!   removes keys that are older than [`OLD`], by the earlier one of the trusted time and the clock.
//! - Keys that were stored while the clock was ahead stay until it is there again.

use std::collections::VecDeque;
use std::time::Duration;

use logweir_engine::journal::DEDUP_WINDOW;
use tokio::time::Instant;

/// Age at which a key expires although no process has seen it for an hour. More than the error of a clock that is trusted at once.
const OLD: Duration = Duration::from_hours(48);

/// The rounds of this process, since the last one that began [`DEDUP_WINDOW`] ago: when, and the database's clock.
#[derive(Debug, Default)]
pub(crate) struct Rounds(VecDeque<(Instant, i64)>);

impl Rounds {
    /// Takes in a round, and returns the time before which keys have expired, by the database's clock.
    pub(crate) fn expired_before(&mut self, now: Instant, database_us: i64, trusted_us: i64) -> i64 {
        self.0.push_back((now, database_us));
        let is_old = |round: Option<&(Instant, i64)>| round.is_some_and(|(at, _)| now - *at >= DEDUP_WINDOW);
        while is_old(self.0.get(1)) {
            self.0.pop_front();
        }
        // The earliest, since the clock may have been set back: keys that are newer can have an earlier time.
        let seen_us = self.0.iter().map(|(_, database_us)| *database_us).min().filter(|_| is_old(self.0.front()));
        let old_us = i64::try_from(OLD.as_micros()).unwrap_or(i64::MAX);
        seen_us.unwrap_or(i64::MIN).max(trusted_us.min(database_us).saturating_sub(old_us))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR_US: i64 = 3_600_000_000;
    const NOW_US: i64 = 20_000 * 24 * HOUR_US;

    /// Rounds each five minutes, at which the clock is ahead by so many hours: how many of the keys that were stored with each are
    /// deleted before an hour has passed, and how many later.
    fn deleted(ahead: &[i64]) -> (usize, usize) {
        let (begin, mut rounds) = (Instant::now(), Rounds::default());
        let (mut keys, mut early, mut late) = (Vec::new(), 0, 0);
        for (nth, ahead) in ahead.iter().enumerate() {
            let passed = Duration::from_mins(5 * nth as u64);
            let database_us = NOW_US + i64::try_from(passed.as_micros()).unwrap() + ahead * HOUR_US;
            let before_us = rounds.expired_before(begin + passed, database_us, database_us);
            keys.retain(|&(stored, at_us)| {
                let is_early = passed - stored < DEDUP_WINDOW;
                (early, late) = match at_us < before_us {
                    true if is_early => (early + 1, late),
                    true => (early, late + 1),
                    false => (early, late),
                };
                at_us >= before_us
            });
            keys.push((passed, database_us));
        }
        (early, late)
    }

    #[test]
    fn a_key_lives_for_an_hour_of_running_time_whatever_the_clock_says() {
        // Of 60 rounds those within the last hour stay, and the one before it.
        assert_eq!(deleted(&[0; 60]), (0, 47));
        let jumps =
            |at: usize, hours: i64| -> Vec<i64> { (0..60).map(|nth| if nth < at { 0 } else { hours }).collect() };
        for hours in [-30, -2, 2, 30] {
            assert_eq!(deleted(&jumps(30, hours)).0, 0, "{hours} h");
            let back: Vec<i64> = (0..90).map(|nth| if (30..35).contains(&nth) { hours } else { 0 }).collect();
            let (early, late) = deleted(&back);
            assert!(early == 0 && late > 60, "{hours} h and back: {late}");
        }
    }

    #[test]
    fn a_process_that_runs_for_a_moment_removes_old_keys_by_the_trusted_time() {
        let before =
            |database_us, trusted_us| Rounds::default().expired_before(Instant::now(), database_us, trusted_us);
        assert_eq!(before(NOW_US, NOW_US), NOW_US - 48 * HOUR_US);
        assert_eq!(before(NOW_US + 9_000 * HOUR_US, NOW_US), NOW_US - 48 * HOUR_US);
        assert_eq!(before(NOW_US, NOW_US + 9_000 * HOUR_US), NOW_US - 48 * HOUR_US);
        assert_eq!(before(i64::MIN, i64::MAX), i64::MIN);
    }
}
