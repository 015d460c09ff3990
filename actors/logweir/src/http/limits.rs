//! Limits per sender: bytes per second and bytes per day. A sender is a token; without tokens there is one sender.
//!
//! - A body is charged at its size as sent (compressed), before it is read if its length is announced.
//! - A body of any size is admitted unless the sender is more than [`BURST`] ahead of its rate. A large body puts the
//!   sender further ahead, which delays the next one.
//! - Days are UTC days. Each process counts from its own start.
//!
//! Not governor 0.10: it would never admit a body larger than its burst, has no quota per day, and brings 7 more crates.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::answer::HttpError;
use crate::config;

/// How far ahead of its rate a sender may be.
const BURST: Duration = Duration::from_secs(2);
const DAY_S: u64 = 86_400;

/// The index of a token in `auth.ingest_tokens`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Sender(pub Option<usize>);

/// The usage of every sender: at most one entry per token.
pub struct Limits {
    limits: config::Limits,
    usage: Mutex<HashMap<Sender, Usage>>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Usage {
    /// Theoretical arrival time, as in GCRA: when everything sent so far would have been sent at the rate, since the
    /// start of the process.
    arrival_at: Duration,
    day: u64,
    day_bytes: u64,
}

/// A point in time on the monotonic and on the wall clock.
#[derive(Clone, Copy, Debug)]
pub struct Clocks {
    /// Since the start of the process.
    pub uptime: Duration,
    /// Seconds since the Unix epoch.
    pub wall_s: u64,
}

/// The limit that is exceeded, and how long to wait before the next attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct LimitExceeded {
    reason: &'static str,
    limit: u64,
    wait: Duration,
}

impl Limits {
    /// No usage yet.
    pub fn new(limits: config::Limits) -> Self {
        Self { limits, usage: Mutex::default() }
    }

    /// Charges a body of `bytes` to `sender`.
    ///
    /// # Errors
    /// 429 with the time after which to retry; nothing is charged then.
    pub fn charge(&self, sender: Sender, bytes: usize, clocks: Clocks) -> Result<(), HttpError> {
        if self.limits == config::Limits::default() {
            return Ok(());
        }
        let mut usage = self.usage.lock().unwrap_or_else(PoisonError::into_inner);
        charge(usage.entry(sender).or_default(), &self.limits, bytes as u64, clocks).map_err(|exceeded| {
            let LimitExceeded { reason, limit, wait } = exceeded;
            let unit = if reason == "rate_limited" { "limits.bytes_per_s" } else { "limits.bytes_per_day" };
            let detail = format!("the sender exceeds {unit} ({limit} bytes): retry after the time in Retry-After");
            HttpError::new(429, reason, detail).with_retry_after(wait.as_secs_f64().ceil() as u64)
        })
    }
}

/// Decides whether the body is admitted, and charges it.
fn charge(usage: &mut Usage, limits: &config::Limits, bytes: u64, clocks: Clocks) -> Result<(), LimitExceeded> {
    let day = clocks.wall_s / DAY_S;
    let day_bytes = if usage.day == day { usage.day_bytes } else { 0 };
    if limits.bytes_per_day > 0 && day_bytes.saturating_add(bytes) > limits.bytes_per_day {
        let wait = Duration::from_secs((day + 1) * DAY_S - clocks.wall_s);
        return Err(LimitExceeded { reason: "quota_exceeded", limit: limits.bytes_per_day, wait });
    }
    let mut arrival_at = usage.arrival_at.max(clocks.uptime);
    if limits.bytes_per_s > 0 {
        let ahead = arrival_at - clocks.uptime;
        if ahead > BURST {
            return Err(LimitExceeded { reason: "rate_limited", limit: limits.bytes_per_s, wait: ahead - BURST });
        }
        arrival_at += Duration::from_secs_f64(bytes as f64 / limits.bytes_per_s as f64);
    }
    *usage = Usage { arrival_at, day, day_bytes: day_bytes.saturating_add(bytes) };
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(uptime_s: u64, wall_s: u64) -> Clocks {
        Clocks { uptime: Duration::from_secs(uptime_s), wall_s }
    }

    #[test]
    fn a_sender_may_burst_and_is_then_held_to_its_rate() {
        let limits = config::Limits { bytes_per_s: 100, bytes_per_day: 0 };
        let mut usage = Usage::default();
        let mut sent = 0;
        while charge(&mut usage, &limits, 50, at(10, 0)).is_ok() {
            sent += 50;
        }
        assert_eq!(sent, 250, "a burst of two seconds, and the body that exceeds it");
        let exceeded = charge(&mut usage, &limits, 50, at(10, 0)).unwrap_err();
        assert_eq!((exceeded.reason, exceeded.wait), ("rate_limited", Duration::from_millis(500)));
        for second in 11..111 {
            while charge(&mut usage, &limits, 50, at(second, 0)).is_ok() {
                sent += 50;
            }
        }
        assert!((250 + 9_900..=250 + 10_050).contains(&sent), "{sent}");
        // A pause earns one burst, not the whole pause.
        assert!(charge(&mut usage, &limits, 1_000_000, at(9_999, 0)).is_ok(), "a large body is admitted");
        assert!(charge(&mut usage, &limits, 1, at(10_100, 0)).is_err());
    }

    #[test]
    fn a_quota_applies_until_the_end_of_the_day() {
        let limits = config::Limits { bytes_per_s: 0, bytes_per_day: 1000 };
        let mut usage = Usage::default();
        let evening = 20_000 * DAY_S + DAY_S - 60;
        charge(&mut usage, &limits, 900, at(1, evening)).unwrap();
        let exceeded = charge(&mut usage, &limits, 200, at(2, evening)).unwrap_err();
        assert_eq!((exceeded.reason, exceeded.wait), ("quota_exceeded", Duration::from_secs(60)));
        charge(&mut usage, &limits, 100, at(3, evening)).unwrap();
        charge(&mut usage, &limits, 1000, at(63, evening + 60)).unwrap();
    }

    #[test]
    fn senders_are_limited_independently_and_only_if_limits_are_set() {
        let limits = Limits::new(config::Limits { bytes_per_s: 0, bytes_per_day: 10 });
        limits.charge(Sender(Some(0)), 10, at(0, 0)).unwrap();
        let rejection = limits.charge(Sender(Some(0)), 1, at(0, 0)).unwrap_err();
        assert_eq!((rejection.status, rejection.reason), (429, "quota_exceeded"));
        limits.charge(Sender(Some(1)), 10, at(0, 0)).unwrap();
        limits.charge(Sender(None), 10, at(0, 0)).unwrap();
        Limits::new(config::Limits::default()).charge(Sender(None), usize::MAX, at(0, 0)).unwrap();
    }
}
