//! A PostgreSQL server of one test's own, on the loopback, run by the user `postgres` where we are root.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::process::free_addr;
use crate::store::Store;

const BIN: &str = "/usr/lib/postgresql/15/bin";

/// The server; ended with its value.
pub struct Postgres {
    dir: TempDir,
    addr: SocketAddr,
    server: Option<Child>,
}

impl Postgres {
    /// A fresh cluster, running.
    ///
    /// # Panics
    /// There is no PostgreSQL 15 here.
    #[must_use]
    pub fn start() -> Self {
        let dir = tempfile::Builder::new().prefix("logweir-pg-").tempdir().expect("a temporary directory");
        if let Some(uid) = postgres_uid() {
            std::os::unix::fs::chown(dir.path(), Some(uid), None).expect("the directory is ours");
        }
        let data = dir.path().join("data");
        let made = program("initdb")
            .arg("-D")
            .arg(&data)
            .args(["-U", "postgres", "--auth=trust", "-N", "-E", "UTF8", "--no-locale"])
            .output()
            .expect("initdb runs");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let mut server = Self { addr: free_addr(), dir, server: None };
        server.configure();
        server.restart();
        server
    }

    /// Where it listens.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Its URL.
    #[must_use]
    pub fn url(&self) -> String {
        self.url_through(self.addr)
    }

    /// Its URL through something that stands before it.
    #[must_use]
    pub fn url_through(&self, addr: SocketAddr) -> String {
        format!("postgres://postgres@{addr}/postgres")
    }

    /// Runs a statement.
    ///
    /// # Panics
    /// The server refuses it.
    pub fn execute(&self, sql: &str) {
        Store::Postgres(self.url()).rows(sql).expect("the statement");
    }

    /// Ends it as a crash does: SIGKILL for the postmaster; its children see that and follow.
    pub fn kill(&mut self) {
        if let Some(mut server) = self.server.take() {
            let _ = server.kill();
            let _ = server.wait();
        }
    }

    /// Starts it again and waits until it answers.
    ///
    /// # Panics
    /// It does not.
    pub fn restart(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while Store::Postgres(self.url()).rows("SELECT 1").is_err() {
            assert!(Instant::now() < deadline, "PostgreSQL does not start, see {}", self.dir.path().display());
            // After a crash it refuses to start while an old child is still about.
            if self.server.as_mut().is_none_or(|server| server.try_wait().is_ok_and(|exit| exit.is_some())) {
                self.server = Some(self.spawn());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Restarts it without asking its clients (SIGQUIT).
    pub fn restart_immediately(&mut self) {
        if let Some(mut server) = self.server.take() {
            // SAFETY: `kill` touches no memory, and our own child is not reaped yet.
            unsafe { libc::kill(i32::try_from(server.id()).expect("a pid"), libc::SIGQUIT) };
            let _ = server.wait();
        }
        self.restart();
    }

    fn spawn(&self) -> Child {
        let log = std::fs::File::options().create(true).append(true).open(self.dir.path().join("log"));
        let log = log.expect("a log");
        program("postgres")
            .arg("-D")
            .arg(self.dir.path().join("data"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("postgres runs")
    }

    fn configure(&self) {
        let mut text = String::new();
        for (key, value) in [
            ("listen_addresses", "'127.0.0.1'".to_owned()),
            ("port", self.addr.port().to_string()),
            ("unix_socket_directories", "''".to_owned()),
            // A crash of the server is tested, a crash of its disk is not.
            ("fsync", "off".to_owned()),
            ("shared_buffers", "32MB".to_owned()),
            ("max_wal_size", "256MB".to_owned()),
        ] {
            let _ = writeln!(text, "{key} = {value}");
        }
        let file = self.dir.path().join("data/postgresql.auto.conf");
        std::fs::write(file, text).expect("its configuration");
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.kill();
    }
}

fn program(name: &str) -> Command {
    let mut command = Command::new(Path::new(BIN).join(name));
    command.current_dir("/");
    if let Some(uid) = postgres_uid() {
        command.uid(uid);
    }
    // SAFETY: `prctl` is one system call and touches no memory.
    unsafe {
        command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        });
    }
    command
}

/// The user `postgres`, where we are root: it refuses to run as root.
fn postgres_uid() -> Option<u32> {
    // SAFETY: both always succeed or return null; the entry is read before any other call could change it.
    unsafe {
        if libc::geteuid() != 0 {
            return None;
        }
        let entry = libc::getpwnam(c"postgres".as_ptr());
        (!entry.is_null()).then(|| (*entry).pw_uid)
    }
}
