//! A real PostgreSQL for tests.
//!
//! - [`database`] returns a new, empty database on a server that all tests of one binary share.
//!   `LOGWEIR_TEST_DATABASE_URL` overrides the server (with a TimescaleDB, for example).
//! - `LOGWEIR_TEST_PG_BIN` names the directory of the programs of every server that is started here.
//! - [`Server::start`] starts a private server, to be stopped, killed, frozen and restarted.
//! - A server listens on a free port of 127.0.0.1 and on a socket in its temporary directory, and ends with the test
//!   process in any case.

use std::io::Write as _;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, mpsc};
use std::time::{Duration, Instant};

use tokio_postgres::{Client, NoTls};

use crate::client::PATIENCE;
use crate::process::free_addr;
use crate::store::Store;

/// Options of a private server.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Whether it fsyncs; needed only if the machine's disk is part of the test.
    pub fsync: bool,
    /// Lines for `postgresql.conf`.
    pub settings: Vec<(&'static str, String)>,
    /// Lines for `pg_hba.conf`, in front of the one that trusts every user.
    pub hba: Vec<&'static str>,
    /// Files to create in the data directory, such as certificates (mode 0600).
    pub files: Vec<(&'static str, String)>,
    /// Environment variables of the server's processes.
    pub environment: Vec<(String, String)>,
}

/// A server with its own directory; stopped on drop.
pub struct Server {
    /// Unset if the server was not started by this process.
    dir: tempfile::TempDir,
    port: u16,
    process: Mutex<Option<Child>>,
    environment: Vec<(String, String)>,
}

fn bin(name: &str) -> PathBuf {
    if let Some(dir) = std::env::var_os("LOGWEIR_TEST_PG_BIN") {
        return PathBuf::from(dir).join(name);
    }
    let mut versions: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
        .expect("PostgreSQL is installed in /usr/lib/postgresql")
        .filter_map(|entry| Some(entry.ok()?.path().join("bin").join(name)))
        .filter(|path| path.exists())
        .collect();
    versions.sort();
    versions.pop().expect("a PostgreSQL server is installed")
}

/// Whether the extension `name` is installed on the servers that are started here.
///
/// # Panics
/// If `pg_config` cannot be run.
#[must_use]
pub fn has_extension(name: &str) -> bool {
    let output = Command::new(bin("pg_config")).arg("--sharedir").output().expect("pg_config runs");
    let shared = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    shared.join("extension").join(format!("{name}.control")).exists()
}

/// Returns uid and gid of the user `postgres` if this process is root, which the server rejects.
fn server_user() -> Option<(u32, u32)> {
    // SAFETY: reads the process's own uid.
    if unsafe { libc::geteuid() } != 0 {
        return None;
    }
    let users = std::fs::read_to_string("/etc/passwd").expect("/etc/passwd exists");
    let line = users.lines().find(|line| line.starts_with("postgres:")).expect("the user postgres exists");
    let mut fields = line.split(':').skip(2);
    let mut number = || fields.next().and_then(|field| field.parse().ok()).expect("passwd has a uid and a gid");
    Some((number(), number()))
}

fn command(name: &str) -> Command {
    as_server(Command::new(bin(name)))
}

/// Runs `command` as the server's user.
pub(crate) fn as_server(mut command: Command) -> Command {
    if let Some((uid, gid)) = server_user() {
        command.uid(uid).gid(gid);
    }
    command.current_dir("/").env("LC_ALL", "C.UTF-8").stdin(Stdio::null());
    command
}

/// Starts `command` from a thread that never ends, so that the kernel kills the child exactly when this process ends:
/// the parent-death signal is tied to the thread that created the child.
pub(crate) fn spawn_tied(mut command: Command) -> std::io::Result<Child> {
    type Job = (Command, mpsc::Sender<std::io::Result<Child>>);
    static SPAWNER: OnceLock<Mutex<mpsc::Sender<Job>>> = OnceLock::new();
    // SAFETY: prctl is async-signal-safe and touches no memory of this process.
    unsafe {
        command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGQUIT) {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        });
    }
    let spawner = SPAWNER.get_or_init(|| {
        let (jobs, inbox) = mpsc::channel::<Job>();
        std::thread::spawn(move || {
            for (mut command, answer) in inbox {
                let _ = answer.send(command.spawn());
            }
        });
        Mutex::new(jobs)
    });
    let (answer, child) = mpsc::channel();
    spawner.lock().expect("the lock is not poisoned").send((command, answer)).expect("the spawner never ends");
    child.recv().expect("the spawner responds")
}

