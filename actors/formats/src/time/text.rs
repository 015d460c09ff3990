//! Times as text, in the usual forms with a date and a time of day.
//!
//! - RFC 3339 and its usual variants (a space for the `T`, slashes, comma fractions, no zone = UTC) take a hand-written
//!   path that costs less than half of a general parser; everything else goes to jiff.
//! - Fractions below a microsecond are truncated toward the past.

use std::ops::Range;

use jiff::tz::TimeZone;

use super::calendar::{days, month};
use super::epoch::from_number;
use super::event_time::EventTime;
use super::stamp;

/// Maximum length of a time as text, in bytes; longer texts are not tried.
const TEXT_BYTES_MAX: usize = 64;

/// Parses a time as text: a date with a time in one of the usual forms, or an epoch time in digits.
#[must_use]
pub fn from_text(text: &str) -> Option<EventTime> {
    let text = text.trim_ascii();
    if text.len() > TEXT_BYTES_MAX {
        return None;
    }
    if let Some((us, local)) = iso(text.as_bytes()) {
        return Some(EventTime { local, ..EventTime::from_us(us.into()) });
    }
    from_number(text).or_else(|| by_jiff(text)).or_else(|| stamp::whole(text))
}

/// `YYYY-MM-DD[T ]HH:MM:SS[.fraction][ ][zone]`, also with slashes in the date.
/// Returns microseconds, and whether there was no zone.
fn iso(b: &[u8]) -> Option<(i64, bool)> {
    if b.len() < 19 || b[7] != b[4] || !matches!(b[4], b'-' | b'/') || !matches!(b[10], b'T' | b't' | b' ' | b'_') {
        return None;
    }
    let days = days(number(b, 0..4)?, number(b, 5..7)?, number(b, 8..10)?)?;
    let second = clock(&b[11..19])?;
    let (micros, rest) = fraction(&b[19..])?;
    let offset = offset_seconds(rest)?;
    Some(((days * 86_400 + second - offset) * 1_000_000 + micros, rest.is_empty()))
}

/// Parses `17/May/2015:10:05:03 +0000`, as web servers write it.
#[must_use]
pub fn from_access_log(text: &str) -> Option<EventTime> {
    let b = text.as_bytes();
    if b.len() < 20 || b[2] != b'/' || b[6] != b'/' || b[11] != b':' {
        return None;
    }
    let days = days(number(b, 7..11)?, month(&b[3..6])?, number(b, 0..2)?)?;
    let seconds = days * 86_400 + clock(&b[12..20])? - offset_seconds(&b[20..])?;
    Some(EventTime::from_us(i128::from(seconds) * 1_000_000))
}

/// `HH:MM:SS` in seconds. A leap second is left to jiff.
fn clock(b: &[u8]) -> Option<i64> {
    let (hour, minute, second) = (number(b, 0..2)?, number(b, 3..5)?, number(b, 6..8)?);
    (b[2] == b':' && b[5] == b':' && hour < 24 && minute < 60 && second < 60)
        .then_some(hour * 3600 + minute * 60 + second)
}

/// A fraction in microseconds, and the rest.
fn fraction(b: &[u8]) -> Option<(i64, &[u8])> {
    let [b'.' | b',', digits @ ..] = b else { return Some((0, b)) };
    let len = digits.iter().take_while(|byte| byte.is_ascii_digit()).count();
    if len == 0 {
        return None;
    }
    let micros = digits[..len].iter().chain(std::iter::repeat(&b'0')).take(6);
    Some((micros.fold(0, |value, digit| value * 10 + i64::from(digit - b'0')), &digits[len..]))
}

