//! Whole bodies of the protocols that wrap records: the resulting records, and the rejections.

use logweir_record::record::{Record, Severity};
use proptest::prelude::*;
use prost::Message;

use crate::sink::SERVICE_UNKNOWN;
use crate::*;
use crate::{FieldMap, ItemOutcome};

const NOW_US: i64 = 1_700_000_000_000_000;
/// 2015-05-17 10:05:03.25 UTC.
const THEN_US: i64 = 1_431_857_103_250_000;
const LINE_BYTES_MAX: usize = 4096;

fn parsed_with(format: Format, body: &[u8], defaults: &Defaults) -> Result<Parsed, ParseError> {
    let parsed = parse(body, format, defaults, NOW_US, LINE_BYTES_MAX)?;
    assert_eq!(parsed.chunk.validate(), Ok(()));
    for record in parsed.chunk.iter().filter(|record| !record.attributes.is_empty()) {
        let attributes: serde_json::Value = serde_json::from_str(record.attributes).unwrap();
        assert!(attributes.is_object(), "{attributes}");
    }
    Ok(parsed)
}

fn parsed(format: Format, body: impl AsRef<[u8]>) -> Parsed {
    parsed_with(format, body.as_ref(), &Defaults::default()).unwrap()
}

fn rejection(format: Format, body: impl AsRef<[u8]>) -> ParseError {
    parsed_with(format, body.as_ref(), &Defaults::default()).unwrap_err()
}

fn records(parsed: &Parsed) -> Vec<Record<'_>> {
    parsed.chunk.iter().collect()
}

fn blank() -> Record<'static> {
    Record {
        ts_us: THEN_US,
        severity: Severity::UNSPECIFIED,
        service: SERVICE_UNKNOWN,
        host: "",
        message: "",
        attributes: "",
    }
}

/// The protocols' own protobuf definitions, encoded by prost: the hand-written decoder is checked against them.
mod proto {
    #[derive(prost::Message, Clone)]
    pub struct PushRequest {
        #[prost(message, repeated, tag = "1")]
        pub streams: Vec<Stream>,
    }
    #[derive(prost::Message, Clone)]
    pub struct Stream {
        #[prost(string, tag = "1")]
        pub labels: String,
        #[prost(message, repeated, tag = "2")]
        pub entries: Vec<Entry>,
        #[prost(uint64, tag = "3")]
        pub hash: u64,
    }
    #[derive(prost::Message, Clone)]
    pub struct Entry {
        #[prost(message, optional, tag = "1")]
        pub timestamp: Option<Timestamp>,
        #[prost(bytes = "vec", tag = "2")]
        pub line: Vec<u8>,
        #[prost(message, repeated, tag = "3")]
        pub metadata: Vec<Label>,
    }
    #[derive(prost::Message, Clone)]
    pub struct Timestamp {
        #[prost(int64, tag = "1")]
        pub seconds: i64,
        #[prost(int32, tag = "2")]
        pub nanos: i32,
    }
    #[derive(prost::Message, Clone)]
    pub struct Label {
        #[prost(string, tag = "1")]
        pub name: String,
        #[prost(string, tag = "2")]
        pub value: String,
    }

