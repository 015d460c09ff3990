//! The program under test: the real `logweir` binary, with its own PostgreSQL and Redis.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use logweir_tests::postgres::{self, create_database};
use logweir_tests::process::{Server, Settings, free_addr};
use tempfile::TempDir;

use crate::bare::connect;
use crate::meter::{peak_rss_bytes, reset_peak, tree_cpu_seconds};

/// Polling interval for the end of a backlog.
const LOOK: Duration = Duration::from_millis(10);
/// Time limit for flushing a backlog to the slowest store.
const EMPTY_WITHIN: Duration = Duration::from_secs(300);

/// A PostgreSQL that fsyncs. The database has logweir's schema once logweir has run on it.
pub struct Database {
    server: postgres::Server,
    name: String,
}

impl Database {
    /// Starts a new server.
    #[must_use]
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// As [`Database::start`], with more settings.
    #[must_use]
    pub fn start_with(more: &[(&'static str, &str)]) -> Self {
        let settings = [("shared_buffers", "512MB"), ("max_wal_size", "1GB")].iter().chain(more);
        let settings = settings.map(|&(name, value)| (name, value.to_owned())).collect();
        let server = postgres::Server::start(&postgres::Options { fsync: true, settings, ..Default::default() });
        let name = on_a_runtime(create_database(&server.url("postgres")));
        Self { server, name }
    }

    /// Its URL.
    #[must_use]
    pub fn url(&self) -> String {
        self.server.url(&self.name)
    }

    /// Returns the CPU seconds of the server and all its backends.
    #[must_use]
    pub fn cpu_seconds(&self) -> f64 {
        tree_cpu_seconds(u32::try_from(self.server.pid()).expect("a pid"))
    }

    /// Waits until logweir has created its schema.
    ///
    /// # Panics
    /// On timeout.
    pub fn prepared(&self) {
        let deadline = Instant::now() + Duration::from_secs(60);
        const PREPARED: &str =
            "SELECT to_regclass('logs_ts_idx') IS NOT NULL AND to_regproc('logweir_logs') IS NOT NULL";
        let is_there = async || {
            let row = connect(&self.url()).await.query_one(PREPARED, &[]).await;
            row.expect("the query succeeds").get::<_, bool>(0)
        };
        while !on_a_runtime(is_there()) {
            assert!(Instant::now() < deadline, "logweir does not create its schema");
            std::thread::sleep(LOOK);
        }
    }

    /// Empties the tables of records and checkpoints, so that all rounds start in the same state.
    ///
    /// # Panics
    /// If a statement fails.
    pub fn empty(&self) {
        self.run("TRUNCATE logs");
        if self.number("SELECT count(*) FROM pg_class WHERE oid = to_regclass('logweir_late')") > 0.0 {
            self.run("TRUNCATE logweir_late");
        }
        self.run("CHECKPOINT");
    }

    /// Runs a statement.
    ///
    /// # Panics
    /// If a statement fails.
    pub fn run(&self, sql: &str) {
        on_a_runtime(async { connect(&self.url()).await.batch_execute(sql).await.expect("the statement succeeds") });
    }

    /// Sets a parameter of the database's next sessions, as `NAME = VALUE`.
    pub fn set(&self, setting: &str) {
        self.run(&format!("ALTER DATABASE {} SET {setting}", self.name));
    }

    /// Undoes [`Database::set`].
    pub fn reset(&self, setting: &str) {
        let name = setting.split(' ').next().unwrap_or_default();
        self.run(&format!("ALTER DATABASE {} RESET {name}", self.name));
    }

    /// The server's log.
    #[must_use]
    pub fn log(&self) -> String {
        self.server.log_text()
    }

    /// Returns the only value of a query, as a number.
    ///
    /// # Panics
    /// If the query fails.
    #[must_use]
    pub fn number(&self, sql: &str) -> f64 {
        on_a_runtime(async {
            let sql = format!("SELECT (({sql})::bigint)::double precision");
            connect(&self.url()).await.query_one(&sql, &[]).await.expect("the query succeeds").get(0)
        })
    }

    /// Returns the number of records, with those that wait to move into their chunk or partition.
    #[must_use]
    pub fn rows(&self) -> u64 {
        on_a_runtime(async {
            let row = connect(&self.url()).await.query_one("SELECT count(*) FROM logweir_logs()", &[]).await;
            row.expect("the query succeeds").get::<_, i64>(0).cast_unsigned()
        })
    }

    /// Stops the server and keeps its data.
    pub fn stop(&self) {
        self.server.stop();
    }

    /// Restarts it.
    pub fn restart(&self) {
        self.server.restart();
    }
}

/// Runs `future` on a runtime of this thread.
pub fn on_a_runtime<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(future)
}

/// Configuration of logweir.
#[derive(Clone, Debug, Default)]
pub struct Setup {
    settings: Settings,
}

impl Setup {
    /// Sets a key.
    #[must_use]
    pub fn with(mut self, key: &str, value: impl ToString) -> Self {
        self.settings.insert(key.to_owned(), value.to_string());
        self
    }
}

/// A running logweir with its own directory.
pub struct Subject {
    binary: PathBuf,
    settings: Settings,
    server: Server,
    dir: TempDir,
}

impl Subject {
    /// Starts it and waits until it accepts records.
    ///
    /// # Panics
    /// If it does not start.
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
            panic!("logweir exited ({exit:?}): {}", self.server.log_text());
        }
    }

    /// Kills it, runs `meanwhile`, and restarts it on the same directory with other settings, without waiting.
    pub fn restart(&mut self, meanwhile: impl FnOnce()) {
        let _ = self.server.kill();
        meanwhile();
        let log = self.dir.path().join("log");
        self.server = Server::start_binary(&self.binary, &self.settings, "", log);
    }

    /// Process id.
    #[must_use]
    pub fn server(&mut self) -> &mut Server {
        &mut self.server
    }

    /// Its data directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Returns the CPU seconds so far.
    #[must_use]
    pub fn cpu_seconds(&self) -> f64 {
        tree_cpu_seconds(self.server.pid())
    }

    /// Resets its peak memory.
    pub fn reset_peak(&self) {
        reset_peak(self.server.pid());
    }

    /// Returns the peak resident memory, in MiB.
    #[must_use]
    pub fn peak_rss_mib(&self) -> f64 {
        peak_rss_bytes(self.server.pid()) as f64 / f64::from(1 << 20)
    }

    /// Returns a counter from its metrics.
    #[must_use]
    pub fn metric(&self, name: &str) -> f64 {
        self.server.metric(name, "")
    }

    /// Returns the number of accepted and of finished (committed, dead-lettered or lost) records, over all lanes.
    #[must_use]
    pub fn accounts(&self) -> (u64, u64) {
        let status = self.server.status();
        let sum = |name: &str| -> u64 {
            let lanes = status["lanes"].as_array().map_or(&[][..], Vec::as_slice);
            lanes.iter().filter_map(|lane| lane[name].as_u64()).sum()
        };
        (sum("accepted"), sum("committed") + sum("dead_lettered") + sum("lost"))
    }

    /// Waits until every accepted record is finished, and returns the time.
    ///
    /// # Panics
    /// On timeout.
    pub fn emptied(&self) -> Instant {
        let deadline = Instant::now() + EMPTY_WITHIN;
        loop {
            let (accepted, finished) = self.accounts();
            if accepted > 0 && accepted == finished {
                return Instant::now();
            }
            assert!(Instant::now() < deadline, "{accepted} accepted, {finished} finished: {}", self.server.log_text());
            std::thread::sleep(LOOK);
        }
    }
}
