//! PgBouncer between logweir and PostgreSQL.

use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, mpsc};
use std::time::Duration;

use crate::postgres::{as_server, give_to_server, spawn_tied, wait_until};
use crate::process::free_addr;
use crate::store::Store;

/// Time limit of its console.
const ANSWERS_WITHIN: Duration = Duration::from_secs(60);

/// A running PgBouncer; stopped on drop.
pub struct Pooler {
    dir: tempfile::TempDir,
    process: Mutex<Child>,
    port: u16,
    certificates: AtomicU32,
}

/// Path of the program, if it is installed.
#[must_use]
pub fn program() -> Option<PathBuf> {
    ["/usr/sbin/pgbouncer", "/usr/bin/pgbouncer"].iter().map(PathBuf::from).find(|path| path.exists())
}

impl Pooler {
    /// Starts a pooler with `mode` (`session`, `transaction`, `statement`) in front of the server on `port`.
    ///
    /// `users` are names with their passwords, with which both the pooler's clients and the pooler itself log in.
    ///
    /// # Panics
    /// If it is not installed or does not start.
    #[must_use]
    pub fn start(port_of_server: u16, mode: &str, users: &[(&str, &str)]) -> Self {
        Self::start_with(port_of_server, mode, users, "")
    }

    /// As [`Pooler::start`], with further lines of its configuration.
    ///
    /// # Panics
    /// As [`Pooler::start`].
    #[must_use]
    pub fn start_with(port_of_server: u16, mode: &str, users: &[(&str, &str)], lines: &str) -> Self {
        let program = program().expect("pgbouncer is installed");
        let dir = tempfile::Builder::new().prefix("logweir-pgbouncer-").tempdir().expect("a temporary directory");
        give_to_server(dir.path());
        let port = free_addr().port();
        let at = |name: &str| dir.path().join(name).display().to_string();
        let configuration = format!(
            "[databases]\n%include {}\n[pgbouncer]\n%include {}\nlisten_addr = 127.0.0.1\n\
             listen_port = {port}\nunix_socket_dir =\nauth_type = scram-sha-256\nauth_file = {}\nadmin_users = admin\n\
             pool_mode = {mode}\nserver_reset_query = DISCARD ALL\nmax_client_conn = 400\ndefault_pool_size = 40\n\
             query_wait_timeout = 10\nserver_login_retry = 1\nignore_startup_parameters = extra_float_digits\nlogfile = {}\n{lines}\n",
            at("databases.ini"),
            at("tls.ini"),
            at("users"),
            at("log"),
        );
        write(dir.path(), "databases.ini", &server_of("*", port_of_server));
        write(dir.path(), "tls.ini", "");
        std::fs::write(dir.path().join("pgbouncer.ini"), configuration).expect("the configuration");
        write_users(dir.path(), users);
        let process = Mutex::new(spawn(&program, dir.path(), port));
        Self { dir, process, port, certificates: AtomicU32::new(0) }
    }

    /// Starts it again if it has ended, as its supervisor would: version 1.18 can crash at KILL. Returns whether it had.
    ///
    /// # Panics
    /// If it does not start.
    pub fn start_if_ended(&self) -> bool {
        let mut process = self.process.lock().expect("the lock is not poisoned");
        let ended = !matches!(process.try_wait(), Ok(None));
        if ended {
            *process = spawn(&program().expect("pgbouncer is installed"), self.dir.path(), self.port);
        }
        ended
    }

    /// Its port on 127.0.0.1.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Replaces the users.
    ///
    /// # Errors
    /// The pooler does not answer.
    pub fn set_users(&self, users: &[(&str, &str)]) -> Result<(), String> {
        write_users(self.dir.path(), users);
        self.reload()
    }

    /// Sends the sessions of `database` to another server from now on. (`*` alone would not move a database that was
    /// used already.)
    ///
    /// # Errors
    /// As [`Pooler::set_users`].
    pub fn move_to(&self, database: &str, port_of_server: u16) -> Result<(), String> {
        let lines = ["*", database].map(|database| server_of(database, port_of_server)).concat();
        write(self.dir.path(), "databases.ini", &lines);
        self.reload()
    }

