//! The live tail of the real program: acknowledged records arrive once and in order, across kills and resumptions, and
//! missed records are counted.

#![allow(clippy::unwrap_used)] // clippy allows unwrap in test functions, but not in their helpers

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use logweir_tests::client::Load;
use logweir_tests::scenario::{PATIENCE, SEGMENT_BYTES, Scenario, on_postgres, on_sqlite};
use logweir_tests::tail::Tail;

fn send(s: &mut Scenario, records: std::ops::Range<u32>) {
    let body: String = records.map(|n| format!("{{\"msg\":\"m{n}\",\"service\":\"shop\",\"n\":{n}}}\n")).collect();
    assert_eq!(s.server().post("/ingest", "application/x-ndjson", &body).unwrap().status, 200);
}

fn expected(records: std::ops::Range<u32>) -> Vec<String> {
    records.map(|n| format!("m{n}")).collect()
}

fn tail(s: &mut Scenario, token: Option<&str>) -> Tail {
    let addr = s.server().http;
    Tail::open(addr, "", token)
}

#[test]
fn acknowledged_records_arrive_once_in_order_and_with_their_ids() {
    let story = |s: &mut Scenario| {
        s.set("lanes", 1);
        s.start();
        send(s, 0..10);
        s.wait("the first rows", |s| s.store.count() == Ok(10));
        let mut tail = tail(s, None);
        for n in 1..20 {
            send(s, n * 10..(n + 1) * 10);
        }
        tail.until("190 records", |seen| seen.len() == 190);
        assert_eq!(tail.messages(), expected(10..200));
        s.wait("all rows", |s| s.store.count() == Ok(200));
        for event in [&tail.seen[0], &tail.seen[189]] {
            let (id, message) = (event.data["id"].as_str().unwrap(), event.data["message"].as_str().unwrap());
            assert_eq!(s.store.rows(&format!("SELECT message FROM logs WHERE id = {id}")).unwrap(), [[message]]);
            assert_eq!(event.data["attributes"]["n"], message[1..].parse::<u32>().unwrap());
            assert_eq!((&event.data["service"], &event.data["severity_text"]), (&"shop".into(), &"UNSPECIFIED".into()));
        }
    };
    on_sqlite("tail", story);
    on_postgres("tail", story);
}

#[test]
fn a_stream_interrupted_by_kills_resumes_without_gap_or_repetition() {
    on_sqlite("tail resumes", |s| {
        s.set("lanes", 3);
        // Each start begins a segment: all of them are retained.
        s.set("journal.retain_segments", 10);
        s.set("journal.quota_bytes", 1 << 30);
        s.start();
        let mut seen: Vec<String> = Vec::new();
        let mut token: Option<String> = None;
        let mut first = tail(s, None);
        let load = s.load(Load { clients: 3, keyed: true, ..Load::default() });
        for round in 0..5 {
            first.until("some records", |seen| seen.len() >= 100);
            assert_eq!(first.messages().len(), first.seen.len(), "no gap, and nothing dropped");
            // Stops in the middle of a frame: the token identifies a record, not a request.
            let cut = 50 + round * 7;
            first.seen.truncate(cut);
            seen.extend(first.messages());
            token = first.token().or(token);
            s.server().kill();
            s.start();
            first = tail(s, token.as_deref());
        }
        load.stop();
        let closing = s.stop();
        first.to_end();
        seen.extend(first.messages());
        assert_eq!(first.messages().len(), first.seen.len(), "no gap, and nothing dropped");
        let distinct: BTreeSet<&String> = seen.iter().collect();
        assert_eq!(distinct.len(), seen.len(), "no record arrives twice");
        assert_eq!(seen.len() as u64, closing.accepted, "every accepted record has arrived");
    });
}

#[test]
fn records_no_longer_in_the_journal_are_reported_as_a_gap() {
    on_sqlite("tail gap", |s| {
        s.set("lanes", 1);
        s.start();
        let mut first = tail(s, None);
        send(s, 0..10);
        first.until("ten records", |seen| seen.len() == 10);
        let (token, from_the_middle) = (first.token().unwrap(), first.seen[4].id.clone());
        // Enough for the first segment to be committed and removed.
        let sent_bytes = SEGMENT_BYTES * 5;
        let mut others = 0_u64;
        while others * (64 << 10) < sent_bytes {
            let line = format!("{}\n", "x".repeat(64 << 10));
            let body = line.repeat(64);
            assert_eq!(s.server().post("/ingest?format=plain", "text/plain", &body).unwrap().status, 200);
            others += 64;
        }
        s.wait("all rows", |s| s.store.count() == Ok(10 + others));
        send(s, 10..11);
        for (token, before) in [(token, 0), (from_the_middle.clone(), 5)] {
            let mut again = tail(s, Some(&token));
            again.until("the latest record", |seen| seen.last().is_some_and(|event| event.data["message"] == "m10"));
            let missing = again.sum("gap", "missing");
            assert!(missing > 0, "the first segment was not removed");
            assert_eq!(missing + again.messages().len() as u64, before + others + 1);
        }
        // The same on the command line.
        let url = format!("http://{}", s.server().http);
        let output = s.run(&["tail", "--url", &url, "--after", &from_the_middle, "--limit", "1"]);
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success() && stderr.contains("skipped"), "{output:?}");
        let mut foreign = tail(s, Some("0123456789abcdef.5.5"));
        send(s, 11..12);
        foreign.until("a gap and a record", |seen| seen.len() == 2);
        assert_eq!(foreign.seen[0].data["reason"], "other_journal");
        assert_eq!(foreign.messages(), expected(11..12));
    });
}

