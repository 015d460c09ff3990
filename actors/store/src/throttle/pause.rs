//! How long reads last, and the pauses between them.

use std::time::Duration;

/// A pause is this many times as long as the read before it, up to the maximum.
const PAUSE_FACTOR: u32 = 9;
const PAUSE_MAX: Duration = Duration::from_secs(3);

/// Pieces get longer below this range and shorter above it.
pub(super) const PIECE: std::ops::RangeInclusive<Duration> = Duration::from_millis(50)..=Duration::from_millis(150);

/// The pause after a read that took this long.
pub(super) fn pause_after(took: Duration) -> Duration {
    metrics::counter!("logweir_query_throttle_pauses_total").increment(1);
    (took * PAUSE_FACTOR).min(PAUSE_MAX)
}
