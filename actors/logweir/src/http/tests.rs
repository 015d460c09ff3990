//! The HTTP listeners, the producer and the parser over real sockets and a real journal. A stage that appends to the
//! journal, and reports what it appended as committed on request, replaces the batcher and the database.

#![allow(clippy::unwrap_used)] // clippy allows unwrap in test functions, but not in their helpers

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::{Running, Shared, serve_admin, serve_data};
use crate::alerts::AlertRegistry;
use crate::config::Token;
use crate::config::{
    Admin, Auth, AuthMode, BatchLimits, Cache, CacheUrl, Config, Files, Http, JournalSettings, Limits, Log, Multiline,
    Query, Shutdown, Sources, Syslog,
};
use crate::message::{AckLevel, Delivery, ParsedChunk, RawChunk, Receipt, Rejection};
use crate::parser::Parser;
use crate::producer::framing::Framing;
use crate::producer::source_client::SourceClient;
use crate::producer::stream::StreamSource;
use crate::producer::{IntakeHandle, Producer, demo};
use crate::progress::{Progress, Recovery};
use crate::tail::TailHub;
use logweir_engine::drain::{DrainControl, Phase};
use logweir_engine::journal::{Appended, Journal, JournalConfig, LaneId};
use logweir_engine::mailbox::{Bound, Mailbox};
use logweir_engine::stage::{Exit, Stage, StageContext};
use logweir_engine::topology::{StageSpec, Supervision, Topology};
use logweir_formats::Defaults;
use logweir_formats::Rules;
use logweir_record::codec;
use logweir_record::record::Record;
use logweir_store::LaneRow;
use logweir_store::{Database, DatabaseUrl};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use serde_json::Value;
use tokio::sync::{Notify, watch};

const DEADLINE: Duration = Duration::from_secs(120);

/// Controls of the stage that replaces the batcher and the database.
struct Controls {
    /// Whether durable chunks are reported as committed.
    commits: AtomicBool,
    /// Whether chunks are processed.
    open: watch::Sender<bool>,
}

/// Appends each chunk to the journal as the batcher does.
struct Appender {
    context: StageContext,
    lane: LaneId,
    journal: Journal,
    progress: Progress,
    controls: Arc<Controls>,
}

impl Stage for Appender {
    type Message = ParsedChunk;

    async fn receive(&mut self, message: ParsedChunk) -> Result<(), Exit> {
        let ParsedChunk { chunk, report, reply, .. } = message;
        let mut open = self.controls.open.subscribe();
        let _ = self.context.waiting(open.wait_for(|open| *open)).await;
        assert!(!chunk.iter().any(|record| record.message == "panic now"), "requested by the test");
        let lane = self.lane;
        if chunk.is_empty() {
            reply.send(Ok(Receipt { lane, seq: 0, report, repeated: false }));
            return Ok(());
        }
        let (codec, payload) = codec::encode(&chunk).expect("the parser keeps chunks below the limit");
        let credit = match self.context.waiting(self.journal.reserve(payload.len())).await {
            Ok(credit) => credit,
            Err(error) => {
                reply.send(Err(Rejection::of_journal(&error)));
                return Ok(());
            }
        };
        let records = u32::try_from(chunk.len()).expect("fits");
        let receipt = Receipt { lane, seq: 0, report, repeated: false };
        let appended = self.journal.append(credit, lane, codec, records, payload, reply.when_durable(receipt));
        let Appended { seq, lane_records: rows, .. } = appended.expect("the credit was taken");
        let (journal, progress, controls) = (self.journal.clone(), self.progress.clone(), self.controls.clone());
        actix_rt::spawn(async move {
            if journal.durable(seq).await.is_ok() && controls.commits.load(Ordering::SeqCst) {
                progress.lane_row_updated(LaneRow { lane, last_seq: seq, rows, ..LaneRow::default() });
            }
        });
        Ok(())
    }
}

/// A process in a thread: listeners, stages and journal.
struct Rig {
    data: SocketAddr,
    admin: SocketAddr,
    shared: Shared,
    controls: Arc<Controls>,
    control: Arc<DrainControl>,
    drain_requests: Arc<AtomicUsize>,
    source: Option<StreamSource>,
    stop: Arc<Notify>,
    thread: Option<JoinHandle<()>>,
    dir: tempfile::TempDir,
}

/// Settings that a test may change before the start.
struct Plan {
    config: Config,
    bound: Bound,
    start: bool,
}

