//! What is measured: the real `logweir` binary, as its users start it, with a PostgreSQL and a Redis of its own.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use logweir_tests::postgres::{self, create_database};
use logweir_tests::process::{Server, Settings, free_addr};
use tempfile::TempDir;

use crate::bare::connect;
use crate::meter::{forget_peak, peak_rss_bytes, tree_cpu_seconds};

/// How often the end of a backlog is looked for.
const LOOK: Duration = Duration::from_millis(10);
/// The slowest store empties a backlog within this.
const EMPTY_WITHIN: Duration = Duration::from_secs(300);

/// A PostgreSQL that fsyncs, with a database that has logweir's schema once a logweir has run on it.
pub struct Database {
    server: postgres::Server,
    name: String,
}

impl Database {
    /// A new one.
    #[must_use]
    pub fn start() -> Self {
        let settings = vec![("shared_buffers", "512MB".to_owned()), ("max_wal_size", "1GB".to_owned())];
        let server = postgres::Server::start(&postgres::Options { fsync: true, settings, ..Default::default() });
        let name = on_a_runtime(create_database(&server.url("postgres")));
        Self { server, name }
    }

    /// Where it is.
    #[must_use]
    pub fn url(&self) -> String {
        self.server.url(&self.name)
    }

    /// CPU seconds of the server and all its backends.
    #[must_use]
    pub fn cpu_seconds(&self) -> f64 {
        tree_cpu_seconds(u32::try_from(self.server.pid()).expect("a pid"))
    }

    /// Waits until a logweir has made its schema.
    ///
    /// # Panics
    /// That takes too long.
    pub fn prepared(&self) {
        let deadline = Instant::now() + Duration::from_secs(60);
        let is_there = async || {
            let row = connect(&self.url()).await.query_one("SELECT to_regclass('logs_ts_idx') IS NOT NULL", &[]).await;
            row.expect("the question").get::<_, bool>(0)
        };
        while !on_a_runtime(is_there()) {
            assert!(Instant::now() < deadline, "logweir makes no schema");
            std::thread::sleep(LOOK);
        }
    }

    /// An empty table and a fresh checkpoint, so that each round begins alike.
    ///
    /// # Panics
    /// The server refuses.
    pub fn empty(&self) {
        self.run("TRUNCATE logs");
        self.run("CHECKPOINT");
    }

    /// Runs one statement.
    ///
    /// # Panics
    /// The server refuses.
    pub fn run(&self, sql: &str) {
        on_a_runtime(async { connect(&self.url()).await.batch_execute(sql).await.expect("the statement") });
    }

    /// Rows in the table.
    #[must_use]
    pub fn rows(&self) -> u64 {
        on_a_runtime(async {
            let row = connect(&self.url()).await.query_one("SELECT count(*) FROM logs", &[]).await.expect("count");
            row.get::<_, i64>(0).cast_unsigned()
        })
    }

    /// Stops the server; the data stay.
    pub fn stop(&self) {
        self.server.stop();
    }

    /// Starts it again.
    pub fn restart(&self) {
        self.server.restart();
    }
}

/// Runs `future` on a runtime of this thread.
pub fn on_a_runtime<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(future)
}

/// How a logweir is set up: keys of its configuration.
#[derive(Clone, Debug, Default)]
pub struct Setup {
    settings: Settings,
}

impl Setup {
    /// With this value for `key`.
    #[must_use]
    pub fn with(mut self, key: &str, value: impl ToString) -> Self {
        self.settings.insert(key.to_owned(), value.to_string());
        self
    }
}

/// A running logweir in a directory of its own.
pub struct Subject {
    binary: PathBuf,
    settings: Settings,
    server: Server,
    dir: TempDir,
}

impl Subject {
    /// Starts it and waits until it takes records.
    ///
    /// # Panics
    /// It does not start.
    #[must_use]
    pub fn start(binary: &Path, setup: &Setup) -> Self {
        let dir = tempfile::Builder::new().prefix("logweir-bench-").tempdir().expect("a temporary directory");
        let mut settings = setup.settings.clone();
        settings.insert("data_dir".to_owned(), dir.path().join("data").display().to_string());
        settings.insert("http.listen".to_owned(), free_addr().to_string());
        settings.insert("admin.listen".to_owned(), free_addr().to_string());
        settings.insert("log.level".to_owned(), "warn".to_owned());
        let server = Server::start_binary(binary, &settings, "", dir.path().join("log"));
        let mut subject = Self { binary: binary.to_owned(), settings, server, dir };
        subject.ready();
        subject
    }

    fn ready(&mut self) {
        if let Err(exit) = self.server.ready() {
            panic!("logweir ended ({exit:?}): {}", self.server.log_text());
        }
    }

    /// Kills it, lets `meanwhile` happen, and starts it again on the same directory with other settings; does not wait.
    pub fn restart(&mut self, meanwhile: impl FnOnce()) {
        let _ = self.server.kill();
        meanwhile();
        let log = self.dir.path().join("log");
        self.server = Server::start_binary(&self.binary, &self.settings, "", log);
    }

    /// The process.
    #[must_use]
    pub fn server(&mut self) -> &mut Server {
        &mut self.server
    }

    /// Where the disk is that it writes to.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// CPU seconds so far.
    #[must_use]
    pub fn cpu_seconds(&self) -> f64 {
        tree_cpu_seconds(self.server.pid())
    }

    /// Lets the peak of its memory begin anew.
    pub fn forget_peak(&self) {
        forget_peak(self.server.pid());
    }

    /// The most resident memory, in MiB.
    #[must_use]
    pub fn peak_rss_mib(&self) -> f64 {
        peak_rss_bytes(self.server.pid()) as f64 / f64::from(1 << 20)
    }

    /// A counter of its metrics.
    #[must_use]
    pub fn metric(&self, name: &str) -> f64 {
        self.server.metric(name, "")
    }

    /// Accepted and settled records, over all lanes.
    #[must_use]
    pub fn accounts(&self) -> (u64, u64) {
        let status = self.server.status();
        let sum = |name: &str| -> u64 {
            let lanes = status["lanes"].as_array().map_or(&[][..], Vec::as_slice);
            lanes.iter().filter_map(|lane| lane[name].as_u64()).sum()
        };
        (sum("accepted"), sum("committed") + sum("dead_lettered") + sum("lost"))
    }

    /// Waits until everything accepted is settled, and returns the moment.
    ///
    /// # Panics
    /// That takes too long.
    pub fn emptied(&self) -> Instant {
        let deadline = Instant::now() + EMPTY_WITHIN;
        loop {
            let (accepted, settled) = self.accounts();
            if accepted > 0 && accepted == settled {
                return Instant::now();
            }
            assert!(Instant::now() < deadline, "{accepted} accepted, {settled} settled: {}", self.server.log_text());
            std::thread::sleep(LOOK);
        }
    }
}
