//! A slow or failed dependency affects nothing else: PostgreSQL and Redis are killed, restarted, made read-only, cut
//! off, half-open and slow, under load. In the end everything acknowledged is in the table exactly once.

use std::cell::RefCell;
use std::time::Duration;

use logweir_tests::accounting::Totals;
use logweir_tests::chaos::Held;
use logweir_tests::client::{Client, Load};
use logweir_tests::disk::{Disk, may_mount};
use logweir_tests::process::Server;
use logweir_tests::proxy::{AtCommit, Mode};
use logweir_tests::redis::Redis;
use logweir_tests::scenario::{PATIENCE, SEGMENT_BYTES, Scenario, behind_proxy, on_postgres, on_sqlite};

/// Starts the server and the load, injects `fault`, checks that intake continues, calls `repair`, and checks the
/// contract.
fn survives(s: &mut Scenario, fault: impl FnOnce(&mut Scenario), repair: impl FnOnce(&mut Scenario)) {
    s.start();
    let load = s.load(Load::default());
    s.stored();
    s.acknowledged(200);
    fault(s);
    s.acknowledged(1000);
    repair(s);
    s.acknowledged(200);
    load.stop();
    s.assert_contract();
}

fn nothing(_: &mut Scenario) {}

#[test]
fn postgres_killed_and_restarted() {
    on_postgres("postgres killed", |s| survives(s, |s| s.postgres().kill(), |s| s.postgres().restart()));
}

#[test]
fn postgres_restarted_immediately() {
    on_postgres("postgres restarted", |s| {
        survives(
            s,
            |s| {
                s.postgres().stop_immediately();
                s.postgres().restart();
            },
            nothing,
        )
    });
}

#[test]
fn postgres_read_only_for_a_while() {
    let read_only = |s: &mut Scenario, on: &str| {
        s.postgres().execute(&format!("ALTER SYSTEM SET default_transaction_read_only = {on}"));
        s.postgres().execute("SELECT pg_reload_conf()");
    };
    on_postgres("postgres read-only", |s| survives(s, |s| read_only(s, "on"), |s| read_only(s, "off")));
}

#[test]
fn a_connection_that_is_silent_for_good_delays_a_start_only_briefly() {
    behind_proxy("a silent connection at a start", |s| {
        s.start();
        s.load(Load { posts_max: 1, ..Load::default() }).finish();
        s.stored();
        s.stop();
        let held = Held::open(&s.postgres().url("postgres"), "BEGIN; SELECT FROM logweir_writer FOR UPDATE", 1);
        s.launch("");
        s.wait("the lease is being acquired", |s| {
            let waiting = "SELECT 1 FROM pg_stat_activity WHERE application_name LIKE '%acquire-lease' AND \
                           wait_event_type = 'Lock'";
            s.store.rows(waiting).is_ok_and(|rows| !rows.is_empty())
        });
        // Who has forgotten a connection acknowledges what is sent, and says nothing: no keepalive notices that.
        s.proxy().set(Mode::Swallow);
        s.proxy().set(Mode::Pass);
        drop(held);
        let told = "acquiring the journal's lease: the database did not respond within 15000 ms";
        s.server().until(told, PATIENCE, |server| server.log_text().contains(told)).expect("a server");
        s.assert_contract();
    });
}

#[test]
fn a_commit_that_never_arrives_is_retried() {
    behind_proxy("commit lost", |s| cut_at_commits(s, AtCommit::RequestLost));
}

#[test]
fn a_commit_whose_response_is_lost_is_not_repeated() {
    behind_proxy("response to commit lost", |s| cut_at_commits(s, AtCommit::ReplyLost));
}

#[test]
fn a_commit_that_arrives_after_its_client_has_given_up_is_not_repeated() {
    behind_proxy("late commit", |s| cut_at_commits(s, AtCommit::Late(Duration::from_secs(1))));
}

fn cut_at_commits(s: &mut Scenario, what: AtCommit) {
    survives(s, |s| s.proxy().cut_at_commit(what, 5), |s| s.wait("five cuts", |s| s.proxy().commits_cut() == 5));
}

#[test]
fn connections_cut_repeatedly() {
    behind_proxy("connections cut", |s| survives(s, |s| s.proxy().cut(), |s| s.proxy().cut()));
}

#[test]
fn a_half_open_connection_is_abandoned() {
    behind_proxy("half-open", |s| {
        s.set("database.statement_timeout_ms", 1000);
        s.set("database.connect_timeout_ms", 1000);
        // The connections fall silent during a long COPY and stay silent: only abandoning them helps.
        let silence = |s: &mut Scenario| {
            s.proxy().set(Mode::Throttle(20_000));
            s.acknowledged(2000);
            s.proxy().set(Mode::Swallow);
        };
        survives(s, silence, |s| s.proxy().set(Mode::Pass));
    });
}

#[test]
fn a_database_that_refuses_connections_for_a_while() {
    behind_proxy("refused", |s| {
        let refuse = |s: &mut Scenario| {
            s.proxy().set(Mode::Refuse);
            s.proxy().cut();
        };
        survives(s, refuse, |s| s.proxy().set(Mode::Pass));
    });
}

#[test]
fn a_slow_database() {
    behind_proxy("slow", |s| {
        survives(s, |s| s.proxy().set(Mode::Delay(Duration::from_millis(100))), |s| s.proxy().set(Mode::Pass));
    });
    behind_proxy("narrow", |s| {
        survives(s, |s| s.proxy().set(Mode::Throttle(50_000)), |s| s.proxy().set(Mode::Pass));
    });
}

