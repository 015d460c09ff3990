//! `logweir query` and `logweir tail` against the real server, also one that is killed meanwhile; and dead letters over
//! HTTP.

#![allow(clippy::unwrap_used)] // clippy knows test functions as tests, not the helpers between them

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::process::{Command, Output, Stdio};

use logweir_tests::process::{binary, command};
use logweir_tests::scenario::{Scenario, on_postgres, on_sqlite};
use logweir_tests::store::Store;
use serde_json::{Value, json};

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
        let colored = text(&query(s, &["m29", "--color", "always"]).stdout);
        assert!(colored.contains("\x1b[33mWARN "), "{colored}");
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
        let arguments = ["tail", "--url", &url(s), "--limit", "60", "service:shop"];
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
        assert!(output.status.success() && text(&output.stderr).contains("reconnecting"), "{output:?}");
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
        let output = s.run(&["top", "--url", &url(s), "--interval", "100ms", "--once"]);
        assert!(output.status.success(), "{output:?}");
        let screen = text(&output.stdout);
        for part in
            ["logweir 0.1.0", "accepting", "SQLite", "accepted     50", "committed    50", "batcher-0", "db-flusher-0"]
        {
            assert!(screen.contains(part), "{part} is missing in\n{screen}");
        }
        // On a terminal, until somebody has seen enough.
        let top = format!("stty rows 40 cols 120; exec {} top --interval 100ms --url {}", binary().display(), url(s));
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
        // One is corrected; the others remain dead letters as long as the constraint exists.
        let corrected = all[0]["record"].to_string().replace("rude", "kind");
        let path = format!("/api/v1/dead-letters/replay?id={}", all[0]["id"].as_str().unwrap());
        assert_eq!(post(s, &path, &corrected), (200, r#"{"replayed":1,"failed":[],"more":false}"#.to_owned()));
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

#[test]
fn a_record_has_one_json_shape_at_every_command_and_endpoint() {
    on_sqlite("one shape", |s| {
        s.set("lanes", 1);
        s.start();
        s.wait("the schema exists", |s| s.store.count().is_ok());
        change(
            s,
            "CREATE TRIGGER polite BEFORE INSERT ON logs WHEN new.message LIKE 'rude%' BEGIN SELECT RAISE(ABORT, 'polite'); END",
        );
        let line = |msg: &str, attributes: &str| {
            format!(
                r#"{{"ts":"2026-11-29T10:15:00.25Z","level":"warn","service":"shop","host":"h","msg":"{msg}"{attributes}}}"#
            )
        };
        let (rich, bare, rude) =
            (line("rich", r#","n":1.50,"o":{"a":[1,null]}"#), line("bare", ""), line("rude", r#","n":2"#));
        let body = format!("{rich}\n{bare}\n{rude}\n");
        let expected = |message: &str, attributes: Value| {
            json!({ "ts": "2026-11-29T10:15:00.250000Z", "severity": 13, "severity_text": "WARN", "service": "shop", "host": "h",
                    "message": message, "attributes": attributes })
        };
        let expected = [
            expected("rich", json!({ "n": 1.50, "o.a": [1, null] })),
            expected("bare", json!({})),
            expected("rude", json!({ "n": 2 })),
        ];
        // Whatever is added, the members of a record come unchanged, and in one order.
        let check = |origin: &str, record: &Value| {
            let mut record = record.clone();
            let members = record.as_object_mut().expect(origin);
            for added in ["id", "lane", "seq", "row", "format", "parse_error"] {
                members.remove(added);
            }
            let known = expected.iter().find(|expected| expected["message"] == record["message"]);
            assert_eq!(Some(&record), known, "{origin}");
        };
        let check_all = |origin: &str, records: &[Value], count: usize| {
            assert_eq!(records.len(), count, "{origin}: {records:?}");
            records.iter().for_each(|record| check(origin, record));
        };
        let ndjson =
            |text: &str| -> Vec<Value> { text.lines().map(|line| serde_json::from_str(line).unwrap()).collect() };
        let array = |value: &Value| value.as_array().unwrap_or_else(|| panic!("{value}")).clone();

        let url = url(s);
        let tail = command(&s.settings, "", &["tail", "--url", &url, "-n", "3", "-o", "ndjson"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        s.wait("a tail", |s| tails(s) == 1.0);
        let debug = s.server().post("/ingest?debug=1", "application/x-ndjson", &body).unwrap();
        check_all("?debug=1", &array(&debug.json()["records"]), 3);
        assert_eq!(s.server().post("/ingest?ack=committed", "application/x-ndjson", &body).unwrap().status, 200);
        check_all("logweir tail", &ndjson(&text(&tail.wait_with_output().unwrap().stdout)), 3);

        let range = "start=2026-11-29T00:00:00Z&end=2026-11-30T00:00:00Z";
        let found = s.server().data(&format!("/api/v1/query?{range}")).unwrap().json();
        check_all("/api/v1/query", &array(&found["records"]), 2);
        let lines = s.server().data(&format!("/api/v1/query?{range}&format=ndjson")).unwrap().body;
        check_all("/api/v1/query?format=ndjson", &ndjson(&lines), 2);
        let id = found["records"][0]["id"].as_str().unwrap();
        let context = s.server().data(&format!("/api/v1/context?id={id}&ts=2026-11-29T10:15:00.25Z")).unwrap();
        check("/api/v1/context", &context.json()["record"]);
        let cli = |arguments: &[&str]| {
            let output = s.run(arguments);
            assert!(output.status.success(), "{output:?}");
            text(&output.stdout)
        };
        let query =
            ["query", "--url", &url, "--since", "2026-11-29T00:00:00Z", "--until", "2026-11-30T00:00:00Z", "-o"];
        check_all("query -o ndjson", &ndjson(&cli(&[&query[..], &["ndjson"]].concat())), 2);
        check_all("query -o json", &array(&serde_json::from_str(&cli(&[&query[..], &["json"]].concat())).unwrap()), 2);
        check_all("journal dump", &ndjson(&cli(&["journal", "dump"])), 3);
        let letters: Value = serde_json::from_str(&cli(&["dead-letters", "list", "-o", "json"])).unwrap();
        check("dead-letters list", &letters[0]["record"]);
        let listed = list(s, "");
        assert_eq!(listed["dead_letters"], letters, "the API and the command return the same");

        let mut parse =
            command(&s.settings, "", &["parse"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        parse.stdin.take().unwrap().write_all(body.as_bytes()).unwrap();
        check_all("logweir parse", &ndjson(&text(&parse.wait_with_output().unwrap().stdout)), 3);
    });
}

#[test]
fn a_query_that_follows_prints_what_is_there_and_then_what_arrives() {
    on_sqlite("query follow", |s| {
        s.set("lanes", 1);
        s.start();
        send(s, 0..20);
        let arguments = ["query", "-f", "-n", "5", "--url", &url(s), "service:shop"];
        let mut follow =
            command(&s.settings, "", &arguments).stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(follow.stdout.take().unwrap()).lines();
        let mut next = |count: usize| -> Vec<String> {
            lines.by_ref().take(count).map(|line| line.unwrap().rsplit(' ').next().unwrap().to_owned()).collect()
        };
        assert_eq!(next(5), ["m15", "m16", "m17", "m18", "m19"]);
        send(s, 20..22);
        assert_eq!(next(2), ["m20", "m21"]);
        follow.kill().unwrap();
        follow.wait().unwrap();
    });
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
    (answer.status, answer.body.trim_end().to_owned())
}
