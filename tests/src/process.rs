//! The real binary as a child process: configured by environment variables, observed from outside, stopped by signals.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{self as unix, UnixListener};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use rand::Rng;
use serde_json::Value;

use crate::client::{Answer, PATIENCE, agent, get, get_as, post_body};

/// Polling interval.
const LOOK: Duration = Duration::from_millis(5);

/// Path of the `logweir` binary with kill points; built once per test process.
///
/// `LOGWEIR_BIN` overrides it with a binary that has the feature `faults`.
///
/// # Panics
/// If it cannot be built, or `LOGWEIR_BIN` names one without kill points.
#[must_use]
pub fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| std::env::var_os("LOGWEIR_BIN").map_or_else(build, |path| with_faults(PathBuf::from(path))))
}

/// Without kill points, the tests that kill the program or give it a bug would wait until they time out.
fn with_faults(program: PathBuf) -> PathBuf {
    let version = run_command(command_of(&program, Vec::<(String, String)>::new(), "", &["--version"]), PATIENCE);
    let version = String::from_utf8_lossy(&version.stdout).trim().to_owned();
    assert!(
        has_faults(&version),
        "LOGWEIR_BIN={} has no kill points: expected a program whose `--version` lists `faults`, but it is {version:?}; \
         build it with `cargo build -p logweir-cli --features faults`, or unset LOGWEIR_BIN",
        program.display()
    );
    program
}

/// Whether `version`, such as `logweir 0.1.0 (debug, x86_64-unknown-linux-gnu, faults)`, lists the feature.
fn has_faults(version: &str) -> bool {
    let build = version.split_once('(').and_then(|(_, build)| build.strip_suffix(')'));
    build.is_some_and(|build| build.split(", ").any(|part| part == "faults"))
}

fn build() -> PathBuf {
    // Built together with the tests' package, so that the dependencies' features match the existing build.
    let executable = build_logweir(&["-p", "logweir-tests", "--features", "logweir-cli/faults"]);
    // A hard link of its own: another build into the same directory would replace the program during the tests.
    let link = executable.with_file_name(format!("logweir-under-test-{}", std::process::id()));
    let _ = fs::remove_file(&link);
    fs::hard_link(&executable, &link).expect("a hard link next to the executable");
    extern "C" fn unlink() {
        let _ = fs::remove_file(binary());
    }
    // SAFETY: the handler only uses a path that lives as long as the process.
    unsafe { libc::atexit(unlink) };
    link
}

/// Builds the `logweir` binary with the same cargo and additional arguments, and returns its path.
///
/// # Panics
/// If the build fails.
#[must_use]
pub fn build_logweir(arguments: &[&str]) -> PathBuf {
    let mut cargo = Command::new(env!("CARGO"));
    // A dependency's build script depends on variables that `cargo run` and `cargo test` set for this package; with
    // them it would run again and rebuild half of the tree.
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_")) {
            cargo.env_remove(name);
        }
    }
    let built = cargo
        .args(["build", "-p", "logweir-cli", "--bin", "logweir", "--message-format", "json-render-diagnostics"])
        .args(arguments)
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."))
        .stderr(Stdio::inherit())
        .output()
        .expect("cargo can be run");
    assert!(built.status.success(), "building logweir failed");
    String::from_utf8_lossy(&built.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|message| message["target"]["name"] == "logweir")
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
        .expect("cargo prints the executable")
}

/// Configuration keys and values, such as `journal.quota_bytes` = `1000000`; `config` is the file.
pub type Settings = BTreeMap<String, String>;

/// Returns a command that runs `logweir` with `arguments` and this configuration in an otherwise empty environment.
#[must_use]
pub fn command(settings: &Settings, faults: &str, arguments: &[&str]) -> Command {
    command_of(binary(), variables(settings), faults, arguments)
}

fn variables(settings: &Settings) -> impl Iterator<Item = (OsString, OsString)> + '_ {
    settings.iter().map(|(key, value)| match key.as_str() {
        "config" => (OsString::from("LOGWEIR_CONFIG"), OsString::from(value)),
        key => (OsString::from(format!("LOGWEIR__{}", key.to_uppercase().replace('.', "__"))), OsString::from(value)),
    })
}

