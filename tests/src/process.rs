//! The real binary as a child: started through environment variables, watched from outside, ended by signals.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use rand::Rng;
use serde_json::Value;

use crate::client::{Answer, agent, get, get_as, post_body};

/// How often something that cannot be waited for is looked at.
const LOOK: Duration = Duration::from_millis(5);

/// The `logweir` binary with kill points compiled in; built once per test process.
///
/// `LOGWEIR_BIN` names another one, which must have the feature `faults`.
#[must_use]
pub fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| std::env::var_os("LOGWEIR_BIN").map_or_else(build, PathBuf::from))
}

fn build() -> PathBuf {
    // With the tests' own package, so that the features of all dependencies are those that are built already.
    let executable = build_logweir(&["-p", "logweir-tests", "--features", "logweir/faults"]);
    // A link of its own: another build into the same directory would change the program under the tests.
    let link = executable.with_file_name(format!("logweir-under-test-{}", std::process::id()));
    let _ = fs::remove_file(&link);
    fs::hard_link(&executable, &link).expect("a link beside the executable");
    extern "C" fn unlink() {
        let _ = fs::remove_file(binary());
    }
    // SAFETY: the handler touches nothing but a path that lives as long as the process.
    unsafe { libc::atexit(unlink) };
    link
}

/// The `logweir` binary, built by the cargo that built us, with these arguments too.
///
/// # Panics
/// It does not build.
#[must_use]
pub fn build_logweir(arguments: &[&str]) -> PathBuf {
    let mut cargo = Command::new(env!("CARGO"));
    // A dependency's build script asks for what `cargo run` and `cargo test` say of our own package: it would be run
    // again, and half of the tree be built again.
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_")) {
            cargo.env_remove(name);
        }
    }
    let built = cargo
        .args(["build", "-p", "logweir", "--bin", "logweir", "--message-format", "json-render-diagnostics"])
        .args(arguments)
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."))
        .stderr(Stdio::inherit())
        .output()
        .expect("cargo runs where the tests were built");
    assert!(built.status.success(), "logweir does not build");
    String::from_utf8_lossy(&built.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|message| message["target"]["name"] == "logweir")
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
        .expect("cargo names the executable")
}

/// Configuration keys and values, e.g. `journal.quota_bytes` = `1000000`; and `config` for the file.
pub type Settings = BTreeMap<String, String>;

/// `logweir` with `arguments`, this configuration and nothing else from the environment.
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

/// As [`command`], for another binary and with variables as they stand.
pub fn command_of<K: AsRef<OsStr>, V: AsRef<OsStr>>(
    binary: &Path,
    environment: impl IntoIterator<Item = (K, V)>,
    faults: &str,
    arguments: &[&str],
) -> Command {
    let mut command = Command::new(binary);
    command.args(arguments).env_clear().envs(environment).env("FAILPOINTS", faults).env("RUST_BACKTRACE", "1");
    // SAFETY: `prctl` is one system call and touches no memory. It ends the child with the thread that
    // started it, so that a test program that is killed leaves nothing behind.
    unsafe {
        command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        });
    }
    command
}

/// Runs a subcommand to its end, at most `within`.
///
/// # Panics
/// It does not end in time.
#[must_use]
pub fn run(settings: &Settings, arguments: &[&str], within: Duration) -> Output {
    run_command(command(settings, "", arguments), within)
}

/// Runs a command to its end, at most `within`.
///
/// # Panics
/// It does not end in time.
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
    let output = child.wait_with_output().expect("its output can be read");
    drop(ended);
    guard.join().expect("the guard does not panic");
    assert_ne!(output.status.signal(), Some(libc::SIGKILL), "{command:?} did not end within {within:?}");
    output
}

/// A port that nobody has, and that the kernel gives to no outgoing connection: between the end of one
/// process and the start of the next a client that dials it would otherwise now and then meet itself.
#[must_use]
pub fn free_addr() -> SocketAddr {
    static TAKEN: Mutex<Vec<u16>> = Mutex::new(Vec::new());
    let mut taken = TAKEN.lock().expect("nobody panics in here");
    loop {
        let port = rand::rng().random_range(10_000..32_000);
        let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        if !taken.contains(&port) && TcpListener::bind(addr).is_ok() {
            taken.push(port);
            return addr;
        }
    }
}

/// How a process ended.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Exit(ExitStatus);

impl Exit {
    /// Its exit code; none where a signal ended it.
    #[must_use]
    pub fn code(self) -> Option<i32> {
        self.0.code()
    }

    /// Whether SIGKILL ended it: a kill point, or the harness.
    #[must_use]
    pub fn killed(self) -> bool {
        self.0.signal() == Some(libc::SIGKILL)
    }
}

impl fmt::Debug for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The running server; killed with its value.
pub struct Server {
    child: Child,
    agent: ureq::Agent,
    /// Where it takes records.
    pub http: SocketAddr,
    /// Where it tells how it is.
    pub admin: SocketAddr,
    /// Its stdout and stderr.
    pub log: PathBuf,
    exit: Option<Exit>,
}

impl Server {
    /// Starts `logweir run`; returns before it is ready.
    ///
    /// # Panics
    /// The settings lack a listener, or the binary does not start.
    #[must_use]
    pub fn start(settings: &Settings, faults: &str, log: PathBuf) -> Self {
        Self::start_binary(binary(), settings, faults, log)
    }

