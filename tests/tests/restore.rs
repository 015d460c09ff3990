//! The database is destroyed under load and restored to an earlier time with the manifests' scripts. Records that it
//! lost are replayed from the journal exactly once, or reported exactly if the journal no longer has them.

use logweir_tests::backup::Backup;
use logweir_tests::client::Load;
use logweir_tests::oracle::Violation;
use logweir_tests::scenario::{PATIENCE, Scenario, on_postgres};

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
        fill_segments(s);
        wait_until_committed(s);
        fill_segments(s);
        backup.end();
        backup.destroy();
        backup.restore(&moment);
        s.acknowledged(500);
        load.stop();

        // No other violations: no duplicates, consistent accounting, and `logweir verify` agrees.
        let mut findings = s.findings();
        findings.retain(|found| !matches!(found, Violation::Accounting(what) if what.ends_with("lost records")));
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