/// As [`command`], for another binary and with literal environment variables.
pub fn command_of<K: AsRef<OsStr>, V: AsRef<OsStr>>(
    binary: &Path,
    environment: impl IntoIterator<Item = (K, V)>,
    faults: &str,
    arguments: &[&str],
) -> Command {
    let mut command = Command::new(binary);
    command.args(arguments).env_clear().envs(environment).env("FAILPOINTS", faults).env("RUST_BACKTRACE", "1");
    // SAFETY: both are one system call and touch no memory. `prctl` ends the child together with the thread that started it,
    // so that killing a test program leaves no processes behind; `signal` lets a hang-up reach it under nohup, too.
    unsafe {
        command.pre_exec(|| {
            libc::signal(libc::SIGHUP, libc::SIG_DFL);
            match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        });
    }
    command
}

/// Starts `command` under a limit of the system.
pub fn limit(command: &mut Command, resource: libc::__rlimit_resource_t, soft: u64, hard: u64) {
    let limit = libc::rlimit { rlim_cur: soft, rlim_max: hard };
    // SAFETY: `setrlimit` is one system call that reads the limit.
    unsafe {
        command.pre_exec(move || match libc::setrlimit(resource, &limit) {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        });
    }
}

/// Runs a subcommand and returns its output.
///
/// # Panics
/// If it takes longer than `within`.
#[must_use]
pub fn run(settings: &Settings, arguments: &[&str], within: Duration) -> Output {
    run_command(command(settings, "", arguments), within)
}

/// Runs a command and returns its output.
///
/// # Panics
/// If it takes longer than `within`.
#[must_use]
pub fn run_command(mut command: Command, within: Duration) -> Output {
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let child = child.expect("the binary starts");
    let pid = child.id();
    let (ended, waiter) = std::sync::mpsc::channel::<()>();
    let guard = std::thread::spawn(move || {
        if waiter.recv_timeout(within).is_err_and(|error| error == std::sync::mpsc::RecvTimeoutError::Timeout) {
            signal_pid(pid, libc::SIGKILL);
        }
    });
    let output = child.wait_with_output().expect("the output can be read");
    drop(ended);
    guard.join().expect("the guard does not panic");
    assert_ne!(output.status.signal(), Some(libc::SIGKILL), "{command:?} did not end within {within:?}");
    output
}

/// Returns a free port that no other call returns, in this process or another one, as long as this process runs.
///
/// It is outside the kernel's range for outgoing connections: otherwise, between the end of a process and the start of
/// the next, a client that connects to the port could connect to itself.
///
/// # Panics
/// If this process has no file descriptors left.
#[must_use]
pub fn free_addr() -> SocketAddr {
    // A socket of the port's name in the abstract namespace is the claim: the kernel ends it with the process.
    static CLAIMS: Mutex<Vec<UnixListener>> = Mutex::new(Vec::new());
    loop {
        let port = rand::rng().random_range(10_000..32_000);
        let name = unix::SocketAddr::from_abstract_name(format!("logweir-tests/{port}")).expect("a short name");
        let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        match UnixListener::bind_addr(&name) {
            Ok(claim) if TcpListener::bind(addr).is_ok() => {
                CLAIMS.lock().expect("the lock is not poisoned").push(claim);
                return addr;
            }
            Ok(_) => {}
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::AddrInUse, "{error}"),
        }
    }
}

/// Exit status of a process.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Exit(ExitStatus);

impl Exit {
    /// Returns the exit code, or `None` if a signal ended it.
    #[must_use]
    pub fn code(self) -> Option<i32> {
        self.0.code()
    }

    /// Returns the signal that ended it, if one did.
    #[must_use]
    pub fn signal(self) -> Option<i32> {
        self.0.signal()
    }

    /// Returns whether SIGKILL ended it: a kill point or the harness.
    #[must_use]
    pub fn killed(self) -> bool {
        self.signal() == Some(libc::SIGKILL)
    }
}

