//! Startup, shutdown and journal ownership: SIGTERM and SIGINT under various conditions, two processes on one volume or
//! on copies of a volume, and a process that resumes after it was replaced.

use std::fs;
use std::path::{Path, PathBuf};

use logweir_tests::client::{Load, Running};
use logweir_tests::oracle::Violation;
use logweir_tests::process::Server;
use logweir_tests::proxy::Mode;
use logweir_tests::scenario::{PATIENCE, Scenario, behind_proxy, copy_volume, files, on_postgres, on_sqlite};

#[test]
fn sigterm_under_load_ends_cleanly_with_consistent_totals() {
    on_postgres("SIGTERM under load", |s| {
        for _ in 0..3 {
            s.start();
            let load = s.load(Load::default());
            s.acknowledged(500);
            s.server().until("connected", PATIENCE, connected).expect("the server keeps running");
            let closing = s.stop();
            assert_eq!(closing.backlog, 0, "the database is up: {closing:?}");
            load.stop();
        }
        s.assert_contract();
    });
}

/// Returns whether every lane has flushed. Before that, a drain waits only briefly for a database that may hang.
fn connected(server: &Server) -> bool {
    server.status()["lanes"].as_array().is_some_and(|lanes| lanes.iter().all(|lane| lane["store"]["state"] == "ok"))
}

#[test]
fn sigint_works_like_sigterm() {
    on_sqlite("SIGINT", |s| {
        s.start();
        let load = s.load(Load::default());
        s.acknowledged(200);
        s.server().signal(libc::SIGINT);
        assert_eq!(s.ended().code(), Some(0));
        load.stop();
        s.assert_contract();
    });
}

#[test]
fn health_sets_the_exit_code() {
    on_sqlite("health", |s| {
        let code = |s: &Scenario, arguments: &[&str]| s.run(arguments).status.code();
        assert_eq!(code(s, &["health"]), Some(1), "the server is not running");
        s.set("shutdown.linger_ms", "10m");
        s.set("shutdown.deadline_ms", "20m");
        s.start();
        assert_eq!(code(s, &["health"]), Some(0));
        assert_eq!(code(s, &["health", "--ready"]), Some(0));
        // It is alive, but must not receive requests.
        s.server().signal(libc::SIGTERM);
        let closing = |server: &Server| server.admin("/readyz").is_some_and(|answer| answer.status == 503);
        s.server().until("closing", PATIENCE, closing).expect("the server lingers");
        assert_eq!(code(s, &["health"]), Some(0));
        assert_eq!(code(s, &["health", "--ready"]), Some(1));
        s.stop();
    });
}

#[test]
fn sigterm_with_the_database_down_does_not_wait_for_it() {
    behind_proxy("SIGTERM without database", |s| {
        s.set("shutdown.deadline_ms", "20m");
        s.start();
        disconnect_database(s);
        let load = s.load(Load::default());
        s.acknowledged(500);
        load.stop();
        let closing = s.stop();
        assert!(closing.backlog >= 500, "{closing:?}");
        s.proxy().set(Mode::Pass);
        s.assert_contract();
    });
}

fn disconnect_database(s: &Scenario) {
    s.proxy().set(Mode::Refuse);
    s.proxy().cut();
}

#[test]
fn a_second_sigterm_cuts_a_long_drain_short() {
    behind_proxy("two SIGTERMs", |s| {
        s.set("shutdown.linger_ms", "10m");
        s.set("shutdown.deadline_ms", "20m");
        s.start();
        let load = s.load(Load::default());
        s.acknowledged(200);
        s.server().signal(libc::SIGTERM);
        s.server()
            .until("unready", PATIENCE, |server| server.admin("/readyz").is_some_and(|answer| answer.status == 503))
            .expect("the server lingers");
        s.server().signal(libc::SIGTERM);
        assert_eq!(s.ended().code(), Some(0), "the second SIGTERM must skip the linger time");
        load.stop();
        s.assert_contract();
    });
}

