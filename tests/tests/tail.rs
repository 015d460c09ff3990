//! The live tail through the real program: what is acknowledged comes once and in order, through kills and resumes, and
//! what does not come is counted.

#![allow(clippy::unwrap_used)] // clippy knows test functions as tests, not the helpers between them

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
fn what_is_acknowledged_comes_once_in_order_and_with_its_id() {
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
fn a_stream_that_is_cut_by_kills_goes_on_without_gap_or_repetition() {
    on_sqlite("tail resumes", |s| {
        s.set("lanes", 3);
        // Each start begins a segment: those of all of them are kept.
        s.set("journal.retain_segments", 10);
        s.set("journal.quota_bytes", 1 << 30);
        s.start();
        let mut seen: Vec<String> = Vec::new();
        let mut token: Option<String> = None;
        let mut first = tail(s, None);
        let load = s.load(Load { clients: 3, keyed: true, ..Load::default() });
        for round in 0..5 {
            first.until("some records", |seen| seen.len() >= 100);
            assert_eq!(first.messages().len(), first.seen.len(), "a gap, or something dropped");
            // Records of the middle of a frame: the token stands for a record, not for a request.
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
        assert_eq!(first.messages().len(), first.seen.len(), "a gap, or something dropped");
        let distinct: BTreeSet<&String> = seen.iter().collect();
        assert_eq!(distinct.len(), seen.len(), "nothing comes twice");
        assert_eq!(seen.len() as u64, closing.accepted, "everything that was accepted has come");
    });
}

#[test]
fn what_a_token_stands_for_and_is_here_no_more_is_told_as_a_gap() {
    on_sqlite("tail gap", |s| {
        s.set("lanes", 1);
        s.start();
        let mut first = tail(s, None);
        send(s, 0..10);
        first.until("ten records", |seen| seen.len() == 10);
        let (token, from_the_middle) = (first.token().unwrap(), first.seen[4].id.clone());
        // Enough for the first segment to be settled and to go.
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
            again.until("the newest record", |seen| seen.last().is_some_and(|event| event.data["message"] == "m10"));
            let missing = again.sum("gap", "missing");
            assert!(missing > 0, "the first segment is still there");
            assert_eq!(missing + again.messages().len() as u64, before + others + 1);
        }
        // And on the command line.
        let url = format!("http://{}", s.server().http);
        let told = s.run(&["tail", "--url", &url, "--after", &from_the_middle, "--records", "1"]);
        let said = String::from_utf8_lossy(&told.stderr).into_owned();
        assert!(told.status.success() && said.contains("records are missing"), "{told:?}");
        let mut elsewhere = tail(s, Some("0123456789abcdef.5.5"));
        send(s, 11..12);
        elsewhere.until("a gap and a record", |seen| seen.len() == 2);
        assert_eq!(elsewhere.seen[0].data["reason"], "other_journal");
        assert_eq!(elsewhere.messages(), expected(11..12));
    });
}

#[test]
fn a_client_that_does_not_read_delays_nobody_and_is_told_what_it_missed() {
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
        // More than sockets hold, so that it stands still until somebody reads, and the ring goes on.
        let mut sent = 0_u64;
        for _ in 0..40 {
            send(s, 0..2000);
            sent += 2000;
        }
        slow.set_read_timeout(Some(PATIENCE)).unwrap();
        let (mut text, mut piece) = (String::new(), [0; 65536]);
        while !text.contains("event: dropped") || !text.ends_with("\r\n") || !told(&text, sent) {
            let read = slow.read(&mut piece).expect("the slow client is told everything");
            assert!(read > 0, "the stream has ended");
            text.push_str(&String::from_utf8_lossy(&piece[..read]));
        }
    });
}

/// Whether records and what was dropped add up.
fn told(text: &str, sent: u64) -> bool {
    let records = text.matches("event: record").count() as u64;
    let totals = text.match_indices("\"total\":").filter_map(|(at, name)| {
        let number = text[at + name.len()..].split('}').next()?;
        number.parse::<u64>().ok()
    });
    records + totals.last().unwrap_or(0) == sent
}

#[test]
fn a_query_says_what_comes_and_a_bad_one_where_it_is_bad() {
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
        let refused = s.server().data("/api/v1/tail?query=a%20AND%20(b").unwrap();
        let body = refused.json();
        assert_eq!((refused.status, &body["error"], &body["column"]), (400, &"bad_query".into(), &7.into()), "{body}");
    });
}

#[test]
fn a_rate_limits_what_comes_and_the_rest_is_counted() {
    on_sqlite("tail rate", |s| {
        s.set("lanes", 1);
        s.set("tail.records_per_s", 10);
        s.start();
        let mut tail = tail(s, None);
        send(s, 0..500);
        tail.until("all told", |seen| {
            let records = seen.iter().filter(|event| event.name == "record").count() as u64;
            let dropped: u64 = seen.iter().filter_map(|event| event.data["dropped"].as_u64()).sum();
            records + dropped == 500
        });
        assert!(tail.messages().len() < 500 && tail.messages().starts_with(&expected(0..10)));
        assert_eq!(tail.seen.last().unwrap().data["total"], tail.sum("dropped", "dropped"));
    });
}

#[test]
fn it_needs_a_query_token_and_has_a_limit_and_says_what_is_wrong() {
    on_sqlite("tail refusals", |s| {
        s.set("tail.clients_max", 1);
        s.start();
        let first = tail(s, None);
        let refused = s.server().data("/api/v1/tail").unwrap();
        assert_eq!((refused.status, &refused.json()["error"]), (429, &"too_many_tails".into()));
        assert!(refused.retry_after.is_some());
        drop(first);
        for (path, error) in [("?last_event_id=nonsense", "bad_last_event_id"), ("?quarry=a", "bad_parameter")] {
            let refused = s.server().data(&format!("/api/v1/tail{path}")).unwrap();
            assert_eq!((refused.status, &refused.json()["error"]), (400, &error.into()));
        }
        s.set("auth.query_tokens", "a-secret-of-some-length");
        s.start();
        assert_eq!(s.server().data("/api/v1/tail").unwrap().status, 401);
    });
}

#[test]
fn nobody_who_listens_costs_nothing_and_the_last_one_gives_the_memory_back() {
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
