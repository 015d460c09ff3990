//! SIGKILL at any instant breaks nothing: at random moments, at every named point, and while recovering.
//! Then the same for panics, which end a stage and not the process.
//!
//! `LOGWEIR_KILLS=10000` asks for more, `LOGWEIR_SEED=…` for the same again.

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
fn sigkill_at_random_moments_loses_and_doubles_nothing_in_postgres() {
    in_rounds(kills(50), |kills| {
        on_postgres("random kills", |s| kill_at_random_moments(s, kills));
    });
}

#[test]
fn sigkill_at_random_moments_loses_and_doubles_nothing_in_sqlite() {
    in_rounds(kills(20), |kills| {
        on_sqlite("random kills", |s| kill_at_random_moments(s, kills));
    });
}

#[test]
fn what_is_sent_again_under_its_key_across_kills_is_stored_once_in_postgres() {
    on_postgres("idempotency", sends_again);
}

#[test]
fn what_is_sent_again_under_its_key_across_kills_is_stored_once_in_sqlite() {
    on_sqlite("idempotency", sends_again);
}

/// Each client repeats each request until it is acknowledged: of what it sent nothing may be missing, and nothing doubled,
/// wherever the answer was lost. Small segments, so that keys outlive the files that they came in.
fn sends_again(s: &mut Scenario) {
    s.start();
    let load = s.load(Load { keyed: true, ..Load::default() });
    for _ in 0..12 {
        s.server().ready().expect("a server that nobody has killed");
        std::thread::sleep(Duration::from_millis(s.random.random_range(0..350)));
        s.server().kill();
        s.launch("");
    }
    load.stop();
    let sent: u64 = s.ledger.posts().iter().map(|post| u64::from(post.count)).sum();
    assert_eq!(s.ledger.records(Outcome::Acknowledged), sent, "every request came through in the end");
    s.conserve();
    assert_eq!(s.store.count(), Ok(sent + 1), "and the oracle's own record");
}

/// A database of its own for every 250 kills: the oracle holds a story's records in memory.
fn in_rounds(kills: u32, mut round: impl FnMut(u32)) {
    for done in (0..kills).step_by(250) {
        round((kills - done).min(250));
    }
}

fn kill_at_random_moments(s: &mut Scenario, kills: u32) {
    s.start();
    let load = s.load(Load::default());
    for kill in 0..kills {
        // Every third server is killed while it starts, the others under load.
        if kill % 3 != 0 {
            s.server().ready().expect("a server that nobody has killed");
        }
        std::thread::sleep(Duration::from_millis(s.random.random_range(0..350)));
        s.server().kill();
        s.launch("");
    }
    load.stop();
    assert!(s.ledger.records(Outcome::Acknowledged) > u64::from(kills) * 20, "too little traffic to prove anything");
    s.conserve();
}

/// Kills at the first, third and tenth pass of each point; the load is what makes a server come by.
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
    s.conserve();
}

const ON_THE_WAY: [&str; 6] = [
    "journal.append.before",
    "journal.append.after",
    "journal.fsync.before",
    "journal.fsync.after",
    "journal.ack.before",
    "journal.ack.after",
];

const IN_THE_STORE: [&str; 6] = [
    "store.cas.before",
    "store.cas.after",
    "store.copy.before",
    "store.copy.after",
    "store.commit.before",
    "store.commit.after",
];

#[test]
fn sigkill_at_each_point_of_the_journals_way_loses_and_doubles_nothing() {
    on_sqlite("kill points of the journal", |s| kill_at(s, &ON_THE_WAY, &[0, 2, 9], Load::default()));
}

#[test]
fn sigkill_at_each_point_of_a_transaction_loses_and_doubles_nothing_in_postgres() {
    on_postgres("kill points of the store", |s| kill_at(s, &IN_THE_STORE, &[0, 2, 9], Load::default()));
}

#[test]
fn sigkill_at_each_point_of_a_transaction_loses_and_doubles_nothing_in_sqlite() {
    on_sqlite("kill points of the store", |s| kill_at(s, &IN_THE_STORE, &[0, 2, 9], Load::default()));
}

#[test]
fn sigkill_while_segments_come_and_go_loses_and_doubles_nothing() {
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
        assert!(after <= before + 3 * SEGMENT_BYTES, "nine recoveries made {after} bytes of {before}");
        drop(lock);
        s.conserve();
    });
}

#[test]
fn a_stage_that_panics_is_rebuilt_and_nothing_is_lost_or_doubled() {
    for stage in ["producer", "parser", "batcher", "db_flusher", "cache_writer"] {
        on_sqlite(&format!("panics in {stage}"), |s| {
            s.start_with(&format!("stage.{stage}=20*off->1*panic->20*off->1*panic->off"));
            let load = s.load(Load::default());
            s.server().until("restarted twice", PATIENCE, |server| restarts(server) >= 2.0).expect("it goes on");
            s.acknowledged(100);
            load.stop();
            s.conserve();
        });
    }
}

fn restarts(server: &Server) -> f64 {
    server.metric("logweir_stage_restarts_total", "")
}
