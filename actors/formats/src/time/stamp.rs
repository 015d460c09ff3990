//! Parses a time at the start of a text, in the forms that programs commonly write.
//!
//! - `2015-10-18 18:01:47,978`, `2015/07/29 …`, `17/06/09 20:10:40`, `081109 203615`, `20171223-22:15:29:606`,
//!   `Jun 14 15:16:01`, `Sun Dec 04 04:47:44 2005`, `12 Dec 2020 10:00:00.123`, `14-Jun-2015 15:16:01`,
//!   `17/May/2015:10:05:03`, `03-17 16:13:38.811`, `10:05:03.250`, `3:04PM`, and epoch times of 10, 13, 16 or 19 digits.
//! - Month names are English whatever the machine's locale, since that is what programs write.
//! - A missing year is the latest for which the time is not more than a day after the arrival; a missing date is the
//!   day that brings the time closest to the arrival.
//! - Two-digit years are 1970 to 2069. `05/17/2015` is read in the American order unless the first number cannot be a
//!   month, `17.05.2015` in the European order.

use super::calendar::{days, month};
use super::epoch::from_number;
use super::event_time::EventTime;

const DAY: i64 = 86_400;

/// The parsed fields of a time; the rest follows from the time of arrival.
#[derive(Clone, Copy)]
struct Fields {
    year: Option<i64>,
    /// Month and day.
    day: Option<(i64, i64)>,
    /// Seconds since midnight.
    second: i64,
    micros: i64,
    /// Seconds east of UTC, if specified.
    offset: Option<i64>,
}

impl Fields {
    /// `None` if there is no such day.
    fn at(self, now_us: Option<i64>) -> Option<EventTime> {
        let Self { year, day, second, micros, offset } = self;
        let of_day = |days: i64| days * DAY + second - offset.unwrap_or(0);
        let seconds = match (year, day) {
            (Some(year), Some((month, day))) => of_day(days(year, month, day)?),
            (None, Some((month, day))) => {
                let latest = now_us?.div_euclid(1_000_000) + DAY;
                let year = 1970 + latest.div_euclid(31_556_952);
                // The previous February 29 may be eight years ago.
                let mut known = (year - 8..=year + 1).rev().filter_map(|year| days(year, month, day).map(of_day));
                known.find(|&seconds| seconds <= latest)?
            }
            (_, None) => {
                let now = now_us?.div_euclid(1_000_000);
                let today = of_day(now.div_euclid(DAY));
                [today - DAY, today, today + DAY].into_iter().min_by_key(|seconds| seconds.abs_diff(now))?
            }
        };
        let us = i128::from(seconds) * 1_000_000 + i128::from(micros);
        Some(EventTime { local: offset.is_none(), ..EventTime::from_us(us) })
    }
}

/// Parses the time that `text` begins with; returns the rest as well.
pub fn leading(text: &str, now_us: i64) -> Option<(EventTime, &str)> {
    let mut cursor = Cursor { text, at: 0 };
    if let Some(time) = epoch(text) {
        return Some(time);
    }
    let time = cursor.fields()?.at(Some(now_us))?;
    Some((time, cursor.rest()))
}

/// As [`leading`], in glog's form: `0115 10:00:00.123456` or `20210115 10:00:00.123456`.
pub fn leading_packed(text: &str, now_us: i64) -> Option<(EventTime, &str)> {
    let mut cursor = Cursor { text, at: 0 };
    let (date, len) = cursor.digits(4, 8)?;
    cursor.eat(b" ")?;
    let year = (len == 8).then_some(date / 10_000);
    let time = cursor.clock(year, Some((date / 100 % 100, date % 100)))?.at(Some(now_us))?;
    matches!(len, 4 | 8).then(|| (time, cursor.rest()))
}

/// Parses a text that is a time with a date, and nothing else.
pub fn whole(text: &str) -> Option<EventTime> {
    let mut cursor = Cursor { text, at: 0 };
    let fields = cursor.fields().filter(|_| cursor.rest().is_empty())?;
    fields.at(None)
}

/// Whether `text` may begin with a time that has a date: a cheap check.
pub fn may_begin_with_time(text: &str) -> bool {
    matches!(
        text.as_bytes(),
        [b'0'..=b'9', b'0'..=b'9' | b':', ..] | [b'A'..=b'Z', b'a'..=b'z', b'a'..=b'z', b' ' | b',', ..]
    )
}

