//! The formats of lines, and which of them a line may have.

use super::line_format::LineFormat;
use super::{
    access_log, application, container, database, glog, logcat, logfmt, plain, supercomputer, syslog, web_error,
};
use crate::object;

static DOCKER: LineFormat = LineFormat::envelope("docker", container::looks_like_docker, container::parse_docker);
pub static NDJSON: LineFormat = LineFormat::new("ndjson", object::looks_like, object::parse).conclusive().general();
pub static ACCESS_LOG: LineFormat =
    LineFormat::new("access_log", access_log::looks_like, access_log::parse).conclusive();
static CRI: LineFormat = LineFormat::envelope("cri", container::looks_like_cri, container::parse_cri);
static SYSLOG: LineFormat = LineFormat::new("syslog", syslog::looks_like, syslog::parse);
static NGINX_ERROR: LineFormat = LineFormat::new("nginx_error", web_error::looks_like_nginx, web_error::parse_nginx);
static APACHE_ERROR: LineFormat =
    LineFormat::new("apache_error", web_error::looks_like_apache, web_error::parse_apache);
static GLOG: LineFormat = LineFormat::new("glog", glog::looks_like, glog::parse);
static REDIS: LineFormat = LineFormat::new("redis", database::looks_like_redis, database::parse_redis);
static POSTGRES: LineFormat = LineFormat::new("postgres", database::looks_like_postgres, database::parse_postgres);
static SUPERCOMPUTER: LineFormat = LineFormat::new("supercomputer", supercomputer::looks_like, supercomputer::parse);
static LOGCAT: LineFormat = LineFormat::new("logcat", logcat::looks_like, logcat::parse);
static LOGFMT: LineFormat = LineFormat::new("logfmt", logfmt::looks_like, logfmt::parse);
static KEY_VALUE: LineFormat = LineFormat::new("key_value", logfmt::may_have_tail, logfmt::parse_tail).general();
static APPLICATION: LineFormat = LineFormat::new("application", application::looks_like, application::parse).general();
pub static PLAIN: LineFormat = LineFormat::new("plain", plain::looks_like, plain::parse);

/// All line formats.
pub static LINE_FORMATS: [&LineFormat; 16] = [
    &NDJSON,
    &ACCESS_LOG,
    &SYSLOG,
    &NGINX_ERROR,
    &APACHE_ERROR,
    &LOGFMT,
    &KEY_VALUE,
    &APPLICATION,
    &GLOG,
    &REDIS,
    &POSTGRES,
    &CRI,
    &DOCKER,
    &LOGCAT,
    &SUPERCOMPUTER,
    &PLAIN,
];

