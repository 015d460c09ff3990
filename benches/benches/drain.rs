//! Duration of a drain: from the request to the end of an embedded logweir with SQLite that has records in flight,
//! compared with bare inserts of as many rows.

use std::cell::Cell;
use std::path::Path;
use std::time::{Duration, Instant};

use futures_util::{StreamExt, stream};
use logweir::config::Config;
use logweir::{Accounting, Logweir};
use logweir_benches::corpus::Corpus;
use logweir_benches::ratio::timed_ratio;
use tempfile::TempDir;

mod bare_sqlite;

use bare_sqlite::BareSqlite;

/// Bodies accepted before the request; part of them are committed by then.
const BODIES: u64 = 1_000;
/// Concurrent bodies, so that intake runs ahead of the database.
const SENDERS: usize = 16;

/// Accepts the bodies, then drains. Returns the number of records in flight at the request, and the duration.
async fn drain(dir: &Path, corpus: &mut Corpus) -> (u64, Duration) {
    let logweir = Logweir::start(Config::in_dir(dir)).await.expect("logweir starts");
    let sent = stream::iter(0..BODIES).map(|number| logweir.ingest(corpus.body(number).to_vec()));
    sent.buffered(SENDERS).for_each(async |answer| drop(answer.expect("the body is accepted"))).await;
    let in_flight = Accounting::of(&logweir.progress().snapshot(&logweir.journal().lanes())).backlog;
    let started = Instant::now();
    let stopped = logweir.stop().await;
    let took = started.elapsed();
    assert_eq!(stopped.accounting.committed, BODIES * corpus.events_per_body(), "not all records were committed");
    (in_flight, took)
}

fn on_the_disk() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a temporary directory")
}

fn main() {
    let mut corpus = Corpus::of_bodies(300, 64 << 10, 1_700_000_000_000_000);
    let bare_corpus = corpus.clone();
    let mut seconds_per_million = Vec::new();
    let in_flight = Cell::new(0);
    let ours = || {
        let dir = on_the_disk();
        let (records, took) = actix_rt::System::new().block_on(drain(dir.path(), &mut corpus));
        in_flight.set(records);
        seconds_per_million.push(took.as_secs_f64() / (records as f64 / 1e6));
        took
    };
    let bare = || {
        let dir = on_the_disk();
        let mut bare = BareSqlite::open(&dir.path().join("bare.db"), &bare_corpus);
        bare.insert(in_flight.get() / bare_corpus.events_per_body())
    };
    timed_ratio("drain into SQLite / bare inserts of as many rows", ours, bare);
    seconds_per_million.sort_by(f64::total_cmp);
    println!(
        "drain into SQLite, seconds per million records in flight: {:.2} ({:.2}..{:.2}), {} in flight in the last round",
        seconds_per_million[seconds_per_million.len() / 2],
        seconds_per_million[0],
        seconds_per_million[seconds_per_million.len() - 1],
        in_flight.get()
    );
}
