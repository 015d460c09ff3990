//! Requests of other systems' clients, through the real program into the table, and the errors that they get.

use std::io::Write;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use logweir_tests::client::agent;
use logweir_tests::clock::Clock;
use logweir_tests::process::Server;
use logweir_tests::protobuf::{
    Entry, ExportLogs, KeyValue, LogRecord, PushRequest, Resource, ResourceLogs, ScopeLogs, Stream, Text, Timestamp,
};
use logweir_tests::proxy::Mode;
use logweir_tests::scenario::{PATIENCE, Scenario, behind_proxy, on_postgres, on_sqlite};
use prost::Message as _;
use serde_json::{Value, json};

const TOKEN: &str = "0123456789abcdef-in";

/// A response as received by the client.
#[derive(Debug)]
struct Received {
    status: u16,
    headers: ureq::http::HeaderMap,
    body: Vec<u8>,
}

impl Received {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("text")
    }

    fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// `google.rpc.Status` in protobuf.
    fn status_message(&self) -> (i32, String) {
        let status = Status::decode(&*self.body).expect("a Status");
        (status.code, status.message)
    }
}

/// One request.
fn send(s: &mut Scenario, method: &str, path: &str, headers: &[(&str, &str)], body: impl AsRef<[u8]>) -> Received {
    let url = format!("http://{}{path}", s.server().http);
    let mut request = ureq::http::Request::builder().method(method).uri(url);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let agent = agent(PATIENCE);
    let mut response = match method {
        "GET" | "HEAD" => agent.run(request.body(()).expect("a request")),
        _ => agent.run(request.body(body.as_ref()).expect("a request")),
    }
    .expect("an answer");
    let body = response.body_mut().read_to_vec().expect("the answer's body");
    Received { status: response.status().as_u16(), headers: response.headers().clone(), body }
}

const JSON: (&str, &str) = ("content-type", "application/json");
const PROTOBUF: (&str, &str) = ("content-type", "application/x-protobuf");

fn gzip(plain: &[u8]) -> Vec<u8> {
    let mut writer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    writer.write_all(plain).expect("memory");
    writer.finish().expect("memory")
}

#[derive(prost::Message)]
struct Response {
    #[prost(message, optional, tag = "1")]
    partial_success: Option<PartialSuccess>,
}
#[derive(prost::Message)]
struct PartialSuccess {
    #[prost(int64, tag = "1")]
    rejected: i64,
    #[prost(string, tag = "2")]
    message: String,
}
#[derive(prost::Message)]
struct Status {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
}

/// 2026-11-20 10:15:00 UTC.
const THEN_S: i64 = 1_795_169_700;

fn loki_protobuf(line: &str) -> Vec<u8> {
    let timestamp = Some(Timestamp { seconds: THEN_S });
    let entries = vec![Entry { timestamp, line: line.to_owned() }];
    let plain = PushRequest { streams: vec![Stream { labels: r#"{app="loki-pb"}"#.to_owned(), entries }] };
    snap::raw::Encoder::new().compress_vec(&plain.encode_to_vec()).expect("memory")
}

fn loki_json(line: &str) -> String {
    let values = json!([[format!("{THEN_S}000000000"), line, { "trace_id": "0af7" }]]);
    json!({ "streams": [{ "stream": { "app": "loki", "host": "n1", "env": "test" }, "values": values }] }).to_string()
}

fn otlp_protobuf(bodies: &[&str]) -> Vec<u8> {
    let text = |text: &str| Some(Text::from(text));
    let record = |body: &&str| LogRecord {
        time: THEN_S.unsigned_abs() * 1_000_000_000,
        severity: 17,
        body: text(body),
        trace_id: vec![0xab; 16],
        ..LogRecord::default()
    };
    let service = KeyValue { key: "service.name".to_owned(), value: text("otlp") };
    let scope_logs = vec![ScopeLogs { log_records: bodies.iter().map(record).collect() }];
    let resource = Some(Resource { attributes: vec![service] });
    ExportLogs { resource_logs: vec![ResourceLogs { resource, scope_logs }] }.encode_to_vec()
}

const OTLP_JSON: &str = r#"{"resourceLogs":[{"resource":{"attributes":[{"key":"service.name","value":{"stringValue":"otlp-json"}}]},
    "scopeLogs":[{"logRecords":[{"timeUnixNano":"1795169700000000000","severityText":"Information","body":{"stringValue":"by json"}}]}]}]}"#;