impl fmt::Debug for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A running server; killed on drop.
pub struct Server {
    child: Child,
    agent: ureq::Agent,
    /// Address of the data listener.
    pub http: SocketAddr,
    /// Address of the admin listener.
    pub admin: SocketAddr,
    /// File with its stdout and stderr.
    pub log: PathBuf,
    exit: Option<Exit>,
}

impl Server {
    /// Starts `logweir run` without waiting until it is ready.
    ///
    /// # Panics
    /// If the settings lack a listener or the binary cannot be started.
    #[must_use]
    pub fn start(settings: &Settings, faults: &str, log: PathBuf) -> Self {
        Self::start_binary(binary(), settings, faults, log)
    }

    /// As [`Server::start`], for another binary.
    ///
    /// # Panics
    /// As [`Server::start`].
    #[must_use]
    pub fn start_binary(binary: &Path, settings: &Settings, faults: &str, log: PathBuf) -> Self {
        let addr = |key: &str| settings[key].parse().expect("an address");
        let command = command_of(binary, variables(settings), faults, &["run"]);
        Self::spawn(command, addr("http.listen"), addr("admin.listen"), log)
    }

    /// Starts a command that listens on these addresses.
    ///
    /// # Panics
    /// If the binary cannot be started.
    #[must_use]
    pub fn spawn(mut command: Command, http: SocketAddr, admin: SocketAddr, log: PathBuf) -> Self {
        let file = File::create(&log).expect("the log's directory exists");
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone().expect("a second handle"))
            .stderr(file)
            .spawn()
            .expect("the binary starts");
        let agent = agent(Duration::from_secs(60));
        Self { child, agent, http, admin, log, exit: None }
    }

    /// Process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until startup is complete and it accepts records.
    ///
    /// # Errors
    /// The process exited.
    ///
    /// # Panics
    /// On timeout.
    pub fn ready(&mut self) -> Result<(), Exit> {
        self.until("ready", PATIENCE, |server| {
            ["/startupz", "/readyz"].iter().all(|path| server.admin(path).is_some_and(|answer| answer.status == 200))
        })
    }

    /// Polls until `holds`.
    ///
    /// # Errors
    /// The process exited.
    ///
    /// # Panics
    /// On timeout.
    pub fn until(&mut self, what: &str, within: Duration, mut holds: impl FnMut(&Self) -> bool) -> Result<(), Exit> {
        let deadline = Instant::now() + within;
        loop {
            if let Some(exit) = self.exited() {
                return Err(exit);
            }
            if holds(self) {
                return Ok(());
            }
            assert!(
                Instant::now() < deadline,
                "timed out after {within:?} waiting for: {what}; log: {}",
                self.log.display()
            );
            std::thread::sleep(LOOK);
        }
    }

    /// Sends a GET to the admin listener; `None` without a response.
    #[must_use]
    pub fn admin(&self, path: &str) -> Option<Answer> {
        get(&self.agent, &format!("http://{}{path}", self.admin)).ok()
    }

    /// Sends a GET to the data listener; `None` without a response.
    #[must_use]
    pub fn data(&self, path: &str) -> Option<Answer> {
        get(&self.agent, &format!("http://{}{path}", self.http)).ok()
    }

    /// As [`Server::data`], with a token.
    #[must_use]
    pub fn data_as(&self, token: &str, path: &str) -> Option<Answer> {
        get_as(&self.agent, token, &format!("http://{}{path}", self.http)).ok()
    }

    /// Posts a body to the data listener; `None` without a response.
    #[must_use]
    pub fn post(&self, path: &str, kind: &str, body: &str) -> Option<Answer> {
        post_body(&self.agent, &format!("http://{}{path}", self.http), kind, body).ok()
    }

    /// Returns `/api/v1/status`; null without a response.
    #[must_use]
    pub fn status(&self) -> Value {
        self.data("/api/v1/status").map_or(Value::Null, |answer| answer.json())
    }

    /// Returns a metric's sum over all series whose labels contain `label`; 0 if there are none.
    #[must_use]
    pub fn metric(&self, name: &str, label: &str) -> f64 {
        let Some(answer) = self.admin("/metrics") else { return 0.0 };
        let is_ours = |line: &&str| {
            line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])) && line.contains(label)
        };
        answer.body.lines().filter(is_ours).filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: i32) {
        signal_pid(self.pid(), signal);
    }

    /// Changes its soft limit of open files, as far as it runs.
    pub fn limit_open_files(&mut self, max: u64) {
        if self.exited().is_some() {
            return;
        }
        let pid = i32::try_from(self.pid()).expect("a pid");
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: both calls only use the limit; the process is a child that has not been waited for.
        unsafe {
            libc::prlimit(pid, libc::RLIMIT_NOFILE, std::ptr::null(), &raw mut limit);
            limit.rlim_cur = max.min(limit.rlim_max);
            libc::prlimit(pid, libc::RLIMIT_NOFILE, &raw const limit, std::ptr::null_mut());
        }
    }

    /// Number of files that it has open; 0 if it has ended.
    #[must_use]
    pub fn open_files(&self) -> u64 {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid())).map_or(0, |files| files.count() as u64)
    }

    /// Sends SIGSTOP and waits until all threads have stopped, which takes a while on a busy machine.
    ///
    /// # Panics
    /// On timeout.
    pub fn freeze(&self) {
        self.signal(libc::SIGSTOP);
        let is_stopped = |task: std::fs::DirEntry| {
            let stat = std::fs::read_to_string(task.path().join("stat")).unwrap_or_default();
            stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
        };
        let tasks = || std::fs::read_dir(format!("/proc/{}/task", self.pid())).expect("the process has threads");
        let deadline = Instant::now() + PATIENCE;
        while !tasks().flatten().all(is_stopped) {
            assert!(Instant::now() < deadline, "the process does not stop");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Sends SIGKILL and waits for the exit.
    pub fn kill(&mut self) -> Exit {
        self.signal(libc::SIGKILL);
        self.wait(PATIENCE)
    }

    /// Returns the exit status if it has exited.
    pub fn exited(&mut self) -> Option<Exit> {
        if self.exit.is_none() {
            self.exit = self.child.try_wait().expect("the process is a child of this one").map(Exit);
        }
        self.exit
    }

    /// Waits for the exit.
    ///
    /// # Panics
    /// On timeout, after killing the process.
    pub fn wait(&mut self, within: Duration) -> Exit {
        let deadline = Instant::now() + within;
        loop {
            if let Some(exit) = self.exited() {
                return exit;
            }
            if Instant::now() >= deadline {
                self.signal(libc::SIGKILL);
                panic!("still running after {within:?}; log: {}", self.log.display());
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Returns its output so far.
    #[must_use]
    pub fn log_text(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Returns current and peak resident memory, in bytes.
    #[must_use]
    pub fn memory_bytes(&self) -> (u64, u64) {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap_or_default();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.split_whitespace().next()?.parse::<u64>().ok()
        };
        let kib = |name| field(name).unwrap_or(0) * 1024;
        (kib("VmRSS:"), kib("VmHWM:"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.exited().is_none() {
            self.signal(libc::SIGKILL);
            let _ = self.child.wait();
        }
    }
}

fn signal_pid(pid: u32, signal: i32) {
    let pid = i32::try_from(pid).expect("a pid");
    // SAFETY: `kill` touches no memory, and the child is not reaped yet: the pid is still its own.
    unsafe { libc::kill(pid, signal) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_without_kill_points_is_recognized_by_its_version() {
        assert!(has_faults("logweir 0.1.0 (debug, x86_64-unknown-linux-gnu, faults)"));
        assert!(has_faults("logweir 0.1.0 (abc123, release, x86_64-unknown-linux-gnu, faults)"));
        for version in ["", "logweir 0.1.0", "logweir 0.1.0 (release, x86_64-unknown-linux-gnu)", "faults"] {
            assert!(!has_faults(version), "{version:?}");
        }
    }

    #[test]
    fn free_addresses_are_distinct_and_outside_the_kernels_ephemeral_range() {
        let addrs: Vec<_> = (0..20).map(|_| free_addr()).collect();
        assert!(addrs.iter().all(|addr| addr.port() < 32_000));
        assert_eq!(addrs.iter().collect::<std::collections::HashSet<_>>().len(), 20);
    }
}
