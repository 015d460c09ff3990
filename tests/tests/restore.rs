//! The database is destroyed under load and restored to an earlier time with the manifests' scripts. Records that it
//! lost are replayed from the journal exactly once, or reported exactly if the journal no longer has them. And the volume
//! is restored to an earlier time, while the one with the later frames still exists.

use std::collections::BTreeSet;
use std::path::PathBuf;

use logweir_tests::backup::Backup;
use logweir_tests::client::Load;
use logweir_tests::oracle::Violation;
use logweir_tests::scenario::{PATIENCE, Scenario, copy_volume, on_postgres};

/// Fills a few journal segments, so that the first ones are committed when the last one is started.
fn fill_segments(s: &Scenario) {
    s.load(Load { posts_max: 10, ..Load::large() }).finish();
}

/// Waits until the database has everything that is in the journal now, while more arrives.
fn wait_until_committed(s: &mut Scenario) {
    use logweir_tests::accounting::Totals;
    let accepted = Totals::of(&s.server().status()).expect("a status").accepted;
    let has_it = |server: &logweir_tests::process::Server| {
        Totals::of(&server.status()).is_some_and(|now| now.committed + now.dead + now.lost >= accepted)
    };
    s.server().until("committed", PATIENCE, has_it).expect("the server keeps running");
}

/// The names of the journal's segments.
fn segments(s: &Scenario) -> BTreeSet<PathBuf> {
    let all = std::fs::read_dir(s.data_dir().join("journal")).expect("the journal").flatten().map(|entry| entry.path());
    all.filter(|path| path.extension().is_some_and(|extension| extension == "wal")).collect()
}

fn rewinds(s: &mut Scenario) -> f64 {
    s.server().metric("logweir_store_rewinds_total", "")
}

#[test]
fn records_that_a_restored_database_lost_are_replayed_from_the_journal() {
    on_postgres("restored", |s| {
        s.set("journal.retain_s", "1h");
        s.start();
        let load = s.load(Load::default());
        s.stored();
        let postgres = s.postgres_shared();
        let mut backup = Backup::begin(&postgres);
        s.acknowledged(500);
        backup.take();
        s.acknowledged(1000);
        let moment = backup.now();
        fill_segments(s);
        s.acknowledged(1000);
        backup.end();
        backup.destroy();
        s.acknowledged(500);
        backup.restore(&moment);
        s.acknowledged(500);
        load.stop();
        s.assert_contract();
        assert!(rewinds(s) >= 1.0, "no lane was rewound");

        // Once more without load: the processor has to detect the restore on its own.
        wait_until_committed(s);
        let stored = s.store.count().expect("a table");
        backup.destroy();
        backup.restore(&moment);
        s.wait("everything is stored again", |s| s.store.count().is_ok_and(|count| count == stored));
        s.assert_contract();
    });
}

#[test]
fn records_that_the_journal_no_longer_has_are_reported_exactly() {
    on_postgres("restored too far back", |s| {
        s.start();
        let load = s.load(Load::default());
        s.stored();
        let postgres = s.postgres_shared();
        let mut backup = Backup::begin(&postgres);
        backup.take();
        s.acknowledged(500);
        let moment = backup.now();
        s.acknowledged(500);
        let segments = segments(s);
        fill_segments(s);
        wait_until_committed(s);
        fill_segments(s);
        s.wait("the journal no longer has them", |s| self::segments(s).is_disjoint(&segments));
        backup.end();
        backup.destroy();
        backup.restore(&moment);
        s.acknowledged(500);
        load.stop();

        // No other violations: no duplicates, consistent accounting, and `logweir verify` agrees.
        let mut findings = s.findings();
        findings.retain(|found| !matches!(found, Violation::Accounting(what) if what.ends_with("are counted as lost")));
        let [Violation::Lost(missing)] = &findings[..] else { panic!("{findings:?}") };
        let lost: i64 = s.store.contents().expect("a table").lanes.iter().map(|lane| lane.lost).sum();
        assert_eq!(missing.len() as i64, lost, "the accounting does not include every missing record");
        let log = s.server().log_text();
        let named = log.lines().filter(|line| line.contains("they are counted as lost"));
        let records = |line: &str| -> i64 {
            let (_, rest) = line.split_once(" records=").expect("a number of records");
            rest.split(' ').next().and_then(|number| number.parse().ok()).expect("a number")
        };
        assert_eq!(named.map(records).sum::<i64>(), lost, "not every gap is logged");
        assert!(s.server().metric("logweir_discarded_records_total", "reason=\"expired\"") > 0.0);
    });
}

/// One request, so that its records are one frame of the journal.
fn send(s: &Scenario, records: u32) {
    s.load(Load { clients: 1, records, posts_max: 1, ..Load::default() }).finish();
}

#[test]
fn a_copy_of_which_a_part_of_a_frame_is_stored_continues_inside_of_that_frame() {
    on_postgres("forks inside of a frame", |s| {
        s.set("lanes", 1);
        s.start();
        send(s, 20);
        s.wait("the first records are stored", |s| s.store.count() == Ok(20));
        let (newer, restored) = (s.data_dir(), s.dir.join("restored"));
        s.server().freeze();
        copy_volume(&newer, &restored);
        s.server().signal(libc::SIGCONT);

        // What is refused as a whole is divided, and each part takes a while: the process is killed inside of the frame.
        s.postgres().execute(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
             IF (SELECT count(*) > 8 FROM new_rows) THEN RAISE EXCEPTION 'too much' USING ERRCODE = '54000'; END IF; \
             PERFORM pg_sleep(0.5); RETURN NULL; END $$; \
             CREATE TRIGGER refuse AFTER INSERT ON logs REFERENCING NEW TABLE AS new_rows \
             FOR EACH STATEMENT EXECUTE FUNCTION refuse()",
        );
        send(s, 400);
        let partly =
            |s: &Scenario| s.store.rows("SELECT length(digest) FROM logweir_lane") == Ok(vec![vec!["24".into()]]);
        s.wait("a part of the frame is stored", partly);
        s.server().kill();
        s.postgres().execute("DROP TRIGGER refuse ON logs");
        assert!(partly(s), "it was killed too late");
        let stored = s.store.count().expect("a table");
        assert!((21..420).contains(&stored), "{stored}");

        // The volume from before that frame is used, so its lane is reset.
        s.set("data_dir", restored.display());
        s.start();
        send(s, 30);
        s.stop();
        assert_eq!(s.store.count(), Ok(stored + 30));

        // What only the newer volume has is saved: the rest of that frame, and no more.
        let output = s.run(&["journal", "drain", "--adopt", "--dir", &newer.to_string_lossy()]);
        assert!(output.status.success(), "{output:?}");
        assert_eq!(s.store.count(), Ok(450));
        let mut findings = s.findings();
        // The number of the lane before it was reset.
        let of_the_reset = |what: &str| what == format!("{stored} rows of lane 1, which has no row");
        findings.retain(|found| !matches!(found, Violation::Accounting(what) if of_the_reset(what)));
        assert!(findings.is_empty(), "{findings:?}");
    });
}