impl Plan {
    fn new() -> Self {
        let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
        let config = Config {
            data_dir: "unused".into(),
            http: Http {
                listen: loopback,
                workers: 1,
                connections_max: 64,
                body_bytes_max: 1 << 20,
                decompressed_bytes_max: 2 << 20,
                line_bytes_max: 64 << 10,
                inflight_bytes_max: 4 << 20,
                request_timeout_ms: 100_000,
                tls_cert_file: None,
                tls_key_file: None,
                tls_client_ca_file: None,
                ack_timeout_ms: 100_000,
            },
            admin: Admin { listen: loopback },
            auth: Auth {
                mode: AuthMode::None,
                ingest_tokens: vec![],
                query_tokens: vec![],
                admin_tokens: vec![],
                stamp_token: false,
            },
            limits: Limits::default(),
            parse: Rules::default(),
            ack: AckLevel::Journal,
            lanes: Some(2),
            batch: BatchLimits { rows_max: 1000, bytes_max: 1 << 20, linger_ms: 10 },
            journal: JournalSettings {
                segment_bytes: 4 << 20,
                quota_bytes: 64 << 20,
                ballast_bytes: 0,
                queue_bytes_max: 8 << 20,
                retain_segments: 0,
                retain_s: 0,
            },
            database: Database::new(DatabaseUrl::Sqlite("unused".into())),
            cache: Cache {
                url: CacheUrl::Memory,
                recent_records: 1,
                recent_records_per_s: 1,
                services_max: 1,
                timeout_ms: 1,
                ttl_s: 1,
            },
            query: Query { timeout_ms: 1000, running_max: 1, waiting_max: 1, streams_max: 1, page_bytes_max: 1 << 20 },
            shutdown: Shutdown { linger_ms: 0, deadline_ms: 5000 },
            sources: Sources::default(),
            syslog: Syslog::default(),
            files: Files::default(),
            multiline: Multiline::default(),
            log: Log { level: "info".into(), json: false },
            ..Config::default()
        };
        Self { config, bound: Bound { messages_max: 64, bytes_max: 32 << 20 }, start: true }
    }

    fn launch(self) -> Rig {
        let dir = tempfile::tempdir().unwrap();
        let journal_dir = dir.path().join("journal");
        let controls = Arc::new(Controls { commits: AtomicBool::new(true), open: watch::Sender::new(true) });
        let (control, drain_requests) = (Arc::new(DrainControl::default()), Arc::new(AtomicUsize::new(0)));
        let requests = drain_requests.clone();
        let Self { config, bound, start } = self;
        let progress = Progress::default();
        progress.names("none", "none");
        let shared = Shared::new(
            Arc::new(config),
            control.watch(),
            progress,
            prometheus(),
            Arc::new(move || _ = requests.fetch_add(1, Ordering::SeqCst)),
            "rig".into(),
        )
        .unwrap();
        let stop = Arc::new(Notify::new());
        let (ready, listening) = mpsc::channel();
        let inside = (shared.clone(), controls.clone(), stop.clone(), control.clone());
        let thread = std::thread::spawn(move || {
            let (shared, controls, stop, control) = inside;
            actix_rt::System::new().block_on(async move {
                let listener = || TcpListener::bind("127.0.0.1:0").unwrap();
                let data = serve_data(&shared, listener()).unwrap();
                let admin = serve_admin(&shared, listener()).unwrap();
                let handles = [data.handle.clone(), admin.handle.clone()];
                actix_rt::spawn(data.server);
                actix_rt::spawn(admin.server);
                let engine = start.then(|| engine(&shared, journal_dir, bound, &controls, &control));
                let source = engine.as_ref().map(|engine| engine.source.clone());
                ready.send((data.address, admin.address, source)).unwrap();
                stop.notified().await;
                controls.open.send_replace(true);
                for handle in handles {
                    handle.stop(false).await;
                }
                if let Some(mut engine) = engine {
                    assert!(engine.topology.drain().await.is_empty());
                    engine.journal.seal().unwrap();
                }
            });
        });
        let (data, admin, source) = listening.recv_timeout(DEADLINE).unwrap();
        Rig { data, admin, shared, controls, control, drain_requests, source, stop, thread: Some(thread), dir }
    }
}

struct Engine {
    topology: Topology,
    journal: Journal,
    source: StreamSource,
}