#[test]
fn a_client_that_does_not_read_delays_no_other_and_learns_what_it_missed() {
    on_sqlite("tail dropped", |s| {
        s.set("lanes", 1);
        s.set("tail.buffer_bytes", 65536);
        s.set("tail.records_per_s", 10_000_000);
        s.start();
        let mut slow = TcpStream::connect(s.server().http).unwrap();
        slow.write_all(b"GET /api/v1/tail HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
        let mut head = [0; 12];
        slow.read_exact(&mut head).unwrap();
        assert_eq!(&head, b"HTTP/1.1 200");
        // More than the socket buffers hold, so that the stream stalls while the ring moves on.
        let mut sent = 0_u64;
        for _ in 0..40 {
            send(s, 0..2000);
            sent += 2000;
        }
        slow.set_read_timeout(Some(PATIENCE)).unwrap();
        let (mut text, mut piece) = (String::new(), [0; 65536]);
        while !text.contains("event: dropped") || !text.ends_with("\r\n") || !adds_up(&text, sent) {
            let read = slow.read(&mut piece).expect("the rest of the stream");
            assert!(read > 0, "the stream ended early");
            text.push_str(&String::from_utf8_lossy(&piece[..read]));
        }
    });
}

/// Whether received and dropped records add up to `sent`.
fn adds_up(text: &str, sent: u64) -> bool {
    let records = text.matches("event: record").count() as u64;
    let totals = text.match_indices("\"total\":").filter_map(|(at, name)| {
        let number = text[at + name.len()..].split('}').next()?;
        number.parse::<u64>().ok()
    });
    records + totals.last().unwrap_or(0) == sent
}

#[test]
fn a_query_filters_the_stream_and_an_invalid_one_is_rejected_with_a_column() {
    on_sqlite("tail query", |s| {
        s.start();
        let addr = s.server().http;
        let mut some = Tail::open(addr, "query=service:shop%20n%3E%3D150%20m1*", None);
        let mut none = Tail::open(addr, "query=service:till", None);
        send(s, 0..200);
        some.until("fifty records", |seen| seen.len() == 50);
        let body = r#"{"msg":"the only one","service":"till"}"#;
        assert_eq!(s.server().post("/ingest", "application/json", body).unwrap().status, 200);
        none.until("one record", |seen| !seen.is_empty());
        assert_eq!((some.messages(), none.messages()), (expected(150..200), vec!["the only one".to_owned()]));
        let rejected = s.server().data("/api/v1/tail?query=a%20AND%20(b").unwrap();
        let body = rejected.json();
        assert_eq!((rejected.status, &body["error"], &body["column"]), (400, &"bad_query".into(), &7.into()), "{body}");
    });
}

#[test]
fn the_rate_is_limited_and_dropped_records_are_counted() {
    on_sqlite("tail rate", |s| {
        s.set("lanes", 1);
        s.set("tail.records_per_s", 10);
        s.start();
        let mut tail = tail(s, None);
        send(s, 0..500);
        tail.until("all records received or counted", |seen| {
            let records = seen.iter().filter(|event| event.name == "record").count() as u64;
            let dropped: u64 = seen.iter().filter_map(|event| event.data["dropped"].as_u64()).sum();
            records + dropped == 500
        });
        assert!(tail.messages().len() < 500 && tail.messages().starts_with(&expected(0..10)));
        assert_eq!(tail.seen.last().unwrap().data["total"], tail.sum("dropped", "dropped"));
    });
}

#[test]
fn it_requires_a_query_token_limits_clients_and_explains_errors() {
    on_sqlite("tail rejections", |s| {
        s.set("tail.clients_max", 1);
        s.start();
        let first = tail(s, None);
        let rejected = s.server().data("/api/v1/tail").unwrap();
        assert_eq!((rejected.status, &rejected.json()["error"]), (429, &"too_many_tails".into()));
        assert!(rejected.retry_after.is_some());
        drop(first);
        for (path, error) in [("?last_event_id=nonsense", "bad_last_event_id"), ("?quarry=a", "bad_parameter")] {
            let rejected = s.server().data(&format!("/api/v1/tail{path}")).unwrap();
            assert_eq!((rejected.status, &rejected.json()["error"]), (400, &error.into()));
        }
        s.set("auth.query_tokens", "a-secret-of-some-length");
        s.start();
        assert_eq!(s.server().data("/api/v1/tail").unwrap().status, 401);
    });
}

#[test]
fn memory_is_used_only_while_a_client_is_connected() {
    on_sqlite("tail idle", |s| {
        s.start();
        send(s, 0..100);
        assert_eq!(s.server().metric("logweir_tail_buffer_bytes", ""), 0.0);
        let mut tail = tail(s, None);
        send(s, 100..200);
        tail.until("a hundred records", |seen| seen.len() == 100);
        assert!(s.server().metric("logweir_tail_buffer_bytes", "") > 0.0);
        assert_eq!(s.server().metric("logweir_tail_clients", ""), 1.0);
    });
}
