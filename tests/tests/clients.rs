//! Real clients from their registries: each sends records, the server is killed and restarted meanwhile, and every
//! record that was acknowledged to the client is stored.
//!
//! They are installed once, below the target directory. If a registry is unreachable, the test reports that and is
//! skipped; any other failure to install a client fails the test.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use logweir_tests::installed;
use logweir_tests::scenario::{PATIENCE, Scenario, on_postgres, on_sqlite};

/// Records that must be acknowledged before the server is killed.
const BEFORE_KILL: usize = 100;
/// Records that must be acknowledged in total.
const TOTAL: usize = 300;

#[test]
fn opentelemetrys_sdk_for_python() {
    let Some(python) = python() else { return };
    on_sqlite("otlp", |s| acknowledged_is_stored(s, &python, "otlp.py", "otlp", "13"));
    on_postgres("otlp", |s| acknowledged_is_stored(s, &python, "otlp.py", "otlp", "13"));
}

#[test]
fn a_loki_handler_for_python() {
    let Some(python) = python() else { return };
    on_sqlite("loki", |s| acknowledged_is_stored(s, &python, "loki.py", "loki", "13"));
}

#[test]
fn elasticsearchs_bulk_helper_for_python() {
    let Some(python) = python() else { return };
    on_sqlite("elastic", |s| acknowledged_is_stored(s, &python, "elastic.py", "elastic", "13"));
}

#[test]
fn winston_over_http() {
    let Some(modules) = node_modules() else { return };
    on_sqlite("winston", |s| {
        let mut node = Command::new("node");
        node.env("NODE_PATH", &modules);
        acknowledged_is_stored_by(s, node, "winston.js", "winston", "13");
    });
}

fn acknowledged_is_stored(s: &mut Scenario, python: &Path, script: &str, service: &str, severity: &str) {
    acknowledged_is_stored_by(s, Command::new(python), script, service, severity);
}

/// Runs `script` against a server that is killed once, and compares the acknowledged records with the table.
fn acknowledged_is_stored_by(s: &mut Scenario, mut program: Command, script: &str, service: &str, severity: &str) {
    s.start();
    program.env("PYTHONDONTWRITEBYTECODE", "1"); // leaves no files beside the scripts
    program.arg(scripts().join(script)).arg(&s.settings["http.listen"]).arg(TOTAL.to_string());
    let mut client = Client::start(program, &s.dir.join("client.log"));
    client.acknowledged(BEFORE_KILL);
    s.server().kill();
    s.start();
    client.finish();
    assert!(client.keys.len() >= TOTAL, "{} of {TOTAL} records", client.keys.len());

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
    assert_eq!(missing, Vec::<String>::new(), "acknowledged but not in the table");
    s.stop();
}

/// A running client; killed when dropped.
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
        let output = BufReader::new(child.stdout.take().expect("stdout is piped"));
        let (sender, lines) = channel();
        std::thread::spawn(move || output.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Self { child, lines, keys: BTreeSet::new(), log: log.to_owned() }
    }

    /// Waits until `count` records were acknowledged.
    fn acknowledged(&mut self, count: usize) {
        let deadline = Instant::now() + PATIENCE;
        while self.keys.len() < count {
            let line = self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now()));
            let line = line.unwrap_or_else(|error| panic!("{error} after {} records: {}", self.keys.len(), self.log()));
            self.keys.insert(line);
        }
    }

    /// Reads its output to the end.
    fn finish(&mut self) {
        let deadline = Instant::now() + 2 * PATIENCE;
        loop {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => _ = self.keys.insert(line),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    panic!("the client has not exited after {} records: {}", self.keys.len(), self.log())
                }
            }
        }
        let status = self.child.wait().expect("a child of this process");
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

/// A Python with the clients installed.
fn python() -> Option<PathBuf> {
    installed::python(&install_dir(), &scripts().join("requirements.txt"))
}

/// A directory of Node modules with the clients installed.
fn node_modules() -> Option<PathBuf> {
    installed::node_modules(&install_dir(), &scripts().join("package.json"))
}

fn install_dir() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("clients")
}
