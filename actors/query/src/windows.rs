//! Counts over overlapping windows, computed from counts over steps that do not overlap.
//!
//! ```text
//!  steps     |  |  |  |  |  |  |  |  |       greatest common divisor of step and window
//!  windows   [--------)                      `count_over_time(… [window])` at each point: the window before it
//!                  [--------)
//! ```
//! Points are multiples of the step, so that a graph that is refreshed a second later is the same.

use crate::page::Range;

/// Maximum number of steps per request, equal to Prometheus' limit on points.
pub const STEPS_MAX: i64 = 11_000;

/// Part lengths for a single window in microseconds, longest first.
const PARTS_US: [i64; 13] = [
    86_400_000_000,
    3_600_000_000,
    600_000_000,
    300_000_000,
    60_000_000,
    10_000_000,
    5_000_000,
    1_000_000,
    500_000,
    100_000,
    50_000,
    10_000,
    1_000,
];
/// Minimum number of parts in a single window: its end is rounded up by at most one of them.
const PARTS_MIN: i64 = 200;

/// The windows to count, and the parts to count them from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Windows {
    /// The first point, in microseconds since the Unix epoch.
    pub first_us: i64,
    /// Distance between points, in microseconds.
    pub step_us: i64,
    /// Number of points.
    pub points: usize,
    /// Length of the window before each point, in microseconds.
    pub window_us: i64,
    /// Length of the parts that are counted; divides step and window.
    pub part_us: i64,
}

impl Windows {
    /// A window of `window_us` at each multiple of `step_us` in `range`, including its end; both in microseconds.
    ///
    /// # Errors
    /// There would be more than [`STEPS_MAX`] parts.
    pub fn over(range: Range, step_us: i64, window_us: i64) -> Result<Self, String> {
        let (step_us, window_us) = (step_us.max(1_000), window_us.max(1_000));
        let first_us = range.start_us.div_euclid(step_us).saturating_mul(step_us);
        let points = (range.end_us - first_us) / step_us + 1;
        let part_us = common(step_us, window_us);
        let parts = (points.saturating_mul(step_us) + window_us) / part_us;
        if parts > STEPS_MAX {
            return Err(format!(
                "too many steps: {parts} exceed the limit of {STEPS_MAX}; use a shorter range, a longer step, or a window \
                 that is a multiple of the step"
            ));
        }
        Ok(Self { first_us, step_us, points: usize::try_from(points).unwrap_or(0), window_us, part_us })
    }

    /// A single window of `window_us` microseconds that ends at `at_us` (since the Unix epoch). The end is rounded up to
    /// the next part, which is at most 0.5 % of the window. If the length of the window is not a multiple of any part
    /// length, it is extended by less than one part.
    #[must_use]
    pub fn at(at_us: i64, window_us: i64) -> Self {
        let window_us = window_us.max(1_000);
        let enough = |part_us: &&i64| window_us / **part_us >= PARTS_MIN;
        let divides = |part_us: &&i64| window_us % **part_us == 0 && window_us / **part_us <= STEPS_MAX;
        let part_us = PARTS_US.iter().filter(enough).find(divides).or(PARTS_US.iter().find(enough)).copied();
        let part_us = part_us.unwrap_or(PARTS_US[PARTS_US.len() - 1]);
        let upwards = |us: i64| -(-us).div_euclid(part_us) * part_us;
        let (first_us, window_us) = (upwards(at_us), upwards(window_us));
        Self { first_us, step_us: window_us, points: 1, window_us, part_us }
    }

    /// The range to count, from the start of the first window to the end of the last one.
    #[must_use]
    pub fn range(&self) -> Range {
        let last = i64::try_from(self.points).unwrap_or(i64::MAX).saturating_sub(1).saturating_mul(self.step_us);
        Range { start_us: self.first_us - self.window_us, end_us: self.first_us.saturating_add(last) }
    }

    /// Sums the counts of the parts of [`Windows::range`] for each window.
    #[must_use]
    pub fn sums(&self, parts: &[u64]) -> Vec<u64> {
        let (width, step) = (self.parts(self.window_us), self.parts(self.step_us));
        // Prefix sums: the count of a window is the difference of two of them.
        let mut up_to = Vec::with_capacity(parts.len() + 1);
        up_to.push(0_u64);
        for count in parts {
            up_to.push(up_to.last().copied().unwrap_or(0) + count);
        }
        let upto = |part: usize| up_to[part.min(parts.len())];
        (0..self.points).map(|point| upto(point * step + width) - upto(point * step)).collect()
    }

