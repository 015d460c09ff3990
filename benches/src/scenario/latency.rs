//! Latency of acknowledgments, and until a row is visible, with PostgreSQL.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hdrhistogram::Histogram;
use tokio::time::Instant;

use super::{Options, ms};
use crate::bare::connect;
use crate::load::Receipt;
use crate::meter::histogram;
use crate::probe::Beside;
use crate::report::{Report, Rounds};
use crate::subject::{Database, Subject, on_a_runtime};

/// Duration of each rate.
const HELD: f64 = 5.0;
/// Interval between two writes of the probe.
const PROBE_INTERVAL: Duration = Duration::from_micros(4_400);
/// Interval between two reads of the cursors.
const LOOK: Duration = Duration::from_millis(4);

/// Measures 50 k and 200 k events/s on a schedule, then the maximum rate.
pub fn open_loop(options: &Options, report: &mut Report) {
    let database = Database::start();
    let mut subject = Subject::start(&options.binary, &options.setup.clone().with("database.url", database.url()));
    database.prepared();
    for (name, rate) in [("at 50 k", Some(50_000.0)), ("at 200 k", Some(200_000.0)), ("saturated", None)] {
        let mut rounds = Rounds::new(name);
        for round in 0..options.rounds.min(4) {
            if round == 1 {
                rounds.forget();
            }
            one(options, &database, &mut subject, rate, &mut rounds);
        }
        report.take(rounds);
    }
}

fn one(options: &Options, database: &Database, subject: &mut Subject, rate: Option<f64>, rounds: &mut Rounds) {
    let corpus = options.corpus();
    database.empty();
    let mut load = options.load(subject, &corpus);
    load.rate = rate;
    if let Some(rate) = rate {
        load.bodies = (HELD * rate) as u64 / corpus.events_per_body();
    }
    let watch = rate.map(|_| Watch::start(database.url()));
    let probe = Beside::start(subject.dir(), options.body_bytes, PROBE_INTERVAL);
    let sent = load.run();
    let probe = probe.stop();
    let _ = subject.emptied();
    let probe_ms = |quantile| probe.value_at_quantile(quantile) as f64 / 1000.0;
    for (name, quantile) in [("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999)] {
        rounds.add(format!("ack {name}"), "ms", ms(&sent, quantile));
        rounds.add(format!("concurrent bare fdatasync {name}"), "ms", probe_ms(quantile));
        let goal = match (rate, name) {
            (Some(_), "p50") => Some("≤ 2"),
            (Some(_), "p99") => Some("≤ 2.5"),
            (None, "p99") => Some("≤ 10"),
            _ => None,
        };
        rounds.add_with_goal(
            format!("ack {name} relative to bare fdatasync"),
            "x",
            goal,
            ms(&sent, quantile) / probe_ms(quantile),
        );
    }
    if let Some(watch) = watch {
        let visible = watch.stop(&sent.receipts);
        let ms = |quantile| visible.value_at_quantile(quantile) as f64 / 1000.0;
        rounds.add("acknowledged to visible in the table p50", "ms", ms(0.5));
        let goal = if rate == Some(50_000.0) { Some("≤ 250") } else { None };
        rounds.add_with_goal("acknowledged to visible in the table p99", "ms", goal, ms(0.99));
    }
}

/// Polls the lanes' cursors, which move in the rows' transactions.
struct Watch {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<BTreeMap<u64, Vec<(Instant, u64)>>>,
}

impl Watch {
    fn start(url: String) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let look = async move {
            let client = connect(&url).await;
            let cursors = client.prepare("SELECT lane, last_seq FROM logweir_lane").await.expect("the lanes");
            let mut seen: BTreeMap<u64, Vec<(Instant, u64)>> = BTreeMap::new();
            while !stopped.load(Ordering::Relaxed) {
                for row in client.query(&cursors, &[]).await.expect("the cursors") {
                    let lane = u64::try_from(row.get::<_, i32>(0)).expect("a lane");
                    seen.entry(lane).or_default().push((Instant::now(), row.get::<_, i64>(1).cast_unsigned()));
                }
                tokio::time::sleep(LOOK).await;
            }
            seen
        };
        Self { stop, thread: std::thread::spawn(move || on_a_runtime(look)) }
    }

    /// Returns the microseconds from each receipt to the first read that included its frame.
    fn stop(self, receipts: &[Receipt]) -> Histogram<u64> {
        // The caller has waited for the last rows; one more read includes them.
        std::thread::sleep(2 * LOOK);
        self.stop.store(true, Ordering::Relaxed);
        let seen = self.thread.join().expect("the watch does not panic");
        let mut visible = histogram();
        for receipt in receipts {
            let looks = &seen[&receipt.lane];
            let first = looks.partition_point(|&(_, seq)| seq < receipt.seq);
            let (at, _) = looks.get(first).expect("every frame is committed");
            visible.saturating_record(u64::try_from(at.saturating_duration_since(receipt.at).as_micros()).unwrap_or(0));
        }
        visible
    }
}
