//! The scripts that back a database up and restore it, as they stand in the manifests.

use std::path::PathBuf;
use std::process::Child;
use std::time::{Duration, Instant};

use crate::postgres::Server;
use crate::scenario::PATIENCE;
use crate::store::Store;

const ARCHIVE: &str = include_str!("../../deploy/kubernetes/components/backup/archive.sh");
const BACKUP: &str = include_str!("../../deploy/kubernetes/components/backup/backup.sh");
const RESTORE: &str = include_str!("../../deploy/kubernetes/jobs/restore/restore.sh");

/// The backups of one server, and the archiver while it runs.
pub struct Backup<'a> {
    server: &'a Server,
    dir: PathBuf,
    archiver: Option<Child>,
}

impl<'a> Backup<'a> {
    /// Begins to archive the WAL of `server`.
    ///
    /// # Panics
    /// The archiver does not get to it.
    #[must_use]
    pub fn begin(server: &'a Server) -> Self {
        let mut backup = Self { server, dir: server.socket_dir().join("backup"), archiver: None };
        backup.archiver = Some(backup.spawn(ARCHIVE, &[]));
        // A slot that is made while a checkpoint runs may lose its WAL to it.
        backup.until("the archiver follows", "state = 'streaming'");
        backup
    }

    /// A base backup.
    ///
    /// # Panics
    /// It fails.
    pub fn take(&self) {
        self.run(BACKUP, &[("KEEP", "2")]);
    }

    /// The server's time, in the form that a restore takes.
    ///
    /// # Panics
    /// The server does not say.
    #[must_use]
    pub fn now(&self) -> String {
        self.ask("SELECT (clock_timestamp() AT TIME ZONE 'UTC')::text")
    }

    /// Waits until everything that was committed is in the archive, and ends the archiver.
    ///
    /// # Panics
    /// It does not come there.
    pub fn end(&mut self) {
        let place = self.ask("SELECT pg_current_wal_flush_lsn()::text");
        self.until("the archiver has it", &format!("flush_lsn >= '{place}'"));
        self.stop_archiver();
    }

    /// The volume of the database is lost: its data directory is gone.
    ///
    /// # Panics
    /// It cannot be removed.
    pub fn destroy(&self) {
        self.server.stop_immediately();
        std::fs::remove_dir_all(self.server.data()).expect("the data directory can be removed");
    }

    /// Makes the database what it was at `moment`, and starts it.
    ///
    /// # Panics
    /// It fails.
    pub fn restore(&self, moment: &str) {
        self.run(RESTORE, &[("TARGET_TIME", moment)]);
        self.server.restart();
    }

    fn store(&self) -> Store {
        Store::Postgres(self.server.url("postgres"))
    }

    fn ask(&self, sql: &str) -> String {
        self.store().rows(sql).expect("an answer").concat().concat()
    }

    fn spawn(&self, script: &str, environment: &[(&str, &str)]) -> Child {
        let dir = self.dir.to_str().expect("a path of ours");
        let environment: Vec<_> = environment.iter().copied().chain([("BACKUP_DIR", dir)]).collect();
        self.server.script(script, &environment, &self.log())
    }

    fn run(&self, script: &str, environment: &[(&str, &str)]) {
        let status = self.spawn(script, environment).wait().expect("it is waited for once");
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
            assert!(Instant::now() < deadline, "in vain: {what}: {}", self.log_text());
            // Behind the end of a segment nothing is sent until something is written.
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
