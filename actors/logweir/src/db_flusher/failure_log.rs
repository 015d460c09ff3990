//! Limits how often the process logs the same failure: once when it starts, then at growing intervals.
//!
//! Every lane meets the failure of a database, several times per second. Logging each attempt of each lane would bury
//! other messages, so all lanes share one log. Two failures have the same cause if their texts differ in numbers only
//! (times, ports, process ids).

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use logweir_engine::journal::LaneId;
use tokio::time::Instant;

/// Interval between the first and the second message about a lasting failure; it doubles with each message.
const INTERVAL_MIN: Duration = Duration::from_secs(10);

/// Longest interval between two messages about a lasting failure. A failure that has not been seen for as long is new.
const INTERVAL_MAX: Duration = Duration::from_secs(300);

/// Causes that are remembered; one that appears beyond them replaces the one that was seen least recently.
const CAUSES_MAX: usize = 64;

/// What failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Failure {
    /// Connecting, preparing the schema, acquiring the lease or opening the lane.
    Connect,
    /// Committing a batch.
    Flush,
    /// The server refuses records.
    Refused,
    /// The lane is stopped until an operator fixes the problem.
    Stopped,
}

/// Decides which failures are logged.
#[derive(Debug, Default)]
pub(super) struct FailureLog {
    causes: HashMap<(Failure, String), Lasting>,
    /// The lanes that fail now, since when.
    lanes: BTreeMap<LaneId, Instant>,
}

#[derive(Debug)]
struct Lasting {
    seen: Instant,
    next_at: Instant,
    interval: Duration,
    /// Failures since the last message.
    suppressed: u64,
}

impl FailureLog {
    /// Records a failure of `lane`. Returns the number of failures suppressed since the last message if this one is to
    /// be logged: it is the first with this cause, or the interval has passed.
    pub(super) fn failed(&mut self, lane: LaneId, failure: Failure, text: &str, now: Instant) -> Option<u64> {
        if failure != Failure::Refused {
            self.lanes.entry(lane).or_insert(now);
        }
        let cause = (failure, text.chars().filter(|c| !c.is_ascii_digit()).collect());
        if let Some(lasting) = self.causes.get_mut(&cause)
            && now.saturating_duration_since(lasting.seen) <= INTERVAL_MAX
        {
            lasting.seen = now;
            if now < lasting.next_at {
                lasting.suppressed += 1;
                return None;
            }
            lasting.interval = (lasting.interval * 2).min(INTERVAL_MAX);
            lasting.next_at = now + lasting.interval;
            return Some(std::mem::take(&mut lasting.suppressed));
        }
        if self.causes.len() >= CAUSES_MAX
            && let Some(oldest) = self.causes.iter().min_by_key(|(_, lasting)| lasting.seen)
        {
            let oldest = oldest.0.clone();
            self.causes.remove(&oldest);
        }
        let lasting = Lasting { seen: now, next_at: now + INTERVAL_MIN, interval: INTERVAL_MIN, suppressed: 0 };
        self.causes.insert(cause, lasting);
        Some(0)
    }

    /// Records a success of `lane`. Returns how long the failure before it lasted, if there was one. The next failure
    /// after the last lane has recovered is logged at once.
    pub(super) fn succeeded(&mut self, lane: LaneId, now: Instant) -> Option<Duration> {
        let since = self.lanes.remove(&lane)?;
        if self.lanes.is_empty() {
            self.causes.retain(|(failure, _), _| *failure == Failure::Refused);
        }
        Some(now.saturating_duration_since(since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lasting_failure_of_all_lanes_is_logged_once_and_then_at_growing_intervals() {
        let mut log = FailureLog::default();
        let start = Instant::now();
        let mut logged_at = Vec::new();
        for tenth in 0..6_000 {
            let now = start + Duration::from_millis(100 * tenth);
            for lane in 0..4 {
                if log.failed(lane, Failure::Connect, &format!("port {}: refused", 40_000 + tenth), now).is_some() {
                    logged_at.push(tenth / 10);
                }
            }
        }
        assert_eq!(logged_at, [0, 10, 30, 70, 150, 310], "seconds");
    }

    #[test]
    fn another_cause_is_logged_at_once_and_does_not_reset_the_first() {
        let mut log = FailureLog::default();
        let now = Instant::now();
        assert_eq!(log.failed(0, Failure::Connect, "refused", now), Some(0));
        assert_eq!(log.failed(0, Failure::Stopped, "no table", now), Some(0));
        assert_eq!(log.failed(0, Failure::Connect, "refused", now), None);
        assert_eq!(log.failed(0, Failure::Connect, "no route", now), Some(0));
        assert_eq!(log.failed(1, Failure::Stopped, "no table", now), None);
    }

    #[test]
    fn the_recovery_of_the_last_lane_resets_the_intervals() {
        let mut log = FailureLog::default();
        let start = Instant::now();
        assert_eq!(log.succeeded(0, start), None);
        log.failed(0, Failure::Connect, "refused", start);
        log.failed(1, Failure::Connect, "refused", start + Duration::from_secs(1));
        let later = start + Duration::from_secs(4);
        assert_eq!(log.succeeded(0, later), Some(Duration::from_secs(4)));
        assert_eq!(log.failed(0, Failure::Connect, "refused", later), None, "lane 1 still fails");
        log.succeeded(0, later);
        assert_eq!(log.succeeded(1, later), Some(Duration::from_secs(3)));
        assert_eq!(log.failed(0, Failure::Connect, "refused", later), Some(0));
    }

    #[test]
    fn suppressed_failures_are_counted_and_causes_are_bounded() {
        let mut log = FailureLog::default();
        let start = Instant::now();
        for lane in 0..8 {
            log.failed(lane, Failure::Connect, "refused", start);
        }
        assert_eq!(log.failed(0, Failure::Connect, "refused", start + INTERVAL_MIN), Some(7));
        for cause in 0..1000_u32 {
            let text: String = cause.to_string().bytes().map(|digit| char::from(digit - b'0' + b'a')).collect();
            log.failed(0, Failure::Refused, &text, start + INTERVAL_MIN);
        }
        assert!(log.causes.len() <= CAUSES_MAX);
    }
}