fn engine(
    shared: &Shared,
    dir: std::path::PathBuf,
    bound: Bound,
    controls: &Arc<Controls>,
    control: &DrainControl,
) -> Engine {
    let settings = &shared.config.journal;
    let (journal, recovered) = Journal::open(JournalConfig {
        segment_bytes: settings.segment_bytes,
        quota_bytes: settings.quota_bytes,
        ballast_bytes: settings.ballast_bytes,
        queue_bytes_max: settings.queue_bytes_max,
        retain_segments: settings.retain_segments,
        retain_for: Duration::from_secs(settings.retain_s),
        ..JournalConfig::new(dir)
    })
    .unwrap();
    let supervision = Supervision { stall_ms: 10_000, restarts_max: 5, restart_window_ms: 60_000 };
    let mut topology = Topology::new("logweir", supervision, control.watch());
    let spec = |stage: &str, lane: u16| StageSpec {
        name: format!("{stage}-{lane}"),
        arbiter: format!("lane-{lane}"),
        bound,
        tick_ms: None,
    };
    let line_bytes_max = shared.config.http.line_bytes_max;
    let plain_bytes_max = shared.config.http.decompressed_bytes_max;
    let producers = (0..shared.config.lanes())
        .map(|lane| {
            let parts = (journal.clone(), shared.progress.clone(), controls.clone());
            let batcher: Mailbox<ParsedChunk> = topology.spawn(spec("batcher", lane), move |context| {
                let (journal, progress, controls) = parts.clone();
                Appender { context, lane, journal, progress, controls }
            });
            let parser: Mailbox<RawChunk> = topology
                .spawn(spec("parser", lane), move |context| Parser::new(context, batcher.clone(), line_bytes_max));
            let producer: Mailbox<Delivery> = topology
                .spawn(spec("producer", lane), move |context| Producer::new(context, parser.clone(), plain_bytes_max));
            producer
        })
        .collect::<Vec<_>>();
    let intake = IntakeHandle::new(&producers);
    let source = StreamSource {
        source_client: SourceClient {
            intake: intake.clone(),
            progress: shared.progress.clone(),
            drain: control.watch(),
            ack: AckLevel::Committed,
        },
        component: "stdin",
        framing: Framing::Lines,
        record_bytes_max: line_bytes_max,
        multiline: None,
        idle_timeout: None,
        defaults: Defaults { service: Some("piped".into()), ..Defaults::default() },
    };
    let observer = topology.observer();
    let (progress, tails) = (shared.progress.clone(), shared.config.tail);
    let tail = TailHub::start(journal.clone(), recovered.writer, progress, control.watch(), tails).unwrap();
    assert!(shared.start(Running {
        intake,
        journal: journal.clone(),
        observer,
        tail,
        alerts: AlertRegistry::default(),
        writer: recovered.writer,
        run: recovered.run,
    }));
    shared.progress.recovery(Recovery { finished: true, ..Recovery::default() });
    Engine { topology, journal, source }
}

/// The metrics of all rigs of this process.
fn prometheus() -> PrometheusHandle {
    static HANDLE: OnceLock<PrometheusHandle> = OnceLock::new();
    HANDLE.get_or_init(|| PrometheusBuilder::new().install_recorder().unwrap()).clone()
}

/// A response as received by the client.
#[derive(Debug)]
struct Received {
    status: u16,
    headers: BTreeMap<String, String>,
    text: String,
}

impl Received {
    fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Checks the status and the reason code; returns the detail, which must not be empty.
    fn rejection(&self, status: u16, error: &str) -> String {
        let json = self.json();
        assert_eq!((self.status, json["error"].as_str()), (status, Some(error)), "{self:?}");
        json["detail"].as_str().filter(|detail| !detail.is_empty()).expect("a detail").to_owned()
    }
}

impl Rig {
    fn post(&self, path: &str, body: impl AsRef<[u8]>) -> Received {
        self.post_with(path, &[], body)
    }

    fn post_with(&self, path: &str, headers: &[(&str, &str)], body: impl AsRef<[u8]>) -> Received {
        exchange(self.data, "POST", path, headers, body.as_ref())
    }

    fn admin(&self, method: &str, path: &str) -> Received {
        exchange(self.admin, method, path, &[], b"")
    }

    /// The sum of a counter over all actors.
    fn actors(&self, counter: &str) -> u64 {
        let status = self.admin("GET", "/api/v1/status").json();
        status["actors"].as_array().unwrap().iter().map(|actor| actor[counter].as_u64().unwrap()).sum()
    }

    /// Stops everything and returns all messages in the journal, with service and host.
    fn into_journal(self) -> Vec<(String, String, String)> {
        self.records(|record| (record.message.to_owned(), record.service.to_owned(), record.host.to_owned()))
    }

    fn attributes(self) -> Vec<String> {
        let mut attributes = self.records(|record| record.attributes.to_owned());
        attributes.sort();
        attributes
    }

    /// Stops everything and reads the journal.
    fn records<T>(mut self, of: impl Fn(Record<'_>) -> T) -> Vec<T> {
        self.end();
        let (journal, recovered) = Journal::open(JournalConfig {
            segment_bytes: self.shared.config.journal.segment_bytes,
            quota_bytes: self.shared.config.journal.quota_bytes,
            queue_bytes_max: 1 << 20,
            ..JournalConfig::new(self.dir.path().join("journal"))
        })
        .unwrap();
        let mut all = Vec::new();
        for &lane in recovered.lanes.keys() {
            let mut reader = journal.reader(lane, 0);
            loop {
                let frames = reader.next_frames(1000, 1 << 20).unwrap();
                if frames.is_empty() {
                    break;
                }
                for frame in frames {
                    let chunk = codec::decode(frame.codec, &frame.payload).unwrap();
                    all.extend(chunk.iter().map(&of));
                }
            }
        }
        journal.seal().unwrap();
        all
    }

    fn messages(self) -> Vec<String> {
        self.into_journal().into_iter().map(|(message, ..)| message).collect()
    }

    fn end(&mut self) {
        self.stop.notify_one();
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || std::thread::panicking(), "the rig's thread panicked");
        }
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.end();
    }
}

