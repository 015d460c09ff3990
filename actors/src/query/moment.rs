//! Times and durations as people type them into a parameter.

use jiff::Timestamp;

/// Microseconds in the units that a duration may have.
const UNITS: [(&str, i64); 7] = [
    ("us", 1),
    ("ms", 1_000),
    ("s", 1_000_000),
    ("m", 60_000_000),
    ("h", 3_600_000_000),
    ("d", 86_400_000_000),
    ("w", 604_800_000_000),
];

/// Reads a time: RFC 3339, a number of seconds, milliseconds, microseconds or nanoseconds since 1970 (told apart by its
/// size), `now`, `now-15m` or `-15m`. In microseconds since 1970.
///
/// # Errors
/// Says what is understood.
pub fn moment(text: &str, now_us: i64) -> Result<i64, String> {
    let text = text.trim();
    let relative = text.strip_prefix("now").unwrap_or(text);
    if relative.is_empty() && !text.is_empty() {
        return Ok(now_us);
    }
    // A `+` in a URL is a blank unless it is escaped.
    if let Some(back) = relative.strip_prefix('-').and_then(duration) {
        return Ok(now_us.saturating_sub(back));
    }
    if relative.len() < text.len()
        && let Some(ahead) = relative.strip_prefix(['+', ' ']).and_then(duration)
    {
        return Ok(now_us.saturating_add(ahead));
    }
    if let Some(us) = epoch(text) {
        return Ok(us);
    }
    let escaped = text.replace(' ', "+");
    let read = [text, &escaped].into_iter().find_map(|text| text.parse::<Timestamp>().ok());
    read.map(Timestamp::as_microsecond).ok_or_else(|| {
        format!(
            "{text:?} is no time; there are RFC 3339 such as 2026-01-31T12:00:00Z, a number of s, ms, us or ns since 1970, \
             now, now-15m and -15m"
        )
    })
}

/// A number since 1970. Seconds reach to the year 5138, then milliseconds begin, and so on.
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

/// Reads a duration such as `30s`, `1h30m` or `2d`; none where it is none. In microseconds.
#[must_use]
pub fn duration(text: &str) -> Option<i64> {
    let mut rest = text;
    let mut sum = 0_i64;
    while !rest.is_empty() {
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, behind) = rest.split_at(digits);
        let letters = behind.len() - behind.trim_start_matches(|c: char| c.is_ascii_lowercase()).len();
        let (unit, behind) = behind.split_at(letters);
        let (_, us) = UNITS.iter().find(|(name, _)| *name == unit)?;
        sum = sum.checked_add(number.parse::<i64>().ok()?.checked_mul(*us)?)?;
        rest = behind;
    }
    (!text.is_empty()).then_some(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_in_every_form() {
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
        ] {
            assert_eq!(moment(text, NOW), Ok(us), "{text}");
        }
        for text in ["", "yesterday", "now-", "15m", "now-5x", "2025-13-01T00:00:00Z", "1.x"] {
            assert!(moment(text, NOW).is_err(), "{text}");
        }
    }

    #[test]
    fn durations_are_read() {
        assert_eq!(duration("1h30m"), Some(5_400_000_000));
        assert_eq!(duration("250ms"), Some(250_000));
        assert_eq!((duration("5"), duration(""), duration("h"), duration("99999999999999w")), (None, None, None, None));
    }
}