/// Nothing, `Z`, `UTC`, `+02`, `+0200` or `+02:00`, optionally after a space; in seconds east of UTC.
fn offset_seconds(b: &[u8]) -> Option<i64> {
    let b = b.strip_prefix(b" ").unwrap_or(b);
    let (sign, b) = match b {
        b"" | b"Z" | b"z" | b"UTC" | b"GMT" => return Some(0),
        [b'+', rest @ ..] => (1, rest),
        [b'-', rest @ ..] => (-1, rest),
        _ => return None,
    };
    let (hour, minute) = match b.len() {
        2 => (number(b, 0..2)?, 0),
        4 => (number(b, 0..2)?, number(b, 2..4)?),
        5 if b[2] == b':' => (number(b, 0..2)?, number(b, 3..5)?),
        _ => return None,
    };
    (hour < 24 && minute < 60).then_some(sign * (hour * 3600 + minute * 60))
}

fn number(b: &[u8], range: Range<usize>) -> Option<i64> {
    let mut value = 0;
    for byte in &b[range] {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            return None;
        }
        value = value * 10 + i64::from(digit);
    }
    Some(value)
}

/// Forms rare enough to be slow: any other ISO 8601 that jiff parses, RFC 2822.
fn by_jiff(text: &str) -> Option<EventTime> {
    let zoned = || jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text).ok();
    let (at, local) = match text.parse::<jiff::Timestamp>().ok().or_else(zoned) {
        Some(at) => (at, false),
        None => (TimeZone::UTC.to_timestamp(text.parse::<jiff::civil::DateTime>().ok()?).ok()?, true),
    };
    Some(EventTime { local, ..EventTime::from_us(at.as_nanosecond().div_euclid(1000)) })
}

#[cfg(test)]
mod tests {
    use logweir_record::timestamp::{MAX_US, MIN_US};
    use proptest::prelude::*;

    use super::*;

    /// 2015-05-17 10:05:03 UTC.
    const THAT_DAY_US: i64 = 1_431_857_103_000_000;

    fn check(text: &str, us: i64) {
        let time = from_text(text).map(|time| (time.us, time.clamped));
        assert_eq!(time, Some((us, false)), "{text}");
    }

    #[test]
    fn the_usual_forms_of_a_time_are_parsed() {
        check("2015-05-17T10:05:03Z", THAT_DAY_US);
        check("2015-05-17t10:05:03z", THAT_DAY_US);
        check("2015-05-17 10:05:03", THAT_DAY_US);
        check("2015/05/17 10:05:03", THAT_DAY_US);
        check(" 2015-05-17T10:05:03.000Z ", THAT_DAY_US);
        check("2015-05-17 10:05:03,250", THAT_DAY_US + 250_000);
        check("2015-05-17T10:05:03.123456789Z", THAT_DAY_US + 123_456);
        check("2015-05-17T12:05:03+02:00", THAT_DAY_US);
        check("2015-05-17T12:05:03+0200", THAT_DAY_US);
        check("2015-05-17T12:05:03+02", THAT_DAY_US);
        check("2015-05-17T03:05:03.5-07:00", THAT_DAY_US + 500_000);
        check("2015-05-17 10:05:03 UTC", THAT_DAY_US);
        check("2015-05-17 12:05:03 +0200", THAT_DAY_US);
        check("2015-05-17T12:05:03+02:00[Europe/Berlin]", THAT_DAY_US);
        check("2015-05-17T10:05Z", THAT_DAY_US - 3_000_000);
        check("2015-05-17", THAT_DAY_US - (10 * 3600 + 5 * 60 + 3) * 1_000_000);
        check("Sun, 17 May 2015 12:05:03 +0200", THAT_DAY_US);
        check("Sun May 17 10:05:03 2015", THAT_DAY_US);
        check("2016-12-31T23:59:60Z", 1_483_228_799_000_000); // a leap second is read as the second before it
        check("2024-02-29T00:00:00Z", 1_709_164_800_000_000);
    }

