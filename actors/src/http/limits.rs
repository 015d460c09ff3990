//! How much one sender may send: bytes a second, and bytes a day. A sender is a token; without tokens all are one.
//!
//! - A body is charged as it was sent, before it is read where its length is announced. One is let in as long as the sender is
//!   not more than [`BURST`] ahead of its rate, whatever its size: a large body is paid off afterwards.
//! - The day is that of UTC. What was sent is counted by this process since it started.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::answer::Refused;
use crate::config;

/// How far ahead of its rate a sender may be.
const BURST: Duration = Duration::from_secs(2);
const DAY_S: u64 = 86_400;

/// The index of a token in `auth.ingest_tokens`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Sender(pub Option<usize>);

/// What every sender has sent. There are as many entries as tokens.
pub struct Limits {
    limits: config::Limits,
    spent: Mutex<HashMap<Sender, Spent>>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Spent {
    /// When what was sent would have been sent at the rate, after the start of the process.
    paid_at: Duration,
    day: u64,
    day_bytes: u64,
}

/// A moment, by the clock that never goes back and by the one on the wall.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// After the start of the process.
    pub uptime: Duration,
    /// Seconds since 1970.
    pub wall_s: u64,
}

/// What is above which limit, and when it may be tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Above {
    reason: &'static str,
    limit: u64,
    wait: Duration,
}

impl Limits {
    /// Nobody has sent anything yet.
    pub fn new(limits: config::Limits) -> Self {
        Self { limits, spent: Mutex::default() }
    }

    /// Charges `sender` with a body.
    ///
    /// # Errors
    /// 429 with the time after which it may be tried again; nothing is charged then.
    pub fn charge(&self, sender: Sender, bytes: usize, now: Now) -> Result<(), Refused> {
        if self.limits == config::Limits::default() {
            return Ok(());
        }
        let mut spent = self.spent.lock().unwrap_or_else(PoisonError::into_inner);
        charge(spent.entry(sender).or_default(), &self.limits, bytes as u64, now).map_err(|above| {
            let Above { reason, limit, wait } = above;
            let unit = if reason == "rate_limited" { "limits.bytes_per_s" } else { "limits.bytes_per_day" };
            let detail = format!("more comes under this token than {unit} = {limit} allows");
            Refused::new(429, reason, detail).with_retry_after(wait.as_secs_f64().ceil() as u64)
        })
    }
}

/// The decision.
fn charge(spent: &mut Spent, limits: &config::Limits, bytes: u64, now: Now) -> Result<(), Above> {
    let day = now.wall_s / DAY_S;
    let day_bytes = if spent.day == day { spent.day_bytes } else { 0 };
    if limits.bytes_per_day > 0 && day_bytes.saturating_add(bytes) > limits.bytes_per_day {
        let wait = Duration::from_secs((day + 1) * DAY_S - now.wall_s);
        return Err(Above { reason: "quota_exceeded", limit: limits.bytes_per_day, wait });
    }
    let mut paid_at = spent.paid_at.max(now.uptime);
    if limits.bytes_per_s > 0 {
        let ahead = paid_at - now.uptime;
        if ahead > BURST {
            return Err(Above { reason: "rate_limited", limit: limits.bytes_per_s, wait: ahead - BURST });
        }
        paid_at += Duration::from_secs_f64(bytes as f64 / limits.bytes_per_s as f64);
    }
    *spent = Spent { paid_at, day, day_bytes: day_bytes.saturating_add(bytes) };
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(uptime_s: u64, wall_s: u64) -> Now {
        Now { uptime: Duration::from_secs(uptime_s), wall_s }
    }

    #[test]
    fn a_rate_allows_a_burst_and_then_itself() {
        let limits = config::Limits { bytes_per_s: 100, bytes_per_day: 0 };
        let mut spent = Spent::default();
        let mut sent = 0;
        while charge(&mut spent, &limits, 50, at(10, 0)).is_ok() {
            sent += 50;
        }
        assert_eq!(sent, 250, "two seconds ahead, and the body that goes past them");
        let above = charge(&mut spent, &limits, 50, at(10, 0)).unwrap_err();
        assert_eq!((above.reason, above.wait), ("rate_limited", Duration::from_millis(500)));
        for second in 11..111 {
            while charge(&mut spent, &limits, 50, at(second, 0)).is_ok() {
                sent += 50;
            }
        }
        assert!((250 + 9_900..=250 + 10_050).contains(&sent), "{sent}");
        // After a pause there is one burst, not the whole pause.
        assert!(charge(&mut spent, &limits, 1_000_000, at(9_999, 0)).is_ok(), "a large body passes");
        assert!(charge(&mut spent, &limits, 1, at(10_100, 0)).is_err());
    }

    #[test]
    fn a_quota_lasts_until_the_day_ends() {
        let limits = config::Limits { bytes_per_s: 0, bytes_per_day: 1000 };
        let mut spent = Spent::default();
        let evening = 20_000 * DAY_S + DAY_S - 60;
        charge(&mut spent, &limits, 900, at(1, evening)).unwrap();
        let above = charge(&mut spent, &limits, 200, at(2, evening)).unwrap_err();
        assert_eq!((above.reason, above.wait), ("quota_exceeded", Duration::from_secs(60)));
        charge(&mut spent, &limits, 100, at(3, evening)).unwrap();
        charge(&mut spent, &limits, 1000, at(63, evening + 60)).unwrap();
    }

    #[test]
    fn senders_do_not_pay_for_each_other_and_without_limits_nobody_pays() {
        let limits = Limits::new(config::Limits { bytes_per_s: 0, bytes_per_day: 10 });
        limits.charge(Sender(Some(0)), 10, at(0, 0)).unwrap();
        let refused = limits.charge(Sender(Some(0)), 1, at(0, 0)).unwrap_err();
        assert_eq!((refused.status, refused.reason), (429, "quota_exceeded"));
        limits.charge(Sender(Some(1)), 10, at(0, 0)).unwrap();
        limits.charge(Sender(None), 10, at(0, 0)).unwrap();
        Limits::new(config::Limits::default()).charge(Sender(None), usize::MAX, at(0, 0)).unwrap();
    }
}
