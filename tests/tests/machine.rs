//! A machine that misbehaves: a disk that does not answer, few descriptors, a thread that is not run.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use logweir_tests::client::{self, Client, Load, idle_connections};
use logweir_tests::disk::FailingDisk;
use logweir_tests::frozen::FrozenThread;
use logweir_tests::process::{self, Server};
use logweir_tests::scenario::{PATIENCE, Scenario, copy_volume, on_sqlite};

/// After some groups of frames, the disk does not answer, for good or for a while.
const HANGS: &str = "journal.fsync.before=4*off->pause";
const HANGS_FOR_A_WHILE: &str = "journal.fsync.before=4*off->1*sleep(20000)->off";

/// The reasons of `/readyz`; `None` while it is ready, or without a response.
fn unready(server: &Server) -> Option<Vec<String>> {
    let answer = server.admin("/readyz").filter(|answer| answer.status == 503)?;
    let reasons = answer.json()["reasons"].as_array().cloned().unwrap_or_default();
    Some(reasons.iter().map(|reason| reason.as_str().unwrap_or_default().to_owned()).collect())
}

fn names_the_disk(server: &Server) -> bool {
    unready(server).is_some_and(|reasons| reasons.iter().any(|reason| reason.contains("disk has not answered")))
}

/// Starts a server whose journal stops answering, and waits until it says so.
fn start_and_hang(s: &mut Scenario, faults: &str) {
    s.set("http.ack_timeout_ms", "1s");
    s.start_with(faults);
    let ledger = s.ledger.clone();
    let mut client = Client::new(&ledger, s.server().http);
    let one = Load { records: 1, ..Load::default() };
    assert_eq!(s.server().metric("logweir_journal_oldest_append_age_seconds", ""), 0.0);
    // A post is one group or two: the first frame of a segment may have one of its own.
    let mut refused = None;
    let hangs = |server: &Server| {
        refused = client.send(one).filter(|answer| answer.status != 200).or(refused.take());
        names_the_disk(server)
    };
    s.server().until("not ready", PATIENCE, hangs).expect("the server keeps running");
    let answer = refused.expect("no post is acknowledged while the disk does not answer");
    assert!(answer.status == 503 && answer.body.contains("ack_timeout"), "{}", answer.body);
}

#[test]
fn a_disk_that_does_not_answer_turns_readiness_and_the_gauge_until_it_answers_again() {
    on_sqlite("a hanging fsync", |s| {
        start_and_hang(s, HANGS_FOR_A_WHILE);
        let age = s.server().metric("logweir_journal_oldest_append_age_seconds", "");
        assert!(age >= 1.0, "{age}");
        assert!(s.server().admin("/livez").is_some_and(|answer| answer.status == 200), "a restart repairs no disk");
        s.server().until("ready", PATIENCE, |server| unready(server).is_none()).expect("the server keeps running");
        for told in ["the journal's disk does not answer", "the journal's disk answers again"] {
            s.server()
                .until(told, PATIENCE, |server| server.log_text().contains(told))
                .expect("the server keeps running");
        }
        let load = s.load(Load::default());
        s.acknowledged(100);
        load.stop();
        s.assert_contract();
    });
}

#[test]
fn sigterm_ends_a_process_whose_disk_never_answers() {
    on_sqlite("SIGTERM and a hanging fsync", |s| {
        s.set("shutdown.deadline_ms", "3s");
        start_and_hang(s, HANGS);
        s.server().signal(libc::SIGTERM);
        let exit = s.server().wait(PATIENCE);
        let log = s.server().log_text();
        assert_eq!(exit.code(), Some(74), "{log}");
        assert!(log.contains("cannot seal the journal"), "{log}");
        // What was acknowledged is there at the next start.
        s.assert_contract();
    });
}

#[test]
fn a_housekeeper_that_panics_begins_again() {
    on_sqlite("a panicking housekeeper", |s| {
        s.start_with("journal.housekeeper=1*panic->off");
        s.wait("the ballast", |s| {
            let ballast = std::fs::metadata(s.data_dir().join("journal/ballast"));
            ballast.is_ok_and(|ballast| ballast.len() == 1 << 20)
        });
        assert_eq!(s.server().metric("logweir_journal_housekeeper_panics_total", ""), 1.0);
        let load = s.load(Load::default());
        s.acknowledged(100);
        load.stop();
        s.assert_contract();
    });
}

