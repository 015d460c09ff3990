//! A parsed time, in microseconds since 1970.
//!
//! It always lies in the years 0001..=9999, which every store can hold and every client can print. Times outside are
//! clamped and flagged, so that the caller can keep the original.

use jiff::tz::TimeZone;
use logweir_record::timestamp::{MAX_US, MIN_US};

/// A parsed time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventTime {
    /// Microseconds since 1970-01-01 00:00 UTC, within [`MIN_US`]..=[`MAX_US`].
    pub us: i64,
    /// It was outside that range and was clamped.
    pub clamped: bool,
    /// It has no zone, and `us` assumes UTC.
    pub local: bool,
}

impl EventTime {
    /// Clamps `us`, in microseconds since 1970, of a time with a zone.
    #[inline] // its callers are in other modules: 2 % of the instructions without link-time optimization
    pub fn from_us(us: i128) -> Self {
        let inside = us.clamp(i128::from(MIN_US), i128::from(MAX_US));
        Self { us: i64::try_from(inside).unwrap_or(MAX_US), clamped: inside != us, local: false }
    }

    /// Converts a time without a zone from `zone`; others are returned unchanged.
    #[must_use]
    pub fn in_zone(self, zone: &TimeZone) -> i64 {
        if !self.local || *zone == TimeZone::UTC { self.us } else { reinterpret(self.us, zone).unwrap_or(self.us) }
    }
}

#[cold]
fn reinterpret(us: i64, zone: &TimeZone) -> Option<i64> {
    let civil = TimeZone::UTC.to_datetime(jiff::Timestamp::from_microsecond(us).ok()?);
    Some(zone.to_timestamp(civil).ok()?.as_microsecond().clamp(MIN_US, MAX_US))
}
