//! Another log shipper with the same work: bodies to its URL, rows in its table, CPU of its process.

use std::net::ToSocketAddrs;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::{MILLION, Options, ms};
use crate::bare::connect;
use crate::load::Load;
use crate::meter::{peak_rss_bytes, reset_peak, tree_cpu_seconds};
use crate::report::{Report, Rounds};
use crate::subject::on_a_runtime;

/// The run ends after this time without a new row.
const QUIET: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(50);

/// The shipper to measure.
pub struct Peer {
    /// Its command line, run with `sh -c exec`; `None` if it is already running.
    pub command: Option<String>,
    /// Its process id, if it is already running.
    pub pid: Option<u32>,
    /// URL that accepts NDJSON: `http://HOST:PORT/PATH`.
    pub url: String,
    /// URL of the database that it writes to.
    pub database_url: String,
    /// Its table.
    pub table: String,
}

/// Kills the peer on drop.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have exited already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Peer {
    /// Runs rounds of the same load. Counts the rows of the table, but does not empty it.
    ///
    /// # Panics
    /// If the peer or its database is unreachable.
    pub fn measure(&self, options: &Options, report: &mut Report) {
        let rest = self.url.strip_prefix("http://").expect("the URL starts with http://");
        let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
        let to = host.to_socket_addrs().expect("HOST:PORT").next().expect("an address");
        let running = self.command.as_ref().map(|command| {
            let child = Command::new("sh").arg("-c").arg(format!("exec {command}")).stdin(Stdio::null()).spawn();
            Running(child.expect("sh runs"))
        });
        let pid = running.as_ref().map(|running| running.0.id()).or(self.pid).expect("a command or a pid");
        let deadline = Instant::now() + Duration::from_secs(60);
        while std::net::TcpStream::connect(to).is_err() {
            assert!(Instant::now() < deadline, "{host} does not accept connections");
            std::thread::sleep(LOOK);
        }
        let corpus = options.corpus();
        let mut rounds = Rounds::new("peer");
        for round in 0..options.rounds {
            if round == 1 {
                rounds.forget();
            }
            reset_peak(pid);
            let (cpu, before) = (tree_cpu_seconds(pid), self.rows());
            let load = Load {
                to,
                path: format!("/{path}"),
                corpus: corpus.clone(),
                first: 0,
                bodies: options.bodies(&corpus),
                connections: options.connections,
                rate: None,
            };
            let sent = load.run();
            let (rows, ended) = self.quiet(before, sent.accepted);
            let per_million = |seconds: f64| seconds / (rows as f64 / MILLION);
            rounds.add(
                "first byte sent to last row committed",
                "events/s",
                rows as f64 / (ended - sent.started.into_std()).as_secs_f64(),
            );
            rounds.add("rows stored per event accepted", "x", rows as f64 / sent.accepted as f64);
            rounds.add("CPU of the peer", "s/M", per_million(tree_cpu_seconds(pid) - cpu));
            rounds.add("ack p50", "ms", ms(&sent, 0.5));
            rounds.add("ack p99", "ms", ms(&sent, 0.99));
            rounds.add("peak RSS", "MiB", peak_rss_bytes(pid) as f64 / f64::from(1 << 20));
        }
        report.take(rounds);
    }

    fn rows(&self) -> u64 {
        let sql = format!("SELECT count(*) FROM {}", self.table);
        on_a_runtime(async {
            let row = connect(&self.database_url).await.query_one(&sql, &[]).await.expect("the peer's table");
            row.get::<_, i64>(0).cast_unsigned()
        })
    }

    /// Waits until all rows are stored or none have been added for a while. Returns their number and the time of the
    /// last one.
    fn quiet(&self, before: u64, wanted: u64) -> (u64, Instant) {
        let (mut rows, mut since) = (0, Instant::now());
        while rows < wanted && since.elapsed() < QUIET {
            let now = self.rows() - before;
            if now != rows {
                (rows, since) = (now, Instant::now());
            }
            std::thread::sleep(LOOK);
        }
        (rows, since)
    }
}