/// A server under a limit of the system.
fn launch_with(s: &Scenario, resource: libc::__rlimit_resource_t, soft: u64, hard: u64) -> Server {
    let mut command = process::command(&s.settings, "", &["run"]);
    process::limit(&mut command, resource, soft, hard);
    let address = |key: &str| s.settings[key].parse().expect("an address");
    Server::spawn(command, address("http.listen"), address("admin.listen"), s.dir.join(format!("limited-{hard}.log")))
}

#[test]
fn idle_connections_take_no_descriptor_from_probes_journal_and_senders() {
    for (soft, hard, idle, reduced) in
        [(1_024, 4_096, 1_100, false), (1_024, 1_024, 1_000, true), (300, 300, 400, true)]
    {
        on_sqlite("few descriptors", |s| {
            s.set("http.workers", 1);
            s.set("http.request_timeout_ms", "5m");
            let mut server = launch_with(s, libc::RLIMIT_NOFILE, soft, hard);
            server.ready().expect("it starts");
            let told = server.log_text().contains("key=\"http.connections_max\"");
            assert_eq!(told, reduced, "{}", server.log_text());
            let ledger = s.ledger.clone();
            let mut client = Client::new(&ledger, server.http);
            let large = Load { records: 32, message_bytes: 128 << 10, ..Load::default() };
            assert!(client.send(large).is_some_and(|answer| answer.status == 200));
            let connections = idle_connections(server.http, idle);
            // The journal goes on to its second segment, which needs new files.
            for _ in 0..6 {
                assert!(client.send(large).is_some_and(|answer| answer.status == 200), "{}", server.log_text());
                assert!(server.admin("/livez").is_some_and(|answer| answer.status == 200));
            }
            assert!(server.admin("/readyz").is_some_and(|answer| answer.status == 200));
            assert!(!server.log_text().contains("Too many open files"), "{}", server.log_text());
            drop(connections);
            server.signal(libc::SIGTERM);
            assert_eq!(server.wait(PATIENCE).code(), Some(0), "{}", server.log_text());
            s.assert_contract();
        });
    }
}

#[test]
fn a_rotation_without_a_descriptor_rejects_until_there_is_one_and_loses_nothing() {
    on_sqlite("no descriptor at a rotation", |s| {
        s.set("http.workers", 1);
        s.set("http.request_timeout_ms", "5m");
        s.set("journal.segment_bytes", "17MiB");
        s.start();
        let ledger = s.ledger.clone();
        let mut client = Client::new(&ledger, s.server().http);
        let large = Load { records: 32, message_bytes: 128 << 10, ..Load::default() };
        assert!(client.send(large).is_some_and(|answer| answer.status == 200));
        let prober = client::agent(PATIENCE);
        let probe = |s: &mut Scenario, path: &str| {
            let url = format!("http://{}{path}", s.server().admin);
            client::get(&prober, &url).unwrap_or_else(|error| panic!("{path}: {error}")).status
        };
        assert_eq!(probe(s, "/readyz"), 200);
        // Somebody lowers the limit of the running process, so that nothing is kept back, and idle connections take the
        // rest. A rotation uses the descriptor of the segment before.
        let limit = s.server().open_files() + 20;
        s.server().limit_open_files(limit);
        let connections = idle_connections(s.server().http, 100);
        s.server().until("no descriptor is left", PATIENCE, |server| server.open_files() >= limit).expect("it runs");
        for _ in 0..10 {
            assert_eq!(probe(s, "/livez"), 200);
            assert!(client.send(large).is_some_and(|answer| answer.status == 200), "{}", s.server().log_text());
        }
        // Now not even that. Connections that are open go on, those of the probes too.
        s.server().limit_open_files(10);
        let mut rejected = None;
        for _ in 0..30 {
            assert_eq!(probe(s, "/livez"), 200);
            let answer = client.send(large).expect("an answer");
            if answer.status != 200 {
                rejected = Some(answer);
                break;
            }
        }
        let rejected = rejected.expect("a rotation needs a descriptor");
        assert_eq!(rejected.status, 503, "{}", rejected.body);
        for _ in 0..20 {
            assert_eq!((probe(s, "/livez"), probe(s, "/readyz")), (200, 503));
        }
        drop(connections);
        s.server().limit_open_files(limit);
        s.server()
            .until("intake resumes", PATIENCE, |_| client.send(large).is_some_and(|answer| answer.status == 200))
            .expect("it runs");
        assert_eq!((probe(s, "/livez"), probe(s, "/readyz")), (200, 200));
        s.assert_contract();
    });
}

