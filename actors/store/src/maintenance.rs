//! Maintenance: steps that keep the tables in order beside the flushes. Each may fail alone; none decides whether records
//! are stored.

use crate::error::StoreError;

/// The outcome of one step of a round of maintenance.
#[derive(Debug)]
pub struct MaintenanceStep {
    /// The step's name: a value of the metrics' label `step`.
    pub name: &'static str,
    /// Whether it is done, or why not.
    pub result: Result<(), StoreError>,
}

impl MaintenanceStep {
    /// The outcome of the step `name`.
    #[must_use]
    pub fn new(name: &'static str, result: Result<(), StoreError>) -> Self {
        Self { name, result }
    }
}

/// Days counted from 1970-01-01 before which records have expired, and what decides it. Pure.
#[cfg(feature = "postgres")]
pub(crate) mod horizon {
    use logweir_record::timestamp::DAY_US;

    /// Greatest difference between the database's clock and this process's at which records are deleted. More than the
    /// time that a connection may take, less than anything that matters to a retention in days.
    pub(crate) const CLOCKS_APART_MAX_US: i64 = 5 * 60 * 1_000_000;

    /// Checks that two clocks agree.
    ///
    /// # Errors
    /// By how much they differ, and what to do.
    pub(crate) fn clocks_agree(database_us: i64, process_us: i64) -> Result<(), String> {
        let apart_us = database_us.abs_diff(process_us);
        if apart_us <= CLOCKS_APART_MAX_US.unsigned_abs() {
            return Ok(());
        }
        let (apart_s, which) = (apart_us / 1_000_000, if process_us > database_us { "ahead of" } else { "behind" });
        Err(format!(
            "this process's clock is {apart_s} s {which} the database's, so nothing is deleted: set the clock that is wrong \
             (NTP, chrony); retention then continues by itself"
        ))
    }

    /// The first day whose records stay: `retention_days` before the day of the trusted time. `None` keeps everything.
    ///
    /// `newest_us` is the time of the newest record that is not in the future. Its day stays, however old it is.
    pub(crate) fn first_day_kept(trusted_us: i64, newest_us: Option<i64>, retention_days: u32) -> Option<i64> {
        if retention_days == 0 {
            return None;
        }
        let oldest = trusted_us.div_euclid(DAY_US) - i64::from(retention_days);
        Some(newest_us.map_or(oldest, |newest_us| oldest.min(newest_us.div_euclid(DAY_US))))
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        const TODAY: i64 = 20_000;
        const NOW: i64 = TODAY * DAY_US + DAY_US / 2;
        const MINUTE: i64 = 60 * 1_000_000;

        #[test]
        fn clocks_that_differ_by_more_than_minutes_do_not_agree() {
            for process_us in [NOW, NOW - 4 * MINUTE, NOW + 5 * MINUTE] {
                assert_eq!(clocks_agree(NOW, process_us), Ok(()));
            }
            for (process_us, expected) in [
                (NOW + 6 * MINUTE, "360 s ahead of the database's"),
                (NOW - 400 * DAY_US, "34560000 s behind the database's"),
                (NOW + 400 * DAY_US, "34560000 s ahead of the database's"),
                (i64::MAX, "ahead of"),
                (i64::MIN, "behind"),
            ] {
                let error = clocks_agree(NOW, process_us).unwrap_err();
                assert!(error.contains(expected) && error.contains("nothing is deleted"), "{error}");
            }
        }

        #[test]
        fn records_stay_for_whole_days() {
            assert_eq!(first_day_kept(NOW, Some(NOW), 0), None, "0 keeps everything");
            for (retention_days, expected) in [(1, TODAY - 1), (7, TODAY - 7), (36_500, TODAY - 36_500)] {
                assert_eq!(first_day_kept(NOW, Some(NOW), retention_days), Some(expected));
                assert_eq!(first_day_kept(TODAY * DAY_US, Some(NOW), retention_days), Some(expected), "at midnight");
                assert_eq!(first_day_kept(TODAY * DAY_US + DAY_US - 1, Some(NOW), retention_days), Some(expected));
            }
        }

        #[test]
        fn the_newest_day_stays_and_absurd_times_move_nothing() {
            for (newest_us, expected) in [
                (None, TODAY - 7),
                (Some(NOW - 6 * DAY_US), TODAY - 7),
                (Some(NOW - 400 * DAY_US), TODAY - 400),
                (Some(NOW + 400 * DAY_US), TODAY - 7),
                (Some(i64::MAX), TODAY - 7),
            ] {
                assert_eq!(first_day_kept(NOW, newest_us, 7), Some(expected), "{newest_us:?}");
            }
        }
    }
}
