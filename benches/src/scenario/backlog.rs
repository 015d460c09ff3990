//! The database is down: memory use, and how fast the backlog is flushed when it is back.

use std::time::Instant;

use super::{MILLION, Options};
use crate::bare::Rows;
use crate::report::{Report, Rounds};
use crate::subject::{Database, Subject, on_a_runtime};

/// Builds a backlog of `options.events`, kills the server and restarts it.
pub fn backlog(options: &Options, report: &mut Report) {
    let mut rounds = Rounds::new("backlog");
    let database = Database::start();
    let setup = options.setup.clone().with("database.url", database.url()).with("journal.quota_bytes", 64_u64 << 30);
    let corpus = options.corpus();
    let mut subject = Subject::start(&options.binary, &setup);
    // The schema exists once one body has been stored.
    let mut first = options.load(&mut subject, &corpus);
    first.bodies = 1;
    let _ = first.run();
    let _ = subject.emptied();
    let rows = Rows::new(&corpus, options.bodies(&corpus).min(10_000), options.batch_rows);
    database.empty();
    let bare = on_a_runtime(rows.copy(&database.url(), 2)).as_secs_f64() / rows.rows as f64;
    database.empty();

    database.stop();
    subject.reset_peak();
    let sent = options.load(&mut subject, &corpus).run();
    rounds.add("accepted while the database is down", "events/s", sent.accepted as f64 / sent.took.as_secs_f64());
    rounds.add("backlog", "M events", sent.accepted as f64 / MILLION);
    rounds.add_with_goal("peak RSS with the database down", "MiB", "≤ 160", subject.peak_rss_mib());

    let mut started = Instant::now();
    subject.restart(|| {
        database.restart();
        started = Instant::now();
    });
    let mut probe = options.load(&mut subject, &corpus);
    (probe.bodies, probe.connections) = (1, 1);
    while std::net::TcpStream::connect(probe.to).is_err() {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    let probe = probe.run();
    rounds.add_with_goal("start to first accepted request", "s", "≤ 0.5", started.elapsed().as_secs_f64());
    let replayed = sent.accepted + probe.accepted;
    let ended = subject.emptied();
    let rate = replayed as f64 / (ended - started).as_secs_f64();
    rounds.add("replay, from start to empty backlog", "events/s", rate);
    rounds.add_with_goal("replay relative to bare COPY, 2 connections", "x", "≥ 0.75", rate * bare);
    rounds.add("peak RSS during replay", "MiB", subject.peak_rss_mib());
    assert_eq!(database.rows(), replayed, "not every accepted event is a row");
    report.take(rounds);
}