/// One request on its own connection, written by hand so that the tests control what is on the wire.
fn exchange(to: SocketAddr, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Received {
    let mut socket = connect(to);
    socket.write_all(head(method, path, headers, body.len()).as_bytes()).unwrap();
    // An early response may arrive while this is still being written.
    let _ = socket.write_all(body);
    answer(&mut socket)
}

fn connect(to: SocketAddr) -> TcpStream {
    let socket = TcpStream::connect(to).unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    socket
}

fn head(method: &str, path: &str, headers: &[(&str, &str)], length: usize) -> String {
    let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    format!("{method} {path} HTTP/1.1\r\nHost: logweir\r\nContent-Length: {length}\r\n{headers}\r\n")
}

/// Reads one response, which has a `Content-Length` or no body.
fn answer(socket: &mut TcpStream) -> Received {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(at) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break at + 4;
        }
        let mut piece = [0; 4096];
        match socket.read(&mut piece).expect("an answer before the deadline") {
            0 => panic!("closed without an answer after {:?}", String::from_utf8_lossy(&bytes)),
            read => bytes.extend_from_slice(&piece[..read]),
        }
    };
    let text = String::from_utf8(bytes[..end].to_vec()).unwrap();
    let mut lines = text.trim_end().split("\r\n");
    let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let headers: BTreeMap<_, _> = lines
        .map(|line| line.split_once(": ").unwrap())
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    let length: usize = headers.get("content-length").map_or(0, |length| length.parse().unwrap());
    let mut body = bytes[end..].to_vec();
    let already = body.len().min(length);
    body.resize(length.max(already), 0);
    socket.read_exact(&mut body[already..]).unwrap();
    Received { status, headers, text: String::from_utf8(body).unwrap() }
}

fn poll(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !done() {
        assert!(Instant::now() < deadline, "timed out waiting for: {what}");
        std::thread::yield_now();
    }
}

fn lines(count: usize) -> String {
    (0..count).map(|index| format!("line {index}\n")).collect()
}

#[test]
fn an_accepted_body_is_in_the_journal() {
    let rig = Plan::new().launch();
    let response =
        rig.post("/ingest?service=shop&host=n1", "{\"msg\":\"one\"}\n\n{\"msg\":\"two\",\"service\":\"own\"}\n{\"ms\n");
    let json = response.json();
    assert_eq!(response.status, 200);
    assert_eq!((&json["accepted"], &json["rejected"], &json["parse_errors"]), (&3.into(), &0.into(), &1.into()));
    assert_eq!(json["errors"][0]["line"], 4);
    assert_eq!(json["ack"], "journal");
    assert!(json["seq"].as_u64().unwrap() > 0);
    let by_header = [("X-Logweir-Service", "cart"), ("X-Logweir-Host", "n2")];
    assert_eq!(rig.post_with("/ingest?format=plain&ack=committed", &by_header, "{three}").json()["ack"], "committed");
    assert_eq!(rig.post("/ingest", "\n\n").json()["seq"], 0);
    let mut stored = rig.into_journal();
    stored.sort();
    let stored: Vec<_> = stored.iter().map(|(message, service, host)| (&**message, &**service, &**host)).collect();
    assert_eq!(
        stored,
        [("one", "shop", "n1"), ("two", "own", "n1"), ("{\"ms", "shop", "n1"), ("{three}", "cart", "n2")]
    );
}

#[test]
fn requests_on_one_connection_stay_in_one_lane_in_order() {
    let rig = Plan::new().launch();
    let mut socket = connect(rig.data);
    let mut lanes = Vec::new();
    for index in 0..20 {
        let body = format!("line {index}");
        socket.write_all((head("POST", "/ingest", &[], body.len()) + &body).as_bytes()).unwrap();
        lanes.push(answer(&mut socket).json()["lane"].as_u64().unwrap());
    }
    lanes.dedup();
    assert_eq!(lanes.len(), 1);
    let other: std::collections::BTreeSet<_> =
        (0..4).map(|_| rig.post("/ingest?format=json", "{}").json()["lane"].as_u64().unwrap()).collect();
    assert_eq!(other.len(), 2, "new connections use all lanes");
    let stored: Vec<_> = rig.messages().into_iter().filter(|message| message != "{}").collect();
    assert_eq!(stored, (0..20).map(|index| format!("line {index}")).collect::<Vec<_>>());
}