    #[derive(prost::Message, Clone)]
    pub struct ExportLogs {
        #[prost(message, repeated, tag = "1")]
        pub resource_logs: Vec<ResourceLogs>,
    }
    #[derive(prost::Message, Clone)]
    pub struct ResourceLogs {
        #[prost(message, optional, tag = "1")]
        pub resource: Option<Resource>,
        #[prost(message, repeated, tag = "2")]
        pub scope_logs: Vec<ScopeLogs>,
    }
    #[derive(prost::Message, Clone)]
    pub struct Resource {
        #[prost(message, repeated, tag = "1")]
        pub attributes: Vec<KeyValue>,
    }
    #[derive(prost::Message, Clone)]
    pub struct ScopeLogs {
        #[prost(message, optional, tag = "1")]
        pub scope: Option<Scope>,
        #[prost(message, repeated, tag = "2")]
        pub log_records: Vec<LogRecord>,
    }
    #[derive(prost::Message, Clone)]
    pub struct Scope {
        #[prost(string, tag = "1")]
        pub name: String,
        #[prost(string, tag = "2")]
        pub version: String,
    }
    #[derive(prost::Message, Clone)]
    pub struct LogRecord {
        #[prost(fixed64, tag = "1")]
        pub time: u64,
        #[prost(fixed64, tag = "11")]
        pub observed: u64,
        #[prost(int32, tag = "2")]
        pub number: i32,
        #[prost(string, tag = "3")]
        pub text: String,
        #[prost(message, optional, tag = "5")]
        pub body: Option<AnyValue>,
        #[prost(message, repeated, tag = "6")]
        pub attributes: Vec<KeyValue>,
        #[prost(fixed32, tag = "8")]
        pub flags: u32,
        #[prost(bytes = "vec", tag = "9")]
        pub trace_id: Vec<u8>,
        #[prost(bytes = "vec", tag = "10")]
        pub span_id: Vec<u8>,
    }
    #[derive(prost::Message, Clone)]
    pub struct KeyValue {
        #[prost(string, tag = "1")]
        pub key: String,
        #[prost(message, optional, tag = "2")]
        pub value: Option<AnyValue>,
    }
    #[derive(prost::Message, Clone)]
    pub struct AnyValue {
        #[prost(oneof = "Any", tags = "1, 2, 3, 4, 5, 6, 7")]
        pub any: Option<Any>,
    }
    #[derive(prost::Oneof, Clone)]
    pub enum Any {
        #[prost(string, tag = "1")]
        Text(String),
        #[prost(bool, tag = "2")]
        Bool(bool),
        #[prost(int64, tag = "3")]
        Int(i64),
        #[prost(double, tag = "4")]
        Double(f64),
        #[prost(message, tag = "5")]
        Array(Array),
        #[prost(message, tag = "6")]
        List(List),
        #[prost(bytes = "vec", tag = "7")]
        Bytes(Vec<u8>),
    }
    #[derive(prost::Message, Clone)]
    pub struct Array {
        #[prost(message, repeated, tag = "1")]
        pub values: Vec<AnyValue>,
    }
    #[derive(prost::Message, Clone)]
    pub struct List {
        #[prost(message, repeated, tag = "1")]
        pub values: Vec<KeyValue>,
    }
}

use proto::{Any, AnyValue, KeyValue};

fn value(any: Any) -> Option<AnyValue> {
    Some(AnyValue { any: Some(any) })
}

fn text(text: &str) -> Option<AnyValue> {
    value(Any::Text(text.to_owned()))
}

fn key_value(key: &str, value: Option<AnyValue>) -> KeyValue {
    KeyValue { key: key.to_owned(), value }
}

#[test]
fn a_loki_stream_supplies_what_its_lines_lack() {
    let parsed = parsed(
        Format::LokiJson,
        r#"{"streams":[{"stream":{"job":"shop/cart","app":"cart","env":"prod \"x\"","level":"warn","pod":"p-1"},"values":[
            ["1431857103250000000","plain"],
            ["1431857103250000000","{\"ts\":\"2001-01-01T00:00:00Z\",\"level\":\"error\",\"msg\":\"said \\\"no\\\"\",\"n\":1}",{"trace_id":"0af7","level":"debug"}],
            ["1431857103250000000","third",{"level":"fatal"}]]},
          {"values":[["0","no labels"]],"stream":{}}]}"#,
    );
    let around = r#"{"job":"shop/cart","env":"prod \"x\""}"#;
    let of_cart = Record { service: "cart", host: "p-1", ..blank() };
    assert_eq!(
        records(&parsed),
        [
            Record { severity: Severity::WARN, message: "plain", attributes: around, ..of_cart },
            Record {
                severity: Severity::ERROR,
                message: "said \"no\"",
                attributes: r#"{"job":"shop/cart","env":"prod \"x\"","trace_id":"0af7","n":1}"#,
                ..of_cart
            },
            Record { severity: Severity::FATAL, message: "third", attributes: around, ..of_cart },
            Record { ts_us: NOW_US, message: "no labels", ..blank() },
        ]
    );
}

