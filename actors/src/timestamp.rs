//! Event times as stored.
//!
//! A binary timestamptz accepts any 64 bits: the extremes become `infinity` or the year 294276 and create an absurd
//! partition. So every time is clamped to the years 1 to 9999 (the parser does so too and keeps the original text).

use jiff::Timestamp;

/// 0001-01-01T00:00:00Z.
pub(crate) const MIN_US: i64 = -62_135_596_800_000_000;
/// 9999-12-31T23:59:59.999999Z.
pub(crate) const MAX_US: i64 = 253_402_300_799_999_999;

/// Microseconds in a minute.
pub(crate) const MINUTE_US: i64 = 60_000_000;
/// Microseconds in a day.
pub(crate) const DAY_US: i64 = 86_400_000_000;

/// Clamps `ts_us` to the years 1 to 9999.
pub(crate) fn clamp(ts_us: i64) -> i64 {
    ts_us.clamp(MIN_US, MAX_US)
}

/// Returns year, month and day of a day counted from 1970-01-01 (proleptic Gregorian calendar).
pub(crate) fn civil(day: i64) -> (i64, i64, i64) {
    // Years are counted from March, so that the leap day comes last; a 400-year era has 146,097 days.
    let shifted = day + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day_of_month = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month, day_of_month)
}

/// Formats times as 27 ASCII bytes, `YYYY-MM-DDTHH:MM:SS.ffffffZ`, without allocating. Caches the day.
pub(crate) struct Formatter {
    day: i64,
    bytes: [u8; 27],
}

impl Formatter {
    pub(crate) fn new() -> Self {
        Self { day: i64::MIN, bytes: *b"0000-00-00T00:00:00.000000Z" }
    }

    /// Formats `ts_us` (clamped) and returns the text.
    pub(crate) fn write(&mut self, ts_us: i64) -> &str {
        let ts_us = clamp(ts_us);
        let day = ts_us.div_euclid(DAY_US);
        if day != self.day {
            let (year, month, day_of_month) = civil(day);
            digits(&mut self.bytes[0..4], year);
            digits(&mut self.bytes[5..7], month);
            digits(&mut self.bytes[8..10], day_of_month);
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
pub(crate) fn text(ts_us: i64) -> String {
    Formatter::new().write(ts_us).to_owned()
}

/// Parses an RFC 3339 time as microseconds since 1970.
pub(crate) fn parse(text: &str) -> Option<i64> {
    text.parse::<Timestamp>().ok().map(Timestamp::as_microsecond)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formatted_times_parse_back_to_the_same_time() {
        let mut writer = Formatter::new();
        for ts_us in [0, 1, -1, 951_782_400_000_000, 1_709_251_199_999_999, MIN_US, 1_763_683_200_123_456] {
            assert_eq!(parse(writer.write(ts_us)), Some(ts_us));
        }
        assert_eq!(writer.write(i64::MAX), "9999-12-31T23:59:59.999999Z");
        assert_eq!(writer.write(i64::MIN), "0001-01-01T00:00:00.000000Z");
        assert_eq!(text(1_709_164_800_000_000), "2024-02-29T00:00:00.000000Z");
    }
}
