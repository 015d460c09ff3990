//! A backlog costs disk, not memory: neither while it grows nor while it is replayed.
//!
//! `LOGWEIR_BACKLOG=10000000` sets the number of records (default: one million).

use std::time::Duration;

use logweir_tests::client::Load;
use logweir_tests::ledger::Outcome;
use logweir_tests::scenario::{Scenario, on_sqlite};

#[test]
fn memory_stays_below_the_printed_bound_with_a_large_backlog() {
    let backlog: u64 = std::env::var("LOGWEIR_BACKLOG").ok().and_then(|n| n.parse().ok()).unwrap_or(1_000_000);
    on_sqlite("backlog", |s| {
        s.set("journal.quota_bytes", backlog * 1000 + (1 << 30));
        s.start();
        let lock = s.lock_store();
        let load = Load { clients: 4, records: 2500, message_bytes: 24, pause: Duration::ZERO, ..Load::default() };
        let load = s.load(load);
        s.wait_long("the backlog", |s| s.ledger.records(Outcome::Acknowledged) >= backlog);
        load.stop();
        check_bound(s, "while the backlog grew");
        s.server().kill();
        drop(lock);
        s.start();
        let all = s.ledger.records(Outcome::Acknowledged);
        s.wait_long("the backlog is replayed", |s| s.store.count().is_ok_and(|count| count >= all));
        check_bound(s, "while it was replayed");
        s.assert_contract();
    });
}

fn check_bound(s: &mut Scenario, when: &str) {
    let bound = s.memory_bound();
    let (_, most) = s.server().memory_bytes();
    assert!(most < bound, "{most} bytes of memory {when}, bound {bound}");
    eprintln!("{most} bytes of memory {when}, bound {bound}");
}