    /// The time of a point, in microseconds since the Unix epoch.
    #[must_use]
    pub fn point_us(&self, point: usize) -> i64 {
        self.first_us + i64::try_from(point).unwrap_or(0) * self.step_us
    }

    fn parts(&self, us: i64) -> usize {
        usize::try_from(us / self.part_us).unwrap_or(0)
    }
}

/// Greatest common divisor.
fn common(a: i64, b: i64) -> i64 {
    if b == 0 { a } else { common(b, a % b) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: i64 = 1_000_000;

    #[test]
    fn points_are_multiples_of_the_step_and_end_their_windows() {
        let windows = Windows::over(Range { start_us: 95 * SECOND, end_us: 130 * SECOND }, 10 * SECOND, 15 * SECOND);
        let windows = windows.unwrap();
        assert_eq!((windows.first_us, windows.points, windows.part_us), (90 * SECOND, 5, 5 * SECOND));
        assert_eq!(windows.range(), Range { start_us: 75 * SECOND, end_us: 130 * SECOND });
        // One record in each part gives three in each window.
        assert_eq!(windows.sums(&[1; 11]), [3, 3, 3, 3, 3]);
        assert_eq!(windows.sums(&[1, 0, 0, 2, 0, 0, 0, 0, 0, 0, 9]), [1, 2, 0, 0, 9]);
        assert_eq!(windows.point_us(4), 130 * SECOND);
    }

    #[test]
    fn a_single_window_ends_at_the_given_time() {
        for (window_ms, part_ms, counted_ms) in [
            (300_000, 1_000, 300_000),
            (1_501_000, 1_000, 1_501_000),
            (3_600_000, 10_000, 3_600_000),
            (86_400_000, 300_000, 86_400_000),
            (86_401_000, 300_000, 86_700_000),
            (30 * 86_400_000, 3_600_000, 30 * 86_400_000),
            (60_000, 100, 60_000),
            (5, 1, 5),
        ] {
            let at_us = 1_000_000_007 * SECOND - 1;
            let windows = Windows::at(at_us, window_ms * 1_000);
            assert_eq!((windows.part_us, windows.window_us), (part_ms * 1_000, counted_ms * 1_000), "{window_ms}");
            assert!((0..windows.part_us).contains(&(windows.first_us - at_us)));
            let range = windows.range();
            assert_eq!(range.end_us - range.start_us, counted_ms * 1_000);
            assert_eq!(windows.sums(&vec![1; usize::try_from(counted_ms / part_ms).unwrap()]).len(), 1);
        }
    }

    #[test]
    fn too_many_steps_are_rejected() {
        let day = Range { start_us: 0, end_us: 86_400 * SECOND };
        assert!(Windows::over(day, SECOND, 60 * SECOND).is_err());
        assert!(Windows::over(day, 10 * SECOND, 60 * SECOND).is_ok());
        assert!(Windows::over(day, 60 * SECOND, 61 * SECOND).is_err(), "the parts would have one second");
    }

    proptest! {
        /// Compared with counting each record in each window.
        #[test]
        fn sums_equal_direct_counts(
            records in proptest::collection::vec(0_i64..100, 0..50), start in 20_i64..50, length in 0_i64..50,
            step in 1_i64..12, window in 1_i64..20,
        ) {
            let range = Range { start_us: start * SECOND, end_us: (start + length) * SECOND };
            let windows = Windows::over(range, step * SECOND, window * SECOND).unwrap();
            let counted = windows.range();
            let mut parts = vec![0_u64; usize::try_from((counted.end_us - counted.start_us) / windows.part_us).unwrap()];
            for at in records.iter().map(|at| at * SECOND).filter(|at| counted.holds(*at)) {
                parts[usize::try_from((at - counted.start_us) / windows.part_us).unwrap()] += 1;
            }
            for (point, sum) in windows.sums(&parts).into_iter().enumerate() {
                let end = windows.point_us(point);
                let window = Range { start_us: end - windows.window_us, end_us: end };
                let expect = records.iter().filter(|at| window.holds(**at * SECOND)).count() as u64;
                prop_assert_eq!(sum, expect);
            }
        }
    }
}
