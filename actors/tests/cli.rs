//! The real binary, as an operator or a script meets it: exit codes, messages, and what it touches.

#![allow(clippy::unwrap_used, reason = "clippy.toml allows it in test functions, these are their helpers")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// `logweir` in a directory of its own, with nothing of the caller's environment that it would understand.
fn logweir(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_logweir"));
    command.current_dir(dir).stdin(Stdio::null());
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        if name.starts_with("LOGWEIR") || name.contains("_URL") || name.to_lowercase().ends_with("_proxy") {
            command.env_remove(name);
        }
    }
    command
}

fn run(dir: &Path, arguments: &[&str]) -> Output {
    logweir(dir).args(arguments).output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn temporary() -> TempDir {
    tempfile::tempdir().unwrap()
}

#[test]
fn version_says_what_was_built() {
    let output = run(temporary().path(), &["--version"]);
    assert_eq!(output.status.code(), Some(0));
    let text = stdout(&output);
    assert!(text.starts_with(&format!("logweir {} (", env!("CARGO_PKG_VERSION"))), "{text}");
    assert!(text.contains(std::env::consts::ARCH), "{text}");
}

#[test]
fn a_wrong_command_line_is_64() {
    let dir = temporary();
    for arguments in [
        &["--no-such-flag"][..],
        &["no-such-command"],
        &["--set", "no equals sign"],
        &["journal", "check"],
        &["dead-letters", "replay"],
        &["dead-letters", "purge", "--older-than", "7"],
        &["produce", "--demo", "file"],
        &["produce", "--url", "ftp://x/"],
    ] {
        let output = run(dir.path(), arguments);
        assert_eq!(output.status.code(), Some(64), "{arguments:?}: {}", stderr(&output));
        assert!(!output.stderr.is_empty());
    }
    assert_eq!(run(dir.path(), &["--help"]).status.code(), Some(0));
}

#[test]
fn a_bad_configuration_is_78_tells_every_mistake_and_touches_nothing() {
    let dir = temporary();
    let toml = "data_dir = 'data'\nlanes = 0\n[http]\nlisten = '0.0.0.0:8080'\n[batch]\nlinger = 5\n";
    std::fs::write(dir.path().join("logweir.toml"), toml).unwrap();
    let url = ["--database-url", "sqlite:/no/where/x.db"];
    for command in [&["validate"][..], &["run"], &[], &["verify"], &["dead-letters", "list"]] {
        let command = [command, &url].concat();
        let output = logweir(dir.path()).args(&command).env("LOGWEIR__CACHE__TTL_S", "soon").output().unwrap();
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(78), "{command:?}: {text}");
        for mistake in [
            "the configuration has 5 mistakes:",
            "lanes = 0 (logweir.toml:2): must be a whole number, from 1 to 64",
            "http.listen = \"0.0.0.0:8080\" (logweir.toml:4): can be reached from other machines",
            "batch.linger (logweir.toml:6): is not a key; did you mean `batch.linger_ms`?",
            "cache.ttl_s = \"soon\" (environment LOGWEIR__CACHE__TTL_S): must be a time such as",
            "(flag --database-url): its directory /no/where does not exist",
        ] {
            assert!(text.contains(mistake), "{command:?} does not say {mistake:?}:\n{text}");
        }
        assert!(!dir.path().join("data").exists(), "{command:?} made the data_dir");
    }
}

#[test]
fn a_backlog_survives_a_start_with_a_bad_configuration() {
    let dir = temporary();
    let journal = dir.path().join("logweir-data/journal");
    let segment = journal.join("00000000000000000001.wal");
    std::fs::create_dir_all(&journal).unwrap();
    std::fs::write(&segment, b"anything").unwrap();
    assert_eq!(run(dir.path(), &["run", "--set", "lanes=many"]).status.code(), Some(78));
    assert_eq!(std::fs::read_dir(&journal).unwrap().count(), 1);
    assert_eq!(std::fs::read(&segment).unwrap(), b"anything");
}

