//! When the records of a lane arrived.
//!
//! The number of records is sampled every second: records above a sample arrived after it. Old samples become sparse, so
//! that the memory is bounded: a time is known to within a few percent of its age.

use std::collections::VecDeque;

/// Maximum number of samples. With the distance below, it is enough for decades.
const SAMPLES_MAX: usize = 1536;

/// Beyond the maximum, samples stay that are at least this fraction of their age apart.
const APART: i64 = 64;

/// Samples of one lane: the number of its records and the time, both increasing.
#[derive(Debug, Default)]
pub struct Arrivals(VecDeque<(u64, i64)>);

impl Arrivals {
    /// Samples the lane: it has `records` at `now_us`, in microseconds since 1970.
    pub fn sample(&mut self, records: u64, now_us: i64) {
        // The clock was set back: those times have not been.
        while self.0.back().is_some_and(|&(_, at_us)| at_us > now_us) {
            self.0.pop_back();
        }
        if let Some((latest, at_us)) = self.0.back_mut() {
            if *latest == records {
                *at_us = now_us;
                return;
            }
            if *latest > records {
                // Another journal.
                self.0.clear();
            }
        }
        self.0.push_back((records, now_us));
        if self.0.len() > SAMPLES_MAX {
            let mut kept_us = i64::MIN;
            self.0.retain(|&(_, at_us)| {
                let keep = at_us.saturating_sub(kept_us) >= (now_us - at_us) / APART;
                if keep {
                    kept_us = at_us;
                }
                keep
            });
            self.0.truncate(SAMPLES_MAX); // a clock that was set ahead
        }
    }

    /// The latest time at which the lane had no more than `records`; `None` if that was before the first sample.
    #[must_use]
    pub fn until(&self, records: u64) -> Option<i64> {
        let later = self.0.partition_point(|&(sampled, _)| sampled <= records);
        later.checked_sub(1).and_then(|at| self.0.get(at)).map(|&(_, at_us)| at_us)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_arrived_after_the_last_sample_without_it() {
        let mut arrivals = Arrivals::default();
        assert_eq!(arrivals.until(0), None);
        for (records, at_us) in [(10, 1), (10, 2), (10, 3), (15, 4), (40, 5), (40, 6)] {
            arrivals.sample(records, at_us);
        }
        for (records, until) in [(9, None), (10, Some(3)), (14, Some(3)), (15, Some(4)), (39, Some(4)), (99, Some(6))] {
            assert_eq!(arrivals.until(records), until, "{records}");
        }
    }

    #[test]
    fn a_clock_that_goes_ahead_and_back_leaves_no_time_to_come() {
        let mut arrivals = Arrivals::default();
        for (records, at_us) in [(10, 1), (20, 2), (30, 90_000), (30, 90_001), (30, 3), (40, 4)] {
            arrivals.sample(records, at_us);
        }
        for (records, until) in [(10, Some(1)), (29, Some(2)), (30, Some(3)), (99, Some(4))] {
            assert_eq!(arrivals.until(records), until, "{records}");
        }
    }

    #[test]
    fn a_day_of_samples_takes_bounded_memory() {
        let mut arrivals = Arrivals::default();
        let day = 86_400;
        for second in 0..day {
            arrivals.sample(second, second.cast_signed() * 1_000_000);
        }
        assert!(arrivals.0.len() <= SAMPLES_MAX);
        for age in [10, 600, 7_200, day / 2, day - 3_600] {
            let until = arrivals.until(day - age).unwrap().cast_unsigned() / 1_000_000;
            assert!(until <= day - age && day - age - until <= age / 16, "{age}: {until}");
        }
    }
}