#[test]
fn compressed_bodies_are_accepted_and_bombs_are_rejected() {
    let rig = Plan::new().launch();
    let gzip = |plain: &[u8]| {
        let mut writer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        writer.write_all(plain).unwrap();
        writer.finish().unwrap()
    };
    let zstd = |plain: &[u8]| zstd::encode_all(plain, 1).unwrap();
    for (name, body) in [("gzip", gzip(b"one")), ("zstd", zstd(b"two")), ("identity", b"three".to_vec())] {
        assert_eq!(rig.post_with("/ingest", &[("Content-Encoding", name)], body).json()["accepted"], 1, "{name}");
    }
    let bomb = vec![b'\n'; 32 << 20];
    for (name, body) in [("gzip", gzip(&bomb)), ("zstd", zstd(&bomb))] {
        rig.post_with("/ingest", &[("Content-Encoding", name)], body).rejection(413, "decompressed_too_large");
        let reason = format!("bad_{name}");
        rig.post_with("/ingest", &[("Content-Encoding", name)], "plain").rejection(400, &reason);
    }
    let detail = rig.post_with("/ingest", &[("Content-Encoding", "br")], "x").rejection(415, "unknown_encoding");
    assert!(detail.contains("gzip, zstd, deflate, snappy, identity"), "{detail}");
    let mut stored = rig.messages();
    stored.sort();
    assert_eq!(stored, ["one", "three", "two"]);
}

#[test]
fn invalid_parameters_are_rejected_with_the_accepted_values() {
    let rig = Plan::new().launch();
    for (query, allowed) in [
        ("ack=maybe", "received, journal, committed"),
        ("format=xml", "auto, json, lines, ndjson, access_log, syslog"),
        ("service=", "1 to 255 bytes"),
        ("host=a%00b", "without NUL"),
        ("sevice=shop", "ack, format, service, host"),
    ] {
        let detail = rig.post(&format!("/ingest?{query}"), "x").rejection(400, "bad_parameter");
        assert!(detail.contains(allowed), "{query}: {detail}");
    }
    let detail = rig.post("/ingest", "[{\"a\":1},\n{\"b\"").rejection(400, "malformed_json");
    assert!(detail.contains("line 2 column 4"), "{detail}");
    assert_eq!(rig.messages(), [""; 0]);
}

#[test]
fn a_body_above_the_limit_is_rejected_with_or_without_an_announced_length() {
    let rig = Plan::new().launch();
    rig.post("/ingest", vec![b'x'; (1 << 20) + 1]).rejection(413, "body_too_large");
    // Announced but never sent: rejected without waiting for it.
    let mut socket = connect(rig.data);
    socket.write_all(head("POST", "/ingest", &[], 1 << 40).as_bytes()).unwrap();
    answer(&mut socket).rejection(413, "body_too_large");
    // Chunked without end.
    let mut socket = connect(rig.data);
    socket.write_all(b"POST /ingest HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n").unwrap();
    let chunk = [b"10000\r\n".to_vec(), vec![b'x'; 0x10000], b"\r\n".to_vec()].concat();
    for _ in 0..17 {
        socket.write_all(&chunk).unwrap();
    }
    answer(&mut socket).rejection(413, "body_too_large");
    poll("the budget is released", || rig.shared.inflight_bytes() == 0);
}

#[test]
fn a_stalled_body_is_rejected_at_the_request_timeout() {
    let mut plan = Plan::new();
    plan.config.http.request_timeout_ms = 300;
    let rig = plan.launch();
    let mut socket = connect(rig.data);
    socket.write_all(head("POST", "/ingest", &[], 100).as_bytes()).unwrap();
    socket.write_all(b"only this").unwrap();
    answer(&mut socket).rejection(408, "request_timeout");
    assert_eq!(rig.shared.inflight_bytes(), 0);
    assert_eq!(rig.messages(), [""; 0]);
}

#[test]
fn bodies_in_flight_stay_within_the_budget() {
    let mut plan = Plan::new();
    plan.config.http.inflight_bytes_max = 1000;
    let rig = plan.launch();
    let mut slow = connect(rig.data);
    slow.write_all(head("POST", "/ingest", &[], 900).as_bytes()).unwrap();
    poll("the slow body has its share", || rig.shared.inflight_bytes() == 900);
    let response = rig.post("/ingest", vec![b'x'; 200]);
    response.rejection(429, "inflight_bytes");
    assert_eq!(response.headers["retry-after"], "1");
    assert_eq!(rig.post("/ingest", vec![b'x'; 50]).status, 200);
    drop(slow); // a disconnected client releases its share
    poll("the share is released", || rig.shared.inflight_bytes() == 0);
    assert_eq!(rig.post("/ingest", vec![b'x'; 200]).status, 200);
}