    #[test]
    fn the_unit_of_an_epoch_time_follows_from_its_digits() {
        check("1431857103", THAT_DAY_US);
        check("1431857103.25", THAT_DAY_US + 250_000);
        check("1431857103250", THAT_DAY_US + 250_000);
        check("1431857103250.5", THAT_DAY_US + 250_500);
        check("1431857103000001", THAT_DAY_US + 1);
        check("1431857103000001999", THAT_DAY_US + 1);
        check("+1431857103", THAT_DAY_US);
        check("-1431857103", -THAT_DAY_US);
        check("1.431857103e9", THAT_DAY_US);
        check("1.431857103E12", THAT_DAY_US);
    }

    #[test]
    fn other_text_is_not_a_time() {
        for text in [
            "",
            "0",
            "12",
            "0.123",
            "yesterday",
            "12345678",
            "1431857103x",
            "2015-02-29T00:00:00Z",
            "2015-13-01T00:00:00Z",
            "2015-05-17T24:05:03Z",
            "2015-05-17T10:05:03.Z",
            "2015-05-17T10:05:03+99:00",
            "1e2",
            "e",
            "NaN",
            ".",
            "-",
        ] {
            assert_eq!(from_text(text), None, "{text}");
        }
        assert_eq!(from_text(&"9".repeat(1000)), None);
    }

    #[test]
    fn a_time_out_of_range_is_clamped_and_flagged() {
        let high = Some(EventTime { us: MAX_US, clamped: true, local: false });
        let low = Some(EventTime { us: MIN_US, clamped: true, local: false });
        assert_eq!(from_text("99999999999999999999999"), high);
        assert_eq!(from_number("1e300"), high);
        assert_eq!(from_text("-99999999999999999999999"), low);
        assert_eq!(from_text("0000-12-31T23:59:59Z"), low);
        assert_eq!(from_text("9999-12-31T23:59:59.999999-01:00"), high);
        check("0001-01-01T00:00:00Z", MIN_US);
        check("9999-12-31T23:59:59.999999Z", MAX_US);
    }

    #[test]
    fn access_log_times_are_parsed() {
        let at = |text| from_access_log(text).map(|time| time.us);
        assert_eq!(at("17/May/2015:10:05:03 +0000"), Some(THAT_DAY_US));
        assert_eq!(at("17/may/2015:05:05:03 -0500"), Some(THAT_DAY_US));
        assert_eq!(at("31/Apr/2015:10:05:03 +0000"), None);
        assert_eq!(at("17/Mai/2015:10:05:03 +0000"), None);
        assert_eq!(at("17/May/2015"), None);
    }

    proptest! {
        #[test]
        fn the_hand_written_path_agrees_with_jiff(seconds in -62_135_596_800_i64..253_402_207_200, nanos in 0_i32..1_000_000_000) {
            let at = jiff::Timestamp::new(seconds, 0).unwrap() + jiff::SignedDuration::from_nanos(nanos.into());
            let text = at.to_string();
            let expect = i64::try_from(at.as_nanosecond().div_euclid(1000)).unwrap();
            prop_assert_eq!(iso(text.as_bytes()), Some((expect, false)), "{}", text);
        }

        #[test]
        fn offsets_agree_with_jiff(seconds in -1_000_000_000_i64..5_000_000_000, hours in -23_i8..=23) {
            let zone = jiff::tz::TimeZone::fixed(jiff::tz::offset(hours));
            let text = jiff::Timestamp::new(seconds, 0).unwrap().to_zoned(zone).strftime("%Y-%m-%dT%H:%M:%S%:z").to_string();
            prop_assert_eq!(iso(text.as_bytes()), Some((seconds * 1_000_000, false)), "{}", text);
        }

        #[test]
        fn any_text_is_parsed_without_a_panic_and_within_bounds(text in "[0-9TZeE:./+ ,-]{0,40}") {
            if let Some(time) = from_text(&text) {
                prop_assert!((MIN_US..=MAX_US).contains(&time.us));
            }
            let _ = from_access_log(&text);
        }
    }
}
