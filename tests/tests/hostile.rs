//! Hostile bodies and slow senders on every endpoint, next to a client that must be unaffected.

use std::io::{Read as _, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use logweir_tests::client::{Answer, agent, post_body};
use logweir_tests::process::free_addr;
use logweir_tests::scenario::{PATIENCE, Scenario, on_sqlite};

/// A path, a content type, and a function that wraps text as a record of that format.
type Endpoint = (&'static str, &'static str, fn(&str) -> String);

/// Each endpoint that accepts bodies.
const ENDPOINTS: [Endpoint; 7] = [
    ("/ingest", "application/x-ndjson", str::to_owned),
    ("/ingest?format=json", "application/json", |text| format!("[{text}]")),
    ("/loki/api/v1/push", "application/json", |text| {
        let line = serde_json::Value::from(text);
        format!(r#"{{"streams":[{{"stream":{{"app":"x"}},"values":[["1795169700000000000",{line}]]}}]}}"#)
    }),
    ("/v1/logs", "application/json", |text| {
        format!(r#"{{"resourceLogs":[{{"scopeLogs":[{{"logRecords":[{{"body":{text}}}]}}]}}]}}"#)
    }),
    ("/_bulk", "application/x-ndjson", |text| format!("{{\"create\":{{}}}}\n{text}\n")),
    ("/services/collector", "application/json", |text| format!(r#"{{"event":{text}}}"#)),
    ("/services/collector/raw", "text/plain", str::to_owned),
];

/// Below `http.body_bytes_max`.
const LARGE_BYTES: usize = 7 << 20;

/// Hostile texts of a record.
fn texts() -> Texts {
    let deep = |open: &str, close: &str, times: usize| format!("{}1{}", open.repeat(times), close.repeat(times));
    vec![
        ("arrays in arrays", deep("[", "]", 100_000)),
        ("objects in objects", deep(r#"{"a":"#, "}", 20_000)),
        ("brackets that never close", "[{\"a\":".repeat(LARGE_BYTES / 6)),
        ("values in values of OTLP", deep(r#"{"arrayValue":{"values":["#, "]}}", 5000)),
        ("one huge line", "x".repeat(LARGE_BYTES)),
        ("one huge string", format!("{{\"msg\":\"{}\"}}", "x".repeat(LARGE_BYTES))),
        ("one huge number", format!("{{\"n\":{}}}", "9".repeat(200_000))),
        ("many members", format!("{{{}\"z\":0}}", "\"a\":1,".repeat(30_000))),
        ("many lines", "a\n".repeat(LARGE_BYTES / 2)),
        ("many braces", "{\n".repeat(200_000)),
        ("NULs", "\0".repeat(100_000)),
        ("escaped NULs and halves of pairs", format!("\"{}\"", r"\u0000\ud800".repeat(10_000))),
        ("a string that ends in an escape", "{\"a\":\"\\".to_owned()),
        ("only pairs", "a=".repeat(100_000)),
        ("a timestamp without end", format!("2026-11-20 10:15:00,{}", "1".repeat(200_000))),
        ("empty", String::new()),
    ]
}

/// Hostile bodies as bytes, with their encoding.
fn bodies() -> Bodies {
    let zeros = vec![b'0'; 64 << 20];
    let gzip = |plain: &[u8]| {
        let mut writer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        writer.write_all(plain).expect("memory");
        writer.finish().expect("memory")
    };
    let bomb = gzip(&zeros);
    let mut deflate = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
    deflate.write_all(&zeros).expect("memory");
    // An AnyValue in an AnyValue in …: each is one array (field 5) with one value (field 1).
    let mut value = vec![0x0a, 1, b'x'];
    for _ in 0..5000 {
        value = field(5, &field(1, &value));
    }
    let nested = field(1, &field(2, &field(2, &field(5, &value))));
    vec![
        ("a gzip bomb", "gzip", bomb.clone()),
        ("half a gzip bomb", "gzip", bomb[..bomb.len() / 2].to_vec()),
        ("a nested gzip bomb", "gzip", gzip(&bomb)),
        ("a deflate bomb", "deflate", deflate.finish().expect("memory")),
        ("a zstd bomb", "zstd", zstd::encode_all(&zeros[..], 1).expect("memory")),
        ("snappy that declares four gigabytes", "snappy", vec![0xff, 0xff, 0xff, 0xff, 0x0f, 0]),
        ("not gzip", "gzip", b"{\"msg\":\"x\"}".to_vec()),
        ("invalid UTF-8", "identity", vec![0xff; 100_000]),
        ("deeply nested protobuf", "identity", nested),
        ("protobuf with a length beyond its end", "identity", vec![0x0a, 0xff, 0xff, 0xff, 0xff, 0x07]),
    ]
}

/// A protobuf field of type bytes.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![number << 3 | 2];
    let mut len = bytes.len();
    while len >= 0x80 {
        out.push((len & 0x7f) as u8 | 0x80);
        len >>= 7;
    }
    out.push(len as u8);
    out.extend_from_slice(bytes);
    out
}

#[test]
fn hostile_bodies_are_answered_within_the_memory_bound_and_affect_no_other_client() {
    on_sqlite("hostile bodies", |s| {
        s.start();
        let neighbor = Neighbor::start(s.server().http);
        let everything = (texts(), bodies());
        send(s, &everything);
        let (_, first) = s.server().memory_bytes();
        for _ in 0..2 {
            send(s, &everything);
        }
        let (_, most) = s.server().memory_bytes();
        let bound = s.memory_bound();
        assert!(most < bound, "{most} bytes of memory exceed the bound of {bound}");
        assert!(most < first + (64 << 20), "the first round took {first} bytes, the next two {most}");
        let sent = neighbor.stop();
        s.stop();
        let stored = s.store.rows("SELECT count(*) FROM logs WHERE service = 'neighbor'").expect("the table");
        assert_eq!(stored[0][0], sent.to_string());
    });
}

type Texts = Vec<(&'static str, String)>;
type Bodies = Vec<(&'static str, &'static str, Vec<u8>)>;

/// Sends each text and each body to each endpoint once.
fn send(s: &mut Scenario, (texts, bodies): &(Texts, Bodies)) {
    let to = s.server().http;
    let agent = agent(Duration::from_secs(600));
    for (path, kind, wrap) in ENDPOINTS {
        let url = format!("http://{to}{path}");
        for (what, text) in texts {
            let answer = post_body(&agent, &url, kind, &wrap(text));
            check_response(&format!("{what}, to {path}"), &answer.expect("an answer"));
        }
        for kind in [kind, "application/x-protobuf"] {
            for (what, encoding, body) in bodies {
                let request = agent.post(&url).header("content-type", kind).header("content-encoding", *encoding);
                let mut response = request.send(body).unwrap_or_else(|error| panic!("{what}, to {path}: {error}"));
                let text = response.body_mut().read_to_vec().expect("a body");
                let body = String::from_utf8_lossy(&text).into_owned();
                let answer = Answer { status: response.status().as_u16(), retry_after: None, body };
                check_response(&format!("{what}, to {path} as {kind}"), &answer);
            }
        }
    }
}

/// Checks that the body was accepted, or rejected with an explanation and a client error.
fn check_response(what: &str, answer: &Answer) {
    let Answer { status, body, .. } = answer;
    let excerpt: String = body.chars().take(300).collect();
    match status {
        200 | 204 => {}
        400 | 413 | 415 => {
            assert!(excerpt.chars().filter(|char| char.is_alphabetic()).count() > 10, "{what}: {excerpt:?}")
        }
        _ => panic!("{what}: {status} {excerpt}"),
    }
}

#[test]
fn slow_senders_are_disconnected_and_delay_no_other_client() {
    on_sqlite("slow senders", |s| {
        let syslog = free_addr();
        s.set("http.request_timeout_ms", "1s");
        s.set("syslog.tcp_listen", syslog);
        s.set("syslog.idle_timeout_ms", "1s");
        s.start();
        let http = s.server().http;
        let neighbor = Neighbor::start(http);
        let start_request = |to: SocketAddr, text: &str| {
            let mut stream = TcpStream::connect(to).expect("a connection");
            stream.write_all(text.as_bytes()).expect("a few bytes");
            stream.set_read_timeout(Some(Duration::from_millis(1))).expect("a timeout");
            stream
        };
        let mut slow = Vec::new();
        for _ in 0..100 {
            slow.push(start_request(http, "POST /ingest HTTP/1.1\r\nhost: x\r\nx-slow: "));
            slow.push(start_request(http, "POST /ingest HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n{\"msg\":"));
            slow.push(start_request(
                http,
                "POST /v1/logs HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n5\r\nab",
            ));
            slow.push(start_request(syslog, "<13>Nov 21 08:00:00 h a"));
        }
        s.wait("the server closes each connection", |_| {
            slow.retain_mut(is_open);
            slow.is_empty()
        });
        let sent = neighbor.stop();
        s.stop();
        let stored = s.store.rows("SELECT count(*) FROM logs WHERE service = 'neighbor'").expect("the table");
        assert_eq!(stored[0][0], sent.to_string());
    });
}

/// Sends one more byte; returns whether the connection is still open.
fn is_open(stream: &mut TcpStream) -> bool {
    let _ = stream.write_all(b"a");
    match stream.read(&mut [0; 1024]) {
        Ok(0) => false,
        Ok(_) => true,
        Err(error) => matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut),
    }
}

/// A client that sends one record after another, each of which must be accepted.
struct Neighbor {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<u64>,
}

impl Neighbor {
    fn start(to: SocketAddr) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let (agent, url) = (agent(PATIENCE), format!("http://{to}/ingest?service=neighbor"));
            let mut sent = 0;
            while sent < 10 || !stopped.load(Ordering::Relaxed) {
                let answer = post_body(&agent, &url, "text/plain", "hello").expect("an answer");
                assert_eq!(answer.status, 200, "{}", answer.body);
                sent += 1;
                std::thread::sleep(Duration::from_millis(5));
            }
            sent
        });
        Self { stop, thread }
    }

    /// Stops the client; returns the number of records sent.
    fn stop(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("each record of the neighbor is accepted")
    }
}