#[test]
fn full_mailboxes_answer_429_and_accepted_records_are_stored() {
    let mut plan = Plan::new();
    plan.bound = Bound { messages_max: 1, bytes_max: 1 << 20 };
    plan.config.lanes = Some(1);
    let rig = plan.launch();
    rig.controls.open.send_replace(false);
    let waiting: Vec<_> = (0..10)
        .map(|index| {
            let to = rig.data;
            std::thread::spawn(move || {
                (index, exchange(to, "POST", "/ingest", &[], format!("line {index}").as_bytes()))
            })
        })
        .collect();
    poll("a rejected request", || rig.actors("rejected") > 0);
    rig.controls.open.send_replace(true);
    let mut accepted = Vec::new();
    for thread in waiting {
        let (index, response) = thread.join().unwrap();
        if response.status == 200 {
            accepted.push(format!("line {index}"));
        } else {
            response.rejection(429, "mailbox_full");
            assert_eq!(response.headers["retry-after"], "1");
        }
    }
    assert!((1..10).contains(&accepted.len()), "{accepted:?}");
    let mut stored = rig.messages();
    stored.sort();
    assert_eq!(stored, accepted);
}

#[test]
fn committed_is_acknowledged_only_after_the_commit() {
    let mut plan = Plan::new();
    plan.config.http.ack_timeout_ms = 200;
    let rig = plan.launch();
    rig.controls.commits.store(false, Ordering::SeqCst);
    let response = rig.post("/ingest?ack=committed", "late");
    let detail = response.rejection(503, "ack_timeout");
    assert!(detail.contains("are in the journal") && detail.contains("the same Idempotency-Key"), "{detail}");
    assert_eq!(response.headers["retry-after"], "5");
    let flush = rig.admin("POST", "/flush");
    assert_eq!((flush.status, &flush.json()["backlog"]), (503, &1.into()));
    rig.controls.commits.store(true, Ordering::SeqCst);
    assert_eq!(rig.post("/ingest?ack=committed", "soon").status, 200);
    assert_eq!(rig.messages().len(), 2);
}

#[test]
fn a_full_journal_is_reported_before_the_body_is_read() {
    let mut plan = Plan::new();
    plan.config.journal.segment_bytes = 1 << 16;
    plan.config.journal.quota_bytes = 3 << 16;
    let rig = plan.launch();
    rig.controls.commits.store(false, Ordering::SeqCst); // nothing is committed
    let body = lines(1000);
    poll("the quota", || rig.post("/ingest", &body).status == 503);
    let mut socket = connect(rig.data);
    socket.write_all(head("POST", "/ingest", &[], 1000).as_bytes()).unwrap(); // and no body
    let response = answer(&mut socket);
    response.rejection(503, "journal_quota");
    assert_eq!(response.headers["retry-after"], "5");
    let ready = rig.admin("GET", "/readyz");
    assert_eq!(ready.status, 503);
    assert!(ready.text.contains("quota"), "{}", ready.text);
    assert_eq!(rig.admin("GET", "/livez").status, 200);
}

#[test]
fn during_shutdown_readiness_fails_first_and_intake_later() {
    let rig = Plan::new().launch();
    assert_eq!(rig.admin("GET", "/readyz").status, 200);
    rig.control.advance(Phase::Closing);
    let ready = rig.admin("GET", "/readyz");
    assert_eq!((ready.status, &ready.json()["phase"]), (503, &"closing".into()));
    assert_eq!(rig.post("/ingest", "still").status, 200);
    rig.control.advance(Phase::Draining);
    let response = rig.post("/ingest", "no more");
    response.rejection(503, "draining");
    assert_eq!((&*response.headers["retry-after"], &*response.headers["connection"]), ("5", "close"));
    assert_eq!(rig.admin("GET", "/livez").status, 200);
    assert_eq!(rig.messages(), ["still"]);
}

#[test]
fn before_the_journal_is_open_the_probes_answer_and_intake_is_starting() {
    let mut plan = Plan::new();
    plan.start = false;
    let rig = plan.launch();
    rig.shared.progress.recovery(Recovery { bytes_read: 5, bytes: 10, finished: false });
    let startup = rig.admin("GET", "/startupz");
    assert_eq!((startup.status, &startup.json()["bytes_read"]), (503, &5.into()));
    assert_eq!(rig.admin("GET", "/livez").status, 200);
    assert_eq!(rig.admin("GET", "/readyz").status, 503);
    assert_eq!(rig.admin("GET", "/api/v1/status").json()["writer"], Value::Null);
    rig.post("/ingest", "early").rejection(503, "starting");
    let started = Plan::new().launch();
    assert_eq!(started.admin("GET", "/startupz").status, 200);
}

#[test]
fn a_panic_in_a_stage_affects_only_its_own_request() {
    let rig = Plan::new().launch();
    assert_eq!(rig.post("/ingest", "before").status, 200);
    let detail = rig.post("/ingest", "panic now").rejection(503, "restarted");
    assert!(detail.contains("may or may not be stored"), "{detail}");
    for _ in 0..2 {
        assert_eq!(rig.post("/ingest", "after").status, 200);
    }
    assert_eq!(rig.actors("restarts"), 1);
}

