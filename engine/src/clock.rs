//! The only place that reads the clocks of the system, as two types: [`WallTime`] says when something happened, an
//! [`Instant`] how long something takes. A wall clock is set while the program runs, so no elapsed time follows from it,
//! and a `WallTime` cannot be subtracted.
//!
//! Pure code takes the time as an argument; [`Instant`] is tokio's, which follows a paused clock in tests.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

/// A reading of the wall clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WallTime(i64);

impl WallTime {
    /// From microseconds since 1970-01-01 00:00 UTC.
    #[must_use]
    pub const fn from_us(us: i64) -> Self {
        Self(us)
    }

    /// Microseconds since 1970-01-01 00:00 UTC; negative before.
    #[must_use]
    pub const fn us(self) -> i64 {
        self.0
    }
}

/// Both clocks.
pub trait Clock: 'static {
    /// When it is. May jump in both directions.
    fn wall(&self) -> WallTime;

    /// For elapsed time. Never goes back.
    fn monotonic(&self) -> Instant;
}

/// The clocks of the system.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "the only reader of the wall clock")]
    fn wall(&self) -> WallTime {
        let micros = |duration: Duration| i64::try_from(duration.as_micros()).unwrap_or(i64::MAX);
        WallTime(match SystemTime::now().duration_since(UNIX_EPOCH) {
            Ok(since) => micros(since),
            Err(before) => -micros(before.duration()),
        })
    }

    fn monotonic(&self) -> Instant {
        Instant::now()
    }
}

/// Returns the wall-clock time in microseconds since 1970-01-01 00:00 UTC; negative before.
#[must_use]
pub fn wall_us() -> i64 {
    SystemClock.wall().us()
}

/// Deviation that is corrected at once: what a time service does to a clock that drifts.
const DRIFT_MAX_US: i64 = 1_000_000;
/// How long the wall clock must deviate by more than that before it is believed.
const BELIEVED_AFTER: Duration = Duration::from_mins(1);

/// Wall time that advances with the monotonic clock: a wall clock that jumps and comes back changes nothing. One that
/// was set for good is followed after a minute. Pure: both times are arguments.
#[derive(Clone, Copy, Debug)]
pub struct SteadyTime {
    wall_us: i64,
    at: Instant,
    deviates_since: Option<Instant>,
}

/// A reading of [`SteadyTime`], in microseconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    /// Time has passed since the last reading.
    Passed(i64),
    /// The wall clock was set, so that this reading cannot be compared with the last one.
    Set(i64),
}

impl SteadyTime {
    /// Begins at `wall`.
    #[must_use]
    pub fn new(wall: WallTime, now: Instant) -> Self {
        Self { wall_us: wall.us(), at: now, deviates_since: None }
    }

    /// The time at `now`, when the wall clock shows `wall`.
    pub fn read(&mut self, wall: WallTime, now: Instant) -> Reading {
        let passed_us = i64::try_from(now.saturating_duration_since(self.at).as_micros()).unwrap_or(i64::MAX);
        let steady_us = self.wall_us.saturating_add(passed_us);
        if wall.us().abs_diff(steady_us) <= DRIFT_MAX_US.unsigned_abs() {
            *self = Self::new(wall, now);
            return Reading::Passed(wall.us());
        }
        let since = *self.deviates_since.get_or_insert(now);
        if now.saturating_duration_since(since) < BELIEVED_AFTER {
            return Reading::Passed(steady_us);
        }
        *self = Self::new(wall, now);
        Reading::Set(wall.us())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: i64 = 1_000_000;
    const DAY: i64 = 86_400 * S;

    /// Feeds `(seconds since the start, deviation of the wall clock)` and returns the readings.
    fn read(start_us: i64, steps: &[(u64, i64)]) -> Vec<Reading> {
        let start = Instant::now();
        let mut steady = SteadyTime::new(WallTime::from_us(start_us), start);
        let wall = |at_s: u64, off_us: i64| WallTime::from_us(start_us + at_s.cast_signed() * S + off_us);
        steps.iter().map(|&(at_s, off_us)| steady.read(wall(at_s, off_us), start + Duration::from_secs(at_s))).collect()
    }

    #[test]
    fn a_clock_that_goes_ahead_and_back_changes_nothing() {
        use Reading::Passed;
        let steps: [(u64, i64); 8] = [(1, 0), (2, DAY), (30, DAY), (31, -DAY), (32, 0), (33, DAY), (92, DAY), (93, 0)];
        let expected = steps.map(|(at_s, _)| Passed(at_s.cast_signed() * S));
        assert_eq!(read(0, &steps), expected);
    }

    #[test]
    fn a_clock_that_was_set_is_followed_after_a_minute() {
        use Reading::{Passed, Set};
        let steps = [(10, DAY), (69, DAY), (70, DAY), (71, DAY)];
        assert_eq!(read(0, &steps), [Passed(10 * S), Passed(69 * S), Set(70 * S + DAY), Passed(71 * S + DAY)]);
        let steps = [(10, -DAY), (70, -DAY), (71, -DAY)];
        assert_eq!(read(DAY, &steps), [Passed(10 * S + DAY), Set(70 * S), Passed(71 * S)]);
    }

    #[test]
    fn a_drift_is_followed_at_once() {
        let steps: Vec<_> = (1..1_000_u64).map(|at_s| (at_s, at_s.cast_signed() * S / 2)).collect();
        let expected: Vec<_> = steps.iter().map(|(at_s, off)| Reading::Passed(at_s.cast_signed() * S + off)).collect();
        assert_eq!(read(0, &steps), expected);
    }

    #[test]
    fn extreme_readings_do_not_overflow() {
        let (start, mut steady) = (Instant::now(), SteadyTime::new(WallTime::from_us(i64::MAX - 5), Instant::now()));
        for wall in [i64::MIN, i64::MAX, 0] {
            for at in [1, 100, 200] {
                steady.read(WallTime::from_us(wall), start + Duration::from_secs(at));
            }
        }
    }
}
