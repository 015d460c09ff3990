//! The real binary, as an operator or a script uses it: exit codes, messages, and the files it touches.

#![allow(clippy::unwrap_used, reason = "clippy.toml allows it in test functions, these are their helpers")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// Limit of every wait: so long that no slow machine reaches it.
const LIMIT: Duration = Duration::from_secs(120);

/// Nobody listens there: the kernel gives this port to nobody who asks for any.
const UNREACHABLE: &str = "127.0.0.1:1";

/// `logweir` in a directory of its own, which is its home as well, without the variables that it reads.
fn logweir(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_logweir"));
    command.current_dir(dir).env("HOME", dir).env_remove("XDG_CONFIG_HOME").stdin(Stdio::null());
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
fn version_names_what_was_built() {
    let output = run(temporary().path(), &["--version"]);
    assert_eq!(output.status.code(), Some(0));
    let text = stdout(&output);
    assert_eq!(text, stdout(&run(temporary().path(), &["version"])));
    assert!(text.starts_with(&format!("logweir {} (", env!("CARGO_PKG_VERSION"))), "{text}");
    assert!(text.contains(std::env::consts::ARCH), "{text}");
}

#[test]
fn an_invalid_command_line_exits_with_64() {
    let dir = temporary();
    for arguments in [
        &["--no-such-flag"][..],
        &["no-such-command"],
        &["--set", "no equals sign"],
        &["query", "--output", "xml"],
        &["--demo", "validate"],
        &["validate", "--stdin"],
        &["health", "--role", "all"],
        &["tail", "--url", "http://h/?a=b"],
        &["run", "--rate", "5"],
        &["help", "no-such-topic"],
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
fn an_invalid_configuration_exits_with_78_reports_every_mistake_and_touches_nothing() {
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
            "invalid configuration, 5 errors:",
            "logweir.toml:2: invalid lanes 0: expected a whole number from 1 to 64",
            "logweir.toml:4: invalid http.listen \"0.0.0.0:8080\": reachable from other machines",
            "logweir.toml:6: unknown key `batch.linger`; did you mean `batch.linger_ms`?",
            "environment variable LOGWEIR__CACHE__TTL_S: invalid cache.ttl_s \"soon\": expected a time",
            "flag --database-url: invalid database.url \"sqlite:/no/where/x.db\": the directory /no/where does not exist",
        ] {
            assert!(text.contains(mistake), "{command:?} does not report {mistake:?}:\n{text}");
        }
        assert!(!dir.path().join("data").exists(), "{command:?} created the data_dir");
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
fn validate_prints_the_effective_configuration_with_its_sources_and_masks_secrets() {
    let dir = temporary();
    let output = logweir(dir.path())
        .args(["validate", "--print", "--set", "lanes=7", "--data-dir", "elsewhere"])
        .env("DATABASE_URL", "postgres://me:hunter2@db/logs")
        .output()
        .unwrap();
    let text = stdout(&output);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(!text.contains("hunter2"), "{text}");
    let line = |start: &str| text.lines().find(|line| line.starts_with(start)).unwrap_or_default().to_owned();
    assert!(line("lanes = 7").ends_with("# flag --set"), "{text}");
    assert!(line("data_dir = \"elsewhere\"").ends_with("# flag --data-dir"), "{text}");
    assert!(line("url = \"postgres://***@db/logs\"").ends_with("# environment variable DATABASE_URL"), "{text}");
    assert!(line("ack = \"journal\"").ends_with("# default"), "{text}");
    let reference = stdout(&run(dir.path(), &["validate", "--reference"]));
    assert!(reference.contains("| `batch.linger_ms` | `50` | a time (ms, s, m, h, d) from 0 to 1m |"), "{reference}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn a_reader_that_closes_the_pipe_is_not_an_error() {
    let dir = temporary();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let status = logweir(dir.path()).args(["validate", "--reference"]).stdout(writer).status().unwrap();
    assert_eq!(status.code(), Some(0));
}

#[test]
fn a_directory_without_a_journal_exits_with_66_and_stays_empty() {
    let dir = temporary();
    std::fs::create_dir_all(dir.path().join("empty/journal")).unwrap();
    for command in
        [&["journal", "check"][..], &["journal", "dump"], &["journal", "repair"], &["journal", "drain"], &["verify"]]
    {
        for where_it_is in [&["--dir", "missing"][..], &["--dir", "empty"], &["--set", "data_dir=empty"], &[]] {
            let output = run(dir.path(), &[command, where_it_is].concat());
            assert_eq!(output.status.code(), Some(66), "{command:?}");
            let named = where_it_is.last().map_or("logweir-data", |last| last.trim_start_matches("data_dir="));
            let error = stderr(&output);
            assert!(error.starts_with("logweir: no journal in ") && error.contains(named), "{command:?}: {error}");
        }
    }
    assert_eq!(std::fs::read_dir(dir.path().join("empty/journal")).unwrap().count(), 0);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}

/// A request that the server below received.
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

/// Reaction of the server to its n-th request.
enum Play {
    Answer(&'static str),
    /// Accepts as many records as the body has lines.
    Accept,
    /// Reads the request and closes the connection.
    Cut,
}

/// A minimal server: it reacts with `plays` in order, then accepts everything.
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
        format!("http://{}", self.address)
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
        request.body = vec![0; request.header("content-length").map_or(Ok(0), |length| length.parse()).ok()?];
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

/// `logweir produce -o json` with `input` on standard input: exit code, summary, standard error.
fn produce(server: &Server, input: &str, arguments: &[&str]) -> (Option<i32>, serde_json::Value, String) {
    let dir = temporary();
    let mut child = logweir(dir.path())
        .args(["produce", "-o", "json", "--url", &server.url()])
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // It may end before it has read everything.
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
fn busy_and_unavailable_are_retried_after_the_time_that_the_server_specifies() {
    let server = Server::start(vec![
        Play::Answer("HTTP/1.1 429 Too Many Requests\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n"),
        Play::Answer("HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"),
    ]);
    let (code, json, error) = produce(&server, "one\ntwo\n", &[]);
    assert_eq!(code, Some(0), "{json}");
    assert_eq!((&json["accepted"], &json["retried"]), (&2.into(), &2.into()));
    assert_eq!(json["possible_duplicate_bodies"], 0);
    assert!(error.contains("429"), "{error}");
    let requests = server.requests();
    assert!(requests[1].at - requests[0].at >= Duration::from_secs(1), "Retry-After was ignored");
    let keys: Vec<_> = requests.iter().map(|request| request.header("idempotency-key")).collect();
    assert!(keys[0].is_some() && keys[0] == keys[1] && keys[1] == keys[2]);
}

#[test]
fn a_server_may_request_a_retry_at_any_time() {
    let answer = "HTTP/1.1 503 Service Unavailable\r\nRetry-After: 18446744073709551615\r\nContent-Length: 0\r\n\r\n";
    let (code, json, error) = produce(&Server::start(vec![Play::Answer(answer)]), "one\n", &[]);
    assert_eq!(code, Some(69), "{error}");
    assert!(error.contains("gave up after 60 s (--retry-for): 503"), "{error}");
    assert_eq!((&json["sent"], &json["accepted"], &json["retried"]), (&1.into(), &0.into(), &0.into()));
}

#[test]
fn a_lost_response_is_retried_and_counted_as_a_possible_duplicate() {
    let server = Server::start(vec![Play::Cut]);
    let (code, json, _) = produce(&server, "one\n", &[]);
    assert_eq!(code, Some(0), "{json}");
    assert_eq!((&json["accepted"], &json["retried"]), (&1.into(), &1.into()));
    assert_eq!(json["possible_duplicate_bodies"], 1);
    assert_eq!(server.requests().len(), 2);
}

#[test]
fn an_error_that_no_retry_fixes_stops_with_the_count() {
    let server = Server::start(vec![
        Play::Accept,
        Play::Answer("HTTP/1.1 400 Bad Request\r\nContent-Length: 14\r\n\r\nno such format"),
    ]);
    let (code, json, error) = produce(&server, &lines(5000), &["--batch-bytes", "100"]);
    assert_eq!(code, Some(1));
    assert_eq!(server.requests().len(), 2, "it continued after a rejection");
    assert!(error.contains("body 2: rejected with 400: no such format"), "{error}");
    let (sent, accepted) = (json["sent"].as_u64().unwrap(), json["accepted"].as_u64().unwrap());
    assert!(0 < accepted && accepted < sent, "{json}");
    assert!(error.contains(&format!("sent {sent}, accepted {accepted}")), "{error}");
}

#[test]
fn a_rejection_is_reported_while_the_input_is_still_open() {
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
    // The input stays open: only the rejection can end the command.
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
fn an_unreachable_server_exits_with_69_after_the_given_time() {
    let address = UNREACHABLE.parse().unwrap();
    let (code, json, error) =
        produce(&Server { address, requests: Arc::default() }, "one\n", &["--retry-for", "300ms"]);
    assert_eq!(code, Some(69), "{error}");
    assert_eq!((&json["accepted"], &json["possible_duplicate_bodies"]), (&0.into(), &0.into()));
}

#[test]
fn generated_load_has_the_given_number_rate_and_compression() {
    let server = Server::start(vec![]);
    let started = Instant::now();
    let dir = temporary();
    let url = server.url();
    let flags = ["produce", "-o", "json", "--url", &url, "--demo", "-n", "60", "--rate", "100", "--compress", "gzip"];
    let output = run(dir.path(), &flags);
    // The server counts compressed lines, so only the number sent is compared.
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
fn parse_shows_the_record_of_each_line() {
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
    let summary =
        |line: &serde_json::Value| ["ts", "severity_text", "message", "format"].map(|name| line[name].clone());
    assert_eq!(summary(&lines[0]), ["2015-05-17T10:05:03.250000Z", "WARN", "hot", "application"]);
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

#[test]
fn the_server_is_found_by_option_environment_and_configuration() {
    let server = Server::start(vec![]);
    let dir = temporary();
    let queried = |command: &mut Command| {
        let output = command.output().unwrap();
        let last = server.requests().pop();
        assert!(last.is_some(), "{}", stderr(&output));
        server.requests.lock().unwrap().clear();
        last.unwrap()
    };
    let address = server.address.to_string();
    let with_path = format!("{}/ingest", server.url());
    for url in [&*address, &*server.url(), &*with_path] {
        queried(logweir(dir.path()).args(["query", "--url", url]));
    }
    queried(logweir(dir.path()).arg("query").env("LOGWEIR_URL", &address));
    queried(logweir(dir.path()).arg("query").env("LOGWEIR__HTTP__LISTEN", &address));
    std::fs::create_dir_all(dir.path().join(".config/logweir")).unwrap();
    let toml = format!("[http]\nlisten = '{address}'\n[auth]\nquery_tokens = ['reader=0123456789abcdef0']\n");
    std::fs::write(dir.path().join(".config/logweir/logweir.toml"), toml).unwrap();
    let by_file = queried(logweir(dir.path()).arg("query"));
    assert_eq!(by_file.header("authorization").as_deref(), Some("Bearer 0123456789abcdef0"));
    let other = queried(logweir(dir.path()).args(["query", "--url", &address]));
    assert_eq!(other.header("authorization"), None, "a configured token is for the configured server only");
    queried(
        logweir(dir.path()).args(["-c", ".config/logweir/logweir.toml", "query"]).env("XDG_CONFIG_HOME", "/nowhere"),
    );

    // An absolute $XDG_CONFIG_HOME replaces ~/.config, a relative one is ignored.
    queried(logweir(dir.path()).arg("query").env("XDG_CONFIG_HOME", "relative"));
    let xdg = dir.path().join("xdg");
    std::fs::create_dir_all(xdg.join("logweir")).unwrap();
    let toml = format!("[http]\nlisten = '{address}'\n[auth]\nquery_tokens = ['fedcba9876543210']\n");
    std::fs::write(xdg.join("logweir/logweir.toml"), toml).unwrap();
    let by_xdg = queried(logweir(dir.path()).arg("query").env("XDG_CONFIG_HOME", &xdg));
    assert_eq!(by_xdg.header("authorization").as_deref(), Some("Bearer fedcba9876543210"));

    // A server on this machine is reached directly: a proxy would see the token.
    let proxy = Server::start(vec![]);
    for command in [
        logweir(dir.path()).args(["query", "--url", &address]).env("http_proxy", proxy.url()),
        logweir(dir.path()).arg("query").env("ALL_PROXY", proxy.url()),
        logweir(dir.path()).arg("produce").env("HTTP_PROXY", proxy.url()).args([
            "--url",
            &address,
            "xdg/logweir/logweir.toml",
        ]),
    ] {
        queried(command);
    }
    assert_eq!(proxy.requests().len(), 0);
    let password = run(dir.path(), &["query", "--url", "http://me:hunter2@127.0.0.1:1"]);
    assert_eq!(password.status.code(), Some(64));
    let error = stderr(&password);
    assert!(error.contains("--token-file") && !error.contains("hunter2"), "{error}");

    std::fs::write(dir.path().join("token"), "t0ken\n").unwrap();
    for command in [
        logweir(dir.path()).args(["query", "--token-file", "token"]),
        logweir(dir.path()).arg("query").env("LOGWEIR_TOKEN", "t0ken"),
        logweir(dir.path()).arg("query").env("LOGWEIR_TOKEN_FILE", "token"),
        logweir(dir.path()).args(["produce", "--token-file", "token", "token"]),
    ] {
        assert_eq!(queried(command).header("authorization").as_deref(), Some("Bearer t0ken"));
    }
    let missing = run(dir.path(), &["query", "--token-file", "missing"]);
    assert_eq!(missing.status.code(), Some(66), "{}", stderr(&missing));
    assert!(stderr(&missing).contains("--token-file missing: "), "{}", stderr(&missing));
    std::fs::write(dir.path().join("logweir.toml"), "lanes = 0").unwrap();
    let invalid = run(dir.path(), &["query"]);
    assert_eq!(invalid.status.code(), Some(78));
    assert!(stderr(&invalid).contains("--url"), "{}", stderr(&invalid));
}

#[test]
fn a_query_needs_no_quotes_and_an_age_no_sign() {
    let server = Server::start(vec![]);
    let dir = temporary();
    let url = server.url();
    run(
        dir.path(),
        &["query", "-u", &url, "service:a", "card declined", "-n", "5", "--since", "15m", "--until", "now"],
    );
    let line = server.requests().remove(0).line;
    for part in ["query=service%3Aa%20%22card%20declined%22", "limit=5", "start=-15m", "end=now"] {
        assert!(line.contains(part), "{part} in {line}");
    }
}

#[test]
fn a_tail_whose_server_never_responded_gives_up() {
    let output = run(temporary().path(), &["tail", "--url", UNREACHABLE, "-n", "1", "--retries", "2"]);
    assert_eq!(output.status.code(), Some(69));
    let error = stderr(&output);
    assert!(error.contains("gave up after 3 attempts") && error.matches("reconnecting").count() == 2, "{error}");
    let quiet = run(temporary().path(), &["tail", "--url", UNREACHABLE, "-q", "--retries", "0"]);
    assert_eq!(stderr(&quiet).lines().count(), 1, "{}", stderr(&quiet));
}

#[test]
fn an_error_response_names_the_requested_url() {
    let server = Server::start(vec![Play::Answer("HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\nnope")]);
    let url = format!("{}/elsewhere", server.url());
    let output = run(temporary().path(), &["query", "--url", &url]);
    assert_eq!(output.status.code(), Some(1));
    let expected = format!("{url}/api/v1/query responded with 404: nope");
    assert!(stderr(&output).contains(&expected), "{}", stderr(&output));
}

#[test]
fn options_are_accepted_before_the_command() {
    let dir = temporary();
    let output = run(dir.path(), &["--data-dir", "x", "--set", "lanes=5", "validate", "--print", "--set", "lanes=6"]);
    let text = stdout(&output);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(text.contains("data_dir = \"x\"") && text.contains("lanes = 6"), "{text}");
    let usage = run(dir.path(), &["--demo", "validate"]);
    assert!(stderr(&usage).contains("--demo is an option of `logweir run` only"), "{}", stderr(&usage));
}

#[test]
fn health_prints_one_line_and_quiet_prints_nothing() {
    let (server, dir) = (Server::start(vec![]), temporary());
    let url = server.url();
    let output = run(dir.path(), &["health", "--url", &url, "--ready"]);
    assert_eq!((output.status.code(), stdout(&output)), (Some(0), format!("{url} - ready\n")));
    assert_eq!(server.requests()[0].line, "GET /readyz HTTP/1.1");
    let quiet = run(dir.path(), &["health", "-q", "--url", &url]);
    assert_eq!((quiet.status.code(), quiet.stdout.len()), (Some(0), 0));
    let json: serde_json::Value =
        serde_json::from_slice(&run(dir.path(), &["health", "-o", "json", "--url", &url]).stdout).unwrap();
    assert_eq!(json, serde_json::json!({"url": format!("{url}/livez"), "healthy": true}));
    let down = run(dir.path(), &["health", "--set", "admin.listen=127.0.0.1:1"]);
    assert_eq!(down.status.code(), Some(1));
    assert!(stderr(&down).starts_with("logweir: http://127.0.0.1:1/livez: "), "{}", stderr(&down));
}

#[test]
fn help_lists_commands_topics_and_exit_codes() {
    let dir = temporary();
    let help = stdout(&run(dir.path(), &["help"]));
    assert_eq!(help, stdout(&run(dir.path(), &["--help"])));
    let at = |part: &str| help.find(part).unwrap_or_else(|| panic!("{part} in {help}"));
    assert!(at("\n  dead-letters ") < at("\n  query-language ") && at("\n  query-language ") < at("Exit codes:"));
    for code in [0, 1, 64, 66, 69, 70, 74, 75, 78] {
        at(&format!("\n  {code:>2}  "));
    }
    let command = stdout(&run(dir.path(), &["help", "journal", "check"]));
    assert_eq!(command, stdout(&run(dir.path(), &["journal", "check", "--help"])));
    let topic = stdout(&run(dir.path(), &["help", "query-language"]));
    assert_eq!(topic, include_str!("../docs/query-language.md"));
}

#[test]
fn completions_and_manual_pages_are_generated() {
    let dir = temporary();
    let script = stdout(&run(dir.path(), &["completions", "bash"]));
    std::fs::write(dir.path().join("logweir.bash"), &script).unwrap();
    assert!(Command::new("bash").args(["-n", "logweir.bash"]).current_dir(dir.path()).status().unwrap().success());
    let completes = "source logweir.bash; COMP_WORDS=(logweir journal ch); COMP_CWORD=2; _logweir logweir ch journal; echo ${COMPREPLY[@]}";
    let completed = Command::new("bash").args(["-c", completes]).current_dir(dir.path()).output().unwrap();
    assert_eq!(stdout(&completed), "check\n", "{}", stderr(&completed));
    for shell in ["zsh", "fish", "elvish", "powershell"] {
        assert!(stdout(&run(dir.path(), &["completions", shell])).contains("dead-letters"), "{shell}");
    }
    assert!(stdout(&run(dir.path(), &["man"])).contains(".TH logweir 1"));
    assert!(stdout(&run(dir.path(), &["man", "journal", "check"])).contains(".TH logweir-journal-check 1"));
    assert_eq!(run(dir.path(), &["man", "--output-dir", "man1"]).status.code(), Some(0));
    for page in ["logweir.1", "logweir-query.1", "logweir-journal-check.1"] {
        assert!(dir.path().join("man1").join(page).is_file(), "{page}");
    }
    for page in std::fs::read_dir(dir.path().join("man1")).unwrap() {
        let page = page.unwrap().path();
        assert!(std::fs::read(&page).unwrap().is_ascii(), "groff reads ASCII by default: {}", page.display());
    }
}

#[test]
fn a_full_disk_under_standard_output_exits_with_74() {
    let dir = temporary();
    for arguments in [
        &["--version"][..],
        &["version"],
        &["--help"],
        &["help", "alerts"],
        &["query", "--help"],
        &["completions", "bash"],
        &["man"],
        &["validate", "--reference"],
    ] {
        let full = std::fs::File::create("/dev/full").unwrap();
        let output = logweir(dir.path()).args(arguments).stdout(full).output().unwrap();
        assert_eq!(output.status.code(), Some(74), "{arguments:?}");
        assert!(stderr(&output).starts_with("logweir: cannot write to standard output: "), "{}", stderr(&output));
    }
}

/// Waits until the process handles signals itself: before that, one would end it without a summary.
fn wait_for_signal_handlers(pid: u32) {
    let deadline = Instant::now() + LIMIT;
    let handled = || {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap().trim().to_owned();
        let both = 1 << (2 - 1) | 1 << (15 - 1); // SIGINT and SIGTERM
        u64::from_str_radix(&mask, 16).unwrap() & both == both
    };
    while !handled() {
        assert!(Instant::now() < deadline, "produce never handled SIGINT and SIGTERM");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Exit code, standard output and standard error of `logweir produce` with `arguments`, after `pause` and `signal`.
fn interrupted(signal: &str, arguments: &[&str], pause: Duration) -> (Option<i32>, String, String) {
    let dir = temporary();
    let mut child = logweir(dir.path())
        .arg("produce")
        .args(arguments)
        .stdin(Stdio::piped()) // open until the end of this function
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let input = child.stdin.take();
    wait_for_signal_handlers(child.id());
    thread::sleep(pause); // so that it waits for something
    let started = Instant::now();
    let kill = Command::new("kill").args([&format!("-{signal}"), &child.id().to_string()]).status().unwrap();
    assert!(kill.success());
    while child.try_wait().unwrap().is_none() {
        if started.elapsed() > LIMIT {
            child.kill().unwrap();
            panic!("{arguments:?} is still running {LIMIT:?} after SIG{signal}");
        }
        thread::sleep(Duration::from_millis(5));
    }
    drop(input);
    let output = child.wait_with_output().unwrap();
    (output.status.code(), stdout(&output), stderr(&output))
}

#[test]
fn produce_ends_on_the_first_signal_with_its_summary_whatever_it_waits_for() {
    let server = Server::start(vec![]);
    let url = server.url();
    let hung = TcpListener::bind("127.0.0.1:0").unwrap(); // accepts connections and never responds
    let hung_url = hung.local_addr().unwrap().to_string();
    let dir = temporary();
    let file = dir.path().join("file.log");
    std::fs::write(&file, lines(100_000)).unwrap();
    let file = file.to_str().unwrap();
    for (arguments, code) in [
        (&["--url", &*url, "--demo", "--rate", "1000"][..], 0),
        (&["--url", &url, "--demo", "--rate", "10"], 0),
        (&["--url", &url, "--demo", "--rate", "1000", "--connections", "4"], 0),
        (&["--url", &url, "--demo"], 0),
        (&["--url", &url, "--rate", "100", file], 1),
        (&["--url", &url], 1),
        (&["--url", &url, "--format", "json"], 1),
        (&["--url", UNREACHABLE, "--demo", "--rate", "1000"], 1),
        (&["--url", &hung_url, "--demo", "--rate", "1000"], 1),
    ] {
        for signal in ["INT", "TERM"] {
            // What it waits for never comes, or only after an hour.
            let arguments = [arguments, &["--retry-for", "1h"]].concat();
            let mut pause = Duration::from_millis(300);
            let (mut exit, mut out, mut err) = interrupted(signal, &arguments, pause);
            // On a slow machine it may not have begun.
            while exit != Some(code) && out.starts_with("sent 0 ") && pause < LIMIT / 8 {
                pause *= 2;
                (exit, out, err) = interrupted(signal, &arguments, pause);
            }
            assert!(out.starts_with("sent "), "{arguments:?} printed no summary: {out:?}");
            // On a slow machine a request can need more time than it has after the signal.
            let in_flight = code == 0 && exit == Some(1) && out.contains("not answered before the end");
            assert!(exit == Some(code) || in_flight, "{arguments:?}: {exit:?}: {out}{err}");
        }
    }
}

#[test]
fn a_second_signal_ends_produce_at_once_also_where_a_shell_ignored_the_first() {
    let hung = TcpListener::bind("127.0.0.1:0").unwrap(); // accepts connections and never responds
    let dir = temporary();
    let url = hung.local_addr().unwrap().to_string();
    // As a shell does for a command in the background.
    let mut shell = Command::new("sh");
    shell.args(["-c", "trap '' INT; exec \"$0\" produce --demo --url \"$1\"", env!("CARGO_BIN_EXE_logweir"), &url]);
    shell.current_dir(dir.path()).stdin(Stdio::null());
    let mut child = shell.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    wait_for_signal_handlers(child.id());
    // Stopped meanwhile, so that it takes the second within its grace period, whatever the machine's speed.
    for signal in [Signal::STOP, Signal::INT, Signal::TERM, Signal::CONT] {
        kill_process(Pid::from_child(&child), signal).unwrap();
    }
    let ended_by = child.wait().unwrap().signal();
    assert!(ended_by.is_some(), "it ended by itself after the first signal, with its summary");
}

#[test]
fn produce_passes_any_format_on_and_compresses_as_requested() {
    let server = Server::start(vec![]);
    let dir = temporary();
    std::fs::write(dir.path().join("file"), "one\ntwo\n").unwrap();
    for (method, encoding) in [
        ("none", None),
        ("gzip", Some("gzip")),
        ("zstd", Some("zstd")),
        ("deflate", Some("deflate")),
        ("snappy", Some("snappy")),
    ] {
        let before = server.requests().len();
        let flags = ["produce", "--url", &server.url(), "--format", "till", "--compress", method, "file"];
        run(dir.path(), &flags);
        let request = server.requests()[before].clone();
        assert_eq!(request.line, "POST /ingest?format=till HTTP/1.1");
        assert_eq!(request.header("content-encoding").as_deref(), encoding);
    }
    let help = stdout(&run(dir.path(), &["produce", "--help"]));
    for format in ["syslog", "logfmt", "glog"] {
        assert!(help.contains(format), "{help}");
    }
}

#[test]
fn without_input_produce_prints_no_percentiles() {
    let server = Server::start(vec![]);
    let output = run(temporary().path(), &["produce", "--url", &server.url()]);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(stdout(&output), "sent 0 records: 0 accepted, 0 rejected, 0 stored as plain text\n");
}

#[test]
fn an_unknown_log_level_is_rejected_with_a_suggestion() {
    let dir = temporary();
    let expected = "expected error, warn, info, debug, trace or a filter such as info,logweir=debug";
    for (level, hint) in [
        ("verbose", "did you mean debug?"),
        ("infoo", "did you mean info?"),
        ("info,logwier=debug", "did you mean logweir?"),
    ] {
        for command in ["validate", "run"] {
            let output = run(dir.path(), &[command, "--set", &format!("log.level={level}")]);
            let text = stderr(&output);
            assert_eq!(output.status.code(), Some(78), "{text}");
            assert!(text.contains(&format!("invalid log.level \"{level}\": {expected}; {hint}")), "{text}");
        }
    }
    for level in ["off", "warn,logweir=off", "trace"] {
        assert_eq!(run(dir.path(), &["validate", "--set", &format!("log.level={level}")]).status.code(), Some(0));
    }
}

#[test]
fn a_fatal_error_is_printed_whatever_the_log_filter_and_format() {
    let dir = temporary();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = format!("http.listen={}", taken.local_addr().unwrap());
    for log in
        [&["--set", "log.level=off"][..], &["--set", "log.level=warn,logweir=off"], &["--set", "log.format=json"], &[]]
    {
        let output = run(dir.path(), &[&["run", "--set", &listen][..], log].concat());
        assert_eq!(output.status.code(), Some(69));
        let text = stderr(&output);
        assert!(text.lines().any(|line| line.starts_with("logweir: cannot listen on 127.0.0.1:")), "{log:?}: {text:?}");
    }
}

/// Standard error of a server that starts with `variables`, reads the end of its standard input and stops.
fn server_log(dir: &Path, arguments: &[&str], variables: &[(&str, &str)]) -> String {
    let ports = ["--set", "http.listen=127.0.0.1:0", "--set", "admin.listen=127.0.0.1:0", "--stdin"];
    let mut command = logweir(dir);
    command.arg("run").args(ports).args(arguments).env_remove("NO_COLOR").env_remove("CLICOLOR_FORCE");
    let output = command.envs(variables.iter().copied()).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    stderr(&output)
}

#[test]
fn log_lines_are_colored_as_the_environment_asks() {
    let dir = temporary();
    let colored = |variables: &[_]| server_log(dir.path(), &[], variables).contains('\x1b');
    assert!(!colored(&[]), "standard error is not a terminal");
    assert!(colored(&[("CLICOLOR_FORCE", "1")]));
    assert!(!colored(&[("CLICOLOR_FORCE", "1"), ("NO_COLOR", "1")]));
}

#[test]
fn the_first_start_creates_the_journal_and_names_the_web_ui_first() {
    let dir = temporary();
    let first = server_log(dir.path(), &[], &[]);
    assert!(first.contains("journal created") && !first.contains("clean"), "{first}");
    let banner: Vec<&str> = first.lines().filter(|line| line.starts_with("  ")).collect();
    let names: Vec<&str> = banner.iter().filter_map(|line| line.split_whitespace().next()).collect();
    assert_eq!(names, ["web", "metrics", "status", "send", "query"], "{first}");
    assert!(first.lines().all(|line| line.len() < 250), "{first}");
    let second = server_log(dir.path(), &[], &[]);
    assert!(second.contains("journal opened") && !second.contains("created"), "{second}");
}

#[test]
fn a_misspelled_variable_fails_the_validation() {
    let dir = temporary();
    let output = logweir(dir.path()).arg("validate").env("LOGWEIR_HTTP__LISTEN", "127.0.0.1:1").output().unwrap();
    assert_eq!(output.status.code(), Some(78));
    assert!(stderr(&output).contains("LOGWEIR_HTTP__LISTEN: unknown variable; did you mean LOGWEIR__HTTP__LISTEN?"));
    let service_link = [("LOGWEIR_PORT", "tcp://10.0.0.1:80"), ("LOGWEIR_SERVICE_HOST", "10.0.0.1")];
    let output = logweir(dir.path()).arg("validate").envs(service_link).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
}
