//! Each text format: fixed and detected. The ratio at the end is the cost of detection, which should stay below 1.15.
//!
//! The bodies are 512 KiB of lines with varying times and numbers.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use logweir_benches::ratio::ratio;
use logweir_formats::{Defaults, Format};
use logweir_formats::{format_named, parse};
use std::hint::black_box;
use std::time::Duration;

const BODY_BYTES: usize = 512 << 10;
const NOW_US: i64 = 1_700_000_000_000_000;
const LINE_BYTES_MAX: usize = 256 << 10;
/// Repetitions per measured run, so that it is long enough for the clock.
const TIMES: usize = 10;

/// Name of the bench, name of the format, and a line with `{s}` for two digits and `{n}` for a number.
const LINES: [(&str, &str, &str); 17] = [
    (
        "ndjson",
        "ndjson",
        r#"{"ts":"2015-05-17T10:05:{s}.250Z","level":"warn","service":"cart","message":"card {n} declined","order":{n}}"#,
    ),
    (
        "access log",
        "access_log",
        r#"10.1.2.{s} - - [17/May/2015:10:05:{s} +0000] "GET /static/{n}.css HTTP/1.1" 200 {n} "-" "Mozilla/5.0""#,
    ),
    (
        "hadoop",
        "application",
        "2015-10-18 18:01:{s},978 INFO [main] org.apache.hadoop.mapreduce.v2.app.MRAppMaster: Created MRAppMaster for application {n}",
    ),
    ("spark", "application", "17/06/09 20:10:{s} INFO storage.BlockManager: Found block rdd_{n} locally"),
    (
        "spring",
        "application",
        "2015-10-18 18:01:{s}.978  INFO 12345 --- [           main] c.e.shop.Checkout                        : order {n} placed",
    ),
    ("python", "application", "2015-10-18 18:01:{s},978 - shop.checkout - WARNING - card {n} declined"),
    ("zap", "application", "2015-10-18T18:01:{s}.978Z\tINFO\tserver/main.go:12\tlistening\t{\"port\": {n}}"),
    (
        "syslog",
        "syslog",
        "Jun 14 15:16:{s} combo sshd(pam_unix)[{n}]: authentication failure; logname= uid=0 euid=0 tty=NODEVssh ruser= rhost=218.188.2.4",
    ),
    (
        "syslog 5424",
        "syslog",
        "<165>1 2015-10-11T22:14:{s}.003Z web1.example cart {n} ID47 - an application event log entry",
    ),
    (
        "nginx error",
        "nginx_error",
        "2015/05/17 10:05:{s} [error] 7#0: *{n} open() \"/srv/x\" failed (2: No such file or directory), client: 10.0.0.9, server: _",
    ),
    (
        "apache error",
        "apache_error",
        "[Sun May 17 10:05:{s} 2015] [error] [client 10.0.0.9] File does not exist: /srv/{n}",
    ),
    ("glog", "glog", "I0115 10:00:{s}.123456    1234 kubelet.go:123] pod {n} started"),
    ("redis", "redis", "1234:M 12 Dec 2020 10:00:{s}.123 * {n} changes in 60 seconds. Saving..."),
    (
        "postgres",
        "postgres",
        "2015-10-18 18:01:{s}.978 UTC [{n}] app@shop LOG:  duration: 12.345 ms  statement: select 1",
    ),
    ("logfmt", "logfmt", "ts=2015-10-18T18:01:{s}Z level=info service=cart msg=\"order placed\" order={n} ms=12"),
    (
        "cri",
        "cri",
        "2016-10-06T00:17:{s}.669794202Z stdout F 2015-10-18 18:01:{s},978 INFO [main] a.b.C: order {n} placed",
    ),
    (
        "plain",
        "plain",
        "the quick brown fox number {n} jumps over the lazy dog, without any timestamp at the start of the line",
    ),
];

fn body(line: &str) -> String {
    let mut body = String::new();
    let mut number = 1_000;
    while body.len() < BODY_BYTES {
        number += 1;
        body.push_str(&line.replace("{s}", &format!("{:02}", number % 60)).replace("{n}", &number.to_string()));
        body.push('\n');
    }
    body
}

fn records(body: &str, format: Format) -> usize {
    let parsed =
        parse(body.as_bytes(), format, &Defaults::default(), NOW_US, LINE_BYTES_MAX).expect("lines are parsed");
    assert_eq!(parsed.report.parse_errors, 0, "a line does not match its format");
    black_box(parsed).chunk.len()
}

fn bench(criterion: &mut Criterion) {
    let bodies = LINES.map(|(bench, format, line)| {
        (bench, format_named(format).unwrap_or_else(|| panic!("unknown format {format}")), body(line))
    });
    let mut group = criterion.benchmark_group("format");
    group.sample_size(10).warm_up_time(Duration::from_millis(200)).measurement_time(Duration::from_millis(500));
    for (name, format, body) in &bodies {
        group.throughput(Throughput::Bytes(body.len() as u64));
        group.bench_function(format!("{name}/fixed"), |bencher| bencher.iter(|| records(body, *format)));
        group.bench_function(format!("{name}/found"), |bencher| bencher.iter(|| records(body, Format::Lines)));
    }
    group.finish();
    for (name, format, body) in &bodies {
        let often = |format: Format| (0..TIMES).for_each(|_| _ = records(body, format));
        ratio(&format!("{name} found / fixed"), || often(Format::Lines), || often(*format));
    }
}

criterion_group!(benches, bench);
criterion_main!(benches);