#[test]
fn loki_protobuf_is_equivalent() {
    let timestamp = Some(proto::Timestamp { seconds: 1_431_857_103, nanos: 250_000_000 });
    let entry = |line: &[u8], metadata| proto::Entry { timestamp: timestamp.clone(), line: line.to_vec(), metadata };
    let metadata = vec![proto::Label { name: "trace_id".into(), value: "0af7".into() }];
    let body = proto::PushRequest {
        streams: vec![proto::Stream {
            labels: r#"{app="cart", env="a\"\n\u00e4\xc3\xa4", raw=`C:\x`, "dotted.name"="v"}"#.into(),
            entries: vec![
                entry(b"one", metadata),
                entry(b"two\0\xff", vec![]),
                proto::Entry { line: b"no time".to_vec(), ..Default::default() },
                entry(&[b'x'; LINE_BYTES_MAX + 1], vec![]),
            ],
            hash: 7,
        }],
    };
    let parsed = parsed(Format::LokiProtobuf, body.encode_to_vec());
    let around = r#"{"env":"a\"\nää","raw":"C:\\x","dotted.name":"v"}"#;
    let of_cart = Record { service: "cart", attributes: around, ..blank() };
    assert_eq!(
        records(&parsed),
        [
            Record {
                message: "one",
                attributes: r#"{"env":"a\"\nää","raw":"C:\\x","dotted.name":"v","trace_id":"0af7"}"#,
                ..of_cart
            },
            Record { message: "two\u{fffd}\u{fffd}", ..of_cart },
            Record { message: "no time", ts_us: NOW_US, ..of_cart },
        ]
    );
    assert_eq!((parsed.report.rejected, parsed.too_long), (1, 1));
    assert_eq!((parsed.sanitized.nul, parsed.sanitized.invalid_utf8), (1, 1));
}

