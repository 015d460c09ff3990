//! How long the oldest record of a lane's backlog has been waiting.
//!
//! The journal's frames have no times, and reading one back for each look would cost more than the answer is worth. So
//! each second the newest number is noted; the first note above the database's cursor says when the oldest frame that
//! is not settled was there already. That is true to a second, and of a backlog of hours to a thousandth.
//! What an earlier process had left counts from this one's start.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

/// How often the newest numbers are noted.
pub const NOTE_EVERY: Duration = Duration::from_secs(1);

/// Notes that are kept; then every second one goes, and new ones are twice as far apart.
const NOTES_MAX: usize = 2048;

/// One lane's notes: a frame's number and when it was the newest, both rising.
#[derive(Debug, Default)]
pub struct Backlog {
    notes: VecDeque<(u64, Instant)>,
    apart: Duration,
}

impl Backlog {
    /// `newest` is the lane's newest frame now, and the database has all up to `settled`.
    pub fn note(&mut self, newest: u64, settled: u64, now: Instant) {
        while self.notes.front().is_some_and(|&(seq, _)| seq <= settled) {
            self.notes.pop_front();
        }
        match self.notes.back() {
            None => self.apart = NOTE_EVERY,
            Some(&(seq, at)) if newest <= seq || now.saturating_duration_since(at) < self.apart => return,
            Some(_) => {}
        }
        if newest > settled {
            self.notes.push_back((newest, now));
        }
        if self.notes.len() > NOTES_MAX {
            let mut keep = false;
            self.notes.retain(|_| {
                keep = !keep;
                keep
            });
            self.apart *= 2;
        }
    }

    /// How long the oldest frame above `settled` has been there; nothing where none was noted.
    #[must_use]
    pub fn age(&self, settled: u64, now: Instant) -> Duration {
        let oldest = self.notes.iter().find(|&&(seq, _)| seq > settled);
        oldest.map_or(Duration::ZERO, |&(_, at)| now.saturating_duration_since(at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_frame_that_is_not_settled_says_the_age() {
        let (mut backlog, start) = (Backlog::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        for second in 0..10 {
            backlog.note(10 * (second + 1), 0, at(second));
        }
        for (settled, expect) in [(0, 9), (9, 9), (10, 8), (55, 4), (99, 0), (100, 0), (500, 0)] {
            assert_eq!(backlog.age(settled, at(9)), Duration::from_secs(expect), "{settled}");
        }
        backlog.note(100, 100, at(10));
        assert_eq!(backlog.age(100, at(1000)), Duration::ZERO);
        backlog.note(101, 100, at(11));
        backlog.note(101, 100, at(12));
        assert_eq!(backlog.age(100, at(20)), Duration::from_secs(9));
    }

    #[test]
    fn a_day_of_backlog_takes_no_more_room_and_keeps_its_age() {
        let (mut backlog, start) = (Backlog::default(), Instant::now());
        let day = 86_400;
        for second in 0..day {
            backlog.note(second + 1, 0, start + Duration::from_secs(second));
        }
        assert!(backlog.notes.len() <= NOTES_MAX);
        let now = start + Duration::from_secs(day);
        assert_eq!(backlog.age(0, now), Duration::from_secs(day));
        let half = backlog.age(day / 2, now).as_secs().abs_diff(day / 2);
        assert!(half < day / 500, "{half} seconds beside it");
    }
}