impl Server {
    /// Creates a data directory and starts a server on it.
    ///
    /// # Panics
    /// If it does not start; the message contains its log.
    #[must_use]
    pub fn start(options: &Options) -> Self {
        std::thread::sleep(until_after_midnight());
        let server = Self::without_data(free_addr().port(), options.environment.clone());
        let output = command("initdb")
            .args(["--auth=trust", "--username=postgres", "--encoding=UTF8", "--locale=C.UTF-8", "--no-sync", "-D"])
            .arg(server.data())
            .output()
            .expect("initdb runs");
        assert!(output.status.success(), "initdb: {}", String::from_utf8_lossy(&output.stderr));
        server.configure(options);
        server.run();
        server
    }

    fn without_data(port: u16, environment: Vec<(String, String)>) -> Self {
        let dir = tempfile::Builder::new().prefix("logweir-pg-").tempdir().expect("a temporary directory");
        give_to_server(dir.path());
        Self { dir, port, process: Mutex::new(None), environment }
    }

    /// Starts a standby of this server on `port`, as a copy of its data with the tablespaces moved as `moved` says, and
    /// waits until it accepts connections.
    ///
    /// # Errors
    /// The data cannot be copied.
    ///
    /// # Panics
    /// If the standby does not start.
    pub fn standby(&self, port: u16, name: &str, moved: &[(PathBuf, PathBuf)]) -> Result<Self, String> {
        let standby = Self::without_data(port, self.environment.clone());
        let mut copy = command("pg_basebackup");
        let source = format!("host=127.0.0.1 port={} user=postgres application_name={name}", self.port);
        copy.args(["--write-recovery-conf", "--checkpoint=fast", "--no-sync", "--dbname", &source, "--pgdata"]);
        copy.arg(standby.data());
        for (from, to) in moved {
            copy.arg(format!("--tablespace-mapping={}={}", from.display(), to.display()));
        }
        let output = copy.output().map_err(|error| format!("pg_basebackup: {error}"))?;
        if !output.status.success() {
            return Err(format!("pg_basebackup: {}", String::from_utf8_lossy(&output.stderr)));
        }
        let own = format!("port = {port}\nunix_socket_directories = '{}'\n", standby.dir.path().display());
        append(&standby.data().join("postgresql.conf"), &own);
        standby.run();
        Ok(standby)
    }

