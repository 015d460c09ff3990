//! SQLite under the real program: identifiers, a file that is removed, and the signals that a laptop sends.

use logweir_tests::client::Load;
use logweir_tests::ledger::Outcome;
use logweir_tests::process::Server;
use logweir_tests::scenario::{PATIENCE, Scenario, on_sqlite};

#[test]
fn twenty_starts_use_one_identifier_per_lane() {
    on_sqlite("twenty starts", |s| {
        let number = |s: &Scenario, sql: &str| -> i64 { s.store.rows(sql).unwrap()[0][0].parse().unwrap() };
        for _ in 0..20 {
            s.start();
            s.server()
                .until("every lane is open", PATIENCE, |server| {
                    let lanes = server.status()["lanes"].as_array().cloned().unwrap_or_default();
                    !lanes.is_empty() && lanes.iter().all(|lane| lane["store"]["state"] == "ok")
                })
                .expect("the server keeps running");
            s.server().kill();
        }
        let lanes = number(s, "SELECT count(*) FROM logweir_lane");
        assert!(lanes > 0);
        let used = number(s, "SELECT seq FROM sqlite_sequence WHERE name = 'logweir_lane'");
        assert_eq!(used, lanes);
        s.assert_contract();
    });
}

#[test]
fn a_hang_up_drains_like_sigterm() {
    on_sqlite("SIGHUP", |s| {
        s.start();
        let load = s.load(Load::default());
        s.acknowledged(200);
        s.server().signal(libc::SIGHUP);
        let exit = s.ended();
        assert_eq!(exit.code(), Some(0), "{exit:?}");
        assert!(s.server().log_text().contains("logweir stopped: accepted="), "{}", s.server().log_text());
        load.stop();
        s.assert_contract();
    });
}

#[test]
fn nothing_is_committed_to_a_file_that_was_removed() {
    on_sqlite("removed file", |s| {
        s.set("journal.retain_segments", 2);
        s.set("http.ack_timeout_ms", "500");
        s.start();
        let load = s.load(Load { ack: "committed", ..Load::default() });
        s.acknowledged(200);
        load.stop();
        let acknowledged = s.ledger.records(Outcome::Acknowledged);
        for end in ["", "-wal", "-shm"] {
            let _ = std::fs::remove_file(s.dir.join(format!("store.db{end}")));
        }
        let post = |s: &mut Scenario| {
            let line = r#"{"msg":"after the removal"}"#;
            s.server().post("/ingest?ack=committed", "application/x-ndjson", line).map(|answer| answer.status)
        };
        for _ in 0..3 {
            assert_ne!(post(s), Some(200), "it is committed to a file without a name");
        }
        let is_named = |server: &Server| server.log_text().contains("was removed or replaced");
        s.server().until("the log names it", PATIENCE, is_named).expect("the server keeps running");
        s.server().kill();
        s.set("http.ack_timeout_ms", "50s");
        s.start();
        s.wait_long("a commit to the new file", |s| s.store.count().is_ok_and(|rows| rows >= acknowledged + 3));
        assert_eq!(post(s), Some(200));
        let found = s.store.rows("SELECT count(*) FROM logs WHERE message = 'after the removal'").unwrap();
        assert!(found[0][0].parse::<u32>().unwrap() >= 4, "{found:?}");
    });
}
