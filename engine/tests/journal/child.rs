//! A child process that uses a journal and is killed, starved or cut off: this test binary again, with
//! its orders in the environment. It tells what it was promised on its standard output.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use logweir_engine::fault;
use logweir_engine::journal::{AppendError, Journal, JournalConfig};

use crate::kit::*;

/// What a child does.
#[derive(Clone, Copy, Debug)]
pub struct Orders<'a> {
    pub dir: &'a Path,
    /// `FAILPOINTS`.
    pub faults: &'a str,
    /// Frames to append, one after the other.
    pub frames: usize,
    pub frame_bytes: usize,
    /// Frames that are appended before the first of them is waited for.
    pub burst: usize,
    /// Settles each frame this many frames later; 0 for never.
    pub settle_behind: usize,
    /// Settles everything after each so many frames, with a quota of 16 segments: then segments are made, used again and
    /// removed. 0 for never.
    pub settle_every: usize,
    /// Bytes a file may have; 0 for any.
    pub file_bytes_max: u64,
}

impl<'a> Orders<'a> {
    pub fn new(dir: &'a Path, faults: &'a str) -> Self {
        Self {
            dir,
            faults,
            frames: 40,
            frame_bytes: 6000,
            burst: 1,
            settle_behind: 0,
            settle_every: 0,
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
            .env("CHILD_SETTLE_BEHIND", self.settle_behind.to_string())
            .env("CHILD_SETTLE_EVERY", self.settle_every.to_string())
            .env("CHILD_FILE_BYTES_MAX", self.file_bytes_max.to_string())
            .env("RUST_BACKTRACE", "0")
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Running { child, lines, told: Told::default() }
    }

    /// Until it ends.
    pub fn run(&self) -> Told {
        let mut running = self.spawn();
        while running.listen() {}
        running.child.wait().unwrap();
        running.told
    }
}

/// What a child said.
#[derive(Clone, Debug, Default)]
pub struct Told {
    /// Numbers and sequence numbers of acknowledged frames.
    pub acknowledged: Vec<(usize, u64)>,
    pub settled: u64,
    pub errors: Vec<String>,
    pub opened: bool,
    /// It reached its end and was not killed on the way.
    pub done: bool,
}

pub struct Running {
    pub child: Child,
    lines: BufReader<std::process::ChildStdout>,
    pub told: Told,
}

impl Running {
    /// Takes in one line; `false` at the end.
    pub fn listen(&mut self) -> bool {
        let mut line = String::new();
        if self.lines.read_line(&mut line).unwrap() == 0 {
            return false;
        }
        // libtest may have written in front of it.
        let Some((_, said)) = line.trim_end().split_once('@') else { return true };
        let (word, rest) = said.split_once(' ').unwrap_or((said, ""));
        let number = |at: usize| rest.split(' ').nth(at).and_then(|word| word.parse::<u64>().ok()).unwrap();
        match word {
            "opened" => self.told.opened = true,
            "ack" => self.told.acknowledged.push((number(0) as usize, number(1))),
            "settled" => self.told.settled = number(0),
            "error" => self.told.errors.push(rest.to_owned()),
            "done" => self.told.done = true,
            other => panic!("the child says {other}"),
        }
        true
    }
}

fn order(name: &str) -> u64 {
    std::env::var(name).unwrap().parse().unwrap()
}

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "@{line}").unwrap();
    out.flush().unwrap();
}

/// Not a test of its own: does nothing without orders.
#[test]
fn the_child() {
    let Ok(dir) = std::env::var("JOURNAL_CHILD") else { return };
    let _armed = fault::arm_from_environment();
    // A child that hangs must fail its test, not hold it.
    std::thread::spawn(|| {
        std::thread::sleep(Duration::from_secs(60));
        std::process::exit(3);
    });
    let file_bytes_max = order("CHILD_FILE_BYTES_MAX");
    if file_bytes_max > 0 {
        let limit = libc::rlimit { rlim_cur: file_bytes_max, rlim_max: file_bytes_max };
        // SAFETY: the struct is complete and only read.
        assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_FSIZE, &raw const limit) }, 0);
    }
    let every = order("CHILD_SETTLE_EVERY") as usize;
    let mut config = JournalConfig { queue_bytes_max: 4 << 20, ..config(Path::new(&dir)) };
    if every > 0 {
        config.quota_bytes = 16 * SEGMENT_BYTES;
    }
    let opened = Journal::open(config);
    let journal = match opened {
        Ok((journal, _)) => journal,
        Err(error) => return say(&format!("error {error}")),
    };
    say("opened");
    let (frames, bytes) = (order("CHILD_FRAMES") as usize, order("CHILD_FRAME_BYTES") as usize);
    let behind = order("CHILD_SETTLE_BEHIND") as usize;
    let mut seqs = Vec::new();
    let mut begun = VecDeque::new();
    // A full disk is waited for once.
    let mut patient = true;
    for n in 0..frames {
        while begun.len() < order("CHILD_BURST") as usize && n + begun.len() < frames {
            begun.push_back(begin(&journal, 0, 1, &payload(n + begun.len(), bytes)));
        }
        let begun = begun.pop_front().unwrap();
        match begun.and_then(|(appended, answer)| answer.recv().unwrap().map(|_| appended)) {
            Ok(appended) => {
                say(&format!("ack {n} {}", appended.seq));
                seqs.push(appended.seq);
            }
            Err(error) => {
                say(&format!("error {error}"));
                if error == AppendError::DiskFull && std::mem::take(&mut patient) {
                    let deadline = Instant::now() + Duration::from_secs(2);
                    while journal.check_writable().is_err() && Instant::now() < deadline {
                        std::thread::sleep(Duration::from_millis(5));
                    }
                }
                if matches!(error, AppendError::Poisoned(_)) {
                    assert!(matches!(journal.check_writable(), Err(AppendError::Poisoned(_))));
                    say(&format!("error {}", block_on(journal.poisoned())));
                    assert!(journal.seal().is_err());
                    return;
                }
            }
        }
        let settled = match n {
            _ if behind > 0 && n >= behind => Some(seqs[n - behind]),
            _ if every > 0 && (n + 1).is_multiple_of(every) => seqs.last().copied(),
            _ => None,
        };
        if let Some(seq) = settled {
            say(&format!("settled {seq}"));
            journal.commit(0, seq);
        }
    }
    say("done");
}
