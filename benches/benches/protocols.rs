//! Cost of other protocols' envelopes, compared with the same records as NDJSON.
//!
//! The records are 512 KiB as NDJSON, with a fixed seed. Loki carries each as the line of an entry, which is parsed
//! too; OTLP carries the message and five attributes; bulk and HEC carry it as the document.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use logweir_benches::corpus::Corpus;
use logweir_benches::ratio::ratio;
use logweir_formats::parse;
use logweir_formats::{Defaults, Format};
use logweir_tests::protobuf::{
    Entry, ExportLogs, KeyValue, LogRecord, PushRequest, ResourceLogs, ScopeLogs, Stream, Text, Timestamp,
};
use prost::Message as _;
use serde_json::{Value, json};
use std::hint::black_box;
use std::time::Duration;

const BODY_BYTES: usize = 512 << 10;
const NOW_US: i64 = 1_700_000_000_000_000;
const LINE_BYTES_MAX: usize = 256 << 10;
/// Repetitions per measured run, so that it is long enough for the clock.
const TIMES: usize = 10;
const TEXTS: [&str; 5] = ["ts", "level", "service", "host", "message"];

fn ndjson() -> String {
    let mut corpus = Corpus::of_bodies(300, BODY_BYTES, NOW_US);
    String::from_utf8(corpus.body(0).to_vec()).expect("the corpus is text")
}

fn loki_json(lines: &[&str]) -> Vec<u8> {
    let values: Vec<_> = lines.iter().map(|line| json!(["1700000000000000000", line])).collect();
    json!({ "streams": [{ "stream": { "app": "shop", "env": "prod" }, "values": values }] }).to_string().into()
}

fn loki_protobuf(lines: &[&str]) -> Vec<u8> {
    let timestamp = || Some(Timestamp { seconds: NOW_US / 1_000_000 });
    let entries = lines.iter().map(|line| Entry { timestamp: timestamp(), line: (*line).to_owned() }).collect();
    PushRequest { streams: vec![Stream { labels: r#"{app="shop",env="prod"}"#.to_owned(), entries }] }.encode_to_vec()
}

fn text(record: &Value, name: &str) -> String {
    record[name].as_str().unwrap_or_default().to_owned()
}

fn otlp_protobuf(lines: &[&str]) -> Vec<u8> {
    let record = |line: &&str| {
        let record: Value = serde_json::from_str(line).expect("the corpus is JSON");
        let value = |name: &str| Some(Text { text: text(&record, name) });
        LogRecord {
            time: NOW_US.unsigned_abs() * 1000,
            severity_text: text(&record, "level"),
            body: value("message"),
            attributes: TEXTS.iter().map(|name| KeyValue { key: (*name).to_owned(), value: value(name) }).collect(),
            ..LogRecord::default()
        }
    };
    let scope_logs = vec![ScopeLogs { log_records: lines.iter().map(record).collect() }];
    ExportLogs { resource_logs: vec![ResourceLogs { resource: None, scope_logs }] }.encode_to_vec()
}

fn otlp_json(lines: &[&str]) -> Vec<u8> {
    let record = |line: &&str| {
        let record: Value = serde_json::from_str(line).expect("the corpus is JSON");
        let value = |name: &str| json!({ "stringValue": text(&record, name) });
        let attributes: Vec<_> = TEXTS.iter().map(|name| json!({ "key": name, "value": value(name) })).collect();
        json!({ "timeUnixNano": "1700000000000000000", "severityText": text(&record, "level"),
                "body": value("message"), "attributes": attributes })
    };
    let records: Vec<_> = lines.iter().map(record).collect();
    json!({ "resourceLogs": [{ "scopeLogs": [{ "logRecords": records }] }] }).to_string().into()
}

fn bulk(lines: &[&str]) -> Vec<u8> {
    lines.iter().map(|line| format!("{{\"create\":{{\"_index\":\"logs\"}}}}\n{line}\n")).collect::<String>().into()
}

fn splunk(lines: &[&str]) -> Vec<u8> {
    lines.iter().map(|line| format!("{{\"time\":1700000000.5,\"event\":{line}}}")).collect::<String>().into()
}

fn records(body: &[u8], format: Format) -> usize {
    let parsed = parse(body, format, &Defaults::default(), NOW_US, LINE_BYTES_MAX);
    black_box(parsed).map_or(0, |parsed| parsed.chunk.len())
}

fn bench(criterion: &mut Criterion) {
    let plain = ndjson();
    let lines: Vec<_> = plain.lines().collect();
    let mut group = criterion.benchmark_group("protocols");
    group.sample_size(10).warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
    let bodies = [
        ("loki json", Format::LokiJson, loki_json(&lines)),
        ("loki protobuf", Format::LokiProtobuf, loki_protobuf(&lines)),
        ("otlp json", Format::OtlpJson, otlp_json(&lines)),
        ("otlp protobuf", Format::OtlpProtobuf, otlp_protobuf(&lines)),
        ("elasticsearch bulk", Format::ElasticBulk, bulk(&lines)),
        ("splunk events", Format::SplunkEvents, splunk(&lines)),
    ];
    for (name, format, body) in &bodies {
        assert_eq!(records(body, *format), lines.len(), "{name}: not all records were parsed");
        group.throughput(Throughput::Elements(lines.len() as u64));
        group.bench_function(*name, |bencher| bencher.iter(|| records(body, *format)));
    }
    group.finish();
    for (name, format, body) in &bodies {
        let often = |body: &[u8], format| (0..TIMES).for_each(|_| _ = black_box(records(body, format)));
        let same = || often(plain.as_bytes(), Format::Ndjson);
        ratio(&format!("{name} / the same records as NDJSON"), || often(body, *format), same);
    }
}

criterion_group!(benches, bench);
criterion_main!(benches);