    fn process(&self) -> MutexGuard<'_, Option<Child>> {
        self.process.lock().expect("the lock is not poisoned")
    }

    /// The data directory.
    #[must_use]
    pub fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    fn configure(&self, options: &Options) {
        let mut conf = format!(
            "listen_addresses = '127.0.0.1'\nport = {}\nunix_socket_directories = '{}'\nfsync = {}\n\
             max_connections = 200\nshared_buffers = 32MB\nmax_wal_size = 256MB\nlog_min_messages = warning\n",
            self.port,
            self.dir.path().display(),
            if options.fsync { "on" } else { "off" },
        );
        if has_extension("timescaledb") {
            // As an operator does who installs it. Nothing of a test leaves the machine.
            conf.push_str("shared_preload_libraries = 'timescaledb'\ntimescaledb.telemetry_level = off\n");
        }
        for (name, value) in &options.settings {
            conf.push_str(&format!("{name} = '{value}'\n"));
        }
        append(&self.data().join("postgresql.conf"), &conf);
        if !options.hba.is_empty() {
            let hba = self.data().join("pg_hba.conf");
            let rest = std::fs::read_to_string(&hba).expect("initdb creates pg_hba.conf");
            std::fs::write(&hba, format!("{}\n{rest}", options.hba.join("\n"))).expect("pg_hba.conf is writable");
        }
        for (name, text) in &options.files {
            let path = self.data().join(name);
            append(&path, text);
            std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("chmod");
            give_to_server(&path);
        }
    }

    /// Starts the process and waits until it accepts connections.
    fn run(&self) {
        self.try_restart().unwrap_or_else(|why| panic!("{why}"));
    }

    /// As [`Server::restart`].
    ///
    /// # Errors
    /// It does not start, for instance because its disk is full; its log.
    ///
    /// # Panics
    /// If the server program cannot be run.
    pub fn try_restart(&self) -> Result<(), String> {
        let log = self.dir.path().join("log");
        let file = std::fs::File::options().create(true).append(true).open(&log).expect("the log can be written");
        let mut command = command("postgres");
        command.envs(self.environment.iter().cloned());
        command.arg("-D").arg(self.data()).stdout(file.try_clone().expect("a second handle")).stderr(file);
        let child = spawn_tied(command).expect("postgres runs");
        *self.process() = Some(child);
        let deadline = Instant::now() + PATIENCE;
        loop {
            let ready = command_is_ready(self.port);
            if ready {
                return Ok(());
            }
            let ended = self.process().as_mut().is_some_and(|child| !matches!(child.try_wait(), Ok(None)));
            if ended || Instant::now() >= deadline {
                let log = std::fs::read_to_string(&log).unwrap_or_default();
                return Err(format!("PostgreSQL does not start: {log}"));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The port on 127.0.0.1.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns the URL of `database` for the superuser.
    #[must_use]
    pub fn url(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}", self.port)
    }

    /// Directory of the Unix socket.
    #[must_use]
    pub fn socket_dir(&self) -> &Path {
        self.dir.path()
    }

    /// Process id of the postmaster.
    ///
    /// # Panics
    /// If it is not running.
    #[must_use]
    pub fn pid(&self) -> i32 {
        let process = self.process();
        i32::try_from(process.as_ref().expect("the server runs").id()).expect("a pid is an i32")
    }

    fn end(&self, signal: i32) {
        let child = self.process().take();
        if let Some(mut child) = child {
            // SAFETY: signals a child that has not been waited for, so the pid is its own.
            unsafe { libc::kill(i32::try_from(child.id()).expect("a pid is an i32"), signal) };
            let _ = child.wait();
        }
    }

    /// Runs the shell script `text` as the server's user with its programs in `PATH`; it ends with the test process.
    ///
    /// # Panics
    /// If sh cannot be started.
    #[must_use]
    pub fn script(&self, text: &str, environment: &[(&str, &str)], log: &Path) -> Child {
        let log = std::fs::File::options().create(true).append(true).open(log).expect("the log can be written");
        let programs = bin("").display().to_string();
        let mut command = as_server(Command::new("sh"));
        command
            .args(["-c", text])
            .env("PATH", format!("{programs}:{}", std::env::var("PATH").unwrap_or_default()))
            .env("PGHOST", self.dir.path())
            .env("PGPORT", self.port.to_string())
            .env("PGUSER", "postgres")
            .env("PGDATA", self.data())
            .env("SOCKET_DIR", self.dir.path())
            .envs(environment.iter().copied())
            .stdout(log.try_clone().expect("a second handle"))
            .stderr(log);
        spawn_tied(command).expect("sh runs")
    }

    /// Fast shutdown: sessions get 57P01.
    pub fn stop(&self) {
        self.end(libc::SIGINT);
    }

    /// Immediate shutdown: sessions are cut off, and the next start recovers.
    pub fn stop_immediately(&self) {
        self.end(libc::SIGQUIT);
    }

    /// Runs a statement in the database `postgres`.
    ///
    /// # Panics
    /// If it fails.
    pub fn execute(&self, sql: &str) {
        Store::Postgres(self.url("postgres")).run(sql).expect("the statement succeeds");
    }

    /// Sets a parameter for the next [`Server::restart`].
    pub fn set(&self, name: &str, value: &str) {
        append(&self.data().join("postgresql.conf"), &format!("{name} = '{value}'\n"));
    }

    /// The server's log.
    #[must_use]
    pub fn log_text(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// A session as the superuser in the database `postgres`, which can hold locks.
    #[must_use]
    pub fn session(&self) -> Session {
        Session::open(&self.url("postgres"))
    }

    /// Kills the postmaster with SIGKILL and waits until its backends have ended.
    pub fn kill(&self) {
        let backends = children(self.pid());
        self.end(libc::SIGKILL);
        for pid in backends {
            // SAFETY: only checks whether the process exists; a reused pid would merely prolong the wait.
            wait_until("the backends end", || unsafe { libc::kill(pid, 0) } != 0);
        }
    }

    /// Stops the postmaster, and its other processes with `all`, until [`Server::thaw`].
    pub fn freeze(&self, all: bool) {
        self.signal_processes(libc::SIGSTOP, all);
    }

    /// Continues all processes.
    pub fn thaw(&self) {
        self.signal_processes(libc::SIGCONT, true);
    }

    fn signal_processes(&self, signal: i32, all: bool) {
        let postmaster = self.pid();
        let others = if all { children(postmaster) } else { Vec::new() };
        for pid in std::iter::once(postmaster).chain(others) {
            // SAFETY: `kill` touches no memory; the postmaster is a child of this process, the others are its own.
            unsafe { libc::kill(pid, signal) };
        }
    }

    /// Restarts it after [`Server::stop`] or [`Server::kill`].
    pub fn restart(&self) {
        self.run();
    }

    /// Makes every new transaction read-only (25006), or not. Returns when the setting is in effect.
    ///
    /// # Panics
    /// If a statement fails.
    pub async fn set_read_only(&self, on: bool) {
        let value = if on { "on" } else { "off" };
        let admin = connect(&self.url("postgres")).await;
        for sql in [
            // The setting must not prevent its own change.
            "SET default_transaction_read_only = off",
            &format!("ALTER SYSTEM SET default_transaction_read_only = {value}"),
            "SELECT pg_reload_conf()",
        ] {
            admin.batch_execute(sql).await.expect(sql);
        }
        let deadline = Instant::now() + PATIENCE;
        loop {
            let probe = connect(&self.url("postgres")).await;
            let row = probe.query_one("SHOW default_transaction_read_only", &[]).await.expect("SHOW");
            if row.get::<_, &str>(0) == value {
                return;
            }
            assert!(Instant::now() < deadline, "the setting does not take effect");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end(libc::SIGQUIT);
    }
}

/// A session of a test that is not asynchronous.
pub struct Session {
    client: Client,
    runtime: tokio::runtime::Runtime,
}

impl Session {
    fn open(url: &str) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime");
        Self { client: runtime.block_on(connect(url)), runtime }
    }

    /// Runs a statement.
    ///
    /// # Panics
    /// If it fails.
    pub fn execute(&self, sql: &str) {
        self.runtime.block_on(self.client.batch_execute(sql)).unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    }
}

/// Makes the server's user the owner of `path`.
///
/// # Panics
/// If root cannot change the owner.
pub fn give_to_server(path: &Path) {
    if let Some((uid, gid)) = server_user() {
        chown(path, Some(uid), Some(gid)).expect("root can change the owner");
    }
}

fn append(path: &Path, text: &str) {
    let mut file = std::fs::File::options().create(true).append(true).open(path).expect("the file can be written");
    file.write_all(text.as_bytes()).expect("the file can be written");
}

fn command_is_ready(port: u16) -> bool {
    command("pg_isready")
        .args(["-q", "-h", "127.0.0.1", "-p", &port.to_string()])
        .status()
        .is_ok_and(|status| status.success())
}

fn children(pid: i32) -> Vec<i32> {
    std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))
        .unwrap_or_default()
        .split_whitespace()
        .filter_map(|pid| pid.parse().ok())
        .collect()
}

