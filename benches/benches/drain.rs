//! How long the way down takes: an embedded logweir with SQLite that has just taken so many records in.

use std::time::Instant;

use logweir::config::Config;
use logweir::logweir::Logweir;
use logweir_benches::corpus::Corpus;

const BODIES: u64 = 1_000;
const ROUNDS: usize = 5;

fn main() {
    let mut corpus = Corpus::of_bodies(300, 64 << 10, 1_700_000_000_000_000);
    let mut seconds = Vec::new();
    for _ in 0..ROUNDS {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (accepted, took) = actix_rt::System::new().block_on(async {
            let logweir = Logweir::start(Config::in_dir(dir.path())).await.expect("it starts");
            let mut accepted = 0;
            for number in 0..BODIES {
                let receipt = logweir.ingest(corpus.body(number).to_vec()).await.expect("it is taken");
                accepted += receipt.report.accepted;
            }
            let begun = Instant::now();
            let stopped = logweir.stop().await;
            assert_eq!(stopped.accounting.committed, u64::from(accepted), "all of it is in the database");
            (accepted, begun.elapsed())
        });
        seconds.push(took.as_secs_f64() / f64::from(accepted) * 1e6);
    }
    seconds.sort_by(f64::total_cmp);
    println!(
        "drain into SQLite, seconds per million accepted just before: {:.2} ({:.2} .. {:.2})",
        seconds[ROUNDS / 2],
        seconds[0],
        seconds[ROUNDS - 1]
    );
}