#[test]
fn a_lane_that_falls_behind_repeatedly_stores_each_frame_once() {
    behind_proxy("behind again", |s| {
        s.set("lanes", 1);
        s.start();
        let load = s.load(Load::default());
        for _ in 0..3 {
            s.proxy().set(Mode::Delay(Duration::from_millis(100)));
            s.acknowledged(2000);
            s.proxy().set(Mode::Pass);
            let caught_up = |server: &Server| Totals::of(&server.status()).is_some_and(|totals| totals.backlog < 300);
            s.server().until("caught up", PATIENCE, caught_up).expect("the server keeps running");
            // Once it has caught up, batches arrive through the mailbox instead of the journal.
            s.acknowledged(1000);
        }
        load.stop();
        s.assert_contract();
    });
}

/// Redis does not affect commits.
fn redis(name: &str, fault: impl FnOnce(&mut Redis), repair: impl FnOnce(&mut Redis)) {
    on_sqlite(name, |s| {
        let redis = RefCell::new(Redis::start());
        let url = redis.borrow().url();
        s.set("cache.url", url);
        let stores_without = |s: &mut Scenario| {
            fault(&mut redis.borrow_mut());
            let before = s.store.count().expect("a table");
            s.wait("rows are stored without Redis", |s| s.store.count().is_ok_and(|count| count > before + 500));
        };
        survives(s, stores_without, |_| repair(&mut redis.borrow_mut()));
    });
}

#[test]
fn redis_killed_and_restarted() {
    redis("redis killed", Redis::kill, Redis::restart);
}

#[test]
fn redis_frozen_and_thawed() {
    redis("redis frozen", |redis| redis.freeze(), |redis| redis.thaw());
}

#[test]
fn redis_out_of_memory() {
    redis(
        "redis out of memory",
        |redis| redis.config_set("maxmemory", "1"),
        |redis| redis.config_set("maxmemory", "0"),
    );
}

#[test]
fn redis_unavailable_at_startup() {
    on_sqlite("no redis", |s| {
        s.set("cache.url", "redis://127.0.0.1:1/");
        survives(s, nothing, nothing);
    });
}

#[test]
fn a_database_that_is_unavailable_at_startup_is_waited_for() {
    behind_proxy("no database at start", |s| {
        s.proxy().set(Mode::Refuse);
        s.start();
        let load = s.load(Load::default());
        s.acknowledged(1000);
        let told = "the database is unavailable";
        s.server().until(told, PATIENCE, |server| server.log_text().contains(told)).expect("the server keeps running");
        std::thread::sleep(Duration::from_secs(2)); // dozens of retries
        // The next line follows after ten seconds, which a slow machine may need until here.
        let uptime_s = s.server().status()["uptime_s"].as_u64().expect("a number");
        let log = s.server().log_text();
        for lane in 0..4 {
            let of_lane = |line: &&str| line.contains(told) && line.contains(&format!("lane={lane} "));
            let lines = log.lines().filter(of_lane).count() as u64;
            assert!(lines <= 1 + uptime_s / 10, "lane {lane} repeats its warning within {uptime_s} s: {log}");
        }
        assert!(!log.contains("cannot commit a batch"), "no batch was flushed yet: {log}");
        s.proxy().set(Mode::Pass);
        s.stored();
        load.stop();
        s.assert_contract();
    });
}

#[test]
fn a_journal_at_its_quota_rejects_with_503_until_the_database_is_back() {
    on_sqlite("quota", |s| {
        s.set("journal.quota_bytes", 5 * SEGMENT_BYTES);
        fills_up_and_recovers(s);
    });
}

#[test]
fn a_full_disk_rejects_with_503_until_the_database_is_back() {
    with_a_small_disk("full disk", fills_up_and_recovers);
}

#[test]
fn sigterm_on_a_full_disk_loses_nothing() {
    with_a_small_disk("SIGTERM on a full disk", |s| {
        s.start();
        let lock = s.lock_store();
        let load = s.load(Load::large());
        until_full(s);
        s.stop();
        load.stop();
        drop(lock);
        s.assert_contract();
    });
}

/// Runs with the journal on a disk for three segments; the quota alone would allow more.
fn with_a_small_disk(name: &str, scenario: impl FnOnce(&mut Scenario)) {
    if !may_mount() {
        eprintln!("skipped: a small disk needs root");
        return;
    }
    on_sqlite(name, |s| {
        let disk = Disk::small(&s.dir.join("volume"), 3 * SEGMENT_BYTES + (8 << 20));
        s.set("data_dir", disk.path().join("data").display());
        scenario(s);
        s.kill_server();
    });
}

fn fills_up_and_recovers(s: &mut Scenario) {
    s.start();
    let lock = s.lock_store();
    let load = s.load(Load::large());
    until_full(s);
    drop(lock);
    s.acknowledged(500);
    load.stop();
    s.assert_contract();
}

/// Sends until a record is rejected with 503 and `Retry-After`, and readiness fails.
fn until_full(s: &mut Scenario) {
    let ledger = s.ledger.clone();
    let mut client = Client::new(&ledger, s.server().http);
    s.wait("a rejection", |_| {
        client.send(Load { records: 1, ..Load::large() }).is_some_and(|answer| answer.status == 503)
    });
    s.server()
        .until("unready", PATIENCE, |server| server.admin("/readyz").is_some_and(|answer| answer.status == 503))
        .expect("the server keeps running");
}
