//! Helpers shared by the journal's tests.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Wake, Waker};
use std::time::{Duration, Instant};

use logweir_engine::journal::{AppendError, Appended, Frame, Journal, JournalConfig, LaneId, OnDurable, Recovered};
use tempfile::TempDir;
use tokio::sync::oneshot;

pub const SEGMENT_BYTES: u64 = 64 << 10;
pub const SEGMENT_HEADER_BYTES: usize = 168;
pub const FRAME_HEADER_BYTES: usize = 64;
pub const DATA: u8 = 1;
pub const START: u8 = 2;
/// So long that no slow machine reaches it.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// A frame in a file, parsed without the journal's own code.
#[derive(Clone, Copy, Debug)]
pub struct Raw {
    pub offset: usize,
    pub kind: u8,
    pub payload_bytes: usize,
    pub seq: u64,
    pub end: usize,
}

/// Parses the frames of an undamaged segment.
pub fn raw_frames(bytes: &[u8]) -> Vec<Raw> {
    let mut frames = Vec::new();
    let mut offset = SEGMENT_HEADER_BYTES;
    while bytes.len() >= offset + FRAME_HEADER_BYTES && bytes[offset..offset + 4] != [0; 4] {
        let payload_bytes = u32::from_le_bytes(bytes[offset + 12..offset + 16].try_into().unwrap()) as usize;
        let seq = u64::from_le_bytes(bytes[offset + 24..offset + 32].try_into().unwrap());
        let end = (offset + FRAME_HEADER_BYTES + payload_bytes).next_multiple_of(8);
        frames.push(Raw { offset, kind: bytes[offset + 5], payload_bytes, seq, end });
        offset = end;
    }
    frames
}

pub fn flip(path: &Path, bit: usize) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[bit / 8] ^= 1 << (bit % 8);
    std::fs::write(path, bytes).unwrap();
}

/// A directory in memory, where fsync is free: for tests that do not need a disk.
pub fn scratch() -> TempDir {
    if Path::new("/dev/shm").is_dir() { tempfile::tempdir_in("/dev/shm") } else { tempfile::tempdir() }.unwrap()
}

pub fn config(dir: &Path) -> JournalConfig {
    JournalConfig {
        segment_bytes: SEGMENT_BYTES,
        quota_bytes: 64 << 20,
        queue_bytes_max: 1 << 20,
        ..JournalConfig::new(dir)
    }
}

pub fn open(dir: &Path) -> (Journal, Recovered) {
    Journal::open(config(dir)).unwrap()
}

pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(future)
}

/// The outcome of an append.
pub struct Answer(pub oneshot::Receiver<Result<u64, AppendError>>);

impl Answer {
    pub fn recv(self) -> Result<u64, AppendError> {
        let outcome = block_on(async { tokio::time::timeout(PATIENCE, self.0).await });
        outcome.expect("an answer in time").expect("the journal answers")
    }
}

type Outcome = Result<u64, AppendError>;
type Act = Box<dyn FnOnce(Outcome) + Send>;

/// Calls a closure with the outcome of an append, in the thread that sends it.
struct OnOutcome {
    outcome: Mutex<Option<oneshot::Receiver<Outcome>>>,
    act: Mutex<Option<Act>>,
}

impl Wake for OnOutcome {
    fn wake(self: Arc<Self>) {
        let outcome = self.outcome.lock().unwrap().take().and_then(|mut outcome| outcome.try_recv().ok());
        let act = self.act.lock().unwrap().take();
        if let (Some(outcome), Some(act)) = (outcome, act) {
            act(outcome);
        }
    }
}

/// Lets the writer's thread call `act`, as no program should: the tests hold and observe the writer with it.
pub fn when_settled(act: impl FnOnce(Outcome) + Send + 'static) -> OnDurable {
    let (on_durable, mut outcome) = OnDurable::send();
    let calls = Arc::new(OnOutcome { outcome: Mutex::default(), act: Mutex::new(Some(Box::new(act))) });
    let waker = Waker::from(calls.clone());
    assert!(Pin::new(&mut outcome).poll(&mut Context::from_waker(&waker)).is_pending());
    *calls.outcome.lock().unwrap() = Some(outcome);
    on_durable
}

/// Appends without waiting.
pub fn begin(journal: &Journal, lane: LaneId, records: u32, payload: &[u8]) -> Result<(Appended, Answer), AppendError> {
    let credit = block_on(journal.reserve(payload.len()))?;
    let (on_durable, outcome) = OnDurable::send();
    let appended = journal.append(credit, lane, 1, records, payload.to_vec(), on_durable)?;
    Ok((appended, Answer(outcome)))
}

/// Appends and waits until the frame is durable.
pub fn append(journal: &Journal, lane: LaneId, records: u32, payload: &[u8]) -> Result<Appended, AppendError> {
    let (appended, answer) = begin(journal, lane, records, payload)?;
    answer.recv()?;
    Ok(appended)
}

/// Reads every durable frame of a lane.
pub fn read(journal: &Journal, lane: LaneId) -> Vec<Frame> {
    let mut reader = journal.reader(lane, 0);
    let mut frames = Vec::new();
    loop {
        let more = reader.next_frames(100, 1 << 20).unwrap();
        if more.is_empty() {
            return frames;
        }
        frames.extend(more);
    }
}

pub fn payloads(frames: &[Frame]) -> Vec<Vec<u8>> {
    frames.iter().map(|frame| frame.payload.clone()).collect()
}

/// Lists the segment files, oldest first.
pub fn segments(dir: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "wal"))
        .collect();
    files.sort();
    files
}

/// Lists the names in `quarantine/`, sorted.
pub fn quarantine(dir: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(dir.join("quarantine")) else { return Vec::new() };
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Size of all files below `dir`, but the lock's.
pub fn disk_bytes(dir: &Path) -> u64 {
    std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.file_name() != "LOCK")
        .map(|entry| if entry.path().is_dir() { disk_bytes(&entry.path()) } else { entry.metadata().unwrap().len() })
        .sum()
}

/// Copies a journal's directory without its lock.
pub fn copy(from: &Path) -> TempDir {
    let to = scratch();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() && !path.ends_with("LOCK") {
            std::fs::copy(&path, to.path().join(path.file_name().unwrap())).unwrap();
        }
    }
    to
}

/// Waits until `condition` holds.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "did not happen within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A payload that identifies its number.
pub fn payload(number: usize, bytes: usize) -> Vec<u8> {
    let mut payload = format!("payload {number} ").into_bytes();
    payload.resize(bytes.max(payload.len()), b'a' + (number % 26) as u8);
    payload
}
