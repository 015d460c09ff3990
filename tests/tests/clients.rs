//! Real clients, as their registries have them: each sends, the server is killed in the middle and started again, and
//! every record that the client was told is stored is stored.
//!
//! They are installed once, below the target directory. Where a registry cannot be reached a test says so and is passed
//! over; anything else that keeps a client from being installed is a failure.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use logweir_tests::scenario::{PATIENCE, Scenario, on_postgres, on_sqlite};

/// Records that a client must be told are stored before the server is killed, and in all.
const BEFORE: usize = 100;
const WANTED: usize = 300;

#[test]
fn opentelemetrys_sdk_for_python() {
    let Some(python) = python() else { return };
    on_sqlite("otlp", |s| told_is_stored(s, &python, "otlp.py", "otlp", "13"));
    on_postgres("otlp", |s| told_is_stored(s, &python, "otlp.py", "otlp", "13"));
}

#[test]
fn a_loki_handler_for_python() {
    let Some(python) = python() else { return };
    on_sqlite("loki", |s| told_is_stored(s, &python, "loki.py", "loki", "13"));
}

#[test]
fn elasticsearchs_bulk_helper_for_python() {
    let Some(python) = python() else { return };
    on_sqlite("elastic", |s| told_is_stored(s, &python, "elastic.py", "elastic", "13"));
}

#[test]
fn winston_over_http() {
    let Some(modules) = node_modules() else { return };
    on_sqlite("winston", |s| {
        let mut node = Command::new("node");
        node.env("NODE_PATH", &modules);
        told_is_stored_by(s, node, "winston.js", "winston", "13");
    });
}

fn told_is_stored(s: &mut Scenario, python: &Path, script: &str, service: &str, severity: &str) {
    told_is_stored_by(s, Command::new(python), script, service, severity);
}

/// Runs `script` against a server that is killed once, and compares what it was told with the table.
fn told_is_stored_by(s: &mut Scenario, mut program: Command, script: &str, service: &str, severity: &str) {
    s.start();
    program.env("PYTHONDONTWRITEBYTECODE", "1"); // nothing is left beside the scripts
    program.arg(scripts().join(script)).arg(&s.settings["http.listen"]).arg(WANTED.to_string());
    let mut client = Client::start(program, &s.dir.join("client.log"));
    client.told(BEFORE);
    s.server().kill();
    s.start();
    client.finish();
    assert!(client.keys.len() >= WANTED, "{} of {WANTED} records", client.keys.len());

    let sql = format!("SELECT DISTINCT message FROM logs WHERE service = '{service}' AND severity = {severity}");
    let stored = |s: &Scenario| -> BTreeSet<String> {
        s.store.rows(&sql).map(|rows| rows.into_iter().flatten().collect()).unwrap_or_default()
    };
    let deadline = Instant::now() + PATIENCE;
    let missing = loop {
        let stored = stored(s);
        let missing: Vec<_> = client.keys.difference(&stored).cloned().collect();
        if missing.is_empty() || Instant::now() > deadline {
            break missing;
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    assert_eq!(missing, Vec::<String>::new(), "told that they are stored, and not in the table");
    s.stop();
}

/// A client at work; killed with its value.
struct Client {
    child: Child,
    lines: Receiver<String>,
    keys: BTreeSet<String>,
    log: PathBuf,
}

impl Client {
    fn start(mut program: Command, log: &Path) -> Self {
        let errors = std::fs::File::create(log).expect("the client's log");
        let mut child =
            program.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(errors).spawn().expect("the client starts");
        let output = BufReader::new(child.stdout.take().expect("it is piped"));
        let (sender, lines) = channel();
        std::thread::spawn(move || output.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Self { child, lines, keys: BTreeSet::new(), log: log.to_owned() }
    }

    /// Waits until it was told of `count` records.
    fn told(&mut self, count: usize) {
        let deadline = Instant::now() + PATIENCE;
        while self.keys.len() < count {
            let line = self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now()));
            let line = line.unwrap_or_else(|error| panic!("{error} after {} records: {}", self.keys.len(), self.log()));
            self.keys.insert(line);
        }
    }

    /// Reads to its end.
    fn finish(&mut self) {
        let deadline = Instant::now() + 2 * PATIENCE;
        loop {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => _ = self.keys.insert(line),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    panic!("it does not end after {} records: {}", self.keys.len(), self.log())
                }
            }
        }
        let status = self.child.wait().expect("our own child");
        assert!(status.success(), "{status}: {}", self.log());
    }

    fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn scripts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("clients")
}

/// A Python that has the clients.
fn python() -> Option<PathBuf> {
    let wanted = std::fs::read_to_string(scripts().join("requirements.txt")).expect("the list of clients");
    let dir = installed("python", &wanted, |dir| {
        run(Command::new("python3").args(["-m", "venv"]).arg(dir))?;
        let requirements = scripts().join("requirements.txt");
        run(Command::new(dir.join("bin/pip")).args(["install", "--quiet", "--requirement"]).arg(requirements))
    })?;
    Some(dir.join("bin/python"))
}

/// A folder of Node's modules that has the clients.
fn node_modules() -> Option<PathBuf> {
    let wanted = std::fs::read_to_string(scripts().join("package.json")).expect("the list of clients");
    let dir = installed("node", &wanted, |dir| {
        std::fs::create_dir_all(dir).map_err(|error| error.to_string())?;
        std::fs::write(dir.join("package.json"), &wanted).map_err(|error| error.to_string())?;
        run(Command::new("npm").args(["install", "--no-audit", "--no-fund", "--prefix"]).arg(dir))
    })?;
    Some(dir.join("node_modules"))
}

/// The folder in which `install` has put what `wanted` lists; none, loudly, where the registry cannot be reached.
fn installed(name: &str, wanted: &str, install: impl FnOnce(&Path) -> Result<(), String>) -> Option<PathBuf> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("clients").join(name);
    let mark = dir.join("installed");
    if std::fs::read_to_string(&mark).is_ok_and(|has| has == wanted) {
        return Some(dir);
    }
    let _ = std::fs::remove_dir_all(&dir);
    match install(&dir) {
        Ok(()) => {
            std::fs::write(mark, wanted).expect("the target directory");
            Some(dir)
        }
        Err(error) if UNREACHABLE.iter().any(|sign| error.contains(sign)) => {
            eprintln!(
                "PASSED OVER: the clients for {name} cannot be installed, their registry is out of reach: {error}"
            );
            None
        }
        Err(error) => panic!("the clients for {name} cannot be installed: {error}"),
    }
}

/// How pip and npm say that they reach nobody.
const UNREACHABLE: [&str; 6] =
    ["NewConnectionError", "ConnectTimeoutError", "Failed to establish", "ENOTFOUND", "EAI_AGAIN", "ECONNREFUSED"];

fn run(command: &mut Command) -> Result<(), String> {
    let output = command.stdin(Stdio::null()).output().map_err(|error| format!("{command:?}: {error}"))?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &*String::from_utf8_lossy(&output.stderr);
    output.status.success().then_some(()).ok_or_else(|| format!("{command:?}: {}: {said}", output.status))
}
