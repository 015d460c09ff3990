//! Delays before retries: one policy for everything that retries by itself.
//!
//! A delay is a random time between half and all of a bound, which doubles with each attempt: processes that lost the
//! same server at the same moment do not reconnect at the same moment. A fixed delay with a little jitter was rejected:
//! these processes would still reconnect within a short time.

use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};

/// The bounds of the delays.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    first: Duration,
    max: Duration,
}

/// The delays of one series of attempts.
#[derive(Debug)]
pub struct Delays {
    delays: ExponentialBackoff,
    max: Duration,
}

impl Backoff {
    /// The bound is `first` before the first retry, and doubles up to `max`.
    #[must_use]
    pub const fn new(first: Duration, max: Duration) -> Self {
        Self { first, max }
    }

    /// Starts a series of attempts, with the first delay.
    #[must_use]
    pub fn delays(self) -> Delays {
        let Self { first, max } = self;
        // backon adds up to as much again to each delay.
        let builder = ExponentialBuilder::new().with_min_delay(first / 2).with_max_delay(max / 2).with_jitter();
        Delays { delays: builder.without_max_times().build(), max }
    }
}

impl Delays {
    /// The delay before the next retry.
    pub fn next_delay(&mut self) -> Duration {
        self.delays.next().unwrap_or(self.max).min(self.max)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_delay_is_between_half_and_all_of_a_bound_that_doubles(first in 1_u64..10_000, more in 0_u64..60_000) {
            let (first, max) = (Duration::from_millis(first), Duration::from_millis(first + more));
            let mut delays = Backoff::new(first, max).delays();
            for attempt in 0..100 {
                let bound = first.saturating_mul(1_u32.checked_shl(attempt).unwrap_or(u32::MAX)).min(max);
                let delay = delays.next_delay();
                prop_assert!(delay <= bound.mul_f64(1.000_01), "{attempt}: {delay:?} > {bound:?}");
                prop_assert!(delay >= bound.mul_f64(0.499_99), "{attempt}: {delay:?} < half of {bound:?}");
            }
        }
    }

    #[test]
    fn delays_use_the_whole_range_and_differ_between_series() {
        let backoff = Backoff::new(Duration::from_secs(2), Duration::from_secs(60));
        let delays: Vec<u128> = (0..1000).map(|_| backoff.delays().next_delay().as_millis()).collect();
        let (low, high) = (delays.iter().min().unwrap(), delays.iter().max().unwrap());
        assert!(*low < 1_050 && *high > 1_950, "{low}..{high}");
    }
}
