//! `logweir query` and `logweir tail` against the real server, also one that is killed meanwhile; and dead letters over HTTP.

#![allow(clippy::unwrap_used)] // clippy knows test functions as tests, not the helpers between them

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::process::{Command, Output, Stdio};

use logweir_tests::process::{binary, command};
use logweir_tests::scenario::{Scenario, on_postgres, on_sqlite};
use logweir_tests::store::Store;
use serde_json::Value;

fn send(s: &mut Scenario, records: std::ops::Range<u32>) {
    let body: String =
        records.map(|n| format!("{{\"level\":\"warn\",\"msg\":\"m{n}\",\"service\":\"shop\"}}\n")).collect();
    assert_eq!(s.server().post("/ingest?ack=committed", "application/x-ndjson", &body).unwrap().status, 200);
}

fn url(s: &Scenario) -> String {
    format!("http://{}", s.settings["http.listen"])
}

fn query(s: &Scenario, arguments: &[&str]) -> Output {
    s.run(&[&["query", "--url", &url(s)], arguments].concat())
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn a_query_shows_the_newest_at_the_bottom_and_points_at_what_is_wrong() {
    let story = |s: &mut Scenario| {
        s.set("lanes", 1);
        s.start();
        for n in 0..30 {
            send(s, n..n + 1);
        }
        let output = query(s, &["service:shop", "--limit", "10"]);
        assert!(output.status.success(), "{output:?}");
        let shown = text(&output.stdout);
        let lines: Vec<&str> = shown.lines().collect();
        assert_eq!(lines.len(), 10);
        assert!(lines[9].ends_with(" WARN  shop  m29") && lines[0].ends_with("m20"), "{shown}");
        let forward = text(&query(s, &["m1*", "--forward", "--output", "ndjson"]).stdout);
        let first: Value = serde_json::from_str(forward.lines().next().unwrap()).unwrap();
        assert_eq!((forward.lines().count(), &first["message"]), (11, &"m1".into()));
        let csv = text(&query(s, &["m29", "--output", "csv"]).stdout);
        assert!(csv.starts_with("id,ts,") && csv.lines().count() == 2, "{csv}");
        let coloured = text(&query(s, &["m29", "--color", "always"]).stdout);
        assert!(coloured.contains("\x1b[33mWARN "), "{coloured}");
        let wrong = query(s, &["shop AND (m1"]);
        assert_eq!(wrong.status.code(), Some(64));
        assert!(text(&wrong.stderr).contains("\n  shop AND (m1\n           ^"), "{}", text(&wrong.stderr));
        s.kill_server();
        assert_eq!(query(s, &[]).status.code(), Some(69));
    };
    on_sqlite("cli query", story);
    on_postgres("cli query", story);
}

#[test]
fn a_tail_goes_on_through_a_kill_of_the_server() {
    on_sqlite("cli tail", |s| {
        s.set("lanes", 1);
        s.start();
        let arguments = ["tail", "--url", &url(s), "--records", "60", "service:shop"];
        let mut tail = command(&s.settings, "", &arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(tail.stdout.take().unwrap()).lines();
        let mut messages = Vec::new();
        s.wait("somebody listens", |s| tails(s) == 1.0);
        send(s, 0..20);
        messages.extend(lines.by_ref().take(20));
        s.server().kill();
        s.start();
        // Before the tail is back.
        send(s, 20..40);
        messages.extend(lines.by_ref().take(20));
        send(s, 40..60);
        messages.extend(lines.by_ref());
        let messages: Vec<String> =
            messages.into_iter().map(|line| line.unwrap().rsplit(' ').next().unwrap().to_owned()).collect();
        assert_eq!(messages, (0..60).map(|n| format!("m{n}")).collect::<Vec<_>>());
        let output = tail.wait_with_output().unwrap();
        assert!(output.status.success() && text(&output.stderr).contains("trying again"), "{output:?}");
    });
}

fn tails(s: &Scenario) -> f64 {
    let url = format!("http://{}/metrics", s.settings["admin.listen"]);
    let agent = logweir_tests::client::agent(logweir_tests::scenario::PATIENCE);
    let metrics = agent.get(&url).call().unwrap().body_mut().read_to_string().unwrap();
    let line = metrics.lines().find_map(|line| line.strip_prefix("logweir_tail_clients "));
    line.map_or(0.0, |value| value.parse().unwrap())
}

#[test]
fn top_shows_the_pipeline_and_says_when_there_is_none() {
    on_sqlite("cli top", |s| {
        s.start();
        send(s, 0..50);
        let output = s.run(&["top", "--url", &url(s), "--every", "100ms", "--once"]);
        assert!(output.status.success(), "{output:?}");
        let screen = text(&output.stdout);
        for part in
            ["logweir 0.1.0", "accepting", "SQLite", "accepted     50", "committed    50", "batcher-0", "db-flusher-0"]
        {
            assert!(screen.contains(part), "{part} is missing in\n{screen}");
        }
        // On a terminal, until somebody has seen enough.
        let top = format!("stty rows 40 cols 120; exec {} top --every 100ms --url {}", binary().display(), url(s));
        let mut terminal = Command::new("script")
            .args(["-qefc", &top, "/dev/null"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (mut keys, mut shown) = (terminal.stdin.take().unwrap(), terminal.stdout.take().unwrap());
        let (mut seen, mut piece) = (String::new(), [0; 4096]);
        while !seen.contains("db-flusher-0") {
            let read = shown.read(&mut piece).unwrap();
            assert!(read > 0, "it has ended: {seen}");
            seen.push_str(&String::from_utf8_lossy(&piece[..read]));
        }
        keys.write_all(b"q").unwrap();
        shown.read_to_string(&mut seen).unwrap();
        assert!(terminal.wait().unwrap().success(), "{seen}");
        s.kill_server();
        assert_eq!(s.run(&["top", "--url", &url(s)]).status.code(), Some(69));
    });
}

#[test]
fn dead_letters_are_listed_replayed_and_removed_over_http() {
    let story = |s: &mut Scenario| {
        s.start();
        send(s, 0..1);
        let (rule, lift) = match &s.store {
            Store::Postgres(_) => (
                "ALTER TABLE logs ADD CONSTRAINT polite CHECK (message NOT LIKE 'rude%')",
                "ALTER TABLE logs DROP CONSTRAINT polite",
            ),
            Store::Sqlite(_) => (
                "CREATE TRIGGER polite BEFORE INSERT ON logs WHEN new.message LIKE 'rude%' BEGIN SELECT RAISE(ABORT, 'polite'); END",
                "DROP TRIGGER polite",
            ),
        };
        change(s, rule);
        let body = "{\"msg\":\"rude one\"}\n{\"msg\":\"fine\"}\n{\"msg\":\"rude two\"}\n{\"msg\":\"rude three\"}\n";
        assert_eq!(s.server().post("/ingest?ack=committed", "application/x-ndjson", body).unwrap().status, 200);
        let letters = list(s, "?limit=2");
        assert_eq!((letters["dead_letters"].as_array().unwrap().len(), &letters["more"]), (2, &true.into()));
        let letters = list(s, "");
        let all = letters["dead_letters"].as_array().unwrap();
        assert_eq!((all.len(), &letters["more"]), (3, &false.into()));
        assert!(all.iter().all(|letter| letter["reason"].as_str().unwrap().contains("polite")), "{letters}");
        // One is mended, the others stay dead as long as the rule stands.
        let raw: Value = serde_json::from_str(all[0]["raw"].as_str().unwrap()).unwrap();
        let mended = raw.to_string().replace("rude", "kind");
        let path = format!("/api/v1/dead-letters/replay?id={}", all[0]["id"].as_str().unwrap());
        assert_eq!(post(s, &path, &mended), (200, r#"{"replayed":1,"failed":[],"more":false}"#.to_owned()));
        let (status, answer) = post(s, "/api/v1/dead-letters/replay?all=true", "");
        let answer: Value = serde_json::from_str(&answer).unwrap();
        assert_eq!((status, &answer["replayed"], answer["failed"].as_array().unwrap().len()), (200, &0.into(), 2));
        change(s, lift);
        let (_, answer) = post(s, &path.replace(all[0]["id"].as_str().unwrap(), all[1]["id"].as_str().unwrap()), "");
        assert!(answer.contains("\"replayed\":1"), "{answer}");
        for (path, status) in
            [("replay", 400), ("replay?id=x", 400), ("purge?older_than=7", 400), ("purge?older_than=1h", 200)]
        {
            assert_eq!(post(s, &format!("/api/v1/dead-letters/{path}"), "").0, status, "{path}");
        }
        assert_eq!(list(s, "")["dead_letters"].as_array().unwrap().len(), 1, "none is an hour old");
        assert_eq!(post(s, "/api/v1/dead-letters/purge?older_than=0s", ""), (200, r#"{"purged":1}"#.to_owned()));
        let rows = s.store.rows("SELECT message FROM logs WHERE message LIKE 'kind%' OR message LIKE 'rude%'").unwrap();
        assert_eq!(rows.len(), 2, "{rows:?}");
        let url = format!("{}/api/v1/dead-letters/purge?older_than=0s", url(s));
        let request = logweir_tests::client::agent(logweir_tests::scenario::PATIENCE).post(&url);
        assert_eq!(request.header("sec-fetch-site", "cross-site").send_empty().unwrap().status(), 403);
        s.set("auth.admin_tokens", "an-admin-of-some-length");
        s.set("auth.query_tokens", "a-query-of-some-length");
        s.start();
        assert_eq!(post(s, "/api/v1/dead-letters/purge?older_than=0s", "").0, 401);
    };
    on_sqlite("dead letters", story);
    on_postgres("dead letters", story);
}

fn change(s: &Scenario, sql: &str) {
    match &s.store {
        Store::Postgres(_) => s.postgres().execute(sql),
        Store::Sqlite(path) => rusqlite::Connection::open(path).unwrap().execute_batch(sql).unwrap(),
    }
}

fn list(s: &mut Scenario, parameters: &str) -> Value {
    s.server().data(&format!("/api/v1/dead-letters{parameters}")).unwrap().json()
}

fn post(s: &mut Scenario, path: &str, body: &str) -> (u16, String) {
    let answer = s.server().post(path, "application/json", body).unwrap();
    (answer.status, answer.body)
}
