//! Tests of the tests: each injected bug must be detected by the same check that passes without it.

use std::time::{Duration, Instant};

use logweir_tests::client::Load;
use logweir_tests::disk::{Disk, may_mount};
use logweir_tests::oracle::Violation;
use logweir_tests::proxy::AtCommit;
use logweir_tests::scenario::{PATIENCE, Scenario, behind_proxy, on_postgres, on_sqlite};

/// Number of attempts per mutation, since some bugs show only with certain timing: each attempt gives it more time.
const ATTEMPTS: u32 = 6;

/// Runs the scenario without the mutation, which must pass, and with it, which must cause a violation that `catches`
/// accepts.
fn caught(mutation: &str, catches: fn(&Violation) -> bool, tell: impl Fn(&str, u32) -> Vec<Violation>) {
    harmless("", &tell);
    let seen = (0..ATTEMPTS).any(|attempt| tell(mutation, 1 << attempt).iter().any(catches));
    assert!(seen, "{mutation} was not detected in {ATTEMPTS} attempts");
}

fn harmless(mutation: &str, tell: impl Fn(&str, u32) -> Vec<Violation>) {
    let found = tell(mutation, 1);
    assert!(found.is_empty(), "with {mutation:?}: {found:?}");
}

fn is_lost(violation: &Violation) -> bool {
    matches!(violation, Violation::Lost(_))
}

fn is_doubled(violation: &Violation) -> bool {
    matches!(violation, Violation::Doubled(_))
}

#[test]
fn missing_compare_and_set_and_guard_are_detected_by_a_late_commit() {
    caught("mutation.no_cas=return;mutation.no_guard=return", is_doubled, late_commits);
}

#[test]
fn the_compare_and_set_and_the_guard_each_suffice_alone() {
    harmless("mutation.no_cas=return", late_commits);
    harmless("mutation.no_guard=return", late_commits);
}

/// A COMMIT arrives after its client has given up, while the next attempt waits for the lane's row: what that attempt
/// read before does not tell it.
fn late_commits(faults: &str, _: u32) -> Vec<Violation> {
    let mut found = Vec::new();
    behind_proxy("late commits", |s| {
        s.start_with(faults);
        let load = s.load(Load::default());
        s.stored();
        let mut late = 0;
        s.wait("three late COMMITs", |s| {
            late += u32::from(late_commit(s));
            late == 3
        });
        load.stop();
        found = s.findings();
    });
    found
}

/// Holds a COMMIT until the next attempt waits for the lane's row. Returns whether it did: a lane that takes longer than five
/// seconds to connect again ends the session that has the row.
fn late_commit(s: &Scenario) -> bool {
    // Not for a partition that is being made.
    const WAITING: &str = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' \
        AND wait_event IN ('transactionid', 'tuple') AND application_name ~ '^logweir/[0-9a-f]{32}/[0-9]+/[0-9]+$'";
    let before = s.proxy().commits_cut();
    s.proxy().cut_at_commit(AtCommit::Held, 1);
    s.wait("a COMMIT that is held", |s| s.proxy().commits_cut() > before);
    let until = Instant::now() + Duration::from_secs(10);
    let waits = || s.store.rows(WAITING).is_ok_and(|rows| !rows.is_empty());
    let mut waited = waits();
    while !waited && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(10));
        waited = waits();
    }
    s.proxy().release_commits();
    waited
}

#[test]
fn moving_the_cursor_outside_the_transaction_is_detected_by_a_kill() {
    caught(
        "mutation.cursor_outside_tx=return",
        |found| is_doubled(found) || is_lost(found),
        |faults, _| {
            let mut found = Vec::new();
            on_postgres("kill at commit", |s| {
                let load = s.load(Load::default());
                for point in ["store.commit.before", "store.commit.after"] {
                    let exit = s.launch(&format!("{faults};{point}=3*off->return")).wait(PATIENCE);
                    assert!(exit.killed(), "{exit:?}: {}", s.server().log_text());
                }
                load.stop();
                found = s.findings();
            });
            found
        },
    );
}

#[test]
fn acknowledging_before_the_fsync_is_detected_by_power_loss() {
    if cannot_cut_power() {
        return;
    }
    caught("mutation.ack_before_fsync=return", is_lost, power_cut);
}

#[test]
fn missing_fsync_is_detected_by_power_loss() {
    if cannot_cut_power() {
        return;
    }
    caught("mutation.skip_fsync=return", is_lost, power_cut);
}

fn cannot_cut_power() -> bool {
    if !may_mount() {
        eprintln!("skipped: simulating power loss needs root");
    }
    !may_mount()
}

/// The journal's disk loses power under load, while the database accepts nothing. Each fsync is delayed, which widens
/// the window for a premature acknowledgment.
fn power_cut(faults: &str, times: u32) -> Vec<Violation> {
    let mut found = Vec::new();
    on_sqlite("power cut", |s| {
        let disk = Disk::ext4(&s.dir.join("volume"), 256 << 20);
        s.set("data_dir", disk.path().join("data").display());
        s.start();
        let lock = s.lock_store();
        s.start_with(&format!("{faults};journal.fsync.before=sleep({})", 300 * times));
        let load = s.load(Load { records: 200, ..Load::default() });
        s.acknowledged(3000);
        disk.power_off();
        assert_eq!(s.ended().code(), Some(74), "{}", s.server().log_text());
        load.stop();
        disk.power_on();
        drop(lock);
        found = s.findings();
        s.kill_server();
    });
    found
}
