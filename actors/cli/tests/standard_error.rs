//! A server whose standard error nobody reads: a log collector that hangs, a terminal that was stopped.

#![allow(clippy::unwrap_used, reason = "clippy.toml allows it in test functions, these are their helpers")]

use std::fs::OpenOptions;
use std::io::{BufRead as _, BufReader, ErrorKind, PipeReader, PipeWriter, Read as _, Write as _};
use std::net::TcpStream;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::OFlags;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// Limit of every wait: a server that hangs must fail the test.
const LIMIT: Duration = Duration::from_secs(180);
/// Records that are sent while nobody reads.
const RECORDS: usize = 50;
/// Connections that are opened between two reads of the metric.
const CONNECTIONS: usize = 200;
/// What the last line says, after a number.
const DROPPED: &str = " lines of the log were dropped: nobody read standard error";

/// A server with a log of every connection, and the pipe that is its standard error.
struct Server {
    dir: TempDir,
    child: Option<Child>,
    reader: BufReader<PipeReader>,
    /// Held open, so that the pipe does not end when the server does.
    writer: Option<PipeWriter>,
    data: String,
    admin: String,
    agent: ureq::Agent,
}

impl Server {
    /// `faults` only has an effect in a build with the feature.
    fn start(faults: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (reader, writer) = std::io::pipe().unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_logweir"));
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().contains("LOGWEIR")) {
            command.env_remove(name);
        }
        let settings = ["http.listen=127.0.0.1:0", "admin.listen=127.0.0.1:0", "log.level=trace"];
        command.arg("run").args(settings.iter().flat_map(|setting| ["--set", setting]));
        command.args(["--data-dir", "data"]).current_dir(dir.path()).env("HOME", dir.path()).stdin(Stdio::null());
        command.env("FAILPOINTS", faults);
        let child = command.stdout(Stdio::null()).stderr(writer.try_clone().unwrap()).spawn().unwrap();
        let mut reader = BufReader::new(reader);
        let mut address = |name: &str| loop {
            let mut line = String::new();
            assert!(reader.read_line(&mut line).unwrap() > 0, "it ended before it had started");
            if let Some(url) = line.trim_start().strip_prefix(name) {
                return url.trim().to_owned();
            }
        };
        let data = address("web UI ").trim_end_matches('/').to_owned();
        let admin = address("metrics ");
        let config = ureq::Agent::config_builder().timeout_global(Some(LIMIT)).proxy(None);
        let agent = config.build().into();
        Self { dir, child: Some(child), reader, writer: Some(writer), data, admin, agent }
    }

    /// Leaves no space in the pipe.
    fn fill_pipe(&self) {
        fill(self.writer.as_ref().unwrap());
    }

    /// Stores a record, and returns when it is in the database.
    fn store(&self) {
        let url = format!("{}/ingest?ack=committed", self.data);
        let mut response = self.agent.post(&url).send("{\"msg\":\"a record\"}").expect("an acknowledgment");
        let text = response.body_mut().read_to_string().unwrap();
        assert!(text.contains("\"accepted\":1") && text.contains("\"ack\":\"committed\""), "{text}");
    }

    fn metrics(&self) -> String {
        self.agent.get(&self.admin).call().expect("the metrics").body_mut().read_to_string().unwrap()
    }

    fn dropped(&self) -> u64 {
        let metrics = self.metrics();
        let dropped = metrics.lines().find_map(|line| line.strip_prefix("logweir_log_lines_dropped_total "));
        dropped.map_or(0, |number| number.parse().unwrap())
    }

    /// Opens connections, each of which is logged, until lines have been dropped.
    fn overflow(&self) -> u64 {
        let deadline = Instant::now() + LIMIT;
        let address = self.data.trim_start_matches("http://");
        loop {
            let dropped = self.dropped();
            if dropped > 0 {
                return dropped;
            }
            assert!(Instant::now() < deadline, "no dropped line was counted");
            for _ in 0..CONNECTIONS {
                drop(TcpStream::connect(address).unwrap());
            }
        }
    }

    /// Sends SIGTERM, and waits for the end.
    fn stop(&mut self) -> ExitStatus {
        let mut child = self.child.take().unwrap();
        let pid = Pid::from_child(&child);
        kill_process(pid, Signal::TERM).unwrap();
        let (sender, ended) = mpsc::channel();
        thread::spawn(move || sender.send(child.wait().unwrap()));
        ended.recv_timeout(LIMIT).unwrap_or_else(|_| {
            kill_process(pid, Signal::KILL).unwrap();
            panic!("it is still running long after SIGTERM");
        })
    }

    /// Exit code of `logweir verify`, which compares the journal with the database.
    fn verify(&self) -> Option<i32> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_logweir"));
        command.args(["verify", "--data-dir", "data"]).current_dir(self.dir.path()).env("HOME", self.dir.path());
        command.stdout(Stdio::null()).status().unwrap().code()
    }
}

