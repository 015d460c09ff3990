//! The path of a record from a client to the table, through the real program and without faults.

use jiff::Timestamp;
use logweir_tests::client::{Client, Load, agent};
use logweir_tests::ledger::Outcome;
use logweir_tests::lines::{Line, access_log, json};
use logweir_tests::scenario::{PATIENCE, Scenario, behind_proxy, on_postgres, on_sqlite};
use logweir_tests::store::Store;
use rand::rngs::StdRng;

#[test]
fn acknowledged_records_are_stored_and_the_final_log_line_has_the_totals() {
    let story = |s: &mut Scenario| {
        s.start();
        s.load(Load { posts_max: 50, ..Load::default() }).finish();
        s.assert_contract();
        let closing = s.stop();
        // 50 posts of 20 records from 4 clients, and the oracle's own record.
        assert_eq!((closing.accepted, closing.committed, closing.backlog), (4001, 4001, 0));
    };
    on_sqlite("spine", story);
    on_postgres("spine", story);
}

#[test]
fn after_a_committed_acknowledgment_the_row_can_be_read() {
    behind_proxy("ack=committed", |s| {
        s.start();
        let ledger = s.ledger.clone();
        let mut client = Client::new(&ledger, s.server().http);
        for posts in 1..=10 {
            assert_eq!(client.post(Load { records: 7, ack: "committed", ..Load::default() }), Outcome::Acknowledged);
            assert_eq!(s.store.count(), Ok(posts * 7));
        }
    });
}

#[test]
fn a_retry_with_the_same_key_gets_the_same_response_and_no_new_row() {
    on_sqlite("idempotency", |s| {
        s.start();
        let url = format!("http://{}/ingest?ack=committed", s.server().http);
        let post = |key: &str| {
            let request = agent(PATIENCE).post(&url).header("idempotency-key", key);
            let mut response = request.send("one\ntwo").unwrap();
            let text = response.body_mut().read_to_string().unwrap();
            (response.status().as_u16(), serde_json::from_str::<serde_json::Value>(&text).unwrap())
        };
        let (status, first) = post("k1");
        assert_eq!((status, &first["accepted"], &first["repeated"]), (200, &2.into(), &serde_json::Value::Null));
        let (status, second) = post("k1");
        assert_eq!((status, &second["accepted"], &second["repeated"]), (200, &2.into(), &true.into()));
        assert_eq!((&second["seq"], &second["lane"]), (&first["seq"], &first["lane"]));
        assert_eq!(post("k2").1["repeated"], serde_json::Value::Null);
        assert_eq!(s.store.count(), Ok(4));
        let (status, rejected) = post(&"k".repeat(256));
        assert_eq!((status, &rejected["error"]), (400, &"bad_idempotency_key".into()));
    });
}

#[test]
fn a_received_acknowledgment_survives_sigterm() {
    on_sqlite("ack=received", |s| {
        for _ in 0..3 {
            s.start();
            let load = s.load(Load { ack: "received", ..Load::default() });
            s.acknowledged(500);
            s.stop();
            load.stop();
        }
        s.assert_contract();
    });
}

#[test]
fn records_of_all_sizes_from_many_clients_arrive_unchanged() {
    on_postgres("sizes", |s| {
        s.start();
        for message_bytes in [0, 1, 100, 10_000, 200_000] {
            s.load(Load { message_bytes, clients: 8, posts_max: 3, ..Load::default() }).finish();
        }
        s.assert_contract();
    });
}

#[test]
fn every_line_of_an_access_log_is_parsed() {
    both_stores("access log", access_log);
}

#[test]
fn every_line_of_a_json_log_is_parsed() {
    both_stores("json log", json);
}

fn both_stores(name: &str, line: fn(&mut StdRng, Timestamp) -> Line) {
    on_sqlite(name, |s| produce(s, line));
    on_postgres(name, |s| produce(s, line));
}

/// `logweir produce` sends a file of 10,000 lines; each must be in the table with its time, severity and message.
fn produce(s: &mut Scenario, line: fn(&mut StdRng, Timestamp) -> Line) {
    let now = Timestamp::now();
    let mut sent: Vec<Line> = (0..10_000).map(|_| line(&mut s.random, now)).collect();
    let file = s.dir.join("input.log");
    let texts: String = sent.iter().map(|line| format!("{}\n", line.text)).collect();
    std::fs::write(&file, texts).expect("the input file");
    s.start();
    let output = s.produce(&file);
    assert!(output.status.success(), "{output:?}");
    s.wait("every line in the table", |s| s.store.count() == Ok(10_000));
    let mut stored = s.store.rows(&times_severities_and_messages(&s.store)).expect("the table");
    let mut expected: Vec<_> =
        sent.drain(..).map(|line| vec![line.ts_us.to_string(), line.severity.to_string(), line.message]).collect();
    stored.sort();
    expected.sort();
    let different = stored.iter().zip(&expected).find(|(stored, expected)| stored != expected);
    assert_eq!(different, None);
}

fn times_severities_and_messages(store: &Store) -> String {
    let ts_us = match store {
        Store::Sqlite(_) => "CAST(strftime('%s', ts) AS INTEGER) * 1000000 + CAST(substr(ts, 21, 6) AS INTEGER)",
        Store::Postgres(_) => "(extract(epoch FROM ts) * 1000000)::bigint",
    };
    format!("SELECT {ts_us}, severity, message FROM logs")
}