#[test]
fn validate_shows_what_holds_and_who_said_so_and_hides_secrets() {
    let dir = temporary();
    let output = logweir(dir.path())
        .args(["validate", "--print", "--set", "lanes=7", "--demo", "100"])
        .env("DATABASE_URL", "postgres://me:hunter2@db/logs")
        .output()
        .unwrap();
    let text = stdout(&output);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(!text.contains("hunter2"), "{text}");
    let line = |start: &str| text.lines().find(|line| line.starts_with(start)).unwrap_or_default().to_owned();
    assert!(line("lanes = 7").ends_with("# flag --set"), "{text}");
    assert!(line("demo_rate = 100").ends_with("# flag --demo"), "{text}");
    assert!(line("url = \"postgres://***@db/logs\"").ends_with("# environment DATABASE_URL"), "{text}");
    assert!(line("ack = \"journal\"").ends_with("# default"), "{text}");
    let reference = stdout(&run(dir.path(), &["validate", "--reference"]));
    assert!(reference.contains("| `batch.linger_ms` | `50` | a time such as"), "{reference}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let dir = temporary();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let status = logweir(dir.path()).args(["validate", "--reference"]).stdout(writer).status().unwrap();
    assert_eq!(status.code(), Some(0));
}

#[test]
fn looking_for_a_journal_makes_none() {
    let dir = temporary();
    for command in [&["journal", "check"][..], &["journal", "dump"], &["journal", "repair"], &["verify"]] {
        let output = run(dir.path(), &[command, &["--dir", "gone"]].concat());
        assert_eq!(output.status.code(), Some(66), "{command:?}");
        assert!(stderr(&output).contains("gone"));
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

/// A request as the server below got it.
#[derive(Clone, Debug)]
struct Request {
    at: Instant,
    line: String,
    headers: Vec<String>,
    body: Vec<u8>,
}

impl Request {
    fn header(&self, name: &str) -> Option<String> {
        self.headers.iter().find_map(|header| {
            let (key, value) = header.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
        })
    }
}

/// What the server does with its n-th request.
enum Play {
    Answer(&'static str),
    /// Accepts as many records as the body has lines.
    Accept,
    /// Reads the request and hangs up.
    Cut,
}

/// A server of a few lines: it plays `plays` in order, then accepts everything.
struct Server {
    address: SocketAddr,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    fn start(plays: Vec<Play>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = Self { address: listener.local_addr().unwrap(), requests: Arc::default() };
        let (requests, plays) = (server.requests.clone(), Arc::new(Mutex::new(plays.into_iter())));
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (requests, plays) = (requests.clone(), plays.clone());
                thread::spawn(move || serve(stream.unwrap(), &requests, || plays.lock().unwrap().next()));
            }
        });
        server
    }

    fn url(&self) -> String {
        format!("http://{}/ingest", self.address)
    }

    fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }
}

fn serve(mut stream: TcpStream, requests: &Mutex<Vec<Request>>, next: impl Fn() -> Option<Play>) -> Option<()> {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    loop {
        let mut head = vec![];
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).ok()? == 0 {
                return None;
            }
            match line.trim_end() {
                "" => break,
                line => head.push(line.to_owned()),
            }
        }
        let mut request = Request { at: Instant::now(), line: head.remove(0), headers: head, body: vec![] };
        request.body = vec![0; request.header("content-length")?.parse().ok()?];
        reader.read_exact(&mut request.body).ok()?;
        let lines = request.body.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()).count();
        requests.lock().unwrap().push(request);
        let accept = format!(r#"{{"accepted":{lines},"rejected":0,"parse_errors":0,"errors":[]}}"#);
        let answer = match next().unwrap_or(Play::Accept) {
            Play::Cut => return None,
            Play::Answer(answer) => answer.to_owned(),
            Play::Accept => format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{accept}", accept.len()),
        };
        stream.write_all(answer.as_bytes()).ok()?;
    }
}

/// `logweir produce --json` with `input` on standard input: exit code, what it printed, what it said.
fn produce(server: &Server, input: &str, arguments: &[&str]) -> (Option<i32>, serde_json::Value, String) {
    let dir = temporary();
    let mut child = logweir(dir.path())
        .args(["produce", "--json", "--url", &server.url()])
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // It may have stopped before it has read everything.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let output = child.wait_with_output().unwrap();
    let json = serde_json::from_str(&stdout(&output)).unwrap_or_else(|error| panic!("{error}: {}", stderr(&output)));
    (output.status.code(), json, stderr(&output))
}

fn lines(count: usize) -> String {
    (0..count).map(|number| format!("line {number}\n")).collect()
}

