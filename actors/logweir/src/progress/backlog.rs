//! Age of the oldest record in a lane's backlog.
//!
//! Frames carry no times, and reading one back for each poll would cost more than the answer is worth. Therefore the
//! latest sequence number is sampled every second; the first sample above the database's cursor is from a time by
//! which the oldest uncommitted frame existed. This is accurate to one second, or to 0.1 % for a backlog of hours. For a backlog
//! left by an earlier process, the age counts from the start of this one.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

/// Sampling interval.
pub const SAMPLE_EVERY: Duration = Duration::from_secs(1);

/// Maximum number of samples; beyond it every second one is dropped and the interval doubles.
const SAMPLES_MAX: usize = 2048;

/// Samples of one lane: the latest sequence number and its time, both increasing.
#[derive(Debug, Default)]
pub struct Backlog {
    samples: VecDeque<(u64, Instant)>,
    interval: Duration,
}

impl Backlog {
    /// Samples the lane: `latest` is its latest sequence number, and the database has committed all up to `committed`.
    pub fn sample(&mut self, latest: u64, committed: u64, now: Instant) {
        while self.samples.front().is_some_and(|&(seq, _)| seq <= committed) {
            self.samples.pop_front();
        }
        match self.samples.back() {
            None => self.interval = SAMPLE_EVERY,
            Some(&(seq, at)) if latest <= seq || now.saturating_duration_since(at) < self.interval => return,
            Some(_) => {}
        }
        if latest > committed {
            self.samples.push_back((latest, now));
        }
        if self.samples.len() > SAMPLES_MAX {
            let mut keep = false;
            self.samples.retain(|_| {
                keep = !keep;
                keep
            });
            self.interval *= 2;
        }
    }

    /// Age of the oldest frame above `committed`; zero if it was never sampled.
    #[must_use]
    pub fn age(&self, committed: u64, now: Instant) -> Duration {
        let oldest = self.samples.iter().find(|&&(seq, _)| seq > committed);
        oldest.map_or(Duration::ZERO, |&(_, at)| now.saturating_duration_since(at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_age_is_that_of_the_oldest_uncommitted_frame() {
        let (mut backlog, start) = (Backlog::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        for second in 0..10 {
            backlog.sample(10 * (second + 1), 0, at(second));
        }
        for (committed, expect) in [(0, 9), (9, 9), (10, 8), (55, 4), (99, 0), (100, 0), (500, 0)] {
            assert_eq!(backlog.age(committed, at(9)), Duration::from_secs(expect), "{committed}");
        }
        backlog.sample(100, 100, at(10));
        assert_eq!(backlog.age(100, at(1000)), Duration::ZERO);
        backlog.sample(101, 100, at(11));
        backlog.sample(101, 100, at(12));
        assert_eq!(backlog.age(100, at(20)), Duration::from_secs(9));
    }

    #[test]
    fn a_backlog_of_a_day_takes_bounded_memory_and_keeps_its_age() {
        let (mut backlog, start) = (Backlog::default(), Instant::now());
        let day = 86_400;
        for second in 0..day {
            backlog.sample(second + 1, 0, start + Duration::from_secs(second));
        }
        assert!(backlog.samples.len() <= SAMPLES_MAX);
        let now = start + Duration::from_secs(day);
        assert_eq!(backlog.age(0, now), Duration::from_secs(day));
        let half = backlog.age(day / 2, now).as_secs().abs_diff(day / 2);
        assert!(half < day / 500, "off by {half} seconds");
    }
}
