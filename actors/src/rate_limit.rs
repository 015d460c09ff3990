//! So many things a second, and what a quiet second has left over. Pure.

use tokio::time::Instant;

/// What may still be spent.
#[derive(Debug)]
pub struct RateLimiter {
    per_s: usize,
    left: usize,
    since: Instant,
}

impl RateLimiter {
    /// A whole second's at `now`.
    #[must_use]
    pub fn new(per_s: usize, now: Instant) -> Self {
        Self { per_s, left: per_s, since: now }
    }

    /// What is left at `now`.
    pub fn at(&mut self, now: Instant) -> usize {
        let earned = (now.saturating_duration_since(self.since).as_secs_f64() * self.per_s as f64) as usize;
        if earned > 0 {
            self.left = self.left.saturating_add(earned).min(self.per_s);
            self.since = now;
        }
        self.left
    }

    /// So many were.
    pub fn spend(&mut self, things: usize) {
        self.left = self.left.saturating_sub(things);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn an_allowance_grows_with_time_up_to_one_second() {
        let begun = Instant::now();
        let mut allowance = RateLimiter::new(1000, begun);
        allowance.spend(1000);
        assert_eq!(allowance.at(begun), 0);
        // Steps too short for a whole one are not lost.
        let mut now = begun;
        for _ in 0..100 {
            now += Duration::from_micros(500);
            let _ = allowance.at(now);
        }
        assert_eq!(allowance.at(now), 50);
        assert_eq!(allowance.at(now + Duration::from_secs(60)), 1000);
    }
}
