//! Seeded chaos under load, in any mix:
//!
//! - The database: operators' statements, dropped tables, killed sessions, restarts, failovers, restores to an earlier
//!   time, PgBouncer, a full disk, a slow disk, networks, rotated secrets and certificates.
//! - The journal's disk: full, becoming full, over its quota, errors of reads, writes and fsyncs, an fsync that hangs or is
//!   slow, writes of a part, power cuts, a flipped bit, damaged bytes, a page that cannot be read.
//! - The machine: steps of its clock or of the program's, no descriptors, idle connections, the program killed, ended and
//!   frozen.
//!
//! Everything that was acknowledged is in the table or among the dead letters, once; or was, when an operator dropped the
//! table; or was in a frame of the journal that the test damaged, and is counted as lost.
//!
//! ```sh
//! LOGWEIR_CHAOS_S=1800 cargo test -p logweir-tests --all-features --test chaos everything -- --nocapture
//! ```
//!
//! `LOGWEIR_CHAOS_SEED` repeats a plan; `LOGWEIR_CHAOS_ACTS=commit_late,clock_step` restricts it to kinds of acts, and
//! `LOGWEIR_CHAOS_ACTS=-snapshot` leaves some out. `LOGWEIR_CHAOS_FAULTS=mutation.cursor_outside_tx=return` gives the
//! program a bug, which must be found; so must `mutation.skip_fsync=return` with `LOGWEIR_CHAOS_ACTS=journal_power_lost`.
//! What cannot be done, here or at that moment, is listed as skipped, with the reason.

use std::time::Duration;

use logweir_tests::chaos::{Chaos, Kinds, chaos};
use logweir_tests::client::Load;
use logweir_tests::oracle::Violation;
use logweir_tests::scenario::on_postgres;

fn variable<T: std::str::FromStr>(name: &str) -> Option<T> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name} must be a number, but is {value:?}")))
}

#[test]
fn everything_acknowledged_is_stored_once_whatever_the_database_and_its_people_do() {
    let seed = variable("LOGWEIR_CHAOS_SEED").unwrap_or_else(|| u64::from(rand::random::<u32>()));
    let seconds = variable("LOGWEIR_CHAOS_S").unwrap_or(20);
    let text = |name: &str| std::env::var(name).unwrap_or_default();
    let (acts, faults) = (text("LOGWEIR_CHAOS_ACTS"), text("LOGWEIR_CHAOS_FAULTS"));
    let kinds = Kinds::of(&acts);
    let acts = if acts.is_empty() { acts } else { format!("LOGWEIR_CHAOS_ACTS={acts} ") };
    let repeat = format!(
        "{acts}LOGWEIR_CHAOS_SEED={seed} LOGWEIR_CHAOS_S={seconds} \
         cargo test -p logweir-tests --all-features --test chaos everything -- --nocapture"
    );
    eprintln!("{repeat}");
    let report = chaos(&Chaos { seed, lasts: Duration::from_secs(seconds), kinds, faults });
    println!("{}", report.text());
    let (done, not_done) = report.counts.values().fold((0, 0), |(a, b), (c, d)| (a + c, b + d));
    assert!(done > not_done, "{done} acts were done, {not_done} were not possible");
    assert!(report.violations.is_empty(), "the contract is violated; repeat with:\n{repeat}");
}

/// Both the compare-and-set and the guard of a flush, of which each suffices alone.
const NO_CAS: &str = "mutation.no_cas=return;mutation.no_guard=return";

#[test]
fn chaos_detects_a_missing_compare_and_set() {
    let kinds = Kinds::of("commit_late");
    let run = |faults: &str, seed| {
        let bug = Chaos { seed, lasts: Duration::from_secs(8), kinds: kinds.clone(), faults: faults.to_owned() };
        chaos(&bug).violations
    };
    assert_eq!(run("", 1), []);
    let found = (1..=20).any(|seed| run(NO_CAS, seed).iter().any(|found| matches!(found, Violation::Doubled(_))));
    assert!(found, "no record was stored twice");
}

#[test]
fn a_flush_reads_what_is_committed_whatever_the_default_of_its_role() {
    on_postgres("serializable by default", |s| {
        s.start();
        s.load(Load { posts_max: 1, ..Load::default() }).finish();
        s.stored();
        s.postgres().execute(
            "CREATE FUNCTION only_read_committed() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
             IF current_setting('transaction_isolation') <> 'read committed' THEN RAISE EXCEPTION 'serializable'; END IF; \
             RETURN NULL; END $$; \
             CREATE TRIGGER isolation BEFORE INSERT ON logs EXECUTE FUNCTION only_read_committed(); \
             ALTER ROLE postgres SET default_transaction_isolation = serializable",
        );
        s.start();
        s.load(Load { posts_max: 5, ..Load::default() }).finish();
        s.assert_contract();
    });
}
