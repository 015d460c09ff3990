//! A child process that uses a journal and is killed or runs into a full or failing disk: this test binary again,
//! configured by environment variables. It reports acknowledgments on its standard output.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use logweir_engine::fault;
use logweir_engine::journal::{AppendError, Journal, JournalConfig};

use crate::kit::*;

/// Configuration of a child.
#[derive(Clone, Copy, Debug)]
pub struct ChildSpec<'a> {
    pub dir: &'a Path,
    /// `FAILPOINTS`.
    pub faults: &'a str,
    /// Frames to append, one after the other.
    pub frames: usize,
    pub frame_bytes: usize,
    /// Number of frames appended before the first of them is waited for.
    pub burst: usize,
    /// Commits each frame this many frames later; 0 for never.
    pub commit_behind: usize,
    /// Commits everything each time this many frames have been appended, with a quota of 16 segments, so that segments
    /// are created, reused and removed. 0 for never.
    pub commit_every: usize,
    /// File-size limit in bytes; 0 for none.
    pub file_bytes_max: u64,
}

impl<'a> ChildSpec<'a> {
    pub fn new(dir: &'a Path, faults: &'a str) -> Self {
        Self {
            dir,
            faults,
            frames: 40,
            frame_bytes: 6000,
            burst: 1,
            commit_behind: 0,
            commit_every: 0,
            file_bytes_max: 0,
        }
    }

    pub fn spawn(&self) -> Running {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child::the_child", "--nocapture"])
            .env("JOURNAL_CHILD", self.dir)
            .env("FAILPOINTS", self.faults)
            .env("CHILD_FRAMES", self.frames.to_string())
            .env("CHILD_FRAME_BYTES", self.frame_bytes.to_string())
            .env("CHILD_BURST", self.burst.to_string())
            .env("CHILD_COMMIT_BEHIND", self.commit_behind.to_string())
            .env("CHILD_COMMIT_EVERY", self.commit_every.to_string())
            .env("CHILD_FILE_BYTES_MAX", self.file_bytes_max.to_string())
            .env("RUST_BACKTRACE", "0")
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Running { child, lines, outcome: Outcome::default() }
    }

    /// Runs the child until it exits.
    pub fn run(&self) -> Outcome {
        let mut running = self.spawn();
        while running.read_line() {}
        running.child.wait().unwrap();
        running.outcome
    }
}

/// What a child has reported.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Numbers and sequence numbers of acknowledged frames.
    pub acknowledged: Vec<(usize, u64)>,
    pub committed: u64,
    pub errors: Vec<String>,
    pub opened: bool,
    /// Whether it reached its end without being killed.
    pub done: bool,
}

pub struct Running {
    pub child: Child,
    lines: BufReader<std::process::ChildStdout>,
    pub outcome: Outcome,
}

impl Running {
    /// Reads one line; returns `false` at the end.
    pub fn read_line(&mut self) -> bool {
        let mut line = String::new();
        if self.lines.read_line(&mut line).unwrap() == 0 {
            return false;
        }
        // libtest may have written in front of it.
        let Some((_, message)) = line.trim_end().split_once('@') else { return true };
        let (word, rest) = message.split_once(' ').unwrap_or((message, ""));
        let number = |at: usize| rest.split(' ').nth(at).and_then(|word| word.parse::<u64>().ok()).unwrap();
        match word {
            "opened" => self.outcome.opened = true,
            "ack" => self.outcome.acknowledged.push((number(0) as usize, number(1))),
            "committed" => self.outcome.committed = number(0),
            "error" => self.outcome.errors.push(rest.to_owned()),
            "done" => self.outcome.done = true,
            other => panic!("unexpected message from the child: {other}"),
        }
        true
    }
}

fn variable(name: &str) -> u64 {
    std::env::var(name).unwrap().parse().unwrap()
}

fn emit(line: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "@{line}").unwrap();
    out.flush().unwrap();
}

/// Not a test: does nothing without the environment variables.
#[test]
fn the_child() {
    let Ok(dir) = std::env::var("JOURNAL_CHILD") else { return };
    let _armed = fault::arm_from_environment();
    // A child that hangs must fail its test, not block it.
    std::thread::spawn(|| {
        std::thread::sleep(2 * PATIENCE);
        std::process::exit(3);
    });
    let file_bytes_max = variable("CHILD_FILE_BYTES_MAX");
    if file_bytes_max > 0 {
        let limit = rustix::process::Rlimit { current: Some(file_bytes_max), maximum: Some(file_bytes_max) };
        rustix::process::setrlimit(rustix::process::Resource::Fsize, limit).unwrap();
        signal_hook::flag::register(rustix::process::Signal::XFSZ.as_raw(), Default::default()).unwrap();
    }
    let every = variable("CHILD_COMMIT_EVERY") as usize;
    let mut config = JournalConfig { queue_bytes_max: 4 << 20, ..config(Path::new(&dir)) };
    if every > 0 {
        config.quota_bytes = 16 * SEGMENT_BYTES;
    }
    let opened = Journal::open(config);
    let journal = match opened {
        Ok((journal, _)) => journal,
        Err(error) => return emit(&format!("error {error}")),
    };
    emit("opened");
    let (frames, bytes) = (variable("CHILD_FRAMES") as usize, variable("CHILD_FRAME_BYTES") as usize);
    let behind = variable("CHILD_COMMIT_BEHIND") as usize;
    let mut seqs = Vec::new();
    let mut started = VecDeque::new();
    // Waits once for a full disk, unless it stays so.
    let mut may_wait = file_bytes_max == 0;
    for n in 0..frames {
        while started.len() < variable("CHILD_BURST") as usize && n + started.len() < frames {
            started.push_back(begin(&journal, 0, 1, &payload(n + started.len(), bytes)));
        }
        let started = started.pop_front().unwrap();
        match started.and_then(|(appended, answer)| answer.recv().map(|_| appended)) {
            Ok(appended) => {
                emit(&format!("ack {n} {}", appended.seq));
                seqs.push(appended.seq);
            }
            Err(error) => {
                emit(&format!("error {error}"));
                if error == AppendError::DiskFull && n + 1 < frames && std::mem::take(&mut may_wait) {
                    let deadline = Instant::now() + PATIENCE;
                    while journal.check_writable().is_err() && Instant::now() < deadline {
                        std::thread::sleep(Duration::from_millis(5));
                    }
                }
                if matches!(error, AppendError::Poisoned(_)) {
                    assert!(matches!(journal.check_writable(), Err(AppendError::Poisoned(_))));
                    emit(&format!("error {}", block_on(journal.poisoned())));
                    assert!(journal.seal().is_err());
                    return;
                }
            }
        }
        let committed = match n {
            _ if behind > 0 && n >= behind => Some(seqs[n - behind]),
            _ if every > 0 && (n + 1).is_multiple_of(every) => seqs.last().copied(),
            _ => None,
        };
        if let Some(seq) = committed {
            emit(&format!("committed {seq}"));
            journal.commit(0, seq);
        }
    }
    emit("done");
}