#[test]
fn after_sigterm_readiness_fails_immediately_while_intake_lingers() {
    on_sqlite("linger", |s| {
        s.set("shutdown.linger_ms", "10m");
        s.set("shutdown.deadline_ms", "20m");
        s.start();
        let load = s.load(Load::default());
        s.acknowledged(100);
        s.server().signal(libc::SIGTERM);
        s.server()
            .until("unready", PATIENCE, |server| server.admin("/readyz").is_some_and(|answer| answer.status == 503))
            .expect("the server lingers");
        s.acknowledged(100);
        load.stop();
        // Ends the linger.
        s.stop();
        s.assert_contract();
    });
}

#[test]
fn sigterm_while_a_backlog_is_replayed() {
    behind_proxy("SIGTERM during replay", |s| {
        s.start();
        disconnect_database(s);
        let load = s.load(Load { records: 500, ..Load::default() });
        s.acknowledged(50_000);
        load.stop();
        s.stop();
        s.proxy().set(Mode::Throttle(2_000_000));
        for _ in 0..3 {
            s.start();
            s.stop();
        }
        s.proxy().set(Mode::Pass);
        s.assert_contract();
    });
}

#[test]
fn a_deadline_shorter_than_the_drain_leaves_the_rest_in_the_journal() {
    behind_proxy("short deadline", |s| {
        s.set("shutdown.deadline_ms", 1000);
        s.start();
        let load = s.load(Load { records: 500, ..Load::default() });
        s.acknowledged(1000);
        s.proxy().set(Mode::Throttle(20_000));
        s.acknowledged(20_000);
        load.stop();
        let closing = s.stop();
        assert!(closing.backlog > 0, "{closing:?}");
        s.proxy().set(Mode::Pass);
        s.assert_contract();
    });
}

#[test]
fn a_second_process_on_the_same_volume_is_rejected() {
    on_sqlite("one volume, two processes", |s| {
        s.start();
        let load = s.load(Load::default());
        let data_dir = s.data_dir();
        let mut second = s.launch_beside(&data_dir);
        assert_eq!(second.wait(PATIENCE).code(), Some(69), "{}", second.log_text());
        assert!(second.log_text().contains("in use by another process"), "{}", second.log_text());
        s.acknowledged(200);
        load.stop();
        s.assert_contract();
    });
}

#[test]
fn of_two_processes_on_copies_of_a_volume_one_is_fenced_and_nothing_is_lost() {
    behind_proxy("copies of a clean volume", |s| two_on_copies(s, Scenario::stop));
    behind_proxy("copies of a volume after a crash", |s| two_on_copies(s, |s| s.server().kill()));
}

fn two_on_copies<T>(s: &mut Scenario, end: impl FnOnce(&mut Scenario) -> T) {
    s.start();
    let load = s.load(Load::default());
    s.acknowledged(300);
    load.stop();
    end(s);
    let original = s.data_dir();
    let copy = s.dir.join("copy");
    copy_volume(&original, &copy);
    // Without a database the two cannot be told apart: both accept records.
    s.proxy().set(Mode::Refuse);
    s.start();
    let mut second = s.launch_beside(&copy);
    second.ready().expect("both start while the database is unavailable");
    let loads = [s.load(Load::default()), Load::default().start(&s.ledger, second.http)];
    s.acknowledged(1000);
    s.proxy().set(Mode::Pass);
    let mut fenced = None;
    while fenced.is_none() {
        fenced = s.server().exited().map(|exit| (exit, original.clone()));
        fenced = fenced.or_else(|| second.exited().map(|exit| (exit, copy.clone())));
        s.acknowledged(1);
    }
    let (exit, fenced) = fenced.expect("one of the two has exited");
    assert_eq!(exit.code(), Some(75), "{} {}", s.server().log_text(), second.log_text());
    loads.into_iter().for_each(Running::stop);
    let (winner, data_dir) = if fenced == copy { (&mut *s.server(), original) } else { (&mut second, copy) };
    winner.signal(libc::SIGTERM);
    assert_eq!(winner.wait(PATIENCE).code(), Some(0), "{}", winner.log_text());
    s.set("data_dir", data_dir.display());
    adopt(s, &fenced);
    s.assert_contract();
}