/// Parses digits that are an epoch time, up to a space.
fn epoch(text: &str) -> Option<(EventTime, &str)> {
    let bytes = text.as_bytes();
    let digits = bytes.iter().take(20).take_while(|byte| byte.is_ascii_digit()).count();
    if !matches!(digits, 10 | 13 | 16 | 19) {
        return None;
    }
    let mut end = digits;
    if bytes.get(end) == Some(&b'.') {
        end += 1 + bytes[end + 1..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    }
    matches!(bytes.get(end), None | Some(b' ' | b'\t' | b']' | b'|')).then_some(())?;
    Some((from_number(&text[..end])?, &text[end..]))
}

struct Cursor<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Cursor<'a> {
    fn bytes(&self) -> &'a [u8] {
        &self.text.as_bytes()[self.at..]
    }

    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    /// Consumes one of these bytes.
    fn eat(&mut self, any: &[u8]) -> Option<u8> {
        let byte = *self.bytes().first()?;
        any.contains(&byte).then(|| {
            self.at += 1;
            byte
        })
    }

    /// Consumes a number of `min` to `max` digits; returns it and its length.
    fn digits(&mut self, min: usize, max: usize) -> Option<(i64, usize)> {
        let mut value = 0;
        let mut len = 0;
        for &byte in self.bytes().iter().take(max) {
            if !byte.is_ascii_digit() {
                break;
            }
            value = value * 10 + i64::from(byte - b'0');
            len += 1;
        }
        self.at += len;
        (len >= min).then_some((value, len))
    }

    fn number(&mut self, min: usize, max: usize) -> Option<i64> {
        self.digits(min, max).map(|(value, _)| value)
    }

    fn month(&mut self) -> Option<i64> {
        let month = month(self.bytes().get(..3)?)?;
        self.at += 3;
        Some(month)
    }

    fn fields(&mut self) -> Option<Fields> {
        if self.bytes().first()?.is_ascii_alphabetic() {
            return self.named();
        }
        let (first, len) = self.digits(1, 9)?;
        match (len, *self.bytes().first()?) {
            (4, separator @ (b'-' | b'/' | b'.')) => {
                self.at += 1;
                let month = self.number(1, 2)?;
                self.eat(&[separator])?;
                let day = self.number(1, 2)?;
                self.eat(b"T t_-:")?;
                self.clock(Some(first), Some((month, day)))
            }
            (6, b' ') => self.packed(first),
            (8, b' ' | b'-' | b'T' | b'_') => {
                self.at += 1;
                self.clock(Some(first / 10_000), Some((first / 100 % 100, first % 100)))
            }
            (1 | 2, b':') => {
                self.at -= len;
                self.clock(None, None)
            }
            (1 | 2, separator) => self.day_first(first, separator),
            _ => None,
        }
    }

    /// `081109 203615` or `081109 20:36:15`.
    fn packed(&mut self, date: i64) -> Option<Fields> {
        self.at += 1;
        let (year, day) = (full_year(date / 10_000), (date / 100 % 100, date % 100));
        self.eat(b" ");
        let start = self.at;
        if let Some(clock) = self.number(6, 6) {
            let (hour, minute, second) = (clock / 10_000, clock / 100 % 100, clock % 100);
            let second = seconds(hour, minute, second)?;
            return Some(Fields { year: Some(year), day: Some(day), second, micros: 0, offset: None });
        }
        self.at = start;
        self.clock(Some(year), Some(day))
    }

    /// Forms that begin with one or two digits that are not an hour.
    fn day_first(&mut self, first: i64, separator: u8) -> Option<Fields> {
        self.eat(b"/-. ")?;
        if let Some(month) = self.month() {
            return self.day_month(first, month, separator);
        }
        let second = self.number(2, 2)?;
        if self.eat(&[separator]).filter(|&separator| separator != b' ').is_none() {
            // `03-17 16:13:38.811`, `10.30 16:49:06`
            self.eat(b" ").filter(|_| matches!(separator, b'-' | b'.'))?;
            return self.clock(None, Some((first, second)));
        }
        let (third, len) = self.digits(2, 4)?;
        self.eat(b" T,")?;
        self.eat(b" ");
        let (year, day) = match (len, separator) {
            (2, _) => (full_year(first), (second, third)), // `17/06/09`
            (4, b'.') => (third, (second, first)),
            (4, _) if first > 12 => (third, (second, first)),
            (4, _) => (third, (first, second)),
            _ => return None,
        };
        self.clock(Some(year), Some(day))
    }

    /// `12 Dec 2020 10:00:00`, `12 Dec 10:00:00`, `14-Jun-2015 15:16:01`, `17/May/2015:10:05:03`, after the month.
    fn day_month(&mut self, day: i64, month: i64, separator: u8) -> Option<Fields> {
        self.eat(&[separator])?;
        let start = self.at;
        let year = self.number(4, 4);
        match year {
            Some(_) => _ = self.eat(b" :T")?,
            None => self.at = start,
        }
        self.clock(year, Some((month, day)))
    }

    /// `Jun 14 15:16:01`, `Jun 14 2015 15:16:01`, `Jun 14, 2015 3:16:01 PM`, `Sun Dec 04 04:47:44 2005`.
    fn named(&mut self) -> Option<Fields> {
        let weekday = is_weekday(self.bytes());
        if weekday {
            self.at += 3;
            self.eat(b",");
            self.eat(b" ")?;
        }
        if weekday && self.bytes().first()?.is_ascii_digit() {
            let day = self.number(1, 2)?;
            let separator = self.eat(b" -")?;
            let month = self.month()?;
            return self.day_month(day, month, separator);
        }
        let month = self.month()?;
        self.eat(b" ")?;
        self.eat(b" ");
        let day = self.number(1, 2)?;
        self.eat(b",");
        self.eat(b" ")?;
        let start = self.at;
        let year = self.number(4, 4).and_then(|year| self.eat(b" ").map(|_| year));
        if year.is_none() {
            self.at = start;
        }
        let mut fields = self.clock(year, Some((month, day)))?;
        if weekday && year.is_none() {
            fields.year = self.trailing_year();
        }
        Some(fields)
    }

    /// A year after the time of day, as written by `ctime`.
    fn trailing_year(&mut self) -> Option<i64> {
        let start = self.at;
        let year = self.eat(b" ").and_then(|_| self.number(4, 4));
        if year.is_none() || self.bytes().first().is_some_and(u8::is_ascii_alphanumeric) {
            self.at = start;
            return None;
        }
        year
    }

    /// `HH:MM:SS`, a fraction, `AM` or `PM`, a zone. The seconds are optional only before `AM` or `PM`.
    fn clock(&mut self, year: Option<i64>, day: Option<(i64, i64)>) -> Option<Fields> {
        let mut hour = self.number(1, 2)?;
        self.eat(b":")?;
        let minute = self.number(1, 2)?;
        let (mut second, mut micros) = (0, 0);
        let has_seconds = self.eat(b":").is_some();
        if has_seconds {
            second = self.number(1, 2)?;
            micros = self.fraction();
        }
        let afternoon = self.meridiem();
        match afternoon {
            Some(_) if !(1..=12).contains(&hour) => return None,
            Some(afternoon) => hour = hour % 12 + if afternoon { 12 } else { 0 },
            None if !has_seconds => return None,
            None => {}
        }
        Some(Fields { year, day, second: seconds(hour, minute, second)?, micros, offset: self.zone() })
    }

    /// Consumes a fraction of a second, in microseconds; consumes nothing if there is none.
    fn fraction(&mut self) -> i64 {
        let [b'.' | b',' | b':', digits @ ..] = self.bytes() else { return 0 };
        let len = digits.iter().take_while(|byte| byte.is_ascii_digit()).count();
        if len == 0 {
            return 0;
        }
        self.at += 1 + len;
        let micros = digits[..len].iter().chain(std::iter::repeat(&b'0')).take(6);
        micros.fold(0, |value, digit| value * 10 + i64::from(digit - b'0'))
    }

    fn meridiem(&mut self) -> Option<bool> {
        let bytes = self.bytes();
        let space = usize::from(bytes.first() == Some(&b' '));
        let letters = bytes.get(space..space + 2)?;
        let afternoon = if letters.eq_ignore_ascii_case(b"PM") {
            true
        } else if letters.eq_ignore_ascii_case(b"AM") {
            false
        } else {
            return None;
        };
        if bytes.get(space + 2).is_some_and(u8::is_ascii_alphanumeric) {
            return None;
        }
        self.at += space + 2;
        Some(afternoon)
    }

    /// `Z`, `+02`, `+0200`, `+02:00`, `UTC`, or an abbreviation of North America or Europe; in seconds east of UTC.
    fn zone(&mut self) -> Option<i64> {
        let start = self.at;
        let spaced = self.eat(b" ").is_some();
        let zone = match *self.bytes() {
            [b'Z' | b'z', ..] => {
                self.at += 1;
                Some(0)
            }
            [sign @ (b'+' | b'-'), b'0'..=b'9', b'0'..=b'9', ..] => {
                self.at += 1;
                self.offset(spaced).map(|offset| if sign == b'-' { -offset } else { offset })
            }
            [b'A'..=b'Z', ..] if spaced => self.abbreviation(),
            _ => None,
        };
        if zone.is_none() || self.bytes().first().is_some_and(u8::is_ascii_alphanumeric) {
            self.at = start;
            return None;
        }
        zone
    }

    fn offset(&mut self, spaced: bool) -> Option<i64> {
        let (digits, len) = self.digits(2, 4)?;
        let (hour, minute) = match len {
            4 => (digits / 100, digits % 100),
            2 if self.eat(b":").is_some() => (digits, self.number(2, 2)?),
            2 if !spaced => (digits, 0),
            _ => return None,
        };
        (hour < 24 && minute < 60).then_some(hour * 3600 + minute * 60)
    }

    fn abbreviation(&mut self) -> Option<i64> {
        let len = self.bytes().iter().take(5).take_while(|byte| byte.is_ascii_uppercase()).count();
        let hours = match &self.bytes()[..len] {
            b"UTC" | b"GMT" | b"WET" => 0,
            b"CET" | b"WEST" | b"BST" => 1,
            b"CEST" | b"EET" => 2,
            b"EEST" | b"MSK" => 3,
            b"EST" | b"CDT" => -5,
            b"EDT" => -4,
            b"CST" | b"MDT" => -6,
            b"MST" | b"PDT" => -7,
            b"PST" => -8,
            _ => return None,
        };
        self.at += len;
        Some(hours * 3600)
    }
}

