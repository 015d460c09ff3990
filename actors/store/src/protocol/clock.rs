//! The time by which records expire. A clock that is wrong by a year would delete everything, and a second one that could
//! confirm it is often on the same machine. So the database keeps the time that is trusted. Pure.
//!
//! - The trusted time moves with the time that passes while logweir runs, measured by a clock that nobody sets. Several
//!   processes that share a database count the same time once ([`passed_us`]).
//! - A clock that is ahead of that by up to a day, or an eighth of the retention, is trusted: logweir was not running
//!   for so long.
//! - A clock that is farther ahead is doubted. For [`DOUBTED`] of running time nothing changes except that the step `clock`
//!   fails, so that somebody can set the clock. Then it is believed slowly, a day of records per hour: the machine was
//!   probably off for weeks, and nobody has to do anything.
//! - A time that is behind is trusted at once, since less expires by it. So is a time by which hardly anything expires.
//!
//! What records say about the time counts for nothing here: they have years such as 1970 and 9999.

use std::time::Duration;

use crate::error::StoreError;
use logweir_record::timestamp::{self, DAY_US};

/// How long a clock that is ahead is doubted.
const DOUBTED: Duration = Duration::from_hours(12);
/// How much faster than time passes it is believed after that: a day per hour.
const BELIEVED_SPEED: i64 = 24;

/// What the database keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ClockState {
    /// The trusted time, in microseconds since 1970.
    pub(crate) trusted_us: i64,
    /// How long the machine's clock has been doubted, in microseconds of running time; 0 if it is trusted.
    pub(crate) doubted_us: i64,
}

/// What is known in a round of maintenance.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Observed {
    /// The clock of the database's machine.
    pub(crate) wall_us: i64,
    /// Running time since the previous round; 0 in the first round.
    pub(crate) passed_us: i64,
    /// The time until which nothing more expires; `i64::MAX` if nothing ever does.
    pub(crate) harmless_until_us: i64,
    /// Age at which records expire; 0 if they do not.
    pub(crate) retention_us: i64,
}

impl ClockState {
    /// The state of a database without one.
    pub(crate) fn new(trusted_us: i64) -> Self {
        Self { trusted_us, doubted_us: 0 }
    }

    /// The state after a round.
    pub(crate) fn next(self, observed: Observed) -> Self {
        let Observed { wall_us, passed_us, harmless_until_us, retention_us } = observed;
        let doubted_us = self.doubted_us.saturating_add(passed_us);
        let is_believed = self.doubted_us > 0 && doubted_us >= us(DOUBTED);
        let speed = if is_believed { BELIEVED_SPEED } else { 1 };
        let moved_us = self.trusted_us.saturating_add(passed_us.saturating_mul(speed));
        let harmless_us = moved_us.max(harmless_until_us);
        if wall_us.saturating_sub(harmless_us) <= DAY_US.max(retention_us / 8) {
            return Self::new(wall_us);
        }
        // Not while it is doubted: from gap to gap between records, the time would run ahead.
        let trusted_us = if is_believed { harmless_us } else { moved_us };
        // In the first round of a process no time has passed, but the doubt has begun.
        Self { trusted_us, doubted_us: doubted_us.max(1) }
    }

    /// Fails while the clock is doubted.
    ///
    /// # Errors
    /// [`StoreError::Systemic`], with what to do.
    pub(crate) fn verdict(self, wall_us: i64) -> Result<(), StoreError> {
        if self.doubted_us == 0 {
            return Ok(());
        }
        let days = wall_us.saturating_sub(self.trusted_us) / DAY_US;
        let (wall, trusted) = (timestamp::text(wall_us), timestamp::text(self.trusted_us));
        let left_us = us(DOUBTED).saturating_sub(self.doubted_us);
        let then = if left_us > 0 {
            let minutes = left_us / 60_000_000;
            format!(
                "until {} h {} min of running time have passed, records expire by the earlier time",
                minutes / 60,
                minutes % 60
            )
        } else {
            "records expire by the earlier time, which now catches up by a day per hour".to_owned()
        };
        Err(StoreError::Systemic(format!(
            "the clock of the database's machine is at {wall}, {days} days ahead of the last time that is known to be right, \
             {trusted}: {then}; if the clock is wrong, set it; if it is right, because logweir was not running, wait"
        )))
    }
}