#[test]
fn an_invalid_push_request_is_rejected_as_a_whole() {
    for (body, word) in [
        ("", "EOF"),
        ("[]", "object"),
        (r#"{"streams":[{"stream":{"a":"b"},"values":[["x","l"]]}]}"#, "invalid timestamp"),
        (r#"{"streams":[{"stream":{"a":"b"},"values":[["1431857103250000000",5]]}]}"#, "not a JSON string"),
        (r#"{"streams":[{"stream":{"a":"b"},"values":[["1431857103250000000","l"]]}"#, "EOF"),
    ] {
        let rejection = rejection(Format::LokiJson, body);
        assert_eq!((rejection.kind, rejection.reason), (ParseErrorKind::Malformed, "malformed_json"));
        assert!(rejection.detail.contains(word), "{body}: {rejection}");
    }
    let labels = |labels: &str| {
        let stream = proto::Stream { labels: labels.into(), ..Default::default() };
        proto::PushRequest { streams: vec![stream] }.encode_to_vec()
    };
    for bad in ["", "{", "{a}", "{a=b}", r#"{a="b"#, r#"{a="b" c="d"}"#, r#"{a="\q"}"#, r#"{a="\u12"}"#, r#"{a="\xä"}"#]
    {
        assert_eq!(rejection(Format::LokiProtobuf, labels(bad)).reason, "malformed_protobuf", "{bad}");
    }
    assert!(records(&parsed(Format::LokiProtobuf, labels(r#"{a="b",}"#))).is_empty());
}

fn otlp_body() -> Vec<u8> {
    let list = Any::List(proto::List { values: vec![key_value("a", value(Any::Int(-7))), key_value("b", None)] });
    let array = Any::Array(proto::Array { values: vec![text("x").unwrap(), value(Any::Double(0.5)).unwrap()] });
    let record = |number, severity: &str, body, attributes| proto::LogRecord {
        time: 1_431_857_103_250_000_999,
        number,
        text: severity.to_owned(),
        body,
        attributes,
        ..Default::default()
    };
    let mut first = record(
        10,
        "NOTICE",
        text("card declined"),
        vec![
            key_value("order", value(Any::Int(i64::MAX))),
            key_value("ok", value(Any::Bool(true))),
            key_value("nested", value(list)),
            key_value("list", value(array)),
            key_value("raw", value(Any::Bytes(vec![1, 2, 255]))),
            key_value("nan", value(Any::Double(f64::NAN))),
        ],
    );
    first.trace_id = (0..16).collect();
    first.span_id = vec![0xff; 8];
    first.flags = 1;
    let mut second = record(0, "Warning", value(Any::Bool(false)), vec![]);
    (second.observed, second.time) = (second.time, 0);
    let mut third = record(17, "ERROR", None, vec![]);
    third.time = 0;
    let resource = vec![
        key_value("service.name", text("cart")),
        key_value("service.version", text("1.2")),
        key_value("host.name", text("n1")),
    ];
    proto::ExportLogs {
        resource_logs: vec![
            proto::ResourceLogs {
                resource: Some(proto::Resource { attributes: resource }),
                scope_logs: vec![
                    proto::ScopeLogs {
                        scope: Some(proto::Scope { name: "lib".into(), version: "3".into() }),
                        log_records: vec![first],
                    },
                    proto::ScopeLogs { scope: None, log_records: vec![second] },
                ],
            },
            proto::ResourceLogs {
                resource: None,
                scope_logs: vec![proto::ScopeLogs { scope: None, log_records: vec![third] }],
            },
        ],
    }
    .encode_to_vec()
}

const OTLP_JSON: &str = r#"{"resourceLogs":[
  {"scopeLogs":[
    {"scope":{"name":"lib","version":"3"},"logRecords":[{"timeUnixNano":"1431857103250000999","severityNumber":10,
      "severityText":"NOTICE","body":{"stringValue":"card declined"},"attributes":[
        {"key":"order","value":{"intValue":"9223372036854775807"}},{"key":"ok","value":{"boolValue":true}},
        {"key":"nested","value":{"kvlistValue":{"values":[{"key":"a","value":{"intValue":-7}},{"key":"b","value":{}}]}}},
        {"key":"list","value":{"arrayValue":{"values":[{"stringValue":"x"},{"doubleValue":0.5}]}}},
        {"key":"raw","value":{"bytesValue":"AQL/"}},{"key":"nan","value":{"doubleValue":"NaN"}}],
      "flags":1,"traceId":"000102030405060708090A0B0C0D0E0F","spanId":"ffffffffffffffff"}]},
    {"logRecords":[{"observedTimeUnixNano":1431857103250000999,"severityText":"Warning","body":{"boolValue":false}}]}],
   "resource":{"attributes":[{"key":"service.name","value":{"stringValue":"cart"}},
     {"key":"service.version","value":{"stringValue":"1.2"}},{"key":"host.name","value":{"stringValue":"n1"}}]}},
  {"scopeLogs":[{"logRecords":[{"severityNumber":"SEVERITY_NUMBER_ERROR","severityText":"ERROR"}]}]}]}"#;

#[test]
fn an_otlp_record_is_kept_completely_in_both_encodings() {
    let sorted = |json: &str| serde_json::from_str::<serde_json::Value>(json).unwrap();
    for parsed in [parsed(Format::OtlpProtobuf, otlp_body()), parsed(Format::OtlpJson, OTLP_JSON)] {
        let records = records(&parsed);
        let notice = Severity::from_number(10).unwrap();
        let of_cart = Record { service: "cart", host: "n1", ..blank() };
        assert_eq!(
            Record { attributes: "", ..records[0] },
            Record { severity: notice, message: "card declined", ..of_cart }
        );
        assert_eq!(
            sorted(records[0].attributes),
            sorted(
                r#"{"service.version":"1.2","scope.name":"lib","scope.version":"3","order":9223372036854775807,"ok":true,
                    "nested":{"a":-7,"b":null},"list":["x",0.5],"raw":"AQL/","nan":"NaN","trace_flags":1,
                    "trace_id":"000102030405060708090a0b0c0d0e0f","span_id":"ffffffffffffffff"}"#
            )
        );
        let attributes = r#"{"service.version":"1.2"}"#;
        assert_eq!(records[1], Record { severity: Severity::WARN, message: "false", attributes, ..of_cart });
        assert_eq!(records[2], Record { severity: Severity::ERROR, ts_us: NOW_US, ..blank() });
        assert_eq!(records.len(), 3);
    }
}

#[test]
fn a_record_above_the_limit_is_reported_and_a_value_too_deep_rejects_the_body() {
    let record = |body| proto::LogRecord { body, ..Default::default() };
    let export = |records| {
        let scope_logs = vec![proto::ScopeLogs { scope: None, log_records: records }];
        let logs = proto::ResourceLogs { resource: None, scope_logs };
        proto::ExportLogs { resource_logs: vec![logs] }.encode_to_vec()
    };
    let long = record(text(&"x".repeat(LINE_BYTES_MAX)));
    let parsed = parsed(Format::OtlpProtobuf, export(vec![record(text("a")), long, record(text("b"))]));
    assert_eq!((parsed.report.accepted, parsed.report.rejected), (2, 1));
    assert_eq!(parsed.report.errors[0].line, 2);

    let nested = |depth| {
        (0..depth)
            .fold(text("in").unwrap(), |inner, _| value(Any::Array(proto::Array { values: vec![inner] })).unwrap())
    };
    assert_eq!(records(&self::parsed(Format::OtlpProtobuf, export(vec![record(Some(nested(30)))]))).len(), 1);
    assert!(rejection(Format::OtlpProtobuf, export(vec![record(Some(nested(33)))])).detail.contains("deeper"));
    let json = |depth: usize| {
        let (open, close) = (r#"{"arrayValue":{"values":["#.repeat(depth), "]}}".repeat(depth));
        format!(r#"{{"resourceLogs":[{{"scopeLogs":[{{"logRecords":[{{"body":{open}{{"intValue":1}}{close}}}]}}]}}]}}"#)
    };
    assert_eq!(records(&self::parsed(Format::OtlpJson, json(30))).len(), 1);
    let rejection = rejection(Format::OtlpJson, json(33));
    assert_eq!(
        (rejection.kind, rejection.detail.matches("in column").count()),
        (ParseErrorKind::Malformed, 1),
        "{rejection}"
    );
}

#[test]
fn a_bulk_request_is_answered_item_by_item() {
    let body = concat!(
        "{\"create\":{\"_index\":\"logstash-2026.11.21\",\"_id\":\"7\"}}\n",
        "{\"@timestamp\":\"2015-05-17T10:05:03.25Z\",\"message\":\"one\",\"n\":1}\r\n",
        "{\"index\":{}}\n{\"message\":\"two\",\"service\":\"own\"}\n\n",
        "{\"delete\":{\"_index\":\"a\",\"_id\":\"1\"}}\n",
        "{\"update\":{\"_id\":\"1\"}}\n{\"doc\":{}}\n",
        "{\"create\":{}}\nno json"
    );
    let defaults = Defaults { index: Some("logs-nginx".into()), ..Defaults::default() };
    let parsed = parsed_with(Format::ElasticBulk, body.as_bytes(), &defaults).unwrap();
    assert_eq!(
        records(&parsed),
        [
            Record {
                service: "logstash",
                message: "one",
                attributes: r#"{"index":"logstash-2026.11.21","_id":"7","n":1}"#,
                ..blank()
            },
            Record {
                service: "own",
                ts_us: NOW_US,
                message: "two",
                attributes: r#"{"index":"logs-nginx"}"#,
                ..blank()
            },
            Record {
                service: "logs-nginx",
                ts_us: NOW_US,
                message: "no json",
                attributes: r#"{"index":"logs-nginx"}"#,
                ..blank()
            },
        ]
    );
    let items: Vec<_> = parsed.report.items.iter().map(|item| (item.action, &*item.index, item.outcome)).collect();
    use ItemOutcome::{Stored, Unsupported};
    assert_eq!(
        items,
        [
            ("create", "logstash-2026.11.21", Stored),
            ("index", "logs-nginx", Stored),
            ("delete", "a", Unsupported),
            ("update", "logs-nginx", Unsupported),
            ("create", "logs-nginx", Stored),
        ]
    );
    assert_eq!((parsed.report.accepted, parsed.report.rejected, parsed.report.parse_errors), (3, 2, 1));
}

#[test]
fn a_truncated_bulk_request_is_rejected() {
    for (body, word) in [
        ("", "no action"),
        ("{\"create\":{}}\n", "no document"),
        ("{\"message\":\"x\"}\n", "line [1]"),
        ("{\"create\":{}}\n{}\n{\"create\":{},\"index\":{}}\n{}\n", "line [3]"),
        ("{}\n{}\n", "one action"),
        ("nonsense\n", "line [1]"),
    ] {
        let rejection = rejection(Format::ElasticBulk, body);
        assert_eq!((rejection.kind, rejection.reason), (ParseErrorKind::Malformed, "malformed_bulk"));
        assert!(rejection.detail.contains(word), "{body}: {rejection}");
    }
    let many = "{\"index\":{}}\n{}\n".repeat((1 << 16) + 1);
    assert!(rejection(Format::ElasticBulk, many).detail.contains("items"));
}

#[test]
fn splunk_events_may_be_separated_by_whitespace() {
    let parsed = parsed(
        Format::SplunkEvents,
        r#"{"time":1431857103.25,"host":"n1","source":"/var/log/x","sourcetype":"cart","index":"main","event":"plain","fields":{"env":"prod","level":"warn"}}
           {"time":"1431857103.25","event":{"level":"error","msg":"no \u0000","service":"own"},"fields":{"service":"f"}}{"event":[1,2]}"#,
    );
    assert_eq!(
        records(&parsed),
        [
            Record {
                severity: Severity::WARN,
                service: "cart",
                host: "n1",
                message: "plain",
                attributes: r#"{"source":"/var/log/x","sourcetype":"cart","index":"main","env":"prod"}"#,
                ..blank()
            },
            Record { severity: Severity::ERROR, service: "own", message: "no \u{fffd}", ..blank() },
            Record { ts_us: NOW_US, message: "[1,2]", ..blank() },
        ]
    );
}

#[test]
fn an_invalid_splunk_event_is_identified_by_its_number() {
    for (body, number, reason) in [
        (r#"{"event":"a"}{"fields":{}}"#, 1, "event_required"),
        (r#"{"event":"a"} {"event":"b"} {"event":""}"#, 2, "event_blank"),
        (r#"{"event":null}"#, 0, "event_required"),
        (r#"{"event":"a"}{"event""#, 1, "malformed_json"),
        (r#"{"event":"a"} x"#, 1, "malformed_json"),
        (r#"["a"]"#, 0, "malformed_json"),
        (r#"{"event":"a","fields":[1]}"#, 0, "malformed_json"),
    ] {
        let rejection = rejection(Format::SplunkEvents, body);
        assert_eq!((rejection.kind, rejection.reason), (ParseErrorKind::MalformedItem(number), reason), "{body}");
    }
    assert_eq!(parsed(Format::SplunkEvents, " \n ").report.accepted, 0);
}

#[test]
fn a_request_can_map_fields() {
    let fields = FieldMap {
        time: vec!["when".into()],
        level: vec!["prio".into()],
        message: vec!["nothing".into(), "text".into()],
        service: vec!["unit".into()],
        host: vec!["box".into()],
        ignore: vec!["secret".into(), "tmp_*".into()],
    };
    let defaults = Defaults {
        attributes: Some(r#""env":"test""#.into()),
        fields: Some(std::sync::Arc::new(fields)),
        ..Defaults::default()
    };
    let line = r#"{"when":"2015-05-17T10:05:03.25Z","ts":"2001-01-01T00:00:00Z","prio":"warn","text":"hello","msg":"m","unit":"u","box":"b","secret":1,"tmp_1":2,"kept":3}"#;
    let mapped = parsed_with(Format::Auto, line.as_bytes(), &defaults).unwrap();
    assert_eq!(
        records(&mapped),
        [Record {
            severity: Severity::WARN,
            service: "u",
            host: "b",
            message: "hello",
            attributes: r#"{"env":"test","ts":"2001-01-01T00:00:00Z","msg":"m","kept":3}"#,
            ..blank()
        }]
    );
    // Without the mapped fields, the usual names apply.
    let usual = parsed_with(Format::Auto, br#"{"msg":"m","fields":{"prio":"error"}}"#, &defaults).unwrap();
    let usual = records(&usual)[0];
    assert_eq!((usual.message, usual.severity), ("m", Severity::ERROR));
    // Mapped fields may be members of nested objects.
    let fields = FieldMap {
        message: vec!["log.text".into()],
        service: vec!["k8s.app".into()],
        ignore: vec!["k8s.labels".into()],
        ..FieldMap::default()
    };
    let defaults = Defaults { fields: Some(std::sync::Arc::new(fields)), ..Defaults::default() };
    let line = r#"{"ts":"2015-05-17T10:05:03.25Z","log":{"text":"hello","level":"warn"},"k8s":{"app":"u","labels":{"a":1},"pod":"p"}}"#;
    let mapped = parsed_with(Format::Auto, line.as_bytes(), &defaults).unwrap();
    assert_eq!(
        records(&mapped),
        [Record {
            severity: Severity::WARN,
            service: "u",
            message: "hello",
            attributes: r#"{"k8s.pod":"p"}"#,
            ..blank()
        }]
    );
    // Even if the object itself has a usual name of a message.
    let fields = FieldMap { message: vec!["event.text".into()], ..FieldMap::default() };
    let defaults = Defaults { fields: Some(std::sync::Arc::new(fields)), ..Defaults::default() };
    let mapped = parsed_with(Format::Auto, br#"{"event":{"text":"started","n":1},"pid":7}"#, &defaults).unwrap();
    let mapped = records(&mapped)[0];
    assert_eq!((mapped.message, mapped.attributes), ("started", r#"{"pid":7,"event.n":1}"#));
}

const PROTOCOLS: [Format; 6] = [
    Format::LokiJson,
    Format::LokiProtobuf,
    Format::OtlpJson,
    Format::OtlpProtobuf,
    Format::ElasticBulk,
    Format::SplunkEvents,
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn no_bytes_make_a_protocol_panic(body in proptest::collection::vec(any::<u8>(), 0..200)) {
        for format in PROTOCOLS {
            let _ = parsed_with(format, &body, &Defaults::default());
        }
    }

    #[test]
    fn no_corruption_makes_a_protocol_panic(at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in any::<bool>()) {
        let loki = r#"{"streams":[{"stream":{"app":"\ud83d\u0000"},"values":[["1431857103250000000","{\"a\":\"\\ud83d\"}",{"k":"v"}]]}]}"#;
        let splunk = r#"{"time":1,"host":"h","event":{"a":"\ud83d"},"fields":{"b":"\u0000"}}"#;
        let bulk = "{\"create\":{\"_index\":\"a\"}}\n{\"a\":\"\\u0000\"}\n";
        let otlp = otlp_body();
        for (format, body) in [
            (Format::LokiJson, loki.as_bytes()),
            (Format::OtlpJson, OTLP_JSON.as_bytes()),
            (Format::OtlpProtobuf, &otlp),
            (Format::ElasticBulk, bulk.as_bytes()),
            (Format::SplunkEvents, splunk.as_bytes()),
        ] {
            let mut body = body.to_vec();
            let at = at.index(body.len());
            body[at] = byte;
            if cut {
                body.truncate(at);
            }
            let _ = parsed_with(format, &body, &Defaults::default());
        }
    }
}

#[test]
fn deep_json_in_an_envelope_is_rejected_by_the_parser() {
    let deep = format!("{}1{}", "[".repeat(1000), "]".repeat(1000));
    let event = format!(r#"{{"event":"a","fields":{{"deep":{deep}}}}}"#);
    assert_eq!(rejection(Format::SplunkEvents, event).reason, "malformed_json");
    let event = format!(r#"{{"event":"a","source":{deep}}}"#);
    assert_eq!(rejection(Format::SplunkEvents, event).reason, "malformed_json");
    let record =
        format!(r#"{{"resourceLogs":[{{"scopeLogs":[{{"logRecords":[{{"body":{{"doubleValue":{deep}}}}}]}}]}}]}}"#);
    assert_eq!(rejection(Format::OtlpJson, record).reason, "malformed_json");
}

#[test]
fn a_number_out_of_double_range_is_text_in_an_envelope() {
    let hec = parsed(Format::SplunkEvents, r#"{"event":"a","fields":{"n":1e999}}"#);
    assert_eq!(hec.chunk.get(0).unwrap().attributes, r#"{"n":"1e999"}"#);
    let otlp = r#"{"resourceLogs":[{"scopeLogs":[{"logRecords":[{"attributes":[{"key":"n","value":{"doubleValue":1e999}}]}]}]}]}"#;
    assert_eq!(parsed(Format::OtlpJson, otlp).chunk.get(0).unwrap().attributes, r#"{"n":"1e999"}"#);
}

#[test]
fn a_body_of_empty_records_is_rejected_before_it_takes_more_memory() {
    let records = b"\x12\x00".repeat(5 << 20);
    let mut scope_logs = vec![0x12];
    prost::encoding::encode_varint(records.len() as u64, &mut scope_logs);
    scope_logs.extend(records);
    let mut body = vec![0x0a];
    prost::encoding::encode_varint(scope_logs.len() as u64, &mut body);
    body.extend(scope_logs);
    let rejection = rejection(Format::OtlpProtobuf, body);
    assert_eq!((rejection.kind, rejection.reason), (ParseErrorKind::TooLarge, "chunk_too_large"));
}
