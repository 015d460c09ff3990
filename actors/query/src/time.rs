//! Times and durations in parameters.

use logweir_record::timestamp::{self, MAX_US, MIN_US};

/// Units of a duration, in microseconds.
const UNITS: [(&str, i64); 7] = [
    ("us", 1),
    ("ms", 1_000),
    ("s", 1_000_000),
    ("m", 60_000_000),
    ("h", 3_600_000_000),
    ("d", 86_400_000_000),
    ("w", 604_800_000_000),
];

/// Parses a time: RFC 3339, a Unix timestamp in seconds, milliseconds, microseconds or nanoseconds (distinguished by
/// magnitude), `now`, `now-15m` or `-15m`. `now_us` and the result are microseconds since the Unix epoch. A time that no
/// record can have becomes the nearest one that bounds all records: the start of the year 1, or the end of the year 9999.
///
/// # Errors
/// The text has none of these formats.
pub fn parse_time(text: &str, now_us: i64) -> Result<i64, String> {
    parse_any(text.trim(), now_us).map(|us| us.clamp(MIN_US, MAX_US + 1))
}

/// Returns the exclusive end of a range that ends at `us`. In the last second of the year 9999 it is the end of all
/// times: later ones are stored as the last microsecond of that second, which no end before it includes.
#[must_use]
pub fn range_end(us: i64) -> i64 {
    if us > MAX_US - 1_000_000 { MAX_US + 1 } else { us }
}

fn parse_any(text: &str, now_us: i64) -> Result<i64, String> {
    let relative = text.strip_prefix("now").unwrap_or(text);
    if relative.is_empty() && !text.is_empty() {
        return Ok(now_us);
    }
    // An unescaped `+` in a URL is decoded as a space.
    if let Some(back) = relative.strip_prefix('-').and_then(parse_duration) {
        return Ok(now_us.saturating_sub(back));
    }
    if relative.len() < text.len()
        && let Some(ahead) = relative.strip_prefix(['+', ' ']).and_then(parse_duration)
    {
        return Ok(now_us.saturating_add(ahead));
    }
    if let Some(us) = epoch(text) {
        return Ok(us);
    }
    let escaped = text.replace(' ', "+");
    [text, &escaped].into_iter().find_map(timestamp::parse).ok_or_else(|| {
        format!(
            "invalid time {text:?}: expected RFC 3339 such as 2026-01-31T12:00:00Z, a Unix timestamp (s, ms, µs or ns), \
             now, now-15m or -15m"
        )
    })
}

/// A Unix timestamp. Seconds extend to the year 5138; larger numbers are milliseconds, and so on.
fn epoch(text: &str) -> Option<i64> {
    if let Some((whole, fraction)) = text.split_once('.') {
        let seconds: i64 = whole.parse().ok()?;
        let digits = fraction.get(..fraction.len().min(6)).filter(|digits| !digits.is_empty())?;
        let us: i64 = format!("{digits:0<6}").parse().ok().filter(|_| fraction.bytes().all(|b| b.is_ascii_digit()))?;
        return seconds.checked_mul(1_000_000)?.checked_add(us);
    }
    let number: i64 = text.parse().ok()?;
    match number.unsigned_abs() {
        0..100_000_000_000 => number.checked_mul(1_000_000),
        100_000_000_000..100_000_000_000_000 => number.checked_mul(1_000),
        100_000_000_000_000..100_000_000_000_000_000 => Some(number),
        _ => Some(number / 1_000),
    }
}

/// Parses a duration such as `30s`, `1h30m` or `2d` into microseconds; `None` if it is invalid.
#[must_use]
pub fn parse_duration(text: &str) -> Option<i64> {
    let mut rest = text;
    let mut sum = 0_i64;
    while !rest.is_empty() {
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, rest_of_text) = rest.split_at(digits);
        let letters = rest_of_text.len() - rest_of_text.trim_start_matches(|c: char| c.is_ascii_lowercase()).len();
        let (unit, rest_of_text) = rest_of_text.split_at(letters);
        let (_, us) = UNITS.iter().find(|(name, _)| *name == unit)?;
        sum = sum.checked_add(number.parse::<i64>().ok()?.checked_mul(*us)?)?;
        rest = rest_of_text;
    }
    (!text.is_empty()).then_some(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_parsed_in_every_format() {
        const NOW: i64 = 1_763_683_200_000_000;
        for (text, us) in [
            ("now", NOW),
            ("now-15m", NOW - 900_000_000),
            ("-15m", NOW - 900_000_000),
            ("now+1h", NOW + 3_600_000_000),
            ("now 1h", NOW + 3_600_000_000),
            ("-1h30m", NOW - 5_400_000_000),
            ("1763683200", NOW),
            ("1763683200.5", NOW + 500_000),
            ("1763683200000", NOW),
            ("1763683200000000", NOW),
            ("1763683200000000000", NOW),
            ("2025-11-21T00:00:00Z", NOW),
            ("2025-11-21T01:00:00+01:00", NOW),
            ("2025-11-21T01:00:00 01:00", NOW),
            ("0", 0),
            ("-1", -1_000_000),
            ("1969-12-31T23:59:59Z", -1_000_000),
            ("0001-01-01T00:00:00Z", MIN_US),
            ("-99999999999", MIN_US),
            ("9999-12-31T23:59:59Z", MAX_US + 1 - 1_000_000),
            ("9999-12-31T23:59:59.999999Z", MAX_US),
            ("253402300800.5", MAX_US + 1),
            ("now+999999w", MAX_US + 1),
        ] {
            assert_eq!(parse_time(text, NOW), Ok(us), "{text}");
        }
        for text in ["", "yesterday", "now-", "15m", "now-5x", "2025-13-01T00:00:00Z", "1.x"] {
            assert!(parse_time(text, NOW).is_err(), "{text}");
        }
    }

    #[test]
    fn a_range_to_the_last_second_ends_with_all_times() {
        let end = |text| range_end(parse_time(text, 0).unwrap());
        assert_eq!(end("9999-12-31T23:59:59Z"), MAX_US + 1);
        assert_eq!(end("9999-12-31T23:59:59.999999Z"), MAX_US + 1);
        assert_eq!(end("9999-12-31T23:59:58Z"), MAX_US - 1_999_999);
    }

    #[test]
    fn durations_are_parsed() {
        assert_eq!(parse_duration("1h30m"), Some(5_400_000_000));
        assert_eq!(parse_duration("250ms"), Some(250_000));
        assert_eq!(
            (parse_duration("5"), parse_duration(""), parse_duration("h"), parse_duration("99999999999999w")),
            (None, None, None, None)
        );
    }
}