#[test]
fn a_file_arrives_whole_in_order_over_one_connection() {
    let server = Server::start(vec![]);
    let flags = ["--batch-bytes", "1000", "--ack", "committed", "--service", "a b&c", "--token", "t0ken"];
    let (code, json, _) = produce(&server, &lines(1000), &flags);
    assert_eq!(code, Some(0), "{json}");
    assert_eq!((&json["sent"], &json["accepted"], &json["retried"]), (&1000.into(), &1000.into(), &0.into()));
    assert_eq!(json["stopped"], serde_json::Value::Null);
    assert!(
        json["ack_ms"]["p50"].as_f64() > Some(0.0) && json["ack_ms"]["p50"].as_f64() <= json["ack_ms"]["max"].as_f64()
    );
    let requests = server.requests();
    assert!(requests.len() > 8 && requests.iter().all(|request| request.body.len() <= 1000));
    let sent: Vec<u8> = requests.iter().flat_map(|request| request.body.clone()).collect();
    assert_eq!(String::from_utf8(sent).unwrap(), lines(1000));
    assert_eq!(requests[0].line, "POST /ingest?ack=committed&service=a%20b%26c HTTP/1.1");
    assert_eq!(requests[0].header("authorization").as_deref(), Some("Bearer t0ken"));
    let mut keys: Vec<_> = requests.iter().map(|request| request.header("idempotency-key").unwrap()).collect();
    keys.dedup();
    assert_eq!(keys.len(), requests.len());
}

#[test]
fn busy_and_unavailable_are_tried_again_when_the_server_says() {
    let server = Server::start(vec![
        Play::Answer("HTTP/1.1 429 Too Many Requests\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n"),
        Play::Answer("HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"),
    ]);
    let (code, json, told) = produce(&server, "one\ntwo\n", &[]);
    assert_eq!(code, Some(0), "{json}");
    assert_eq!((&json["accepted"], &json["retried"]), (&2.into(), &2.into()));
    assert_eq!(json["maybe_doubled_bodies"], 0);
    assert!(told.contains("429"), "{told}");
    let requests = server.requests();
    assert!(requests[1].at - requests[0].at >= Duration::from_secs(1), "Retry-After was not honoured");
    let keys: Vec<_> = requests.iter().map(|request| request.header("idempotency-key")).collect();
    assert!(keys[0].is_some() && keys[0] == keys[1] && keys[1] == keys[2]);
}

#[test]
fn a_lost_answer_is_tried_again_and_counted_as_doubtful() {
    let server = Server::start(vec![Play::Cut]);
    let (code, json, _) = produce(&server, "one\n", &[]);
    assert_eq!(code, Some(0), "{json}");
    assert_eq!((&json["accepted"], &json["retried"]), (&1.into(), &1.into()));
    assert_eq!(json["maybe_doubled_bodies"], 1);
    assert_eq!(server.requests().len(), 2);
}

#[test]
fn what_no_retry_mends_stops_everything_with_the_count() {
    let server = Server::start(vec![
        Play::Accept,
        Play::Answer("HTTP/1.1 400 Bad Request\r\nContent-Length: 14\r\n\r\nno such format"),
    ]);
    let (code, json, told) = produce(&server, &lines(5000), &["--batch-bytes", "100"]);
    assert_eq!(code, Some(1));
    assert_eq!(server.requests().len(), 2, "it went on after a refusal");
    assert!(told.contains("body 2: refused with 400: no such format"), "{told}");
    let (sent, accepted) = (json["sent"].as_u64().unwrap(), json["accepted"].as_u64().unwrap());
    assert!(0 < accepted && accepted < sent, "{json}");
    assert!(told.contains(&format!("sent {sent}, accepted {accepted}")), "{told}");
}

#[test]
fn a_refusal_is_told_while_the_input_is_still_open() {
    let server = Server::start(vec![Play::Answer("HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n")]);
    let dir = temporary();
    let mut child = logweir(dir.path())
        .args(["produce", "--url", &server.url()])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    input.write_all(b"a line at a time\n").unwrap();
    // The input stays open: only the refusal can end it.
    let output = child.wait_with_output().unwrap();
    drop(input);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("LOGWEIR_TOKEN"), "{}", stderr(&output));
}