    /// Offers TLS with this certificate.
    ///
    /// # Errors
    /// As [`Pooler::set_users`].
    pub fn set_certificate(&self, certificate: &str, key: &str) -> Result<(), String> {
        // Under other names each time: a changed setting is what it looks for when it reloads.
        let number = self.certificates.fetch_add(1, Ordering::Relaxed);
        let names = [format!("certificate-{number}"), format!("key-{number}")];
        for (name, text) in names.iter().zip([certificate, key]) {
            write(self.dir.path(), name, text);
            give_to_server(&self.dir.path().join(name));
        }
        let [certificate, key] = names.map(|name| self.dir.path().join(name).display().to_string());
        let lines =
            format!("client_tls_sslmode = allow\nclient_tls_cert_file = {certificate}\nclient_tls_key_file = {key}\n");
        write(self.dir.path(), "tls.ini", &lines);
        self.reload()
    }

    /// Number of clients of `user` with TLS.
    ///
    /// # Errors
    /// As [`Pooler::command`].
    pub fn encrypted_clients(&self, user: &str) -> Result<usize, String> {
        let clients = self.ask("SHOW CLIENTS")?;
        // The user is the second column, TLS the last one.
        let is_encrypted = |row: &&Vec<String>| {
            row.get(1).is_some_and(|name| name == user) && row.last().is_some_and(|tls| !tls.is_empty())
        };
        Ok(clients.iter().filter(is_encrypted).count())
    }

    /// Reads its files again; at its next start if it has crashed.
    fn reload(&self) -> Result<(), String> {
        match self.command("RELOAD") {
            Err(_) if self.start_if_ended() => Ok(()),
            other => other,
        }
    }

    /// Runs a command of its console, such as `RECONNECT`.
    ///
    /// # Errors
    /// The console's error. It is killed if it does not answer: version 1.18 can end up in an endless loop after KILL.
    pub fn command(&self, command: &str) -> Result<(), String> {
        self.ask(command).map(drop)
    }

    fn ask(&self, command: &str) -> Result<Vec<Vec<String>>, String> {
        let console = Store::Postgres(format!("postgres://admin:admin@127.0.0.1:{}/pgbouncer", self.port));
        let (answer, answered) = mpsc::channel();
        let text = command.to_owned();
        std::thread::spawn(move || answer.send(console.rows(&text)));
        answered.recv_timeout(ANSWERS_WITHIN).unwrap_or_else(|_| {
            let _ = self.process.lock().expect("the lock is not poisoned").kill();
            Err(format!("{command}: PgBouncer did not answer within {ANSWERS_WITHIN:?}, and was killed"))
        })
    }
}

fn spawn(program: &Path, dir: &Path, port: u16) -> Child {
    let mut command = as_server(Command::new(program));
    command.arg("-q").arg(dir.join("pgbouncer.ini")).stdout(Stdio::null()).stderr(Stdio::null());
    let process = spawn_tied(command).expect("pgbouncer runs");
    let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    wait_until("pgbouncer listens", || TcpStream::connect(addr).is_ok());
    process
}

fn write_users(dir: &Path, users: &[(&str, &str)]) {
    let lines: String = users
        .iter()
        .chain(&[("admin", "admin")])
        .map(|(name, password)| format!("\"{name}\" \"{password}\"\n"))
        .collect();
    write(dir, "users", &lines);
}

/// The line of the configuration that sends the sessions of `database` to a server.
fn server_of(database: &str, port: u16) -> String {
    format!("{database} = host=127.0.0.1 port={port}\n")
}

fn write(dir: &Path, name: &str, text: &str) {
    std::fs::write(dir.join(name), text).expect("the pooler's files are writable");
}

impl Drop for Pooler {
    fn drop(&mut self) {
        if let Ok(process) = self.process.get_mut() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}