#[test]
fn each_protocol_is_stored() {
    on_sqlite("protocols", every_protocol);
    on_postgres("protocols", every_protocol);
}

fn every_protocol(s: &mut Scenario) {
    s.start();
    let gzipped = ("content-encoding", "gzip");
    let loki = "/loki/api/v1/push?ack=committed";
    let json_line = r#"{"level":"warn","msg":"a json line","n":1}"#;
    for (headers, body) in [
        (&[JSON][..], loki_json("level=info a line").into_bytes()),
        (&[JSON, gzipped], gzip(loki_json(json_line).as_bytes())),
        (&[PROTOBUF], loki_protobuf("in protobuf")),
        (&[PROTOBUF, ("content-encoding", "snappy")], loki_protobuf("in protobuf")),
    ] {
        let response = send(s, "POST", loki, headers, body);
        assert_eq!((response.status, response.text()), (204, ""));
    }

    let otlp = "/v1/logs?ack=committed";
    let response = send(s, "POST", otlp, &[PROTOBUF], otlp_protobuf(&["by protobuf"]));
    assert_eq!(
        (response.status, response.header("content-type"), &*response.body),
        (200, "application/x-protobuf", &b""[..])
    );
    let response = send(s, "POST", otlp, &[PROTOBUF, gzipped], gzip(&otlp_protobuf(&["by protobuf"])));
    assert_eq!((response.status, &*response.body), (200, &b""[..]));
    let response = send(s, "POST", otlp, &[JSON], OTLP_JSON);
    assert_eq!((response.status, response.json()), (200, json!({})));

    let bulk = "{\"create\":{\"_index\":\"web-2026.11.20\"}}\n{\"@timestamp\":\"2026-11-20T10:15:00Z\",\"log.level\":\"error\",\"message\":\"a document\"}\n\
                {\"delete\":{\"_id\":\"1\"}}\n{\"index\":{}}\n{\"@timestamp\":\"2026-11-20T10:15:00Z\",\"message\":\"another\"}";
    let ndjson = ("content-type", "application/x-ndjson");
    for (method, path) in [("POST", "/_bulk?ack=committed"), ("PUT", "/named/_bulk?ack=committed&refresh=true")] {
        let response = send(s, method, path, &[ndjson], bulk);
        let answer = response.json();
        assert_eq!((response.status, response.header("x-elastic-product")), (200, "Elasticsearch"));
        assert_eq!(answer["errors"], true);
        let items = answer["items"].as_array().expect("items");
        assert_eq!(
            (&items[0]["create"]["status"], &items[0]["create"]["_index"]),
            (&json!(201), &json!("web-2026.11.20"))
        );
        assert_eq!(items[1]["delete"]["status"], 400);
        assert_eq!(items[2]["index"]["status"], 201);
        assert_eq!(items.len(), 3);
    }

    let events = r#"{"time":1795169700.0,"host":"n2","sourcetype":"hec","event":{"severity":"fatal","message":"an event"}}{"time":"1795169700","event":"a text","sourcetype":"hec"}"#;
    for path in ["/services/collector", "/services/collector/event", "/services/collector/event/1.0"] {
        let response = send(s, "POST", &format!("{path}?ack=committed&channel=x"), &[], events);
        assert_eq!((response.status, response.json()), (200, json!({ "text": "Success", "code": 0 })));
    }
    let raw = "/services/collector/raw?ack=committed&host=n3&sourcetype=hec-raw&source=app";
    let response = send(s, "POST", raw, &[], "a raw line\nand one more\n");
    assert_eq!((response.status, response.json()), (200, json!({ "text": "Success", "code": 0 })));

    let stored = s
        .store
        .rows("SELECT service, host, severity, message, count(*) FROM logs GROUP BY 1, 2, 3, 4 ORDER BY 1, 2, 3, 4")
        .expect("the table");
    let expected = [
        ["hec", "", "0", "a text", "3"],
        ["hec", "n2", "21", "an event", "3"],
        ["hec-raw", "n3", "0", "a raw line", "1"],
        ["hec-raw", "n3", "0", "and one more", "1"],
        ["loki", "n1", "13", "a json line", "1"],
        ["loki-pb", "", "0", "in protobuf", "2"],
        ["named", "", "0", "another", "1"],
        ["otlp", "", "17", "by protobuf", "2"],
        ["otlp-json", "", "9", "by json", "1"],
        ["unknown_service", "", "0", "another", "1"],
        ["web", "", "17", "a document", "2"],
    ];
    // Parsing of the first Loki line is tested with the formats, not with the protocol.
    let known: Vec<_> = stored.iter().filter(|row| !row[3].ends_with("a line")).collect();
    assert_eq!(
        known,
        expected.iter().map(|row| row.map(str::to_owned).to_vec()).collect::<Vec<_>>().iter().collect::<Vec<_>>()
    );
    let at = "SELECT count(*) FROM logs WHERE CAST(ts AS text) NOT LIKE '2026-11-20%' AND service NOT LIKE 'hec-raw%'";
    assert_eq!(s.store.rows(at).expect("the table")[0][0], "0");
    let with = |name: &str, value: &str| {
        let like = format!("%\"{name}\"%\"{value}\"%");
        format!("SELECT count(*) FROM logs WHERE CAST(attributes AS text) LIKE '{like}'")
    };
    for (name, value, count) in [
        ("env", "test", "2"),
        ("trace_id", "0af7", "2"),
        ("trace_id", &"ab".repeat(16), "2"),
        ("index", "web-2026.11.20", "2"),
        ("source", "app", "2"),
    ] {
        assert_eq!(s.store.rows(&with(name, value)).expect("the table")[0][0], count, "{name}={value}");
    }
    let closing = s.stop();
    assert_eq!((closing.accepted, closing.committed, closing.backlog), (19, 19, 0));
}