#[test]
fn rejected_records_are_not_success() {
    let counts = r#"{"accepted":1,"rejected":1,"parse_errors":0,"errors":[{"line":2,"error":"too long"}]}"#;
    let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{counts}", counts.len());
    let server = Server::start(vec![Play::Answer(answer.leak())]);
    let (code, json, _) = produce(&server, "one\ntwo\n", &[]);
    assert_eq!(code, Some(1));
    assert_eq!(json["errors"][0], "body 1, line 2: too long");
}

#[test]
fn a_server_that_is_away_is_69_after_the_given_time() {
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (code, json, told) = produce(&Server { address, requests: Arc::default() }, "one\n", &["--retry-for", "300ms"]);
    assert_eq!(code, Some(69), "{told}");
    assert_eq!((&json["accepted"], &json["maybe_doubled_bodies"]), (&0.into(), &0.into()));
}

#[test]
fn generated_load_has_the_asked_number_rate_and_compression() {
    let server = Server::start(vec![]);
    let started = Instant::now();
    let dir = temporary();
    let url = server.url();
    let flags = ["produce", "--json", "--url", &url, "--demo", "--records", "60", "--rate", "100", "--gzip"];
    let output = run(dir.path(), &flags);
    // The server counts compressed lines, so only what was sent is compared.
    let json: serde_json::Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(json["sent"], 60, "{}", stderr(&output));
    assert!(started.elapsed() >= Duration::from_millis(500), "sixty at a hundred a second take longer");
    let mut plain = String::new();
    for request in &server.requests() {
        assert_eq!(request.header("content-encoding").as_deref(), Some("gzip"));
        flate2::read::GzDecoder::new(&*request.body).read_to_string(&mut plain).unwrap();
    }
    assert_eq!(plain.lines().count(), 60);
    assert!(plain.lines().all(|line| serde_json::from_str::<serde_json::Value>(line).unwrap().is_object()));
}

#[test]
fn several_connections_send_everything_once() {
    let server = Server::start(vec![]);
    let (code, json, _) = produce(&server, &lines(2000), &["--connections", "4", "--batch-bytes", "500"]);
    assert_eq!(code, Some(0), "{json}");
    let bodies: Vec<u8> = server.requests().into_iter().flat_map(|request| request.body).collect();
    let text = String::from_utf8(bodies).unwrap();
    let mut sent: Vec<&str> = text.lines().collect();
    let expected = lines(2000);
    let mut expected: Vec<&str> = expected.lines().collect();
    sent.sort_unstable();
    expected.sort_unstable();
    assert_eq!(sent, expected);
}

#[test]
fn parse_shows_what_each_line_becomes() {
    let dir = temporary();
    let config =
        "[parse]\ntime_zone = 'Europe/Berlin'\n[formats.till]\npattern = '^till (?<n>\\d+): (?<message>.*)$'\n";
    std::fs::write(dir.path().join("logweir.toml"), config).unwrap();
    let shown = |arguments: &[&str], input: &str| {
        let mut child = logweir(dir.path())
            .arg("parse")
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0));
        let lines = stdout(&output);
        lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect::<Vec<serde_json::Value>>()
    };
    let lines = shown(&[], "2015-05-17 12:05:03,250 WARN a.B: hot\n\ntill 7: paid\n");
    let told = |line: &serde_json::Value| ["ts", "severity_text", "message", "format"].map(|name| line[name].clone());
    assert_eq!(told(&lines[0]), ["2015-05-17T10:05:03.25Z", "WARN", "hot", "application"]);
    assert_eq!((&lines[1]["message"], &lines[1]["parse_error"]), (&"".into(), &serde_json::Value::Null));
    assert_eq!((&lines[2]["message"], &lines[2]["attributes"]), (&"paid".into(), &serde_json::json!({"n": 7})));
    assert_eq!((lines.len(), &lines[2]["format"]), (3, &"till".into()));

    let fixed = shown(&["--format", "till"], "something else");
    assert_eq!(fixed[0]["message"], "something else");
    assert!(fixed[0]["parse_error"].as_str().unwrap().contains("formats.till.pattern"));

    let wrong = run(dir.path(), &["parse", "--format", "none"]);
    assert_eq!(wrong.status.code(), Some(64));
    assert!(stderr(&wrong).contains("syslog") && stderr(&wrong).contains("till"), "{}", stderr(&wrong));
}