/// Polls `condition`.
///
/// # Panics
/// On timeout.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "timed out waiting until {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Connects a client.
///
/// # Panics
/// If the server is unreachable.
pub async fn connect(url: &str) -> Client {
    let (client, connection) =
        tokio_postgres::connect(url, NoTls).await.unwrap_or_else(|error| panic!("{url}: {error:?}"));
    tokio::spawn(connection);
    client
}

/// A new database. On a private server it is deleted with the server, elsewhere on drop.
pub struct TestDatabase {
    /// Its URL.
    pub url: String,
    /// URL for `DROP DATABASE`, and the database's name.
    foreign: Option<(String, String)>,
}

impl Drop for TestDatabase {
    fn drop(&mut self) {
        let Some((url, name)) = self.foreign.take() else { return };
        // The drop may run in a test's own runtime, which cannot be blocked on from inside.
        let dropping = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let _ = connect(&url).await.batch_execute(&format!("DROP DATABASE {name} WITH (FORCE)")).await;
            });
        });
        let _ = dropping.join();
    }
}

static DATABASES: AtomicU32 = AtomicU32::new(0);
static SHARED_PID: AtomicI32 = AtomicI32::new(0);
static SHARED_DIR: OnceLock<PathBuf> = OnceLock::new();

/// Stops the shared server at process exit: it outlives every test, and statics are never dropped.
extern "C" fn end_shared() {
    let pid = SHARED_PID.load(Ordering::Relaxed);
    // SAFETY: the process is a child of this one that nothing else waits for.
    unsafe {
        libc::kill(pid, libc::SIGQUIT);
        libc::waitpid(pid, std::ptr::null_mut(), 0);
    }
    if let Some(dir) = SHARED_DIR.get() {
        let _ = std::fs::remove_dir_all(dir);
    }
}

