//! The reading end: splits the input into bodies and schedules them.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use logweir::internal::Demo;
use logweir_record::codec::PAYLOAD_BYTES_MAX;

use super::bodies::{Limits, Splitter};
use super::shared::{Body, Shared};
use super::stop::Stop;
use crate::exit;

/// With a rate, a body holds the records that are due within this fraction of a second, so that the load is even.
const BODIES_PER_SECOND: u64 = 10;

/// What to send.
pub(super) struct Input {
    pub(super) files: Vec<PathBuf>,
    pub(super) demo: bool,
    /// Whether a file is one JSON document.
    pub(super) document: bool,
    pub(super) batch_bytes: usize,
    pub(super) rate: Option<u64>,
    pub(super) records_max: Option<u64>,
}

/// The reading end: splits the input into bodies, schedules them, and waits while the connections are busy.
pub(super) struct Feed<'a> {
    input: Input,
    shared: &'a Shared,
    start: Instant,
    bodies: u64,
    records: u64,
}

impl<'a> Feed<'a> {
    pub(super) fn new(input: Input, shared: &'a Shared, start: Instant) -> Self {
        Self { input, shared, start, bodies: 0, records: 0 }
    }

    pub(super) fn run(mut self) {
        if self.input.demo {
            return self.demo();
        }
        for path in std::mem::take(&mut self.input.files) {
            if let Err(error) = self.file(&path) {
                return self.shared.fail(exit::NO_INPUT, format!("{}: {error}", path.display()));
            }
        }
    }

    fn demo(&mut self) {
        let mut demo = Demo::new(rand::random());
        while let Some(limits) = self.limits() {
            let (mut body, mut records) = (Vec::with_capacity(limits.bytes_max + 1024), 0);
            while records < limits.records_max && body.len() < limits.bytes_max {
                body.extend_from_slice(demo.next_line(logweir_engine::clock::wall_us()).as_bytes());
                body.push(b'\n');
                records += 1;
            }
            if !self.emit(body, Some(records)) {
                return;
            }
        }
    }

    fn file(&mut self, path: &Path) -> io::Result<()> {
        let stdin = path == Path::new("-");
        // Not `io::stdin().lock()`: its buffer would make small bodies of large writes.
        let file = if stdin { io::stdin().as_fd().try_clone_to_owned()?.into() } else { File::open(path)? };
        let regular = file.metadata()?.is_file();
        let input = Interruptible { file, stop: &self.shared.stop };
        if self.input.document {
            return self.document(input);
        }
        // Both closures need the feed, one after the other.
        let feed = std::cell::RefCell::new(self);
        Splitter::default().read(
            input,
            !regular,
            || feed.borrow().limits(),
            |body, records| feed.borrow_mut().emit(body, Some(records)),
        )
    }

    /// Sends a JSON document, which has no line ends to split at.
    fn document(&mut self, input: impl io::Read) -> io::Result<()> {
        let (mut input, mut body) = (input.take(PAYLOAD_BYTES_MAX as u64 + 1), Vec::new());
        // Not `read_to_end`, which retries an interrupted read without end.
        let mut buffer = vec![0; 64 << 10];
        loop {
            match input.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => body.extend_from_slice(&buffer[..read]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted && self.shared.stop.is_set() => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        if body.len() > PAYLOAD_BYTES_MAX {
            let why = format!("the document is longer than {PAYLOAD_BYTES_MAX} bytes: convert it to ndjson");
            return Err(io::Error::other(why));
        }
        self.emit(body, None);
        Ok(())
    }

    /// Returns the limits of the next body, or `None` after the last one.
    fn limits(&self) -> Option<Limits> {
        let left = self.input.records_max.map_or(u64::MAX, |records| records.saturating_sub(self.records));
        if left == 0 || self.shared.stop.is_set() {
            return None;
        }
        let even = self.input.rate.map_or(u64::MAX, |rate| (rate / BODIES_PER_SECOND).max(1));
        Some(Limits { bytes_max: self.input.batch_bytes, records_max: left.min(even) })
    }

    /// Queues a body; false if the command was stopped.
    fn emit(&mut self, bytes: Vec<u8>, records: Option<u64>) -> bool {
        let due = self.input.rate.map(|rate| self.start + Duration::from_secs_f64(self.records as f64 / rate as f64));
        self.bodies += 1;
        self.records += records.unwrap_or(0);
        let body = Body { number: self.bodies, bytes, records, due };
        self.shared.queue.push(body)
    }
}

/// A file whose reads end when the command is stopped.
struct Interruptible<'a> {
    file: File,
    stop: &'a Stop,
}

impl io::Read for Interruptible<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.stop.wait_readable(self.file.as_fd())? {
            true => self.file.read(buffer),
            false => Err(io::ErrorKind::Interrupted.into()),
        }
    }
}
