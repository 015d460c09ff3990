//! SIGKILL at any moment loses and duplicates nothing: at random times, at every kill point, and during recovery.
//! The same for panics, which end a stage but not the process.
//!
//! `LOGWEIR_KILLS=10000` sets the number of kills, `LOGWEIR_SEED=…` repeats a run.

use std::time::Duration;

use logweir_tests::client::Load;
use logweir_tests::ledger::Outcome;
use logweir_tests::process::Server;
use logweir_tests::scenario::{PATIENCE, SEGMENT_BYTES, Scenario, on_postgres, on_sqlite};
use rand::Rng as _;

fn kills(in_ci: u32) -> u32 {
    std::env::var("LOGWEIR_KILLS").ok().and_then(|kills| kills.parse().ok()).unwrap_or(in_ci)
}

#[test]
fn random_sigkills_lose_and_duplicate_nothing_in_postgres() {
    in_rounds(kills(50), |kills| {
        on_postgres("random kills", |s| kill_at_random_moments(s, kills));
    });
}

#[test]
fn random_sigkills_lose_and_duplicate_nothing_in_sqlite() {
    in_rounds(kills(20), |kills| {
        on_sqlite("random kills", |s| kill_at_random_moments(s, kills));
    });
}

#[test]
fn retries_with_an_idempotency_key_across_kills_are_stored_once_in_postgres() {
    on_postgres("idempotency", sends_again);
}

#[test]
fn retries_with_an_idempotency_key_across_kills_are_stored_once_in_sqlite() {
    on_sqlite("idempotency", sends_again);
}

/// Each client retries each request until it is acknowledged. Nothing may be missing or duplicated, wherever the
/// response was lost. Segments are small, so that keys outlive the files that contain them.
fn sends_again(s: &mut Scenario) {
    s.start();
    let load = s.load(Load { keyed: true, ..Load::default() });
    for _ in 0..12 {
        s.server().ready().expect("the server becomes ready");
        std::thread::sleep(Duration::from_millis(s.random.random_range(0..350)));
        s.server().kill();
        s.launch("");
    }
    load.stop();
    let sent: u64 = s.ledger.posts().iter().map(|post| u64::from(post.count)).sum();
    assert_eq!(s.ledger.records(Outcome::Acknowledged), sent, "not every request was acknowledged");
    s.assert_contract();
    assert_eq!(s.store.count(), Ok(sent + 1), "all records and the oracle's own one are stored once");
}

/// Uses a new database for every 250 kills, since the oracle keeps a scenario's records in memory.
fn in_rounds(kills: u32, mut round: impl FnMut(u32)) {
    for done in (0..kills).step_by(250) {
        round((kills - done).min(250));
    }
}

fn kill_at_random_moments(s: &mut Scenario, kills: u32) {
    s.start();
    let load = s.load(Load::default());
    for kill in 0..kills {
        // Every third server is killed during startup, the others under load.
        if kill % 3 == 0 {
            std::thread::sleep(Duration::from_millis(s.random.random_range(0..350)));
        } else {
            s.server().ready().expect("the server becomes ready");
            let records = s.random.random_range(0..300);
            s.acknowledged(records);
        }
        s.server().kill();
        s.launch("");
    }
    load.stop();
    s.assert_contract();
}

/// Kills at the first, third and tenth pass of each point, which the load makes the server reach.
fn kill_at(s: &mut Scenario, points: &[&str], passes: &[u32], load: Load) {
    let load = s.load(load);
    for point in points {
        for passes in passes {
            let server = s.launch(&format!("{point}={passes}*off->return"));
            let exit = server.wait(PATIENCE);
            assert!(exit.killed(), "{point} after {passes} passes: {exit:?}: {}", server.log_text());
        }
    }
    load.stop();
    s.assert_contract();
}

const JOURNAL_POINTS: [&str; 6] = [
    "journal.append.before",
    "journal.append.after",
    "journal.fsync.before",
    "journal.fsync.after",
    "journal.ack.before",
    "journal.ack.after",
];

const STORE_POINTS: [&str; 6] = [
    "store.cas.before",
    "store.cas.after",
    "store.copy.before",
    "store.copy.after",
    "store.commit.before",
    "store.commit.after",
];

#[test]
fn sigkill_at_each_point_of_the_journal_loses_and_duplicates_nothing() {
    on_sqlite("kill points of the journal", |s| kill_at(s, &JOURNAL_POINTS, &[0, 2, 9], Load::default()));
}

#[test]
fn sigkill_at_each_point_of_a_transaction_loses_and_duplicates_nothing_in_postgres() {
    on_postgres("kill points of the store", |s| {
        kill_at(s, &STORE_POINTS, &[0, 2, 9], Load::default());
        kill_at(s, &["store.keys.after"], &[0, 2, 9], Load { keyed: true, ..Load::default() });
    });
}

#[test]
fn sigkill_at_each_point_of_a_transaction_loses_and_duplicates_nothing_in_sqlite() {
    on_sqlite("kill points of the store", |s| {
        kill_at(s, &STORE_POINTS, &[0, 2, 9], Load::default());
        kill_at(s, &["store.keys.after"], &[0, 2, 9], Load { keyed: true, ..Load::default() });
    });
}

#[test]
fn sigkill_during_segment_rotation_loses_and_duplicates_nothing() {
    on_sqlite("kill points of segments", |s| {
        let points = [
            "journal.segment.create",
            "journal.segment.rename.before",
            "journal.segment.rename.after",
            "journal.segment.remove.before",
            "journal.segment.remove.after",
            "journal.segment.reuse",
        ];
        kill_at(s, &points, &[0, 1], Load::large());
    });
}

#[test]
fn sigkill_during_each_recovery_loses_nothing_and_the_journal_does_not_grow() {
    on_sqlite("kill points of recovery", |s| {
        s.start();
        let lock = s.lock_store();
        let load = s.load(Load::default());
        s.acknowledged(500);
        s.server().kill();
        load.stop();
        let before = s.journal_bytes();
        let points = ["journal.recover.copied", "journal.segment.rename.before", "journal.segment.rename.after"];
        for point in points.iter().cycle().take(9) {
            let exit = s.launch(&format!("{point}=return")).wait(PATIENCE);
            assert!(exit.killed(), "{point}: {exit:?}: {}", s.server().log_text());
        }
        let after = s.journal_bytes();
        assert!(after <= before + 3 * SEGMENT_BYTES, "nine recoveries grew the journal from {before} to {after} bytes");
        drop(lock);
        s.assert_contract();
    });
}

#[test]
fn a_stage_that_panics_is_restarted_and_nothing_is_lost_or_duplicated() {
    for stage in ["producer", "parser", "batcher", "db_flusher", "cache_writer"] {
        on_sqlite(&format!("panics in {stage}"), |s| {
            s.start_with(&format!("stage.{stage}=20*off->1*panic->20*off->1*panic->off"));
            let load = s.load(Load::default());
            s.server()
                .until("restarted twice", PATIENCE, |server| restarts(server) >= 2.0)
                .expect("the server keeps running");
            s.acknowledged(100);
            load.stop();
            s.assert_contract();
        });
    }
}

fn restarts(server: &Server) -> f64 {
    server.metric("logweir_stage_restarts_total", "")
}
