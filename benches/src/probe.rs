//! The disk's own speed: `pwrite` + `fdatasync` to blocks that have been written before, like the journal.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use crate::meter::histogram;

const FILE_BYTES: u64 = 64 << 20;

/// A file of zeros that is overwritten repeatedly.
struct Probe {
    file: File,
    payload: Vec<u8>,
    at: u64,
    latency_us: Histogram<u64>,
}

impl Probe {
    fn new(dir: &Path, bytes: usize) -> Self {
        let file = OpenOptions::new().create(true).truncate(true).write(true).open(dir.join("probe"));
        let file = file.expect("the probe's file can be created");
        let zeros = vec![0; 1 << 20];
        for step in 0..FILE_BYTES >> 20 {
            file.write_all_at(&zeros, step << 20).expect("the disk has space for the probe");
        }
        file.sync_all().expect("fsync");
        Self { file, payload: vec![0x5a; bytes], at: 0, latency_us: histogram() }
    }

    fn once(&mut self) {
        let bytes = self.payload.len() as u64;
        if self.at + bytes > FILE_BYTES {
            self.at = 0;
        }
        let started = Instant::now();
        self.file.write_all_at(&self.payload, self.at).expect("the probe writes");
        self.file.sync_data().expect("fdatasync");
        self.latency_us.saturating_record(u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX));
        self.at += bytes;
    }
}

/// Returns the microseconds of this number of sequential writes of `bytes`, without other load.
#[must_use]
pub fn alone(dir: &Path, bytes: usize, writes: u32) -> Histogram<u64> {
    let mut probe = Probe::new(dir, bytes);
    for _ in 0..writes {
        probe.once();
    }
    probe.latency_us
}

/// A probe that runs concurrently with a load.
pub struct Beside {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Histogram<u64>>,
}

impl Beside {
    /// Writes `bytes` every `interval`.
    #[must_use]
    pub fn start(dir: &Path, bytes: usize, interval: Duration) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, mut probe) = (Arc::clone(&stop), Probe::new(dir, bytes));
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let due = Instant::now() + interval;
                probe.once();
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
            }
            probe.latency_us
        });
        Self { stop, thread }
    }

    /// Stops it and returns its latencies.
    #[must_use]
    pub fn stop(self) -> Histogram<u64> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the probe does not panic")
    }
}
