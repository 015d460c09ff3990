//! Log lines as programs write them, each with the expected parse result.

use std::fmt::Write as _;

use jiff::Timestamp;
use jiff::tz::{Offset, TimeZone};
use rand::Rng as _;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;

/// A line and the expected record.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Line {
    /// The line.
    pub text: String,
    /// Event time in microseconds since 1970.
    pub ts_us: i64,
    /// OpenTelemetry's severity number.
    pub severity: u8,
    /// The message.
    pub message: String,
}

const PATHS: [&str; 8] = [
    "/",
    "/index.html",
    "/images/logo%20small.png",
    "/api/v2/orders?id=17&sort=-date",
    "/reset.css",
    "/blog/tags/puppet?flav=rss20",
    "/?q=%22quoted%22",
    "/a/very/long/path/with/many/parts/and/then/some/more/parts.html",
];

const AGENTS: [&str; 6] = [
    "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_9_1) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/32.0.1700.77 Safari/537.36",
    "Mozilla/5.0 (X11; Ubuntu; Linux x86_64; rv:24.0) Gecko/20100101 Firefox/24.0",
    "curl/8.5.0",
    "-",
    "Mozilla/5.0 (compatible; a bot with \\\"quotes\\\" in its name; +http://bot.example/)",
    "UniversalFeedParser/4.2-pre-314-svn +http://feedparser.org/",
];

const STATUSES: [(u16, u8); 9] =
    [(200, 9), (200, 9), (200, 9), (206, 9), (301, 9), (304, 9), (403, 13), (404, 13), (500, 17)];

/// Returns a line of a web server's combined log, in one of several time zones.
#[must_use]
pub fn access_log(random: &mut StdRng, now: Timestamp) -> Line {
    let at = Timestamp::from_second(now.as_second() - random.random_range(0..86_400)).expect("yesterday is a time");
    let offset = Offset::from_hours(*[-5, 0, 0, 2, 9].choose(random).expect("not empty")).expect("hours of a day");
    let local = at.to_zoned(TimeZone::fixed(offset)).strftime("%d/%b/%Y:%H:%M:%S %z").to_string();
    let (status, severity) = *STATUSES.choose(random).expect("not empty");
    let path = PATHS.choose(random).expect("not empty");
    let agent = AGENTS.choose(random).expect("not empty");
    let [a, b, c, d]: [u8; 4] = random.random();
    let bytes = if status == 304 { "-".to_owned() } else { random.random_range(0..2_000_000).to_string() };
    let user = *["-", "-", "-", "alice"].choose(random).expect("not empty");
    let method = *["GET", "GET", "GET", "POST", "HEAD"].choose(random).expect("not empty");
    let referer = *["-", "http://www.example.org/blog/"].choose(random).expect("not empty");
    let text = format!(
        r#"{a}.{b}.{c}.{d} - {user} [{local}] "{method} {path} HTTP/1.1" {status} {bytes} "{referer}" "{agent}""#
    );
    Line { message: text.clone(), text, ts_us: at.as_microsecond(), severity }
}

/// Returns a JSON line, with one of the common field names and spellings.
#[must_use]
pub fn json(random: &mut StdRng, now: Timestamp) -> Line {
    let at_us = now.as_microsecond() - random.random_range(0..86_400_000_000);
    let at = Timestamp::from_microsecond(at_us).expect("yesterday is a time");
    let (level, severity) = *[("debug", 5), ("INFO", 9), ("info", 9), ("Warning", 13), ("error", 17), ("fatal", 21)]
        .choose(random)
        .expect("not empty");
    let message = *["order placed", "a \"quoted\" word", "übergröße ✓ 日本", "tab\there", "back\\slash", "{not json"]
        .choose(random)
        .expect("not empty");
    let message = format!("{message} {}", random.random_range(0..1_000_000));
    let [time_name, level_name, message_name] = *[
        ["ts", "level", "msg"],
        ["timestamp", "severity", "message"],
        ["@timestamp", "log.level", "message"],
        ["time", "lvl", "body"],
    ]
    .choose(random)
    .expect("not empty");
    let mut text = String::new();
    let _ = write!(
        text,
        r#"{{"{time_name}":"{at}","{level_name}":"{level}","{message_name}":{},"user_id":{},"tags":["a","b"]}}"#,
        serde_json::Value::from(message.as_str()),
        random.random_range(0..1000)
    );
    Line { text, ts_us: at_us, severity, message }
}