#[test]
fn a_limit_of_open_files_that_is_too_low_is_an_error_that_says_what_is_needed() {
    on_sqlite("no descriptors", |s| {
        for limit in [24, 100] {
            let mut server = launch_with(s, libc::RLIMIT_NOFILE, limit, limit);
            assert_eq!(server.wait(PATIENCE).code(), Some(69), "{}", server.log_text());
            let log = server.log_text();
            assert!(log.contains(&format!("the limit of open files is {limit}, but")), "{log}");
            assert!(log.contains("needs at least") && log.contains("LimitNOFILE="), "{log}");
            assert!(!log.contains("panicked"), "{log}");
        }
    });
}

#[test]
fn a_file_size_limit_is_a_full_disk_and_no_signal() {
    on_sqlite("file-size limit", |s| {
        let mut server = launch_with(s, libc::RLIMIT_FSIZE, 8 << 20, 8 << 20);
        let is_full = |server: &Server| {
            unready(server).is_some_and(|reasons| reasons.iter().any(|reason| reason.contains("disk is full")))
        };
        if let Err(exit) = server.until("not ready", PATIENCE, is_full) {
            assert_eq!(exit.code(), Some(74), "{exit:?}: {}", server.log_text());
        }
    });
}

#[test]
fn a_process_whose_journal_is_removed_acknowledges_nothing_more_and_ends() {
    on_sqlite("a removed journal", |s| {
        s.start();
        let ledger = s.ledger.clone();
        let mut client = Client::new(&ledger, s.server().http);
        let one = Load { records: 1, ..Load::default() };
        assert!(client.send(one).is_some_and(|answer| answer.status == 200));
        s.stored();
        let journal = s.data_dir().join("journal");
        std::fs::remove_dir_all(&journal).expect("the journal can be removed");
        let exit = s.server().wait(PATIENCE);
        let log = s.server().log_text();
        assert_eq!(exit.code(), Some(74), "{log}");
        assert!(log.contains("was removed or replaced"), "{log}");
        // A restart goes on with an empty journal.
        s.start();
        let load = s.load(Load::default());
        s.acknowledged(100);
        load.stop();
        s.assert_contract();
    });
}

/// The threads of a lane, and of the database, stop while all others go on.
#[test]
fn a_thread_that_is_not_run_is_reported_and_ends_the_process() {
    for (thread, stage) in [("lanes-0", "producer-0"), ("store", "db-flusher-0")] {
        on_sqlite("a frozen thread", |s| {
            s.set("lanes", 1);
            if thread != "store" {
                s.set("http.ack_timeout_ms", "3s"); // shorter than the stall
            }
            s.set("shutdown.deadline_ms", "2s");
            s.start_with("stage.short_stall=return");
            let ledger = s.ledger.clone();
            let mut client = Client::new(&ledger, s.server().http);
            let one = Load { records: 1, ..Load::default() };
            s.wait("an acknowledged record", |_| client.send(one).is_some_and(|answer| answer.status == 200));
            s.stored();
            let mut frozen = match FrozenThread::new(s.server().pid(), thread) {
                Ok(frozen) => frozen,
                Err(error) => {
                    eprintln!("SKIPPED: the system lets nobody trace a process: {error}");
                    return;
                }
            };
            // Acknowledged, if it is only the database that does not get it.
            let answer = client.send(one).expect("an answer");
            assert_eq!(answer.status == 200, thread == "store", "{thread}: {}", answer.body);
            let is_stalled = |server: &Server| {
                let actors = server.status()["actors"].as_array().cloned().unwrap_or_default();
                actors.iter().any(|actor| actor["name"] == stage && actor["state"] == "stalled")
            };
            s.server().until("the stage is stalled", PATIENCE, is_stalled).expect("it is reported before it ends");
            assert!(s.server().admin("/livez").is_some_and(|answer| answer.status == 200));
            let ended = s.server().until("the end", PATIENCE, |_| {
                frozen.has_changed();
                false
            });
            let log = s.server().log_text();
            assert_eq!(ended.expect_err("the process ends").code(), Some(70), "{log}");
            for told in [format!("stage={stage:?}"), format!("the thread of stage {stage} has not run it for ")] {
                assert!(log.contains(&told), "{told}: {log}");
            }
            s.assert_contract();
        });
    }
}

