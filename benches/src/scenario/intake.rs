//! Intake alone: parse, journal, acknowledge; the store discards the records.

use super::{MILLION, Options, ms};
use crate::corpus::Corpus;
use crate::probe;
use crate::report::{Report, Rounds};
use crate::subject::Subject;

const PROBE_WRITES: u32 = 1000;
/// Connections for single events.
const SMALL_CONNECTIONS: usize = 64;
/// Requests with single events per round.
const SMALL_REQUESTS: u64 = 100_000;

/// Sends full bodies.
pub fn large(options: &Options, report: &mut Report) {
    let mut rounds = Rounds::new("intake");
    let corpus = options.corpus();
    // More events than elsewhere, since a round would take only a second.
    let bodies = 2 * options.bodies(&corpus);
    run(options, &corpus, bodies, options.connections, &mut rounds, |rounds, rate, _| {
        rounds.add_with_goal("accepted", "events/s", "≥ 2.5 M", rate);
    });
    report.take(rounds);
}

/// Sends one event per request over many connections.
pub fn small(options: &Options, report: &mut Report) {
    let mut rounds = Rounds::new("small");
    let corpus = Corpus::new(options.event_bytes, 1, options.base_us);
    run(options, &corpus, SMALL_REQUESTS, SMALL_CONNECTIONS, &mut rounds, |rounds, rate, _| {
        rounds.add_with_goal("acknowledged, one event each, 64 connections", "requests/s", "≥ 25 k", rate);
    });
    report.take(rounds);
}

fn run(
    options: &Options,
    corpus: &Corpus,
    bodies: u64,
    connections: usize,
    rounds: &mut Rounds,
    add: impl Fn(&mut Rounds, f64, f64),
) {
    let mut subject = Subject::start(&options.binary, &options.setup.clone().with("database.url", "blackhole:"));
    for round in 0..options.rounds {
        if round == 1 {
            rounds.forget();
        }
        let probe = probe::alone(subject.dir(), corpus.body_bytes(), PROBE_WRITES);
        let probe_p50 = probe.value_at_quantile(0.5) as f64 / 1000.0;
        subject.reset_peak();
        let cpu = subject.cpu_seconds();
        let mut load = options.load(&mut subject, corpus);
        (load.bodies, load.connections) = (bodies, connections);
        let sent = load.run();
        let _ = subject.emptied();
        let events = sent.accepted as f64;
        add(rounds, events / sent.took.as_secs_f64(), events);
        rounds.add("CPU of logweir", "s/M", (subject.cpu_seconds() - cpu) / (events / MILLION));
        rounds.add("CPU of the load generator", "s/M", sent.cpu_seconds / (events / MILLION));
        rounds.add("ack p50", "ms", ms(&sent, 0.5));
        rounds.add("ack p99", "ms", ms(&sent, 0.99));
        rounds.add("bare fdatasync p50, alone", "ms", probe_p50);
        rounds.add_with_goal("ack p99 relative to bare fdatasync p50", "x", "≤ 20", ms(&sent, 0.99) / probe_p50);
        rounds.add("rejected with a retry", "requests", sent.retried as f64);
        rounds.add("peak RSS", "MiB", subject.peak_rss_mib());
    }
}
