//! Event times as stored.
//!
//! A binary timestamptz accepts any 64 bits: the extremes become `infinity` or the year 294276 and create an absurd
//! partition. So every time is clamped to the years 1 to 9999 (the parser does so too and keeps the original text).

use jiff::civil::{Date, DateTime};
use jiff::fmt::temporal::Pieces;
use jiff::{Span, Timestamp};

/// 0001-01-01T00:00:00Z.
pub const MIN_US: i64 = -62_135_596_800_000_000;
/// 9999-12-31T23:59:59.999999Z.
pub const MAX_US: i64 = 253_402_300_799_999_999;

/// Microseconds in a minute.
pub const MINUTE_US: i64 = 60_000_000;
/// Microseconds in a day.
pub const DAY_US: i64 = 86_400_000_000;

/// Clamps `ts_us` to the years 1 to 9999.
#[must_use]
pub fn clamp(ts_us: i64) -> i64 {
    ts_us.clamp(MIN_US, MAX_US)
}

/// Returns year, month and day of the month of a day counted from 1970-01-01 (proleptic Gregorian calendar), clamped to
/// the years 1 to 9999.
#[must_use]
pub fn date(day: i64) -> (i16, i8, i8) {
    // Not through `Timestamp`, which ends a day earlier: it leaves room for every time zone's offset.
    const EPOCH: Date = Date::constant(1970, 1, 1);
    let date = EPOCH.saturating_add(Span::new().days(day.clamp(MIN_US / DAY_US, MAX_US / DAY_US)));
    (date.year(), date.month(), date.day())
}

/// Formats times as 27 ASCII bytes, `YYYY-MM-DDTHH:MM:SS.ffffffZ`, without allocating. Caches the day.
#[derive(Clone, Debug)]
pub struct Formatter {
    day: i64,
    bytes: [u8; 27],
}

impl Default for Formatter {
    fn default() -> Self {
        Self { day: i64::MIN, bytes: *b"0000-00-00T00:00:00.000000Z" }
    }
}

impl Formatter {
    /// Formats `ts_us` (clamped) and returns the text.
    #[must_use]
    pub fn write(&mut self, ts_us: i64) -> &str {
        let ts_us = clamp(ts_us);
        let day = ts_us.div_euclid(DAY_US);
        if day != self.day {
            let (year, month, day_of_month) = date(day);
            digits(&mut self.bytes[0..4], year.into());
            digits(&mut self.bytes[5..7], month.into());
            digits(&mut self.bytes[8..10], day_of_month.into());
            self.day = day;
        }
        let us = ts_us.rem_euclid(DAY_US);
        digits(&mut self.bytes[11..13], us / 3_600_000_000);
        digits(&mut self.bytes[14..16], us / MINUTE_US % 60);
        digits(&mut self.bytes[17..19], us / 1_000_000 % 60);
        digits(&mut self.bytes[20..26], us % 1_000_000);
        std::str::from_utf8(&self.bytes).expect("digits and punctuation are ASCII")
    }
}

fn digits(place: &mut [u8], mut value: i64) {
    for byte in place.iter_mut().rev() {
        *byte = b'0' + u8::try_from(value % 10).expect("a digit is below ten");
        value /= 10;
    }
}

/// Formats one time; see [`Formatter`].
#[must_use]
pub fn text(ts_us: i64) -> String {
    Formatter::default().write(ts_us).to_owned()
}

/// Parses an RFC 3339 time as microseconds since 1970.
#[must_use]
pub fn parse(text: &str) -> Option<i64> {
    text.parse::<Timestamp>().map(Timestamp::as_microsecond).ok().or_else(|| parse_late(text))
}

/// Parses a time of the last day, where `Timestamp` ends early: see [`date`].
fn parse_late(text: &str) -> Option<i64> {
    const EPOCH: DateTime = DateTime::constant(1970, 1, 1, 0, 0, 0, 0);
    let pieces = Pieces::parse(text).ok()?;
    let local = DateTime::from_parts(pieces.date(), pieces.time()?).duration_since(EPOCH);
    let offset = i64::from(pieces.to_numeric_offset()?.seconds());
    let us = i64::try_from(local.as_micros()).ok()?.checked_sub(offset.checked_mul(1_000_000)?)?;
    Some(us).filter(|us| *us <= MAX_US)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formatted_times_parse_back_to_the_same_time() {
        let mut writer = Formatter::default();
        for ts_us in [0, 1, -1, 951_782_400_000_000, 1_709_251_199_999_999, MIN_US, 1_763_683_200_123_456] {
            assert_eq!(parse(writer.write(ts_us)), Some(ts_us));
        }
        assert_eq!(writer.write(i64::MAX), "9999-12-31T23:59:59.999999Z");
        assert_eq!(parse(writer.write(i64::MAX)), Some(MAX_US));
        assert_eq!(parse("9999-12-31T23:00:00+02:00"), Some(MAX_US + 1 - 3 * 3_600_000_000));
        assert_eq!((parse("9999-12-31T23:00:00-02:00"), parse("9999-12-31T23:00:00")), (None, None));
        assert_eq!(writer.write(i64::MIN), "0001-01-01T00:00:00.000000Z");
        assert_eq!(text(1_709_164_800_000_000), "2024-02-29T00:00:00.000000Z");
    }
}
