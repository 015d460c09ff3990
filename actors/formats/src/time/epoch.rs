//! Times as numbers.
//!
//! The unit of a number follows from its magnitude, since current times in seconds, milliseconds, microseconds and
//! nanoseconds differ by three digits each. Below 10^8 (seconds: before 1973) it is not a time but a duration, a counter
//! or a zero for "none": reading it as 1970 would create a partition for that year.

use super::event_time::EventTime;

/// Parses an epoch time as JSON or a program prints it: digits, optionally a sign, a fraction, an exponent.
#[must_use]
pub fn from_number(text: &str) -> Option<EventTime> {
    let (negative, digits) = match text.as_bytes() {
        [b'-', rest @ ..] => (true, rest),
        [b'+', rest @ ..] => (false, rest),
        all => (false, all),
    };
    if digits.iter().any(|byte| matches!(byte, b'e' | b'E')) {
        return from_float(text.parse().ok()?);
    }
    let (whole, fraction) = match memchr::memchr(b'.', digits) {
        Some(dot) => (&digits[..dot], &digits[dot + 1..]),
        None => (digits, &[][..]),
    };
    if whole.is_empty() || !whole.iter().chain(fraction).all(u8::is_ascii_digit) {
        return None;
    }
    let zeros = whole.iter().take_while(|&&byte| byte == b'0').count();
    let whole = &whole[zeros..];
    let us = match whole.len() {
        ..9 => return None,
        9..=11 => decimal(whole, fraction, 6),
        12..=14 => decimal(whole, fraction, 3),
        15..=17 => decimal(whole, fraction, 0),
        18..=20 => decimal(&whole[..whole.len() - 3], fraction, 0),
        _ => i128::MAX,
    };
    Some(EventTime::from_us(if negative { -us } else { us }))
}

/// `whole.fraction` times ten to the power of `places`, truncated to an integer.
fn decimal(whole: &[u8], fraction: &[u8], places: usize) -> i128 {
    let digits = whole.iter().chain(fraction.iter().chain(std::iter::repeat(&b'0')).take(places));
    digits.fold(0, |value, digit| value * 10 + i128::from(digit - b'0'))
}

/// The rare `1.7e9`: exact within the precision of a double.
#[allow(clippy::cast_possible_truncation)] // `as` saturates, and then the result is clamped
fn from_float(value: f64) -> Option<EventTime> {
    let us = match value.abs() {
        ..1e8 => return None,
        ..1e11 => value * 1e6,
        ..1e14 => value * 1e3,
        ..1e17 => value,
        ..1e20 => value / 1e3,
        _ => value * 1e6,
    };
    us.is_finite().then(|| EventTime::from_us(us as i128))
}