/// Saves the records that only this copy of a journal has.
fn adopt(s: &mut Scenario, copy: &Path) {
    let dir = copy.join("journal");
    let output = s.run(&["journal", "drain", "--adopt", "--dir", &dir.to_string_lossy()]);
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn a_frozen_process_is_fenced_after_a_takeover() {
    on_postgres("zombie", |s| {
        s.start();
        let load = s.load(Load::default());
        s.acknowledged(300);
        // Frozen before that, it could hold the lock of the schema's preparation, which the successor waits for.
        s.server().until("connected", PATIENCE, connected).expect("the server keeps running");
        s.server().freeze();
        let copy = s.dir.join("copy");
        copy_volume(&s.data_dir(), &copy);
        let mut successor = s.launch_beside(&copy);
        successor.ready().expect("the server starts on a copy of a journal");
        let successors_load = Load::default().start(&s.ledger, successor.http);
        s.acknowledged(300);
        // Until the takeover, a resumed process would still hold the lease and could flush beyond the copy.
        successor.until("connected", PATIENCE, connected).expect("the successor acquires the lease");
        s.server().signal(libc::SIGCONT);
        assert_eq!(s.ended().code(), Some(75), "{}", s.server().log_text());
        s.acknowledged(100);
        load.stop();
        successors_load.stop();
        // The successor holds the lease; what the frozen process accepted after it resumed is in its own journal.
        successor.signal(libc::SIGTERM);
        assert_eq!(successor.wait(PATIENCE).code(), Some(0));
        let frozen = s.data_dir();
        s.set("data_dir", copy.display());
        adopt(s, &frozen);
        s.assert_contract();
    });
}

/// Size of a segment header and of a frame header.
const HEADERS: (usize, usize) = (168, 64);

/// The newest segment of a journal.
fn newest_segment(data_dir: &Path) -> PathBuf {
    let entries = fs::read_dir(data_dir.join("journal")).expect("the journal's directory").flatten();
    let segments = entries.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|name| name == "wal"));
    segments.max().expect("a journal has a segment")
}

/// Whether every lane has flushed and has nothing left.
fn settled(server: &Server) -> bool {
    let is_empty = |lane: &serde_json::Value| lane["backlog"] == 0;
    connected(server) && server.status()["lanes"].as_array().is_some_and(|lanes| lanes.iter().all(is_empty))
}

/// Stops the server once everything is committed.
fn stop_settled(s: &mut Scenario) {
    s.server().until("all committed", PATIENCE, settled).expect("the server keeps running");
    assert_eq!(s.stop().backlog, 0);
}

