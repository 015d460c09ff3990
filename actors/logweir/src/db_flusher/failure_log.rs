//! Limits how often a lane logs the same failure: once when it starts, then at growing intervals.
//!
//! A lane that cannot reach the database retries several times per second. Logging each attempt would bury other
//! messages.

use std::time::Duration;

use tokio::time::Instant;

/// Interval between the first and the second message about a lasting failure; it doubles with each message.
const INTERVAL_MIN: Duration = Duration::from_secs(10);

/// Longest interval between two messages about a lasting failure.
const INTERVAL_MAX: Duration = Duration::from_secs(300);

/// What failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// Connecting, preparing the schema, acquiring the lease or opening the lane.
    Connect,
    /// Committing a batch.
    Flush,
    /// The lane is stopped until an operator fixes the problem.
    Stopped,
}

/// Decides which failures of a lane are logged.
#[derive(Debug, Default)]
pub(super) struct FailureLog {
    current: Option<Lasting>,
}

#[derive(Debug)]
struct Lasting {
    failure: Failure,
    since: Instant,
    next_at: Instant,
    interval: Duration,
    /// Failures since the last message.
    suppressed: u64,
}

impl FailureLog {
    /// Records a failure. Returns the number of failures suppressed since the last message if this one is to be logged:
    /// it is the first of its kind, or the interval has passed.
    pub(super) fn failed(&mut self, failure: Failure, now: Instant) -> Option<u64> {
        match &mut self.current {
            Some(lasting) if lasting.failure == failure => {
                if now < lasting.next_at {
                    lasting.suppressed += 1;
                    return None;
                }
                lasting.interval = (lasting.interval * 2).min(INTERVAL_MAX);
                lasting.next_at = now + lasting.interval;
                Some(std::mem::take(&mut lasting.suppressed))
            }
            current => {
                let since = current.as_ref().map_or(now, |lasting| lasting.since);
                let next_at = now + INTERVAL_MIN;
                *current = Some(Lasting { failure, since, next_at, interval: INTERVAL_MIN, suppressed: 0 });
                Some(0)
            }
        }
    }

    /// Records a success. Returns how long the failure before it lasted, if there was one.
    pub(super) fn succeeded(&mut self, now: Instant) -> Option<Duration> {
        self.current.take().map(|lasting| now - lasting.since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lasting_failure_is_logged_once_and_then_at_growing_intervals() {
        let mut log = FailureLog::default();
        let start = Instant::now();
        let mut logged_at = Vec::new();
        for tenth in 0..6_000 {
            let now = start + Duration::from_millis(100 * tenth);
            if log.failed(Failure::Connect, now).is_some() {
                logged_at.push(tenth / 10);
            }
        }
        assert_eq!(logged_at, [0, 10, 30, 70, 150, 310], "seconds");
    }

    #[test]
    fn another_kind_of_failure_is_logged_at_once() {
        let mut log = FailureLog::default();
        let now = Instant::now();
        assert_eq!(log.failed(Failure::Connect, now), Some(0));
        assert_eq!(log.failed(Failure::Connect, now), None);
        assert_eq!(log.failed(Failure::Stopped, now), Some(0));
        assert_eq!(log.failed(Failure::Flush, now), Some(0));
    }

    #[test]
    fn a_success_reports_the_duration_and_resets_the_interval() {
        let mut log = FailureLog::default();
        let start = Instant::now();
        assert_eq!(log.succeeded(start), None);
        log.failed(Failure::Connect, start);
        log.failed(Failure::Flush, start + Duration::from_secs(1));
        let later = start + Duration::from_secs(4);
        assert_eq!(log.succeeded(later), Some(Duration::from_secs(4)));
        assert_eq!(log.failed(Failure::Flush, later), Some(0));
    }

    #[test]
    fn suppressed_failures_are_counted() {
        let mut log = FailureLog::default();
        let start = Instant::now();
        for _ in 0..8 {
            log.failed(Failure::Connect, start);
        }
        assert_eq!(log.failed(Failure::Connect, start + INTERVAL_MIN), Some(7));
    }
}