fn fill(writer: &PipeWriter) {
    // A new opening: the server's end must go on to block.
    let mut pipe = OpenOptions::new()
        .write(true)
        .custom_flags(OFlags::NONBLOCK.bits() as i32)
        .open(Path::new("/proc/self/fd").join(writer.as_raw_fd().to_string()))
        .unwrap();
    for piece in [&[b'\n'; 4096][..], b"\n"] {
        let error = loop {
            if let Err(error) = pipe.write(piece) {
                break error;
            }
        };
        assert_eq!(error.kind(), ErrorKind::WouldBlock);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[test]
fn records_are_committed_and_the_server_stops_while_nobody_reads_standard_error() {
    let mut server = Server::start("");
    server.fill_pipe();
    (0..RECORDS).for_each(|_| server.store());
    server.overflow();
    server.store();
    assert_eq!(server.stop().code(), Some(0));
    assert_eq!(server.verify(), Some(0));
}

#[cfg(feature = "faults")]
#[test]
fn a_stage_that_panics_is_restarted_while_nobody_reads_standard_error() {
    let mut server = Server::start("stage.db_flusher=1*panic->off");
    server.fill_pipe();
    (0..RECORDS).for_each(|_| server.store());
    let metrics = server.metrics();
    let mut restarts = metrics.lines().filter(|line| line.starts_with("logweir_stage_restarts_total{"));
    assert!(restarts.any(|line| line.contains("panic") && line.ends_with(" 1")), "{metrics}");
    assert_eq!(server.stop().code(), Some(0));
    assert_eq!(server.verify(), Some(0));
}

#[test]
fn a_reader_that_comes_back_learns_that_lines_are_missing() {
    let mut server = Server::start("");
    server.fill_pipe();
    server.overflow();
    let mut reader = server.reader.get_ref().try_clone().unwrap();
    let rest = thread::spawn(move || {
        let mut text = String::new();
        reader.read_to_string(&mut text).map(|_| text)
    });
    assert_eq!(server.stop().code(), Some(0));
    server.writer = None; // the last end
    let rest = rest.join().unwrap().unwrap();
    let count = rest.lines().find_map(|line| line.strip_prefix("logweir: ")?.strip_suffix(DROPPED));
    assert!(count.is_some_and(|count| count.parse::<u64>().unwrap() > 0), "{:?}", rest.lines().last());
}

/// Runs `logweir run` with a configuration that cannot start. `nobody_reads`: standard error is a full pipe.
fn start_in_vain(setting: &str, nobody_reads: bool) -> (Option<i32>, String) {
    let dir = tempfile::tempdir().unwrap();
    let (reader, writer) = std::io::pipe().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_logweir"));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().contains("LOGWEIR")) {
        command.env_remove(name);
    }
    let settings = ["http.listen=127.0.0.1:0", "admin.listen=127.0.0.1:0", "log.level=off", setting];
    command.arg("run").args(settings.iter().flat_map(|setting| ["--set", setting]));
    command.args(["--data-dir", "data"]).current_dir(dir.path()).env("HOME", dir.path());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(writer.try_clone().unwrap());
    if nobody_reads {
        fill(&writer);
    }
    let mut child = command.spawn().unwrap();
    drop((command, writer));
    let deadline = Instant::now() + LIMIT;
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if Instant::now() >= deadline {
            child.kill().unwrap();
            panic!("it waits for the reader of its error");
        }
        thread::sleep(Duration::from_millis(10));
    };
    let mut text = String::new();
    if !nobody_reads {
        BufReader::new(reader).read_to_string(&mut text).unwrap();
    }
    (status.code(), text)
}

#[test]
fn the_reason_of_the_end_passes_every_filter_and_waits_for_no_reader() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let in_use = format!("http.listen={}", taken.local_addr().unwrap());
    for (setting, code, reason) in [(in_use.as_str(), 69, "cannot listen on"), ("lanes=0", 78, "invalid lanes")] {
        let (ended, text) = start_in_vain(setting, false);
        assert_eq!(ended, Some(code), "{text}");
        assert!(text.contains(reason), "{text}");
        assert_eq!(start_in_vain(setting, true).0, Some(code));
    }
}
