//! The parser compared with bare parsers over the same bytes: the cost of interpreting a line beyond reading it.
//!
//! The bodies are 512 KiB with a fixed seed. serde_json and sonic-rs read JSON into a struct of the usual fields,
//! borrowed: they skip the rest, copy nothing and keep nothing. Text has no such parser; its limit is checking UTF-8,
//! finding the lines and copying them.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use logweir_benches::corpus::Corpus;
use logweir_benches::ratio::ratio;
use logweir_formats::parse;
use logweir_formats::{Defaults, Format};
use std::borrow::Cow;
use std::hint::black_box;
use std::time::Duration;

const BODY_BYTES: usize = 512 << 10;
const NOW_US: i64 = 1_700_000_000_000_000;
const LINE_BYTES_MAX: usize = 256 << 10;
/// Repetitions per measured run, so that it is long enough for the clock.
const TIMES: usize = 10;

fn json_body() -> String {
    let mut corpus = Corpus::of_bodies(300, BODY_BYTES, NOW_US);
    String::from_utf8(corpus.body(0).to_vec()).expect("the corpus is text")
}

fn access_log_body() -> String {
    let mut body = String::new();
    while body.len() < BODY_BYTES {
        let n = body.len() % 251;
        body.push_str(&format!(
            "10.1.{n}.7 - - [17/May/2015:10:05:{:02} +0000] \"GET /static/{n}.css HTTP/1.1\" 200 {} \"https://shop.example/\" \"Mozilla/5.0 (X11; Linux x86_64)\"\n",
            n % 60,
            n * 97
        ));
    }
    body
}

#[derive(serde::Deserialize)]
#[allow(dead_code)]
struct Usual<'a> {
    #[serde(borrow)]
    ts: Cow<'a, str>,
    #[serde(borrow)]
    level: Cow<'a, str>,
    #[serde(borrow)]
    service: Cow<'a, str>,
    #[serde(borrow)]
    host: Cow<'a, str>,
    #[serde(borrow)]
    message: Cow<'a, str>,
}

fn lines_by_serde_json(body: &str) -> usize {
    body.lines().filter(|line| black_box(serde_json::from_str::<Usual<'_>>(line)).is_ok()).count()
}

fn lines_by_sonic_rs(body: &str) -> usize {
    body.lines().filter(|line| black_box(sonic_rs::from_str::<Usual<'_>>(line)).is_ok()).count()
}

fn array_by_serde_json(body: &str) -> usize {
    black_box(serde_json::from_str::<Vec<Usual<'_>>>(body)).map_or(0, |all| all.len())
}

fn array_by_sonic_rs(body: &str) -> usize {
    black_box(sonic_rs::from_str::<Vec<Usual<'_>>>(body)).map_or(0, |all| all.len())
}

fn lines_copied(body: &str) -> usize {
    let text = std::str::from_utf8(black_box(body.as_bytes())).expect("the body is text");
    let (mut arena, mut start, mut lines) = (String::with_capacity(text.len()), 0, 0);
    for end in memchr::memchr_iter(b'\n', text.as_bytes()) {
        arena.push_str(&text[start..end]);
        (start, lines) = (end + 1, lines + 1);
    }
    black_box(arena);
    lines
}

fn records(body: &str, format: Format) -> usize {
    let parsed = parse(body.as_bytes(), format, &Defaults::default(), NOW_US, LINE_BYTES_MAX);
    black_box(parsed).map_or(0, |parsed| parsed.chunk.len())
}

fn bench(criterion: &mut Criterion) {
    let json = json_body();
    let access_log = access_log_body();
    let array = format!("[{}]", json.trim_end().replace('\n', ","));
    let mut group = criterion.benchmark_group("parse");
    group.sample_size(10).warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
    let bytes = |body: &str| Throughput::Bytes(body.len() as u64);
    for (bare, ours) in [
        (lines_by_serde_json(&json), records(&json, Format::Auto)),
        (lines_by_sonic_rs(&json), records(&json, Format::Auto)),
        (array_by_serde_json(&array), records(&array, Format::Json)),
        (array_by_sonic_rs(&array), records(&array, Format::Json)),
        (lines_copied(&json), records(&json, Format::Plain)),
        (lines_copied(&access_log), records(&access_log, Format::Auto)),
    ] {
        assert_eq!(bare, ours, "the parsers read a different number of records");
    }

    group.throughput(bytes(&json));
    group.bench_function("json/bare serde_json", |bencher| bencher.iter(|| lines_by_serde_json(&json)));
    group.bench_function("json/bare sonic-rs", |bencher| bencher.iter(|| lines_by_sonic_rs(&json)));
    group.bench_function("json/auto", |bencher| bencher.iter(|| records(&json, Format::Auto)));
    group.bench_function("plain/bare copy of the lines", |bencher| bencher.iter(|| lines_copied(&json)));
    group.bench_function("plain", |bencher| bencher.iter(|| records(&json, Format::Plain)));
    group.throughput(bytes(&array));
    group.bench_function("json array/bare serde_json", |bencher| bencher.iter(|| array_by_serde_json(&array)));
    group.bench_function("json array/bare sonic-rs", |bencher| bencher.iter(|| array_by_sonic_rs(&array)));
    group.bench_function("json array", |bencher| bencher.iter(|| records(&array, Format::Json)));
    group.throughput(bytes(&access_log));
    group.bench_function("access log/bare copy of the lines", |bencher| bencher.iter(|| lines_copied(&access_log)));
    group.bench_function("access log", |bencher| bencher.iter(|| records(&access_log, Format::Auto)));
    group.finish();
    beside("JSON", "serde_json", || records(&json, Format::Auto), || lines_by_serde_json(&json));
    beside("JSON", "sonic-rs", || records(&json, Format::Auto), || lines_by_sonic_rs(&json));
    beside("a JSON array", "serde_json", || records(&array, Format::Json), || array_by_serde_json(&array));
    beside("a JSON array", "sonic-rs", || records(&array, Format::Json), || array_by_sonic_rs(&array));
    beside("plain lines", "copy of the lines", || records(&json, Format::Plain), || lines_copied(&json));
    let access = || records(&access_log, Format::Auto);
    beside("an access log", "copy of the lines", access, || lines_copied(&access_log));
    println!(
        "{} records of {} bytes on average",
        records(&json, Format::Auto),
        json.len() / records(&json, Format::Auto)
    );
}

fn beside(what: &str, limit: &str, ours: impl Fn() -> usize, bare: impl Fn() -> usize) {
    let often = |read: &dyn Fn() -> usize| (0..TIMES).for_each(|_| _ = black_box(read()));
    ratio(&format!("parse {what} / bare {limit}"), || often(&ours), || often(&bare));
}

criterion_group!(benches, bench);
criterion_main!(benches);
