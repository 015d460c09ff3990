//! Sizes and times with a unit, as text: `64MiB`, `50ms`, `7d`.

/// Unit of a number. A plain number is in the unit that the key's name ends with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// No unit.
    Count,
    /// Bytes: `65536`, `64KiB`.
    Bytes,
    /// Milliseconds: `50`, `50ms`, `5s`.
    Millis,
    /// Seconds: `60`, `60s`, `1d`.
    Seconds,
    /// Days: `7`, `7d`.
    Days,
}

/// Formats `number` in the largest unit that divides it.
#[must_use]
pub fn show_number(number: u64, unit: Unit) -> String {
    match suffixes(unit).iter().find(|(_, size)| number != 0 && *size > 1 && number.is_multiple_of(*size)) {
        Some((suffix, size)) => format!("{}{suffix}", number / size),
        None => number.to_string(),
    }
}

/// Suffixes, largest first. Those of size 1 are parsed but never printed.
fn suffixes(unit: Unit) -> &'static [(&'static str, u64)] {
    match unit {
        Unit::Count => &[],
        Unit::Bytes => &[("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)],
        Unit::Millis => &[("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)],
        Unit::Seconds => &[("d", 86_400), ("h", 3600), ("m", 60), ("s", 1)],
        Unit::Days => &[("d", 1)],
    }
}

/// Parses `64MiB`, `512k`, `50ms`, `7d`, or a plain number in the key's own unit.
#[must_use]
pub fn quantity(text: &str, unit: Unit) -> Option<u64> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '_').unwrap_or(text.len());
    let (digits, suffix) = text.split_at(digits);
    let number: u64 = digits.replace('_', "").parse().ok()?;
    let suffix = suffix.trim_start();
    if suffix.is_empty() {
        return Some(number);
    }
    let exact = suffixes(unit).iter().find(|(name, _)| *name == suffix).map(|(_, size)| *size);
    let size = exact.or_else(|| (unit == Unit::Bytes).then(|| loose_size(suffix)).flatten())?;
    number.checked_mul(size)
}

/// Other spellings of sizes: `k`, `M`, `g` are binary like `KiB`; `kB`, `MB` are decimal, as in SI.
fn loose_size(suffix: &str) -> Option<u64> {
    Some(match suffix.to_ascii_lowercase().as_str() {
        "b" => 1,
        "k" | "ki" | "kib" => 1 << 10,
        "m" | "mi" | "mib" => 1 << 20,
        "g" | "gi" | "gib" => 1 << 30,
        "t" | "ti" | "tib" => 1 << 40,
        "kb" => 1000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_are_parsed_in_all_usual_spellings() {
        for (text, unit, number) in [
            ("65536", Unit::Bytes, Some(65_536)),
            ("64MiB", Unit::Bytes, Some(64 << 20)),
            ("512k", Unit::Bytes, Some(512 << 10)),
            ("1 GiB", Unit::Bytes, Some(1 << 30)),
            ("2MB", Unit::Bytes, Some(2_000_000)),
            ("1_000", Unit::Bytes, Some(1000)),
            ("50", Unit::Millis, Some(50)),
            ("50ms", Unit::Millis, Some(50)),
            ("5s", Unit::Millis, Some(5000)),
            ("2m", Unit::Millis, Some(120_000)),
            ("1d", Unit::Seconds, Some(86_400)),
            ("7d", Unit::Days, Some(7)),
            ("5s", Unit::Bytes, None),
            ("5x", Unit::Millis, None),
            ("5ms", Unit::Seconds, None),
            ("1.5s", Unit::Millis, None),
            ("1.5GiB", Unit::Bytes, None),
            ("-1", Unit::Count, None),
            ("", Unit::Bytes, None),
            ("MiB", Unit::Bytes, None),
            ("99999999999999999999", Unit::Bytes, None),
            ("99999999999TiB", Unit::Bytes, None),
        ] {
            assert_eq!(quantity(text, unit), number, "{text:?} as {unit:?}");
        }
    }

    #[test]
    fn a_printed_number_parses_to_itself() {
        for unit in [Unit::Count, Unit::Bytes, Unit::Millis, Unit::Seconds, Unit::Days] {
            for number in [0, 1, 7, 1000, 1024, 60_000, 65_536, 86_400, 90_061, 64 << 20, u64::MAX] {
                assert_eq!(quantity(&show_number(number, unit), unit), Some(number));
            }
        }
    }
}