/// One valid request per protocol.
fn one_of_each() -> Vec<(&'static str, (&'static str, &'static str), Vec<u8>)> {
    vec![
        ("/loki/api/v1/push", JSON, loki_json("x").into_bytes()),
        ("/v1/logs", PROTOBUF, otlp_protobuf(&["x"])),
        ("/v1/logs", JSON, OTLP_JSON.into()),
        ("/_bulk", JSON, b"{\"create\":{}}\n{}\n".to_vec()),
        ("/services/collector", JSON, br#"{"event":"x"}"#.to_vec()),
        ("/services/collector/raw", JSON, b"x".to_vec()),
    ]
}

#[test]
fn a_token_is_accepted_in_the_form_of_each_client() {
    on_sqlite("tokens", |s| {
        s.set("auth.ingest_tokens", TOKEN);
        s.start();
        for (path, kind, body) in one_of_each() {
            for scheme in ["Bearer ", "Splunk ", "ApiKey "] {
                let authorization = format!("{scheme}{TOKEN}");
                let response = send(s, "POST", path, &[kind, ("authorization", &authorization)], &body);
                assert!(matches!(response.status, 200 | 204), "{path} {response:?}");
            }
            let basic = format!("Basic {}", STANDARD.encode(format!("any-user:{TOKEN}")));
            let response = send(s, "POST", path, &[kind, ("authorization", &basic)], &body);
            assert!(matches!(response.status, 200 | 204), "{path} {response:?}");
        }
        let wrong = ("authorization", "Splunk 0123456789abcdef-no");
        let response = send(s, "POST", "/loki/api/v1/push", &[JSON, wrong], loki_json("x"));
        assert_eq!((response.status, response.text().starts_with("unauthorized: ")), (401, true));
        let response = send(s, "POST", "/v1/logs", &[PROTOBUF, wrong], otlp_protobuf(&["x"]));
        assert_eq!((response.status, response.status_message().0), (401, 16));
        let response = send(s, "POST", "/v1/logs", &[JSON, wrong], OTLP_JSON);
        assert_eq!((response.status, &response.json()["code"]), (401, &json!(16)));
        let response = send(s, "POST", "/_bulk", &[JSON], "{\"create\":{}}\n{}\n");
        assert_eq!((response.status, &response.json()["error"]["type"]), (401, &json!("security_exception")));
        for (authorization, status, code) in [
            (None, 401, 2),
            (Some("Splunk"), 401, 3),
            (Some("Digest x"), 401, 3),
            (Some("Splunk 0123456789abcdef-no"), 403, 4),
        ] {
            let headers: Vec<_> =
                authorization.map(|authorization| ("authorization", authorization)).into_iter().collect();
            let response = send(s, "POST", "/services/collector", &headers, r#"{"event":"x"}"#);
            assert_eq!((response.status, &response.json()["code"]), (status, &json!(code)), "{authorization:?}");
        }
        assert_eq!(send(s, "GET", "/services/collector/health", &[], "").json()["code"], 17);
        assert_eq!(send(s, "GET", "/ready", &[], "").status, 200);
        let response = send(s, "OPTIONS", "/services/collector/event/1.0", &[], "");
        assert_eq!((response.status, response.header("allow")), (200, "POST, OPTIONS"));
        assert_eq!(send(s, "GET", "/_license", &[], "").status, 401);
        // Six requests with four forms of a token; nothing of the unauthorized requests.
        assert_eq!(s.stop().accepted, 24);
    });
}

#[test]
fn permanent_errors_have_the_shape_of_each_protocol() {
    on_sqlite("malformed", |s| {
        s.set("http.line_bytes_max", 1024);
        s.start();
        let response = send(s, "POST", "/loki/api/v1/push", &[JSON], "{");
        assert_eq!((response.status, response.text().starts_with("malformed_json: ")), (400, true));
        let response = send(s, "POST", "/loki/api/v1/push", &[PROTOBUF], "not snappy");
        assert_eq!((response.status, response.text().starts_with("bad_snappy: ")), (400, true));
        let response = send(s, "POST", "/loki/api/v1/push", &[JSON], loki_json(&"x".repeat(1100)));
        assert_eq!(
            (response.status, response.text().starts_with("stored 0 lines, discarded 1; entry 1: ")),
            (400, true)
        );

        let response = send(s, "POST", "/v1/logs", &[PROTOBUF], "\x0a\x7f");
        let (code, message) = response.status_message();
        assert_eq!((response.status, code, message.starts_with("malformed_protobuf: ")), (400, 3, true));
        let response = send(s, "POST", "/v1/logs", &[JSON], "[]");
        assert_eq!((response.status, &response.json()["code"]), (400, &json!(3)));
        let long = "x".repeat(1100);
        let response = send(s, "POST", "/v1/logs", &[PROTOBUF], otlp_protobuf(&["short", &long]));
        let partial =
            Response::decode(&*response.body).expect("a response").partial_success.expect("a partial success");
        assert_eq!((response.status, partial.rejected), (200, 1));
        assert!(partial.message.contains("discarded"), "{partial:?}");

        let response = send(s, "POST", "/_bulk", &[JSON], "{\"create\":{}}\n");
        assert_eq!((response.status, &response.json()["status"]), (400, &json!(400)));
        assert_eq!(response.json()["error"]["type"], "illegal_argument_exception");
        assert_eq!(response.header("x-elastic-product"), "Elasticsearch");
        let response = send(s, "POST", "/_bulk", &[JSON], format!("{{\"create\":{{}}}}\n{{\"m\":\"{long}\"}}\n"));
        assert_eq!((response.status, &response.json()["items"][0]["create"]["status"]), (200, &json!(413)));

        for (path, body, status, code, number) in [
            ("/services/collector", r#"{"event":"a"}{"event":"#, 400, 6, Some(1)),
            ("/services/collector", r#"{"event":"a"}{"event":"b"}{"host":"c"}"#, 400, 12, Some(2)),
            ("/services/collector", r#"{"event":""}"#, 400, 13, Some(0)),
            ("/services/collector", " ", 400, 5, None),
            ("/services/collector/raw", "\n", 400, 5, None),
            ("/services/collector/ack", r#"{"acks":[1]}"#, 400, 14, None),
        ] {
            let response = send(s, "POST", path, &[], body);
            let answer = response.json();
            assert_eq!((response.status, answer["code"].as_u64()), (status, Some(code)), "{path} {body} {answer}");
            assert_eq!(answer.get("invalid-event-number").and_then(Value::as_u64), number, "{answer}");
        }
        // Only the short OTLP record was accepted.
        assert_eq!(s.server().metric("logweir_received_records_total", ""), 1.0);
        assert_eq!(s.server().metric("logweir_discarded_records_total", "line_too_long"), 3.0);
    });
}

/// The same rejection in the shape of each protocol, with `Retry-After`.
fn check_rejections(s: &mut Scenario, parameter: &str, status: u16, reason: &str) {
    for (path, kind, body) in one_of_each() {
        let response = send(s, "POST", &format!("{path}?{parameter}"), &[kind], &body);
        assert!(!response.header("retry-after").is_empty(), "{path} {response:?}");
        let hec = path.starts_with("/services");
        assert_eq!(response.status, if hec { 503 } else { status }, "{path} {response:?}");
        let grpc = if status == 429 { 8 } else { 14 };
        match path {
            "/loki/api/v1/push" => assert!(response.text().starts_with(&format!("{reason}: ")), "{response:?}"),
            "/v1/logs" if kind == PROTOBUF => {
                let (code, message) = response.status_message();
                assert_eq!((code, message.starts_with(reason)), (grpc, true), "{message}");
            }
            "/v1/logs" => assert_eq!(response.json()["code"], grpc),
            "/_bulk" => {
                let answer = response.json();
                assert_eq!(answer["status"], status);
                assert!(answer["error"]["reason"].as_str().is_some_and(|text| text.starts_with(reason)), "{answer}");
            }
            _ => {
                assert_eq!((&response.json()["text"], &response.json()["code"]), (&json!("Server is busy"), &json!(9)))
            }
        }
    }
}

#[test]
fn overload_and_shutdown_have_the_shape_of_each_protocol() {
    on_sqlite("overload", |s| {
        for key in ["http.inflight_bytes_max", "http.decompressed_bytes_max", "http.body_bytes_max"] {
            s.set(key, 65536);
        }
        s.set("http.line_bytes_max", 1024);
        s.start();
        // It announces a body that uses the whole budget, and never sends it.
        let mut stalled = TcpStream::connect(s.server().http).expect("a connection");
        stalled.write_all(b"POST /ingest HTTP/1.1\r\nHost: x\r\nContent-Length: 65536\r\n\r\n").expect("a request");
        s.server()
            .until("full", PATIENCE, |server| server.metric("logweir_http_inflight_bytes", "") == 65536.0)
            .expect("it runs");
        check_rejections(s, "", 429, "inflight_bytes");
        assert_eq!(s.server().metric("logweir_rejected_requests_total", "inflight_bytes"), 6.0);
        drop(stalled);
    });
    on_sqlite("drain", |s| {
        s.set("http.ack_timeout_ms", 500);
        s.set("shutdown.deadline_ms", "10m"); // it ends when the database is back
        s.start();
        let lock = s.lock_store();
        check_rejections(s, "ack=committed", 503, "ack_timeout");
        // The disk can be slower than the time limit.
        let sent = 1 + (0..20).take_while(|_| send(s, "POST", "/ingest", &[], "x").status != 200).count() as u64;
        s.server().signal(libc::SIGTERM);
        s.wait("the draining phase", |s| {
            let url = format!("http://{}/ready", s.settings["http.listen"]);
            logweir_tests::client::get(&agent(PATIENCE), &url).is_ok_and(|answer| answer.status == 503)
        });
        check_rejections(s, "", 503, "draining");
        assert_eq!(send(s, "GET", "/services/collector/health", &[], "").json()["code"], 18);
        drop(lock);
        assert_eq!(s.ended().code(), Some(0));
        // Six records that were reported to be in the journal, and those that were only to be there.
        assert_eq!(s.store.count(), Ok(6 + sent));
    });
}

#[test]
fn log_shippers_find_the_elasticsearch_endpoints_they_query() {
    on_sqlite("handshake", |s| {
        s.start();
        let welcome = send(s, "GET", "/", &[("accept", "*/*"), ("user-agent", "curl/8")], "");
        assert!(welcome.text().starts_with("logweir receives logs here"), "{welcome:?}");
        for headers in [
            &[("accept", "application/json")][..],
            &[("accept", "application/vnd.elasticsearch+json; compatible-with=8")],
            &[("accept", "*/*"), ("user-agent", "Vector/0.50")],
        ] {
            let response = send(s, "GET", "/", headers, "");
            assert_eq!(response.header("x-elastic-product"), "Elasticsearch");
            assert!(response.json()["version"]["number"].as_str().is_some_and(|number| number.starts_with("8.")));
        }
        assert_eq!(send(s, "HEAD", "/", &[], "").header("x-elastic-product"), "Elasticsearch");
        for path in [
            "/_license",
            "/_license?human=false",
            "/_xpack",
            "/_nodes/http",
            "/_cluster/health",
            "/_cat/indices?format=json",
            "/_ilm/policy/filebeat",
            "/_index_template/logs",
            "/_ingest/pipeline/x",
            "/_component_template/x",
            "/logstash",
        ] {
            let response = send(s, "GET", path, &[], "");
            assert_eq!((response.status, response.header("x-elastic-product")), (200, "Elasticsearch"), "{path}");
        }
        for path in ["/_ilm/policy/filebeat", "/_index_template/logs", "/_ingest/pipeline/x", "/_template/x"] {
            assert_eq!(send(s, "PUT", path, &[JSON], "{}").json()["acknowledged"], true, "{path}");
            assert_eq!(send(s, "HEAD", path, &[], "").status, 200, "{path}");
        }
        let response = send(s, "GET", "/_bulk", &[], "");
        assert_eq!(
            (response.status, response.header("allow"), &response.json()["status"]),
            (405, "POST, PUT", &json!(405))
        );
        assert_eq!(send(s, "GET", "/loki/api/v1/push", &[], "").status, 405);
    });
}

#[test]
fn a_field_mapping_is_tried_without_storing_and_then_used() {
    on_sqlite("mapping", |s| {
        s.start();
        let line = r#"{"when":"2026-11-20T10:15:00Z","prio":"warn","text":"hello","unit":"u","secret":1,"kept":2}"#;
        let mapping = "_time_field=when&_level_field=prio&_msg_field=nothing,text&_service_field=unit&ignore_fields=secret&extra_fields=env=test,zone=a";
        let (body, gz) = (format!("{line}\n").repeat(150), ("content-encoding", "gzip"));
        let response = send(s, "POST", &format!("/ingest?debug=1&{mapping}"), &[gz], gzip(body.as_bytes()));
        let answer = response.json();
        assert_eq!((response.status, &answer["stored"], &answer["accepted"]), (200, &json!(false), &json!(150)));
        let records = answer["records"].as_array().expect("records");
        assert_eq!(records.len(), 100);
        assert_eq!(
            records[0],
            json!({ "ts": "2026-11-20T10:15:00.000000Z", "severity": 13, "severity_text": "WARN", "service": "u", "host": "",
                    "message": "hello", "attributes": { "env": "test", "zone": "a", "kept": 2 } })
        );
        assert_eq!(s.server().metric("logweir_received_records_total", ""), 0.0);

        let headers = [
            ("X-Logweir-Msg-Field", "text"),
            ("X-Logweir-Extra-Fields", "env=test"),
            ("X-Logweir-Ignore-Fields", "k*,secret,when,prio,unit"),
        ];
        assert_eq!(send(s, "POST", "/ingest?ack=committed", &headers, line).status, 200);
        let hec = r#"{"event":{"text":"hello"},"fields":{"kept":"2"}}"#;
        assert_eq!(send(s, "POST", "/services/collector?ack=committed&_msg_field=text", &[], hec).status, 200);
        let rows = s.store.rows("SELECT message, CAST(attributes AS text) FROM logs ORDER BY id").expect("the table");
        assert_eq!(rows[0], ["hello", r#"{"env":"test"}"#]);
        assert_eq!(rows[1], ["hello", r#"{"kept":"2"}"#]);
        for bad in ["extra_fields=novalue", "debug=maybe", "_msg_fields=x"] {
            assert_eq!(send(s, "POST", &format!("/ingest?{bad}"), &[], line).status, 400, "{bad}");
        }
    });
}

const KEY: &str = "idempotency-key";

#[test]
fn a_key_belongs_to_one_body_and_one_token_also_after_a_crash() {
    on_sqlite("keys", |s| {
        let other = "0123456789abcdef-other";
        s.set("auth.mode", "token");
        s.set("auth.ingest_tokens", format!("{TOKEN},{other}"));
        let bearer = [TOKEN, other].map(|token| format!("Bearer {token}"));
        s.start();
        for round in ["first", "again", "after a crash"] {
            let post = |s: &mut Scenario, token: &str, headers: &[(&str, &str)], body: &[u8]| {
                let headers = [&[(KEY, "k"), ("authorization", token)], headers].concat();
                let answer = send(s, "POST", "/ingest?ack=committed", &headers, body);
                (answer.status, answer.json())
            };
            for (token, body) in bearer.iter().zip(["one", "two"]) {
                let (status, answer) = post(s, token, &[], body.as_bytes());
                assert_eq!((status, answer["repeated"] == true), (200, round != "first"), "{round}: {answer}");
                let (status, answer) = post(s, token, &[("content-encoding", "gzip")], &gzip(body.as_bytes()));
                assert_eq!((status, &answer["repeated"]), (200, &json!(true)), "{round}: compressed differently");
                let (status, answer) = post(s, token, &[], b"three");
                assert_eq!((status, &answer["error"]), (422, &json!("idempotency_key_reused")), "{round}");
            }
            assert_eq!(s.store.count(), Ok(2), "{round}");
            if round == "again" {
                s.kill_server();
                s.start();
            }
        }
    });
}

#[test]
fn a_clock_that_jumps_forgets_no_key() {
    let clock = match Clock::new() {
        Ok(clock) => clock,
        Err(why) => return eprintln!("skipped: {why}"),
    };
    on_sqlite("clock of keys", |s| {
        s.environment.extend(clock.whole_environment());
        // By its own clock: a record without a time gets that of its arrival.
        let now = |s: &mut Scenario| {
            send(s, "POST", "/ingest?debug=1", &[], "now").json()["records"][0]["ts"].as_str().unwrap_or("").to_owned()
        };
        let repeated = |s: &mut Scenario, key: &str| {
            let answer = send(s, "POST", "/ingest?ack=committed", &[(KEY, key)], "body");
            assert_eq!(answer.status, 200);
            answer.json()["repeated"] == true
        };
        s.start();
        assert!(!repeated(s, "before"));
        for (step, offset, key) in [(1, "+30d", "ahead"), (2, "+0s", "back"), (3, "-30d", "behind")] {
            let before = now(s);
            clock.set(offset);
            let deadline = Instant::now() + PATIENCE;
            while now(s)[..10] == before[..10] {
                assert!(Instant::now() < deadline, "the clock stays on the day of {before}");
                std::thread::sleep(Duration::from_millis(50));
            }
            assert!(!repeated(s, key), "{offset}");
            assert!(repeated(s, "before"), "{offset}");
            if step == 1 {
                s.kill_server();
                s.start();
                assert!(repeated(s, "before") && repeated(s, key), "after a start with a clock that is ahead");
            }
        }
        assert_eq!(s.store.count(), Ok(4));
    });
}

/// A sender whose request was not answered tries another process: only the database knows that both have it.
#[test]
fn a_request_that_reaches_two_processors_is_stored_once() {
    behind_proxy("two processors", |s| {
        s.set("database.connect_timeout_ms", 2000);
        s.start();
        let mut second = s.launch_beside(&s.dir.join("second"));
        second.ready().expect("it starts");
        let url = |http: std::net::SocketAddr| format!("http://{http}/ingest");
        let urls = [url(s.server().http), url(second.http)];
        let post = |url: &str, key: &str, body: &str| {
            let request = agent(PATIENCE).post(url).header(KEY, key);
            let mut answer = request.send(body).expect("an answer");
            let text = answer.body_mut().read_to_string().expect("text");
            (answer.status().as_u16(), serde_json::from_str::<Value>(&text).expect("JSON"))
        };
        // The database is up for one key, and away for the other: both processes accept what they do not know.
        for key in ["with the database", "without"] {
            if key == "without" {
                s.proxy().set(Mode::Refuse);
                s.proxy().cut();
            }
            for url in &urls {
                let (status, answer) = post(url, key, &format!("one {key}\ntwo {key}"));
                assert_eq!((status, &answer["accepted"], &answer["repeated"]), (200, &json!(2), &Value::Null), "{key}");
            }
        }
        // Not a repetition: neither process knew the other body, and both have acknowledged theirs.
        for (url, body) in urls.iter().zip(["this", "that"]) {
            assert_eq!(post(url, "two bodies", body).0, 200);
        }
        s.proxy().set(Mode::Pass);
        s.wait("everything is stored", |s| s.store.count() == Ok(6));
        for server in [s.server(), &mut second] {
            let caught_up = |server: &Server| {
                let status = server.status();
                let lanes = status["lanes"].as_array().expect("lanes");
                lanes.iter().all(|lane| lane["backlog"] == 0 && lane["cursor_known"] == true)
            };
            server.until("no backlog", PATIENCE, caught_up).unwrap();
        }
        let counted = |server: &Server| server.metric("logweir_discarded_records_total", "reason=\"repeated\"");
        assert_eq!(counted(s.server()) + counted(&second), 4.0);
        assert_eq!(s.store.count(), Ok(6));
        let repeated =
            s.store.rows("SELECT sum(repeated), sum(rows + inherited) FROM logweir_lane").expect("the table");
        assert_eq!(repeated[0], ["4", "10"]);
        // Accounted for, also by `verify`.
        let verified = s.run(&["verify"]);
        assert!(verified.status.success(), "{verified:?}");
    });
}
