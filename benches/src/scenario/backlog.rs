//! The database is down: what that costs in memory, and how fast the backlog goes when it is back.

use std::time::Instant;

use super::{MILLION, Options};
use crate::bare::Rows;
use crate::report::{Report, Rounds};
use crate::subject::{Database, Subject, on_a_runtime};

/// A backlog of `options.events`, kill -9, a new start.
pub fn backlog(options: &Options, report: &mut Report) {
    let mut rounds = Rounds::new("backlog");
    let database = Database::start();
    let setup = options.setup.clone().with("database.url", database.url()).with("journal.quota_bytes", 64_u64 << 30);
    let corpus = options.corpus();
    let mut subject = Subject::start(&options.binary, &setup);
    // The schema is there once one body has gone through.
    let mut first = options.load(&mut subject, &corpus);
    first.bodies = 1;
    let _ = first.run();
    let _ = subject.emptied();
    let rows = Rows::new(&corpus, options.bodies(&corpus).min(10_000), options.batch_rows);
    database.empty();
    let bare = on_a_runtime(rows.copy(&database.url(), 2)).as_secs_f64() / rows.rows as f64;
    database.empty();

    database.stop();
    subject.forget_peak();
    let sent = options.load(&mut subject, &corpus).run();
    rounds.add("accepted while the database is down", "events/s", sent.accepted as f64 / sent.took.as_secs_f64());
    rounds.add("backlog", "M events", sent.accepted as f64 / MILLION);
    rounds.add_with_goal("peak RSS with the database down", "MiB", "≤ 160", subject.peak_rss_mib());

    let mut begun = Instant::now();
    subject.restart(|| {
        database.restart();
        begun = Instant::now();
    });
    let mut probe = options.load(&mut subject, &corpus);
    (probe.bodies, probe.connections) = (1, 1);
    while std::net::TcpStream::connect(probe.to).is_err() {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    let probe = probe.run();
    rounds.add_with_goal("start to first accepted request", "s", "≤ 0.5", begun.elapsed().as_secs_f64());
    let replayed = sent.accepted + probe.accepted;
    let ended = subject.emptied();
    let rate = replayed as f64 / (ended - begun).as_secs_f64();
    rounds.add("start to empty, replay", "events/s", rate);
    rounds.add_with_goal("replay of bare COPY, 2 connections", "x", "≥ 0.75", rate * bare);
    rounds.add("peak RSS at replay", "MiB", subject.peak_rss_mib());
    assert_eq!(database.rows(), replayed, "every accepted event is one row");
    report.take(rounds);
}
