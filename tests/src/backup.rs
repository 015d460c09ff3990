//! Runs the backup and restore scripts of the manifests.

use std::path::PathBuf;
use std::process::Child;
use std::time::{Duration, Instant};

use crate::postgres::Server;
use crate::scenario::PATIENCE;
use crate::store::Store;

const ARCHIVE: &str = include_str!("../../deploy/kubernetes/components/backup/archive.sh");
const BACKUP: &str = include_str!("../../deploy/kubernetes/components/backup/backup.sh");
const RESTORE: &str = include_str!("../../deploy/kubernetes/jobs/restore/restore.sh");

/// The backups of one server, and its archiver.
pub struct Backup<'a> {
    server: &'a Server,
    dir: PathBuf,
    archiver: Option<Child>,
}

impl<'a> Backup<'a> {
    /// Starts to archive the WAL of `server`.
    ///
    /// # Panics
    /// If the archiver does not start streaming in time.
    #[must_use]
    pub fn begin(server: &'a Server) -> Self {
        let mut backup = Self { server, dir: server.socket_dir().join("backup"), archiver: None };
        backup.archiver = Some(backup.spawn(ARCHIVE, &[]));
        // A slot that is created during a checkpoint can lose its WAL to it.
        backup.until("the archiver streams", "state = 'streaming'");
        backup
    }

    /// Takes a base backup.
    ///
    /// # Panics
    /// If the script fails.
    pub fn take(&self) {
        self.run(BACKUP, &[("KEEP", "2")]);
    }

    /// Returns the server's time, in the format of `TARGET_TIME`.
    ///
    /// # Panics
    /// If the query fails.
    #[must_use]
    pub fn now(&self) -> String {
        self.ask("SELECT (clock_timestamp() AT TIME ZONE 'UTC')::text")
    }

    /// Waits until everything committed is archived, then stops the archiver.
    ///
    /// # Panics
    /// On timeout.
    pub fn end(&mut self) {
        let place = self.ask("SELECT pg_current_wal_flush_lsn()::text");
        self.until("the archive is complete", &format!("flush_lsn >= '{place}'"));
        self.stop_archiver();
    }

    /// Deletes the data directory, to simulate the loss of the database's volume.
    ///
    /// # Panics
    /// If it cannot be deleted.
    pub fn destroy(&self) {
        self.server.stop_immediately();
        std::fs::remove_dir_all(self.server.data()).expect("the data directory can be removed");
    }

    /// Restores the database to `moment` and starts it.
    ///
    /// # Panics
    /// If the script fails.
    pub fn restore(&self, moment: &str) {
        self.run(RESTORE, &[("TARGET_TIME", moment)]);
        self.server.restart();
    }

    fn store(&self) -> Store {
        Store::Postgres(self.server.url("postgres"))
    }

    fn ask(&self, sql: &str) -> String {
        self.store().rows(sql).expect("the query succeeds").concat().concat()
    }

    fn spawn(&self, script: &str, environment: &[(&str, &str)]) -> Child {
        let dir = self.dir.to_str().expect("the path is UTF-8");
        let environment: Vec<_> = environment.iter().copied().chain([("BACKUP_DIR", dir)]).collect();
        self.server.script(script, &environment, &self.log())
    }

    fn run(&self, script: &str, environment: &[(&str, &str)]) {
        let status = self.spawn(script, environment).wait().expect("the script can be waited for");
        assert!(status.success(), "{status}: {}", self.log_text());
    }

    fn log(&self) -> PathBuf {
        self.server.socket_dir().join("backup.log")
    }

    fn log_text(&self) -> String {
        std::fs::read_to_string(self.log()).unwrap_or_default()
    }

    fn until(&self, what: &str, condition: &str) {
        let sql = format!("SELECT 1 FROM pg_stat_replication WHERE application_name = 'pg_receivewal' AND {condition}");
        let deadline = Instant::now() + PATIENCE;
        while self.store().rows(&sql).is_ok_and(|rows| rows.is_empty()) {
            assert!(Instant::now() < deadline, "timed out waiting until {what}: {}", self.log_text());
            // At the end of a segment nothing is sent until something is written.
            self.server.execute("SELECT pg_logical_emit_message(true, 'test', '')");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn stop_archiver(&mut self) {
        let Some(mut archiver) = self.archiver.take() else { return };
        // SAFETY: signals a child that has not been waited for, so the pid is its own.
        unsafe { libc::kill(i32::try_from(archiver.id()).expect("a pid is an i32"), libc::SIGTERM) };
        let _ = archiver.wait();
    }
}

impl Drop for Backup<'_> {
    fn drop(&mut self) {
        self.stop_archiver();
    }
}
