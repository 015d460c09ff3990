//! From the first byte sent to the last row committed, compared with a bare COPY of the same rows.

use std::time::Instant;

use logweir_tests::redis::Redis;

use super::{MILLION, Options, ms};
use crate::bare::Rows;
use crate::corpus::Corpus;
use crate::meter::tree_cpu_seconds;
use crate::probe;
use crate::report::{Report, Rounds};
use crate::subject::{Database, Subject, on_a_runtime};

/// Writes of the disk probe before each round.
const PROBE_WRITES: u32 = 300;

/// A run with all events.
pub(super) struct Run {
    pub(super) events: f64,
    seconds: f64,
    pub(super) own_cpu: f64,
    pub(super) database_cpu: f64,
}

impl Run {
    pub(super) fn rate(&self) -> f64 {
        self.events / self.seconds
    }
}

/// Measures HTTP → journal → `PostgreSQL`, with a bare COPY over one and two connections in each round.
pub fn postgres(options: &Options, report: &mut Report) {
    let database = Database::start();
    let mut subject = Subject::start(&options.binary, &options.setup.clone().with("database.url", database.url()));
    database.prepared();
    let corpus = options.corpus();
    let rows = Rows::new(&corpus, options.bodies(&corpus), options.batch_rows);
    let mut rounds = Rounds::new("postgres");
    for round in 0..options.rounds {
        if round == 1 {
            rounds.forget();
        }
        let [bare_one, bare_two] = [1, 2].map(|connections| bare(&database, &rows, connections));
        database.empty();
        let run = measure(options, &mut subject, &corpus, Some(&database), &mut rounds);
        assert_eq!(database.rows() as f64, run.events, "not every accepted event is a row");
        rounds.add_with_goal("relative to bare COPY, 2 connections", "x", "≥ 0.85", run.rate() / bare_two.rate());
        rounds.add_with_goal(
            "CPU of logweir relative to PostgreSQL's during the bare COPY",
            "x",
            "≤ 0.25",
            run.own_cpu / bare_two.database_cpu,
        );
        rounds.add("relative to bare COPY, 1 connection", "x", run.rate() / bare_one.rate());
        rounds.add("bare COPY, 2 connections", "events/s", bare_two.rate());
        rounds.add("bare COPY, 1 connection", "events/s", bare_one.rate());
        rounds.add("CPU of PostgreSQL during the bare COPY, 2 connections", "s/M", bare_two.database_cpu);
    }
    report.take(rounds);
    drain(options, &mut subject, &corpus, report);
}

/// Sends SIGTERM right after the last acknowledgment and measures how long the backlog takes.
fn drain(options: &Options, subject: &mut Subject, corpus: &Corpus, report: &mut Report) {
    let mut rounds = Rounds::new("drain");
    let _ = options.load(subject, corpus).run();
    let (accepted, finished) = subject.accounts();
    let started = Instant::now();
    subject.server().signal(libc::SIGTERM);
    let exit = subject.server().wait(std::time::Duration::from_secs(120));
    assert_eq!(exit.code(), Some(0), "the drain failed");
    let backlog = (accepted - finished) as f64 / MILLION;
    rounds.add("backlog at SIGTERM", "M events", backlog);
    rounds.add("SIGTERM to exit, per million of backlog", "s/M", started.elapsed().as_secs_f64() / backlog.max(0.001));
    report.take(rounds);
}

/// Measures the embedded default, SQLite.
pub fn sqlite(options: &Options, report: &mut Report) {
    let mut subject = Subject::start(&options.binary, &options.setup);
    let corpus = options.corpus();
    let mut rounds = Rounds::new("sqlite");
    for round in 0..options.rounds {
        if round == 1 {
            rounds.forget();
        }
        let _ = measure(options, &mut subject, &corpus, None, &mut rounds);
    }
    report.take(rounds);
}