/// Every command that reads a journal, beside a page of its only segment that the disk cannot read.
#[test]
fn each_command_names_what_the_disk_cannot_read_and_goes_on() {
    let disk = match FailingDisk::new() {
        Ok(disk) => disk,
        Err(why) => return eprintln!("SKIPPED: {why}"),
    };
    on_sqlite("commands and a bad place", |s| {
        const SENT: u64 = 40;
        s.start();
        let ledger = s.ledger.clone();
        let mut client = Client::new(&ledger, s.server().http);
        let one = Load { records: 1, message_bytes: 1000, ..Load::default() };
        assert!(client.send(one).is_some_and(|answer| answer.status == 200));
        s.stored();
        let locked = s.lock_store();
        for _ in 1..SENT {
            assert!(client.send(one).is_some_and(|answer| answer.status == 200));
        }
        s.kill_server();
        drop(locked);
        let run = |s: &Scenario, dir: &Path, arguments: &[&str]| {
            let segment = std::fs::metadata(dir.join("journal/00000000000000000001.wal")).expect("a copy of it");
            disk.make_unreadable(Some((segment.ino(), 8192..12288)));
            let in_dir = dir.to_string_lossy();
            let arguments = [arguments, &["--dir", &in_dir]].concat();
            let mut command = process::command(&s.settings, "", &arguments);
            command.env("LD_PRELOAD", disk.library()).envs(disk.environment(dir));
            let output = process::run_command(command, PATIENCE);
            let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
            (output.status.code(), text(output.stdout), text(output.stderr))
        };
        let copy = |s: &Scenario, name: &str| {
            let to = s.dir.join(name);
            copy_volume(&s.data_dir(), &to);
            to
        };
        let cannot_read = "the disk cannot read it";
        let dir = copy(s, "copy");
        let (code, out, error) = run(s, &dir, &["journal", "check", "--output", "json"]);
        assert_eq!(code, Some(1), "{out}{error}");
        let report: serde_json::Value = serde_json::from_str(&out).expect("JSON");
        let number = |value: &serde_json::Value| value.as_u64().expect("a number");
        let damage = report["damage"].as_array().expect("a list");
        assert!(
            damage.iter().any(|damage| damage["reason"].as_str().is_some_and(|it| it.contains(cannot_read))),
            "{out}"
        );
        let lost: u64 = damage.iter().map(|it| number(&it["seq_last"]) + 1 - number(&it["seq_first"])).sum();
        assert!((2..8).contains(&lost), "{out}");
        let (code, out, error) = run(s, &dir, &["journal", "dump"]);
        assert!(code == Some(1) && error.contains(cannot_read), "{error}");
        assert_eq!(out.lines().count() as u64, SENT - lost);
        let (code, out, error) = run(s, &dir, &["verify"]);
        assert!(code == Some(1) && out.contains(cannot_read), "{code:?} {out}{error}");
        let (code, out, error) = run(s, &dir, &["journal", "repair"]);
        assert!(code == Some(0) && out.contains(cannot_read), "{out}{error}");
        let dir = copy(s, "drained");
        let (code, out, error) = run(s, &dir, &["journal", "drain"]);
        assert!(code == Some(0) && error.contains(cannot_read), "{code:?} {out}{error}");
        let stored = SENT - lost;
        assert!(
            error.contains(&format!("committed={stored} dead_lettered=0 lost={lost} left_in_journal=0")),
            "{error}"
        );
        assert_eq!(s.store.rows("SELECT count(*) FROM logs"), Ok(vec![vec![stored.to_string()]]));
        // The database has been used by the drained one: this is the copy that it does not know.
        let dir = copy(s, "only");
        let (code, out, error) = run(s, &dir, &["journal", "adopt", "--only-copy"]);
        assert!(code == Some(0) && error.contains(cannot_read), "{code:?} {out}{error}");
    });
}
