//! The only place that reads the wall clock. Durations are measured with `tokio::time::Instant`, which follows a paused
//! clock in tests; pure code takes the time as an argument.

use std::time::{SystemTime, UNIX_EPOCH};

/// Returns the wall-clock time in microseconds since 1970-01-01 00:00 UTC; negative before.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "the only reader of the wall clock")]
pub fn wall_us() -> i64 {
    let micros = |duration: std::time::Duration| i64::try_from(duration.as_micros()).unwrap_or(i64::MAX);
    match SystemTime::now().duration_since(UNIX_EPOCH) {
        Ok(since) => micros(since),
        Err(before) => -micros(before.duration()),
    }
}