#[test]
fn each_token_has_its_own_limit_and_its_name_is_recorded() {
    let mut plan = Plan::new();
    plan.config.auth.mode = AuthMode::Token;
    plan.config.auth.ingest_tokens = vec![Token("shop=secret-1".to_owned()), Token("secret-2".to_owned())];
    plan.config.auth.stamp_token = true;
    plan.config.limits = Limits { bytes_per_s: 0, bytes_per_day: 40 };
    let rig = plan.launch();
    let post = |token: &str, body: &str| {
        rig.post_with("/ingest?extra_fields=a=b", &[("Authorization", &format!("Bearer {token}"))], body)
    };
    post("shop=secret-1", "x").rejection(401, "unauthorized");
    let body = "y".repeat(30);
    assert_eq!(post("secret-1", &body).status, 200);
    let response = post("secret-1", &body);
    let detail = response.rejection(429, "quota_exceeded");
    assert!(detail.contains("limits.bytes_per_day (40 bytes)"), "{detail}");
    assert!((1..=86_400).contains(&response.headers["retry-after"].parse::<u32>().unwrap()));
    assert_eq!(post("secret-2", &body).status, 200, "another token has its own limit");
    assert_eq!(rig.attributes(), [r#"{"a":"b","logweir.token":"shop"}"#, r#"{"a":"b","logweir.token":"unnamed"}"#]);
}

#[test]
fn each_kind_of_token_authorizes_its_own_endpoints() {
    let mut plan = Plan::new();
    let token = |text: &str| vec![Token(text.to_owned())];
    plan.config.auth = Auth {
        mode: AuthMode::Token,
        ingest_tokens: token("in"),
        query_tokens: token("query"),
        admin_tokens: token("root"),
        stamp_token: false,
    };
    let rig = plan.launch();
    let response = rig.post("/ingest", "x");
    response.rejection(401, "unauthorized");
    assert!(response.headers["www-authenticate"].starts_with("Bearer"));
    assert_eq!(rig.post_with("/ingest", &[("Authorization", "Bearer in")], "x").status, 200);
    rig.post_with("/ingest", &[("Authorization", "Bearer root")], "x").rejection(401, "unauthorized");
    let get =
        |to, path, token: &str| exchange(to, "GET", path, &[("Authorization", &format!("Bearer {token}"))], b"").status;
    assert_eq!(get(rig.data, "/api/v1/status", "query"), 200);
    assert_eq!(get(rig.admin, "/api/v1/status", "root"), 200);
    assert_eq!(get(rig.admin, "/api/v1/status", "in"), 401);
    assert_eq!(get(rig.admin, "/metrics", "root"), 200);
    assert_eq!(get(rig.admin, "/metrics", "query"), 401);
    assert_eq!(rig.admin("POST", "/drain").status, 401);
    assert_eq!(rig.drain_requests.load(Ordering::SeqCst), 0);
    for path in ["/livez", "/readyz", "/startupz", "/healthz", "/ready", "/health"] {
        assert_eq!(rig.admin("GET", path).status, 200, "{path}");
    }
    assert_eq!(rig.messages(), ["x"]);
}

#[test]
fn the_accounting_adds_up_and_the_metrics_are_exported() {
    let rig = Plan::new().launch();
    assert_eq!(rig.post("/ingest?ack=committed", lines(7)).status, 200);
    rig.controls.commits.store(false, Ordering::SeqCst);
    assert_eq!(rig.post("/ingest", lines(5)).status, 200);
    for to in [rig.data, rig.admin] {
        let status = exchange(to, "GET", "/api/v1/status", &[], b"").json();
        let sum = |name: &str| -> u64 {
            status["lanes"].as_array().unwrap().iter().map(|lane| lane[name].as_u64().unwrap()).sum()
        };
        assert_eq!((sum("accepted"), sum("committed"), sum("backlog")), (12, 7, 5));
        assert_eq!((&status["phase"], &status["instance"]), (&"accepting".into(), &"rig".into()));
        assert_eq!(status["actors"].as_array().unwrap().len(), 6);
        assert!(status["journal"]["seq_durable"].as_u64().unwrap() > 0);
    }
    let metrics = rig.admin("GET", "/metrics").text;
    for name in [
        "logweir_received_records_total",
        "logweir_received_bytes_total",
        "logweir_http_requests_total{route=\"/ingest\",status=\"200\"}",
        "logweir_http_request_duration_seconds",
        "logweir_lane_backlog_records{lane=\"0\"}",
        "logweir_mailbox_depth_bytes",
        "logweir_journal_bytes",
    ] {
        assert!(metrics.contains(name), "{name} is not in\n{metrics}");
    }
    for (name, kind) in [
        ("accepted_records_total", "counter"),
        ("committed_records_total", "counter"),
        ("dead_lettered_records_total", "counter"),
        ("lost_records_total", "counter"),
        ("backlog_records", "gauge"),
    ] {
        let line = format!("# TYPE logweir_lane_{name} {kind}\n");
        assert!(metrics.contains(&line), "{line} is not in\n{metrics}");
    }
}

#[test]
fn lane_counters_stand_still_after_the_database_was_restored() {
    let rig = Plan::new().launch();
    let lane: LaneId = 77; // the metrics are shared by all tests of this process
    let row = |rows| LaneRow { lane, last_seq: rows, rows, ..LaneRow::default() };
    let committed = || {
        let metrics = rig.admin("GET", "/metrics").text;
        let line = metrics.lines().find(|line| line.starts_with("logweir_lane_committed_records_total{lane=\"77\"}"));
        line.and_then(|line| line.rsplit(' ').next()).map(str::to_owned)
    };
    assert_eq!(committed(), None, "unknown before the database has reported its cursor");
    for (rows, expected) in [(9, "9"), (4, "9"), (12, "12")] {
        rig.shared.progress.lane_row_updated(row(rows));
        assert_eq!(committed().as_deref(), Some(expected));
        let status = rig.admin("GET", "/api/v1/status").json();
        let lane = status["lanes"].as_array().unwrap().iter().find(|snapshot| snapshot["lane"] == 77).unwrap();
        assert_eq!(lane["committed"], rows, "the status is exact");
    }
}

#[test]
fn an_unknown_path_or_method_lists_the_accepted_ones() {
    let rig = Plan::new().launch();
    let response = rig.post("/injest", "x");
    let detail = response.rejection(404, "not_found");
    assert!(detail.contains("\"/injest\"") && detail.contains("POST /ingest"), "{detail}");
    assert!(response.text.ends_with("}\n"), "{response:?}");
    let response = exchange(rig.data, "GET", "/ingest", &[], b"");
    response.rejection(405, "method_not_allowed");
    assert_eq!(response.headers["allow"], "POST");
    assert!(rig.admin("GET", "/").rejection(404, "not_found").contains("/readyz"));
    let welcome = exchange(rig.data, "GET", "/", &[], b"");
    assert!(welcome.text.contains("/ingest?service=my-app"), "{}", welcome.text);
    let mut socket = connect(rig.admin);
    socket.write_all(head("HEAD", "/readyz", &[], 0).as_bytes()).unwrap();
    let mut answer = [0; 12];
    socket.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200");
}

#[test]
fn drain_and_flush_are_requested_over_http() {
    let rig = Plan::new().launch();
    assert_eq!(rig.post("/ingest", lines(3)).status, 200);
    let before = rig.shared.progress.flushes();
    let flush = rig.admin("POST", "/flush");
    assert_eq!((flush.status, &flush.json()["backlog"]), (200, &0.into()));
    assert!(before.has_changed().unwrap());
    assert_eq!(rig.admin("POST", "/drain").status, 202);
    assert_eq!(rig.drain_requests.load(Ordering::SeqCst), 1);
    assert_eq!(rig.admin("GET", "/drain").status, 405);
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

#[test]
fn lines_from_a_pipe_are_all_stored() {
    let rig = Plan::new().launch();
    let source = rig.source.clone().unwrap();
    // `[{` at the start of a body must not turn it into a JSON document.
    let input = format!("[{{\"one\"}}\n{}no line feed", lines(20_000));
    let summary = runtime().block_on(source.run(input.as_bytes())).unwrap();
    assert_eq!((summary.records, summary.discarded), (20_002, 0));
    let stored = rig.messages();
    assert_eq!(stored.join("\n"), input);
}

#[test]
fn a_pipe_waits_for_capacity_until_shutdown() {
    let mut plan = Plan::new();
    plan.config.journal.segment_bytes = 1 << 20;
    plan.config.journal.quota_bytes = 3 << 20;
    plan.config.lanes = Some(1);
    let rig = plan.launch();
    rig.controls.commits.store(false, Ordering::SeqCst);
    let mut source = rig.source.clone().unwrap();
    source.source_client.ack = AckLevel::Journal;
    let input = lines(200_000);
    let reading = std::thread::spawn(move || runtime().block_on(source.run(input.as_bytes())).unwrap());
    poll("the quota", || rig.admin("GET", "/readyz").status == 503);
    assert!(!reading.is_finished());
    rig.control.advance(Phase::Draining);
    let summary = reading.join().unwrap();
    let stored = rig.messages();
    assert_eq!(summary.records as usize, stored.len());
    assert_eq!(stored, lines(stored.len()).lines().collect::<Vec<_>>());
}

#[test]
fn the_demo_source_runs_until_the_drain() {
    let rig = Plan::new().launch();
    let source = rig.source.clone().unwrap();
    let running = std::thread::spawn(move || runtime().block_on(demo::run(&source.source_client, 2000, 1)));
    poll("some records arrived", || {
        rig.shared.progress.snapshot(&BTreeMap::new()).lanes.iter().any(|lane| lane.committed > 50)
    });
    rig.control.advance(Phase::Draining);
    let stored = running.join().unwrap();
    assert_eq!(stored as usize, rig.messages().len());
}