fn shared() -> &'static Server {
    static SHARED: OnceLock<Server> = OnceLock::new();
    SHARED.get_or_init(|| {
        let server = Server::start(&Options::default());
        SHARED_PID.store(server.pid(), Ordering::Relaxed);
        let _ = SHARED_DIR.set(server.dir.path().to_owned());
        // SAFETY: registers a function that needs nothing but the two statics above.
        unsafe { libc::atexit(end_shared) };
        server
    })
}

/// Creates a new database on the shared server.
///
/// # Panics
/// If it cannot be created.
pub async fn database() -> TestDatabase {
    match std::env::var("LOGWEIR_TEST_DATABASE_URL") {
        Ok(url) => {
            let name = create_database(&url).await;
            let (server, database) = url.rsplit_once('/').expect("LOGWEIR_TEST_DATABASE_URL ends in /DATABASE");
            let options = database.find('?').map_or("", |at| &database[at..]);
            TestDatabase { url: format!("{server}/{name}{options}"), foreign: Some((url.clone(), name)) }
        }
        Err(_) => {
            let server = tokio::task::spawn_blocking(shared).await.expect("the server starts");
            let name = create_database(&server.url("postgres")).await;
            TestDatabase::on(server, &name)
        }
    }
}

/// How long a test that begins now has to wait so that the day does not change while it runs: partitions are of days.
fn until_after_midnight() -> Duration {
    const LONGER_THAN_A_TEST: u64 = 180;
    let now_s = jiff::Timestamp::now().as_second().unsigned_abs();
    let left_s = 86_400 - now_s % 86_400;
    Duration::from_secs(if left_s < LONGER_THAN_A_TEST { left_s + 1 } else { 0 })
}

/// Creates a database with a unique name and returns the name.
///
/// # Panics
/// If a statement fails.
pub async fn create_database(url: &str) -> String {
    tokio::time::sleep(until_after_midnight()).await;
    let name = format!("logweir_test_{}_{}", std::process::id(), DATABASES.fetch_add(1, Ordering::Relaxed));
    let admin = connect(url).await;
    admin.batch_execute(&format!("CREATE DATABASE {name}")).await.expect("CREATE DATABASE");
    name
}

impl TestDatabase {
    /// Returns the database `name` on a private server.
    #[must_use]
    pub fn on(server: &Server, name: &str) -> Self {
        Self { url: server.url(name), foreign: None }
    }

    /// Returns the existing database at `url`, which is not deleted on drop.
    #[must_use]
    pub fn at(url: String) -> Self {
        Self { url, foreign: None }
    }

    /// Connects a client.
    pub async fn client(&self) -> Client {
        connect(&self.url).await
    }
}