/// The time before which records have expired, a multiple of `unit_us`, which divides a day: `retention_us` before the trusted
/// time. The day of the newest record that is not in the future stays, however old it is.
pub(crate) fn horizon(trusted_us: i64, newest_us: Option<i64>, retention_us: i64, unit_us: i64) -> i64 {
    let newest_day = newest_us.map_or(i64::MAX, |newest| newest.div_euclid(DAY_US).saturating_mul(DAY_US));
    trusted_us.saturating_sub(retention_us).min(newest_day).div_euclid(unit_us).saturating_mul(unit_us)
}

fn us(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

/// The time that has passed since the round before, of whichever process. `running_us` is what all have counted;
/// `counted_us` what it was after this process's last round, which `elapsed_us` ago was. Pure.
#[cfg(feature = "postgres")]
pub(crate) fn passed_us(running_us: i64, counted_us: i64, elapsed_us: i64) -> i64 {
    counted_us.saturating_add(elapsed_us).saturating_sub(running_us).clamp(0, elapsed_us.max(0))
}

#[cfg(test)]
mod tests {
    use logweir_record::timestamp::MINUTE_US;

    use super::*;

    const HOUR_US: i64 = 3_600_000_000;
    const NOW_US: i64 = 20_000 * DAY_US;

    fn observed(wall_us: i64, passed_us: i64) -> Observed {
        // Records since the retention's beginning.
        Observed { wall_us, passed_us, harmless_until_us: NOW_US, retention_us: 7 * DAY_US }
    }

    /// Rounds of five minutes with the clock `ahead_us`, until it is trusted. Returns their running time, and that
    /// until anything more expired.
    fn until_trusted(mut state: ClockState, ahead_us: i64, harmless_until_us: i64) -> (i64, i64) {
        const ROUND_US: i64 = 5 * 60_000_000;
        let start = state.trusted_us;
        let (mut running_us, mut harmless_us) = (0, 0);
        let mut passed_us = 0;
        loop {
            let wall_us = start + ahead_us + running_us;
            state = state.next(Observed { harmless_until_us, ..observed(wall_us, passed_us) });
            // Nothing beyond what expires anyway while time passes.
            if state.trusted_us <= start + running_us {
                harmless_us = running_us;
            }
            assert!(state.trusted_us <= wall_us, "{state:?}");
            if state.verdict(wall_us).is_ok() {
                assert_eq!(state, ClockState::new(wall_us));
                return (running_us, harmless_us);
            }
            passed_us = ROUND_US;
            running_us += ROUND_US;
            assert!(running_us < 1_000 * DAY_US, "it is never trusted: {state:?}");
        }
    }

    #[test]
    fn the_trusted_time_follows_the_clock_as_long_as_both_agree() {
        let trusted = ClockState::new(NOW_US);
        for (wall_us, passed_us) in [
            (NOW_US + 1, 0),
            (NOW_US + 300_000_000, 300_000_000),
            (NOW_US + DAY_US, 0), // it was not running for a day
            (NOW_US + DAY_US + HOUR_US, HOUR_US),
            (NOW_US - 1, 0), // behind: less expires
            (0, 0),
            (i64::MIN, 0),
        ] {
            let next = trusted.next(observed(wall_us, passed_us));
            assert_eq!(next, ClockState::new(wall_us), "{wall_us}");
            assert!(next.verdict(wall_us).is_ok());
        }
    }

    #[test]
    fn a_clock_that_is_far_ahead_moves_nothing_at_first_and_the_message_says_what_to_do() {
        let trusted = ClockState::new(NOW_US);
        for wall_us in [NOW_US + DAY_US + 1, NOW_US + 400 * DAY_US, i64::MAX] {
            let next = trusted.next(observed(wall_us, 0));
            assert_eq!((next.trusted_us, next.doubted_us), (NOW_US, 1), "{wall_us}");
            let text = next.verdict(wall_us).unwrap_err().to_string();
            assert!(text.contains("set it") && text.contains("11 h 59 min"), "{text}");
            // Time passes as ever.
            let later = next.next(observed(wall_us.saturating_add(HOUR_US), HOUR_US));
            assert_eq!((later.trusted_us, later.doubted_us), (NOW_US + HOUR_US, HOUR_US + 1));
        }
        let doubted = ClockState { trusted_us: NOW_US, doubted_us: 5 * HOUR_US };
        assert_eq!(doubted.next(observed(NOW_US, HOUR_US)), ClockState::new(NOW_US), "it was set right");
    }

    #[test]
    fn a_longer_retention_trusts_a_longer_pause() {
        let year = |wall_us| Observed { retention_us: 365 * DAY_US, ..observed(wall_us, 0) };
        let trusted = ClockState::new(NOW_US);
        assert_eq!(trusted.next(year(NOW_US + 45 * DAY_US)).doubted_us, 0);
        assert_eq!(trusted.next(year(NOW_US + 46 * DAY_US)).doubted_us, 1);
    }

    #[test]
    fn a_wrong_clock_deletes_nothing_for_hours_and_a_machine_that_was_off_catches_up_within_two_days() {
        let (running_us, harmless_us) = until_trusted(ClockState::new(NOW_US), 31 * DAY_US, NOW_US);
        assert!((DAY_US..2 * DAY_US).contains(&running_us), "{} h", running_us / HOUR_US);
        let (_, wrong_us) = until_trusted(ClockState::new(NOW_US), 400 * DAY_US, NOW_US);
        for harmless_us in [harmless_us, wrong_us] {
            assert!((11 * HOUR_US..13 * HOUR_US).contains(&harmless_us), "{} h", harmless_us / HOUR_US);
        }
    }

    #[test]
    fn a_time_by_which_nothing_expires_is_trusted_at_once() {
        // A machine without a clock of its own starts in 1970 until it has asked the network.
        assert_eq!(until_trusted(ClockState::new(0), NOW_US, i64::MAX), (0, 0));
        assert_eq!(until_trusted(ClockState::new(0), NOW_US, NOW_US), (0, 0));
    }

    #[test]
    #[cfg(feature = "postgres")]
    fn processes_that_share_a_database_count_the_same_time_once() {
        // Two whose rounds alternate, a third that begins later.
        let mut running_us = 0;
        let mut last = [Some((0, 0)), Some((0, 0)), None];
        for (at, process) in [(5, 0), (7, 1), (8, 2), (10, 0), (12, 1), (13, 2), (60, 2), (60, 0), (61, 1)] {
            if let Some((counted_us, then)) = last[process] {
                running_us += passed_us(running_us, counted_us, at - then);
            }
            last[process] = Some((running_us, at));
            assert!(running_us <= at, "{running_us} of {at}");
        }
        assert!(running_us >= 55, "{running_us} of 61");
        assert_eq!(passed_us(0, 900, 5), 5, "a database that was restored");
        assert_eq!(passed_us(i64::MAX, 0, 5), 0);
    }

    #[test]
    fn restarts_do_not_shorten_the_doubt() {
        let mut state = ClockState::new(NOW_US);
        for _ in 0..1_000 {
            state = state.next(observed(NOW_US + 400 * DAY_US, 0));
        }
        assert_eq!((state.trusted_us, state.doubted_us), (NOW_US, 1));
    }

    #[test]
    fn records_stay_for_whole_days_and_the_newest_day_stays() {
        let (midnight, week) = (20_000 * DAY_US, 7 * DAY_US);
        for now_us in [midnight, midnight + 1, midnight + DAY_US / 2, midnight + DAY_US - 1] {
            for days in [1, 7, 36_500] {
                let kept = horizon(now_us, Some(now_us), days * DAY_US, DAY_US);
                assert_eq!(kept, midnight - days * DAY_US, "{now_us}: {days} days");
            }
        }
        for (newest_us, expected) in [
            (None, midnight - week),
            (Some(midnight - 6 * DAY_US), midnight - week),
            (Some(midnight - 400 * DAY_US + 9), midnight - 400 * DAY_US),
            (Some(midnight + 400 * DAY_US), midnight - week),
            (Some(i64::MAX), midnight - week),
        ] {
            assert_eq!(horizon(midnight, newest_us, week, DAY_US), expected, "{newest_us:?}");
        }
    }

    #[test]
    fn records_expire_by_the_minute_where_they_are_deleted_one_by_one() {
        let day = 20_000 * DAY_US;
        for (expired_us, newest_us, expected) in [
            (day, None, day),
            (day + 59_999_999, None, day),
            (day, Some(day + 5), day),
            (day + 9, Some(day - 1), day - DAY_US),
            (day + 400 * DAY_US, Some(day + 7), day),
            (-1, None, -MINUTE_US),
        ] {
            let found = horizon(expired_us + DAY_US, newest_us, DAY_US, MINUTE_US);
            assert_eq!(found, expected, "{expired_us} {newest_us:?}");
        }
    }
}
