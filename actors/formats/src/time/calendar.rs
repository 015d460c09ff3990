//! Days and months.

/// The number of the month with this English three-letter name.
pub fn month(name: &[u8]) -> Option<i64> {
    const MONTHS: [&[u8; 3]; 12] =
        [b"jan", b"feb", b"mar", b"apr", b"may", b"jun", b"jul", b"aug", b"sep", b"oct", b"nov", b"dec"];
    let lower = <[u8; 3]>::try_from(name).ok()?.map(|byte| byte | 0x20);
    (1..).zip(MONTHS).find(|(_, name)| **name == lower).map(|(number, _)| number)
}

/// Days from 1970-01-01 to a date of the Gregorian calendar; `None` if the date does not exist.
pub fn days(year: i64, month: i64, day: i64) -> Option<i64> {
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let length = match month {
        4 | 6 | 9 | 11 => 30,
        2 => 28 + i64::from(leap),
        1..=12 => 31,
        _ => return None,
    };
    if day < 1 || day > length {
        return None;
    }
    // Years that start in March, so that the leap day is the last of its year.
    let shifted = year - i64::from(month <= 2);
    let era = shifted.div_euclid(400);
    let of_era = shifted.rem_euclid(400);
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let of_era_days = of_era * 365 + of_era / 4 - of_era / 100 + of_year;
    Some(era * 146_097 + of_era_days - 719_468)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_day_of_every_kind_of_year_agrees_with_jiff() {
        let epoch = jiff::civil::date(1970, 1, 1);
        for year in [1, 4, 99, 100, 400, 1600, 1900, 1969, 1970, 2000, 2023, 2024, 2100, 9999] {
            for (month, day) in (0..=13).flat_map(|month| (0..=32).map(move |day| (month, day))) {
                let expect = jiff::civil::Date::new(year, month, day).ok();
                let expect = expect.map(|date| i64::from(date.since(epoch).unwrap().get_days()));
                assert_eq!(days(year.into(), month.into(), day.into()), expect, "{year}-{month}-{day}");
            }
        }
    }
}
