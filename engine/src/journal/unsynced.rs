//! When the frames that are not durable yet were appended: the age of the oldest one shows a disk that does not answer.
//!
//! Appends of the same [`RESOLUTION`] share an entry, so that a queue of thousands of frames costs a few entries.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// By how much the age of an append can be overstated.
const RESOLUTION: Duration = Duration::from_millis(50);

/// The appends that are not durable. Pure: the time is an argument.
#[derive(Clone, Debug, Default)]
pub(super) struct Unsynced {
    /// The first sequence number of each entry and when it was appended, both ascending.
    entries: VecDeque<(u64, Instant)>,
}

impl Unsynced {
    /// The frame `seq` was appended.
    pub(super) fn append(&mut self, seq: u64, now: Instant) {
        if self.entries.back().is_none_or(|(_, since)| now.saturating_duration_since(*since) >= RESOLUTION) {
            self.entries.push_back((seq, now));
        }
    }

    /// Everything up to `durable` is durable; `last` is the last frame that was appended, or that was not rolled back.
    pub(super) fn advance(&mut self, durable: u64, last: u64) {
        if durable >= last {
            return self.entries.clear();
        }
        while self.entries.get(1).is_some_and(|(first, _)| *first <= durable + 1) {
            self.entries.pop_front();
        }
    }

    /// The age of the oldest append that is not durable; zero if there is none.
    pub(super) fn oldest_age(&self, now: Instant) -> Duration {
        self.entries.front().map_or(Duration::ZERO, |(_, since)| now.saturating_duration_since(*since))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_age_is_that_of_the_oldest_append_and_ends_when_all_are_durable() {
        let (mut unsynced, start) = (Unsynced::default(), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        assert_eq!(unsynced.oldest_age(at(1_000)), Duration::ZERO);
        unsynced.append(1, at(0));
        unsynced.append(2, at(1));
        unsynced.append(3, at(500));
        assert_eq!(unsynced.oldest_age(at(1_000)), Duration::from_secs(1));
        unsynced.advance(2, 3);
        assert_eq!(unsynced.oldest_age(at(1_000)), Duration::from_millis(500));
        unsynced.advance(3, 3);
        assert_eq!(unsynced.oldest_age(at(9_000)), Duration::ZERO);
        // A full disk voids what was appended.
        unsynced.append(4, at(2_000));
        unsynced.advance(3, 3);
        assert_eq!(unsynced.oldest_age(at(9_000)), Duration::ZERO);
    }

    proptest! {
        /// Compared with a list of all appends.
        #[test]
        fn the_age_is_never_too_small_and_too_large_by_the_resolution_at_most(
            steps in prop::collection::vec((0_u64..40, any::<bool>(), 1_u64..30), 1..200),
        ) {
            let (mut unsynced, mut all, start) = (Unsynced::default(), VecDeque::new(), Instant::now());
            let (mut now, mut last, mut durable) = (start, 0, 0);
            for (pause_ms, appends, count) in steps {
                now += Duration::from_millis(pause_ms);
                if appends {
                    last += 1;
                    unsynced.append(last, now);
                    all.push_back((last, now));
                } else {
                    durable = last.min(durable + count);
                    unsynced.advance(durable, last);
                    all.retain(|(seq, _)| *seq > durable);
                }
                let exact = all.front().map_or(Duration::ZERO, |(_, since)| now.duration_since(*since));
                let age = unsynced.oldest_age(now);
                prop_assert!(age >= exact && age < exact + RESOLUTION, "{age:?} for {exact:?}");
            }
        }
    }
}