/// The formats that a line may have, judged by its first bytes. Specific formats precede general ones, since the first
/// that can parse the line wins. Text that begins with a space continues an earlier line, such as a stack trace.
///
/// One check costs little, but nine of them cost a fifth of parsing the line. So lines that begin with a date, which
/// are most of what programs write, are distinguished by the positions of their punctuation. A test searches for lines
/// that this tree wrongly excludes.
pub fn candidates(line: &str) -> &'static [&'static LineFormat] {
    static BRACE: [&LineFormat; 2] = [&DOCKER, &NDJSON];
    static DATE_T: [&LineFormat; 3] = [&CRI, &SYSLOG, &APPLICATION]; // 2015-10-18T
    static DATE: [&LineFormat; 2] = [&POSTGRES, &APPLICATION]; // 2015-10-18 18:01
    static DATE_SLASHED: [&LineFormat; 2] = [&NGINX_ERROR, &APPLICATION]; // 2015/10/18, 17/06/09
    static NUMBER: [&LineFormat; 6] = [&REDIS, &LOGCAT, &SUPERCOMPUTER, &ACCESS_LOG, &SYSLOG, &APPLICATION];
    static CAPITAL: [&LineFormat; 7] = [&SYSLOG, &GLOG, &APPLICATION, &LOGFMT, &SUPERCOMPUTER, &ACCESS_LOG, &KEY_VALUE];
    static SMALL: [&LineFormat; 4] = [&LOGFMT, &ACCESS_LOG, &APPLICATION, &KEY_VALUE];
    // Prose: neither a pair nor a bracket.
    static CAPITAL_PROSE: [&LineFormat; 4] = [&SYSLOG, &GLOG, &APPLICATION, &SUPERCOMPUTER];
    static SMALL_PROSE: [&LineFormat; 1] = [&APPLICATION];
    let is_prose = || memchr::memchr2(b'=', b'[', line.as_bytes()).is_none();
    static BRACKET: [&LineFormat; 3] = [&APACHE_ERROR, &REDIS, &APPLICATION];
    static ANGLE: [&LineFormat; 1] = [&SYSLOG];
    static DASH: [&LineFormat; 2] = [&SUPERCOMPUTER, &ACCESS_LOG];
    static SPACE: [&LineFormat; 1] = [&NDJSON];
    static OTHER: [&LineFormat; 2] = [&LOGFMT, &ACCESS_LOG];
    match line.as_bytes() {
        [b'{', ..] => &BRACE,
        [b'0'..=b'9', _, _, _, b'-', _, _, b'-', _, _, b'T', ..] => &DATE_T,
        [b'0'..=b'9', _, _, _, b'-', _, _, b'-', _, _, b' ', ..] => &DATE,
        [b'0'..=b'9', _, b'/', ..] | [b'0'..=b'9', _, _, _, b'/', ..] => &DATE_SLASHED,
        [b'0'..=b'9', ..] => &NUMBER,
        [b'A'..=b'Z', ..] if is_prose() => &CAPITAL_PROSE,
        [b'A'..=b'Z', ..] => &CAPITAL,
        [b'a'..=b'z', ..] if is_prose() => &SMALL_PROSE,
        [b'a'..=b'z', ..] => &SMALL,
        [b'[', ..] => &BRACKET,
        [b'<', ..] => &ANGLE,
        [b'-', ..] => &DASH,
        [b' ' | b'\t', ..] => &SPACE,
        _ => &OTHER,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::catalog::{FORMATS, format_named};
    use crate::format::{Defaults, Format};
    use crate::object::Scratch;
    use crate::sink::Sink;

    const NOW_US: i64 = 1_700_000_000_000_000;

    #[test]
    fn every_line_format_is_listed_and_every_name_is_unique_and_resolves() {
        let mut names: Vec<&str> = FORMATS.iter().map(|format| format.name).collect();
        for format in LINE_FORMATS {
            assert!(names.contains(&format.name), "{} is not listed", format.name);
        }
        names.extend(FORMATS.iter().flat_map(|format| format.aliases));
        for name in &names {
            if let Format::Line(line_format) = format_named(name).unwrap() {
                assert!(LINE_FORMATS.iter().any(|known| known.name == line_format), "{name} is not a line format");
            }
        }
        assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len(), "a name is listed twice");
        assert_eq!(format_named("records"), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]

        #[test]
        fn formats_excluded_by_the_date_would_not_match(
            line in r"[0-9]{1,4}[-/.:]?[0-9]{2}[-/.: ]?[0-9]{2}[T ]([0-9]{2}:[0-9]{2}:[0-9]{2}|[0-9]{9,10})[.,Z ]([0-9]{3} )?(\[error\]|\[[0-9]{2}\]| stdout F| [0-9]+ [0-9]+ I|a\[7\]: | - - \[17/May/2015:)?.{0,20}"
        ) {
            let any = [&CRI, &NGINX_ERROR, &POSTGRES, &REDIS, &LOGCAT, &SUPERCOMPUTER, &SYSLOG, &APPLICATION];
            let reads = |format: &LineFormat| {
                let defaults = Defaults::default();
                let mut sink = Sink::new(NOW_US, &defaults, 1, line.len());
                (format.looks_like)(&line) && format.parse(&line, &mut Scratch::default(), &mut sink, |line, sink| sink.push_plain(line)).is_ok()
            };
            let first = any.into_iter().find(|format| reads(format)).map(|format| format.name);
            let found = candidates(&line).iter().find(|format| reads(format)).map(|format| format.name);
            prop_assert!(first.is_none() || first == found || found == Some("access_log"), "{:?} {:?}", first, found);
        }
    }
}