    /// As [`Server::start`], for another binary.
    ///
    /// # Panics
    /// As there.
    #[must_use]
    pub fn start_binary(binary: &Path, settings: &Settings, faults: &str, log: PathBuf) -> Self {
        let addr = |key: &str| settings[key].parse().expect("an address");
        let command = command_of(binary, variables(settings), faults, &["run"]);
        Self::spawn(command, addr("http.listen"), addr("admin.listen"), log)
    }

    /// Starts a command that listens there.
    ///
    /// # Panics
    /// The binary does not start.
    #[must_use]
    pub fn spawn(mut command: Command, http: SocketAddr, admin: SocketAddr, log: PathBuf) -> Self {
        let file = File::create(&log).expect("the log's directory exists");
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone().expect("a second handle"))
            .stderr(file)
            .spawn()
            .expect("the binary starts");
        let agent = agent(Duration::from_secs(10));
        Self { child, agent, http, admin, log, exit: None }
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until start-up is over and it takes records; an end before that is an error.
    ///
    /// # Errors
    /// It ended.
    ///
    /// # Panics
    /// Neither happens within a minute.
    pub fn ready(&mut self) -> Result<(), Exit> {
        self.until("ready", Duration::from_secs(60), |server| {
            ["/startupz", "/readyz"].iter().all(|path| server.admin(path).is_some_and(|answer| answer.status == 200))
        })
    }

    /// Looks until `holds`; an end before that is an error.
    ///
    /// # Errors
    /// The process ended.
    ///
    /// # Panics
    /// Neither happens in time.
    pub fn until(&mut self, what: &str, within: Duration, mut holds: impl FnMut(&Self) -> bool) -> Result<(), Exit> {
        let deadline = Instant::now() + within;
        loop {
            if let Some(exit) = self.exited() {
                return Err(exit);
            }
            if holds(self) {
                return Ok(());
            }
            assert!(Instant::now() < deadline, "not {what} within {within:?}; its log: {}", self.log.display());
            std::thread::sleep(LOOK);
        }
    }

    /// Asks the admin listener; none where no answer comes.
    #[must_use]
    pub fn admin(&self, path: &str) -> Option<Answer> {
        get(&self.agent, &format!("http://{}{path}", self.admin)).ok()
    }

    /// Asks the data listener; none where no answer comes.
    #[must_use]
    pub fn data(&self, path: &str) -> Option<Answer> {
        get(&self.agent, &format!("http://{}{path}", self.http)).ok()
    }

    /// As [`Server::data`], with a token.
    #[must_use]
    pub fn data_as(&self, token: &str, path: &str) -> Option<Answer> {
        get_as(&self.agent, token, &format!("http://{}{path}", self.http)).ok()
    }

    /// Posts a body to the data listener; none where no answer comes.
    #[must_use]
    pub fn post(&self, path: &str, kind: &str, body: &str) -> Option<Answer> {
        post_body(&self.agent, &format!("http://{}{path}", self.http), kind, body).ok()
    }

    /// Its status; null where no answer comes.
    #[must_use]
    pub fn status(&self) -> Value {
        self.data("/api/v1/status").map_or(Value::Null, |answer| answer.json())
    }

    /// A metric's value, all of its label sets that contain `label` together; 0 where there is none.
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

    /// SIGSTOP, and waits until no thread of it moves: on a busy machine they go on for a while.
    ///
    /// # Panics
    /// They do not stop.
    pub fn freeze(&self) {
        self.signal(libc::SIGSTOP);
        let is_stopped = |task: std::fs::DirEntry| {
            let stat = std::fs::read_to_string(task.path().join("stat")).unwrap_or_default();
            stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
        };
        let tasks = || std::fs::read_dir(format!("/proc/{}/task", self.pid())).expect("a process has threads");
        let deadline = Instant::now() + Duration::from_secs(30);
        while !tasks().flatten().all(is_stopped) {
            assert!(Instant::now() < deadline, "it does not stop");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// SIGKILL, and waits for the end.
    pub fn kill(&mut self) -> Exit {
        self.signal(libc::SIGKILL);
        self.wait(Duration::from_secs(30))
    }

    /// How it ended, if it has.
    pub fn exited(&mut self) -> Option<Exit> {
        if self.exit.is_none() {
            self.exit = self.child.try_wait().expect("our own child").map(Exit);
        }
        self.exit
    }

    /// Waits for the end.
    ///
    /// # Panics
    /// It does not come in time; then the process is killed.
    pub fn wait(&mut self, within: Duration) -> Exit {
        let deadline = Instant::now() + within;
        loop {
            if let Some(exit) = self.exited() {
                return exit;
            }
            if Instant::now() >= deadline {
                self.signal(libc::SIGKILL);
                panic!("still running after {within:?}; its log: {}", self.log.display());
            }
            std::thread::sleep(LOOK);
        }
    }

    /// What it has written so far.
    #[must_use]
    pub fn log_text(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Resident memory now and at its highest, in bytes.
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
    fn free_addresses_are_different_and_outside_of_the_kernels_range() {
        let addrs: Vec<_> = (0..20).map(|_| free_addr()).collect();
        assert!(addrs.iter().all(|addr| addr.port() < 32_000));
        assert_eq!(addrs.iter().collect::<std::collections::HashSet<_>>().len(), 20);
    }
}