/// Measures the cost of the cache writer: alternately with and without Redis.
pub fn redis(options: &Options, report: &mut Report) {
    let (database, redis) = (Database::start(), Redis::start_with(&["--save", "", "--appendonly", "no"]));
    let setup = options.setup.clone().with("database.url", database.url());
    let corpus = options.corpus();
    let mut without = Subject::start(&options.binary, &setup);
    let mut with = Subject::start(&options.binary, &setup.with("cache.url", redis.url()));
    database.prepared();
    let mut rounds = Rounds::new("redis");
    let mut ignored = Rounds::new("");
    for round in 0..options.rounds {
        if round == 1 {
            rounds.forget();
        }
        database.empty();
        let plain = measure(options, &mut without, &corpus, Some(&database), &mut ignored);
        database.empty();
        let before = tree_cpu_seconds(redis.pid());
        let cached = measure(options, &mut with, &corpus, Some(&database), &mut rounds);
        let redis_cpu = (tree_cpu_seconds(redis.pid()) - before) / (cached.events / MILLION);
        let extra = cached.own_cpu + redis_cpu - plain.own_cpu;
        rounds.add_with_goal("relative to the rate without Redis", "x", "≥ 0.90", cached.rate() / plain.rate());
        rounds.add_with_goal("additional CPU with Redis, including Redis's own", "s/M", "≤ 0.4", extra);
        rounds.add("CPU of Redis", "s/M", redis_cpu);
    }
    report.take(rounds);
}

fn bare(database: &Database, rows: &Rows, connections: usize) -> Run {
    database.empty();
    let cpu = database.cpu_seconds();
    let took = on_a_runtime(rows.copy(&database.url(), connections));
    let events = rows.rows as f64;
    let database_cpu = (database.cpu_seconds() - cpu) / (events / MILLION);
    Run { events, seconds: took.as_secs_f64(), own_cpu: 0.0, database_cpu }
}

pub(super) fn measure(
    options: &Options,
    subject: &mut Subject,
    corpus: &Corpus,
    database: Option<&Database>,
    rounds: &mut Rounds,
) -> Run {
    let probe = probe::alone(subject.dir(), options.body_bytes, PROBE_WRITES);
    let database_cpu = || database.map_or(0.0, Database::cpu_seconds);
    let journal_bytes = subject.metric("logweir_journal_appended_bytes_total");
    subject.reset_peak();
    let before = (subject.cpu_seconds(), database_cpu());
    let sent = options.load(subject, corpus).run();
    let ended = subject.emptied();
    let events = sent.accepted as f64;
    let per_million = |seconds: f64| seconds / (events / MILLION);
    let run = Run {
        events,
        seconds: (ended - sent.started.into_std()).as_secs_f64(),
        own_cpu: per_million(subject.cpu_seconds() - before.0),
        database_cpu: per_million(database_cpu() - before.1),
    };
    let p50_probe = probe.value_at_quantile(0.5) as f64 / 1000.0;
    let name = if database.is_some() { None } else { Some("≥ 400 k") };
    rounds.add_with_goal("first byte sent to last row committed", "events/s", name, run.rate());
    rounds.add_with_goal("CPU of logweir", "s/M", "≤ 0.5", run.own_cpu);
    if database.is_some() {
        rounds.add("CPU of PostgreSQL", "s/M", run.database_cpu);
    }
    rounds.add("CPU of the load generator", "s/M", per_million(sent.cpu_seconds));
    rounds.add("acceptance rate", "events/s", events / sent.took.as_secs_f64());
    rounds.add("ack p50", "ms", ms(&sent, 0.5));
    rounds.add("ack p99", "ms", ms(&sent, 0.99));
    rounds.add("ack p99.9", "ms", ms(&sent, 0.999));
    rounds.add("ack p99 relative to bare fdatasync p50, alone", "x", ms(&sent, 0.99) / p50_probe);
    rounds.add("rejected with a retry", "requests", sent.retried as f64);
    rounds.add_with_goal("peak RSS", "MiB", "≤ 128", subject.peak_rss_mib());
    let journal_bytes = subject.metric("logweir_journal_appended_bytes_total") - journal_bytes;
    rounds.add("bytes in the journal per event", "B", journal_bytes / events);
    run
}