fn full_year(two_digits: i64) -> i64 {
    if two_digits < 70 { 2000 + two_digits } else { 1900 + two_digits }
}

/// A leap second is read as the second before it.
fn seconds(hour: i64, minute: i64, second: i64) -> Option<i64> {
    (hour < 24 && minute < 60 && second <= 60).then_some(hour * 3600 + minute * 60 + second.min(59))
}

/// Whether this is the English three-letter name of a day or a month.
pub fn is_day_or_month(name: &[u8]) -> bool {
    is_weekday(name) || month(name).is_some()
}

fn is_weekday(bytes: &[u8]) -> bool {
    const DAYS: [&[u8; 3]; 7] = [b"Mon", b"Tue", b"Wed", b"Thu", b"Fri", b"Sat", b"Sun"];
    bytes.get(..3).is_some_and(|name| DAYS.iter().any(|day| name == *day))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// 2023-11-14 22:13:20 UTC.
    const NOW_US: i64 = 1_700_000_000_000_000;

    /// `text` begins with the time that jiff parses from `expect`, followed by `rest`.
    fn check(text: &str, expect: &str, rest: &str) {
        let expect: jiff::Timestamp = expect.parse().unwrap();
        let read = leading(text, NOW_US).map(|(time, rest)| (time.us, rest));
        assert_eq!(read, Some((expect.as_microsecond(), rest)), "{text}");
    }

    #[test]
    fn times_of_all_families_are_parsed_and_the_rest_is_returned() {
        check("2015-10-18 18:01:47,978 INFO", "2015-10-18T18:01:47.978Z", " INFO");
        check("2015-10-18T18:01:47.9781234+02:00 x", "2015-10-18T16:01:47.978123Z", " x");
        check("2015/07/29 17:41:44 [error]", "2015-07-29T17:41:44Z", " [error]");
        check("2015-07-29 17:41:44 - x", "2015-07-29T17:41:44Z", " - x");
        check("2015-07-29 17:41:44 -0700 x", "2015-07-30T00:41:44Z", " x");
        check("2015-07-29 17:41:44.5 CEST [7]", "2015-07-29T15:41:44.5Z", " [7]");
        check("2015-07-29 17:41:44 UTCx", "2015-07-29T17:41:44Z", " UTCx");
        check("2016-09-28 04:30:30, Info", "2016-09-28T04:30:30Z", ", Info");
        check("17/06/09 20:10:40 INFO", "2017-06-09T20:10:40Z", " INFO");
        check("081109 203615 148 INFO", "2008-11-09T20:36:15Z", " 148 INFO");
        check("081109  1:36:15 [Note]", "2008-11-09T01:36:15Z", " [Note]");
        check("20171223-22:15:29:606|Step", "2017-12-23T22:15:29.606Z", "|Step");
        check("20171224-0:5:9:6|Step", "2017-12-24T00:05:09.6Z", "|Step");
        check("Sun Dec 04 04:47:44 2005] x", "2005-12-04T04:47:44Z", "] x");
        check("Fri Sep 09 10:42:29.902022 2011]", "2011-09-09T10:42:29.902022Z", "]");
        check("Fri Jul 01 08:16:53 PDT 2005", "2005-07-01T15:16:53Z", "");
        check("Sun, 17 May 2015 10:05:03 +0200 x", "2015-05-17T08:05:03Z", " x");
        check("Jun 14, 2015 3:16:01 PM org.x", "2015-06-14T15:16:01Z", " org.x");
        check("Jun 14 2015 15:16:01: %ASA", "2015-06-14T15:16:01Z", ": %ASA");
        check("12 Dec 2020 10:00:00.123 * x", "2020-12-12T10:00:00.123Z", " * x");
        check("14-Jun-2015 15:16:01.123 INFO", "2015-06-14T15:16:01.123Z", " INFO");
        check("17/May/2015:10:05:03 +0000] x", "2015-05-17T10:05:03Z", "] x");
        check("05/17/2015 10:05:03 x", "2015-05-17T10:05:03Z", " x");
        check("17.05.2015 10:05:03 x", "2015-05-17T10:05:03Z", " x");
        check("1431857103 x", "2015-05-17T10:05:03Z", " x");
        check("1431857103.25 x", "2015-05-17T10:05:03.25Z", " x");
        check("1431857103250 x", "2015-05-17T10:05:03.25Z", " x");
        check("1431857103250000000 x", "2015-05-17T10:05:03.25Z", " x");
        check("2016-12-31 23:59:60 x", "2016-12-31T23:59:59Z", " x");
    }

    #[test]
    fn a_missing_year_or_day_is_inferred_from_the_arrival() {
        check("Jun 14 15:16:01 combo", "2023-06-14T15:16:01Z", " combo");
        check("Jun  4 15:16:01 combo", "2023-06-04T15:16:01Z", " combo");
        check("Nov 15 22:13:20 up to a day ahead", "2023-11-15T22:13:20Z", " up to a day ahead");
        check("Nov 15 22:13:21 later", "2022-11-15T22:13:21Z", " later");
        check("Feb 29 00:00:00 x", "2020-02-29T00:00:00Z", " x");
        check("03-17 16:13:38.811  1702", "2023-03-17T16:13:38.811Z", "  1702");
        check("10.30 16:49:06] x", "2023-10-30T16:49:06Z", "] x");
        check("12 Dec 10:00:00 * x", "2022-12-12T10:00:00Z", " * x");
        check("22:05:03.250 [main]", "2023-11-14T22:05:03.25Z", " [main]");
        check("01:05:03 [main]", "2023-11-15T01:05:03Z", " [main]");
        check("10:04PM INF x", "2023-11-14T22:04:00Z", " INF x");
    }

    #[test]
    fn other_text_is_not_a_time() {
        for text in [
            "",
            "1",
            "12",
            "2015",
            "2015-10-18",
            "2015-13-18 10:00:00",
            "2015-02-29 10:00:00",
            "10:05",
            "25:00:00",
            "Monday 10:00:00",
            "Jun 31 10:00:00 x",
            "1234567890x",
            "192.168.0.1 10:00:00",
            "99.99 10:00:00",
            "May the",
            "081109 256015",
            "13:04PM",
            "é",
        ] {
            assert!(leading(text, NOW_US).is_none(), "{text}");
        }
        // A zone name is not accepted where a zone cannot be.
        assert!(whole("Jun 14 15:16:01").is_none());
        assert!(whole("2015.10.18 18:01:47").is_some());
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_without_a_panic(text in "([0-9]{1,5}|[-/:. ,+T]|Jun|Sun|PM|UTC|é){0,14}") {
            if let Some((_, rest)) = leading(&text, NOW_US) {
                prop_assert!(text.ends_with(rest));
            }
            let _ = whole(&text);
        }
    }
}
