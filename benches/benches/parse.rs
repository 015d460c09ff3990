//! The parser against bare serde_json and sonic-rs over the same bytes: what understanding a line costs beyond reading it.
//!
//! The bodies have 512 KiB and a fixed seed. The bare parsers read a struct of the usual fields, borrowed: the rest is
//! skipped, nothing is copied and nothing is kept.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use logweir::message::{Defaults, Format};
use logweir::parser::parse;
use logweir_benches::corpus::Corpus;
use logweir_benches::ratio::ratio;
use std::borrow::Cow;
use std::hint::black_box;

const BODY_BYTES: usize = 512 << 10;
const NOW_US: i64 = 1_700_000_000_000_000;
const LINE_BYTES_MAX: usize = 256 << 10;

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

fn records(body: &str, format: Format) -> usize {
    let parsed = parse(body.as_bytes(), format, &Defaults::default(), NOW_US, LINE_BYTES_MAX);
    black_box(parsed).map_or(0, |parsed| parsed.chunk.len())
}

fn bench(criterion: &mut Criterion) {
    let json = json_body();
    let access_log = access_log_body();
    let array = format!("[{}]", json.trim_end().replace('\n', ","));
    let mut group = criterion.benchmark_group("parse");
    group.sample_size(20);
    let bytes = |body: &str| Throughput::Bytes(body.len() as u64);
    assert_eq!(lines_by_serde_json(&json), records(&json, Format::Auto));

    group.throughput(bytes(&json));
    group.bench_function("json/bare serde_json", |bencher| bencher.iter(|| lines_by_serde_json(&json)));
    group.bench_function("json/bare sonic-rs", |bencher| bencher.iter(|| lines_by_sonic_rs(&json)));
    group.bench_function("json/auto", |bencher| bencher.iter(|| records(&json, Format::Auto)));
    group.bench_function("plain", |bencher| bencher.iter(|| records(&json, Format::Plain)));
    group.throughput(bytes(&array));
    group.bench_function("json array", |bencher| bencher.iter(|| records(&array, Format::Json)));
    group.throughput(bytes(&access_log));
    group.bench_function("access log", |bencher| bencher.iter(|| records(&access_log, Format::Auto)));
    group.finish();
    let parse = |body, format| move || assert!(records(body, format) > 0);
    ratio("parse JSON / bare serde_json", parse(&json, Format::Auto), || _ = lines_by_serde_json(&json));
    ratio("parse JSON / bare sonic-rs", parse(&json, Format::Auto), || _ = lines_by_sonic_rs(&json));
    ratio("parse a JSON array / bare serde_json", parse(&array, Format::Json), || _ = lines_by_serde_json(&json));
    ratio("parse plain lines / bare serde_json", parse(&json, Format::Plain), || _ = lines_by_serde_json(&json));
    println!(
        "{} records of {} bytes on average",
        records(&json, Format::Auto),
        json.len() / records(&json, Format::Auto)
    );
}

criterion_group!(benches, bench);
criterion_main!(benches);