#[test]
fn damage_to_the_only_start_of_a_settled_journal_stops_nothing() {
    let (segment_header, frame_header) = HEADERS;
    type Damage<'d> = &'d dyn Fn(&mut [u8]);
    let damages: [(&str, Damage<'_>, bool); 3] = [
        ("a flipped bit", &|bytes| bytes[segment_header + frame_header + 2] ^= 1, true),
        ("every frame overwritten", &|bytes| bytes[segment_header..4096].fill(0xee), false),
        ("the segment header overwritten", &|bytes| bytes[..segment_header].fill(0xee), true),
    ];
    for (what, damage, knows_lanes) in damages {
        on_postgres(what, |s| {
            s.set("journal.retain_s", 0);
            s.set("journal.retain_segments", 0);
            s.start();
            let load = s.load(Load::default());
            s.acknowledged(300);
            load.stop();
            stop_settled(s);
            // A run without records: its segment, with a START, is all that is left.
            s.start();
            stop_settled(s);
            let segment = newest_segment(&s.data_dir());
            let mut bytes = fs::read(&segment).expect("a segment");
            damage(&mut bytes);
            fs::write(&segment, bytes).expect("a segment");
            s.start();
            let load = s.load(Load::default());
            s.acknowledged(300);
            load.stop();
            // A lane that the journal has forgotten gets another id, and the rows under the old one stay.
            let is_left = |found: &Violation| {
                !knows_lanes && matches!(found, Violation::Accounting(what) if what.ends_with("which has no row"))
            };
            let findings: Vec<_> = s.findings().into_iter().filter(|found| !is_left(found)).collect();
            assert!(findings.is_empty(), "{what}: {findings:?}");
        });
    }
}

#[test]
fn an_operator_lets_the_only_copy_of_a_journal_continue_but_not_while_another_one_is_in_use() {
    on_postgres("the only copy", |s| {
        s.start();
        let load = s.load(Load::default());
        s.acknowledged(300);
        load.stop();
        stop_settled(s);
        let copy = s.dir.join("copy");
        copy_volume(&s.data_dir(), &copy);
        let adopt = |s: &Scenario, data_dir: &Path| {
            let dir = data_dir.join("journal");
            s.run(&["journal", "adopt", "--only-copy", "--dir", &dir.to_string_lossy()])
        };

        s.start();
        s.server().until("connected", PATIENCE, connected).expect("the server keeps running");
        let refused = adopt(s, &copy);
        assert_eq!(refused.status.code(), Some(75), "{refused:?}");
        assert!(String::from_utf8_lossy(&refused.stderr).contains("is in use"), "{refused:?}");
        let refused = adopt(s, &s.data_dir());
        assert_eq!(refused.status.code(), Some(69), "its lock is held: {refused:?}");
        let load = s.load(Load::default());
        s.acknowledged(300);
        load.stop();
        stop_settled(s);

        s.postgres().execute("UPDATE logweir_writer SET run_id = gen_random_uuid()");
        s.launch("");
        assert_eq!(s.ended().code(), Some(75), "{}", s.server().log_text());
        let log = s.server().log_text();
        assert!(log.contains("logweir journal adopt --only-copy --dir DIR"), "{log}");
        let adopted = adopt(s, &s.data_dir());
        assert!(adopted.status.success(), "{adopted:?}");
        s.start();
        let load = s.load(Load::default());
        s.acknowledged(300);
        load.stop();
        s.assert_contract();
    });
}

#[test]
fn an_invalid_configuration_at_a_restart_with_backlog_changes_nothing() {
    on_sqlite("wrong configuration", |s| {
        s.start();
        let lock = s.lock_store();
        let load = s.load(Load::default());
        s.acknowledged(300);
        s.server().kill();
        load.stop();
        let before = files(&s.data_dir());
        s.set("journal.quota_bytes", "plenty");
        s.set("batch.rows_max", 0);
        s.launch("");
        assert_eq!(s.ended().code(), Some(78));
        for key in ["journal.quota_bytes", "batch.rows_max"] {
            assert!(s.server().log_text().contains(key), "{}", s.server().log_text());
        }
        assert!(files(&s.data_dir()) == before, "the volume was changed");
        s.set("journal.quota_bytes", 268_435_456);
        s.set("batch.rows_max", 20_000);
        drop(lock);
        s.assert_contract();
    });
}

#[test]
fn a_ballast_that_cannot_be_made_is_retried_and_told_once() {
    on_sqlite("ballast", |s| {
        let place = s.data_dir().join("journal/ballast");
        std::fs::create_dir_all(&place).expect("a directory");
        s.start();
        let load = s.load(Load::default());
        const TOLD: &str = "cannot create the ballast: retrying";
        s.server().until("a warning", PATIENCE, |server| server.log_text().contains(TOLD)).expect("it keeps running");
        // It is tried twice a second.
        let uptime = |server: &Server| server.status()["uptime_s"].as_u64().unwrap_or(0);
        let until = uptime(s.server()) + 5;
        s.server().until("more attempts", PATIENCE, |server| uptime(server) >= until).expect("it keeps running");
        let log = s.server().log_text();
        assert_eq!(log.matches(TOLD).count(), 1, "{log}");
        std::fs::remove_dir(&place).expect("it is empty");
        s.server()
            .until("the ballast", PATIENCE, |_| place.metadata().is_ok_and(|file| file.is_file() && file.len() > 0))
            .expect("it keeps running");
        load.stop();
        s.assert_contract();
    });
}
